"""Rounds: visits devices behind `DeviceBridge`s: tells each what holds now, and reads what it measures.

Each device has a task of its own; only so many visits go on at once, each with a deadline. Devices that did
not answer the last time wait for each other, and nobody for them: one that falls silent can hold up others
once, for one visit. An instruction is written when it begins, and again when a span of its schedule begins.
What a device has taken over and reads back counts as accepted, by the rules of `Register`; that it fell back
counts when it reads so. A wall clock that is set back prolongs nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from bridges.device_bridge import BridgeLost, BridgeRefused, DeviceBridge, InForce, Reading
from controllers.contract import Instruction
from controllers.register import Answer, Life, Register

SHORTEST_S = 0.01
"""Shortest pause between two visits of a device."""
TRIES_S = 0.2
"""Pause before an instruction is written once more that was lost on the way."""
SILENT = 5
"""How many times as many silent devices as others are tried at a time: they cost little more than waiting."""
SAME_MW = 1e-6
"""What two values that a device reads back may differ by and be the same; far below its steps."""


@dataclass
class _Visited:
    """One device."""

    bridge: DeviceBridge
    register: Register = field(default_factory=Register)
    """what it has taken over"""
    told: Instruction | None = None
    """what it is to take over"""
    ends_s: float = 0.0
    """when that is over, on the monotonic clock"""
    reverts_to: InForce | None = None
    """what it obeys once what it has taken over is over; `None`: nothing was"""
    unreverted: str | None = None
    """what it obeys instead, in words"""
    settled: tuple[int, int, datetime] | None = None
    """epoch, number and beginning of the span that it was told last, whatever came of it"""
    wish_mw: float | None = None
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    read_at: datetime | None = None
    lost: bool = True
    """whether it did not answer the last time, or was not asked yet"""


class Rounds:
    """Visits devices until `run` is cancelled.

    | count | meaning |
    |---|---|
    | written | instructions, and spans of them, that a device has taken over |
    | refused | those that it has not |
    | lost | visits that a device did not answer in time |
    | unreverted | ends of validity after which a device read otherwise than its fallback |

    Args:
        bridges: by device.
        every_s: pause between two readings of a device.
        deadline_s: of a visit.
        at_once: how many visits go on at a time.
        utc: the wall clock, of which the instructions speak.
        monotonic: seconds of a clock that does not jump; for validities.
    """

    def __init__(
        self,
        bridges: Mapping[str, DeviceBridge],
        *,
        every_s: float,
        deadline_s: float,
        at_once: int = 10,
        utc: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        if not (every_s > 0 and deadline_s > 0 and at_once > 0):
            raise ValueError(f"rounds: every_s {every_s}, deadline_s {deadline_s}, at_once {at_once}")
        self._visited = {name: _Visited(bridge) for name, bridge in bridges.items()}
        self._every_s, self._deadline_s, self._utc, self._monotonic = every_s, deadline_s, utc, monotonic
        self._window, self._silent = asyncio.Semaphore(at_once), asyncio.Semaphore(SILENT * at_once)
        self._readings: dict[str, Reading] = {}
        self._answers: deque[tuple[str, Answer]] = deque(maxlen=100_000)
        self._own: Counter[str] = Counter()

    def __contains__(self, name: object) -> bool:
        return name in self._visited

    @property
    def counts(self) -> Counter[str]:
        """What happened, those of the bridges too where they count."""
        found = Counter(self._own)
        for one in self._visited.values():
            found.update(getattr(one.bridge, "counts", {}))
        return found

    def tell(self, instruction: Instruction) -> None:
        """Let a device take over an instruction, with times of the wall clock, instead of the one before."""
        one = self._visited[instruction.device]
        one.told = instruction
        one.ends_s = self._monotonic() + (instruction.valid_until - self._utc()).total_seconds()
        one.wake.set()

    def withdraw(self, name: str) -> None:
        """Write nothing more of what a device was told; what it has taken over ends by itself."""
        self._visited[name].told = None

    def wish(self, name: str, p_mw: float) -> None:
        """Where a device would like to be, for a protocol that cannot leave it to the device."""
        self._visited[name].wish_mw = p_mw

    def readings(self) -> dict[str, Reading]:
        """The newest of each device since the last call."""
        found, self._readings = self._readings, {}
        return found

    def answers(self) -> list[tuple[str, Answer]]:
        """What became of instructions since the last call, by device, each one's in order."""
        found = list(self._answers)
        self._answers.clear()
        return found

    @property
    def unreverted(self) -> dict[str, str]:
        """Devices that do not read as their fallback though what they were told is over, and where not."""
        return {name: one.unreverted for name, one in self._visited.items() if one.unreverted is not None}

    async def run(self) -> None:
        """Visit the devices until cancelled; then leave each to itself."""
        try:
            async with asyncio.TaskGroup() as group:
                for name in self._visited:
                    group.create_task(self._go_on(name), name=f"visits of {name}")
        finally:
            for one in self._visited.values():
                with suppress(BridgeLost):
                    await one.bridge.close()

    async def _go_on(self, name: str) -> None:
        one, task = self._visited[name], asyncio.current_task()
        assert task is not None
        while True:
            one.wake.clear()
            async with self._silent if one.lost else self._window:
                wait_s = await self.visit(name)
            if (
                task.cancelling()
            ):  # `asyncio.wait_for`, in which a bridge may be, can swallow that (before 3.12)
                raise asyncio.CancelledError
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await one.wake.wait()

    async def visit(self, name: str) -> float:
        """Tell a device what is due and read it; seconds until the next visit is due."""
        one = self._visited[name]
        try:
            async with asyncio.timeout(self._deadline_s):
                await one.bridge.connect()
                await self._write(name, one)
                await self._read(name, one)
            one.lost = False
        except (BridgeLost, TimeoutError):
            self._own["lost"] += 1
            one.lost = True
        return self._pause_s(one)

    async def _write(self, name: str, one: _Visited) -> None:
        told, ends_s = one.told, one.ends_s
        if told is None or (span := told.at(now := self._now(told, ends_s))) is None:
            return
        number = told.epoch, told.seq, span.start
        if one.settled == number:
            return
        try:
            written = await one.bridge.write_setpoint(told, now, wish_mw=one.wish_mw)
        except BridgeRefused as refused:
            one.settled = number
            self._own["refused"] += 1
            answer = Answer(told.epoch, told.seq, Life.REFUSED, self._utc(), refused.code, refused.reason)
            self._answers.append((name, answer))
            return
        one.settled, one.reverts_to, one.unreverted = number, written.reverts_to, None
        self._own["written"] += 1
        if (told.epoch, told.seq) > one.register.newest:
            now, mono = max(written.time, told.valid_from), self._monotonic()
            said = one.register.take(told, now, mono, ends_s - mono)
            # Whether it was in its fallback meanwhile, it has not said.
            self._say(name, tuple(answer for answer in said if answer.state is not Life.FALLBACK))

    async def _read(self, name: str, one: _Visited) -> None:
        reading = await one.bridge.read_measurements()
        one.read_at = reading.time
        self._readings[name] = reading
        now, mono = self._utc(), self._monotonic()
        if one.register.quiet_s(now, mono) > 0:
            return
        # Something has ended. That it fell back is said only when it says so itself.
        setting = await one.bridge.read_back()
        if one.reverts_to is not None and (apart := _apart(setting, one.reverts_to)):
            soon = setting.time + timedelta(seconds=1)  # its timer has whole seconds
            if one.unreverted is None and not (setting.reverts_at and setting.reverts_at <= soon):
                self._own["unreverted"] += 1
                one.unreverted = apart
            return
        one.unreverted = None
        self._say(name, one.register.tick(now, mono))

    def _say(self, name: str, answers: tuple[Answer, ...]) -> None:
        self._answers.extend((name, answer) for answer in answers)

    def _now(self, told: Instruction, ends_s: float) -> datetime:
        """The time by the wall, or by the monotonic clock since it was told, whichever is later."""
        left = timedelta(seconds=ends_s - self._monotonic())
        return max(self._utc(), told.valid_until - left)

    def _pause_s(self, one: _Visited) -> float:
        """Until it is read again, or something is to be written."""
        told, wait_s = one.told, self._every_s
        if told is not None:
            now = self._now(told, one.ends_s)
            starts = [span.start for span in told.spans if span.start > now]
            if starts:
                wait_s = min(wait_s, (starts[0] - now).total_seconds())
            span = told.at(now)
            if span is not None and one.settled != (told.epoch, told.seq, span.start):
                wait_s = min(wait_s, TRIES_S)
        return max(wait_s, SHORTEST_S)


def _apart(setting: InForce, other: InForce) -> str:
    """Where two settings differ, in words; empty: they are the same."""
    differ = []
    for name in ("limit_mw", "p_mw", "q_mvar"):
        is_, should = getattr(setting, name), getattr(other, name)
        if (is_ is None) != (should is None) or (is_ is not None and abs(is_ - should) > SAME_MW):
            differ.append(f"{name} is {is_}, not {should}")
    return ", ".join(differ)
