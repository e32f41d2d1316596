"""Announced: what was published for the coming intervals, and what each device may hold of it.

A device holds the newest schedule that reached it, and obeys its default when that has ended. Of a device
that is not heard nobody knows which schedule reached it last, so everything that it may hold counts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import numpy as np
import numpy.typing as npt

from controllers.contract import Certificate, Origin
from controllers.envelopes.polygons import convex
from controllers.envelopes.shapes import hull
from controllers.fairness import Fairness, Ledger
from controllers.region import Region

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False, kw_only=True)
class Together:
    """What may hold at the same time in one interval."""

    start: datetime
    end: datetime
    corners: Mapping[str, Array]
    """(corners, 2) of every device of the site, [MW, Mvar]"""
    regions: Mapping[str, Region]
    """of the devices that are told, as polygons of `corners`"""
    certificates: Mapping[str, Certificate]
    ranges_mw: Mapping[str, tuple[float, float]]
    """least and greatest P at Q = 0, of the devices that are told"""
    available_mw: Mapping[str, float]
    """forecast of what sun and wind allow, where there is one"""
    origin: Origin
    fairness: Fairness | None
    silent: frozenset[str]
    """who was not heard, and is told nothing"""
    kept: frozenset[str] = frozenset()
    """whose region is the one announced before, though it would get less now"""
    unsafe: str | None = None
    """why it is only what was announced before"""

    def standing(
        self,
        before: Mapping[str, Together],
        fixed: Mapping[str, Array],
        default: Mapping[str, Array],
        why: str,
    ) -> Together:
        """The same interval as it was announced, for want of anything better.

        Args:
            before: what each device was told of it last; one that was told nothing obeys its default.
            fixed: corners of the devices that are silent now.
            default: corners of every device's default.
        """
        told = {name: together for name, together in before.items() if name not in fixed}
        back = [name for name in default if name not in fixed and name not in told]
        return replace(
            self,
            corners={**{n: t.corners[n] for n, t in told.items()}, **fixed, **{n: default[n] for n in back}},
            regions={n: t.regions[n] for n, t in told.items()} | {n: hull(default[n]) for n in back},
            certificates={n: t.certificates[n] for n, t in told.items()}
            | {n: Certificate(binding="its default") for n in back},
            ranges_mw={n: t.ranges_mw[n] for n, t in told.items() if n in t.ranges_mw},
            origin=Origin.DEGRADED,
            silent=frozenset(fixed),
            kept=frozenset(told),
            unsafe=why,
        )

    def spoken(self, heard: Mapping[str, datetime], ended: str | None) -> dict[str, Certificate]:
        """By device that is told, its certificate with what people should know of the interval.

        Args:
            heard: when each device was heard last.
            ended: why no interval follows, if that is so.
        """
        said = [
            f"not heard since {heard[name]:%H:%M:%S} UTC and counted as told: {name}"
            for name in sorted(self.silent)
        ]
        said += [text for text in (self.unsafe, ended) if text is not None]
        spoken = {}
        for name, certificate in self.certificates.items():
            own = [] if certificate.binding is None else [certificate.binding]
            if name in self.kept:
                own.append("as announced before")
            spoken[name] = replace(certificate, binding="; ".join(own + said) or None)
        return spoken


@dataclass(frozen=True, eq=False)
class Announced:
    """What one decision published."""

    issued_at: datetime
    sets: tuple[Together, ...]
    """of intervals without gaps"""

    def at(self, start: datetime) -> Together | None:
        """The interval that begins at `start`."""
        return next((together for together in self.sets if together.start == start), None)

    def told(self, device: str) -> bool:
        return any(device in together.regions for together in self.sets)


@dataclass(frozen=True, eq=False)
class Memory:
    """What a rolling controller remembers from one step to the next. Never changed, only replaced."""

    ledger: Ledger
    """of the day of `counted`"""
    heard: Mapping[str, datetime] = field(default_factory=dict)
    """when each device was heard last; one that never was is missing"""
    announced: tuple[Announced, ...] = ()
    """the newest last, and older ones that a device may still hold"""
    counted: datetime | None = None
    """start of the last interval that is in the ledger"""

    def silent(self, now: datetime, after: timedelta) -> tuple[str, ...]:
        """Devices that were heard before and not for longer than `after`."""
        return tuple(name for name, heard in self.heard.items() if now - heard > after)

    def newest(self, start: datetime) -> Together | None:
        """What was announced last for the interval that begins at `start`."""
        return self.announced[-1].at(start) if self.announced else None

    def told(self, device: str, start: datetime) -> Together | None:
        """What the device was told last for the interval that begins at `start`, if anything."""
        newest = next((announced for announced in reversed(self.announced) if announced.told(device)), None)
        together = None if newest is None else newest.at(start)
        return together if together is not None and device in together.regions else None

    def holds(self, device: str, start: datetime, end: datetime, every: timedelta, default: Array) -> Array:
        """Corners of all that a device may use from `start` until `end`.

        Args:
            every: how long a decision takes to reach a device.
            default: (corners, 2) what it obeys after its schedule.
        """
        found: list[Array] = []
        for announced in self._reached(device, every):
            sets = [t for t in announced.sets if t.start < end and start < t.end and device in t.regions]
            found += [t.corners[device] for t in sets]
            if not sets or sets[0].start > start or sets[-1].end < end:
                found.append(default)
        return convex(np.concatenate(found)) if found else default

    def _reached(self, device: str, every: timedelta) -> list[Announced]:
        """What may have reached a device last: it had what was on its way when it was heard, or anything
        newer."""
        told = [announced for announced in self.announced if announced.told(device)]
        heard = self.heard.get(device)
        if heard is None:
            return told[-1:]
        sure = [i for i, announced in enumerate(told) if announced.issued_at <= heard - every]
        return told[sure[-1] if sure else 0 :]

    def noted(self, now: datetime, present: Collection[str], names: tuple[str, ...]) -> Memory:
        """With who is heard now, and with the intervals in the ledger that have begun."""
        heard = {n: now if n in present else self.heard[n] for n in names if n in present or n in self.heard}
        ledger, counted = self.ledger, self.counted
        begun = [
            together
            for together in (self.announced[-1].sets if self.announced else ())
            if together.start <= now and (counted is None or together.start > counted)
        ]
        for together in begun:
            if ledger is self.ledger:
                ledger = deepcopy(ledger)
            if counted is not None and together.start.date() != counted.date():
                ledger = Ledger(names)  # a new day
            counted = together.start
            _count(ledger, together)
        if counted is not None and now.date() != counted.date():
            ledger = Ledger(names)
        return replace(self, heard=heard, ledger=ledger, counted=counted)

    def with_announced(self, new: Announced, names: tuple[str, ...], every: timedelta) -> Memory:
        """With a new announcement, without those that no device can hold any more."""
        both = replace(self, announced=(*self.announced, new))
        needed = {id(announced) for name in names for announced in both._reached(name, every)}
        kept = tuple(a for a in both.announced if a is new or id(a) in needed)
        return replace(both, announced=kept)


def _count(ledger: Ledger, together: Together) -> None:
    """Enter one interval: who was told, how wide, and what the forecast had beyond that."""
    hours = (together.end - together.start) / timedelta(hours=1)
    for known in (True, False):
        names = [n for n in together.ranges_mw if (n in together.available_mw) is known]
        if names:
            low, high = np.array([together.ranges_mw[n] for n in names]).T
            export, imports = np.maximum(high, 0.0), np.maximum(-low, 0.0)
            beyond = None
            if known:
                beyond = np.maximum(np.array([together.available_mw[n] for n in names]) - export, 0.0)
            ledger.add(names, export, imports, beyond, hours)
