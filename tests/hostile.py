"""Hostile payloads: real messages of every kind, what is made of them, and what never was one."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import numpy as np

from bridges import answers, asking, batch, parcel, wire
from bridges.instruction import to_message
from bridges.parts import Parts
from controllers.contract import Certificate, Instruction, Origin, Setpoint, Span
from controllers.region import Region
from controllers.register import Answer, Life, Refusal, Regime

NOON = datetime(2026, 6, 21, 12, tzinfo=UTC)
STEP = timedelta(minutes=5)
TOKEN = "5f1c"


def instruction(device: str = "pv24") -> Instruction:
    """One with everything that a message can have."""
    general = Region(("p_mw", "q_mvar"), np.array([[1.0, 0.5], [-1.0, 0.0]]), np.array([1.5, 0.2]))
    return Instruction(
        device=device,
        epoch=1,
        seq=12,
        issued_at=NOON - STEP,
        valid_from=NOON,
        valid_until=NOON + 3 * STEP,
        region=Region.box(p_mw=(-0.4, 1.7), q_mvar=(0.0, 0.0)),
        setpoint=Setpoint(p_mw=0.4, q_mvar=None),
        fallback=Region.box(p_mw=(0.0, 0.0), q_mvar=(0.0, 0.0)),
        origin=Origin.OPTIMAL,
        certificate=Certificate(binding="bus 17", worst_v_pu=1.05, worst_loading_percent=71.0, power_flows=9),
        later=(
            Span(NOON + STEP, NOON + 2 * STEP, general, None),
            Span(NOON + 2 * STEP, NOON + 3 * STEP, None, None),
        ),
    )


def genuine() -> dict[str, list[bytes]]:
    """Valid messages as they are sent, by kind."""
    parts = Parts(run="r", area="feeder", gateway="gw1", epoch=1)
    said = [
        Answer(1, 12, Life.APPLIED, NOON, None, None),
        Answer(1, 12, Life.REFUSED, NOON, Refusal.CAPABILITY, "no point is within its rating"),
    ]
    seen = [batch.Reading("pv24", 0.61, 0.0, 1.012, None, Regime.LIMITED), batch.Reading("bat13", -0.2, 0.0)]
    whole = json.dumps({"schema": "gridpace.ask.v1", "controller": "mg1"}).encode()
    return {
        "setpoint": [wire.encode(to_message(instruction(), run="r", area="feeder", ttl_s=900.0))],
        "batch": [
            sent.payload for sent in parts.put([(instruction(), 900.0), (instruction("bat13"), 900.0)])
        ],
        "ack": [answers.encode_answers(said), answers.encode_answers(said[:1])],
        "batch-ack": list(answers.encode_batch_answers([("pv24", said[0]), ("bat13", said[1])])),
        "meas": [
            wire.encode(
                wire.Meas(time=NOON, p_mw=0.61, q_mvar=0.0, v_pu=1.01, e_mwh=0.4, state=Regime.LIMITED)
            )
        ],
        "batch-meas": batch.encode_measured(NOON, seen),
        "state": [wire.encode(wire.State(state="fallback", time=NOON))],
        "control": [
            wire.encode(wire.Heartbeat(epoch=1, step=11, period_ms=1000.0, next_deadline=NOON)),
            wire.encode(wire.Offline(epoch=1)),
        ],
        "presence": [wire.encode(asking.Presence(state="online", token=TOKEN, life=1))],
        "part": parcel.pack(whole, token=TOKEN, number=17, within_ms=800),
    }


# What a message is made into

TOKENS = [
    *(b"null", b"true", b"-1", b"0", b"1.5", b"1e400", b"-1e400", b"NaN", b"Infinity", b"9007199254740993"),
    *(b"1e308", b"5e-324", b"00", b"1.", b"+1", b"0x10", b'""', b'"+"', b'"#"', b'"a/b"', b'"\\u0000"'),
    *(b'"\\ud800"', b'"1.0"', b'"2026-06-21"', b'"2026-06-21T12:00:00+02:00"', b'"2026-13-40T99:00:00Z"'),
    *(b'"0000-00-00T00:00:00Z"', b"[]", b"{}", b"[[]]", b"[null]", b'{"a":1}', b"[" * 50 + b"]" * 50),
    b'"' + b"x" * 400 + b'"',
]
"""Values that are put where others were."""


def replaced(payload: bytes) -> Iterator[bytes]:
    """Each value of a message by each of `TOKENS`, each key left out, given twice, or joined by another."""
    whole = json.loads(payload)
    for place in _places(whole):
        for token in TOKENS:
            yield _with(whole, place, msgspec.Raw(token))
        if isinstance(place[-1], str):
            yield _with(whole, place, None, remove=True)
            value = msgspec.json.encode(_at(whole, place))
            key = msgspec.json.encode(place[-1])
            yield _with(whole, place, msgspec.Raw(value + b"," + key + b":null"))
            yield _with(whole, place, msgspec.Raw(value + b',"unknown":1'))
        else:
            yield _with(whole, place, None, remove=True)
            value = msgspec.json.encode(_at(whole, place))
            yield _with(whole, place, msgspec.Raw(value + b"," + value))


def _places(x: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    inner = x.items() if isinstance(x, dict) else enumerate(x) if isinstance(x, list) else ()
    for key, value in inner:
        yield (*path, key)
        yield from _places(value, (*path, key))


def _at(x: Any, path: tuple[str | int, ...]) -> Any:
    for key in path:
        x = x[key]
    return x


def _with(whole: Any, path: tuple[str | int, ...], value: Any, *, remove: bool = False) -> bytes:
    copy = json.loads(json.dumps(whole))
    place = _at(copy, path[:-1])
    if remove:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return msgspec.json.encode(copy)


def shapeless() -> Iterator[bytes]:
    """What is no message of any kind."""
    yield from (
        b"",
        b" ",
        b"\x00",
        b"null",
        b"true",
        b"0",
        b'""',
        b"[]",
        b"{}",
        b"[{}]",
        b"{",
        b'{"',
        b"[1,",
        b'{"a"}',
    )
    yield from (
        b"\xef\xbb\xbf{}",
        '{"a":1}'.encode("utf-16"),
        b'{"\xff":1}',
        b"\xc3\x28",
        b"\xed\xa0\x80",
        b"{}{}",
    )
    yield from (
        b"[" * 60_000,
        b'{"a":' * 10_000,
        b"[" * 30_000 + b"]" * 30_000,
        b'"' + b"\\" * 1001,
        b"9" * 60_000,
    )
    yield from (
        b" " * 65_000,
        b" " * 65_001,
        b"x" * 65_001,
        b'{"epoch":1' + b"0" * 64_000 + b"}",
        b"\n" * 400,
    )
    yield from (
        b"<xml/>",
        b"!!python/object:os.system",
        b"cos\nsystem\n(S'id'\ntR.",
        b"$(id)",
        b"../../etc/passwd",
    )


def mutated(rng: random.Random, several: list[bytes]) -> bytes:
    """A message after one to four accidents."""
    made = bytearray(rng.choice(several))
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(made) + 1)
        end = min(len(made), at + rng.randrange(1, 12))
        match rng.randrange(9):
            case 0 if at < len(made):
                made[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(made):
                made[at] = rng.randrange(256)
            case 2:
                made[at:at] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 4)))
            case 3:
                del made[at:end]
            case 4:
                made[at:at] = made[at:end]
            case 5:
                del made[at:]
            case 6:
                made[at:end] = rng.choice(TOKENS)
            case 7:
                other = rng.choice(several)
                made[at:] = other[rng.randrange(len(other) + 1) :]
            case _ if at < len(made) and 48 <= made[at] < 58:
                made[at] = rng.randrange(48, 58)
    return bytes(made)
