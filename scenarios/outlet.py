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
from bridges.bus import Bus, BusUnreachable, Message
from bridges.memory import MemoryBus
from bridges.mqtt import MqttBus
from bridges.publisher import Publisher, last_will
from controllers.contract import Instruction, Kind, Span
from controllers.devices import still
from scenarios.schema import AnyBus, EmbeddedBusPart, MemoryBusPart, MqttBusPart
from simulators.clock import Clock
from simulators.controller import Turn
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

    def announce(self, turn: Turn, area: str, seq: int, issued_at: datetime, ttl_s: float) -> datetime:
        assert turn.decision is not None
        wall = self._clock.on_wall if self._clock.paced else None
        spans = []
        for interval in turn.decision.intervals(turn.valid_from, turn.valid_until):
            if (region := interval.regions.get(area)) is None:
                break  # nothing is said about it from here on
            spans.append(Span(interval.start, interval.end, region, None, interval.certificates.get(area)))
        said = Instruction(
            device=area,
            epoch=self._publisher.epoch,
            seq=seq,
            issued_at=issued_at,
            valid_from=spans[0].start,
            valid_until=spans[-1].end,
            region=spans[0].region,
            setpoint=None,
            fallback=still(),
            origin=turn.decision.origin,
            certificate=spans[0].certificate,
            later=tuple(spans[1:]),
        )
        ttl_s *= (said.valid_until - issued_at) / (turn.valid_until - issued_at)
        self._publisher.announce(
            said,
            ttl_s,
            kind=turn.decision.kind,
            controller=turn.controller,
            plan=turn.decision.plan,
            wall=wall,
        )
        return said.valid_until

    def retract(self, area: str, kind: Kind) -> None:
        self._publisher.retract(area, kind)

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
async def open_broker(part: AnyBus, say: Callable[[str], None]) -> AsyncIterator[MemoryBusPart | MqttBusPart]:
    """Where a scenario's bus is; an embedded broker lives as long as the context.

    Args:
        say: takes lines for the user, e.g. how to connect a client of one's own.

    Raises:
        NoBroker: an embedded broker is asked for and none is installed.
    """
    if not isinstance(part, EmbeddedBusPart):
        yield part
        return
    async with EmbeddedBroker(prefer=part.broker) as broker:
        say(f"broker: {broker.kind} at {broker.url}; to listen to it:")
        say(broker.hint)
        yield MqttBusPart(kind="mqtt", url=broker.url, protocol="5" if broker.protocol == 5 else "3.1.1")


@asynccontextmanager
async def open_bus(
    there: MemoryBusPart | MqttBusPart, *, folder: Path, run: str, epoch: int, patient: bool
) -> AsyncIterator[Bus]:
    """The connected bus of a run.

    Args:
        there: from `open_broker`.
        folder: the scenario's, where the files of certificates are looked for.
        run: names the MQTT client.
        patient: whether the event loop may be blocked by a long solve (un-paced runs).

    Raises:
        BusUnreachable: no broker at the URL.
    """
    client_id = f"gridpace-{run}-{secrets.token_hex(4)}"  # two of one name throw each other out for ever
    match there:
        case MemoryBusPart():
            async with MemoryBus() as bus:
                yield bus
        case MqttBusPart():
            will = last_will(run, epoch)
            async with connect(there, folder=folder, client_id=client_id, patient=patient, will=will) as mqtt:
                yield mqtt
        case _:
            assert_never(there)


def connect(
    there: MqttBusPart, *, folder: Path, client_id: str, patient: bool, will: Message | None = None
) -> MqttBus:
    """A bus at a broker, not yet entered; see `open_bus`. The password is the environment's.

    Raises:
        BusUnreachable: files of certificates that cannot be read.
    """
    return MqttBus(
        there.url,
        client_id=client_id,
        protocol=5 if there.protocol == "5" else 311,
        username=os.environ.get("GRIDPACE_MQTT_USERNAME"),
        password=os.environ.get("GRIDPACE_MQTT_PASSWORD"),
        tls_context=_tls(there, folder),
        keepalive_s=60 if patient else 5,
        will=will,
    )


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
