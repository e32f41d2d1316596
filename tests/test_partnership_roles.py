"""Leader and followers of the partnership, alone and in conversations: what they hold to, what each is shown,
and what becomes of a step in which nothing is agreed on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import numpy as np
import pytest

from controllers.contract import ControlError, Decision, Infeasible, Late, Observation, Origin, Word
from controllers.devices import FlexibleLoad, StaticVarCompensator
from controllers.forecast import Forecast
from controllers.network import Flows, Limits
from controllers.partnership.centralised import PartnershipCentralised
from controllers.partnership.follower import PartnershipFollower
from controllers.partnership.leader import PartnershipLeader
from controllers.partnership.surroundings import Surroundings
from controllers.partnership.words import from_word
from controllers.roles import addressed, sight_of
from controllers.site import Site
from scenarios.build import build
from scenarios.check import validate
from scenarios.load import load
from simulators import decisions
from simulators.leading import Conversation, Outcome
from simulators.seats import Seat, Terms
from tests.test_controllers import check

MIDNIGHT = datetime(2026, 6, 21, tzinfo=UTC)
HOUR = timedelta(hours=1)
NAMES = ("mg1", "mg3")
PRICE = np.array([0.77, 1, 1.16, 0.9, 1.30, 0.77]) * 103
DEMAND = np.array([0.85, 0.95, 0.9, 1, 0.95, 0.85])
SUN = np.array([1, 1.2, 0.6, 1, 1.4, 1]) / 1.4


@cache
def site() -> Site:
    """The source's case with two of its microgrids; the others' devices are left out."""
    draft = load("ieee123-partnership")
    whole = build(draft, validate(draft)).site
    gone = {name for grid in whole.microgrids.values() if grid.name not in NAMES for name in grid.devices}
    return replace(
        whole,
        devices={name: device for name, device in whole.devices.items() if name not in gone},
        microgrids={name: whole.microgrids[name] for name in NAMES},
    )


def seen(scale: float = 1.0, *, at: datetime = MIDNIGHT, own: Site | None = None) -> Observation:
    """All devices as they start, all forecasts as the source has them, demand times `scale`."""
    own = own or site()
    columns: dict[str, Any] = {"price": PRICE}
    for name, device in own.devices.items():
        if isinstance(device, FlexibleLoad):
            columns[name] = -device.p_mw * DEMAND * scale
        elif name.endswith("_re"):
            columns[name] = device.p_mw * SUN
    mean = np.column_stack(list(columns.values()))
    p_mw = {name: device.initial().p_mw for name, device in own.devices.items()}
    p_mw |= {name: -0.02 * k for k, name in enumerate(own.microgrids, 1)}
    return Observation(
        time=at,
        forecast=Forecast(at, HOUR, tuple(columns), mean, np.zeros_like(mean)),
        p_mw=p_mw,
        q_mvar=dict.fromkeys(p_mw, 0.0),
        e_mwh={n: e for n, d in own.devices.items() if (e := d.initial().e_mwh) is not None},
        connected=dict.fromkeys(own.microgrids, True),
    )


def roles(own: Site | None = None, **options: Any) -> tuple[PartnershipLeader, dict[str, Any]]:
    own = own or site()
    leader = PartnershipLeader(own, **options)
    return leader, {name: PartnershipFollower(own, microgrid=name) for name in own.microgrids}


Fate = Callable[[str, int], bool]
"""Whether a follower's n-th answer is lost."""


def talk(
    leader: PartnershipLeader,
    followers: Mapping[str, Any],
    observation: Observation,
    lost: Fate = lambda name, asked: False,
    most_turns: int = 500,
) -> tuple[Outcome, list[tuple[str, Observation, Any]]]:
    """A whole conversation, and all that was asked and said."""
    names = tuple(followers)
    terms = Terms(most_turns=most_turns)
    lead = Seat("lead", leader, 1, 2 * HOUR, followers=names, sight=sight_of(leader), terms=terms)
    seats = [Seat(n, c, 1, 2 * HOUR, leader="lead", sight=sight_of(c)) for n, c in followers.items()]
    noted: list[tuple[str, Observation, Any]] = []
    asked = dict.fromkeys(names, 0)

    def see(seat: Seat) -> Observation:
        return observation if seat.sight is None else seat.sight.observation(observation)

    def ask(seat: Seat, given: Observation, within_s: float | None) -> decisions.Reply:
        reply = decisions.ask(seat, given, leader.site, within_s)
        if seat.name in asked and given.said:
            asked[seat.name] += 1
            if lost(seat.name, asked[seat.name]):
                return replace(reply, said=Late("lost"))
        return reply

    def note(name: str, given: Observation, said: Decision | BaseException) -> None:
        noted.append((name, given, said))

    return Conversation(lead, seats, see, ask, note, lambda: 0.0).hold(), noted


def bytes_of(outcome: Outcome) -> bytes:
    found = [
        repr((name, said.time, said.origin, said.setpoints, said.certificates, said.iterations))
        + (said.plan.mean.tobytes().hex() if said.plan else "")
        for name, said in outcome.said.items()
    ]
    return "".join(found).encode()


# The contract


def test_on_a_usual_day_all_decide() -> None:
    outcome, noted = talk(*roles(), seen())
    assert outcome.ended == "decided"
    assert outcome.said.keys() == {"lead", *NAMES}
    for name, said in outcome.said.items():
        assert said.time == MIDNIGHT
        assert said.setpoints.keys() <= site().devices.keys(), name
        if name in NAMES:
            assert said.setpoints.keys() == set(site().microgrids[name].devices)
            assert said.origin is Origin.OPTIMAL
            check(said, seen(), site())
    assert outcome.said["lead"].origin is Origin.CERTIFIED
    assert {type(said) for _, _, said in noted} == {Decision}
    plans = {name: outcome.said[name].plan for name in ("lead", *NAMES)}
    for k, name in enumerate(NAMES):  # both sides of the point of common coupling plan the same
        assert plans["lead"].mean[:, k] == pytest.approx(plans[name].mean[:, 0], abs=1e-6)  # type: ignore[union-attr]


def test_the_same_input_gives_the_same_bytes() -> None:
    leader, followers = roles()
    first = bytes_of(talk(leader, followers, seen())[0])
    other = bytes_of(talk(leader, followers, seen(0.7))[0])
    assert bytes_of(talk(leader, followers, seen())[0]) == first
    assert bytes_of(talk(*roles(), seen())[0]) == first
    assert other != first


def test_lost_answers_cost_turns_and_change_nothing() -> None:
    whole, _ = talk(*roles(), seen())
    some, _ = talk(*roles(), seen(), lambda name, asked: asked % 3 == (1 if name == "mg1" else 2))
    assert some.turns > whole.turns
    assert some.missing["mg1"]["late"] > 0
    for name in NAMES:
        assert some.said[name].setpoints == whole.said[name].setpoints
    assert some.said["lead"].iterations[-1].upper == whole.said["lead"].iterations[-1].upper


@pytest.mark.parametrize("lacks", ["forecast", "p_mw", "e_mwh"])
def test_what_is_not_known_is_said_and_leaves_nothing_behind(lacks: str) -> None:
    leader, followers = roles()
    nothing = Forecast.empty(MIDNIGHT, HOUR) if lacks == "forecast" else {}
    outcome, noted = talk(leader, followers, replace(seen(), **{lacks: nothing}))
    failures = [said for _, _, said in noted if isinstance(said, BaseException)]
    assert failures
    assert all(isinstance(said, ControlError) for said in failures)
    assert bytes_of(talk(leader, followers, seen())[0]) == bytes_of(talk(*roles(), seen())[0])
    if lacks == "forecast":
        assert outcome.ended == "raised"


def test_what_a_follower_is_shown_is_its_own() -> None:
    """Nothing of the others, and of the operator its word to it alone."""
    _, noted = talk(*roles(), seen())
    for name, observation, _ in noted:
        if name == "lead":
            own = {n for grid in site().microgrids.values() for n in grid.devices}
            assert not own & {*observation.p_mw, *observation.e_mwh, *observation.forecast.names}
            assert set(NAMES) < observation.p_mw.keys()
            assert all(not said.setpoints for said in observation.said.values())
        else:
            allowed = {name, "price", *site().microgrids[name].devices}
            assert {*observation.p_mw, *observation.forecast.names} <= allowed
            assert all(said.words.keys() <= {name} for said in observation.said.values())
            assert all(not said.iterations for said in observation.said.values())


# Nobody agrees


def settled(name: str) -> tuple[PartnershipFollower, Decision]:
    leader, followers = roles()
    outcome, _ = talk(leader, followers, seen())
    return followers[name], outcome.said[name]


def test_alone_a_follower_keeps_to_the_exchange_agreed_on_last() -> None:
    follower, said = settled("mg1")
    later = replace(seen(at=MIDNIGHT + HOUR), e_mwh=dict(seen().e_mwh), p_mw=dict(seen().p_mw))
    measured = {name: setpoint.p_mw for name, setpoint in said.setpoints.items() if name != "mg1_load"}
    later = replace(later, p_mw={**later.p_mw, **measured})
    alone = follower.step(follower.sight.observation(later))
    assert alone.origin is Origin.DEGRADED
    assert alone.certificates["mg1"].binding == (
        "nothing is agreed on: it keeps to the exchange of 2026-06-21T00:00Z"
    )
    assert said.plan is not None
    assert alone.plan is not None
    assert len(alone.plan.mean) == 5
    assert np.abs(alone.plan.mean[:, 0] - said.plan.mean[1:, 0]).max() < 0.05
    assert not alone.words


def test_alone_without_an_agreement_or_after_its_end_it_has_no_decision() -> None:
    fresh = PartnershipFollower(site(), microgrid="mg1")
    with pytest.raises(Infeasible, match="nothing was agreed on before; its devices obey their defaults"):
        fresh.step(fresh.sight.observation(seen()))
    follower, _ = settled("mg1")
    over = seen(at=MIDNIGHT + 6 * HOUR)
    with pytest.raises(Infeasible, match=r"what was at 2026-06-21 00:00:00.* is over"):
        follower.step(follower.sight.observation(over))


def test_what_it_has_settled_on_in_a_step_without_agreement_counts_for_nothing() -> None:
    leader, followers = roles()
    follower = followers["mg1"]
    talk(leader, followers, seen())
    first = follower.memory()[0]
    again = seen(0.8, at=MIDNIGHT + HOUR)
    talk(leader, followers, again)
    assert follower.memory()[0].time == MIDNIGHT + HOUR
    follower.step(follower.sight.observation(again))  # the leader had no decision in the end
    assert follower.memory()[0] is first


def test_it_remembers_what_an_equal_one_did() -> None:
    follower, _ = settled("mg3")
    later = follower.sight.observation(seen(at=MIDNIGHT + HOUR))
    other = PartnershipFollower(site(), microgrid="mg3")
    other.recall(follower.memory())
    one, two = follower.step(later), other.step(later)
    assert (one.setpoints, one.certificates) == (two.setpoints, two.certificates)


def test_of_one_that_stays_away_the_measured_exchange_is_taken() -> None:
    outcome, _ = talk(*roles(), seen(), lambda name, asked: name == "mg3")
    assert outcome.ended == "decided"
    said = outcome.said["lead"]
    assert said.origin is Origin.DEGRADED
    assert "mg3 stayed away" in str(said.certificates[site().name].binding)
    assert said.plan is not None
    assert said.plan.mean[:, NAMES.index("mg3")] == pytest.approx(np.full(6, -0.04), abs=1e-9)
    assert outcome.said["mg1"].origin is Origin.OPTIMAL


def test_of_one_that_stays_away_and_is_not_measured_nothing_is_made_up() -> None:
    blind = seen()
    blind = replace(blind, p_mw={n: p for n, p in blind.p_mw.items() if n != "mg3"})
    outcome, _ = talk(*roles(), blind, lambda name, asked: name == "mg3")
    assert outcome.ended == "raised"
    assert [name for name, what in outcome.raised if what == "late" and name == "lead"] == ["lead"]


def test_where_turns_are_over_it_decides_with_what_it_has_or_says_so() -> None:
    enough, _ = talk(*roles(epsilon=0.0), seen(), most_turns=12)
    assert enough.ended == "decided"
    assert enough.turns <= 12
    assert str(enough.said["lead"].iterations[-1].ended).startswith("turns after")
    none, _ = talk(*roles(), seen(), most_turns=2)
    assert none.ended == "raised"
    assert none.said == {}


def test_in_the_middle_of_a_conversation_that_it_has_not_begun_it_says_so() -> None:
    with pytest.raises(ControlError, match="turn 3 of a conversation that it has not begun"):
        PartnershipLeader(site()).step(replace(seen(), turn=3, turns_left=9))


def asked(word: Word) -> Observation:
    said = Decision(time=MIDNIGHT, origin=Origin.OPTIMAL, words={"mg1": word})
    return replace(seen(), said={"lead": addressed(said, "mg1")})


@pytest.mark.parametrize(
    ("word", "why"),
    [
        (Word(number=1, what="give me all"), "is no message of the partnership"),
        (Word(number=1, what="patterns", values={"kinds": ()}), "is an answer; a follower is asked"),
        (Word(number=1, what="ask prices", values={"count": (1.0,), "p_price": (1.0,)}), "has no 'q_price'"),
    ],
)
def test_a_word_that_is_no_question_is_refused(word: Word, why: str) -> None:
    follower = PartnershipFollower(site(), microgrid="mg1")
    with pytest.raises(ControlError, match=why):
        follower.step(follower.sight.observation(asked(word)))


def test_a_follower_that_begins_anew_answers_the_same() -> None:
    _, noted = talk(*roles(), seen())
    for name, observation, said in noted:
        if name == "mg1":
            fresh = PartnershipFollower(site(), microgrid="mg1")
            word, other = (d.words["lead"] for d in (said, fresh.step(observation)))
            assert (word.what, word.values) == (other.what, other.values)
            for key, region in word.regions.items():
                assert (region.A == other.regions[key].A).all()


# What it knows


def test_the_surroundings_are_all_loads_and_compensators() -> None:
    around = Surroundings(site(), NAMES, 6)
    given = around.conditions(seen())
    behind = {name for grid in site().microgrids.values() for name in grid.devices}
    loads = [d for n, d in site().devices.items() if isinstance(d, FlexibleLoad) and n not in behind]
    assert given.p_mw.sum(axis=1) == pytest.approx(-sum(d.p_mw for d in loads) * DEMAND)
    assert given.q_mvar.sum(axis=1) == pytest.approx(sum(d.reactive(-d.p_mw) for d in loads) * DEMAND)
    compensators = [d for d in site().devices.values() if isinstance(d, StaticVarCompensator)]
    assert around.feeder.compensators == tuple(compensators)
    assert given.price == pytest.approx(PRICE)
    assert around.feeder.hours == 1.0


def test_of_a_load_its_firm_part_cannot_be_curtailed() -> None:
    name = "load-0"
    firm = replace(site().devices[name], firm_mw=0.01)
    own = replace(site(), devices={**site().devices, name: firm})
    around = Surroundings(own, NAMES, 6)
    given = around.conditions(seen(own=own))
    at = [d for d, demand in enumerate(around.feeder.loads) if demand.bus == firm.bus]
    costs = [around.feeder.loads[d].curtailment_cost_per_mwh for d in at]
    assert costs == [500.0, None]
    assert given.p_mw[:, at].sum(axis=1) == pytest.approx(-firm.p_mw * DEMAND)
    assert given.p_mw[:, at[1]] == pytest.approx(np.full(6, -0.01))


def test_what_is_neither_forecast_nor_measured_is_named() -> None:
    blind = seen()
    kept = [n for n in blind.forecast.names if n != "load-0"]
    at = [blind.forecast.names.index(n) for n in kept]
    mean = blind.forecast.mean[:, at]
    blind = replace(blind, forecast=Forecast(MIDNIGHT, HOUR, tuple(kept), mean, np.zeros_like(mean)))
    Surroundings(site(), NAMES, 6).conditions(blind)  # its measured power
    blind = replace(blind, p_mw={n: p for n, p in blind.p_mw.items() if n != "load-0"})
    with pytest.raises(Infeasible, match="'load-0' is neither forecast nor measured"):
        Surroundings(site(), NAMES, 6).conditions(blind)


class Sagging:
    """The site's AC power flow, but for voltages that are lower by a little."""

    def __init__(self, engine: Any, by: float) -> None:
        self._engine, self._by = engine, by
        self.buses, self.branches = engine.buses, engine.branches

    def solve(self, p_mw: Any, q_mvar: Any) -> Flows:
        found = self._engine.solve(p_mw, q_mvar)
        return replace(found, v_pu=found.v_pu - self._by)

    def at(self, positions: Mapping[str, int]) -> Any:
        return self


@pytest.mark.parametrize(("by", "origin"), [(0.0, Origin.CERTIFIED), (0.2, Origin.DEGRADED)])
def test_what_breaks_a_limit_in_ac_is_not_certified(by: float, origin: Origin) -> None:
    own = replace(site(), power_flow=Sagging(site().power_flow, by))
    outcome, _ = talk(*roles(own), seen())
    said = outcome.said["lead"]
    assert said.origin is origin
    certificate = said.certificates[site().name]
    assert certificate.power_flows == 6
    assert certificate.worst_v_pu is not None
    assert (certificate.worst_v_pu < 0.9) == (origin is Origin.DEGRADED)


def paid_to_burn() -> Observation:
    """Energy has a price far below zero."""
    given = seen()
    mean = given.forecast.mean.copy()
    mean[:, given.forecast.names.index("price")] = -150.0
    return replace(given, forecast=replace(given.forecast, mean=mean))


def test_a_store_that_would_charge_and_discharge_at_once_is_named() -> None:
    leader, followers = roles()
    outcome, _ = talk(leader, followers, paid_to_burn())
    for name in NAMES:
        said = outcome.said[name]
        assert said.origin is Origin.DEGRADED
        assert "give the option exclusive_stores" in str(said.certificates[name].binding)
    own = site()
    exclusive = {name: PartnershipFollower(own, microgrid=name, exclusive_stores=True) for name in NAMES}
    outcome, _ = talk(PartnershipLeader(own), exclusive, paid_to_burn())
    assert [outcome.said[name].origin for name in NAMES] == [Origin.OPTIMAL] * 2


def test_a_relaxation_that_is_not_exact_is_named() -> None:
    """A limit just below the source's voltage: the relaxed branch flow invents losses to keep it."""
    outcome, _ = talk(*roles(replace(site(), limits=Limits((0.9, 0.995), 100.0))), seen())
    said = outcome.said["lead"]
    assert said.origin is Origin.DEGRADED
    assert "the relaxed branch flow is off by" in str(said.certificates[site().name].binding)
    assert "relaxed" not in str(talk(*roles(), seen())[0].said["lead"].certificates[site().name].binding)


def test_the_centralised_controller_finds_the_optimum_that_they_agree_on() -> None:
    outcome, _ = talk(*roles(epsilon=1e-6), seen())
    whole = PartnershipCentralised(site()).step(seen())
    (central,), agreed = whole.iterations, outcome.said["lead"].iterations[-1]
    assert central.upper == pytest.approx(agreed.upper, rel=1.2e-6)
    assert central.lower == pytest.approx(agreed.lower, rel=1.2e-6)
    assert whole.origin is Origin.CERTIFIED
    told = {name: point for said in outcome.said.values() for name, point in said.setpoints.items()}
    assert whole.setpoints.keys() == told.keys()
    for name, point in told.items():
        assert whole.setpoints[name].p_mw == pytest.approx(point.p_mw, abs=1e-4), name


def test_the_centralised_controller_says_what_it_cannot_do() -> None:
    whole = PartnershipCentralised(site())
    with pytest.raises(Infeasible, match="mg3: not connected"):
        whole.step(replace(seen(), connected={"mg1": True, "mg3": False}))
    hot = {"mg1": replace(site().microgrids["mg1"], heat="heat")}
    with pytest.raises(ValueError, match="have a heat demand"):
        PartnershipCentralised(replace(site(), microgrids=hot))
    with pytest.raises(ValueError, match="give at least 1"):
        PartnershipCentralised(site(), horizon=0)


def test_without_an_ac_power_flow_it_is_optimal_and_unchecked() -> None:
    own = replace(site(), power_flow=None)
    said = talk(*roles(own), seen())[0].said["lead"]
    assert said.origin is Origin.OPTIMAL
    assert said.certificates[site().name].worst_v_pu is None


def test_limits_that_nothing_keeps_are_infeasible() -> None:
    own = replace(site(), limits=Limits((1.05, 1.1), 100.0))
    outcome, _ = talk(*roles(own), seen())
    assert outcome.ended == "raised"
    assert ("lead", "infeasible") in outcome.raised


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"followers": {"mg1": "a"}}, "name one controller for each"),
        ({"followers": {"mg1": "a", "mg3": "a"}}, "name one controller for each"),
        ({"horizon": 0}, "give at least 1"),
        ({"epsilon": -1.0}, "epsilon is -1.0"),
        ({"mode": "fast"}, "there are lift"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        PartnershipLeader(site(), **options)


def test_a_microgrid_with_a_heat_demand_is_refused() -> None:
    hot = replace(site().microgrids["mg1"], heat="heat")
    with pytest.raises(ValueError, match="has a heat demand"):
        PartnershipFollower(replace(site(), microgrids={"mg1": hot}))


def test_words_reveal_nothing_that_messages_do_not_list() -> None:
    """Every word between them is a message, and has no name but those of `words`."""
    _, noted = talk(*roles(), seen())
    words = [word for _, _, said in noted for word in said.words.values()]
    assert len(words) >= 16
    for word in words:
        assert {field.name for field in fields(word)} == {"number", "what", "values", "regions"}
        message = from_word(word)
        assert message.iteration == word.number
