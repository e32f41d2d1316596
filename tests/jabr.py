"""Other ways to the numbers of the interchange correction, in cvxpy: Jabr's form of the power flow equations,
the relaxation that burns power, and the whole correction stated anew.

All of them read r and x per MVA, loads and limits, and share no line with what they judge.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cvxpy as cp
import numpy as np
import numpy.typing as npt

from controllers import Network

Array = npt.NDArray[np.float64]
ROOT2 = float(np.sqrt(2.0))


class State(NamedTuple):
    """A solution: voltages [pu], import [MW], and how far it is from its cones' surfaces."""

    v_pu: Array
    import_mw: float
    gap: float
    angle: Array
    """phase between the two ends of each branch [rad]"""


def jabr(network: Network, p_mw: Array, q_mvar: Array) -> State:
    """The state of given injections with least import: u = v^2 / sqrt 2, R = V V cos, T = V V sin."""
    n = len(network.buses)
    r, x = network.r_pu / network.s_base_mva, network.x_pu / network.s_base_mva
    g, b = r / (r**2 + x**2), -x / (r**2 + x**2)
    u: Any = cp.Variable(n + 1)  # the slack bus is the last
    R: Any = cp.Variable(n)
    T: Any = cp.Variable(n)
    i, j = np.where(network.feeder < 0, n, network.feeder), np.arange(n)
    P_ij = cp.multiply(ROOT2 * g, u[i]) - cp.multiply(g, R) - cp.multiply(b, T)
    P_ji = cp.multiply(ROOT2 * g, u[j]) - cp.multiply(g, R) + cp.multiply(b, T)
    Q_ij = -cp.multiply(ROOT2 * b, u[i]) + cp.multiply(b, R) - cp.multiply(g, T)
    Q_ji = -cp.multiply(ROOT2 * b, u[j]) + cp.multiply(b, R) + cp.multiply(g, T)
    from_bus, to_bus = np.zeros((n, n)), np.eye(n)
    root = np.array(i == n, dtype=float)
    inner = np.flatnonzero(network.feeder >= 0)
    from_bus[network.feeder[inner], inner] = 1.0
    rules = [
        from_bus @ P_ij + to_bus @ P_ji == p_mw,
        from_bus @ Q_ij + to_bus @ Q_ji == q_mvar,
        u[n] == network.v2_slack / ROOT2,
        cp.SOC(u[i] + u[j], cp.vstack([ROOT2 * R, ROOT2 * T, u[i] - u[j]])),
        R >= 0,
    ]
    # Loads are met with least losses; the factor makes the solver's tolerance matter less.
    problem = cp.Problem(cp.Minimize(1e1 * (root @ P_ij)), rules)
    problem.solve(solver=cp.CLARABEL)
    v2 = ROOT2 * u.value[:n]
    gap = float((2 * u.value[i] * u.value[j] - R.value**2 - T.value**2).max())
    return State(np.sqrt(v2), float(root @ P_ij.value), gap, np.arctan2(T.value, R.value))


class Copy:
    """One copy of the branch flow equations in cvxpy, with the flows of each branch at its sending end."""

    def __init__(self, network: Network, p_mw: Any, q_mvar: Any, *, lossless: bool = False) -> None:
        n = len(network.buses)
        r, x = network.r_pu / network.s_base_mva, network.x_pu / network.s_base_mva
        self.P: Any = cp.Variable(n)
        self.Q: Any = cp.Variable(n)
        self.v: Any = cp.Variable(n)
        self.ell: Any = np.zeros(n) if lossless else cp.Variable(n)
        feeds = np.zeros((n, n))
        inner = np.flatnonzero(network.feeder >= 0)
        feeds[network.feeder[inner], inner] = 1.0
        root = np.array(network.feeder < 0, dtype=float)
        sending = feeds.T @ self.v + root * network.v2_slack
        self.sending = sending
        self.rules = [
            feeds @ self.P == self.P - cp.multiply(r, self.ell) + p_mw,
            feeds @ self.Q == self.Q - cp.multiply(x, self.ell) + q_mvar,
            self.v == sending - 2 * (cp.multiply(r, self.P) + cp.multiply(x, self.Q))
            + cp.multiply(r**2 + x**2, self.ell),
        ]  # fmt: skip
        if not lossless:
            self.rules.append(
                cp.SOC(self.ell + sending, cp.vstack([2 * self.P, 2 * self.Q, self.ell - sending]))
            )
        self.import_mw = root @ self.P
        self.losses = r @ self.ell

    @property
    def gap(self) -> float:
        """How far the cones are from being tight."""
        return float((self.ell.value * self.sending.value - self.P.value**2 - self.Q.value**2).max())


class Anew(NamedTuple):
    """An answer of the correction stated anew."""

    base: Array
    dn: Array
    up: Array
    """(N,) [MW]"""
    q_mvar: Array
    gap: float
    value: float
    """total width less the penalty on a moved schedule"""


def correct(
    network: Network,
    at: Array,
    p_mw: Array,
    q_mvar: Array,
    plan: Array,
    low: Array,
    high: Array,
    *,
    v_pu: tuple[float, float],
    q_most: float = 0.3,
    import_mw: tuple[float, float] | None = None,
    reserve_mw: float | None = None,
    mu_loss: float = 0.1,
    naive: bool = False,
) -> Anew:
    """The correction of one interval without batteries, equation by equation.

    Args:
        at: (N,) positions of the microgrids' buses.
        p_mw, q_mvar: (n,) injections of everything else.
        naive: leave the lossless twin out, so that limits hold in the relaxation alone.
    """
    n, N = len(network.buses), len(at)
    M = np.zeros((n, N))
    M[at, np.arange(N)] = 1.0
    base, up, dn, q = (cp.Variable(N) for _ in range(4))
    g_up, g_dn = cp.Variable(nonneg=True), cp.Variable(nonneg=True)
    copies = {
        name: Copy(network, p_mw + M @ p, q_mvar + M @ q)
        for name, p in (("base", base), ("up", up), ("dn", dn))
    }
    rules = [rule for copy in copies.values() for rule in copy.rules]
    for copy in copies.values():
        rules += [copy.v >= v_pu[0] ** 2, copy.v <= v_pu[1] ** 2]
    twins = {
        name: Copy(network, p_mw + M @ p, q_mvar + M @ q, lossless=True)
        for name, p in (("base", base), ("up", up))
    }
    if not naive:
        rules += [rule for twin in twins.values() for rule in twin.rules]
        rules += [twin.v <= v_pu[1] ** 2 for twin in twins.values()]
    bound = copies if naive else twins
    if import_mw is not None:
        rules += [
            bound["base"].import_mw - g_dn >= import_mw[0],
            bound["up"].import_mw >= import_mw[0],
            copies["base"].import_mw + g_up <= import_mw[1],
            copies["dn"].import_mw <= import_mw[1],
        ]
    if reserve_mw is not None:
        rules += [
            g_up <= reserve_mw,
            g_dn <= reserve_mw,
            (1 + mu_loss) * cp.sum(up - base) <= g_dn,
            (1 + mu_loss) * cp.sum(base - dn) <= g_up,
        ]
    rules += [low <= dn, dn <= base, base <= up, up <= high, cp.abs(q) <= q_most]
    value = cp.sum(up - dn) - 50 * cp.norm1(base - plan)
    losses = sum(copy.losses for copy in copies.values())
    problem = cp.Problem(cp.Maximize(value - 1e-3 * losses), rules)
    problem.solve(solver=cp.CLARABEL)
    assert problem.status == cp.OPTIMAL, problem.status
    gap = max(copy.gap for copy in copies.values())
    return Anew(base.value, dn.value, up.value, q.value, gap, float(value.value))
