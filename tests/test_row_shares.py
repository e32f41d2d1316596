"""PQ-KL: shares that add up, regions that hold together, half-planes against linear programs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import cvxpy as cp
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controllers import Site
from controllers.envelopes.row_shares import SQUARE, RowShares, ShareProgram, participation, polygon, polygons
from controllers.envelopes.shapes import Shapes, hull
from controllers.region import TOLERANCE
from controllers.solve import maximum
from tests.envelope_cases import battery_park, feeder136, random_tree, s1, s2, s3, seen, trees

Array = npt.NDArray[np.float64]

CASES: dict[str, Callable[[], Site]] = {
    "S1": s1,
    "S2": s2,
    "S3": s3,
    "136": feeder136,
    "tree": lambda: random_tree(3, 60, 8),
}
SHARES = ("participation", "equal", "optimised")
ALL = [(name, shares) for name in CASES for shares in SHARES]


@cache
def case(name: str, shares: str = "participation") -> tuple[RowShares, Any]:
    """A case's controller and the room that its loads leave."""
    controller = RowShares(CASES[name](), shares=shares)  # type: ignore[arg-type]
    return controller, controller.room(seen(controller.site))


@cache
def solved(name: str, shares: str) -> tuple[Array, Shapes]:
    """The shares of a case and the regions that they make."""
    controller, room = case(name, shares)
    omega, rows = controller.omega(room.W, room.gamma), controller.rows
    return omega, polygons(rows.A, rows.B, omega, controller._rating, rows.names)


@pytest.mark.parametrize(("name", "shares"), ALL)
def test_T13_shares_add_up_and_regions_hold_together(name: str, shares: str) -> None:
    controller, room = case(name, shares)
    omega, shapes = solved(name, shares)
    assert (omega >= 0).all()
    assert omega.sum(axis=1) == pytest.approx(room.W, abs=1e-12)
    A, B = controller.rows.A, controller.rows.B
    assert (shapes.support(A, B) <= room.W + 1e-9).all()
    # the same by sampling: each device at any corner
    rng = np.random.default_rng(0)
    choice = rng.integers(0, shapes.corners.shape[1], (2000, len(shapes)))
    P, Q = shapes.points(choice)
    taken = P @ A.T + Q @ B.T
    assert (taken <= room.W + 1e-9).all()


@pytest.mark.parametrize(("name", "shares"), ALL)
def test_corners_and_half_planes_say_the_same(name: str, shares: str) -> None:
    """Against a linear program over all rows, in several directions."""
    controller, _ = case(name, shares)
    omega, shapes = solved(name, shares)
    for i, (region, corners) in enumerate(zip(shapes.regions, shapes.corners, strict=True)):
        a, b = controller.rows.A[:, i], controller.rows.B[:, i]
        size = np.hypot(a, b)
        own = size > 1e-12
        rows, right = np.column_stack([a, b])[own] / size[own, None], omega[own, i] / size[own]
        if not own.any() or max(maximum(d, rows, right) for d in SQUARE) == np.inf:
            rows, right = np.vstack([rows, SQUARE]), np.append(right, np.full(4, controller._rating[i]))
        assert len(region.b) <= 40  # of hundreds
        assert [0.0, 0.0] in region
        for t in np.linspace(0, 2 * np.pi, 6):
            direction = np.array([np.cos(t), np.sin(t)])
            reach = float((corners @ direction).max())
            assert reach == pytest.approx(maximum(direction, rows, right), rel=1e-7, abs=1e-7)
            assert reach == pytest.approx(region.support(direction), rel=1e-7, abs=1e-7)


FIGURES = {
    ("S1", "participation"): (30.6, 11.4),
    ("S2", "participation"): (7.76, 3.13),
    ("S3", "participation"): (16.0, 5.85),
    ("S1", "equal"): (3.91, 4.71),
    ("S2", "equal"): (2.18, 2.76),
    ("S3", "equal"): (2.90, 3.66),
}


@pytest.mark.parametrize(("name", "shares"), FIGURES)
def test_the_known_figures(name: str, shares: str) -> None:
    """Sum of areas [MVA^2] and of P ranges at Q = 0 [MW] that a prototype of another hand found."""
    controller, room = case(name, shares)
    found = controller.envelopes(room).fairness
    area, width = FIGURES[name, shares]
    assert found.area_mva2 == pytest.approx(area, rel=2e-3)
    assert found.export_mw + found.import_mw == pytest.approx(width, rel=5e-3)


def test_participation_by_hand() -> None:
    A, B = np.array([[3.0, 0.0, 1.0], [0.0, 0.0, 0.0]]), np.array([[4.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    omega = participation(A, B, np.array([11.0, 4.0]), np.array([2.0, 1.0, 1.0]))
    assert omega == pytest.approx(np.array([[10.0, 0.0, 1.0], [2.0, 1.0, 1.0]]))


@pytest.mark.parametrize("name", ["S1", "S2", "S3"])
def test_the_program_weighs_voltage_against_equality(name: str) -> None:
    """With all weight on equality the shares are equal; with less, the joint point's voltages are better."""
    site = CASES[name]()
    room = case(name)[1]
    network = site.network
    n = len(network.buses)

    def deviation(epsilon: float) -> tuple[float, float]:
        controller = RowShares(site, shares="optimised", epsilon=epsilon)
        omega = controller.omega(room.W, room.gamma)
        scale = controller._program._scale  # type: ignore[union-attr]
        unequal = np.linalg.norm((omega - room.W[:, None] / omega.shape[1]) * scale[:, None])
        return best_deviation(site, omega, n), float(unequal / np.linalg.norm(room.W * scale))

    (v_equal, equal), (v_some, some), (v_free, free) = (deviation(e) for e in (1e4, 0.3, 1e-6))
    assert equal < 1e-4
    assert equal < some < free
    assert v_equal > v_some > v_free


def best_deviation(site: Site, omega: Array, n: int) -> float:
    """The least deviation of the voltages with every device in its region, by a program of its own."""
    controller = RowShares(site)
    rows = controller.rows
    P, Q = cp.Variable(omega.shape[1]), cp.Variable(omega.shape[1])
    v2 = site.network.v2(*rows.background({}))
    rules = []
    for i, (a, b) in enumerate(zip(rows.A.T, rows.B.T, strict=True)):
        size = np.hypot(a, b)
        own = size > 1e-12
        a, b, right = a[own] / size[own], b[own] / size[own], omega[own, i] / size[own]
        rules.append(a * P[i] + b * Q[i] <= right)
    v = v2 + rows.A[:n] @ P + rows.B[:n] @ Q
    return float(cp.Problem(cp.Minimize(cp.norm2(v - 1.0)), rules).solve(solver="CLARABEL"))


def test_the_program_is_no_worse_than_any_division() -> None:
    """Its objective, evaluated apart, is at most that of the explicit divisions."""
    controller, room = case("S3", "optimised")
    scale = controller._program._scale  # type: ignore[union-attr]
    n = len(controller.site.network.buses)

    def objective(omega: Array) -> float:
        equal = room.W[:, None] / omega.shape[1]
        unequal = np.linalg.norm((omega - equal) * scale[:, None]) / np.linalg.norm(room.W * scale)
        return best_deviation(controller.site, omega, n) + float(unequal)

    best = objective(controller.omega(room.W, room.gamma))
    for other in ("equal", "participation"):
        assert best <= objective(case("S3", other)[0].omega(room.W, room.gamma)) + 1e-6
    assert best < objective(case("S3", "equal")[0].omega(room.W, room.gamma)) - 1e-5


@pytest.mark.parametrize("name", CASES)
def test_T8_regions_do_not_depend_on_the_unit(name: str) -> None:
    controller, room = case(name)
    n = 2 * len(controller.site.network.buses)
    each = np.where(np.arange(len(room.W)) < n, 1e-3, 1.0)  # voltages stay in pu, flows become kVA
    A, B, W = each[:, None] * controller.rows.A, each[:, None] * controller.rows.B, room.W * each * 1e3
    rating, names = controller._rating, controller.rows.names
    in_kw = polygons(A, B, participation(A, B, W, room.gamma), 1e3 * rating, names)
    in_mw = controller.share(room.W, room.gamma)
    assert in_kw.areas / 1e6 == pytest.approx(in_mw.areas, rel=1e-8)
    for one, two in zip(in_mw.ranges_at_zero, in_kw.ranges_at_zero, strict=True):
        assert two / 1e3 == pytest.approx(one, rel=1e-8)


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("name", ["S1", "S2", "S3", "tree"])
def test_T9_regions_do_not_depend_on_the_order(name: str, shares: str) -> None:
    controller, room = case(name, shares)
    site = controller.site
    turned = RowShares(replace(site, devices=dict(reversed(site.devices.items()))), shares=shares)  # type: ignore[arg-type]
    one, two = solved(name, shares)[1], turned.share(room.W, room.gamma[::-1])
    assert controller.share(room.W, room.gamma).areas == pytest.approx(one.areas)
    exact = 1e-9 if shares != "optimised" else 1e-3  # by an interior point
    assert two.areas[::-1] == pytest.approx(one.areas, rel=exact)
    for a, b in zip(one.ranges_at_zero, two.ranges_at_zero, strict=True):
        assert b[::-1] == pytest.approx(a, rel=exact, abs=exact)


def test_weights_scale_regions() -> None:
    """Where all devices touch every row alike, twice the weight is twice the region."""
    t = 2 * np.pi * np.arange(12) / 12
    A, B = np.outer(np.cos(t), np.ones(2)), np.outer(np.sin(t), np.ones(2))
    omega = participation(A, B, np.full(12, 6.0), np.array([1.0, 2.0]))
    shapes = polygons(A, B, omega, np.ones(2), tuple("abcdefghijkl"))
    assert shapes.areas[1] == pytest.approx(4 * shapes.areas[0])
    # a regular 12-gon around a circle of radius 2
    assert shapes.areas[0] == pytest.approx(12 * 4 * np.tan(np.pi / 12))


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 60), st.booleans())
def test_any_half_planes_around_zero(seed: int, count: int, touching: bool) -> None:
    """Against linear programs: sets without end, sets without an inside, rows many times."""
    rng = np.random.default_rng(seed)
    t = rng.choice(rng.uniform(0, 2 * np.pi, 8), count) if seed % 2 else rng.uniform(0, 2 * np.pi, count)
    if touching:
        t[: count // 2] += 0.0
        t[count // 2 :] = np.round(t[count // 2 :] / (np.pi / 4)) * (np.pi / 4)
    a, b = np.cos(t) * rng.uniform(0.1, 3, count), np.sin(t) * rng.uniform(0.1, 3, count)
    right = rng.uniform(0, 2, count) * (rng.random(count) < (0.7 if touching else 0.97))
    points, region = polygon(a, b, right, 2.5)
    assert np.isfinite(points).all()
    assert [0.0, 0.0] in region
    excess = (np.outer(a, points[:, 0]) + np.outer(b, points[:, 1]) - right[:, None]).max(initial=0.0)
    assert excess <= TOLERANCE * max(1.0, np.abs(points).max())
    size = np.hypot(a, b)
    rows, b_ = np.column_stack([a, b]) / size[:, None] if count else np.zeros((0, 2)), right / size
    free = [maximum(np.array(d), rows, b_) if count else np.inf for d in ((1, 0), (0, 1), (-1, 0), (0, -1))]
    if max(free) >= 1e3 * 2.5 * (1 - 1e-6):  # ends at the rating
        rows = np.vstack([rows, np.eye(2), -np.eye(2)])
        b_ = np.append(b_, np.full(4, 2.5))
    scale = max(1.0, float(np.abs(points).max()))
    for direction in np.column_stack([np.cos(np.arange(9)), np.sin(np.arange(9))]):
        reach = maximum(direction, rows, b_)
        assert (points @ direction).max() == pytest.approx(reach, abs=1e-7 * scale)
        assert region.support(direction) == pytest.approx(reach, abs=1e-7 * scale)
        assert hull(points).support(direction) == pytest.approx(reach, abs=1e-7 * scale)


def test_a_region_without_end_ends_at_the_rating() -> None:
    """A voltage row alone leaves a half-plane; a device at the slack bus has no rows at all."""
    _, region = polygon(np.array([1.0]), np.array([2.0]), np.array([1.0]), 0.8)
    assert region.limits("p_mw") == pytest.approx((-0.8, 0.8))
    assert region.limits("q_mvar") == pytest.approx((-0.8, 0.8))
    assert region.support([1.0, 2.0]) == pytest.approx(1.0)
    site = s3()
    away = RowShares(replace(site, devices=battery_park([0, 17], [1.0, 2.0])))
    decision = away.step(seen(site))
    assert decision.regions["der1"].limits("p_mw") == pytest.approx((-1.0, 1.0))
    assert decision.regions["der1"].limits("q_mvar") == pytest.approx((-1.0, 1.0))
    assert decision.certificates["der1"].binding is not None
    assert "export by its rating" in decision.certificates["der1"].binding
    assert "export by its rating" not in str(decision.certificates["der2"].binding)


@settings(max_examples=40, deadline=None)
@given(trees(), st.sampled_from(["participation", "equal"]))
def test_no_corner_breaks_a_row(site: Site, shares: Any) -> None:
    controller = RowShares(site, shares=shares)
    room = controller.room(seen(site))
    shapes = controller.share(room.W, room.gamma)
    assert (shapes.support(controller.rows.A, controller.rows.B) <= room.W + 1e-8).all()
    for region in shapes.regions:
        assert [0.0, 0.0] in region


def test_the_program_stands_without_room() -> None:
    controller, room = case("S3", "optimised")
    omega = controller.omega(np.zeros_like(room.W), room.gamma)
    assert not omega.any()
    W = room.W.copy()
    W[::3] = 0.0
    omega = controller.omega(W, room.gamma)
    assert omega.sum(axis=1) == pytest.approx(W, abs=1e-12)
    assert (controller.share(W, room.gamma).support(controller.rows.A, controller.rows.B) <= W + 1e-9).all()


def test_what_binds_is_named() -> None:
    """The row named is the one whose share the range at Q = 0 takes whole."""
    controller, room = case("S2")
    shapes = controller.share(room.W, room.gamma)
    omega, names = controller.omega(room.W, room.gamma), np.array(controller.rows.names)
    _, high = shapes.ranges_at_zero
    for i, binding in enumerate(shapes.binding):
        assert binding is not None
        name = binding.split(", ")[0].removeprefix("export by ")
        rows = names == name
        left = omega[rows, i] - controller.rows.A[rows, i] * high[i]
        assert left.min() == pytest.approx(0, abs=1e-9)


def test_what_it_refuses() -> None:
    site = s3()
    with pytest.raises(ValueError, match="shares 'some' is none of"):
        RowShares(site, shares="some")  # type: ignore[arg-type]
    for epsilon in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="epsilon"):
            RowShares(site, epsilon=epsilon)
    assert isinstance(RowShares(site, shares="optimised")._program, ShareProgram)
