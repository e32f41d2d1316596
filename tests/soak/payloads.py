"""R9, payloads: what is no message is refused and counted, through the decoders and through a live bus."""

from __future__ import annotations

import asyncio
import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from bridges import answers, asking, batch, parcel, wire
from bridges.instruction import to_instruction
from tests import checker, hostile
from tests.soak.figure import Figure, at_least, below, counted

READERS: dict[str, Callable[[bytes], Any]] = {
    "setpoint": lambda payload: to_instruction(wire.decode(payload, wire.SetpointMessage)),
    "batch": lambda payload: batch.to_instructions(wire.decode(payload, batch.Batch)),
    "ack": answers.decode_acks,
    "batch-ack": answers.decode_batch_acks,
    "meas": lambda payload: wire.decode(payload, wire.Meas),
    "batch-meas": batch.decode_measured,
    "state": lambda payload: wire.decode(payload, wire.State),
    "control": wire.decode_control,
    "presence": lambda payload: wire.decode(payload, asking.Presence),
    "part": parcel.unpack,
}
"""How a run or a device reads each kind of message that it subscribes to."""
SHORT, LONG = 50_000, 1_000_000


def crafted(kind: str) -> Iterator[bytes]:
    """What was made on purpose for a kind of message."""
    yield from hostile.shapeless()
    for genuine in hostile.genuine()[kind]:
        if kind == "part":
            head, _, piece = genuine.partition(b"\n")
            yield from (made + b"\n" + piece for made in hostile.replaced(head))
        else:
            yield from hostile.replaced(genuine)


def is_valid(kind: str, payload: bytes) -> bool:
    """What the independent checker says."""
    return checker.valid_part(payload) if kind == "part" else checker.valid(kind, payload)


@dataclass
class Found:
    """What became of hostile payloads."""

    read: int = 0
    refused: int = 0
    accepted: int = 0
    wrong: list[tuple[str, bytes]] = field(default_factory=list)
    """accepted, though they are not valid"""
    crashed: list[tuple[str, bytes, str]] = field(default_factory=list)

    def take(self, kind: str, payload: bytes) -> None:
        """Read one payload as a run or device would."""
        self.read += 1
        try:
            READERS[kind](payload)
        except wire.BadMessage:
            self.refused += 1
        except Exception as error:
            self.crashed.append((kind, payload, repr(error)))
        else:
            self.accepted += 1
            if not is_valid(kind, payload):
                self.wrong.append((kind, payload))


def decoded(mutations: int, seed: int = 9) -> Found:
    """Read all crafted payloads and so many mutated ones, shared out over the kinds; warnings are errors."""
    rng, found, genuine = random.Random(seed), Found(), hostile.genuine()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in READERS:
            for payload in crafted(kind):
                found.take(kind, payload)
            for _ in range(-(-mutations // len(READERS))):
                found.take(kind, hostile.mutated(rng, genuine[kind]))
    return found


def readable(kind: str, payload: bytes) -> bool:
    """Whether a run or device takes a payload."""
    try:
        READERS[kind](payload)
    except wire.BadMessage:
        return False
    return True


async def soak(short: bool) -> list[Figure]:
    """R9: at least 1,000,000 mutated and 200 crafted payloads; a tenth of as many live."""
    from tests.soak.live import LISTENERS, sent_live

    mutations = SHORT if short else LONG
    found = await asyncio.to_thread(decoded, mutations)
    exact = await sent_live(mutations // 10)
    return [
        at_least("R9", "crafted payloads", 200, sum(len(list(crafted(kind))) for kind in READERS)),
        at_least("R9", "payloads read", mutations, found.read),
        counted("R9", "crashes", 0, len(found.crashed)),
        counted("R9", "accepted and not valid", 0, len(found.wrong)),
        at_least("R9", "payloads sent to a live bus", mutations // 10, exact.sent),
        *(
            counted("R9", f"counted as malformed: {who}", exact.expected[who], exact.counted[who])
            for who in LISTENERS
        ),
        counted("R9", "connections lost, messages dropped", 0, exact.lost),
        below("R9", "processor time of a step for what arrived, p99", 50.0, exact.busy_ms),
        below("R9", "lateness of the event loop meanwhile, p99", 50.0, exact.late_ms),
    ]
