"""EnvelopeMethod: what every method of operating envelopes shares.

A method turns the room that the network leaves, `A P + B Q <= W`, into one polygon a device. Everything
around that is here: the room in the coming intervals, what to do when there is none, weights, devices
whose envelopes cannot be changed, capability, fairness, and the decision. A method's own file holds its
mathematics alone, in `share`. Beside microgrids, whose exchange others limit, see `beside`.

| symbol | here    | meaning                                                    | unit         |
|--------|---------|------------------------------------------------------------|--------------|
| W      | `W`     | room left of each limit at zero injection of the devices   | pu^2 or MVA  |
| gamma  | `gamma` | weight of each device; only ratios matter                  | 1 or MW      |
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from controllers.contract import Certificate, Decision, Infeasible, Observation, Origin
from controllers.devices import Device, DeviceState, StaticVarCompensator
from controllers.envelopes.allowable import ROUNDING, AllowableRegion
from controllers.envelopes.beside import Beside, slight
from controllers.envelopes.margins import Margin, Reserve
from controllers.envelopes.packing import Packing
from controllers.envelopes.positions import LEAST_MOVES, Positions
from controllers.envelopes.room import Background as Background
from controllers.envelopes.room import Envelopes as Envelopes
from controllers.envelopes.room import Room as Room
from controllers.envelopes.shapes import Shapes
from controllers.fairness import Fairness, jain, price
from controllers.region import Region
from controllers.regulators import standing
from controllers.site import Site

Array = npt.NDArray[np.float64]

PRICED = 5_000_000
"""Coefficients of the network's rows up to which the price of fairness is computed."""

RELIEVE = "relieve the network or widen its limits"
ANNOUNCE_LESS = "keep back more for forecast errors (margin) or announce fewer intervals"

Weights = Literal["contract", "rating", "equal"]
WhenBroken = Literal["strict", "devices", "do_no_harm"]


@dataclass
class EnvelopeMethod(ABC):
    """A method, with the options that all methods share.

    Args:
        site: network, devices and limits; a method's `site` has a connection in place of each microgrid.
        intervals: how many of the coming intervals an envelope must hold for. A scenario gives as many as
            there are steps until it is asked again, unless it says more.
        weights: entitlement of each device: `contract` is the scenario's `weight` (the rated power where
            none is given), `rating` the rated power, `equal` one for all.
        when_broken: what to do when the background alone exceeds a limit: `strict` has no decision, so
            that devices fall to their defaults; `devices` moves the network operator's regulators first;
            `do_no_harm` treats the limit as just reached, so that no device makes it worse.
        capability: `none` publishes what the network allows; `state` cuts it with what each device can do
            in the coming interval (rating, available power, stored energy).
        margin: what to keep back of each row's room for forecast errors of the loads, e.g.
            `{kind: gaussian, epsilon: 0.05, correlation: 0.5}`, `{kind: cantelli, ...}` or
            `{kind: interval, sigmas: 2.0}` (`controllers.envelopes.margins`); nothing if not given.
        price: whether the price of fairness is computed, which takes a linear program a step; beyond `PRICED`
            coefficients, as 1,000 buses with 400 devices have, it is not in any case.

    Raises:
        ValueError: no devices outside microgrids, a weight that is not positive, an option that does not
            exist.
        Infeasible: (step) the background load alone breaks a limit, or does with the microgrids' exchanges.
        SolverFailed: (step) the solver had no answer.
    """

    acronym: ClassVar[str]
    """the paper's name for it"""
    active_only: ClassVar[bool] = False
    """whether its envelopes hold Q = 0"""

    site: Site
    intervals: int = 1
    weights: Weights = "contract"
    when_broken: WhenBroken = "strict"
    capability: Literal["none", "state"] = "none"
    price: bool = True
    margin: Mapping[str, Any] | None = None
    rows: AllowableRegion = field(init=False, repr=False)
    _beside: Beside = field(init=False, repr=False)
    _gamma: Array = field(init=False, repr=False)
    _without: dict[frozenset[str], EnvelopeMethod] = field(init=False, repr=False)
    _positions: Positions | None = field(init=False, repr=False, default=None)
    _packing: Packing | None = field(init=False, repr=False, default=None)
    _reserve: Reserve | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        what = self.acronym
        self._beside = Beside(self.site)
        if not self._beside.outside:
            where = " outside microgrids" if self._beside else ""
            raise ValueError(f"{what}: site {self.site.name!r} has no devices{where} to share among")
        self.site = self._beside.site
        for name, device in self.site.devices.items():
            if not _weight(device, self.weights) > 0:
                raise ValueError(
                    f"{what}: device {name!r} has weight {_weight(device, self.weights)}; give one above 0"
                )
            if isinstance(device, StaticVarCompensator):
                raise ValueError(
                    f"{what}: device {name!r} is a static var compensator, which has no active power to "
                    "share; leave it out, or put it into a microgrid"
                )
            if self.active_only and device.reactive(1.0):
                raise ValueError(
                    f"{what}: device {name!r} cannot hold Q = 0, which the method assumes; give it "
                    "power_factor 1"
                )
        for option, allowed in (
            ("weights", ("contract", "rating", "equal")),
            ("when_broken", ("strict", "devices", "do_no_harm")),
            ("capability", ("none", "state")),
        ):
            if getattr(self, option) not in allowed:
                raise ValueError(
                    f"{what}: {option} {getattr(self, option)!r} is none of {', '.join(allowed)}"
                )
        if self.intervals < 1:
            raise ValueError(f"{what}: intervals {self.intervals} must be at least 1")
        self.rows = AllowableRegion(self.site)
        if self.margin is not None:
            self._reserve = Reserve(self.rows, Margin.of(self.margin))
        self._gamma = np.array([_weight(device, self.weights) for device in self.site.devices.values()])
        self._without = {}

    @abstractmethod
    def share(self, W: Array, gamma: Array) -> Shapes:
        """The method itself: one polygon a device, such that all may use theirs at the same time.

        Args:
            W: (rows,) room in each row, not negative.
            gamma: (devices,) weights, positive.

        Raises:
            Infeasible, SolverFailed: there is none.
        """

    def step(self, observation: Observation) -> Decision:
        room = self.room(observation)
        return self.decide(observation, room, self.envelopes(room))

    def room(
        self,
        observation: Observation,
        *,
        intervals: Sequence[int] | None = None,
        gamma: Array | None = None,
        fixed: Mapping[str, Array] | None = None,
    ) -> Room:
        """The room that an observation leaves.

        Args:
            intervals: which of the forecast's intervals; the first `self.intervals` if not given.
            gamma: (devices,) weights instead of the method's own.
            fixed: corners of devices whose envelopes cannot be changed.

        Raises:
            Infeasible: the background load alone, or with what is fixed, breaks a limit.
        """
        if intervals is None:
            intervals = range(max(1, min(self.intervals, len(observation.forecast.mean))))
        positions = standing(self.site.regulators, observation.positions)
        backgrounds = tuple(Background(*self.rows.background(observation.forecast.at(i))) for i in intervals)
        given = self._beside.given(observation, intervals)
        if given.keys() >= self.site.devices.keys():
            raise Infeasible(f"{self.acronym}: every device outside microgrids is told a setpoint")
        fixed = {**(fixed or {}), **given}
        beside = self._taken(given)
        taken = self._taken(fixed) - beside
        reserve = self._kept_back(observation, intervals)
        if self.when_broken == "devices":
            positions = self._relieved(
                backgrounds, beside + taken + reserve, positions, self._gamma if gamma is None else gamma
            )
        mean = np.min([self.rows.W(b.p_mw, b.q_mvar, positions) for b in backgrounds], axis=0) - beside
        if given:  # what others decide was checked by them, and is on the limit up to their tolerance
            mean = np.where((mean < 0) & (mean >= -slight(self.rows)), 0.0, mean)
        mean = mean - taken
        W = mean - reserve
        if reserve.any() and (W < -ROUNDING).any():
            reserve[self.rows.dead] = 0.0  # what no device can influence is not theirs to keep free
            W = mean - reserve
        broken = None
        if (W < -ROUNDING).any():
            # What may be forgiven is what the background does, not what the fixed envelopes add to it.
            harm = np.where(taken > 0, W - np.minimum(W + taken, 0.0), 0.0)
            harmed = bool((harm < -ROUNDING).any())
            worst = int(np.argmin(harm if harmed else W))
            if self.when_broken != "do_no_harm" or harmed:
                kept = f", {reserve[worst]:.4g} of it for forecast errors" if reserve[worst] else ""
                exchanges = " with the microgrids' exchanges" if given else ""
                why = f"before any device injects{exchanges}{kept}; {RELIEVE}"
                # What is fixed is to blame where the background alone would do, or is forgiven.
                if taken[worst] > 0 and (
                    self.when_broken == "do_no_harm" or W[worst] + taken[worst] >= -ROUNDING
                ):
                    why = f"with the envelopes that were announced before; {ANNOUNCE_LESS}"
                raise Infeasible(f"{self.rows.names[worst]}: broken by {-W[worst]:.4g} {why}")
            broken = self.rows.names[worst]
        return Room(
            W=np.maximum(W, 0.0),
            reserve=np.maximum(mean, 0.0) - np.maximum(W, 0.0),
            gamma=self._gamma if gamma is None else gamma,
            backgrounds=backgrounds,
            positions=positions,
            fixed=fixed,
            given=given,
            broken=broken,
        )

    def _kept_back(self, observation: Observation, intervals: Sequence[int]) -> Array:
        """(rows,) the margin for forecast errors; of several intervals the greatest."""
        if self._reserve is None:
            return np.zeros(len(self.rows))
        forecast = observation.forecast
        spreads = [
            dict(zip(forecast.names, forecast.std[i].tolist(), strict=True)) if i < len(forecast.std) else {}
            for i in intervals
        ]
        return np.asarray(np.max([self._reserve(std_mw) for std_mw in spreads], axis=0))

    def _relieved(
        self, backgrounds: Sequence[Background], taken: Array, present: dict[str, int], gamma: Array
    ) -> dict[str, int]:
        """Positions of the regulators that give room, reached by the fewest moves; the present ones where
        they give it, or where none does."""
        if self._positions is None:
            self._positions = Positions(self.rows)
        every = self._positions
        W = np.min([every.W(b.p_mw, b.q_mvar, present) for b in backgrounds], axis=0) - taken
        if not (W < -ROUNDING).any():
            return present
        try:
            return dict(every.best(W, present, gamma, cost_mw=LEAST_MOVES).positions)
        except Infeasible:
            return present  # where it is broken is said for these

    def _taken(self, fixed: Mapping[str, Array]) -> Array:
        """(rows,) the most that devices with given corners can take of each row."""
        taken = np.zeros(len(self.rows))
        if not fixed:
            return taken
        names = [name for name in self.site.devices if name in fixed]
        A, B = self.rows.columns([i for i, name in enumerate(self.site.devices) if name in fixed])
        for i, name in enumerate(names):
            p, q = fixed[name].T
            taken += (A[:, i, None] * p + B[:, i, None] * q).max(axis=1)
        return taken

    def shapes(self, room: Room, W: Array) -> Shapes:
        """Polygons of all devices, those that are fixed among them, for a room W of each row."""
        if not room.fixed:
            return self.share(W, room.gamma)
        names = list(self.site.devices)
        free = [i for i, name in enumerate(names) if name not in room.fixed]
        key = frozenset(room.fixed)
        shapes = None
        if free:
            if key not in self._without:
                devices = {names[i]: self.site.devices[names[i]] for i in free}
                self._without[key] = replace(self, site=replace(self.site, devices=devices))
            shapes = self._without[key].share(W, room.gamma[free])
        widest = max(
            [0 if shapes is None else shapes.corners.shape[1], *(len(c) for c in room.fixed.values())]
        )
        corners = np.empty((len(names), widest, 2))
        binding: list[str | None] = ["not heard of: its last region stays"] * len(names)
        for i, name in enumerate(names):
            own = room.fixed[name] if name in room.fixed else shapes.corners[free.index(i)]  # type: ignore[union-attr]
            corners[i, : len(own)], corners[i, len(own) :] = own, own[-1]
            if name not in room.fixed and shapes is not None:
                binding[i] = shapes.binding[free.index(i)]
        return Shapes(corners, tuple(binding))

    def envelopes(self, room: Room) -> Envelopes:
        """The method's result for a room.

        Raises:
            Infeasible, SolverFailed: there is none.
        """
        shapes = self.shapes(room, room.W)
        certificates = tuple(Certificate(binding=text) for text in shapes.binding)
        origin = Origin.OPTIMAL if room.broken is None else Origin.DEGRADED
        return Envelopes(shapes, certificates, self.fairness(shapes, room), origin)

    def fairness(self, shapes: Shapes, room: Room) -> Fairness:
        """How a result shares the room.

        Raises:
            SolverFailed: (with `price`) the linear program of the greatest sum had no answer.
        """
        low, high = shapes.ranges_at_zero
        export, imports = np.maximum(high, 0.0), np.maximum(-low, 0.0)
        cost = None
        # A method that looks at no network leaves no room.
        if self.price and 0 < len(room.W) * len(export) <= PRICED:
            if self._packing is None:
                most = self.most()
                caps = np.full(2 * len(export), np.inf) if most is None else most.ravel()
                # The worst corner of the box in every row; the rows do not change, their room does.
                A = self.rows.A
                self._packing = Packing(np.hstack([np.maximum(A, 0.0), np.maximum(-A, 0.0)]), caps)
            free = np.tile([name not in room.fixed for name in self.site.devices], 2)
            cost = price(
                np.concatenate([export, imports])[free],
                self._packing.U[:, free],
                self._packing.room(room.W),
            )
        ours = np.array([name not in room.given for name in self.site.devices])
        export, imports, gamma = export[ours], imports[ours], room.gamma[ours]
        up, down = export / gamma, imports / gamma
        return Fairness(
            export_mw=float(export.sum()),
            import_mw=float(imports.sum()),
            area_mva2=float(shapes.areas[ours].sum()),
            jain_export=jain(up),
            jain_import=jain(down),
            least_export=float(up.min()),
            least_import=float(down.min()),
            price=cost,
        )

    def most(self) -> Array | None:
        """(2, devices) greatest export and import [MW] that the method gives each device in any case;
        `None`: the network alone limits them."""
        return None

    def decide(self, observation: Observation, room: Room, found: Envelopes) -> Decision:
        """The decision that publishes a result; what is fixed is not said again."""
        regions = dict(zip(self.site.devices, found.shapes.regions, strict=True))
        certificates = dict(zip(self.site.devices, found.certificates, strict=True))
        observed = standing(self.site.regulators, observation.positions)
        return Decision(
            time=observation.time,
            origin=found.origin,
            # The microgrids' next capabilities may leave less; who looks at no interval says no end.
            until=observation.time + (len(room.backgrounds) + 1) * self.site.every
            if self._beside and room.backgrounds
            else None,
            positions={name: at for name, at in room.positions.items() if at != observed[name]},
            regions={
                name: self.within(name, region, observation)
                for name, region in regions.items()
                if name not in room.fixed
            },
            certificates={name: c for name, c in certificates.items() if name not in room.fixed},
            fairness=found.fairness,
        )

    def within(self, name: str, region: Region, observation: Observation) -> Region:
        """A device's region, cut with what it can do where that is asked for; never empty by that. What one
        that is silent can do nobody knows."""
        if self.capability == "none" or name in observation.silent_since:
            return region
        device = self.site.devices[name]
        drive = None
        available = observation.forecast.at(0).get(name)
        if available is not None and device.rating_mw:
            drive = abs(available) / device.rating_mw
        elif device.curtailable:
            drive = 1.0  # nothing is known of it: all of its rating may be there
        state = DeviceState(
            observation.p_mw.get(name, 0.0), observation.q_mvar.get(name, 0.0), observation.e_mwh.get(name)
        )
        both = region & device.limits(state, drive, self.site.every / timedelta(seconds=1))
        try:
            both.nearest([0.0, 0.0])
        except Infeasible:
            return region  # what it cannot avoid: the device comes as close as it can
        return both


def _weight(device: Device, weights: Weights) -> float:
    match weights:
        case "contract":
            return device.weight
        case "rating":
            return device.rating_mw
    return 1.0
