"""EnvelopeMethod: what every method of operating envelopes shares.

A method turns the room that the network leaves, `A P + B Q <= W`, into one polygon a device. Everything
around that is here: the room in the coming intervals, what to do when there is none, weights, devices
whose envelopes cannot be changed, capability, fairness, and the decision. A method's own file holds its
mathematics alone, in `share`.

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
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from controllers.contract import Certificate, Decision, Infeasible, Observation, Origin
from controllers.devices import Device, DeviceState
from controllers.envelopes.allowable import ROUNDING, AllowableRegion
from controllers.envelopes.shapes import Shapes
from controllers.fairness import Fairness, jain
from controllers.region import Region
from controllers.site import Site

Array = npt.NDArray[np.float64]

Weights = Literal["contract", "rating", "equal"]
WhenBroken = Literal["strict", "devices", "do_no_harm"]


@dataclass(frozen=True, eq=False)
class Background:
    """Injections of what nobody controls in one interval, without capacitor banks; (buses,) of the
    network."""

    p_mw: Array
    q_mvar: Array


@dataclass(frozen=True, eq=False)
class Room:
    """What the network leaves its devices in one or several coming intervals together."""

    W: Array
    """(rows,) room in each row, never negative; of several intervals the least"""
    reserve: Array
    """(rows,) what was taken off for forecast errors; `W + reserve` is the room at the mean"""
    gamma: Array
    """(devices,) weights, of all devices of the site"""
    backgrounds: tuple[Background, ...]
    """of each interval, at the forecast's mean"""
    positions: Mapping[str, int]
    """of the regulators"""
    fixed: Mapping[str, Array] = field(default_factory=dict)
    """corners (corners, 2) of devices whose envelopes cannot be changed now, by name"""
    broken: str | None = None
    """the row that the background alone exceeds most, under `do_no_harm`"""


@dataclass(frozen=True, eq=False)
class Envelopes:
    """A method's result for one room; everything in the order of `site.devices`."""

    shapes: Shapes
    certificates: tuple[Certificate, ...]
    fairness: Fairness
    origin: Origin


@dataclass
class EnvelopeMethod(ABC):
    """A method, with the options that all methods share.

    Args:
        site: network, devices and limits.
        intervals: how many of the coming intervals an envelope must hold for; for a controller that is
            asked less often than every step, as many as its decisions stay valid.
        weights: entitlement of each device: `contract` is the scenario's `weight` (the rated power where
            none is given), `rating` the rated power, `equal` one for all.
        when_broken: what to do when the background alone exceeds a limit: `strict` has no decision, so
            that devices fall to their defaults; `devices` moves the network operator's regulators first;
            `do_no_harm` treats the limit as just reached, so that no device makes it worse.
        capability: `none` publishes what the network allows; `state` cuts it with what each device can do
            in the coming interval (rating, available power, stored energy).
        price: whether the price of fairness is computed, which takes a linear program a step.

    Raises:
        ValueError: no devices, a weight that is not positive, an option that does not exist.
        Infeasible: (step) the background load alone breaks a limit.
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
    rows: AllowableRegion = field(init=False, repr=False)
    _gamma: Array = field(init=False, repr=False)
    _without: dict[frozenset[str], EnvelopeMethod] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        what = self.acronym
        if not self.site.devices:
            raise ValueError(f"{what}: site {self.site.name!r} has no devices to share among")
        for name, device in self.site.devices.items():
            if not _weight(device, self.weights) > 0:
                raise ValueError(
                    f"{what}: device {name!r} has weight {_weight(device, self.weights)}; give one above 0"
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
        positions = {n: observation.positions.get(n, r.start) for n, r in self.site.regulators.items()}
        backgrounds = tuple(Background(*self.rows.background(observation.forecast.at(i))) for i in intervals)
        W = np.min([self.rows.W(b.p_mw, b.q_mvar, positions) for b in backgrounds], axis=0)
        if fixed:
            W = W - self._taken(fixed)
        broken = None
        if (W < -ROUNDING).any():
            worst = int(np.argmin(W))
            if self.when_broken != "do_no_harm":
                raise Infeasible(
                    f"{self.rows.names[worst]}: broken by {-W[worst]:.4g} before any device injects; "
                    "relieve the network or widen its limits"
                )
            broken = self.rows.names[worst]
        return Room(
            W=np.maximum(W, 0.0),
            reserve=np.zeros_like(W),
            gamma=self._gamma if gamma is None else gamma,
            backgrounds=backgrounds,
            positions=positions,
            fixed=fixed or {},
            broken=broken,
        )

    def _taken(self, fixed: Mapping[str, Array]) -> Array:
        """(rows,) the most that devices with given corners can take of each row."""
        columns = [i for i, name in enumerate(self.site.devices) if name in fixed]
        names = list(self.site.devices)
        taken = np.zeros(len(self.rows.A))
        for i in columns:
            corners = fixed[names[i]]
            form = self.rows.A[:, i, None] * corners[:, 0] + self.rows.B[:, i, None] * corners[:, 1]
            taken += form.max(axis=1)
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
        """How a result shares the room."""
        low, high = shapes.ranges_at_zero
        export, imports = np.maximum(high, 0.0), np.maximum(-low, 0.0)
        up, down = export / room.gamma, imports / room.gamma
        return Fairness(
            export_mw=float(export.sum()),
            import_mw=float(imports.sum()),
            area_mva2=float(shapes.areas.sum()),
            jain_export=jain(up),
            jain_import=jain(down),
            least_export=float(up.min()),
            least_import=float(down.min()),
        )

    def decide(self, observation: Observation, room: Room, found: Envelopes) -> Decision:
        """The decision that publishes a result; what is fixed is not said again."""
        regions = dict(zip(self.site.devices, found.shapes.regions, strict=True))
        certificates = dict(zip(self.site.devices, found.certificates, strict=True))
        return Decision(
            time=observation.time,
            origin=found.origin,
            regions={
                name: self.within(name, region, observation)
                for name, region in regions.items()
                if name not in room.fixed
            },
            certificates={name: c for name, c in certificates.items() if name not in room.fixed},
            fairness=found.fairness,
        )

    def within(self, name: str, region: Region, observation: Observation) -> Region:
        """A device's region, cut with what it can do where that is asked for; never empty by that."""
        if self.capability == "none":
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
