"""Faults: what shall go wrong in a run, and when, as the scenario file says it; see docs/faults.md.

| fault | acts on |
|---|---|
| loss, delay, duplication, reordering | messages: the bus (`bridges.faulty`), twins (`simulators.mail`) |
| black-hole, broker-down, broker-frozen, slow-link | the broker and its link (`scenarios.link`), mail |
| device-silent, device-disobeys | the bus and the mail; the twin (`simulators.devices`) |
| meter-stuck, meter-biased, measurement-missing | what controllers are shown (`simulators.meters`) |
| solver-infeasible, -late, -raises, -nan | the controller (`simulators.faulty`) |
| line-out | the power flow (`simulators.outage`), and every controller |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StrictInt,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    model_serializer,
    model_validator,
)

from scenarios.grids import bus_of
from scenarios.lengths import Duration, duration, spell
from simulators.faults import Fault, What

Wrong = tuple[tuple[str | int, ...], Any, str]
"""Where a mistake is, the value there, and what to do."""
_CLOCK = re.compile(r"(\d+):([0-5]\d)(?::([0-5]\d))?")
_NOTHING = re.compile(r"0(\.0*)?\s*(ms|s|min|m|h|d)?")


def instant(value: Any) -> timedelta | datetime:
    """When a fault begins: an offset from the start of the run, or an instant.

    Raises:
        ValueError: neither, or an instant without a time zone.
    """
    if isinstance(value, timedelta | datetime):
        return value
    text = str(value).strip()
    if _NOTHING.fullmatch(text):
        return timedelta()
    if (clock := _CLOCK.fullmatch(text)) is not None:
        hours, minutes, seconds = (int(part or 0) for part in clock.groups())
        return timedelta(hours=hours, minutes=minutes, seconds=seconds)
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        try:
            return duration(value)
        except ValueError:
            raise ValueError(
                "is no time; write an offset from the start, such as 02:00 or 10min, or an instant, "
                "such as 2026-06-21T02:00:00Z"
            ) from None
    if at.tzinfo is None:
        raise ValueError("has no time zone; write it as UTC, e.g. 2026-06-21T02:00:00Z")
    return at


def _said(value: timedelta | datetime) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return spell(value) if value else "0s"


def _named(value: Any) -> Any:
    """A name or an index, judged before the union is, which would say twice what it is not."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("must be an index of the net, such as 3, or a name")
    return value


Element = Annotated[StrictInt | str, BeforeValidator(_named)]
Instant = Annotated[
    timedelta | datetime,
    BeforeValidator(instant),
    PlainSerializer(_said),
    WithJsonSchema(
        {
            "type": "string",
            "examples": ["02:00", "10min", "2026-06-21T02:00:00Z"],
            "x-value": "offset from the start, or date and time with zone",
        }
    ),
]
Share = Annotated[float, Field(gt=0, le=1)]
Bias = Annotated[float, Field(allow_inf_nan=False)]
Topic = Literal["setpoint", "ack", "meas", "state", "batch", "batch-ack", "batch-meas"]
_DOWN = ("setpoint", "batch")
_OF_METERS = ("meter-stuck", "meter-biased", "measurement-missing")


class _Timed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    at: Instant
    """when it begins: an offset from the start (`02:00`, `10min`) or an instant; on from the next step"""
    lasts: Duration = Field(alias="for")
    """how long; it is over with the first step from then"""

    @model_serializer(mode="wrap")
    def _spelled(self, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        said = handler(self)
        if "lasts" in said:
            said["for"] = said.pop("lasts")
        return said


class _OfMessages(_Timed):
    share: Share = 1.0
    """of the messages, drawn from the seed"""
    direction: Literal["down", "up", "both"] = "both"
    """down: from the run to the devices; up: back"""
    topic: Topic | None = None
    """last word of the topics that are hit, all if not given"""
    device: str | None = None
    """device or gateway whose messages are hit, all if not given"""

    @model_validator(mode="after")
    def _some(self) -> _OfMessages:
        if self.topic is not None and self.direction == ("up" if self.topic in _DOWN else "down"):
            other = "down" if self.topic in _DOWN else "up"
            raise ValueError(f"hits nothing: {self.topic} only goes {other}; leave direction out")
        return self


class MessagesHit(_OfMessages):
    """Messages are lost, or come twice."""

    what: Literal["loss", "duplication"]


class MessagesLate(_OfMessages):
    """Messages come later (delay), or behind those that were sent after them (reordering)."""

    what: Literal["delay", "reordering"]
    by: Duration | None = None
    """by how much; reordering one and a half steps if not given"""

    @model_validator(mode="after")
    def _check(self) -> MessagesLate:
        if self.what == "delay" and self.by is None:
            raise ValueError("delay: by is required; say how late messages come, e.g. by: 300ms")
        return self


class LinkCut(_Timed):
    """Nothing passes: packets vanish, or the broker is killed, or it stands still."""

    what: Literal["black-hole", "broker-down", "broker-frozen"]


class LinkSlow(_Timed):
    """Few bytes pass."""

    what: Literal["slow-link"]
    bytes_per_s: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """in each direction"""


class DeviceFault(_Timed):
    """A device is not heard and hears nothing; or it does what it likes, and says that it obeys."""

    what: Literal["device-silent", "device-disobeys"]
    device: str
    """its name"""


class _OfMeters(_Timed):
    device: str | None = None
    """device or load whose power is measured wrong"""
    bus: Element | None = None
    """the net's bus whose voltage is measured wrong; a device or a bus"""

    @model_validator(mode="after")
    def _one(self) -> _OfMeters:
        if (self.device is None) == (self.bus is None):
            raise ValueError("needs exactly one of device (or load) and bus: whose meter it is")
        return self


class MeterFault(_OfMeters):
    """A meter shows what it showed when the fault began, or nothing."""

    what: Literal["meter-stuck", "measurement-missing"]


class MeterBiased(_OfMeters):
    """A meter shows more than there is, or less."""

    what: Literal["meter-biased"]
    v_pu: Bias | None = None
    """added to the voltage of a bus"""
    p_mw: Bias | None = None
    """added to the active power that a device or load injects"""
    q_mvar: Bias | None = None
    """added to the reactive power"""

    @model_validator(mode="after")
    def _check(self) -> MeterBiased:
        wrong = ("p_mw", "q_mvar") if self.bus is not None else ("v_pu",)
        if any(getattr(self, name) is not None for name in wrong):
            meant = "v_pu" if self.bus is not None else "p_mw or q_mvar"
            raise ValueError(f"has {', '.join(wrong)}, which that meter does not show; give {meant}")
        if self.v_pu is None and self.p_mw is None and self.q_mvar is None:
            raise ValueError("needs v_pu (of a bus), or p_mw or q_mvar (of a device): by how much")
        return self


class SolverFault(_Timed):
    """A controller's problem has no solution, its solver raises, or its answer is not a number."""

    what: Literal["solver-infeasible", "solver-raises", "solver-nan"]
    controller: str
    """its name"""
    share: Share = 1.0
    """of the steps, drawn from the seed"""


class SolverLate(_Timed):
    """A controller's decision comes late."""

    what: Literal["solver-late"]
    controller: str
    """its name"""
    by: Duration
    """simulated: with a paced clock it really takes so much longer, by the wall clock `by` over the clock's
    factor. With the clock `fast` nobody waits: there is no decision, where `by` is at least the controller's
    deadline (a step, if it has none), and else the fault does nothing"""
    share: Share = 1.0
    """of the steps, drawn from the seed"""


class LineOut(_Timed):
    """A line is open. What is behind it is without supply; controllers were made for the grid as it was."""

    what: Literal["line-out"]
    line: Element
    """of the net, by index or by its unique name"""
    controllers: Literal["silent", "go-on"] = "silent"
    """silent: nobody is asked, since envelopes would be for another grid; what was said holds until it ends,
    then defaults. go-on: they are asked as if nothing had happened"""


AnyFault = Annotated[
    MessagesHit
    | MessagesLate
    | LinkCut
    | LinkSlow
    | DeviceFault
    | MeterFault
    | MeterBiased
    | SolverFault
    | SolverLate
    | LineOut,
    Field(discriminator="what"),
]


def faults_of(
    parts: tuple[AnyFault, ...],
    start: datetime,
    every: timedelta,
    *,
    bus: Callable[[int | str], str] = str,
    line: Callable[[int | str], str] = str,
) -> tuple[Fault, ...]:
    """The faults of a scenario.

    Args:
        bus, line: a bus's and a branch's name in the simulation, by what the scenario says.
    """
    found = []
    for number, part in enumerate(parts):
        begin = part.at if isinstance(part.at, datetime) else start + part.at
        given: dict[str, Any] = {name: getattr(part, name) for name in type(part).model_fields}
        by: timedelta | None = given.get("by")
        if part.what == "reordering" and by is None:
            by = 1.5 * every
        at_bus, of_line = given.get("bus"), given.get("line")
        direction = given.get("direction")
        found.append(
            Fault(
                number=number,
                what=What(part.what),
                start=begin,
                end=begin + part.lasts,
                by_s=None if by is None else by.total_seconds(),
                bus=None if at_bus is None else bus(at_bus),
                branch=None if of_line is None else line(of_line),
                direction=None if direction == "both" else direction,
                **{
                    key: given.get(key)
                    for key in (
                        "share",
                        "topic",
                        "device",
                        "controller",
                        "bytes_per_s",
                        "v_pu",
                        "p_mw",
                        "q_mvar",
                    )
                },
            )
        )
    return tuple(found)


# What only the whole file shows


def misplaced(raw: Mapping[str, Any]) -> Iterator[Wrong]:
    """Faults that are on in no step of the run, or of devices and controllers that are not there or that they
    can do nothing to. Reads the raw mapping."""
    items = raw.get("faults")
    given = [(("faults", i), x) for i, x in enumerate(items if isinstance(items, list) else ())]
    steps = _steps(raw)
    for keys, item in given:
        if not isinstance(item, dict):
            continue
        yield from _misnamed(keys, item, raw)
        if steps is not None and (begin := _begin(raw, item)) is not None:
            yield from _never_on(keys, item, begin, *steps)


def _never_on(
    keys: tuple[str | int, ...], item: Mapping[str, Any], begin: timedelta, every: timedelta, steps: int
) -> Iterator[Wrong]:
    """A window in which no step begins."""
    first = -(-begin // every) * every
    if begin < timedelta() or first >= steps * every:
        said = "before the run begins" if begin < timedelta() else "when the run is over"
        if begin < steps * every <= first:
            said = f"after its last step has begun, at {spell((steps - 1) * every)}"
        yield (*keys, "at"), item.get("at"), f"is {said}; it takes {spell(steps * every)} from its start"
        return
    try:
        lasts = duration(item.get("for"))
    except ValueError:
        return  # it says so itself
    if begin + lasts <= first:
        advice = (
            f"holds no step, since these begin every {spell(every)}: it would never be on; let it begin at "
            f"{spell(first)} after the start, or last longer than {spell(first - begin)}"
        )
        yield (*keys, "for"), item.get("for"), advice


def _misnamed(
    keys: tuple[str | int, ...], item: Mapping[str, Any], raw: Mapping[str, Any]
) -> Iterator[Wrong]:
    what, of_meter = item.get("what"), item.get("what") in _OF_METERS
    named = {"device": _names(raw, "devices"), "controller": _names(raw, "controllers")}
    if not of_meter and what != "device-disobeys":
        named["device"] += _gateways(raw)
    for key, known in named.items():
        name = item.get(key)
        if not isinstance(name, str) or (":" in name and key == "device" and of_meter):
            continue  # a load, such as load:3, is looked for in the net
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known[:8]) or 'none'}"
            yield (*keys, key), name, f"is no {key} of this scenario; {hint}"
        elif key == "device" and what == "device-disobeys" and name in _outside(raw):
            advice = "is a real device, which does what it does; only a simulated one can be made to disobey"
            yield (*keys, key), name, advice


def misplaced_in(raw: Mapping[str, Any], net: Any) -> Iterator[Wrong]:
    """Faults of buses, loads and lines that the net does not have."""
    items = raw.get("faults")
    for i, item in enumerate(items if isinstance(items, list) else ()):
        if not isinstance(item, dict):
            continue
        for key, find in (("bus", bus_of), ("line", line_of)):
            named = item.get(key)
            if isinstance(named, int | str) and not isinstance(named, bool):
                try:
                    find(net, named)
                except ValueError as error:
                    yield ("faults", i, key), named, str(error)
        device = item.get("device")
        if isinstance(device, str) and ":" in device:
            table, _, index = device.partition(":")
            if item.get("what") in _OF_METERS and (
                table not in ("load", "sgen", "storage") or index not in map(str, net[table].index)
            ):
                yield (
                    ("faults", i, "device"),
                    device,
                    "is no load of the net; write load:3, sgen:0 or a device",
                )


def line_of(net: Any, named: int | str) -> str:
    """The branch's name in the simulation of a line of a pandapower net, by index or unique name.

    Raises:
        ValueError: there is none, or there are several of that name.
    """
    lines = net.line
    if isinstance(named, int):
        if named in lines.index:
            return f"line:{named}"
        raise ValueError(f"is no line of the net; they go from {lines.index.min()} to {lines.index.max()}")
    found = list(lines.index[lines.name.astype(str) == named])
    if len(found) != 1:
        raise ValueError(f"is the name of {len(found)} lines of the net; give the index of one")
    return f"line:{int(found[0])}"


def _names(raw: Mapping[str, Any], section: str) -> list[str]:
    items = raw.get(section)
    return [str(x.get("name")) for x in (items if isinstance(items, list) else ()) if isinstance(x, dict)]


def _outside(raw: Mapping[str, Any]) -> list[str]:
    """Names of the real devices."""
    items = raw.get("devices")
    several = [x for x in (items if isinstance(items, list) else ()) if isinstance(x, dict)]
    return [str(x.get("name")) for x in several if x.get("via") is not None]


def _gateways(raw: Mapping[str, Any]) -> list[str]:
    found = []
    items = raw.get("devices")
    for item in items if isinstance(items, list) else ():
        via = item.get("via") if isinstance(item, dict) else None
        way = via.get("mqtt") if isinstance(via, dict) else None
        if isinstance(way, dict) and isinstance(way.get("gateway"), str):
            found.append(way["gateway"])
    return found


def _steps(raw: Mapping[str, Any]) -> tuple[timedelta, int] | None:
    """Length of a step, and how many there are; `None`: they say so themselves that they are wrong."""
    steps = raw.get("steps")
    try:
        every = TypeAdapter(Duration).validate_python(raw.get("every"))
    except ValidationError:
        return None
    return (every, steps) if isinstance(steps, int) and not isinstance(steps, bool) else None


def _begin(raw: Mapping[str, Any], item: Mapping[str, Any]) -> timedelta | None:
    """When a fault begins after the start; `None`: it says so itself that it is wrong."""
    try:
        at = instant(item.get("at"))
        if isinstance(at, timedelta):
            return at
        start = raw.get("start")
        begun = start if isinstance(start, datetime) else datetime.fromisoformat(str(start))
        return at - begun
    except (ValueError, TypeError):
        return None
