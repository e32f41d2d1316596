"""Controls of a run: the envelopes that it recorded as CSIP-AUS documents, for `gridpace csip`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

from pydantic import TypeAdapter

from bridges.csip import Profile, controls, default_control
from controllers.contract import Span
from controllers.region import Region
from scenarios.equipment import device_of
from scenarios.figures import Envelope, envelopes
from scenarios.run_directory import RunDirectory
from scenarios.schema import AnyDevice


class NoControls(Exception):
    """The run has no envelope at that instant."""


@dataclass(frozen=True, slots=True)
class Held:
    """What one device may do from an instant on."""

    device: str
    issued_at: datetime
    spans: tuple[Span, ...]


def held(run_dir: Path, at: datetime | None = None) -> tuple[datetime, list[Held]]:
    """The envelopes in force at an instant and what follows them, by device, in the order of the names.

    Where several controllers have an envelope for a device, their regions intersect, as long as all of
    them hold.

    Args:
        run_dir: of a run, finished or not.
        at: by default the instant at which the last decision begins to act.

    Raises:
        NoControls: no envelope is in force then.
    """
    found = list(envelopes(run_dir))
    if not found:
        raise NoControls(f"{run_dir}: no controller has published an envelope; give a run that has")
    at = _last_begin(found) if at is None else at
    newest: dict[tuple[str, str], int] = {}
    begun: dict[tuple[str, str, int], datetime] = {}
    for e in found:
        key = (e.target, e.controller, e.seq)
        begun[key] = min(e.valid_from, begun.get(key, e.valid_from))
    for target, controller, seq in begun:
        if begun[target, controller, seq] <= at:
            newest[target, controller] = max(seq, newest.get((target, controller), seq))
    by_device: dict[str, dict[str, list[Envelope]]] = {}
    for e in found:
        if newest.get((e.target, e.controller)) == e.seq and e.valid_until > at:
            by_device.setdefault(e.target, {}).setdefault(e.controller, []).append(e)
    several = [
        Held(device, max(e.issued_at for one in said.values() for e in one), spans)
        for device, said in sorted(by_device.items())
        if (spans := tuple(_merged(list(said.values()), at)))
    ]
    if not several:
        first, last = min(e.valid_from for e in found), max(e.valid_until for e in found)
        raise NoControls(
            f"{run_dir}: no envelope is in force at {_clock(at)}; they go from {_clock(first)} to "
            f"{_clock(last)}"
        )
    return at, several


def _last_begin(found: Sequence[Envelope]) -> datetime:
    """When the last decision begins to act."""
    last = max(e.seq for e in found)
    return min(e.valid_from for e in found if e.seq == last)


def _merged(said: Sequence[Sequence[Envelope]], at: datetime) -> Iterator[Span]:
    """Spans from the one in force at `at` on, for as long as every controller has a region."""
    times = sorted({t for one in said for e in one for t in (e.valid_from, e.valid_until)})
    for start, end in pairwise(times):
        if end <= at:
            continue
        region: Region | None = None
        for one in said:
            own = next((e for e in one if e.valid_from <= start and end <= e.valid_until), None)
            if own is None:
                return
            limits = Region(own.axes, own.A, own.b)
            region = limits if region is None else region & limits
        yield Span(start, end, region)


def documents(
    several: Sequence[Held], defaults: Mapping[str, Region], at: datetime, profile: Profile
) -> Iterator[tuple[str, bytes | str]]:
    """File name and XML of every document, or the reason why there is none.

    Raises:
        NoCsip: the extra is not installed.
    """
    for one in several:
        try:
            listed = controls(one.device, one.spans, issued_at=one.issued_at, now=at, profile=profile)
            default = default_control(one.device, defaults[one.device], profile=profile)
        except ValueError as error:
            yield one.device, str(error)
            continue
        yield f"{one.device}.DERControlList.xml", listed
        yield f"{one.device}.DefaultDERControl.xml", default


def defaults_of(run_dir: Path) -> dict[str, Region]:
    """What each device obeys without a control, by the scenario that the run keeps.

    Raises:
        NotARun: the folder is none.
    """
    parts = TypeAdapter(list[AnyDevice]).validate_python(
        RunDirectory.open(run_dir).manifest().scenario.get("devices", [])
    )
    return {part.name: device_of(part, str(part.bus)).default for part in parts}


def _clock(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
