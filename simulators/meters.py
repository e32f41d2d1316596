"""Meters: what controllers are shown of the grid and the devices while meters are wrong; the records keep the
truth.

| fault | what controllers see |
|---|---|
| meter-stuck | the value of the first step with the fault |
| meter-biased | the true value and the bias |
| measurement-missing | nothing; of a device, that there is no data since then |
| device-silent | the same |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from simulators.clock import Tick
from simulators.devices import DeviceReport, Seen
from simulators.faults import Fault, Faults, What
from simulators.grid import Measured

Point = tuple[float, float]


class Meters:
    """The meters of a run."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._stuck: dict[int, Any] = {}
        """by fault, what its meter shows"""
        self._energies: dict[int, float | None] = {}
        """by fault, the stored energy that it shows"""

    def read(
        self, tick: Tick, measured: Measured, reports: Sequence[DeviceReport]
    ) -> tuple[Measured, Sequence[DeviceReport]]:
        """What is seen of a step."""
        kinds = (What.METER_STUCK, What.METER_BIASED, What.MEASUREMENT_MISSING, What.DEVICE_SILENT)
        faults = list(self._faults.active(*kinds))
        on = {fault.number for fault in faults}
        self._stuck = {number: value for number, value in self._stuck.items() if number in on}
        self._energies = {number: value for number, value in self._energies.items() if number in on}
        if not faults:
            return measured, reports
        v_pu = dict(measured.v_pu)
        load_p, load_q = dict(measured.load_p_mw), dict(measured.load_q_mvar)
        by_name = {report.device: report for report in reports}
        for fault in faults:
            if fault.bus is not None:
                self._voltage(fault, v_pu)
            elif fault.device in by_name:
                by_name[fault.device] = self._report(fault, tick, by_name[fault.device])
            elif fault.device in load_p:
                self._load(fault, fault.device, load_p, load_q)
        return replace(measured, v_pu=v_pu, load_p_mw=load_p, load_q_mvar=load_q), list(by_name.values())

    def memory(self) -> object:
        """What the next step needs, for `recall`."""
        return dict(self._stuck), dict(self._energies)

    def recall(self, memory: Any) -> None:
        """Go on from what `memory` has returned."""
        stuck, energies = memory
        self._stuck, self._energies = dict(stuck), dict(energies)

    def _voltage(self, fault: Fault, v_pu: dict[str, float]) -> None:
        assert fault.bus is not None
        if fault.what is What.MEASUREMENT_MISSING:
            v_pu.pop(fault.bus, None)
        elif fault.bus not in v_pu:
            return
        elif fault.what is What.METER_STUCK:
            v_pu[fault.bus] = self._stuck.setdefault(fault.number, v_pu[fault.bus])
        else:
            v_pu[fault.bus] += fault.v_pu or 0.0

    def _load(self, fault: Fault, name: str, p_mw: dict[str, float], q_mvar: dict[str, float]) -> None:
        if fault.what is What.MEASUREMENT_MISSING:
            del p_mw[name], q_mvar[name]
        else:
            p_mw[name], q_mvar[name] = self._shown(fault, (p_mw[name], q_mvar[name]))

    def _report(self, fault: Fault, tick: Tick, report: DeviceReport) -> DeviceReport:
        if fault.what in (What.MEASUREMENT_MISSING, What.DEVICE_SILENT):
            seen = report.outside or Seen(None, None, False)
            since = self._stuck.setdefault(fault.number, tick.time)
            return replace(report, outside=replace(seen, silent_since=seen.silent_since or since))
        p_mw, q_mvar = self._shown(fault, (report.p_mw, report.q_mvar))
        return replace(report, p_mw=p_mw, q_mvar=q_mvar, e_mwh=self._energy(fault, report.e_mwh))

    def _energy(self, fault: Fault, true: float | None) -> float | None:
        """A meter that is stuck says no other stored energy either."""
        if fault.what is not What.METER_STUCK:
            return true
        shown: float | None = self._energies.setdefault(fault.number, true)
        return shown

    def _shown(self, fault: Fault, true: Point) -> Point:
        if fault.what is What.METER_STUCK:
            shown: Point = self._stuck.setdefault(fault.number, true)
            return shown
        return true[0] + (fault.p_mw or 0.0), true[1] + (fault.q_mvar or 0.0)
