"""Conversations inside a step: who hears what, who is missing, how they end, and what counts of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import numpy as np
import pytest

from controllers.contract import (
    Certificate,
    Decision,
    Infeasible,
    Interval,
    Kind,
    Late,
    Observation,
    Origin,
    Setpoint,
    Word,
)
from controllers.fairness import Fairness
from controllers.fallback import Fallback
from controllers.forecast import Forecast
from controllers.region import Region
from controllers.roles import Sight, addressed, answers, followers_of, question, says, sight_of
from controllers.site import Site
from simulators import decisions
from simulators.deadline import Deadline
from simulators.leading import Conversation, Outcome
from simulators.seats import Seat, Terms
from tests.interchange_cases import reference_site

NOON = datetime(2026, 6, 21, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
PATIENT_S = 30.0
Step = Callable[[Observation], Decision]


@cache
def site() -> Site:
    return reference_site()


def empty(**known: Any) -> Observation:
    return Observation(time=NOON, forecast=Forecast.empty(NOON, HOUR), **known)


def decision(**said: Any) -> Decision:
    return Decision(**({"time": NOON, "origin": Origin.OPTIMAL} | said))


def word(number: int, what: str = "ask", **values: float) -> Word:
    return Word(number=number, what=what, values={name: (value,) for name, value in values.items()})


class Plays:
    """A controller that does what it is told to, and keeps what it saw."""

    def __init__(self, step: Step) -> None:
        self.seen: list[Observation] = []
        self._step = step

    def step(self, observation: Observation) -> Decision:
        self.seen.append(observation)
        return self._step(observation)


def leads(turns: int, to: tuple[str, ...] = ("f1", "f2")) -> Plays:
    """Asks for some turns, numbers growing, then decides."""

    def step(observation: Observation) -> Decision:
        number = observation.turn + 1
        if observation.turn == turns or not observation.turns_left:
            return decision()
        return decision(words={name: word(number, price=number + 0.5) for name in to})

    return Plays(step)


def answering(observation: Observation, off: int = 0, **said: Any) -> Decision:
    heard = question(observation)
    assert heard is not None
    leader, asked = heard
    return decision(words={leader: word(asked.number + off, "answer", p_mw=asked.number / 8)}, **said)


def talk(
    leader: Any,
    followers: Mapping[str, Any],
    *,
    terms: Terms | None = None,
    clock: Callable[[], float] = lambda: 0.0,
    noted: list[tuple[str, Observation, Any]] | None = None,
    processes: Mapping[str, str] | None = None,
    base: Observation | None = None,
) -> Outcome:
    names = tuple(followers)
    lead = Seat("lead", leader, 1, 2 * HOUR, followers=names, sight=sight_of(leader), terms=terms or Terms())
    seats = [
        Seat(
            *(name, one, 1, 2 * HOUR),
            leader="lead",
            sight=sight_of(one),
            process=(processes or {}).get(name),
        )
        for name, one in followers.items()
    ]
    seen = base or empty()

    def see(seat: Seat) -> Observation:
        return seen if seat.sight is None else seat.sight.observation(seen)

    def ask(seat: Seat, observation: Observation, within_s: float | None) -> decisions.Reply:
        return decisions.ask(seat, observation, site(), within_s)

    def note(name: str, observation: Observation, said: Decision | BaseException) -> None:
        if noted is not None:
            noted.append((name, observation, said))

    return Conversation(lead, seats, see, ask, note, clock).hold()


# Turns


def test_they_talk_until_the_leader_has_no_words() -> None:
    leader, f1, f2 = leads(3), Plays(answering), Plays(answering)
    noted: list[tuple[str, Observation, Any]] = []
    found = talk(leader, {"f1": f1, "f2": f2}, noted=noted)
    assert (found.ended, found.turns, found.missing, found.raised) == ("decided", 3, {}, {})
    assert found.why == "the leader has decided after 3 turns"
    assert [(o.turn, o.turns_left) for o in leader.seen] == [(k, 500 - k) for k in range(4)]
    assert answers(leader.seen[0]) == {}
    for k in (1, 2, 3):
        heard = answers(leader.seen[k])
        assert {name: (one.number, one.values["p_mw"]) for name, one in heard.items()} == {
            "f1": (k, (k / 8,)),
            "f2": (k, (k / 8,)),
        }
    assert [name for name, _, _ in noted] == ["lead", "f1", "f2"] * 3 + ["lead"]
    assert [question(o) for o in f1.seen] == [("lead", word(k, price=k + 0.5)) for k in (1, 2, 3)]
    assert all(set(found.took_ms) == {"lead", "f1", "f2"} and ms > 0 for ms in found.took_ms.values())
    assert found.said == {"lead": decision()}  # words alone change nothing of what followers said before


def test_only_those_addressed_are_asked_and_only_their_last_answers_are_heard() -> None:
    turns = [("f1", "f2"), ("f2",), ("f1",)]
    leader = Plays(lambda o: decision(words={n: word(o.turn) for n in turns[o.turn]} if o.turn < 3 else {}))
    f1, f2 = Plays(answering), Plays(answering)
    talk(leader, {"f1": f1, "f2": f2})
    assert [set(answers(o)) for o in leader.seen] == [set(), {"f1", "f2"}, {"f2"}, {"f1"}]
    assert (len(f1.seen), len(f2.seen)) == (2, 2)


def test_what_counts_of_a_follower_is_its_last_decision_with_more_than_words() -> None:
    def step(observation: Observation) -> Decision:
        heard = question(observation)
        assert heard is not None
        number = heard[1].number
        setpoints = {"mg1_mt": Setpoint(p_mw=number / 10)} if number in (1, 2) else {}
        return answering(observation, setpoints=setpoints)

    found = talk(leads(3, ("f1",)), {"f1": Plays(step)})
    assert found.said["f1"] == decision(setpoints={"mg1_mt": Setpoint(p_mw=0.2)})
    assert found.said["f1"].words == {}


# Who is missing


class Fails:
    """Answers but in some turns, in which it does something else."""

    def __init__(self, **instead: Callable[[Observation], Decision]) -> None:
        self.instead = {int(turn[1:]): what for turn, what in instead.items()}
        self.times = 0

    def step(self, observation: Observation) -> Decision:
        self.times += 1
        return self.instead.get(self.times, answering)(observation)


def raising(error: BaseException) -> Step:
    def step(observation: Observation) -> Decision:
        raise error

    return step


def test_who_does_not_answer_is_missing_and_counted_by_name() -> None:
    leader = leads(7)
    f1 = Fails(
        t1=raising(Late("too slow")),
        t2=raising(Infeasible("no point")),
        t3=raising(SystemExit(3)),
        t4=lambda o: answering(o, off=-1, setpoints={"mg1_mt": Setpoint(p_mw=0.3)}),
        t5=lambda o: decision(setpoints={"mg1_mt": Setpoint(p_mw=0.2)}),
        t6=lambda o: decision(words={"f2": word(6)}),
    )
    found = talk(leader, {"f1": f1, "f2": Plays(answering)})
    assert [set(answers(o)) for o in leader.seen] == [set(), *[{"f2"}] * 6, {"f1", "f2"}]
    assert {"f1", "f2"} == leader.seen[5].said.keys()  # it decided, and had no word for the leader
    assert found.missing == {
        "f1": {"late": 1, "infeasible": 1, "controller-raised": 2, "stale": 1, "no-word": 1}
    }
    assert {key: times for key, (_, times) in found.raised.items()} == {
        ("f1", "late"): 1,
        ("f1", "infeasible"): 1,
        ("f1", "controller-raised"): 2,
    }
    assert found.said["f1"] == decision(
        setpoints={"mg1_mt": Setpoint(p_mw=0.2)}
    )  # a stale one counts nothing
    assert found.why.endswith("missing: f1 (controller-raised 2, infeasible 1, late 1, no-word 1, stale 1)")


def test_what_a_follower_said_in_an_earlier_step_is_no_answer() -> None:
    before = decision(setpoints={"mg1_mt": Setpoint(p_mw=0.3)})
    leader = leads(2, ("f1",))
    talk(leader, {"f1": Fails(t1=raising(Late("too slow")))}, base=empty(said={"f1": before}))
    assert [dict(o.said).get("f1") for o in leader.seen][:2] == [before, None]
    assert answers(leader.seen[2]).keys() == {"f1"}


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ({"f3": word(1)}, "a word for 'f3', who does not hear it; it talks with f1"),
        ({"f1": 5}, "the word for 'f1' is a int, not a Word"),
        ({"f1": Word(number=1, what="cut", regions={"c": 5})}, "'c' for 'f1' is a int, not a Region"),  # type: ignore[dict-item]
    ],
)
def test_a_leader_talks_with_nobody_else_and_in_words(words: Any, why: str) -> None:
    f1 = Plays(lambda o: decision(setpoints={"mg1_mt": Setpoint(p_mw=0.0)}))
    found = talk(Plays(lambda o: decision(words=words)), {"f1": f1})
    assert (found.ended, found.turns) == ("raised", 0)
    ((key, (error, times)),) = found.raised.items()
    assert (key, str(error), times) == (("lead", "controller-raised"), why, 1)


@pytest.mark.parametrize(
    ("known", "why"),
    [
        ({"number": -1}, "number -1 is no count"),
        ({"number": 0.5}, "number 0.5 is no count"),
        ({"what": 5}, "no text"),
        ({"values": {"price": (1.0, float("inf"))}}, "price is .*leave out what is not known"),
    ],
)
def test_what_is_no_word_is_refused(known: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Word(**({"number": 1, "what": "x"} | known))


def test_who_is_in_no_conversation_has_no_words() -> None:
    seat = Seat("dso", Plays(lambda o: decision(words={"f1": word(1)})), 1, HOUR)
    reply = decisions.ask(seat, empty(), site())
    assert str(reply.said) == "a word for 'f1', who does not hear it; it is no part of a conversation"


# How it ends


def test_after_the_last_turn_the_leader_has_to_decide() -> None:
    leader = leads(99)
    found = talk(leader, {"f1": Plays(answering), "f2": Plays(answering)}, terms=Terms(most_turns=4))
    assert (found.ended, found.turns) == ("decided", 4)
    assert [o.turns_left for o in leader.seen] == [4, 3, 2, 1, 0]


def test_when_the_time_is_over_the_leader_has_to_decide() -> None:
    now = [0.0]
    leader = leads(99, ("f1",))

    def slowly(observation: Observation) -> Decision:
        now[0] += 3.0
        return answering(observation)

    found = talk(leader, {"f1": Plays(slowly)}, terms=Terms(100, 10.0), clock=lambda: now[0])
    assert (found.ended, found.turns) == ("decided", 4)
    assert [o.turns_left for o in leader.seen] == [100, 99, 98, 97, 0]


def test_the_time_is_that_of_the_step_where_others_were_asked_before() -> None:
    leader, seen = leads(99, ("f1",)), empty()
    lead = Seat("lead", leader, 1, HOUR, followers=("f1",), terms=Terms(9, 5.0))
    f1 = Seat("f1", Hurried(), 1, HOUR, leader="lead")

    def ask(seat: Seat, observation: Observation, within_s: float | None) -> decisions.Reply:
        return decisions.ask(seat, observation, site(), within_s)

    for begun, turns_left in ((96.0, 9), (95.0, 0)):
        Conversation(lead, [f1], lambda seat: seen, ask, clock=lambda: 100.0, begun=begun).hold()
        assert [o.turns_left for o in leader.seen][:1] == [turns_left]
        leader.seen.clear()


class Hurried(Plays):
    """Notes how long it may take."""

    def __init__(self) -> None:
        super().__init__(answering)
        self.within_s: list[float] = []

    def step_within(self, observation: Observation, within_s: float) -> Decision:
        self.within_s.append(within_s)
        return self.step(observation)


def test_no_turn_of_followers_takes_more_than_half_of_what_is_left() -> None:
    now, f1, f2 = [0.0], Hurried(), Hurried()

    def lead(observation: Observation) -> Decision:
        now[0] += 2.0
        return leads(2).step(observation)

    talk(Plays(lead), {"f1": f1, "f2": f2}, terms=Terms(9, 10.0), clock=lambda: now[0])
    assert f1.within_s == f2.within_s == [4.0, 3.0]
    without = Hurried()
    talk(leads(1, ("f1",)), {"f1": without}, terms=Terms(9, None))
    assert (without.within_s, len(without.seen)) == ([], 1)


def test_a_follower_that_stays_away_costs_the_leader_no_more_than_its_share() -> None:
    gate = threading.Event()

    def stays_away(observation: Observation) -> Decision:
        assert gate.wait(PATIENT_S)
        return answering(observation)

    leader = leads(2)
    f2 = Deadline(Plays(stays_away), PATIENT_S)
    try:
        found = talk(leader, {"f1": Plays(answering), "f2": f2}, terms=Terms(2, 0.1))
    finally:
        gate.set()
    assert found.ended == "decided"
    assert found.missing == {"f2": {"late": found.turns}}
    assert [set(answers(o)) for o in leader.seen[1:]] == [{"f1"}] * found.turns


def alone(p_mw: float) -> Plays:
    """Answers its leader; without one it sets its device."""
    return Plays(
        lambda o: (
            decision(setpoints={"mg1_mt": Setpoint(p_mw=p_mw)})
            if question(o) is None
            else answering(o, setpoints={"mg1_mt": Setpoint(p_mw=0.4)})
        )
    )


@pytest.mark.parametrize("at", [0, 2])
def test_without_the_leaders_decision_each_follower_decides_alone(at: int) -> None:
    def step(observation: Observation) -> Decision:
        if observation.turn == at:
            raise Infeasible("no split")
        return leads(9).step(observation)

    f1, f2 = alone(0.1), Plays(answering_or_nothing)
    before = decision(plan=Forecast(NOON, HOUR, ("mg1",), np.ones((1, 1)), np.zeros((1, 1))))
    found = talk(Plays(step), {"f1": f1, "f2": f2}, base=empty(said={"lead": before}))
    assert (found.ended, found.turns) == ("raised", at)
    assert found.said == {"f1": decision(setpoints={"mg1_mt": Setpoint(p_mw=0.1)})}
    assert f1.seen[-1].said == {"lead": before}  # what it said in an earlier step, which still holds
    assert {key[0] for key in found.raised} == {"lead", "f2"}


def test_what_was_said_on_the_way_to_no_agreement_does_not_count() -> None:
    def step(observation: Observation) -> Decision:
        if question(observation) is None:
            raise Infeasible("nothing without a leader")
        return answering(observation, setpoints={"mg1_mt": Setpoint(p_mw=0.4)})

    def lead(observation: Observation) -> Decision:
        if observation.turn == 2:
            raise Infeasible("no split")
        return leads(9, ("f1",)).step(observation)

    f1 = Plays(step)
    found = talk(Plays(lead), {"f1": f1})
    assert len(f1.seen) == 3
    assert found.said == {}


def answering_or_nothing(observation: Observation) -> Decision:
    if question(observation) is None:
        raise Infeasible("nothing without a leader")
    return answering(observation)


def test_who_asks_on_when_it_has_to_decide_is_late() -> None:
    leader = Plays(lambda o: decision(words={"f1": word(o.turn)}))
    found = talk(leader, {"f1": alone(0.1)}, terms=Terms(most_turns=2))
    assert (found.ended, found.turns) == ("undecided", 2)
    error, times = found.raised["lead", "late"]
    assert isinstance(error, Late)
    assert "asks on after 2 turn(s), when it had to decide" in str(error)
    assert times == 1
    assert found.said == {"f1": decision(setpoints={"mg1_mt": Setpoint(p_mw=0.1)})}


def test_a_leaders_fallback_decides_and_its_followers_alone() -> None:
    def step(observation: Observation) -> Decision:
        if observation.turn == 1:
            raise ZeroDivisionError("x")
        return leads(9, ("f1",)).step(observation)

    envelope = decision(regions={"mg1_mt": Region.box(p_mw=(0, 1), q_mvar=(0, 0))})
    leader, f1 = Fallback(Leads(step), Plays(lambda o: envelope)), alone(0.1)
    assert followers_of(leader) == ("f1",)
    found = talk(leader, {"f1": f1})
    assert (found.ended, found.turns) == ("fell-back", 1)
    fell_back = replace(envelope, origin=Origin.FALLBACK, mistake="ZeroDivisionError: x")
    assert found.said["lead"].regions.keys() == {"mg1_mt"}
    assert (found.said["lead"].origin, found.said["lead"].mistake) == (fell_back.origin, fell_back.mistake)
    assert f1.seen[-1].said.keys() == {"lead"}
    assert found.said["f1"].setpoints == {"mg1_mt": Setpoint(p_mw=0.1)}
    assert found.raised == {("lead", "ZeroDivisionError: x"): ("ZeroDivisionError: x", 1)}


class Leads(Plays):
    followers = ("f1",)


# At the same time


def test_followers_in_other_processes_are_asked_at_the_same_time() -> None:
    both = threading.Barrier(2)
    running: list[str] = []

    def step(name: str) -> Step:
        def together(observation: Observation) -> Decision:
            both.wait(PATIENT_S)  # breaks, unless the other one waits too
            return answering(observation)

        def by_itself(observation: Observation) -> Decision:
            running.append(name)
            assert running == [name]
            running.clear()
            return answering(observation)

        return together if name in ("f1", "f2") else by_itself

    names = ("f1", "f2", "f3", "f4", "f5")
    noted: list[tuple[str, Observation, Any]] = []
    leader = leads(3, names)
    found = talk(
        leader,
        {name: Plays(step(name)) for name in names},
        processes={"f1": "one", "f2": "two", "f3": "three", "f4": "three"},
        noted=noted,
    )
    assert (found.turns, found.missing) == (3, {})
    assert [list(answers(o)) for o in leader.seen[1:]] == [list(names)] * 3  # always in the same order
    assert [name for name, _, _ in noted][:6] == ["lead", "f5", "f1", "f2", "f3", "f4"]


# What each sees


def everything() -> Observation:
    """An observation of the whole reference site, in which each name has a number of its own."""
    here = site()
    named = [*here.devices, *here.loads, *here.microgrids]
    values = {name: 1 + i / 1024 for i, name in enumerate(named)}
    ahead = [*here.devices, *here.loads, *(m.heat for m in here.microgrids.values() if m.heat), *prices()]
    mean = np.arange(2.0 * len(ahead)).reshape(2, -1)
    return Observation(
        time=NOON,
        forecast=Forecast(NOON, HOUR, tuple(ahead), mean, mean / 8),
        v_pu=dict.fromkeys((here.network.slack, *here.network.buses), 1.0),
        p_mw=values,
        q_mvar=values,
        e_mwh={name: values[name] for name in here.devices},
        regions={name: Region.box(p_mw=(0, values[name]), q_mvar=(0, 0)) for name in named},
        connected=dict.fromkeys(here.microgrids, True),
        silent_since=dict.fromkeys(here.devices, NOON),
        said={"f2": said_of("mg2")},
    )


def prices() -> set[str]:
    return {m.price for m in site().microgrids.values() if m.price}


def said_of(microgrid: str) -> Decision:
    """All that the follower of a microgrid can say of it."""
    own = site().microgrids[microgrid]
    boxes = {name: Region.box(p_mw=(0, 1), q_mvar=(0, 0)) for name in own.devices}
    return decision(
        setpoints={name: Setpoint(p_mw=0.25) for name in own.devices},
        regions=boxes,
        certificates=dict.fromkeys(boxes, Certificate(binding="its own")),
        later=(Interval(start=NOON + 2 * HOUR, end=NOON + 3 * HOUR, regions=boxes),),
        plan=Forecast(NOON, HOUR, (microgrid,), np.ones((1, 1)), np.zeros((1, 1))),
        fairness=Fairness(**dict.fromkeys(SHARES, 1.0)),
        mistake="KeyError: secret",
    )


SHARES = ("export_mw", "import_mw", "area_mva2", "jain_export", "jain_import", "least_export", "least_import")


def names_in(seen: Observation) -> set[str]:
    """Every name under which it says anything."""
    found: set[str] = {*seen.forecast.names, *seen.p_mw, *seen.q_mvar, *seen.e_mwh, *seen.regions}
    found |= {*seen.positions, *seen.connected, *seen.silent_since}
    for said in seen.said.values():
        found |= {*said.setpoints, *said.regions, *said.certificates, *said.positions}
        found |= {name for one in said.later for name in (*one.regions, *one.certificates)}
        found |= set(said.plan.names if said.plan else ())
    return found


def test_a_network_operator_sees_of_microgrids_their_exchange_and_price() -> None:
    here, whole = site(), everything()
    seen = Sight.operator(here).observation(whole)
    behind = {name for m in here.microgrids.values() for name in m.devices}
    heats = {m.heat for m in here.microgrids.values() if m.heat}
    assert behind
    assert heats
    assert names_in(whole) >= behind | heats
    assert names_in(seen) == names_in(whole) - behind - heats
    assert names_in(seen) >= {*here.microgrids, *prices(), *here.loads, *(here.devices.keys() - behind)}
    for name in seen.forecast.names:
        i, j = seen.forecast.names.index(name), whole.forecast.names.index(name)
        assert (seen.forecast.mean[:, i] == whole.forecast.mean[:, j]).all()
        assert (seen.forecast.std[:, i] == whole.forecast.std[:, j]).all()
    assert seen.v_pu == whole.v_pu
    assert seen.said == {"f2": decision(plan=seen.said["f2"].plan)}
    assert all(seen.p_mw[name] == whole.p_mw[name] for name in seen.p_mw)


@pytest.mark.parametrize("name", ["mg1", "mg2", "mg3"])
def test_a_microgrid_sees_nothing_but_its_own(name: str) -> None:
    here, whole = site(), everything()
    own = here.microgrids[name]
    seen = Sight.microgrid(here, name).observation(whole)
    wanted = {name, *own.devices} | {x for x in (own.price, own.heat) if x}
    assert names_in(seen) == wanted
    assert seen.v_pu == {own.bus: 1.0}
    assert set(seen.said) == ({"f2"} if name == "mg2" else set())
    assert (seen.time, seen.forecast.issued_at, seen.turn) == (NOON, NOON, 0)


def test_a_sight_of_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match="microgrid 'mg4' is none of the site; there are mg1, mg2, mg3"):
        Sight.microgrid(site(), "mg4")


class Sees(Plays):
    def __init__(self, step: Step, sight: Sight) -> None:
        super().__init__(step)
        self.sight = sight


def test_in_a_conversation_each_sees_its_own_and_what_is_said_to_it() -> None:
    """The leader says what is for both; each follower gives away all that it knows."""

    def lead(observation: Observation) -> Decision:
        if observation.turn == 2:
            return decision()
        regions = {m: Region.box(p_mw=(0, 1), q_mvar=(0, 0)) for m in ("mg1", "mg2")}
        return decision(
            words={name: word(observation.turn, to=float(name[1])) for name in ("f1", "f2")},
            regions=regions,
            kind=Kind.AIC,
        )

    def follow(microgrid: str) -> Step:
        return lambda o: replace(
            said_of(microgrid), words={"lead": word(o.said["lead"].words[f"f{microgrid[2]}"].number)}
        )

    leader = Sees(lead, Sight.operator(site()))
    f1, f2 = (Sees(follow(m), Sight.microgrid(site(), m)) for m in ("mg1", "mg2"))
    found = talk(leader, {"f1": f1, "f2": f2}, base=everything())
    assert (found.turns, found.missing) == (2, {})
    for microgrid, follower in (("mg1", f1), ("mg2", f2)):
        own = site().microgrids[microgrid]
        for seen in follower.seen:
            assert names_in(seen) <= {microgrid, *own.devices, own.price, own.heat}
            assert seen.said["lead"].regions.keys() == {microgrid}
            assert seen.said["lead"].words.keys() == {f"f{microgrid[2]}"}
            assert question(seen) == ("lead", seen.said["lead"].words[f"f{microgrid[2]}"])
    behind = {name for m in site().microgrids.values() for name in m.devices}
    for seen in leader.seen:
        assert not names_in(seen) & behind
        for said in seen.said.values():
            assert (said.setpoints, said.regions, said.certificates, said.later) == ({}, {}, {}, ())
            assert (said.fairness, said.mistake) == (None, None)
    assert set(leader.seen[1].said) == {"f1", "f2"}


def test_words_reach_only_whom_they_are_for_with_or_without_a_sight() -> None:
    f1, f2 = Plays(answering), Plays(answering)
    talk(leads(2), {"f1": f1, "f2": f2})
    assert all(o.said["lead"].words.keys() == {"f1"} for o in f1.seen)
    assert all(o.said["lead"].words.keys() == {"f2"} for o in f2.seen)
    both = decision(words={"a": word(1), "b": word(2)})
    assert addressed(both, "b").words == {"b": word(2)}
    assert not says(both)
    assert says(decision(positions={"tap": 1}))
