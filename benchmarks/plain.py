"""The obvious way: a day in a plain loop, without mosaik, without a bus, recording nothing.

`pandapower.runpp` with its defaults and two cvxpy problems stated anew in each step; profiles, device
models and the rows of the allowable powers are those of a run, and so are voltages and powers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import cvxpy as cp
import numpy as np
import numpy.typing as npt
import pandapower as pp

from controllers.contract import Instruction
from controllers.envelopes.allowable import AllowableRegion
from controllers.envelopes.equal_ranges import together
from controllers.region import Region
from scenarios.build import Built
from scenarios.grids import load_grid
from scenarios.load import Draft
from simulators.devices import DeviceTwin

Array = npt.NDArray[np.float64]


@dataclass
class Trace:
    """What came out, for a comparison with a run."""

    v_pu: list[Array] = field(default_factory=list)
    """(buses,) of each step, in the order of the net's table"""
    p_mw: list[dict[str, float]] = field(default_factory=list)
    """injection of each device"""
    limits: list[tuple[float, float]] = field(default_factory=list)
    """common range per unit of weight [MW], export and import"""


def rebuilt_range(coefficients: Array, gamma: Array, room: Array, sign: float) -> float:
    """One of P-E's linear programs, (A7) with `sign` 1 or (A8) with -1, stated and solved from scratch.

    Args:
        coefficients: (rows, devices) A of the allowable powers.
        gamma: (devices,) weights.
        room: (rows,) W of the allowable powers.

    Returns:
        the common range per unit of weight [MW].
    """
    p_mw: Any = cp.Variable(len(gamma))
    problem = cp.Problem(
        cp.Maximize(sign * (np.ones(len(gamma)) @ p_mw)),
        [
            (np.maximum(sign * coefficients, 0) * sign) @ p_mw <= room,
            p_mw[:-1] / gamma[:-1] == p_mw[1:] / gamma[1:],
            sign * p_mw >= 0,
        ],
    )
    problem.solve(solver=cp.CLARABEL)  # type: ignore[no-untyped-call]
    return float(sign * p_mw.value[0] / gamma[0])


def run_plain(draft: Draft, built: Built, steps: int) -> Trace:
    """Simulate `steps` steps of a scenario with the controller P-E.

    Args:
        draft: names the grid.
        built: its processes are moved on, so each call needs a new one.
    """
    scenario, site = built.scenario, built.site
    net: Any = load_grid(scenario.grid.network, draft.folder)
    for edit in scenario.grid.edits:
        net[edit.table].loc[net[edit.table].index if edit.index == "all" else edit.index, edit.column] = (
            edit.value
        )
    loads = [site.loads[f"load:{i}"] for i in net.load.index]
    at = [int(device.bus) for device in site.devices.values()]
    sgens = [pp.create_sgen(net, bus, p_mw=0.0) for bus in at]
    rows = AllowableRegion(site)
    gamma = np.array([device.weight for device in site.devices.values()])
    use = np.stack([np.maximum(rows.A, 0) @ gamma, np.maximum(-rows.A, 0) @ gamma])
    twins = {name: DeviceTwin(device) for name, device in site.devices.items()}
    names = [name for d in built.driven for name in d.process.names]
    rating = np.concatenate([d.rating_mw for d in built.driven])
    every_s = scenario.every.total_seconds()
    instructions: list[Instruction] = []
    trace = Trace()
    for step in range(steps):
        now = scenario.start + step * scenario.every
        for d in built.driven:
            d.process.advance(step)
        values = np.concatenate([d.process.now() for d in built.driven])
        drive = dict(zip(names, values.tolist(), strict=True))
        coming = np.concatenate([d.process.forecast(1)[0][0] for d in built.driven]) * rating

        for instruction in instructions:
            twins[instruction.device].receive(instruction, now)
        reports = [twin.step(now, drive.get(name), every_s) for name, twin in twins.items()]
        p = [load.p_mw * drive.get(load.name, 1.0) for load in loads]
        net.load["p_mw"] = [-x for x in p]
        net.load["q_mvar"] = [-load.reactive(x) for load, x in zip(loads, p, strict=True)]
        net.sgen.loc[sgens, "p_mw"] = [report.p_mw for report in reports]
        net.sgen.loc[sgens, "q_mvar"] = [report.q_mvar for report in reports]
        pp.runpp(net)
        trace.v_pu.append(net.res_bus.vm_pu.to_numpy(copy=True))
        trace.p_mw.append({report.device: report.p_mw for report in reports})

        room = rows.W(*rows.background(dict(zip(names, coming.tolist(), strict=True))))
        t_u, t_l = (rebuilt_range(rows.A, gamma, room, sign) for sign in (1.0, -1.0))
        share, _ = together(use, room, t_u, t_l)
        t_u, t_l = share * t_u, share * t_l
        trace.limits.append((t_u, t_l))
        acts_at = now + scenario.every
        instructions = [
            Instruction(
                device=name,
                epoch=1,
                seq=step + 1,
                issued_at=now,
                valid_from=acts_at,
                valid_until=acts_at + built.seats[0].valid_for,
                region=Region.box(p_mw=(-weight * t_l, weight * t_u), q_mvar=(0.0, 0.0)),
                setpoint=None,
                fallback=site.devices[name].default,
            )
            for name, weight in zip(site.devices, gamma.tolist(), strict=True)
        ]
    return trace
