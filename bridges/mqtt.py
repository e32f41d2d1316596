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
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from math import ceil, inf
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import aiomqtt
from paho.mqtt.client import Client as PahoClient
from paho.mqtt.client import ConnectFlags, MQTTMessage
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from bridges.bus import BusUnreachable, Latch, Message, check_pattern, check_publish
from bridges.table import FIRST_ERROR, Entry, LatestValues

logging.getLogger("mqtt").setLevel(logging.NOTSET)  # (5) importing aiomqtt has set WARNING
log = logging.getLogger("gridpace.mqtt")

WINDOW = 64
"""Messages in flight; far fewer wait for the network, far more only fill buffers."""
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
    ) -> None:
        self._host, self._port, secure = _address(url)
        if protocol not in (5, 311):
            raise ValueError(f"mqtt: protocol {protocol} is unknown; use 5 or 311")
        if tls_context is not None and not secure:
            raise ValueError(f"mqtt: {url} is not encrypted, but a TLS context is given; use mqtts://")
        self.url = url
        self.client_id = client_id
        self.protocol = protocol
        self.counts: Counter[str] = Counter()
        self._tls = (tls_context or ssl.create_default_context()) if secure else None
        self._username = username
        self._password = _Secret(password)
        self._keepalive_s = keepalive_s
        self._timeout_s = timeout_s
        self._will = will
        self._table = LatestValues(self.counts, clock)
        self._latch = Latch(self.counts, latch_size)
        self._patterns: dict[str, None] = {}
        self._new_patterns: asyncio.Queue[str] = asyncio.Queue()
        self._client: _Connection | None = None
        self._sent: dict[int, Entry] = {}  # in flight on this connection, by packet identifier
        self._pumping = False
        self._progress = asyncio.Event()
        self._awaited = inf  # the least entry that a `flush` waits for
        self._arrival = asyncio.Event()
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._logged: set[str] = set()
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
            async with _Connection(self._options(), self._password, self._timeout_s, self) as client:  # (4)
                await self._serve(client, first)
        except* (aiomqtt.MqttError, OSError) as group:
            end = group
            while isinstance(end, BaseExceptionGroup):
                end = end.exceptions[0]
        return end

    async def _serve(self, client: _Connection, first: asyncio.Future[None]) -> None:
        while not self._new_patterns.empty():
            self._new_patterns.get_nowait()  # on a new connection all of them have to be subscribed
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

    async def _subscribe(self, client: _Connection, pattern: str) -> None:
        for code in await client.subscribe(pattern, qos=1):
            value = code if isinstance(code, int) else code.value
            if value >= FIRST_ERROR:
                self.counts["refused"] += 1
                log.error("%s: the broker refused to subscribe %s: %s", self.url, pattern, code)

    async def _subscribe_new(self, client: _Connection) -> None:
        while True:
            await self._subscribe(client, await self._new_patterns.get())

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
            "hostname": self._host,
            "port": self._port,
            "username": self._username,
            "identifier": self.client_id,
            "protocol": aiomqtt.ProtocolVersion.V5 if five else aiomqtt.ProtocolVersion.V311,
            **({"clean_start": True} if five else {"clean_session": True}),
            "will": self._will and aiomqtt.Will(self._will.topic, self._will.payload, qos=1, retain=True),
            "logger": log.getChild("paho"),
            "timeout": self._timeout_s,
            "keepalive": self._keepalive_s,  # (9)
            "max_inflight_messages": WINDOW,  # (7)
            "tls_context": self._tls and _Handshake(self._tls),
            "socket_options": [NODELAY],  # (1)
        }

    def _unreachable(self, error: BaseException) -> BusUnreachable:
        why = str(error) or type(error).__name__
        text = why.lower()
        if "operation timed out" in text:
            why = "the port is open, but nobody answers in MQTT"
        code = getattr(getattr(error, "rc", None), "value", None)
        if code in WRONG_PROTOCOL or "operation timed out" in text:
            advice = f"An MQTT 3.1.1 broker (amqtt) needs protocol=311, others take 5 (now {self.protocol})."
        elif isinstance(error, aiomqtt.exceptions.MqttConnectError):
            advice = "Check the user name and the password in the environment, and the broker's log."
        elif "certificate" in text or "ssl" in text:
            advice = "Give the certificate authority that has signed the broker's certificate."
        else:
            advice = f"Start a broker there (mosquitto -p {self._port}) or let gridpace bring its own."
        return BusUnreachable(self.url, why, advice)

    # Sending: the table's entries, a window of them at a time. A task for each publication, or 64
    # that sleep for one, would cost more than the messages. (6)

    def _pump_soon(self) -> None:
        """Send in the loop's next turn, so that a step's messages go out together."""
        if not self._pumping and self._client is not None:
            self._pumping = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = False
        client = self._client
        while client is not None and len(self._sent) < client.window:
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
        self._note_progress()

    def acknowledged(self, client: _Connection, packet: int, reason: ReasonCode) -> None:
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
            self._latch.put(Message(message.topic, bytes(message.payload)))  # (8)
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


class _Connection(aiomqtt.Client):
    """One connection. Overrides three of aiomqtt's callbacks, which `tests/test_mqtt.py` watches."""

    def __init__(self, options: dict[str, Any], password: _Secret, timeout_s: float, bus: MqttBus) -> None:
        super().__init__(**options, password=password.value)
        self.pending_calls_threshold = 10**9  # (5)
        self._client.connect_timeout = timeout_s
        self._client.loop_write = self._write_together  # type: ignore[method-assign]
        self._bus = bus
        self._five = bus.protocol == 5
        self.window = WINDOW
        self._largest: float = inf

    def fits(self, entry: Entry) -> bool:
        """Whether the broker takes a packet of this size; else it would close the connection."""
        return len(entry.topic.encode()) + len(entry.payload) + 20 <= self._largest

    def send(self, entry: Entry, left_s: float) -> int | None:
        """Queue a packet for the socket; its identifier, or `None` if there is no connection."""
        expiry = _expiry(min(ceil(left_s), 2**32 - 1)) if self._five and left_s < inf else None
        info = self._client.publish(entry.topic, entry.payload, 1, entry.retain, expiry)
        return info.mid if info.rc == 0 else None

    def _write_together(self) -> MQTTErrorCode:
        """Let the kernel send all waiting packets at once: paho hands it one by one, and with NODELAY (1)
        each is a segment of its own that wakes the broker, which costs more than all else of a packet."""
        opened = self._client.socket()
        _cork(opened, True)
        try:
            return PahoClient.loop_write(self._client)
        finally:
            _cork(opened, False)

    def _on_connect(
        self,
        client: PahoClient,
        userdata: Any,
        flags: ConnectFlags,
        reason_code: ReasonCode,
        properties: Properties | None = None,
    ) -> None:
        self.window = min(WINDOW, getattr(properties, "ReceiveMaximum", WINDOW))  # (7)
        self._largest = getattr(properties, "MaximumPacketSize", inf)
        super()._on_connect(client, userdata, flags, reason_code, properties)

    def _on_publish(
        self, client: PahoClient, userdata: Any, mid: int, reason_code: ReasonCode, properties: Properties
    ) -> None:
        self._bus.acknowledged(self, mid, reason_code)  # (2)

    def _on_message(self, client: PahoClient, userdata: Any, message: MQTTMessage) -> None:
        self._bus.arrived_now(message)


def _cork(opened: Any, on: bool) -> None:
    """Hold packets back, or let them go; where the system has no such option, and on a socket that has
    been closed meanwhile, nothing happens."""
    option = getattr(socket, "TCP_CORK", None)
    if option is not None and opened is not None:
        with suppress(OSError):
            opened.setsockopt(socket.IPPROTO_TCP, option, int(on))


class _Handshake:
    """A TLS context whose sockets are closed when the handshake fails, which paho forgets to do."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.check_hostname = context.check_hostname
        self._context = context

    def wrap_socket(self, link: socket.socket, **options: Any) -> ssl.SSLSocket:
        wrapped = self._context.wrap_socket(link, **options)
        try:
            wrapped.do_handshake()
        except BaseException:
            wrapped.close()
            raise
        return wrapped


class _Secret:
    """A password that nothing prints."""

    __slots__ = ("value",)

    def __init__(self, value: str | None) -> None:
        self.value = value

    def __repr__(self) -> str:
        return "***"


class _Packed(Properties):
    """Properties that are turned into bytes once."""

    def __init__(self, expiry_s: int) -> None:
        super().__init__(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        self.MessageExpiryInterval = expiry_s
        self.__dict__["packed"] = super().pack()  # type: ignore[no-untyped-call]

    def pack(self) -> bytes:
        packed: bytes = self.__dict__["packed"]
        return packed


@lru_cache(maxsize=1024)
def _expiry(seconds: int) -> Properties:
    return _Packed(seconds)  # (11)


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
        raise ValueError(f"mqtt: {url!r} is no address; write mqtt://host:port or mqtts://host:port")
    secure = parts.scheme == "mqtts"
    return parts.hostname, parts.port or (8883 if secure else 1883), secure
