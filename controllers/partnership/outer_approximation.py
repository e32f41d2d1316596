"""Outer approximation: the best point of a `MixedConic` (Duran and Grossmann 1986).

A mixed-integer linear program over tangents of the cones gives a bound and whole values; the cone program
with these values held gives a point that is feasible, and new tangents at it:

    s = b - A x in a second-order cone, g = s_1 / |s_1| at a point:    g . s_1 <= s_0 for all s in the cone

Where no point has the whole values, the proof y of it is a cut in each cone, y . s >= 0 (Coey, Lubin, Vielma
2020). Tangents at the optimum of the relaxation are there from the start: by them alone the linear program
has the relaxation's value. Whole values are looked at once at most, so it ends; values that come back mean
that only the tangents are still too coarse there, and more are added at the linear program's point.

It is the other way to the answer of `branch_and_bound`, and better where the relaxation says little, as with
many tents, since the linear program's solver branches faster. Where microgrids commit units it is slower.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import sparse

from controllers.contract import Infeasible, SolverFailed
from controllers.partnership.mixed_conic import MixedConic
from controllers.partnership.relaxation import TOLERANCE, Held, Solution, left, relaxed, rounded
from controllers.solve import MixedLinear, NoPoint

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

BROKEN = 1e-9
"""By how much of its size a cone must be broken for a tangent there."""

ROUNDS = 200
"""Of linear programs."""


def whole(
    program: MixedConic,
    *,
    tolerance: float = TOLERANCE,
    time_limit_s: float = 60.0,
) -> Solution:
    """The best x whose whole variables are whole, to `tolerance`.

    Args:
        tolerance: greatest `value - bound`, relative to the value or 1 if it is less.
        time_limit_s: of each linear and each cone program.

    Raises:
        Infeasible: no such point.
        SolverFailed: a solver ended without a usable answer, or the gap did not close.
    """
    first = relaxed(program, time_limit_s=time_limit_s)
    if not len(program.whole):
        return first
    held, bound, seen = Held(program, time_limit_s=time_limit_s), first.bound, set[bytes]()
    best = rounded(held, first, seen)
    linear = _linear(program, left(first, best, program.low, program.high), tolerance, time_limit_s)
    for point in (first, best):
        if point is not None:
            linear.add(*_tangents(program, point.x))
    for rounds in range(ROUNDS):
        if best is not None and best.value - bound <= tolerance * max(1.0, abs(best.value)):
            return Solution(best.x, best.value, min(bound, best.value), rounds)
        try:
            x, below = linear.minimize(None if best is None else best.x)
        except Infeasible:
            if best is None:
                raise
            break  # the rows touch the best point, and rounding shut it out
        bound = max(bound, below)
        values = x[program.whole]
        A, b = _tangents(program, x, broken=True)
        if values.tobytes() not in seen:
            best = _try(held, values, best, linear, seen)
        elif not len(b):
            break  # nothing is left to be cut off: the rest is the solvers' tolerance
        linear.add(A, b)
    if best is None:
        raise Infeasible("no whole values have a point within the cones")
    if best.value - bound > 10 * tolerance * max(1.0, abs(best.value)):
        raise SolverFailed(
            f"outer approximation: between {bound:.9g} and {best.value:.9g} after {len(seen)} patterns; "
            "allow a greater tolerance"
        )
    return Solution(best.x, best.value, min(bound, best.value), rounds + 1)


def _try(
    held: Held, values: Array, best: Solution | None, linear: MixedLinear, seen: set[bytes]
) -> Solution | None:
    """The better one of `best` and the best point with these whole values; adds what is learnt from it."""
    seen.add(values.tobytes())
    try:
        found = held.minimize(values)
    except NoPoint as none:
        linear.add(*_proof(held.program, none.certificate))
        return best
    linear.add(*_tangents(held.program, found.x))
    return found if best is None or found.value < best.value else best


def _linear(
    program: MixedConic, bounds: tuple[Array, Array], tolerance: float, time_limit_s: float
) -> MixedLinear:
    """What of the program is linear; `bounds` of the whole variables."""
    n = len(program.q)
    equal, above = program.rows("zero"), program.rows("nonnegative")
    rows = np.concatenate([equal, above])
    row_low = np.concatenate([program.b[equal], np.full(len(above), -np.inf)])
    low, high, integral = np.full(n, -np.inf), np.full(n, np.inf), np.zeros(n, dtype=np.bool_)
    low[program.whole], high[program.whole], integral[program.whole] = *bounds, True
    A = sparse.csr_array(program.A)[rows]
    return MixedLinear(
        program.q, A, row_low, program.b[rows], low, high, integral,
        gap=tolerance / 2, time_limit_s=time_limit_s,
    )  # fmt: skip


def _tangents(program: MixedConic, x: Array, *, broken: bool = False) -> tuple[sparse.csr_array, Array]:
    """Rows `A x <= b` that touch each cone in the direction of x; only of those that x breaks, if so told."""
    s = program.b - program.A @ x
    rows, columns, weights = list[Ints](), list[Ints](), list[Array]()
    for first, end in program.second:
        tail = s[first + 1 : end]
        length = float(np.linalg.norm(tail))
        if length < 1e-12 or (broken and length - s[first] <= BROKEN * (1.0 + length)):
            continue
        rows.append(np.full(end - first, len(rows)))
        columns.append(np.arange(first, end))
        weights.append(np.concatenate([[1.0], -tail / length]))
    return _combined(program, rows, columns, weights)


def _proof(program: MixedConic, y: Array) -> tuple[sparse.csr_array, Array]:
    """Rows `A x <= b`, y . s >= 0 for each second-order cone."""
    rows, columns, weights = list[Ints](), list[Ints](), list[Array]()
    scale = float(np.abs(y).max())
    for first, end in program.second:
        if y[first] > BROKEN * scale:
            part = y[first:end] / y[first]
            part[1:] /= max(1.0, float(np.linalg.norm(part[1:])))  # into the cone, from rounding
            rows.append(np.full(end - first, len(rows)))
            columns.append(np.arange(first, end))
            weights.append(part)
    return _combined(program, rows, columns, weights)


def _combined(
    program: MixedConic, rows: list[Ints], columns: list[Ints], weights: list[Array]
) -> tuple[sparse.csr_array, Array]:
    """Sums of the program's rows, as `A x <= b`."""
    m = len(program.b)
    if not rows:
        return sparse.csr_array((0, len(program.q))), np.zeros(0)
    entries = np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns))
    sums = sparse.csr_array(entries, shape=(len(rows), m))
    return sparse.csr_array(sums @ program.A), np.asarray(sums @ program.b)
