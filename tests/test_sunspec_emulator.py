"""The emulator obeys literally; and a connection that breaks on the way leaves it within valid limits."""

from __future__ import annotations

import time as clock

import pytest
from pymodbus.client import AsyncModbusTcpClient

from bridges.device_bridge import BridgeLost
from bridges.sunspec.emulator import Emulator, PortTaken
from bridges.sunspec.registers import Block, layout
from bridges.sunspec.unit import Following, Measured, Unit
from tests.sunspec_bench import BATTERY, PV, bench


class Breaking(Unit):
    """Closes the connection of whoever makes its `break_at`th write, after or before it took effect."""

    break_at, after = 0, True
    emulator: Emulator
    count = 0

    def write(self, address: int, words: list[int]) -> None:  # type: ignore[override]
        self.count += 1
        if self.count == self.break_at and not self.after:
            self.cut()
            return
        super().write(address, words)
        if self.count == self.break_at:
            self.cut()

    def cut(self) -> None:
        server = self.emulator._server
        assert server is not None
        for connection in list(server.active_connections.values()):
            connection.transport.abort()  # type: ignore[attr-defined]


OLD, NEW = (0.8, 0.0), (0.3, 0.2)
"""(limit, Q) before and after."""


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("break_at", range(1, 7))
@pytest.mark.parametrize("reverse", [False, True])
async def test_a_connection_lost_on_the_way_leaves_a_safe_device(
    break_at: int, after: bool, reverse: bool
) -> None:
    (old, old_q), (new, new_q) = (NEW, OLD) if reverse else (OLD, NEW)
    async with bench(unit=Breaking, timeout_s=5.0) as on:
        unit = on.unit
        assert isinstance(unit, Breaking)
        unit.emulator = on.emulator
        await on.device.write_setpoint(on.told((0.0, old), q=old_q, seconds=20), on.time.wall())
        on.time.pass_by(5)
        unit.count, unit.break_at, unit.after = 0, break_at, after
        began = clock.perf_counter()
        with pytest.raises(BridgeLost, match="the connection was lost"):
            await on.device.write_setpoint(on.told((0.0, new), q=new_q, seconds=100), on.time.wall())
        assert clock.perf_counter() - began < 2.0  # noticed at once, not at the deadline
        assert on.device.counts["disconnects"] == 1
        assert not on.device.connected

        def allowed() -> bool:
            point = unit.measured
            within_old = point.p_mw <= old + 1e-9 and point.q_mvar in (0.0, old_q)
            within_new = point.p_mw <= new + 1e-9 and point.q_mvar in (0.0, new_q)
            return within_old or within_new

        assert allowed()
        new_in_force = unit.measured.p_mw == new and unit.measured.q_mvar == new_q
        on.time.pass_by(14.9)
        unit.settle()
        assert allowed()
        on.time.pass_by(0.2)  # 20.1 s after the first instruction: it is over
        unit.settle()
        fallback = Measured(p_mw=0.0, q_mvar=0.0, e_mwh=0.4)
        assert new_in_force or unit.measured == fallback
        on.time.pass_by(85)
        unit.settle()
        assert unit.measured == fallback


async def test_after_a_loss_the_next_instruction_goes_through() -> None:
    async with bench(unit=Breaking) as on:
        unit = on.unit
        assert isinstance(unit, Breaking)
        unit.emulator, unit.break_at = on.emulator, 3
        with pytest.raises(BridgeLost):
            await on.device.write_setpoint(on.told((0.0, 0.5)), on.time.wall())
        with pytest.raises(BridgeLost, match=r"not reachable, next attempt in 0\.\d s"):
            await on.device.write_setpoint(on.told((0.0, 0.5)), on.time.wall())
        assert on.device.counts["connects"] == 1  # nothing was tried in the pause
        on.time.pass_by(1)
        await on.device.write_setpoint(on.told((0.0, 0.4)), on.time.wall())
        assert (on.unit.measured.p_mw, on.device.counts["connects"]) == (0.4, 2)


async def test_the_emulator_obeys_literally_and_refuses_what_makes_no_sense() -> None:
    async with bench() as on:
        raw = AsyncModbusTcpClient("127.0.0.1", port=on.emulator.port, retries=0)
        await raw.connect()
        m704 = on.unit.image[704]
        scratch = Block(layout(704), 0, m704.words)

        async def write(point: str, words: list[int]) -> int:
            address = m704.address + m704.layout.point(point).offset
            answer = await raw.write_registers(address, words)
            return getattr(answer, "exception_code", 0)

        assert await write("WMaxLimPctEna", [1]) == 0  # before any value: it holds what is there
        assert on.unit.limits.limit_mw == 1.0
        assert await write("WMaxLimPct", [15_000]) == 3  # 150 %
        assert await write("WMaxLimPct", scratch.encode("WMaxLimPct", 30)) == 0
        assert on.unit.measured.p_mw == pytest.approx(0.3)
        assert await write("WSetEna", [7]) == 3
        assert await write("WSet", [0, 0xFFFF, 0]) == 2  # not whole points
        assert await write("WSet", [0x7FFF, 0xFFFF]) == 3  # beyond its rating
        assert await write("WMaxLimPctRvrtRem", [0, 5]) == 2  # cannot be written
        assert await write("WMaxLimPct", [5_000, 5_000, 9]) == 3  # all or nothing: EnaRvrt is 0 or 1
        assert m704.value("WMaxLimPct") == 30
        refused = [event for event in on.events if event.kind == "refused"]
        assert any("15000" in str(event.points) and "150 Pct" in event.why for event in refused)
        answer = await raw.read_holding_registers(39_999, count=2)
        assert answer.isError()
        answer = await raw.read_holding_registers(40_000, count=2, device_id=9)
        assert answer.isError()
        assert (await raw.write_coil(40_000, True)).isError()
        raw.close()


async def test_a_percentage_mode_that_somebody_set_is_understood() -> None:
    async with bench(BATTERY) as on:
        m704 = on.unit.image[704]
        m704.put("WSetMod", "W_MAX_PCT")
        m704.put("WSetPct", -50)
        m704.put("WSetEna", "ENABLED")
        assert on.unit.limits.p_mw == pytest.approx(-0.2)
        assert (await on.device.read_back()).p_mw == pytest.approx(-0.2)


async def test_two_servers_do_not_share_a_port() -> None:
    async with bench() as on:
        other = Emulator([Unit(1, PV, Following(0.1), monotonic=on.time.monotonic)], port=on.emulator.port)
        with pytest.raises(PortTaken, match="is it taken"):
            await other.start()
