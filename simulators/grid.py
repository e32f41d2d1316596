"""Grid: the AC power flow of each step, whatever engine solves it."""

from __future__ import annotations

import time as wall_time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from controllers.devices import Device
from controllers.microgrid import Microgrid
from controllers.network import PowerFlow
from controllers.regulators import Regulator, moves, standing
from controllers.site import Load
from simulators.clock import Duty, Tick
from simulators.devices import DeviceReport
from simulators.microgrids import Exchange
from simulators.outage import Outages
from simulators.stage import Stage

Array = npt.NDArray[np.float64]


class Divergence(StrEnum):
    """What to do when the power flow of a step has no solution."""

    RECORD = "record"
    """an event; the step's voltages and flows are missing, the run goes on"""
    ABORT = "abort"
    """end the run"""


class GridDiverged(Exception):
    """The power flow did not converge and the policy is to end the run."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The grid at one step. Everything is missing where the power flow did not run or converge."""

    v_pu: Mapping[str, float] = field(default_factory=dict)
    load_p_mw: Mapping[str, float] = field(default_factory=dict)
    """injected by loads and fixed generators"""
    load_q_mvar: Mapping[str, float] = field(default_factory=dict)
    branch_p_mw: Array | None = None
    """(branches,) in the engine's order"""
    branch_q_mvar: Array | None = None
    loading_percent: Array | None = None
    power_flow_ms: float | None = None
    positions: Mapping[str, int] = field(default_factory=dict)
    """where each regulator stands"""
    exchange_p_mw: Mapping[str, float] = field(default_factory=dict)
    """into the network, by microgrid"""
    exchange_q_mvar: Mapping[str, float] = field(default_factory=dict)
    connected: Mapping[str, bool] = field(default_factory=dict)
    """whether each microgrid's breaker is closed"""


class GridSimulator(Stage):
    """mosaik simulator of one entity `grid`: sums what is injected at each bus and solves.

    Inputs: `tick`, `drive` (per-unit values by name; loads without one stay nominal), `report`
    (each device), `exchanges` (by microgrid), `positions` (of regulators, decided in the step before;
    without one they stay where they are). Output: `measured`. What is in a microgrid that is not connected
    injects nothing here. Where there is no supply, nothing is measured.
    """

    def __init__(
        self,
        power_flow: PowerFlow,
        devices: Mapping[str, Device],
        loads: Mapping[str, Load],
        on_divergence: Divergence,
        event: Callable[..., None],
        regulators: Mapping[str, Regulator] | None = None,
        microgrids: Mapping[str, Microgrid] | None = None,
        outages: Outages | None = None,
    ) -> None:
        takes = ["tick", "drive", "report", "exchanges", "positions"]
        super().__init__("grid", takes=takes, gives=["measured"])
        self._behind = {device: g.name for g in (microgrids or {}).values() for device in g.devices}
        self._positions = standing(regulators or {}, {})
        self._power_flow, self._on_divergence, self._event = power_flow, on_divergence, event
        index = {bus: i for i, bus in enumerate(power_flow.buses)}
        self._device_row = {name: index[device.bus] for name, device in devices.items()}
        self._loads = tuple((load, index[load.bus]) for load in loads.values())
        self._devices, self._outages, self._open = devices, outages, frozenset[str]()
        self.counts: Counter[str] = Counter()

    def work(self, time: int, given: dict[str, list[Any]]) -> None:
        (tick,), (drive,), (positions,) = given["tick"], given["drive"], given["positions"]
        (exchanges,) = given["exchanges"]
        self.out["grid"] = {"measured": self.run(tick, drive, given.get("report", []), positions, exchanges)}

    def run(
        self,
        tick: Tick,
        drive: Mapping[str, float],
        reports: Sequence[DeviceReport],
        positions: Mapping[str, int],
        exchanges: Mapping[str, Exchange] | None = None,
    ) -> Measured:
        """Move the regulators and solve one step.

        Raises:
            GridDiverged: no solution and the policy is `abort`.
        """
        self._move(tick, positions)
        stands = MappingProxyType(self._positions)
        if tick.duty is Duty.SKIP:
            return Measured(positions=stands)
        p_mw, q_mvar = np.zeros(len(self._power_flow.buses)), np.zeros(len(self._power_flow.buses))
        load_p, load_q = {}, {}
        power_flow, dark = self._supply(tick)
        for load, row in self._loads:
            if load.bus in dark:
                continue  # its meter has no voltage either
            p = load.p_mw * drive.get(load.name, 1.0)
            q = load.reactive(p)
            load_p[load.name], load_q[load.name] = p, q
            p_mw[row] += p
            q_mvar[row] += q
        coupled = exchanges or {}
        open_at = {name for name, exchange in coupled.items() if not exchange.connected}
        for report in reports:
            if self._behind.get(report.device) in open_at:
                continue
            row = self._device_row[report.device]
            p_mw[row] += report.p_mw
            q_mvar[row] += report.q_mvar

        started = wall_time.perf_counter()
        flows = power_flow.at(stands).solve(p_mw[None, :], q_mvar[None, :])
        known = Measured(
            load_p_mw=load_p,
            load_q_mvar=load_q,
            power_flow_ms=(wall_time.perf_counter() - started) * 1e3,
            positions=stands,
            exchange_p_mw={name: exchange.p_mw for name, exchange in coupled.items()},
            exchange_q_mvar={name: exchange.q_mvar for name, exchange in coupled.items()},
            connected={name: exchange.connected for name, exchange in coupled.items()},
        )
        if not flows.converged[0]:
            self.counts["power-flow-diverged"] += 1
            why = f"the power flow did not converge (injections sum to {p_mw.sum():.3f} MW)"
            self._event(tick.time, "power-flow-diverged", step=tick.step, why=why)
            if self._on_divergence is Divergence.ABORT:
                raise GridDiverged(f"step {tick.step}: {why}; the grid's on_divergence is 'abort'")
            return known
        return replace(
            known,
            v_pu={
                bus: v
                for bus, v in zip(self._power_flow.buses, flows.v_pu[0].tolist(), strict=True)
                if bus not in dark
            },
            branch_p_mw=flows.p_mw[0],
            branch_q_mvar=flows.q_mvar[0],
            loading_percent=flows.loading_percent[0],
        )

    def memory(self) -> object:
        """Where the regulators stand and what is open, for `recall`."""
        return dict(self._positions), tuple(sorted(self._open))

    def recall(self, memory: Any) -> None:
        """Go on from what `memory` has returned."""
        self._positions, opened = memory
        self._open = frozenset(opened)

    def _supply(self, tick: Tick) -> tuple[PowerFlow, frozenset[str]]:
        """The grid as it is now, and the buses without supply; each change is an event."""
        if self._outages is None:
            return self._power_flow, frozenset()
        opened, (power_flow, dark) = self._outages.opened, self._outages.now()
        if opened != self._open:
            self._open = opened
            self.counts["topology-changes"] += 1
            self._event(
                tick.time,
                "topology-changed",
                step=tick.step,
                opened=sorted(opened),
                unsupplied=sorted(dark, key=lambda bus: (len(bus), bus)),
                loads=[load.name for load, _ in self._loads if load.bus in dark],
                devices=[name for name, device in self._devices.items() if device.bus in dark],
                why=f"{', '.join(sorted(opened)) or 'nothing'} open, "
                f"{len(dark)} {'bus' if len(dark) == 1 else 'buses'} without supply",
            )
        return power_flow, dark

    def _move(self, tick: Tick, positions: Mapping[str, int]) -> None:
        stands = {**self._positions, **positions}
        for name, count in moves(self._positions, stands).items():
            self.counts["regulator-moves"] += count
            self._event(
                tick.time,
                "regulator-moved",
                step=tick.step,
                regulator=name,
                before=self._positions[name],
                position=stands[name],
            )
        self._positions = stands
