"""Forecast: injections over the coming intervals, as known at one moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import numpy.typing as npt

from controllers.point_estimate import Bounds, Factor, Points, Scheme, points

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Forecast:
    """Mean and spread of injections [MW] over coming intervals, as known at `issued_at`.

    Interval `i` (from 0) is the instant `issued_at + (i + 1) * every`. A plan of one's own
    injections is a forecast without spread.

    Raises:
        ValueError: shapes that do not fit, a value that is not finite, a negative spread,
            a time without its zone.
    """

    issued_at: datetime
    every: timedelta
    names: tuple[str, ...]
    """what is forecast: devices (available power) and loads"""
    mean: Array
    """(intervals, names) [MW], injection positive"""
    std: Array
    """(intervals, names) [MW]"""

    def __post_init__(self) -> None:
        if self.issued_at.tzinfo is None:
            raise ValueError(f"forecast: issued_at {self.issued_at} has no time zone")
        for label in ("mean", "std"):
            values = np.array(getattr(self, label), dtype=float)
            if values.ndim != 2 or values.shape[1] != len(self.names):
                raise ValueError(
                    f"forecast: {label} has shape {values.shape}, needed is (intervals, {len(self.names)})"
                )
            if not np.isfinite(values).all():
                raise ValueError(f"forecast issued at {self.issued_at}: {label} is not finite")
            values.setflags(write=False)
            object.__setattr__(self, label, values)
        if self.mean.shape != self.std.shape:
            raise ValueError(f"forecast: mean is {self.mean.shape}, std is {self.std.shape}")
        if (self.std < 0).any():
            raise ValueError(f"forecast issued at {self.issued_at}: a spread is negative")

    @classmethod
    def empty(cls, issued_at: datetime, every: timedelta) -> Forecast:
        """A forecast of nothing."""
        return cls(issued_at, every, (), np.zeros((0, 0)), np.zeros((0, 0)))

    @property
    def times(self) -> tuple[datetime, ...]:
        """The instants of the intervals."""
        return tuple(self.issued_at + (i + 1) * self.every for i in range(len(self.mean)))

    def at(self, interval: int) -> dict[str, float]:
        """Mean injection [MW] by name at one interval; nothing where nothing is forecast."""
        if not 0 <= interval < len(self.mean):
            return {}
        return dict(zip(self.names, self.mean[interval].tolist(), strict=True))

    def points(
        self,
        factors: Sequence[Factor] | None = None,
        *,
        scheme: Scheme = "2m",
        correlation: Array | None = None,
        bounds: Mapping[str, Bounds] | None = None,
    ) -> Points:
        """Weighted cases that stand for mean and spread; see `controllers.point_estimate.points`."""
        return points(self, factors, scheme=scheme, correlation=correlation, bounds=bounds)
