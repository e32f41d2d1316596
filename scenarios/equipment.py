"""Equipment: devices and regulators as a scenario describes them, with the schema's defaults filled in."""

from __future__ import annotations

from math import acos, tan
from typing import Any, assert_never

from controllers.devices import (
    Battery,
    Device,
    FlexibleLoad,
    Generator,
    PvInverter,
    StaticVarCompensator,
    WindTurbine,
    still,
)
from controllers.region import Region
from controllers.regulators import CapacitorBank, Regulator, TapChanger
from scenarios.grids import bus_of
from scenarios.schema import (
    AnyDevice,
    AnyRegulator,
    BatteryPart,
    Box,
    CapacitorBankPart,
    GeneratorPart,
    LoadPart,
    PvPart,
    SvcPart,
    TapChangerPart,
    WindPart,
)


def _region(box: Box | None, otherwise: Region) -> Region:
    return otherwise if box is None else Region.box(p_mw=box.p_mw, q_mvar=box.q_mvar)


def device_of(part: AnyDevice, bus: str) -> Device:
    """A device with the schema's defaults filled in; `bus` is our name of the one that it is connected to."""
    common: dict[str, Any] = {"name": part.name, "bus": bus}
    match part:
        case PvPart():
            p_mw = part.s_mva if part.p_mw is None else part.p_mw
            weight, default = (
                part.s_mva if part.weight is None else part.weight,
                _region(part.default, still()),
            )
            return PvInverter(
                **common,
                s_mva=part.s_mva,
                p_mw=p_mw,
                power_factor=part.power_factor,
                weight=weight,
                default=default,
            )
        case WindPart():
            default = _region(part.default, still())
            return WindTurbine(
                **common,
                p_mw=part.p_mw,
                power_factor=part.power_factor,
                weight=part.weight or part.p_mw,
                default=default,
            )
        case BatteryPart():
            return Battery(
                **common,
                p_mw=part.p_mw,
                s_mva=part.s_mva or part.p_mw,
                e_mwh=part.e_mwh,
                e_min_mwh=part.e_min_mwh,
                e_start_mwh=part.e_mwh / 2 if part.e_start_mwh is None else part.e_start_mwh,
                efficiency=part.efficiency,
                cost_per_mwh=part.cost_per_mwh,
                weight=part.weight or part.p_mw,
                default=_region(part.default, still()),
            )
        case LoadPart():
            kept = part.firm_mw if part.interruptible else part.p_mw
            q_mvar = part.p_mw * max(tan(acos(part.power_factor)), 1.0)
            otherwise = Region.box(p_mw=(-kept, 0.0), q_mvar=(-q_mvar, q_mvar))
            return FlexibleLoad(
                **common,
                p_mw=part.p_mw,
                firm_mw=part.firm_mw,
                power_factor=part.power_factor,
                interruptible=part.interruptible,
                cost_per_mwh=part.cost_per_mwh,
                weight=part.weight or part.p_mw,
                default=_region(part.default, otherwise),
            )
        case GeneratorPart():
            idle = still() if part.can_stop else Region.box(p_mw=(0.0, part.p_min_mw), q_mvar=(0.0, 0.0))
            return Generator(
                **common,
                p_mw=part.p_mw,
                p_min_mw=part.p_min_mw,
                s_mva=part.s_mva or part.p_mw,
                ramp_mw_per_min=part.ramp_mw_per_min,
                cost_per_mwh=part.cost_per_mwh,
                heat_ratio=part.heat_ratio,
                p_start_mw=part.p_start_mw,
                can_stop=part.can_stop,
                start_up_cost=part.start_up_cost,
                q_mvar=part.q_mvar,
                weight=part.weight or part.p_mw,
                default=_region(part.default, idle),
            )
        case SvcPart():
            return StaticVarCompensator(
                **common,
                q_mvar=part.q_mvar,
                weight=part.weight or 1.0,
                default=_region(part.default, still()),
            )
    assert_never(part)


def regulator_of(part: AnyRegulator, net: Any) -> Regulator:
    """A regulator of `net`."""
    match part:
        case TapChangerPart():
            lowest, highest = part.positions
            return TapChanger(
                name=part.name,
                branch=None if part.at == "source" else part.at,
                step=part.step_percent / 100,
                lowest=lowest,
                highest=highest,
                start=part.start,
            )
        case CapacitorBankPart():
            bus = bus_of(net, part.bus)
            return CapacitorBank(
                name=part.name, bus=bus, q_mvar=part.q_mvar, steps=part.steps, start=part.start
            )
    assert_never(part)
