"""DPICP, its constraints: what one microgrid, or several that help each other, can do over a horizon.

One realisation of sun, wind, loads and heat is one set of bounds; matrix and costs are the same for all.
Source: seed 003 (abstract, introduction, nomenclature), whose text has no formula; the equations are a
reconstruction. Implements (A1)-(A10).

| symbol           | here          | meaning                                                        | unit   |
|------------------|---------------|----------------------------------------------------------------|--------|
| P_M, P_D, P_DG   | `P`           | output of a micro-turbine, a diesel engine, either             | MW     |
| rho+, rho-       | `up`, `down`  | what a unit can go up and down from there, in the adjustment time | MW  |
| UR, DR           | `pace`        | ramp limits, of an interval and of the adjustment time         | MW     |
| P_W, P_V, P_curt | `used`        | sun and wind that are used: what there is less what is curtailed | MW   |
| P_UL, P_IL       | `served`      | consumption of uninterruptible and interruptible loads         | MW     |
| P_dch, P_ch      | `P_dch`, `P_ch` | discharging and charging power                               | MW     |
| u                | `u`           | 1 while a battery charges, 0 while it discharges               | 1      |
| W                | `S`           | energy stored until the interval's end, in MW intervals        | MW     |
| kappa            | `heat_ratio`  | heat that comes with each MW of power                          | 1      |
| H_L, H_slack     | `heat`, `H_slack` | heat demand, and what the boiler gives                     | MW     |
| P_PCC            | `P_PCC`       | exchange with the network, above zero: it sells                | MW     |
| P_up, P_dn       | `P_up`, `P_dn` | interchange capability                                        | MW     |
| f, h             | `f`, `h`      | power and heat sent over a link to another microgrid           | MW     |
| eta              | `efficiency`  | of charging and discharging, of a link                         | 1      |

How it differs from the reconstruction it follows:

- Everything is in MW: energy is counted from the measured one and in MW intervals, costs are $/h. So the
  coefficients are near 1 for steps of a second as for steps of an hour.
- Used power and served load are the variables, what is lost follows. So a case changes bounds only, and each
  interval 0 has the bounds of `Device.limits`: what the plan asks for first, the device can do.
- (A6) is relaxed to P_ch / P_ch^max + P_dch / P_dch^max <= 1, which every exclusive plan fulfils.
- Stored energy outside its bounds, by measurement, need not come back but goes no farther out.
- A load's firm part is never shed, whatever the price.
- Engines run all the time: one that can stop is refused. Static var compensators have no active power and no
  variable here; the dispatch shares reactive power out.
- `pic_sources` and `capability` are options: by the reconstruction generators alone make the interchange
  capability, counted from the schedule. With `capability="reachable"` it is what the microgrid can do in the
  interval itself, coming from the last one's schedule, or from what is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy import sparse

from controllers.devices import (
    Battery,
    FlexibleLoad,
    Generator,
    PvInverter,
    StaticVarCompensator,
    WindTurbine,
)
from controllers.interchange.linear_rows import Bounds, LinearRows, Term
from controllers.interchange.microgrid_options import Link, ModelOptions
from controllers.interchange.reading import Reading
from controllers.microgrid import Microgrid
from controllers.site import Site

Array = npt.NDArray[np.float64]
PCC = ("P_PCC", "P_up", "P_dn")


class MicrogridModel:
    """The linear program's rows and variables for a group of microgrids, built once.

    Args:
        site: where they are.
        grids: the group; those that no link joins do not influence each other.
        horizon: intervals.
        links: between members of the group.
        options: see `ModelOptions`.

    Raises:
        ValueError: no interval, a link to a microgrid that is not of the group, an engine that can stop.
    """

    def __init__(
        self,
        site: Site,
        grids: Sequence[Microgrid],
        horizon: int,
        links: Sequence[Link] = (),
        options: ModelOptions | None = None,
    ) -> None:
        if horizon < 1:
            raise ValueError(f"microgrid model: a horizon of {horizon} intervals; needed is at least 1")
        self.options = options or ModelOptions()
        self.site, self.grids, self.horizon, self.links = site, tuple(grids), horizon, tuple(links)
        self.hours = site.every / timedelta(hours=1)
        self._adjust = (self.options.adjust or site.every) / timedelta(hours=1)
        names = [grid.name for grid in grids]
        for link in links:
            if link.source not in names or link.target not in names or link.source == link.target:
                raise ValueError(f"link {link.source}-{link.target}: joins no two of the group {names}")
        self.lp = LinearRows(horizon)
        for grid in self.grids:  # first, so that a program over many cases can share them
            for symbol in PCC:
                self.lp.block((grid.name, symbol), -grid.tie_mw, grid.tie_mw)  # (A7)
        self.shared = self.lp.width
        for i, link in enumerate(self.links):
            self.lp.block((f"link{i}", "f"), 0.0, link.p_mw)
            self.lp.block((f"link{i}", "h"), 0.0, link.heat_mw)
        for grid in self.grids:
            self._microgrid(grid)

    @cached_property
    def matrix(self) -> sparse.csr_array:
        """(rows, variables), with all that was added to `lp` until it is first asked for"""
        return self.lp.matrix()

    @cached_property
    def _fixed(self) -> tuple[Bounds, Array]:
        return self.lp.bounds(), self.lp.costs()

    @property
    def stores(self) -> tuple[Battery, ...]:
        """Every battery of the group."""
        found = (self.site.devices[name] for grid in self.grids for name in grid.devices)
        return tuple(device for device in found if isinstance(device, Battery))

    def _pace(self, device: Generator) -> tuple[float, float]:
        """Ramp limits [MW] of one interval and of the adjustment time."""
        per_hour = 60 * device.ramp_mw_per_min
        return per_hour * self.hours, per_hour * self._adjust

    def _microgrid(self, grid: Microgrid) -> None:
        lp, me = self.lp, grid.name
        power = [Term((me, "P_PCC"), -1.0)]
        up = [Term((me, "P_up")), Term((me, "P_PCC"), -1.0)]
        down = [Term((me, "P_PCC")), Term((me, "P_dn"), -1.0)]
        warm, lost = [], []
        for i, link in enumerate(self.links):
            if me in (link.source, link.target):
                sends = me == link.source
                power.append(Term((f"link{i}", "f"), -1.0 if sends else link.efficiency))  # (A10)
                warm.append(Term((f"link{i}", "h"), -1.0 if sends else link.heat_efficiency))  # (A10)
        for name in grid.devices:
            match device := self.site.devices[name]:
                case Generator():
                    self._generator(device)
                    power.append(Term((name, "P")))
                    if device.heat_ratio:
                        warm.append(Term((name, "P"), device.heat_ratio))
                    if lp.has((name, "up")):
                        up.append(Term((name, "up"), -1.0))
                        down.append(Term((name, "down"), -1.0))
                        if device.heat_ratio:
                            lost.append(Term((name, "down"), -device.heat_ratio))
                case Battery():
                    self._battery(device)
                    power += [Term((name, "P_dch")), Term((name, "P_ch"), -1.0)]
                    if lp.has((name, "up")):
                        up.append(Term((name, "up"), -1.0))
                        down.append(Term((name, "down"), -1.0))
                case PvInverter() | WindTurbine():
                    power.append(Term(lp.block((name, "used"), cost=-grid.spill_cost_per_mwh)))
                case FlexibleLoad():
                    cost = device.cost_per_mwh if device.interruptible else grid.shed_cost_per_mwh
                    power.append(Term(lp.block((name, "served"), cost=-cost), -1.0))
                    if device.interruptible and "interruptible loads" in self.options.pic_sources:
                        up.append(Term(lp.block((name, "up")), -1.0))
                        fixed = [Term((name, "served")), Term((name, "up"), -1.0)]
                        lp.rows(fixed, device.firm_mw, np.inf)  # (A8): to its firm part
        lp.rows(power, 0.0, 0.0, (me, "power"))  # (A1)
        if grid.heat is not None:
            warm.append(Term(lp.block((me, "H_slack"), cost=grid.boiler_cost_per_mwh)))
            lp.rows(warm, 0.0, np.inf, (me, "heat"))  # (A2)
            if lost:
                lp.rows([*warm, *lost], 0.0, np.inf, (me, "heat below"))  # (A8): the heat stays secure
        lp.rows(up, 0.0, 0.0)  # (A9)
        lp.rows(down, 0.0, 0.0)  # (A9)

    def _generator(self, device: Generator) -> None:
        lp, name = self.lp, device.name
        if device.can_stop:
            raise ValueError(
                f"microgrid model: engine {name!r} can stop, and a linear program cannot decide when; leave "
                "can_stop out, so that it runs all the time"
            )
        least, most = device.p_min_mw, device.most_mw
        step, reach = self._pace(device)
        lp.block((name, "P"), least, most, device.cost_per_mwh)  # (A3)
        before = Term((name, "P"), -1.0, 1)
        lp.rows([Term((name, "P")), before], -step, step)  # (A4)
        if "generators" not in self.options.pic_sources:
            return
        lp.block((name, "up"), 0.0, reach)  # (A8)
        lp.block((name, "down"), 0.0, reach)  # (A8)
        highest = [Term((name, "P")), Term((name, "up"))]
        lowest = [Term((name, "P")), Term((name, "down"), -1.0)]
        lp.rows(highest, -np.inf, most, (name, "highest"))  # (A8)
        lp.rows(lowest, least, np.inf, (name, "lowest"))  # (A8)
        if self.options.capability == "reachable":
            lp.rows([*highest, before], -np.inf, step)
            lp.rows([*lowest, before], -step, np.inf)

    def _battery(self, device: Battery) -> None:
        lp, name = self.lp, device.name
        most = min(device.p_mw, device.s_mva)
        charge, discharge = device.efficiency
        lp.block((name, "P_ch"), 0.0, most, device.cost_per_mwh)  # (A3)
        lp.block((name, "P_dch"), 0.0, most, device.cost_per_mwh)  # (A3)
        lp.block((name, "S"), -np.inf, np.inf)
        lp.block((name, "u"), 0.0, 1.0)
        flow = [Term((name, "P_ch"), -charge), Term((name, "P_dch"), 1 / discharge)]
        # Before interval 0 lies the measured energy, from which S is counted: zero.
        lp.rows([Term((name, "S")), Term((name, "S"), -1.0, 1), *flow], 0.0, 0.0, from_first=True)  # (A5)
        lp.rows([Term((name, "P_ch")), Term((name, "u"), -most)], -np.inf, 0.0)  # (A6)
        lp.rows([Term((name, "P_dch")), Term((name, "u"), most)], -np.inf, most)  # (A6)
        if "storage" not in self.options.pic_sources:
            return
        lp.block((name, "up"))
        lp.block((name, "down"))
        net = [Term((name, "P_dch")), Term((name, "P_ch"), -1.0)]
        lp.rows([*net, Term((name, "up"))], -np.inf, most)  # (A8)
        lp.rows([*net, Term((name, "down"), -1.0)], -most, np.inf)  # (A8)
        # Which of its energy the capability would use, as if all of it were drawn and all of it stored.
        share = self._adjust / self.hours
        drawn, stored = Term((name, "up"), -share / discharge), Term((name, "down"), share * charge)
        lp.rows([Term((name, "S")), drawn], -np.inf, np.inf, (name, "emptiest"))  # (A8)
        lp.rows([Term((name, "S")), stored], -np.inf, np.inf, (name, "fullest"))  # (A8)

    def bounds(self, reading: Reading, case: Array | None = None) -> Bounds:
        """All bounds for one case (intervals, names) of the forecast, the mean if none is given."""
        lp, filled = self.lp, Bounds(*(side.copy() for side in self._fixed[0]))
        row_low, low, high = filled.row_low, filled.low, filled.high
        for grid in self.grids:
            if not reading.connected[grid.name]:
                for symbol in PCC:
                    at = lp.at((grid.name, symbol))
                    low[at] = high[at] = 0.0  # (A7): an island exchanges nothing
            if grid.heat is not None:
                demand = reading.column(grid.heat, case)
                row_low[lp.row_at((grid.name, "heat"))] = demand
                if lp.has_rows((grid.name, "heat below")):
                    row_low[lp.row_at((grid.name, "heat below"))] = demand
            for name in grid.devices:
                match device := self.site.devices[name]:
                    case Generator():
                        self._generator_now(device, reading.p_mw[name], filled)
                    case Battery():
                        self._battery_now(device, reading.e_mwh[name], filled)
                    case PvInverter() | WindTurbine():
                        high[lp.at((name, "used"))] = self.available(device, reading, case)  # (A3)
                    case FlexibleLoad():
                        low[lp.at((name, "served"))] = device.firm_mw  # (A3)
                        high[lp.at((name, "served"))] = self.demand(device, reading, case)  # (A3)
        return filled

    def _generator_now(self, device: Generator, p_mw: float, filled: Bounds) -> None:
        lp, name = self.lp, device.name
        least, most = device.p_min_mw, device.most_mw
        step, _ = self._pace(device)
        before = min(max(p_mw, least), most)  # a measurement may be a little off
        first = lp.at((name, "P")).start
        filled.low[first] = max(least, before - step)  # (A4)
        filled.high[first] = min(most, before + step)  # (A4)
        if self.options.capability == "reachable" and lp.has((name, "up")):
            filled.row_high[lp.row_at((name, "highest")).start] = filled.high[first]
            filled.row_low[lp.row_at((name, "lowest")).start] = filled.low[first]

    def _battery_now(self, device: Battery, e_mwh: float, filled: Bounds) -> None:
        lp, name = self.lp, device.name
        empty = min((device.e_min_mwh - e_mwh) / self.hours, 0.0)
        full = max((device.e_mwh - e_mwh) / self.hours, 0.0)
        at = lp.at((name, "S"))
        filled.low[at], filled.high[at] = empty, full  # (A5)
        if self.options.keep_energy:
            half = (device.e_min_mwh + device.e_mwh) / 2
            filled.low[at.stop - 1] = max(empty, min(half - e_mwh, 0.0) / self.hours)  # (A5)
        if lp.has((name, "up")):
            filled.row_low[lp.row_at((name, "emptiest"))] = empty
            filled.row_high[lp.row_at((name, "fullest"))] = full

    def available(self, device: PvInverter | WindTurbine, reading: Reading, case: Array | None) -> Array:
        """(intervals,) power that the sun or the wind gives [MW]."""
        most = device.s_mva if isinstance(device, PvInverter) else np.inf
        return np.clip(reading.column(device.name, case), 0.0, most)

    def demand(self, device: FlexibleLoad, reading: Reading, case: Array | None) -> Array:
        """(intervals,) what a load would consume [MW, positive]."""
        return np.maximum(-reading.column(device.name, case), device.firm_mw)

    def injection(self, name: str, x: Array) -> Array:
        """(intervals,) what a device injects [MW] by a solution."""
        match self.site.devices[name]:
            case Battery():
                return np.asarray(x[self.lp.at((name, "P_dch"))] - x[self.lp.at((name, "P_ch"))])
            case FlexibleLoad():
                return np.asarray(-x[self.lp.at((name, "served"))])
            case Generator():
                return np.asarray(x[self.lp.at((name, "P"))])
            case StaticVarCompensator():
                return np.zeros(self.horizon)
        return np.asarray(x[self.lp.at((name, "used"))])

    def costs(self, reading: Reading) -> Array:
        """(variables,) cost of each variable [$/MWh], so that `costs @ x` is in $/h; see `offset`."""
        costs = self._fixed[1].copy()
        for grid in self.grids:
            if grid.price is not None:
                costs[self.lp.at((grid.name, "P_PCC"))] = -reading.column(grid.price)
        return costs

    def offset(self, reading: Reading, case: Array | None = None) -> float:
        """What all sun and wind unused and all loads unserved would cost [$/h], summed over the intervals."""
        total = 0.0
        for grid in self.grids:
            for name in grid.devices:
                match device := self.site.devices[name]:
                    case PvInverter() | WindTurbine():
                        total += grid.spill_cost_per_mwh * self.available(device, reading, case).sum()
                    case FlexibleLoad():
                        cost = device.cost_per_mwh if device.interruptible else grid.shed_cost_per_mwh
                        total += cost * self.demand(device, reading, case).sum()
        return float(total)

    def band(self) -> Array:
        """(variables,) what makes f2 [MW]: minus the width of the interchange capability."""
        found = np.zeros(self.lp.width)
        for grid in self.grids:
            found[self.lp.at((grid.name, "P_up"))] = -1.0
            found[self.lp.at((grid.name, "P_dn"))] = 1.0
        return found
