"""Beside: what envelopes leave to those whose injections others decide about.

On a site with microgrids, envelopes are for the devices outside them. To the network a microgrid is one more
device, whose region is given: the interchange capability (AIC) that its operator was allowed for the same
interval. Every method and its certificate take the worst of it off each row before they share the rest, so

    for every exchange of the microgrids in their capabilities, each free of the others, and for every point
    of the devices outside in their envelopes, the limits hold.

| of what                       | what is known                           | what it may inject              |
|-------------------------------|-----------------------------------------|---------------------------------|
| a microgrid                   | a capability in force                   | every point of it               |
| a microgrid                   | none, and it is not connected           | nothing                         |
| a microgrid                   | none                                    | [-tie, tie], all reactive power |
| a device that the correction  | its setpoint, in force in all intervals | that                            |
| sets (the operator's battery) | its setpoint, which ends before         | that, or nothing                |

A capability counts for the interval in which it is in force: one that an older decision holds for a later
interval counts where no newer one has come. The order is the scenario's: the correction of the capabilities
is asked first, and leaves room for the devices outside (`InterchangeCorrection.outside_part`); the envelopes
hear it in the same step and give away what is left. Since the next capabilities may be wider, envelopes end
where the intervals end that they were made for; the correction hears those that have not.

Voltages and loadings are what the envelopes keep. A limit of the import that the correction was given
(`slack_mw`), its reserves, and the sudden loss of a microgrid (`isolation_secure`) are kept for what the
correction leaves to devices outside, not for envelopes beyond that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import reduce
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from controllers.contract import Infeasible, Kind, Observation
from controllers.devices import AXES, Device, DeviceState
from controllers.envelopes.allowable import AllowableRegion
from controllers.envelopes.polygons import convex
from controllers.microgrid import Microgrid
from controllers.region import Region
from controllers.site import Site

Array = npt.NDArray[np.float64]

NEVER = datetime.max.replace(tzinfo=UTC)

SLIGHT_V_PU, SLIGHT_PERCENT = 3e-5, 0.03
"""How far beyond a limit what others decide may be and still counts as on it. Whoever decides has a tolerance
of their own (2e-5 pu, 0.02 % in the correction), which the envelopes do not add to."""


@dataclass(frozen=True, slots=True)
class Connection:
    """A microgrid's point of connection, as a device: anything that its tie and its offer allow."""

    microgrid: Microgrid
    curtailable: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return self.microgrid.name

    @property
    def bus(self) -> str:
        return self.microgrid.bus

    @property
    def weight(self) -> float:
        return 1.0

    @property
    def rating_mw(self) -> float:
        return self.microgrid.tie_mw

    @property
    def default(self) -> Region:
        tie = self.microgrid.tie_mw
        return Region.box(p_mw=(-tie, tie), q_mvar=self.microgrid.q_mvar)

    def wish(self, drive: float | None) -> float:
        return 0.0

    def reactive(self, p_mw: float) -> float:
        return 0.0

    def limits(self, state: DeviceState, drive: float | None, every_s: float) -> Region:
        return self.default

    def modes(self, state: DeviceState, drive: float | None, every_s: float) -> tuple[Region, ...]:
        return (self.default,)

    def initial(self) -> DeviceState:
        return DeviceState()

    def advance(self, state: DeviceState, p_mw: float, q_mvar: float, every_s: float) -> DeviceState:
        return DeviceState(p_mw, q_mvar)


class Beside:
    """Those on a site whose injections are not the envelopes' to limit.

    Args:
        site: with or without microgrids.
    """

    def __init__(self, site: Site) -> None:
        self.microgrids = site.microgrids
        behind = {name for microgrid in site.microgrids.values() for name in microgrid.devices}
        self.outside: Mapping[str, Device] = {n: d for n, d in site.devices.items() if n not in behind}
        """devices outside microgrids, by name"""
        connections = {name: Connection(microgrid) for name, microgrid in site.microgrids.items()}
        self.site = (
            replace(site, devices={**self.outside, **connections}, microgrids={}) if connections else site
        )
        """the site with a connection in place of each microgrid and its devices"""

    def __bool__(self) -> bool:
        return bool(self.microgrids)

    @property
    def still(self) -> dict[str, Array]:
        """(1, 2) no exchange of any microgrid."""
        return {name: np.zeros((1, 2)) for name in self.microgrids}

    def given(self, observation: Observation, intervals: Sequence[int]) -> dict[str, Array]:
        """Corners (corners, 2) of what they may inject in any of some intervals, by name.

        Raises:
            Infeasible: capabilities of one microgrid that have no point in common, or no end.
        """
        starts = [observation.time + (k + 1) * self.site.every for k in intervals]
        found = {}
        for name, microgrid in self.microgrids.items():
            corners = [self._exchange(microgrid, observation, start) for start in starts]
            found[name] = convex(np.concatenate(corners))
        return found | self._told(observation, starts)

    def _exchange(self, microgrid: Microgrid, observation: Observation, start: datetime) -> Array:
        regions = list(_capabilities(microgrid.name, observation, start, self.site.every))
        if regions:
            try:
                return reduce(Region.__and__, regions).over(AXES).vertices()
            except (Infeasible, ValueError) as error:
                raise Infeasible(
                    f"microgrid {microgrid.name!r}: its interchange capability from {start:%H:%M:%S} UTC on "
                    f"cannot be kept beside: {error}"
                ) from None
        if not observation.connected.get(microgrid.name, True):
            return np.zeros((1, 2))
        return Connection(microgrid).default.vertices()

    def _told(self, observation: Observation, starts: Sequence[datetime]) -> dict[str, Array]:
        """Points of the devices that decisions about capabilities set."""
        found: dict[str, Array] = {}
        every = self.site.every
        for decision in observation.said.values() if self.microgrids else ():
            first = decision.intervals(decision.time + every, NEVER)[0]
            inside = [first.start <= start < first.end for start in starts]
            if decision.kind is not Kind.AIC or not inside[0]:
                continue
            for name, setpoint in decision.setpoints.items():
                if name in self.outside and setpoint.p_mw is not None:
                    point = np.array([[setpoint.p_mw, setpoint.q_mvar or 0.0]])
                    found[name] = point if all(inside) else np.concatenate([point, np.zeros((1, 2))])
        return found


def _capabilities(name: str, observation: Observation, start: datetime, every: timedelta) -> Iterator[Region]:
    """What decisions say of a microgrid's exchange at an instant; one without a sequel speaks of the first
    interval alone."""
    for decision in observation.said.values():
        if decision.kind is not Kind.AIC:
            continue
        for span in decision.intervals(decision.time + every, NEVER):
            soon = decision.has_sequel or start == observation.time + every
            if soon and span.start <= start < span.end and name in span.regions:
                yield span.regions[name]


def slight(rows: AllowableRegion) -> Array:
    """(rows,) how far what others decide may exceed each row and still count as on it.

    The rows of a loading lie inside of it: they are edges of an inscribed polygon and bound the power at
    rated voltage, where the loading is of the current. Up to S times the upper voltage may be allowed.
    """
    limits, rating = rows.site.limits, rows.site.network.rating_mva[rows.rated]
    low, high = limits.v_pu
    allowed = rating * limits.loading_percent / 100
    inside = np.cos(np.pi / rows.edges)
    loading = allowed * (max(high, 1.0) - inside) + rating * SLIGHT_PERCENT / 100
    n = len(rows.site.network.buses)
    return np.concatenate([
        np.full(n, 2 * high * SLIGHT_V_PU), np.full(n, 2 * low * SLIGHT_V_PU), np.tile(loading, rows.edges)
    ])  # fmt: skip
