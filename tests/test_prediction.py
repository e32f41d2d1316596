"""Predicted interchange capability: the published figures, both modes, islands, and what it refuses."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from controllers import Decision, Forecast, Infeasible, Kind, Microgrid, Observation, Origin
from controllers.interchange import tradeoff
from controllers.interchange.prediction import InterchangePrediction
from controllers.interchange.reading import read
from controllers.point_estimate import NegativeWeight
from tests.interchange_cases import FIGURES, HOUR, reference_site, seen
from tests.microgrid_cases import Case, engine, load, small, store, told
from tests.microgrid_oracle import best, cases, committed

NAMES = tuple(FIGURES)
PUBLISHED = {"mg1": (0.0035, 0.3743), "mg2": (-0.1365, 0.2553), "mg3": (0.0904, 0.4742)}
"""PIC of hour 8, as another program measured it."""
COSTS = {"mg1": (198.520764, 45.62563), "mg2": (344.032027, 39.25295), "mg3": (83.792550, 52.21182)}
"""Mean and standard deviation of f1, likewise."""


def predictor(name: str | tuple[str, ...] = "mg1", **options: Any) -> InterchangePrediction:
    return InterchangePrediction(reference_site(), microgrid=name, **options)


def said(decision: Decision) -> bytes:
    """All of it."""
    assert decision.plan is not None
    regions = [decision.regions, *(interval.regions for interval in decision.later)]
    boxes = b"".join(region.b.tobytes() for one in regions for region in one.values())
    return boxes + decision.plan.mean.tobytes() + decision.plan.std.tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_the_published_capability_of_the_reference_case(name: str) -> None:
    decision = predictor(name).step(seen(8))
    low, high = decision.regions[name].limits("p_mw")
    assert (low, high) == pytest.approx(PUBLISHED[name], abs=6e-5)


@pytest.mark.parametrize("name", ["mg2", "mg3"])
def test_mean_and_spread_of_the_cost(name: str) -> None:
    cost = predictor(name).predict(seen(8)).cost
    assert cost[0] == pytest.approx(COSTS[name][0], abs=1e-4)
    assert cost[1] == pytest.approx(COSTS[name][1], abs=1e-4)


def test_mean_cost_where_cost_alone_is_not_unique() -> None:
    """The diesel engine of mg1 costs 25 $/MWh more than the price from hour 12 on: what the band is worth.

    So f1 is not unique, f1 + 25 f2 is. The published mean cost lies between those of both ends of the ties.
    """
    controller, observation = predictor("mg1"), seen(8)
    reading = read(observation, controller.site, controller.grids, 12)
    points = controller._uncertainty.points(reading, "2m+1")
    ends: list[list[float]] = []
    for _, case in points:
        model, program = controller._model, controller._programs[1]
        costs, bounds, offset = model.costs(reading), model.bounds(reading, case), model.offset(reading, case)
        f1 = [program.best(tradeoff.Scalarisation(mu=mu), costs, bounds).f1 for mu in (24.999, 25.001)]
        ends.append([value + offset for value in f1])
    f1_low, f1_high = np.array(ends).T
    assert (f1_high - f1_low).max() > 1.0
    w = points.weights
    least = w.clip(0) @ f1_low + w.clip(max=0) @ f1_high
    most = w.clip(0) @ f1_high + w.clip(max=0) @ f1_low
    assert least < COSTS["mg1"][0] < most


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scheme", ["2m", "2m+1"])
def test_every_case_is_the_oracles(name: str, scheme: Any) -> None:
    """The objective of each case, which is unique, and so its mean and spread."""
    controller = predictor(name, scheme=scheme)
    found = controller.predict(seen(8))
    written = cases(scheme)
    assert found.weights == pytest.approx([w for w, _ in written])
    reading = read(seen(8), controller.site, controller.grids, 12)
    offsets = [
        controller._model.offset(reading, case) for _, case in controller._uncertainty.points(reading, scheme)
    ]
    for one, offset, (_, factors) in zip(found.cases, offsets, written, strict=True):
        assert one.f1 + offset + 25 * one.f2 == pytest.approx(best(name, factors=factors).objective, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_committed_is_the_oracles_two_stage_program(name: str) -> None:
    found = predictor(name, mode="committed").predict(seen(8))
    oracle = committed(name, cases("2m"))
    band = float((found.up_mw - found.dn_mw).sum())
    assert found.cost[0] - 25 * band == pytest.approx(oracle.objective, abs=1e-5)
    assert (found.std_mw == 0).all()
    assert (found.dn_mw <= found.p_mw).all()
    assert (found.p_mw <= found.up_mw).all()


def test_committed_holds_in_every_case() -> None:
    """With exchange and band fixed as published each case has a plan; with a wider band not every one has."""
    controller = predictor("mg2", mode="committed")
    found, observation = controller.predict(seen(8)), seen(8)
    one = Case(observation, "mg2")
    points = controller._uncertainty.points(one.reading, "2m")
    costs, lp = one.model.costs(one.reading), one.model.lp

    def possible(case: Any, wider: float) -> bool:
        bounds = one.model.bounds(one.reading, case)
        for symbol, values in (("P_PCC", found.p_mw), ("P_up", found.up_mw + wider), ("P_dn", found.dn_mw)):
            at = lp.at(("mg2", symbol))
            bounds.low[at], bounds.high[at] = values[:, 0] - 1e-8, values[:, 0] + 1e-8
        try:
            one.program.best(tradeoff.Scalarisation(), costs, bounds)
        except Infeasible:
            return False
        return True

    assert all(possible(case, 0.0) for _, case in points)
    assert not all(possible(case, 0.1) for _, case in points)


def test_committed_needs_probabilities() -> None:
    with pytest.raises(NegativeWeight):
        predictor("mg1", mode="committed", scheme="2m+1").step(seen(8))
    # at night the sun has no spread: three factors, whose central weight is zero
    night = predictor("mg1", mode="committed", scheme="2m+1", horizon=4).predict(seen(0, 4))
    assert len(night.weights) == 7


def test_what_is_published() -> None:
    observation = seen(8)
    decision = predictor("mg1").step(observation)
    found = predictor("mg1").predict(observation)
    assert (decision.kind, decision.origin, decision.time) == (Kind.PIC, Origin.OPTIMAL, observation.time)
    assert decision.plan is not None
    assert decision.plan.names == ("mg1",)
    assert decision.plan.times[0] == observation.time + HOUR
    assert (decision.plan.mean == found.p_mw).all()
    assert (decision.plan.std == found.std_mw).all()
    intervals = decision.intervals(observation.time + HOUR, observation.time + 2 * HOUR)
    assert [i.start for i in intervals] == [observation.time + (i + 1) * HOUR for i in range(12)]
    assert all(one.end == other.start for one, other in pairwise(intervals))
    for i, interval in enumerate(intervals):
        region = interval.regions["mg1"]
        assert region.limits("p_mw") == pytest.approx((found.dn_mw[i, 0], found.up_mw[i, 0]))
        assert region.limits("q_mvar") == pytest.approx((-0.3, 0.3))
        assert found.dn_mw[i, 0] <= found.p_mw[i, 0] <= found.up_mw[i, 0]


def test_one_interval_is_enough() -> None:
    decision = predictor("mg1", horizon=1).step(seen(8, 1))
    assert decision.later == ()
    assert not decision.has_sequel
    assert decision.plan is not None
    assert decision.plan.mean.shape == (1, 1)


def test_a_greater_beta_narrows_and_no_spread_does_not() -> None:
    """By the published rule: the mean of each end less beta standard deviations, never beyond the plan."""
    widths = []
    for beta in (0.0, 0.5, 1.0, 3.0, 100.0):
        found = predictor("mg1", beta=beta).predict(seen(8))
        widths.append(float((found.up_mw - found.dn_mw)[0, 0]))
    assert (np.diff(widths) < 0).all()
    assert widths[-1] == 0.0
    certain = predictor("mg1").predict(seen(8, spread=0.0))
    oracle = best("mg1")
    assert len(certain.cases) == 1
    assert certain.up_mw[0, 0] == pytest.approx(oracle.up_mw[0], abs=1e-6)
    assert certain.dn_mw[0, 0] == pytest.approx(oracle.dn_mw[0], abs=1e-6)


def test_the_same_step_has_the_same_bytes_whatever_came_before() -> None:
    for options in ({}, {"mode": "committed"}, {"scalarisation": "weighted"}):
        fresh, used = predictor("mg2", **options), predictor("mg2", **options)
        for k in (3, 19):
            used.step(seen(k))
        assert said(used.step(seen(8))) == said(fresh.step(seen(8)))


def test_the_capability_does_not_depend_on_the_solvers_way() -> None:
    """Cases in the other order, each begun where the last one ended, have the same solutions."""
    worst = 0.0
    for name in NAMES:
        controller = predictor(name)
        model, program = controller._model, controller._programs[1]
        for k in range(0, 24, 3):
            reading = read(seen(k), controller.site, controller.grids, 12)
            costs = model.costs(reading)
            sides = [model.bounds(reading, c) for _, c in controller._uncertainty.points(reading, "2m+1")]
            answers = []
            for order in (sides, sides[::-1]):
                program.clear()
                answers.append(
                    [program.best(controller._how, costs, side).x[: model.shared] for side in order]
                )
            worst = max(worst, float(np.abs(np.array(answers[0]) - np.array(answers[1][::-1])).max()))
    assert worst < 1e-9


def test_nine_programs_are_solved_in_time() -> None:
    controller, observation = predictor("mg1"), seen(8)
    controller.step(observation)
    spent = []
    for _ in range(5):
        start = time.perf_counter()
        controller.step(observation)
        spent.append(time.perf_counter() - start)
    assert len(controller.predict(observation).cases) == 9
    assert min(spent) < 0.060


def test_an_island_offers_nothing() -> None:
    decision = predictor("mg1").step(seen(8, connected={"mg1": False}))
    intervals = decision.intervals(decision.time + HOUR, decision.time + 2 * HOUR)
    assert len(intervals) == 12
    for interval in intervals:
        for axis in ("p_mw", "q_mvar"):
            assert interval.regions["mg1"].limits(axis) == pytest.approx((0.0, 0.0), abs=1e-12)
    assert decision.plan is not None
    assert not decision.plan.mean.any()


def test_a_group_with_an_island_in_it() -> None:
    links = [{"source": "mg1", "target": "mg2", "p_mw": 0.1}, {"source": "mg2", "target": "mg1", "p_mw": 0.1}]
    group = predictor(("mg1", "mg2"), links=links, horizon=4)
    found = group.predict(seen(19, 4, connected={"mg2": False}))
    assert not found.p_mw[:, 1].any()
    assert not (found.up_mw[:, 1] - found.dn_mw[:, 1]).any()
    assert (found.up_mw[:, 0] > found.dn_mw[:, 0]).all()
    decision = group.step(seen(19, 4))
    assert set(decision.regions) == {"mg1", "mg2"}


def test_the_rules_of_weighing_are_options() -> None:
    observation = seen(8)
    widths = {}
    for label, options in {
        "cheap": {"mu": 0.0},
        "usual": {},
        "wide": {"mu": 200.0},
        "weighted": {"scalarisation": "weighted", "weight": 0.01},
        "epsilon": {"scalarisation": "epsilon", "epsilon_mwh": -6.5},
    }.items():
        found = predictor("mg1", beta=0.0, **options).predict(observation)
        widths[label] = float((found.up_mw - found.dn_mw).sum())
        if label == "epsilon":
            assert all(one.f2 <= -6.5 + 1e-8 for one in found.cases)
    assert widths["cheap"] < widths["usual"] < widths["wide"]
    assert widths["weighted"] == pytest.approx(widths["wide"], rel=0.02)


def test_skewed_sun_and_correlation_change_the_estimate() -> None:
    plain = predictor("mg1").predict(seen(8))
    skewed = predictor("mg1", moments={"sun": (0.8, 4.0)}).predict(seen(8))
    together = np.eye(4)
    together[0, 2] = together[2, 0] = -0.6  # more sun, more cooling: a greater demand injects less
    joint = predictor("mg1", correlation=together.tolist(), scheme="2m").predict(seen(8))
    assert skewed.weights != pytest.approx(plain.weights, abs=1e-3)
    assert skewed.cost == pytest.approx(plain.cost, abs=1e-6)  # the cost is linear in the sun of this day
    assert joint.cost[1] < plain.cost[1] - 1.0


def test_sun_beyond_the_inverter_is_clipped_and_counted() -> None:
    site = reference_site(("mg1",))
    pv = replace(site.devices["mg1_pv"], s_mva=0.36)  # type: ignore[call-arg]
    site = replace(site, devices={**site.devices, "mg1_pv": pv})
    found = InterchangePrediction(site).predict(seen(8, site=site))
    assert found.clipped > 0
    assert predictor("mg1").predict(seen(8)).clipped == 0


@pytest.mark.parametrize("every_s", [1, 60])
def test_short_steps(every_s: int) -> None:
    """An interval of a second has the schedule's pace, and a capability as small as its ramps."""
    site = reference_site(every=timedelta(seconds=every_s))
    found = InterchangePrediction(site, microgrid="mg1", beta=0.0).predict(seen(8, site=site))
    ramps = (0.2 + 0.15) * every_s / 3600
    assert (found.up_mw - found.p_mw).max() <= ramps * (1 + 1e-6)
    slow = InterchangePrediction(site, microgrid="mg1", beta=0.0, adjust_s=3600).predict(seen(8, site=site))
    assert (slow.up_mw - slow.p_mw)[0, 0] == pytest.approx(
        min(0.4 - 0.2, 0.2) + min(0.25 - 0.05, 0.15), abs=2 * ramps
    )


def test_no_plan_is_said_with_its_reason() -> None:
    """A firm load that neither tie nor engine can feed."""
    site = small([engine(), load(p_mw=3.0, firm_mw=3.0)], tie_mw=0.5, price="c")
    observation = told(site, {"l": -3.0, "c": 50.0}, 12, p_mw={"g": 0.2})
    with pytest.raises(Infeasible, match=r"'m'.*firm"):
        InterchangePrediction(site).step(observation)


def test_a_band_that_nobody_has_is_said_with_its_reason() -> None:
    greedy = predictor("mg1", scalarisation="epsilon", epsilon_mwh=-100.0)
    with pytest.raises(Infeasible, match=r"'mg1'.*as wide as epsilon_mwh asks for"):
        greedy.step(seen(8))


def test_an_island_that_has_no_plan_is_named() -> None:
    """An engine that cannot go low enough, in a group: the group has no prediction, and says who is alone."""
    site = reference_site()
    stuck = replace(site.devices["mg2_mt"], p_mw=3.0, p_min_mw=2.5, s_mva=3.5)  # type: ignore[call-arg]
    site = replace(site, devices={**site.devices, "mg2_mt": stuck})
    links = [{"source": "mg2", "target": "mg1", "p_mw": 0.1}]
    group = InterchangePrediction(site, microgrid=("mg1", "mg2"), links=links)
    with pytest.raises(Infeasible, match=r"'mg1', 'mg2' \(mg2 not connected\)"):
        group.step(seen(8, site=site, connected={"mg2": False}, p_mw={"mg2_mt": 2.5}))


def test_engines_alone_need_no_forecast() -> None:
    """Nothing is known of the coming hours, and nothing has to be."""
    site = small([engine()])
    observation = told(site, {"x": 1.0}, 1, p_mw={"g": 0.3})
    observation = replace(observation, forecast=Forecast.empty(observation.time, site.every))
    found = InterchangePrediction(site, horizon=4, beta=0.0).predict(observation)
    # what it costs decides: as low as it goes and still has its whole ramp above, and nothing below
    assert found.p_mw[0, 0] == pytest.approx(0.1)
    assert (found.dn_mw[0, 0], found.up_mw[0, 0]) == pytest.approx((0.1, 0.3))


def test_negative_prices() -> None:
    """Paid for taking energy it takes what its devices let it take, and no more than the tie."""
    site = small([engine(), store(), load()], tie_mw=0.2, price="c")
    observation = told(site, {"l": -0.25, "c": -100.0}, 1, p_mw={"g": 0.1}, e_mwh={"b": 0.3})
    found = InterchangePrediction(site, horizon=1).predict(observation)
    # 0.1 from the engine, which cannot stop, 0.25 for the load, 0.05 stored; up by the ramp, down by nothing
    assert found.p_mw[0, 0] == pytest.approx(-0.2)
    assert (found.dn_mw[0, 0], found.up_mw[0, 0]) == pytest.approx((-0.2, 0.0))
    assert found.cost[0] == pytest.approx(70 * 0.1 + 5 * 0.05 - 100 * 0.2)


def test_missing_observations_are_named() -> None:
    controller = predictor("mg1")
    for p_mw in ({}, {**seen(8).p_mw, "mg1_mt": float("nan")}):
        with pytest.raises(Infeasible, match="mg1_mt"):
            controller.step(replace(seen(8), p_mw=p_mw))
    for e_mwh in (float("nan"), float("inf")):
        with pytest.raises(Infeasible, match=r"energy of .*mg1_esd"):
            controller.step(seen(8, e_mwh={"mg1_esd": e_mwh}))
    with pytest.raises(Infeasible, match="is not forecast"):
        controller.step(replace(seen(8), forecast=Forecast.empty(seen(8).time, HOUR)))
    with pytest.raises(Infeasible, match="forecast covers 3 of 12"):
        controller.step(seen(8, 3))


def test_options_that_do_not_fit_are_refused() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"microgrid": None}, "say which one"),
        ({"microgrid": "mg7"}, "mg7"),
        ({"mode": "joint"}, "mode 'joint'"),
        ({"scheme": "3m"}, "scheme '3m'"),
        ({"beta": -1.0}, "beta -1"),
        ({"horizon": 0}, "horizon of 0"),
        ({"mu": -1.0}, "mu -1"),
        ({"moments": {"rain": (0.0, 3.0)}}, "rain"),
        ({"moments": {"sun": (2.0, 3.0)}}, "no distribution"),
        ({"correlation": [[1.0]]}, "4 x 4"),
        ({"correlation": [[1, 2, 0, 0], [2, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]}, "not positive definite"),
        ({"adjust_s": 0.0}, "no time"),
        ({"adjust_s": float("inf")}, "no time"),
        ({"links": [{"from": "mg1", "to": "mg2"}]}, "do not exist; there are .'source', 'target'"),
        ({"links": [{"source": "mg1"}]}, "'target'. is missing"),
        ({"links": [{"source": "mg1", "target": "mg2"}]}, "joins no two"),
    ]
    for options, why in wrong:
        with pytest.raises(ValueError, match=why):
            InterchangePrediction(reference_site(), **{"microgrid": "mg1"} | options)
    with pytest.raises(ValueError, match="no microgrids"):
        InterchangePrediction(reference_site(()))


def test_a_sites_only_microgrid_needs_no_name() -> None:
    site = reference_site(("mg2",))
    only = InterchangePrediction(site)
    assert [grid.name for grid in only.grids] == ["mg2"]
    assert only.intervals == 12
    named = InterchangePrediction(site, microgrid="mg2")
    observation: Observation = seen(8, site=site)
    assert said(only.step(observation)) == said(named.step(observation))
    assert isinstance(only.grids[0], Microgrid)
