"""Deadlines and the ladder: who is late is not waited for, and what is left is held, then the defaults."""

from __future__ import annotations

import json
import os
import re
import threading
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from bridges.asking import Asking
from controllers.contract import ControlError, Decision, Infeasible, Late, Observation, Origin
from controllers.fallback import Fallback
from controllers.forecast import Forecast
from scenarios import safe_default, supervisor
from scenarios.build import build
from scenarios.check import ScenarioInvalid, validate
from scenarios.load import load
from scenarios.run import Exit, Result
from scenarios.safe_default import check_defaults
from scenarios.supervisor import Supervisor
from simulators.deadline import Deadline
from simulators.journal import read
from tests.running import do
from tests.soak.rungs import troubled

START = datetime(2026, 6, 21, tzinfo=UTC)
PATIENT_S = 30.0


def seen(step: int = 0) -> Observation:
    at = START + step * timedelta(minutes=5)
    return Observation(time=at, forecast=Forecast.empty(at, timedelta(minutes=5)))


class Gated:
    """Decides when it is let; remembers how often it has."""

    def __init__(self) -> None:
        self.gate, self.over = threading.Event(), threading.Event()
        self.threads: set[str] = set()
        self.said = 0
        self.gate.set()

    def step(self, observation: Observation) -> Decision:
        self.threads.add(threading.current_thread().name)
        assert self.gate.wait(PATIENT_S)
        self.said += 1
        self.over.set()
        return Decision(time=observation.time, origin=Origin.OPTIMAL)

    def memory(self) -> int:
        return self.said

    def recall(self, memory: int) -> None:
        self.said = memory


def test_in_time_it_is_the_inner_controllers_decision() -> None:
    inner = Gated()
    timed = Deadline(inner, PATIENT_S)
    assert [timed.step(seen(k)).time for k in range(3)] == [seen(k).time for k in range(3)]
    assert (inner.said, timed.memory(), dict(timed.counts)) == (3, 3, {})
    assert threading.current_thread().name not in inner.threads


@pytest.mark.parametrize("error", [Infeasible("no point"), ZeroDivisionError("x"), SystemExit(3)])
def test_what_it_raises_is_raised(error: BaseException) -> None:
    class Raises:
        def step(self, observation: Observation) -> Decision:
            raise error

    with pytest.raises(type(error)):
        Deadline(Raises(), PATIENT_S).step(seen())


def test_who_is_late_is_left_alone_and_not_asked_twice() -> None:
    inner = Gated()
    timed = Deadline(inner, 0.05)
    timed.step(seen(0))
    inner.gate.clear()
    with pytest.raises(Late, match=r"no decision within 0\.05 s; the computation is abandoned"):
        timed.step(seen(1))
    assert timed.memory() == 1
    for k in (2, 3):
        with pytest.raises(Late, match="still computing what it was asked at 2026-06-21 00:05:00 UTC"):
            timed.step(seen(k))
    assert timed.counts == {"abandoned": 1, "late-at-once": 2}
    inner.over.clear()
    inner.gate.set()
    assert inner.over.wait(PATIENT_S)
    _until(lambda: timed._stuck is None or timed._stuck.over.is_set())
    assert inner.said == 2
    assert timed.step(seen(4)).time == seen(4).time
    assert inner.said == 2  # what it said too late was forgotten: one before, and this one
    assert timed.counts == {"abandoned": 1, "late-at-once": 2, "came-back": 1}


def _until(there: Callable[[], bool]) -> None:
    """Wait for another thread."""
    asked = threading.Event()
    for _ in range(3000):
        if there():
            return
        asked.wait(0.01)
    raise AssertionError("it did not happen")


def test_a_deadline_wraps_what_is_wrapped_and_stays_late_to_a_fallback() -> None:
    inner, second = Gated(), Gated()
    inner.gate.clear()
    both = Fallback(Deadline(inner, 0.02), second)
    assert both.step(seen()).origin is Origin.FALLBACK
    inner.gate.set()
    assert issubclass(Late, ControlError)
    assert Late.outcome == "late"
    with pytest.raises(ValueError, match="must be above 0"):
        Deadline(inner, 0.0)


def counts(result: Result) -> dict[str, int]:
    return json.loads((result.directory / "manifest.json").read_text())["counts"]  # type: ignore[no-any-return]


def origins(result: Result) -> list[str]:
    rows = read(result.directory, "steps", ["controller", "origin"]).to_pylist()
    return [row["origin"] for row in rows if row["controller"] == "dso"]


WAITS = """
import os
from controllers.envelopes.equal_ranges import EqualRanges

class Waits(EqualRanges):
    '''In its third step it waits for somebody to open a pipe.'''
    asked = 0
    def step(self, observation):
        self.asked += 1
        if self.asked == 3:
            open({pipe!r}).close()
        return super().step(observation)
"""


@pytest.mark.parametrize("fallback", [False, True])
async def test_a_run_goes_on_without_who_is_late_and_with_it_again(tmp_path: Path, fallback: bool) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "ours.py").write_text(WAITS.format(pipe=str(pipe)))
    second = ["controllers.dso.fallback=controllers.envelopes.static_limits:StaticLimits"] if fallback else []
    opened: list[int] = []

    def on_step(step: int) -> None:
        if step == 5:
            opened.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))  # an error, if nobody waits there

    result = await do(
        "ieee33-quick",
        tmp_path / "runs",
        f"controllers.dso.uses={tmp_path}/ours.py:Waits",
        "controllers.dso.deadline=400ms",
        "expect=[{what: origin_share, origins: [held, default, fallback], at_most: 0.5}]",
        *second,
        on_step=on_step,
    )
    assert result.exit is Exit.HELD, result.why
    assert len(opened) == 1
    os.close(opened[0])
    instead = ["fallback"] * 4 if fallback else ["held", "default", "default", "default"]
    found = origins(result)
    assert found[:6] == ["optimal"] * 2 + instead
    assert found[-3:] == ["optimal"] * 3  # its thread has come back
    late = len(found) - found.count("optimal")
    total = counts(result)
    assert total["abandoned"] == 1
    assert total["came-back"] == 1
    assert total["late-at-once"] == late - 1
    assert total.get("late", 0) == (0 if fallback else late)
    states = read(result.directory, "devices").to_pandas().query("device == 'pv6'").state.to_list()
    assert ("failsafe" in states) is not fallback


def test_the_scenario_says_the_deadline_of_controllers_in_its_process() -> None:
    draft = load("ieee33-rolling", ["controllers.0.deadline=400ms", "bus.kind=memory"])
    built = build(draft, validate(draft))
    (timed,) = built.deadlines
    assert timed.within_s == 0.4
    assert timed.sources == built.sources
    assert timed.intervals == 6
    plain = load("ieee33-quick", [])
    assert not build(plain, validate(plain)).deadlines


# A process that answers nothing any more


class Child:
    def __init__(self) -> None:
        self.killed = 0

    def kill(self) -> None:
        self.killed += 1


async def test_a_process_that_says_nothing_more_is_killed_and_a_slow_one_is_not() -> None:
    from bridges.memory import MemoryBus

    async with MemoryBus() as bus:
        asking = Asking(bus, run="r", token="t" * 32, processes=["p"])
        several, child = Supervisor([], asking, print), Child()
        several._children["p"] = child  # type: ignore[assignment]
        for _ in range(supervisor.STUCK_AFTER + 2):
            several._late("p")
        assert child.killed == 0  # it is only being started
        asking._online["p"].set()
        for _ in range(10):
            several._late("p")
            asking.heard["p"] += 1  # a late answer
        assert child.killed == 0
        for asked in range(1, supervisor.STUCK_AFTER + 1):
            several._late("p")
            assert child.killed == (asked >= supervisor.STUCK_AFTER)
        assert several.counts["process-killed"] == 1


async def test_a_process_that_cannot_be_reached_is_not_killed() -> None:
    from bridges.memory import MemoryBus

    async with MemoryBus() as bus:
        away: list[bool] = []
        asking = Asking(bus, run="r", token="t" * 32, processes=["p"])
        several, child = Supervisor([], asking, print, lambda: bool(away)), Child()
        several._children["p"] = child  # type: ignore[assignment]
        asking._online["p"].set()
        bus.hub.down()
        for _ in range(supervisor.STUCK_AFTER + 1):
            several._late("p")
        bus.hub.restore()
        away.append(True)
        for _ in range(supervisor.STUCK_AFTER + 1):
            several._late("p")
        assert child.killed == 0
        away.clear()
        for _ in range(supervisor.STUCK_AFTER):
            several._late("p")
        assert child.killed == 1


async def test_a_stuck_process_is_replaced(mqtt_url: str, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "ours.py").write_text(WAITS.format(pipe=str(pipe)))
    result = await do(
        "ieee33-quick",
        tmp_path / "runs",
        f"controllers.dso.uses={tmp_path}/ours.py:Waits",
        *("controllers.dso.process=own", "controllers.dso.deadline=1s", "steps=9", "expect=[]"),
        bus=("bus.kind=mqtt", f"bus.url={mqtt_url}"),
    )
    assert result.exit is Exit.HELD, result.why
    total = counts(result)
    assert total["process-killed"] >= 1
    assert total["process-restarted"] == total["process-killed"]
    assert origins(result)[:5] == ["optimal"] * 2 + ["held", "default", "default"]


# Solver trouble


@pytest.mark.parametrize("seed", range(2))
async def test_trouble_is_handled_rung_by_rung(tmp_path: Path, seed: int) -> None:
    found = await troubled(60, tmp_path, seed)
    assert found.exit is Exit.HELD
    assert (found.steps, found.unhandled, found.wrong_origins, found.wrong_states) == (60, 0, 0, 0)
    assert found.troubles >= 5


async def test_with_trouble_in_every_step_everybody_obeys_the_defaults(tmp_path: Path) -> None:
    found = await troubled(16, tmp_path, 0, share=1.0)
    assert (found.exit, found.unhandled, found.wrong_origins, found.wrong_states) == (Exit.HELD, 0, 0, 0)
    assert found.states == Counter(init=16 * 6)


# The last rung


def safe(*changes: str) -> Any:
    draft = load("ieee33-quick", list(changes))
    return check_defaults(build(draft, validate(draft)))


def test_defaults_are_certified_or_the_limit_is_named() -> None:
    asis = safe()
    assert asis.word == "expected"
    assert "default held at the mean of the forecast" in asis.why
    assert "two deviations off, bus 17 is at 0.94" in asis.why
    wide = safe("grid.limits.v_pu=[0.9, 1.1]")
    assert (wide.word, wide.power_flows) == ("certified", asis.power_flows)
    assert wide.why.startswith("default certified, voltage closest to its limit 0.9")
    tight = safe("grid.limits.v_pu=[0.98, 1.05]")
    assert tight.word == "unsafe"
    assert tight.why.startswith("while all devices obey their defaults, bus 17 is at 0.95")
    thin = safe("grid.limits.loading_percent=30")
    assert thin.word == "unsafe"
    assert "line:" in thin.why


PEAK = "profiles.household={kind: daily, values: {'00:00': 0.3, '12:10': 1.6, '12:15': 0.3}}"


def of_a_day(*changes: str) -> Any:
    """Five minutes in which the loads are high, in the 146th of 288 steps."""
    draft = load("ieee33-envelopes", ["bus.kind=memory", PEAK, *changes])
    return check_defaults(build(draft, validate(draft)))


def test_every_step_of_a_run_is_looked_at() -> None:
    found = of_a_day()
    assert found.word == "unsafe"
    assert re.search(r"bus 17 is at 0.8\d+ pu, 2026-06-21 12:10 UTC", found.why)
    assert "at all 288 steps" in found.why


def test_what_is_not_looked_at_in_every_step_is_not_certified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safe_default, "BUS_CASES", 20 * 3 * 33)
    assert of_a_day().word == "unsafe"  # the step with the greatest background is among those
    found = of_a_day("grid.limits.v_pu=[0.8, 1.1]")
    assert found.word == "sampled"
    assert "certified, " not in found.why.replace("not certified, ", "")
    assert re.match(r"default held at 2\d of 288 steps, ", found.why)
    monkeypatch.setattr(safe_default, "BUS_CASES", 500_000)
    assert of_a_day("grid.limits.v_pu=[0.8, 1.1]").word == "certified"


def test_a_default_that_leaves_room_is_checked_at_its_corners() -> None:
    """pv24 may inject twenty times what its line bears, and charge as much."""
    for low, high, where in ((0, 40, "1."), (-20, 0, "0.")):
        default = f"devices.pv24.default={{p_mw: [{low}, {high}]}}"
        found = safe("grid.limits.v_pu=[0.9, 1.1]", default)
        assert found.word == "unsafe", (low, found)
        assert f" is at {where}" in found.why or "no solution" in found.why


async def test_unsafe_defaults_are_an_event_and_all_are_in_the_report(tmp_path: Path) -> None:
    from scenarios.report import summary

    held = await do("ieee33-quick", tmp_path, "steps=2", "expect=[]")
    broken = await do("ieee33-quick", tmp_path, "steps=2", "expect=[]", "grid.limits.v_pu=[0.98, 1.05]")
    assert not (held.directory / "events.jsonl").read_text()
    event, *others = (
        json.loads(line) for line in (broken.directory / "events.jsonl").read_text().splitlines()
    )
    assert (event["what"], event["step"]) == ("default-unsafe", 0)
    assert "default-unsafe" not in {other["what"] for other in others}
    assert "bus 17" in event["why"]
    for result in (held, broken):
        said = json.loads((result.directory / "manifest.json").read_text())["default"]
        assert summary(result.directory).default == said["why"]


@pytest.mark.parametrize(
    ("limit", "held", "sentence"),
    [
        ("origins: [held, default], at_most: 0.25", True, "3 held, 0 default"),
        ("origins: [held], at_most: 0.2", False, "3 held of 12 due decisions (25 %); first: controller dso"),
        ("origins: [optimal, certified], at_least: 0.75", True, "9 optimal of 12 due decisions (75 %)"),
        ("origins: [optimal], at_least: 0.8", False, "9 optimal of 12"),
        ("origins: [fallback], at_most: 0", True, "none of 12 due decisions (0 %)"),
    ],
)
async def test_the_share_of_a_rung_can_be_demanded(
    tmp_path: Path, limit: str, held: bool, sentence: str
) -> None:
    (tmp_path / "ours.py").write_text(
        "from controllers.contract import Infeasible\n"
        "from controllers.envelopes.equal_ranges import EqualRanges\n"
        "class Ours(EqualRanges):\n"
        "    def step(self, observation):\n"
        "        if observation.time.minute in (10, 25, 45):\n"
        "            raise Infeasible('not now')\n"
        "        return super().step(observation)\n"
    )
    uses = f"controllers.dso.uses={tmp_path}/ours.py:Ours"
    engine = "grid.engine=power-grid-model"
    result = await do(
        *("ieee33-quick", tmp_path / "runs", uses, engine, f"expect=[{{what: origin_share, {limit}}}]")
    )
    (verdict,) = result.verdicts
    assert (verdict.held, result.exit) == (held, Exit.HELD if held else Exit.FAILED)
    assert sentence.replace(", 0 default", "") in verdict.sentence


@pytest.mark.parametrize("limit", ["origins: [held]", "origins: [held], at_most: 0.1, at_least: 0.1"])
def test_a_share_needs_one_limit(limit: str) -> None:
    with pytest.raises(ScenarioInvalid, match="needs exactly one of at_least and at_most"):
        validate(load("ieee33-quick", [f"expect=[{{what: origin_share, {limit}}}]"]))
