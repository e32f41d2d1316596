"""Dispatch inside an available capability: with and without one, and where it cannot be kept."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from controllers import (
    Battery,
    Decision,
    Device,
    DeviceState,
    FlexibleLoad,
    Forecast,
    Infeasible,
    Interval,
    Kind,
    Observation,
    Origin,
    PvInverter,
    Region,
    Site,
    StaticVarCompensator,
)
from controllers.devices import still
from controllers.interchange.dispatch import MicrogridDispatch
from controllers.interchange.prediction import InterchangePrediction
from tests.interchange_cases import FIGURES, HOUR, reference_site, seen
from tests.microgrid_cases import engine, load, small, store, told

NAMES = tuple(FIGURES)


def allowed(
    observation: Observation,
    name: str,
    *boxes: tuple[float, float],
    q_mvar: float | tuple[float, float] = 0.0,
    plan: list[float] | None = None,
) -> Observation:
    """The observation, and in it a capability for the coming intervals, with a plan if one is given."""
    q = (q_mvar, q_mvar) if isinstance(q_mvar, float) else q_mvar
    regions = [{name: Region.box(p_mw=box, q_mvar=q)} for box in boxes]
    every = observation.forecast.every
    starts = [observation.time + (i + 1) * every for i in range(len(boxes) + 1)]
    values = np.array(plan or []).reshape(-1, 1)
    decision = Decision(
        time=observation.time,
        origin=Origin.CERTIFIED,
        kind=Kind.AIC,
        regions=regions[0],
        later=tuple(
            Interval(start=starts[i], end=starts[i + 1], regions=regions[i]) for i in range(1, len(boxes))
        ),
        plan=None if plan is None else Forecast(observation.time, every, (name,), values, 0 * values),
    )
    return replace(observation, said={**observation.said, "dso": decision})


def dispatcher(name: str = "mg1", site: Site | None = None, **options: Any) -> MicrogridDispatch:
    return MicrogridDispatch(site or reference_site(), microgrid=name, **options)


def performed(site: Site, name: str, decision: Decision, observation: Observation) -> dict[str, DeviceState]:
    """What the devices do of it where everything is as forecast: their own limits, their own advance."""
    done, forecast = {}, observation.forecast.at(0)
    for device in (site.devices[n] for n in site.microgrids[name].devices):
        drive = abs(forecast[device.name]) / device.rating_mw if device.name in forecast else None
        state = DeviceState(observation.p_mw.get(device.name, 0.0), 0.0, observation.e_mwh.get(device.name))
        target = decision.setpoints[device.name]
        p_mw = device.wish(drive) if target.p_mw is None else target.p_mw
        q_mvar = device.reactive(p_mw) if target.q_mvar is None else target.q_mvar
        every_s = observation.forecast.every / timedelta(seconds=1)
        able = device.limits(state, drive, every_s)
        point = able.nearest([p_mw, q_mvar])
        if not isinstance(device, FlexibleLoad):  # which is told its rating, and takes its demand
            assert np.abs(point - [p_mw, q_mvar]).max() < 1e-7, (device.name, point, p_mw, q_mvar)
        done[device.name] = device.advance(state, float(point[0]), float(point[1]), every_s)
    return done


def exchange(done: dict[str, DeviceState]) -> tuple[float, float]:
    return sum(s.p_mw for s in done.values()), sum(s.q_mvar for s in done.values())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("k", [1, 8, 13, 19])
def test_the_devices_themselves_keep_it_inside_the_capability(name: str, k: int) -> None:
    """As the devices' own limits let them act on their setpoints, P and Q."""
    site, observation = reference_site(), seen(k)
    free = dispatcher(name).dispatch(allowed(observation, name, (-0.8, 0.8))).p_mw[0, 0]
    for low, high, q in (
        (-0.8, 0.8, 0.0),
        (free + 0.02, free + 0.05, 0.2),
        (free - 0.05, free - 0.02, -0.25),
    ):
        heard = allowed(observation, name, (low, high), q_mvar=q)
        decision = dispatcher(name).step(heard)
        p_mw, q_mvar = exchange(performed(site, name, decision, heard))
        assert decision.origin is Origin.OPTIMAL
        assert low - 1e-7 <= p_mw <= high + 1e-7
        assert q_mvar == pytest.approx(q, abs=1e-6)
        assert decision.plan is not None
        assert p_mw == pytest.approx(float(decision.plan.mean[0, 0]), abs=1e-7)
        assert set(decision.setpoints) == set(site.microgrids[name].devices)


def test_A15_a_day_of_prediction_and_dispatch_goes_as_planned() -> None:
    """With perfect forecasts the stored energy that was planned is the one that comes, step after step.

    The capability allowed is the middle half of what was predicted.
    """
    site, name = reference_site(), "mg1"
    predict, dispatch = InterchangePrediction(site, microgrid=name), dispatcher(name)
    esd = site.devices[f"{name}_esd"]
    assert isinstance(esd, Battery)
    p_mw: dict[str, float] = {}
    e_mwh = {esd.name: esd.e_start_mwh}
    ends = []
    for k in range(24):
        observation = seen(k, p_mw=p_mw, e_mwh=e_mwh)
        told_pic = predict.step(observation)
        low, high = told_pic.regions[name].limits("p_mw")
        middle, half = (low + high) / 2, (high - low) / 4
        assert told_pic.plan is not None
        plan = float(np.clip(told_pic.plan.mean[0, 0], middle - half, middle + half))
        heard = allowed(observation, name, (middle - half, middle + half), plan=[plan])
        decision, planned = dispatch.step(heard), dispatch.dispatch(heard)
        done = performed(site, name, decision, heard)
        assert exchange(done)[0] == pytest.approx(planned.p_mw[0, 0], abs=1e-7)
        if decision.origin is Origin.OPTIMAL:
            assert middle - half - 1e-6 <= exchange(done)[0] <= middle + half + 1e-6
        stored = done[esd.name].e_mwh
        assert stored is not None
        moved = float(planned.devices[esd.name][0])
        assert stored == pytest.approx(
            e_mwh[esd.name] - (moved / 0.95 if moved > 0 else moved * 0.95), abs=1e-7
        )
        assert esd.e_min_mwh - 1e-9 <= stored <= esd.e_mwh + 1e-9
        p_mw = {n: s.p_mw for n, s in done.items()}
        e_mwh = {esd.name: stored}
        ends.append(decision.origin)
    assert ends.count(Origin.OPTIMAL) == 24


def test_it_keeps_to_the_schedule_unless_it_pays_to_leave_it() -> None:
    """The kept exchange is the plan's; for nothing a MWh, it is the dispatch's own."""
    observation = seen(8)
    own = dispatcher(deviation_cost_per_mwh=0.0).dispatch(allowed(observation, "mg1", (-0.8, 0.8))).p_mw[0, 0]
    plan = own - 0.05
    heard = allowed(observation, "mg1", (-0.8, 0.8), plan=[plan])
    exchanges = [
        float(dispatcher(deviation_cost_per_mwh=cost).dispatch(heard).p_mw[0, 0]) for cost in (0.0, 500.0)
    ]
    assert exchanges == pytest.approx([own, plan], abs=1e-6)


def test_a_correction_overrules_the_prediction_that_it_corrects() -> None:
    observation = seen(8)
    predicted = InterchangePrediction(reference_site(), microgrid="mg1").step(observation)
    heard = allowed(observation, "mg1", (0.0, 0.5), plan=[0.17])
    for said in ({"mg1": predicted, **heard.said}, {**heard.said, "mg1": predicted}):
        both = replace(heard, said=said)
        found = dispatcher(deviation_cost_per_mwh=500.0).dispatch(both)
        assert found.p_mw[0, 0] == pytest.approx(0.17, abs=1e-7)
    alone = allowed(replace(observation, said={"mg1": predicted}), "mg1", (0.0, 0.5))
    assert predicted.plan is not None
    found = dispatcher(deviation_cost_per_mwh=500.0).dispatch(alone)
    assert found.p_mw[:, 0] == pytest.approx(predicted.plan.mean[:, 0], abs=1e-6)


def reason(decision: Decision, name: str = "mg1") -> str | None:
    """Why the decision is degraded, of its one microgrid."""
    assert decision.certificates.keys() == {name}
    return decision.certificates[name].binding


def test_later_intervals_of_the_capability_count_too() -> None:
    heard = allowed(seen(8), "mg1", (0.1, 0.2), (0.15, 0.16), (-0.05, 0.05))
    p_mw = dispatcher().dispatch(heard).p_mw[:, 0]
    for value, (low, high) in zip(p_mw, ((0.1, 0.2), (0.15, 0.16), (-0.05, 0.05)), strict=False):
        assert low - 1e-8 <= value <= high + 1e-8
    assert (np.abs(p_mw) <= 0.8 + 1e-8).all()


def test_a_capability_said_earlier_holds_with_what_it_says_of_now() -> None:
    before = allowed(seen(7), "mg1", (-0.8, 0.8), (0.11, 0.12))
    now = replace(seen(8), said=before.said)
    assert 0.11 - 1e-8 <= dispatcher().dispatch(now).p_mw[0, 0] <= 0.12 + 1e-8


def test_without_a_capability_it_keeps_the_exchange() -> None:
    observation = seen(8, p_mw={"mg1": 0.123})
    observation = replace(observation, q_mvar={**observation.q_mvar, "mg1": 0.05})
    for said in ({}, {"x": allowed(observation, "mg2", (0.0, 0.1)).said["dso"]}):
        heard = replace(observation, said=said)
        decision = dispatcher().step(heard)
        done = exchange(performed(reference_site(), "mg1", decision, heard))
        assert decision.origin is Origin.DEGRADED
        assert reason(decision) == "no capability was heard, the measured exchange is kept"
        assert done == pytest.approx((0.123, 0.05), abs=1e-6)
    p_mw = {n: v for n, v in seen(8).p_mw.items() if n != "mg1"}
    devices = sum(p_mw[n] for n in reference_site().microgrids["mg1"].devices)
    assert dispatcher().dispatch(replace(seen(8), p_mw=p_mw)).p_mw[0, 0] == pytest.approx(devices, abs=1e-7)
    for broken in ({**p_mw, "mg1_pv": float("nan")}, {n: v for n, v in p_mw.items() if n != "mg1_pv"}):
        with pytest.raises(Infeasible, match="mg1_pv"):
            dispatcher().step(replace(seen(8), p_mw=broken))
    faulty = replace(observation, q_mvar={"mg1": float("nan")})  # nobody knows what to keep
    assert {s.q_mvar for s in dispatcher().step(faulty).setpoints.values()} == {None}


def test_what_cannot_be_reached_is_approached_at_any_cost() -> None:
    """In closed form: engines up and stores out as far as they go, loads down to their firm parts."""
    site = small([engine(), store(), load()], price="c")
    observation = told(
        site, {"l": -0.25, "c": 5.0}, 3, p_mw={"g": 0.1, "l": -0.2, "b": 0.0}, e_mwh={"b": 0.3}
    )
    controller = MicrogridDispatch(site, horizon=3)
    up, down = 0.1 + 0.2 + 0.15 - 0.1, 0.1 - 0.15 - 0.25
    for box, reached, origin in (
        ((0.9, 1.0), up, Origin.DEGRADED),
        ((-2.0, -1.0), down, Origin.DEGRADED),
        ((up - 1e-3, 1.0), up - 1e-3, Origin.OPTIMAL),
    ):
        heard = allowed(observation, "m", box)
        decision = controller.step(heard)
        assert decision.origin is origin
        assert decision.plan is not None
        assert decision.plan.mean[0, 0] == pytest.approx(reached, abs=1e-6)
        assert exchange(performed(site, "m", decision, heard))[0] == pytest.approx(reached, abs=1e-6)


def test_what_is_out_of_reach_later_does_not_spoil_what_acts_now() -> None:
    site = small([engine(), load()], price="c")
    observation = told(site, {"l": -0.25, "c": 80.0}, 3, p_mw={"g": 0.1})
    heard = allowed(observation, "m", (-0.2, -0.1), (2.0, 3.0), (2.0, 3.0))
    decision = MicrogridDispatch(site, horizon=3).step(heard)
    assert decision.origin is Origin.OPTIMAL
    assert decision.plan is not None
    assert -0.2 - 1e-8 <= decision.plan.mean[0, 0] <= -0.1 + 1e-8


def test_an_island_balances_itself() -> None:
    site, name = reference_site(), "mg1"
    for k, p_mw, e_mwh in ((8, {}, {}), (19, {"mg1_mt": 0.06, "mg1_de": 0.0}, {"mg1_esd": 0.06})):
        heard = seen(k, connected={name: False}, p_mw=p_mw, e_mwh=e_mwh)
        decision = dispatcher(name).step(heard)
        assert decision.origin is Origin.OPTIMAL
        assert decision.certificates == {}
        assert exchange(performed(site, name, decision, heard)) == pytest.approx((0.0, 0.0), abs=1e-6)
    served = -(decision.setpoints["mg1_il"].p_mw or 0.0)
    assert served < 0.12 * 0.98 - 1e-3  # engines that still ramp up: the cheap load is shed for a while
    assert decision.setpoints["mg1_ul"].p_mw == -0.45  # the other one is free to take all that it wants


def test_an_island_that_cannot_balance_says_so() -> None:
    site = small([engine(), load()], price="c")
    heard = told(site, {"l": -0.2, "c": 50.0}, 2, p_mw={"g": 0.4}, connected={"m": False})
    heard = replace(heard, forecast=replace(heard.forecast, every=HOUR))
    fast = MicrogridDispatch(site, horizon=2)
    assert fast.step(heard).origin is Origin.OPTIMAL  # 0.4 down to 0.2 within the hour
    stuck = replace(heard, forecast=replace(heard.forecast, mean=heard.forecast.mean * [0.5, 1.0]))
    decision = fast.step(stuck)
    assert decision.origin is Origin.DEGRADED
    assert reason(decision, "m") == "the exchange asked for is out of the devices' reach"
    assert decision.plan is not None
    assert decision.plan.mean[0, 0] == pytest.approx(0.2 - 0.1, abs=1e-7)  # what nobody takes
    # its tie is open, so its rating is no reason to have no decision
    narrow = replace(site, microgrids={"m": replace(site.microgrids["m"], tie_mw=0.01)})
    decision = MicrogridDispatch(narrow, horizon=2).step(stuck)
    assert decision.origin is Origin.DEGRADED
    assert decision.setpoints["g"].p_mw == pytest.approx(0.2)


def test_reactive_power_that_is_not_there_is_said() -> None:
    observation = seen(8)
    decision = dispatcher().step(allowed(observation, "mg1", (-0.8, 0.8), q_mvar=5.0))
    assert decision.origin is Origin.DEGRADED
    assert reason(decision) == "the reactive power asked for is out of the devices' reach"
    given = sum(setpoint.q_mvar or 0.0 for setpoint in decision.setpoints.values())
    assert 0.5 < given < 1.5
    ranged = dispatcher().step(allowed(observation, "mg1", (-0.8, 0.8), q_mvar=(0.1, 0.3)))
    assert sum(s.q_mvar or 0.0 for s in ranged.setpoints.values()) == pytest.approx(0.1)


def test_the_loads_own_reactive_power_is_made_up_for() -> None:
    site = small([engine(), load(power_factor=0.9)], price="c")
    observation = told(site, {"l": -0.2, "c": 90.0}, 2, p_mw={"g": 0.2})
    heard = allowed(observation, "m", (-1.0, 1.0), q_mvar=0.05)
    decision = MicrogridDispatch(site, horizon=2).step(heard)
    needed = 0.05 + 0.2 * np.tan(np.arccos(0.9))
    assert decision.setpoints["g"].q_mvar == pytest.approx(needed)
    assert exchange(performed(site, "m", decision, heard))[1] == pytest.approx(0.05, abs=1e-7)


@pytest.mark.parametrize("asked", [0.4, -0.3])
def test_reactive_ranges_power_factors_and_compensators_share_it(asked: float) -> None:
    common: dict[str, Any] = {"bus": "17", "weight": 1.0, "default": still()}
    devices: list[Device] = [
        engine(q_mvar=(-0.2, 0.25)),
        StaticVarCompensator(name="s", q_mvar=(-0.3, 0.3), **common),
        PvInverter(name="v", p_mw=0.2, s_mva=0.3, power_factor=0.9, **common),
    ]
    site = small(devices, price="price")
    columns = {"price": 100.0, "v": 0.15}
    observation = told(site, columns, 2, p_mw={"g": 0.3, "s": 0.0, "v": 0.1}, q_mvar={"m": 0.0})
    heard = allowed(observation, "m", (-1.0, 1.0), q_mvar=asked)
    decision = dispatcher("m", site, horizon=2).step(heard)
    assert decision.origin is Origin.OPTIMAL
    done = performed(site, "m", decision, heard)
    assert exchange(done)[1] == pytest.approx(asked)
    assert done["s"].p_mw == 0.0
    assert min(abs(state.q_mvar) for state in done.values()) > 0.01  # each takes part


def test_loads_are_told_less_only_when_they_are_to_take_less() -> None:
    """Demand above its forecast is served all the same, unless it is meant to be shed."""
    free = dispatcher().step(allowed(seen(8), "mg1", (-0.8, 0.8)))
    assert (free.setpoints["mg1_ul"].p_mw, free.setpoints["mg1_il"].p_mw) == (-0.45, -0.12)
    # 0.4 + 0.2 from the engines, 0.15 from the store, 0.1925 and 0.07 from sun and wind, 0.396 for the others
    tight = dispatcher().step(allowed(seen(8), "mg1", (0.55, 0.8)))
    left = 0.4 + 0.2 + 0.15 + 0.1925 + 0.07 - 0.396 - 0.55
    assert tight.setpoints["mg1_il"].p_mw == pytest.approx(-left)
    assert tight.setpoints["mg1_ul"].p_mw == -0.45


@pytest.mark.parametrize("every_s", [1, 300])
def test_short_steps(every_s: int) -> None:
    site = reference_site(every=timedelta(seconds=every_s))
    observation = seen(13, site=site)
    controller = dispatcher("mg3", site)
    free = controller.dispatch(allowed(observation, "mg3", (-0.9, 0.9))).p_mw[0, 0]
    heard = allowed(observation, "mg3", (free - 0.1, free - 0.05), q_mvar=0.1)
    decision = controller.step(heard)
    p_mw, q_mvar = exchange(performed(site, "mg3", decision, heard))
    assert decision.origin is Origin.OPTIMAL
    assert free - 0.1 - 1e-7 <= p_mw <= free - 0.05 + 1e-7
    assert q_mvar == pytest.approx(0.1, abs=1e-6)


@pytest.mark.parametrize(("price", "worth"), [(17_500.0, 150.0), (-17_500.0, 150.0), (50.0, 30_000.0)])
def test_no_price_and_no_load_is_worth_leaving_the_capability(price: float, worth: float) -> None:
    """Prices at a market's cap, and a load that is worth more: it still comes as close as it can."""
    site = small([engine(), load(cost_per_mwh=worth)], price="c")
    observation = told(site, {"l": -0.25, "c": price}, 2, p_mw={"g": 0.2})
    controller = MicrogridDispatch(site, horizon=2)
    for box, reached in (((0.9, 1.0), 0.4 - 0.1), ((-2.0, -1.0), 0.1 - 0.25)):
        decision = controller.step(allowed(observation, "m", box, box))
        assert decision.origin is Origin.DEGRADED
        assert decision.plan is not None
        assert decision.plan.mean[0, 0] == pytest.approx(reached, abs=1e-6)


def test_a_capability_beyond_the_tie_is_approached_as_far_as_the_tie_goes() -> None:
    """So is a measured exchange that is pinned a little above the rating."""
    site, heard = reference_site(), allowed(seen(8), "mg1", (0.101, 0.101))
    lower = allowed(seen(8), "mg1", (-0.9, -0.85))
    narrow = replace(site, microgrids={**site.microgrids, "mg1": replace(site.microgrids["mg1"], tie_mw=0.1)})
    for box, end in ((heard, 0.1), (lower, -0.1)):
        found = dispatcher(site=narrow).dispatch(box)
        assert not found.within
        assert found.p_mw[0, 0] == pytest.approx(end)
        assert dispatcher(site=narrow).step(box).origin is Origin.DEGRADED


def test_devices_rated_zero_do_nothing_and_hurt_nobody() -> None:
    reference = reference_site().devices
    pv = replace(reference["mg1_pv"], name="v", p_mw=0.0, s_mva=0.0)  # type: ignore[call-arg]
    wt = replace(reference["mg1_wt"], name="w", p_mw=0.0)  # type: ignore[call-arg]
    idle: list[Device] = [
        pv, wt, load(p_mw=0.0, firm_mw=0.0),
        store(p_mw=0.0, s_mva=0.0, e_mwh=0.0, e_min_mwh=0.0, e_start_mwh=0.0),
    ]  # fmt: skip
    site = small([engine(), *idle], price="c")
    observation = told(site, {"v": 0.0, "w": 0.0, "l": 0.0, "c": 90.0}, 2, p_mw={"g": 0.2}, e_mwh={"b": 0.0})
    low, high = InterchangePrediction(site, horizon=2).step(observation).regions["m"].limits("p_mw")
    assert (low, high) == pytest.approx((0.1, 0.4))  # around 0.3, within a ramp of 0.2 and the engine's range
    decision = MicrogridDispatch(site, horizon=2).step(allowed(observation, "m", (0.3, 0.35), q_mvar=0.1))
    assert decision.origin is Origin.OPTIMAL
    assert decision.setpoints["g"].q_mvar == pytest.approx(0.1)
    for device in idle:
        assert (decision.setpoints[device.name].p_mw, decision.setpoints[device.name].q_mvar or 0.0) == (0, 0)


def test_same_input_same_bytes() -> None:
    heard = allowed(seen(8), "mg2", (-0.1, 0.2), q_mvar=0.1)
    one, other = dispatcher("mg2"), dispatcher("mg2")
    first = one.step(heard)
    one.step(allowed(seen(19), "mg2", (0.3, 0.4)))
    for again in (one.step(heard), other.step(heard)):
        assert repr(dict(again.setpoints)) == repr(dict(first.setpoints))


def test_capabilities_that_make_no_sense_are_refused() -> None:
    observation = seen(8)
    one = allowed(observation, "mg1", (0.0, 0.1)).said["dso"]
    two = allowed(observation, "mg1", (0.2, 0.3)).said["dso"]
    with pytest.raises(Infeasible, match=r"mg1.*no point in common"):
        dispatcher().step(replace(observation, said={"a": one, "b": two}))
    slanted = Region(
        ("p_mw", "q_mvar"), np.array([[1.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]), np.array([1.0, 1.0, 1.0])
    )
    open_ended = Region(("p_mw", "q_mvar"), np.array([[1.0, 0.0]]), np.array([1.0]))
    for region in (slanted, open_ended):
        wrong = replace(one, regions={"mg1": region})
        with pytest.raises(Infeasible, match=r"mg1.*no box"):
            dispatcher().step(replace(observation, said={"a": wrong}))


def test_options_that_do_not_fit_are_refused() -> None:
    for options, why in (
        ({"microgrid": None}, "say which one"),
        ({"deviation_cost_per_mwh": -1.0}, "deviation_cost_per_mwh -1"),
        ({"mu": -1.0}, "mu -1"),
        ({"horizon": 0}, "horizon of 0"),
    ):
        with pytest.raises(ValueError, match=why):
            MicrogridDispatch(reference_site(), **{"microgrid": "mg1"} | options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no microgrids"):
        MicrogridDispatch(reference_site(()))
    heavy: list[Device] = [engine(), load(p_mw=3.0, firm_mw=3.0)]
    site = small(heavy, tie_mw=0.5, price="c")
    observation = told(site, {"l": -3.0, "c": 1.0}, 1, p_mw={"g": 0.1, "m": 0.0})
    with pytest.raises(Infeasible, match="no dispatch"):
        MicrogridDispatch(site, horizon=1).step(observation)
