"""The wire format: what goes in comes out, to the last bit; what is wrong is refused with a reason."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridges import wire
from bridges.bus import MAX_PAYLOAD_BYTES
from bridges.instruction import shortened, terse, to_half_spaces, to_instruction, to_message, to_region
from bridges.wire import BadMessage
from controllers.contract import Certificate, Instruction, Origin, Setpoint, Span
from controllers.region import Region

NOON = datetime(2026, 6, 21, 12, tzinfo=UTC)
FALLBACK = Region.box(p_mw=(0.0, 0.1), q_mvar=(0.0, 0.0))

numbers = st.floats(-1e6, 1e6)
names = st.from_regex(r"[A-Za-z0-9_.-]{1,64}", fullmatch=True)
times = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))


@st.composite
def boxes(draw: st.DrawFn) -> Region:
    low, high = sorted((draw(numbers), draw(numbers)))
    return Region.box(p_mw=(low, high), q_mvar=(-abs(draw(numbers)), abs(draw(numbers))))


@st.composite
def regions(draw: st.DrawFn) -> Region:
    """Any rows, so that scaling has changed most of them."""
    rows = draw(st.lists(st.tuples(numbers, numbers).filter(lambda r: np.hypot(*r) > 1e-3), max_size=8))
    limits = draw(st.lists(numbers, min_size=len(rows), max_size=len(rows)))
    return Region(("p_mw", "q_mvar"), np.array(rows).reshape(-1, 2), np.array(limits))


lengths = st.timedeltas(timedelta(microseconds=1), timedelta(days=9))
targets = st.none() | st.builds(lambda p, q: Setpoint(p_mw=p, q_mvar=q), numbers, st.none() | numbers)


@st.composite
def schedules(draw: st.DrawFn, start: datetime) -> tuple[Span, ...]:
    """Spans without gaps, the first from `start` on."""
    spans: list[Span] = []
    for length in draw(st.lists(lengths, min_size=1, max_size=4)):
        begins = spans[-1].end if spans else start
        found = draw(st.none() | certificates())
        spans.append(Span(begins, begins + length, draw(st.none() | regions()), draw(targets), found))
    return tuple(spans)


@st.composite
def certificates(draw: st.DrawFn) -> Certificate:
    binding, number = draw(st.text(max_size=20)), st.none() | st.floats(0, 200)
    checked = draw(st.integers(0, 2**53))
    if not checked:
        return Certificate(binding=binding)
    return Certificate(
        binding=draw(st.none() | st.just(binding)),
        worst_v_pu=draw(number),
        worst_loading_percent=draw(number),
        power_flows=checked,
    )


@st.composite
def instructions(draw: st.DrawFn) -> Instruction:
    start = draw(times)
    first, *later = draw(schedules(start))
    return Instruction(
        device=draw(names),
        epoch=draw(st.integers(0, 2**53)),
        seq=draw(st.integers(0, 2**53)),
        issued_at=draw(times),
        valid_from=start,
        valid_until=later[-1].end if later else first.end,
        region=first.region,
        setpoint=first.setpoint,
        fallback=draw(boxes()),
        origin=draw(st.none() | st.sampled_from(Origin)),
        certificate=draw(st.none() | certificates()),
        later=tuple(later),
    )


def bits(region: Region | None) -> object:
    return region and (region.axes, region.A.shape, region.A.tobytes(), region.b.tobytes())


def instruction(**changes: Any) -> Instruction:
    values: dict[str, Any] = {
        "device": "pv-1",
        "epoch": 3,
        "seq": 118,
        "issued_at": NOON,
        "valid_from": NOON,
        "valid_until": NOON + timedelta(minutes=5),
        "region": Region.box(p_mw=(-0.25, 1.25), q_mvar=(-0.5, 0.5)),
        "setpoint": None,
        "fallback": FALLBACK,
        "origin": Origin.OPTIMAL,
    }
    return Instruction(**values | changes)


def payload() -> dict[str, Any]:
    message = to_message(instruction(), run="r1", area="f1", ttl_s=300)
    decoded: dict[str, Any] = json.loads(wire.encode(message))
    return decoded


@given(instructions(), st.floats(0.001, 1e6))
def test_an_instruction_survives_to_the_bit(sent: Instruction, ttl_s: float) -> None:
    message = to_message(sent, run="r1", area="f1", ttl_s=ttl_s)
    got = to_instruction(wire.decode(wire.encode(message), wire.SetpointMessage))
    assert bits(got.region) == bits(sent.region)
    assert bits(got.fallback) == bits(sent.fallback)
    for name in ("device", "epoch", "seq", "issued_at", "valid_from", "valid_until", "setpoint"):
        assert getattr(got, name) == getattr(sent, name)
    assert [(s.start, s.end, s.setpoint, bits(s.region), s.certificate) for s in got.spans] == [
        (s.start, s.end, s.setpoint, bits(s.region), s.certificate) for s in sent.spans
    ]


@given(regions() | boxes())
def test_a_second_round_trip_changes_nothing(region: Region) -> None:
    assert bits(to_region(to_half_spaces(to_region(to_half_spaces(region))))) == bits(region)


def test_a_regions_arrays_stay_read_only() -> None:
    region = to_region(to_half_spaces(FALLBACK))
    assert not region.A.flags.writeable
    assert not region.b.flags.writeable


def test_rows_of_another_length_are_scaled() -> None:
    region = to_region(wire.HalfSpaces(("p_mw",), ((2.0,), (-2.0,)), (1.0, 0.0)))
    assert region.A.tolist() == [[1.0], [-1.0]]
    assert region.b.tolist() == [0.5, 0.0]


def test_what_a_person_reads() -> None:
    seen = payload()
    assert seen["schema"] == "gridpace.setpoint.v1"
    assert seen["sign"] == "injection_positive"
    assert seen["valid_until"] == "2026-06-21T12:05:00Z"
    assert seen["ttl_ms"] == 300_000
    assert seen["region"] == {
        "axes": ["p_mw", "q_mvar"],
        "A": [[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]],
        "b": [1.25, 0.25, 0.5, 0.5],
    }
    assert seen["setpoint"] is None
    assert seen["origin"] == "optimal"
    assert "why" not in seen


def test_stamps_are_translated_to_the_wall_clock() -> None:
    later = timedelta(days=100)
    message = to_message(instruction(), run="r", area="a", ttl_s=1, wall=lambda t: t + later)
    assert message.issued == NOON + later
    assert message.valid_from == NOON + later
    assert message.valid_until == NOON + later + timedelta(minutes=5)


def test_another_zone_becomes_utc() -> None:
    local = NOON.astimezone(timezone(timedelta(hours=2)))
    message = to_message(instruction(issued_at=local), run="r", area="a", ttl_s=1)
    assert wire.encode(message).count(b'"issued":"2026-06-21T12:00:00Z"') == 1


BAD_CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown field": ({"p_kw": 1}, "unknown field"),
    "another schema": ({"schema": "gridpace.setpoint.v2"}, "schema"),
    "another sign": ({"sign": "load_positive"}, "sign"),
    "seq as text": ({"seq": "1"}, "seq"),
    "seq as fraction": ({"seq": 1.5}, "seq"),
    "seq negative": ({"seq": -1}, "seq"),
    "seq huge": ({"seq": 2**53 + 1}, "seq"),
    "epoch true": ({"epoch": True}, "epoch"),
    "der with a slash": ({"der": "a/b"}, "der"),
    "der with a wildcard": ({"der": "+"}, "der"),
    "der with a line end": ({"der": "a\n"}, "der"),
    "der empty": ({"der": ""}, "der"),
    "der too long": ({"der": "x" * 65}, "der"),
    "area reserved": ({"area": "ctl"}, "area"),
    "time without zone": ({"issued": "2026-06-21T12:00:00"}, "issued"),
    "time in another zone": ({"issued": "2026-06-21T14:00:00+02:00"}, "issued"),
    "time as number": ({"issued": 1782043200}, "issued"),
    "validity reversed": ({"valid_until": "2026-06-21T11:00:00Z"}, "valid_until"),
    "no time to live": ({"ttl_ms": 0}, "ttl_ms"),
    "a time to live that never ends": ({"ttl_ms": 2**53}, "366 days"),
    "a year before all clocks": ({"issued": "0001-01-01T00:00:00Z"}, "years 1970 to 2200"),
    "a year after all clocks": ({"valid_until": "9999-12-31T23:59:59Z"}, "years 1970 to 2200"),
    "no fallback": ({"fallback": None}, "fallback"),
    "setpoint of nothing": ({"setpoint": {"p_mw": None, "q_mvar": None}}, "setpoint"),
    "setpoint with more": ({"setpoint": {"p_mw": 1, "q_mvar": 0, "v": 1}}, "unknown field"),
    "region with more": ({"region": {"axes": ["p_mw"], "A": [[1]], "b": [1], "c": 0}}, "unknown field"),
    "region uneven": ({"region": {"axes": ["p_mw"], "A": [[1, 2]], "b": [1]}}, "row"),
    "region short": ({"region": {"axes": ["p_mw"], "A": [[1]], "b": []}}, "row"),
    "region without axes": ({"region": {"axes": [], "A": [], "b": []}}, "axes"),
    "axis twice": ({"region": {"axes": ["p_mw", "p_mw"], "A": [], "b": []}}, "axes"),
    "row of zeros": ({"region": {"axes": ["p_mw"], "A": [[0]], "b": [1]}}, "zero"),
    "limit as text": ({"region": {"axes": ["p_mw"], "A": [[1]], "b": ["1"]}}, "region"),
    "limit null": ({"region": {"axes": ["p_mw"], "A": [[1]], "b": [None]}}, "region"),
}


@pytest.mark.parametrize(("changes", "why"), BAD_CHANGES.values(), ids=BAD_CHANGES.keys())
def test_a_wrong_command_is_refused_with_its_reason(changes: dict[str, Any], why: str) -> None:
    good = payload()
    assert wire.decode(json.dumps(good).encode(), wire.SetpointMessage).seq == 118
    with pytest.raises(BadMessage, match=why):
        wire.decode(json.dumps(good | changes).encode(), wire.SetpointMessage)


# Schedules


def scheduled(spans: int, *, minutes: int = 5, region: Region | None = FALLBACK) -> Instruction:
    """An instruction with `spans` later spans of equal length."""
    every = timedelta(minutes=minutes)
    later = tuple(Span(NOON + (k + 1) * every, NOON + (k + 2) * every, region) for k in range(spans))
    return instruction(valid_until=NOON + (spans + 1) * every, later=later)


def scheduled_payload() -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(
        wire.encode(to_message(scheduled(2), run="r1", area="f1", ttl_s=900))
    )
    return decoded


def test_what_a_person_reads_of_a_schedule() -> None:
    seen = scheduled_payload()
    assert seen["valid_until"] == "2026-06-21T12:15:00Z"
    assert [(span["start"], span["end"]) for span in seen["later"]] == [
        ("2026-06-21T12:05:00Z", "2026-06-21T12:10:00Z"),
        ("2026-06-21T12:10:00Z", "2026-06-21T12:15:00Z"),
    ]
    assert seen["later"][0]["region"] == seen["fallback"]
    assert "setpoint" not in seen["later"][0]
    assert "later" not in payload()


def test_a_schedule_is_translated_to_the_wall_clock_without_gaps() -> None:
    message = to_message(scheduled(3), run="r", area="a", ttl_s=1, wall=lambda t: NOON + (t - NOON) / 7)
    assert message.later[0].start == NOON + timedelta(minutes=5) / 7
    assert [span.end for span in message.later[:-1]] == [span.start for span in message.later[1:]]


BAD_SCHEDULES: dict[str, tuple[list[tuple[int, str, Any]], str]] = {
    "a gap": ([(1, "start", "2026-06-21T12:10:01Z")], "next one begins .* without a gap"),
    "an overlap": ([(1, "start", "2026-06-21T12:09:59Z")], "without a gap"),
    "a span that ends before it begins": ([(0, "end", "2026-06-21T12:04:00Z")], "it begins"),
    "a span of no length": ([(0, "end", "2026-06-21T12:05:00Z")], "it begins"),
    "begins with the first": ([(0, "start", "2026-06-21T12:00:00Z")], "not after valid_from"),
    "ends too early": ([(1, "end", "2026-06-21T12:14:00Z")], "not at valid_until"),
    "ends too late": ([(1, "end", "2026-06-21T12:16:00Z")], "not at valid_until"),
    "another zone": ([(0, "start", "2026-06-21T14:05:00+02:00")], "start"),
    "an unknown key": ([(0, "p_max", 1.0)], "unknown field"),
    "a reason that is no text": ([(0, "why", 3)], "why"),
    "a check that counts nothing": ([(1, "checked", {"worst_v_pu": 1.0})], "power_flows"),
    "no region": ([(0, "region", 5)], "region"),
    "a region that is none": ([(1, "region", {"axes": ["p_mw"], "A": [[0]], "b": [1]})], "zero"),
    "a setpoint of nothing": ([(0, "setpoint", {"p_mw": None, "q_mvar": None})], "setpoint"),
}


@pytest.mark.parametrize(("changes", "why"), BAD_SCHEDULES.values(), ids=BAD_SCHEDULES.keys())
def test_a_wrong_schedule_is_refused_with_its_reason(changes: list[tuple[int, str, Any]], why: str) -> None:
    raw = scheduled_payload()
    for place, key, value in changes:
        raw["later"][place][key] = value
    with pytest.raises(BadMessage, match=why):
        wire.decode(json.dumps(raw).encode(), wire.SetpointMessage)


def test_a_span_says_all_of_it() -> None:
    for key in ("start", "end", "region"):
        raw = scheduled_payload()
        del raw["later"][1][key]
        with pytest.raises(BadMessage, match=key):
            wire.decode(json.dumps(raw).encode(), wire.SetpointMessage)


def test_a_schedule_of_too_many_spans_is_refused() -> None:
    with pytest.raises(BadMessage, match="289 spans are more than the 288"):
        to_message(scheduled(289, region=None), run="r", area="a", ttl_s=1)
    most = to_message(scheduled(288, region=None), run="r", area="a", ttl_s=1)
    assert len(wire.decode(wire.encode(most), wire.SetpointMessage).later) == 288


def test_the_schedule_on_the_page_belongs_to_a_message() -> None:
    page = (Path(__file__).parent.parent / "docs" / "wire.md").read_text("utf-8")
    (message,) = re.findall(r'(?ms)^```json\n(\{"schema".*?)^```', page)
    (part,) = re.findall(r'(?ms)^```jsonc\n("valid_from".*?)^```', page)
    whole = json.loads(message) | json.loads("{" + part + "}")
    told = to_instruction(wire.decode(json.dumps(whole).encode(), wire.SetpointMessage))
    assert [span.start.minute for span in told.spans] == [0, 5, 10]
    assert told.later[1].setpoint == Setpoint(p_mw=-0.2)
    assert told.later[0].certificate is not None
    assert told.later[0].certificate.power_flows == 131
    assert told.later[1].certificate is None


def test_what_a_certificate_looks_like_in_a_span() -> None:
    whole = scheduled(2)
    found = Certificate(binding="export by loading of line:3", worst_loading_percent=99.5, power_flows=7)
    told = replace(whole, later=(replace(whole.later[0], certificate=found), whole.later[1]))
    seen = json.loads(wire.encode(to_message(told, run="r1", area="f1", ttl_s=900)))
    first, second = seen["later"]
    assert first["why"] == "export by loading of line:3"
    assert first["checked"] == {"power_flows": 7, "worst_v_pu": None, "worst_loading_percent": 99.5}
    assert not {"why", "checked"} & {*second, *seen}
    brief = terse(told)
    assert terse(brief) is brief
    assert brief.spans == whole.spans


def test_a_schedule_is_shortened_from_its_end() -> None:
    whole = scheduled(5)
    assert shortened(whole, 5) is whole
    two = shortened(whole, 2)
    assert two.spans == whole.spans[:3]
    assert two.valid_until == whole.spans[2].end
    assert shortened(whole, 0).valid_until == NOON + timedelta(minutes=5)


@pytest.mark.parametrize("key", sorted(set(payload()) - {"origin"}))
def test_every_field_of_a_command_is_required(key: str) -> None:
    lacking = {name: value for name, value in payload().items() if name != key}
    with pytest.raises(BadMessage, match=key):
        wire.decode(json.dumps(lacking).encode(), wire.SetpointMessage)


RAW = {
    "nothing": b"",
    "no JSON": b"hello",
    "a list": b"[]",
    "not a number": b'{"time":"2026-06-21T12:00:00Z","p_mw":NaN,"q_mvar":0}',
    "infinity": b'{"time":"2026-06-21T12:00:00Z","p_mw":Infinity,"q_mvar":0}',
    "beyond a float": b'{"time":"2026-06-21T12:00:00Z","p_mw":1e400,"q_mvar":0}',
    "null": b'{"time":"2026-06-21T12:00:00Z","p_mw":null,"q_mvar":0}',
    "not UTF-8": b'{"time":"\xff\xfe","p_mw":0,"q_mvar":0}',
    "deep": b'{"x":' + b"[" * 20_000 + b"]" * 20_000 + b"}",
    "large": b'{"time":"2026-06-21T12:00:00Z","p_mw":0,"q_mvar":0}' + b" " * MAX_PAYLOAD_BYTES,
}


@pytest.mark.parametrize("raw", RAW.values(), ids=RAW.keys())
def test_a_wrong_payload_is_refused(raw: bytes) -> None:
    with pytest.raises(BadMessage):
        wire.decode(raw, wire.Meas)


def test_a_measurement_may_say_more_than_we_know() -> None:
    raw = b'{"time":"2026-06-21T12:00:00Z","p_mw":0.5,"q_mvar":0,"t_celsius":40}'
    meas = wire.decode(raw, wire.Meas)
    assert (meas.p_mw, meas.v_pu) == (0.5, None)


@given(st.data())
def test_damaged_bytes_are_read_or_refused(data: st.DataObject) -> None:
    raw = bytearray(json.dumps(payload()).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        message = wire.decode(bytes(raw), wire.SetpointMessage)
    except BadMessage:
        return
    again = wire.decode(wire.encode(message), wire.SetpointMessage)
    assert again == message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_none_cannot_be_sent(value: float) -> None:
    with pytest.raises(BadMessage, match="p_mw"):
        wire.Meas(time=NOON, p_mw=value, q_mvar=0.0)
    with pytest.raises(BadMessage, match="e_mwh"):
        wire.Meas(time=NOON, p_mw=0.0, q_mvar=0.0, e_mwh=value)
    with pytest.raises(BadMessage, match="q_mvar"):
        wire.Target(0.0, value)
    with pytest.raises(BadMessage, match="finite"):
        wire.HalfSpaces(("p_mw",), ((1.0,),), (value,))
    with pytest.raises(BadMessage, match="period_ms"):
        wire.Heartbeat(epoch=0, step=0, period_ms=value, next_deadline=NOON)
    with pytest.raises(BadMessage, match="ttl_s"):
        to_message(instruction(), run="r", area="a", ttl_s=value)


def test_a_time_without_zone_cannot_be_sent() -> None:
    with pytest.raises(BadMessage, match="time"):
        wire.Ack(epoch=0, seq=0, state="applied", time=NOON.replace(tzinfo=None))
    with pytest.raises(BadMessage, match="zone"):
        to_message(instruction(issued_at=NOON.replace(tzinfo=None)), run="r", area="a", ttl_s=1)


def test_a_region_of_too_many_rows_cannot_be_sent() -> None:
    angles = np.linspace(0, 6, 2000)
    region = Region(("p_mw", "q_mvar"), np.column_stack([np.cos(angles), np.sin(angles)]), np.ones(2000))
    message = to_message(instruction(region=region), run="r", area="a", ttl_s=1)
    with pytest.raises(BadMessage, match=str(MAX_PAYLOAD_BYTES)):
        wire.encode(message)


MESSAGES: list[msgspec.Struct] = [
    wire.Ack(epoch=1, seq=2, state="refused", time=NOON, reason="stale"),
    wire.State(state="fallback", time=NOON),
    wire.State(state="offline"),
    wire.Meas(time=NOON, p_mw=-0.1, q_mvar=0.0, v_pu=1.01, e_mwh=0.4),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_the_devices_messages_survive(message: msgspec.Struct) -> None:
    assert wire.decode(wire.encode(message), type(message)) == message


def test_the_controller_is_online_or_offline() -> None:
    beat = wire.Heartbeat(epoch=1, step=7, period_ms=1000.0, next_deadline=NOON)
    assert json.loads(wire.encode(beat))["state"] == "online"
    assert wire.decode_control(wire.encode(beat)) == beat
    assert wire.decode_control(wire.encode(wire.Offline(epoch=1))) == wire.Offline(epoch=1)
    with pytest.raises(BadMessage, match="state"):
        wire.decode_control(b'{"state":"asleep","epoch":1}')


@given(names, names.filter(lambda n: n not in wire.RESERVED), names)
def test_topics_are_read_back(run: str, area: str, der: str) -> None:
    topic = wire.device_topic(run, area, der, "ack")
    assert wire.parse_topic(topic) == wire.Address(run, area, der, "ack")


@given(st.text().filter(lambda text: any(c in text for c in "+#/ \n\0é") or not 0 < len(text) <= 64))
def test_no_name_gets_more_of_the_topic_than_its_level(name: str) -> None:
    for address in ((name, "a", "d"), ("r", name, "d"), ("r", "a", name)):
        with pytest.raises(BadMessage, match="name is"):
            wire.device_topic(*address, "setpoint")
    with pytest.raises(BadMessage, match="name is"):
        wire.control_topic(name)
    with pytest.raises(BadMessage, match="name is"):
        wire.device_pattern(name, "ack")


@pytest.mark.parametrize(
    "topic", ["", "gridpace/v1", "gridpace/v2/r/a/d/ack", "gridpace/v1/r/a/d/x", "gridpace/v1/r/a/d/ack/ack"]
)
def test_other_topics_are_not_read(topic: str) -> None:
    with pytest.raises(BadMessage, match="topic"):
        wire.parse_topic(topic)
