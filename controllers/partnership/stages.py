"""Stages: the search for an agreement that ends at the optimum, mode `lift`; see `agreement` for it all."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from controllers.contract import Infeasible
from controllers.partnership.messages import AskPatterns, Bits, Lifted, Pattern, Patterns, Relaxed
from controllers.partnership.outcome import Stage
from controllers.partnership.search import LEAST, Own, Search, Turns


def look(search: Search) -> Turns[None]:
    """All stages, until the bounds have met or there is nothing left to do."""
    yield from search.introduce()
    yield from search.offers(search.first_prices, traced=True)
    if search.met:
        return
    yield from search.seed()
    if not (yield from _converge(search, "relaxed")):
        return
    gaps = yield from _try_patterns(search)
    if not search.met:
        yield from _lift(search, gaps)


def _converge(search: Search, stage: Stage, bits: Mapping[str, Bits] | None = None) -> Turns[bool]:
    """The loop of a master problem and cuts at its points, until these say nothing more.

    Args:
        bits: with which each microgrid answers; `None`: relaxed, or lifted where it is.

    Returns:
        Whether it got there: not where the bounds have met first, or the stage cannot improve the best.
    """
    search.core.clear()
    steps = 0
    while True:
        try:
            proposal, steps = search.propose(), steps + 1
        except Infeasible:
            if stage in ("pattern", "held"):  # not with these bits
                search.trace(stage, 0.0)
                return False
            raise
        if search.met or proposal.bound >= _hopeless(search, stage):
            search.trace(stage, 0.0)
            return False
        if stage not in ("pattern", "held") and steps & (steps - 1) == 0:  # 1, 2, 4, 8, ...
            yield from search.offers(search.prices)
            if search.met:
                search.trace(stage, 0.0)
                return False
        violation = yield from search.separate(search.ledger.points(proposal), bits)
        search.trace(stage, violation)
        if violation <= search.enough:
            return True


def _try_patterns(search: Search) -> Turns[list[str]]:
    """Upper bounds with bits held at patterns of the microgrids' own.

    Returns:
        Which microgrids have a gap at the relaxed optimum, where the bounds have not met.
    """
    yield from search.offers(search.prices)
    if search.met:
        return []
    points, ledger = dict(search.last), search.ledger
    gaps = yield from search.gaps(points)
    yield from _pattern(search, dict(search.prices))
    if search.met or not gaps:
        return gaps
    question = {n: AskPatterns(search.talk.fresh(), points[n], search.weight) for n in gaps}
    kinds = {}
    for name, answer in (yield from search.talk.ask(question)).items():
        assert isinstance(answer, Patterns)
        kinds[name] = answer.kinds
    for k in range(max(map(len, kinds.values()), default=0)):
        chosen: dict[str, Bits] = dict.fromkeys(ledger.present, Relaxed())
        for name, of in kinds.items():
            chosen[name] = Pattern(of[min(k, len(of) - 1)], points[name].p, points[name].q, search.weight)
        yield from _pattern(search, chosen)
        if search.met:
            break
    return gaps


def _pattern(search: Search, chosen: Mapping[str, Bits]) -> Turns[None]:
    """The optimum for a pattern of each, or as soon as it is clear that it is not better."""
    ledger = search.ledger
    try:
        if (yield from _converge(search, "pattern", chosen)):
            own = {name: None if isinstance(b, Relaxed) else b for name, b in chosen.items()}
            yield from search.nearest(search.last, own)
    finally:
        for account in ledger.accounts.values():
            account.own.clear()


def _lift(search: Search, gaps: list[str]) -> Turns[None]:
    """The exact stage, see `agreement`.

    Args:
        gaps: who has one at the relaxed optimum.
    """
    ledger = search.ledger
    while True:
        new = gaps or [name for name in ledger.present if not search.is_lifted(name)]
        new = [name for name in new if not search.is_lifted(name) and ledger.accounts[name].terms.bits]
        if not new:
            return
        for name in new:
            ledger.accounts[name].lift()
        if not (yield from _converge(search, "lifted")):
            return
        gaps = yield from _whole(search)
        if search.met:
            return


def _whole(search: Search) -> Turns[list[str]]:
    """Rounds of whole bits, until they come back or the bounds meet.

    Returns:
        Which microgrids that are not lifted have a gap at the last point.
    """
    ledger, seen = search.ledger, set[bytes]()
    lifted, at = [name for name in ledger.present if search.is_lifted(name)], 2 * search.talk.intervals + 1
    while True:
        proposal = search.propose(whole=True)
        points = ledger.points(proposal)
        if search.met:
            search.trace("whole", 0.0)
            return []
        search.trace("whole", (yield from search.separate(points)))
        patterns = {name: np.round(points[name].vector[at:]) for name in lifted}
        key = b"".join(patterns[name].tobytes() for name in lifted)
        try:
            for name in lifted:
                ledger.accounts[name].held = patterns[name]
            if (yield from _converge(search, "held")):
                own: dict[str, Own] = {n: Lifted() if n in lifted else None for n in ledger.present}
                yield from search.nearest(search.last, own)
        finally:
            for name in lifted:
                ledger.accounts[name].held = None
        if search.met:
            return []
        if key in seen:
            return (yield from search.gaps(search.last))
        seen.add(key)


def _hopeless(search: Search, stage: Stage) -> float:
    """From which bound on a pattern is of no use: it cannot meet the lower bound, which stays while
    patterns are tried; held bits cannot be better than the best."""
    lower, upper = search.ledger.lower, search.ledger.upper
    scale = max(1.0, abs(upper))
    match stage:
        case "pattern":
            return min(lower + search.options.epsilon * scale, upper - LEAST * scale)
        case "held":
            return upper - LEAST * scale
    return np.inf
