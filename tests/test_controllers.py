"""Every controller that comes with gridpace is held to the contract, found by walking the package."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

import controllers
from controllers import ControlError, Decision, Forecast, Kind, Observation, Origin, Region, Site
from scenarios.build import build
from scenarios.check import validate
from scenarios.load import load
from tests.interchange_cases import reference_site

NOON = datetime(2026, 6, 21, 12, tzinfo=UTC)
INTERVALS = 12
SITES = ("ieee33-quick", "village")
"""Packaged scenarios whose sites the controllers are tried on: case33bw with ratings, and village.json."""


ORIGINS = {Origin.OPTIMAL, Origin.CERTIFIED, Origin.REPAIRED, Origin.DEGRADED, Origin.FALLBACK}
"""Rules that a controller may say spoke; the others are for whoever asks it."""


def found() -> Iterator[type[Any]]:
    """Controllers to be named in a scenario: what has `step` and names its `sources`."""
    for info in pkgutil.walk_packages(controllers.__path__, "controllers."):
        for _, cls in inspect.getmembers(importlib.import_module(info.name), inspect.isclass):
            if cls.__module__ == info.name and hasattr(cls, "step") and hasattr(cls, "sources"):
                yield cls


def talks(cls: type[Any]) -> bool:
    """Whether it leads or follows: it decides in a conversation, and not by itself."""
    return getattr(cls, "follows", False) is True or "followers" in inspect.signature(cls).parameters


CLASSES = tuple(cls for cls in found() if not getattr(cls, "goes_first", False) and not talks(cls))
"""Those that decide on devices at once; tests/test_regulation.py holds those that move regulators to the
contract, tests/test_partnership_roles.py those that talk."""


@cache
def site_of(scenario: str) -> Site:
    draft = load(scenario)
    return build(draft, validate(draft)).site


@pytest.fixture(params=SITES)
def site(request: pytest.FixtureRequest, cls: type[Any]) -> Site:
    """Controllers of interchange need microgrids: theirs is the reference site with the one or the other;
    those of the partnership some without heat: theirs is the source's case."""
    if cls.__module__.startswith("controllers.partnership."):
        return site_of("ieee123-partnership" if request.param == SITES[0] else "ieee123-partnership-day")
    if deals_with_microgrids(cls):
        return reference_site(("mg1",) if request.param == SITES[0] else ("mg3",))
    return site_of(request.param)


def deals_with_microgrids(cls: type[Any]) -> bool:
    return cls.__module__.startswith("controllers.interchange.")


def seen(site: Site, scale: float = 0.6, *, at: datetime = NOON) -> Observation:
    """A full observation: everything forecast and measured, every load at `scale` of its nominal power."""
    loads, devices = site.loads.values(), site.devices.values()
    p_mw = {x.name: scale * x.p_mw for x in loads} | {d.name: 0.3 * d.wish(0.8) for d in devices}
    q_mvar = {x.name: x.reactive(p_mw[x.name]) for x in loads} | {d.name: 0.0 for d in devices}
    known = {**{x.name: p_mw[x.name] for x in loads}, **{d.name: d.wish(0.8) for d in devices}}
    said = {}
    for grid in (
        site.microgrids.values()
    ):  # price and heat, what it is capable of, and what the network's operator allows
        known |= {name: scale * size for name, size in ((grid.price, 100.0), (grid.heat, 0.5)) if name}
        p_mw[grid.name] = sum(p_mw[name] for name in grid.devices)
        box = Region.box(p_mw=(-0.2 * abs(scale), 0.2 * abs(scale)), q_mvar=(0.0, 0.0))
        said["operator"] = Decision(time=at, origin=Origin.CERTIFIED, kind=Kind.AIC, regions={grid.name: box})
        able = Region.box(p_mw=(-0.3 * abs(scale), 0.25 * abs(scale)), q_mvar=grid.q_mvar)
        plan = Forecast(at, site.every, (grid.name,), np.zeros((INTERVALS, 1)), np.zeros((INTERVALS, 1)))
        said[grid.name] = Decision(
            time=at, origin=Origin.OPTIMAL, kind=Kind.PIC, regions={grid.name: able}, plan=plan
        )
    mean = np.tile(list(known.values()), (INTERVALS, 1))
    return Observation(
        time=at,
        forecast=Forecast(at, site.every, tuple(known), mean, 0.05 * np.abs(mean)),
        said=MappingProxyType(said),
        v_pu=MappingProxyType(dict.fromkeys((site.network.slack, *site.network.buses), 1.0)),
        p_mw=MappingProxyType(p_mw),
        q_mvar=MappingProxyType(q_mvar),
        e_mwh=MappingProxyType({d.name: s for d in devices if (s := d.initial().e_mwh) is not None}),
        regions=MappingProxyType({}),
    )


def days(site: Site) -> dict[str, Observation]:
    """Good days and bad ones."""
    good, none = seen(site), Forecast.empty(NOON, site.every)
    blind = Observation(time=NOON, forecast=good.forecast)
    return {
        "usual": good,
        "night": seen(site, 0.05),
        "heavy load": seen(site, 40.0),
        "reverse flow": seen(site, -40.0),
        "nothing measured": blind,
        "nothing forecast": replace(good, forecast=none),
        "nothing known": replace(blind, forecast=none),
        "half of it missing": replace(
            good,
            v_pu=MappingProxyType({site.network.slack: 1.0}),
            p_mw=MappingProxyType(dict(list(good.p_mw.items())[::2])),
            e_mwh=MappingProxyType({}),
        ),
    }


def told(observation: Observation) -> bytes:
    """Everything of an observation, to see whether it was changed."""
    forecast = observation.forecast
    maps = [dict(m) for m in (observation.v_pu, observation.p_mw, observation.q_mvar, observation.e_mwh)]
    words = repr((observation.time, maps, sorted(observation.regions), forecast.issued_at, forecast.names))
    return words.encode() + forecast.mean.tobytes() + forecast.std.tobytes()


def said(decision: Decision) -> bytes:
    """Everything of a decision, in its own order."""
    words = repr((decision.time, decision.origin, decision.kind, dict(decision.setpoints)))
    regions = [
        f"{target}{r.axes}".encode() + r.A.tobytes() + r.b.tobytes() for target, r in decision.regions.items()
    ]
    return b"".join([words.encode(), *regions, repr(dict(decision.certificates)).encode()])


def check(decision: Decision, observation: Observation, site: Site) -> None:
    """The contract's rules for one decision."""
    assert isinstance(decision, Decision)
    assert decision.time == observation.time
    assert decision.origin in ORIGINS
    assert decision.setpoints.keys() <= site.devices.keys()
    if decision.kind is Kind.ENVELOPE:
        assert decision.regions.keys() <= site.devices.keys()
    assert decision.certificates.keys() <= {*decision.regions, site.name}
    assert decision.setpoints or decision.regions
    for region in decision.regions.values():
        assert isinstance(region, Region)
        assert set(region.axes) == {"p_mw", "q_mvar"}
        assert np.isfinite(region.b).all()
        region.nearest([0.0, 0.0])  # raises if the region is empty


def test_there_are_controllers_to_walk() -> None:
    assert "EqualRanges" in {cls.__name__ for cls in CLASSES}
    documented = [cls for cls in CLASSES if cls.sources and all(isinstance(s, str) for s in cls.sources)]
    assert documented == list(CLASSES)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
class TestContract:
    def test_it_decides_on_a_usual_day(self, cls: type[Any], site: Site) -> None:
        observation = seen(site)
        check(cls(site).step(observation), observation, site)

    def test_it_answers_for_the_time_asked(self, cls: type[Any], site: Site) -> None:
        controller = cls(site)
        for k in (0, 3, 1):
            at = NOON + timedelta(minutes=5 * k)
            assert controller.step(seen(site, at=at)).time == at

    def test_same_input_same_bytes(self, cls: type[Any], site: Site) -> None:
        one, other = cls(site), cls(site)
        first = said(one.step(seen(site)))
        one.step(seen(site, 0.2))  # what it saw in between must not matter
        assert said(one.step(seen(site))) == first
        assert said(other.step(seen(site))) == first
        assert said(one.step(seen(site, 0.2))) != first  # it does look at what it is shown

    def test_on_bad_days_it_decides_or_says_why_not(self, cls: type[Any], site: Site) -> None:
        controller, refused = cls(site), 0
        for observation in days(site).values():
            before = told(observation)
            try:
                check(controller.step(observation), observation, site)
            except ControlError:
                refused += 1
            assert told(observation) == before
        assert refused < len(days(site))
        check(controller.step(seen(site)), seen(site), site)  # a bad day leaves nothing behind


@pytest.mark.parametrize(
    "cls", [c for c in CLASSES if deals_with_microgrids(c)], ids=lambda cls: cls.__name__
)
def test_a_site_without_microgrids_is_refused(cls: type[Any]) -> None:
    with pytest.raises(ValueError, match="microgrid"):
        cls(site_of(SITES[0]))


def test_the_contract_can_be_broken() -> None:
    """The rules refuse decisions that break them one at a time."""
    site = site_of(SITES[0])
    observation = seen(site)
    good = CLASSES[0](site).step(observation)
    envelope = next(iter(good.regions.values()))
    broken = [
        replace(good, time=NOON + site.every),
        replace(good, origin=Origin.HELD),
        replace(good, regions={"nobody": envelope}, certificates={}),
        replace(good, regions={}, certificates={}),
        replace(good, regions={**good.regions, "pv6": Region.box(p_mw=(0, 1))}),
    ]
    for decision in broken:
        with pytest.raises(AssertionError):
            check(decision, observation, site)
