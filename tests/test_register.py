"""What a device accepts, refuses and answers: strictly newer, never stale, then its fallback."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from math import inf
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from controllers.contract import Instruction, Setpoint, Span
from controllers.devices import Battery, Generator, PvInverter, still
from controllers.rating import Rating, rating_of
from controllers.region import Region
from controllers.register import AHEAD, STATUS, Answer, Life, Refusal, Regime, Register

NOON = datetime(2026, 6, 21, 12, tzinfo=UTC)
R, A, X, S, E, F = (
    Life.RECEIVED, Life.APPLIED, Life.REFUSED, Life.SUPERSEDED, Life.EXPIRED, Life.FALLBACK,
)  # fmt: skip


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def upto(p_mw: float) -> Region:
    return Region.box(p_mw=(0, p_mw), q_mvar=(0, 0))


def told(seq: int, begins: float = 0, ends: float = 10, *, epoch: int = 1, **changes: Any) -> Instruction:
    values: dict[str, Any] = {
        "device": "d",
        "epoch": epoch,
        "seq": seq,
        "issued_at": at(begins - 1),
        "valid_from": at(begins),
        "valid_until": at(ends),
        "region": upto(seq / 100),
        "setpoint": None,
        "fallback": still(),
    }
    return Instruction(**values | changes)


def said(answers: tuple[Answer, ...]) -> list[tuple[int, Life]]:
    return [(answer.seq, answer.state) for answer in answers]


def refused(answers: tuple[Answer, ...]) -> Refusal | None:
    assert answers[-1].state is X
    assert answers[-1].reason
    return answers[-1].code


def test_a_life_from_its_beginning_to_its_end() -> None:
    register = Register()
    assert register.order(at(0)).regime is Regime.INIT
    assert register.order(at(0)).region is None
    assert said(register.take(told(1, 2, 10), at(0))) == [(1, R)]
    assert register.order(at(1)).regime is Regime.INIT
    assert said(register.tick(at(1.999))) == []
    assert said(register.tick(at(2))) == [(1, A)]
    assert register.tick(at(3)) == ()
    order = register.order(at(3))
    assert (order.regime, order.region) == (Regime.CONTROLLED, register.order(at(3)).instruction.region)  # type: ignore[union-attr]
    assert said(register.tick(at(9.999))) == []
    answers = register.tick(at(10))
    assert said(answers) == [(1, E), (1, F)]
    assert {answer.time for answer in answers} == {at(10)}
    failsafe = register.order(at(10))
    assert failsafe.regime is Regime.FAILSAFE
    assert failsafe.instruction is not None
    assert failsafe.region is failsafe.instruction.fallback
    assert register.failsafe
    assert said(register.take(told(2, 11, 20), at(12))) == [(2, R), (2, A)]
    assert not register.failsafe


def test_what_comes_in_the_moment_in_which_the_one_before_ends_supersedes_it() -> None:
    register = Register()
    register.take(told(1), at(0))
    assert said(register.take(told(2, 10, 20), at(10))) == [(2, R), (1, S), (2, A)]
    late = Register()
    late.take(told(1), at(0))
    assert said(late.tick(at(10))) == [(1, E), (1, F)]  # who looks first has nothing else to obey
    assert said(late.take(told(2, 10, 20), at(10))) == [(2, R), (2, A)]


def test_the_one_that_is_replaced_is_superseded_before_or_after_it_was_applied() -> None:
    register = Register()
    register.take(told(1, 0, 10), at(0))
    assert said(register.take(told(2, 5, 15), at(1))) == [(2, R)]
    assert said(register.take(told(3, 4, 16), at(2))) == [(2, S), (3, R)]
    assert said(register.take(told(4, 4, 16), at(3))) == [(3, S), (4, R)]
    assert said(register.tick(at(4))) == [(1, S), (4, A)]
    assert said(register.take(told(5, 4, 16), at(7))) == [(5, R), (4, S), (5, A)]


def test_one_for_later_leaves_those_before_it_their_time() -> None:
    """A clock that lags by more than a message takes must not keep every instruction from beginning."""
    register, lag, applied = Register(), 0.5, []
    for k in range(6):
        answers = register.take(told(k + 1, k + 1, k + 4, issued_at=at(k)), at(k + 0.1 - lag))
        answers += register.tick(at(k + 1 - lag))
        applied += [answer.seq for answer in answers if answer.state is A]
    assert applied == [1, 2, 3, 4, 5]


def test_between_two_ticks_much_may_happen() -> None:
    register = Register()
    register.take(told(1, 0, 4), at(0))
    register.take(told(2, 6, 8), at(1))
    assert said(register.tick(at(7))) == [(1, E), (2, A)]  # a gap that nobody noticed is no fallback
    register = Register()
    register.take(told(1, 0, 6), at(0))
    register.take(told(2, 6, 8), at(1))
    assert said(register.tick(at(9))) == [(1, S), (2, E), (2, F)]
    assert register.order(at(9)).regime is Regime.FAILSAFE


def test_numbers_grow_and_a_new_epoch_begins_anew() -> None:
    register = Register()
    outcomes = [
        register.take(told(seq, epoch=epoch), at(1))[-1]
        for epoch, seq in ((1, 7), (1, 6), (1, 7), (2, 1), (1, 8), (2, 2))
    ]
    assert [(a.state, a.code) for a in outcomes] == [
        (A, None), (X, Refusal.OLD), (X, Refusal.OLD), (A, None), (X, Refusal.OLD), (A, None),
    ]  # fmt: skip
    assert "epoch 1, seq 8 is not above the last one, epoch 2, seq 1" in str(outcomes[4].reason)
    assert register.newest == (2, 2)


def test_what_is_over_or_yet_to_be_issued_is_refused() -> None:
    register = Register()
    assert refused(register.take(told(1, 0, 10), at(10))) is Refusal.STALE
    assert refused(register.take(told(1, 0, 10), at(5), 0.0, 0.0)) is Refusal.STALE
    assert register.take(told(1, 0, 10), at(5), 0.0, 0.001)[-1].state is A
    ahead = AHEAD.total_seconds()
    assert refused(register.take(told(2, 10 + ahead, 40), at(8.999))) is Refusal.EARLY
    assert register.take(told(2, 10 + ahead, 40), at(9))[-1].state is R


def test_a_time_to_live_that_is_shorter_than_the_validity_ends_it() -> None:
    register = Register()
    register.take(told(1, 0, 100), at(0), 50.0, 3.0)
    assert said(register.tick(at(2.999), 52.999)) == []
    assert said(register.tick(at(3), 53.0)) == [(1, E), (1, F)]


def test_a_clock_that_is_set_back_brings_nothing_back() -> None:
    register = Register()
    register.take(told(1, 0, 10), at(0), 0.0, 10.0)
    assert said(register.tick(at(10), 10.0)) == [(1, E), (1, F)]
    assert register.tick(at(-3600), 11.0) == ()
    assert register.order(at(-3600), 11.0).regime is Regime.FAILSAFE
    register.take(told(2, 5, 40), at(12), 12.0, 28.0)
    assert register.order(at(-3600), 13.0).region is not None
    assert said(register.tick(at(-3600), 40.0)) == [(2, E), (2, F)]  # by the time to live


def test_a_clock_of_its_own_counts_a_schedule_back_from_its_end() -> None:
    """A device whose clock is a year off obeys each span in its time, by the time to live alone."""
    register = Register(synchronised=False)
    spans = (Span(at(5), at(8), upto(0.2)), Span(at(8), at(10), upto(0.1)))
    wrong = NOON - timedelta(days=365)
    told_now = told(1, 2, 10, later=spans)
    assert said(register.take(told_now, wrong, 100.0, 10.0)) == [(1, R)]  # sent at 0
    found = []
    for second in (1.9, 2, 4.9, 5, 7.9, 8, 9.9, 10):
        register.tick(wrong, 100.0 + second)
        order = register.order(wrong, 100.0 + second)
        found.append(None if order.region is None else round(float(order.region.b[0]), 3))
    assert found == [None, 0.01, 0.01, 0.2, 0.2, 0.1, 0.1, 0.0]


def test_the_spans_of_a_schedule_are_obeyed_in_their_time() -> None:
    register = Register()
    later = (Span(at(5), at(8), upto(0.2), Setpoint(p_mw=0.1)), Span(at(8), at(10), None))
    register.take(told(1, 0, 10, later=later), at(0))
    assert register.quiet_s(at(1)) == 4
    assert register.order(at(5)).region is later[0].region
    assert register.order(at(5)).setpoint == Setpoint(p_mw=0.1)
    assert register.order(at(9)).region is None
    assert register.order(at(9)).regime is Regime.CONTROLLED
    assert register.quiet_s(at(8)) == 2


def test_it_says_when_something_happens_next() -> None:
    register = Register()
    assert register.quiet_s(at(0)) == inf
    register.take(told(1, 2, 10), at(0), 0.0, 9.0)
    assert register.quiet_s(at(0), 0.0) == 2
    register.tick(at(2), 2.0)
    assert register.quiet_s(at(2), 2.0) == 7  # by the time to live
    register.tick(at(9), 9.0)
    assert register.quiet_s(at(9), 9.0) == inf


def test_who_takes_a_device_over_lets_what_is_in_force_run_out() -> None:
    register = Register()
    register.take(told(1, 0, 10), at(0))
    register.hold("service")
    answers = register.take(told(2, 0, 20), at(1))
    assert (refused(answers), answers[-1].reason) == (Refusal.HELD, "service")
    assert register.order(at(5)).regime is Regime.CONTROLLED
    register.tick(at(10))
    assert register.order(at(10)).regime is Regime.FAILSAFE
    register.release()
    assert said(register.take(told(2, 0, 20), at(11))) == [(2, R), (2, A)]


def test_who_takes_a_device_over_drops_what_is_to_come() -> None:
    register = Register()
    register.take(told(1, 0, 10), at(0))
    register.take(told(2, 5, 3600), at(0))
    register.take(told(3, 7, 3600, issued_at=at(0)), at(0))
    register.hold()
    assert register.quiet_s(at(1)) == 0
    assert said(register.tick(at(1))) == [(2, S), (3, S)]
    assert register.quiet_s(at(1)) == 9
    assert register.standing(1, 3) is None
    assert said(register.tick(at(6))) == []
    assert said(register.tick(at(10))) == [(1, E), (1, F)]
    register.release()
    assert refused(register.take(told(3, 7, 3600), at(11))) is Refusal.OLD
    assert said(register.take(told(4, 7, 3600), at(11))) == [(4, R), (4, A)]


def test_what_is_dropped_does_not_begin_though_its_time_came_with_the_hold() -> None:
    register = Register()
    register.take(told(1, 5, 3600), at(0))
    register.hold()
    assert said(register.tick(at(6))) == [(1, S)]
    assert register.order(at(6)).regime is Regime.INIT


def test_a_fallback_is_forgotten_when_the_next_one_begins() -> None:
    register = Register()
    for k in range(50):
        register.take(told(k, 10 * k, 10 * k + 5), at(10 * k))
        register.tick(at(10 * k + 6))
        assert [word and word.state for word in map(register.standing, (1, 1), (k, k - 1))] == [F, None]
    assert refused(register.take(told(3, 490, 500), at(496))) is Refusal.OLD
    _, _, answers, *_ = register.memory()  # type: ignore[misc]
    assert list(answers) == [(1, 49)]


def test_who_asks_again_hears_the_last_word() -> None:
    register = Register()
    register.take(told(1, 0, 10), at(0))
    register.take(told(2, 5, 15), at(1))
    words = [register.standing(1, seq) for seq in (1, 2, 3)]
    assert [word and word.state for word in words] == [A, R, None]
    register.tick(at(5))
    assert register.standing(1, 1) is None
    register.tick(at(15))
    assert register.standing(1, 2) == Answer(1, 2, F, at(15))


def test_after_a_restart_the_last_one_is_taken_once_more_and_nothing_older() -> None:
    register = Register(resumed=(3, 7))
    assert refused(register.take(told(6, epoch=3), at(1))) is Refusal.OLD
    assert register.take(told(7, epoch=3), at(1))[-1].state is A
    assert refused(register.take(told(7, epoch=3), at(1))) is Refusal.OLD


# Ratings

COMMON: dict[str, Any] = {"bus": "1", "weight": 1.0, "default": still()}
BATTERY = Battery(
    name="b", p_mw=0.4, s_mva=0.5, e_mwh=1.0, e_min_mwh=0.0, e_start_mwh=0.0, efficiency=(1, 1), **COMMON
)
PV = PvInverter(name="pv", s_mva=1.0, p_mw=0.8, **COMMON)
ENGINE = Generator(name="g", p_mw=1.0, p_min_mw=0.2, s_mva=1.0, ramp_mw_per_min=0.01, **COMMON)


ROWS = np.array([[1.0, 0.0], [-1.0, 1e-4]])


@pytest.mark.parametrize(
    ("device", "changes", "why"),
    [
        (BATTERY, {"region": Region.box(p_mw=(-0.4, -0.3), q_mvar=(0, 0))}, None),
        (BATTERY, {"region": Region.box(p_mw=(0.3, 9), q_mvar=(-9, 9))}, None),  # empty now, but not always
        (BATTERY, {"region": Region.box(p_mw=(0.41, 9), q_mvar=(-9, 9))}, "no point of the region"),
        (BATTERY, {"setpoint": Setpoint(p_mw=0.4, q_mvar=0.1)}, None),
        (BATTERY, {"setpoint": Setpoint(p_mw=-0.41)}, "p_mw -0.41 is outside its rating, -0.4 to 0.4"),
        (BATTERY, {"setpoint": Setpoint(q_mvar=0.51)}, "q_mvar 0.51 is outside"),
        (PV, {"region": Region.box(p_mw=(-1, -0.1), q_mvar=(0, 0))}, "no point of the region"),
        (PV, {"setpoint": Setpoint(p_mw=0.8)}, None),
        (PV, {"setpoint": Setpoint(p_mw=0.81)}, "outside its rating, "),
        (ENGINE, {"region": upto(0.1)}, "no point of the region"),
        (ENGINE, {"region": upto(0.3), "fallback": upto(0.2)}, None),
        (ENGINE, {"region": upto(0.3), "fallback": still()}, "fallback: no point of the region"),
        (PV, {"fallback": Region.box(p_mw=(0, 0))}, "fallback: a region over p_mw; its own is over"),
        (PV, {"fallback": Region.box(x=(0, 0), y=(0, 0))}, "fallback: a region over x, y"),
        (PV, {"fallback": Region(("q_mvar", "p_mw"), ROWS, np.array([0.0, 0.1]))}, None),
        (PV, {"fallback": Region(("p_mw", "q_mvar"), ROWS, np.array([0.0, -0.1]))}, "fallback: no point"),
        (PV, {"fallback": Region(("p_mw", "q_mvar"), -ROWS, np.array([-1e12, -1e12]))}, "fallback: no point"),
        (PV, {"region": Region.box(p_mw=(0, 1), v_pu=(0.9, 1.1))}, "a region over p_mw, v_pu; its own is"),
        (PV, {"region": Region.box(q_mvar=(0, 0), p_mw=(0, 0.1))}, None),
        (PV, {"later": (Span(at(5), at(10), Region.box(p_mw=(2, 3), q_mvar=(0, 0))),)}, "12:00:05"),
    ],
)  # fmt: skip
def test_what_it_can_never_do_is_refused(device: Any, changes: dict[str, Any], why: str | None) -> None:
    register = Register(rating=Rating(rating_of(device)))
    answer = register.take(replace(told(1), **{"region": None} | changes), at(1))[-1]
    if why is None:
        assert answer.state is A, answer.reason
    else:
        assert answer.code is Refusal.CAPABILITY
        assert why in str(answer.reason)


def test_the_numbers_are_those_of_the_standard() -> None:
    table = pytest.importorskip("envoy_schema.server.schema.sep2.response").ResponseType
    names = {
        Life.RECEIVED: "EVENT_RECEIVED",
        Life.APPLIED: "EVENT_STARTED",
        Life.EXPIRED: "EVENT_COMPLETED",
        Life.SUPERSEDED: "EVENT_SUPERSEDED",
        Refusal.HELD: "USER_CHOSE_OPT_OUT",
        Refusal.CAPABILITY: "REJECTED_CONTROL_PARAM_NOT_APPLICABLE",
        Refusal.OLD: "REJECTED_INVALID_EVENT",
        Refusal.EARLY: "REJECTED_INVALID_EVENT",
        Refusal.MALFORMED: "REJECTED_INVALID_EVENT",
        Refusal.STALE: "REJECTED_EVENT_RECEIVED_LATE",
    }
    assert {word: table[name].value for word, name in names.items()} == dict(STATUS)
    assert {*STATUS, Life.REFUSED, Life.FALLBACK} == {*Life, *Refusal}


# Whatever the network does


class Exchange(RuleBasedStateMachine):
    """A controller that may be restarted, a network that may do anything, and a device that may be too.

    What the device has to do is computed here from the history alone: of the instructions that arrived in
    time, the last one that was above all before it, in its time.
    """

    @initialize(synchronised=st.booleans())
    def begin(self, synchronised: bool) -> None:
        self.synchronised, self.now, self.epoch, self.seq = synchronised, 0.0, 1, 0
        self.wire: list[tuple[Instruction, float]] = []
        self.boot()

    def boot(self) -> None:
        self.register = Register(synchronised=self.synchronised)
        self.accepted: list[tuple[Instruction, float]] = []  # with the end of its life
        self.words: dict[tuple[int, int], list[Life]] = {}

    def hear(self, answers: tuple[Answer, ...]) -> None:
        for answer in answers:
            assert answer.time == at(self.now)
            self.words.setdefault((answer.epoch, answer.seq), []).append(answer.state)

    @rule(delay=st.integers(0, 3), lasts=st.integers(1, 8))
    def publish(self, delay: int, lasts: int) -> None:
        self.seq += 1
        begins = self.now + delay
        issued = told(self.seq, begins, begins + lasts, epoch=self.epoch, issued_at=at(self.now))
        self.wire.append((issued, delay + lasts))

    @rule()
    def restart_the_controller(self) -> None:
        self.epoch, self.seq = self.epoch + 1, 0

    @rule()
    def restart_the_device(self) -> None:
        self.boot()

    @precondition(lambda self: self.wire)
    @rule(which=st.integers(0, 10**6), again=st.booleans())
    def deliver(self, which: int, again: bool) -> None:
        """Any of them, in any order, once or several times."""
        i = which % len(self.wire)
        instruction, ttl_s = self.wire[i] if again else self.wire.pop(i)
        above = all((instruction.epoch, instruction.seq) > (b.epoch, b.seq) for b, _ in self.accepted)
        stale = self.synchronised and at(self.now) >= instruction.valid_until
        answers = self.register.take(instruction, at(self.now), self.now, ttl_s)
        own = [a for a in answers if (a.epoch, a.seq) == (instruction.epoch, instruction.seq)]
        if above and not stale:
            assert own[0].state is R
            self.accepted.append((instruction, self.now + ttl_s))
            self.hear(answers)
        else:
            assert answers[-1].code is (Refusal.STALE if above else Refusal.OLD)
            self.hear(answers[:-1])

    @rule()
    def lose_everything(self) -> None:
        self.wire.clear()

    @rule(seconds=st.sampled_from([0.25, 0.5, 1.0, 2.0, 5.0]))
    def pass_by(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def what_it_obeys_is_the_newest_in_its_time_and_nothing_else(self) -> None:
        if not hasattr(self, "register"):
            return
        self.hear(self.register.tick(at(self.now), self.now))
        order = self.register.order(at(self.now), self.now)
        begun = []
        for instruction, ends in self.accepted:
            until = (instruction.valid_until - NOON).total_seconds()
            begins = (instruction.valid_from - NOON).total_seconds()
            if self.synchronised:
                until = min(ends, until)
            else:
                begins, until = begins + ends - until, ends
            if self.now >= begins or self.now >= until:
                begun.append((instruction, until))
        if not begun:
            assert order.regime is Regime.INIT
            return
        instruction, until = begun[-1]
        assert order.instruction is instruction
        if self.now < until:
            assert order.regime is Regime.CONTROLLED
            assert order.region is instruction.region
        else:
            assert order.regime is Regime.FAILSAFE
            assert order.region is instruction.fallback

    @invariant()
    def every_life_is_one_that_can_be(self) -> None:
        lives = {(R,), (R, A), (R, S), (R, A, S), (R, A, E), (R, E), (R, A, E, F), (R, E, F)}
        for words in getattr(self, "words", {}).values():
            assert tuple(words) in lives


Exchange.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestExchange = Exchange.TestCase


class Thorough(Register):
    """Takes what begins at once as it takes anything else."""

    def take(
        self, instruction: Instruction, now: datetime, mono: float = 0.0, ttl_s: float = inf
    ) -> tuple[Answer, ...]:
        self._mono = mono
        return super().take(instruction, now, mono, ttl_s)

    def _take_at_once(self, accepted: Any, now: datetime) -> tuple[Answer, ...]:
        self._coming.append(accepted)
        self.newest = (accepted.instruction.epoch, accepted.instruction.seq)
        return (self._say(accepted, R, now), *self.tick(now, self._mono))


@given(
    st.lists(
        st.tuples(
            st.floats(0, 6),  # seconds that pass
            st.integers(-2, 4),  # when it begins
            st.integers(1, 6),  # how long it is valid
            st.sampled_from((0.5, 3.0, inf)),
            st.sampled_from(("take", "take", "take", "tick", "hold", "release")),
        ),
        max_size=20,
    ),
    st.booleans(),
)
def test_what_begins_at_once_is_taken_as_anything_else(
    events: list[tuple[float, int, int, float, str]], synchronised: bool
) -> None:
    quick, thorough = Register(synchronised=synchronised), Thorough(synchronised=synchronised)
    here = 0.0
    for seq, (passed, begins, lasts, ttl_s, what) in enumerate(events, start=1):
        here += passed
        one = told(seq, int(here) + begins, int(here) + begins + lasts)
        for register in (quick, thorough):
            if what in ("hold", "release"):
                getattr(register, what)()
        if what == "take":
            assert quick.take(one, at(here), here, ttl_s) == thorough.take(one, at(here), here, ttl_s)
        else:
            assert quick.tick(at(here), here) == thorough.tick(at(here), here)
        assert quick.order(at(here), here) == thorough.order(at(here), here)
        assert quick.quiet_s(at(here), here) == thorough.quiet_s(at(here), here)
        for number in range(1, seq + 1):
            assert quick.standing(1, number) == thorough.standing(1, number)
