"""Literal: the seed's algorithm as it is printed (appendix B), for problems that are small.

    master with all cuts -> x-hat -> (13a) with slack in every row: a unified cut (13b)
                                  -> where F = 0: the restoration (14a), and its cut (14i)
    until no microgrid has one

Two things are not as printed, and either can only end it sooner. The restoration cut is `Tent`, the one-sided
form, which implies (14i). And an upper bound is kept: what the microgrids can do nearest to each point. Mode
`augmented` gives the tents a slope, which makes them wider.

What the proof of theorem 2 does not say is how long it takes. The points at which restoration cuts are made
are at least epsilon apart, so it ends; but the number of such points in (2T + 1) dimensions is that of a
covering, and each adds 2T bits to the master problem. With T = 1 it ends, with six intervals it does not.
Without bits of its own a microgrid needs no tent, and it is Benders' algorithm.

Implements (9a)-(9c), (13a)-(13b), (14a)-(14c) and (14i) by what it calls.
"""

from __future__ import annotations

from typing import Literal

from controllers.partnership.coupling import Point, Tent
from controllers.partnership.messages import AskRestoration, Form, Relaxed, Restoration
from controllers.partnership.search import Search, Turns

FORMS: dict[str, Form] = {"paper": "one-sided", "augmented": "augmented"}


def look(search: Search, mode: Literal["paper", "augmented"]) -> Turns[None]:
    """Until the bounds have met, or no microgrid has anything to say."""
    ledger = search.ledger
    yield from search.introduce()
    printed = dict.fromkeys(ledger.present, Relaxed("all"))
    while True:
        tents = sum(len(account.tents) for account in ledger.accounts.values())
        search.propose(whole=tents > 0)  # (9a) (9b) (9c)
        points = dict(search.last)
        if search.met:
            search.trace("tents", 0.0)
            return
        violation = yield from search.separate(points, printed)  # (13a) (13b)
        # With weight 1 in each row, F counts MW and $ alike: what it misses of p and q is worth a price.
        if violation <= search.enough / search.weight:
            yield from search.nearest(points, dict.fromkeys(points))
            new = yield from _restored(search, points, FORMS[mode])
            search.trace("tents", violation)
            if search.met or not new:
                return
        else:
            search.trace("tents", violation)


def _restored(search: Search, points: dict[str, Point], form: Form) -> Turns[int]:
    """New restoration cuts (14i); how many."""
    number, new = search.talk.fresh(), 0
    questions = {
        name: AskRestoration(number, point, search.weight, form)  # (14a) (14b) (14c)
        for name, point in points.items()
        if search.ledger.accounts[name].terms.bits
    }
    for name, answer in (yield from search.talk.ask(questions)).items():
        assert isinstance(answer, Restoration)
        if answer.gap > search.enough / len(questions) and isinstance(answer.cut, Tent):
            search.ledger.accounts[name].tents.append(answer.cut)  # (14i)
            new += 1
    return new
