"""P-SE: operating envelopes of active power that are softly equal.

The sum of the ranges counts, less the squared differences between ranges per weight.

Source: seed 004, appendix, models (A11) (export) and (A12) (import). Implements (A11a)-(A11c) and
(A12a)-(A12c), stated for Clarabel as quadratic programs.

| symbol   | here             | meaning                                                        | unit |
|----------|------------------|----------------------------------------------------------------|------|
| P^U, P^L | `x`              | export limit; import limit without its sign                    | MW   |
| gamma    | `gamma`          | weight of each device over the greatest weight                 | 1    |
| sigma    | `sigma_per_mw`   | what a difference costs: 1/MW is hidden in the source          | 1/MW |
| L        | `between`        | sum of squared differences, z'Lz with z = x / gamma            | 1    |
| A        | `U`              | rows that limit the direction, scaled                          | 1    |
| W        | `room`           | room in them                                                   | MW   |

Two forms of evenness:

    chain    sigma     sum_{i<N} (z_i - z_{i+1})^2        as printed: depends on the order of the devices
    pairs    sigma / N sum_{i<j} (z_i - z_j)^2            as often as the variance: does not

Where this differs from the source: sigma is explicit with its unit, so that kW and MW give the same
envelopes; weights are divided by the greatest, so that only their ratios matter. Rows are the worst corner
of the box, as in P-E. The import limits are negative numbers outside this file.

The answer is unique, so there is no tie to break: two answers would have the same differences (the squares
are strictly convex in them), so they would differ by a multiple of gamma, of which the sum of ranges
grows. That needs sigma > 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import ClassVar, Literal

import numpy as np

from controllers.contract import SolverFailed
from controllers.envelopes.packing import Array, prices, reached
from controllers.envelopes.ranges import Bools, Program, RangeMethod
from controllers.solve import Conic

FAR = 1e3
"""Ratio of the ranges to those expected above which the problem is scaled anew, by another compilation."""

NEAR = 1e-4
"""Room, in parts of the greatest range, that a full row may have left after the solver."""

EXACT = 1e-9
"""The same in truth."""

ROUNDS = 20
"""Greatest number of sets of full rows that are tried."""


@dataclass
class SoftlyEqualRanges(RangeMethod):
    """P-SE: the greatest sum of ranges less what their differences cost.

    Between `GreatestRanges` (sigma to 0) and `EqualRanges` (sigma without bound). In the linear model and
    at Q = 0 every device may use its range whatever the others do.

    Args:
        sigma_per_mw: cost of a squared difference of one MW, for the device of greatest weight.
        form: `chain` compares neighbours in the order of the scenario, as printed; `pairs` compares all.
        others: see `EnvelopeMethod`.

    Raises:
        ValueError: `sigma_per_mw` is not above 0, no such form, no devices, a weight that is not positive, or
            a device that cannot hold Q = 0.
        Infeasible: (step) the background load alone breaks a limit.
        SolverFailed: (step) the solver had no answer.
    """

    acronym: ClassVar[str] = "P-SE"
    loose: ClassVar[str] = "evenness with the others"
    sources: ClassVar[tuple[str, ...]] = (
        "P-SE, softly equal active-power ranges: Equitable Active-Reactive Power Envelopes for Distributed "
        "Energy Resources in Power Distribution Systems, appendix, models (A11) and (A12)",
    )

    sigma_per_mw: float = 1.0
    form: Literal["chain", "pairs"] = "chain"

    def __post_init__(self) -> None:
        if not 0 < self.sigma_per_mw < inf:
            raise ValueError(
                f"P-SE: sigma_per_mw {self.sigma_per_mw:g} must be above 0; without it take GreatestRanges"
            )
        if self.form not in ("chain", "pairs"):
            raise ValueError(f"P-SE: form {self.form!r} is neither 'chain' nor 'pairs'")
        super().__post_init__()

    def program(self, U: Array, gamma: Array, free: Bools) -> Program:
        # Who has nothing still counts as somebody to be even with: its z is 0.
        cost = self.sigma_per_mw * between(len(gamma), self.form)[np.ix_(free, free)]
        about_mw = max(device.rating_mw for device in self.site.devices.values())
        return SoftlyEqualProgram(U, gamma[free] / gamma.max(), cost, about_mw).best


def between(n: int, form: Literal["chain", "pairs"]) -> Array:
    """(n, n) matrix L of the squared differences of z (n,): `z'Lz` is the sum of the form, without sigma."""
    if form == "pairs":
        return np.asarray(np.eye(n) - 1 / n)
    step = np.diff(np.eye(n), axis=0)
    return np.asarray(step.T @ step)


class SoftlyEqualProgram:
    """One of the programs, compiled once in z = x / gamma: the room is its only parameter.

    Args:
        U: (rows, n), not negative, a positive entry in each row and column.
        gamma: (n,) weights over the greatest weight.
        cost: (n, n) of the differences, z'(cost)z [1/MW].
        about_mw: order of the ranges, for the solver's accuracy alone.
    """

    def __init__(self, U: Array, gamma: Array, cost: Array, about_mw: float) -> None:
        self._gamma, self._cost, self._about = gamma, cost, about_mw
        self._size = (U * gamma).max(axis=1)
        self._U = U * gamma / self._size[:, None]
        self._compiled = self._compile(about_mw)

    def _compile(self, about_mw: float) -> Conic:
        rows, n = self._U.shape
        return Conic(
            2 * about_mw * self._cost,
            -self._gamma,  # (A11a) (A12a), with the squared differences above
            np.vstack(
                [
                    self._U,  # (A11b) (A12b)
                    -np.eye(n),  # (A11c) (A12c)
                ]
            ),
            np.concatenate([np.ones(rows), np.zeros(n)]),
            [("nonnegative", rows + n)],
        )

    def best(self, room: Array) -> Array:
        """(n,) ranges [MW] for the room (rows,) of each row, positive.

        Raises:
            SolverFailed: Clarabel had no answer.
        """
        alone, reach = reached(self._U, room / self._size)
        scale, n = float(alone.max()), len(alone)
        # With z = scale y: scale gamma'y - scale^2 y'(cost)y, times about / scale^2; so nothing has a unit.
        b = np.concatenate([reach / scale, np.zeros(n)])
        expected = 1 / FAR <= scale / self._about <= FAR
        for about in (self._about if expected else scale, scale / FAR, scale / FAR**2):
            conic = self._compiled if about == self._about else self._compile(about)
            try:
                y = conic.minimize(q=-self._gamma * about / scale, b=b)
                break
            except SolverFailed as error:  # costs and gains too far apart: see the costs smaller
                last = error
        else:
            raise last
        G = np.vstack([self._U, -np.eye(n)])
        return sharpened(y, G, b, self._gamma, scale * self._cost) * scale * self._gamma


def sharpened(x: Array, G: Array, b: Array, c: Array, H: Array) -> Array:
    """The x of the greatest c'x - x'Hx with G x <= b to the last digits, from one with some four of them.

    The rows that x fills are taken as equations, with the gradient c - 2 H x = G'mu; a row of negative mu
    leaves, a row that is exceeded joins. If that does not end, x stays as it is.
    """
    n = len(x)
    rows = np.flatnonzero(b - G @ x <= NEAR)
    rows = rows[prices(G[rows], c - 2 * H @ x) > 0]
    for _ in range(ROUNDS):
        k = len(rows)
        system = np.block([[2 * H, G[rows].T], [G[rows], np.zeros((k, k))]])
        right = np.concatenate([c, b[rows]])
        try:
            answer = np.linalg.solve(system, right)
        except np.linalg.LinAlgError:  # rows that depend on each other, or none
            return x
        y, mu = answer[:n], answer[n:]
        over = G @ y - b
        if np.abs(system @ answer - right).max() > EXACT * (1 + np.abs(answer).max()):
            return x
        if mu.min(initial=0.0) < -EXACT:
            rows = np.delete(rows, mu.argmin())
        elif over.max() > EXACT:
            rows = np.append(rows, over.argmax())
        else:
            return np.asarray(y)
    return x
