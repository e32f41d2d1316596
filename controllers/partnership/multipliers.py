"""Multipliers: what they prove about a linear program, whoever found them.

For `min c.x` subject to `row_low <= A x <= row_high`, `low <= x <= high` and any mu, the least of the
Lagrangian over the variables' bounds,

    g(mu) = sum of mu_i row_i + min of (c - A'mu).x      row_i: the side of the row that fits the sign of mu_i

is not above the least `c.x`. So what is built on g is valid to the last digit, however inexact the solver
was; at the solver's own multipliers g is the optimum up to its tolerance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from controllers.solve import Linear

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Question:
    """Everything of a linear program but its matrix."""

    c: Array
    """(n,)"""
    row_low: Array
    row_high: Array
    """(rows,)"""
    low: Array
    high: Array
    """(n,)"""


@dataclass(frozen=True, eq=False)
class Proof:
    """An answer, and what its multipliers prove."""

    x: Array
    """(n,)"""
    value: float
    """`c.x`"""
    multipliers: Array
    """(rows,) without the sign of a side that is not there, and within what slack costs"""
    worth: Array
    """(n,) c - A'mu: what one more of each variable costs beyond what it brings"""
    bound: float
    """g(mu) <= the least `c.x`"""


class Prover:
    """One matrix, compiled once, for many questions.

    Args:
        A: (rows, n).
        slack: (n,) variables that make up for a row: one entry each, 1 or -1, and at least 0. They alone
            may be without an upper bound; the multiplier of their row is cut off at their cost.
    """

    def __init__(self, A: sparse.csr_array, slack: Mask) -> None:
        _rows, n = A.shape
        self.A, self._transposed = A, sparse.csr_array(A.T)
        self._solver = Linear(np.zeros(n), A, -np.inf, np.inf)
        entries = sparse.coo_array(sparse.csc_array(A)[:, np.flatnonzero(slack)])
        up = entries.data > 0
        columns = np.flatnonzero(slack)[entries.col]
        self._above = entries.row[up], columns[up]
        self._below = entries.row[~up], columns[~up]

    def least(self, question: Question, *, anew: bool = True) -> Proof:
        """The least `c.x`.

        Args:
            anew: whether the answer depends on nothing that was solved before; without, it is found sooner.

        Raises:
            Infeasible: no x satisfies the rows and bounds.
            SolverFailed: the solver ended without an answer.
        """
        if anew:
            self._solver.clear()
        q = question
        found = self._solver.minimize(c=q.c, row_low=q.row_low, row_high=q.row_high, low=q.low, high=q.high)
        most = np.where(np.isinf(q.row_low), 0.0, np.inf)
        least = np.where(np.isinf(q.row_high), 0.0, -np.inf)
        costs = np.where(np.isinf(q.high), q.c, np.inf)
        np.minimum.at(most, self._above[0], costs[self._above[1]])
        np.maximum.at(least, self._below[0], -costs[self._below[1]])
        return self.proof(q, found.x, np.clip(found.row_duals, least, most))

    def proof(self, question: Question, x: Array, mu: Array) -> Proof:
        """What any multipliers prove."""
        worth = question.c - self._transposed @ mu
        bound = _least(mu, question.row_low, question.row_high) + _least(worth, question.low, question.high)
        return Proof(x, float(question.c @ x), mu, worth, bound)

    def whole(self, question: Question, bits: Mask) -> Array:
        """(n,) the x of least `c.x` whose marked variables are whole; of no solve before.

        Raises:
            Infeasible: no such x satisfies the rows and bounds.
            SolverFailed: the solver ended without an answer.
        """
        q = question
        return self._solver.minimize_whole(
            bits, c=q.c, row_low=q.row_low, row_high=q.row_high, low=q.low, high=q.high
        )


def _least(worth: Array, low: Array, high: Array) -> float:
    """The least of sum of worth_i x_i over low <= x <= high; what lies at an infinite side is rounding."""
    side = np.where(worth > 0, low, high)
    return float((worth * np.where(np.isinf(side), 0.0, side)).sum())
