"""Dispatch of a microgrid inside its available interchange capability.

The same program as the prediction's, for the mean forecast, with the exchange inside the capability that the
network's operator allows. It keeps to the schedule that the operator counts on unless it pays to leave it.
Source: seed 003, as reconstructed: the loop's last step, in which each microgrid dispatches its own devices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from controllers.contract import Certificate, Decision, Infeasible, Observation, Origin, Setpoint
from controllers.devices import Battery, DeviceState, FlexibleLoad
from controllers.forecast import Forecast
from controllers.interchange.microgrid_model import MicrogridModel
from controllers.interchange.microgrid_options import Link, ModelOptions, Source, links
from controllers.interchange.orders import Order, order
from controllers.interchange.reading import Reading, members, read
from controllers.interchange.recourse import compiled
from controllers.interchange.steering import Steering
from controllers.interchange.tradeoff import Found, Scalarisation
from controllers.microgrid import Microgrid
from controllers.site import Site

Array = npt.NDArray[np.float64]

SHORT = 1e-6
"""How far [Mvar, MW] from what is asked for still counts as reached."""


@dataclass(frozen=True, eq=False)
class Dispatched:
    """What was found for the coming intervals."""

    p_mw: Array
    """(H, microgrids) exchange"""
    devices: Mapping[str, Array]
    """(H,) injection of each device [MW]"""
    found: Found
    within: bool
    """whether the exchange keeps to what is asked for"""


@dataclass
class MicrogridDispatch:
    """Sets the devices of a microgrid, so that its exchange is inside what the network's operator allows.

    It listens for decisions of kind `AIC` that name the microgrid, and to their plans. Without one it keeps
    the measured exchange; an island balances itself, if need be by shedding load. Where the devices cannot
    keep to what is asked for, by ramp, energy or firm load, they come as close as they can, at any cost.
    Either makes the decision `DEGRADED`, with a certificate of each microgrid that says why.

    Loads that are served in full are told their whole rating: they follow their demand, whatever it turns out
    to be. Every other device is told its planned power; sun and wind beyond the forecast are not used. The
    reactive power asked for at the point of common coupling is shared by those that can give some, in
    proportion to what they have left beside their power.

    Args:
        site: with its microgrids.
        microgrid: whose, one name or several that are linked; the site's only one if not given.
        horizon: intervals H looked ahead.
        mu: worth of the band that the schedule leaves [$/MWh], as in the prediction.
        deviation_cost_per_mwh: of leaving the schedule that the operator counts on [$/MWh].
        pic_sources, keep_energy: see `ModelOptions`.
        links: between the microgrids; `Link` or its fields by name.

    Raises:
        ValueError: no such microgrid, or an option that does not exist or fit.
        Infeasible: (step) something is not measured or not forecast, or the tie's rating cannot be kept.
        SolverFailed: (step) the solver had no answer.
    """

    sources: ClassVar[tuple[str, ...]] = (
        "Dispatch of microgrids inside their available interchange capability: seed 003, as reconstructed",
    )

    site: Site
    microgrid: str | Sequence[str] | None = None
    horizon: int = 12
    mu: float = 25.0
    deviation_cost_per_mwh: float = 25.0
    pic_sources: Sequence[Source] = ("generators",)
    keep_energy: bool = True
    links: Sequence[Link | Mapping[str, Any]] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.deviation_cost_per_mwh < np.inf:
            raise ValueError(f"dispatch: deviation_cost_per_mwh {self.deviation_cost_per_mwh} is below zero")
        options = ModelOptions(pic_sources=tuple(self.pic_sources), keep_energy=self.keep_energy)
        grids = members(self.site, self.microgrid)
        self._how = Scalarisation(mu=self.mu)
        self._model = MicrogridModel(self.site, grids, self.horizon, links(self.links), options)
        self._steering = Steering(self._model, self.deviation_cost_per_mwh)
        self._program = compiled(self._model)

    @property
    def intervals(self) -> int:
        """How far a forecast has to reach."""
        return self.horizon

    @property
    def grids(self) -> tuple[Microgrid, ...]:
        """The group."""
        return self._model.grids

    def step(self, observation: Observation) -> Decision:
        """Set the devices; see the class."""
        reading = read(observation, self.site, self.grids, self.horizon)
        orders = {grid.name: order(self.site, grid, observation, self.horizon) for grid in self.grids}
        done = self._solved(reading, orders)
        setpoints, degraded = {}, {}
        for grid in self.grids:
            p_mw = {name: float(done.devices[name][0]) for name in grid.devices}
            q_mvar, enough = self._reactive(grid, p_mw, orders[grid.name], reading, observation)
            if why := _lacking(orders[grid.name].heard, done.within, enough):
                degraded[grid.name] = Certificate(binding=why)
            for name in grid.devices:
                setpoints[name] = Setpoint(
                    p_mw=self._told(name, p_mw[name], reading), q_mvar=q_mvar.get(name)
                )
        names = tuple(grid.name for grid in self.grids)
        return Decision(
            time=observation.time,
            origin=Origin.DEGRADED if degraded else Origin.OPTIMAL,
            setpoints=setpoints,
            certificates=degraded,
            plan=Forecast(observation.time, self.site.every, names, done.p_mw, np.zeros_like(done.p_mw)),
        )

    def dispatch(self, observation: Observation) -> Dispatched:
        """The plan behind `step`, for all intervals.

        Raises:
            ControlError: as `step`.
        """
        reading = read(observation, self.site, self.grids, self.horizon)
        orders = {grid.name: order(self.site, grid, observation, self.horizon) for grid in self.grids}
        return self._solved(reading, orders)

    def _solved(self, reading: Reading, orders: Mapping[str, Order]) -> Dispatched:
        model, courses = self._model, {name: one.course for name, one in orders.items()}
        costs, bounds = self._steering.costs(model.costs(reading)), model.bounds(reading)
        for kept in (self.horizon, 1, 0):  # interval 0 is what acts: it is given up last
            self._program.clear()
            try:
                found = self._program.best(self._how, costs, self._steering.bounds(bounds, courses, kept))
            except Infeasible:
                if kept == 0:
                    whose = ", ".join(repr(grid.name) for grid in self.grids)
                    raise Infeasible(
                        f"microgrid {whose}: no dispatch keeps balance, tie rating, ramps and firm loads"
                    ) from None
            else:
                break
        at = [model.lp.at((grid.name, symbol)) for grid in self.grids for symbol in ("beyond", "short")]
        within = max(found.x[block.start] for block in at) <= SHORT
        p_mw = np.column_stack([found.x[model.lp.at((grid.name, "P_PCC"))] for grid in self.grids])
        names = [name for grid in self.grids for name in grid.devices]
        return Dispatched(p_mw, {name: model.injection(name, found.x) for name in names}, found, within)

    def _told(self, name: str, p_mw: float, reading: Reading) -> float:
        """The power that a device is told [MW]."""
        device = self.site.devices[name]
        if isinstance(device, FlexibleLoad):
            return device.told_mw(p_mw, float(self._model.demand(device, reading, None)[0]))
        return p_mw

    def _reactive(
        self,
        grid: Microgrid,
        p_mw: Mapping[str, float],
        asked: Order,
        reading: Reading,
        observation: Observation,
    ) -> tuple[dict[str, float], bool]:
        """Reactive power by device [Mvar], and whether its sum is what is asked for."""
        if asked.q_mvar is None:
            return {}, True
        every_s = self.site.every / timedelta(seconds=1)
        least, most, given = {}, {}, 0.0
        for name in grid.devices:
            device = self.site.devices[name]
            if isinstance(device, FlexibleLoad):  # its power factor is fixed
                given += device.reactive(p_mw[name])
                continue
            e_mwh = reading.e_mwh[name] if isinstance(device, Battery) else None
            state = DeviceState(reading.p_mw.get(name, 0.0), 0.0, e_mwh)
            # Sun and wind limit P alone, which is settled: what they give does not matter here.
            rows = device.limits(state, None, every_s).over(("p_mw", "q_mvar"))
            left = rows.b - rows.A[:, 0] * p_mw[name]
            up, down = rows.A[:, 1] > 1e-12, rows.A[:, 1] < -1e-12
            most[name] = max(float((left[up] / rows.A[up, 1]).min(initial=np.inf)), 0.0)
            least[name] = min(float((left[down] / rows.A[down, 1]).max(initial=-np.inf)), 0.0)
        low, high = asked.q_mvar
        needed = min(max(given, low), high) - given
        able = most if needed > 0 else least
        total = sum(able.values())
        share = min(needed / total, 1.0) if total else 0.0
        found = {name: share * able[name] for name in able}
        return found, abs(sum(found.values()) - needed) <= SHORT


def _lacking(heard: bool, within: bool, enough: bool) -> str:
    """Why what was asked for is not reached; nothing where it is."""
    reasons = (
        (heard, "no capability was heard, the measured exchange is kept"),
        (within, "the exchange asked for is out of the devices' reach"),
        (enough, "the reactive power asked for is out of the devices' reach"),
    )
    return ", and ".join(words for reached, words in reasons if not reached)
