"""Restoration: the nearest that a microgrid can keep with bits that are 0 or 1, (14), and what it proves.

With v(x) the least cost of keeping x = (p, q) exactly, infinite where no pattern of bits keeps it:

    F~(pi, rho) = min over x of v(x) - pi.(x - x-hat) + rho |x - x-hat|
    tent:        theta >= F~ + pi.(x - x-hat) - rho |x - x-hat|       for every x, by the definition of F~
    printed:     F* = min |x' - x-hat'| weighted, over theta >= v(x);   weighted |x' - x-hat'| >= F*     (14i)

The minimum of (14a)-(14c) needs no sigma of (14d)-(14h): of delta+ and delta- one is zero in a minimum
anyway, for both cost; only the cut in the operator's problem needs it. The tent with slope 0 is the
stronger, one-sided form of (14i), for X' = {theta >= v(x)} is closed upwards.

Augmented: with a slope the tent is wider. Slope and weight are found here, not from the unified cut: at a
point that the relaxation keeps, F = 0 and its multipliers may all be zero. The slope is the derivative of
the relaxed min v + rho |x - x-hat|, the same multipliers with theta-hat far below. The weight is the least
that is as tight at x-hat as the given one: F~(pi, .) is concave and piecewise linear, so Newton's method
from weight 0 ends there after few steps, where bisection would only come near.

Implements (14a)-(14c) and (14i).
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from controllers.contract import Infeasible
from controllers.partnership.coupling import Point, Tent
from controllers.partnership.multipliers import Proof, Question
from controllers.partnership.program import Program

Array = npt.NDArray[np.float64]

PatternKind: TypeAlias = Literal["restoration", "augmented", "rounding", "off", "on"]
POOL: tuple[PatternKind, ...] = get_args(PatternKind)

SLIGHT = 1.0
"""Weight [$/MW] with which the pattern `augmented` is found: the slope alone nearly decides."""

ROOM = 1e-8
"""By how much what was least before may be missed after [MW, $]: a solver leaves rows by a tenth of that."""

TIGHT = 1e-7
"""How near to the given weight's value a smaller weight's must come, of 1 or that value."""


@dataclass(frozen=True, eq=False)
class Restored:
    """What the search for the nearest found."""

    tent: Tent
    bits: Array
    """(K,) of the nearest"""
    off_by: float
    """sum of what p and q of the nearest miss of the point, over the intervals [MW, Mvar]"""
    programs: int
    """how many with whole bits were solved"""


def restore(program: Program, point: Point, weight: float) -> Restored:
    """F~ with slope 0, and the one-sided cut that it proves.

    Args:
        weight: rho, of each coordinate [$/MW].

    Raises:
        ValueError: a point of another length, a weight below zero.
        SolverFailed: a solver ended without an answer.
    """
    none = np.zeros(program.T)
    return _restored(program, point, none, none, weight, 1)


def augment(program: Program, point: Point, weight: float) -> Restored:
    """F~ with the relaxation's slope, and the least weight that is as tight at the point as the given one."""
    p_slope, q_slope = slope(program, point, weight)
    tight = _restored(program, point, p_slope, q_slope, weight, 1)
    enough = tight.tent.value - TIGHT * max(1.0, abs(tight.tent.value))
    if tight.tent.value - weight * tight.off_by < enough:
        return tight  # what lies away from the point is dearer by more weight: no less is as tight
    least, count = 0.0, 1
    while least < weight:
        found = _restored(program, point, p_slope, q_slope, least, count := count + 1)
        if found.tent.value >= enough:
            return replace(found, programs=count)
        # With more weight this solution costs more by its distance: from where it reaches `enough`, go on.
        least += (enough - found.tent.value) / found.off_by if found.off_by > 0 else weight
    return replace(tight, programs=count)


def slope(program: Program, point: Point, weight: float) -> tuple[Array, Array]:
    """(T,), (T,) derivative of the relaxed min v + rho |x - x-hat| by p and q."""
    mu = program.least(program.question(point.p, point.q, weight=weight)).multipliers
    return mu[program.p], mu[program.q]


def pattern(program: Program, kind: PatternKind, point: Point, weight: float) -> Array:
    """(K,) bits of one of the pool's kinds, the nearest to it that can be operated.

    | kind          | bits                                                                       |
    |---------------|----------------------------------------------------------------------------|
    | `restoration` | of the nearest to the point, by the given weight                           |
    | `augmented`   | of the nearest by the relaxation's slope and a slight weight               |
    | `rounding`    | of the relaxed nearest, rounded at 1/2                                     |
    | `off`, `on`   | all 0, all 1                                                               |

    Raises:
        ValueError: a kind that does not exist; else as `restore`.
        SolverFailed: a solver ended without an answer.
    """
    match kind:
        case "restoration":
            return restore(program, point, weight).bits
        case "augmented":
            return _restored(program, point, *slope(program, point, weight), SLIGHT, 1).bits
        case "rounding":
            found = program.least(program.question(point.p, point.q, weight=weight)).x[program.z]
            return _operable(program, (found > 0.5).astype(float))
        case "off" | "on":
            return _operable(program, np.full(program.K, float(kind == "on")))
    raise ValueError(f"pattern {kind!r} does not exist; there are {list(POOL)}")


@dataclass(frozen=True, eq=False)
class Operation:
    """What a microgrid does about an operating point that was agreed on."""

    y: Array
    bits: Array
    """the block's variables"""
    cost: float
    """over the horizon [$]"""
    p: Array
    q: Array
    """(T,) exchange"""
    off_by: float
    """sum of what p and q miss of the point, over the intervals [MW, Mvar]"""


def settle(program: Program, point: Point, bits: Array | None = None) -> Operation:
    """The operation that misses a point by least, of these the cheapest, of these the one that uses stores
    least.

    So no store charges and discharges at once unless that pays.

    Args:
        bits: (K,) a pattern; `None`: the best one.

    Raises:
        Infeasible: the microgrid cannot be operated with that pattern, whatever it exchanges.
        ValueError, SolverFailed: as `restore`.
    """
    nearest = program.question(point.p, point.q, weight=1.0, bits=bits)
    nearest.c[program.y], nearest.c[program.z] = 0.0, 0.0
    missed = _best(program, nearest, bits).x[program.deviation]
    cheapest = program.question(point.p, point.q, weight=0.0, bits=bits)
    cheapest.high[program.deviation] = missed + ROOM
    x = _best(program, cheapest, bits).x
    gentlest = replace(cheapest, c=np.zeros(len(x)), row_high=cheapest.row_high.copy())
    gentlest.c[program.y] = program.made.throughput
    gentlest.low[program.z] = gentlest.high[program.z] = x[program.z]
    gentlest.row_high[program.cost] = program.true_cost(x) + ROOM
    with suppress(Infeasible):  # for want of room: rounding, summed up; then the cheapest stands
        x = program.least(gentlest).x
    p, q, off_by = _miss(program, x, point)
    return Operation(x[program.y], x[program.z], program.true_cost(x), p, q, off_by)


def _best(program: Program, question: Question, bits: Array | None) -> Proof:
    return program.least_whole(question) if bits is None else program.least(question)


def _restored(
    program: Program, point: Point, p_slope: Array, q_slope: Array, weight: float, programs: int
) -> Restored:
    question = program.question(point.p, point.q, weight=weight, p_price=p_slope, q_price=q_slope)
    proof = program.least_whole(question)  # (14a) (14b) (14c)
    away = float(p_slope @ point.p + q_slope @ point.q)
    value = proof.bound + program.constant(p_slope, q_slope) + away
    centre, both = np.concatenate([point.p, point.q]), np.concatenate([p_slope, q_slope])
    tent = Tent(centre, value, both, np.full(2 * program.T, weight))  # (14i)
    return Restored(tent, proof.x[program.z], _miss(program, proof.x, point)[2], programs)


def _miss(program: Program, x: Array, point: Point) -> tuple[Array, Array, float]:
    p, q = program.exchange(x)
    return p, q, float(np.abs(p - point.p).sum() + np.abs(q - point.q).sum())


def _operable(program: Program, bits: Array) -> Array:
    """The nearest pattern with which the microgrid can be operated: at first an engine may have to run on."""
    alone = program.question(bits=bits)
    alone.c[:] = 0.0
    try:
        program.least(alone)
    except Infeasible:
        change = program.question()
        change.c[:] = 0.0
        change.c[program.z] = 1 - 2 * bits
        return program.least_whole(change).x[program.z]
    return bits
