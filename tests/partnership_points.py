"""What a microgrid can keep, by brute force: over a block alone, a linear program for each pattern of
bits."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.optimize import LinearConstraint, linprog, milp

from controllers.partnership.block import Block

Array = np.ndarray


@dataclass(frozen=True)
class Kept:
    """A point that can be kept, with its least cost or the least cost with its bits."""

    x: Array
    """(2T,) p, q"""
    cost: float
    bits: Array
    is_least: bool
    """whether no other bits keep it for less"""


def patterns(block: Block) -> list[Array]:
    """All of them, for few bits."""
    return [np.array(bits, dtype=float) for bits in product((0.0, 1.0), repeat=block.bits)]


def rows(block: Block) -> tuple[Array, Array]:
    """(2T, n), (2T,) p and q of y."""
    return np.vstack([block.P_y.toarray(), block.Q_y.toarray()]), np.concatenate([block.P_0, block.Q_0])


def with_pattern(
    block: Block, bits: Array, price: Array, on_cost: float = 1.0, x: Array | None = None
) -> tuple[float, Array] | None:
    """Least on_cost * cost - price.x with given bits, at a given x if there is one; its value and x."""
    X, x_0 = rows(block)
    A, low, high = block.A.toarray(), block.low - block.D @ bits, block.high - block.D @ bits
    upper, lower = np.isfinite(high), np.isfinite(low)
    equal = None if x is None else (X, x - x_0)
    found = linprog(
        on_cost * block.cost_y - price @ X,
        A_ub=np.vstack([A[upper], -A[lower]]),
        b_ub=np.concatenate([high[upper], -low[lower]]),
        A_eq=None if equal is None else equal[0],
        b_eq=None if equal is None else equal[1],
        bounds=np.column_stack([block.y_low, block.y_high]),
        method="highs-ds",
    )
    if found.status == 2:
        return None
    assert found.status == 0, found.message
    constant = on_cost * block.cost_z @ bits - price @ x_0
    return float(found.fun + constant), X @ found.x + x_0


def whole(block: Block, price: Array, on_cost: float = 1.0) -> Kept:
    """The least on_cost * cost - price.x over all bits, by branch and bound; its own cost and bits."""
    X, _ = rows(block)
    n, m = len(block.cost_y), block.bits
    c = np.concatenate([on_cost * block.cost_y - price @ X, on_cost * block.cost_z])
    A = np.hstack([block.A.toarray(), block.D.toarray()])
    found = milp(
        c,
        constraints=LinearConstraint(A, block.low, block.high),
        integrality=np.concatenate([np.zeros(n), np.ones(m)]),
        bounds=(
            np.concatenate([block.y_low, np.zeros(m)]),
            np.concatenate([block.y_high, np.ones(m)]),
        ),
        options={"mip_rel_gap": 1e-10},
    )
    assert found.status == 0, found.message
    bits = np.round(found.x[n:])
    again = with_pattern(block, bits, price, on_cost)
    assert again is not None
    value, x = again
    cost = (value + price @ x) / on_cost if on_cost else np.nan
    return Kept(x, cost, bits, is_least=on_cost > 0)


def kept(block: Block, rng: np.random.Generator, count: int) -> list[Kept]:
    """Extreme points that can be kept: of random prices, slight and great, along axes, and of every pattern
    where there are few; and some between two of the same pattern."""
    size = 2 * block.intervals
    found: list[Kept] = []
    few = patterns(block) if block.bits <= 4 else []
    kinds = 4 if few else 3
    while len(found) < count:
        k = len(found)
        match k % kinds:
            case 0:
                found.append(whole(block, rng.normal(0, 10 ** rng.uniform(0, 3), size)))
            case 1:  # so great a price that x is a corner of what can be kept
                one = whole(block, rng.choice([-1e5, 0.0, 1e5], size) + rng.normal(0, 1, size))
                found.append(one)
            case 2:
                one, two = (found[i] for i in rng.integers(0, len(found), 2))
                share = rng.random()
                if not np.array_equal(one.bits, two.bits):
                    two = one
                x = share * one.x + (1 - share) * two.x
                # A pattern's least cost is convex, so their mean can be kept for the mean of costs.
                found.append(Kept(x, share * one.cost + (1 - share) * two.cost, one.bits, is_least=False))
            case 3:
                bits = few[(k // kinds) % len(few)]
                price = rng.normal(0, 10 ** rng.uniform(0, 3), size)
                at = with_pattern(block, bits, price)
                if at is None:  # no operation has these bits
                    found.append(whole(block, price))
                else:
                    found.append(Kept(at[1], at[0] + float(price @ at[1]), bits, is_least=False))
    return found


def kept_with(block: Block, bits: Array, rng: np.random.Generator, count: int) -> list[Kept]:
    """Extreme points that one pattern of bits can keep, each for its least cost with them."""
    found = []
    for _ in range(count):
        price = rng.normal(0, 10 ** rng.uniform(0, 3), 2 * block.intervals)
        at = with_pattern(block, bits, price)
        assert at is not None
        found.append(Kept(at[1], at[0] + float(price @ at[1]), bits, is_least=False))
    return found


def nearest(
    block: Block,
    x_hat: Array,
    weight: float,
    slope: Array,
    counted: float | None = None,
    only: Array | None = None,
) -> tuple[float, Array]:
    """F~ over all patterns, a linear program each: |x - x-hat| and, where costs are counted, what exceeds
    them are variables of their own. Its value and the best pattern."""
    X, x_0 = rows(block)
    T2 = 2 * block.intervals
    best = np.inf, np.zeros(0)
    for bits in patterns(block) if only is None else [only]:
        A, low, high = block.A.toarray(), block.low - block.D @ bits, block.high - block.D @ bits
        upper, lower = np.isfinite(high), np.isfinite(low)
        sides = np.vstack([A[upper], -A[lower], block.cost_y])
        most = np.concatenate([high[upper], -low[lower], [np.inf if counted is None else counted]])
        most[-1] -= float(block.cost_z @ bits)
        cost = block.cost_y if counted is None else 0 * block.cost_y
        over = np.zeros((len(sides), 1))
        over[-1] = -1.0
        found = linprog(
            np.concatenate([cost, weight - slope, weight + slope, [1.0]]),
            A_ub=np.hstack([sides, np.zeros((len(sides), 2 * T2)), over])[np.isfinite(most)],
            b_ub=most[np.isfinite(most)],
            A_eq=np.hstack([X, -np.eye(T2), np.eye(T2), np.zeros((T2, 1))]),  # x - x-hat = up - down
            b_eq=x_hat - x_0,
            bounds=[*zip(block.y_low, block.y_high, strict=True), *[(0.0, None)] * (2 * T2 + 1)],
            method="highs-ds",
        )
        value = found.fun + (block.cost_z @ bits if counted is None else 0.0) if found.status == 0 else np.inf
        if value < best[0]:
            best = float(value), bits
    assert np.isfinite(best[0])
    return best
