"""A microgrid's operation stated once more, in cvxpy, from its units' own figures, in kW, kvar and kWh."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import cvxpy as cp
import numpy as np

from controllers.partnership.outlook import Outlook
from controllers.partnership.units import Fleet

Array = np.ndarray
Mode = Literal["relaxed", "fixed", "whole"]


@dataclass
class Stated:
    """The problem before an exchange is asked for."""

    p: Any
    """(T,) kW"""
    q: Any
    cost: Any
    rules: list[Any]
    on: dict[str, Any]
    """(T,) bits by engine that can stop"""


def stated(fleet: Fleet, outlook: Outlook, mode: Mode) -> Stated:
    """(B3)-(B7) unit by unit; an engine's capability is the hull of its corners, scaled by its bit.

    With the mode `fixed` the bits are parameters.
    """
    T, h = outlook.intervals, fleet.hours
    p: Any = np.zeros(T)
    q: Any = np.zeros(T)
    cost: Any = 0.0
    rules: list[Any] = []
    on: dict[str, Any] = {}
    for engine in fleet.engines:
        corners = 1e3 * engine.capability.vertices()
        share = cp.Variable((T, len(corners)))
        power, reactive = share @ corners[:, 0], share @ corners[:, 1]
        least, most = corners[:, 0].min(), corners[:, 0].max()
        measured = 1e3 * outlook.p_mw[engine.name]
        before = float(np.clip(measured, least, most))
        u: Any = np.ones(T)
        if engine.can_stop:
            before = 0.0 if measured < least / 2 else before
            u = cp.Parameter(T) if mode == "fixed" else cp.Variable(T, boolean=mode == "whole")
            rules += [] if mode == "fixed" else [u >= 0, u <= 1]
            on[engine.name] = u
            was_on = cp.hstack([np.array([float(before > 0)]), u[:-1]])
            cost += engine.start_up_cost * cp.sum(cp.pos(u - was_on))
        rules += [share >= 0, cp.sum(share, axis=1) == u]
        # Along its ramp while it is on; it starts at, and stops from, its ramp or its least power if more.
        was_on = cp.hstack([np.array([float(before > 0)]), u[:-1]])
        ramp, start = 1e3 * engine.ramp_mw, max(1e3 * engine.ramp_mw, least)
        change = power - cp.hstack([np.array([before]), power[:-1]])
        rules += [change <= ramp * was_on + start * (1 - was_on)]
        rules += [-change <= ramp * u + start * (1 - u)]
        cost += engine.cost_per_mwh / 1e3 * h * cp.sum(power)
        p, q = p + power, q + reactive
    for renewable in fleet.renewables:
        power, reactive = cp.Variable(T), cp.Variable(T)
        region = renewable.capability
        at = [region.axes.index(axis) for axis in ("p_mw", "q_mvar")]
        rules += [power >= 0, power <= 1e3 * outlook.available_mw[renewable.name]]
        for row, b in zip(region.A[:, at], region.b, strict=True):
            rules += [row[0] * power + row[1] * reactive <= 1e3 * b]
        p, q = p + power, q + reactive
    for store in fleet.stores:
        charge, discharge = cp.Variable(T), cp.Variable(T)
        into, out = store.efficiency
        energy = 1e3 * outlook.e_mwh[store.name] + h * cp.cumsum(into * charge - discharge / out)
        rules += [charge >= 0, discharge >= 0]
        rules += [charge <= 1e3 * store.p_mw, discharge <= 1e3 * store.p_mw]
        rules += [energy >= 1e3 * store.e_mwh[0], energy <= 1e3 * store.e_mwh[1]]
        cost += store.cost_per_mwh / 1e3 * h * cp.sum(charge + discharge)
        p = p + discharge - charge
    for compensator in fleet.compensators:
        reactive = cp.Variable(T)
        rules += [reactive >= 1e3 * compensator.q_mvar[0], reactive <= 1e3 * compensator.q_mvar[1]]
        q = q + reactive
    for demand in fleet.demands:
        needed = 1e3 * outlook.demand_mw[demand.name]
        curtailed = cp.Variable(T)
        rules += [curtailed >= 0, curtailed <= np.maximum(needed - 1e3 * demand.firm_mw, 0)]
        cost += demand.curtailment_cost_per_mwh / 1e3 * h * cp.sum(curtailed)
        p, q = p - needed + curtailed, q - demand.q_per_p * (needed - curtailed)
    return Stated(p, q, cost, rules, on)


def least(problem: cp.Problem) -> float | None:
    """The optimum; `None`: there is no point."""
    with np.errstate(invalid="ignore"):  # cvxpy multiplies the bounds of free variables by zero
        value = problem.solve(solver=cp.HIGHS)
    return None if problem.status in ("infeasible", "infeasible_or_unbounded") else float(value)
