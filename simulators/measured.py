"""Measured: values from a user's table, and forecasts from nothing but its rows up to now.

| symbol | here     | meaning                                            |
|--------|----------|----------------------------------------------------|
| y(t)   |          | value of the last row at or before t               |
| t, h   |          | the current instant, and a lead time               |
| d      | `days`   | least whole number of days with t + h - d <= t     |
| c      | `correlation_h` | correlation time of the deviation           |
| m(t)   |          | mean issued at t for t + h                         |
| n_0    | `TRUST`  | weight of the configured spread                    |

    m(t) = y(t + h - d) + exp(-h/c) (y(t) - y(t - 1 day))       if the file reaches back to t - 1 day
    m(t) = y(t)                                                 otherwise
    var  = (n_0 spread^2 (1 - exp(-2 h/c)) + sum of (y(s + h) - m(s))^2) / (n_0 + number of them)

m is kept between the least and the greatest value seen at its time of issue. The sum runs over the past
forecasts by the rule in use whose targets are known by now, those of the week before the start included.
The spread never falls as the lead grows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt

from simulators import series
from simulators.processes import Array, Calendar, Instants, distinct, passed, started, within
from simulators.series import Series, stamp

Steps = npt.NDArray[np.int64]

DAY = np.timedelta64(1, "D")
TRUST = 12
"""As many errors as the configured spread counts for."""
HISTORY = timedelta(days=7)
"""How far before the start forecasts are tried to learn their error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableProfile:
    """Values from a CSV or Parquet file, one column a site or one for all; each holds until the next row.

    Raises:
        ValueError: a parameter out of its range.
    """

    file: Path
    """.csv or .parquet, with a header"""
    time: str = "time"
    """column with the instants"""
    column: str | None = None
    """the column that all sites follow; None: the one of the site's name, or the only one that there is"""
    scale: float = 1.0
    """factor from the file's unit to per unit"""
    naive_is_utc: bool = False
    """whether times without a zone are UTC; if not they are refused"""
    hold: timedelta | None = None
    """how long a value holds, more is a gap; None: the usual (median) distance of two rows"""
    spread: float = 0.1
    """standard deviation [pu] of a forecast far ahead, as long as too few forecasts could be checked"""
    correlation_h: float = 2.0
    """hours in which the present deviation from yesterday falls to 1/e"""

    def __post_init__(self) -> None:
        within(self, scale="(-inf, inf)", spread="[0, inf)", correlation_h="(0, inf)")
        if self.hold is not None and self.hold <= timedelta(0):
            raise ValueError(f"TableProfile: hold = {self.hold} must be positive")

    def read(self, names: Sequence[str]) -> Series:
        """The checked series of the sites, a column a site, or one for all.

        Raises:
            ValueError: naming file, column, row and value.
        """
        return series.read(
            Path(self.file),
            tuple(names),
            time=self.time,
            column=self.column,
            naive_is_utc=self.naive_is_utc,
            hold=None if self.hold is None else np.timedelta64(self.hold, "us"),
        )

    def build(self, names: Sequence[str], start: datetime, every: timedelta, seed: int) -> TableProcess:
        """The process of the sites `names`; nothing in it is random.

        Raises:
            ValueError: as `Profile.build`; a fault of the file; a start before its first row.
        """
        return TableProcess(self, distinct(names), Calendar(start, every), self.read(distinct(names)))


class TableProcess:
    """A table of values read step by step. Only rows at or before the current step are looked at."""

    def __init__(
        self, profile: TableProfile, names: tuple[str, ...], calendar: Calendar, table: Series
    ) -> None:
        self.names = names
        self._profile = profile
        self._calendar = calendar
        self._table = table
        values = profile.scale * table.values
        self._values = np.broadcast_to(values, (len(values), len(names)))
        # Row i holds the extremes of the rows up to i, so that reading row i looks at no later one.
        self._least = np.broadcast_to(np.minimum.accumulate(values), self._values.shape)
        self._greatest = np.broadcast_to(np.maximum.accumulate(values), self._values.shape)
        first = np.datetime64(calendar.at(0).item(), "us")
        if first < table.times[0]:
            raise ValueError(
                f"{table.file}: begins at {stamp(table.times[0])}, after the start {stamp(first)}; "
                "add earlier rows or start later"
            )
        every = np.timedelta64(calendar.every, "us")
        self._earliest = -int((first - table.times[0]) // every)
        """the step (zero or negative) from which on the file has values"""
        self._seasonal = -int((first - table.times[0] - DAY) // every)
        """the step from which on the file reaches back a day"""
        self._day_steps = DAY / every
        self._lead_h = calendar.every / timedelta(hours=1)
        self._step = -1
        self._squares = np.zeros((0, len(names)))
        """(leads, names) sums of squared errors of the forecasts for each lead"""

    def advance(self, step: int) -> None:
        """Move on to `step`.

        Raises:
            ValueError: a step of the past, or one at which the file has no value any more.
        """
        steps = passed(self._step, step)
        self._check_end(np.datetime64(self._calendar.at(step).item(), "us") + np.timedelta64(1, "us"))
        for k in steps:
            if k == self._seasonal:
                # The errors of the other rule say nothing about this one.
                self._squares = self._squares[:0]
            self._step = k
            leads = np.arange(1, len(self._squares) + 1)
            leads = leads[k - leads >= self._first_issue()]
            if len(leads):
                issued = k - leads
                self._squares[: len(leads)] += (self._mean(issued, leads) - self._at(k)) ** 2

    def now(self) -> Array:
        """(names,) values at the current step [pu]."""
        return self._at(started(self._step))

    def forecast(self, intervals: int) -> tuple[Array, Array]:
        """Mean and standard deviation (intervals, names) [pu] from the rows up to now."""
        now = started(self._step)
        for lead in range(len(self._squares) + 1, intervals + 1):
            issued = np.arange(self._first_issue(), now - lead + 1)
            errors = self._mean(issued, np.full(len(issued), lead)) - self._at(issued + lead)
            self._squares = np.vstack([self._squares, (errors**2).sum(axis=0)])
        leads = np.arange(1, intervals + 1)
        seen = np.maximum(now - leads + 1 - self._first_issue(), 0)[:, None]
        grown = -np.expm1(-2 * leads * self._lead_h / self._profile.correlation_h)[:, None]
        prior = TRUST * self._profile.spread**2 * grown
        variance = (prior + self._squares[:intervals]) / (TRUST + seen)
        return self._mean(np.full(intervals, now), leads), np.maximum.accumulate(np.sqrt(variance))

    def must_cover(self, until: datetime) -> None:
        """Raises ValueError when the file ends before `until`."""
        if until.tzinfo is None:
            raise ValueError(f"{self._table.file}: until {until} has no time zone")
        self._check_end(np.datetime64(until.astimezone(UTC).replace(tzinfo=None), "us"))

    def _check_end(self, until: np.datetime64) -> None:
        last, end = self._table.times[-1], self._table.end
        if until > end:
            raise ValueError(
                f"{self._table.file}: row {len(self._table.times)}, {stamp(last)}, is the last and holds "
                f"until {stamp(end)}, but values are needed until {stamp(until)}; add rows or end earlier"
            )

    def _first_issue(self) -> int:
        """The step of the first forecast that is checked to learn the error."""
        rule = self._seasonal if self._step >= self._seasonal else self._earliest
        return max(rule, -int(HISTORY / self._calendar.every))

    def _rows(self, at: Instants) -> npt.NDArray[np.intp]:
        return np.asarray(np.searchsorted(self._table.times, at, side="right") - 1)

    def _at(self, steps: int | Steps) -> Array:
        return np.asarray(self._values[self._rows(self._calendar.at(steps))])

    def _mean(self, issued: Steps, leads: Steps) -> Array:
        """(pairs, names) means issued at steps for steps + leads, from rows at or before `issued`."""
        now = self._calendar.at(issued)
        rows = self._rows(now)
        present = self._values[rows]
        yesterday = now - DAY
        reaches = yesterday >= self._table.times[0]
        days = np.ceil(leads / self._day_steps).astype(np.int64)
        # A row index of -1, where the file does not reach back, is replaced by the present below.
        like = np.where(reaches, self._rows(self._calendar.at(issued + leads) - days * DAY), rows)
        like = np.minimum(like, rows)  # no row after now, whatever the rounding
        before = np.where(reaches, self._rows(yesterday), rows)
        decay = np.exp(-leads * self._lead_h / self._profile.correlation_h)[:, None]
        mean = self._values[like] + decay * (present - self._values[before])
        return np.asarray(np.clip(mean, self._least[rows], self._greatest[rows]))
