"""EPQ: operating envelopes that are one polygon in the P-Q plane, in a size for each device by its weight.

Every device may use its polygon at the same time as all others use theirs, in any combination, and the linear
network model keeps its limits. A rectangle spends most of the room on its corners; a polygon does not.

Source: the equal rectangles of seed 004, appendix, model (A3), with a free shape instead; ours.

| symbol  | here        | meaning                                                     | unit        |
|---------|-------------|-------------------------------------------------------------|-------------|
| M       | `corners`   | directions, equally spaced, both ends of both axes included  | 1           |
| d_m     | `direction` | (cos, sin) of 2 pi m / M                                     | 1           |
| rho_m   | `rho`       | distance of the polygon's corner in direction m              | MVA         |
| gamma_i | `gamma`     | weight of device i                                           | 1 or MW     |
| a_ki    |             | (A_ki, B_ki), coefficients of device i in row k              |             |
| W_k     | `W`         | room in row k                                                | pu^2 or MVA |

The program. Device i may be anywhere in the convex hull of the points gamma_i rho_m d_m, so it takes of row k
at most its support function there, and

    max sum_m rho_m    s.t.  sum_i gamma_i max_m rho_m <a_ki, d_m> <= W_k  for all k,    rho >= 0

Each choice of one corner a device is a linear row in rho: sum_m c_m rho_m <= W_k, where c_m is the sum of
gamma_i <a_ki, d_m> over the devices that choose m. There are M^N of them for each k, of which a dozen matter;
they are added as they are violated, the worst choice of each row first (cutting planes). A row in which all
devices' a_ki point one way, as every loading row of a radial grid does, allows each rho_m by itself: it is a
bound. No direction is ever rounded, so there is nothing to be rounded outward.

Among the polygons within a millionth of the greatest sum the one of least sum of squares is taken: the only
one, and a round one. A corner that lies inside the others' hull is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from controllers.contract import ControlError, Infeasible
from controllers.envelopes.allowable import NOTHING
from controllers.envelopes.method import EnvelopeMethod
from controllers.envelopes.shapes import FLAT, Shapes
from controllers.solve import Conic, linear

Array = npt.NDArray[np.float64]

GIVEN_UP = 1e-6
"""How much of the greatest sum of rho may go for the least sum of squares, relative."""

TIGHT = 1e-9
"""How far beyond a row, in units of the longest rho possible, still counts as on it while cuts are added."""

AT_ONCE = 8
"""Cuts added at once."""

ONE_WAY = 1e-13
"""Sine of the angle up to which two rows' coefficients of different devices point one way."""


@dataclass
class EqualPolygons(EnvelopeMethod):
    """EPQ: the polygons `gamma conv(rho_m d_m)` of greatest sum of rho.

    The guarantee holds in the linear model for any use of the polygons; see `EqualRanges` for what the AC
    power flow may add, and `Certified` for the cure.

    Args:
        corners: directions M, a multiple of 4 so that both axes are among them. More give more area: 16 about
            a seventh more than 8.
        others: see `EnvelopeMethod`.

    Raises:
        ValueError: no devices, a weight that is not positive, or an option that does not exist.
        Infeasible: (step) the background load alone breaks a limit, or nothing limits the polygon.
        SolverFailed: (step) the solver had no answer.
    """

    acronym: ClassVar[str] = "EPQ"
    sources: ClassVar[tuple[str, ...]] = (
        "EPQ, equal polygons: the equal rectangles of Equitable Active-Reactive Power Envelopes for "
        "Distributed Energy Resources in Power Distribution Systems, appendix, model (A3), with a free "
        "common shape",
    )

    corners: int = 16
    _compiled: tuple[Array, Polygon] | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.corners < 4 or self.corners % 4:
            raise ValueError(f"EPQ: corners {self.corners} is no multiple of 4; take 8, 12 or 16")
        self._compiled = self._gamma, Polygon(self.rows.A, self.rows.B, self._gamma, self.corners)

    def share(self, W: Array, gamma: Array) -> Shapes:
        if self._compiled is None or not np.array_equal(self._compiled[0], gamma):
            self._compiled = gamma, Polygon(self.rows.A, self.rows.B, gamma, self.corners)
        polygon = self._compiled[1]
        if not polygon.single.any():
            return Shapes.rated(self.site.devices.values(), active_only=False)
        rho = polygon.widest(W)
        return Shapes.scaled(
            convex(rho[:, None] * polygon.direction), gamma, polygon.limited(rho, W, self.rows.names)
        )


class Polygon:
    """The common polygon for fixed rows and weights; W varies."""

    def __init__(self, A: Array, B: Array, gamma: Array, corners: int) -> None:
        angle = 2 * np.pi * np.arange(corners) / corners
        self.direction = np.column_stack([np.cos(angle), np.sin(angle)])
        """(M, 2)"""
        self.direction[np.abs(self.direction) < 1e-12] = 0.0  # both axes exactly
        a, b = (np.where(np.abs(M) > NOTHING, M, 0.0) * gamma for M in (A, B))
        self.single = np.zeros((len(A), corners))
        """(rows, M) what each rho takes of each row by itself"""
        for i in range(len(gamma)):
            self.single += self._taken(a[:, i], b[:, i])
        sum_a, sum_b = a.sum(axis=1, keepdims=True), b.sum(axis=1, keepdims=True)
        across = np.abs(a * sum_b - b * sum_a)
        one_way = (across <= ONE_WAY * np.hypot(a, b) * np.hypot(sum_a, sum_b)) & (a * sum_a + b * sum_b >= 0)
        self._mixed = np.flatnonzero(~one_way.all(axis=1))
        """rows that several rho take together"""
        self._each = self._taken(a[self._mixed], b[self._mixed])
        """(mixed rows, devices, M) what each device takes at each corner for rho = 1, or at the origin"""

    def _taken(self, a: Array, b: Array) -> Array:
        """What a device with coefficients a, b takes at each corner for rho = 1, or at the origin."""
        x, y = self.direction.T
        return np.asarray(np.maximum(a[..., None] * x + b[..., None] * y, 0.0))

    def support(self, rho: Array) -> Array:
        """(rows,) the most that all devices together can take of each row."""
        taken = (self.single * rho).max(axis=1)
        if len(self._mixed):
            taken[self._mixed] = (self._each * rho).max(axis=2).sum(axis=1)
        return np.asarray(taken)

    def widest(self, W: Array) -> Array:
        """(M,) the lengths rho, for the room W (rows,) of each row, not negative.

        Raises:
            Infeasible: no row limits one of the directions.
            SolverFailed: a solver had no answer.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            high = np.where(self.single > 0, W[:, None] / self.single, np.inf).min(axis=0, initial=np.inf)
        if not np.isfinite(high).all():
            raise Infeasible("no limit of the network bounds the devices' powers; give one a rating")
        unit = float(high.max())
        if unit <= 0:
            return np.zeros(len(high))
        ones, top = np.ones(len(high)), high / unit
        cuts = _Cuts(self._each, self.single[self._mixed].max(axis=1, initial=0.0), W[self._mixed] / unit)
        cuts.add(ones, relative=True)
        greatest = cuts.until_safe(lambda A, b: linear(ones, A, b, 0.0, top))
        try:
            rho = cuts.until_safe(lambda A, b: _roundest(A, b, top, greatest))
        except ControlError:
            rho = greatest  # rooms many powers of ten apart; it is as safe, only less round
        return self._within(np.clip(rho, 0.0, top) * unit, W)

    def _within(self, rho: Array, W: Array) -> Array:
        """rho without what a solver's tolerance leaves too much, taken off where a row involves it."""
        taken = self.support(rho)
        over = taken > W
        factor = np.where(self.single[over] > 0, (W[over] / taken[over])[:, None], 1.0)
        return np.asarray(rho * factor.min(axis=0, initial=1.0))

    def limited(self, rho: Array, W: Array, names: Sequence[str]) -> str:
        """The row that the corner on each axis would break first."""
        left = W - self.support(rho)
        quarter = len(rho) // 4
        texts = []
        for side, m in (("export", 0), ("import", 2), ("injection of vars", 1), ("absorption of vars", 3)):
            taken = self.single[:, m * quarter]
            with np.errstate(divide="ignore", invalid="ignore"):
                room = np.where(taken > 0, left / taken, np.inf)
            texts.append(f"{side} by {names[int(np.argmin(room))]}")
        return ", ".join(texts)


class _Cuts:
    """Linear rows in rho, c rho <= room, each a choice of one corner a device in one row of the network.

    Args:
        each: (rows, devices, M) what each device takes of each row at each corner. size: (rows,) their
            scale. W: (rows,) the room.
    """

    def __init__(self, each: Array, size: Array, W: Array) -> None:
        self._each, self._size, self._W = each, size, W
        self._known: set[tuple[int, bytes]] = set()
        self._A: list[Array] = []
        self._b: list[float] = []

    def add(self, rho: Array, *, relative: bool = False) -> bool:
        """Add the worst choice of the most violated rows, or of the first ones met; whether any is new."""
        if not len(self._W):
            return False
        form = self._each * rho
        taken = form.max(axis=2).sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            over = -self._W / taken if relative else (taken - self._W) / self._size
        worst = np.argpartition(-over, min(AT_ONCE, len(over) - 1))[:AT_ONCE]
        new = False
        for k in worst[over[worst] > (-np.inf if relative else TIGHT)].tolist():
            choice = form[k].argmax(axis=1)
            key = k, choice.tobytes()
            if key in self._known:
                continue  # as near as the solver gets
            self._known.add(key)
            devices = np.arange(len(choice))
            c = np.bincount(choice, self._each[k, devices, choice], form.shape[2])
            self._A.append(c / self._size[k])
            self._b.append(float(self._W[k] / self._size[k]))
            new = True
        return new

    def until_safe(self, solved: Callable[[Array, Array], Array]) -> Array:
        """The rho that `solved` finds under enough cuts for all rows to hold."""
        while True:  # the choices are finitely many, so it ends
            A = np.array(self._A).reshape(-1, self._each.shape[2])
            rho = solved(A, np.array(self._b))
            if not self.add(rho):
                return rho


def _roundest(cuts: Array, room: Array, high: Array, greatest: Array) -> Array:
    """The rho of least sum of squares whose sum is nearly that of `greatest`, under the same rows.

    Raises:
        Infeasible, SolverFailed: numerical trouble, for `greatest` is one that fits.
    """
    unit, n = float(greatest.max()), len(high)
    if unit <= 0:
        return greatest
    identity = np.eye(n)
    A = np.vstack([cuts, -np.ones((1, n)), identity, -identity])
    b = np.concatenate([room, [-(1 - GIVEN_UP) * greatest.sum()], high, np.zeros(n)]) / unit
    return unit * Conic(identity, np.zeros(n), A, b, [("nonnegative", len(b))]).minimize()


def convex(points: Array) -> Array:
    """The corners (corners, 2) of the hull of points (points, 2), counter-clockwise; one or two if flat.

    Andrew's monotone chain. A point on the line between its neighbours, or within it, is no corner.
    """
    tolerance = FLAT * float((points * points).sum(axis=1).max())
    ordered = sorted(set(map(tuple, points.tolist())))

    def chain(line: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
        kept: list[tuple[float, ...]] = []
        for c in line:
            while len(kept) > 1:
                a, b = kept[-2:]
                if (b[0] - a[0]) * (c[1] - b[1]) - (b[1] - a[1]) * (c[0] - b[0]) > tolerance:
                    break
                kept.pop()
            kept.append(c)
        return kept

    if len(ordered) == 1:
        return np.array(ordered)
    return np.array(chain(ordered)[:-1] + chain(ordered[::-1])[:-1])
