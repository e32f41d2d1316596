"""Network: what a controller knows of the grid: a tree of branches, linear in the injections (LinDistFlow).

| symbol | here                           | meaning                                                   | unit |
|--------|--------------------------------|-----------------------------------------------------------|------|
| v      | `v2`                           | squared voltage magnitude at a bus                        | pu^2 |
| p, q   | `p_mw`, `q_mvar`               | injection at a bus                                        | pu   |
| P, Q   |                                | power through the series impedance of the branch of a bus | pu   |
| F      | `flow`                         | power entering a branch from the side of the substation   | pu   |
| u      | `feeder`                       | bus that feeds a bus                                      |      |
| r, x   | `r_pu`, `x_pu`                 | series impedance of a branch                              | pu   |
| t, s   | `gain_before`, `gain_behind`   | squared ratio of an ideal transformer at its two sides    | 1    |
| g, b   | `g_pu`, `b_pu`                 | admittance at a bus, the ends of its branches included    | pu   |
| h, y   | `g_feeding_pu`, `b_feeding_pu` | of it, the admittance at the feeding end of a branch      | pu   |

Model (Baran and Wu's branch flow equations without losses; admittances draw power in proportion to v):

    v_i = s_i (t_i v_u - 2 (r_i P_i + x_i Q_i))
    P_i = g_i v_i - p_i + sum of P over the buses that i feeds         F_p = P + h v_u
    Q_i = -b_i v_i - q_i + sum of Q over the buses that i feeds        F_q = Q - y v_u

v, P and Q of all buses are one sparse system, whose elimination from the leaves to the substation leaves
next to no fill. So everything is affine in the injections,

    v2 = v2_base + v2_per_mw p + v2_per_mvar q
    F  = p_base  - p_per_mw  p - p_per_mvar q,   q_base - q_per_mw p - q_per_mvar q

and the same branches serve whoever writes the equations with their losses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse.linalg import splu

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

SLACK = -1
"""The feeder of a bus that the slack bus feeds."""

DENSE = 30_000_000
"""Entries above which a square matrix over all buses is refused (240 MB, and there are six)."""

CHUNK = 16
"""Right-hand sides that are solved for at once; more of them no longer fit the processor's cache."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the operator allows."""

    v_pu: tuple[float, float]
    """least and greatest voltage magnitude"""
    loading_percent: float
    """greatest loading of a line or transformer, of its rating"""


class Sensitivities(NamedTuple):
    """What voltages and flows gain or are relieved by injections, (n, injections) each."""

    v2_per_mw: Array
    """[pu^2/MW]"""
    v2_per_mvar: Array
    p_per_mw: Array
    """how much of each injection relieves each branch"""
    p_per_mvar: Array
    q_per_mw: Array
    q_per_mvar: Array


@dataclass(frozen=True, eq=False)
class Network:
    """A radial grid, linear in the injections. Buses and branches in one order everywhere.

    `buses` leaves out the slack bus; branch i is the one that feeds bus i from the substation's
    side, so there are as many branches as buses. An array that is one value for all may be given so.

    Raises:
        ValueError: an array that does not fit the buses, or feeders that are no tree.
    """

    slack: str
    """name of the bus with the given voltage"""
    buses: tuple[str, ...]
    """(n,) names"""
    branches: tuple[str, ...]
    """(n,) names, e.g. `line:3`, `trafo:0`"""
    feeder: Ints
    """(n,) position of the bus that feeds each bus, `SLACK` for the slack bus"""
    r_pu: Array
    """(n,) series resistance of each branch; r and x are zero for a switch"""
    x_pu: Array
    rating_mva: Array
    """(n,) apparent power at rated voltage and 100 % loading; infinite where none is given"""
    gain_before: Array = field(default_factory=lambda: np.ones(1))
    """(n,) squared voltage ratio of an ideal transformer between the feeding bus and the impedance"""
    gain_behind: Array = field(default_factory=lambda: np.ones(1))
    """(n,) the same between the impedance and the bus that it feeds"""
    g_pu: Array = field(default_factory=lambda: np.zeros(1))
    """(n,) conductance at each bus; draws active power"""
    b_pu: Array = field(default_factory=lambda: np.zeros(1))
    """(n,) susceptance at each bus; positive injects reactive power"""
    g_feeding_pu: Array = field(default_factory=lambda: np.zeros(1))
    """(n,) conductance at the feeding end of each branch, which `g_pu` of the feeding bus contains"""
    b_feeding_pu: Array = field(default_factory=lambda: np.zeros(1))
    v2_slack: float = 1.0
    """squared voltage of the slack bus [pu^2]"""
    s_base_mva: float = 1.0
    """apparent power of 1 pu"""

    def __post_init__(self) -> None:
        n = len(self.buses)
        for name in _ARRAYS:
            kind = np.int64 if name == "feeder" else np.float64
            given = np.asarray(getattr(self, name), dtype=kind)
            if given.shape not in ((n,), (1,), ()) or len(self.branches) != n:
                raise ValueError(
                    f"network: {name} has shape {given.shape} for {n} buses and {len(self.branches)} branches"
                )
            object.__setattr__(self, name, np.broadcast_to(given, (n,)))
        if n and not (self.feeder.min() >= SLACK and self.feeder.max() < n):
            raise ValueError(f"network: a feeder is not in {SLACK}..{n - 1}")
        if (endless := np.flatnonzero(self._depth < 0)).size:
            raise ValueError(f"network: bus {self.buses[endless[0]]} is not fed by the slack bus")

    @cached_property
    def _depth(self) -> Ints:
        """(n,) branches before the one that feeds each bus; -1 for a bus that is not fed."""
        feeder = self.feeder
        depth, jump = (feeder != SLACK).astype(np.int64), feeder.copy()
        for _ in range(len(feeder).bit_length() + 1):  # each round doubles the jump
            depth += np.where(jump != SLACK, depth[jump], 0)
            jump = np.where(jump != SLACK, jump[jump], SLACK)
        return np.where(jump == SLACK, depth, -1)

    @cached_property
    def _position(self) -> dict[str, int]:
        return {bus: i for i, bus in enumerate(self.buses)}

    def index(self, bus: str) -> int | None:
        """Position of a bus; `None` for the slack bus, whose injection changes no voltage.

        Raises:
            KeyError: no such bus.
        """
        if bus == self.slack:
            return None
        try:
            return self._position[bus]
        except KeyError:
            raise KeyError(f"network has no bus {bus!r}") from None

    def total(self, buses: Sequence[str], values: Sequence[float] | Array) -> Array:
        """(n,) sum of `values` at `buses`; what lies at the slack bus is left out."""
        sums = np.zeros(len(self.buses))
        for bus, value in zip(buses, values, strict=True):
            i = self.index(bus)
            if i is not None:
                sums[i] += value
        return sums

    def state(self, p_mw: Array, q_mvar: Array, ratio: float = 1.0) -> tuple[Array, Array, Array]:
        """(n,) squared voltages [pu^2], active and reactive flows [MW, Mvar], by one solve.

        Args:
            p_mw, q_mvar: (n,) injections.
            ratio: voltage of the source in its given one. What the grid draws without injections grows with
                its square. A tap at a transformer of the slack bus does the same, but for what the
                transformer draws at the slack bus itself.
        """
        right = np.zeros((3 * len(self.buses), 1))
        right[self._rows[0], 0], right[self._rows[1], 0] = -p_mw / self.s_base_mva, -q_mvar / self.s_base_mva
        v2_slack = ratio**2 * self.v2_slack
        right[self._rows[2], 0] = np.where(
            self.feeder == SLACK, self.gain_before * self.gain_behind * v2_slack, 0.0
        )
        v, p, q = self._solved(right, v2_slack)
        return v[:, 0], p[:, 0], q[:, 0]

    def v2(self, p_mw: Array, q_mvar: Array, ratio: float = 1.0) -> Array:
        """(n,) squared voltages [pu^2]; see `state`."""
        return self.state(p_mw, q_mvar, ratio)[0]

    def flow(self, p_mw: Array, q_mvar: Array, ratio: float = 1.0) -> tuple[Array, Array]:
        """(n,) active and reactive power entering each branch from the substation's side; see `state`."""
        return self.state(p_mw, q_mvar, ratio)[1:]

    def sensitivities(self, buses: Sequence[str]) -> Sensitivities:
        """(n, len(buses)) what injections at `buses` do; those of the slack bus do nothing.

        Raises:
            KeyError: no such bus.
        """
        n, at = len(self.buses), np.array([SLACK if (i := self.index(bus)) is None else i for bus in buses])
        found = Sensitivities(*(np.zeros((n, len(buses)), order="F") for _ in Sensitivities._fields))
        columns = np.flatnonzero(at != SLACK)
        for start in range(0, len(columns), CHUNK):
            chunk = columns[start : start + CHUNK]
            for row, (v2, p, q) in zip(self._rows, ((0, 2, 4), (1, 3, 5)), strict=False):
                right = np.zeros((3 * n, len(chunk)), order="F")
                right[row[at[chunk]], range(len(chunk))] = -1 / self.s_base_mva
                v, flow_p, flow_q = self._solved(right, 0.0)
                found[v2][:, chunk], found[p][:, chunk], found[q][:, chunk] = v, -flow_p, -flow_q
        return found

    def v2_gradient(self, at: Ints) -> tuple[Array, Array]:
        """(len(at), n) each: v2_per_mw and v2_per_mvar of the buses at these positions."""
        left = np.zeros((3 * len(self.buses), len(at)), order="F")
        left[self._rows[2][at], range(len(at))] = 1.0
        return self._transposed(left)

    def flow_gradient(self, at: Ints) -> tuple[Array, Array, Array, Array]:
        """(len(at), n) each: p_per_mw, p_per_mvar, q_per_mw, q_per_mvar of the branches at positions."""
        found: list[Array] = []
        feeder = self.feeder[at]
        inner = np.flatnonzero(feeder != SLACK)
        for row, draws in ((0, self.g_feeding_pu), (1, -self.b_feeding_pu)):
            left = np.zeros((3 * len(self.buses), len(at)), order="F")
            left[self._rows[row][at], range(len(at))] = -self.s_base_mva
            left[self._rows[2][feeder[inner]], inner] = -self.s_base_mva * draws[at][inner]
            found += self._transposed(left)
        return found[0], found[1], found[2], found[3]

    @property
    def admits(self) -> bool:
        """Whether any admittance draws power, so that an injection changes flows beside its path."""
        return any(x.any() for x in (self.g_pu, self.b_pu, self.g_feeding_pu, self.b_feeding_pu))

    @cached_property
    def _rows(self) -> tuple[Ints, Ints, Ints]:
        """(n,) each: where P, Q and v of a bus stand in the system, the farthest buses first."""
        place = np.empty(len(self.buses), dtype=np.int64)
        place[np.argsort(-self._depth, kind="stable")] = 3 * np.arange(len(self.buses))
        return place, place + 1, place + 2

    @cached_property
    def _factors(self) -> Callable[..., Array]:
        """Solves the system for (3n, cases) right-hand sides; `trans="T"` the transposed one."""
        n, fed = len(self.buses), np.flatnonzero(self.feeder != SLACK)
        P, Q, v = self._rows
        u = self.feeder[fed]
        gain = 2 * self.gain_behind
        entries = [
            (P, P, np.ones(n)),
            (Q, Q, np.ones(n)),
            (v, v, np.ones(n)),
            (P, v, -self.g_pu),
            (Q, v, self.b_pu),
            (v, P, gain * self.r_pu),
            (v, Q, gain * self.x_pu),
            (P[u], P[fed], -np.ones(len(fed))),
            (Q[u], Q[fed], -np.ones(len(fed))),
            (v[fed], v[u], -(self.gain_before * self.gain_behind)[fed]),
        ]
        row, column, value = (np.concatenate(parts) for parts in zip(*entries, strict=True))
        K = sparse.csc_matrix((value, (row, column)), shape=(3 * n, 3 * n))
        K.eliminate_zeros()
        # Leaves first is the elimination order without fill; the diagonal is 1 plus r g - x b.
        factors = splu(K, permc_spec="NATURAL", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
        solve: Callable[..., Array] = factors.solve
        return solve

    def _solved(self, right: Array, v2_slack: float) -> tuple[Array, Array, Array]:
        """(n, cases) each: v [pu^2] and flows [MW, Mvar] for right-hand sides (3n, cases)."""
        if not len(self.buses):
            return right, right, right
        found = self._factors(right)
        P, Q, v = (found[rows] for rows in self._rows)
        if self.g_feeding_pu.any() or self.b_feeding_pu.any():
            feeding = np.where((self.feeder == SLACK)[:, None], v2_slack, v[self.feeder])
            P += self.g_feeding_pu[:, None] * feeding
            Q -= self.b_feeding_pu[:, None] * feeding
        P *= self.s_base_mva
        Q *= self.s_base_mva
        return v, P, Q

    def _transposed(self, left: Array) -> tuple[Array, Array]:
        """(cases, n) each: what linear forms (3n, cases) of P, Q and v gain by injections [1/MW, 1/Mvar]."""
        if not left.size:
            return left.T, left.T
        found = self._factors(left, trans="T")
        P, Q, _ = self._rows
        return -found[P].T / self.s_base_mva, -found[Q].T / self.s_base_mva

    @cached_property
    def _base(self) -> tuple[Array, Array, Array]:
        zero = np.zeros(len(self.buses))
        return self.state(zero, zero)

    @property
    def v2_base(self) -> Array:
        """(n,) squared voltage without injections [pu^2]"""
        return self._base[0]

    @property
    def p_base(self) -> Array:
        """(n,) active flow without injections [MW]"""
        return self._base[1]

    @property
    def q_base(self) -> Array:
        """(n,) reactive flow without injections [Mvar]"""
        return self._base[2]

    @cached_property
    def _dense(self) -> Sensitivities:
        n = len(self.buses)
        if n * n > DENSE:
            raise ValueError(
                f"network: {n} buses make {n} x {n} sensitivities, more than {DENSE} entries; ask "
                "`sensitivities` for the buses that matter, or `state` for values"
            )
        return self.sensitivities(self.buses)

    @property
    def v2_per_mw(self) -> Array:
        """(n, n) [pu^2/MW]; this and the next five for networks that are small enough

        Raises:
            ValueError: more than `DENSE` entries.
        """
        return self._dense.v2_per_mw

    @property
    def v2_per_mvar(self) -> Array:
        return self._dense.v2_per_mvar

    @property
    def p_per_mw(self) -> Array:
        return self._dense.p_per_mw

    @property
    def p_per_mvar(self) -> Array:
        return self._dense.p_per_mvar

    @property
    def q_per_mw(self) -> Array:
        return self._dense.q_per_mw

    @property
    def q_per_mvar(self) -> Array:
        return self._dense.q_per_mvar


_ARRAYS = (
    *("feeder", "r_pu", "x_pu", "rating_mva", "gain_before", "gain_behind"),
    *("g_pu", "b_pu", "g_feeding_pu", "b_feeding_pu"),
)


@dataclass(frozen=True, eq=False)
class Flows:
    """Answers of an AC power flow, a row a case. Rows that did not converge hold NaN."""

    converged: npt.NDArray[np.bool_]
    """(cases,)"""
    v_pu: Array
    """(cases, buses)"""
    p_mw: Array
    """(cases, branches) entering at the branch's first side"""
    q_mvar: Array
    """(cases, branches)"""
    loading_percent: Array
    """(cases, branches); NaN for a branch without a rating"""


class PowerFlow(Protocol):
    """An AC power flow of the plant, for many cases of injections at once."""

    buses: tuple[str, ...]
    """every bus in service, the slack bus among them"""
    branches: tuple[str, ...]

    def solve(self, p_mw: Array, q_mvar: Array) -> Flows:
        """Solve for injections (cases, buses), loads included and negative."""
        ...

    def at(self, positions: Mapping[str, int]) -> PowerFlow:
        """The same grid with its regulators at these positions; one that is not named stays at its start.

        Raises:
            KeyError: no such regulator.
            ValueError: a position that it does not have.
        """
        ...
