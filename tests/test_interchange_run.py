"""Microgrids from the scenario file to the tables: mistakes, forecasts, conversation, records, verdicts."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from controllers import FlexibleLoad, Generator, Microgrid, Region
from scenarios.build import Built, build
from scenarios.check import Problem, ScenarioInvalid, notices, validate
from scenarios.cli import app
from scenarios.expectations import InterchangeRespected, UnservedBelow
from scenarios.load import load
from scenarios.microgrid_report import microgrids
from scenarios.report import show, summary
from scenarios.verdicts import evaluate
from simulators.clock import Duty, Tick
from simulators.journal import Journal, read
from simulators.profiles import ProfilesSimulator
from tests.running import do

START = datetime(2026, 6, 21, 6, tzinfo=UTC)
HOUR = timedelta(hours=1)

SCENARIO = """\
name: coupled
start: 2026-06-21T06:00:00Z
every: 1h
steps: 8
seed: 3
grid: {network: "pandapower.networks:case33bw", engine: power-grid-model}
forecast: {intervals: 3}
profiles:
  sun: {kind: daily, values: {"00:00": 0.5}}
  demand: {kind: daily, spread: 0.05, values: {"00:00": 0.5, "10:00": 0.7}}
  warmth: {kind: daily, spread: 0.1, values: {"00:00": 0.8}}
  spot: {kind: daily, values: {"00:00": 60, "10:00": 110}}
devices:
  - {name: mt1, kind: micro-turbine, bus: 17, p_mw: 0.4, p_min_mw: 0.05, ramp_mw_per_min: 0.01,
     cost_per_mwh: 70, heat_ratio: 1.4, p_start_mw: 0.1}
  - {name: bat1, kind: battery, bus: 17, p_mw: 0.2, e_mwh: 1.0, cost_per_mwh: 5}
  - {name: pv1, kind: pv-inverter, bus: 17, s_mva: 0.2, profile: sun}
  - {name: ul1, kind: flexible-load, bus: 17, p_mw: 0.4, interruptible: false, power_factor: 0.6,
     profile: demand}
  - {name: il1, kind: flexible-load, bus: 17, p_mw: 0.1, cost_per_mwh: 150, profile: demand}
  - {name: bat2, kind: battery, bus: 5, p_mw: 0.2, e_mwh: 1.0}
microgrids:
  - {name: mg1, bus: 17, devices: [mt1, bat1, pv1, ul1, il1], tie_mw: 0.8, q_mvar: [-0.1, 0.2], price: spot,
     heat: {mw: 0.3, profile: warmth}, isolated: [["2026-06-21T08:00:00Z", "2026-06-21T10:00:00Z"]]}
controllers:
  - {name: mgcc, uses: "talk.py:Predicts"}
  - {name: dncc, uses: "talk.py:Corrects", options: {band_mw: 0.05}}
  - {name: mg1, uses: "talk.py:Dispatches"}
bus: {kind: memory}
"""

TALK = '''
"""Controllers that say what they hear: enough to follow a conversation."""

from dataclasses import dataclass

import numpy as np

from controllers import Decision, Forecast, Infeasible, Interval, Kind, Origin, Region, Setpoint


@dataclass
class Predicts:
    site: object

    def step(self, seen):
        every, connected = self.site.every, seen.connected["mg1"]
        width = 0.3 if connected else 0.0
        boxes = [Region.box(p_mw=(-width - i / 10, width), q_mvar=(-0.1, 0.2)) for i in range(2)]
        begins = seen.time + 2 * every
        plan = np.array([[0.0], [0.125]])
        return Decision(
            time=seen.time, origin=Origin.OPTIMAL, kind=Kind.PIC, regions={"mg1": boxes[0]},
            later=(Interval(start=begins, end=begins + every, regions={"mg1": boxes[1]}),),
            plan=Forecast(seen.time, every, ("mg1",), plan, 0 * plan),
        )


@dataclass
class Corrects:
    site: object
    band_mw: float = 0.1

    def step(self, seen):
        heard = seen.said["mgcc"]
        if heard.kind is not Kind.PIC or heard.time != seen.time:
            raise Infeasible(f"heard {heard.kind} of {heard.time}")
        box = Region.box(p_mw=(-self.band_mw, self.band_mw), q_mvar=(0.0, 0.0))
        return Decision(
            time=seen.time, origin=Origin.CERTIFIED, kind=Kind.AIC,
            regions={"mg1": heard.regions["mg1"] & box},
        )


@dataclass
class Dispatches:
    site: object

    def step(self, seen):
        if seen.said["dncc"].time != seen.time or set(seen.said) != {"mgcc", "dncc"}:
            raise Infeasible(f"heard {dict(seen.said)}")
        total = sum(seen.p_mw[name] for name in self.site.microgrids["mg1"].devices)
        if seen.connected["mg1"] and abs(seen.p_mw["mg1"] - total) > 1e-9:
            raise Infeasible(f"measured {seen.p_mw['mg1']}, the devices sum to {total}")
        if not seen.connected["mg1"] and (seen.p_mw["mg1"], seen.q_mvar["mg1"]) != (0, 0):
            raise Infeasible("an island exchanges something")
        demand = -sum(seen.forecast.at(0)[name] for name in ("ul1", "il1"))
        return Decision(
            time=seen.time, origin=Origin.OPTIMAL,
            setpoints={"mt1": Setpoint(p_mw=demand - 0.1), "bat1": Setpoint(p_mw=0.0),
                       "pv1": Setpoint(p_mw=0.1), "ul1": Setpoint(p_mw=-1.0), "il1": Setpoint(p_mw=-1.0)},
            plan=Forecast(seen.time, self.site.every, ("mg1",), np.array([[0.25 / 16]]), np.zeros((1, 1))),
        )
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "scenario.yaml").write_text(SCENARIO)
    (tmp_path / "talk.py").write_text(TALK)
    return tmp_path


def built(folder: Path, *changes: str) -> Built:
    draft = load(str(folder / "scenario.yaml"), changes)
    return build(draft, validate(draft))


def problems(folder: Path, *changes: str) -> dict[str, Problem]:
    with pytest.raises(ScenarioInvalid) as caught:
        validate(load(str(folder / "scenario.yaml"), changes))
    return {problem.path: problem for problem in caught.value.problems}


# The file


def test_a_microgrid_becomes_what_controllers_know(folder: Path) -> None:
    site = built(folder, "microgrids.mg1.shed_cost_per_mwh=900").site
    assert site.microgrids == {
        "mg1": Microgrid(
            name="mg1",
            bus="17",
            devices=("mt1", "bat1", "pv1", "ul1", "il1"),
            tie_mw=0.8,
            q_mvar=(-0.1, 0.2),
            price="spot",
            heat="mg1:heat",
            shed_cost_per_mwh=900.0,
        )
    }
    turbine, load_ = site.devices["mt1"], site.devices["il1"]
    assert isinstance(turbine, Generator)
    assert (turbine.cost_per_mwh, turbine.heat_ratio, turbine.initial().p_mw) == (70.0, 1.4, 0.1)
    assert isinstance(load_, FlexibleLoad)
    assert (load_.interruptible, load_.cost_per_mwh) == (True, 150.0)
    assert getattr(site.devices["bat1"], "cost_per_mwh") == 5.0  # noqa: B009


def test_a_load_that_is_not_interruptible_is_not_shed_by_its_default(folder: Path) -> None:
    """At full rating and a power factor at which its reactive power is more than that."""
    devices = built(folder).site.devices
    for name, kept in (("ul1", 0.4), ("il1", 0.0)):
        device = devices[name]
        able = device.limits(device.initial(), 1.0, 3600.0) & device.default
        assert able.nearest([-1.0, device.reactive(-1.0)])[0] == pytest.approx(-kept, abs=1e-9)


@pytest.mark.parametrize(
    ("change", "path", "advice"),
    [
        ("devices=[mt1, bat1, pv1, ul1, il2]", "microgrids.mg1.devices.4", "did you mean 'il1'"),
        ("devices=[mt1, bat1, mt1]", "microgrids.mg1.devices.2", "belongs to microgrid 'mg1' already"),
        ("devices=[mt1, bat2]", "microgrids.mg1.devices.1", "is at bus 5, the microgrid at bus 17"),
        ("devices=[]", "microgrids.mg1.devices", "has too few; give at least 1"),
        ("bus=16", "microgrids.mg1.bus", "is not where its devices are: they are all at bus 17"),
        ("price=sun", "microgrids.mg1.price", "is followed by device 'pv1' in per unit; a price is in $/MWh"),
        (
            'isolated=["2026-06-21T08:00:00Z", "2026-06-21T10:00:00Z"]',
            "microgrids.mg1.isolated",
            "write windows as [[from, until], ...]",
        ),
        ('isolated=[["2026-06-21T08:00:00Z"]]', "microgrids.mg1.isolated", "write windows as [[from"),
        ("bus=40", "microgrids.mg1.bus", "bus 40 is not in the grid"),
        ("name=bat2", "microgrids.bat2.name", "is the name of a device"),
        ("price=spott", "microgrids.mg1.price", "did you mean 'spot'"),
        ("heat.profile=warm", "microgrids.mg1.heat.profile", "did you mean 'warmth'"),
        ("heat.mw=0", "microgrids.mg1.heat.mw", "greater than 0"),
        ("tie_mw=-1", "microgrids.mg1.tie_mw", "greater than 0"),
        ("q_mvar=[0.2, -0.1]", "microgrids.mg1.q_mvar", "swap"),
        ("resync_steps=-1", "microgrids.mg1.resync_steps", "greater than or equal to 0"),
        ("tie=1", "microgrids.mg1.tie", "did you mean 'tie_mw'"),
        (
            'isolated=[["2026-06-21T10:00:00Z", "2026-06-21T08:00:00Z"]]',
            "microgrids.mg1.isolated",
            "let it end after it begins",
        ),
        (
            'isolated=[["2026-06-21T08:00:00Z", "2026-06-21T10:00:00Z"], '
            '["2026-06-21T09:00:00Z", "2026-06-21T11:00:00Z"]]',
            "microgrids.mg1.isolated",
            "begins before the one before it ends",
        ),
        ('isolated=[["2026-06-21T08:00:00", "2026-06-21T10:00:00"]]', "microgrids.mg1.isolated.0.0", "zone"),
    ],
)
def test_each_mistake_about_a_microgrid_speaks(folder: Path, change: str, path: str, advice: str) -> None:
    found = problems(folder, f"microgrids.mg1.{change}")
    assert path in found, found
    assert advice in found[path].advice


@pytest.mark.parametrize(
    ("change", "path", "advice"),
    [
        ("devices.ul1.cost_per_mwh=9", "devices.ul1", "shed_cost_per_mwh"),
        ("devices.mt1.p_start_mw=0.02", "devices.mt1", "p_start_mw 0.02 is not from 0.05 to 0.4"),
        ("devices.mt1.heat_ratio=-1", "devices.mt1.heat_ratio", "greater than or equal to 0"),
        ("devices.ul1.profile=null", "microgrids.mg1.devices.3", "has no profile"),
        ("devices.ul1.interruptible=maybe", "devices.ul1.interruptible", "true or false"),
    ],
)
def test_each_mistake_about_its_devices_speaks(folder: Path, change: str, path: str, advice: str) -> None:
    found = problems(folder, change)
    assert path in found, found
    assert advice in found[path].advice


def test_a_mistake_about_a_bus_is_said_once(folder: Path) -> None:
    assert list(problems(folder, "microgrids.mg1.bus=16")) == ["microgrids.mg1.bus"]
    apart = problems(folder, "microgrids.mg1.bus=16", "devices.mt1.bus=15")
    assert list(apart) == [f"microgrids.mg1.devices.{k}" for k in range(5)]


def test_weather_is_no_price_and_a_map_no_list(folder: Path) -> None:
    found = problems(folder, "profiles.cloud={kind: pv}", "microgrids.mg1.price=cloud")
    assert found["microgrids.mg1.price"].advice.startswith("is of kind pv; a price is in $/MWh")
    found = problems(folder, "microgrids={mg1: {bus: 17}}")
    assert found["microgrids"].advice == "must be a list: `- name: mg1`"
    found = problems(folder, "controllers.mgcc.process='mg 1'")
    assert found["controllers.mgcc.process"].advice.startswith("must be here, own or a name")


def test_a_window_outside_the_run_is_noticed(folder: Path) -> None:
    def noticed(*changes: str) -> dict[str, str]:
        draft = load(str(folder / "scenario.yaml"), changes)
        return {one.path: one.advice for one in notices(draft, validate(draft))}

    assert noticed() == {}
    assert noticed("steps=3") == {}  # it begins with the last step
    ((path, advice),) = noticed("steps=2").items()
    assert path == "microgrids.mg1.isolated.0"
    assert "is outside the run, which goes from 2026-06-21 06:00 to 2026-06-21 08:00" in advice
    assert noticed("start=2026-06-21T10:00:00Z") == {}  # it synchronises still
    assert list(noticed("start=2026-06-21T11:00:00Z")) == ["microgrids.mg1.isolated.0"]
    ended = CliRunner().invoke(app, ["check", str(folder / "scenario.yaml"), "--set", "steps=2"])
    assert (ended.exit_code, "notice: " in ended.output) == (0, True)
    ended = CliRunner().invoke(app, ["check", str(folder / "scenario.yaml"), "--json", "--set", "steps=2"])
    assert [one["path"] for one in json.loads(ended.stdout)["notices"]] == ["microgrids.mg1.isolated.0"]


def test_two_microgrids_share_neither_name_nor_device_nor_price_with_another(folder: Path) -> None:
    text = SCENARIO.replace(
        "controllers:", "  - {name: mg1, bus: 17, devices: [il1], tie_mw: 1, price: bat2}\ncontrollers:"
    )
    text = text.replace(
        "devices:\n", "devices:\n  - {name: sun, kind: battery, bus: 5, p_mw: 1, e_mwh: 1}\n", 1
    )
    text = text.replace("  sun:", '  bat2: {kind: daily, values: {"00:00": 1}}\n  sun:')
    (folder / "scenario.yaml").write_text(text)
    found = {path: problem.advice for path, problem in problems(folder).items()}
    assert "used before" in found["microgrids.1.name"]
    assert "belongs to microgrid 'mg1'" in found["microgrids.mg1.devices.0"]
    assert "also the name of a device" in found["microgrids.mg1.price"]
    assert len(found) == 3


# What is forecast


def test_prices_and_heat_are_forecast_beside_loads_and_sun(folder: Path) -> None:
    made = built(folder)
    profiles = ProfilesSimulator(made.driven, HOUR, 5)
    forecast = profiles.run(Tick(0, START, Duty.FULL, START))
    column = {name: i for i, name in enumerate(forecast.names)}
    assert column.keys() == {"pv1", "ul1", "il1", "spot", "mg1:heat"}
    mean, std = forecast.mean, forecast.std
    assert mean[:, column["spot"]].tolist() == [60.0] * 3 + [110.0] * 2
    assert mean[:, column["pv1"]].tolist() == [0.1] * 5
    assert (std[:, [column["spot"], column["pv1"]]] == 0).all()
    assert (mean[:, [column["ul1"], column["il1"]]] < 0).all()
    assert mean[4, column["ul1"]] == pytest.approx(-0.4 * 0.7, rel=0.02)
    assert mean[4, column["mg1:heat"]] == pytest.approx(0.3 * 0.8, rel=0.05)
    assert (std[:, column["mg1:heat"]] > 0).all()
    assert profiles.out["profiles"]["drive"]["spot"] == 60.0  # a price is its own unit
    assert 0.2 < profiles.out["profiles"]["drive"]["mg1:heat"] < 1.2  # heat is in per unit of its rating


def test_two_microgrids_may_have_one_price(folder: Path) -> None:
    text = SCENARIO.replace(
        "controllers:", "  - {name: mg2, bus: 5, devices: [bat2], tie_mw: 1, price: spot}\ncontrollers:"
    )
    (folder / "scenario.yaml").write_text(text)
    names = [name for driven in built(folder).driven for name in driven.process.names]
    assert names.count("spot") == 1


# A run


async def test_the_conversation_of_a_run_and_its_record(folder: Path) -> None:
    result = await do(folder / "scenario.yaml", folder / "runs")
    assert result.exit == 0, (result.why, (result.directory / "events.jsonl").read_text())
    events = [json.loads(line) for line in (result.directory / "events.jsonl").read_text().splitlines()]
    assert [(e["step"], e["what"]) for e in events] == [
        (0, "default-unsafe"),
        (2, "breaker-opened"),
        (5, "breaker-closed"),
    ]
    rows = read(result.directory, "exchanges").to_pylist()
    assert [row["connected"] for row in rows] == [True, True, False, False, False, True, True, True]

    devices: dict[datetime, dict[str, dict[str, Any]]] = {}
    for row in read(result.directory, "devices").to_pylist():
        devices.setdefault(row["time"], {})[row["device"]] = row
    forecasts = read(result.directory, "forecasts").to_pylist()
    assert {f["name"] for f in forecasts} >= {"spot", "mg1:heat"}
    price = {6: 60.0, 7: 60.0, 8: 60.0, 9: 60.0}
    for k, row in enumerate(rows):
        own = [devices[row["time"]][name] for name in ("mt1", "bat1", "pv1", "ul1", "il1")]
        total = sum(device["p_mw"] for device in own)
        assert row["p_mw"] == pytest.approx(total if row["connected"] else 0.0, abs=1e-9), k
        assert total == pytest.approx(row["p_mw"], abs=1e-9), k  # an island sums to zero
        assert row["price_per_mwh"] == price.get(row["time"].hour, 110.0)
        assert row["boiler_mw"] == pytest.approx(max(row["heat_mw"] - 1.4 * own[0]["p_mw"], 0.0))
        if k == 0:  # nothing was said before
            assert [row[n] for n in ("planned_mw", "pic_low_mw", "aic_high_mw")] == [None] * 3
            continue
        assert row["planned_mw"] == 0.25 / 16  # of the controller named last, and of interval 0
        seen_connected = rows[k - 1]["connected"]  # by the observation behind what is in force now
        limit = 0.3 if seen_connected else 0.0
        assert (row["pic_low_mw"], row["pic_high_mw"]) == pytest.approx((-limit, limit))
        assert (row["aic_low_mw"], row["aic_high_mw"]) == pytest.approx((-min(limit, 0.05), min(limit, 0.05)))
        if row["connected"]:
            assert row["aic_low_mw"] - 1e-9 <= row["p_mw"] <= row["aic_high_mw"] + 1e-9
    assert any(device["state"] == "balancing" for at in devices.values() for device in at.values())

    # The grid saw only what the table says: the power flow repeated from the tables has these voltages.
    site = built(folder).site
    assert site.power_flow is not None
    volts = read(result.directory, "buses").to_pylist()
    for k in (1, 3):
        p_mw, q_mvar = np.zeros((2, len(site.power_flow.buses)))
        for name, row in devices[rows[k]["time"]].items():
            if name in site.microgrids["mg1"].devices and not rows[k]["connected"]:
                continue
            known = site.devices.get(name) or site.loads[name]
            at = site.power_flow.buses.index(known.bus)
            p_mw[at] += row["p_mw"]
            q_mvar[at] += row["q_mvar"]
        flows = site.power_flow.solve(p_mw[None], q_mvar[None])
        now = [v["v_pu"] for v in volts if v["time"] == rows[k]["time"]]
        np.testing.assert_allclose(now, flows.v_pu[0], atol=1e-9)


async def test_the_same_run_twice_is_the_same_to_the_byte(folder: Path) -> None:
    one, other = [await do(folder / "scenario.yaml", folder / name) for name in ("one", "other")]
    for table in ("exchanges", "devices", "regions", "forecasts"):
        name = f"{table}.parquet"
        assert (one.directory / name).read_bytes() == (other.directory / name).read_bytes(), table


async def test_a_run_is_judged_and_reported_by_its_exchanges(folder: Path) -> None:
    asked = [{"what": "interchange_respected"}, {"what": "unserved_mwh", "below": 0.2}]
    result = await do(folder / "scenario.yaml", folder / "runs", f"expect={json.dumps(asked)}")
    respected, unserved = result.verdicts
    assert respected.held
    assert (respected.checked, dict(respected.uncounted)) == (
        4,
        {"isolated": 3, "before_the_first_decision": 1},
    )
    rows = read(result.directory, "exchanges").to_pylist()
    assert unserved.observed == pytest.approx(sum(row["unserved_mw"] for row in rows))
    assert unserved.held == (unserved.observed <= 0.2)

    (figures,) = microgrids(result.directory, HOUR)
    assert figures.islanded_steps == 3
    # Seven steps have a capability in force, of which those after an island's are zero.
    assert figures.offered_mwh == pytest.approx(4 * 0.6)
    assert figures.accepted_mwh == pytest.approx(4 * 0.1)
    assert figures.outside_mwh == pytest.approx(0.0, abs=1e-8)
    assert figures.cost == pytest.approx(sum(row["cost"] for row in rows))
    assert figures.sold_mwh is not None
    assert figures.bought_mwh is not None
    assert figures.sold_mwh - figures.bought_mwh == pytest.approx(sum(row["p_mw"] for row in rows))
    out = StringIO()
    found = summary(result.directory)
    show(found, Console(file=out, width=100))
    assert "Microgrids" in out.getvalue()
    assert "mg1" in out.getvalue()
    assert max(map(len, out.getvalue().splitlines())) <= 100
    assert found.as_dict()["microgrids"][0]["name"] == "mg1"


async def test_without_regulation_the_capability_may_be_left(folder: Path) -> None:
    options = ("microgrids.mg1.regulates=false", "controllers.dncc.options.band_mw=0.001")
    result = await do(folder / "scenario.yaml", folder / "runs", *options)
    verdict = evaluate(result.directory, InterchangeRespected(what="interchange_respected"))
    assert not verdict.held
    assert verdict.worst is not None
    assert verdict.worst.by is not None
    assert verdict.worst.by > 0.001
    assert "outside of [-0.001, 0.001]" in verdict.sentence


# Verdicts of tables written by hand


def recorded(folder: Path, *rows: dict[str, Any]) -> Path:
    """A run of as many steps as there are rows of `mg1`; `None` in place of a row: the step has none."""
    with Journal(folder) as journal:
        for k, row in enumerate(rows):
            at = START + k * HOUR
            tables: dict[str, Any] = {"steps": {"step": k, "time": at}}
            if row:
                tables["exchanges"] = [{"time": at, "microgrid": "mg1", "connected": True, **row}]
            journal.append(k, tables)
    return folder


INSIDE = {"p_mw": 0.1, "aic_low_mw": 0.0, "aic_high_mw": 0.2, "unserved_mw": 0.05}


@pytest.mark.parametrize(
    ("last", "held", "words"),
    [
        (INSIDE | {"p_mw": 0.2}, True, "3 of 3 .*on the limit of"),
        (
            INSIDE | {"p_mw": 0.25},
            False,
            "2 of 3 .*mg1 at 0.25 MW, 2026-06-21 08:00.* 0.05 MW outside",
        ),
        (INSIDE | {"p_mw": -0.01}, False, "0.01 MW outside of"),
        (INSIDE | {"p_mw": 0.25, "connected": False}, True, "2 of 2 .*1 isolated do not count"),
        (
            INSIDE | {"aic_low_mw": None},
            False,
            "2 of 3 .*1 without capability, first of microgrid mg1, 2026-06-21 08:00.*; closest",
        ),
        (INSIDE | {"p_mw": None}, False, "1 missing, first of microgrid mg1, 2026-06-21 08:00"),
        ({}, False, "1 missing, first of microgrid mg1"),
    ],
)
def test_interchange_respected(tmp_path: Path, last: dict[str, Any], held: bool, words: str) -> None:
    run = recorded(tmp_path, INSIDE, INSIDE, last)
    verdict = evaluate(run, InterchangeRespected(what="interchange_respected"))
    assert verdict.held == held
    assert re.search(words, verdict.sentence), verdict.sentence


def test_nothing_is_in_force_before_a_decision_can_act(tmp_path: Path) -> None:
    none = INSIDE | {"aic_low_mw": None, "aic_high_mw": None}
    expected = InterchangeRespected(what="interchange_respected")
    for name in ("begins", "never"):
        (tmp_path / name).mkdir()
    verdict = evaluate(recorded(tmp_path / "begins", none, INSIDE, INSIDE), expected)
    assert verdict.held
    assert (verdict.checked, dict(verdict.uncounted)) == (2, {"before_the_first_decision": 1})
    verdict = evaluate(recorded(tmp_path / "never", none, none, none), expected)
    assert not verdict.held
    assert verdict.checked == 2
    assert "2 without capability, first of microgrid mg1, 2026-06-21 07:00" in verdict.sentence


def test_interchange_respected_by_a_share_and_a_tolerance(tmp_path: Path) -> None:
    run = recorded(tmp_path, INSIDE, INSIDE, INSIDE | {"p_mw": 0.25})
    for more, held in (({"share": 0.6}, True), ({"share": 0.7}, False), ({"tolerance_mw": 0.05}, True)):
        expected = InterchangeRespected(what="interchange_respected", **more)
        assert evaluate(run, expected).held == held


@pytest.mark.parametrize(
    ("rows", "below", "held", "words"),
    [
        ([INSIDE, INSIDE, INSIDE], 0.15, True, "0.15 MWh not served, limit 0.15 MWh; most: microgrid mg1"),
        ([INSIDE, INSIDE, INSIDE], 0.14, False, "0.15 MWh not served"),
        ([INSIDE, INSIDE, INSIDE | {"unserved_mw": None}], 1.0, False, "at least 0.1 MWh .*1 missing"),
        ([INSIDE, INSIDE, {}], 1.0, False, "1 missing"),
        ([{}, {}], 1.0, False, "there is no microgrid"),
        ([INSIDE], 1.0, False, "no known length of step"),
    ],
)
def test_unserved(tmp_path: Path, rows: list[dict[str, Any]], below: float, held: bool, words: str) -> None:
    verdict = evaluate(recorded(tmp_path, *rows), UnservedBelow(what="unserved_mwh", below=below))
    assert verdict.held == held
    assert re.search(words, verdict.sentence), verdict.sentence


def test_without_microgrids_nothing_is_respected(tmp_path: Path) -> None:
    verdict = evaluate(recorded(tmp_path, {}, {}), InterchangeRespected(what="interchange_respected"))
    assert not verdict.held
    assert "nothing to check" in verdict.sentence


def test_what_is_not_known_is_no_figure(tmp_path: Path) -> None:
    run = recorded(tmp_path, {"p_mw": 0.1, "cost": 2.0}, {"p_mw": -0.3})
    (figures,) = microgrids(run, HOUR)
    assert (figures.offered_mwh, figures.accepted_mwh, figures.outside_mwh, figures.cost) == (None,) * 4
    assert (figures.sold_mwh, figures.bought_mwh) == pytest.approx((0.1, 0.3))


def test_an_exchange_that_nobody_knows_is_not_zero(tmp_path: Path) -> None:
    known, none = {"p_mw": 0.1, "unserved_mw": 0.2}, {"p_mw": None, "aic_low_mw": 0.2, "aic_high_mw": 0.4}
    (figures,) = microgrids(recorded(tmp_path, known, none), HOUR)
    assert (figures.sold_mwh, figures.bought_mwh, figures.unserved_mwh) == pytest.approx((0.1, 0.0, 0.2))
    assert (figures.known_steps, figures.steps, figures.outside_mwh) == (1, 2, None)
    (tmp_path / "none").mkdir()
    (figures,) = microgrids(recorded(tmp_path / "none", none, none), HOUR)
    assert (figures.sold_mwh, figures.bought_mwh, figures.unserved_mwh) == (None,) * 3


def test_regions_of_the_reference_are_boxes_of_the_tie(folder: Path) -> None:
    """The packaged scenario's microgrids are those of the reference case that controllers are tested on."""
    from tests.interchange_cases import reference_site

    draft = load("ieee33-interchange", ["bus.kind=memory"])
    site, reference = build(draft, validate(draft)).site, reference_site()
    assert site.microgrids.keys() == reference.microgrids.keys()
    for name, grid in site.microgrids.items():
        other = reference.microgrids[name]
        assert (grid.bus, grid.devices, grid.tie_mw, grid.q_mvar) == (
            other.bus,
            other.devices,
            other.tie_mw,
            other.q_mvar,
        )
    for name, device in reference.devices.items():
        mine = site.devices[name]
        for parameter, value in vars(device).items():
            if parameter in ("weight", "default") or isinstance(value, Region):
                continue
            if name.endswith("_ul") and parameter == "p_mw":
                value *= 1.25  # rated with room for demand above the forecast
            assert getattr(mine, parameter) == pytest.approx(value), (name, parameter)
