"""What to write into model 704 for an instruction, in which order, and how long it holds.

1. What to revert to, and when. A setting that is updated while its timer runs starts the timer anew (SunSpec
   DER Information Model 1.2, 3.2), which would prolong what is in force: so this time is no longer than what
   is in force may still last.
2. The setpoints. Active power first where it becomes less, last where it becomes more; where `WSet` changes
   its sign or gives way to a limit, and Q changes too, P stands still meanwhile, if it may. What was off is
   switched on at once where something else is on. So what holds in between is part of what was allowed
   before, or of what is allowed now, if both allow P = 0 at their Q. Where one of them does not (a least
   injection, charging that is asked for), P of one and Q of the other may hold for a request or two: there
   is no request for both.
3. Switch on, with the new time.
4. Switch off what is not needed, and raise a limit that `WSet` takes over from.

Requests take time, and a timer starts when its request arrives: so `writing.Writing` sets each time anew
right before it is sent, by `in_time`. Whatever is written when the connection breaks, the device reverts in
time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from math import floor

import numpy as np

from bridges.device_bridge import BridgeRefused, Capability
from bridges.sunspec.mapping import Setting, Steps, choose
from bridges.sunspec.reading import FUNCTIONS, MEGA
from bridges.sunspec.registers import HEADER, Block, Point, Value
from controllers.contract import Instruction
from controllers.region import TOLERANCE, Region
from controllers.register import Refusal

LONGEST_S = 7 * 24 * 3600
"""No control stands longer without being renewed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a device is to obey, for how long, and what afterwards."""

    setting: Setting
    fallback: Setting
    seconds: int
    """from now until it reverts; at least 1"""
    until: datetime
    """the end that `seconds` was rounded down from"""
    rests: bool = True
    """whether it may stand still, at the Q of its setting"""


def plan(
    instruction: Instruction,
    now: datetime,
    capability: Capability,
    steps: Steps,
    *,
    wish_mw: float | None = None,
    tolerance_mw: float = TOLERANCE,
) -> Plan:
    """What `instruction` says for `now`.

    It holds until the end of its span, or of the later ones that it satisfies as well.

    Raises:
        BridgeRefused: its time has not come, is over, or ends within a second; see `mapping.choose`.
    """
    spans = [span for span in instruction.spans if span.end > now]
    if not spans:
        raise BridgeRefused(Refusal.STALE, f"its validity ended at {instruction.valid_until.isoformat()}")
    if spans[0].start > now:
        raise BridgeRefused(Refusal.EARLY, f"it holds from {spans[0].start.isoformat()} on; write it then")
    told = instruction.fallback
    fallback = _fallback(told.axes, told.A.tobytes(), told.b.tobytes(), capability, steps, tolerance_mw)
    first = spans[0]
    setting = choose(
        first.region,
        first.setpoint,
        capability,
        steps,
        wish_mw=wish_mw,
        with_functions_of=fallback,
        tolerance_mw=tolerance_mw,
    )
    until = first.end
    for span in spans[1:]:
        if span.setpoint != first.setpoint or not setting.within(span.region, capability):
            break
        until = span.end
    seconds = floor(min((until - now).total_seconds(), LONGEST_S))
    if seconds < 1:
        raise BridgeRefused(
            Refusal.STALE, f"its validity ends at {until.isoformat()}, within a second: too short for a timer"
        )
    rests = Setting(p_mw=0.0, q_mvar=setting.q_mvar).within(first.region, capability)
    return Plan(setting=setting, fallback=fallback, seconds=seconds, until=until, rests=rests)


@lru_cache(maxsize=4096)
def _fallback(
    axes: tuple[str, ...],
    rows: bytes,
    right: bytes,
    capability: Capability,
    steps: Steps,
    tolerance_mw: float,
) -> Setting:
    """The same for each instruction of most devices, so it is chosen once."""
    b = np.frombuffer(right)
    region = Region(axes, np.frombuffer(rows).reshape(len(b), len(axes)), b)
    return choose(region, None, capability, steps, tolerance_mw=tolerance_mw)


def phases(
    wanted: Plan, m704: Block, rated_mw: float, left_s: float | None, *, rested: bool = True
) -> list[dict[str, Value]]:
    """Points and values to write, one phase after the other.

    The new time is in the last two; until then timers are no longer than what is in force may last.

    Args:
        m704: as read from the device.
        rated_mw: what the percentages are of.
        left_s: how long what is in force may last; `None`: nothing is, or it may last for ever.
        rested: `rests` of the plan that is in force.
    """
    before: dict[str, Value] = {}
    values: dict[str, dict[str, Value]] = {name: {} for name in FUNCTIONS}
    enable: dict[str, Value] = {}
    last: dict[str, Value] = {}
    first = wanted.seconds if left_s is None else max(1, min(wanted.seconds, floor(left_s)))
    now, later = _numbers(wanted.setting, rated_mw), _numbers(wanted.fallback, rated_mw)
    for name in FUNCTIONS:
        value, back = now[name], later[name]
        if value is None:
            if _on(m704, name):
                last[f"{name}Ena"] = "DISABLED"
            continue
        if back is not None:
            before[f"{name}Rvrt"] = back
        before[f"{name}EnaRvrt"] = "DISABLED" if back is None else "ENABLED"
        before[f"{name}RvrtTms"] = first
        for point, symbol in modes_of(name):
            if m704.symbol(point) != symbol:
                values[name][point] = symbol
        values[name][name] = value
        if first != wanted.seconds:
            enable[f"{name}RvrtTms"] = wanted.seconds
        enable[f"{name}Ena"] = "ENABLED"
    if now["WSet"] is not None and not _on(m704, "WSet") and _on(m704, "WMaxLimPct"):
        last |= values.pop("WMaxLimPct", {})  # raised before `WSet` is on, it would let P go anywhere
    active, q = values.get("WMaxLimPct", {}) | values["WSet"], values["VarSet"]
    return [before, *_in_order(active, q, now, m704, (rested, wanted.rests)), enable, last]


def _in_order(
    active: dict[str, Value],
    q: dict[str, Value],
    now: Mapping[str, float | None],
    m704: Block,
    rests: tuple[bool, bool],
) -> Iterator[dict[str, Value]]:
    """The setpoints of active power and of Q, and P = 0 before them where need be."""
    running = any(_on(m704, name) for name in FUNCTIONS)
    q_first = not _less(now, m704)
    if running and not _on(m704, "VarSet"):
        q_first = True
    elif _turns(now, m704):
        q_first = not rests[0] or rests[1]
        if all(rests):
            yield {"WSet": 0.0}
    for group in [q, active] if q_first else [active, q]:
        yield group
        if running and (new := [name for name in FUNCTIONS if name in group and not _on(m704, name)]):
            yield {f"{name}Ena": "ENABLED" for name in new}  # or it would not hold meanwhile


def _on(m704: Block, name: str) -> bool:
    return m704.symbol(f"{name}Ena") == "ENABLED"


def _turns(now: Mapping[str, float | None], m704: Block) -> bool:
    """Whether `WSet` changes its sign or gives way, and Q changes too."""
    q, p, old = now["VarSet"], now["WSet"], m704.number("WSet")
    if q is None or q == m704.number("VarSet") or not _on(m704, "WSet") or not old:
        return False
    return p is None or old * p < 0


def in_time(part: Mapping[str, Value], name: str, m704: Block, seconds: int) -> dict[str, Value]:
    """A part of a phase that is about one function, such that no timer it starts is longer than `seconds`."""
    point = f"{name}RvrtTms"
    if point in part or (m704.number(point) or 0.0) > seconds:
        return {**part, point: seconds}
    return dict(part)


def _less(now: Mapping[str, float | None], m704: Block) -> bool:
    """Whether active power becomes less, as far as the registers say."""
    for name in ("WSet", "WMaxLimPct"):
        new, old = now[name], m704.number(name)
        if new is not None:
            return not _on(m704, name) or old is None or abs(new) <= abs(old)
    return True


def _numbers(setting: Setting, rated_mw: float) -> dict[str, float | None]:
    limit, p, q = setting.limit_mw, setting.p_mw, setting.q_mvar
    percent = None if limit is None else min(limit / rated_mw * 100, 100.0) if rated_mw else 0.0
    found = {
        "WMaxLimPct": percent,
        "WSet": None if p is None else p * MEGA,
        "VarSet": None if q is None else q * MEGA,
    }
    # Multiples of the steps; what a float adds to them is far below any step, and no use in a message.
    return {name: None if value is None else round(value, 6) for name, value in found.items()}


def modes_of(name: str) -> Sequence[tuple[str, str]]:
    """How the values are meant; reactive power goes first, so that it stays what the region was cut for."""
    if name == "WSet":
        return [("WSetMod", "WATTS")]
    if name == "VarSet":
        return [("VarSetMod", "VARS"), ("VarSetPri", "REACTIVE")]
    return []


@dataclass(frozen=True, slots=True)
class Write:
    """One request: registers that follow each other."""

    offset: int
    """from the model's ID on"""
    words: tuple[int, ...]
    points: tuple[str, ...]
    """those that were asked for"""


def requests(values: Mapping[str, Value], m704: Block) -> list[Write]:
    """The fewest writes for the points of one phase; those that switch something on or off come last.

    Points between two of them are written as they are, if they can be written and are implemented.
    """
    layout = m704.layout
    wanted = sorted((layout.point(name) for name in values), key=lambda point: point.offset)
    groups: list[list[Point]] = []
    for point in wanted:
        if groups and _bridged(m704, groups[-1][-1], point):
            groups[-1].append(point)
        else:
            groups.append([point])
    writes = []
    for group in groups:
        start, end = group[0].offset, group[-1].offset + group[-1].size
        words = m704.words[start:end]
        for point in group:
            words[point.offset - start : point.offset - start + point.size] = m704.encode(
                point.name, values[point.name]
            )
        writes.append(Write(start, tuple(words), tuple(point.name for point in group)))
    return sorted(writes, key=lambda write: any(name.endswith("Ena") for name in write.points))


def _bridged(m704: Block, one: Point, other: Point) -> bool:
    """Whether everything between two points may be written as it is."""
    start, end = one.offset + one.size, other.offset
    return all(
        point.writable and point.offset >= HEADER and m704.raw(point.name) is not None
        for point in m704.layout.covering(start, end - start)
    )
