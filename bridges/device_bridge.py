"""What every way to a real device offers, whatever the device speaks: `DeviceBridge` and its words.

A bridge knows nothing of the device's physics; it carries instructions there and readings back. Injection is
positive, powers are in MW and Mvar. What a device does not say is `None`, never zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

import numpy as np

from controllers.contract import Instruction
from controllers.devices import AXES, circle
from controllers.region import Region
from controllers.register import Refusal


class BridgeLost(ConnectionError):
    """The device cannot be reached, or did not answer within the deadline."""


class BridgeRefused(ValueError):
    """An instruction was not taken over; the device goes on with what it has, until that reverts.

    Args:
        code: `STALE`: no whole second of validity is left. `EARLY`: its time has not come. `CAPABILITY`: the
            device cannot do it, cannot be told so, refused a value or kept another one. `HELD`: something
            else at the device rules it out.
        reason: which point, which value, what to do.
    """

    def __init__(self, code: Refusal, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """What a device says that it can do.

    Raises:
        ValueError: limits that leave no operating point.
    """

    p_max_mw: float
    """most active power that it injects"""
    p_min_mw: float = 0.0
    """least; negative for one that draws power, as a battery does that charges"""
    s_mva: float | None = None
    """apparent power; `None`: not said"""
    q_max_mvar: float | None = None
    """most reactive power that it injects; `None`: not said"""
    q_min_mvar: float | None = None
    """least; negative: it absorbs"""
    e_mwh: float | None = None
    """energy that it stores when full; `None`: no storage, or not said"""
    storage: bool = False

    def __post_init__(self) -> None:
        low, high = self.p_min_mw, self.p_max_mw
        if not low <= 0.0 <= high:
            raise ValueError(f"capability: {low:g} to {high:g} MW must include standing still")
        for name in ("s_mva", "q_max_mvar", "e_mwh"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"capability: {name}={value} must not be negative")
        if self.q_min_mvar is not None and self.q_min_mvar > 0:
            raise ValueError(f"capability: q_min_mvar={self.q_min_mvar} must not be positive")
        if self.s_mva is None and (self.q_max_mvar is None or self.q_min_mvar is None):
            raise ValueError("capability: neither s_mva nor both limits of q are given; Q would have no end")

    def region(self) -> Region:
        """Everything that it can hold, over `("p_mw", "q_mvar")`."""
        rows = [(1.0, 0.0, self.p_max_mw), (-1.0, 0.0, -self.p_min_mw)]
        if self.q_max_mvar is not None:
            rows.append((0.0, 1.0, self.q_max_mvar))
        if self.q_min_mvar is not None:
            rows.append((0.0, -1.0, -self.q_min_mvar))
        table = np.array(rows)
        box = Region(AXES, table[:, :2], table[:, 2])
        return box if self.s_mva is None else box & circle(self.s_mva)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a device measures; each `None` where it does not say."""

    time: datetime
    """when it was asked"""
    p_mw: float | None = None
    q_mvar: float | None = None
    v_pu: float | None = None
    """of its nominal voltage"""
    e_mwh: float | None = None
    """energy that it can still give"""
    state: str | None = None
    """in the words of its own protocol"""


@dataclass(frozen=True, slots=True, kw_only=True)
class InForce:
    """What a device says that it obeys now."""

    time: datetime
    limit_mw: float | None = None
    """most active power that it may inject; `None`: its own limit"""
    p_mw: float | None = None
    """active power that it aims at; `None`: its own choice"""
    q_mvar: float | None = None
    """reactive power that it holds; `None`: its own choice"""
    reverts_at: datetime | None = None
    """when the first of these changes to the fallback by itself; `None`: never"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """An instruction that the device has taken over, read back and equal."""

    time: datetime
    """when it was read back"""
    setting: InForce
    reverts_to: InForce
    """what it obeys from `setting.reverts_at` on, unless it is told anew"""
    points: Mapping[str, float | int | str] = field(default_factory=dict)
    """what was written, by the protocol's own names"""
    transactions: int = 0
    """requests that it took, reading back included"""


class DeviceBridge(Protocol):
    """A way to one real device. Every method but `close` raises `BridgeLost`."""

    async def connect(self) -> None:
        """Find the device and what it can do. Returns at once if it is connected; raises at once while it
        backs off after a failure.

        Raises:
            BridgeLost: it is not there, or not a device that this bridge understands.
        """
        ...

    async def read_capability(self) -> Capability:
        """What it can do, by its own account."""
        ...

    async def write_setpoint(
        self, instruction: Instruction, now: datetime, *, wish_mw: float | None = None
    ) -> Written:
        """Hand over what `instruction` says for `now`, and its fallback for when that ends.

        Args:
            wish_mw: active power that the device would like, where the instruction leaves it the choice but
                the protocol does not.

        Raises:
            BridgeRefused: it cannot be told so, or the device does not take it.
        """
        ...

    async def read_back(self) -> InForce:
        """What it obeys now."""
        ...

    async def read_measurements(self) -> Reading:
        """What it measures now."""
        ...

    async def close(self) -> None:
        """Leave the device to itself: what it was told ends when it reverts."""
        ...
