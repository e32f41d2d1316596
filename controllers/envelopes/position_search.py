"""PositionSearch: the best positions of regulators, by trying all, by an integer program, or step by step.

| symbol   | here    | meaning                                                              | unit |
|----------|---------|----------------------------------------------------------------------|------|
| n        | `n`     | positions of the banks, counted from the present ones                | 1    |
| rho      | `rho`   | squared ratio of all taps, less the present one                      | 1    |
| f        | `Forms` | room of a row over what one MW of common range takes of it           | MW   |
| t^U, t^L | `least` | common export and import per unit of weight: the least of their forms | MW   |
| c        | `cost_mw` | cost of one position of one regulator                              | MW   |

    max  sum(gamma) (t^U + t^L) - c sum |n|     subject to  t^U, t^L >= 0 and rows that no device touches >= 0

A form whose least value over the positions left to try is above another's greatest never decides, and is left
out before: that is what makes trying all cheap.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations, product
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from controllers import solve
from controllers.contract import Infeasible
from controllers.envelopes.allowable import ROUNDING

if TYPE_CHECKING:
    from controllers.envelopes.positions import Positions

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

For: TypeAlias = Literal["both", "export", "import"]

CHUNK = 4096
"""Combinations that are evaluated at once."""

EXACT = 1e-9
"""How far [MW] two values may be apart and still be equal."""

ROUNDS = 50
"""How often what is equal is looked through; rounding must not turn it in a circle."""

UNUSABLE = -1e9
"""Added to the value of positions at which the background breaks a limit."""


@dataclass(frozen=True, eq=False)
class Forms:
    """Affine functions of the positions whose least is a range: `start + rho * tap + n @ bank`."""

    start: Array
    """(forms,) with rho and n counted from the present positions"""
    tap: Array
    """(forms,)"""
    bank: Array
    """(banks, forms)"""
    kind: Ints
    """(forms,) 0: of t^U, 1: of t^L, 2: must not be negative"""

    def few(self, keep: npt.NDArray[np.bool_]) -> Forms:
        return Forms(self.start[keep], self.tap[keep], self.bank[:, keep], self.kind[keep])

    def least(self, rho: Array | float, n: Array) -> Array:
        """(3, cases) least form of each kind for cases of rho (cases,) and n (cases, banks)."""
        value = n @ self.bank + self.start + np.multiply.outer(np.asarray(rho), self.tap)
        kinds = (value[:, self.kind == k].min(axis=1, initial=np.inf) for k in range(3))
        return np.stack(list(kinds))

    def span(self, rho: tuple[float, float], low: Array, high: Array) -> tuple[Array, Array]:
        """(forms,) least and greatest value over a box of rho and n."""
        ends = np.stack([rho[0] * self.tap, rho[1] * self.tap])
        steps = np.stack([low[:, None] * self.bank, high[:, None] * self.bank])
        least = self.start + ends.min(axis=0) + steps.min(axis=0).sum(axis=0)
        return least, self.start + ends.max(axis=0) + steps.max(axis=0).sum(axis=0)

    def deciding(self, rho: tuple[float, float], low: Array, high: Array) -> tuple[Forms, Array]:
        """The forms that can be the least of their kind in a box, and a bound (3,) of each kind there."""
        least, most = self.span(rho, low, high)
        bound = np.array([most[self.kind == k].min(initial=np.inf) for k in range(3)])
        return self.few(least <= bound[self.kind] + EXACT), bound


@dataclass(eq=False)
class PositionSearch:
    """One search: W at the present positions, weights, and what counts."""

    all: Positions
    W: Array
    present: Ints
    """(1, regulators)"""
    gamma: Array
    for_: For
    cost_mw: float
    forms: Forms = field(init=False)

    def __post_init__(self) -> None:
        gamma = self.gamma
        use = self.all.rows.use(gamma)[:2]
        counts = use > 1e-12
        if not counts.any(axis=1).all():
            raise Infeasible("no limit of the network bounds the devices' powers; give one a rating")
        up, low = np.flatnonzero(counts[0]), np.flatnonzero(counts[1])
        dead = np.flatnonzero(~counts.any(axis=0))
        row = np.concatenate([up, low, dead])
        # What no device touches only has to hold; its excess is measured in itself.
        take = np.concatenate([use[0, up], use[1, low], np.ones(len(dead))])
        every = self.all
        self.forms = Forms(
            self.W[row] / take,
            every.per_rho[row] / take,
            every.per_step[:, row] / take,
            np.repeat(np.arange(3), [len(up), len(low), len(dead)]),
        )
        self._none = ROUNDING / max(1.0, float(use.max()))
        self._weight = float(gamma.sum()) * np.array(
            [self.for_ in ("both", "export"), self.for_ in ("both", "import")], dtype=float
        )

    def _value(self, least: Array, moved: Array) -> Array:
        """(cases,) what is maximised, of the least forms (3, cases) and the moves."""
        value = self._weight @ least[:2] - self.cost_mw * moved
        worst = least.min(axis=0)
        return np.asarray(np.where(worst >= -self._none, value, UNUSABLE + worst))

    def _moves(self, cases: Ints) -> Array:
        return np.asarray(np.abs(cases - self.present).sum(axis=1), dtype=float)

    def _taps(self) -> tuple[Ints, list[Forms], Array]:
        """Cases (taps, regulators) of all taps with the banks where they are, the forms that can decide at
        each, and what each can give at most; the most promising first."""
        every = self.all
        taps = _grid([every.choices[i] for i in every.tap_columns])
        cases = np.repeat(self.present, len(taps), axis=0)
        cases[:, every.tap_columns] = taps
        ends = np.array([[c[0], c[-1]] for c in every.choices]).reshape(-1, 2).T - self.present
        low, high = ends[:, every.bank_columns].astype(float)
        rho = every.rho(cases) - every.rho(self.present)
        few = [self.forms.deciding((x, x), low, high) for x in rho.tolist()]
        bounds = self._value(np.stack([bound for _, bound in few], axis=1), self._moves(cases))
        order = np.argsort(-bounds, kind="stable")
        return cases[order], [few[i][0] for i in order], bounds[order]

    def enumerate(self) -> tuple[Ints, float]:
        """The best of all positions, and its value."""
        columns = self.all.bank_columns
        banks = _grid([self.all.choices[i] for i in columns])
        n = (banks - self.present[0, columns]).astype(float)
        bank_moves = np.abs(n).sum(axis=1)
        best, found = -np.inf, [(0.0, *self.present[0].tolist())]
        for case, forms, bound in zip(*self._taps(), strict=True):
            if bound < best - EXACT:
                break
            rho = self.all.rho(case[None]) - self.all.rho(self.present)
            for start in range(0, len(banks), CHUNK):
                part = slice(start, start + CHUNK)
                moved = bank_moves[part] + self._moves(case[None])
                value = self._value(forms.least(rho, n[part]), moved)
                most = float(value.max())
                if most < best - EXACT:
                    continue
                if most > best + EXACT:
                    found = []
                best = max(best, most)
                for j in np.flatnonzero(value >= best - EXACT):
                    equal = case.copy()
                    equal[columns] = banks[start + j]
                    found.append((float(moved[j]), *equal.tolist()))
        _, *positions = min(found)
        return np.array(positions, dtype=np.int64), best

    def program(self) -> tuple[Ints, float]:
        """The best by a mixed-integer linear program, and its value: a binary for each tap, an integer for
        each bank; minus infinity where there is none.

        Raises:
            SolverFailed: the solver had no answer.
        """
        columns = self.all.bank_columns
        forms, cases, rho, low, high = self._deciding()
        F, T, C = len(forms.start), len(cases), len(columns)
        taps, steps, made = np.split(np.arange(2, 2 + T + 2 * C), [T, T + C])
        size = 2 + T + 2 * C
        gain, least, most = np.zeros(size), np.zeros(size), np.full(size, np.inf)
        gain[:2], gain[taps], gain[made] = self._weight, -self.cost_mw * self._moves(cases), -self.cost_mw
        most[taps], least[steps], most[steps] = 1.0, low, high
        # The range of each kind is below its forms; exactly one tap; as many moves as steps up or down.
        A, b = np.zeros((F + 2 + 2 * C, size)), np.concatenate([forms.start, [1.0, -1.0], np.zeros(2 * C)])
        rows, one, up, down = np.split(A, [F, F + 2, F + 2 + C])
        for kind in (0, 1):
            rows[forms.kind == kind, kind] = 1.0
        rows[:, taps], rows[:, steps] = -np.multiply.outer(forms.tap, rho), -forms.bank.T
        one[:, taps] = [[1.0], [-1.0]]
        up[:, steps], up[:, made] = np.eye(C), -np.eye(C)
        down[:, steps], down[:, made] = -np.eye(C), -np.eye(C)
        whole = np.zeros(size, dtype=np.bool_)
        whole[taps] = whole[steps] = True
        try:
            x = solve.integer(gain, A, b, least, most, whole)
        except Infeasible:
            return self.present[0], -np.inf
        found = cases[int(np.argmax(x[taps]))].copy()
        found[columns] = self.present[0, columns] + x[steps].astype(np.int64)
        return self._settled(forms, found)

    def _deciding(self) -> tuple[Forms, Ints, Array, Array, Array]:
        """The forms that can decide anywhere, all taps (taps, regulators) with the banks where they are,
        rho of each, and the banks' least and greatest steps from there."""
        every = self.all
        cases, _, _ = self._taps()
        rho = every.rho(cases) - every.rho(self.present)
        ends = np.array([[c[0], c[-1]] for c in every.choices]).reshape(-1, 2).T - self.present
        low, high = ends[:, every.bank_columns].astype(float)
        forms, _ = self.forms.deciding((rho.min(), rho.max()), low, high)
        return forms, cases, rho, low, high

    def climb(self) -> tuple[Ints, float]:
        """The best that single moves and pairs of moves lead to, and its value: from the present positions,
        and from every tap that could still give more, with the banks as they are, all off and all on."""
        every = self.all
        ends = np.array([[c[0] for c in every.choices], [c[-1] for c in every.choices]])
        cases, _, bounds = self._taps()
        forms = self._deciding()[0]
        reached = [self._climbed(forms, self.present[0])]
        best = self._first(forms, reached[0][None])[1]
        for case, bound in zip(cases, bounds, strict=True):
            if bound < best - EXACT:
                break
            starts = np.stack([case, case, case])
            starts[1:, every.bank_columns] = ends[:, every.bank_columns]
            reached += [self._climbed(forms, start) for start in starts]
            best = self._first(forms, np.array(reached))[1]
        return self._settled(forms, self._first(forms, np.array(reached))[0])

    def _settled(self, forms: Forms, at: Ints) -> tuple[Ints, float]:
        """The first of what is equal around, one or two regulators away, and its value."""
        for _ in range(ROUNDS):
            around = [at[None], *(self._neighbours(at, together) for together in (1, 2))]
            there, value = self._first(forms, np.concatenate(around))
            if np.array_equal(there, at):
                break
            at = there
        return at, value

    def _climbed(self, forms: Forms, at: Ints) -> Ints:
        """Where the best single move, and pair of moves where no single one helps, leads again and again."""
        value = self._first(forms, at[None])[1]
        while True:
            for neighbours in (self._neighbours(at, 1), self._neighbours(at, 2)):
                if not len(neighbours):
                    continue
                there, reached = self._first(forms, neighbours)
                if reached > value + EXACT:
                    at, value = there, reached
                    break
            else:
                return at

    def _neighbours(self, at: Ints, together: int) -> Ints:
        """(cases, regulators) with so many regulators elsewhere at once."""
        others = [c[c != at[i]] for i, c in enumerate(self.all.choices)]
        parts = []
        for columns in combinations(range(len(at)), together):
            moved = _grid([others[i] for i in columns])
            cases = np.repeat(at[None], len(moved), axis=0)
            cases[:, columns] = moved
            parts.append(cases)
        return np.concatenate(parts) if parts else np.zeros((0, len(at)), dtype=np.int64)

    def _first(self, forms: Forms, cases: Ints) -> tuple[Ints, float]:
        """The best of some cases: of equal ones the one with the fewest moves, then the first positions."""
        rho = self.all.rho(cases) - self.all.rho(self.present)
        n = (cases - self.present)[:, self.all.bank_columns].astype(float)
        moved = self._moves(cases)
        value = self._value(forms.least(rho, n), moved)
        best = float(value.max())
        equal = np.flatnonzero(value >= best - EXACT)
        first = min(equal.tolist(), key=lambda i: (moved[i], cases[i].tolist()))
        return cases[first], best


def _grid(choices: list[Ints]) -> Ints:
    """(combinations, regulators) every combination, in order; one without regulators."""
    every = list(product(*(c.tolist() for c in choices)))
    return np.array(every, dtype=np.int64).reshape(len(every), len(choices))
