"""Roles: who leads whom in a conversation inside a step, and what of a site each is shown.

A leader is a controller with `followers`, the names of controllers or a mapping to them. A follower is one
with `follows = True` on its class: it is asked by its leader and not by the schedule. Either may have a
`sight`.

    leader     Decision(words={follower: Word(1, ...), ...})    then asked again with said[follower]
    follower   question(observation) -> (leader, Word)          Decision(words={leader: Word(1, ...)})
    leader     answers(observation) -> {follower: Word}         ... until it decides without words
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from controllers.contract import Controller, Decision, Interval, Observation, Word
from controllers.forecast import Forecast
from controllers.site import Site

V = TypeVar("V")


@dataclass(frozen=True)
class Sight:
    """What of a site a role is shown. Of everything that is said or measured by name, other names are left
    out, and so is whatever is said of all names together.

    A mapping is cut, a forecast and a plan lose columns, a decision loses what it says of others and, with
    nothing left, is not shown at all.
    """

    names: frozenset[str]
    """of devices, loads, microgrids, regulators, prices and heat demands"""
    buses: frozenset[str]
    """whose voltage"""

    @classmethod
    def operator(cls, site: Site, also: Iterable[str] = ()) -> Sight:
        """The network operator's: the network and what is connected to it; of microgrids their exchange and
        the price that they are offered, and nothing behind the point of common coupling.

        Args:
            also: further names, e.g. of a price that no microgrid is offered.
        """
        behind = {name for microgrid in site.microgrids.values() for name in microgrid.devices}
        prices = {m.price for m in site.microgrids.values() if m.price is not None}
        names = {*site.loads, *site.devices, *site.microgrids, *site.regulators, *prices, *also} - behind
        return cls(frozenset(names), frozenset({site.network.slack, *site.network.buses}))

    @classmethod
    def microgrid(cls, site: Site, name: str, also: Iterable[str] = ()) -> Sight:
        """That of the operator of one microgrid: its devices, exchange, price and heat, and the voltage at
        its point of common coupling.

        Raises:
            ValueError: there is no such microgrid.
        """
        if (own := site.microgrids.get(name)) is None:
            raise ValueError(
                f"microgrid {name!r} is none of the site; there are {', '.join(site.microgrids)}"
            )
        names = {name, *own.devices, *also, *(n for n in (own.price, own.heat) if n is not None)}
        return cls(frozenset(names), frozenset({own.bus}))

    def observation(self, seen: Observation) -> Observation:
        """What is left of an observation."""
        said = {name: self.decision(decision) for name, decision in seen.said.items()}
        return replace(
            seen,
            forecast=_columns(seen.forecast, self.names),
            v_pu=_only(seen.v_pu, self.buses),
            p_mw=_only(seen.p_mw, self.names),
            q_mvar=_only(seen.q_mvar, self.names),
            e_mwh=_only(seen.e_mwh, self.names),
            regions=_only(seen.regions, self.names),
            positions=_only(seen.positions, self.names),
            said={name: decision for name, decision in said.items() if says(decision) or decision.words},
            connected=_only(seen.connected, self.names),
            silent_since=_only(seen.silent_since, self.names),
        )

    def decision(self, said: Decision) -> Decision:
        """What is left of a decision; its words are for whom they are addressed to, and stay."""
        plan = None if said.plan is None else _columns(said.plan, self.names)
        later = tuple(map(self._interval, said.later))
        return replace(
            said,
            setpoints=_only(said.setpoints, self.names),
            regions=_only(said.regions, self.names),
            certificates=_only(said.certificates, self.names),
            later=later if any(one.regions or one.certificates for one in later) else (),
            positions=_only(said.positions, self.names),
            plan=plan if plan is not None and plan.names else None,
            fairness=None,
            mistake=None,
            iterations=(),
        )

    def _interval(self, said: Interval) -> Interval:
        return replace(
            said,
            regions=_only(said.regions, self.names),
            certificates=_only(said.certificates, self.names),
        )


def followers_of(controller: Controller) -> tuple[str, ...]:
    """Names of the controllers that it leads, in its order; none of one that is no leader."""
    named = getattr(controller, "followers", None) or ()
    return tuple(named.values()) if isinstance(named, Mapping) else tuple(named)


def sight_of(controller: Controller) -> Sight | None:
    """What it is shown; `None`: everything."""
    sight = getattr(controller, "sight", None)
    return sight if isinstance(sight, Sight) else None


def says(decision: Decision) -> bool:
    """Whether it says anything beside its words."""
    said = (decision.setpoints, decision.regions, decision.certificates, decision.later, decision.positions)
    return any(said) or decision.plan is not None or decision.fairness is not None


def addressed(decision: Decision, to: str) -> Decision:
    """A decision as one addressee hears it: with no word to others."""
    return replace(decision, words=_only(decision.words, (to,)))


def question(observation: Observation) -> tuple[str, Word] | None:
    """What a follower is asked, and by which leader; `None`: nobody leads it, and it decides for itself."""
    for leader, decision in observation.said.items():
        for word in decision.words.values():
            return leader, word
    return None


def answers(observation: Observation) -> dict[str, Word]:
    """What a leader was answered in this turn, by follower; who did not answer is missing."""
    return {name: word for name, said in observation.said.items() for word in said.words.values()}


def _only(given: Mapping[str, V], names: Collection[str]) -> dict[str, V]:
    return {name: value for name, value in given.items() if name in names}


def _columns(given: Forecast, names: Collection[str]) -> Forecast:
    kept = [i for i, name in enumerate(given.names) if name in names]
    if len(kept) == len(given.names):
        return given
    mean, std = (np.ascontiguousarray(values[:, kept]) for values in (given.mean, given.std))
    return Forecast(given.issued_at, given.every, tuple(given.names[i] for i in kept), mean, std)
