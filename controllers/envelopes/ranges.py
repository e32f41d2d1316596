"""Ranges: what the methods share that give each device a range of active power and hold Q = 0.

Exports alone keep row k when `sum_i max(A_ki, 0) P_i^U <= W_k`, the worst corner of the box `0 <= P <= P^U`;
imports likewise with `max(-A_ki, 0)`. So either direction is a packing problem, and a method is the choice of
one point of it.

| symbol   | here     | meaning                                                          | unit        |
|----------|----------|------------------------------------------------------------------|-------------|
| P^U, P^L | `high`, `-down` | export and import limit of each device                    | MW          |
| A, W     | `rows.A`, `W` | rows of the network's allowable powers, and their room      | pu^2 or MVA |
| gamma    | `gamma`  | weight of each device; only ratios matter                        | 1 or MW     |
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from controllers.devices import AXES, Device, DeviceState
from controllers.envelopes.method import EnvelopeMethod
from controllers.envelopes.packing import Packing
from controllers.envelopes.shapes import OWN, Shapes
from controllers.fairness import NEGLIGIBLE
from controllers.region import TOLERANCE, Region

Array = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

SHORT_S = 1e-3
"""A time [s] in which no device's energy or ramp moves."""

Program: TypeAlias = Callable[[Array], Array]
"""from the room of each row to the ranges that a method chooses"""


@dataclass
class RangeMethod(EnvelopeMethod):
    """A method that chooses exports and imports, each by a program over a `Packing`.

    A method implements `program`. A device that no row of the network limits in a direction has its own
    rating there. A device that takes part in a row without room gets nothing, and the others share what is
    left. Where rows have both signs, exports and imports together can take more of one than either alone;
    then all ranges shrink by one factor.

    Args: see `EnvelopeMethod`.
    """

    active_only: ClassVar[bool] = True
    joint: ClassVar[bool] = False
    """whether exports and imports are chosen by one program, exports first, instead of two"""
    loose: ClassVar[str | None] = None
    """what limits a device that takes part in no full row; `None`: every device takes part in one"""

    _ways: tuple[Packing, ...] = field(init=False, repr=False)
    _mixed: npt.NDArray[np.int64] = field(init=False, repr=False)
    _compiled: tuple[Array, list[Program]] | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        A = self.rows.A
        parts = np.stack([np.maximum(A, 0.0), np.maximum(-A, 0.0)])
        self._mixed = np.flatnonzero((parts.max(axis=2, initial=0.0) > NEGLIGIBLE).all(axis=0))
        most = self.most()
        if most is None:
            most = np.full((2, A.shape[1]), np.inf)
            free = parts.max(axis=1, initial=0.0) <= NEGLIGIBLE
            if free.any():
                most[free] = capacities(self.site.devices.values())[free]
        if self.joint:
            self._ways = (Packing(np.hstack(list(parts)), most.ravel()),)
        else:
            self._ways = tuple(Packing(part, caps) for part, caps in zip(parts, most, strict=True))
        self._compile(self._gamma)

    @abstractmethod
    def program(self, U: Array, gamma: Array, free: Bools) -> Program:
        """The method itself, compiled: how it chooses x from the room.

        Args:
            U: (groups, free devices) rows that limit them.
            gamma: (devices,) weights of all devices, the blocked ones among them.
            free: (devices,) who is not blocked; all others have range 0.
        """

    def _compile(self, gamma: Array) -> list[Program]:
        everybody = np.ones(len(gamma) * (2 if self.joint else 1), dtype=bool)
        weights = np.tile(gamma, 2) if self.joint else gamma
        programs = [self.program(way.U, weights, everybody) for way in self._ways]
        self._compiled = gamma, programs
        return programs

    def share(self, W: Array, gamma: Array) -> Shapes:
        if self._compiled is not None and np.array_equal(self._compiled[0], gamma):
            programs = self._compiled[1]
        else:
            programs = self._compile(gamma)
        weights = np.tile(gamma, 2) if self.joint else gamma
        found: list[Array] = []
        why: list[str | None] = []
        for way, program in zip(self._ways, programs, strict=True):
            room = way.room(W)
            x = self._ranges(way, program, room, weights)
            found.append(x)
            groups = way.binding(x, room, weights)
            if self.loose is None:  # full as far as the solver is exact
                groups = np.where(groups < 0, way.fullest(x, room), groups)
            why += [self._reason(way, group, W) for group in groups.tolist()]
        high, down = np.concatenate(found).reshape(2, -1)
        both = self.rows.A[self._mixed]
        use = np.stack([np.maximum(both, 0.0) @ high, np.maximum(-both, 0.0) @ down])
        factor, row = together(use, W[self._mixed]) if len(self._mixed) else (1.0, 0)
        also = "" if factor >= 1 else f", together by {self.rows.names[self._mixed[row]]}"
        binding = [
            None
            if up is under is None and not also
            else f"export by {up or OWN}, import by {under or OWN}{also}"
            for up, under in zip(why[: len(high)], why[len(high) :], strict=True)
        ]
        return Shapes.ranges(0.0 - down * factor, high * factor, binding)

    def _ranges(self, way: Packing, program: Program, room: Array, weights: Array) -> Array:
        blocked = way.blocked(room)
        if blocked.all():
            return np.zeros(len(weights))
        x = np.zeros(len(weights))
        if blocked.any():
            # Rare enough to compile anew: a program with a room of zero has no interior.
            U = way.U[:, ~blocked]
            used = np.flatnonzero(U.any(axis=1))
            x[~blocked] = self.program(U[used], weights, ~blocked)(room[used])
        else:
            x[:] = program(room)
        return way.held(np.maximum(x, 0.0), room)

    def _reason(self, way: Packing, group: int, W: Array) -> str | None:
        if group < 0:
            return self.loose
        row = way.row(group, W)
        return None if row is None else self.rows.names[row]


def together(use: Array, W: Array, t_u: float = 1.0, t_l: float = 1.0) -> tuple[float, int]:
    """Factor, at most 1, at which all devices may use both their ranges in any combination.

    Args:
        use: (2, rows) what the exports and the imports take of each row, per unit of `t_u` and `t_l`.
        W: (rows,) room in each row, not negative.
        t_u, t_l: ranges that are safe one at a time.

    Returns:
        the factor, and the index of the row with the least room.
    """
    taken = np.array([t_u, t_l]) @ use
    # A row of one sign is taken whole by its own range; rounding must not shrink it.
    room = np.divide(W, taken, out=np.ones_like(W), where=taken > W * (1 + 1e-12))
    row = int(np.argmin(room))
    return float(room[row]), row


def capacities(devices: Iterable[Device]) -> Array:
    """(2, devices) greatest export and greatest import that each device's rating allows at Q = 0 [MW].

    Ratings, not the state of the moment: a battery counts both full and empty, a generator at any power,
    an inverter with all of its power available.
    """
    found = []
    for device in devices:
        low, high = 0.0, 0.0
        for p_mw in (-device.rating_mw, 0.0, device.rating_mw):
            for e_mwh in (0.0, np.inf):
                # As short as that, energy limits power only where there is none left, or no room.
                region = device.limits(DeviceState(p_mw, 0.0, e_mwh), 1.0, SHORT_S)
                span = at_zero(region)
                if span is not None:
                    low, high = min(low, span[0]), max(high, span[1])
        found.append((high, -low))
    return np.array(found).T


def at_zero(region: Region) -> tuple[float, float] | None:
    """Least and greatest p_mw of a region at q_mvar = 0; `None` where it does not reach there."""
    rows = region.over(AXES)
    p, b = rows.A[:, 0], rows.b
    with np.errstate(divide="ignore", invalid="ignore"):
        at = b / p
    high = np.where(p > NEGLIGIBLE, at, np.inf).min(initial=np.inf)
    low = np.where(p < -NEGLIGIBLE, at, -np.inf).max(initial=-np.inf)
    flat = np.abs(p) <= NEGLIGIBLE
    if low > high + TOLERANCE or (b[flat] < -TOLERANCE).any():
        return None
    return float(low), float(high)
