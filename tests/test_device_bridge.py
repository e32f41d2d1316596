"""A device's side of the wire, on a bus in memory and a time that only a test moves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from bridges import batch, wire
from bridges.answers import decode_acks, decode_batch_acks
from bridges.bus import BusUnreachable, Message
from bridges.device import PATIENCE_S, DeviceSide, Held
from bridges.instruction import to_message
from bridges.memory import MemoryBus, MemoryHub
from bridges.publisher import Publisher
from bridges.serving import serve
from controllers.contract import Instruction
from controllers.devices import still
from controllers.region import Region
from controllers.register import Answer, Life, Order, Regime, Register
from tests.running import FakeTime


class Follower:
    """A plant that goes to the upper limit of where it must stay, and remembers what it was told."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, Regime, float, float]] = []

    def hold(self, order: Order, mono: float, every_s: float) -> Held:
        p_mw = 0.0 if order.region is None else float(order.region.b[0])
        self.calls.append((mono, order.regime, p_mw, every_s))
        return Held(p_mw, 0.0, e_mwh=None if order.instruction is None else 0.5)


class Bench:
    """A controller, devices and whoever listens, around one hub and one time."""

    def __init__(self, *names: str, gateway: str | None = None, **options: Any) -> None:
        self.time = FakeTime()
        self.hub = MemoryHub(self.time.monotonic)
        self.ours, self.theirs, self.ear = MemoryBus(self.hub), MemoryBus(self.hub), MemoryBus(self.hub)
        self.publisher = Publisher(self.ours, run="r", area="a", epoch=1)
        self.plants = {name: Follower() for name in names or ("pv",)}
        self.registers = {name: Register() for name in self.plants}
        self.gateway = gateway
        self.side = DeviceSide(
            {name: (self.registers[name], plant) for name, plant in self.plants.items()},
            run="r",
            area="a",
            gateway=gateway,
            wall=self.time.wall,
            monotonic=self.time.monotonic,
            **options,
        )
        self.said: list[tuple[str, Any]] = []
        self.measured: list[tuple[str, wire.Meas]] = []
        self.states: list[str] = []

    async def __aenter__(self) -> Bench:
        self.ear.subscribe("gridpace/v1/r/a/+/+")
        for bus in (self.ours, self.theirs, self.ear):
            await bus.__aenter__()
        self.side.begin(self.theirs)
        await self.turn()
        return self

    async def __aexit__(self, *error: object) -> None:
        for bus in (self.ours, self.theirs, self.ear):
            await bus.__aexit__(None, None, None)

    def told(self, seq: int, begins: float = 0.0, lasts: float = 10.0, **changes: Any) -> Instruction:
        """For times from now on; its upper limit tells its number."""
        now = self.time.wall()
        return Instruction(
            **{
                "device": next(iter(self.plants)),
                "epoch": 1,
                "seq": seq,
                "issued_at": now,
                "valid_from": now + timedelta(seconds=begins),
                "valid_until": now + timedelta(seconds=lasts),
                "region": Region.box(p_mw=(0, seq / 10), q_mvar=(0, 0)),
                "setpoint": None,
                "fallback": still(),
            }
            | changes
        )

    async def turn(self, seconds: float = 0.0) -> float:
        """Let time pass, and the device do what is due."""
        self.time.pass_by(seconds)
        self.side.hear()
        wait_s = self.side.tick()
        await self.side.drain()
        for message in self.ear.received():
            what = message.topic.split("/")[5]
            if what == "ack":
                self.said += [(ack.seq, ack.state) for ack in decode_acks(message.payload)]
            elif what == "batch-ack":
                self.said += [(der, ack.seq, ack.state) for der, ack in decode_batch_acks(message.payload)]  # type: ignore[misc]
            elif what == "meas":
                self.measured.append((message.topic.split("/")[4], wire.decode(message.payload, wire.Meas)))
            elif what == "batch-meas":
                self.measured += batch.decode_measured(message.payload)
            elif what == "state":
                self.states.append(wire.decode(message.payload, wire.State).state)
        return wait_s

    def heard(self) -> list[tuple[str, Any]]:
        said, self.said = self.said, []
        return said

    def publish(self, payload: bytes, what: str = "pv/setpoint") -> None:
        self.ours.publish(f"gridpace/v1/r/a/{what}", payload)


R, A, X, S, E, F = "received", "applied", "refused", "superseded", "expired", "fallback"


async def test_it_obeys_answers_and_falls_back_on_time() -> None:
    async with Bench() as bench:
        bench.publisher.send(bench.told(1, 2, 5), 5.0)
        assert await bench.turn() == 1.0
        assert bench.heard() == [(1, R)]
        await bench.turn(1.5)
        assert bench.heard() == []
        assert await bench.turn(0.5) == 1.0
        assert bench.heard() == [(1, A)]
        bench.publisher.send(bench.told(2, 0, 3), 3.0)
        await bench.turn(0.25)
        assert bench.heard() == [(2, R), (1, S), (2, A)]
        assert await bench.turn(2.0) == 0.75
        assert bench.heard() == []
        assert await bench.turn(0.75) == 1.0
        assert bench.heard() == [(2, E), (2, F)]
        follower = bench.plants["pv"]
        points = {(regime, p): at for at, regime, p, _ in reversed(follower.calls)}
        assert [(at, regime, p) for (regime, p), at in reversed(points.items())] == [
            (0.0, Regime.INIT, 0.0),
            (2.0, Regime.CONTROLLED, 0.1),
            (2.25, Regime.CONTROLLED, 0.2),
            (5.0, Regime.FAILSAFE, 0.0),
        ]
        assert bench.states == ["online", "fallback"]
        assert await bench.turn() == 1.0


async def test_a_plant_is_called_in_its_rhythm_and_when_its_order_changes() -> None:
    async with Bench(every_s=2.0) as bench:
        await bench.turn(0.5)
        bench.publisher.send(bench.told(1, 0, 4), 4.0)
        await bench.turn()
        await bench.turn(0.25)
        for _ in range(8):
            await bench.turn(0.5)
        assert [(at, every_s) for at, _, _, every_s in bench.plants["pv"].calls] == [
            (0.0, 2.0), (0.5, 1.5), (2.25, 1.75), (4.25, 0.25), (4.75, 1.25),
        ]  # fmt: skip
        assert [meas.time.second for _, meas in bench.measured] == [0, 2, 4]
        assert [meas.state for _, meas in bench.measured] == ["init", "controlled", "controlled"]
        assert bench.measured[0][1].e_mwh is None
        assert bench.measured[1][1].e_mwh == 0.5


async def test_after_a_long_pause_it_goes_on_in_its_rhythm() -> None:
    async with Bench() as bench:
        assert await bench.turn(7.25) == 0.75
        assert [at for at, *_ in bench.plants["pv"].calls] == [0.0, 7.25]


async def test_who_asks_again_is_answered_again() -> None:
    async with Bench() as bench:
        told = bench.told(1, 0, 10)
        for _ in range(2):
            bench.publisher.send(told, 10.0)
        await bench.turn()
        assert bench.heard() == [(1, R), (1, A), (1, A)]
        assert bench.side.counts["repeated"] == 1
        bench.publisher.send(bench.told(2), 10.0)
        await bench.turn()
        bench.heard()
        bench.publisher.send(told, 10.0)
        await bench.turn()
        assert bench.heard() == [(1, X)]
        assert bench.side.counts["refused-old"] == 1


def good(bench: Bench) -> dict[str, Any]:
    message = wire.decode(bench.hub.retained("gridpace/v1/r/a/pv/setpoint")[0].payload, wire.SetpointMessage)
    decoded: dict[str, Any] = json.loads(wire.encode(message))
    return decoded


@pytest.mark.parametrize(
    ("damage", "answered"),
    [
        (lambda raw: json.dumps(raw | {"sign": "load_positive"}).encode(), [(7, X)]),
        (lambda raw: json.dumps(raw | {"p_kw": 3}).encode(), [(7, X)]),
        (lambda raw: json.dumps(raw | {"der": "another"}).encode(), [(7, X)]),
        (lambda raw: json.dumps(raw | {"run": "yesterday"}).encode(), [(7, X)]),
        (lambda raw: json.dumps({"epoch": 1, "seq": 7}).encode(), [(7, X)]),
        (lambda raw: json.dumps(raw | {"seq": 2**60}).encode(), []),
        (lambda raw: json.dumps(raw | {"seq": "7"}).encode(), []),
        (lambda raw: b"rubbish", []),
        (lambda raw: b"\xff\xfe", []),
        (lambda raw: b" " * 65_001, []),
        (lambda raw: b"[" * 60_000, []),
    ],
)
async def test_what_is_no_instruction_changes_nothing_and_is_counted(
    damage: Callable[[dict[str, Any]], bytes], answered: list[Any]
) -> None:
    async with Bench() as bench:
        bench.publisher.send(bench.told(1), 10.0)
        await bench.turn()
        bench.heard()
        calls = len(bench.plants["pv"].calls)
        message = Message("gridpace/v1/r/a/pv/setpoint", damage(good(bench) | {"seq": 7}))
        bench.theirs.deliver(message)  # a bus refuses to send what is too large
        await bench.turn()
        assert bench.heard() == answered
        assert bench.side.counts["malformed"] == 1
        assert bench.side.counts["refused-malformed"] == len(answered)
        assert len(bench.plants["pv"].calls) == calls
        assert bench.registers["pv"].newest == (1, 1)


async def test_what_is_withdrawn_and_what_is_strange_is_left_alone() -> None:
    async with Bench() as bench:
        bench.publish(b"")
        bench.ours.publish("gridpace/v1/r/ctl/state", b"{}")
        await bench.turn()
        assert bench.heard() == []
        assert bench.side.counts["malformed"] == 1  # the heartbeat


# Behind a gateway


async def test_a_gateway_answers_and_measures_for_all() -> None:
    async with Bench("pv", "bat", "wind", gateway="gw1") as bench:
        bench.publisher.send_batch(
            "gw1", [(bench.told(1, 0, 5, device=name), 5.0) for name in ("pv", "bat", "strange")]
        )
        await bench.turn()
        assert bench.heard() == [("pv", 1, A), ("bat", 1, A)]
        assert bench.side.counts["strange"] == 1
        await bench.turn(1.0)
        assert [(der, meas.p_mw, meas.state) for der, meas in bench.measured[-3:]] == [
            ("pv", 0.1, "controlled"),
            ("bat", 0.1, "controlled"),
            ("wind", 0.0, "init"),
        ]
        bench.publisher.send_batch("gw1", [(bench.told(2, 0, 5, device="pv"), 5.0)])
        await bench.turn()
        # Its part repeats what the battery was told, which says again what became of it.
        assert bench.heard() == [("pv", 1, S), ("pv", 2, A), ("bat", 1, A)]
        await bench.turn(4.0)
        assert bench.heard() == [("bat", 1, E), ("bat", 1, F)]
        assert bench.states == ["online", "fallback"]
        bench.publisher.send_batch("gw1", [(bench.told(3, 0, 5, device="bat"), 5.0)])
        await bench.turn()
        assert bench.states == ["online", "fallback", "online"]


async def test_a_batch_that_is_none_is_refused_for_those_it_names() -> None:
    async with Bench("pv", "bat", gateway="gw1") as bench:
        raw = {"epoch": 1, "groups": [{"seq": 4, "told": [["pv", 1], ["no"], [], ["bat"], [7]]}]}
        bench.publish(json.dumps(raw).encode(), "gw1/batch/0")
        await bench.turn()
        assert bench.heard() == [("pv", 4, X), ("bat", 4, X)]
        bench.publisher.send_batch("gw1", [(bench.told(5, device="pv"), 5.0)])
        (sent,) = bench.hub.retained("gridpace/v1/r/a/gw1/batch/+")
        await bench.turn()
        assert bench.heard() == [("pv", 5, A)]
        bench.publish(sent.payload, "gw1/batch/1")  # of another part
        await bench.turn()
        assert bench.heard() == [("pv", 5, X)]
        assert bench.side.counts["malformed"] == 2
        assert bench.registers["pv"].newest == (1, 5)


async def test_many_answers_leave_one_message_after_the_other() -> None:
    names = [f"{i:064d}" for i in range(1500)]
    async with Bench(*names, gateway="gw1") as bench:
        bench.publisher.send_batch("gw1", [(bench.told(1, device=name), 5.0) for name in names])
        await bench.turn()
        assert len(bench.heard()) == 1500
        assert bench.theirs.counts["conflated"] == 0
        assert len(bench.measured) == 1500


@pytest.mark.parametrize("names", [(), ("pv", "bat")])
def test_several_need_a_gateway(names: tuple[str, ...]) -> None:
    time = FakeTime()
    devices = {name: (Register(), Follower()) for name in names}
    with pytest.raises(ValueError, match="gateway"):
        DeviceSide(devices, run="r", area="a", wall=time.wall, monotonic=time.monotonic)


# Connections


async def test_in_fallback_it_opens_new_connections_with_growing_pauses() -> None:
    async with Bench() as bench:
        bench.publisher.send(bench.told(1, 0, 3), 3.0)
        await bench.turn()
        assert not bench.side.reopen()
        opened = []
        for _ in range(2000):
            await bench.turn(0.1)
            if bench.side.reopen():
                opened.append(round(bench.time.monotonic(), 1))
                bench.side.begin(bench.theirs)
        shortest, longest = PATIENCE_S
        assert opened[0] == pytest.approx(3.0, abs=0.11)
        pauses = [b - a for a, b in pairwise(opened)]
        assert pauses[:5] == pytest.approx([shortest, 10.0, 20.0, 40.0, longest], abs=0.11)
        bench.publisher.send(bench.told(2, 0, 3), 3.0)
        await bench.turn()
        assert not bench.side.reopen()
        await bench.turn(3.0)
        assert bench.side.reopen()  # at once again


def beat(bench: Bench, step: int, period_s: float = 1.0) -> None:
    bench.publisher.heartbeat(step, period_s, bench.time.wall() + timedelta(seconds=period_s))


async def test_two_missing_heartbeats_open_a_new_connection_and_the_device_goes_on() -> None:
    async with Bench() as bench:
        bench.publisher.send(bench.told(1, 0, 100), 100.0)
        for step in range(3):
            beat(bench, step)
            await bench.turn()
            await bench.turn(1.0)
            assert not bench.side.reopen()
        await bench.turn(1.9)
        assert not bench.side.reopen()
        await bench.turn(0.2)
        assert bench.side.reopen()
        bench.side.begin(bench.theirs)
        bench.theirs.deliver(bench.hub.retained("gridpace/v1/r/ctl/state")[0])  # no sign of life
        await bench.turn(4.0)
        assert not bench.side.reopen()
        await bench.turn(1.1)
        assert bench.side.reopen()
        assert bench.plants["pv"].calls[-1][1] is Regime.CONTROLLED
        beat(bench, 3)
        await bench.turn()
        assert not bench.side.reopen()


async def test_a_controller_that_leaves_is_not_missed() -> None:
    async with Bench() as bench:
        beat(bench, 0)
        await bench.turn()
        bench.publisher.close()
        await bench.turn(1000.0)
        assert not bench.side.reopen()


async def test_without_a_connection_it_goes_on_and_says_everything_afterwards() -> None:
    async with Bench() as bench:
        bench.publisher.send(bench.told(1, 0, 3), 3.0)
        await bench.turn()
        bench.heard()
        bench.side.end()
        for _ in range(4):
            await bench.turn(1.0)
        assert bench.plants["pv"].calls[-1][1] is Regime.FAILSAFE
        assert bench.heard() == []
        bench.side.begin(bench.theirs)
        await bench.turn()
        assert bench.heard() == [(1, E), (1, F)]
        assert bench.states == ["online", "fallback"]


async def test_it_keeps_a_record() -> None:
    class Witness:
        def __init__(self) -> None:
            self.lines: list[tuple[Any, ...]] = []

        def answered(self, der: str, answer: Answer, told: Instruction | None) -> None:
            self.lines.append((der, answer.state, told and told.seq))

        def held(self, der: str, at: datetime, order: Order, held: Held) -> None:
            self.lines.append((der, order.regime, held.p_mw))

    witness = Witness()
    async with Bench(witness=witness) as bench:
        for seq in (1, 2):
            bench.publisher.send(bench.told(seq), 10.0)
            await bench.turn()
    assert witness.lines == [
        ("pv", Regime.INIT, 0.0),
        ("pv", Life.RECEIVED, 1),
        ("pv", Life.APPLIED, 1),
        ("pv", Regime.CONTROLLED, 0.1),
        ("pv", Life.RECEIVED, 2),
        ("pv", Life.SUPERSEDED, None),
        ("pv", Life.APPLIED, 2),
        ("pv", Regime.CONTROLLED, 0.2),
    ]


async def test_serving_stays_with_a_broker_that_comes_and_goes() -> None:
    """Connections fail twice, then one lasts until the devices are told to stop."""
    bench, attempts, said, stop = Bench(), 0, list[str](), asyncio.Event()
    bench.ear.subscribe("gridpace/v1/r/a/+/+")

    @asynccontextmanager
    async def connect() -> AsyncIterator[MemoryBus]:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise BusUnreachable("mqtt://there", "refused", "Start it.")
        async with MemoryBus(bench.hub) as bus:
            yield bus
            assert stop.is_set()

    async with bench.ear:
        serving = asyncio.create_task(serve(bench.side, connect, stop, said.append))
        assert await bench.ear.arrived(10.0)
        stop.set()
        await serving
        heard = [m.payload for m in bench.ear.received() if m.topic.endswith("state")]
        states = [wire.decode(payload, wire.State).state for payload in heard]
    assert attempts == 3
    assert said == ["cannot connect to mqtt://there: refused. Start it. Trying again."]
    assert states == ["online", "offline"]
    assert bench.side.will.payload == b'{"state":"offline"}'


@pytest.mark.parametrize(("late_s", "lasts_s"), [(0.0, 10.0), (7.0, 3.0)])
async def test_a_clock_of_its_own_counts_from_when_it_was_said(late_s: float, lasts_s: float) -> None:
    """What a broker has kept for long is obeyed for the rest of its time alone, by a device that has no other
    way to know."""
    async with Bench() as bench:
        bench.side.end()
        bench.publisher.send(bench.told(1, lasts=10.0), 10.0)
        bench.time.pass_by(late_s)
        bench.registers["pv"] = register = Register(synchronised=False)
        side = DeviceSide(
            {"pv": (register, bench.plants["pv"])},
            run="r", area="a", wall=bench.time.wall, monotonic=bench.time.monotonic,
        )  # fmt: skip
        async with MemoryBus(bench.hub) as bus:
            side.begin(bus)
            side.hear()
            bench.time.pass_by(lasts_s - 0.01)
            side.tick()
            assert not register.failsafe
            assert register.newest == (1, 1)
            bench.time.pass_by(0.02)
            side.tick()
            assert register.failsafe


@pytest.mark.parametrize("synchronised", [False, True])
async def test_what_was_kept_for_nobody_knows_how_long_is_not_for_a_clock_of_its_own(
    synchronised: bool,
) -> None:
    """A broker of MQTT 3.1.1 does not say how long something has been there."""
    bench = Bench()
    bench.registers["pv"] = register = Register(synchronised=synchronised)
    side = DeviceSide(
        {"pv": (register, bench.plants["pv"])},
        run="r", area="a", wall=bench.time.wall, monotonic=bench.time.monotonic,
    )  # fmt: skip
    message = to_message(bench.told(1), run="r", area="a", ttl_s=10.0)
    topic, payload = "gridpace/v1/r/a/pv/setpoint", wire.encode(message)
    async with MemoryBus(bench.hub) as bus:
        side.begin(bus)
        bus.deliver(Message(topic, payload, retained=True))
        side.hear()
        assert register.newest == ((1, 1) if synchronised else (-1, -1))
        assert side.counts["undated"] == (not synchronised)
        bus.deliver(Message(topic, payload))  # just now
        side.hear()
        assert register.newest == (1, 1)


@pytest.mark.parametrize("at_all", [False, True])
async def test_a_plant_that_raises_goes_to_its_default_and_the_others_go_on(at_all: bool) -> None:
    class Moody(Follower):
        def hold(self, order: Order, mono: float, every_s: float) -> Held:
            if at_all or order.regime is Regime.CONTROLLED:
                raise RuntimeError("out of order")
            return super().hold(order, mono, every_s)

    bench = Bench("a", "b", gateway="g")
    async with bench:
        plant = bench.plants["a"]
        plant.hold = Moody().hold  # type: ignore[method-assign]
        for der in ("a", "b"):
            bench.publisher.send_batch("g", [(bench.told(1, device=der), 10.0)])
        bench.measured.clear()
        await bench.turn()
        await bench.turn(1.0)
        newest = dict(bench.measured)
        assert (newest["b"].p_mw, newest["b"].state) == (0.1, Regime.CONTROLLED)
        if at_all:
            assert "a" not in newest  # missing is missing, never zero
        else:
            assert (newest["a"].p_mw, newest["a"].state) == (0.0, Regime.FAILSAFE)
        assert bench.states[-1] == "fallback"
        assert bench.side.counts["plant-raised"] >= 2
        plant.hold = Follower().hold  # type: ignore[method-assign]
        await bench.turn(1.0)
        assert bench.measured[-1][1].state is Regime.CONTROLLED
        assert {der for der, _ in bench.measured[-2:]} == {"a", "b"}
        assert bench.states[-1] == "online"
