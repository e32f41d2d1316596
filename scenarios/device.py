"""`gridpace device`: devices of a scenario in a process of their own, which a lab replaces by real ones."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from bridges.bus import Bus, shown
from bridges.device import DeviceSide, Held
from bridges.serving import serve, settle
from controllers.contract import Instruction
from controllers.devices import Device
from controllers.rating import Rating, rating_of
from controllers.region import Region
from controllers.register import Answer, Life, Order, Regime, Register
from scenarios.build import build
from scenarios.drives import Drives
from scenarios.load import Draft
from scenarios.outlet import connect
from scenarios.schema import MqttBusPart, Scenario
from simulators.clock import wall_clock
from simulators.devices import DeviceTwin, Obedience, Proposal

Drive = Callable[[float], float | None]
"""What drives a device, in per unit of its rating, by seconds since the start; `None` without a profile."""


class NoDevice(ValueError):
    """What was asked for is no device of the scenario, or cannot be one over MQTT."""


class TwinPlant:
    """A twin as a `Plant`: what it held until now is settled when it is called again.

    Args:
        drive: by seconds since `began`, of the same clock as `mono`.
    """

    def __init__(self, device: Device, drive: Drive, began: float) -> None:
        self.twin = DeviceTwin(device)
        self._drive, self._began = drive, began
        self._holding: tuple[Proposal, float] | None = None

    def hold(self, order: Order, mono: float, every_s: float) -> Held:
        twin = self.twin
        if self._holding is not None:
            (proposal, since), self._holding = self._holding, None
            twin.hold(proposal, max(mono - since, 0.0))
        fallback = order.region if order.regime is Regime.FAILSAFE else None
        otherwise = twin.device.default if fallback is None else fallback
        proposal = twin.obey(order, otherwise, self._drive(mono - self._began), every_s)
        self._holding = proposal, mono
        regime = order.regime
        if regime is Regime.CONTROLLED and proposal.obedience is not Obedience.CONTROLLED:
            regime = Regime.LIMITED
        return Held(proposal.p_mw, proposal.q_mvar, None, twin.state.e_mwh, regime)


class Memory:
    """(epoch, seq) of the last instruction of each device, in a file that survives the process.

    Each run counts for itself, on topics of its own, so what another one has said last is kept apart.

    Args:
        run: which one the devices hear.

    Raises:
        NoDevice: a file that is none of ours.
    """

    def __init__(self, file: Path | None, run: str) -> None:
        self._file, self._runs = file, dict[str, dict[str, tuple[int, int]]]()
        self._newest = self._runs.setdefault(run, {})
        if file is None or not file.exists():
            return
        try:
            for one, devices in json.loads(file.read_text("utf-8")).items():
                for name, (epoch, seq) in devices.items():
                    self._runs.setdefault(one, {})[name] = (int(epoch), int(seq))
        except (ValueError, TypeError, AttributeError, OSError) as error:
            raise NoDevice(f"--state {file} cannot be read ({error}); remove it to begin anew") from None

    def newest(self, name: str) -> tuple[int, int] | None:
        """Of one device in this run; `None`: nothing is known."""
        return self._newest.get(name)

    def keep(self, name: str, answer: Answer) -> None:
        """Write it down before it is answered."""
        self._newest[name] = (answer.epoch, answer.seq)
        if self._file is not None:
            part = self._file.with_name(self._file.name + ".part")
            part.write_text(json.dumps(self._runs), "utf-8")
            os.replace(part, self._file)


class Book:
    """Everything that devices do, one JSON object a line, for somebody who checks afterwards: a `Witness`.

    | what     | beside `time` and `device`                                                               |
    |----------|------------------------------------------------------------------------------------------|
    | `answer` | epoch, seq, state, code, reason; of what just arrived: issued, valid_from, valid_until   |
    | `held`   | regime, epoch, seq, p_mw, q_mvar, e_mwh, region, setpoint, valid_until                   |

    `region` is what it must keep then: of the instruction while it is controlled, of its fallback while it is
    failsafe, null where it has none.
    """

    def __init__(self, file: IO[str] | None, memory: Memory) -> None:
        self._file, self._memory = file, memory

    def answered(self, der: str, answer: Answer, told: Instruction | None) -> None:
        if answer.state is Life.RECEIVED:
            self._memory.keep(der, answer)
        line = {
            "epoch": answer.epoch,
            "seq": answer.seq,
            "state": answer.state,
            "code": answer.code,
            "reason": answer.reason,
        }
        if told is not None:
            line |= {
                "issued": _stamp(told.issued_at),
                "valid_from": _stamp(told.valid_from),
                "valid_until": _stamp(told.valid_until),
            }
        self._write("answer", answer.time, der, line)

    def held(self, der: str, at: datetime, order: Order, held: Held) -> None:
        told, target = order.instruction, order.setpoint
        line = {
            "regime": held.regime or order.regime,
            "epoch": told and told.epoch,
            "seq": told and told.seq,
            "p_mw": held.p_mw,
            "q_mvar": held.q_mvar,
            "e_mwh": held.e_mwh,
            "region": None if order.region is None else _rows(order.region),
            "setpoint": None if target is None else [target.p_mw, target.q_mvar],
            "valid_until": None if told is None else _stamp(told.valid_until),
        }
        self._write("held", at, der, line)

    def _write(self, what: str, at: datetime, der: str, line: Mapping[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps({"time": _stamp(at), "what": what, "device": der, **line}) + "\n")
            self._file.flush()


def _stamp(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _rows(region: Region) -> dict[str, Any]:
    return {"axes": region.axes, "A": region.A.tolist(), "b": region.b.tolist()}


@dataclass(frozen=True)
class Task:
    """Which devices, and where they connect."""

    names: tuple[str, ...]
    bus: MqttBusPart
    run: str
    gateway: str | None = None
    every_s: float = 1.0
    drive: float | None = None
    """what drives all of them, in per unit; their profiles if not given"""
    synchronised: bool = True


async def devices(
    draft: Draft,
    scenario: Scenario,
    task: Task,
    *,
    log: IO[str] | None = None,
    state: Path | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Be devices of a scenario until SIGTERM or SIGINT. SIGUSR1 takes them over, SIGUSR2 gives them back.

    Raises:
        NoDevice: names that are none of the scenario's.
        ScenarioInvalid: the scenario cannot be built.
        BusUnreachable: certificates that cannot be read. A broker that is not there is waited for.
    """
    built = build(draft, scenario, only=frozenset())
    known = built.site.devices
    names = task.names or tuple(known)
    if unknown := [name for name in names if name not in known]:
        raise NoDevice(f"{unknown[0]!r} is no device of {scenario.name}; it has {', '.join(known)}")
    memory, profiles, began = Memory(state, task.run), Drives(built), time.monotonic()
    book = Book(log, memory)
    registers = {
        name: Register(
            rating=Rating(rating_of(known[name])),
            synchronised=task.synchronised,
            resumed=memory.newest(name),
        )
        for name in names
    }
    plants = {name: TwinPlant(known[name], _drive(profiles, name, task.drive), began) for name in names}
    together = [names] if task.gateway is not None else [(name,) for name in names]
    token, stop = secrets.token_hex(4), asyncio.Event()
    _signals(stop, list(registers.values()))
    serving = []
    for some in together:
        who = task.gateway or some[0]
        side = DeviceSide(
            {name: (registers[name], plants[name]) for name in some},
            run=task.run,
            area=scenario.name,
            gateway=task.gateway,
            every_s=task.every_s,
            wall=wall_clock,
            monotonic=time.monotonic,
            witness=book,
        )
        opening = _opening(side, task, who, token)
        opening()  # a certificate that cannot be read is said before anything begins
        serving.append((side, opening, _named(who, say)))
    say(f"{', '.join(names)} of {scenario.name} at {shown(task.bus.url)}, run {task.run}")
    settle()
    try:
        async with asyncio.TaskGroup() as group:
            for side, opening, tell in serving:
                group.create_task(serve(side, opening, stop, tell))
    except BaseExceptionGroup as failed:
        first: BaseException = failed
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None


def _named(who: str, say: Callable[[str], None]) -> Callable[[str], None]:
    return lambda line: say(f"{who}: {line}")


def _opening(side: DeviceSide, task: Task, who: str, token: str) -> Callable[[], Any]:
    """Makes a connection. It always has the same name: the broker then ends the one before it, and says its
    last will before the new one says that the device is there."""

    def opening() -> Bus:
        return connect(
            task.bus,
            folder=Path(),
            client_id=f"gridpace-{task.run}-{who}-{token}",
            patient=False,
            will=side.will,
            identity=who,
        )

    return opening


def _drive(profiles: Drives, name: str, constant: float | None) -> Drive:
    return lambda seconds: profiles.at(name, seconds) if constant is None else constant


def _signals(stop: asyncio.Event, registers: Sequence[Register]) -> None:
    def hold() -> None:
        for register in registers:
            register.hold()

    def release() -> None:
        for register in registers:
            register.release()

    loop = asyncio.get_running_loop()
    for number, handle in (
        (signal.SIGTERM, stop.set),
        (signal.SIGINT, stop.set),
        (signal.SIGUSR1, hold),
        (signal.SIGUSR2, release),
    ):
        with suppress(NotImplementedError):  # where the system has no such signals
            loop.add_signal_handler(number, handle)
