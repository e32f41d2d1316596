"""What is recorded of an instruction's life: a twin's words and a device's go the same way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridges import wire
from bridges.answers import encode_answers
from bridges.memory import MemoryBus, MemoryHub
from bridges.publisher import Publisher
from controllers.contract import Instruction
from controllers.devices import PvInverter, still
from controllers.forecast import Forecast
from controllers.region import Region
from controllers.register import Answer, Life, Refusal
from scenarios.outlet import BusOutlet
from simulators.clock import Clock, Duty, Mode, Tick
from simulators.devices import DevicesSimulator, Receipt
from simulators.grid import Measured
from simulators.journal import Journal, read
from simulators.outbox import OutboxSimulator, Published
from simulators.recorder import RecorderSimulator
from simulators.tables import STAMPS, Outcome
from tests.running import FakeTime

START = datetime(2026, 6, 21, tzinfo=UTC)
EVERY = timedelta(minutes=5)
R, A, X, S, E, F = (
    Outcome.RECEIVED, Outcome.APPLIED, Outcome.REFUSED, Outcome.SUPERSEDED, Outcome.EXPIRED, Outcome.FALLBACK,
)  # fmt: skip


def at(step: float) -> datetime:
    return START + step * EVERY


def instruction(seq: int = 1, lasts: int = 2) -> Instruction:
    return Instruction(
        device="pv6",
        epoch=1,
        seq=seq,
        issued_at=at(seq - 1),
        valid_from=at(seq),
        valid_until=at(seq + lasts),
        region=Region.box(p_mw=(-0.1, 0.7), q_mvar=(0.0, 0.0)),
        setpoint=None,
        fallback=still(),
    )


class Book:
    """A recorder of one device, step by step."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.step = folder, 0
        self.journal = Journal(folder)
        self.recorder = RecorderSimulator(self.journal, buses=(), branches=(), devices=(), forecasts=False)

    def note(self, *, sent: tuple[Instruction, ...] = (), bus: Any = (), twin: Any = (), paced: bool = False,
             unsent: tuple[Instruction, ...] = ()) -> None:  # fmt: skip
        now = at(self.step)
        tick = Tick(self.step, now, Duty.FULL, now, now if paced else None)
        forecast = Forecast.empty(START, EVERY)
        self.recorder.record(tick, Measured(), forecast, (), (*sent, *unsent), tuple(twin), ())
        self.recorder.sent(tick, Published(0.0, tuple(bus), sent))
        self.step += 1

    def rows(self) -> list[dict[str, Any]]:
        return list(read(self.folder, "setpoints").to_pylist())


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Book]:
    made = Book(tmp_path)
    yield made
    made.journal.close()


def word(outcome: Outcome, step: float, seq: int = 1, reason: str | None = None) -> Receipt:
    return Receipt("pv6", 1, seq, at(step), outcome, reason)


def stamped(row: dict[str, Any]) -> dict[str, float]:
    return {name: (row[name] - START) / EVERY for name in STAMPS if row[name] is not None}


LIVES: dict[str, tuple[list[tuple[Outcome, float]], Outcome]] = {
    "obeyed and replaced": ([(R, 0.1), (A, 1), (S, 2)], A),
    "obeyed to its end": ([(R, 0.1), (A, 1), (E, 3), (F, 3)], F),
    "replaced before it began": ([(R, 0.1), (S, 0.5)], S),
    "over before it began": ([(R, 0.1), (E, 3), (F, 3)], E),
    "obeyed": ([(A, 1)], A),
    "heard of": ([(R, 0.1)], R),
    "obeyed, with a gap afterwards": ([(A, 1), (E, 3)], A),
}


@pytest.mark.parametrize(("words", "outcome"), LIVES.values(), ids=LIVES.keys())
def test_each_word_has_its_stamp_in_whichever_order_it_comes(
    tmp_path: Path, words: list[tuple[Outcome, float]], outcome: Outcome
) -> None:
    for i, order in enumerate(permutations(words)):
        (tmp_path / str(i)).mkdir()
        book = Book(tmp_path / str(i))
        book.note(sent=(instruction(),))
        book.note(bus=[word(*one) for one in order] * 2)
        (row,) = book.rows()
        book.journal.close()
        assert row["outcome"] == outcome
        assert stamped(row) == {f"{one}_at": step for one, step in words}
        assert row["acked_at"] == at(1)


def test_the_first_time_counts_of_a_word_that_comes_again(book: Book) -> None:
    book.note(sent=(instruction(),))
    book.note(bus=[word(A, 1)])
    book.note(bus=[word(A, 1.5)])
    (row,) = book.rows()
    assert (stamped(row), row["acked_at"]) == ({"applied_at": 1}, at(1))


def test_words_may_come_some_steps_after_the_end(book: Book) -> None:
    book.note(sent=(instruction(),))
    book.note(bus=[word(A, 1)])
    for _ in range(6):
        book.note()
    book.note(bus=[word(E, 3), word(F, 3)])
    (row,) = book.rows()
    assert (row["outcome"], stamped(row)) == (
        "fallback",
        {"applied_at": 1, "expired_at": 3, "fallback_at": 3},
    )
    for _ in range(20):
        book.note()
    assert not book.recorder._outstanding
    assert not book.recorder._patience


def test_what_nobody_speaks_of_does_not_stay(book: Book) -> None:
    book.note(sent=(instruction(),))
    for _ in range(3):
        book.note()
    assert not book.recorder._outstanding
    (row,) = book.rows()
    assert (row["outcome"], stamped(row)) == ("expired", {})


def test_a_refusal_says_why_and_one_that_comes_after_a_yes_is_of_a_copy(book: Book) -> None:
    book.note(sent=(instruction(1), instruction(2)))
    book.note(bus=[word(X, 0.5, 1, "capability: too much"), word(A, 0.5, 2), word(X, 0.6, 2, "old: again")])
    first, second = book.rows()
    assert (first["outcome"], first["reason"], stamped(first)) == (
        "refused", "capability: too much", {"refused_at": 0.5},
    )  # fmt: skip
    assert (second["outcome"], second["reason"], stamped(second)) == ("applied", None, {"applied_at": 0.5})


def test_a_device_that_speaks_for_itself_is_believed_before_its_twin(book: Book) -> None:
    book.note(sent=(instruction(),))
    book.note(twin=[word(A, 1)])
    book.note(bus=[word(X, 1.5, reason="held: service")], twin=[word(S, 2)])
    (row,) = book.rows()
    assert (row["outcome"], stamped(row), row["reason"]) == ("refused", {"refused_at": 1.5}, "held: service")


def test_what_the_bus_does_not_take_is_issued_and_no_more(book: Book) -> None:
    book.note(unsent=(instruction(),))
    book.note(bus=[word(A, 1)])
    (row,) = book.rows()
    assert (row["outcome"], row["sent_at"], stamped(row)) == ("issued", None, {})


def test_with_a_paced_clock_the_first_word_has_the_devices_time(book: Book) -> None:
    book.note(sent=(instruction(),), paced=True)
    book.note(bus=[word(R, 0.25), word(A, 0.5)], paced=True)
    (row,) = book.rows()
    assert row["acked_at"] == at(0.25)
    book.note(sent=(instruction(3),), paced=True)
    book.note(bus=[word(A, 1.5, 3)], paced=True)
    assert book.rows()[1]["acked_at"] == at(2)  # never before it was sent: its clock lags


def test_a_stale_one_has_expired_whoever_says_so() -> None:
    answer = Answer(1, 2, Life.REFUSED, START, Refusal.STALE, "too late")
    assert Receipt.of("pv6", answer) == Receipt("pv6", 1, 2, START, E, "stale: too late")
    assert Receipt.of("pv6", answer._replace(code=Refusal.OLD), at(1)).outcome is X
    assert Receipt.of("pv6", Answer(1, 2, Life.APPLIED, START)) == Receipt("pv6", 1, 2, START, A)


def test_a_twin_says_what_becomes_of_what_it_was_told() -> None:
    device = PvInverter(name="pv6", bus="1", s_mva=1.0, p_mw=1.0, weight=1.0, default=still())
    fleet = DevicesSimulator({"pv6": device}, EVERY.total_seconds())
    heard = []
    told = {1: instruction(1), 2: instruction(2), 4: replace(instruction(2), seq=9)}
    for step in range(6):
        given = {"pv6": told[step]} if step in told else {}
        fleet.run(Tick(step, at(step), Duty.FULL, at(step)), {"pv6": 0.5}, given)
        heard.append([(r.seq, r.outcome) for r in fleet.out["fleet"]["receipts"]])
    assert heard == [[], [(1, A)], [(2, A), (1, S)], [], [(9, E), (2, E), (2, F)], []]
    assert fleet.out["fleet"]["receipts"] == ()
    (late, *_) = (r for r in [fleet.twins["pv6"].receive(replace(instruction(2), seq=10), at(7))])
    assert late.reason is not None
    assert late.reason.startswith("stale: valid until 2026-06-21T00:20:00")


async def test_a_devices_words_over_the_bus_get_simulated_times() -> None:
    hub, time = MemoryHub(), FakeTime()
    clock = Clock(START, EVERY, Mode.SCALED, 60.0, monotonic=time.monotonic, wall=time.wall, sleep=time.sleep)
    async with MemoryBus(hub) as ours, MemoryBus(hub) as device:
        publisher = Publisher(ours, run="r", area="a", epoch=1)
        outbox = OutboxSimulator(BusOutlet(publisher, clock), clock, lambda *args, **details: None)
        await outbox.run(await clock.tick(0), (instruction(),))
        begun = time.wall()
        said = [
            Answer(1, 1, Life.RECEIVED, begun + timedelta(seconds=1)),
            Answer(1, 1, Life.APPLIED, begun + timedelta(seconds=2)),
            Answer(1, 1, Life.SUPERSEDED, begun + timedelta(days=1)),  # its clock is wrong
        ]
        device.publish(wire.device_topic("r", "a", "pv6", "ack"), encode_answers(said))
        published = await outbox.run(await clock.tick(1), ())
    assert [(r.outcome, (r.at - START) / timedelta(minutes=1)) for r in published.receipts] == [
        (R, 1.0), (A, 2.0), (S, 5.0),
    ]  # fmt: skip


def test_the_clock_goes_there_and_back() -> None:
    time = FakeTime()
    clock = Clock(START, EVERY, Mode.SCALED, 60.0, monotonic=time.monotonic, wall=time.wall, sleep=time.sleep)
    clock._wall0 = time.wall()
    for step in np.linspace(0, 10, 7):
        assert abs(clock.simulated(clock.on_wall(at(step))) - at(step)) < timedelta(milliseconds=1)
    assert Clock(START, EVERY).simulated(at(3)) == at(3)
