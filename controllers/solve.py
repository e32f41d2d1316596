"""Solve: the only file that names a solver.

Whatever a solver says, a caller sees one of three ends: a usable answer is returned, `Infeasible`
is raised when the problem has none, `SolverFailed` when the solver did not find out.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

import clarabel
import cvxpy as cp
import highspy
import numpy as np
import numpy.typing as npt
from scipy import sparse

from controllers.contract import Infeasible, SolverFailed

Array = npt.NDArray[np.float64]

TIME_LIMIT_S = 10.0
"""Default bound on one solve."""

FEASIBILITY = 1e-9
"""How far HiGHS may leave a row: a region's own tolerance."""

DUAL, PRIMAL = 1, 4
"""HiGHS' numbers of its simplex methods."""

Cone: TypeAlias = tuple[Literal["zero", "nonnegative", "second", "exponential"], int]
"""Kind and size of a cone; an exponential one has size 3: (x, y, z) with y exp(x / y) <= z."""


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
    free = np.full(A.shape[1], np.inf)
    solver, status = _highs(c, A, b, -free, free, time_limit_s)
    if status == highspy.HighsModelStatus.kUnbounded:
        return np.inf
    _require_optimal(solver, status)
    return float(solver.getObjectiveValue())


def linear(
    c: Array,
    A: Array | sparse.csr_array,
    b: Array,
    low: Array | float = 0.0,
    high: Array | float = np.inf,
    *,
    time_limit_s: float = TIME_LIMIT_S,
) -> Array:
    """The x that maximises `c.x` subject to `A x <= b`, `low <= x <= high`, by HiGHS' dual simplex.

    Args:
        c: (n,). A: (rows, n), dense or sparse. b: (rows,). low, high: (n,) or one for all.

    Raises:
        Infeasible: no x satisfies the rows, or the objective has no end.
        SolverFailed: HiGHS ended without an answer.
    """
    n = len(c)
    solver, status = _highs(c, A, b, np.broadcast_to(low, n), np.broadcast_to(high, n), time_limit_s)
    if status == highspy.HighsModelStatus.kUnbounded:
        raise Infeasible("the objective has no bound: a limit is missing")
    _require_optimal(solver, status)
    return np.array(solver.getSolution().col_value, dtype=float)


def _highs(
    c: Array,
    A: Array | sparse.csr_array,
    b: Array,
    low: Array,
    high: Array,
    time_limit_s: float,
    whole: npt.NDArray[np.bool_] | None = None,
) -> tuple[Any, Any]:
    """The solver after its run of `max c.x`, and the model's status; `whole` marks integer variables."""
    solver = _model(c, A, np.full(len(b), -np.inf), b, low, high, time_limit_s, whole=whole)
    solver.run()
    return solver, solver.getModelStatus()


def _model(
    c: Array,
    A: Array | sparse.csr_array,
    row_low: Array,
    row_high: Array,
    low: Array,
    high: Array,
    time_limit_s: float,
    *,
    whole: npt.NDArray[np.bool_] | None = None,
) -> Any:
    """The solver with its model `max c.x`, not yet run."""
    rows, columns = A.shape
    model = highspy.HighsLp()
    model.num_col_, model.num_row_ = columns, rows
    model.sense_ = highspy.ObjSense.kMaximize
    model.col_cost_ = np.asarray(c, dtype=float)
    model.col_lower_, model.col_upper_ = np.array(low, dtype=float), np.array(high, dtype=float)
    model.row_lower_, model.row_upper_ = np.array(row_low, dtype=float), np.array(row_high, dtype=float)
    model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    if isinstance(A, np.ndarray):
        model.a_matrix_.start_ = np.arange(rows + 1, dtype=np.int32) * columns
        model.a_matrix_.index_ = np.tile(np.arange(columns, dtype=np.int32), rows)
        model.a_matrix_.value_ = np.asarray(A, dtype=float).ravel()
    else:
        by_row = sparse.csr_array(A)
        model.a_matrix_.start_ = by_row.indptr.astype(np.int32)
        model.a_matrix_.index_ = by_row.indices.astype(np.int32)
        model.a_matrix_.value_ = by_row.data
    solver: Any = highspy.Highs()  # type: ignore[no-untyped-call]
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("presolve", "off")  # so that "infeasible or unbounded" does not occur
    solver.setOptionValue("primal_feasibility_tolerance", FEASIBILITY)
    solver.setOptionValue("dual_feasibility_tolerance", FEASIBILITY)
    solver.setOptionValue("time_limit", time_limit_s)
    if whole is not None:
        kinds = highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger
        model.integrality_ = [kinds[int(is_whole)] for is_whole in whole]
        solver.setOptionValue("presolve", "on")
        for option in ("mip_rel_gap", "mip_abs_gap", "mip_feasibility_tolerance"):
            solver.setOptionValue(option, FEASIBILITY)
    solver.passModel(model)
    return solver


def _require_optimal(solver: Any, status: Any) -> None:
    if status == highspy.HighsModelStatus.kInfeasible:
        raise Infeasible("no point satisfies the rows")
    if status != highspy.HighsModelStatus.kOptimal:
        raise SolverFailed(f"HiGHS ended with {solver.modelStatusToString(status)!r}")


@dataclass(frozen=True, slots=True, eq=False)
class Optimum:
    """The answer to a linear program."""

    x: Array
    """(n,)"""
    value: float
    """of the objective"""
    row_duals: Array
    """(rows,) what the value gains by one more of the row's bound: of its lower or its upper one, whichever
    holds it; zero if neither does"""
    reduced_costs: Array
    """(n,) the same for the variables' bounds"""


class Linear:
    """`c.x` subject to `row_low <= A x <= row_high`, `low <= x <= high`, by HiGHS' dual simplex.

    Compiled once, solved for many bounds and costs. Each solve begins where the last one ended, which is what
    makes it fast; where a program has more than one best x, the one found may depend on that. After `clear()`
    the answer depends on nothing that was solved before.

    Args:
        c: (n,). A: (rows, n), dense or sparse.
        row_low, row_high: (rows,) or one for all; infinite where there is no bound.
        low, high: (n,) or one for all; infinite where there is no bound.

    Raises:
        ValueError: shapes that do not fit; a cost that is not finite, a bound that is no number.
    """

    def __init__(
        self,
        c: Array,
        A: Array | sparse.csr_array,
        row_low: Array | float,
        row_high: Array | float,
        low: Array | float = 0.0,
        high: Array | float = np.inf,
        *,
        time_limit_s: float = TIME_LIMIT_S,
    ) -> None:
        rows, n = A.shape
        given = {"c": c, "row_low": row_low, "row_high": row_high, "low": low, "high": high}
        sizes = {"c": n, "row_low": rows, "row_high": rows, "low": n, "high": n}
        self._given = {name: _numbers(name, given[name], size) for name, size in sizes.items()}
        self._passed, self._A, self._warm, self._time_limit_s = self._given, A, False, time_limit_s
        self._columns = np.arange(n, dtype=np.int32)
        start = self._given
        self._solver = _model(
            start["c"], A, start["row_low"], start["row_high"], start["low"], start["high"], time_limit_s
        )
        self._solver.changeObjectiveSense(highspy.ObjSense.kMinimize)

    def clear(self) -> None:
        """Forget the last answer and the way to it."""
        self._solver.clearSolver()
        self._warm = False

    def minimize(self, **changes: Array | float) -> Optimum:
        """The least `c.x`.

        Args:
            changes: another `c`, `row_low`, `row_high`, `low` or `high` than the constructor's, for this
                solve.

        Raises:
            ValueError: as the constructor; a name that is none of these.
            Infeasible: no x satisfies the rows and bounds, or the objective has no end.
            SolverFailed: HiGHS ended without an answer.
        """
        now, solver = self._with(changes), self._solver
        new = {name: values != self._passed[name] for name, values in now.items()}
        if new["c"].any():
            solver.changeColsCost(len(self._columns), self._columns, now["c"])
        if (new["low"] | new["high"]).any():
            solver.changeColsBounds(len(self._columns), self._columns, now["low"], now["high"])
        for row in np.flatnonzero(new["row_low"] | new["row_high"]).tolist():  # older HiGHS: one by one
            solver.changeRowBounds(row, now["row_low"][row], now["row_high"][row])
        self._passed = now
        ends, status = highspy.HighsModelStatus, self._run()
        if self._warm and status not in (ends.kOptimal, ends.kTimeLimit):
            self.clear()  # its start may be at fault
            status = self._run()
        if status == ends.kUnknown:
            # The dual simplex perturbs costs, and sometimes cannot clean up after it; the primal one can.
            self.clear()
            solver.setOptionValue("simplex_strategy", PRIMAL)
            status = self._run()
            solver.setOptionValue("simplex_strategy", DUAL)
        self._warm = True
        if status == ends.kUnbounded:
            raise Infeasible("the objective has no bound: a limit is missing")
        _require_optimal(solver, status)
        answer = solver.getSolution()
        x, row_duals, reduced_costs = map(np.array, (answer.col_value, answer.row_dual, answer.col_dual))
        return Optimum(x, float(now["c"] @ x), row_duals, reduced_costs)

    def minimize_whole(self, whole: npt.NDArray[np.bool_], **changes: Array | float) -> Array:
        """The x (n,) of least `c.x` whose marked variables are integers, exactly so; see `minimize`.

        Built anew at each call, and without memory of other solves.
        """
        now, rows = self._with(changes), sparse.csr_array(self._A)
        both = sparse.csr_array(sparse.vstack([rows, -rows]))
        b = np.concatenate([now["row_high"], -now["row_low"]])
        limit = self._time_limit_s
        return integer(-now["c"], both, b, now["low"], now["high"], whole, time_limit_s=limit)

    def _with(self, changes: dict[str, Array | float]) -> dict[str, Array]:
        unknown = sorted(set(changes) - set(self._given))
        if unknown:
            raise ValueError(f"linear program: {unknown} is none of {list(self._given)}")
        return {
            name: _numbers(name, changes[name], len(known)) if name in changes else known
            for name, known in self._given.items()
        }

    def _run(self) -> Any:
        # HiGHS compares the limit with the time of all its runs so far.
        self._solver.setOptionValue("time_limit", self._solver.getRunTime() + self._time_limit_s)
        self._solver.run()
        return self._solver.getModelStatus()


def _numbers(name: str, values: Array | float, size: int) -> Array:
    """(size,) costs or bounds, checked."""
    array = np.array(values, dtype=float)
    if array.shape == () and name != "c":
        array = np.full(size, array)
    if array.shape != (size,):
        raise ValueError(f"linear program: {name} has shape {array.shape}, needed is ({size},)")
    wrong = ~np.isfinite(array) if name == "c" else np.isnan(array)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise ValueError(f"linear program: {name} has {array[at]} at {at}; give it a number")
    return array


class Conic:
    """`min x'Px/2 + q.x` subject to `b - A x` in cones, by Clarabel; compiled once, solved for many q and b.

    Args:
        P: (n, n) positive semidefinite, or `None` for a linear objective. q: (n,).
        A: (m, n). b: (m,).
        cones: kinds and sizes, in the order of the rows; sizes add up to m.
        refined: whether the solver refines every linear system that it solves, which takes as long as all the
            rest. Without, it is asked again with it where it ends without an answer, or says there is none.

    Raises:
        ValueError: sizes that do not fit.
    """

    def __init__(
        self,
        P: Array | sparse.csc_array | None,
        q: Array,
        A: Array | sparse.csc_array,
        b: Array,
        cones: Sequence[Cone],
        *,
        time_limit_s: float = TIME_LIMIT_S,
        refined: bool = True,
    ) -> None:
        n, m = len(q), len(b)
        if A.shape != (m, n) or sum(size for _, size in cones) != m:
            raise ValueError(f"conic problem: A is {A.shape}, b has {m} rows, cones {list(cones)}, q has {n}")
        upper = sparse.csc_matrix((n, n)) if P is None else sparse.triu(sparse.csc_matrix(P), format="csc")
        kinds = [_CONES[kind](size) for kind, size in cones]
        self._q, self._b = np.array(q, dtype=float), np.array(b, dtype=float)
        self._matrices = upper, sparse.csc_matrix(A), kinds
        self._time_limit_s, self._refined = time_limit_s, refined
        self._solver = self._compiled(refined)

    def _compiled(self, refined: bool) -> Any:
        settings = clarabel.DefaultSettings()
        settings.verbose, settings.time_limit = False, self._time_limit_s
        settings.presolve_enable = False  # it would forbid new values of b
        settings.iterative_refinement_enable = refined
        upper, A, kinds = self._matrices
        return clarabel.DefaultSolver(upper, self._q, A, self._b, kinds, settings)

    @cached_property
    def _careful(self) -> Any:
        return self._compiled(True)

    def minimize(self, q: Array | None = None, b: Array | None = None) -> Array:
        """The best x (n,), with another q or b than the constructor's where one is given.

        Raises:
            Infeasible: no x satisfies the cones, or the objective has no end.
            SolverFailed: Clarabel ended without a usable answer.
        """
        return self.optimum(q, b).x

    def optimum(self, q: Array | None = None, b: Array | None = None) -> ConicOptimum:
        """The best x with its duals; see `minimize`.

        Raises:
            NoPoint: no x satisfies the cones, with the proof.
            Infeasible: the objective has no end.
            SolverFailed: Clarabel ended without a usable answer.
        """
        q = self._q if q is None else np.asarray(q, dtype=float)
        b = self._b if b is None else np.asarray(b, dtype=float)
        self._solver.update(q=q, b=b)
        answer = self._solver.solve()
        if not self._refined and str(answer.status) != "Solved":
            self._careful.update(q=q, b=b)
            answer = self._careful.solve()
        match str(answer.status):
            case "Solved":
                x, duals = np.array(answer.x, dtype=float), np.array(answer.z, dtype=float)
                return ConicOptimum(x, float(answer.obj_val), float(answer.obj_val_dual), duals)
            case "PrimalInfeasible" | "AlmostPrimalInfeasible":
                raise NoPoint("no point satisfies the constraints", np.array(answer.z, dtype=float))
            case "DualInfeasible" | "AlmostDualInfeasible":
                raise Infeasible("the objective has no bound: a limit is missing")
            case status:
                raise SolverFailed(f"Clarabel ended with {status!r}; look at the problem's scaling")


@dataclass(frozen=True, slots=True, eq=False)
class ConicOptimum:
    """The answer to a conic program."""

    x: Array
    """(n,)"""
    value: float
    """of the objective"""
    bound: float
    """of the dual's: nothing is better, but for the solver's tolerance"""
    duals: Array
    """(m,) in the dual cones"""


class NoPoint(Infeasible):
    """No point satisfies the cones, since `certificate` y lies in the dual cones with y'A = 0 and y'b < 0."""

    def __init__(self, message: str, certificate: Array) -> None:
        super().__init__(message)
        self.certificate = certificate


_CONES: dict[str, Any] = {
    "zero": clarabel.ZeroConeT,
    "nonnegative": clarabel.NonnegativeConeT,
    "second": clarabel.SecondOrderConeT,
    "exponential": lambda size: clarabel.ExponentialConeT(),
}


def integer(
    c: Array,
    A: Array | sparse.csr_array,
    b: Array,
    low: Array,
    high: Array,
    whole: npt.NDArray[np.bool_],
    *,
    time_limit_s: float = TIME_LIMIT_S,
) -> Array:
    """The x that maximises `c.x` subject to `A x <= b`, `low <= x <= high`, some of it whole, by HiGHS.

    Args:
        c, low, high: (n,). A: (rows, n), dense or sparse. b: (rows,).
        whole: (n,) which variables are integers; they are so exactly in the answer.

    Raises:
        Infeasible: no such x satisfies the rows, or the objective has no end.
        SolverFailed: HiGHS ended without an answer.
    """
    solver, status = _highs(c, A, b, low, high, time_limit_s, whole)
    ends = highspy.HighsModelStatus
    if status in (ends.kUnbounded, ends.kUnboundedOrInfeasible):
        raise Infeasible("no integer point satisfies the rows, or the objective has no bound")
    _require_optimal(solver, status)
    x = np.array(solver.getSolution().col_value, dtype=float)
    return np.where(whole, np.round(x), x)


class MixedLinear:
    """`min c.x` subject to `row_low <= A x <= row_high`, `low <= x <= high`, some of x whole, by HiGHS.

    Rows can be added between solves.

    Args:
        c, low, high, whole: (n,). A: (rows, n). row_low, row_high: (rows,); infinite where there is no bound.
        gap: how far the answer may be from the best one, relative to it.
    """

    def __init__(
        self,
        c: Array,
        A: sparse.csr_array,
        row_low: Array,
        row_high: Array,
        low: Array,
        high: Array,
        whole: npt.NDArray[np.bool_],
        *,
        gap: float = FEASIBILITY,
        time_limit_s: float = TIME_LIMIT_S,
    ) -> None:
        self._solver = _model(c, A, row_low, row_high, low, high, time_limit_s, whole=whole)
        self._solver.changeObjectiveSense(highspy.ObjSense.kMinimize)
        self._solver.setOptionValue("mip_rel_gap", gap)
        self._whole, self._time_limit_s = whole, time_limit_s

    def add(self, A: sparse.csr_array, row_high: Array) -> None:
        """More rows `A x <= row_high`."""
        rows = sparse.csr_array(A)
        starts, at = rows.indptr[:-1].astype(np.int32), rows.indices.astype(np.int32)
        low = np.full(len(row_high), -np.inf)
        self._solver.addRows(len(row_high), low, row_high, rows.nnz, starts, at, rows.data)

    def minimize(self, start: Array | None = None) -> tuple[Array, float]:
        """The best x (n,), whole exactly where it has to be, and a bound that no x is below.

        Args:
            start: (n,) where to begin; a better one is looked for.

        Raises:
            Infeasible: no such x satisfies the rows, or the objective has no end.
            SolverFailed: HiGHS ended without an answer.
        """
        if start is not None:
            first = highspy.HighsSolution()
            first.col_value = list(start)
            self._solver.setSolution(first)
        # HiGHS compares the limit with the time of all its runs so far.
        self._solver.setOptionValue("time_limit", self._solver.getRunTime() + self._time_limit_s)
        self._solver.run()
        status, ends = self._solver.getModelStatus(), highspy.HighsModelStatus
        if status in (ends.kUnbounded, ends.kUnboundedOrInfeasible):
            raise Infeasible("no integer point satisfies the rows, or the objective has no bound")
        _require_optimal(self._solver, status)
        x = np.array(self._solver.getSolution().col_value, dtype=float)
        info = self._solver.getInfo()
        bound = info.mip_dual_bound if self._whole.any() else info.objective_function_value
        return np.where(self._whole, np.round(x), x), float(bound)
