"""The seed's six microgrids and its whole problem stated once more, in cvxpy, constraint by constraint.

Tables A.I to A.V of seed 000, with the corrections that its own results call for: the renewables of buses 7
and 96, which table A.III lacks, follow from table A.VI. Equations (B1)-(B7). Nothing here reads `controllers`
beyond the network's impedances, and `Block`, which it fills for whoever needs one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cvxpy as cp
import numpy as np
import numpy.typing as npt
from scipy import sparse

from controllers import Network
from controllers.partnership.block import Block
from tests.jabr import Copy

Array = npt.NDArray[np.float64]

PRICE = np.array([0.77, 1.0, 1.16, 0.9, 1.30, 0.77])
LOAD = np.array([0.85, 0.95, 0.9, 1.0, 0.95, 0.85])
RENEWABLES = np.array([1.0, 1.2, 0.6, 1.0, 1.4, 1.0])
PRICE_PER_MWH = 103.0
CURTAILMENT_PER_MWH = 500.0
SVC_MVAR = {"3": 0.3, "88": 0.3, "113": 0.2, "117": 0.4}
"""Table A.I, both ways."""
SVC_TEXT_MVAR = {"83": 0.3, "88": 0.3, "113": 0.2, "117": 0.4}
"""The same by the text before it."""
V_PU = 0.9, 1.1


@dataclass(frozen=True)
class Engine:
    """A conventional generator (table A.II)."""

    cost_per_kwh: float
    start_up_cost: float
    p_kw: tuple[float, float]
    q_kvar: tuple[float, float]
    ramp_kw: float


@dataclass(frozen=True)
class Renewable:
    """Table A.III."""

    p_kw: float
    power_factor: float


@dataclass(frozen=True)
class Storage:
    """Table A.IV."""

    p_kw: float
    e_kwh: tuple[float, float, float]
    """least, greatest, first"""
    efficiency: float


@dataclass(frozen=True)
class Figures:
    """One microgrid."""

    bus: str
    engine: Engine
    renewable: Renewable
    storage: Storage
    p_kw: float
    """load at its bus"""
    q_kvar: float


_ENGINES = {
    "7": Engine(0.05, 10, (20, 100), (-50, 50), 50),
    "50": Engine(0.08, 5, (30, 150), (-75, 75), 45),
    "58": Engine(0.04, 10, (50, 150), (-50, 100), 80),
    "96": Engine(0.055, 10, (20, 120), (-10, 50), 50),
    "104": Engine(0.085, 10, (10, 80), (-20, 50), 40),
    "121": Engine(0.045, 10, (20, 120), (-25, 75), 50),
}
_RENEWABLES = {
    "7": Renewable(30, 0.90),
    "50": Renewable(50, 0.95),
    "58": Renewable(80, 0.85),
    "96": Renewable(80, 0.90),
    "104": Renewable(40, 0.85),
    "121": Renewable(60, 0.90),
}
_STORAGE = {
    "7": Storage(40, (20, 80, 60), 0.9),
    "50": Storage(40, (20, 100, 40), 0.85),
    "58": Storage(35, (30, 90, 30), 0.9),
    "96": Storage(60, (40, 160, 80), 0.95),
    "104": Storage(40, (20, 80, 40), 0.9),
    "121": Storage(30, (40, 120, 60), 0.9),
}


def figures(of: str, bus: str, p_kw: float, q_kvar: float) -> Figures:
    """The seed's microgrid at bus `of`, put at `bus` with the load there."""
    return Figures(bus, _ENGINES[of], _RENEWABLES[of], _STORAGE[of], p_kw, q_kvar)


def seed(loads: dict[str, tuple[float, float]]) -> list[Figures]:
    """The seed's six, with the loads [kW, kvar] at their buses."""
    return [figures(bus, bus, *loads.get(bus, (0.0, 0.0))) for bus in _ENGINES]


@dataclass
class Microgrid:
    """Constraints (B3)-(B6) and cost (B7) of one microgrid over the first intervals, in MW, MWh and $."""

    figures: Figures
    intervals: int
    whole: bool = False
    load: Array = field(default_factory=lambda: LOAD)
    renewables: Array = field(default_factory=lambda: RENEWABLES)

    def __post_init__(self) -> None:
        T, it = self.intervals, self.figures
        engine, store = it.engine, it.storage
        names = ("p", "q", "P_DG", "Q_DG", "P_RE", "Q_RE", "dis", "cha", "E", "c", "s")
        self.variables: dict[str, Any] = {name: cp.Variable(T, name=name) for name in names}
        self.variables["u"] = cp.Variable(T, name="u", boolean=self.whole)
        p, q, P, Q, P_RE, Q_RE, dis, cha, E, c, s, u = self.variables.values()
        load, q_load = it.p_kw / 1000 * self.load[:T], it.q_kvar / 1000 * self.load[:T]
        ratio = it.q_kvar / it.p_kw if it.p_kw else 0.0
        slope = np.tan(np.arccos(it.renewable.power_factor))
        rules = [
            p == P + P_RE + dis - cha - (load - c),
            q == Q + Q_RE - (q_load - ratio * c),
            engine.p_kw[0] / 1000 * u <= P,
            engine.p_kw[1] / 1000 * u >= P,
            engine.q_kvar[0] / 1000 * u <= Q,
            engine.q_kvar[1] / 1000 * u >= Q,
            s >= 0,
            P_RE >= 0,
            it.renewable.p_kw / 1000 * self.renewables[:T] >= P_RE,
            slope * P_RE >= Q_RE,
            -slope * P_RE <= Q_RE,
            *(x >= 0 for x in (dis, cha, c)),
            *(x <= store.p_kw / 1000 for x in (dis, cha)),
            store.e_kwh[0] / 1000 <= E,
            store.e_kwh[1] / 1000 >= E,
            c <= load,
        ]
        for t in range(T):
            P_0, u_0, E_0 = (P[t - 1], u[t - 1], E[t - 1]) if t else (0.0, 0.0, store.e_kwh[2] / 1000)
            rules += [
                P[t] - P_0 <= engine.ramp_kw / 1000,
                P[t] - P_0 >= -engine.ramp_kw / 1000,
                s[t] >= u[t] - u_0,
                E[t] == E_0 + store.efficiency * cha[t] - dis[t] / store.efficiency,
            ]
        self.within = [u >= 0, u <= 1]
        self.rules = rules
        self.cost = (
            1000 * engine.cost_per_kwh * cp.sum(P)
            + engine.start_up_cost * cp.sum(s)
            + CURTAILMENT_PER_MWH * cp.sum(c)
        )

    @property
    def exchange(self) -> tuple[Any, Any]:
        """p and q."""
        return self.variables["p"], self.variables["q"]

    @property
    def bits(self) -> Any:
        """u"""
        return self.variables["u"]

    def block(self) -> tuple[Block, dict[str, slice]]:
        """The same as rows; and where each continuous variable is in y."""
        problem = cp.Problem(cp.Minimize(self.cost), self.rules)
        data = problem.get_problem_data(cp.CLARABEL)[0]
        at = data["param_prob"].var_id_to_col
        T, (n,) = self.intervals, data["c"].shape
        bits = at[self.bits.id] + np.arange(T)
        own = np.setdiff1d(np.arange(n), bits)
        place = {
            name: slice(first := int(np.searchsorted(own, at[variable.id])), first + T)
            for name, variable in self.variables.items()
            if name != "u"
        }
        A, zero = sparse.csr_array(data["A"]), data["dims"].zero
        low = np.full(len(data["b"]), -np.inf)
        low[:zero] = data["b"][:zero]
        one = sparse.eye_array(len(own), format="csr")
        made = Block(
            P_y=one[place["p"]],
            P_0=np.zeros(T),
            Q_y=one[place["q"]],
            Q_0=np.zeros(T),
            A=A[:, own],
            D=A[:, bits],
            low=low,
            high=data["b"],
            y_low=np.full(len(own), -np.inf),
            y_high=np.full(len(own), np.inf),
            cost_y=data["c"][own],
            cost_z=data["c"][bits],
        )
        return made, place


@dataclass
class Whole:
    """The operator's problem (B1), (B2) and those of its microgrids as one."""

    network: Network
    microgrids: Sequence[Microgrid]
    loads: dict[str, tuple[float, float]]
    """nominal [MW, Mvar], but for those at the microgrids' buses"""
    svc_mvar: dict[str, float]
    price_per_mwh: float = PRICE_PER_MWH
    v_pu: tuple[float, float] = V_PU

    def __post_init__(self) -> None:
        network, T = self.network, self.microgrids[0].intervals
        cost: Any = sum(microgrid.cost for microgrid in self.microgrids)
        rules = [rule for microgrid in self.microgrids for rule in microgrid.rules]
        if not self.microgrids[0].whole:
            rules += [rule for microgrid in self.microgrids for rule in microgrid.within]
        self.import_mw: list[Any] = []
        self.copies: list[Copy] = []
        place = {bus: i for i, bus in enumerate(network.buses)}
        inside = [bus for bus in self.loads if bus != network.slack]
        P = np.array([self.loads[bus][0] for bus in inside])
        Q = np.array([self.loads[bus][1] for bus in inside])

        def spread(buses: Sequence[str]) -> sparse.csr_array:
            rows = [place[bus] for bus in buses]
            shape = len(network.buses), len(rows)
            return sparse.csr_array((np.ones(len(rows)), (rows, np.arange(len(rows)))), shape=shape)

        for t in range(T):
            c, svc = cp.Variable(len(inside)), cp.Variable(max(len(self.svc_mvar), 1))
            p: Any = -(spread(inside) @ (P * LOAD[t] - c))
            q: Any = -(spread(inside) @ (Q * LOAD[t] - cp.multiply(Q / P, c)))
            if self.svc_mvar:
                q = q + spread(list(self.svc_mvar)) @ svc
            most = np.array([*self.svc_mvar.values()] or [0.0])
            for microgrid in self.microgrids:
                at = spread([microgrid.figures.bus])
                p = p + at @ cp.reshape(microgrid.exchange[0][t], (1,), order="C")
                q = q + at @ cp.reshape(microgrid.exchange[1][t], (1,), order="C")
            copy = Copy(network, p, q)
            rules += [*copy.rules, copy.v >= self.v_pu[0] ** 2, copy.v <= self.v_pu[1] ** 2]
            rules += [c >= 0, c <= P * LOAD[t], svc <= most, svc >= -most]
            self.copies.append(copy)
            self.import_mw.append(copy.import_mw + self.loads.get(network.slack, (0.0, 0.0))[0] * LOAD[t])
            cost = cost + self.price_per_mwh * PRICE[t] * self.import_mw[t] + CURTAILMENT_PER_MWH * cp.sum(c)
        self.problem = cp.Problem(cp.Minimize(cost), rules)
