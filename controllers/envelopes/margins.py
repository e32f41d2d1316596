"""Margin: the part of each row's room that is kept back for forecast errors of the background load.

W is affine in what the loads inject: a load that injects xi more than forecast takes h xi of a row. With the
power factor of the load constant, h follows from the row's coefficients at the load's bus.

| symbol | here             | meaning                                                      | unit         |
|--------|------------------|--------------------------------------------------------------|--------------|
| xi     |                  | injection of a load less its forecast                        | MW           |
| h      |                  | what one MW of xi takes of a row, `a + tan(phi) b` at its bus | pu^2/MW or 1 |
| sigma  | `std_mw`         | standard deviation of xi                                     | MW           |
| rho    | `correlation`    | correlation of any two loads                                 | 1            |
| Sigma  |                  | covariance, sigma_i sigma_j rho_ij, rho_ii = 1               | MW^2         |
| eps    | `epsilon`        | how often a row may be exceeded                              | 1            |
| z      | `factor`         | standard deviations that are kept back                       | 1            |

    gaussian   z sqrt(h' Sigma h),  z = Phi^-1(1 - eps)                    xi is Gaussian
    cantelli   z sqrt(h' Sigma h),  z = sqrt((1 - eps) / eps)               any xi with this covariance
    interval   max h' xi over |xi_i| <= z sigma_i = z |h|' sigma            any xi in the box

    h' Sigma h = (1 - rho) sum (h_i sigma_i)^2 + rho (sum h_i sigma_i)^2

Each bound is for one row; that none of several is exceeded is less certain. A load of which nothing is
forecast stands at its nominal power without a spread: give it a forecast.
Source: Calafiore and El Ghaoui 2006 (chance constraints of one linear row), whose bounds these are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import isfinite, sqrt
from statistics import NormalDist
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from controllers.envelopes.allowable import AllowableRegion

Array = npt.NDArray[np.float64]

MarginKind = Literal["gaussian", "cantelli", "interval"]

LARGEST = 100_000_000
"""Entries of the loads' coefficients above which a margin that needs each of them is refused (800 MB)."""

_OF = {
    "gaussian": ("epsilon", "correlation"),
    "cantelli": ("epsilon", "correlation"),
    "interval": ("sigmas",),
}


@dataclass(frozen=True, slots=True)
class Margin:
    """What to keep back.

    Raises:
        ValueError: a value out of its range.
    """

    kind: MarginKind
    epsilon: float = 0.05
    """(gaussian, cantelli) probability with which a row may be exceeded; below 0.5 for gaussian"""
    correlation: float = 0.0
    """(gaussian, cantelli) of any two loads, 0 to 1"""
    sigmas: float = 2.0
    """(interval) half width of each load's interval in standard deviations"""

    def __post_init__(self) -> None:
        if self.kind not in get_args(MarginKind):
            raise ValueError(f"margin: kind {self.kind!r} is none of {', '.join(get_args(MarginKind))}")
        for name in ("epsilon", "correlation", "sigmas"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
                raise ValueError(f"margin: {name} {value!r} is no number")
        most = 0.5 if self.kind == "gaussian" else 1.0
        if not 0 < self.epsilon < most:
            raise ValueError(
                f"margin: epsilon {self.epsilon:g} is not between 0 and {most:g}; 0.05 lets a row be "
                "exceeded one time in twenty"
            )
        if not 0 <= self.correlation <= 1:
            raise ValueError(f"margin: correlation {self.correlation:g} is not in 0..1")
        if not self.sigmas > 0:
            raise ValueError(f"margin: sigmas {self.sigmas:g} must be above 0")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Margin:
        """From a controller's option, e.g. `{kind: gaussian, epsilon: 0.05}`.

        Raises:
            ValueError: no kind, a word that the kind does not have, a value out of its range.
        """
        if not isinstance(options, Mapping):
            raise ValueError(
                f"margin: {options!r} is no mapping; give e.g. {{kind: gaussian, epsilon: 0.05}}"
            )
        kinds = ", ".join(get_args(MarginKind))
        if "kind" not in options:
            raise ValueError(f"margin: no kind in {dict(options)!r}; give one of {kinds}")
        kind = options["kind"]
        if isinstance(kind, str) and kind in _OF and (unknown := sorted(set(options) - {"kind", *_OF[kind]})):
            raise ValueError(f"margin: {kind} has no {', '.join(unknown)}; it has {', '.join(_OF[kind])}")
        return cls(**{f.name: options[f.name] for f in fields(cls) if f.name in options})

    @property
    def factor(self) -> float:
        """Standard deviations that are kept back."""
        match self.kind:
            case "gaussian":
                return NormalDist().inv_cdf(1 - self.epsilon)
            case "cantelli":
                return sqrt((1 - self.epsilon) / self.epsilon)
        return self.sigmas


class Reserve:
    """A margin, ready to be taken for many forecasts: the loads' coefficients are found once.

    Raises:
        ValueError: too many loads on too many buses for a margin that needs the coefficient of each load.
    """

    def __init__(self, rows: AllowableRegion, margin: Margin) -> None:
        self._rows, self._margin = rows, margin
        network, loads = rows.site.network, tuple(rows.site.loads.values())
        self._names = [load.name for load in loads]
        self._slope = np.array([load.q_mvar / load.p_mw if load.p_mw else 0.0 for load in loads])
        self._buses = [load.bus for load in loads]
        # Loads that move together need their sum alone, and that is one solve.
        self._apart = margin.kind == "interval" or margin.correlation < 1
        self._of: tuple[Array, Array, Array] | None = None
        if self._apart and loads:
            n = len(network.buses)
            blocks = 1 + (rows.edges + 1) // 2 if margin.kind == "interval" else 4
            if n * len(loads) * blocks > LARGEST:
                raise ValueError(
                    f"margin: {len(loads)} loads on {n} buses have more than {LARGEST} coefficients to keep; "
                    "give kind gaussian or cantelli with correlation 1, which need none of them"
                )
            s = network.sensitivities(self._buses)
            self._of = (
                s.v2_per_mw + self._slope * s.v2_per_mvar,
                (s.p_per_mw + self._slope * s.p_per_mvar)[rows.rated],
                (s.q_per_mw + self._slope * s.q_per_mvar)[rows.rated],
            )
        self._compiled = self._blocks()

    def _blocks(self) -> list[Array]:
        """Matrices (buses or branches, loads) whose products with sigma or its square make up the rows."""
        if self._of is None:
            return []
        v2, p, q = self._of
        if self._margin.kind != "interval":
            return [v2 * v2, p * p, p * q, q * q]
        angles = self._rows.angles
        half = len(angles) // 2 if len(angles) % 2 == 0 else len(angles)
        return [np.abs(v2), *(np.abs(np.cos(a) * p + np.sin(a) * q) for a in angles[:half])]

    def __call__(self, std_mw: Mapping[str, float]) -> Array:
        """(rows,) what is kept back of each row, never negative.

        Args:
            std_mw: standard deviation by load [MW]; a load that it does not name has none.
        """
        sigma = np.array([std_mw.get(name, 0.0) for name in self._names])
        if not sigma.any():
            return np.zeros(len(self._rows))
        margin = self._margin
        if margin.kind == "interval":
            v2, *edges = (block @ sigma for block in self._compiled)
            times = 2 if 2 * len(edges) == self._rows.edges else 1
            return margin.factor * np.concatenate([v2, v2, *(edges * times)])
        rho = margin.correlation
        variance = np.zeros(len(self._rows))
        cos, sin = np.cos(self._rows.angles)[:, None], np.sin(self._rows.angles)[:, None]
        if rho < 1:
            v2, pp, pq, qq = (block @ (sigma * sigma) for block in self._compiled)
            edges = cos**2 * pp + 2 * cos * sin * pq + sin**2 * qq
            variance += (1 - rho) * np.concatenate([v2, v2, edges.ravel()])
        if rho > 0:
            variance += rho * self._together(sigma) ** 2
        return margin.factor * np.sqrt(np.maximum(variance, 0.0))

    def _together(self, sigma: Array) -> Array:
        """(rows,) h' sigma, but for its sign."""
        network, rows = self._rows.site.network, self._rows
        p, q = network.total(self._buses, sigma), network.total(self._buses, self._slope * sigma)
        v2, *flows = network.state(p, q, 0.0)  # a source without voltage leaves the injections' part
        flow_p, flow_q = (flow[rows.rated] for flow in flows)
        cos, sin = np.cos(rows.angles)[:, None], np.sin(rows.angles)[:, None]
        return np.concatenate([v2, v2, (cos * flow_p + sin * flow_q).ravel()])
