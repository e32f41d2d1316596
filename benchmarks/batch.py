"""10,000 devices behind 20 gateways, told in batches: how long until all have answered; see README.md.

python -m benchmarks.batch [--gateways 20] [--each 500] [--steps 60] [--every 1.0]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np
import psutil

from bridges import wire
from bridges.broker import EmbeddedBroker
from bridges.device import DeviceSide, Held
from bridges.mqtt import MqttBus
from bridges.publisher import Publisher
from bridges.serving import serve, settle
from controllers.contract import Instruction
from controllers.devices import still
from controllers.rating import Rating
from controllers.region import Region
from controllers.register import Life, Order, Register
from simulators.clock import wall_clock

RUN, AREA = "batch", "bench"
AIM_MS = 200.0
VALID = timedelta(seconds=30)


class Follower:
    """A plant without physics: it is where it must be."""

    def hold(self, order: Order, mono: float, every_s: float) -> Held:
        return Held(0.0 if order.region is None else float(order.region.b[0]), 0.0)


def names_of(gateway: str, each: int) -> list[str]:
    return [f"{gateway}-der-{i:04d}" for i in range(each)]


async def be_gateways(url: str, gateways: Sequence[str], each: int, every_s: float) -> None:
    """Some of the gateways, with their devices."""
    rating = Rating(Region.box(p_mw=(-1.0, 1.0), q_mvar=(-1.0, 1.0)))
    async with asyncio.TaskGroup() as group:
        for gateway in gateways:
            side = DeviceSide(
                {name: (Register(rating=rating), Follower()) for name in names_of(gateway, each)},
                run=RUN,
                area=AREA,
                gateway=gateway,
                every_s=every_s,
                wall=wall_clock,
                monotonic=time.monotonic,
            )
            group.create_task(serve(side, _opening(url, side, gateway), asyncio.Event()))
        asyncio.get_running_loop().call_later(3.0, settle)


def _opening(url: str, side: DeviceSide, name: str) -> Callable[[], MqttBus]:
    return lambda: MqttBus(url, client_id=name, will=side.will)


@dataclass
class Found:
    """What was measured."""

    devices: int
    ms: list[float] = field(default_factory=list)
    """of each step, until the last device said that it obeys"""
    told_ms: list[float] = field(default_factory=list)
    """of each step, to encode and hand over"""
    silent: int = 0
    """answers that never came"""
    messages: int = 0
    """that left for the gateways, all steps"""
    cpu_ms: dict[str, float] = field(default_factory=dict)
    """of a step, by process: what it would take on a processor of its own"""

    def percentile(self, percent: float) -> float:
        return float(np.percentile(self.ms, percent))


class Controller:
    """Tells all devices something new in each step, and waits for their answers."""

    def __init__(self, bus: MqttBus, gateways: Sequence[str], each: int) -> None:
        self._bus = bus
        self.publisher = Publisher(bus, run=RUN, area=AREA, epoch=1)
        self._devices = {gateway: names_of(gateway, each) for gateway in gateways}
        self._rng = np.random.default_rng(7)
        self.found = Found(len(gateways) * each)

    async def ready(self) -> None:
        """Wait for the gateways."""
        self._bus.subscribe(wire.device_pattern(RUN, "state"))
        there: set[str] = set()
        async with asyncio.timeout(120):
            while len(there) < len(self._devices):
                await self._bus.arrived(10.0)
                there |= {m.topic for m in self._bus.received() if m.topic.endswith("state")}

    async def step(self, seq: int, patience_s: float, count: bool = True) -> None:
        """One step."""
        told = {gateway: self._instructions(names, seq) for gateway, names in self._devices.items()}
        missing = {name for names in self._devices.values() for name in names}
        before = self._bus.counts["published"]
        begun = time.perf_counter()
        for gateway, instructions in told.items():
            self.publisher.send_batch(gateway, [(one, VALID.total_seconds()) for one in instructions])
            await asyncio.sleep(0)  # the first ones leave while the others are encoded
        handed = time.perf_counter()
        while missing and (left := begun + patience_s - time.perf_counter()) > 0:
            await self._bus.arrived(left)
            for der, ack in self.publisher.acks():
                if (ack.seq, ack.state) == (seq, Life.APPLIED):
                    missing.discard(der)
        if count:
            self.found.ms.append((time.perf_counter() - begun) * 1e3)
            self.found.told_ms.append((handed - begun) * 1e3)
            self.found.silent += len(missing)
            self.found.messages += self._bus.counts["published"] - before

    def _instructions(self, names: Sequence[str], seq: int) -> list[Instruction]:
        now = datetime.now(UTC)
        limits = self._rng.uniform(0, 1, (len(names), 2))
        return [
            Instruction(
                device=name,
                epoch=1,
                seq=seq,
                issued_at=now,
                valid_from=now,
                valid_until=now + VALID,
                region=Region.box(p_mw=(-p, p), q_mvar=(-q, q)),
                setpoint=None,
                fallback=STILL,
            )
            for name, (p, q) in zip(names, limits.tolist(), strict=True)
        ]


STILL = still()


@contextmanager
def other_end(
    url: str, gateways: Sequence[str], each: int, every_s: float
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is some of the gateways, for as long as the context lasts."""
    command = [sys.executable, "-m", "benchmarks.batch", "--be", *gateways]
    command += ["--url", url, "--each", str(each), "--every", str(every_s)]
    process = subprocess.Popen(command)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def measure(gateways: int, each: int, steps: int, every_s: float, processes: int = 2) -> Found:
    """Run all steps, in the rhythm of `every_s`."""
    names = [f"gw{i:02d}" for i in range(gateways)]
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(EmbeddedBroker(prefer="mosquitto"))
        shared = [names[i::processes] for i in range(processes)]
        ends = [stack.enter_context(other_end(broker.url, some, each, every_s)) for some in shared]
        everybody = [psutil.Process(), psutil.Process(broker.pid), *(psutil.Process(end.pid) for end in ends)]
        bus = await stack.enter_async_context(MqttBus(broker.url, client_id="controller"))
        controller = Controller(bus, names, each)
        await controller.ready()
        for seq in range(1, 4):  # caches
            await controller.step(seq, 30.0, count=False)
        gc.collect()
        gc.freeze()
        before = [sum(one.cpu_times()[:2]) for one in everybody]
        begun = asyncio.get_running_loop().time()
        for k in range(steps):
            await asyncio.sleep(max(0.0, begun + k * every_s - asyncio.get_running_loop().time()))
            await controller.step(4 + k, 10.0)
        after = [sum(one.cpu_times()[:2]) for one in everybody]
        used = [(b - a) * 1e3 / steps for a, b in zip(before, after, strict=True)]
        controller.found.cpu_ms = {"controller": used[0], "broker": used[1], "gateways": sum(used[2:])}
        gc.unfreeze()
    return controller.found


def main() -> None:
    parser = argparse.ArgumentParser(description="Many devices, told in batches.")
    parser.add_argument("--gateways", type=int, default=20)
    parser.add_argument("--each", type=int, default=500, help="devices of a gateway")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--every", type=float, default=1.0, help="seconds of a step and a measurement")
    parser.add_argument("--processes", type=int, default=2, help="that are the gateways")
    parser.add_argument("--be", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.be:
        asyncio.run(be_gateways(given.url, given.be, given.each, given.every))
        return
    before = os.getloadavg()[0]
    found = asyncio.run(measure(given.gateways, given.each, given.steps, given.every, given.processes))
    print(f"{found.devices} devices, {given.gateways} gateways, {given.steps} steps of {given.every:g} s")
    print(f"  answers that never came: {found.silent} of {found.devices * given.steps}")
    shown = {f"p{p}": found.percentile(p) for p in (50, 95, 99)} | {"max": max(found.ms)}
    print("  all answered, ms: " + ", ".join(f"{name} {value:.0f}" for name, value in shown.items()))
    print(f"  aim: p99 below {AIM_MS:g} ms")
    print(f"  of these to encode and hand over, ms: p50 {np.median(found.told_ms):.0f}")
    print(f"  messages a step: {found.messages / given.steps:.0f}")
    print("  CPU a step, ms: " + ", ".join(f"{who} {ms:.0f}" for who, ms in found.cpu_ms.items()))
    print(f"load of the machine: {before:.1f} before, {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main()
