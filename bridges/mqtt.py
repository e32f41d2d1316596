"""MqttBus: the bus over MQTT, on aiomqtt 2.5 and paho 2.2.

Both libraries have traps; each remedy is marked `# (n)`:

| n  | trap                                                        | remedy                                |
|----|-------------------------------------------------------------|---------------------------------------|
| 1  | Nagle's algorithm and delayed ACKs cost 40 ms one way       | TCP_NODELAY                           |
| 2  | `publish` swallows the reason code of its acknowledgement   | `_on_publish` overridden, codes count |
| 3  | a waiting `publish` does not notice a lost connection       | nobody waits; a loss requeues at once |
| 4  | a reused client sends its old outbox after a reconnection   | a new client for each connection      |
| 5  | a warning for each call beyond ten; a logger's level is set | threshold raised, level restored      |
| 6  | every `publish` scans all pending calls                     | a window of messages, without calls   |
| 7  | at most 20 messages in flight, whatever the broker allows   | 64, or the CONNACK's Receive Maximum  |
| 8  | acknowledged before it was processed; a full queue discards | own latch that counts; `wire.Ack`     |
| 9  | a half-open link is found by the keepalive, 60 s by default | 5 s by default                        |
| 10 | a lost connection leaves noise in asyncio's log             | a handler counts and drops just that  |
| 11 | building `Properties` costs more than sending               | packed once for each expiry           |
| 12 | it waits for the socket to be writable, which it nearly     | written in the next turn of the loop; |
|    | always is: two turns of the loop, five calls of the system  | only what is left over waits          |
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable
from math import inf
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import aiomqtt
from paho.mqtt.client import MQTTMessage
from paho.mqtt.reasoncodes import ReasonCode

from bridges.bus import (
    BusUnreachable,
    Latch,
    Message,
    check_pattern,
    check_publish,
    shown,
)
from bridges.mqtt_connection import WINDOW, Connection, Handshake, Secret, bounded
from bridges.table import FIRST_ERROR, Entry, LatestValues

log = logging.getLogger("gridpace.mqtt")

PACKET_TOO_LARGE = 149
WRONG_PROTOCOL = (1, 132)
BACKOFF_S = (0.1, 1.0)
"""First and longest pause before a new connection is tried; each is cut by up to a half at random."""
NODELAY = (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class MqttBus:
    """A `Bus` on an MQTT broker.

    Entering the context connects, or raises `BusUnreachable` within some `timeout_s`. From then on a
    lost connection is counted and tried again for ever; subscriptions are renewed, and everything that
    is retained and still valid is sent again, since a broker may have lost what it acknowledged.

    Args:
        url: `mqtt://host[:port]` (1883) or `mqtts://host[:port]` (8883), without credentials.
        client_id: unique at the broker; a second client of the same name throws the first one out.
        protocol: 5, or 311 for brokers without MQTT 5: then the broker lets nothing expire and gives
            no reasons, so `refused` and `unheard` stay zero.
        username, password: by the caller from the environment; never shown.
        tls_context: for `mqtts`; by default the system's certificate authorities.
        keepalive_s: a dead link is noticed after at most twice this time.
        timeout_s: for the connection and for each subscription.
        will: published by the broker, retained, if this client vanishes without leaving.
        latch_size: arrived messages kept until they are taken.
        clock: seconds, for times to live.
        through: host and port of a proxy on the way; a certificate has to be the broker's all the same.

    Raises:
        ValueError: a URL of another form, credentials in it, an unknown protocol.
    """

    def __init__(
        self,
        url: str,
        *,
        client_id: str,
        protocol: int = 5,
        username: str | None = None,
        password: str | None = None,
        tls_context: ssl.SSLContext | None = None,
        keepalive_s: int = 5,
        timeout_s: float = 3.0,
        will: Message | None = None,
        latch_size: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
        through: tuple[str, int] | None = None,
    ) -> None:
        self._host, self._port, secure = _address(url)
        self._there = through or (self._host, self._port)
        if protocol not in (5, 311):
            raise ValueError(f"mqtt: protocol {protocol} is unknown; use 5 or 311")
        if tls_context is not None and not secure:
            raise ValueError(f"mqtt: {shown(url)} is not encrypted, but a TLS context is given; use mqtts://")
        self.url = url
        self.client_id = client_id
        self.protocol = protocol
        self.counts: Counter[str] = Counter()
        self._tls = (tls_context or ssl.create_default_context()) if secure else None
        self._username = username
        self._password = Secret(password)
        self._keepalive_s = keepalive_s
        self._timeout_s = timeout_s
        self._will = will
        self._table = LatestValues(self.counts, clock)
        self._latch = Latch(self.counts, latch_size)
        self._patterns: dict[str, None] = {}
        self._new_patterns: asyncio.Queue[str] = asyncio.Queue()
        self._unheard_of = 0  # patterns that the broker does not know yet, on this connection
        self._client: Connection | None = None
        self._sent: dict[int, Entry] = {}  # in flight on this connection, by packet identifier
        self._pumping = False
        self._progress = asyncio.Event()
        self._awaited = inf  # the least entry that a `flush` waits for
        self._arrival = asyncio.Event()
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._logged: set[str] = set()
        self._alert: str | None = None  # with which the broker has ended an encrypted connection
        self._paho_log = logging.Logger("gridpace.mqtt.paho")  # of this bus alone, so that it can be read
        self._paho_log.parent = log
        self._paho_log.addFilter(self._overhear)
        self._next_handler: Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object] | None = None

    def __repr__(self) -> str:
        return f"MqttBus({self.url!r}, client_id={self.client_id!r}, connected={self.connected})"

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._client is not None

    def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, ttl_s: float | None = None
    ) -> None:
        """See `Bus.publish`."""
        check_publish(topic, payload, ttl_s)
        self._table.put(topic, bytes(payload), retain, ttl_s)
        self._pump_soon()

    async def flush(self, timeout_s: float) -> bool:
        """See `Bus.flush`."""
        loop = asyncio.get_running_loop()
        number, end = self._table.newest, loop.time() + timeout_s
        while True:
            until_expiry = self._table.expire()
            if self._table.settled(number):
                return True
            if self._task is None or self._task.done():
                if self._task is not None:
                    self._task.result()  # a bus that broke must say so
                return False
            self._progress.clear()
            self._awaited = min(self._awaited, number)
            left = end - loop.time()
            if left <= 0:
                return False
            try:
                async with asyncio.timeout(min(left, until_expiry)):
                    await self._progress.wait()
            except TimeoutError:
                continue

    def subscribe(self, pattern: str) -> None:
        """See `Bus.subscribe`."""
        check_pattern(pattern)
        if pattern not in self._patterns:
            self._patterns[pattern] = None
            self._new_patterns.put_nowait(pattern)
            self._unheard_of += 1

    def received(self) -> list[Message]:
        """See `Bus.received`."""
        self._arrival.clear()
        return self._latch.take()

    async def arrived(self, timeout_s: float) -> bool:
        """See `Bus.arrived`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._arrival.wait()
        except TimeoutError:
            return False
        return True

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._next_handler = loop.get_exception_handler()
        loop.set_exception_handler(self._on_loop_error)
        self._closing.clear()
        first: asyncio.Future[None] = loop.create_future()
        self._task = loop.create_task(self._run(first), name=f"mqtt {self.client_id}")
        try:
            await asyncio.wait((self._task, first), return_when=asyncio.FIRST_COMPLETED)
            if not first.done():
                self._task.result()  # raises what went wrong
        except BaseException:
            self._closing.set()
            self._restore_handler(loop)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._closing.set()
        try:
            await self._task
        finally:
            self._restore_handler(asyncio.get_running_loop())

    # The connection

    async def _run(self, first: asyncio.Future[None]) -> None:
        """Connect, serve until the connection is lost, pause, and again."""
        pause = BACKOFF_S[0]
        while not self._closing.is_set():
            error = await self._serve_once(first)
            was_connected = self._down()
            if error is not None and not first.done():
                raise self._unreachable(error)
            if self._closing.is_set():
                return
            if was_connected:
                pause = BACKOFF_S[0]
                self.counts["disconnects"] += 1
                log.warning("%s: connection lost: %s", self.url, (error and error.__cause__) or error)
            try:
                async with asyncio.timeout(pause * random.uniform(0.5, 1.0)):
                    await self._closing.wait()
            except TimeoutError:
                pause = min(2 * pause, BACKOFF_S[1])

    async def _serve_once(self, first: asyncio.Future[None]) -> BaseException | None:
        """One connection from its beginning to its end, and what ended it."""
        end: BaseException | None = None
        try:
            async with Connection(
                self._options(), self._password, self._timeout_s, self.protocol == 5, self
            ) as client:  # (4)
                await self._serve(client, first)
        except* (aiomqtt.MqttError, OSError) as group:
            end = group
            while isinstance(end, BaseExceptionGroup):
                end = end.exceptions[0]
        return end

    async def _serve(self, client: Connection, first: asyncio.Future[None]) -> None:
        while not self._new_patterns.empty():
            self._new_patterns.get_nowait()  # on a new connection all of them have to be subscribed
        self._unheard_of = 0
        for pattern in tuple(self._patterns):
            await self._subscribe(client, pattern)
        self._client = client
        if first.done():
            self.counts["reconnects"] += 1
            self._table.snapshot()
            log.info("%s: connected again", self.url)
        else:
            first.set_result(None)
        self._pump_soon()
        async with asyncio.TaskGroup() as group:  # (3) the receiver notices a loss at once, and ends all
            receiver = group.create_task(_until_lost(client))
            subscriber = group.create_task(self._subscribe_new(client))
            await self._closing.wait()
            receiver.cancel()
            subscriber.cancel()

    async def _subscribe(self, client: Connection, pattern: str) -> None:
        for code in await client.subscribe(pattern, qos=1):
            value = code if isinstance(code, int) else code.value
            if value >= FIRST_ERROR:
                self.counts["refused"] += 1
                log.error("%s: the broker refused to subscribe %s: %s", self.url, pattern, code)

    async def _subscribe_new(self, client: Connection) -> None:
        while True:
            await self._subscribe(client, await self._new_patterns.get())
            self._unheard_of -= 1
            self._pump_soon()

    def _down(self) -> bool:
        """Forget the connection; whether there was one."""
        was_connected = self._client is not None
        self._client = None
        self._sent.clear()
        self._table.lost()
        return was_connected

    def _options(self) -> dict[str, Any]:
        five = self.protocol == 5
        return {
            "hostname": self._there[0],
            "port": self._there[1],
            "username": self._username,
            "identifier": self.client_id,
            "protocol": aiomqtt.ProtocolVersion.V5 if five else aiomqtt.ProtocolVersion.V311,
            **({"clean_start": True, "properties": bounded()} if five else {"clean_session": True}),
            "will": self._will and aiomqtt.Will(self._will.topic, self._will.payload, qos=1, retain=True),
            "logger": self._paho_log,
            "timeout": self._timeout_s,
            "keepalive": self._keepalive_s,  # (9)
            "max_inflight_messages": WINDOW,  # (7)
            "tls_context": self._tls and Handshake(self._tls, self._host),
            "socket_options": [NODELAY],  # (1)
        }

    def _overhear(self, record: logging.LogRecord) -> bool:
        """Keep the alert by which a broker refuses a certificate: since TLS 1.3 it comes after the handshake,
        and paho only logs it, then waits in vain."""
        alert = re.search(r"\[SSL: \w*ALERT_(\w+)\]", record.getMessage())
        if alert is not None:
            self._alert = alert[1].lower().replace("_", " ")
        return alert is None or self._client is not None

    def _unreachable(self, error: BaseException) -> BusUnreachable:
        why = str(error) or type(error).__name__
        text = why.lower()
        if self._alert is not None:
            why = text = f"the broker refuses our certificate: {self._alert}"
        elif "operation timed out" in text:
            why = "the port is open, but nobody answers in MQTT"
        code = getattr(getattr(error, "rc", None), "value", None)
        if code in WRONG_PROTOCOL or "operation timed out" in text:
            advice = f"An MQTT 3.1.1 broker (amqtt) needs protocol=311, others take 5 (now {self.protocol})."
        elif isinstance(error, aiomqtt.exceptions.MqttConnectError):
            advice = "Check the user name and the password in the environment, and the broker's log."
        elif self._alert is not None:
            advice = "Give a certificate that it accepts, and its key: of its authority, and not out of date."
        elif "certificate" in text or "ssl" in text:
            advice = "Give the certificate authority that has signed the broker's certificate."
        else:
            advice = f"Start a broker there (mosquitto -p {self._port}) or let gridpace bring its own."
        return BusUnreachable(self.url, why, advice)

    # Sending: the table's entries, a window of them at a time, and what the client has to say itself. A task
    # for each publication, or 64 that sleep for one, would cost more than the messages. (6)

    def _pump_soon(self) -> None:
        """Send in the loop's next turn, so that a step's messages go out together."""
        if not self._pumping and self._client is not None:
            self._pumping = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = False
        client = self._client
        # What is published waits for what was subscribed before it: its answer may come at once.
        while client is not None and not self._unheard_of and len(self._sent) < client.window:
            taken = self._table.take()
            if taken is None:
                break
            entry, left_s = taken
            if not client.fits(entry):
                self._answered(entry, PACKET_TOO_LARGE, "larger than the broker takes")
                continue
            packet = client.send(entry, left_s)
            if packet is None:
                break  # the connection is gone, and `_down` will requeue the entry
            self._sent[packet] = entry
        if client is not None:
            client.write()
        self._note_progress()

    def write_soon(self, client: Connection) -> None:
        """A connection has something to say of its own, e.g. that a message has arrived. It goes out together
        with the answer, if there is one by then."""
        if client is self._client:
            self._pump_soon()
        else:  # it still subscribes
            asyncio.get_running_loop().call_soon(client.write)

    def acknowledged(self, client: Connection, packet: int, reason: ReasonCode) -> None:
        """The broker has answered a publication."""
        if client is self._client and (entry := self._sent.pop(packet, None)) is not None:
            self._answered(entry, reason.value, reason)
            self._note_progress()
            if self._table.waiting() > len(self._sent):
                self._pump_soon()

    def _answered(self, entry: Entry, code: int, reason: object) -> None:
        self._table.acknowledge(entry, code)
        if code >= FIRST_ERROR and entry.topic not in self._logged:
            self._logged.add(entry.topic)  # once a topic: it is published again every step
            log.error("%s: the broker refuses %s: %s", self.url, entry.topic, reason)

    def _note_progress(self) -> None:
        if self._awaited < inf and self._table.settled(int(self._awaited)):
            self._awaited = inf
            self._progress.set()

    def arrived_now(self, message: MQTTMessage) -> None:
        """A message has come in."""
        try:
            said = getattr(message.properties, "MessageExpiryInterval", None)  # MQTT 3.1.1 has no properties
            self._latch.put(
                Message(message.topic, bytes(message.payload), bool(message.retain), said)  # (8)
            )
        except UnicodeDecodeError:
            self.counts["malformed"] += 1
            return
        self._arrival.set()

    # Noise (10)

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        text = str(context.get("message"))
        unread = isinstance(error, aiomqtt.MqttError) and "never retrieved" in text
        late_write = isinstance(error, (ValueError, OSError)) and "add_writer" in text
        if unread or late_write:
            self.counts["noise"] += 1
        elif self._next_handler is not None:
            self._next_handler(loop, context)
        else:
            loop.default_exception_handler(context)

    def _restore_handler(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop.get_exception_handler() == self._on_loop_error:  # else another bus still passes on to it
            loop.set_exception_handler(self._next_handler)


async def _until_lost(client: aiomqtt.Client) -> None:
    """Raises `MqttError` when the connection is lost. Nothing is iterated: `_on_message` takes it all."""
    async for _ in client.messages:
        pass


def _address(url: str) -> tuple[str, int, bool]:
    """Host, port and whether encrypted."""
    parts = urlsplit(url)
    if parts.username is not None or parts.password is not None:
        raise ValueError("mqtt: credentials do not belong in a URL; give username and password")
    extra = parts.path.strip("/") or parts.query or parts.fragment
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or extra:
        raise ValueError(f"mqtt: {shown(url)!r} is no address; write mqtt://host:port or mqtts://host:port")
    secure = parts.scheme == "mqtts"
    return parts.hostname, parts.port or (8883 if secure else 1883), secure
