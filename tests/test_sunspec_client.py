"""A bridge to a SunSpec device: what it writes, in which order, and what happens when that breaks off."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from datetime import timedelta
from functools import partial

import pytest

from bridges.device_bridge import BridgeLost, BridgeRefused, Capability, DeviceBridge
from bridges.sunspec.client import NotSunSpec, SunSpecDevice
from bridges.sunspec.unit import Limits, Measured, Unit
from bridges.sunspec.unit import Refusal as UnitRefusal
from controllers.contract import Setpoint
from controllers.register import Refusal
from tests.running import FakeTime
from tests.sunspec_bench import BATTERY, PV, bench


async def test_it_is_a_device_bridge_and_tells_what_the_device_is() -> None:
    async with bench(BATTERY, wish_mw=0.1) as on:
        bridge: DeviceBridge = on.device
        await bridge.connect()
        assert await bridge.read_capability() == BATTERY
        reading = await bridge.read_measurements()
        assert (reading.p_mw, reading.q_mvar, reading.e_mwh) == (0.1, 0.0, 0.4)
        assert (reading.v_pu, reading.state, reading.time) == (None, "running", on.time.wall())
        force = await bridge.read_back()
        assert (force.limit_mw, force.p_mw, force.q_mvar, force.reverts_at) == (None, None, None, None)


async def test_the_order_is_reversion_then_setpoint_then_enable() -> None:
    async with bench() as on:
        done = await on.device.write_setpoint(on.told((0.0, 0.6), q=0.1), on.time.wall())
        idle = ["VarSetPct", "VarSetPctRvrt"]  # written as they are, to bridge the gap
        assert on.written() == [
            ["WMaxLimPctRvrt", "WMaxLimPctEnaRvrt", "WMaxLimPctRvrtTms"],
            ["VarSetRvrt", *idle, "VarSetEnaRvrt", "VarSetRvrtTms"],
            ["WMaxLimPct"],
            ["VarSetMod", "VarSetPri", "VarSet"],
            ["WMaxLimPctEna"],
            ["VarSetEna"],
        ]
        assert done.transactions == 8  # and 704 read before and after
        assert (done.setting.limit_mw, done.setting.q_mvar) == (0.6, 0.1)
        assert done.setting.reverts_at == on.time.wall() + timedelta(seconds=60)
        assert (done.reverts_to.limit_mw, done.reverts_to.q_mvar) == (0.0, 0.0)
        assert done.points["WMaxLimPct"] == 60
        assert on.unit.measured == Measured(p_mw=0.6, q_mvar=0.1, e_mwh=0.4)
        assert (await on.device.read_measurements()).p_mw == 0.6


async def test_it_reverts_by_itself_to_the_second() -> None:
    async with bench(BATTERY, wish_mw=0.1) as on:
        instruction = on.told((-0.2, 0.2), setpoint=Setpoint(p_mw=-0.2), seconds=30)
        await on.device.write_setpoint(instruction, on.time.wall())
        assert (await on.device.read_measurements()).p_mw == -0.2
        on.time.pass_by(29.9)
        assert (await on.device.read_back()).p_mw == -0.2
        on.time.pass_by(0.2)
        assert (await on.device.read_back()).p_mw == 0.0
        assert (await on.device.read_measurements()).p_mw == 0.0
        reverted = [event for event in on.events if event.kind == "reverted"]
        assert [event.at for event in reverted] == [30.0, 30.0]
        assert reverted[-1].limits == Limits(p_mw=0.0, q_mvar=0.0)


async def test_a_new_instruction_starts_the_timer_anew() -> None:
    async with bench() as on:
        await on.device.write_setpoint(on.told((0.0, 0.6), seconds=10), on.time.wall())
        on.time.pass_by(7)
        await on.device.write_setpoint(on.told((0.0, 0.5), seconds=10), on.time.wall())
        times = [e.points["WMaxLimPctRvrtTms"] for e in on.events if "WMaxLimPctRvrtTms" in e.points]
        assert times == [10, 3, 10]  # first no longer than what is in force may last
        on.time.pass_by(9.9)
        assert (await on.device.read_back()).limit_mw == 0.5
        on.time.pass_by(0.2)
        assert (await on.device.read_back()).limit_mw == 0.0


async def test_what_another_master_left_in_force_is_not_prolonged_either() -> None:
    async with bench() as on:
        await on.device.write_setpoint(on.told((0.0, 0.6), seconds=10), on.time.wall())
        await on.device.close()
        on.time.pass_by(4)
        other = SunSpecDevice("127.0.0.1", on.emulator.port, utc=on.time.wall, monotonic=on.time.monotonic)
        await other.write_setpoint(on.told((0.0, 0.5), seconds=90), on.time.wall())
        times = [e.points["WMaxLimPctRvrtTms"] for e in on.events if "WMaxLimPctRvrtTms" in e.points]
        assert times == [10, 6, 90]
        await other.close()


class Slow(Unit):
    """Takes its time for each write, and obeys at the end of it; is gone after some."""

    writes = 1000

    def pause(self) -> None: ...

    def write(self, address: int, words: list[int]) -> None:  # type: ignore[override]
        self.writes -= 1
        if self.writes < 0:
            raise UnitRefusal(4, "gone")
        self.pause()
        super().write(address, words)


@pytest.mark.parametrize("gone_after", [*range(7), 99])
@pytest.mark.parametrize("takes_s", [0.2, 0.8, 1.5])
async def test_a_device_that_is_slow_to_take_writes_reverts_in_time_too(
    takes_s: float, gone_after: int
) -> None:
    """Wherever it ends: nothing is obeyed longer than it is valid."""
    async with bench(BATTERY, wish_mw=0.1, unit=Slow) as on:
        unit = on.unit
        assert isinstance(unit, Slow)
        await on.device.write_setpoint(
            on.told((-0.2, 0.2), setpoint=Setpoint(p_mw=0.2), seconds=6), on.time.wall()
        )
        on.time.pass_by(1.0)
        unit.writes, unit.pause = gone_after, partial(on.time.pass_by, takes_s)  # type: ignore[method-assign]
        told = on.told((-0.2, 0.2), q=0.1, setpoint=Setpoint(p_mw=-0.2, q_mvar=0.1), seconds=8.3)
        ends = on.time.seconds + 8.3
        done = False
        with suppress(BridgeLost, BridgeRefused):
            await on.device.write_setpoint(told, on.time.wall())
            done = True
        assert done == (takes_s < 1 and gone_after > 6)
        on.time.pass_by(10)
        unit.settle()
        at_home = Limits(p_mw=0.0, q_mvar=0.0)
        assert unit.limits == at_home
        last = max(event.at for event in on.events if event.kind == "reverted" and event.limits == at_home)
        assert last <= ends + 1e-6


async def test_a_request_that_is_slower_than_any_before_is_followed_by_a_shorter_time() -> None:
    async with bench(unit=Slow) as on:
        unit = on.unit
        assert isinstance(unit, Slow)
        pauses = iter([0.0] * 4 + [1.7, 0.0, 0.0])
        unit.pause = lambda: on.time.pass_by(next(pauses))  # type: ignore[method-assign]
        done = await on.device.write_setpoint(on.told((0.0, 0.5), seconds=10), on.time.wall())
        assert on.written()[4:] == [
            ["WMaxLimPctEna"],
            ["WMaxLimPctEna", "WMaxLimPct", "WMaxLimPctRvrt", "WMaxLimPctEnaRvrt", "WMaxLimPctRvrtTms"],
            [*["VarSetEna", "VarSetMod", "VarSetPri", "VarSet", "VarSetRvrt", "VarSetPct", "VarSetPctRvrt"],
             "VarSetEnaRvrt", "VarSetRvrtTms"],
        ]  # fmt: skip
        assert done.setting.reverts_at == on.time.wall() + timedelta(seconds=6)
        on.time.pass_by(9)
        await on.device.read_back()
        assert [event.at for event in on.events if event.kind == "reverted"] == [7.7, 7.7]


async def test_a_device_too_slow_for_a_timer_is_refused_as_stale_and_tried_again() -> None:
    async with bench(unit=Slow) as on:
        unit = on.unit
        assert isinstance(unit, Slow)
        unit.pause = partial(on.time.pass_by, 2.0)  # type: ignore[method-assign]
        for _ in range(2):
            with pytest.raises(BridgeRefused, match=r"a request takes up to 2\.0 s: too short") as refused:
                await on.device.write_setpoint(on.told((0.0, 0.5), seconds=4), on.time.wall())
            assert refused.value.code is Refusal.STALE
        assert unit.limits == Limits()
        unit.pause = lambda: None  # type: ignore[method-assign]
        with pytest.raises(BridgeRefused):  # as far as is known; that fades
            await on.device.write_setpoint(on.told((0.0, 0.5), seconds=2), on.time.wall())
        await on.device.write_setpoint(on.told((0.0, 0.5), seconds=4), on.time.wall())


async def test_a_function_that_is_no_longer_needed_is_switched_off_last() -> None:
    async with bench(BATTERY) as on:
        m704 = on.unit.image[704]
        m704.put("WMaxLimPctEna", "ENABLED")
        m704.put("WMaxLimPct", 10)
        await on.device.write_setpoint(on.told((-0.1, 0.2), setpoint=Setpoint(p_mw=0.2)), on.time.wall())
        assert on.written()[-1] == ["WMaxLimPctEna"]
        assert on.unit.limits == Limits(p_mw=0.2, q_mvar=0.0)


class Changing(Unit):
    """Keeps another value than the one that was written."""

    def write(self, address: int, words: list[int]) -> None:  # type: ignore[override]
        super().write(address, words)
        m704 = self.image[704]
        if m704.number("WMaxLimPct") == 50:
            m704.put("WMaxLimPct", 55)


async def test_a_read_back_that_differs_is_refused_with_both_values() -> None:
    async with bench(unit=Changing) as on:
        with pytest.raises(BridgeRefused) as refused:
            await on.device.write_setpoint(on.told((0.0, 0.5)), on.time.wall())
        assert refused.value.code is Refusal.CAPABILITY
        assert refused.value.reason == "WMaxLimPct: 50.0 was written, but 55.0 is read back"
        assert (on.device.counts["mismatches"], on.device.counts["refused"]) == (1, 1)
        await on.device.write_setpoint(on.told((0.0, 0.4)), on.time.wall())


class Timeless(Unit):
    """Says that it has timers, but they do not run."""

    def _restart(self, written: object) -> None: ...


async def test_a_device_whose_timer_does_not_run_is_refused_unless_it_may() -> None:
    async with bench(unit=Timeless) as on:
        with pytest.raises(BridgeRefused, match="WMaxLimPctRvrtRem is 0 though WMaxLimPctRvrtTms is 60"):
            await on.device.write_setpoint(on.told((0.0, 0.5)), on.time.wall())
    async with bench(unit=Timeless, needs_timer=False) as on:
        await on.device.write_setpoint(on.told((0.0, 0.5)), on.time.wall())


class Small(Unit):
    """Takes less than its nameplate says."""

    def _range(self, name: str) -> tuple[float, float]:
        return (-1000.0, 1000.0)


async def test_a_value_that_the_device_refuses_is_named() -> None:
    async with bench(BATTERY, unit=Small) as on:
        with pytest.raises(BridgeRefused) as refused:
            await on.device.write_setpoint(on.told((-0.1, 0.2), setpoint=Setpoint(p_mw=0.2)), on.time.wall())
        assert "WSetMod=WATTS, WSet=200000" in refused.value.reason
        assert "Modbus exception 3, illegal value" in refused.value.reason
        assert on.device.connected


async def test_a_fixed_power_factor_is_not_overruled() -> None:
    async with bench() as on:
        on.unit.image[704].put("PFWInjEna", "ENABLED")
        with pytest.raises(BridgeRefused, match="PFWInjEna is ENABLED") as refused:
            await on.device.write_setpoint(on.told((0.0, 0.5)), on.time.wall())
        assert refused.value.code is Refusal.HELD
        assert on.written() == []


async def test_a_plan_writes_nothing() -> None:
    async with bench() as on:
        with pytest.raises(BridgeLost, match="not connected yet"):
            on.device.plan(on.told((0.0, 0.5)), on.time.wall())
        await on.device.connect()
        made = on.device.plan(on.told((0.0, 0.5)), on.time.wall())
        assert (made.setting.limit_mw, made.seconds) == (0.5, 60)
        assert on.events == []


async def test_a_silent_device_is_given_up_at_the_deadline() -> None:
    left = asyncio.Event()

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        await writer.wait_closed()
        left.set()

    server = await asyncio.start_server(mute, "127.0.0.1", 0)
    device = SunSpecDevice("127.0.0.1", server.sockets[0].getsockname()[1], timeout_s=0.1)
    try:
        with pytest.raises(BridgeLost, match=r"no answer within 0\.1 s"):
            await device.connect()
        assert device.counts["timeouts"] == 1
        assert not device.connected
        await asyncio.wait_for(left.wait(), 5)  # it has closed the connection
    finally:
        server.close()
        await server.wait_closed()


async def test_nobody_there_is_said_and_backed_off_from() -> None:
    time = FakeTime()
    async with bench() as on:
        port = on.emulator.port
    device = SunSpecDevice("127.0.0.1", port, monotonic=time.monotonic, back_off_s=(1.0, 4.0))
    pauses = []
    for _ in range(5):
        with pytest.raises(BridgeLost, match="nobody accepts"):
            await device.connect()
        began = time.seconds
        while True:
            with pytest.raises(BridgeLost) as lost:
                await device.connect()
            if "nobody accepts" in str(lost.value):
                break
            time.pass_by(0.1)
        pauses.append(time.seconds - began)
        time.pass_by(10)
    assert all(0.5 <= pause <= 4.1 for pause in pauses)
    assert pauses[-1] > 1.9  # 4 s, shortened by up to a half
    assert device.counts["unreachable"] == 10


class Legacy(Unit):
    """Has model 103 where 701 should be."""

    def read(self, address: int, count: int) -> list[int]:
        words = super().read(address, count)
        at = self.image[701].address
        if address <= at < address + count:
            words[at - address] = 103
        return words


class NoEnergy(Unit):
    """A store whose image ends before model 713."""

    def read(self, address: int, count: int) -> list[int]:
        words = super().read(address, count)
        at = self.image[713].address
        if address <= at < address + count:
            words[at - address] = 0xFFFF
        return words


class NoMarker(Unit):
    def read(self, address: int, count: int) -> list[int]:
        return [0] * count


@pytest.mark.parametrize(
    ("capability", "unit", "words"),
    [
        (PV, Legacy, "models [701] are missing, it speaks only the legacy models [103]"),
        (BATTERY, NoEnergy, "it charges (model 702), but model 713 is missing: its energy is not known"),
        (PV, NoMarker, "no SunS marker at 40000, 50000, 0"),
    ],
)
async def test_what_is_not_understood_is_said_on_connecting(
    capability: Capability, unit: type[Unit], words: str
) -> None:
    async with bench(capability, unit=unit) as on:
        with pytest.raises(NotSunSpec) as lost:
            await on.device.connect()
        assert words in str(lost.value)
        assert not on.device.connected


class At(Unit):
    """Its registers begin elsewhere."""

    base = 0

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        moved = self.base - self.image.base
        self.image.base += moved
        for block in self.image.blocks.values():
            block.address += moved


class AtFifty(At):
    base = 50_000


@pytest.mark.parametrize("unit", [At, AtFifty])
async def test_the_marker_is_found_elsewhere(unit: type[Unit]) -> None:
    async with bench(unit=unit) as on:
        assert (await on.device.read_capability()) == PV
        await on.device.write_setpoint(on.told((0.0, 0.5)), on.time.wall())
        assert on.unit.measured.p_mw == 0.5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"unit": 248}, "unit 248 is not between"),
        ({"port": 0}, "port 0 is not between"),
        ({"timeout_s": 0.0}, "timeout_s=0.0 must be positive"),
    ],
)
def test_options_are_checked(options: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SunSpecDevice("127.0.0.1", **options)  # type: ignore[arg-type]


class Busy(Unit):
    def write(self, address: int, words: list[int]) -> None:  # type: ignore[override]
        raise UnitRefusal(6, "busy")


async def test_a_busy_device_is_not_one_that_cannot() -> None:
    async with bench(unit=Busy) as on:
        with pytest.raises(BridgeLost, match="Modbus exception 6, device busy"):
            await on.device.write_setpoint(on.told((0.0, 0.5)), on.time.wall())
        assert on.device.connected


async def test_a_loss_that_nobody_waits_for_is_counted_too() -> None:
    async with bench() as on:
        await on.device.connect()
        await on.emulator.stop()
        async with asyncio.timeout(5):
            while on.device.connected:  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert on.device.counts["disconnects"] == 1
        with pytest.raises(BridgeLost, match="nobody accepts"):
            await on.device.read_measurements()


@pytest.mark.parametrize("seed", range(8))
async def test_garbage_is_no_answer(seed: int) -> None:
    """Whatever comes, it ends in `BridgeLost`, by the deadline."""
    noise = random.Random(seed)
    left = asyncio.Event()

    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while request := await reader.read(300):
            head = request[:4] if seed % 2 else b""  # as if it belonged to what was asked
            writer.write(head + noise.randbytes(noise.randint(1, 400)))
        writer.close()
        left.set()

    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    device = SunSpecDevice("127.0.0.1", server.sockets[0].getsockname()[1], timeout_s=0.2)
    loop, noted = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda loop, context: noted.append(context))
    try:
        with pytest.raises(BridgeLost):
            await device.connect()
        assert not device.connected
        await asyncio.wait_for(left.wait(), 5)
        assert noted == []  # and nothing for asyncio to log
    finally:
        loop.set_exception_handler(None)
        server.close()
        await server.wait_closed()
