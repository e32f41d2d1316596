"""Daily: the same values every day, known in advance or, with a spread, known as well as forecasts are.

    value = given(hour) * exp(s z - s^2 / 2),   s^2 = ln(1 + spread^2),   z the deviation of `deviations.py`

so that the factor beside what is given has mean one and standard deviation `spread`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Literal

import numpy as np

from simulators.deviations import Quantiles, StochasticProcess
from simulators.processes import (
    Array,
    Calendar,
    Instants,
    Process,
    distinct,
    finite,
    hour_of_day,
    passed,
    started,
    within,
)

TIME = re.compile(r"([01]\d|2[0-3]):([0-5]\d)")


@dataclass(frozen=True, slots=True, kw_only=True)
class DailyProfile:
    """Given values at times of the day (UTC) in per unit, of either sign, repeated every day.

    Raises:
        ValueError: no value, a key that is not `HH:MM`, a value that is not finite, a parameter out of its
            range.
    """

    values: Mapping[str, float]
    """by time of the day, e.g. `{"00:00": 0.3, "07:30": -0.5}`"""
    between: Literal["step", "linear"] = "step"
    """a value holds until the next, or goes straight to it; over midnight too"""
    spread: float = 0.0
    """standard deviation of what comes, relative to what is given; 0: it comes as it is given"""
    correlation_h: float = 2.0
    """hours in which the deviation's autocorrelation falls to 1/e"""
    rho: float = 0.0
    """correlation of the deviations of two sites, also where they follow different profiles of this kind"""

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("DailyProfile: values is empty; give at least one, e.g. {'00:00': 0.5}")
        within(self, spread="[0, 3]", correlation_h="(0, inf)", rho="[0, 1]")
        if self.between not in ("step", "linear"):
            raise ValueError(f"DailyProfile: between = {self.between!r} must be 'step' or 'linear'")
        for key in self.values:
            # YAML reads an unquoted 12:30 as the number 750.
            if not isinstance(key, str) or not TIME.fullmatch(key):
                raise ValueError(f'DailyProfile: time {key!r} must be a quoted "HH:MM" from 00:00 to 23:59')
        finite(f"DailyProfile: values of {list(self.values)}", list(self.values.values()))
        object.__setattr__(self, "values", MappingProxyType(dict(sorted(self.values.items()))))

    def at(self, instants: Instants) -> Array:
        """Values [pu] at UTC instants."""
        hours = np.array([int(key[:2]) + int(key[3:]) / 60 for key in self.values])
        values = np.array(list(self.values.values()), dtype=float)
        hour = hour_of_day(instants)
        if self.between == "linear":
            return np.asarray(np.interp(hour, hours, values, period=24.0))
        # Index -1, before the first time of the day, is the last value of the day before.
        return np.asarray(values[np.searchsorted(hours, hour + 1e-9, side="right") - 1])

    def build(self, names: Sequence[str], start: datetime, every: timedelta, seed: int) -> Process:
        """The process of the sites `names`; without a spread all alike, and nothing in it is random.

        Raises:
            ValueError: as `Profile.build`.
        """
        if not self.spread:
            return DailyProcess(self, distinct(names), Calendar(start, every))
        variance = np.log(1 + self.spread**2)
        factor = Quantiles(lambda z: np.asarray(np.exp(np.sqrt(variance) * z - variance / 2)))

        def value(at: Instants, z: Array) -> Array:
            return np.asarray(self.at(at)[:, None, None] * factor(z))

        return StochasticProcess(
            "daily",
            names,
            value,
            start=start,
            every=every,
            seed=seed,
            correlation_h=self.correlation_h,
            rho=self.rho,
        )


class DailyProcess:
    """A schedule: known in advance, so that its forecast is exact."""

    def __init__(self, profile: DailyProfile, names: tuple[str, ...], calendar: Calendar) -> None:
        self.names = names
        self._profile = profile
        self._calendar = calendar
        self._step = -1

    def advance(self, step: int) -> None:
        """Move on to `step`; raises ValueError for a step of the past."""
        passed(self._step, step)
        self._step = step

    def now(self) -> Array:
        """(names,) values at the current step [pu]."""
        value = self._profile.at(self._calendar.at(np.array([started(self._step)])))
        return np.repeat(value, len(self.names))

    def forecast(self, intervals: int) -> tuple[Array, Array]:
        """The schedule itself (intervals, names) [pu], and zeros as its standard deviation."""
        at = self._calendar.at(started(self._step) + np.arange(1, intervals + 1))
        mean = np.repeat(self._profile.at(at)[:, None], len(self.names), axis=1)
        return mean, np.zeros_like(mean)

    def must_cover(self, until: datetime) -> None:
        """Holds for every instant: the schedule has no end."""
