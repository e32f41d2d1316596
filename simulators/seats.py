"""Seats: who is asked, when and how; and what each did in a step."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from controllers.contract import Controller, Decision, Origin
from controllers.roles import Sight


@dataclass(frozen=True, slots=True)
class Terms:
    """How long a leader may talk with its followers in one step."""

    most_turns: int = 500
    """how often it may ask them"""
    within_s: float | None = None
    """of the wall clock, for all turns together, from when the step's controllers begin to be asked; then it
    has to decide; `None`: no limit"""


@dataclass(frozen=True, slots=True)
class Seat:
    """A controller and when it is asked."""

    name: str
    controller: Controller
    every_steps: int
    """asked in steps 0, m, 2m, ...; a follower when its leader asks it"""
    valid_for: timedelta
    """how long its decisions stay valid once they act, unless they say what holds afterwards"""
    followers: tuple[str, ...] = ()
    """whom it leads"""
    leader: str | None = None
    """who leads it; `None`: nobody"""
    sight: Sight | None = None
    """what it is shown; `None`: everything"""
    terms: Terms = Terms()
    """of a leader"""
    process: str | None = None
    """in which it computes; `None`: in that of the run"""

    @property
    def listeners(self) -> frozenset[str]:
        """Who hears its words."""
        return frozenset(self.followers if self.leader is None else (self.leader,))


@dataclass(frozen=True, slots=True)
class Turn:
    """What one controller did in one step."""

    controller: str
    origin: Origin
    solve_ms: float | None
    """`None`: it was not asked; of several times in a step the sum"""
    decision: Decision | None
    """`None` when it had none"""
    valid_from: datetime
    valid_until: datetime
    withdrawn: Decision | None = None
    """what it said for other positions of the regulators, and counts no more"""
