"""Release: what the AC power flow of the site says of an agreed operation, before anybody acts by it.

The agreement keeps limits in the relaxed branch flow, whose cones were tight or not. The AC power flow of the
same injections is solved for every interval, which is another way to the same voltages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from controllers.contract import Certificate, Origin
from controllers.network import PowerFlow
from controllers.partnership.distribution import Conditions, Feeder, Operation

Array = npt.NDArray[np.float64]

V_PU = 2e-5
"""How far beyond a limit of voltage still counts as on it."""
LOADING_PERCENT = 2e-2
"""The same of a loading, where branches are limited at all."""
TIGHT = 1e-4
"""`Operation.gap` up to which the relaxation counts as exact."""


@dataclass(frozen=True, eq=False)
class Checked:
    """What was found."""

    holds: bool
    """whether every interval converged and keeps all limits"""
    worst_v_pu: float | None
    """voltage closest to its limit, or farthest beyond, of all intervals; `None`: nothing converged"""
    worst_loading_percent: float | None
    power_flows: int
    why: str
    """what is broken, or what is nearest, in words"""


def check(
    engine: PowerFlow,
    feeder: Feeder,
    conditions: Conditions,
    operation: Operation,
) -> Checked:
    """Solve the AC power flow of each interval.

    Args:
        engine: of the site, its regulators where they stand.
        operation: what the operator's own devices do, and what the microgrids exchange.

    Raises:
        ValueError: a bus that the power flow does not have.
    """
    place = {bus: i for i, bus in enumerate(engine.buses)}
    p, q = np.zeros((2, feeder.intervals, len(place)))
    q_per_p = np.array([load.q_per_p for load in feeder.loads])
    for values, given in (
        (conditions.p_mw + operation.curtailed_mw, (p, [load.bus for load in feeder.loads])),
        (operation.p_mw, (p, feeder.microgrids)),
        (conditions.q_mvar + operation.curtailed_mw * q_per_p, (q, [d.bus for d in feeder.loads])),
        (operation.q_mvar, (q, feeder.microgrids)),
        (operation.svc_mvar, (q, [device.bus for device in feeder.compensators])),
    ):
        into, buses = given
        for k, bus in enumerate(buses):
            if bus not in place:
                raise ValueError(f"partnership: the power flow has no bus {bus!r}; build it of the same net")
            into[:, place[bus]] += values[:, k]
    flows = engine.solve(p, q)
    low, high = feeder.limits.v_pu
    at = [place[bus] for bus in feeder.network.buses]
    v = flows.v_pu[:, at][flows.converged]
    if not len(v):
        return Checked(False, None, None, len(p), "the AC power flow does not converge")
    margin = np.minimum(v - low, high - v)
    t, n = np.unravel_index(int(margin.argmin()), margin.shape)
    worst, bus = float(v[t, n]), feeder.network.buses[n]
    loading = flows.loading_percent[flows.converged]
    most = float(np.nanmax(loading)) if np.isfinite(loading).any() else None
    allowed = feeder.limits.loading_percent if feeder.line_limits else np.inf
    overloaded = most is not None and most > allowed + LOADING_PERCENT
    within = bool(flows.converged.all()) and float(margin[t, n]) >= -V_PU and not overloaded
    side = "lower" if worst - low < high - worst else "upper"
    why = f"{side} voltage at bus {bus}: {worst:.4f} pu of {low if side == 'lower' else high:g} pu"
    if overloaded:
        why = f"a branch carries {most:.1f} % of its rating, limit {allowed:g} %; {why}"
    if not flows.converged.all():
        why = f"the AC power flow converges in {int(flows.converged.sum())} of {len(p)} intervals; {why}"
    return Checked(within, worst, most, len(p), why)


def inexact(operation: Operation) -> list[str]:
    """What the relaxation is wrong about, in words."""
    if operation.gap <= TIGHT:
        return []
    return [f"the relaxed branch flow is off by {operation.gap:.1e}: losses and cost are not as planned"]


def origin_of(wrong: Sequence[str], checked: Checked | None) -> Origin:
    """How a decision came about of which this is wrong, and which was checked or not."""
    if wrong or (checked is not None and not checked.holds):
        return Origin.DEGRADED
    return Origin.OPTIMAL if checked is None else Origin.CERTIFIED


def certificate(why: str, checked: Checked | None) -> Certificate:
    """What is published about a decision; `None`: the site has no AC power flow."""
    if checked is None:
        return Certificate(binding=why)
    return Certificate(
        binding=why,
        worst_v_pu=checked.worst_v_pu,
        worst_loading_percent=checked.worst_loading_percent,
        power_flows=checked.power_flows,
    )
