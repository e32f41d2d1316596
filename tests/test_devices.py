"""Devices: the two views of one set of parameters agree, and twins obey."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import acos, hypot, tan
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.optimize import linprog

from controllers.contract import Infeasible, Instruction, Setpoint
from controllers.devices import (
    Battery,
    Device,
    DeviceState,
    FlexibleLoad,
    Generator,
    PvInverter,
    StaticVarCompensator,
    WindTurbine,
    still,
)
from controllers.region import Region
from simulators.clock import Duty, Tick
from simulators.devices import DevicesSimulator, DeviceTwin, Obedience
from simulators.tables import Outcome

Array = npt.NDArray[np.float64]
START = datetime(2026, 6, 21, 12, tzinfo=UTC)
STEP = timedelta(minutes=5)
WIDE = Region.box(p_mw=(-100, 100), q_mvar=(-100, 100))
EXACT = 1e-9


# Each kind: a random device in a random state, and its own bounds written down by hand.


@dataclass(frozen=True)
class Case:
    device: Device
    state: DeviceState
    drive: float | None
    every_s: float
    holds: Callable[[float, float, DeviceState], list[float]]
    """(p, q, state after) -> excesses over the device's bounds, none above zero"""
    most_mw: float
    """most it can inject, by hand"""


def common(rng: np.random.Generator) -> dict[str, Any]:
    return {"name": "d", "bus": "1", "weight": float(rng.uniform(0.1, 2)), "default": still()}


def pv(rng: np.random.Generator) -> Case:
    s, p = rng.uniform(0.1, 2, 2)
    drive = float(rng.uniform(0, 1.2))
    return Case(
        PvInverter(**common(rng), s_mva=s, p_mw=p),
        DeviceState(),
        drive,
        300.0,
        lambda P, Q, after: [-P, P - p * drive, hypot(P, Q) - s],
        min(p * drive, s),
    )


def wind(rng: np.random.Generator) -> Case:
    p, pf = rng.uniform(0.1, 3), rng.uniform(0.7, 1)
    drive = float(rng.uniform(0, 1.1))
    return Case(
        WindTurbine(**common(rng), p_mw=p, power_factor=pf),
        DeviceState(),
        drive,
        300.0,
        lambda P, Q, after: [-P, P - p * drive, abs(Q) - P * tan(acos(pf))],
        p * drive,
    )


def battery(rng: np.random.Generator) -> Case:
    p, capacity = rng.uniform(0.1, 1), rng.uniform(0.01, 1)
    s = p * rng.uniform(0.8, 1.5)
    low = capacity * rng.uniform(0, 0.3)
    stored = float(rng.choice([low, capacity, rng.uniform(low, capacity)]))
    charge, discharge = rng.uniform(0.7, 1, 2)
    minutes = float(rng.choice([1, 5, 60]))

    def holds(P: float, Q: float, after: DeviceState) -> list[float]:
        taken = P * minutes / 60 / discharge if P > 0 else 0.0
        put = -P * minutes / 60 * charge if P < 0 else 0.0
        balance = stored - taken + put
        assert after.e_mwh == pytest.approx(balance, abs=EXACT)
        return [abs(P) - p, hypot(P, Q) - s, low - balance, balance - capacity]

    return Case(
        Battery(
            **common(rng), p_mw=p, s_mva=s, e_mwh=capacity, e_min_mwh=low, e_start_mwh=low,
            efficiency=(float(charge), float(discharge)),
        ),
        DeviceState(e_mwh=stored),
        float(rng.uniform(-1, 1)),
        minutes * 60,
        holds,
        min(p, s, (stored - low) * discharge / (minutes / 60)),
    )  # fmt: skip


def load(rng: np.random.Generator) -> Case:
    p, pf = rng.uniform(0.1, 1), rng.uniform(0.6, 1)
    firm, drive = p * rng.uniform(0, 0.9), float(rng.uniform(0, 1.2))
    demand = max(p * drive, firm)
    return Case(
        FlexibleLoad(**common(rng), p_mw=p, firm_mw=firm, power_factor=pf),
        DeviceState(),
        drive,
        300.0,
        lambda P, Q, after: [P + firm, -demand - P, abs(Q - P * tan(acos(pf)))],
        -firm,
    )


def generator(rng: np.random.Generator) -> Case:
    p = rng.uniform(0.1, 1)
    s, p_min, ramp = p * rng.uniform(0.9, 1.3), p * rng.uniform(0, 0.5), p * rng.uniform(0.001, 0.3)
    before, minutes = float(rng.uniform(p_min, min(p, s))), float(rng.choice([1, 5]))
    return Case(
        Generator(**common(rng), p_mw=p, p_min_mw=p_min, s_mva=s, ramp_mw_per_min=ramp),
        DeviceState(p_mw=before),
        float(rng.uniform(0, 1)),
        minutes * 60,
        lambda P, Q, after: [p_min - P, P - p, abs(P - before) - ramp * minutes, hypot(P, Q) - s],
        min(p, before + ramp * minutes, s),
    )


def pv_with_power_factor(rng: np.random.Generator) -> Case:
    s, p, pf = rng.uniform(0.1, 2), rng.uniform(0.1, 2), rng.uniform(0.7, 1)
    drive = float(rng.uniform(0, 1.2))
    return Case(
        PvInverter(**common(rng), s_mva=s, p_mw=p, power_factor=pf),
        DeviceState(),
        drive,
        300.0,
        lambda P, Q, after: [-P, P - p * drive, hypot(P, Q) - s, abs(Q) - P * tan(acos(pf))],
        min(p * drive, s),
    )


def generator_with_q_range(rng: np.random.Generator) -> Case:
    p = rng.uniform(0.1, 1)
    p_min, ramp = p * rng.uniform(0, 0.5), p * rng.uniform(0.001, 0.3)
    before, minutes = float(rng.uniform(p_min, p)), float(rng.choice([1, 5]))
    low, high = -p * rng.uniform(0, 1), p * rng.uniform(0, 1)
    return Case(
        Generator(**common(rng), p_mw=p, p_min_mw=p_min, s_mva=p, ramp_mw_per_min=ramp, q_mvar=(low, high)),
        DeviceState(p_mw=before),
        float(rng.uniform(0, 1)),
        minutes * 60,
        lambda P, Q, after: [p_min - P, P - p, abs(P - before) - ramp * minutes, low - Q, Q - high],
        min(p, before + ramp * minutes),
    )


def compensator(rng: np.random.Generator) -> Case:
    low, high = -rng.uniform(0, 1), rng.uniform(0, 1)
    return Case(
        StaticVarCompensator(**common(rng), q_mvar=(low, high)),
        DeviceState(),
        None,
        300.0,
        lambda P, Q, after: [abs(P), low - Q, Q - high],
        0.0,
    )


KINDS = [pv, wind, battery, load, generator, pv_with_power_factor, generator_with_q_range, compensator]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def cases(request: pytest.FixtureRequest) -> list[Case]:
    rng = np.random.default_rng(3)
    return [request.param(rng) for _ in range(60)]


# The model is the simulator


def test_what_the_limits_allow_the_device_can_do(cases: list[Case]) -> None:
    rng = np.random.default_rng(4)
    for case in cases:
        corners = case.device.limits(case.state, case.drive, case.every_s).vertices()
        inside = rng.dirichlet(np.ones(len(corners)), size=10) @ corners
        for p, q in (*corners, *inside):
            after = case.device.advance(case.state, float(p), float(q), case.every_s)
            assert (after.p_mw, after.q_mvar) == (p, q)
            assert max(case.holds(p, q, after)) <= EXACT


def test_the_limits_leave_nothing_away(cases: list[Case]) -> None:
    for case in cases:
        able = case.device.limits(case.state, case.drive, case.every_s)
        assert able.limits("p_mw")[1] == pytest.approx(case.most_mw, abs=EXACT)


def test_what_it_wishes_it_is_able_to_but_for_its_state(cases: list[Case]) -> None:
    """Without instruction limits, a twin does what it wants as far as its own limits let it."""
    for case in cases:
        twin = DeviceTwin(case.device)
        twin.state = case.state
        twin.receive(instruction(region=None), START)
        report = twin.step(START, case.drive, case.every_s)
        wish = case.device.wish(case.drive)
        low, high = case.device.limits(case.state, case.drive, case.every_s).limits("p_mw")
        assert report.p_mw == pytest.approx(min(max(wish, low), high), abs=EXACT)
        assert report.q_mvar == pytest.approx(case.device.reactive(report.p_mw), abs=EXACT)
        assert report.obedience is Obedience.CONTROLLED


def test_a_day_of_a_battery_loses_only_what_its_efficiency_takes() -> None:
    device = Battery(
        name="b", bus="1", p_mw=0.5, s_mva=0.5, e_mwh=1.0, e_min_mwh=0.1, e_start_mwh=0.4,
        efficiency=(0.9, 0.95), weight=1.0, default=WIDE,
    )  # fmt: skip
    twin, into, out = DeviceTwin(device), 0.0, 0.0
    for k in range(288):
        drive = float(np.sin(2 * np.pi * k / 96))
        report = twin.step(START + k * STEP, drive, 300.0)
        assert report.p_mw * drive >= 0
        assert report.e_mwh is not None
        assert 0.1 <= report.e_mwh <= 1.0
        into += max(-report.p_mw, 0.0) * 300 / 3600
        out += max(report.p_mw, 0.0) * 300 / 3600
    assert min(into, out) > 1.0  # it did cycle, and ran against both of its ends
    assert twin.state.e_mwh == pytest.approx(0.4 + 0.9 * into - out / 0.95, abs=EXACT)


def test_a_generator_ramps_to_where_it_is_sent() -> None:
    device = Generator(
        name="g", bus="1", p_mw=1.0, p_min_mw=0.2, s_mva=1.0, ramp_mw_per_min=0.05, weight=1.0, default=WIDE
    )
    twin = DeviceTwin(device)
    assert [twin.step(START, 1.0, 60.0).p_mw for _ in range(18)] == pytest.approx(
        [min(0.2 + 0.05 * (k + 1), 1.0) for k in range(18)]
    )


# Obedience


def instruction(
    region: Region | None = WIDE,
    *,
    setpoint: Setpoint | None = None,
    epoch: int = 1,
    seq: int = 1,
    begins: datetime = START,
    steps: int = 2,
) -> Instruction:
    return Instruction(
        device="d", epoch=epoch, seq=seq, issued_at=begins - STEP, valid_from=begins,
        valid_until=begins + steps * STEP, region=region, setpoint=setpoint, fallback=still(),
    )  # fmt: skip


def slack(region: Region) -> float:
    """The most by which every row of a region can hold at once; negative: it is empty."""
    rows = np.column_stack([region.A, np.ones(len(region.b))])
    answer = linprog([0, 0, -1], A_ub=rows, b_ub=region.b, bounds=(None, None))
    assert answer.x is not None
    return float(answer.x[2])


def test_a_twin_keeps_its_region_wherever_it_can(cases: list[Case]) -> None:
    rng, met = np.random.default_rng(5), 0
    for case in cases:
        low = rng.uniform(-1, 0.5, 2)
        region = Region.box(
            p_mw=(low[0], low[0] + rng.uniform(0, 1)), q_mvar=(low[1], low[1] + rng.uniform(0, 1))
        )
        region &= Region(("q_mvar", "p_mw"), rng.normal(size=(1, 2)), np.array([rng.uniform(0.2, 1)]))
        twin = DeviceTwin(case.device)
        twin.state = case.state
        target = Setpoint(p_mw=float(rng.uniform(-1, 1)), q_mvar=float(rng.uniform(-1, 1)))
        twin.receive(instruction(region, setpoint=target if rng.random() < 0.5 else None), START)
        report = twin.step(START, case.drive, case.every_s)
        point = (report.p_mw, report.q_mvar)
        able = case.device.limits(case.state, case.drive, case.every_s)
        assert able.excess(point) <= EXACT
        room = slack(able & region)
        assert not -1e-6 < room < -EXACT, "an ambiguous case; choose another seed"
        if room < 0:
            assert report.obedience is Obedience.UNABLE
        else:
            assert (able & region).excess(point) <= EXACT
            assert report.obedience in {Obedience.CONTROLLED, Obedience.LIMITED}
            met += 1
    assert 5 < met < len(cases)


def solar(default: Region | None = None) -> DeviceTwin:
    """One MW of sun that nobody limits, unless told."""
    return DeviceTwin(
        PvInverter(name="d", bus="1", s_mva=1.0, p_mw=1.0, weight=1.0, default=default or still())
    )


def upto(p_mw: float) -> Region:
    return Region.box(p_mw=(0, p_mw), q_mvar=(0, 0))


def test_it_says_what_it_goes_by_and_what_is_lost() -> None:
    twin = solar(upto(0.1))
    first = twin.step(START, 0.8, 300.0)
    assert first.obedience is Obedience.INIT
    assert first.p_mw == pytest.approx(0.1)
    assert first.available_mw == pytest.approx(0.8)
    assert first.curtailed_mw == pytest.approx(0.7)
    twin.receive(instruction(upto(0.3)), START)
    limited = twin.step(START, 0.8, 300.0)
    assert limited.obedience is Obedience.LIMITED
    assert limited.p_mw == pytest.approx(0.3)
    free = twin.step(START + STEP, 0.2, 300.0)
    assert free.obedience is Obedience.CONTROLLED
    assert free.p_mw == pytest.approx(0.2)
    assert free.curtailed_mw == 0
    expired = twin.step(START + 2 * STEP, 0.8, 300.0)
    assert expired.obedience is Obedience.FAILSAFE
    assert expired.p_mw == pytest.approx(0.1)


def test_an_old_or_repeated_number_is_refused_and_a_new_epoch_begins_anew() -> None:
    twin = solar()
    outcomes = [
        twin.receive(instruction(upto(p), epoch=epoch, seq=seq), START).outcome
        for p, epoch, seq in ((0.5, 1, 7), (0.1, 1, 6), (0.1, 1, 7), (0.4, 2, 1), (0.1, 1, 8))
    ]
    applied, refused = Outcome.APPLIED, Outcome.REFUSED
    assert outcomes == [applied, refused, refused, applied, refused]
    assert twin.step(START, 1.0, 300.0).p_mw == pytest.approx(0.4)
    assert twin.receive(instruction(upto(0.2), epoch=1, seq=9), START).outcome is refused
    assert twin.step(START, 1.0, 300.0).p_mw == pytest.approx(0.4)


def test_an_expired_instruction_is_not_taken() -> None:
    twin = solar()
    twin.receive(instruction(upto(0.5), seq=1, steps=3), START)
    late = instruction(upto(0.1), seq=2, steps=1)
    assert twin.receive(late, START + STEP).outcome is Outcome.EXPIRED
    assert twin.step(START + STEP, 1.0, 300.0).p_mw == pytest.approx(0.5)
    assert twin.receive(instruction(upto(0.3), seq=2, steps=3), START + STEP).outcome is Outcome.APPLIED


def test_an_instruction_for_later_does_not_end_the_present_one() -> None:
    twin = solar()
    assert twin.receive(instruction(upto(0.5), seq=1), START).outcome is Outcome.APPLIED
    coming = instruction(upto(0.2), seq=2, begins=START + STEP)
    assert twin.receive(coming, START).outcome is Outcome.APPLIED
    assert twin.receive(instruction(upto(0.9), seq=1), START).outcome is Outcome.REFUSED
    powers = [twin.step(START + k * STEP, 1.0, 300.0).p_mw for k in range(4)]
    assert powers == pytest.approx([0.5, 0.2, 0.2, 0.0])


@pytest.mark.parametrize(
    ("setpoint", "point", "stage"),
    [
        (Setpoint(p_mw=0.4, q_mvar=0.1), (0.4, 0.1), Obedience.CONTROLLED),
        (Setpoint(p_mw=0.4), (0.4, 0.0), Obedience.CONTROLLED),
        (Setpoint(q_mvar=-0.1), (0.6, -0.1), Obedience.LIMITED),  # P stays its own wish, which is 0.9
        (Setpoint(p_mw=0.8, q_mvar=0.0), (0.6, 0.0), Obedience.LIMITED),
        (Setpoint(p_mw=-0.5, q_mvar=0.5), (0.0, 0.2), Obedience.LIMITED),
    ],
)
def test_a_setpoint_counts_inside_the_region(
    setpoint: Setpoint, point: tuple[float, float], stage: Obedience
) -> None:
    twin = solar()
    twin.receive(instruction(Region.box(p_mw=(0, 0.6), q_mvar=(-0.2, 0.2)), setpoint=setpoint), START)
    report = twin.step(START, 0.9, 300.0)
    assert (report.p_mw, report.q_mvar) == pytest.approx(point, abs=EXACT)
    assert report.obedience is stage


def test_its_own_limits_are_not_the_regions() -> None:
    """More modules than inverter: it is the inverter that limits, not the region."""
    twin = DeviceTwin(PvInverter(name="d", bus="1", s_mva=0.5, p_mw=1.0, weight=1.0, default=still()))
    twin.receive(instruction(upto(0.7)), START)
    report = twin.step(START, 1.0, 300.0)
    assert report.p_mw == pytest.approx(0.5)
    assert report.obedience is Obedience.CONTROLLED


@pytest.mark.parametrize("region", [None, WIDE, Region.box(p_mw=(-0.5, 0), q_mvar=(-1, 1))])
def test_a_load_keeps_its_power_factor(region: Region | None) -> None:
    device = FlexibleLoad(
        name="d", bus="1", p_mw=1.0, firm_mw=0.2, power_factor=0.9, weight=1.0, default=WIDE
    )
    twin = DeviceTwin(device)
    twin.receive(instruction(region), START)
    report = twin.step(START, 0.8, 300.0)
    assert report.p_mw == pytest.approx(-0.5 if region not in (None, WIDE) else -0.8)
    assert report.q_mvar == pytest.approx(report.p_mw * tan(acos(0.9)))


def test_it_comes_as_close_as_it_can() -> None:
    """A generator at 0.9 MW that must be at 0.1 MW at most, and takes 0.1 MW a step."""
    device = Generator(
        name="d",
        bus="1",
        p_mw=1.0,
        p_min_mw=0.0,
        s_mva=1.0,
        ramp_mw_per_min=0.02,
        weight=1.0,
        default=still(),
    )
    twin = DeviceTwin(device)
    twin.state = DeviceState(p_mw=0.9)
    twin.receive(instruction(upto(0.1), steps=20), START)
    reports = [twin.step(START + k * STEP, 1.0, 300.0) for k in range(9)]
    assert [r.p_mw for r in reports] == pytest.approx([0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.1])
    assert [r.obedience for r in reports] == [*[Obedience.UNABLE] * 7, *[Obedience.LIMITED] * 2]


def test_a_region_without_a_point_sends_it_to_its_default() -> None:
    twin = solar(upto(0.1))
    nothing = Region.box(p_mw=(0.5, 1), q_mvar=(0, 0)) & Region.box(p_mw=(0, 0.4), q_mvar=(0, 0))
    twin.receive(instruction(nothing), START)
    report = twin.step(START, 1.0, 300.0)
    assert report.p_mw == pytest.approx(0.1)
    assert report.obedience is Obedience.UNABLE


@pytest.mark.parametrize("region", [None, WIDE])
def test_a_device_that_contradicts_itself_is_named(region: Region | None) -> None:
    twin = DeviceTwin(
        Generator(
            name="g7", bus="1", p_mw=1.0, p_min_mw=0.5, s_mva=0.2, ramp_mw_per_min=1, weight=1, default=WIDE
        )
    )
    twin.receive(instruction(region), START)
    with pytest.raises(Infeasible, match=r"'g7'.*ratings"):
        twin.step(START, 1.0, 300.0)


def test_the_fleet_delivers_and_reports() -> None:
    twins = {
        name: PvInverter(name=name, bus="1", s_mva=1.0, p_mw=1.0, weight=1.0, default=still())
        for name in ("d", "e")
    }
    fleet = DevicesSimulator(twins, 300.0)
    told = {"d": instruction(upto(0.3)), "elsewhere": instruction(upto(0.3))}
    reports = fleet.run(Tick(0, START, Duty.FULL, START), {"d": 1.0}, told)
    assert [(r.device, r.p_mw) for r in reports] == [("d", pytest.approx(0.3)), ("e", 0.0)]
    receipts = fleet.out["fleet"]["receipts"]
    assert {(receipt.device, receipt.epoch, receipt.seq, receipt.at) for receipt in receipts} == {
        ("d", 1, 1, START)
    }
    assert fleet.out["e"]["report"] is reports[1]
