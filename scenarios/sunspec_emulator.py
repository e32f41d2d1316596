"""`gridpace sunspec-emulator`: twins behind SunSpec Modbus registers, for a run or for anybody else."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from math import acos, isfinite, tan
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from bridges.device_bridge import Capability
from bridges.sunspec.emulator import Emulator
from bridges.sunspec.unit import Event, Limits, Measured, Unit
from controllers.contract import Setpoint
from controllers.devices import AXES, Battery, Device, Generator, PvInverter, WindTurbine, still
from controllers.region import Region
from controllers.register import Order, Regime
from simulators.devices import DeviceTwin

if TYPE_CHECKING:
    from scenarios.load import Draft
    from scenarios.schema import Scenario

LOOPBACK = ("127.0.0.1", "::1", "localhost")


class NoEmulator(ValueError):
    """What was asked for cannot be emulated."""


@dataclass(frozen=True, slots=True)
class Emulated:
    """A device and what drives it, by seconds since the start; `None` without a profile."""

    device: Device
    drive: Callable[[float], float | None]


def of_scenario(
    draft: Draft, scenario: Scenario, names: Sequence[str], drive: float | None = None
) -> list[Emulated]:
    """Devices of a scenario, driven by their profiles from its start on.

    Args:
        names: of devices; empty: all that can be emulated.
        drive: what drives them instead, in per unit of their rating.

    Raises:
        NoEmulator: no such device, or one of a kind that SunSpec cannot tell what to do.
        ScenarioInvalid: the scenario cannot be built.
    """
    from scenarios.build import build  # which needs pandapower; devices by kind do not
    from scenarios.drives import Drives

    built = build(draft, scenario)
    devices = built.site.devices
    unknown = [name for name in names if name not in devices]
    if unknown:
        raise NoEmulator(f"{unknown[0]!r} is no device of {scenario.name}; it has {', '.join(devices)}")
    profiles = Drives(built)
    wanted = names or [name for name, device in devices.items() if _can_be_told(device)]
    for name in wanted:
        capability_of(devices[name])
    return [
        Emulated(devices[name], (lambda at: drive) if drive is not None else partial(profiles.at, name))
        for name in wanted
    ]


def by_kind(
    kinds: Sequence[str], count: int, *, p_mw: float, s_mva: float | None, e_mwh: float | None, drive: float
) -> list[Emulated]:
    """Devices without a scenario: `count` of them, their kinds in turn, named after kind and number.

    Args:
        e_mwh: capacity of a battery, half full at first; two hours at `p_mw` if not given.
        drive: of a PV inverter, in per unit of `p_mw`.

    Raises:
        NoEmulator: a kind that there is not, or a rating that makes no sense.
    """
    s_mva, e_mwh = p_mw if s_mva is None else s_mva, 2 * p_mw if e_mwh is None else e_mwh
    for option, value in (("--p-mw", p_mw), ("--s-mva", s_mva), ("--e-mwh", e_mwh)):
        if not (isfinite(value) and value > 0):
            raise NoEmulator(f"{option} {value:g} must be positive")
    common: dict[str, Any] = {"bus": "0", "p_mw": p_mw, "s_mva": s_mva, "weight": 1.0, "default": still()}
    found: list[Emulated] = []
    for i in range(count):
        kind = kinds[i % len(kinds)]
        match kind:
            case "pv":
                device: Device = PvInverter(name=f"pv{i + 1}", **common)
            case "battery":
                device = Battery(
                    name=f"battery{i + 1}",
                    **common,
                    e_mwh=e_mwh,
                    e_min_mwh=0.0,
                    e_start_mwh=e_mwh / 2,
                    efficiency=(0.95, 0.95),
                )
            case _:
                raise NoEmulator(f"--kind {kind}: there are battery and pv; others come with a scenario")
        found.append(Emulated(device, partial(_constant, drive if kind == "pv" else None)))
    return found


def _constant(value: float | None, at: float) -> float | None:
    return value


def _can_be_told(device: Device) -> bool:
    return isinstance(device, Battery | PvInverter | WindTurbine | Generator)


def capability_of(device: Device) -> Capability:
    """The nameplate of a twin, as model 702 says it.

    Raises:
        NoEmulator: a kind for which SunSpec has no controls.
    """
    match device:
        case Battery():
            s, p = device.s_mva, min(device.p_mw, device.s_mva)
            return Capability(
                p_max_mw=p,
                p_min_mw=-p,
                s_mva=s,
                q_max_mvar=s,
                q_min_mvar=-s,
                e_mwh=device.e_mwh,
                storage=True,
            )
        case Generator() if device.q_mvar is not None:
            low, high = device.q_mvar
            return Capability(p_max_mw=device.p_mw, q_max_mvar=high, q_min_mvar=low)
        case PvInverter() | Generator():
            s = device.s_mva
            return Capability(p_max_mw=min(device.p_mw, s), s_mva=s, q_max_mvar=s, q_min_mvar=-s)
        case WindTurbine():
            q = device.p_mw * tan(acos(device.power_factor))
            s = device.p_mw / device.power_factor
            return Capability(p_max_mw=device.p_mw, s_mva=s, q_max_mvar=q, q_min_mvar=-q)
        case _:
            raise NoEmulator(
                f"{device.name!r} is a {type(device).__name__}, which model 704 has no controls for"
            )


class TwinPlant:
    """A twin that obeys registers, as a `Plant`.

    Args:
        clock: seconds since the start.
        horizon_s: for how long what it takes up must be possible.
    """

    def __init__(self, emulated: Emulated, clock: Callable[[], float], horizon_s: float = 1.0) -> None:
        self._device, self._drive = emulated.device, emulated.drive
        self._twin, self._clock, self._horizon_s = DeviceTwin(emulated.device), clock, horizon_s
        self._proposal = self._propose(Limits(), 0.0)

    def step(self, limits: Limits, elapsed_s: float) -> Measured:
        if elapsed_s > 0:
            self._twin.hold(self._proposal, elapsed_s)
        self._proposal = proposal = self._propose(limits, elapsed_s)
        return Measured(p_mw=proposal.p_mw, q_mvar=proposal.q_mvar, e_mwh=self._twin.state.e_mwh)

    def _propose(self, limits: Limits, elapsed_s: float) -> Any:
        # An engine's ramp goes by the time that has passed; energy by the time for which it must last.
        every_s = max(elapsed_s, 1e-3) if isinstance(self._device, Generator) else self._horizon_s
        order = Order(
            Regime.CONTROLLED,
            region=_region(limits),
            setpoint=None
            if limits.p_mw is None and limits.q_mvar is None
            else Setpoint(p_mw=limits.p_mw, q_mvar=limits.q_mvar),
        )
        return self._twin.obey(order, still(), self._drive(self._clock()), every_s)


def _region(limits: Limits) -> Region | None:
    if not limits.connected:
        return still()
    rows = []
    if limits.limit_mw is not None:
        rows.append((1.0, 0.0, limits.limit_mw))
    if limits.q_mvar is not None:
        rows += [(0.0, 1.0, limits.q_mvar), (0.0, -1.0, -limits.q_mvar)]
    if not rows:
        return None
    table = np.array(rows)
    return Region(AXES, table[:, :2], table[:, 2])


class Log:
    """What happens, one JSON object a line, for somebody who checks afterwards."""

    def __init__(self, file: IO[str] | None, names: Mapping[tuple[int, int], str]) -> None:
        self._file, self._names = file, names
        self._reverted: dict[tuple[int, int], bool] = {}

    def write(self, port: int, at: datetime, event: Event) -> None:
        """Add a line.

        Args:
            port: beside the unit, which of several servers it is; any number that tells them apart.
        """
        key = (port, event.unit)
        if event.kind == "reverted":
            self._reverted[key] = True
        elif event.kind == "written" and any(name.endswith("Ena") for name in event.points):
            self._reverted[key] = False
        if self._file is None:
            return
        limits, measured = event.limits, event.measured
        line: dict[str, Any] = {
            "time": at.isoformat().replace("+00:00", "Z"),
            "device": self._names[key],
            "unit": event.unit,
            "what": event.kind,
            "p_mw": measured.p_mw,
            "q_mvar": measured.q_mvar,
            "e_mwh": measured.e_mwh,
            "limit_mw": limits.limit_mw,
            "p_set_mw": limits.p_mw,
            "q_set_mvar": limits.q_mvar,
            "connected": limits.connected,
            "reverted": self._reverted.get(key, False),
        }
        if event.points:
            line["points"] = dict(event.points)
        if event.why:
            line["why"] = event.why
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


async def serve(
    emulated: Sequence[Emulated],
    *,
    host: str,
    port: int,
    own_ports: bool,
    every_s: float,
    log: IO[str] | None,
    say: Callable[[str], None],
) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        own_ports: one port each, from `port` on, all of them unit 1; else one port, units from 1 on.

    Raises:
        PortTaken: a port cannot be had.
        NoEmulator: more units than Modbus knows.
    """
    if not own_ports and len(emulated) > 247:
        raise NoEmulator(f"{len(emulated)} units at one port, but Modbus knows 247; give each its own port")
    began, began_at = time.monotonic(), datetime.now(UTC)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)

    places = [(i, 1) if own_ports else (0, i + 1) for i in range(len(emulated))]
    book = Log(log, {place: each.device.name for place, each in zip(places, emulated, strict=True)})

    def watch(server: int, event: Event) -> None:
        book.write(server, began_at + timedelta(seconds=event.at - began), event)

    units = [
        Unit(
            number,
            capability_of(each.device),
            TwinPlant(each, lambda: time.monotonic() - began, max(every_s, 1.0)),
            monotonic=time.monotonic,
            name=each.device.name,
            watch=partial(watch, server),
        )
        for (server, number), each in zip(places, emulated, strict=True)
    ]
    groups = [[unit] for unit in units] if own_ports else [units]
    async with AsyncExitStack() as stack:
        for i, group in enumerate(groups):
            server = Emulator(group, host=host, port=port and port + i, every_s=every_s)
            await stack.enter_async_context(server)
            for unit in group:
                say(f"{unit.name}: unit {unit.number} at {host}:{server.port}")
        if host not in LOOPBACK:
            say(f"Modbus/TCP has no passwords: whoever reaches {host} commands these devices")
        say("ready")
        await stop.wait()
