"""Agreed: what controllers have said of microgrids, as far as it is in force."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import reduce
from typing import TYPE_CHECKING, Any

from controllers.contract import Decision, Kind
from controllers.region import Region

if TYPE_CHECKING:
    from simulators.seats import Turn


class Agreed:
    """The newest word of each controller, from when it begins to act until it ends.

    Args:
        controllers: their names in the scenario's order; of several plans the last one's counts, as of
            several setpoints.
    """

    def __init__(self, controllers: Sequence[str] = ()) -> None:
        self._said: dict[str, Turn | None] = dict.fromkeys(controllers)

    def take(self, turns: Sequence[Turn]) -> None:
        """Hear a step's turns, which act from the next step on."""
        for turn in turns:
            if turn.decision is not None:
                self._said[turn.controller] = turn
            elif turn.withdrawn is not None:
                self._said[turn.controller] = None

    @property
    def said(self) -> Sequence[Turn]:
        """The newest word of each controller that has said anything."""
        return [turn for turn in self._said.values() if turn is not None]

    def memory(self) -> object:
        """Each controller's newest word, for `recall`."""
        return dict(self._said)

    def recall(self, memory: Any) -> None:
        """Go on from what `memory` has returned."""
        self._said.update(memory)

    def capability(self, microgrid: str, kind: Kind, at: datetime) -> Region | None:
        """What a microgrid may exchange at an instant by all regions of a kind together; `None`: nobody
        said."""
        regions = [
            part.regions[microgrid]
            for turn, decision in self._in_force(at)
            if decision.kind is kind
            for part in decision.intervals(turn.valid_from, turn.valid_until)
            if part.start <= at < part.end and microgrid in part.regions
        ]
        return reduce(Region.__and__, regions) if regions else None

    def planned(self, microgrid: str, at: datetime) -> float | None:
        """What a microgrid means to exchange at an instant [MW]."""
        found = None
        for _, decision in self._in_force(at):
            plan = decision.plan
            if plan is not None and microgrid in plan.names and at in plan.times:
                found = float(plan.mean[plan.times.index(at), plan.names.index(microgrid)]) + 0.0
        return found

    def _in_force(self, at: datetime) -> list[tuple[Turn, Decision]]:
        return [
            (turn, turn.decision)
            for turn in self._said.values()
            if turn is not None and turn.decision is not None and turn.valid_from <= at < turn.valid_until
        ]
