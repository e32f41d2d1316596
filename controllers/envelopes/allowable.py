"""Allowable powers: what the network permits its controllable devices together, A P + B Q <= W.

Source: seed 004, constraint (10)/(A1); LinDistFlow rows as in Baran and Wu.

| symbol | here     | meaning                                           | unit         |
|--------|----------|---------------------------------------------------|--------------|
| P, Q   |          | injections of the controllable devices            | MW, Mvar     |
| A, B   | `A`, `B` | row coefficients                                  | pu^2/MW or 1 |
| W      | `W(...)` | what is left of each limit at zero injection      | pu^2 or MVA  |
| gamma  | `gamma`  | weight of each device                             | 1 or MW      |

A and B depend on the network alone; W follows the background injections. A flow limit is a circle; its rows
are the edges of the inscribed polygon, which lies inside. It bounds the apparent power at rated voltage and
without losses, not the current that a loading is made of.

The rows of 10,000 buses and 5,000 devices have 10^9 coefficients. So nothing here needs A and B as a whole:
`use`, `part` and `columns` give what methods and checks ask for, from sparse solves; `A` and `B` are there
for sites that are small enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

import numpy as np
import numpy.typing as npt

from controllers.contract import Infeasible
from controllers.network import Sensitivities
from controllers.regulators import TapChanger
from controllers.site import Site

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

EDGES = 16
"""Edges of the polygon inscribed in a branch's flow limit (1.9 % inside at most)."""

ROUNDING = 1e-9
"""How far below zero the room in a row may be and still count as none."""

NOTHING = 1e-12
"""Coefficients up to here count as none."""

DENSE = 200_000_000
"""Entries above which A and B are refused (1.6 GB each)."""

SMALL = 20_000_000
"""Entries up to which a part of A and B is cut from the whole."""

CHUNK = 64
"""Devices or rows that are looked at together."""


class RowKind(IntEnum):
    """What a row guards."""

    UPPER = 0
    """greatest voltage of a bus"""
    LOWER = 1
    """least voltage of a bus"""
    LOADING = 2
    """one edge of a branch's flow limit"""


@dataclass(eq=False)
class AllowableRegion:
    """Rows of A P + B Q <= W for a site's devices, which stand in the order of `site.devices`.

    First the upper voltage of each bus, then the lower ones, then the first edge of every rated branch, the
    second edge of every rated branch, and so on.

    Args:
        edges: of the polygon inscribed in a flow limit; it lies inside by 1 - cos(pi / edges) at most.

    Raises:
        KeyError: a device or load at a bus that the network does not have.
        ValueError: fewer than 4 edges.
    """

    site: Site
    edges: int = EDGES

    def __post_init__(self) -> None:
        network, limits = self.site.network, self.site.limits
        if self.edges < 4:
            raise ValueError(f"allowable region: {self.edges} edges inscribe no polygon; give 4 or more")
        self.rated: Ints = np.flatnonzero(np.isfinite(network.rating_mva))
        """(rated,) positions of the branches that have a limit"""
        self._at = [network.index(device.bus) for device in self.site.devices.values()]
        loads = tuple(self.site.loads.values())
        self._loads = [load.name for load in loads]
        self._nominal = [load.p_mw for load in loads]
        slope = [load.q_mvar / load.p_mw if load.p_mw else 0.0 for load in loads]
        self._slope = np.array(slope)
        self._constant = np.array([0.0 if load.p_mw else load.q_mvar for load in loads])
        rows = [network.index(load.bus) for load in loads]
        self._load_at = np.array([len(network.buses) if i is None else i for i in rows], dtype=np.int64)

        angle = 2 * np.pi * (np.arange(self.edges) + 0.5) / self.edges
        self._cos, self._sin = np.cos(angle), np.sin(angle)
        inside = np.cos(np.pi / self.edges)
        self._allowed_mva = network.rating_mva[self.rated] * limits.loading_percent / 100 * inside

    def __len__(self) -> int:
        return 2 * len(self.site.network.buses) + self.edges * len(self.rated)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """(rows,) what each row guards, e.g. "upper voltage at bus 17" """
        network = self.site.network
        branches = [f"loading of {network.branches[i]}" for i in self.rated]
        return (
            *(f"upper voltage at bus {bus}" for bus in network.buses),
            *(f"lower voltage at bus {bus}" for bus in network.buses),
            *(branches * self.edges),
        )

    @cached_property
    def kinds(self) -> npt.NDArray[np.int8]:
        """(rows,) `RowKind` of each row."""
        n, rated = len(self.site.network.buses), len(self.rated)
        counts = (n, n, self.edges * rated)
        return np.repeat(np.array(tuple(RowKind), dtype=np.int8), counts)

    @cached_property
    def places(self) -> Ints:
        """(rows,) position in the network of the bus or branch that each row guards."""
        n = np.arange(len(self.site.network.buses))
        return np.concatenate([n, n, np.tile(self.rated, self.edges)])

    @cached_property
    def angles(self) -> Array:
        """(edges,) direction of each edge's normal in the plane of a branch's P and Q [rad]"""
        return 2 * np.pi * (np.arange(self.edges) + 0.5) / self.edges

    @property
    def A(self) -> Array:
        """(rows, devices) coefficients of P.

        Raises:
            ValueError: more than `DENSE` entries.
        """
        return self._both[0]

    @property
    def B(self) -> Array:
        """(rows, devices) coefficients of Q; raises as `A`."""
        return self._both[1]

    @cached_property
    def _both(self) -> tuple[Array, Array]:
        return self.columns(range(len(self._at)))

    def columns(self, devices: Sequence[int]) -> tuple[Array, Array]:
        """(rows, len(devices)) A and B of the devices at these positions.

        Raises:
            ValueError: more than `DENSE` entries.
        """
        rows, n = len(self), len(self.site.network.buses)
        if rows * len(devices) > DENSE:
            raise ValueError(
                f"allowable region of {self.site.name!r}: {rows} rows of {len(devices)} devices are more "
                f"than {DENSE} coefficients; take a method that does without the matrices (P-E), fewer "
                "devices, or leave branches that never fill up without a rating"
            )
        A, B = np.zeros((rows, len(devices))), np.zeros((rows, len(devices)))
        at = [self._at[i] for i in devices]
        for positions, s in self._sensitivities(sorted({i for i in at if i is not None})):
            column_of = {bus: k for k, bus in enumerate(positions)}
            mine = [k for k, i in enumerate(at) if i in column_of]
            take = [column_of[i] for i in at if i is not None and i in column_of]
            for M, v2, p, q in ((A, s.v2_per_mw, s.p_per_mw, s.q_per_mw), (B, *s[1::2])):
                M[:n, mine], M[n : 2 * n, mine] = v2[:, take], -v2[:, take]
                M[2 * n :, mine] = self._edges(p[self.rated][:, take], q[self.rated][:, take])
        return A, B

    def part(self, rows: Ints) -> tuple[Array, Array]:
        """(len(rows), devices) A and B of the rows with these indices."""
        if len(self) * len(self._at) <= SMALL:
            return self.A[rows], self.B[rows]
        network = self.site.network
        rows = np.asarray(rows, dtype=np.int64)
        kinds, places = self.kinds[rows], self.places[rows]
        found = np.zeros((2, len(rows), len(self._at)))
        here = np.array([k for k, i in enumerate(self._at) if i is not None], dtype=np.int64)
        at = [i for i in self._at if i is not None]

        def gradients(
            chosen: Ints, of: Callable[[Ints], tuple[Array, ...]]
        ) -> Iterator[tuple[Ints, Ints, tuple[Array, ...]]]:
            """For the rows chosen: which of them, where their bus or branch stands, and its gradient."""
            wanted, which = np.unique(places[chosen], return_inverse=True)
            for start in range(0, len(wanted), CHUNK):
                inside = np.flatnonzero((which >= start) & (which < start + CHUNK))
                answer = tuple(g[:, at] for g in of(wanted[start : start + CHUNK]))
                yield chosen[inside], which[inside] - start, answer

        for some, of, (per_p, per_q) in gradients(
            np.flatnonzero(kinds != RowKind.LOADING), network.v2_gradient
        ):
            sign = np.where(kinds[some] == RowKind.UPPER, 1.0, -1.0)[:, None]
            found[0][np.ix_(some, here)], found[1][np.ix_(some, here)] = sign * per_p[of], sign * per_q[of]
        loading = np.flatnonzero(kinds == RowKind.LOADING)
        edge = (rows - 2 * len(network.buses)) // max(len(self.rated), 1)
        for some, of, (p_p, p_q, q_p, q_q) in gradients(loading, network.flow_gradient):
            cos, sin = self._cos[edge[some], None], self._sin[edge[some], None]
            found[0][np.ix_(some, here)] = -(cos * p_p[of] + sin * q_p[of])
            found[1][np.ix_(some, here)] = -(cos * p_q[of] + sin * q_q[of])
        return found[0], found[1]

    def use(self, gamma: Array) -> Array:
        """(4, rows) sums over the devices of gamma times the positive part of A, the negative part of A, both
        of B: what one unit of common range takes of each row, upwards and downwards.

        On a network without admittances every row has one sign, and one solve gives all of it; else it takes
        two solves for each bus with a device.
        """
        network = self.site.network
        n = len(network.buses)
        weight = _sums(np.array([n if i is None else i for i in self._at], dtype=np.int64), gamma, n)
        use = np.zeros((4, len(self)))
        chunks: Iterator[tuple[Sensitivities, Array]]
        if self._one_signed:
            zero = np.zeros(
                n
            )  # and a source without voltage: the injections' part alone, as if of one device
            v_p, p_p, q_p = (x[:, None] for x in network.state(weight, zero, 0.0))
            v_q, p_q, q_q = (x[:, None] for x in network.state(zero, weight, 0.0))
            together = Sensitivities(v_p, v_q, -p_p, -p_q, -q_p, -q_q)
            chunks = iter([(together, np.ones(1))])
        else:
            buses = np.flatnonzero(weight).tolist()
            chunks = ((s, weight[at]) for at, s in self._sensitivities(buses))
        for s, g in chunks:
            self._add(use[:2], s.v2_per_mw, s.p_per_mw[self.rated], s.q_per_mw[self.rated], g)
            self._add(use[2:], s.v2_per_mvar, s.p_per_mvar[self.rated], s.q_per_mvar[self.rated], g)
        return use

    @property
    def _one_signed(self) -> bool:
        """Whether no two coefficients of a row of A, or of B, can differ in sign."""
        network = self.site.network
        return not network.admits and bool((network.r_pu >= 0).all() and (network.x_pu >= 0).all())

    def _add(self, use: Array, v2: Array, p: Array, q: Array, g: Array) -> None:
        """Add the positive and negative parts of the coefficients that sensitivities make, weighted by g."""
        n, rated = len(v2), len(p)
        up, down = _parts(v2, g)
        use[0, :n] += up
        use[1, :n] += down
        use[0, n : 2 * n] += down
        use[1, n : 2 * n] += up
        edges = use[:, 2 * n :].reshape(2, self.edges, rated)
        half = self.edges // 2 if self.edges % 2 == 0 else self.edges
        for k in range(half):
            up, down = _parts(self._cos[k] * p + self._sin[k] * q, g)
            edges[0, k] += down
            edges[1, k] += up
            if half < self.edges:  # the opposite edge
                edges[0, k + half] += up
                edges[1, k + half] += down

    def _sensitivities(self, positions: Sequence[int]) -> Iterator[tuple[list[int], Sensitivities]]:
        """What injections at these positions do, some of them at a time."""
        network = self.site.network
        for start in range(0, len(positions), CHUNK):
            some = list(positions[start : start + CHUNK])
            yield some, network.sensitivities([network.buses[i] for i in some])

    def _edges(self, p: Array, q: Array) -> Array:
        """(edges * rated, columns) coefficients of every edge of every rated branch, for (rated, columns)."""
        cos, sin = self._cos[:, None, None], self._sin[:, None, None]
        return np.asarray(-(cos * p + sin * q).reshape(-1, p.shape[1]))

    def background(self, p_mw: Mapping[str, float]) -> tuple[Array, Array]:
        """(buses,) injections of the loads at the active powers forecast; a load that `p_mw` does
        not name is taken at its nominal power."""
        n = len(self.site.network.buses)
        p = np.array(
            [p_mw.get(name, nominal) for name, nominal in zip(self._loads, self._nominal, strict=True)]
        )
        q = self._slope * p + self._constant
        at = self._load_at
        return _sums(at, p, n), _sums(at, q, n)

    def W(self, p_mw: Array, q_mvar: Array, positions: Mapping[str, int] | None = None) -> Array:
        """(rows,) room left at zero device injection, for background injections (buses,).

        A negative value means that the background alone breaks the limit.

        Args:
            p_mw, q_mvar: loads and fixed generators, capacitor banks left out.
            positions: of the site's regulators; one that is not named stands at its start. They enter W
                only: a bank injects its reactive power at rated voltage, a tap scales the source.

        Raises:
            Infeasible: the background breaks a limit that no device can influence.
        """
        network, limits = self.site.network, self.site.limits
        ratio = 1.0
        for name, regulator in self.site.regulators.items():
            position = (positions or {}).get(name, regulator.start)
            if isinstance(regulator, TapChanger):
                ratio *= regulator.ratio(position)
            elif position and (row := network.index(regulator.bus)) is not None:
                q_mvar = q_mvar.copy()
                q_mvar[row] += position * regulator.q_mvar
        v2, *flows = network.state(p_mw, q_mvar, ratio)
        flow_p, flow_q = (flow[self.rated] for flow in flows)
        room = self._allowed_mva - self._cos[:, None] * flow_p - self._sin[:, None] * flow_q
        low, high = limits.v_pu
        W = np.concatenate([high**2 - v2, v2 - low**2, room.ravel()])
        broken = np.flatnonzero(W < -ROUNDING)
        if len(broken) and len(broken := broken[self.dead[broken]]):
            row = int(broken[np.argmin(W[broken])])
            raise Infeasible(
                f"{self.names[row]}: the background load alone exceeds it by {-W[row]:.4g} and no "
                "device can influence it"
            )
        return W

    @cached_property
    def dead(self) -> npt.NDArray[np.bool_]:
        """(rows,) rows that no device can influence."""
        return np.asarray(self.use(np.ones(len(self._at))).sum(axis=0) < NOTHING)


def _parts(M: Array, g: Array) -> tuple[Array, Array]:
    """Sums of the positive and of the negative parts of M (rows, columns) in each row, weighted by g."""
    return np.maximum(M, 0.0) @ g, np.maximum(-M, 0.0) @ g


def _sums(at: Ints, values: Array, n: int) -> Array:
    """(n,) sums of values by position; what has the position n is left out."""
    return np.bincount(at, values, n + 1)[:n].astype(np.float64, copy=False)
