"""The partnership's scenarios: the source's tables, its published schedule by our twins, loads that may be
curtailed, and what a file may say of engines that stop and of compensators."""

from __future__ import annotations

import csv
from datetime import timedelta
from math import acos, hypot, tan
from pathlib import Path
from typing import Any

import pytest

from controllers import (
    Battery,
    Device,
    FlexibleLoad,
    Generator,
    Instruction,
    PvInverter,
    Region,
    Setpoint,
    StaticVarCompensator,
)
from controllers.devices import still
from controllers.envelopes.equal_boxes import EqualBoxes
from controllers.interchange.dispatch import MicrogridDispatch
from controllers.interchange.prediction import InterchangePrediction
from controllers.rating import apparent_mva, rating_of
from scenarios.build import Built, build
from scenarios.check import ScenarioInvalid, validate
from scenarios.inlet import believable
from scenarios.load import load
from scenarios.report import summary
from simulators.devices import DeviceReport, DeviceTwin, Obedience
from tests.running import do

DATA = Path(__file__).parent / "data"
HOURS = range(1, 7)
BUSES = {"mg1": 7, "mg2": 50, "mg3": 58, "mg4": 96, "mg5": 104, "mg6": 121}

# By bus, in kW, kvar, kWh and $/kWh as in the source's tables A.II to A.V.
ENGINES = {
    7: (0.05, 10, 20, 100, -50, 50, 50),
    50: (0.08, 5, 30, 150, -75, 75, 45),
    58: (0.04, 10, 50, 150, -50, 100, 80),
    96: (0.055, 10, 20, 120, -10, 50, 50),
    104: (0.085, 10, 10, 80, -20, 50, 40),
    121: (0.045, 10, 20, 120, -25, 75, 50),
}
SUN = {7: (30, 0.9), 50: (50, 0.95), 58: (80, 0.85), 96: (80, 0.9), 104: (40, 0.85), 121: (60, 0.9)}
STORES = {
    7: (40, 20, 80, 60, 0.9),
    50: (40, 20, 100, 40, 0.85),
    58: (35, 30, 90, 30, 0.9),
    96: (60, 40, 160, 80, 0.95),
    104: (40, 20, 80, 40, 0.9),
    121: (30, 40, 120, 60, 0.9),
}
SCALARS = {
    "price": (0.77, 1, 1.16, 0.9, 1.30, 0.77),
    "load": (0.85, 0.95, 0.9, 1, 0.95, 0.85),
    "sun": (1, 1.2, 0.6, 1, 1.4, 1),
}
BASE_PRICE = 103.0


def built_of(name: str, *changes: str) -> Built:
    draft = load(name, changes)
    return build(draft, validate(draft))


@pytest.fixture(scope="module")
def built() -> Built:
    return built_of("ieee123-partnership")


@pytest.fixture(scope="module")
def drives(built: Built) -> list[dict[str, float]]:
    """What the profiles give in each of the seven steps, by name."""
    every = []
    for step in range(7):
        found: dict[str, float] = {}
        for driven in built.driven:
            driven.process.advance(step)
            found |= dict(zip(driven.process.names, driven.process.now().tolist(), strict=True))
        every.append(found)
    return every


def device_at(built: Built, bus: int, kind: type[Device]) -> Any:
    """The microgrids' only device of a kind at a bus."""
    own = {name for grid in built.site.microgrids.values() for name in grid.devices}
    (found,) = [
        d
        for name, d in built.site.devices.items()
        if name in own and isinstance(d, kind) and d.bus == str(bus)
    ]
    return found


def published() -> dict[tuple[int, str], list[float]]:
    """Table A.VI by bus and quantity [kW, kvar]."""
    with (DATA / "table_a6.csv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    return {(int(r["bus"]), r["quantity"]): [float(r[f"t{t}"]) for t in HOURS] for r in rows}


# The source's tables


def test_the_devices_are_those_of_the_tables(built: Built) -> None:
    assert {name: int(grid.bus) for name, grid in built.site.microgrids.items()} == BUSES
    for bus, (cost, start, p_min, p_max, q_min, q_max, ramp) in ENGINES.items():
        engine = device_at(built, bus, Generator)
        figures = [
            engine.cost_per_mwh / 1e3, engine.start_up_cost, 1e3 * engine.p_min_mw, 1e3 * engine.p_mw,
            *(1e3 * q for q in engine.q_mvar), 60e3 * engine.ramp_mw_per_min,
        ]  # fmt: skip
        assert figures == pytest.approx([cost, start, p_min, p_max, q_min, q_max, ramp], rel=1e-12)
        assert engine.can_stop
        assert engine.initial().p_mw == 0.0
        assert engine.default.limits("p_mw") == (0.0, 0.0)
    for bus, (p, low, high, stored, efficiency) in STORES.items():
        store = device_at(built, bus, Battery)
        found = [1e3 * x for x in (store.p_mw, store.e_min_mwh, store.e_mwh, store.e_start_mwh)]
        assert found == pytest.approx([p, low, high, stored])
        assert store.efficiency == (efficiency, efficiency)
        assert store.cost_per_mwh == 0.0
    compensators = {
        int(d.bus): tuple(1e3 * q for q in d.q_mvar)
        for d in built.site.devices.values()
        if isinstance(d, StaticVarCompensator)
    }
    assert compensators == {3: (-300, 300), 88: (-300, 300), 113: (-200, 200), 117: (-400, 400)}
    assert built.site.limits.v_pu == (0.9, 1.1)


def test_profiles_are_the_scalars_exactly(built: Built, drives: list[dict[str, float]]) -> None:
    found = drives
    for k, t in enumerate(HOURS):
        assert found[t]["price"] == pytest.approx(BASE_PRICE * SCALARS["price"][k], rel=1e-12)
        for name, device in built.site.devices.items():
            if isinstance(device, FlexibleLoad):
                assert found[t][name] == SCALARS["load"][k]
        for bus, (nominal, factor) in SUN.items():
            sun = device_at(built, bus, PvInverter)
            assert 1e3 * sun.wish(found[t][sun.name]) == pytest.approx(nominal * SCALARS["sun"][k], rel=1e-12)
            assert sun.power_factor == factor
            # The inverter's own rating leaves it all of (B5).
            most = sun.limits(sun.initial(), found[t][sun.name], 3600.0).limits("q_mvar")[1]
            assert 1e3 * most == pytest.approx(nominal * SCALARS["sun"][k] * tan(acos(factor)), rel=1e-12)


def test_what_their_ratings_allow_is_believed_when_they_measure_it(built: Built) -> None:
    for device in built.site.devices.values():
        reach = max(hypot(p, q) for p, q in rating_of(device).vertices())
        assert reach - 1e-9 <= apparent_mva(device) <= believable(device)[0]
        if isinstance(device, StaticVarCompensator):
            assert apparent_mva(device) == reach


def test_every_load_of_the_feeder_is_one_of_the_devices(built: Built) -> None:
    loads = [d for d in built.site.devices.values() if isinstance(d, FlexibleLoad)]
    assert len(loads) == 85
    assert not built.site.loads
    assert sum(d.p_mw for d in loads) == pytest.approx(3.490)
    assert sum(-d.reactive(-d.p_mw) for d in loads) == pytest.approx(1.920)
    behind = {name for grid in built.site.microgrids.values() for name in grid.devices}
    own = {int(d.bus): d.p_mw for d in loads if d.name in behind}
    assert own == {7: 0.02, 50: 0.04, 58: 0.02, 96: 0.02, 104: 0.04}
    assert {d.cost_per_mwh for d in loads} == {500.0}


async def test_the_hour_of_full_load_without_anybody_is_the_base_power_flow(tmp_path: Path) -> None:
    """Its least voltage is a published figure of the feeder, at bus 85; the defaults of all loads leave them
    what they want."""
    result = await do("ieee123-partnership", tmp_path, "controllers=[]")
    found = summary(result.directory).least_v_pu
    assert found is not None
    assert (found.name, found.time.hour) == ("85", 4)
    assert found.value == pytest.approx(0.943907, abs=1e-6)


# The published schedule, by our twins


def follow(
    built: Built, given: list[dict[str, float]], bus: int, schedule: dict[tuple[int, str], list[float]]
) -> dict[str, list[DeviceReport]]:
    """What the twins of one microgrid do when they are told its row of the table, hour by hour."""
    of = {"dg": Generator, "re": PvInverter, "ess": Battery}
    twins = {kind: DeviceTwin(device_at(built, bus, cls)) for kind, cls in of.items()}
    found: dict[str, list[DeviceReport]] = {kind: [] for kind in twins}
    for k, t in enumerate(HOURS):
        now = built.scenario.start + timedelta(hours=t)
        for kind, twin in twins.items():
            p_mw = schedule[bus, f"{kind}_p_kw"][k] / 1e3
            q_mvar = 0.0 if kind == "ess" else schedule[bus, f"{kind}_q_kvar"][k] / 1e3
            device = twin.device.name
            told = Instruction(
                device=device, epoch=1, seq=t, issued_at=now, valid_from=now,
                valid_until=now + timedelta(hours=1), region=None, fallback=still(),
                setpoint=Setpoint(p_mw=p_mw, q_mvar=q_mvar),
            )  # fmt: skip
            twin.receive(told, now)
            found[kind].append(twin.step(now, given[t].get(device), 3600.0))
    return found


@pytest.mark.parametrize("bus", list(BUSES.values()))
def test_the_published_schedule_is_one_that_our_twins_keep(
    built: Built, drives: list[dict[str, float]], bus: int
) -> None:
    """(B3) to (B6): each cell within the rounding of the table, its ramps, ranges and energy with it."""
    schedule = published()
    for kind, reports in follow(built, drives, bus, schedule).items():
        for k, report in enumerate(reports):
            assert 1e3 * report.p_mw == pytest.approx(schedule[bus, f"{kind}_p_kw"][k], abs=0.1), (kind, k)
            assert report.obedience is Obedience.CONTROLLED
            if kind != "ess":
                assert 1e3 * report.q_mvar == pytest.approx(schedule[bus, f"{kind}_q_kvar"][k], abs=0.1)
    # Without any twin: the energy of the store by its recursion, and the sun's power by the forecast.
    p_most, low, high, stored, eta = STORES[bus]
    energy = [float(stored)]
    for p in schedule[bus, "ess_p_kw"]:
        assert abs(p) <= p_most
        energy.append(energy[-1] - (p / eta if p > 0 else p * eta))
        assert low - 0.1 <= energy[-1] <= high + 0.1
    assert energy[-1] == pytest.approx(low, abs=0.1)
    nominal, factor = SUN[bus]
    for k, scalar in enumerate(SCALARS["sun"]):
        assert schedule[bus, "re_p_kw"][k] == pytest.approx(nominal * scalar)
        assert schedule[bus, "re_q_kvar"][k] == pytest.approx(nominal * scalar * tan(acos(factor)), abs=0.1)
    before = 0.0
    for p in schedule[bus, "dg_p_kw"]:
        *_, p_min, p_max, _, _, ramp = ENGINES[bus]
        assert p == 0 or p_min <= p <= p_max
        assert abs(p - before) <= ramp
        before = p


def test_a_schedule_beyond_the_ramp_is_none_that_our_twins_keep(
    built: Built, drives: list[dict[str, float]]
) -> None:
    """So that the test above can fail."""
    schedule = published()
    schedule[7, "dg_p_kw"] = [51.0, *schedule[7, "dg_p_kw"][1:]]
    schedule[7, "ess_p_kw"] = [-22.4, *schedule[7, "ess_p_kw"][1:]]
    schedule[7, "re_p_kw"] = [30.2, *schedule[7, "re_p_kw"][1:]]
    first = {kind: reports[0] for kind, reports in follow(built, drives, 7, schedule).items()}
    assert 1e3 * first["dg"].p_mw == pytest.approx(50.0)
    assert 1e3 * first["ess"].p_mw == pytest.approx(-20 / 0.9)
    assert 1e3 * first["re"].p_mw == pytest.approx(30.0)


# Loads that may be curtailed


def test_loads_keep_their_power_factor_and_their_demand_until_they_are_told() -> None:
    built = built_of("ieee123-partnership", "grid.profiles={}", "grid.curtailable.cost_per_mwh=7")
    loads = {n: d for n, d in built.site.devices.items() if n.startswith("load-")}
    assert len(loads) == 80
    device = loads["load-0"]
    assert isinstance(device, FlexibleLoad)
    assert (device.bus, device.p_mw, device.cost_per_mwh) == ("1", 0.04, 7.0)
    twin = DeviceTwin(device)
    report = twin.step(built.scenario.start, None, 3600.0)
    assert (report.p_mw, report.q_mvar) == pytest.approx((-0.04, -0.02))
    told = Instruction(
        device="load-0", epoch=1, seq=1, issued_at=built.scenario.start, valid_from=built.scenario.start,
        valid_until=built.scenario.start + timedelta(hours=1), setpoint=Setpoint(p_mw=-0.01),
        region=Region.box(p_mw=(-1, 0), q_mvar=(-1, 0)), fallback=still(),
    )  # fmt: skip
    twin.receive(told, built.scenario.start)
    report = twin.step(built.scenario.start, None, 3600.0)
    assert (report.p_mw, report.q_mvar) == pytest.approx((-0.01, -0.005))


def test_edits_come_first_and_a_load_that_no_flexible_one_can_be_stays() -> None:
    changed = [
        "grid.edits.0={table: load, index: [0], column: q_mvar, value: -0.01}",
        "grid.edits.1={table: load, index: [1], column: scaling, value: 0.5}",
        "microgrids=[]",
        "controllers=[]",
    ]
    draft = load("ieee123-partnership", ["grid.edits=[null, null]", *changed])
    built = build(draft, validate(draft))
    assert list(built.site.loads) == ["load:0"]
    assert built.site.loads["load:0"].q_mvar == 0.01
    half = built.site.devices["load-1"]
    whole = built_of("ieee123-partnership").site.devices["load-1"]
    assert half.rating_mw == pytest.approx(whole.rating_mw / 2)


@pytest.mark.parametrize(
    ("change", "path", "words"),
    [
        ("grid.curtailable={cost_per_mwh: -1}", "grid.curtailable.cost_per_mwh", "equal to 0"),
        ("grid.curtailable={}", "grid.curtailable.cost_per_mwh", "is required"),
        ("grid.curtailable=yes", "grid.curtailable", "mapping"),
        ("devices.mg1_dg.start_up_cost=-1", "devices.mg1_dg.start_up_cost", "greater than or equal to 0"),
        ("devices.mg1_dg.q_mvar=[0.05, -0.05]", "devices.mg1_dg.q_mvar", "lower limit 0.05 above its upper"),
        ("devices.mg1_dg.q_mvar=[0.01, 0.05]", "devices.mg1_dg.q_mvar", "0 has to be among it"),
        ("devices.mg1_dg.p_start_mw=0.01", "devices.mg1_dg", "not from 0.02 to 0.1, nor 0, which is off"),
        ("devices.mg1_dg.p_min_mw=0", "devices.mg1_dg", "give p_min_mw above 0"),
        ("devices.mg1_dg.can_stop=false", "devices.mg1_dg", "add can_stop: true"),
        ("devices.mg1_dg.s_mva=0.2", "devices.mg1_dg", "both s_mva and q_mvar"),
        ("devices.mg1_re.power_factor=1.1", "devices.mg1_re.power_factor", "less than or equal to 1"),
        ("devices.svc3.q_mvar=[0.3, -0.3]", "devices.svc3.q_mvar", "swap them"),
        ("devices.svc3.q_mvar=[0.1, 0.3]", "devices.svc3.q_mvar", "0 has to be among it"),
        ("devices.svc3.profile=sun", "devices.svc3", "nothing to scale"),
        ("devices.svc3.default={p_mw: [0, 1]}", "devices.svc3", "it has no active power"),
        ("devices.svc3.p_mw=1", "devices.svc3.p_mw", "no key that is known"),
        ("devices.svc3.via={sunspec: {host: localhost}}", "devices.svc3.via", "take mqtt"),
    ],
)  # fmt: skip
def test_a_file_that_says_what_cannot_be_is_told_so(change: str, path: str, words: str) -> None:
    with pytest.raises(ScenarioInvalid) as caught:
        validate(load("ieee123-partnership", [change]))
    assert any(p.path == path and words in p.advice for p in caught.value.problems), caught.value.problems


def test_off_at_first_is_no_start_of_an_engine_that_cannot_stop() -> None:
    changes = ["can_stop=false", "start_up_cost=0"]
    with pytest.raises(ScenarioInvalid) as caught:
        validate(load("ieee123-partnership", [f"devices.mg1_dg.{change}" for change in changes]))
    (problem,) = caught.value.problems
    assert problem.advice.endswith("p_start_mw 0 is not from 0.02 to 0.1")


@pytest.mark.parametrize(
    "around",
    [
        [],
        ["controllers.operator.fallback=controllers.partnership.centralised:PartnershipCentralised"],
        ["controllers.operator.deadline=1min"],
    ],
)
def test_a_leader_and_its_followers_look_as_far_ahead(around: list[str]) -> None:
    draft = load("ieee123-partnership", ["controllers.mg3.options.horizon=4", *around])
    with pytest.raises(ScenarioInvalid) as caught:
        build(draft, validate(draft))
    (problem,) = caught.value.problems
    assert (problem.path, problem.value) == ("controllers.mg3.options.horizon", "4")
    assert problem.advice == (
        "looks 4 intervals ahead and its leader 'operator' 6; they talk about the same ones, so give both "
        "the same horizon"
    )


@pytest.mark.parametrize("method", [InterchangePrediction, MicrogridDispatch])
def test_methods_that_plan_by_linear_programs_refuse_engines_that_stop(built: Built, method: Any) -> None:
    with pytest.raises(ValueError, match="'mg1_dg' can stop"):
        method(built.site, microgrid="mg1")


def test_methods_of_envelopes_refuse_compensators_outside_microgrids(built: Built) -> None:
    with pytest.raises(ValueError, match=r"'svc3' .* no active power to share"):
        EqualBoxes(built.site)


def test_the_day_is_the_same_case_with_its_own_weather() -> None:
    six, day = built_of("ieee123-partnership"), built_of("ieee123-partnership-day")
    assert list(day.site.devices) == list(six.site.devices)
    assert (day.scenario.steps, day.scenario.forecast.intervals) == (24, 6)
    spreads = {name: p.model_dump()["spread"] for name, p in day.scenario.profiles.items()}
    assert all(spread > 0 for spread in spreads.values())
    assert all(len(p.model_dump()["values"]) == 24 for p in day.scenario.profiles.values())
