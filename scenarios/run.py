"""Run: one scenario from its file to its verdict.

A newcomer reads four files: a scenario, this one, one controller, and `controllers/contract.py`.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bridges.broker import EmbeddedBroker
from scenarios.build import Built, build
from scenarios.inputs import inputs_of
from scenarios.link import open_link
from scenarios.load import Draft
from scenarios.outlet import open_broker, open_bus
from scenarios.run_directory import RunDirectory, StillRunning
from scenarios.safe_default import check_defaults
from scenarios.schema import MqttBusPart, Scenario
from scenarios.session import Exit as Exit
from scenarios.session import Observer, Past, Session
from scenarios.supervisor import processes_of, supervised
from scenarios.verdicts import Verdict, judge
from scenarios.visits import visiting
from simulators.clock import Clock


class CannotWrite(Exception):
    """There is no place for a run's folder, or what belongs into it cannot be written."""


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
    name: str | None = None,
    clock: Clock | None = None,
    stop: asyncio.Event | None = None,
) -> Result:
    """Run a scenario and judge it.

    Args:
        draft, scenario: from `load` and `validate`.
        root: folder in which the run's own folder is made.
        name: of that folder and of the run's topics; made of the scenario's and the time if not given.
        clock: for tests with a faked time; by default the scenario's.
        stop: when set, the run ends after the step in progress.

    Returns:
        The run's folder, exit and verdicts; whatever happens, finished steps are in the folder.

    Raises:
        ScenarioInvalid: a grid or controller refuses what the scenario gives it.
        BusUnreachable, NoBroker: there is no bus to start with.
        NoProcess: a process of a controller does not start.
        CannotWrite: no folder can be made in `root`, or another process has it. Nothing is written in
            these cases.
    """
    built = build(draft, scenario)
    clock = clock or make_clock(scenario)
    try:
        if name is None:
            directory = RunDirectory.create(root, scenario.name, datetime.now(UTC))
        else:
            directory = RunDirectory.named(root, name)
    except ValueError as error:
        raise CannotWrite(f"--name {error}") from None
    except FileExistsError:
        raise CannotWrite(f"there is a {name} in {root} already; give another name") from None
    except OSError as error:
        raise CannotWrite(f"cannot make a folder in {root}: {error.strerror or error}") from None
    try:
        with directory.held():
            return await carry_out(directory, draft, built, observer=observer, clock=clock, stop=stop)
    except StillRunning as error:  # it has made the folder, and has not written anything yet
        raise CannotWrite(str(error)) from None


async def carry_out(
    directory: RunDirectory,
    draft: Draft,
    built: Built,
    *,
    observer: Observer,
    clock: Clock,
    stop: asyncio.Event | None = None,
    past: Past | None = None,
) -> Result:
    """Run what was built, in a folder that the caller holds, to its end, and judge it; see `run`.

    Args:
        past: of a run that was killed; `None`: it begins.

    Raises:
        BusUnreachable, NoBroker, NoProcess, CannotWrite: see `run`; the folder of a run that did not begin is
            removed.
    """
    scenario, epoch, stop = built.scenario, past.epoch if past else 1, stop or asyncio.Event()
    with _signals(stop, directory.path):
        async with AsyncExitStack() as stack:
            name, patient, supervisor = directory.path.name, not clock.paced, None
            try:
                own: list[EmbeddedBroker] = []
                there = await stack.enter_async_context(open_broker(scenario.bus, observer.say, own.append))
                link = await stack.enter_async_context(
                    open_link(built.faults, there, own[0] if own else None)
                )
                opening = open_bus(
                    there, folder=draft.folder, run=name, epoch=epoch, patient=patient, through=link.through
                )
                bus = await stack.enter_async_context(opening)
                if processes_of(scenario) and isinstance(there, MqttBusPart):
                    processes = supervised(
                        *(draft, scenario, there),
                        run=name,
                        patient=patient,
                        stop=stop,
                        say=observer.say,
                        away=lambda: link.broker_away,
                    )
                    supervisor = await stack.enter_async_context(processes)
                rounds = await stack.enter_async_context(visiting(scenario, clock))
            except BaseException:  # Ctrl-C too: a run that did not begin leaves nothing
                if past is None:
                    directory.path.rmdir()
                raise
            if past is None:
                safe, inputs = check_defaults(built), inputs_of(draft)
                with _writable(directory):
                    directory.begin(
                        scenario=scenario.model_dump(mode="json"),
                        sources=built.sources,
                        folder=draft.folder,
                        inputs=inputs,
                        default=asdict(safe),
                    )
            observer.begin(built, directory.path)
            with _writable(directory):
                session = Session(
                    built, directory, bus, clock, stop, observer, epoch, supervisor, past, rounds, link
                )
            if past is None and safe.word == "unsafe":
                session.note("default-unsafe", why=safe.why)
            try:
                status, why = await session.go()
            finally:
                observer.end()
        return judged(scenario, directory, status, why, steps=session.steps, counts=session.counts())


@contextmanager
def _writable(directory: RunDirectory) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        with suppress(OSError):  # if nothing is in it
            directory.path.rmdir()
        raise CannotWrite(f"{directory.path}: cannot be written: {error.strerror or error}") from None


def judged(
    scenario: Scenario,
    directory: RunDirectory,
    status: Exit,
    why: str,
    *,
    steps: int,
    counts: Mapping[str, float],
) -> Result:
    """Judge what was recorded, and complete the manifest."""
    verdicts: tuple[Verdict, ...] = ()
    try:
        verdicts = tuple(judge(directory.path, scenario.expect))
        if status is Exit.HELD and not all(verdict.held for verdict in verdicts):
            status, why = Exit.FAILED, f"{why}; an expectation did not hold"
        directory.end(status=int(status), meaning=why, steps=steps, counts=counts)
    except OSError as error:
        status, why = Exit.BROKE, f"{why}; its verdict could not be written: {error}"
    return Result(directory.path, status, steps, verdicts, why)


@contextmanager
def _signals(stop: asyncio.Event, directory: Path) -> Iterator[None]:
    """Ctrl-C and a polite kill end the run after the step in progress; a second one ends it at once.

    Plain handlers, not the event loop's: a controller that does not return may hold the loop. What is
    recorded is on disk with every step, and the broker tells the devices that we have gone.
    """
    loop = asyncio.get_running_loop()

    def handle(number: int, frame: object) -> None:
        if asked:
            say(f"ended at once; {directory} keeps every finished step")
            os._exit(130)
        asked.append(number)
        loop.call_soon_threadsafe(stop.set)
        say("ends after the step in progress; asked once more, it ends at once")

    def say(line: str) -> None:
        with suppress(OSError):  # nobody reads it
            os.write(2, f"{line}\n".encode())

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


def run_blocking(
    draft: Draft, scenario: Scenario, *, root: Path, observer: Observer, name: str | None = None
) -> Result:
    """`run` for callers without an event loop.

    Raises:
        BusUnreachable, NoBroker, NoProcess, CannotWrite, ScenarioInvalid: see `run`.
    """
    return asyncio.run(run(draft, scenario, root=root, observer=observer, name=name))
