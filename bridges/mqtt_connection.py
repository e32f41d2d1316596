"""Connection: one MQTT connection of `bridges.mqtt`; `(n)` are the remedies that are listed there."""

from __future__ import annotations

import logging
import socket
import ssl
from contextlib import suppress
from functools import lru_cache
from math import ceil, inf
from typing import Any, Protocol

import aiomqtt
from paho.mqtt.client import Client as PahoClient
from paho.mqtt.client import ConnectFlags, MQTTMessage
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from bridges.bus import MAX_PAYLOAD_BYTES
from bridges.table import Entry

logging.getLogger("mqtt").setLevel(logging.NOTSET)  # (5) importing aiomqtt has set WARNING

MAX_PACKET_BYTES = MAX_PAYLOAD_BYTES + 1024
"""Of what arrives: a payload, its topic and its properties."""
WINDOW = 64
"""Messages in flight; far fewer wait for the network, far more only fill buffers."""


class Owner(Protocol):
    """The bus that a connection belongs to."""

    def write_soon(self, client: Connection) -> None:
        """There is something to be written."""
        ...

    def acknowledged(self, client: Connection, packet: int, reason: ReasonCode) -> None:
        """The broker has answered to a packet."""
        ...

    def arrived_now(self, message: MQTTMessage) -> None:
        """A message has arrived."""
        ...


class Connection(aiomqtt.Client):
    """One connection. Overrides four of aiomqtt's callbacks, which `tests/test_mqtt.py` watches."""

    def __init__(
        self, options: dict[str, Any], password: Secret, timeout_s: float, five: bool, bus: Owner
    ) -> None:
        super().__init__(**options, password=password.value)
        self.pending_calls_threshold = 10**9  # (5)
        self._client.connect_timeout = timeout_s
        self._client.loop_write = self._write_together  # type: ignore[method-assign]
        self._bus = bus
        self._five = five
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

    def write(self) -> None:
        """Hand all waiting packets to the kernel; what it does not take now, as soon as it does."""
        try:
            if self._client.want_write():
                self._client.loop_write()
        except Exception as error:  # as aiomqtt does: the connection has broken
            if not self._disconnected.done():
                self._disconnected.set_exception(error)
        opened = self._client.socket()
        if opened is not None and self._client.want_write():
            super()._on_socket_register_write(self._client, None, opened)

    def _on_socket_register_write(self, client: PahoClient, userdata: Any, sock: Any) -> None:
        if self._connected.done():
            self._bus.write_soon(self)  # (12)
        else:  # maybe in the thread that connects
            super()._on_socket_register_write(client, userdata, sock)

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


class Handshake:
    """A TLS context whose sockets are closed when the handshake fails, which paho forgets to do. It asks for
    the broker's own certificate, though the connection may lead through a proxy."""

    def __init__(self, context: ssl.SSLContext, host: str) -> None:
        self.check_hostname = context.check_hostname
        self._context, self._host = context, host

    def wrap_socket(self, link: socket.socket, **options: Any) -> ssl.SSLSocket:
        wrapped = self._context.wrap_socket(link, **options | {"server_hostname": self._host})
        try:
            wrapped.do_handshake()
        except BaseException:
            wrapped.close()
            raise
        return wrapped


class Secret:
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


def bounded() -> Properties:
    """What we tell a broker when we connect: that it is to keep larger packets from us, unread."""
    bounded = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    bounded.MaximumPacketSize = MAX_PACKET_BYTES
    return bounded


@lru_cache(maxsize=1024)
def _expiry(seconds: int) -> Properties:
    return _Packed(seconds)  # (11)
