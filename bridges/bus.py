"""Bus: what the rest of gridpace knows of messaging. The same words in memory and over MQTT."""

from __future__ import annotations

import re
from collections import Counter, deque
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

MAX_PAYLOAD_BYTES = 65_000
"""Largest payload: a packet of 64 KiB, the bound set at the broker, less its header and topic."""


class BusUnreachable(Exception):
    """The first connection failed. Later losses are counted and healed, never raised."""

    def __init__(self, url: str, why: str, advice: str) -> None:
        super().__init__(f"cannot connect to {shown(url)}: {why}. {advice}")
        self.url = url
        self.why = why
        self.advice = advice


_CREDENTIALS = re.compile(r"^(?P<scheme>[a-z][a-z0-9+.-]*://)?.*@", re.IGNORECASE | re.DOTALL)
_QUERY = re.compile(r"(?P<mark>[?#]).*", re.DOTALL)


def shown(url: str) -> str:
    """A URL as it may be printed or logged: hidden is all that may be a secret, be the URL well formed or
    not: what is before the last @, and what is behind a ? or a #."""
    return _QUERY.sub(r"\g<mark>***", _CREDENTIALS.sub(r"\g<scheme>***@", url))


@dataclass(frozen=True, slots=True)
class Message:
    """What arrived, or a last will."""

    topic: str
    payload: bytes
    retained: bool = field(default=False, compare=False)
    """whether the broker had kept it for whoever subscribes, maybe for long"""
    expires_s: float | None = field(default=None, compare=False)
    """seconds for which the broker would have kept it when it handed it over; `None`: it does not say"""


class Bus(Protocol):
    """Publishes the newest payload of each topic and collects what arrives.

    Everything runs in the event loop's thread. A topic is published either retained or not, always
    with QoS 1. Entering the context connects, leaving it disconnects.
    """

    counts: Counter[str]
    """What happened so far:

    | count        | meaning                                                                         |
    |--------------|---------------------------------------------------------------------------------|
    | published    | calls of `publish`                                                              |
    | resent       | retained messages sent again after a reconnection                               |
    | acknowledged | accepted by the broker                                                          |
    | refused      | refused by the broker (reason code 128 or more)                                 |
    | conflated    | replaced by a newer payload before they were acknowledged or sent               |
    | expired      | never sent because their time had run out                                       |
    | unheard      | acknowledged, but nobody subscribes to them (reason code 16, MQTT 5)            |
    | received     | messages that arrived                                                           |
    | overflowed   | of these, dropped unread because the latch was full: see `Latch`                |
    | malformed    | messages that were not what their topic promises                                |
    | terse        | schedules too long for a message, sent without the later spans' certificates    |
    | shortened    | schedules too long for a message, of which the first spans were sent            |
    | disconnects  | connections lost                                                                |
    | reconnects   | connections regained                                                            |
    | noise        | log entries about lost connections that asyncio would have made, and had no use |

    `published + resent = acknowledged + refused + conflated + expired + still waiting`.
    """

    @property
    def connected(self) -> bool:
        """Whether the broker is there, as far as is known."""
        ...

    def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, ttl_s: float | None = None
    ) -> None:
        """Put the newest payload of `topic` into the table from which it is sent; never blocks.

        Args:
            topic: without wildcards.
            payload: at most `MAX_PAYLOAD_BYTES`.
            retain: the broker keeps it for later subscribers, and gets it again on a reconnection.
            ttl_s: seconds after which it is worthless; `None`: never.

        Raises:
            ValueError: a topic with wildcards, a payload too large, a time to live not positive.
        """
        ...

    async def flush(self, timeout_s: float) -> bool:
        """Wait until the broker has acknowledged everything published so far, or it has expired or
        was superseded. False if the time ran out; nothing is lost, it goes out when it can."""
        ...

    def subscribe(self, pattern: str) -> None:
        """Collect what arrives on topics matching `pattern` (`+` one level, `#` the rest), from now
        or from the next connection on.

        Raises:
            ValueError: not a valid pattern.
        """
        ...

    def received(self) -> list[Message]:
        """Take what arrived since the last call, in order of arrival."""
        ...

    async def arrived(self, timeout_s: float) -> bool:
        """Wait until there is something to take; False if the time ran out."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Latch:
    """The messages that arrived and were not taken yet (a process image), `size` at most.

    When it is full, the oldest one goes of the topic that has the most: so whoever floods the latch pushes
    out his own messages, and of each topic the newest state is kept.
    """

    def __init__(self, counts: Counter[str], size: int) -> None:
        if size < 1:
            raise ValueError(f"latch: size {size} must be at least 1")
        self._counts, self._size = counts, size
        self._clear()

    def __len__(self) -> int:
        return len(self._messages)

    def put(self, message: Message) -> None:
        """Keep a message."""
        self._counts["received"] += 1
        if len(self._messages) == self._size:
            self._counts["overflowed"] += 1
            self._make_room(message.topic)
        numbers = self._numbers.setdefault(message.topic, deque())
        self._number += 1
        self._messages[self._number] = message
        numbers.append(self._number)
        self._rank(message.topic, len(numbers) - 1, len(numbers))

    def take(self) -> list[Message]:
        """Empty the latch, in order of arrival."""
        messages = list(self._messages.values())
        self._clear()
        return messages

    def _clear(self) -> None:
        self._number = 0
        self._messages: dict[int, Message] = {}  # by the number of its arrival
        self._numbers: dict[str, deque[int]] = {}  # by topic
        self._topics: list[dict[str, None]] = [{}]  # by how many messages they have; the last is not empty

    def _make_room(self, topic: str) -> None:
        """Drop a message; of several topics that have the most, rather of that which is to have one more."""
        most = self._topics[-1]
        greedy = topic if topic in most else next(iter(most))
        numbers = self._numbers[greedy]
        del self._messages[numbers.popleft()]
        self._rank(greedy, len(numbers) + 1, len(numbers))
        if not numbers:
            del self._numbers[greedy]

    def _rank(self, topic: str, before: int, after: int) -> None:
        """Note how many messages a topic has now."""
        self._topics[before].pop(topic, None)
        if after == len(self._topics):
            self._topics.append({})
        if after:
            self._topics[after][topic] = None
        while len(self._topics) > 1 and not self._topics[-1]:
            self._topics.pop()


def check_publish(topic: str, payload: bytes, ttl_s: float | None) -> None:
    """Refuse what a broker would answer by closing the connection.

    Raises:
        ValueError: see `Bus.publish`.
    """
    if not topic or len(topic.encode()) > 65_535 or any(c in topic for c in "+#\0"):
        raise ValueError(f"publish: {topic!r} is not a topic; it must have a character and no + # NUL")
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise ValueError(f"publish to {topic}: {len(payload)} bytes, at most {MAX_PAYLOAD_BYTES} are sent")
    if ttl_s is not None and not ttl_s > 0:
        raise ValueError(f"publish to {topic}: ttl_s={ttl_s} must be positive; leave it out for no limit")


def check_pattern(pattern: str) -> None:
    """Refuse a subscription that a broker would refuse.

    Raises:
        ValueError: `+` or `#` beside other characters of a level, `#` not last, or nothing.
    """
    levels = pattern.split("/")
    wrong = any(("+" in x or "#" in x) and len(x) > 1 for x in levels) or "#" in levels[:-1]
    if not pattern or wrong or "\0" in pattern:
        raise ValueError(f"subscribe: {pattern!r} is no pattern; + and # stand alone in a level, # last")


def matches(pattern: str, topic: str) -> bool:
    """Whether a topic belongs to a subscription, by the rules of MQTT 5.0, section 4.7."""
    wanted, levels = pattern.split("/"), topic.split("/")
    if topic.startswith("$") and wanted[0] in ("+", "#"):
        return False
    for i, level in enumerate(wanted):
        if level == "#":
            return True
        if i >= len(levels) or level not in ("+", levels[i]):
            return False
    return len(wanted) == len(levels)
