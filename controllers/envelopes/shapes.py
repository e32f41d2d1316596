"""Shapes: the envelopes of all devices of one result, as polygons in the P-Q plane, given by their corners.

Whatever the method, independent use of the envelopes means that every device may choose any point of
its own polygon; a linear form is greatest at corners, so the corners are all that a check has to know.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from controllers.devices import AXES, Device
from controllers.region import Region

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

OWN = "its own rating"
"""what limits a device that no row of the network limits"""

FLAT = 1e-12
"""An extent [MW, Mvar] below which a polygon counts as a segment or a point."""


@dataclass(frozen=True, eq=False)
class Shapes:
    """Convex polygons, one a device, counter-clockwise."""

    corners: Array
    """(devices, corners, 2) [MW, Mvar]; a polygon with fewer corners repeats one of them"""
    binding: tuple[str | None, ...]
    """(devices,) the row that limits each, e.g. "export by loading of line:3" """
    given: tuple[Region, ...] | None = None
    """(devices,) half-plane form where a method has it; otherwise it follows from the corners"""

    @classmethod
    def boxes(
        cls, p_mw: tuple[Array, Array], q_mvar: tuple[Array, Array], binding: Sequence[str | None] | str
    ) -> Shapes:
        """Rectangles with lower and upper limits (devices,) of both axes."""
        (p_low, p_high), (q_low, q_high) = p_mw, q_mvar
        corners = np.stack(
            [
                np.stack([p_low, p_high, p_high, p_low], axis=1),
                np.stack([q_low, q_low, q_high, q_high], axis=1),
            ],
            axis=2,
        )
        limits = zip(p_low.tolist(), p_high.tolist(), q_low.tolist(), q_high.tolist(), strict=True)
        given = tuple(Region.box(p_mw=(a, b), q_mvar=(c, d)) for a, b, c, d in limits)
        return cls(corners, _each(binding, len(p_low)), given)

    @classmethod
    def ranges(cls, low: Array, high: Array, binding: Sequence[str | None] | str) -> Shapes:
        """Active power from `low` to `high` (devices,) [MW], Q = 0."""
        zero = np.zeros(len(low))
        made = cls.boxes((low, high), (zero, zero), binding)
        return replace(made, corners=made.corners[:, :2])

    @classmethod
    def rated(cls, devices: Iterable[Device], *, active_only: bool) -> Shapes:
        """Each device's own rating in both directions, for devices that no row of the network limits."""
        S = np.array([max(d.rating_mw, getattr(d, "s_mva", 0.0)) for d in devices])
        return cls.ranges(-S, S, OWN) if active_only else cls.boxes((-S, S), (-S, S), OWN)

    @classmethod
    def scaled(cls, corners: Array, scale: Array, binding: Sequence[str | None] | str) -> Shapes:
        """One polygon (corners, 2) in as many sizes as there are devices (devices,)."""
        unit = hull(corners)
        given = tuple(Region(AXES, unit.A, unit.b * s) for s in scale.tolist())
        return cls(scale[:, None, None] * corners, _each(binding, len(scale)), given)

    def __len__(self) -> int:
        return len(self.corners)

    def shrunk(self, factor: float) -> Shapes:
        """All polygons scaled towards the origin."""
        given = None
        if self.given is not None:
            given = tuple(Region(r.axes, r.A, r.b * factor) for r in self.given)
        return replace(self, corners=self.corners * factor, given=given)

    def support(self, A: Array, B: Array) -> Array:
        """(rows,) greatest A P + B Q with every device anywhere in its polygon; A, B (rows, devices)."""
        total = np.zeros(len(A))
        for i, corners in enumerate(self.corners):
            total += (A[:, i, None] * corners[:, 0] + B[:, i, None] * corners[:, 1]).max(axis=1)
        return total

    def worst(self, A: Array, B: Array) -> Ints:
        """(rows, devices) which corner of each device gives `support`."""
        return np.stack(
            [
                (A[:, i, None] * corners[:, 0] + B[:, i, None] * corners[:, 1]).argmax(axis=1)
                for i, corners in enumerate(self.corners)
            ],
            axis=1,
        )

    def points(self, choice: Ints) -> tuple[Array, Array]:
        """(cases, devices) P and Q of the corners chosen (cases, devices)."""
        chosen = self.corners[np.arange(len(self.corners)), choice]
        return chosen[..., 0], chosen[..., 1]

    @cached_property
    def regions(self) -> tuple[Region, ...]:
        """(devices,) the polygons as half-planes."""
        return self.given if self.given is not None else tuple(hull(corners) for corners in self.corners)

    @cached_property
    def areas(self) -> Array:
        """(devices,) [MVA^2]."""
        x, y = self.corners[..., 0], self.corners[..., 1]
        return np.asarray(0.5 * np.abs((x * np.roll(y, -1, axis=1) - y * np.roll(x, -1, axis=1)).sum(axis=1)))

    @cached_property
    def ranges_at_zero(self) -> tuple[Array, Array]:
        """(devices,) least and greatest P at Q = 0 [MW]; the origin belongs to every envelope."""
        x, y = self.corners[..., 0], self.corners[..., 1]
        x2, y2 = np.roll(x, -1, axis=1), np.roll(y, -1, axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            crossing = x - y * (x2 - x) / (y2 - y)
        crosses = (y * y2 <= 0) & (np.abs(y2 - y) > FLAT)
        on_axis = np.abs(y) <= FLAT
        low = np.minimum(
            np.where(crosses, crossing, np.inf).min(axis=1), np.where(on_axis, x, np.inf).min(axis=1)
        )
        high = np.maximum(
            np.where(crosses, crossing, -np.inf).max(axis=1), np.where(on_axis, x, -np.inf).max(axis=1)
        )
        return low, high


def hull(corners: Array) -> Region:
    """The half-planes of a convex polygon's corners (corners, 2), in counter-clockwise order.

    A polygon without area is a segment or a point; it becomes the box or strip that holds just that.
    """
    kept = [corners[0]]
    for corner in corners[1:]:
        if np.hypot(*(corner - kept[-1])) > FLAT:
            kept.append(corner)
    while len(kept) > 1 and np.hypot(*(kept[-1] - kept[0])) <= FLAT:
        kept.pop()
    points = np.array(kept)
    if len(points) == 1:
        (p, q), *_ = points.tolist()
        return Region.box(p_mw=(p, p), q_mvar=(q, q))
    edges = np.roll(points, -1, axis=0) - points
    centred = points - points[0]
    spread = np.abs(centred @ np.array([-edges[0, 1], edges[0, 0]])).max() / np.hypot(*edges[0])
    if len(points) == 2 or spread <= FLAT:
        along = centred[np.argmax((centred * centred).sum(axis=1))]
        along = along / np.hypot(*along)
        across = np.array([-along[1], along[0]])
        reach, offset = points @ along, float(points[0] @ across)
        rows = np.array([along, -along, across, -across])
        return Region(AXES, rows, np.array([reach.max(), -reach.min(), offset, -offset]))
    length = np.hypot(edges[:, 0], edges[:, 1])
    normals = np.column_stack([edges[:, 1], -edges[:, 0]]) / length[:, None]
    return Region(AXES, normals, (normals * points).sum(axis=1))


def _each(binding: Sequence[str | None] | str, n: int) -> tuple[str | None, ...]:
    return (binding,) * n if isinstance(binding, str) else tuple(binding)
