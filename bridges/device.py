"""DeviceSide: a device's side of the wire, or that of a gateway with many devices behind it.

It takes what arrives, lets a `Register` accept it, has the plant do it, answers, and says what is measured.
All times are given to it, so that a test has its own; `bridges.serving` runs it in real time.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from math import inf
from typing import Any, NamedTuple, Protocol

import msgspec

from bridges import batch, wire
from bridges.answers import encode_answers, encode_batch_answers
from bridges.bus import Bus, Message
from bridges.instruction import to_instruction
from bridges.wire import BadMessage
from controllers.contract import Instruction
from controllers.register import Answer, Life, Order, Refusal, Regime, Register

log = logging.getLogger("gridpace.device")

PATIENCE_S = (5.0, 60.0)
"""Shortest and longest time between new connections while no instruction comes."""
UNSENT = 10_000
"""Answers kept while there is no connection; the newest ones."""
SHORTEST_S = 1e-3
"""Shortest time for which a plant holds a point."""
_RECEIVED, _APPLIED, _FAILSAFE = Life.RECEIVED, Life.APPLIED, Regime.FAILSAFE  # of thousands of devices


class Held(NamedTuple):
    """What a plant does and measures. Missing is `None`, never zero."""

    p_mw: float
    q_mvar: float
    v_pu: float | None = None
    e_mwh: float | None = None
    regime: Regime | None = None
    """`None`: as ordered"""


class Plant(Protocol):
    """What the device is, behind its register."""

    def hold(self, order: Order, mono: float, every_s: float) -> Held:
        """Go to where an order wants it and stay there, until the next call.

        Args:
            mono: seconds of a monotonic clock; what was held before has ended now.
            every_s: when the next call is expected; it may come sooner.
        """
        ...


class Witness(Protocol):
    """Whoever keeps a record of what a device does."""

    def answered(self, der: str, answer: Answer, told: Instruction | None) -> None:
        """A device is about to answer; `told` is what it answers to where that has just arrived."""
        ...

    def held(self, der: str, at: datetime, order: Order, held: Held) -> None:
        """A device holds a point."""
        ...


class _Numbers(msgspec.Struct):
    """All that is read of a malformed instruction."""

    epoch: int
    seq: int


class _NumberedGroup(msgspec.Struct):
    seq: int
    told: list[list[Any]]


class _NumberedBatch(msgspec.Struct):
    epoch: int
    groups: list[_NumberedGroup]


def _same(one: Order, other: Order) -> bool:
    """Whether orders are the same objects; what is equal to the last bit, but new, may be obeyed anew."""
    return one.instruction is other.instruction and one.region is other.region and one.regime is other.regime


class DeviceSide:
    """Devices that one connection speaks for.

    Args:
        devices: register and plant of each, by name; without a gateway a single one.
        run, area: of the topics.
        gateway: its name, if the devices are told in batches.
        every_s: how often a plant is called and a measurement sent.
        wall, monotonic: the clocks.
        witness: keeps a record.

    Raises:
        BadMessage: a name that cannot be in a topic.
        ValueError: several devices without a gateway, or none.
    """

    def __init__(
        self,
        devices: Mapping[str, tuple[Register, Plant]],
        *,
        run: str,
        area: str,
        gateway: str | None = None,
        every_s: float = 1.0,
        wall: Callable[[], datetime],
        monotonic: Callable[[], float],
        witness: Witness | None = None,
    ) -> None:
        if not devices or (gateway is None and len(devices) > 1):
            raise ValueError(f"{len(devices)} devices on one connection; give one, or the name of a gateway")
        if not every_s > 0:
            raise ValueError(f"every_s {every_s} must be positive")
        for der in devices:
            wire.check_address(run, area, der)
        self._devices, self._gateway, self._every_s = dict(devices), gateway, every_s
        self._run, self._area, self._name = run, area, gateway or next(iter(devices))
        wire.check_address(run, area, self._name)
        self._wall, self._monotonic = wall, monotonic
        self._witness = witness
        self._bus: Bus | None = None
        self._answers: deque[tuple[str, Answer]] = deque(maxlen=UNSENT)
        self._failsafe: set[str] = set()
        self._broken: set[str] = set()  # whose plants have raised when they were called last
        self._measured: list[bytes] = []
        self._answering, self._measuring = asyncio.Lock(), asyncio.Lock()
        self._orders: dict[str, Order] = {}  # of all devices from the first `tick` on
        self._held: dict[str, Held] = {}
        self._due_s = dict.fromkeys(devices, -inf)  # when a device's order changes by itself
        self._next_s: float | None = None  # when all plants are called again
        self._state: str | None = None
        self._beat = b""
        self._beat_until_s = inf
        self._opened_s = -inf
        self._patience_s = 0.0
        self._happened: Counter[str] = Counter()
        self._words: Counter[tuple[Life, Refusal | None]] = Counter()

    @property
    def counts(self) -> Counter[str]:
        """received, repeated, malformed, strange, undated, plant-raised, reopened, and answers by state and
        code"""
        said = {f"{word}-{code}" if code else str(word): n for (word, code), n in self._words.items()}
        return self._happened + Counter(said)

    @property
    def will(self) -> Message:
        """What the broker is to say, retained, if the connection vanishes."""
        return Message(self._topic("state"), wire.encode(wire.State(state="offline")))

    # The connection

    def begin(self, bus: Bus) -> None:
        """Use a connection from now on."""
        self._bus, self._opened_s, self._state = bus, self._monotonic(), None
        if self._gateway is None:
            bus.subscribe(self._topic("setpoint"))
        else:
            bus.subscribe(batch.batch_pattern(self._run, self._area, self._gateway))
        bus.subscribe(wire.control_topic(self._run))
        self._say_state()

    def end(self) -> None:
        """Do without a connection until the next `begin`."""
        self._bus = None

    def leave(self) -> None:
        """Say that the device leaves. Flush afterwards."""
        if self._bus is not None:
            self._bus.publish(self.will.topic, self.will.payload, retain=True)

    def reopen(self) -> bool:
        """Whether the connection should be opened anew: nothing valid comes, so it may be deaf."""
        now = self._monotonic()
        if not (self._failsafe or now >= self._beat_until_s):
            self._patience_s = 0.0
            return False
        if now < self._opened_s + self._patience_s:
            return False
        self._patience_s = min(max(2 * self._patience_s, PATIENCE_S[0]), PATIENCE_S[1])
        self._happened["reopened"] += 1
        return True

    async def drain(self) -> None:
        """Send the answers and the measurements that `hear` and `tick` have left.

        Answers do not wait for measurements: who finds these on their way leaves newer ones to the next call.
        """
        async with self._answering:
            # What waits in a bus that is not connected is lost with it.
            if self._answers and self._bus is not None and self._bus.connected:
                answers, self._answers = list(self._answers), deque(maxlen=UNSENT)
                if self._gateway is None:
                    payloads = [encode_answers(answer for _, answer in answers)]
                else:
                    payloads = list(encode_batch_answers(answers))
                await self._send("ack" if self._gateway is None else "batch-ack", payloads)
        if self._measured and not self._measuring.locked():
            async with self._measuring:
                measured, self._measured = self._measured, []
                what: wire.What = "meas" if self._gateway is None else "batch-meas"
                await self._send(what, measured, 2 * self._every_s)

    async def _send(self, what: wire.What, payloads: list[bytes], ttl_s: float | None = None) -> None:
        """Send one after the other, since a bus keeps only the newest of a topic."""
        for i, payload in enumerate(payloads):
            if self._bus is None:
                return
            if i:
                await self._bus.flush(self._every_s)
            if self._bus is not None:
                self._bus.publish(self._topic(what), payload, ttl_s=ttl_s)
                await asyncio.sleep(0)  # it is on its way before another one can take its place

    # What arrives

    def hear(self) -> bool:
        """Take what has arrived, and act on it at once; whether there was anything.

        It does not measure, so that the answers need not wait for that.
        """
        if self._bus is None or not (messages := self._bus.received()):
            return False
        for message in messages:
            self._happened["received"] += 1
            what = message.topic.split("/")[4:]
            if what == ["state"]:
                self._hear_control(message.payload)
            elif message.payload:  # else what was retained has been withdrawn
                self._hear_instructions(message)
        if self._next_s is None:
            self.tick()  # the first one calls all plants
        else:
            mono = self._monotonic()
            self._obey(self._due(mono), self._wall(), mono, self._next_s)
        return True

    def _hear_control(self, payload: bytes) -> None:
        try:
            said = wire.decode_control(payload)
        except BadMessage:
            self._happened["malformed"] += 1
            return
        if isinstance(said, wire.Offline):
            self._beat_until_s = inf
        elif payload != self._beat:  # the retained one of a controller that is gone is no sign of life
            self._beat = payload
            self._beat_until_s = self._monotonic() + 2 * said.period_ms / 1e3 + 1.0

    def _hear_instructions(self, message: Message) -> None:
        try:
            told = self._read(message)
        except BadMessage as error:
            self._happened["malformed"] += 1
            now = self._wall()
            for der, epoch, seq in self._numbers(message.payload):
                code = Refusal.MALFORMED
                self._say(der, [Answer(epoch, seq, Life.REFUSED, now, code, str(error))], None)
            return
        now, mono, devices = self._wall(), self._monotonic(), self._devices
        for instruction, ttl_s in told:
            der = instruction.device
            if der not in devices:
                self._happened["strange"] += 1
                continue
            register, _ = devices[der]
            if (known := register.standing(instruction.epoch, instruction.seq)) is not None:
                self._happened["repeated"] += 1
                self._answers.append((der, known))
                continue
            if not register.synchronised:
                if (expires_s := message.expires_s) is not None:
                    ttl_s = min(ttl_s, expires_s)
                elif message.retained:  # it may have been there for days, and nobody says
                    self._happened["undated"] += 1
                    continue
            self._due_s[der] = -inf
            self._say(der, register.take(instruction, now, mono, ttl_s), instruction)

    def _read(self, message: Message) -> Iterable[tuple[Instruction, float]]:
        if self._gateway is None:
            one = wire.decode(message.payload, wire.SetpointMessage)
            meant = wire.device_topic(one.run, one.area, one.der, "setpoint")
            told = [(to_instruction(one), one.ttl_ms / 1e3)]
        else:
            many = wire.decode(message.payload, batch.Batch)
            meant = batch.batch_topic(many.run, many.area, many.gateway, many.part)
            told = batch.to_instructions(many)
        if meant != message.topic:
            raise BadMessage(f"the message is for {meant}")
        return told

    def _numbers(self, payload: bytes) -> list[tuple[str, int, int]]:
        """Device, epoch and number of a malformed message, as far as they can be read."""
        found: list[tuple[str, int, int]] = []
        with suppress(BadMessage):
            if self._gateway is None:
                one = wire.decode(payload, _Numbers)
                found = [(self._name, one.epoch, one.seq)]
            else:
                many = wire.decode(payload, _NumberedBatch)
                found = [
                    (told[0], many.epoch, group.seq)
                    for group in many.groups
                    for told in group.told
                    if told and isinstance(told[0], str) and told[0] in self._devices
                ]
            for _, epoch, seq in found:
                wire.check_numbers(epoch=epoch, seq=seq)
            return found
        return []

    # What time brings

    def tick(self) -> float:
        """Do what is due; seconds until something is due again."""
        now, mono = self._wall(), self._monotonic()
        if self._next_s is None or mono >= self._next_s:
            begun = mono if self._next_s is None else self._next_s
            missed = (mono - begun) // self._every_s
            self._next_s = begun + (missed + 1) * self._every_s
            self._obey(self._devices, now, mono, self._next_s, everybody=True)
            self._measured = self._measure(now)
        else:
            self._obey(self._due(mono), now, mono, self._next_s)
        return max(min(self._next_s, min(self._due_s.values())) - mono, 0.0)

    def _due(self, mono: float) -> list[str]:
        return [der for der, at_s in self._due_s.items() if at_s <= mono]

    def _obey(
        self, ders: Iterable[str], now: datetime, mono: float, next_s: float, *, everybody: bool = False
    ) -> None:
        """Do what is due at some devices; plants are called where the order is new, or all of them."""
        due_s, orders = self._due_s, self._orders
        for der in ders:
            register, plant = self._devices[der]
            # What was just told has brought its register up to date; to ask thousands again is not free.
            answers = () if due_s[der] == -inf else register.tick(now, mono)
            if answers:
                self._say(der, answers, None)
            order = before = orders.get(der)
            # An order that stays as it is until all plants are called again is not made again. A schedule's
            # is: it follows the wall clock, which may jump. So does what `tick` has just looked at.
            if (
                order is None
                or answers
                or due_s[der] <= next_s
                or (order.instruction and order.instruction.later)
            ):
                orders[der] = order = register.order(now, mono)
                due_s[der] = mono + register.quiet_s(now, mono)
                (self._failsafe.add if order.regime is _FAILSAFE else self._failsafe.discard)(der)
            if everybody or before is None or not _same(order, before):
                self._hold(der, plant, order, now, mono, max(min(next_s, due_s[der]) - mono, SHORTEST_S))
        self._say_state()

    def _hold(self, der: str, plant: Plant, order: Order, now: datetime, mono: float, lasts_s: float) -> None:
        """Have a plant do what it has to do. One that cannot, by a mistake of its own, is sent to its own
        default and asked again when all plants are; what it does not say then is missing. It is no reason to
        leave the others alone."""
        try:
            held = plant.hold(order, mono, lasts_s)
            self._broken.discard(der)
        except Exception:
            self._happened["plant-raised"] += 1
            if der not in self._broken:
                log.exception("%s cannot do what it is told, and goes to its default", der)
            self._broken.add(der)
            order = Order(Regime.INIT)
            try:
                held = plant.hold(order, mono, lasts_s)._replace(regime=_FAILSAFE)
            except Exception:
                self._held.pop(der, None)
                return
        self._held[der] = held
        if self._witness is not None:
            self._witness.held(der, now, order, held)

    # What is said

    def _say(self, der: str, answers: Sequence[Answer], told: Instruction | None) -> None:
        for answer in answers:
            self._words[answer.state, answer.code] += 1
            if self._witness is not None:
                own = told is not None and (answer.epoch, answer.seq) == (told.epoch, told.seq)
                self._witness.answered(der, answer, told if own else None)
            if self._gateway is None or answer.state is not _RECEIVED or answers[-1].state is not _APPLIED:
                self._answers.append((der, answer))  # of many, what is applied at once is said in a word

    def _measure(self, now: datetime) -> list[bytes]:
        """The messages with what is measured."""
        now = now.astimezone(UTC)
        readings = [
            batch.Reading(
                der, held.p_mw, held.q_mvar, held.v_pu, held.e_mwh, held.regime or self._orders[der].regime
            )
            for der, held in self._held.items()
        ]
        if self._gateway is not None:
            return batch.encode_measured(now, readings)
        return [wire.encode(batch.meas_of(now, one)) for one in readings]

    def _say_state(self) -> None:
        state = "fallback" if self._failsafe or self._broken else "online"
        if self._bus is not None and state != self._state:
            self._state = state
            said = wire.State(state=state, time=self._wall().astimezone(UTC))  # type: ignore[arg-type]
            self._bus.publish(self._topic("state"), wire.encode(said), retain=True)

    def _topic(self, what: wire.What) -> str:
        return wire.device_topic(self._run, self._area, self._name, what)
