"""A Modbus TCP server in front of emulated devices.

Modbus/TCP knows neither users nor encryption: whoever reaches the port commands the devices.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Self, cast

from pymodbus.constants import ExcCodes
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from bridges.sunspec.unit import Refusal, Unit

READS = (3, 4)
WRITES = (6, 16)


class PortTaken(OSError):
    """The server cannot listen where it should."""


class Emulator:
    """One or several units at one port.

    Args:
        port: 0: one that is free, see `port` once it runs.
        every_s: how often the units settle and say what they hold while nobody asks; `None`: only when asked.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        every_s: float | None = None,
    ) -> None:
        numbers = [unit.number for unit in units]
        if not units or len(set(numbers)) != len(numbers):
            raise ValueError(f"units {numbers}: at least one, and each number once")
        if every_s is not None and not every_s > 0:
            raise ValueError(f"every_s={every_s} must be positive")
        self.units = tuple(units)
        self.host = host
        self._port, self._every_s = port, every_s
        self._server: ModbusTcpServer | None = None
        self._holding: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._port

    async def start(self) -> None:
        """Listen.

        Raises:
            PortTaken: the address cannot be had.
        """
        server = ModbusTcpServer([_served(unit) for unit in self.units], address=(self.host, self._port))
        try:
            await server.serve_forever(background=True)
        except RuntimeError as error:
            raise PortTaken(f"{self.host}:{self._port} cannot be listened to; is it taken?") from error
        self._server = server
        self._port = int(cast(asyncio.Server, server.transport).sockets[0].getsockname()[1])
        if self._every_s is not None:
            self._holding = asyncio.create_task(self._hold(self._every_s))

    async def stop(self) -> None:
        """Close every connection and the port."""
        if self._holding is not None:
            self._holding.cancel()
            with suppress(asyncio.CancelledError):
                await self._holding
            self._holding = None
        if self._server is not None:
            await self._server.shutdown()  # type: ignore[no-untyped-call]
            self._server = None

    async def _hold(self, every_s: float) -> None:
        loop = asyncio.get_running_loop()
        next_at = loop.time()
        while True:
            for unit in self.units:
                unit.hold()
            next_at = max(next_at + every_s, loop.time())
            await asyncio.sleep(next_at - loop.time())

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


def _served(unit: Unit) -> SimDevice:
    """The unit as pymodbus serves it; the registers that it keeps are overwritten by ours at each request."""
    data = SimData(unit.image.base, values=unit.image.words(), datatype=DataType.REGISTERS)
    return SimDevice(unit.number, simdata=[data], action=partial(_act, unit))


async def _act(
    unit: Unit,
    function: int,
    base: int,
    address: int,
    count: int,
    registers: list[int],
    values: list[int] | list[bool] | None,
) -> ExcCodes | None:
    try:
        if function in READS and values is None:
            registers[address - base : address - base + count] = unit.read(address, count)
        elif function in WRITES and values is not None:
            unit.write(address, [int(word) for word in values])
        else:
            return ExcCodes.ILLEGAL_FUNCTION
    except Refusal as error:
        return ExcCodes(error.code)
    return None
