"""Every end of a solver is one of three: an answer, Infeasible, SolverFailed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cvxpy
import numpy as np
import pytest
from scipy.optimize import linprog

from controllers import Infeasible, SolverFailed
from controllers.solve import maximum, solve

cp: Any = cvxpy
BOX = np.vstack([np.eye(2), -np.eye(2)])


def test_an_answer_is_the_optimum() -> None:
    x = cp.Variable(2)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - np.array([3.0, 1.0]))), [cp.sum(x) <= 2])
    assert solve(problem) == pytest.approx(2.0, abs=1e-7)
    assert x.value == pytest.approx([2.0, 0.0], abs=1e-7)


def test_contradicting_constraints_are_infeasible() -> None:
    x = cp.Variable()
    with pytest.raises(Infeasible, match="no point satisfies"):
        solve(cp.Problem(cp.Minimize(x), [x >= 1, x <= 0]))


def test_an_objective_without_end_is_infeasible() -> None:
    x = cp.Variable()
    with pytest.raises(Infeasible, match="limit is missing"):
        solve(cp.Problem(cp.Maximize(x), [x >= 1]))


def test_running_out_of_time_is_a_failure() -> None:
    x = cp.Variable(50)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - 1)), [x >= 2])
    with pytest.raises(SolverFailed, match=r"user_limit.*1e-09 s"):
        solve(problem, time_limit_s=1e-9)
    assert solve(problem) == pytest.approx(50.0, abs=1e-5)  # the same problem, given time


@dataclass
class Ends:
    """A problem that ends as it is told to."""

    status: str
    value: float = 1.0

    def solve(self, **options: Any) -> None:
        if self.status == "raises":
            raise cp.error.SolverError("numbers")


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (cp.OPTIMAL_INACCURATE, SolverFailed),
        (cp.SOLVER_ERROR, SolverFailed),
        (cp.USER_LIMIT, SolverFailed),
        ("something new", SolverFailed),
        ("raises", SolverFailed),
        (cp.INFEASIBLE_INACCURATE, Infeasible),
        (cp.UNBOUNDED_INACCURATE, Infeasible),
    ],
)
def test_a_half_answer_is_no_answer(status: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        solve(Ends(status))  # type: ignore[arg-type]


def test_maximum_against_another_solver() -> None:
    rng = np.random.default_rng(1)
    for _ in range(30):
        n, rows = int(rng.integers(1, 6)), int(rng.integers(1, 25))
        A = np.vstack([rng.normal(size=(rows, n)), np.eye(n), -np.eye(n)])
        b = np.concatenate([rng.uniform(0.1, 2, rows), np.full(2 * n, 5.0)])
        c = rng.normal(size=n)
        other: Any = linprog(-c, A_ub=A, b_ub=b, bounds=(None, None), method="highs-ipm")
        assert maximum(c, A, b) == pytest.approx(-other.fun, abs=1e-7)


def test_maximum_without_end_is_infinite() -> None:
    assert maximum(np.array([1.0, 0.0]), BOX[2:], np.ones(2)) == np.inf
    assert maximum(np.array([1.0, 0.0]), np.zeros((0, 2)), np.zeros(0)) == np.inf


@pytest.mark.parametrize("direction", [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_maximum_over_nothing_is_infeasible(direction: tuple[float, float]) -> None:
    gap = np.array([[1.0, 0.0], [-1.0, 0.0]])  # x <= 0, x >= 1, y free: empty, and without end in y
    with pytest.raises(Infeasible):
        maximum(np.array(direction), gap, np.array([0.0, -1.0]))
    with pytest.raises(Infeasible):  # a gap far below HiGHS' own tolerance
        maximum(np.array(direction), gap, np.array([0.0, -1e-8]))


def test_maximum_says_when_it_ran_out_of_time() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(SolverFailed, match="Time limit"):
        maximum(rng.normal(size=100), rng.normal(size=(300, 100)), np.ones(300), time_limit_s=0.0)
