"""Supervisor: controllers in processes of their own, from the run's side.

Each is started with the run's scenario, watched, started again when it ends by itself, and ended with the
run. In its seat sits a `StandIn`, which sends it the observation and waits for the decision.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from bridges import conversation
from bridges.asking import Asking
from controllers.contract import Decision, Late, Observation
from scenarios.load import Draft
from scenarios.outlet import connect
from scenarios.remote import Task
from scenarios.schema import HERE, MqttBusPart, Scenario
from simulators.seats import Seat

RESTARTS = 3
"""How often a process is started again in a run."""
START_S = 120.0
"""Longest that the run waits for its processes before the first step."""
STOP_S = 3.0
"""How long a process may take to leave before it is killed."""
POLL_S = 0.02
STUCK_AFTER = 3
"""Asks in a row that a process does not answer in time, nor later, before it is killed."""
FAST_DEADLINE_S = 30.0
"""Deadline of a decision where the clock sets none."""
ASKED_SHARE = 0.75
"""Part of a step of the wall clock after which no answer is waited for, if no deadline is given: the rest is
for instructions, the power flow and the tables."""


class NoProcess(Exception):
    """A process of a controller cannot be started."""


def processes_of(scenario: Scenario) -> dict[str, tuple[str, ...]]:
    """Names of the controllers in each process beside the run's own."""
    found: dict[str, tuple[str, ...]] = {}
    for part in scenario.controllers:
        if part.process != HERE:
            found[part.process_name] = (*found.get(part.process_name, ()), part.name)
    return found


@dataclass(frozen=True)
class StandIn:
    """A controller that asks the one in the other process; not from the event loop's thread."""

    name: str
    process: str
    deadline_s: float
    """since `begun`; of each ask for itself where that is `None`"""
    asking: Asking
    loop: asyncio.AbstractEventLoop
    late: Callable[[str], None] = lambda process: None
    """told of each ask of a process that was not answered in time, in the event loop's thread"""
    begun: Callable[[], float] | None = None
    """when the run began to ask the controllers of this step [s], by the monotonic clock"""
    away: Callable[[], bool] = lambda: False
    """whether a fault of the scenario has taken the broker away"""

    def step(self, observation: Observation) -> Decision:
        """The decision of the controller that it stands in for.

        Raises:
            Late, Lost: there is none; see `bridges.asking`. At once where no clock goes on while an answer is
                waited for that cannot come.
            ControlError, Exception: what the controller has raised.
        """
        left_s = self.deadline_s
        if self.begun is not None:
            left_s -= time.monotonic() - self.begun()
        return self._asked(observation, left_s)

    def step_within(self, observation: Observation, within_s: float) -> Decision:
        """The decision in a turn of a conversation: its own deadline counts for each turn anew.

        Raises:
            Late, Lost, ControlError, Exception: see `step`.
        """
        return self._asked(observation, min(self.deadline_s, within_s))

    def _asked(self, observation: Observation, left_s: float) -> Decision:
        if self.begun is None and self.away():
            raise Late(f"process {self.process} cannot be asked: a fault has taken the broker away")
        message = conversation.ask(self.name, observation)
        asked = self.asking.ask(self.process, message, left_s)
        try:
            reply = asyncio.run_coroutine_threadsafe(asked, self.loop).result()
        except Late:
            if left_s > 0:
                self.loop.call_soon_threadsafe(self.late, self.process)
            raise
        return conversation.answered(reply, self.name)


class Supervisor:
    """Starts the processes of a scenario and keeps them running; see `supervised`.

    Args:
        task: of a process and its controllers, for its first life.
        asking: the run's end of the conversation with them.
        say: takes lines for the user: what the processes print.
        away: whether a fault of the scenario has taken the broker away.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        asking: Asking,
        say: Callable[[str], None],
        away: Callable[[], bool] = lambda: False,
    ) -> None:
        self._tasks, self._away = {task.process: task for task in tasks}, away
        self._asking, self._say = asking, say
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._begun = False
        self._silent: dict[str, tuple[int, int]] = {}
        """by process: asks in a row without an answer, and how many it had given before"""
        self._asked_at = time.monotonic()
        self._event: Callable[..., None] = lambda what, **details: None
        self._counts: Counter[str] = Counter()

    @property
    def counts(self) -> Counter[str]:
        """What happened so far, by name: processes lost and started again, asks, answers ignored."""
        return self._counts + self._asking.counts

    def pid(self, process: str) -> int:
        """Of the process as it was started last."""
        return self._children[process].pid

    def report_to(self, event: Callable[..., None]) -> None:
        """Take `event(what, **details)` for what happens from now on."""
        self._event = event

    def step_begins(self) -> None:
        """The controllers of a step are asked from now on: the deadlines of a paced clock count from here."""
        self._asked_at = time.monotonic()

    def seated(self, seats: Sequence[Seat], scenario: Scenario, period_s: float | None) -> tuple[Seat, ...]:
        """The seats, with stand-ins for the controllers in other processes.

        Args:
            period_s: length of a step on the wall clock; `None`: nobody waits for it.
        """
        loop = asyncio.get_running_loop()
        parts = {part.name: part for part in scenario.controllers if part.process != HERE}
        found = []
        for seat in seats:
            if (part := parts.get(seat.name)) is not None:
                deadline_s = FAST_DEADLINE_S if period_s is None else period_s * ASKED_SHARE
                if part.deadline is not None:
                    deadline_s = part.deadline.total_seconds()
                begun = None if period_s is None else lambda: self._asked_at
                other = StandIn(
                    *(seat.name, part.process_name, deadline_s, self._asking, loop, self._late, begun),
                    away=self._away,
                )
                seat = replace(seat, controller=other, process=part.process_name)
            found.append(seat)
        return tuple(found)

    async def start(self, stop: asyncio.Event) -> None:
        """Start all, and wait until they are there, or until `stop` is set.

        Raises:
            NoProcess: one ends before it is there, or takes too long.
        """
        self._keepers = [asyncio.create_task(self._keep(task)) for task in self._tasks.values()]
        there = asyncio.ensure_future(asyncio.gather(*map(self._asking.online, self._tasks)))
        stopped = asyncio.ensure_future(stop.wait())
        waiting: list[asyncio.Future[Any]] = [there, stopped, *self._keepers]
        try:
            done, _ = await asyncio.wait(waiting, timeout=START_S, return_when=asyncio.FIRST_COMPLETED)
            for keeper in self._keepers:
                if keeper.done():
                    keeper.result()  # raises why it has ended
            if not done:
                raise NoProcess(f"the processes of controllers are not there after {START_S:g} s")
            self._begun = True
        finally:
            there.cancel()
            stopped.cancel()

    async def end(self) -> None:
        """End all processes."""
        for process in self._tasks:
            self._asking.lost(process, "the run has ended", for_good=True)
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        await asyncio.gather(*map(_end, self._children.values()))

    async def _keep(self, task: Task) -> None:
        """Start a process, and again when it ends."""
        name = task.process
        for life in range(1, RESTARTS + 2):
            self._asking.starting(name, life)
            try:
                child, printed = await self._launch(replace(task, life=life))
            except NoProcess as error:
                if not self._begun:
                    raise
                self._lost(task, str(error), "", for_good=True)
                return
            status = await _gone(child)
            await _end(child)
            last = "\n".join(printed)
            why = f"process {name} of {', '.join(task.controllers)} {_ended(status)}"
            if not self._begun:
                raise NoProcess(f"{why} before it was there. It printed: {last or 'nothing'}")
            left = RESTARTS + 1 - life
            more = f"it is started again, {left} more time(s)" if left else "it is not started again"
            self._counts["process-restarted"] += left > 0
            self._lost(task, f"{why}; {more}", last, for_good=not left)

    def _lost(self, task: Task, why: str, printed: str, *, for_good: bool) -> None:
        self._counts["process-lost"] += 1
        self._asking.lost(task.process, why, for_good=for_good)
        self._event(
            "process-lost", process=task.process, controllers=task.controllers, why=why, printed=printed
        )

    def _late(self, process: str) -> None:
        """An ask was not answered in time. A process that says nothing at all any more is ended, and so
        started again: one that is only slow comes to answer what it was asked, and without a broker nobody
        can."""
        if self._away() or not self._asking.connected:
            return
        heard = self._asking.heard[process]
        silent, since = self._silent.get(process, (0, heard))
        silent = silent + 1 if since == heard and self._asking.there(process) else 1
        self._silent[process] = silent, heard
        if silent >= STUCK_AFTER:
            del self._silent[process]
            self._counts["process-killed"] += 1
            self._children[process].kill()

    async def _launch(self, task: Task) -> tuple[subprocess.Popen[bytes], deque[str]]:
        """A process that is starting, and the last lines that it has printed."""
        try:
            line = task.line()
            child = _spawn()
        except (OSError, TypeError) as error:
            raise NoProcess(f"process {task.process} cannot be started: {error}") from None
        self._children[task.process] = child
        printed: deque[str] = deque(maxlen=30)
        loop = asyncio.get_running_loop()

        def read() -> None:
            assert child.stdout is not None
            with child.stdout as lines:
                for raw in lines:
                    text = raw.decode(errors="replace").rstrip("\n")[:2000]
                    printed.append(text)
                    with suppress(RuntimeError):  # the loop is closed
                        loop.call_soon_threadsafe(self._say, f"{task.process}: {text}")

        def write() -> None:
            assert child.stdin is not None
            with suppress(OSError):  # it has ended already, which its keeper sees
                child.stdin.write(line)
                child.stdin.flush()

        threading.Thread(target=read, daemon=True).start()
        await asyncio.to_thread(write)  # a long scenario does not fit the pipe until it is read
        return child, printed


@asynccontextmanager
async def supervised(
    draft: Draft,
    scenario: Scenario,
    there: MqttBusPart,
    *,
    run: str,
    patient: bool,
    stop: asyncio.Event,
    say: Callable[[str], None],
    away: Callable[[], bool] = lambda: False,
) -> AsyncIterator[Supervisor]:
    """The processes of a scenario, started, until the context is left; then they are ended.

    Args:
        there: the run's broker.
        run: name of the run.
        patient: whether no step waits for the wall clock: the event loop may be blocked for long, and a
            process that is started again is waited for.
        stop: when set, it is no longer waited for processes that are starting.
        say: takes lines for the user.
        away: see `Supervisor`.

    Raises:
        NoProcess: one cannot be started.
        BusUnreachable: no broker at the URL.
    """
    processes, token = processes_of(scenario), secrets.token_hex(16)
    client_id = f"gridpace-{run}-asks-{secrets.token_hex(4)}"
    bus = connect(there, folder=draft.folder, client_id=client_id, patient=patient)
    asking = Asking(bus, run=run, token=token, processes=processes, patient=patient)
    tasks = [
        Task(
            raw=draft.raw,
            folder=str(draft.folder.absolute()),
            origin=draft.origin,
            bus=there.model_dump(mode="json"),
            run=run,
            process=process,
            controllers=controllers,
            token=token,
            life=1,
        )
        for process, controllers in processes.items()
    ]
    async with bus:
        listening = asyncio.create_task(asking.listen())
        supervisor = Supervisor(tasks, asking, say, away)
        try:
            await supervisor.start(stop)
            yield supervisor
        finally:
            await supervisor.end()
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)


def _spawn() -> subprocess.Popen[bytes]:
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    return subprocess.Popen(
        # -P: its modules are found where ours are, not first in the folder that it is started in.
        [sys.executable, "-P", "-X", "faulthandler", "-m", "scenarios.remote"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # the terminal's Ctrl-C is for us, who then end it
        env={**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"},
    )


def _ended(status: int) -> str:
    if status >= 0:
        return f"has ended with status {status}"
    with suppress(ValueError):
        return f"was ended by {signal.Signals(-status).name}"
    return f"was ended by signal {-status}"


async def _gone(child: subprocess.Popen[bytes]) -> int:
    """Wait until a process has ended; its status."""
    while True:
        if (status := child.poll()) is not None:
            return status
        await asyncio.sleep(POLL_S)


async def _end(child: subprocess.Popen[bytes]) -> None:
    """Tell a process that the run has ended, and see to it that it does too."""
    if child.stdin is not None:
        with suppress(OSError):
            child.stdin.close()
    loop = asyncio.get_running_loop()
    end = loop.time() + STOP_S
    while child.poll() is None:
        if loop.time() > end:
            child.kill()
        await asyncio.sleep(POLL_S)
