"""P-SE: against the printed program in cvxpy, its optimality conditions and its limits; units and orders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import cvxpy as cp
import numpy as np
import pytest
from scipy.optimize import nnls

from controllers import Site, solve
from controllers.envelopes.equal_ranges import EqualRanges
from controllers.envelopes.greatest import GreatestRanges
from controllers.envelopes.max_min_ranges import MaxMinRanges
from controllers.envelopes.method import EnvelopeMethod
from controllers.envelopes.proportional_ranges import ProportionalRanges
from controllers.envelopes.soft_ranges import SoftlyEqualProgram, SoftlyEqualRanges, between
from tests.envelope_cases import random_tree
from tests.range_cases import (
    Array,
    Found,
    check_safe,
    check_table,
    feeders,
    found,
    in_kw,
    meshed,
    reordered,
    trees,
)

Form = Literal["chain", "pairs"]
FORMS: tuple[Form, ...] = ("chain", "pairs")
LIMITED = [
    site
    for site in (*feeders(), *trees(15))
    if all(d.bus != site.network.slack for d in site.devices.values())
]
"""Without devices at the slack bus: those have their rating instead of what evenness leaves them."""


def printed(answer: Found, k: int, sigma: float, form: Form) -> Array:
    """(A11) or (A12) as printed, with sigma, in cvxpy; `pairs` written out pair by pair."""
    sign = 1.0 if k == 0 else -1.0
    size = np.abs(answer.A).max(axis=1)
    live = size > 1e-12
    gamma = answer.gamma / answer.gamma.max()
    P: Any = cp.Variable(len(gamma))
    n, z = len(gamma), P / gamma
    if form == "chain":
        apart = sum(cp.square(z[i] - z[i + 1]) for i in range(n - 1))
    else:
        apart = sum(cp.square(z[i] - z[j]) for i in range(n) for j in range(i + 1, n)) / n
    rows = (answer.A[live] / size[live, None]) @ P <= answer.room.W[live] / size[live]
    solve.solve(cp.Problem(cp.Maximize(sign * cp.sum(P) - sigma * apart), [rows, sign * P >= 0]))
    return np.asarray(sign * P.value)


def check_conditions(U: Array, W: Array, x: Array, H: Array) -> None:
    """1 - 2 H x = U'mu - nu with mu on full rows and nu on ranges of zero, neither negative."""
    full = U[W - U @ x <= 1e-6 * W + 1e-9]
    none = np.eye(len(x))[x <= 1e-7]
    # scaled, so that prices of voltage rows and of loading rows are alike
    full = full / full.max(axis=1, keepdims=True)
    _, residual = nnls(np.vstack([full, -none]).T, 1 - 2 * H @ x)
    assert residual <= 1e-5


def test_the_totals_of_the_33_bus_feeder() -> None:
    check_table(SoftlyEqualRanges)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("site", LIMITED[:8], ids=lambda site: site.name)
def test_it_is_the_printed_program(site: Site, form: Form) -> None:
    for sigma in (0.3, 4.0):
        answer = found(SoftlyEqualRanges(site, sigma_per_mw=sigma, form=form))
        for k in (0, 1):
            mine = answer.way(k)[1]
            assert mine == pytest.approx(printed(answer, k, sigma, form), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("site", LIMITED, ids=lambda site: site.name)
def test_nothing_else_is_worth_more(site: Site, form: Form) -> None:
    answer = found(SoftlyEqualRanges(site, form=form))
    gamma = answer.gamma / answer.gamma.max()
    H = between(len(gamma), form) / np.outer(gamma, gamma)
    for k in (0, 1):
        check_conditions(*[answer.way(k)[0], answer.room.W, answer.way(k)[1]], H)


def test_the_two_forms_by_their_sums() -> None:
    z = np.array([0.3, -1.0, 2.0, 0.7])
    chain = sum((z[i] - z[i + 1]) ** 2 for i in range(3))
    pairs = sum((z[i] - z[j]) ** 2 for i in range(4) for j in range(i + 1, 4)) / 4
    assert z @ between(4, "chain") @ z == pytest.approx(chain)
    assert z @ between(4, "pairs") @ z == pytest.approx(pairs)
    assert pairs == pytest.approx(4 * z.var())
    assert between(1, "chain").tolist() == between(1, "pairs").tolist() == [[0.0]]


def test_two_devices_by_hand() -> None:
    """x + 2 y <= 6 and sigma (x - y)^2: with y = x - d, x = (6 + 2 d) / 3 and the sum 4 + d / 3."""
    sigma = 0.5
    cost = sigma * between(2, "chain")
    x = SoftlyEqualProgram(np.array([[0.5, 1.0]]), np.ones(2), cost, about_mw=1.0).best(np.array([3.0]))
    d = 1 / (6 * sigma)
    assert x == pytest.approx([(6 + 2 * d) / 3, (6 - d) / 3], abs=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_it_lies_between_the_greatest_sum_and_equal_ranges(form: Form) -> None:
    for site in feeders():
        soft, hard, middle = (
            found(SoftlyEqualRanges(site, sigma_per_mw=s, form=form)) for s in (1e-5, 1e5, 1.0)
        )
        greatest, equal = found(GreatestRanges(site)), found(EqualRanges(site))
        for k in (0, 1):
            sums = [a.way(k)[1].sum() for a in (equal, hard, middle, soft, greatest)]
            assert sums == pytest.approx(sorted(sums), abs=1e-4)
            assert hard.way(k)[1] == pytest.approx(equal.way(k)[1], abs=1e-3)
            assert soft.way(k)[1].sum() == pytest.approx(greatest.way(k)[1].sum(), abs=1e-3)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("site", [*trees(8), *meshed(12)], ids=lambda site: site.name)
def test_every_device_may_use_its_range_whatever_the_others_do(site: Site, form: Form) -> None:
    check_safe(found(SoftlyEqualRanges(site, form=form)))


def test_a_row_without_room_leaves_its_devices_nothing_and_the_others_even_with_them() -> None:
    seen = 0
    for site in trees(10):
        method = SoftlyEqualRanges(site, form="pairs")
        answer = found(method)
        part = answer.way(0)[0] > 0
        some = np.flatnonzero(part.any(axis=1) & ~part.all(axis=1))
        if not (len(some) and part.any(axis=0).all()):
            continue
        W = answer.room.W.copy()
        W[some[0]] = 0.0
        without, out = found(method, W=W), part[some[0]]
        assert (without.high[out] == 0).all()
        assert (without.high[~out] > 0).any()
        theirs = printed(replace(answer, room=without.room), 0, 1.0, "pairs")
        assert without.high == pytest.approx(theirs, rel=1e-4, abs=1e-4)
        seen += 1
    assert seen > 2


# Units and orders

METHODS: dict[str, Callable[[Site], EnvelopeMethod]] = {
    "P-E": EqualRanges,
    "P-WE": ProportionalRanges,
    "P-SE pairs": lambda site: SoftlyEqualRanges(site, form="pairs"),
    "P-SE chain": SoftlyEqualRanges,
    "max-min": MaxMinRanges,
    "alpha-0": GreatestRanges,
}


@pytest.mark.parametrize("name", METHODS)
def test_T8_kilowatts_and_megawatts_give_the_same_envelopes(name: str) -> None:
    """P-SE where sigma carries its unit, 1/MW = 0.001/kW; all others as they are."""
    for site in (*feeders(), *trees(6)):
        mw = found(METHODS[name](site))
        other = METHODS[name](in_kw(site))
        if isinstance(other, SoftlyEqualRanges):
            other = replace(other, sigma_per_mw=other.sigma_per_mw / 1000)
        kw = found(other)
        assert kw.high / 1000 == pytest.approx(mw.high, rel=1e-6, abs=1e-6)
        assert kw.low / 1000 == pytest.approx(mw.low, rel=1e-6, abs=1e-6)


def test_T8_without_its_unit_sigma_depends_on_it() -> None:
    site = feeders()[2]
    mw, kw = found(SoftlyEqualRanges(site)), found(SoftlyEqualRanges(in_kw(site)))
    assert kw.high.sum() / 1000 == pytest.approx(5.131, abs=2e-3)  # sigma of 1/kW: all but equal
    assert mw.high.sum() == pytest.approx(6.760, abs=2e-3)


@pytest.mark.parametrize("name", METHODS)
def test_T9_the_order_of_the_devices_changes_the_chain_alone(name: str) -> None:
    rng = np.random.default_rng(0)
    changed = 0.0
    for site in (*feeders(), *trees(10)):
        order = rng.permutation(len(site.devices))
        one, two = found(METHODS[name](site)), found(METHODS[name](reordered(site, order.tolist())))
        apart = max(np.abs(one.high[order] - two.high).max(), np.abs(one.low[order] - two.low).max())
        changed = max(changed, apart / one.high.max())
    if name == "P-SE chain":
        assert changed > 0.01
    else:
        assert changed < 1e-6


@pytest.mark.parametrize("name", METHODS)
def test_only_ratios_of_weights_matter(name: str) -> None:
    site = feeders()[2]
    method = METHODS[name](site)
    W = found(method).room.W
    one, two = (method.share(W, factor * method._gamma).ranges_at_zero[1] for factor in (1.0, 250.0))
    assert two == pytest.approx(one, rel=1e-8, abs=1e-9)


def test_what_it_refuses() -> None:
    site = feeders()[0]
    for sigma in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=r"sigma_per_mw .* must be above 0"):
            SoftlyEqualRanges(site, sigma_per_mw=sigma)
    with pytest.raises(ValueError, match="neither 'chain' nor 'pairs'"):
        SoftlyEqualRanges(site, form="ring")  # type: ignore[arg-type]


def test_what_evenness_alone_holds_down_says_so() -> None:
    texts = [t for site in trees(12) for t in found(SoftlyEqualRanges(site, form="pairs")).binding]
    assert any("export by evenness with the others" in str(t) for t in texts)


def test_a_thousand_buses() -> None:
    answer = found(SoftlyEqualRanges(random_tree(3, 1000, 100), form="pairs"))
    gamma = answer.gamma / answer.gamma.max()
    H = between(len(gamma), "pairs") / np.outer(gamma, gamma)
    for k in (0, 1):
        U, x = answer.way(k)
        assert (U @ x <= answer.room.W + 1e-9).all()
        check_conditions(U, answer.room.W, x, H)
