"""Watch: what a run shows while it goes on: a progress line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from scenarios.build import Built
from scenarios.schema import Scenario
from simulators.recorder import Progress as Recorded


class _Console(Console):
    """Goes quiet when its reader has gone: that is no reason to end a run with real devices."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@cache
def console() -> Console:
    """Where people read."""
    return _Console(width=None if sys.stdout.isatty() else 100)


class Watcher:
    """Shows a run; see `scenarios.run.Observer`."""

    def __init__(self, scenario: Scenario, bar: Progress | None, quiet: bool, log_every_s: float) -> None:
        self._scenario, self._bar, self._quiet = scenario, bar, quiet
        self._pause_s = 0.1 if bar else log_every_s
        self._task = bar.add_task("", total=scenario.steps, now="starting") if bar else None
        self._low, self._high = scenario.grid.limits.v_pu
        self._shown = 0.0

    def begin(self, built: Built, directory: Path) -> None:
        self.say(
            f"{self._scenario.name}: {self._scenario.steps} steps of "
            f"{self._scenario.every.total_seconds():g} s, {len(built.site.devices)} devices, "
            f"{len(built.engine.buses)} buses -> {directory}"
        )
        for source in built.sources:
            self.say(f"method: {source}")

    def say(self, line: str) -> None:
        if not self._quiet:
            console().print(line, highlight=False, markup=False, soft_wrap=True)

    def step(self, progress: Recorded, counts: Counter[str]) -> None:
        now = time.monotonic()
        last = progress.step + 1 == self._scenario.steps
        if self._quiet or (now - self._shown < self._pause_s and not last):
            return
        self._shown = now
        line = self._line(progress, counts)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=progress.step + 1, now=line)
        else:
            self.say(f"step {line}")

    def _line(self, progress: Recorded, counts: Counter[str]) -> str:
        words = []
        tick = progress.tick
        if tick is not None:
            seconds = self._scenario.every.total_seconds() % 60 != 0
            words.append(f"{tick.time:%m-%d %H:%M:%S}" if seconds else f"{tick.time:%m-%d %H:%M}")
            words += [f"{turn.controller} {turn.origin}" for turn in progress.turns]
            if tick.lateness_ms is not None:
                words.append(f"{tick.lateness_ms:.0f} ms late")
        volts = progress.measured.v_pu
        if volts:
            bus, v = max(volts.items(), key=lambda item: max(self._low - item[1], item[1] - self._high))
            words.append(f"{v:.4f} pu at bus {bus}")
        else:
            words.append("no voltages")
        words.append(f"{counts['acknowledged']}/{counts['published']} acked")
        return f"{progress.step + 1}/{self._scenario.steps} " + ", ".join(words)

    def end(self) -> None:
        if self._bar is not None:
            self._bar.stop()


@contextmanager
def watch(scenario: Scenario, *, quiet: bool = False, log_every_s: float = 10.0) -> Iterator[Watcher]:
    """A watcher for one run; quiet ones say nothing, others log every `log_every_s` off a terminal."""
    if quiet or not console().is_terminal:
        yield Watcher(scenario, None, quiet, log_every_s)
        return
    columns = (
        BarColumn(bar_width=6),
        TextColumn("{task.fields[now]}", table_column=Column(ratio=1, no_wrap=True)),
    )
    with Progress(*columns, console=console(), transient=True) as bar:
        yield Watcher(scenario, bar, quiet, log_every_s)
