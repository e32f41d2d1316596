"""ConicRows: a conic program over a horizon, written interval by interval, compiled once.

Every interval has the same variables and the same rows; rows may also look at the interval before. Only costs
and right-hand sides change from step to step, by the name of the rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import sparse

from controllers.solve import TIME_LIMIT_S, Cone, Conic

Array = npt.NDArray[np.float64]
Matrix = Any
"""Sparse or dense, (rows, size)"""
Terms = Mapping[str, Matrix]
"""Coefficients (rows, size) by variable."""
Kind = Literal["zero", "nonnegative", "second"]


def plus(*parts: tuple[float, Terms]) -> dict[str, Matrix]:
    """The sum of factors times terms."""
    total: dict[str, Matrix] = {}
    for factor, terms in parts:
        for name, matrix in terms.items():
            scaled = factor * sparse.csr_array(matrix)
            total[name] = total[name] + scaled if name in total else scaled
    return total


def through(matrix: Matrix, terms: Terms) -> dict[str, Matrix]:
    """A linear map of an expression: `matrix` (rows, k) times terms (k, size)."""
    left = sparse.csr_array(np.atleast_2d(matrix) if isinstance(matrix, np.ndarray) else matrix)
    return {name: left @ sparse.csr_array(term) for name, term in terms.items()}


@dataclass(frozen=True, eq=False)
class _Group:
    name: str
    kind: Kind
    size: int
    """of a cone; 1 for the linear kinds"""
    matrix: sparse.csr_array
    """(intervals * rows, all variables)"""
    rows: int
    """an interval"""
    right: Array
    """(intervals, rows) where no step says otherwise"""


class ConicRows:
    """Collects rows `right - terms x` in a cone: zero, not negative, or second-order.

    Args:
        sizes: variables of one interval, by name.
        intervals: H.
    """

    def __init__(self, sizes: Mapping[str, int], intervals: int) -> None:
        self.sizes, self.H = dict(sizes), intervals
        ends = np.cumsum([0, *self.sizes.values()])
        self._at = {name: slice(a, b) for name, a, b in zip(self.sizes, ends[:-1], ends[1:], strict=True)}
        self.width = int(ends[-1])
        self._groups: list[_Group] = []
        self._quadratic = np.zeros((intervals, self.width))

    def add(
        self,
        name: str,
        kind: Kind,
        terms: Terms,
        right: Array | float,
        *,
        before: Terms | None = None,
        cone: int = 1,
    ) -> None:
        """Rows of every interval.

        Args:
            terms: coefficients of this interval's variables.
            right: (rows,), (intervals, rows) or one for all; `b` replaces it.
            before: coefficients of the variables of the interval before; the first has none.
            cone: size of the cones that the rows of a `second` kind are, one after the other.

        Raises:
            ValueError: a name used twice, or rows that do not fill the cones.
        """
        if any(group.name == name for group in self._groups):
            raise ValueError(f"conic rows: {name!r} is there already")
        now = self._wide(terms)
        rows = now.shape[0]
        if rows % cone:
            raise ValueError(f"conic rows: {name!r} has {rows} rows, which fill no cones of {cone}")
        matrix = sparse.kron(sparse.eye_array(self.H), now)
        if before is not None:
            matrix = matrix + sparse.kron(sparse.eye_array(self.H, k=-1), self._wide(before))
        given = np.array(np.broadcast_to(np.asarray(right, dtype=float), (self.H, rows)))
        self._groups.append(_Group(name, kind, cone, sparse.csr_array(matrix), rows, given))

    def square(self, variable: str) -> None:
        """Adds half the square of a variable to the objective."""
        self._quadratic[:, self._at[variable]] = 1.0

    def assemble(self) -> Assembled:
        """Matrix, right-hand sides and cones; rows are put in the order of their kinds."""
        order: dict[Kind, int] = {"zero": 0, "nonnegative": 1, "second": 2}
        groups = sorted(self._groups, key=lambda group: order[group.kind])
        ends = np.cumsum([0, *(group.rows * self.H for group in groups)])
        cones: list[Cone] = []
        for group in groups:
            if total := group.rows * self.H:
                many = group.kind == "second"
                cones += [("second", group.size)] * (total // group.size) if many else [(group.kind, total)]
        return Assembled(
            A=sparse.csc_array(sparse.vstack([group.matrix for group in groups])),
            b=np.concatenate([group.right.ravel() for group in groups]),
            cones=tuple(cones),
            intervals=self.H,
            variables=self._at,
            rows={g.name: slice(a, b) for g, a, b in zip(groups, ends[:-1], ends[1:], strict=True)},
        )

    def compile(self, *, time_limit_s: float = TIME_LIMIT_S) -> CompiledRows:
        """The program, ready to be solved for many costs and right-hand sides."""
        return CompiledRows(self, time_limit_s)

    @property
    def quadratic(self) -> Array:
        """(intervals * width,) diagonal of the objective's quadratic part."""
        return self._quadratic.ravel()

    def _wide(self, terms: Terms) -> sparse.csr_array:
        unknown = terms.keys() - self.sizes.keys()
        if unknown:
            raise ValueError(f"conic rows: no variable {sorted(unknown)[0]!r}")
        rows = next(iter(terms.values())).shape[0]
        blocks = [
            sparse.csr_array(terms[name]) if name in terms else sparse.csr_array((rows, size))
            for name, size in self.sizes.items()
        ]
        return sparse.csr_array(sparse.hstack(blocks))


@dataclass(frozen=True, eq=False)
class Assembled:
    """`b - A x` in cones; x is interval by interval the variables in their order."""

    A: sparse.csc_array
    """(rows, intervals * width)"""
    b: Array
    """(rows,) where nothing else is given"""
    cones: tuple[Cone, ...]
    intervals: int
    variables: Mapping[str, slice]
    """columns of each variable within an interval"""
    rows: Mapping[str, slice]
    """rows of each name, interval by interval"""

    @property
    def width(self) -> int:
        """Variables of one interval."""
        return self.A.shape[1] // self.intervals

    def right(self, given: Mapping[str, Array | float]) -> Array:
        """All right-hand sides; `given` (intervals, rows) or what spreads to it, by name."""
        b = self.b.copy()
        for name, values in given.items():
            span = self.rows[name]
            shape = self.intervals, (span.stop - span.start) // self.intervals
            b[span] = np.broadcast_to(values, shape).ravel()
        return b

    def costs(self, given: Mapping[str, Array | float]) -> Array:
        """The linear objective; (size,), (intervals, size) or one for all, by variable."""
        q = np.zeros((self.intervals, self.width))
        for name, values in given.items():
            q[:, self.variables[name]] = values
        return q.ravel()

    def split(self, x: Array) -> dict[str, Array]:
        """(intervals, size) each variable of x (intervals * width,)."""
        table = x.reshape(self.intervals, self.width)
        return {name: table[:, at] for name, at in self.variables.items()}


class CompiledRows:
    """The compiled program: costs and right-hand sides by name in, variables by name out."""

    def __init__(self, rows: ConicRows, time_limit_s: float) -> None:
        self._all = rows.assemble()
        P = sparse.csc_array(sparse.diags_array(rows.quadratic)) if rows.quadratic.any() else None
        A, b, cones = self._all.A, self._all.b, self._all.cones
        columns = A.shape[1]
        self._conic = Conic(P, np.zeros(columns), A, b, cones, time_limit_s=time_limit_s, refined=False)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self._all.A.shape[0], self._all.A.shape[1]

    def right(self, given: Mapping[str, Array]) -> Array:
        """See `Assembled.right`."""
        return self._all.right(given)

    def costs(self, given: Mapping[str, Array | float]) -> Array:
        """See `Assembled.costs`."""
        return self._all.costs(given)

    def slacks(self, b: Array, at: Mapping[str, Array]) -> dict[str, Array]:
        """(intervals, rows) `right - terms x` of each group at the variables `at`."""
        x = np.concatenate([at[name] for name in self._all.variables], axis=1)
        slack = b - self._all.A @ x.ravel()
        return {name: slack[span].reshape(self._all.intervals, -1) for name, span in self._all.rows.items()}

    def minimize(self, q: Array, b: Array) -> dict[str, Array]:
        """(intervals, size) the best value of each variable.

        Raises:
            Infeasible: no point satisfies the rows.
            SolverFailed: the solver ended without a usable answer.
        """
        return self._all.split(self._conic.minimize(q, b))
