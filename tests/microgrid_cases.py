"""Small microgrids for tests, and a program with one reading of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from controllers import (
    Battery,
    Device,
    FlexibleLoad,
    Forecast,
    Generator,
    Microgrid,
    Observation,
    Site,
)
from controllers.devices import still
from controllers.interchange.microgrid_model import MicrogridModel
from controllers.interchange.microgrid_options import Link, ModelOptions
from controllers.interchange.reading import Reading, members, read
from controllers.interchange.recourse import compiled
from controllers.interchange.tradeoff import Found, Scalarisation, Tradeoff
from tests.interchange_cases import MIDNIGHT, reference_site

PRICE = Scalarisation()


class Case:
    """A group's model, its program and one reading of it."""

    def __init__(
        self,
        observation: Observation,
        microgrid: str | tuple[str, ...] | None = "mg1",
        *,
        site: Site | None = None,
        horizon: int = 12,
        links: tuple[Link, ...] = (),
        **options: Any,
    ) -> None:
        self.site = site or reference_site()
        self.grids = members(self.site, microgrid)
        self.model = MicrogridModel(self.site, self.grids, horizon, links, ModelOptions(**options))
        self.program: Tradeoff = compiled(self.model)
        self.reading: Reading = read(observation, self.site, self.grids, horizon)

    def solve(self, how: Scalarisation = PRICE) -> Found:
        """The best plan; its cost is complete."""
        self.program.clear()
        found = self.program.best(how, self.model.costs(self.reading), self.model.bounds(self.reading))
        return replace(found, f1=found.f1 + self.model.hours * self.model.offset(self.reading))

    def of(self, found: Found, owner: str, symbol: str) -> np.ndarray:
        return found.x[self.model.lp.at((owner, symbol))]


def small(devices: list[Device], **microgrid: Any) -> Site:
    """The reference feeder with one microgrid `m` of these devices at bus 17."""
    site = reference_site(())
    grid = Microgrid(
        name="m", bus="17", devices=tuple(d.name for d in devices), **{"tie_mw": 5.0} | microgrid
    )
    return replace(site, devices={d.name: d for d in devices}, microgrids={"m": grid})


def told(site: Site, columns: Mapping[str, Any], intervals: int, **state: Any) -> Observation:
    """An observation of which only these columns are forecast, (intervals,) or one number each."""
    mean = np.column_stack([np.broadcast_to(np.asarray(v, dtype=float), intervals) for v in columns.values()])
    forecast = Forecast(MIDNIGHT, site.every, tuple(columns), mean, np.zeros_like(mean))
    return Observation(time=MIDNIGHT, forecast=forecast, **state)


def engine(name: str = "g", **figures: Any) -> Generator:
    common = {"p_mw": 0.4, "p_min_mw": 0.1, "s_mva": 0.5, "ramp_mw_per_min": 0.2 / 60, "cost_per_mwh": 70.0}
    return Generator(name=name, bus="17", weight=1.0, default=still(), **common | figures)


def store(name: str = "b", **figures: Any) -> Battery:
    common = {
        "p_mw": 0.15, "s_mva": 0.15, "e_mwh": 0.54, "e_min_mwh": 0.06, "e_start_mwh": 0.3,
        "efficiency": (0.9, 0.8), "cost_per_mwh": 5.0,
    }  # fmt: skip
    return Battery(name=name, bus="17", weight=1.0, default=still(), **common | figures)


def load(name: str = "l", **figures: Any) -> FlexibleLoad:
    common = {"p_mw": 0.3, "firm_mw": 0.1, "power_factor": 1.0, "cost_per_mwh": 150.0}
    return FlexibleLoad(name=name, bus="17", weight=1.0, default=still(), **common | figures)
