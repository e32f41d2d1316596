"""Outlook: what a microgrid knows when it plans, its measured state and what its sun, wind and loads will
be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from controllers.devices import FlexibleLoad, PvInverter
from controllers.interchange.reading import Reading
from controllers.partnership.units import Fleet
from controllers.site import Site

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Outlook:
    """What a microgrid knows at the beginning of a horizon of T intervals.

    Raises:
        ValueError: no interval, lengths that differ, a value that is not finite or below zero.
    """

    p_mw: Mapping[str, float]
    """measured power by engine; zero, or below half of the least power, of one that may be off: off"""
    e_mwh: Mapping[str, float]
    """measured energy by store"""
    available_mw: Mapping[str, Array]
    """(T,) by renewable"""
    demand_mw: Mapping[str, Array]
    """(T,) by load, positive"""
    intervals: int
    """T"""

    def __post_init__(self) -> None:
        if self.intervals < 1:
            raise ValueError(f"outlook: {self.intervals} intervals; needed is at least 1")
        for what in ("p_mw", "e_mwh"):
            for name, value in getattr(self, what).items():
                if not np.isfinite(value):
                    raise ValueError(f"outlook: {what} of {name!r} is {value}; measure it")
        for what in ("available_mw", "demand_mw"):
            for name, values in getattr(self, what).items():
                if np.shape(values) != (self.intervals,):
                    raise ValueError(
                        f"outlook: {what} of {name!r} has shape {np.shape(values)}, needed is "
                        f"({self.intervals},)"
                    )
                if not (np.isfinite(values).all() and np.min(values) >= 0):
                    raise ValueError(f"outlook: {what} of {name!r} is {values}; give powers not below zero")

    def check(self, fleet: Fleet) -> None:
        """Refuse to plan units of which nothing is known.

        Raises:
            ValueError: something is missing that a unit needs.
        """
        for what, units in (
            ("p_mw", fleet.engines),
            ("e_mwh", fleet.stores),
            ("available_mw", fleet.renewables),
            ("demand_mw", fleet.demands),
        ):
            known = getattr(self, what)
            if missing := [unit.name for unit in units if unit.name not in known]:
                raise ValueError(f"outlook: {what} of {missing} is missing; it has {sorted(known)}")


def outlook_of(site: Site, fleet: Fleet, reading: Reading) -> Outlook:
    """Of what was measured and forecast; see `controllers.interchange.reading.read`.

    A forecast of less than nothing counts as nothing, one of a load below its firm part as that.
    """
    available = {}
    for renewable in fleet.renewables:
        device = site.devices[renewable.name]
        most = device.s_mva if isinstance(device, PvInverter) else np.inf
        available[renewable.name] = np.clip(reading.column(renewable.name), 0.0, most)
    demand = {}
    for load in fleet.demands:
        device = site.devices[load.name]
        firm = device.firm_mw if isinstance(device, FlexibleLoad) else 0.0
        demand[load.name] = np.maximum(-reading.column(load.name), firm)
    return Outlook(
        p_mw={engine.name: reading.p_mw[engine.name] for engine in fleet.engines},
        e_mwh={store.name: reading.e_mwh[store.name] for store in fleet.stores},
        available_mw=available,
        demand_mw=demand,
        intervals=len(reading.forecast.mean),
    )
