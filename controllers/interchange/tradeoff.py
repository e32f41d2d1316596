"""Tradeoff: a linear program with two objectives, what it costs and how wide a band it leaves.

| symbol   | here         | meaning                                                            | unit   |
|----------|--------------|--------------------------------------------------------------------|--------|
| f1       | `f1`         | cost over the horizon                                              | $      |
| f2       | `f2`         | minus the width of the band, summed over the horizon               | MWh    |
| mu       | `mu`         | what an MWh of band is worth                                       | $/MWh  |
| w        | `weight`     | weight of the cost against the band, each over its own range       | 1      |
| epsilon  | `epsilon_mwh`| greatest f2 allowed                                                | MWh    |
| f*, f^N  | `Payoff`     | best value of an objective, and its value where the other is best  | $, MWh |

The optimum has often many solutions with the same objective: an engine that costs just as much more than the
price as the band is worth, one of two intervals with the same price. The one that is taken does not depend on
the solver's way to it: every variable has a small price of its own, a millionth of a dollar per MWh, all of
them different, so that one solution is the best. A band that nothing values (`mu` 0) is worth `LEAST`: it is
the widest that the cheapest solution leaves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, assert_never

import numpy as np
import numpy.typing as npt
from scipy import sparse

from controllers.interchange.linear_rows import Bounds
from controllers.solve import Linear

Array = npt.NDArray[np.float64]
Rule = Literal["price", "weighted", "epsilon"]

LEAST = 1e-4
"""Worth of a band that nothing else values [$/MWh]: below what any two prices differ by."""
MOST = 1e5
"""Worth of a band that goes before everything [$/MWh]: above every price, and what it takes to shed load."""
PREFERENCE = 1e-6
"""Size of the variables' own prices [$/MWh]."""
GOLDEN = (np.sqrt(5) - 1) / 2
"""Its multiples' fractional parts are all different, and far apart as such numbers go."""
EXCLUSIVE = 1e-8
"""Product of charging and discharging power [MW^2] from which on a battery does both at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scalarisation:
    """How cost and band are weighed against each other.

    Raises:
        ValueError: a rule that does not exist, or a figure that it cannot use.
    """

    rule: Rule = "price"
    mu: float = 25.0
    """of `price`: worth of the band [$/MWh], not below zero"""
    weight: float = 0.5
    """of `weighted`: in (0, 1], 1 counts the cost alone"""
    epsilon_mwh: float | None = None
    """of `epsilon`: greatest f2, so minus the least band over the horizon"""

    def __post_init__(self) -> None:
        if self.rule not in ("price", "weighted", "epsilon"):
            raise ValueError(f"scalarisation {self.rule!r} is none of 'price', 'weighted', 'epsilon'")
        if not 0 <= self.mu <= MOST:
            raise ValueError(f"mu {self.mu} $/MWh is not between 0 and {MOST:g}")
        if not 0 < self.weight <= 1:
            raise ValueError(f"weight {self.weight} is not in (0, 1]; for the widest band ask for a great mu")
        if self.rule == "epsilon" and (self.epsilon_mwh is None or not np.isfinite(self.epsilon_mwh)):
            raise ValueError(f"epsilon_mwh {self.epsilon_mwh}: say how great f2 may be, minus the least band")


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """A solution."""

    x: Array
    f1: float
    """[$]"""
    f2: float
    """[MWh]"""
    whole: bool = False
    """whether it took whole numbers to keep a battery from charging and discharging at once"""


@dataclass(frozen=True, slots=True)
class Payoff:
    """Both objectives at either one's best point, of which the better one in the other is taken."""

    cheapest: tuple[float, float]
    """(f1*, f2^N)"""
    widest: tuple[float, float]
    """(f1^N, f2*)"""

    def worth(self, weight: float) -> float:
        """The mu for which min f1 + mu f2 is min w (f1 - f1*) / range + (1 - w) (f2 - f2*) / range."""
        dearer, narrower = self.widest[0] - self.cheapest[0], self.cheapest[1] - self.widest[1]
        if narrower <= 1e-9:
            return 0.0  # the cheapest point has the widest band
        return (1 - weight) / weight * dearer / narrower


class Tradeoff:
    """The program, compiled once.

    Args:
        A: (rows, n). bounds: as far as they are always the same.
        band: (n,) so that `band @ x` is f2 / hours.
        hours: length of an interval.
        charging, discharging, binary: (pairs,) variables of which no two of a pair may be used at once, and
            the one that says which.
    """

    def __init__(
        self,
        A: sparse.csr_array,
        bounds: Bounds,
        band: Array,
        hours: float,
        charging: Array,
        discharging: Array,
        binary: Array,
    ) -> None:
        self._band, self._hours = band, hours
        self._pairs = tuple(np.asarray(at, dtype=np.int64) for at in (charging, discharging))
        self._whole = np.zeros(len(band), dtype=bool)
        self._whole[np.asarray(binary, dtype=np.int64)] = True
        # Shifted by half of it, so that no price is next to nothing.
        self._own = PREFERENCE * (0.5 + np.mod(GOLDEN * np.arange(1, len(band) + 1), 1.0))
        rows = sparse.csr_array(sparse.vstack([A, sparse.csr_array(band[None, :])]))
        last = np.array([np.inf])
        self._linear = Linear(
            np.zeros(len(band)),
            rows,
            np.append(bounds.row_low, -last),
            np.append(bounds.row_high, last),
            bounds.low,
            bounds.high,
        )

    def clear(self) -> None:
        """Forget what was solved, at the beginning of a step: the same step has the same answer."""
        self._linear.clear()

    def best(self, how: Scalarisation, costs: Array, bounds: Bounds, payoff: Payoff | None = None) -> Found:
        """The solution that a scalarisation asks for.

        Args:
            costs: (n,) so that `costs @ x` is f1 / hours, but for a constant.
            payoff: of `weighted`, where another case's is to be used.

        Raises:
            Infeasible: no x is within the bounds, or none has so small an f2.
            SolverFailed: the solver had no answer.
        """
        match how.rule:
            case "price":
                return self._least(how.mu, costs, bounds)
            case "weighted":
                payoff = payoff or self.payoff(costs, bounds)
                return self._least(payoff.worth(how.weight), costs, bounds)
            case "epsilon":
                assert how.epsilon_mwh is not None  # Scalarisation has seen to it
                return self._least(0.0, costs, bounds, how.epsilon_mwh)
        assert_never(how.rule)

    def payoff(self, costs: Array, bounds: Bounds) -> Payoff:
        """Both objectives where the one and where the other is best."""
        cheap, wide = (self._least(mu, costs, bounds) for mu in (0.0, MOST))
        return Payoff((cheap.f1, cheap.f2), (wide.f1, wide.f2))

    def _least(self, mu: float, costs: Array, bounds: Bounds, epsilon_mwh: float = np.inf) -> Found:
        """The one solution of least f1 + mu f2."""
        changes = {
            "c": costs + max(mu, LEAST) * self._band + self._own,
            "row_low": np.append(bounds.row_low, -np.inf),
            "row_high": np.append(bounds.row_high, epsilon_mwh / self._hours),
            "low": bounds.low,
            "high": bounds.high,
        }
        x, whole = self._linear.minimize(**changes).x, False
        charging, discharging = self._pairs
        if (x[charging] * x[discharging]).max(initial=0.0) > EXCLUSIVE:
            x, whole = self._linear.minimize_whole(self._whole, **changes), True
        return Found(x, self._hours * float(costs @ x), self._hours * float(self._band @ x), whole)
