"""Leading: a leader talks with its followers inside one step, until it decides.

    the leader is asked                                        what it observes
    while it has words:   those it addresses are asked         what each observes, and the leader's word to it
                          the leader is asked again            what it observes, and what they have answered

Who does not answer, or raises, is missing in that turn, and so is an answer to another question (stale). The
leader is told how many turns it has left; none after the last one, or when the time is over, and then it has
to decide. Where it does not, its followers are asked once more, without a word: each decides alone.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from math import inf
from types import MappingProxyType
from typing import Literal

from controllers.contract import ControlError, Decision, Late, Observation, Origin
from controllers.roles import addressed, says
from simulators.decisions import Reply
from simulators.seats import Seat

Ask = Callable[[Seat, Observation, float | None], Reply]
"""Asks one controller, within some seconds where that is given; from several threads at once."""
Note = Callable[[str, Observation, Decision | BaseException], None]
"""Told what one was asked and has said; from one thread alone."""
Ended = Literal["decided", "fell-back", "raised", "undecided"]
SHARE = 0.5
"""Most of the time left that one turn of followers may take: the leader needs the rest to decide."""


@dataclass(eq=False)
class Outcome:
    """What became of a conversation."""

    ended: Ended = "decided"
    """how: the leader has decided | its fallback has | it raised | it asked on when it had to decide"""
    turns: int = 0
    said: dict[str, Decision] = field(default_factory=dict)
    """by controller, what counts of what it said in this step: its last decision with more than words, and
    without these"""
    took_ms: dict[str, float] = field(default_factory=dict)
    """by controller that was asked, of all turns together"""
    missing: dict[str, Counter[str]] = field(default_factory=dict)
    """by follower: how often it was missing, and why (the outcome of what it raised, stale, no-word)"""
    raised: dict[tuple[str, str], tuple[BaseException | str, int]] = field(default_factory=dict)
    """by controller and kind: what it raised first, or the mistake that its fallback has covered, and how
    often that was"""

    @property
    def why(self) -> str:
        """It in words."""
        how = {
            "decided": "the leader has decided",
            "fell-back": "the leader's fallback has decided",
            "raised": "the leader had no decision",
            "undecided": "the leader asked on when it had to decide",
        }[self.ended]
        of = [
            f"{name} ({', '.join(f'{what} {n}' for what, n in sorted(counts.items()))})"
            for name, counts in self.missing.items()
        ]
        turns = "1 turn" if self.turns == 1 else f"{self.turns} turns"
        return f"{how} after {turns}" + (f"; missing: {', '.join(of)}" if of else "")


class Conversation:
    """One conversation inside one step.

    Followers in other processes are asked at the same time, one after the other where they share one, and
    those in this process meanwhile.

    Args:
        leader, followers: their seats.
        see: what each observes in this step, as it may see it.
        clock: seconds.
        begun: on it, when the leader's time began; `None`: it begins now.
    """

    def __init__(
        self,
        leader: Seat,
        followers: Sequence[Seat],
        see: Callable[[Seat], Observation],
        ask: Ask,
        note: Note = lambda name, observation, said: None,
        clock: Callable[[], float] = time.monotonic,
        begun: float | None = None,
    ) -> None:
        self._leader, self._followers = leader, tuple(followers)
        self._ask, self._note, self._clock = ask, note, clock
        self._seen = {seat.name: see(seat) for seat in (leader, *followers)}
        within_s = leader.terms.within_s
        self._end = inf if within_s is None else (clock() if begun is None else begun) + within_s
        self.outcome = Outcome()

    def hold(self) -> Outcome:
        """Talk until the leader has decided, or has failed to."""
        answers: Mapping[str, Decision] = {}
        said: Decision | BaseException
        while True:
            left = self._leader.terms.most_turns - self.outcome.turns
            if self._clock() >= self._end:
                left = 0
            said = self._asked_leader(answers, max(left, 0))
            if isinstance(said, BaseException) or not said.words:
                break
            if left <= 0:
                why = f"asks on after {self.outcome.turns} turn(s), when it had to decide"
                said = Late(f"{why}; see `conversation` in the scenario")
                self.outcome.ended = "undecided"
                self._failed(self._leader.name, said)
                break
            answers = self._turn(said)
            self.outcome.turns += 1
        if isinstance(said, BaseException):
            if self.outcome.ended != "undecided":
                self.outcome.ended = "raised"
            self._alone(None)
        else:
            self.outcome.said = {self._leader.name: said, **self.outcome.said}
            if said.origin is Origin.FALLBACK:
                self.outcome.ended = "fell-back"
                self._alone(said)
        return self.outcome

    def _asked_leader(self, answers: Mapping[str, Decision], left: int) -> Decision | BaseException:
        leader, turn = self._leader, self.outcome.turns
        seen = self._seen[leader.name]
        said = dict(seen.said)
        if turn:
            said = {name: one for name, one in said.items() if name not in leader.followers} | dict(answers)
        seen = replace(seen, said=MappingProxyType(said), turn=turn, turns_left=left)
        reply = self._ask(leader, seen, None)
        self._take(leader, seen, reply)
        return reply.said

    def _turn(self, said: Decision) -> dict[str, Decision]:
        """What those have answered whom the leader addresses, as it may see it."""
        asked = [seat for seat in self._followers if seat.name in said.words]
        seen = {seat.name: self._heard_from_leader(seat, said) for seat in asked}
        now = self._clock()
        until = inf if self._end == inf else now + SHARE * max(self._end - now, 0.0)
        answers = {}
        for seat, reply in self._ask_all(asked, seen, until):
            if isinstance(reply.said, BaseException):
                self._is_missing(seat.name, _outcome(reply.said))
                continue
            word = reply.said.words.get(self._leader.name)
            if word is not None and word.number != said.words[seat.name].number:
                self._is_missing(seat.name, "stale")
                continue
            if word is None:
                self._is_missing(seat.name, "no-word")
            if says(reply.said):
                self.outcome.said[seat.name] = replace(reply.said, words={})
            sight = self._leader.sight
            shown = reply.said if sight is None else sight.decision(reply.said)
            if shown.words or says(shown):
                answers[seat.name] = shown
        return answers

    def _alone(self, said: Decision | None) -> None:
        """Have each follower decide without a word of the leader; nothing was agreed."""
        for seat in self._followers:
            self.outcome.said.pop(seat.name, None)
        seen = {seat.name: self._heard_from_leader(seat, said) for seat in self._followers}
        for seat, reply in self._ask_all(self._followers, seen, inf):
            if isinstance(reply.said, Decision) and says(reply.said):
                self.outcome.said[seat.name] = replace(reply.said, words={})

    def _heard_from_leader(self, seat: Seat, said: Decision | None) -> Observation:
        """What a follower observes, with what the leader has just said."""
        seen, name = self._seen[seat.name], self._leader.name
        if said is None:
            return seen
        heard = addressed(said, seat.name)
        if seat.sight is not None:
            heard = seat.sight.decision(heard)
        others = {other: one for other, one in seen.said.items() if other != name}
        if heard.words or says(heard):
            others[name] = heard
        return replace(seen, said=MappingProxyType(others))

    def _ask_all(
        self, seats: Sequence[Seat], seen: Mapping[str, Observation], until: float
    ) -> list[tuple[Seat, Reply]]:
        """The replies of all, in their order."""

        def ask(seat: Seat) -> Reply:
            within_s = None if until == inf else max(until - self._clock(), 1e-3)
            return self._ask(seat, seen[seat.name], within_s)

        apart: dict[str, list[Seat]] = {}
        for seat in seats:
            if seat.process is not None:
                apart.setdefault(seat.process, []).append(seat)
        replies: dict[str, Reply] = {}
        with ThreadPoolExecutor(max(len(apart), 1)) as threads:
            waiting: list[Future[list[tuple[Seat, Reply]]]] = [
                threads.submit(lambda several=several: [(seat, ask(seat)) for seat in several])  # type: ignore[misc]
                for several in apart.values()
            ]
            for seat in seats:
                if seat.process is None:
                    replies[seat.name] = reply = ask(seat)
                    self._take(seat, seen[seat.name], reply)  # at once: whether it hung on the clock is told
            for several in waiting:
                for seat, reply in several.result():
                    replies[seat.name] = reply
                    self._take(seat, seen[seat.name], reply)
        return [(seat, replies[seat.name]) for seat in seats]

    def _take(self, seat: Seat, seen: Observation, reply: Reply) -> None:
        self.outcome.took_ms[seat.name] = self.outcome.took_ms.get(seat.name, 0.0) + reply.took_ms
        self._note(seat.name, seen, reply.said)
        if isinstance(reply.said, BaseException):
            self._failed(seat.name, reply.said)
        elif reply.said.mistake is not None:
            self._failed(seat.name, reply.said.mistake)

    def _failed(self, name: str, why: BaseException | str) -> None:
        key = name, why if isinstance(why, str) else _outcome(why)
        first, times = self.outcome.raised.get(key, (why, 0))
        self.outcome.raised[key] = first, times + 1

    def _is_missing(self, name: str, why: str) -> None:
        self.outcome.missing.setdefault(name, Counter())[why] += 1


def _outcome(error: BaseException) -> str:
    return error.outcome if isinstance(error, ControlError) else "controller-raised"
