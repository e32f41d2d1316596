"""TappedBus: a bus that tells somebody all that is handed to it and taken from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from bridges.around import BusAround
from bridges.bus import Bus, Message

Way = Literal["out", "in"]
Heard = Callable[[Way, Message, bool], None]
"""Told of each message: whether it was published or taken, and whether to be retained."""


class TappedBus(BusAround):
    """A `Bus` around another one, entered or not.

    What is published is told when it is handed over, though a newer payload may take its place before it
    leaves; what has arrived is told when it is taken.
    """

    def __init__(self, inner: Bus, heard: Heard) -> None:
        super().__init__(inner)
        self._heard = heard

    def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, ttl_s: float | None = None
    ) -> None:
        """See `Bus.publish`."""
        self._inner.publish(topic, payload, retain=retain, ttl_s=ttl_s)
        self._heard("out", Message(topic, payload), retain)

    def received(self) -> list[Message]:
        """See `Bus.received`."""
        messages = self._inner.received()
        for message in messages:
            self._heard("in", message, False)
        return messages
