"""Search: what the stages of an agreement are made of: a master problem, and questions to the microgrids."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from controllers.contract import Infeasible
from controllers.partnership.coupling import Point
from controllers.partnership.distribution import Conditions
from controllers.partnership.ledger import Account, Candidate, Ledger
from controllers.partnership.master import Master, Proposal
from controllers.partnership.messages import (
    AskCuts,
    AskOffer,
    AskPrices,
    AskRestoration,
    AskSettlement,
    AskTerms,
    Bits,
    Cuts,
    Lifted,
    Offer,
    Pattern,
    Priced,
    Relaxed,
    Restoration,
    Settlement,
    Terms,
)
from controllers.partnership.options import Options
from controllers.partnership.outcome import Exchange, Stage
from controllers.partnership.talk import Answers, OutOfTurns, Questions, Talk
from controllers.partnership.warm import Warm

Array = npt.NDArray[np.float64]
T = TypeVar("T")
Turns: TypeAlias = Generator[Questions, Answers | None, T]
Own: TypeAlias = Lifted | Pattern | Priced | None

SHARE = 0.05
"""Of epsilon: how small the sum of F has to be for a loop to end, so that most of the gap is left to what it
cannot close."""

LEAST = 1e-7
"""The same at least, relative to the bound: what the solvers leave."""


ECHOES = 4
"""How often offers follow from offers before the master problem is next."""

SAME = 1e-6
"""Greatest difference [MW] of offers that are the same."""


class OutOfIterations(Exception):
    """No master problem is left."""


@dataclass(frozen=True, eq=False)
class Settled:
    """What all present microgrids have confirmed."""

    of: Candidate
    """what they were asked to"""
    candidate: Candidate
    """what they confirmed"""
    asked: Mapping[str, AskSettlement]
    said: Mapping[str, Settlement]


class Search:
    """One conversation's."""

    def __init__(
        self,
        master: Master,
        conditions: Conditions,
        names: Sequence[str],
        options: Options,
        number: int,
        warm: Warm | None,
        elapsed: int,
    ) -> None:
        self.options = options
        self.ledger = Ledger(master, conditions, names)
        self.talk = Talk(
            master.distribution.feeder.intervals, options.most_turns, options.patience, number=number
        )
        price = conditions.price * master.distribution.feeder.hours
        self.weight, self._seeds, self.price = options.rho(price), options.seeds(price), price
        self._warm = None if warm is None else warm.later(price, elapsed)
        self.settled: Settled | None = None
        self._asked: Mapping[str, AskSettlement] = {}
        """the last words about a settlement: by these the microgrids go"""
        self.prices: dict[str, Priced] = {}
        """the last ones, by microgrid"""
        self.last: dict[str, Point] = {}
        """the master's last points"""
        self.core: dict[str, Array] = {}
        """means of the points of a loop"""

    @property
    def met(self) -> bool:
        """Whether the bounds have met."""
        return self.ledger.gap <= self.options.epsilon

    @property
    def iterations_over(self) -> bool:
        """Whether no iteration is left."""
        return len(self.ledger.rounds) >= self.options.most_iterations

    def leave_out(self, name: str, exchange: Exchange) -> None:
        """See `Ledger.leave_out`; what was settled was settled with it."""
        self.ledger.leave_out(name, exchange)
        self.settled = None
        self.last.pop(name, None)
        self.prices.pop(name, None)

    @property
    def standing(self) -> Settled | None:
        """What the microgrids go by; `None`: they have not confirmed all of it."""
        return self.settled if self.settled is not None and self.settled.asked is self._asked else None

    def settle(self) -> Turns[None]:
        """Have the best that is known confirmed."""
        best = self.ledger.best
        if best is None:
            yield from self._last_resort()
            return
        if self.standing is not None and self.standing.of is best:
            return
        asked, said = yield from self._settlements(best.points, best.bits, last=True)
        confirmed = self.ledger.confirmed(best, said)
        if confirmed is None:
            raise Infeasible("nothing was found that keeps the network's limits with what was confirmed")
        self.settled = Settled(best, confirmed, asked, said)

    def introduce(self) -> Turns[None]:
        """The terms of those who have not given them."""
        ledger = self.ledger
        if new := [name for name in ledger.present if name not in ledger.accounts]:
            terms = yield from self.talk.ask(dict.fromkeys(new, AskTerms(self.talk.fresh())))
            for name, answer in terms.items():
                assert isinstance(answer, Terms)
                ledger.accounts[name] = Account(answer)

    def seed(self) -> Turns[None]:
        """Cuts at prices, of those who have not given them."""
        accounts = self.ledger.accounts
        if new := [name for name, account in accounts.items() if not account.seeded]:
            number = self.talk.fresh()
            questions = {name: AskPrices(number, *self._first_prices(name)) for name in new}
            for name, answer in (yield from self.talk.ask(questions)).items():
                assert isinstance(answer, Cuts)
                accounts[name].seeded = True
                accounts[name].general += [cut for cut in answer.cuts if cut is not None]

    @property
    def first_prices(self) -> Mapping[str, Priced]:
        """At which everybody is asked first: of the last agreement, or from upstream."""
        upstream = Priced(self.price, np.zeros(len(self.price)))
        last = {} if self._warm is None else self._warm.prices
        return {name: Priced(*last[name]) if name in last else upstream for name in self.ledger.present}

    def _first_prices(self, name: str) -> tuple[Array, Array]:
        p, q = self._seeds
        slopes = None if self._warm is None else self._warm.slopes.get(name)
        if slopes is None:
            return p, q
        return np.concatenate([p, slopes.p]), np.concatenate([q, slopes.q])

    @property
    def enough(self) -> float:
        """How small the sum of F has to be [$]."""
        lower = self.ledger.lower
        scale = max(1.0, abs(lower)) if np.isfinite(lower) else 1.0
        return max(SHARE * self.options.epsilon, LEAST) * scale

    def is_lifted(self, name: str) -> bool:
        """Whether its bits are the master's."""
        return self.ledger.accounts[name].lifted

    def trace(self, stage: Stage, violation: float) -> None:
        """One more line of the trace: a master problem, and what came of it."""
        self.ledger.trace(stage, violation, self.talk.turns)

    def propose(self, *, whole: bool = False) -> Proposal:
        """The master problem's answer; its prices and points are kept.

        Raises:
            OutOfIterations: as many as are allowed are solved.
            Infeasible, SolverFailed: see `Master`.
        """
        if self.iterations_over:
            raise OutOfIterations
        proposal = self.ledger.propose(whole=whole)
        self.last = self.ledger.points(proposal)
        self.prices = self.ledger.prices(proposal) or self.prices
        return proposal

    def separate(self, points: Mapping[str, Point], bits: Mapping[str, Bits] | None = None) -> Turns[float]:
        """Cuts at the points, and at some between; the sum of F at the points [$].

        Args:
            bits: with which each microgrid answers; `None`: relaxed, or lifted where it is.
        """
        number, keep, away = self.talk.fresh(), self.options.keep, self.options.core
        questions = {}
        for name, point in points.items():
            how: Bits = Lifted() if self.is_lifted(name) else Relaxed()
            at, old = point.vector, self.core.get(name)
            targets = [] if old is None or away == 0 else [(away, old)]
            if bits is None and not self.is_lifted(name) and self.ledger.best is not None:
                best = self.ledger.best.points[name].vector[: len(at)]
                targets += [(share, best) for share in self.options.towards_best]
            between = (_point((1 - share) * at + share * target, point) for share, target in targets)
            self.core[name] = at if old is None else keep * old + (1 - keep) * at
            asked = (point, *between)
            questions[name] = AskCuts(number, asked, self.weight, how if bits is None else bits[name])
        violation = 0.0
        for name, answer in (yield from self.talk.ask(questions)).items():
            assert isinstance(answer, Cuts)
            for k, cut in enumerate(answer.cuts):
                if cut is not None and cut.value > 0:
                    self.ledger.accounts[name].take(cut, answer.bits)
                    violation += cut.value if k == 0 else 0.0
        return violation

    def offers(self, prices: Mapping[str, Priced], *, traced: bool = False) -> Turns[None]:
        """What all would do at prices, then at those that the operator's answer to this leads to.

        Where the second offers are the first ones, these are an equilibrium: they are best at the prices that
        they make, and the cuts at these prices prove it. Bounds meet then, but for the solvers' tolerance.

        Args:
            traced: whether each answer of the operator is a line of the trace.
        """
        before: Candidate | None = None
        for _ in range(ECHOES if self.options.offers else 0):
            number = self.talk.fresh()
            questions = {name: AskOffer(number, at.p_price, at.q_price) for name, at in prices.items()}
            heard = yield from self.talk.ask(questions)
            offers = {name: answer for name, answer in heard.items() if isinstance(answer, Offer)}
            for name, offer in offers.items():
                self.ledger.accounts[name].general.append(offer.cut)
            if before is not None:
                self.ledger.prove(before, offers)
            still = before is not None and _same(before, offers)
            before = before if still else self.ledger.consider(offers, prices)
            if before is not None and self.settled is None and not self.met:
                yield from self.settle()  # whatever happens from now on, this stands
            if traced:
                self.trace("offers", 0.0)
            if still or before is None or self.met or self.iterations_over:
                return
            prices = before.prices

    def gaps(self, points: Mapping[str, Point]) -> Turns[list[str]]:
        """Who cannot do with whole bits what is counted on, but for what is lifted anyway."""
        number = self.talk.fresh()
        questions = {
            name: AskRestoration(number, point, self.weight)
            for name, point in points.items()
            if not self.is_lifted(name) and self.ledger.accounts[name].terms.bits
        }
        gaps = []
        for name, answer in (yield from self.talk.ask(questions)).items():
            assert isinstance(answer, Restoration)
            if answer.gap > self.enough:
                gaps.append(name)
        return gaps

    def nearest(
        self, points: Mapping[str, Point], own: Mapping[str, Own], *, last: bool = False
    ) -> Turns[Candidate | None]:
        """An upper bound: the nearest that all can do, with these patterns. What they confirm by it stands
        until they are asked about another."""
        asked, said = yield from self._settlements(points, own, last=last)
        found = self.ledger.consider(said, own, points)
        if found is not None:
            self.settled = Settled(found, found, asked, said)
        return found

    def _settlements(
        self, points: Mapping[str, Point], own: Mapping[str, Own], *, last: bool
    ) -> Turns[tuple[Mapping[str, AskSettlement], dict[str, Settlement]]]:
        self.talk.require_turn(last=last)  # what is not asked does not undo what was confirmed
        number = self.talk.fresh()
        self._asked = {name: AskSettlement(number, point, own[name]) for name, point in points.items()}
        heard = yield from self.talk.ask(self._asked, last=last)
        return self._asked, {name: one for name, one in heard.items() if isinstance(one, Settlement)}

    def _last_resort(self) -> Turns[None]:
        """With nothing else known, the nearest to the master's last point."""
        accounts = self.ledger.accounts
        if missing := [name for name in self.ledger.present if name not in accounts]:
            raise OutOfTurns(f"{missing} have not said what they can do")
        points = self.last or {name: _middle(one.terms) for name, one in accounts.items()}
        if (yield from self.nearest(points, dict.fromkeys(points), last=True)) is None:
            raise Infeasible(
                "nothing was found that keeps the network's limits with what the microgrids can do"
            )


def _same(candidate: Candidate, offers: Mapping[str, Offer]) -> bool:
    return all(
        np.abs(values - planned).max() < SAME
        for name, offer in offers.items()
        for values, planned in (
            (offer.p, candidate.points[name].p),
            (offer.q, candidate.points[name].q),
        )
    )


def _point(vector: Array, like: Point) -> Point:
    """`Point.vector` back."""
    T = len(like.p)
    bits = None if like.bits is None else vector[2 * T + 1 :]
    return Point(vector[:T], vector[T : 2 * T], float(vector[2 * T]), bits)


def _middle(terms: Terms) -> Point:
    return Point(terms.p.mean(axis=1), terms.q.mean(axis=1), terms.least_cost)
