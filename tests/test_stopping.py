"""Engines that stop: on and off as modes of the twin, what convex limits say of them, what a start costs."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from math import cos, sin, tau
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridges.sunspec.unit import Limits
from controllers import Battery, DeviceState, FlexibleLoad, Generator, Instruction, Region, Setpoint
from controllers.devices import still
from controllers.rating import Rating, rating_of
from scenarios.sunspec_emulator import Emulated, TwinPlant, capability_of
from simulators.devices import DeviceTwin, Obedience
from simulators.microgrids import Breaker
from tests.test_microgrids import Plant

START = datetime(2026, 6, 21, tzinfo=UTC)
HOUR = timedelta(hours=1)
FINE = 1e-9


def engine(**changed: Any) -> Generator:
    """The one at bus 7 of the seed: 20 to 100 kW, 50 kW an hour."""
    figures: dict[str, Any] = {
        "name": "d", "bus": "1", "weight": 1.0, "default": still(), "p_mw": 0.1, "p_min_mw": 0.02,
        "s_mva": 0.1, "ramp_mw_per_min": 0.05 / 60, "can_stop": True, "start_up_cost": 10.0,
        "q_mvar": (-0.05, 0.04), "p_start_mw": 0.0,
    }  # fmt: skip
    return Generator(**figures | changed)


class Told:
    """A twin that is told one thing a step."""

    def __init__(self, device: Generator) -> None:
        self.twin, self.k = DeviceTwin(device), 0

    def __call__(
        self,
        p_mw: float | None = None,
        q_mvar: float | None = None,
        region: Region | None = None,
        every_s: float = 3600.0,
    ) -> tuple[float, float, Obedience]:
        now = START + self.k * HOUR
        self.k += 1
        target = None if p_mw is None and q_mvar is None else Setpoint(p_mw=p_mw, q_mvar=q_mvar)
        told = Instruction(
            device="d", epoch=1, seq=self.k, issued_at=now, valid_from=now, valid_until=now + HOUR,
            region=region, setpoint=target, fallback=still(),
        )  # fmt: skip
        self.twin.receive(told, now)
        report = self.twin.step(now, None, every_s)
        return report.p_mw, report.q_mvar, report.obedience


def only(low: float, high: float) -> Region:
    return Region.box(p_mw=(low, high), q_mvar=(-1, 1))


def test_it_starts_at_its_ramp_and_stops_from_no_more_than_that() -> None:
    """(B4) by hand: 0, then at most 50 kW more or less each hour, and off only from 50 kW or less."""
    told = Told(engine())
    powers = [told(p)[0] for p in (0.1, 0.1, 0.1, 0.0, 0.0, 0.0, 0.0)]
    assert powers == pytest.approx([0.05, 0.1, 0.1, 0.05, 0.0, 0.0, 0.0], abs=FINE)
    assert told.twin.state == DeviceState(0.0, 0.0)


def test_from_above_its_ramp_it_comes_down_first() -> None:
    told = Told(engine(p_start_mw=0.08))
    assert [told(0.0)[:2] for _ in range(3)] == [pytest.approx((p, 0.0)) for p in (0.03, 0.0, 0.0)]


def test_zero_is_off_whatever_reactive_power_goes_with_it() -> None:
    told = Told(engine(p_start_mw=0.03))
    assert told(0.03, 0.04)[:2] == pytest.approx((0.03, 0.04))
    p_mw, q_mvar, stage = told(0.0, 0.04)
    assert (p_mw, q_mvar) == (0.0, 0.0)
    assert stage is Obedience.CONTROLLED  # it is the engine that has no reactive power, no region
    assert told(0.0, 0.04)[:2] == (0.0, 0.0)


@pytest.mark.parametrize(
    ("before", "target", "found"),
    [(0.0, 0.009, 0.0), (0.0, 0.011, 0.02), (0.03, 0.009, 0.0), (0.03, 0.011, 0.02), (0.0, 0.01, 0.0),
     (0.03, 0.01, 0.02)],
)  # fmt: skip
def test_a_target_between_off_and_least_power_is_met_by_what_is_closer(
    before: float, target: float, found: float
) -> None:
    """And by what it does already where both are as close."""
    assert Told(engine(p_start_mw=before))(target)[0] == pytest.approx(found)


@pytest.mark.parametrize(
    ("before", "region", "points", "stages"),
    [
        # Without a target it wants to be off, and runs where the region has no such point.
        (0.0, only(0.03, 0.06), [0.03, 0.03], ["limited", "limited"]),
        (0.08, only(0.0, 0.06), [0.03, 0.0], ["controlled", "controlled"]),
        (0.08, only(0.04, 0.2), [0.04, 0.04], ["limited", "limited"]),
        # Out of reach at first: as close as it can.
        (0.0, only(0.08, 0.1), [0.05, 0.08], ["unable", "limited"]),
        (0.1, only(0.0, 0.0), [0.05, 0.0], ["unable", "controlled"]),
        # Between off and least power: never met, and no coming and going.
        (0.0, only(0.012, 0.018), [0.02, 0.02, 0.02], ["unable"] * 3),
        (0.0, only(0.005, 0.018), [0.0, 0.0], ["unable"] * 2),
        (0.03, only(-0.2, -0.1), [0.0, 0.0], ["unable"] * 2),
    ],
)
def test_a_region_that_leaves_off_out_or_lies_between(
    before: float, region: Region, points: list[float], stages: list[str]
) -> None:
    told = Told(engine(p_start_mw=before))
    found = [told(region=region) for _ in points]
    assert [p for p, _, _ in found] == pytest.approx(points)
    assert [str(stage) for *_, stage in found] == stages


def test_without_an_instruction_it_goes_off() -> None:
    twin = DeviceTwin(engine(p_start_mw=0.08))
    reports = [twin.step(START + k * HOUR, None, 3600.0) for k in range(3)]
    assert [r.p_mw for r in reports] == pytest.approx([0.03, 0.0, 0.0])
    assert [r.obedience for r in reports] == [Obedience.UNABLE, Obedience.INIT, Obedience.INIT]


def test_where_a_step_is_too_short_for_its_ramp_it_starts_at_its_least_power() -> None:
    told = Told(engine())
    assert [told(0.1, every_s=60.0)[0] for _ in range(3)] == pytest.approx(
        [0.02, 0.02 + 0.05 / 60, 0.02 + 0.1 / 60]
    )
    assert [told(0.0, every_s=60.0)[0] for _ in range(3)] == pytest.approx([0.02 + 0.05 / 60, 0.02, 0.0])


def test_one_that_cannot_stop_and_has_tripped_comes_back() -> None:
    twin = DeviceTwin(engine(can_stop=False, ramp_mw_per_min=0.005 / 60))
    twin.state = DeviceState(0.0)
    assert twin.step(START, None, 3600.0).p_mw == pytest.approx(0.02)


amount = st.floats(0.0, 1.0)


@st.composite
def engines(draw: st.DrawFn) -> Generator:
    p = draw(st.floats(0.05, 2.0))
    q = None if draw(st.booleans()) else (-p * draw(amount), p * draw(amount))
    p_min = p * draw(st.floats(0.05, 0.9))
    return engine(
        p_mw=p,
        p_min_mw=p_min,
        s_mva=p * draw(st.floats(1.0, 1.5)),
        ramp_mw_per_min=p * draw(st.floats(0.02, 1.5)) / 60,
        q_mvar=q,
        p_start_mw=draw(st.sampled_from([0.0, p_min, p])),
    )


orders = st.lists(
    st.tuples(
        st.none() | st.floats(-0.2, 1.2),
        st.none() | st.floats(-1.2, 1.2),
        st.none() | st.tuples(amount, amount),
    ),
    min_size=1,
    max_size=12,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(engines(), orders)
def test_whatever_it_is_told_it_does_what_an_engine_can(
    device: Generator, told: list[tuple[float | None, float | None, tuple[float, float] | None]]
) -> None:
    """Each step against the rules written out: what it may reach, and that nothing in reach was closer."""
    twin = Told(device)
    R = device.ramp_mw_per_min * 60
    first = max(R, device.p_min_mw)
    for p, q, limits in told:
        before = twin.twin.state.p_mw
        span = None if limits is None else sorted(x * 1.2 * device.p_mw - 0.1 for x in limits)
        region = None if span is None else only(*span)
        wanted = 0.0 if p is None else p * device.p_mw
        found, reactive, stage = twin(None if p is None else wanted, q and q * device.p_mw, region)
        off = found == 0.0
        low, high = (
            (device.p_min_mw, first) if before == 0 else (max(before - R, device.p_min_mw), before + R)
        )
        high = min(high, device.p_mw)
        may_be_off = before <= first + FINE
        assert off or low - FINE <= found <= high + FINE
        assert not off or (may_be_off and reactive == 0.0)
        if device.q_mvar is None:
            assert np.hypot(found, reactive) <= device.s_mva + FINE
        else:
            assert off or device.q_mvar[0] - FINE <= reactive <= device.q_mvar[1] + FINE
        # All powers in reach, with those that the region keeps: the one it took is as close as any.
        grid = [*np.linspace(low, high, 201), *([0.0] if may_be_off else [])]
        kept = [x for x in grid if span is None or span[0] <= x <= span[1]]
        if kept:
            best = min(abs(x - wanted) for x in kept)
            if stage is not Obedience.UNABLE:  # a target of much reactive power may cost active power
                assert span is None or span[0] - FINE <= found <= span[1] + FINE
            if q is None:
                assert abs(found - wanted) <= best + FINE
                assert stage is not Obedience.UNABLE
        elif span is not None and (span[1] < 0 or span[0] > device.p_mw):
            assert stage is Obedience.UNABLE


@settings(max_examples=150, deadline=None)
@given(engines(), st.one_of(st.just(0.0), amount), st.sampled_from([60.0, 900.0, 3600.0]))
def test_its_limits_are_the_hull_of_its_modes_and_it_reaches_each_corner_of_these(
    device: Generator, level: float, every_s: float
) -> None:
    p_mw = 0.0 if level == 0 else device.p_min_mw + level * (device.p_mw - device.p_min_mw)
    state = DeviceState(p_mw)
    modes, limits = device.modes(state, None, every_s), device.limits(state, None, every_s)
    for k in range(24):
        way = (cos(tau * k / 24), sin(tau * k / 24))
        most = max(mode.support(way) for mode in modes)
        assert limits.support(way) == pytest.approx(most, abs=1e-7)
        assert rating_of(device).support(way) >= most - 1e-7
    for mode in modes:
        for p, q in mode.vertices():
            told = Told(device)
            told.twin.state = state
            assert told(float(p), float(q), every_s=every_s)[:2] == pytest.approx((p, q), abs=1e-7)
            assert Rating(rating_of(device)).beyond(instruction(float(p), float(q))) is None


def instruction(p_mw: float, q_mvar: float) -> Instruction:
    return Instruction(
        device="d", epoch=1, seq=1, issued_at=START, valid_from=START, valid_until=START + HOUR,
        region=None, setpoint=Setpoint(p_mw=p_mw, q_mvar=q_mvar), fallback=only(0.0, 9.0),
    )  # fmt: skip


def test_its_rating_has_off_and_no_more_than_it_can() -> None:
    rating = Rating(rating_of(engine()))
    assert rating.beyond(instruction(0.0, 0.0)) is None
    assert "outside its rating" in str(rating.beyond(instruction(0.11, 0.0)))
    assert "q_mvar" in str(rating.beyond(instruction(0.05, 0.05)))
    always = Rating(rating_of(engine(can_stop=False)))
    assert "outside its rating, 0.02 to 0.1" in str(always.beyond(instruction(0.0, 0.0)))


# In a microgrid


def plant(*, isolated: bool, start_mw: float) -> Plant:
    mt = engine(name="mt", p_start_mw=start_mw, default=only(0.0, 0.1), cost_per_mwh=50.0)
    load = FlexibleLoad(
        name="ul", bus="1", p_mw=0.06, firm_mw=0.0, power_factor=1.0, interruptible=False, weight=1.0,
        default=only(-0.06, 0.0),
    )  # fmt: skip
    window = [(START - 99 * 24 * HOUR, START + 99 * 24 * HOUR)] if isolated else []
    return Plant(mt, load, breaker=Breaker(window), shed_cost_per_mwh=500.0, price="price")


def test_a_start_costs_once_and_counts_no_hours() -> None:
    grid = plant(isolated=False, start_mw=0.0)
    powers, costs = [], []
    for k, target in enumerate((0.05, 0.05, 0.0, 0.05)):
        powers.append(grid.step({"mt": target, "ul": -0.06}, {"price": 100.0}, k=k)["mt"])
        exchange = grid.fleet.out["fleet"]["exchanges"]["mg"]
        costs.append(exchange.cost)
    assert powers == pytest.approx([0.05, 0.05, 0.0, 0.05])
    running, bought = 50 * 0.05, 100 * 0.01
    assert costs == pytest.approx(
        [10 + running + bought, running + bought, 100 * 0.06, 10 + running + bought]
    )


def test_what_it_ran_at_survives_a_checkpoint() -> None:
    grid, again = plant(isolated=False, start_mw=0.0), plant(isolated=False, start_mw=0.0)
    grid.step({"mt": 0.05, "ul": -0.06}, {"price": 0.0})
    again.fleet.recall(grid.fleet.memory())
    again.step({"mt": 0.05, "ul": -0.06}, {"price": 0.0}, k=1)
    assert again.fleet.out["fleet"]["exchanges"]["mg"].cost == pytest.approx(50 * 0.05)


@pytest.mark.parametrize(("start_mw", "powers"), [(0.0, (0.0, 0.0)), (0.05, (0.06, -0.06))])
def test_an_island_is_balanced_by_engines_that_run_and_starts_none(
    start_mw: float, powers: tuple[float, float]
) -> None:
    """What it lacks is shed; whoever operates it can start the engine for the next step."""
    grid = plant(isolated=True, start_mw=start_mw)
    found = grid.step({"mt": start_mw, "ul": -0.06}, {"price": 0.0})
    assert (found["mt"], found["ul"]) == pytest.approx(powers)


def test_an_island_with_too_much_power_keeps_its_engine_at_its_least() -> None:
    grid = plant(isolated=True, start_mw=0.03)
    battery = Battery(
        name="b", bus="1", p_mw=0.05, s_mva=0.05, e_mwh=1.0, e_min_mwh=0.0, e_start_mwh=0.5,
        efficiency=(1.0, 1.0), weight=1.0, default=still(),
    )  # fmt: skip
    grid = Plant(*grid.devices.values(), battery, breaker=grid.twin._breaker)
    found = grid.step({"mt": 0.03, "ul": 0.0, "b": 0.0})
    assert (found["mt"], found["b"]) == pytest.approx((0.03, -0.03))


# Behind Modbus registers


def test_registers_start_and_stop_it() -> None:
    device = engine(ramp_mw_per_min=0.6)
    said = capability_of(device)
    assert (said.p_max_mw, said.q_max_mvar, said.q_min_mvar, said.s_mva) == (0.1, 0.04, -0.05, None)
    plant = TwinPlant(Emulated(device, lambda at: None), lambda: 0.0)
    assert plant.step(Limits(p_mw=0.1), 1.0).p_mw == pytest.approx(0.02)
    assert [plant.step(Limits(p_mw=0.1), 1.0).p_mw for _ in range(8)][-1] == pytest.approx(0.1)
    assert [plant.step(Limits(p_mw=0.0), 1.0).p_mw for _ in range(9)][-1] == 0.0
    assert plant.step(Limits(p_mw=0.1, connected=False), 1.0).p_mw == 0.0


def test_a_state_that_was_measured_beside_zero_is_off() -> None:
    device = engine()
    assert [device.runs(p) for p in (-1e-6, 0.0, 1e-4, 0.0199, 0.05)] == [False, False, False, True, True]
    assert replace(device, can_stop=False).runs(0.0)
