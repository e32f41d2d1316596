"""What a microgrid says of points: B3, cuts and tents are valid and tight; B4, (13a) and its dual; B8,
(14)."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy.optimize import linprog

from controllers import Infeasible
from controllers.partnership.commitment import Commitment, commitment
from controllers.partnership.coupling import Cut, Point, Tent, axes
from controllers.partnership.offers import best_at
from controllers.partnership.program import Program
from controllers.partnership.restoration import POOL, ROOM, augment, pattern, restore, settle
from controllers.partnership.subproblem import Printed, fixed, lifted, limits, priced, relaxed
from tests.partnership_cases import BASE_PRICE, PRICE, SEED, random_microgrid, seed
from tests.partnership_norms import NormCut, restore_both_sides
from tests.partnership_points import Kept, kept, kept_with, nearest, patterns, whole, with_pattern

Array = np.ndarray
WEIGHT = 1.3 * BASE_PRICE
VALID = 1e-7
"""By how much [$] a point that can be kept may break a cut, from the sample's own rounding."""


@cache
def made(case: int | str) -> Commitment:
    """Of the seed by bus ("seed 58"), else random with 1 to 4 intervals."""
    if isinstance(case, str):
        return seed(int(case.split()[1]))
    return random_microgrid(np.random.default_rng(case), 1 + case % 4)


@cache
def sample_of(case: int | str) -> list[Kept]:
    """200 points that the microgrid can keep, most of them extreme."""
    found = kept(made(case).block, np.random.default_rng(11), 200)
    assert sum(one.is_least for one in found) >= 90
    assert len({one.bits.tobytes() for one in found}) > 1
    return found


CASES: tuple[int | str, ...] = (*range(8), *(f"seed {bus}" for bus in SEED))


def asked(program: Program, rng: np.random.Generator, sample: list[Kept]) -> list[Point]:
    """Points that can be kept but for their cost, that cannot be kept, at corners, and far away; with
    bits."""
    T, K = program.T, program.K
    p, q = limits(program)
    found = []
    for k in range(8):
        match k % 4:
            case 0:
                x = np.concatenate([rng.uniform(*p.T), rng.uniform(*q.T)])
            case 1:
                x = np.concatenate([side[np.arange(T), rng.integers(0, 2, T)] for side in (p, q)])
            case 2:
                x = sample[int(rng.integers(len(sample)))].x
            case _:
                x = sample[int(rng.integers(len(sample)))].x + rng.normal(0, 0.05, 2 * T)
        cost = float(rng.choice([-50.0, 0.0, sample[k].cost, 300.0]))
        bits = rng.random(K) if k % 2 else rng.integers(0, 2, K).astype(float)
        found.append(Point(x[:T], x[T:], cost, bits))
    return found


def broken_by(cut: Cut, x: Array, cost: float, bits: Array) -> float:
    """[$]"""
    point = np.concatenate([x, [cost], bits])[: len(cut.region.axes)]
    return cut.scale * cut.region.excess(point)


def holds(cut: Cut | None, sample: list[Kept]) -> None:
    if cut is not None:
        worst = max(broken_by(cut, one.x, one.cost, one.bits) for one in sample)
        assert worst <= VALID, f"a point that can be kept is cut off by {worst} $"


@pytest.mark.parametrize("case", CASES)
def test_B3_every_cut_is_valid_and_as_much_broken_as_it_says(case: int | str) -> None:
    here = made(case)
    program = Program(here)
    rng, sample = np.random.default_rng(11), sample_of(case)
    printed, strict = Printed(program), 0
    for point in asked(program, rng, sample):
        own = pattern(program, POOL[int(rng.integers(len(POOL)))], point, WEIGHT)
        of_own = kept_with(here.block, own, rng, 25)
        for found, valid_for in (
            (relaxed(program, point, WEIGHT), sample),
            (printed.separate(point), sample),
            (lifted(program, point, WEIGHT), sample),
            (fixed(program, point, WEIGHT, own), of_own),
        ):
            F = found.proof.value
            assert found.proof.bound <= F + 1e-9
            if found.cut is None:
                assert pytest.approx(0.0, abs=1e-9) == F
                continue
            strict += F > 1e-6
            assert found.cut.value == pytest.approx(F, abs=1e-8)
            assert found.cut.region.A[0][2 * program.T] <= 0.0, "theta may always be more"
            assert point.bits is not None
            x = np.concatenate([point.p, point.q])
            assert broken_by(found.cut, x, point.cost, point.bits) == pytest.approx(F, abs=1e-8)
            holds(found.cut, valid_for)
        price = rng.normal(0, 150, 2 * program.T)
        holds(priced(program, price[: program.T], price[program.T :]), sample)
    assert strict >= 10


@pytest.mark.parametrize("case", CASES)
def test_B3_tents_and_norms_are_valid_and_as_high_as_they_say(case: int | str) -> None:
    here = made(case)
    program = Program(here)
    rng, sample = np.random.default_rng(12), sample_of(case)
    for point in asked(program, rng, sample)[:4]:
        one_sided, augmented = restore(program, point, WEIGHT), augment(program, point, WEIGHT)
        norm = restore_both_sides(program, point, WEIGHT)
        for one in sample:
            for tent in (one_sided.tent, augmented.tent):
                assert one.cost >= height(tent, one.x) - VALID
            assert far(norm, one.x, one.cost) >= norm.value - VALID
        assert (augmented.tent.weight <= WEIGHT + 1e-9).all()
        assert not one_sided.tent.slope.any()
        assert norm.value >= one_sided.tent.value - point.cost - VALID


def height(tent: Tent, x: Array) -> float:
    d = x - tent.centre
    return float(tent.value + tent.slope @ d - tent.weight @ np.abs(d))


def far(norm: NormCut, x: Array, cost: float) -> float:
    return float(norm.weight @ np.abs(np.append(x, cost) - norm.centre))


@pytest.mark.parametrize("case", CASES)
def test_B4_the_printed_primal_is_its_dual(case: int | str) -> None:
    """(13a) as printed: max (e' - B'x')mu + 1 omega, 0 <= mu <= 1, C'mu = 0, D'mu + omega <= 0, omega <=
    0."""
    here = made(case)
    program = Program(here)
    block, printed = here.block, Printed(program)
    T, n, K = program.T, len(block.cost_y), program.K
    rng = np.random.default_rng(13)
    for point in asked(program, rng, sample_of(case)):
        # Every row as one or two rows C y + D z >= e.
        C = np.vstack([block.P_y.toarray(), block.Q_y.toarray(), block.cost_y, block.A.toarray(), np.eye(n)])
        D = np.vstack([np.zeros((2 * T, K)), block.cost_z, block.D.toarray(), np.zeros((n, K))])
        exchange = np.concatenate([point.p - block.P_0, point.q - block.Q_0])
        low = np.concatenate([exchange, [-np.inf], block.low, block.y_low])
        high = np.concatenate([exchange, [point.cost], block.high, block.y_high])
        above, below = np.isfinite(low), np.isfinite(high)
        C, D = np.vstack([C[above], -C[below]]), np.vstack([D[above], -D[below]])
        e = np.concatenate([low[above], -high[below]])
        dual = linprog(
            -np.concatenate([e, np.ones(K)]),
            A_ub=np.hstack([D.T, np.eye(K)]),
            b_ub=np.zeros(K),
            A_eq=np.hstack([C.T, np.zeros((n, K))]),
            b_eq=np.zeros(n),
            bounds=[(0.0, 1.0)] * len(e) + [(None, 0.0)] * K,
            method="highs-ipm",
        )
        found = printed.separate(point)
        assert dual.status == 0, dual.message
        assert found.proof.value == pytest.approx(-dual.fun, abs=1e-7)
        # Our multipliers in the dual's own terms: feasible, and of the same value.
        mu = found.proof.multipliers
        split = np.concatenate([np.maximum(mu, 0.0)[above], np.maximum(-mu, 0.0)[below]])
        assert split.min() >= 0.0
        assert split.max() <= 1.0
        assert (np.maximum(mu, 0.0)[~above] == 0.0).all()
        assert (np.maximum(-mu, 0.0)[~below] == 0.0).all()
        assert np.abs(C.T @ split).max() < 1e-9
        omega = np.minimum(0.0, -(D.T @ split))
        assert e @ split + omega.sum() == pytest.approx(-dual.fun, abs=1e-7)


@pytest.mark.parametrize("case", CASES)
def test_B4_slack_in_the_coupling_alone(case: int | str) -> None:
    here = made(case)
    program = Program(here)
    rng = np.random.default_rng(14)
    for point in asked(program, rng, sample_of(case)):
        found = relaxed(program, point, WEIGHT)
        proof, mu = found.proof, found.proof.multipliers
        assert proof.bound == pytest.approx(proof.value, abs=1e-8)
        assert np.abs(mu[: 2 * program.T]).max() <= WEIGHT
        assert -1.0 <= mu[2 * program.T] <= 0.0
        # F is 0 if and only if the relaxation keeps the point: asked without any slack.
        exact = program.question(point.p, point.q)
        exact.high[program.deviation] = 0.0
        exact.row_high[program.cost] = point.cost
        try:
            program.least(exact)
            assert proof.value < 1e-6
        except Infeasible:
            assert proof.value > 1e-9


@pytest.mark.parametrize("case", [0, 1, 4, 5, "seed 58", "seed 104"])
def test_a_lifted_point_is_kept_if_and_only_if_its_pattern_keeps_it(case: int | str) -> None:
    here = made(case)
    program, block, T = Program(here), here.block, here.block.intervals
    rng, count = np.random.default_rng(19), 0
    none = np.zeros(2 * T)
    for one in sample_of(case)[:24]:
        x = 0.999 * one.x + 0.001 * kept_with(block, one.bits, rng, 1)[0].x  # off its corner
        at = with_pattern(block, one.bits, none, x=x)
        if at is None:
            continue
        count += 1
        enough, short = (Point(x[:T], x[T:], at[0] + more, one.bits) for more in (1e-6, -1e-3))
        assert lifted(program, enough, WEIGHT).proof.value == pytest.approx(0.0, abs=1e-7)
        assert 1e-6 < lifted(program, short, WEIGHT).proof.value <= 1e-3 + 1e-9
        other = rng.integers(0, 2, program.K).astype(float)
        dear = with_pattern(block, other, none, x=x)
        told = lifted(program, replace(enough, bits=other), WEIGHT).proof.value
        assert (told < 1e-7) == (dear is not None and dear[0] <= at[0] + 1e-6)
    assert count >= 12


@pytest.mark.parametrize("case", [0, 3, 6, "seed 7"])
def test_a_lifted_cut_holds_between_whole_bits_too(case: int | str) -> None:
    """F is convex in (p, q, theta, z): no cut made at one point exceeds F at another, bits whole or not."""
    program = Program(made(case))
    points = asked(program, np.random.default_rng(20), sample_of(case))
    F = [lifted(program, point, WEIGHT) for point in points]
    for one in F:
        for point, there in zip(points, F, strict=True):
            if one.cut is not None and point.bits is not None:
                x = np.concatenate([point.p, point.q])
                assert broken_by(one.cut, x, point.cost, point.bits) <= there.proof.value + 1e-7


@pytest.mark.parametrize("case", [0, 1, 2, 3, 4, 5, 6, 7])
def test_B8_restoration_against_every_pattern(case: int) -> None:
    here = made(case)
    program = Program(here)
    block, rng = here.block, np.random.default_rng(15)
    assert program.K <= 8
    for point in asked(program, rng, sample_of(case))[: 4 if program.K <= 4 else 2]:
        x = np.concatenate([point.p, point.q])
        none = np.zeros(len(x))
        found = restore(program, point, WEIGHT)
        value = nearest(block, x, WEIGHT, none)[0]
        assert found.tent.value == pytest.approx(value, rel=1e-8, abs=1e-7)
        # Of patterns that are as good either may be found.
        with_these = nearest(block, x, WEIGHT, none, only=found.bits)[0]
        assert with_these == pytest.approx(value, rel=1e-8, abs=1e-7)
        norm = restore_both_sides(program, point, WEIGHT)
        assert norm.value == pytest.approx(nearest(block, x, WEIGHT, none, point.cost)[0], rel=1e-8, abs=1e-7)
        wide = augment(program, point, WEIGHT)
        weight = float(wide.tent.weight[0])
        assert wide.tent.value == pytest.approx(nearest(block, x, weight, wide.tent.slope)[0], abs=1e-6)
        # As tight as with the full weight, and with a little less no more.
        tight = nearest(block, x, WEIGHT, wide.tent.slope)[0]
        assert wide.tent.value == pytest.approx(tight, rel=2e-7, abs=2e-7)
        if weight > 1e-3:
            assert nearest(block, x, 0.99 * weight, wide.tent.slope)[0] < tight - 1e-7


def test_augmented_tents_are_wider() -> None:
    """At points that are kept, where a weight less than the given one is as tight."""
    here = seed(7)
    program = Program(here)
    widths = []
    for one in sample_of("seed 7")[:12]:
        if one.is_least:
            point = Point(one.x[:6], one.x[6:], 0.0)
            found = augment(program, point, 1e3)
            widths.append(float(found.tent.weight[0]))
            # The full weight keeps the point itself, which costs its least cost.
            assert found.tent.value == pytest.approx(one.cost, rel=1e-6, abs=1e-5)
    assert min(widths) < 500


@pytest.mark.parametrize("case", [*range(8), "seed 50"])
def test_patterns_of_the_pool_can_be_operated(case: int | str) -> None:
    here = made(case)
    program, block = Program(here), here.block
    rng = np.random.default_rng(17)
    for point in asked(program, rng, sample_of(case))[:3]:
        for kind in POOL:
            bits = pattern(program, kind, point, WEIGHT)
            assert set(bits.tolist()) <= {0.0, 1.0}
            assert with_pattern(block, bits, np.zeros(2 * program.T)) is not None
    if block.bits <= 4:
        for kind, target in (("on", 1.0), ("off", 0.0)):
            able = [b for b in patterns(block) if with_pattern(block, b, np.zeros(2 * program.T)) is not None]
            found = pattern(program, kind, point, WEIGHT)
            fewest = min(np.abs(b - target).sum() for b in able)
            assert np.abs(found - target).sum() == fewest


@pytest.mark.parametrize("case", [*range(8), "seed 96"])
def test_settlement_keeps_what_was_agreed_at_its_least_cost(case: int | str) -> None:
    here = made(case)
    program = Program(here)
    block, T = here.block, program.T
    for one in sample_of(case)[:30]:
        point = Point(one.x[:T], one.x[T:], 0.0)
        found = settle(program, point, one.bits)
        assert found.off_by < 1e-7
        assert found.cost <= one.cost + 1e-5
        at = with_pattern(block, one.bits, np.zeros(2 * T), x=np.concatenate([found.p, found.q]))
        if at is not None:
            assert found.cost == pytest.approx(at[0], abs=1e-5)
        best = settle(program, point)
        assert best.off_by < 1e-7
        assert best.cost <= found.cost + 1e-5
        if one.is_least:
            assert best.cost == pytest.approx(one.cost, abs=1e-4)


def test_a_point_that_is_kept_needs_no_cut_and_one_that_is_not_says_why() -> None:
    here = seed(58)
    program, T = Program(here), 6
    one = whole(here.block, np.tile(BASE_PRICE * PRICE, 2))
    kept_easily = Point(one.x[:T], one.x[T:], one.cost + 5.0)
    found = relaxed(program, kept_easily, WEIGHT)
    assert found.proof.value == pytest.approx(0.0, abs=1e-9)
    assert found.cut is None or found.cut.value < 1e-9
    for wrong, why in (
        (Point(np.zeros(5), np.zeros(6), 0.0), "needed are 6"),
        (Point(np.zeros(6), np.full(6, np.nan), 0.0), "finite"),
        (Point(np.zeros(6), np.zeros(6), np.inf), "its cost is inf"),
    ):
        with pytest.raises(ValueError, match=why):
            relaxed(program, wrong, WEIGHT)
    with pytest.raises(ValueError, match="above zero"):
        relaxed(program, kept_easily, 0.0)
    with pytest.raises(ValueError, match="it has no bits"):
        lifted(program, kept_easily, WEIGHT)
    with pytest.raises(ValueError, match="needed are 6 finite numbers"):
        fixed(program, kept_easily, WEIGHT, np.ones(5))
    with pytest.raises(ValueError, match="pattern 'best' does not exist"):
        pattern(program, "best", kept_easily, WEIGHT)
    assert axes(6, 6)[12] == "cost"


def test_a_pattern_without_an_operation_is_infeasible_not_a_cut() -> None:
    """An engine at 0.15 MW that comes down by 0.08 MW an interval cannot be off in the first."""
    here = random_microgrid(np.random.default_rng(3), 3)
    engine = here.fleet.engines[0]
    most = engine.capability.vertices()[:, 0].max()
    slow = replace(engine, ramp_mw=0.4 * most, can_stop=True)
    units = replace(here.fleet, engines=(slow, *here.fleet.engines[1:]))
    outlook = replace(here.outlook, p_mw={**here.outlook.p_mw, slow.name: most})
    program = Program(commitment(units, outlook))
    nothing = Point(np.zeros(3), np.zeros(3), 0.0)
    with pytest.raises(Infeasible, match="no operation with such bits"):
        fixed(program, nothing, WEIGHT, np.zeros(program.K))
    off = pattern(program, "off", nothing, WEIGHT)
    assert off[0] == 1.0
    assert off.sum() < program.K


@pytest.mark.parametrize("number", [0, 1, 392])
def test_a_microgrid_can_settle_on_what_it_has_offered(number: int) -> None:
    """Rounding, summed up, must not take the room in which the gentlest of the cheapest is looked for."""
    rng = np.random.default_rng(number)
    program = Program(random_microgrid(rng, int(rng.integers(1, 5))))
    for _ in range(2):
        p_price, q_price = rng.uniform(-20, 160, program.T), rng.normal(0, 10, program.T)
        best = best_at(program, p_price, q_price)
        done = settle(program, Point(best.p, best.q, best.cost), best.bits)
        assert done.off_by <= (2 * program.T + 1) * ROOM
        assert done.cost == pytest.approx(best.cost, rel=1e-6, abs=1e-5)
