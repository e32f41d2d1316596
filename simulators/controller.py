"""Controllers: asks each controller when it is due and turns decisions into numbered instructions."""

from __future__ import annotations

import asyncio
import time as wall_time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from controllers.contract import (
    ControlError,
    Controller,
    Decision,
    Infeasible,
    Instruction,
    Observation,
    Origin,
)
from controllers.forecast import Forecast
from controllers.region import Region
from controllers.site import Site
from simulators.clock import Duty, Tick
from simulators.devices import DeviceReport
from simulators.grid import Measured
from simulators.stage import Stage

Event = Callable[..., None]


@dataclass(frozen=True, slots=True)
class Seat:
    """A controller and when it is asked."""

    name: str
    controller: Controller
    every_steps: int
    """asked in steps 0, m, 2m, ..."""
    valid_for: timedelta
    """how long its decisions stay valid once they act"""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one controller did in one step."""

    controller: str
    origin: Origin
    solve_ms: float
    decision: Decision | None
    """`None` when it had none"""
    valid_from: datetime
    valid_until: datetime


@dataclass(frozen=True, slots=True)
class _Said:
    """A controller's last decision and its validity."""

    decision: Decision
    valid_until: datetime


class Dispatch:
    """Merges the controllers' valid decisions into one instruction a device.

    Regions for the same device intersect; of several setpoints the one of the controller named
    last in the scenario counts. A number is given out once per step, growing with the step.
    """

    def __init__(self, site: Site, epoch: int) -> None:
        self._site, self._epoch = site, epoch
        self._said: dict[str, _Said] = {}

    def take(self, turn: Turn) -> None:
        """Remember a new decision."""
        if turn.decision is not None:
            self._said[turn.controller] = _Said(turn.decision, turn.valid_until)

    def holds(self, controller: str, at: datetime) -> bool:
        """Whether the controller's last decision is still valid at `at`."""
        said = self._said.get(controller)
        return said is not None and at < said.valid_until

    def regions(self, besides: str) -> dict[str, Region]:
        """What the other controllers said last, by target."""
        found: dict[str, Region] = {}
        for name, said in self._said.items():
            if name != besides:
                for target, region in said.decision.regions.items():
                    found[target] = found[target] & region if target in found else region
        return found

    def instructions(
        self, seq: int, issued_at: datetime, valid_from: datetime, touched: set[str]
    ) -> dict[str, Instruction]:
        """An instruction for each device in `touched`, from every decision valid at `valid_from`."""
        result = {}
        for name in self._site.devices:
            if name not in touched:
                continue
            region, setpoint, until = None, None, None
            for said in self._said.values():
                if valid_from >= said.valid_until:
                    continue
                new = said.decision.regions.get(name)
                target = said.decision.setpoints.get(name)
                if new is None and target is None:
                    continue
                region = region & new if region is not None and new is not None else new or region
                setpoint = target or setpoint
                until = said.valid_until if until is None else min(until, said.valid_until)
            if until is not None:
                result[name] = Instruction(
                    device=name,
                    epoch=self._epoch,
                    seq=seq,
                    issued_at=issued_at,
                    valid_from=valid_from,
                    valid_until=until,
                    region=region,
                    setpoint=setpoint,
                    fallback=self._site.devices[name].default,
                )
        return result


class ControllersSimulator(Stage):
    """mosaik simulator of one entity `controllers`.

    Inputs: `tick`, `measured` (grid), `forecast` (profiles), `report` (each device).
    Outputs: `turns` (one for each controller that was due), `instructions` (by device).

    A controller that raises has no decision: what it said last stays in force until it expires,
    then the devices obey their defaults. Nothing a controller raises ends the run.
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
            gives=["turns", "instructions"],
        )
        self._site, self._seats, self._event = site, tuple(seats), event
        self._in_thread = in_thread
        self._dispatch = Dispatch(site, epoch)
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
                touched |= turn.decision.regions.keys() | turn.decision.setpoints.keys()
        instructions = self._merged(tick, acts_at, touched) if touched else {}
        self.out["controllers"] = {"turns": tuple(turns), "instructions": instructions}
        return instructions

    def _merged(self, tick: Tick, acts_at: datetime, touched: set[str]) -> dict[str, Instruction]:
        try:
            return self._dispatch.instructions(tick.step + 1, tick.time, acts_at, touched)
        except Infeasible as error:
            self.counts["conflict"] += 1
            self._event(tick.time, "conflict", step=tick.step, why=str(error))
            return {}

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
            return Turn(seat.name, rule, 0.0, None, acts_at, until)
        observation = Observation(
            time=tick.time,
            forecast=forecast,
            v_pu=measured.v_pu,
            p_mw={**measured.load_p_mw, **{r.device: r.p_mw for r in reports}},
            q_mvar={**measured.load_q_mvar, **{r.device: r.q_mvar for r in reports}},
            e_mwh={r.device: r.e_mwh for r in reports if r.e_mwh is not None},
            regions=self._dispatch.regions(besides=seat.name),
        )
        started = wall_time.perf_counter()
        decision: Decision | None = None
        origin = quiet
        try:
            decision = seat.controller.step(observation)
            self._check(decision, observation)
            origin = decision.origin
        except ControlError as error:
            decision = None
            self.counts[error.outcome] += 1
            self._event(tick.time, error.outcome, step=tick.step, controller=seat.name, why=str(error))
        except Exception as error:  # a third party's mistake must not end a trial with real devices
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
        if not isinstance(decision, Decision):
            raise TypeError(f"step() returned {type(decision).__name__}, not a Decision")
        if decision.time != observation.time:
            raise ValueError(f"the decision is dated {decision.time}, asked was {observation.time}")
        unknown = decision.setpoints.keys() - self._site.devices.keys()
        if unknown:
            raise ValueError(f"setpoints for {sorted(unknown)}, which the site does not have")
