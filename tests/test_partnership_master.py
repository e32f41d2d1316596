"""The master problem: valid cuts lead it to the whole problem's optimum, and tents are what they say."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import numpy.typing as npt
import pytest
from scipy import sparse

from controllers import Infeasible, Region
from controllers.partnership.block import Block
from controllers.partnership.coupling import Point, Tent, axes
from controllers.partnership.distribution import Conditions
from controllers.partnership.master import Knowledge, Master, Proposal
from controllers.solve import Linear
from tests.partnership_feeders import Case, small_case

Array = npt.NDArray[np.float64]

STEEP = 5000.0
"""$/MW and $/Mvar, more than any exchange is worth here, and $ a bit."""


class Supporter:
    """Cuts of a block's relaxation: its cost where leaving the asked exchange (and bits) costs `STEEP`.

    That is the greatest convex function so steep at most below the true one, so its supports are valid cuts;
    and the same where the true one is not steeper.
    """

    def __init__(self, block: Block, *, lifted: bool = False) -> None:
        T, m, (rows, n) = block.intervals, block.bits, block.A.shape
        self.T, self.lifted, self.rows = T, lifted, rows
        asked = [sparse.hstack([block.P_y, sparse.csr_array((T, m))])]
        asked += [sparse.hstack([block.Q_y, sparse.csr_array((T, m))])]
        if lifted:
            asked.append(sparse.hstack([sparse.csr_array((m, n)), sparse.eye_array(m)]))
        one = sparse.eye_array(k := 2 * T + lifted * m)
        inside = sparse.hstack([block.A, block.D, sparse.csr_array((rows, 2 * k))])
        A = sparse.vstack([inside, sparse.hstack([sparse.vstack(asked), one, -one])])
        self.fixed = np.concatenate([block.P_0, block.Q_0, np.zeros(k - 2 * T)])
        self.low = np.concatenate([block.low, np.zeros(k)])
        self.high = np.concatenate([block.high, np.zeros(k)])
        self.axes = axes(T, m if lifted else 0)
        self.own = np.arange(n + m)
        self.program = Linear(
            np.concatenate([block.cost_y, block.cost_z, np.full(2 * k, STEEP)]),
            sparse.csr_array(A),
            self.low,
            self.high,
            np.concatenate([block.y_low, np.zeros(m + 2 * k)]),
            np.concatenate([block.y_high, np.ones(m), np.full(2 * k, np.inf)]),
        )

    def cut(self, point: Point) -> tuple[Region, float]:
        """theta >= F + slope . (x - point), and by how much the point breaks it."""
        x = np.concatenate([point.p, point.q, point.bits if self.lifted and point.bits is not None else []])
        low, high = self.low.copy(), self.high.copy()
        low[self.rows :] = high[self.rows :] = x - self.fixed
        found = self.program.minimize(row_low=low, row_high=high)
        slope = found.row_duals[self.rows :]
        row = np.concatenate([slope[: 2 * self.T], [-1.0], slope[2 * self.T :]])
        return Region(self.axes, row[None], np.array([slope @ x - found.value])), found.value - point.cost


def boxes(case: Case) -> list[Knowledge]:
    """Wide ones, and nothing else known."""
    T = case.intervals
    box = np.tile([-0.5, 0.5], (T, 1))
    return [Knowledge(box, box) for _ in case.blocks]


def converged(
    case: Case, conditions: Conditions, known: list[Knowledge], *, lifted: bool = False, whole: bool = False
) -> tuple[Proposal, list[float], list[Knowledge]]:
    """The master's last word when no cut is broken by more than 1e-6 $; its bounds before, and the cuts."""
    master = Master(case.distribution)
    supporters = [Supporter(block, lifted=lifted) for block in case.blocks]
    bounds: list[float] = []
    while len(bounds) < 400:
        found = master.whole(conditions, known) if whole else master.relaxed(conditions, known)
        bounds.append(found.bound)
        cuts = [supporter.cut(point) for supporter, point in zip(supporters, found.points, strict=True)]
        if max(excess for _, excess in cuts) < 1e-6:
            return found, bounds, known
        known = [replace(one, cuts=(*one.cuts, cut)) for one, (cut, _) in zip(known, cuts, strict=True)]
    raise AssertionError(f"no end after {len(bounds)} rounds, at {bounds[-1]}")


def test_B5_cuts_of_the_relaxations_lead_to_the_relaxed_optimum() -> None:
    case = small_case(2, 2)
    conditions = case.conditions(150.0)
    central = case.central.relaxed(conditions)
    found, bounds, _ = converged(case, conditions, boxes(case))
    assert found.value == pytest.approx(central.value, rel=1e-7)
    assert found.operation.cost + sum(point.cost for point in found.points) == pytest.approx(found.value)
    assert all(later >= earlier - 1e-6 for earlier, later in pairwise(bounds))
    assert found.operation.gap < 1e-5
    for i, point in enumerate(found.points):
        assert found.operation.p_mw[:, i] == pytest.approx(point.p)
        assert found.operation.q_mvar[:, i] == pytest.approx(point.q)
        assert point.bits is None


@pytest.mark.parametrize("price", [150.0, 250.0])
def test_lifted_microgrids_lead_to_the_optimum_with_whole_bits(price: float) -> None:
    """By relaxed bits to the relaxed optimum first, whose cuts stay valid."""
    case = small_case(1, 2)
    conditions = case.conditions(price)
    known = [replace(one, bits=1) for one in boxes(case)]
    loose, _, cut = converged(case, conditions, known, lifted=True)
    assert loose.value == pytest.approx(case.central.relaxed(conditions).value, rel=1e-7)
    best = case.central.whole(conditions)
    found, _, _ = converged(case, conditions, cut, lifted=True, whole=True)
    assert found.value == pytest.approx(best.value, rel=1e-7)
    assert best.value > loose.value * 1.001
    for point, of_best in zip(found.points, best.points, strict=True):
        assert point.bits is not None
        assert set(point.bits) <= {0.0, 1.0}
        assert of_best.bits is not None
        assert (point.bits == of_best.bits).all()


def test_held_bits_lead_to_the_optimum_of_their_pattern() -> None:
    case = small_case(2, 2)
    conditions = case.conditions(150.0)
    pattern = [np.array([0.0, 1.0]), np.array([1.0, 1.0])]
    known = [replace(one, bits=2, held=bits) for one, bits in zip(boxes(case), pattern, strict=True)]
    found, _, _ = converged(case, conditions, known, lifted=True)
    assert found.value == pytest.approx(case.central.held(conditions, pattern).value, rel=1e-7)
    assert [list(point.bits) for point in found.points if point.bits is not None] == [[0, 1], [1, 1]]


def test_branching_and_tangents_agree_on_a_master() -> None:
    case = small_case(1, 2)
    conditions = case.conditions(250.0)
    loose, _, known = converged(case, conditions, [replace(one, bits=1) for one in boxes(case)], lifted=True)
    master = Master(case.distribution)
    one, other = (master.whole(conditions, known, by=by) for by in ("branching", "tangents"))
    assert one.value == pytest.approx(other.value, rel=1e-7)
    assert one.value > loose.value * 1.00001


def orthants(case: Case, conditions: Conditions, one: Knowledge) -> float:
    """The optimum with the tents of the only microgrid, by a convex program for each sign of each d."""
    T, best = case.intervals, np.inf
    box = np.concatenate([one.p_mw, one.q_mvar])
    for signs in product(*(product((-1.0, 1.0), repeat=2 * T) for _ in one.tents)):
        low, high, cuts = box[:, 0].copy(), box[:, 1].copy(), []
        for tent, sign in zip(one.tents, np.array(signs), strict=True):
            low = np.where(sign > 0, np.maximum(low, tent.centre), low)
            high = np.where(sign < 0, np.minimum(high, tent.centre), high)
            slope = tent.slope - tent.weight * sign
            row = np.concatenate([slope, [-1.0]])
            cuts.append(Region(axes(T), row[None], np.array([slope @ tent.centre - tent.value])))
        if (low > high).any():
            continue
        ends = np.column_stack([low, high])
        part = Knowledge(ends[:T], ends[T:], one.cost_low, (*one.cuts, *cuts))
        best = min(best, Master(case.distribution).relaxed(conditions, [part]).value)
    return best


@pytest.mark.parametrize("by", ["branching", None])
@pytest.mark.parametrize("seed", range(6))
def test_tents_are_what_they_say(seed: int, by: str | None) -> None:
    """One or two over p and q of one interval or two, centred anywhere in the box, on its edge too."""
    rng = np.random.default_rng(seed)
    T = 1 + seed % 2
    case = small_case(T, 1)
    conditions = case.conditions(150.0)
    box = np.tile([-0.2, 0.3], (T, 1))
    tents = tuple(
        Tent(
            centre=rng.choice([-0.2, 0.3, *rng.uniform(-0.2, 0.3, 4)], 2 * T),
            value=rng.uniform(10, 60),
            slope=rng.uniform(-50, 150, 2 * T),
            weight=rng.uniform(50, 400, 2 * T),
        )
        for _ in range(1 + seed % 3 // 2)
    )
    one = Knowledge(box, box, 0.0, tents=tents)
    found = Master(case.distribution).whole(conditions, [one], by=by)  # type: ignore[arg-type]
    assert found.value == pytest.approx(orthants(case, conditions, one), rel=1e-7)
    x = np.concatenate([found.points[0].p, found.points[0].q])
    for tent in tents:
        least = tent.value + tent.slope @ (x - tent.centre) - tent.weight @ np.abs(x - tent.centre)
        assert found.points[0].cost >= least - 1e-5


def test_a_tent_raises_the_cost_at_its_centre_and_nowhere_beyond_its_reach() -> None:
    case = small_case(1, 1)
    conditions, master = case.conditions(150.0), Master(case.distribution)
    plain = boxes(case)[0]
    free = master.whole(conditions, [plain])
    at = np.concatenate([free.points[0].p, free.points[0].q])
    tent = Tent(centre=at, value=40.0, slope=np.zeros(2), weight=np.full(2, 300.0))
    raised = master.whole(conditions, [replace(plain, tents=(tent,))])
    assert free.value + 0.1 < raised.value <= free.value + 40 + 1e-5
    held = replace(plain, tents=(tent,), p_mw=np.tile(at[0], (1, 2)), q_mvar=np.tile(at[1], (1, 2)))
    assert master.whole(conditions, [held]).points[0].cost == pytest.approx(40.0, abs=1e-5)
    loose = master.relaxed(conditions, [replace(plain, tents=(tent,))])
    assert loose.value <= raised.value + 1e-6


def test_boxes_and_least_costs_are_kept() -> None:
    case = small_case(2, 2)
    p, q = np.array([[0.1, 0.2], [-0.3, -0.1]]), np.array([[0.0, 0.05], [0.02, 0.02]])
    known = [Knowledge(p, q, 7.0), Knowledge(-p[:, ::-1], q, -3.0)]
    found = Master(case.distribution).relaxed(case.conditions(), known)
    assert found.points[0].p == pytest.approx([0.2, -0.1], abs=1e-6)  # to export is worth something
    assert found.points[1].p == pytest.approx([-0.1, 0.3], abs=1e-6)
    assert found.points[0].q[1] == pytest.approx(0.02, abs=1e-6)
    assert [point.cost for point in found.points] == pytest.approx([7.0, -3.0], abs=1e-5)


def test_a_cut_over_fewer_bits_serves_a_lifted_microgrid() -> None:
    case = small_case(1, 1)
    master, conditions = Master(case.distribution), case.conditions()
    names = axes(1)
    cut = Region(names, np.array([[0.0, 0.0, -1.0]]), np.array([-12.0]))
    reordered = Region(names[::-1], np.array([[-1.0, 0.0, 0.0]]), np.array([-12.0]))
    for given in (cut, reordered):
        one = replace(boxes(case)[0], bits=1, cuts=(given,))
        assert master.relaxed(conditions, [one]).points[0].cost == pytest.approx(12.0, abs=1e-5)


def test_cuts_that_leave_nothing_are_infeasible() -> None:
    case = small_case(1, 1)
    nothing = Region(axes(1), np.array([[1.0, 0.0, 0.0]]), np.array([-5.0]))
    with pytest.raises(Infeasible):
        Master(case.distribution).relaxed(case.conditions(), [replace(boxes(case)[0], cuts=(nothing,))])


def test_knowledge_has_to_fit() -> None:
    case = small_case(2, 1)
    one, conditions = boxes(case)[0], case.conditions()
    bit = Region(axes(2, 1), np.ones((1, 6)), np.ones(1))
    tent = Tent(np.zeros(4), 0.0, np.zeros(4), np.ones(3))
    for wrong, message in (
        ([one, one], "knowledge of 2 microgrids, but there are 1"),
        ([replace(one, cuts=(bit,))], "a cut of microgrid 0 names 'bit_0'; it has 2 intervals and 0 bits"),
        ([replace(one, p_mw=one.p_mw[:, ::-1])], r"p_mw of microgrid 0 must be \(2, 2\) finite numbers"),
        ([replace(one, q_mvar=one.q_mvar * np.inf)], "q_mvar of microgrid 0"),
        ([replace(one, bits=2, held=np.zeros(3))], r"microgrid 0 has 2 bits, but \(3,\) of them are held"),
        ([replace(one, tents=(tent,))], r"a tent's weight has \(3,\), needed is \(4,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            Master(case.distribution).relaxed(conditions, wrong)
