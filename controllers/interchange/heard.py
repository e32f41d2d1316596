"""Heard: what the network operator knows of microgrids, loads and batteries when it corrects, as a `Case`.

| situation of a microgrid                    | schedule    | prediction                | reactive power |
|---------------------------------------------|-------------|---------------------------|----------------|
| predicted in this step                      | its plan    | as it said                | as it offered  |
| not connected                               | 0           | [0, 0]                    | 0              |
| connected, no prediction, exchange measured | as measured | [P, P]                    | as measured    |
| connected, no prediction, nothing measured  | 0           | all of [-tie, tie] counts | as offered     |

Missing is missing: a load that is neither forecast nor measured stops the step. Beyond the end of a
prediction or forecast its last interval is repeated, since batteries have to look ahead; nothing is published
there. What was measured as NaN was not measured. Devices outside microgrids are taken to keep the reactive
power that was measured, or that goes with their power.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import numpy.typing as npt

from controllers.contract import Decision, Infeasible, Kind, Observation
from controllers.devices import Battery, FlexibleLoad
from controllers.forecast import Forecast
from controllers.interchange.orders import in_force
from controllers.interchange.outside import Outside
from controllers.interchange.question import Case
from controllers.interchange.reading import measured, passed
from controllers.microgrid import Microgrid
from controllers.region import Region
from controllers.regulators import TapChanger
from controllers.site import Site

Array = npt.NDArray[np.float64]

CROSSED = 1e-6
"""How far [MW] a plan may lie outside the prediction that comes with it, from rounding."""


@dataclass(frozen=True, eq=False)
class Spoken:
    """What is known of one microgrid, (H,) each."""

    plan: Array
    low: Array
    high: Array
    q: tuple[Array, Array]
    known: int
    """intervals from the first that it spoke of itself"""
    why: str | None = None
    """what is missing, in words; `None`: nothing"""
    unknown: bool = False


class Ear:
    """Turns observations of a site into cases.

    Args:
        batteries: of the network operator, by name.
        horizon: H.
        part: of their ratings, that is left to devices outside microgrids; `None`: nobody moves them.

    Raises:
        ValueError: (with `part`) a default that has no end.
    """

    def __init__(
        self, site: Site, batteries: Mapping[str, Battery], horizon: int, part: float | None = None
    ) -> None:
        self.site, self.batteries, self.H = site, batteries, horizon
        behind = {name for microgrid in site.microgrids.values() for name in microgrid.devices}
        others = [d for d in site.devices.values() if d.name not in behind and d.name not in batteries]
        self._others = others if part is None else []
        self._outside = None if part is None else Outside(site, others, part, horizon)

    def case(self, observation: Observation, spoken: Mapping[str, Spoken]) -> Case:
        """The step's right-hand sides.

        Raises:
            Infeasible: a load, device or battery of which nothing is known.
        """
        site, network = self.site, self.site.network
        p, q = np.zeros((2, self.H, len(network.buses)))
        slack = np.zeros(self.H)
        ahead = _columns(observation, site, self.H)
        for load in site.loads.values():
            p_mw = self._known("load", load.name, ahead, observation)
            self._put(load.bus, p_mw, np.array([load.reactive(x) for x in p_mw]), p, q, slack)
        for device in self._others:
            p_mw = self._known("device", device.name, ahead, observation)
            held = None if isinstance(device, FlexibleLoad) else measured(observation.q_mvar, device.name)
            q_mvar = [device.reactive(x) if held is None else held for x in p_mw.tolist()]
            self._put(device.bus, p_mw, np.array(q_mvar), p, q, slack)
        moves = None if self._outside is None else self._outside.put(observation, ahead, p, q, slack)
        ratio, banks = 1.0, np.zeros(len(network.buses))
        for name, regulator in site.regulators.items():
            position = observation.positions.get(name, regulator.start)
            if isinstance(regulator, TapChanger):
                ratio *= regulator.ratio(position)
            elif (at := network.index(regulator.bus)) is not None:
                banks[at] += position * regulator.q_mvar
        stored = []
        for name in self.batteries:
            if (e_mwh := measured(observation.e_mwh, name)) is None:
                raise Infeasible(
                    f"battery {name!r}: its stored energy is not measured; without it no reserve can be "
                    "promised, send e_mwh"
                )
            stored.append(e_mwh)
        each = list(spoken.values())
        least = np.zeros((self.H, 2, len(each)))
        for i, one in enumerate(each):
            if one.unknown:
                least[:, 0, i], least[:, 1, i] = one.plan - one.low, one.high - one.plan
        plan, low, high, q_low, q_high = (
            np.column_stack(columns)
            for columns in zip(*((s.plan, s.low, s.high, *s.q) for s in each), strict=True)
        )
        known = plan, low, high, least, q_low, q_high, np.array(stored)
        return Case(p, q + banks, slack, *known, ratio2=ratio**2, moves=moves, banks=banks)

    def listen(self, observation: Observation) -> dict[str, Spoken]:
        """What each microgrid said or, where it said nothing, what is known of it."""
        predictions = {
            target: decision
            for decision in observation.said.values()
            if decision.kind is Kind.PIC and decision.time == observation.time
            for target in decision.regions
        }
        return {
            name: self._one(microgrid, predictions.get(name), observation)
            for name, microgrid in self.site.microgrids.items()
        }

    def _one(self, microgrid: Microgrid, said: Decision | None, observation: Observation) -> Spoken:
        name, none = microgrid.name, np.zeros(self.H)
        if not observation.connected.get(name, True):
            return Spoken(none, none, none, (none, none), self.H, "not connected")
        if said is not None and said.plan is not None and name in said.plan.names:
            return self._predicted(name, said, said.plan, observation.time)
        why = "no prediction" if said is None else "a prediction without a plan"
        if (p_mw := measured(observation.p_mw, name)) is not None:
            p, q_mvar = np.full(self.H, p_mw), measured(observation.q_mvar, name)
            if q_mvar is None:
                why += ", reactive power not measured"
            ends = microgrid.q_mvar if q_mvar is None else (q_mvar, q_mvar)
            return Spoken(p, p, p, (np.full(self.H, ends[0]), np.full(self.H, ends[1])), 1, why)
        tie = np.full(self.H, microgrid.tie_mw)
        q_low, q_high = (np.full(self.H, x) for x in microgrid.q_mvar)
        return Spoken(none, -tie, tie, (q_low, q_high), 1, f"{why} and no measured exchange", unknown=True)

    def _predicted(self, name: str, said: Decision, plan: Forecast, now: datetime) -> Spoken:
        every = self.site.every
        times = [now + (i + 1) * every for i in range(self.H)]
        regions = {i: x.regions[name] for i, x in in_force(said, times, every) if name in x.regions}
        planned = dict(zip(plan.times, plan.mean[:, plan.names.index(name)].tolist(), strict=True))
        known = 0
        while known < self.H and known in regions and times[known] in planned:
            known += 1
        if known == 0:
            raise Infeasible(
                f"microgrid {name!r}: its plan has no interval at {times[0]}; send one for each prediction"
            )
        p, q = (
            np.array([_limits(name, regions[i], axis) for i in range(known)]).T for axis in ("p_mw", "q_mvar")
        )
        at = np.minimum(np.arange(self.H), known - 1)
        asked = np.array([planned[time] for time in times[:known]])
        mean = np.clip(asked, p[0], p[1])
        off = np.abs(mean - asked)
        if off.max() > CROSSED:
            t = int(off.argmax())
            raise Infeasible(
                f"microgrid {name!r}: it plans {asked[t]:.6g} MW in interval {t}, outside its "
                f"own prediction [{p[0, t]:.6g}, {p[1, t]:.6g}]"
            )
        return Spoken(mean[at], p[0][at], p[1][at], (q[0][at], q[1][at]), known)

    def _known(self, what: str, name: str, ahead: Mapping[str, Array], observation: Observation) -> Array:
        if name in ahead:
            return ahead[name]
        if (p_mw := measured(observation.p_mw, name)) is not None:
            return np.full(self.H, p_mw)
        raise Infeasible(
            f"{what} {name!r} is neither forecast nor measured; without it no capability is safe"
        )

    def _put(self, bus: str, p_mw: Array, q_mvar: Array, p: Array, q: Array, slack: Array) -> None:
        i = self.site.network.index(bus)
        if i is None:
            slack += p_mw
        else:
            p[:, i] += p_mw
            q[:, i] += q_mvar


def _limits(name: str, region: Region, axis: str) -> tuple[float, float]:
    """Both ends of one axis of a box.

    Raises:
        Infeasible: the region is no box, or open.
    """
    k = region.axes.index(axis) if axis in region.axes else -1
    if k < 0 or ((region.A != 0).sum(axis=1) > 1).any():
        raise Infeasible(f"microgrid {name!r}: its prediction is no box over p_mw and q_mvar; send one")
    high = float(region.b[region.A[:, k] > 0].min(initial=np.inf))
    low = -float(region.b[region.A[:, k] < 0].min(initial=np.inf))
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
        raise Infeasible(
            f"microgrid {name!r}: its prediction of {axis} is [{low:g}, {high:g}]; give both limits"
        )
    return low, high


def _columns(observation: Observation, site: Site, intervals: int) -> dict[str, Array]:
    """(intervals,) of what is forecast from one step after the observation, the last interval repeated; what
    has no number in one of them is not forecast.

    Raises:
        Infeasible: a forecast for other steps than the site's.
    """
    forecast = observation.forecast
    skip = passed(observation, site)
    if not len(forecast.mean) > skip:
        return {}
    at = np.minimum(np.arange(intervals) + skip, len(forecast.mean) - 1)
    columns = {name: forecast.mean[at, i] for i, name in enumerate(forecast.names)}
    return {name: values for name, values in columns.items() if np.isfinite(values).all()}
