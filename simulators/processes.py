"""Process: how the sites that follow one profile behave over time, in per unit of a rating.

A profile is a set of parameters; built for named sites it becomes a process, which is stepped, read,
and asked for forecasts. Processes know nothing of mosaik: a simulator wraps them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import isfinite, isnan
from typing import Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Instants = npt.NDArray[np.datetime64]

HOUR = np.timedelta64(1, "h")


class Process(Protocol):
    """The values of some sites, step by step."""

    names: tuple[str, ...]
    """the sites (devices or loads) that follow this profile"""

    def advance(self, step: int) -> None:
        """Move to step 0, 1, 2, ...; steps left out are passed through, the present one changes nothing.

        Raises:
            ValueError: a step of the past, or one for which there is no value.
        """
        ...

    def now(self) -> Array:
        """(names,) values at the current step [pu]."""
        ...

    def forecast(self, intervals: int) -> tuple[Array, Array]:
        """Mean and standard deviation [pu], each (intervals, names), of the steps to come, row 0 being
        the next one, as known at the current step."""
        ...

    def must_cover(self, until: datetime) -> None:
        """Check that there is a value for every step before `until`.

        Raises:
            ValueError: there is not; the message says where the values begin or end.
        """
        ...


class Profile(Protocol):
    """Parameters of a process."""

    def build(self, names: Sequence[str], start: datetime, every: timedelta, seed: int) -> Process:
        """The process of the sites `names`, whose step k is the instant `start + k * every`.

        Raises:
            ValueError: a site named twice, a start without its zone, an interval or seed out of range.
        """
        ...


@dataclass(frozen=True, slots=True)
class Calendar:
    """The instants of the steps.

    Raises:
        ValueError: a start without a time zone, an interval that is not positive.
    """

    start: datetime
    every: timedelta

    def __post_init__(self) -> None:
        if self.start.tzinfo is None:
            raise ValueError(
                f"profile: start {self.start} has no time zone; give it as UTC, e.g. ...T00:00:00Z"
            )
        if self.every <= timedelta(0):
            raise ValueError(f"profile: every {self.every} must be positive")

    def at(self, steps: int | npt.NDArray[np.int64]) -> Instants:
        """UTC instants of the steps, in their shape."""
        first = np.datetime64(self.start.astimezone(UTC).replace(tzinfo=None), "us")
        return np.asarray(first + np.asarray(steps) * np.timedelta64(self.every, "us"))


def distinct(names: Sequence[str]) -> tuple[str, ...]:
    """The names as a tuple.

    Raises:
        ValueError: a name that is empty or given twice.
    """
    counts = Counter(names)
    twice = sorted(name for name, count in counts.items() if not name or count > 1)
    if twice:
        raise ValueError(f"profile: site {twice[0]!r} is empty or named twice; name each site once")
    return tuple(names)


def passed(current: int, step: int) -> range:
    """The steps to go through from `current` (-1 before the first) to `step`.

    Raises:
        ValueError: `step` lies before `current`.
    """
    if step < max(current, 0):
        raise ValueError(f"process: step {step} is asked for at step {current}; a process only moves forward")
    return range(current + 1, step + 1)


def started(current: int) -> int:
    """The current step.

    Raises:
        ValueError: no step was begun.
    """
    if current < 0:
        raise ValueError("process: no step was begun; call advance(0) first")
    return current


def within(profile: object, **intervals: str) -> None:
    """Check fields of a profile against intervals such as `[0, 1)` or `(0, inf)`.

    Raises:
        ValueError: naming every field that lies outside, its value and its interval.
    """
    wrong = []
    for field, interval in intervals.items():
        low, high = (float(end) for end in interval[1:-1].split(","))
        x = getattr(profile, field)
        above = x >= low if interval[0] == "[" else x > low
        below = x <= high if interval[-1] == "]" else x < high
        if isnan(x) or not (above and below):
            wrong.append(f"{field} = {x} must lie in {interval}")
    if wrong:
        raise ValueError(f"{type(profile).__name__}: " + "; ".join(wrong))


def finite(label: str, values: Sequence[float]) -> None:
    """Raises ValueError when one of the values is not a finite number."""
    for i, x in enumerate(values):
        if not isfinite(x):
            raise ValueError(f"{label}: value {i} is {x}; give a finite number")


def hour_of_day(at: Instants) -> Array:
    """Hours since midnight UTC, in [0, 24)."""
    return np.asarray((at - at.astype("datetime64[D]")) / HOUR, dtype=float)


def day_of_year(at: Instants) -> Array:
    """Days since the year began, from 1 (the first instant of 1 January) on, with fraction."""
    return np.asarray(1.0 + (at - at.astype("datetime64[Y]")) / (24 * HOUR), dtype=float)


def is_weekend(at: Instants) -> npt.NDArray[np.bool_]:
    """Whether the UTC day is a Saturday or Sunday."""
    # Day 0, 1970-01-01, was a Thursday; Monday is 0.
    weekday = (at.astype("datetime64[D]").astype(np.int64) + 3) % 7
    return np.asarray(weekday >= 5)
