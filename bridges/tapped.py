"""TappedBus: a bus that tells somebody all that is handed to it and taken from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Literal, Self

from bridges.bus import Bus, Message

Way = Literal["out", "in"]
Heard = Callable[[Way, Message, bool], None]
"""Told of each message: whether it was published or taken, and whether to be retained."""


class TappedBus:
    """A `Bus` around another one, entered or not.

    What is published is told when it is handed over, though a newer payload may take its place before it
    leaves; what has arrived is told when it is taken.
    """

    def __init__(self, inner: Bus, heard: Heard) -> None:
        self._inner, self._heard = inner, heard
        self.counts: Counter[str] = inner.counts

    @property
    def connected(self) -> bool:
        """See `Bus.connected`."""
        return self._inner.connected

    def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, ttl_s: float | None = None
    ) -> None:
        """See `Bus.publish`."""
        self._inner.publish(topic, payload, retain=retain, ttl_s=ttl_s)
        self._heard("out", Message(topic, payload), retain)

    async def flush(self, timeout_s: float) -> bool:
        """See `Bus.flush`."""
        return await self._inner.flush(timeout_s)

    def subscribe(self, pattern: str) -> None:
        """See `Bus.subscribe`."""
        self._inner.subscribe(pattern)

    def received(self) -> list[Message]:
        """See `Bus.received`."""
        messages = self._inner.received()
        for message in messages:
            self._heard("in", message, False)
        return messages

    async def arrived(self, timeout_s: float) -> bool:
        """See `Bus.arrived`."""
        return await self._inner.arrived(timeout_s)

    async def __aenter__(self) -> Self:
        await self._inner.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._inner.__aexit__(kind, error, trace)
