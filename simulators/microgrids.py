"""Microgrids in the plant: their breakers, their balance, and what crosses the point of common coupling.

An island is a microgrid whose breaker is open; the grid sees nothing of it, so what its devices mean to
inject has to sum to zero. That of a connected one has to stay in the capability (AIC) that is in force,
though loads, sun and wind are not what they were forecast to be. Its own controller, which is faster than a
step, sees to that before the devices' states advance, by moving them within their limits, no farther than it
takes:

| in turn | when power is left over                   | when power is lacking                    |
|---------|-------------------------------------------|------------------------------------------|
| 1       | batteries charge more or discharge less   | batteries discharge more or charge less  |
| 2       | engines go down                           | engines go up                            |
| 3       | loads get what they lack                  | sun and wind give what was held back     |
| 4       | sun and wind are curtailed                | interruptible loads are shed             |
| 5       |                                           | of an island: the other loads are shed   |

Of one kind, the devices in the order of the microgrid take as much each as they can. Then reactive power, by
everything but loads, beside the active power that was found. A connected microgrid's devices stay inside what
their instructions or defaults leave them. No engine is started or stopped for it. What an island cannot
balance is counted, and named in an event; so is an exchange above the tie's rating, once for as long as it
lasts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from controllers.contract import ControlError, Kind
from controllers.devices import AXES, Battery, Device, FlexibleLoad, Generator
from controllers.microgrid import Microgrid
from controllers.region import Region
from simulators.agreed import Agreed
from simulators.clock import Tick
from simulators.devices import DeviceReport, Obedience, Proposal

Limits = tuple[float, float]

ISLAND: dict[str, Limits] = dict.fromkeys(AXES, (0.0, 0.0))
"""What an island exchanges."""
BALANCED = 1e-9
"""How far outside its limits an exchange may be [MW, Mvar]: rounding."""
OVER_TIE = 1e-6
"""How far above the rating of the tie an exchange has to be to be told [MW]: what a solver leaves."""


@dataclass(frozen=True, slots=True)
class Breaker:
    """Between a microgrid and the network, in ordered windows of time open.

    The breaker itself waits after a window, not the news of it: an island that has lost its reference has to
    synchronise first, and is an island until it has. So what is measured is always what is.
    """

    isolated: Sequence[tuple[datetime, datetime]] = ()
    """windows in which the network is not to be had, the end left out"""
    resync: timedelta = timedelta(0)
    """how long after a window it stays open"""

    def closed(self, at: datetime) -> bool:
        """Whether the microgrid is connected at an instant."""
        return not any(start <= at < end + self.resync for start, end in self.isolated)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One microgrid over one step; what is not known is `None`."""

    microgrid: str
    connected: bool
    p_mw: float
    """into the network; zero of an island"""
    q_mvar: float
    planned_mw: float | None
    """exchange that its controllers meant to have; `None`: none of them said"""
    pic_low_mw: float | None
    """predicted capability that is in force; `None`: nobody published one"""
    pic_high_mw: float | None
    aic_low_mw: float | None
    """available capability that is in force"""
    aic_high_mw: float | None
    unbalanced_mw: float
    """of an island: power that nobody could take (positive) or give; zero where it is connected"""
    unserved_mw: float
    """what loads wanted and did not get"""
    heat_mw: float | None
    """demand; `None`: it has none"""
    boiler_mw: float | None
    """heat that no engine gave"""
    price_per_mwh: float | None
    cost: float | None
    """of the step, in the currency of the prices: engines and their starts, wear, loads not served, sun and
    wind not used, and boiler, less what the exchange earned"""


class MicrogridTwin:
    """One simulated microgrid: its breaker, its own fast controller, its account.

    Args:
        microgrid: whose.
        devices: of the site, by name.
        breaker: when it is open.
        regulates: whether it keeps to the capability while it is connected.
        every_s: length of a step [s].
        event: takes a time, a word and what belongs to it.
    """

    def __init__(
        self,
        microgrid: Microgrid,
        devices: Mapping[str, Device],
        breaker: Breaker,
        every_s: float,
        event: Callable[..., None],
        *,
        regulates: bool = True,
    ) -> None:
        self.microgrid = microgrid
        self.counts: Counter[str] = Counter()
        self._devices = {name: devices[name] for name in microgrid.devices}
        self._breaker, self._hours, self._event = breaker, every_s / 3600, event
        self._regulates, self._closed, self._over = regulates, True, False
        self._left = (0.0, 0.0)
        self._said: dict[str, float | None] = {}
        self._ran = {name: device.initial().p_mw for name, device in self._engines()}

    def _engines(self) -> list[tuple[str, Generator]]:
        return [(name, one) for name, one in self._devices.items() if isinstance(one, Generator)]

    def memory(self) -> object:
        """Whether its breaker was closed, and what its engines gave, for `recall`."""
        return self._closed, dict(self._ran)

    def recall(self, memory: Any) -> None:
        """Go on from what `memory` has returned."""
        self._closed, self._ran = memory[0], dict(memory[1])

    def settle(
        self, tick: Tick, proposals: Mapping[str, Proposal], agreed: Agreed | None = None
    ) -> dict[str, Proposal]:
        """What its devices hold in a step, of what each proposes.

        Args:
            agreed: what controllers said of it; nothing if not given.
        """
        own = {name: proposals[name] for name in self._devices}
        closed = self._breaker.closed(tick.time)
        if closed is not self._closed:
            what = "breaker-closed" if closed else "breaker-opened"
            self.counts[what] += 1
            self._event(tick.time, what, step=tick.step, microgrid=self.microgrid.name)
        self._closed, self._left = closed, (0.0, 0.0)
        capability = self._hear(agreed or Agreed(), tick.time)
        if closed and (capability is None or not self._regulates):
            self._watch_tie(tick, own)
            return own
        band = ISLAND if not closed or capability is None else capability
        settled = self._reactive(self._active(own, band["p_mw"]), band["q_mvar"])
        self._watch_tie(tick, settled)
        p_mw, q_mvar = (sum(getattr(one, axis) for one in settled.values()) for axis in AXES)
        if not closed and max(abs(p_mw), abs(q_mvar)) > BALANCED:
            self._left = p_mw, q_mvar
            self.counts["island-unbalanced"] += 1
            self._event(
                tick.time,
                "island-unbalanced",
                step=tick.step,
                microgrid=self.microgrid.name,
                why=f"{p_mw:+.6g} MW and {q_mvar:+.6g} Mvar are left, which none of its devices can take; a "
                "larger battery, or an engine with a lower least power, could",
            )
        return {name: _told(own[name], settled[name]) for name in own}

    def _watch_tie(self, tick: Tick, held: Mapping[str, Proposal]) -> None:
        """Tell when the exchange begins to be above the tie's rating."""
        p_mw, rating = sum(one.p_mw for one in held.values()), self.microgrid.tie_mw
        over = self._closed and abs(p_mw) > rating + OVER_TIE
        if over and not self._over:
            self.counts["tie-exceeded"] += 1
            self._event(
                tick.time,
                "tie-exceeded",
                step=tick.step,
                microgrid=self.microgrid.name,
                why=f"it exchanges {p_mw:+.6g} MW over a tie of {rating:g} MW, and what its devices are "
                "told does not prevent it",
            )
        self._over = over

    def _hear(self, agreed: Agreed, at: datetime) -> dict[str, Limits] | None:
        """What was said of it for this step; the capability's limits by axis, if there is one."""
        name = self.microgrid.name
        pic, aic = (_limits(agreed.capability(name, kind, at)) for kind in (Kind.PIC, Kind.AIC))
        self._said = {"planned_mw": agreed.planned(name, at)}
        for kind, limits in (("pic", pic), ("aic", aic)):
            low, high = (None, None) if limits is None else limits["p_mw"]
            self._said |= {f"{kind}_low_mw": low, f"{kind}_high_mw": high}
        return aic

    def _active(self, own: dict[str, Proposal], band: Limits) -> dict[str, Proposal]:
        left, found = _beyond(sum(one.p_mw for one in own.values()), band), dict(own)
        for name in self._in_turn(surplus=left > 0):
            if abs(left) <= BALANCED:
                break
            was = found[name]
            room = self._room(was)
            low, high = room.limits("p_mw")
            p_mw = min(max(was.p_mw - left, min(low, was.p_mw)), max(high, was.p_mw))
            found[name] = _at(was, room, p_mw, was.q_mvar)
            left += found[name].p_mw - was.p_mw
        return found

    def _reactive(self, own: dict[str, Proposal], band: Limits) -> dict[str, Proposal]:
        left, found = _beyond(sum(one.q_mvar for one in own.values()), band), dict(own)
        for name in self._in_turn(surplus=False):
            if abs(left) <= BALANCED:
                break
            if not isinstance(self._devices[name], FlexibleLoad):  # whose power factor is fixed
                was = found[name]
                found[name] = _at(was, self._room(was), was.p_mw, was.q_mvar - left)
                left += found[name].q_mvar - was.q_mvar
        return found

    def _room(self, proposal: Proposal) -> Region:
        return proposal.allowed if self._closed else proposal.able

    def _in_turn(self, *, surplus: bool) -> list[str]:
        """The devices that may move, in the order of the table."""

        def turn(name: str) -> int:
            device = self._devices[name]
            if isinstance(device, Battery):
                return 1
            if isinstance(device, Generator):
                return 2
            if not isinstance(device, FlexibleLoad):
                return 5 if surplus else 3
            return 4 if device.interruptible else 3 if surplus else 5

        return sorted((name for name in self._devices if turn(name) < 5 or self._may_last(name)), key=turn)

    def _may_last(self, name: str) -> bool:
        """Whether a device may be the last resort: loads of a connected microgrid are no such."""
        return not (self._closed and isinstance(self._devices[name], FlexibleLoad))

    def exchange(
        self,
        proposals: Mapping[str, Proposal],
        reports: Mapping[str, DeviceReport],
        drive: Mapping[str, float],
    ) -> Exchange:
        """The account of the step that was settled last.

        Args:
            proposals: with what each device would do if nobody limited it.
            reports: what the devices did.
            drive: values of the profiles now, the price's [$/MWh] and the heat's among them.
        """
        grid, unserved, spilled, warm, spent, started = self.microgrid, 0.0, 0.0, 0.0, 0.0, 0.0
        for name, device in self._devices.items():
            p_mw, wish = reports[name].p_mw, proposals[name].wish
            if isinstance(device, FlexibleLoad):
                lacking = p_mw - wish if p_mw - wish > BALANCED else 0.0
                unserved += lacking
                spent += lacking * (device.cost_per_mwh if device.interruptible else grid.shed_cost_per_mwh)
            elif isinstance(device, Generator):
                spent += device.cost_per_mwh * p_mw
                warm += device.heat_ratio * p_mw
                if device.runs(p_mw) and not device.runs(self._ran[name]):
                    started += device.start_up_cost
                self._ran[name] = p_mw
            elif isinstance(device, Battery):
                spent += device.cost_per_mwh * abs(p_mw)
            else:
                spilled += reports[name].curtailed_mw or 0.0
        spent += spilled * grid.spill_cost_per_mwh
        heat = None if grid.heat is None else drive.get(grid.heat)
        boiler = None if heat is None else max(heat - warm, 0.0)
        price = None if grid.price is None else drive.get(grid.price)
        p_mw, q_mvar = (
            sum(getattr(reports[name], axis) for name in self._devices) if self._closed else 0.0
            for axis in AXES
        )
        complete = (grid.heat is None or boiler is not None) and (grid.price is None or price is not None)
        earned = (price or 0.0) * p_mw
        cost = (spent + (boiler or 0.0) * grid.boiler_cost_per_mwh - earned) * self._hours + started
        return Exchange(
            microgrid=grid.name,
            connected=self._closed,
            p_mw=p_mw,
            q_mvar=q_mvar,
            **self._said,
            unbalanced_mw=self._left[0],
            unserved_mw=unserved,
            heat_mw=heat,
            boiler_mw=boiler,
            price_per_mwh=price,
            cost=cost if complete else None,
        )


def _limits(region: Region | None) -> dict[str, Limits] | None:
    """By axis; nothing for a region without a point, which cannot be kept."""
    if region is None:
        return None
    try:
        both = {axis: region.limits(axis) for axis in AXES}
        return {axis: (low + 0.0, high + 0.0) for axis, (low, high) in both.items()}  # no -0.0 in tables
    except ControlError:
        return None


def _beyond(value: float, band: Limits) -> float:
    """How far a value is above a band, or below it (negative)."""
    return value - min(max(value, band[0]), band[1])


def _at(proposal: Proposal, within: Region, p_mw: float, q_mvar: float) -> Proposal:
    """The proposal moved to `p_mw`, with the reactive power that is closest to `q_mvar` there."""
    within = within.over(AXES)
    slope, room = within.A[:, 1], within.b - within.A[:, 0] * p_mw
    low = float((room[slope < -1e-12] / slope[slope < -1e-12]).max(initial=-np.inf))
    high = float((room[slope > 1e-12] / slope[slope > 1e-12]).min(initial=np.inf))
    # At a corner rounding may leave nothing in between; the nearest point of the region takes it off.
    p, q = within.nearest([p_mw, min(max(q_mvar, low), high)])
    return replace(proposal, p_mw=float(p), q_mvar=float(q))


def _told(before: Proposal, after: Proposal) -> Proposal:
    moved = max(abs(after.p_mw - before.p_mw), abs(after.q_mvar - before.q_mvar)) > BALANCED
    return replace(after, obedience=Obedience.BALANCING) if moved else after
