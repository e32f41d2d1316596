"""Options of the leader's algorithm, each with the reason for its default."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Mode = Literal["lift", "paper", "augmented"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How an agreement is looked for.

    Raises:
        ValueError: a value out of its range, with the range.
    """

    mode: Mode = "lift"
    """`lift`: exact, bits of microgrids with a gap become the master's. `paper`: the seed's algorithm as it
    is printed, unified cuts with slack in every row and restoration cuts. `augmented`: the same with
    restoration cuts that have a slope. The last two end for small problems only: see `literal`"""
    epsilon: float = 1e-3
    """greatest (upper - lower) / |upper| at which it ends; below 1e-7 the solvers' own tolerance decides, and
    below 1e-5 where limits of voltage bind, for a little voltage is worth much there"""
    most_iterations: int = 60
    """problems of the operator's in the trace, of all stages together; after an absence at least one more"""
    most_turns: int = 240
    """of the conversation; four an iteration are more than are needed"""
    patience: int = 3
    """how many turns on end a microgrid may stay away until it counts as absent"""
    weight: float | None = None
    """rho, of slack in p and q [$/MW, for an interval]; `None`: 1.2 times the greatest price. It selects cuts
    only: F = 0 does not depend on it. Below the marginal cost of energy F would rather miss the point than
    pay for it, far above it the cuts are steep and say little elsewhere"""
    offers: bool = True
    """whether microgrids are asked for offers at prices; without, lower bounds come from cuts at points
    alone, as Benders' decomposition has it, and upper bounds from patterns"""
    price_steps: tuple[float, ...] = (0.0, 0.04, 0.08)
    """seeds: prices of active power above the one from upstream by these shares, which losses of a feeder
    hardly exceed"""
    reactive_shares: tuple[float, ...] = (0.0, 0.1)
    """seeds: prices of reactive power, as shares of the price of active power"""
    core: float = 0.7
    """in-out separation: a second point is asked about, this share of the way from the master's point to the
    mean of its points; 0: the master's point alone"""
    towards_best: tuple[float, ...] = (0.5, 0.9)
    """further points, these shares of the way from the master's to the best that is known: cuts cost a
    microgrid far less than a master problem the operator"""
    keep: float = 0.5
    """how much of that mean is kept from one iteration to the next"""

    def __post_init__(self) -> None:
        ranges = {
            "epsilon": (0.0, 1.0),
            "core": (0.0, 0.99),
            "keep": (0.0, 0.99),
            "most_iterations": (1, 100_000),
            "most_turns": (1, 1_000_000),
            "patience": (1, 1_000),
        }
        for name, (least, most) in ranges.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise ValueError(f"partnership: {name} is {value}; give a number from {least} to {most}")
        if self.weight is not None and not (self.weight > 0 and isfinite(self.weight)):
            raise ValueError(f"partnership: weight is {self.weight} $/MW; give a number above zero")
        if self.mode not in ("lift", "paper", "augmented"):
            raise ValueError(f"partnership: mode {self.mode!r}; there are lift, paper, augmented")

    def rho(self, price: Array) -> float:
        """The weight of slack for prices (T,) of energy [$/MW, for an interval]."""
        return 1.2 * max(float(np.max(price)), 1.0) if self.weight is None else self.weight

    def seeds(self, price: Array) -> tuple[Array, Array]:
        """(N, T), (N, T) the price vectors that every microgrid is asked for first."""
        pairs = [(1 + a, share) for a in self.price_steps for share in self.reactive_shares]
        p = np.array([a * price for a, _ in pairs]).reshape(-1, len(price))
        q = np.array([share * price for _, share in pairs]).reshape(-1, len(price))
        return p, q
