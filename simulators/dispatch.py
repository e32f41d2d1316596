"""Dispatch: what controllers have said and still counts, merged into one instruction a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from controllers.contract import Certificate, Decision, Instruction, Origin, Span
from controllers.region import Region
from controllers.regulators import standing
from controllers.site import Site
from simulators.schedule import Schedule, Words, merge
from simulators.seats import Turn

NEVER = datetime.max.replace(tzinfo=UTC)
MOVED = "its default: what it was told before is for other positions of the regulators"


@dataclass(frozen=True, slots=True)
class _Said:
    """A controller's last decision and its validity."""

    decision: Decision
    valid_from: datetime
    valid_until: datetime
    positions: Mapping[str, int]
    """where the regulators stand when it acts, as far as the controller knew"""

    def fits(self, positions: Mapping[str, int]) -> bool:
        """Whether what it says to devices was made for these positions."""
        said = self.decision
        return self.positions == positions or not (said.regions or said.setpoints or said.later)


class Dispatch:
    """Merges the controllers' valid decisions into one instruction a device.

    Regions for the same device intersect, span by span where a controller says what holds afterwards;
    of several setpoints the one of the controller named last in the scenario counts; the instruction is
    valid as long as all of them are, or as long as every decision with a sequel is. When one of them
    expires before its controller speaks again, the device is told anew what the others still say. A
    number is given out once per step, growing with the step. An instruction replaces all that the device
    was told before, its whole schedule.

    What is said to devices counts only where the regulators stand as it was made for. A device of which
    nothing else is said is told to obey its default, for as long as what it was told before would hold.

    A device whose regions have no point in common is told nothing new: what it was told last stays
    in force until it expires, then its default. Where they have none later on, its schedule ends there.
    No controller outranks another.
    """

    def __init__(self, site: Site, controllers: Sequence[str], epoch: int) -> None:
        self._site, self._epoch = site, epoch
        self._said: dict[str, _Said | None] = dict.fromkeys(controllers)
        self._told_until: dict[str, datetime] = {}
        self.told: dict[str, Instruction] = {}
        """what each device was told last"""
        self._told_for: dict[str, Mapping[str, int] | None] = {}
        self.positions: Mapping[str, int] = standing(site.regulators, {})
        """where each regulator shall stand from the next step on"""

    def take(self, turn: Turn) -> None:
        """Remember a new decision, and where it puts the regulators."""
        if turn.decision is not None:
            said = {**self.positions, **turn.decision.positions}
            self.positions = standing(self._site.regulators, said)
            self._said[turn.controller] = _Said(
                turn.decision, turn.valid_from, turn.valid_until, self.positions
            )

    def withdraw(self, at: datetime) -> dict[str, _Said]:
        """Forget what would be valid at `at`, but is for other positions; what that is, by controller."""
        outdated = {n: s for n, s in self._unexpired(at).items() if not s.fits(self.positions)}
        self._said.update(dict.fromkeys(outdated))
        return outdated

    def _unexpired(self, at: datetime) -> dict[str, _Said]:
        return {name: said for name, said in self._said.items() if said and at < said.valid_until}

    def _valid(self, at: datetime) -> dict[str, _Said]:
        """What each controller said last, where that still counts at `at`."""
        return {name: said for name, said in self._unexpired(at).items() if said.fits(self.positions)}

    def holds(self, controller: str, at: datetime) -> bool:
        """Whether the controller's last decision is still valid at `at`."""
        return controller in self._valid(at)

    def said(self, besides: str, at: datetime) -> dict[str, Decision]:
        """What each other controller decided last and is still valid at `at`, in the scenario's order."""
        return {name: said.decision for name, said in self._valid(at).items() if name != besides}

    def regions(self, besides: str, at: datetime) -> dict[str, Region]:
        """What the other controllers said last and is still valid at `at`, by target."""
        found: dict[str, Region] = {}
        for name, said in self._valid(at).items():
            if name != besides:
                begun = [i.regions for i in said.decision.later if i.start <= at]
                for target, region in (begun[-1] if begun else said.decision.regions).items():
                    found[target] = found[target] & region if target in found else region
        return found

    def memory(self) -> object:
        """What is in force and who was told what, for `recall`."""
        return self._said, self._told_until, self._told_for, self.positions, self.told

    def recall(self, memory: Any) -> None:
        """Go on from what `memory` has returned."""
        said, self._told_until, self._told_for, self.positions, self.told = memory
        self._said.update(said)

    def instructions(
        self, seq: int, issued_at: datetime, valid_from: datetime, touched: Set[str]
    ) -> tuple[dict[str, Instruction], dict[str, str]]:
        """Tell each device in `touched`, or whose last instruction has run out or is for other positions,
        what holds now.

        Returns:
            instructions by device, and by device why it gets none or a shorter one: its regions do not meet.
        """
        told, conflicts = {}, {}
        valid = self._valid(valid_from)
        for name, device in self._site.devices.items():
            until = self._told_until.get(name, NEVER)
            moved = valid_from < until and self._told_for.get(name) not in (None, self.positions)
            if name not in touched and not moved and valid_from < until:
                continue
            said = {
                controller: words
                for controller, one in valid.items()
                if (words := Words.of(one.decision, name, one.valid_from, one.valid_until, valid_from))
            }
            schedule = merge(said) if said else Schedule((), None, None)
            if schedule.conflict is not None:
                conflicts[name] = schedule.conflict
            defaulted = moved and not schedule.spans
            if defaulted:
                default = Span(valid_from, until, device.default, certificate=Certificate(binding=MOVED))
                schedule = Schedule((default,), Origin.DEFAULT, None)
            if not schedule.spans:
                continue
            first, until = schedule.spans[0], schedule.spans[-1].end
            self._told_until[name] = until
            self._told_for[name] = None if defaulted else self.positions
            self.told[name] = told[name] = Instruction(
                device=name,
                epoch=self._epoch,
                seq=seq,
                issued_at=issued_at,
                valid_from=first.start,
                valid_until=until,
                region=first.region,
                setpoint=first.setpoint,
                fallback=device.default,
                origin=schedule.origin,
                certificate=first.certificate,
                later=schedule.spans[1:],
            )
        return told, conflicts
