"""External: the devices of a scenario that are real ones; what only the whole file shows of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from importlib.util import find_spec
from typing import Any

from pydantic import TypeAdapter, ValidationError

from scenarios.load import Keys
from scenarios.schema import DevicePart, Duration, Scenario
from scenarios.via import SunspecWay
from simulators.clock import Mode
from simulators.field import Placed

Wrong = tuple[Keys, Any, str]
"""Where a mistake is, the value there, and what to do."""
LEAST_VALID_S = 3.0
"""Shortest validity by the wall clock for devices whose timers have whole seconds."""
_LENGTH: TypeAdapter[timedelta] = TypeAdapter(Duration)


def outside(scenario: Scenario) -> dict[str, DevicePart]:
    """The devices that are real ones, by name."""
    return {part.name: part for part in scenario.devices if part.via is not None}


def placed(scenario: Scenario) -> dict[str, Placed]:
    """What a run has to know of each."""
    return {
        name: Placed(_patience(part.stale_after, scenario.every), part.shadow, part.dry_run)
        for name, part in outside(scenario).items()
    }


def gateways(scenario: Scenario) -> dict[str, str]:
    """The gateway of each device that is told through one."""
    found = {}
    for name, part in outside(scenario).items():
        if part.via is not None and part.via.mqtt is not None and part.via.mqtt.gateway is not None:
            found[name] = part.via.mqtt.gateway
    return found


def over_mqtt(scenario: Scenario) -> frozenset[str]:
    """The devices that are on the run's own bus."""
    return frozenset(n for n, part in outside(scenario).items() if part.via and part.via.mqtt is not None)


def over_sunspec(scenario: Scenario) -> dict[str, SunspecWay]:
    """The devices that speak SunSpec, and where they are."""
    found = {}
    for name, part in outside(scenario).items():
        if part.via is not None and part.via.sunspec is not None:
            found[name] = part.via.sunspec
    return found


def _patience(value: str | timedelta, every: timedelta) -> timedelta:
    if isinstance(value, timedelta):
        return value
    return int(value.partition(" ")[0]) * every


def misplaced(raw: dict[str, Any]) -> Iterator[Wrong]:
    """What cannot be of real devices: a clock or a bus that does not reach them, a package that is missing,
    two at one place, one in a simulated microgrid, instructions that end too soon. Reads the raw mapping."""
    devices = [(keys, item) for keys, item in _items(raw, "devices") if item.get("via") is not None]
    if not devices:
        return
    clock = raw.get("clock")
    mode = clock.get("mode", Mode.FAST) if isinstance(clock, dict) else Mode.FAST
    if mode == Mode.FAST:
        yield (
            ("clock", "mode"),
            str(mode),
            f"real devices ({_few(devices)}) live in the time of the wall clock; take live, or scaled",
        )
    yield from _buses(raw, devices)
    yield from _sunspec(raw, devices)
    yield from _behind_microgrids(raw, devices)


def _buses(raw: dict[str, Any], devices: list[tuple[Keys, dict[str, Any]]]) -> Iterator[Wrong]:
    bus, names = raw.get("bus"), {str(item.get("name")) for _, item in _items(raw, "devices")}
    for keys, item in devices:
        if (way := _way(item, "mqtt")) is None:
            continue
        if isinstance(bus, dict) and bus.get("kind") == "memory":
            advice = "is on the run's bus, and kind memory does not leave its process; take embedded or mqtt"
            yield (*keys, "via"), item["via"], advice
        gateway = way.get("gateway")
        if isinstance(gateway, str) and gateway in names:
            advice = "is the name of a device, which speaks for itself; name the gateway otherwise"
            yield (*keys, "via", "mqtt", "gateway"), gateway, advice


def _sunspec(raw: dict[str, Any], devices: list[tuple[Keys, dict[str, Any]]]) -> Iterator[Wrong]:
    ways = [(keys, item, way) for keys, item in devices if (way := _way(item, "sunspec")) is not None]
    if not ways:
        return
    if find_spec("pymodbus") is None or find_spec("sunspec2") is None:
        for keys, item, _ in ways:
            yield (
                (*keys, "via"),
                item["via"],
                "needs pymodbus and pysunspec2: pip install 'gridpace[sunspec]'",
            )
    taken: dict[tuple[Any, ...], Any] = {}
    for keys, item, way in ways:
        place = (str(way.get("host")), way.get("port", 502), way.get("unit", 1))
        if place in taken:
            yield (
                (*keys, "via"),
                item["via"],
                f"is where {taken[place]!r} is; two would be told in turn. Give each its own unit or port",
            )
        taken.setdefault(place, item.get("name"))
        if item.get("kind") == "flexible-load":
            yield (*keys, "via"), item["via"], "model 704 has no controls for loads; take mqtt"
        if item.get("kind") == "svc":
            advice = "has no active power, of which model 702 tells the rating; take mqtt"
            yield (*keys, "via"), item["via"], advice
    yield from _too_short(raw)


def _too_short(raw: dict[str, Any]) -> Iterator[Wrong]:
    """Controllers whose words end before a device with timers of whole seconds has them for a while."""
    clock = raw.get("clock")
    factor = 1.0
    if isinstance(clock, dict) and clock.get("mode") == Mode.SCALED:
        given = clock.get("factor", 1.0)
        factor = float(given) if isinstance(given, int | float) and given > 0 else 1.0
    step = _length(raw.get("every"))
    for keys, item in _items(raw, "controllers"):
        every = _length(item.get("every")) or step
        if every is None or item.get("rolling"):
            continue  # said already; a schedule is as long as its intervals
        valid_for = _length(item.get("valid_for")) or 2 * every
        if valid_for.total_seconds() / factor < LEAST_VALID_S:
            least = timedelta(seconds=LEAST_VALID_S * factor)
            yield (
                (*keys, "valid_for"),
                item.get("valid_for", valid_for),
                f"SunSpec devices count whole seconds until they fall back; give at least {_spelled(least)}",
            )


def _behind_microgrids(raw: dict[str, Any], devices: list[tuple[Keys, dict[str, Any]]]) -> Iterator[Wrong]:
    real = {str(item.get("name")) for _, item in devices}
    for keys, grid in _items(raw, "microgrids"):
        names = grid.get("devices")
        for i, name in enumerate(names if isinstance(names, list) else ()):
            if name in real:
                advice = "is a real device (via), which the simulated microgrid cannot move; leave via out"
                yield (*keys, "devices", i), name, advice


def _way(item: Mapping[str, Any], which: str) -> Mapping[str, Any] | None:
    """The map of one way, however it is written."""
    via = item.get("via")
    if via == which:
        return {}
    if isinstance(via, dict) and which in via:
        found = via[which]
        return found if isinstance(found, dict) else {} if which == "mqtt" and found is None else None
    return None


def _length(value: Any) -> timedelta | None:
    try:
        return None if value is None else _LENGTH.validate_python(value)
    except ValidationError:
        return None  # said already


def _spelled(length: timedelta) -> str:
    return f"{length.total_seconds():g}s"


def _few(devices: list[tuple[Keys, dict[str, Any]]]) -> str:
    names = [str(item.get("name")) for _, item in devices]
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _items(raw: dict[str, Any], section: str) -> list[tuple[Keys, dict[str, Any]]]:
    items = raw.get(section)
    found = items if isinstance(items, list) else []
    return [((section, i), item) for i, item in enumerate(found) if isinstance(item, dict)]
