"""Each benchmark, small: what it counts, that its parts add up, that what it compares is the same."""

from __future__ import annotations

import asyncio
import io

import numpy as np
import pytest
from rich.console import Console

from benchmarks import controllers, envelopes, memory, step, stopwatch
from benchmarks.bare import idle_stages
from benchmarks.feeder import LOWEST_V_PU, radial_site
from benchmarks.plain import run_plain
from benchmarks.stopwatch import Stopwatch
from controllers.envelopes.allowable import AllowableRegion
from scenarios.build import build
from scenarios.run import run_blocking
from scenarios.world import World
from simulators.journal import read

STEPS = 6


@pytest.fixture
def seconds(monkeypatch):
    """A clock that only moves when a test says so."""
    now = [0.0]
    monkeypatch.setattr(stopwatch, "perf_counter", lambda: now[0])

    def pass_by(more: float) -> None:
        now[0] += more

    return pass_by


def test_a_part_counts_its_own_time_only(seconds):
    class Work:
        def outer(self):
            seconds(1)
            self.inner()
            seconds(2)

        def inner(self):
            seconds(10)

    watch = Stopwatch()
    with watch.part(Work, "outer", "out"), watch.part(Work, "inner", "in"), watch.phase(Work, "outer", "all"):
        Work().outer()
    Work().outer()
    assert dict(watch.seconds) == {"in": 10, "out": 3, "all": 13}
    assert dict(watch.calls) == {"out": 1, "in": 1, "all": 1}


async def test_a_part_that_waits_counts_its_running_time(seconds):
    arrived = asyncio.Event()

    class Work:
        async def outer(self):
            seconds(1)
            await arrived.wait()
            seconds(2)
            return "done"

    async def elsewhere():
        seconds(100)
        arrived.set()

    watch = Stopwatch()
    with watch.part(Work, "outer", "out"), watch.phase(Work, "outer", "all"):
        result, _ = await asyncio.gather(Work().outer(), elsewhere())
    assert result == "done"
    assert dict(watch.seconds) == {"out": 3, "all": 103}


async def test_what_is_raised_into_a_part_arrives_in_it():
    class Work:
        async def outer(self):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return "cancelled"

    watch = Stopwatch()
    with watch.part(Work, "outer", "out"):
        task = asyncio.ensure_future(Work().outer())
        await asyncio.sleep(0)
        task.cancel()
        assert await task == "cancelled"


def test_the_bare_loop_is_the_world_of_a_run(monkeypatch, tmp_path):
    worlds = []
    original = World.run
    monkeypatch.setattr(World, "run", lambda self, steps: worlds.append(self) or original(self, steps))
    draft, scenario = step.scenario_of("power-grid-model", STEPS, "bus.kind=memory")
    run_blocking(draft, scenario, root=tmp_path, observer=step.Observer())
    (world,) = worlds
    monkeypatch.undo()

    idle = idle_stages([part.name for part in scenario.devices])
    asyncio.run(World(idle).run(STEPS))
    assert {name: stage.steps for name, stage in idle.items()} == dict.fromkeys(idle, STEPS)
    assert list(idle) == list(world.stages)
    for name, stage in world.stages.items():
        assert (idle[name].entity, idle[name].children) == (stage.entity, stage.children)
        for kind, model in stage.meta["models"].items():
            assert set(idle[name].meta["models"][kind]["attrs"]) == set(model["attrs"])


@pytest.mark.parametrize("engine", step.ENGINES)
def test_the_parts_of_a_step_add_up(engine):
    timing = step.time_run(*step.scenario_of(engine, STEPS, "bus.kind=memory"))
    assert timing.steps == STEPS
    assert set(timing.parts) == set(step.PARTS)
    assert set(timing.once) == set(step.ONCE)
    assert all(ms > 0 for name, ms in timing.parts.items() if name != "rest")
    assert sum(timing.parts.values()) == pytest.approx(timing.whole)
    spared = timing.parts["mosaik"] + timing.parts["power flow"] + timing.parts["decision"]
    assert timing.ratio * spared == pytest.approx(timing.whole)
    assert timing.ratio_all * spared == pytest.approx(timing.whole + sum(timing.once.values()))


def test_the_table_shows_medians_that_add_up():
    def timing(ms: float) -> step.Timing:
        parts = dict.fromkeys(step.PARTS, ms)
        return step.Timing(4, ms * len(parts), parts, dict.fromkeys(step.ONCE, 1.0))

    runs = [timing(1.0), timing(2.0), timing(30.0)]
    shown = step.middle(runs)
    assert shown.whole == 16.0
    assert sum(shown.parts.values()) == shown.whole
    text = io.StringIO()
    Console(file=text, width=120).print(step.table({"engine": runs}, {"engine": [64.0, 80.0, 96.0]}))
    lines = {
        cells[1].strip(): cells[2].strip() for cells in map(_cells, text.getvalue().splitlines()) if cells
    }
    assert {lines[part] for part in step.PARTS} == {"2.00"}
    assert lines["whole"] == "16.00"
    assert lines["whole : mosaik + power flow + decision"] == "2.67 (2.67-2.67)"
    assert lines["the obvious way : whole"] == "5.0"


def _cells(line: str) -> list[str] | None:
    return line.split("│") if line.startswith("│") else None


def test_the_obvious_way_does_the_same_work(tmp_path):
    draft, scenario = step.scenario_of("pandapower", STEPS, "bus.kind=memory", "start=2026-06-21T10:00:00Z")
    result = run_blocking(draft, scenario, root=tmp_path, observer=step.Observer())
    trace = run_plain(draft, build(draft, scenario), STEPS)

    buses = read(result.directory, "buses")
    recorded = np.asarray(buses["v_pu"]).reshape(STEPS, -1)
    assert np.abs(recorded - np.array(trace.v_pu)).max() < 1e-6
    rows = read(result.directory, "devices").select(["device", "p_mw"]).to_pylist()
    names = [part.name for part in scenario.devices]
    done = {name: [row["p_mw"] for row in rows if row["device"] == name] for name in names}
    for name in names:
        assert done[name] == pytest.approx([p_mw[name] for p_mw in trace.p_mw], abs=1e-6)
    assert any(p_mw != 0 for p_mw in done["pv6"])


def test_the_feeder_keeps_its_limits_with_all_loads():
    site = radial_site(60, 5)
    network = site.network
    rows = AllowableRegion(site)
    p_mw, q_mvar = rows.background({})
    assert np.sqrt(network.v2(p_mw, q_mvar).min()) == pytest.approx(LOWEST_V_PU)
    assert np.isfinite(network.rating_mva).all()
    assert (rows.W(p_mw, q_mvar) > 0).all()
    again = radial_site(60, 5)
    assert list(again.devices) == list(site.devices)
    assert (again.network.v2_per_mw == network.v2_per_mw).all()


def test_every_way_to_decide_gives_the_same_ranges():
    site = radial_site(20, 3)
    results = controllers.costs(site, repeat=2)
    assert len(results) == 6
    assert {len(cost.step_ms) for cost in results.values()} == {2}
    assert {len(cost.answers) for cost in results.values()} == {2}
    assert controllers.apart(results) < 1e-6
    assert len(set(results["closed form"].answers)) == 2
    text = io.StringIO()
    Console(file=text, width=130).print(controllers.table({"20 buses": results}))
    assert all(name in text.getvalue() for name in results)


def test_every_method_is_timed_and_agrees_with_its_program():
    site = envelopes.site_of(40, 3)
    found = envelopes.costs(site, repeat=2, seconds=60.0)
    assert all(len(cost.ms) == 2 for name, cost in found.items() if name != envelopes.ROWS)
    assert all(ms >= 0 for cost in found.values() for ms in cost.ms)
    assert envelopes.apart(found) < 1e-5
    assert found[envelopes.PE].answers == pytest.approx(found[envelopes.PE_STEP].answers)
    assert found[envelopes.EPQ].answers > found[envelopes.BOX].answers
    assert len(set(found[envelopes.PQE].answers)) == 2
    text = io.StringIO()
    for table in envelopes.tables({(40, 3): found}):
        Console(file=text, width=200).print(table)
    assert all(name in text.getvalue() for name in found)


def test_what_a_site_is_too_large_for_is_left_out(monkeypatch):
    monkeypatch.setattr(envelopes, "MATRICES", 100)
    found = envelopes.costs(envelopes.site_of(20, 2), repeat=1, seconds=60.0)
    always = {envelopes.ROWS, envelopes.W, envelopes.PE_STEP, envelopes.PE, envelopes.PQE, envelopes.BOX}
    assert set(found) == always


def test_growth_is_a_power_of_buses_and_devices():
    def took(ms):
        return {envelopes.PE: envelopes.Cost(0.0, (ms,), (1.0,))}

    results = {(10, 1): took(5.0), (20, 5): took(1.0), (200, 50): took(10.0)}
    assert envelopes.growth(results, envelopes.PE) == pytest.approx(0.5)  # 100 times the product
    assert envelopes.growth(results, envelopes.BOX) is None
    del results[10, 1]
    assert envelopes.growth(results, envelopes.PE) == pytest.approx(0.5)
    del results[20, 5]
    assert envelopes.growth(results, envelopes.PE) is None


def test_memory_is_watched_after_the_warm_up(monkeypatch):
    sizes = iter([10.0, 11.0, 15.0, 12.0])

    class Process:
        def memory_info(self):
            return type("Info", (), {"rss": next(sizes) * memory.MIB})

    monkeypatch.setattr(memory.psutil, "Process", Process)
    seen = memory.measure(8, warm_up=4, seal_every=2, changes=["bus.kind=memory"])
    assert seen == memory.Memory(steps=8, warm=10.0, growth=5.0, last=2.0)
    assert next(sizes, None) is None
