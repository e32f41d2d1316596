"""The microgrid's program: recomputed balances, twins, another solver, enumeration, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from itertools import product

import numpy as np
import pytest

from controllers import (
    Battery,
    Device,
    DeviceState,
    Forecast,
    Generator,
    Infeasible,
    Microgrid,
)
from controllers.interchange.microgrid_model import MicrogridModel
from controllers.interchange.microgrid_options import Link, ModelOptions
from controllers.interchange.reading import members
from controllers.interchange.tradeoff import Found, Scalarisation
from controllers.solve import Linear
from tests.interchange_cases import FIGURES, HOUR, WIND, reference_site, seen
from tests.microgrid_cases import PRICE, Case, engine, load, small, store, told
from tests.microgrid_oracle import best

NAMES = tuple(FIGURES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("k", [0, 8, 17])
def test_the_objective_is_that_of_another_statement_and_solver(name: str, k: int) -> None:
    found, oracle = Case(seen(k), name).solve(), best(name, k)
    assert found.f1 + 25 * found.f2 == pytest.approx(oracle.objective, abs=1e-6)


def test_the_reference_case_has_its_figures() -> None:
    """As measured once by another program, of hour 8 and the mean forecast."""
    for name, value in zip(NAMES, (53.436754, 194.629639, -59.358050), strict=True):
        found = Case(seen(8), name).solve()
        assert found.f1 + 25 * found.f2 == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("every_s", [1, 300, 3600])
def test_short_steps_are_as_well_scaled_as_long_ones(every_s: int) -> None:
    site = reference_site(every=timedelta(seconds=every_s))
    case = Case(seen(8, site=site), "mg3", site=site)
    found, hours = case.solve(), every_s / 3600
    oracle = best("mg3", hours=hours) if every_s < 3600 else best("mg3")
    assert (found.f1 + 25 * found.f2) / hours == pytest.approx(oracle.objective / hours, abs=1e-4)
    size = np.abs(case.model.matrix.data)
    assert 0.1 < size.min() < size.max() < 10.0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("k", [0, 6, 12, 19])
def test_A3_balances_energy_and_ramps_recomputed(name: str, k: int) -> None:
    case = Case(seen(k), name)
    found, site, reading, grid = case.solve(), case.site, case.reading, case.grids[0]
    sums = sum(case.model.injection(device, found.x) for device in grid.devices)
    exchange = case.of(found, name, "P_PCC")
    assert np.abs(sums - exchange).max() <= 1e-8
    engines = [site.devices[f"{name}_{kind}"] for kind in ("mt", "de")]
    heat = 1.4 * case.of(found, f"{name}_mt", "P") + case.of(found, name, "H_slack")
    assert (heat - reading.column(f"{name}_heat")).min() >= -1e-8
    for device in engines:
        assert isinstance(device, Generator)
        P = case.of(found, device.name, "P")
        step = device.ramp_mw_per_min * 60
        assert np.abs(np.diff(P, prepend=reading.p_mw[device.name])).max() <= step + 1e-8
        assert device.p_min_mw - 1e-8 <= P.min() <= P.max() <= device.p_mw + 1e-8
    esd = site.devices[f"{name}_esd"]
    assert isinstance(esd, Battery)
    state = DeviceState(e_mwh=reading.e_mwh[esd.name])
    for P, S in zip(case.model.injection(esd.name, found.x), case.of(found, esd.name, "S"), strict=True):
        state = esd.advance(state, float(P), 0.0, 3600)
        assert state.e_mwh == pytest.approx(reading.e_mwh[esd.name] + S, abs=1e-8)
        assert esd.e_min_mwh - 1e-8 <= state.e_mwh <= esd.e_mwh + 1e-8
    assert state.e_mwh >= min(esd.e_start_mwh, (esd.e_min_mwh + esd.e_mwh) / 2) - 1e-8


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("k", range(0, 24, 3))
def test_A4_the_capability_is_what_one_adjustment_reaches(name: str, k: int) -> None:
    """From the schedule, everything else as it is: engine by engine, in closed form."""
    case = Case(seen(k), name)
    found, site = case.solve(), case.site
    heat = case.reading.column(f"{name}_heat") - case.of(found, name, "H_slack")
    reach = {1: case.of(found, name, "P_PCC").copy(), -1: case.of(found, name, "P_PCC").copy()}
    for kind in ("mt", "de"):
        device = site.devices[f"{name}_{kind}"]
        assert isinstance(device, Generator)
        P, step = case.of(found, device.name, "P"), device.ramp_mw_per_min * 60
        least = np.maximum(device.p_min_mw, P - step)
        if device.heat_ratio:
            least = np.maximum(least, np.minimum(heat / device.heat_ratio, P))
        reach[1] += np.minimum(device.p_mw, P + step) - P
        reach[-1] += least - P
    tie = FIGURES[name].tie_mw
    assert case.of(found, name, "P_up") == pytest.approx(np.minimum(reach[1], tie), abs=1e-7)
    assert case.of(found, name, "P_dn") == pytest.approx(np.maximum(reach[-1], -tie), abs=1e-7)
    # and by the program itself: one interval from the schedule, nothing but the engines free to move
    for symbol, sign in (("P_up", 1), ("P_dn", -1)):
        end = float(case.of(found, name, symbol)[0])
        assert exchange_possible(case, found, end)
        if abs(end) < tie - 1e-4:
            assert not exchange_possible(case, found, end + sign * 1e-4)


def exchange_possible(case: Case, found: Found, p_mw: float) -> bool:
    """Whether the engines alone, from the schedule of interval 0, can bring the exchange there in a step."""
    grid = case.grids[0]
    scheduled = {
        f"{grid.name}_{kind}": float(case.of(found, f"{grid.name}_{kind}", "P")[0]) for kind in ("mt", "de")
    }
    one = Case(seen(0), grid.name, horizon=1, keep_energy=False)
    reading = replace(
        one.reading,
        forecast=replace(
            case.reading.forecast, mean=case.reading.forecast.mean[:1], std=case.reading.forecast.std[:1]
        ),
        p_mw=scheduled,
        e_mwh=case.reading.e_mwh,
    )
    bounds = one.model.bounds(reading)
    for key in no_engines(grid.name):
        value = case.of(found, *key)[0]
        bounds.low[one.model.lp.at(key)], bounds.high[one.model.lp.at(key)] = value - 1e-9, value + 1e-9
    at = one.model.lp.at((grid.name, "P_PCC"))
    bounds.low[at] = bounds.high[at] = p_mw
    try:
        one.program.best(PRICE, one.model.costs(reading), bounds)
    except Infeasible:
        return False
    return True


def test_A4_reachable_from_what_is_measured() -> None:
    """With `reachable` both ends can be taken in interval 0 itself; as scheduled, not always."""
    missed = 0
    for name, k in product(NAMES, range(0, 24, 4)):
        for capability in ("reachable", "scheduled"):
            case = Case(seen(k), name, capability=capability)
            found = case.solve()
            for symbol in ("P_up", "P_dn"):
                bounds = case.model.bounds(case.reading)
                end, at = case.of(found, name, symbol)[0], case.model.lp.at((name, "P_PCC")).start
                for key in no_engines(name):
                    first = case.model.lp.at(key).start
                    bounds.low[first] = found.x[first] - 1e-9
                    bounds.high[first] = found.x[first] + 1e-9
                bounds.low[at] = bounds.high[at] = end
                try:
                    case.program.best(PRICE, case.model.costs(case.reading), bounds)
                except Infeasible:
                    missed += 1
                    assert capability == "scheduled", (name, k, symbol)
    assert missed > 0


def no_engines(name: str) -> list[tuple[str, str]]:
    """What else moves in a microgrid of the reference case."""
    keys = [(f"{name}_esd", "P_ch"), (f"{name}_esd", "P_dch"), (name, "H_slack")]
    keys += [(f"{name}_{kind}", "used") for kind in ("pv", "wt")]
    return keys + [(f"{name}_{kind}", "served") for kind in ("ul", "il")]


def test_A5_a_turbine_that_the_heat_needs_cannot_go_down() -> None:
    site = small([engine("t", heat_ratio=1.4), load()], heat="h", price="c")
    for demand, down in ((1.4 * 0.3, 0.0), (1.4 * 0.25, 0.05), (0.0, 0.2)):
        columns = {"l": -0.2, "h": demand, "c": 100.0}
        case = Case(told(site, columns, 1, p_mw={"t": 0.1}), "m", site=site, horizon=1)
        found = case.solve()
        assert case.of(found, "t", "P")[0] == pytest.approx(0.3)  # all that the ramp allows: power sells well
        assert case.of(found, "m", "P_PCC")[0] - case.of(found, "m", "P_dn")[0] == pytest.approx(
            down, abs=1e-9
        )
        assert case.of(found, "m", "H_slack")[0] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("every_s", [1, 300, 3600])
def test_the_first_interval_is_the_twins(every_s: int) -> None:
    """What the program may ask of a device at once is what the device can do, over random states."""
    rng, every = np.random.default_rng(every_s), timedelta(seconds=every_s)
    base = reference_site((), every)
    for _ in range(12):
        g = engine(
            p_min_mw=rng.uniform(0, 0.2), s_mva=rng.uniform(0.3, 0.5), ramp_mw_per_min=rng.uniform(0.001, 0.1)
        )
        b = store(s_mva=rng.uniform(0.1, 0.2), efficiency=tuple(rng.uniform(0.8, 1.0, 2)))
        pv = reference_site().devices["mg1_pv"]
        wt = reference_site().devices["mg1_wt"]
        devices: list[Device] = [g, b, pv, wt, load()]
        grid = Microgrid(name="m", bus="17", devices=tuple(d.name for d in devices), tie_mw=50.0)
        site = replace(base, devices={d.name: d for d in devices}, microgrids={"m": grid})
        state = {
            "g": DeviceState(p_mw=rng.uniform(g.p_min_mw, min(g.p_mw, g.s_mva))),
            "b": DeviceState(e_mwh=rng.choice([0.06, 0.0601, 0.3, 0.5399, 0.54])),
        }
        drive = {pv.name: rng.uniform(0, 1.6), wt.name: rng.uniform(0, 1), "l": rng.uniform(0, 1.2)}
        columns = {
            name: x * (-0.3 if name == "l" else site.devices[name].rating_mw) for name, x in drive.items()
        }
        observation = told(
            site, columns, 3, p_mw={"g": state["g"].p_mw}, e_mwh={"b": float(state["b"].e_mwh or 0.0)}
        )
        case = Case(observation, "m", site=site, horizon=3, keep_energy=False)
        bounds, lp = case.model.bounds(case.reading), case.model.lp
        program = Linear(
            np.zeros(lp.width), case.model.matrix, bounds.row_low, bounds.row_high, bounds.low, bounds.high
        )
        symbols = {g.name: "P", pv.name: "used", wt.name: "used"}
        for device in devices:
            c = np.zeros(lp.width)
            if device is b:
                c[lp.at(("b", "P_dch")).start], c[lp.at(("b", "P_ch")).start] = 1.0, -1.0
            elif device.name == "l":
                c[lp.at(("l", "served")).start] = -1.0
            else:
                c[lp.at((device.name, symbols[device.name])).start] = 1.0
            mine = []
            for charging, sign in ((1.0, 1.0), (0.0, -1.0)):
                low, high = bounds.low.copy(), bounds.high.copy()
                low[lp.at(("b", "u"))] = high[lp.at(("b", "u"))] = charging  # it cannot do both at once
                mine.append(sign * program.minimize(c=sign * c, low=low, high=high).value)
            at = state.get(device.name, DeviceState())
            theirs = device.limits(at, drive.get(device.name), every_s).limits("p_mw")
            assert mine == pytest.approx(list(theirs), abs=2e-8), (device.name, at, every_s)


def test_storage_and_interruptible_loads_widen_the_capability_when_asked() -> None:
    """In closed form: what is left of the store's power and energy, and of the load above its firm part."""
    site = small([store(), load()], price="c")
    for e_mwh, hours, up in ((0.3, 1.0, 0.15), (0.1, 1.0, 0.04 * 0.8), (0.1, 0.1, 0.15)):
        observation = told(site, {"l": -0.25, "c": 50.0}, 1, e_mwh={"b": e_mwh}, p_mw={})
        adjust = timedelta(hours=hours)
        case = Case(
            observation, "m", site=site, horizon=1,
            pic_sources=("storage", "interruptible loads"), adjust=adjust,
        )  # fmt: skip
        # kept from moving, so that only the capability is left to choose
        bounds = case.model.bounds(case.reading)
        for symbol in ("P_ch", "P_dch"):
            bounds.high[case.model.lp.at(("b", symbol))] = 0.0
        found = case.program.best(PRICE, case.model.costs(case.reading), bounds)
        P, P_up, P_dn = (case.of(found, "m", symbol)[0] for symbol in ("P_PCC", "P_up", "P_dn"))
        assert pytest.approx(-0.25) == P
        assert P_up - P == pytest.approx(up + 0.15)
        assert P - P_dn == pytest.approx(min(0.15, (0.54 - e_mwh) / 0.9 / hours))
        plain = Case(observation, "m", site=site, horizon=1)
        still_there = plain.solve()
        assert plain.of(still_there, "m", "P_up") == pytest.approx(plain.of(still_there, "m", "P_dn"))


def test_an_island_lives_on_what_it_has() -> None:
    case = Case(seen(8, connected={"mg1": False}), "mg1")
    found = case.solve()
    for symbol in ("P_PCC", "P_up", "P_dn"):
        assert case.of(found, "mg1", symbol) == pytest.approx(0.0)
    idle, empty = {"mg1_mt": 0.06, "mg1_de": 0.0}, {"mg1_esd": 0.06}
    short = Case(seen(19, connected={"mg1": False}, e_mwh=empty, p_mw=idle), "mg1").solve()
    served = case.of(short, "mg1_il", "served")[0] + case.of(short, "mg1_ul", "served")[0]
    # engines that have to ramp up first: 0.06 + 0.2 and 0.15 MW, and the wind
    assert served == pytest.approx(0.26 + 0.15 + 0.2 * WIND[19])
    assert case.of(short, "mg1_ul", "served")[0] == pytest.approx(0.45 * 0.98)  # the dear one is kept


def test_energy_measured_outside_its_bounds_goes_no_farther_out() -> None:
    for e_mwh in (0.05, 0.55):
        case = Case(seen(8, e_mwh={"mg1_esd": e_mwh}), "mg1")
        S = case.of(case.solve(), "mg1_esd", "S")
        energy = e_mwh + S
        assert min(0.06, e_mwh) - 1e-9 <= energy.min()
        assert energy.max() <= max(0.54, e_mwh) + 1e-9


def test_what_is_missing_is_named() -> None:
    good = seen(8)
    forecast = good.forecast
    keep = [i for i, name in enumerate(forecast.names) if name != "mg1_pv"]
    less = Forecast(
        good.time, HOUR, tuple(forecast.names[i] for i in keep), forecast.mean[:, keep], forecast.std[:, keep]
    )
    old = replace(forecast, issued_at=good.time - 2 * HOUR)
    cases = [
        (replace(good, forecast=less), "mg1_pv.*not forecast"),
        (replace(good, forecast=old), "covers 10 of 12"),
        (replace(good, forecast=replace(forecast, issued_at=good.time + HOUR)), "not of a step up to now"),
        (replace(good, forecast=replace(forecast, every=HOUR / 2)), "the site's step is"),
        (replace(good, p_mw={}), "power of .*mg1_mt.* not measured"),
        (replace(good, e_mwh={}), "energy of .*mg1_esd.* not measured"),
    ]
    for observation, why in cases:
        with pytest.raises(Infeasible, match=why):
            Case(observation, "mg1")


def test_an_older_forecast_counts_from_its_own_time() -> None:
    late = seen(8, 12)
    early = seen(7, 13)
    stale = replace(late, forecast=early.forecast)
    assert Case(stale, "mg2").solve().f1 == Case(late, "mg2").solve().f1


def test_what_makes_no_model_is_refused() -> None:
    site = reference_site()
    grids = members(site, ("mg1", "mg2"))
    wrong = [
        (lambda: members(reference_site(()), None), "has no microgrids"),
        (lambda: members(site, None), "say which one"),
        (lambda: members(site, "mg9"), "mg9.* is not on site"),
        (lambda: members(site, ("mg1", "mg1")), "each once"),
        (lambda: MicrogridModel(site, grids, 0), "at least 1"),
        (lambda: MicrogridModel(site, grids, 1, [Link(source="mg1", target="mg3")]), "joins no two"),
        (lambda: Link(source="a", target="b", p_mw=-1.0), "below zero"),
        (lambda: Link(source="a", target="b", efficiency=1.2), "not in"),
        (lambda: ModelOptions(pic_sources=("wind",)), "do not exist"),  # type: ignore[arg-type]
        (lambda: ModelOptions(capability="great"), "neither"),  # type: ignore[arg-type]
        (lambda: ModelOptions(adjust=timedelta(0)), "no time"),
        (lambda: Scalarisation(rule="best"), "none of"),  # type: ignore[arg-type]
        (lambda: Scalarisation(mu=-1.0), "mu -1"),
        (lambda: Scalarisation(weight=0.0), "weight 0"),
        (lambda: Scalarisation(rule="epsilon"), "epsilon_mwh None"),
    ]
    for make, why in wrong:
        with pytest.raises(ValueError, match=why):
            make()
    lost = replace(site, microgrids={"m": replace(site.microgrids["mg1"], name="m", devices=("ghost",))})
    with pytest.raises(ValueError, match=r"ghost.* is not on site"):
        members(lost, None)
