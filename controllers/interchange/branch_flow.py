"""BranchFlow: a radial network with its losses, in MW, for whoever optimises or checks over it.

The equations of `controllers/network.py` (Baran and Wu 1989) with the current l that makes them exact, on a
base of 1 MVA, so that flows are in MW whatever the network's own base is:

| symbol | here     | meaning                                                                | unit    |
|--------|----------|------------------------------------------------------------------------|---------|
| P, Q   | `P`, `Q` | power entering the series impedance of a bus's branch, from upstream   | MW, Mvar|
| l      | `ell`    | squared current in that impedance                                      | MVA^2   |
| v      | `v`      | squared voltage magnitude of a bus                                     | pu^2    |
| p, q   |          | injection at a bus                                                     | MW, Mvar|
| r, x   | `r`, `x` | series impedance                                                       | 1/MVA   |
| t, s   | `t`, `s` | squared ratio of an ideal transformer before and behind the impedance  | 1       |
| g, b   | `g`, `b` | admittance at a bus                                                    | MVA     |
| P_G    | `import_mw` | power that enters at the slack bus                                  | MW      |

    P_i - r_i l_i = g_i v_i - p_i + sum of P over the buses that i feeds
    Q_i - x_i l_i = -b_i v_i - q_i + sum of Q over the buses that i feeds
    v_i = s_i (t_i v_u - 2 (r_i P_i + x_i Q_i) + (r_i^2 + x_i^2) l_i)
    l_i t_i v_u = P_i^2 + Q_i^2

Without the last one everything is linear in (p, q, l). The *lossless twin* is the solution at l = 0. It
bounds the true one: where a current lowers every voltage and raises the import, as the constructor demands,
its voltages are at least and its import is at most the true ones. Without admittances that follows from
r, x >= 0: l at branch i is a consumption of (r_i, x_i) l behind it, which lowers v_i by 2 (r_i^2 + x_i^2) l
on that branch alone, and the last term gives half of that back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse.linalg import splu

from controllers.network import SLACK, Network

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

ROUNDS = 100
"""Of the fixed point of currents; a usual state takes ten."""

SETTLED = 1e-11
"""Change of the losses of a branch [MW], relative to the greatest flow, at which the fixed point ends."""

NOISE = 1e-9
"""How far from its sign a response may be and still be rounding."""


@dataclass(frozen=True, eq=False)
class States:
    """Solutions of the branch flow equations, a row a case; NaN where there is none."""

    v: Array
    """(cases, n) squared voltages [pu^2]"""
    P: Array
    Q: Array
    """(cases, n) power entering each impedance [MW, Mvar]"""
    ell: Array
    """(cases, n) squared currents [MVA^2]"""
    import_mw: Array
    """(cases,) power entering the branches at the slack bus"""


class Responses(NamedTuple):
    """What the lossless twin gains by injections at some buses, by 1 MW and by 1 Mvar at each."""

    v: tuple[Array, Array]
    """(n, buses) squared voltages [pu^2]"""
    P: tuple[Array, Array]
    Q: tuple[Array, Array]
    """(n, buses) flows"""
    import_mw: tuple[Array, Array]
    """(1, buses)"""


class BranchFlow:
    """The equations of a network, factorised once.

    Raises:
        ValueError: a network for which the lossless twin is no bound, with the branch or bus at fault.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        base = network.s_base_mva
        self.n = n = len(network.buses)
        self.r, self.x = network.r_pu / base, network.x_pu / base
        self.g, self.b = network.g_pu * base, network.b_pu * base
        self.t, self.s = network.gain_before, network.gain_behind
        self.v2_slack = network.v2_slack
        self.z2 = self.r**2 + self.x**2
        self.fed_by_slack = network.feeder == SLACK
        inner = np.flatnonzero(~self.fed_by_slack)
        self.feeds = sparse.csr_array((np.ones(len(inner)), (network.feeder[inner], inner)), shape=(n, n))
        """(n, n) 1 where the row's bus feeds the column's"""
        self._h = network.g_feeding_pu[self.fed_by_slack] * base
        self._refuse_signs()
        one = sparse.eye_array(n, format="csr")
        gain = sparse.diags_array(self.s * self.t) @ self.feeds.T
        K = sparse.block_array(
            [
                [one - self.feeds, None, -sparse.diags_array(self.g)],
                [None, one - self.feeds, sparse.diags_array(self.b)],
                [
                    sparse.diags_array(2 * self.s * self.r),
                    sparse.diags_array(2 * self.s * self.x),
                    one - gain,
                ],
            ],
            format="csc",
        )
        self._factors = splu(K)
        if network.admits:
            self._refuse_responses()

    def linear(self, p_mw: Array, q_mvar: Array, ell: Array, ratio2: Array | float = 1.0) -> States:
        """The state for given currents, which is linear in them and in the injections.

        Args:
            p_mw, q_mvar, ell: (cases, n).
            ratio2: (cases,) or one for all: squared voltage of the source in its given one.
        """
        v2 = np.broadcast_to(np.asarray(ratio2, dtype=float) * self.v2_slack, len(p_mw))
        source = np.where(self.fed_by_slack, self.s * self.t, 0.0) * v2[:, None]
        right = np.concatenate(
            [-p_mw + self.r * ell, -q_mvar + self.x * ell, source + self.s * self.z2 * ell], axis=1
        )
        found = self._factors.solve(right.T).T if right.size else right
        P, Q, v = np.split(found, 3, axis=1)
        return States(v, P, Q, ell, self.imported(P, v2))

    def lossless(self, p_mw: Array, q_mvar: Array, ratio2: Array | float = 1.0) -> States:
        """The lossless twin of injections (cases, n)."""
        return self.linear(p_mw, q_mvar, np.zeros_like(p_mw), ratio2)

    def solve(self, p_mw: Array, q_mvar: Array, ratio2: Array | float = 1.0) -> States:
        """The true state of injections (cases, n): the fixed point of the currents."""
        ell = np.zeros_like(p_mw)
        settled = np.zeros(len(p_mw), dtype=np.bool_)
        size = 1.0 + np.abs(p_mw).sum(axis=1) + np.abs(q_mvar).sum(axis=1)
        with np.errstate(all="ignore"):  # a case without a solution overflows, and is marked below
            for _ in range(ROUNDS):
                state = self.linear(p_mw, q_mvar, ell, ratio2)
                new = (state.P**2 + state.Q**2) / self.sending(state.v, ratio2)
                change = ((self.r + self.x) * np.abs(new - ell)).max(axis=1, initial=0.0) / size
                settled = change <= SETTLED
                fine = np.isfinite(new).all(axis=1) & (state.v > 0).all(axis=1)
                ell = np.where(np.reshape(fine, (-1, 1)), new, np.nan)
                if (settled | ~fine).all():
                    break
            ell = np.where(np.reshape(settled, (-1, 1)), ell, np.nan)
            return self.linear(p_mw, q_mvar, ell, ratio2)

    def sending(self, v: Array, ratio2: Array | float = 1.0) -> Array:
        """(cases, n) squared voltage before each impedance, t_i v_u, for the voltages (cases, n) of buses."""
        v2 = np.broadcast_to(np.asarray(ratio2, dtype=float) * self.v2_slack, len(v))
        return np.asarray(self.t * np.where(self.fed_by_slack, v2[:, None], v[:, self.network.feeder]))

    def imported(self, P: Array, v2_slack: Array) -> Array:
        """(cases,) what enters the branches at the slack bus, their admittance there included [MW]."""
        return np.asarray(P[:, self.fed_by_slack].sum(axis=1) + self._h.sum() * v2_slack)

    @property
    def import_offset_mw(self) -> float:
        """What the admittances at the slack bus's ends of branches draw."""
        return float(self._h.sum() * self.v2_slack)

    def at(self, buses: Sequence[str]) -> sparse.csr_array:
        """(n, len(buses)) 1 where a bus is the column's; nothing in a column of the slack bus."""
        places = [(i, k) for k, bus in enumerate(buses) if (i := self.network.index(bus)) is not None]
        rows, columns = (list(x) for x in zip(*places, strict=True)) if places else ([], [])
        return sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=(self.n, len(buses)))

    def responses(self, buses: Sequence[str]) -> Responses:
        """See `Responses`; injections at the slack bus move nothing behind it."""
        unit = self.at(buses).toarray().T
        none = np.zeros_like(unit)
        by_p, by_q = self.linear(unit, none, none, 0.0), self.linear(none, unit, none, 0.0)
        return Responses(
            (by_p.v.T, by_q.v.T),
            (by_p.P.T, by_q.P.T),
            (by_p.Q.T, by_q.Q.T),
            (by_p.import_mw[None], by_q.import_mw[None]),
        )

    def _refuse_signs(self) -> None:
        for name, values in (("resistance", self.r), ("reactance", self.x)):
            if (wrong := np.flatnonzero(values < 0)).size:
                raise ValueError(
                    f"branch flow: {name} of {self.network.branches[wrong[0]]} is {values[wrong[0]]:g} per "
                    "MVA; the relaxation is exact for r >= 0 and x >= 0 only, so take series capacitors out"
                )

    def _refuse_responses(self) -> None:
        """Admittances may turn the signs around: what no theorem says is computed."""
        one, none = np.eye(self.n), np.zeros((self.n, self.n))
        current = self.linear(none, none, one, 0.0)
        power = [self.linear(one, none, none, 0.0), self.linear(none, one, none, 0.0)]
        size = np.maximum(self.r + self.x, 1e-12)
        wrong = (current.v / size[:, None] > NOISE).any(axis=1) | (current.import_mw / size < -NOISE)
        wrong |= (power[0].v < -NOISE).any(axis=1) | (power[1].v < -NOISE).any(axis=1)
        if wrong.any():
            raise ValueError(
                f"branch flow: with the admittances of this network a current in "
                f"{self.network.branches[int(np.argmax(wrong))]} or power at its bus moves voltages the "
                "wrong way, so no bound of the relaxation holds; check line charging and shunts near it"
            )
