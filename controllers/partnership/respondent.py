"""Respondent: one microgrid's answers to the operator's questions about one horizon."""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import assert_never

import numpy as np
import numpy.typing as npt

from controllers.contract import Infeasible
from controllers.partnership.commitment import Commitment
from controllers.partnership.coupling import Point
from controllers.partnership.messages import (
    Answer,
    AskCuts,
    AskOffer,
    AskPatterns,
    AskPrices,
    AskRestoration,
    AskSettlement,
    AskTerms,
    Bits,
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
from controllers.partnership.offers import Best, best_at
from controllers.partnership.program import Program
from controllers.partnership.restoration import (
    POOL,
    Operation,
    PatternKind,
    augment,
    pattern,
    restore,
    settle,
)
from controllers.partnership.subproblem import Printed, fixed, lifted, limits, priced, relaxed

Array = npt.NDArray[np.float64]

WHOLE = 1e-5
"""How far a bit that is settled on may be from 0 or 1."""


GRID = 16
"""Into how many steps the widest range of an interval is parted, to whose grid ranges are rounded."""


def _wider(box: Array) -> Array:
    """(T, 2) ranges rounded outwards to a grid of powers of two: an end as it is can be the rating of a
    device, of the only store of a microgrid without loads, say."""
    width = float((box[:, 1] - box[:, 0]).max())
    if width <= 0:
        return box
    step = 2.0 ** np.ceil(np.log2(width / GRID))
    ends: Array = np.stack([np.floor(box[:, 0] / step), np.ceil(box[:, 1] / step)], axis=1) * step
    return ends


class Respondent:
    """Answers depend on the question and the microgrid's state alone: who is killed and begins again from
    the same state answers the same.

    Args:
        made: what the microgrid can do over the horizon, see `commitment`.
    """

    def __init__(self, made: Commitment) -> None:
        self.program = Program(made)
        self._pattern = lru_cache(maxsize=64)(self._derived)
        self._best = lru_cache(maxsize=64)(self._best_at)

    def answer(self, question: Question) -> Answer:
        """See `messages`.

        Raises:
            ValueError: a question that does not fit this microgrid's intervals or bits.
            Infeasible: the microgrid has no operation at all.
            SolverFailed: a solver ended without an answer.
        """
        match question:
            case AskTerms():
                return self._terms(question)
            case AskPrices():
                pairs = zip(question.p_price, question.q_price, strict=True)
                cuts = tuple(priced(self.program, p, q) for p, q in pairs)
                return Cuts(question.iteration, cuts, Relaxed())
            case AskOffer():
                best = self._best(question.p_price.tobytes(), question.q_price.tobytes())
                return Offer(question.iteration, best.cut, best.cost, best.p, best.q)
            case AskCuts():
                return self._cuts(question)
            case AskRestoration():
                return self._restoration(question)
            case AskPatterns():
                return Patterns(question.iteration, self._different(question.point, question.weight))
            case AskSettlement():
                found = self.operation(question)
                return Settlement(question.iteration, found.cost, found.p, found.q, found.off_by)
            case _:
                assert_never(question)

    def operation(self, question: AskSettlement) -> Operation:
        """What the microgrid does itself about an agreement; nobody else is told."""
        point = question.point
        bits = None if question.bits is None else self._bits(question.bits, point)
        if bits is not None and np.abs(bits - np.round(bits)).max(initial=0.0) > WHOLE:
            raise ValueError(f"settlement: bits {bits} are not whole; settle on a pattern of 0 and 1")
        return settle(self.program, point, None if bits is None else np.round(bits))

    @cached_property
    def _printed(self) -> Printed:
        return Printed(self.program)

    def _terms(self, question: AskTerms) -> Terms:
        tie = self.program.made.tie_mw
        try:
            p, q = limits(self.program)
        except Infeasible as error:
            raise Infeasible(
                f"the microgrid has no operation in which its tie carries {tie} MW at most: {error}"
            ) from error
        none = np.zeros(self.program.T)
        cut = priced(self.program, none, none)
        least = -float(cut.region.b[0]) * cut.scale
        return Terms(question.iteration, np.clip(_wider(p), -tie, tie), _wider(q), least, self.program.K)

    def _cuts(self, question: AskCuts) -> Cuts:
        program, weight, found = self.program, question.weight, []
        for point in question.points:
            match question.bits:
                case Relaxed(slack="all"):
                    found.append(self._printed.separate(point).cut)
                case Relaxed():
                    found.append(relaxed(program, point, weight).cut)
                case Lifted():
                    found.append(lifted(program, point, weight).cut)
                case Pattern() | Priced() as named:
                    found.append(fixed(program, point, weight, self._bits(named, point)).cut)
                case _:
                    assert_never(question.bits)
        return Cuts(question.iteration, tuple(found), question.bits)

    def _restoration(self, question: AskRestoration) -> Restoration:
        program, point, weight = self.program, question.point, question.weight
        found = (restore if question.form == "one-sided" else augment)(program, point, weight)
        return Restoration(question.iteration, found.tent.value - point.cost, found.off_by, found.tent)

    def _different(self, point: Point, weight: float) -> tuple[PatternKind, ...]:
        seen: dict[bytes, PatternKind] = {}
        for kind in POOL:
            bits = self._bits(Pattern(kind, point.p, point.q, weight), point)
            seen.setdefault(bits.tobytes(), kind)
        return tuple(seen.values())

    def _bits(self, bits: Bits, point: Point) -> Array:
        match bits:
            case Pattern():
                p, q = (np.ascontiguousarray(values, dtype=float) for values in (bits.p, bits.q))
                return self._pattern(bits.kind, p.tobytes(), q.tobytes(), bits.weight)
            case Priced():
                p, q = (np.ascontiguousarray(prices, dtype=float) for prices in (bits.p_price, bits.q_price))
                return self._best(p.tobytes(), q.tobytes()).bits
            case Lifted():
                if point.bits is None:
                    raise ValueError(f"point: it has no bits; give each of {self.program.K} a value")
                return point.bits
            case Relaxed():
                raise ValueError("relaxed bits are no pattern; name one")
            case _:
                assert_never(bits)

    def _best_at(self, p_price: bytes, q_price: bytes) -> Best:
        return best_at(self.program, np.frombuffer(p_price), np.frombuffer(q_price))

    def _derived(self, kind: PatternKind, p: bytes, q: bytes, weight: float) -> Array:
        point = Point(np.frombuffer(p), np.frombuffer(q), 0.0)
        found = pattern(self.program, kind, point, weight) + 0.0  # no -0.0: equal patterns have equal bytes
        found.setflags(write=False)
        return found
