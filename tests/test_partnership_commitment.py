"""One microgrid's block: B2, the same optimum as an independent model; and its units and devices."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import cvxpy as cp
import numpy as np
import pytest

from controllers import Infeasible, Region
from controllers.devices import (
    AXES,
    Battery,
    DeviceState,
    FlexibleLoad,
    Generator,
    PvInverter,
    WindTurbine,
    band,
    still,
)
from controllers.interchange.reading import read
from controllers.microgrid import Microgrid
from controllers.partnership.commitment import Commitment, commitment
from controllers.partnership.coupling import Point
from controllers.partnership.outlook import Outlook, outlook_of
from controllers.partnership.program import Program
from controllers.partnership.restoration import ROOM, settle
from controllers.partnership.units import Demand, Engine, Fleet, Renewable, Store, fleet, shape
from tests.interchange_cases import reference_site, seen
from tests.partnership_cases import BASE_PRICE, PRICE, SEED, random_microgrid, seed
from tests.partnership_operation import Mode, least, stated

Array = np.ndarray
SAME = 1e-6
"""Relative, of optima of about 10 $."""
WEIGHT = 150.0
"""[$/MW]"""
MODES: tuple[Mode, ...] = ("relaxed", "fixed", "whole")


def ours(
    program: Program, p: Array, q: Array, mode: Mode, bits: Array | None, *, exact: bool
) -> float | None:
    """Least cost of an exchange, or of cost + weight |x - x-hat|; `None`: it cannot be kept."""
    question = program.question(p, q, weight=0.0 if exact else WEIGHT, bits=bits)
    if exact:
        question.high[program.deviation] = 0.0
    try:
        return (program.least_whole if mode == "whole" else program.least)(question).value
    except Infeasible:
        return None


class Theirs:
    """The independent model of one microgrid, compiled once for each kind of bits."""

    def __init__(self, made: Commitment) -> None:
        self.made, T = made, made.block.intervals
        self.p, self.q = cp.Parameter(T), cp.Parameter(T)
        self.on, self.problems = {}, {}
        for mode in MODES:
            told = stated(made.fleet, made.outlook, mode)
            missed = cp.norm1(told.p - self.p) + cp.norm1(told.q - self.q)
            exact = [told.p == self.p, told.q == self.q]
            self.on[mode] = told.on
            self.problems[mode, True] = cp.Problem(cp.Minimize(told.cost), told.rules + exact)
            near = cp.Minimize(told.cost + WEIGHT / 1e3 * missed)
            self.problems[mode, False] = cp.Problem(near, told.rules)

    def least(self, p: Array, q: Array, mode: Mode, bits: Array | None, *, exact: bool) -> float | None:
        self.p.value, self.q.value = 1e3 * p, 1e3 * q
        if bits is not None:
            y = np.zeros(len(self.made.block.cost_y))
            for name, u in self.on[mode].items():
                u.value = self.made.symbol(name, "u", y, bits)
        return least(self.problems[mode, exact])


@pytest.mark.parametrize("intervals", range(1, 7))
@pytest.mark.parametrize("case", range(2))
def test_B2_block_against_an_independent_model(intervals: int, case: int) -> None:
    rng = np.random.default_rng([intervals, case])
    made = random_microgrid(rng, intervals)
    program, other, T, found = Program(made), Theirs(made), intervals, 0
    for k in range(4):
        # Between two extreme exchanges of one pattern, so one that can be kept; and, at last, anywhere.
        prices = {"p_price": rng.normal(0, 200, T), "q_price": rng.normal(0, 90, T)}
        one = program.least_whole(program.question(**prices))
        back = {"p_price": rng.normal(0, 200, T), "q_price": rng.normal(0, 90, T)}
        two = program.least(program.question(bits=one.x[program.z], **back))
        p, q = (0.3 * a + 0.7 * b for a, b in zip(*map(program.exchange, (one.x, two.x)), strict=True))
        if k == 3:
            p, q = p + rng.normal(0, 0.1, T), q + rng.normal(0, 0.1, T)
        bits = one.x[program.z] if k % 2 else rng.integers(0, 2, program.K).astype(float)
        for mode in MODES:
            for exact in (True, False):
                pattern = bits if mode == "fixed" else None
                a = ours(program, p, q, mode, pattern, exact=exact)
                b = other.least(p, q, mode, pattern, exact=exact)
                assert (a is None) == (b is None), f"{mode}, exact {exact}: {a} and {b}"
                if a is not None and b is not None:
                    found += 1
                    assert a == pytest.approx(b, rel=SAME, abs=1e-6), f"{mode}, exact {exact}"
    assert found >= 16


@pytest.mark.parametrize("bus", SEED)
@pytest.mark.parametrize("mode", ["relaxed", "whole"])
def test_B2_the_six_microgrids_of_the_seed(bus: int, mode: Mode) -> None:
    made = seed(bus)
    program = Program(made)
    price = BASE_PRICE * PRICE
    question = program.question(p_price=price, q_price=np.full(6, 2.0))
    found = (program.least_whole if mode == "whole" else program.least)(question).value
    found += program.constant(price, np.full(6, 2.0))
    told = stated(made.fleet, made.outlook, mode)
    value = least(
        cp.Problem(cp.Minimize(told.cost - price / 1e3 @ told.p - 2e-3 * cp.sum(told.q)), told.rules)
    )
    assert found == pytest.approx(value, rel=1e-9, abs=1e-7)


def test_off_means_no_power_and_no_reactive_power() -> None:
    rng = np.random.default_rng(5)
    made = random_microgrid(rng, 3)
    made = commitment(made.fleet, replace(made.outlook, p_mw=dict.fromkeys(made.outlook.p_mw, 0.0)))
    program = Program(made)
    for sign in (1.0, -1.0):
        question = program.question(p_price=np.full(3, sign * 1e4), q_price=np.full(3, sign * 1e4))
        question.low[program.z] = question.high[program.z] = 0.0
        x = program.least(question).x
        for engine in made.fleet.engines:
            if engine.can_stop:
                p, q = made.injection(engine.name, x[program.y], x[program.z])
                assert np.abs(p).max() < 1e-9
                assert np.abs(q).max() < 1e-9


def test_exclusive_stores_never_do_both_and_relaxed_ones_may() -> None:
    """An engine that must go on, nobody to take its power: wasting it in the store pays, unless it is
    forbidden."""
    units = Fleet(
        hours=1.0,
        engines=(Engine(name="engine", capability=Region.box(p_mw=(0.05, 0.1), q_mvar=(0, 0)), ramp_mw=0.1),),
        stores=(Store(name="store", p_mw=0.2, e_mwh=(0.0, 0.06), efficiency=(0.8, 0.8)),),
    )
    outlook = Outlook(
        p_mw={"engine": 0.05}, e_mwh={"store": 0.03}, available_mw={}, demand_mw={}, intervals=3
    )
    nothing = Point(np.zeros(3), np.zeros(3), 0.0)
    relaxed, exclusive = (
        settle(Program(made), nothing)
        for made in (commitment(units, outlook), commitment(units, outlook, exclusive_stores=True))
    )
    assert relaxed.off_by == pytest.approx(0.0, abs=7 * ROOM)
    assert commitment(units, outlook).both_ways_mw(relaxed.y) > 1e-3
    made = commitment(units, outlook, exclusive_stores=True)
    assert made.both_ways_mw(exclusive.y) < 1e-9
    # It fills the store, lets all of the second hour go and some of the store with it, to take the third's.
    first, room = 0.05 - 0.03 / 0.8, 0.05 * 0.8
    assert exclusive.off_by == pytest.approx(first + 0.05 + room * 0.8, abs=7 * ROOM)


def test_a_store_is_used_no_more_than_it_must_be() -> None:
    program = Program(made := seed(7))
    price = BASE_PRICE * PRICE
    x = program.least_whole(program.question(p_price=price, q_price=np.zeros(6))).x
    found = settle(program, Point(*program.exchange(x), 0.0), x[program.z])
    assert found.off_by < 13 * ROOM
    assert found.cost == pytest.approx(program.true_cost(x), abs=1e-5)
    assert made.both_ways_mw(found.y) < 1e-8


def devices() -> tuple[dict[str, Generator | Battery | PvInverter | WindTurbine | FlexibleLoad], Microgrid]:
    shared = {"bus": "b", "weight": 1.0, "default": still()}
    own = {
        "diesel": Generator(
            name="diesel",
            p_mw=0.1,
            p_min_mw=0.02,
            s_mva=0.12,
            ramp_mw_per_min=0.05 / 60,
            cost_per_mwh=50.0,
            start_up_cost=10.0,
            can_stop=True,
            p_start_mw=0.0,
            q_mvar=(-0.05, 0.05),
            **shared,
        ),
        "turbine": Generator(
            name="turbine",
            p_mw=0.2,
            p_min_mw=0.05,
            s_mva=0.2,
            ramp_mw_per_min=0.08 / 60,
            can_stop=True,
            cost_per_mwh=75.0,
            start_up_cost=4.0,
            **shared,
        ),
        "sun": PvInverter(name="sun", p_mw=0.08, s_mva=0.1, **shared),
        "roof": PvInverter(name="roof", p_mw=0.03, s_mva=0.1, power_factor=0.9, **shared),
        "wind": WindTurbine(name="wind", p_mw=0.06, power_factor=0.95, **shared),
        "store": Battery(
            name="store",
            p_mw=0.04,
            s_mva=0.05,
            e_mwh=0.08,
            e_min_mwh=0.02,
            e_start_mwh=0.06,
            efficiency=(0.9, 0.85),
            **shared,
        ),
        "load": FlexibleLoad(
            name="load", p_mw=0.05, firm_mw=0.0, power_factor=0.9, interruptible=False, **shared
        ),
    }
    grid = Microgrid(name="mg", bus="b", devices=tuple(own), tie_mw=1.0, shed_cost_per_mwh=500.0)
    return own, grid


def planned(
    rng: np.random.Generator, every: timedelta, intervals: int
) -> tuple[Commitment, dict[str, Array]]:
    own, grid = devices()
    site = replace(reference_site(("mg1",)), devices=own, microgrids={"mg": grid})
    units = fleet(site, grid, every)
    drive = {name: rng.uniform(0, 1.2, intervals) for name in ("sun", "roof", "wind", "load")}
    outlook = Outlook(
        p_mw={name: own[name].initial().p_mw for name in ("diesel", "turbine")},
        e_mwh={"store": 0.06},
        available_mw={
            name: np.array([max(own[name].wish(d), 0.0) for d in drive[name]])
            for name in ("sun", "roof", "wind")
        },
        demand_mw={"load": np.array([-own["load"].wish(d) for d in drive["load"]])},
        intervals=intervals,
    )
    return commitment(units, outlook, exclusive_stores=True), drive


@pytest.mark.parametrize("minutes", [15, 60])
@pytest.mark.parametrize("case", range(8))
def test_the_devices_can_do_every_extreme_operation(minutes: int, case: int) -> None:
    rng = np.random.default_rng([minutes, case])
    own, _ = devices()
    every = timedelta(minutes=minutes)
    made, drive = planned(rng, every, 6)
    program = Program(made)
    question = program.question(p_price=rng.normal(0, 400, 6), q_price=rng.normal(0, 200, 6))
    x = program.least_whole(question).x
    found = settle(program, Point(*program.exchange(x), 0.0), x[program.z])
    assert made.both_ways_mw(found.y) < 1e-8
    for name, device in own.items():
        p, q = made.injection(name, found.y, found.bits)
        state = device.initial()
        for t in range(6):
            now = drive[name][t] if name in drive else None
            here = {"p_mw": p[t], "q_mvar": q[t]}
            excess = min(mode.excess(here) for mode in device.modes(state, now, every.total_seconds()))
            assert excess < 2e-8, f"{name} at {t}: {here} is {excess} beyond what the device can do"
            state = device.advance(state, p[t], q[t], every.total_seconds())
        if state.e_mwh is not None:
            assert state.e_mwh == pytest.approx(made.symbol(name, "E", found.y, found.bits)[-1], abs=1e-7)


def test_an_engine_that_makes_more_than_its_ramp_cannot_stop_at_once() -> None:
    made, _ = planned(np.random.default_rng(1), timedelta(minutes=15), 4)
    outlook = replace(made.outlook, p_mw={"diesel": 0.0, "turbine": 0.2})
    program = Program(commitment(made.fleet, outlook))
    off = program.question(bits=np.zeros(program.K))
    with pytest.raises(Infeasible):
        program.least(off)


def test_a_row_that_never_binds_is_left_out() -> None:
    own, _ = devices()
    roof, sun = own["roof"], own["sun"]
    assert isinstance(roof, PvInverter)
    assert isinstance(sun, PvInverter)
    site = replace(reference_site(("mg1",)), devices={"roof": roof, "sun": sun})
    grid = Microgrid(name="mg", bus="b", devices=("roof", "sun"), tie_mw=1.0)
    units = {unit.name: unit for unit in fleet(site, grid).renewables}
    cone_only = shape(units["roof"].capability, 0.03)
    assert len(cone_only.b) == 2
    assert len(shape(units["sun"].capability, 0.08).b) > 10
    # The same points as before: both ways of saying it have the same corners.
    for unit, most in ((units["roof"], 0.03), (units["sun"], 0.08)):
        left = shape(unit.capability, most)
        whole = unit.capability.over(AXES) & band(0.0, most)
        few = Region(AXES, left.A, left.b) & band(*left.p)
        assert np.allclose(whole.vertices(), few.vertices(), atol=1e-9)


def test_an_outlook_is_what_was_measured_and_forecast() -> None:
    site = reference_site(("mg1",))
    grid = site.microgrids["mg1"]
    observation = seen(8, 5, site=site)
    units = fleet(site, grid)
    reading = read(observation, site, (grid,), 5)
    found = outlook_of(site, units, reading)
    assert found.intervals == 5
    commitment(units, found)
    for unit in units.engines:
        assert found.p_mw[unit.name] == observation.p_mw[unit.name]
    for store in units.stores:
        assert found.e_mwh[store.name] == observation.e_mwh[store.name]
    assert units.renewables
    assert units.demands
    for t in range(5):
        ahead = observation.forecast.at(t)
        for renewable in units.renewables:
            device = site.devices[renewable.name]
            drive = ahead[renewable.name] / device.rating_mw
            most = device.limits(DeviceState(), drive, 3600.0).limits("p_mw")[1]
            assert found.available_mw[renewable.name][t] == pytest.approx(most, abs=1e-9)
        for load in units.demands:
            device = site.devices[load.name]
            drive = -ahead[load.name] / device.rating_mw
            least = device.limits(DeviceState(), drive, 3600.0).limits("p_mw")[0]
            assert -found.demand_mw[load.name][t] == pytest.approx(least, abs=1e-9)


def test_what_does_not_fit_is_refused() -> None:
    box = Region.box(p_mw=(0.0, 1.0), q_mvar=(0.0, 0.0))
    demand = Demand(name="load", q_per_p=0.0)
    blank = {"p_mw": {}, "e_mwh": {}, "available_mw": {}, "intervals": 2}
    with pytest.raises(ValueError, match="engine: ramp_mw is -1"):
        Engine(name="engine", capability=box, ramp_mw=-1.0)
    with pytest.raises(ValueError, match="over"):
        Renewable(name="sun", capability=Region.box(p_mw=(0, 1)))
    with pytest.raises(ValueError, match=r"store: e_mwh \(2, 1\) is no range"):
        Store(name="store", p_mw=1.0, e_mwh=(2, 1), efficiency=(1.0, 1.0))
    with pytest.raises(ValueError, match="efficiency"):
        Store(name="store", p_mw=1.0, e_mwh=(0, 1), efficiency=(0.0, 1.0))
    with pytest.raises(ValueError, match=r"\['load'\] named twice"):
        Fleet(hours=1.0, demands=(demand, demand))
    with pytest.raises(ValueError, match="no unit"):
        Fleet(hours=1.0)
    with pytest.raises(ValueError, match="give a length above zero"):
        Fleet(hours=0.0, demands=(demand,))
    with pytest.raises(ValueError, match=r"demand_mw of \['load'\] is missing"):
        commitment(Fleet(hours=1.0, demands=(demand,)), Outlook(demand_mw={}, **blank))
    for wrong, why in ((np.ones(3), "shape"), (np.array([1.0, np.nan]), "powers"), (-np.ones(2), "powers")):
        with pytest.raises(ValueError, match=why):
            Outlook(demand_mw={"load": wrong}, **blank)
    with pytest.raises(ValueError, match="measure it"):
        Outlook(**{**blank, "demand_mw": {}, "p_mw": {"engine": np.nan}})
    site = reference_site(("mg1",))
    with pytest.raises(ValueError, match="device 'ghost' is not on site"):
        fleet(site, Microgrid(name="mg", bus="b", devices=("ghost",), tie_mw=1.0))


def test_loads_alone_make_a_block() -> None:
    units = Fleet(hours=0.5, demands=(Demand(name="load", q_per_p=0.5, curtailment_cost_per_mwh=400.0),))
    outlook = Outlook(
        p_mw={}, e_mwh={}, available_mw={}, demand_mw={"load": np.array([0.2, 0.1])}, intervals=2
    )
    found = settle(
        Program(commitment(units, outlook)), Point(np.array([-0.1, -0.1]), np.array([-0.05, -0.05]), 0.0)
    )
    assert found.cost == pytest.approx(0.1 * 0.5 * 400)
    assert found.off_by == pytest.approx(0.0, abs=5 * ROOM)
