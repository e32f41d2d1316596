"""EPQ: cutting planes against the whole program, the rectangles, and the figures of a prototype."""

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

from controllers import Infeasible, Site, SolverFailed
from controllers.envelopes import equal_polygons
from controllers.envelopes.equal_boxes import EqualBoxes
from controllers.envelopes.equal_polygons import GIVEN_UP, EqualPolygons, Polygon, convex
from controllers.region import TOLERANCE
from tests.envelope_cases import feeder136, random_tree, s1, s2, s3, seen, trees

Array = npt.NDArray[np.float64]

CASES: dict[str, Callable[[], Site]] = {
    "S1": s1,
    "S2": s2,
    "S3": s3,
    "136": feeder136,
    "tree": lambda: random_tree(3, 60, 8),
}


@cache
def case(name: str, corners: int = 16) -> tuple[EqualPolygons, Any]:
    """A case's controller and the room that its loads leave."""
    controller = EqualPolygons(CASES[name](), corners=corners)
    return controller, controller.room(seen(controller.site))


def rho_of(controller: EqualPolygons, W: Array) -> Array:
    assert controller._compiled is not None
    return controller._compiled[1].widest(W)


def whole_program(
    A: Array, B: Array, gamma: Array, W: Array, corners: int, least: float | None = None
) -> tuple[float, Array]:
    """The epigraph form with a support value for every row and device: greatest sum, or least squares."""
    angle = 2 * np.pi * np.arange(corners) / corners
    size = np.abs(A).max(axis=1) + np.abs(B).max(axis=1)
    kept = size > 1e-12
    A, B, W = A[kept] / size[kept, None], B[kept] / size[kept, None], W[kept] / size[kept]
    rho, h = cp.Variable(corners, nonneg=True), cp.Variable(A.shape)
    rules = [h @ gamma <= W]
    rules += [h >= rho[m] * (A * np.cos(t) + B * np.sin(t)) for m, t in enumerate(angle)]
    if least is None:
        problem = cp.Problem(cp.Maximize(cp.sum(rho)), rules)
    else:
        problem = cp.Problem(cp.Minimize(cp.sum_squares(rho)), [*rules, cp.sum(rho) >= least])
    return problem.solve(solver="CLARABEL"), rho.value


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("corners", [8, 16])
def test_cuts_are_the_whole_program(name: str, corners: int) -> None:
    controller, room = case(name, corners)
    rho = rho_of(controller, room.W)
    best, _ = whole_program(controller.rows.A, controller.rows.B, room.gamma, room.W, corners)
    assert rho.sum() == pytest.approx(best, rel=1e-6 + GIVEN_UP)


@pytest.mark.parametrize("name", ["S1", "S2", "S3", "tree"])
def test_of_many_the_one_of_least_squares_is_taken(name: str) -> None:
    controller, room = case(name)
    rho = rho_of(controller, room.W)
    arguments = controller.rows.A, controller.rows.B, room.gamma, room.W, 16
    best, first = whole_program(*arguments)
    squares, roundest = whole_program(*arguments, least=(1 - GIVEN_UP) * best)
    assert (rho**2).sum() == pytest.approx(squares, rel=1e-4)
    assert (rho**2).sum() <= (first**2).sum() * (1 + 1e-6)
    assert rho == pytest.approx(roundest, abs=2e-3 * roundest.max())


FIGURES = {
    ("S1", 16): (26.1, 11.6),
    ("S2", 16): (4.19, 3.09),
    ("S3", 16): (11.7, 5.86),
}


@pytest.mark.parametrize(("name", "corners"), FIGURES)
def test_the_known_figures(name: str, corners: int) -> None:
    """Sum of areas [MVA^2] and of P ranges at Q = 0 [MW] that a prototype of another hand found."""
    controller, room = case(name, corners)
    found = controller.envelopes(room)
    area, width = FIGURES[name, corners]
    assert found.fairness.area_mva2 == pytest.approx(area, rel=5e-3)
    assert found.fairness.export_mw + found.fairness.import_mw == pytest.approx(width, rel=5e-3)
    assert found.fairness.jain_export == pytest.approx(1)
    assert found.fairness.jain_import == pytest.approx(1)


@pytest.mark.parametrize("name", ["S1", "S2", "S3", "136"])
def test_T11_polygons_are_wider_than_rectangles(name: str) -> None:
    controller, room = case(name)
    polygon = controller.envelopes(room).fairness
    box = EqualBoxes(controller.site).envelopes(room).fairness
    assert polygon.export_mw + polygon.import_mw >= box.export_mw + box.import_mw
    assert polygon.area_mva2 >= 2 * box.area_mva2


def test_T11_so_are_they_on_random_trees() -> None:
    for seed in range(12):
        site = random_tree(seed, 5 + 5 * seed, 1 + seed % 8, 0.9 - 0.07 * seed)
        controller = EqualPolygons(site)
        room = controller.room(seen(site))
        polygon, box = controller.envelopes(room).fairness, EqualBoxes(site).envelopes(room).fairness
        assert polygon.export_mw + polygon.import_mw >= box.export_mw + box.import_mw
        assert polygon.area_mva2 >= box.area_mva2


def kilo(controller: EqualPolygons, W: Array) -> tuple[Array, Array, Array]:
    """The same rows for powers in kW: voltages stay in pu, flows become kVA."""
    n = 2 * len(controller.site.network.buses)
    each = np.where(np.arange(len(W)) < n, 1e-3, 1.0)
    return each[:, None] * controller.rows.A, each[:, None] * controller.rows.B, W * each * 1e3


@pytest.mark.parametrize("name", CASES)
def test_T8_polygons_do_not_depend_on_the_unit(name: str) -> None:
    controller, room = case(name)
    A, B, W = kilo(controller, room.W)
    rho = rho_of(controller, room.W)
    assert Polygon(A, B, room.gamma, 16).widest(W) / 1000 == pytest.approx(rho, abs=1e-5 * rho.max())


@pytest.mark.parametrize("name", CASES)
def test_T9_polygons_do_not_depend_on_the_order(name: str) -> None:
    controller, room = case(name)
    site = controller.site
    turned = EqualPolygons(replace(site, devices=dict(reversed(site.devices.items()))))
    rho = rho_of(controller, room.W)
    assert rho_of(turned, room.W) == pytest.approx(rho, abs=1e-5 * rho.max())


@pytest.mark.parametrize("name", CASES)
def test_all_corners_are_of_one_shape(name: str) -> None:
    controller, room = case(name)
    shapes = controller.share(room.W, room.gamma)
    unit = shapes.corners / room.gamma[:, None, None]
    assert unit == pytest.approx(np.broadcast_to(unit[0], unit.shape), abs=1e-12)
    # corners and half-planes say the same
    for region, corners in zip(shapes.regions, shapes.corners, strict=True):
        assert max(region.excess(corner) for corner in corners) <= TOLERANCE
        for t in np.linspace(0, 2 * np.pi, 7):
            direction = np.array([np.cos(t), np.sin(t)])
            assert region.support(direction) == pytest.approx((corners @ direction).max(), abs=1e-8)


@settings(max_examples=40, deadline=None)
@given(trees(), st.sampled_from([4, 8, 16]))
def test_no_corner_breaks_a_row(site: Site, corners: int) -> None:
    controller = EqualPolygons(site, corners=corners)
    room = controller.room(seen(site))
    if not controller.rows.A.any():  # all devices at the slack bus
        shapes = controller.share(room.W, room.gamma)
        S = [device.rating_mw for device in site.devices.values()]
        assert shapes.corners.max(axis=(1, 2)).tolist() == S
        assert shapes.corners.min(axis=(1, 2)).tolist() == [-s for s in S]
        assert set(shapes.binding) == {"its own rating"}
        return
    shapes = controller.share(room.W, room.gamma)
    A, B = controller.rows.A, controller.rows.B
    assert (shapes.support(A, B) <= room.W + 1e-9).all()
    assert np.isfinite(shapes.corners).all()
    low, high = shapes.ranges_at_zero
    assert (low <= 1e-12).all()
    assert (high >= -1e-12).all()
    # it is the greatest: no sum of corners is, by the whole program
    best, _ = whole_program(A, B, room.gamma, room.W, corners)
    assert rho_of(controller, room.W).sum() == pytest.approx(best, rel=1e-5, abs=1e-6)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_rows_without_room_give_a_flat_polygon(seed: int, n: int) -> None:
    """Any rows, any of them without room or next to none: no error, nothing that is not finite, and safe."""
    rng = np.random.default_rng(seed)
    A, B = rng.normal(size=(2, 12, n)) * (rng.random((2, 12, n)) < 0.7)
    around = 2 * np.pi * (np.arange(6) + 0.5) / 6
    A, B = (
        np.vstack([A, np.outer(np.cos(around), np.ones(n))]),
        np.vstack([B, np.outer(np.sin(around), np.ones(n))]),
    )
    W = (
        rng.uniform(0, 1, 18)
        * (rng.random(18) < 0.7)
        * 10.0 ** (rng.uniform(-13, 0, 18) * (rng.random(18) < 0.3))
    )
    gamma = rng.uniform(0.2, 2, n)
    polygon = Polygon(A, B, gamma, 8)
    rho = polygon.widest(W)
    assert np.isfinite(rho).all()
    assert (rho >= 0).all()
    assert (polygon.support(rho) <= W * (1 + 1e-12) + 1e-15).all()
    corners = convex(rho[:, None] * polygon.direction)
    joint = sum(
        gamma[i] * (A[:, i, None] * corners[:, 0] + B[:, i, None] * corners[:, 1]).max(axis=1)
        for i in range(n)
    )
    assert (joint <= W + 1e-12).all()
    assert polygon.limited(rho, W, [str(k) for k in range(18)])


def test_without_a_rounder_one_the_first_polygon_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    controller, room = case("S1")
    rho = rho_of(controller, room.W)

    def fails(*_: object) -> Array:
        raise SolverFailed("numerical trouble")

    monkeypatch.setattr(equal_polygons, "_roundest", fails)
    first = rho_of(controller, room.W)
    assert first.sum() == pytest.approx(rho.sum(), rel=2 * GIVEN_UP)
    assert (controller._compiled[1].support(first) <= room.W).all()  # type: ignore[index]


def test_without_room_it_is_a_point() -> None:
    controller, room = case("S3")
    shapes = controller.share(np.zeros_like(room.W), room.gamma)
    assert not shapes.corners.any()
    for region in shapes.regions:
        assert [0.0, 0.0] in region
        assert [1e-6, 0.0] not in region


def test_only_imports_when_nothing_can_be_exported() -> None:
    """One device, rows along the axes: no room for P, some for -P and both Q: a triangle."""
    A, B = np.array([[1.0], [-1.0], [0.0], [0.0]]), np.array([[0.0], [0.0], [1.0], [-1.0]])
    rho = Polygon(A, B, np.ones(1), 4).widest(np.array([0.0, 2.0, 1.0, 1.0]))
    assert rho == pytest.approx([0.0, 1.0, 2.0, 1.0], abs=1e-5)
    corners = convex(rho[:, None] * Polygon(A, B, np.ones(1), 4).direction)
    assert len(corners) == 3  # the origin lies between (0, 1) and (0, -1)


def test_by_hand_a_circle_of_room() -> None:
    """One limit of 3 MVA around two devices: each corner at 3 / (gamma_1 + gamma_2)."""
    t = 2 * np.pi * np.arange(360) / 360
    A, B = np.outer(np.cos(t), np.ones(2)), np.outer(np.sin(t), np.ones(2))
    rho = Polygon(A, B, np.array([1.0, 2.0]), 12).widest(np.full(360, 3.0))
    assert rho == pytest.approx(np.ones(12), rel=1e-5)


def test_corners_of_a_hull() -> None:
    square = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    inner = np.array([[0.5, 0.5], [0.2, 0.2], [-1.0, 0.0]])  # on an edge, inside, twice
    found = convex(np.vstack([square, inner]))
    assert {tuple(c) for c in found.tolist()} == {tuple(c) for c in square.tolist()}
    x, y = found.T
    assert (x * np.roll(y, -1) - y * np.roll(x, -1)).sum() > 0  # counter-clockwise
    assert convex(np.zeros((5, 2))).tolist() == [[0.0, 0.0]]
    flat = convex(np.array([[2.0, 0.0], [0.0, 0.0], [-1.0, 0.0]]))
    assert sorted(flat.tolist()) == [[-1.0, 0.0], [2.0, 0.0]]


def test_what_binds_is_named() -> None:
    controller, room = case("S1")
    binding = controller.envelopes(room).certificates[0].binding
    assert binding is not None
    assert binding.startswith("export by upper voltage at bus 17, import by lower voltage at bus 17, ")


def test_what_it_refuses() -> None:
    site = s3()
    for corners in (0, 3, 10):
        with pytest.raises(ValueError, match=f"corners {corners} is no multiple of 4"):
            EqualPolygons(site, corners=corners)
    with pytest.raises(Infeasible, match="lower voltage at bus 17"):
        EqualPolygons(site).step(seen(site, 4.0))
