"""LatestValues: which payloads still have to reach the broker, the newest of each topic.

An entry waits in `to_send`, then is in flight, then is acknowledged. It counts as pending from
`put` to its acknowledgement. What was acknowledged and is retained is kept: a broker that comes
back may have lost it ("acknowledged" does not mean durable), so it gets it again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

NO_MATCHING_SUBSCRIBERS = 16
FIRST_ERROR = 128


@dataclass(slots=True, eq=False)
class Entry:
    """One payload on its way."""

    topic: str
    payload: bytes
    retain: bool
    deadline: float
    """on the table's clock; infinite if it never expires"""
    number: int
    """grows with every entry of a table"""


class LatestValues:
    """The table of a bus. All operations take constant time, except those on a reconnection."""

    def __init__(self, counts: Counter[str], clock: Callable[[], float]) -> None:
        self._counts = counts
        self._clock = clock
        self._number = 0
        self._to_send: dict[str, Entry] = {}
        self._in_flight: dict[int, Entry] = {}
        self._pending: dict[str, Entry] = {}  # in the order of their numbers
        self._retained: dict[str, Entry] = {}

    @property
    def newest(self) -> int:
        """Number of the newest entry."""
        return self._number

    def waiting(self) -> int:
        """How many entries are to be sent or in flight."""
        return len(self._to_send) + len(self._in_flight)

    def put(self, topic: str, payload: bytes, retain: bool, ttl_s: float | None) -> None:
        """Replace the payload of a topic."""
        self._counts["published"] += 1
        deadline = inf if ttl_s is None else self._clock() + ttl_s
        if self._to_send.pop(topic, None) is not None:
            self._counts["conflated"] += 1
        if retain:
            self._retained.pop(topic, None)
        self._enter(topic, payload, retain, deadline)

    def take(self) -> tuple[Entry, float] | None:
        """The next entry to send and the seconds that it has left; it is in flight from now on."""
        now = self._clock()
        while self._to_send:
            topic = next(iter(self._to_send))
            entry = self._to_send.pop(topic)
            if entry.deadline > now:
                self._in_flight[entry.number] = entry
                return entry, entry.deadline - now
            self._expire(entry)
        return None

    def acknowledge(self, entry: Entry, reason: int = 0) -> None:
        """The broker has answered with an MQTT 5 reason code (0 where the protocol has none)."""
        if self._in_flight.pop(entry.number, None) is None:
            return
        self._counts["refused" if reason >= FIRST_ERROR else "acknowledged"] += 1
        if reason == NO_MATCHING_SUBSCRIBERS:
            self._counts["unheard"] += 1
        if self._pending.get(entry.topic) is not entry:
            return  # superseded in flight; the newer one has its own acknowledgement
        del self._pending[entry.topic]
        if entry.retain and entry.payload and reason < FIRST_ERROR:
            self._retained[entry.topic] = entry

    def lost(self) -> None:
        """The connection is gone: what was in flight goes out again, unless superseded."""
        again: dict[str, Entry] = {}
        for entry in self._in_flight.values():
            if self._pending.get(entry.topic) is entry:
                again[entry.topic] = entry
            else:
                self._counts["conflated"] += 1
        self._in_flight.clear()
        self._to_send = again | self._to_send

    def snapshot(self) -> None:
        """A broker is back: send it every retained entry that is still valid."""
        now = self._clock()
        retained, self._retained = self._retained, {}
        for entry in retained.values():
            if entry.deadline > now and entry.topic not in self._pending:
                self._counts["resent"] += 1
                self._enter(entry.topic, entry.payload, True, entry.deadline)

    def settled(self, number: int) -> bool:
        """Whether no entry up to `number` is pending."""
        return not self._pending or next(iter(self._pending.values())).number > number

    def expire(self) -> float:
        """Drop what waits in vain; seconds until the next one does (infinite if none will)."""
        now = self._clock()
        for entry in [e for e in self._to_send.values() if e.deadline <= now]:
            del self._to_send[entry.topic]
            self._expire(entry)
        return min((e.deadline for e in self._to_send.values()), default=inf) - now

    def _enter(self, topic: str, payload: bytes, retain: bool, deadline: float) -> None:
        self._number += 1
        entry = Entry(topic, payload, retain, deadline, self._number)
        self._pending.pop(topic, None)
        self._pending[topic] = self._to_send[topic] = entry

    def _expire(self, entry: Entry) -> None:
        self._counts["expired"] += 1
        if self._pending.get(entry.topic) is entry:
            del self._pending[entry.topic]
