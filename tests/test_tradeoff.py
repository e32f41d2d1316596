"""Cost against band: exclusive batteries, and the three ways to weigh."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from controllers import (
    Infeasible,
)
from controllers.interchange.tradeoff import Found, Scalarisation
from controllers.solve import Linear
from tests.interchange_cases import FIGURES, seen
from tests.microgrid_cases import Case, load, small, store, told

NAMES = tuple(FIGURES)


@pytest.mark.parametrize("name", NAMES)
def test_A6_relaxed_exclusivity_costs_what_the_whole_one_costs(name: str) -> None:
    case = Case(seen(8), name)
    found, lp = case.solve(), case.model.lp
    assert not found.whole
    fixed, own = case.model.bounds(case.reading), np.zeros(lp.width, dtype=bool)
    own[lp.at((f"{name}_esd", "u"))] = True
    costs = case.model.costs(case.reading) + 25 * case.model.band()
    program = Linear(costs, case.model.matrix, fixed.row_low, fixed.row_high, fixed.low, fixed.high)
    whole = float(costs @ program.minimize_whole(own)) + case.model.offset(case.reading)
    assert found.f1 + 25 * found.f2 == pytest.approx(whole, abs=1e-5)


def test_A6_where_burning_energy_pays_whole_numbers_forbid_it() -> None:
    """Paid for taking energy, through a tie that is full: the relaxed battery would burn some."""
    horizon, site = 4, small([store(), load()], tie_mw=0.35, price="c")
    observation = told(site, {"l": -0.25, "c": -200.0}, horizon, e_mwh={"b": 0.5}, p_mw={})
    case = Case(observation, "m", site=site, horizon=horizon)
    costs, bounds = case.model.costs(case.reading), case.model.bounds(case.reading)
    rows = Linear(costs, case.model.matrix, bounds.row_low, bounds.row_high, bounds.low, bounds.high)
    relaxed = rows.minimize().x
    at = [case.model.lp.at(("b", symbol)) for symbol in ("P_ch", "P_dch", "u")]
    assert (relaxed[at[0]] * relaxed[at[1]]).max() > 1e-3
    found = case.solve(Scalarisation(mu=0.0))
    assert found.whole
    assert (found.x[at[0]] * found.x[at[1]]).max() <= 1e-12
    values = []
    for pattern in product((0.0, 1.0), repeat=horizon):  # every way to say when it charges
        low, high = bounds.low.copy(), bounds.high.copy()
        low[at[2]] = high[at[2]] = pattern
        rows.clear()
        try:
            values.append(rows.minimize(low=low, high=high).value)
        except Infeasible:
            continue
    assert found.f1 - case.model.offset(case.reading) == pytest.approx(min(values), abs=1e-6)
    assert rows.minimize().value < min(values) - 0.1


def test_A7_cost_and_band_are_monotone_in_mu() -> None:
    """And as another program measured them, to its two decimals: itself where there is no choice, f1 + mu f2
    where an engine costs just as much more than the price as the band is worth, at 10 and 30 $/MWh."""
    case, rows, values = Case(seen(8), "mg1"), [], (0.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 200.0)
    for mu in values:
        found = case.solve(Scalarisation(mu=mu))
        rows.append((found.f1, -found.f2))
    cost, band = np.array(rows).T
    assert (np.diff(cost) >= -1e-7).all()
    assert (np.diff(band) >= -1e-7).all()
    costs = np.array([176.31, 176.31, 178.31, 191.87, 208.15, 228.74, 281.68, 284.72])
    bands = np.array([4.30, 4.30, 4.50, 5.54, 6.16, 6.58, 7.06, 7.08])
    mu = np.array(values)
    assert (np.abs((cost - mu * band) - (costs - mu * bands)) <= 0.006 * (1 + mu)).all()
    clear = ~np.isin(mu, (10.0, 30.0))
    assert cost[clear] == pytest.approx(costs[clear], abs=6e-3)
    assert band[clear] == pytest.approx(bands[clear], abs=6e-3)


def test_A7_cost_is_monotone_in_epsilon_and_the_same_trade() -> None:
    case, costs = Case(seen(8), "mg1"), []
    for epsilon in (-4.5, -5.5, -6.5, -7.0):
        found = case.solve(Scalarisation(rule="epsilon", epsilon_mwh=epsilon))
        assert found.f2 <= epsilon + 1e-8
        costs.append(found.f1)
    assert np.diff(costs).min() > 0
    priced = case.solve(Scalarisation(mu=60.0))
    same = case.solve(Scalarisation(rule="epsilon", epsilon_mwh=priced.f2))
    assert same.f1 == pytest.approx(priced.f1, abs=1e-6)
    with pytest.raises(Infeasible):
        case.solve(Scalarisation(rule="epsilon", epsilon_mwh=-12.0))


def test_the_weighted_rule_minimises_what_it_says() -> None:
    case = Case(seen(8), "mg2")
    costs, bounds = case.model.costs(case.reading), case.model.bounds(case.reading)
    payoff = case.program.payoff(costs, bounds)
    (f1_best, f2_worst), (f1_worst, f2_best) = payoff.cheapest, payoff.widest
    assert f1_best < f1_worst
    assert f2_best < f2_worst

    def score(found: Found, w: float) -> float:
        return w * (found.f1 - f1_best) / (f1_worst - f1_best) + (1 - w) * (found.f2 - f2_best) / (
            f2_worst - f2_best
        )

    others = [case.program.best(Scalarisation(mu=mu), costs, bounds) for mu in np.geomspace(1, 1000, 40)]
    for w in (0.2, 0.5, 0.8):
        chosen = case.program.best(Scalarisation(rule="weighted", weight=w), costs, bounds)
        assert score(chosen, w) <= min(score(other, w) for other in others) + 1e-9
    cheapest = case.program.best(Scalarisation(rule="weighted", weight=1.0), costs, bounds)
    assert cheapest.f1 == pytest.approx(f1_best, abs=1e-9)
