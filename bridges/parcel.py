"""Parcel: a long message in parts that a broker takes, and back.

A part is a line of JSON (`Header`), then a piece of the message. A message has at most `MAX_PARTS` parts.
"""

from __future__ import annotations

import msgspec

from bridges.bus import MAX_PAYLOAD_BYTES
from bridges.wire import BadMessage

HEADER_BYTES = 300
"""Most that a header's line takes."""
PART_BYTES = MAX_PAYLOAD_BYTES - HEADER_BYTES
MAX_PARTS = 128
MAX_BYTES = MAX_PARTS * PART_BYTES
"""Longest message, some 8 MB."""
OPEN = 4
"""Messages that may be incomplete at once; of more the oldest is given up."""
_EXACT_INTEGER = 2**53


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a part belongs to."""

    token: str
    """of the run: who does not know it is not meant and not heard"""
    number: int
    """of the message; an answer has the number of its ask"""
    within_ms: int
    """how long the answer is waited for, from the ask's arrival on"""
    part: int
    """from 0"""
    parts: int
    size: int
    """bytes of the whole message"""

    def __post_init__(self) -> None:
        if not (len(self.token) <= 64 and 0 <= self.number <= _EXACT_INTEGER):
            raise BadMessage(f"message {self.number}: no token and number of ours")
        if not 0 < self.within_ms <= _EXACT_INTEGER:
            raise BadMessage(f"message {self.number}: within_ms {self.within_ms} must be positive")
        fits = 0 < self.size <= MAX_BYTES and self.parts == -(-self.size // PART_BYTES)
        if not (fits and 0 <= self.part < self.parts):
            raise BadMessage(
                f"message {self.number}: part {self.part} of {self.parts} with {self.size} bytes; at most "
                f"{MAX_PARTS} parts of {PART_BYTES} bytes are taken"
            )


_HEADER = msgspec.json.Decoder(Header)


def pack(message: bytes, *, token: str, number: int, within_ms: int) -> list[bytes]:
    """The parts of a message, each a payload.

    Raises:
        BadMessage: it is empty, or longer than `MAX_BYTES`.
    """
    parts = -(-len(message) // PART_BYTES)
    return [
        msgspec.json.encode(Header(token, number, within_ms, part, parts, len(message)))
        + b"\n"
        + message[part * PART_BYTES : (part + 1) * PART_BYTES]
        for part in range(parts or 1)
    ]


def unpack(payload: bytes) -> tuple[Header, bytes]:
    """The header of a part, and its piece of the message.

    Raises:
        BadMessage: no part, or of another length than its header says.
    """
    end = payload.find(b"\n", 0, HEADER_BYTES)
    if end < 0 or len(payload) > MAX_PAYLOAD_BYTES:
        raise BadMessage(f"{len(payload)} bytes without a header in the first {HEADER_BYTES}")
    try:
        header = _HEADER.decode(payload[:end])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadMessage(f"not a Header: {error}") from None
    piece = payload[end + 1 :]
    last = header.part == header.parts - 1
    expected = header.size - header.part * PART_BYTES if last else PART_BYTES
    if len(piece) != expected:
        raise BadMessage(
            f"message {header.number}: part {header.part} has {len(piece)} bytes, not {expected}"
        )
    return header, piece


class Parcels:
    """Puts messages together from parts in any order, of which some may come twice."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, int], dict[int, bytes]] = {}

    def add(self, header: Header, piece: bytes) -> bytes | None:
        """The message, if this part was the last that it lacked.

        Raises:
            BadMessage: it contradicts the parts before it.
        """
        if header.parts == 1:
            return piece
        key = (header.token, header.number)
        pieces = self._open.setdefault(key, {})
        pieces[header.part] = piece
        if max(pieces) >= header.parts:
            del self._open[key]
            raise BadMessage(f"message {header.number}: {header.parts} parts, but there was one more")
        if len(pieces) == header.parts:
            del self._open[key]
            return b"".join(pieces[part] for part in range(header.parts))
        while len(self._open) > OPEN:
            del self._open[next(iter(self._open))]
        return None
