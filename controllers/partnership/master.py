"""Master: the operator's problem with what it knows of each microgrid, (9a)-(9c) of seed 000.

    min cost of the operator + sum of theta_i
    over the network's rows, theta_i >= least_i, boxes of p_i and q_i, cuts and tents of each microgrid

Source: seed 000, appendix B, steps 1 and 2. Implements (9a)-(9c) and (14d)-(14i), the latter in the one-sided
form of `Tent`.

A cut is a row of a `Region` over `axes`. A lifted microgrid's bits are columns as well, between 0 and 1 or
whole; where they are held, they are numbers in its rows. A tent is not convex:

    theta >= value + slope . d - weight . |d|,    d = x - centre,  x = (p, q)

|d_j| is an upper bound of theta's relief, which must not be more than |d_j|, so the sign of d_j is a bit s:

    d_j = up_j - down_j,    0 <= up_j <= M+_j s_j,    0 <= down_j <= M-_j (1 - s_j)

With x_j within its box [low_j, high_j], d_j is at most high_j - centre_j and at least low_j - centre_j, so
M+ = max(high - centre, 0) and M- = max(centre - low, 0) cut off no point, and none less would do. In the
relaxation, s anywhere between 0 and 1, a tent says next to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from controllers.partnership import branch_and_bound, outer_approximation
from controllers.partnership.coupling import Point, Tent, axes
from controllers.partnership.distribution import Conditions, Distribution, Operation
from controllers.partnership.mixed_conic import MixedConic, MixedRows
from controllers.partnership.relaxation import TOLERANCE, Solution, relaxed
from controllers.region import Region
from controllers.solve import TIME_LIMIT_S

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Knowledge:
    """What the operator knows of one microgrid."""

    p_mw: Array
    """(T, 2) least and greatest exchange"""
    q_mvar: Array
    """(T, 2)"""
    cost_low: float = 0.0
    """no schedule costs it less [$]"""
    cuts: tuple[Region, ...] = ()
    """rows over `axes(T, bits)`, or over fewer bits"""
    tents: tuple[Tent, ...] = ()
    bits: int = 0
    """K, above zero: it is lifted"""
    held: Array | None = None
    """(K,) where its bits are held, for this solve"""


@dataclass(frozen=True, eq=False)
class Proposal:
    """What the operator would do if its knowledge were all there is."""

    points: tuple[Point, ...]
    """of each microgrid"""
    value: float
    """cost of the operator, and of the microgrids as far as it knows [$]"""
    bound: float
    """no operation that keeps the cuts costs less"""
    operation: Operation
    rounds: int = 0
    """nodes or mixed-integer programs behind it"""
    p_price: Array | None = None
    q_price: Array | None = None
    """(N, T) what one more MW, or Mvar, of each microgrid's exchange saves the operator [$ for an interval];
    `None` after a solve with whole bits"""


class Master:
    """The master problem of a feeder; it keeps nothing from one solve to the next."""

    def __init__(self, distribution: Distribution) -> None:
        self.distribution = distribution
        T, N = distribution.feeder.intervals, len(distribution.feeder.microgrids)
        self._x = distribution.rows.A.shape[1]
        p, q = distribution.columns("p"), distribution.columns("q")
        self._coupled = [np.concatenate([p[:, i], q[:, i], [self._x + i]]) for i in range(N)]
        self._axes = axes(T)

    def relaxed(
        self, conditions: Conditions, known: Sequence[Knowledge], *, time_limit_s: float = TIME_LIMIT_S
    ) -> Proposal:
        """The optimum with bits anywhere between 0 and 1.

        Raises:
            ValueError: knowledge that does not fit.
            Infeasible: no operation keeps the network's limits and the cuts.
            SolverFailed: the solver ended without a usable answer.
        """
        program = self.program(conditions, known)
        return self._proposal(conditions, known, relaxed(program, time_limit_s=time_limit_s))

    def whole(
        self,
        conditions: Conditions,
        known: Sequence[Knowledge],
        *,
        tolerance: float = TOLERANCE,
        time_limit_s: float = 60.0,
        by: Literal["branching", "tangents"] | None = None,
    ) -> Proposal:
        """The optimum with whole bits.

        Args:
            by: `branch_and_bound`, or `outer_approximation`; `None`: the latter where there are tents, of
                which the relaxation knows next to nothing.

        Raises:
            ValueError: knowledge that does not fit.
            Infeasible: no operation keeps the network's limits and the cuts.
            SolverFailed: a solver ended without a usable answer.
        """
        branching = by == "branching" or (by is None and not any(one.tents for one in known))
        method = branch_and_bound.whole if branching else outer_approximation.whole
        found = method(self.program(conditions, known), tolerance=tolerance, time_limit_s=time_limit_s)
        return self._proposal(conditions, known, found)

    def program(self, conditions: Conditions, known: Sequence[Knowledge]) -> MixedConic:
        """All of it: columns are the operator's x, theta, the bits that are free, then each tent's up, down
        and s."""
        own, T, N = self.distribution, self.distribution.feeder.intervals, len(self._coupled)
        if len(known) != N:
            raise ValueError(f"master: knowledge of {len(known)} microgrids, but there are {N}")
        free = [_free(one, i) for i, one in enumerate(known)]
        tents = [(i, tent) for i, one in enumerate(known) for tent in one.tents]
        bits = self._x + N
        first_tent = bits + sum(free)
        total = first_tent + 6 * T * len(tents)
        rows = MixedRows(total)
        whole_at = [np.arange(bits, first_tent)]
        for i, one in enumerate(known):
            at = np.concatenate([self._coupled[i], np.arange(bits, bits + free[i])])
            bits += free[i]
            rows.bounds(at[: 2 * T], *_box(one, i, T).T)
            rows.bounds(at[2 * T : 2 * T + 1], np.array([one.cost_low]), np.array([np.inf]))  # (9b)
            self._cut(rows, one, i, at)
        for k, (i, tent) in enumerate(tents):
            start = first_tent + 6 * T * k
            columns = np.arange(start, start + 6 * T).reshape(3, 2 * T)
            whole_at.append(columns[2])
            _raise(rows, tent, _box(known[i], i, T), self._coupled[i], columns)
        q = np.zeros(total)
        q[: self._x], q[self._x : self._x + N] = own.cost(conditions), 1.0  # (9a)
        return rows.program(q, own.rows, own.right(conditions), np.concatenate(whole_at))  # (9b)

    def _cut(self, rows: MixedRows, one: Knowledge, i: int, at: Ints) -> None:
        """(9c) of one microgrid, whose coupling variables are at columns `at`."""
        T = self.distribution.feeder.intervals
        names = axes(T, one.bits)
        place = {name: k for k, name in enumerate(names)}
        by_axes: dict[tuple[str, ...], list[Region]] = {}
        for cut in one.cuts:
            by_axes.setdefault(cut.axes, []).append(cut)
        for named, cuts in by_axes.items():
            if unknown := [name for name in named if name not in place]:
                raise ValueError(
                    f"master: a cut of microgrid {i} names {unknown[0]!r}; it has {T} intervals and "
                    f"{one.bits} bits"
                )
            A = np.zeros((sum(len(cut.b) for cut in cuts), len(names)))
            A[:, [place[name] for name in named]] = np.concatenate([cut.A for cut in cuts])
            b = np.concatenate([cut.b for cut in cuts])
            if one.held is not None:
                b = b - A[:, 2 * T + 1 :] @ one.held
            rows.most([(A[:, : len(at)], at)], b)  # (9c)

    def _proposal(self, conditions: Conditions, known: Sequence[Knowledge], found: Solution) -> Proposal:
        own, T, x = self.distribution, self.distribution.feeder.intervals, found.x
        operation, constant = own.operation(conditions, x[: self._x]), own.constant(conditions)
        points, start = [], self._x + len(known)
        for i, one in enumerate(known):
            at, count = self._coupled[i], _free(one, i)
            bits = one.held if one.held is not None else x[start : start + count] if one.bits else None
            points.append(Point(x[at[:T]], x[at[T : 2 * T]], float(x[at[-1]]), bits))
            start += count
        prices = self._prices(conditions, found.duals)
        value, bound = found.value + constant, found.bound + constant
        return Proposal(tuple(points), value, bound, operation, found.rounds, *prices)

    def _prices(self, conditions: Conditions, duals: Array | None) -> tuple[Array, Array] | tuple[None, None]:
        """The derivative of the operator's own Lagrangian by p and q, for its rows alone."""
        if duals is None:
            return None, None
        own = self.distribution
        saves = -(own.cost(conditions) + own.rows.A.T @ duals[: own.rows.A.shape[0]])
        return saves[own.columns("p").T], saves[own.columns("q").T]


def _free(one: Knowledge, i: int) -> int:
    """How many bits are columns."""
    if one.held is None:
        return one.bits
    if one.held.shape != (one.bits,):
        raise ValueError(f"master: microgrid {i} has {one.bits} bits, but {one.held.shape} of them are held")
    return 0


def _box(one: Knowledge, i: int, T: int) -> Array:
    """(2T, 2) of p and q."""
    for name, box in (("p_mw", one.p_mw), ("q_mvar", one.q_mvar)):
        if box.shape != (T, 2) or not (np.isfinite(box).all() and (box[:, 0] <= box[:, 1]).all()):
            raise ValueError(
                f"master: {name} of microgrid {i} must be ({T}, 2) finite numbers, the lesser first, but is "
                f"{box.tolist()}"
            )
    return np.concatenate([one.p_mw, one.q_mvar])


def _raise(rows: MixedRows, tent: Tent, box: Array, coupled: Ints, columns: Ints) -> None:
    """One tent; `columns` (3, 2T) of up, down and s."""
    k = len(box)
    for name in ("centre", "slope", "weight"):
        if getattr(tent, name).shape != (k,):
            raise ValueError(f"master: a tent's {name} has {getattr(tent, name).shape}, needed is ({k},)")
    x, theta, (up, down, s), one = coupled[:-1], coupled[-1:], columns, np.eye(k)
    plus, minus = np.maximum(box[:, 1] - tent.centre, 0.0), np.maximum(tent.centre - box[:, 0], 0.0)
    rows.equal([(one, x), (-one, up), (one, down)], tent.centre)  # (14e)
    rows.most([(one, up), (-np.diag(plus), s)], np.zeros(k))  # (14f)
    rows.most([(one, down), (np.diag(minus), s)], minus)  # (14g)
    for part in (up, down):
        rows.bounds(part, np.zeros(k), np.full(k, np.inf))  # (14h)
    relief = [(tent.slope[None], x), (-tent.weight[None], up), (-tent.weight[None], down)]  # (14d)
    rows.most([*relief, (-np.eye(1), theta)], np.array([tent.slope @ tent.centre - tent.value]))  # (14i)
