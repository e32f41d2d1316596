"""Publisher: the controller's side of the wire."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from itertools import accumulate

import msgspec

from bridges import wire
from bridges.answers import decode_acks, decode_batch_acks
from bridges.area import area_topic, to_area_message
from bridges.bus import MAX_PAYLOAD_BYTES, Bus, Message
from bridges.instruction import shortened, terse, to_message
from bridges.parts import Parts
from controllers.contract import Instruction, Kind
from controllers.forecast import Forecast

ROOM = MAX_PAYLOAD_BYTES - 1000
"""Bytes of names in a heartbeat."""


class Publisher:
    """Sends one area's instructions and heartbeats, and reads the devices' answers.

    Args:
        bus: entered by the caller, before or after.
        run: name of the run, the first level of its topics.
        area: name of the area, the second level.
        epoch: how often the run's controller was started.

    Raises:
        BadMessage: a name that cannot be in a topic.
    """

    def __init__(self, bus: Bus, *, run: str, area: str, epoch: int) -> None:
        wire.check_address(run, area, "any")
        self._bus = bus
        self.run = run
        self.area = area
        self.epoch = epoch
        self._gateways: dict[str, Parts] = {}
        bus.subscribe(wire.device_pattern(run, "ack"))

    def send(
        self,
        instruction: Instruction,
        ttl_s: float,
        *,
        wall: Callable[[datetime], datetime] | None = None,
    ) -> None:
        """Publish an instruction, retained, for `ttl_s` seconds; never waits.

        A schedule that no message holds is sent without the certificates of its later spans (`terse` counts
        these); where that is not enough, the first spans are sent, and for as much shorter: a device that
        hears nothing more obeys its default the sooner (`shortened` counts these).

        Args:
            ttl_s: from now until the end of the schedule.
            wall: turns the time of the simulation into that of the devices; by default the same.

        Raises:
            BadMessage: it cannot be sent as it is.
            ValueError: it belongs to another epoch.
        """
        topic = wire.device_topic(self.run, self.area, instruction.device, "setpoint")

        def made(sent: Instruction, left_s: float) -> msgspec.Struct:
            return to_message(sent, run=self.run, area=self.area, ttl_s=left_s, wall=wall)

        self._publish(topic, instruction, ttl_s, made)

    def send_batch(
        self,
        gateway: str,
        instructions: Iterable[tuple[Instruction, float]],
        *,
        wall: Callable[[datetime], datetime] | None = None,
    ) -> None:
        """Publish what devices behind a gateway are told, retained, in few messages; never waits.

        Only parts with something new are sent. Schedules that are too long are shortened as in `send`.

        Args:
            instructions: (instruction, seconds for which it lives from now on).
            wall: see `send`.

        Raises:
            BadMessage: one of them cannot be sent as it is; then none is.
            ValueError: one belongs to another epoch.
        """
        if (parts := self._gateways.get(gateway)) is None:
            parts = Parts(run=self.run, area=self.area, gateway=gateway, epoch=self.epoch)
            self._gateways[gateway] = parts
            self._bus.subscribe(wire.device_pattern(self.run, "batch-ack"))
        for sent in parts.put(instructions, wall):
            self._bus.publish(sent.topic, sent.payload, retain=True, ttl_s=sent.ttl_s)

    def withdraw(self, der: str) -> None:
        """Take back what a device was told: the broker keeps no copy. What it has accepted runs out.

        Raises:
            BadMessage: a name that cannot be in a topic.
        """
        topic = wire.device_topic(self.run, self.area, der, "setpoint")
        self._bus.publish(topic, b"", retain=True)
        for parts in self._gateways.values():
            if (sent := parts.withdraw(der)) is not None:
                self._bus.publish(sent.topic, sent.payload, retain=True, ttl_s=sent.ttl_s)

    def announce(
        self,
        said: Instruction,
        ttl_s: float,
        *,
        kind: Kind,
        controller: str,
        plan: Forecast | None = None,
        wall: Callable[[datetime], datetime] | None = None,
    ) -> None:
        """Publish what a controller says about an area, retained, for `ttl_s` seconds; never waits.

        Args:
            said: like an instruction whose device is the area; one too long is shortened as in `send`.
            plan: what the area means to exchange, if that is known.
            ttl_s, wall: see `send`.

        Raises:
            BadMessage, ValueError: see `send`.
        """
        topic = area_topic(self.run, said.device, kind)

        def made(sent: Instruction, left_s: float) -> msgspec.Struct:
            return to_area_message(
                sent, kind=kind, controller=controller, plan=plan, run=self.run, ttl_s=left_s, wall=wall
            )

        self._publish(topic, said, ttl_s, made)

    def retract(self, area: str, kind: Kind) -> None:
        """Withdraw what was said about an area: its retained message goes.

        Raises:
            BadMessage: a name that cannot be in a topic.
        """
        self._bus.publish(area_topic(self.run, area, kind), b"", retain=True)

    def _publish(
        self,
        topic: str,
        instruction: Instruction,
        ttl_s: float,
        made: Callable[[Instruction, float], msgspec.Struct],
    ) -> None:
        """Publish the message that is made of as much of an instruction as one holds."""
        if instruction.epoch != self.epoch:
            raise ValueError(
                f"instruction {instruction.seq} for {instruction.device} is of epoch {instruction.epoch}, "
                f"this publisher of {self.epoch}; construct one for each epoch"
            )
        sent, brief = shortened(instruction, wire.MAX_LATER), False
        while True:
            part = 1.0
            if sent is not instruction:
                part = (sent.valid_until - sent.issued_at) / (instruction.valid_until - sent.issued_at)
            message = made(sent, ttl_s * part)
            try:
                payload = wire.encode(message)
                break
            except wire.BadMessage:
                if not sent.later:
                    raise
            if (without := terse(sent)) is not sent:
                sent, brief = without, True
            else:
                sent = shortened(sent, len(sent.later) * 7 // 8)
        if brief:
            self._bus.counts["terse"] += 1
        if len(sent.later) < len(instruction.later):
            self._bus.counts["shortened"] += 1
        self._bus.publish(topic, payload, retain=True, ttl_s=ttl_s * part)

    def heartbeat(
        self, step: int, period_s: float, next_deadline: datetime, held: Iterable[str] = ()
    ) -> None:
        """Say that the controller is there, and until when it will be heard again.

        Args:
            held: devices that an operator has taken; all are counted, and named as many as fit.

        Raises:
            BadMessage: a number or time that cannot be sent.
        """
        taken = sorted(held)
        beat = wire.Heartbeat(
            epoch=self.epoch,
            step=step,
            period_ms=period_s * 1000,
            next_deadline=wire.utc("heartbeat: next_deadline", next_deadline),
            held=_fitting(taken),
            held_count=len(taken),
        )
        self._bus.publish(wire.control_topic(self.run), wire.encode(beat), retain=True)

    async def flush(self, timeout_s: float) -> bool:
        """See `Bus.flush`."""
        return await self._bus.flush(timeout_s)

    def acks(self, messages: Iterable[Message] | None = None) -> list[tuple[str, wire.Ack]]:
        """The devices' answers that came in, of any epoch: (device, answer) in order of arrival.

        Takes everything from the bus. Who subscribes to more takes it himself and passes it in;
        what is not an answer of this run and area is left alone, as is what a gateway says of devices not
        told through it. Malformed ones are counted.
        """
        answers: list[tuple[str, wire.Ack]] = []
        for message in self._bus.received() if messages is None else messages:
            try:
                address = wire.parse_topic(message.topic)
                if (address.run, address.area) != (self.run, self.area):
                    continue
                if address.what == "ack":
                    answers += [(address.der, ack) for ack in decode_acks(message.payload)]
                elif address.what == "batch-ack" and (gateway := self._gateways.get(address.der)):
                    answers += [one for one in decode_batch_acks(message.payload) if one[0] in gateway]
            except wire.BadMessage:
                self._bus.counts["malformed"] += 1
        return answers

    def close(self) -> None:
        """Say that the controller leaves. Flush afterwards."""
        will = last_will(self.run, self.epoch)
        self._bus.publish(will.topic, will.payload, retain=True)


def _fitting(names: list[str]) -> tuple[str, ...]:
    """As many names as a heartbeat has room for."""
    ends = accumulate(len(name.encode()) + len(b'"",') for name in names)
    return tuple(name for name, end in zip(names, ends, strict=False) if end <= ROOM)


def last_will(run: str, epoch: int) -> Message:
    """What the broker is to say, retained, if the controller vanishes; for `MqttBus(will=...)`."""
    return Message(wire.control_topic(run), wire.encode(wire.Offline(epoch=epoch)))
