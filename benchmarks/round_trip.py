"""How long a setpoint takes to its device and back, beside a bare ping-pong; see README.md.

python -m benchmarks.round_trip [--rounds 10] [--each 100]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from queue import SimpleQueue
from socket import IPPROTO_TCP, TCP_NODELAY
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import paho.mqtt.client as paho
from rich.console import Console
from rich.table import Table

from bridges import wire
from bridges.broker import EmbeddedBroker
from bridges.device import DeviceSide, Held, Plant
from bridges.mqtt import MqttBus
from bridges.publisher import Publisher
from bridges.serving import serve
from controllers.contract import Instruction
from controllers.devices import PvInverter, still
from controllers.rating import Rating, rating_of
from controllers.region import Region
from controllers.register import Life, Order, Register
from scenarios.device import TwinPlant
from simulators.clock import wall_clock

RUN, AREA = "round-trip", "bench"
PLAIN, TWIN = "follower", "twin"
"""Devices."""
PING, PONG = "bench/ping", "bench/pong"
BARE, OURS, WITH_TWIN = "ping-pong of paho", "setpoint to ack", "the same, with a twin's physics"
WAIT_S = 10.0
AIM = 2.0


def _client(url: str, name: str) -> paho.Client:
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, name, protocol=paho.MQTTv5)
    client.on_socket_open = lambda client, data, opened: opened.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
    parts = urlsplit(url)
    assert parts.hostname is not None
    client.connect(parts.hostname, parts.port or 1883)
    return client


def be_echo(url: str) -> None:
    """The other end of the ping-pong."""
    client = _client(url, "echo")
    client.on_message = lambda client, data, message: client.publish(PONG, message.payload, 1)
    client.subscribe(PING, 1)
    print("ready", flush=True)
    client.loop_forever()


class Follower:
    """A plant without physics: it is where it must be."""

    def hold(self, order: Order, mono: float, every_s: float) -> Held:
        return Held(0.0 if order.region is None else float(order.region.b[0]), 0.0)


async def be_device(url: str, der: str) -> None:
    """A reference device, as `gridpace device` runs it, or one without physics."""
    device = PvInverter(name=der, bus="1", s_mva=1.0, p_mw=1.0, weight=1.0, default=still())
    plant: Plant = Follower()
    if der == TWIN:
        plant = TwinPlant(device, lambda seconds: 0.8, time.monotonic())
    side = DeviceSide(
        {der: (Register(rating=Rating(rating_of(device))), plant)},
        run=RUN,
        area=AREA,
        wall=wall_clock,
        monotonic=time.monotonic,
    )
    await serve(side, lambda: MqttBus(url, client_id=der, will=side.will), asyncio.Event())


@contextmanager
def other_end(kind: str, url: str) -> Iterator[None]:
    """A process that answers, for as long as the context lasts."""
    command = [sys.executable, "-m", "benchmarks.round_trip", "--be", kind, "--url", url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        if kind == "echo":
            assert process.stdout is not None
            process.stdout.readline()
        yield
    finally:
        process.kill()
        process.communicate()


class PingPong:
    """Bare paho, one message there and one back."""

    def __init__(self, url: str) -> None:
        self._back: SimpleQueue[bytes] = SimpleQueue()
        self._client = _client(url, "ping")
        self._client.on_message = lambda client, data, message: self._back.put(message.payload)
        self._client.subscribe(PONG, 1)
        self._client.loop_start()

    def once(self, payload: bytes) -> float:
        """Seconds there and back."""
        begun = time.perf_counter()
        self._client.publish(PING, payload, 1)
        assert self._back.get(timeout=WAIT_S) == payload
        return time.perf_counter() - begun

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


class Setpoints:
    """Instructions there, and the word that they are applied back."""

    def __init__(self, bus: MqttBus) -> None:
        self.bus, self.seq = bus, 0
        self.publisher = Publisher(bus, run=RUN, area=AREA, epoch=1)

    async def once(self, der: str) -> float:
        """Seconds until the device says that it obeys."""
        self.seq += 1
        now = datetime.now(UTC)
        told = Instruction(
            device=der,
            epoch=1,
            seq=self.seq,
            issued_at=now,
            valid_from=now,
            valid_until=now + timedelta(minutes=5),
            region=Region.box(p_mw=(0.0, 0.1 + self.seq / 1e5), q_mvar=(-0.1, 0.1)),
            setpoint=None,
            fallback=still(),
        )
        begun = time.perf_counter()
        self.publisher.send(told, 300.0)
        while await self.bus.arrived(WAIT_S):
            for _, ack in self.publisher.acks():
                if (ack.seq, ack.state) == (self.seq, Life.APPLIED):
                    return time.perf_counter() - begun
        raise TimeoutError(f"setpoint {self.seq}: no answer within {WAIT_S:g} s")

    async def ready(self, count: int) -> None:
        """Wait for the devices."""
        self.bus.subscribe(wire.device_pattern(RUN, "state"))
        there: set[str] = set()
        while len(there) < count and await self.bus.arrived(60.0):
            there |= {message.topic for message in self.bus.received()}


async def measure(rounds: int, each: int) -> dict[str, list[float]]:
    """Seconds of each kind, taken in turn, so that a busy machine is busy for both."""
    found: dict[str, list[float]] = {name: [] for name in (BARE, OURS, WITH_TWIN)}
    async with EmbeddedBroker(prefer="mosquitto") as broker:
        ends = [other_end(kind, broker.url) for kind in ("echo", PLAIN, TWIN)]
        with ends[0], ends[1], ends[2]:
            ping = PingPong(broker.url)
            async with MqttBus(broker.url, client_id="controller") as bus:
                setpoints = Setpoints(bus)
                await setpoints.ready(2)
                payload = b"x" * 700  # as long as a setpoint
                for round_ in range(rounds + 1):
                    pings = await asyncio.to_thread(lambda: [ping.once(payload) for _ in range(each)])
                    plain = [await setpoints.once(PLAIN) for _ in range(each)]
                    twin = [await setpoints.once(TWIN) for _ in range(each)]
                    if round_:  # the first one fills caches
                        for name, seconds in zip(found, (pings, plain, twin), strict=True):
                            found[name] += seconds
            ping.close()
    return found


def ratio(found: dict[str, list[float]], percent: float = 50) -> float:
    """The setpoint's time to the ping-pong's; of medians, or of another percentile."""
    return float(np.percentile(found[OURS], percent) / np.percentile(found[BARE], percent))


def show(found: dict[str, list[float]], console: Console) -> None:
    table = Table(title="there and back, ms")
    for head in ("", "times", "p5", "p50", "p95", "p99", "max"):
        table.add_column(head, justify="right" if head else "left")
    for name, seconds in found.items():
        values: Any = np.percentile(np.array(seconds) * 1e3, [5, 50, 95, 99, 100])
        table.add_row(name, str(len(seconds)), *(f"{value:.2f}" for value in values))
    console.print(table)
    console.print(f"setpoint to ack : ping-pong = {ratio(found):.2f} (aim: at most {AIM:g})")
    console.print(f"of the fastest twentieth, which nobody interrupted: {ratio(found, 5):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Setpoint to ack, beside a bare ping-pong.")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--each", type=int, default=100, help="of both in a round")
    parser.add_argument("--be", choices=("echo", PLAIN, TWIN), help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.be == "echo":
        be_echo(given.url)
    elif given.be:
        asyncio.run(be_device(given.url, given.be))
    else:
        before = os.getloadavg()[0]
        show(asyncio.run(measure(given.rounds, given.each)), Console())
        print(f"load of the machine: {before:.1f} before, {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main()
