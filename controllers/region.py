"""Region: a convex set of operating points, `{x : A x <= b}`, with named axes.

An operating envelope, an interchange capability, a network's allowable powers and a Benders cut
are all values of this one type; a cut is one more row, a correction is an intersection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt

from controllers import solve
from controllers.contract import Infeasible

Array = npt.NDArray[np.float64]
Point = Mapping[str, float] | Sequence[float] | Array

TOLERANCE = 1e-9
"""How far outside a row, in the units of its axis, a point still counts as inside."""


@dataclass(frozen=True, eq=False)
class Region:
    """The points x with `A x <= b`; every row has unit length, so an excess is a distance.

    Rows are scaled on construction. A row without coefficients is dropped when it holds for every
    point and refused when it holds for none.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, axes named twice.
        Infeasible: a row `0 <= b` with b negative.
    """

    axes: tuple[str, ...]
    """Names of the coordinates with their units, e.g. `("p_mw", "q_mvar")`."""
    A: Array
    """(rows, axes) coefficients."""
    b: Array
    """(rows,) right-hand sides, in the units of the axes."""

    def __post_init__(self) -> None:
        A, b = np.array(self.A, dtype=float), np.array(self.b, dtype=float)
        A = A if A.size else A.reshape(0, len(self.axes))
        if len(set(self.axes)) != len(self.axes) or not self.axes:
            raise ValueError(f"region: axes {self.axes} must be named, each once")
        if A.ndim != 2 or A.shape[1] != len(self.axes) or b.shape != (len(A),):
            raise ValueError(
                f"region over {self.axes}: A has shape {A.shape} and b {b.shape}, "
                f"needed are (rows, {len(self.axes)}) and (rows,)"
            )
        if not (np.isfinite(A).all() and np.isfinite(b).all()):
            raise ValueError(f"region over {self.axes}: a coefficient or limit is not finite")
        length = np.sqrt((A * A).sum(axis=1))
        if length.min(initial=1.0) < 1e-12:
            empty = length < 1e-12
            if (b[empty] < -TOLERANCE).any():
                raise Infeasible(f"region over {self.axes}: a row reads 0 <= {b[empty].min():g}")
            A, b, length = A[~empty], b[~empty], length[~empty]
        # A row that has unit length already keeps its last bits: scaling twice is scaling once.
        scaled = np.abs(length - 1) >= 1e-12
        if scaled.any():
            length[~scaled] = 1.0
            A, b = A / length[:, None], b / length
        self._keep(A, b)

    def _keep(self, A: Array, b: Array) -> None:
        A.setflags(write=False)
        b.setflags(write=False)
        object.__setattr__(self, "A", A)
        object.__setattr__(self, "b", b)

    @classmethod
    def box(cls, **limits: tuple[float, float]) -> Region:
        """The region `low <= axis <= high` for each `axis=(low, high)`, in the order given."""
        b = []
        for axis, (low, high) in limits.items():
            if not low <= high:
                raise ValueError(f"box: {axis} has its lower limit {low:g} above its upper {high:g}")
            b += [high + 0.0, 0.0 - low]  # not -low: no -0.0 in tables and messages
        right = np.array(b)
        if not limits or not all(map(isfinite, b)):
            return cls(tuple(limits), _box_rows(len(limits)), right)  # which says what is wrong
        # Thousands of boxes a step: their rows are the same, and known to be of unit length.
        made = object.__new__(cls)
        object.__setattr__(made, "axes", tuple(limits))
        made._keep(_box_rows(len(limits)), right)
        return made

    @classmethod
    def boxes(cls, axes: tuple[str, ...], limits: Array) -> list[Region]:
        """Many boxes at once, all over the same axes, which share one table.

        Args:
            limits: (boxes, axes, 2) least and greatest value.

        Raises:
            ValueError: a limit that is not finite, or a lower one above its upper one.
        """
        if limits.shape[1:] != (len(axes), 2) or not axes:
            raise ValueError(f"boxes over {axes}: limits have shape {limits.shape}")
        if not (np.isfinite(limits).all() and (limits[..., 0] <= limits[..., 1]).all()):
            raise ValueError(f"boxes over {axes}: a limit is not finite, or a lower one above its upper one")
        right = (limits[..., ::-1] * (1.0, -1.0) + 0.0).reshape(-1, 2 * len(axes))  # no -0.0
        rows, found = _box_rows(len(axes)), []
        for b in right:
            made = object.__new__(cls)
            object.__setattr__(made, "axes", axes)
            made._keep(rows, b)
            found.append(made)
        return found

    def excess(self, point: Point) -> float:
        """How far `point` lies outside the worst row (negative inside), in the axes' units."""
        if not len(self.b):
            return -np.inf
        return float((self.A @ self._vector(point) - self.b).max())

    def __contains__(self, point: Point) -> bool:
        return self.excess(point) <= TOLERANCE

    def __and__(self, other: Region) -> Region:
        """The points of both regions; the other's axes are aligned by name."""
        # Rows of regions are checked and scaled: going through the constructor again, several times a
        # device and step, would cost more than all the rest of a device.
        both = object.__new__(Region)
        object.__setattr__(both, "axes", self.axes)
        both._keep(np.concatenate((self.A, other._aligned(self.axes))), np.concatenate((self.b, other.b)))
        return both

    def over(self, axes: tuple[str, ...]) -> Region:
        """The same region with its axes in another order.

        Raises:
            ValueError: not the same axes.
        """
        return self if axes == self.axes else Region(axes, self._aligned(axes), self.b)

    def support(self, direction: Point) -> float:
        """`max d.x` over the region; infinite if it has no end in that direction.

        Raises:
            Infeasible: the region is empty.
        """
        return solve.maximum(self._vector(direction), self.A, self.b)

    def limits(self, axis: str) -> tuple[float, float]:
        """Least and greatest value of one axis over the region."""
        unit = {name: float(name == axis) for name in self.axes}
        if axis not in unit:
            raise KeyError(f"region over {self.axes} has no axis {axis!r}")
        return -self.support({name: -u for name, u in unit.items()}), self.support(unit)

    def vertices(self) -> Array:
        """(vertices, axes) corner points; two-dimensional ones go round counter-clockwise.

        Every set of as many rows as axes is tried, so this is for regions of few rows.

        Raises:
            Infeasible: the region is empty or has no corner.
        """
        n = len(self.axes)
        rows = np.array(list(combinations(range(len(self.b)), n)), dtype=int).reshape(-1, n)
        square, right = self.A[rows], self.b[rows]
        proper = np.abs(np.linalg.det(square)) > 1e-9
        if not proper.any():
            raise Infeasible(f"region over {self.axes} has no vertex")
        corners = np.linalg.solve(square[proper], right[proper][..., None])[..., 0]
        corners = corners[(corners @ self.A.T <= self.b + TOLERANCE).all(axis=1)] + 0.0
        if not len(corners):
            raise Infeasible(f"region over {self.axes} is empty")
        _, first = np.unique(corners.round(9), axis=0, return_index=True)
        corners = corners[first]
        if n == 2:
            centred = corners - corners.mean(axis=0)
            corners = corners[np.argsort(np.arctan2(centred[:, 1], centred[:, 0]), kind="stable")]
        return corners

    def nearest(self, point: Point) -> Array:
        """The region's point closest to `point`, exact, for one or two axes.

        Raises:
            Infeasible: the region is empty.
        """
        if len(self.axes) > 2:
            raise ValueError(f"nearest point: {len(self.axes)} axes, but at most 2 are supported")
        x = self._vector(point).copy()
        outside = self.A @ x - self.b
        if not (outside > 0).any():
            return x
        # It lies on the edge of a violated row: the foot of the perpendicular, moved along the row
        # (direction `along`, by `t`) until every other row holds.
        broken = outside > 0
        normal = self.A[broken]
        feet = x - outside[broken, None] * normal
        along = np.column_stack([-normal[:, 1], normal[:, 0]]) if len(x) == 2 else np.zeros_like(normal)
        room, pace = self.b - feet @ self.A.T, along @ self.A.T
        with np.errstate(divide="ignore", invalid="ignore"):
            t = room / pace
        most = np.where(pace > 1e-12, t, np.inf).min(axis=1)
        least = np.where(pace < -1e-12, t, -np.inf).max(axis=1)
        parallel = np.where(np.abs(pace) <= 1e-12, room, np.inf).min(axis=1)
        usable = (least <= most + TOLERANCE) & (parallel >= -TOLERANCE)
        if not usable.any():
            raise Infeasible(f"region over {self.axes} is empty")
        shift = np.minimum(np.maximum(0.0, least), most)
        candidates = (feet + shift[:, None] * along)[usable]
        return np.asarray(candidates[np.argmin(((candidates - x) ** 2).sum(axis=1))], dtype=float)

    def _vector(self, point: Point) -> Array:
        if isinstance(point, Mapping):
            if set(point) != set(self.axes):
                raise ValueError(f"point names {sorted(point)}, the region has axes {self.axes}")
            return np.array([point[axis] for axis in self.axes], dtype=float)
        x: Any = np.asarray(point, dtype=float)
        if x.shape != (len(self.axes),):
            raise ValueError(f"point has shape {x.shape}, the region has axes {self.axes}")
        return np.asarray(x, dtype=float)

    def _aligned(self, axes: tuple[str, ...]) -> Array:
        if axes == self.axes:
            return self.A
        if set(axes) != set(self.axes):
            raise ValueError(f"regions over {axes} and {self.axes} do not share their axes")
        return self.A[:, [self.axes.index(axis) for axis in axes]]


@lru_cache
def _box_rows(axes: int) -> Array:
    """(2 axes, axes) an upper and a lower row for each axis."""
    return np.kron(np.eye(axes), np.array([[1.0], [-1.0]])) + 0.0
