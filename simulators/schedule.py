"""Schedule: what several controllers said for one device, merged span by span.

Controllers speak for different lengths of time and change their word at different instants. Between two
such instants nothing changes, so the schedule of a device has one span for each pair of neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise

from controllers.contract import Certificate, Decision, Infeasible, Origin, Setpoint, Span
from controllers.devices import AXES
from controllers.region import Region

STILL = (0.0,) * len(AXES)


@dataclass(frozen=True, slots=True)
class Word:
    """What one controller says for one device and one span of time."""

    start: datetime
    end: datetime
    region: Region | None
    setpoint: Setpoint | None
    origin: Origin
    certificate: Certificate | None


@dataclass(frozen=True, slots=True)
class Words:
    """What one controller says for one device, in the order of time."""

    words: tuple[Word, ...]
    schedule: bool
    """whether it says what holds afterwards, and not one thing alone"""

    @classmethod
    def of(
        cls, decision: Decision, device: str, valid_from: datetime, valid_until: datetime, at: datetime
    ) -> Words | None:
        """What a decision says for a device from `at` on, without a gap; `None` if nothing."""
        words: list[Word] = []
        for i, interval in enumerate(decision.intervals(valid_from, valid_until)):
            region, certificate = interval.regions.get(device), interval.certificates.get(device)
            setpoint = None if i else decision.setpoints.get(device)
            if interval.end <= at or (region is None and setpoint is None):
                if words:
                    break  # what comes after a gap is for the next decision to say
                continue
            over = None if region is None else region.over(AXES)
            words.append(
                Word(max(interval.start, at), interval.end, over, setpoint, decision.origin, certificate)
            )
        return cls(tuple(words), decision.has_sequel) if words else None

    @property
    def end(self) -> datetime:
        return self.words[-1].end


@dataclass(frozen=True, slots=True)
class Schedule:
    """A device's schedule. It ends before the first span whose regions have no point in common."""

    spans: tuple[Span, ...]
    """without gaps; empty if the very first span has a conflict"""
    origin: Origin | None
    """which rule spoke in the first span; of several controllers the last one's"""
    conflict: str | None
    """why it ends there"""


def merge(said: Mapping[str, Words]) -> Schedule:
    """One device's schedule from what each controller says for it, in the scenario's order.

    Regions intersect, of several setpoints the last one counts. It holds as long as every controller's
    word does; where some say what holds afterwards, as long as every one of these does, and a word
    without a sequel then counts until its own end.
    """
    sequels = [words.end for words in said.values() if words.schedule]
    until = min(sequels or [words.end for words in said.values()])
    instants = sorted(
        {t for words in said.values() for w in words.words for t in (w.start, w.end) if t <= until}
    )
    spans: list[Span] = []
    origin: Origin | None = None
    for start, end in pairwise(instants):
        present = {
            name: word
            for name, words in said.items()
            for word in words.words
            if word.start <= start < word.end
        }
        if not present:
            break
        region, setpoint = _meeting([word.region for word in present.values()]), None
        for word in present.values():
            setpoint = word.setpoint or setpoint
        try:
            if region is not None:
                region.nearest(STILL)
        except Infeasible:
            since = f" from {start:%Y-%m-%d %H:%M:%S} UTC on" if spans else ""
            conflict = f"the regions of {' and '.join(present)} have no point in common{since}"
            return Schedule(tuple(spans), origin, conflict)
        if not spans:
            origin = next(reversed(present.values())).origin
        certificate = _together([w.certificate for w in present.values() if w.certificate is not None])
        spans.append(Span(start, end, region, setpoint, certificate))
    return Schedule(tuple(spans), origin, None)


def _together(certificates: Sequence[Certificate]) -> Certificate | None:
    """What limits regions that intersect. What was found of the last one that was checked holds for the
    intersection too, which lies inside it."""
    if not certificates:
        return None
    checked = next((c for c in reversed(certificates) if c.power_flows), certificates[-1])
    reasons = [c.binding for c in certificates if c.binding is not None]
    return replace(checked, binding="; ".join(reasons) or None)


def _meeting(regions: Sequence[Region | None]) -> Region | None:
    """What all regions have in common; `None` if nobody gives one."""
    both: Region | None = None
    for region in regions:
        if region is not None:
            both = region if both is None else both & region
    return both
