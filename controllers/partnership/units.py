"""Units: what a microgrid's operation is planned with; private to the microgrid, no message carries any of
it.

`fleet` makes them of the devices of a `Site`, so that the plan and the devices are bound by the same figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from math import acos, isfinite, tan
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from controllers.devices import (
    AXES,
    Battery,
    FlexibleLoad,
    Generator,
    PvInverter,
    StaticVarCompensator,
    WindTurbine,
    band,
    circle,
    cone,
)
from controllers.microgrid import Microgrid
from controllers.region import Region
from controllers.site import Site

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Engine:
    """A generator with a fuel.

    Raises:
        ValueError: a cost or ramp below zero, a capability over other axes than (p_mw, q_mvar).
    """

    name: str
    capability: Region
    """(p_mw, q_mvar) while it runs; bounded, P not below zero"""
    ramp_mw: float
    """by which its power can change from one interval to the next; one that may be off starts at no more
    than that, or at its least power where that is more, and stops from no more than the same"""
    can_stop: bool = False
    """whether it may be off, P = Q = 0"""
    cost_per_mwh: float = 0.0
    start_up_cost: float = 0.0
    """[$]"""

    def __post_init__(self) -> None:
        _needs_axes(self.name, self.capability)
        for what in ("ramp_mw", "start_up_cost"):
            _not_negative(self.name, what, getattr(self, what))


@dataclass(frozen=True, kw_only=True, eq=False)
class Renewable:
    """Sun or wind, of which less than there is may be used."""

    name: str
    capability: Region
    """(p_mw, q_mvar), beside 0 <= P <= available; bounds Q for each P"""

    def __post_init__(self) -> None:
        _needs_axes(self.name, self.capability)


@dataclass(frozen=True, kw_only=True)
class Store:
    """A battery; it has no reactive power in the plan.

    Raises:
        ValueError: bounds that are reversed or below zero, an efficiency outside (0, 1].
    """

    name: str
    p_mw: float
    """greatest charging and discharging power"""
    e_mwh: tuple[float, float]
    """least and greatest energy"""
    efficiency: tuple[float, float]
    """charging, discharging"""
    cost_per_mwh: float = 0.0
    """of energy charged and of energy discharged [$/MWh]"""

    def __post_init__(self) -> None:
        least, most = self.e_mwh
        if not 0 <= least <= most < float("inf"):
            raise ValueError(f"{self.name}: e_mwh {self.e_mwh} is no range; give (least, greatest)")
        if not all(0 < share <= 1 for share in self.efficiency):
            raise ValueError(f"{self.name}: efficiency {self.efficiency} is not in (0, 1]")
        _not_negative(self.name, "p_mw", self.p_mw)
        _not_negative(self.name, "cost_per_mwh", self.cost_per_mwh)


@dataclass(frozen=True, kw_only=True)
class Demand:
    """A load that can be curtailed to its firm part, at constant power factor.

    Raises:
        ValueError: a firm part or cost below zero.
    """

    name: str
    q_per_p: float
    """tan(phi): reactive for active consumption"""
    firm_mw: float = 0.0
    """consumption that is never curtailed, positive"""
    curtailment_cost_per_mwh: float = 500.0

    def __post_init__(self) -> None:
        _not_negative(self.name, "firm_mw", self.firm_mw)
        _not_negative(self.name, "curtailment_cost_per_mwh", self.curtailment_cost_per_mwh)


@dataclass(frozen=True, kw_only=True)
class Compensator:
    """A static var compensator of the microgrid's own.

    Raises:
        ValueError: a range that is reversed or not finite.
    """

    name: str
    q_mvar: tuple[float, float]

    def __post_init__(self) -> None:
        low, high = self.q_mvar
        if not (low <= high and isfinite(low) and isfinite(high)):
            raise ValueError(f"{self.name}: q_mvar {self.q_mvar} is no range; give (least, greatest)")


Unit: TypeAlias = Engine | Renewable | Store | Compensator | Demand


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """All units of one microgrid.

    Raises:
        ValueError: no unit, a name twice, an interval of no length.
    """

    hours: float
    """length of an interval"""
    engines: tuple[Engine, ...] = ()
    renewables: tuple[Renewable, ...] = ()
    stores: tuple[Store, ...] = ()
    compensators: tuple[Compensator, ...] = ()
    demands: tuple[Demand, ...] = ()

    def __post_init__(self) -> None:
        if not (self.hours > 0 and isfinite(self.hours)):
            raise ValueError(f"fleet: intervals of {self.hours} h; give a length above zero")
        names = [unit.name for unit in self.units]
        if not names:
            raise ValueError("fleet: no unit; there is nothing to plan")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"fleet: {twice} named twice; name each unit once")

    @property
    def units(self) -> tuple[Unit, ...]:
        """All, kind by kind."""
        return (*self.engines, *self.renewables, *self.stores, *self.compensators, *self.demands)


def fleet(
    site: Site,
    grid: Microgrid,
    every: timedelta | None = None,
    curtailment_cost_per_mwh: float | None = None,
) -> Fleet:
    """The units of a microgrid, of its devices.

    Args:
        every: length of an interval of the plan; `None`: the site's step.
        curtailment_cost_per_mwh: of all its loads; `None`: each interruptible one's own, and the microgrid's
            `shed_cost_per_mwh` for the others.

    Raises:
        ValueError: a device that is not on the site, or of a kind that a microgrid cannot plan with.
    """
    hours = (every or site.every) / timedelta(hours=1)
    units: list[Unit] = []
    for name in grid.devices:
        if name not in site.devices:
            raise ValueError(f"microgrid {grid.name!r}: device {name!r} is not on site {site.name!r}")
        match device := site.devices[name]:
            case Generator():
                units.append(
                    Engine(
                        name=name,
                        capability=device.running(device.p_min_mw, device.most_mw),
                        ramp_mw=device.ramp_mw(3600 * hours),
                        can_stop=device.can_stop,
                        cost_per_mwh=device.cost_per_mwh,
                        start_up_cost=device.start_up_cost,
                    )
                )
            case PvInverter():
                own = circle(device.s_mva)
                if device.power_factor is not None:
                    own = own & cone(device.power_factor)
                units.append(Renewable(name=name, capability=own))
            case WindTurbine():
                units.append(Renewable(name=name, capability=cone(device.power_factor)))
            case Battery():
                units.append(
                    Store(
                        name=name,
                        p_mw=min(device.p_mw, device.s_mva),
                        e_mwh=(device.e_min_mwh, device.e_mwh),
                        efficiency=device.efficiency,
                        cost_per_mwh=device.cost_per_mwh,
                    )
                )
            case StaticVarCompensator():
                units.append(Compensator(name=name, q_mvar=device.q_mvar))
            case FlexibleLoad():
                own_cost = device.cost_per_mwh if device.interruptible else grid.shed_cost_per_mwh
                given = curtailment_cost_per_mwh
                units.append(
                    Demand(
                        name=name,
                        q_per_p=tan(acos(device.power_factor)),
                        firm_mw=device.firm_mw,
                        curtailment_cost_per_mwh=own_cost if given is None else given,
                    )
                )
            case other:
                raise ValueError(
                    f"microgrid {grid.name!r}: device {name!r} is a {type(other).__name__}; a plan can have "
                    "Generator, PvInverter, WindTurbine, Battery, StaticVarCompensator and FlexibleLoad"
                )
    return Fleet(
        hours=hours,
        engines=tuple(unit for unit in units if isinstance(unit, Engine)),
        renewables=tuple(unit for unit in units if isinstance(unit, Renewable)),
        stores=tuple(unit for unit in units if isinstance(unit, Store)),
        compensators=tuple(unit for unit in units if isinstance(unit, Compensator)),
        demands=tuple(unit for unit in units if isinstance(unit, Demand)),
    )


@dataclass(frozen=True, eq=False)
class Shape:
    """A capability in the plan."""

    p: tuple[float, float]
    q: tuple[float, float]
    """range of each"""
    A: Array
    """(rows, 2) what beside the range of P bounds Q"""
    b: Array


def shape(capability: Region, available_mw: float | None = None) -> Shape:
    """A bounded capability, or one that is bounded with 0 <= P <= available.

    A row that is tight at no corner holds everywhere between the others: it is left out.

    Raises:
        Infeasible: nothing is left.
    """
    region = capability.over(AXES)
    whole = region if available_mw is None else region & band(0.0, available_mw)
    corners = whole.vertices()
    count = (region.b[:, None] - 1e-9 <= region.A @ corners.T).any(axis=1) & (np.abs(region.A[:, 1]) > 1e-12)
    (p_low, q_low), (p_high, q_high) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    return Shape((p_low, p_high), (q_low, q_high), region.A[count], region.b[count])


def _needs_axes(name: str, region: Region) -> None:
    if set(region.axes) != set(AXES):
        raise ValueError(f"{name}: its capability is over {region.axes}; needed is {AXES}")


def _not_negative(name: str, what: str, value: float) -> None:
    if not (value >= 0 and isfinite(value)):
        raise ValueError(f"{name}: {what} is {value}; give a finite number not below zero")
