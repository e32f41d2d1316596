"""Block: one microgrid's constraints as rows, the (B_i, C_i, D_i, e_i) and (b_i, c_i) of seed 000 (4a)-(4d).

    p = P_y y + P_0,  q = Q_y y + Q_0        the exchange
    low <= A y + D z <= high                 its constraints
    y_low <= y <= y_high,  z in {0, 1}
    cost = cost_y . y + cost_z . z           over the horizon [$]

MW, Mvar, MWh and $ outside; whoever solves over it may scale inside.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Block:
    """T intervals, n continuous variables, m bits, R rows."""

    P_y: sparse.csr_array
    """(T, n)"""
    P_0: Array
    """(T,)"""
    Q_y: sparse.csr_array
    """(T, n)"""
    Q_0: Array
    """(T,)"""
    A: sparse.csr_array
    """(R, n)"""
    D: sparse.csr_array
    """(R, m)"""
    low: Array
    high: Array
    """(R,) infinite where there is no bound"""
    y_low: Array
    y_high: Array
    """(n,)"""
    cost_y: Array
    """(n,)"""
    cost_z: Array
    """(m,)"""

    @property
    def intervals(self) -> int:
        """T"""
        return len(self.P_0)

    @property
    def bits(self) -> int:
        """m"""
        return len(self.cost_z)
