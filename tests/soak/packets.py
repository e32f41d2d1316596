"""MQTT 3.1.1 packets by hand: a client library refuses to send what is wrong."""

from __future__ import annotations

CONNACK_ACCEPTED = b"\x20\x02\x00\x00"
PINGREQ = b"\xc0\x00"
PINGRESP = b"\xd0\x00"
DISCONNECT = b"\xe0\x00"


def text(value: str) -> bytes:
    """A string with its length before it."""
    content = value.encode()
    return len(content).to_bytes(2, "big") + content


def length(number: int) -> bytes:
    """The "remaining length": seven bits a byte, the lowest first."""
    digits = bytearray()
    while True:
        number, digit = divmod(number, 128)
        digits.append(digit | (0x80 if number else 0))
        if not number:
            return bytes(digits)


def packet(first: int, body: bytes) -> bytes:
    """A packet of any kind."""
    return bytes([first]) + length(len(body)) + body


def connect(
    client_id: str,
    *,
    username: str | None = None,
    password: str | None = None,
    will: tuple[str, bytes] | None = None,
    keepalive_s: int = 60,
) -> bytes:
    """A CONNECT with a clean session; a will is retained."""
    flags = 2 | (4 | 32 if will else 0) | (128 if username else 0) | (64 if password else 0)
    body = text("MQTT") + bytes([4, flags]) + keepalive_s.to_bytes(2, "big") + text(client_id)
    if will:
        body += text(will[0]) + len(will[1]).to_bytes(2, "big") + will[1]
    body += b"".join(text(word) for word in (username, password) if word)
    return packet(0x10, body)


def subscribe(pattern: str, identifier: int = 1) -> bytes:
    """A SUBSCRIBE with QoS 0."""
    return packet(0x82, identifier.to_bytes(2, "big") + text(pattern) + b"\x00")


def publish(topic: str, payload: bytes, *, retain: bool = False) -> bytes:
    """A PUBLISH with QoS 0."""
    return packet(0x31 if retain else 0x30, text(topic) + payload)
