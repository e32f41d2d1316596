"""One emulated device: its registers, its reversion timers, and what it does to a plant.

Timers follow the SunSpec DER Information Model 1.2, section 3.2: a function that is switched on, or a setting
of it that is updated while it is on, starts its timer anew with `RvrtTms`; 0 stops it. When it ends, the
reversion value and its enabling take the place of what was in force.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, hypot, inf
from typing import Protocol

from bridges.device_bridge import Capability
from bridges.sunspec.nameplate import SETTINGS, V_NOMINAL, fill
from bridges.sunspec.reading import FUNCTIONS, MEGA
from bridges.sunspec.registers import Block, Image, Point, PointError, Value, decode

REVERTED = {
    "WMaxLimPct": ("WMaxLimPct",),
    "WSet": ("WSet", "WSetPct"),
    "VarSet": ("VarSet", "VarSetPct"),
}
"""Function -> the points that take their `Rvrt` value when its timer ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the registers let a device do; `None`: its own choice."""

    limit_mw: float | None = None
    """most active power that it injects"""
    p_mw: float | None = None
    """active power that it aims at"""
    q_mvar: float | None = None
    """reactive power that it holds, before active power"""
    connected: bool = True
    """whether it may feed in or draw power at all"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a plant does; `None`: not known."""

    p_mw: float
    q_mvar: float
    e_mwh: float | None = None
    v_pu: float | None = None


class Plant(Protocol):
    """What is behind the registers."""

    def step(self, limits: Limits, elapsed_s: float) -> Measured:
        """Let `elapsed_s` pass as it was, then take up `limits`, and say what it does from now on."""
        ...


class Following:
    """A plant without physics: it follows its limits exactly, and else does what it wishes."""

    def __init__(self, wish_mw: float, e_mwh: float | None = None) -> None:
        self.wish_mw, self.e_mwh = wish_mw, e_mwh

    def step(self, limits: Limits, elapsed_s: float) -> Measured:
        if not limits.connected:
            return Measured(p_mw=0.0, q_mvar=0.0, e_mwh=self.e_mwh)
        p = self.wish_mw if limits.p_mw is None else limits.p_mw
        p = min(p, inf if limits.limit_mw is None else limits.limit_mw)
        return Measured(p_mw=p, q_mvar=limits.q_mvar or 0.0, e_mwh=self.e_mwh)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a unit."""

    unit: int
    kind: str
    """`written`, `refused` (a write), `reverted` (a timer ended) or `held` (time went by)"""
    at: float
    """seconds of the unit's clock"""
    points: Mapping[str, Value | None]
    """of model 704, as far as it is about them: what was written or reverted, by point or function"""
    limits: Limits
    """in force from now on"""
    measured: Measured
    why: str = ""
    """of a refusal"""


class Refusal(Exception):
    """A request that gets a Modbus exception."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


ILLEGAL_ADDRESS, ILLEGAL_VALUE = 2, 3


class Unit:
    """Registers of models 1, 701 to 704 and, for a store, 713, in front of a plant.

    Args:
        number: its Modbus unit.
        capability: what models 702 and 713 say.
        monotonic: seconds of a clock that does not jump.
        percent_power: scale factor of `WMaxLimPct`, a power of ten from -2 to 0.
        name: what model 1 calls it.
        watch: is told what happens.
    """

    def __init__(
        self,
        number: int,
        capability: Capability,
        plant: Plant,
        *,
        monotonic: Callable[[], float],
        percent_power: int = -2,
        name: str = "emulator",
        watch: Callable[[Event], None] = lambda event: None,
    ) -> None:
        if not 1 <= number <= 247:
            raise ValueError(f"unit {number} is not between 1 and 247")
        if not -2 <= percent_power <= 0:
            raise ValueError(f"percent_power={percent_power} is not between -2 and 0")
        self.number, self.name, self.capability = number, name, capability
        self._plant, self._monotonic, self._watch = plant, monotonic, watch
        self.image = Image((1, 701, 702, 703, 704, *((713,) if capability.storage else ())))
        fill(self.image, capability, percent_power, name)
        self._due: dict[str, float] = {}
        self._now = monotonic()
        self._injected_wh = self._absorbed_wh = 0.0
        self._followed = self.limits
        self.measured = plant.step(self._followed, 0.0)

    @property
    def limits(self) -> Limits:
        """What the registers let it do now."""
        m704, m702 = self.image[704], self.image[702]
        rated = m702.number("WMax") or 0.0
        found: dict[str, float | None] = {}
        for name, field in (("WMaxLimPct", "limit_mw"), ("WSet", "p_mw"), ("VarSet", "q_mvar")):
            watts = None
            if m704.symbol(f"{name}Ena") == "ENABLED":
                watts = self._absolute(name, rated)
            found[field] = None if watts is None else watts / MEGA
        return Limits(**found, connected=self.image[703].symbol("ES") == "ENABLED")

    def _absolute(self, name: str, rated: float) -> float | None:
        """A control's value in W or var, by its mode."""
        m704, m702 = self.image[704], self.image[702]
        if name == "WMaxLimPct":
            return (m704.number(name) or 0.0) / 100 * rated
        mode, percent = m704.symbol(f"{name}Mod"), m704.number(f"{name}Pct") or 0.0
        match mode:
            case "W_MAX_PCT":
                return percent / 100 * rated
            case "VA_MAX_PCT":
                return percent / 100 * (m702.number("VAMax") or rated)
            case "VAR_MAX_PCT":
                most = m702.number("VarMaxInj" if percent >= 0 else "VarMaxAbs")
                return percent / 100 * (most or 0.0)
            case _:
                return m704.number(name)

    def read(self, address: int, count: int) -> list[int]:
        """Registers as they are now.

        Raises:
            Refusal: beyond the image.
        """
        words, start = self._current(address, address + count), address - self.image.base
        if start < 0 or start + count > len(words):
            raise Refusal(ILLEGAL_ADDRESS, f"registers {address} to {address + count - 1} do not exist")
        return words[start : start + count]

    def write(self, address: int, words: Sequence[int]) -> None:
        """Obey a write, literally and at once: all of it, or nothing.

        Raises:
            Refusal: not all registers of a point, one that cannot be written, a value out of range.
        """
        self._expire()
        block, points = self._points(address, words)
        written: dict[str, Value | None] = {}
        kept = list(block.words)
        try:
            for point, part in points:
                block.words[point.offset : point.offset + point.size] = part
                written[point.name] = self._checked(block, point, part)
        except Refusal as error:
            block.words[:] = kept
            self._tell("refused", {point.name: decode(point, part) for point, part in points}, str(error))
            raise
        if block.layout.model == 704:
            self._restart(written)
        self._take_up(self._monotonic())
        self._tell("written", written)

    def settle(self) -> None:
        """Bring timers and plant to the present."""
        self._expire()
        now = self._monotonic()
        if now > self._now:
            self._step(now)

    def _current(self, start: int, end: int) -> list[int]:
        """All registers; those from `start` to `end` as they are now."""
        self._expire()
        if self._asked(704, start, end):
            now = self._monotonic()
            for name in FUNCTIONS:
                left = self._due.get(name, now) - now
                self.image[704].put(f"{name}RvrtRem", ceil(left - 1e-9))
        if self._asked(701, start, end) or (713 in self.image.blocks and self._asked(713, start, end)):
            self.settle()
            self._measure()
        return self.image.words()

    def _asked(self, model: int, start: int, end: int) -> bool:
        block = self.image[model]
        return start < block.address + len(block.words) and block.address < end

    def hold(self) -> None:
        """`settle`, and say what it holds."""
        self.settle()
        self._tell("held", {})

    def _points(self, address: int, words: Sequence[int]) -> tuple[Block, list[tuple[Point, list[int]]]]:
        for block in self.image.blocks.values():
            start = address - block.address
            if not 0 <= start < len(block.words):
                continue
            points = block.layout.covering(start, len(words))
            if (
                points
                and points[0].offset == start
                and points[-1].offset + points[-1].size == start + len(words)
            ):
                return block, [(p, list(words[p.offset - start : p.offset - start + p.size])) for p in points]
        raise Refusal(
            ILLEGAL_ADDRESS, f"registers {address} to {address + len(words) - 1} are not whole points"
        )

    def _checked(self, block: Block, point: Point, words: list[int]) -> Value:
        where = f"model {block.layout.model}, point {point.name}"
        if not point.writable:
            raise Refusal(ILLEGAL_ADDRESS, f"{where}: cannot be written")
        value = block.value(point.name)
        if value is None:
            raise Refusal(ILLEGAL_VALUE, f"{where}: {words} says that it is not implemented")
        try:
            block.encode(point.name, value)
        except PointError as error:
            raise Refusal(ILLEGAL_VALUE, str(error)) from error
        if point.name in ("WSet", "WSetRvrt", "VarSet", "VarSetRvrt"):
            low, high = self._range(point.name)
            if not low - 0.5 <= float(value) <= high + 0.5:
                raise Refusal(ILLEGAL_VALUE, f"{where}: {value:g} is not between {low:g} and {high:g}")
        if point.name == "VarSetMod" and block.symbol(point.name) == "VAR_AVAIL_PCT":
            raise Refusal(ILLEGAL_VALUE, f"{where}: VAR_AVAIL_PCT is not supported")
        return value

    def _range(self, name: str) -> tuple[float, float]:
        c = self.capability
        if name.startswith("WSet"):
            return c.p_min_mw * MEGA, c.p_max_mw * MEGA
        s = c.s_mva if c.s_mva is not None else inf
        high = s if c.q_max_mvar is None else c.q_max_mvar
        low = -s if c.q_min_mvar is None else c.q_min_mvar
        return low * MEGA, high * MEGA

    def _restart(self, written: Mapping[str, Value | None]) -> None:
        for name in FUNCTIONS:
            if f"{name}Ena" not in written and not written.keys() & set(SETTINGS[name]):
                continue
            self._due.pop(name, None)
            m704 = self.image[704]
            seconds = m704.number(f"{name}RvrtTms") or 0.0
            if m704.symbol(f"{name}Ena") == "ENABLED" and seconds > 0:
                self._due[name] = self._monotonic() + seconds

    def _expire(self) -> None:
        """Let the timers end whose time has come, in order, each at its own instant."""
        now = self._monotonic()
        while due := sorted((at, name) for name, at in self._due.items() if at <= now):
            at, name = due[0]
            del self._due[name]
            m704 = self.image[704]
            for point in REVERTED[name]:
                m704.put(point, m704.value(f"{point}Rvrt"))
            m704.put(f"{name}Ena", m704.raw(f"{name}EnaRvrt") or 0)
            m704.put(f"{name}RvrtRem", 0)
            self._take_up(at)
            values = {point: m704.value(point) for point in (*REVERTED[name][:1], f"{name}Ena")}
            self._tell("reverted", values, at=at)

    def _take_up(self, now: float) -> None:
        """Let the plant follow the limits, if they are others than before."""
        limits = self.limits
        if limits != self._followed:
            self._followed = limits
            self._step(now)

    def _step(self, now: float) -> None:
        elapsed = max(now - self._now, 0.0)
        energy = self.measured.p_mw * MEGA * elapsed / 3600
        if energy > 0:
            self._injected_wh += energy
        else:
            self._absorbed_wh -= energy
        self.measured = self._plant.step(self._followed, elapsed)
        self._now = now

    def _measure(self) -> None:
        m, m701, limits = self.measured, self.image[701], self._followed
        throttled = any(x is not None for x in (limits.limit_mw, limits.p_mw, limits.q_mvar))
        m701.put("W", m.p_mw * MEGA)
        m701.put("Var", m.q_mvar * MEGA)
        m701.put("VA", hypot(m.p_mw, m.q_mvar) * MEGA)
        m701.put("LLV", None if m.v_pu is None else m.v_pu * V_NOMINAL)
        m701.put("TotWhInj", self._injected_wh)
        m701.put("TotWhAbs", self._absorbed_wh)
        m701.put("ConnSt", "CONNECTED" if limits.connected else "DISCONNECTED")
        m701.put("St", "ON" if limits.connected else "OFF")
        m701.put("InvSt", ("THROTTLED" if throttled else "RUNNING") if limits.connected else "OFF")
        if self.capability.storage:
            m713, full = self.image[713], self.capability.e_mwh
            m713.put("WHAvail", None if m.e_mwh is None else m.e_mwh * MEGA)
            known = m.e_mwh is not None and full
            m713.put("SoC", m.e_mwh / full * 100 if known and m.e_mwh is not None and full else None)

    def _tell(
        self, kind: str, points: Mapping[str, Value | None], why: str = "", at: float | None = None
    ) -> None:
        self._watch(
            Event(
                unit=self.number,
                kind=kind,
                at=self._monotonic() if at is None else at,
                points=points,
                limits=self._followed,
                measured=self.measured,
                why=why,
            )
        )
