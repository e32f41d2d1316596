"""What the correction makes of what it hears: banks, old forecasts, meters that fail, odd energies."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from itertools import product
from typing import Any

import numpy as np
import pandapower as pp
import pytest

from controllers import (
    Battery,
    Decision,
    Forecast,
    Infeasible,
    Interval,
    Kind,
    Limits,
    Observation,
    Origin,
    PvInverter,
    Region,
    Site,
    SolverFailed,
)
from controllers.devices import still
from controllers.interchange.checks import CORNERS, _corners
from controllers.interchange.conic_rows import CompiledRows
from controllers.interchange.correction import InterchangeCorrection
from controllers.microgrid import Microgrid
from controllers.regulators import CapacitorBank
from controllers.site import Load
from simulators.network import network_of
from simulators.power_flow import PowerGridModelEngine
from tests.interchange_cases import HOUR, reference_site, seen
from tests.test_correction import MORNING, WIDE, corrects, ends, heard, width


def line_site(
    *, bank: CapacitorBank | None = None, devices: Mapping[str, Any] | None = None
) -> tuple[Any, Site]:
    """A line of five branches, a load and a microgrid at its end; its net without the bank."""
    net = pp.create_empty_network(sn_mva=1.0)
    pp.create_buses(net, 6, vn_kv=11.0)
    pp.create_ext_grid(net, 0, vm_pu=1.0)
    for i in range(5):
        pp.create_line_from_parameters(net, i, i + 1, 1.0, 0.5, 0.5, 0.0, 99999.0)
    pp.create_load(net, 5, 1.0, 0.5)
    banks = {} if bank is None else {bank.name: bank}
    return net, Site(
        name="line",
        network=network_of(net),
        limits=Limits((0.95, 1.05), 100.0),
        every=HOUR,
        devices=dict(devices or {}),
        loads={"load:0": Load("load:0", "5", -1.0, -0.5)},
        power_flow=PowerGridModelEngine(net, banks),
        regulators=banks,
        microgrids={"mg": Microgrid(name="mg", bus="5", devices=(), tie_mw=9.0, q_mvar=(0.0, 0.0))},
    )


def asked(site: Site, low: float, high: float, **known: Any) -> Observation:
    at = seen(8).time
    region = {"mg": Region.box(p_mw=(low, high), q_mvar=(0.0, 0.0))}
    plan = Forecast(at, HOUR, ("mg",), np.zeros((1, 1)), np.zeros((1, 1)))
    said = Decision(time=at, origin=Origin.OPTIMAL, kind=Kind.PIC, regions=region, plan=plan)
    forecast = Forecast(at, HOUR, ("load:0",), np.full((1, 1), -1.0), np.zeros((1, 1)))
    return Observation(time=at, forecast=forecast, said={"mg": said}, **known)


def least_v_pu(net: Any, exchange_mw: float, **more: tuple[float, float]) -> float:
    """By pandapower, with a microgrid's exchange at the end of the line and (P, Q) at further buses."""
    net = copy.deepcopy(net)
    pp.create_sgen(net, 5, exchange_mw)
    for bus, (p_mw, q_mvar) in more.items():
        pp.create_sgen(net, int(bus[1:]), p_mw, q_mvar)
    pp.runpp(net, numba=False)
    return float(net.res_bus.vm_pu.min())


@pytest.mark.parametrize("q_mvar", [0.1, 0.5, 2.0])
def test_a_capacitor_bank_counts_once_and_with_the_voltage(q_mvar: float) -> None:
    net, site = line_site(bank=CapacitorBank(name="cap", bus="5", q_mvar=q_mvar, steps=1))
    decision = InterchangeCorrection(site, horizon=1).step(asked(site, -4.0, 3.0, positions={"cap": 1}))
    pp.create_shunt(net, 5, q_mvar=-q_mvar)
    low, high = ends(decision)["mg"]
    assert least_v_pu(net, low) == pytest.approx(0.95, abs=1e-3)
    assert least_v_pu(net, low) > 0.95 - 2e-5
    worst = decision.certificates["mg"].worst_v_pu
    assert worst is not None
    assert min(worst - 0.95, 1.05 - worst) <= least_v_pu(net, low) - 0.95 + 1e-6
    assert high > 1.5


def test_devices_outside_keep_the_reactive_power_that_is_measured() -> None:
    pv = PvInverter(name="pv", bus="4", p_mw=0.5, s_mva=0.8, weight=1.0, default=still())
    net, site = line_site(devices={"pv": pv})
    known = asked(site, -4.0, 3.0, p_mw={"pv": 0.2}, q_mvar={"pv": -0.5})
    low, _ = ends(InterchangeCorrection(site, horizon=1).step(known))["mg"]
    assert least_v_pu(net, low, b4=(0.2, -0.5)) > 0.95 - 2e-5
    assert least_v_pu(net, low - 0.05, b4=(0.2, -0.5)) < 0.95


def test_an_old_forecast_is_read_where_its_time_is() -> None:
    fresh = heard(17, WIDE, intervals=1)
    issued = fresh.time - 10 * HOUR
    names, every = fresh.forecast.names, fresh.forecast.every
    earlier = seen(7, 10).forecast
    assert earlier.issued_at == issued
    assert earlier.names == names
    mean = np.concatenate([earlier.mean, fresh.forecast.mean])
    old = replace(fresh, forecast=Forecast(issued, every, names, mean, 0 * mean))
    decision = corrects().step(fresh)
    assert ends(corrects().step(old)) == ends(decision)
    assert width(decision) < width(
        corrects().step(replace(old, forecast=replace(earlier, issued_at=fresh.time)))
    )


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"every": HOUR / 2}, "the site's step is"),
        ({"issued_at": seen(8).time + HOUR}, "not of a step up to now"),
        ({"issued_at": seen(8).time - timedelta(minutes=7)}, "not of a step up to now"),
    ],
)
def test_a_forecast_for_other_steps_is_refused(change: dict[str, Any], why: str) -> None:
    observation = heard(8, MORNING)
    with pytest.raises(Infeasible, match=why):
        corrects().step(replace(observation, forecast=replace(observation.forecast, **change)))


def test_a_plan_is_read_where_its_time_is() -> None:
    observation = heard(8, MORNING)
    said = observation.said["predicts mg1"]
    assert said.plan is not None
    older = replace(
        said.plan, issued_at=observation.time - HOUR, mean=np.array([[0.3], [0.15], [0.1], [0.1]])
    )
    known = replace(observation, said={**observation.said, "predicts mg1": replace(said, plan=older)})
    plan = corrects().step(known).plan
    assert plan is not None
    assert plan.mean[0, plan.names.index("mg1")] == pytest.approx(0.15, abs=1e-6)
    passed = replace(older, issued_at=observation.time - 9 * HOUR)
    known = replace(observation, said={**observation.said, "predicts mg1": replace(said, plan=passed)})
    with pytest.raises(Infeasible, match="its plan has no interval at"):
        corrects().step(known)


@pytest.mark.parametrize("e_mwh", [0.1199, 0.05, 1.0801, 1.2])
def test_energy_out_of_bounds_goes_no_farther_out_and_costs_nobody_else(e_mwh: float) -> None:
    bess = reference_site().devices["bess"]
    assert isinstance(bess, Battery)
    inside = min(max(e_mwh, bess.e_min_mwh), bess.e_mwh)
    usual = corrects(horizon=3).step(heard(8, MORNING, e_mwh={"bess": inside}))
    decision = corrects(horizon=3).step(heard(8, MORNING, e_mwh={"bess": e_mwh}))
    assert decision.origin is Origin.CERTIFIED
    assert width(decision) == pytest.approx(width(usual), abs=1e-3)
    p_mw = decision.setpoints["bess"].p_mw
    assert p_mw is not None
    assert p_mw <= 1e-6 if e_mwh < inside else p_mw >= -1e-6


@pytest.mark.parametrize("e_mwh", [0.1199, 1.0801])
def test_energy_out_of_bounds_promises_no_reserve_on_its_side(e_mwh: float) -> None:
    def reserve(stored: float) -> np.ndarray[Any, Any]:
        corrector = corrects(horizon=1, reserve_mw=(0.0, 0.0))
        known = heard(3, WIDE, e_mwh={"bess": stored})
        case = corrector._ear.case(known, corrector._ear.listen(known))
        assert corrector.site.power_flow is not None
        return corrector._repair.best(corrector.site.power_flow, case).answer.reserve_mw[0]

    up, down = reserve(e_mwh)
    assert (up if e_mwh < 0.6 else down) == pytest.approx(0.0, abs=1e-5)
    assert (down if e_mwh < 0.6 else up) > 0.1
    assert (reserve(0.6) > 0.1).all()


NAN = float("nan")


@pytest.mark.parametrize(
    ("observation", "why"),
    [
        (heard(8, MORNING, e_mwh={"bess": NAN}), "'bess'.*not measured"),
        (
            replace(heard(8, MORNING), forecast=Forecast.empty(seen(8).time, HOUR), p_mw={"load:0": NAN}),
            "'load:0'",
        ),
    ],
)
def test_what_was_measured_as_nan_was_not_measured(observation: Observation, why: str) -> None:
    with pytest.raises(Infeasible, match=why):
        corrects().step(observation)


def test_a_meter_that_says_nan_costs_its_microgrid_alone() -> None:
    observation = heard(8, {name: MORNING[name] for name in ("mg1", "mg3")}, p_mw={"mg2": NAN})
    decision = corrects().step(observation)
    unheard = {name: p for name, p in observation.p_mw.items() if name != "mg2"}
    assert ends(decision) == ends(corrects().step(replace(observation, p_mw=unheard)))
    assert np.ptp(ends(decision)["mg1"]) > 0.1
    only_q = heard(8, {name: MORNING[name] for name in ("mg1", "mg3")})
    only_q = replace(only_q, q_mvar={**only_q.q_mvar, "mg2": NAN})
    told = corrects().step(only_q).certificates["mg2"].binding
    assert told == "no prediction, reactive power not measured"


def test_the_first_stage_stands_where_the_second_has_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    observation, asked_before = heard(8, MORNING), []
    usual = corrects().step(observation)
    solve = CompiledRows.minimize

    def minimize(self: CompiledRows, costs: Any, right: Any) -> Any:
        asked_before.append(1)
        if len(asked_before) % 2 == 0:
            raise SolverFailed("stuck")
        return solve(self, costs, right)

    monkeypatch.setattr(CompiledRows, "minimize", minimize)
    decision = corrects().step(observation)
    assert len(asked_before) >= 2
    assert decision.origin in (Origin.CERTIFIED, Origin.REPAIRED)
    assert width(decision) == pytest.approx(width(usual), abs=1e-3)


def test_each_microgrid_is_asked_against_all_others_where_corners_are_too_many() -> None:
    found = {tuple(row) for row in _corners(12, False, np.random.default_rng(0)).tolist()}
    assert len(found) > CORNERS / 2
    for i, end in product(range(12), (0.0, 1.0)):
        assert tuple(end if k == i else 1.0 - end for k in range(12)) in found
    leaving = {tuple(row) for row in _corners(7, True, np.random.default_rng(0)).tolist()}
    for i, (one, rest) in product(range(7), ((0.0, -1.0), (1.0, -1.0), (-1.0, 0.0), (-1.0, 1.0))):
        assert tuple(one if k == i else rest for k in range(7)) in leaving


def test_weights_and_equal_loss_are_refused_together() -> None:
    with pytest.raises(ValueError, match="no part in share 'fair'"):
        InterchangeCorrection(reference_site(), share="fair", weights={"mg1": 2.0})


@pytest.mark.parametrize(
    ("envelope", "why"),
    [
        (Region.box(p_mw=(0.0, 1.0)), "envelope of device 'pv'"),
        (Region(("p_mw", "q_mvar"), np.eye(2), np.ones(2)), "envelope of device 'pv' has no end"),
    ],
)
def test_an_envelope_that_says_too_little_is_refused(envelope: Region, why: str) -> None:
    pv = PvInverter(name="pv", bus="4", p_mw=0.5, s_mva=0.8, weight=1.0, default=still())
    _, site = line_site(devices={"pv": pv})
    known = asked(site, -1.0, 1.0, p_mw={"pv": 0.2})
    start = known.time + HOUR
    said = Decision(
        time=known.time - HOUR, origin=Origin.OPTIMAL, kind=Kind.ENVELOPE, regions={"pv": envelope},
        later=(Interval(start=start, end=start + HOUR, regions={"pv": envelope}),),
    )  # fmt: skip
    with pytest.raises(Infeasible, match=why):
        InterchangeCorrection(site, horizon=1, outside_part=0.1).step(
            replace(known, said={**known.said, "envelopes": said})
        )
