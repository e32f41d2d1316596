"""The checker of what devices have done: it sees every kind of mistake that it looks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bridges import wire
from bridges.instruction import to_message
from bridges.parts import Parts
from controllers.contract import Instruction, Span
from controllers.devices import still
from controllers.region import Region
from tests.soak.wrong import WRONG, judge, limits, sent

NOON = datetime(2026, 6, 21, 12, tzinfo=UTC)


def told(seq: int, high: float = 1.0, device: str = "pv1") -> Instruction:
    return Instruction(
        device=device,
        epoch=1,
        seq=seq,
        issued_at=NOON,
        valid_from=NOON,
        valid_until=NOON + timedelta(seconds=10),
        region=Region.box(p_mw=(-high, high), q_mvar=(0.0, 0.0)),
        setpoint=None,
        fallback=still(),
    )


def message(one: Instruction) -> tuple[str, bytes]:
    payload = wire.encode(to_message(one, run="r", area="a", ttl_s=10.0))
    return wire.device_topic("r", "a", one.device, "setpoint"), payload


def batch(*several: Instruction) -> list[tuple[str, bytes]]:
    parts = Parts(run="r", area="a", gateway="gw1", epoch=1)
    return [(one.topic, one.payload) for one in parts.put([(one, 10.0) for one in several])]


def span(begins_s: float, ends_s: float, high: float) -> Span:
    start, end = (NOON + timedelta(seconds=seconds) for seconds in (begins_s, ends_s))
    return Span(start, end, Region.box(p_mw=(-high, high), q_mvar=(0.0, 0.0)))


def answer(seq: int, after_s: float, state: str = "applied") -> Mapping[str, Any]:
    at = (NOON + timedelta(seconds=after_s)).isoformat()
    code = "stale" if state == "refused" else None
    return {
        "what": "answer",
        "time": at,
        "device": "pv1",
        "epoch": 1,
        "seq": seq,
        "state": state,
        "code": code,
    }


def holds(
    seq: int | None,
    after_s: float,
    high: float = 1.0,
    p_mw: float = 0.0,
    q_mvar: float = 0.0,
    regime: str = "controlled",
) -> Mapping[str, Any]:
    """A device says that it obeys `high` of an instruction; where it is, is another matter."""
    at = (NOON + timedelta(seconds=after_s)).isoformat()
    region = {"axes": ["p_mw", "q_mvar"], "A": [[1.0, 0.0], [-1.0, 0.0]], "b": [high, high]}
    own = {"regime": regime, "epoch": None if seq is None else 1, "seq": seq, "region": region}
    return {"what": "held", "time": at, "device": "pv1", **own, "p_mw": p_mw, "q_mvar": q_mvar}


WIRE = sent([message(told(1)), message(told(2, 0.5))])


def test_a_device_that_does_all_right_has_nothing_wrong() -> None:
    lines = [
        holds(None, 0.5, regime="init"),
        answer(1, 1),
        holds(1, 1, p_mw=1.0),
        answer(2, 2),
        holds(2, 2.1, 0.5, p_mw=0.5 + 1e-9),
        answer(1, 12, "refused"),
        holds(2, 10.4, 0.0, regime="failsafe"),
    ]
    found = judge(lines, WIRE, until=NOON + timedelta(seconds=99))
    assert (found.applied, found.held, dict(found.refused), dict(found.wrong)) == (2, 2, {"stale": 1}, {})


@pytest.mark.parametrize(
    ("lines", "wrong"),
    [
        ([answer(2, 1), answer(1, 2)], "out-of-order"),
        ([answer(1, 1), answer(1, 2)], "out-of-order"),
        ([answer(1, 10.5)], "after-validity"),
        ([answer(3, 1)], "never-sent"),
        ([holds(3, 1)], "never-sent"),
        ([holds(1, 10.5)], "held-after-validity"),
        ([holds(2, 1, 1.0)], "other-region"),
        # It says all that it should, and is somewhere else.
        ([holds(1, 1, p_mw=1.0 + 1e-5)], "outside"),
        ([holds(1, 1, p_mw=-2.0)], "outside"),
        ([holds(1, 1, q_mvar=0.1)], "outside"),
        ([holds(2, 1, 0.5, p_mw=2.5, regime="limited")], "outside"),
        ([holds(2, 1, 0.5, p_mw=0.1, regime="failsafe")], "outside-fallback"),
        ([holds(None, 1, p_mw=2.5, regime="init")], "outside-fallback"),
        ([holds(3, 1, regime="failsafe")], "never-sent"),
        ([holds(None, 1)], "never-sent"),
        # It goes on with what is over, until its next line.
        ([holds(1, 9, p_mw=1.0), holds(1, 10.6, regime="failsafe")], "held-after-validity"),
        ([answer(2, 2), holds(1, 3)], "superseded"),
        ([holds(1, 1, p_mw=1.0), answer(2, 2), holds(2, 2.6, 0.5)], "superseded"),
    ],
)
def test_it_sees_what_is_wrong(lines: list[Mapping[str, Any]], wrong: str) -> None:
    assert dict(judge(lines, WIRE).wrong) == {wrong: 1}


def test_what_a_device_holds_in_the_end_counts_until_the_end() -> None:
    lines = [answer(1, 1), holds(1, 1, p_mw=1.0)]
    assert not judge(lines, WIRE).wrong
    assert not judge(lines, WIRE, until=NOON + timedelta(seconds=10.4)).wrong
    late = judge(lines, WIRE, until=NOON + timedelta(seconds=10.6))
    assert dict(late.wrong) == {"held-after-validity": 1}


def test_each_span_of_a_schedule_counts_in_its_time() -> None:
    one = told(7)
    two = replace(one, later=(span(3, 6, 0.5), span(6, 10, 0.8)))
    for wire_form in (message(two), *batch(two)):
        known = sent([wire_form])
        right = [holds(7, 1, p_mw=1.0), holds(7, 3.1, 0.5, p_mw=0.5), holds(7, 6.1, 0.8, p_mw=0.8)]
        assert not judge(right, known).wrong
        early = [holds(7, 1, p_mw=1.0), holds(7, 2.9, 0.5, p_mw=0.5)]
        assert dict(judge(early, known).wrong) == {"other-region": 1}
        late = [holds(7, 1, p_mw=1.0), holds(7, 3.6, 0.5, p_mw=0.5)]
        assert dict(judge(late, known).wrong) == {"outside": 1}


def test_what_is_looked_for_is_what_is_counted() -> None:
    """R5 gives a figure for each."""
    lines = [answer(3, 11), holds(1, 12, 0.9, p_mw=5.0), holds(1, 13, regime="failsafe", p_mw=1.0)]
    assert set(judge(lines, WIRE).wrong) <= set(WRONG)


def test_what_is_no_valid_message_was_never_sent() -> None:
    topic, payload = message(told(5))
    broken = [
        (topic, payload.replace(b"injection_positive", b"injection_negative")),
        (topic, payload[:-1]),
        (topic.replace("pv1", "pv2"), payload),
    ]
    assert sent(broken) == {}


def test_batches_are_read() -> None:
    found = sent(batch(told(4, 0.25, "pv1"), told(4, 0.75, "pv2")))
    assert {key: limits(value.region(NOON) or {}) for key, value in found.items()} == {
        ("pv1", 1, 4): (-0.25, 0.25),
        ("pv2", 1, 4): (-0.75, 0.75),
    }
