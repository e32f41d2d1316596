"""Field verdicts: what became of expectations about real devices.

A real device is judged by what it measured, at the time when it did so. Then it has to be inside a region
that was valid for it, the newest or one before: what was on its way, or lost, it cannot have obeyed yet.
What a device says that it goes by is its own word. In its fallback it has no region, but then its point is
inside its fallback: the scenario's default, which every instruction names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from controllers.devices import AXES
from controllers.region import Region
from scenarios.expectations import DivergenceBelow
from scenarios.figures import Envelope, envelopes, rows
from scenarios.findings import (
    ROUNDING,
    Verdict,
    Worst,
    distance,
    labelled,
    leading,
    shared,
    stamp,
)
from scenarios.run_directory import NotARun, RunDirectory

AT_HOME = ("failsafe", "init")
"""States of a device that says that it obeys its fallback or default, and so has no valid region."""


class MeasuredField:
    """The real devices of a run, step by step; ask with rising times."""

    def __init__(self, run_dir: Path) -> None:
        self._steps = groupby(
            rows(run_dir, "field", ["time", "device", "measured_at"]), lambda row: row["time"]
        )
        self._step = next(self._steps, None)
        self._envelopes = envelopes(run_dir)
        self._following = next(self._envelopes, None)
        self._told: dict[str, list[Envelope]] = {}
        self._first: dict[str, datetime] = {}
        self._homes = _homes(run_dir)
        self.listened_to = _listened_to(run_dir)
        """devices of a dry run: nobody has told them anything"""

    def at(self, time: datetime) -> dict[str, datetime | None]:
        """When each real device was measured, for a step's time."""
        while self._step is not None and self._step[0].astimezone(UTC) < time:
            self._step = next(self._steps, None)
        while self._following is not None and self._following.issued_at <= time:
            self._told.setdefault(self._following.target, []).append(self._following)
            self._first.setdefault(self._following.target, self._following.valid_from)
            self._following = next(self._envelopes, None)
        if self._step is None or self._step[0].astimezone(UTC) != time:
            return {}
        found = {row["device"]: row["measured_at"] for row in self._step[1]}
        self._step = next(self._steps, None)
        return found

    def excesses(self, device: str, row: Mapping[str, Any], at: datetime) -> dict[str, float]:
        """By controller, how far outside the closest of its valid envelopes a device was; nothing where a
        coordinate is missing."""
        known = self._told.get(device, [])
        known[:] = [envelope for envelope in known if envelope.valid_until > at]
        found: dict[str, float] = {}
        for envelope in known:
            if envelope.valid_from <= at and (by := envelope.excess(row)) is not None:
                found[envelope.controller] = min(by, found.get(envelope.controller, math.inf))
        return found

    def early(self, device: str, at: datetime | None) -> bool:
        """Whether a device was measured before the first region for it began."""
        return at is not None and at < self._first.get(device, at)

    def away(self, device: str, row: Mapping[str, Any]) -> float | None:
        """How far a device that says that it is in its fallback is outside of it [MW]; `None` where it says
        something else, a coordinate is missing, or its fallback is not known."""
        home = self._homes.get(device)
        point = [row[axis] for axis in AXES]
        if home is None or None in point or row["state"] not in AT_HOME:
            return None
        return float((home.A @ np.array(point) - home.b).max(initial=-math.inf))


def _homes(run_dir: Path) -> dict[str, Region]:
    """What each device obeys in its fallback, by the manifest; nothing in a folder without one."""
    from scenarios.controls import defaults_of  # a scenario has expectations: this file comes before it

    try:
        return {name: default.over(AXES) for name, default in defaults_of(run_dir).items()}
    except NotARun:
        return {}


def _listened_to(run_dir: Path) -> frozenset[str]:
    """Devices of a dry run, by the manifest."""
    try:
        scenario = RunDirectory.open(run_dir).manifest().scenario
    except NotARun:
        return frozenset()
    return frozenset(part["name"] for part in scenario.get("devices", ()) if part.get("dry_run"))


def divergence(run_dir: Path, expected: DivergenceBelow) -> Verdict:
    """Whether real devices were close to their twins."""
    checked = held = without = 0
    worst = spoken = None
    for row in rows(run_dir, "field", ["time", "device", "divergence_mw", "twin_p_mw"]):
        apart, time = row["divergence_mw"], row["time"].astimezone(UTC)
        if apart is None:
            without += 1
            continue
        checked += 1
        by = abs(apart) - expected.below
        held += by <= ROUNDING
        if worst is None or worst.by is None or by > worst.by:
            worst = Worst(name=row["device"], time=time, value=apart, by=by)
            spoken = (
                f"{leading(by)}{labelled('device', row['device'])}, {apart:+.4g} MW from its twin's "
                f"{row['twin_p_mw']:.4g} MW, {stamp(time)}, {distance(by, 'MW')}"
            )
    return shared(
        expected,
        f"measurements within {expected.below:g} MW of the twin",
        held,
        checked=checked,
        missing=0,
        gap=None,
        uncounted={"without_comparison": without} if without else {},
        worst=worst,
        spoken=spoken,
    )
