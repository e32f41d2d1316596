"""Positions of tap changers and banks: against loops, an integer program, the AC power flow."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from functools import cache
from itertools import pairwise, product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp

from controllers import (
    CapacitorBank,
    ControlError,
    Forecast,
    Infeasible,
    Limits,
    Observation,
    Origin,
    Site,
    SolverFailed,
    TapChanger,
)
from controllers.envelopes import AllowableRegion, EqualRanges
from controllers.envelopes.position_search import For
from controllers.envelopes.positions import LEAST_MOVES, MOST, Positions
from controllers.regulation import VoltageRegulation
from controllers.regulators import Regulator, standing
from simulators.power_flow import PowerGridModelEngine
from tests.envelope_cases import NOON, STEP, battery_park, feeder33, net33, net136, seen, site_of
from tests.test_controllers import days, told

Array = npt.NDArray[np.float64]

PAPER_33 = (16, 23, 29, 31)
"""Table A.I's buses 17, 24, 30, 32, counted from 0."""
PAPER_136 = (15, 38, 42, 85, 59, 99, 108, 114, 120, 136)
"""Table A.I's buses, numbered as in the case file."""


def oltc(lowest: int = -8, highest: int = 8) -> TapChanger:
    start = min(max(0, lowest), highest)
    return TapChanger(name="oltc", step=0.0125, lowest=lowest, highest=highest, start=start)


def banks(buses: Any, steps: int = 4) -> list[CapacitorBank]:
    return [
        CapacitorBank(name=f"cb{i}", bus=str(bus), q_mvar=0.5, steps=steps) for i, bus in enumerate(buses, 1)
    ]


def with_regulators(site: Site, *regulators: Regulator, power_flow: bool = False) -> Site:
    named = {r.name: r for r in regulators}
    engine = PowerGridModelEngine(net33(), named) if power_flow else None
    return replace(site, regulators=named, power_flow=engine)


@cache
def small() -> Site:
    """33 buses at 0.95 to 1.05 pu, 5 taps and three banks of two steps: 135 positions."""
    return with_regulators(feeder33("small", v_pu=(0.95, 1.05)), oltc(-4, 0), *banks((16, 29, 31), 2))


@cache
def paper33(power_flow: bool = False) -> Site:
    """Table A.I on 33 buses: 17 taps and 625 positions of four banks."""
    site = feeder33("table A.I", v_pu=(0.95, 1.05))
    return with_regulators(site, oltc(), *banks(PAPER_33), power_flow=power_flow)


@cache
def paper136(seed: int) -> Site:
    """Table A.I on 136 buses: 17 taps and ten banks, 166 million positions; 18 devices."""
    rng = np.random.default_rng(seed)
    net = net136()
    buses = rng.choice(net.bus.index[1:], 18, replace=False)
    park = battery_park(buses, rng.uniform(0.4, 2.8, 18))
    site = site_of("table A.I", net, park, (0.95, 1.05), load=float(rng.uniform(0.3, 1.0)))
    return with_regulators(site, oltc(), *banks(PAPER_136))


def at_start(site: Site) -> dict[str, int]:
    return {name: regulator.start for name, regulator in site.regulators.items()}


def room_at(
    site: Site, present: dict[str, int] | None = None, load: float = 1.0
) -> tuple[Positions, Array, Array]:
    """What `Positions.best` takes: W at the present positions, with every load at `load` of its nominal."""
    positions = Positions(AllowableRegion(site))
    p, q = positions.rows.background({name: load * x.p_mw for name, x in site.loads.items()})
    gamma = np.array([device.weight for device in site.devices.values()])
    return positions, positions.W(p, q, present or at_start(site)), gamma


def choices(site: Site) -> list[dict[str, int]]:
    every = product(*(r.positions for r in site.regulators.values()))
    return [dict(zip(site.regulators, at, strict=True)) for at in every]


def moved(one: dict[str, int], other: dict[str, int]) -> int:
    return sum(abs(one[name] - other[name]) for name in one)


def by_loops(
    site: Site, present: dict[str, int], load: float, for_: For, cost: float
) -> tuple[float, int, dict[str, int]] | None:
    """Value, moves and positions of the best, by asking the rows themselves at each of them."""
    rows = AllowableRegion(site)
    p, q = rows.background({name: load * x.p_mw for name, x in site.loads.items()})
    gamma = np.array([device.weight for device in site.devices.values()])
    best = None
    for at in choices(site):
        W = Positions(rows).W(p, q, at)
        if (W < 0).any():
            continue
        ranges = []
        for sign in (1, -1):
            use = np.maximum(sign * rows.A, 0) @ gamma
            ranges.append(gamma.sum() * min(w / u for w, u in zip(W, use, strict=True) if u > 1e-12))
        value = sum(r for r, name in zip(ranges, ("export", "import"), strict=True) if for_ in (name, "both"))
        value -= cost * moved(at, present)
        key = (-round(value, 9), moved(at, present), tuple(at.values()))
        if best is None or key < best[0]:
            best = key, value, at
    return None if best is None else (best[1], best[0][1], best[2])


# W over the positions


@pytest.mark.parametrize("site_of", [small, paper33, lambda: paper136(0)])
def test_room_is_that_of_the_rows_at_every_position(site_of: Any) -> None:
    site = site_of()
    rng = np.random.default_rng(0)
    for present in (at_start(site), {n: int(rng.choice(r.positions)) for n, r in site.regulators.items()}):
        positions, W, _ = room_at(site, present, 0.7)
        p, q = positions.rows.background({name: 0.7 * x.p_mw for name, x in site.loads.items()})
        for _ in range(5):
            there = {n: int(rng.choice(r.positions)) for n, r in site.regulators.items()}
            expected = positions.W(p, q, there)
            assert positions.room(W, present, there) == pytest.approx(expected, abs=1e-10)


def test_two_taps_multiply() -> None:
    second = TapChanger(name="second", branch="trafo:0", step=0.02, lowest=-2, highest=2)
    site = with_regulators(feeder33("two", v_pu=(0.95, 1.05)), oltc(-4, 2), second, *banks((16,), 1))
    positions, W, gamma = room_at(site)
    p, q = positions.rows.background({})
    for there in ({"oltc": -3, "second": 2, "cb1": 1}, {"oltc": 2, "second": -2, "cb1": 0}):
        expected = positions.W(p, q, there)
        assert positions.room(W, at_start(site), there) == pytest.approx(expected, abs=1e-10)
    found = positions.best(W, at_start(site), gamma, cost_mw=0.01)
    loops = by_loops(site, at_start(site), 1.0, "both", 0.01)
    assert loops is not None
    assert (found.value_mw, found.positions) == (pytest.approx(loops[0], abs=1e-9), loops[2])


# The best of all


@pytest.mark.parametrize("for_", ["both", "export", "import"])
@pytest.mark.parametrize("cost", [0.0, 0.01, 0.3])
@pytest.mark.parametrize("load", [0.2, 1.0])
def test_enumeration_finds_what_loops_find(for_: For, cost: float, load: float) -> None:
    site = small()
    rng = np.random.default_rng(int(100 * load) + len(for_))
    for present in (at_start(site), {n: int(rng.choice(r.positions)) for n, r in site.regulators.items()}):
        positions, W, gamma = room_at(site, present, load)
        found = positions.best(W, present, gamma, for_=for_, cost_mw=cost)
        loops = by_loops(site, present, load, for_, cost)
        assert loops is not None
        assert found.value_mw == pytest.approx(loops[0], abs=1e-9)
        assert (found.moves, found.positions) == loops[1:]
        assert found.W.min() >= -1e-9


@pytest.mark.parametrize("load", [0.3, 0.9])
def test_the_ranges_are_those_of_the_envelopes_there(load: float) -> None:
    """Against P-E itself at the positions chosen."""
    site = paper33()
    positions, W, gamma = room_at(site, load=load)
    for for_ in ("both", "export", "import"):
        found = positions.best(W, at_start(site), gamma, for_=for_)  # type: ignore[arg-type]
        observation = replace(seen(site, load), positions=found.positions)
        fairness = EqualRanges(site, price=False).step(observation).fairness
        assert fairness is not None
        ranges = {"export": fairness.export_mw, "import": fairness.import_mw}
        ranges["both"] = sum(ranges.values())
        assert found.value_mw == pytest.approx(ranges[for_], abs=1e-8)


def test_import_is_greatest_at_tap_minus_3_and_never_below() -> None:
    """Table A.II: -3 where 1.05 pu is the limit; -4 would give 1.0526 pu without any injection."""
    best = Counter()
    rng = np.random.default_rng(1)
    for _ in range(20):
        count = int(rng.integers(4, 7))
        park = battery_park(rng.choice(np.arange(1, 33), count, replace=False), rng.uniform(0.3, 2, count))
        site = replace(paper33(), devices=park)
        positions, W, gamma = room_at(site)
        best[positions.best(W, at_start(site), gamma, for_="import").positions["oltc"]] += 1
    assert best[-3] >= 14
    assert set(best) <= {-3, -2}
    positions, W, gamma = room_at(paper33())
    assert positions.best(W, at_start(paper33()), gamma, for_="import").positions["oltc"] == -3


def test_enumeration_takes_milliseconds() -> None:
    """17 taps and 625 positions of the banks; the least of several runs, so that others may run too."""
    site = paper33()
    positions, W, gamma = room_at(site)
    took = []
    for _ in range(9):
        started = time.perf_counter()
        positions.best(W, at_start(site), gamma, search="enumerate")
        took.append(time.perf_counter() - started)
    assert positions.combinations == 17 * 625
    assert min(took) < 0.03


@pytest.mark.parametrize("search", ["enumerate", "integer", "coordinate"])
def test_equal_positions_go_by_moves_and_then_by_place(search: Any) -> None:
    """Two banks at one bus: it does not matter which is switched on."""
    site = with_regulators(feeder33("twins", v_pu=(0.95, 1.05)), oltc(-3, -3), *banks((31, 31), 4))
    present = at_start(site)
    positions, W, gamma = room_at(site)
    found = positions.best(W, present, gamma, for_="import", search=search)
    steps = found.moves
    assert 1 < steps < 8
    assert found.positions == {"oltc": -3, "cb1": max(0, steps - 4), "cb2": min(4, steps)}
    there = {"oltc": -3, "cb1": min(4, steps), "cb2": max(0, steps - 4)}
    stays = positions.best(positions.room(W, present, there), there, gamma, for_="import", search=search)
    assert (stays.positions, stays.moves) == (there, 0)


def test_dearer_moves_are_fewer() -> None:
    site = paper33()
    positions, W, gamma = room_at(site)
    costs = (0.0, 0.01, 0.1, 0.5, 10.0)
    found = [positions.best(W, at_start(site), gamma, for_="import", cost_mw=c) for c in costs]
    made = [one.moves for one in found]
    assert made == sorted(made, reverse=True)
    assert made[0] > made[3] > made[-1]
    ranges = [one.value_mw + c * one.moves for one, c in zip(found, costs, strict=True)]
    assert all(a >= b - 1e-9 for a, b in pairwise(ranges))


# More positions than can be tried


def integer_best(
    positions: Positions, W: Array, present: dict[str, int], gamma: Array, for_: str, cost: float
) -> float:
    """The same as a mixed-integer linear program: a binary for each tap, an integer for each bank."""
    regulators = positions.regulators
    (tap,) = (r for r in regulators.values() if isinstance(r, TapChanger))
    every = [r for r in regulators.values() if isinstance(r, CapacitorBank)]
    rows, T, C = positions.rows, len(tap.positions), len(every)
    here = positions.room(W, present, {**present, "oltc": 0})  # W is taken apart by asking the rows
    by_tap = np.array([positions.room(W, present, {**present, "oltc": n}) - here for n in tap.positions])
    by_bank = np.array(
        [
            positions.room(W, present, {**present, r.name: 1})
            - positions.room(W, present, {**present, r.name: 0})
            for r in every
        ]
    )
    fixed = here - np.array([present[r.name] for r in every]) @ by_bank
    # up, low, a binary for each tap, an integer for each bank, its moves
    size = 2 + T + 2 * C
    taps, steps, made = np.arange(2, 2 + T), np.arange(2 + T, 2 + T + C), np.arange(2 + T + C, size)
    gain = np.zeros(size)
    gain[0], gain[1] = (gamma.sum() * (for_ in (name, "both")) for name in ("export", "import"))
    gain[taps] = [-cost * abs(n - present["oltc"]) for n in tap.positions]
    gain[made] = -cost
    within = []
    for sign, column in ((1, 0), (-1, 1)):
        M = np.zeros((len(W), size))
        M[:, column], M[:, taps], M[:, steps] = np.maximum(sign * rows.A, 0) @ gamma, -by_tap.T, -by_bank.T
        within.append(LinearConstraint(M, ub=fixed))
    one = np.zeros((1, size))
    one[0, taps] = 1
    within.append(LinearConstraint(one, 1, 1))
    for sign in (1, -1):
        M = np.zeros((C, size))
        M[np.arange(C), steps], M[np.arange(C), made] = sign, -1
        within.append(LinearConstraint(M, ub=sign * np.array([present[r.name] for r in every])))
    high = np.full(size, np.inf)
    high[taps], high[steps] = 1, [r.steps for r in every]
    whole = np.zeros(size)
    whole[taps] = whole[steps] = 1
    answer = milp(
        -gain, constraints=within, bounds=Bounds(0, high), integrality=whole, options={"mip_rel_gap": 1e-9}
    )
    assert answer.success
    return float(-answer.fun)


@pytest.mark.parametrize("for_", ["both", "export", "import"])
def test_integer_programs_find_what_enumeration_finds(for_: For) -> None:
    """So that one of them may judge the other where nothing can be enumerated."""
    site = paper33()
    for load in (0.3, 0.9):
        positions, W, gamma = room_at(site, load=load)
        found = positions.best(W, at_start(site), gamma, for_=for_, cost_mw=0.01)
        program = integer_best(positions, W, at_start(site), gamma, for_, 0.01)
        assert found.value_mw == pytest.approx(program, abs=1e-6)
        own = positions.best(W, at_start(site), gamma, for_=for_, cost_mw=0.01, search="integer")
        assert own.positions == found.positions


@pytest.mark.parametrize("seed", range(6))
def test_ten_banks_are_where_the_integer_program_puts_them(seed: int) -> None:
    """166 million positions: the default search finds the best, the coordinate search comes near."""
    site = paper136(seed)
    positions, W, gamma = room_at(site)
    assert positions.combinations == 17 * 5**10 > MOST
    for for_ in ("both", "export", "import"):
        program = integer_best(positions, W, at_start(site), gamma, for_, 0.01)
        found, near = (
            positions.best(W, at_start(site), gamma, for_=for_, cost_mw=0.01, search=search)  # type: ignore[arg-type]
            for search in ("auto", "coordinate")
        )
        assert found.value_mw == pytest.approx(program, rel=1e-7)
        assert 0.95 * program <= near.value_mw <= program * (1 + 1e-7)
        assert found.W.min() >= -1e-9
        assert near.W.min() >= -1e-9
        again = positions.best(W, at_start(site), gamma, for_=for_, cost_mw=0.01)  # type: ignore[arg-type]
        assert again.positions == found.positions


def test_without_an_answer_of_the_solver_there_is_the_coordinate_search(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = paper136(0)
    positions, W, gamma = room_at(site)
    near = positions.best(W, at_start(site), gamma, search="coordinate")

    def stuck(*args: Any, **options: Any) -> None:
        raise SolverFailed("HiGHS ended with 'Time limit reached'")

    monkeypatch.setattr("controllers.solve.integer", stuck)
    assert positions.best(W, at_start(site), gamma).positions == near.positions
    with pytest.raises(SolverFailed):
        positions.best(W, at_start(site), gamma, search="integer")


@pytest.mark.parametrize("load", [0.3, 0.7, 1.0])
def test_coordinate_search_is_near_enumeration(load: float) -> None:
    site = paper33()
    positions, W, gamma = room_at(site, load=load)
    for for_ in ("both", "export", "import"):
        best, near = (
            positions.best(W, at_start(site), gamma, for_=for_, cost_mw=0.01, search=search)  # type: ignore[arg-type]
            for search in ("enumerate", "coordinate")
        )
        assert best.value_mw * 0.98 <= near.value_mw <= best.value_mw + 1e-9


def test_coordinate_search_finds_its_way_from_positions_that_break_a_limit() -> None:
    site = paper33()
    present = {"oltc": 8, "cb1": 0, "cb2": 0, "cb3": 0, "cb4": 0}
    positions, W, gamma = room_at(site, present)
    assert W.min() < -0.1
    found = positions.best(W, present, gamma, search="coordinate")
    assert found.W.min() >= -1e-9


# No positions


@pytest.mark.parametrize("search", ["enumerate", "integer", "coordinate"])
def test_where_no_positions_help_the_error_names_the_row(search: Any) -> None:
    site = with_regulators(feeder33("heavy", v_pu=(0.95, 1.05)), oltc(-1, 1), *banks((16,), 1))
    positions, W, gamma = room_at(site, load=1.3)
    tried = "no position that was tried of" if search == "coordinate" else "no position of"
    with pytest.raises(Infeasible, match=f"^{tried} oltc, cb1 keeps .* it breaks lower voltage at bus 17 by"):
        positions.best(W, at_start(site), gamma, search=search)


@pytest.mark.parametrize("search", ["enumerate", "integer", "coordinate"])
def test_without_taps_or_without_banks(search: Any) -> None:
    base = feeder33("one kind", v_pu=(0.95, 1.05))
    for site in (with_regulators(base, oltc(-4, 0)), with_regulators(base, *banks((12, 16, 29, 31), 4))):
        positions, W, gamma = room_at(site, load=0.8)
        found = positions.best(W, at_start(site), gamma, for_="import", cost_mw=0.01, search=search)
        loops = by_loops(site, at_start(site), 0.8, "import", 0.01)
        assert loops is not None
        assert (found.value_mw, found.moves) == (pytest.approx(loops[0], abs=1e-9), loops[1])


def test_positions_mend_what_no_device_can_influence() -> None:
    """All devices on one lateral, the limits tight: the other laterals' ends are the regulators' alone."""
    site = small()
    impedance = np.where(np.arange(32) == 0, 0.0, 1.0)  # so that nothing in common is left before them
    network = replace(site.network, r_pu=site.network.r_pu * impedance, x_pu=site.network.x_pu * impedance)
    site = replace(site, network=network, devices=battery_park((1, 1), (1.0, 2.0)))
    rows = AllowableRegion(site)
    assert rows.dead[32 + network.buses.index("17")]
    with pytest.raises(Infeasible, match="no device can influence it"):
        rows.W(*rows.background({}), {})
    positions = Positions(rows)
    W = positions.W(*rows.background({}), at_start(site))
    gamma = np.array([1.0, 2.0])
    for search in ("enumerate", "integer", "coordinate"):
        found = positions.best(W, at_start(site), gamma, search=search)  # type: ignore[arg-type]
        assert rows.W(*rows.background({}), found.positions).min() >= -1e-9


# The controller


def test_it_moves_to_where_the_rows_leave_most() -> None:
    site = paper33()
    positions, W, gamma = room_at(site)
    decision = VoltageRegulation(site, for_="import", switching_cost_mw=0.02).step(seen(site))
    best = positions.best(W, at_start(site), gamma, for_="import", cost_mw=0.02)
    assert decision.positions == best.positions
    assert (decision.time, decision.origin) == (NOON, Origin.OPTIMAL)
    assert not decision.regions
    assert not decision.setpoints


def test_it_starts_from_where_the_regulators_stand() -> None:
    site = paper33()
    there = {"oltc": -3, "cb1": 2, "cb2": 4, "cb3": 4, "cb4": 2}
    controller = VoltageRegulation(site, switching_cost_mw=100.0)
    assert controller.step(replace(seen(site), positions=there)).positions == there
    assert controller.step(replace(seen(site), positions={"oltc": -2})).positions != there


def test_what_is_decided_depends_on_nothing_that_was_asked_before() -> None:
    site = paper33(power_flow=True)
    one, other = VoltageRegulation(site), VoltageRegulation(site)
    first = one.step(seen(site, 0.9))
    one.step(seen(site, 0.1))
    assert one.step(seen(site, 0.9)) == first == other.step(seen(site, 0.9))
    assert one.step(seen(site, 0.9, at=NOON + STEP)).time == NOON + STEP
    assert one.step(seen(site, 0.1)).positions != first.positions


def test_on_bad_days_it_decides_or_says_why_not() -> None:
    """The contract that `tests/test_controllers.py` holds the others to."""
    site = paper33(power_flow=True)
    controller, refused = VoltageRegulation(site), set()
    for day, observation in days(site).items():
        before = told(observation)
        try:
            decision = controller.step(observation)
        except ControlError:
            refused.add(day)
            continue
        assert told(observation) == before
        assert decision.time == observation.time
        assert standing(site.regulators, decision.positions) == decision.positions
    assert refused == {"heavy load", "reverse flow"}


def test_all_intervals_count() -> None:
    """A peak to come decides as much as the present."""
    site = paper33()
    scales = (0.3, 1.1, 0.5)
    mean = np.array([[load.p_mw * s for load in site.loads.values()] for s in scales])
    ahead = Observation(
        time=NOON, forecast=Forecast(NOON, STEP, tuple(site.loads), mean, np.zeros_like(mean))
    )
    rows = AllowableRegion(site)

    def least(positions: Any, count: int) -> float:
        """Least room over the first intervals."""
        rooms = (rows.W(*rows.background(ahead.forecast.at(i)), positions) for i in range(count))
        return float(np.min(list(rooms)))

    short, long = (VoltageRegulation(site, intervals=n).step(ahead).positions for n in (1, 3))
    assert least(short, 1) >= -1e-9
    assert least(long, 3) >= -1e-9
    assert least(short, 3) < 0  # what suits the present alone does not last
    assert VoltageRegulation(site, intervals=9).step(ahead).positions == long  # no more than are forecast


def test_a_margin_is_kept_free() -> None:
    """Room is that of loads whose errors add up, in each of the intervals."""
    site = paper33()
    spread = (0.02, 0.08)
    mean = np.array([[0.9 * load.p_mw for load in site.loads.values()]] * 2)
    std = np.abs(mean) * np.array(spread)[:, None]
    observation = Observation(time=NOON, forecast=Forecast(NOON, STEP, tuple(site.loads), mean, std))
    rows = AllowableRegion(site)

    def worst(decision: Any, scale: float) -> float:
        p, q = rows.background({name: scale * load.p_mw for name, load in site.loads.items()})
        return float(rows.W(p, q, decision.positions).min())

    options: dict[str, Any] = {"intervals": 2, "switching_cost_mw": 100.0}
    plain = VoltageRegulation(site, **options).step(observation)
    careful = VoltageRegulation(site, **options, margin={"kind": "interval", "sigmas": 2.0}).step(observation)
    for scale in (0.9, 0.9 * (1 + 2 * 0.08), 0.9 * (1 - 2 * 0.08)):
        assert worst(careful, scale) >= -1e-9
    assert min(worst(plain, 0.9 * (1 + s * 0.16)) for s in (-1, 1)) < -1e-3
    first = VoltageRegulation(
        site, **(options | {"intervals": 1}), margin={"kind": "interval", "sigmas": 1e-9}
    )
    assert first.step(observation).positions == plain.positions
    with pytest.raises(ValueError, match="margin: no kind"):
        VoltageRegulation(site, margin={})


def test_the_ac_power_flow_has_a_say() -> None:
    """Losses take the voltage below the limit that the linear model keeps with nothing to spare."""
    site = paper33(power_flow=True)
    assert site.power_flow is not None
    low, high = 0.95, 1.05
    linear = replace(site, power_flow=None)
    n = len(site.power_flow.buses)
    p, q = np.zeros((2, 1, n))
    for load in site.loads.values():
        p[0, site.power_flow.buses.index(load.bus)] += load.p_mw
        q[0, site.power_flow.buses.index(load.bus)] += load.q_mvar

    def beyond(decision: Any) -> float:
        assert site.power_flow is not None
        v = site.power_flow.at(decision.positions).solve(p, q).v_pu[0]
        others = [i for i, bus in enumerate(site.power_flow.buses) if bus != site.network.slack]
        return float(max(low - v[others].min(), v[others].max() - high))

    options: list[dict[str, Any]] = [{"switching_cost_mw": 5.0}, {"for_": "export"}, {"for_": "import"}]
    refused = 0
    for more in options:
        without, checked = (VoltageRegulation(s, **more).step(seen(site)) for s in (linear, site))
        refused += beyond(without) > 1e-6
        assert beyond(checked) <= 1e-6
        if beyond(without) <= 1e-9:
            assert checked.positions == without.positions  # what holds is left as it is
    assert refused


def test_without_a_way_that_the_ac_power_flow_accepts_there_is_an_error() -> None:
    base = feeder33("tight", v_pu=(0.95, 1.05))
    site = with_regulators(base, oltc(-3, -3), power_flow=True)
    flows = AllowableRegion(site)
    v2 = 0.95**2 + flows.W(*flows.background({}), {"oltc": -3})[32:64]
    tight = replace(site, limits=Limits((float(np.sqrt(v2.min())) - 1e-4, 1.05), 100.0))
    observation = replace(seen(site), positions={"oltc": -3})
    assert VoltageRegulation(replace(tight, power_flow=None)).step(observation).positions == {"oltc": -3}
    with pytest.raises(Infeasible, match="lower voltage at bus"):
        VoltageRegulation(tight).step(observation)


def test_positions_without_an_ac_solution_are_refused() -> None:
    """Every load sixty times as large, limits that the linear model keeps."""
    site = with_regulators(feeder33("collapse", v_pu=(0.05, 1.9)), oltc(-2, 2), power_flow=True)
    site = replace(site, network=replace(site.network, rating_mva=np.full(32, np.inf)))
    linear = replace(site, power_flow=None)
    heavy = next(s for s in np.arange(2.0, 9.0, 0.25) if _collapses(site, float(s)))
    assert VoltageRegulation(linear).step(seen(site, float(heavy))).positions
    with pytest.raises(Infeasible):
        VoltageRegulation(site).step(seen(site, float(heavy)))


def _collapses(site: Site, scale: float) -> bool:
    assert site.power_flow is not None
    buses = site.power_flow.buses
    p, q = np.zeros((2, 1, len(buses)))
    for load in site.loads.values():
        p[0, buses.index(load.bus)] += scale * load.p_mw
        q[0, buses.index(load.bus)] += scale * load.q_mvar
    return not any(site.power_flow.at({"oltc": n}).solve(p, q).converged[0] for n in range(-2, 3))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"for_": "all"}, "for_ 'all' is none of both, export, import"),
        ({"method": "guess"}, "method 'guess' is none of auto, enumerate, integer, coordinate"),
        ({"switching_cost_mw": -1}, "switching_cost_mw -1 is negative"),
        ({"intervals": 0}, "intervals 0 must be at least 1"),
    ],
)
def test_options_that_there_are_not_are_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        VoltageRegulation(small(), **options)


def test_a_site_without_regulators_or_devices_is_refused() -> None:
    with pytest.raises(ValueError, match="has no regulators to move"):
        VoltageRegulation(feeder33("bare", v_pu=(0.95, 1.05)))
    with pytest.raises(ValueError, match="has no devices to give room"):
        VoltageRegulation(replace(small(), devices={}))


# Envelope methods that move regulators when there is no room


def by_least_moves(site: Site, present: dict[str, int], load: float) -> int | None:
    """Fewest moves to positions with room, by loops."""
    rows = AllowableRegion(site)
    p, q = rows.background({name: load * x.p_mw for name, x in site.loads.items()})
    every = Positions(rows)
    usable = [moved(at, present) for at in choices(site) if every.W(p, q, at).min() >= -1e-9]
    return min(usable, default=None)


@pytest.mark.parametrize("load", [0.2, 0.7, 0.85, 1.0, 1.2])
def test_envelopes_move_no_more_than_they_have_to(load: float) -> None:
    site = small()
    strict, helped = EqualRanges(site), EqualRanges(site, when_broken="devices")
    fewest = by_least_moves(site, at_start(site), load)
    decision = helped.step(seen(site, load))
    assert fewest is not None
    assert moved({**at_start(site), **decision.positions}, at_start(site)) == fewest
    if not fewest:
        assert not decision.positions
        assert said(strict.step(seen(site, load))) == said(decision)
        return
    with pytest.raises(Infeasible):
        strict.step(seen(site, load))
    there = replace(seen(site, load), positions={**at_start(site), **decision.positions})
    assert said(strict.step(there)) == said(decision)  # its envelopes are those of the new positions


def said(decision: Any) -> dict[str, list[float]]:
    return {name: region.b.tolist() for name, region in decision.regions.items()}


def test_some_of_these_loads_need_a_move_and_some_do_not() -> None:
    fewest = [by_least_moves(small(), at_start(small()), load) for load in (0.2, 0.7, 0.85, 1.0, 1.2)]
    assert fewest[0] == 0
    assert fewest[-1] is not None
    assert fewest[-1] > 1


def test_envelopes_that_nothing_helps_are_refused_as_if_strict() -> None:
    site = small()
    errors = []
    for policy in ("strict", "devices"):
        with pytest.raises(Infeasible) as refused:
            EqualRanges(site, when_broken=policy).step(seen(site, 3.0))  # type: ignore[arg-type]
        errors.append(str(refused.value))
    assert errors[0] == errors[1]
    bare = feeder33("bare", v_pu=(0.95, 1.05))
    with pytest.raises(Infeasible, match="broken by"):
        EqualRanges(bare, when_broken="devices").step(seen(bare, 3.0))


def test_envelopes_that_are_fixed_count_when_regulators_are_moved_for_the_others() -> None:
    """A device that keeps importing 1 MW needs more than no injection does."""
    site = small()
    method = EqualRanges(site, when_broken="devices", price=False)
    load = 0.6
    assert by_least_moves(site, at_start(site), load) == 0
    fixed = {"der3": np.array([[-1.2, 0.0], [0.0, 0.0]])}
    room = method.room(seen(site, load), fixed=fixed)
    assert room.positions != at_start(site)
    decision = method.decide(seen(site, load), room, method.envelopes(room))
    assert {**at_start(site), **decision.positions} == room.positions
    assert "der3" not in decision.regions
    with pytest.raises(Infeasible):
        EqualRanges(site).room(seen(site, load), fixed=fixed)


def test_a_move_costs_more_than_any_range() -> None:
    assert max(d.rating_mw for d in paper136(0).devices.values()) * 18 < LEAST_MOVES / 100


def test_half_an_hour_is_what_a_regulation_looks_ahead_in_the_packaged_scenario() -> None:
    from scenarios.check import validate
    from scenarios.load import load

    scenario = validate(load("ieee33-regulated"))
    part = next(c for c in scenario.controllers if c.name == "regulation")
    assert part.every == timedelta(minutes=30) == part.options["intervals"] * scenario.every
    envelopes = next(c for c in scenario.controllers if c.name == "dso")
    assert not part.every % (envelopes.every or scenario.every)
