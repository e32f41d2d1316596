"""The room kept back for forecast errors, against sampling, enumeration and two buses by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from statistics import NormalDist

import numpy as np
import pytest

from controllers import Forecast, Infeasible, Limits, Load, Network, Observation, Site
from controllers.devices import Battery, still
from controllers.envelopes import AllowableRegion, EqualRanges
from controllers.envelopes.margins import LARGEST, Margin, Reserve
from tests.test_equal_ranges import NOON, STEP, by_device, random_site

KINDS = ({"kind": "gaussian"}, {"kind": "cantelli"}, {"kind": "interval"})


def device(name: str, bus: str) -> Battery:
    return Battery(
        name=name, bus=bus, p_mw=1.0, s_mva=1.0, e_mwh=1.0, e_min_mwh=0.0, e_start_mwh=0.5,
        efficiency=(1.0, 1.0), weight=1.0, default=still(),
    )  # fmt: skip


def two_buses(rating_mva: float = 4.0) -> Site:
    """One line of r = 0.01, x = 0.02 pu at 1 MVA; a load of 1 MW and 0.5 Mvar and one of 0.4 MW behind it."""
    network = Network(
        "0", ("1",), ("line:0",), np.array([-1]), np.array([0.01]), np.array([0.02]), np.array([rating_mva])
    )
    loads = {"a": Load("a", "1", -1.0, -0.5), "b": Load("b", "1", -0.4, 0.0)}
    return Site("two", network, Limits((0.9, 1.1), 100.0), STEP, {"d": device("d", "1")}, loads)


def seen(site: Site, std: list[list[float]], scale: float = 1.0) -> Observation:
    mean = np.array([[load.p_mw * scale for load in site.loads.values()]] * len(std))
    return Observation(time=NOON, forecast=Forecast(NOON, STEP, tuple(site.loads), mean, np.array(std)))


def spreads(site: Site, seed: int) -> dict[str, float]:
    draw = np.random.default_rng(seed)
    return {name: float(draw.uniform(0, 0.1)) for name in site.loads}


@pytest.mark.parametrize("correlation", [0.0, 0.3, 1.0])
def test_two_buses_by_hand(correlation: float) -> None:
    site = two_buses()
    rows = AllowableRegion(site)
    kept = Reserve(rows, Margin("gaussian", epsilon=0.1, correlation=correlation))({"a": 0.2, "b": 0.1})
    z = NormalDist().inv_cdf(0.9)
    # 2 (r + x tan phi) for each load, in pu^2/MW
    one, two = 0.2 * 2 * (0.01 + 0.02 * 0.5), 0.1 * 2 * 0.01
    voltage = z * np.sqrt(one**2 + two**2 + 2 * correlation * one * two)
    assert kept[:2] == pytest.approx([voltage, voltage], rel=1e-12)
    for edge, angle in enumerate(rows.angles):
        one, two = 0.2 * (np.cos(angle) + 0.5 * np.sin(angle)), 0.1 * np.cos(angle)
        flow = z * np.sqrt(one**2 + two**2 + 2 * correlation * one * two)
        assert kept[2 + edge] == pytest.approx(flow, rel=1e-12)


def test_the_factors() -> None:
    assert Margin("gaussian", epsilon=0.05).factor == pytest.approx(1.6448536269514722)
    assert Margin("cantelli", epsilon=0.05).factor == pytest.approx(np.sqrt(19))
    assert Margin("interval", sigmas=3).factor == 3


@pytest.mark.parametrize("seed", range(4))
def test_the_spread_is_that_of_the_rows_themselves(seed: int) -> None:
    """W of sampled loads, by the network: its spread in each row, and how often it falls by the reserve."""
    site = random_site(seed, charging=0.05)
    rows = AllowableRegion(site)
    std = spreads(site, seed)
    correlation, epsilon, samples = 0.4, 0.1, 4000
    draw = np.random.default_rng(100 + seed)
    mixed = np.sqrt(correlation) * draw.normal(size=(samples, 1))
    mixed = mixed + np.sqrt(1 - correlation) * draw.normal(size=(samples, len(site.loads)))
    moves = mixed * [std[name] for name in site.loads]
    mean = {name: load.p_mw for name, load in site.loads.items()}
    W_0 = rows.W(*rows.background(mean))
    W = np.array(
        [
            rows.W(*rows.background({n: mean[n] + x for n, x in zip(mean, move, strict=True)}))
            for move in moves
        ]
    )
    margin = Margin("gaussian", epsilon=epsilon, correlation=correlation)
    kept = Reserve(rows, margin)(std)
    touched = kept > 1e-9
    assert touched.any()
    assert W.std(axis=0)[touched] == pytest.approx(kept[touched] / margin.factor, rel=0.06)
    short = (kept < W_0 - W)[:, touched].mean(axis=0)
    assert np.abs(short - epsilon).max() < 0.03


def test_cantelli_is_met_by_the_distribution_that_it_is_made_for() -> None:
    """All loads together either rarely far off or mostly a little: mean 0, spread sigma, and a row that has
    the reserve left is just met, epsilon of the time."""
    site, epsilon = random_site(4), 0.1
    rows, std = AllowableRegion(site), spreads(site, 4)
    far, near = np.sqrt((1 - epsilon) / epsilon), -np.sqrt(epsilon / (1 - epsilon))
    assert epsilon * far + (1 - epsilon) * near == pytest.approx(0)
    assert epsilon * far**2 + (1 - epsilon) * near**2 == pytest.approx(1)
    kept = Reserve(rows, Margin("cantelli", epsilon=epsilon, correlation=1.0))(std)
    mean = {name: load.p_mw for name, load in site.loads.items()}
    W_0 = rows.W(*rows.background(mean))
    change = rows.W(*rows.background({name: mean[name] + far * std[name] for name in mean})) - W_0
    assert np.abs(change) == pytest.approx(kept, abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_an_interval_is_the_worst_corner_of_the_loads_box(seed: int) -> None:
    site = random_site(seed, charging=0.1)
    few = dict(list(site.loads.items())[:7])
    site = replace(site, loads=few)
    rows = AllowableRegion(site)
    std = spreads(site, seed)
    mean = {name: load.p_mw for name, load in few.items()}
    W_0 = rows.W(*rows.background(mean))
    worst = np.full(len(rows), np.inf)
    for corner in product((-2.5, 2.5), repeat=len(few)):
        moved = {n: mean[n] + k * std[n] for n, k in zip(few, corner, strict=True)}
        worst = np.minimum(worst, rows.W(*rows.background(moved)))
    kept = Reserve(rows, Margin("interval", sigmas=2.5))(std)
    assert kept == pytest.approx(W_0 - worst, abs=1e-12)


def test_an_odd_polygon_is_looked_at_edge_by_edge() -> None:
    site = random_site(2)
    rows = AllowableRegion(site, edges=5)
    std = spreads(site, 2)
    kept = Reserve(rows, Margin("interval", sigmas=1.0))(std)
    mean = {name: load.p_mw for name, load in site.loads.items()}
    W_0 = rows.W(*rows.background(mean))
    each = [rows.W(*rows.background(mean | {name: mean[name] + std[name]})) - W_0 for name in mean]
    assert kept == pytest.approx(np.abs(each).sum(axis=0), abs=1e-12)


def test_correlation_and_distribution_only_add() -> None:
    site = random_site(4)
    rows, std = AllowableRegion(site), spreads(site, 4)
    gaussian = [Reserve(rows, Margin("gaussian", correlation=c))(std) for c in (0.0, 0.5, 1.0)]
    voltages = slice(0, 2 * len(site.network.buses))  # one-signed, so loads that move together add up
    assert (np.diff([kept[voltages] for kept in gaussian], axis=0) >= -1e-15).all()
    cantelli, interval = (Reserve(rows, Margin.of(kind))(std) for kind in KINDS[1:])
    assert (cantelli >= gaussian[0]).all()
    assert (interval * 1.645 / 2 >= gaussian[2] - 1e-12).all()
    assert not Reserve(rows, Margin("gaussian"))({}).any()


def test_loads_at_the_slack_bus_and_of_constant_reactive_power() -> None:
    site = two_buses()
    loads = {"s": Load("s", "0", -1.0, -1.0), "c": Load("c", "1", 0.0, -0.3)}
    rows = AllowableRegion(replace(site, loads=loads))
    kept = Reserve(rows, Margin("interval", sigmas=1.0))({"s": 1.0, "c": 0.5})
    assert kept[0] == pytest.approx(0.5 * 0.02)  # its active power alone is uncertain


# As an option of every method


def test_the_room_is_smaller_by_what_is_kept_back() -> None:
    site = two_buses()
    observation = seen(site, [[0.2, 0.1]])
    plain, kept = EqualRanges(site), EqualRanges(site, margin={"kind": "interval", "sigmas": 2.0})
    one, other = plain.room(observation), kept.room(observation)
    assert not one.reserve.any()
    assert (other.reserve > 0).all()
    assert other.W + other.reserve == pytest.approx(one.W)
    narrow, wide = (by_device(method.step(observation))["d"] for method in (kept, plain))
    # Upwards 4 MVA bind, whose two middle edges meet on the axis where the load's reactive power is not.
    assert wide[0] < narrow[0] < 0 < narrow[1] < wide[1]


def test_of_several_intervals_the_greatest_spread_counts() -> None:
    site = two_buses()
    method = EqualRanges(site, intervals=3, margin={"kind": "gaussian"})
    rooms = [method.room(seen(site, std)) for std in ([[0.0, 0.0], [0.3, 0.0], [0.1, 0.1]], [[0.3, 0.0]] * 3)]
    assert (rooms[0].reserve >= rooms[1].reserve).all()
    alone = [method.room(seen(site, [std])).reserve for std in ([0.3, 0.0], [0.1, 0.1])]
    assert rooms[0].reserve == pytest.approx(np.max(alone, axis=0))


def test_nothing_forecast_keeps_nothing_back() -> None:
    site = two_buses()
    method = EqualRanges(site, margin={"kind": "gaussian"})
    blind = Observation(time=NOON, forecast=Forecast.empty(NOON, STEP))
    assert not method.room(blind).reserve.any()


def test_a_margin_that_leaves_no_room_says_so() -> None:
    site = two_buses(rating_mva=1.6)
    observation = seen(site, [[0.5, 0.0]])
    EqualRanges(site).step(observation)
    with pytest.raises(
        Infeasible, match=r"loading of line:0: broken by .*, 1\.\d+ of it for forecast errors"
    ):
        EqualRanges(site, margin={"kind": "interval"}).step(observation)
    kept = EqualRanges(site, margin={"kind": "interval"}, when_broken="do_no_harm")
    room = kept.room(observation)
    assert room.broken == "loading of line:0"
    assert (room.W >= 0).all()
    assert room.W + room.reserve == pytest.approx(EqualRanges(site).room(observation).W)


def test_what_no_device_can_influence_keeps_nothing_back() -> None:
    """A line to a load alone: its rating is nobody's to keep free."""
    site = two_buses()
    network = Network(
        "0", ("1", "2"), ("line:0", "line:1"), np.array([-1, 0]), np.full(2, 0.01), np.full(2, 0.02),
        np.array([np.inf, 0.45]),
    )  # fmt: skip
    loads = {"a": Load("a", "1", -1.0, -0.5), "b": Load("b", "2", -0.4, 0.0)}
    site = replace(site, network=network, loads=loads)
    observation = seen(site, [[0.1, 0.2]])
    method = EqualRanges(site, margin={"kind": "interval"})
    room = method.room(observation)
    dead = method.rows.dead
    assert dead.sum() == 16
    assert not room.reserve[dead].any()
    assert room.reserve[~dead].all()


WRONG = {
    "no kind": {},
    "kind 'normal' is none of gaussian, cantelli, interval": {"kind": "normal"},
    "gaussian has no sigmas; it has epsilon, correlation": {"kind": "gaussian", "sigmas": 2.0},
    "interval has no epsilon": {"kind": "interval", "epsilon": 0.1},
    "epsilon 0.6 is not between 0 and 0.5": {"kind": "gaussian", "epsilon": 0.6},
    "epsilon 0 is not between 0 and 1": {"kind": "cantelli", "epsilon": 0},
    r"correlation -0.1 is not in 0..1": {"kind": "gaussian", "correlation": -0.1},
    "sigmas 0 must be above 0": {"kind": "interval", "sigmas": 0},
    "epsilon 'few' is no number": {"kind": "gaussian", "epsilon": "few"},
    "'gaussian' is no mapping": "gaussian",
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_options_are_refused_with_what_is_right(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EqualRanges(two_buses(), margin=WRONG[message])  # type: ignore[arg-type]


def test_too_many_loads_are_refused_unless_they_move_together(monkeypatch: pytest.MonkeyPatch) -> None:
    site = random_site(3)
    rows, std = AllowableRegion(site), spreads(site, 3)
    whole = Reserve(rows, Margin("gaussian", correlation=1.0))(std)
    monkeypatch.setattr("controllers.envelopes.margins.LARGEST", 10)
    assert LARGEST > 10
    for kind in KINDS:
        with pytest.raises(ValueError, match="more than 10 coefficients to keep; give kind gaussian"):
            Reserve(rows, Margin.of(kind))
    assert Reserve(rows, Margin("gaussian", correlation=1.0))(std) == pytest.approx(whole)
