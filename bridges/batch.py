"""Batches: one message for many devices behind one gateway, in parts where they need them.

| topic                                | payload    | retained | from       | to         |
|--------------------------------------|------------|----------|------------|------------|
| `{run}/{area}/{gateway}/batch/{part}`| `Batch`    | yes      | controller | gateway    |
| `{run}/{area}/{gateway}/batch-ack`   | `BatchAck` | no       | gateway    | controller |
| `{run}/{area}/{gateway}/batch-meas`  | `BatchMeas`| no       | gateway    | controller |

Each part stands for itself: it repeats what its devices were told and still holds, and a device is always
told in the same part. So a part that is lost or late does no harm to the devices of others, and what is
retained is all that a gateway which comes back has to know. What a device knows already it answers again.

A box is four limits; any other region is half-spaces, as in `bridges.wire`. `origin`, `why` and `checked` are
left out: they bind nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from typing import Annotated, Literal, TypeAlias

import msgspec
import numpy as np

from bridges import wire
from bridges.instruction import to_half_spaces, to_region
from bridges.wire import MAX_LATER, ROOT, BadMessage, HalfSpaces
from controllers.contract import Instruction, Setpoint, Span
from controllers.devices import AXES
from controllers.region import Region
from controllers.register import Regime

BATCH: Literal["gridpace.batch.v1"] = "gridpace.batch.v1"
MAX_PARTS = 1000
_MICROSECOND = timedelta(microseconds=1)

Limits: TypeAlias = tuple[float | None, float | None, float | None, float | None]
"""Least and greatest `p_mw`, least and greatest `q_mvar`; null: no limit."""
Shape: TypeAlias = Limits | HalfSpaces


class Piece(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """What holds from some time on, until the next piece or the end."""

    after_us: int
    """microseconds after `valid_from`"""
    region: Shape | None
    setpoint: tuple[float | None, float | None] | None = None
    """p_mw, q_mvar; an axis that is null is left to the device"""

    def __post_init__(self) -> None:
        if isinstance(self.region, tuple):
            _check_limits(self.region)
        if self.setpoint is not None:
            wire.Target(*self.setpoint)


class Told(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """What one device is told: a schedule of one piece or more."""

    der: str
    pieces: tuple[Piece, ...]
    fallback: Shape

    def __post_init__(self) -> None:
        wire.check_name("der", self.der)
        if isinstance(self.fallback, tuple):
            _check_default(self.fallback)
        if len(self.pieces) == 1 and self.pieces[0].after_us == 0:
            return
        if not 1 <= len(self.pieces) <= MAX_LATER + 1:
            raise BadMessage(f"{self.der}: {len(self.pieces)} pieces; 1 to {MAX_LATER + 1} are read")
        starts = [piece.after_us for piece in self.pieces]
        if starts[0] != 0 or any(a >= b for a, b in pairwise(starts)):
            raise BadMessage(f"{self.der}: pieces begin after {starts} us; the first is 0, each one later")


class Group(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was told at the same time, for the same time."""

    seq: int
    issued: datetime
    valid_from: datetime
    valid_until: datetime
    ttl_ms: int
    told: tuple[Told, ...]

    def __post_init__(self) -> None:
        wire.check_numbers(seq=self.seq, ttl_ms=self.ttl_ms)
        wire.check_times(issued=self.issued, valid_from=self.valid_from, valid_until=self.valid_until)
        wire.check_ttl(self.ttl_ms)
        lasts_us = (self.valid_until - self.valid_from) // _MICROSECOND
        if not lasts_us > 0:
            raise BadMessage(f"valid_until {self.valid_until} is not after valid_from {self.valid_from}")
        for one in self.told:
            if one.pieces[-1].after_us >= lasts_us:
                raise BadMessage(f"{one.der}: a piece begins at valid_until or later")


class Batch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of what the devices behind a gateway are told."""

    schema: Literal["gridpace.batch.v1"]
    run: str
    area: str
    gateway: str
    part: int
    sign: Literal["injection_positive"]
    epoch: int
    groups: tuple[Group, ...]

    def __post_init__(self) -> None:
        wire.check_address(self.run, self.area, self.gateway)
        wire.check_numbers(epoch=self.epoch)
        _check_part(self.part)


class Reading(msgspec.Struct, frozen=True, array_like=True):
    """What one device measures. Missing is missing, never zero."""

    der: str
    p_mw: float
    q_mvar: float
    v_pu: float | None = None
    e_mwh: float | None = None
    state: Regime | None = None

    def __post_init__(self) -> None:
        wire.check_name("der", self.der)
        wire.check_measured(p_mw=self.p_mw, q_mvar=self.q_mvar, v_pu=self.v_pu, e_mwh=self.e_mwh)


class BatchMeas(msgspec.Struct, frozen=True, kw_only=True):
    """What the devices behind a gateway measure."""

    time: datetime
    readings: Annotated[tuple[Reading, ...], msgspec.Meta(min_length=1)]

    def __post_init__(self) -> None:
        wire.check_times(time=self.time)


# Topics


def batch_topic(run: str, area: str, gateway: str, part: int) -> str:
    """The topic of one part of a gateway's instructions."""
    wire.check_address(run, area, gateway)
    return f"{ROOT}/{run}/{area}/{gateway}/batch/{_check_part(part)}"


def batch_pattern(run: str, area: str, gateway: str) -> str:
    """The subscription for all of them."""
    wire.check_address(run, area, gateway)
    return f"{ROOT}/{run}/{area}/{gateway}/batch/+"


# There and back


def to_plain(instruction: Instruction) -> tuple[object, ...]:
    """What is sent to one device, the fields of `Told`; not checked again, since thousands leave."""
    first = instruction.valid_from
    region = None if instruction.region is None else to_shape(instruction.region)
    if not instruction.later:
        pieces: tuple[object, ...] = ((0, region, _pair(instruction.setpoint)),)
    else:
        pieces = tuple(
            (
                (span.start - first) // _MICROSECOND,
                None if span.region is None else to_shape(span.region),
                _pair(span.setpoint),
            )
            for span in instruction.spans
        )
    return (instruction.device, pieces, _default(instruction.fallback))


def to_instructions(batch: Batch) -> list[tuple[Instruction, float]]:
    """What the devices were told, and for how many seconds from now on at most.

    Raises:
        BadMessage: a region that no point can satisfy.
    """
    return [
        (_instruction(batch.epoch, group, one, region), group.ttl_ms / 1e3)
        for group in batch.groups
        for one, region in zip(group.told, _firsts(group.told), strict=True)
    ]


def _instruction(epoch: int, group: Group, told: Told, region: Region | None) -> Instruction:
    return Instruction(
        device=told.der,
        epoch=epoch,
        seq=group.seq,
        issued_at=group.issued,
        valid_from=group.valid_from,
        valid_until=group.valid_until,
        region=region,
        setpoint=_setpoint(told.pieces[0].setpoint),
        fallback=_fallback(told.fallback),
        later=() if len(told.pieces) == 1 else _later(group, told.pieces[1:]),
    )


def _later(group: Group, following: Sequence[Piece]) -> tuple[Span, ...]:
    starts = [group.valid_from + piece.after_us * _MICROSECOND for piece in following]
    return tuple(
        Span(start, end, None if p.region is None else from_shape(p.region), _setpoint(p.setpoint))
        for (start, end), p in zip(pairwise([*starts, group.valid_until]), following, strict=True)
    )


def _firsts(told: Sequence[Told]) -> list[Region | None]:
    """Where each device must stay first. Boxes, as thousands of devices have them, share one table."""
    shapes = [one.pieces[0].region for one in told]
    limits = [shape for shape in shapes if isinstance(shape, tuple) and None not in shape]
    table = np.array(limits, dtype=float).reshape(-1, 2, 2)
    boxes = iter(Region.boxes(AXES, table))
    return [
        None if shape is None
        else next(boxes) if isinstance(shape, tuple) and None not in shape
        else from_shape(shape)
        for shape in shapes
    ]  # fmt: skip


def to_shape(region: Region) -> Shape:
    """A region as it is sent: a box with a point as its tightest limits, to the last bit."""
    if region.axes != AXES:
        return to_half_spaces(region)
    if region.A is _BOX:
        high_p, less_p, high_q, less_q = region.b.tolist()
        return (0.0 - less_p, high_p, 0.0 - less_q, high_q)
    limits: list[float | None] = [None, None, None, None]
    for (p, q), b in zip(region.A.tolist(), region.b.tolist(), strict=True):
        if (p, q) not in _SIDES:
            return to_half_spaces(region)
        side, sign = _SIDES[p, q]
        value, before = b if sign > 0 else 0.0 - b, limits[side]
        if before is None or sign * value < sign * before:
            limits[side] = value
    shape = limits[0], limits[1], limits[2], limits[3]
    try:
        _check_limits(shape)
    except BadMessage:  # a box without a point
        return to_half_spaces(region)
    return shape


_SIDES = {(1.0, 0.0): (1, 1), (-1.0, 0.0): (0, -1), (0.0, 1.0): (3, 1), (0.0, -1.0): (2, -1)}


def from_shape(shape: Shape) -> Region:
    """A region as it was meant.

    Raises:
        BadMessage: a row that is no half space.
    """
    if isinstance(shape, HalfSpaces):
        return to_region(shape)
    low_p, high_p, low_q, high_q = shape
    if low_p is not None and high_p is not None and low_q is not None and high_q is not None:
        return Region.box(p_mw=(low_p, high_p), q_mvar=(low_q, high_q))
    rows = [(row, sign * value) for row, (side, sign) in _SIDES.items() if (value := shape[side]) is not None]
    return to_region(HalfSpaces(AXES, tuple(row for row, _ in rows), tuple(limit for _, limit in rows)))


_fallback = lru_cache(maxsize=100_000)(from_shape)
_default = lru_cache(maxsize=100_000)(to_shape)  # of a device, the same in each step
_BOX = Region.box(p_mw=(0.0, 0.0), q_mvar=(0.0, 0.0)).A
"""The rows of every `Region.box` over P and Q: the same object."""


def _pair(setpoint: Setpoint | None) -> tuple[float | None, float | None] | None:
    return None if setpoint is None else (setpoint.p_mw, setpoint.q_mvar)


def _setpoint(pair: tuple[float | None, float | None] | None) -> Setpoint | None:
    return None if pair is None else Setpoint(p_mw=pair[0], q_mvar=pair[1])


def _check_limits(limits: Limits) -> None:
    least, most, least_q, most_q = limits
    if least is not None and most is not None and least_q is not None and most_q is not None:
        bound = wire.LARGEST
        if -bound <= least <= most <= bound and -bound <= least_q <= most_q <= bound:
            return
    for low, high in (limits[:2], limits[2:]):
        for limit in (low, high):
            if limit is not None and not abs(limit) <= wire.LARGEST:
                raise BadMessage(f"limits {limits}: one is not between -1e12 and 1e12; null is no limit")
        if low is not None and high is not None and low > high:
            raise BadMessage(f"limits {limits}: the lower {low:g} is above the upper {high:g}")


_check_default = lru_cache(maxsize=100_000)(_check_limits)  # of a device, the same in each step


def _check_part(part: int) -> int:
    if not 0 <= part < MAX_PARTS:
        raise BadMessage(f"part {part} is not between 0 and {MAX_PARTS - 1}")
    return part


def decode_measured(payload: bytes) -> list[tuple[str, wire.Meas]]:
    """(device, what it measures) of a gateway's devices.

    Raises:
        BadMessage: as `wire.decode`.
    """
    said = wire.decode(payload, BatchMeas)
    return [(one.der, meas_of(said.time, one)) for one in said.readings]


def meas_of(time: datetime, one: Reading) -> wire.Meas:
    """One of the readings as a message of its own."""
    return wire.Meas(
        time=time, p_mw=one.p_mw, q_mvar=one.q_mvar, v_pu=one.v_pu, e_mwh=one.e_mwh, state=one.state
    )


def encode_measured(time: datetime, readings: Iterable[Reading], at_once: int = 250) -> list[bytes]:
    """What a gateway's devices measure, in as many messages as they need."""
    rest, payloads = list(readings), []
    while rest:
        payloads.append(wire.encode(BatchMeas(time=time, readings=tuple(rest[:at_once]))))
        rest = rest[at_once:]
    return payloads
