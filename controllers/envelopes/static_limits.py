"""Fixed limits: what is done without envelopes, to compare with. They do not look at the network.

| symbol | here    | meaning                                                             | unit |
|--------|---------|---------------------------------------------------------------------|------|
| S_i    |         | apparent power that a device can reach                              | MVA  |
| P_i    |         | rated power of a device                                             | MW   |
| s      | `part`  | part of the rated power that everybody may use at any time          | 1    |
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from controllers.contract import Decision, Observation
from controllers.devices import SIDES, Device
from controllers.envelopes.method import EnvelopeMethod, Room
from controllers.envelopes.shapes import Shapes
from controllers.rating import apparent_mva

Array = npt.NDArray[np.float64]


@dataclass
class FixedLimits(EnvelopeMethod):
    """Limits that are the same whatever the network has room for; so evenness has no price to compute."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.price = False

    def share(self, W: Array, gamma: Array) -> Shapes:
        """One polygon a device; neither `W` nor `gamma` matters."""
        return self.fixed(list(self.site.devices.values()))

    @abstractmethod
    def fixed(self, devices: list[Device]) -> Shapes:
        """One polygon a device."""

    def step(self, observation: Observation) -> Decision:
        # Whoever does not look at the network has an answer where the background alone breaks a limit.
        nothing = np.zeros(0)
        given = self._beside.still
        room = Room(
            W=nothing,
            reserve=nothing,
            gamma=self._gamma,
            backgrounds=(),
            positions={},
            fixed=given,
            given=given,
        )
        return self.decide(observation, room, self.envelopes(room))


@dataclass
class Unlimited(FixedLimits):
    """No control: every device may do all that it can, P^2 + Q^2 <= S^2.

    A polygon around the circle is published, so that no point of it is cut. Nothing is safe about it.

    Args:
        others: see `EnvelopeMethod`; weights only matter for the fairness that is reported.

    Raises:
        ValueError: see `EnvelopeMethod`.
    """

    acronym: ClassVar[str] = "none"

    def fixed(self, devices: list[Device]) -> Shapes:
        angle = 2 * np.pi * np.arange(SIDES) / SIDES
        unit = np.column_stack([np.cos(angle), np.sin(angle)]) / np.cos(np.pi / SIDES)
        s_mva = np.array([apparent_mva(device) for device in devices])
        return Shapes.scaled(unit, s_mva, "its own capability")


@dataclass
class StaticLimits(FixedLimits):
    """Static limits: every device may use the same share of its rated power at any time, Q = 0; where its
    active power brings reactive power along (a load's power factor), as much of that as the share brings.

    The usual practice for new connections. The share is a guess made once: too large on the worst day,
    too small on all others.

    Args:
        part: of the rated power, for export and for import, in (0, 1].
        others: see `EnvelopeMethod`; weights only matter for the fairness that is reported.

    Raises:
        ValueError: a part outside (0, 1]; see `EnvelopeMethod`.
    """

    acronym: ClassVar[str] = "static"

    part: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.part <= 1:
            raise ValueError(f"static: part {self.part:g} must lie in (0, 1]; 0.3 is 30 % of each rating")

    def fixed(self, devices: list[Device]) -> Shapes:
        most_mw = np.array([self.part * device.rating_mw for device in devices])
        pairs = zip(devices, most_mw.tolist(), strict=True)
        most_mvar = np.array([abs(device.reactive(p_mw)) for device, p_mw in pairs])
        binding = f"a fixed {self.part:.0%} of its rating"
        if not most_mvar.any():
            return Shapes.ranges(-most_mw, most_mw, binding)
        return Shapes.boxes((-most_mw, most_mw), (0.0 - most_mvar, most_mvar), binding)
