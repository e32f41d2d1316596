"""Packing: how much of x >= 0 fits into rows without negative coefficients, U x <= b.

| symbol | here   | meaning                                                                | unit |
|--------|--------|------------------------------------------------------------------------|------|
| x      | `x`    | range of each device in one direction, export or import                | MW   |
| U      | `U`    | what each range takes of each row, every row's greatest entry being 1  | 1    |
| b      | `room` | room in each of these rows at zero injection                           | MW   |
| gamma  | `gamma`| weight of each device                                                  | 1    |

Rows that differ by a factor only, as the edges of one line's limit and the limits of lines that feed the same
devices do, become one row with the least of their rooms: 1,400 rows of 18 devices become some 80.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from controllers.fairness import NEGLIGIBLE

Array = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

SAME = 11
"""Digits in which rows agree that count as one; they are joined to the safe side."""

NOTHING_MW = 1e-9
"""Room that counts as none: who takes part in such a row gets nothing."""

TIGHT = 1e-6
"""Share of its room that a row may have left and still count as binding."""


class Packing:
    """{x >= 0 : U x <= room}, U without negative entries, every column in at least one row.

    Args:
        U: (rows, n), not negative, in any units.
        caps: (n,) own limit of each x [MW], infinite where it has none.
    """

    U: Array
    """(groups, n) coefficients of the joined rows; the caps' rows come last"""

    def __init__(self, U: Array, caps: Array) -> None:
        size = U.max(axis=1, initial=0.0)
        self._rows = np.flatnonzero(size > NEGLIGIBLE)
        self._size = size[self._rows]
        scaled = U[self._rows] / self._size[:, None]
        scaled[scaled < NEGLIGIBLE] = 0.0
        keys, group = np.unique(scaled.round(SAME), axis=0, return_inverse=True)
        self._order = np.argsort(group.ravel(), kind="stable")
        self._starts = np.searchsorted(group.ravel()[self._order], np.arange(len(keys)))
        own = np.flatnonzero(np.isfinite(caps))
        self._caps = caps[own]
        joined = np.maximum.reduceat(scaled[self._order], self._starts, axis=0) if len(keys) else scaled
        self.U = np.vstack([joined, np.eye(U.shape[1])[own]])

    def room(self, W: Array) -> Array:
        """(groups,) room in each joined row [MW], for W (rows,), not negative."""
        if not len(self._rows):
            return self._caps.copy()
        least = np.minimum.reduceat((W[self._rows] / self._size)[self._order], self._starts)
        return np.concatenate([least, self._caps])

    def row(self, group: int, W: Array) -> int | None:
        """Which of the rows given is behind a joined one; `None` for a cap."""
        if group >= len(self._starts):
            return None
        end = self._starts[group + 1] if group + 1 < len(self._starts) else len(self._order)
        members = np.sort(self._order[self._starts[group] : end])
        return int(self._rows[members[np.argmin(W[self._rows[members]] / self._size[members])]])

    def blocked(self, room: Array) -> Bools:
        """(n,) who takes part in a row without room."""
        return np.asarray((self.U[room <= NOTHING_MW] > 0).any(axis=0))

    def held(self, x: Array, room: Array) -> Array:
        """x, shrunk where it exceeds a row: each by the worst of the rows it takes part in."""
        taken = self.U @ x
        over = np.flatnonzero(taken > room)
        factor = np.where(self.U[over] > 0, (room[over] / taken[over])[:, None], 1.0)
        return np.asarray(x * factor.min(axis=0, initial=1.0))

    def binding(self, x: Array, room: Array, gamma: Array) -> npt.NDArray[np.int64]:
        """(n,) the full row that limits each x; -1 where none is full.

        Of several full rows it is the one in which x has the greatest part per weight, compared with the
        others there: no other can be blamed for taking more.
        """
        left = room - self.U @ x
        full = np.flatnonzero(left <= TIGHT * room + NOTHING_MW)
        if not len(full):
            return np.full(len(x), -1)
        level = np.where(self.U[full] > 0, x / gamma, -1.0)
        top = level.max(axis=1, keepdims=True)
        rank = np.divide(level, top, out=np.sign(level + 0.5), where=(top > 0) & (level >= 0))
        best = np.argmax(rank.round(6), axis=0)
        return np.where(rank.max(axis=0) >= 0, full[best], -1)

    def fullest(self, x: Array, room: Array) -> npt.NDArray[np.int64]:
        """(n,) of the rows that each takes part in, the one of which most is taken."""
        used = np.divide(self.U @ x, room, out=np.ones(len(room)), where=room > NOTHING_MW)
        return np.asarray(np.where(self.U > 0, used[:, None], -1.0).argmax(axis=0))


def reached(U: Array, room: Array) -> tuple[Array, Array]:
    """(n,) the x that each could have alone [MW], and the room (rows,), cut to what all of them would take.

    Solvers like numbers about 1; a limit far away is none and would only spoil the scale.
    """
    alone = np.divide(room[:, None], U, out=np.full(U.shape, np.inf), where=U > 0).min(axis=0)
    return alone, np.minimum(room, U @ alone)


def prices(G: Array, c: Array) -> Array:
    """Prices mu >= 0 of rows, (rows,), whose sum G'mu comes closest to c, only independent ones positive.

    Lawson and Hanson's method (1974, chapter 23): one row after the other joins where it helps most; one that
    would be negative leaves. With a gradient c they are the multipliers of the rows that hold it.

    Args:
        G: (rows, n). c: (n,).
    """
    gram, gain = G @ G.T, G @ c
    mu, joined = np.zeros(len(G)), np.zeros(len(G), dtype=bool)
    enough = 1e-12 * float(np.abs(gain).max(initial=0.0))
    for _ in range(3 * len(G)):
        slope = np.where(joined, -np.inf, gain - gram @ mu)
        if not slope.max() > enough:
            break
        joined[slope.argmax()] = True
        while joined.any():
            rows = np.flatnonzero(joined)
            try:
                wanted = np.linalg.solve(gram[np.ix_(rows, rows)], gain[rows])
            except np.linalg.LinAlgError:  # it depends on the others: as good as they are without it
                return mu
            if wanted.min() > 0:
                mu[rows] = wanted
                break
            # As far as the first of those that fall below zero allows; that one leaves.
            at, down = mu[rows], np.flatnonzero(wanted <= 0)
            way = np.divide(at[down], at[down] - wanted[down], out=np.zeros(len(down)), where=at[down] > 0)
            mu[rows] = np.maximum(at + way.min() * (wanted - at), 0.0)
            joined[rows[down[way <= way.min()]]] = False
            mu[~joined] = 0.0
    return mu
