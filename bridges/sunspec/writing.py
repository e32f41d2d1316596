"""Writing: the requests of one instruction, each with the time that is left when it is sent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from math import floor

from bridges.device_bridge import BridgeRefused
from bridges.sunspec.plan import Write, in_time, requests
from bridges.sunspec.reading import FUNCTIONS
from bridges.sunspec.registers import Block, Value
from controllers.register import Refusal

CLOSE_S = 1e-6
"""What instants are known to."""


class Writing:
    """Writes phases such that no timer ends after `until_s`, however slow the device takes them.

    A request takes effect somewhere between its being sent and answered, at worst at the end. So each gives
    its timer what is left less what the slowest so far took; where one was slower still, it is sent anew.

    Args:
        write: sends one request and has it in `m704`.
        monotonic: seconds of a clock that does not jump; of `until_s` and `old_until_s` too.
        until_s: when the instruction is over.
        old_until_s: when what is in force is; `None`: nothing is, or without an end.
        slow_s: what the slowest request of an earlier writing took.
    """

    def __init__(
        self,
        m704: Block,
        write: Callable[[Write, Mapping[str, Value]], Awaitable[None]],
        monotonic: Callable[[], float],
        *,
        until_s: float,
        old_until_s: float | None,
        slow_s: float,
    ) -> None:
        self._m704, self._write, self._monotonic = m704, write, monotonic
        self._until_s, self._slow_s = until_s, slow_s
        self._old_until_s = until_s if old_until_s is None else min(old_until_s, until_s)
        self.took_s = 0.0
        """what the slowest request took"""
        self.asked: dict[str, Value] = {}
        """what was written, by point"""
        self.ends_s = until_s
        """when the first function reverts, at the soonest"""

    async def phase(self, values: Mapping[str, Value], *, final: bool) -> None:
        """Write a phase, one function after the other.

        Args:
            final: whether its timers last until the instruction is over; else until what is in force is.

        Raises:
            BridgeLost, BridgeRefused: see `DeviceBridge.write_setpoint`.
        """
        for name in FUNCTIONS:
            part = {point: value for point, value in values.items() if point.startswith(name)}
            while part and not await self._put(name, part, final):
                pass

    async def _put(self, name: str, part: Mapping[str, Value], final: bool) -> bool:
        """Write what is about one function; whether its timer ends in time."""
        timed = in_time(part, name, self._m704, self._seconds(1, final))
        writes = requests(timed, self._m704)
        if len(writes) > 1:  # the timer may start with the last of them
            timed = in_time(part, name, self._m704, self._seconds(len(writes), final))
            writes = requests(timed, self._m704)
        sent_s = self._monotonic()
        for write in writes:
            began_s = self._monotonic()
            await self._write(write, timed)
            self.took_s = max(self.took_s, self._monotonic() - began_s)
        self.asked |= timed
        if not final or part.get(f"{name}Ena") != "ENABLED":
            return True
        seconds = self._m704.number(f"{name}RvrtTms") or 0.0
        self.ends_s = min(self.ends_s, sent_s + seconds)
        return self._monotonic() + seconds <= self._until_s + CLOSE_S

    def _seconds(self, count: int, final: bool) -> int:
        """What a timer that starts with the last of `count` requests may be set to.

        Raises:
            BridgeRefused: less than one.
        """
        now_s = self._monotonic() + count * max(self._slow_s, self.took_s) - CLOSE_S
        left = floor(self._until_s - now_s)
        if left < 1:
            raise BridgeRefused(
                Refusal.STALE,
                f"{self._until_s - self._monotonic():.1f} s of its validity are left, and a request takes up "
                f"to {max(self._slow_s, self.took_s):.1f} s: too short for a timer",
            )
        return left if final else min(left, max(1, floor(self._old_until_s - now_s)))
