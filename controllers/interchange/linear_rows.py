"""LinearRows: a linear program over a horizon; every interval has the same variables and the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import sparse

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

Key: TypeAlias = tuple[str, str]
"""Owner and symbol of a block, e.g. `("mg1_mt", "P")`."""


class Term(NamedTuple):
    """`factor` times a block, `lag` intervals before the row's own."""

    key: Key
    factor: float = 1.0
    lag: int = 0


class Bounds(NamedTuple):
    """What rows and variables must lie between."""

    row_low: Array
    """(rows,)"""
    row_high: Array
    low: Array
    """(variables,)"""
    high: Array


class LinearRows:
    """Collects blocks and rows. Variables are ordered by block, then by interval.

    Args:
        horizon: number of intervals H, at least 1.
    """

    def __init__(self, horizon: int) -> None:
        self.horizon = horizon
        self._number: dict[Key, int] = {}
        self._named: dict[Key, slice] = {}
        self._bounds: list[tuple[float, float, float]] = []
        self._entries: list[tuple[Ints, Ints, Array]] = []
        self._sides: list[tuple[Array, Array]] = []
        self._count = 0

    def block(self, key: Key, low: float = 0.0, high: float = np.inf, cost: float = 0.0) -> Key:
        """A new block of H variables."""
        self._number[key] = len(self._bounds)
        self._bounds.append((low, high, cost))
        return key

    def has(self, key: Key) -> bool:
        """Whether there is such a block."""
        return key in self._number

    def rows(
        self,
        terms: Sequence[Term],
        low: float,
        high: float,
        name: Key | None = None,
        *,
        from_first: bool = False,
    ) -> None:
        """`low <= sum of terms <= high` in each interval that all lags leave inside the horizon.

        Args:
            name: under which `row_at` finds them.
            from_first: in all intervals; what lies before the horizon counts as zero.
        """
        H = self.horizon
        first = 0 if from_first else max((term.lag for term in terms), default=0)
        count = max(H - first, 0)
        at = np.arange(count)
        for key, factor, lag in terms:
            inside = at[first + at >= lag]
            column = self._number[key] * H + first - lag + inside
            self._entries.append((self._count + inside, column, np.full(len(inside), factor)))
        self._sides.append((np.full(count, low), np.full(count, high)))
        if name is not None:
            self._named[name] = slice(self._count, self._count + count)
        self._count += count

    def at(self, key: Key) -> slice:
        """Where a block's variables are."""
        start = self._number[key] * self.horizon
        return slice(start, start + self.horizon)

    def has_rows(self, name: Key) -> bool:
        """Whether there are rows of that name."""
        return name in self._named

    def row_at(self, name: Key) -> slice:
        """Where rows with a name are."""
        return self._named[name]

    @property
    def width(self) -> int:
        """Number of variables."""
        return len(self._bounds) * self.horizon

    def matrix(self) -> sparse.csr_array:
        """(rows, variables)"""
        row, column = (np.concatenate([entry[i] for entry in self._entries]) for i in (0, 1))
        value = np.concatenate([entry[2] for entry in self._entries])
        return sparse.csr_array((value, (row, column)), shape=(self._count, self.width))

    def bounds(self) -> Bounds:
        """As given with blocks and rows."""
        low, high, _ = np.array(self._bounds).T
        row_low, row_high = (np.concatenate(sides) for sides in zip(*self._sides, strict=True))
        return Bounds(row_low, row_high, np.repeat(low, self.horizon), np.repeat(high, self.horizon))

    def costs(self) -> Array:
        """(variables,) as given with blocks."""
        return np.repeat(np.array(self._bounds)[:, 2], self.horizon)
