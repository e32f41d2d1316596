"""What becomes of an agreement where words are lost, who stays away, and when time is over."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from controllers.contract import ControlError, Infeasible, Late, SolverFailed
from controllers.partnership.distribution import BusLoad, Conditions
from controllers.partnership.master import Master, Proposal
from controllers.partnership.messages import (
    Answer,
    AskSettlement,
    Cuts,
    Offer,
    Question,
    Settlement,
)
from controllers.partnership.options import Options
from controllers.partnership.outcome import Exchange, Reason
from tests.partnership_agreements import (
    Problem,
    held,
    random_problem,
    standing_still,
)
from tests.partnership_witness import CUTS, EXACT

# Words that are lost, doubled or late.


@dataclass
class Trouble:
    """Loses, doubles and delays answers at random."""

    rng: np.random.Generator
    lost: float = 0.2
    doubled: float = 0.2
    late: float = 0.2
    _waiting: list[tuple[str, Answer]] = field(default_factory=list)
    happened: int = 0

    def __call__(self, answers: list[tuple[str, Answer]]) -> list[tuple[str, Answer]]:
        through, waiting = list(self._waiting), []
        for pair in answers:
            drawn = self.rng.random()
            if drawn < self.lost:
                pass
            elif drawn < self.lost + self.doubled:
                through += [pair, pair]
            elif drawn < self.lost + self.doubled + self.late:
                waiting.append(pair)
            else:
                through.append(pair)
            self.happened += drawn < self.lost + self.doubled + self.late
        self._waiting = waiting
        return [through[k] for k in self.rng.permutation(len(through))]


@pytest.mark.parametrize("number", range(6))
def test_B11_words_that_are_lost_doubled_or_late_cost_turns_and_nothing_else(number: int) -> None:
    problem = random_problem((5, 9, 14, 30, 42, 61)[number])
    calm = problem.agreed(EXACT)
    trouble = Trouble(np.random.default_rng(number))
    found = problem.agreed(replace(EXACT, patience=30), trouble)
    assert trouble.happened > 10
    assert found.turns > calm.turns
    assert [replace(one, turns=0) for one in found.rounds] == [replace(one, turns=0) for one in calm.rounds]
    assert (found.lower, found.upper, found.reason) == (calm.lower, calm.upper, calm.reason)
    for name, said in calm.settled.items():
        assert found.settled[name].p.tolist() == said.p.tolist()


def test_B11_answers_of_an_earlier_conversation_are_not_taken_for_new_ones() -> None:
    problem = random_problem(6)
    heard: list[tuple[str, Answer]] = []
    first = held(
        problem.agreeing(EXACT),
        problem.respondents,
        hear=lambda name, question, answer: heard.append((name, answer)),
    )
    dearer = replace(problem, conditions=replace(problem.conditions, price=problem.conditions.price + 20))
    again = dearer.agreed(EXACT, lambda answers: [*heard, *answers], number=first.number)
    calm = dearer.agreed(EXACT)
    assert (again.lower, again.upper) == (calm.lower, calm.upper)
    assert again.upper != first.upper


@pytest.mark.parametrize("spoil", ["kind", "length", "not a number", "axes", "count"])
def test_answers_that_do_not_fit_are_as_good_as_none(spoil: str) -> None:
    problem, spoilt = random_problem(6), 0

    def way(answers: list[tuple[str, Answer]]) -> list[tuple[str, Answer]]:
        nonlocal spoilt
        found = []
        for name, answer in answers:
            wrong: Answer | None = None
            match spoil, answer:
                case "kind", Cuts():
                    wrong = Settlement(answer.iteration, 0.0, np.zeros(2), np.zeros(2), 0.0)
                case "length", Settlement() | Offer():
                    wrong = replace(answer, p=answer.p[:-1])
                case "not a number", Settlement() | Offer():
                    wrong = replace(answer, p=answer.p * np.nan)
                case "count", Cuts():
                    wrong = replace(answer, cuts=answer.cuts[:-1])
                case "axes", Offer():
                    cut = answer.cut
                    named = replace(cut.region, axes=tuple(f"x{k}" for k in range(len(cut.region.axes))))
                    wrong = replace(answer, cut=replace(cut, region=named))
            if wrong is not None and name == "mg2" and spoilt < 2:
                spoilt += 1
                found.append((name, wrong))
            else:
                found.append((name, answer))
        return found

    found, calm = problem.agreed(EXACT, way), problem.agreed(EXACT)
    assert spoilt == 2
    assert found.turns > calm.turns
    assert (found.lower, found.upper) == (calm.lower, calm.upper)


# Who stays away.


def without(problem: Problem, name: str, exchange: Exchange) -> Problem:
    """The problem in which a microgrid is a load that nobody can change."""
    k, feeder, known = problem.names.index(name), problem.feeder, problem.conditions
    buses = [bus for n, bus in enumerate(feeder.microgrids) if n != k]
    load = BusLoad(feeder.microgrids[k], 0.0, None)
    less = replace(feeder, microgrids=tuple(buses), loads=(*feeder.loads, load))
    conditions = Conditions(
        known.price,
        np.column_stack([known.p_mw, exchange.p_mw]),
        np.column_stack([known.q_mvar, exchange.q_mvar]),
    )
    return Problem(less, conditions, [one for n, one in enumerate(problem.made) if n != k])


@pytest.mark.parametrize(("number", "after"), [(16, 0), (16, 1), (16, 4), (9, 3), (9, 12), (9, 45)])
def test_the_others_agree_around_one_who_stays_away(number: int, after: int) -> None:
    """From the first turn on; after the terms; before the settlement; in the middle of each stage."""
    problem = random_problem(number)
    alone, turns = standing_still(problem), 0
    does = alone["mg2"]

    def way(answers: list[tuple[str, Answer]]) -> list[tuple[str, Answer]]:
        nonlocal turns, does
        turns += 1
        if turns > after:
            return [pair for pair in answers if pair[0] != "mg2"]
        for name, said in answers:
            if name == "mg2" and isinstance(said, Settlement):
                does = Exchange(said.p, said.q)  # by which its devices go
        return answers

    found = problem.agreed(EXACT, way, alone=alone)
    best = without(problem, "mg2", does)
    value = best.central.whole(best.conditions).value
    assert found.reason is Reason.ABSENT
    assert set(found.alone) == {"mg2"}
    assert set(found.settled) == set(problem.names) - {"mg2"}
    assert found.upper == pytest.approx(value, rel=1.2e-6)
    assert found.lower <= value * (1 + 1e-7)
    assert found.operation.p_mw[:, 1] == pytest.approx(does.p_mw, abs=1e-9)
    low, high = problem.feeder.limits.v_pu
    assert low - 1e-6 <= found.operation.v_pu.min()
    assert found.operation.v_pu.max() <= high + 1e-6


@pytest.mark.parametrize("number", [9, 16])
@pytest.mark.parametrize("options", [EXACT, CUTS])
def test_who_settles_and_then_stays_away_is_taken_to_keep_to_it(number: int, options: Options) -> None:
    """Its devices have their setpoints, and nothing else is known of it."""
    problem, said = random_problem(number), list[Settlement]()

    def way(answers: list[tuple[str, Answer]]) -> list[tuple[str, Answer]]:
        if said:
            return [pair for pair in answers if pair[0] != "mg2"]
        said.extend(answer for name, answer in answers if name == "mg2" and isinstance(answer, Settlement))
        return answers

    found = problem.agreed(options, way)
    assert len(said) == 1
    assert found.turns > 3, "it went on after the settlement"
    assert found.reason is Reason.ABSENT
    assert found.alone["mg2"].p_mw.tolist() == said[0].p.tolist()
    assert found.alone["mg2"].q_mvar.tolist() == said[0].q.tolist()
    best = without(problem, "mg2", found.alone["mg2"])
    assert found.upper == pytest.approx(best.central.whole(best.conditions).value, rel=1.2e-6)
    assert found.operation.p_mw[:, 1] == pytest.approx(said[0].p, abs=1e-9)


def test_all_may_stay_away() -> None:
    problem = random_problem(16)
    alone = standing_still(problem)
    found = problem.agreed(EXACT, lambda answers: [], alone=alone)
    assert found.reason is Reason.ABSENT
    assert not found.settled
    assert found.upper == pytest.approx(found.operation.cost, rel=1e-9)


def test_who_stays_away_and_of_whom_nothing_is_known_is_named() -> None:
    with pytest.raises(Late, match=r"mg1, mg2, mg3|mg1 did not answer for 3 turns"):
        random_problem(16).agreed(EXACT, lambda answers: [])


# No turn, no iteration left.


@pytest.mark.parametrize("turns", [7, 10, 14, 20])
@pytest.mark.parametrize("options", [EXACT, CUTS])
def test_turns_that_are_known_to_be_few_are_enough_for_a_settlement(turns: int, options: Options) -> None:
    problem = random_problem(9)
    found, best = (
        problem.agreed(replace(options, most_turns=turns)),
        problem.central.whole(problem.conditions),
    )
    assert found.reason is Reason.TURNS
    assert found.turns <= turns
    assert found.lower <= best.value * (1 + 1e-7) <= found.upper * (1 + 2e-7)
    for name, said in found.settled.items():
        assert problem.respondents[name].operation(found.settlements[name]).cost == pytest.approx(said.cost)


@pytest.mark.parametrize("options", [EXACT, CUTS])
@pytest.mark.parametrize("turns", [0, 2, 3, 4, 12, 24, 26, 27, 28, 30])
def test_what_is_confirmed_stands_when_time_is_over_without_notice(turns: int, options: Options) -> None:
    """Unless it is over in the middle of a settlement: then nobody knows who goes by which."""
    problem = random_problem(9)
    confirmed: dict[str, AskSettlement] = {}
    last: list[Question] = []

    def hear(name: str, question: Question, answer: Answer) -> None:
        last[:] = [question]
        if isinstance(question, AskSettlement):
            confirmed[name] = question

    before: dict[str, AskSettlement] = {}

    def way(answers: list[tuple[str, Answer]]) -> list[tuple[str, Answer]] | None:
        nonlocal turns
        turns -= 1
        if turns < 0:
            return None
        before.update(confirmed)
        return answers

    try:
        found = held(problem.agreeing(options), problem.respondents, way, hear)
    except Late:
        assert not before or isinstance(last[0], AskSettlement)
        return
    assert before
    assert found.reason is Reason.TURNS
    assert found.settlements == before == confirmed, "the microgrids go by what they were told last"
    assert found.lower <= problem.central.whole(problem.conditions).value * (1 + 1e-7)
    for name, said in found.settled.items():
        assert problem.respondents[name].operation(found.settlements[name]).p.tolist() == said.p.tolist()


def test_iterations_that_are_over_are_the_reason() -> None:
    problem = random_problem(9)
    found = problem.agreed(replace(CUTS, most_iterations=3))
    assert found.reason is Reason.ITERATIONS
    assert len(found.rounds) == 3
    assert found.lower <= problem.central.whole(problem.conditions).value <= found.upper


def test_who_confirms_less_than_it_has_offered_closes_no_gap() -> None:
    """The certificate is about what was confirmed, not about what was believed."""
    problem = random_problem(16)

    def way(answers: list[tuple[str, Answer]]) -> list[tuple[str, Answer]]:
        return [
            (name, replace(said, cost=said.cost + 5) if isinstance(said, Settlement) else said)
            for name, said in answers
        ]

    calm, found = problem.agreed(EXACT), problem.agreed(EXACT, way)
    assert calm.reason is Reason.GAP
    assert found.reason is Reason.STALLED
    assert found.gap > EXACT.epsilon
    assert found.upper == pytest.approx(calm.upper + 5 * len(problem.made), rel=1e-6)


@pytest.mark.parametrize("error", [SolverFailed("no answer"), Infeasible("it says")])
@pytest.mark.parametrize("solves", [0, 1, 2, 3, 4, 6, 8, 12])
def test_what_is_confirmed_stands_when_a_solver_fails(
    monkeypatch: pytest.MonkeyPatch, solves: int, error: ControlError
) -> None:
    problem, left, asked = random_problem(9), solves, dict[str, AskSettlement]()
    best = problem.central.whole(problem.conditions).value
    relaxed = Master.relaxed

    def failing(*given: Any) -> Proposal:
        nonlocal left
        left -= 1
        if left < 0:
            raise error
        return relaxed(*given)

    def hear(name: str, question: Question, answer: Answer) -> None:
        if isinstance(question, AskSettlement):
            asked[name] = question

    monkeypatch.setattr(Master, "relaxed", failing)
    try:
        found = held(problem.agreeing(EXACT), problem.respondents, hear=hear)
    except (SolverFailed, Infeasible):
        assert solves == 0, "something was confirmed"
        return
    assert found.settlements == asked
    assert found.reason is Reason.SOLVER
    assert found.lower <= best * (1 + 1e-7) <= found.upper * (1 + 2e-7)
