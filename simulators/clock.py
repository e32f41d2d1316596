"""Clock: when each step starts, and what happens when it starts late.

The co-simulation runs un-paced in mosaik; this one simulator paces it. All others are connected
to it, and the recorder's end of a step is connected back to it, so a tick begins when everything
of the step before is recorded. Deadlines are absolute on the monotonic clock: a late step does not
shift the later ones, unless the policy says so.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from math import ceil
from typing import Any

from simulators.stage import Stage

EARLIEST, LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(2200, 12, 31, tzinfo=UTC)
"""What is taken for moments that no calendar holds."""
SET_S = 0.5
"""By how much the wall clock may leave the monotonic one in a step before it counts as set."""


class Mode(StrEnum):
    """How simulated time follows the wall clock."""

    FAST = "fast"
    """as fast as the machine can"""
    SCALED = "scaled"
    """`factor` simulated seconds a second"""
    LIVE = "live"
    """one simulated second a second"""


class Overrun(StrEnum):
    """What to do with a step whose deadline passed before the step before it had ended."""

    HOLD = "hold"
    """run it at once without asking controllers, so that the loop catches up: what they said last
    holds for as long as it is valid"""
    SKIP = "skip"
    """leave it out: no power flow, no decision, nothing published; devices go on by themselves"""
    STRETCH = "stretch"
    """run it in full and shift all later deadlines"""
    ABORT = "abort"
    """end the run"""


class Duty(StrEnum):
    """What the simulators do in a step."""

    FULL = "full"
    HOLD = "hold"
    SKIP = "skip"


class ClockAborted(Exception):
    """A step was late and the policy is to end the run."""


class StopRequested(Exception):
    """Somebody asked the run to end; everything up to the last step is recorded."""


@dataclass(frozen=True, slots=True)
class Tick:
    """The start of one step."""

    step: int
    time: datetime
    """simulated time, aware UTC"""
    duty: Duty
    started_at: datetime
    """wall clock"""
    planned_at: datetime | None = None
    """wall clock; `None` when the clock is not paced"""
    lateness_ms: float | None = None
    """how long after its deadline the step started; `None` when the clock is not paced"""
    missed: bool = False
    """whether the step before it had not ended at its deadline"""
    wall_set_s: float | None = None
    """by how much somebody has set the wall clock since the step before; `None`: nobody has"""


def wall_clock() -> datetime:
    return datetime.now(UTC)


@dataclass
class Clock:
    """Paces steps; a plain model, so that tests drive it with a faked time.

    Args:
        start: simulated time of step 0.
        every: simulated length of a step.
        factor: simulated seconds a second; 1 for `Mode.LIVE`.
        overrun: see `Overrun`.
        monotonic, wall, sleep: the sources of time.
    """

    start: datetime
    every: timedelta
    mode: Mode = Mode.FAST
    factor: float = 1.0
    overrun: Overrun = Overrun.STRETCH
    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], datetime] = wall_clock
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    counts: Counter[str] = field(default_factory=Counter)
    """overruns by policy, as `overrun-hold` and so on; `clock-stepped`: how often the wall clock was set"""

    def __post_init__(self) -> None:
        if self.mode is Mode.LIVE:
            self.factor = 1.0
        if not self.factor > 0:
            raise ValueError(f"clock: factor {self.factor} must be above 0")
        self._t0: float | None = None
        self._wall0 = self.start

    @property
    def paced(self) -> bool:
        return self.mode is not Mode.FAST

    @property
    def period_s(self) -> float:
        """Length of a step in seconds of the wall clock (of simulated time when not paced)."""
        return self.every.total_seconds() / (self.factor if self.paced else 1.0)

    def on_wall(self, at: datetime) -> datetime:
        """The wall-clock moment of a simulated one; the same moment when not paced."""
        if not self.paced:
            return at
        return self._wall0 + (at - self.start) / self.factor

    def simulated(self, at: datetime) -> datetime:
        """The simulated moment of one on the wall clock; the same moment when not paced. What no calendar
        holds, as a year is long at a fast pace, is `EARLIEST` or `LATEST`."""
        if not self.paced:
            return at
        try:
            return self.start + (at - self._wall0) * self.factor
        except OverflowError:
            return EARLIEST if at < self._wall0 else LATEST

    def resume(self, wall0: datetime) -> int:
        """Go on with the times of a clock that has stopped, whose step 0 was at `wall0`; the next step whose
        deadline has not passed."""
        gone = self.wall() - wall0
        self._wall0, self._t0 = wall0, self.monotonic() - gone.total_seconds()
        return max(ceil(gone * self.factor / self.every), 0)

    async def tick(self, step: int) -> Tick:
        """Wait for the step's deadline and say what is to be done.

        Raises:
            ClockAborted: the step is late and the policy is `abort`.
        """
        at = self.start + step * self.every
        if not self.paced:
            return Tick(step, at, Duty.FULL, self.wall())
        now = self.monotonic()
        if self._t0 is None:
            self._t0 = now - step * self.period_s
            self._wall0 = self.wall() - step * self.every / self.factor
        ahead = self._t0 + step * self.period_s - now
        if ahead >= 0:
            await self.sleep(ahead)
            late = self.monotonic() - (self._t0 + step * self.period_s)
            set_s = self._follow_wall()
            planned_at, started_at = self.on_wall(at), self.wall()
            return Tick(step, at, Duty.FULL, started_at, planned_at, max(late, 0.0) * 1e3, wall_set_s=set_s)
        late, set_s = -ahead, self._follow_wall()
        planned_at = self.on_wall(at)
        self.counts[f"overrun-{self.overrun}"] += 1
        duty = Duty.FULL
        match self.overrun:
            case Overrun.ABORT:
                raise ClockAborted(
                    f"step {step} ({at:%Y-%m-%d %H:%M:%S}) started {late * 1e3:.0f} ms late and the "
                    "clock's overrun policy is 'abort'; give a longer step, a smaller factor or "
                    "another policy"
                )
            case Overrun.STRETCH:
                self._t0 += late
                self._wall0 += timedelta(seconds=late)
            case Overrun.HOLD:
                duty = Duty.HOLD
            case Overrun.SKIP:
                duty = Duty.SKIP
        return Tick(step, at, duty, self.wall(), planned_at, late * 1e3, missed=True, wall_set_s=set_s)

    def _follow_wall(self) -> float | None:
        """By how many seconds the wall clock was set, if it was. Steps go on by the monotonic one, but
        devices live in the time of the wall clock: an instruction by the old one would be over, or early."""
        assert self._t0 is not None
        passed = timedelta(seconds=self.monotonic() - self._t0)
        by = self.wall() - self._wall0 - passed
        if abs(by) <= timedelta(seconds=SET_S):
            return None
        self._wall0 += by
        self.counts["clock-stepped"] += 1
        return by.total_seconds()


class ClockSimulator(Stage):
    """mosaik simulator of one entity `clock`: output `tick`, input `done` (the step before is over)."""

    def __init__(
        self,
        clock: Clock,
        stop: asyncio.Event,
        first_step: int = 0,
        event: Callable[..., None] = lambda *args, **details: None,
    ) -> None:
        super().__init__("clock", takes=["done"], gives=["tick"])
        self._clock, self._stop, self._first, self._event = clock, stop, first_step, event

    async def work(self, time: int, given: dict[str, list[Any]]) -> None:
        self.out["clock"] = {"tick": await self.next(self._first + time)}

    async def next(self, step: int) -> Tick:
        """The tick of a step.

        Raises:
            StopRequested: somebody set the stop event.
            ClockAborted: see `Clock.tick`.
        """
        if self._stop.is_set():
            raise StopRequested()
        tick = await (self._until_stopped(step) if self._clock.paced else self._clock.tick(step))
        if tick.wall_set_s is not None:
            self._event(tick.time, "clock-stepped", step=step, by_s=tick.wall_set_s)
        if tick.missed:
            self._event(
                tick.time, "overrun", step=step, lateness_ms=tick.lateness_ms, policy=self._clock.overrun
            )
        return tick

    async def _until_stopped(self, step: int) -> Tick:
        waiting = asyncio.ensure_future(self._clock.tick(step))
        stopping = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait([waiting, stopping], return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                raise StopRequested()
            return await waiting
        finally:
            waiting.cancel()
            stopping.cancel()
