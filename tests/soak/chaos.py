"""R4: whatever happens to broker and network, when it is over every device is at its last setpoint.

Real mosquitto, killed and stopped by signals; two TCP proxies, before the controller and before the devices;
a publisher as in a run, and devices as in `gridpace device`: some for themselves, the others behind gateways.
Setpoints go out all the time. When a fault is over nothing new is said, and the clock starts.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import secrets
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from math import inf
from typing import Any

from bridges.bus import Bus, Message
from bridges.device import DeviceSide, Held
from bridges.fault_proxy import FaultProxy
from bridges.faulty import FaultyBus
from bridges.mqtt import MqttBus
from bridges.publisher import Publisher, last_will
from bridges.serving import serve
from bridges.tapped import TappedBus, Way
from controllers.contract import Instruction
from controllers.devices import still
from controllers.rating import Rating
from controllers.region import Region
from controllers.register import Answer, Order, Register
from scenarios.device import Book, Memory
from tests import checker, hostile
from tests.soak.broker import PlainBroker
from tests.soak.figure import Figure, at_least, counted

RUN, AREA = "chaos", "field"
KINDS = ("kill", "freeze", "reset", "black-hole", "refuse", "slow", "slice", "latency")
BEHIND = 20
"""Devices of a gateway."""
ALONE = 0.05
"""Share of the devices that have no gateway."""
VALID_S = 6.0
EVERY_S = 0.5
WITHIN_S = 5.0
"""of healing"""
CHEAP = Rating(Region.box(p_mw=(-10.0, 10.0), q_mvar=(-10.0, 10.0)))


def most(region: Region) -> float:
    """The greatest active power of a box: its first row. To ask the region would cost a linear program, for
    which a thousand devices in one process have no time."""
    assert region.A[0].tolist() == [1.0, 0.0]
    return float(region.b[0])


class Eager:
    """A plant that injects all that it may, and nothing when it was told nothing: what it obeys is seen."""

    def hold(self, order: Order, mono: float, every_s: float) -> Held:
        return Held(0.0 if order.region is None else most(order.region), 0.0)


class Lines:
    """A file for `scenarios.device.Book` that is a list."""

    def __init__(self) -> None:
        self.text: list[str] = []

    def write(self, line: str) -> int:
        self.text.append(line)
        return len(line)

    def flush(self) -> None: ...


class Watching:
    """A `Witness`: where each device is, and, if asked for, all that it does."""

    def __init__(self, book: Book | None) -> None:
        self._book = book
        self.at: dict[str, tuple[int, int, float]] = {}
        """epoch, number and greatest active power of what each device goes by"""
        self.failsafes: Counter[str] = Counter()
        self.news = asyncio.Event()

    def answered(self, der: str, answer: Answer, told: Instruction | None) -> None:
        if self._book is not None:
            self._book.answered(der, answer, told)

    def held(self, der: str, at: datetime, order: Order, held: Held) -> None:
        self.news.set()
        self.failsafes[der] += order.regime == "failsafe"
        if order.instruction is not None and order.region is not None and order.regime == "controlled":
            told = order.instruction
            self.at[der] = told.epoch, told.seq, most(order.region)
        else:
            self.at.pop(der, None)
        if self._book is not None:
            self._book.held(der, at, order, held)


@dataclass
class Field:
    """A controller, a broker and devices, and what can go wrong between them."""

    broker: PlainBroker
    proxies: tuple[FaultProxy, FaultProxy]
    bus: Bus
    publisher: Publisher
    gateways: Mapping[str, str | None]
    """of each device"""
    witness: Watching
    sides: tuple[DeviceSide, ...]
    seq: int = 0
    last: dict[str, tuple[int, int, float]] = field(default_factory=dict)
    """what each device was told last: epoch, number, greatest active power"""
    beaten_s: float = -inf
    """when the last heartbeat left, by the monotonic clock"""

    def step(self, rng: random.Random) -> None:
        """Tell every device something new."""
        self.seq += 1
        now = datetime.now(UTC)
        told: dict[str, list[tuple[Instruction, float]]] = {}
        for name, gateway in self.gateways.items():
            high = round(rng.uniform(0.0, 5.0), 6)
            one = Instruction(
                device=name,
                epoch=1,
                seq=self.seq,
                issued_at=now,
                valid_from=now,
                valid_until=now + timedelta(seconds=VALID_S),
                region=Region.box(p_mw=(-high, high), q_mvar=(0.0, 0.0)),
                setpoint=None,
                fallback=still(),
            )
            self.last[name] = 1, self.seq, high
            if gateway is None:
                self.publisher.send(one, VALID_S)
            else:
                told.setdefault(gateway, []).append((one, VALID_S))
        for gateway, several in told.items():
            self.publisher.send_batch(gateway, several)
        self.beat()

    def beat(self) -> None:
        """Say that the controller is there, as it does in each step, also where it has nothing new to say."""
        if time.monotonic() >= self.beaten_s + EVERY_S / 2:
            self.beaten_s = time.monotonic()
            self.publisher.heartbeat(self.seq, EVERY_S, datetime.now(UTC) + timedelta(seconds=EVERY_S))

    def elsewhere(self) -> list[str]:
        """Devices that are not where they were told to be last."""
        at = self.witness.at
        return [name for name, told in self.last.items() if at.get(name) != told]


@asynccontextmanager
async def opened(
    devices: int,
    *,
    book: Book | None = None,
    around: Callable[[Bus], Bus] = lambda bus: bus,
) -> AsyncIterator[Field]:
    """Everything, connected.

    Args:
        devices: how many.
        book: keeps all that they do.
        around: what the controller's bus is wrapped in.

    Raises:
        NoBroker: mosquitto is not installed.
    """
    alone = int(devices * ALONE)
    gateways = {f"d{i:04}": None if i < alone else f"gw{(i - alone) // BEHIND:03}" for i in range(devices)}
    witness, stop = Watching(book), asyncio.Event()
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(PlainBroker())
        near = await stack.enter_async_context(FaultProxy(broker.host, broker.port, seed=1))
        far = await stack.enter_async_context(FaultProxy(broker.host, broker.port, seed=2))
        together: dict[str, list[str]] = {}
        for name, gateway in gateways.items():
            together.setdefault(gateway or name, []).append(name)
        bus: Bus = MqttBus(
            f"mqtt://{near.host}:{near.port}", client_id=f"c-{secrets.token_hex(4)}", will=last_will(RUN, 1)
        )
        bus = around(bus)
        publisher = Publisher(bus, run=RUN, area=AREA, epoch=1)
        # Before a thousand devices want to connect in the same event loop.
        await stack.enter_async_context(bus)
        serving, sides = [], []
        for who, names in together.items():
            side = DeviceSide(
                {name: (Register(rating=CHEAP), Eager()) for name in names},
                run=RUN,
                area=AREA,
                gateway=None if names == [who] else who,
                every_s=1.0,
                wall=lambda: datetime.now(UTC),
                monotonic=time.monotonic,
                witness=witness,
            )
            sides.append(side)
            serving.append(asyncio.create_task(serve(side, _connecting(far, side, who), stop)))
        found = Field(broker, (near, far), bus, publisher, gateways, witness, tuple(sides))
        try:
            yield found
            for task in serving:
                if task.done():
                    task.result()  # a device that has died says why
        finally:
            for proxy in found.proxies:
                proxy.heal()
            stop.set()
            await asyncio.wait(serving, timeout=10.0)
            for task in serving:
                task.cancel()
            await asyncio.gather(*serving, return_exceptions=True)


def _connecting(proxy: FaultProxy, side: DeviceSide, who: str) -> Callable[[], Any]:
    client_id = f"{who}-{secrets.token_hex(3)}"
    url = f"mqtt://{proxy.host}:{proxy.port}"
    return lambda: MqttBus(url, client_id=client_id, will=side.will)


# R4


@dataclass
class Survived:
    """What was found."""

    faults: Counter[str] = field(default_factory=Counter)
    differing: int = 0
    """devices elsewhere 5 s after a fault, over all faults"""
    converged_s: list[float] = field(default_factory=list)
    """after each fault, until all devices were where they should be"""
    sent: int = 0
    failsafes: int = 0
    """devices that were in fallback at some time"""
    worst: str = ""


async def survived(devices: int, faults: int, *, seed: int, seconds: tuple[float, float]) -> Survived:
    """Let one fault after the other happen.

    Args:
        seconds: shortest and longest fault.
    """
    rng, found = random.Random(seed), Survived()
    kinds = [KINDS[i % len(KINDS)] for i in range(faults)]
    rng.shuffle(kinds)
    async with opened(devices) as on:
        await _settled(on, rng, 60.0)
        for kind in kinds:
            talking = asyncio.create_task(_talk(on, rng))
            try:
                await asyncio.sleep(EVERY_S)
                await _happen(on, kind, rng, rng.uniform(*seconds))
                # What was said last while it went on, or just now, is what counts.
            finally:
                talking.cancel()
                await asyncio.gather(talking, return_exceptions=True)
            begun = time.monotonic()
            left = await _wait(on, WITHIN_S)
            took = time.monotonic() - begun
            found.faults[kind] += 1
            found.differing += len(left)
            if took >= max(found.converged_s, default=0.0):
                found.worst = kind
            found.converged_s.append(took)
            await _settled(on, rng, 30.0)
        found.sent = on.seq * devices
        found.failsafes = len(+on.witness.failsafes)
    return found


async def _happen(on: Field, kind: str, rng: random.Random, seconds: float) -> None:
    """One fault from its beginning to its end."""
    hit = rng.choice([on.proxies, on.proxies[:1], on.proxies[1:]])
    broker = on.broker
    match kind:
        case "kill":
            await broker.stop(kill=True)
            await asyncio.sleep(seconds)
            await broker.start()
        case "freeze":
            assert broker.pid is not None
            os.kill(broker.pid, signal.SIGSTOP)
            try:
                await asyncio.sleep(seconds)
            finally:
                os.kill(broker.pid, signal.SIGCONT)
        case "reset":
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                for proxy in hit:
                    proxy.reset()
                await asyncio.sleep(0.5)
        case _:
            for proxy in hit:
                {
                    "black-hole": proxy.black_hole,
                    "refuse": proxy.refuse,
                    "slow": lambda proxy=proxy: setattr(proxy, "bytes_per_s", 20_000),
                    "slice": lambda proxy=proxy: setattr(proxy, "slice_bytes", 7),
                    "latency": lambda proxy=proxy: [
                        setattr(proxy, name, value) for name, value in (("latency_s", 0.2), ("jitter_s", 0.1))
                    ],
                }[kind]()
            await asyncio.sleep(seconds)
            for proxy in hit:
                proxy.heal()


async def _talk(on: Field, rng: random.Random) -> None:
    due = time.monotonic()
    while True:
        on.step(rng)
        due = max(due + EVERY_S, time.monotonic())
        await asyncio.sleep(due - time.monotonic())


async def _wait(on: Field, within_s: float) -> list[str]:
    """Wait until all devices are where they should be; those that are not."""
    with suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            while on.elsewhere():
                on.witness.news.clear()
                await on.witness.news.wait()
                on.beat()
    return on.elsewhere()


async def _settled(on: Field, rng: random.Random, within_s: float) -> None:
    """Talk until everybody has heard the same."""
    end = time.monotonic() + within_s
    while True:
        on.step(rng)
        if not await _wait(on, VALID_S / 2):
            return
        if time.monotonic() > end:
            raise AssertionError(f"{len(on.elsewhere())} devices do not come back: {on.elsewhere()[:5]}")


async def soak(short: bool) -> list[Figure]:
    """R4: 8 faults on 100 devices in the short version, 50 on 1,000 in the full one."""
    devices, faults, seconds = (100, 8, (0.7, 1.5)) if short else (1000, 50, (0.7, 4.0))
    found = await survived(devices, faults, seed=4, seconds=seconds)
    slowest = max(found.converged_s)
    said = "converged {:.2f} s after a fault at the latest ({}), {} devices"
    return [
        counted(
            "R4", f"faults of {len(found.faults)} kinds, {devices:,} devices", faults, found.faults.total()
        ),
        counted("R4", f"devices elsewhere {WITHIN_S:g} s after a fault", 0, found.differing),
        Figure(
            "R4",
            said.format(slowest, found.worst, f"{devices:,}"),
            f"< {WITHIN_S:g} s",
            f"{slowest:.2f} s",
            slowest < WITHIN_S,
            hard=False,
        ),
        at_least("R4", "setpoints sent", devices * faults, found.sent),
    ]


# R5


@dataclass
class Storm:
    """What was sent, and what devices have done."""

    messages: list[tuple[str, bytes]] = field(default_factory=list)
    lines: list[Mapping[str, Any]] = field(default_factory=list)
    forged: int = 0
    ended: datetime | None = None
    """until when devices were watched"""


class _Weather:
    """Messages get lost, come twice and late, even after their time."""

    cut = False

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def held(self, way: Way, topic: str) -> bool:
        return False

    def fate(self, way: Way, topic: str, size: int) -> tuple[float, ...]:
        if not topic.endswith("/setpoint") and "/batch/" not in topic:
            return (0.0,)
        draw = self._rng.random()
        if draw < 0.1:
            return ()
        if draw < 0.3:
            return (0.0, self._rng.uniform(0.1, 3.0))
        return (self._rng.uniform(0.0, 1.5),) if draw < 0.5 else (0.0,)


async def stormy(devices: int, steps: int, *, seed: int) -> Storm:
    """Send setpoints through bad weather, with somebody who repeats old ones and sends what is none."""
    storm, text, rng = Storm(), Lines(), random.Random(seed)
    book = Book(text, Memory(None, "r"))  # type: ignore[arg-type]

    def heard(way: Way, message: Message, retain: bool) -> None:
        if way == "out":
            storm.messages.append((message.topic, message.payload))

    def around(bus: Bus) -> Bus:
        return TappedBus(FaultyBus(bus, _Weather(seed), time.monotonic, wakes=True), heard)

    async with opened(devices, book=book, around=around) as on:
        await asyncio.sleep(1.0)
        stranger = MqttBus(on.broker.url, client_id=f"s-{secrets.token_hex(4)}")
        async with stranger:
            for step in range(steps):
                on.step(rng)
                if step == steps // 2:
                    for proxy in on.proxies:
                        proxy.reset()
                for topic, payload in rng.sample(storm.messages, min(len(storm.messages), 8)):
                    if topic.endswith("/setpoint") or "/batch/" in topic:
                        stranger.publish(topic, payload)  # an old one, once more
                for _ in range(4):
                    storm.forged += _forge(stranger, rng, storm.messages)
                await asyncio.sleep(EVERY_S)
            await asyncio.sleep(2.0)
        storm.ended = datetime.now(UTC)
    storm.lines = [json.loads(line) for line in text.text]
    return storm


def _forge(stranger: MqttBus, rng: random.Random, messages: list[tuple[str, bytes]]) -> bool:
    """Send a message that is none, with a number that would win."""
    topic, payload = rng.choice(messages)
    kind = "setpoint" if topic.endswith("/setpoint") else "batch" if "/batch/" in topic else None
    if kind is None:
        return False
    bad = hostile.mutated(rng, [payload.replace(b'"seq":', b'"seq":9')])
    if checker.valid(kind, bad) or len(bad) > checker.MOST_BYTES:
        return False
    with suppress(ValueError):
        stranger.publish(topic, bad)
        return True
    return False
