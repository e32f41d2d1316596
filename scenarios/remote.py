"""Remote: the program of a process that answers for controllers, `python -m scenarios.remote`.

The run starts it and writes a `Task` to its standard input, which then stays open: when it closes, the run
has ended, whatever ended it, and so does this process.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import secrets
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bridges import conversation
from bridges.asking import Answering, Request, will_of
from bridges.bus import BusUnreachable
from bridges.wire import BadMessage
from controllers.contract import Controller, Decision
from scenarios.build import build
from scenarios.check import ScenarioInvalid, validate
from scenarios.load import Draft
from scenarios.outlet import connect
from scenarios.schema import MqttBusPart

REFUSED = 2
"""Exit status when the scenario or the broker is not as it should be."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a process has to know."""

    raw: Mapping[str, Any]
    """the scenario as written, changes applied"""
    folder: str
    """where its relative files are looked for"""
    origin: str
    """what the user named"""
    bus: Mapping[str, Any]
    """the broker of the run, as a part of a scenario"""
    run: str
    process: str
    controllers: tuple[str, ...]
    """those that it answers for"""
    token: str
    """see `bridges.asking.Asking`"""
    life: int
    """how often the process was started"""

    def line(self) -> bytes:
        """As it is written to the process.

        Raises:
            TypeError: a scenario with values that JSON does not know.
        """
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def read(cls, line: bytes) -> Task:
        """As the process reads it."""
        given = json.loads(line)
        return cls(**{**given, "controllers": tuple(given["controllers"])})


def reply(controllers: Mapping[str, Controller], message: bytes) -> bytes:
    """The answer to an ask: whatever a controller raises or returns, there is one."""
    name = ""
    try:
        name, observation = conversation.asked(message)
        decision = controllers[name].step(observation)
        if not isinstance(decision, Decision):
            raise TypeError(f"step() returned {type(decision).__name__}, not a Decision")
        return conversation.answer(name, decision)
    except BaseException as error:  # a third party's mistake, or its sys.exit: the run says what it was
        return conversation.answer(name, error)


async def serve(task: Task) -> None:
    """Build the task's controllers, and answer for them until the process is ended.

    Raises:
        ScenarioInvalid, BusUnreachable: see `scenarios.build` and `bridges.mqtt`.
    """
    draft = Draft(dict(task.raw), Path(task.folder), task.origin)
    built = build(draft, validate(draft), only=frozenset(task.controllers))
    controllers = {seat.name: seat.controller for seat in built.seats}
    bus = connect(
        MqttBusPart.model_validate(task.bus),
        folder=draft.folder,
        client_id=f"gridpace-{task.run}-{task.process}-{secrets.token_hex(4)}",
        patient=True,
        will=will_of(task.run, task.process, task.token, task.life),
        identity=task.process,
    )
    answering = Answering(bus, run=task.run, process=task.process, token=task.token, life=task.life)
    gc.collect()
    gc.freeze()  # a full collection of what was built takes as long as many steps
    async with bus, asyncio.TaskGroup() as group:
        group.create_task(answering.listen())
        answering.online()
        while True:
            request = await answering.next()
            # A solve must not block the event loop, which keeps the connection alive.
            _send(answering, request, await asyncio.to_thread(reply, controllers, request.message))


def _send(answering: Answering, request: Request, message: bytes) -> None:
    try:
        answering.answer(request, message)
    except BadMessage as error:
        answering.answer(request, conversation.answer("", error))


def _leave_with_the_run() -> None:
    with suppress(OSError, ValueError):
        sys.stdin.buffer.read()
    sys.stdout.flush()
    os._exit(0)  # at once, even while a controller computes; the broker tells that we have gone


def main() -> None:
    """Entry point; reads the task from standard input."""
    task = Task.read(sys.stdin.buffer.readline())
    threading.Thread(target=_leave_with_the_run, daemon=True).start()
    try:
        asyncio.run(serve(task))
    except (ScenarioInvalid, BusUnreachable) as error:
        print(error, file=sys.stderr)
        sys.exit(REFUSED)


if __name__ == "__main__":
    main()
