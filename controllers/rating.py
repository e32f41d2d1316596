"""Rating: what a device can do in any state, and which instructions ask for more."""

from __future__ import annotations

from math import hypot

import numpy as np

from controllers.contract import Infeasible, Instruction, Setpoint
from controllers.devices import (
    AXES,
    Battery,
    Device,
    DeviceState,
    FlexibleLoad,
    Generator,
    PvInverter,
    StaticVarCompensator,
    WindTurbine,
    band,
    circle,
    with_origin,
)
from controllers.region import Region

_BOX = Region.box(p_mw=(0.0, 0.0), q_mvar=(0.0, 0.0)).A
"""The rows of every `Region.box` over P and Q: the same object."""
FINE_MW = 1e-6
"""By how much a target, or what is found to be within a region, may lie outside."""


def rating_of(device: Device) -> Region:
    """(p_mw, q_mvar) that a device reaches in some state and weather, up to its nameplate; of one that may be
    off, what is in between too, where it comes as close as it can."""
    match device:
        case Battery():
            return circle(device.s_mva) & band(-device.p_mw, device.p_mw)
        case Generator():
            runs = device.running(device.p_min_mw, device.most_mw)
            return with_origin(runs) if device.can_stop else runs
        case _:
            return device.limits(DeviceState(), 1.0, 1.0)


def apparent_mva(device: Device) -> float:
    """The greatest apparent power [MVA] that a device can have at its terminals."""
    match device:
        case WindTurbine() | FlexibleLoad():
            return device.p_mw / device.power_factor
        case Generator() if device.q_mvar is not None:
            return hypot(device.p_mw, max(map(abs, device.q_mvar)))
        case StaticVarCompensator():
            return max(map(abs, device.q_mvar))
        case Battery() | PvInverter() | Generator():
            return max(device.s_mva, device.p_mw)
    return device.rating_mw


class Rating:
    """Finds what is beyond a device.

    Args:
        region: what it can do in some state, with a point.

    Raises:
        Infeasible: a region without a point.
    """

    def __init__(self, region: Region) -> None:
        self.region = region
        self._inside = region.nearest(np.zeros(len(region.axes)))
        self._point = self._inside.tolist()
        self._limits = {axis: region.limits(axis) for axis in region.axes}
        self._sound: Region | None = None  # the fallback that was found to be within last: it rarely changes

    def beyond(self, told: Instruction) -> str | None:
        """Why the device can never do what it is told, in words; `None`: it can, in some state.

        A region, and the fallback, is met where any point of it can be reached, a target only where it is
        itself within the rating.
        """
        if (why := self._without(told.fallback)) is not None:
            return why
        if not told.later:
            return self._beyond(told.region, told.setpoint)
        for span in told.spans:
            if (why := self._beyond(span.region, span.setpoint)) is not None:
                return f"from {span.start.isoformat()}: {why}"
        return None

    def _without(self, fallback: Region) -> str | None:
        """Why a device would not know what to do when its instruction is over."""
        if fallback is self._sound:
            return None
        if (why := self.unable(fallback)) is not None:
            return f"fallback: {why}"
        self._sound = fallback
        return None

    def unable(self, region: Region) -> str | None:
        """Why the device can never be in a region, in words; `None`: it can, in some state."""
        return self._beyond(region, None)

    def _meets(self, region: Region) -> bool:
        """Whether a region has the one point of the rating that is looked at first."""
        if region.A is _BOX and self.region.axes == AXES:  # of thousands of devices
            p, q = self._point
            high_p, less_p, high_q, less_q = region.b.tolist()
            return bool(p <= high_p and -p <= less_p and q <= high_q and -q <= less_q)
        return region.over(self.region.axes).excess(self._inside) <= 0

    def _beyond(self, region: Region | None, target: Setpoint | None) -> str | None:
        own = self.region
        if region is not None:
            if set(region.axes) != set(own.axes):
                return f"a region over {', '.join(region.axes)}; its own is over {', '.join(own.axes)}"
            if not self._meets(region):
                within = own & region
                try:
                    found = within.nearest(self._inside)
                except Infeasible:
                    return "no point of the region is within its rating"
                if not within.excess(found) <= FINE_MW:  # limits of which a small number is lost in rounding
                    return "no point of the region is within its rating, as far as can be reckoned"
        if target is not None:
            for axis, value in (("p_mw", target.p_mw), ("q_mvar", target.q_mvar)):
                if value is None or axis not in self._limits:
                    continue
                low, high = self._limits[axis]
                if not low - FINE_MW <= value <= high + FINE_MW:
                    return f"{axis} {value:g} is outside its rating, {low:g} to {high:g}"
        return None
