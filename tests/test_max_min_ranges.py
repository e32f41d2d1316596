"""Max-min: progressive filling against a sequence of linear programs, the bottleneck rule and hand sums."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controllers import DeviceState, PvInverter, Region, Site, solve
from controllers.devices import FlexibleLoad, Generator, WindTurbine, still
from controllers.envelopes.equal_ranges import EqualRanges
from controllers.envelopes.max_min_ranges import MaxMinRanges, filled
from controllers.envelopes.ranges import at_zero, capacities
from tests.envelope_cases import random_tree
from tests.range_cases import Array, check_safe, check_table, feeders, found, meshed, trees


def lexicographic(U: Array, room: Array, gamma: Array) -> Array:
    """The same by linear programs: raise the least level of all that are not settled; settle whoever cannot
    be higher than that level alone; repeat."""
    n = len(gamma)
    level = np.full(n, np.nan)
    while np.isnan(level).any():
        settled = ~np.isnan(level)
        low = np.where(settled, np.nan_to_num(level) * gamma, 0.0)
        high = np.where(settled, low, np.inf)
        # x, then the least level t: gamma_i t <= x_i
        floor = np.hstack([-np.eye(n), gamma[:, None]])[~settled]
        A = np.vstack([np.hstack([U, np.zeros((len(U), 1))]), floor])
        b = np.concatenate([room, np.zeros(len(floor))])
        t = solve.linear(np.eye(n + 1)[n], A, b, np.append(low, 0.0), np.append(high, np.inf))[n]
        at_least = np.where(settled, low, t * gamma)
        for i in np.flatnonzero(~settled):
            top = solve.linear(np.eye(n)[i], U, room + 1e-12, at_least * (1 - 1e-9), high * (1 + 1e-9))[i]
            if top <= t * gamma[i] * (1 + 1e-6) + 1e-9:
                level[i] = t
    return level * gamma


def random_packing(rng: np.random.Generator) -> tuple[Array, Array, Array]:
    n = int(rng.integers(1, 6))
    U = rng.uniform(0.1, 1, (int(rng.integers(1, 9)), n)) * (rng.random((1, n)) < 2)
    U *= rng.random(U.shape) < 0.6
    U = np.vstack([U, np.eye(n)])
    return U, rng.uniform(0.1, 3, len(U)), rng.uniform(0.2, 3, n)


@pytest.mark.parametrize("seed", range(25))
def test_it_is_the_sequence_of_linear_programs(seed: int) -> None:
    U, room, gamma = random_packing(np.random.default_rng(seed))
    assert filled(U, room, gamma) == pytest.approx(lexicographic(U, room, gamma), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("site", [*feeders(), *trees(4)], ids=lambda site: site.name)
def test_it_is_so_on_feeders(site: Site) -> None:
    answer = found(MaxMinRanges(site))
    for k in (0, 1):
        U, x = answer.way(k)
        limited = U.max(axis=0) > 0
        U, W = U[:, limited], answer.room.W
        size = U.max(axis=1)
        rows = size > 1e-12
        theirs = lexicographic(U[rows] / size[rows, None], W[rows] / size[rows], answer.gamma[limited])
        assert x[limited] == pytest.approx(theirs, rel=1e-5, abs=1e-7)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=150, deadline=None)
def test_everybody_has_a_bottleneck(seed: int) -> None:
    """Sufficient and necessary: a full row in which nobody has more for its weight."""
    U, room, gamma = random_packing(np.random.default_rng(seed))
    x = filled(U, room, gamma)
    left = room - U @ x
    assert (left >= -1e-12).all()
    level = x / gamma
    for i in range(len(x)):
        rows = np.flatnonzero((U[:, i] > 0) & (left <= 1e-9))
        assert any(level[i] >= level[U[row] > 0].max() * (1 - 1e-9) for row in rows)


def test_two_lines_by_hand() -> None:
    """Three devices behind 6 MW, the third also behind 1 MW: it stops at 1, the others share 5."""
    U = np.array([[1.0, 1.0, 1.0], [0.0, 0.0, 1.0]])
    assert filled(U, np.array([6.0, 1.0]), np.ones(3)) == pytest.approx([2.5, 2.5, 1.0])
    assert filled(U, np.array([6.0, 1.0]), np.array([1.0, 4.0, 1.0])) == pytest.approx([1, 4, 1])
    assert filled(U, np.array([6.0, 0.0]), np.array([1.0, 3.0, 1.0])) == pytest.approx([1.5, 4.5, 0])
    assert filled(U, np.zeros(2), np.ones(3)).tolist() == [0, 0, 0]


def test_the_totals_of_the_33_bus_feeder() -> None:
    """Freed room raises the exports of S1 by a tenth; in S3 a voltage row that binds touches everybody."""
    check_table(EqualRanges)
    equal, fair = ([found(cls(site)) for site in feeders()] for cls in (EqualRanges, MaxMinRanges))
    assert fair[0].high.sum() == pytest.approx(12.03, abs=5e-3)
    assert fair[0].high.sum() / equal[0].high.sum() == pytest.approx(1.109, abs=1e-3)
    assert fair[2].high == pytest.approx(equal[2].high)


@pytest.mark.parametrize("site", [*feeders(), *trees(12)], ids=lambda site: site.name)
def test_nobody_has_less_than_with_equal_ranges(site: Site) -> None:
    fair, equal = found(MaxMinRanges(site)), found(EqualRanges(site))
    for k in (0, 1):
        U, x = fair.way(k)
        limited = U.max(axis=0) > 0
        assert (x >= equal.way(k)[1] * (1 - 1e-9))[limited].all()
        levels = (x / fair.gamma)[limited]
        assert levels.min() == pytest.approx((equal.way(k)[1] / equal.gamma)[limited].min())


@pytest.mark.parametrize("caps", [False, True])
@pytest.mark.parametrize("site", [*trees(8), *meshed(12)], ids=lambda site: site.name)
def test_every_device_may_use_its_range_whatever_the_others_do(site: Site, caps: bool) -> None:
    check_safe(found(MaxMinRanges(site, caps=caps)))


# Capability


def with_inverters(site: Site) -> Site:
    """Every second device an inverter without storage, of half the rating."""
    changed = {
        name: PvInverter(
            name=name,
            bus=d.bus,
            p_mw=d.rating_mw / 2,
            s_mva=d.rating_mw / 2,
            weight=d.weight,
            default=still(),
        )
        for name, d in list(site.devices.items())[::2]
    }
    return replace(site, devices={n: changed.get(n, d) for n, d in site.devices.items()})


def test_what_a_device_cannot_use_others_get() -> None:
    more = 0
    for site in (*feeders(), *trees(8)):
        mixed = with_inverters(site)
        own = capacities(mixed.devices.values())
        free, capped = found(MaxMinRanges(mixed)), found(MaxMinRanges(mixed, caps=True))
        for k in (0, 1):
            U, x = capped.way(k)
            assert (x <= own[k] + 1e-12).all()
            assert (x[::2] == 0).all() or k == 0  # an inverter imports nothing
            # whoever is below its own rating has a full row
            left = capped.room.W - U @ x
            for i in np.flatnonzero(x < own[k] - 1e-9):
                assert (left[U[:, i] > 0] <= 1e-9).any()
            below = x < own[k] - 1e-9
            if below.any():
                assert (x[below] >= free.way(k)[1][below] * (1 - 1e-9)).all()
                more += bool((x[below] > free.way(k)[1][below] * 1.01).any())
    assert more > 3


def test_whose_own_rating_it_is_is_said() -> None:
    texts = [
        text
        for site in (*feeders(), *trees(8))
        for text in found(MaxMinRanges(with_inverters(site), caps=True)).binding[::2]
    ]
    assert None in texts  # both ways
    said = [text for text in texts if text is not None]
    assert said
    assert all(text.endswith(", import by its own rating") for text in said)


def test_capacities_are_those_of_the_ratings() -> None:
    rest = {"bus": "1", "weight": 1.0, "default": still()}
    devices = [
        *feeders()[0].devices.values(),
        PvInverter(name="pv", p_mw=0.7, s_mva=0.5, **rest),  # type: ignore[arg-type]
        WindTurbine(name="wind", p_mw=2.0, power_factor=0.9, **rest),  # type: ignore[arg-type]
        FlexibleLoad(name="load", p_mw=0.4, firm_mw=0.1, power_factor=1.0, **rest),  # type: ignore[arg-type]
        Generator(
            name="engine", p_mw=1.5, p_min_mw=0.3, s_mva=1.6, ramp_mw_per_min=0.01, **rest  # type: ignore[arg-type]
        ),
    ]  # fmt: skip
    export, imports = capacities(devices)
    rated = [1.2, 0.6, 0.4, 1.0, 1.6, 0.8]
    assert export == pytest.approx([*rated, 0.5, 2.0, 0.0, 1.5])
    assert imports == pytest.approx([*rated, 0.0, 0.0, 0.4, 0.0])
    empty = devices[0].limits(DeviceState(e_mwh=0.0), 1.0, 300.0)  # the state of the moment is another matter
    assert at_zero(empty) == pytest.approx((-1.2, 0.0))


def test_a_region_that_does_not_reach_zero_reactive_power() -> None:
    assert at_zero(Region.box(q_mvar=(0.1, 0.2), p_mw=(-1, 1))) is None
    assert at_zero(Region.box(q_mvar=(-0.1, 0.2), p_mw=(-1, 2))) == (-1, 2)
    tilted = Region(("p_mw", "q_mvar"), np.array([[1.0, -1.0], [-1.0, 1.0]]), np.array([-1.0, -1.0]))
    assert at_zero(tilted) is None


def test_a_thousand_buses() -> None:
    answer = found(MaxMinRanges(random_tree(3, 1000, 100)))
    for k in (0, 1):
        U, x = answer.way(k)
        left = answer.room.W - U @ x
        assert (left >= -1e-9).all()
        level, full = x / answer.gamma, left <= 1e-9 * (1 + answer.room.W)
        for i in range(len(x)):
            rows = np.flatnonzero(full & (U[:, i] > 0))
            assert any(level[i] >= level[U[row] > 0].max() * (1 - 1e-6) for row in rows)
