"""Program: the one linear program of which every question about a microgrid is a case.

Its rows, for a point (p-hat, q-hat, theta-hat) of the operator's:

    P_y y + P_0 + p+ - p- = p-hat,   Q_y y + Q_0 + q+ - q- = q-hat        slack p+, p-, q+, q- >= 0
    cost_y y + cost_z z - s_theta <= theta-hat                            slack s_theta >= 0
    low <= A y + D z + r+ - r- <= high                                    slack r+, r- in rows with bits

Costs and bounds say which of it counts: no point without bounds on its rows, no slack where its upper bound
is zero, a pattern of bits by their bounds. In MW and $, which needs no scaling: see the tests.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from controllers.partnership.commitment import Commitment
from controllers.partnership.multipliers import Proof, Prover, Question

Array = npt.NDArray[np.float64]


class Program:
    """Compiled once for a microgrid's block.

    Args:
        made: see `commitment`.
    """

    def __init__(self, made: Commitment) -> None:
        self.made, self.block = made, made.block
        block = made.block
        self.T, self.K, n, R = block.intervals, block.bits, len(block.cost_y), len(block.low)
        T, K = self.T, self.K
        self.with_bits = np.flatnonzero(np.diff(sparse.csr_array(block.D).indptr))
        """rows of the block in which bits stand"""
        B = len(self.with_bits)
        widths = (n, K, T, T, T, T, 1, B, B)
        self.y, self.z, *slack, self.over, self.up, self.down = _slices(widths)
        self.deviation = slice(slack[0].start, slack[3].stop)
        """slack p+, p-, q+, q-"""
        self.p, self.q, self.cost, self.rows = _slices((T, T, 1, R))
        unit = sparse.eye_array(T)
        loose = sparse.csr_array((np.ones(B), (self.with_bits, np.arange(B))), shape=(R, B))
        entries: list[tuple[slice, slice, Any]] = [
            (self.p, self.y, block.P_y),
            (self.p, slack[0], unit),
            (self.p, slack[1], -unit),
            (self.q, self.y, block.Q_y),
            (self.q, slack[2], unit),
            (self.q, slack[3], -unit),
            (self.cost, self.y, block.cost_y[None, :]),
            (self.cost, self.z, block.cost_z[None, :]),
            (self.cost, self.over, np.array([[-1.0]])),
            (self.rows, self.y, block.A),
            (self.rows, self.z, block.D),
            (self.rows, self.up, loose),
            (self.rows, self.down, -loose),
        ]
        columns, rows = sum(widths), 2 * T + 1 + R
        makes_up = np.zeros(columns, dtype=bool)
        makes_up[self.deviation] = makes_up[self.over] = makes_up[self.up] = makes_up[self.down] = True
        self.prover = Prover(_placed(entries, rows, columns), makes_up)
        self._whole = np.zeros(columns, dtype=bool)
        self._whole[self.z] = True
        low, high = np.zeros(columns), np.zeros(columns)
        low[self.y], high[self.y], high[self.z] = block.y_low, block.y_high, 1.0
        row_low, row_high = np.full(rows, -np.inf), np.full(rows, np.inf)
        row_low[self.rows], row_high[self.rows] = block.low, block.high
        self._free = Question(np.zeros(columns), row_low, row_high, low, high)

    def question(
        self,
        p: Array | None = None,
        q: Array | None = None,
        *,
        weight: float = 0.0,
        bits: Array | None = None,
        p_price: Array | None = None,
        q_price: Array | None = None,
    ) -> Question:
        """min cost - lambda.(p, q) + weight |(p, q) - (p-hat, q-hat)|, but for constants; see `constant`.

        Args:
            p, q: (T,) the point; without one p and q are free.
            weight: [$/MW, $/Mvar]
            bits: (K,) a pattern; without one they lie between 0 and 1.
            p_price, q_price: (T,) lambda [$/MW, $/Mvar, for an interval].

        Raises:
            ValueError: a length that does not fit, a number that is not finite, a weight below zero.
        """
        block, free = self.block, self._free
        found = Question(*(getattr(free, name).copy() for name in Question.__dataclass_fields__))
        found.c[self.y], found.c[self.z] = block.cost_y, block.cost_z
        if p_price is not None and q_price is not None:
            self.check("price", p_price, q_price)
            found.c[self.y] -= block.P_y.T @ p_price + block.Q_y.T @ q_price
        if p is not None and q is not None:
            self.check("point", p, q)
            if not (weight >= 0 and np.isfinite(weight)):
                raise ValueError(f"weight of slack {weight}: give a finite number not below zero [$/MW]")
            found.c[self.deviation], found.high[self.deviation] = weight, np.inf
            found.row_low[self.p] = found.row_high[self.p] = p - block.P_0
            found.row_low[self.q] = found.row_high[self.q] = q - block.Q_0
        if bits is not None:
            if np.shape(bits) != (self.K,) or not np.isfinite(bits).all():
                raise ValueError(f"bits {bits}: needed are {self.K} finite numbers")
            found.low[self.z] = found.high[self.z] = bits
        return found

    def least(self, question: Question, *, anew: bool = True) -> Proof:
        """See `Prover.least`; bits are what their bounds leave them, whole or not."""
        return self.prover.least(question, anew=anew)

    def least_whole(self, question: Question) -> Proof:
        """The least with bits that are 0 or 1: the pattern by a branch and bound, all else by the linear
        program with that pattern. Its multipliers and bound are of that program.

        Raises:
            Infeasible: no pattern of bits keeps the rows.
            SolverFailed: a solver ended without an answer.
        """
        if not self.K:
            return self.least(question)
        bits = self.prover.whole(question, self._whole)[self.z]
        low, high = question.low.copy(), question.high.copy()
        low[self.z] = high[self.z] = bits
        return self.least(replace(question, low=low, high=high))

    def exchange(self, x: Array) -> tuple[Array, Array]:
        """(T,), (T,) p and q of a solution."""
        block, y = self.block, x[self.y]
        return block.P_y @ y + block.P_0, block.Q_y @ y + block.Q_0

    def true_cost(self, x: Array) -> float:
        """What a solution costs over the horizon [$]."""
        return float(self.block.cost_y @ x[self.y] + self.block.cost_z @ x[self.z])

    def constant(self, p_price: Array, q_price: Array) -> float:
        """What `question` leaves out: -lambda.(P_0, Q_0) [$]."""
        return -float(p_price @ self.block.P_0 + q_price @ self.block.Q_0)

    def check(self, what: str, p: Array, q: Array) -> None:
        """Refuse what has another length or is not finite."""
        for name, values in (("p", p), ("q", q)):
            if np.shape(values) != (self.T,) or not np.isfinite(values).all():
                raise ValueError(
                    f"{what}: {name} is {values}; needed are {self.T} finite numbers, one an interval"
                )


def _slices(widths: tuple[int, ...]) -> list[slice]:
    ends = np.cumsum([0, *widths]).tolist()
    return [slice(start, end) for start, end in pairwise(ends)]


def _placed(entries: list[tuple[slice, slice, Any]], rows: int, columns: int) -> sparse.csr_array:
    """A matrix of blocks, each where its rows and columns say."""
    value, row, column = [], [], []
    for at_row, at_column, block in entries:
        part = sparse.coo_array(block)
        value.append(part.data)
        row.append(part.row + at_row.start)
        column.append(part.col + at_column.start)
    where = np.concatenate(row), np.concatenate(column)
    return sparse.csr_array((np.concatenate(value), where), shape=(rows, columns))
