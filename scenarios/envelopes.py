"""Envelopes of one instant: what every method would publish now, for `gridpace envelopes`.

The instant is looked at as a run would see it: the profiles go through every step up to it, the devices
stand still as before their first instruction, and the plant's power flow gives the voltages.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import time as wall_time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from difflib import get_close_matches
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt

import controllers.envelopes as package
from controllers.contract import ControlError, Controller, Decision, Observation, Origin
from controllers.devices import AXES
from controllers.envelopes.certified import Certified
from controllers.envelopes.method import EnvelopeMethod
from controllers.envelopes.shapes import Shapes
from controllers.envelopes.static_limits import FixedLimits
from controllers.fairness import Fairness
from controllers.region import Region
from scenarios.build import Built
from scenarios.coverage import covering, period
from scenarios.load import Draft
from scenarios.plugins import NoSuchController, controller_class
from scenarios.schema import ControllerPart, Scenario
from simulators.clock import Duty, Tick
from simulators.devices import DevicesSimulator
from simulators.grid import GridSimulator
from simulators.profiles import ProfilesSimulator

Array = npt.NDArray[np.float64]
Method = type[EnvelopeMethod]


class NoSuchMethod(ValueError):
    """No method has that name; the message lists near ones."""


class NotInTheRun(ValueError):
    """The instant is none at which the run takes a step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLimits:
    """What one device may do. Export and import are both positive; `None`: it may not be at Q = 0."""

    device: str
    export_mw: float | None
    """greatest injection at Q = 0"""
    import_mw: float | None
    """greatest consumption at Q = 0"""
    q_high_mvar: float
    """greatest reactive injection at any P"""
    q_low_mvar: float
    area_mva2: float
    binding: str | None
    """what limits it"""
    corners: tuple[tuple[float, float], ...]
    """(P, Q) [MW, Mvar], counter-clockwise"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One method's result for one instant."""

    method: str
    """its acronym"""
    name: str
    """its class"""
    origin: Origin | None
    """which rule spoke; `None`: it has no decision"""
    why: str | None = None
    """the reason of having none, and its type"""
    devices: tuple[DeviceLimits, ...] = ()
    fairness: Fairness | None = None
    worst_v_pu: float | None = None
    """closest to its limit in the AC check; `None`: not checked"""
    worst_loading_percent: float | None = None
    power_flows: int = 0
    solve_ms: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """The same as plain JSON."""
        return asdict(self)


def methods() -> dict[str, Method]:
    """Every method by its acronym: those that share the network, in the order of the alphabet, then the
    fixed limits that look at nothing."""
    found: list[Method] = []
    for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        module = importlib.import_module(info.name)
        for _, cls in inspect.getmembers(module, inspect.isclass):
            own = cls.__module__ == info.name and not inspect.isabstract(cls)
            if own and issubclass(cls, EnvelopeMethod):
                found.append(cls)
    found.sort(key=lambda cls: (issubclass(cls, FixedLimits), cls.acronym.lower()))
    return {cls.acronym: cls for cls in found}


def chosen(names: Sequence[str]) -> list[Method]:
    """Methods by acronym or class name, in the order given; without names, all that share the network.

    Raises:
        NoSuchMethod: with near matches.
    """
    known = methods()
    if not names:
        return [cls for cls in known.values() if not issubclass(cls, FixedLimits)]
    by_word = {word.lower(): cls for cls in known.values() for word in (cls.acronym, cls.__name__)}
    picked = []
    for name in names:
        if name.lower() not in by_word:
            near = get_close_matches(name.lower(), by_word, n=3, cutoff=0.5)
            words = [w for cls in known.values() for w in (cls.acronym, cls.__name__) if w.lower() in near]
            hint = f"did you mean {' or '.join(words)}?" if words else f"there are {', '.join(known)}"
            raise NoSuchMethod(f"no method {name!r}; {hint}")
        picked.append(by_word[name.lower()])
    return list(dict.fromkeys(picked))


def own_controller(draft: Draft, scenario: Scenario) -> tuple[ControllerPart, Method] | None:
    """The scenario's first controller that is a method of envelopes."""
    for part in scenario.controllers:
        try:
            cls = controller_class(part.uses, draft.folder)
        except NoSuchController:
            continue
        if issubclass(cls, EnvelopeMethod):
            return part, cls
    return None


def shared_options(draft: Draft, scenario: Scenario, method: Method) -> dict[str, Any]:
    """The options that a scenario gives its own envelope controller, as far as `method` has them.

    What all methods have (weights, margins, intervals) goes to each; the rest only to the same class. As in
    the run, envelopes are for all steps until the controller is asked again.
    """
    own = own_controller(draft, scenario)
    if own is None:
        return {}
    part, cls = own
    common = {f.name for f in fields(EnvelopeMethod) if f.init}
    shared = {key: value for key, value in part.options.items() if cls is method or key in common}
    return shared if part.rolling else covering(method, shared, period(scenario, part))


def check_options(draft: Draft, scenario: Scenario) -> dict[str, Any]:
    """The options of the AC check that a scenario gives its own envelope controller, if any."""
    own = own_controller(draft, scenario)
    return {} if own is None or own[0].certified is None else dict(own[0].certified)


def step_at(scenario: Scenario, at: datetime | None) -> int:
    """The step of an instant; of the run's start if none is given.

    Raises:
        NotInTheRun: before the start, after the end, or between two steps.
    """
    if at is None:
        return 0
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    step, rest = divmod(at - scenario.start, scenario.every)
    end = scenario.start + (scenario.steps - 1) * scenario.every
    if rest or not 0 <= step < scenario.steps:
        raise NotInTheRun(
            f"--at {at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}: the steps of {scenario.name} go from "
            f"{scenario.start.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ} to "
            f"{end.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ} every {scenario.every}"
        )
    return int(step)


def observe(built: Built, step: int) -> Observation:
    """What a controller sees at a step before any envelope was decided. To be asked once of a `Built`.

    Regulators stand where the scenario starts them, or where its controllers that are no methods of
    envelopes put them now; what these say of microgrids is heard.
    """
    scenario, site = built.scenario, built.site
    tick = Tick(step, scenario.start + step * scenario.every, Duty.FULL, scenario.start)
    profiles = ProfilesSimulator(built.driven, scenario.every, scenario.forecast.intervals)
    forecast = profiles.run(tick)
    drive: Mapping[str, float] = profiles.out["profiles"]["drive"]
    fleet = DevicesSimulator(site.devices, scenario.every.total_seconds(), built.microgrid_twins(_unheard))
    reports = fleet.run(tick, drive, {})
    policy = scenario.grid.on_divergence
    grid = GridSimulator(
        built.engine, site.devices, site.loads, policy, _unheard, site.regulators, site.microgrids
    )
    measured = grid.run(tick, drive, reports, {}, fleet.out["fleet"]["exchanges"])
    seen = Observation(
        time=tick.time,
        forecast=forecast,
        v_pu=measured.v_pu,
        p_mw={**measured.load_p_mw, **measured.exchange_p_mw, **{r.device: r.p_mw for r in reports}},
        q_mvar={**measured.load_q_mvar, **measured.exchange_q_mvar, **{r.device: r.q_mvar for r in reports}},
        e_mwh={name: e for name, d in site.devices.items() if (e := d.initial().e_mwh) is not None},
        positions=dict(measured.positions),
        connected=dict(measured.connected),
    )
    for seat in built.seats:
        if (site.regulators or site.microgrids) and not hasattr(seat.controller, "envelopes"):
            with suppress(ControlError):
                said = seat.controller.step(seen)
                positions = {**seen.positions, **said.positions}
                seen = replace(seen, positions=positions, said={**seen.said, seat.name: said})
    return seen


def _unheard(*about: Any, **more: Any) -> None:
    """What happens in a step of which nothing is recorded."""


def ask(
    built: Built,
    method: Method,
    options: Mapping[str, Any],
    observation: Observation,
    *,
    check: Mapping[str, Any] | None,
) -> Answer:
    """Build one method on the site and ask it once; only the asking is timed.

    Args:
        check: options of the AC check, `None` to leave it out; fixed limits are shown as they are.
    """
    try:
        inner = method(built.site, **options)
        controller: Controller = inner
        if check is not None and not issubclass(method, FixedLimits):
            controller = Certified(inner, **check)
        started = wall_time.perf_counter()
        decision = controller.step(observation)
        took_s = wall_time.perf_counter() - started
    except (ControlError, ValueError) as error:
        why = f"{type(error).__name__}: {error}"
        return Answer(method=method.acronym, name=method.__name__, origin=None, why=why)
    low, high = built.site.limits.v_pu
    certificates = decision.certificates.values()
    volts = [c.worst_v_pu for c in certificates if c.worst_v_pu is not None]
    loadings = [c.worst_loading_percent for c in certificates if c.worst_loading_percent is not None]
    return Answer(
        method=method.acronym,
        name=method.__name__,
        origin=decision.origin,
        devices=tuple(_limits(name, decision) for name in decision.regions),
        fairness=decision.fairness,
        worst_v_pu=min(volts, key=lambda v: min(v - low, high - v), default=None),
        worst_loading_percent=max(loadings, default=None),
        power_flows=max((c.power_flows for c in certificates), default=0),
        solve_ms=took_s * 1e3,
    )


def _limits(name: str, decision: Decision) -> DeviceLimits:
    region: Region = decision.regions[name].over(AXES)
    corners = region.vertices()
    shape = Shapes(corners[None], (None,))
    low, high = (float(ends[0]) for ends in shape.ranges_at_zero)
    certificate = decision.certificates.get(name)
    return DeviceLimits(
        device=name,
        export_mw=high if isfinite(high) else None,
        import_mw=-low if isfinite(low) else None,
        q_high_mvar=float(corners[:, 1].max()),
        q_low_mvar=float(corners[:, 1].min()),
        area_mva2=float(shape.areas[0]),
        binding=None if certificate is None else certificate.binding,
        corners=tuple((float(p), float(q)) for p, q in corners),
    )
