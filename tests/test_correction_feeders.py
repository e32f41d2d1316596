"""InterchangeCorrection on random feeders: inside the predictions, safe in AC, tight limits do not widen."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controllers import (
    ControlError,
    Decision,
    Forecast,
    Interval,
    Kind,
    Limits,
    Microgrid,
    Observation,
    Origin,
    Region,
    Site,
)
from controllers.interchange.branch_flow import BranchFlow
from controllers.interchange.correction import InterchangeCorrection
from tests.envelope_cases import NOON, STEP, random_tree

Array = npt.NDArray[np.float64]
SAFE = {Origin.CERTIFIED, Origin.REPAIRED}


def microgrids_at(site: Site, rng: np.random.Generator, count: int) -> Site:
    """The feeder with microgrids at random buses, several at one and some at the slack bus possible, in place
    of its devices; the first of them stays, the network operator's battery."""
    buses = (site.network.slack, *site.network.buses)
    grids = {
        f"mg{i}": Microgrid(
            name=f"mg{i}", bus=buses[int(rng.integers(len(buses)))], devices=(), tie_mw=3.0,
            q_mvar=(-float(rng.uniform(0, 0.5)), float(rng.uniform(0, 0.5))),
        )
        for i in range(count)
    }  # fmt: skip
    battery = next(iter(site.devices.items()))
    return replace(site, devices=dict([battery]), microgrids=grids)


def observed(site: Site, rng: np.random.Generator, intervals: int) -> Observation:
    """Loads as they are, random predictions, some of them missing, some microgrids not connected."""
    said, measured, connected = {}, {}, {}
    for name, grid in site.microgrids.items():
        low, plan, high = np.sort(rng.uniform(-1.5, 2.0, (intervals, 3)), axis=1).T
        regions = [
            {name: Region.box(p_mw=(float(a), float(b)), q_mvar=grid.q_mvar)}
            for a, b in zip(low, high, strict=True)
        ]
        later = tuple(
            Interval(start=NOON + (t + 1) * STEP, end=NOON + (t + 2) * STEP, regions=regions[t])
            for t in range(1, intervals)
        )
        connected[name] = bool(rng.random() > 0.1)
        measured[name] = float(plan[0])
        if rng.random() > 0.15:
            mean = plan[:, None]
            said[f"predicts {name}"] = Decision(
                time=NOON, origin=Origin.OPTIMAL, kind=Kind.PIC, regions=regions[0], later=later,
                plan=Forecast(NOON, STEP, (name,), mean, np.zeros_like(mean)),
            )  # fmt: skip
    mean = np.tile([load.p_mw for load in site.loads.values()], (intervals, 1))
    ((battery, device),) = site.devices.items()
    stored = float(rng.uniform(0, device.initial().e_mwh or 0.0)) * 2
    return Observation(
        time=NOON,
        forecast=Forecast(NOON, STEP, tuple(site.loads), mean, np.zeros_like(mean)),
        p_mw=measured,
        q_mvar=dict.fromkeys(measured, 0.05),
        e_mwh={battery: stored},
        connected=connected,
        said=said,
    )


def adversary(site: Site, observation: Observation, decision: Decision, limits: Limits) -> float:
    """How far the worst corner or point of the boxes is beyond a limit of voltage [pu], or infinite; by the
    site's power flow, whose voltages are compared with those of the branch flow equations."""
    network = site.network
    buses = [load.bus for load in site.loads.values()]
    p0 = network.total(buses, [load.p_mw for load in site.loads.values()])
    q0 = network.total(buses, [load.q_mvar for load in site.loads.values()])
    for name, setpoint in decision.setpoints.items():
        p0 = p0 + network.total([site.devices[name].bus], [setpoint.p_mw or 0.0])
        q0 = q0 + network.total([site.devices[name].bus], [setpoint.q_mvar or 0.0])
    boxes = np.array([region.limits("p_mw") for region in decision.regions.values()])
    inside = boxes[:, 0] + np.random.default_rng(3).random((50, len(boxes))) * np.ptp(boxes, axis=1)
    points = np.concatenate([np.array(list(product(*boxes))), inside])
    at = [site.microgrids[name].bus for name in decision.regions]
    q = q0 + network.total(at, [region.limits("q_mvar")[0] for region in decision.regions.values()])
    p = np.array([p0 + network.total(at, point) for point in points])
    assert site.power_flow is not None
    place = [site.power_flow.buses.index(bus) for bus in network.buses]
    both = np.zeros((2, len(points), len(site.power_flow.buses)))
    both[0][:, place], both[1][:, place] = p, q
    flows = site.power_flow.solve(both[0], both[1])
    if not flows.converged.all():
        return np.inf
    v = flows.v_pu[:, place]
    truth = np.sqrt(BranchFlow(network).solve(p, np.tile(q, (len(p), 1))).v)
    assert np.abs(v - truth).max() < 1e-7
    limited = np.flatnonzero(np.isfinite(network.rating_mva))
    rated = [site.power_flow.branches.index(network.branches[i]) for i in limited]
    loading = np.nanmax(flows.loading_percent[:, rated], initial=0.0) - limits.loading_percent
    return float(max(limits.v_pu[0] - v.min(), v.max() - limits.v_pu[1], loading / 1000))


def check(decision: Decision, observation: Observation, site: Site, limits: Limits) -> float:
    """The rules for one decision; its total width."""
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
        else:
            assert low == high == observation.p_mw[name]
        total += high - low
    if decision.origin in SAFE:
        assert adversary(site, observation, decision, limits) < 1e-4
    else:
        assert decision.origin is Origin.DEGRADED
        assert total == 0.0
        assert all("no safe capability" in str(c.binding) for c in decision.certificates.values())
    return total


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**31),
    buses=st.integers(10, 60),
    count=st.integers(1, 6),
    stress=st.floats(0.0, 1.1),
    options=st.fixed_dictionaries(
        {
            "horizon": st.sampled_from([1, 2]),
            "slack_mw": st.sampled_from([None, (-1.0, 30.0), (0.0, 5.0)]),
            "reserve_mw": st.sampled_from([None, (0.5, 0.5), (3.0, 3.0)]),
            "share": st.sampled_from(["total", "fair"]),
            "reserve_margin": st.sampled_from(["factor", "rigorous"]),
        }
    ),
)
def test_on_random_feeders_it_is_safe_and_inside_or_says_why(
    seed: int, buses: int, count: int, stress: float, options: dict[str, Any]
) -> None:
    rng = np.random.default_rng(seed)
    site = microgrids_at(random_tree(seed, buses, 1, stress), rng, count)
    observation = observed(site, rng, 2)
    widths = []
    for top in (1.05, 1.03):
        limits = Limits((0.95, top), 100.0)
        try:
            decision = InterchangeCorrection(replace(site, limits=limits), points=50, **options).step(
                observation
            )
        except ControlError:
            continue
        widths.append((check(decision, observation, site, limits), decision.origin))
    if (
        options["share"] == "total"
        and [o for _, o in widths] == [Origin.CERTIFIED] * 2
        and options["horizon"] == 1
    ):
        (wide, _), (tight, _) = widths
        assert tight <= wide + 1e-3
