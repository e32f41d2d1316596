"""Room: what the network leaves the devices that share it, and what a method makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from controllers.contract import Certificate, Origin
from controllers.envelopes.shapes import Shapes
from controllers.fairness import Fairness

Array = npt.NDArray[np.float64]


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
    """corners (corners, 2) of devices whose envelopes cannot be changed now, by name; those of `given` too"""
    given: Mapping[str, Array] = field(default_factory=dict)
    """the same of what others decide about: microgrids, and devices that are told setpoints"""
    broken: str | None = None
    """the row that the background alone exceeds most, under `do_no_harm`"""


@dataclass(frozen=True, eq=False)
class Envelopes:
    """A method's result for one room; everything in the order of `site.devices`."""

    shapes: Shapes
    certificates: tuple[Certificate, ...]
    fairness: Fairness
    origin: Origin
