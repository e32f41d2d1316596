"""What leaves and what comes back: outbox, outlet and recorder, on a bus in memory and a real one."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridges import wire
from bridges.broker import EmbeddedBroker, NoBroker
from bridges.memory import MemoryBus, MemoryHub
from bridges.mqtt import MqttBus
from bridges.publisher import Publisher
from controllers.contract import Instruction
from controllers.devices import still
from controllers.forecast import Forecast
from controllers.region import Region
from scenarios.inlet import Ways
from scenarios.outlet import BusOutlet
from scenarios.run import Exit
from simulators.clock import Clock, Duty, Mode, Tick
from simulators.devices import Receipt
from simulators.grid import Measured
from simulators.journal import Journal, read
from simulators.outbox import OutboxSimulator, Published
from simulators.recorder import RecorderSimulator
from simulators.tables import Outcome
from tests.running import FakeTime, do

START = datetime(2026, 6, 21, tzinfo=UTC)
EVERY = timedelta(minutes=5)


def instruction(seq: int = 1) -> Instruction:
    return Instruction(
        device="pv6",
        epoch=1,
        seq=seq,
        issued_at=START + (seq - 1) * EVERY,
        valid_from=START + seq * EVERY,
        valid_until=START + (seq + 2) * EVERY,
        region=Region.box(p_mw=(-0.1, 0.7), q_mvar=(0.0, 0.0)),
        setpoint=None,
        fallback=still(),
    )


def tick(step: int, duty: Duty = Duty.FULL) -> Tick:
    return Tick(step, START + step * EVERY, duty, START)


class Log:
    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, at: datetime, what: str, **details: Any) -> None:
        self.events.append((what, details))


async def test_instructions_leave_and_answers_come_back_through_the_bus() -> None:
    hub, log = MemoryHub(), Log()
    async with MemoryBus(hub) as ours, MemoryBus(hub) as device:
        device.subscribe("gridpace/v1/+/+/+/setpoint")
        clock = Clock(START, EVERY)
        outbox = OutboxSimulator(BusOutlet(Publisher(ours, run="r", area="a", epoch=1), clock), clock, log)
        published = await outbox.run(tick(0), (instruction(),))
        assert [i.seq for i in published.instructions] == [1]
        (heard,) = device.received()
        message = wire.decode(heard.payload, wire.SetpointMessage)
        assert (message.epoch, message.seq, message.ttl_ms) == (1, 1, 900_000)
        for state in ("received", "applied"):
            ack = wire.Ack(epoch=1, seq=1, state=state, time=START)  # type: ignore[arg-type]
            device.publish(wire.device_topic("r", "a", "pv6", "ack"), wire.encode(ack))
        device.publish(wire.device_topic("r", "a", "pv6", "ack"), b"rubbish")
        assert (await outbox.run(tick(1), ())).receipts == (
            Receipt("pv6", 1, 1, START + EVERY, Outcome.RECEIVED),
            Receipt("pv6", 1, 1, START + EVERY, Outcome.APPLIED),
        )
        assert ours.counts["malformed"] == 1
        assert (await outbox.run(tick(2), ())).receipts == ()
    assert not log.events


async def test_a_paced_clock_speaks_of_wall_time_to_devices() -> None:
    hub, time = MemoryHub(), FakeTime()
    async with MemoryBus(hub) as ours, MemoryBus(hub) as device:
        device.subscribe("gridpace/v1/+/+/+/setpoint")
        clock = Clock(
            START, EVERY, Mode.SCALED, 60.0, monotonic=time.monotonic, wall=time.wall, sleep=time.sleep
        )
        first = await clock.tick(0)
        outbox = OutboxSimulator(BusOutlet(Publisher(ours, run="r", area="a", epoch=1), clock), clock, Log())
        await outbox.run(first, (instruction(),))
        (heard,) = device.received()
    message = wire.decode(heard.payload, wire.SetpointMessage)
    assert message.issued == time.wall()
    assert message.valid_until == time.wall() + timedelta(seconds=15)  # 15 minutes at 60 times the pace
    assert message.ttl_ms == 15_000


async def test_an_instruction_that_no_message_holds_is_an_event_and_the_others_leave() -> None:
    hub, log = MemoryHub(), Log()
    angle = np.linspace(0, 2 * np.pi, 2000)
    huge = Region(("p_mw", "q_mvar"), np.column_stack([np.cos(angle), np.sin(angle)]), np.ones(2000))
    async with MemoryBus(hub) as ours:
        clock = Clock(START, EVERY)
        outbox = OutboxSimulator(BusOutlet(Publisher(ours, run="r", area="a", epoch=1), clock), clock, log)
        published = await outbox.run(tick(0), (replace(instruction(), region=huge), instruction()))
    assert len(published.instructions) == 1
    assert [what for what, _ in log.events] == ["unsendable"]
    assert outbox.counts["instructions-sent"] == 1


async def test_a_heartbeat_names_as_many_as_it_has_room_for_and_counts_all() -> None:
    hub, held = MemoryHub(), frozenset(f"der-{k:05}" for k in range(10_000))
    async with MemoryBus(hub) as ours:
        clock = Clock(START, EVERY)
        outlet = BusOutlet(Publisher(ours, run="r", area="a", epoch=1), clock, ways=Ways(held=lambda: held))
        log = Log()
        await OutboxSimulator(outlet, clock, log).run(tick(0), ())
        (kept,) = hub.retained("gridpace/v1/r/ctl/state")
        beat = wire.decode_control(kept.payload)
    assert isinstance(beat, wire.Heartbeat)
    assert beat.held_count == 10_000
    assert beat.held == tuple(sorted(held))[: len(beat.held)]
    assert len(beat.held) > 5_000
    assert not log.events


async def test_a_heartbeat_that_cannot_be_sent_ends_no_run() -> None:
    async with MemoryBus() as ours:
        clock, log = Clock(START, EVERY), Log()
        outlet = BusOutlet(Publisher(ours, run="r", area="a", epoch=1), clock)
        outbox = OutboxSimulator(outlet, clock, log)
        late = replace(tick(0), time=datetime(2300, 1, 1, tzinfo=UTC))  # a year that no message has
        published = await outbox.run(late, ())
    assert published.publish_ms is not None
    assert [(what, details["why"][:11]) for what, details in log.events] == [("unsendable", "heartbeat: ")]
    assert outbox.counts["unsendable"] == 1


async def test_a_paced_run_sees_its_broker_come_back() -> None:
    broker = EmbeddedBroker(prefer="mosquitto")
    try:
        await broker.start()
    except NoBroker as error:
        pytest.skip(f"needs mosquitto: {error}")
    log, time = Log(), FakeTime()
    sources = {"monotonic": time.monotonic, "wall": time.wall, "sleep": time.sleep}
    clock = Clock(START, timedelta(seconds=1), Mode.LIVE, **sources)  # type: ignore[arg-type]
    try:
        async with MqttBus(broker.url, client_id="ours") as bus:
            outbox = OutboxSimulator(BusOutlet(Publisher(bus, run="r", area="a", epoch=1), clock), clock, log)
            await outbox.run(tick(0), (instruction(1),))
            await broker.stop(kill=True)
            await outbox.run(tick(1), (instruction(2),))
            assert [what for what, _ in log.events] == ["bus-unreachable"]
            await broker.start()
            assert await bus.flush(20)  # connected again, and told the newest
            await outbox.run(tick(2), (instruction(3),))
            assert [what for what, _ in log.events] == ["bus-unreachable", "bus-reachable"]
            published = await outbox.run(tick(3), (instruction(4),))
            assert published.publish_ms is not None
            assert outbox.counts["bus-unreachable"] == 1
    finally:
        await broker.stop()


async def test_an_absent_broker_is_one_event_and_every_step_is_counted() -> None:
    hub, log = MemoryHub(), Log()
    async with MemoryBus(hub) as ours:
        clock = Clock(START, EVERY)
        outbox = OutboxSimulator(BusOutlet(Publisher(ours, run="r", area="a", epoch=1), clock), clock, log)
        outbox.PATIENCE_S = 0.0  # type: ignore[misc]
        await outbox.run(tick(0), (instruction(1),))
        hub.down()
        for step in (1, 2, 3):
            await outbox.run(tick(step), (instruction(step + 1),))
        hub.restore()
        await outbox.run(tick(4), ())
        assert [what for what, _ in log.events] == ["bus-unreachable", "bus-reachable"]
        assert outbox.counts["bus-unreachable"] == 2  # an un-paced step waits for the one before
        retained = hub.retained("gridpace/v1/r/a/pv6/setpoint")
        assert wire.decode(retained[0].payload, wire.SetpointMessage).seq == 4


async def test_a_skipped_step_sends_nothing() -> None:
    hub = MemoryHub()
    async with MemoryBus(hub) as ours:
        clock = Clock(START, EVERY)
        outbox = OutboxSimulator(BusOutlet(Publisher(ours, run="r", area="a", epoch=1), clock), clock, Log())
        published = await outbox.run(tick(0, Duty.SKIP), (instruction(),))
        assert published.instructions == ()
        assert ours.counts["published"] == 0


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[RecorderSimulator]:
    journal = Journal(tmp_path)
    yield RecorderSimulator(journal, buses=(), branches=(), devices=(), forecasts=False)
    journal.close()


def record(
    recorder: RecorderSimulator, step: int, published: Published, receipts: tuple[Receipt, ...] = ()
) -> None:
    forecast = Forecast.empty(START, EVERY)
    told = (*published.instructions, *published.unsent)
    recorder.record(tick(step), Measured(), forecast, (), told, receipts, ())
    recorder.sent(tick(step), published)


@pytest.mark.parametrize("order", ["bus first", "twin first", "together"])
def test_an_acknowledgement_and_a_twins_receipt_make_one_row(
    recorder: RecorderSimulator, tmp_path: Path, order: str
) -> None:
    on_bus = Receipt("pv6", 1, 1, START + EVERY, Outcome.APPLIED)
    by_twin = Receipt("pv6", 1, 1, START + EVERY, Outcome.APPLIED)
    record(recorder, 0, Published(0.0, (), (instruction(),)))
    bus_step = {"bus first": 1, "twin first": 2, "together": 1}[order]
    twin_step = {"bus first": 2, "twin first": 1, "together": 1}[order]
    for step in (1, 2):
        answers = (on_bus,) if step == bus_step else ()
        record(recorder, step, Published(0.0, answers), (by_twin,) if step == twin_step else ())
    (row,) = read(tmp_path, "setpoints").to_pylist()
    assert row["outcome"] == "applied"
    assert row["applied_at"] == START + EVERY
    assert row["acked_at"] == START + bus_step * EVERY


@pytest.mark.parametrize("bus_step", [1, 2])
def test_a_devices_own_refusal_stands_above_its_twins_word(
    recorder: RecorderSimulator, tmp_path: Path, bus_step: int
) -> None:
    record(recorder, 0, Published(0.0, (), (instruction(),)))
    for step in (1, 2):
        refused = Receipt("pv6", 1, 1, START + step * EVERY, Outcome.REFUSED)
        applied = Receipt("pv6", 1, 1, START + EVERY, Outcome.APPLIED)
        heard, twin = (refused,) if step == bus_step else (), (applied,) if step == 1 else ()
        record(recorder, step, Published(0.0, heard), twin)
    (row,) = read(tmp_path, "setpoints").to_pylist()
    assert row["outcome"] == "refused"
    assert row["acked_at"] == START + bus_step * EVERY


def test_an_instruction_nobody_answers_expires(recorder: RecorderSimulator, tmp_path: Path) -> None:
    record(recorder, 0, Published(0.0, (), (instruction(),)))
    late = Receipt("pv6", 1, 1, START + 4 * EVERY, Outcome.APPLIED)
    for step in range(1, 5):
        record(recorder, step, Published(0.0), (late,) if step == 4 else ())
    (row,) = read(tmp_path, "setpoints").to_pylist()
    assert (row["outcome"], row["applied_at"], row["acked_at"]) == ("expired", None, None)


async def test_a_run_survives_the_death_of_its_broker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OutboxSimulator, "PATIENCE_S", 0.2)
    broker = EmbeddedBroker(prefer="mosquitto")
    try:
        await broker.start()
    except NoBroker as error:
        pytest.skip(f"needs mosquitto: {error}")

    def kill_once(step: int) -> None:
        if step == 5 and broker.pid is not None:
            os.kill(broker.pid, signal.SIGKILL)

    bus = ("bus.kind=mqtt", f"bus.url={broker.url}")
    result = await do("ieee33-quick", tmp_path, bus=bus, on_step=kill_once)
    await broker.stop()
    assert result.exit is Exit.HELD
    assert result.steps == 12
    events = [json.loads(line) for line in (result.directory / "events.jsonl").read_text().splitlines()]
    assert [e["what"] for e in events] == ["bus-unreachable"]
    counts = json.loads((result.directory / "manifest.json").read_text())["counts"]
    assert counts["bus-disconnects"] == 1
    assert counts["bus-unreachable"] >= 5
    assert counts["origin-optimal"] == 12
