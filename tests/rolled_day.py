"""A day of a scenario's own forecasts: what methods publish at its steps, and what an attack makes of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from time import perf_counter
from typing import Any

import numpy as np
from pandapower.auxiliary import pandapowerNet

from controllers import ControlError, Decision, Observation, Site
from controllers.envelopes.certified import Certified
from controllers.envelopes.equal_boxes import EqualBoxes
from controllers.envelopes.equal_polygons import EqualPolygons
from controllers.envelopes.equal_ranges import EqualRanges
from controllers.envelopes.max_min_ranges import MaxMinRanges
from controllers.envelopes.method import EnvelopeMethod
from controllers.envelopes.proportional_ranges import ProportionalRanges
from controllers.envelopes.row_shares import RowShares
from controllers.envelopes.soft_ranges import SoftlyEqualRanges
from scenarios import build as building
from scenarios.check import validate
from scenarios.load import load
from simulators.clock import Duty, Tick
from simulators.profiles import ProfilesSimulator
from simulators.regulated import at_rest
from tests.adversary import Adversary, Findings, attack, background_of

METHODS: Mapping[str, type[EnvelopeMethod]] = {
    "P-E": EqualRanges,
    "PQ-E": EqualBoxes,
    "P-WE": ProportionalRanges,
    "P-SE": SoftlyEqualRanges,
    "PQ-KL": RowShares,
    "EPQ": EqualPolygons,
    "max-min": MaxMinRanges,
}
GRIDS = ("ieee33-envelopes", "ieee136-envelopes", "simbench-envelopes")
STEPS = 288
DAY = ("start=2026-06-21T00:00:00Z", "every=5min", f"steps={STEPS}", "controllers=[]", "expect=[]")


@dataclass(frozen=True, eq=False)
class Day:
    """A grid and its forecasts over a day of 5-minute steps."""

    site: Site
    net: pandapowerNet
    seen: tuple[Observation, ...]


@cache
def day(scenario: str, steps: int = STEPS) -> Day:
    """The first steps of a day of a scenario, with the forecasts that its processes issue."""
    draft = load(scenario, DAY)
    checked = validate(draft)
    built = building.build(draft, checked)
    net = at_rest(building.net_of(draft, checked.grid), built.site.regulators)
    profiles = ProfilesSimulator(built.driven, checked.every, checked.forecast.intervals)
    seen = []
    for step in range(steps):
        at = checked.start + step * checked.every
        forecast = profiles.run(Tick(step=step, time=at, duty=Duty.FULL, started_at=at))
        seen.append(Observation(time=at, forecast=forecast))
    return Day(built.site, net, tuple(seen))


@dataclass(frozen=True, eq=False)
class Instant:
    """One method at one instant."""

    decision: Decision | None
    """`None`: it had none"""
    refused: str
    findings: Findings | None
    """what is beyond the limits, or beyond where the background alone is beyond them"""
    took_ms: float


def attacked(
    of: Day, method: type[EnvelopeMethod], steps: Iterable[int], *, certified: bool = True, **options: Any
) -> Iterator[Instant]:
    """What a method publishes at some steps, and what is found against it."""
    inner = method(of.site, when_broken="do_no_harm", price=False)
    controller = Certified(inner, **options) if certified else inner
    adversary = Adversary(of.net)
    limits = of.site.limits.v_pu, of.site.limits.loading_percent
    for step in steps:
        observation = of.seen[step]
        began = perf_counter()
        try:
            decision = controller.step(observation)
        except ControlError as error:
            yield Instant(None, str(error), None, (perf_counter() - began) * 1e3)
            continue
        took_ms = (perf_counter() - began) * 1e3
        forecast = observation.forecast.at(0)
        found = attack(of.site, adversary, decision, forecast, seed=step)
        # Nobody's envelope is to blame for what is beyond a limit without any.
        alone = adversary.attack(background_of(of.site, forecast), [], *limits)
        fair = replace(
            found,
            under_v_pu=found.under_v_pu - max(alone.under_v_pu, 0.0),
            over_v_pu=found.over_v_pu - max(alone.over_v_pu, 0.0),
            over_loading_percent=found.over_loading_percent - max(alone.over_loading_percent, 0.0),
        )
        yield Instant(decision, "", fair, took_ms)


def spread_over(count: int, offset: int = 0) -> list[int]:
    """Steps of a day, evenly spread."""
    return [int(step) + offset for step in np.linspace(0, STEPS, count, endpoint=False)]
