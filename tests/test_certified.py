"""Certified: against enumeration and pandapower, what it publishes, when it refuses, and its scenario key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandapower as pp
import pytest

from controllers import Decision, Infeasible, Limits, Origin, Site
from controllers.envelopes import ascent
from controllers.envelopes.certified import Certified
from controllers.envelopes.method import EnvelopeMethod
from controllers.envelopes.shapes import Shapes
from controllers.envelopes.static_limits import StaticLimits, Unlimited
from controllers.network import Flows, PowerFlow
from scenarios.build import build
from scenarios.check import ScenarioInvalid, validate
from scenarios.load import load
from simulators.power_flow import PowerGridModelEngine
from tests.adversary import LOADING_PERCENT, V_PU, Adversary, attack, background_of
from tests.envelope_cases import (
    battery,
    battery_park,
    feeder136,
    net33,
    net136,
    random_tree,
    s1,
    s2,
    s3,
    seen,
    site_of,
)
from tests.rolled_day import GRIDS, METHODS, attacked, day, spread_over

Array = npt.NDArray[np.float64]
CASES = {"S1": (s1, 0), "S2": (s2, -3), "S3": (s3, 0)}
UNDER_P, RANGES = ("PQ-E", "PQ-KL", "EPQ"), ("P-E", "P-WE", "P-SE", "max-min")


def method(name: str, site: Site, **options: Any) -> EnvelopeMethod:
    return METHODS[name](site, price=False, **options)


def corners(decision: Decision) -> Array:
    """(devices, 4) least and greatest P and Q."""
    return np.array([[*r.limits("p_mw"), *r.limits("q_mvar")] for r in decision.regions.values()])


# Golden tests


def test_T6_the_linear_model_never_underestimates_a_voltage() -> None:
    """1000 random injections without shunts; where that fails, correction by losses alone would too."""
    for site in (s1(), feeder136()):
        engine = site.power_flow
        assert engine is not None
        assert not site.network.admits
        draw = np.random.default_rng(6)
        p, q = draw.uniform(-0.3, 0.15, (2, 500, len(engine.buses)))
        q *= 0.6
        order = [engine.buses.index(bus) for bus in site.network.buses]
        flows = engine.solve(p, q)
        assert flows.converged.sum() > 450
        linear = np.array(
            [site.network.v2(a, b) ** 0.5 for a, b in zip(p[:, order], q[:, order], strict=True)]
        )
        gap = (linear - flows.v_pu[:, order])[flows.converged]
        assert gap.min() >= -1e-9
        assert gap.max() > 1e-3


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", METHODS)
def test_T7_uncorrected_envelopes_break_voltages_and_certified_ones_do_not(name: str, case: str) -> None:
    make, tap = CASES[case]
    site = make()
    adversary = Adversary(net33(tap))
    inner = method(name, site)
    uncorrected = attack(site, adversary, inner.step(seen(site)))
    assert uncorrected.violated
    assert uncorrected.under_v_pu > V_PU
    decision = Certified(inner).step(seen(site))
    assert decision.origin is Origin.CERTIFIED
    found = attack(site, adversary, decision)
    assert found.violating == 0
    assert not found.violated


@pytest.mark.parametrize("name", ["PQ-E", "EPQ"])
def test_T7_on_the_136_bus_feeder(name: str) -> None:
    site, adversary = feeder136(), Adversary(net136())
    inner = method(name, site)
    assert attack(site, adversary, inner.step(seen(site))).violated
    assert attack(site, adversary, Certified(inner).step(seen(site))).violating == 0


# What it publishes


@pytest.mark.parametrize("name", RANGES)
def test_it_only_ever_tightens(name: str) -> None:
    for make, _ in CASES.values():
        site = make()
        inner = method(name, site)
        before, after = inner.step(seen(site)), Certified(inner).step(seen(site))
        assert after.fairness is not None
        assert before.fairness is not None
        assert after.fairness.import_mw < before.fairness.import_mw
        assert after.fairness.export_mw <= before.fairness.export_mw + 1e-9
        if name == "P-E":  # nobody gets more for what another loses
            assert (np.abs(corners(after)) <= np.abs(corners(before)) + 1e-9).all()


@pytest.mark.parametrize(("case", "area"), [("S1", 7.483), ("S2", 0.454), ("S3", 1.88)])
def test_the_boxes_are_as_large_as_a_prototypes(case: str, area: float) -> None:
    """Figures of an earlier prototype with value matching alone, tighten only (S3: 97 % of linear)."""
    make, _ = CASES[case]
    site = make()
    fairness = Certified(method("PQ-E", site)).step(seen(site)).fairness
    assert fairness is not None
    assert area <= fairness.area_mva2 < 1.05 * area


@pytest.mark.parametrize("name", ["P-E", "PQ-E", "EPQ"])
@pytest.mark.parametrize("case", CASES)
def test_both_sides_give_more(name: str, case: str) -> None:
    make, tap = CASES[case]
    site = make()
    inner = method(name, site)
    one, two = (Certified(inner, two_sided=x).step(seen(site)) for x in (False, True))
    assert one.fairness is not None
    assert two.fairness is not None
    if name == "P-E":
        assert two.fairness.export_mw > 1.01 * one.fairness.export_mw
        assert two.fairness.import_mw >= one.fairness.import_mw
    else:
        assert two.fairness.area_mva2 > one.fairness.area_mva2
    assert not attack(site, net33(tap), two).violated


def test_the_certificate_says_what_pandapower_finds() -> None:
    """All 4096 corners: the voltage closest to its limit and the greatest loading."""
    for case, (make, tap) in CASES.items():
        site = make()
        decision = Certified(method("PQ-E", site)).step(seen(site))
        found = attack(site, net33(tap), decision)
        assert found.cases == 4096
        low, high = site.limits.v_pu
        closest = low - found.under_v_pu if found.under_v_pu > found.over_v_pu else high + found.over_v_pu
        for certificate in decision.certificates.values():
            assert certificate.worst_v_pu == pytest.approx(closest, abs=1e-7), case
            assert certificate.worst_loading_percent is not None
            # far from its limit no loading is searched for to the last
            below = 100 + found.over_loading_percent - certificate.worst_loading_percent
            assert -1e-5 <= below < 0.5
            assert 2 < certificate.power_flows < 2000
            assert certificate.binding is not None
            assert "lower voltage at bus 17" in certificate.binding


def test_the_methods_words_stay() -> None:
    site = s1()
    inner = method("P-E", site)
    decision = Certified(inner).step(seen(site))
    assert (
        decision.certificates["der1"].binding
        == "export by loading of line:5, import by lower voltage at bus 17"
    )


def test_without_ratings_no_loading_is_certified() -> None:
    net = net33()
    net.line["max_i_ka"] = 99999.0
    site = site_of("unrated", net, battery_park([17, 24], [1.0, 1.0]), (0.9, 1.1))
    decision = Certified(method("PQ-E", site)).step(seen(site))
    assert decision.certificates["der1"].worst_loading_percent is None
    found = attack(site, net, decision)
    assert not found.violated
    assert found.over_loading_percent == -np.inf


def test_same_history_or_not_same_bytes() -> None:
    site = s2()
    one, other = (Certified(method("EPQ", site)) for _ in range(2))
    first = one.step(seen(site))
    one.step(seen(site, 0.9))
    for again in (one.step(seen(site)), other.step(seen(site))):
        assert dict(again.certificates) == dict(first.certificates)
        for name, region in again.regions.items():
            assert region.b.tobytes() == first.regions[name].b.tobytes()


def test_it_offers_what_a_method_offers() -> None:
    site = s3()
    inner = method("P-E", site, intervals=3)
    controller = Certified(inner)
    assert (controller.site, controller.rows, controller.intervals) == (site, inner.rows, 3)
    assert controller.sources == inner.sources  # type: ignore[attr-defined]
    assert not hasattr(Certified, "sources")  # it cannot be named in a scenario by itself
    room = controller.room(seen(site, intervals=3), intervals=[1])
    assert len(room.backgrounds) == 1
    assert controller.shapes(room, room.W).corners.tobytes() == inner.shapes(room, room.W).corners.tobytes()


def test_every_interval_is_kept() -> None:
    """Loads that rise: one envelope for now and for later, the hardest interval last."""
    site = s3()
    observation = seen(site, intervals=3)
    scales = (0.2, 1.0, 1.4)
    mean = np.stack([scale * observation.forecast.mean[0] for scale in scales])
    observation = replace(observation, forecast=replace(observation.forecast, mean=mean, std=0 * mean))
    decision = Certified(method("PQ-E", site, intervals=3)).step(observation)
    adversary = Adversary(net33())
    found = [attack(site, adversary, decision, observation.forecast.at(i)) for i in range(3)]
    assert not any(x.violated for x in found)
    assert max(x.under_v_pu for x in found) > -1e-3  # and the room is used
    alone = Certified(method("PQ-E", site)).step(observation)
    assert attack(site, adversary, alone, observation.forecast.at(2)).violated


def test_what_is_reserved_stays_free() -> None:
    site = s3()
    controller = Certified(method("PQ-E", site))
    room = controller.room(seen(site))
    reserve = np.zeros_like(room.W)
    n = len(site.network.buses)
    reserve[n : 2 * n] = 0.004
    room = replace(room, W=np.maximum(room.W - reserve, 0.0), reserve=reserve)
    decision = controller.decide(seen(site), room, controller.envelopes(room))
    least = (0.95**2 + 0.004) ** 0.5
    found = attack(site, net33(), decision)
    assert found.under_v_pu <= 0.95 - least + 1e-5
    assert found.under_v_pu > 0.95 - least - 1e-3


def test_a_reserved_current_stays_free() -> None:
    site = s1()
    controller = Certified(method("P-E", site))
    room = controller.room(seen(site))
    reserve = np.array([0.3 if kind == 2 else 0.0 for kind in controller.rows.kinds])
    room = replace(room, W=np.maximum(room.W - reserve, 0.0), reserve=reserve)
    decision = controller.decide(seen(site), room, controller.envelopes(room))
    rating = 3**0.5 * 12.66 * 0.15  # of the line that binds
    found = attack(site, net33(), decision)
    assert decision.certificates["der1"].binding.startswith("export by loading of line:5")  # type: ignore[union-attr]
    assert found.over_loading_percent <= -100 * 0.3 / rating + 0.01
    assert found.over_loading_percent > -100 * 0.3 / rating - 4


# Devices that are fixed


def test_fixed_envelopes_stay_as_they_are_and_count() -> None:
    site = s3()
    for name in ("P-E", "PQ-E", "EPQ"):
        controller = Certified(method(name, site))
        fixed = {"der5": np.array([[-0.3, -0.1], [0.4, -0.1], [0.4, 0.1], [-0.3, 0.1]])}
        room = controller.room(seen(site), fixed=fixed)
        found = controller.envelopes(room)
        assert found.origin is Origin.CERTIFIED
        position = list(site.devices).index("der5")
        assert set(map(tuple, found.shapes.corners[position].tolist())) == set(
            map(tuple, fixed["der5"].tolist())
        )
        regions = dict(zip(site.devices, found.shapes.regions, strict=True))
        everybody = Decision(time=seen(site).time, origin=found.origin, regions=regions)
        assert not attack(site, net33(), everybody).violated
        assert controller.decide(seen(site), room, found).regions.keys() == site.devices.keys() - {"der5"}


def test_only_the_background_is_forgiven_not_what_is_fixed() -> None:
    """Beyond a limit already, in AC alone: what a device still holds must not make it worse unseen."""
    site = losing()
    observation = seen(site)
    controller = Certified(method("PQ-E", site, when_broken="do_no_harm"))
    free = controller.envelopes(controller.room(observation, fixed={"der5": np.zeros((1, 2))}))
    assert free.origin is Origin.DEGRADED
    room = controller.room(observation, fixed={"der5": np.array([[-0.02, 0.0], [0.1, 0.0]])})
    with pytest.raises(Infeasible, match=r"lower voltage at bus 17: .* changed now; keep back more"):
        controller.envelopes(room)


def test_two_sided_corrections_are_attacked_harder() -> None:
    """Six large devices behind one transformer: voltages bend so much that no sensitivities lead to the worst
    joint choice."""
    net = pp.create_empty_network(sn_mva=1.0)
    pp.create_bus(net, 110.0)
    pp.create_buses(net, 3, 20.0)
    pp.create_ext_grid(net, 0, vm_pu=1.008397)
    pp.create_transformer(net, 0, 1, "25 MVA 110/20 kV")
    for a, b, length_km in ((1, 2, 2.364969), (1, 3, 1.122994)):
        pp.create_line_from_parameters(net, a, b, length_km, 0.16, 0.12, 273.0, 0.36)
    pp.create_loads(net, [1, 2], p_mw=[-1.654357, -2.197432], q_mvar=[-0.794921, -0.246559])
    s_mva = [11.002383, 5.986431, 11.316507, 9.849760, 10.803667, 6.372962]
    park = battery_park([1, 3, 3, 2, 3, 1], s_mva)
    site = site_of("six behind a transformer", net, park, (0.95, 1.05))
    decision = Certified(method("PQ-E", site), two_sided=True).step(seen(site))
    findings = attack(site, Adversary(net), decision)
    assert findings.cases >= 4**6  # all of them
    assert not findings.violated


def test_scaling_leaves_fixed_envelopes_alone() -> None:
    site = s3()
    controller = Certified(StaticLimits(site, part=1.0))
    fixed = {"der6": np.array([[-0.2, 0.0], [0.2, 0.0]])}
    found = controller.envelopes(controller.room(seen(site), fixed=fixed))
    assert found.shapes.corners[5, :, 0].tolist() == [-0.2, 0.2]
    assert found.shapes.corners[0, :, 0].max() < 1.2
    regions = dict(zip(site.devices, found.shapes.regions, strict=True))
    everybody = Decision(time=seen(site).time, origin=found.origin, regions=regions)
    attacked_ = attack(site, net33(), everybody)
    assert not attacked_.violated
    assert attacked_.under_v_pu > -1e-3


# The gate, and what it refuses


def test_what_no_room_makes_smaller_is_scaled() -> None:
    """Limits that do not look at the network: only the gate can make them safe, and no more than needed."""
    site = s3()
    for inner in (Unlimited(site), StaticLimits(site, part=1.0)):
        decision = Certified(inner).step(seen(site))
        binding = decision.certificates["der1"].binding
        assert binding is not None
        assert ", scaled by 0." in binding
        found = attack(site, net33(), decision)
        assert not found.violated
        assert found.under_v_pu > -1e-3


@dataclass
class Fragile:
    """A power flow without solution beyond a total injection or consumption."""

    inner: PowerFlow
    most_mw: float

    def __post_init__(self) -> None:
        self.buses, self.branches = self.inner.buses, self.inner.branches

    def solve(self, p_mw: Array, q_mvar: Array) -> Flows:
        flows = self.inner.solve(p_mw, q_mvar)
        lost = np.abs(p_mw.sum(axis=1)) > self.most_mw
        flows.converged[lost] = False
        for values in (flows.v_pu, flows.p_mw, flows.q_mvar, flows.loading_percent):
            values[lost] = np.nan
        return flows

    def at(self, positions: Mapping[str, int]) -> PowerFlow:
        return Fragile(self.inner.at(positions), self.most_mw)


@pytest.mark.parametrize("name", ["P-E", "PQ-E"])
def test_a_case_without_solution_is_a_violation(name: str) -> None:
    site = s3()
    assert site.power_flow is not None
    base = -sum(x.p_mw for x in site.loads.values())
    fragile = replace(site, power_flow=Fragile(site.power_flow, base + 0.5))
    decision = Certified(method(name, fragile)).step(seen(site))
    assert decision.fairness is not None
    assert corners(decision)[:, 0].sum() > -0.5 - 1e-9
    assert corners(decision)[:, 1].sum() < 2 * base + 0.5 + 1e-9
    nothing = replace(site, power_flow=Fragile(site.power_flow, base + 1e-9))
    with pytest.raises(Infeasible, match="no solution in the AC power flow however small"):
        Certified(method(name, nothing)).step(seen(site))
    with pytest.raises(Infeasible, match="no solution in the AC power flow before any device"):
        Certified(method(name, replace(site, power_flow=Fragile(site.power_flow, base / 2)))).step(seen(site))


def losing() -> Site:
    """The linear model leaves 0.0004 pu at full load, the AC power flow is 0.003 pu below."""
    site = s1()
    v2 = site.network.v2(*Certified(method("P-E", site)).rows.background({}))
    return replace(site, limits=Limits((float(v2.min() ** 0.5) - 4e-4, 1.1), 100.0))


def test_a_background_beyond_a_limit_in_ac_alone_is_infeasible() -> None:
    site = losing()
    method("P-E", site).step(seen(site))
    with pytest.raises(
        Infeasible, match=r"^lower voltage at bus 17: 0\.002\d* pu beyond in the AC .*relieve the network"
    ):
        Certified(method("P-E", site)).step(seen(site))


@pytest.mark.parametrize("name", ["P-E", "PQ-E"])
def test_do_no_harm_makes_nothing_worse_than_it_is_in_ac(name: str) -> None:
    for site, load_ in ((losing(), 1.0), (replace(s1(), limits=Limits((0.93, 1.1), 100.0)), 1.0)):
        decision = Certified(method(name, site, when_broken="do_no_harm")).step(seen(site, load_))
        assert decision.origin is Origin.DEGRADED
        adversary = Adversary(net33())
        alone = adversary.attack(background_of(site), [], site.limits.v_pu, 100.0)
        assert alone.under_v_pu > V_PU
        found = attack(site, adversary, decision)
        assert found.under_v_pu <= alone.under_v_pu + 1e-5
        assert found.over_loading_percent <= LOADING_PERCENT
        assert decision.fairness is not None
        assert decision.fairness.export_mw > 1.0


def test_an_overloaded_line_is_not_loaded_more() -> None:
    """A line that the background overloads: export relieves it, import would not."""
    net = net33()
    net.line.loc[5, "max_i_ka"] = 0.05
    site = site_of("tight", net, battery_park([6, 13, 31], [1.0, 1.0, 1.0]), (0.9, 1.1))
    for name in ("P-E", "PQ-E", "EPQ"):
        with pytest.raises(Infeasible, match="loading of line:5"):
            Certified(method(name, site)).step(seen(site))
        decision = Certified(method(name, site, when_broken="do_no_harm")).step(seen(site))
        alone = Adversary(net).attack(background_of(site), [], site.limits.v_pu, 100.0)
        found = attack(site, net, decision)
        assert alone.over_loading_percent > 5
        assert found.over_loading_percent <= alone.over_loading_percent + 0.01
        assert decision.fairness is not None
        assert decision.fairness.export_mw > 0.5


# Any grid


def test_a_line_may_be_drawn_the_other_way_round() -> None:
    """Loadings have a direction; which bus a line names first must not matter."""
    found = []
    for turned in ([], [2, 5, 18, 24]):
        net = net33()
        net.line.loc[turned, ["from_bus", "to_bus"]] = net.line.loc[turned, ["to_bus", "from_bus"]].to_numpy()
        net.line.loc[5, "max_i_ka"] = 0.12
        site = site_of("turned", net, battery_park([6, 13, 17, 24], [1.0] * 4), (0.9, 1.1), load=0.5)
        decision = Certified(method("EPQ", site)).step(seen(site))
        assert not attack(site, net, decision).violated
        found.append(corners(decision))
    assert found[0] == pytest.approx(found[1], abs=1e-3)


def test_devices_at_the_slack_bus_and_two_at_one_bus() -> None:
    net = net33()
    devices = {f"d{i}": battery(f"d{i}", bus, 1.0, 1.0) for i, bus in enumerate(("0", "17", "17", "24"))}
    site = site_of("corner", net, devices, (0.9, 1.1))
    for name in ("P-E", "PQ-E", "PQ-KL"):
        decision = Certified(method(name, site)).step(seen(site))
        assert not attack(site, net, decision).violated


def test_a_transformer_with_charging_cables() -> None:
    """Shunts and line charging: linear rows of both signs, AC voltages above the linear ones."""
    net = pp.create_empty_network(sn_mva=1.0)
    pp.create_buses(net, 2, 20.0)
    pp.create_buses(net, 4, 0.4)
    pp.create_ext_grid(net, 0, vm_pu=1.02)
    pp.create_line_from_parameters(net, 0, 1, 30.0, 0.2, 0.12, 260.0, 0.2)
    pp.create_transformer(net, 1, 2, "0.4 MVA 20/0.4 kV")
    for a, b in ((2, 3), (3, 4), (2, 5)):
        pp.create_line_from_parameters(net, a, b, 0.15, 0.2, 0.08, 260.0, 0.27)
    pp.create_loads(net, [3, 4, 5], p_mw=[0.03, 0.02, 0.05], q_mvar=[0.01, 0.005, 0.01])
    site = site_of("cable", net, battery_park([3, 4, 5, 1], [0.1, 0.05, 0.2, 1.0]), (0.95, 1.05))
    assert site.network.admits
    for name in METHODS:
        decision = Certified(method(name, site)).step(seen(site))
        assert not attack(site, net, decision).violated
        assert decision.fairness is not None
        assert decision.fairness.export_mw > 0.01


@pytest.mark.parametrize("limit", ["MANY_COEFFICIENTS", "MANY_DEVICES"])
def test_large_sites_are_searched_by_other_ways(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done from thousands of buses and devices on, on feeders where the adversary can judge it."""
    monkeypatch.setattr(ascent, limit, 0)
    for site, net in ((s1(), net33()), (feeder136(), net136())):
        for name in ("P-E", "PQ-E"):
            decision = Certified(method(name, site)).step(seen(site))
            assert decision.origin is Origin.CERTIFIED
            assert not attack(site, net, decision).violated
            usual = METHODS[name](site, price=False).step(seen(site)).fairness
            assert decision.fairness is not None
            assert usual is not None
            assert decision.fairness.import_mw > 0.7 * usual.import_mw


def test_the_search_finds_worst_corners_that_lie_far_apart() -> None:
    """Long thin polygons along lines of equal linear voltage, whose two ends both lower the AC voltage."""
    site = feeder136(0.3, seed=5)
    decision = Certified(method("EPQ", site)).step(seen(site))
    assert not attack(site, net136(), decision).violated


# Through the day


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", METHODS)
def test_a_rolled_day(grid: str, name: str) -> None:
    """Some hours of a day (all of it: `python -m benchmarks.adversary`)."""
    if grid == "simbench-envelopes":
        pytest.importorskip("simbench")
    count = 6 if grid == "ieee33-envelopes" else 2
    steps = spread_over(count, offset=list(METHODS).index(name))
    instants = list(attacked(day(grid), METHODS[name], steps))
    assert len(instants) == count
    for instant in instants:
        assert instant.decision is not None, instant.refused
        assert instant.findings is not None
        assert not instant.findings.violated, (instant.decision.time, instant.findings)


# Options and the scenario


def test_what_cannot_be_certified_is_refused() -> None:
    site = s1()
    inner = method("P-E", site)
    with pytest.raises(ValueError, match="'S1' has no AC power flow"):
        Certified(method("P-E", replace(site, power_flow=None)))
    with pytest.raises(ValueError, match="str is no method of operating envelopes"):
        Certified("P-E")  # type: ignore[arg-type]
    for option in ("rounds", "critical", "tolerance_v_pu", "tolerance_loading_percent"):
        with pytest.raises(ValueError, match=f"{option} 0 must be above 0"):
            Certified(inner, **{option: 0})
    other = PowerGridModelEngine(net136())
    with pytest.raises(ValueError, match="the power flow does not have 0; build both alike"):
        Certified(method("P-E", replace(site, power_flow=other)))


def dso(*changes: str) -> Any:
    draft = load("ieee33-quick", changes)
    (seat, *_) = build(draft, validate(draft)).seats
    return seat.controller


def test_the_scenario_says_certified() -> None:
    plain = dso("controllers.dso.certified=false")
    assert isinstance(plain, EnvelopeMethod)
    certified = dso("controllers.dso.certified=true")
    assert isinstance(certified, Certified)
    assert not certified.two_sided
    assert type(certified.inner) is type(plain)
    both = dso("controllers.dso.certified={two_sided: true, rounds: 3}")
    assert (both.two_sided, both.rounds) == (True, 3)


def test_the_scenario_refuses_what_has_no_envelopes() -> None:
    oltc = "{name: oltc, kind: tap-changer, at: source, step_percent: 1.25, positions: [-8, 8]}"
    changes = (
        "controllers.dso.uses=controllers.regulation:VoltageRegulation",
        "controllers.dso.certified=true",
        "controllers.dso.options={}",
        f"regulators=[{oltc}]",
    )
    with pytest.raises(ScenarioInvalid, match=r"certified.*VoltageRegulation is no method of operating env"):
        dso(*changes)
    for bad in ("{rounds: 0}", "{two: true}", "maybe"):
        with pytest.raises(ScenarioInvalid, match="certified"):
            dso(f"controllers.dso.certified={bad}")


def test_a_tree_without_devices_room_is_certified_as_nothing() -> None:
    """A shape of no size at all is checked like any other."""
    site = random_tree(3, 12, 3)
    controller = Certified(method("P-E", site))
    room = controller.room(seen(site))
    nothing = replace(room, W=np.zeros_like(room.W))
    found = controller.envelopes(nothing)
    assert isinstance(found.shapes, Shapes)
    assert found.fairness.export_mw == 0.0
    assert found.origin is Origin.CERTIFIED
