"""Central: the operator's problem and those of all microgrids as one, which needs all their figures.

It is what the partnership is measured by. Source: seed 000, appendix A. Implements (4a)-(4d), with whole bits
or with bits between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import sparse

from controllers.partnership import branch_and_bound, outer_approximation
from controllers.partnership.block import Block
from controllers.partnership.coupling import Point
from controllers.partnership.distribution import Conditions, Distribution, Operation
from controllers.partnership.mixed_conic import MixedConic, MixedRows
from controllers.partnership.relaxation import TOLERANCE, Held, Solution, relaxed
from controllers.solve import TIME_LIMIT_S

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class CentralOptimum:
    """The best operation of the whole."""

    value: float
    """cost of the operator and of all microgrids [$]"""
    bound: float
    """nothing costs less"""
    operation: Operation
    points: tuple[Point, ...]
    """of each microgrid: its exchange, its cost and its bits"""
    y: tuple[Array, ...]
    """of each microgrid, as in its block"""
    rounds: int
    """nodes or mixed-integer programs behind it"""


class Central:
    """The problem of a feeder and its microgrids' blocks, in the order of `Feeder.microgrids`.

    Raises:
        ValueError: another number of blocks than of microgrids, or blocks with another number of intervals.
    """

    def __init__(self, distribution: Distribution, blocks: Sequence[Block]) -> None:
        feeder = distribution.feeder
        if len(blocks) != len(feeder.microgrids):
            raise ValueError(f"central: {len(blocks)} blocks for the microgrids at {feeder.microgrids}")
        for bus, block in zip(feeder.microgrids, blocks, strict=True):
            if block.intervals != feeder.intervals:
                raise ValueError(
                    f"central: the microgrid at bus {bus} has {block.intervals} intervals, the feeder "
                    f"{feeder.intervals}"
                )
        self.distribution, self.blocks = distribution, tuple(blocks)

    def relaxed(self, conditions: Conditions, *, time_limit_s: float = TIME_LIMIT_S) -> CentralOptimum:
        """The optimum with bits anywhere between 0 and 1.

        Raises:
            Infeasible: no operation keeps the limits.
            SolverFailed: the solver ended without a usable answer.
        """
        return self._optimum(conditions, relaxed(self.program(conditions), time_limit_s=time_limit_s))

    def held(self, conditions: Conditions, bits: Sequence[Array]) -> CentralOptimum:
        """The optimum with the bits of each microgrid held at these.

        Raises:
            Infeasible: no operation keeps the limits with them.
            SolverFailed: the solver ended without a usable answer.
        """
        given = np.concatenate([np.zeros(0), *bits])
        return self._optimum(conditions, Held(self.program(conditions)).minimize(given))

    def whole(
        self,
        conditions: Conditions,
        *,
        tolerance: float = TOLERANCE,
        time_limit_s: float = 60.0,
        by: Literal["branching", "tangents"] = "branching",
    ) -> CentralOptimum:
        """The optimum.

        Args:
            by: `branch_and_bound`, or `outer_approximation`.

        Raises:
            Infeasible: no operation keeps the limits.
            SolverFailed: a solver ended without a usable answer.
        """
        method = branch_and_bound.whole if by == "branching" else outer_approximation.whole
        found = method(self.program(conditions), tolerance=tolerance, time_limit_s=time_limit_s)
        return self._optimum(conditions, found)

    def program(self, conditions: Conditions) -> MixedConic:
        """All of it: columns are the operator's x, then y and z of each microgrid."""
        own = self.distribution
        x = len(own.cost(conditions))
        y_at, z_at, total = self._places(x)
        q = np.concatenate(  # (4a)
            [own.cost(conditions), *(np.concatenate([block.cost_y, block.cost_z]) for block in self.blocks)]
        )
        rows, one = MixedRows(total), sparse.eye_array(own.feeder.intervals)
        for i, (block, y, z) in enumerate(zip(self.blocks, y_at, z_at, strict=True)):
            for name, by_y, fixed in (("p", block.P_y, block.P_0), ("q", block.Q_y, block.Q_0)):
                rows.equal([(one, own.columns(name)[:, i]), (-by_y, y)], fixed)  # (4c)
            rows.between([(block.A, y), (block.D, z)], block.low, block.high)  # (4c)
            rows.bounds(y, block.y_low, block.y_high)  # (4c)
        bits = np.concatenate([np.zeros(0, dtype=np.int64), *z_at])
        return rows.program(q, own.rows, own.right(conditions), bits)  # (4b) (4d)

    def _places(self, x: int) -> tuple[list[Ints], list[Ints], int]:
        """Columns of y and of z of each microgrid; the number of all."""
        y_at, z_at, start = [], [], x
        for block in self.blocks:
            n, m = block.A.shape[1], block.bits
            y_at.append(np.arange(start, start + n))
            z_at.append(np.arange(start + n, start + n + m))
            start += n + m
        return y_at, z_at, start

    def _optimum(self, conditions: Conditions, found: Solution) -> CentralOptimum:
        own = self.distribution
        x = found.x[: own.rows.A.shape[1]]
        y_at, z_at, _ = self._places(len(x))
        operation, constant = own.operation(conditions, x), own.constant(conditions)
        points = tuple(
            Point(
                operation.p_mw[:, i],
                operation.q_mvar[:, i],
                float(block.cost_y @ found.x[y_at[i]] + block.cost_z @ found.x[z_at[i]]),
                found.x[z_at[i]],
            )
            for i, block in enumerate(self.blocks)
        )
        return CentralOptimum(
            value=found.value + constant,
            bound=found.bound + constant,
            operation=operation,
            points=points,
            y=tuple(found.x[at] for at in y_at),
            rounds=found.rounds,
        )
