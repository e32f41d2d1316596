"""P-E: the closed form against the printed linear programs, corner enumeration and finite differences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import product

import numpy as np
import numpy.typing as npt
import pytest

from controllers import (
    Decision,
    Device,
    Forecast,
    Infeasible,
    Limits,
    Load,
    Network,
    Observation,
    Origin,
    Site,
)
from controllers.devices import Battery, FlexibleLoad, WindTurbine, still
from controllers.envelopes import AllowableRegion, EqualRanges
from controllers.envelopes.equal_ranges import EqualRangeProgram, ranges, together

Array = npt.NDArray[np.float64]
NOON = datetime(2026, 6, 21, 12, tzinfo=UTC)
STEP = timedelta(minutes=5)
SEEDS = range(12)


def device(name: str, bus: str, weight: float) -> Device:
    return Battery(
        name=name, bus=bus, p_mw=1.0, s_mva=1.0, e_mwh=1.0, e_min_mwh=0.0, e_start_mwh=0.5,
        efficiency=(1.0, 1.0), weight=weight, default=still(),
    )  # fmt: skip


def tree(rng: np.random.Generator, n: int, rating_mva: Array, *, charging: float = 0.0) -> Network:
    """A random radial network; at each bus an admittance that draws `charging` MW and injects as many Mvar,
    which gives the flow rows both signs."""
    feeder = np.array([rng.integers(0, bus) - 1 for bus in range(1, n + 1)])
    r, x = rng.uniform(0.001, 0.006, (2, n))
    return Network(
        slack="0",
        buses=tuple(str(i) for i in range(1, n + 1)),
        branches=tuple(f"line:{i}" for i in range(n)),
        feeder=feeder,
        r_pu=r,
        x_pu=x,
        rating_mva=rating_mva,
        g_pu=np.full(n, charging),
        b_pu=np.full(n, charging),
    )


def random_site(seed: int, *, charging: float = 0.0) -> Site:
    """4 to 14 buses, 1 to 6 devices of mixed weights, one of them at the slack bus, some branches rated."""
    rng = np.random.default_rng(seed)
    n, count = int(rng.integers(4, 15)), int(rng.integers(1, 7))
    rating = np.where(rng.random(n) < 0.5, rng.uniform(3, 8, n), np.inf)
    buses = ["0", *(str(i) for i in rng.integers(1, n + 1, count))] if seed % 3 == 0 else [
        str(i) for i in rng.integers(1, n + 1, count)
    ]  # fmt: skip
    devices = {f"d{i}": device(f"d{i}", bus, float(rng.uniform(0.2, 3))) for i, bus in enumerate(buses)}
    loads = {
        f"load:{i}": Load(
            f"load:{i}", str(i % (n + 1)), -float(rng.uniform(0, 0.2)), -float(rng.uniform(0, 0.1))
        )
        for i in range(n + 3)
    }
    limits = Limits((0.95, 1.05), 100.0)
    return Site("random", tree(rng, n, rating, charging=charging), limits, STEP, devices, loads)


def seen(site: Site, scale: float = 1.0) -> Observation:
    """Every load forecast at `scale` times its nominal power."""
    mean = np.array([[load.p_mw * scale for load in site.loads.values()]])
    forecast = Forecast(NOON, STEP, tuple(site.loads), mean, np.zeros_like(mean))
    return Observation(time=NOON, forecast=forecast)


def by_device(decision: Decision) -> dict[str, tuple[float, float]]:
    return {name: region.limits("p_mw") for name, region in decision.regions.items()}


def spans(site: Site, decision: Decision) -> tuple[Array, Array]:
    """Lower and upper limits of the devices, in the site's order."""
    found = by_device(decision)
    low, high = np.array([found[name] for name in site.devices]).T
    return low, high


def corners(low: Array, high: Array) -> Array:
    return np.array(list(product(*zip(low, high, strict=True))))


def reweighted(site: Site, weights: Mapping[str, float]) -> Site:
    return replace(site, devices={n: replace(d, weight=weights[n]) for n, d in site.devices.items()})  # type: ignore[type-var]


# The closed form


@pytest.mark.parametrize("seed", SEEDS)
def test_T3_the_closed_form_is_the_linear_programs(seed: int) -> None:
    site = random_site(seed)
    closed, printed = EqualRanges(site), EqualRanges(site, form="lp")
    for scale in (0.0, 0.5, 1.3):
        one, two = closed.step(seen(site, scale)), printed.step(seen(site, scale))
        assert one.origin is two.origin is Origin.OPTIMAL
        for name, limits in by_device(one).items():
            assert by_device(two)[name] == pytest.approx(limits, abs=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_device_may_use_its_range_whatever_the_others_do(seed: int) -> None:
    site = random_site(seed)
    decision = EqualRanges(site).step(seen(site))
    low, high = spans(site, decision)
    assert (low <= 0).all()
    assert (high >= 0).all()
    rows = AllowableRegion(site)
    W = rows.W(*rows.background({}))
    used = corners(low, high) @ rows.A.T
    assert (used <= W + 1e-9).all()
    # and no range could be wider: each direction takes one row whole, the one that it names
    export, bought = decision.certificates["d0"].binding.removeprefix("export by ").split(", import by ")  # type: ignore[union-attr]
    names = np.array(rows.names)
    for side, name in ((corners(0 * low, high), export), (corners(low, 0 * high), bought)):
        left = W - (side @ rows.A.T).max(axis=0)
        assert left.min() == pytest.approx(0, abs=1e-9)
        assert left[names == name].min() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_network_itself_keeps_its_limits_at_every_corner(seed: int) -> None:
    """The same without the rows: voltages and flows from the network."""
    site = random_site(seed)
    network = site.network
    low, high = spans(site, EqualRanges(site).step(seen(site)))
    buses = [d.bus for d in site.devices.values()]
    load = list(site.loads.values())
    p0 = network.total([x.bus for x in load], [x.p_mw for x in load])
    q0 = network.total([x.bus for x in load], [x.q_mvar for x in load])
    for corner in corners(low, high):
        p = p0 + network.total(buses, corner)
        v2 = network.v2(p, q0)
        assert v2.min() >= 0.95**2 - 1e-9
        assert v2.max() <= 1.05**2 + 1e-9
        assert (np.hypot(*network.flow(p, q0)) <= network.rating_mva + 1e-9).all()


def test_ranges_are_equal_per_weight() -> None:
    site = random_site(4)
    low, high = spans(site, EqualRanges(site).step(seen(site)))
    gamma = np.array([d.weight for d in site.devices.values()])
    assert high / gamma == pytest.approx(np.full(len(gamma), high[0] / gamma[0]))
    assert low / gamma == pytest.approx(np.full(len(gamma), low[0] / gamma[0]))


@pytest.mark.parametrize("seed", SEEDS)
def test_only_ratios_of_weights_matter(seed: int) -> None:
    site = random_site(seed)
    thousand = reweighted(site, {name: 1000 * d.weight for name, d in site.devices.items()})
    one, two = (by_device(EqualRanges(s).step(seen(s))) for s in (site, thousand))
    for name in site.devices:
        assert two[name] == pytest.approx(one[name], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_order_of_the_devices_does_not_matter(seed: int) -> None:
    site = random_site(seed)
    turned = replace(site, devices=dict(reversed(list(site.devices.items()))))
    one, two = (by_device(EqualRanges(s).step(seen(s))) for s in (site, turned))
    assert list(two) == list(reversed(one))
    for name in site.devices:
        assert two[name] == pytest.approx(one[name], rel=1e-9, abs=1e-12)


def test_two_buses_by_hand() -> None:
    """A line of 4 MVA with 1 MW of load behind it; 0.02 pu^2/MW and 1.02 pu^2 at most."""
    network = replace(tree(np.random.default_rng(0), 1, np.array([4.0])), r_pu=np.array([0.01]))
    devices = {"a": device("a", "1", 1.0), "b": device("b", "1", 3.0)}
    limits = Limits((0.9, 1.02**0.5), 100.0)
    site = Site("two", network, limits, STEP, devices, {"l": Load("l", "1", -1.0, 0.0)})
    decision = EqualRanges(site).step(seen(site))
    exported = 1.0 + 1.0  # MW: the load's and what lifts the voltage by 0.02 pu^2
    # On the axis the polygon reaches the circle's full 4 MVA.
    bought = 4.0 - 1.0
    assert by_device(decision)["a"] == pytest.approx((-bought / 4, exported / 4))
    assert by_device(decision)["b"] == pytest.approx((-3 * bought / 4, 3 * exported / 4))
    certificate = decision.certificates["a"]
    assert certificate.binding == "export by upper voltage at bus 1, import by loading of line:0"


# Rows of both signs


def test_exports_and_imports_together_keep_a_row_of_both_signs() -> None:
    """Strong shunts: what one device imports relieves a row that another exports on."""
    shrunk = 0
    for seed in SEEDS:
        site = replace(random_site(seed, charging=0.1), limits=Limits((0.8, 1.2), 100.0))
        decision = EqualRanges(site).step(seen(site))
        low, high = spans(site, decision)
        rows = AllowableRegion(site)
        W = rows.W(*rows.background({}))
        used = corners(low, high) @ rows.A.T
        assert (used <= W + 1e-9).all()
        binding = decision.certificates["d0"].binding
        assert binding is not None
        if ", together by " in binding:
            shrunk += 1
            name = binding.partition(", together by ")[2]
            taken = (used.max(axis=0) - W)[np.array(rows.names) == name]
            assert taken.max() == pytest.approx(0, abs=1e-9)
    assert shrunk


def test_together_by_hand() -> None:
    use, W = np.array([[2.0, 1.0], [1.0, 4.0]]), np.array([6.0, 8.0])
    t_u, t_l, *rows = ranges(use, W)
    assert (t_u, t_l, rows) == (3.0, 2.0, [0, 1])
    assert together(use, W, t_u, t_l) == (8 / 11, 1)  # 6 + 2 of 6, and 3 + 8 of 8
    assert together(np.array([[2.0, 0.0], [0.0, 4.0]]), W, 3.0, 2.0)[0] == 1.0
    assert together(use, np.zeros(2), 0.0, 0.0)[0] == 1.0


# What it refuses


@pytest.mark.parametrize("form", ["closed", "lp"])
def test_a_network_in_need_is_infeasible_and_says_where(form: str) -> None:
    site = random_site(1)
    site = replace(site, devices={bus: device(bus, bus, 1.0) for bus in site.network.buses})
    site = replace(site, network=replace(site.network, rating_mva=np.full(len(site.devices), np.inf)))
    controller = EqualRanges(site, form=form)  # type: ignore[arg-type]
    rows = AllowableRegion(site)
    heavy = {load.name: load.p_mw * 20 for load in site.loads.values()}
    v2 = site.network.v2(*rows.background(heavy))
    weakest = site.network.buses[int(np.argmin(v2))]
    assert v2.min() < 0.95**2
    with pytest.raises(Infeasible, match=f"^lower voltage at bus {weakest}: broken by .*relieve"):
        controller.step(seen(site, 20))
    controller.step(seen(site))  # and the next step is another


def test_a_limit_that_no_device_reaches_is_infeasible_too() -> None:
    site = random_site(2)
    away = replace(site, devices={"d0": device("d0", "0", 1.0)})  # at the slack bus
    rows = AllowableRegion(away)
    assert not rows.A.any()
    with pytest.raises(Infeasible, match=r"(voltage at bus|loading of line:).* no device can influence"):
        rows.W(*rows.background({load.name: load.p_mw * 20 for load in site.loads.values()}))


def test_where_no_limit_reaches_a_device_has_its_own_rating() -> None:
    site = random_site(2)
    away = replace(site, devices={"d0": device("d0", "0", 1.0)})
    rating = away.devices["d0"].rating_mw
    decision = EqualRanges(away).step(seen(away))
    assert by_device(decision)["d0"] == (-rating, rating)
    assert decision.certificates["d0"].binding == "its own rating"


def test_without_any_bound_there_is_no_range() -> None:
    with pytest.raises(Infeasible, match="no limit of the network bounds"):
        ranges(np.array([[1.0], [0.0]]), np.ones(1))
    with pytest.raises(Infeasible, match="a limit is missing"):
        EqualRangeProgram(np.array([[-1.0]]), np.ones(1), sign=1.0).widest(np.ones(1))


def test_a_network_at_its_limit_leaves_nothing() -> None:
    use = np.array([[1.0, 0.0], [0.5, 2.0]])
    assert ranges(use, np.array([0.0, 4.0]))[:2] == (0.0, 0.0)


def test_what_cannot_be_shared_is_refused() -> None:
    site = random_site(1)
    with pytest.raises(ValueError, match="no devices"):
        EqualRanges(replace(site, devices={}))
    for weight in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="'d0' has weight"):
            EqualRanges(replace(site, devices={"d0": device("d0", "1", weight)}))
    with pytest.raises(ValueError, match="neither"):
        EqualRanges(site, form="open")  # type: ignore[arg-type]
    with pytest.raises(KeyError, match="nowhere"):
        EqualRanges(replace(site, devices={"d0": device("d0", "nowhere", 1.0)}))


def test_a_device_that_cannot_hold_zero_reactive_power_is_refused() -> None:
    load = FlexibleLoad(
        name="l", bus="1", p_mw=1.0, firm_mw=0.0, power_factor=0.95, weight=1.0, default=still()
    )
    site = random_site(1)
    with pytest.raises(ValueError, match=r"'l' cannot hold Q = 0.*power_factor 1"):
        EqualRanges(replace(site, devices={"l": load}))
    EqualRanges(replace(site, devices={"l": replace(load, power_factor=1.0)}))
    # A turbine's is the least one: it keeps Q = 0 as long as nobody asks for another.
    turbine = WindTurbine(name="w", bus="1", p_mw=1.0, power_factor=0.9, weight=1.0, default=still())
    EqualRanges(replace(site, devices={"w": turbine}))


# The rows A P + B Q <= W


@pytest.mark.parametrize("seed", SEEDS)
def test_the_rows_are_the_networks_slopes(seed: int) -> None:
    """A and B against finite differences of `v2` and `flow`, W against their values."""
    site = random_site(seed, charging=0.1)
    network, rows = site.network, AllowableRegion(site)
    rated = np.flatnonzero(np.isfinite(network.rating_mva))
    angle = 2 * np.pi * (np.arange(16) + 0.5) / 16
    buses = [d.bus for d in site.devices.values()]
    p0, q0 = rows.background({})

    def taken(P: Array, Q: Array) -> Array:
        """What is left of each limit, row by row, by the network's own functions."""
        p, q = p0 + network.total(buses, P), q0 + network.total(buses, Q)
        v2, (flow_p, flow_q) = network.v2(p, q), network.flow(p, q)
        edges = [
            network.rating_mva[i] * np.cos(np.pi / 16) - np.cos(a) * flow_p[i] - np.sin(a) * flow_q[i]
            for a in angle
            for i in rated
        ]
        return np.concatenate([1.05**2 - v2, v2 - 0.95**2, edges])

    zero = np.zeros(len(buses))
    assert rows.W(p0, q0) == pytest.approx(taken(zero, zero), abs=1e-12)
    for k in range(len(buses)):
        unit = np.eye(len(buses))[k]
        assert rows.A[:, k] == pytest.approx((taken(-unit, zero) - taken(unit, zero)) / 2, abs=1e-12)
        assert rows.B[:, k] == pytest.approx((taken(zero, -unit) - taken(zero, unit)) / 2, abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_polygon_never_allows_more_than_the_circle(seed: int) -> None:
    site = random_site(seed)
    site = replace(site, network=replace(site.network, rating_mva=np.full(len(site.network.buses), 4.0)))
    network, rows = site.network, AllowableRegion(replace(site, limits=Limits((0.5, 1.5), 80.0)))
    rng = np.random.default_rng(seed)
    buses = [d.bus for d in site.devices.values()]
    p0, q0 = rows.background({})
    W = rows.W(p0, q0)
    both = np.zeros(2, dtype=int)
    for P, Q in rng.uniform(-6, 6, (300, 2, len(buses))) * rng.uniform(0, 1, (300, 1, 1)):
        flow = network.flow(p0 + network.total(buses, P), q0 + network.total(buses, Q))
        loading = np.hypot(*flow).max() / 4.0
        allowed = bool((rows.A @ P + rows.B @ Q <= W).all())
        if allowed:
            assert loading <= 0.8 + 1e-9
        if loading <= 0.8 * np.cos(np.pi / 16):
            assert allowed
        both[int(allowed)] += 1
    assert both.min() > 10


def test_loads_that_nobody_forecast_are_nominal() -> None:
    site = random_site(1)
    rows = AllowableRegion(site)
    p, q = rows.background({"load:1": -0.5})
    nominal_p, nominal_q = rows.background({})
    load = site.loads["load:1"]
    row = site.network.index(load.bus)
    assert row is not None
    assert p[row] - nominal_p[row] == pytest.approx(-0.5 - load.p_mw)
    assert q[row] - nominal_q[row] == pytest.approx(load.q_mvar * (-0.5 / load.p_mw - 1))
    assert np.count_nonzero(p != nominal_p) == 1


def test_ranges_for_several_steps_are_those_of_the_least_room() -> None:
    site = random_site(4)
    scales = (0.9, 0.3, 1.2)
    mean = np.array([[load.p_mw * scale for load in site.loads.values()] for scale in scales])
    forecast = Forecast(NOON, STEP, tuple(site.loads), mean, np.zeros_like(mean))
    ahead = Observation(time=NOON, forecast=forecast)
    alone = [by_device(EqualRanges(site).step(seen(site, scale))) for scale in scales]
    least = {n: (max(a[n][0] for a in alone), min(a[n][1] for a in alone)) for n in site.devices}
    for count in (3, 9):  # no more than are forecast
        for name, limits in by_device(EqualRanges(site, intervals=count).step(ahead)).items():
            assert limits == pytest.approx(least[name])
    assert by_device(EqualRanges(site).step(ahead)) == alone[0] != least
    with pytest.raises(ValueError, match="at least 1"):
        EqualRanges(site, intervals=0)
