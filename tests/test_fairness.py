"""Fairness: Jain's index, the price against the utilitarian programs, and the ledger of a day."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from controllers import Site
from controllers.envelopes.equal_boxes import EqualBoxes
from controllers.envelopes.equal_polygons import EqualPolygons
from controllers.envelopes.equal_ranges import EqualRanges
from controllers.envelopes.greatest import GIVEN_UP, GreatestRanges
from controllers.envelopes.max_min_ranges import MaxMinRanges
from controllers.envelopes.method import EnvelopeMethod
from controllers.envelopes.proportional_ranges import ProportionalRanges
from controllers.envelopes.ranges import capacities
from controllers.envelopes.row_shares import RowShares
from controllers.envelopes.soft_ranges import SoftlyEqualRanges
from controllers.fairness import Fairness, Ledger, greatest, jain, price
from tests.envelope_cases import random_tree, seen
from tests.range_cases import Array, check_safe, feeders, found, meshed, trees

METHODS: dict[str, Callable[[Site], EnvelopeMethod]] = {
    "P-E": EqualRanges,
    "PQ-E": EqualBoxes,
    "PQ-KL": RowShares,
    "EPQ": EqualPolygons,
    "P-WE": ProportionalRanges,
    "P-SE": SoftlyEqualRanges,
    "max-min": MaxMinRanges,
    "max-min, caps": lambda site: MaxMinRanges(site, caps=True),
    "alpha-0": GreatestRanges,
    "alpha-0, caps": lambda site: GreatestRanges(site, caps=True),
}
positive = st.floats(1e-3, 1e3)


def fairness_of(method: EnvelopeMethod) -> Fairness:
    room = method.room(seen(method.site))
    return method.envelopes(room).fairness


def both_ways(A: Array, W: Array) -> tuple[Array, Array]:
    """Rows of the worst corner of a box over exports and imports, scaled, and their room."""
    U = np.hstack([np.maximum(A, 0), np.maximum(-A, 0)])
    size = U.max(axis=1)
    return U[size > 1e-12] / size[size > 1e-12, None], W[size > 1e-12] / size[size > 1e-12]


# Jain's index


@given(x=st.lists(positive, min_size=1, max_size=12), factor=positive)
def test_jains_index(x: list[float], factor: float) -> None:
    values = np.array(x)
    assert jain(values) == pytest.approx(values.sum() ** 2 / (len(x) * (values**2).sum()))
    assert 1 / len(x) - 1e-12 <= jain(values) <= 1 + 1e-12
    assert jain(factor * values) == pytest.approx(jain(values))
    assert jain(np.full(len(x), factor)) == pytest.approx(1)
    assert jain(np.array([*[0.0] * len(x), factor])) == pytest.approx(1 / (len(x) + 1))


def test_jains_index_of_very_small_values() -> None:
    assert jain(np.array([1e-200, 1e-200])) == 1.0
    assert jain(np.zeros(3)) == jain(np.zeros(0)) == 1.0


# The greatest sum and the price


@given(seed=st.integers(0, 10**6))
@settings(max_examples=80, deadline=None)
def test_the_greatest_sum_is_that_of_all_rows_at_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, n = rng.integers(1, 80), rng.integers(1, 9)
    U = rng.uniform(0, 1, (rows, n)) * (rng.random((rows, n)) < 0.6)
    W = rng.uniform(0, 5, rows) * (rng.random(rows) < 0.95)
    x = greatest(U, W)
    limited = U.max(axis=0) > 0
    assert (np.isfinite(x) == limited).all()
    x, U = x[limited], U[:, limited]
    if len(x):
        theirs = linprog(-np.ones(len(x)), A_ub=U, b_ub=W)
        assert x.sum() == pytest.approx(-theirs.fun, rel=1e-6, abs=1e-7)
        assert (U @ x <= W + 1e-8).all()
        assert (x >= 0).all()


@pytest.mark.parametrize("name", METHODS)
def test_the_price_lies_between_none_and_all(name: str) -> None:
    found_some = False
    for site in (*feeders(), *trees(6)):
        fair = fairness_of(METHODS[name](site))
        assert fair.price is not None
        assert 0 <= fair.price < 1
        found_some |= fair.price > 0.01
        if name.startswith("alpha-0"):
            assert fair.price <= 2 * GIVEN_UP[0]
    assert found_some is not name.startswith("alpha-0")


@pytest.mark.parametrize("name", [name for name in METHODS if name != "PQ-KL"])
def test_the_price_with_rows_of_both_signs(name: str) -> None:
    for site in meshed(12):
        fair = fairness_of(METHODS[name](site))
        assert fair.price is not None
        assert 0 <= fair.price < 1
        if name.startswith("alpha-0"):
            assert fair.price <= 2 * GIVEN_UP[0]


def test_the_price_is_what_the_printed_programs_without_evenness_give_more() -> None:
    """On rows of one sign, exports and imports are two programs: (A7) and (A8) without (A7c) and (A8c)."""
    for site in feeders():
        answer = found(EqualRanges(site))
        total = 0.0
        for sign in (1.0, -1.0):
            size = np.abs(answer.A).max(axis=1)
            rows = size > 1e-12
            P = cp.Variable(len(answer.gamma))
            fits = (answer.A[rows] / size[rows, None]) @ P <= answer.room.W[rows] / size[rows]
            total += cp.Problem(cp.Maximize(sign * cp.sum(P)), [fits, sign * P >= 0]).solve(
                solver=cp.CLARABEL
            )
        fair = fairness_of(EqualRanges(site))
        assert fair.price == pytest.approx(1 - (fair.export_mw + fair.import_mw) / total, abs=1e-6)


def test_what_no_row_limits_has_no_price() -> None:
    U, W = np.array([[1.0, 1.0, 0.0]]), np.array([4.0])
    assert price(np.array([1.0, 2.0, 99.0]), U, W) == pytest.approx(0.25)
    assert price(np.array([9.0, 2.0, 0.0]), U, W) == 0.0  # more than the model has room for
    assert price(np.zeros(3), U, np.zeros(1)) == 0.0
    assert price(np.zeros(3), np.zeros((1, 3)), W) == 0.0


def test_it_is_left_out_when_nobody_asks_and_the_room_of_the_moment_counts() -> None:
    site = feeders()[2]
    assert fairness_of(EqualRanges(site, price=False)).price is None
    method = EqualRanges(site)
    prices = [method.envelopes(method.room(seen(site, scale))).fairness.price for scale in (1.0, 0.2, 1.0)]
    assert prices[0] == prices[2] != prices[1]
    assert prices[1] == EqualRanges(site).envelopes(method.room(seen(site, 0.2))).fairness.price


def test_devices_that_cannot_be_changed_have_no_part_in_the_price() -> None:
    site = feeders()[2]
    method = GreatestRanges(site)
    fixed = {"der2": np.array([[-0.1, 0.0], [0.3, 0.0]])}
    room = method.room(seen(site), fixed=fixed)
    fair = method.envelopes(room).fairness
    assert fair.price is not None
    assert fair.price <= 2 * GIVEN_UP[0]
    rest = replace(site, devices={n: d for n, d in site.devices.items() if n != "der2"})
    alone = EqualRanges(rest)
    others = alone.envelopes(replace(room, gamma=np.delete(room.gamma, 1), fixed={})).fairness
    equal = EqualRanges(site)
    assert equal.envelopes(room).fairness.price == pytest.approx(others.price)


# The utilitarian method


@pytest.mark.parametrize("site", [*feeders(), *trees(8), *meshed(8)], ids=lambda site: site.name)
def test_the_greatest_ranges(site: Site) -> None:
    answer = found(GreatestRanges(site))
    check_safe(answer)
    U, room = both_ways(answer.A, answer.room.W)
    x = np.concatenate([answer.high, -answer.low])
    limited = U.max(axis=0) > 0
    U, x = U[:, limited], x[limited]
    theirs = linprog(-np.ones(len(x)), A_ub=U, b_ub=room)
    assert x.sum() == pytest.approx(-theirs.fun, rel=3 * GIVEN_UP[0])
    # and of the same sum none is more even
    gamma = np.tile(answer.gamma, 2)[limited]
    y = cp.Variable(len(x), nonneg=True)
    same = [U @ y <= room, cp.sum(y) >= (1 - GIVEN_UP[0]) * -theirs.fun]
    cp.Problem(cp.Minimize(cp.sum(cp.multiply(1 / gamma, cp.square(y)))), same).solve(solver=cp.CLARABEL)
    assert x == pytest.approx(y.value, abs=2e-3 * x.max())


def test_devices_on_equal_terms_have_the_same() -> None:
    """Three at one bus: the sum does not care who has it, the tie-break does."""
    site = feeders()[2]
    three = {
        n: replace(site.devices["der2"], name=n, weight=w) for n, w in zip("abc", (1, 1, 2), strict=True)
    }  # type: ignore[type-var]
    answer = found(GreatestRanges(replace(site, devices=three)))
    for x in (answer.high, -answer.low):
        assert x / answer.gamma == pytest.approx(np.full(3, x[0]), rel=1e-5)


def test_capped_by_ratings() -> None:
    site = feeders()[0]
    own = capacities(site.devices.values())
    answer = found(GreatestRanges(site, caps=True))
    assert answer.high == pytest.approx(own[0], rel=1e-5)  # S1 has room for all of them
    assert (-answer.low <= own[1] + 1e-12).all()


def test_a_thousand_buses() -> None:
    method = GreatestRanges(random_tree(3, 1000, 100))
    answer = found(method)
    U, room = both_ways(answer.A, answer.room.W)
    x = np.concatenate([answer.high, -answer.low])
    assert (U @ x <= room + 1e-9).all()
    theirs = linprog(-np.ones(len(x)), A_ub=U, b_ub=room)
    assert x.sum() == pytest.approx(-theirs.fun, rel=3 * GIVEN_UP[0])


# The ledger

NAMES = ("a", "b", "c")


def day(*offered: tuple[float, float, float], curtailed: Array | None = None) -> Ledger:
    ledger = Ledger(NAMES)
    for export in offered:
        ledger.add(NAMES, np.array(export), np.zeros(3), curtailed, 0.25)
    return ledger


def test_what_a_ledger_counts() -> None:
    ledger = Ledger(NAMES)
    ledger.add(NAMES, np.array([1.0, 2.0, 3.0]), np.array([0.5, 0.0, 1.0]), None, 0.5)
    ledger.add(("c", "a"), np.array([1.0, 2.0]), np.zeros(2), np.array([0.4, 0.0]), 0.25)
    assert ledger.hours.tolist() == [0.75, 0.5, 0.75]
    assert ledger.export_mwh == pytest.approx([1.0, 1.0, 1.75])
    assert ledger.import_mwh == pytest.approx([0.25, 0.0, 0.5])
    assert ledger.curtailed_mwh == pytest.approx({"c": 0.1, "a": 0.0})  # of b nothing is known
    gamma = np.array([1.0, 2.0, 4.0])
    had = np.array([1.25 / 0.75, 1.0 / 0.5, 2.15 / 0.75])
    assert ledger.received(gamma) == pytest.approx(had / gamma)
    assert ledger.jain(gamma) == pytest.approx(jain(had / gamma))


def test_who_is_behind_gets_more_weight() -> None:
    ledger = day((1.0, 2.0, 3.0))
    ones = np.ones(3)
    assert ledger.weights(ones) == pytest.approx([2.0, 1.0, 1.0])  # half of the average of 2
    assert ledger.weights(ones, repay=0.5) == pytest.approx([2**0.5, 1.0, 1.0])
    assert ledger.weights(ones, most=1.5) == pytest.approx([1.5, 1.0, 1.0])
    assert ledger.weights(ones, repay=0.0).tolist() == ledger.weights(ones, most=1.0).tolist() == [1, 1, 1]
    # who is entitled to a third of it is not behind
    assert ledger.weights(np.array([1.0, 2.0, 3.0])) == pytest.approx([1, 2, 3])


def test_what_was_curtailed_counts_against_what_was_offered() -> None:
    ledger = day((2.0, 2.0, 2.0), curtailed=np.array([0.0, 1.0, 0.0]))
    weights = ledger.weights(np.ones(3))
    assert weights == pytest.approx([1.0, (5 / 3) / 1.0, 1.0])


def test_an_empty_ledger_changes_nothing() -> None:
    gamma = np.array([1.0, 2.0, 3.0])
    assert Ledger(NAMES).weights(gamma).tolist() == gamma.tolist()
    assert Ledger(NAMES).jain(gamma) == 1.0
    assert day((0.0, 0.0, 0.0)).weights(gamma).tolist() == gamma.tolist()
    ledger = Ledger(NAMES)
    ledger.add(("a", "b"), np.array([1.0, 3.0]), np.zeros(2), None, 1.0)
    assert ledger.weights(gamma).tolist()[2] == 3.0  # c was not there: nothing is owed
    assert day((0.0, 1.0, 1.0)).weights(np.ones(3)).tolist() == [2.0, 1.0, 1.0]


@given(
    offered=st.lists(st.floats(0, 5), min_size=3, max_size=3),
    gamma=st.lists(st.floats(0.1, 10), min_size=3, max_size=3),
    repay=st.floats(0, 4),
    most=st.floats(1, 5),
    unit=st.floats(1e-3, 1e3),
)
def test_weights_are_bounded_and_have_no_unit(
    offered: list[float], gamma: list[float], repay: float, most: float, unit: float
) -> None:
    weights = np.array(gamma)
    export = np.array(offered)
    ledger = day((export[0], export[1], export[2]))
    factor = ledger.weights(weights, repay, most) / weights
    assert (factor >= 1 - 1e-12).all()
    assert (factor <= most * (1 + 1e-12)).all()
    level = export / weights
    assert (factor[level >= level.mean() * (1 + 1e-9)] == 1).all()
    assert (np.diff(factor[np.argsort(level)]) <= 1e-12).all()  # the further behind, the more
    scaled = day((unit * export[0], unit * export[1], unit * export[2]))
    if export.min() > 1e-6:
        assert scaled.weights(weights, repay, most) / weights == pytest.approx(factor, rel=1e-6)
        assert ledger.weights(unit * weights, repay, most) / unit / weights == pytest.approx(factor, rel=1e-6)


def test_repaying_makes_a_day_more_even() -> None:
    """Two who compete for one row, of which one was favoured in the morning."""
    with_ledger, without = Ledger(("a", "b")), Ledger(("a", "b"))
    gamma = np.ones(2)
    for hour in range(12):
        for ledger, repay in ((with_ledger, 1.0), (without, 0.0)):
            share = ledger.weights(gamma, repay)
            export = np.array([3.0, 1.0]) if hour < 4 else 4 * share / share.sum()
            ledger.add(("a", "b"), export, np.zeros(2), None, 1.0)
    assert with_ledger.jain(gamma) > without.jain(gamma) + 0.01
    assert with_ledger.jain(gamma) > 0.99


def test_what_a_ledger_refuses() -> None:
    ledger, one = Ledger(NAMES), np.ones(1)
    with pytest.raises(ValueError, match="must differ"):
        Ledger(("a", "a"))
    with pytest.raises(KeyError, match="no device 'd'; it has a, b, c"):
        ledger.add(("d",), one, one, None, 1.0)
    for bad in (np.array([-1.0]), np.array([np.nan])):
        with pytest.raises(ValueError, match=r"import_mw .* must not be negative"):
            ledger.add(("a",), one, bad, None, 1.0)
        with pytest.raises(ValueError, match="curtailed_mw"):
            ledger.add(("a",), one, one, bad, 1.0)
    with pytest.raises(ValueError, match="shape"):
        ledger.add(("a", "b"), one, one, None, 1.0)
    for hours in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="hours"):
            ledger.add(("a",), one, one, None, hours)
    assert not ledger.hours.any()
    with pytest.raises(ValueError, match="weights for 3 devices"):
        ledger.weights(np.ones(2))
    for repay, most in ((-1.0, 2.0), (1.0, 0.5)):
        with pytest.raises(ValueError, match="must not be negative"):
            ledger.weights(np.ones(3), repay, most)
