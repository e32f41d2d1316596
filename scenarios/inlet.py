"""Inlet: what real devices and an operator say, sorted as it is taken from the bus; and the ways to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from math import hypot, inf

from bridges import wire
from bridges.answers import to_answer
from bridges.batch import decode_measured
from bridges.bus import Bus, Message
from bridges.operator import OperatorMessage, operator_topic
from bridges.publisher import Publisher
from bridges.rounds import Rounds
from bridges.wire import BadMessage, Meas
from controllers.contract import Instruction
from controllers.devices import Battery, Device, FlexibleLoad, WindTurbine
from controllers.rating import apparent_mva
from controllers.register import AHEAD
from simulators.clock import Clock
from simulators.devices import Receipt
from simulators.field import Image, Measurement, Word

BELIEVED = 10.0
"""Nobody measures more than so many times what a device is rated for."""
OLDEST_WORD = timedelta(seconds=60)
"""What an operator said before that is not what he wants now; `gridpace operate` lets it expire then."""


@dataclass(frozen=True)
class Ways:
    """How each device is told; who is not named here is told by itself over the bus."""

    gateways: Mapping[str, str] = field(default_factory=dict)
    """by device"""
    direct: frozenset[str] = frozenset()
    """real devices that speak for themselves on the bus"""
    rounds: Rounds | None = None
    """visits those that are not on the bus"""
    dry_run: frozenset[str] = frozenset()
    """told nothing"""
    held: Callable[[], frozenset[str]] = frozenset
    """whom an operator has taken"""
    most: Mapping[str, tuple[float, float | None]] = field(default_factory=dict)
    """by device: apparent power [MVA] and energy [MWh] beyond which nothing is believed to be measured; see
    `believable`"""

    @property
    def on_bus(self) -> bool:
        """Whether any real device says on the bus what it measures."""
        return bool(self.direct or self.gateways)


class BusInlet:
    """Takes everything from the bus, and keeps apart what is for whom: answers, for the recorder and for the
    field, measurements, and an operator's words. Nothing is acted on before the next tick.

    | count | meaning |
    |---|---|
    | measured-malformed | messages about devices that were not what their topic promises |
    | measured-foreign | measurements of a device by somebody who does not speak for it |
    | measured-early | measurements from the future, by a clock that is wrong |
    | measured-impossible | measurements of more than the device can be: its meter or its units are wrong |
    | answers-foreign | answers of a device by somebody who does not speak for it |
    | operator-malformed | words of an operator that were none |
    | operator-stale | words of an operator that are too old, to come, or older than his last on a device |
    """

    def __init__(self, bus: Bus, publisher: Publisher, clock: Clock, ways: Ways) -> None:
        self._bus, self._publisher, self._clock, self._ways = bus, publisher, clock, ways
        self._behind: dict[str, list[str]] = {}
        for der, gateway in ways.gateways.items():
            self._behind.setdefault(gateway, []).append(der)
        self._operator = operator_topic(publisher.run)
        bus.subscribe(self._operator)
        if ways.on_bus:
            for what in ("meas", "state", "batch-meas") if self._behind else ("meas", "state"):
                bus.subscribe(wire.device_pattern(publisher.run, what))
        self._telemetry: list[Message] = []
        self._fresh: list[Receipt] = []
        """answers that the field has not seen"""
        self._unread: list[Receipt] = []
        """answers that the recorder has not seen"""
        self._words: dict[str, datetime] = {}
        """when an operator has spoken last about a device, of what is not stale"""
        self.counts: Counter[str] = Counter()

    def sample(self, now: datetime) -> Image:
        """See `simulators.field.Inlet`."""
        self._take(now)
        messages, self._telemetry = self._telemetry, []
        receipts, self._fresh = tuple(self._fresh), []
        measured: list[Measurement] = []
        presence: dict[str, str] = {}
        words: list[Word] = []
        for message in messages:
            try:
                if message.topic == self._operator:
                    said = wire.decode(message.payload, OperatorMessage)
                    if self._timely(said):
                        words.append(Word(said.device, said.word == "hold", said.why))
                else:
                    self._read(message, now, measured, presence)
            except BadMessage:
                kind = "operator" if message.topic == self._operator else "measured"
                self.counts[f"{kind}-malformed"] += 1
        unreverted: dict[str, str] = {}
        if (rounds := self._ways.rounds) is not None:
            unreverted = rounds.unreverted
            for der, reading in rounds.readings().items():
                if reading.p_mw is not None and reading.q_mvar is not None:
                    meas = Meas(
                        time=reading.time.astimezone(UTC),
                        p_mw=reading.p_mw,
                        q_mvar=reading.q_mvar,
                        v_pu=reading.v_pu,
                        e_mwh=reading.e_mwh,
                    )
                    self._add(der, meas, now, measured)
        return Image(tuple(measured), receipts, presence, tuple(words), unreverted)

    def _timely(self, said: OperatorMessage) -> bool:
        """Whether an operator's word is his last on a device; he speaks by the wall clock at any pace."""
        wall = self._clock.wall()
        self._words = {device: at for device, at in self._words.items() if at >= wall - OLDEST_WORD}
        before = self._words.get(said.device, said.time)
        if not max(before, wall - OLDEST_WORD) <= said.time <= wall + AHEAD:
            self.counts["operator-stale"] += 1
            return False
        self._words[said.device] = said.time
        return True

    def wishes(self, p_mw: Mapping[str, float]) -> None:
        """See `simulators.field.Inlet`."""
        if (rounds := self._ways.rounds) is not None:
            for der, wish in p_mw.items():
                if der in rounds:
                    rounds.wish(der, wish)

    def withdraw(self, device: str) -> None:
        """See `simulators.field.Inlet`."""
        rounds = self._ways.rounds
        if rounds is not None and device in rounds:
            rounds.withdraw(device)
        else:
            self._publisher.withdraw(device)

    def receipts(self, now: datetime) -> list[Receipt]:
        """What devices have answered since the last call, for the recorder."""
        self._take(now)
        unread, self._unread = self._unread, []
        return unread

    def _take(self, now: datetime) -> None:
        """Sort what has arrived."""
        answers: list[Message] = []
        for message in self._bus.received():
            what = message.topic.rpartition("/")[2]
            if message.topic == self._operator or what in ("meas", "batch-meas", "state"):
                self._telemetry.append(message)
            elif self._answers(message):
                answers.append(message)
        said = [(der, to_answer(ack)) for der, ack in self._publisher.acks(answers)]
        if (rounds := self._ways.rounds) is not None:
            said += rounds.answers()
        new = [Receipt.of(der, answer, simulated(self._clock, answer.time, now)) for der, answer in said]
        self._fresh += new
        self._unread += new

    def _answers(self, message: Message) -> bool:
        """Whether an answer is not of a device for which somebody else speaks: its gateway, or its visitor.
        What is said of a twin is taken: a device of one's own may answer for it."""
        *_, der, what = ("", *message.topic.split("/"))
        rounds = self._ways.rounds
        if what == "ack" and (der in self._ways.gateways or (rounds is not None and der in rounds)):
            self.counts["answers-foreign"] += 1
            return False
        return True

    def _read(
        self, message: Message, now: datetime, measured: list[Measurement], presence: dict[str, str]
    ) -> None:
        address = wire.parse_topic(message.topic)
        if (address.run, address.area) != (self._publisher.run, self._publisher.area):
            return
        ways, who = self._ways, address.der
        if address.what == "state":
            state = wire.decode(message.payload, wire.State).state if message.payload else "offline"
            for der in self._behind.get(who, [who] if who in ways.direct else []):
                presence[der] = state
        elif address.what == "meas":
            self._heard(who in ways.direct, who, wire.decode(message.payload, Meas), now, measured)
        else:
            for der, meas in decode_measured(message.payload):
                self._heard(ways.gateways.get(der) == who, der, meas, now, measured)

    def _heard(self, theirs: bool, der: str, meas: Meas, now: datetime, measured: list[Measurement]) -> None:
        if theirs:
            self._add(der, meas, now, measured)
        else:
            self.counts["measured-foreign"] += 1

    def _add(self, der: str, meas: Meas, now: datetime, measured: list[Measurement]) -> None:
        said = self._clock.simulated(meas.time) if self._clock.paced else now
        if said > now + AHEAD * self._clock.factor:
            self.counts["measured-early"] += 1
            return
        if not self._possible(der, meas):
            self.counts["measured-impossible"] += 1
            return
        measured.append(
            Measurement(der, min(said, now), meas.p_mw, meas.q_mvar, meas.v_pu, meas.e_mwh, meas.state)
        )

    def _possible(self, der: str, meas: Meas) -> bool:
        """Whether a device could be where it says it is. What nothing can be is left out, and the device goes
        stale: else no power flow of all the others would have a solution."""
        s_mva, e_mwh = self._ways.most.get(der, (inf, None))
        if e_mwh is not None and meas.e_mwh is not None and not abs(meas.e_mwh) <= e_mwh:
            return False
        return hypot(meas.p_mw, meas.q_mvar) <= s_mva


def believable(device: Device) -> tuple[float, float | None]:
    """Most apparent power [MVA] and stored energy [MWh] that a device is believed to measure; `None`: it has
    no store."""
    s_mva = apparent_mva(device)
    if isinstance(device, WindTurbine | FlexibleLoad):  # a power factor near 0 would let it say anything
        s_mva = min(s_mva, 10 * device.p_mw)
    return BELIEVED * s_mva, BELIEVED * device.e_mwh if isinstance(device, Battery) else None


def simulated(clock: Clock, said: datetime, now: datetime) -> datetime:
    """The simulated time of a device's word: its own where the clock is paced, but never to come."""
    return min(clock.simulated(said), now) if clock.paced else now


def on_wall(told: Instruction, clock: Clock) -> Instruction:
    """An instruction with the times of the devices."""
    if not clock.paced:
        return told
    at = clock.on_wall
    later = tuple(replace(span, start=at(span.start), end=at(span.end)) for span in told.later)
    return replace(
        told,
        issued_at=at(told.issued_at),
        valid_from=at(told.valid_from),
        valid_until=at(told.valid_until),
        later=later,
    )
