"""Steering: what a microgrid's program needs to follow a schedule and to stay inside a capability.

| symbol   | here             | meaning                                                          | unit  |
|----------|------------------|------------------------------------------------------------------|-------|
| P_PCC    | `P_PCC`          | exchange with the network                                        | MW    |
| P^c      | `plan`           | schedule that the network's operator counts on                   | MW    |
| AIC      | `low`, `high`    | available interchange capability                                 | MW    |
|          | `over`, `under`  | how far the exchange is above and below the schedule             | MW    |
|          | `beyond`, `short`| how far it is above and below the capability; zero if it can be  | MW    |

    P_PCC - over + under = P^c        low <= P_PCC - beyond + short <= high
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from controllers.interchange.linear_rows import Bounds, Term
from controllers.interchange.microgrid_model import PCC, MicrogridModel

Array = npt.NDArray[np.float64]

BREACH = 1e4
"""What it costs at least to leave the capability [$/MWh]."""

DEARER = 10.0
"""How many times the dearest that can be done instead, load shed included, it costs at least."""


@dataclass(frozen=True, eq=False)
class Course:
    """What one microgrid is asked for, (H,) each [MW]."""

    plan: Array
    """NaN where nobody counts on anything"""
    low: Array
    high: Array
    island: bool = False
    """whether its breaker is open: then what is left over or lacks is bounded by no tie"""


class Steering:
    """Adds its variables and rows to a model that is not compiled yet.

    Args:
        deviation_cost_per_mwh: of leaving the schedule [$/MWh].
    """

    def __init__(self, model: MicrogridModel, deviation_cost_per_mwh: float) -> None:
        self.model, lp = model, model.lp
        for grid in model.grids:
            me = grid.name
            exchange = Term((me, "P_PCC"))
            over, under = (lp.block((me, s), cost=deviation_cost_per_mwh) for s in ("over", "under"))
            lp.rows([exchange, Term(over, -1.0), Term(under)], 0.0, 0.0, (me, "plan"))
            beyond, short = (lp.block((me, s)) for s in ("beyond", "short"))
            lp.rows([exchange, Term(beyond, -1.0), Term(short)], 0.0, 0.0, (me, "capability"))

    def costs(self, costs: Array) -> Array:
        """The model's costs, and to leave the capability costs more than any of them: with a price or a load
        that is worth more than `BREACH` the exchange still comes as close to it as it can."""
        found, breach = costs.copy(), max(BREACH, DEARER * float(np.abs(costs).max(initial=0.0)))
        for grid in self.model.grids:
            for symbol in ("beyond", "short"):
                found[self.model.lp.at((grid.name, symbol))] = breach
        return found

    def bounds(self, bounds: Bounds, courses: Mapping[str, Course], kept: int) -> Bounds:
        """The model's bounds with what each microgrid is asked for.

        Args:
            kept: the capability is kept in so many intervals from the first; later it is left where there is
                no other way.
        """
        lp, (row_low, row_high, low, high) = self.model.lp, (side.copy() for side in bounds)
        for grid in self.model.grids:
            me, course = grid.name, courses[grid.name]
            counted = ~np.isnan(course.plan)
            row_low[lp.row_at((me, "plan"))] = np.where(counted, course.plan, -np.inf)
            row_high[lp.row_at((me, "plan"))] = np.where(counted, course.plan, np.inf)
            row_low[lp.row_at((me, "capability"))] = course.low
            row_high[lp.row_at((me, "capability"))] = course.high
            for symbol in ("beyond", "short"):
                high[lp.at((me, symbol))] = np.where(np.arange(self.model.horizon) < kept, 0.0, np.inf)
            most = np.inf if course.island else grid.tie_mw  # an island's devices may fail to balance
            for symbol in PCC:
                low[lp.at((me, symbol))], high[lp.at((me, symbol))] = -most, most
        return Bounds(row_low, row_high, low, high)
