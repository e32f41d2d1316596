"""Surroundings: what the operator's problem has around the microgrids, from the site and an observation.

| outside microgrids      | in the problem                                                           |
|-------------------------|--------------------------------------------------------------------------|
| load                    | its forecast, at constant power factor                                   |
| flexible load           | its forecast; above its firm part it may be curtailed, at its own cost   |
| ... not interruptible   | its forecast                                                             |
| static var compensator  | a range of reactive power                                                |
| any other device        | its forecast, else its measured power; it is told nothing                |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import numpy.typing as npt

from controllers.contract import Infeasible, Observation, Setpoint
from controllers.devices import Device, FlexibleLoad, StaticVarCompensator
from controllers.interchange.reading import measured, passed
from controllers.network import PowerFlow
from controllers.partnership.distribution import BusLoad, Conditions, Feeder, Operation
from controllers.partnership.release import Checked, check
from controllers.site import Site

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Around:
    """One load of the problem, and what it stands for."""

    name: str
    load: BusLoad
    firm_mw: float | None = None
    """of a flexible load's firm part; `None`: all of what is known of it, less `less_mw`"""
    less_mw: float = 0.0
    """part of it that another load stands for"""


class Surroundings:
    """Compiled once; `conditions` fills it.

    Args:
        microgrids: names in the order of the problem.
        horizon: T, intervals of the site's step.
        price: name of the price of energy [$/MWh] in forecasts; that of all microgrids if not given.
        line_limits: whether ratings of branches are kept.

    Raises:
        ValueError: no price, or microgrids with different ones of which none is named.
    """

    def __init__(
        self,
        site: Site,
        microgrids: Sequence[str],
        horizon: int,
        price: str | None = None,
        line_limits: bool = False,
    ) -> None:
        self.site, self._horizon = site, horizon
        behind = {name for grid in site.microgrids.values() for name in grid.devices}
        self._own: dict[str, Device] = {
            name: device for name, device in site.devices.items() if name not in behind
        }
        prices = {grid.price for grid in site.microgrids.values()}
        if price is None and (len(prices) != 1 or None in prices):
            raise ValueError(f"partnership: the microgrids' prices are {prices}; name one, price=...")
        self.price: str = price if price is not None else str(next(iter(prices)))
        self._around = [*self._uncontrolled(), *self._devices()]
        self._compensators = [d for d in self._own.values() if isinstance(d, StaticVarCompensator)]
        self.feeder = Feeder(
            network=site.network,
            limits=site.limits,
            microgrids=tuple(site.microgrids[name].bus for name in microgrids),
            intervals=horizon,
            hours=site.every / timedelta(hours=1),
            loads=tuple(one.load for one in self._around),
            compensators=tuple(self._compensators),
            line_limits=line_limits,
        )

    def _uncontrolled(self) -> list[_Around]:
        return [
            _Around(load.name, BusLoad(load.bus, curtailment_cost_per_mwh=None))
            for load in self.site.loads.values()
        ]

    def _devices(self) -> list[_Around]:
        found = []
        for name, device in self._own.items():
            if isinstance(device, StaticVarCompensator):
                continue
            fixed = BusLoad(device.bus, curtailment_cost_per_mwh=None)
            if not (isinstance(device, FlexibleLoad) and device.interruptible):
                found.append(_Around(name, fixed))
                continue
            above = BusLoad(device.bus, device.reactive(1.0), device.cost_per_mwh)
            found.append(_Around(name, above, less_mw=device.firm_mw))
            if device.firm_mw > 0:
                found.append(_Around(name, fixed, firm_mw=device.firm_mw))
        return found

    def conditions(self, observation: Observation) -> Conditions:
        """Prices and demands of the coming intervals.

        Raises:
            Infeasible: something is neither forecast nor measured, the forecast is too short, or the site's
                AC power flow knows nothing of the regulators' positions.
        """
        self._engine(observation)  # before anybody is asked anything
        known = _Known(observation, self.site, self._horizon)
        price = known.forecast(self.price)
        if price is None:
            raise Infeasible(f"partnership: {self.price!r} is not forecast; give it a profile")
        columns = [self._column(one, known, observation) for one in self._around]
        shape = (self._horizon, len(columns))
        p_mw, q_mvar = (
            np.array(values).T.reshape(shape) for values in ([c[k] for c in columns] for k in (0, 1))
        )
        return Conditions(price, p_mw, q_mvar)

    def _column(self, one: _Around, known: _Known, observation: Observation) -> tuple[Array, Array]:
        """(T,), (T,) what a demand injects."""
        if one.firm_mw is not None:
            p_mw = np.full(self._horizon, -one.firm_mw)
            return p_mw, p_mw * self._own[one.name].reactive(1.0)
        given = known.forecast(one.name)
        if given is None:
            now = measured(observation.p_mw, one.name)
            if now is None:
                raise Infeasible(
                    f"partnership: {one.name!r} is neither forecast nor measured; give it a profile"
                )
            given = np.full(self._horizon, now)
        if (load := self.site.loads.get(one.name)) is not None:
            return given, np.array([load.reactive(float(p)) for p in given])
        device = self._own[one.name]
        p_mw = given + one.less_mw
        return p_mw, np.array([device.reactive(float(p)) for p in p_mw])

    def checked(
        self, observation: Observation, conditions: Conditions, operation: Operation
    ) -> Checked | None:
        """What the site's AC power flow says of an operation, its regulators where they stand; `None`: it has
        none.

        Raises:
            Infeasible: it knows nothing of the regulators' positions.
        """
        engine = self._engine(observation)
        return None if engine is None else check(engine, self.feeder, conditions, operation)

    def _engine(self, observation: Observation) -> PowerFlow | None:
        engine = self.site.power_flow
        if engine is None or not self.site.regulators:
            return engine
        try:
            return engine.at(observation.positions)
        except (KeyError, ValueError) as error:
            raise Infeasible(f"partnership: no power flow for these positions: {error}") from error

    def setpoints(self, conditions: Conditions, operation: Operation) -> Mapping[str, Setpoint]:
        """What the operator's own devices are told for the first interval: loads that are served in full
        their whole rating, so that they follow their demand."""
        told = {
            device.name: Setpoint(p_mw=0.0, q_mvar=float(operation.svc_mvar[0, s]))
            for s, device in enumerate(self._compensators)
        }
        for d, one in enumerate(self._around):
            if one.load.curtailment_cost_per_mwh is None:
                continue
            device, less = self._own[one.name], float(operation.curtailed_mw[0, d])
            assert isinstance(device, FlexibleLoad)
            wanted = float(conditions.p_mw[0, d]) - one.less_mw
            told[one.name] = Setpoint(p_mw=device.told_mw(wanted + less, -wanted))
        return told


class _Known:
    """Columns of a forecast from the first interval on."""

    def __init__(self, observation: Observation, site: Site, horizon: int) -> None:
        self._forecast = observation.forecast
        self._rows = slice(skip := passed(observation, site), skip + horizon)
        if (reach := len(self._forecast.mean) - skip) < horizon:
            raise Infeasible(
                f"partnership: the forecast covers {max(reach, 0)} of {horizon} intervals; raise it or lower "
                "the horizon"
            )

    def forecast(self, name: str) -> Array | None:
        if name not in self._forecast.names:
            return None
        values: Array = self._forecast.mean[self._rows, self._forecast.names.index(name)]
        return values
