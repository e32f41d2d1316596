"""Devices: one set of parameters, two views.

`limits` is what a controller optimises over; `advance` is what a simulator steps. Both come from
the same lines here, and a test holds them to each other. Injection is positive everywhere: a
battery that charges and a load that consumes have negative `p_mw`.

| symbol | here                       | meaning                                   | unit   |
|--------|----------------------------|-------------------------------------------|--------|
| P, Q   | `p_mw`, `q_mvar`           | injection at the point of connection      | MW     |
| S      | `s_mva`                    | apparent-power rating                     | MVA    |
| E      | `e_mwh`                    | stored energy                             | MWh    |
| eta    | `efficiency` (charge, discharge) | share of the energy that arrives    | 1      |
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import acos, tan
from typing import ClassVar, Protocol

import numpy as np

from controllers.region import Region

AXES = ("p_mw", "q_mvar")
SIDES = 32
"""Corners of the polygon inscribed in a circle of apparent power; P alone reaches the full S."""


@dataclass(frozen=True, slots=True)
class DeviceState:
    """What a device did in the interval just passed, and what it carries into the next."""

    p_mw: float = 0.0
    q_mvar: float = 0.0
    e_mwh: float | None = None
    """stored energy at the interval's end; `None` for a device without storage"""


class Device(Protocol):
    """A controllable device at one bus."""

    curtailable: ClassVar[bool]
    """whether what it does not inject of what it could is lost"""

    @property
    def name(self) -> str: ...

    @property
    def bus(self) -> str: ...

    @property
    def weight(self) -> float:
        """Entitlement in equitable methods; only ratios between devices matter."""
        ...

    @property
    def default(self) -> Region:
        """What it obeys when it has neither a valid region nor a valid setpoint."""
        ...

    @property
    def rating_mw(self) -> float:
        """Per-unit base of the device's profile."""
        ...

    def wish(self, drive: float | None) -> float:
        """Active power [MW] that it would inject if nobody limited it; `drive` is the profile's
        value in per unit of the rating, `None` without a profile."""
        ...

    def reactive(self, p_mw: float) -> float:
        """Reactive power [Mvar] that it injects at `p_mw` if nobody asks for another."""
        ...

    def limits(self, state: DeviceState, drive: float | None, every_s: float) -> Region:
        """(p_mw, q_mvar) that it can hold for the coming `every_s` seconds."""
        ...

    def initial(self) -> DeviceState:
        """State before the first step."""
        ...

    def advance(self, state: DeviceState, p_mw: float, q_mvar: float, every_s: float) -> DeviceState:
        """State after injecting `p_mw`, `q_mvar` for `every_s` seconds."""
        ...


def circle(s_mva: float) -> Region:
    """The polygon of `SIDES` corners inscribed in P^2 + Q^2 <= S^2: never more than S."""
    middle = 2 * np.pi * (np.arange(SIDES) + 0.5) / SIDES
    rows = np.column_stack([np.cos(middle), np.sin(middle)])
    return Region(AXES, rows, np.full(SIDES, s_mva * np.cos(np.pi / SIDES)))


def band(low: float, high: float) -> Region:
    """low <= P <= high, Q free."""
    return Region(AXES, np.array([[1.0, 0.0], [-1.0, 0.0]]), np.array([high, -low]))


def still() -> Region:
    """No injection at all: the default of everything that can stop."""
    return Region.box(p_mw=(0.0, 0.0), q_mvar=(0.0, 0.0))


@dataclass(frozen=True, kw_only=True)
class _Connected:
    """What every kind has, and what most kinds do: no storage, no reactive power of their own accord."""

    name: str
    bus: str
    p_mw: float
    """rated power, positive: of the modules, the turbine, the store both ways, the consumption, the engine"""
    weight: float
    default: Region
    curtailable: ClassVar[bool] = False

    @property
    def rating_mw(self) -> float:
        return self.p_mw

    def wish(self, drive: float | None) -> float:
        return self.p_mw * drive if drive else 0.0

    def reactive(self, p_mw: float) -> float:
        return 0.0

    def initial(self) -> DeviceState:
        return DeviceState()

    def advance(self, state: DeviceState, p_mw: float, q_mvar: float, every_s: float) -> DeviceState:
        return DeviceState(p_mw, q_mvar)


@dataclass(frozen=True, kw_only=True)
class PvInverter(_Connected):
    """Photovoltaic inverter: 0 <= P <= available, P^2 + Q^2 <= S^2."""

    s_mva: float
    curtailable: ClassVar[bool] = True

    @cached_property
    def _circle(self) -> Region:
        return circle(self.s_mva)

    def wish(self, drive: float | None) -> float:
        return min(self.p_mw * drive, self.s_mva) if drive else 0.0

    def limits(self, state: DeviceState, drive: float | None, every_s: float) -> Region:
        return self._circle & band(0.0, max(self.wish(drive), 0.0))


@dataclass(frozen=True, kw_only=True)
class WindTurbine(_Connected):
    """Wind turbine: 0 <= P <= available, |Q| <= P tan(phi) by its least power factor."""

    power_factor: float
    """least power factor; 1 means no reactive power"""
    curtailable: ClassVar[bool] = True

    @cached_property
    def _cone(self) -> Region:
        slope = tan(acos(self.power_factor))
        return Region(AXES, np.array([[-slope, 1.0], [-slope, -1.0]]), np.zeros(2))

    def limits(self, state: DeviceState, drive: float | None, every_s: float) -> Region:
        return self._cone & band(0.0, max(self.wish(drive), 0.0))


@dataclass(frozen=True, kw_only=True)
class Battery(_Connected):
    """Battery: P^2 + Q^2 <= S^2, |P| <= rated, and energy between its bounds at the interval's end.

    Discharging P for h hours takes P h / eta_d from the store; charging -P puts -P h eta_c into it.
    """

    s_mva: float
    e_mwh: float
    """capacity"""
    e_min_mwh: float
    e_start_mwh: float
    efficiency: tuple[float, float]
    """charging, discharging"""
    cost_per_mwh: float = 0.0
    """wear, of energy charged and of energy discharged [$/MWh]"""

    @cached_property
    def _circle(self) -> Region:
        return circle(self.s_mva)

    def limits(self, state: DeviceState, drive: float | None, every_s: float) -> Region:
        hours = every_s / 3600
        stored = self.e_start_mwh if state.e_mwh is None else state.e_mwh
        charge, discharge = self.efficiency
        room = max(self.e_mwh - stored, 0.0) / (charge * hours)
        left = max(stored - self.e_min_mwh, 0.0) * discharge / hours
        return self._circle & band(-min(self.p_mw, room), min(self.p_mw, left))

    def initial(self) -> DeviceState:
        return DeviceState(e_mwh=self.e_start_mwh)

    def advance(self, state: DeviceState, p_mw: float, q_mvar: float, every_s: float) -> DeviceState:
        hours = every_s / 3600
        stored = self.e_start_mwh if state.e_mwh is None else state.e_mwh
        charge, discharge = self.efficiency
        stored -= p_mw * hours / discharge if p_mw > 0 else p_mw * hours * charge
        # `limits` keeps the energy inside its bounds; this only takes off the last rounding error.
        return DeviceState(p_mw, q_mvar, min(max(stored, self.e_min_mwh), self.e_mwh))


@dataclass(frozen=True, kw_only=True)
class FlexibleLoad(_Connected):
    """Load that can be reduced to a firm part; its power factor is fixed, Q = P tan(phi)."""

    firm_mw: float
    """consumption that cannot be reduced, positive"""
    power_factor: float
    interruptible: bool = True
    """whether it may be reduced in ordinary operation; else only to keep the lights of others on"""
    cost_per_mwh: float = 0.0
    """of energy not served [$/MWh]"""

    @cached_property
    def _coupling(self) -> Region:
        return Region(AXES, np.array([[-self._slope, 1.0], [self._slope, -1.0]]), np.zeros(2))

    @cached_property
    def _slope(self) -> float:
        return tan(acos(self.power_factor))

    def wish(self, drive: float | None) -> float:
        demand = self.p_mw * (1.0 if drive is None else max(drive, 0.0))
        return -max(demand, self.firm_mw)

    def reactive(self, p_mw: float) -> float:
        return p_mw * self._slope

    def limits(self, state: DeviceState, drive: float | None, every_s: float) -> Region:
        return self._coupling & band(self.wish(drive), -self.firm_mw)


@dataclass(frozen=True, kw_only=True)
class Generator(_Connected):
    """Diesel engine or micro-turbine: P_min <= P <= P_max, bounded ramp, P^2 + Q^2 <= S^2."""

    p_min_mw: float
    s_mva: float
    ramp_mw_per_min: float
    cost_per_mwh: float = 0.0
    """fuel and upkeep [$/MWh]"""
    heat_ratio: float = 0.0
    """heat [MW] that comes with each MW of power; 0: none that is used"""
    p_start_mw: float | None = None
    """power before the first step; `p_min_mw` if not given"""

    @cached_property
    def _circle(self) -> Region:
        return circle(self.s_mva)

    def wish(self, drive: float | None) -> float:
        return max(self.p_mw * (drive or 0.0), self.p_min_mw)

    def limits(self, state: DeviceState, drive: float | None, every_s: float) -> Region:
        step = self.ramp_mw_per_min * every_s / 60
        return self._circle & band(max(self.p_min_mw, state.p_mw - step), min(self.p_mw, state.p_mw + step))

    def initial(self) -> DeviceState:
        return DeviceState(p_mw=self.p_min_mw if self.p_start_mw is None else self.p_start_mw)
