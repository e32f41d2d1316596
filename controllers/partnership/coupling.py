"""Coupling: the few numbers in which a microgrid meets the network, and what is said about them.

| symbol     | here       | meaning                                                              | unit |
|------------|------------|----------------------------------------------------------------------|------|
| p, q       | `p`, `q`   | exchange of the microgrid, above zero: it injects into the network    | MW, Mvar |
| theta      | `cost`     | what the operator counts for the microgrid's costs over the horizon   | $    |
| z          | `bits`     | which units are on, in an order that only a (lifted) microgrid knows  | 1    |

These and nothing else of a microgrid enter the operator's problem: (p, q, theta) in R^(2T+1), seed 000 (9a).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from controllers.region import Region

Array = npt.NDArray[np.float64]


def axes(intervals: int, bits: int = 0) -> tuple[str, ...]:
    """Names of the coupling variables in their order, of which cuts are `Region` rows."""
    return (
        *(f"p_mw_{t}" for t in range(intervals)),
        *(f"q_mvar_{t}" for t in range(intervals)),
        "cost",
        *(f"bit_{k}" for k in range(bits)),
    )


@dataclass(frozen=True, eq=False)
class Point:
    """A tentative operating point of one microgrid, x-hat'."""

    p: Array
    """(T,)"""
    q: Array
    """(T,)"""
    cost: float
    bits: Array | None = None
    """(K,) in [0, 1]; `None`: the microgrid is not lifted"""

    @property
    def vector(self) -> Array:
        """In the order of `axes`."""
        bits = np.zeros(0) if self.bits is None else self.bits
        return np.concatenate([self.p, self.q, [self.cost], bits])


@dataclass(frozen=True, eq=False)
class Cut:
    """Rows that every point which the microgrid can keep satisfies, in `$` a row: `region.A x <= region.b`
    times `scale`."""

    region: Region
    """one row over `axes`"""
    value: float
    """F >= 0: by how much [$] the point that it was made for breaks it; the row of unit length is broken by
    `value / scale`"""
    scale: float
    """length of the row before it was scaled to one"""


@dataclass(frozen=True, eq=False)
class Tent:
    """A reverse-convex cut, theta >= value + slope . d - weight . |d| with d = (p, q) - centre.

    With slope 0 the restoration cut (14i) in its stronger, one-sided form; with a slope the augmented one.
    """

    centre: Array
    """(2T,) p, q"""
    value: float
    slope: Array
    """(2T,)"""
    weight: Array
    """(2T,) above zero"""
