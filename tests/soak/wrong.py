"""R5: nothing wrong is ever applied, whatever arrives: old, stale, twice, out of order, or no message at all.

The checker reads the devices' own records and what was sent, with Python's json alone: it shares no code with
devices, register or wire format, but for `tests.checker`, which was written from docs/wire.md. Nothing that a
device says of itself is believed but its point, and whose instruction it says that it obeys: the point has to
be in what was told under that number, or in the fallback that was told with it, from its line in the record
until the next one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from math import hypot
from typing import Any

from tests import checker
from tests.soak.figure import Figure, at_least, counted

Key = tuple[str, int, int]
"""Device, epoch, number."""
Region = Mapping[str, Any]
"""axes, A, b"""
GRACE = timedelta(milliseconds=1)
"""Times on the wire have milliseconds."""
LATE = timedelta(seconds=0.5)
"""How long a point may be held after something else has come into force; the machine is busy."""
NEAR = 1e-6
"""MW or Mvar outside that the arithmetic is guilty of."""
SIDES = ((-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0))
"""Rows of a box: least and greatest active power, least and greatest reactive power."""
WRONG = (
    *("out-of-order", "after-validity", "never-sent", "other-region"),
    *("outside", "outside-fallback", "superseded", "held-after-validity"),
)
"""What is looked for."""


@dataclass(frozen=True)
class Sent:
    """What a device was told, as it was on the wire."""

    valid_from: datetime
    valid_until: datetime
    spans: tuple[tuple[datetime, Region | None], ...]
    """from when on, and where it has to be then; `None`: where it can"""
    fallback: Region

    def region(self, at: datetime) -> Region | None:
        """Where it has to be at an instant of the validity."""
        begun = [region for start, region in self.spans if start <= at]
        return begun[-1] if begun else self.spans[0][1]


def sent(messages: Iterable[tuple[str, bytes]]) -> dict[Key, Sent]:
    """All that was told in messages that are valid, by device and number; the last word counts.

    Args:
        messages: topic and payload of everything that anybody has published.
    """
    found: dict[Key, Sent] = {}
    for topic, payload in messages:
        if topic.endswith("/setpoint") and checker.valid("setpoint", payload):
            x = json.loads(payload)
            if x["der"] == topic.split("/")[-2]:
                found[x["der"], x["epoch"], x["seq"]] = _single(x)
        elif "/batch/" in topic and checker.valid("batch", payload):
            x = json.loads(payload)
            for group in x["groups"]:
                for name, pieces, fallback in group["told"]:
                    found[name, x["epoch"], group["seq"]] = _behind(group, pieces, fallback)
    return found


def _single(x: Mapping[str, Any]) -> Sent:
    begins, ends = _instant(x["valid_from"]), _instant(x["valid_until"])
    later = [(_instant(span["start"]), span["region"]) for span in x.get("later") or ()]
    return Sent(begins, ends, ((begins, x["region"]), *later), x["fallback"])


def _behind(group: Mapping[str, Any], pieces: Iterable[Any], fallback: Any) -> Sent:
    """What a gateway's message says to one device."""
    begins, ends = _instant(group["valid_from"]), _instant(group["valid_until"])
    spans = tuple((begins + timedelta(microseconds=one[0]), _half_spaces(one[1])) for one in pieces)
    home = _half_spaces(fallback)
    assert home is not None  # `tests.checker` takes no other
    return Sent(begins, ends, spans, home)


def _half_spaces(shape: Any) -> Region | None:
    """A region that may be written as the four limits of a box, null where there is none."""
    if shape is None or isinstance(shape, dict):
        return shape
    rows = [(side, limit * sum(side)) for side, limit in zip(SIDES, shape, strict=True) if limit is not None]
    return {"axes": ("p_mw", "q_mvar"), "A": [a for a, _ in rows], "b": [b for _, b in rows]}


HOME: Region = {"axes": ("p_mw", "q_mvar"), "A": SIDES, "b": (0.0,) * 4}
"""Where a device is that was told nothing: it stands still."""


def _instant(text: str) -> datetime:
    return datetime.fromisoformat(text)


def limits(region: Region) -> tuple[float, float]:
    """Of active power, of a box: least and greatest."""
    p, low, high = region["axes"].index("p_mw"), float("-inf"), float("inf")
    for row, b in zip(region["A"], region["b"], strict=True):
        if row[p] > 0 and not any(c for i, c in enumerate(row) if i != p):
            high = min(high, b / row[p])
        elif row[p] < 0 and not any(c for i, c in enumerate(row) if i != p):
            low = max(low, b / row[p])
    return low, high


def outside(region: Region | None, line: Mapping[str, Any]) -> bool:
    """Whether a point is outside a region by more than rounding."""
    if region is None:
        return False
    point = [line[axis] for axis in region["axes"]]
    return any(
        sum(a * x for a, x in zip(row, point, strict=True)) - b > NEAR * hypot(*row)
        for row, b in zip(region["A"], region["b"], strict=True)
    )


@dataclass
class Judged:
    """What devices have done."""

    applied: int = 0
    held: int = 0
    """points held under an instruction"""
    refused: Counter[str] = field(default_factory=Counter)
    """by code"""
    wrong: Counter[str] = field(default_factory=Counter)
    """see `WRONG`"""


def judge(
    lines: Iterable[Mapping[str, Any]],
    told: Mapping[Key, Sent],
    *,
    home: Region = HOME,
    until: datetime | None = None,
) -> Judged:
    """Look at every line of the devices' records, in the order in which they were written.

    Args:
        lines: as `scenarios.device.Book` writes them.
        told: see `sent`.
        home: what devices obey that were told nothing.
        until: when the last points end; with their lines if not given.
    """
    judges: dict[str, _Device] = {}
    found = Judged()
    for line in lines:
        device = line["device"]
        one = judges.setdefault(device, _Device(device, told, home, found))
        if line["what"] == "answer":
            one.answers(line)
        else:
            one.holds(line)
    for one in judges.values():
        one.ends(until)
    found.wrong = +found.wrong
    return found


@dataclass
class _Device:
    """What is known of one device."""

    name: str
    told: Mapping[Key, Sent]
    home: Region
    found: Judged
    newest: tuple[int, int] = (-1, -1)
    """that it has applied"""
    applied_at: datetime | None = None
    held: Mapping[str, Any] | None = None
    """its last point"""

    def answers(self, line: Mapping[str, Any]) -> None:
        if line["state"] == "refused":
            self.found.refused[line["code"]] += 1
        if line["state"] != "applied":
            return
        number, at = (line["epoch"], line["seq"]), _instant(line["time"])
        self.found.applied += 1
        self.found.wrong["out-of-order"] += number <= self.newest
        if number > self.newest:
            self.newest, self.applied_at = number, at
        one = self.told.get((self.name, *number))
        self.found.wrong["never-sent"] += one is None
        self.found.wrong["after-validity"] += one is not None and at > one.valid_until + GRACE

    def holds(self, line: Mapping[str, Any]) -> None:
        self.ends(_instant(line["time"]))
        self.held = line
        number, wrong = self._number(line), self.found.wrong
        one = None if number is None else self.told.get((self.name, *number))
        if number is not None and one is None:
            wrong["never-sent"] += 1
        elif line["regime"] not in ("controlled", "limited"):
            wrong["outside-fallback"] += outside(self.home if one is None else one.fallback, line)
        elif one is None:
            wrong["never-sent"] += 1
        else:
            self.found.held += 1
            at = _instant(line["time"])
            wrong["superseded"] += number is not None and number < self.newest
            wrong["held-after-validity"] += at > one.valid_until + GRACE
            wrong["outside"] += all(outside(one.region(moment), line) for moment in (at, at - GRACE))
            wrong["other-region"] += _other(line["region"], one.region(at), one.region(at - GRACE))

    def ends(self, end: datetime | None) -> None:
        """The last point is over: was it right as long as it was held?"""
        line, self.held = self.held, None
        if line is None or end is None:
            return
        begun, number = _instant(line["time"]), self._number(line)
        for moment, region, what in self._changes(number, begun, end):
            if begun < moment and moment + LATE < end and outside(region, line):
                self.found.wrong[what] += 1
                return  # it is one point

    def _changes(
        self, number: tuple[int, int] | None, begun: datetime, end: datetime
    ) -> Iterator[tuple[datetime, Region | None, str]]:
        """From when on another region counts, which one, and what it is to be outside of it."""
        newer = self.told.get((self.name, *self.newest))
        if newer is not None and self.applied_at is not None and self.newest > (number or (-1, -1)):
            yield self.applied_at, newer.region(self.applied_at), "superseded"
        elif number is not None and (one := self.told.get((self.name, *number))) is not None:
            yield from ((start, region, "outside") for start, region in one.spans if start < one.valid_until)
            yield one.valid_until, one.fallback, "held-after-validity"

    def _number(self, line: Mapping[str, Any]) -> tuple[int, int] | None:
        return None if line["seq"] is None else (line["epoch"], line["seq"])


def _other(claimed: Region | None, *told: Region | None) -> bool:
    """Whether the region that a device says it obeys is none of those that it was told, by active power."""
    if claimed is None:
        return None not in told
    return not any(
        one is not None and sum(abs(a - b) for a, b in zip(limits(claimed), limits(one), strict=True)) < 1e-9
        for one in told
    )


async def soak(short: bool) -> list[Figure]:
    """R5: bad weather for messages and forged ones among them; all that devices do is looked at."""
    from tests.soak.chaos import stormy

    devices, steps = (60, 20) if short else (1000, 300)
    storm = await stormy(devices, steps, seed=5)
    found = judge(storm.lines, sent(storm.messages), until=storm.ended)
    return [
        at_least("R5", "setpoints applied, each looked at", devices * steps // 4, found.applied),
        at_least("R5", "refused: old, stale, malformed", devices, found.refused.total()),
        at_least("R5", "forged messages sent", steps, storm.forged),
        *(counted("R5", f"applied or held {name.replace('-', ' ')}", 0, found.wrong[name]) for name in WRONG),
    ]
