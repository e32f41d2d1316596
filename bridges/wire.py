"""The wire format, version 1: JSON on topics below `gridpace/v1`.

| topic                        | payload                  | retained | from       | to         |
|------------------------------|--------------------------|----------|------------|------------|
| `{run}/{area}/{der}/setpoint`| `SetpointMessage`        | yes      | controller | device     |
| `{run}/{area}/{der}/ack`     | `Ack`, or a list of them | no       | device     | controller |
| `{run}/{area}/{der}/meas`    | `Meas`                   | no       | device     | controller |
| `{run}/{area}/{der}/state`   | `State`                  | yes      | device     | everybody  |
| `{run}/ctl/state`            | `Heartbeat` or `Offline` | yes      | controller | everybody  |

For gateways of many devices see `bridges.batch`; for what is said about areas, `bridges.area`.

Powers are injections: positive into the grid, in MW and Mvar. Times are UTC, RFC 3339 with `Z`. A
field that is not known is refused in what commands, ignored elsewhere; of a key given twice the last
counts. NaN and infinity are refused in both directions, as is a payload above `MAX_PAYLOAD_BYTES`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from math import hypot, isfinite
from typing import Annotated, Any, Literal, TypeVar, get_args

import msgspec

from bridges.bus import MAX_PAYLOAD_BYTES
from controllers.register import Life, Refusal, Regime

ROOT = "gridpace/v1"
SCHEMA: Literal["gridpace.setpoint.v1"] = "gridpace.setpoint.v1"
RESERVED = ("ctl", "area")
"""Names that no area may have, because topics use them."""
MAX_LATER = 288
"""Most spans after the first one: a day of five minutes."""
LARGEST = 1e12
"""What is measured is not beyond, nor is the limit of a row, its length, the inverse of that, or the limit
divided by it: how far from zero the region begins."""
YEARS = (1970, 2200)
"""First and last year of a time: others cannot be reckoned with, least of all at another pace."""
MAX_TTL_MS = 366 * 86_400_000
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_EXACT_INTEGER = 2**53  # any JSON reader keeps integers up to this one

S = TypeVar("S", bound=msgspec.Struct)
D = TypeVar("D")
What = Literal["setpoint", "ack", "meas", "state", "batch-ack", "batch-meas"]
"""The kinds of messages about one device, or about the devices of one gateway."""
Reason = Annotated[str, msgspec.Meta(max_length=300)]
"""Words for people, of bounded length: they end in the tables of a run."""


class BadMessage(ValueError):
    """A payload, name or topic that is not what it should be: what, and why."""


class HalfSpaces(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A region: the points x with `A x <= b`. Rows have unit length."""

    axes: tuple[str, ...]
    """names of the coordinates, e.g. `p_mw`, `q_mvar`"""
    A: tuple[tuple[float, ...], ...]
    """(rows, axes)"""
    b: tuple[float, ...]
    """(rows,) in the units of the axes"""

    def __post_init__(self) -> None:
        if not self.axes or len(set(self.axes)) != len(self.axes):
            raise BadMessage(f"axes {self.axes} must be named, each once")
        for axis in self.axes:
            check_name("axis", axis)
        if len(self.A) != len(self.b) or any(len(row) != len(self.axes) for row in self.A):
            raise BadMessage(f"A and b must have a row of {len(self.axes)} and a limit each")
        lengths = [hypot(*row) for row in self.A]
        # The length of a row of 1e200 is infinite, and scaled by it the limit would be gone.
        if not all(1 / LARGEST <= length <= LARGEST for length in lengths):
            raise BadMessage("a row of the region is zero, or too short or too long to be scaled")
        # Beyond, the nearest point of a region is off by more than a device is large.
        if not all(abs(b) <= LARGEST * min(n, 1.0) for b, n in zip(self.b, lengths, strict=True)):
            raise BadMessage(f"a limit of the region is not finite, or beyond {LARGEST:g}")


class Target(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A target injection; an axis that is null is left to the device."""

    p_mw: float | None
    q_mvar: float | None

    def __post_init__(self) -> None:
        if self.p_mw is None and self.q_mvar is None:
            raise BadMessage("a setpoint needs p_mw or q_mvar")
        check_finite(p_mw=self.p_mw, q_mvar=self.q_mvar)


class Checked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an AC check of a region found, over all operating points that it tried."""

    power_flows: int
    """how many"""
    worst_v_pu: float | None
    """the voltage closest to its limit"""
    worst_loading_percent: float | None
    """the greatest loading"""

    def __post_init__(self) -> None:
        check_numbers(power_flows=self.power_flows)
        check_finite(worst_v_pu=self.worst_v_pu, worst_loading_percent=self.worst_loading_percent)


class LaterSpan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What one device is told for a span of time after the first one: `start <= time < end`."""

    start: datetime
    end: datetime
    region: HalfSpaces | None
    """where the device must stay; null: its capability"""
    setpoint: Target | None = None
    """where it should be inside the region; null: its choice"""
    why: str | None = None
    """what limits the region, for people"""
    checked: Checked | None = None
    """how the AC power flow was asked before the region was released; null: it was not, or there was no
    space in the message to say so"""

    def __post_init__(self) -> None:
        check_times(start=self.start, end=self.end)
        if not self.start < self.end:
            raise BadMessage(f"later: a span ends {self.end.isoformat()}, it begins {self.start.isoformat()}")


class SetpointMessage(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """What one device is told.

    It accepts this if `(epoch, seq)` is greater than the last one's and the validity has not passed:
    neither `valid_until`, nor `ttl_ms` after the arrival, for a device whose clock is not
    synchronised. Afterwards it obeys `fallback`. It replaces all of the last one, `later` too.
    """

    schema: Literal["gridpace.setpoint.v1"]
    run: str
    area: str
    der: str
    sign: Literal["injection_positive"]
    epoch: int
    seq: int
    issued: datetime
    valid_from: datetime
    valid_until: datetime
    ttl_ms: int
    region: HalfSpaces | None
    """where the device must stay until `later` begins; null: its capability"""
    setpoint: Target | None
    """where it should be inside the region; null: its choice"""
    fallback: HalfSpaces
    origin: str | None = None
    """which rule spoke"""
    why: str | None = None
    """what limits the region, for people"""
    checked: Checked | None = None
    """how the AC power flow was asked before the region was released; null: it was not"""
    later: tuple[LaterSpan, ...] = ()
    """what holds afterwards, without gaps, until `valid_until`"""

    def __post_init__(self) -> None:
        check_address(self.run, self.area, self.der)
        check_numbers(epoch=self.epoch, seq=self.seq, ttl_ms=self.ttl_ms)
        check_times(issued=self.issued, valid_from=self.valid_from, valid_until=self.valid_until)
        if not self.valid_from < self.valid_until:
            raise BadMessage(f"valid_until {self.valid_until} is not after valid_from {self.valid_from}")
        check_ttl(self.ttl_ms)
        if self.later:
            self._check_later()

    def _check_later(self) -> None:
        """A gap would send the device to its default and back."""
        if len(self.later) > MAX_LATER:
            raise BadMessage(f"later: {len(self.later)} spans are more than the {MAX_LATER} of a message")
        if not self.valid_from < self.later[0].start:
            raise BadMessage(
                f"later: begins {self.later[0].start.isoformat()}, not after valid_from "
                f"{self.valid_from.isoformat()}"
            )
        for before, after in zip(self.later, self.later[1:], strict=False):
            if before.end != after.start:
                raise BadMessage(
                    f"later: a span ends {before.end.isoformat()} and the next one begins "
                    f"{after.start.isoformat()}; spans follow each other without a gap"
                )
        if self.later[-1].end != self.valid_until:
            raise BadMessage(
                f"later: ends {self.later[-1].end.isoformat()}, not at valid_until "
                f"{self.valid_until.isoformat()}"
            )


class Ack(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of a setpoint at its device. The only proof that it was applied."""

    epoch: int
    seq: int
    state: Life
    time: datetime
    code: Refusal | None = None
    """of a refusal"""
    reason: Reason | None = None
    """of a refusal, for people"""

    def __post_init__(self) -> None:
        check_numbers(epoch=self.epoch, seq=self.seq)
        check_times(time=self.time)


class State(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a device is. `offline` is its last will; a will has no time, since it is written before."""

    state: Literal["online", "offline", "fallback"]
    time: datetime | None = None

    def __post_init__(self) -> None:
        if self.time is not None:
            check_times(time=self.time)


class Heartbeat(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="state", tag="online"
):
    """The controller is there and will be heard again by `next_deadline`."""

    epoch: int
    step: int
    period_ms: float
    next_deadline: datetime
    held: tuple[str, ...] = ()
    """devices that an operator has taken: they are told nothing. In the order of names, as many as fit"""
    held_count: int = 0
    """how many he has taken"""

    def __post_init__(self) -> None:
        check_numbers(epoch=self.epoch, step=self.step, held_count=self.held_count)
        check_finite(period_ms=self.period_ms)
        check_times(next_deadline=self.next_deadline)


class Offline(msgspec.Struct, frozen=True, kw_only=True, tag_field="state", tag="offline"):
    """The controller has left; also its last will."""

    epoch: int

    def __post_init__(self) -> None:
        check_numbers(epoch=self.epoch)


class Meas(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a device measures. Missing is missing, never zero."""

    time: datetime
    p_mw: float
    q_mvar: float
    v_pu: float | None = None
    e_mwh: float | None = None
    state: Regime | None = None
    """what it goes by"""

    def __post_init__(self) -> None:
        check_times(time=self.time)
        check_measured(p_mw=self.p_mw, q_mvar=self.q_mvar, v_pu=self.v_pu, e_mwh=self.e_mwh)


# Payloads


def encode(message: msgspec.Struct) -> bytes:
    """The payload of a message.

    Raises:
        BadMessage: more than `MAX_PAYLOAD_BYTES`.
    """
    payload = msgspec.json.encode(message)
    _check_size(payload)
    return payload


def decode(payload: bytes, kind: type[S]) -> S:
    """The message in a payload, e.g. `decode(payload, Ack)`.

    Raises:
        BadMessage: too large, no JSON, or not a message of this kind.
    """
    decoder: msgspec.json.Decoder[S] = _decoder(kind)
    return read(payload, decoder, kind.__name__)


def decode_control(payload: bytes) -> Heartbeat | Offline:
    """What `{run}/ctl/state` says.

    Raises:
        BadMessage: as `decode`.
    """
    return read(payload, _CONTROL, "Heartbeat or Offline")


def read(payload: bytes, decoder: msgspec.json.Decoder[D], kind: str) -> D:
    """What a decoder finds in a payload; `kind` names it.

    Raises:
        BadMessage: as `decode`.
    """
    _check_size(payload)  # before decoding: a megabyte of spaces is valid JSON
    try:
        payload.decode()  # msgspec does not look into what it skips
        return decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadMessage(f"not a {kind}: {error}") from None


@cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


_CONTROL: msgspec.json.Decoder[Heartbeat | Offline] = msgspec.json.Decoder(Heartbeat | Offline)


# Names and topics


@dataclass(frozen=True, slots=True)
class Address:
    """The parts of a device's topic."""

    run: str
    area: str
    der: str
    what: str
    """one of `What`"""


def check_name(what: str, name: str) -> str:
    """The name, if it can be a level of a topic: it cannot bring in `/`, `+` or `#`.

    Raises:
        BadMessage: anything but 1 to 64 of `A-Z a-z 0-9 _ . -`.
    """
    if not _NAME.fullmatch(name):
        raise BadMessage(f"{what} {name[:80]!r}: a name is 1 to 64 of the characters A-Z a-z 0-9 _ . -")
    return name


def check_address(run: str, area: str, der: str) -> None:
    """Check the names of a device's topic.

    Raises:
        BadMessage: as `check_name`, or an area of a reserved name.
    """
    check_name("run", run)
    check_name("der", der)
    if check_name("area", area) in RESERVED:
        raise BadMessage(f"area {area!r}: the names {', '.join(RESERVED)} are reserved; choose another")


def device_topic(run: str, area: str, der: str, what: What) -> str:
    """A topic of one device."""
    check_address(run, area, der)
    return f"{ROOT}/{run}/{area}/{der}/{what}"


def control_topic(run: str) -> str:
    """The topic on which a run's controller says that it is there."""
    return f"{ROOT}/{check_name('run', run)}/ctl/state"


def device_pattern(run: str, what: What) -> str:
    """The subscription for one kind of message of all devices of a run."""
    return f"{ROOT}/{check_name('run', run)}/+/+/{what}"


def parse_topic(topic: str) -> Address:
    """The parts of a device's topic.

    Raises:
        BadMessage: not a device's topic.
    """
    levels = topic.split("/")
    if len(levels) != 6 or "/".join(levels[:2]) != ROOT or levels[5] not in get_args(What):
        raise BadMessage(f"topic {topic[:200]!r} is not {ROOT}/RUN/AREA/DER/WHAT")
    check_address(*levels[2:5])
    return Address(*levels[2:])


# Checks, run when a message is made and when it is read


def _check_size(payload: bytes) -> None:
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise BadMessage(f"{len(payload)} bytes are more than the {MAX_PAYLOAD_BYTES} of a message")


def check_finite(**values: float | None) -> None:
    """Refuse numbers that are none."""
    for name, value in values.items():
        if value is not None and not isfinite(value):
            raise BadMessage(f"{name} is {value}; leave out what is not known")


def check_measured(**values: float | None) -> None:
    """Refuse what nobody can have measured: its sums and squares may be no numbers any more."""
    for name, value in values.items():
        if value is not None and not abs(value) <= LARGEST:
            raise BadMessage(f"{name} is {value}; leave out what is not known, and what nothing can be")


def check_numbers(**values: int) -> None:
    """Refuse integers that other readers of JSON would round."""
    for name, value in values.items():
        if not 0 <= value <= _EXACT_INTEGER:
            raise BadMessage(f"{name} {value} is not between 0 and 2^53")


def check_ttl(ttl_ms: int) -> None:
    """Refuse a time to live that is none, or longer than anybody means."""
    if not 0 < ttl_ms <= MAX_TTL_MS:
        raise BadMessage(f"ttl_ms {ttl_ms} must be positive, and at most {MAX_TTL_MS}, 366 days")


def check_times(**values: datetime) -> None:
    """Refuse times that are not in UTC, or in none of `YEARS`."""
    first, last = YEARS
    for name, value in values.items():
        if not first <= value.year <= last:
            raise BadMessage(f"{name} {value.isoformat()} is not in the years {first} to {last}")
        if value.utcoffset() != timedelta(0):
            raise BadMessage(f"{name} {value.isoformat()} is not in UTC; write it with Z")


def utc(what: str, time: datetime) -> datetime:
    """The same instant in UTC, as it is sent.

    Raises:
        BadMessage: a time without its zone.
    """
    if time.tzinfo is None:
        raise BadMessage(f"{what} {time} has no time zone")
    return time.astimezone(UTC)
