"""Subproblem: whether a microgrid can keep an operating point, (13a), and the cut that says so, (13b).

    F = min s_theta + rho sum(p+ + p- + q+ + q-) + weighted r        over the rows of `Program`

| question  | bits z               | slack                                         | the cut is valid for  |
|-----------|----------------------|-----------------------------------------------|-----------------------|
| `relaxed` | 0 <= z <= 1          | p, q, cost                                    | every pattern of bits |
| `printed` | 0 <= z <= 1          | every row, of weight 1: as the seed prints it | every pattern of bits |
| `lifted`  | z-hat, whole or not  | p, q, cost and rows with bits                 | (p, q, theta, z)      |
| `fixed`   | a pattern of its own | p, q, cost                                    | this pattern alone    |
| `priced`  | 0 <= z <= 1          | none; min cost - lambda.(p, q) instead        | every pattern of bits |

F = 0 if and only if the point can be kept with such bits, whatever the weights: each slack costs something,
and the rows without slack always leave an operation (see `commitment`). F is convex and piecewise linear in
the point, so multipliers give F + slope.(x - x-hat) <= 0 for every x that can be kept. For F the cuts take
what the multipliers prove, see `multipliers`: they stay valid however inexact the solver was.

In `lifted` a bit is a variable whose bounds are both z-hat; what its column costs beyond what it brings is
the derivative of F by z-hat, the same number as with z-hat moved to the right-hand side.

Implements (13a)-(13b); (13a) is solved as its primal, whose multipliers are its variables.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import sparse

from controllers.contract import Infeasible
from controllers.partnership.coupling import Cut, Point, axes
from controllers.partnership.multipliers import Proof, Prover, Question
from controllers.partnership.program import Program
from controllers.region import Region

Array = npt.NDArray[np.float64]

START_WEIGHT = 50.0
"""Of slack in a row between bits and a start [$], more than a start is likely to cost."""

NOTHING = 1e-9
"""A row that is shorter says nothing."""


@dataclass(frozen=True, eq=False)
class Separation:
    """The answer to a question about a point."""

    cut: Cut | None
    """`None`: the point can be kept, and there is nothing to say"""
    proof: Proof
    question: Question
    """the linear program that was solved"""
    bits: Array
    """(K,) in its solution"""


def relaxed(program: Program, point: Point, weight: float) -> Separation:
    """The unified cut: whether a point can be kept with bits between 0 and 1.

    Args:
        weight: rho, of slack in p and q [$/MW]; a little above the greatest price it makes the best cuts.

    Raises:
        ValueError: a point of another length, a weight that is not above zero.
        SolverFailed: the solver ended without an answer.
    """
    return _separation(program, point, _asked(program, point, weight))


def fixed(program: Program, point: Point, weight: float, bits: Array) -> Separation:
    """Whether a point can be kept with one pattern of bits; the cut is valid for that pattern alone.

    Raises:
        Infeasible: the microgrid cannot operate with that pattern, whatever it exchanges.
        ValueError, SolverFailed: as `relaxed`; a pattern of another length.
    """
    return _separation(program, point, _asked(program, point, weight, bits))


def lifted(program: Program, point: Point, weight: float) -> Separation:
    """Whether a point can be kept with the point's own bits; the cut is over them too.

    Raises:
        ValueError: as `relaxed`; the point has no bits, or too many or few.
    """
    if point.bits is None:
        raise ValueError(f"lifted point: it has no bits; give each of {program.K} a value between 0 and 1")
    question = _asked(program, point, weight, point.bits)
    starts = program.made.starts[program.with_bits]
    for part in (program.up, program.down):
        question.c[part], question.high[part] = np.where(starts, START_WEIGHT, weight), np.inf
    return _separation(program, point, question, with_bits=True)


def priced(program: Program, p_price: Array, q_price: Array) -> Cut:
    """theta >= F + lambda.(p, q) with F the least of cost - lambda.(p, q), bits between 0 and 1.

    Args:
        p_price, q_price: (T,) lambda [$/MW, $/Mvar, for an interval].

    Returns:
        The cut; its value is 0, for it was made for no point.

    Raises:
        ValueError: prices of another length.
        SolverFailed: the solver ended without an answer.
    """
    proof = program.least(program.question(p_price=p_price, q_price=q_price))
    least = proof.bound + program.constant(p_price, q_price)
    row = np.concatenate([p_price, q_price, [-1.0]])
    region = Region(axes(program.T), row[None, :], np.array([-least]))
    return Cut(region, 0.0, float(np.linalg.norm(row)))


def limits(program: Program) -> tuple[Array, Array]:
    """(T, 2), (T, 2) least and greatest p and q of each interval by itself, bits between 0 and 1.

    Raises:
        SolverFailed: the solver ended without an answer.
    """
    found, block, anew = np.zeros((2, program.T, 2)), program.block, True
    for what, (matrix, constant) in enumerate(((block.P_y, block.P_0), (block.Q_y, block.Q_0))):
        for t, row in enumerate(matrix.toarray()):
            for side, sign in enumerate((1.0, -1.0)):
                question = program.question()
                question.c[:] = 0.0
                question.c[program.y] = sign * row
                found[what, t, side] = constant[t] + sign * program.least(question, anew=anew).bound
                anew = False  # always in this order, so from the same start
    return found[0], found[1]


def _asked(program: Program, point: Point, weight: float, bits: Array | None = None) -> Question:
    if not weight > 0:
        raise ValueError(
            f"weight of slack {weight}: give a number above zero, near the greatest price [$/MW]"
        )
    if not np.isfinite(point.cost):
        raise ValueError(f"point: its cost is {point.cost}; give a finite number")
    question = program.question(point.p, point.q, weight=weight, bits=bits)
    question.c[program.y], question.c[program.z] = 0.0, 0.0
    question.c[program.over], question.high[program.over] = 1.0, np.inf
    question.row_high[program.cost] = point.cost
    return question


def _separation(program: Program, point: Point, question: Question, *, with_bits: bool = False) -> Separation:
    try:
        proof = program.least(question)  # (13a)
    except Infeasible as error:
        raise Infeasible(
            f"the microgrid has no operation with such bits, whatever it exchanges: {error}"
        ) from error
    mu, where = proof.multipliers, [point.p, point.q, np.array([point.cost])]
    slope = [mu[program.p], mu[program.q], mu[program.cost]]
    if with_bits:
        slope.append(proof.worth[program.z])
        where.append(question.low[program.z])
    names = axes(program.T, program.K if with_bits else 0)
    cut = _cut(names, np.concatenate(slope), np.concatenate(where), proof.bound)
    return Separation(cut, proof, question, proof.x[program.z])


def _cut(names: tuple[str, ...], slope: Array, where: Array, value: float) -> Cut | None:
    """value + slope.(x - where) <= 0; nothing where there is no slope, and so no value."""
    length = float(np.linalg.norm(slope))
    if length < NOTHING:
        return None
    row = slope[None, :] + 0.0  # no -0.0 in messages
    region = Region(names, row, np.array([slope @ where - value]))  # (13b)
    return Cut(region, value, length)


class Printed:
    """(13a) as the seed prints it: slack of weight 1 in every row, bounds of y among them; y itself is free.

    An equation counts as two inequalities. Rows are p, q, cost, the block's, and the bounds of y.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        block, n, K = program.block, len(program.block.cost_y), program.K
        own = program.prover.A[:, : n + K].tocsr()
        A = sparse.csr_array(sparse.vstack([own, sparse.eye_array(n, n + K)]))
        rows = A.shape[0]
        unit = sparse.eye_array(rows)
        slack = np.arange(n + K + 2 * rows) >= n + K
        self._prover = Prover(sparse.csr_array(sparse.hstack([A, unit, -unit])), slack)
        self._c = slack.astype(float)
        self._low = np.concatenate([np.full(n, -np.inf), np.zeros(K + 2 * rows)])
        self._high = np.concatenate([np.full(n, np.inf), np.ones(K), np.full(2 * rows, np.inf)])
        self._box = (
            np.concatenate([block.y_low, self._low[n:]]),
            np.concatenate([block.y_high, self._high[n:]]),
        )

    def separate(self, point: Point) -> Separation:
        """The unified cut with these weights.

        Raises:
            ValueError: a point of another length.
            SolverFailed: the solver ended without an answer.
        """
        program, block = self._program, self._program.block
        asked = _asked(program, point, 1.0)
        row_low = np.concatenate([asked.row_low, block.y_low])
        row_high = np.concatenate([asked.row_high, block.y_high])
        question = Question(self._c, row_low, row_high, self._low, self._high)
        proof = self._prover.least(question)  # (13a)
        # A point that is kept has y within its bounds, so what is left of C'mu, rounding, counts there.
        boxed = replace(question, low=self._box[0], high=self._box[1])
        proof = self._prover.proof(boxed, proof.x, proof.multipliers)
        slope = proof.multipliers[: 2 * program.T + 1]
        where = np.concatenate([point.p, point.q, [point.cost]])
        cut = _cut(axes(program.T), slope, where, proof.bound)
        n = len(block.cost_y)
        return Separation(cut, proof, question, proof.x[n : n + program.K])
