"""A run from its scenario to its folder: what it records is complete, true and repeatable."""

from __future__ import annotations

import asyncio
import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pandapower as pp
import pytest

from controllers.region import Region
from scenarios.grids import load_grid
from scenarios.run import Exit, Result
from simulators.clock import ClockAborted
from simulators.journal import read
from simulators.tables import MEASURED
from tests.running import FakeTime, do

COLUMNS = {  # the contract of the run directory, written out
    "steps": "step time planned_at started_at lateness_ms solve_ms power_flow_ms publish_ms "
    "controller origin",
    "buses": "time bus v_pu",
    "branches": "time branch p_mw q_mvar loading_percent",
    "devices": "time device p_mw q_mvar e_mwh available_mw curtailed_mw state",
    "regions": "issued_at valid_from valid_until controller target kind seq axes A b "
    "binding worst_v_pu worst_loading_percent power_flows",
    "setpoints": "seq epoch device issued_at valid_until p_mw q_mvar sent_at acked_at "
    "received_at applied_at refused_at superseded_at expired_at fallback_at reason outcome",
    "forecasts": "issued_at time name mean_mw std_mw",
}


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return asyncio.run(do("ieee33-quick", tmp_path_factory.mktemp("quick")))


def frame(run: Result | Path, table: str) -> Any:
    return read(run if isinstance(run, Path) else run.directory, table).to_pandas()


def test_an_hour_holds_and_leaves_every_table(quick: Result) -> None:
    assert quick.exit is Exit.HELD
    assert quick.steps == 12
    for table, columns in COLUMNS.items():
        rows = frame(quick, table)
        assert list(rows.columns) == columns.split(), table
        assert len(rows), table
    assert len(frame(quick, "buses")) == 12 * 33
    assert len(frame(quick, "regions")) == 12 * 6
    assert len(frame(quick, "forecasts")) == 12 * 6 * (32 + 6)
    manifest = json.loads((quick.directory / "manifest.json").read_text())
    assert manifest["exit"]["status"] == 0
    assert manifest["steps_done"] == 12
    assert manifest["counts"]["origin-optimal"] == 12
    assert manifest["counts"]["instructions-sent"] == 72
    assert manifest["scenario"]["every"] == "5min"
    assert not (quick.directory / "journal.arrows").exists()


def net_of_run(directory: Path) -> Any:
    """The net of a run with its devices as generators, from the run's folder alone."""
    scenario = json.loads((directory / "manifest.json").read_text())["scenario"]
    net = load_grid(scenario["grid"]["network"], directory)
    for edit in scenario["grid"]["edits"]:
        index = net[edit["table"]].index if edit["index"] == "all" else edit["index"]
        net[edit["table"]].loc[index, edit["column"]] = edit["value"]
    for device in scenario["devices"]:
        pp.create_sgen(net, device["bus"], p_mw=0.0, name=device["name"])
    return net


def test_voltages_and_loadings_equal_a_fresh_power_flow_of_the_recorded_injections(quick: Result) -> None:
    net = net_of_run(quick.directory)
    devices, buses, branches = (frame(quick, t) for t in ("devices", "buses", "branches"))
    assert set(devices.device) == {f"load:{i}" for i in net.load.index} | set(net.sgen.name)
    for time, rows in devices.groupby("time"):
        by_name = rows.set_index("device")
        for i in net.load.index:
            net.load.loc[i, ["p_mw", "q_mvar"]] = -by_name.loc[f"load:{i}", ["p_mw", "q_mvar"]].astype(float)
        for i, name in net.sgen.name.items():
            net.sgen.loc[i, ["p_mw", "q_mvar"]] = by_name.loc[name, ["p_mw", "q_mvar"]].astype(float)
        pp.runpp(net, numba=False, tolerance_mva=1e-10)
        v = buses[buses.time == time].set_index("bus").v_pu
        assert np.abs(v[[str(i) for i in net.bus.index]].to_numpy() - net.res_bus.vm_pu).max() < 1e-6
        loading = branches[branches.time == time].set_index("branch").loading_percent
        lines = net.line.index[net.line.in_service]
        ours = loading[[f"line:{i}" for i in lines]].to_numpy()
        assert np.abs(ours - net.res_line.loading_percent[lines]).max() < 1e-3


def test_devices_obey_every_valid_envelope_from_the_next_step_on(quick: Result) -> None:
    devices, regions = frame(quick, "devices"), frame(quick, "regions")
    checked = 0
    for row in regions.itertuples():
        region = Region(tuple(row.axes), np.vstack(row.A), row.b)
        superseded = regions[(regions.target == row.target) & (regions.seq == row.seq + 1)].valid_from
        until = min([row.valid_until, *superseded])
        there = devices[
            (devices.device == row.target) & (devices.time >= row.valid_from) & (devices.time < until)
        ]
        for point in there.itertuples():
            assert region.excess({"p_mw": point.p_mw, "q_mvar": point.q_mvar}) <= 1e-6
            checked += 1
    assert checked == 6 * 11
    assert (devices[devices.device.str.startswith("pv")].state == "limited").any()


def test_a_decision_acts_one_step_later_and_not_before(quick: Result) -> None:
    regions, setpoints = frame(quick, "regions"), frame(quick, "setpoints")
    step = regions.issued_at.drop_duplicates().diff().dropna().unique()
    assert len(step) == 1
    assert (regions.valid_from - regions.issued_at == step[0]).all()
    applied = setpoints[setpoints.outcome == "applied"]
    assert len(applied) == 6 * 11
    assert (applied.applied_at - applied.issued_at == step[0]).all()
    assert setpoints.sent_at.notna().all()
    assert setpoints.acked_at.isna().all()  # nobody answered over the bus
    assert (
        frame(quick, "devices").groupby("device").state.first().filter(regex="^(pv|bat|wind)") == "init"
    ).all()


def test_no_forecast_reaches_back_and_its_spread_grows(quick: Result) -> None:
    forecasts = frame(quick, "forecasts")
    assert (forecasts.time > forecasts.issued_at).all()
    lead = forecasts.time - forecasts.issued_at
    spread = forecasts[forecasts.name.str.startswith("load")].assign(lead=lead).groupby("lead").std_mw.mean()
    assert spread.is_monotonic_increasing


async def test_equal_scenarios_leave_equal_bytes_and_other_seeds_do_not(
    quick: Result, tmp_path: Path
) -> None:
    again, other = await do("ieee33-quick", tmp_path), await do("ieee33-quick", tmp_path, "seed=8")
    for table in COLUMNS:
        if table != "steps":
            first = (quick.directory / f"{table}.parquet").read_bytes()
            assert first == (again.directory / f"{table}.parquet").read_bytes(), table
    unmeasured = [c for c in COLUMNS["steps"].split() if c not in MEASURED]
    assert frame(quick, "steps")[unmeasured].equals(frame(again, "steps")[unmeasured])
    assert not frame(quick, "devices").equals(frame(other, "devices"))


@pytest.mark.parametrize("mode", [("scaled", "clock.factor=600"), ("live", "clock.factor=1")])
async def test_every_clock_decides_the_same(quick: Result, tmp_path: Path, mode: tuple[str, str]) -> None:
    time = FakeTime()
    paced = await do("ieee33-quick", tmp_path, f"clock.mode={mode[0]}", mode[1], time=time)
    for table in ("regions", "devices", "buses", "branches", "forecasts"):
        assert frame(quick, table).equals(frame(paced, table)), table
    steps = frame(paced, "steps")
    assert time.seconds == pytest.approx(11 * (300 if mode[0] == "live" else 0.5))
    assert (steps.lateness_ms == 0).all()
    assert steps.planned_at.notna().all()
    assert frame(quick, "steps").planned_at.isna().all()


async def test_the_engines_agree_over_a_run(quick: Result, tmp_path: Path) -> None:
    other = await do("ieee33-quick", tmp_path, "grid.engine=power-grid-model")
    merged = frame(quick, "buses").merge(frame(other, "buses"), on=["time", "bus"])
    assert len(merged) == 12 * 33
    assert (merged.v_pu_x - merged.v_pu_y).abs().max() < 1e-8


async def test_an_expectation_that_cannot_hold_says_which_bus_when_and_by_how_much(tmp_path: Path) -> None:
    result = await do("ieee33-quick", tmp_path, "expect=[{what: v_pu, between: [0.99, 1.01]}]")
    assert result.exit is Exit.FAILED
    buses = frame(result, "buses")
    low, high = 0.99 - buses.v_pu, buses.v_pu - 1.01
    worst = buses.loc[np.maximum(low, high).idxmax()]
    (verdict,) = json.loads((result.directory / "verdicts.json").read_text())["verdicts"]
    assert verdict["held"] is False
    assert verdict["worst"]["name"] == worst.bus
    assert verdict["worst"]["value"] == worst.v_pu
    assert verdict["worst"]["by"] == pytest.approx(max(0.99 - worst.v_pu, worst.v_pu - 1.01))
    failure = ET.parse(result.directory / "junit.xml").getroot().find(".//failure")
    assert failure is not None
    words = f"{failure.get('message')} {failure.text}"
    assert f"bus {worst.bus}" in words
    assert f"{worst.time:%Y-%m-%d %H:%M:%S}" in words


async def test_a_request_to_stop_ends_after_the_step_in_progress(tmp_path: Path) -> None:
    stop = asyncio.Event()
    result = await do(
        "ieee33-quick", tmp_path, stop=stop, on_step=lambda step: stop.set() if step == 4 else None
    )
    assert (result.steps, result.exit) == (5, Exit.STOPPED)
    assert "stopped on request after 5 of 12 steps" in result.why
    assert sorted(frame(result, "steps").step) == [0, 1, 2, 3, 4]
    assert len(frame(result, "buses")) == 5 * 33


@pytest.mark.parametrize(
    ("policy", "origins", "late_steps"),
    # A decision is valid for two steps, so the second one without a new decision is the default's.
    [("hold", ["held", "default"], 2), ("skip", ["skipped"] * 2, 2), ("stretch", ["optimal"] * 2, 1)],
)
async def test_late_steps_follow_the_overrun_policy(
    tmp_path: Path, policy: str, origins: list[str], late_steps: int
) -> None:
    time = FakeTime()
    # Step 3 takes two and a half periods of 300 s, so steps 4 and 5 are late.
    result = await do(
        "ieee33-quick",
        tmp_path,
        "clock.mode=live",
        f"clock.overrun={policy}",
        "expect=[]",
        time=time,
        on_step=lambda step: time.pass_by(750) if step == 3 else None,
    )
    steps = frame(result, "steps").set_index("step")
    assert list(steps.origin[[4, 5]]) == origins
    assert (steps.origin.drop([4, 5]) == "optimal").all()
    counts = json.loads((result.directory / "manifest.json").read_text())["counts"]
    assert counts[f"overrun-{policy}"] == late_steps
    events = [json.loads(line) for line in (result.directory / "events.jsonl").read_text().splitlines()]
    assert [e["what"] for e in events] == ["overrun"] * late_steps
    assert events[0]["lateness_ms"] == pytest.approx(450_000)
    on_grid = frame(result, "buses").time.nunique()
    assert on_grid == (10 if policy == "skip" else 12)
    if policy == "skip":
        assert steps.power_flow_ms[[4, 5]].isna().all()


async def test_the_abort_policy_ends_the_run_and_keeps_its_steps(tmp_path: Path) -> None:
    time = FakeTime()
    result = await do(
        "ieee33-quick",
        tmp_path,
        "clock.mode=live",
        "clock.overrun=abort",
        time=time,
        on_step=lambda step: time.pass_by(301) if step == 3 else None,
    )
    assert result.exit is Exit.BROKE
    assert result.steps == 4
    assert "step 4" in result.why
    assert "overrun policy is 'abort'" in result.why
    (event,) = [json.loads(line) for line in (result.directory / "events.jsonl").read_text().splitlines()]
    assert event["what"] == "broke"
    assert ClockAborted.__name__ in event["why"]


@pytest.mark.parametrize(("policy", "exit_"), [("record", Exit.FAILED), ("abort", Exit.BROKE)])
async def test_a_power_flow_without_solution_is_an_event(tmp_path: Path, policy: str, exit_: Exit) -> None:
    # A tenth of the nominal voltage: no solution for these loads.
    result = await do(
        "ieee33-quick",
        tmp_path,
        "steps=3",
        "grid.edits=[{table: ext_grid, column: vm_pu, value: 0.1}]",
        f"grid.on_divergence={policy}",
    )
    assert result.exit is exit_
    events = [json.loads(line) for line in (result.directory / "events.jsonl").read_text().splitlines()]
    diverged = [e for e in events if e["what"] == "power-flow-diverged"]
    assert len(diverged) == (3 if policy == "record" else 1)
    assert not len(frame(result, "buses"))  # missing is missing: no row, no zero
    if policy == "record":
        assert len(frame(result, "steps")) == 3
        assert {v.what for v in result.verdicts if not v.held} >= {"v_pu", "decided"}


async def test_infeasible_controllers_leave_devices_to_their_last_envelope_then_to_their_default(
    tmp_path: Path,
) -> None:
    plugin = tmp_path / "moody.py"
    plugin.write_text(
        "from controllers import Infeasible\n"
        "from controllers.envelopes import EqualRanges\n"
        "class Moody(EqualRanges):\n"
        "    def step(self, observation):\n"
        "        if observation.time.minute >= 20:\n"
        "            raise Infeasible('not in the mood')\n"
        "        return super().step(observation)\n"
    )
    scenario = tmp_path / "moody.yaml"
    scenario.write_text(
        "extends: ieee33-quick\nname: moody\ncontrollers: [{name: dso, uses: 'moody.py:Moody'}]\n"
    )
    result = await do(scenario, tmp_path / "out", "expect=[]")
    steps = frame(result, "steps")
    # Said until 11:15, acting from 11:20, valid for ten minutes: held at 11:20, default from 11:25 on.
    assert list(steps.origin) == ["optimal"] * 4 + ["held"] + ["default"] * 7
    devices = frame(result, "devices")
    pv = devices[devices.device == "pv6"]
    assert list(pv.state)[5:] == ["limited"] + ["failsafe"] * 6 or list(pv.state)[6:] == ["failsafe"] * 6
    assert (pv.p_mw.to_numpy()[6:] == 0).all()
    events = [json.loads(line) for line in (result.directory / "events.jsonl").read_text().splitlines()]
    assert [e["what"] for e in events] == ["infeasible"] * 8
    assert events[0]["why"] == "not in the mood"


async def test_a_fallback_named_in_the_scenario_speaks_when_the_first_has_no_decision(tmp_path: Path) -> None:
    (tmp_path / "never.py").write_text(
        "from dataclasses import dataclass\n"
        "from controllers import Infeasible, Site\n"
        "@dataclass\n"
        "class Never:\n"
        "    site: Site\n"
        "    def step(self, observation):\n"
        "        raise Infeasible('never')\n"
    )
    (tmp_path / "never.yaml").write_text(
        "extends: ieee33-quick\nname: never\nsteps: 3\n"
        "controllers:\n  - {name: dso, uses: 'never.py:Never',\n"
        "     fallback: 'controllers.envelopes.equal_ranges:EqualRanges'}\n"
    )
    result = await do(tmp_path / "never.yaml", tmp_path / "out")
    assert result.exit is Exit.HELD
    assert list(frame(result, "steps").origin) == ["fallback"] * 3
    sources = json.loads((result.directory / "manifest.json").read_text())["sources"]
    assert any("P-E" in source for source in sources)


async def test_a_run_stopped_before_its_first_step_holds_nothing(tmp_path: Path) -> None:
    stop = asyncio.Event()
    stop.set()
    result = await do("ieee33-quick", tmp_path, stop=stop)
    assert (result.steps, result.exit) == (0, Exit.STOPPED)
    assert not any(v.held for v in result.verdicts)
