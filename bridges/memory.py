"""MemoryBus: the bus without a socket, for fast simulation and tests. Deterministic."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from types import TracebackType
from typing import Self

from bridges.bus import Latch, Message, check_pattern, check_publish, matches
from bridges.table import NO_MATCHING_SUBSCRIBERS, LatestValues


@dataclass(frozen=True, slots=True)
class _Retained:
    message: Message
    deadline: float


class MemoryHub:
    """The broker of several `MemoryBus`es.

    Args:
        clock: seconds that run out for messages with a time to live. Without a clock time stands
            still and nothing expires, so that a run does not depend on the speed of the machine.
    """

    def __init__(self, clock: Callable[[], float] = lambda: 0.0) -> None:
        self.clock = clock
        self.up = True
        self._buses: list[MemoryBus] = []
        self._retained: dict[str, _Retained] = {}

    def down(self) -> None:
        """Fail: everybody is disconnected and what was retained is forgotten."""
        if self.up:
            self.up = False
            self._retained.clear()
            for bus in self._buses:
                bus.counts["disconnects"] += 1

    def restore(self) -> None:
        """Come back: everybody reconnects and sends what is still valid."""
        if not self.up:
            self.up = True
            for bus in self._buses:
                bus.counts["reconnects"] += 1
            for bus in self._buses:
                bus.send(again=True)

    def attach(self, bus: MemoryBus) -> None:
        """Connect an endpoint."""
        self._buses.append(bus)

    def detach(self, bus: MemoryBus) -> None:
        """Disconnect an endpoint."""
        self._buses.remove(bus)

    def accept(self, message: Message, retain: bool, left_s: float) -> int:
        """Pass a message on; the reason code of its acknowledgement."""
        if retain:
            self._retained.pop(message.topic, None)
            if message.payload:
                self._retained[message.topic] = _Retained(message, self.clock() + left_s)
        message = replace(message, expires_s=None if left_s == inf else left_s)
        heard = [bus.deliver(message) for bus in self._buses]
        return 0 if any(heard) else NO_MATCHING_SUBSCRIBERS

    def retained(self, pattern: str) -> list[Message]:
        """What a new subscriber gets, oldest first."""
        now = self.clock()
        self._retained = {topic: kept for topic, kept in self._retained.items() if kept.deadline > now}
        return [
            replace(
                kept.message, retained=True, expires_s=None if kept.deadline == inf else kept.deadline - now
            )
            for topic, kept in self._retained.items()
            if matches(pattern, topic)
        ]


class MemoryBus:
    """A `Bus` whose broker is a `MemoryHub`; alone on its own hub if none is given.

    Args:
        hub: shared by the endpoints that are to hear each other.
        latch_size: messages kept until they are taken.
    """

    def __init__(self, hub: MemoryHub | None = None, *, latch_size: int = 10_000) -> None:
        self.counts: Counter[str] = Counter()
        self.hub = hub or MemoryHub()
        self._table = LatestValues(self.counts, self.hub.clock)
        self._latch = Latch(self.counts, latch_size)
        self._patterns: dict[str, None] = {}
        self._open = False
        self._arrival = asyncio.Event()

    @property
    def connected(self) -> bool:
        """Whether it was entered and its hub is up."""
        return self._open and self.hub.up

    def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, ttl_s: float | None = None
    ) -> None:
        """See `Bus.publish`; delivered before it returns, if connected."""
        check_publish(topic, payload, ttl_s)
        self._table.put(topic, bytes(payload), retain, ttl_s)
        self.send()

    def send(self, again: bool = False) -> None:
        """Pass on what waits, and with `again` also what a lost hub has forgotten."""
        if not self.connected:
            return
        if again:
            self._table.snapshot()
        while (taken := self._table.take()) is not None:
            entry, left_s = taken
            reason = self.hub.accept(Message(entry.topic, entry.payload), entry.retain, left_s)
            self._table.acknowledge(entry, reason)

    async def flush(self, timeout_s: float) -> bool:
        """See `Bus.flush`; does not wait, because here nothing happens by waiting."""
        self._table.expire()
        return self._table.settled(self._table.newest)

    def subscribe(self, pattern: str) -> None:
        """See `Bus.subscribe`."""
        check_pattern(pattern)
        self._patterns[pattern] = None
        if self.connected:
            self._welcome(pattern)

    def received(self) -> list[Message]:
        """See `Bus.received`."""
        self._arrival.clear()
        return self._latch.take()

    async def arrived(self, timeout_s: float) -> bool:
        """See `Bus.arrived`."""
        try:
            async with asyncio.timeout(timeout_s if timeout_s < inf else None):
                await self._arrival.wait()
        except TimeoutError:
            return False
        return True

    def deliver(self, message: Message) -> bool:
        """Take a message if it was subscribed to; whether it was."""
        wanted = any(matches(pattern, message.topic) for pattern in self._patterns)
        if wanted:
            self._latch.put(message)
            self._arrival.set()
        return wanted

    async def __aenter__(self) -> Self:
        self.hub.attach(self)
        self._open = True
        if self.hub.up:
            for pattern in self._patterns:
                self._welcome(pattern)
        self.send()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        self.hub.detach(self)

    def _welcome(self, pattern: str) -> None:
        for message in self.hub.retained(pattern):
            self.deliver(message)
