"""Recorder: writes each step to the journal, before anybody outside hears what was decided in it.

What was handed to the bus and what came from there is added afterwards, as a second batch of the same step.
So a step whose instructions were published is on disk, whenever the process is killed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from controllers.contract import Certificate, Instruction, Kind
from controllers.forecast import Forecast
from controllers.region import Region
from simulators.clock import Tick
from simulators.devices import DeviceReport, Obedience, Receipt
from simulators.grid import Measured
from simulators.journal import Journal
from simulators.microgrids import Exchange
from simulators.outbox import Published
from simulators.seats import Turn
from simulators.stage import Stage
from simulators.tables import STAMPS, Outcome, Rows

_NO_CERTIFICATE = Certificate()
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_TIME = pa.timestamp("us", "UTC")
_UNHEARD = {**dict.fromkeys(STAMPS), "reason": None, "outcome": Outcome.SENT}
_STAMP_OF = {Outcome(stamp.removesuffix("_at")): stamp for stamp in STAMPS}
_OPEN = (Outcome.SENT, Outcome.RECEIVED)
"""Outcomes of what was not applied, and may be."""
_LATE_STEPS, _REAL_LATE_STEPS = 10, 120
"""How many steps after its validity a device's last word on an instruction is waited for; of a real device
its first word too, since it speaks when its broker is back."""


@dataclass
class Progress:
    """Where a run is; the runner shows it."""

    step: int = -1
    """last step that is recorded"""
    tick: Tick | None = None
    turns: tuple[Turn, ...] = ()
    measured: Measured = field(default_factory=Measured)
    reports: tuple[DeviceReport, ...] = ()
    published: Published | None = None
    setpoints: list[Mapping[str, Any]] = field(default_factory=list)
    """rows of `setpoints` that were written in the step"""
    acks_s: list[float] = field(default_factory=list)
    """seconds from sending to the device's own first word, of those that came in this step"""


class RecorderSimulator(Stage):
    """mosaik simulator of one entity `recorder`.

    Inputs: `tick`, `measured`, `forecast`, `turns`, `instructions`, `receipts`, `exchanges`, `report` (each
    device).
    Output: `kept`, the step that is on disk.

    Args:
        real: the real devices among `devices`.
        keep: called with each step before it is written, to keep what the next one needs.
        on_step: called with each step when it is over.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        buses: Sequence[str],
        branches: Sequence[str],
        devices: Sequence[str],
        forecasts: bool,
        in_thread: bool = False,
        real: Set[str] = frozenset(),
        keep: Callable[[int], None] = lambda step: None,
        on_step: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        super().__init__(
            "recorder",
            takes=[
                *("tick", "measured", "forecast", "turns", "instructions", "receipts", "exchanges", "report"),
            ],
            gives=["kept"],
        )
        self._journal, self._on_step, self._with_forecasts = journal, on_step, forecasts
        self._keep = keep
        self._in_thread = in_thread
        self._buses, self._bus_names = tuple(buses), pa.array(buses, pa.string())
        self._branch_names = pa.array(branches, pa.string())
        self._device_names, self._real = tuple(devices), real
        self._forecast_key: tuple[tuple[str, ...], int, timedelta] | None = None
        self._forecast_rows: tuple[pa.Array, npt.NDArray[np.int64]]
        self._outstanding: dict[tuple[int, int, str], dict[str, Any]] = {}
        self._patience: dict[tuple[int, int, str], int] = {}
        self._begun: list[dict[str, Any]] = []
        """rows of `steps` of the step in progress"""
        self.progress = Progress()

    def work(self, time: int, given: dict[str, list[Any]]) -> Awaitable[Any] | None:
        (tick,), (measured,), (instructions,) = given["tick"], given["measured"], given["instructions"]
        (turns,), (receipts,), (forecast,) = given["turns"], given["receipts"], given["forecast"]
        (exchanges,) = given["exchanges"]
        reports = given.get("report", [])
        told = tuple(instructions.values())
        everything = (tick, measured, forecast, turns, told, receipts, reports, exchanges)
        self.out["recorder"] = {"kept": tick.step}
        if self._in_thread:
            # Sealing a long journal takes a fraction of a second, in which MQTT must go on.
            return asyncio.to_thread(self.record, *everything)
        self.record(*everything)
        return None

    def record(
        self,
        tick: Tick,
        measured: Measured,
        forecast: Forecast,
        turns: tuple[Turn, ...],
        instructions: tuple[Instruction, ...],
        receipts: Sequence[Receipt],
        reports: Sequence[DeviceReport],
        exchanges: Mapping[str, Exchange] | None = None,
    ) -> None:
        """Append one step to the journal; `sent` completes it.

        Args:
            receipts: what the twins have said.
        """
        tables: dict[str, Rows] = {}
        self.progress.acks_s = []
        if measured.v_pu:
            tables["buses"] = {
                "time": tick.time,
                "bus": self._bus_names,
                "v_pu": self._voltages(measured.v_pu),
            }
        if measured.loading_percent is not None and len(self._branch_names):
            tables["branches"] = {
                "time": tick.time,
                "branch": self._branch_names,
                "p_mw": measured.branch_p_mw,
                "q_mvar": measured.branch_q_mvar,
                "loading_percent": measured.loading_percent,
            }
        if devices := self._injections(tick, measured, reports):
            tables["devices"] = devices
        if field := [row for report in reports if (row := _field(tick, report)) is not None]:
            tables["field"] = field
        if measured.positions:
            tables["regulators"] = {
                "time": tick.time,
                "regulator": list(measured.positions),
                "position": list(measured.positions.values()),
            }
        if exchanges:
            tables["exchanges"] = [{"time": tick.time, **asdict(one)} for one in exchanges.values()]
        if regions := _regions(tick, turns):
            tables["regions"] = regions
        if fairness := _fairness(tick, turns):
            tables["fairness"] = fairness
        if iterations := _iterations(tick, turns):
            tables["iterations"] = iterations
        if setpoints := [*self._heard(tick, receipts, on_bus=False), *self._issued(instructions)]:
            tables["setpoints"] = setpoints
        self.progress.setpoints, self.progress.reports = list(setpoints), tuple(reports)
        if self._with_forecasts and len(forecast.mean) and len(forecast.names):
            tables["forecasts"] = self._forecasts(forecast)
        self._begun = _steps(tick, measured, turns)
        self.progress.tick, self.progress.turns, self.progress.measured = tick, turns, measured
        self._keep(tick.step)
        self._journal.append(tick.step, tables)

    def sent(self, tick: Tick, published: Published) -> None:
        """Complete a step: what was handed to the bus, what came in, and what has ended."""
        tables: dict[str, Rows] = {
            "steps": [{**row, "publish_ms": published.publish_ms} for row in self._begun]
        }
        rows = self._heard(tick, published.receipts, on_bus=True)
        if rows := [*rows, *self._ended(tick), *self._sent(tick, published.instructions)]:
            tables["setpoints"] = rows
        self._journal.append(tick.step, tables)
        self._begun = []
        self.progress.published = published
        self.progress.setpoints += rows
        self.progress.step = tick.step
        self._on_step(self.progress)
        self._journal.rest()

    def memory(self) -> object:
        """What the next step needs, for `recall`: which instructions may still be heard of."""
        awaited = [(*key, self._patience.get(key)) for key in self._outstanding]
        return {"awaited": awaited, "begun": self._begun}

    def recall(self, memory: Any, tick: Tick, said: Iterable[Mapping[str, Any]], *, whole: bool) -> None:
        """Go on from what `memory` has returned in a step.

        Args:
            tick: of that step.
            said: all rows of `setpoints` that were written, in their order.
            whole: whether the step was completed.
        """
        awaited = {(epoch, seq, device): left for epoch, seq, device, left in memory["awaited"]}
        self._outstanding = {key: {} for key in awaited}
        self._patience = {key: left for key, left in awaited.items() if left is not None}
        for row in said:
            if (key := (row["epoch"], row["seq"], row["device"])) in awaited:
                self._outstanding[key] = {**row, "outcome": Outcome(row["outcome"])}
        self._begun = [] if whole else memory["begun"]
        self.progress.step, self.progress.tick = tick.step, tick
        if whole:
            self._ended(tick)
            self._sent(tick, ())

    def _voltages(self, v_pu: Mapping[str, float]) -> npt.NDArray[np.float64]:
        """Of all buses in their order; NaN, which is recorded as null, where there is no supply."""
        return np.fromiter((v_pu.get(bus, np.nan) for bus in self._buses), float, len(self._buses))

    def _injections(self, tick: Tick, measured: Measured, reports: Sequence[DeviceReport]) -> Rows | None:
        """Rows of `devices`: everything that injects, so that a step's power flow can be repeated."""
        by_name = {report.device: report for report in reports}
        ordered = [by_name[name] for name in self._device_names if name in by_name]
        loads = measured.load_p_mw
        if not ordered and not loads:
            return None
        missing = [None] * len(loads)
        return {
            "time": tick.time,
            "device": [*(r.device for r in ordered), *loads],
            # What is only assumed of a silent device is in `field`.
            "p_mw": [*(r.p_mw if r.silent_since is None else None for r in ordered), *loads.values()],
            "q_mvar": [
                *(r.q_mvar if r.silent_since is None else None for r in ordered),
                *measured.load_q_mvar.values(),
            ],
            "e_mwh": [*(r.e_mwh for r in ordered), *missing],
            "available_mw": [*(r.available_mw for r in ordered), *missing],
            "curtailed_mw": [*(r.curtailed_mw for r in ordered), *missing],
            "state": [*(r.obedience for r in ordered), *([Obedience.UNCONTROLLED] * len(loads))],
        }

    def _heard(self, tick: Tick, receipts: Sequence[Receipt], *, on_bus: bool) -> list[dict[str, Any]]:
        """Rows of earlier instructions of which something was heard, over the bus or from a twin."""
        changed: dict[tuple[int, int, str], None] = {}
        for receipt in receipts:
            key = receipt.epoch, receipt.seq, receipt.device
            row = self._outstanding.get(key)
            if row is None:
                continue  # an answer to something expired, or of another run
            if on_bus and row["acked_at"] is None:
                # A device's own word stands above that of its twin, which is no acknowledgement.
                row.update(_UNHEARD)
                paced = tick.planned_at is not None
                row["acked_at"] = max(receipt.at, row["sent_at"] or receipt.at) if paced else tick.time
                if paced and row["sent_at"] is not None:
                    self.progress.acks_s.append((row["acked_at"] - row["sent_at"]).total_seconds())
            if (on_bus or row["acked_at"] is None) and _note(row, receipt):
                changed[key] = None
        return [dict(self._outstanding[key]) for key in changed]

    def _ended(self, tick: Tick) -> list[dict[str, Any]]:
        """Rows of what was never applied and is over; what nobody will speak of any more is forgotten."""
        rows, ended = [], []
        for key, row in self._outstanding.items():
            if row["valid_until"] > tick.time:
                continue
            if row["outcome"] in _OPEN:
                row["outcome"] = Outcome.EXPIRED
                rows.append(dict(row))
            left = self._patience.get(key, _patience(row, key[2] in self._real))
            self._patience[key] = left - 1
            if left <= 0:
                ended.append(key)
        for key in ended:
            del self._outstanding[key], self._patience[key]
        return rows

    def _issued(self, instructions: Sequence[Instruction]) -> list[dict[str, Any]]:
        rows = [_issued(instruction) for instruction in instructions]
        for row in rows:
            self._outstanding[row["epoch"], row["seq"], row["device"]] = row
        return [dict(row) for row in rows]

    def _sent(self, tick: Tick, instructions: Sequence[Instruction]) -> list[dict[str, Any]]:
        rows = []
        for one in instructions:
            row = self._outstanding[one.epoch, one.seq, one.device]
            row["sent_at"], row["outcome"] = tick.time, Outcome.SENT
            rows.append(dict(row))
        for key in [key for key, row in self._outstanding.items() if row["outcome"] is Outcome.ISSUED]:
            del self._outstanding[key]  # the bus does not take it
        return rows

    def _forecasts(self, forecast: Forecast) -> Rows:
        intervals, names = forecast.mean.shape
        key = (forecast.names, intervals, forecast.every)
        if self._forecast_key != key:
            lead_us = np.repeat(np.arange(1, intervals + 1), names) * (forecast.every // _MICROSECOND)
            self._forecast_key = key
            self._forecast_rows = pa.array(forecast.names * intervals, pa.string()), lead_us
        name, lead_us = self._forecast_rows
        at_us = lead_us + (forecast.issued_at - _EPOCH) // _MICROSECOND
        return {
            "issued_at": forecast.issued_at,
            # The microseconds as they lie in memory: converting them costs ten times as much.
            "time": pa.Array.from_buffers(_TIME, len(at_us), [None, pa.py_buffer(at_us)]),
            "name": name,
            "mean_mw": forecast.mean.ravel(),
            "std_mw": forecast.std.ravel(),
        }


def _steps(tick: Tick, measured: Measured, turns: tuple[Turn, ...]) -> list[dict[str, Any]]:
    """Rows of `steps`, without what is known when the step is over."""
    rows: list[tuple[str | None, str | None, float | None]]
    rows = [(turn.controller, turn.origin, turn.solve_ms) for turn in turns] or [(None, None, None)]
    return [
        {
            "step": tick.step,
            "time": tick.time,
            "planned_at": tick.planned_at,
            "started_at": tick.started_at,
            "lateness_ms": tick.lateness_ms,
            "solve_ms": solve_ms,
            "power_flow_ms": measured.power_flow_ms,
            "controller": controller,
            "origin": origin,
        }
        for controller, origin, solve_ms in rows
    ]


def _note(row: dict[str, Any], receipt: Receipt) -> bool:
    """Write a device's word down; whether it says anything new. Words may come late and twice."""
    outcome = receipt.outcome
    if outcome is Outcome.REFUSED or receipt.reason is not None:
        if row["received_at"] or row["applied_at"]:
            return False  # asked again, it says that it knows it already
        row["refused_at"], row["reason"], row["outcome"] = receipt.at, receipt.reason, outcome
        return True
    stamp = _STAMP_OF[outcome]
    if row[stamp] is not None:
        return False
    row[stamp] = receipt.at
    if row["applied_at"]:
        row["outcome"] = Outcome.FALLBACK if row["fallback_at"] else Outcome.APPLIED
    elif (outcome is not Outcome.FALLBACK and not row["refused_at"]) and (
        outcome is not Outcome.RECEIVED or row["outcome"] is Outcome.SENT
    ):
        row["outcome"] = outcome
    return True


def _patience(row: Mapping[str, Any], real: bool) -> int:
    """For how many steps a device may still have something to say of an instruction that is over."""
    if any(row[stamp] is not None for stamp in ("superseded_at", "fallback_at", "refused_at")):
        return 0
    return _REAL_LATE_STEPS if real else _LATE_STEPS if row["acked_at"] is not None else 0


def _issued(instruction: Instruction) -> dict[str, Any]:
    target = instruction.setpoint
    return {
        "seq": instruction.seq,
        "epoch": instruction.epoch,
        "device": instruction.device,
        "issued_at": instruction.issued_at,
        "valid_until": instruction.valid_until,
        "p_mw": target.p_mw if target else None,
        "q_mvar": target.q_mvar if target else None,
        "sent_at": None,
        "acked_at": None,
        **_UNHEARD,
        "outcome": Outcome.ISSUED,
    }


def _field(tick: Tick, report: DeviceReport) -> dict[str, Any] | None:
    """The row of `field` of a real device."""
    seen, silent = report.outside, report.silent_since is not None
    if seen is None:
        return None
    row: dict[str, Any] = {
        "time": tick.time,
        "device": report.device,
        "held": seen.held,
        "measured_at": seen.measured_at,
        "silent_since": seen.silent_since,
        "assumed_mw": report.p_mw if silent else None,
        "assumed_mvar": report.q_mvar if silent else None,
    }
    if (twin := seen.twin) is not None:
        both = report.e_mwh is not None and twin.e_mwh is not None
        row |= {
            "twin_p_mw": twin.p_mw,
            "twin_q_mvar": twin.q_mvar,
            "twin_e_mwh": twin.e_mwh,
            "divergence_mw": report.p_mw - twin.p_mw,
            "divergence_mvar": report.q_mvar - twin.q_mvar,
            "divergence_mwh": report.e_mwh - twin.e_mwh if both else None,  # type: ignore[operator]
        }
    return row


def _fairness(tick: Tick, turns: tuple[Turn, ...]) -> Rows | None:
    rows = [
        {
            "issued_at": tick.time,
            "valid_from": turn.valid_from,
            "controller": turn.controller,
            **asdict(turn.decision.fairness),
        }
        for turn in turns
        if turn.decision is not None and turn.decision.fairness is not None
    ]
    return rows or None


def _iterations(tick: Tick, turns: tuple[Turn, ...]) -> Rows | None:
    rows = [
        {"time": tick.time, "controller": turn.controller, **asdict(one), "gap": one.gap}
        for turn in turns
        if turn.decision is not None
        for one in turn.decision.iterations
    ]
    return rows or None


def _regions(tick: Tick, turns: tuple[Turn, ...]) -> Rows | None:
    """A row for each region and span of time; one without length for each target of what is withdrawn."""
    rows: list[dict[str, Any]] = []
    for turn in turns:
        if (old := turn.withdrawn) is not None:
            said = [part.regions for part in old.intervals(turn.valid_from, turn.valid_until)]
            for target, region in {t: r for regions in reversed(said) for t, r in regions.items()}.items():
                rows.append(_region(tick, turn, old.kind, target, region, (turn.valid_from, turn.valid_from)))
        if (decision := turn.decision) is None:
            continue
        for interval in decision.intervals(turn.valid_from, turn.valid_until):
            span = interval.start, interval.end
            for target, region in interval.regions.items():
                why = interval.certificates.get(target, _NO_CERTIFICATE)
                rows.append(_region(tick, turn, decision.kind, target, region, span, why))
    return rows or None


def _region(
    tick: Tick,
    turn: Turn,
    kind: Kind,
    target: str,
    region: Region,
    span: tuple[datetime, datetime],
    certificate: Certificate = _NO_CERTIFICATE,
) -> dict[str, Any]:
    return {
        "issued_at": tick.time,
        "valid_from": span[0],
        "valid_until": span[1],
        "controller": turn.controller,
        "target": target,
        "kind": kind,
        "seq": tick.step + 1,
        "axes": region.axes,
        "A": region.A,
        "b": region.b,
        "binding": certificate.binding,
        "worst_v_pu": certificate.worst_v_pu,
        "worst_loading_percent": certificate.worst_loading_percent,
        "power_flows": certificate.power_flows,
    }
