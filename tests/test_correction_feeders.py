"""InterchangeCorrection on random feeders: inside the predictions, safe in AC, wider limits give no less.

Feeders, limits, predictions and what is missing are drawn. Whatever is published is attacked by pandapower
(`tests.interchange_adversary`), which shares no code with the correction.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

import numpy as np
import pandapower as pp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pandapower.auxiliary import pandapowerNet

from controllers import (
    Battery,
    ControlError,
    Decision,
    Forecast,
    Interval,
    Kind,
    Limits,
    Load,
    Microgrid,
    Observation,
    Origin,
    Region,
    Site,
)
from controllers.devices import still
from controllers.interchange.correction import InterchangeCorrection
from controllers.interchange.correction_program import relieved
from controllers.interchange.question import Case, Corrected
from simulators.network import network_of
from simulators.power_flow import PowerGridModelEngine
from tests.interchange_adversary import SLACK_MW, Allowed, Claim, Feeder, attack

NOON = datetime(2026, 6, 21, 12, tzinfo=UTC)
STEP = timedelta(minutes=15)
TIE_MW = 4.0
SAFE = {Origin.CERTIFIED, Origin.REPAIRED}
WORTH = 50.0
"""What a MW of corrected schedule costs in MW of width: the correction's default."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Limits of one draw."""

    v_pu: tuple[float, float]
    loading_percent: float
    slack_mw: tuple[float, float] | None
    reserve_mw: tuple[float, float] | None

    @property
    def allowed(self) -> Allowed:
        return Allowed(self.v_pu, self.loading_percent, self.slack_mw or (-np.inf, np.inf))


def random_net(rng: np.random.Generator, buses: int, stress: float) -> pandapowerNet:
    """A radial 11 kV feeder, behind a transformer at times.

    Args:
        buses: that are fed.
        stress: roughly, how much of a drop of 4 % in voltage the load takes.
    """
    net = pp.create_empty_network(sn_mva=1.0)
    pp.create_buses(net, buses + 1, vn_kv=11.0)
    pp.create_ext_grid(net, 0, vm_pu=float(rng.uniform(1.0, 1.03)))
    # A parent among the last few buses gives long feeders, among all of them bushy ones.
    reach = int(rng.integers(1, buses + 1))
    parents = [int(rng.integers(max(0, bus - reach), bus)) for bus in range(1, buses + 1)]
    first = 1
    if rng.random() < 0.25:
        net.bus.loc[0, "vn_kv"] = 33.0
        parents = [max(parent, 1) for parent in parents]
        pp.create_transformer_from_parameters(
            net, 0, 1, sn_mva=float(rng.uniform(10, 30)), vn_hv_kv=33.0, vn_lv_kv=11.0,
            vkr_percent=float(rng.uniform(0.3, 1.0)), vk_percent=float(rng.uniform(4.0, 10.0)),
            pfe_kw=float(rng.choice([0.0, 10.0])), i0_percent=float(rng.choice([0.0, 0.1])),
        )  # fmt: skip
        first = 2
    below, count = np.arange(first, buses + 1), buses + 1 - first
    pp.create_lines_from_parameters(
        net, parents[first - 1 :], below, length_km=1.0, r_ohm_per_km=rng.uniform(0.05, 0.8, count),
        x_ohm_per_km=rng.uniform(0.05, 0.8, count), c_nf_per_km=0.0, max_i_ka=1.0,
    )  # fmt: skip
    p = rng.uniform(0.0, 1.0, count) * (rng.random(count) < 0.7)
    p[int(rng.integers(count))] = 1.0  # at least one
    pp.create_loads(net, below, p_mw=p, q_mvar=p * rng.uniform(0.1, 0.6, count))
    unit = 0.02 / p.sum()
    net.load["scaling"] = unit
    pp.runpp(net, numba=False)
    drop = float(net.ext_grid.vm_pu.iloc[0] - net.res_bus.vm_pu.min())
    scale = unit * 0.04 * stress / drop
    net.load[["p_mw", "q_mvar"]] *= scale
    net.load["scaling"] = 1.0
    net.line["c_nf_per_km"] = float(rng.choice([0.0, 0.0, 200.0]))
    # Ratings of some lines, with room beyond the load's own flow.
    flow = np.hypot(net.res_line.p_from_mw, net.res_line.q_from_mvar).to_numpy() * scale / unit
    i_ka = (flow * rng.uniform(1.1, 4.0, count) + 0.2 * max(flow.max(), 1.0)) / (np.sqrt(3) * 11.0)
    net.line["max_i_ka"] = np.where(rng.random(count) < 0.6, i_ka, 99999.0)
    return net


def site_of(net: pandapowerNet, rng: np.random.Generator, microgrids: int) -> Site:
    """Microgrids at random buses, several at one and some at the slack bus possible; a battery or none."""
    network = network_of(net)
    buses = (network.slack, *network.buses)

    def anywhere() -> str:
        return buses[int(rng.integers(len(buses)))]

    grids = {
        f"mg{i}": Microgrid(
            name=f"mg{i}", bus=anywhere(), devices=(), tie_mw=TIE_MW,
            q_mvar=(-float(rng.uniform(0, 0.5)), float(rng.uniform(0, 0.5))),
        )
        for i in range(microgrids)
    }  # fmt: skip
    p_mw = float(rng.uniform(0.2, 1.5))
    battery = Battery(
        name="battery", bus=anywhere(), p_mw=p_mw, s_mva=1.2 * p_mw, e_mwh=2 * p_mw, e_min_mwh=0.2 * p_mw,
        e_start_mwh=p_mw, efficiency=(0.95, 0.95), weight=1.0, default=still(),
    )  # fmt: skip
    return Site(
        name="random",
        network=network,
        limits=Limits((0.95, 1.05), 100.0),
        every=STEP,
        devices={"battery": battery} if rng.random() < 0.7 else {},
        loads={
            f"load:{row.Index}": Load(f"load:{row.Index}", str(row.bus), -row.p_mw, -row.q_mvar)
            for row in net.load.itertuples()
        },
        power_flow=PowerGridModelEngine(net),
        microgrids=grids,
    )


def observed(site: Site, rng: np.random.Generator, intervals: int, size: float) -> Observation:
    """Loads as they are, random predictions of some `size` [MW], and now and then something missing."""
    said, measured, var, connected = {}, {}, {}, {}
    for name, grid in site.microgrids.items():
        low, plan, high = np.sort(size * rng.uniform(-1.0, 1.3, (intervals, 3)), axis=1).T
        regions = [
            {name: Region.box(p_mw=(float(a), float(b)), q_mvar=grid.q_mvar)}
            for a, b in zip(low, high, strict=True)
        ]
        later = [
            Interval(start=NOON + (t + 1) * STEP, end=NOON + (t + 2) * STEP, regions=regions[t])
            for t in range(1, intervals)
        ]
        lacking = rng.random(4) < (0.1, 0.15, 0.2, 0.2)
        connected[name] = not lacking[0]
        mean = plan[:, None]
        if not lacking[1]:
            said[f"predicts {name}"] = Decision(
                time=NOON, origin=Origin.OPTIMAL, kind=Kind.PIC, regions=regions[0], later=tuple(later),
                plan=Forecast(NOON, STEP, (name,), mean, np.zeros_like(mean)),
            )  # fmt: skip
        if not lacking[2]:
            measured[name] = float(plan[0])
        if not lacking[3]:
            var[name] = 0.05
    mean = np.tile([load.p_mw for load in site.loads.values()], (intervals, 1))
    batteries = [device for device in site.devices.values() if isinstance(device, Battery)]
    stored = {battery.name: battery.e_mwh * float(rng.uniform(0.1, 1)) for battery in batteries}
    names = list(site.loads)
    known = slice(int(rng.random() < 0.1), None)  # at times one of them is measured alone
    if known.start and rng.random() < 0.7:
        measured[names[0]] = site.loads[names[0]].p_mw
    return Observation(
        time=NOON,
        forecast=Forecast(NOON, STEP, tuple(names[known]), mean[:, known], np.zeros_like(mean[:, known])),
        p_mw=measured,
        q_mvar=var,
        e_mwh=stored if rng.random() > 0.03 else {},
        connected=connected,
        said=said,
    )


def asked(rng: np.random.Generator, imported: float) -> tuple[Asked, Asked]:
    """Random limits around an import [MW], and others of which none is tighter."""
    tight = Asked(
        v_pu=(float(rng.uniform(0.94, 0.97)), float(rng.uniform(1.025, 1.06))),
        loading_percent=float(rng.uniform(70, 110)),
        slack_mw=None if rng.random() < 0.4
        else (imported - float(rng.uniform(-0.2, 3)), imported + float(rng.uniform(-0.2, 3))),
        reserve_mw=None if rng.random() < 0.4 else (float(rng.uniform(0, 3)), float(rng.uniform(0, 3))),
    )  # fmt: skip
    more = rng.uniform(0, 1, 7) * (rng.random(7) < 0.6)
    if tight.slack_mw is not None and not tight.slack_mw[0] < tight.slack_mw[1]:
        tight = replace(tight, slack_mw=tight.slack_mw[::-1])
    wide = Asked(
        v_pu=(tight.v_pu[0] - 0.02 * more[0], tight.v_pu[1] + 0.02 * more[1]),
        loading_percent=tight.loading_percent + 30 * more[2],
        slack_mw=tight.slack_mw and (tight.slack_mw[0] - more[3], tight.slack_mw[1] + more[4]),
        reserve_mw=tight.reserve_mw and (tight.reserve_mw[0] + more[5], tight.reserve_mw[1] + more[6]),
    )
    return tight, wide


def claimed(site: Site, decision: Decision, leaving: bool) -> Claim:
    """All that a decision allows in its first interval."""
    fixed = [(load.bus, load.p_mw, load.q_mvar) for load in site.loads.values()]
    fixed += [
        (site.devices[name].bus, s.p_mw or 0.0, s.q_mvar or 0.0) for name, s in decision.setpoints.items()
    ]
    free = []
    for name, region in decision.regions.items():
        corners = [(p_mw, region.limits("q_mvar")[0]) for p_mw in region.limits("p_mw")]
        free.append((site.microgrids[name].bus, np.array(corners)))
    width = sum(float(np.ptp(corners[:, 0])) for _, corners in free)
    return Claim(decision.time, decision.origin, fixed, free, len(free) if leaving else 0, width)


def swing(feeder: Feeder, site: Site, decision: Decision, claim: Claim) -> tuple[float, float]:
    """How far the import rises above, and falls below, that of the corrected schedule [MW]."""
    assert decision.plan is not None
    base = dict(zip(decision.plan.names, decision.plan.mean[0].tolist(), strict=True))
    away = [np.zeros((1, 2))] if claim.leaving else []
    ways = [np.concatenate([corners, *away]) for _, corners in claim.free]
    cases = [[(base[name], corners[0, 1]) for name, (_, corners) in zip(base, claim.free, strict=True)]]
    cases += [[tuple(point) for point in chosen] for chosen in product(*ways)]
    p, q = np.zeros((2, len(cases), len(feeder.buses)))
    for bus, p_mw, q_mvar in claim.fixed:
        p[:, feeder.at[bus]] += p_mw
        q[:, feeder.at[bus]] += q_mvar
    for i, (bus, _) in enumerate(claim.free):
        p[:, feeder.at[bus]] += [case[i][0] for case in cases]
        q[:, feeder.at[bus]] += [case[i][1] for case in cases]
    imported = feeder.imported(p, q)
    return float(imported.max() - imported[0]), float(imported[0] - imported.min())


def worth(decision: Decision, observation: Observation) -> tuple[float, float] | None:
    """What is maximised, widths [MW] less what moving schedules costs, and the widths alone, over all
    intervals; `None` where one of them has no safe capability."""
    assert decision.plan is not None
    width = moved = 0.0
    for t, interval in enumerate([decision, *decision.later]):
        if any("no safe capability" in str(one.binding) for one in interval.certificates.values()):
            return None
        for name, region in interval.regions.items():
            low, high = region.limits("p_mw")
            width += high - low
            said = observation.said.get(f"predicts {name}")
            if said is not None and said.plan is not None and observation.connected[name]:
                i = decision.plan.names.index(name)
                moved += abs(float(decision.plan.mean[t, i] - said.plan.mean[t, 0]))
    return width - WORTH * moved, width


def check(decision: Decision, observation: Observation) -> None:
    """The rules that need no power flow."""
    total = 0.0
    assert decision.plan is not None
    base = dict(zip(decision.plan.names, decision.plan.mean[0].tolist(), strict=True))
    for name, region in decision.regions.items():
        low, high = region.limits("p_mw")
        assert low <= base[name] <= high
        if not observation.connected[name]:
            assert (low, high) == (0.0, 0.0)
        elif (said := observation.said.get(f"predicts {name}")) is not None:
            pic = said.regions[name].limits("p_mw")
            assert pic[0] <= low
            assert high <= pic[1]
        elif name in observation.p_mw:
            assert low == high == observation.p_mw[name]
        else:  # nobody knows anything of it: all that it could do is counted with
            assert (low, high) == (-TIE_MW, TIE_MW)
            continue
        total += high - low
    told = {name for name in observation.connected if f"predicts {name}" in observation.said}
    away = {name for name, there in observation.connected.items() if not there}
    if decision.origin is Origin.DEGRADED:
        assert total == 0.0
        assert decision.regions.keys() == told | away | (
            observation.connected.keys() & observation.p_mw.keys()
        )
        assert all("no safe capability" in str(c.binding) for c in decision.certificates.values())
    else:
        assert decision.origin in SAFE
        assert decision.regions.keys() == observation.connected.keys()


def hold(
    feeder: Feeder, site: Site, decision: Decision, asked: Asked, claim: Claim, e_mwh: Mapping[str, float]
) -> None:
    """Nobody finds an exchange that breaks a limit, or moves the import by more than the reserve."""
    worst = attack(feeder, claim, asked.allowed, points=50)
    assert not worst.violated, (asked, worst)
    if asked.reserve_mw is not None:
        rises, falls = swing(feeder, site, decision, claim)
        up, down = (sum(way) for way in zip((0.0, 0.0), *stored(site, decision, e_mwh), strict=True))
        assert rises <= asked.reserve_mw[0] + up + SLACK_MW
        assert falls <= asked.reserve_mw[1] + down + SLACK_MW


def stored(site: Site, decision: Decision, e_mwh: Mapping[str, float]) -> Iterator[tuple[float, float]]:
    """What each battery can give more and take more than its setpoint over the step [MW], by its rating and
    its energy."""
    hours = site.every.total_seconds() / 3600
    for name, setpoint in decision.setpoints.items():
        battery, p_mw = site.devices[name], setpoint.p_mw or 0.0
        assert isinstance(battery, Battery)
        charge, discharge = battery.efficiency
        highest = min(battery.p_mw, (e_mwh[name] - battery.e_min_mwh) * discharge / hours)
        lowest = max(-battery.p_mw, (e_mwh[name] - battery.e_mwh) / charge / hours)
        yield max(highest - p_mw, 0.0), max(p_mw - lowest, 0.0)


def admit(feeder: Feeder, site: Site, decision: Decision, asked: Asked, claim: Claim) -> None:
    """What is given up cannot be had: the schedule alone breaks a limit."""
    assert decision.plan is not None
    why = " ".join(str(one.binding) for one in decision.certificates.values())
    if "reserve" in why or claim.free == [] or len(claim.free) < len(decision.plan.names):
        return  # which no case of this attack shows
    worst = attack(feeder, claim, asked.allowed, points=0)
    assert (
        max(worst.under_v_pu, worst.over_v_pu) > 1e-5
        or worst.over_loading_percent > 1e-2
        or max(worst.under_import_mw, worst.over_import_mw) > 1e-4
    ), (why, worst)


OPTIONS = st.fixed_dictionaries(
    {
        "horizon": st.sampled_from([1, 2]),
        "share": st.sampled_from(["total", "total", "fair"]),
        "reserve_margin": st.sampled_from(["factor", "rigorous"]),
        "isolation_secure": st.sampled_from([False, False, True]),
        "energy_worth": st.sampled_from([0.0, 0.1]),
    }
)


@pytest.mark.slow
@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**31),
    buses=st.integers(10, 60),
    count=st.integers(1, 6),
    stress=st.floats(0.0, 1.1).map(lambda x: round(x, 3)),
    size=st.sampled_from([0.3, 1.0, 1.5, 3.0]),
    options=OPTIONS,
)
def test_on_random_feeders_it_is_safe_and_inside_or_says_why(
    seed: int, buses: int, count: int, stress: float, size: float, options: dict[str, Any]
) -> None:
    tight, *wide = drawn(seed, buses, count, stress, size, options)
    if tight[0] in SAFE:
        assert wide[0][0] in SAFE
    if options["share"] == "total" and tight[1] is not None:
        assert wide[0][1] is not None
        more = [b >= a - 1e-3 for a, b in zip(tight[1], wide[0][1], strict=True)]
        # A repair ends where the AC power flow is content, which need not be at the optimum.
        assert any(more) if Origin.REPAIRED in (tight[0], wide[0][0]) else more[0]


def drawn(
    seed: int, buses: int, count: int, stress: float, size: float, options: dict[str, Any]
) -> list[tuple[str, tuple[float, float] | None]]:
    """One draw held to all rules; what spoke and its worth, with the tight limits and with the wide ones."""
    rng = np.random.default_rng(seed)
    net = random_net(rng, buses, max(stress, 0.01))
    site = site_of(net, rng, count)
    observation = observed(site, rng, 2, size)
    found: list[tuple[str, tuple[float, float] | None]] = []
    for limits in asked(rng, float(net.load.p_mw.sum())):
        ours = replace(site, limits=Limits(limits.v_pu, limits.loading_percent))
        try:
            controller = InterchangeCorrection(
                ours, points=50, slack_mw=limits.slack_mw, reserve_mw=limits.reserve_mw, **options
            )
        except ValueError as error:  # charging that turns the signs of a response around
            if not str(error).startswith("branch flow: with the admittances"):
                raise
            return [("refused", None)]
        try:
            decision = controller.step(observation)
        except ControlError as error:
            found.append((error.outcome, None))
            continue
        check(decision, observation)
        found.append((str(decision.origin), worth(decision, observation)))
        claim = claimed(ours, decision, options["isolation_secure"])
        if decision.origin is Origin.DEGRADED:
            admit(Feeder(net), ours, decision, limits, claim)
        else:
            hold(Feeder(net), ours, decision, limits, claim, observation.e_mwh)
    return found


def test_shrinking_leads_nowhere_outside_though_numbers_are_rounded() -> None:
    rng = np.random.default_rng(5)
    H, N = 500, 4
    dn, base, up = np.sort(rng.normal(size=(3, H, N)), axis=0)
    none, few = np.zeros((H, N)), np.zeros((H, 1))
    case = Case(few, few, few[:, 0], base, dn, up, np.zeros((H, 2, N)), none, none, np.zeros(0))
    whole = Corrected(base, dn, up, none, few, few, few, few, np.zeros((H, 2)), 0.0)
    assert (base + (dn - base) < dn).any()  # what is to be avoided
    for factor in (np.ones(H), rng.random(H), np.nextafter(np.ones(H), 0), np.zeros(H)):
        less = relieved(case, whole, factor)
        assert (dn <= less.dn).all()
        assert (less.dn <= base).all()
        assert (base <= less.up).all()
        assert (less.up <= up).all()
        assert np.abs(less.up - less.dn - factor[:, None] * (up - dn)).max() < 1e-14
