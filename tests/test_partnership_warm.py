"""What one agreement leaves for the next."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from controllers.partnership.commitment import commitment
from controllers.partnership.coupling import Cut, Point, axes
from controllers.partnership.options import Options
from controllers.partnership.program import Program
from controllers.partnership.subproblem import limits, priced, relaxed
from controllers.partnership.warm import MOST, STEEP, Slopes, Warm, kept
from controllers.region import Region
from tests.partnership_agreements import (
    Hours,
    held,
)
from tests.partnership_cases import random_microgrid
from tests.partnership_feeders import small_case
from tests.partnership_witness import CUTS, EXACT, witness_of


@pytest.mark.parametrize("options", [EXACT, CUTS])
def test_an_agreement_begins_with_what_the_one_before_has_learnt(options: Options) -> None:
    hours, last, cold_turns, warm_turns = Hours(small_case(4, 3), 150.0), None, 0, 0
    for _ in range(4):
        problem = hours.problem()
        cold = problem.agreed(options)
        best = problem.central.whole(problem.conditions)
        witness = witness_of(problem)
        found = held(problem.agreeing(options, warm=last), problem.respondents, hear=witness)
        assert found.upper == pytest.approx(best.value, rel=1.2e-6)
        if last is not None:
            cold_turns, warm_turns = cold_turns + cold.turns, warm_turns + found.turns
        last = found.warm
        hours.go_on(problem, found)
    assert warm_turns < cold_turns


def test_a_slope_that_is_asked_about_again_is_as_tight_as_its_old_multipliers_or_tighter() -> None:
    """Multipliers of one hour still prove a cut with another state and other loads; the least at the same
    slope is never below what they prove."""
    rng, compared, tighter = np.random.default_rng(3), 0, 0
    for _ in range(3):
        before = random_microgrid(rng, 3)
        program, outlook = Program(before), before.outlook
        changed = replace(
            outlook,
            e_mwh={name: 0.2 * e for name, e in outlook.e_mwh.items()},
            demand_mw={name: 0.05 * np.roll(v, -1) for name, v in outlook.demand_mw.items()},
        )
        later, terms = Program(commitment(before.fleet, changed)), limits(program)
        for _ in range(20):
            p, q = (rng.uniform(box[:, 0], box[:, 1]) for box in terms)
            mu = relaxed(program, Point(p, q, -500.0), 150.0).proof.multipliers
            assert mu[program.cost] <= -STEEP
            scaled = mu / -mu[program.cost]
            p_price, q_price = scaled[program.p].copy(), scaled[program.q].copy()
            # The rows of the point and of the cost are part of the objective now.
            scaled[program.p] = scaled[program.q] = scaled[program.cost] = 0.0
            free = later.question(p_price=p_price, q_price=q_price)
            proven = later.prover.proof(free, np.zeros(len(free.c)), scaled).bound
            proven += later.constant(p_price, q_price)
            cut = priced(later, p_price, q_price)
            least = -float(cut.region.b[0]) * cut.scale
            assert least >= proven - 1e-6
            compared, tighter = compared + 1, tighter + (least > proven + 1e-3)
    assert (compared, tighter > 0) == (60, True)


def test_slopes_move_on_with_the_hour() -> None:
    price = np.array([50.0, 60.0, 70.0])
    warm = Warm(
        price,
        {"mg1": Slopes(np.array([[51.0, 62.0, 73.0]]), np.array([[1.0, 2.0, 3.0]]))},
        {"mg1": (price + 1, price)},
    )
    later = warm.later(np.array([60.0, 70.0, 100.0]))
    assert later.slopes["mg1"].p.tolist() == [[62.0, 73.0, 103.0]]
    assert later.slopes["mg1"].q.tolist() == [[2.0, 3.0, 3.0]]
    assert not warm.later(np.array([60.0, 70.0])).slopes, "of another horizon nothing is kept"
    assert warm.later(price, 0).slopes["mg1"].p.tolist() == [[51.0, 62.0, 73.0]]


def test_the_slopes_that_are_kept_are_those_of_the_nearest_cuts() -> None:
    point = Point(np.array([0.1]), np.array([0.0]), 10.0)

    def cut(price: float, constant: float) -> Cut:
        """theta >= constant + price p"""
        row = np.array([[price, 0.0, -1.0]])
        return Cut(Region(axes(1), row, np.array([-constant])), 0.0, float(np.linalg.norm(row)))

    cuts = [cut(40.0 + k, 10.0 - (40.0 + k) * 0.1 - abs(k - 30)) for k in range(60)]
    slopes = kept([*cuts, *cuts], point, np.array([1000.0]))
    assert slopes.p.shape == (MOST, 1)
    assert slopes.p[0] == pytest.approx([70.0])
    assert slopes.p.ravel().max() == pytest.approx(70.0 + (MOST - 1) // 2, abs=1.1)
    assert kept([cut(71.3, 0.0)], point, np.array([1000.0])).p.tolist() == [[71.0]], (
        "no fuel cost to the last digit"
    )
