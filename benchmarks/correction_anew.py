"""The correction of interchange capability stated anew in cvxpy, equation by equation, all intervals at once.

What `controllers.interchange.correction_program` compiles once, written as one would write it: each copy of
the network and each lossless twin has its own variables, and the problem is stated and solved from scratch
each time. It reads the network's figures and the same `Case`, and shares no line of the model. The total
width is shared, reserves are counted by the factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import cvxpy
import numpy as np
import numpy.typing as npt
from scipy import sparse

from controllers.devices import SIDES, Battery
from controllers.interchange.question import Case, Options
from controllers.network import SLACK, Limits, Network

Array = npt.NDArray[np.float64]
cp: Any = cvxpy

POLISH = 1e3
"""Weight of each copy's losses in the second stage; what batteries spend weighs three times as much."""
THROUGHPUT = 1e-4
KEPT = 1e-6
"""How closely the second stage keeps the capabilities of the first [MW]."""


class Anew(NamedTuple):
    """An answer, (H, N) each [MW]."""

    base: Array
    dn: Array
    up: Array
    value: float
    """of the first stage's objective"""


class Side:
    """A copy of the network (H, n), or its lossless twin."""

    def __init__(self, network: Network, case: Case, p: Any, q: Any, own: Any, *, lossless: bool) -> None:
        """`p`, `q` (H, n) of microgrids and batteries; `own` (H,) what they inject at the slack bus."""
        horizon, n = case.p_mw.shape
        base, root = network.s_base_mva, network.feeder == SLACK
        r, x = (np.tile(z / base, (horizon, 1)) for z in (network.r_pu, network.x_pu))
        inner = np.flatnonzero(~root)
        feeds = sparse.csr_array((np.ones(len(inner)), (network.feeder[inner], inner)), shape=(n, n))
        self.P, self.Q, self.v = (cp.Variable((horizon, n)) for _ in range(3))
        self.ell: Any = np.zeros((horizon, n)) if lossless else cp.Variable((horizon, n))
        v2 = network.v2_slack * case.ratio2
        t, s = (np.tile(gain, (horizon, 1)) for gain in (network.gain_before, network.gain_behind))
        self.before = before = cp.multiply(t, self.v @ feeds + np.tile(root * v2, (horizon, 1)))
        drop = 2 * (cp.multiply(r, self.P) + cp.multiply(x, self.Q)) - cp.multiply(r**2 + x**2, self.ell)
        g, b = (np.tile(y * base, (horizon, 1)) for y in (network.g_pu, network.b_pu))
        lost_p, lost_q = cp.multiply(r, self.ell), cp.multiply(x, self.ell)
        self.rules = [
            self.P - lost_p == cp.multiply(g, self.v) - case.p_mw - p + self.P @ feeds.T,
            self.Q - lost_q == -cp.multiply(b, self.v) - case.q_mvar - q + self.Q @ feeds.T,
            self.v == cp.multiply(s, before - drop),
        ]
        if not lossless:
            flat = [cp.vec(z, order="C") for z in (2 * self.P, 2 * self.Q, self.ell - before)]
            self.rules.append(cp.SOC(cp.vec(self.ell + before, order="C"), cp.vstack(flat)))
        self.losses = cp.sum(cp.multiply(np.where(r > 0, r, 0.1 * x), self.ell))
        shunt = float((network.g_feeding_pu * root).sum()) * base * v2
        self.import_mw = self.P @ root.astype(float) + shunt - case.slack_mw - own


def correct_anew(
    network: Network,
    limits: Limits,
    buses: Sequence[str],
    batteries: Sequence[Battery],
    hours: float,
    options: Options,
    case: Case,
) -> Anew:
    """Both stages.

    Raises:
        ValueError: an option that this statement does not have.
    """
    if options.isolation_secure or options.share != "total" or options.reserve_margin != "factor":
        raise ValueError("the correction stated anew: only total shares with reserves by the factor")
    if not batteries or not (network.r_pu + network.x_pu > 0).all():
        raise ValueError("the correction stated anew: with a battery, and without switches")
    (horizon, many), stores = case.plan.shape, len(batteries)
    c, up, dn, q = (cp.Variable((horizon, many)) for _ in range(4))
    dis, cha, q_b, b_up, b_dn, short = (cp.Variable((horizon, stores), nonneg=i != 2) for i in range(6))
    energy, g_up, g_dn = (
        cp.Variable((horizon + 1, stores)),
        cp.Variable(horizon, nonneg=True),
        cp.Variable(horizon, nonneg=True),
    )
    at, at_b = (_places(network, x) for x in (buses, [b.bus for b in batteries]))
    here, here_b = (
        np.array([float(b == network.slack) for b in x]) for x in (buses, [b.bus for b in batteries])
    )

    def side(p: Any, *, lossless: bool = False) -> Side:
        power = dis - cha
        return Side(
            network,
            case,
            p @ at + power @ at_b,
            q @ at + q_b @ at_b,
            p @ here + power @ here_b,
            lossless=lossless,
        )

    base, high, low = side(c), side(up), side(dn)
    twins = twin_base, twin_up, twin_dn = [side(p, lossless=True) for p in (c, up, dn)]
    sides = (base, high, low)
    rules = [rule for one in (*sides, *twins) for rule in one.rules]
    rules += [one.v >= limits.v_pu[0] ** 2 for one in sides]
    rules += [one.v <= limits.v_pu[1] ** 2 for one in (twin_base, twin_up)]
    rules += _loadings(network, limits, sides, (twin_up, twin_dn))
    rules += [case.low <= dn, dn <= c, c <= up, up <= case.high, case.q_low <= q, q <= case.q_high]
    if options.import_mw is not None:
        least, most = options.import_mw
        rules += [twin_base.import_mw - g_dn >= least, twin_up.import_mw >= least]
        rules += [base.import_mw + g_up <= most, low.import_mw <= most]
    if options.reserve_mw is not None:
        more, needed = 1 + options.mu_loss, options.required_mw
        rules += [g_up <= options.reserve_mw[0], g_dn <= options.reserve_mw[1]]
        rules += [more * cp.sum(c - dn, axis=1) + needed[0] <= g_up + cp.sum(b_up, axis=1)]
        rules += [more * cp.sum(up - c, axis=1) + needed[1] <= g_dn + cp.sum(b_dn, axis=1)]
    lasting = hours if options.reserve_h is None else options.reserve_h
    for k, b in enumerate(batteries):
        into, out = b.efficiency
        power, half = dis[:, k] - cha[:, k], (b.e_min_mwh + b.e_mwh) / 2
        rules += [energy[0, k] == case.e_mwh[k], dis[:, k] <= b.p_mw, cha[:, k] <= b.p_mw]
        rules += [energy[1:, k] == energy[:-1, k] + hours * (into * cha[:, k] - dis[:, k] / out)]
        rules += [power + b_up[:, k] <= b.p_mw, power - b_dn[:, k] >= -b.p_mw]
        rules += [energy[1:, k] - lasting / out * b_up[:, k] >= b.e_min_mwh]
        rules += [energy[1:, k] + lasting * into * b_dn[:, k] <= b.e_mwh]
        rules += [energy[horizon, k] + short[horizon - 1, k] >= min(float(case.e_mwh[k]), half)]
        rated = np.full(horizon, float(np.cos(np.pi / SIDES)) * b.s_mva)
        for reserve in (b_up[:, k], -b_dn[:, k]):
            rules.append(cp.SOC(rated, cp.vstack([power + reserve, q_b[:, k]])))
    spent = THROUGHPUT * cp.sum(dis + cha) + options.energy_worth / hours * cp.sum(short)
    losses = base.losses + high.losses + low.losses
    width, moved = cp.sum(up - dn), cp.sum(cp.abs(c - case.plan))
    first: Any = width - options.schedule_weight * moved - options.loss_weight * losses - spent
    value = _solve(cp.Problem(cp.Maximize(first), rules))
    held = [cp.abs(x - x.value) <= KEPT for x in (c, up, dn)]
    _solve(cp.Problem(cp.Minimize(POLISH * losses + 3 * POLISH * spent), [*rules, *held]))
    return Anew(c.value, dn.value, up.value, value)


def _loadings(network: Network, limits: Limits, sides: Sequence[Side], twins: Sequence[Side]) -> list[Any]:
    """Of rated branches: their currents, and the flows that burning power would hide."""
    rated = np.flatnonzero(np.isfinite(network.rating_mva))
    if not len(rated):
        return []
    raised = np.maximum(np.maximum(network.gain_before, 1 / network.gain_behind), 1.0)[rated]
    allowed = (network.rating_mva[rated] * limits.loading_percent / 100) ** 2 / raised
    most = np.tile(allowed, (sides[0].P.shape[0], 1))
    rules = [one.ell[:, rated] <= most for one in sides]
    (_, high, low), (twin_high, twin_low) = sides, twins
    for one, p, q in (
        (high, twin_high.P, twin_high.Q),
        (high, twin_high.P, high.Q),
        (high, high.P, twin_high.Q),
        (low, low.P, twin_low.Q),
    ):
        before = one.before[:, rated]
        flat = [cp.vec(z, order="C") for z in (2 * p[:, rated], 2 * q[:, rated], most - before)]
        rules.append(cp.SOC(cp.vec(most + before, order="C"), cp.vstack(flat)))
    return rules


def _places(network: Network, buses: Sequence[str]) -> sparse.csr_array:
    """(buses, n) 1 at the bus; an empty row for the slack bus."""
    found = [(k, i) for k, bus in enumerate(buses) if (i := network.index(bus)) is not None]
    rows, columns = (list(x) for x in zip(*found, strict=True)) if found else ([], [])
    return sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=(len(buses), len(network.buses)))


def _solve(problem: Any) -> float:
    problem.solve(solver=cp.CLARABEL)
    if problem.status != cp.OPTIMAL:
        raise ValueError(f"the correction stated anew ended {problem.status}")
    return float(problem.value)
