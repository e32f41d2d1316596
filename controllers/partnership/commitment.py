"""Commitment: the operation of one microgrid over a horizon, with units that may be off, as a `Block`.

Source: seed 000, (4c), (4d) and tables A.II-A.V, whose text has no formula for them; the equations are a
reconstruction. Implements (B3)-(B7).

| symbol      | here            | meaning                                                     | unit     |
|-------------|-----------------|-------------------------------------------------------------|----------|
| P_DG, Q_DG  | `P`, `Q`        | output of an engine                                         | MW, Mvar |
| u           | `u`             | bit: whether it is on; z of (4d)                            | 1        |
| s           | `s`             | whether it starts in the interval                           | 1        |
| P_RE, Q_RE  | `P`, `Q`        | output of sun or wind; of a compensator `Q`                 | MW, Mvar |
| P_ch, P_dch | `P_ch`, `P_dch` | charging and discharging power of a store                   | MW       |
| E           | `E`             | energy at the interval's end                                | MWh      |
| w           | `w`             | bit: whether it charges, with `exclusive_stores`; z of (4d) | 1        |
| c           | `c`             | consumption that is curtailed                               | MW       |

How it differs from the reconstruction it follows:

- An engine that cannot stop has no bit. One without a range of Q of its own has the circle of its rating:
  each row n.(P, Q) <= r of the polygon reads n.(P, Q) <= r u, so that off means P = Q = 0.
- An engine whose ramp in an interval is below its least power starts at that, and stops from it, as the
  device does: by (B4) alone it never could. Else (B4) is as it stands.
- A measured power beyond the unit's range counts as the nearest within it, a measured energy beyond its range
  need not come back but goes no farther out.
- Static var compensators may be a microgrid's own.
- Every variable has finite bounds, those that the rows imply: so a cut can be made valid to the last digit.

There is always an operation: each engine goes on as it was, ramping towards its range; stores do nothing; sun
and wind are not used. Only what is exchanged with the network, and a given pattern of bits, can fail to fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, assert_never

import numpy as np
import numpy.typing as npt
from scipy import sparse

from controllers.devices import ROUNDING
from controllers.interchange.linear_rows import Key, LinearRows, Term
from controllers.partnership.block import Block
from controllers.partnership.outlook import Outlook
from controllers.partnership.units import Compensator, Demand, Engine, Fleet, Renewable, Store, shape

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


class Injection(NamedTuple):
    """Of one unit over the horizon, (T,) each."""

    p_mw: Array
    q_mvar: Array


@dataclass(frozen=True, eq=False)
class Commitment:
    """A microgrid's block, and what its variables are."""

    block: Block
    starts: Mask
    """(R,) rows in which a bit stands beside a start, not beside a power"""
    fleet: Fleet
    outlook: Outlook
    tie_mw: float
    """greatest exchange, both ways"""
    _lp: LinearRows
    _columns: npt.NDArray[np.int64]
    """(all variables,) number of each among the continuous ones, or among the bits"""

    def symbol(self, name: str, symbol: str, y: Array, z: Array) -> Array:
        """(T,) one of the variables in the table above, by unit."""
        at = self._columns[self._lp.at((name, symbol))]
        return (z if symbol in BITS else y)[at]

    def injection(self, name: str, y: Array, z: Array) -> Injection:
        """What a unit injects by a solution; a load's is negative.

        Raises:
            KeyError: there is no such unit.
        """
        unit = next((unit for unit in self.fleet.units if unit.name == name), None)
        match unit:
            case Engine() | Renewable():
                return Injection(self.symbol(name, "P", y, z), self.symbol(name, "Q", y, z))
            case Store():
                p = self.symbol(name, "P_dch", y, z) - self.symbol(name, "P_ch", y, z)
                return Injection(p, np.zeros(len(p)))
            case Compensator():
                q = self.symbol(name, "Q", y, z)
                return Injection(np.zeros(len(q)), q)
            case Demand():
                p = self.symbol(name, "c", y, z) - self.outlook.demand_mw[name]
                return Injection(p, p * unit.q_per_p)
            case None:
                raise KeyError(f"{name!r} is no unit of this microgrid")
            case _:
                assert_never(unit)

    @property
    def throughput(self) -> Array:
        """(n,) 1 for what stores charge and discharge, in the block's continuous variables; 0 else."""
        found = np.zeros(len(self.block.cost_y))
        for store in self.fleet.stores:
            for symbol in ("P_ch", "P_dch"):
                found[self._columns[self._lp.at((store.name, symbol))]] = 1.0
        return found

    def both_ways_mw(self, y: Array) -> float:
        """The most that any store charges and discharges at once; 0 with exclusive stores."""
        none = np.zeros(0)
        pairs = [[self.symbol(s.name, way, y, none) for way in ("P_ch", "P_dch")] for s in self.fleet.stores]
        return max((float(np.minimum(*pair).max()) for pair in pairs), default=0.0)


BITS = ("u", "w")
TIE: Key = ("tie", "P")


def commitment(
    fleet: Fleet, outlook: Outlook, *, exclusive_stores: bool = False, tie_mw: float = np.inf
) -> Commitment:
    """The rows (B3)-(B7) of one microgrid, and that its tie carries what it exchanges.

    Args:
        tie_mw: greatest exchange, both ways.
        exclusive_stores: whether a bit keeps each store from charging and discharging at once. Without, a
            plan wastes energy in a store where that pays: see `both_ways_mw`.

    Raises:
        ValueError: something is not in the outlook that a unit needs.
    """
    outlook.check(fleet)
    return _Rows(fleet, outlook, exclusive_stores, tie_mw).commitment()


class _Rows:
    """Collects blocks, rows, and the exchange."""

    def __init__(self, fleet: Fleet, outlook: Outlook, exclusive_stores: bool, tie_mw: float) -> None:
        self.fleet, self.outlook, self.hours, self.tie_mw = fleet, outlook, fleet.hours, tie_mw
        self.lp = LinearRows(outlook.intervals)
        self.low: dict[Key, Array] = {}
        self.high: dict[Key, Array] = {}
        self.p: list[Term] = []
        self.q: list[Term] = []
        self.p_0, self.q_0 = np.zeros(outlook.intervals), np.zeros(outlook.intervals)
        self.first: dict[Key, tuple[float, float]] = {}
        for engine in fleet.engines:
            self.engine(engine)
        for renewable in fleet.renewables:
            self.renewable(renewable)
        for store in fleet.stores:
            self.store(store, exclusive_stores)
        for compensator in fleet.compensators:
            self.q.append(Term(self.variable((compensator.name, "Q"), *compensator.q_mvar)))
        for demand in fleet.demands:
            self.demand(demand)
        if self.tied:
            self.lp.rows(self.p, -np.inf, np.inf, TIE)

    @property
    def tied(self) -> bool:
        """Whether the tie can bound anything."""
        return bool(np.isfinite(self.tie_mw)) and bool(self.p)

    def variable(self, key: Key, low: Array | float, high: Array | float, cost: float = 0.0) -> Key:
        """A block with bounds that may differ from interval to interval."""
        T = self.outlook.intervals
        self.low[key] = np.array(np.broadcast_to(low, T), dtype=float)
        self.high[key] = np.array(np.broadcast_to(high, T), dtype=float)
        return self.lp.block(key, cost=cost)

    def engine(self, engine: Engine) -> None:
        lp, name, form = self.lp, engine.name, shape(engine.capability)
        (least, most), (q_least, q_most) = form.p, form.q
        P, Q, u, s = ((name, symbol) for symbol in ("P", "Q", "u", "s"))
        measured = self.outlook.p_mw[name]
        running = not engine.can_stop or measured > least / 2
        before = min(max(measured, least), most) if running else 0.0
        off = engine.can_stop
        self.variable(P, 0.0 if off else least, most, engine.cost_per_mwh * self.hours)  # (B7)
        self.variable(Q, min(q_least, 0.0) if off else q_least, max(q_most, 0.0) if off else q_most)
        step = engine.ramp_mw
        start = max(step, least)
        if off:
            self.variable(u, 0.0, 1.0)
            self.variable(s, 0.0, 1.0, engine.start_up_cost)  # (B7)
        # Where it is or comes on it keeps its ramp, else the most from which it stops and at which it starts.
        more = start - step if off else 0.0
        up = [Term(P), Term(P, -1.0, 1), *([Term(u, more, 1)] if more else [])]
        down = [Term(P), Term(P, -1.0, 1), *([Term(u, -more)] if more else [])]
        lp.rows(up, -np.inf, step + more, (name, "up"), from_first=True)  # (B4)
        lp.rows(down, -step - more, np.inf, (name, "down"), from_first=True)  # (B4)
        self.first[name, "up"] = -np.inf, before + (step if running else start)
        above = before - (step + more)
        self.first[name, "down"] = min(above, 0.0) if above <= ROUNDING else above, np.inf
        self.p.append(Term(P))
        self.q.append(Term(Q))
        if not off:
            for (a_p, a_q), b in zip(form.A.tolist(), form.b.tolist(), strict=True):
                lp.rows([Term(P, a_p), Term(Q, a_q)], -np.inf, b)  # (B4)
            return
        lp.rows([Term(P), Term(u, -most)], -np.inf, 0.0)  # (B4)
        lp.rows([Term(P), Term(u, -least)], 0.0, np.inf)  # (B4)
        for (a_p, a_q), b in zip(form.A.tolist(), form.b.tolist(), strict=True):
            lp.rows([Term(P, a_p), Term(Q, a_q), Term(u, -b)], -np.inf, 0.0)  # (B4)
        started = [Term(s), Term(u, -1.0), Term(u, 1.0, 1)]
        lp.rows(started, 0.0, np.inf, (name, "starts"), from_first=True)  # (B4)
        self.first[name, "starts"] = -float(running), np.inf

    def renewable(self, renewable: Renewable) -> None:
        lp, name = self.lp, renewable.name
        available = np.asarray(self.outlook.available_mw[name], dtype=float)
        form = shape(renewable.capability, float(available.max()))
        P, Q = (name, "P"), (name, "Q")
        self.variable(P, 0.0, np.minimum(available, form.p[1]))  # (B5)
        self.variable(Q, *form.q)
        for (a_p, a_q), b in zip(form.A.tolist(), form.b.tolist(), strict=True):
            lp.rows([Term(P, a_p), Term(Q, a_q)], -np.inf, b)  # (B5)
        self.p.append(Term(P))
        self.q.append(Term(Q))

    def store(self, store: Store, exclusive: bool) -> None:
        lp, name, hours, most = self.lp, store.name, self.hours, store.p_mw
        charge, discharge = store.efficiency
        e_0 = self.outlook.e_mwh[name]
        ch, dch, E, w = ((name, symbol) for symbol in ("P_ch", "P_dch", "E", "w"))
        self.variable(ch, 0.0, most, store.cost_per_mwh * hours)
        self.variable(dch, 0.0, most, store.cost_per_mwh * hours)
        self.variable(E, min(store.e_mwh[0], e_0), max(store.e_mwh[1], e_0))  # (B6)
        flow = [Term(ch, -charge * hours), Term(dch, hours / discharge)]
        lp.rows([Term(E), Term(E, -1.0, 1), *flow], 0.0, 0.0, (name, "energy"), from_first=True)  # (B6)
        self.first[name, "energy"] = e_0, e_0
        self.p += [Term(dch), Term(ch, -1.0)]
        if exclusive:
            self.variable(w, 0.0, 1.0)
            lp.rows([Term(ch), Term(w, -most)], -np.inf, 0.0)  # (B6)
            lp.rows([Term(dch), Term(w, most)], -np.inf, most)  # (B6)

    def demand(self, demand: Demand) -> None:
        needed = np.asarray(self.outlook.demand_mw[demand.name], dtype=float)
        key = (demand.name, "c")
        cost = demand.curtailment_cost_per_mwh * self.hours
        self.variable(key, 0.0, np.maximum(needed - demand.firm_mw, 0.0), cost)  # (B7)
        self.p.append(Term(key))
        self.q.append(Term(key, demand.q_per_p))
        self.p_0 -= needed  # (B3)
        self.q_0 -= needed * demand.q_per_p  # (B3)

    def commitment(self) -> Commitment:
        lp = self.lp
        is_bit = np.zeros(lp.width, dtype=bool)
        low, high = np.zeros(lp.width), np.zeros(lp.width)
        for key in self.low:
            low[lp.at(key)], high[lp.at(key)] = self.low[key], self.high[key]
            is_bit[lp.at(key)] = key[1] in BITS
        fleet = self.fleet
        if fleet.engines or fleet.renewables or fleet.stores or self.tied:
            matrix, (row_low, row_high, *_) = lp.matrix().tocsc(), lp.bounds()
        else:  # neither bounds anything beside itself
            matrix, row_low, row_high = sparse.csc_array((0, lp.width)), np.zeros(0), np.zeros(0)
        starts = np.zeros(len(row_low), dtype=bool)
        for name, sides in self.first.items():
            at = lp.row_at(name)
            row_low[at.start], row_high[at.start] = sides
            starts[at] = name[1] == "starts"
        if self.tied:
            at = lp.row_at(TIE)
            row_low[at], row_high[at] = -self.tie_mw - self.p_0, self.tie_mw - self.p_0
        cost, columns = lp.costs(), np.where(is_bit, np.cumsum(is_bit), np.cumsum(~is_bit)) - 1
        block = Block(
            P_y=self.exchange(self.p, is_bit),  # (B3)
            P_0=self.p_0,
            Q_y=self.exchange(self.q, is_bit),  # (B3)
            Q_0=self.q_0,
            A=sparse.csr_array(matrix[:, ~is_bit]),
            D=sparse.csr_array(matrix[:, is_bit]),
            low=row_low,
            high=row_high,
            y_low=low[~is_bit],
            y_high=high[~is_bit],
            cost_y=cost[~is_bit],
            cost_z=cost[is_bit],
        )
        return Commitment(block, starts, self.fleet, self.outlook, self.tie_mw, lp, columns)

    def exchange(self, terms: list[Term], is_bit: Mask) -> sparse.csr_array:
        """(T, n) the sum of terms in each interval."""
        at = np.arange(self.outlook.intervals)
        row, column = np.tile(at, len(terms)), [at + self.lp.at(key).start for key, _, _ in terms]
        factor = np.repeat([factor for _, factor, _ in terms], len(at))
        entries = (factor, (row, np.concatenate([*column, at[:0]])))
        total = sparse.csc_array(entries, shape=(len(at), self.lp.width))
        return sparse.csr_array(total[:, ~is_bit])
