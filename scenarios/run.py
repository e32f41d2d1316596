"""Run: one scenario from its file to its verdict.

A newcomer reads four files: a scenario, this one, one controller, and `controllers/contract.py`.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from pathlib import Path
from typing import Any, Protocol

from bridges.bus import Bus
from bridges.publisher import Publisher
from scenarios.build import Built, build
from scenarios.load import Draft
from scenarios.outlet import BusOutlet, open_broker, open_bus
from scenarios.run_directory import EVENTS, Events, RunDirectory
from scenarios.schema import MqttBusPart, Scenario
from scenarios.supervisor import Supervisor, processes_of, supervised
from scenarios.verdicts import Verdict, judge
from scenarios.world import World
from simulators.clock import Clock, ClockSimulator, StopRequested
from simulators.controller import ControllersSimulator
from simulators.devices import DevicesSimulator
from simulators.grid import GridSimulator
from simulators.journal import Journal
from simulators.outbox import OutboxSimulator
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


class CannotWrite(Exception):
    """There is no place for a run's folder."""


class Observer(Protocol):
    """Whoever watches a run."""

    def begin(self, built: Built, directory: Path) -> None: ...
    def say(self, line: str) -> None: ...
    def step(self, progress: Progress, counts: Counter[str]) -> None: ...
    def end(self) -> None: ...


@dataclass(frozen=True)
class Result:
    """What a run left."""

    directory: Path
    exit: Exit
    steps: int
    """recorded steps"""
    verdicts: tuple[Verdict, ...]
    why: str
    """how it ended, in a sentence"""


def make_clock(scenario: Scenario, **sources: Any) -> Clock:
    """The clock of a scenario; `sources` replace the sources of time."""
    part = scenario.clock
    return Clock(scenario.start, scenario.every, part.mode, part.factor, part.overrun, **sources)


async def run(
    draft: Draft,
    scenario: Scenario,
    *,
    root: Path,
    observer: Observer,
    clock: Clock | None = None,
    stop: asyncio.Event | None = None,
) -> Result:
    """Run a scenario and judge it.

    Args:
        draft, scenario: from `load` and `validate`.
        root: folder in which the run's own folder is made.
        clock: for tests with a faked time; by default the scenario's.
        stop: when set, the run ends after the step in progress.

    Returns:
        The run's folder, exit and verdicts; whatever happens, finished steps are in the folder.

    Raises:
        ScenarioInvalid: a grid or controller refuses what the scenario gives it.
        BusUnreachable, NoBroker: there is no bus to start with.
        NoProcess: a process of a controller does not start.
        CannotWrite: no folder can be made in `root`. Nothing is written in these cases.
    """
    built = build(draft, scenario)
    clock = clock or make_clock(scenario)
    stop = stop or asyncio.Event()
    epoch = 1
    try:
        directory = RunDirectory.create(root, scenario.name, datetime.now(UTC))
    except OSError as error:
        raise CannotWrite(f"cannot make a folder in {root}: {error.strerror or error}") from None
    with _signals(stop, directory.path):
        async with AsyncExitStack() as stack:
            name, patient, supervisor = directory.path.name, not clock.paced, None
            try:
                there = await stack.enter_async_context(open_broker(scenario.bus, observer.say))
                bus = await stack.enter_async_context(
                    open_bus(there, folder=draft.folder, run=name, epoch=epoch, patient=patient)
                )
                if processes_of(scenario) and isinstance(there, MqttBusPart):
                    processes = supervised(
                        draft, scenario, there, run=name, patient=patient, stop=stop, say=observer.say
                    )
                    supervisor = await stack.enter_async_context(processes)
            except BaseException:  # Ctrl-C too: a run that did not begin leaves nothing
                directory.path.rmdir()
                raise
            directory.begin(scenario=scenario.model_dump(mode="json"), sources=built.sources)
            observer.begin(built, directory.path)
            session = _Session(built, directory, bus, clock, stop, observer, epoch, supervisor)
            try:
                status, why = await session.go()
            finally:
                observer.end()
        return _judged(scenario, directory, session, status, why)


def _judged(scenario: Scenario, directory: RunDirectory, session: _Session, status: Exit, why: str) -> Result:
    """Judge what was recorded, and complete the manifest."""
    verdicts: tuple[Verdict, ...] = ()
    try:
        verdicts = tuple(judge(directory.path, scenario.expect))
        if status is Exit.HELD and not all(verdict.held for verdict in verdicts):
            status, why = Exit.FAILED, f"{why}; an expectation did not hold"
        directory.end(status=int(status), meaning=why, steps=session.steps, counts=session.counts())
    except OSError as error:
        status, why = Exit.BROKE, f"{why}; its verdict could not be written: {error}"
    return Result(directory.path, status, session.steps, verdicts, why)


class _Session:
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
    ) -> None:
        scenario, site = built.scenario, built.site
        self._scenario, self._bus, self._clock, self._stop = scenario, bus, clock, stop
        self._publisher = Publisher(bus, run=directory.path.name, area=scenario.name, epoch=epoch)
        self._events = Events(directory.path / EVENTS)
        self._journal = Journal(directory.path, seal_every=scenario.record.seal_every)
        event: Callable[..., None] = self._events.record
        self.grid = GridSimulator(
            built.engine,
            site.devices,
            site.loads,
            scenario.grid.on_divergence,
            event,
            site.regulators,
            site.microgrids,
        )
        every_s, names = scenario.every.total_seconds(), [seat.name for seat in built.seats]
        self.fleet = DevicesSimulator(site.devices, every_s, built.microgrid_twins(event), names)
        self._supervisor, seats = supervisor, built.seats
        if supervisor is not None:
            seats = supervisor.seated(seats, scenario, clock.period_s if clock.paced else None)
            supervisor.report_to(self._lost)
        # Whoever waits for another process must not hold the event loop, through which the answer comes.
        in_thread = clock.paced or supervisor is not None
        self.controllers = ControllersSimulator(
            site, seats, epoch, in_thread, event, None if supervisor is None else supervisor.step_begins
        )
        self.outbox = OutboxSimulator(BusOutlet(self._publisher, clock), clock, event)
        self.recorder = RecorderSimulator(
            self._journal,
            buses=built.engine.buses,
            branches=built.engine.branches,
            devices=tuple(site.devices),
            forecasts=scenario.record.forecasts,
            in_thread=clock.paced,
            on_step=lambda progress: observer.step(progress, bus.counts),
        )
        self.stages: dict[str, Stage] = {
            "clock": ClockSimulator(clock, stop, event=event),
            "profiles": ProfilesSimulator(built.driven, scenario.every, scenario.forecast.intervals),
            "fleet": self.fleet,
            "grid": self.grid,
            "controllers": self.controllers,
            "outbox": self.outbox,
            "recorder": self.recorder,
        }

    @property
    def steps(self) -> int:
        """Steps that are recorded."""
        return self.recorder.progress.step + 1

    def counts(self) -> dict[str, int]:
        """Everything that was counted, by name."""
        total: Counter[str] = Counter()
        for stage in (self.fleet, self.grid, self.controllers, self.outbox, self._clock):
            total.update(stage.counts)
        if self._supervisor is not None:
            total.update(self._supervisor.counts)
        total.update({f"bus-{name}": n for name, n in self._bus.counts.items()})
        return dict(sorted(total.items()))

    async def go(self) -> tuple[Exit, str]:
        """Run to the end, to a request to stop, or to a failure; then close everything."""
        planned = self._scenario.steps
        last = self._scenario.start
        try:
            with _still_memory(self._clock.paced):
                await World(self.stages).run(planned)
            result = Exit.HELD, f"all {planned} steps done"
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
            ("journal", self._journal.close),
            ("events", self._events.close),
        ):
            try:
                if (leaving := close()) is not None:
                    await leaving
            except Exception as error:  # one that cannot be closed must not keep the others open
                result = Exit.BROKE, f"{result[1]}; closing the {name} failed: {error}"
        return result

    def _lost(self, what: str, **details: Any) -> None:
        """An event of a controller's process, in the step that goes on."""
        step = self.steps
        self._events.record(self._scenario.start + step * self._scenario.every, what, step=step, **details)

    async def _leave(self) -> None:
        self._publisher.close()
        await self._publisher.flush(5.0)


@contextmanager
def _signals(stop: asyncio.Event, directory: Path) -> Iterator[None]:
    """Ctrl-C and a polite kill end the run after the step in progress; a second one ends it at once.

    Plain handlers, not the event loop's: a controller that does not return may hold the loop. What is
    recorded is on disk with every step, and the broker tells the devices that we have gone.
    """
    loop = asyncio.get_running_loop()

    def handle(number: int, frame: object) -> None:
        if asked:
            os.write(2, f"ended at once; {directory} keeps every finished step\n".encode())
            os._exit(130)
        asked.append(number)
        loop.call_soon_threadsafe(stop.set)

    asked: list[int] = []
    before = {}
    with suppress(ValueError):  # not the main thread: the handlers stay as they are
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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


def run_blocking(draft: Draft, scenario: Scenario, *, root: Path, observer: Observer) -> Result:
    """`run` for callers without an event loop.

    Raises:
        BusUnreachable, NoBroker, NoProcess, CannotWrite, ScenarioInvalid: see `run`.
    """
    return asyncio.run(run(draft, scenario, root=root, observer=observer))
