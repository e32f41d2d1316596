"""PQ-E: operating envelopes that are rectangles in the P-Q plane, equal for every device per unit of weight.

Every device may use its rectangle at the same time as all others use theirs, in any combination, and the
linear network model keeps its limits.

Source: seed 004, appendix, model (A3). Implements (A3a)-(A3j), as four scalars per unit of weight (see
`widest_box`) and as the printed linear program of four limits a device.

| symbol        | here           | meaning                                            | unit        |
|---------------|----------------|----------------------------------------------------|-------------|
| P^U, P^L      | `P_U`, `P_L`   | export limit (>= 0) and import limit (<= 0)        | MW          |
| Q^U, Q^L      | `Q_U`, `Q_L`   | injection limit (>= 0) and absorption limit (<= 0) | Mvar        |
| gamma         | `gamma`        | weight of each device                              | 1 or MW     |
| theta         | `aspect`       | aspect ratio of the rectangles                     | 1           |
| A, B, W       | `A`, `B`, `W`  | rows of the network's allowable powers             |             |
| x             | `x`            | (p_u, -p_l, q_u, -q_l), limits per unit of weight  | MW, Mvar    |
| G             | `G`            | what each of x takes of each row                   | as W        |

Where this differs from the source:

- (A3b) and (A3c) test two corners of the joint box only: all upper limits, all lower limits. A row of mixed
  signs, such as every loading row in the second and fourth quadrant, is worst elsewhere. The exact condition
  is that the worst corner of each row holds, A+ P^U - A- P^L + B+ Q^U - B- Q^L <= W, with M+ = max(M, 0)
  and M- = max(-M, 0). `condition="printed"` keeps the unsafe pair so that the difference can be shown.
- The greatest total range leaves much open: often no import at all is as good as a balanced box. The answer
  is made unique by asking in turn for the widest P range, the greatest smaller one of export and import (for
  which a millionth of the range may be given up), the widest Q range, and the least |q_u + q_l|.
- (A3h) and (A3i) are meant for each device: theta <= range of P / range of Q <= 1 / theta, so theta <= 1.
- Every row, dominated or not, is a row of the printed program. Four scalars need few of them: they are added
  as they are violated, until none is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import cvxpy as cp
import numpy as np
import numpy.typing as npt

from controllers.contract import Infeasible
from controllers.envelopes.allowable import NOTHING
from controllers.envelopes.method import EnvelopeMethod
from controllers.envelopes.shapes import Shapes
from controllers.solve import linear, solve

Array = npt.NDArray[np.float64]
Condition = Literal["exact", "printed"]

GIVEN_UP = 1e-6
"""How much of the widest P range may go for the balance of export and import, relative."""

PINNED = 1e-8
"""How closely the result of one wish holds while the next is asked for, relative to the P range."""

TIGHT = 1e-9
"""How far beyond a row, in units of the P range, still counts as on it while rows are being added."""

AT_ONCE = 8
"""Rows added at once."""

SIDES = ("export", "import", "injection of vars", "absorption of vars")

Wish = Literal["P range", "balance", "P range again", "Q range", "symmetry"]

# Over (p_u, -p_l, q_u, -q_l, t, u) with t <= p_u, t <= -p_l and |q_u + q_l| <= u.
WISHES: dict[Wish, tuple[float, ...]] = {
    "P range": (1, 1, 0, 0, 0, 0),
    "balance": (0, 0, 0, 0, 1, 0),
    "P range again": (1, 1, 0, 0, 0, 0),
    "Q range": (0, 0, 1, 1, 0, 0),
    "symmetry": (0, 0, 0, 0, 0, -1),
}


@dataclass
class EqualBoxes(EnvelopeMethod):
    """PQ-E: the boxes `gamma (p_l, p_u) x gamma (q_l, q_u)` of widest total P range.

    The guarantee holds in the linear model for any use of the boxes; see `EqualRanges` for what the AC
    power flow may add, and `Certified` for the cure. The objective counts P alone: where Q costs room, its
    range is `aspect` times that of P.

    Args:
        aspect: theta, in (0, 1]: neither range is less than `aspect` times the other.
        condition: `exact` guards every corner of the joint box; `printed` is (A3b)-(A3c) as they stand,
            which is unsafe: in half of random feeders with a transformer limit some corner breaks it.
        form: `scalars` solves for four numbers; `lp` solves the printed program by Clarabel, the problem
            compiled once with W as its parameter. It has the same P range, but of all boxes that have it
            an arbitrary one.
        others: see `EnvelopeMethod`.

    Raises:
        ValueError: no devices, a weight that is not positive, or an option that does not exist.
        Infeasible: (step) the background load alone breaks a limit, or nothing limits the ranges.
        SolverFailed: (step) the solver had no answer.
    """

    acronym: ClassVar[str] = "PQ-E"
    sources: ClassVar[tuple[str, ...]] = (
        "PQ-E, equal rectangles: Equitable Active-Reactive Power Envelopes for Distributed Energy Resources "
        "in Power Distribution Systems, appendix, model (A3), with the exact condition for a box",
    )

    aspect: float = 0.5
    condition: Condition = "exact"
    form: Literal["scalars", "lp"] = "scalars"
    _compiled: tuple[Array, Array, EqualBoxProgram | None] | None = field(
        init=False, repr=False, default=None
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.aspect <= 1:
            raise ValueError(
                f"PQ-E: aspect {self.aspect} is not in (0, 1]; above 1 both ranges would have to be zero"
            )
        if self.condition not in ("exact", "printed"):
            raise ValueError(f"PQ-E: condition {self.condition!r} is neither 'exact' nor 'printed'")
        if self.form not in ("scalars", "lp"):
            raise ValueError(f"PQ-E: form {self.form!r} is neither 'scalars' nor 'lp'")
        self._compiled = self._compile(self._gamma)

    def _compile(self, gamma: Array) -> tuple[Array, Array, EqualBoxProgram | None]:
        """Weights, what one unit of x takes of each row (4, rows), and the printed program if asked for."""
        program = None
        if self.form == "lp":
            program = EqualBoxProgram(self.rows.A, self.rows.B, gamma, self.aspect, self.condition)
        return gamma, self.rows.use(gamma), program

    def share(self, W: Array, gamma: Array) -> Shapes:
        if self._compiled is None or not np.array_equal(self._compiled[0], gamma):
            self._compiled = self._compile(gamma)
        _, use, program = self._compiled
        if not (use > NOTHING).any():
            return Shapes.rated(self.site.devices.values(), active_only=False)
        if program is not None:
            x = program.widest(W)
        elif self.condition == "exact":
            x = widest_box(use, W, self.aspect)
        else:
            x = widest_printed_box(use, W, self.aspect)
        p_u, p_l, q_u, q_l = (value * gamma for value in x.tolist())
        return Shapes.boxes((-p_l, p_u), (-q_l, q_u), limited(use, W, x, self.rows.names))


def widest_box(use: Array, W: Array, aspect: float) -> Array:
    """The box of (A3) with the exact condition, in scalars: no row is taken by more than W.

    Args:
        use: (4, rows) what one unit of x takes of each row; never negative.
        W: (rows,) room in each row, not negative.

    Returns:
        x = (p_u, -p_l, q_u, -q_l), (4,) per unit of weight, not negative.

    Raises:
        Infeasible: no row limits the box.
        SolverFailed: the solver had no answer.
    """
    G = np.where(use > NOTHING, use, 0.0).T
    with np.errstate(divide="ignore", invalid="ignore"):
        high = np.where(G > 0, W[:, None] / G, np.inf).min(axis=0, initial=np.inf)
        # Of each combination of sides the row that it meets first: most of those that will matter.
        first = {
            int(np.where(taken > 0, W / taken, np.inf).argmin())
            for taken in (G @ np.array(sides) for sides in np.ndindex(2, 2, 2, 2) if any(sides))
        }
    x = np.minimum(_lexicographic(G, W, high, aspect, sorted(first) if len(W) else []), high)
    # The solver keeps rows to its tolerance; what is left is taken off the sides that a row involves.
    taken = G @ x
    over = taken > W
    factor = np.where(G[over] > 0, (W[over] / taken[over])[:, None], 1.0).min(axis=0, initial=1.0)
    return np.asarray(x * factor)


def widest_printed_box(use: Array, W: Array, aspect: float) -> Array:
    """As `widest_box`, with (A3b) and (A3c) as printed: unsafe where a row has both signs."""
    none = np.zeros(use.shape[1])
    p, q = use[0] - use[1], use[2] - use[3]
    G = np.vstack([np.column_stack([p, none, q, none]), np.column_stack([none, -p, none, -q])])
    twice = np.concatenate([W, W])
    return _lexicographic(G, twice, np.full(4, np.inf), aspect, range(len(twice)))


def _lexicographic(G: Array, W: Array, high: Array, aspect: float, start: Sequence[int]) -> Array:
    """(4,) the x that fulfils the wishes one after the other; G (rows, 4).

    Rows outside `start` are added when they are violated. Lengths are in units of the P range, rows in units
    of their greatest coefficient, so that the solver's tolerance means the same everywhere.
    """
    length = np.abs(G).max(axis=1, initial=0.0)
    size = np.where(length > 0, length, 1.0)
    G, W = G / size[:, None], W / size
    unit = float(high[:2].max()) if 0 < high[:2].max() < np.inf else 1.0
    chosen = list(start)
    best = 0.0
    for _ in range(2):  # the first unit is a guess
        x, _ = _stage(G, W / unit, high / unit, aspect, chosen, "P range", [])
        best = float(x[:2].sum())
        if best <= TIGHT:
            return np.zeros(4)
        if best > 0.1:
            break
        unit *= best
    kept: list[tuple[Wish, float]] = []
    for wish in WISHES:
        x, value = _stage(G, W / unit, high / unit, aspect, chosen, wish, kept)
        if wish == "P range again":
            kept = [k for k in kept if k[0] != "P range"]
        slack = GIVEN_UP if wish == "P range" else PINNED
        kept.append((wish, value - slack * best))
    return np.asarray(x[:4] * unit)


def _stage(
    G: Array,
    W: Array,
    high: Array,
    aspect: float,
    chosen: list[int],
    wish: Wish,
    kept: list[tuple[Wish, float]],
) -> tuple[Array, float]:
    """The x that fulfils one wish best while `kept` ones hold, and how well; `chosen` rows grow."""
    c = np.array(WISHES[wish], dtype=float)
    theta = aspect
    fixed = np.array(
        [
            [-1, -1, theta, theta, 0, 0],  # (A3h)
            [theta, theta, -1, -1, 0, 0],  # (A3i)
            [-1, 0, 0, 0, 1, 0],
            [0, -1, 0, 0, 1, 0],
            [0, 0, 1, -1, 0, -1],
            [0, 0, -1, 1, 0, -1],
            *([-w for w in WISHES[k]] for k, _ in kept),
        ]
    )
    right = np.array([0.0] * 6 + [-value for _, value in kept])
    top = np.append(high, [np.inf, np.inf])
    while True:  # each time round adds a row, so it ends
        A = np.vstack([np.pad(G[chosen], ((0, 0), (0, 2))), fixed])
        try:
            x = linear(c, A, np.concatenate([W[chosen], right]), 0.0, top)
        except Infeasible as error:
            if "no bound" not in str(error):
                raise
            raise Infeasible(
                "no limit of the network bounds the devices' powers; give one a rating"
            ) from None
        over = G @ x[:4] - W
        over[chosen] = -np.inf
        worst = np.argpartition(-over, min(AT_ONCE, len(W) - 1))[:AT_ONCE]
        broken = worst[over[worst] > TIGHT]
        if not len(broken):
            return x, float(c @ x)
        chosen += broken.tolist()


def limited(use: Array, W: Array, x: Array, names: Sequence[str]) -> str:
    """What limits each side of the box: the row that it would break first, or the aspect ratio."""
    left = W - use.T @ x
    reach = float(x.max())
    texts = []
    for side, taken in zip(SIDES, use, strict=True):
        with np.errstate(divide="ignore", invalid="ignore"):
            room = np.where(taken > NOTHING, left / taken, np.inf)
        row = int(np.argmin(room))
        # The balance may have cost a millionth of the P range: that much is not the aspect ratio's doing.
        texts.append(f"{side} by {names[row] if room[row] <= 1e-5 * reach else 'the aspect ratio'}")
    return ", ".join(texts)


class EqualBoxProgram:
    """The printed program, four limits a device, stated in cvxpy and compiled once: W is its parameter."""

    def __init__(self, A: Array, B: Array, gamma: Array, aspect: float, condition: Condition) -> None:
        n = len(gamma)
        P_U: Any = cp.Variable(n)
        P_L: Any = cp.Variable(n)
        Q_U: Any = cp.Variable(n)
        Q_L: Any = cp.Variable(n)
        self._W: Any = cp.Parameter(len(A))
        size = np.maximum(np.abs(A).max(axis=1, initial=0.0), np.abs(B).max(axis=1, initial=0.0))
        self._scale = np.where(size > 1e-12, 1 / np.maximum(size, 1e-12), 0.0)
        A, B = self._scale[:, None] * A, self._scale[:, None] * B
        if condition == "printed":
            network = [
                A @ P_U + B @ Q_U <= self._W,  # (A3b)
                A @ P_L + B @ Q_L <= self._W,  # (A3c)
            ]
        else:
            (A_plus, A_minus), (B_plus, B_minus) = ((np.maximum(M, 0), np.maximum(-M, 0)) for M in (A, B))
            network = [
                A_plus @ P_U - A_minus @ P_L + B_plus @ Q_U - B_minus @ Q_L <= self._W,  # (A3b) (A3c)
            ]
        self._limits, self._gamma = (P_U, P_L, Q_U, Q_L), gamma
        self._problem = cp.Problem(
            cp.Maximize(np.ones(n) @ (P_U - P_L)),  # (A3a)
            [
                *network,
                P_U[:-1] / gamma[:-1] == P_U[1:] / gamma[1:],  # (A3d)
                P_L[:-1] / gamma[:-1] == P_L[1:] / gamma[1:],  # (A3e)
                Q_U[:-1] / gamma[:-1] == Q_U[1:] / gamma[1:],  # (A3f)
                Q_L[:-1] / gamma[:-1] == Q_L[1:] / gamma[1:],  # (A3g)
                aspect * (Q_U - Q_L) <= P_U - P_L,  # (A3h)
                aspect * (P_U - P_L) <= Q_U - Q_L,  # (A3i)
                *(limit >= 0 for limit in (P_U, Q_U)),  # (A3j)
                *(limit <= 0 for limit in (P_L, Q_L)),  # (A3j)
            ],
        )

    def widest(self, W: Array) -> Array:
        """(4,) p_u, -p_l, q_u, -q_l per unit of weight, for the room W of each row.

        Raises:
            Infeasible: the zero point is not allowed, or nothing bounds the ranges.
            SolverFailed: Clarabel had no answer.
        """
        self._W.value = np.where(self._scale > 0, W * self._scale, 0.0)
        solve(self._problem)
        # the interior point of a side without room may lie a rounding error below zero
        values = (sign * limit.value[0] for sign, limit in zip((1, -1, 1, -1), self._limits, strict=True))
        return np.maximum([float(v / self._gamma[0]) for v in values], 0.0)
