"""What operator and microgrid say: answers that need no memory, words that carry them, and nothing else."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest

from controllers import Infeasible, Region, Word
from controllers.partnership.commitment import commitment
from controllers.partnership.coupling import Cut, Point, Tent, axes
from controllers.partnership.messages import (
    Answer,
    AskCuts,
    AskOffer,
    AskPatterns,
    AskPrices,
    AskRestoration,
    AskSettlement,
    AskTerms,
    Cuts,
    Lifted,
    Offer,
    Pattern,
    Patterns,
    Priced,
    Question,
    Relaxed,
    Restoration,
    Settlement,
    Terms,
)
from controllers.partnership.respondent import Respondent
from controllers.partnership.restoration import POOL
from controllers.partnership.words import from_word, to_word
from tests.partnership_cases import BASE_PRICE, PRICE, seed

T = 6
WEIGHT = 1.3 * BASE_PRICE


def points(count: int, *, bits: bool = False) -> tuple[Point, ...]:
    rng = np.random.default_rng(count)
    return tuple(
        Point(
            rng.uniform(-0.05, 0.2, T),
            rng.uniform(-0.05, 0.1, T),
            float(rng.uniform(0, 40)),
            rng.random(T) if bits else None,
        )
        for _ in range(count)
    )


def questions() -> list[Question]:
    """Of every kind, with every choice."""
    one = points(1)[0]
    named = [Pattern(kind, one.p, one.q, WEIGHT) for kind in POOL]
    priced = Priced(1.02 * BASE_PRICE * PRICE, np.full(T, 3.0))
    whole = replace(one, bits=np.array([1.0, 1, 0, 0, 1, 1]))
    return [
        AskTerms(1),
        AskPrices(2, np.outer([1.0, 1.04], BASE_PRICE * PRICE), np.zeros((2, T))),
        AskCuts(3, points(3), WEIGHT),
        AskCuts(4, points(2), WEIGHT, Relaxed("all")),
        AskCuts(5, points(2, bits=True), WEIGHT, Lifted()),
        *(AskCuts(6 + k, points(2), WEIGHT, one) for k, one in enumerate(named)),
        AskRestoration(11, one, WEIGHT),
        AskRestoration(12, one, WEIGHT, "augmented"),
        AskPatterns(13, one, WEIGHT),
        AskSettlement(14, one),
        AskSettlement(15, one, named[0]),
        AskSettlement(16, whole, Lifted()),
        AskOffer(17, 1.02 * BASE_PRICE * PRICE, np.full(T, 3.0)),
        AskCuts(18, points(2), WEIGHT, priced),
        AskSettlement(19, one, priced),
    ]


def same(a: Any, b: Any) -> bool:
    """Value for value, to the last bit."""
    if is_dataclass(a):
        return type(a) is type(b) and all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and np.array_equal(a, b)
    return bool(a == b)


def test_every_question_is_answered_in_its_kind() -> None:
    respondent = Respondent(seed(50))
    kinds = [type(respondent.answer(question)) for question in questions()]
    assert kinds == [
        Terms,
        *[Cuts] * 9,
        *[Restoration] * 2,
        Patterns,
        *[Settlement] * 3,
        Offer,
        Cuts,
        Settlement,
    ]
    assert [respondent.answer(question).iteration for question in questions()] == list(range(1, 20))


@pytest.mark.parametrize("bus", [7, 104])
def test_who_begins_again_answers_the_same(bus: int) -> None:
    """Whatever was asked before, in whatever order, every bit of the answer is the same."""
    asked = questions()
    first = Respondent(seed(bus))
    there = [first.answer(question) for question in asked]
    back = [first.answer(question) for question in reversed(asked)][::-1]
    fresh = [Respondent(seed(bus)).answer(question) for question in asked]
    assert all(map(same, there, back))
    assert all(map(same, there, fresh))


def test_words_carry_every_message_unchanged() -> None:
    respondent = Respondent(seed(58))
    messages: list[Question | Answer] = [*questions(), *(respondent.answer(one) for one in questions())]
    for message in messages:
        word = to_word(message)
        assert word.number == message.iteration
        again = from_word(word)
        assert same(message, again), f"{message} became {again}"
        assert all(isinstance(x, float | int) for values in word.values.values() for x in values)


def test_a_microgrid_is_read_as_by_the_operator() -> None:
    """A point without a cut is told apart from one that has one."""
    respondent = Respondent(seed(58))
    terms = respondent.answer(AskTerms(0))
    assert isinstance(terms, Terms)
    easy, hard = Point(np.zeros(T), np.zeros(T), 1e3), Point(terms.p[:, 1] + 1.0, np.zeros(T), 0.0)
    found = respondent.answer(AskCuts(1, (easy, hard, easy), WEIGHT))
    assert isinstance(found, Cuts)
    assert [cut is None for cut in found.cuts] == [True, False, True]
    assert same(from_word(to_word(found)), found)


SAID = {
    "ask terms": set(),
    "ask prices": {"count", "p_price", "q_price"},
    "ask cuts": {"cost", "p_mw", "q_mvar", "bits", "weight"},
    "ask offer": {"p_price", "q_price"},
    "ask restoration": {"cost", "p_mw", "q_mvar", "weight"},
    "ask patterns": {"cost", "p_mw", "q_mvar", "weight"},
    "ask settlement": {"cost", "p_mw", "q_mvar", "bits"},
    "terms": {"p_mw", "q_mvar", "least_cost", "bits"},
    "cuts": {"count", "value", "scale"},
    "offer": {"value", "scale", "cost", "p_mw", "q_mvar"},
    "restoration": {"gap", "off_by", "centre", "value", "weight", "slope"},
    "patterns": {"kinds"},
    "settlement": {"cost", "off_by", "p_mw", "q_mvar"},
}
"""All that any word may name, beside the reference of a pattern."""
REFERENCE = {
    "pattern": {"reference_p_mw", "reference_q_mvar", "reference_weight"},
    "priced": {"reference_p_price", "reference_q_price"},
}


def test_nothing_else_is_said() -> None:
    """No word has a name of a unit, more numbers than its kind needs, or regions over anything but the
    coupling."""
    made = seed(96)
    respondent = Respondent(made)
    asked = questions()
    for message in [*asked, *map(respondent.answer, asked)]:
        word = to_word(message)
        kind, _, choice = word.what.partition(", ")
        assert set(word.values) <= SAID[kind] | REFERENCE.get(choice.partition(" ")[0], set())
        assert not any(unit.name in repr(word) for unit in made.fleet.units)
        assert sum(map(len, word.values.values())) <= 6 * T * 3 + 6
        for region in word.regions.values():
            assert region.axes in (axes(T), axes(T, T))
            assert region.A.shape == (1, len(region.axes))


def test_terms_bound_every_exchange_and_keep_the_tie() -> None:
    made = seed(96)
    free, tied = (
        Respondent(commitment(made.fleet, made.outlook, tie_mw=tie)).answer(AskTerms(0))
        for tie in (np.inf, 0.1)
    )
    assert isinstance(free, Terms)
    assert isinstance(tied, Terms)
    # By hand: engine, sun and store at their most less no load; the store's charging and all load at least.
    most, least = 0.1 + 0.08 * 1.2 + 0.06, -0.06 - 0.02 * 0.85
    step = 1 / 32  # the power of two above a sixteenth of the widest range
    assert most <= free.p[1, 1] == np.ceil(most / step) * step < most + step
    assert least >= free.p[0, 0] == np.floor(least / step) * step > least - step
    assert free.least_cost == pytest.approx(0.0, abs=1e-9)
    assert free.bits == 6
    assert tied.p.max() == 0.1
    assert np.array_equal(free.q, tied.q)
    program = Respondent(made).program
    rng = np.random.default_rng(3)
    for _ in range(20):
        x = program.least_whole(
            program.question(p_price=rng.normal(0, 200, T), q_price=rng.normal(0, 99, T))
        ).x
        for values, box in zip(program.exchange(x), (free.p, free.q), strict=True):
            assert (values >= box[:, 0] - 1e-9).all()
            assert (values <= box[:, 1] + 1e-9).all()
    cheapest = program.least(program.question())
    assert cheapest.value >= free.least_cost - 1e-9


def test_a_tie_that_is_too_small_is_said() -> None:
    made = seed(96)
    must = replace(made.outlook, demand_mw={"load": np.full(T, 5.0)})
    firm = replace(made.fleet, demands=(replace(made.fleet.demands[0], firm_mw=5.0),))
    with pytest.raises(Infeasible, match=r"its tie carries 0\.1 MW at most"):
        Respondent(commitment(firm, must, tie_mw=0.1)).answer(AskTerms(0))


def test_patterns_that_differ() -> None:
    respondent = Respondent(seed(7))
    one = points(1)[0]
    found = respondent.answer(AskPatterns(1, one, WEIGHT))
    assert isinstance(found, Patterns)
    bits = {
        kind: respondent.operation(AskSettlement(1, one, Pattern(kind, one.p, one.q, WEIGHT))).bits
        for kind in POOL
    }
    assert found.kinds[0] == POOL[0]
    assert {bits[kind].tobytes() for kind in found.kinds} == {b.tobytes() for b in bits.values()}
    assert len({bits[kind].tobytes() for kind in found.kinds}) == len(found.kinds)


def test_settlement_tells_the_exchange_and_its_cost_alone() -> None:
    respondent = Respondent(seed(7))
    question = AskSettlement(1, points(1)[0])
    found, own = respondent.answer(question), respondent.operation(question)
    assert isinstance(found, Settlement)
    assert (found.cost, found.off_by) == (own.cost, own.off_by)
    assert np.array_equal(found.p, own.p)
    made = respondent.program.made
    total = sum(made.injection(unit.name, own.y, own.bits).p_mw for unit in made.fleet.units)
    assert np.abs(total - found.p).max() < 1e-9


@pytest.mark.parametrize(
    ("word", "why"),
    [
        (Word(number=1, what="ask terms", values={"why": (1.0,)}), r"has \['why'\], which does not belong"),
        (Word(number=1, what="hello"), "'hello' is no message"),
        (Word(number=1, what="ask prices", values={"count": (1.5,)}), "count 1.5; it is a count"),
        (Word(number=1, what="ask prices", values={}), "has no 'count'"),
        (
            Word(number=1, what="ask prices", values={"count": (2.0,), "p_price": (1.0, 2, 3)}),
            "has 3 of 'p_price' for 2 points",
        ),
        (Word(number=1, what="ask cuts, relaxed", values={"cost": ()}), "has no 'p_mw'"),
        (
            Word(
                number=1,
                what="ask restoration, one-sided",
                values={"cost": (1.0, 2.0), "p_mw": (1.0, 2.0), "q_mvar": (1.0, 2.0), "weight": (1.0,)},
            ),
            "has 2 points; give one",
        ),
        (
            Word(
                number=1,
                what="ask restoration, sideways",
                values={"cost": (1.0,), "p_mw": (1.0,), "q_mvar": (1.0,), "weight": (1.0,)},
            ),
            "is none of",
        ),
        (
            Word(
                number=1,
                what="ask cuts, pattern best",
                values={"cost": (1.0,), "p_mw": (1.0,), "q_mvar": (1.0,), "weight": (1.0,)},
            ),
            "is about no bits that there are",
        ),
        (Word(number=1, what="ask settlement, relaxed"), "settles on relaxed bits"),
        (Word(number=1, what="terms", values={"p_mw": (1.0,), "q_mvar": (1.0,)}), "give two an interval"),
        (Word(number=1, what="patterns", values={"kinds": (7.0,)}), "numbers from 0 to 4"),
        (
            Word(number=1, what="cuts, relaxed", values={"count": (1.0,), "value": (1.0,), "scale": (1.0,)}),
            "give one of each",
        ),
        (
            Word(
                number=1,
                what="cuts, relaxed",
                values={"count": (1.0,), "value": (1.0,), "scale": (1.0,)},
                regions={"0": Region.box(p_mw=(0.0, 1.0))},
            ),
            "a cut is one row",
        ),
        (
            Word(number=1, what="settlement", values={"p_mw": (1.0, 2.0), "q_mvar": (1.0,)}),
            "has 1 of 'q_mvar'; needed are 2",
        ),
    ],
)
def test_a_word_that_is_malformed_is_refused(word: Word, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        from_word(word)


def test_questions_that_do_not_fit_are_refused() -> None:
    respondent = Respondent(seed(7))
    short = Point(np.zeros(5), np.zeros(5), 0.0)
    for question in (
        AskCuts(1, (short,), WEIGHT),
        AskRestoration(1, short, WEIGHT),
        AskSettlement(1, short),
        AskPrices(1, np.zeros((1, 5)), np.zeros((1, 5))),
        AskCuts(1, points(1), WEIGHT, Pattern("rounding", short.p, short.q, WEIGHT)),
    ):
        with pytest.raises(ValueError, match="needed are 6"):
            respondent.answer(question)
    half = replace(points(1)[0], bits=np.full(T, 0.5))
    with pytest.raises(ValueError, match="are not whole"):
        respondent.answer(AskSettlement(1, half, Lifted()))
    with pytest.raises(ValueError, match="it has no bits"):
        respondent.answer(AskSettlement(1, points(1)[0], Lifted()))
    with pytest.raises(ValueError, match="give them to all or to none"):
        to_word(AskCuts(1, (*points(1), half), WEIGHT, Lifted()))


def test_cut_kinds_are_what_the_operator_expects() -> None:
    respondent = Respondent(seed(7))
    one = points(1)[0]
    forms = {
        form: respondent.answer(AskRestoration(1, one, WEIGHT, form)) for form in ("one-sided", "augmented")
    }
    assert all(isinstance(answer.cut, Tent) for answer in forms.values())
    assert forms["one-sided"].gap == pytest.approx(forms["one-sided"].cut.value - one.cost)
    found = respondent.answer(AskCuts(1, (one,), WEIGHT, Pattern("off", one.p, one.q, WEIGHT)))
    assert isinstance(found, Cuts)
    assert isinstance(found.bits, Pattern)
    assert all(isinstance(cut, Cut) for cut in found.cuts)
