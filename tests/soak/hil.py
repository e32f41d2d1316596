"""HIL: three devices over MQTT and two SunSpec emulators, each a process, under a live run of ieee33-hil.

The broker is killed twice, the second time for longer than any validity, and one device is stopped (SIGSTOP)
and goes on (SIGCONT). Judged by the run's own verdict, and by the devices' logs (`tests.history`).
"""

from __future__ import annotations

import asyncio
import secrets
import signal
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from bridges import wire
from bridges.mqtt import MqttBus
from simulators.journal import read
from tests import history
from tests.history import History
from tests.soak.broker import PlainBroker
from tests.soak.figure import Figure, at_least, below, counted
from tests.soak.processes import WAIT_S, Child, children

SCENARIO, RUN = "ieee33-hil", "hil"
ON_BUS, VISITED, FROZEN = ("pv6", "bat13", "wind31"), ("pv24", "bat21"), "bat13"
STILL = {
    "axes": ["p_mw", "q_mvar"],
    "A": [[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]],
    "b": [0.0, 0.0, 0.0, 0.0],
}
"""The default of all of them."""
LAST_S = 6.0
"""How long the devices are watched when the run is over: longer than what they were told holds."""


@dataclass(frozen=True)
class Plan:
    """What happens when, in seconds since the run's first heartbeat."""

    steps: int
    broker: tuple[tuple[float, float], ...]
    """killed, started again"""
    frozen: tuple[float, float]
    shares: tuple[str, ...] = ()
    """of expectations: the trouble takes a larger share of a short run, in which three devices without a
    broker for 6.5 s and one that stands still for 5 s are 25 of some 97 points"""


FULL = Plan(120, ((20.0, 22.0), (60.0, 68.0)), (90.0, 98.0))
SHORT = Plan(
    18, ((3.0, 4.0), (6.5, 12.0)), (3.5, 8.5), ("--set", "expect.2.share=0.7", "--set", "expect.4.share=0.8")
)


@dataclass
class Found:
    """What was found."""

    status: int = -1
    printed: str = ""
    devices: dict[str, History] = field(default_factory=dict)
    states: dict[str, int] = field(default_factory=dict)
    """steps of the MQTT devices by state"""
    events: tuple[str, ...] = ()

    @property
    def wrong(self) -> list[str]:
        return [what for one in self.devices.values() for what in one.wrong]


async def hardware(plan: Plan, folder: Path) -> Found:
    """The whole trial.

    Raises:
        NoBroker: mosquitto is not installed.
    """
    found, logs = Found(), {name: folder / f"{name}.jsonl" for name in (*ON_BUS, *VISITED)}
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(PlainBroker())
        emulators = [_emulator(name, logs[name]) for name in VISITED]
        devices = [_device(name, broker.url, logs[name]) for name in ON_BUS]
        several = await stack.enter_async_context(children(*emulators, *devices))
        ports = [await _port(child) for child in several[: len(VISITED)]]
        for child in several[len(VISITED) :]:
            await child.prints(f"run {RUN}")
        options = ["--set", f"bus.url={broker.url}", "--set", f"steps={plan.steps}", *plan.shares]
        for name, port in zip(VISITED, ports, strict=True):
            options += ["--set", f"devices.{name}.via={{sunspec: {{host: 127.0.0.1, port: {port}}}}}"]
        words = ("run", SCENARIO, "--name", RUN, "--out", str(folder), *options)
        (run,) = await stack.enter_async_context(children(words))
        await _begun(broker.url, run)
        frozen = several[len(VISITED) + ON_BUS.index(FROZEN)]
        absent = await _trouble(plan, broker, frozen)
        found.status = await run.ends()
        found.printed = "".join(run.printed)
        await asyncio.sleep(LAST_S)
        end = datetime.now(UTC)
    path = folder / RUN
    told = history.told_on_bus(path)
    for name in ON_BUS:
        gone = [absent] if name == FROZEN else []
        own = history.lines(logs[name])[name]
        found.devices[name] = history.on_bus(name, own, told[name], absent=gone, until=end, default=STILL)
    words_of = history.told_in_tables(read(path, "regions").to_pylist(), read(path, "steps").to_pylist())
    for name in VISITED:
        own = history.lines(logs[name])[name]
        # Registers have steps: a watt, or a hundredth of a percent.
        found.devices[name] = history.visited(name, own, words_of[name], until=end, near=1e-4)
    for row in read(path, "devices").to_pylist():
        if row["device"] in ON_BUS:
            found.states[row["state"]] = found.states.get(row["state"], 0) + 1
    return found


def _device(name: str, url: str, log: Path) -> Sequence[str]:
    return ("device", SCENARIO, name, "--url", url, "--run", RUN, "--every", "500ms", "--log", str(log))


def _emulator(name: str, log: Path) -> Sequence[str]:
    return ("sunspec-emulator", SCENARIO, name, "--port", "0", "--every", "0.2", "--log", str(log))


async def _port(child: Child) -> int:
    return int((await child.prints(" at 127.0.0.1:")).rpartition(":")[2])


async def _begun(url: str, run: Child) -> None:
    """Wait for the run's first heartbeat."""
    async with MqttBus(url, client_id=f"listener-{secrets.token_hex(4)}") as bus:
        bus.subscribe(wire.control_topic(RUN))
        async with asyncio.timeout(WAIT_S):
            while not await bus.arrived(1.0):
                if run.process.poll() is not None:
                    await run.ends()
                    raise AssertionError(f"the run ended: {''.join(run.printed)[-2000:]}")


async def _trouble(plan: Plan, broker: PlainBroker, frozen: Child) -> tuple[datetime, datetime]:
    """Carry out the plan; when the device was stopped and went on."""
    stopped: list[datetime] = []

    async def stop() -> None:
        await broker.stop(kill=True)

    async def freeze() -> None:
        stopped.append(datetime.now(UTC))
        frozen.tell(signal.SIGSTOP)

    async def go_on() -> None:
        frozen.tell(signal.SIGCONT)
        stopped.append(datetime.now(UTC))

    happens = [(at, what) for down, up in plan.broker for at, what in ((down, stop), (up, broker.start))]
    happens += [(plan.frozen[0], freeze), (plan.frozen[1], go_on)]
    loop = asyncio.get_running_loop()
    begun = loop.time()
    for at, what in sorted(happens, key=lambda one: one[0]):
        await asyncio.sleep(begun + at - loop.time())
        await what()
    return stopped[0], stopped[1]


async def soak(short: bool) -> list[Figure]:
    """HIL: 18 s in the short version, two minutes in the full one."""
    plan = SHORT if short else FULL
    with TemporaryDirectory(prefix="gridpace-hil-") as folder:
        found = await hardware(plan, Path(folder))
    for line in history.summary(found.devices):
        print(f"HIL: {line}")
    for wrong in found.wrong[:10]:
        print(f"HIL: {wrong}")
    if found.status != 0:
        print(found.printed[-4000:])
    late_ms = [1e3 * late for name in ON_BUS for late in found.devices[name].late_s]
    return [
        counted("HIL", "runs whose verdict did not hold", 0, int(found.status != 0)),
        counted("HIL", "points outside a valid region and the fallback", 0, len(found.wrong)),
        at_least("HIL", "points looked at", 10 * plan.steps, sum(h.points for h in found.devices.values())),
        at_least("HIL", "devices that fell back", 5, sum(h.fallbacks > 0 for h in found.devices.values())),
        at_least("HIL", "instructions applied", plan.steps, _applied(found)),
        below("HIL", "into the fallback after the validity", 200.0, max(late_ms, default=float("inf"))),
    ]


def _applied(found: Found) -> int:
    return sum(found.devices[name].applied for name in ON_BUS)
