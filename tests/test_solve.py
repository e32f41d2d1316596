"""Every end of a solver is one of three: an answer, Infeasible, SolverFailed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cvxpy
import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import linprog

from controllers import Infeasible, SolverFailed
from controllers.solve import Conic, linear, maximum, solve

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


def test_a_linear_program_agrees_with_scipy() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        A, b, c = rng.uniform(0.0, 1.0, (12, 5)), rng.uniform(0.5, 1.0, 12), rng.uniform(0.1, 1.0, 5)
        high = rng.uniform(0.1, 0.6, 5)
        x = linear(c, A, b, 0.0, high)
        other = linprog(-c, A_ub=A, b_ub=b, bounds=[(0.0, h) for h in high])
        assert c @ x == pytest.approx(-other.fun, abs=1e-9)
        assert (A @ x <= b + 1e-9).all()
        assert linear(c, sparse.csr_array(A), b, 0.0, high) == pytest.approx(x, abs=1e-9)


def test_a_linear_program_has_the_three_ends() -> None:
    one = np.ones(1)
    with pytest.raises(Infeasible, match="no point satisfies"):
        linear(one, np.ones((1, 1)), -one)
    with pytest.raises(Infeasible, match="limit is missing"):
        linear(one, np.zeros((0, 1)), np.zeros(0))
    large = np.random.default_rng(1).uniform(0, 1, (800, 400))
    with pytest.raises(SolverFailed, match="HiGHS ended"):
        linear(np.ones(400), large, np.ones(800), time_limit_s=1e-6)


def test_a_conic_problem_is_solved_for_many_right_hand_sides() -> None:
    # the point of x + y <= b closest to (1, 2)
    problem = Conic(np.eye(2), np.array([-1.0, -2.0]), np.ones((1, 2)), np.ones(1), [("nonnegative", 1)])
    for b in (1.0, 0.5, -3.0, 1.0):
        shift = (3.0 - b) / 2
        assert problem.minimize(b=np.array([b])) == pytest.approx([1 - shift, 2 - shift], abs=1e-7)
    assert problem.minimize() == pytest.approx([0.0, 1.0], abs=1e-7)  # as constructed again


def test_cones_are_those_of_their_names() -> None:
    # greatest log(x), x <= b; and the least t with |(3, 4)| <= t
    log = Conic(
        None,
        np.array([-1.0, 0.0]),
        np.array([[0.0, 1.0], [-1.0, 0.0], [0.0, 0.0], [0.0, -1.0]]),
        np.array([3.0, 0.0, 1.0, 0.0]),
        [("nonnegative", 1), ("exponential", 3)],
    )
    assert log.minimize() == pytest.approx([np.log(3.0), 3.0], rel=1e-6)
    norm = Conic(
        None, np.ones(1), np.array([[-1.0], [0.0], [0.0]]), np.array([0.0, 3.0, 4.0]), [("second", 3)]
    )
    assert norm.minimize() == pytest.approx([5.0], rel=1e-7)
    fixed = Conic(None, np.ones(1), np.ones((1, 1)), np.array([2.5]), [("zero", 1)])
    assert fixed.minimize() == pytest.approx([2.5], rel=1e-9)


def test_a_conic_problem_has_the_three_ends() -> None:
    one = np.ones(1)
    with pytest.raises(Infeasible, match="limit is missing"):
        Conic(None, one, np.ones((1, 1)), one, [("nonnegative", 1)]).minimize()
    with pytest.raises(Infeasible, match="no point satisfies"):
        Conic(None, one, np.array([[1.0], [-1.0]]), -np.ones(2), [("nonnegative", 2)]).minimize()
    A = np.random.default_rng(2).uniform(0, 1, (200, 100))
    hurried = Conic(None, -np.ones(100), A, np.ones(200), [("nonnegative", 200)], time_limit_s=1e-9)
    with pytest.raises(SolverFailed, match="Clarabel ended"):
        hurried.minimize()
    with pytest.raises(ValueError, match="cones"):
        Conic(None, one, np.ones((2, 1)), np.ones(2), [("nonnegative", 1)])
