"""The restoration of seed 000 as printed: two-sided, theta in the norm. Tents are held against it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from controllers.partnership.coupling import Point
from controllers.partnership.program import Program

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class NormCut:
    """(14i), reverse-convex: weight . |x' - centre| >= value.

    It is weaker than a `Tent` and costs one more coordinate: a theta far below satisfies it.
    """

    centre: Array
    """(2T + 1,) p, q, theta"""
    value: float
    """F > 0 of (14a)"""
    weight: Array
    """(2T + 1,) above zero; of theta 1"""


def restore_both_sides(program: Program, point: Point, weight: float) -> NormCut:
    """(14a)-(14c) with weight 1 of theta."""
    question = program.question(point.p, point.q, weight=weight)
    question.c[program.y], question.c[program.z] = 0.0, 0.0
    question.c[program.over], question.high[program.over] = 1.0, np.inf
    question.row_high[program.cost] = point.cost
    value = program.least_whole(question).bound
    return NormCut(point.vector[: 2 * program.T + 1], value, np.append(np.full(2 * program.T, weight), 1.0))
