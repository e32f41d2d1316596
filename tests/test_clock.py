"""The clock, with a time that only moves when somebody sleeps or works."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from simulators.clock import (
    EARLIEST,
    LATEST,
    Clock,
    ClockAborted,
    ClockSimulator,
    Duty,
    Mode,
    Overrun,
    StopRequested,
    Tick,
)
from tests.running import FakeTime

START = datetime(2026, 6, 21, tzinfo=UTC)
EVERY = timedelta(seconds=60)


def clock(
    time: FakeTime, mode: Mode = Mode.SCALED, overrun: Overrun = Overrun.STRETCH, factor: float = 6
) -> Clock:
    """A step of a minute; ten seconds of the wall clock at the usual factor."""
    return Clock(
        START, EVERY, mode, factor, overrun, monotonic=time.monotonic, wall=time.wall, sleep=time.sleep
    )


async def run(clock: Clock, time: FakeTime, work: Sequence[float]) -> list[tuple[float, Tick]]:
    """Steps that take as long as `work` says, and when each began."""
    begun = []
    for step, seconds in enumerate(work):
        tick = await clock.tick(step)
        begun.append((time.seconds, tick))
        time.pass_by(seconds)
    return begun


async def test_fast_waits_for_nothing_and_is_never_late() -> None:
    time = FakeTime()
    ticks = [tick for _, tick in await run(clock(time, Mode.FAST, Overrun.ABORT), time, [100, 0, 500])]
    assert [tick.time for tick in ticks] == [START, START + EVERY, START + 2 * EVERY]
    assert [(t.lateness_ms, t.planned_at, t.duty) for t in ticks] == [(None, None, Duty.FULL)] * 3
    assert time.seconds == 600  # nothing but the work


@pytest.mark.parametrize(("mode", "period"), [(Mode.SCALED, 10.0), (Mode.LIVE, 60.0)])
async def test_a_paced_step_begins_at_its_deadline(mode: Mode, period: float) -> None:
    time = FakeTime()
    paced = clock(time, mode)
    begun = await run(paced, time, [1.0, 9.5, 0.0, 3.0])
    assert paced.period_s == period
    assert [at for at, _ in begun] == pytest.approx([0, period, 2 * period, 3 * period])
    assert [tick.step for _, tick in begun] == [0, 1, 2, 3]
    assert all(tick.lateness_ms == pytest.approx(0) and tick.duty is Duty.FULL for _, tick in begun)
    assert [tick.planned_at for _, tick in begun] == [
        time.wall() + timedelta(seconds=k * period - time.seconds) for k in range(4)
    ]
    assert not paced.counts


async def test_a_sleep_that_is_long_shifts_no_later_deadline() -> None:
    """The deadlines are absolute: what each sleep oversleeps does not add up."""

    class Sleepy(FakeTime):
        async def sleep(self, seconds: float) -> None:
            await super().sleep(seconds + 0.004)

    time = Sleepy()
    paced = clock(time)
    begun = await run(paced, time, [1.0] * 50)
    assert [at for at, _ in begun] == pytest.approx([10 * k + 0.004 for k in range(50)])
    assert all(tick.lateness_ms == pytest.approx(4.0) for _, tick in begun)
    assert not paced.counts  # a sleep that is long is no overrun of the step before


# One step takes 27 s of a period of 10 s: the two that follow begin at 27 s, 7 s late, and after that.


@pytest.mark.parametrize(
    ("overrun", "duty", "begins", "late_ms", "count"),
    [
        # held and skipped steps take no time here, so the loop has caught up at step 3
        (Overrun.HOLD, Duty.HOLD, [0, 27, 27, 30, 40], [0, 17e3, 7e3, 0, 0], 2),
        (Overrun.SKIP, Duty.SKIP, [0, 27, 27, 30, 40], [0, 17e3, 7e3, 0, 0], 2),
        # every later deadline moves by the 17 s
        (Overrun.STRETCH, Duty.FULL, [0, 27, 37, 47, 57], [0, 17e3, 0, 0, 0], 1),
    ],
)
async def test_what_a_late_step_does_to_those_after_it(
    overrun: Overrun, duty: Duty, begins: list[float], late_ms: list[float], count: int
) -> None:
    time = FakeTime()
    paced = clock(time, overrun=overrun)
    begun = await run(paced, time, [27, 0, 0, 0, 0])
    assert [at for at, _ in begun] == pytest.approx(begins)
    assert [tick.lateness_ms for _, tick in begun] == pytest.approx(late_ms)
    assert [tick.duty for _, tick in begun] == [duty if late else Duty.FULL for late in late_ms]
    assert paced.counts == {f"overrun-{overrun}": count}
    assert [tick.time for _, tick in begun] == [
        START + k * EVERY for k in range(5)
    ]  # no simulated time is lost
    for (at, tick), late in zip(begun, late_ms, strict=True):
        assert tick.planned_at is not None
        planned = (tick.planned_at - FakeTime().wall()).total_seconds()
        assert at - planned == pytest.approx(late / 1e3)


async def test_abort_ends_at_the_first_late_step() -> None:
    time = FakeTime()
    paced = clock(time, overrun=Overrun.ABORT)
    with pytest.raises(ClockAborted, match=r"step 1 \(2026-06-21 00:01:00\) started 17000 ms late.*policy"):
        await run(paced, time, [27, 0, 0])
    assert paced.counts == {"overrun-abort": 1}


async def test_the_loop_stays_behind_while_its_steps_are_too_long() -> None:
    """Steps of 12 s in a period of 10 s fall behind by 2 s each; stretching gives each its time."""
    time = FakeTime()
    held = clock(time, overrun=Overrun.HOLD)
    late = [tick.lateness_ms for _, tick in await run(held, time, [12] * 4)]
    assert late == pytest.approx([0, 2e3, 4e3, 6e3])
    time = FakeTime()
    stretched = clock(time, overrun=Overrun.STRETCH)
    late = [tick.lateness_ms for _, tick in await run(stretched, time, [12] * 4)]
    assert late == pytest.approx([0, 2e3, 2e3, 2e3])
    assert stretched.counts == {"overrun-stretch": 3}


async def test_where_a_simulated_moment_lies_on_the_wall() -> None:
    time = FakeTime()
    paced, wall0 = clock(time), time.wall()
    noon = START + timedelta(minutes=6)
    await run(paced, time, [27])
    assert paced.on_wall(noon) == wall0 + timedelta(seconds=60)
    await paced.tick(1)  # 17 s late: everything after it shifts
    assert paced.on_wall(noon) == wall0 + timedelta(seconds=77)
    assert clock(time, Mode.FAST).on_wall(noon) == noon


@pytest.mark.parametrize("by_s", [60.0, -60.0])
async def test_it_follows_a_wall_clock_that_is_set(by_s: float) -> None:
    time, set_by = FakeTime(), [0.0]
    paced = clock(time, overrun=Overrun.HOLD)
    paced.wall = lambda: time.wall() + timedelta(seconds=set_by[0])
    await run(paced, time, [1.0, 1.0])
    set_by[0] = by_s
    tick = await paced.tick(2)
    assert tick.wall_set_s == pytest.approx(by_s)
    assert paced.on_wall(tick.time) == paced.wall() == tick.planned_at
    assert paced.simulated(paced.wall()) == tick.time
    assert time.seconds == pytest.approx(20)  # the pace is the monotonic clock's
    set_by[0] += 0.4  # NTP corrects a little
    assert (await paced.tick(3)).wall_set_s is None
    time.pass_by(15)
    set_by[0] -= by_s
    late = await paced.tick(4)
    assert late.missed
    assert late.wall_set_s == pytest.approx(0.4 - by_s)
    assert late.lateness_ms == pytest.approx(5e3)
    assert paced.counts == {"clock-stepped": 2, "overrun-hold": 1}


async def test_a_late_step_is_no_clock_that_is_set() -> None:
    for overrun in (Overrun.STRETCH, Overrun.HOLD, Overrun.SKIP):
        time = FakeTime()
        paced = clock(time, overrun=overrun)
        ticks = [tick for _, tick in await run(paced, time, [25.0, 0.0, 31.0, 0.0])]
        assert {tick.wall_set_s for tick in ticks} == {None}
        assert paced.counts["clock-stepped"] == 0


async def test_moments_that_no_calendar_holds_are_its_ends() -> None:
    time = FakeTime()
    paced = clock(time, factor=3600)
    await paced.tick(0)
    assert paced.simulated(datetime(2199, 1, 1, tzinfo=UTC)) == LATEST
    assert paced.simulated(datetime(1971, 1, 1, tzinfo=UTC)) == EARLIEST


async def test_it_may_begin_at_any_step() -> None:
    time = FakeTime()
    time.pass_by(3.0)
    paced = clock(time)
    first, second = await paced.tick(7), await paced.tick(8)
    assert (first.time, first.lateness_ms) == (START + 7 * EVERY, 0)
    assert second.lateness_ms == pytest.approx(0)
    assert time.seconds == pytest.approx(13)


def test_the_pace_must_be_one() -> None:
    assert clock(FakeTime(), Mode.LIVE, factor=6).factor == 1.0
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="factor"):
            clock(FakeTime(), factor=wrong)


# In the co-simulation


def simulator(
    clock: Clock, stop: asyncio.Event, first: int = 0
) -> tuple[ClockSimulator, list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []
    return ClockSimulator(
        clock, stop, first, lambda at, what, **more: events.append({"what": what, **more})
    ), events


async def test_an_overrun_is_an_event() -> None:
    time = FakeTime()
    paced, events = simulator(clock(time, overrun=Overrun.SKIP), asyncio.Event(), first=3)
    await paced.work(0, {})
    time.pass_by(12.0)
    await paced.work(1, {})
    await paced.work(2, {})
    assert events == [
        {"what": "overrun", "step": 4, "lateness_ms": pytest.approx(2e3), "policy": Overrun.SKIP}
    ]
    assert paced.out["clock"]["tick"].step == 5


async def test_a_clock_that_is_set_is_an_event() -> None:
    time = FakeTime()
    driven = clock(time)
    paced, events = simulator(driven, asyncio.Event())
    await paced.next(0)
    driven.wall = lambda: time.wall() + timedelta(hours=1)
    await paced.next(1)
    await paced.next(2)
    assert events == [{"what": "clock-stepped", "step": 1, "by_s": pytest.approx(3600)}]


async def test_a_request_to_stop_ends_a_wait_at_once() -> None:
    asleep, stop = asyncio.Event(), asyncio.Event()

    async def for_ever(seconds: float) -> None:
        asleep.set()
        await asyncio.Event().wait()

    time = FakeTime()
    paced = clock(time)
    paced.sleep = for_ever
    waiting = asyncio.create_task(simulator(paced, stop)[0].next(0))
    await asyncio.wait_for(asleep.wait(), 5)
    stop.set()
    with pytest.raises(StopRequested):
        await asyncio.wait_for(waiting, 5)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}  # the wait is gone, too


@pytest.mark.parametrize("mode", [Mode.FAST, Mode.SCALED])
async def test_no_step_begins_after_a_request_to_stop(mode: Mode) -> None:
    time, stop = FakeTime(), asyncio.Event()
    paced, _ = simulator(clock(time, mode), stop)
    assert (await paced.next(0)).step == 0
    stop.set()
    with pytest.raises(StopRequested):
        await paced.next(1)
    assert time.seconds == 0


async def test_an_abort_comes_through() -> None:
    time = FakeTime()
    paced, _ = simulator(clock(time, overrun=Overrun.ABORT), asyncio.Event())
    await paced.next(0)
    time.pass_by(11)
    with pytest.raises(ClockAborted):
        await paced.next(1)


async def test_the_first_step_is_not_late_though_time_passes_between_two_looks_at_the_clock() -> None:
    looked = iter(range(10**6))
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    paced = Clock(
        START, EVERY, Mode.LIVE, overrun=Overrun.ABORT, monotonic=lambda: next(looked) * 1e-5, sleep=sleep
    )
    tick = await paced.tick(0)
    assert tick.duty is Duty.FULL
    assert not paced.counts
    assert waited == [0.0]
