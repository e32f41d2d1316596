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

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from math import acos, tan
from typing import ClassVar, Protocol

import numpy as np

from controllers.region import Region

AXES = ("p_mw", "q_mvar")
SIDES = 32
"""Corners of the polygon inscribed in a circle of apparent power; P alone reaches the full S."""

ROUNDING = 1e-9
"""By how much an engine that stops may be above the most from which it does [MW]."""


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
        """(p_mw, q_mvar) that it can hold for the coming `every_s` seconds; of a device that may be off, the
        convex hull of its `modes`, between which it can hold nothing."""
        ...

    def modes(self, state: DeviceState, drive: float | None, every_s: float) -> tuple[Region, ...]:
        """The convex parts of which it can hold every point, the one that it is in first: on and off."""
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


def cone(power_factor: float) -> Region:
    """|Q| <= P tan(phi) by a least power factor."""
    slope = tan(acos(power_factor))
    return Region(AXES, np.array([[-slope, 1.0], [-slope, -1.0]]), np.zeros(2))


def with_origin(region: Region) -> Region:
    """The convex hull of (0, 0) and a bounded region of positive P: the rows that (0, 0) keeps, and the two
    tangents from there."""
    rows = region.over(AXES)
    corners = rows.vertices()
    slopes = corners[:, 1] / corners[:, 0]
    kept = rows.b >= 0
    # Where there is no Q both tangents are one line, which goes on below P = 0.
    tangents = np.array([[-slopes.max(), 1.0], [slopes.min(), -1.0], [-1.0, 0.0]])
    return Region(AXES, np.concatenate([rows.A[kept], tangents]), np.concatenate([rows.b[kept], np.zeros(3)]))


def still() -> Region:
    """No injection at all: the default of everything that can stop."""
    return Region.box(p_mw=(0.0, 0.0), q_mvar=(0.0, 0.0))


@dataclass(frozen=True, kw_only=True)
class _Connected(ABC):
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

    def modes(self, state: DeviceState, drive: float | None, every_s: float) -> tuple[Region, ...]:
        return (self.limits(state, drive, every_s),)

    @abstractmethod
    def limits(self, state: DeviceState, drive: float | None, every_s: float) -> Region: ...

    def initial(self) -> DeviceState:
        return DeviceState()

    def advance(self, state: DeviceState, p_mw: float, q_mvar: float, every_s: float) -> DeviceState:
        return DeviceState(p_mw, q_mvar)


@dataclass(frozen=True, kw_only=True)
class PvInverter(_Connected):
    """Photovoltaic inverter: 0 <= P <= available, P^2 + Q^2 <= S^2, and |Q| <= P tan(phi) where it has a
    least power factor."""

    s_mva: float
    power_factor: float | None = None
    """least power factor; 1 means no reactive power, `None` any, also at night"""
    curtailable: ClassVar[bool] = True

    @cached_property
    def _circle(self) -> Region:
        own = circle(self.s_mva)
        return own if self.power_factor is None else own & cone(self.power_factor)

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
        return cone(self.power_factor)

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


SERVED_MW = 1e-7
"""How much less than its demand a load may get and still count as served in full."""


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

    def told_mw(self, p_mw: float, demand_mw: float) -> float:
        """What it is told [MW] of a plan for a demand [MW, positive]: served in full, its whole rating, so
        that it follows its demand, whatever that turns out to be."""
        return -max(self.p_mw, demand_mw) if -p_mw >= demand_mw - SERVED_MW else p_mw

    def wish(self, drive: float | None) -> float:
        demand = self.p_mw * (1.0 if drive is None else max(drive, 0.0))
        return -max(demand, self.firm_mw)

    def reactive(self, p_mw: float) -> float:
        return p_mw * self._slope

    def limits(self, state: DeviceState, drive: float | None, every_s: float) -> Region:
        return self._coupling & band(self.wish(drive), -self.firm_mw)


@dataclass(frozen=True, kw_only=True)
class Generator(_Connected):
    """Diesel engine or micro-turbine: P_min <= P <= P_max, bounded ramp, P^2 + Q^2 <= S^2 or a range of Q.

    One that can stop is on, within these, or off, P = Q = 0. The ramp counts from and to zero: it starts at
    no more than its ramp, and stops from no more than that, seed 000 (B4).
    """

    p_min_mw: float
    s_mva: float
    ramp_mw_per_min: float
    cost_per_mwh: float = 0.0
    """fuel and upkeep [$/MWh]"""
    heat_ratio: float = 0.0
    """heat [MW] that comes with each MW of power; 0: none that is used"""
    p_start_mw: float | None = None
    """power before the first step; `p_min_mw` if not given, 0: off"""
    can_stop: bool = False
    """whether it may be off; `p_min_mw` is above 0 then, so that its power says whether it is"""
    start_up_cost: float = 0.0
    """of each start [$]"""
    q_mvar: tuple[float, float] | None = None
    """reactive power while it runs, 0 among it, whatever `s_mva` is; `None`: what its circle leaves"""

    @cached_property
    def most_mw(self) -> float:
        """The most that it injects: rated power, within the circle where that counts."""
        return self.p_mw if self.q_mvar is not None else min(self.p_mw, self.s_mva)

    def wish(self, drive: float | None) -> float:
        if self.can_stop and not drive:
            return 0.0
        return max(self.p_mw * (drive or 0.0), self.p_min_mw)

    def runs(self, p_mw: float) -> bool:
        """Whether it is on, by its power, which may have been measured."""
        return not self.can_stop or p_mw > self.p_min_mw / 2

    def running(self, low_mw: float, high_mw: float) -> Region:
        """(p_mw, q_mvar) while it is on, between two powers."""
        if self.q_mvar is None:
            return self._circle & band(low_mw, high_mw)
        return Region.box(p_mw=(low_mw, high_mw), q_mvar=self.q_mvar)

    def limits(self, state: DeviceState, drive: float | None, every_s: float) -> Region:
        modes = self.modes(state, drive, every_s)
        if len(modes) == 1:
            return modes[0]
        return with_origin(modes[0] if self.runs(state.p_mw) else modes[1])

    def modes(self, state: DeviceState, drive: float | None, every_s: float) -> tuple[Region, ...]:
        if not self.runs(state.p_mw):
            return still(), self.running(self.p_min_mw, min(self.start_mw(every_s), self.p_mw))
        on = self._on(state.p_mw, every_s)
        may_stop = self.can_stop and state.p_mw <= self.start_mw(every_s) + ROUNDING
        return (on, still()) if may_stop else (on,)

    def ramp_mw(self, every_s: float) -> float:
        """By how much its power may change from one step of `every_s` seconds to the next."""
        return self.ramp_mw_per_min * every_s / 60

    def start_mw(self, every_s: float) -> float:
        """The most at which it starts, and from which it stops: its ramp (B4), at least its least power,
        without which it could never run where steps are short."""
        return max(self.ramp_mw(every_s), self.p_min_mw)

    def _on(self, before_mw: float, every_s: float) -> Region:
        step = self.ramp_mw(every_s)
        low = max(self.p_min_mw, before_mw - step)
        # One that has tripped comes back at its least power, whatever its ramp.
        return self.running(low, max(low, min(self.p_mw, before_mw + step)))

    def initial(self) -> DeviceState:
        return DeviceState(p_mw=self.p_min_mw if self.p_start_mw is None else self.p_start_mw)

    @cached_property
    def _circle(self) -> Region:
        return circle(self.s_mva)


@dataclass(frozen=True, kw_only=True)
class StaticVarCompensator(_Connected):
    """Static var compensator: Q within a range that has 0 in it, no active power."""

    q_mvar: tuple[float, float]
    """least and greatest reactive power"""
    p_mw: float = 0.0
    """it has none"""

    @cached_property
    def _range(self) -> Region:
        return Region.box(p_mw=(0.0, 0.0), q_mvar=self.q_mvar)

    def limits(self, state: DeviceState, drive: float | None, every_s: float) -> Region:
        return self._range
