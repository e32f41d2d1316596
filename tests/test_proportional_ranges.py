"""P-WE: against its optimality conditions, the printed program in cvxpy, a closed form and SLSQP."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize, nnls

from controllers import Infeasible, Site, solve
from controllers.envelopes.equal_ranges import EqualRanges
from controllers.envelopes.packing import Packing, prices
from controllers.envelopes.proportional_ranges import ProportionalProgram, ProportionalRanges, sharpened
from tests.envelope_cases import random_tree, seen
from tests.range_cases import Array, Found, check_safe, check_table, feeders, found, meshed, trees


def printed(answer: Found, k: int, keep: Any = slice(None)) -> Array:
    """(A9) or (A10) as printed, in cvxpy; of the devices to keep."""
    sign = 1.0 if k == 0 else -1.0
    A, gamma = answer.A[:, keep], answer.gamma[keep]
    size = np.abs(A).max(axis=1)
    live = size > 1e-12
    P: Any = cp.Variable(len(gamma))
    rows = (A[live] / size[live, None]) @ P <= answer.room.W[live] / size[live]
    solve.solve(cp.Problem(cp.Maximize(gamma @ cp.log(sign * P)), [rows, sign * P >= 0]))
    return np.asarray(sign * P.value)


def check_prices(U: Array, W: Array, x: Array, gamma: Array) -> None:
    """gamma_i / x_i = sum_k mu_k U_ki with mu >= 0 on full rows alone: sufficient, the problem is convex."""
    assert (x > 0).all()
    full = np.flatnonzero(W - U @ x <= 1e-8 * W)
    _, residual = nnls((U[full] * x).T / gamma[:, None], np.ones(len(x)))
    assert residual <= 1e-6


def test_the_totals_of_the_33_bus_feeder() -> None:
    check_table(ProportionalRanges)


@pytest.mark.parametrize("site", [*feeders(), *trees(12)], ids=lambda site: site.name)
def test_no_other_ranges_have_a_greater_product(site: Site) -> None:
    answer = found(ProportionalRanges(site))
    for k in (0, 1):
        U, x = answer.way(k)
        limited = U.max(axis=0) > 0
        check_prices(U[:, limited], answer.room.W, x[limited], answer.gamma[limited])


@pytest.mark.parametrize("site", [*feeders(), *trees(5)], ids=lambda site: site.name)
def test_it_is_the_printed_program(site: Site) -> None:
    answer = found(ProportionalRanges(site))
    keep = np.flatnonzero(np.abs(answer.A).max(axis=0) > 0)
    for k in (0, 1):
        mine = answer.way(k)[1][keep]
        theirs = printed(answer, k, keep)
        # Their solver stops where the product no longer grows in eight digits: mine is no smaller.
        value, best = (answer.gamma[keep] @ np.log(x) for x in (mine, theirs))
        assert value >= best - 1e-7
        assert mine == pytest.approx(theirs, rel=5e-3, abs=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_a_general_optimiser_finds_no_more(seed: int) -> None:
    rng = np.random.default_rng(seed)
    U, gamma = rng.uniform(0, 1, (8, 3)), rng.uniform(0.2, 3, 3)
    U /= U.max(axis=1, keepdims=True)
    room = rng.uniform(0.2, 2, 8)
    x = ProportionalProgram(U, gamma).best(room)
    start = np.full(3, 0.2 * room.min())
    other = minimize(
        lambda y: -float(gamma @ np.log(np.maximum(y, 1e-12))),
        start,
        method="SLSQP",
        bounds=[(1e-9, None)] * 3,
        constraints={"type": "ineq", "fun": lambda y: room - U @ y},
        options={"ftol": 1e-13, "maxiter": 500},
    )
    assert x == pytest.approx(other.x, rel=1e-4)
    assert gamma @ np.log(x) >= -other.fun - 1e-9


@given(
    a=st.lists(st.floats(0.01, 1), min_size=1, max_size=6),
    W=st.floats(1e-6, 1e4),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_one_row_has_a_closed_form(a: list[float], W: float, data: st.DataObject) -> None:
    weights = st.lists(st.floats(0.05, 20), min_size=len(a), max_size=len(a))
    gamma, U = np.array(data.draw(weights)), np.array([a]) / max(a)
    x = ProportionalProgram(U, gamma).best(np.array([W]))
    assert x == pytest.approx(gamma * W / (U[0] * gamma.sum()), rel=1e-9)


def test_the_logarithms_are_flat_so_the_answer_is_sharpened() -> None:
    U, gamma = np.array([[1.0, 0.5, 0.0], [0.0, 1.0, 1.0]]), np.array([1.0, 2.0, 0.5])
    room = np.array([1.0, 2.0])
    x = ProportionalProgram(U, gamma).best(room)
    blurred = sharpened(x * [1 - 1e-6, 1 + 1e-6, 1 - 2e-6], U, room, gamma)
    assert blurred == pytest.approx(x, rel=1e-11)
    far = x * 0.5  # no row is full: nothing to hold on to
    assert sharpened(far, U, room, gamma) is far


@given(seed=st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_the_prices_of_rows_are_scipys_least_squares(seed: int) -> None:
    rng = np.random.default_rng(seed)
    G = rng.uniform(0, 1, (rng.integers(1, 20), rng.integers(1, 12)))
    G *= rng.random(G.shape) < 0.6
    G = np.vstack([G, G[:3]])  # rows that depend on each other
    c = rng.normal(1, 1, G.shape[1])
    mu = prices(G, c)
    assert (mu >= 0).all()
    assert np.linalg.norm(G.T @ mu - c) == pytest.approx(nnls(G.T, c)[1], abs=1e-9)
    assert prices(G[:0], c).shape == (0,)


@pytest.mark.parametrize("site", [*trees(8), *meshed(12)], ids=lambda site: site.name)
def test_every_device_may_use_its_range_whatever_the_others_do(site: Site) -> None:
    check_safe(found(ProportionalRanges(site)))


def test_rows_of_both_signs_do_occur() -> None:
    texts = [t for site in meshed(12) for t in found(ProportionalRanges(site)).binding]
    assert any(t is not None and ", together by " in t for t in texts)


def test_rows_that_are_alike_become_one() -> None:
    U = np.array([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0], [3.0, 6.0, 0.0], [0.0, 0.0, 0.5]])
    packing = Packing(U, np.array([np.inf, 7.0, np.inf]))
    W = np.array([4.0, 1.0, 9.0, 2.0])
    assert sorted(packing.U.tolist()) == [[0, 0, 1], [0, 1, 0], [0.5, 1, 0]]
    room = {tuple(row): room for row, room in zip(packing.U.tolist(), packing.room(W).tolist(), strict=True)}
    assert room == {(0, 0, 1): 4.0, (0, 1, 0): 7.0, (0.5, 1, 0): 1.5}  # the third row, not the first
    group = packing.U.tolist().index([0.5, 1, 0])
    assert packing.row(group, W) == 2
    assert packing.row(group, W * [1, 1, 2, 1]) == 0
    assert packing.row(len(packing.U) - 1, W) is None  # the cap
    own = Packing(np.zeros((2, 2)), np.array([1.0, 2.0]))
    assert own.room(np.zeros(2)).tolist() == [1.0, 2.0]


# A row without room


@pytest.mark.parametrize("k", [0, 1])
def test_who_takes_part_in_a_row_without_room_has_nothing(k: int) -> None:
    stopped = 0
    for site in trees(10):
        method = ProportionalRanges(site)
        answer = found(method)
        U = answer.way(k)[0]
        part = U > 0
        some = np.flatnonzero(part.any(axis=1) & ~part.all(axis=1))
        if not len(some):
            continue
        row = int(some[0])
        W = answer.room.W.copy()
        W[row] = 0.0
        without = found(method, W=W)
        mine, out = without.way(k)[1], part[row]
        assert (mine[out] == 0).all()
        keep = np.flatnonzero(~out & part.any(axis=0))
        if len(keep):
            check_prices(U[:, keep], W, mine[keep], answer.gamma[keep])
        for i in np.flatnonzero(out):
            assert without.binding[i] is not None
        # the limit of a room that vanishes
        W[row] = 1e-7 * answer.room.W[row]
        nearly = found(method, W=W).way(k)[1]
        assert nearly == pytest.approx(mine, abs=1e-5 * mine.max())
        assert (nearly > 0).all()
        stopped += 1
    assert stopped > 3


def test_a_network_without_any_room_leaves_nothing() -> None:
    method = ProportionalRanges(feeders()[2])
    answer = found(method, W=np.zeros(len(method.rows.names)))
    assert not answer.low.any()
    assert not answer.high.any()
    assert all(answer.binding)


# Devices that no row limits


def test_a_device_at_the_slack_bus_has_its_rating() -> None:
    site = next(site for site in meshed(12) if any(d.bus == "0" for d in site.devices.values()))
    name = next(n for n, d in site.devices.items() if d.bus == "0")
    answer = found(ProportionalRanges(site))
    i = list(site.devices).index(name)
    assert (answer.low[i], answer.high[i]) == pytest.approx((-1.0, 1.0))
    if ", together" not in str(answer.binding):
        assert answer.binding[i] is None


# What it refuses, and size


def test_a_network_in_need_is_infeasible_and_says_where() -> None:
    site = feeders()[1]
    with pytest.raises(Infeasible, match=r"loading of line:0: broken by .*relieve"):
        ProportionalRanges(site).step(seen(site, 20))


def test_a_thousand_buses() -> None:
    site = random_tree(3, 1000, 100)
    method = ProportionalRanges(site)
    answer = found(method)
    W = answer.room.W
    for k in (0, 1):
        U, x = answer.way(k)
        assert (U @ x <= W + 1e-9).all()
        check_prices(U, W, x, answer.gamma)
    assert method._ways[0].U.shape[0] < 500 < len(W)  # rows that are alike became one


@pytest.mark.parametrize("site", feeders(), ids=lambda site: site.name)
def test_it_beats_the_equal_ranges_in_their_product(site: Site) -> None:
    fair, equal = found(ProportionalRanges(site)), found(EqualRanges(site))
    for k in (0, 1):
        assert fair.gamma @ np.log(fair.way(k)[1]) > fair.gamma @ np.log(equal.way(k)[1])
