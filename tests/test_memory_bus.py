"""The bus in memory, the table that both buses share, and the publisher on top."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridges import wire
from bridges.bus import MAX_PAYLOAD_BYTES, Latch, Message, check_pattern, matches
from bridges.instruction import to_instruction
from bridges.memory import MemoryBus, MemoryHub
from bridges.publisher import Publisher, last_will
from bridges.table import Entry, LatestValues
from controllers.contract import Certificate, Instruction, Origin
from controllers.region import Region

NOON = datetime(2026, 6, 21, 12, tzinfo=UTC)
BOX = Region.box(p_mw=(0.0, 1.0))


class Clock:
    """Time that passes when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


# Wildcards (MQTT 5.0, 4.7)


@pytest.mark.parametrize(
    ("pattern", "topic", "expected"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/b/c", False),
        ("a/b/c", "a/b", False),
        ("a/+", "a/b", True),
        ("a/+", "a", False),
        ("a/+", "a/", True),
        ("+/+", "/x", True),
        ("+", "/x", False),
        ("a/+/c", "a/b/c", True),
        ("a/#", "a/b/c", True),
        ("a/#", "a", True),
        ("a/#", "ab", False),
        ("#", "a/b", True),
        ("#", "$SYS/load", False),
        ("+/load", "$SYS/load", False),
        ("$SYS/#", "$SYS/load", True),
    ],
)
def test_wildcards(pattern: str, topic: str, expected: bool) -> None:
    assert matches(pattern, topic) is expected


@pytest.mark.parametrize("pattern", ["", "a/#/b", "a#", "a/b+", "+a/b", "a\0"])
def test_a_wrong_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="pattern"):
        check_pattern(pattern)


# Bus


async def test_messages_arrive_in_order_once() -> None:
    hub = MemoryHub()
    async with MemoryBus(hub) as controller, MemoryBus(hub) as device:
        device.subscribe("run/+/set")
        device.subscribe("run/#")
        controller.publish("run/a/set", b"1")
        controller.publish("other", b"2")
        controller.publish("run/b/set", b"3")
        assert await device.arrived(1)
        assert device.received() == [Message("run/a/set", b"1"), Message("run/b/set", b"3")]
        assert device.received() == []
        assert not await device.arrived(0)
        assert controller.received() == []
        assert controller.counts == {"published": 3, "acknowledged": 3, "unheard": 1}


async def test_retained_messages_wait_for_the_subscriber() -> None:
    clock = Clock()
    hub = MemoryHub(clock)
    async with MemoryBus(hub) as controller:
        controller.publish("a", b"old", retain=True)
        controller.publish("a", b"new", retain=True)
        controller.publish("b", b"gone", retain=True)
        controller.publish("b", b"", retain=True)
        controller.publish("c", b"short", retain=True, ttl_s=5)
        controller.publish("d", b"moment")
        clock.now = 5.0
        async with MemoryBus(hub) as device:
            device.subscribe("#")
            assert device.received() == [Message("a", b"new")]


async def test_what_is_published_while_the_hub_is_down_goes_out_later() -> None:
    clock = Clock()
    hub = MemoryHub(clock)
    async with MemoryBus(hub) as controller, MemoryBus(hub) as device:
        device.subscribe("#")
        controller.publish("kept", b"1", retain=True)
        assert await controller.flush(0)
        device.received()
        hub.down()
        assert not controller.connected
        controller.publish("a", b"old")
        controller.publish("a", b"new")
        controller.publish("late", b"x", ttl_s=1)
        assert not await controller.flush(0)
        clock.now = 1.0
        hub.restore()
        assert await controller.flush(0)
        assert device.received() == [Message("a", b"new"), Message("kept", b"1")]
        for name, times in {
            "conflated": 1,
            "expired": 1,
            "resent": 1,
            "reconnects": 1,
            "disconnects": 1,
        }.items():
            assert controller.counts[name] == times


async def test_who_floods_a_latch_pushes_out_nobody_else() -> None:
    async with MemoryBus(latch_size=100) as bus:
        bus.subscribe("#")
        for k in range(40):
            bus.publish(f"quiet/{k}", b"1")
        for k in range(5_000):
            bus.publish("loud", b"%d" % k)
        for k in range(40):
            bus.publish(f"quiet/{k}", b"2")
        messages = bus.received()
        assert len(messages) == 100
        assert bus.counts["overflowed"] == 5_080 - 100
        quiet = [(m.topic, m.payload) for m in messages if m.topic != "loud"]
        assert quiet == [(f"quiet/{k}", word) for word in (b"1", b"2") for k in range(40)]
        assert [m.payload for m in messages if m.topic == "loud"] == [b"%d" % k for k in range(4_980, 5_000)]
        assert bus.received() == []


@settings(max_examples=200)
@given(st.integers(1, 5), st.lists(st.sampled_from("abcd"), max_size=30))
def test_a_latch_keeps_in_order_what_is_nobody_elses_share(size: int, topics: list[str]) -> None:
    latch = Latch(Counter(), size)
    for k, topic in enumerate(topics):
        latch.put(Message(topic, b"%d" % k))
        assert len(latch) == min(k + 1, size)
    kept = [(message.topic, int(message.payload)) for message in latch.take()]
    assert kept == sorted(kept, key=lambda one: one[1])
    assert len(latch) == 0
    if topics:
        share = size // len(set(topics))
        newest = {topic: [k for k, t in enumerate(topics) if t == topic] for topic in set(topics)}
        for topic, numbers in newest.items():
            mine = [k for t, k in kept if t == topic]
            assert mine == numbers[len(numbers) - len(mine) :]  # the newest of each
            assert len(mine) >= min(share, len(numbers))


def test_endless_topics_fill_no_memory() -> None:
    latch = Latch(Counter(), 10)
    for k in range(1_000):
        latch.put(Message(f"t/{k}", b""))
    assert (len(latch._messages), len(latch._numbers), sum(map(len, latch._topics))) == (10, 10, 10)


async def test_what_is_retained_says_so_and_how_long_it_lasts() -> None:
    now = [0.0]
    hub = MemoryHub(lambda: now[0])
    async with MemoryBus(hub) as bus:
        bus.subscribe("live")
        bus.publish("live", b"1", retain=True, ttl_s=10)
        bus.publish("kept", b"2", retain=True, ttl_s=10)
        bus.publish("ever", b"3", retain=True)
        now[0] = 4.0
        bus.subscribe("kept")
        bus.subscribe("ever")
        found = [(m.topic, m.retained, m.expires_s) for m in bus.received()]
        assert found == [("live", False, 10.0), ("kept", True, 6.0), ("ever", True, None)]


async def test_a_full_latch_drops_the_oldest_and_counts() -> None:
    async with MemoryBus(latch_size=2) as bus:
        bus.subscribe("t")
        for i in range(5):
            bus.publish("t", b"%d" % i)
        assert [m.payload for m in bus.received()] == [b"3", b"4"]
        assert (bus.counts["received"], bus.counts["overflowed"]) == (5, 3)


@pytest.mark.parametrize(
    ("topic", "payload", "ttl_s", "why"),
    [
        ("", b"", None, "topic"),
        ("a/+", b"", None, "topic"),
        ("a/#", b"", None, "topic"),
        ("a", bytes(MAX_PAYLOAD_BYTES + 1), None, "bytes"),
        ("a", b"", 0.0, "ttl_s"),
        ("a", b"", float("nan"), "ttl_s"),
    ],
)
def test_what_a_broker_would_not_take_is_refused(
    topic: str, payload: bytes, ttl_s: float | None, why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        MemoryBus().publish(topic, payload, ttl_s=ttl_s)


# Table


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("put"), st.integers(0, 3), st.booleans(), st.none() | st.integers(1, 5)),
            st.tuples(st.just("take")),
            st.tuples(st.just("answer"), st.integers(0, 9), st.sampled_from([0, 16, 135])),
            st.tuples(st.just("lost")),
            st.tuples(st.just("tick")),
        ),
        max_size=60,
    )
)
def test_every_entry_has_one_fate_and_the_newest_is_never_forgotten(steps: list[tuple[object, ...]]) -> None:
    """Any order of publishing, sending, answers, losses and time."""
    clock, counts = Clock(), Counter[str]()
    table = LatestValues(counts, clock)
    in_flight: list[Entry] = []
    sent_for: dict[str, list[bytes]] = {}
    newest: dict[str, tuple[bytes, float]] = {}
    for i, step in enumerate(steps):
        match step:
            case ("put", int(topic), bool(retain), ttl):
                # a topic is either retained or not
                name, left = f"{topic}{retain}", float("inf") if ttl is None else float(str(ttl))
                table.put(name, b"%d" % i, retain, None if ttl is None else left)
                newest[name] = (b"%d" % i, clock.now + left)
            case ("take",) if (taken := table.take()) is not None:
                assert taken[1] > 0
                in_flight.append(taken[0])
                sent_for.setdefault(taken[0].topic, []).append(taken[0].payload)
            case ("answer", int(which), int(reason)) if in_flight:
                table.acknowledge(in_flight.pop(which % len(in_flight)), reason)
            case ("lost",):
                in_flight.clear()
                table.lost()
                table.snapshot()
            case ("tick",):
                clock.now += 1
    ended = sum(counts[name] for name in ("acknowledged", "refused", "conflated", "expired"))
    assert counts["published"] + counts["resent"] == ended + table.waiting()

    table.lost()
    while (taken := table.take()) is not None:
        sent_for.setdefault(taken[0].topic, []).append(taken[0].payload)
        table.acknowledge(taken[0])
    assert table.settled(table.newest)
    for name, (payload, deadline) in newest.items():
        if deadline > clock.now:
            assert sent_for[name][-1] == payload


def test_a_flush_does_not_wait_for_what_comes_after_it() -> None:
    table = LatestValues(Counter(), Clock())
    table.put("a", b"1", False, None)
    number = table.newest
    table.put("b", b"2", False, None)
    taken = table.take()
    assert taken is not None
    assert not table.settled(number)
    table.acknowledge(taken[0])
    assert table.settled(number)
    assert not table.settled(table.newest)


# Publisher


def instruction(seq: int = 1, device: str = "pv-1") -> Instruction:
    return Instruction(
        device=device,
        epoch=2,
        seq=seq,
        issued_at=NOON,
        valid_from=NOON,
        valid_until=NOON + timedelta(minutes=5),
        region=BOX,
        setpoint=None,
        fallback=BOX,
    )


async def test_a_device_hears_the_controller_and_answers() -> None:
    hub = MemoryHub()
    async with MemoryBus(hub) as bus, MemoryBus(hub) as device:
        device.subscribe(wire.device_topic("r1", "f1", "pv-1", "setpoint"))
        device.subscribe(wire.control_topic("r1"))
        publisher = Publisher(bus, run="r1", area="f1", epoch=2)
        certificate = Certificate(
            binding="upper voltage at bus 17", worst_v_pu=1.0499, worst_loading_percent=98.5, power_flows=131
        )
        publisher.send(replace(instruction(), origin=Origin.CERTIFIED, certificate=certificate), 300)
        publisher.send(instruction(device="pv-2"), 300)
        publisher.heartbeat(0, 300, NOON + timedelta(minutes=5))
        assert await publisher.flush(1)
        first, second = device.received()
        message = wire.decode(first.payload, wire.SetpointMessage)
        assert (message.seq, message.why) == (1, "upper voltage at bus 17")
        assert message.checked == wire.Checked(131, 1.0499, 98.5)
        assert to_instruction(message).certificate == certificate
        assert to_instruction(message).valid_until == NOON + timedelta(minutes=5)
        beat = wire.decode_control(second.payload)
        assert isinstance(beat, wire.Heartbeat)
        assert beat.period_ms == 300_000

        answer = wire.Ack(epoch=2, seq=1, state="applied", time=NOON)
        device.publish(wire.device_topic("r1", "f1", "pv-1", "ack"), wire.encode(answer))
        device.publish(wire.device_topic("r1", "f1", "pv-2", "ack"), b'{"epoch":2}')
        device.publish(wire.device_topic("r2", "f1", "pv-1", "ack"), wire.encode(answer))
        device.publish("gridpace/v1/r1/f1/p v/ack", wire.encode(answer))
        assert publisher.acks() == [("pv-1", answer)]
        assert bus.counts["malformed"] == 2

        publisher.close()
        (last,) = device.received()
        assert last == last_will("r1", 2)
        assert wire.decode_control(last.payload) == wire.Offline(epoch=2)


async def test_the_caller_may_take_the_messages_himself() -> None:
    async with MemoryBus() as bus:
        publisher = Publisher(bus, run="r1", area="f1", epoch=2)
        answer = wire.Ack(epoch=2, seq=1, state="applied", time=NOON)
        meas = wire.Meas(time=NOON, p_mw=0.1, q_mvar=0.0)
        messages = [
            Message(wire.device_topic("r1", "f1", "pv-1", "meas"), wire.encode(meas)),
            Message(wire.device_topic("r1", "f1", "pv-1", "ack"), wire.encode(answer)),
        ]
        assert publisher.acks(messages) == [("pv-1", answer)]
        assert bus.counts["malformed"] == 0


async def test_a_late_device_finds_its_last_instruction() -> None:
    hub = MemoryHub()
    async with MemoryBus(hub) as bus:
        publisher = Publisher(bus, run="r1", area="f1", epoch=2)
        publisher.send(instruction(seq=1), 300)
        publisher.send(instruction(seq=2), 300)
        async with MemoryBus(hub) as device:
            device.subscribe(wire.device_pattern("r1", "setpoint"))
            (found,) = device.received()
            assert wire.decode(found.payload, wire.SetpointMessage).seq == 2


def test_instructions_of_another_epoch_and_wrong_names_are_refused() -> None:
    with pytest.raises(ValueError, match="epoch 2"):
        Publisher(MemoryBus(), run="r1", area="f1", epoch=3).send(instruction(), 300)
    with pytest.raises(wire.BadMessage, match="run"):
        Publisher(MemoryBus(), run="r/1", area="f1", epoch=3)
    with pytest.raises(wire.BadMessage, match="area"):
        Publisher(MemoryBus(), run="r1", area="ctl", epoch=3)
    with pytest.raises(wire.BadMessage, match="zone"):
        Publisher(MemoryBus(), run="r1", area="f1", epoch=3).heartbeat(0, 1, NOON.replace(tzinfo=None))
