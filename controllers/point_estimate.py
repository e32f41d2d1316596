"""Hong's point estimate: mean and spread of what follows from an uncertain forecast, by a few cases of it.

The uncertainty of a forecast is that of a few factors, each of which moves all its columns together, over the
whole horizon. A case moves one factor and leaves the others where they are expected; two or three cases a
factor, each with a weight, have the moments of the factors. Whatever is computed for each case, costs or
schedules, has as its mean the weighted mean of the results.

Source: H. P. Hong, An efficient point estimate method for probabilistic analysis, Reliability Engineering and
System Safety 59 (1998); schemes 2m and 2m+1.

| symbol      | here             | meaning                                                       | unit |
|-------------|------------------|---------------------------------------------------------------|------|
| m           | `m`              | factors that have a spread                                    | 1    |
| mu, sigma   | `mean`, `std`    | of the forecast's columns in each interval                    | MW   |
| lambda_3    | `skewness`       | third standardised central moment of a factor                 | 1    |
| lambda_4    | `kurtosis`       | fourth standardised central moment, of a normal one 3         | 1    |
| xi_1, xi_2  | `xi`             | where a factor's cases lie, in standard deviations            | 1    |
| w           | `w`, `weights`   | weights of the cases                                          | 1    |
| C, L        | `C`, `L`         | correlation of the factors, and C = L L', L lower triangular  | 1    |
| z           | `z`              | independent variables of mean 0 and variance 1, factors = L z | 1    |

- Exact: the mean of a sum of polynomials, one in each z, up to degree 3 (2m) and 4 (2m+1), and the spread of
  what is linear in the factors.
- The cumulants of correlated factors add up with powers of L: kappa_3 of the factors is (L o L o L) kappa_3
  of z, the fourth likewise (o: element by element), because the z are independent. The formula with the
  inverse of L in place of the inverse of its powers neglects cross-cumulants; it would give correlated normal
  factors z that are not normal. Where no z has the cumulants found, a normal one is taken, and counted.
- 2m+1 has a central case whose weight is below zero as soon as the sum of 1 / (lambda_4 - lambda_3^2) is
  above 1, four normal factors for example. Weights below zero are good for means of results that were found
  one by one; they are no probabilities, and a joint problem over the cases must refuse them.
- 2m spreads its cases as the square root of m: far out for many factors, and clipped there if bounds say so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from controllers.contract import ControlError

if TYPE_CHECKING:
    from controllers.forecast import Forecast

Array = npt.NDArray[np.float64]
Scheme = Literal["2m", "2m+1"]
Bounds = tuple[float | Array, float | Array]
"""least and greatest value of a column: one number or (intervals,), infinite where there is none"""

NORMAL = (0.0, 3.0)
"""Skewness and kurtosis of a normal variable."""

ROUNDING = 1e-9
"""How far a kurtosis may be below what is possible, and a correlation from symmetry."""


class NegativeWeight(ControlError):
    """The weights of a point estimate are no probabilities, where probabilities are needed."""


class Distribution(Protocol):
    """What is needed of a frozen distribution of `scipy.stats`."""

    def stats(self, moments: str) -> Any:
        """The moments asked for by letter."""
        ...


@dataclass(frozen=True, slots=True)
class Factor:
    """One source of uncertainty: its columns move together, each by its own spread, over the whole horizon.

    Skewness and kurtosis are those of the injection: where a demand is skewed to one side, the injection of
    its load is skewed to the other.

    Raises:
        ValueError: no columns, a column named twice, or moments that no distribution has.
    """

    columns: tuple[str, ...]
    """names in the forecast"""
    skewness: float = NORMAL[0]
    kurtosis: float = NORMAL[1]
    """of a normal distribution 3"""

    def __post_init__(self) -> None:
        if not self.columns or len(set(self.columns)) != len(self.columns):
            raise ValueError(f"factor: columns {self.columns}; each of one or more names must be there once")
        if not _possible(self.skewness, self.kurtosis):
            raise ValueError(
                f"factor of {', '.join(self.columns)}: no distribution has skewness {self.skewness} and "
                f"kurtosis {self.kurtosis}, which is at least 1 + skewness^2 (3 for a normal distribution)"
            )

    @classmethod
    def like(cls, columns: tuple[str, ...], distribution: Distribution) -> Factor:
        """A factor with the shape of a distribution; mean and spread are still the forecast's."""
        return cls(columns, *shape(distribution))


def shape(distribution: Distribution) -> tuple[float, float]:
    """Skewness and kurtosis (3 for a normal one) of a distribution of `scipy.stats`.

    Raises:
        ValueError: (by `Factor`) it has no such moments.
    """
    skewness, excess = distribution.stats(moments="sk")
    return float(skewness), float(excess) + 3.0


@dataclass(frozen=True, eq=False)
class Points:
    """Weighted cases of a forecast."""

    weights: Array
    """(K,) their sum is 1"""
    cases: Array
    """(K, intervals, names) [MW]"""
    central: int | None = None
    """which case is the mean forecast; `None`: none is"""
    clipped: int = 0
    """how many values of the cases were beyond their bounds"""
    normal: int = 0
    """for how many independent variables a normal one had to stand in"""

    def __post_init__(self) -> None:
        self.weights.setflags(write=False)
        self.cases.setflags(write=False)

    def __iter__(self) -> Iterator[tuple[float, Array]]:
        """Weight and case (intervals, names), one after the other."""
        return iter(zip(self.weights.tolist(), self.cases, strict=True))

    def moments(self, values: Array) -> tuple[Array, Array]:
        """Mean and standard deviation (...) of results of the cases.

        Weights below zero can make the variance negative; it is zero then.

        Args:
            values: (K, ...), in the order of the cases.

        Raises:
            ValueError: not one result for each case.
        """
        results = np.asarray(values, dtype=float)
        if results.ndim == 0 or len(results) != len(self.weights):
            raise ValueError(f"point estimate: results {results.shape} for {len(self.weights)} cases")
        mean = np.tensordot(self.weights, results, 1)
        variance = np.tensordot(
            self.weights, (results - mean) ** 2, 1
        )  # E[Z^2] - E[Z]^2, without its rounding
        return mean, np.sqrt(np.maximum(variance, 0.0))

    def require_probabilities(self) -> Points:
        """Itself, if no weight is below zero.

        Raises:
            NegativeWeight: one is.
        """
        if self.weights.min() < 0:
            raise NegativeWeight(
                f"point estimate: weight {self.weights.min():.4g} of case {self.weights.argmin()} is no "
                "probability; use scheme '2m', fewer factors, or solve each case by itself"
            )
        return self


def points(
    forecast: Forecast,
    factors: Sequence[Factor] | None = None,
    *,
    scheme: Scheme = "2m",
    correlation: Array | None = None,
    bounds: Mapping[str, Bounds] | None = None,
) -> Points:
    """Cases of a forecast, with its mean and spread; 2m, or 2m+1 with the central one first.

    Columns of no factor stay at their mean, and so do factors without spread. Without any spread the mean is
    the only case.

    Args:
        forecast: mean and spread.
        factors: `None`: each column is a normal factor of its own.
        scheme: how many cases.
        correlation: (factors, factors) of the factors; `None`: they are independent.
        bounds: by column, what is physically possible; every case is clipped to it.

    Raises:
        ValueError: a scheme that does not exist, a column that is not forecast or in two factors, a
            correlation that is none, bounds that cross or do not fit.
    """
    if scheme not in ("2m", "2m+1"):
        raise ValueError(f"point estimate: scheme {scheme!r} is neither '2m' nor '2m+1'")
    if factors is None:
        factors = [Factor((name,)) for name in forecast.names]
    at = _columns(forecast, factors)
    C = _correlation(correlation, len(factors))
    live = [r for r, columns in enumerate(at) if (forecast.std[:, columns] > 0).any()]
    L = np.asarray(np.linalg.cholesky(C[np.ix_(live, live)]), dtype=float)
    shapes, normal = _independent(L, [factors[r] for r in live])

    steps, weights = [], []
    for z, (skewness, kurtosis) in enumerate(shapes):
        for xi, w in zip(*_concentrations(skewness, kurtosis, len(live), scheme), strict=True):
            step = np.zeros_like(forecast.mean)
            for r, moved in zip(live, xi * L[:, z], strict=True):
                step[:, at[r]] = moved * forecast.std[:, at[r]]
            steps.append(step)
            weights.append(w)
    central = None
    if scheme == "2m+1" or not live:
        central = 0
        steps.insert(0, np.zeros_like(forecast.mean))
        rest = 1.0 - sum(1.0 / (kurtosis - skewness**2) for skewness, kurtosis in shapes)
        weights.insert(0, 0.0 if abs(rest) < ROUNDING else rest)
    cases, clipped = _clip(forecast, forecast.mean + np.array(steps), bounds or {})
    return Points(np.array(weights), cases, central, clipped, normal)


def _concentrations(skewness: float, kurtosis: float, m: int, scheme: Scheme) -> tuple[Array, Array]:
    """xi (2,), in standard deviations, and w (2,) of one variable of m."""
    half, sign = skewness / 2, np.array([1.0, -1.0])
    if scheme == "2m":
        root = np.sqrt(m + half**2)
        xi = half + sign * root
        return xi, -sign * xi[::-1] / (m * 2 * root)
    xi = half + sign * np.sqrt(kurtosis - 3 * half**2)
    return xi, sign / (xi * (xi[0] - xi[1]))


def _independent(L: Array, factors: Sequence[Factor]) -> tuple[list[tuple[float, float]], int]:
    """Skewness and kurtosis of each z, and how many had to be normal because nothing has what was found."""
    third = np.linalg.solve(L**3, np.array([factor.skewness for factor in factors]))
    fourth = np.linalg.solve(L**4, np.array([factor.kurtosis - 3.0 for factor in factors])) + 3.0
    found = list(zip(third.tolist(), fourth.tolist(), strict=True))
    kept = [moments if _possible(*moments) else NORMAL for moments in found]
    return kept, sum(not _possible(*moments) for moments in found)


def _possible(skewness: float, kurtosis: float) -> bool:
    return bool(np.isfinite([skewness, kurtosis]).all() and kurtosis >= (1 + skewness**2) * (1 - ROUNDING))


def _columns(forecast: Forecast, factors: Sequence[Factor]) -> list[list[int]]:
    """Which columns of the forecast belong to each factor."""
    where = {name: i for i, name in enumerate(forecast.names)}
    seen: set[str] = set()
    for factor in factors:
        if unknown := [name for name in factor.columns if name not in where]:
            raise ValueError(f"point estimate: {unknown} is not forecast; forecast is {list(where)}")
        if twice := seen & set(factor.columns):
            raise ValueError(f"point estimate: {sorted(twice)} belongs to two factors; leave it to one")
        seen |= set(factor.columns)
    return [[where[name] for name in factor.columns] for factor in factors]


def _correlation(correlation: Array | None, m: int) -> Array:
    """(m, m), checked."""
    if correlation is None:
        return np.eye(m)
    C = np.asarray(correlation, dtype=float)
    if C.shape != (m, m):
        raise ValueError(f"point estimate: correlation has shape {C.shape}, needed is ({m}, {m})")
    if not (np.isfinite(C).all() and np.allclose(C, C.T, atol=ROUNDING) and np.allclose(np.diag(C), 1.0)):
        raise ValueError("point estimate: a correlation is symmetric, finite, and 1 on its diagonal")
    try:
        np.linalg.cholesky(C)
    except np.linalg.LinAlgError as error:
        raise ValueError(
            "point estimate: the correlation is not positive definite; make one factor of those that always "
            "move together"
        ) from error
    return C


def _clip(forecast: Forecast, cases: Array, bounds: Mapping[str, Bounds]) -> tuple[Array, int]:
    """The cases within their bounds, and how many values were not."""
    clipped = 0
    for name, (low, high) in bounds.items():
        if name not in forecast.names:
            raise ValueError(f"point estimate: bounds of {name!r}, which is not forecast")
        limits = [np.asarray(limit, dtype=float) for limit in (low, high)]
        if any(limit.shape not in ((), (len(forecast.mean),)) for limit in limits):
            raise ValueError(f"point estimate: bounds of {name!r} fit no forecast of {len(forecast.mean)}")
        if not (limits[0] <= limits[1]).all():
            raise ValueError(
                f"point estimate: bounds of {name!r} are ({low}, {high}); the lower one comes first"
            )
        column = cases[:, :, forecast.names.index(name)]
        inside = np.clip(column, *limits)
        clipped += int((inside != column).sum())
        column[:] = inside
    return cases, clipped
