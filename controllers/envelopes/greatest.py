"""Alpha-0: operating envelopes of active power with the greatest sum, whoever has it.

The reference of the price of fairness, and the first of the alpha-fair methods, which maximise
`sum_i gamma_i^alpha P_i^(1 - alpha) / (1 - alpha)`: alpha = 0 is this one, alpha = 1 is
`ProportionalRanges` (the logarithm), the limit of great alpha is `MaxMinRanges`.

Source: Mo and Walrand 2000 (the family); Bertsimas, Farias and Trichakis 2011 (utilitarian reference).

| symbol | here    | meaning                                                                   | unit |
|--------|---------|---------------------------------------------------------------------------|------|
| x      | `x`     | exports, then imports without their sign                                  | MW   |
| gamma  | `gamma` | weight of each device                                                     | 1    |
| U, b   | `U`, `room` | what ranges take of each row; room in it                              | MW   |
| S*     | `total` | the greatest sum of x                                                     | MW   |

The sum has many optima: a line's room is worth the same to everybody behind it. Of those within `GIVEN_UP` of
the greatest sum the one of the least `sum_i x_i^2 / gamma_i` is taken, the most even one; it is unique, so
neither the solver nor the order of the devices decides. Where the solver finds no such point it is given more
room, and in the end the linear program's own vertex stands.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from controllers.contract import SolverFailed
from controllers.envelopes.packing import Array, reached
from controllers.envelopes.ranges import Bools, Program, RangeMethod, capacities
from controllers.fairness import greatest
from controllers.solve import Conic

GIVEN_UP = (1e-6, 1e-5, 1e-4)
"""Share of the greatest sum that breaking the tie may cost; the next where the one before has no answer."""


@dataclass
class GreatestRanges(RangeMethod):
    """Alpha-0: the greatest sum of exports and imports together.

    Weights decide nothing but the tie: a device that is dear for the network may get nothing. For
    comparison, not for use. Exports and imports are one program, so that rows of both signs are shared
    between them exactly; without such rows they are independent.

    Args:
        caps: whether no device is given more than its rating allows.
        others: see `EnvelopeMethod`.

    Raises:
        ValueError: no devices, a weight that is not positive, or a device that cannot hold Q = 0.
        Infeasible: (step) the background load alone breaks a limit.
        SolverFailed: (step) a solver had no answer.
    """

    acronym: ClassVar[str] = "alpha-0"
    joint: ClassVar[bool] = True
    sources: ClassVar[tuple[str, ...]] = (
        "Utilitarian ranges, the reference of the price of fairness: Bertsimas, Farias and Trichakis, The "
        "Price of Fairness, Operations Research 59 (2011)",
    )

    caps: bool = False

    def most(self) -> Array | None:
        return capacities(self.site.devices.values()) if self.caps else None

    def program(self, U: Array, gamma: Array, free: Bools) -> Program:
        return GreatestProgram(U, gamma[free]).best


class GreatestProgram:
    """The sum and its tie-break; the latter is compiled once, the room and the sum in the right-hand side.

    Args:
        U: (rows, n), not negative, each row's greatest entry about 1, a positive entry in each column.
        gamma: (n,) positive.
    """

    def __init__(self, U: Array, gamma: Array) -> None:
        rows, n = U.shape
        self._U = U
        self._even = Conic(
            np.diag(gamma.mean() / gamma),
            np.zeros(n),
            np.vstack([U, -np.eye(n), -np.ones((1, n))]),
            np.concatenate([np.ones(rows), np.zeros(n), [0.0]]),
            [("nonnegative", rows + n + 1)],
        )

    def best(self, room: Array) -> Array:
        """(n,) ranges [MW] for the room (rows,) of each row, positive.

        Raises:
            SolverFailed: a solver had no answer.
        """
        alone, reach = reached(self._U, room)
        scale, x = float(alone.max()), greatest(self._U, room)
        for given_up in GIVEN_UP:
            total = x.sum() * (1 - given_up)
            b = np.concatenate([reach, np.zeros(len(x)), [-total]]) / scale
            # A point of a thin set is easily lost; then a thicker one.
            try:
                return np.asarray(self._even.minimize(b=b) * scale)
            except SolverFailed:
                continue
        return x
