"""Reading: what a microgrid's controller takes from an observation; what is missing is named in the error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
import numpy.typing as npt

from controllers.contract import Infeasible, Observation
from controllers.devices import (
    Battery,
    FlexibleLoad,
    Generator,
    PvInverter,
    StaticVarCompensator,
    WindTurbine,
)
from controllers.forecast import Forecast
from controllers.microgrid import Microgrid
from controllers.site import Site

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Reading:
    """The state of some microgrids, and what is forecast of them from interval 0 on."""

    forecast: Forecast
    """of their own columns alone, with as many intervals as were asked for"""
    p_mw: Mapping[str, float]
    """last output by generator"""
    e_mwh: Mapping[str, float]
    """stored energy by battery"""
    connected: Mapping[str, bool]
    """by microgrid"""

    def column(self, name: str, case: Array | None = None) -> Array:
        """(intervals,) of the mean forecast, or of a case of it (intervals, names)."""
        values = self.forecast.mean if case is None else case
        return np.asarray(values[:, self.forecast.names.index(name)])


def members(site: Site, microgrid: str | Sequence[str] | None) -> tuple[Microgrid, ...]:
    """The microgrids that are meant.

    Args:
        microgrid: one name, several, or `None`: the site's only one.

    Raises:
        ValueError: the site has none, has several of which none is named, or has none of that name; one of
            them has a device that is not on the site, or that it cannot have.
    """
    known = site.microgrids
    if not known:
        raise ValueError(f"site {site.name!r} has no microgrids: nothing exchanges power with the network")
    if microgrid is None and len(known) > 1:
        raise ValueError(f"site {site.name!r} has microgrids {list(known)}: say which one, microgrid=...")
    names = list(known) if microgrid is None else [microgrid] if isinstance(microgrid, str) else microgrid
    if missing := [name for name in names if name not in known]:
        raise ValueError(f"microgrid {missing} is not on site {site.name!r}, which has {list(known)}")
    if not names or len(set(names)) != len(names):
        raise ValueError(f"microgrids {list(names)}: name at least one, and each once")
    for grid in (known[name] for name in names):
        for device in grid.devices:
            if device not in site.devices:
                raise ValueError(f"microgrid {grid.name!r}: device {device!r} is not on site {site.name!r}")
            kinds = (Generator, Battery, PvInverter, WindTurbine, FlexibleLoad, StaticVarCompensator)
            if not isinstance(site.devices[device], kinds):
                found = type(site.devices[device]).__name__
                raise ValueError(
                    f"microgrid {grid.name!r}: device {device!r} is a {found}; known are "
                    + ", ".join(kind.__name__ for kind in kinds)
                )
    return tuple(known[name] for name in names)


def columns(site: Site, grids: Sequence[Microgrid]) -> tuple[str, ...]:
    """What has to be forecast for microgrids: their sun, wind and loads, price and heat."""
    given = (PvInverter, WindTurbine, FlexibleLoad)
    found = [name for grid in grids for name in grid.devices if isinstance(site.devices[name], given)]
    found += [name for grid in grids for name in (grid.price, grid.heat) if name is not None]
    return tuple(dict.fromkeys(found))


def measured(values: Mapping[str, float], name: str) -> float | None:
    """A measurement; `None` where there is none, and where it is no finite number."""
    value = values.get(name)
    return value if value is not None and isfinite(value) else None


def passed(observation: Observation, site: Site) -> int:
    """How many intervals of the forecast have passed at the observation.

    Raises:
        Infeasible: it is for other steps than the site's, or of no step up to now.
    """
    forecast, now = observation.forecast, observation.time
    if forecast.every != site.every:
        raise Infeasible(f"the forecast is every {forecast.every}, the site's step is {site.every}")
    old = (now - forecast.issued_at) / site.every
    skip = round(old)
    if old < 0 or abs(old - skip) > 1e-6:
        raise Infeasible(f"the forecast of {forecast.issued_at} is not of a step up to now, {now}")
    return skip


def read(observation: Observation, site: Site, grids: Sequence[Microgrid], horizon: int) -> Reading:
    """State and forecast of microgrids, for `horizon` intervals from one step after the observation.

    Raises:
        Infeasible: something that is needed was not measured or not forecast.
    """
    forecast, names = observation.forecast, columns(site, grids)
    at = {name: i for i, name in enumerate(forecast.names)}
    whose = ", ".join(grid.name for grid in grids)
    if missing := [name for name in names if name not in at]:
        raise Infeasible(f"{whose}: {missing} is not forecast; give it a profile, if only a constant one")
    skip = passed(observation, site)
    rows = slice(skip, skip + horizon)
    mean, std = (values[rows][:, [at[name] for name in names]] for values in (forecast.mean, forecast.std))
    if not names:  # engines and stores alone: nothing of them is forecast
        mean = std = np.zeros((horizon, 0))
    if len(mean) < horizon:
        raise Infeasible(
            f"{whose}: the forecast covers {len(mean)} of {horizon} intervals; raise it or lower the horizon"
        )
    devices = [site.devices[name] for grid in grids for name in grid.devices]
    generators = [device.name for device in devices if isinstance(device, Generator)]
    batteries = [device.name for device in devices if isinstance(device, Battery)]
    for needed, known, what in (
        (generators, observation.p_mw, "power"),
        (batteries, observation.e_mwh, "energy"),
    ):
        if missing := [name for name in needed if measured(known, name) is None]:
            raise Infeasible(f"{whose}: {what} of {missing} is not measured; without it no plan can start")
    return Reading(
        Forecast(observation.time, site.every, names, mean, std),
        {name: observation.p_mw[name] for name in generators},
        {name: observation.e_mwh[name] for name in batteries},
        {grid.name: observation.connected.get(grid.name, True) for grid in grids},
    )
