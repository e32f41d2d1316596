"""Prices that the operator's answer to exchanges has, and the bound that offers at them prove."""

from __future__ import annotations

import numpy as np
import pytest

from controllers.partnership.ledger import Account, Candidate, Ledger
from controllers.partnership.master import Master
from controllers.partnership.messages import AskOffer, AskTerms, Offer, Priced, Settlement, Terms
from tests.partnership_agreements import Problem, random_problem


def opened(problem: Problem) -> Ledger:
    """With everybody's terms."""
    ledger = Ledger(Master(problem.distribution), problem.conditions, problem.names)
    for name, respondent in problem.respondents.items():
        terms = respondent.answer(AskTerms(0))
        assert isinstance(terms, Terms)
        ledger.accounts[name] = Account(terms)
    return ledger


def offered(problem: Problem, prices: dict[str, Priced]) -> dict[str, Offer]:
    found = {}
    for name, at in prices.items():
        offer = problem.respondents[name].answer(AskOffer(1, at.p_price, at.q_price))
        assert isinstance(offer, Offer)
        found[name] = offer
    return found


def at_random(problem: Problem, rng: np.random.Generator) -> tuple[Ledger, Candidate]:
    ledger, T = opened(problem), problem.feeder.intervals
    prices = {name: Priced(rng.uniform(0, 200, T), rng.uniform(-20, 20, T)) for name in problem.names}
    found = ledger.consider(offered(problem, prices), prices)
    assert found is not None
    return ledger, found


@pytest.mark.parametrize("number", range(4))
def test_prices_are_what_one_more_mw_saves(number: int) -> None:
    problem, step = random_problem(number), 1e-3
    ledger, found = at_random(problem, np.random.default_rng(number))
    name = problem.names[-1]
    account = ledger.accounts[name]
    for what, price in (("p", found.prices[name].p_price), ("q", found.prices[name].q_price)):
        t = int(np.argmax(np.abs(price)))
        costs = []
        for sign in (-1.0, 1.0):
            moved = {n: Settlement(1, p.cost, p.p.copy(), p.q.copy(), 0.0) for n, p in found.points.items()}
            getattr(moved[name], what)[t] += sign * step
            account.terms.p[t] += (-step, step)
            account.terms.q[t] += (-step, step)
            again = ledger.consider(moved, {})
            assert again is not None
            costs.append(again.operation.cost)
        slope = (costs[1] - costs[0]) / (2 * step)
        assert -slope == pytest.approx(price[t], rel=2e-4, abs=2e-2), (what, t)


@pytest.mark.parametrize("number", range(8))
def test_the_bound_that_offers_prove_holds_far_from_an_equilibrium(number: int) -> None:
    """Wherever the candidate is, the optimum is not below."""
    problem = random_problem(number)
    best = problem.central.whole(problem.conditions).value
    ledger, found = at_random(problem, np.random.default_rng(100 + number))
    assert found.upper >= best * (1 - 1e-7)
    bounds = []
    for _ in range(3):
        offers = offered(problem, dict(found.prices))
        ledger.lower = -np.inf  # what these offers prove by themselves
        ledger.prove(found, offers)
        bounds.append(ledger.lower)
        again = ledger.consider(offers, found.prices)
        if again is None:
            break
        found = again
    assert bounds
    assert np.isfinite(bounds).all()
    assert max(bounds) <= best * (1 + 1e-7)
    ledger.lower = max(bounds)
    assert ledger.gap < 0.1
