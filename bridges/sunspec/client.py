"""A device that speaks SunSpec Modbus, as a `DeviceBridge`."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

from bridges.device_bridge import BridgeLost, BridgeRefused, Capability, InForce, Reading, Written
from bridges.sunspec.connection import Connection, RequestRefused
from bridges.sunspec.plan import LONGEST_S, Plan, Write, modes_of, phases, plan
from bridges.sunspec.reading import (
    FUNCTIONS,
    capability_of,
    in_force,
    rated_mw,
    reading_of,
    steps_of,
    told,
)
from bridges.sunspec.registers import END, HEADER, MARKER, Block, PointError, Value, layout
from bridges.sunspec.writing import Writing
from controllers.contract import Instruction
from controllers.region import TOLERANCE
from controllers.register import Refusal

BASES = (40_000, 50_000, 0)
"""Where the marker may stand, in the order in which it is looked for."""
NEEDED = (701, 702, 704)
KNOWN = (1, 701, 702, 703, 704, 713)
LEGACY = (101, 102, 103, 111, 112, 113, 120, 121, 122, 123, 124)
OF_THE_VALUE = (1, 2, 3)
"""Modbus exceptions that say that a value, or its place, is wrong; others are about the device's state."""
MOST_MODELS = 100


class NotSunSpec(BridgeLost):
    """Somebody answers, but not with the models that are needed."""


class SunSpecDevice:
    """Finds the models of a device, hands it instructions and reads what it measures.

    Losses are counted in `counts` (see `connection.Connection`; also `refused`, `mismatches`), and nothing
    blocks longer than `timeout_s` for each request. One request at a time is under way.

    Args:
        unit: the Modbus unit (device id).
        tolerance_mw: how far outside its region a multiple of the device's steps may lie.
        needs_timer: refuse a device whose reversion timer is seen not to run.
        utc: the time in UTC; for stamps.
        monotonic: seconds of a clock that does not jump; for validities.
    """

    def __init__(
        self,
        host: str,
        port: int = 502,
        unit: int = 1,
        *,
        timeout_s: float = 1.0,
        back_off_s: tuple[float, float] = (0.2, 5.0),
        tolerance_mw: float = TOLERANCE,
        needs_timer: bool = True,
        utc: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = Connection(
            host, port, unit, timeout_s=timeout_s, back_off_s=back_off_s, monotonic=monotonic
        )
        self._tolerance_mw, self._needs_timer = tolerance_mw, needs_timer
        self._utc, self._monotonic = utc, monotonic
        self._lock = asyncio.Lock()
        self._blocks: dict[int, Block] = {}
        self._ends_at: float | None = None  # monotonic: when what we wrote last reverts
        self._known = False  # whether what we have of model 704 was read back after our own last write
        self._slow_s = 0.0  # what the slowest request of the last writing took
        self._rested = True  # whether what was written last may stand still

    @property
    def name(self) -> str:
        return self._connection.name

    @property
    def connected(self) -> bool:
        return self._connection.connected

    @property
    def counts(self) -> Counter[str]:
        return self._connection.counts

    async def connect(self) -> None:
        """Connect and find the models, unless that is done.

        Raises:
            BridgeLost: not reachable, or in the pause after a failure.
            NotSunSpec: no marker, or not the models that are needed.
        """
        async with self._lock:
            await self._ensure()

    async def close(self) -> None:
        """Leave; what was written reverts by itself."""
        async with self._lock:
            self._connection.close()

    async def read_capability(self) -> Capability:
        """What model 702 says, read anew."""
        async with self._lock:
            await self._ensure()
            await self._read(702)
            return self._capability()

    async def read_measurements(self) -> Reading:
        """What models 701 and 713 say."""
        async with self._lock:
            await self._ensure()
            await self._read(701, "ACType", "LNV")
            if 713 in self._blocks:
                await self._read(713)
            return reading_of(self._blocks, self._utc())

    async def read_back(self) -> InForce:
        """What model 704 says is in force."""
        async with self._lock:
            await self._ensure()
            await self._read(704)
            return in_force(self._blocks, self._utc())

    def plan(self, instruction: Instruction, now: datetime, *, wish_mw: float | None = None) -> Plan:
        """What `write_setpoint` would write; for a run that only computes.

        Raises:
            BridgeLost: never connected, so nothing is known about the device.
            BridgeRefused: see `DeviceBridge.write_setpoint`.
        """
        if not self._blocks:
            raise BridgeLost(f"{self.name}: not connected yet")
        return plan(
            instruction,
            now,
            self._capability(),
            steps_of(self._blocks),
            wish_mw=wish_mw,
            tolerance_mw=self._tolerance_mw,
        )

    async def write_setpoint(
        self, instruction: Instruction, now: datetime, *, wish_mw: float | None = None
    ) -> Written:
        """Write what holds at `now` into model 704, read it back and compare.

        Raises:
            BridgeLost: the device is gone. If that happened on the way, it reverts when what it obeyed before
                would have ended, or when this would.
            BridgeRefused: it cannot be told so, it refused a value, or it says another than was written.
        """
        asked_at = self._monotonic()
        async with self._lock:
            await self._ensure()
            before = self.counts["transactions"]
            try:
                return await self._hand_over(instruction, now, asked_at, wish_mw, before)
            except BridgeRefused:
                self.counts["refused"] += 1
                raise

    async def _hand_over(
        self, instruction: Instruction, now: datetime, asked_at: float, wish_mw: float | None, before: int
    ) -> Written:
        m704, rated = self._blocks[704], rated_mw(self._blocks)
        if not self._known or (self._ends_at is not None and self._ends_at <= self._monotonic()):
            await self._read(704)
        began_at, left_s = self._monotonic(), self._left_s(m704)
        self._known = False
        now += timedelta(seconds=began_at - asked_at)  # what waiting and reading took is gone
        wanted = self.plan(instruction, now, wish_mw=wish_mw)
        if wanted.setting.q_mvar is not None:
            self._check_power_factor(m704)
        writing = Writing(
            m704,
            self._write,
            self._monotonic,
            until_s=began_at + min((wanted.until - now).total_seconds(), LONGEST_S),
            old_until_s=None if left_s is None else began_at + left_s,
            slow_s=self._slow_s,
        )
        try:
            *first, enable, last = phases(wanted, m704, rated, left_s, rested=self._rested)
            for phase in first:
                await writing.phase(phase, final=False)
            for phase in (enable, last):
                await writing.phase(phase, final=True)
        finally:  # where it is too slow for any request, what is known of it fades, or it would never be told
            self._slow_s = writing.took_s or self._slow_s / 2
        self._ends_at, self._rested = writing.ends_s, wanted.rests
        kept = list(m704.words)
        await self._read(704)
        left = writing.ends_s - self._monotonic()
        if left <= 0:
            raise BridgeRefused(Refusal.STALE, "its timer was over before it could be read back")
        self._compare(m704, Block(m704.layout, m704.address, kept), writing.asked)
        self._known = True
        read_at = self._utc()
        return Written(
            time=read_at,
            setting=in_force(self._blocks, read_at),
            reverts_to=told(wanted.fallback, read_at + timedelta(seconds=left)),
            points=writing.asked,
            transactions=self.counts["transactions"] - before,
        )

    def _check_power_factor(self, m704: Block) -> None:
        """A fixed power factor and a fixed reactive power exclude each other; we do not overrule it."""
        for name in ("PFWInjEna", "PFWAbsEna"):
            if m704.symbol(name) == "ENABLED":
                raise BridgeRefused(
                    Refusal.HELD,
                    f"{name} is ENABLED: a fixed power factor rules out VarSet; disable it first",
                )

    def _left_s(self, m704: Block) -> float | None:
        """How long what is in force may last; `None`: nothing is, or without an end."""
        on = [name for name in FUNCTIONS if m704.symbol(f"{name}Ena") == "ENABLED"]
        if not on:
            return None
        found = [] if self._known else [left for name in on if (left := m704.number(f"{name}RvrtRem"))]
        if self._ends_at is not None and (ours := self._ends_at - self._monotonic()) > 0:
            found.append(ours)
        return min(found, default=None)

    def _compare(self, read: Block, written: Block, asked: dict[str, Value]) -> None:
        modes = [point for name in FUNCTIONS if f"{name}Ena" in asked for point, _ in modes_of(name)]
        for name in (*asked, *modes):
            if read.raw(name) != written.raw(name):
                self.counts["mismatches"] += 1
                raise BridgeRefused(
                    Refusal.CAPABILITY,
                    f"{name}: {written.value(name)} was written, but {read.value(name)} is read back",
                )
        for name in FUNCTIONS:
            seconds = read.number(f"{name}RvrtTms")
            if (
                self._needs_timer
                and asked.get(f"{name}Ena") == "ENABLED"
                and seconds is not None
                and seconds > 1
                and read.number(f"{name}RvrtRem") == 0
            ):
                raise BridgeRefused(
                    Refusal.CAPABILITY,
                    f"{name}RvrtRem is 0 though {name}RvrtTms is {seconds:g}: its timer does not run, so it "
                    "would not fall back by itself",
                )

    async def _write(self, write: Write, values: Mapping[str, Value]) -> None:
        m704, end = self._blocks[704], write.offset + len(write.words)
        try:
            await self._connection.write(m704.address + write.offset, write.words)
        except RequestRefused as error:
            said = ", ".join(f"{name}={values[name]}" for name in write.points)
            if error.code not in OF_THE_VALUE:  # busy, out of order: another time it may work
                raise BridgeLost(f"{self.name}: {said}: {error}") from error
            raise BridgeRefused(Refusal.CAPABILITY, f"{said}: {error}") from error
        m704.words[write.offset : end] = write.words

    async def _read(self, model: int, first: str | None = None, last: str | None = None) -> None:
        """Read a model anew, or the part of it from one point to another."""
        block = self._blocks[model]
        start = HEADER if first is None else block.layout.point(first).offset
        end = len(block.words)
        if last is not None:
            point = block.layout.point(last)
            end = min(end, point.offset + point.size)
        try:
            block.words[start:end] = await self._connection.read(block.address + start, end - start)
        except RequestRefused as error:
            self._connection.fail()
            raise BridgeLost(f"{self.name}: model {model} cannot be read: {error}") from error

    async def _ensure(self) -> None:
        if self._connection.connected:
            return
        await self._connection.open()
        self._known = False
        try:
            self._blocks = await self._discover()
        except NotSunSpec:
            self._connection.fail()
            raise
        except RequestRefused as error:
            self._connection.fail()
            raise NotSunSpec(f"{self.name}: its models cannot be read: {error}") from error
        self._connection.settle()

    async def _discover(self) -> dict[int, Block]:
        for base in BASES:
            try:
                found = await self._connection.read(base, len(MARKER))
            except RequestRefused:
                continue
            if tuple(found) == MARKER:
                break
        else:
            places = ", ".join(str(base) for base in BASES)
            raise NotSunSpec(
                f"{self.name}: no SunS marker at {places}; is it a SunSpec device, and its unit right?"
            )
        blocks: dict[int, Block] = {}
        seen: list[int] = []
        address = base + len(MARKER)
        for _ in range(MOST_MODELS):
            model, length = await self._connection.read(address, HEADER)
            if model == END[0]:
                break
            seen.append(model)
            if model in KNOWN and model not in blocks:
                size = min(layout(model).size, HEADER + length)
                blocks[model] = Block(layout(model), address, await self._connection.read(address, size))
            address += HEADER + length
            if address + HEADER > 65_536:
                raise NotSunSpec(
                    f"{self.name}: model {model} has length {length}, which leads beyond all registers"
                )
        else:
            raise NotSunSpec(f"{self.name}: more than {MOST_MODELS} models, and no end")
        self._check(blocks, seen)
        return blocks

    def _check(self, blocks: dict[int, Block], seen: list[int]) -> None:
        missing = [model for model in NEEDED if model not in blocks]
        if missing:
            old = [model for model in seen if model in LEGACY]
            advice = f"it speaks only the legacy models {old}" if old else f"it has {seen or 'none'}"
            raise NotSunSpec(
                f"{self.name}: models {missing} are missing, {advice}; those of IEEE 1547-2018 "
                "(701, 702, 704; 713 for a store) are needed"
            )
        try:
            storage = capability_of(blocks).storage
        except PointError as error:
            raise NotSunSpec(f"{self.name}: {error}") from error
        if storage and 713 not in blocks:
            raise NotSunSpec(
                f"{self.name}: it charges (model 702), but model 713 is missing: its energy is not known"
            )

    def _capability(self) -> Capability:
        try:
            return capability_of(self._blocks)
        except PointError as error:
            raise NotSunSpec(f"{self.name}: {error}") from error
