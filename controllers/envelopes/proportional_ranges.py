"""P-WE: operating envelopes of active power by weighted proportional fairness.

No other sharing gives a greater sum of the weighted logarithms, so from here on nobody can gain a
percentage unless others lose, by weight, at least as many. Who is cheap for the network gets more.

Source: seed 004, appendix, models (A9) (export) and (A10) (import); Kelly, Maulloo and Tan 1998.
Implements (A9a)-(A9c) and (A10a)-(A10c), stated as cones for Clarabel: `t <= log x` is `(t, 1, x)` in the
exponential cone.

| symbol   | here    | meaning                                                              | unit |
|----------|---------|----------------------------------------------------------------------|------|
| P^U, P^L | `x`     | export limit; import limit without its sign                          | MW   |
| gamma    | `gamma` | weight of each device; only ratios matter                            | 1    |
| A        | `U`     | rows that limit the direction, scaled                                | 1    |
| W        | `room`  | room in them                                                         | MW   |
| mu       |         | price of a row: gamma_i / P_i = sum_k mu_k A_ki at the optimum        | 1/MW |

Where this differs from the source: the decision "P_i^U" of (A9a) reads P_{E,i}^U. Rows are the worst corner
of the box instead of the all-upper (all-lower) corner, as in P-E. The logarithm has no value at zero: a
device that takes part in a row without room gets 0, the limit of the problem as the room vanishes, and the
rest is shared as usual. The import limits are negative numbers outside this file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy import sparse

from controllers.contract import SolverFailed
from controllers.envelopes.packing import Array, prices, reached
from controllers.envelopes.ranges import Bools, Program, RangeMethod
from controllers.solve import Cone, Conic

NEAR = 1e-4
"""Share of its room that a row may have left after the solver and still be full in truth."""

UNEVEN = 1e-3
"""Ratio of ranges below which the problem is scaled anew, which takes another compilation."""

EXACT = 1e-13
"""Share of its room up to which a row is exactly full."""

ROUNDS = 60
"""Steps of Newton's method, of which four to six suffice for a set of rows, and changes of the set."""


@dataclass
class ProportionalRanges(RangeMethod):
    """P-WE: the ranges of the greatest weighted product, of exports and of imports.

    The second of the alpha-fair methods: `GreatestRanges` is alpha = 0, this one alpha = 1,
    `MaxMinRanges` the limit of great alpha. Ranges per weight are not equal. In the linear model and at
    Q = 0 every device may use its range whatever the others do; see `EqualRanges` for what that leaves out.

    Args:
        others: see `EnvelopeMethod`.

    Raises:
        ValueError: no devices, a weight that is not positive, or a device that cannot hold Q = 0.
        Infeasible: (step) the background load alone breaks a limit.
        SolverFailed: (step) the solver had no answer.
    """

    acronym: ClassVar[str] = "P-WE"
    sources: ClassVar[tuple[str, ...]] = (
        "P-WE, weighted proportional active-power ranges: Equitable Active-Reactive Power Envelopes for "
        "Distributed Energy Resources in Power Distribution Systems, appendix, models (A9) and (A10)",
    )

    def program(self, U: Array, gamma: Array, free: Bools) -> Program:
        return ProportionalProgram(U, gamma[free]).best


class ProportionalProgram:
    """One of the programs, compiled once: the room is its only parameter, in the right-hand side.

    Args:
        U: (rows, n), not negative, each row's greatest entry about 1, a positive entry in each column.
        gamma: (n,) positive.
    """

    def __init__(self, U: Array, gamma: Array) -> None:
        rows, n = U.shape
        self._U, self._gamma = U, gamma / gamma.mean()
        # x, then t; a cone's slack is b - A (x, t)
        cone_x = sparse.csr_array((-np.ones(n), (3 * np.arange(n) + 2, np.arange(n))), shape=(3 * n, n))
        cone_t = sparse.csr_array((-np.ones(n), (3 * np.arange(n), np.arange(n))), shape=(3 * n, n))
        self._one = np.tile([0.0, 1.0, 0.0], n)
        cones: list[Cone] = [("nonnegative", rows)]
        cones += [("exponential", 3)] * n
        self._conic = Conic(
            None,
            np.concatenate([np.zeros(n), -self._gamma]),  # (A9a) (A10a)
            sparse.block_array(
                [
                    [sparse.csr_array(U), None],  # (A9b) (A10b)
                    [cone_x, cone_t],  # (A9c) (A10c): exp(t) <= x holds x above 0
                ],
                format="csc",
            ),
            np.concatenate([np.ones(rows), self._one]),
            cones,
        )

    def best(self, room: Array) -> Array:
        """(n,) ranges [MW] for the room (rows,) of each row, positive.

        Raises:
            SolverFailed: Clarabel had no answer.
        """
        alone, reach = reached(self._U, room)
        scale = float(alone.max())
        if alone.min() < UNEVEN * scale:
            return self._in_parts(alone, reach)
        # log(scale x) is log x and a constant: only the unit changes.
        try:
            x = self._conic.minimize(b=np.concatenate([reach / scale, self._one]))[: self._U.shape[1]]
        except SolverFailed:
            if np.allclose(alone, scale, rtol=1e-6):
                raise
            return self._in_parts(alone, reach)
        return sharpened(x, self._U, reach / scale, self._gamma) * scale

    def _in_parts(self, alone: Array, reach: Array) -> Array:
        """The same in parts of what each could have alone: where some have next to nothing, the solver would
        not see them in MW."""
        parts = self._U * alone
        size = parts.max(axis=1)
        program = ProportionalProgram(parts / size[:, None], self._gamma)
        return np.asarray(alone * program.best(reach / size))


def sharpened(x: Array, U: Array, room: Array, gamma: Array) -> Array:
    """x to the last digits: the logarithms are so flat that a solver is content with four of them.

    Prices mu of the rows that x fills are looked for by Newton's method on the dual, `min room.mu -
    sum_i gamma_i log(U'mu)_i`, where x_i = gamma_i / (U'mu)_i. A row of negative price leaves, a row that is
    exceeded joins. If that does not end, x stays as it is.
    """
    left = room - U @ x
    rows = np.flatnonzero(left <= NEAR * room)
    mu = prices(U[rows] * x / gamma, np.ones(len(x)))
    rows, mu = rows[mu > 0], mu[mu > 0]
    for _ in range(ROUNDS):
        price = U[rows].T @ mu
        if not (len(rows) and (price > 0).all()):
            return x
        y = gamma / price
        excess = U[rows] @ y / room[rows] - 1
        if np.abs(excess).max() > EXACT:
            H = (U[rows] * (y / price)) @ U[rows].T
            step = np.linalg.lstsq(H, excess * room[rows], rcond=None)[0]
            fall = (-(U[rows].T @ step) / price).max()  # no price below half of what it was
            mu = mu + step * min(1.0, 0.5 / fall if fall > 0 else 1.0)
        elif mu.min() < 0:
            rows, mu = np.delete(rows, mu.argmin()), np.delete(mu, mu.argmin())
        elif (over := U @ y / room - 1).max() > 10 * EXACT:
            rows, mu = np.append(rows, over.argmax()), np.append(mu, 0.0)
        else:
            return np.asarray(y)
    return x
