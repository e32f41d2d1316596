"""PQ-KL: operating envelopes from shares in every row, by the decomposition of Kornai and Liptak.

Each limit's room W_k is divided among the devices, and each device keeps its own rows to its own shares. The
rows of all devices add up to the network's, so every device may use its region at the same time as all others
use theirs. Regions differ in shape; what is fair is the division.

Source: seed 004, appendix, models (A4) and (A5); Kornai and Liptak 1965. Implements (A5a)-(A5g) as the
program of `shares="optimised"`; the two other divisions are explicit.

| symbol          | here        | meaning                                             | unit        |
|-----------------|-------------|-----------------------------------------------------|-------------|
| A_i, B_i, omega_i | `A[:, i]`, `B[:, i]`, `omega[:, i]` | rows of device i and their limits (A4) | |
| W               | `W`         | rooms of the network's rows                          | pu^2 or MVA |
| gamma           | `gamma`     | weight of each device                                | 1 or MW     |
| a_ik            |             | (A_ki, B_ki), coefficients of device i in row k      |             |
| p, q            | `p`, `q`    | a joint operating point                              | MW, Mvar    |
| C^net           | `deviation` | deviation of the joint point's voltages              | pu^2        |
| g               | `unequal`   | deviation of the shares from equal ones              | 1           |
| epsilon         | `epsilon`   | weight of g against C^net                            | pu^2        |

Where this differs from the source:

- Its equal shares, W_k / N, give away room in rows that a device does not touch. The default are shares by
  participation, omega_ik = W_k gamma_i |a_ik| / sum_j gamma_j |a_jk|, which give much larger regions.
- (A5b) subtracts voltages from powers; its text says voltage deviation: that of v = v_0 + A p + B q is meant.
- (A5c) multiplies omega by W and subtracts 1 / N, where each is a share: it divides. A row without room would
  divide by zero; so omega_i and W / N themselves are compared, each row in units of its coefficients, over
  the length of all rooms.
- (A5d) leaves omega free in sign. Zero must be in every region, it is what a device falls back to: so
  omega >= 0, which includes the rows that a device does not touch.
- The regions' size is not in (A5a); so they come out smaller than by participation.
- A region that no row ends on some side ends at the device's rating.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from scipy import sparse

from controllers.devices import AXES, Device
from controllers.envelopes.allowable import NOTHING
from controllers.envelopes.method import EnvelopeMethod
from controllers.envelopes.shapes import Shapes, hull
from controllers.region import Region
from controllers.site import Site
from controllers.solve import Cone, Conic

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

FAR = 1e3
"""How many times its rating a device's corner must be away to count as not limited by any row."""

LONGEST_S = 60.0
"""Bound on the program's solution; it has a variable for each row and device."""

CLOSE = 1e-11
"""How far beyond a row, in units of a polygon's extent, a corner still counts as on it."""


@dataclass
class RowShares(EnvelopeMethod):
    """PQ-KL: the polygons `A_i P_i + B_i Q_i <= omega_i` with shares omega_i that add up to W.

    The guarantee holds in the linear model for any use of the regions; see `EqualRanges` for what the AC
    power flow may add, and `Certified` for the cure.

    Args:
        shares: `participation` divides each row by the weights of the devices and the lengths of their
            coefficients; `equal` gives every device the same part of every row, whatever its weight;
            `optimised` is the program (A5).
        epsilon: how much the shares' equality counts against voltage deviation, `shares="optimised"` alone.
        others: see `EnvelopeMethod`.

    Raises:
        ValueError: no devices, a weight that is not positive, or an option that does not exist.
        Infeasible: (step) the background load alone breaks a limit.
        SolverFailed: (step, `shares="optimised"`) the solver had no answer.
    """

    acronym: ClassVar[str] = "PQ-KL"
    sources: ClassVar[tuple[str, ...]] = (
        "PQ-KL, shares of every row: Equitable Active-Reactive Power Envelopes for Distributed Energy "
        "Resources in Power Distribution Systems, appendix, models (A4) and (A5)",
        "Kornai, Liptak: Two-level planning, Econometrica 33, 1965",
    )

    shares: Literal["participation", "equal", "optimised"] = "participation"
    epsilon: float = 1.0
    _rating: Array = field(init=False, repr=False)
    _program: ShareProgram | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shares not in ("participation", "equal", "optimised"):
            raise ValueError(
                f"PQ-KL: shares {self.shares!r} is none of 'participation', 'equal', 'optimised'"
            )
        if not (np.isfinite(self.epsilon) and self.epsilon >= 0):
            raise ValueError(f"PQ-KL: epsilon {self.epsilon} must be a number and not negative")
        self._rating = np.array([_rating(d, self.site) for d in self.site.devices.values()])
        if self.shares == "optimised":
            buses = len(self.site.network.buses)
            self._program = ShareProgram(self.rows.A, self.rows.B, buses, self.site.limits.v_pu, self.epsilon)

    def share(self, W: Array, gamma: Array) -> Shapes:
        return polygons(self.rows.A, self.rows.B, self.omega(W, gamma), self._rating, self.rows.names)

    def omega(self, W: Array, gamma: Array) -> Array:
        """(rows, devices) shares; rows add up to W.

        Args:
            W: (rows,) room in each row, not negative. gamma: (devices,) weights.

        Raises:
            SolverFailed: (`shares="optimised"`) the solver had no answer.
        """
        if self._program is not None:
            return self._program.omega(W)
        if self.shares == "equal":
            return np.tile(W[:, None] / len(gamma), (1, len(gamma)))
        return participation(self.rows.A, self.rows.B, W, gamma)


def participation(A: Array, B: Array, W: Array, gamma: Array) -> Array:
    """(rows, devices) shares by weight and coefficient; a row that no device touches is shared by weight."""
    length = np.hypot(A, B)
    part = gamma * np.where(length > NOTHING, length, 0.0)
    total = part.sum(axis=1, keepdims=True)
    touched = total[:, 0] > 0
    part[~touched], total[~touched] = gamma, gamma.sum()
    return np.asarray(W[:, None] * (part / total))


class ShareProgram:
    """The program (A5) for fixed rows, as matrices compiled once; W is in right-hand sides alone.

    Its variables are p, q, omega row by row in units of each row's coefficients, C^net and g. The first rows
    are the upper and then the lower voltages at each bus, as `AllowableRegion` has them.
    """

    def __init__(self, A: Array, B: Array, buses: int, v_pu: tuple[float, float], epsilon: float) -> None:
        rows, n = A.shape
        length = np.hypot(A, B).sum(axis=1)
        self._scale = np.where(length > NOTHING, 1 / np.maximum(length, NOTHING), 0.0)
        self._buses, self._v2, self._epsilon = buses, (v_pu[0] ** 2, v_pu[1] ** 2), epsilon
        each = rows * n
        device = np.tile(np.arange(n), rows)

        def own(M: Array) -> sparse.csr_array:
            """(rows devices, devices): what each device takes of each row by itself."""
            values = (self._scale[:, None] * M).ravel()
            return sparse.csr_array((values, (np.arange(each), device)), shape=(each, n))

        unit, one = sparse.eye_array(each), sparse.csr_array([[-1.0]])
        v_p, v_q = sparse.csr_array(-A[:buses]), sparse.csr_array(-B[:buses])
        sums = sparse.kron(sparse.eye_array(rows), np.ones((1, n)))
        blocks: Any = [
            [None, None, sums, None, None],  # (A5e)
            [own(A), own(B), -unit, None, None],  # (A5d) with the columns of (A5f) and (A5g)
            [None, None, -unit, None, None],  # omega >= 0
            [None, None, None, one, None],
            [v_p, v_q, None, None, None],  # (A5b)
            [None, None, None, None, one],
            [None, None, -unit, None, None],  # (A5c)
        ]
        cones: list[Cone] = [
            ("zero", rows),
            ("nonnegative", 2 * each),
            ("second", 1 + buses),
            ("second", 1 + each),
        ]
        matrix = sparse.block_array(blocks, format="csc")
        self._none = np.zeros(each)
        self._program = Conic(
            None, np.zeros(matrix.shape[1]), matrix, np.zeros(matrix.shape[0]), cones, time_limit_s=LONGEST_S
        )

    def omega(self, W: Array) -> Array:
        """(rows, devices) shares of the room W (rows,) of each row.

        Raises:
            SolverFailed: Clarabel had no answer.
        """
        n, (low, high) = self._buses, self._v2
        room = W * self._scale
        devices = len(self._none) // len(W)
        # Both limits tell the voltage at zero injection; what was taken off both alike cancels out.
        excess = (high - W[:n] + W[n : 2 * n] + low) / 2 - 1.0
        zero = np.zeros(1)
        right = [room, self._none, self._none, zero, excess, zero, np.repeat(-room / devices, devices)]
        cost = np.zeros(2 * devices + len(self._none) + 2)
        cost[-2:] = 1.0, self._epsilon / (float(np.linalg.norm(room)) or 1.0)  # (A5a)
        x = self._program.minimize(cost, np.concatenate(right))
        # The solver keeps sum and sign to its tolerance; here they are exact, as shares are.
        part = np.maximum(x[2 * devices : -2].reshape(-1, devices), 0.0)
        total = part.sum(axis=1, keepdims=True)
        part = np.where(total > 0, part / np.where(total > 0, total, 1.0), 1 / part.shape[1])
        return np.asarray(W[:, None] * part)


def polygons(A: Array, B: Array, omega: Array, rating: Array, names: tuple[str, ...]) -> Shapes:
    """The regions of all devices, without the rows that do not matter.

    Args:
        A, B, omega: (rows, devices), omega not negative. rating: (devices,) where a region without end ends.
    """
    corners, given, binding = [], [], []
    for i in range(A.shape[1]):
        points, region = polygon(A[:, i], B[:, i], omega[:, i], float(rating[i]))
        corners.append(points)
        given.append(region)
        binding.append(limited(A[:, i], B[:, i], omega[:, i], names))
    widest = max(len(points) for points in corners)
    padded = np.stack(
        [np.pad(points, ((0, widest - len(points)), (0, 0)), mode="edge") for points in corners]
    )
    return Shapes(padded, tuple(binding), tuple(given))


def polygon(a: Array, b: Array, right: Array, rating: float) -> tuple[Array, Region]:
    """Corners (corners, 2), counter-clockwise, and half-planes of the points with a P + b Q <= right.

    Starting from a far square, the half-planes that the present corners break most are cut off until none is
    broken: each that is left forms an edge.

    Args:
        a, b, right: (rows,); right is not negative. rating: where the region ends if no row ends it [MVA].
    """
    length = np.hypot(a, b)
    real = length > NOTHING
    rows = np.column_stack([a, b])[real] / length[real, None]
    right = right[real] / length[real]
    points, edges = _intersection(rows, right, FAR * rating)
    if np.abs(points).max() >= FAR * rating * (1 - 1e-9):
        points, edges = _intersection(rows, right, rating)
        rows, right = np.vstack([rows, SQUARE]), np.append(right, np.full(4, rating))
    if len(points) < 3:
        return points, hull(points)
    return points, Region(AXES, rows[edges], right[edges])  # -4 to -1 are the square's


SQUARE = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
"""Normals of the edges that the search starts from."""


def _intersection(rows: Array, right: Array, reach: float) -> tuple[Array, Ints]:
    """Corners of the square |P|, |Q| <= reach under half-planes, and the row of the edge after each corner.

    The square's own edges are numbered -4 to -1, as if they followed the rows.
    """
    points = reach * np.array([[1.0, -1.0], [1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0]])
    edges = np.array([-4, -3, -2, -1])
    while True:
        over = rows @ points.T - right[:, None]
        if not len(rows) or (worst := over.max(axis=0)).max() <= CLOSE * np.abs(points).max():
            return points, edges
        # Of each corner the row that it breaks most.
        for k in np.unique(over.argmax(axis=0)[worst > 0]).tolist():
            points, edges = _cut(points, edges, rows[k], float(right[k]), k)


def _cut(points: Array, edges: Ints, row: Array, right: float, name: int) -> tuple[Array, Ints]:
    """A convex polygon, counter-clockwise, or a segment or point, without what lies beyond a half-plane."""
    near = CLOSE * float(np.abs(points).max())
    over = points @ row - right
    inside = over <= near
    if inside.all():
        return points, edges
    if not inside.any():
        return np.zeros((1, 2)), edges[:1]  # by rounding: the origin is in every half-plane
    first = int(np.flatnonzero(inside & ~np.roll(inside, 1))[0])
    kept = (first + np.arange(int(inside.sum()))) % len(points)
    last, before = int(kept[-1]), first - 1
    after = (last + 1) % len(points)

    def crossing(i: int, o: int) -> Array:
        """Where the edge between a corner inside and one outside meets the half-plane's boundary."""
        share = max(-over[i], 0.0) / (over[o] - min(over[i], 0.0))
        return np.asarray(points[i] + share * (points[o] - points[i]))

    points = np.vstack([points[kept], crossing(last, after), crossing(first, before)])
    edges = np.concatenate([edges[kept], [name, edges[before]]])
    step = np.roll(points, -1, axis=0) - points
    long = np.abs(step).max(axis=1) > near
    if not long.any():
        return points[:1], edges[:1]
    return points[long], edges[long]


def limited(a: Array, b: Array, right: Array, names: tuple[str, ...]) -> str:
    """The row that limits a device on each half of both axes."""
    sides = (
        ("export", a),
        ("import", -a),
        ("injection of vars", b),
        ("absorption of vars", -b),
    )
    texts = []
    for side, taken in sides:
        with np.errstate(divide="ignore", invalid="ignore"):
            room = np.where(taken > NOTHING, right / taken, np.inf)
        row = int(np.argmin(room))
        texts.append(f"{side} by {names[row] if np.isfinite(room[row]) else 'its rating'}")
    return ", ".join(texts)


def _rating(device: Device, site: Site) -> float:
    """The greatest P or Q [MVA] that a device has, as far as it tells."""
    can = device.limits(device.initial(), 1.0, site.every.total_seconds())
    reach = [abs(value) for axis in AXES for value in can.limits(axis)]
    return max([abs(device.rating_mw), *(value for value in reach if np.isfinite(value))])
