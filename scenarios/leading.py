"""Leading: whom the leaders of a scenario name as their followers, which is told before a run if it is wrong.

A leader names them in its option `followers`: a list of controllers, or a mapping to them by microgrid, which
then names each microgrid of the scenario. One that nobody names would never be asked, one that two name would
be torn between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from difflib import get_close_matches
from typing import Any

from controllers.contract import Controller
from controllers.fallback import Fallback
from controllers.roles import followers_of
from controllers.wrapper import Wrapper
from scenarios.conversations import Wrong
from scenarios.load import Keys
from scenarios.schema import spell


@dataclass(frozen=True, slots=True)
class Member:
    """A controller of a scenario, as far as it leads or is led."""

    keys: Keys
    name: str
    followers: tuple[tuple[Keys, str], ...]
    """whom it names, and where"""
    follows: bool | None
    """whether it is to be led; `None`: not known"""
    every: timedelta | None = None
    """how often it is asked; `None`: not known"""
    intervals: int | None = None
    """how far its forecast has to reach; `None`: not known, or it does not say"""
    horizon: Keys = ()
    """where that is set"""


def named(keys: Keys, options: Any) -> tuple[tuple[Keys, str], ...]:
    """Whom the options of a controller name as its followers, and where; what is no name is left to the
    check of options."""
    given = options.get("followers") if isinstance(options, Mapping) else None
    at = (*keys, "options", "followers")
    if isinstance(given, Mapping):
        found = [((*at, str(key)), name) for key, name in given.items()]
    else:
        found = [((*at, i), name) for i, name in enumerate(given)] if isinstance(given, list) else []
    return tuple((where, name) for where, name in found if isinstance(name, str))


def follows(controller: Controller | type[Any]) -> bool:
    """Whether a controller, or a class of them, is to be led."""
    return getattr(controller, "follows", False) is True


def member(keys: Keys, name: str, controller: Controller, options: Any, every: timedelta) -> Member:
    """A controller that was built, which may know its followers otherwise than by its options."""
    places = {who: where for where, who in named(keys, options)}
    at = (*keys, "options", "followers")
    leads = tuple((places.get(who, at), who) for who in followers_of(controller))
    horizon = isinstance(options, Mapping) and "horizon" in options
    asked = (*keys, "options", "horizon") if horizon else (*keys, "options")
    return Member(keys, name, leads, follows(controller), every, _ahead(controller), asked)


def _ahead(controller: Controller) -> int | None:
    """How far the forecast of a method has to reach, whatever is around it; `None`: it does not say."""
    while True:
        match controller:
            case Wrapper():
                controller = controller.inner
            case Fallback():
                controller = controller.first
            case _:
                return getattr(controller, "intervals", None)


def following_problems(members: Sequence[Member], *, complete: bool = True) -> Iterator[Wrong]:
    """What is wrong with who leads whom.

    Args:
        members: all controllers of the scenario.
        complete: whether it is known of all of them whom they lead, so that nobody else can.
    """
    known = {one.name: one for one in members}
    led: dict[str, str] = {}
    for leader in members:
        for where, name in leader.followers:
            if name not in known:
                candidates = [one.name for one in members if one.follows is not False and one is not leader]
                near = get_close_matches(name, candidates, n=1)
                there = ", ".join(candidates) or "none that follows"
                hint = f"did you mean {near[0]!r}?" if near else f"there are {there}"
                yield where, name, f"is no controller of this scenario; {hint}"
                continue
            if name in led:
                again = "twice" if led[name] == leader.name else f"by {led[name]!r} too"
                yield where, name, f"is named {again}; a follower has one leader, name it once"
                continue
            led[name] = leader.name
            follower = known[name]
            if follower is leader:
                yield where, name, "is the leader itself; name controllers that follow"
            elif follower.followers:
                yield where, name, "leads others itself, and no leader has a leader; leave it out"
            elif follower.follows is False:
                yield where, name, "is no follower: its class does not have `follows = True`; leave it out"
            elif follower.every and leader.every and follower.every != leader.every:
                advice = f"is asked by its leader {leader.name!r}, every {spell(leader.every)}; write that"
                yield (*follower.keys, "every"), follower.every, advice
            elif follower.intervals and leader.intervals and follower.intervals != leader.intervals:
                advice = (
                    f"looks {follower.intervals} intervals ahead and its leader {leader.name!r} "
                    f"{leader.intervals}; they talk about the same ones, so give both the same horizon"
                )
                yield follower.horizon, follower.intervals, advice
    for one in members if complete else ():
        if one.follows and one.name not in led:
            leaders = [leader.name for leader in members if leader.followers]
            to = f"of {leaders[0]!r}" if leaders else "of the controller that leads it"
            advice = f"answers only a leader, and none names it; add it to the option `followers` {to}"
            yield (*one.keys, "name"), one.name, advice


def microgrid_problems(keys: Keys, options: Any, microgrids: Sequence[str]) -> Iterator[Wrong]:
    """What is wrong with the microgrids by which a leader names its followers.

    Args:
        keys: where the leader is.
        microgrids: of the scenario.
    """
    given = options.get("followers") if isinstance(options, Mapping) else None
    if not isinstance(given, Mapping):
        return
    at = (*keys, "options", "followers")
    for name in given:
        if name not in microgrids:
            near = get_close_matches(str(name), microgrids, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(microgrids) or 'none'}"
            yield (*at, str(name)), given[name], f"{name!r} is no microgrid of this scenario; {hint}"
    if missing := [name for name in microgrids if name not in given]:
        yield at, dict(given), f"names no follower of {', '.join(missing)}; name one of each microgrid"
