"""`gridpace operate`: take devices from a run that goes on, or give them back."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from bridges import wire
from bridges.bus import Bus
from bridges.operator import OperatorMessage, operator_topic
from bridges.wire import BadMessage, Heartbeat
from scenarios.outlet import connect
from scenarios.schema import MqttBusPart

OPERATOR = "operator"
"""Whose certificate is shown."""
AGAIN_S = 1.0
"""Pause before what was not heard is said again."""


class NotHeard(Exception):
    """The run has not done what was asked in time."""


def operators_bus(there: MqttBusPart, run: str) -> Bus:
    """A connection for `operate`, not entered yet.

    Raises:
        BusUnreachable: certificates that cannot be read.
    """
    name = f"gridpace-{run}-operator-{secrets.token_hex(4)}"
    return connect(there, folder=Path(), client_id=name, patient=False, identity=OPERATOR)


async def operate(
    bus: Bus,
    run: str,
    *,
    hold: Sequence[str],
    release: Sequence[str],
    why: str | None = None,
    within_s: float = 10.0,
) -> tuple[str, ...]:
    """Tell a run to hold devices, and to release others; wait until its heartbeat says that it does.

    Args:
        bus: not entered yet.

    Returns:
        all devices that the run holds now.

    Raises:
        NotHeard: it did not say so within `within_s`.
        BusUnreachable: no broker.
        BadMessage: names that cannot be in a topic.
    """
    bus.subscribe(wire.control_topic(run))
    words = [*((device, "hold") for device in hold), *((device, "release") for device in release)]
    for device, _ in words:
        wire.check_name("device", device)
    beat: Heartbeat | None = None
    async with bus:
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while True:
                    for device, word in words:
                        if beat is None or not _done(beat, device, word):
                            await _say(bus, run, device, word, why)  # type: ignore[arg-type]
                    beat = await _newest(bus, beat)
                    if beat is not None and all(_done(beat, device, word) for device, word in words):
                        return beat.held
    if beat is None:
        topic = wire.control_topic(run)
        raise NotHeard(f"run {run!r} is not heard on {topic}; is that its name, and does it go on?")
    left = [device for device, word in words if not _done(beat, device, word)]
    if unsaid := [device for device in left if not _named(beat, device)]:
        raise NotHeard(
            f"run {run!r} holds {beat.held_count} devices, and its heartbeat has no room to say whether "
            f"{', '.join(unsaid)} are among them; look into its events"
        )
    raise NotHeard(
        f"run {run!r} has not taken over what was said of {', '.join(left)} within {within_s:g} s; are these "
        "its devices, and may you operate it (the certificate's common name is operator)?"
    )


async def _say(bus: Bus, run: str, device: str, word: Literal["hold", "release"], why: str | None) -> None:
    said = OperatorMessage(
        schema="gridpace.operator.v1", word=word, device=device, time=datetime.now(UTC), why=why
    )
    bus.publish(operator_topic(run), wire.encode(said), ttl_s=60.0)
    await bus.flush(AGAIN_S)  # of one topic a bus keeps only what is newest


async def _newest(bus: Bus, before: Heartbeat | None) -> Heartbeat | None:
    """The run's newest heartbeat; `before` if none has come."""
    await bus.arrived(AGAIN_S)
    for message in bus.received():
        with suppress(BadMessage):
            said = wire.decode_control(message.payload)
            if isinstance(said, Heartbeat):
                before = said
    return before


def _done(beat: Heartbeat, device: str, word: str) -> bool:
    """Whether a heartbeat says that a run does what was said of a device."""
    return _named(beat, device) and (device in beat.held) == (word == "hold")


def _named(beat: Heartbeat, device: str) -> bool:
    """Whether a heartbeat would name a device that is held: the last names may have no room."""
    return len(beat.held) >= beat.held_count or device <= max(beat.held, default="")
