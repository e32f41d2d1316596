"""Envelopes beside interchange capabilities: what each leaves the other, and that both together are safe."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pandapower.networks import case33bw

from controllers import (
    Battery,
    Decision,
    Device,
    FlexibleLoad,
    Infeasible,
    Interval,
    Kind,
    Limits,
    Observation,
    Origin,
    PvInverter,
    Region,
    Setpoint,
    Site,
)
from controllers.devices import still
from controllers.envelopes.allowable import AllowableRegion
from controllers.envelopes.beside import SLIGHT_V_PU, Beside, Connection, slight
from controllers.envelopes.certified import Certified
from controllers.envelopes.equal_boxes import EqualBoxes
from controllers.envelopes.equal_ranges import EqualRanges
from controllers.envelopes.max_min_ranges import MaxMinRanges
from controllers.envelopes.method import EnvelopeMethod
from controllers.envelopes.rolling import Rolling
from controllers.envelopes.static_limits import StaticLimits
from controllers.interchange.correction import InterchangeCorrection
from controllers.interchange.outside import left
from scenarios.build import build
from scenarios.check import ScenarioInvalid, validate
from scenarios.figures import rows
from scenarios.load import load
from scenarios.run import Exit
from tests.adversary import Adversary, background_of, corners_of
from tests.interchange_adversary import attacks, violations
from tests.interchange_cases import HOUR, reference_site, seen
from tests.rolled_day import METHODS
from tests.running import do
from tests.test_correction import WIDE, predicted

Array = npt.NDArray[np.float64]
SCENARIO = "ieee33-interchange-envelopes"
CAPABILITIES: Mapping[str, tuple[float, float, float]] = {
    "mg1": (-0.05, 0.3, 0.21), "mg2": (-0.3, 0.25, 0.1), "mg3": (0.1, 0.45, 0.18)
}  # fmt: skip
"""Least and greatest exchange [MW] and reactive power [Mvar]."""


def outside() -> dict[str, Device]:
    common: dict[str, Any] = {"weight": 1.0, "default": still()}
    return {
        "pv28": PvInverter(name="pv28", bus="28", p_mw=0.6, s_mva=0.6, **common),
        "bat20": Battery(
            name="bat20", bus="20", p_mw=0.5, s_mva=0.5, e_mwh=2.0, e_min_mwh=0.0, e_start_mwh=1.0,
            efficiency=(0.95, 0.95), **common,
        ),
        "ev23": FlexibleLoad(
            name="ev23", bus="23", p_mw=0.4, firm_mw=0.0, power_factor=1.0, interruptible=True, **common
        ),
    }  # fmt: skip


@cache
def joint_site() -> Site:
    """The reference site with customers outside its microgrids."""
    site = reference_site()
    return replace(site, devices={**site.devices, **outside()})


def allowed(
    observation: Observation,
    capabilities: Mapping[str, tuple[float, float, float]] = CAPABILITIES,
    *,
    ago: int = 0,
    intervals: int = 1,
) -> Decision:
    """A decision on capabilities, made some steps ago, with the same for each of its intervals."""
    made = observation.time - ago * HOUR
    regions = {
        name: Region.box(p_mw=(low, high), q_mvar=(q, q)) for name, (low, high, q) in capabilities.items()
    }
    later = tuple(
        Interval(start=made + (t + 1) * HOUR, end=made + (t + 2) * HOUR, regions=regions)
        for t in range(1, intervals)
    )
    return Decision(
        time=made, origin=Origin.CERTIFIED, kind=Kind.AIC, regions=regions, later=later,
        setpoints={"bess": Setpoint(p_mw=0.12, q_mvar=-0.05)},
    )  # fmt: skip


def at(hour: int, **options: Any) -> Observation:
    """One step before an hour, with capabilities heard."""
    observation = seen(hour, site=joint_site())
    return replace(observation, said={"correction": allowed(observation, **options)})


class TestWhatIsKnown:
    def test_a_capability_in_force_counts_with_all_its_corners(self) -> None:
        given = Beside(joint_site()).given(at(12), [0])
        assert given.keys() == {*CAPABILITIES, "bess"}
        for name, (low, high, q) in CAPABILITIES.items():
            assert given[name] == pytest.approx(np.array([(low, q), (high, q)]), abs=1e-12)
        assert given["bess"].tolist() == [[0.12, -0.05]]

    def test_an_older_decision_counts_for_the_interval_that_it_holds(self) -> None:
        """Its first interval is over, and so are its setpoints."""
        given = Beside(joint_site()).given(at(12, ago=1, intervals=2), [0])
        assert given.keys() == CAPABILITIES.keys()
        assert given["mg1"] == pytest.approx(np.array([(-0.05, 0.21), (0.3, 0.21)]))
        over = Beside(joint_site()).given(at(12, ago=2, intervals=2), [0])
        assert over["mg1"][:, 0].tolist() == [-0.8, 0.8, 0.8, -0.8]

    def test_a_capability_for_one_interval_says_nothing_of_the_next(self) -> None:
        given = Beside(joint_site()).given(at(12), [0, 1])
        tie = joint_site().microgrids["mg1"]
        assert (given["mg1"].min(axis=0), given["mg1"].max(axis=0)) == (
            pytest.approx([-tie.tie_mw, tie.q_mvar[0]]),
            pytest.approx([tie.tie_mw, tie.q_mvar[1]]),
        )

    def test_without_any_a_connected_microgrid_may_do_all_that_its_tie_carries(self) -> None:
        none = replace(at(12), said={})
        given = Beside(joint_site()).given(none, [0])
        assert given.keys() == joint_site().microgrids.keys()
        for name, corners in given.items():
            grid = joint_site().microgrids[name]
            wanted = {(p, q) for p in (-grid.tie_mw, grid.tie_mw) for q in grid.q_mvar}
            assert {tuple(c) for c in corners.tolist()} == wanted

    def test_an_island_exchanges_nothing(self) -> None:
        island = replace(at(12), said={}, connected={"mg2": False})
        given = Beside(joint_site()).given(island, [0])
        assert given["mg2"].tolist() == [[0.0, 0.0]]
        assert len(given["mg1"]) == 4

    def test_several_capabilities_intersect_and_none_in_common_is_said(self) -> None:
        observation = at(12)
        other = allowed(observation, {"mg1": (0.1, 0.9, 0.21)})
        both = replace(observation, said={**observation.said, "other": other})
        assert Beside(joint_site()).given(both, [0])["mg1"][:, 0].tolist() == [0.1, 0.3]
        apart = replace(
            observation, said={**observation.said, "other": allowed(observation, {"mg1": (0.4, 0.9, 0.21)})}
        )
        with pytest.raises(Infeasible, match="microgrid 'mg1': its interchange capability"):
            Beside(joint_site()).given(apart, [0])

    def test_a_connection_is_what_a_tie_and_an_offer_allow(self) -> None:
        grid = joint_site().microgrids["mg3"]
        one = Connection(grid)
        assert (one.name, one.bus, one.rating_mw) == ("mg3", "32", 0.9)
        assert one.limits(one.initial(), None, 60.0).limits("p_mw") == (-0.9, 0.9)
        assert one.default.limits("q_mvar") == (-0.3, 0.3)
        assert (one.wish(0.7), one.reactive(0.5)) == (0.0, 0.0)
        assert one.advance(one.initial(), 0.1, 0.2, 60.0).q_mvar == 0.2


def enumerated(rows: AllowableRegion, observation: Observation) -> Array:
    """(rows,) least room over all joint corners of the capabilities, by the network's own states."""
    site = joint_site()
    p0, q0 = rows.background(observation.forecast.at(0))
    least = np.full(len(rows), np.inf)
    for ends in product(*([low, high] for low, high, _ in CAPABILITIES.values())):
        p, q = p0.copy(), q0.copy()
        for (name, (_, _, q_mvar)), p_mw in zip(CAPABILITIES.items(), ends, strict=True):
            bus = site.network.index(site.microgrids[name].bus)
            p[bus] += p_mw
            q[bus] += q_mvar
        bess = site.network.index("5")
        p[bess] += 0.12
        q[bess] -= 0.05
        least = np.minimum(least, rows.W(p, q))
    return least


class TestMargins:
    def test_the_room_is_the_least_over_all_exchanges(self) -> None:
        """The oracle solves the linear network anew for every joint corner."""
        method, observation = EqualRanges(joint_site()), at(3)
        room = method.room(observation)
        assert pytest.approx(enumerated(method.rows, observation), abs=1e-9) == room.W
        assert room.given.keys() == room.fixed.keys() == {*CAPABILITIES, "bess"}

    @pytest.mark.parametrize("method", [EqualRanges, EqualBoxes, MaxMinRanges])
    def test_every_row_holds_for_exchanges_and_envelopes_together(self, method: type[EnvelopeMethod]) -> None:
        controller, observation = method(joint_site()), at(3)
        decision = controller.step(observation)
        assert decision.regions.keys() == outside().keys()
        worst = -enumerated(controller.rows, observation)
        names = list(controller.site.devices)
        A, B = controller.rows.columns([names.index(name) for name in decision.regions])
        for i, region in enumerate(decision.regions.values()):
            corners = region.over(("p_mw", "q_mvar")).vertices()
            worst += (A[:, [i]] * corners[:, 0] + B[:, [i]] * corners[:, 1]).max(axis=1)
        assert worst.max() == pytest.approx(0.0, abs=1e-9)  # no limit exceeded, and one reached

    def test_fairness_counts_the_devices_outside_alone(self) -> None:
        decision = MaxMinRanges(joint_site()).step(at(3))
        assert decision.fairness is not None
        export = sum(region.limits("p_mw")[1] for region in decision.regions.values())
        assert decision.fairness.export_mw == pytest.approx(export)
        each = np.array([region.limits("p_mw")[1] for region in decision.regions.values()])
        assert decision.fairness.jain_export == pytest.approx(each.sum() ** 2 / (3 * (each**2).sum()))
        assert decision.fairness.price is not None

    def test_a_slight_excess_of_others_counts_as_on_the_limit(self) -> None:
        """Whoever allowed the exchanges has a tolerance, and looked at AC loadings, not at edges."""
        site = joint_site()
        rows = EqualRanges(site).rows
        lowest = float(np.sqrt((site.limits.v_pu[0] ** 2 + enumerated(rows, at(3))[32:64]).min()))
        for below, fits in ((0.9 * SLIGHT_V_PU, True), (1.5 * SLIGHT_V_PU, False)):
            tight = replace(site, limits=replace(site.limits, v_pu=(lowest + below, 1.05)))
            method = EqualRanges(tight)
            if fits:
                room = method.room(at(3))
                assert (room.W.min(), room.broken) == (0.0, None)
                continue
            with pytest.raises(Infeasible, match="with the microgrids' exchanges"):
                method.room(at(3))

    def test_what_is_slight_follows_from_the_polygon_and_the_voltage(self) -> None:
        site = joint_site()
        network = replace(site.network, rating_mva=np.where(np.arange(32) == 3, 2.0, np.inf))
        rows = AllowableRegion(replace(site, network=network))
        found = slight(rows)
        assert found[0] == pytest.approx(2 * 1.05 * 3e-5)
        assert found[32] == pytest.approx(2 * 0.95 * 3e-5)
        # 2 MVA at 1.05 pu is a loading of 100 %; the edges lie at 2 cos(pi / 16) MVA.
        assert found[64:] == pytest.approx(np.full(16, 2 * (1.05 - np.cos(np.pi / 16)) + 2 * 3e-4))


class TestMethodsBesideMicrogrids:
    def test_envelopes_end_where_the_next_capabilities_begin(self) -> None:
        observation = at(3, intervals=4)
        for intervals in (1, 3):
            decision = EqualRanges(joint_site(), intervals=intervals).step(observation)
            assert decision.until == observation.time + (intervals + 1) * HOUR
        alone = replace(joint_site(), microgrids={}, devices=outside())
        assert EqualRanges(alone).step(replace(observation, said={})).until is None

    def test_nobody_shares_where_nothing_is_known_of_the_exchanges(self) -> None:
        with pytest.raises(Infeasible, match=r"lower voltage at bus .* with the microgrids' exchanges"):
            EqualRanges(joint_site()).step(replace(at(18), said={}))

    def test_fixed_limits_are_for_devices_outside(self) -> None:
        decision = StaticLimits(joint_site()).step(replace(at(3), said={}))
        assert decision.regions.keys() == {*outside(), "bess"}
        assert decision.until is None

    def test_a_site_that_has_devices_in_microgrids_alone_is_refused(self) -> None:
        site = reference_site()
        site = replace(site, devices={n: d for n, d in site.devices.items() if n != "bess"})
        with pytest.raises(ValueError, match="no devices outside microgrids to share among"):
            EqualRanges(site)

    def test_where_all_are_told_setpoints_there_is_nothing_to_share(self) -> None:
        with pytest.raises(Infeasible, match="every device outside microgrids is told a setpoint"):
            EqualRanges(reference_site()).step(at(3))

    def test_announcing_ahead_is_refused(self) -> None:
        with pytest.raises(ValueError, match="cannot be kept beside microgrids"):
            Rolling(Certified(EqualRanges(joint_site())))

    def test_the_certificate_tries_the_exchanges_too(self) -> None:
        """The voltage that it found worst is that of all joint corners, and no envelope alone gives it."""
        observation = at(4)
        decision = Certified(MaxMinRanges(joint_site(), caps=True)).step(observation)
        assert decision.origin is Origin.CERTIFIED
        (found,) = {certificate.worst_v_pu for certificate in decision.certificates.values()}
        ranges = {name: region.limits("p_mw") for name, region in decision.regions.items()}
        lowest = lowest_voltage(observation, observation.said["correction"], ranges)
        assert found == pytest.approx(lowest, abs=1e-7)
        middle = {name: ((low + high) / 2,) * 2 + (q,) for name, (low, high, q) in CAPABILITIES.items()}
        assert lowest_voltage(observation, allowed(observation, middle), ranges) > lowest + 0.005

    def test_envelopes_that_count_on_the_schedules_are_not_safe(self) -> None:
        """What microgrids may do beside their schedules then breaks the limit that the envelopes reach."""
        site = replace(joint_site(), limits=Limits((0.963, 1.05), 100.0))
        observation = at(4)
        middle = {name: ((low + high) / 2,) * 2 + (q,) for name, (low, high, q) in CAPABILITIES.items()}
        capabilities = observation.said["correction"]
        schedules = allowed(observation, middle)
        lowest = {}
        for label, heard in (("aware", capabilities), ("unaware", schedules)):
            decision = Certified(MaxMinRanges(site, caps=True)).step(
                replace(observation, said={"correction": heard})
            )
            ranges = {name: region.limits("p_mw") for name, region in decision.regions.items()}
            lowest[label] = lowest_voltage(observation, capabilities, ranges)
        assert lowest["aware"] == pytest.approx(0.963, abs=2e-5)
        assert lowest["unaware"] < 0.9625


class TestRoomLeftByTheCorrection:
    @pytest.mark.parametrize(
        ("device", "part", "box"),
        [
            ("pv28", 0.0, ((0.0, 0.0), (0.0, 0.0))),
            ("pv28", 0.5, ((0.0, 0.3), (0.0, 0.0))),
            ("bat20", 0.4, ((-0.2, 0.2), (0.0, 0.0))),
            ("ev23", 0.25, ((-0.1, 0.0), (0.0, 0.0))),
        ],
    )
    def test_it_is_a_part_of_the_rating_the_ways_that_a_device_can_go(
        self, device: str, part: float, box: tuple[tuple[float, float], ...]
    ) -> None:
        assert left(outside()[device], part) == box

    def test_a_default_is_always_left(self) -> None:
        wide = Region.box(p_mw=(-0.1, 0.2), q_mvar=(-0.05, 0.15))
        assert left(replace(outside()["bat20"], default=wide), 0.0) == ((-0.1, 0.2), (-0.05, 0.15))  # type: ignore[type-var]
        load = FlexibleLoad(
            name="l", bus="3", p_mw=0.5, firm_mw=0.1, power_factor=0.8, interruptible=False, weight=1.0,
            default=Region.box(p_mw=(-0.5, 0.0), q_mvar=(-0.6, 0.6)),
        )  # fmt: skip
        # It keeps its power factor, so it draws no more than 0.75 Mvar a MW, and never injects any.
        (p_low, p_high), (q_low, q_high) = left(load, 0.0)
        assert (p_low, p_high, q_high) == (-0.5, 0.0, 0.0)
        assert q_low == pytest.approx(-0.375)

    def test_a_default_without_end_is_refused(self) -> None:
        endless = Region(("p_mw", "q_mvar"), np.array([[1.0, 0.0]]), np.array([0.0]))
        site = joint_site()
        site = replace(
            site, devices={**site.devices, "pv28": replace(outside()["pv28"], default=endless)}  # type: ignore[type-var]
        )  # fmt: skip
        with pytest.raises(ValueError, match="default of device 'pv28' has no end"):
            InterchangeCorrection(site, outside_part=0.3, batteries=["bess"])

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"outside_part": 1.2}, "outside_part 1.2 is no part of a rating"),
            ({"outside_part": -0.1}, "outside_part -0.1 is no part"),
            (
                {"batteries": ["bess", "mg1_esd"]},
                r"\['mg1_esd'\] are not there outside .* known: bess, bat20",
            ),
        ],
    )
    def test_options_that_mean_nothing_are_refused(self, options: dict[str, Any], words: str) -> None:
        with pytest.raises(ValueError, match=words):
            InterchangeCorrection(joint_site(), **options)

    def test_the_more_is_left_the_narrower_the_capabilities(self) -> None:
        widths = [width(corrected(18, part)) for part in (0.0, 0.3, 0.8)]
        assert widths[0] > widths[1] + 0.02 > widths[2] + 0.04

    def test_capabilities_hold_wherever_the_devices_are_in_what_is_left(self) -> None:
        """All joint corners by the power flow of the site, and the worst is on the limit."""
        ranges = {"pv28": (0.0, 0.18), "bat20": (-0.15, 0.15), "ev23": (-0.12, 0.0)}
        assert lowest_voltage(at(18), corrected(18, 0.3), ranges) == pytest.approx(0.95, abs=5e-5)
        assert lowest_voltage(at(18), corrected(18, None), ranges) < 0.9495  # it counted on where they were

    @pytest.mark.parametrize("margin", ["factor", "rigorous"])
    def test_reserves_are_for_the_microgrids_alone(self, margin: Any) -> None:
        """Where reserves limit the capabilities, what is left to others takes nothing of them but losses."""
        site = replace(joint_site(), limits=Limits((0.8, 1.2), 100.0))
        widths = []
        for part in (0.0, 0.6):
            decision = InterchangeCorrection(
                site, horizon=1, outside_part=part, batteries=["bess"], reserve_mw=(0.2, 0.15),
                reserve_margin=margin,
            ).step(said_before(12))  # fmt: skip
            assert decision.origin in (Origin.CERTIFIED, Origin.REPAIRED)
            assert "reserve" in (decision.certificates["mg1"].binding or "")
            widths.append(width(decision))
        assert widths[1] == pytest.approx(widths[0], abs=0.05)
        assert widths[0] > 0.3

    def test_an_envelope_that_still_stands_is_heard(self) -> None:
        """One that was made two steps ago for three intervals; one that has ended counts no more."""
        observation = said_before(18)
        region = {"bat20": Region.box(p_mw=(-0.45, 0.1), q_mvar=(0.0, 0.0))}
        wide = width(corrects(0.0).step(observation))
        for until, narrower in ((2, True), (1, False)):
            standing = Decision(
                time=observation.time - HOUR, origin=Origin.CERTIFIED, regions=region,
                until=observation.time + until * HOUR,
            )  # fmt: skip
            heard = replace(observation, said={**observation.said, "envelopes": standing})
            found = width(corrects(0.0).step(heard))
            assert (found < wide - 0.01) is narrower
            assert found == pytest.approx(wide, abs=1e-9) or narrower

    def test_where_nobody_moves_devices_the_answer_is_as_before(self) -> None:
        """Without the option they are where they are forecast or measured."""
        site = reference_site()
        observation = seen(18, site=site)
        observation = replace(observation, said=predicted(observation.time, WIDE))
        one = InterchangeCorrection(site, horizon=1, batteries=["bess"]).step(observation)
        other = InterchangeCorrection(site, horizon=1).step(observation)
        for name, region in one.regions.items():
            assert (region.b == other.regions[name].b).all()


@cache
def corrects(part: float | None) -> InterchangeCorrection:
    return InterchangeCorrection(joint_site(), horizon=1, outside_part=part, batteries=["bess"])


def said_before(hour: int) -> Observation:
    """Wide predictions, and sun forecast where there is any."""
    observation = seen(hour, site=joint_site())
    return replace(observation, said=predicted(observation.time, WIDE))


@cache
def corrected(hour: int, part: float | None) -> Decision:
    return corrects(part).step(said_before(hour))


def width(decision: Decision) -> float:
    return sum(high - low for low, high in (r.limits("p_mw") for r in decision.regions.values()))


def lowest_voltage(
    observation: Observation, decision: Decision, ranges: Mapping[str, tuple[float, float]]
) -> float:
    """The least voltage over all joint ends of capabilities and devices."""
    site = joint_site()
    engine = site.power_flow
    assert engine is not None
    bus = {name: i for i, name in enumerate(engine.buses)}
    p0, q0 = np.zeros((2, len(bus)))
    known = observation.forecast.at(0)
    for one in site.loads.values():
        p0[bus[one.bus]] += known[one.name]
        q0[bus[one.bus]] += one.reactive(known[one.name])
    for name, setpoint in decision.setpoints.items():
        p0[bus[site.devices[name].bus]] += setpoint.p_mw or 0.0
        q0[bus[site.devices[name].bus]] += setpoint.q_mvar or 0.0
    free = [(site.microgrids[n].bus, *r.limits("p_mw")) for n, r in decision.regions.items()]
    free += [(site.devices[n].bus, low, high) for n, (low, high) in ranges.items()]
    for name, region in decision.regions.items():
        q0[bus[site.microgrids[name].bus]] += region.limits("q_mvar")[0]
    ends = np.array(list(product(*((low, high) for _, low, high in free))))
    p, q = np.tile(p0, (len(ends), 1)), np.tile(q0, (len(ends), 1))
    for i, (name, _, _) in enumerate(free):
        p[:, bus[name]] += ends[:, i]
    return float(engine.solve(p, q).v_pu.min())


@pytest.mark.parametrize("hour", [3, 13, 18])
@pytest.mark.parametrize("method", METHODS)
def test_whatever_the_method_both_together_are_safe(method: str, hour: int) -> None:
    """Capabilities as they are corrected, envelopes that hear them, and a search for the worst of both by
    pandapower's own matrices."""
    site, observation = joint_site(), said_before(hour)
    capabilities = corrected(hour, 0.3)
    observation = replace(observation, said={**observation.said, "correction": capabilities})
    envelopes = Certified(METHODS[method](site)).step(observation)
    assert envelopes.origin is Origin.CERTIFIED
    assert envelopes.regions.keys() == outside().keys()
    background = background_of(site, observation.forecast.at(0))
    for name, setpoint in capabilities.setpoints.items():
        p, q = background.get(site.devices[name].bus, (0.0, 0.0))
        background[site.devices[name].bus] = p + (setpoint.p_mw or 0.0), q + (setpoint.q_mvar or 0.0)
    corners = [
        (site.microgrids[name].bus, region.over(("p_mw", "q_mvar")).vertices())
        for name, region in capabilities.regions.items()
    ]
    both = [*corners, *corners_of(site, envelopes.regions)]
    found = adversary().attack(background, both, *limits_of(site))
    assert not found.violated, found
    assert max(found.under_v_pu, found.over_v_pu) > -0.01  # a limit is near


@cache
def adversary() -> Adversary:
    return Adversary(case33bw())


def limits_of(site: Site) -> tuple[tuple[float, float], float]:
    return site.limits.v_pu, site.limits.loading_percent


UNAWARE = '''
from dataclasses import replace

from controllers import Kind, Region
from controllers.envelopes.certified import Certified
from controllers.envelopes.max_min_ranges import MaxMinRanges


class Unaware:
    """Certified envelopes that take each microgrid to be on its schedule."""

    sources = ("a mistake",)

    def __init__(self, site):
        self.inner = Certified(MaxMinRanges(site, caps=True))

    def step(self, observation):
        said = dict(observation.said)
        for name, decision in said.items():
            if decision.kind is Kind.AIC:
                plan = dict(zip(decision.plan.names, decision.plan.mean[0].tolist()))
                points = {
                    grid: Region.box(p_mw=(plan[grid], plan[grid]), q_mvar=region.limits("q_mvar"))
                    for grid, region in decision.regions.items()
                }
                said[name] = replace(decision, regions=points)
        return self.inner.step(replace(observation, said=said))
'''


@pytest.fixture(scope="module")
def rolled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a day's run."""
    result = asyncio.run(do(SCENARIO, tmp_path_factory.mktemp("day")))
    assert result.exit is Exit.HELD, result.why
    return result.directory


class TestADay:
    """The attack shares no code with who made or checked the regions; see `tests.interchange_adversary`."""

    def test_every_combination_of_exchanges_and_envelope_points_keeps_the_limits(self, rolled: Path) -> None:
        found = list(attacks(rolled))
        assert len(found) == 24
        # 2 ends of 3 microgrids, 2 of 5 ranges, and 200 points between; fewer where a range is a point
        assert max(one.cases for one in found) == 2**8 + 200
        assert violations(found) == 0
        assert max(one.under_v_pu for one in found) == pytest.approx(0.0, abs=2e-5)  # the limit is reached
        beyond = list(attacks(rolled, kind="pic", points=0))
        assert violations(beyond) >= 10  # and exceeded by what was predicted

    def test_both_bind(self, rolled: Path) -> None:
        """Capabilities are cut by the network at some hours, envelopes by the same limit at some."""
        cut: dict[str, set[Any]] = {"aic": set(), "envelope": set()}
        for row in rows(rolled, "regions", ["issued_at", "kind", "binding"]):
            if row["kind"] in cut and "lower voltage at bus" in (row["binding"] or ""):
                cut[row["kind"]].add(row["issued_at"])
        assert len(cut["aic"]) >= 8
        assert len(cut["envelope"] & cut["aic"]) >= 4

    def test_envelopes_and_capabilities_are_for_the_same_interval(self, rolled: Path) -> None:
        spans: dict[Any, set[tuple[Any, Any]]] = {}
        for row in rows(rolled, "regions", ["issued_at", "kind", "valid_from", "valid_until"]):
            first = row["valid_from"] == row["issued_at"] + HOUR
            if row["kind"] in ("aic", "envelope") and first:
                spans.setdefault(row["issued_at"], set()).add((row["valid_from"], row["valid_until"]))
        assert len(spans) == 24
        for issued_at, found in spans.items():
            assert found == {(issued_at + HOUR, issued_at + 2 * HOUR)}

    async def test_envelopes_that_know_nothing_of_the_capabilities_are_not_safe(self, tmp_path: Path) -> None:
        (tmp_path / "unaware.py").write_text(UNAWARE)
        result = await do(
            SCENARIO,
            tmp_path,
            f"controllers.envelopes.uses={tmp_path}/unaware.py:Unaware",
            "controllers.envelopes.certified=null",
            "controllers.envelopes.options={}",
            "start=2026-06-21T06:00:00Z",
            "steps=4",
        )
        assert violations(list(attacks(result.directory))) >= 2


def test_a_correction_that_leaves_no_room_for_envelopes_is_refused() -> None:
    draft = load(SCENARIO, ["controllers.correction.options.outside_part=null"])
    with pytest.raises(ScenarioInvalid, match=r"no room for pv21, .*, ev23 under envelopes"):
        build(draft, validate(draft))
    without = [part for part in draft.raw["controllers"] if part["name"] != "envelopes"]
    alone = replace(draft, raw={**draft.raw, "controllers": without})
    assert len(build(alone, validate(alone)).seats) == len(without) == 7
