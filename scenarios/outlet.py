"""Outlet: the bus that a scenario asks for, and what the outbox needs of it."""

from __future__ import annotations

import os
import secrets
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import assert_never

from bridges.broker import EmbeddedBroker
from bridges.bus import Bus, BusUnreachable
from bridges.memory import MemoryBus
from bridges.mqtt import MqttBus
from bridges.publisher import Publisher, last_will
from controllers.contract import Instruction
from scenarios.schema import AnyBus, EmbeddedBusPart, MemoryBusPart, MqttBusPart
from simulators.clock import Clock
from simulators.devices import Receipt
from simulators.tables import Outcome

_ANSWERS = {"applied": Outcome.APPLIED, "refused": Outcome.REFUSED}
"""Answers of devices that settle an instruction; `received` does not."""


class BusOutlet:
    """The outbox's way to the bus, with simulated times turned into those of the devices."""

    def __init__(self, publisher: Publisher, clock: Clock) -> None:
        self._publisher, self._clock = publisher, clock

    def send(self, instruction: Instruction, ttl_s: float) -> None:
        wall = self._clock.on_wall if self._clock.paced else None
        self._publisher.send(instruction, ttl_s, wall=wall)

    def heartbeat(self, step: int, period_s: float, next_deadline: datetime) -> None:
        self._publisher.heartbeat(step, period_s, next_deadline)

    async def flush(self, timeout_s: float) -> bool:
        return await self._publisher.flush(timeout_s)

    def receipts(self, now: datetime) -> list[Receipt]:
        return [
            Receipt(device, ack.epoch, ack.seq, now, _ANSWERS[ack.state])
            for device, ack in self._publisher.acks()
            if ack.state in _ANSWERS
        ]


@asynccontextmanager
async def open_bus(
    part: AnyBus, *, folder: Path, run: str, epoch: int, patient: bool, say: Callable[[str], None]
) -> AsyncIterator[Bus]:
    """The connected bus of a scenario; an embedded broker lives as long as the bus.

    Args:
        folder: the scenario's, where the files of certificates are looked for.
        run: names the MQTT client.
        patient: whether the event loop may be blocked by a long solve (un-paced runs).
        say: takes lines for the user, e.g. how to connect a client of one's own.

    Raises:
        BusUnreachable: no broker at the URL.
        NoBroker: an embedded broker is asked for and none is installed.
    """
    keepalive_s = 60 if patient else 5
    will = last_will(run, epoch)
    client_id = f"gridpace-{run}-{secrets.token_hex(4)}"  # two of one name throw each other out for ever
    match part:
        case MemoryBusPart():
            async with MemoryBus() as bus:
                yield bus
        case EmbeddedBusPart():
            async with EmbeddedBroker(prefer=part.broker) as broker:
                say(f"broker: {broker.kind} at {broker.url}; to listen to it:")
                say(broker.hint)
                async with MqttBus(
                    broker.url,
                    client_id=client_id,
                    protocol=broker.protocol,
                    keepalive_s=keepalive_s,
                    will=will,
                ) as mqtt:
                    yield mqtt
        case MqttBusPart():
            async with MqttBus(
                part.url,
                client_id=client_id,
                protocol=5 if part.protocol == "5" else 311,
                username=os.environ.get("GRIDPACE_MQTT_USERNAME"),
                password=os.environ.get("GRIDPACE_MQTT_PASSWORD"),
                tls_context=_tls(part, folder),
                keepalive_s=keepalive_s,
                will=will,
            ) as mqtt:
                yield mqtt
        case _:
            assert_never(part)


def _tls(part: MqttBusPart, folder: Path) -> ssl.SSLContext | None:
    if not part.url.startswith("mqtts://"):
        return None
    try:
        tls = ssl.create_default_context(cafile=str(folder / part.ca_file) if part.ca_file else None)
        if part.cert_file:
            tls.load_cert_chain(folder / part.cert_file, folder / part.key_file if part.key_file else None)
    except OSError as error:
        raise BusUnreachable(
            part.url, f"its certificates cannot be read ({error})", "Check ca_file, cert_file and key_file."
        ) from None
    return tls
