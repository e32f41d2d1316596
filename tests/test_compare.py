"""`gridpace compare`: one day under each method; and the fixed limits that methods are compared with."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from controllers import Observation, Origin, Site
from controllers.devices import FlexibleLoad, still
from controllers.envelopes.static_limits import StaticLimits, Unlimited
from controllers.forecast import Forecast
from controllers.rating import apparent_mva
from scenarios.build import build
from scenarios.check import validate
from scenarios.cli import app
from scenarios.compare import METHODS, drafts, outcome, show
from scenarios.envelopes import NoSuchMethod, methods
from scenarios.figures import rows, step_times
from scenarios.load import load
from simulators.journal import Journal
from tests.running import do

QUICK = "ieee33-quick"


def site_of(name: str, *changes: str) -> Site:
    draft = load(name, changes)
    return build(draft, validate(draft)).site


def blind(site: Site) -> Observation:
    """Nothing is known."""
    scenario = validate(load(QUICK))
    return Observation(time=scenario.start, forecast=Forecast.empty(scenario.start, site.every))


class TestFixedLimits:
    def test_without_control_every_point_that_a_device_can_reach_is_allowed(self) -> None:
        site = site_of("village")
        regions = Unlimited(site).step(blind(site)).regions
        assert regions.keys() == site.devices.keys()
        for name, device in site.devices.items():
            able = device.limits(device.initial(), 1.0, 60.0)
            for corner in able.vertices():
                assert corner in regions[name]
            # ... and not much more: the polygon lies around a circle of 32 sides.
            assert regions[name].support([1.0, 0.0]) == pytest.approx(apparent_mva(device), rel=0.01)

    def test_static_limits_are_a_part_of_each_rating(self) -> None:
        site = site_of(QUICK)
        for part in (0.3, 1.0):
            decision = StaticLimits(site, part=part).step(blind(site))
            assert decision.origin is Origin.OPTIMAL
            for name, device in site.devices.items():
                reach = part * device.rating_mw
                assert decision.regions[name].limits("p_mw") == pytest.approx((-reach, reach))
                assert decision.regions[name].limits("q_mvar") == (0.0, 0.0)
            assert decision.fairness is not None
            total = sum(device.rating_mw for device in site.devices.values())
            assert decision.fairness.export_mw == pytest.approx(part * total)
            assert decision.fairness.jain_export == pytest.approx(1.0)
            assert decision.fairness.price is None

    def test_static_limits_let_a_load_have_the_reactive_power_that_it_brings_along(self) -> None:
        site = site_of(QUICK)
        load = FlexibleLoad(
            name="l", bus="3", p_mw=0.5, firm_mw=0.1, power_factor=0.9, weight=1.0, default=still()
        )
        site = replace(site, devices={**site.devices, "l": load})
        decision = StaticLimits(site).step(blind(site))
        region = decision.regions["l"]
        assert region.limits("p_mw") == pytest.approx((-0.15, 0.15))
        for p_mw in (-0.15, -0.1):  # what it can do within its share of active power, it may
            able = {"p_mw": p_mw, "q_mvar": p_mw * np.tan(np.arccos(0.9))}
            assert [able[axis] for axis in region.axes] in load.limits(load.initial(), 1.0, 60.0)
            assert [able[axis] for axis in region.axes] in region
        assert [-0.16, -0.16 * np.tan(np.arccos(0.9))] not in region
        for name in site.devices.keys() - {"l"}:  # all others keep Q = 0
            assert decision.regions[name].limits("q_mvar") == (0.0, 0.0)
        assert decision.fairness is not None
        assert decision.fairness.export_mw == pytest.approx(
            0.3 * sum(device.rating_mw for device in site.devices.values())
        )

    def test_they_answer_where_the_background_breaks_a_limit(self) -> None:
        site = site_of(QUICK, "grid.limits.v_pu=[1.029, 1.031]")
        for method in (Unlimited(site), StaticLimits(site)):
            assert method.step(blind(site)).regions.keys() == site.devices.keys()

    @pytest.mark.parametrize("part", [0.0, -0.1, 1.01])
    def test_a_part_outside_is_refused(self, part: float) -> None:
        with pytest.raises(ValueError, match=r"part .* \(0, 1\]"):
            StaticLimits(site_of(QUICK), part=part)


class TestDrafts:
    def test_only_the_controller_changes(self) -> None:
        draft = load(QUICK, ["controllers.dso.options={weights: equal, form: lp}"])
        found = list(drafts(draft, validate(draft), (), certified=True, steps=None))
        assert [method.acronym for method, _ in found] == list(METHODS)
        for method, one in found:
            scenario = validate(replace(one, raw={**one.raw, "controllers": []}))
            assert (scenario.steps, scenario.seed, scenario.bus.kind) == (12, 7, "memory")
            assert scenario.expect == []
            (part,) = one.raw["controllers"]
            assert part["uses"] == f"{method.__module__}:{method.__name__}"
            assert (part["name"], part["every"]) == ("dso", "5min")
            assert part["options"]["weights"] == "equal"
            assert ("form" in part["options"]) == (method.acronym == "P-E")
            assert ("certified" in part) == (method.acronym not in ("none", "static"))
        assert draft.raw["controllers"][0]["uses"].endswith(":EqualRanges")  # the original is as it was

    def test_controllers_of_another_kind_stay_and_several_methods_become_one(self) -> None:
        ours = "controllers.envelopes.equal_ranges:EqualRanges"
        mine = "../docs/examples/no_export.py:NoExport"
        both = f"[{{name: a, uses: '{ours}'}}, {{name: b, uses: '{mine}'}}, {{name: c, uses: '{ours}'}}]"
        draft = load(QUICK, [f"controllers={both}"])
        ((_, one),) = drafts(draft, validate(draft), ["EPQ"], certified=False, steps=3)
        assert [part["name"] for part in one.raw["controllers"]] == ["a", "b"]
        assert one.raw["controllers"][0]["uses"].endswith(":EqualPolygons")
        assert one.raw["controllers"][1]["uses"] == mine
        assert "certified" not in one.raw["controllers"][0]
        assert one.raw["steps"] == 3

    def test_a_scenario_without_controllers_gets_one(self) -> None:
        draft = load(QUICK, ["controllers=[]"])
        ((_, one),) = drafts(draft, validate(draft), ["static"], certified=True, steps=None)
        assert [part["name"] for part in one.raw["controllers"]] == ["dso"]

    def test_a_longer_scenario_is_cut_to_a_day(self) -> None:
        draft = load(QUICK, ["steps=1000"])
        ((_, one),) = drafts(draft, validate(draft), ["static"], certified=True, steps=None)
        assert one.raw["steps"] == 288

    def test_an_unknown_method_is_refused(self) -> None:
        draft = load(QUICK)
        with pytest.raises(NoSuchMethod, match="P-X"):
            list(drafts(draft, validate(draft), ["P-X"], certified=True, steps=None))


async def test_the_figures_are_those_of_the_tables(tmp_path: Path) -> None:
    """A brute-force count over the rows, on limits so narrow that there is something to count."""
    changes = ("grid.limits.v_pu=[0.97, 1.03]", "grid.limits.loading_percent=30", "steps=6")
    uses = "controllers.0.uses=controllers.envelopes.static_limits:StaticLimits"
    result = await do(QUICK, tmp_path, *changes, uses)
    scenario = validate(load(QUICK, changes))
    found = outcome(result.directory, scenario, "static", False, result.why, 1.5)

    volts = [row["v_pu"] for row in rows(result.directory, "buses", ["v_pu"])]
    beyond = [v for v in volts if v < 0.97 - 1e-4 or v > 1.03 + 1e-4]
    assert 0 < len(beyond) < len(volts)
    assert found.bus_minutes == 5 * len(beyond)
    loads = [row["loading_percent"] for row in rows(result.directory, "branches", ["loading_percent"])]
    over = [x for x in loads if x > 30.1]
    assert 0 < len(over) < len(loads)
    assert found.branch_minutes == 5 * len(over)
    assert found.worst_loading_percent == max(loads)
    assert found.worst_v_pu in (min(volts), max(volts))
    assert found.unsolved_minutes == 0

    devices = [
        row
        for row in rows(result.directory, "devices", ["device", "p_mw", "curtailed_mw", "state"])
        if row["state"] != "uncontrolled"
    ]
    assert found.injected_mwh == pytest.approx(sum(max(r["p_mw"], 0) for r in devices) / 12)
    assert found.drawn_mwh == pytest.approx(sum(max(-r["p_mw"], 0) for r in devices) / 12)
    assert found.curtailed_mwh == pytest.approx(sum(r["curtailed_mw"] or 0 for r in devices) / 12)
    assert found.decided == 1.0
    assert found.export_mw == pytest.approx(0.3 * 7.8)
    assert found.price is None
    assert (found.wall_s, found.certified) == (1.5, False)


def test_energy_that_nobody_knows_is_not_zero(tmp_path: Path) -> None:
    scenario = validate(load(QUICK))
    with Journal(tmp_path) as journal:
        for step, heard in enumerate((True, False)):
            time = scenario.start + step * scenario.every
            p_mw = [1.2 if heard else None, None]
            devices = {"time": time, "device": ["pv", "bat"], "p_mw": p_mw}
            journal.append(step, {"steps": {"step": step, "time": time}, "devices": devices})
    found = outcome(tmp_path, scenario, "static", False, "done", 1.0)
    assert (found.injected_mwh, found.drawn_mwh, found.missing) == (pytest.approx(0.1), 0.0, 3)
    out = StringIO()
    show(
        [found, replace(found, injected_mwh=None, drawn_mwh=None, missing=4)],
        "two",
        Console(file=out, width=100),
    )
    first, second = (line.split() for line in out.getvalue().splitlines() if line.startswith("static  "))
    assert (first[1:3], second[1:3]) == (["0.10", "0.00"], ["-", "-"])
    assert "static: 3 values of devices and microgrids are missing" in out.getvalue()


async def test_a_decision_records_its_fairness(tmp_path: Path) -> None:
    result = await do(QUICK, tmp_path, "steps=3")
    recorded = list(
        rows(result.directory, "fairness", ["issued_at", "controller", "export_mw", "jain_export"])
    )
    assert [row["controller"] for row in recorded] == ["dso"] * 3
    times, _ = step_times(result.directory)
    assert [row["issued_at"] for row in recorded] == times
    # The oracle: the published regions' own greatest exports.
    regions = list(rows(result.directory, "regions", ["issued_at", "axes", "A", "b"]))
    for row in recorded:
        export = 0.0
        for region in (r for r in regions if r["issued_at"] == row["issued_at"]):
            (limit,) = (b for a, b in zip(region["A"], region["b"], strict=True) if a == [1.0, 0.0])
            export += limit
        assert row["export_mw"] == pytest.approx(export, abs=1e-12)
        assert row["jain_export"] == pytest.approx(1.0)


def run_command(*words: str) -> Any:
    return CliRunner().invoke(app, ["compare", QUICK, *words])


def test_each_method_has_its_run_under_the_same_sky(tmp_path: Path) -> None:
    words = ["--method", "none", "--method", "static", "--method", "P-E", "--uncertified", "--json"]
    ended = run_command(*words, "--steps", "3", "--out", str(tmp_path))
    assert ended.exit_code == 0, ended.output
    found = {one["method"]: one for one in json.loads(ended.stdout)["methods"]}
    assert list(found) == ["none", "static", "P-E"]
    skies = []
    for name, one in found.items():
        folder = Path(one["directory"])
        assert folder.parent == tmp_path / name
        assert one["exit"] == "all 3 steps done"
        table = rows(folder, "devices", ["time", "device", "available_mw", "p_mw", "state"])
        seen = [
            (row["time"], row["device"], row["available_mw"])
            if row["state"] != "uncontrolled"
            else (row["time"], row["device"], row["p_mw"])
            for row in table
        ]
        skies.append(seen)
    assert skies[0] == skies[1] == skies[2]
    assert len(skies[0]) == 3 * 38
    # Nobody is limited without control; static limits take more than the network would have to.
    free = rows(Path(found["none"]["directory"]), "devices", ["state"])
    assert {row["state"] for row in free} == {"init", "controlled", "uncontrolled"}
    assert found["none"]["injected_mwh"] > found["P-E"]["injected_mwh"] > found["static"]["injected_mwh"] > 0
    assert found["P-E"]["price"] is not None
    assert np.isfinite(found["P-E"]["price"])


def test_a_method_that_refuses_the_scenario_does_not_stop_the_others(tmp_path: Path) -> None:
    load_with_vars = "{name: l, kind: flexible-load, bus: 3, p_mw: 0.1, power_factor: 0.9}"
    words = ["--set", f"devices=[{load_with_vars}]", "--method", "P-E", "--method", "none", "--uncertified"]
    ended = run_command(*words, "--method", "static", "--steps", "2", "--out", str(tmp_path))
    assert ended.exit_code == 0, ended.output
    assert "P-E: device" in ended.output
    assert "cannot hold Q = 0" in ended.output
    assert "static: all 2 steps done" in ended.output
    lines = {line.split()[0]: line.split()[1:] for line in ended.stdout.splitlines() if line.strip()}
    assert lines["none"][0] == lines["static"][0] == "0.00"
    # 30 % of 0.1 MW for ten minutes: the baseline is there for such a load too.
    assert float(lines["none"][1]) > float(lines["static"][1]) >= 0
    states = rows(next((tmp_path / "static").iterdir()), "devices", ["device", "p_mw", "q_mvar", "state"])
    held = [row for row in states if row["device"] == "l" and row["state"] == "limited"]
    assert [(r["p_mw"], r["q_mvar"]) for r in held] == [
        (pytest.approx(-0.03), pytest.approx(-0.03 * np.tan(np.arccos(0.9))))
    ]
    alone = run_command(*words[:4], "--uncertified", "--steps", "2", "--out", str(tmp_path))
    assert alone.exit_code == 2


def test_every_method_that_is_compared_exists() -> None:
    assert set(METHODS) <= methods().keys()
