"""From the registers of models 701, 702, 704 and 713 to what a device can do, measures and obeys."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from math import sqrt

from bridges.device_bridge import Capability, InForce, Reading
from bridges.sunspec.mapping import Setting, Steps
from bridges.sunspec.registers import Block, PointError

MEGA = 1e6
FUNCTIONS = ("WMaxLimPct", "WSet", "VarSet")
"""The controls of model 704 that are used. Each has, with its name in front, `Ena`, `Rvrt`, `EnaRvrt`,
`RvrtTms` and `RvrtRem`."""


def _mega(block: Block, *names: str) -> float | None:
    """The first of these points that is implemented, in millions of its unit."""
    for name in names:
        value = block.number(name)
        if value is not None:
            return value / MEGA
    return None


def capability_of(blocks: Mapping[int, Block]) -> Capability:
    """What models 702 and 713 say that the device can do: its settings, else its ratings.

    Raises:
        PointError: it does not say how much power it injects at most, or leaves Q without an end.
    """
    m702 = blocks[702]
    most = _mega(m702, "WMax", "WMaxRtg")
    if most is None:
        raise PointError("model 702: neither WMax nor WMaxRtg is implemented, its power is not known")
    charging = _mega(m702, "WChaRteMax", "WChaRteMaxRtg")
    discharging = _mega(m702, "WDisChaRteMax", "WDisChaRteMaxRtg")
    storage = bool(charging)
    absorbing = _mega(m702, "VarMaxAbs", "VarMaxAbsRtg")
    try:
        return Capability(
            p_max_mw=min(most, discharging) if storage and discharging is not None else most,
            p_min_mw=-(charging or 0.0) + 0.0,
            s_mva=_mega(m702, "VAMax", "VAMaxRtg"),
            q_max_mvar=_mega(m702, "VarMaxInj", "VarMaxInjRtg"),
            q_min_mvar=None if absorbing is None else -absorbing + 0.0,
            e_mwh=_mega(blocks[713], "WHRtg") if 713 in blocks else None,
            storage=storage,
        )
    except ValueError as error:
        raise PointError(f"model 702: {error}") from error


def rated_mw(blocks: Mapping[int, Block]) -> float:
    """What the percentages of `WMaxLimPct` are of."""
    most = _mega(blocks[702], "WMax", "WMaxRtg")
    if most is None:
        raise PointError("model 702: neither WMax nor WMaxRtg is implemented, its power is not known")
    return most


def steps_of(blocks: Mapping[int, Block]) -> Steps:
    """What one unit of the control registers is worth; `None` for a function without its points."""
    m704, steps = blocks[704], {}
    for name, unit in (("WMaxLimPct", rated_mw(blocks) / 100), ("WSet", 1 / MEGA), ("VarSet", 1 / MEGA)):
        step = m704.step(name)
        there = m704.raw(f"{name}Ena") is not None and m704.raw(f"{name}RvrtTms") is not None
        steps[name] = (step * unit or None) if step is not None and there else None
    return Steps(limit_mw=steps["WMaxLimPct"], p_mw=steps["WSet"], q_mvar=steps["VarSet"])


def reading_of(blocks: Mapping[int, Block], time: datetime) -> Reading:
    """What models 701 and 713 measure; what is not implemented is `None`."""
    m701 = blocks[701]
    return Reading(
        time=time,
        p_mw=_mega(m701, "W"),
        q_mvar=_mega(m701, "Var"),
        v_pu=_v_pu(m701, blocks[702]),
        e_mwh=_stored(blocks[713]) if 713 in blocks else None,
        state=_state(m701),
    )


def _v_pu(m701: Block, m702: Block) -> float | None:
    """Voltage in terms of `VNom`, which is line to line unless the device has a single phase."""
    nominal = m702.number("VNom") or m702.number("VNomRtg")
    between, neutral = m701.number("LLV"), m701.number("LNV")
    if not nominal:
        return None
    if m701.symbol("ACType") == "SINGLE_PHASE":
        return None if neutral is None else neutral / nominal
    if between is not None:
        return between / nominal
    return None if neutral is None else neutral * sqrt(3) / nominal


def _stored(m713: Block) -> float | None:
    available = _mega(m713, "WHAvail")
    if available is not None:
        return available
    full, charge = _mega(m713, "WHRtg"), m713.number("SoC")
    return None if full is None or charge is None else full * charge / 100


def _state(m701: Block) -> str | None:
    if m701.symbol("ConnSt") == "DISCONNECTED":
        return "disconnected"
    state = m701.symbol("InvSt") or m701.symbol("St")
    return None if state is None else state.lower().replace("_", "-")


def in_force(blocks: Mapping[int, Block], time: datetime) -> InForce:
    """What model 704 says that the device obeys."""
    m704, found = blocks[704], {}
    ends = []
    for name in FUNCTIONS:
        on = m704.symbol(f"{name}Ena") == "ENABLED"
        found[name] = m704.number(name) if on else None
        left = m704.number(f"{name}RvrtRem")
        if on and left:
            ends.append(time + timedelta(seconds=left))
    limit = found["WMaxLimPct"]
    return InForce(
        time=time,
        limit_mw=None if limit is None else limit / 100 * rated_mw(blocks),
        p_mw=_percent_or(m704, "WSet", found["WSet"], rated_mw(blocks)),
        q_mvar=None if found["VarSet"] is None else found["VarSet"] / MEGA,
        reverts_at=min(ends, default=None),
    )


def _percent_or(m704: Block, name: str, watts: float | None, rated: float) -> float | None:
    """`WSet` in MW, by the mode that is set."""
    if m704.symbol(f"{name}Ena") != "ENABLED":
        return None
    if m704.symbol(f"{name}Mod") == "W_MAX_PCT":
        percent = m704.number(f"{name}Pct")
        return None if percent is None else percent / 100 * rated
    return None if watts is None else watts / MEGA


def told(setting: Setting, time: datetime, reverts_at: datetime | None = None) -> InForce:
    """A setting in the words of a read-back."""
    return InForce(
        time=time,
        limit_mw=setting.limit_mw,
        p_mw=setting.p_mw,
        q_mvar=setting.q_mvar,
        reverts_at=reverts_at,
    )
