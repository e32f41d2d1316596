"""Max-min: operating envelopes of active power by weighted max-min fairness.

The least range per weight is as great as possible, then the second least, and so on: nobody can be given
more without taking from somebody who has no more. Ranges grow together in the proportion of the weights
until a limit is full; whoever takes part in that limit stops there, the others go on (progressive filling).

Source: Bertsekas and Gallager 1992, section 6.5.2; the specification's weighted form of the equal ranges
(A7) and (A8) of seed 004, which stop everybody at the first limit.

| symbol | here    | meaning                                                  | unit |
|--------|---------|----------------------------------------------------------|------|
| x_i    | `x`     | range of a device in one direction                       | MW   |
| gamma  | `gamma` | weight of each device; only ratios matter                | 1    |
| t      | `t`     | growth of the range per weight until the next full row   | MW   |
| U      | `U`     | what ranges take of each row, not negative               | 1    |
| b      | `room`  | room in each row                                         | MW   |

Exact because no coefficient is negative: a full row stays full whatever the others do, so who takes part in
it can only gain what another one there loses, and all of those have at least as much per weight or stopped
earlier for a limit of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from controllers.envelopes.packing import Array
from controllers.envelopes.ranges import Bools, Program, RangeMethod, capacities


@dataclass
class MaxMinRanges(RangeMethod):
    """Max-min: ranges that are equal per weight as far as the network allows, and then the rest.

    Where every row has one sign, nobody has less than under `EqualRanges`, unless by `caps`. The last of
    the alpha-fair methods: the limit of great alpha. In the linear model and at Q = 0 every device may use
    its range whatever the others do.

    Args:
        caps: whether no device is given more than its rating allows (an inverter without storage imports
            nothing), so that others get what it cannot use. Without, ranges are those that the network
            allows, as with the other methods.
        others: see `EnvelopeMethod`.

    Raises:
        ValueError: no devices, a weight that is not positive, or a device that cannot hold Q = 0.
        Infeasible: (step) the background load alone breaks a limit.
    """

    acronym: ClassVar[str] = "max-min"
    sources: ClassVar[tuple[str, ...]] = (
        "Weighted max-min fair ranges by progressive filling: Bertsekas and Gallager, Data Networks, 2nd "
        "edition, section 6.5.2",
    )

    caps: bool = False

    def most(self) -> Array | None:
        return capacities(self.site.devices.values()) if self.caps else None

    def program(self, U: Array, gamma: Array, free: Bools) -> Program:
        weights = gamma[free]
        return lambda room: filled(U, room, weights)


def filled(U: Array, room: Array, gamma: Array) -> Array:
    """(n,) the weighted max-min x with `U x <= room`.

    Args:
        U: (rows, n), not negative, a positive entry in each column. room: (rows,), not negative.
        gamma: (n,) positive.
    """
    x, left = np.zeros(len(gamma)), room.copy()
    growing = np.ones(len(gamma), dtype=bool)
    while growing.any():
        pace = U @ np.where(growing, gamma, 0.0)
        until = np.divide(left, pace, out=np.full(len(left), np.inf), where=pace > 0)
        t = until.min()
        x[growing] += t * gamma[growing]
        left = np.maximum(left - t * pace, 0.0)
        full = until <= t * (1 + 1e-12)
        growing &= ~(U[full] > 0).any(axis=0)
    return x
