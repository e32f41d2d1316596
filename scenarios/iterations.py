"""Iterations: how iterative methods came to a run's decisions, and the verdict on their last gap."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from scenarios.expectations import GapBelow, percent
from scenarios.figures import rows
from scenarios.findings import Verdict, Worst, distance, labelled, lacking, leading, stamp, unfounded


@dataclass(frozen=True, slots=True, kw_only=True)
class IterationFigures:
    """One iteration of one decision. What is not known is `None`, never zero."""

    time: datetime
    controller: str
    number: int
    phase: str
    lower: float | None
    """[$]"""
    upper: float | None
    gap: float | None
    cuts: int
    ended: str | None
    """of the last one of a decision: why there is no other"""


_COLUMNS = ("time", "controller", "number", "phase", "lower", "upper", "gap", "cuts", "ended")


def iterations(run_dir: Path) -> tuple[IterationFigures, ...]:
    """All iterations of a run's decisions."""
    found = (dict(row) for row in rows(run_dir, "iterations", _COLUMNS))
    return tuple(IterationFigures(**row | {"time": row["time"].astimezone(UTC)}) for row in found)


def gap(run_dir: Path, expected: GapBelow) -> Verdict:
    """Whether each decision of an iterative method was left with a gap within the limit; one without a bound
    is missing, and one that was not made has no iterations: see `decided`."""
    last = [one for one in iterations(run_dir) if one.ended is not None]
    if not last:
        return unfounded(expected, "gap: no controller has recorded iterations")
    known = [(one.gap, one) for one in last if one.gap is not None]
    count = sum(value <= expected.below for value, _ in known)
    missing = len(last) - len(known)
    share, worst, spoken = count / len(last), None, ""
    if known:
        value, one = max(known, key=lambda pair: pair[0])
        by = value - expected.below
        worst = Worst(name=one.controller, time=one.time, value=value, by=by)
        spoken = (
            f"; {leading(by)}{labelled('controller', one.controller)} with {value:.2e}, {stamp(one.time)}, "
            f"{distance(by, '')}"
        )
    first = next((f"{one.controller}, {stamp(one.time)}" for one in last if one.gap is None), None)
    said = f"{count} of {len(last)} decisions with a gap below {expected.below:g}"
    return Verdict(
        what=expected.what,
        required=str(expected),
        held=share >= expected.share - 1e-12,
        sentence=f"{said} ({percent(share)}, required {percent(expected.share)}){spoken}"
        + lacking(missing, first),
        checked=len(last),
        missing=missing,
        share=share,
        worst=worst,
    )
