"""`fleets`: devices by the dozen, expanded before the scenario is checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scenarios.build import build
from scenarios.check import ScenarioInvalid, validate
from scenarios.grids import load_grid, supplied
from scenarios.load import load
from scenarios.run_directory import RunDirectory
from scenarios.schema import file_schema
from tests.running import do

SCENARIO = """
extends: ieee33-quick
name: fleet
steps: 2
fleets:
  - {name: roof, buses: {every: 4}, device: {kind: pv-inverter, s_mva: 0.05, profile: sun}}
  - {name: car, buses: [3, 9], device: {kind: battery, p_mw: 0.05, e_mwh: 0.1, profile: trading}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "fleet.yaml"
    path.write_text(SCENARIO, "utf-8")
    return path


def names(file: Path, *changes: str) -> list[str]:
    return [part.name for part in validate(load(str(file), changes)).devices]


def test_one_device_at_each_bus_beside_the_others(file: Path) -> None:
    own = [part.name for part in validate(load("ieee33-quick")).devices]
    roofs = [f"roof-{bus}" for bus in range(1, 33, 4)]  # bus 0 is the source's
    assert names(file) == [*own, *roofs, "car-3", "car-9"]
    draft = load(str(file))
    devices = build(draft, validate(draft)).site.devices
    assert (devices["roof-9"].bus, devices["roof-9"].rating_mw) == ("9", 0.05)
    assert devices["car-9"].bus == "9"


def test_all_buses_and_buses_by_name(file: Path) -> None:
    assert len([n for n in names(file, "fleets.car.buses=all") if n.startswith("car-")]) == 32
    sunny = "{kind: pv-inverter, s_mva: 0.01, profile: sun}"
    village = validate(load("village", [f"fleets=[{{name: roof, buses: [farm], device: {sunny}}}]"]))
    (made,) = [part for part in village.devices if part.name.startswith("roof-")]
    assert made.bus == "farm"
    assert made.name.removeprefix("roof-").isdecimal()


def test_a_change_reaches_the_whole_fleet(file: Path) -> None:
    scenario = validate(load(str(file), ["fleets.roof.device.s_mva=0.07"]))
    ratings = {part.s_mva for part in scenario.devices if part.name.startswith("roof-")}  # type: ignore[union-attr]
    assert ratings == {0.07}


def test_a_scenario_that_extends_another_changes_its_fleets(file: Path) -> None:
    child = file.with_name("child.yaml")
    child.write_text("extends: fleet.yaml\nfleets:\n  - {name: roof, buses: {every: 16}}\n", "utf-8")
    assert [n for n in names(child) if n.startswith("roof-")] == ["roof-1", "roof-17"]
    assert "car-9" in names(child)
    assert len(names(file)) == 16  # the one below is as it was


def test_buses_that_nothing_supplies_are_left_out() -> None:
    net = load_grid("pandapower.networks:case33bw", Path())
    assert supplied(net) == list(range(1, 33))
    net.line.loc[24, "in_service"] = False  # buses 25 to 32 hang on it
    assert supplied(net) == list(range(1, 25))
    net.bus.loc[24, "in_service"] = False
    assert supplied(net) == list(range(1, 24))


@pytest.mark.parametrize(
    ("change", "path", "advice"),
    [
        ("fleets.roof.device.s_mva=-1", "fleets.roof", "device.s_mva: Input should be greater than 0"),
        ("fleets.roof.device.s_mv=1", "fleets.roof", "device.s_mv: Extra inputs"),
        ("fleets.roof.device.bus=3", "fleets.roof", "name and bus follow from the fleet"),
        ("fleets.roof.buses=some", "fleets.roof.buses", "must be all, {every: N}"),
        ("fleets.roof.buses={every: 0}", "fleets.roof.buses", "must be all, {every: N}"),
        ("fleets.car.buses=[3, 99]", "devices.car-99.bus", "bus 99 is not in the grid"),
        ("fleets.roof.device.profile=moon", "devices.roof-1.profile", "is no profile of this scenario"),
        ("grid.network=none.json", "grid.network", "cannot be read"),
    ],
)
def test_a_mistake_is_said_once_and_where_it_is(file: Path, change: str, path: str, advice: str) -> None:
    with pytest.raises(ScenarioInvalid) as refused:
        validate(load(str(file), [change]))
    (problem,) = refused.value.problems
    assert problem.path == path
    assert advice in problem.advice


def test_a_name_that_is_taken_is_refused(file: Path) -> None:
    with pytest.raises(ScenarioInvalid, match="is a name used before"):
        validate(load(str(file), ["devices.0.name=car-3"]))


async def test_a_fleet_runs_and_its_devices_are_in_the_manifest(file: Path, tmp_path: Path) -> None:
    result = await do(file, tmp_path / "runs")
    recorded: Any = RunDirectory.open(result.directory).manifest().scenario
    assert len(recorded["devices"]) == 16
    assert recorded["fleets"] == []


def test_the_schema_takes_fleets_in_the_place_of_devices() -> None:
    wanted = [set(each["required"]) for each in file_schema()["anyOf"]]
    assert {"extends"} in wanted
    assert any("fleets" in each and "devices" not in each for each in wanted)
