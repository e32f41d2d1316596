"""Regions against oracles: the definition, scipy's hulls and linear programs, a quadratic program."""

from __future__ import annotations

from typing import Any

import cvxpy
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.spatial import ConvexHull, HalfspaceIntersection

from controllers import Infeasible, Region
from controllers.devices import AXES

Array = npt.NDArray[np.float64]
cp: Any = cvxpy
PQ = ("p_mw", "q_mvar")
STEADY = settings(derandomize=True, deadline=None, max_examples=60)

real = st.floats(-3, 3, allow_nan=False, width=32)
seeds = st.integers(0, 2**32 - 1)


def polygon(seed: int) -> tuple[Region, Array]:
    """A random polygon and the points whose hull it is."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(int(rng.integers(3, 12)), 2)) * rng.uniform(0.1, 3, 2) + rng.normal(size=2)
    rows = ConvexHull(points).equations
    return Region(PQ, rows[:, :2], -rows[:, 2]), points


def around_zero(seed: int, n: int) -> Region:
    """A bounded random region of n axes with the origin inside."""
    rng = np.random.default_rng(seed)
    rows = int(rng.integers(n + 1, 4 * n + 4))
    A = np.vstack([rng.normal(size=(rows, n)), np.eye(n), -np.eye(n)])
    b = np.concatenate([rng.uniform(0.2, 3, rows), np.full(2 * n, 4.0)])
    return Region(tuple(f"x{i}_mw" for i in range(n)), A, b)


def same_points(one: Array, other: Array, within: float = 1e-7) -> bool:
    """Whether two sets of points are the same, in any order."""
    apart = np.linalg.norm(one[:, None] - other[None], axis=2)
    return bool(apart.min(axis=0).max() < within and apart.min(axis=1).max() < within)


# Membership


@STEADY
@given(seeds, real, real)
def test_membership_is_the_definition(seed: int, p: float, q: float) -> None:
    rng = np.random.default_rng(seed)
    A, b = rng.normal(size=(5, 2)) * 10 ** rng.uniform(-3, 3, (5, 1)), rng.normal(size=5)
    region = Region(PQ, A, b)
    outside = (A @ [p, q] - b) / np.linalg.norm(A, axis=1)  # in the axes' units, whatever the rows' scale
    assert region.excess([p, q]) == pytest.approx(outside.max(), rel=1e-9, abs=1e-9)
    assert ([p, q] in region) == (outside.max() <= 1e-9)
    assert region.excess({"q_mvar": q, "p_mw": p}) == region.excess((p, q))
    assert np.linalg.norm(region.A, axis=1) == pytest.approx(np.ones(5))


@STEADY
@given(seeds, seeds, real, real)
def test_an_intersection_holds_what_both_hold(one: int, two: int, p: float, q: float) -> None:
    first, other = polygon(one)[0], polygon(two)[0]
    turned = Region(("q_mvar", "p_mw"), other.A[:, ::-1], other.b)  # the same set, axes the other way round
    point = {"p_mw": p, "q_mvar": q}
    assert turned.excess(point) == pytest.approx(other.excess(point))
    both = first & turned
    assert both.axes == PQ
    assert both.excess(point) == pytest.approx(max(first.excess(point), other.excess(point)))
    assert (turned & first).excess(point) == pytest.approx(both.excess(point))


def test_regions_over_other_axes_do_not_meet() -> None:
    with pytest.raises(ValueError, match="do not share"):
        Region.box(p_mw=(0, 1)) & Region.box(q_mvar=(0, 1))
    with pytest.raises(ValueError, match="do not share"):
        Region.box(p_mw=(0, 1), q_mvar=(0, 1)) & Region.box(p_mw=(0, 1))


# Support


@STEADY
@given(seeds, real, real)
def test_support_is_reached_at_a_vertex(seed: int, p: float, q: float) -> None:
    region, points = polygon(seed)
    assert region.support([p, q]) == pytest.approx((points @ [p, q]).max(), abs=1e-7)
    assert region.support([p, q]) == pytest.approx((region.vertices() @ [p, q]).max(), abs=1e-7)


@STEADY
@given(seeds, st.integers(1, 6))
def test_support_is_another_solvers(seed: int, n: int) -> None:
    region = around_zero(seed, n)
    d = np.random.default_rng(seed + 1).normal(size=n)
    other: Any = linprog(-d, A_ub=region.A, b_ub=region.b, bounds=(None, None), method="highs-ds")
    assert region.support(d) == pytest.approx(-other.fun, abs=1e-7)
    assert region.support(dict(zip(region.axes, d, strict=True))) == region.support(d)


def test_a_region_without_end() -> None:
    right = Region(PQ, np.array([[-1.0, 0.0]]), np.array([-1.0]))  # p >= 1
    assert right.support([1, 0]) == np.inf
    assert right.support([0, -1]) == np.inf
    assert right.limits("p_mw") == pytest.approx((1.0, np.inf))
    everything = Region(PQ, np.zeros((0, 2)), np.zeros(0))
    assert everything.support([1, 1]) == np.inf
    assert (1e9, -1e9) in everything
    assert everything.excess([0, 0]) == -np.inf


def test_limits_of_a_box() -> None:
    box = Region.box(p_mw=(-1.5, 0.25), q_mvar=(0, 2))
    assert box.limits("p_mw") == pytest.approx((-1.5, 0.25))
    assert box.limits("q_mvar") == pytest.approx((0.0, 2.0))
    with pytest.raises(KeyError, match="v_pu"):
        box.limits("v_pu")


# Nearest point


def distance_by_program(region: Region, point: Array) -> float:
    x = cp.Variable(len(region.axes))
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - point)), [region.A @ x <= region.b])
    problem.solve(solver=cp.CLARABEL)
    assert problem.status == cp.OPTIMAL
    return float(np.linalg.norm(x.value - point))


@settings(STEADY, max_examples=40)
@given(seeds, real, real)
def test_the_nearest_point_is_the_quadratic_programs(seed: int, p: float, q: float) -> None:
    region, _ = polygon(seed)
    point = np.array([p, q])
    nearest = region.nearest(point)
    assert nearest in region
    assert np.linalg.norm(nearest - point) == pytest.approx(distance_by_program(region, point), abs=1e-5)
    if point in region:
        assert nearest == pytest.approx(point, abs=1e-9)


@STEADY
@given(seeds, real, real)
def test_no_point_of_the_region_is_nearer(seed: int, p: float, q: float) -> None:
    region, points = polygon(seed)
    nearest = region.nearest([p, q])
    # The region lies behind the plane through the nearest point, across the way to it.
    assert ((points - nearest) @ (np.array([p, q]) - nearest)).max() <= 1e-9
    assert region.nearest(nearest) == pytest.approx(nearest, abs=1e-9)


@STEADY
@given(st.floats(-2, 2), st.floats(0, 2), real, real, st.floats(-1, 1))
def test_the_nearest_point_of_a_flat_region(
    low: float, width: float, p: float, q: float, slope: float
) -> None:
    on_axis = Region.box(p_mw=(low, low + width), q_mvar=(0, 0))
    assert on_axis.nearest([p, q]) == pytest.approx([min(max(p, low), low + width), 0.0], abs=1e-9)
    line = Region(PQ, np.array([[-slope, 1.0], [slope, -1.0]]), np.zeros(2))
    foot = (p + slope * q) / (1 + slope**2)
    assert line.nearest([p, q]) == pytest.approx([foot, slope * foot], abs=1e-9)
    point = Region.box(p_mw=(low, low), q_mvar=(0, 0))
    assert point.nearest([p, q]) == pytest.approx([low, 0.0], abs=1e-9)


@STEADY
@given(real, st.floats(0, 2), real)
def test_the_nearest_point_of_an_interval(low: float, width: float, p: float) -> None:
    interval = Region.box(p_mw=(low, low + width))
    assert interval.nearest([p]) == pytest.approx([min(max(p, low), low + width)])


def test_the_nearest_point_is_not_the_callers_array() -> None:
    point = np.array([0.5, 0.5])
    nearest = Region.box(p_mw=(0, 1), q_mvar=(0, 1)).nearest(point)
    nearest[0] = 7.0
    assert point[0] == 0.5
    with pytest.raises(ValueError, match="3 axes"):
        Region.box(a=(0, 1), b=(0, 1), c=(0, 1)).nearest([0, 0, 0])


# Vertices


@STEADY
@given(seeds)
def test_vertices_are_those_of_the_hull(seed: int) -> None:
    region, points = polygon(seed)
    corners = region.vertices()
    hull = points[ConvexHull(points).vertices]
    assert same_points(corners, hull)
    if len(corners) == len(hull):  # else two corners lie so close together that they count as one
        x, y = corners.T
        twice_area = (x * np.roll(y, -1) - y * np.roll(x, -1)).sum()  # positive: counter-clockwise
        assert twice_area / 2 == pytest.approx(ConvexHull(points).volume, rel=1e-6)


@settings(STEADY, max_examples=30)
@given(seeds, st.integers(2, 3))
def test_vertices_are_those_of_the_half_spaces(seed: int, n: int) -> None:
    region = around_zero(seed, n)
    other = HalfspaceIntersection(np.column_stack([region.A, -region.b]), np.zeros(n))
    assert same_points(region.vertices(), other.intersections)


def test_vertices_of_boxes() -> None:
    square = Region.box(p_mw=(-1, 2), q_mvar=(0, 1)).vertices()
    assert square.tolist() == [[-1, 0], [2, 0], [2, 1], [-1, 1]]
    assert sorted(Region.box(p_mw=(-1, 2)).vertices().ravel()) == [-1, 2]
    assert len(Region.box(a=(0, 1), b=(0, 1), c=(0, 1)).vertices()) == 8
    flat = Region.box(p_mw=(-1, 2), q_mvar=(0, 0)).vertices()
    assert same_points(flat, np.array([[-1.0, 0.0], [2.0, 0.0]]), 1e-9)
    assert Region.box(p_mw=(1, 1), q_mvar=(0, 0)).vertices().tolist() == [[1, 0]]


# What there is not


@STEADY
@given(seeds, real, real)
def test_an_empty_region_is_infeasible_however_it_is_asked(seed: int, p: float, q: float) -> None:
    assume(abs(p) + abs(q) > 0.1)
    region, points = polygon(seed)
    normal = np.array([p, q]) / np.hypot(p, q)
    beyond = (points @ normal).max() + 1e-3  # a half-plane that just misses it
    empty = region & Region(PQ, -normal[None], np.array([-beyond]))
    for ask in (empty.vertices, lambda: empty.support([1, 0]), lambda: empty.nearest(points.mean(axis=0))):
        with pytest.raises(Infeasible):
            ask()


def test_a_region_without_corner_has_no_vertices() -> None:
    with pytest.raises(Infeasible, match="no vertex"):
        Region(PQ, np.array([[1.0, 0.0], [-1.0, 0.0]]), np.ones(2)).vertices()


@pytest.mark.parametrize(
    ("axes", "A", "b", "says"),
    [
        (("p_mw", "p_mw"), np.eye(2), np.ones(2), "each once"),
        ((), np.zeros((0, 0)), np.zeros(0), "each once"),
        (PQ, np.eye(2), np.ones(3), "shape"),
        (PQ, np.ones((2, 3)), np.ones(3), "shape"),  # as many numbers as three rows of two
        (PQ, np.ones(4), np.ones(2), "shape"),
        (PQ, np.array([[np.nan, 1.0]]), np.ones(1), "not finite"),
        (PQ, np.eye(2), np.array([1.0, np.inf]), "not finite"),
    ],
)
def test_what_is_no_region_is_refused(axes: tuple[str, ...], A: Array, b: Array, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Region(axes, A, b)


def test_rows_without_coefficients() -> None:
    kept = Region(PQ, np.array([[0.0, 0.0], [2.0, 0.0]]), np.array([0.5, 1.0]))
    assert kept.A.tolist() == [[1.0, 0.0]]
    assert kept.b.tolist() == [0.5]
    with pytest.raises(Infeasible, match=r"0 <= -0\.5"):
        Region(PQ, np.zeros((1, 2)), np.array([-0.5]))


def test_a_box_has_its_lower_limit_below_its_upper() -> None:
    with pytest.raises(ValueError, match="q_mvar has its lower limit 1 above its upper 0"):
        Region.box(p_mw=(0, 1), q_mvar=(1, 0))
    with pytest.raises(ValueError, match="p_mw"):
        Region.box(p_mw=(float("nan"), 1))


def test_points_must_have_the_regions_axes() -> None:
    region = Region.box(p_mw=(0, 1), q_mvar=(0, 1))
    for wrong in ({"p_mw": 0.5}, {"p_mw": 0.5, "v_pu": 1.0}, [0.5], [0.5, 0.5, 0.5]):
        with pytest.raises(ValueError, match="has axes"):
            region.excess(wrong)


def test_nobody_can_change_a_region() -> None:
    A, b = np.eye(2), np.ones(2)
    region = Region(PQ, A, b)
    A[0, 0] = b[0] = 7.0
    assert (1.0, 1.0) in region
    assert (1.1, 1.0) not in region
    for values in (region.A, region.b):
        with pytest.raises(ValueError, match="read-only"):
            values[0] = 0.0
    with pytest.raises(AttributeError):
        region.b = np.zeros(2)  # type: ignore[misc]


@STEADY
@given(seeds)
def test_a_region_told_again_is_the_same_to_the_last_bit(seed: int) -> None:
    region, _ = polygon(seed)
    again = Region(region.axes, region.A, region.b)
    assert (again.A.tobytes(), again.b.tobytes()) == (region.A.tobytes(), region.b.tobytes())


def test_many_boxes_at_once_are_those_boxes() -> None:
    limits = np.array([[[-1.0, 2.0], [0.0, 0.5]], [[0.0, 0.0], [-0.0, 0.0]]])
    for box, ((low_p, high_p), (low_q, high_q)) in zip(Region.boxes(AXES, limits), limits, strict=True):
        alone = Region.box(p_mw=(low_p, high_p), q_mvar=(low_q, high_q))
        assert (box.axes, box.A.tobytes(), box.b.tobytes()) == (
            alone.axes,
            alone.A.tobytes(),
            alone.b.tobytes(),
        )
        with pytest.raises(ValueError, match="read-only"):
            box.b[0] = 1.0
    assert Region.boxes(AXES, np.zeros((0, 2, 2))) == []


@pytest.mark.parametrize("wrong", [[[0.0, 1.0], [1.0, 0.0]], [[0.0, np.nan], [0, 0]], [[0, np.inf], [0, 0]]])
def test_many_boxes_are_checked(wrong: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="not finite, or a lower one above"):
        Region.boxes(AXES, np.array([[[0.0, 1.0], [0.0, 1.0]], wrong]))
    with pytest.raises(ValueError, match="shape"):
        Region.boxes(AXES, np.array(wrong))
