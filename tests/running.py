"""Runs for tests: scenarios on a memory bus, quietly, with the clock that a test gives."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from scenarios.build import Built
from scenarios.check import validate
from scenarios.load import load
from scenarios.run import Result, make_clock, run
from simulators.recorder import Progress


@dataclass
class Silent:
    """An observer that says nothing, and calls `on_step` after each step."""

    on_step: Callable[[int], None] = lambda step: None
    said: list[str] = field(default_factory=list)

    def begin(self, built: Built, directory: Path) -> None: ...
    def say(self, line: str) -> None:
        self.said.append(line)

    def step(self, progress: Progress, counts: Counter[str]) -> None:
        self.on_step(progress.step)

    def end(self) -> None: ...


class FakeTime:
    """A wall and monotonic clock that only moves when somebody sleeps, or by `pass_by`."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def wall(self) -> datetime:
        return datetime(2030, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)

    async def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        await asyncio.sleep(0)

    def pass_by(self, seconds: float) -> None:
        self.seconds += seconds


async def do(
    which: str | Path,
    out: Path,
    *changes: str,
    time: FakeTime | None = None,
    stop: asyncio.Event | None = None,
    on_step: Callable[[int], None] = lambda step: None,
    bus: Sequence[str] = ("bus.kind=memory",),
) -> Result:
    """Run a scenario with `--set` changes; on a faked time if one is given."""
    draft = load(str(which), [*bus, *changes])
    scenario = validate(draft)
    clock = None
    if time is not None:
        clock = make_clock(scenario, monotonic=time.monotonic, wall=time.wall, sleep=time.sleep)
    return await run(draft, scenario, root=out, observer=Silent(on_step), clock=clock, stop=stop)
