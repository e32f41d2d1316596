"""P-E: operating envelopes of equal active-power range for every device.

Every device may use its range at the same time as all others use theirs, in any combination, and
the linear network model keeps its limits. Ranges are equal per unit of the devices' weights.

Source: seed 004, appendix, models (A7) (export) and (A8) (import). Implements (A7a)-(A7d) and
(A8a)-(A8d), as one closed form and as the printed linear programs.

| symbol      | here       | meaning                                     | unit    |
|-------------|------------|---------------------------------------------|---------|
| P^U, P^L    | `upper`, `lower` | export and import limit of each device | MW      |
| gamma       | `gamma`    | weight of each device                       | 1 or MW |
| A, W        | `A`, `W`   | rows of the network's allowable powers      |         |
| t^U, t^L    | `t_u`, `t_l` | common range per unit of weight           | MW      |

Where this differs from the source: the sum of the rows' positive (negative) parts is taken, which
is the worst corner of the box, instead of the all-upper (all-lower) corner; the two agree when
every row has one sign, as LinDistFlow rows have on a radial grid without shunts. Where line
charging gives a row both signs, exports and imports together can take more of it than either alone;
then both ranges shrink by one factor. The import model's limits are negative numbers here (injection
is positive), so its minimum is `-t_l * gamma`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias

import cvxpy as cp
import numpy as np
import numpy.typing as npt

from controllers.contract import Infeasible
from controllers.envelopes.allowable import NOTHING
from controllers.envelopes.method import EnvelopeMethod
from controllers.envelopes.ranges import together
from controllers.envelopes.shapes import Shapes
from controllers.solve import solve

Array = npt.NDArray[np.float64]


@dataclass
class EqualRanges(EnvelopeMethod):
    """P-E: the widest box `-gamma t_l <= P <= gamma t_u`, Q = 0, that the network allows jointly.

    The background load of the coming step is the forecast's mean; of several steps, the one that
    leaves each row the least room counts. The guarantee holds in the linear model and while the
    devices inject no reactive power. The AC power flow may differ: LinDistFlow has no losses and
    overestimates voltages, and a loading is a current, which at 0.9 pu is a ninth more than the
    power at rated voltage that is limited here; `Certified` corrects that.

    Args:
        form: `closed` is the closed form; `lp` solves the printed linear programs by Clarabel,
            the problem compiled once with W as its only parameter.
        others: see `EnvelopeMethod`.

    Raises:
        ValueError: no devices, a weight that is not positive, or a device that cannot hold Q = 0.
        Infeasible: (step) the background load alone breaks a limit.
        SolverFailed: (step, `form="lp"`) the solver had no answer.
    """

    acronym: ClassVar[str] = "P-E"
    active_only: ClassVar[bool] = True
    sources: ClassVar[tuple[str, ...]] = (
        "P-E, equal active-power ranges: Equitable Active-Reactive Power Envelopes for Distributed "
        "Energy Resources in Power Distribution Systems, appendix, models (A7) and (A8)",
    )

    form: Literal["closed", "lp"] = "closed"
    _compiled: tuple[Array, Array, Programs | None] | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form not in ("closed", "lp"):
            raise ValueError(f"P-E: form {self.form!r} is neither 'closed' nor 'lp'")
        self._compiled = self._compile(self._gamma)

    def _compile(self, gamma: Array) -> tuple[Array, Array, Programs | None]:
        """Weights, and what one MW of common range takes of each row: (2, rows) by (export, import)."""
        use = self.rows.use(gamma)[:2]
        programs = None
        if self.form == "lp":
            A = self.rows.A
            programs = EqualRangeProgram(A, gamma, sign=1.0), EqualRangeProgram(A, gamma, sign=-1.0)
        return gamma, use, programs

    def share(self, W: Array, gamma: Array) -> Shapes:
        if self._compiled is None or not np.array_equal(self._compiled[0], gamma):
            self._compiled = self._compile(gamma)
        _, use, programs = self._compiled
        if not (use > NOTHING).any():
            return Shapes.rated(self.site.devices.values(), active_only=True)
        t_u, t_l, row_u, row_l = ranges(use, W)
        if programs is not None:
            t_u, t_l = programs[0].widest(W), programs[1].widest(W)
        names = self.rows.names
        binding = f"export by {names[row_u]}, import by {names[row_l]}"
        factor, row = together(use, W, t_u, t_l)
        if factor < 1:
            t_u, t_l = factor * t_u, factor * t_l
            binding += f", together by {names[row]}"
        return Shapes.ranges(-gamma * t_l, gamma * t_u, binding)


def ranges(use: Array, W: Array) -> tuple[float, float, int, int]:
    """Closed form of (A7) and (A8): common range per unit of weight, and the row that sets it.

    Args:
        use: (2, rows) what one MW of common range takes of each row, exporting and importing.
        W: (rows,) room in each row, not negative.

    Returns:
        t_u, t_l [MW per unit of weight], and the indices of their binding rows.

    Raises:
        Infeasible: no row limits one of the directions.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        room = np.where(use > 1e-12, W / use, np.inf)
    row_u, row_l = (int(row) for row in np.argmin(room, axis=1))
    t_u, t_l = float(room[0, row_u]), float(room[1, row_l])
    if not np.isfinite([t_u, t_l]).all():
        raise Infeasible("no limit of the network bounds the devices' powers; give one a rating")
    return t_u, t_l, row_u, row_l


class EqualRangeProgram:
    """One of the printed linear programs, stated in cvxpy and compiled once: W is its parameter."""

    def __init__(self, A: Array, gamma: Array, *, sign: float) -> None:
        """`sign` is 1 for export (A7), -1 for import (A8)."""
        P: Any = cp.Variable(len(gamma))
        self._W: Any = cp.Parameter(len(A))
        # Row scaling: voltage rows are of the order 1e-2 pu^2/MW, loading rows of the order 1.
        scale = 1 / np.maximum(np.abs(A).max(axis=1, initial=0.0), 1e-12)
        self._scale = np.where(np.abs(A).max(axis=1, initial=0.0) > 1e-12, scale, 0.0)
        worst = self._scale[:, None] * np.maximum(sign * A, 0) * sign
        self._P, self._gamma, self._sign = P, gamma, sign
        self._problem = cp.Problem(
            cp.Maximize(sign * (np.ones(len(gamma)) @ P)),  # (A7a) (A8a)
            [
                worst @ P <= self._W,  # (A7b) (A8b)
                P[:-1] / gamma[:-1] == P[1:] / gamma[1:],  # (A7c) (A8c)
                sign * P >= 0,  # (A7d) (A8d)
            ],
        )

    def widest(self, W: Array) -> float:
        """Common range per unit of weight [MW], for the room W of each row.

        Raises:
            Infeasible: the zero point is not allowed, or nothing bounds the range.
            SolverFailed: Clarabel had no answer.
        """
        self._W.value = np.where(self._scale > 0, W * self._scale, 0.0)
        solve(self._problem)
        return float(self._sign * self._P.value[0] / self._gamma[0])


Programs: TypeAlias = tuple[EqualRangeProgram, EqualRangeProgram]
"""of export and import"""
