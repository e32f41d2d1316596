"""An emulated SunSpec device, a client of it on a real socket, and one faked clock for both."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from bridges.device_bridge import Capability
from bridges.sunspec.client import SunSpecDevice
from bridges.sunspec.emulator import Emulator
from bridges.sunspec.unit import Event, Following, Unit
from controllers.contract import Instruction, Setpoint
from controllers.devices import still
from controllers.region import Region
from tests.running import FakeTime

PV = Capability(p_max_mw=1.0, s_mva=1.0, q_max_mvar=0.6, q_min_mvar=-0.6)
BATTERY = Capability(
    p_max_mw=0.4, p_min_mw=-0.4, s_mva=0.4, q_max_mvar=0.4, q_min_mvar=-0.4, e_mwh=0.8, storage=True
)


class Bench:
    """An emulated device, a client of it, and one faked clock for both."""

    def __init__(self, capability: Capability, emulator: Emulator, unit: Unit, events: list[Event]) -> None:
        self.capability, self.emulator, self.unit, self.events = capability, emulator, unit, events
        self.time: FakeTime
        self.device: SunSpecDevice
        self._seq = 0

    def told(
        self,
        p: tuple[float, float],
        *,
        q: float = 0.0,
        seconds: float = 60.0,
        setpoint: Setpoint | None = None,
    ) -> Instruction:
        self._seq += 1
        now = self.time.wall()
        return Instruction(
            device="der1",
            epoch=1,
            seq=self._seq,
            issued_at=now,
            valid_from=now,
            valid_until=now + timedelta(seconds=seconds),
            region=Region.box(p_mw=p, q_mvar=(min(q, 0.0), q)),
            setpoint=setpoint or Setpoint(q_mvar=q),
            fallback=still(),
        )

    def written(self) -> list[list[str]]:
        return [list(event.points) for event in self.events if event.kind == "written"]


@asynccontextmanager
async def bench(
    capability: Capability = PV,
    *,
    wish_mw: float = 0.9,
    unit: type[Unit] = Unit,
    **options: float | bool,
) -> AsyncIterator[Bench]:
    time, events = FakeTime(), []
    made = unit(1, capability, Following(wish_mw, 0.4), monotonic=time.monotonic, watch=events.append)
    async with Emulator([made]) as emulator:
        found = Bench(capability, emulator, made, events)
        found.time = time
        found.device = SunSpecDevice(
            "127.0.0.1",
            emulator.port,
            utc=time.wall,
            monotonic=time.monotonic,
            **options,  # type: ignore[arg-type]
        )
        try:
            yield found
        finally:
            await found.device.close()
