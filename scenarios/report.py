"""Report: what a run did, in figures; of a finished run, of one that was killed, and of one that goes on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from math import floor, log10
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from scenarios import certificates, fault_report, iteration_report, microgrid_report
from scenarios.certificates import Checked
from scenarios.envelope_report import number
from scenarios.events import EVENTS, read_events
from scenarios.fault_report import FaultSpan
from scenarios.figures import (
    Reading,
    Readings,
    durations,
    energies,
    quantile,
    regulator_moves,
    rows,
    step_times,
    total,
)
from scenarios.iterations import IterationFigures, iterations
from scenarios.microgrid_report import MicrogridFigures
from scenarios.plain import plain
from scenarios.run_directory import Manifest, NotARun, Resumption, RunDirectory
from scenarios.verdicts import VERDICTS
from simulators.clock import Mode
from simulators.journal import NoTables, finished_steps

__all__ = ["NotARun", "Summary", "show", "summary"]

DURATIONS = ("lateness_ms", "power_flow_ms", "solve_ms", "publish_ms", "ack_ms")
SHOWN_DEVICES = 12
"""More devices than these are shown by kind."""
LOADS = "load"
"""Kind of loads and fixed generators, which nobody controls."""


@dataclass(frozen=True, slots=True)
class DeviceEnergy:
    """Energy of a device, or of all devices of a kind [MWh]."""

    name: str
    kind: str
    generated_mwh: float | None
    """`None`: it is known of no step: a real device that was never heard"""
    consumed_mwh: float | None
    """taken from the grid, positive"""
    curtailed_mwh: float | None
    """`None`: nothing of it can be curtailed"""
    steps: int
    """that the run has recorded"""
    known_steps: int
    """of them with a value; the energies are those of these alone"""


@dataclass(frozen=True, slots=True)
class Spread:
    """How a duration is distributed [ms]."""

    what: str
    count: int
    median_ms: float
    p95_ms: float
    max_ms: float
    missing: int


@dataclass(frozen=True, slots=True)
class Judged:
    """A verdict as it was written."""

    required: str
    held: bool
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A run in figures. What is not known is `None`, never zero."""

    name: str
    directory: str
    first: datetime | None
    """time of the first step"""
    last: datetime | None
    every_s: float | None
    steps_done: int
    steps_planned: int
    clock: str
    exit_status: int | None
    """`None`: the run goes on or was killed"""
    exit_meaning: str
    started_at: datetime
    finished_at: datetime | None
    energy: tuple[DeviceEnergy, ...]
    microgrids: tuple[MicrogridFigures, ...]
    least_v_pu: Reading | None
    greatest_v_pu: Reading | None
    greatest_loading_percent: Reading | None
    decisions: dict[str, int]
    """by origin"""
    events: dict[str, int]
    """by name"""
    reasons: dict[str, str]
    """by event, what the first of its kind gave as its reason"""
    counts: dict[str, float]
    durations: tuple[Spread, ...]
    setpoints: dict[str, int]
    """by outcome"""
    checked: Checked | None
    """what the AC checks of all regions found; `None`: no region was checked"""
    binding: dict[str, int]
    """by reason (e.g. a row of the network), how many regions it limited"""
    moves: dict[str, int]
    """by regulator, how many positions it moved"""
    default: str | None
    """what was found of the devices' defaults, the last rung of the ladder; `None`: nothing is known"""
    resumed: tuple[Resumption, ...]
    """when it went on after it had been killed"""
    verdicts: tuple[Judged, ...]
    sources: tuple[str, ...]
    faults: tuple[FaultSpan, ...] = ()
    """of the scenario, that were on"""
    iterations: tuple[IterationFigures, ...] = ()
    """of methods that close in on their decisions"""

    def as_dict(self) -> dict[str, Any]:
        """The same as plain JSON: times as text, what is not known as null."""
        found: dict[str, Any] = plain(asdict(self))
        return found


def summary(run_dir: Path) -> Summary:
    """Read a run's folder.

    Raises:
        NotARun: the folder is none; the message says what to do.
    """
    manifest = RunDirectory.open(run_dir).manifest()
    try:
        steps = finished_steps(run_dir)
    except NoTables:
        steps = 0
    exit_meaning = (
        manifest.exit.meaning if manifest.exit else "no end was recorded: the run goes on or was killed"
    )
    events = list(read_events(run_dir / EVENTS))
    times, every = step_times(run_dir) if steps else ([], None)
    volts = Readings.of(run_dir, "v_pu") if steps else Readings()
    loadings = Readings.of(run_dir, "loading_percent") if steps else Readings()
    checked, binding = certificates.of_run(run_dir, _limits(manifest)) if steps else (None, {})
    return Summary(
        name=manifest.name,
        directory=str(run_dir),
        first=times[0] if times else None,
        last=times[-1] if times else None,
        every_s=every.total_seconds() if every else None,
        steps_done=steps,
        steps_planned=manifest.steps,
        clock=manifest.clock,
        exit_status=manifest.exit.status if manifest.exit else None,
        exit_meaning=exit_meaning,
        started_at=manifest.started_at,
        finished_at=manifest.finished_at,
        energy=tuple(_energy(run_dir, manifest, every, len(times))) if every else (),
        microgrids=microgrid_report.microgrids(run_dir, every) if every else (),
        least_v_pu=volts.least,
        greatest_v_pu=volts.greatest,
        greatest_loading_percent=loadings.greatest,
        decisions=_count(run_dir, "steps", "origin") if steps else {},
        events=_by_number(Counter(event["what"] for event in events)),
        reasons={e["what"]: str(e["why"]) for e in reversed(events) if e.get("why") and "fault" not in e},
        counts=dict(manifest.counts),
        durations=tuple(_spreads(run_dir, manifest.clock)) if steps else (),
        setpoints=_count(run_dir, "setpoints", "outcome") if steps else {},
        checked=checked,
        binding=binding,
        moves=regulator_moves(run_dir) if steps else {},
        default=(manifest.default or {}).get("why"),
        resumed=tuple(manifest.resumed),
        verdicts=tuple(_verdicts(run_dir)),
        sources=tuple(manifest.sources),
        faults=fault_report.spans(events),
        iterations=iterations(run_dir) if steps else (),
    )


def _energy(run_dir: Path, manifest: Manifest, every: timedelta, steps: int) -> Iterator[DeviceEnergy]:
    devices = manifest.scenario.get("devices") or []
    kinds = {device.get("name"): str(device.get("kind", "")) for device in devices}
    for name, energy in energies(run_dir, every).items():
        kind = kinds.get(name, "") if energy.controlled else LOADS
        powers = energy.generated, energy.consumed, energy.curtailed
        yield DeviceEnergy(name, kind, *powers, steps, energy.known_steps)


def _limits(manifest: Manifest) -> tuple[float, float] | None:
    """Of the voltage [pu]; `None`: the manifest does not say."""
    try:
        low, high = manifest.scenario["grid"]["limits"]["v_pu"]
    except (KeyError, TypeError, ValueError):
        return None
    return float(low), float(high)


def _count(run_dir: Path, table: str, column: str) -> dict[str, int]:
    found = Counter(row[column] for row in rows(run_dir, table, [column]))
    del found[None]
    return _by_number(found)


def _by_number(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _spreads(run_dir: Path, clock: str) -> Iterator[Spread]:
    for what in DURATIONS:
        if what == "ack_ms" and clock == Mode.FAST:
            continue  # without pacing an answer comes one simulated step later: no measured duration
        found = [duration.ms for duration in durations(run_dir, what)]
        known = sorted(ms for ms in found if ms is not None)
        if known:
            middle, high = quantile(known, 50), quantile(known, 95)
            yield Spread(what, len(known), middle, high, known[-1], len(found) - len(known))


def _verdicts(run_dir: Path) -> Iterator[Judged]:
    file = run_dir / VERDICTS
    if file.exists():
        for verdict in json.loads(file.read_text("utf-8"))["verdicts"]:
            yield Judged(verdict["required"], verdict["held"], verdict["sentence"])


def show(summary: Summary, console: Console) -> None:
    """Print a summary; readable in 100 columns and without colour."""
    console.print(_head(summary))
    plain_text, columns = console.options.ascii_only, console.width
    for heading, body in _sections(summary, ascii_only=plain_text, columns=columns):
        console.print()
        console.print(Text(heading, style="bold"))
        console.print(body)


def _head(summary: Summary) -> Table:
    style = {0: "green", None: "yellow"}.get(summary.exit_status, "red")
    status = "" if summary.exit_status is None else f" (exit status {summary.exit_status})"
    head = _grid()
    _row(head, "run", Text(summary.name, style="bold"))
    _row(head, "folder", summary.directory)
    if summary.first and summary.last:
        every = f", every {summary.every_s:g} s" if summary.every_s else ""
        _row(head, "period", f"{_clock(summary.first)} to {_clock(summary.last)}{every}")
    _row(head, "steps", f"{summary.steps_done} of {summary.steps_planned}, clock {summary.clock}")
    for i, one in enumerate(summary.resumed):
        gap = one.step - one.after_step - 1
        words = f"{_clock(one.at)}, epoch {one.epoch}: step {one.step} after step {one.after_step}"
        _row(head, "" if i else "resumed", words + (f"; {gap} steps were never run" if gap else ""))
    if summary.finished_at:
        _row(head, "took", f"{(summary.finished_at - summary.started_at).total_seconds():.1f} s")
    _row(head, "exit", Text(summary.exit_meaning + status, style=style))
    return head


def _sections(summary: Summary, *, ascii_only: bool, columns: int) -> Iterator[tuple[str, Table]]:
    grid = _grid(4)
    if summary.least_v_pu and summary.greatest_v_pu:
        _row(grid, "least voltage", *_reading(summary.least_v_pu, "pu"))
        _row(grid, "greatest voltage", *_reading(summary.greatest_v_pu, "pu"))
    if summary.greatest_loading_percent:
        _row(grid, "greatest loading", *_reading(summary.greatest_loading_percent, "%"))
    if grid.rows:
        yield "Grid", grid
    if summary.energy:
        yield "Energy at devices", _energy_table(summary.energy)
    if summary.microgrids:
        yield "Microgrids", microgrid_report.table(summary.microgrids)
    counted = _grid()
    for what, counts in (
        ("decisions", summary.decisions),
        ("instructions", summary.setpoints),
        ("regulator moves", summary.moves),
        ("events", summary.events),
    ):
        if counts:
            _row(counted, what, ", ".join(f"{n} {name}" for name, n in counts.items()))
    if (real := _real(summary.counts)) is not None:
        _row(counted, "real devices", real)
    if summary.checked is not None:
        _row(counted, "AC certificate", certificates.sentence(summary.checked))
    if summary.default is not None:
        _row(counted, "defaults", summary.default)
    for i, line in enumerate(certificates.reasons(summary.binding)):
        _row(counted, "" if i else "limits", line)
    for what, why in summary.reasons.items():
        _row(counted, "", f"first {what}: {why}")
    if counted.rows:
        yield "Control", counted
    if summary.iterations:
        yield "Iterations", iteration_report.table(summary.iterations)
    if summary.faults and summary.first and summary.last:
        axis = summary.first, summary.last
        yield "Faults", fault_report.table(summary.faults, *axis, ascii_only=ascii_only, columns=columns)
    if summary.durations:
        yield "Durations", _durations_table(summary.durations)
    if summary.verdicts:
        yield "Expectations", _verdicts_table(summary.verdicts, ascii_only)
    if summary.sources:
        cited = _grid()
        for i, source in enumerate(summary.sources, 1):
            _row(cited, f"[{i}]", source)
        yield "Sources of the methods", cited


def _real(counts: Mapping[str, float]) -> str | None:
    """How real devices were heard, and what was not told; `None`: there is nothing to say."""
    words = {
        "measured": "measurements counted",
        "silent": "steps of silent devices",
        "dry-run": "instructions of a dry run not told",
        "held-back": "not told because an operator held the device",
        "apart": "measurements too far from the twin",
    }
    found = [f"{counts[name]:g} {said}" for name, said in words.items() if counts.get(name)]
    return ", ".join(found) or None


def _energy_table(energy: Sequence[DeviceEnergy]) -> Table:
    table = _table("device", "kind")
    for column in ("generated", "consumed", "curtailed"):
        table.add_column(f"{column}\nMWh", justify="right")
    if gaps := any(device.known_steps < device.steps for device in energy):
        table.add_column("known\nsteps", justify="right", no_wrap=True)
    few = sum(device.kind != LOADS for device in energy) <= SHOWN_DEVICES
    groups: dict[tuple[str, str], list[DeviceEnergy]] = {}
    digits = _digits(energy)
    for device in energy:
        name = device.name if few and device.kind != LOADS else ""
        groups.setdefault((name, device.kind), []).append(device)
    for (name, kind), those in groups.items():
        _row(
            table,
            name or f"{len(those)} together",
            kind,
            *_sums(those, digits),
            *([_known(those)] if gaps else []),
        )
    if len(groups) > 1:
        table.add_section()
        _row(table, f"all {len(energy)}", "", *_sums(energy, digits), *([_known(energy)] if gaps else []))
    return table


def _digits(energy: Sequence[DeviceEnergy]) -> int:
    """Of energies: three, or more where a short run has moved little."""
    greatest = max((x for e in energy for x in (e.generated_mwh, e.consumed_mwh) if x), default=1.0)
    return 3 + max(0, floor(-log10(greatest)))


def _sums(energy: Sequence[DeviceEnergy], digits: int) -> list[str]:
    columns = (
        [e.generated_mwh for e in energy],
        [e.consumed_mwh for e in energy],
        [e.curtailed_mwh for e in energy],
    )
    return [number(total(column), digits) for column in columns]


def _known(energy: Sequence[DeviceEnergy]) -> str:
    """Of how many steps, of all these devices together, the energies are known."""
    known, steps = sum(e.known_steps for e in energy), sum(e.steps for e in energy)
    return "all" if known == steps else f"{known} of {steps}"


def _durations_table(spreads: Sequence[Spread]) -> Table:
    table = _table("")
    for column in ("median ms", "95 % ms", "greatest ms", "values", "missing"):
        table.add_column(column, justify="right")
    for spread in spreads:
        figures = (spread.median_ms, spread.p95_ms, spread.max_ms)
        _row(
            table,
            spread.what.removesuffix("_ms").replace("_", " "),
            *(f"{ms:.2f}" if ms < 100 else f"{ms:.0f}" for ms in figures),
            str(spread.count),
            str(spread.missing) if spread.missing else "-",
        )
    return table


def _verdicts_table(verdicts: Sequence[Judged], ascii_only: bool) -> Table:
    # Words as well as marks: colours and symbols do not survive every terminal and log.
    held, failed = ("held", "FAILED") if ascii_only else ("✓ held", "✗ FAILED")
    table = _grid()
    for verdict in verdicts:
        mark = Text(held, style="green") if verdict.held else Text(failed, style="bold red")
        _row(table, mark, Text(verdict.required, style="bold"))
        _row(table, "", Text(verdict.sentence))
    return table


def _grid(columns: int = 2) -> Table:
    """Columns without lines; the first holds what the row is about and does not wrap."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, min_width=16)
    for _ in range(columns - 1):
        grid.add_column(overflow="fold")  # a path or name that is too long is never cut
    return grid


def _table(*columns: str) -> Table:
    return Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)


def _row(table: Table, *cells: str | Text) -> None:
    # As text: brackets in a name or a citation are no markup.
    table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in cells))


def _reading(reading: Reading, unit: str) -> tuple[str, str, str]:
    return f"{reading.value:.4f} {unit}", reading.name, _clock(reading.time)


def _clock(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S} UTC"
