"""Uncertainty of microgrids: sun, wind, loads and heat, each moved by one factor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from controllers.devices import FlexibleLoad, PvInverter, WindTurbine
from controllers.forecast import Forecast
from controllers.interchange.reading import Reading
from controllers.microgrid import Microgrid
from controllers.point_estimate import NORMAL, Bounds, Factor, Points, Scheme
from controllers.site import Site

KINDS = ("sun", "wind", "loads", "heat")
"""What is uncertain in a microgrid."""


@dataclass(frozen=True)
class Uncertainty:
    """The factors of a group of microgrids, four each; those of different microgrids are independent.

    Args:
        moments: (skewness, kurtosis) by kind, of the injection or of the heat demand; normal where not given.
        correlation: (4, 4) of the kinds within each microgrid, of injections and of the heat demand: loads
            that are high when the heat is have one below zero; independent if not given.

    Raises:
        ValueError: a kind that does not exist, moments that no distribution has, a matrix that does not fit.
    """

    site: Site
    grids: Sequence[Microgrid]
    moments: Mapping[str, tuple[float, float]]
    correlation: Sequence[Sequence[float]] | None

    def __post_init__(self) -> None:
        if unknown := [kind for kind in self.moments if kind not in KINDS]:
            raise ValueError(f"prediction: moments of {unknown}; there are {list(KINDS)}")
        for kind, (skewness, kurtosis) in self.moments.items():
            Factor((kind,), skewness, kurtosis)  # which no distribution has is said at once
        if self.correlation is not None and np.shape(self.correlation) != (len(KINDS), len(KINDS)):
            raise ValueError(f"prediction: the correlation is of {list(KINDS)}, so 4 x 4")
        if self.correlation is not None:  # whatever kinds a microgrid has: a part of a good one is good
            one = np.ones((1, len(KINDS)))
            any_day = Forecast(datetime.min.replace(tzinfo=UTC), self.site.every, KINDS, one, one)
            any_day.points(correlation=np.asarray(self.correlation, dtype=float))

    def points(self, reading: Reading, scheme: Scheme) -> Points:
        """Cases of what was read."""
        columns = {(grid.name, kind): names for grid in self.grids for kind, names in self._of(grid).items()}
        factors = [Factor(names, *self.moments.get(kind, NORMAL)) for (_, kind), names in columns.items()]
        correlation = None
        if self.correlation is not None:
            given = np.asarray(self.correlation, dtype=float)
            whose = np.array([who for who, _ in columns])
            at = [KINDS.index(kind) for _, kind in columns]
            correlation = np.where(whose[:, None] == whose, given[np.ix_(at, at)], 0.0)
        bounds: dict[str, Bounds] = {}
        for grid in self.grids:
            for name in grid.devices:
                match device := self.site.devices[name]:
                    case PvInverter():
                        bounds[name] = (0.0, device.s_mva)
                    case WindTurbine():
                        bounds[name] = (0.0, max(device.p_mw, float(reading.column(name).max())))
                    case FlexibleLoad():
                        bounds[name] = (-np.inf, 0.0)
            if grid.heat is not None:
                bounds[grid.heat] = (0.0, np.inf)
        return reading.forecast.points(factors, scheme=scheme, correlation=correlation, bounds=bounds)

    def _of(self, grid: Microgrid) -> dict[str, tuple[str, ...]]:
        """What is uncertain in a microgrid, by kind: the columns that move together."""
        by_kind: dict[str, list[str]] = {kind: [] for kind in KINDS}
        for name in grid.devices:
            match self.site.devices[name]:
                case PvInverter():
                    by_kind["sun"].append(name)
                case WindTurbine():
                    by_kind["wind"].append(name)
                case FlexibleLoad():
                    by_kind["loads"].append(name)
        if grid.heat is not None:
            by_kind["heat"].append(grid.heat)
        return {kind: tuple(names) for kind, names in by_kind.items() if names}
