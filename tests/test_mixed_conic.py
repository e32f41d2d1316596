"""Mixed-integer conic programs against all their patterns, and where there is nothing to be found."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from controllers import Infeasible, SolverFailed
from controllers.partnership import branch_and_bound, outer_approximation
from controllers.partnership.mixed_conic import MixedConic
from controllers.partnership.relaxation import Held, Relaxation, Solution, relaxed
from controllers.solve import Cone, Conic, MixedLinear, NoPoint

Array = npt.NDArray[np.float64]
Method = Callable[[MixedConic], Solution]

methods = pytest.mark.parametrize(
    "whole", [branch_and_bound.whole, outer_approximation.whole], ids=["branching", "tangents"]
)


def program(seed: int, *, bits: int = 4, tight: float = 1.0) -> MixedConic:
    """min c.x + d.z, |x - B z| <= tight (1 + a.z), 0 <= x <= 2, and at least one bit."""
    rng = np.random.default_rng(seed)
    n = 3
    c, d = rng.normal(size=n), rng.uniform(-1, 1, bits)
    B, a = rng.uniform(0, 1.5, (n, bits)), rng.uniform(-0.2, 0.3, bits)
    x, z = np.eye(n), np.zeros((n, bits))
    A = np.vstack(
        [
            np.hstack([-x, z]),
            np.hstack([x, z]),
            np.concatenate([np.zeros(n), -np.ones(bits)])[None],
            np.concatenate([np.zeros(n), -tight * a])[None],
            np.hstack([-x, B]),
        ]
    )
    b = np.concatenate([np.zeros(n), np.full(n, 2.0), [-1.0], [tight], np.zeros(n)])
    cones: tuple[Cone, ...] = (("nonnegative", 2 * n + 1), ("second", n + 1))
    return MixedConic(
        np.concatenate([c, d]), sparse.csc_array(A), b, cones,
        whole=n + np.arange(bits), low=np.zeros(bits), high=np.ones(bits),
    )  # fmt: skip


def enumerated(given: MixedConic) -> float:
    """The least value over all patterns, each a conic program by itself; infinite if none has a point."""
    held, best = Held(given), np.inf
    for bits in product((0.0, 1.0), repeat=len(given.whole)):
        try:
            best = min(best, held.minimize(np.array(bits)).value)
        except NoPoint:
            continue
    return best


@methods
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), tight=st.sampled_from([0.3, 0.6, 1.0]))
def test_it_finds_the_best_pattern(whole: Method, seed: int, tight: float) -> None:
    """With a small `tight` many patterns have no point."""
    given = program(seed, tight=tight)
    best = enumerated(given)
    if not np.isfinite(best):
        with pytest.raises(Infeasible):
            whole(given)
        return
    found = whole(given)
    assert found.value == pytest.approx(best, abs=2e-7)
    assert found.bound <= found.value
    assert relaxed(given).bound <= found.value + 1e-7
    z = found.x[given.whole]
    assert (z == np.round(z)).all()
    s = given.b - given.A @ found.x
    assert s[:7].min() > -1e-7
    assert s[7] - np.linalg.norm(s[8:]) > -1e-7


@methods
def test_where_the_relaxation_alone_has_a_point_there_is_none(whole: Method) -> None:
    """(z - 1/2)^2 <= 1/16 for each of four bits: no pattern has one, and no linear row says so."""
    k = 4
    A, b, cones = [], [], list[Cone]()
    for j in range(k):
        row = np.zeros((2, k))
        row[1, j] = -1.0
        A.append(row)
        b += [0.25, -0.5]
        cones.append(("second", 2))
    given = MixedConic(
        np.ones(k), sparse.csc_array(np.vstack(A)), np.array(b), tuple(cones),
        whole=np.arange(k), low=np.zeros(k), high=np.ones(k),
    )  # fmt: skip
    assert relaxed(given).value == pytest.approx(1.0, abs=1e-6)
    with pytest.raises(Infeasible):
        whole(given)


@methods
def test_without_whole_variables_it_is_the_relaxation(whole: Method) -> None:
    """min x + y within the unit circle, and min -x without an end."""
    A, b = np.array([[0.0, 0.0], [-1.0, 0.0], [0.0, -1.0]]), np.array([1.0, 0.0, 0.0])
    found = whole(MixedConic(np.ones(2), sparse.csc_array(A), b, (("second", 3),)))
    assert found.value == pytest.approx(-np.sqrt(2), abs=1e-7)
    with pytest.raises(Infeasible, match="no bound"):
        whole(MixedConic(-np.ones(1), sparse.csc_array(-np.eye(1)), np.zeros(1), (("nonnegative", 1),)))


def test_a_held_pattern_that_breaks_a_row_of_its_own_is_refused_with_its_proof() -> None:
    given = program(0)
    with pytest.raises(NoPoint) as refused:
        Held(given).minimize(np.zeros(4))
    proof = refused.value.certificate
    assert proof @ (given.b - given.A @ np.zeros(7)) < 0  # the row: at least one bit
    assert np.abs(given.A[:, :3].T @ proof).max() == 0


def test_a_proof_that_no_point_exists_is_one() -> None:
    """x >= 2 and |x| <= 1."""
    A, b = np.array([[-1.0], [0.0], [-1.0]]), np.array([-2.0, 1.0, 0.0])
    with pytest.raises(NoPoint) as refused:
        Conic(None, np.zeros(1), A, b, [("nonnegative", 1), ("second", 2)]).minimize()
    y = refused.value.certificate
    assert y[0] >= 0
    assert y[1] >= abs(y[2]) - 1e-9
    assert np.abs(A.T @ y).max() < 1e-6 * np.abs(y).max()
    assert b @ y < 0


def test_the_duals_of_a_conic_program_give_its_value() -> None:
    """min x + y within the unit circle."""
    A, b = np.array([[0.0, 0.0], [-1.0, 0.0], [0.0, -1.0]]), np.array([1.0, 0.0, 0.0])
    found = Conic(None, np.ones(2), A, b, [("second", 3)]).optimum()
    assert found.value == pytest.approx(-np.sqrt(2), abs=1e-7)
    assert found.bound == pytest.approx(-b @ found.duals, abs=1e-9)
    assert found.bound == pytest.approx(found.value, abs=1e-6)


def test_rows_can_be_added_to_a_mixed_linear_program() -> None:
    """max x + y, y whole."""
    linear = MixedLinear(
        -np.ones(2), sparse.csr_array(np.array([[1.0, 2.0]])), np.array([-np.inf]), np.array([5.0]),
        np.zeros(2), np.full(2, 3.0), np.array([False, True]),
    )  # fmt: skip
    x, bound = linear.minimize()
    assert x == pytest.approx([3.0, 1.0])
    assert bound == pytest.approx(-4.0)
    linear.add(sparse.csr_array(np.array([[1.0, 1.0]])), np.array([3.5]))
    x, bound = linear.minimize(x)
    assert x.sum() == pytest.approx(3.5)
    assert x[1] == round(x[1])
    assert bound == pytest.approx(-3.5)
    linear.add(sparse.csr_array(np.array([[-1.0, 0.0]])), np.array([-4.0]))
    with pytest.raises(Infeasible):
        linear.minimize()


def test_the_duals_of_a_relaxation_bound_what_leaving_a_bound_costs() -> None:
    """Every pattern with a bit off its bound costs at least the relaxation's value and the bit's lift."""
    for seed in range(20):
        given = program(seed)
        k = len(given.whole)
        root = relaxed(given)
        assert root.lifts is not None
        held = Held(given)
        for bits in product((0.0, 1.0), repeat=k):
            values = np.array(bits)
            try:
                value = held.minimize(values).value
            except NoPoint:
                continue
            assert value >= root.bound + (root.lifts[0] * values).max() - 1e-6
            assert value >= root.bound + (root.lifts[1] * (1 - values)).max() - 1e-6


def test_a_relaxation_is_compiled_once_for_all_bounds() -> None:
    given = program(5)
    relaxation = Relaxation(given)
    low, high = np.array([0.0, 1.0, 0.0, 0.0]), np.array([1.0, 1.0, 0.0, 1.0])
    found = relaxation.minimize(low, high)
    fresh = relaxed(MixedConic(given.q, given.A, given.b, given.cones, given.whole, low, high))
    assert found.value == pytest.approx(fresh.value, abs=1e-7)
    assert found.x[given.whole][1:3] == pytest.approx([1.0, 0.0], abs=1e-6)


def test_integers_are_not_only_bits() -> None:
    """The point of a grid nearest to (2.6, -1.3) within a circle of radius 2 around the origin."""
    target = np.array([2.6, -1.3])
    A = sparse.csc_array(
        np.array([[0, 0, 0], [-1, 0, 0], [0, -1, 0], [0, 0, -1], [-1, 0, 0], [0, -1, 0]], dtype=float)
    )
    b = np.array([2.0, 0.0, 0.0, 0.0, -target[0], -target[1]])
    given = MixedConic(
        np.array([0.0, 0.0, 1.0]), A, b, (("second", 3), ("second", 3)),
        whole=np.arange(2), low=np.full(2, -5.0), high=np.full(2, 5.0),
    )  # fmt: skip
    for whole in (branch_and_bound.whole, outer_approximation.whole):
        found = whole(given)
        assert found.x[:2] == pytest.approx([2.0, 0.0]) or found.x[:2] == pytest.approx([1.0, -1.0])
        points = [np.array(p) for p in product(range(-2, 3), repeat=2) if p[0] ** 2 + p[1] ** 2 <= 4]
        assert found.value == pytest.approx(min(np.linalg.norm(p - target) for p in points), abs=1e-6)


def test_a_tree_that_grows_too_large_is_given_up() -> None:
    with pytest.raises(SolverFailed, match="after 1 nodes"):
        branch_and_bound.whole(two_halves(), most_nodes=1)
    assert branch_and_bound.whole(two_halves()).value == pytest.approx(2.0, abs=1e-6)


def two_halves() -> MixedConic:
    """min sum of four bits with z_1 + z_2 = 1 and z_3 + z_4 = 1, whose relaxation is all halves."""
    A = np.array([[1.0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0], [-1, 1, 0, 0], [0, 0, -1, 1]])
    return MixedConic(
        np.ones(4), sparse.csc_array(A), np.array([1.0, 1.0, 2.0, 0.0, 0.0]), (("zero", 2), ("second", 3)),
        whole=np.arange(4), low=np.zeros(4), high=np.ones(4),
    )  # fmt: skip
