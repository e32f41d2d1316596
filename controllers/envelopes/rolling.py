"""Rolling: envelopes for every interval of a horizon, announced ahead, step after step.

| symbol | here        | meaning                                                                          |
|--------|-------------|----------------------------------------------------------------------------------|
| n      | `intervals` | intervals published each step; interval k begins k + 1 steps from now            |
| L      | `locked`    | first intervals in which nobody gets less for another's sake                     |
| N      | `notice`    | intervals, from when a decision acts, in which nobody gets less at all           |
| C_i(k) | `anew`      | region of device i in interval k by the method, as of now                        |
| O_i(k) | `kept`      | the region that it was told last for that interval                               |
| M_i(k) | `may`       | polygon around all that it may have been told: more than O_i if it is not heard  |

What a device is told. C_i(k), if that contains M_i(k) for all: more counts at once. Otherwise some would
get less. Before N they keep O_i(k): whoever gets less knows N intervals before. From N to L they keep it
too, unless the network has no room for that: another device's claim is no reason. From L on they get C_i(k),
or what it has in common with O_i(k).

How it stays safe. A decision may not arrive, so a device that is told less may go on with more. Where some
get less, the others therefore share what is left beside the polygon around M_i(k) and the new region, or,
if one of these would get less for that, beside M of all, and get nothing new: who gains must wait until
those who lose were heard with their new regions, a step later.

Forecasts change a little each step, so a method that leaves no room for that (`margin`) has announced too
much in every second step. What is kept stands as long as the forecast's mean leaves room for it: the margin,
which new envelopes must leave free, is there for old ones.

So this is guaranteed: in each interval, whichever of its schedules each device holds, the regions in use
are within what the method, and its certificate, found safe together for the newest forecast. There is one
exception, and no scheme is without it: when the forecast has become worse and M(k) as a whole has no
room. Within the notice O(k) then stands, with origin `DEGRADED` and the reason in every certificate; after
it C(k) is told, which is safe for all whom it reaches.

Silent devices (heard before, and not for longer than `silent_after`) are told nothing. Their part of the
network stays theirs: M_i until their schedules end, their default afterwards. The others' certificates
name them. A device that is heard again is served again.

Later intervals assume that the network operator's regulators stay where they are, and are not cut with
what a device can do then, which nobody knows yet.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from controllers.contract import (
    Certificate,
    ControlError,
    Decision,
    Infeasible,
    Interval,
    Observation,
)
from controllers.devices import AXES
from controllers.envelopes.announced import Announced, Memory, Together
from controllers.envelopes.beside import Connection
from controllers.envelopes.method import Envelopes, Room
from controllers.envelopes.polygons import Polygon, common, convex, within
from controllers.envelopes.shapes import Shapes
from controllers.fairness import Ledger
from controllers.site import Site

Array = npt.NDArray[np.float64]

TOO_LATE = "announced too late to be tightened"

_STEPS = re.compile(r"(\d+) steps?")


class Sharing(Protocol):
    """A method of envelopes, or `Certified` around one."""

    @property
    def site(self) -> Site: ...
    def room(
        self,
        observation: Observation,
        *,
        intervals: Sequence[int] | None = None,
        gamma: Array | None = None,
        fixed: Mapping[str, Array] | None = None,
    ) -> Room: ...
    def envelopes(self, room: Room) -> Envelopes: ...
    def decide(self, observation: Observation, room: Room, found: Envelopes) -> Decision: ...


Answer = tuple[Room, Envelopes]


@dataclass
class Rolling:
    """Envelopes of `inner` for each of the coming intervals of a step's length; see the module's text.

    It remembers what it announced and whom it heard, so it wants to be asked each step; asked again for
    the same time it gives the same decision. When the method has no answer for an interval, the horizon
    ends before it, and the last certificates say why; when its solver fails at a later interval, what was
    announced for that stands.

    A day's account is kept of how wide everybody's envelope was, less what sun and wind are forecast to
    have beyond it; `Fairness.ledger_jain` tells how evenly. It starts anew with each UTC day.

    Args:
        inner: the method.
        intervals: how many, at most as many as the forecast covers.
        locked, notice: see above.
        silent_after: "2 steps", or a length of time.
        repay: how much weight those get who had less than others on this day; 0 none, 1 in proportion.
        recertify: how many intervals are computed anew each step, if not all; the others stay as they were
            announced until their turn comes, unless another device falls silent or is heard again.

    Raises:
        ValueError: options that contradict each other, a device whose default has no end.
        ControlError: (step) of `inner`, for an interval that nothing was announced for.
    """

    inner: Sharing
    intervals: int = 12
    locked: int = 2
    notice: int = 1
    silent_after: str | timedelta = "2 steps"
    repay: float = 0.0
    recertify: int | None = None
    sources: tuple[str, ...] = field(init=False)
    """of the method"""
    _default: dict[str, Array] = field(init=False, repr=False)
    _patience: timedelta = field(init=False, repr=False)
    _gamma: Array | None = field(init=False, repr=False, default=None)
    """the method's own weights, which never change"""
    _asked: tuple[datetime, Memory, Memory] | None = field(init=False, repr=False, default=None)
    """the last observation's time, and the memory before and after it"""

    def __post_init__(self) -> None:
        if not all(hasattr(self.inner, name) for name in ("site", "room", "envelopes", "decide")):
            raise ValueError(f"rolling: {type(self.inner).__name__} is no method of envelopes")
        policy = getattr(getattr(self.inner, "inner", self.inner), "when_broken", "strict")
        if policy != "strict":
            raise ValueError(
                f"rolling: when_broken {policy!r} cannot be kept over a horizon: regulators that move, or "
                "limits that give way, would make what was announced unsafe; take 'strict'"
            )
        if any(isinstance(device, Connection) for device in self.site.devices.values()):
            raise ValueError(
                "rolling: envelopes that are announced ahead cannot be kept beside microgrids, whose "
                "capabilities are corrected anew each step; leave `rolling` out"
            )
        if not 0 <= self.notice < self.intervals:
            raise ValueError(
                f"rolling: notice {self.notice} must be from 0 to intervals - 1 = {self.intervals - 1}"
            )
        if not 0 <= self.locked <= self.intervals:
            raise ValueError(f"rolling: locked {self.locked} must be from 0 to intervals = {self.intervals}")
        if self.recertify is not None and self.recertify <= self.notice:
            raise ValueError(
                f"rolling: recertify {self.recertify} must be above notice {self.notice}, or nothing could "
                "ever be tightened"
            )
        if not 0 <= self.repay < np.inf:
            raise ValueError(f"rolling: repay {self.repay} must not be negative")
        self.sources = tuple(getattr(self.inner, "sources", ()))
        self._patience = _patience(self.silent_after, self.site.every)
        self._default = {}
        for name, device in self.site.devices.items():
            limits = [device.default.limits(axis) for axis in AXES]
            if not np.isfinite(limits).all():
                raise ValueError(f"rolling: the default of device {name!r} has no end; limit p_mw and q_mvar")
            self._default[name] = device.default.over(AXES).vertices()

    @property
    def site(self) -> Site:
        return self.inner.site

    def step(self, observation: Observation) -> Decision:
        now, names = observation.time, tuple(self.site.devices)
        before = Memory(Ledger(names))
        if self._asked is not None:
            asked, first, last = self._asked
            before = first if asked == now else last if asked < now else before
        memory = before.noted(now, observation.p_mw.keys() & set(names), names)
        self._asked = now, before, memory  # what was heard counts even if there is no decision
        decision, announced = self._decided(observation, memory)
        self._asked = now, before, memory.with_announced(announced, names, self.site.every)
        return decision

    def memory(self) -> object:
        """The last observation's time, the memory before and after it, and the method's own weights."""
        return self._asked, self._gamma

    def recall(self, memory: Any) -> None:
        self._asked, self._gamma = memory

    def _decided(self, observation: Observation, memory: Memory) -> tuple[Decision, Announced]:
        now, every = observation.time, self.site.every
        silent = memory.silent(now, self._patience)
        sets: list[Together] = []
        first: Answer | None = None
        ended: str | None = None
        for k in range(max(1, min(self.intervals, len(observation.forecast.mean)))):
            start = now + (k + 1) * every
            fixed = {
                name: memory.holds(name, start, start + every, every, self._default[name]) for name in silent
            }
            try:
                together, answer = self._together(observation, memory, k, start, fixed)
            except ControlError as error:
                if not sets:
                    raise
                ended = f"no envelope from {start:%H:%M:%S} UTC on: {error}"
                break
            sets.append(together)
            if k == 0:
                first = answer
        spoken = [t.spoken(memory.heard, ended if t is sets[-1] else None) for t in sets]
        fairness = sets[0].fairness
        if fairness is not None and self._gamma is not None and memory.ledger.hours.any():
            fairness = replace(fairness, ledger_jain=memory.ledger.jain(self._gamma))
        decision = Decision(time=now, origin=sets[0].origin, regions=sets[0].regions)
        if first is not None:
            decision = self.inner.decide(observation, *first)
        later = tuple(
            Interval(start=t.start, end=t.end, regions=t.regions, certificates=c)
            for t, c in zip(sets[1:], spoken[1:], strict=True)
        )
        decision = replace(
            decision,
            origin=sets[0].origin,
            certificates=spoken[0],
            fairness=fairness,
            until=sets[0].end,
            later=later,
        )
        return decision, Announced(now, tuple(sets))

    def _together(
        self, observation: Observation, memory: Memory, k: int, start: datetime, fixed: Mapping[str, Array]
    ) -> tuple[Together, Answer | None]:
        """Regions for interval k, and the method's answer behind them where there is a new one.

        Args:
            fixed: corners of the silent devices.

        Raises:
            ControlError: of the method.
        """
        old = memory.newest(start)
        if (
            old is not None
            and self.recertify is not None
            and k >= self.recertify
            and old.silent == set(fixed)
        ):
            return old, None
        before = {
            n: t for n in self.site.devices if n not in fixed and (t := memory.told(n, start)) is not None
        }
        locked = k < max(self.locked, self.notice)
        answer: Answer | None = None
        try:
            answer = self._answer(observation, memory, k, fixed)
        except Infeasible:
            if not (before and locked):
                raise
        except ControlError as error:  # nothing speaks against what was announced
            if old is not None and k > 0:
                return old.standing(before, fixed, self._default, f"not looked at again: {error}"), None
            raise
        may = self._may_use(observation.time, memory, before)
        kept = {name: (t.corners[name], t.regions[name]) for name, t in before.items()}
        fewer = kept
        if answer is not None:
            anew = self._told(answer[1])
            less = {name for name, corners in may.items() if not within(corners, anew[name][1])}
            if not less:
                return self._made(observation, k, start, fixed, answer, anew)
            beside = {n: may[n] if locked else convex(np.concatenate([may[n], anew[n][0]])) for n in less}
            with suppress(ControlError):
                both = self._answer(observation, memory, k, {**fixed, **beside})
                told = self._told(both[1])
                if all(within(may[name], told[name][1]) for name in may.keys() - less):
                    told |= {name: kept[name] if locked else anew[name] for name in less}
                    same = {n: before[n].certificates[n] for n in less} if locked else {}
                    return self._made(observation, k, start, fixed, both, told, same, answer)
            # One of the others would get less for that: nobody gets more.
            if not locked:
                fewer = kept | {name: common(kept[name], anew[name]) for name in less}
        try:
            # What is kept back for forecast errors is there for this.
            both = self._answer(_sure(observation), memory, k, {**fixed, **may})
        except ControlError as error:
            if old is not None and k < self.notice:
                return old.standing(before, fixed, self._default, f"{TOO_LATE}: {error}"), None
            if answer is None:
                raise
            return self._made(observation, k, start, fixed, answer, anew)
        same = {name: before[name].certificates[name] for name in may if fewer[name] is kept[name]}
        return self._made(observation, k, start, fixed, both, self._told(both[1]) | fewer, same, answer)

    def _may_use(self, now: datetime, memory: Memory, before: Mapping[str, Together]) -> dict[str, Array]:
        """Corners of all that each device may use in an interval, of those that were told of it before."""
        every = self.site.every
        return {
            name: t.corners[name]
            if memory.heard.get(name, now) == now
            else memory.holds(name, t.start, t.end, every, self._default[name])
            for name, t in before.items()
        }

    def _told(self, found: Envelopes) -> dict[str, Polygon]:
        """By device, the corners and half-planes of a method's answer."""
        return dict(
            zip(self.site.devices, zip(found.shapes.corners, found.shapes.regions, strict=True), strict=True)
        )

    def _answer(self, observation: Observation, memory: Memory, k: int, fixed: Mapping[str, Array]) -> Answer:
        room = self.inner.room(observation, intervals=[k], fixed=fixed)
        if self._gamma is None:
            self._gamma = room.gamma
        if self.repay:
            room = replace(room, gamma=memory.ledger.weights(self._gamma, self.repay))
        found = self.inner.envelopes(room)
        told = self._told(found)
        for name, corners in fixed.items():
            if not within(corners, told[name][1]):
                raise Infeasible(f"no room for what {name!r} was told before")
        return room, found

    def _made(
        self,
        observation: Observation,
        k: int,
        start: datetime,
        fixed: Mapping[str, Array],
        answer: Answer,
        told: Mapping[str, Polygon],
        kept: Mapping[str, Certificate] = MappingProxyType({}),
        limited_by: Answer | None = None,
    ) -> tuple[Together, Answer]:
        """What is announced: `told` by device, safe by the method's answer.

        Args:
            kept: certificates of those who are told the same as before.
            limited_by: the answer that says what limits the others, if not the same.
        """
        room, found = answer
        names = list(self.site.devices)
        limits = found if limited_by is None else limited_by[1]
        certificates = {
            name: replace(checked, binding=kept.get(name, limiting).binding)
            for name, checked, limiting in zip(names, found.certificates, limits.certificates, strict=True)
        }
        widest = max(len(corners) for corners, _ in told.values())
        padded = [
            np.concatenate([c, np.repeat(c[-1:], widest - len(c), axis=0)])
            for c, _ in (told[n] for n in names)
        ]
        shapes = Shapes(np.array(padded), found.shapes.binding, tuple(told[name][1] for name in names))
        low, high = shapes.ranges_at_zero
        forecast = observation.forecast.at(k)
        served = [name for name in names if name not in fixed]
        together = Together(
            start=start,
            end=start + self.site.every,
            corners={name: corners for name, (corners, _) in told.items()},
            regions={name: told[name][1] for name in served},
            certificates={name: certificates[name] for name in served},
            ranges_mw={n: (float(low[i]), float(high[i])) for i, n in enumerate(names) if n in served},
            available_mw={
                n: forecast[n] for n in served if n in forecast and self.site.devices[n].curtailable
            },
            origin=found.origin,
            fairness=found.fairness,
            silent=frozenset(fixed),
            kept=frozenset(kept),
        )
        # The silent ones alone are not said again: those who keep their region are told so.
        return together, (replace(room, fixed=fixed), replace(found, shapes=shapes))


def _sure(observation: Observation) -> Observation:
    """As if the forecast were sure to come."""
    forecast = observation.forecast
    return replace(observation, forecast=replace(forecast, std=np.zeros_like(forecast.std)))


def _patience(silent_after: str | timedelta, every: timedelta) -> timedelta:
    if isinstance(silent_after, timedelta):
        patience = silent_after
    elif match := _STEPS.fullmatch(silent_after.strip()):
        patience = int(match[1]) * every
    else:
        raise ValueError(
            f"rolling: silent_after {silent_after!r} is neither a number of steps, e.g. '2 steps', "
            "nor a length of time"
        )
    if patience < timedelta(0):
        raise ValueError(f"rolling: silent_after {patience} must not be negative")
    return patience
