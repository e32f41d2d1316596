"""MixedConic: a conic program of which some variables are whole; and how one is put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from controllers.interchange.conic_rows import Assembled
from controllers.solve import Cone

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class MixedConic:
    """`min q.x` subject to `b - A x` in cones, `low <= x <= high` and whole at the positions `whole`."""

    q: Array
    """(n,)"""
    A: sparse.csc_array
    """(m, n)"""
    b: Array
    """(m,)"""
    cones: tuple[Cone, ...]
    """zero, nonnegative and second; in the order of the rows"""
    whole: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """(k,)"""
    low: Array = field(default_factory=lambda: np.zeros(0))
    high: Array = field(default_factory=lambda: np.zeros(0))

    @cached_property
    def spans(self) -> list[tuple[Cone, int, int]]:
        """Each cone, its first row and its end."""
        ends = np.cumsum([0, *(size for _, size in self.cones)])
        return [(cone, int(a), int(b)) for cone, a, b in zip(self.cones, ends[:-1], ends[1:], strict=True)]

    def rows(self, kind: str) -> Ints:
        """All rows of the cones of a kind."""
        spans = [np.arange(a, b) for (this, _), a, b in self.spans if this == kind]
        return np.concatenate(spans) if spans else np.zeros(0, dtype=np.int64)

    @cached_property
    def second(self) -> list[tuple[int, int]]:
        """First row and end of each second-order cone."""
        return [(a, b) for (kind, _), a, b in self.spans if kind == "second"]


class MixedRows:
    """Collects linear rows over `total` columns, beside those of an operator's problem, whose columns come
    first."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._equal: list[tuple[sparse.csr_array, Array]] = []
        self._most: list[tuple[sparse.csr_array, Array]] = []

    def equal(self, parts: Sequence[tuple[Any, Ints]], b: Array) -> None:
        """`sum of A x[at] = b` over the parts (A, at); A dense or sparse."""
        self._equal.append((self._wide(parts), b))

    def most(self, parts: Sequence[tuple[Any, Ints]], b: Array) -> None:
        """`sum of A x[at] <= b`"""
        self._most.append((self._wide(parts), b))

    def between(self, parts: Sequence[tuple[Any, Ints]], low: Array, high: Array) -> None:
        """`low <= sum of A x[at] <= high`; infinite where there is no bound."""
        A, even = self._wide(parts), low == high
        self._equal.append((A[even], low[even]))
        for sign, side in ((1.0, high), (-1.0, low)):
            there = np.isfinite(side) & ~even
            self._most.append((sign * A[there], sign * side[there]))

    def bounds(self, at: Ints, low: Array, high: Array) -> None:
        """`low <= x[at] <= high`"""
        self.between([(sparse.eye_array(len(at)), at)], low, high)

    def program(self, q: Array, network: Assembled, right: Array, whole: Ints) -> MixedConic:
        """The program; whole variables are bits.

        Args:
            q: (total,). right: right-hand sides of the network's rows.
        """
        own = sparse.coo_array(network.A)
        first = sparse.csr_array((own.data, own.coords), shape=(own.shape[0], self._total))
        matrices, rights, cones = [first], [right], list(network.cones)
        for kind, parts in (("zero", self._equal), ("nonnegative", self._most)):
            matrices += [A for A, _ in parts]
            rights += [b for _, b in parts]
            if size := sum(len(b) for _, b in parts):
                cones.append(("zero" if kind == "zero" else "nonnegative", size))
        A = sparse.csc_array(sparse.vstack(matrices))
        k = len(whole)
        return MixedConic(q, A, np.concatenate(rights), tuple(cones), whole, np.zeros(k), np.ones(k))

    def _wide(self, parts: Sequence[tuple[Any, Ints]]) -> sparse.csr_array:
        entries = [(sparse.coo_array(A), at) for A, at in parts]
        row = np.concatenate([A.coords[0] for A, _ in entries])
        column = np.concatenate([at[A.coords[1]] for A, at in entries])
        value = np.concatenate([A.data for A, _ in entries])
        shape = entries[0][0].shape[0], self._total
        return sparse.csr_array((value, (row, column)), shape=shape)
