"""Orders: what the network's operator allows a microgrid, out of what other controllers said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt

from controllers.contract import Decision, Infeasible, Interval, Kind, Observation
from controllers.interchange.reading import measured
from controllers.interchange.steering import Course
from controllers.microgrid import Microgrid
from controllers.region import Region
from controllers.site import Site

Array = npt.NDArray[np.float64]

NEVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, eq=False)
class Order:
    """What one microgrid is asked for, and why."""

    course: Course
    q_mvar: tuple[float, float] | None
    """reactive power at the point of common coupling in interval 0; `None`: nobody asks for any"""
    heard: bool
    """whether the operator spoke, or need not: an island is on its own"""


def order(site: Site, grid: Microgrid, observation: Observation, horizon: int) -> Order:
    """What a microgrid has to keep to.

    An island exchanges nothing. A microgrid that has heard no capability keeps the exchange that was
    measured, active and reactive: the operator, who has heard nothing either, counts on that. Beyond the last
    interval of a capability only the tie's rating counts.

    Raises:
        Infeasible: a capability that is no box, several that have no point in common, or neither capability
            nor exchange is known.
    """
    every, name = site.every, grid.name
    free = np.full(horizon, np.nan)
    if not observation.connected.get(name, True):
        zero = np.zeros(horizon)
        return Order(Course(free, zero, zero, island=True), (0.0, 0.0), True)
    times = [observation.time + (i + 1) * every for i in range(horizon)]
    low, high = np.full(horizon, -np.inf), np.full(horizon, np.inf)
    q_mvar, heard = (-np.inf, np.inf), False
    for decision in observation.said.values():
        if decision.kind is not Kind.AIC:
            continue
        for i, interval in in_force(decision, times, every):
            if name not in interval.regions:
                continue
            box = limits(name, interval.regions[name])
            low[i], high[i] = max(low[i], box["p_mw"][0]), min(high[i], box["p_mw"][1])
            if i == 0:
                heard = True
                q_mvar = max(q_mvar[0], box["q_mvar"][0]), min(q_mvar[1], box["q_mvar"][1])
    if not heard:
        p_mw = _measured(grid, observation)
        held = np.full(horizon, p_mw)
        q = measured(observation.q_mvar, name)
        return Order(Course(free, held, held), None if q is None else (q, q), False)
    if (low > high).any() or q_mvar[0] > q_mvar[1]:
        raise Infeasible(f"microgrid {name!r}: the capabilities that it heard have no point in common")
    low[np.isinf(low)], high[np.isinf(high)] = -grid.tie_mw, grid.tie_mw
    return Order(Course(_plan(name, observation, times), low, high), q_mvar, True)


def limits(name: str, region: Region) -> dict[str, tuple[float, float]]:
    """Least and greatest value of each axis of a box.

    Raises:
        Infeasible: the region is no box, or has no end.
    """
    found = {}
    for k, axis in enumerate(region.axes):
        own = np.abs(region.A[:, k]) > 1e-12
        high = float(region.b[own & (region.A[:, k] > 0)].min(initial=np.inf))
        low = -float(region.b[own & (region.A[:, k] < 0)].min(initial=np.inf))
        found[axis] = low, high
    box = ((np.abs(region.A) > 1e-12).sum(axis=1) == 1).all()
    if not box or set(found) != {"p_mw", "q_mvar"} or not np.isfinite(list(found.values())).all():
        raise Infeasible(
            f"microgrid {name!r}: its capability over {region.axes} is no box of p_mw and q_mvar"
        )
    return found


def in_force(
    decision: Decision, times: Sequence[datetime], every: timedelta
) -> Iterator[tuple[int, Interval]]:
    """Which of a decision's intervals holds when; one without a sequel holds in interval 0 alone."""
    spans = decision.intervals(decision.time + every, NEVER)
    for i, time in enumerate(times):
        for span in spans:
            if span.start <= time < span.end and (i == 0 or decision.has_sequel):
                yield i, span


def _measured(grid: Microgrid, observation: Observation) -> float:
    """The exchange as measured, by itself or as the sum of what the devices inject."""
    exchange = measured(observation.p_mw, grid.name)
    if exchange is not None:
        return exchange
    each = {name: measured(observation.p_mw, name) for name in grid.devices}
    if missing := [name for name, p_mw in each.items() if p_mw is None]:
        raise Infeasible(
            f"microgrid {grid.name!r} heard no capability and cannot keep its exchange: not measured at the "
            f"point of common coupling, nor at {missing}"
        )
    return sum(p_mw for p_mw in each.values() if p_mw is not None)


def _plan(name: str, observation: Observation, times: list[datetime]) -> Array:
    """(H,) the exchange that the operator counts on: as it corrected it, else as it was predicted."""
    found = np.full(len(times), np.nan)
    said = sorted(observation.said.values(), key=lambda decision: decision.kind is Kind.AIC)
    for decision in said:  # a correction overwrites what it corrects
        plan = decision.plan
        if decision.kind not in (Kind.PIC, Kind.AIC) or plan is None or name not in plan.names:
            continue
        known = dict(zip(plan.times, plan.mean[:, plan.names.index(name)].tolist(), strict=True))
        found = np.array([known.get(time, before) for time, before in zip(times, found, strict=True)])
    return found
