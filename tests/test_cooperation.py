"""Microgrids that help each other with power and heat."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from controllers import (
    Forecast,
    Infeasible,
    Microgrid,
    Observation,
    Site,
)
from controllers.interchange.microgrid_options import Link
from controllers.interchange.tradeoff import Scalarisation
from tests.interchange_cases import HOUR, reference_site, seen
from tests.microgrid_cases import Case, engine, load, small, told


def twins(tie_mw: float = 0.8) -> Site:
    """mg1 twice: `mg1` and its copy `two`."""
    site = reference_site(("mg1",))
    names = {name: f"two{name.removeprefix('mg1')}" for name in site.microgrids["mg1"].devices}
    copies = {names[n]: replace(d, name=names[n]) for n, d in site.devices.items() if n in names}
    one = replace(site.microgrids["mg1"], tie_mw=tie_mw)
    two = replace(one, name="two", devices=tuple(names.values()), heat="two_heat")
    return replace(site, devices={**site.devices, **copies}, microgrids={"mg1": one, "two": two})


def both(site: Site, k: int, *, ul: float = 1.0) -> Observation:
    """What is known of the two: the copy's own columns are mg1's, its load by a factor."""
    one = seen(k, site=reference_site(("mg1",)))
    mine = [i for i, name in enumerate(one.forecast.names) if name.startswith("mg1_")]
    names = tuple(f"two_{one.forecast.names[i].removeprefix('mg1_')}" for i in mine)
    copy = one.forecast.mean[:, mine] * np.array([ul if name == "two_ul" else 1.0 for name in names])
    forecast = Forecast(
        one.time, HOUR, one.forecast.names + names, np.hstack([one.forecast.mean, copy]),
        np.hstack([one.forecast.std, np.zeros_like(copy)]),
    )  # fmt: skip
    p_mw = {**one.p_mw, "two_mt": 0.2, "two_de": 0.05}
    return replace(one, forecast=forecast, p_mw=p_mw, e_mwh={**one.e_mwh, "two_esd": 0.3})


def test_A16_helping_each_other_never_costs_more() -> None:
    """Links may be left unused; where one has too much of what the other lacks they pay."""
    ways = (("mg1", "two"), ("two", "mg1"))
    gains = []
    for tie_mw, ul in ((0.8, 1.0), (0.8, 1.6), (0.2, 1.6)):
        site = twins(tie_mw)
        links = tuple(Link(source=a, target=b, p_mw=0.3, heat_mw=0.2) for a, b in ways)
        observation = both(site, 8, ul=ul)
        apart = [Case(observation, name, site=site).solve() for name in ("mg1", "two")]
        unlinked = Case(observation, ("mg1", "two"), site=site).solve()
        joint = Case(observation, ("mg1", "two"), site=site, links=links)
        found = joint.solve()
        separate = sum(one.f1 + 25 * one.f2 for one in apart)
        assert unlinked.f1 + 25 * unlinked.f2 == pytest.approx(separate, abs=1e-6)
        gains.append(separate - found.f1 - 25 * found.f2)
        assert gains[-1] >= -1e-6
        for i, (source, target) in enumerate(ways):  # (A10) recomputed: what one sends the other gets
            sent = joint.of(found, f"link{i}", "f")
            assert (sent >= -1e-9).all()
            assert (sent <= 0.3 + 1e-9).all()
            assert source != target
        f = [joint.of(found, f"link{i}", "f") for i in (0, 1)]
        for grid, gets in zip(joint.grids, (f[1] - f[0], f[0] - f[1]), strict=True):
            sums = sum(joint.model.injection(device, found.x) for device in grid.devices)
            assert sums + gets == pytest.approx(joint.of(found, grid.name, "P_PCC"), abs=1e-8)
    assert gains[-1] > 1.0


def test_a_lossy_link_loses_what_it_says() -> None:
    """One engine feeds the load of an island next door: by hand."""
    site = small([engine(p_start_mw=0.1)], price="c")
    two = Microgrid(name="n", bus="24", devices=("l",), tie_mw=1.0, price="c")
    site = replace(
        site, devices={**site.devices, "l": load(p_mw=0.2)}, microgrids={**site.microgrids, "n": two}
    )
    observation = told(site, {"l": -0.2, "c": 60.0}, 1, p_mw={"g": 0.1}, connected={"m": False, "n": False})
    links = (Link(source="m", target="n", p_mw=1.0, efficiency=0.8),)
    case = Case(observation, ("m", "n"), site=site, horizon=1, links=links)
    found = case.solve()
    assert case.of(found, "g", "P")[0] == pytest.approx(0.25)
    assert case.of(found, "l", "served")[0] == pytest.approx(0.2)
    alone = Case(observation, ("m", "n"), site=site, horizon=1)
    with pytest.raises(Infeasible):  # an engine that cannot stop, with nobody to take its power
        alone.solve()


def test_heat_over_a_link_spares_the_boiler() -> None:
    site = small([engine("t", heat_ratio=1.4), load()], heat="h", price="c")
    two = Microgrid(name="n", bus="24", devices=("l2",), tie_mw=1.0, price="c", heat="h2")
    l2 = load("l2")
    site = replace(site, devices={**site.devices, "l2": l2}, microgrids={**site.microgrids, "n": two})
    columns = {"l": -0.2, "l2": -0.2, "h": 0.0, "h2": 0.3, "c": 100.0}
    observation = told(site, columns, 1, p_mw={"t": 0.2})
    links = (Link(source="m", target="n", heat_mw=0.2, heat_efficiency=0.5),)
    case = Case(observation, ("m", "n"), site=site, horizon=1, links=links)
    found = case.solve(Scalarisation(mu=0.0))
    assert case.of(found, "link0", "h")[0] == pytest.approx(0.2)
    assert case.of(found, "n", "H_slack")[0] == pytest.approx(0.3 - 0.1)
