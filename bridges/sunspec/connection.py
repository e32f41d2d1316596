"""One connection to a Modbus device: registers in, registers out, each request with a deadline.

Nothing is sent twice: a request without an answer ends the connection, so that no late answer is taken for
that of another one, and whoever asked decides what is still worth asking.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial

from pymodbus.client import AsyncModbusTcpClient
from pymodbus.exceptions import ConnectionException, ModbusException
from pymodbus.pdu import ModbusPDU

from bridges.device_bridge import BridgeLost

logging.getLogger("pymodbus.logging").addHandler(logging.NullHandler())  # we raise what it would print

AT_ONCE = 125
"""Registers that one read may ask for, by the Modbus specification."""
EXCEPTIONS = {
    1: "illegal function",
    2: "illegal address",
    3: "illegal value",
    4: "device failure",
    6: "device busy",
    10: "gateway path unavailable",
    11: "gateway target does not respond",
}


class RequestRefused(Exception):
    """The device answered with a Modbus exception."""

    def __init__(self, code: int) -> None:
        super().__init__(f"Modbus exception {code}, {EXCEPTIONS.get(code, 'unknown')}")
        self.code = code


class Connection:
    """A connection that backs off after failures; see `counts`.

    | count        | meaning                                            |
    |--------------|----------------------------------------------------|
    | connects     | connections made                                   |
    | unreachable  | attempts that failed                               |
    | disconnects  | connections lost, by the other side or for silence |
    | timeouts     | requests without an answer in time                 |
    | transactions | requests that were answered                        |

    Args:
        timeout_s: deadline of each request, and of the attempt to connect.
        back_off_s: pause after the first failure, and the longest; it doubles in between, and each is
            shortened by up to a half so that many do not come back at once.
        monotonic: seconds of a clock that does not jump.
    """

    def __init__(
        self,
        host: str,
        port: int,
        unit: int,
        *,
        timeout_s: float,
        back_off_s: tuple[float, float],
        monotonic: Callable[[], float],
    ) -> None:
        if not 0 <= unit <= 247:
            raise ValueError(f"Modbus unit {unit} is not between 0 and 247")
        if not 0 < port < 65_536:
            raise ValueError(f"port {port} is not between 1 and 65535")
        if not timeout_s > 0:
            raise ValueError(f"timeout_s={timeout_s} must be positive")
        self.name = f"Modbus {host}:{port} unit {unit}"
        self.counts: Counter[str] = Counter()
        self._host, self._port, self._unit, self._timeout_s = host, port, unit, timeout_s
        self._least_s, self._most_s = back_off_s
        self._monotonic = monotonic
        self._pause_s, self._not_before = 0.0, float("-inf")
        self._client: AsyncModbusTcpClient | None = None
        self._asking = False

    @property
    def connected(self) -> bool:
        return self._client is not None and self._client.connected

    async def open(self) -> None:
        """Connect anew.

        Raises:
            BridgeLost: the device does not answer, or the pause after the last failure is not over.
        """
        self._drop()
        wait = self._not_before - self._monotonic()
        if wait > 0:
            raise BridgeLost(f"{self.name}: not reachable, next attempt in {wait:.1f} s")
        self._client = AsyncModbusTcpClient(
            self._host,
            port=self._port,
            timeout=self._timeout_s,
            retries=0,
            reconnect_delay=0,
            trace_connect=self._on_change,
        )
        if not await self._client.connect():
            self.counts["unreachable"] += 1
            self.fail()
            raise BridgeLost(f"{self.name}: nobody accepts a connection within {self._timeout_s:g} s")
        self.counts["connects"] += 1

    def settle(self) -> None:
        """The device is understood: forget earlier failures."""
        self._pause_s = 0.0

    def fail(self) -> None:
        """Leave, and pause before the next attempt."""
        self._drop()
        self._pause_s = min(max(2 * self._pause_s, self._least_s), self._most_s)
        self._not_before = self._monotonic() + self._pause_s * random.uniform(0.5, 1.0)

    def close(self) -> None:
        """Leave; the next attempt may follow at once."""
        self._drop()
        self._pause_s, self._not_before = 0.0, float("-inf")

    async def read(self, address: int, count: int) -> list[int]:
        """Registers from `address` on, in as few requests as possible.

        Raises:
            BridgeLost: no answer in time.
            RequestRefused: the device refuses.
        """
        words: list[int] = []
        while len(words) < count:
            part = min(count - len(words), AT_ONCE)
            start = address + len(words)
            answer = await self._ask(partial(self._reading, start, part))
            if len(answer.registers) != part:
                self.counts["disconnects"] += 1
                self.fail()
                raise BridgeLost(f"{self.name}: {len(answer.registers)} registers came instead of {part}")
            words += answer.registers
        return words

    async def write(self, address: int, words: Sequence[int]) -> None:
        """Set registers from `address` on, in one request.

        Raises:
            BridgeLost: no answer in time; whether it took effect is not known.
            RequestRefused: the device refuses.
        """
        await self._ask(partial(self._writing, address, list(words)))

    def _reading(self, start: int, count: int, client: AsyncModbusTcpClient) -> Awaitable[ModbusPDU]:
        return client.read_holding_registers(start, count=count, device_id=self._unit)

    def _writing(self, start: int, words: list[int], client: AsyncModbusTcpClient) -> Awaitable[ModbusPDU]:
        return client.write_registers(start, words, device_id=self._unit)

    async def _ask(self, request: Callable[[AsyncModbusTcpClient], Awaitable[ModbusPDU]]) -> ModbusPDU:
        client = self._client
        if client is None or not client.connected:
            raise BridgeLost(f"{self.name}: not connected")
        self._asking = True
        try:
            answer = await request(client)
        except ConnectionException as error:
            self.counts["disconnects"] += 1
            self.fail()
            raise BridgeLost(f"{self.name}: the connection was lost") from error
        except ModbusException as error:
            self.counts["timeouts"] += 1
            self.counts["disconnects"] += 1
            self.fail()
            raise BridgeLost(f"{self.name}: no answer within {self._timeout_s:g} s") from error
        except BaseException:  # cancelled: an answer that still comes must not be taken for the next one's
            self.fail()
            raise
        finally:
            self._asking = False
        self.counts["transactions"] += 1
        if answer.isError():
            raise RequestRefused(int(getattr(answer, "exception_code", 0)))
        return answer

    def _on_change(self, connected: bool) -> None:
        """The connection came or went: who waits for an answer shall know at once, not at the deadline."""
        if connected or self._client is None:
            return
        if not self._asking:
            self.counts["disconnects"] += 1
            return
        answer = self._client.ctx.response_future
        if not answer.done():
            answer.set_exception(ConnectionException("closed by the device"))

    def _drop(self) -> None:
        if self._client is not None:
            with suppress(OSError):
                self._client.close()
            self._client = None
