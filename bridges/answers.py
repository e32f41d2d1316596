"""Answers: what devices say of their instructions, as messages and back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Literal

import msgspec

from bridges import wire
from bridges.bus import MAX_PAYLOAD_BYTES
from bridges.wire import Ack, BadMessage, Reason
from controllers.register import Answer, Life, Refusal

BATCH_ACK: Literal["gridpace.batch-ack.v1"] = "gridpace.batch-ack.v1"
MAX_REASON = 300
MAX_AT_ONCE = 64
"""Most answers of one device in a message."""
_ROOM = 60_000


class Shared(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One answer that many devices give."""

    epoch: int
    seq: int
    state: Life
    time: datetime
    ders: tuple[str, ...]
    code: Refusal | None = None
    reason: Reason | None = None

    def ack(self) -> Ack:
        """What each of them says."""
        return Ack(
            epoch=self.epoch,
            seq=self.seq,
            state=self.state,
            time=self.time,
            code=self.code,
            reason=self.reason,
        )

    def __post_init__(self) -> None:
        wire.check_numbers(epoch=self.epoch, seq=self.seq)
        wire.check_times(time=self.time)
        for der in self.ders:
            wire.check_name("der", der)


class BatchAck(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the instructions of a gateway's devices, in order."""

    schema: Literal["gridpace.batch-ack.v1"]
    answers: tuple[Shared, ...]


def to_ack(answer: Answer) -> Ack:
    """An answer as it is sent."""
    return Ack(
        epoch=answer.epoch,
        seq=answer.seq,
        state=answer.state,
        time=answer.time.astimezone(UTC),
        code=answer.code,
        reason=answer.reason and answer.reason[:MAX_REASON],
    )


def to_answer(ack: Ack) -> Answer:
    """An answer as it was meant."""
    return Answer(ack.epoch, ack.seq, ack.state, ack.time, ack.code, ack.reason)


def encode_answers(answers: Iterable[Answer]) -> bytes:
    """One device's answers, the newest ones if there are too many: an object, or a list of several.

    Raises:
        BadMessage: no answer, or one that cannot be sent.
    """
    acks = [to_ack(answer) for answer in answers][-MAX_AT_ONCE:]
    if not acks:
        raise BadMessage("there is no answer to send")
    return wire.encode(acks[0]) if len(acks) == 1 else msgspec.json.encode(acks)


def decode_acks(payload: bytes) -> list[Ack]:
    """One device's answers, in order.

    Raises:
        BadMessage: too large, no JSON, neither an answer nor a list of at most `MAX_AT_ONCE`.
    """
    if payload.lstrip()[:1] != b"[":
        return [wire.decode(payload, Ack)]
    acks = wire.read(payload, _ACKS, "list of Ack")
    if not 0 < len(acks) <= MAX_AT_ONCE:
        raise BadMessage(f"{len(acks)} answers at once; 1 to {MAX_AT_ONCE} are read")
    return acks


def encode_batch_answers(answers: Iterable[tuple[str, Answer]]) -> Iterator[bytes]:
    """The answers of a gateway's devices, in as many messages as they need; alike ones are said once.

    Args:
        answers: (device, answer), each device's in order.
    """
    alike: defaultdict[Answer, list[str]] = defaultdict(list)
    for der, answer in answers:
        alike[answer].append(der)
    shared: list[Shared] = []
    size = 0
    for answer, ders in alike.items():
        ack = to_ack(answer)
        about = 200 + 2 * len(ack.reason or "")  # at most, without the names
        at = 0
        while at < len(ders):
            if size + about + len(ders[at]) > _ROOM:
                yield _batch(shared)
                shared, size = [], 0
            end, size = at, size + about
            while end < len(ders) and size + len(ders[end]) + 3 <= _ROOM:
                size += len(ders[end]) + 3
                end += 1
            part = tuple(ders[at:end])
            shared.append(Shared(**msgspec.structs.asdict(ack), ders=part))
            at = end
    if shared:
        yield _batch(shared)


def decode_batch_acks(payload: bytes) -> list[tuple[str, Ack]]:
    """(device, answer) of a gateway's devices, each device's in order.

    Raises:
        BadMessage: as `wire.decode`.
    """
    said = wire.decode(payload, BatchAck)
    return [(der, ack) for one in said.answers for ack in [one.ack()] for der in one.ders]


def _batch(shared: list[Shared]) -> bytes:
    payload = wire.encode(BatchAck(schema=BATCH_ACK, answers=tuple(shared)))
    assert len(payload) <= MAX_PAYLOAD_BYTES
    return payload


_ACKS: msgspec.json.Decoder[list[Ack]] = msgspec.json.Decoder(list[Ack])
