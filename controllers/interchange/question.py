"""What the correction of interchange capabilities is asked and what it answers, as arrays.

Of H intervals, n buses, N microgrids and B batteries of the network operator; injection is positive.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from controllers.interchange.outside import Moves

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the operator of the network asks for."""

    import_mw: tuple[float, float] | None = None
    """least and greatest import at the slack bus; `None`: no limit"""
    reserve_mw: tuple[float, float] | None = None
    """up and down spinning reserve of the slack bus; `None`: as much as it takes"""
    required_mw: tuple[float, float] = (0.0, 0.0)
    """up and down reserve that is kept beside the microgrids' adjustments"""
    mu_loss: float = 0.10
    reserve_margin: Literal["factor", "rigorous"] = "factor"
    share: Literal["total", "fair"] = "total"
    schedule_weight: float = 50.0
    loss_weight: float = 1e-3
    isolation_secure: bool = False
    energy_worth: float = 0.1
    """cost of a MWh that batteries end the horizon below their first, in MWh of width"""
    reserve_h: float | None = None
    """how long the batteries must be able to give their reserve; `None`: one step"""


@dataclass(frozen=True, eq=False)
class Case:
    """What one step is solved for."""

    p_mw: Array
    q_mvar: Array
    """(H, n) injections of everything but the microgrids and batteries"""
    slack_mw: Array
    """(H,) the same at the slack bus"""
    plan: Array
    """(H, N) scheduled exchange of the microgrids [MW]"""
    low: Array
    high: Array
    """(H, N) predicted interchange capability [MW]"""
    least: Array
    """(H, 2, N) least adjustment downwards and upwards: zero for a microgrid that is known [MW]"""
    q_low: Array
    q_high: Array
    """(H, N) reactive power that the microgrids offer [Mvar]"""
    e_mwh: Array
    """(B,) stored energy"""
    ratio2: float = 1.0
    """squared voltage of the source in the network's given one"""
    moves: Moves | None = None
    """what devices outside microgrids may do beside `p_mw`; `None`: nothing"""
    banks: Array | None = None
    """(n,) rated Mvar of the capacitor banks that stand in: part of `q_mvar`, and of an AC power flow at the
    same positions; `None`: nothing"""

    def background(self, copy: str) -> tuple[Array, Array, Array]:
        """(H, n) P and Q and (H,) P at the slack bus of everything but microgrids and batteries, in `base`,
        `up` or `dn`."""
        if self.moves is None or copy == "base":
            return self.p_mw, self.q_mvar, self.slack_mw
        k, m = ("dn", "up").index(copy), self.moves
        return self.p_mw + m.p_mw[k], self.q_mvar + m.q_mvar[k], self.slack_mw + m.slack_mw[k]


@dataclass(frozen=True, eq=False)
class Tighter:
    """How much each limit is tightened because the power flow found more than the program."""

    v_high: Array
    v_low: Array
    """(H, n) [pu^2]"""
    ell: Array
    """(H, n) squared current [MVA^2]"""
    reserve: Array
    """(H, 2) up, down [MW]"""
    imported: Array
    """(H, 2) least, greatest [MW]"""
    loss_weight: float
    one_way: Array
    """(H, B) batteries that may only discharge (1) or only charge (-1)"""

    @classmethod
    def nothing(cls, intervals: int, buses: int, batteries: int, loss_weight: float) -> Tighter:
        n, two = np.zeros((intervals, buses)), np.zeros((intervals, 2))
        return cls(n, n, n, two, two, loss_weight, np.zeros((intervals, batteries)))


@dataclass(frozen=True, eq=False)
class Corrected:
    """The program's answer."""

    base: Array
    dn: Array
    up: Array
    """(H, N) corrected schedule and available interchange capability [MW]"""
    q_mvar: Array
    """(H, N)"""
    p_b: Array
    q_b: Array
    e_mwh: Array
    """(H, B) batteries; energy at the interval's end"""
    burnt: Array
    """(H, B) product of charging and discharging [MW^2]"""
    reserve_mw: Array
    """(H, 2) up and down, of the slack bus and the batteries together"""
    gap: float
    """greatest (l v - P^2 - Q^2) / (1 + P^2 + Q^2) of all copies"""
    at: Mapping[str, Array] = field(default_factory=dict, repr=False)
    """all variables"""
