"""Recorder: writes each finished step to the journal, the last thing that happens in a step."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from controllers.contract import Certificate, Instruction
from controllers.forecast import Forecast
from simulators.clock import Tick
from simulators.controller import Turn
from simulators.devices import DeviceReport, Obedience, Receipt
from simulators.grid import Measured
from simulators.journal import Journal
from simulators.microgrids import Exchange
from simulators.outbox import Published
from simulators.stage import Stage
from simulators.tables import Outcome, Rows

_NO_CERTIFICATE = Certificate()
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_TIME = pa.timestamp("us", "UTC")


@dataclass
class Progress:
    """Where a run is; the runner shows it."""

    step: int = -1
    """last step that is recorded"""
    tick: Tick | None = None
    turns: tuple[Turn, ...] = ()
    measured: Measured = field(default_factory=Measured)


class RecorderSimulator(Stage):
    """mosaik simulator of one entity `recorder`.

    Inputs: `tick`, `measured`, `forecast`, `turns`, `published`, `receipts`, `exchanges`, `report` (each
    device).
    Output: `done`, the step that is on disk.
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
        on_step: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        super().__init__(
            "recorder",
            takes=["tick", "measured", "forecast", "turns", "published", "receipts", "exchanges", "report"],
            gives=["done"],
        )
        self._journal, self._on_step, self._with_forecasts = journal, on_step, forecasts
        self._in_thread = in_thread
        self._buses, self._bus_names = tuple(buses), pa.array(buses, pa.string())
        self._branch_names = pa.array(branches, pa.string())
        self._device_names = tuple(devices)
        self._forecast_key: tuple[tuple[str, ...], int, timedelta] | None = None
        self._forecast_rows: tuple[pa.Array, npt.NDArray[np.int64]]
        self._outstanding: dict[tuple[int, int, str], dict[str, Any]] = {}
        self.progress = Progress()

    def work(self, time: int, given: dict[str, list[Any]]) -> Awaitable[Any] | None:
        (tick,), (measured,), (published,) = given["tick"], given["measured"], given["published"]
        (turns,), (receipts,), (forecast,) = given["turns"], given["receipts"], given["forecast"]
        (exchanges,) = given["exchanges"]
        reports = given.get("report", [])
        everything = (tick, measured, forecast, turns, published, receipts, reports, exchanges)
        self.out["recorder"] = {"done": tick.step}
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
        published: Published,
        receipts: Sequence[Receipt],
        reports: Sequence[DeviceReport],
        exchanges: Mapping[str, Exchange] | None = None,
    ) -> None:
        """Append one step to the journal."""
        tables: dict[str, Rows] = {"steps": self._steps(tick, measured, turns, published)}
        if measured.v_pu:
            tables["buses"] = {
                "time": tick.time,
                "bus": self._bus_names,
                "v_pu": np.fromiter((measured.v_pu[bus] for bus in self._buses), float, len(self._buses)),
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
        if setpoints := self._setpoints(tick, published, receipts):
            tables["setpoints"] = setpoints
        if self._with_forecasts and len(forecast.mean) and len(forecast.names):
            tables["forecasts"] = self._forecasts(forecast)
        self._journal.append(tick.step, tables)
        self.progress.step, self.progress.tick = tick.step, tick
        self.progress.turns, self.progress.measured = turns, measured
        self._on_step(self.progress)

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
            "p_mw": [*(r.p_mw for r in ordered), *loads.values()],
            "q_mvar": [*(r.q_mvar for r in ordered), *measured.load_q_mvar.values()],
            "e_mwh": [*(r.e_mwh for r in ordered), *missing],
            "available_mw": [*(r.available_mw for r in ordered), *missing],
            "curtailed_mw": [*(r.curtailed_mw for r in ordered), *missing],
            "state": [*(r.obedience for r in ordered), *([Obedience.UNCONTROLLED] * len(loads))],
        }

    def _steps(self, tick: Tick, measured: Measured, turns: tuple[Turn, ...], published: Published) -> Rows:
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
                "publish_ms": published.publish_ms,
                "controller": controller,
                "origin": origin,
            }
            for controller, origin, solve_ms in rows
        ]

    def _setpoints(
        self, tick: Tick, published: Published, receipts: Sequence[Receipt]
    ) -> list[dict[str, Any]]:
        """New instructions, and earlier ones of which something was heard."""
        changed: dict[tuple[int, int, str], None] = {}
        # A twin answers inside the co-simulation; only what comes over the bus is an acknowledgement.
        for receipt, on_bus in [*((r, True) for r in published.receipts), *((r, False) for r in receipts)]:
            key = receipt.epoch, receipt.seq, receipt.device
            row = self._outstanding.get(key)
            if row is None:
                continue  # an answer to something expired, or of another run
            if on_bus or row["acked_at"] is None:  # a device's own word stands above that of its twin
                row["outcome"] = receipt.outcome
            if on_bus:
                row["acked_at"] = tick.time
            if receipt.outcome is Outcome.APPLIED is row["outcome"]:
                row["applied_at"] = row["applied_at"] or receipt.at
            changed[key] = None
        for key, row in self._outstanding.items():
            if row["valid_until"] <= tick.time and row["outcome"] is Outcome.SENT:
                row["outcome"] = Outcome.EXPIRED
                changed[key] = None
        rows = [dict(self._outstanding[key]) for key in changed]
        for key in [k for k, row in self._outstanding.items() if row["valid_until"] <= tick.time]:
            del self._outstanding[key]
        for instruction in published.instructions:
            row = _sent(instruction, tick.time)
            self._outstanding[instruction.epoch, instruction.seq, instruction.device] = row
            rows.append(dict(row))
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


def _sent(instruction: Instruction, at: datetime) -> dict[str, Any]:
    target = instruction.setpoint
    return {
        "seq": instruction.seq,
        "epoch": instruction.epoch,
        "device": instruction.device,
        "issued_at": instruction.issued_at,
        "valid_until": instruction.valid_until,
        "p_mw": target.p_mw if target else None,
        "q_mvar": target.q_mvar if target else None,
        "sent_at": at,
        "acked_at": None,
        "applied_at": None,
        "outcome": Outcome.SENT,
    }


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


def _regions(tick: Tick, turns: tuple[Turn, ...]) -> Rows | None:
    """A row for each region and span of time; one without length for each target of what is withdrawn."""
    rows = []
    for turn in turns:
        if (old := turn.withdrawn) is not None:
            said = [part.regions for part in old.intervals(turn.valid_from, turn.valid_until)]
            for target, region in {t: r for regions in reversed(said) for t, r in regions.items()}.items():
                rows.append(
                    {
                        "issued_at": tick.time,
                        "valid_from": turn.valid_from,
                        "valid_until": turn.valid_from,
                        "controller": turn.controller,
                        "target": target,
                        "kind": old.kind,
                        "seq": tick.step + 1,
                        "axes": region.axes,
                        "A": region.A,
                        "b": region.b,
                        "binding": None,
                        "worst_v_pu": None,
                        "worst_loading_percent": None,
                        "power_flows": 0,
                    }
                )
        if (decision := turn.decision) is None:
            continue
        for interval in decision.intervals(turn.valid_from, turn.valid_until):
            for target, region in interval.regions.items():
                certificate = interval.certificates.get(target, _NO_CERTIFICATE)
                rows.append(
                    {
                        "issued_at": tick.time,
                        "valid_from": interval.start,
                        "valid_until": interval.end,
                        "controller": turn.controller,
                        "target": target,
                        "kind": decision.kind,
                        "seq": tick.step + 1,
                        "axes": region.axes,
                        "A": region.A,
                        "b": region.b,
                        "binding": certificate.binding,
                        "worst_v_pu": certificate.worst_v_pu,
                        "worst_loading_percent": certificate.worst_loading_percent,
                        "power_flows": certificate.power_flows,
                    }
                )
    return rows or None
