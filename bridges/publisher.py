"""Publisher: the controller's side of the wire."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime

import msgspec

from bridges import wire
from bridges.area import area_topic, to_area_message
from bridges.bus import Bus, Message
from bridges.instruction import shortened, terse, to_message
from controllers.contract import Instruction, Kind
from controllers.forecast import Forecast


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

    def heartbeat(self, step: int, period_s: float, next_deadline: datetime) -> None:
        """Say that the controller is there, and until when it will be heard again.

        Raises:
            BadMessage: a number or time that cannot be sent.
        """
        if next_deadline.tzinfo is None:
            raise wire.BadMessage(f"heartbeat: next_deadline {next_deadline} has no time zone")
        beat = wire.Heartbeat(
            epoch=self.epoch,
            step=step,
            period_ms=period_s * 1000,
            next_deadline=next_deadline.astimezone(UTC),
        )
        self._bus.publish(wire.control_topic(self.run), wire.encode(beat), retain=True)

    async def flush(self, timeout_s: float) -> bool:
        """See `Bus.flush`."""
        return await self._bus.flush(timeout_s)

    def acks(self, messages: Iterable[Message] | None = None) -> list[tuple[str, wire.Ack]]:
        """The devices' answers that came in, of any epoch: (device, answer) in order of arrival.

        Takes everything from the bus. Who subscribes to more takes it himself and passes it in;
        what is not an answer of this run is left alone. Malformed ones are counted.
        """
        answers = []
        for message in self._bus.received() if messages is None else messages:
            try:
                address = wire.parse_topic(message.topic)
                if address.run == self.run and address.what == "ack":
                    answers.append((address.der, wire.decode(message.payload, wire.Ack)))
            except wire.BadMessage:
                self._bus.counts["malformed"] += 1
        return answers

    def close(self) -> None:
        """Say that the controller leaves. Flush afterwards."""
        will = last_will(self.run, self.epoch)
        self._bus.publish(will.topic, will.payload, retain=True)


def last_will(run: str, epoch: int) -> Message:
    """What the broker is to say, retained, if the controller vanishes; for `MqttBus(will=...)`."""
    return Message(wire.control_topic(run), wire.encode(wire.Offline(epoch=epoch)))
