"""Heard: what the network operator knows of microgrids, loads and batteries when it corrects, as a `Case`.

| situation of a microgrid                    | schedule    | prediction                | reactive power |
|---------------------------------------------|-------------|---------------------------|----------------|
| predicted in this step                      | its plan    | as it said                | as it offered  |
| not connected                               | 0           | [0, 0]                    | 0              |
| connected, no prediction, exchange measured | as measured | [P, P]                    | as measured    |
| connected, no prediction, nothing measured  | 0           | all of [-tie, tie] counts | as offered     |

Missing is missing: a load that is neither forecast nor measured stops the step. Beyond the end of a
prediction or forecast its last interval is repeated, since batteries have to look ahead; nothing is published
there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from controllers.contract import Decision, Infeasible, Kind, Observation
from controllers.devices import Battery
from controllers.forecast import Forecast
from controllers.interchange.outside import Outside
from controllers.interchange.question import Case
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
        ahead, measured = _columns(observation.forecast, self.H), observation.p_mw
        for load in site.loads.values():
            p_mw = self._known("load", load.name, ahead, measured)
            self._put(load.bus, p_mw, np.array([load.reactive(x) for x in p_mw]), p, q, slack)
        for device in self._others:
            p_mw = self._known("device", device.name, ahead, measured)
            self._put(device.bus, p_mw, np.array([device.reactive(x) for x in p_mw]), p, q, slack)
        moves = None if self._outside is None else self._outside.put(observation, ahead, p, q, slack)
        ratio = 1.0
        for name, regulator in site.regulators.items():
            position = observation.positions.get(name, regulator.start)
            if isinstance(regulator, TapChanger):
                ratio *= regulator.ratio(position)
            elif position:
                self._put(
                    regulator.bus, np.zeros(self.H), np.full(self.H, position * regulator.q_mvar), p, q, slack
                )
        stored = []
        for name in self.batteries:
            if name not in observation.e_mwh:
                raise Infeasible(
                    f"battery {name!r}: its stored energy is not measured; without it no reserve can be "
                    "promised, send e_mwh"
                )
            stored.append(observation.e_mwh[name])
        each = list(spoken.values())
        least = np.zeros((self.H, 2, len(each)))
        for i, one in enumerate(each):
            if one.unknown:
                least[:, 0, i], least[:, 1, i] = one.plan - one.low, one.high - one.plan
        plan, low, high, q_low, q_high = (
            np.column_stack(columns)
            for columns in zip(*((s.plan, s.low, s.high, *s.q) for s in each), strict=True)
        )
        return Case(p, q, slack, plan, low, high, least, q_low, q_high, np.array(stored), ratio**2, moves)

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
            return self._predicted(name, said, said.plan)
        why = "no prediction" if said is None else "a prediction without a plan"
        if name in observation.p_mw:
            p = np.full(self.H, observation.p_mw[name])
            q = np.full(self.H, observation.q_mvar.get(name, 0.0))
            if name not in observation.q_mvar:
                why += ", reactive power not measured"
                low, high = (np.full(self.H, x) for x in microgrid.q_mvar)
                return Spoken(p, p, p, (low, high), 1, why)
            return Spoken(p, p, p, (q, q), 1, why)
        tie = np.full(self.H, microgrid.tie_mw)
        q_low, q_high = (np.full(self.H, x) for x in microgrid.q_mvar)
        return Spoken(none, -tie, tie, (q_low, q_high), 1, f"{why} and no measured exchange", unknown=True)

    def _predicted(self, name: str, said: Decision, plan: Forecast) -> Spoken:
        regions = [said.regions[name]]
        for interval in said.later:
            if name not in interval.regions:
                break
            regions.append(interval.regions[name])
        known = min(len(regions), len(plan.mean), self.H)
        if known == 0:
            raise Infeasible(f"microgrid {name!r}: its plan has no interval; send one for each prediction")
        column = plan.names.index(name)
        p, q = (np.array([_limits(name, r, axis) for r in regions[:known]]).T for axis in ("p_mw", "q_mvar"))
        at = np.minimum(np.arange(self.H), known - 1)
        mean = np.clip(plan.mean[:known, column], p[0], p[1])
        off = np.abs(mean - plan.mean[:known, column])
        if off.max() > CROSSED:
            t = int(off.argmax())
            raise Infeasible(
                f"microgrid {name!r}: it plans {plan.mean[t, column]:.6g} MW in interval {t}, outside its "
                f"own prediction [{p[0, t]:.6g}, {p[1, t]:.6g}]"
            )
        return Spoken(mean[at], p[0][at], p[1][at], (q[0][at], q[1][at]), known)

    def _known(
        self, what: str, name: str, ahead: Mapping[str, Array], measured: Mapping[str, float]
    ) -> Array:
        if name in ahead:
            return ahead[name]
        if name in measured:
            return np.full(self.H, measured[name])
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


def _columns(forecast: Forecast, intervals: int) -> dict[str, Array]:
    """(intervals,) of what is forecast, the last interval repeated."""
    if not len(forecast.mean):
        return {}
    at = np.minimum(np.arange(intervals), len(forecast.mean) - 1)
    return {name: forecast.mean[at, i] for i, name in enumerate(forecast.names)}
