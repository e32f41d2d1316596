"""Polygons: what two of them have in common, what holds both, and whether one holds the other."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from controllers.contract import Infeasible
from controllers.envelopes.shapes import hull
from controllers.region import Region

Array = npt.NDArray[np.float64]

Polygon: TypeAlias = tuple[Array, Region]
"""Corners (corners, 2) [MW, Mvar], and the same as half-planes."""

LESS = 1e-6
"""How much smaller [MW, Mvar] a region may be and still count as no smaller: a watt."""


def within(corners: Array, region: Region) -> bool:
    """Whether a region holds the polygon with these corners (corners, 2), but for a watt."""
    excess = region.A @ corners.T - region.b[:, None]
    return bool((excess <= LESS).all())


def common(one: Polygon, other: Polygon) -> Polygon:
    """What two polygons have in common; the first one if that is nothing."""
    try:
        corners = convex((one[1] & other[1]).vertices())
    except Infeasible:
        return one
    return corners, hull(corners)


def convex(points: Array) -> Array:
    """Corners (corners, 2) of the smallest convex polygon around points (points, 2), counter-clockwise.

    Andrew's monotone chain; points on one line give the two ends, equal points one.
    """
    ordered = np.unique(points + 0.0, axis=0).tolist()
    if len(ordered) < 3:
        return np.array(ordered)

    def chain(sequence: list[list[float]]) -> list[list[float]]:
        kept: list[list[float]] = []
        for x, y in sequence:
            while len(kept) > 1:
                (ax, ay), (bx, by) = kept[-2], kept[-1]
                if (bx - ax) * (y - ay) - (by - ay) * (x - ax) > 0:
                    break
                kept.pop()
            kept.append([x, y])
        return kept[:-1]

    return np.array(chain(ordered) + chain(ordered[::-1]))
