"""Exactness: when the relaxed branch flow equations have no better answer than the true ones.

Source: Gan, Li, Topcu, Low, "Exact Convex Relaxation of Optimal Power Flow in Radial Networks", IEEE
Transactions on Automatic Control 2015 (arXiv 1311.7170), condition C1.

| symbol | here      | meaning                                                             | unit     |
|--------|-----------|---------------------------------------------------------------------|----------|
| u_i    | `u`       | (r, x) of the branch that feeds bus i                               | 1/MVA    |
| P+, Q+ | `reverse` | greatest lossless power that the branch carries towards the source  | MW, Mvar |
| v_min  | `v_min_pu` | least voltage, squared in the formula                              | pu       |
| A_i    |           | I - (2 / v_min) u_i (P+_i, Q+_i)                                    | 1        |

A current that is larger than its flow needs, on branch t, takes u_t times the excess out of the flow towards
the source. Letting go of the excess raises that flow by u_t, and on the next branch i towards the source by
A_i of it, since the larger flow there has larger losses. C1 says that what arrives is positive on every
branch up to the source: A_s ... A_(t-1) u_t > 0 for all s <= t on every path, s nearer the source. Then
letting go lowers the import, and no optimum holds an excess, if the objective grows with the import and
upper limits of voltage bound the lossless voltages.

The order of the product follows from that: u of the branch farther from the source, A of those nearer to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from controllers.interchange.branch_flow import BranchFlow
from controllers.network import SLACK, Network

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class C1:
    """How far a network is from the limit of the condition."""

    margin: float
    """least component of A_s ... A_(t-1) u_t in that of u_t: 1 without reverse flow, above 0 if C1 holds"""
    from_branch: str | None
    """t, of the least component; `None` in a network without impedances"""
    at_branch: str | None
    """s"""

    @property
    def holds(self) -> bool:
        return self.margin > 0


def check_c1(network: Network, p_mw: Array, q_mvar: Array, v_min_pu: float) -> C1:
    """Whether the relaxation is exact whatever is injected up to `p_mw`, `q_mvar`.

    Where a branch has no resistance or no reactance, that component must only not become negative.

    Args:
        p_mw, q_mvar: (n,) greatest net injection of each bus, loads taken off.
        v_min_pu: least voltage that is allowed.

    Raises:
        ValueError: negative resistance or reactance.
    """
    flow = BranchFlow(network)
    twin = flow.lossless(p_mw[None], q_mvar[None])
    u = np.column_stack([flow.r, flow.x])
    reverse = np.maximum(-np.column_stack([twin.P[0], twin.Q[0]]), 0.0)
    length = np.hypot(flow.r, flow.x)
    worst, found = np.inf, (-1, -1)
    for t in np.flatnonzero(length > 0).tolist():
        arriving, s = u[t], t
        while True:
            with np.errstate(divide="ignore", invalid="ignore"):
                share = np.where(
                    u[t] > 0, arriving / u[t], np.where(arriving < 0, arriving / length[t], np.inf)
                )
            if share.min() < worst:
                worst, found = float(share.min()), (t, s)
            s = int(network.feeder[s])
            if s == SLACK:
                break
            arriving = arriving - 2 / v_min_pu**2 * u[s] * float(reverse[s] @ arriving)
    if found == (-1, -1):
        return C1(1.0, None, None)
    return C1(worst, network.branches[found[0]], network.branches[found[1]])
