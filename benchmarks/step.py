"""Where the time of a step goes, and what it is compared with; see README.md.

python -m benchmarks.step [--steps 288] [--repeat 5] [--engine pandapower power-grid-model]
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import paho.mqtt.client as paho
from rich.console import Console
from rich.table import Table

from benchmarks.bare import bare_loop_s
from benchmarks.plain import run_plain
from benchmarks.stopwatch import Stopwatch
from scenarios import run as runner
from scenarios.build import Built, build
from scenarios.check import validate
from scenarios.load import Draft, load
from scenarios.run import Exit, run_blocking
from scenarios.schema import Scenario
from scenarios.world import World
from simulators.devices import DevicesSimulator
from simulators.journal import Journal
from simulators.outbox import OutboxSimulator
from simulators.profiles import ProfilesSimulator
from simulators.recorder import Progress, RecorderSimulator

SCENARIO = "ieee33-envelopes"
ENGINES = ("pandapower", "power-grid-model")
PARTS = ("power flow", "decision", "mosaik", "profiles", "devices", "recording", "publishing", "rest")
"""Of a step; their sum is the whole."""
ONCE = ("build", "broker", "verdict")
"""What a run does once, before its first step and after its last."""


class Observer:
    """Notes what the run itself measures, and says nothing."""

    def __init__(self, on_step: Callable[[int], None] = lambda step: None) -> None:
        self.power_flow_s = self.decision_s = 0.0
        self.steps = 0
        self._on_step = on_step

    def begin(self, built: Built, directory: Path) -> None:
        pass

    def say(self, line: str) -> None:
        pass

    def step(self, progress: Progress, counts: Counter[str]) -> None:
        self.power_flow_s += (progress.measured.power_flow_ms or 0.0) / 1e3
        self.decision_s += sum(turn.solve_ms for turn in progress.turns) / 1e3
        self.steps += 1
        self._on_step(progress.step)

    def end(self) -> None:
        pass


@dataclass(frozen=True)
class Timing:
    """One run, in ms a step."""

    steps: int
    whole: float
    """from the first step until the last one is in the tables"""
    parts: Mapping[str, float]
    """all of `PARTS`"""
    once: Mapping[str, float]
    """all of `ONCE`, spread over the steps"""

    @property
    def ratio(self) -> float:
        """The whole to what cannot be spared: mosaik's bare loop, power flow and decision."""
        return self.whole / sum(self.parts[name] for name in ("mosaik", "power flow", "decision"))

    @property
    def ratio_all(self) -> float:
        """The same with what is done once a run."""
        return self.ratio * (self.whole + sum(self.once.values())) / self.whole


def scenario_of(engine: str, steps: int, *changes: str) -> tuple[Draft, Scenario]:
    """The scenario measured."""
    draft = load(SCENARIO, [f"grid.engine={engine}", f"steps={steps}", *changes])
    return draft, validate(draft)


@contextmanager
def _watched(watch: Stopwatch) -> Iterator[None]:
    owner: Any
    with ExitStack() as stack:
        for owner, method, label in (
            (ProfilesSimulator, "work", "profiles"),
            (DevicesSimulator, "work", "devices"),
            (RecorderSimulator, "work", "recording"),
            (OutboxSimulator, "work", "publishing"),
            # What the bus does by itself, between the steps of the simulators.
            (paho.Client, "publish", "publishing"),
            (paho.Client, "loop_read", "publishing"),
            (paho.Client, "loop_write", "publishing"),
        ):
            stack.enter_context(watch.part(owner, method, label))
        for owner, method, label in (
            (runner, "build", "build"),
            (World, "run", "loop"),
            (Journal, "close", "sealing"),
            (runner, "judge", "verdict"),
        ):
            stack.enter_context(watch.phase(owner, method, label))
        yield


def time_run(draft: Draft, scenario: Scenario) -> Timing:
    """Run a scenario once, and mosaik's bare loop right after it."""
    watch, observer = Stopwatch(), Observer()
    gc.collect()
    with tempfile.TemporaryDirectory() as folder, _watched(watch):
        begun = perf_counter()
        result = run_blocking(draft, scenario, root=Path(folder), observer=observer)
        took = perf_counter() - begun
    if result.exit not in (Exit.HELD, Exit.FAILED):
        raise RuntimeError(f"{scenario.name}: {result.why}")
    gc.collect()
    bare = bare_loop_s([part.name for part in scenario.devices], scenario.steps)

    s = watch.seconds
    whole = s["loop"] + s["sealing"]
    parts = {
        "power flow": observer.power_flow_s,
        "decision": observer.decision_s,
        "mosaik": bare,
        "profiles": s["profiles"],
        "devices": s["devices"],
        "recording": s["recording"] + s["sealing"],
        "publishing": s["publishing"],
    }
    once = {"build": s["build"], "verdict": s["verdict"]}
    once["broker"] = took - whole - sum(once.values())
    parts["rest"] = whole - sum(parts.values())
    per_step = 1e3 / observer.steps
    return Timing(
        observer.steps,
        whole * per_step,
        {name: parts[name] * per_step for name in PARTS},
        {name: once[name] * per_step for name in ONCE},
    )


def time_plain(draft: Draft, scenario: Scenario) -> float:
    """The same steps done the obvious way, in ms a step."""
    built = build(draft, scenario)
    gc.collect()
    begun = perf_counter()
    run_plain(draft, built, scenario.steps)
    return (perf_counter() - begun) * 1e3 / scenario.steps


def middle(timings: Sequence[Timing]) -> Timing:
    """Medians of the whole and of each part; the rest is what is left."""
    whole = median(t.whole for t in timings)
    parts = {name: median(t.parts[name] for t in timings) for name in PARTS if name != "rest"}
    parts["rest"] = whole - sum(parts.values())
    once = {name: median(t.once[name] for t in timings) for name in ONCE}
    return Timing(timings[0].steps, whole, parts, once)


def table(columns: Mapping[str, Sequence[Timing]], plain: Mapping[str, Sequence[float]]) -> Table:
    """Everything measured, a column an engine."""
    repeats = len(next(iter(columns.values())))
    steps = next(iter(columns.values()))[0].steps
    result = Table(title=f"{SCENARIO}, {steps} steps, ms a step, medians of {repeats} runs")
    result.add_column("part")
    for name in columns:
        result.add_column(name, justify="right")
    shown = [middle(timings) for timings in columns.values()]
    for part in PARTS:
        result.add_row(part, *(f"{t.parts[part]:.2f}" for t in shown), end_section=part == "rest")
    result.add_row("whole", *(f"{t.whole:.2f}" for t in shown), end_section=True)
    for once in ONCE:
        result.add_row(f"once a run: {once}", *(f"{t.once[once]:.2f}" for t in shown))
    result.add_section()
    result.add_row("whole : mosaik + power flow + decision", *(_spread(t, "ratio") for t in columns.values()))
    result.add_row("the same with once a run", *(_spread(t, "ratio_all") for t in columns.values()))
    if plain:
        result.add_section()
        result.add_row("the obvious way", *(f"{median(plain[name]):.2f}" for name in columns))
        result.add_row(
            "the obvious way : whole",
            *(f"{median(plain[name]) / t.whole:.1f}" for name, t in zip(columns, shown, strict=True)),
        )
    return result


def _spread(timings: Sequence[Timing], ratio: str) -> str:
    values = [getattr(t, ratio) for t in timings]
    return f"{median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def measure(
    engines: Sequence[str], steps: int, repeat: int, plain_repeat: int
) -> tuple[dict[str, list[Timing]], dict[str, list[float]]]:
    """Runs of each engine in turn, so that a busy machine is busy for all of them."""
    runs: dict[str, list[Timing]] = {engine: [] for engine in engines}
    plain: dict[str, list[float]] = {engine: [] for engine in engines} if plain_repeat else {}
    prepared = {engine: scenario_of(engine, steps) for engine in engines}
    for engine in engines:
        time_run(*scenario_of(engine, min(steps, 20)))  # imports and caches
    for i in range(max(repeat, plain_repeat)):
        for engine, parts in prepared.items():
            if i < repeat:
                runs[engine].append(time_run(*parts))
        if i < plain_repeat:
            took = time_plain(*prepared[engines[0]])  # it knows no other engine
            for times in plain.values():
                times.append(took)
    return runs, plain


def main() -> None:
    parser = argparse.ArgumentParser(description="Where the time of a step goes.")
    parser.add_argument("--steps", type=int, default=288)
    parser.add_argument("--repeat", type=int, default=5, help="runs of each engine")
    parser.add_argument("--plain", type=int, default=1, help="runs of the obvious way (0: none)")
    parser.add_argument("--engine", nargs="+", choices=ENGINES, default=list(ENGINES))
    given = parser.parse_args()
    logging.getLogger("pandapower").setLevel(logging.ERROR)  # it says in each step that numba is missing
    before = os.getloadavg()[0]
    runs, plain = measure(given.engine, given.steps, given.repeat, given.plain)
    console = Console()
    console.print(table(runs, plain))
    console.print(
        f"load of the machine: {before:.1f} before, {os.getloadavg()[0]:.1f} after, {os.cpu_count()} cores"
    )


if __name__ == "__main__":
    main()
