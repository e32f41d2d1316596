"""From a region in the P-Q plane to what model 704 can say, and no more than the region allows.

Model 704 knows an upper limit of active power (`WMaxLimPct`), an exact active power (`WSet`) and an exact
reactive power (`VarSet`). A region R = {A x <= b} over x = (P, Q) becomes one of two shapes inside R, where
C is the device's capability and Q* one value:

- **limit**: {(P, Q*) : P0 <= P <= limit}, with P0 the least power that nothing forbids: 0 for a generator,
  full charging for a store. For all of it to be in R, (P0, Q*) must be; R being convex, that and (limit, Q*)
  suffice. So (limit, Q*) is the point closest to what is wanted in R & C & {A_q Q <= b - A_p P0}.
- **target**: the point (P*, Q*), closest to what is wanted in R & C. A device that cannot (no sun, empty)
  ends up between 0 and P*, so Q* is chosen with (0, Q*) in R where there is such a Q*.

`limit` serves where nobody gave an exact active power and the region holds no import limit or least
injection, for which 704 has no point; else `target` does. Where R leaves Q free within C, `VarSet` stays off
and the limits hold for each Q. All numbers are multiples of the device's steps, rounded inwards.

| symbol  | here                       | meaning                                      | unit     |
|---------|----------------------------|----------------------------------------------|----------|
| R, C    | `region`, `capability`     | allowed, possible                            | MW, Mvar |
| P0      | `least`                    | least active power that nothing forbids      | MW       |
| Q*, P*  | `q_mvar`, `p_mw`           | exact values                                 | MW, Mvar |
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import inf

import numpy as np
import numpy.typing as npt

from bridges.device_bridge import BridgeRefused, Capability
from controllers.contract import Infeasible, Setpoint
from controllers.devices import AXES
from controllers.region import TOLERANCE, Region
from controllers.register import Refusal

Array = npt.NDArray[np.float64]

TRIES = 64
"""Multiples of the step of Q that are tried on either side of the closest point."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """What one unit of each register is worth, positive; `None`: the device lacks the function."""

    limit_mw: float | None
    p_mw: float | None
    q_mvar: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What the three functions of model 704 say; `None`: the function is off."""

    limit_mw: float | None = None
    p_mw: float | None = None
    q_mvar: float | None = None

    def within(self, region: Region | None, capability: Capability) -> bool:
        """Whether nothing that it lets a device do that can follow it lies outside `region`."""
        if region is None:
            return True
        plane = _plane(region)
        if self.p_mw is not None:
            low = high = self.p_mw
        else:
            low = capability.p_min_mw
            high = capability.p_max_mw if self.limit_mw is None else self.limit_mw
        if self.q_mvar is not None:
            return (low, self.q_mvar) in plane and (high, self.q_mvar) in plane
        return bool((_reach(plane, capability, low, high) <= plane.b + TOLERANCE).all())


def choose(
    region: Region | None,
    setpoint: Setpoint | None,
    capability: Capability,
    steps: Steps,
    *,
    wish_mw: float | None = None,
    with_functions_of: Setting | None = None,
    tolerance_mw: float = TOLERANCE,
) -> Setting:
    """What to tell a device that shall stay in `region`, and aim at `setpoint`.

    Args:
        region: over P, Q or both; `None`: all that it is capable of.
        wish_mw: what it aims at where `region` asks for an exact active power and `setpoint` gives none;
            `None`: as much as possible for a generator, standing still for a store.
        with_functions_of: functions that must be on whatever `region` says: a function that is off
            has no running timer, so what the fallback needs has to be on before.
        tolerance_mw: how far outside `region` a multiple of the steps may lie.

    Raises:
        BridgeRefused: the region and what the device is capable of have no common point, its steps are too
            coarse for the region, or it lacks a function that is needed.
    """
    plane = Region(AXES, np.zeros((0, 2)), np.zeros(0)) if region is None else _plane(region)
    reach = _reach(plane, capability, capability.p_min_mw, capability.p_max_mw)
    cuts = reach > plane.b + TOLERANCE
    cutting = Region(AXES, plane.A[cuts], plane.b[cuts])

    forced = with_functions_of or Setting()
    p_aim, q_aim = (None, None) if setpoint is None else (setpoint.p_mw, setpoint.q_mvar)
    exact_q = forced.q_mvar is not None or q_aim is not None or bool(cutting.A[:, 1].any())
    if exact_q and steps.q_mvar is None:
        raise BridgeRefused(
            Refusal.CAPABILITY, "its reactive power cannot be told: VarSet is not implemented"
        )
    search = _Search(cutting, capability, steps, q_aim or 0.0, exact_q, tolerance_mw)

    if p_aim is None and forced.p_mw is None and (found := search.limit()) is not None:
        limit, q = found
        if limit is None and forced.limit_mw is not None:
            limit = capability.p_max_mw
        return Setting(limit_mw=limit, q_mvar=q)
    if steps.p_mw is None:
        raise BridgeRefused(Refusal.CAPABILITY, "its active power cannot be told: WSet is not implemented")
    if p_aim is None:
        p_aim = wish_mw if wish_mw is not None else 0.0 if capability.storage else capability.p_max_mw
    p, q = search.target(p_aim, steps.p_mw)
    return Setting(limit_mw=None if forced.limit_mw is None else capability.p_max_mw, p_mw=p, q_mvar=q)


def _plane(region: Region) -> Region:
    """The region over P and Q; an axis that it does not name is free."""
    if set(region.axes) == set(AXES):
        return region.over(AXES)
    if not set(region.axes) < set(AXES):
        raise BridgeRefused(
            Refusal.CAPABILITY, f"region over {', '.join(region.axes)}: only {' and '.join(AXES)} can be told"
        )
    rows = np.zeros((len(region.b), 2))
    rows[:, AXES.index(region.axes[0])] = region.A[:, 0]
    return Region(AXES, rows, region.b)


def _reach(plane: Region, capability: Capability, low: float, high: float) -> Array:
    """(rows,) no less than what the device can reach in the direction of each row with `low <= P <= high`.

    Of the true circle of apparent power, which the capability's polygon lies inside of.
    """
    p, q = plane.A[:, 0], plane.A[:, 1]
    s = inf if capability.s_mva is None else capability.s_mva
    q_high = s if capability.q_max_mvar is None else capability.q_max_mvar
    q_low = -s if capability.q_min_mvar is None else capability.q_min_mvar
    box = np.maximum(p * low, p * high) + np.maximum(q * q_low, q * q_high)
    return np.asarray(np.minimum(box, s))


@lru_cache(maxsize=4096)
def _possible(capability: Capability) -> Region:
    """Its region, which takes longer to make than to use."""
    return capability.region()


class _Search:
    """Looks for multiples of the steps within the rows that take something of the capability."""

    def __init__(
        self,
        cutting: Region,
        capability: Capability,
        steps: Steps,
        q_aim: float,
        exact_q: bool,
        tolerance_mw: float,
    ) -> None:
        self._cutting, self._possible = cutting, _possible(capability)
        self._capability, self._steps = capability, steps
        self._q_aim, self._exact_q, self._tolerance = q_aim, exact_q, tolerance_mw

    def limit(self) -> tuple[float | None, float | None] | None:
        """(limit, Q) such that all from P0 to the limit is allowed; a limit of `None`: the device's own.
        `None`: there is no such pair."""
        least, most = self._capability.p_min_mw, self._capability.p_max_mw
        usable = self._cutting & self._section(least)
        q = self._candidates(usable, most)
        if q is None:
            return None
        high = self._interval(usable, q)[1]
        able_low, able_high = self._interval(self._possible, q)
        step = self._steps.limit_mw
        free = high >= most
        told = np.where(
            free, most, -inf if step is None else np.floor(np.clip(high, -1e9, most) / step) * step
        )
        fits = (told >= 0.0) & (able_low <= able_high)
        if not fits.any():
            return None
        best = self._closest(q, told, most, fits)
        return None if free[best] else float(told[best]), float(q[best]) if self._exact_q else None

    def target(self, aim: float, step: float) -> tuple[float, float | None]:
        """(P, Q) closest to what is wanted.

        Raises:
            BridgeRefused: there is none.
        """
        for usable in (self._cutting & self._section(0.0), self._cutting):
            q = self._candidates(usable, aim)
            if q is None:
                continue
            low, high = self._interval(usable & self._possible, q)
            with np.errstate(invalid="ignore"):
                p = np.round(np.clip(aim, low, high) / step)
                p = np.where(p * step > high, np.floor(high / step), p)
                p = np.where(p * step < low, np.ceil(low / step), p) * step
                fits = (low <= p) & (p <= high)
            if fits.any():
                best = self._closest(q, p, aim, fits)
                return float(p[best]) + 0.0, float(q[best]) if self._exact_q else None
        raise BridgeRefused(Refusal.CAPABILITY, self._complaint(step))

    def _section(self, least: float) -> Region:
        """The Q with (least, Q) inside; P is free."""
        p, q = self._cutting.A.T
        rows = np.column_stack([np.zeros(len(q)), q])
        right = self._cutting.b - p * least
        try:
            return Region(AXES, rows, right)
        except Infeasible:  # a row without Q that fails at `least`: no Q at all
            return Region(AXES, np.array([[0.0, 1.0], [0.0, -1.0]]), np.array([-1.0, -1.0]))

    def _candidates(self, usable: Region, p_aim: float) -> Array | None:
        """(candidates,) multiples of Q's step around the point closest to what is wanted; `None`: there is no
        such point. One that stands for any Q where none has to be told."""
        try:
            closest = (usable & self._possible).nearest((p_aim, self._q_aim))
        except Infeasible:
            return None
        step = self._steps.q_mvar
        if not self._exact_q or step is None:
            return np.zeros(1)
        return np.asarray((np.floor(closest[1] / step) + np.arange(-TRIES, TRIES + 2)) * step + 0.0)

    def _interval(self, region: Region, q: Array) -> tuple[Array, Array]:
        """(candidates,) least and greatest P at each Q; the least above the greatest where there is none."""
        room = region.b[:, None] + self._tolerance - region.A[:, 1:] * q
        p = region.A[:, :1]
        with np.errstate(divide="ignore", invalid="ignore"):
            ends = room / p
        flat = np.abs(p) <= 1e-12
        high = np.where(p > 1e-12, ends, inf).min(axis=0, initial=inf)
        low = np.where(p < -1e-12, ends, -inf).max(axis=0, initial=-inf)
        impossible = (flat & (room < 0)).any(axis=0)
        return np.where(impossible, inf, low), np.where(impossible, -inf, high)

    def _closest(self, q: Array, p: Array, p_aim: float, fits: npt.NDArray[np.bool_]) -> int:
        with np.errstate(invalid="ignore"):
            distance = (p - p_aim) ** 2 + (q - self._q_aim) ** 2
        return int(np.argmin(np.where(fits, distance, inf)))

    def _complaint(self, step: float) -> str:
        both = self._cutting & self._possible
        try:
            limits = [both.limits(axis) for axis in AXES]
        except Infeasible:
            c = self._capability
            return (
                f"its region has no point in common with what the device can do ({c.p_min_mw:g} to "
                f"{c.p_max_mw:g} MW, {c.s_mva} MVA)"
            )
        (p_low, p_high), (q_low, q_high) = limits
        return (
            f"no multiple of {step * 1e6:g} W and {(self._steps.q_mvar or 0) * 1e6:g} var lies in its region "
            f"({p_low:g} to {p_high:g} MW, {q_low:g} to {q_high:g} Mvar); widen it, or allow a tolerance"
        )
