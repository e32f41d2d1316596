"""Every end of a solver is one of three: an answer, Infeasible, SolverFailed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import cvxpy
import highspy
import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import linprog

from controllers import Infeasible, SolverFailed
from controllers.solve import Conic, Linear, linear, maximum, solve

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


def nearest(*, refined: bool) -> Conic:
    """The point of the disc |(x, y)| <= b with the greatest 3 x + 4 y."""
    A = np.array([[0.0, 0.0], [-1.0, 0.0], [0.0, -1.0]])
    return Conic(None, np.array([-3.0, -4.0]), A, np.zeros(3), [("second", 3)], refined=refined)


def test_without_refinement_the_answer_is_the_same() -> None:
    for radius in (1.0, 5.0):
        for refined in (True, False):
            found = nearest(refined=refined).minimize(b=np.array([radius, 0.0, 0.0]))
            assert found == pytest.approx([0.6 * radius, 0.8 * radius], rel=1e-6)
    with pytest.raises(Infeasible, match="no point satisfies"):
        nearest(refined=False).minimize(b=np.array([-1.0, 0.0, 0.0]))


@pytest.mark.parametrize("status", ["NumericalError", "InsufficientProgress", "PrimalInfeasible"])
def test_without_refinement_what_is_no_answer_is_asked_again_with_it(status: str) -> None:
    @dataclass
    class Ended:
        status: str
        asked: int = 0

        def update(self, **given: Any) -> None:
            self.asked += 1

        def solve(self) -> Ended:
            return self

    problem = nearest(refined=False)
    rough = problem._solver = Ended(status)
    for radius in (1.0, 2.0):  # each time anew
        found = problem.minimize(b=np.array([radius, 0.0, 0.0]))
        assert found == pytest.approx([0.6 * radius, 0.8 * radius], rel=1e-6)
    assert rough.asked == 2


def microgrid(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A program of 204 columns, like a microgrid's over 12 hours, and nine variants of its forecasts.

    Per hour: four generators' outputs, two storages' charge, discharge and energy, a load that may be shed,
    purchase and sale; a power balance, two energy balances and four ramps.
    """
    rng = np.random.default_rng(seed)
    hours, each = 12, 17
    rows, low, high = [], [], []

    def row(entries: dict[int, float], at_least: float, at_most: float) -> None:
        dense = np.zeros(hours * each)
        dense[list(entries)] = list(entries.values())
        rows.append(dense)
        low.append(at_least)
        high.append(at_most)

    demand = rng.uniform(0.4, 1.2, hours)
    for t in range(hours):
        at = t * each
        row({at + i: 1.0 if i not in (4, 6, 11) else -1.0 for i in (*range(8), 10, 11)}, demand[t], demand[t])
        for k in range(2):
            charge, discharge, energy = at + 4 + 2 * k, at + 5 + 2 * k, at + 8 + k
            entries = {energy: 1.0, charge: -0.95, discharge: 1 / 0.95}
            row(entries | ({energy - each: -1.0} if t else {}), 0.3 * (t == 0), 0.3 * (t == 0))
        for i in range(4):
            row({at + i: 1.0} | ({at + i - each: -1.0} if t else {}), -0.2, 0.2)
    A = sparse.csr_array(np.array(rows))
    upper = np.tile([0.5, 0.4, 0.3, 0.3, *[0.15] * 4, 0.6, 0.6, 2.0, 0.8, *[0.1] * 5], hours)
    cost = rng.uniform(50.0, 150.0, hours * each)
    cost.reshape(hours, each)[:, [8, 9]] = 0.0
    cost.reshape(hours, each)[:, 11] *= -0.4
    first = {
        "c": cost,
        "A": A,
        "row_low": np.array(low),
        "row_high": np.array(high),
        "low": 0.0,
        "high": upper,
    }
    variants: list[dict[str, Any]] = [{}]
    for k in range(8):
        shifted = {side: np.array(first[side]) for side in ("row_low", "row_high")}
        for values in shifted.values():
            values[:: len(rows) // hours] *= 1 + 0.1 * (k - 4)
        variants.append(shifted | {"high": upper * rng.uniform(0.8, 1.2, len(upper))})
    return first, variants


def otherwise(first: dict[str, Any], change: dict[str, Any]) -> Any:
    """The same program by scipy's own interior point method."""
    now = first | change
    A, n = now["A"], len(now["c"])
    low, high = np.broadcast_to(now["row_low"], A.shape[0]), np.broadcast_to(now["row_high"], A.shape[0])
    both, b = np.vstack([A.toarray(), -A.toarray()]), np.concatenate([high, -low])
    bounds = np.column_stack([np.broadcast_to(now[side], n) for side in ("low", "high")])
    return linprog(now["c"], A_ub=both, b_ub=b, bounds=bounds, method="highs-ipm")


def test_a_compiled_program_agrees_with_scipy_for_every_change() -> None:
    for seed in range(4):
        first, variants = microgrid(seed)
        program = Linear(**first)
        rng = np.random.default_rng(seed)
        prices = [{"c": first["c"] * rng.uniform(0.5, 1.5, len(first["c"]))} for _ in range(2)]
        for change in (*variants, *prices, {}):
            best, other = program.minimize(**change), otherwise(first, change)
            assert best.value == pytest.approx(other.fun, rel=1e-7)
            now = first | change
            flow = now["A"] @ best.x
            assert (now["row_low"] - 1e-8 <= flow).all()
            assert (flow <= now["row_high"] + 1e-8).all()
            assert (best.x >= -1e-8).all()
            assert (best.x <= now["high"] + 1e-8).all()
            turned = change | {"c": -now["c"]}
            assert program.minimize(**turned).value == pytest.approx(otherwise(first, turned).fun, rel=1e-7)


def test_a_compiled_program_agrees_with_the_one_solved_once() -> None:
    rng = np.random.default_rng(5)
    for _ in range(10):
        A, b, c = rng.uniform(0.0, 1.0, (12, 5)), rng.uniform(0.5, 1.0, 12), rng.uniform(0.1, 1.0, 5)
        program = Linear(-c, A, -np.inf, b, 0.0, 0.6)
        for high in (0.6, 0.3, rng.uniform(0.1, 0.6, 5)):
            best = program.minimize(high=high)
            assert best.x == pytest.approx(linear(c, A, b, 0.0, high), abs=1e-9)
            assert best.value == -c @ best.x


def test_a_change_is_for_one_solve() -> None:
    # the least 2 x + y with x + y in [1, 3], x, y in [0, 2]
    program = Linear(np.array([2.0, 1.0]), np.ones((1, 2)), 1.0, 3.0, 0.0, 2.0)
    assert program.minimize().x == pytest.approx([0.0, 1.0])
    assert program.minimize(row_low=2.5).x == pytest.approx([0.5, 2.0])
    assert program.minimize(low=np.array([0.25, 0.0])).x == pytest.approx([0.25, 0.75])
    assert program.minimize(c=np.array([-1.0, 1.0])).x == pytest.approx([2.0, 0.0])
    assert program.minimize().x == pytest.approx([0.0, 1.0])
    dear = np.array([-2.0, -1.0])
    assert program.minimize(c=dear, row_high=2.5).x == pytest.approx([2.0, 0.5])
    assert program.minimize(c=dear).value == pytest.approx(-5.0)


def test_duals_are_what_the_value_gains() -> None:
    first, _ = microgrid(7)
    rng = np.random.default_rng(7)
    first["c"] = first["c"] + rng.uniform(-1.0, 1.0, len(first["c"]))
    for sign in (1.0, -1.0):
        program = Linear(**first | {"c": sign * first["c"]})
        best = program.minimize()
        tight = np.flatnonzero(np.abs(best.row_duals) > 1e-6)
        reduced = np.flatnonzero(np.abs(best.reduced_costs) > 1e-6)
        assert len(tight) > 10
        assert len(reduced) > 10
        smooth = 0
        for index in rng.choice(tight, 8, replace=False):
            # both bounds together: only the one that holds it counts
            gains = []
            for step in (1e-6, -1e-6):
                moved = {side: np.array(first[side]) for side in ("row_low", "row_high")}
                for values in moved.values():
                    values[index] += step
                gains.append((program.minimize(**moved).value - best.value) / step)
            # at a kink the dual is one of the slopes between those of both sides
            assert min(gains) - 1e-3 <= best.row_duals[index] <= max(gains) + 1e-3
            smooth += max(gains) - min(gains) < 1e-3
        assert smooth >= 4
        # the value of a program by its duals alone: strong duality
        bound = np.where(np.abs(best.x) < 1e-9, 0.0, first["high"])
        rows = np.where(best.row_duals > 0, first["row_low"], first["row_high"])
        assert best.row_duals @ rows + best.reduced_costs @ bound == pytest.approx(best.value, rel=1e-8)
        assert best.row_duals @ first["A"] + best.reduced_costs == pytest.approx(sign * first["c"], abs=1e-7)


def answers(program: Linear, variants: list[dict[str, Any]]) -> list[bytes]:
    return [program.minimize(**change).x.tobytes() for change in variants]


def test_after_clear_the_answer_depends_on_nothing_earlier() -> None:
    # every x that serves the load is as good as another: the one found depends on the way to it
    first, variants = microgrid(3)
    first["c"] = np.where(first["c"] > 0, 100.0, first["c"])
    fresh = answers(Linear(**first), variants)
    program = Linear(**first)
    warm = answers(program, variants[::-1])[::-1]
    assert warm != fresh
    program.clear()
    assert answers(program, variants) == fresh
    program.minimize(c=-np.arange(len(first["c"]), dtype=float))
    with pytest.raises(Infeasible):
        program.minimize(high=0.0)
    program.clear()
    assert answers(program, variants) == fresh


def test_a_compiled_program_has_the_three_ends_and_recovers() -> None:
    program = Linear(np.ones(1), np.ones((1, 1)), 1.0, 2.0)
    assert program.minimize().value == pytest.approx(1.0)
    with pytest.raises(Infeasible, match="no point satisfies"):
        program.minimize(high=0.5)
    assert program.minimize().value == pytest.approx(1.0)
    with pytest.raises(Infeasible, match="limit is missing"):
        program.minimize(c=-np.ones(1), row_high=np.inf)
    assert program.minimize(c=-np.ones(1)).value == pytest.approx(-2.0)
    large = np.random.default_rng(1).uniform(0, 1, (800, 400))
    with pytest.raises(SolverFailed, match="Time limit"):
        Linear(-np.ones(400), large, -np.inf, 1.0, time_limit_s=1e-6).minimize()


def test_a_start_that_fails_is_forgotten_once(monkeypatch: pytest.MonkeyPatch) -> None:
    program = Linear(np.ones(1), np.ones((1, 1)), 1.0, 2.0)
    assert program.minimize().value == pytest.approx(1.0)
    runs: list[Any] = []
    run = Linear._run

    def stuck(self: Linear) -> Any:
        run(self)
        runs.append(self)
        return highspy.HighsModelStatus.kUnknown

    monkeypatch.setattr(Linear, "_run", stuck)
    with pytest.raises(SolverFailed, match="Unknown"):
        program.minimize(row_low=1.5)
    assert len(runs) == 3  # from the last answer, from nothing, and by the primal simplex
    program.clear()
    with pytest.raises(SolverFailed, match="Unknown"):
        program.minimize(row_low=1.5)
    assert len(runs) == 5  # it was from nothing already
    monkeypatch.undo()
    assert program.minimize(row_low=1.5).value == pytest.approx(1.5)


def test_bounds_that_cross_by_dust_are_one_bound() -> None:
    program = Linear(np.ones(1), np.ones((1, 1)), -np.inf, np.inf)
    assert program.minimize(low=0.5, high=0.5 - 1e-12).x == pytest.approx([0.5], abs=1e-9)
    assert program.minimize(row_low=0.5, row_high=0.5 - 1e-12).x == pytest.approx([0.5], abs=1e-9)
    with pytest.raises(Infeasible):
        program.minimize(low=0.5, high=0.49)


def test_the_time_limit_is_each_solves_own() -> None:
    # HiGHS adds up the time of all runs: thousands of steps must not use a limit up
    first, variants = microgrid(0)
    program = Linear(**first, time_limit_s=0.3)
    started = time.perf_counter()
    while time.perf_counter() - started < 0.7:
        program.clear()
        for change in variants:
            program.minimize(**change)


def test_whole_variables_against_enumeration() -> None:
    rng, by_chance = np.random.default_rng(11), 0
    for _ in range(6):
        A, c = rng.uniform(0.2, 1.0, (4, 5)), rng.uniform(-1.0, -0.2, 5)
        program = Linear(c, A, 0.3, 1.6, 0.0, 2.0)
        whole = np.array([True, True, True, False, False])
        values = []
        for fixed in np.ndindex(3, 3, 3):
            low, high = np.array([*fixed, 0.0, 0.0]), np.array([*fixed, 2.0, 2.0])
            try:
                values.append(program.minimize(low=low, high=high).value)
            except Infeasible:
                continue
        x = program.minimize_whole(whole)
        assert c @ x == pytest.approx(min(values), abs=1e-8)
        assert (x[:3] == np.round(x[:3])).all()
        by_chance += program.minimize().value > c @ x - 1e-6
        assert program.minimize_whole(whole, high=0.0, row_low=-np.inf) == pytest.approx(np.zeros(5))
    assert by_chance < 4  # of 6: the answers are whole because they must be


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"row_low": np.zeros(2)}, r"row_low has shape \(2,\), needed is \(1,\)"),
        ({"c": 1.0}, r"c has shape \(\)"),
        ({"c": np.array([1.0, np.inf])}, "c has inf at 1"),
        ({"low": np.array([np.nan, 0.0])}, "low has nan at 0"),
        ({"cost": 1.0}, r"\['cost'\] is none of"),
    ],
)
def test_what_is_no_program_is_refused(change: dict[str, Any], says: str) -> None:
    program = Linear(np.ones(2), np.ones((1, 2)), 0.0, 1.0)
    with pytest.raises(ValueError, match=says):
        program.minimize(**change)
    assert program.minimize().value == pytest.approx(0.0)


def test_nine_programs_of_a_microgrid_are_solved_in_time() -> None:
    """Prints what they cost: begun where the last ended, each from nothing, each built anew."""
    first, variants = microgrid(0)
    program = Linear(**first)

    def warm() -> None:
        program.clear()
        for change in variants:
            program.minimize(**change)

    def cold() -> None:
        for change in variants:
            program.clear()
            program.minimize(**change)

    def anew() -> None:
        for change in variants:
            Linear(**(first | change)).minimize()

    best = {}
    for way in (warm, cold, anew):
        took = []
        for _ in range(7):
            started = time.perf_counter()
            way()
            took.append((time.perf_counter() - started) * 1e3)
        best[way.__name__] = min(took)
    print({name: f"{ms:.2f} ms" for name, ms in best.items()})
    assert best["warm"] < 60.0
