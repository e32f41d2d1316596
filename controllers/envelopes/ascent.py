"""Search: the joint choices of corners whose AC power flow is worst, looked for in several ways.

Independent use of envelopes means that every device may be anywhere in its own polygon. Voltages and loadings
are worst with (nearly) every device at a corner, but there are too many joint choices of corners to try all:

1. `supports`: for each row with little room, the choice that is worst in the linear model. Devices that do
   not touch the row stand once where they lower voltages most and once where they raise them most, since
   losses and currents depend on the voltage.
2. `ascend`: the step of Frank and Wolfe: AC sensitivities by finite differences, then each device's best
   corner for them. It starts from the worst cases, and from cases in which all devices go the same way: where
   active and reactive power hold the linear voltage, losses decide, and their worst corners lie far apart.
3. `sweep`: each device alone to each of its corners, then those that helped at once; from the worst cases,
   from common ways and from random choices. It shares no sensitivities with the first two.

Where few choices exist they can be enumerated (`enumerate`), which is dear.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from controllers.envelopes.ac_check import Answers, RoomCheck
from controllers.envelopes.shapes import FLAT, Shapes

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

NEAR_V2 = 0.03
"""Room [pu^2] left by the linear model beyond which a voltage row's support is not looked at."""
NEAR_LOADING = 0.25
"""The same for loading rows, of the branch's rating."""
REFINED = 0.3
"""Share of these within which a limit is near enough in AC to be refined by `ascend` and `sweep`."""
REACHED = 0.1
"""Share of these within which a limit counts as nearly reached, for `sweep`."""
JOINT = 4096
"""Joint choices of corners that `enumerate` solves at most."""
AROUND = 64
"""Directions in which nearly reached loadings are looked at."""
DIFFERENCE = 1e-3
"""Step of the finite differences, of a device's greatest corner."""
WEAK = 0.02
"""Share of a row's greatest coefficient up to which a device does not count as touching it: what line
charging makes of a flow elsewhere decides less than the voltage does."""
DIRECTIONS = 16
"""Ways in the P-Q plane that all devices go together."""
STARTS = 2
"""How many of them `ascend` starts from for the most critical limit of each kind."""
STEPS = 3
"""Steps of Frank and Wolfe from each case, and passes of `sweep`."""
RANDOM = 32
"""Random choices in `sweep`."""
AT_ONCE = 512
"""Power flows in one batch, to bound the memory."""
MANY_DEVICES = 100
"""Beyond it passes over all devices are too dear: supports and random choices have to do."""
MANY_ROWS = 2000
"""Rows whose supports are looked at, those with the least room."""
MANY_COEFFICIENTS = 4_000_000
"""Rows times devices beyond which rows are chosen by their AC value, not by their support."""


class Search:
    """What was found of some shapes in one room.

    Args:
        check: the room's limits.
        shapes: of all devices.
        critical: how many limits of each kind are refined.
    """

    def __init__(self, check: RoomCheck, shapes: Shapes, critical: int) -> None:
        self.check, self.shapes, self.critical = check, shapes, critical
        limits, rows = check.limits, len(check.room.W)
        self.beyond = np.full(limits, -np.inf)
        """(limits,) the most that a case is beyond each limit; infinite if one has no AC solution"""
        self.value = np.full(rows, -np.inf)
        """(rows,) the greatest AC value of each row, its limit taken off"""
        self.support = np.full(rows, np.nan)
        """(rows,) the greatest A P + B Q of the shapes; NaN where it was not computed"""
        self.own = np.zeros(rows, dtype=np.bool_)
        """(rows,) whether the row's own support is among the cases"""
        self.v_pu = (np.inf, 0.0)
        """least and greatest voltage of all cases"""
        self.loading_percent = 0.0
        self._case = np.zeros(limits, dtype=np.int64)
        self._choices = np.empty((0, len(shapes)), dtype=np.int64)
        self._backgrounds = np.empty(0, dtype=np.int64)
        self._lowest, self._highest = _extremes(check, shapes)
        turn = 2 * np.pi * np.arange(DIRECTIONS) / DIRECTIONS
        form = shapes.corners @ np.stack([np.cos(turn), np.sin(turn)])
        self._corner = _distinct(shapes.corners)
        self._alike = np.unique(form.argmax(axis=1).T, axis=0)

    @property
    def violating(self) -> tuple[Ints, Ints]:
        """Choices (cases, devices) and backgrounds (cases,) of the worst cases of all limits exceeded."""
        return self.worst(np.flatnonzero(self.beyond > 0))

    def worst(self, limits: Ints) -> tuple[Ints, Ints]:
        """Choices (cases, devices) and backgrounds (cases,) of the worst case of each limit."""
        return self._choices[self._case[limits]], self._backgrounds[self._case[limits]]

    def run(self, choices: Ints, backgrounds: Ints, limits: Ints | None = None) -> Array:
        """Solve choices of corners (cases, devices), each with a background (cases,).

        Returns:
            (cases,) how far each is beyond its limit of `limits`; all zero if none are given.
        """
        both, back = np.unique(np.column_stack([choices, backgrounds]), axis=0, return_inverse=True)
        asked = np.zeros(len(choices))
        for start in range(0, len(both), AT_ONCE):
            part = both[start : start + AT_ONCE]
            answers = self.check.solve(*self.shapes.points(part[:, :-1]), part[:, -1])
            beyond = self.check.beyond(answers)
            self._remember(answers, beyond, part)
            if limits is not None:
                mine = np.flatnonzero((back >= start) & (back < start + AT_ONCE))
                asked[mine] = beyond[back[mine] - start, limits[mine]]
        return asked

    def _remember(self, answers: Answers, beyond: Array, cases: Ints) -> None:
        first = len(self._choices)
        self._choices = np.concatenate([self._choices, cases[:, :-1]])
        self._backgrounds = np.concatenate([self._backgrounds, cases[:, -1]])
        worst = beyond.argmax(axis=0)
        most = np.take_along_axis(beyond, worst[None], axis=0)[0]
        better = most > self.beyond
        self.beyond[better], self._case[better] = most[better], first + worst[better]
        self.value = np.maximum(self.value, self.check.value(answers))
        if answers.solved.any():
            low, high, loading = self.check.extremes(answers)
            self.v_pu = min(self.v_pu[0], low), max(self.v_pu[1], high)
            self.loading_percent = max(self.loading_percent, loading)

    def near(self, count: int, share: float) -> Ints:
        """Up to `count` limits of each kind, the most critical first, those with too much room left out."""
        n = self.check.check.n
        allowed = self.check.check.allowed
        room = np.concatenate([np.full(2 * n, NEAR_V2), NEAR_LOADING * allowed]) * share
        found = []
        for kind in (slice(0, n), slice(n, 2 * n), slice(2 * n, None)):
            score = self.beyond[kind] / room[kind]
            best = np.argsort(-score, kind="stable")[:count]
            found.append(best[score[best] > -1] + (kind.start or 0))
        return np.concatenate(found)

    # The ways

    def supports(self) -> None:
        """Solve the supports of all rows with little room, and the lowest and highest voltages."""
        self._everywhere(np.concatenate([[self._lowest, self._highest], self._alike]))
        rows = self.check.check.rows
        if len(rows) * len(self.shapes) <= MANY_COEFFICIENTS:
            self._support(np.arange(len(rows)), rows.A, rows.B)
            return
        for _ in range(2):  # the first supports may show other limits to be nearer
            chosen = self.check.check.rows_of(self.near(2 * self.critical, np.inf))
            chosen = np.sort(chosen[~self.own[chosen]])
            if len(chosen):
                self._support(chosen, *rows.part(chosen))

    def enumerate(self) -> None:
        """Solve every joint choice of corners where there are few, else as many at random."""
        own = [np.unique(corner) for corner in self._corner]
        if np.prod([float(len(each)) for each in own]) <= JOINT:
            every = np.stack(np.meshgrid(*own, indexing="ij"), axis=-1).reshape(-1, len(own))
        else:
            random = np.random.default_rng(len(own))
            every = np.stack([random.choice(each, JOINT) for each in own], axis=1)
        self._everywhere(every)

    def ascend(self) -> None:
        """Improve the worst cases of the critical limits by AC sensitivities."""
        limits, corners, n = self.near(self.critical, REFINED), self.shapes.corners, len(self.shapes)
        if n > MANY_DEVICES:
            return
        axes = [a for a in (0, 1) if np.abs(corners[..., a]).max() > FLAT]
        size = np.maximum(DIFFERENCE * np.abs(corners).max(axis=(1, 2)), 1e-6)
        moves = np.zeros((1 + len(axes) * n, n, 2))  # none, then each device along each axis
        for k, a in enumerate(axes):
            moves[1 + k * n + np.arange(n), np.arange(n), a] = size
        limits, choices, backgrounds = self._starts(limits, STARTS)
        for _ in range(STEPS):
            if not len(limits):
                return
            points = np.stack(self.shapes.points(choices), axis=2)
            moved = (points[:, None] + moves).reshape(-1, n, 2)
            each = np.repeat(np.arange(len(limits)), len(moves))
            value = self._tried(moved, backgrounds[each], limits[each]).reshape(len(limits), len(moves))
            slope = np.zeros((len(limits), n, 2))
            with np.errstate(invalid="ignore"):
                rise = (value[:, 1:] - value[:, :1]).reshape(len(limits), len(axes), n) / size
            slope[..., axes] = np.nan_to_num(rise, nan=0.0, posinf=0.0, neginf=0.0).transpose(0, 2, 1)
            gain = np.einsum("tna,nca->tnc", slope, corners)
            best = gain.argmax(axis=2)
            more = gain.max(axis=2) > np.take_along_axis(gain, choices[..., None], axis=2)[..., 0] + 1e-15
            after = np.where(more, best, choices)
            worse = self.run(after, backgrounds, limits) > value[:, 0]
            limits, choices, backgrounds = limits[worse], after[worse], backgrounds[worse]

    def sweep(self) -> None:
        """Attack critical limits device by device, without sensitivities.

        Every device alone goes to each of its corners; then those that made it worse go at once, and the
        better half of them, and the best; the same again from where that led. It starts from the worst case
        of each limit that is nearly reached, and for the most critical of each kind also from the worst
        common way and from a seeded random choice.
        """
        n, m = self.shapes.corners.shape[:2]
        random = np.random.default_rng(n).integers(0, m, (RANDOM, n))
        self._everywhere(random)
        self._around()
        if n > MANY_DEVICES:
            return
        limits, choices, backgrounds = self._starts(self.near(1, REFINED), 1)
        first = np.unique(limits)
        more = self._different(self.near(2 * self.critical, REACHED), first)
        limits = np.concatenate([limits, first, more])
        choices = np.concatenate([choices, random[: len(first)], self.worst(more)[0]])
        backgrounds = np.concatenate([backgrounds, self.worst(first)[1], self.worst(more)[1]])
        now = self.run(choices, backgrounds, limits)
        own = self._corner == np.arange(m)
        touched = self._touched(limits)
        for _ in range(STEPS):
            if not len(limits):
                return
            each, device, corner = np.nonzero(touched[:, :, None] & own)
            many = choices[each]
            many[np.arange(len(each)), device] = corner
            gain = np.full((len(limits), n, m), -np.inf)
            gain[each, device, corner] = self.run(many, backgrounds[each], limits[each]) - now[each]
            best, most = gain.argmax(axis=2), np.maximum(gain.max(axis=2), 0.0)
            order = np.argsort(np.argsort(-most, axis=1, kind="stable"), axis=1)
            helped = (most > 0).sum(axis=1, keepdims=True)
            counts = (helped, (helped + 1) // 2, np.minimum(helped, 1))
            tried = [np.where((order < count) & (most > 0), best, choices) for count in counts]
            values = np.stack([self.run(one, backgrounds, limits) for one in tried])
            which, rows = values.argmax(axis=0), np.arange(len(limits))
            after, value = np.stack(tried)[which, rows], values[which, rows]
            worse = value > now
            limits, choices, backgrounds, now = limits[worse], after[worse], backgrounds[worse], value[worse]
            touched = touched[worse]

    # Parts

    def _starts(self, limits: Ints, ways_each: int) -> tuple[Ints, Ints, Ints]:
        """Limits with their worst cases, and the most critical of each kind with the worst common ways."""
        n, k = self.check.check.n, len(self.check.room.backgrounds)
        choices, backgrounds = self.worst(limits)
        ways, back = np.repeat(self._alike, k, axis=0), np.tile(np.arange(k), len(self._alike))
        kinds = np.minimum(limits // n, 2)
        for at in np.unique(kinds, return_index=True)[1]:
            first = limits[at : at + 1]
            found = self.run(ways, back, np.repeat(first, len(ways)))
            best = np.argsort(-found, kind="stable")[:ways_each]
            limits = np.concatenate([limits, np.repeat(first, len(best))])
            choices, backgrounds = (
                np.concatenate([choices, ways[best]]),
                np.concatenate([backgrounds, back[best]]),
            )
        return limits, choices, backgrounds

    def _everywhere(self, choices: Ints) -> None:
        """Solve choices with every background."""
        k = len(self.check.room.backgrounds)
        self.run(np.repeat(choices, k, axis=0), np.tile(np.arange(k), len(choices)))

    def _around(self) -> None:
        """Solve the supports of nearly reached loadings in many directions, between the edges of their rows.

        In the linear model the flow is greatest at a corner of a sum of polygons in the plane, which has more
        corners than the rows have edges.
        """
        check = self.check.check
        near = self.near(2 * self.critical, REACHED)
        loadings = near[near >= 2 * check.n]
        if not len(loadings):
            return
        # A flow's gradient, from its components in the directions of two edges.
        two = [0, round(len(check.angle) / 4)]
        frame = np.linalg.inv(np.column_stack([np.cos(check.angle[two]), np.sin(check.angle[two])]))
        rows = (loadings + len(check.allowed) * np.array(two)[:, None]).ravel()
        A, B = (frame @ M.reshape(2, -1) for M in check.rows.part(rows))  # the flow's P, and its Q
        turn = 2 * np.pi * np.arange(AROUND) / AROUND
        ways = np.stack([np.cos(turn), np.sin(turn)], axis=1)
        shape = (AROUND * len(loadings), len(self.shapes))
        choices = self.shapes.worst((ways @ A).reshape(shape), (ways @ B).reshape(shape))
        touched = np.tile(self._touched(loadings), (AROUND, 1))
        self._everywhere(np.unique(np.where(touched, choices, self._lowest), axis=0))

    def _different(self, limits: Ints, known: Ints) -> Ints:
        """Those of some limits whose worst cases are neither those of `known` nor each other's."""
        seen = {(int(at) // self.check.check.n, int(self._case[at])) for at in known}
        kept = []
        for at in limits.tolist():
            key = (at // self.check.check.n, int(self._case[at]))
            if key not in seen or (at >= 2 * self.check.check.n and at not in known):
                kept.append(at)
                seen.add(key)
        return np.array(kept, dtype=np.int64)

    def _touched(self, limits: Ints) -> npt.NDArray[np.bool_]:
        """(limits, devices) which devices a limit feels in the linear model."""
        A, B = self.check.check.rows.part(limits)  # of a loading, its first edge
        return _felt(A, B)

    def _tried(self, points: Array, backgrounds: Ints, limits: Ints) -> Array:
        """(cases,) how far points (cases, devices, 2), inside the shapes or not, are beyond their limits."""
        found = []
        for start in range(0, len(points), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            answers = self.check.solve(points[part, :, 0], points[part, :, 1], backgrounds[part])
            found.append(self.check.beyond(answers)[np.arange(len(answers.solved)), limits[part]])
        return np.concatenate(found)

    def _support(self, indices: Ints, A: Array, B: Array) -> None:
        """Compute the supports of some rows, and solve those with little room."""
        check, room = self.check.check, self.check.room
        choices = np.empty(A.shape, dtype=np.int64)
        support = np.zeros(len(A))
        for i, corners in enumerate(self.shapes.corners):
            form = A[:, i, None] * corners[:, 0] + B[:, i, None] * corners[:, 1]
            choices[:, i] = form.argmax(axis=1)
            support += form.max(axis=1)
        self.support[indices] = support
        loading = indices >= 2 * check.n
        allowed = np.ones(len(indices))
        allowed[loading] = check.allowed[(indices[loading] - 2 * check.n) % max(len(check.allowed), 1)]
        width = np.where(loading, NEAR_LOADING * allowed, NEAR_V2)
        slack = (room.W[indices] - support) / width
        near = np.flatnonzero(slack < 1)
        near = near[np.argsort(slack[near], kind="stable")][:MANY_ROWS]
        self.own[indices[near]] = True
        touched = _felt(A[near], B[near])
        low = np.where(touched, choices[near], self._lowest)
        high = np.where(touched, choices[near], self._highest)
        self._everywhere(np.unique(np.concatenate([low, high]), axis=0))


def _felt(A: Array, B: Array) -> npt.NDArray[np.bool_]:
    """(rows, devices) which devices matter to a row in the linear model."""
    size = np.abs(A) + np.abs(B)
    return np.asarray(size > WEAK * size.max(axis=1, initial=1e-12, keepdims=True))


def _extremes(check: RoomCheck, shapes: Shapes) -> tuple[Ints, Ints]:
    """(devices,) the corner of each that lowers, and that raises, the voltage at its own bus most."""
    slope = check.check.own_slope
    form = slope[:, None, 0] * shapes.corners[..., 0] + slope[:, None, 1] * shapes.corners[..., 1]
    return form.argmin(axis=1), form.argmax(axis=1)


def _distinct(corners: Array) -> Ints:
    """(devices, corners) the first corner of each polygon that is where the given one is."""
    near = np.abs(corners[:, :, None] - corners[:, None]).max(axis=3) <= FLAT
    return np.asarray(near.argmax(axis=2))
