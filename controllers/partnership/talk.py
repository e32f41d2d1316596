"""Talk: asks questions until they are answered, whatever becomes of words on the way.

A question keeps its number when it is asked again. An answer depends on its question alone, so one that comes
late, or twice, is as good as the first, and one to another question has another number: it is ignored.
Nothing goes on before all have answered that are not absent: what is lost costs turns and changes nothing
else.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from controllers.partnership.coupling import Cut, axes
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
    Offer,
    Patterns,
    Question,
    Restoration,
    Settlement,
    Terms,
)

Questions: TypeAlias = Mapping[str, Question]
"""By microgrid."""
Answers: TypeAlias = Iterable[tuple[str, Answer]]
"""(microgrid, answer) in any order, any of them missing, doubled or old."""
Asking: TypeAlias = Generator[Questions, Answers | None, dict[str, Answer]]

ANSWERS: dict[type[Question], type[Answer]] = {
    AskTerms: Terms,
    AskPrices: Cuts,
    AskOffer: Offer,
    AskCuts: Cuts,
    AskRestoration: Restoration,
    AskPatterns: Patterns,
    AskSettlement: Settlement,
}


class Absent(Exception):
    """Microgrids have stayed away for too many turns."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(", ".join(names))
        self.names = tuple(names)


class OutOfTurns(Exception):
    """There is no turn left, or none but those that are kept for the end."""


@dataclass
class Talk:
    """Counts turns, numbers, and who stays away."""

    intervals: int
    most_turns: int
    patience: int
    turns: int = 0
    number: int = 0
    over: bool = False
    """whether it was said that no turn is left"""
    silent: dict[str, int] = field(default_factory=dict)
    """turns on end without a usable answer, by microgrid"""
    settled: dict[str, Settlement] = field(default_factory=dict)
    """the last one of each microgrid: its devices go by it, whatever is agreed on without it"""

    def fresh(self) -> int:
        """The number of the next question."""
        self.number += 1
        return self.number

    def require_turn(self, *, last: bool = False) -> None:
        """Refuse to go on without one.

        Raises:
            OutOfTurns: there is none, or none but those that are kept for the end.
        """
        if self.over or self.turns + (0 if last else self.patience) >= self.most_turns:
            raise OutOfTurns

    def ask(self, questions: Questions, *, last: bool = False) -> Asking:
        """Answers by microgrid, all of them.

        Args:
            last: whether the turns that are kept for the end may be used.

        Raises:
            Absent: some have not answered for `patience` turns.
            OutOfTurns: there is no turn left for it.
        """
        pending, found = dict(questions), dict[str, Answer]()
        while pending:
            self.require_turn(last=last)
            self.turns += 1
            heard = yield pending
            if heard is None:
                self.over = True
                raise OutOfTurns
            for name, answer in heard:
                if name in pending and self._fits(pending[name], answer):
                    found[name] = answer
                    del pending[name]
                    self.silent[name] = 0
                    if isinstance(answer, Settlement):
                        self.settled[name] = answer
            for name in pending:
                self.silent[name] = self.silent.get(name, 0) + 1
            if gone := [name for name in pending if self.silent[name] >= self.patience]:
                raise Absent(gone)
        return {name: found[name] for name in questions}

    def _fits(self, question: Question, answer: Answer) -> bool:
        """Whether it is an answer to the question: number, kind and sizes. What does not fit is as good as
        nothing, for its sender will be asked again."""
        if type(answer) is not ANSWERS[type(question)] or answer.iteration != question.iteration:
            return False
        T = self.intervals
        match answer:
            case Terms():
                boxes = np.array([answer.p, answer.q]) if np.shape(answer.p) == np.shape(answer.q) else None
                fits = boxes is not None and boxes.shape == (2, T, 2) and bool(np.isfinite(boxes).all())
                return fits and np.isfinite(answer.least_cost) and answer.bits >= 0
            case Cuts():
                asked = len(question.p_price) if isinstance(question, AskPrices) else 0
                bits = 0
                if isinstance(question, AskCuts):
                    asked, first = len(question.points), question.points[0].bits
                    if type(question.bits) is not type(answer.bits):
                        return False
                    bits = len(first) if first is not None else 0
                return len(answer.cuts) == asked and all(_is_row(cut, T, bits) for cut in answer.cuts)
            case Offer():
                return _is_row(answer.cut, T, 0) and _finite(answer, T)
            case Settlement():
                return _finite(answer, T)
            case Restoration():
                return bool(np.isfinite([answer.gap, answer.off_by]).all())
            case Patterns():
                return True


def _is_row(cut: Cut | None, intervals: int, bits: int) -> bool:
    if cut is None:
        return True
    region = cut.region
    return len(region.b) == 1 and region.axes in (axes(intervals), axes(intervals, bits))


def _finite(answer: Offer | Settlement, intervals: int) -> bool:
    if not np.shape(answer.p) == np.shape(answer.q) == (intervals,):
        return False
    return bool(np.isfinite([*answer.p, *answer.q, answer.cost]).all())
