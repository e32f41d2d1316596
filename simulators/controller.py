"""Controllers: asks each controller when it is due and turns decisions into numbered instructions."""

from __future__ import annotations

import asyncio
import time as wall_time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any

from controllers.contract import (
    Certificate,
    ControlError,
    Controller,
    Decision,
    Instruction,
    Observation,
    Origin,
    Span,
    memory_of,
    recall_of,
)
from controllers.forecast import Forecast
from controllers.region import Region
from controllers.regulators import standing
from controllers.site import Site
from simulators.clock import Duty, Tick
from simulators.decisions import decide
from simulators.devices import DeviceReport
from simulators.grid import Measured
from simulators.schedule import Schedule, Words, merge
from simulators.stage import Stage

Event = Callable[..., None]
Heard = Callable[[str, Observation, Decision | BaseException], None]
"""Told what a controller was asked, and what it decided or raised."""

NEVER = datetime.max.replace(tzinfo=UTC)

Read = Callable[[Tick, Measured, Sequence[DeviceReport]], tuple[Measured, Sequence[DeviceReport]]]
"""What meters show of a step."""


def _as_it_is(
    tick: Tick, measured: Measured, reports: Sequence[DeviceReport]
) -> tuple[Measured, Sequence[DeviceReport]]:
    return measured, reports


MOVED = "its default: what it was told before is for other positions of the regulators"


@dataclass(frozen=True, slots=True)
class Seat:
    """A controller and when it is asked."""

    name: str
    controller: Controller
    every_steps: int
    """asked in steps 0, m, 2m, ..."""
    valid_for: timedelta
    """how long its decisions stay valid once they act, unless they say what holds afterwards"""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one controller did in one step."""

    controller: str
    origin: Origin
    solve_ms: float | None
    """`None`: it was not asked"""
    decision: Decision | None
    """`None` when it had none"""
    valid_from: datetime
    valid_until: datetime
    withdrawn: Decision | None = None
    """what it said for other positions of the regulators, and counts no more"""


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


class ControllersSimulator(Stage):
    """mosaik simulator of one entity `controllers`.

    Inputs: `tick`, `measured` (grid), `forecast` (profiles), `report` (each device).
    Outputs: `turns` (one for each controller that was due, or whose word is withdrawn), `instructions` (by
    device), `positions` (by regulator: where each shall stand from the next step on). A regulator stays
    where the last word put it; of several controllers in one step the one named last counts, and each is
    told what those before it said.

    A controller that raises has no decision: what it said last stays in force until it expires or a
    regulator moves, then the devices obey their defaults. Nothing a controller raises or returns ends the
    run.

    Args:
        in_thread: whether controllers are asked outside the event loop's thread.
        heard: told of what each one was asked and has said.
        read: what the meters make of what is measured.
        begins: called in each step before the first one is asked.
    """

    def __init__(
        self,
        site: Site,
        seats: Sequence[Seat],
        epoch: int,
        in_thread: bool,
        event: Event,
        heard: Heard = lambda controller, observation, said: None,
        read: Read = _as_it_is,
        begins: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(
            "controllers",
            takes=["tick", "measured", "forecast", "report"],
            gives=["turns", "instructions", "positions"],
        )
        self._site, self._seats, self._event, self._heard = site, tuple(seats), event, heard
        self._in_thread, self._begins, self._read = in_thread, begins, read
        self._dispatch = Dispatch(site, [seat.name for seat in self._seats], epoch)
        self._degraded: set[str] = set()
        self.counts: Counter[str] = Counter()

    @property
    def told(self) -> Mapping[str, Instruction]:
        """What each device was told last."""
        return self._dispatch.told

    def memory(self) -> object:
        """What the next step needs, for `recall`: what was decided, and what controllers remember."""
        return {
            "dispatch": self._dispatch.memory(),
            "degraded": sorted(self._degraded),
            "controllers": {seat.name: memory_of(seat.controller) for seat in self._seats},
            "out": self.out["controllers"],
        }

    def recall(self, memory: Any) -> None:
        """Go on from what `memory` has returned."""
        self._dispatch.recall(memory["dispatch"])
        self._degraded = set(memory["degraded"])
        for seat in self._seats:
            recall_of(seat.controller, memory["controllers"].get(seat.name))
        self.out["controllers"] = memory["out"]

    def work(self, time: int, given: dict[str, list[Any]]) -> Awaitable[Any] | None:
        (tick,), (measured,), (forecast,) = given["tick"], given["measured"], given["forecast"]
        reports = given.get("report", [])
        if self._in_thread:
            # A solve must not block the event loop, which keeps the MQTT connection alive.
            return asyncio.to_thread(self.run, tick, measured, forecast, reports)
        self.run(tick, measured, forecast, reports)
        return None

    def run(
        self, tick: Tick, measured: Measured, forecast: Forecast, reports: Sequence[DeviceReport]
    ) -> Mapping[str, Instruction]:
        """One step: ask whoever is due, merge, number."""
        if self._begins is not None:
            self._begins()
        measured, reports = self._read(tick, measured, reports)
        due = [seat for seat in self._seats if tick.step % seat.every_steps == 0]
        acts_at = tick.time + self._site.every
        turns: list[Turn] = []
        touched: set[str] = set()
        for seat in due:
            turn = self._ask(seat, tick, acts_at, measured, forecast, reports)
            self._dispatch.take(turn)
            self._tell_degraded(tick, turn)
            turns.append(turn)
            if turn.decision is not None:
                touched |= turn.decision.regions.keys() | turn.decision.setpoints.keys()
                touched |= {name for interval in turn.decision.later for name in interval.regions}
        turns = self._without_outdated(turns, tick, acts_at)
        self.counts.update(f"origin-{turn.origin}" for turn in turns)
        instructions = {} if tick.duty is Duty.SKIP else self._merged(tick, acts_at, touched)
        self.out["controllers"] = {
            "turns": tuple(turns),
            "instructions": instructions,
            "positions": self._dispatch.positions,
        }
        return instructions

    def _tell_degraded(self, tick: Tick, turn: Turn) -> None:
        """An event when a controller's decisions begin to be degraded, with its reason if it gives one."""
        if turn.decision is None:
            return
        if turn.origin is not Origin.DEGRADED:
            self._degraded.discard(turn.controller)
        elif turn.controller not in self._degraded:
            self._degraded.add(turn.controller)
            reasons: dict[str, list[str]] = {}
            for target, certificate in turn.decision.certificates.items():
                if certificate.binding is not None:
                    reasons.setdefault(certificate.binding, []).append(target)
            said = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
            why = f"{turn.controller}: {said or 'its decision gives no reason'}"
            self._event(tick.time, "degraded", step=tick.step, controller=turn.controller, why=why)

    def _without_outdated(self, turns: Sequence[Turn], tick: Tick, acts_at: datetime) -> list[Turn]:
        """The turns, without what is for other positions now, whether said in this step or before."""
        by_name = {turn.controller: turn for turn in turns}
        for name, said in self._dispatch.withdraw(acts_at).items():
            now = self._dispatch.positions
            moved = [f"{r} from {was} to {now[r]}" for r, was in said.positions.items() if was != now[r]]
            why = f"what it said is for other positions of the regulators, which move: {', '.join(moved)}"
            self._event(tick.time, "withdrawn", step=tick.step, controller=name, why=why)
            turn = by_name.get(name) or Turn(name, Origin.DEFAULT, None, None, acts_at, acts_at)
            by_name[name] = replace(turn, origin=Origin.DEFAULT, decision=None, withdrawn=said.decision)
        return list(by_name.values())

    def _merged(self, tick: Tick, acts_at: datetime, touched: Set[str]) -> dict[str, Instruction]:
        told, conflicts = self._dispatch.instructions(tick.step + 1, tick.time, acts_at, touched)
        for device, why in conflicts.items():
            self.counts["conflict"] += 1
            self._event(tick.time, "conflict", step=tick.step, device=device, why=why)
        return told

    def _ask(
        self,
        seat: Seat,
        tick: Tick,
        acts_at: datetime,
        measured: Measured,
        forecast: Forecast,
        reports: Sequence[DeviceReport],
    ) -> Turn:
        until = acts_at + seat.valid_for
        quiet = Origin.HELD if self._dispatch.holds(seat.name, acts_at) else Origin.DEFAULT
        if tick.duty is not Duty.FULL:
            rule = Origin.SKIPPED if tick.duty is Duty.SKIP else quiet
            return Turn(seat.name, rule, None, None, acts_at, until)
        heard = [r for r in reports if r.silent_since is None]
        observation = Observation(
            time=tick.time,
            forecast=forecast,
            v_pu=MappingProxyType(measured.v_pu),  # the recorder reads the same one
            p_mw={**measured.load_p_mw, **measured.exchange_p_mw, **{r.device: r.p_mw for r in heard}},
            q_mvar={
                **measured.load_q_mvar,
                **measured.exchange_q_mvar,
                **{r.device: r.q_mvar for r in heard},
            },
            e_mwh={r.device: r.e_mwh for r in heard if r.e_mwh is not None},
            silent_since={r.device: r.silent_since for r in reports if r.silent_since is not None},
            regions=self._dispatch.regions(besides=seat.name, at=acts_at),
            positions=MappingProxyType(dict(self._dispatch.positions)),
            said=MappingProxyType(self._dispatch.said(besides=seat.name, at=acts_at)),
            connected=MappingProxyType(measured.connected),
        )
        started = wall_time.perf_counter()
        decision: Decision | None = None
        origin = quiet
        said: Decision | BaseException
        try:
            said = decision = decide(seat.controller, observation, self._site)
            origin = decision.origin
            until = decision.intervals(acts_at, until)[-1].end
            if decision.mistake is not None:
                self._raised(tick, seat, decision.mistake)
        except ControlError as error:
            said = error
            self.counts[error.outcome] += 1
            self._event(tick.time, error.outcome, step=tick.step, controller=seat.name, why=str(error))
        except BaseException as error:  # a third party's mistake, or its sys.exit, must not end a trial
            said = error
            self._raised(tick, seat, f"{type(error).__name__}: {error}")
        solve_ms = (wall_time.perf_counter() - started) * 1e3
        self._heard(seat.name, observation, said)
        return Turn(seat.name, origin, solve_ms, decision, acts_at, until)

    def _raised(self, tick: Tick, seat: Seat, why: str) -> None:
        self.counts["controller-raised"] += 1
        self._event(tick.time, "controller-raised", step=tick.step, controller=seat.name, why=why)
