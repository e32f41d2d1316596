"""Figures of a run, read from its tables piece by piece: of a finished run or of one that was killed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from controllers.contract import Kind, Origin
from simulators.journal import batches
from simulators.tables import Outcome

Array = npt.NDArray[np.float64]

UNDECIDED = frozenset({Origin.HELD, Origin.DEFAULT, Origin.SKIPPED})
"""Origins of a step for which a controller was due and did not decide."""

UNCONTROLLED = "uncontrolled"
"""State of a load or fixed generator, which `devices` has beside the devices."""


def rows(run_dir: Path, table: str, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A table's rows as dicts, times in UTC."""
    for batch in batches(run_dir, table, columns):
        yield from batch.to_pylist()


def step_times(run_dir: Path) -> tuple[list[datetime], timedelta | None]:
    """The times of a run's steps, and the length of a step: `None` for less than two steps."""
    times: list[datetime] = []
    first = last = None
    for row in rows(run_dir, "steps", ["step", "time"]):
        if row["step"] != last:
            times.append(row["time"].astimezone(UTC))
        first, last = row["step"] if first is None else first, row["step"]
    if len(times) < 2 or first is None or last is None:
        return times, None
    return times, (times[-1] - times[0]) / (last - first)


def regulator_moves(run_dir: Path) -> dict[str, int]:
    """How many positions each regulator has moved, those that stood still among them."""
    moved: dict[str, int] = {}
    last: dict[str, int] = {}
    for row in rows(run_dir, "regulators", ["regulator", "position"]):
        name, position = row["regulator"], row["position"]
        moved[name] = moved.get(name, 0) + abs(position - last.get(name, position))
        last[name] = position
    return moved


@dataclass(frozen=True, slots=True)
class Reading:
    """One value of a table."""

    name: str
    """bus or branch"""
    time: datetime
    value: float


@dataclass
class Readings:
    """The values of one column of `buses` or `branches`, against limits that may be infinite."""

    low: float = -math.inf
    high: float = math.inf
    inside: int = 0
    """how many keep the limits"""
    present: Counter[str] = field(default_factory=Counter)
    """values by name, zero for a name that never has one"""
    unrated: Counter[str] = field(default_factory=Counter)
    """branches with a flow and no loading, which have no rating: nothing of them is missing"""
    least: Reading | None = None
    greatest: Reading | None = None

    @classmethod
    def of(
        cls,
        run_dir: Path,
        column: str,
        low: float = -math.inf,
        high: float = math.inf,
        rounding: float = 1e-9,
    ) -> Readings:
        """Read `v_pu` or `loading_percent`; up to `rounding` outside is inside."""
        table, key = ("buses", "bus") if column == "v_pu" else ("branches", "branch")
        found = cls(low, high)
        for batch in batches(run_dir, table):
            values = batch[column].to_numpy(zero_copy_only=False)
            there = ~np.isnan(values)
            found.present.update(_tally(batch[key], there))
            found.present.update(dict.fromkeys(pc.unique(batch[key]).to_pylist(), 0))
            if table == "branches":
                flows = batch["p_mw"].is_valid().to_numpy(zero_copy_only=False)
                found.unrated.update(_tally(batch[key], flows & ~there))
            found.inside += int(((values >= low - rounding) & (values <= high + rounding)).sum())
            if not there.any():
                continue
            at_least, at_most = (
                Reading(batch[key][i].as_py(), batch["time"][i].as_py().astimezone(UTC), float(values[i]))
                for i in (int(np.nanargmin(values)), int(np.nanargmax(values)))
            )
            if found.least is None or at_least.value < found.least.value:
                found.least = at_least
            if found.greatest is None or at_most.value > found.greatest.value:
                found.greatest = at_most
        return found

    def excess(self, reading: Reading) -> float:
        """How far a value lies outside the limits; negative inside."""
        return max(self.low - reading.value, reading.value - self.high)

    @property
    def worst(self) -> Reading | None:
        """The value farthest outside or, when all are inside, closest to a limit."""
        ends = [reading for reading in (self.least, self.greatest) if reading is not None]
        return max(ends, key=self.excess, default=None)


def _tally(names: pa.Array, chosen: npt.NDArray[np.bool_]) -> dict[str, int]:
    counts = pc.value_counts(names.filter(pa.array(chosen)))
    return dict(zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True))


@dataclass(frozen=True, slots=True)
class Duration:
    """One measured duration, or one that should have been measured."""

    name: str
    """step, controller or device"""
    time: datetime
    ms: float | None
    """`None`: missing"""


def durations(run_dir: Path, what: str) -> Iterator[Duration]:
    """The values of `lateness_ms`, `solve_ms`, `power_flow_ms`, `publish_ms` or `ack_ms`.

    One for each step (the greatest of its rows), decision (`solve_ms`) or instruction (`ack_ms`). Left
    out is what was not to be measured: the lateness of an un-paced step, anything of a skipped step,
    the solution of a controller that did not decide, the acknowledgement of an instruction that was
    superseded before it was sent.
    """
    if what == "ack_ms":
        columns = ["device", "issued_at", "sent_at", "acked_at", "outcome"]
        for row in rows(run_dir, "setpoints", columns):
            sent, acked = row["sent_at"], row["acked_at"]
            if sent is not None or row["outcome"] != Outcome.SUPERSEDED:
                ms = None if sent is None or acked is None else (acked - sent) / timedelta(milliseconds=1)
                yield Duration(row["device"], row["issued_at"].astimezone(UTC), ms)
        return
    columns = ["step", "time", "planned_at", "controller", "origin", what]
    for step, group in groupby(rows(run_dir, "steps", columns), lambda row: row["step"]):
        turns = list(group)
        time = turns[0]["time"].astimezone(UTC)
        if what == "solve_ms":
            for turn in turns:
                due = turn["controller"] is not None and turn["origin"] not in UNDECIDED
                if due or turn[what] is not None:
                    yield Duration(f"controller {turn['controller']}", time, turn[what])
            continue
        values = [turn[what] for turn in turns if turn[what] is not None]
        unpaced = what == "lateness_ms" and turns[0]["planned_at"] is None
        skipped = turns[0]["origin"] == Origin.SKIPPED
        if values or not (unpaced or skipped):
            yield Duration(f"step {step}", time, max(values, default=None))


def quantile(values: Sequence[float], percent: float) -> float:
    """The least of `values`, in rising order, that `percent` of them do not exceed (nearest rank)."""
    return values[max(math.ceil(percent / 100 * len(values)), 1) - 1]


@dataclass(frozen=True, slots=True)
class Envelope:
    """A region that one controller published for one device."""

    controller: str
    target: str
    seq: int
    issued_at: datetime
    valid_from: datetime
    valid_until: datetime
    axes: tuple[str, ...]
    A: Array
    """(rows, axes), rows of unit length, so that an excess is a distance"""
    b: Array

    def excess(self, row: Mapping[str, Any]) -> float | None:
        """How far a device's point lies outside; `None` if a coordinate is missing."""
        point = [row[axis] for axis in self.axes]
        if None in point:
            return None
        return float((self.A @ np.array(point) - self.b).max(initial=-math.inf))


def envelopes(run_dir: Path) -> Iterator[Envelope]:
    """The envelopes of a run in the order of issue."""
    for batch in batches(run_dir, "regions"):
        for row in batch.filter(pc.equal(batch["kind"], Kind.ENVELOPE.value)).to_pylist():
            matrix = np.array(row["A"], dtype=float).reshape(len(row["b"]), len(row["axes"]))
            length = np.linalg.norm(matrix, axis=1)
            yield Envelope(
                controller=row["controller"],
                target=row["target"],
                seq=row["seq"],
                issued_at=row["issued_at"].astimezone(UTC),
                valid_from=row["valid_from"].astimezone(UTC),
                valid_until=row["valid_until"].astimezone(UTC),
                axes=tuple(row["axes"]),
                A=matrix / length[:, None],
                b=np.array(row["b"], dtype=float) / length,
            )


class InForce:
    """The envelopes that bind, step by step.

    A controller's newest word for a device counts from its first span's beginning, and all of the word
    before it, its later spans too, is superseded then.
    """

    def __init__(self, run_dir: Path) -> None:
        self._coming = envelopes(run_dir)
        self._following = next(self._coming, None)
        self._known: dict[tuple[str, str], list[Envelope]] = {}
        self._begun: dict[tuple[str, str], int] = {}

    def at(self, time: datetime) -> dict[str, dict[str, Envelope]]:
        """By device and controller; ask with rising times."""
        while self._following is not None and self._following.issued_at <= time:
            new = self._following
            self._known.setdefault((new.target, new.controller), []).append(new)
            self._following = next(self._coming, None)
        found: dict[str, dict[str, Envelope]] = {}
        for key, known in self._known.items():
            newest = max((e.seq for e in known if e.valid_from <= time), default=-1)
            newest = self._begun[key] = max(newest, self._begun.get(key, -1))
            known[:] = [e for e in known if e.seq >= newest and time < e.valid_until]
            for e in known:
                if e.seq == newest and e.valid_from <= time:
                    found.setdefault(e.target, {})[e.controller] = e
        return found


def device_steps(run_dir: Path) -> Iterator[tuple[datetime, dict[str, dict[str, Any]]]]:
    """Each step's time and its rows of `devices` by name; nothing in a step that has none."""
    pieces = chain.from_iterable(batch.to_pylist() for batch in batches(run_dir, "devices"))
    groups = groupby(pieces, lambda row: row["time"])
    coming = next(groups, None)
    for time in step_times(run_dir)[0]:
        if coming is None or coming[0] != time:
            yield time, {}
            continue
        yield time, {row["device"]: row for row in coming[1]}
        coming = next(groups, None)


@dataclass
class Energy:
    """What one device injected and took over a run [MWh], in the steps in which that is known."""

    generated: float | None = None
    """`None`: it is known of no step"""
    consumed: float | None = None
    """taken from the grid, positive"""
    known_steps: int = 0
    """steps for which they are known: not those in which a real device was silent"""
    curtailed: float | None = None
    """`None`: nothing of it can be curtailed"""
    curtailed_steps: int = 0
    """steps for which `curtailed` is known"""
    controlled: bool = True
    """whether it is a device and not a load or fixed generator"""


def total(values: Iterable[float | None]) -> float | None:
    """The sum of what is known; `None`: nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def energies(run_dir: Path, every: timedelta) -> dict[str, Energy]:
    """Energy by device, in the order of first appearance; steps without a value add nothing."""
    hours = every / timedelta(hours=1)
    found: dict[str, Energy] = {}
    for row in rows(run_dir, "devices", ["device", "p_mw", "curtailed_mw", "state"]):
        energy = found.setdefault(row["device"], Energy(controlled=row["state"] != UNCONTROLLED))
        if (p_mw := row["p_mw"]) is not None:
            energy.generated = (energy.generated or 0.0) + max(p_mw, 0.0) * hours
            energy.consumed = (energy.consumed or 0.0) + max(-p_mw, 0.0) * hours
            energy.known_steps += 1
        if row["curtailed_mw"] is not None:
            energy.curtailed = (energy.curtailed or 0.0) + row["curtailed_mw"] * hours
            energy.curtailed_steps += 1
    return found
