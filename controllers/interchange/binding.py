"""Binding limits: which rows of the correction keep each microgrid from more of its prediction.

A row is named for a side of a microgrid if the answer lies on it and if more on that side would break it. The
second stage leaves the capabilities where the first put them, so rows that bind there are met here to within
what it may move.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from controllers.interchange.correction_rows import CorrectionRows
from controllers.interchange.question import Case, Corrected
from controllers.network import SLACK

Array = npt.NDArray[np.float64]

NEAR_V = 2e-5
NEAR_ELL = 1e-3
NEAR_MW = 2e-5
"""How near a row counts as on it [pu^2, relative, MW]."""

MOVES = 1e-9
"""Response of a voltage [pu^2/MW] above which it counts."""


class Binding:
    """Names limits in the words of the network's operator."""

    def __init__(self, model: CorrectionRows, buses: tuple[str, ...]) -> None:
        self.model = model
        network = model.flow.network
        self._on_path = np.zeros((len(buses), model.flow.n), dtype=np.bool_)
        for i, bus in enumerate(buses):
            at = network.index(bus)
            while at is not None and at != SLACK:
                self._on_path[i, at] = True
                at = int(network.feeder[at])

    def of(self, slacks: Mapping[str, Array], case: Case, answer: Corrected, t: int, i: int) -> str:
        """What limits microgrid `i` in interval `t`: its export, then its import."""
        up = "prediction" if case.high[t, i] - answer.up[t, i] <= NEAR_MW else self._up(slacks, t, i)
        down = "prediction" if answer.dn[t, i] - case.low[t, i] <= NEAR_MW else self._down(slacks, t, i)
        return f"export by {up}, import by {down}"

    def _up(self, slacks: Mapping[str, Array], t: int, i: int) -> str:
        found = self._voltage("upper", slacks["twin voltage"][t], i)
        found += self._loading(slacks, "up", t, i)
        found += self._row(slacks.get("twin import up"), t, "slack limit")
        found += self._row(slacks.get("reserve down"), t, "reserve down")
        return " and ".join(found) or "the network"

    def _down(self, slacks: Mapping[str, Array], t: int, i: int) -> str:
        found = self._voltage("lower", slacks["low dn"][t], i)
        found += self._loading(slacks, "dn", t, i)
        found += self._row(slacks.get("import dn"), t, "slack limit")
        found += self._row(slacks.get("reserve up"), t, "reserve up")
        return " and ".join(found) or "the network"

    def _voltage(self, which: str, slack: Array, i: int) -> list[str]:
        """The nearest bus alone: its neighbours are nearly as near."""
        moved = self.model.mg_response.v[0][:, i] > MOVES
        near = np.where(moved, slack, np.inf)
        bus = int(near.argmin())
        return [f"{which} voltage at bus {self.model.flow.network.buses[bus]}"] if near[bus] <= NEAR_V else []

    def _loading(self, slacks: Mapping[str, Array], copy: str, t: int, i: int) -> list[str]:
        model = self.model
        if not len(model.rated):
            return []
        plus_v, twice_p, twice_q, less_v = slacks[f"loading {copy}"][t].reshape(-1, 4).T
        # l_max is half of the sum of the outer ones, v half of their difference
        left = (plus_v + less_v) / 2 - (twice_p**2 + twice_q**2) / (2 * (plus_v - less_v))
        at = model.rated
        tight = self._on_path[i, at] & (left <= NEAR_ELL * model.ell_max)
        return [f"loading of {model.flow.network.branches[k]}" for k in at[tight]]

    def _row(self, slack: Array | None, t: int, name: str) -> list[str]:
        return [name] if slack is not None and slack[t].min() <= NEAR_MW else []
