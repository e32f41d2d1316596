"""Branch and bound: the best point of a `MixedConic` by a tree of cone programs (Land and Doig 1960).

A node is the relaxation between bounds of the whole variables. The one with the least bound is next, and is
split at the variable farthest from whole. Two things keep the tree small: the relaxation's values, rounded
three ways, give a point at once; and at every node the duals of the bounds say which variables cannot leave
them without costing more than the best point, so these stay there. Where microgrids commit units this takes a
few nodes: the relaxation is then within 1e-3 of the value, and most bits are decided by their duals at the
root.
"""

from __future__ import annotations

import heapq
from dataclasses import replace
from itertools import count
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from controllers.contract import Infeasible, SolverFailed
from controllers.partnership.mixed_conic import MixedConic
from controllers.partnership.relaxation import NEAR, TOLERANCE, Held, Relaxation, Solution, left, rounded
from controllers.solve import NoPoint

Array = npt.NDArray[np.float64]

NODES = 20_000
"""After so many there is no answer."""


class _Node(NamedTuple):
    bound: float
    number: int
    """orders nodes of the same bound"""
    low: Array
    high: Array
    at: Solution
    """the relaxation's optimum between these bounds"""


def whole(
    program: MixedConic,
    *,
    tolerance: float = TOLERANCE,
    time_limit_s: float = 60.0,
    most_nodes: int = NODES,
) -> Solution:
    """The best x whose whole variables are whole, to `tolerance`.

    Args:
        tolerance: greatest `value - bound`, relative to the value or 1 if it is less.
        time_limit_s: of each cone program.

    Raises:
        Infeasible: no such point.
        SolverFailed: the solver ended without a usable answer, or there are more nodes.
    """
    relaxation = Relaxation(program, time_limit_s=time_limit_s)
    root = relaxation.minimize(program.low, program.high)
    if not len(program.whole):
        return root
    held, seen, numbers = Held(program, time_limit_s=time_limit_s), set[bytes](), count()
    best = rounded(held, root, seen)
    heap = [_Node(root.bound, next(numbers), program.low, program.high, root)]
    nodes, closed = 1, np.inf  # the least bound of what is closed to within the tolerance

    def near(value: float, bound: float) -> bool:
        return value - bound <= tolerance * max(1.0, abs(value))

    while heap:
        bound, _, low, high, at = heapq.heappop(heap)
        if best is not None and near(best.value, bound):
            closed = min(closed, bound)
            break
        if nodes >= most_nodes:
            value = "no point" if best is None else f"{best.value:.9g}"
            raise SolverFailed(
                f"branch and bound: {value} and a bound of {bound:.9g} after {nodes} nodes; allow a greater "
                "tolerance"
            )
        low, high = left(at, best, low, high)
        free = np.flatnonzero(low < high)
        values = np.clip(at.x[program.whole], low, high)
        away = np.abs(values - np.round(values))[free]
        if away.max(initial=0.0) <= NEAR:
            found = _point(held, np.round(values), seen)
            best = _better(best, found)
            if found is not None and near(found.value, bound):
                closed = min(closed, bound)
                continue
        if not len(free):
            continue  # its only point has been looked at
        split = free[int(np.argmax(away))]
        middle = min(np.floor(values[split]), high[split] - 1)
        upper, lower = high.copy(), low.copy()
        upper[split], lower[split] = middle, middle + 1
        for ends in ((low, upper), (lower, high)):
            nodes += 1
            try:
                child = relaxation.minimize(*ends)
            except NoPoint:
                continue
            except SolverFailed:
                if (ends[0] == ends[1]).all():
                    raise
                # What holds of all holds of a part; with more values held the solver may see it through.
                child = replace(at, lifts=None)
            if best is None or child.bound < best.value:
                heapq.heappush(heap, _Node(child.bound, next(numbers), *ends, child))
    if best is None:
        raise Infeasible("no whole values have a point within the cones")
    return Solution(best.x, best.value, min(closed, best.value), nodes)


def _point(held: Held, values: Array, seen: set[bytes]) -> Solution | None:
    """The best point with these whole values, unless they have been looked at."""
    if values.tobytes() in seen:
        return None
    seen.add(values.tobytes())
    try:
        return held.minimize(values)
    except NoPoint:
        return None


def _better(best: Solution | None, found: Solution | None) -> Solution | None:
    return found if best is None or (found is not None and found.value < best.value) else best
