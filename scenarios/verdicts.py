"""Verdicts: what became of a scenario's expectations, from nothing but the tables of its run.

A value that is missing counts as not held: one that is null, and one of a bus, branch or device that
other steps have and this step has not. An expectation that found nothing to check did not hold.
"""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import chain, groupby
from pathlib import Path
from typing import Any, assert_never

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from controllers.contract import Kind, Origin
from scenarios.expectations import (
    AnyExpectation,
    CurtailedBelow,
    Decided,
    DurationBelow,
    EnvelopeRespected,
    Expectation,
    LoadingBelow,
    VoltageWithin,
    percent,
)
from scenarios.run_directory import write_json
from simulators.journal import batches, replacing
from simulators.tables import Outcome

VERDICTS = "verdicts.json"
JUNIT = "junit.xml"

UNDECIDED = frozenset({Origin.HELD, Origin.DEFAULT, Origin.SKIPPED})
"""Origins of a step for which a controller was due and did not decide."""

_ROUNDING = 1e-9
"""How far outside a limit is the arithmetic's doing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worst:
    """The value farthest outside its limits or, when all are inside, closest to them."""

    name: str
    """bus, branch, device or controller"""
    time: datetime | None
    value: float | None
    by: float | None
    """how far outside, in the value's unit; negative inside"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of one expectation."""

    what: str
    required: str
    """the expectation in words"""
    held: bool
    sentence: str
    """what was found: how much, and the worst: which, when, by how much"""
    checked: int
    """values that count, the missing ones among them"""
    missing: int = 0
    share: float | None = None
    """of `checked` that held; `None` where the expectation is about one figure"""
    observed: float | None = None
    """that figure; `None` if it is not known"""
    uncounted: Mapping[str, int] = field(default_factory=dict)
    """values that do not count, by reason"""
    worst: Worst | None = None


def judge(run_dir: Path, expectations: Sequence[AnyExpectation]) -> tuple[Verdict, ...]:
    """Judge a run and write `verdicts.json` and `junit.xml` into its folder.

    Raises:
        simulators.journal.NoTables: the folder holds no tables.
    """
    verdicts = tuple(evaluate(run_dir, expectation) for expectation in expectations)
    write_json(
        run_dir / VERDICTS,
        {"held": all(v.held for v in verdicts), "verdicts": [asdict(v) for v in verdicts]},
    )
    with replacing(run_dir / JUNIT) as file:
        ET.ElementTree(_junit(run_dir.name, verdicts)).write(file, encoding="utf-8", xml_declaration=True)
    return verdicts


def evaluate(run_dir: Path, expectation: AnyExpectation) -> Verdict:
    """Judge one expectation; reads the tables piece by piece and writes nothing."""
    match expectation:
        case VoltageWithin(between=(low, high)):
            return _within(run_dir, expectation, "buses", "bus", low, high)
        case LoadingBelow(below=limit):
            return _within(run_dir, expectation, "branches", "branch", -math.inf, limit)
        case EnvelopeRespected():
            return _envelope_respected(run_dir, expectation)
        case Decided():
            return _decided(run_dir, expectation)
        case DurationBelow():
            return _duration(run_dir, expectation)
        case CurtailedBelow():
            return _curtailed(run_dir, expectation)
        case _:
            assert_never(expectation)


# Voltages and loadings


def _within(
    run_dir: Path, expected: VoltageWithin | LoadingBelow, table: str, key: str, low: float, high: float
) -> Verdict:
    steps = len(step_times(run_dir)[0])
    known: Counter[str] = Counter()
    unrated: Counter[str] = Counter()
    held = 0
    worst: Worst | None = None
    for batch in batches(run_dir, table):
        values = batch[expected.what].to_numpy(zero_copy_only=False)
        present = ~np.isnan(values)
        known.update(_tally(batch[key], present))
        if table == "branches":
            # A flow without a loading is that of a branch without a rating: nothing is missing.
            unrated.update(_tally(batch[key], ~present & batch["p_mw"].is_valid().to_numpy(False)))
        excess = np.maximum(low - values, values - high)
        held += int((excess <= _ROUNDING).sum())
        if present.any():
            i = int(np.nanargmax(excess))
            if worst is None or worst.by is None or excess[i] > worst.by:
                worst = Worst(
                    name=batch[key][i].as_py(),
                    time=_utc(batch["time"][i]),
                    value=float(values[i]),
                    by=float(excess[i]),
                )
    gaps = {name: steps - known[name] - unrated[name] for name in sorted(known | unrated)}
    missing = sum(max(gap, 0) for gap in gaps.values())
    what, unit = ("voltages", "pu") if table == "buses" else ("loadings", "%")
    return _shared(
        expected,
        what,
        held,
        checked=known.total() + missing,
        missing=missing,
        gap=next((f"{key} {name}" for name, gap in gaps.items() if gap > 0), None),
        uncounted={"without_rating": unrated.total()} if unrated else {},
        worst=worst,
        spell=lambda w: f"{_named(key, w.name)} with {w.value:.5g} {unit}",
        unit=unit,
    )


def _tally(names: pa.Array, chosen: np.ndarray[Any, np.dtype[np.bool_]]) -> dict[str, int]:
    counts = pc.value_counts(names.filter(pa.array(chosen)))
    return dict(zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True))


# Envelopes


@dataclass(frozen=True, slots=True)
class _Envelope:
    controller: str
    target: str
    seq: int
    issued_at: datetime
    valid_from: datetime
    valid_until: datetime
    axes: tuple[str, ...]
    A: np.ndarray[Any, np.dtype[np.float64]]
    b: np.ndarray[Any, np.dtype[np.float64]]

    def excess(self, row: Mapping[str, Any]) -> float | None:
        """How far a device's point lies outside; `None` if a coordinate is missing."""
        point = [row[axis] for axis in self.axes]
        if None in point:
            return None
        return float((self.A @ np.array(point) - self.b).max(initial=-math.inf))


def _envelopes(run_dir: Path) -> Iterator[_Envelope]:
    for batch in batches(run_dir, "regions"):
        for row in batch.filter(pc.equal(batch["kind"], Kind.ENVELOPE.value)).to_pylist():
            A = np.array(row["A"], dtype=float).reshape(len(row["b"]), len(row["axes"]))
            length = np.linalg.norm(A, axis=1)  # of unit length, an excess is a distance
            yield _Envelope(
                row["controller"],
                row["target"],
                row["seq"],
                *(row[name].astimezone(UTC) for name in ("issued_at", "valid_from", "valid_until")),
                tuple(row["axes"]),
                A / length[:, None],
                np.array(row["b"], dtype=float) / length,
            )


def _envelope_respected(run_dir: Path, expected: EnvelopeRespected) -> Verdict:
    coming = _envelopes(run_dir)
    following = next(coming, None)
    issued: dict[str, list[_Envelope]] = {}
    checked = held = missing = without = 0
    gap: str | None = None
    worst: Worst | None = None
    for time, rows in _device_rows(run_dir):
        while following is not None and following.issued_at <= time:
            issued.setdefault(following.target, []).append(following)
            following = next(coming, None)
        for target, envelopes in issued.items():
            issued[target] = [e for e in envelopes if time < e.valid_until]
        for device in sorted(rows.keys() | issued.keys()):
            newest = {
                e.controller: e
                for e in sorted(issued.get(device, ()), key=lambda e: e.seq)
                if e.valid_from <= time
            }
            if not newest:
                without += device in rows
                continue
            checked += 1
            found = [e.excess(rows[device]) if device in rows else None for e in newest.values()]
            if None in found:
                missing += 1
                gap = gap or f"device {device} at {_clock(time)}"
                continue
            by = max(x for x in found if x is not None)
            held += by <= expected.tolerance_mw
            if worst is None or worst.by is None or by > worst.by:
                worst = Worst(name=device, time=time, value=rows[device]["p_mw"], by=by)
    return _shared(
        expected,
        "points of devices in every valid envelope",
        held,
        checked=checked,
        missing=missing,
        gap=gap,
        uncounted={"without_region": without} if without else {},
        worst=worst,
        spell=lambda w: (
            f"{_named('device', w.name)}" + ("" if w.value is None else f" with {w.value:.6g} MW")
        ),
        unit="MW",
    )


def _device_rows(run_dir: Path) -> Iterator[tuple[datetime, dict[str, Any]]]:
    """Each step's time and its devices, by name; nothing for a step without devices."""
    rows = chain.from_iterable(batch.to_pylist() for batch in batches(run_dir, "devices"))
    groups = groupby(rows, lambda row: row["time"].astimezone(UTC))
    time, group = next(groups, (None, iter(())))
    for step in step_times(run_dir)[0]:
        if time != step:
            yield step, {}
            continue
        yield step, {row["device"]: row for row in group}
        time, group = next(groups, (None, iter(())))


# Decisions and durations


def _decided(run_dir: Path, expected: Decided) -> Verdict:
    origins: Counter[str | None] = Counter()
    first: Worst | None = None
    for row in _rows(run_dir, "steps", ["time", "controller", "origin"]):
        if row["controller"] is not None:
            origins[row["origin"]] += 1
            if first is None and (row["origin"] is None or row["origin"] in UNDECIDED):
                first = Worst(name=row["controller"], time=row["time"].astimezone(UTC), value=None, by=None)
    missing = origins[None]
    held = sum(n for origin, n in origins.items() if origin is not None and origin not in UNDECIDED)
    instead = ", ".join(
        f"{n} {origin or 'missing'}" for origin, n in origins.most_common() if origin in (*UNDECIDED, None)
    )
    return _shared(
        expected,
        "due decisions made",
        held,
        checked=origins.total(),
        missing=missing,
        gap=None,
        uncounted={},
        worst=first,
        spell=lambda w: f"{_named('controller', w.name)} ({instead} in all)",
        unit="",
    )


@dataclass(frozen=True, slots=True)
class Duration:
    """One measured duration, or one that should have been measured."""

    name: str
    time: datetime
    ms: float | None


def durations(run_dir: Path, what: str) -> Iterator[Duration]:
    """The values of `lateness_ms`, `solve_ms`, `power_flow_ms`, `publish_ms` or `ack_ms`, missing ones as `None`.

    One for each step (the greatest of its rows), decision (`solve_ms`) or instruction (`ack_ms`). Left
    out is what was not to be measured: the lateness of an un-paced step, anything of a skipped step,
    the solution of a controller that did not decide, an instruction that was superseded before it was sent.
    """
    if what == "ack_ms":
        for row in _rows(run_dir, "setpoints", ["device", "issued_at", "sent_at", "acked_at", "outcome"]):
            if row["sent_at"] is None and row["outcome"] == Outcome.SUPERSEDED:
                continue
            both = row["acked_at"] is not None and row["sent_at"] is not None
            ms = (row["acked_at"] - row["sent_at"]) / timedelta(milliseconds=1) if both else None
            yield Duration(row["device"], row["issued_at"].astimezone(UTC), ms)
        return
    columns = ["step", "time", "planned_at", "controller", "origin", what]
    for _, group in groupby(_rows(run_dir, "steps", columns), lambda row: row["step"]):
        rows = list(group)
        time = rows[0]["time"].astimezone(UTC)
        if what == "solve_ms":
            for row in rows:
                if row["controller"] is not None and (
                    row[what] is not None or row["origin"] not in UNDECIDED
                ):
                    yield Duration(row["controller"], time, row[what])
            continue
        values = [row[what] for row in rows if row[what] is not None]
        if values:
            yield Duration(f"step {rows[0]['step']}", time, max(values))
        elif rows[0]["origin"] != Origin.SKIPPED and (
            what != "lateness_ms" or rows[0]["planned_at"] is not None
        ):
            yield Duration(f"step {rows[0]['step']}", time, None)


def quantile(sorted_values: Sequence[float], rank: float) -> float:
    """The least of the values that `rank` percent of them do not exceed (nearest rank)."""
    return sorted_values[max(math.ceil(rank / 100 * len(sorted_values)), 1) - 1]


def _duration(run_dir: Path, expected: DurationBelow) -> Verdict:
    missing = 0
    values: list[float] = []
    worst: Worst | None = None
    for duration in durations(run_dir, expected.what):
        if duration.ms is None:
            missing += 1
        values.append(math.inf if duration.ms is None else duration.ms)
        if duration.ms is not None and (worst is None or worst.value is None or duration.ms > worst.value):
            worst = Worst(
                name=duration.name,
                time=duration.time,
                value=duration.ms,
                by=duration.ms - expected.limit_ms,
            )
    if not values:
        why = "; the clock was not paced, use live or scaled" if expected.what == "lateness_ms" else ""
        return _nothing(expected, f"{expected.what}: nothing was measured{why}")
    observed = quantile(sorted(values), expected.rank)
    held = observed <= expected.limit_ms + _ROUNDING
    figure = "is not known" if math.isinf(observed) else f"is {observed:.4g} ms"
    sentence = f"{expected.what} {expected.statistic} of {len(values)} values {figure}, limit {expected.limit_ms:g} ms"
    if worst is not None:
        sentence += f"; greatest: {worst.value:.4g} ms, {worst.name}, {_clock(worst.time)}"
    return Verdict(
        what=expected.what,
        required=str(expected),
        held=held,
        sentence=sentence + _of_missing(missing, None),
        checked=len(values),
        missing=missing,
        observed=None if math.isinf(observed) else observed,
        worst=worst,
    )


# Curtailment


def _curtailed(run_dir: Path, expected: CurtailedBelow) -> Verdict:
    times, every = step_times(run_dir)
    if every is None:
        return _nothing(
            expected, "curtailed_mwh: a run of less than two steps does not tell how long a step is"
        )
    hours = every / timedelta(hours=1)
    by_device: Counter[str] = Counter()
    known: Counter[str] = Counter()
    for batch in batches(run_dir, "devices", ["device", "curtailed_mw"]):
        batch = batch.filter(batch["curtailed_mw"].is_valid())
        for device, mw in zip(batch["device"].to_pylist(), batch["curtailed_mw"].to_pylist(), strict=True):
            known[device] += 1
            by_device[device] += mw * hours
    if not known:
        return _nothing(expected, "curtailed_mwh: no device could be curtailed")
    gaps = {device: len(times) - n for device, n in sorted(known.items()) if n < len(times)}
    missing = sum(gaps.values())
    total = math.fsum(by_device.values())
    device, most = max(by_device.items(), key=lambda item: item[1])
    sentence = f"{total:.4g} MWh curtailed, limit {expected.below:g} MWh; most: {_named('device', device)} with {most:.4g} MWh"
    if missing:
        sentence += ", at least"
    return Verdict(
        what=expected.what,
        required=str(expected),
        held=not missing and total <= expected.below + _ROUNDING,
        sentence=sentence + _of_missing(missing, next((f"device {name}" for name in gaps), None)),
        checked=known.total() + missing,
        missing=missing,
        observed=total,
        worst=Worst(name=device, time=None, value=most, by=total - expected.below),
    )


# What they share


def step_times(run_dir: Path) -> tuple[list[datetime], timedelta | None]:
    """The times of a run's steps, and the length of a step: `None` for less than two steps."""
    times: list[datetime] = []
    first = last = None
    for row in _rows(run_dir, "steps", ["step", "time"]):
        if row["step"] != last:
            times.append(row["time"].astimezone(UTC))
        first, last = row["step"] if first is None else first, row["step"]
    if len(times) < 2 or first is None or last is None:
        return times, None
    return times, (times[-1] - times[0]) / (last - first)


def _rows(run_dir: Path, table: str, columns: list[str]) -> Iterator[dict[str, Any]]:
    return chain.from_iterable(batch.to_pylist() for batch in batches(run_dir, table, columns))


def _shared(
    expected: VoltageWithin | LoadingBelow | EnvelopeRespected | Decided,
    what: str,
    count: int,
    *,
    checked: int,
    missing: int,
    gap: str | None,
    uncounted: Mapping[str, int],
    worst: Worst | None,
    spell: Callable[[Worst], str],
    unit: str,
) -> Verdict:
    """The verdict of an expectation about a share of values."""
    aside = "".join(f"; {n} {reason.replace('_', ' ')} do not count" for reason, n in uncounted.items())
    if not checked:
        return _nothing(expected, f"{expected.what}: nothing to check{aside}", uncounted)
    share = count / checked
    held = share >= expected.share - 1e-12
    sentence = f"{count} of {checked} {what} hold {expected}: {percent(share)}"
    if isinstance(expected, EnvelopeRespected | Decided):
        sentence = f"{count} of {checked} {what} ({percent(share)}, required {percent(expected.share)})"
    if worst is not None:
        sentence += f"; {_beyond(worst, unit)}{spell(worst)}, {_clock(worst.time)}"
        if worst.by is not None and math.isfinite(worst.by):
            sentence += f", {abs(worst.by):.3g} {unit} {'outside' if worst.by > _ROUNDING else 'inside'}"
    return Verdict(
        what=expected.what,
        required=str(expected),
        held=held,
        sentence=sentence + _of_missing(missing, gap) + aside,
        checked=checked,
        missing=missing,
        share=share,
        uncounted=uncounted,
        worst=worst,
    )


def _nothing(expected: AnyExpectation, why: str, uncounted: Mapping[str, int] | None = None) -> Verdict:
    return Verdict(
        what=expected.what,
        required=str(expected),
        held=False,
        sentence=why,
        checked=0,
        uncounted=uncounted or {},
    )


def _beyond(worst: Worst, unit: str) -> str:
    if not unit:
        return "first without: "
    return "closest to the limit: " if worst.by is not None and worst.by <= _ROUNDING else "worst: "


def _of_missing(missing: int, gap: str | None) -> str:
    return f"; {missing} missing" + (f", first {gap}" if gap else "") if missing else ""


def _named(kind: str, name: str) -> str:
    """`bus 17`; a name that says what it is stands alone: `bus:17`, `line:3`."""
    return name if ":" in name or name.startswith(kind) else f"{kind} {name}"


def _clock(time: datetime | None) -> str:
    return "" if time is None else f"{time:%Y-%m-%d %H:%M:%S} UTC"


def _utc(scalar: pa.Scalar) -> datetime:
    time: datetime = scalar.as_py()
    return time.astimezone(UTC)


def _junit(run: str, verdicts: Iterable[Verdict]) -> ET.Element:
    cases = []
    for verdict in verdicts:
        case = ET.Element("testcase", classname=run, name=_xml(verdict.required))
        if not verdict.held:
            ET.SubElement(case, "failure", type=verdict.what, message=_xml(verdict.sentence))
        else:
            ET.SubElement(case, "system-out").text = _xml(verdict.sentence)
        cases.append(case)
    failures = sum(case.find("failure") is not None for case in cases)
    suite = ET.Element("testsuite", name=run, tests=str(len(cases)), failures=str(failures), errors="0")
    suite.extend(cases)
    return suite


def _xml(text: str) -> str:
    """Without the characters that XML cannot hold."""
    return re.sub(r"[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", text)


__all__ = [
    "JUNIT",
    "UNDECIDED",
    "VERDICTS",
    "AnyExpectation",
    "Duration",
    "Expectation",
    "Verdict",
    "Worst",
    "durations",
    "evaluate",
    "judge",
    "quantile",
    "step_times",
]
