"""Ledger: what the operator has been told, and what follows from it: cuts, bounds, the best that is known.

    lower = greatest bound of a master problem           valid, for every cut of it is
            or of what offers prove at their own prices  see `prove`
    upper = least cost of the operator with exchanges that microgrids have offered, plus what these cost them

The lower bound never falls: a master problem with fewer cuts can have a lesser one, and the greater stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from controllers.contract import Infeasible, SolverFailed
from controllers.partnership.coupling import Cut, Point, Tent
from controllers.partnership.distribution import Conditions, Operation
from controllers.partnership.master import Knowledge, Master, Proposal
from controllers.partnership.messages import Bits, Lifted, Offer, Pattern, Priced, Relaxed, Settlement, Terms
from controllers.partnership.outcome import Exchange, Round, Stage, relative_gap

Array = npt.NDArray[np.float64]

BESIDE = 1e-6
"""How far beyond its terms an exchange may be [MW, Mvar]: the solvers' tolerance."""


@dataclass
class Account:
    """One microgrid's."""

    terms: Terms
    seeded: bool = False
    """whether it has given cuts at the first prices"""
    general: list[Cut] = field(default_factory=list)
    """at prices; valid for every pattern of bits, and few"""
    relaxed: list[Cut] = field(default_factory=list)
    """at points; valid for every pattern"""
    own: list[Cut] = field(default_factory=list)
    """valid for the pattern alone that is looked at"""
    over_bits: list[Cut] = field(default_factory=list)
    tents: list[Tent] = field(default_factory=list)
    lifted: bool = False
    held: Array | None = None

    def lift(self) -> None:
        """Its bits become the master's. Cuts at points are dropped: those over bits imply them in the end."""
        self.lifted = True
        self.relaxed.clear()

    def take(self, cut: Cut, bits: Bits) -> None:
        """One more cut."""
        match bits:
            case Relaxed():
                self.relaxed.append(cut)
            case Lifted():
                self.over_bits.append(cut)
            case Pattern() | Priced():
                self.own.append(cut)

    @property
    def without_bits(self) -> list[Cut]:
        """Those that are valid for every pattern."""
        return [*self.general, *self.relaxed]

    @property
    def known(self) -> Knowledge:
        """As the master problem takes it."""
        cuts = [*self.without_bits, *self.own, *(self.over_bits if self.lifted else ())]
        return Knowledge(
            p_mw=self.terms.p,
            q_mvar=self.terms.q,
            cost_low=self.terms.least_cost,
            cuts=tuple(cut.region for cut in cuts),
            tents=tuple(self.tents),
            bits=self.terms.bits if self.lifted else 0,
            held=self.held if self.lifted else None,
        )


@dataclass(frozen=True, eq=False)
class Candidate:
    """An operation of the whole that microgrids have offered or confirmed their parts of."""

    points: Mapping[str, Point]
    """their exchanges and costs"""
    bits: Mapping[str, Lifted | Pattern | Priced | None]
    """with which patterns"""
    operation: Operation
    upper: float
    prices: Mapping[str, Priced]
    """what one more MW, or Mvar, would save the operator"""
    bound: float
    """the operator's dual value: its cost with other exchanges x' is at least bound - prices.(x' - x)"""


class Ledger:
    """Of one conversation.

    Args:
        names: of the microgrids, in the order of `Feeder.microgrids`.
    """

    def __init__(self, master: Master, conditions: Conditions, names: Sequence[str]) -> None:
        self.master, self.conditions, self.names = master, conditions, tuple(names)
        self.accounts: dict[str, Account] = {}
        """by present microgrid"""
        self.alone: dict[str, Exchange] = {}
        """by absent microgrid"""
        self.lower: float = -np.inf
        self.best: Candidate | None = None
        self.rounds: list[Round] = []

    @property
    def present(self) -> tuple[str, ...]:
        """Who is not absent."""
        return tuple(name for name in self.names if name not in self.alone)

    @property
    def upper(self) -> float:
        return np.inf if self.best is None else self.best.upper

    @property
    def gap(self) -> float:
        """Relative."""
        return relative_gap(self.lower, self.upper)

    @property
    def cuts(self) -> int:
        """In the master problem now."""
        return sum(len(one.known.cuts) for one in self.accounts.values())

    def leave_out(self, name: str, exchange: Exchange) -> None:
        """A microgrid is absent and does that by itself. Bounds were about another problem: they begin anew;
        the others' cuts are theirs alone, and stay."""
        self.alone[name] = exchange
        self.accounts.pop(name, None)
        self.lower, self.best = -np.inf, None

    def propose(self, *, whole: bool = False) -> Proposal:
        """The master problem's answer; its bound counts where no cut of a single pattern, and no held bit,
        is in it."""
        known = [self._known(name) for name in self.names]
        solve = self.master.whole if whole else self.master.relaxed
        found = solve(self.conditions, known)
        if not any(one.own or one.held is not None for one in self.accounts.values()):
            self.lower = max(self.lower, found.bound)
        return found

    def points(self, proposal: Proposal) -> dict[str, Point]:
        """By present microgrid."""
        by_name = dict(zip(self.names, proposal.points, strict=True))
        return {name: by_name[name] for name in self.present}

    def prices(self, proposal: Proposal) -> dict[str, Priced]:
        """By present microgrid; none after a solve with whole bits."""
        if proposal.p_price is None or proposal.q_price is None:
            return {}
        pairs = zip(self.names, proposal.p_price, proposal.q_price, strict=True)
        return {name: Priced(p, q) for name, p, q in pairs if name not in self.alone}

    def trace(self, stage: Stage, violation: float, turns: int) -> None:
        """One more line of the trace."""
        number = len(self.rounds) + 1
        self.rounds.append(Round(number, stage, self.lower, self.upper, violation, self.cuts, turns))

    def consider(
        self,
        said: Mapping[str, Offer | Settlement],
        bits: Mapping[str, Lifted | Pattern | Priced | None],
        points: Mapping[str, Point] | None = None,
    ) -> Candidate | None:
        """What the operator can make of exchanges that microgrids stand for; the best is kept.

        Args:
            points: by microgrid, with the bits that the master holds, where it does.

        Returns:
            It; `None` where the network cannot take them, or no solver can say.
        """
        boxes = {}
        for name in self.names:
            if name in self.alone:
                continue
            one, terms = said[name], self.accounts[name].terms
            for values, box in ((one.p, terms.p), (one.q, terms.q)):
                if (values < box[:, 0] - BESIDE).any() or (values > box[:, 1] + BESIDE).any():
                    return None  # beyond its tie, say: it has promised not to
            boxes[name] = _held(one.p, one.q)
        known = [boxes[name] if name in boxes else self._known(name) for name in self.names]
        try:
            found = self.master.relaxed(self.conditions, known)
        except (Infeasible, SolverFailed):
            return None
        upper = found.operation.cost + sum(said[name].cost for name in boxes)
        held = {name: None if points is None else points[name].bits for name in boxes}
        at = {name: Point(said[name].p, said[name].q, said[name].cost, held[name]) for name in boxes}
        candidate = Candidate(at, dict(bits), found.operation, upper, self.prices(found), found.bound)
        if upper < self.upper:
            self.best = candidate
        return candidate

    def prove(self, candidate: Candidate, offers: Mapping[str, Offer]) -> None:
        """The lower bound that offers at a candidate's own prices prove: the operator's dual value, and their
        cuts at the candidate's exchanges."""
        lower = candidate.bound
        for name, offer in offers.items():
            point, cut = candidate.points[name], offer.cut
            at = np.concatenate([point.p, point.q, [0.0]])
            lower += float(cut.region.A[0] @ at - cut.region.b[0]) * cut.scale
        self.lower = max(self.lower, lower)

    def confirmed(self, candidate: Candidate, said: Mapping[str, Settlement]) -> Candidate | None:
        """A candidate in the microgrids' last words, and what it then costs; `None` where the network cannot
        take it. What is reported counts by these; the search goes on from what was offered."""
        far = max(
            (
                float(np.abs(values - planned).max())
                for name, point in candidate.points.items()
                for values, planned in ((said[name].p, point.p), (said[name].q, point.q))
            ),
            default=0.0,
        )
        if far > BESIDE / 10:
            return self.consider(said, candidate.bits, candidate.points)
        at = {name: replace(point, cost=said[name].cost) for name, point in candidate.points.items()}
        upper = candidate.operation.cost + sum(point.cost for point in at.values())
        return replace(candidate, points=at, upper=upper)

    def _known(self, name: str) -> Knowledge:
        if name in self.alone:
            return _held(self.alone[name].p_mw, self.alone[name].q_mvar)
        return self.accounts[name].known


def _held(p: Array, q: Array) -> Knowledge:
    """A microgrid whose exchange is given; its cost is counted elsewhere."""
    return Knowledge(np.stack([p, p], axis=1), np.stack([q, q], axis=1))
