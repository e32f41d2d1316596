"""Microgrid: devices that are operated together behind one point of common coupling (PCC)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Microgrid:
    """What its operator and the network's operator know of it; the devices' own figures are theirs.

    Its devices and loads are all at its bus. What it exchanges with the network, injection positive, is the
    sum of what they inject: it sells when that is above zero.
    """

    name: str
    bus: str
    """of the network: the point of common coupling"""
    devices: tuple[str, ...]
    """names in `Site.devices`"""
    tie_mw: float
    """greatest exchange, both ways"""
    q_mvar: tuple[float, float] = (0.0, 0.0)
    """reactive power that it offers to produce at the point of common coupling"""
    price: str | None = None
    """name of the price of energy [$/MWh] in forecasts"""
    heat: str | None = None
    """name of its heat demand [MW, positive] in forecasts; `None`: there is none"""
    boiler_cost_per_mwh: float = 60.0
    """of heat that no generator gives [$/MWh]"""
    shed_cost_per_mwh: float = 1000.0
    """of energy not served at loads that are not interruptible [$/MWh]"""
    spill_cost_per_mwh: float = 1.0
    """of sun and wind not used [$/MWh]"""
