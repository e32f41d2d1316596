"""Positions: where the network operator's regulators give its devices the most room.

| symbol | here       | meaning                                                                 | unit      |
|--------|------------|-------------------------------------------------------------------------|-----------|
| n      |            | position of each regulator; of a bank, how many steps are switched on    | 1         |
| W      | `W`        | room left in each row of A P + B Q <= W                                 | pu^2, MVA |
| rho    | `rho`      | squared voltage behind all taps over that before them, without load      | 1         |
|        | `per_rho`  | dW / d rho                                                              |           |
|        | `per_step` | dW / dn of each bank                                                    |           |

Taps and banks enter W alone, and W is affine in rho and in the banks' positions,

    W(n) = W(n_0) + (rho(n) - rho(n_0)) dW/drho + sum over the banks of (n - n_0) dW/dn,

so the equal ranges of P-E, the least of W over what a common range takes of each row, are minima of affine
functions of n.

Source: seed 004, tables A.I and A.II (which devices there are, and one strategy).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from controllers.contract import Infeasible, SolverFailed
from controllers.envelopes.allowable import AllowableRegion
from controllers.envelopes.position_search import UNUSABLE, For, PositionSearch
from controllers.regulators import TapChanger, moves, standing

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

Search: TypeAlias = Literal["auto", "enumerate", "integer", "coordinate"]

MOST = 200_000
"""Combinations of positions up to which all are tried."""

LEAST_MOVES = 1e4
"""Cost of a move [MW] beside which no range counts."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The best positions."""

    positions: Mapping[str, int]
    """of all regulators"""
    moves: int
    """how many steps the regulators take to get there, together"""
    value_mw: float
    """what was maximised: the ranges, less the cost of the moves"""
    W: Array
    """(rows,) room there"""


class Positions:
    """All positions of a site's regulators, and the room that its devices have at each.

    Args:
        rows: of the site.
    """

    def __init__(self, rows: AllowableRegion) -> None:
        self.rows, self.regulators = rows, rows.site.regulators
        # A regulator may mend what no device can, so no row is beyond help.
        self._every = copy.copy(rows)
        self._every.dead = np.zeros(len(rows), dtype=np.bool_)
        taps = {n: r for n, r in self.regulators.items() if isinstance(r, TapChanger)}
        self._taps, self._banks = tuple(taps), tuple(n for n in self.regulators if n not in taps)
        self.choices = [np.array(r.positions) for r in self.regulators.values()]
        self.combinations = int(np.prod([len(c) for c in self.choices], dtype=float))
        self.tap_columns = [i for i, n in enumerate(self.regulators) if n in taps]
        self.bank_columns = [i for i, n in enumerate(self.regulators) if n not in taps]
        self._ratio = {n: np.array([r.ratio(at) ** 2 for at in r.positions]) for n, r in taps.items()}
        # W is affine: its slopes are differences, at no load and with every regulator somewhere.
        none = np.zeros(len(rows.site.network.buses))
        at = {n: r.positions[0] for n, r in self.regulators.items()}
        W = self.W(none, none, at)
        self.per_rho = np.zeros_like(W)
        if taps and (name := next((n for n, r in taps.items() if len(r.positions) > 1), None)):
            other = at | {name: taps[name].highest}
            rise = self.rho(self._row(other))[0] - self.rho(self._row(at))[0]
            self.per_rho = (self.W(none, none, other) - W) / rise
        slopes = [
            self.W(none, none, at | {n: 1}) - W if len(self.regulators[n].positions) > 1 else np.zeros_like(W)
            for n in self._banks
        ]
        self.per_step = np.array(slopes).reshape(-1, len(W))

    def W(self, p_mw: Array, q_mvar: Array, positions: Mapping[str, int]) -> Array:
        """(rows,) `AllowableRegion.W`, also where the background breaks what no device can influence."""
        return self._every.W(p_mw, q_mvar, positions)

    def _row(self, positions: Mapping[str, int]) -> Ints:
        """(1, regulators)"""
        return np.array([[positions[name] for name in self.regulators]], dtype=np.int64)

    def rho(self, cases: Ints) -> Array:
        """(cases,) for positions (cases, regulators)."""
        rho = np.ones(len(cases))
        for name, column in zip(self._taps, self.tap_columns, strict=True):
            rho *= self._ratio[name][cases[:, column] - self.choices[column][0]]
        return rho

    def room(self, W: Array, present: Mapping[str, int], positions: Mapping[str, int]) -> Array:
        """(rows,) room at `positions` where it is W at `present`."""
        here, there = self._row(present), self._row(positions)
        rho = self.rho(there)[0] - self.rho(here)[0]
        n = (there - here)[0, self.bank_columns]
        return np.asarray(W + rho * self.per_rho + n @ self.per_step)

    def best(
        self,
        W: Array,
        present: Mapping[str, int],
        gamma: Array,
        *,
        for_: For = "both",
        cost_mw: float = 0.0,
        search: Search = "auto",
    ) -> Chosen:
        """The positions that leave the greatest equal ranges, less a cost for each position moved.

        Zero injection of all devices, their joint greatest export and their joint greatest import are all
        within the rows there. Of equal values the one with the fewest moves counts, then the one whose
        positions come first.

        Args:
            W: (rows,) room at the present positions, of several intervals the least; may be negative.
            present: where every regulator stands.
            gamma: (devices,) weights.
            for_: which range counts.
            cost_mw: what one position of one regulator is worth.
            search: `enumerate` tries all; `integer` is a mixed-integer linear program; `coordinate` moves
                one regulator or a pair of them until that helps no more, from several starts, and may miss
                the best; `auto` enumerates up to `MOST` combinations, beyond them it takes the integer
                program, and the coordinate search should that have no answer in time.

        Raises:
            Infeasible: no positions keep zero injection within the rows, or nothing bounds the ranges.
            SolverFailed: (`integer`) the solver had no answer.
        """
        problem = PositionSearch(self, W, self._row(standing(self.regulators, present)), gamma, for_, cost_mw)
        if search == "enumerate" or (search == "auto" and self.combinations <= MOST):
            found, value = problem.enumerate()
        elif search == "coordinate":
            found, value = problem.climb()
        else:
            try:
                found, value = problem.program()
            except SolverFailed:
                if search == "integer":
                    raise
                found, value = problem.climb()
        if value < UNUSABLE / 2:
            worst = int(np.argmin(W))
            tried = "that was tried " if search == "coordinate" else ""
            raise Infeasible(
                f"no position {tried}of {', '.join(self.regulators) or 'any regulator'} keeps the background "
                f"within the limits; at the present ones it breaks {self.rows.names[worst]} by "
                f"{-W[worst]:.4g}"
            )
        positions = dict(zip(self.regulators, found.tolist(), strict=True))
        moved = sum(moves(present, positions).values())
        return Chosen(positions, moved, value, self.room(W, present, positions))
