"""Many devices in few messages: what goes in comes out, parts stand for themselves, answers come back."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings

from bridges import batch, wire
from bridges.answers import (
    Shared,
    decode_acks,
    decode_batch_acks,
    encode_answers,
    encode_batch_answers,
    to_answer,
)
from bridges.batch import Batch, Reading, batch_topic, from_shape, to_instructions, to_shape
from bridges.bus import MAX_PAYLOAD_BYTES
from bridges.memory import MemoryBus, MemoryHub
from bridges.parts import Parts
from bridges.publisher import Publisher
from bridges.wire import BadMessage, HalfSpaces
from controllers.contract import Instruction, Setpoint, Span
from controllers.region import Region
from controllers.register import Answer, Life, Refusal, Regime
from tests.test_wire import FALLBACK, NOON, bits, boxes, instruction, instructions, names, numbers, regions


def parts_of(epoch: int = 3) -> Parts:
    return Parts(run="r", area="a", gateway="gw1", epoch=epoch)


def read(sent: Iterable[Any]) -> dict[str, tuple[Instruction, float]]:
    """What the devices are told, by name, each once."""
    found: dict[str, tuple[Instruction, float]] = {}
    for message in sent:
        assert len(message.payload) <= MAX_PAYLOAD_BYTES
        said = wire.decode(message.payload, Batch)
        assert message.topic == batch_topic(said.run, said.area, said.gateway, said.part)
        for told, ttl_s in to_instructions(said):
            assert told.device not in found
            found[told.device] = told, ttl_s
    return found


def same_set(one: Region | None, other: Region | None) -> bool:
    """Regions of equal axes and tightest limits, or of the same bits."""
    if one is None or other is None:
        return one is other
    return bits(one) == bits(other) or to_shape(one) == to_shape(other)


@given(st.lists(instructions(), max_size=5, unique_by=lambda i: i.device), st.floats(0.001, 1e6))
@settings(deadline=None)
def test_what_devices_are_told_survives(sent: list[Instruction], ttl_s: float) -> None:
    sent = [replace(one, epoch=3) for one in sent]
    newest = max((one.issued_at for one in sent), default=NOON)
    got = read(parts_of().put([(one, ttl_s) for one in sent]))
    for one in sent:
        left_s = ttl_s - (newest - one.issued_at).total_seconds()
        if one.valid_until <= newest or left_s <= 0.001:
            continue  # over before it could be sent
        told, lives_s = got.pop(one.device)
        assert lives_s == pytest.approx(left_s, abs=0.003)
        for name in ("epoch", "seq", "issued_at", "valid_from", "valid_until", "setpoint"):
            assert getattr(told, name) == getattr(one, name)
        assert same_set(told.fallback, one.fallback)
        assert [(s.start, s.end, s.setpoint) for s in told.spans] == [
            (s.start, s.end, s.setpoint) for s in one.spans
        ]
        assert all(same_set(a.region, b.region) for a, b in zip(told.spans, one.spans, strict=True))
    assert all(lives_s <= 0.002 for _, lives_s in got.values())


@given(boxes())
def test_a_box_survives_to_the_bit(region: Region) -> None:
    shape = to_shape(region)
    assert isinstance(shape, tuple)
    assert bits(from_shape(shape)) == bits(region)


@given(st.lists(boxes(), min_size=2, max_size=4), st.tuples(numbers, numbers))
def test_boxes_that_meet_are_one_box_and_others_keep_their_rows(several: list[Region], point: Any) -> None:
    joined = several[0]
    for region in several[1:]:
        joined &= region
    again = from_shape(to_shape(joined))
    assert (point in again) == (point in joined)
    if isinstance(to_shape(joined), tuple):
        assert len(again.b) == 4
    else:
        assert bits(again) == bits(joined)  # it has no point


@given(regions())
def test_other_regions_are_half_spaces(region: Region) -> None:
    shape = to_shape(region)
    if isinstance(shape, HalfSpaces):
        assert bits(from_shape(shape)) == bits(region)
    else:
        assert same_set(from_shape(shape), region)


def test_a_side_without_a_limit_is_null() -> None:
    half = Region(("p_mw", "q_mvar"), np.array([[1.0, 0.0], [0.0, -1.0]]), np.array([0.5, 0.25]))
    assert to_shape(half) == (None, 0.5, -0.25, None)
    assert same_set(from_shape((None, 0.5, -0.25, None)), half)
    assert from_shape((None, None, None, None)).b.tolist() == []


# Parts


def fleet(count: int, seq: int = 1, **changes: Any) -> list[tuple[Instruction, float]]:
    rng = np.random.default_rng(seq)
    told = []
    for i in range(count):
        p, q = rng.uniform(0, 1, 2)
        region = Region.box(p_mw=(-p, p), q_mvar=(-q, q))
        told.append((instruction(device=f"der-{i:05d}", seq=seq, region=region, **changes), 300.0))
    return told


def test_500_devices_fit_into_few_messages() -> None:
    told = fleet(500)
    sent = parts_of().put(told)
    assert len(sent) == 2
    got = read(sent)
    assert {name: bits(one.region) for name, (one, _) in got.items()} == {
        one.device: bits(one.region) for one, _ in told
    }


def test_a_device_keeps_its_part_and_only_parts_with_news_are_sent() -> None:
    parts = parts_of()
    first = {name: sent.topic for sent in parts.put(fleet(1200)) for name in read([sent])}
    (changed,) = parts.put([(instruction(device="der-01100", seq=2), 300.0)])
    assert changed.topic == first["der-01100"]
    got = read([changed])
    assert got["der-01100"][0].seq == 2
    # The others of the part are told again, so that what is retained is all there is to know.
    assert set(got) == {name for name, topic in first.items() if topic == changed.topic}
    assert {one.seq for name, (one, _) in got.items() if name != "der-01100"} == {1}


def test_what_is_over_is_left_out_and_what_goes_on_lives_no_longer_than_it_did() -> None:
    parts = parts_of()
    long = instruction(device="long", valid_until=NOON + timedelta(minutes=9))
    parts.put([(instruction(device="short"), 300.0), (long, 540.0)])
    later = NOON + timedelta(minutes=5)
    new = instruction(
        device="new", seq=2, issued_at=later, valid_from=later, valid_until=later + timedelta(minutes=1)
    )
    (sent,) = parts.put([(new, 60.0)])
    got = read([sent])
    assert {name: ttl_s for name, (_, ttl_s) in got.items()} == {"long": 240.0, "new": 60.0}
    assert sent.ttl_s == 240.0


def test_a_part_that_grows_is_split_and_nobody_is_lost() -> None:
    parts = parts_of()
    parts.put(fleet(500))
    angle = np.linspace(0, 2 * np.pi, 33)[:-1] + 0.1
    polygon = Region(("p_mw", "q_mvar"), np.column_stack([np.cos(angle), np.sin(angle)]), np.ones(32))
    grown = [(replace(one, seq=2, region=polygon), ttl_s) for one, ttl_s in fleet(500)]
    sent = parts.put(grown)
    assert len(sent) > 10
    got = read(sent)
    assert len(got) == 500
    assert {bits(one.region) for one, _ in got.values()} == {bits(polygon)}
    again = {name: message.topic for message in parts.put(fleet(500, seq=3)) for name in read([message])}
    assert again == {name: message.topic for message in sent for name in read([message])}


def test_a_schedule_too_long_for_a_message_is_shortened() -> None:
    every = timedelta(minutes=5)
    angle = np.linspace(0, 2 * np.pi, 17)[:-1] + 0.1
    polygon = Region(("p_mw", "q_mvar"), np.column_stack([np.cos(angle), np.sin(angle)]), np.ones(16))
    later = tuple(Span(NOON + (k + 1) * every, NOON + (k + 2) * every, polygon) for k in range(200))
    told = instruction(valid_until=later[-1].end, later=later)
    ((got, ttl_s),) = read(parts_of().put([(told, 201 * 300.0)])).values()
    assert 10 < len(got.later) < 200
    assert got.valid_until == got.later[-1].end
    assert ttl_s == pytest.approx(300.0 * (len(got.later) + 1))


def test_what_cannot_be_sent_is_refused_and_nothing_of_it_stays() -> None:
    parts = parts_of()
    angle = np.linspace(0, 6, 2000)
    huge = Region(("p_mw", "q_mvar"), np.column_stack([np.cos(angle), np.sin(angle)]), np.ones(2000))
    for wrong, ttl_s, why in (
        (instruction(region=huge), 300.0, "48000 are sent at most"),
        (instruction(device="a/b"), 300.0, "der 'a/b'"),
        (instruction(), float("inf"), "ttl_s inf"),
        (instruction(issued_at=NOON.replace(tzinfo=None)), 300.0, "time zone"),
        (instruction(valid_until=NOON), 300.0, "valid_until"),
    ):
        with pytest.raises(BadMessage, match=why):
            parts.put([(instruction(device="fine"), 300.0), (wrong, ttl_s)])
    with pytest.raises(ValueError, match="epoch 4, this publisher of 3"):
        parts.put([(instruction(epoch=4), 300.0)])
    assert "fine" not in parts
    assert parts.put([]) == []
    with pytest.raises(BadMessage, match="der 'a\\+'"):
        Parts(run="r", area="a", gateway="a+", epoch=1)


# Decoding


def payload() -> dict[str, Any]:
    (sent,) = parts_of().put([(instruction(setpoint=Setpoint(p_mw=0.5)), 300.0)])
    decoded: dict[str, Any] = json.loads(sent.payload)
    return decoded


def changed(**changes: Any) -> bytes:
    """A message with a change in itself, its group, or its only device."""
    raw = payload()
    for key, value in changes.items():
        if key == "told":
            raw["groups"][0]["told"] = value
        elif key in raw:
            raw[key] = value
        else:
            raw["groups"][0][key] = value
    return json.dumps(raw).encode()


BOX = [0.0, 1.0, 0.0, 0.0]
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "another schema": ({"schema": "gridpace.setpoint.v1"}, "schema"),
    "another sign": ({"sign": "load_positive"}, "sign"),
    "an unknown key": ({"later": []}, "unknown field"),
    "an area of a reserved name": ({"area": "ctl"}, "area"),
    "a gateway with a wildcard": ({"gateway": "+"}, "der '\\+'"),
    "a part that is none": ({"part": 1000}, "part 1000"),
    "epoch as text": ({"epoch": "1"}, "epoch"),
    "seq huge": ({"seq": 2**53 + 1}, "seq"),
    "no time to live": ({"ttl_ms": 0}, "ttl_ms"),
    "a time to live that never ends": ({"ttl_ms": 2**53}, "366 days"),
    "a year after all clocks": ({"valid_until": "9999-12-31T23:59:59Z"}, "years 1970 to 2200"),
    "another zone": ({"issued": "2026-06-21T14:00:00+02:00"}, "issued"),
    "validity reversed": ({"valid_until": "2026-06-21T11:00:00Z"}, "valid_until"),
    "a name with a slash": ({"told": [["a/b", [[0, BOX, None]], BOX]]}, "der"),
    "a name that is none": ({"told": [[7, [[0, BOX, None]], BOX]]}, "told"),
    "no piece": ({"told": [["d", [], BOX]]}, "0 pieces"),
    "a first piece that begins later": ({"told": [["d", [[1, BOX, None]], BOX]]}, "the first is 0"),
    "pieces in no order": (
        {"told": [["d", [[0, BOX, None], [9, BOX, None], [9, BOX, None]], BOX]]},
        "each one later",
    ),
    "a piece after the end": ({"told": [["d", [[0, BOX, None], [300_000_000, BOX]], BOX]]}, "at valid_until"),
    "too many pieces": ({"told": [["d", [[k, None] for k in range(290)], BOX]]}, "290 pieces"),
    "limits reversed": ({"told": [["d", [[0, [1.0, 0.0, 0.0, 0.0], None]], BOX]]}, "above the upper"),
    "three limits": ({"told": [["d", [[0, [0.0, 1.0, 0.0], None]], BOX]]}, "length 4"),
    "limits as text": ({"told": [["d", [[0, ["0", 1.0, 0.0, 0.0], None]], BOX]]}, "told"),
    "no fallback": ({"told": [["d", [[0, BOX, None]]]]}, "length 3"),
    "a fallback that is null": ({"told": [["d", [[0, BOX, None]], None]]}, "told"),
    "one thing too many": ({"told": [["d", [[0, BOX, None]], BOX, 1]]}, "length 3"),
    "a setpoint of nothing": ({"told": [["d", [[0, BOX, [None, None]]], BOX]]}, "setpoint"),
    "a row of zeros": (
        {"told": [["d", [[0, {"axes": ["p_mw"], "A": [[0]], "b": [1]}, None]], BOX]]},
        "row of the region",
    ),
}


@pytest.mark.parametrize(("changes", "why"), BAD.values(), ids=BAD.keys())
def test_a_wrong_batch_is_refused_with_its_reason(changes: dict[str, Any], why: str) -> None:
    assert wire.decode(changed(), Batch).groups[0].seq == 118
    with pytest.raises(BadMessage, match=why):
        to_instructions(wire.decode(changed(**changes), Batch))


def test_sizes_are_bounded_before_anything_is_read() -> None:
    padded = changed() + b" " * MAX_PAYLOAD_BYTES
    for decode in (decode_acks, decode_batch_acks, batch.decode_measured, lambda p: wire.decode(p, Batch)):
        with pytest.raises(BadMessage, match="65000 of a message"):
            decode(padded)
        with pytest.raises(BadMessage, match="65000 of a message"):
            decode(b"[" * (MAX_PAYLOAD_BYTES + 1))


ACK = {"epoch": 1, "seq": 2, "state": "applied", "time": "2026-06-21T12:00:00Z"}
DAMAGED: dict[str, tuple[bytes, Any]] = {
    "batch": (json.dumps(payload()).encode(), lambda p: to_instructions(wire.decode(p, Batch))),
    "ack": (
        json.dumps([ACK, ACK | {"state": "refused", "code": "old", "reason": "x"}]).encode(),
        decode_acks,
    ),
    "batch-ack": (
        next(iter(encode_batch_answers([("d", Answer(1, 2, Life.REFUSED, NOON, Refusal.OLD, "x"))]))),
        decode_batch_acks,
    ),
    "batch-meas": (
        batch.encode_measured(NOON, [Reading("d", 0.1, 0.2, 1.0, None, Regime.LIMITED)])[0],
        batch.decode_measured,
    ),
}


@pytest.mark.parametrize("kind", DAMAGED)
@given(data=st.data())
def test_damaged_bytes_are_read_or_refused(kind: str, data: st.DataObject) -> None:
    whole, decode = DAMAGED[kind]
    assert decode(whole)
    raw = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        said = decode(bytes(raw))
    except BadMessage:
        return
    assert isinstance(said, list)
    assert len(said) <= 2


def test_the_batch_on_the_page_is_one() -> None:
    page = (Path(__file__).parent.parent / "docs" / "wire.md").read_text("utf-8")
    told, said = (
        next(b for b in re.findall(r"(?ms)^```jsonc\n(.*?)^```", page) if f'"gridpace.{kind}.v1"' in b)
        for kind in ("batch", "batch-ack")
    )
    pv, bat = (one for one, _ in to_instructions(wire.decode(told.encode(), Batch)))
    assert pv.region is not None
    assert pv.region.limits("p_mw") == (-0.038, 1.729)
    assert (bat.setpoint, len(bat.spans), bat.later[0].region) == (Setpoint(p_mw=-0.2), 2, None)
    assert bat.later[0].start == pv.valid_from + timedelta(minutes=5)
    decoder = json.JSONDecoder()
    ack, end = decoder.raw_decode(said)
    meas, _ = decoder.raw_decode(said[end:].lstrip())
    assert [(d, a.state) for d, a in decode_batch_acks(json.dumps(ack).encode())] == [
        ("pv24", "applied"),
        ("bat13", "applied"),
        ("pv25", "refused"),
    ]
    assert [m.state for _, m in batch.decode_measured(json.dumps(meas).encode())] == ["limited", "controlled"]


# Answers


answers = st.builds(
    lambda epoch, seq, state, code, reason: Answer(
        epoch, seq, state, NOON, code if state is Life.REFUSED else None, reason
    ),
    st.integers(0, 2**53),
    st.integers(0, 3),
    st.sampled_from(Life),
    st.sampled_from(Refusal),
    st.none() | st.text(min_size=1, max_size=300),
)


@given(st.lists(answers, min_size=1, max_size=64))
def test_answers_come_back(said: list[Answer]) -> None:
    assert [to_answer(ack) for ack in decode_acks(encode_answers(said))] == said


def test_a_device_says_64_things_at_once_at_most_and_the_newest() -> None:
    said = [Answer(1, seq, Life.RECEIVED, NOON) for seq in range(70)]
    assert [ack.seq for ack in decode_acks(encode_answers(said))] == list(range(6, 70))
    with pytest.raises(BadMessage, match="65 answers"):
        decode_acks(json.dumps([ACK] * 65).encode())
    with pytest.raises(BadMessage, match="0 answers"):
        decode_acks(b"[]")
    with pytest.raises(BadMessage, match="no answer"):
        encode_answers([])


def test_a_reason_is_bounded() -> None:
    long = Answer(1, 2, Life.REFUSED, NOON, Refusal.CAPABILITY, "x" * 1000)
    assert decode_acks(encode_answers([long]))[0].reason == "x" * 300
    with pytest.raises(BadMessage, match="reason"):
        decode_acks(json.dumps(ACK | {"reason": "x" * 301}).encode())
    with pytest.raises(BadMessage, match="code"):
        decode_acks(json.dumps(ACK | {"code": "because"}).encode())


@given(st.lists(st.tuples(names, answers), max_size=20))
def test_the_answers_of_a_gateway_come_back(said: list[tuple[str, Answer]]) -> None:
    got = [
        (der, to_answer(ack)) for sent in encode_batch_answers(said) for der, ack in decode_batch_acks(sent)
    ]
    assert sorted(map(repr, got)) == sorted(map(repr, said))


def test_the_answers_of_many_are_split_where_they_must_be() -> None:
    said = [(f"{i:064d}", Answer(1, 2, Life.FALLBACK, NOON)) for i in range(3000)]
    sent = list(encode_batch_answers(said))
    assert len(sent) == 4
    assert [der for one in sent for der, _ in decode_batch_acks(one)] == [der for der, _ in said]
    each = [(f"{i:05d}", Answer(1, i, Life.REFUSED, NOON, Refusal.OLD, "ä" * 300)) for i in range(300)]
    sent = list(encode_batch_answers(each))
    assert len(sent) > 1
    assert len([one for part in sent for one in decode_batch_acks(part)]) == 300


def test_an_answer_of_many_needs_names_that_can_be() -> None:
    with pytest.raises(BadMessage, match="der"):
        Shared(epoch=1, seq=2, state=Life.APPLIED, time=NOON, ders=("a+",))


def test_measurements_of_a_gateway_come_back() -> None:
    readings = [Reading(f"d{i}", 0.1 * i, 0.0, 1.01, None, Regime.CONTROLLED) for i in range(600)]
    sent = batch.encode_measured(NOON, readings)
    assert len(sent) == 3
    got = [one for payload in sent for one in batch.decode_measured(payload)]
    assert [(der, m.p_mw, m.v_pu, m.e_mwh, m.state) for der, m in got] == [
        (r.der, r.p_mw, 1.01, None, "controlled") for r in readings
    ]
    with pytest.raises(BadMessage, match="v_pu"):
        Reading("d", 0.0, 0.0, float("nan"))
    with pytest.raises(BadMessage, match="not a BatchMeas"):
        batch.decode_measured(b'{"time":"2026-06-21T12:00:00Z","readings":[]}')
    assert (
        batch.decode_measured(b'{"time":"2026-06-21T12:00:00Z","readings":[["d",1,2]],"x":1}')[0][1].p_mw == 1
    )


# The controller's side


async def test_the_publisher_sends_and_hears_only_those_it_told() -> None:
    hub = MemoryHub()
    async with MemoryBus(hub) as ours, MemoryBus(hub) as gateway:
        publisher = Publisher(ours, run="r", area="a", epoch=3)
        gateway.subscribe("gridpace/v1/r/a/gw1/batch/+")
        publisher.send_batch("gw1", fleet(3))
        (heard,) = gateway.received()
        assert len(to_instructions(wire.decode(heard.payload, Batch))) == 3
        said = [(f"der-{i:05d}", Answer(3, 1, Life.APPLIED, NOON)) for i in range(5)]
        topic = wire.device_topic("r", "a", "gw1", "batch-ack")
        for one in encode_batch_answers(said):
            gateway.publish(topic, one)
            gateway.publish(wire.device_topic("r", "a", "another", "batch-ack"), one)
        gateway.publish(topic, b"{}")
        heard_of = publisher.acks()
        assert [der for der, _ in heard_of] == ["der-00000", "der-00001", "der-00002"]
        assert ours.counts["malformed"] == 1
        late = MemoryBus(hub)
        late.subscribe("gridpace/v1/r/a/gw1/batch/+")
        async with late:
            assert len(late.received()) == 1  # it is retained


def test_the_structs_have_a_json_schema() -> None:
    _, schemas = msgspec.json.schema_components([Batch, batch.BatchMeas, wire.Ack])
    assert {"Batch", "Told", "BatchMeas", "Ack"} <= schemas.keys()


def test_the_fallback_of_the_other_tests_is_a_box() -> None:
    assert to_shape(FALLBACK) == (0.0, 0.1, 0.0, 0.0)
