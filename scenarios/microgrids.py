"""Microgrids of a scenario: what only the whole file shows of them, and what they become."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import timedelta
from difflib import get_close_matches
from typing import Any

from controllers.interchange.correction import InterchangeCorrection
from controllers.interchange.dispatch import MicrogridDispatch
from controllers.interchange.prediction import InterchangePrediction
from controllers.microgrid import Microgrid
from scenarios.grids import GridError, bus_of
from scenarios.load import Keys
from scenarios.schema import MicrogridPart, Scenario
from simulators.microgrids import Breaker

Wrong = tuple[Keys, Any, str]
"""Where a mistake is, the value there, and what to do."""


def microgrid_of(part: MicrogridPart, bus: str) -> Microgrid:
    """What controllers know of it; `bus` is our name of the one that it is connected to."""
    return Microgrid(
        name=part.name,
        bus=bus,
        devices=part.devices,
        tie_mw=part.tie_mw,
        q_mvar=part.q_mvar,
        price=part.price,
        heat=None if part.heat is None else f"{part.name}:heat",
        boiler_cost_per_mwh=part.boiler_cost_per_mwh,
        shed_cost_per_mwh=part.shed_cost_per_mwh,
        spill_cost_per_mwh=part.spill_cost_per_mwh,
    )


def breaker_of(part: MicrogridPart, every: timedelta) -> Breaker:
    """When it is open."""
    return Breaker(part.isolated, part.resync_steps * every)


def followers(parts: Sequence[MicrogridPart]) -> Iterator[tuple[str, str, float]]:
    """Profile, name in forecasts and rating of prices [$/MWh] and heat demands [MW]; a price only once."""
    for price in dict.fromkeys(part.price for part in parts if part.price is not None):
        yield price, price, 1.0
    for part in parts:
        if part.heat is not None:
            yield part.heat.profile, f"{part.name}:heat", part.heat.mw


def named_twice(raw: dict[str, Any]) -> Iterator[Wrong]:
    """Microgrids and prices that have the name of something else that is measured or forecast."""
    used = {str(item.get("name")): "device" for _, item in _items(raw, "devices")}
    for keys, item in _items(raw, "microgrids"):
        if (name := str(item.get("name"))) in used:
            yield (*keys, "name"), name, f"is the name of a {used[name]}; choose another"
    used |= {str(item.get("name")): "microgrid" for _, item in _items(raw, "microgrids")}
    for keys, item in _items(raw, "microgrids"):
        if isinstance(price := item.get("price"), str) and price in used:
            advice = f"is also the name of a {used[price]}, which forecasts know by it; rename one"
            yield (*keys, "price"), price, advice


PRICES = ("daily", "table")
"""Kinds of profile that can be a price; the others are weather and demand."""


def not_prices(raw: dict[str, Any]) -> Iterator[Wrong]:
    """Prices that are profiles of something else, in per unit."""
    profiles = raw.get("profiles")
    known = profiles if isinstance(profiles, dict) else {}
    follows = {str(item.get("profile")): str(item.get("name")) for _, item in _items(raw, "devices")}
    for keys, item in _items(raw, "microgrids"):
        if not isinstance(price := item.get("price"), str):
            continue
        kind = known[price].get("kind") if isinstance(known.get(price), dict) else None
        unit = "a price is in $/MWh, so give it a profile of its own"
        if kind is not None and kind not in PRICES:
            yield (
                (*keys, "price"),
                price,
                f"is of kind {kind}; {unit}, of kind {' or '.join(PRICES)}",
            )
        elif price in follows:
            yield (*keys, "price"), price, f"is followed by device {follows[price]!r} in per unit; {unit}"


LINKED = tuple(f"{cls.__module__}:{cls.__name__}" for cls in (InterchangePrediction, MicrogridDispatch))
"""Controllers that plan with links between microgrids."""
CORRECTS = f"{InterchangeCorrection.__module__}:{InterchangeCorrection.__name__}"


def out_of_sight(scenario: Scenario) -> Iterator[Wrong]:
    """What a scenario says of microgrids and its run does not show, or not as it may be meant."""
    start, end = scenario.start, scenario.start + scenario.steps * scenario.every
    for i, part in enumerate(scenario.microgrids):
        resync = part.resync_steps * scenario.every
        for k, (opens, closes) in enumerate(part.isolated):
            if closes + resync <= start or opens >= end:
                advice = f"is outside the run, which goes from {start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M}"
                window = f"{opens:%Y-%m-%d %H:%M} to {closes:%Y-%m-%d %H:%M}"
                yield ("microgrids", i, "isolated", k), window, f"{advice}: it changes nothing"
    for i, controller in enumerate(scenario.controllers):
        if controller.uses == CORRECTS and (controller.every or scenario.every) > scenario.every:
            advice = (
                "leaves steps to what was said for later, which is advice: only the first step's capability "
            )
            advice += "is certain, and the operator's batteries keep its setpoints; ask it each step"
            yield ("controllers", i, "every"), controller.every, advice
        if controller.options.get("links") and controller.uses in LINKED:
            yield (
                ("controllers", i, "options", "links"),
                controller.options["links"],
                "is planned with, but the simulated grid knows no link: what is sent does not flow",
            )


def misplaced_devices(raw: dict[str, Any], net: Any) -> Iterator[Wrong]:
    """Devices of microgrids that do not exist, are elsewhere, have no profile, or are named again."""
    devices = {str(item.get("name")): item for _, item in _items(raw, "devices")}
    taken: dict[str, str] = {}
    for keys, item in _items(raw, "microgrids"):
        names = item.get("devices")
        if (wrong := _elsewhere(keys, item, devices, net)) is not None:
            yield wrong
        for i, name in enumerate(names if isinstance(names, list) else []):
            where: Keys = (*keys, "devices", i)
            if not isinstance(name, str):
                continue  # said already
            if name not in devices:
                near = get_close_matches(name, devices, n=1)
                hint = f"did you mean {near[0]!r}?" if near else "add it to `devices`"
                yield where, name, f"is no device of this scenario; {hint}"
                continue
            if name in taken:
                yield where, name, f"belongs to microgrid {taken[name]!r} already; name it once"
            taken.setdefault(name, str(item.get("name")))
            device = devices[name]
            at, wanted = _bus(net, device.get("bus")), _bus(net, item.get("bus"))
            if wrong is None and at is not None and wanted is not None and at != wanted:
                advice = f"is at bus {at}, the microgrid at bus {wanted}; put both at one bus"
                yield where, name, advice
            if device.get("kind") == "flexible-load" and device.get("profile") is None:
                yield where, name, "has no profile, so that nobody can forecast its demand; give it one"


def _elsewhere(keys: Keys, item: dict[str, Any], devices: dict[str, Any], net: Any) -> Wrong | None:
    """A microgrid of several devices that are all at one bus, and it at another: its own is the wrong one."""
    names, wanted = item.get("devices"), _bus(net, item.get("bus"))
    known = [devices[name] for name in names if name in devices] if isinstance(names, list) else []
    at = Counter(_bus(net, device.get("bus")) for device in known)
    (bus, _), *others = at.most_common() or [(None, 0)]
    if len(known) < 2 or others or bus is None or wanted in (None, bus):
        return None
    return (*keys, "bus"), item.get("bus"), f"is not where its devices are: they are all at bus {bus}"


def _bus(net: Any, ref: Any) -> str | None:
    """Our name of a bus, or `None` where there is none to compare with."""
    try:
        return bus_of(net, ref) if isinstance(ref, int | str) else None
    except GridError:
        return None  # said already


def _items(raw: dict[str, Any], section: str) -> list[tuple[Keys, dict[str, Any]]]:
    items = raw.get(section)
    found = items if isinstance(items, list) else []
    return [((section, i), item) for i, item in enumerate(found) if isinstance(item, dict)]
