"""Offers: what a microgrid would exchange at prices, and the bound that goes with it.

    F(lambda) = min over y, z in {0, 1} of cost - lambda.(p, q)         theta >= F + lambda.(p, q) for all x

The solution is something that the microgrid can do: with the operator's best answer to it, an upper bound.
The cut holds for every pattern of bits, and is tighter than that of `priced`, whose bits need not be whole:
over all prices such cuts make the convex envelope of v, which no cut that is linear in (p, q, theta) exceeds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from controllers.partnership.coupling import Cut, axes
from controllers.partnership.program import Program
from controllers.region import Region

Array = npt.NDArray[np.float64]

UNPROVEN = 2e-9
"""How far, of the value or of 1, the branch and bound may end above the least: taken off, so that the cut
holds."""


@dataclass(frozen=True, eq=False)
class Best:
    """What is best at prices."""

    cut: Cut
    bits: Array
    """(K,)"""
    cost: float
    """[$]"""
    p: Array
    q: Array
    """(T,) [MW, Mvar]"""


def best_at(program: Program, p_price: Array, q_price: Array) -> Best:
    """The operation of least cost less what the prices pay.

    Args:
        p_price, q_price: (T,) lambda [$/MW, $/Mvar, for an interval].

    Raises:
        ValueError: prices of another length.
        SolverFailed: a solver ended without an answer.
    """
    proof = program.least_whole(program.question(p_price=p_price, q_price=q_price))
    least = proof.bound - UNPROVEN * max(1.0, abs(proof.bound)) + program.constant(p_price, q_price)
    row = np.concatenate([p_price, q_price, [-1.0]])
    region = Region(axes(program.T), row[None, :], np.array([-least]))
    p, q = program.exchange(proof.x)
    cut = Cut(region, 0.0, float(np.linalg.norm(row)))
    return Best(cut, proof.x[program.z], program.true_cost(proof.x), p, q)
