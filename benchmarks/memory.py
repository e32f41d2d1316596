"""Whether memory grows with the length of a run: a week against a day, each in a process of its own.

python -m benchmarks.memory [--days 1 7]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped, unused-ignore]
from rich.console import Console
from rich.table import Table

from benchmarks.step import Observer, scenario_of
from scenarios.run import run_blocking

STEPS_A_DAY = 288
WARM_UP = 150
SEAL_EVERY = 72
"""So that the journal is sealed twice before the warm-up ends, and again and again after it."""
MIB = 1024.0**2


@dataclass(frozen=True)
class Memory:
    """Resident memory of one run [MiB]."""

    steps: int
    warm: float
    """after the warm-up"""
    growth: float
    """the greatest from then to the last step, minus `warm`"""
    last: float
    """at the last step, minus `warm`"""


def measure(
    steps: int, warm_up: int = WARM_UP, seal_every: int = SEAL_EVERY, changes: Sequence[str] = ()
) -> Memory:
    """Run the scenario, with `changes`, in this process and watch its memory step by step."""
    process = psutil.Process()
    seen: list[float] = []

    def look(step: int) -> None:
        if step >= warm_up:
            now = process.memory_info().rss / MIB
            # No list that grows: what is measured must not be the measurement.
            seen[:] = [now, now, now] if not seen else [seen[0], max(seen[1], now), now]

    draft, scenario = scenario_of("power-grid-model", steps, f"record.seal_every={seal_every}", *changes)
    with tempfile.TemporaryDirectory() as folder:
        run_blocking(draft, scenario, root=Path(folder), observer=Observer(look))
    warm, most, last = seen
    return Memory(steps, warm, most - warm, last - warm)


def apart(steps: int) -> Memory:
    """The same in a fresh process."""
    line = [sys.executable, "-m", "benchmarks.memory", "--here", str(steps)]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    return Memory(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description="Whether memory grows with the length of a run.")
    parser.add_argument("--days", type=int, nargs="+", default=[1, 7])
    parser.add_argument("--here", type=int, metavar="STEPS", help="measure in this process, print JSON")
    given = parser.parse_args()
    if given.here:
        print(json.dumps(asdict(measure(given.here))))
        return
    shown = Table(title=f"resident memory [MiB], sealed every {SEAL_EVERY} steps")
    for heading in ("steps", f"after {WARM_UP} steps", "growth at most", "growth at the end"):
        shown.add_column(heading, justify="right")
    for days in given.days:
        m = apart(days * STEPS_A_DAY)
        shown.add_row(str(m.steps), f"{m.warm:.1f}", f"{m.growth:+.1f}", f"{m.last:+.1f}")
    Console().print(shown)


if __name__ == "__main__":
    main()
