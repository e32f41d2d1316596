"""Outside: how much room the correction leaves to devices outside microgrids.

Without it they are where they are forecast or measured to be, which holds where nobody moves them. Beside
envelopes, which are made after the correction and move them, each counts with everything between

| bound                                        | why                                                      |
|----------------------------------------------|----------------------------------------------------------|
| nothing                                      | every envelope holds the origin                          |
| its default                                  | it obeys that whenever no envelope has reached it        |
| a part of its rating, the ways it can inject | what envelopes then have to give, however the day is     |
| an envelope that is in force in the interval | one that was made for several intervals still stands     |

as a box of P and Q: at its lower end in the copy `dn` of the network, at its upper end in `up`. The copy of
the schedule has it where it is forecast or measured, or as near to that as the box allows. Reserves are for
the microgrids' adjustments and leave it there; what these devices do, as what loads do, is the slack bus's
to balance, within the limits of its import.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt

from controllers.contract import Infeasible, Kind, Observation
from controllers.devices import (
    AXES,
    Device,
    FlexibleLoad,
    Generator,
    PvInverter,
    StaticVarCompensator,
    WindTurbine,
)
from controllers.interchange.reading import measured
from controllers.region import Region
from controllers.site import Site

Array = npt.NDArray[np.float64]
Box = tuple[tuple[float, float], tuple[float, float]]
"""Least and greatest P [MW], least and greatest Q [Mvar]."""

NEVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, eq=False)
class Moves:
    """How far the devices at each bus may be from where `Case` has them; downwards first, then upwards."""

    p_mw: Array
    q_mvar: Array
    """(2, H, n)"""
    slack_mw: Array
    """(2, H) at the slack bus"""

    @property
    def total(self) -> Array:
        """(2, H, 1) sums over all buses [MW]."""
        return np.asarray((self.p_mw.sum(axis=2) + self.slack_mw)[..., None])


class Outside:
    """Devices that envelopes move.

    Args:
        devices: of the site, neither in a microgrid nor the network operator's.
        part: of their ratings, that is always left to them.

    Raises:
        ValueError: a default that has no end.
    """

    def __init__(self, site: Site, devices: Sequence[Device], part: float, horizon: int) -> None:
        self._site, self._devices, self.H = site, tuple(devices), horizon
        self._own = {device.name: left(device, part) for device in devices}

    def put(
        self, observation: Observation, ahead: Mapping[str, Array], p: Array, q: Array, slack: Array
    ) -> Moves:
        """Adds to `p`, `q` (H, n) and `slack` (H,) where the devices are, and tells how far they may go."""
        network, n = self._site.network, p.shape[1]
        moves = Moves(np.zeros((2, self.H, n)), np.zeros((2, self.H, n)), np.zeros((2, self.H)))
        standing = self._standing(observation)
        for device in self._devices:
            name = device.name
            boxes = [_hull([self._own[name], *standing.get((name, t), ())]) for t in range(self.H)]
            (p_low, p_high), (q_low, q_high) = (np.array([box[k] for box in boxes]).T for k in (0, 1))
            # All of the box counts, so where in it nobody knows matters to no limit.
            known = ahead.get(name, np.full(self.H, measured(observation.p_mw, name) or 0.0))
            p_mw = np.clip(known, p_low, p_high)
            q_mvar = np.clip([device.reactive(x) for x in p_mw.tolist()], q_low, q_high)
            bus = network.index(device.bus)
            if bus is None:
                slack += p_mw
                moves.slack_mw[:] += p_low - p_mw, p_high - p_mw
                continue
            p[:, bus] += p_mw
            q[:, bus] += q_mvar
            moves.p_mw[:, :, bus] += p_low - p_mw, p_high - p_mw
            moves.q_mvar[:, :, bus] += q_low - q_mvar, q_high - q_mvar
        return moves

    def _standing(self, observation: Observation) -> dict[tuple[str, int], list[Box]]:
        """Envelopes that are in force in the coming intervals, by device and interval."""
        every, found = self._site.every, dict[tuple[str, int], list[Box]]()
        for decision in observation.said.values():
            if decision.kind is not Kind.ENVELOPE:
                continue
            for span in decision.intervals(decision.time + every, NEVER):
                for t in range(self.H):
                    start = observation.time + (t + 1) * every
                    if not (span.start <= start < span.end and (t == 0 or decision.has_sequel)):
                        continue
                    for name in span.regions.keys() & self._own.keys():
                        found.setdefault((name, t), []).append(_box(name, span.regions[name]))
        return found


def _box(name: str, envelope: Region) -> Box:
    """The box around an envelope.

    Raises:
        Infeasible: it is not over P and Q, or has no end.
    """
    try:
        p, q = (envelope.over(AXES).limits(axis) for axis in AXES)
    except ValueError as error:
        raise Infeasible(f"the envelope of device {name!r}: {error}") from None
    if not np.isfinite([p, q]).all():
        raise Infeasible(
            f"the envelope of device {name!r} has no end, so no room beside it is safe; limit p_mw and q_mvar"
        )
    return p, q


def left(device: Device, part: float) -> Box:
    """What a device may do without an envelope, and what it is left of its rating.

    Raises:
        ValueError: its default has no end.
    """
    default = device.default.over(AXES)
    ends = [default.limits(axis) for axis in AXES]
    if not np.isfinite(ends).all():
        raise ValueError(
            f"interchange correction: the default of device {device.name!r} has no end, so no room beside it "
            "is safe; limit p_mw and q_mvar"
        )
    if isinstance(device, FlexibleLoad):  # whatever its default allows, it keeps its power factor
        low = min(max(ends[0][0], -device.p_mw), -device.firm_mw)
        ends = [(low, max(low, min(ends[0][1], -device.firm_mw))), (0.0, 0.0)]
    least, most = _ways(device)
    p_low, p_high = min(ends[0][0], part * least, 0.0), max(ends[0][1], part * most, 0.0)
    brought = [device.reactive(p_low), device.reactive(p_high)]
    return (p_low, p_high), (min(ends[1][0], 0.0, *brought), max(ends[1][1], 0.0, *brought))


def _ways(device: Device) -> tuple[float, float]:
    """Least and greatest injection that a device's rating allows [MW]."""
    match device:
        case PvInverter() | WindTurbine() | Generator():
            return 0.0, device.rating_mw
        case FlexibleLoad():
            return -device.rating_mw, 0.0
        case StaticVarCompensator():
            return 0.0, 0.0
    return -device.rating_mw, device.rating_mw


def _hull(boxes: Sequence[Box]) -> Box:
    p, q = ([box[k] for box in boxes] for k in (0, 1))
    return (min(a for a, _ in p), max(b for _, b in p)), (min(a for a, _ in q), max(b for _, b in q))
