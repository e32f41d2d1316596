"""Solve: the only file that names a solver.

Whatever a solver says, a caller sees one of three ends: a usable answer is returned, `Infeasible`
is raised when the problem has none, `SolverFailed` when the solver did not find out.
"""

from __future__ import annotations

import warnings
from typing import Any

import cvxpy as cp
import highspy
import numpy as np
import numpy.typing as npt

from controllers.contract import Infeasible, SolverFailed

Array = npt.NDArray[np.float64]

TIME_LIMIT_S = 10.0
"""Default bound on one solve."""

FEASIBILITY = 1e-9
"""How far HiGHS may leave a row: a region's own tolerance."""


def solve(problem: cp.Problem, *, time_limit_s: float = TIME_LIMIT_S) -> float:
    """Solve a convex problem by Clarabel and return its optimal value; the variables hold the answer.

    An answer of reduced accuracy (`optimal_inaccurate`) is no usable answer.

    Raises:
        Infeasible: no point satisfies the constraints, or the objective has no end.
        SolverFailed: time limit, numerical trouble, or the solver raised.
    """
    try:
        with warnings.catch_warnings():
            # cvxpy only warns of an inaccurate answer, which is raised below.
            warnings.filterwarnings("ignore", "Solution may be inaccurate", UserWarning)
            problem.solve(solver=cp.CLARABEL, time_limit=time_limit_s)  # type: ignore[no-untyped-call]
    except cp.error.SolverError as error:
        raise SolverFailed(f"Clarabel failed: {error}; look at the problem's scaling") from error
    match problem.status:
        case cp.OPTIMAL:
            return float(problem.value)
        case cp.INFEASIBLE | cp.INFEASIBLE_INACCURATE:
            raise Infeasible("no point satisfies the constraints")
        case cp.UNBOUNDED | cp.UNBOUNDED_INACCURATE:
            raise Infeasible("the objective has no bound: a limit is missing")
        case status:
            raise SolverFailed(f"Clarabel ended with {status!r} (time limit {time_limit_s:g} s)")


def maximum(c: Array, A: Array, b: Array, *, time_limit_s: float = TIME_LIMIT_S) -> float:
    """`max c.x` subject to `A x <= b`, x free, by HiGHS' dual simplex; infinite if it has no end.

    Raises:
        Infeasible: no x satisfies the rows.
        SolverFailed: HiGHS ended without an answer.
    """
    rows, columns = A.shape
    model = highspy.HighsLp()
    model.num_col_, model.num_row_ = columns, rows
    model.sense_ = highspy.ObjSense.kMaximize
    model.col_cost_ = np.asarray(c, dtype=float)
    model.col_lower_ = np.full(columns, -highspy.kHighsInf)
    model.col_upper_ = np.full(columns, highspy.kHighsInf)
    model.row_lower_ = np.full(rows, -highspy.kHighsInf)
    model.row_upper_ = np.asarray(b, dtype=float)
    model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    model.a_matrix_.start_ = np.arange(rows + 1, dtype=np.int32) * columns
    model.a_matrix_.index_ = np.tile(np.arange(columns, dtype=np.int32), rows)
    model.a_matrix_.value_ = np.asarray(A, dtype=float).ravel()
    solver: Any = highspy.Highs()  # type: ignore[no-untyped-call]
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("presolve", "off")  # so that "infeasible or unbounded" does not occur
    solver.setOptionValue("primal_feasibility_tolerance", FEASIBILITY)
    solver.setOptionValue("time_limit", time_limit_s)
    solver.passModel(model)
    solver.run()
    status: Any = solver.getModelStatus()
    if status == highspy.HighsModelStatus.kOptimal:
        return float(solver.getObjectiveValue())
    if status == highspy.HighsModelStatus.kInfeasible:
        raise Infeasible("no point satisfies the rows")
    if status == highspy.HighsModelStatus.kUnbounded:
        return np.inf
    raise SolverFailed(f"HiGHS ended with {solver.modelStatusToString(status)!r}")
