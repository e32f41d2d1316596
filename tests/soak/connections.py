"""R10, connections: what is no MQTT, or only half of it, ends alone; those who are there notice nothing.

Hostile connections go to the broker with TLS and to the plain one. Meanwhile a controller and a device ping
each other (the canary), some connections stay half open for as long as it takes (slow ones), and at the end
somebody new is let in.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import secrets
import ssl
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from bridges.broker import EmbeddedBroker
from bridges.mqtt import MqttBus
from scenarios.certs import make
from tests.soak import packets
from tests.soak.broker import GuardedBroker, PlainBroker
from tests.soak.figure import Figure, at_least, below, counted

SHORT, LONG = 2_000, 50_000
TOGETHER = 40
"""Hostile connections at the same time."""
SLOW = 100
"""Connections that send a byte now and then, as long as the others come and go."""
PATIENCE_S = 0.05
"""How long an attacker waits for an answer before it goes."""
WAIT_S = 10.0


def openings(rng: random.Random) -> dict[str, Callable[[], bytes]]:
    """What attackers say, by name."""
    hello = packets.connect(secrets.token_hex(4))
    topic = "gridpace/v1/r/feeder/pv24/setpoint"

    def noise(least: int, most: int) -> bytes:
        return rng.randbytes(rng.randrange(least, most))

    def damaged(valid: bytes) -> bytes:
        made = bytearray(valid)
        for _ in range(rng.randrange(1, 4)):
            made[rng.randrange(len(made))] = rng.randrange(256)
        return bytes(made)

    return {
        "nothing": lambda: b"",
        "random bytes": lambda: noise(1, 400),
        "many random bytes": lambda: noise(4_000, 70_000),
        "half a CONNECT": lambda: hello[: rng.randrange(1, len(hello))],
        "a damaged CONNECT": lambda: damaged(hello),
        "two CONNECTs": lambda: hello + hello,
        "a length of 256 MB": lambda: b"\x10\xff\xff\xff\x7f" + noise(1, 100),
        "a length that does not end": lambda: b"\x10" + b"\xff" * rng.randrange(4, 60),
        "a CONNECT with lengths beyond it": lambda: b"\x10\x0c\x00\x04MQTT\x04\xc2\xff\xff\xff\xff",
        "a will beyond it": lambda: b"\x10\x10\x00\x04MQTT\x04\x36\x00\x3c\x00\x01a\xff\xff" + noise(1, 10),
        "another protocol": lambda: packets.packet(
            0x10, packets.text("MQIsdp") + b"\x09\x02\x00\x3c\x00\x00"
        ),
        "MQTT 5 with bad properties": lambda: packets.packet(
            0x10, packets.text("MQTT") + b"\x05\x02\x00\x3c\x7f" + noise(2, 50)
        ),
        "SUBSCRIBE before CONNECT": lambda: packets.subscribe("#"),
        "PUBLISH before CONNECT": lambda: packets.publish(topic, b"x"),
        "a packet of each kind": lambda: bytes(x for kind in range(16) for x in (kind << 4, 0)),
        "a damaged PUBLISH": lambda: hello + damaged(packets.publish(topic, noise(1, 200))),
        "a PUBLISH larger than allowed": lambda: hello + packets.publish(topic, bytes(70_000)),
        "a topic with wildcards": lambda: hello + packets.publish("gridpace/v1/+/#", b"x"),
        "a topic that is no text": lambda: hello + packets.packet(0x30, b"\x00\x04\xff\xfe\x00\xc3x"),
        "a topic of 65,000 levels": lambda: hello + packets.publish("/" * 65_000, b"x"),
        "a pattern of 65,000 levels": lambda: hello + packets.subscribe("/" * 65_000),
        "patterns that are none": lambda: hello + packets.subscribe(rng.choice(("a/#/b", "+a", "", "\0"))),
        "an acknowledgement of nothing": lambda: hello + b"\x40\x02" + noise(2, 3) + b"\x62\x02\x12\x34",
        "a web browser": lambda: b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        "TLS": lambda: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + noise(10, 500),
    }


@dataclass
class Toll:
    """What the attack did."""

    connections: Counter[str] = field(default_factory=Counter)
    """by what was said"""
    refused: int = 0
    """attacks that could not even connect"""
    trips_ms: list[float] = field(default_factory=list)
    """round trips of the canary"""
    broker_alive: bool = False
    grown_mb: float = 0.0
    """of the broker's memory"""
    disconnects: int = 0
    """of the controller and the device"""
    newcomer: bool = False
    """whether somebody with every right was let in at the end"""


async def attacked(broker: EmbeddedBroker, client: Callable[[str], MqttBus], number: int, seed: int) -> Toll:
    """Attack a running broker by so many connections, from another process.

    Args:
        client: makes a bus for somebody with every right, by name.
    """
    toll, secure = Toll(), broker.url.startswith("mqtts")
    assert broker.pid is not None
    memory = psutil.Process(broker.pid).memory_info
    before = memory().rss
    async with client("controller") as controller, client("pv24") as device:
        canary = asyncio.create_task(_ping(controller, device, toll.trips_ms))
        attacker = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", __name__, str(broker.port), str(number), str(seed), str(int(secure))),
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
        )
        told, _ = await attacker.communicate()
        canary.cancel()
        await asyncio.gather(canary, return_exceptions=True)
        toll.disconnects = controller.counts["disconnects"] + device.counts["disconnects"]
        toll.grown_mb = (memory().rss - before) / 2**20
        async with client("observer") as newcomer:
            newcomer.subscribe("gridpace/v1/r/ctl/state")
            controller.publish("gridpace/v1/r/ctl/state", b"x", retain=True)
            toll.newcomer = await newcomer.arrived(WAIT_S)
    said = json.loads(told)
    toll.connections, toll.refused = Counter(said["connections"]), said["refused"]
    toll.broker_alive = broker.pid is not None
    return toll


async def attack(port: int, number: int, seed: int, secure: bool) -> dict[str, object]:
    """The attacker's process: so many connections, and slow ones meanwhile."""
    rng = random.Random(seed)
    said, tls = openings(rng), _unchecked() if secure else None
    names, connections, refused = list(said), Counter[str](), Counter[bool]()

    async def several(turns: list[str]) -> None:
        for name in turns:
            # To a broker with TLS half of them agree on it first, as whoever has no certificate can.
            link = tls if rng.random() < 0.5 else None
            connections[name] += 1
            refused[not await _connect(port, said[name](), link)] += 1

    turns = [names[i % len(names)] for i in range(number)]
    async with _slow_ones(port, secure):
        await asyncio.gather(*(several(turns[i::TOGETHER]) for i in range(TOGETHER)))
    return {"connections": connections, "refused": refused[True]}


def _unchecked() -> ssl.SSLContext:
    tls = ssl.create_default_context()
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    return tls


async def _connect(port: int, said: bytes, tls: ssl.SSLContext | None) -> bool:
    """One hostile connection; whether there was one at all."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    except ssl.SSLError:
        return True
    except OSError:
        return False
    with suppress(OSError, ssl.SSLError, TimeoutError):
        writer.write(said)
        async with asyncio.timeout(PATIENCE_S):
            while await reader.read(4096):
                pass
    writer.transport.abort()
    return True


@asynccontextmanager
async def _slow_ones(port: int, secure: bool) -> AsyncIterator[None]:
    """Connections that begin something long, a byte at a time, and never come to its end."""
    said = b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc\x03\x03" if secure else b""
    said = (said or packets.connect("x" * 60_000)[:40]).ljust(40, b"x")
    tasks = [asyncio.create_task(_trickle(port, said)) for _ in range(SLOW)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _trickle(port: int, said: bytes) -> None:
    while True:  # whoever is put out comes back
        with suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                for i in range(10**6):
                    if writer.is_closing():
                        break
                    writer.write(said[i % len(said) :][:1])
                    await writer.drain()
                    await asyncio.sleep(0.5)
            finally:
                writer.transport.abort()
        await asyncio.sleep(0.5)


async def _ping(controller: MqttBus, device: MqttBus, trips_ms: list[float]) -> None:
    """An instruction and its answer, again and again."""
    there, back = (f"gridpace/v1/r/feeder/pv24/{what}" for what in ("setpoint", "ack"))
    device.subscribe(there)
    controller.subscribe(back)
    number = 0
    while True:
        number += 1
        started = time.perf_counter()
        controller.publish(there, b"%d" % number)
        while b"%d" % number not in [message.payload for message in device.received()]:
            if not await device.arrived(1.0):
                controller.publish(there, b"%d" % number)  # the first may be sooner than the subscription
        device.publish(back, b"%d" % number)
        while b"%d" % number not in [message.payload for message in controller.received()]:
            if not await controller.arrived(1.0):
                device.publish(back, b"%d" % number)
        trips_ms.append((time.perf_counter() - started) * 1e3)
        await asyncio.sleep(0.02)


async def guarded(number: int, seed: int = 10) -> Toll:
    """Attack the broker that is shipped, with TLS."""
    with TemporaryDirectory(prefix="gridpace-certs-") as folder:
        make(Path(folder), clients={"pv24": "device"})
        async with GuardedBroker(Path(folder)) as broker:
            return await attacked(broker, broker.client, number, seed)


async def plain(number: int, seed: int = 11) -> Toll:
    """Attack the broker for one computer."""

    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(PlainBroker())

        def client(name: str) -> MqttBus:
            return MqttBus(broker.url, client_id=f"{name}-{secrets.token_hex(4)}")

        return await attacked(broker, client, number, seed)


def figures(which: str, toll: Toll, number: int) -> list[Figure]:
    """What is said of an attack."""
    return [
        at_least("R10", f"hostile connections, {which}", number, toll.connections.total() - toll.refused),
        counted("R10", f"brokers alive, {which}", 1, int(toll.broker_alive)),
        counted("R10", f"disconnects of controller and device, {which}", 0, toll.disconnects),
        counted("R10", f"newcomers let in afterwards, {which}", 1, int(toll.newcomer)),
        at_least("R10", f"round trips of the canary, {which}", 10, len(toll.trips_ms)),
        below("R10", f"round trip of the canary, median, {which}", 100.0, statistics.median(toll.trips_ms)),
    ]


async def soak(short: bool) -> list[Figure]:
    """R10: 50,000 hostile connections, half of them to each broker."""
    number = (SHORT if short else LONG) // 2
    return [
        *figures("TLS", await guarded(number), number),
        *figures("plain", await plain(number), number),
    ]


if __name__ == "__main__":
    at, many, start, encrypted = map(int, sys.argv[1:])
    print(json.dumps(asyncio.run(attack(at, many, start, bool(encrypted)))))
