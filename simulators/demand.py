"""Demand: a load with two peaks a day, and random deviations from it.

    value = day(local hour) * exp(s z - s^2 / 2),   s^2 = ln(1 + spread^2)

so that the factor beside the day's shape has mean one and standard deviation `spread`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

from simulators.deviations import Quantiles, StochasticProcess
from simulators.processes import Array, Instants, finite, hour_of_day, is_weekend, within

# fmt: off
WEEKDAY = (0.42, 0.36, 0.33, 0.32, 0.33, 0.39, 0.54, 0.72, 0.78, 0.74, 0.70, 0.70,
           0.74, 0.71, 0.65, 0.63, 0.67, 0.79, 0.93, 1.00, 0.95, 0.84, 0.70, 0.55)
WEEKEND = (0.48, 0.41, 0.36, 0.34, 0.33, 0.34, 0.38, 0.48, 0.63, 0.75, 0.81, 0.85,
           0.88, 0.82, 0.73, 0.68, 0.69, 0.78, 0.90, 0.95, 0.90, 0.81, 0.70, 0.57)
# fmt: on
"""Share of the nominal load at each full hour, of the form of a residential standard load profile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadProfile:
    """Consumption in per unit of the nominal load; never negative.

    It is a share of the nominal value, so a load of -0.1 MW takes its sign from there.

    Raises:
        ValueError: a parameter out of its range, a day without 24 values.
    """

    weekday: tuple[float, ...] = WEEKDAY
    """24 values, one for each full local hour, linear in between"""
    weekend: tuple[float, ...] = WEEKEND
    """the same for Saturday and Sunday"""
    spread: float = 0.1
    """standard deviation, relative to the day's shape"""
    correlation_h: float = 2.0
    """hours in which the deviation's autocorrelation falls to 1/e"""
    rho: float = 0.3
    """correlation of the deviations of two sites"""
    utc_offset_h: float = 0.0
    """local time minus UTC"""

    def __post_init__(self) -> None:
        within(self, spread="[0, 3]", correlation_h="(0, inf)", rho="[0, 1]", utc_offset_h="[-14, 14]")
        for label, day in (("weekday", self.weekday), ("weekend", self.weekend)):
            if len(day) != 24:
                raise ValueError(
                    f"LoadProfile: {label} has {len(day)} values; give 24, one for each full hour"
                )
            finite(f"LoadProfile: {label}", day)
            if min(day) < 0:
                raise ValueError(
                    f"LoadProfile: {label} has {min(day)} at hour {day.index(min(day))}; use >= 0"
                )

    def shape(self, at: Instants) -> Array:
        """Expected consumption [pu] at UTC instants (times,)."""
        local = at + np.timedelta64(timedelta(hours=self.utc_offset_h), "us")
        days = np.array([self.weekday, self.weekend], dtype=float)
        hour = hour_of_day(local)
        begun = hour.astype(np.intp)
        # The hour after 23 is the first of the next day, which may be of the other sort.
        after = local + np.timedelta64(1, "h")
        low = days[is_weekend(local).astype(np.intp), begun]
        high = days[is_weekend(after).astype(np.intp), (begun + 1) % 24]
        return np.asarray(low + (hour - begun) * (high - low))

    def build(self, names: Sequence[str], start: datetime, every: timedelta, seed: int) -> StochasticProcess:
        """The process of the sites `names`; raises ValueError as `Profile.build`."""
        variance = np.log(1 + self.spread**2)
        factor = Quantiles(lambda z: np.asarray(np.exp(np.sqrt(variance) * z - variance / 2)))

        def value(at: Instants, z: Array) -> Array:
            return np.asarray(self.shape(at)[:, None, None] * factor(z))

        return StochasticProcess(
            "load",
            names,
            value,
            start=start,
            every=every,
            seed=seed,
            correlation_h=self.correlation_h,
            rho=self.rho,
        )
