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
from urllib.parse import urlsplit

from bridges.answers import to_answer
from bridges.broker import EmbeddedBroker
from bridges.bus import Bus, BusUnreachable, Message, shown
from bridges.memory import MemoryBus
from bridges.mqtt import MqttBus
from bridges.publisher import Publisher, last_will
from controllers.contract import Instruction, Kind, Span
from controllers.devices import still
from scenarios.inlet import BusInlet, Ways, on_wall, simulated
from scenarios.schema import AnyBus, EmbeddedBusPart, MemoryBusPart, MqttBusPart
from simulators.clock import Clock
from simulators.devices import Receipt
from simulators.outbox import Withheld
from simulators.seats import Turn

CONTROLLER = "controller"
"""Whose certificate the run shows."""


class BusOutlet:
    """The outbox's way to the bus, with simulated times turned into those of the devices.

    Args:
        inlet: reads the devices' answers; `None`: nobody else takes anything from the bus.
        ways: how each device is told.
    """

    def __init__(
        self, publisher: Publisher, clock: Clock, inlet: BusInlet | None = None, ways: Ways | None = None
    ) -> None:
        self._publisher, self._clock = publisher, clock
        self._inlet, self._ways = inlet, ways or Ways()
        self._kept: dict[str, list[tuple[Instruction, float]]] = {}

    def send(self, instruction: Instruction, ttl_s: float) -> None:
        """See `simulators.outbox.Outlet`."""
        ways, name = self._ways, instruction.device
        if name in ways.dry_run:
            raise Withheld("dry-run")
        if name in ways.held():
            raise Withheld("held-back")
        if ways.rounds is not None and name in ways.rounds:
            ways.rounds.tell(on_wall(instruction, self._clock))
        elif (gateway := ways.gateways.get(name)) is not None:
            self._kept.setdefault(gateway, []).append((instruction, ttl_s))
        else:
            self._publisher.send(instruction, ttl_s, wall=self._wall)

    def send_kept(self) -> list[tuple[Instruction, str]]:
        """See `simulators.outbox.Outlet`."""
        kept, self._kept, failed = self._kept, {}, []
        for gateway, several in kept.items():
            try:
                self._publisher.send_batch(gateway, several, wall=self._wall)
            except ValueError:  # one of them; the others shall leave
                for one in several:
                    try:
                        self._publisher.send_batch(gateway, [one], wall=self._wall)
                    except ValueError as error:
                        failed.append((one[0], str(error)))
        return failed

    @property
    def _wall(self) -> Callable[[datetime], datetime] | None:
        return self._clock.on_wall if self._clock.paced else None

    def announce(self, turn: Turn, area: str, seq: int, issued_at: datetime, ttl_s: float) -> datetime:
        assert turn.decision is not None
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
            wall=self._wall,
        )
        return said.valid_until

    def retract(self, area: str, kind: Kind) -> None:
        self._publisher.retract(area, kind)

    def heartbeat(self, step: int, period_s: float, next_deadline: datetime) -> None:
        self._publisher.heartbeat(step, period_s, next_deadline, self._ways.held())

    async def flush(self, timeout_s: float) -> bool:
        return await self._publisher.flush(timeout_s)

    def receipts(self, now: datetime) -> list[Receipt]:
        if self._inlet is not None:
            return self._inlet.receipts(now)
        return [
            Receipt.of(device, to_answer(ack), simulated(self._clock, ack.time, now))
            for device, ack in self._publisher.acks()
        ]


@asynccontextmanager
async def open_broker(
    part: AnyBus,
    say: Callable[[str], None],
    started: Callable[[EmbeddedBroker], None] = lambda broker: None,
) -> AsyncIterator[MemoryBusPart | MqttBusPart]:
    """Where a scenario's bus is; an embedded broker lives as long as the context.

    Args:
        say: takes lines for the user, e.g. how to connect a client of one's own.
        started: gets a broker of the run's own.

    Raises:
        NoBroker: an embedded broker is asked for and none is installed.
    """
    if not isinstance(part, EmbeddedBusPart):
        if isinstance(part, MqttBusPart) and (warning := exposed(part.url)) is not None:
            say(warning)
        yield part
        return
    async with EmbeddedBroker(prefer=part.broker) as broker:
        started(broker)
        say(f"broker: {broker.kind} at {broker.url}; to listen to it:")
        say(broker.hint)
        yield MqttBusPart(kind="mqtt", url=broker.url, protocol="5" if broker.protocol == 5 else "3.1.1")


@asynccontextmanager
async def open_bus(
    there: MemoryBusPart | MqttBusPart,
    *,
    folder: Path,
    run: str,
    epoch: int,
    patient: bool,
    through: tuple[str, int] | None = None,
) -> AsyncIterator[Bus]:
    """The connected bus of a run.

    Args:
        there: from `open_broker`.
        folder: the scenario's, where the files of certificates are looked for.
        run: names the MQTT client.
        patient: whether the event loop may be blocked by a long solve (un-paced runs).
        through: host and port of a proxy on the way.

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
            opening = connect(
                there, folder=folder, client_id=client_id, patient=patient, will=will, through=through
            )
            async with opening as mqtt:
                yield mqtt
        case _:
            assert_never(there)


def connect(
    there: MqttBusPart,
    *,
    folder: Path,
    client_id: str,
    patient: bool,
    will: Message | None = None,
    identity: str = CONTROLLER,
    through: tuple[str, int] | None = None,
) -> MqttBus:
    """A bus at a broker, not yet entered; see `open_bus`. The password is the environment's.

    Args:
        identity: whose certificate it shows, where the scenario says `{client}` in the names of its files.

    Raises:
        BusUnreachable: files of certificates that cannot be read.
    """
    return MqttBus(
        there.url,
        client_id=client_id,
        protocol=5 if there.protocol == "5" else 311,
        username=os.environ.get("GRIDPACE_MQTT_USERNAME"),
        password=os.environ.get("GRIDPACE_MQTT_PASSWORD"),
        tls_context=_tls(there, folder, identity),
        keepalive_s=60 if patient else 5,
        will=will,
        through=through,
    )


def _tls(part: MqttBusPart, folder: Path, identity: str) -> ssl.SSLContext | None:
    if not part.url.startswith("mqtts://"):
        return None
    ca, certificate, key = (
        file and folder / str(file).replace("{client}", identity)
        for file in (part.ca_file, part.cert_file, part.key_file)
    )
    for what, file in (("ca_file", ca), ("cert_file", certificate), ("key_file", key)):
        if file is not None:
            _readable(part.url, what, file)
    what = f"ca_file {ca}"
    try:
        tls = ssl.create_default_context(cafile=ca)
        tls.minimum_version = ssl.TLSVersion.TLSv1_2
        if certificate is not None:
            what = f"cert_file {certificate} with key_file {key}"
            # Without a password of ours OpenSSL would ask at the terminal for that of an encrypted key.
            tls.load_cert_chain(certificate, key, lambda: os.environ.get("GRIDPACE_MQTT_KEY_PASSWORD", ""))
    except (OSError, ValueError) as error:
        raise BusUnreachable(
            part.url,
            f"{what}: {error}",
            "Give PEM files that belong together; the password of an encrypted key is taken from the "
            "environment, GRIDPACE_MQTT_KEY_PASSWORD.",
        ) from None
    return tls


def _readable(url: str, what: str, file: Path) -> None:
    try:
        with file.open("rb"):
            pass
    except OSError as error:
        raise BusUnreachable(
            url,
            f"{what} {file} cannot be read: {error.strerror}",
            "`gridpace certs DIR` makes files for a test; relative names are looked for beside the scenario.",
        ) from None


def exposed(url: str) -> str | None:
    """What to tell the user about a broker that others can reach without encryption; `None`: nothing."""
    host = urlsplit(url).hostname
    if url.startswith("mqtts://") or host in ("localhost", "127.0.0.1", "::1"):
        return None
    return (
        f"warning: {shown(url)} is not encrypted; who can reach that broker or listen on the way can command "
        "devices. Use mqtts:// and certificates (gridpace certs)"
    )
