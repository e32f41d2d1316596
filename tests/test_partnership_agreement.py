"""The leader's algorithm against the central problem and the AC power flow."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pandapower as pp
import pytest

from controllers.partnership.commitment import commitment
from controllers.partnership.messages import Answer, Question, Restoration
from controllers.partnership.options import Options
from controllers.partnership.outcome import Reason
from tests import partnership_oracle as oracle
from tests.partnership_agreements import (
    held,
    of_seed,
    one_dimension,
    random_problem,
)
from tests.partnership_feeders import Case, seed_case, small_case
from tests.partnership_witness import CUTS, EXACT, checked, held_to_ac, held_to_trace, witness_of
from tests.test_partnership_central import ANCHORS


@cache
def seed() -> Case:
    return seed_case()


@cache
def text() -> Case:
    return seed_case(oracle.SVC_TEXT_MVAR)


@pytest.mark.parametrize("options", [EXACT, CUTS])
@pytest.mark.parametrize(("intervals", "microgrids", "price", "without", "with_bits"), ANCHORS)
def test_B6_anchors_on_33_buses(
    intervals: int, microgrids: int, price: float, without: float, with_bits: float, options: Options
) -> None:
    found = checked(of_seed(small_case(intervals, microgrids), price), options)
    assert found.upper == pytest.approx(with_bits, rel=1e-6)
    assert found.upper > without


@pytest.mark.parametrize("number", [0, 6, 11, 14, 30, 49, 57])
@pytest.mark.parametrize("options", [EXACT, CUTS])
def test_B6_lift_equals_central_on_random_feeders(number: int, options: Options) -> None:
    """Among them: no gap, a gap that lifting closes, patterns that the network cannot have."""
    problem = random_problem(number)
    held_to_ac(problem, checked(problem, options))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(100, 160))
@pytest.mark.parametrize("options", [EXACT, CUTS])
def test_B6_lift_equals_central_on_many_random_feeders(number: int, options: Options) -> None:
    problem = random_problem(number)
    held_to_ac(problem, checked(problem, options))


def test_B6_bits_are_revealed_by_those_alone_who_have_a_gap() -> None:
    found = checked(random_problem(17))
    assert found.lifted == ("mg1", "mg2")
    assert len(found.settled) == 4
    for name, bits in found.patterns.items():
        assert (bits is not None) == (name in found.lifted)
        assert bits is None or set(bits.tolist()) <= {0.0, 1.0}


def test_B6_bits_are_not_asked_of_those_who_have_a_gap_at_a_pattern_alone() -> None:
    problem, gaps = random_problem(111), list[dict[str, float]]()

    def hear(name: str, question: Question, answer: Answer) -> None:
        if isinstance(answer, Restoration):
            if not gaps or name in gaps[-1]:
                gaps.append({})
            gaps[-1][name] = answer.gap

    found = held(problem.agreeing(CUTS), problem.respondents, hear=hear)
    assert found.reason is Reason.GAP
    with_gap = {name for name, gap in gaps[0].items() if gap > 1e-3}
    assert set(found.lifted) == with_gap < set(problem.names)


@pytest.mark.parametrize("price", [80.0, 103.0])
@pytest.mark.parametrize("options", [Options(), CUTS])
def test_B12_bounds_are_monotone_and_the_reason_and_the_gap_are_told(price: float, options: Options) -> None:
    """Of the seed's case; every agreement in these tests is held to its trace."""
    problem = of_seed(small_case(3, 3), price)
    for each in (options, replace(options, most_iterations=2), replace(options, epsilon=0.5)):
        found = problem.agreed(each)
        held_to_trace(found, each)
        assert found.gap == pytest.approx(max(found.upper - found.lower, 0) / abs(found.upper), abs=1e-12)
        assert (found.reason is Reason.GAP) == (found.gap <= each.epsilon)
        assert found.reason in (Reason.GAP, Reason.ITERATIONS)


@pytest.mark.parametrize("number", [5, 6, 9, 16, 22])
def test_B5_cuts_at_points_end_at_the_relaxed_central_optimum(number: int) -> None:
    problem = random_problem(number)
    relaxed = problem.central.relaxed(problem.conditions)
    found = checked(problem, CUTS)
    first = [one.lower for one in found.rounds if one.stage == "relaxed"]
    assert first[-1] == pytest.approx(relaxed.value, rel=1e-6)
    assert found.lower > relaxed.value * (1 + 1e-5), "whole bits cost more"


@pytest.mark.parametrize("price", [60.0, 80.0, 103.0, 104.0])
@pytest.mark.parametrize("offers", [True, False])
def test_the_seeds_case_meets_a_gap_of_a_thousandth(price: float, offers: bool) -> None:
    found = checked(of_seed(seed(), price), Options(offers=offers))
    assert len(found.rounds) <= 60


@pytest.mark.slow
@pytest.mark.parametrize(
    ("price", "value"), [(103.0, 1612.943), (104.0, 1626.40556), (80.0, 1300.40510), (60.0, 1006.65213)]
)
def test_the_seeds_case_with_its_other_compensators_has_the_measured_optimum(
    price: float, value: float
) -> None:
    """Section 8.1 of the specification: lower and upper bounds measured by a prototype in cvxpy."""
    assert checked(of_seed(text(), price)).upper == pytest.approx(value, rel=1.5e-6)


@pytest.mark.slow
@pytest.mark.parametrize("price", [60.0, 80.0, 103.0, 104.0])
def test_the_seeds_case_is_solved_exactly(price: float) -> None:
    checked(of_seed(seed(), price))


def test_B9_the_agreed_point_is_that_of_the_AC_power_flow() -> None:
    case = seed_case()
    found = of_seed(case, 103.0).agreed()
    operation, net, own = found.operation, case.net, {one.bus for one in case.figures}
    assert operation.gap < 1e-5
    nominal = net.load[["p_mw", "q_mvar"]].to_numpy().copy()
    kept = ~net.load.bus.astype(str).isin(own).to_numpy()
    grids = [pp.create_sgen(net, int(one.bus), 0.0) for one in case.figures]
    svcs = [pp.create_sgen(net, int(bus), 0.0) for bus in case.svc_mvar]
    where = [int(bus) for bus in case.network.buses]
    for t in range(6):
        net.load[["p_mw", "q_mvar"]] = nominal * oracle.LOAD[t] * kept[:, None]
        net.sgen.loc[grids, "p_mw"] = [said.p[t] for said in found.settled.values()]
        net.sgen.loc[grids, "q_mvar"] = [said.q[t] for said in found.settled.values()]
        net.sgen.loc[svcs, "q_mvar"] = operation.svc_mvar[t]
        pp.runpp(net, tolerance_mva=1e-11, numba=False)
        assert operation.v_pu[t] == pytest.approx(net.res_bus.vm_pu.loc[where].to_numpy(), abs=1e-7)
        assert operation.import_mw[t] == pytest.approx(net.res_ext_grid.p_mw.sum(), abs=2e-6)


@pytest.mark.parametrize("mode", ["paper", "augmented"])
@pytest.mark.parametrize("price", [50.0, 85.0, 150.0])
def test_B8_the_printed_algorithm_ends_in_one_dimension(mode: str, price: float) -> None:
    """An engine of 0.1 to 0.5 MW with a start: off, on for the relaxation alone, and on."""
    problem = one_dimension(price)
    options = Options(mode=mode, epsilon=1e-5, most_iterations=60)  # type: ignore[arg-type]
    found = checked(problem, options)
    assert all(one.stage == "tents" for one in found.rounds)


@pytest.mark.parametrize("mode", ["paper", "augmented"])
def test_B8_its_bounds_hold_where_it_does_not_end(mode: str) -> None:
    problem = of_seed(small_case(1, 2), 150.0)
    best = problem.central.whole(problem.conditions)
    witness = witness_of(problem)
    options = Options(mode=mode, epsilon=1e-6, most_iterations=12)  # type: ignore[arg-type]
    found = held(problem.agreeing(options), problem.respondents, hear=witness)
    held_to_trace(found, options)
    assert found.lower <= best.value * (1 + 1e-7) <= found.upper * (1 + 2e-7)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"epsilon": -1e-3}, "epsilon is -0.001"),
        ({"patience": 0}, "patience is 0"),
        ({"most_iterations": 0}, "most_iterations is 0"),
        ({"core": 1.0}, "core is 1.0"),
        ({"weight": 0.0}, "weight is 0.0"),
        ({"mode": "exact"}, "there are lift, paper, augmented"),
    ],
)
def test_options_out_of_range_are_refused(given: dict[str, float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Options(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [0, 6, 11, 14])
@pytest.mark.parametrize("options", [EXACT, CUTS])
def test_ties_that_bind_are_kept_by_microgrids_themselves(number: int, options: Options) -> None:
    free = random_problem(number)
    exchanged = np.abs(free.agreed(EXACT).operation.p_mw).max(axis=0)
    made = [
        commitment(one.fleet, one.outlook, tie_mw=0.7 * most)
        for one, most in zip(free.made, exchanged, strict=True)
    ]
    found = checked(replace(free, made=made), options)
    assert (np.abs(found.operation.p_mw) <= 0.7 * exchanged + 1e-6).all()
    assert found.upper > free.agreed(EXACT).upper
