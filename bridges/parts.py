"""Parts: the messages for one gateway, and what each of them says."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache
from math import ceil, inf
from typing import Any, NamedTuple, TypeAlias

import msgspec

from bridges import wire
from bridges.batch import BATCH, batch_topic, to_plain
from bridges.bus import MAX_PAYLOAD_BYTES
from bridges.instruction import shortened
from bridges.wire import BadMessage
from controllers.contract import Instruction

ROOM = 48_000
"""Bytes of instructions with which a part is filled; the rest is for what grows."""
_MILLISECOND = timedelta(milliseconds=1)
_encode = msgspec.json.Encoder().encode

Wall: TypeAlias = Callable[[datetime], datetime]


@dataclass(frozen=True, slots=True)
class Sent:
    """One message."""

    topic: str
    payload: bytes
    ttl_s: float | None


class _Head(NamedTuple):
    """What the instructions of a group share."""

    seq: int
    issued: datetime
    valid_from: datetime
    valid_until: datetime
    ttl_ms: int


class Parts:
    """Which device is told in which part, and what.

    Args:
        run, area, gateway, epoch: as in the messages.

    Raises:
        BadMessage: a name that cannot be in a topic.
    """

    def __init__(self, *, run: str, area: str, gateway: str, epoch: int) -> None:
        wire.check_address(run, area, gateway)
        self._run, self._area, self._gateway, self._epoch = run, area, gateway, epoch
        self._part_of: dict[str, int] = {}
        self._parts: list[dict[str, tuple[_Head, Any]]] = []
        self._filled = 0  # bytes in the last part, about

    def __contains__(self, der: object) -> bool:
        """Whether a device is told through this gateway."""
        return der in self._part_of

    def put(self, instructions: Iterable[tuple[Instruction, float]], wall: Wall | None = None) -> list[Sent]:
        """The messages that tell devices something new.

        Args:
            instructions: (instruction, seconds for which it lives from now on).
            wall: turns the time of the simulation into that of the devices; by default the same.

        Raises:
            BadMessage: an instruction that cannot be sent; then nothing is.
            ValueError: one of another epoch.
        """

        @cache  # the instructions of a step share their times
        def stamp(time: datetime) -> datetime:
            return wire.utc("batch:", time if wall is None else wall(time))

        @cache
        def head(seq: int, issued: datetime, begins: datetime, ends: datetime, ttl_s: float) -> _Head:
            return _Head(seq, stamp(issued), stamp(begins), stamp(ends), ceil(ttl_s * 1000))

        new = {told.device: self._entry(told, ttl_s, stamp, head) for told, ttl_s in instructions}
        if not new:
            return []
        now = max(head.issued for head, _ in new.values())
        touched: dict[int, None] = {}
        for der, entry in new.items():
            if (part := self._part_of.get(der)) is None:
                part = self._place(der, entry)
            self._parts[part][der] = entry
            touched[part] = None
        sent, waiting = [], list(touched)
        while waiting:
            part = waiting.pop(0)
            message, ttl_ms = self._message(part, now)
            if len(message) > MAX_PAYLOAD_BYTES:
                waiting = [part, self._split(part), *waiting]
                continue
            topic = batch_topic(self._run, self._area, self._gateway, part)
            sent.append(Sent(topic, message, ttl_ms / 1e3))
        return sent

    def withdraw(self, der: str) -> Sent | None:
        """A device's part without it; `None`: it was told nothing."""
        part = self._part_of.get(der)
        if part is None or self._parts[part].pop(der, None) is None:
            return None
        now = max((head.issued for head, _ in self._parts[part].values()), default=None)
        topic = batch_topic(self._run, self._area, self._gateway, part)
        if now is None:
            return Sent(topic, b"", None)
        message, ttl_ms = self._message(part, now)
        return Sent(topic, message, ttl_ms / 1e3)

    def _entry(
        self, told: Instruction, ttl_s: float, stamp: Wall, head: Callable[..., _Head]
    ) -> tuple[_Head, Any]:
        if told.epoch != self._epoch:
            raise ValueError(
                f"instruction {told.seq} for {told.device} is of epoch {told.epoch}, this publisher of "
                f"{self._epoch}; construct one for each epoch"
            )
        if not 0 < ttl_s < inf:
            raise BadMessage(f"instruction for {told.device}: ttl_s {ttl_s} must be positive and finite")
        if told.device not in self._part_of:
            wire.check_name("der", told.device)
        whole = told
        if told.later:
            told = _on_wall(told, stamp)
        plain = to_plain(told)
        # Some limits and numbers always fit.
        if told.later or len(told.fallback.b) > 4 or (told.region is not None and len(told.region.b) > 4):
            told = shortened(told, wire.MAX_LATER)
            while (size := len(_encode(plain := to_plain(told)))) > ROOM:
                if not told.later:
                    raise BadMessage(f"instruction for {told.device}: {size} bytes, {ROOM} are sent at most")
                told = shortened(told, len(told.later) * 7 // 8)
            if len(told.later) < len(whole.later):
                until = whole.spans[len(told.later)].end
                ttl_s *= (until - whole.issued_at) / (whole.valid_until - whole.issued_at)
                whole = replace(whole, valid_until=until)
        common = head(told.seq, whole.issued_at, whole.valid_from, whole.valid_until, ttl_s)
        if not common.valid_from < common.valid_until:
            raise BadMessage(
                f"instruction for {told.device}: valid_until {common.valid_until} is no later than "
                f"{common.valid_from}"
            )
        return common, plain

    def _place(self, der: str, entry: tuple[_Head, Any]) -> int:
        """The part of a device that was not told before."""
        size = len(_encode(entry[1]))
        if not self._parts or self._filled + size > ROOM:
            self._parts.append({})
            self._filled = 0
        self._filled += size
        self._part_of[der] = len(self._parts) - 1
        return len(self._parts) - 1

    def _split(self, part: int) -> int:
        """Move the second half of a part's devices to a new one; its number."""
        devices = list(self._parts[part])
        self._parts.append({})
        for der in devices[len(devices) // 2 :]:
            self._parts[-1][der] = self._parts[part].pop(der)
            self._part_of[der] = len(self._parts) - 1
        self._filled = ROOM
        return len(self._parts) - 1

    def _message(self, part: int, now: datetime) -> tuple[bytes, int]:
        """A part's message, and for how many milliseconds the broker is to keep it."""
        groups: dict[_Head, list[Any]] = {}
        over = []
        for der, (head, told) in self._parts[part].items():
            if (group := groups.get(head)) is None:
                left_ms = head.ttl_ms - max(0, ceil((now - head.issued) / _MILLISECOND))
                if head.valid_until <= now or left_ms <= 0:
                    over.append(der)
                    continue
                groups[head] = group = []
            group.append(told)
        for der in over:
            del self._parts[part][der]
        said = []
        for head, devices in groups.items():
            left_ms = head.ttl_ms - max(0, ceil((now - head.issued) / _MILLISECOND))
            said.append({**head._asdict(), "ttl_ms": left_ms, "told": devices})
        message = {
            "schema": BATCH,
            "run": self._run,
            "area": self._area,
            "gateway": self._gateway,
            "part": part,
            "sign": "injection_positive",
            "epoch": self._epoch,
            "groups": said,
        }
        return _encode(message), max((group["ttl_ms"] for group in said), default=1)


def _on_wall(told: Instruction, stamp: Wall) -> Instruction:
    """An instruction with the times of the devices, in UTC."""
    return replace(
        told,
        issued_at=stamp(told.issued_at),
        valid_from=stamp(told.valid_from),
        valid_until=stamp(told.valid_until),
        later=tuple(replace(span, start=stamp(span.start), end=stamp(span.end)) for span in told.later),
    )
