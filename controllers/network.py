"""Network: what a controller knows of the grid: linear in the injections (LinDistFlow).

| symbol | here            | meaning                                                  | unit        |
|--------|-----------------|----------------------------------------------------------|-------------|
| v      | `v2`            | squared voltage magnitude                                | pu^2        |
| p, q   | `p_mw`, `q_mvar`| injection at each bus                                    | MW, Mvar    |
| R, X   | `v2_per_mw`, .. | sensitivity of v to the injections                       | pu^2/MW     |
| F      | `flow`          | power entering a branch from the side of the substation  | MW, Mvar    |

Model (Baran and Wu's branch flow equations without losses; shunts as constant admittances):

    v    = v2_base + v2_per_mw p + v2_per_mvar q
    F_p  = p_base  - p_per_mw  p - p_per_mvar q
    F_q  = q_base  - q_per_mw  p - q_per_mvar q
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Limits:
    """What the operator allows."""

    v_pu: tuple[float, float]
    """least and greatest voltage magnitude"""
    loading_percent: float
    """greatest loading of a line or transformer, of its rating"""


@dataclass(frozen=True, eq=False)
class Network:
    """A radial grid, linear in the injections. Buses and branches in one order everywhere.

    `buses` leaves out the slack bus; branch i is the one that feeds bus i from the substation's
    side, so there are as many branches as buses.
    """

    slack: str
    """name of the bus with the given voltage"""
    buses: tuple[str, ...]
    """(n,) names"""
    branches: tuple[str, ...]
    """(n,) names, e.g. `line:3`, `trafo:0`"""
    rating_mva: Array
    """(n,) apparent power at rated voltage and 100 % loading; infinite where none is given"""
    v2_base: Array
    """(n,) squared voltage without injections [pu^2]"""
    v2_per_mw: Array
    """(n, n) [pu^2/MW]"""
    v2_per_mvar: Array
    """(n, n) [pu^2/Mvar]"""
    p_base: Array
    """(n,) active flow without injections [MW]"""
    q_base: Array
    """(n,) reactive flow without injections [Mvar]"""
    p_per_mw: Array
    """(n, n) how much of each injection relieves each branch"""
    p_per_mvar: Array
    q_per_mw: Array
    q_per_mvar: Array

    def index(self, bus: str) -> int | None:
        """Position of a bus; `None` for the slack bus, whose injection changes no voltage.

        Raises:
            KeyError: no such bus.
        """
        if bus == self.slack:
            return None
        try:
            return self.buses.index(bus)
        except ValueError:
            raise KeyError(f"network has no bus {bus!r}") from None

    def total(self, buses: Sequence[str], values: Sequence[float] | Array) -> Array:
        """(n,) sum of `values` at `buses`; what lies at the slack bus is left out."""
        sums = np.zeros(len(self.buses))
        for bus, value in zip(buses, values, strict=True):
            i = self.index(bus)
            if i is not None:
                sums[i] += value
        return sums

    def v2(self, p_mw: Array, q_mvar: Array, ratio: float = 1.0) -> Array:
        """(n,) squared voltages [pu^2] for injections (n,) and a source at `ratio` times its voltage."""
        return np.asarray(self.v2_base * ratio**2 + self.v2_per_mw @ p_mw + self.v2_per_mvar @ q_mvar)

    def flow(self, p_mw: Array, q_mvar: Array, ratio: float = 1.0) -> tuple[Array, Array]:
        """(n,) active and reactive power entering each branch from the substation's side."""
        return (
            np.asarray(self.p_base * ratio**2 - self.p_per_mw @ p_mw - self.p_per_mvar @ q_mvar),
            np.asarray(self.q_base * ratio**2 - self.q_per_mw @ p_mw - self.q_per_mvar @ q_mvar),
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
