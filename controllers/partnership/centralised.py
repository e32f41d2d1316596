"""Centralised: mode `central`, the operator's problem and those of all microgrids solved as one.

What the partnership is measured by, as a controller: it has every microgrid's figures, asks nobody and tells
every device what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from controllers.contract import Decision, Infeasible, Iteration, Observation, Setpoint
from controllers.forecast import Forecast
from controllers.interchange.reading import members, read
from controllers.partnership.central import Central, CentralOptimum
from controllers.partnership.commitment import Commitment, commitment
from controllers.partnership.coupling import Point
from controllers.partnership.distribution import Distribution
from controllers.partnership.messages import MET
from controllers.partnership.options import Options
from controllers.partnership.outcome import relative_gap
from controllers.partnership.outlook import outlook_of
from controllers.partnership.program import Program
from controllers.partnership.relaxation import TOLERANCE
from controllers.partnership.release import certificate, inexact, origin_of
from controllers.partnership.restoration import Operation, settle
from controllers.partnership.setpoints import impossible, setpoint
from controllers.partnership.surroundings import Surroundings
from controllers.partnership.units import fleet
from controllers.site import Site


@dataclass
class PartnershipCentralised:
    """The optimum of a site and its microgrids as one mixed-integer second-order cone program.

    Its origin is `CERTIFIED` where the AC power flow keeps the limits in every interval, `OPTIMAL` where the
    site has none, `DEGRADED` where a limit is broken, the relaxation is not exact, a store would charge and
    discharge at once, or a microgrid's devices miss the optimum's exchange.

    Args:
        site: with microgrids; it may have an AC power flow.
        epsilon: relative gap at which branch and bound ends.
        horizon: intervals T of the site's step.
        price: name of the price of energy [$/MWh] in forecasts; the microgrids' if not given.
        line_limits: whether ratings of branches are kept, beside voltages.
        curtailment_cost_per_mwh: of all loads of microgrids [$/MWh]; each one's own if not given.
        exclusive_stores: whether a bit keeps each store from charging and discharging at once.

    Raises:
        ValueError: a site without microgrids, one with a heat demand, a device that no plan can have, a
            horizon below 1, a network whose relaxation cannot be exact.
        Infeasible: (step) something is not measured or not forecast, a microgrid is an island, or no
            operation keeps the limits.
        SolverFailed: (step) the solver had no answer.
    """

    sources: ClassVar[tuple[str, ...]] = (
        "Partnership of a distribution operator and microgrids, centralised (appendix A): seed 000",
        "Exactness: Gan, Li, Topcu and Low, Exact Convex Relaxation of Optimal Power Flow in Radial Networks",
    )

    site: Site
    epsilon: float = TOLERANCE
    horizon: int = 6
    price: str | None = None
    line_limits: bool = False
    curtailment_cost_per_mwh: float | None = None
    exclusive_stores: bool = False

    def __post_init__(self) -> None:
        self._grids = members(self.site, tuple(self.site.microgrids))
        if hot := [grid.name for grid in self._grids if grid.heat is not None]:
            raise ValueError(f"microgrids {hot} have a heat demand, of which the partnership plans nothing")
        if self.horizon < 1:
            raise ValueError(f"partnership: a horizon of {self.horizon} intervals; give at least 1")
        Options(epsilon=self.epsilon)  # which knows its range
        cost = self.curtailment_cost_per_mwh
        self._fleets = [fleet(self.site, grid, curtailment_cost_per_mwh=cost) for grid in self._grids]
        self._names = tuple(grid.name for grid in self._grids)
        self._around = Surroundings(self.site, self._names, self.horizon, self.price, self.line_limits)
        self._distribution = Distribution(self._around.feeder)

    @property
    def intervals(self) -> int:
        """How far a forecast has to reach."""
        return self.horizon

    def step(self, observation: Observation) -> Decision:
        """The optimum for what is measured and forecast."""
        conditions = self._around.conditions(observation)
        made = self._made(observation)
        found = Central(self._distribution, [one.block for one in made]).whole(
            conditions, tolerance=self.epsilon
        )
        done = [
            settle(Program(one), Point(at.p, at.q, at.cost), None if at.bits is None else np.round(at.bits))
            for one, at in zip(made, found.points, strict=True)
        ]
        checked = self._around.checked(observation, conditions, found.operation)
        wrong = [
            f"{name} misses the optimum by {one.off_by:.6f} MW and Mvar"
            for name, one in zip(self._names, done, strict=True)
            if one.off_by > MET
        ]
        wrong += [
            f"{name}: {why}"
            for name, one, does in zip(self._names, made, done, strict=True)
            for why in impossible(one, does.y)
        ]
        wrong += inexact(found.operation)
        iteration = _iteration(found)
        why = "; ".join([*wrong, str(iteration.ended), *([checked.why] if checked else [])])
        p_mw = np.array([one.p for one in done]).T
        return Decision(
            time=observation.time,
            origin=origin_of(wrong, checked),
            setpoints={**self._around.setpoints(conditions, found.operation), **self._told(made, done)},
            certificates={self.site.name: certificate(why, checked)},
            plan=Forecast(observation.time, self.site.every, self._names, p_mw, np.zeros_like(p_mw)),
            iterations=(iteration,),
        )

    def _made(self, observation: Observation) -> list[Commitment]:
        reading = read(observation, self.site, self._grids, self.horizon)
        if islands := [name for name, connected in reading.connected.items() if not connected]:
            raise Infeasible(f"{', '.join(islands)}: not connected; the central problem is about all of them")
        return [
            commitment(
                one,
                outlook_of(self.site, one, reading),
                exclusive_stores=self.exclusive_stores,
                tie_mw=grid.tie_mw,
            )
            for grid, one in zip(self._grids, self._fleets, strict=True)
        ]

    def _told(self, made: Sequence[Commitment], done: Sequence[Operation]) -> dict[str, Setpoint]:
        return {
            name: setpoint(self.site.devices[name], one, does.y, does.bits)
            for grid, one, does in zip(self._grids, made, done, strict=True)
            for name in grid.devices
        }


def _iteration(found: CentralOptimum) -> Iteration:
    gap = relative_gap(found.bound, found.value)
    ended = f"gap {gap:.1e} after {found.rounds} cone programs"
    return Iteration(
        number=1, phase="central", lower=float(found.bound), upper=float(found.value), cuts=0, ended=ended
    )
