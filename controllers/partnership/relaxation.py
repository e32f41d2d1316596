"""Relaxation: a `MixedConic` with its whole variables between bounds, or held at values."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from controllers.partnership.mixed_conic import MixedConic
from controllers.solve import TIME_LIMIT_S, Cone, Conic, ConicOptimum, NoPoint

Array = npt.NDArray[np.float64]

TOLERANCE = 1e-7
"""Of the gap, relative to the value or 1 if it is less; the solvers themselves leave 1e-8."""

NEAR = 1e-4
"""How far from whole a relaxation's value may be to be taken for it."""

CONSTANT = 1e-6
"""By how much whole values may break a row in which there is nothing else."""


@dataclass(frozen=True, eq=False)
class Solution:
    """An answer to a mixed conic program."""

    x: Array
    """(n,)"""
    value: float
    """of the objective at x"""
    bound: float
    """no point that is allowed is below it, but for tolerances"""
    rounds: int = 0
    """mixed-integer linear programs, or nodes of a tree, behind it"""
    lifts: Array | None = None
    """(2, k) of a relaxation: by how much the objective grows at least where a whole variable leaves its
    lower, its upper bound by one"""
    duals: Array | None = None
    """(m,) of the program's rows, of a relaxation"""


class Relaxation:
    """A mixed conic program whose whole variables may take any value between bounds; compiled once."""

    def __init__(self, program: MixedConic, *, time_limit_s: float = TIME_LIMIT_S) -> None:
        k, n = len(program.whole), len(program.q)
        one = sparse.csr_array((np.ones(k), (np.arange(k), program.whole)), shape=(k, n))
        A = sparse.csc_array(sparse.vstack([program.A, one, -one])) if k else program.A
        cones: list[Cone] = [*program.cones]
        if k:
            cones.append(("nonnegative", 2 * k))
        self.program = program
        self._conic = Conic(
            None, program.q, A, self._right(program.low, program.high), cones,
            time_limit_s=time_limit_s, refined=False,
        )  # fmt: skip

    def minimize(self, low: Array, high: Array) -> Solution:
        """The best x with whole variables between `low` and `high` (k,).

        Raises:
            NoPoint: no point satisfies the cones.
            Infeasible: the objective has no end.
            SolverFailed: the solver ended without a usable answer.
        """
        found = self._conic.optimum(b=self._right(low, high))
        lifts = found.duals[len(self.program.b) :].reshape(2, len(low))[::-1]
        duals = found.duals[: len(self.program.b)]
        return Solution(found.x, found.value, min(found.value, found.bound), lifts=lifts, duals=duals)

    def _right(self, low: Array, high: Array) -> Array:
        return np.concatenate([self.program.b, high, -low])


def relaxed(program: MixedConic, *, time_limit_s: float = TIME_LIMIT_S) -> Solution:
    """The best x where whole variables may take any value within their bounds; see `Relaxation`."""
    return Relaxation(program, time_limit_s=time_limit_s).minimize(program.low, program.high)


class Held:
    """A mixed conic program with its whole variables held at values; compiled once."""

    def __init__(self, program: MixedConic, *, time_limit_s: float = TIME_LIMIT_S) -> None:
        self.program = program
        self._free = np.setdiff1d(np.arange(len(program.q)), program.whole)
        A = sparse.csr_array(program.A[:, self._free])
        # A row of held variables alone would be a constant: there is no room in it, which solvers dislike.
        empty = np.diff(A.indptr) == 0
        self._equal, self._above = (
            np.intersect1d(np.flatnonzero(empty), program.rows(kind)) for kind in ("zero", "nonnegative")
        )
        kept = np.ones(len(program.b), dtype=np.bool_)
        kept[self._equal] = kept[self._above] = False
        self._kept = np.flatnonzero(kept)
        cones: list[Cone] = []
        for (kind, _), a, b in program.spans:
            if size := int(kept[a:b].sum()):
                cones.append((kind, size))
        self._by_whole = sparse.csr_array(program.A[:, program.whole])
        self._conic = Conic(
            None, program.q[self._free], sparse.csc_array(A[self._kept]), program.b[self._kept], cones,
            time_limit_s=time_limit_s, refined=False,
        )  # fmt: skip

    def minimize(self, values: Array) -> Solution:
        """The best x with these values (k,).

        Raises:
            NoPoint: there is none, with the proof (m,) over the program's rows.
            Infeasible: the objective has no end.
            SolverFailed: the solver ended without a usable answer.
        """
        program = self.program
        b = program.b - self._by_whole @ values
        for rows, wrong in ((self._equal, np.abs(b[self._equal])), (self._above, -b[self._above])):
            if wrong.max(initial=0.0) > CONSTANT:
                row = rows[int(np.argmax(wrong))]
                proof = np.zeros(len(b))
                proof[row] = -np.sign(b[row])
                raise NoPoint("the held values break a row of their own", proof)
        try:
            found: ConicOptimum = self._conic.optimum(b=b[self._kept])
        except NoPoint as none:
            proof = np.zeros(len(b))
            proof[self._kept] = none.certificate
            raise NoPoint(str(none), proof) from none
        x = np.zeros(len(program.q))
        x[self._free], x[program.whole] = found.x, values
        fixed = float(program.q[program.whole] @ values)
        return Solution(x, found.value + fixed, min(found.value, found.bound) + fixed)


def rounded(held: Held, first: Solution, seen: set[bytes]) -> Solution | None:
    """The best point with the relaxation's values rounded, all up or all down, if any of them has one."""
    at, best = first.x[held.program.whole], None
    for values in (np.round(at), np.ceil(at - NEAR), np.floor(at + NEAR)):
        if values.tobytes() in seen:
            continue
        seen.add(values.tobytes())
        with suppress(NoPoint):
            found = held.minimize(values)
            best = found if best is None or found.value < best.value else best
    return best


def left(first: Solution, best: Solution | None, low: Array, high: Array) -> tuple[Array, Array]:
    """Bounds of the whole variables between which everything lies that is better than `best`.

    By weak duality the objective is at least `first.bound` plus what leaving a bound by one adds to it.

    Args:
        first: the relaxation's optimum between `low` and `high` (k,).
    """
    if best is None or first.lifts is None:
        return low, high
    room = best.value - first.bound + TOLERANCE * max(1.0, abs(best.value))
    stays_low, stays_high = first.lifts > room
    return np.where(stays_high, high, low), np.where(stays_low, low, high)
