"""The judge of histories sees what is wrong, and leaves alone what is right."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.history import Told, Word, on_bus, visited

NOON = datetime(2026, 6, 21, 12, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def box(low: float, high: float) -> dict[str, Any]:
    rows = [[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]
    return {"axes": ["p_mw", "q_mvar"], "A": rows, "b": [high, -low, 0.0, 0.0]}


def told(seq: int, begins: float, ends: float, most: float) -> Told:
    return Told((1, seq), at(begins - 1), (Word(at(begins), at(ends), box(0.0, most)),), box(0.0, 0.0))


SAID = {one.number: one for one in (told(1, 1, 5, 0.5), told(2, 2, 6, 0.3))}


def answer(seconds: float, seq: int, state: str) -> dict[str, Any]:
    return {
        "time": at(seconds).isoformat(), "what": "answer", "device": "pv", "epoch": 1, "seq": seq,
        "state": state,
    }  # fmt: skip


def held(seconds: float, p_mw: float, regime: str = "limited", seq: int | None = None) -> dict[str, Any]:
    return {
        "time": at(seconds).isoformat(), "what": "held", "device": "pv", "regime": regime, "epoch": 1,
        "seq": seq, "p_mw": p_mw, "q_mvar": 0.0,
    }  # fmt: skip


RIGHT = [
    held(0.0, 0.9, "init"),
    answer(0.5, 1, "received"),
    answer(1.0, 1, "applied"),
    held(1.0, 0.5),
    answer(1.5, 2, "received"),
    answer(2.05, 2, "applied"),
    held(2.05, 0.3),
    held(4.0, 0.3),
    held(6.1, 0.0, "failsafe", 2),
    held(8.0, 0.0, "failsafe", 2),
]


def test_what_is_right_is_left_alone() -> None:
    found = on_bus("pv", RIGHT, SAID, until=at(20))
    assert found.wrong == []
    assert (found.points, found.applied, found.fallbacks) == (6, 2, 1)
    assert found.late_s == [pytest.approx(0.1)]


@pytest.mark.parametrize(
    ("line", "instead", "why"),
    [
        (3, held(1.0, 0.6), "0.1 outside"),  # outside its region
        (6, held(2.05, 0.5), "0.2 outside"),  # goes on with the old one
        (6, held(2.9, 0.3), "0.2 outside"),  # obeys the new one late
        (8, held(6.9, 0.0, "failsafe", 2), "0.3 outside"),  # falls back late
        (9, held(8.0, 0.2), "0.2 outside"),  # leaves its fallback
        (1, answer(5.5, 1, "received"), "which was over"),
        (4, answer(1.5, 7, "received"), "which nobody has said"),
        (5, answer(1.9, 2, "applied"), "outside its time"),
        (5, answer(2.05, 1, "applied"), "applied (1, 1) after (1, 1)"),
        (1, answer(0.4, 1, "refused"), "which it has not accepted"),
    ],
)
def test_what_is_wrong_is_found(line: int, instead: dict[str, Any], why: str) -> None:
    log = [*RIGHT[:line], instead, *RIGHT[line + 1 :]]
    found = on_bus("pv", log, SAID, until=at(20))
    assert any(why in wrong for wrong in found.wrong), found.wrong


def test_an_older_one_is_not_taken_after_a_newer_one() -> None:
    log = [answer(1.2, 2, "received"), answer(1.3, 1, "received")]
    assert ["accepted (1, 1) after (1, 2)" in wrong for wrong in on_bus("pv", log, SAID).wrong] == [True]


def test_what_it_holds_in_the_end_counts_until_the_end() -> None:
    found = on_bus("pv", RIGHT[:8], SAID, until=at(20))
    assert any("0.3 outside" in wrong for wrong in found.wrong)
    assert not on_bus("pv", RIGHT[:8], SAID).wrong


def test_of_a_process_that_was_stopped_nothing_is_known_until_it_goes_on() -> None:
    stopped = [*RIGHT[:8], held(9.1, 0.0, "failsafe", 2)]
    assert on_bus("pv", stopped, SAID).wrong
    assert not on_bus("pv", stopped, SAID, absent=[(at(4.5), at(9.0))]).wrong
    late = [*RIGHT[:8], held(9.1, 0.3), held(9.9, 0.0, "failsafe", 2)]
    assert on_bus("pv", late, SAID, absent=[(at(4.5), at(9.0))]).wrong


def visit(seconds: float, p_mw: float, what: str = "held", **more: Any) -> dict[str, Any]:
    return {
        "time": at(seconds).isoformat(), "what": what, "p_mw": p_mw, "q_mvar": 0.0, "limit_mw": 0.5,
        "p_set_mw": None, "reverted": False, **more,
    }  # fmt: skip


WORDS = [Word(at(1), at(5), box(0.0, 0.5)), Word(at(2), at(6), box(0.0, 0.3))]


def written(seconds: float, p_mw: float, *points: str, **more: Any) -> dict[str, Any]:
    return visit(seconds, p_mw, "written", points=dict.fromkeys(points or ("WMaxLimPctEna",), 1), **more)


VISITS = [
    visit(0.0, 0.9, limit_mw=None),
    written(1.02, 0.9, "WMaxLimPctRvrtTms", limit_mw=None),
    written(1.05, 0.5),
    visit(1.2, 0.5),
    visit(2.01, 0.5),  # what is in force now has not been written yet
    written(2.05, 0.5, "WMaxLimPctRvrtTms"),
    written(2.06, 0.3, "WMaxLimPct"),
    written(2.07, 0.3),
    visit(2.2, 0.3),
    visit(5.5, 0.3),
    visit(6.1, 0.0, "reverted", reverted=True),
    visit(7.0, 0.0, reverted=True),
]


def test_a_device_that_is_visited_obeys_what_was_written_last() -> None:
    found = visited("pv", VISITS, WORDS, until=at(20))
    assert found.wrong == []
    assert (found.points, found.fallbacks, found.late_s) == (10, 1, [pytest.approx(0.1)])


@pytest.mark.parametrize(
    ("line", "instead", "why"),
    [
        (3, visit(1.2, 0.6), "0.1 outside"),
        (8, visit(2.3, 0.5), "0.2 outside"),  # only the one before allows it
        (8, written(2.2, 0.5, "VarSetEna"), "0.2 outside"),  # it does not do what was written
        (9, visit(7.2, 0.3), "nothing was valid"),
        (10, visit(6.1, 0.0), "nothing was valid"),  # it does not revert
        (10, visit(6.1, 0.1, "reverted", reverted=True), "reverted, and at 0.1 MW"),
        (11, visit(7.0, 0.1, reverted=True), "reverted, and at 0.1 MW"),
        (1, written(0.5, 0.9, limit_mw=None), "nothing had been decided"),
    ],
)
def test_what_a_visited_device_does_wrong_is_found(line: int, instead: dict[str, Any], why: str) -> None:
    log = [*VISITS[:line], instead, *VISITS[line + 1 :]]
    assert log != VISITS
    found = visited("pv", log[: line + 1] if line == 10 else log, WORDS, until=at(20))
    assert any(why in wrong for wrong in found.wrong), found.wrong


def test_what_was_not_switched_on_need_not_be_obeyed_yet() -> None:
    """The connection broke between the writes: it goes on with the old one until that is over."""
    broken = [*VISITS[:6], visit(3.0, 0.5), visit(5.0, 0.0, "reverted", reverted=True)]
    assert visited("pv", broken, WORDS, until=at(20)).wrong == []


def test_a_visited_device_whose_log_stops_has_not_reverted() -> None:
    """Of one that has died nothing is known, or only what it held."""
    stopped = VISITS[:9]
    assert visited("pv", stopped, WORDS, until=at(6.9)).wrong == []
    assert any("nothing was valid" in wrong for wrong in visited("pv", stopped, WORDS, until=at(8)).wrong)
    for silent in (visited("pv", [], WORDS, until=at(8)), on_bus("pv", [], SAID, until=at(8))):
        assert len(silent.wrong) == 1
        assert "nothing is known of it" in silent.wrong[0]


def test_a_device_that_accepts_nothing_is_where_its_default_is() -> None:
    liar = [held(0.0, 2.5, "init"), held(3.0, 2.5, "init")]
    assert on_bus("pv", liar, SAID, until=at(20), default=box(0.0, 0.0)).wrong
    still = [held(0.0, 0.0, "init"), held(3.0, 0.0, "init")]
    assert not on_bus("pv", still, SAID, until=at(20), default=box(0.0, 0.0)).wrong
