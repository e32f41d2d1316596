"""FaultyBus: a bus on which messages get lost, come late, twice, in another order, or not at all for a while.

It decides nothing: a `Weather` says what becomes of each message. Both directions, around any `Bus`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from heapq import heappop, heappush
from math import inf
from types import TracebackType
from typing import Protocol

from bridges.around import BusAround
from bridges.bus import Bus, Message, check_publish
from bridges.tapped import Way


class Weather(Protocol):
    """What becomes of messages now."""

    @property
    def cut(self) -> bool:
        """Whether nothing passes at all."""
        ...

    def held(self, way: Way, topic: str) -> bool:
        """Whether nothing passes for now: what goes out is kept, the newest of each topic; what has come in
        is kept in its order."""
        ...

    def fate(self, way: Way, topic: str, size: int) -> tuple[float, ...]:
        """After how many seconds each copy of a message arrives; none: it is lost."""
        ...


class _Sent:
    """A payload that has not gone out yet."""

    __slots__ = ("deadline", "message", "retain")

    def __init__(self, message: Message, retain: bool, deadline: float) -> None:
        self.message, self.retain, self.deadline = message, retain, deadline


class FaultyBus(BusAround):
    """A `Bus` around another one, in bad weather.

    Args:
        clock: in whose seconds the weather's delays are.
        wakes: whether the clock goes on by itself, so that what is late may leave in between two calls.

    | count | meaning |
    |---|---|
    | lost | messages that nobody gets |
    | late | copies that came later |
    | twice | copies beyond the first |
    | held | messages kept until the weather is better |
    """

    def __init__(
        self, inner: Bus, weather: Weather, clock: Callable[[], float], *, wakes: bool = False
    ) -> None:
        super().__init__(inner)
        self._weather, self._clock, self._wakes = weather, clock, wakes
        self.happened: Counter[str] = Counter()
        self._held: dict[str, _Sent] = {}
        self._late_out: list[tuple[float, int, _Sent]] = []
        self._held_in: list[Message] = []
        self._late_in: list[tuple[float, int, Message]] = []
        self._number = 0
        self._timers: set[asyncio.TimerHandle] = set()
        self._come = asyncio.Event()

    @property
    def connected(self) -> bool:
        """See `Bus.connected`."""
        return self._inner.connected and not self._weather.cut

    def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, ttl_s: float | None = None
    ) -> None:
        """See `Bus.publish`."""
        check_publish(topic, payload, ttl_s)
        self.release()
        now = self._clock()
        sent = _Sent(Message(topic, bytes(payload)), retain, inf if ttl_s is None else now + ttl_s)
        if self._weather.held("out", topic):
            self.happened["held"] += 1
            self._held.pop(topic, None)
            self._held[topic] = sent
            return
        self._held.pop(topic, None)  # the newer one replaces it
        for delay_s in self._copies("out", topic, len(payload)):
            if delay_s <= 0:
                self._out(sent, now)
            else:
                heappush(self._late_out, (now + delay_s, self._count(), sent))
                self._wake(delay_s)

    def release(self) -> None:
        """Send what was held back for long enough."""
        now = self._clock()
        while self._late_out and self._late_out[0][0] <= now:
            _, _, sent = heappop(self._late_out)
            if self._weather.held("out", sent.message.topic):
                self._held.setdefault(sent.message.topic, sent)
            else:
                self._out(sent, now)
        for topic in [topic for topic in self._held if not self._weather.held("out", topic)]:
            self._out(self._held.pop(topic), now)

    async def flush(self, timeout_s: float) -> bool:
        """See `Bus.flush`; while nothing passes at all, nothing is there."""
        self.release()
        reached = await self._inner.flush(timeout_s)
        return reached and not self._weather.cut

    def received(self) -> list[Message]:
        """See `Bus.received`."""
        self.release()
        self._come.clear()
        now, waiting = self._clock(), [*self._held_in, *self._inner.received()]
        self._held_in = []
        for message in waiting:
            if self._weather.held("in", message.topic):
                self.happened["held"] += 1
                self._held_in.append(message)
                continue
            for delay_s in self._copies("in", message.topic, len(message.payload)):
                heappush(self._late_in, (now + delay_s, self._count(), message))
                self._wake(delay_s)
        arrived = []
        while self._late_in and self._late_in[0][0] <= now:
            arrived.append(heappop(self._late_in)[2])
        return arrived

    async def arrived(self, timeout_s: float) -> bool:
        """See `Bus.arrived`."""
        inner = asyncio.ensure_future(self._inner.arrived(timeout_s))
        late = asyncio.ensure_future(self._come.wait())
        try:
            await asyncio.wait((inner, late), return_when=asyncio.FIRST_COMPLETED)
            return self._come.is_set() or (inner.done() and inner.result())
        finally:
            for task in (inner, late):
                task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.gather(inner, late, return_exceptions=True)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.still()
        await super().__aexit__(kind, error, trace)

    def still(self) -> None:
        """Send nothing any more that is late."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    def _copies(self, way: Way, topic: str, size: int) -> tuple[float, ...]:
        copies = self._weather.fate(way, topic, size)
        self.happened["lost"] += not copies
        self.happened["late"] += sum(delay > 0 for delay in copies)
        self.happened["twice"] += max(len(copies) - 1, 0)
        return copies

    def _out(self, sent: _Sent, now: float) -> None:
        left = sent.deadline - now
        if left > 0:
            ttl_s = None if left == inf else left
            self._inner.publish(sent.message.topic, sent.message.payload, retain=sent.retain, ttl_s=ttl_s)

    def _wake(self, delay_s: float) -> None:
        if not self._wakes or delay_s <= 0:
            return

        def wake() -> None:
            self._timers.discard(timer)
            self.release()
            self._come.set()

        timer = asyncio.get_running_loop().call_later(delay_s, wake)
        self._timers.add(timer)

    def _count(self) -> int:
        self._number += 1
        return self._number
