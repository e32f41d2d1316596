"""Solver alone: what HiGHS and Clarabel take for the programs of a step, with nothing of ours around them.

`noted` keeps what a step hands to `controllers.solve`; the same matrices are then given to a solver of their
own, which gets the same costs and bounds one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import clarabel
import highspy
import numpy as np
import numpy.typing as npt
from scipy import sparse

from controllers.interchange import conic_rows, tradeoff
from controllers.solve import FEASIBILITY, Conic, Linear, Optimum

Array = npt.NDArray[np.float64]


@dataclass
class Notes:
    """What was compiled and asked while `noted` lasted, the last compiled program of each kind."""

    linear: tuple[Any, ...] = ()
    """arguments of the constructor"""
    conic: tuple[Any, ...] = ()
    changes: list[dict[str, Any]] = field(default_factory=list)
    """of each linear program"""
    vectors: list[tuple[Array, Array]] = field(default_factory=list)
    """q and b of each conic program"""

    def taken(self) -> list[tuple[Array, Array]]:
        """The vectors since the last call."""
        since, self.vectors = self.vectors, []
        return since


@contextmanager
def noted() -> Iterator[Notes]:
    """Controllers that are constructed while it lasts note what they ask of their solvers."""
    notes = Notes()

    class NotedLinear(Linear):
        def __init__(self, *given: Any, **more: Any) -> None:
            notes.linear = given
            super().__init__(*given, **more)

        def minimize(self, **changes: Any) -> Optimum:
            notes.changes.append(changes)
            return super().minimize(**changes)

    class NotedConic(Conic):
        def __init__(self, *given: Any, **more: Any) -> None:
            notes.conic = notes.conic or given  # the second one is for steps that need repair
            super().__init__(*given, **more)

        def minimize(self, q: Array | None = None, b: Array | None = None) -> Array:
            own = q is not None and len(q) == len(notes.conic[1])
            if own and q is not None and b is not None:  # a step gives both
                notes.vectors.append((q, b))
            return super().minimize(q, b)

    with patch.object(tradeoff, "Linear", NotedLinear), patch.object(conic_rows, "Conic", NotedConic):
        yield notes


class HighsAlone:
    """The linear program of a step by HiGHS' dual simplex, with the options of `controllers.solve`."""

    def __init__(
        self, c: Array, matrix: Any, row_low: Array, row_high: Array, low: Array, high: Array
    ) -> None:
        rows, columns = matrix.shape
        by_row, model = sparse.csr_array(matrix), highspy.HighsLp()
        model.num_row_, model.num_col_ = rows, columns
        model.col_cost_, model.col_lower_, model.col_upper_ = c, low, high
        model.row_lower_, model.row_upper_ = row_low, row_high
        model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        model.a_matrix_.start_, model.a_matrix_.index_ = by_row.indptr, by_row.indices
        model.a_matrix_.value_ = by_row.data
        self._rows, self._columns = (np.arange(k, dtype=np.int32) for k in (rows, columns))
        self._solver: Any = highspy.Highs()  # type: ignore[no-untyped-call]
        for option, value in (
            ("output_flag", False),
            ("presolve", "off"),
            ("primal_feasibility_tolerance", FEASIBILITY),
            ("dual_feasibility_tolerance", FEASIBILITY),
        ):
            self._solver.setOptionValue(option, value)
        self._solver.passModel(model)

    def __call__(self, asked: list[dict[str, Array]]) -> list[float]:
        """Optimal values of a step's programs, one after the other from where the last one ended."""
        solver, found = self._solver, []
        solver.clearSolver()
        for one in asked:
            solver.changeColsCost(len(self._columns), self._columns, one["c"])
            solver.changeColsBounds(len(self._columns), self._columns, one["low"], one["high"])
            solver.changeRowsBounds(len(self._rows), self._rows, one["row_low"], one["row_high"])
            solver.run()
            assert solver.getModelStatus() == highspy.HighsModelStatus.kOptimal
            found.append(float(solver.getObjectiveValue()))
        return found


class ClarabelAlone:
    """The conic program of a step by Clarabel, with the options of `controllers.solve`."""

    def __init__(self, quadratic: Any, q: Array, matrix: Any, b: Array, cones: Any) -> None:
        columns = len(q)
        settings: Any = clarabel.DefaultSettings()
        settings.verbose, settings.presolve_enable = False, False
        settings.iterative_refinement_enable = False
        kinds = {
            "zero": clarabel.ZeroConeT,
            "nonnegative": clarabel.NonnegativeConeT,
            "second": clarabel.SecondOrderConeT,
        }
        none = sparse.csc_matrix((columns, columns))
        self._solver: Any = clarabel.DefaultSolver(
            none if quadratic is None else sparse.triu(sparse.csc_matrix(quadratic), format="csc"),
            q,
            sparse.csc_matrix(matrix),
            b,
            [kinds[kind](size) for kind, size in cones],
            settings,
        )

    def __call__(self, asked: list[tuple[Array, Array]]) -> float:
        """The greatest value of the first program's objective, of those that are solved."""
        found = []
        for q, b in asked:
            self._solver.update(q=q, b=b)
            answer = self._solver.solve()
            assert str(answer.status) == "Solved", answer.status
            found.append(float(q @ np.array(answer.x)))
        return -found[0]
