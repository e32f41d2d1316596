"""Distribution: the operator's own problem over a horizon, the branch flow equations as second-order cones.

Source: seed 000, appendix D.1 (data) and (4b), whose rows are reconstructed. Implements (B1) and (B2).

| symbol   | here                       | meaning                                                | unit     |
|----------|----------------------------|--------------------------------------------------------|----------|
| P, Q     | `P`, `Q`                   | power entering the series impedance of a bus's branch  | MW, Mvar |
| l        | `l`                        | squared current in that impedance                      | MVA^2    |
| v        | `v`                        | squared voltage magnitude of a bus                     | pu^2     |
| p_i, q_i | `p`, `q`                   | exchange of each microgrid, above zero: it injects     | MW, Mvar |
| q^svc    | `svc`                      | injection of each static var compensator               | Mvar     |
| c        | `c`                        | curtailment of each load that may be curtailed       | MW       |
| P_G, Q_G | `import_mw`, `import_mvar` | what the upstream grid supplies, without a limit       | MW, Mvar |
| pi       | `price`                    | of energy from upstream                                | $/MWh    |
| h        | `hours`                    | length of an interval                                  | h        |

    cost = h sum over t of (pi P_G + sum of c times its cost + max(LOSS_PRICE - pi, 0) sum of r l)

The last term is none of the seed's, and zero while energy costs `LOSS_PRICE` or more: where it is cheaper, or
costs less than nothing, the relaxation would burn power in currents that do not flow. Losses are then counted
at `LOSS_PRICE`, so that the cones stay tight.

A switch without impedance has no current variable. An upper limit of voltage that binds under reverse flow,
or a line limit, can make the relaxation cheat (Gan, Li, Topcu, Low 2015); `Operation.gap` says whether it
did.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from controllers.devices import StaticVarCompensator
from controllers.interchange.branch_flow import BranchFlow
from controllers.interchange.conic_rows import Assembled, ConicRows, Terms, plus
from controllers.network import Limits, Network

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

LOSS_PRICE = 1.0
"""Least price of losses [$/MWh]."""


@dataclass(frozen=True, slots=True)
class BusLoad:
    """A load, or several, at one bus."""

    bus: str
    q_per_p: float = 0.0
    """reactive power that goes with each MW that is curtailed: constant power factor"""
    curtailment_cost_per_mwh: float | None = 500.0
    """`None`: it may not be curtailed"""


@dataclass(frozen=True, eq=False)
class Feeder:
    """What the operator's problem is compiled from."""

    network: Network
    limits: Limits
    microgrids: tuple[str, ...]
    """(N,) their buses"""
    intervals: int
    """T"""
    hours: float = 1.0
    """length of an interval"""
    loads: tuple[BusLoad, ...] = ()
    """(D,) everything else that injects or consumes"""
    compensators: tuple[StaticVarCompensator, ...] = ()
    """(S,) the operator's own"""
    line_limits: bool = False
    """whether `limits.loading_percent` of a branch's rating, as a current, is kept"""

    def __post_init__(self) -> None:
        if self.intervals < 1 or not self.hours > 0:
            raise ValueError(f"feeder: {self.intervals} intervals of {self.hours:g} h; give at least one")
        for load in self.loads:
            cost = load.curtailment_cost_per_mwh
            if cost is not None and not cost >= 0:
                raise ValueError(
                    f"feeder: curtailment at bus {load.bus} costs {cost:g} $/MWh; give 0 or more"
                )


@dataclass(frozen=True, eq=False)
class Conditions:
    """What changes from call to call."""

    price: Array
    """(T,) of energy from upstream [$/MWh]"""
    p_mw: Array
    """(T, D) injection of each load, so below zero where it consumes"""
    q_mvar: Array
    """(T, D)"""


@dataclass(frozen=True, eq=False)
class Operation:
    """How the operator means to run the network."""

    import_mw: Array
    """(T,) P_G"""
    import_mvar: Array
    """(T,) Q_G"""
    p_mw: Array
    """(T, N) exchange of each microgrid"""
    q_mvar: Array
    svc_mvar: Array
    """(T, S)"""
    curtailed_mw: Array
    """(T, D)"""
    v_pu: Array
    """(T, n) in the order of `Network.buses`"""
    P: Array
    Q: Array
    """(T, n) flows into the impedances [MW, Mvar]"""
    ell: Array
    """(T, n) squared currents [MVA^2]; zero at a switch"""
    cost: float
    """of the operator alone [$]"""
    gap: float
    """greatest excess of l t v over P^2 + Q^2, relative to 1 MVA^2 or to that if it is more: zero where the
    relaxation is exact"""


class Distribution:
    """The compiled rows of a feeder; `cost`, `right` and `constant` fill them.

    Raises:
        KeyError: a bus that the network does not have.
        ValueError: a network whose relaxation cannot be exact (see `BranchFlow`).
    """

    def __init__(self, feeder: Feeder) -> None:
        self.feeder, self.flow = feeder, BranchFlow(feeder.network)
        slack = feeder.network.slack
        self._curtailable = [
            d for d, load in enumerate(feeder.loads) if load.curtailment_cost_per_mwh is not None
        ]
        chosen = [feeder.loads[d] for d in self._curtailable]
        self._curtail_costs = np.array([d.curtailment_cost_per_mwh for d in chosen], dtype=float)
        self._load_buses = tuple(d.bus for d in feeder.loads)
        self._at_loads = self.flow.at(self._load_buses)
        self._microgrids_at_slack = np.array([float(bus == slack) for bus in feeder.microgrids])
        self._loads_at_slack = np.array([float(bus == slack) for bus in self._load_buses])
        self._coned = np.flatnonzero(self.flow.z2 > 0)
        self.rows: Assembled = self._rows()

    def _rows(self) -> Assembled:
        feeder, flow, at = self.feeder, self.flow, self._coned
        n, k, N, S, C = (
            *(flow.n, len(at), len(feeder.microgrids)),
            *(len(feeder.compensators), len(self._curtailable)),
        )
        sizes = {"P": n, "Q": n, "l": k, "v": n, "p": N, "q": N, "svc": S, "c": C}
        rows = ConicRows(sizes, feeder.intervals)
        one = sparse.eye_array(n, format="csr")
        onto = sparse.csr_array((np.ones(k), (at, np.arange(k))), shape=(n, k))

        def times(values: Array) -> sparse.dia_array:
            return sparse.diags_array(values)

        curtailed = self._at_loads[:, self._curtailable]
        ratio = np.array([feeder.loads[d].q_per_p for d in self._curtailable])
        injected: tuple[Terms, Terms] = (
            {"p": flow.at(feeder.microgrids), "c": curtailed},
            {
                "q": flow.at(feeder.microgrids),
                "svc": flow.at([device.bus for device in feeder.compensators]),
                "c": curtailed @ times(ratio),
            },
        )
        balance = {"P": one - flow.feeds, "l": -times(flow.r) @ onto, "v": -times(flow.g)}
        rows.add("p", "zero", plus((1.0, balance), (1.0, injected[0])), 0.0)  # (B1)
        balance = {"Q": one - flow.feeds, "l": -times(flow.x) @ onto, "v": times(flow.b)}
        rows.add("q", "zero", plus((1.0, balance), (1.0, injected[1])), 0.0)  # (B1)
        first = np.where(flow.fed_by_slack, flow.t, 0.0) * flow.v2_slack
        drop = {
            "v": one - times(flow.s * flow.t) @ flow.feeds.T,
            "P": times(2 * flow.s * flow.r),
            "Q": times(2 * flow.s * flow.x),
            "l": -times(flow.s * flow.z2) @ onto,
        }
        rows.add("v", "zero", drop, flow.s * first)  # (B1)
        # (l + v, 2P, 2Q, l - v) in the second-order cone, with v before the impedance
        place = [
            sparse.csr_array((np.ones(k), (4 * np.arange(k) + j, np.arange(k))), shape=(4 * k, k))
            for j in range(4)
        ]
        right = np.zeros((k, 4))
        right[:, 0], right[:, 3] = first[at], -first[at]
        cone = {
            "l": -(place[0] + place[3]),
            "v": (place[3] - place[0]) @ onto.T @ times(flow.t) @ flow.feeds.T,
            "P": -2 * place[1] @ onto.T,
            "Q": -2 * place[2] @ onto.T,
        }
        rows.add("cone", "second", cone, right.ravel(), cone=4)  # (B1)
        low, high = feeder.limits.v_pu
        rows.add("v least", "nonnegative", {"v": -one}, -(low**2))  # (B2)
        rows.add("v most", "nonnegative", {"v": one}, high**2)  # (B2)
        q_low, q_high = np.array([device.q_mvar for device in feeder.compensators]).reshape(-1, 2).T
        rows.add("svc least", "nonnegative", {"svc": -sparse.eye_array(S)}, -q_low)  # (B2)
        rows.add("svc most", "nonnegative", {"svc": sparse.eye_array(S)}, q_high)  # (B2)
        rows.add("c least", "nonnegative", {"c": -sparse.eye_array(C)}, 0.0)  # (B1)
        rows.add("c most", "nonnegative", {"c": sparse.eye_array(C)}, 0.0)  # (B1)
        if feeder.line_limits:
            rating = feeder.network.rating_mva[at] * feeder.limits.loading_percent / 100
            rated = np.flatnonzero(np.isfinite(rating))
            side = np.maximum(np.maximum(flow.t, 1 / flow.s), 1.0)[at]
            pick = sparse.eye_array(k, format="csr")[rated]
            rows.add("l most", "nonnegative", {"l": pick}, (rating**2 / side)[rated])
        return rows.assemble()

    def columns(self, name: str) -> Ints:
        """(T, size) where a variable's values are in x."""
        width, at = self.rows.width, self.rows.variables[name]
        return width * np.arange(self.feeder.intervals)[:, None] + np.arange(at.start, at.stop)

    def cost(self, conditions: Conditions) -> Array:
        """The linear objective [$]."""
        price = self._checked(conditions).price
        given: Mapping[str, Array] = {
            "P": price[:, None] * self.flow.fed_by_slack,
            "l": np.maximum(LOSS_PRICE - price, 0.0)[:, None] * self.flow.r[self._coned],
            "p": -price[:, None] * self._microgrids_at_slack,
            "c": self._curtail_costs - price[:, None] * self._loads_at_slack[self._curtailable],
        }
        return self.feeder.hours * self.rows.costs(given)

    def right(self, conditions: Conditions) -> Array:
        """The right-hand sides."""
        self._checked(conditions)
        p_mw, q_mvar = conditions.p_mw, conditions.q_mvar
        return self.rows.right(
            {
                "p": -p_mw @ self._at_loads.T,
                "q": -q_mvar @ self._at_loads.T,
                "c most": np.maximum(-p_mw[:, self._curtailable], 0.0),
            }
        )

    def constant(self, conditions: Conditions) -> float:
        """What the objective leaves out [$]: the import that no variable moves."""
        fixed = self.flow.import_offset_mw - conditions.p_mw @ self._loads_at_slack
        return float(self.feeder.hours * conditions.price @ fixed)

    def operation(self, conditions: Conditions, x: Array) -> Operation:
        """What x (variables of this problem) means."""
        at, flow, fed = self.rows.split(x), self.flow, self.flow.fed_by_slack
        T = self.feeder.intervals
        ell, curtailed = np.zeros((T, flow.n)), np.zeros((T, len(self.feeder.loads)))
        ell[:, self._coned], curtailed[:, self._curtailable] = at["l"], at["c"]
        needed = at["P"] ** 2 + at["Q"] ** 2
        excess = (ell * flow.sending(at["v"]) - needed) / np.maximum(needed, 1.0)
        q_per_p = np.array([load.q_per_p for load in self.feeder.loads])
        slack_p = at["p"] @ self._microgrids_at_slack + (conditions.p_mw + curtailed) @ self._loads_at_slack
        slack_q = at["q"] @ self._microgrids_at_slack
        slack_q = slack_q + (conditions.q_mvar + q_per_p * curtailed) @ self._loads_at_slack
        network = self.feeder.network
        for s, device in enumerate(self.feeder.compensators):
            if device.bus == network.slack:
                slack_q = slack_q + at["svc"][:, s]
        drawn = -network.b_feeding_pu[fed].sum() * network.s_base_mva * flow.v2_slack
        return Operation(
            import_mw=at["P"][:, fed].sum(axis=1) + flow.import_offset_mw - slack_p,
            import_mvar=at["Q"][:, fed].sum(axis=1) + drawn - slack_q,
            p_mw=at["p"],
            q_mvar=at["q"],
            svc_mvar=at["svc"],
            curtailed_mw=curtailed,
            v_pu=np.sqrt(np.maximum(at["v"], 0.0)),
            P=at["P"],
            Q=at["Q"],
            ell=ell,
            cost=float(self.cost(conditions) @ x) + self.constant(conditions),
            gap=float(excess[:, self._coned].max(initial=0.0)),
        )

    def _checked(self, conditions: Conditions) -> Conditions:
        T, D = self.feeder.intervals, len(self.feeder.loads)
        wanted = {"price": (T,), "p_mw": (T, D), "q_mvar": (T, D)}
        for name, shape in wanted.items():
            values: Array = getattr(conditions, name)
            if values.shape != shape:
                raise ValueError(f"conditions: {name} has shape {values.shape}, needed is {shape}")
            if not np.isfinite(values).all():
                raise ValueError(
                    f"conditions: {name} has a value that is not finite; give every interval one"
                )
        return conditions
