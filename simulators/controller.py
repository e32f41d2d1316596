"""Controllers: asks each controller when it is due and turns decisions into numbered instructions."""

from __future__ import annotations

import asyncio
import time as wall_time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any

from controllers.contract import (
    Certificate,
    ControlError,
    Controller,
    Decision,
    Instruction,
    Interval,
    Kind,
    Observation,
    Origin,
    Setpoint,
)
from controllers.devices import AXES
from controllers.forecast import Forecast
from controllers.region import Region
from controllers.regulators import standing
from controllers.site import Site
from simulators.clock import Duty, Tick
from simulators.devices import DeviceReport
from simulators.grid import Measured
from simulators.schedule import Words, merge
from simulators.stage import Stage

Event = Callable[..., None]

NEVER = datetime.max.replace(tzinfo=UTC)


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


@dataclass(frozen=True, slots=True)
class _Said:
    """A controller's last decision and its validity."""

    decision: Decision
    valid_from: datetime
    valid_until: datetime


class Dispatch:
    """Merges the controllers' valid decisions into one instruction a device.

    Regions for the same device intersect, span by span where a controller says what holds afterwards;
    of several setpoints the one of the controller named last in the scenario counts; the instruction is
    valid as long as all of them are, or as long as every decision with a sequel is. When one of them
    expires before its controller speaks again, the device is told anew what the others still say. A
    number is given out once per step, growing with the step. An instruction replaces all that the device
    was told before, its whole schedule.

    A device whose regions have no point in common is told nothing new: what it was told last stays
    in force until it expires, then its default. Where they have none later on, its schedule ends there.
    No controller outranks another.
    """

    def __init__(self, site: Site, controllers: Sequence[str], epoch: int) -> None:
        self._site, self._epoch = site, epoch
        self._said: dict[str, _Said | None] = dict.fromkeys(controllers)
        self._told_until: dict[str, datetime] = {}

    def take(self, turn: Turn) -> None:
        """Remember a new decision."""
        if turn.decision is not None:
            self._said[turn.controller] = _Said(turn.decision, turn.valid_from, turn.valid_until)

    def _valid(self, at: datetime) -> dict[str, _Said]:
        """What each controller said last, where that is still valid at `at`."""
        return {name: said for name, said in self._said.items() if said and at < said.valid_until}

    def holds(self, controller: str, at: datetime) -> bool:
        """Whether the controller's last decision is still valid at `at`."""
        return controller in self._valid(at)

    def regions(self, besides: str, at: datetime) -> dict[str, Region]:
        """What the other controllers said last and is still valid at `at`, by target."""
        found: dict[str, Region] = {}
        for name, said in self._valid(at).items():
            if name != besides:
                begun = [i.regions for i in said.decision.later if i.start <= at]
                for target, region in (begun[-1] if begun else said.decision.regions).items():
                    found[target] = found[target] & region if target in found else region
        return found

    def instructions(
        self, seq: int, issued_at: datetime, valid_from: datetime, touched: Set[str]
    ) -> tuple[dict[str, Instruction], dict[str, str]]:
        """Tell each device in `touched`, or whose last instruction has run out, what holds now.

        Returns:
            instructions by device, and by device why it gets none or a shorter one: its regions do not meet.
        """
        told, conflicts = {}, {}
        valid = self._valid(valid_from)
        for name, device in self._site.devices.items():
            if name not in touched and valid_from < self._told_until.get(name, NEVER):
                continue
            said = {
                controller: words
                for controller, one in valid.items()
                if (words := Words.of(one.decision, name, one.valid_from, one.valid_until, valid_from))
            }
            if not said:
                continue
            schedule = merge(said)
            if schedule.conflict is not None:
                conflicts[name] = schedule.conflict
            if not schedule.spans:
                continue
            first, until = schedule.spans[0], schedule.spans[-1].end
            self._told_until[name] = until
            told[name] = Instruction(
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
                certificate=schedule.certificate,
                later=schedule.spans[1:],
            )
        return told, conflicts


class ControllersSimulator(Stage):
    """mosaik simulator of one entity `controllers`.

    Inputs: `tick`, `measured` (grid), `forecast` (profiles), `report` (each device).
    Outputs: `turns` (one for each controller that was due), `instructions` (by device), `positions` (by
    regulator: where each shall stand from the next step on). A regulator stays where the last word put it;
    of several controllers in one step the one named last counts, and each is told what those before it said.

    A controller that raises has no decision: what it said last stays in force until it expires,
    then the devices obey their defaults. Nothing a controller raises or returns ends the run.
    """

    def __init__(
        self,
        site: Site,
        seats: Sequence[Seat],
        epoch: int,
        in_thread: bool,
        event: Event,
    ) -> None:
        super().__init__(
            "controllers",
            takes=["tick", "measured", "forecast", "report"],
            gives=["turns", "instructions", "positions"],
        )
        self._site, self._seats, self._event = site, tuple(seats), event
        self._in_thread = in_thread
        self._positions = standing(site.regulators, {})
        self._dispatch = Dispatch(site, [seat.name for seat in self._seats], epoch)
        self.counts: Counter[str] = Counter()

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
        due = [seat for seat in self._seats if tick.step % seat.every_steps == 0]
        acts_at = tick.time + self._site.every
        turns: list[Turn] = []
        touched: set[str] = set()
        for seat in due:
            turn = self._ask(seat, tick, acts_at, measured, forecast, reports)
            self._dispatch.take(turn)
            turns.append(turn)
            self.counts[f"origin-{turn.origin}"] += 1
            if turn.decision is not None:
                said = {**self._positions, **turn.decision.positions}
                self._positions = standing(self._site.regulators, said)
                touched |= turn.decision.regions.keys() | turn.decision.setpoints.keys()
                touched |= {name for interval in turn.decision.later for name in interval.regions}
        instructions = {} if tick.duty is Duty.SKIP else self._merged(tick, acts_at, touched)
        self.out["controllers"] = {
            "turns": tuple(turns),
            "instructions": instructions,
            "positions": self._positions,
        }
        return instructions

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
        observation = Observation(
            time=tick.time,
            forecast=forecast,
            v_pu=MappingProxyType(measured.v_pu),  # the recorder reads the same one
            p_mw={**measured.load_p_mw, **{r.device: r.p_mw for r in reports}},
            q_mvar={**measured.load_q_mvar, **{r.device: r.q_mvar for r in reports}},
            e_mwh={r.device: r.e_mwh for r in reports if r.e_mwh is not None},
            regions=self._dispatch.regions(besides=seat.name, at=acts_at),
            positions=MappingProxyType(self._positions),
        )
        started = wall_time.perf_counter()
        decision: Decision | None = None
        origin = quiet
        try:
            decision = seat.controller.step(observation)
            self._check(decision, observation)
            origin = decision.origin
            until = decision.intervals(acts_at, until)[-1].end
        except ControlError as error:
            decision = None
            self.counts[error.outcome] += 1
            self._event(tick.time, error.outcome, step=tick.step, controller=seat.name, why=str(error))
        except BaseException as error:  # a third party's mistake, or its sys.exit, must not end a trial
            decision = None
            self.counts["controller-raised"] += 1
            self._event(
                tick.time,
                "controller-raised",
                step=tick.step,
                controller=seat.name,
                why=f"{type(error).__name__}: {error}",
            )
        solve_ms = (wall_time.perf_counter() - started) * 1e3
        return Turn(seat.name, origin, solve_ms, decision, acts_at, until)

    def _check(self, decision: Decision, observation: Observation) -> None:
        """Hold a decision to the contract before anybody acts on it."""
        if isinstance(decision, Coroutine):
            decision.close()
            raise TypeError("step() is a coroutine function (async def); make it a plain one")
        if not isinstance(decision, Decision):
            raise TypeError(f"step() returned {type(decision).__name__}, not a Decision")
        if decision.time != observation.time:
            raise ValueError(f"the decision is dated {decision.time}, asked was {observation.time}")
        if not isinstance(decision.origin, Origin):
            raise TypeError(f"the decision's origin is {decision.origin!r}, not an Origin")
        if not isinstance(decision.kind, Kind):
            raise TypeError(f"the decision's kind is {decision.kind!r}, not a Kind")
        try:
            standing(self._site.regulators, decision.positions)
        except KeyError as error:
            raise ValueError(f"the decision moves what the site does not have: {error.args[0]}") from None
        devices = self._site.devices
        for name, setpoint in decision.setpoints.items():
            if name not in devices:
                raise ValueError(f"a setpoint for {name!r}, which is no device of the site")
            if not isinstance(setpoint, Setpoint):
                raise TypeError(f"the setpoint for {name!r} is a {type(setpoint).__name__}, not a Setpoint")
        _check_order(decision, observation.time + self._site.every)
        everything: tuple[Decision | Interval, ...] = (decision, *decision.later)
        for said in everything:
            self._check_regions(said, decision.kind, observation)

    def _check_regions(self, said: Decision | Interval, kind: Kind, observation: Observation) -> None:
        devices = self._site.devices
        for target, certificate in said.certificates.items():
            if not isinstance(certificate, Certificate):
                raise TypeError(f"the certificate for {target!r} is a {type(certificate).__name__}")
        for target, region in said.regions.items():
            if not isinstance(region, Region):
                raise TypeError(f"the region for {target!r} is a {type(region).__name__}, not a Region")
            if target not in devices and kind is Kind.ENVELOPE:
                raise ValueError(f"an envelope for {target!r}, which is no device of the site")
            heard = observation.regions.get(target)
            axes = AXES if target in devices else region.axes if heard is None else heard.axes
            if set(region.axes) != set(axes):
                raise ValueError(f"the region for {target!r} is over {region.axes}, needed is {axes}")


def _check_order(decision: Decision, acts_at: datetime) -> None:
    """What a decision says for later follows without gaps."""
    for interval in decision.later:
        if not isinstance(interval, Interval):
            raise TypeError(f"what holds later is a {type(interval).__name__}, not an Interval")
    if not decision.has_sequel:
        return
    begins = decision.until or decision.later[0].start
    if not acts_at < begins:
        raise ValueError(f"what it says from {acts_at} on ends {begins}")
    for interval in decision.later:
        if interval.start != begins or not interval.start < interval.end:
            raise ValueError(
                f"what it says from {interval.start} until {interval.end} should begin {begins}, where what "
                "is before it ends, and last"
            )
        begins = interval.end
