"""Field: the devices outside a run, as far as it knows them: measured, silent, or held by an operator.

What has arrived is taken all at once at the start of a tick, a process image. A device that was not heard for
long is silent, and then a rule says what the power flow counts on; it is never taken for measured:

| last measurement | the instruction that it acknowledged last | power in the power flow |
|---|---|---|
| fresh | - | as measured |
| too old | still valid | the point of its region closest to the last measurement |
| too old | over, or none | the point of its fallback closest to the last measurement |
| none yet | - | the same, closest to standing still |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol

from controllers.contract import Infeasible, Instruction
from controllers.devices import AXES, Device
from controllers.region import Region
from controllers.register import Regime, Register
from simulators.clock import Tick
from simulators.devices import DeviceReport, Obedience, Receipt, Seen
from simulators.tables import Outcome

KEPT = 4
"""Steps of a twin that are remembered, to compare them with what is measured later."""
_ACCEPTED = (Outcome.RECEIVED, Outcome.APPLIED)


@dataclass(frozen=True, slots=True)
class Placed:
    """How a device of the scenario is outside."""

    stale_after: timedelta
    """age at which its last measurement counts no more"""
    shadow: bool = False
    """its twin runs beside it"""
    dry_run: bool = False
    """it is told nothing"""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a device outside says of itself; injection positive, what it does not say is `None`."""

    device: str
    time: datetime
    """simulated, and never to come"""
    p_mw: float
    q_mvar: float
    v_pu: float | None = None
    e_mwh: float | None = None
    regime: Regime | None = None


@dataclass(frozen=True, slots=True)
class Word:
    """What an operator says about a device."""

    device: str
    hold: bool
    """tell it nothing any more; else: go on"""
    why: str | None = None


@dataclass(frozen=True, slots=True)
class Image:
    """What has arrived since the tick before."""

    measurements: tuple[Measurement, ...] = ()
    """in the order of arrival"""
    receipts: tuple[Receipt, ...] = ()
    presence: Mapping[str, str] = field(default_factory=dict)
    """by device: online, offline or fallback, where it has said so"""
    words: tuple[Word, ...] = ()
    unreverted: Mapping[str, str] = field(default_factory=dict)
    """what a device obeys though that is over and it should be in its fallback, by device"""


class Inlet(Protocol):
    """Where what comes from outside enters the co-simulation; see `scenarios.inlet`."""

    def sample(self, now: datetime) -> Image:
        """Take what has arrived until now, a simulated time."""
        ...

    def wishes(self, p_mw: Mapping[str, float]) -> None:
        """Where devices would like to be, for protocols that cannot leave it to them."""
        ...

    def withdraw(self, device: str) -> None:
        """Take back what a device was told, as far as it has not come there: a broker's copy."""
        ...


@dataclass
class _Known:
    """One device outside."""

    since: datetime
    """no data since then, if there is none"""
    register: Register = field(default_factory=Register)
    """what it has acknowledged"""
    told: dict[tuple[int, int], Instruction] = field(default_factory=dict)
    """what it has not acknowledged yet"""
    last: Measurement | None = None
    twin: tuple[tuple[datetime, DeviceReport], ...] = ()
    """the last steps of its twin"""
    silent: bool = False
    missed: bool = False
    """whether it was said that it is silent: not before it could have been heard"""
    apart: bool = False
    presence: str | None = None
    unreverted: bool = False


class Field:
    """The devices outside a run.

    Args:
        devices: all of the site, by name.
        placed: those that are outside.
        inlet: where what they say comes in.
        event: takes what happens.
        apart_mw: how far active power may be from the twin's without an event; `None`: nobody says.
    """

    def __init__(
        self,
        devices: Mapping[str, Device],
        placed: Mapping[str, Placed],
        inlet: Inlet,
        event: Callable[..., None],
        apart_mw: float | None = None,
    ) -> None:
        self._devices, self.placed, self._inlet, self._event = devices, dict(placed), inlet, event
        self._apart_mw = apart_mw
        self._known: dict[str, _Known] = {}
        self._held: dict[str, None] = {}
        self.counts: Counter[str] = Counter()

    @property
    def held(self) -> frozenset[str]:
        """Devices, outside or not, that an operator has taken: they are told nothing."""
        return frozenset(self._held)

    def begin(
        self, tick: Tick, instructions: Mapping[str, Instruction], drive: Mapping[str, float | None]
    ) -> None:
        """Take the process image of a tick.

        Args:
            instructions: decided in the step before.
            drive: values of profiles, by device.
        """
        image = self._inlet.sample(tick.time)
        for word in image.words:
            self._hear(tick, word)
        if not self.placed:
            return
        for name in self.placed:
            known = self._known.setdefault(name, _Known(tick.time))
            if (told := instructions.get(name)) is not None:
                known.told[told.epoch, told.seq] = told
        for receipt in image.receipts:
            self._acknowledge(receipt, tick.time)
        for name, presence in image.presence.items():
            self._say_presence(tick, name, presence)
        for measurement in image.measurements:
            self._measure(measurement)
        for name, known in self._known.items():
            self._say_unreverted(tick, name, known, image.unreverted.get(name))
        for name in self.placed:
            self._age(tick, name)
        self._inlet.wishes({name: self._devices[name].wish(drive.get(name)) for name in self.placed})

    def report(self, name: str, tick: Tick, twin: DeviceReport | None) -> DeviceReport:
        """What a device outside does in a step, measured or assumed, and how far it is from its twin."""
        known = self._known[name]
        if twin is not None:
            known.twin = (*known.twin, (tick.time, twin))[-KEPT:]
        held = name in self._held
        if not known.silent and known.last is not None:
            last = known.last
            self.counts["measured"] += 1
            beside = self._beside(known, last)
            self._compare(tick, name, known, last, beside)
            return DeviceReport(
                name, last.p_mw, last.q_mvar, last.e_mwh, None, None, self._goes_by(known, tick.time),
                Seen(last.time, None, held, beside),
            )  # fmt: skip
        self.counts["silent"] += 1
        p_mw, q_mvar = self._assumed(name, known, tick.time)
        measured_at = known.last.time if known.last else None
        return DeviceReport(
            name, p_mw, q_mvar, None, None, None, Obedience.STALE, Seen(measured_at, known.since, held, None)
        )

    def memory(self) -> object:
        """What the next step needs, for `recall`."""
        return {
            "held": tuple(self._held),
            "known": {
                name: {
                    "since": known.since,
                    "register": known.register.memory(),
                    "told": dict(known.told),
                    "last": known.last,
                    "twin": known.twin,
                    "silent": known.silent,
                    "missed": known.missed,
                    "apart": known.apart,
                    "presence": known.presence,
                    "unreverted": known.unreverted,
                }
                for name, known in self._known.items()
            },
        }

    def recall(self, memory: Any) -> None:
        """Go on from what `memory` has returned."""
        self._held = dict.fromkeys(memory["held"])
        for name, kept in memory["known"].items():
            known = self._known[name] = _Known(**{**kept, "register": Register()})
            known.register.recall(kept["register"])

    # What arrives

    def _hear(self, tick: Tick, word: Word) -> None:
        name, details = word.device, {"step": tick.step, "device": word.device, "why": word.why}
        if name not in self._devices:
            self.counts["operator-unknown"] += 1
            self._event(tick.time, "operator-unknown", **details)
        elif word.hold and name not in self._held:
            self._held[name] = None
            self._inlet.withdraw(name)
            self.counts["operator-holds"] += 1
            self._event(tick.time, "operator-hold", **details)
        elif not word.hold and name in self._held:
            del self._held[name]
            self.counts["operator-releases"] += 1
            self._event(tick.time, "operator-release", **details)

    def _acknowledge(self, receipt: Receipt, now: datetime) -> None:
        known = self._known.get(receipt.device)
        if known is None or receipt.outcome not in _ACCEPTED:
            return
        told = known.told.pop((receipt.epoch, receipt.seq), None)
        if told is not None:
            known.register.take(told, now)

    def _say_presence(self, tick: Tick, name: str, presence: str) -> None:
        known = self._known.get(name)
        if known is None or known.presence == presence:
            return
        before, known.presence = known.presence, presence
        if "offline" in (before, presence):
            what = "device-offline" if presence == "offline" else "device-online"
            self.counts[what] += 1
            self._event(tick.time, what, step=tick.step, device=name)

    def _say_unreverted(self, tick: Tick, name: str, known: _Known, why: str | None) -> None:
        if known.unreverted == (why is not None):
            return
        known.unreverted = why is not None
        what = "device-reverted" if why is None else "device-unreverted"
        self.counts[what] += 1
        self._event(tick.time, what, step=tick.step, device=name, why=why)

    def _measure(self, measurement: Measurement) -> None:
        known = self._known.get(measurement.device)
        if known is None or (known.last is not None and measurement.time < known.last.time):
            return
        known.last, known.since = measurement, measurement.time

    def _age(self, tick: Tick, name: str) -> None:
        known, now = self._known[name], tick.time
        known.register.tick(now)
        for number in [number for number, told in known.told.items() if told.valid_until <= now]:
            del known.told[number]
        overdue = now - known.since > self.placed[name].stale_after
        known.silent = known.last is None or overdue
        if overdue == known.missed:
            return
        known.missed = overdue
        if overdue:
            self.counts["device-silent"] += 1
            self._event(now, "device-silent", step=tick.step, device=name, since=known.since)
        else:
            self._event(now, "device-heard", step=tick.step, device=name)

    # What is known

    def _goes_by(self, known: _Known, now: datetime) -> Obedience:
        """In its own words, where it says so."""
        said = known.last.regime if known.last is not None else None
        return Obedience(said or known.register.order(now).regime)

    def _assumed(self, name: str, known: _Known, now: datetime) -> tuple[float, float]:
        """Where a silent device is taken to be: closest to its last measurement in what it obeys then."""
        device, order = self._devices[name], known.register.order(now)
        region: Region | None = device.default
        if order.regime is Regime.CONTROLLED or order.region is not None:
            region = order.region
        self.counts["assumed-controlled" if order.regime is Regime.CONTROLLED else "assumed-fallback"] += 1
        last = (0.0, 0.0) if known.last is None else (known.last.p_mw, known.last.q_mvar)
        if region is None:  # all that it is capable of, where it has been
            return last
        point = dict(zip(AXES, last, strict=True))
        try:
            p_mw, q_mvar = region.over(AXES).nearest(point)
        except Infeasible:  # a region without a point
            p_mw, q_mvar = device.default.over(AXES).nearest(point)
        return float(p_mw), float(q_mvar)

    def _beside(self, known: _Known, last: Measurement) -> DeviceReport | None:
        """What the twin did when it was measured."""
        begun = [report for start, report in known.twin if start <= last.time]
        return begun[-1] if begun else None

    def _compare(
        self, tick: Tick, name: str, known: _Known, last: Measurement, beside: DeviceReport | None
    ) -> None:
        if beside is None or self._apart_mw is None:
            return
        by = abs(last.p_mw - beside.p_mw)
        apart = by > self._apart_mw
        self.counts["apart"] += apart
        if apart != known.apart:
            known.apart = apart
            what = "twin-apart" if apart else "twin-close"
            self._event(tick.time, what, step=tick.step, device=name, p_mw=last.p_mw, twin_mw=beside.p_mw)
