"""R1: each of many devices is told something new in each step, and has answered before the next one."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field

import numpy as np

from bridges import wire
from bridges.mqtt import MqttBus
from tests.soak.broker import PlainBroker
from tests.soak.commander import Commander
from tests.soak.figure import Figure, below, counted
from tests.soak.many import devices

RUN, AREA = "load", "soak"
READY_S = 180.0
PATIENCE = 3
"""Steps after which an answer that has not come is lost."""


@dataclass
class Found:
    """What was measured."""

    devices: int
    steps: int
    seconds: list[float] = field(default_factory=list)
    """of each step, until all had answered; of a late one until they had answered it or a newer one"""
    late: int = 0
    """steps in which not all had answered before the next one began"""
    lost: int = 0
    """devices that had not said in the end that they obey the last one"""
    unpaced: float = 0.0
    """by how many seconds the last step was late"""


async def load(number: int, steps: int, every_s: float) -> Found:
    """Tell so many devices something in so many steps.

    Raises:
        NoBroker: mosquitto is not installed.
    """
    names, found = [f"der-{i:04d}" for i in range(number)], Found(number, steps)
    async with PlainBroker() as broker:
        with devices(names, broker.url, run=RUN, area=AREA, every_s=max(every_s, 1.0)):
            bus = MqttBus(broker.url, client_id=f"run-{secrets.token_hex(4)}", latch_size=1_000_000)
            bus.subscribe(wire.device_pattern(RUN, "state"))
            async with bus:
                await _there(bus, number)
                commander = Commander(bus, names, RUN, AREA, valid_s=30.0)
                for seq in (1, 2, 3):  # caches
                    commander.say(seq, every_s)
                    await commander.answered(seq, READY_S)
                loop = asyncio.get_running_loop()
                begun, pending = loop.time(), list[float]()
                for k in range(steps):
                    await asyncio.sleep(max(0.0, begun + k * every_s - loop.time()))
                    found.unpaced = max(0.0, loop.time() - begun - k * every_s)
                    started, seq = loop.time(), 4 + k
                    commander.say(seq, every_s)
                    left_s = every_s - (loop.time() - started)
                    took_s = await commander.answered(seq, max(left_s, 0.0))
                    pending.append(started)
                    if took_s is None:
                        found.late += 1
                    else:
                        found.seconds += [loop.time() - one for one in pending]
                        pending.clear()
                if await commander.answered(3 + steps, PATIENCE * every_s) is None:
                    found.lost = sum(commander.applied.get(name, 0) < 3 + steps for name in names)
                found.seconds += [loop.time() - one for one in pending]
    return found


async def _there(bus: MqttBus, number: int) -> None:
    """Wait until all devices have said that they are there."""
    seen: set[str] = set()
    async with asyncio.timeout(READY_S):
        while len(seen) < number:
            await bus.arrived(5.0)
            seen |= {message.topic for message in bus.received() if message.topic.endswith("/state")}


async def soak(short: bool) -> list[Figure]:
    """R1: 200 devices, 60 steps of 0.5 s in the short version; 1,000 devices, ten minutes of 2 s in full."""
    number, steps, every_s = (200, 60, 0.5) if short else (1000, 300, 2.0)
    found = await load(number, steps, every_s)
    p50, p99, most = np.percentile(found.seconds, [50, 99, 100]) * 1e3
    print(f"R1: until all {number} had answered: p50 {p50:.0f} ms, p99 {p99:.0f} ms, at most {most:.0f} ms")
    within = 1 - found.late / steps
    return [
        counted("R1", f"devices of {number} that lost the last instruction", 0, found.lost),
        # A busy machine is late sometimes; one step of four is too often for any.
        Figure("R1", "steps fully answered within the step", "100 %", f"{within:.1%}", within >= 0.75, False),
        below("R1", f"all {number} devices have answered, p99", every_s * 1e3, float(p99)),
        below("R1", "lateness of the last step", every_s * 100, found.unpaced * 1e3),
    ]
