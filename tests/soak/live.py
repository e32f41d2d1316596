"""R9 live: a run, a process, a device and a gateway on a real broker, and somebody who sends anything."""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import chain, islice

from bridges.asking import Answering, Asking
from bridges.bus import MAX_PAYLOAD_BYTES
from bridges.device import DeviceSide, Held
from bridges.mqtt import MqttBus
from bridges.publisher import Publisher
from controllers.rating import Rating
from controllers.region import Region
from controllers.register import Order, Register
from tests import hostile
from tests.soak import packets
from tests.soak.broker import PlainBroker
from tests.soak.payloads import crafted, readable

RUN, ASKS, PROCESS, DEVICE, GATEWAY = "run", "asks", "process", "device", "gateway"
LISTENERS = (RUN, ASKS, PROCESS, DEVICE, GATEWAY)
AT_ONCE = 100
WAIT_S = 30.0
Sent = tuple[str, bytes, tuple[str, ...]]
"""Topic, payload, who listens."""
ADDRESS = {"setpoint": ("r", "feeder", "pv24"), "batch": ("r", "feeder", "gw1", 0)}
TOPICS = (
    ("ack", "gridpace/v1/r/feeder/pv24/ack", (RUN,)),
    ("batch-ack", "gridpace/v1/r/feeder/gw1/batch-ack", (RUN,)),
    ("presence", "gridpace/v1/r/ctl/mg1/state", (ASKS,)),
    ("part", "gridpace/v1/r/ctl/mg1/answer/0", (ASKS,)),
    ("part", "gridpace/v1/r/ctl/mg1/ask/0", (PROCESS,)),
    ("setpoint", "gridpace/v1/r/feeder/pv24/setpoint", (DEVICE,)),
    ("control", "gridpace/v1/r/ctl/state", (DEVICE, GATEWAY)),
    ("batch", "gridpace/v1/r/feeder/gw1/batch/0", (GATEWAY,)),
)
"""Kind of message, topic, who listens."""
NAMES = (" ", "a b", "é", "x" * 65, "a'b", "a;b", "a\u2028b", "$SYS", "%u", "..\\a", "")
"""Names that no device has, in topics that a broker passes on."""


@dataclass
class Live:
    """Listeners on a bus, and an attacker's connection."""

    buses: dict[str, MqttBus]
    publisher: Publisher
    asking: Asking
    answering: Answering
    sides: dict[str, DeviceSide]
    writer: asyncio.StreamWriter
    sent: Counter[str] = field(default_factory=lambda: Counter({GATEWAY: 1}))
    """messages by listener; the publisher has sent a genuine one to the gateway"""
    late_ms: list[float] = field(default_factory=list)
    busy_ms: list[float] = field(default_factory=list)
    """processor time of each `take`, which a busy machine does not spoil"""

    async def send(self, several: list[Sent]) -> None:
        """Send, and wait until all of it was read."""
        self.writer.write(b"".join(packets.publish(topic, payload) for topic, payload, _ in several))
        await self.writer.drain()
        self.sent.update(who for _, _, listeners in several for who in listeners)
        async with asyncio.timeout(WAIT_S):
            while any(self.buses[who].counts["received"] < number for who, number in self.sent.items()):
                self.take()
                await asyncio.sleep(0.002)
        self.take()

    def take(self) -> None:
        """As a run does once a step, and devices at once."""
        started = time.thread_time()
        self.publisher.acks()
        for side in self.sides.values():
            side.hear()
        self.busy_ms.append((time.thread_time() - started) * 1e3)

    def malformed(self) -> dict[str, int]:
        """What the listeners have counted."""
        return {
            RUN: self.buses[RUN].counts["malformed"],
            ASKS: self.asking.counts["answers-malformed"],
            PROCESS: self.answering.counts["asks-malformed"],
            **{who: side.counts["malformed"] for who, side in self.sides.items()},
        }


@asynccontextmanager
async def live() -> AsyncIterator[Live]:
    """A run's publisher, both ends of a conversation, a device and a gateway, listening.

    Raises:
        NoBroker: mosquitto is not installed.
    """
    async with PlainBroker() as broker:
        buses = {who: MqttBus(broker.url, client_id=f"{who}-{secrets.token_hex(4)}") for who in LISTENERS}
        publisher = Publisher(buses[RUN], run="r", area="feeder", epoch=1)
        publisher.send_batch("gw1", [(hostile.instruction(), 900.0), (hostile.instruction("bat13"), 900.0)])
        ours = Asking(buses[ASKS], run="r", token=hostile.TOKEN, processes=["mg1"])
        theirs = Answering(buses[PROCESS], run="r", process="mg1", token=hostile.TOKEN, life=1)
        sides = {DEVICE: _side("pv24"), GATEWAY: _side("pv24", "bat13", gateway="gw1")}
        async with AsyncExitStack() as stack:
            for who, side in sides.items():
                side.begin(buses[who])
            for bus in buses.values():
                await stack.enter_async_context(bus)
            reader, writer = await asyncio.open_connection(broker.host, broker.port)
            writer.write(packets.connect(secrets.token_hex(4)))
            assert await reader.readexactly(4) == packets.CONNACK_ACCEPTED
            found = Live(buses, publisher, ours, theirs, sides, writer)
            tasks = [asyncio.create_task(work) for work in (ours.listen(), theirs.listen(), _watch(found))]
            try:
                yield found
                for task in tasks:
                    if task.done():
                        task.result()  # a listener that has died says why
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                writer.close()


class _Still:
    """A plant that does nothing."""

    def hold(self, order: Order, mono: float, every_s: float) -> Held:
        return Held(0.0, 0.0)


def _side(*names: str, gateway: str | None = None) -> DeviceSide:
    rating = Rating(Region.box(p_mw=(-2.0, 2.0), q_mvar=(-2.0, 2.0)))
    return DeviceSide(
        {name: (Register(rating=rating), _Still()) for name in names},
        run="r",
        area="feeder",
        gateway=gateway,
        every_s=3600.0,
        wall=lambda: hostile.NOON,
        monotonic=time.monotonic,
    )


async def _watch(on: Live, every_s: float = 0.05) -> None:
    """How late the event loop is, which paces the steps of a live run."""
    while True:
        due = time.monotonic() + every_s
        await asyncio.sleep(every_s)
        on.late_ms.append((time.monotonic() - due) * 1e3)


@dataclass
class Exact:
    """What was sent live, and what was counted."""

    sent: int
    expected: dict[str, int]
    """malformed ones by listener"""
    counted: dict[str, int]
    lost: int
    """connections lost, messages dropped unread"""
    late_ms: float
    """99 of 100 times the event loop was less late"""
    busy_ms: float
    """99 of 100 steps took less processor time for what had arrived"""


async def sent_live(mutations: int, seed: int = 19) -> Exact:
    """Send crafted and mutated payloads over the broker; all arrive, none is lost, each is counted."""
    rng, genuine, malformed = random.Random(seed), hostile.genuine(), Counter[str]()

    def made() -> Iterator[Sent]:
        for name in NAMES:
            malformed[RUN] += 1
            yield f"gridpace/v1/r/feeder/{name}/ack", genuine["ack"][0], (RUN,)
        for kind, topic, listeners in TOPICS:
            several = (hostile.mutated(rng, genuine[kind]) for _ in range(-(-mutations // len(TOPICS))))
            for payload in chain(crafted(kind), several):
                if len(payload) <= MAX_PAYLOAD_BYTES:  # with more the broker ends the sender's connection
                    if not _meant(kind, payload):
                        malformed.update(listeners)
                    yield topic, payload, listeners

    waiting = list(made())  # before the clock is watched: the attacker's work is not the listeners'
    async with live() as on:
        for several in batched(iter(waiting), AT_ONCE):
            await on.send(several)
        late, busy = (statistics.quantiles(times, n=100)[98] for times in (on.late_ms, on.busy_ms))
        lost = sum(bus.counts["disconnects"] + bus.counts["overflowed"] for bus in on.buses.values())
        return Exact(len(waiting), dict(malformed), on.malformed(), lost, late, busy)


def batched(items: Iterator[Sent], number: int) -> Iterator[list[Sent]]:
    """Lists of at most so many."""
    while several := list(islice(items, number)):
        yield several


def _meant(kind: str, payload: bytes) -> bool:
    """Whether whoever listens takes a payload: it can be read, and names the topic it came on."""
    if kind not in ADDRESS:
        return readable(kind, payload)
    if not payload:
        return True  # what was retained is withdrawn
    if not readable(kind, payload):
        return False
    said = json.loads(payload)
    names = ("run", "area", "der") if kind == "setpoint" else ("run", "area", "gateway", "part")
    return tuple(said[name] for name in names) == ADDRESS[kind]
