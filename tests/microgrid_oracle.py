"""A microgrid's program stated once more, in cvxpy, from the reference case's own figures, in MWh."""

from __future__ import annotations

from typing import Any, NamedTuple

import cvxpy as cp
import numpy as np

from tests.interchange_cases import FIGURES, HEAT, LOAD, P_DE_START, P_MT_START, PRICE, PV, SPREAD, WIND

Array = np.ndarray
Factors = tuple[float, float, float, float]
"""On sun, wind, uninterruptible load and heat."""
MEAN: Factors = (1.0, 1.0, 1.0, 1.0)


class Answer(NamedTuple):
    objective: float
    f1: float
    f2: float
    p_mw: Array
    up_mw: Array
    dn_mw: Array


def best(
    name: str,
    k: int = 8,
    horizon: int = 12,
    *,
    mu: float = 25.0,
    factors: Factors = MEAN,
    hours: float = 1.0,
) -> Answer:
    """The least f1 + mu f2 from hour `k` on.

    Args:
        hours: length of an interval; shorter ones stay within hour `k` here.
    """
    return committed(name, [(1.0, factors)], k, horizon, mu=mu, hours=hours)


def committed(
    name: str,
    cases: list[tuple[float, Factors]],
    k: int = 8,
    horizon: int = 12,
    *,
    mu: float = 25.0,
    hours: float = 1.0,
) -> Answer:
    """The least expected f1 + mu f2 over weighted cases with one exchange and one band for all."""
    P, up, down = (cp.Variable(horizon) for _ in range(3))
    tie = FIGURES[name].tie_mw
    rules: list[Any] = [cp.abs(P) <= tie, up <= tie, down >= -tie, down <= P, up >= P]
    f1: Any = 0.0
    for weight, factors in cases:
        cost, more = _recourse(name, k, horizon, factors, hours, P, up, down)
        f1, rules = f1 + weight * cost, rules + more
    f2 = -hours * cp.sum(up - down)
    problem = cp.Problem(cp.Minimize(f1 + mu * f2), rules)
    problem.solve(solver=cp.CLARABEL, tol_gap_rel=1e-10, tol_gap_abs=1e-10, tol_feas=1e-10)
    assert problem.status == cp.OPTIMAL
    return Answer(problem.value, float(f1.value), float(f2.value), P.value, up.value, down.value)


def _recourse(
    name: str, k: int, horizon: int, factors: Factors, hours: float, P: Any, P_up: Any, P_dn: Any
) -> tuple[Any, list[Any]]:
    """Cost and constraints of one case."""
    g = FIGURES[name]
    at = [(k + t) % 24 for t in range(horizon)] if hours == 1.0 else [k] * horizon
    sun, wind = factors[0] * g.pv * PV[at], factors[1] * g.wt * WIND[at]
    ul, il, heat = factors[2] * g.ul * LOAD[at], g.il * LOAD[at], factors[3] * g.heat * HEAT[at]
    M, D, dch, ch, IL, shed, curt, boiler = (cp.Variable(horizon) for _ in range(8))
    M_up, M_dn, D_up, D_dn = (cp.Variable(horizon, nonneg=True) for _ in range(4))
    W: Any = cp.Variable(horizon + 1)
    least, greatest, first = g.e_mwh
    rules = [
        ul - shed + IL + P == M + D + dch - ch + sun + wind - curt,
        1.4 * M + boiler >= heat,
        1.4 * (M - M_dn) + boiler >= heat,
        W[0] == first,
        W[1:] == W[:-1] + hours * (0.95 * ch - dch / 0.95),
        least <= W,
        greatest >= W,
        W[horizon] >= min(first, (least + greatest) / 2),
        P_up <= P + M_up + D_up,
        P_dn >= P - M_dn - D_dn,
        *(x >= 0 for x in (dch, ch, IL, shed, curt, boiler)),
        *(x <= g.esd_mw for x in (dch, ch)),
        *(il >= IL, shed <= ul, curt <= sun + wind),
    ]
    for unit, X, up, down, start in (
        (g.mt, M, M_up, M_dn, P_MT_START),
        (g.de, D, D_up, D_dn, P_DE_START),
    ):
        step = unit.ramp_mw_per_h * hours
        rules += [unit.p_min_mw <= X, unit.p_mw >= X, cp.abs(X - cp.hstack([start, X[:-1]])) <= step]
        rules += [up <= unit.p_mw - X, down <= X - unit.p_min_mw, up <= step, down <= step]
    each = g.mt.cost_per_mwh * M + g.de.cost_per_mwh * D + 5 * (ch + dch) + 150 * (il - IL)
    return hours * (cp.sum(each + 1000 * shed + 60 * boiler + curt) - PRICE[at] @ P), rules


def cases(scheme: str) -> list[tuple[float, Factors]]:
    """Weights and factors of the point estimate of four normal factors, written out."""
    reach, weight = (3**0.5, 1 / 6) if scheme == "2m+1" else (2.0, 1 / 8)
    found: list[tuple[float, Factors]] = [(1 - 4 / 3, MEAN)] if scheme == "2m+1" else []
    for i, kind in enumerate(("pv", "wt", "ul", "heat")):
        for sign in (-1, 1) if kind == "ul" else (1, -1):  # the injection comes first that is greater
            factors = [1.0, 1.0, 1.0, 1.0]
            factors[i] += sign * reach * SPREAD[kind]
            found.append((weight, (factors[0], factors[1], factors[2], factors[3])))
    return found
