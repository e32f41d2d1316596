"""Decisions: held to the contract before anybody acts on them."""

from __future__ import annotations

import time as wall_time
from collections.abc import Collection, Coroutine, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from math import isfinite

from controllers.contract import (
    Certificate,
    Controller,
    Decision,
    Interval,
    Iteration,
    Kind,
    Observation,
    Origin,
    Setpoint,
    Word,
)
from controllers.devices import AXES
from controllers.fairness import Fairness
from controllers.forecast import Forecast
from controllers.region import Region
from controllers.regulators import standing
from controllers.site import Site
from simulators.seats import Seat

INTERCHANGE = (Kind.PIC, Kind.AIC)
"""Kinds of regions that are for microgrids."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a controller said when it was asked."""

    said: Decision | BaseException
    """its decision, or what it raised or did wrong"""
    took_ms: float


def ask(seat: Seat, observation: Observation, site: Site, within_s: float | None = None) -> Reply:
    """Ask a controller; whatever it raises or returns, there is a reply.

    Args:
        within_s: see `decide`.
    """
    started = wall_time.perf_counter()
    said: Decision | BaseException
    try:
        said = decide(seat.controller, observation, site, to=seat.listeners, within_s=within_s)
    except BaseException as error:  # a third party's mistake, or its sys.exit, must not end a trial
        said = error
    return Reply(said, (wall_time.perf_counter() - started) * 1e3)


def decide(
    controller: Controller,
    observation: Observation,
    site: Site,
    *,
    to: Collection[str] | None = None,
    within_s: float | None = None,
) -> Decision:
    """What a controller decides, held to the contract.

    Args:
        to: whom it may address words; `None`: anybody.
        within_s: how long it may take by the wall clock, if it has a `step_within`; `None`: as long as it may
            by itself.

    Raises:
        ControlError, Exception: what it raises.
        TypeError, ValueError: see `check`; or it addresses somebody else.
    """
    if within_s is not None and (hurried := getattr(controller, "step_within", None)) is not None:
        decision: Decision = hurried(observation, within_s)
    else:
        decision = controller.step(observation)
    check(decision, observation, site)
    if to is not None and (strangers := [name for name in decision.words if name not in to]):
        known = f"it talks with {', '.join(to)}" if to else "it is no part of a conversation"
        raise ValueError(f"a word for {strangers[0]!r}, who does not hear it; {known}")
    return decision


def check(decision: Decision, observation: Observation, site: Site) -> None:
    """Hold what a controller returned to the contract.

    Raises:
        TypeError, ValueError: it breaks it; the message says how.
    """
    if isinstance(decision, Coroutine):
        decision.close()
        raise TypeError("step() is a coroutine function (async def); make it a plain one")
    if not isinstance(decision, Decision):
        raise TypeError(f"step() returned {type(decision).__name__}, not a Decision")
    if decision.time != observation.time:
        raise ValueError(f"the decision is dated {decision.time}, asked was {observation.time}")
    if not isinstance(decision.origin, Origin):
        raise TypeError(f"the decision's origin is {decision.origin!r}, not an Origin")
    if not isinstance(decision.kind, Kind):
        raise TypeError(f"the decision's kind is {decision.kind!r}, not a Kind")
    if not (decision.mistake is None or isinstance(decision.mistake, str)):
        raise TypeError(f"the decision's mistake is a {type(decision.mistake).__name__}, not a text")
    try:
        standing(site.regulators, decision.positions)
    except KeyError as error:
        raise ValueError(f"the decision moves what the site does not have: {error.args[0]}") from None
    for name, setpoint in decision.setpoints.items():
        if name not in site.devices:
            is_grid = name in site.microgrids
            hint = "; a microgrid's are those of its devices" if is_grid else ""
            raise ValueError(f"a setpoint for {name!r}, which is no device of the site{hint}")
        if not isinstance(setpoint, Setpoint):
            raise TypeError(f"the setpoint for {name!r} is a {type(setpoint).__name__}, not a Setpoint")
    _check_order(decision, observation.time + site.every)
    everything: tuple[Decision | Interval, ...] = (decision, *decision.later)
    for said in everything:
        _check_regions(said, decision.kind, observation, site)
    if decision.plan is not None:
        _check_plan(decision.plan, observation, site)
    if decision.fairness is not None:
        _check_fairness(decision.fairness)
    _check_words(decision.words)
    for iteration in decision.iterations:
        if not isinstance(iteration, Iteration):
            raise TypeError(f"an iteration is a {type(iteration).__name__}, not an Iteration")


def _check_words(words: Mapping[str, Word]) -> None:
    for name, word in words.items():
        if not isinstance(word, Word):
            raise TypeError(f"the word for {name!r} is a {type(word).__name__}, not a Word")
        for what, region in word.regions.items():
            if not isinstance(region, Region):
                raise TypeError(f"{what!r} for {name!r} is a {type(region).__name__}, not a Region")


def _check_fairness(fairness: Fairness) -> None:
    if not isinstance(fairness, Fairness):
        raise TypeError(f"the fairness is a {type(fairness).__name__}, not a Fairness")
    for field in fields(fairness):
        value = getattr(fairness, field.name)
        if not (value is None and field.default is None) and not isfinite(value):
            raise ValueError(f"fairness: {field.name} is {value}; leave out what is not known")


def _check_regions(said: Decision | Interval, kind: Kind, observation: Observation, site: Site) -> None:
    for target, certificate in said.certificates.items():
        if not isinstance(certificate, Certificate):
            raise TypeError(f"the certificate for {target!r} is a {type(certificate).__name__}")
    for target, region in said.regions.items():
        if not isinstance(region, Region):
            raise TypeError(f"the region for {target!r} is a {type(region).__name__}, not a Region")
        if target not in site.devices and kind is Kind.ENVELOPE:
            raise ValueError(f"an envelope for {target!r}, which is no device of the site")
        if target not in site.microgrids and kind in INTERCHANGE:
            known = ", ".join(site.microgrids) or "none"
            raise ValueError(f"the {kind} for {target!r} is for no microgrid of the site; there are {known}")
        heard = observation.regions.get(target)
        with_power = target in site.devices or kind in INTERCHANGE
        axes = AXES if with_power else region.axes if heard is None else heard.axes
        if set(region.axes) != set(axes):
            raise ValueError(f"the region for {target!r} is over {region.axes}, needed is {axes}")


def _check_order(decision: Decision, acts_at: datetime) -> None:
    """What a decision says for later follows without gaps."""
    for interval in decision.later:
        if not isinstance(interval, Interval):
            raise TypeError(f"what holds later is a {type(interval).__name__}, not an Interval")
    if not decision.has_sequel:
        return
    begins = decision.until or decision.later[0].start
    if not acts_at < begins:
        raise ValueError(f"what it says from {acts_at} on ends {begins}")
    for interval in decision.later:
        if interval.start != begins or not interval.start < interval.end:
            raise ValueError(
                f"what it says from {interval.start} until {interval.end} should begin {begins}, where what "
                "is before it ends, and last"
            )
        begins = interval.end


def _check_plan(plan: Forecast, observation: Observation, site: Site) -> None:
    """A plan is of the site's microgrids, and of what was known at the observation."""
    if not isinstance(plan, Forecast):
        raise TypeError(f"the plan is a {type(plan).__name__}, not a Forecast")
    if plan.issued_at != observation.time or plan.every != site.every:
        raise ValueError(
            f"the plan is issued {plan.issued_at} for every {plan.every}, needed are the observation's time "
            f"{observation.time} and the site's step {site.every}"
        )
    if not len(plan.mean):
        raise ValueError("the plan has no interval; leave it out where there is none")
    if strangers := [name for name in plan.names if name not in site.microgrids]:
        known = ", ".join(site.microgrids) or "none"
        raise ValueError(f"a plan of {strangers}, which are no microgrids of the site; there are {known}")
    if len(set(plan.names)) != len(plan.names):
        raise ValueError(f"the plan names {list(plan.names)}; name each once")
