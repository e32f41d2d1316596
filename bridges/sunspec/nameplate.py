"""The registers of an emulated device that was just switched on."""

from __future__ import annotations

from bridges.device_bridge import Capability
from bridges.sunspec.reading import MEGA
from bridges.sunspec.registers import Image

V_NOMINAL = 400.0
"""Volts, line to line, that 1 pu is said to be."""
SETTINGS = {
    "WMaxLimPct": ("WMaxLimPct", "WMaxLimPctRvrt", "WMaxLimPctEnaRvrt", "WMaxLimPctRvrtTms"),
    "WSet": ("WSetMod", "WSet", "WSetRvrt", "WSetPct", "WSetPctRvrt", "WSetEnaRvrt", "WSetRvrtTms"),
    "VarSet": (
        *("VarSetMod", "VarSetPri", "VarSet", "VarSetRvrt", "VarSetPct", "VarSetPctRvrt"),
        *("VarSetEnaRvrt", "VarSetRvrtTms"),
    ),
}
"""Function -> the points whose update starts its timer anew."""


def fill(image: Image, capability: Capability, percent_power: int, name: str) -> None:
    """Registers of a device that was just switched on: no control is enabled."""
    c = capability
    s_mva = c.s_mva if c.s_mva is not None else max(c.p_max_mw, -c.p_min_mw)
    most = max(s_mva, c.p_max_mw, -c.p_min_mw, c.q_max_mvar or 0.0, -(c.q_min_mvar or 0.0)) * MEGA
    m1, m701, m702, m703, m704 = (image[model] for model in (1, 701, 702, 703, 704))
    for point, text in (("Mn", "gridpace"), ("Md", "SunSpec emulator"), ("SN", name[:32])):
        m1.put(point, text)
    m1.put("DA", 1)

    signed, unsigned = power_of_ten(1.2 * most, 32_767), power_of_ten(most, 65_534)
    scales = {"A_SF": 0, "V_SF": -1, "Hz_SF": -2, "W_SF": signed, "PF_SF": -3, "VA_SF": signed}
    for point, power in {**scales, "Var_SF": signed, "TotWh_SF": 0, "TotVarh_SF": 0, "Tmp_SF": 0}.items():
        m701.put(point, power)
    m701.put("ACType", "THREE_PHASE")

    for point in ("W_SF", "VA_SF", "Var_SF"):
        m702.put(point, unsigned)
    for point, power in (("PF_SF", -3), ("V_SF", -1), ("A_SF", 0), ("S_SF", 0)):
        m702.put(point, power)
    rated: dict[str, float | None] = {
        "WMax": c.p_max_mw,
        "VAMax": s_mva,
        "VarMaxInj": c.q_max_mvar,
        "VarMaxAbs": None if c.q_min_mvar is None else -c.q_min_mvar,
        "WChaRteMax": -c.p_min_mw if c.storage else None,
        "WDisChaRteMax": c.p_max_mw if c.storage else None,
    }
    for point, megas in rated.items():
        for suffix in ("", "Rtg"):
            m702.put(point + suffix, None if megas is None else megas * MEGA)
    for point in ("VNom", "VNomRtg"):
        m702.put(point, V_NOMINAL)
    m702.put("CtrlModes", 0b111)

    m703.put("V_SF", -1)
    m703.put("Hz_SF", -2)
    m703.put("ES", "ENABLED")

    for point, power in (("WMaxLimPct_SF", percent_power), ("WSetPct_SF", -2), ("VarSetPct_SF", -2)):
        m704.put(point, power)
    m704.put("WSet_SF", 0)
    m704.put("VarSet_SF", 0)
    for function, settings in SETTINGS.items():
        for point in (f"{function}Ena", *settings, f"{function}RvrtRem"):
            m704.put(point, 0)
    m704.put("WMaxLimPct", 100)
    m704.put("WMaxLimPctRvrt", 100)
    m704.put("AntiIslEna", "ENABLED")

    if c.storage:
        m713 = image[713]
        m713.put("WH_SF", power_of_ten((c.e_mwh or 0.0) * MEGA, 65_534))
        m713.put("Pct_SF", -2)
        m713.put("WHRtg", None if c.e_mwh is None else c.e_mwh * MEGA)
        m713.put("Sta", "OK")


def power_of_ten(most: float, number: int) -> int:
    """The least scale factor, not below 0, with which `most` fits into a register that holds `number`."""
    power = 0
    while most / 10.0**power > number:
        power += 1
    return power
