"""Findings: the form of a verdict, and the sentences that it is told in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from scenarios.expectations import (
    AnyExpectation,
    Decided,
    DivergenceBelow,
    EnvelopeRespected,
    InterchangeRespected,
    LoadingBelow,
    VoltageWithin,
    percent,
)

Shared = VoltageWithin | LoadingBelow | EnvelopeRespected | InterchangeRespected | Decided | DivergenceBelow
"""Expectations about a share of values."""

ROUNDING = 1e-9
"""How far outside a limit is the arithmetic's doing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worst:
    """The value farthest outside its limits or, when all are inside, closest to them."""

    name: str
    """bus, branch, device, controller or step"""
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


def shared(
    expected: Shared,
    what: str,
    count: int,
    *,
    checked: int,
    missing: int,
    gap: str | None,
    uncounted: Mapping[str, int],
    worst: Worst | None,
    spoken: str | None,
) -> Verdict:
    """The verdict of an expectation about a share of values."""
    aside = "".join(f"; {n} {reason.replace('_', ' ')} do not count" for reason, n in uncounted.items())
    if not checked:
        return unfounded(expected, f"{expected.what}: nothing to check{aside}", uncounted)
    share = count / checked
    said = f"{count} of {checked} {what} ({percent(share)}, required {percent(expected.share)})"
    return Verdict(
        what=expected.what,
        required=str(expected),
        held=share >= expected.share - 1e-12,
        sentence=said + (f"; {spoken}" if spoken else "") + lacking(missing, gap) + aside,
        checked=checked,
        missing=missing,
        share=share,
        uncounted=uncounted,
        worst=worst,
    )


def unfounded(expected: AnyExpectation, why: str, uncounted: Mapping[str, int] | None = None) -> Verdict:
    """The verdict of an expectation that found nothing to check: it did not hold."""
    return Verdict(
        what=expected.what,
        required=str(expected),
        held=False,
        sentence=why,
        checked=0,
        uncounted=uncounted or {},
    )


def leading(by: float) -> str:
    """What leads to the worst value, which is `by` outside its limits."""
    return "worst: " if by > ROUNDING else "closest to the limit: "


def distance(by: float, unit: str) -> str:
    """How far a value is outside its limits, or inside."""
    if abs(by) <= ROUNDING:
        return "on the limit"
    return f"{abs(by):.3g} {unit} {'outside' if by > 0 else 'inside'}"


def lacking(missing: int, first: str | None) -> str:
    """How many values are missing, and of what the first."""
    return f"; {missing} missing" + (f", first of {first}" if first else "") if missing else ""


def labelled(kind: str, name: str) -> str:
    """`bus 17`; a name that says what it is stands alone: `line:3`."""
    return name if ":" in name or name.startswith(kind) else f"{kind} {name}"


def stamp(time: datetime | None) -> str:
    """An instant for people."""
    return "" if time is None else f"{time:%Y-%m-%d %H:%M:%S} UTC"
