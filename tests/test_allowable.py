"""The rows A P + B Q <= W: what `use`, `part` and `columns` say against the whole, and the whole's size.

That A, B and W are the network's own slopes and values is tested beside P-E, in test_equal_ranges.py.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from controllers import Infeasible, Limits, Site
from controllers.envelopes import AllowableRegion, EqualRanges
from controllers.envelopes import allowable as module
from controllers.envelopes.allowable import EDGES, RowKind
from controllers.regulators import CapacitorBank, TapChanger
from tests.test_equal_ranges import by_device, random_site, seen

Array = npt.NDArray[np.float64]
SEEDS = range(8)


def weights(site: Site) -> Array:
    return np.array([d.weight for d in site.devices.values()])


@pytest.mark.parametrize("charging", [0.0, 0.1])
@pytest.mark.parametrize("edges", [16, 7])
@pytest.mark.parametrize("seed", SEEDS)
def test_use_is_the_sum_of_the_positive_and_negative_parts(seed: int, edges: int, charging: float) -> None:
    site = random_site(seed, charging=charging)
    rows, gamma = AllowableRegion(site, edges=edges), weights(site)
    A, B = rows.A, rows.B
    parts = [np.maximum(sign * M, 0) @ gamma for M in (A, B) for sign in (1, -1)]
    np.testing.assert_allclose(rows.use(gamma), parts, rtol=1e-12, atol=1e-14)
    both = ((A > 1e-9).any(axis=1) & (A < -1e-9).any(axis=1)).any()
    assert not both or charging  # without admittances every row has one sign


def test_some_rows_have_both_signs_where_something_is_admitted() -> None:
    A = AllowableRegion(random_site(5, charging=0.1)).A
    assert ((A > 1e-9).any(axis=1) & (A < -1e-9).any(axis=1)).any()


def test_a_series_capacitor_is_not_taken_for_one_signed() -> None:
    """A negative reactance: the shortcut for rows of one sign must not be taken."""
    site = random_site(1)
    x = site.network.x_pu.copy()
    x[0] = -0.02
    site = replace(site, network=replace(site.network, x_pu=x))
    rows, gamma = AllowableRegion(site), weights(site)
    parts = [np.maximum(sign * M, 0) @ gamma for M in (rows.A, rows.B) for sign in (1, -1)]
    np.testing.assert_allclose(rows.use(gamma), parts, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_part_and_some_columns_are_those_of_the_whole(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    site = random_site(seed, charging=0.1)
    rows = AllowableRegion(site)
    draw = np.random.default_rng(seed)
    chosen = draw.integers(0, len(rows), 25)
    A, B = rows.A[chosen], rows.B[chosen]
    assert all((given == right).all() for given, right in zip(rows.part(chosen), (A, B), strict=True))
    monkeypatch.setattr(module, "SMALL", 0)  # now by the rows' own gradients
    for given, right in zip(rows.part(chosen), (A, B), strict=True):
        np.testing.assert_allclose(given, right, rtol=1e-9, atol=1e-13)
    monkeypatch.setattr(module, "CHUNK", 2)
    for given, right in zip(rows.part(chosen), (A, B), strict=True):
        np.testing.assert_allclose(given, right, rtol=1e-9, atol=1e-13)
    assert rows.part(np.zeros(0, dtype=np.int64))[0].shape == (0, len(site.devices))
    devices = draw.integers(0, len(site.devices), 3).tolist()
    for given, right in zip(rows.columns(devices), (rows.A, rows.B), strict=True):
        np.testing.assert_allclose(given, right[:, devices], rtol=1e-12, atol=1e-15)


def test_rows_are_named_and_placed_alike() -> None:
    site = random_site(4)
    rows, network = AllowableRegion(site, edges=8), site.network
    rated = int(np.isfinite(network.rating_mva).sum())
    n = len(network.buses)
    assert len(rows) == len(rows.names) == len(rows.kinds) == len(rows.places) == 2 * n + 8 * rated
    for row, (name, kind, place) in enumerate(zip(rows.names, rows.kinds, rows.places, strict=True)):
        match RowKind(kind):
            case RowKind.UPPER:
                assert name == f"upper voltage at bus {network.buses[place]}"
                assert row == place
            case RowKind.LOWER:
                assert name == f"lower voltage at bus {network.buses[place]}"
                assert row == n + place
            case RowKind.LOADING:
                assert name == f"loading of {network.branches[place]}"
                edge, which = divmod(row - 2 * n, rated)
                assert rows.rated[which] == place
                p = np.array([float(d.bus == network.buses[place]) for d in site.devices.values()])
                if p.any():  # a device at the far end relieves the branch by all that it injects
                    column = int(np.argmax(p))
                    assert rows.A[row, column] == pytest.approx(-np.cos(rows.angles[edge]))
                    assert rows.B[row, column] == pytest.approx(-np.sin(rows.angles[edge]))


def test_more_edges_allow_more() -> None:
    """The inscribed polygon grows with its edges towards the circle, by 1 / cos(pi / K)."""
    site = random_site(6)
    site = replace(site, limits=Limits((0.5, 1.5), 100.0))
    rooms = {}
    for edges in (4, 16, 64, 256):
        rows = AllowableRegion(site, edges=edges)
        rooms[edges] = rows.W(np.zeros(len(site.network.buses)), np.zeros(len(site.network.buses)))[-1]
    rating = site.network.rating_mva[rows.rated[-1]]
    for edges, room in rooms.items():
        assert room == pytest.approx(rating * np.cos(np.pi / edges))
    with pytest.raises(ValueError, match="3 edges inscribe no polygon"):
        AllowableRegion(site, edges=3)
    assert EDGES == 16


@pytest.mark.parametrize("charging", [0.0, 0.1])
def test_dead_rows_have_no_coefficients(charging: float) -> None:
    found = 0
    for seed in SEEDS:
        rows = AllowableRegion(random_site(seed, charging=charging))
        empty = (np.abs(rows.A) + np.abs(rows.B)).max(axis=1) < 1e-12
        assert (rows.dead == empty).all()
        found += int(empty.sum())
    assert found


def test_beyond_its_size_the_whole_is_refused_and_the_parts_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    site = random_site(4)
    usual = by_device(EqualRanges(site, price=False).step(seen(site)))
    monkeypatch.setattr(module, "DENSE", 100)
    monkeypatch.setattr(module, "SMALL", 100)
    rows = AllowableRegion(site)
    count = len(site.devices)
    with pytest.raises(ValueError, match=rf"'random': {len(rows)} rows of {count} devices are more than 100"):
        _ = rows.A
    assert rows.part(np.arange(3))[0].shape == (3, count)
    assert by_device(EqualRanges(site, price=False).step(seen(site))) == usual


def test_regulators_move_W_alone() -> None:
    """W against the same network with another source, and with the bank as a load."""
    site = random_site(2)
    n = len(site.network.buses)
    bank = CapacitorBank(name="c", bus=site.network.buses[-1], q_mvar=0.1, steps=4)
    tap = TapChanger(name="t", step=0.0125, lowest=-8, highest=8)
    with_both = replace(site, regulators={"c": bank, "t": tap})
    plain = AllowableRegion(site)
    rows = AllowableRegion(with_both)
    p, q = plain.background({})
    moved = rows.W(p, q, {"c": 3, "t": -2})
    higher = replace(site.network, v2_slack=1 / (1 - 0.025) ** 2)
    extra = np.zeros(n)
    extra[-1] = 0.3
    expected = AllowableRegion(replace(site, network=higher)).W(p, q + extra)
    np.testing.assert_allclose(moved, expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(rows.W(p, q), plain.W(p, q))
    np.testing.assert_array_equal(rows.A, plain.A)
    assert not np.allclose(moved, plain.W(p, q))


def test_T12_a_row_that_no_device_reaches_is_a_typed_error() -> None:
    site = random_site(2)
    rows = AllowableRegion(replace(site, devices={"d": replace(next(iter(site.devices.values())), bus="0")}))  # type: ignore[type-var]
    assert rows.dead.all()
    heavy = {load.name: load.p_mw * 20 for load in site.loads.values()}
    with pytest.raises(
        Infeasible, match=r"the background load alone exceeds it by .* no device can influence"
    ):
        rows.W(*rows.background(heavy))
