"""Tap changers and capacitor banks: as values, in a scenario, in the linear model, in the plant, in a run."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandapower as pp
import pandapower.networks as pn
import pytest

from controllers import (
    CapacitorBank,
    Decision,
    Infeasible,
    Instruction,
    Observation,
    Origin,
    Region,
    Site,
    TapChanger,
)
from controllers.envelopes import AllowableRegion
from controllers.regulators import moves, standing
from scenarios.build import Built, build
from scenarios.check import ScenarioInvalid, validate
from scenarios.load import load
from scenarios.report import summary
from scenarios.run import Exit
from simulators.clock import Duty, Tick
from simulators.controller import ControllersSimulator, Seat
from simulators.grid import Divergence, GridSimulator, Measured
from simulators.journal import read
from simulators.network import network_of
from simulators.per_unit import NetworkRefused, per_unit
from simulators.regulated import at_rest, require_place
from tests.envelope_cases import NOON, STEP, seen
from tests.running import do

OLTC = TapChanger(name="oltc", step=0.0125, lowest=-8, highest=8)
BANK = CapacitorBank(name="cb1", bus="16", q_mvar=0.5, steps=4)
BOTH = {"oltc": OLTC, "cb1": BANK}


@cache
def built(*changes: str) -> Built:
    draft = load("ieee33-regulated", ["bus.kind=memory", *changes])
    return build(draft, validate(draft))


def problems(*changes: str) -> str:
    with pytest.raises(ScenarioInvalid) as refused:
        built(*changes)
    return str(refused.value)


# Values


def test_T15_three_taps_down_on_the_primary_side_raise_the_voltage_to_1_03896() -> None:
    assert OLTC.ratio(-3) == pytest.approx(1.03896, abs=5e-6)
    assert OLTC.ratio(-4) > 1.05 > OLTC.ratio(-3)  # which is why the source's strategy stops at -3
    site = built("regulators.oltc.start=-3").site
    assert site.power_flow is not None
    n = len(site.power_flow.buses)
    flows = site.power_flow.solve(np.zeros((1, n)), np.zeros((1, n)))
    assert flows.v_pu[0] == pytest.approx(np.full(n, 1 / (1 - 3 * 0.0125)), abs=1e-9)


def test_positions_of_all_regulators() -> None:
    assert standing(BOTH, {}) == {"oltc": 0, "cb1": 0}
    assert standing(BOTH, {"cb1": np.int64(3)}) == {"oltc": 0, "cb1": 3}
    with pytest.raises(KeyError, match=r"no regulator 'cb7'; there are oltc, cb1"):
        standing(BOTH, {"cb7": 1})
    for wrong, why in ((5, r"'cb1': position 5 is not in 0\.\.4"), (1.0, "1.0 is no whole number")):
        with pytest.raises(ValueError, match=why):
            standing(BOTH, {"cb1": wrong})  # type: ignore[dict-item]
    assert moves({"oltc": 2, "cb1": 1}, {"oltc": -1, "cb1": 1}) == {"oltc": 3}


# A scenario's section


def test_a_scenario_gives_its_site_regulators() -> None:
    site = built().site
    assert list(site.regulators) == ["oltc", "cb1", "cb2", "cb3", "cb4"]
    assert site.regulators["oltc"] == replace(OLTC, start=-1)
    assert [r.bus for r in site.regulators.values() if isinstance(r, CapacitorBank)] == [
        *("16", "23", "29", "31")
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("regulators.cb1.bus=99", "regulators.cb1.bus = 99: bus 99 is not in the grid"),
        ("regulators.cb1.start=5", "start 5 is more than its 4 steps"),
        ("regulators.cb1.q_mvar=0", "regulators.cb1.q_mvar = 0: must be greater than 0"),
        ("regulators.oltc.start=9", "start 9 is not in positions -8..8"),
        ("regulators.oltc.step_percent=13", "step_percent 13 at position -8 turns the ratio negative"),
        ("regulators.oltc.at=trafo:0", "is no transformer of the grid; it has none; regulate the source"),
        ("regulators.oltc.at=line:0", "regulators.oltc.at = 'line:0': must match"),
        ("regulators.oltc.kind=tap-chnger", "is no kind that is known here; did you mean 'tap-changer'?"),
        ("regulators.cb2.name=cb1", "is a name used before"),
        ("regulators.oltc.taps=3", "is no key that is known here"),
    ],
)
def test_mistakes_are_said_with_their_place(change: str, said: str) -> None:
    assert said in problems(change)


def test_what_is_regulated_already_is_refused() -> None:
    second = "{name: t2, kind: tap-changer, at: source, step_percent: 1, positions: [-2, 2]}"
    assert "regulators.t2.at = 'source': is regulated by 'oltc' already" in problems(f"regulators.1={second}")


def test_a_bank_without_a_connection_is_refused(tmp_path: Path) -> None:
    net = pn.case33bw()
    pp.create_bus(net, 12.66)
    pp.to_json(net, str(tmp_path / "grid.json"))
    said = problems(f"grid.network={tmp_path / 'grid.json'}", "regulators.cb1.bus=33")
    assert "regulators.cb1.bus = 33: capacitor bank 'cb1': bus 33 is not connected" in said


def substation(*, behind_a_line: bool = False, feeders: int = 1, reversed_: bool = False) -> Any:
    """110/20 kV, then a line and a load."""
    net = pp.create_empty_network()
    hv, mv, far = (pp.create_bus(net, kv) for kv in (110.0, 20.0, 20.0))
    source = pp.create_bus(net, 110.0) if behind_a_line else hv
    if reversed_:
        source = mv
    pp.create_ext_grid(net, source, vm_pu=1.01)
    if behind_a_line:
        pp.create_line_from_parameters(net, source, hv, 5.0, 0.1, 0.4, 9.0, 0.5)
    for _ in range(feeders):
        pp.create_transformer_from_parameters(
            net, hv, mv, 25.0, 110.0, 21.0, vkr_percent=0.4, vk_percent=12.0, pfe_kw=15.0, i0_percent=0.1,
            tap_side="lv", tap_neutral=0, tap_min=-5, tap_max=5, tap_step_percent=2.0, tap_pos=3,
            tap_changer_type="Ratio",
        )  # fmt: skip
    pp.create_line_from_parameters(net, mv, far, 6.0, 0.2, 0.12, 250.0, max_i_ka=0.3)
    pp.create_load(net, far, 4.0, 1.0)
    return net


TAP = TapChanger(name="oltc", branch="trafo:0", step=0.0125, lowest=-8, highest=8)


def test_a_transformer_at_the_source_is_followed() -> None:
    require_place(per_unit(substation()), TAP)


@pytest.mark.parametrize(
    ("net", "said"),
    [
        (substation(behind_a_line=True), "has its primary side at another bus than the source's"),
        (substation(reversed_=True), "has its primary side at another bus than the source's"),
        (substation(feeders=2), "beside trafo:0 there is trafo:1 at the source"),
    ],
)
def test_a_transformer_elsewhere_is_refused_with_the_reason(net: Any, said: str) -> None:
    with pytest.raises(NetworkRefused, match=said):
        require_place(per_unit(net), TAP)


def test_a_transformer_elsewhere_is_a_mistake_of_the_scenario(tmp_path: Path) -> None:
    pp.to_json(substation(behind_a_line=True), str(tmp_path / "grid.json"))
    draft = load("village", [
        "bus.kind=memory", f"grid.network={tmp_path / 'grid.json'}", "devices=[]", "controllers=[]",
        "regulators=[{name: oltc, kind: tap-changer, at: 'trafo:0', step_percent: 1.25, positions: [-8, 8]}]",
    ])  # fmt: skip
    with pytest.raises(ScenarioInvalid, match=r"regulators\.oltc\.at = 'trafo:0': tap changer 'oltc'"):
        build(draft, validate(draft))


# The linear model is the grid with every tap at ratio 1 and every bank off


def test_the_taps_own_columns_no_longer_count() -> None:
    net = substation()
    rest = at_rest(net, {"oltc": TAP})
    assert net.trafo.tap_pos.tolist() == [3]
    assert rest.trafo.tap_pos.tolist() == [0]
    assert at_rest(net, BOTH) is net


@pytest.mark.parametrize("position", [-8, -3, 0, 5])
def test_a_tap_of_the_transformer_scales_the_linear_model(position: int) -> None:
    """Against the linear model of a net whose transformer has another ratio."""
    network = network_of(at_rest(substation(), {"oltc": TAP}))
    changed = at_rest(substation(), {"oltc": TAP})
    changed.trafo["vn_hv_kv"] *= 1 + 0.0125 * position
    other = network_of(changed)
    p, q = np.array([0.4, -3.0]), np.array([0.1, -1.0])
    ratio = TAP.ratio(position)
    assert network.v2(p, q, ratio) == pytest.approx(other.v2(p, q), abs=1e-12)
    for one, two in zip(network.flow(p, q, ratio), other.flow(p, q), strict=True):
        assert one == pytest.approx(two, abs=1e-9)
    np.testing.assert_allclose(network.v2_per_mw, other.v2_per_mw, rtol=0, atol=1e-15)


@pytest.mark.parametrize(("tap", "steps"), [(-3, (0, 0, 4, 2)), (2, (1, 0, 0, 3)), (0, (0, 0, 0, 0))])
def test_room_with_regulators_is_that_of_the_net_with_them(tap: int, steps: tuple[int, ...]) -> None:
    """Against the linear model of a net with another source and with generators instead of banks."""
    site = built().site
    positions = {"oltc": tap, **{f"cb{i + 1}": n for i, n in enumerate(steps)}}
    rows = AllowableRegion(site)
    p, q = rows.background({})
    net = pn.case33bw()
    net.ext_grid["vm_pu"] = 1 / (1 + 0.0125 * tap)
    other = network_of(net)
    v2 = other.v2(p, q + other.total(("16", "23", "29", "31"), [0.5 * n for n in steps]))
    n = len(site.network.buses)
    assert rows.W(p, q, positions)[: 2 * n] == pytest.approx(
        np.concatenate([1.05**2 - v2, v2 - 0.95**2]), abs=1e-12
    )


# The plant


def tick(step: int, duty: Duty = Duty.FULL) -> Tick:
    return Tick(
        step=step, time=NOON + step * STEP, planned_at=None, started_at=None, duty=duty, lateness_ms=None
    )


def plant(site: Site, events: list[dict[str, Any]]) -> GridSimulator:
    assert site.power_flow is not None

    def event(time: Any, what: str, **more: Any) -> None:
        events.append({"what": what, "time": time, **more})

    return GridSimulator(site.power_flow, site.devices, site.loads, Divergence.RECORD, event, site.regulators)


def test_the_plant_stays_where_it_was_put_and_counts_what_moves() -> None:
    site, events = built().site, list[dict[str, Any]]()
    grid = plant(site, events)
    first = grid.run(tick(0), {}, [], {})
    assert first.positions == {"oltc": -1, "cb1": 0, "cb2": 0, "cb3": 0, "cb4": 0}
    second = grid.run(tick(1), {}, [], {"oltc": -3, "cb3": 4})
    third = grid.run(tick(2), {}, [], {})
    assert second.positions == third.positions == {**first.positions, "oltc": -3, "cb3": 4}
    assert first.positions["oltc"] == -1  # what was measured stays as it was
    assert second.v_pu == third.v_pu
    assert min(first.v_pu.values()) < min(second.v_pu.values())
    assert grid.counts == {"regulator-moves": 6}
    assert [(e["what"], e["step"], e["regulator"], e["before"], e["position"]) for e in events] == [
        ("regulator-moved", 1, "oltc", -1, -3),
        ("regulator-moved", 1, "cb3", 0, 4),
    ]


def test_regulators_move_in_a_step_without_a_power_flow_too() -> None:
    site = built().site
    grid = plant(site, [])
    skipped = grid.run(tick(1, Duty.SKIP), {}, [], {"oltc": 2})
    assert skipped.positions["oltc"] == 2
    assert not skipped.v_pu
    heavy = dict.fromkeys(site.loads, 1e4)
    assert grid.run(tick(2), heavy, [], {"oltc": 1}).positions["oltc"] == 1
    assert grid.counts == {"power-flow-diverged": 1, "regulator-moves": 4}


# Decisions


class Moves:
    """Says positions, and remembers those that it was shown."""

    def __init__(self, **positions: Any) -> None:
        self.positions, self.shown = positions, list[dict[str, int]]()

    def step(self, observation: Observation) -> Decision:
        self.shown.append(dict(observation.positions))
        return Decision(time=observation.time, origin=Origin.OPTIMAL, positions=self.positions)


def controllers(
    site: Site, *several: Moves, events: list[Any] | None = None, lasts: int = 2
) -> ControllersSimulator:
    def event(time: Any, what: str, **more: Any) -> None:
        (events if events is not None else []).append((what, more["why"]))

    seats = [Seat(f"c{i}", c, 1, lasts * STEP) for i, c in enumerate(several)]
    return ControllersSimulator(site, seats, 1, False, event)


def ask(simulator: ControllersSimulator, site: Site, step: int = 0) -> dict[str, int]:
    simulator.run(tick(step), Measured(), seen(site).forecast, [])
    return dict(simulator.out["controllers"]["positions"])


def test_the_last_named_counts_and_is_told_what_those_before_said() -> None:
    site = built().site
    first, last = Moves(oltc=-3, cb1=2), Moves(oltc=1)
    simulator = controllers(site, first, last)
    start = {"oltc": -1, "cb1": 0, "cb2": 0, "cb3": 0, "cb4": 0}
    assert ask(simulator, site) == {**start, "oltc": 1, "cb1": 2}
    assert first.shown == [start]
    assert last.shown == [{**start, "oltc": -3, "cb1": 2}]


def test_a_regulator_stays_until_somebody_moves_it() -> None:
    site = built().site
    speaks = Moves(cb4=3)
    simulator = controllers(site, speaks)
    ask(simulator, site)
    speaks.positions = {}
    assert ask(simulator, site, 5)["cb4"] == 3
    assert speaks.shown[-1]["cb4"] == 3


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"oltc": 9}, r"regulator 'oltc': position 9 is not in -8\.\.8"),
        ({"cb9": 1}, "no regulator 'cb9'; there are oltc, cb1"),
        ({"cb1": 1.5}, "position 1.5 is no whole number"),
        ({"cb1": None}, "position None is no whole number"),
    ],
)
def test_positions_that_there_are_not_are_refused(wrong: dict[str, Any], why: str) -> None:
    site, events = built().site, list[Any]()
    simulator = controllers(site, Moves(**wrong), events=events)
    assert ask(simulator, site) == standing(site.regulators, {})
    ((what, said),) = events
    assert what == "controller-raised"
    assert why.replace("\\", "") in said
    assert simulator.counts["controller-raised"] == 1


class Allows(Moves):
    """Says positions and, for a device, a range; raises `Infeasible` from then on when it is `tired`."""

    def __init__(self, device: str, most_mw: float, **positions: Any) -> None:
        super().__init__(**positions)
        self.regions = {device: Region.box(p_mw=(0.0, most_mw), q_mvar=(0.0, 0.0))}
        self.heard: list[set[str]] = []
        self.tired = False

    def step(self, observation: Observation) -> Decision:
        self.heard.append(set(observation.regions))
        if self.tired:
            raise Infeasible("tired")
        return replace(super().step(observation), regions=self.regions)


def instructed(simulator: ControllersSimulator, site: Site, step: int = 0) -> dict[str, Instruction]:
    ask(simulator, site, step)
    return dict(simulator.out["controllers"]["instructions"])


def origins(simulator: ControllersSimulator) -> dict[str, Origin]:
    return {turn.controller: turn.origin for turn in simulator.out["controllers"]["turns"]}


def test_what_is_said_counts_as_long_as_the_regulators_stand() -> None:
    site = built().site
    mover, dso, other = Moves(oltc=-3), Allows("pv24", 0.3), Allows("bat13", 0.2)
    simulator = controllers(site, mover, dso, other, lasts=6)
    assert instructed(simulator, site).keys() == {"pv24", "bat13"}
    dso.tired = True
    told = instructed(simulator, site, 1)
    assert told.keys() == {"bat13"}
    assert origins(simulator)["c1"] is Origin.HELD
    assert other.heard[-1] == {"pv24"}
    mover.positions = {"oltc": -1}
    told = instructed(simulator, site, 2)
    assert origins(simulator) == {"c0": Origin.OPTIMAL, "c1": Origin.DEFAULT, "c2": Origin.OPTIMAL}
    assert other.heard[-1] == set()
    assert told["bat13"].origin is Origin.OPTIMAL
    back = told["pv24"]
    assert back.origin is Origin.DEFAULT
    assert back.region is site.devices["pv24"].default
    assert back.valid_until == NOON + 7 * STEP  # when it would have obeyed its default anyhow
    assert "for other positions" in ((back.certificate and back.certificate.binding) or "")
    assert simulator.counts["origin-default"] == 1
    # Neither told again, nor back when the tap is.
    mover.positions = {"oltc": -3}
    assert instructed(simulator, site, 3).keys() == {"bat13"}


def test_the_others_of_a_device_go_on_when_one_is_withdrawn() -> None:
    site = built().site
    mover, dso, other = Moves(), Allows("pv24", 0.3), Allows("pv24", 0.5)
    simulator = controllers(site, mover, dso, other)
    assert export(instructed(simulator, site)["pv24"]) == pytest.approx(0.3)
    dso.tired, mover.positions = True, {"cb2": 1}
    assert export(instructed(simulator, site, 1)["pv24"]) == pytest.approx(0.5)


def test_who_spoke_before_a_move_of_the_same_step_spoke_for_other_positions() -> None:
    site, events = built().site, list[Any]()
    early, late = Allows("pv24", 0.3), Allows("bat13", 0.2, cb1=1)
    simulator = controllers(site, early, late, events=events)
    assert instructed(simulator, site).keys() == {"bat13"}
    assert origins(simulator) == {"c0": Origin.DEFAULT, "c1": Origin.OPTIMAL}
    assert [what for what, _ in events] == ["withdrawn"]
    assert "cb1 from 0 to 1" in events[0][1]
    assert instructed(simulator, site, 1).keys() == {"pv24", "bat13"}


def test_a_conflict_after_a_move_leaves_nobody_with_what_was_before() -> None:
    site = built().site
    mover, dso, other = Moves(), Allows("pv24", 0.3), Allows("pv24", 0.5)
    simulator = controllers(site, mover, dso, other)
    instructed(simulator, site)
    other.regions = {"pv24": Region.box(p_mw=(0.4, 0.5), q_mvar=(0.0, 0.0))}
    assert not instructed(simulator, site, 1)  # nothing new: the instruction of before stays
    mover.positions = {"oltc": 0}
    assert instructed(simulator, site, 1)["pv24"].origin is Origin.DEFAULT
    assert simulator.counts["conflict"] == 2


def export(instruction: Instruction) -> float:
    assert instruction.region is not None
    return instruction.region.limits("p_mw")[1]


def test_regulation_is_asked_first_wherever_it_is_named() -> None:
    parts = built()
    assert [c.name for c in parts.scenario.controllers] == ["dso", "regulation"]
    assert [seat.name for seat in parts.seats] == ["regulation", "dso"]
    wrapped = built("controllers.regulation.fallback=controllers.envelopes.equal_ranges:EqualRanges")
    assert [seat.name for seat in wrapped.seats] == ["regulation", "dso"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("controllers.dso.every=20min", r"controllers\.dso\.every = .*: must divide that of 'regulation'"),
        ("controllers.dso.every=1h", r"controllers\.dso\.every = .*: must divide that of 'regulation'"),
        ("controllers.dso.rolling={intervals: 4}", r"controllers\.dso\.rolling = .*'regulation' moves"),
    ],
)
def test_envelopes_are_made_anew_with_each_move(change: str, reason: str) -> None:
    strict = "controllers.dso.options.when_broken=strict"
    with pytest.raises(ScenarioInvalid, match=reason):
        built(change, strict, "forecast.intervals=12")
    built("controllers.dso.every=10min", strict)


# A run

EAGER = "controllers.regulation.options.switching_cost_mw=0"


@pytest.mark.parametrize("engine", ["pandapower", "power-grid-model"])
async def test_a_run_can_be_computed_again_from_its_folder(engine: str, tmp_path: Path) -> None:
    """Each step's voltages by a fresh `runpp` on a net edited by what the tables and the manifest say."""
    result = await do("ieee33-regulated", tmp_path, "steps=4", EAGER, f"grid.engine={engine}")
    assert result.exit is Exit.HELD, result.why
    scenario = json.loads((result.directory / "manifest.json").read_text())["scenario"]
    parts = {part["name"]: part for part in scenario["regulators"]}
    stands: dict[Any, dict[str, int]] = {}
    for row in read(result.directory, "regulators").to_pylist():
        stands.setdefault(row["time"], {})[row["regulator"]] = row["position"]
    volts, injected = {}, {}
    for row in read(result.directory, "buses").to_pylist():
        volts.setdefault(row["time"], {})[int(row["bus"])] = row["v_pu"]
    for row in read(result.directory, "devices").to_pylist():
        injected.setdefault(row["time"], []).append(row)
    assert len({tuple(at.values()) for at in stands.values()}) > 1  # something moved
    devices = {part["name"]: part["bus"] for part in scenario["devices"]}
    assert len(stands) == len(volts) == 4
    for time, positions in stands.items():
        net = pn.case33bw()
        buses = {f"load:{i}": bus for i, bus in net.load.bus.items()} | devices
        net.load = net.load.iloc[0:0]
        here = injected[time]
        p, q = ([-row[axis] for row in here] for axis in ("p_mw", "q_mvar"))
        pp.create_loads(net, [buses[row["device"]] for row in here], p_mw=p, q_mvar=q)
        for name, position in positions.items():
            part = parts[name]
            if part["kind"] == "capacitor-bank":
                pp.create_shunt_as_capacitor(net, part["bus"], part["q_mvar"] * position, 0.0)
            else:
                net.ext_grid["vm_pu"] /= 1 + part["step_percent"] / 100 * position
        pp.runpp(net, numba=False, tolerance_mva=1e-10)
        assert net.res_bus.vm_pu.to_dict() == pytest.approx(volts[time], abs=1e-9)


MOVER = """
from dataclasses import dataclass, field
from typing import ClassVar

from controllers import Decision, Infeasible, Origin, Site
from controllers.envelopes.certified import Certified
from controllers.envelopes.equal_ranges import EqualRanges


@dataclass
class Mover:
    goes_first: ClassVar[bool] = True
    site: Site
    n: int = field(init=False, default=0)

    def step(self, observation):
        self.n += 1
        return Decision(
            time=observation.time, origin=Origin.OPTIMAL, positions={"oltc": -3 if self.n == 1 else -1}
        )


class Brief(Certified):
    def __init__(self, site):
        super().__init__(EqualRanges(site))
        self.n = 0

    def step(self, observation):
        self.n += 1
        if self.n > 6:
            raise Infeasible("no longer")
        return super().step(observation)
"""

MOVED = """
extends: ieee33-regulated
name: moved
start: 2026-06-21T00:00:00Z
steps: 10
devices:
  - {name: bat13, p_mw: 2, e_mwh: 40}
  - {name: bat21, p_mw: 3, e_mwh: 40}
profiles: {trading: {values: {"00:00": -1}}}
expect:
  - {what: v_pu, between: [0.95, 1.05]}
  - {what: envelope_respected}
"""


async def test_envelopes_for_other_positions_are_withdrawn(tmp_path: Path) -> None:
    """From the seventh step on there are no new envelopes, and in that step the tap goes from -3 to -1."""
    (tmp_path / "mover.py").write_text(MOVER)
    (tmp_path / "moved.yaml").write_text(MOVED)
    mover = "{name: regulation, uses: 'mover.py:Mover', every: 30min}"
    only = f"controllers=[{mover}, {{name: dso, uses: 'mover.py:Brief'}}]"
    result = await do(tmp_path / "moved.yaml", tmp_path / "runs", only)
    assert result.exit is Exit.HELD, result.why
    steps = [row for row in read(result.directory, "steps").to_pylist() if row["controller"] == "dso"]
    assert [row["origin"] for row in steps] == ["certified"] * 6 + ["default"] * 4
    devices = read(result.directory, "devices").to_pylist()
    charged = [row["p_mw"] for row in devices if row["device"] == "bat21"]
    assert min(charged[1:7]) < -0.5  # the envelopes of the tap at -3 let it charge
    assert charged[7:] == [0.0] * 3  # from when the tap moves on, its default
    lines = (result.directory / "events.jsonl").read_text().splitlines()
    (event,) = [e for e in map(json.loads, lines) if e["what"] == "withdrawn"]
    assert (event["step"], event["controller"]) == (6, "dso")
    assert event["why"].endswith("which move: oltc from -3 to -1")
    regions = [r for r in read(result.directory, "regions").to_pylist() if r["seq"] == 7]
    assert {r["target"] for r in regions} == {r["device"] for r in devices if r["state"] != "uncontrolled"}
    assert all(r["valid_from"] == r["valid_until"] for r in regions)


async def test_the_report_says_what_moved(tmp_path: Path) -> None:
    result = await do("ieee33-regulated", tmp_path, "steps=8", EAGER)
    found = summary(result.directory)
    at = {}
    for row in read(result.directory, "regulators").to_pylist():
        at.setdefault(row["regulator"], []).append(row["position"])
    expected = {name: int(np.abs(np.diff(steps)).sum()) for name, steps in at.items()}
    assert found.moves == expected
    assert sum(expected.values()) == found.counts["regulator-moves"] > 0
    assert found.events["regulator-moved"] >= 1


async def test_a_decision_moves_them_one_step_later(tmp_path: Path) -> None:
    result = await do("ieee33-regulated", tmp_path, "steps=3", EAGER)
    at = [row["position"] for row in read(result.directory, "regulators").to_pylist()]
    assert at[:5] == [-1, 0, 0, 0, 0]
    assert at[5:10] == at[10:] != at[:5]


async def test_without_regulators_the_table_is_empty(tmp_path: Path) -> None:
    result = await do("ieee33-quick", tmp_path, "steps=2")
    assert read(result.directory, "regulators").num_rows == 0
    assert summary(result.directory).moves == {}
