"""Microgrids in the plant: breakers, balance of islands, kept capabilities, accounts, what the grid sees."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from controllers import (
    Battery,
    Decision,
    Device,
    FlexibleLoad,
    Forecast,
    Generator,
    Instruction,
    Kind,
    Load,
    Microgrid,
    Origin,
    PvInverter,
    Region,
    Setpoint,
    WindTurbine,
)
from controllers.devices import still
from controllers.network import Flows
from simulators.agreed import Agreed
from simulators.clock import Duty, Tick
from simulators.controller import Turn
from simulators.devices import DeviceReport, DevicesSimulator, Obedience
from simulators.grid import Divergence, GridSimulator
from simulators.microgrids import Breaker, Exchange, MicrogridTwin

START = datetime(2026, 6, 21, 9, tzinfo=UTC)
HOUR = timedelta(hours=1)
ALWAYS = Breaker([(START - 99 * HOUR, START + 99 * HOUR)])
EXACT = 1e-9


def tick(k: int = 0) -> Tick:
    return Tick(k, START + k * HOUR, Duty.FULL, START)


def of(kind: str, **changed: Any) -> Device:
    """A device of a microgrid at bus 1."""
    common: dict[str, Any] = {"name": kind, "bus": "1", "weight": 1.0, "default": still()}
    match kind:
        case "bat":
            rest: dict[str, Any] = {
                "p_mw": 0.2,
                "s_mva": 0.3,
                "e_mwh": 1.0,
                "e_min_mwh": 0.0,
                "e_start_mwh": 0.5,
            }
            return Battery(**common | rest | {"efficiency": (0.9, 0.8), "cost_per_mwh": 5.0} | changed)
        case "mt":
            rest = {
                "p_mw": 0.4,
                "p_min_mw": 0.1,
                "s_mva": 0.5,
                "ramp_mw_per_min": 0.2 / 60,
                "cost_per_mwh": 70.0,
            }
            return Generator(**common | rest | {"heat_ratio": 1.5, "p_start_mw": 0.2} | changed)
        case "pv":
            return PvInverter(**common | {"p_mw": 0.5, "s_mva": 0.6} | changed)
        case "wt":
            return WindTurbine(**common | {"p_mw": 0.3, "power_factor": 0.95} | changed)
        case "ul" | "il":
            rest = {"p_mw": 0.5, "firm_mw": 0.0, "power_factor": 1.0, "interruptible": kind == "il"}
            return FlexibleLoad(**common | rest | {"cost_per_mwh": 150.0 if kind == "il" else 0.0} | changed)
    raise AssertionError(kind)


class Plant:
    """One microgrid of some devices, each told a setpoint, stepped by hand."""

    def __init__(
        self, *devices: Device, breaker: Breaker = ALWAYS, regulates: bool = True, **grid: Any
    ) -> None:
        self.events: list[dict[str, Any]] = []
        self.devices = {device.name: device for device in devices}
        grid = {"tie_mw": 1.0, **grid}
        microgrid = Microgrid(name="mg", bus="1", devices=tuple(self.devices), **grid)
        self.twin = MicrogridTwin(
            microgrid,
            self.devices,
            breaker,
            3600.0,
            lambda at, what, **more: self.events.append({"what": what, **more}),
            regulates=regulates,
        )
        self.fleet = DevicesSimulator(self.devices, 3600.0, [self.twin], ("mgcc", "dso"))

    def step(
        self,
        told: dict[str, float],
        drive: dict[str, float] | None = None,
        turns: tuple[Turn, ...] = (),
        k: int = 0,
        regions: dict[str, Region] | None = None,
    ) -> dict[str, float]:
        """What each device injects [MW], told as much."""
        instructions = {
            name: Instruction(
                device=name,
                epoch=1,
                seq=k + 1,
                issued_at=tick(k).time - HOUR,
                valid_from=tick(k).time,
                valid_until=tick(k).time + HOUR,
                region=(regions or {}).get(name),
                setpoint=Setpoint(p_mw=p_mw),
                fallback=still(),
            )
            for name, p_mw in told.items()
        }
        self.reports = {r.device: r for r in self.fleet.run(tick(k), drive or {}, instructions, turns)}
        return {name: report.p_mw for name, report in self.reports.items()}

    @property
    def exchange(self) -> Exchange:
        found: Exchange = self.fleet.out["fleet"]["exchanges"]["mg"]
        return found


def said(low: float, high: float, *, kind: Kind = Kind.AIC, q_mvar: float = 0.0, by: str = "dso") -> Turn:
    """A turn of the step before START."""
    decision = Decision(
        time=START - HOUR,
        origin=Origin.CERTIFIED,
        kind=kind,
        regions={"mg": Region.box(p_mw=(low, high), q_mvar=(q_mvar, q_mvar))},
        plan=Forecast(START - HOUR, HOUR, ("mg",), np.full((3, 1), low), np.zeros((3, 1))),
    )
    return Turn(by, Origin.CERTIFIED, 1.0, decision, START, START + 2 * HOUR)


# Breakers


def test_a_breaker_is_open_in_its_windows_and_while_it_synchronises() -> None:
    breaker = Breaker([(START, START + 2 * HOUR), (START + 4 * HOUR, START + 4.5 * HOUR)], HOUR)
    closed = [breaker.closed(START + k * HOUR / 2) for k in range(-1, 13)]
    assert closed == [True] + [False] * 6 + [True] * 2 + [False] * 3 + [True] * 2
    assert Breaker().closed(START)


def test_opening_and_closing_are_events() -> None:
    plant = Plant(of("bat"), breaker=Breaker([(START + HOUR, START + 2 * HOUR)], HOUR))
    for k in range(6):
        plant.step({"bat": 0.0}, k=k)
    assert [(event["step"], event["what"]) for event in plant.events] == [
        (1, "breaker-opened"),
        (3, "breaker-closed"),
    ]
    assert plant.fleet.counts == {"breaker-opened": 1, "breaker-closed": 1}


# Islands


def test_a_deficit_is_taken_up_in_order() -> None:
    """The battery gives its 0.2, the engine goes from 0.2 to its 0.4; then wind, then loads."""
    drive = {"pv": 0.0, "wt": 0.5, "ul": 1.0, "il": 0.4}
    devices = [of(kind) for kind in ("il", "ul", "wt", "pv", "mt", "bat")]
    told = {"ul": -9.0, "il": -9.0, "wt": 0.0, "mt": 0.2, "bat": 0.0}
    held = Plant(*devices).step(told, drive)
    # 0.7 demanded: battery 0.2, engine 0.4; the wind gives the 0.1 that lack.
    expected = {"il": -0.2, "ul": -0.5, "wt": 0.1, "pv": 0.0, "mt": 0.4, "bat": 0.2}
    assert held == pytest.approx(expected, abs=EXACT)
    # 0.9 demanded: the wind gives all of its 0.15, and interruptible load is shed first.
    held = Plant(*devices).step(told, drive | {"il": 0.8})
    assert held == pytest.approx(expected | {"wt": 0.15, "il": -0.25}, abs=EXACT)
    # Without a battery's energy that is not enough: the other load is shed as well.
    empty = [of("bat", e_start_mwh=0.0) if d.name == "bat" else d for d in devices]
    plant = Plant(*empty)
    held = plant.step(told, drive | {"wt": 0.0})
    assert held == pytest.approx(expected | {"bat": 0.0, "wt": 0.0, "il": 0.0, "ul": -0.4}, abs=EXACT)
    assert plant.exchange.unserved_mw == pytest.approx(0.1 + 0.2)
    assert plant.exchange.unbalanced_mw == pytest.approx(0.0, abs=EXACT)
    assert plant.events == [{"what": "breaker-opened", "step": 0, "microgrid": "mg"}]
    assert plant.reports["ul"].obedience is Obedience.BALANCING


def test_a_surplus_is_taken_up_in_order() -> None:
    drive = {"pv": 1.0, "wt": 1.0, "ul": 0.1, "il": 0.2}
    told = {"pv": 0.5, "wt": 0.3, "ul": -9.0, "il": 0.0, "mt": 0.3, "bat": 0.1}
    plant = Plant(*(of(kind) for kind in ("pv", "wt", "ul", "il", "mt", "bat")))
    held = plant.step(told, drive)
    # The battery charges 0.2, the engine goes to its 0.1, the shed load gets its 0.1, the sun first is cut.
    expected = {"bat": -0.2, "mt": 0.1, "il": -0.1, "ul": -0.05, "pv": 0.0, "wt": 0.25}
    assert held == pytest.approx(expected, abs=EXACT)
    assert plant.reports["pv"].curtailed_mw == pytest.approx(0.5)
    assert plant.exchange.p_mw == plant.exchange.q_mvar == 0.0


def test_a_small_imbalance_moves_one_device_alone() -> None:
    plant = Plant(of("bat"), of("mt"), of("ul"))
    assert plant.step({"bat": 0.1, "mt": 0.25, "ul": -9.0}, {"ul": 0.6}) == pytest.approx(
        {"bat": 0.05, "mt": 0.25, "ul": -0.3}, abs=EXACT
    )
    states = {name: report.obedience for name, report in plant.reports.items()}
    assert (states["bat"], states["mt"]) == (Obedience.BALANCING, Obedience.CONTROLLED)


@pytest.mark.parametrize("seed", range(40))
def test_random_islands_balance_if_and_only_if_their_limits_let_them(seed: int) -> None:
    """By interval arithmetic: the sum can be any number between the sums of what each can least and most."""
    rng = np.random.default_rng(seed)
    kinds = [kind for kind in ("bat", "mt", "pv", "wt", "ul", "il") if rng.random() < 0.6] or ["mt"]
    devices = [of(kind) for kind in rng.permutation(kinds)]
    drive = {name: float(rng.uniform(0, 1.3)) for name in ("pv", "wt", "ul", "il")}
    plant = Plant(*devices)
    told = {device.name: float(rng.uniform(-0.6, 0.6)) for device in devices}
    able = {
        name: twin.device.limits(twin.state, drive.get(name), 3600.0)
        for name, twin in plant.fleet.twins.items()
    }
    before = {name: float(np.clip(told[name], *r.limits("p_mw"))) for name, r in able.items()}
    least, most = (sum(r.limits("p_mw")[i] for r in able.values()) for i in (0, 1))
    held = plant.step(told, drive)
    left = min(max(0.0, least), most)  # zero if it is in reach, else the nearer end
    assert sum(held.values()) == pytest.approx(left, abs=1e-7)
    assert plant.exchange.unbalanced_mw == pytest.approx(left, abs=1e-7)
    assert (len(plant.events) == 2) == (abs(left) > 1e-7)
    assert plant.fleet.counts["island-unbalanced"] == (abs(left) > 1e-7)
    for name, report in plant.reports.items():
        assert able[name].excess([report.p_mw, report.q_mvar]) <= 1e-8
    # Nothing moves against the imbalance, and a later kind only when the earlier are at their end.
    surplus = sum(before.values()) > 0
    turns = ["bat", "mt", "ul il", "pv wt"] if surplus else ["bat", "mt", "pv wt", "il", "ul"]
    full = True
    for kind in turns:
        those = [name for name in held if name in kind.split()]
        for name in those:
            moved = (held[name] - before[name]) * (-1 if surplus else 1)
            assert moved >= -1e-7
            assert full or moved <= 1e-7
        ends = [able[name].limits("p_mw")[0 if surplus else 1] for name in those]
        full = full and all(abs(held[name] - end) <= 1e-7 for name, end in zip(those, ends, strict=True))


def test_an_island_that_cannot_balance_says_so() -> None:
    plant = Plant(of("mt", p_min_mw=0.3, p_start_mw=0.3), of("ul"))
    held = plant.step({"mt": 0.3, "ul": -9.0}, {"ul": 0.2})
    assert held == pytest.approx({"mt": 0.3, "ul": -0.1})
    assert plant.exchange.unbalanced_mw == pytest.approx(0.2)
    (_, event) = plant.events
    assert event["what"] == "island-unbalanced"
    assert event["microgrid"] == "mg"
    assert "+0.2 MW" in event["why"]


def test_reactive_power_of_an_island_is_balanced_by_those_that_can() -> None:
    """A load of 0.3 MW at 0.8: 0.225 Mvar, of which the battery gives what its inverter has beside 0.1 MW."""
    plant = Plant(of("bat", s_mva=0.2), of("mt"), of("ul", power_factor=0.8))
    plant.step({"bat": 0.1, "mt": 0.2, "ul": -9.0}, {"ul": 0.6})
    q = {name: report.q_mvar for name, report in plant.reports.items()}
    assert q["ul"] == pytest.approx(-0.225)
    assert q["bat"] == pytest.approx((0.2**2 - 0.1**2) ** 0.5, rel=0.01)  # a polygon in the circle
    assert sum(q.values()) == pytest.approx(0.0, abs=EXACT)


def test_the_states_advance_by_what_was_settled() -> None:
    plant = Plant(of("bat"), of("ul"))
    plant.step({"bat": -0.2, "ul": -9.0}, {"ul": 0.32})
    assert plant.reports["bat"].p_mw == pytest.approx(0.16)
    assert plant.reports["bat"].e_mwh == pytest.approx(0.5 - 0.16 / 0.8)


# Connected


def test_a_connected_microgrid_without_a_capability_is_left_alone() -> None:
    plant = Plant(of("bat"), of("ul"), breaker=Breaker())
    assert plant.step({"bat": 0.05, "ul": -9.0}, {"ul": 0.4}) == pytest.approx({"bat": 0.05, "ul": -0.2})
    assert plant.exchange.p_mw == pytest.approx(-0.15)
    assert (plant.exchange.aic_low_mw, plant.exchange.aic_high_mw, plant.exchange.planned_mw) == (None,) * 3


@pytest.mark.parametrize(
    ("low", "high", "bat", "mt"),
    [
        (-0.5, 0.5, 0.05, 0.2),  # inside: nobody moves
        (0.1, 0.5, 0.15, 0.2),  # 0.1 more: the battery
        (0.3, 0.5, 0.2, 0.35),  # 0.3 more: the battery's last 0.15, then the engine
        (-0.5, -0.1, -0.05, 0.2),
        (-0.5, -0.35, -0.2, 0.1),
    ],
)
def test_the_capability_is_kept_though_the_load_is_not_as_forecast(
    low: float, high: float, bat: float, mt: float
) -> None:
    plant = Plant(of("bat"), of("mt"), of("ul"), breaker=Breaker())
    held = plant.step({"bat": 0.05, "mt": 0.2, "ul": -9.0}, {"ul": 0.5}, (said(low, high),))
    assert held == pytest.approx({"bat": bat, "mt": mt, "ul": -0.25}, abs=EXACT)
    assert plant.exchange.p_mw == pytest.approx(min(max(0.0, low), high), abs=EXACT)
    assert (plant.exchange.aic_low_mw, plant.exchange.aic_high_mw) == (low, high)
    assert plant.exchange.planned_mw == low


def test_it_is_not_kept_by_loads_that_are_not_interruptible_nor_beyond_what_devices_are_told() -> None:
    plant = Plant(of("bat"), of("il"), of("ul"), breaker=Breaker())
    near = {"bat": Region.box(p_mw=(-0.1, 0.1), q_mvar=(-1, 1))}
    held = plant.step(
        {"bat": 0.0, "il": -9.0, "ul": -9.0}, {"il": 0.2, "ul": 1.0}, (said(0, 1),), regions=near
    )
    assert held == pytest.approx({"bat": 0.1, "il": 0.0, "ul": -0.5}, abs=EXACT)
    assert plant.exchange.p_mw == pytest.approx(-0.4)  # recorded as it is: outside
    assert plant.events == []


def test_a_device_with_nothing_but_its_default_keeps_to_it() -> None:
    plant = Plant(of("bat"), of("ul"), breaker=Breaker())
    assert plant.step({"ul": -9.0}, {"ul": 0.4}, (said(0, 1),))["bat"] == 0.0


def test_an_exchange_above_the_ties_rating_is_told_once_for_as_long_as_it_lasts() -> None:
    """A tie of 0.15 MW; the load takes 0.5 MW for each unit of its profile."""
    loads = [0.2, 0.4, 0.5, 0.3, 0.6, 0.8, 0.301]
    plant = Plant(of("ul"), breaker=Breaker([(START + 5 * HOUR, START + 6 * HOUR)]), tie_mw=0.15)
    for k, load in enumerate(loads):
        plant.step({"ul": -9.0}, {"ul": load}, k=k)
    told = [event for event in plant.events if event["what"] == "tie-exceeded"]
    assert [(event["step"], event["microgrid"]) for event in told] == [(1, "mg"), (4, "mg"), (6, "mg")]
    assert told[0]["why"].startswith("it exchanges -0.2 MW over a tie of 0.15 MW")
    assert plant.fleet.counts["tie-exceeded"] == 3


def test_it_counts_what_is_held_after_balancing_for_the_tie() -> None:
    drive = {"ul": 1.0}
    for low, told in ((-0.3, 0), (-0.4, 1)):
        plant = Plant(of("bat"), of("ul"), breaker=Breaker(), tie_mw=0.3)
        plant.step({"bat": 0.0, "ul": -9.0}, drive, (said(low, 0.3),))
        assert plant.exchange.p_mw == pytest.approx(low, abs=EXACT)
        assert plant.fleet.counts["tie-exceeded"] == told


def test_a_microgrid_need_not_regulate() -> None:
    plant = Plant(of("bat"), of("ul"), breaker=Breaker(), regulates=False)
    assert plant.step({"bat": 0.0, "ul": -9.0}, {"ul": 0.4}, (said(0, 1),))["bat"] == 0.0
    assert plant.exchange.aic_low_mw == 0.0


def test_the_reactive_power_of_the_capability_is_kept() -> None:
    plant = Plant(of("bat"), of("ul", power_factor=0.8), breaker=Breaker())
    plant.step({"bat": 0.1, "ul": -9.0}, {"ul": 0.4}, (said(-1, 1, q_mvar=0.05),))
    assert plant.exchange.q_mvar == pytest.approx(0.05, abs=EXACT)
    assert plant.reports["bat"].q_mvar == pytest.approx(0.05 + 0.15)


# What was agreed


def test_the_newest_word_counts_until_it_ends_or_is_withdrawn() -> None:
    agreed = Agreed(("mgcc", "dso"))
    agreed.take((said(-0.1, 0.3), said(-0.2, 0.4, kind=Kind.PIC, by="mgcc")))

    def limits(kind: Kind, k: int) -> tuple[float, float] | None:
        region = agreed.capability("mg", kind, START + k * HOUR)
        return None if region is None else region.limits("p_mw")

    assert limits(Kind.AIC, -1) is None  # it acts one step later
    assert limits(Kind.AIC, 0) == limits(Kind.AIC, 1) == pytest.approx((-0.1, 0.3))
    assert limits(Kind.AIC, 2) is None
    assert limits(Kind.PIC, 0) == pytest.approx((-0.2, 0.4))
    assert agreed.planned("mg", START) == -0.1  # of the one named last
    assert agreed.planned("mg", START + 2 * HOUR) is None
    assert agreed.planned("other", START) is None
    outdated = said(-0.1, 0.3).decision
    agreed.take((Turn("dso", Origin.DEFAULT, None, None, START, START, withdrawn=outdated),))
    assert limits(Kind.AIC, 0) is None
    assert agreed.planned("mg", START) == -0.2


def test_capabilities_of_two_meet_and_one_without_a_point_is_none() -> None:
    plant = Plant(of("bat"), breaker=Breaker())
    plant.step({"bat": 0.2}, turns=(said(-0.1, 0.3), said(0.0, 0.15, by="other")))
    assert (plant.exchange.aic_low_mw, plant.exchange.aic_high_mw) == pytest.approx((0.0, 0.15))
    assert plant.exchange.p_mw == pytest.approx(0.15)
    plant.step({"bat": 0.2}, turns=(said(-0.1, 0.3), said(0.4, 0.5, by="other")), k=1)
    assert plant.exchange.aic_low_mw is None
    assert plant.exchange.p_mw == pytest.approx(0.2)


# Accounts


def test_the_account_of_a_step_by_hand() -> None:
    devices = [of(kind) for kind in ("bat", "mt", "pv", "ul", "il")]
    grid = {"price": "spot", "heat": "mg:heat", "boiler_cost_per_mwh": 60.0, "spill_cost_per_mwh": 2.0}
    plant = Plant(*devices, breaker=Breaker(), **grid)
    told = {"bat": -0.1, "mt": 0.3, "pv": 0.1, "ul": -0.35, "il": -0.1}
    drive = {"pv": 0.5, "ul": 0.8, "il": 0.4, "spot": 90.0, "mg:heat": 0.6}
    plant.step(told, drive)
    found = plant.exchange
    assert found.p_mw == pytest.approx(-0.1 + 0.3 + 0.1 - 0.35 - 0.1)
    assert found.unserved_mw == pytest.approx(0.05 + 0.1)
    assert (found.heat_mw, found.price_per_mwh) == (0.6, 90.0)
    assert found.boiler_mw == pytest.approx(0.6 - 1.5 * 0.3)
    spent = 5 * 0.1 + 70 * 0.3 + 2 * 0.15 + 1000 * 0.05 + 150 * 0.1 + 60 * 0.15
    assert found.cost == pytest.approx(spent - 90 * -0.15)


@pytest.mark.parametrize("gone", ["spot", "mg:heat"])
def test_what_is_not_known_makes_no_cost(gone: str) -> None:
    drive = {"spot": 90.0, "mg:heat": 0.6}
    plant = Plant(of("bat"), breaker=Breaker(), price="spot", heat="mg:heat")
    plant.step({"bat": 0.1}, {name: value for name, value in drive.items() if name != gone})
    assert plant.exchange.cost is None
    assert (plant.exchange.price_per_mwh is None) == (gone == "spot")
    assert (plant.exchange.boiler_mw is None) == (gone == "mg:heat")


def test_a_microgrid_without_price_and_heat_has_a_cost() -> None:
    plant = Plant(of("bat"), breaker=Breaker())
    plant.step({"bat": 0.1})
    assert plant.exchange.cost == pytest.approx(0.5)
    assert (plant.exchange.price_per_mwh, plant.exchange.heat_mw, plant.exchange.boiler_mw) == (None,) * 3


# What the grid sees


class Sums:
    """A power flow that keeps what it was given; it converges or not."""

    buses = ("0", "1")
    branches = ()

    def __init__(self, converges: bool = True) -> None:
        self.converges = converges

    def at(self, positions: Any) -> Sums:
        return self

    def solve(self, p_mw: Any, q_mvar: Any) -> Flows:
        self.given = p_mw[0].tolist(), q_mvar[0].tolist()
        none, v_pu = np.zeros((1, 0)), np.ones((1, 2))
        return Flows(np.array([self.converges]), v_pu, none, none, none)


@pytest.mark.parametrize("converges", [True, False])
@pytest.mark.parametrize("connected", [True, False])
def test_the_grid_sees_nothing_of_an_island(connected: bool, converges: bool) -> None:
    flow = Sums(converges)
    devices = {"bat": of("bat"), "pv": of("pv")}
    grid = GridSimulator(
        flow,  # type: ignore[arg-type]
        devices,
        {"load:0": Load("load:0", "1", -0.5, -0.125)},
        Divergence.RECORD,
        lambda *_, **__: None,
        microgrids={"mg": Microgrid(name="mg", bus="1", devices=("bat",), tie_mw=1.0)},
    )
    reports = [
        DeviceReport(name, 0.25, 0.125, None, None, None, Obedience.CONTROLLED) for name in ("bat", "pv")
    ]
    plant = Plant(of("bat"), breaker=Breaker() if connected else ALWAYS)
    plant.step({"bat": 0.125})
    measured = grid.run(tick(), {}, reports, {}, {"mg": plant.exchange})
    assert flow.given == ([0.0, 0.0 if connected else -0.25], [0.0, 0.125 if connected else 0.0])
    assert measured.connected == {"mg": connected}
    assert measured.exchange_p_mw == {"mg": 0.125 if connected else 0.0}
    assert bool(measured.v_pu) == converges
    assert measured.load_p_mw == {"load:0": -0.5}
