"""Register: which instruction a device goes by, what it refuses, and what it answers.

It has no clock: every call says what time it is.

A device of one's own and a twin accept by these rules alone. What time brings is told to `tick`:

    received -> applied -> superseded                     by the next one
                        -> expired -> fallback            until the next one is applied
    received -> superseded | expired                      before it began
    refused                                               see `Refusal`

| word     | EEBUS                                      | IEEE 2030.5-2018, table 27     |
|----------|--------------------------------------------|--------------------------------|
| `Regime`  | states of limitation of consumption (LPC)  | active, default DERControl     |
| `Life`   |                                            | response status, see `STATUS`  |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import pairwise
from math import inf
from types import MappingProxyType
from typing import Any, NamedTuple

from controllers.contract import Instruction, Setpoint, Span
from controllers.rating import Rating
from controllers.region import Region

AHEAD = timedelta(seconds=5)
"""How far in the future an instruction may have been issued: what clocks may differ."""


class Life(StrEnum):
    """What a device says of an instruction."""

    RECEIVED = "received"
    """accepted; it obeys it when its time comes"""
    APPLIED = "applied"
    """it obeys it from now on"""
    REFUSED = "refused"
    """it does not and will not obey it: see `Refusal`"""
    SUPERSEDED = "superseded"
    """a newer one takes its place"""
    EXPIRED = "expired"
    """its validity is over and no newer one has taken its place"""
    FALLBACK = "fallback"
    """it has expired, and the device obeys its fallback"""


class Refusal(StrEnum):
    """Why a device refuses an instruction."""

    OLD = "old"
    """its epoch and number are not above those of the last one"""
    STALE = "stale"
    """its validity or its time to live is over"""
    EARLY = "early"
    """it was issued in the future: a clock is wrong"""
    CAPABILITY = "capability"
    """the device cannot do it, whatever happens: outside its rating"""
    MALFORMED = "malformed"
    """it is no instruction"""
    HELD = "held"
    """somebody at the device has taken it over"""


STATUS: Mapping[Life | Refusal, int] = MappingProxyType(
    {
        Life.RECEIVED: 1,
        Life.APPLIED: 2,
        Life.EXPIRED: 3,
        Refusal.HELD: 4,
        Life.SUPERSEDED: 7,
        Refusal.CAPABILITY: 252,
        Refusal.OLD: 253,
        Refusal.EARLY: 253,
        Refusal.MALFORMED: 253,
        Refusal.STALE: 254,
    }
)
"""Response status of IEEE 2030.5-2018, table 27. A refusal's is that of its code; `fallback` has none: there
the default control is active."""


class Regime(StrEnum):
    """What a device goes by, in the words of EEBUS."""

    INIT = "init"
    """no instruction yet: its own default"""
    CONTROLLED = "controlled"
    """a valid instruction, which leaves it where it wants to be"""
    LIMITED = "limited"
    """a valid instruction that moves it; only the device itself can tell"""
    FAILSAFE = "failsafe"
    """the last instruction is over: its fallback"""


class Answer(NamedTuple):
    """What a device says of one instruction."""

    epoch: int
    seq: int
    state: Life
    time: datetime
    """by the device's clock"""
    code: Refusal | None = None
    reason: str | None = None
    """for people, with the code"""


class Order(NamedTuple):
    """What a device has to do now."""

    regime: Regime
    instruction: Instruction | None = None
    """the one in force, or the last one that was; `None` at first"""
    region: Region | None = None
    """where it must stay; `None`: its capability while it is controlled, its own default at first"""
    setpoint: Setpoint | None = None
    """where it should be inside the region"""


_DONE = (Life.SUPERSEDED, Life.EXPIRED)
"""After these nothing is left to ask an instruction for."""


@dataclass(slots=True)
class _Accepted:
    instruction: Instruction
    ends_s: float
    """when its time to live is over, on the monotonic clock"""
    over: bool = False
    """its validity is over; of one to come: it was dropped before it began"""


class Register:
    """The instructions that one device has accepted: the one in force, and those to come.

    Every `now` is the device's own clock, aware, and `mono` the seconds of a monotonic one, which counts the
    times to live. Times must not go back; where the clock is set back, nothing that is over comes back.

    Args:
        rating: what the device can do; without it nothing is refused as beyond it.
        synchronised: whether `now` can be compared with the controller's times. If not, these follow from the
            time to live, which ends with the validity.
        resumed: (epoch, seq) of the last instruction accepted before a restart, which is taken once more.
    """

    def __init__(
        self,
        *,
        rating: Rating | None = None,
        synchronised: bool = True,
        resumed: tuple[int, int] | None = None,
    ) -> None:
        self._rating, self.synchronised = rating, synchronised
        self._current: _Accepted | None = None
        self._coming: list[_Accepted] = []  # in the order of their beginnings
        self._said: dict[tuple[int, int], Answer] = {}  # the last word on each of these
        self._held: str | None = None
        self.newest = (-1, -1) if resumed is None else (resumed[0], resumed[1] - 1)
        """(epoch, seq) of the last instruction accepted"""

    def take(
        self, instruction: Instruction, now: datetime, mono: float = 0.0, ttl_s: float = inf
    ) -> tuple[Answer, ...]:
        """Accept or refuse an instruction; all answers, those to earlier ones too.

        Args:
            ttl_s: how long it may be obeyed from now on, at most.
        """
        if (refusal := self._refusal(instruction, now, ttl_s)) is not None:
            code, reason = refusal
            refused = Answer(instruction.epoch, instruction.seq, Life.REFUSED, now, code, reason)
            return (*self.tick(now, mono), refused)
        # It holds from its beginning on: what begins before goes first, or a clock that lags behind the
        # controller's would let none ever begin.
        accepted = _Accepted(instruction, mono + ttl_s)
        if not self._coming and self._begun(accepted, now, mono) and not self._over(accepted, now, mono):
            return self._take_at_once(accepted, now)
        said = []
        while self._coming and self._ahead(self._coming[-1], now, mono) >= self._ahead(accepted, now, mono):
            said.append(self._say(self._coming.pop(), Life.SUPERSEDED, now))
        self._coming.append(accepted)
        self.newest = (instruction.epoch, instruction.seq)
        said.append(self._say(accepted, Life.RECEIVED, now))
        # Only now: what comes in the moment in which the one before ends supersedes it, without a fallback.
        return (*said, *self.tick(now, mono))

    def _take_at_once(self, accepted: _Accepted, now: datetime) -> tuple[Answer, ...]:
        """Accept what begins now, with nothing to come: what the rest of `take` and `tick` would do, for
        thousands of devices a step."""
        told, current = accepted.instruction, self._current
        self.newest = number = told.epoch, told.seq
        received, applied = Answer(*number, Life.RECEIVED, now), Answer(*number, Life.APPLIED, now)
        self._said[number], self._current = applied, accepted
        if current is None:
            return received, applied
        if current.over:  # its last word was its fallback
            self._said.pop((current.instruction.epoch, current.instruction.seq), None)
            return received, applied
        gap = current.instruction.valid_until < told.valid_from
        return received, self._say(current, Life.EXPIRED if gap else Life.SUPERSEDED, now), applied

    def tick(self, now: datetime, mono: float = 0.0) -> tuple[Answer, ...]:
        """What time has brought since the last call."""
        current = self._current
        if not self._coming and (current is None or current.over or not self._over(current, now, mono)):
            return ()
        said = [self._say(one, Life.SUPERSEDED, now) for one in self._coming if one.over]
        self._coming = [one for one in self._coming if not one.over]
        begun = [] if current is None or current.over else [current]
        while self._coming and self._begun(self._coming[0], now, mono):
            begun.append(self._coming.pop(0))
        for one, following in pairwise(begun):
            gap = one.instruction.valid_until < following.instruction.valid_from
            said.append(self._say(one, Life.EXPIRED if gap else Life.SUPERSEDED, now))
        if not begun:
            return tuple(said)
        newest, self._current = begun[-1], begun[-1]
        if current is not None and current.over and newest is not current:  # its last word was its fallback
            self._said.pop((current.instruction.epoch, current.instruction.seq), None)
        if self._over(newest, now, mono):
            newest.over = True
            said.append(self._say(newest, Life.EXPIRED, now))
            said.append(self._say(newest, Life.FALLBACK, now))
        elif newest is not current:
            said.append(self._say(newest, Life.APPLIED, now))
        return tuple(said)

    def order(self, now: datetime, mono: float = 0.0) -> Order:
        """What the device has to do, as of the last `tick`."""
        current = self._current
        if current is None:
            return Order(Regime.INIT)
        told = current.instruction
        if current.over:
            return Order(Regime.FAILSAFE, told, told.fallback)
        if not told.later:
            return Order(Regime.CONTROLLED, told, told.region, told.setpoint)
        span = self._span(current, now, mono)
        return Order(Regime.CONTROLLED, told, span.region, span.setpoint)

    def quiet_s(self, now: datetime, mono: float = 0.0) -> float:
        """Seconds until an answer or order changes by itself; infinite if none does."""
        current, left = self._current, inf
        if any(one.over for one in self._coming):
            return 0.0
        if self._coming:
            coming = self._coming[0]
            left = min(self._ahead(coming, now, mono).total_seconds(), coming.ends_s - mono)
        if current is not None and not current.over:
            at, until = self._theirs(current, now, mono), current.instruction.valid_until
            if current.instruction.later:
                starts = [span.start for span in current.instruction.later if span.start > at]
                until = min([until, *starts])
            left = min(left, (until - at).total_seconds(), current.ends_s - mono)
        return max(left, 0.0)

    def standing(self, epoch: int, seq: int) -> Answer | None:
        """The last word on an instruction that is in force or to come, for who asks again; else `None`."""
        return self._said.get((epoch, seq))

    @property
    def failsafe(self) -> bool:
        """Whether the device obeys its fallback because its last instruction is over."""
        return self._current is not None and self._current.over

    def hold(self, reason: str = "held at the device") -> None:
        """Refuse new instructions until `release`, and drop those to come, as the next `tick` says; the one
        in force runs out by itself, then the fallback."""
        self._held = reason
        for one in self._coming:
            one.over = True

    def release(self) -> None:
        """Accept instructions again, the next one first."""
        self._held = None

    def memory(self) -> object:
        """All that it knows, for `recall`; what else it was made with stays with who made it."""
        return self._current, tuple(self._coming), dict(self._said), self._held, self.newest

    def recall(self, memory: Any) -> None:
        """Know what `memory` of an equal register has returned."""
        self._current, coming, said, self._held, self.newest = memory
        self._coming, self._said = list(coming), dict(said)

    # Times

    def _theirs(self, accepted: _Accepted, now: datetime, mono: float) -> datetime:
        """The controller's time."""
        if self.synchronised or accepted.ends_s == inf:
            return now
        return accepted.instruction.valid_until - timedelta(seconds=accepted.ends_s - mono)

    def _ahead(self, accepted: _Accepted, now: datetime, mono: float) -> timedelta:
        """How long until it begins."""
        return accepted.instruction.valid_from - self._theirs(accepted, now, mono)

    def _over(self, accepted: _Accepted, now: datetime, mono: float) -> bool:
        if mono >= accepted.ends_s:
            return True
        return self._theirs(accepted, now, mono) >= accepted.instruction.valid_until

    def _begun(self, coming: _Accepted, now: datetime, mono: float) -> bool:
        """Whether its time has come; one whose life is over would have begun, were our clock right."""
        here = self._theirs(coming, now, mono)
        return here >= coming.instruction.valid_from or self._over(coming, now, mono)

    def _span(self, current: _Accepted, now: datetime, mono: float) -> Span:
        told = current.instruction
        return told.at(max(self._theirs(current, now, mono), told.valid_from)) or told.spans[-1]

    # Answers

    def _say(self, about: _Accepted, state: Life, now: datetime) -> Answer:
        number = about.instruction.epoch, about.instruction.seq
        answer = Answer(*number, state, now)
        if state in _DONE:
            self._said.pop(number, None)
        else:
            self._said[number] = answer
        return answer

    def _refusal(self, told: Instruction, now: datetime, ttl_s: float) -> tuple[Refusal, str] | None:
        if (told.epoch, told.seq) <= self.newest:
            last = "epoch {}, seq {}".format(*self.newest)
            return Refusal.OLD, f"epoch {told.epoch}, seq {told.seq} is not above the last one, {last}"
        if ttl_s <= 0:
            return Refusal.STALE, f"its time to live was over {-ttl_s:.3f} s ago"
        if self.synchronised and now >= told.valid_until:
            return Refusal.STALE, f"valid until {told.valid_until.isoformat()}; here it is {now.isoformat()}"
        if self.synchronised and told.issued_at > now + AHEAD:
            ahead = (told.issued_at - now).total_seconds()
            return Refusal.EARLY, f"issued {ahead:.3f} s in the future; set the clocks"
        if self._held is not None:
            return Refusal.HELD, self._held
        if self._rating is not None and (why := self._rating.beyond(told)) is not None:
            return Refusal.CAPABILITY, why
        return None
