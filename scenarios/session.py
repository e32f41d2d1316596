"""Session: the stages of one run, wired, carried out and closed; it begins, or goes on after a kill."""

from __future__ import annotations

import asyncio
import gc
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Protocol

from bridges.asking import Lost
from bridges.bus import Bus
from bridges.publisher import Publisher
from bridges.rounds import Rounds
from bridges.tapped import TappedBus
from controllers.contract import Decision, Late, Observation
from scenarios.build import Built
from scenarios.events import EVENTS, Events
from scenarios.expectations import DivergenceBelow
from scenarios.external import gateways, outside, over_mqtt, placed
from scenarios.inlet import BusInlet, Ways, believable
from scenarios.link import Link
from scenarios.outlet import BusOutlet
from scenarios.run_directory import RunDirectory
from scenarios.supervisor import Supervisor
from scenarios.traffic import Traffic
from scenarios.trouble import Trouble
from scenarios.world import World
from simulators.checkpoint import Checkpoints
from simulators.clock import Clock, ClockSimulator, StopRequested
from simulators.controller import ControllersSimulator
from simulators.devices import DevicesSimulator
from simulators.field import Field
from simulators.grid import GridSimulator
from simulators.journal import Journal, log
from simulators.outbox import OutboxSimulator, Published, Withheld
from simulators.profiles import ProfilesSimulator
from simulators.recorder import Progress, RecorderSimulator
from simulators.stage import Stage


class Exit(IntEnum):
    """How a run ended; the command's exit status."""

    HELD = 0
    FAILED = 1
    """an expectation did not hold"""
    BAD_INPUT = 2
    BROKE = 3
    STOPPED = 130
    """somebody ended it early; what was recorded is judged, but the verdict is not that of the whole run"""


class CannotRecall(Exception):
    """What a run kept is not what this one would keep."""


class Observer(Protocol):
    """Whoever watches a run."""

    def begin(self, built: Built, directory: Path) -> None: ...
    def say(self, line: str) -> None: ...
    def step(self, progress: Progress, counts: Counter[str]) -> None: ...
    def end(self) -> None: ...


@dataclass(frozen=True)
class Past:
    """What a run that was killed has behind it; see `scenarios.resume`."""

    epoch: int
    step: int
    """last one on disk; -1: none"""
    following: int
    """the step to go on with"""
    recorded: int
    """steps on disk; fewer than `step` says where nobody was there for some"""
    state: Any
    """as kept after `step`; `None` if there was none"""
    journal: Journal
    whole: bool
    """whether `step` was completed"""
    changed: tuple[str, ...]
    """what of the code is another one now"""


class Session:
    """The stages of one run and what has to be closed after it."""

    def __init__(
        self,
        built: Built,
        directory: RunDirectory,
        bus: Bus,
        clock: Clock,
        stop: asyncio.Event,
        observer: Observer,
        epoch: int,
        supervisor: Supervisor | None,
        past: Past | None,
        rounds: Rounds | None = None,
        link: Link | None = None,
    ) -> None:
        scenario, site = built.scenario, built.site
        self._past, self._deadlines = past, built.deadlines
        self._observer, self._done, self._late = observer, 0, 0
        """answers that hung on the clock, so far"""
        self._refused = False
        self._traffic: Traffic | None = None
        self._events = Events(directory.path / EVENTS)
        event: Callable[..., None] = self._events.record
        self._trouble: Trouble | None = None
        if built.faults:
            self._trouble = Trouble(built, clock, link or Link(), event)
            bus = self._trouble.around(bus)
        if scenario.record.bus if scenario.record.bus is not None else clock.paced:
            most = scenario.record.bus_mb * 1_000_000
            self._traffic = Traffic(directory.path, most_bytes=most, dropped=self._forgot)
            bus = TappedBus(bus, self._traffic.message)
        self._first = past.following if past else 0
        self._scenario, self._bus, self._clock, self._stop = scenario, bus, clock, stop
        self._publisher = Publisher(bus, run=directory.path.name, area=scenario.name, epoch=epoch)
        seal_every = scenario.record.seal_every
        self._journal = past.journal if past else Journal(directory.path, seal_every=seal_every)
        self._checkpoints, self._unkept = Checkpoints(directory.path), False
        trouble = self._trouble
        self.grid = GridSimulator(
            built.engine,
            site.devices,
            site.loads,
            scenario.grid.on_divergence,
            event,
            site.regulators,
            site.microgrids,
            trouble.outages if trouble else None,
        )
        every_s, names = scenario.every.total_seconds(), [seat.name for seat in built.seats]
        self._ways = Ways(
            gateways=gateways(scenario),
            direct=over_mqtt(scenario) - gateways(scenario).keys(),
            rounds=rounds,
            dry_run=frozenset(name for name, part in outside(scenario).items() if part.dry_run),
            held=lambda: self.field.held,
            most={name: believable(site.devices[name]) for name in outside(scenario)},
        )
        self._inlet = BusInlet(bus, self._publisher, clock, self._ways)
        apart_mw = min((e.below for e in scenario.expect if isinstance(e, DivergenceBelow)), default=None)
        self.field = Field(site.devices, placed(scenario), self._inlet, event, apart_mw)
        twins = built.microgrid_twins(event)
        self.fleet = DevicesSimulator(site.devices, every_s, twins, names, self.field, trouble)
        self._supervisor, seats = supervisor, built.seats
        if supervisor is not None:
            seats = supervisor.seated(seats, scenario, clock.period_s if clock.paced else None)
            supervisor.report_to(self._lost)
        # Whoever waits for another process must not hold the event loop, through which the answer comes.
        in_thread = clock.paced or supervisor is not None or bool(built.deadlines)
        read = {"read": trouble.meters.read} if trouble else {}
        begins = None if supervisor is None else supervisor.step_begins
        self.controllers = ControllersSimulator(
            site, seats, epoch, in_thread, event, self._asked, begins=begins, **read
        )
        self.recorder = RecorderSimulator(
            self._journal,
            buses=built.engine.buses,
            branches=built.engine.branches,
            devices=tuple(site.devices),
            forecasts=scenario.record.forecasts,
            in_thread=clock.paced,
            real=outside(scenario).keys(),
            keep=self._keep,
            on_step=self._over,
        )
        outlet = BusOutlet(self._publisher, clock, self._inlet, self._ways)
        self.outbox = OutboxSimulator(outlet, clock, event, self.recorder.sent)
        self.stages: dict[str, Stage] = {
            "clock": ClockSimulator(clock, stop, self._first, event),
            "profiles": ProfilesSimulator(built.driven, scenario.every, scenario.forecast.intervals),
            "fleet": self.fleet,
            "grid": self.grid,
            "controllers": self.controllers,
            "recorder": self.recorder,
            "outbox": self.outbox,
        }
        if past is not None and past.state is not None:
            self._recall(past, past.state)

    def _recall(self, past: Past, state: Any) -> None:
        try:
            self._recall_all(past, state)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise CannotRecall(
                f"what was kept after step {past.step} is of another version: {error}"
            ) from error

    def _recall_all(self, past: Past, state: Any) -> None:
        for name in ("fleet", "grid", "controllers"):
            getattr(self, name).recall(state[name])
        if self._trouble is not None and "trouble" in state:
            self._trouble.recall(state["trouble"])
        said = (row for batch in log(self._journal.path, "setpoints") for row in batch.to_pylist())
        self.recorder.recall(state["recorder"], state["tick"], said, whole=past.whole)

    def _asked(self, controller: str, observation: Observation, said: Decision | BaseException) -> None:
        if self._traffic is not None:
            late = sum(d.counts["abandoned"] + d.counts["late-at-once"] for d in self._deadlines)
            hangs = late > self._late or isinstance(said, Late | Lost)
            self._late = late
            self._traffic.asked(controller, observation, said, hangs)

    def _over(self, progress: Progress) -> None:
        """A step is over."""
        self._done += progress.step >= self._first
        if self._traffic is not None:
            self._traffic.flush(progress.step + 1)
        if not self._refused and (refused := self._bus.counts["refused"]):
            self._refused = True
            why = "whoever the broker takes this run for may not say or hear all of it; see bus.cert_file, "
            why += "its ACL"
            self.note("broker-refuses", messages=refused, why=why)
        self._observer.step(progress, self._bus.counts)

    def _forgot(self, file: str) -> None:
        self.note("traffic-dropped", file=file, why=f"{file} was the oldest; see record.bus_mb")

    def _keep(self, step: int) -> None:
        """Keep what the next step needs; called before a step is written."""
        if self._traffic is not None:  # once it is, nobody asks again what was asked in it
            self._traffic.write()
        state = {
            "tick": self.recorder.progress.tick,
            "wall0": self._clock.on_wall(self._clock.start) if self._clock.paced else None,
            "counts": self.counts(),
            **{name: getattr(self, name).memory() for name in ("fleet", "grid", "controllers", "recorder")},
        }
        if self._trouble is not None:
            state["trouble"] = self._trouble.memory()
        if self._unkept:
            state["controllers"]["controllers"] = {}
        try:
            self._checkpoints.write(step, state)
        except TypeError as error:
            if self._unkept:
                raise
            self._unkept = True
            self.note("memory-unkept", why=f"{error}. After a kill, controllers begin without memory")
            self._keep(step)

    @property
    def steps(self) -> int:
        """Steps that are recorded."""
        return self._done + (self._past.recorded if self._past else 0)

    def counts(self) -> dict[str, int]:
        """Everything that was counted, by name."""
        total: Counter[str] = Counter()
        if self._past is not None and self._past.state is not None:
            total.update(self._past.state["counts"])
        stages = (self.fleet, self.grid, self.controllers, self.outbox)
        named: list[tuple[str, Mapping[str, int]]] = [("", stage.counts) for stage in stages]
        named += [("", self._clock.counts), *(("", deadline.counts) for deadline in self._deadlines)]
        if self._supervisor is not None:
            named.append(("", self._supervisor.counts))
        if self._trouble is not None:
            named.append(("", self._trouble.counts))
        if self._ways.rounds is not None:
            named.append(("visits-", self._ways.rounds.counts))
        for prefix, counts in (*named, ("inlet-", self._inlet.counts), ("bus-", self._bus.counts)):
            # A copy, made in one go: the event loop's thread counts on meanwhile.
            total.update({prefix + name: n for name, n in dict(counts).items()})
        return dict(sorted(total.items()))

    async def go(self) -> tuple[Exit, str]:
        """Run to the end, to a request to stop, or to a failure; then close everything."""
        planned = self._scenario.steps
        last = self._scenario.start
        try:
            if self._past is not None:
                await self._again(self._past)
            if self._first < planned:
                with _still_memory(self._clock.paced):
                    out = self.controllers.out["controllers"] if self._past else {}
                    await World(self.stages, out).run(planned - self._first)
            result = Exit.HELD, f"all {planned} steps done"
            if self.steps < planned:
                result = Exit.STOPPED, f"{self.steps} of {planned} steps done; in the others nobody was there"
        except StopRequested:
            result = Exit.STOPPED, f"stopped on request after {self.steps} of {planned} steps"
        except Exception as error:  # whatever broke: the finished steps and the reason are kept
            result = Exit.BROKE, f"broke after {self.steps} of {planned} steps: {error}"
            if self.recorder.progress.tick is not None:
                last = self.recorder.progress.tick.time
            trace = traceback.format_exc().splitlines()
            with suppress(OSError):  # a full disk may be what broke
                self._events.record(last, "broke", why=f"{type(error).__name__}: {error}", trace=trace)
        for name, close in (
            ("bus", self._leave),
            ("traffic", self._leave_traffic),
            ("journal", self._finish),
            ("events", self._events.close),
        ):
            try:
                if (leaving := close()) is not None:
                    await leaving
            except Exception as error:  # one that cannot be closed must not keep the others open
                result = Exit.BROKE, f"{result[1]}; closing the {name} failed: {error}"
        return result

    async def _again(self, past: Past) -> None:
        """Say that the run goes on, and tell every device once more what it was told last, under the number
        that it had: the kill may have come before it left, or taken the broker's copies too."""
        gap = past.following - past.step - 1
        every, start = self._scenario.every, self._scenario.start
        self._events.record(
            start + past.following * every,
            "resumed",
            step=past.following,
            epoch=past.epoch,
            after_step=past.step,
            gap_steps=gap,
            gap_from=start + (past.step + 1) * every if gap else None,
            gap_until=start + past.following * every if gap else None,
            torn_bytes=past.journal.torn_bytes,
            changed=past.changed,
            why=f"epoch {past.epoch} goes on after step {past.step}"
            + (f"; in the {gap} steps after that nobody was there" if gap else ""),
        )
        if self._traffic is not None:
            self._traffic.step = past.following
            self._traffic.resumed(past.step)
        if past.state is None:
            return
        tick, speed = past.state["tick"], self._clock.factor if self._clock.paced else 1.0
        now = start + past.following * every if gap else tick.time
        last = past.state["controllers"]["out"]
        told = [i for i in self.controllers.told.values() if i.valid_until > now]
        for epoch in {instruction.epoch for instruction in told}:
            publisher = Publisher(self._bus, run=self._publisher.run, area=self._publisher.area, epoch=epoch)
            outlet = BusOutlet(publisher, self._clock, ways=self._ways)
            for instruction in told:
                if instruction.epoch == epoch:
                    # No message holds it, which was said when it was issued; or the device is told nothing.
                    with suppress(ValueError, Withheld):
                        outlet.send(instruction, (instruction.valid_until - now).total_seconds() / speed)
            outlet.send_kept()
        # What was counted was kept before the last step's words were sent.
        new = {turn.controller for turn in last["turns"]}
        older = [t for t in self.fleet.agreed.said if t.controller not in new and t.valid_until > now]
        self.outbox.announce(tick, older, speed)
        self.outbox.counts.clear()
        self.outbox.announce(tick, [t for t in last["turns"] if t.valid_until > now], speed)
        sent = tuple(last["instructions"].values())
        self.outbox.counts.update({"instructions-sent": len(sent), "instructions-repeated": len(told)})
        if not past.whole:
            self.recorder.sent(tick, Published(None, (), sent))

    def _lost(self, what: str, **details: Any) -> None:
        """An event of a controller's process, in the step that goes on."""
        self.note(what, **details)

    def note(self, what: str, **details: Any) -> None:
        """An event of the step in progress."""
        step = self.recorder.progress.step + 1
        self._events.record(self._scenario.start + step * self._scenario.every, what, step=step, **details)

    def _finish(self) -> None:
        """Make the tables; only then is what a killed run goes on from not needed any more."""
        self._journal.close()
        self._checkpoints.remove()

    def _leave_traffic(self) -> None:
        if self._traffic is not None:
            self._traffic.close()

    async def _leave(self) -> None:
        self._publisher.close()
        await self._publisher.flush(5.0)


@contextmanager
def _still_memory(paced: bool) -> Iterator[None]:
    """Keep what was built out of the garbage collector, whose full pass takes as long as twenty steps."""
    if paced:
        gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
