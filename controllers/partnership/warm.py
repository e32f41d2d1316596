"""Warm: what one agreement leaves for the next, an interval later.

A unified cut with multipliers mu reads, divided by that of theta, theta >= c + lambda.(p, q). For another
hour's data the same multipliers are still multipliers: of the right sign, and with the variables between
finite bounds

    g(mu) = sum of mu_i row_i + min over the bounds of y, z of (cost - A'mu).(y, z)

is a constant with which the cut holds. So cuts could be refreshed by multipliers that are kept and shifted by
an interval. But of all multipliers with the slope lambda the best constant is the least of the program
itself,

    F(lambda) = min over the rows, 0 <= z <= 1 of cost - lambda.(p, q) >= g(mu)        for every such mu

by weak duality, and that is what `AskPrices` asks for. So it is the operator that keeps slopes, which it was
told, and nobody else keeps anything: cuts at old slopes for new data are as tight as any with these slopes,
however the measurements and forecasts have changed, and a microgrid that has lost its memory answers the
same. Nor need there be the same rows: how many a unit has depends on its state and forecast.

Slopes are rounded before they are asked about, to a `FINE`th of the price: where an engine is neither off nor
at its limit a slope is its fuel cost, which is not the operator's to repeat. A cut holds at any slope; at one
that is a little off it is a little less tight.

What does not carry over is which slopes are worth asking about. Those are kept whose cuts are nearest to the
point that was agreed on. A cut that only says what can be exchanged has no multiplier of theta; it is asked
about as a steep price.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from controllers.partnership.coupling import Cut, Point

Array = npt.NDArray[np.float64]

MOST = 24
"""Slopes of one microgrid."""

FINE = 1000
"""Into how many steps the greatest price is divided."""

STEEP = 0.05
"""Least multiplier of theta, of one of length 1 in dollars: slack costs as much as prices do, so that of p is
at most rho, and the price at most rho / STEEP."""


@dataclass(frozen=True, eq=False)
class Slopes:
    """Of one microgrid's cuts."""

    p: Array
    q: Array
    """(n, T) lambda [$/MW, $/Mvar, for an interval]"""


@dataclass(frozen=True, eq=False)
class Warm:
    """Of all of them; and prices, at which offers are asked for first."""

    price: Array
    """(T,) of energy from upstream [$/MW, for an interval]"""
    slopes: Mapping[str, Slopes]
    """by microgrid"""
    prices: Mapping[str, tuple[Array, Array]]
    """(T,), (T,) what one more MW, or Mvar, of each would have saved the operator"""

    def later(self, price: Array, intervals: int = 1) -> Warm:
        """The same so many intervals later: slopes move on; at the end the last one is as far from the price
        as it was before.

        Args:
            price: (T,) the new ones.
        """
        T, by = len(price), min(intervals, len(price))
        if len(self.price) != T:
            return Warm(price, {}, {})
        at = np.minimum(np.arange(T) + by, T - 1)
        new = np.arange(T) + by >= T
        change = np.where(new, price - self.price[-1], 0.0)
        moved = {name: Slopes(one.p[:, at] + change, one.q[:, at]) for name, one in self.slopes.items()}
        prices = {name: (p[at] + change, q[at]) for name, (p, q) in self.prices.items()}
        return Warm(price, moved, prices)


def kept(cuts: Sequence[Cut], point: Point, price: Array) -> Slopes:
    """Slopes of the cuts that are nearest to a point, in dollars; each once, and rounded.

    Args:
        price: (T,) of energy, by which it is known how fine slopes are to be.
    """
    T = len(point.p)
    x = np.concatenate([point.p, point.q, [point.cost]])
    rows = np.array([cut.region.A[0, : 2 * T + 1] * cut.scale for cut in cuts]).reshape(-1, 2 * T + 1)
    slack = np.array([cut.region.b[0] * cut.scale for cut in cuts]) - rows @ x
    theta = np.maximum(-rows[:, -1], STEEP)
    step = (np.abs(price).max() or 1.0) / FINE
    slopes = np.round(rows[:, :-1] / theta[:, None] / step) * step
    chosen: dict[bytes, Array] = {}
    for k in np.argsort(slack / theta, kind="stable"):
        chosen.setdefault(np.round(slopes[k], 6).tobytes(), slopes[k])
        if len(chosen) == MOST:
            break
    found = np.array([*chosen.values()]).reshape(-1, 2 * T)
    return Slopes(found[:, :T], found[:, T:])
