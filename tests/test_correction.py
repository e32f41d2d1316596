"""InterchangeCorrection on the reference feeder: safe in AC, no narrower than it must be, never silent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from functools import cache
from itertools import pairwise, product
from typing import Any

import numpy as np
import numpy.typing as npt
import pandapower.networks as pn
import pytest

from controllers import (
    Decision,
    Forecast,
    Infeasible,
    Interval,
    Kind,
    Limits,
    Observation,
    Origin,
    Region,
    Site,
)
from controllers.interchange.correction import InterchangeCorrection
from controllers.interchange.question import Tighter
from controllers.interchange.repair import GAP
from simulators.power_flow import PandapowerEngine
from tests.interchange_cases import HOUR, reference_site, seen
from tests.jabr import correct

Array = npt.NDArray[np.float64]
Ranges = Mapping[str, tuple[float, float, float]]
"""Plan, lower and upper end of the prediction [MW] by microgrid."""

MORNING: Ranges = {"mg1": (0.2, 0.0035, 0.3743), "mg2": (0.05, -0.1365, 0.2553), "mg3": (0.3, 0.0904, 0.4742)}
WIDE: Ranges = {"mg1": (0.2, -0.4, 0.6), "mg2": (0.1, -0.5, 0.6), "mg3": (0.3, -0.4, 0.8)}
EXPORT: Ranges = {"mg1": (0.5, 0.0, 1.4), "mg2": (0.4, 0.0, 1.6), "mg3": (0.5, 0.0, 1.8)}


def predicted(at: datetime, ranges: Ranges, intervals: int = 4) -> dict[str, Decision]:
    """What the microgrids say: the same prediction for every interval."""
    said = {}
    for name, (plan, low, high) in ranges.items():
        region = {name: Region.box(p_mw=(low, high), q_mvar=(-0.3, 0.3))}
        later = [
            Interval(start=at + (t + 1) * HOUR, end=at + (t + 2) * HOUR, regions=region)
            for t in range(1, intervals)
        ]
        mean = np.full((intervals, 1), plan)
        said[f"predicts {name}"] = Decision(
            time=at, origin=Origin.OPTIMAL, kind=Kind.PIC, regions=region, later=tuple(later),
            plan=Forecast(at, HOUR, (name,), mean, np.zeros_like(mean)),
        )  # fmt: skip
    return said


def heard(k: int, ranges: Ranges, *, intervals: int = 4, load: float = 1.0, **known: Any) -> Observation:
    """An observation one step before hour `k`, with predictions; loads scaled."""
    observation = seen(k, **known)
    forecast = observation.forecast
    factor = np.array([load if name.startswith("load:") else 1.0 for name in forecast.names])
    forecast = replace(forecast, mean=forecast.mean * factor)
    return replace(observation, forecast=forecast, said=predicted(observation.time, ranges, intervals))


@cache
def corrects(**options: Any) -> InterchangeCorrection:
    """One of the reference site; `v_pu` sets its limits, `rating_mva` those of all lines."""
    site = reference_site()
    site = replace(site, limits=Limits(options.pop("v_pu", (0.95, 1.05)), 100.0))
    options = {"slack_mw": (-1.0, 5.0), "reserve_mw": (0.8, 0.8), "horizon": 1, **options}
    return InterchangeCorrection(site, **options)


def ends(decision: Decision, interval: int = 0) -> dict[str, tuple[float, float]]:
    regions = decision.later[interval - 1].regions if interval else decision.regions
    return {name: region.limits("p_mw") for name, region in regions.items()}


def width(decision: Decision) -> float:
    return sum(high - low for low, high in ends(decision).values())


class Adversary:
    """pandapower on points of a decision's boxes; shares no line with the controller's own check."""

    def __init__(self, site: Site, observation: Observation, decision: Decision) -> None:
        self.engine = PandapowerEngine(pn.case33bw())
        at = {bus: i for i, bus in enumerate(self.engine.buses)}
        known = observation.forecast.at(0)
        self.p, self.q = np.zeros((2, len(at)))
        for load in site.loads.values():
            self.p[at[load.bus]] += known[load.name]
            self.q[at[load.bus]] += load.reactive(known[load.name])
        for name, setpoint in decision.setpoints.items():
            self.p[at[site.devices[name].bus]] += setpoint.p_mw or 0.0
            self.q[at[site.devices[name].bus]] += setpoint.q_mvar or 0.0
        self.buses = [at[site.microgrids[name].bus] for name in decision.regions]
        self.boxes = np.array(list(ends(decision).values()))
        self.var = np.array([region.limits("q_mvar")[0] for region in decision.regions.values()])
        assert decision.plan is not None
        self.plan = decision.plan.mean[0]

    def points(self, random: int = 200) -> Array:
        """(cases, N) every corner, and some points between them."""
        corners = np.array(list(product(*self.boxes)))
        rng = np.random.default_rng(7)
        inside = self.boxes[:, 0] + rng.random((random, len(self.boxes))) * np.ptp(self.boxes, axis=1)
        return np.concatenate([corners, inside])

    def solve(self, exchange: Array, present: Array | None = None) -> tuple[Array, Array]:
        """Voltages (cases, buses) and imports (cases,)."""
        p, q = (np.tile(x, (len(exchange), 1)) for x in (self.p, self.q))
        for i, bus in enumerate(self.buses):
            p[:, bus] += exchange[:, i]
            q[:, bus] += self.var[i] * (1.0 if present is None else present[:, i])
        flows = self.engine.solve(p, q)
        assert flows.converged.all()
        return flows.v_pu, flows.p_mw[:, self.engine.branches.index("line:0")]


CASES = {
    "morning": (8, MORNING, {}),
    "evening": (18, WIDE, {}),
    "export": (12, EXPORT, {"load": 0.4}),
    "export against a limit of back-feed": (12, EXPORT, {"load": 0.2}),
    "night": (3, WIDE, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_A11_every_corner_and_point_of_the_boxes_is_safe(case: str) -> None:
    k, ranges, known = CASES[case]
    observation = heard(k, ranges, **known)
    decision = corrects().step(observation)
    assert decision.kind is Kind.AIC
    assert decision.origin in (Origin.CERTIFIED, Origin.REPAIRED)
    adversary = Adversary(reference_site(), observation, decision)
    v, imported = adversary.solve(adversary.points())
    assert v.min() >= 0.95 - 1e-4
    assert v[:, 1:].max() <= 1.05 + 1e-4
    assert imported.min() >= -1.0 - 1e-3
    assert imported.max() <= 5.0 + 1e-3


def test_A11_without_the_correction_corners_are_not_safe() -> None:
    for case, beyond in (("evening", 0.005), ("export", 0.005)):
        k, ranges, known = CASES[case]
        observation = heard(k, ranges, **known)
        decision = corrects().step(observation)
        adversary = Adversary(reference_site(), observation, decision)
        adversary.boxes = np.array([(low, high) for _, low, high in ranges.values()])
        v, _ = adversary.solve(adversary.points(0))
        assert max(0.95 - v.min(), v.max() - 1.05) > beyond


@pytest.mark.parametrize("mu_loss", [0.0, 0.08])
@pytest.mark.parametrize("case", ["night", "evening", "export"])
def test_A12_the_reserve_covers_every_change(case: str, mu_loss: float) -> None:
    """With a factor for losses that is too small as well: the AC power flow sees it, and it is mended."""
    k, ranges, known = CASES[case]
    observation = heard(k, ranges, **known)
    reserve = 0.35
    decision = corrects(mu_loss=mu_loss, reserve_mw=(reserve, reserve)).step(observation)
    adversary = Adversary(reference_site(), observation, decision)
    v, imported = adversary.solve(np.concatenate([adversary.plan[None], adversary.points()]))
    change = imported[1:] - imported[0]
    # the battery's own reserve comes on top of what the slack bus keeps
    (setpoint,) = decision.setpoints.values()
    assert setpoint.p_mw is not None
    up, down = reserve + 0.3 - setpoint.p_mw, reserve + 0.3 + setpoint.p_mw
    assert change.max() <= up + 1e-3
    assert -change.min() <= down + 1e-3
    assert change.max() > 0.5 * up or -change.min() > 0.5 * down  # and it is used
    assert v.min() >= 0.95 - 1e-4


def test_A12_a_factor_that_is_too_small_is_found_out() -> None:
    observation = heard(3, WIDE)
    low, enough = (
        corrects(mu_loss=mu, reserve_mw=(0.35, 0.35), v_pu=(0.90, 1.10)).step(observation)
        for mu in (0.0, 0.12)
    )
    assert low.origin is Origin.REPAIRED
    assert enough.origin is Origin.CERTIFIED
    assert any("reserve up" in str(c.binding) for c in low.certificates.values())
    assert width(low) > width(enough)  # the repair asks for what losses really add


def test_the_rigorous_reserve_is_safe_without_a_factor() -> None:
    observation = heard(3, WIDE)
    options = {"reserve_mw": (0.35, 0.35), "v_pu": (0.90, 1.10)}
    decision = corrects(reserve_margin="rigorous", **options).step(observation)
    assert decision.origin is Origin.CERTIFIED
    adversary = Adversary(reference_site(), observation, decision)
    _, imported = adversary.solve(np.concatenate([adversary.plan[None], adversary.points()]))
    assert np.abs(imported[1:] - imported[0]).max() <= 0.35 + 0.3 + 1e-3
    assert width(decision) == pytest.approx(width(corrects(**options).step(observation)), rel=0.2)


@pytest.mark.parametrize("case", CASES)
def test_A13_AIC_lies_in_PIC_and_holds_the_schedule(case: str) -> None:
    k, ranges, known = CASES[case]
    decision = corrects(horizon=4).step(heard(k, ranges, **known))
    assert decision.plan is not None
    assert len(decision.later) == 3
    for t in range(4):
        for i, (name, (low, high)) in enumerate(ends(decision, t).items()):
            base = float(decision.plan.mean[t, i])
            assert ranges[name][1] <= low <= base <= high <= ranges[name][2]


def test_A13_with_room_for_everything_AIC_is_PIC() -> None:
    wide = corrects(v_pu=(0.8, 1.2), slack_mw=(-10.0, 10.0), reserve_mw=(5.0, 5.0), horizon=4)
    decision = wide.step(heard(18, WIDE))
    assert decision.origin is Origin.CERTIFIED
    for t in range(4):
        assert ends(decision, t) == {name: (low, high) for name, (_, low, high) in WIDE.items()}
    assert decision.plan is not None
    assert np.array_equal(decision.plan.mean, np.tile([p for p, _, _ in WIDE.values()], (4, 1)))
    assert {c.binding for c in decision.certificates.values()} == {
        "export by prediction, import by prediction"
    }


def test_A13_tighter_limits_never_widen() -> None:
    for k, ranges, known, tops in (
        (12, EXPORT, {"load": 0.4}, [1.02, 1.03, 1.04, 1.05, 1.06]),
        (18, WIDE, {}, [1.05]),
    ):
        observation = heard(k, ranges, **known)
        widths = [width(corrects(v_pu=(0.95, top)).step(observation)) for top in tops]
        assert all(b >= a - 1e-4 for a, b in pairwise(widths))
    observation = heard(18, WIDE)
    lows = [0.955, 0.95, 0.945, 0.94, 0.93]
    widths = [width(corrects(v_pu=(low, 1.05)).step(observation)) for low in lows]
    assert all(b >= a - 1e-4 for a, b in pairwise(widths))
    assert widths[-1] > widths[0] + 0.1
    tight = [width(corrects(reserve_mw=(r, r)).step(observation)) for r in (0.0, 0.2, 0.8)]
    assert tight == sorted(tight)


def test_A14_a_microgrid_that_is_not_connected() -> None:
    ranges = {name: WIDE[name] for name in ("mg1", "mg3")}
    observation = heard(9, ranges, connected={"mg2": False}, p_mw={"mg2": 0.4})
    decision = corrects().step(observation)
    assert ends(decision)["mg2"] == (0.0, 0.0)
    assert decision.regions["mg2"].limits("q_mvar") == (0.0, 0.0)
    assert decision.certificates["mg2"].binding == "not connected"
    assert all(high - low > 0.1 for name, (low, high) in ends(decision).items() if name != "mg2")
    assert decision.origin is Origin.CERTIFIED
    adversary = Adversary(reference_site(), observation, decision)
    v, _ = adversary.solve(adversary.points())
    assert v.min() >= 0.95 - 1e-4
    # a prediction that it sends all the same does not matter
    heard_too = replace(observation, said=predicted(observation.time, WIDE))
    assert ends(corrects().step(heard_too)) == ends(decision)


def test_A14_a_missing_prediction_pins_the_measured_exchange() -> None:
    ranges = {name: WIDE[name] for name in ("mg1", "mg3")}
    decision = corrects().step(heard(9, ranges, p_mw={"mg2": 0.0625}))
    assert ends(decision)["mg2"] == (0.0625, 0.0625)
    assert decision.certificates["mg2"].binding == "no prediction"
    assert ends(decision)["mg1"][1] - ends(decision)["mg1"][0] > 0.1
    # one of an earlier step is none
    observation = heard(9, WIDE, p_mw={"mg2": 0.0625})
    late = predicted(observation.time - HOUR, {"mg2": WIDE["mg2"]})
    old = replace(observation, said={**observation.said, **late})
    assert ends(corrects().step(old)) == ends(decision)


def test_A14_a_microgrid_of_which_nothing_is_known() -> None:
    """All that its tie allows counts; where that is too much, no one may move and the reason names it."""
    ranges = {name: MORNING[name] for name in ("mg1", "mg3")}
    observation = heard(3, ranges)
    blind = replace(observation, p_mw={k: v for k, v in observation.p_mw.items() if k != "mg2"})
    roomy = corrects(v_pu=(0.9, 1.1), reserve_mw=(2.0, 2.0)).step(blind)
    assert roomy.origin is Origin.CERTIFIED
    assert ends(roomy)["mg2"] == (-0.8, 0.8)
    assert roomy.certificates["mg2"].binding == "no prediction and no measured exchange"
    tight = corrects(v_pu=(0.95, 1.05), reserve_mw=(0.1, 0.1)).step(blind)
    assert tight.origin is Origin.DEGRADED
    assert "mg2" not in tight.regions
    assert all(low == high for low, high in ends(tight).values())
    assert all("no safe capability" in str(c.binding) for c in tight.certificates.values())


def test_A14_isolation_secure_survives_any_microgrid_leaving() -> None:
    observation = heard(18, WIDE, load=0.66)
    usual, secure = (
        corrects(isolation_secure=on, reserve_mw=(3.0, 3.0)).step(observation) for on in (False, True)
    )
    assert secure.origin in (Origin.CERTIFIED, Origin.REPAIRED)
    worst = {}
    for name, decision in (("usual", usual), ("secure", secure)):
        adversary = Adversary(reference_site(), observation, decision)
        cases, present = [], []
        for corner in product(*adversary.boxes):
            for there in product((0.0, 1.0), repeat=3):
                cases.append(np.array(corner) * there)
                present.append(there)
        v, _ = adversary.solve(np.array(cases), np.array(present))
        worst[name] = float(v.min())
    assert worst["secure"] >= 0.95 - 1e-4
    assert worst["usual"] < 0.95 - 1e-3
    assert width(secure) <= width(usual) + 1e-4


@pytest.mark.parametrize("case", ["evening", "export", "night"])
def test_the_three_copies_are_AC_power_flows(case: str) -> None:
    k, ranges, known = CASES[case]
    observation = heard(k, ranges, **known)
    controller = corrects()
    decision = controller.step(observation)
    asked = controller._ear.case(observation, controller._ear.listen(observation))
    model = controller.program.model
    nothing = Tighter.nothing(1, model.flow.n, 1, controller.loss_weight)
    answer = controller.program.solve(asked, nothing)
    assert answer.gap <= GAP
    adversary = Adversary(reference_site(), observation, decision)
    adversary.var = answer.q_mvar[0]
    exchange = np.concatenate([answer.base, answer.up, answer.dn])
    v, imported = adversary.solve(exchange)
    at = [adversary.engine.buses.index(bus) for bus in model.flow.network.buses]
    for i, copy in enumerate(("base", "up", "dn")):
        assert np.abs(np.sqrt(answer.at[f"v_{copy}"][0]) - v[i, at]).max() < 1e-5
        assert answer.at[f"P_{copy}"][0, model.flow.fed_by_slack].sum() == pytest.approx(
            imported[i], abs=1e-5
        )


@pytest.mark.parametrize("case", ["evening", "export", "export against a limit of back-feed", "night"])
def test_it_is_as_wide_as_the_program_stated_anew(case: str) -> None:
    k, ranges, known = CASES[case]
    observation = heard(k, ranges, **known)
    site = replace(
        reference_site(), devices={n: d for n, d in reference_site().devices.items() if n != "bess"}
    )
    decision = InterchangeCorrection(site, horizon=1, slack_mw=(-1.0, 5.0), reserve_mw=(0.8, 0.8)).step(
        observation
    )
    forecast = observation.forecast.at(0)
    buses = [load.bus for load in site.loads.values()]
    p = [forecast[name] for name in site.loads]
    q = [load.reactive(forecast[name]) for name, load in site.loads.items()]
    plan, low, high = (np.array(x) for x in zip(*ranges.values(), strict=True))
    network = site.network
    anew = correct(
        network,
        np.array([network.index(m.bus) for m in site.microgrids.values()]),
        network.total(buses, p),
        network.total(buses, q),
        plan,
        low,
        high,
        v_pu=(0.95, 1.05),
        import_mw=(-1.0, 5.0),
        reserve_mw=0.8,
    )
    assert decision.plan is not None
    moved = np.abs(decision.plan.mean[0] - plan).sum()
    assert width(decision) - 50 * moved == pytest.approx(anew.value, abs=2e-3)
    assert decision.origin is Origin.CERTIFIED


def test_the_binding_limit_is_the_one_that_costs() -> None:
    observation, room = heard(18, WIDE), {"reserve_mw": (2.0, 2.0)}
    usual = corrects(**room).step(observation)
    assert {name: str(c.binding) for name, c in usual.certificates.items()} == {
        "mg1": "export by prediction, import by lower voltage at bus 30",
        "mg2": "export by prediction, import by prediction",
        "mg3": "export by prediction, import by lower voltage at bus 30",
    }
    assert width(corrects(v_pu=(0.949, 1.05), **room).step(observation)) > width(usual) + 1e-3
    for other in ({"v_pu": (0.95, 1.06)}, {"slack_mw": (-2.0, 6.0)}, {"reserve_mw": (2.1, 2.1)}):
        assert width(corrects(**{**room, **other}).step(observation)) == pytest.approx(width(usual), abs=1e-4)
    certificate = usual.certificates["mg1"]
    assert certificate.worst_v_pu == pytest.approx(0.95, abs=1e-5)
    assert certificate.worst_loading_percent is None  # no line of it has a rating
    assert certificate.power_flows >= 200


def test_a_rated_line_limits_and_is_named() -> None:
    site = reference_site()
    rating = np.full(32, np.inf)
    rating[site.network.branches.index("line:16")] = 0.5  # the last one before mg1
    net = pn.case33bw()
    net.line["max_i_ka"] = 99999.0
    net.line.loc[16, "max_i_ka"] = 0.5 / (np.sqrt(3) * 12.66)
    site = replace(site, network=replace(site.network, rating_mva=rating), power_flow=PandapowerEngine(net))
    observation = heard(12, EXPORT, load=0.6)
    decision = InterchangeCorrection(site, horizon=1, points=20).step(observation)
    assert "loading of line:16" in str(decision.certificates["mg1"].binding)
    assert "line:16" not in str(decision.certificates["mg2"].binding)
    assert decision.certificates["mg1"].worst_loading_percent == pytest.approx(100.0, abs=0.5)
    # With mg1 up and the others down the voltage is lower and the current higher than with all of them up.
    assert decision.origin is Origin.REPAIRED
    assert 0.4 < ends(decision)["mg1"][1] < 0.7
    # The power flows backwards here, where a bound on the relaxed current would be kept by burning power and
    # the answer shrunk by bisection; this one is tight.
    assert "scaled" not in str(decision.certificates["mg1"].binding)


def test_a_schedule_that_is_not_secure_is_corrected() -> None:
    ranges = {**WIDE, "mg3": (-0.4, -0.4, 0.8)}
    decision = corrects().step(heard(18, ranges))
    assert decision.origin is Origin.CERTIFIED
    assert decision.plan is not None
    assert decision.plan.mean[0, 2] > -0.4 + 0.05
    assert ends(decision)["mg3"][0] == pytest.approx(decision.plan.mean[0, 2], abs=1e-5)


def test_without_a_secure_schedule_it_says_so_and_moves_no_one_outwards() -> None:
    ranges = {"mg1": (-0.5, -0.6, -0.4), "mg2": (-0.5, -0.6, -0.4), "mg3": (-0.5, -0.6, -0.4)}
    decision = corrects(horizon=2).step(heard(18, ranges))
    assert decision.origin is Origin.DEGRADED
    for certificate in decision.certificates.values():
        assert "no safe capability: lower voltage at bus" in str(certificate.binding)
    for name, (low, high) in ends(decision).items():
        assert low == high
        assert ranges[name][1] <= low <= ranges[name][2]
    assert ends(decision)["mg3"][0] == pytest.approx(-0.4, abs=1e-4)  # the least violation there is


def test_a_later_interval_without_an_answer_leaves_the_first_alone() -> None:
    """The second interval cannot be kept; the first is what it is alone, but for the battery's energy."""
    observation = heard(
        3, {"mg1": (0.1, -0.2, 0.5), "mg2": (0.1, -0.2, 0.5), "mg3": (0.1, -0.2, 0.5)}, intervals=2
    )
    heavy = observation.forecast.mean.copy()
    columns = [i for i, name in enumerate(observation.forecast.names) if name.startswith("load:")]
    heavy[1:, columns] *= 4.0
    later = replace(observation, forecast=replace(observation.forecast, mean=heavy))
    alone, both = corrects().step(observation), corrects(horizon=2).step(later)
    assert both.origin is Origin.CERTIFIED
    for name, limits in ends(alone).items():
        assert ends(both)[name] == pytest.approx(limits, abs=1e-2)
    assert all(low == high for low, high in ends(both, 1).values())
    assert "no safe capability" in str(both.later[0].certificates["mg1"].binding)


def test_a_fair_share_spreads_the_loss() -> None:
    observation = heard(18, WIDE)
    total, fair = (corrects(share=share).step(observation) for share in ("total", "fair"))

    def losses(decision: Decision) -> Array:
        found = ends(decision)
        return np.array([(WIDE[n][2] - high, low - WIDE[n][1]) for n, (low, high) in found.items()])

    assert (losses(fair) ** 2).sum() < (losses(total) ** 2).sum() - 1e-3
    assert width(fair) <= width(total) + 1e-4
    adversary = Adversary(reference_site(), observation, fair)
    v, _ = adversary.solve(adversary.points())
    assert v.min() >= 0.95 - 1e-4


def test_weights_say_whose_capability_counts() -> None:
    observation = heard(18, WIDE)
    usual = ends(corrects().step(observation))
    favoured = InterchangeCorrection(
        reference_site(), horizon=1, slack_mw=(-1.0, 5.0), reserve_mw=(0.8, 0.8), weights={"mg3": 10.0}
    )
    assert ends(favoured.step(observation))["mg3"][0] < usual["mg3"][0] - 0.01


def test_the_battery_keeps_its_energy_unless_it_helps() -> None:
    easy = corrects(v_pu=(0.9, 1.1)).step(heard(3, MORNING))
    (setpoint,) = easy.setpoints.values()
    assert setpoint.p_mw == pytest.approx(0.0, abs=1e-4)
    (setpoint,) = corrects().step(heard(18, WIDE)).setpoints.values()
    assert setpoint.p_mw is not None
    assert setpoint.p_mw > 0.2
    (setpoint,) = corrects(energy_worth=1e3).step(heard(18, WIDE)).setpoints.values()
    assert setpoint.p_mw == pytest.approx(0.0, abs=1e-4)
    (setpoint,) = corrects().step(heard(18, WIDE, e_mwh={"bess": 0.15})).setpoints.values()
    assert setpoint.p_mw is not None
    assert setpoint.p_mw <= (0.15 - 0.12) * 0.95 + 1e-6


def test_the_battery_can_do_what_it_is_told() -> None:
    battery = reference_site().devices["bess"]
    for k, ranges in ((3, WIDE), (12, EXPORT), (18, WIDE)):
        for stored in (0.12, 0.6, 1.08):
            decision = corrects(horizon=4).step(heard(k, ranges, e_mwh={"bess": stored}))
            setpoint = decision.setpoints["bess"]
            state = replace(battery.initial(), e_mwh=stored)
            able = battery.limits(state, None, 3600.0)
            point = np.array([setpoint.p_mw, setpoint.q_mvar])
            assert np.abs(able.nearest(point) - point).max() < 1e-6


def test_same_observation_same_decision() -> None:
    one, other = (InterchangeCorrection(reference_site(), slack_mw=(-1.0, 5.0)) for _ in range(2))
    observation = heard(18, WIDE)

    def said(decision: Decision) -> bytes:
        assert decision.plan is not None
        regions = [r.b for d in (decision, *decision.later) for r in d.regions.values()]
        return (
            b"".join([x.tobytes() for x in regions])
            + decision.plan.mean.tobytes()
            + repr(decision.setpoints).encode()
        )

    first = said(one.step(observation))
    one.step(heard(8, MORNING))
    assert said(one.step(observation)) == first
    assert said(other.step(observation)) == first


def test_horizons_of_both_sides_need_not_agree() -> None:
    shorter = corrects(horizon=4).step(heard(9, WIDE, intervals=2))
    assert len(shorter.later) == 1
    longer = corrects(horizon=2).step(heard(9, WIDE, intervals=12))
    assert len(longer.later) == 1
    start = longer.time + 2 * HOUR
    assert (longer.later[0].start, longer.later[0].end) == (start, start + HOUR)
    observation = heard(9, WIDE, intervals=4)
    mixed = {**observation.said, **predicted(observation.time, {"mg2": WIDE["mg2"]}, 1)}
    decision = corrects(horizon=3).step(replace(observation, said=mixed))
    assert [set(interval.regions) for interval in decision.later] == [{"mg1", "mg3"}] * 2


def test_what_is_not_known_is_named() -> None:
    observation = heard(9, WIDE)
    names = observation.forecast.names
    keep = [i for i, name in enumerate(names) if name != "load:7"]
    forecast = replace(
        observation.forecast,
        names=tuple(names[i] for i in keep),
        mean=observation.forecast.mean[:, keep],
        std=observation.forecast.std[:, keep],
    )
    corrects().step(replace(observation, forecast=forecast))  # its measurement is still there
    measured = {name: p for name, p in observation.p_mw.items() if name != "load:7"}
    with pytest.raises(Infeasible, match="load 'load:7' is neither forecast nor measured"):
        corrects().step(replace(observation, forecast=forecast, p_mw=measured))
    with pytest.raises(Infeasible, match="battery 'bess': its stored energy is not measured"):
        corrects().step(replace(observation, e_mwh={}))
    mad = {**WIDE, "mg1": (0.9, -0.4, 0.6)}
    with pytest.raises(Infeasible, match=r"'mg1': it plans 0\.9 MW in interval 0, outside its own"):
        corrects().step(heard(9, mad))
    skew = Region(("p_mw", "q_mvar"), np.array([[1.0, 1.0], [-1.0, 0.0]]), np.array([1.0, 1.0]))
    said = dict(observation.said)
    said["predicts mg1"] = replace(said["predicts mg1"], regions={"mg1": skew})
    with pytest.raises(Infeasible, match="no box"):
        corrects().step(replace(observation, said=said))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"horizon": 0}, "horizon 0 must be at least 1"),
        ({"share": "best"}, "share 'best' is none of total, fair"),
        ({"reserve_margin": "none"}, "reserve_margin 'none'"),
        ({"mu_loss": -0.1}, r"mu_loss -0\.1 is negative"),
        ({"slack_mw": (1.0, -1.0)}, "lower limit above its upper"),
        ({"reserve_mw": (0.1, -0.1)}, "reserve is positive both ways"),
        ({"weights": {"mg9": 1.0}}, "'mg9', which is no microgrid"),
        ({"weights": {"mg1": 0.0}}, r"weight 0\.0 of 'mg1' must be above 0"),
        ({"reserve_h": 0.0}, "reserve_h"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        InterchangeCorrection(reference_site(), **options)


def test_sites_that_it_cannot_work_on_are_refused() -> None:
    with pytest.raises(ValueError, match="has no microgrids"):
        InterchangeCorrection(replace(reference_site(), microgrids={}))
    with pytest.raises(ValueError, match="has no AC power flow"):
        InterchangeCorrection(replace(reference_site(), power_flow=None))
