"""BoxCheck: what the AC power flow and the true branch flow say of available interchange capabilities.

The claim of an available interchange capability is: for every exchange of the microgrids in their intervals,
each free of the others, at the published reactive power and with the batteries on schedule, voltages and
loadings are within limits and the reserves suffice. In the linear model the copies `up` and `dn` are its
worst cases; here all corners and random points are asked. With `isolation_secure` a microgrid may also be
away, with its reactive power. Devices outside microgrids that may move (`outside`) are, at each corner, on
schedule, all at their lower and all at their upper ends, and at random ends at the points; the reserves are
looked at where they are on schedule.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from controllers.interchange.correction_rows import CorrectionRows
from controllers.interchange.outside import Moves
from controllers.interchange.question import Case, Corrected
from controllers.network import PowerFlow

Array = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

CORNERS = 1024
"""Up to as many corners all are asked; beyond, as many at random."""

LATER = 1024
"""Corners of all intervals together, up to which the intervals after the first have all of theirs asked."""

V_PU = 2e-5
LOADING_PERCENT = 2e-2
RESERVE_MW = 2e-4
"""How far beyond a limit still counts as on it."""

AWAY = -1.0
"""In place of a share of the interval: not connected."""


@dataclass(frozen=True, eq=False)
class Findings:
    """How far the worst case of each interval is beyond each limit; below 0 within, infinite: unsolved."""

    v_high: Array
    v_low: Array
    """(H, n) [pu^2]"""
    ell: Array
    """(H, n) [MVA^2]; minus infinity without a rating"""
    reserve: Array
    """(H, 2) up and down [MW]"""
    imported: Array
    """(H, 2) least and greatest [MW]"""
    holds: Bools
    """(H,) all of it within the tolerances"""
    worst_v_pu: Array
    """(H,) voltage closest to its limit"""
    worst_loading_percent: Array
    """(H,) 0 without ratings"""
    power_flows: int
    worst: tuple[str, ...]
    """(H,) the limit that is exceeded most or is nearest, in words"""


class _Cases(NamedTuple):
    """What is asked, one case a row."""

    p: Array
    q: Array
    """(cases, N) exchange of the microgrids"""
    dp: Array
    dq: Array
    """(cases, n) what devices outside inject beside their schedule; no columns where nobody moves them"""
    slack: Array
    """(cases,) P of that at the slack bus"""
    still: Bools
    """(cases,) nobody outside moves"""


class BoxCheck:
    """Asks corners and points of the intervals of a program's microgrids.

    Args:
        points: random points of the first interval.

    Raises:
        ValueError: a bus or rated branch that the power flow does not have.
    """

    def __init__(self, model: CorrectionRows, power_flow: PowerFlow, points: int) -> None:
        self.model, self.flow = model, model.flow
        network = self.flow.network
        bus = {name: i for i, name in enumerate(power_flow.buses)}
        branch = {name: i for i, name in enumerate(power_flow.branches)}
        rated = [i for i in model.rated.tolist() if network.branches[i] in branch]
        missing = [name for name in (network.slack, *network.buses) if name not in bus]
        lost = set(model.rated.tolist()) - set(rated)
        missing += [network.branches[i] for i in sorted(lost)]
        if missing:
            raise ValueError(
                f"interchange correction: the power flow does not have {', '.join(missing)}; build both alike"
            )
        self._bus = np.array([bus[name] for name in network.buses], dtype=np.int64)
        self._branch = np.array([branch[network.branches[i]] for i in rated], dtype=np.int64)
        self._rated, self._buses = np.array(rated, dtype=np.int64), len(power_flow.buses)
        self._mg, self._bat = model.at_microgrids.toarray(), model.at_batteries.toarray()
        rng = np.random.default_rng(0)
        self._corners = _corners(model.N, model.options.isolation_secure, rng)
        self._points = np.concatenate([self._corners, rng.random((points, model.N))])
        self._random = points
        self._ends = rng.integers(0, 2, (2, points, self.flow.n))

    def examine(self, engine: PowerFlow, case: Case, answer: Corrected) -> Findings:
        """The findings for all intervals: corners and points of the first, of the others corners, or the two
        copies alone where there are too many."""
        H, N = len(case.plan), self.model.N
        many = len(self._corners) * H > LATER
        few = np.array([np.zeros(N), np.ones(N)]) if many else self._corners
        shares = [self._points, *[few] * (H - 1)]
        cases = []
        for t, share in enumerate(shares):
            away = share == AWAY
            inside = answer.dn[t] + share * (answer.up[t] - answer.dn[t])
            p = np.concatenate([answer.base[t][None], np.where(away, 0.0, inside)])
            q = np.concatenate([answer.q_mvar[t][None], np.where(away, 0.0, answer.q_mvar[t])])
            cases.append(self._beside(case.moves, t, p, q))
        at = np.repeat(np.arange(H), [len(each.p) for each in cases])
        return self._found(engine, case, answer, at, _Cases(*map(np.concatenate, zip(*cases, strict=True))))

    def _beside(self, moves: Moves | None, t: int, p: Array, q: Array) -> _Cases:
        """Exchanges (cases, N) of one interval, with all that devices outside do beside each."""
        n = self.flow.n
        if moves is None:
            none = np.zeros((len(p), 0))
            return _Cases(p, q, none, none, np.zeros(len(p)), np.ones(len(p), dtype=np.bool_))
        ends = self._ends[:, : self._random if t == 0 else 0]
        rest = len(p) - ends.shape[1]  # the schedule and the corners
        again = np.concatenate([np.arange(len(p)), np.arange(rest), np.arange(rest), np.arange(rest, len(p))])
        # 0 for the lower end, 1 for the upper, 2 for where they are on schedule
        which = np.repeat([2, 0, 1], [len(p), rest, rest])[:, None]
        choice_p, choice_q = (np.concatenate([np.broadcast_to(which, (len(which), n)), e]) for e in ends)
        dp, dq = (
            np.concatenate([x[:, t], np.zeros((1, n))])[choice, np.arange(n)]
            for x, choice in ((moves.p_mw, choice_p), (moves.q_mvar, choice_q))
        )
        slack = np.append(moves.slack_mw[:, t], 0.0)[choice_p[:, 0]]
        return _Cases(p[again], q[again], dp, dq, slack, np.arange(len(again)) < len(p))

    def _found(self, engine: PowerFlow, case: Case, answer: Corrected, at: Ints, cases: _Cases) -> Findings:
        model, H, n, p = self.model, len(case.plan), self.flow.n, cases.p
        p_bus = (case.p_mw + answer.p_b @ self._bat.T)[at] + p @ self._mg.T
        q_bus = (case.q_mvar + answer.q_b @ self._bat.T)[at] + cases.q @ self._mg.T
        if case.moves is not None:
            p_bus, q_bus = p_bus + cases.dp, q_bus + cases.dq
        both = np.zeros((2, len(at), self._buses))
        banks = np.zeros(n) if case.banks is None else case.banks
        both[0][:, self._bus], both[1][:, self._bus] = p_bus, q_bus - banks  # the engine has its own
        flows = engine.solve(both[0], both[1])
        low, high = model.limits.v_pu
        v = flows.v_pu[:, self._bus]
        q_bus = q_bus + banks * (np.where(np.isfinite(v), v, 1.0) ** 2 - 1)  # what they give at this voltage
        loading = flows.loading_percent[:, self._branch]
        allowed = model.limits.loading_percent
        rating = self.flow.network.rating_mva[self._rated]
        over = np.full((len(at), n), -np.inf)
        over[:, self._rated] = ((loading / 100) ** 2 - (allowed / 100) ** 2) * rating**2
        imported = self.flow.solve(p_bus, q_bus, case.ratio2).import_mw
        imported = imported - self._at_slack(case, answer, at, p) - cases.slack
        first = np.searchsorted(at, np.arange(H))
        change = imported - imported[first][at]
        solved = flows.converged & np.isfinite(imported)
        reserve = np.column_stack([change, -change]) - self._reserve(answer)[at]
        reserve[~cases.still] = -np.inf
        least, most = model.options.import_mw or (-np.inf, np.inf)
        bounds = np.column_stack([least - imported, imported - most])

        def worst(values: Array) -> Array:
            values = np.where(solved[:, None], values, np.inf)
            return np.maximum.reduceat(values, first, axis=0)

        found = {
            "v_high": worst(v**2 - high**2),
            "v_low": worst(low**2 - v**2),
            "ell": worst(over),
            "reserve": worst(reserve),
            "imported": worst(bounds),
        }
        room = np.minimum(high - v, v - low)
        room[~solved] = -np.inf
        near = np.array([np.argmin(part) for part in np.split(room, first[1:])])
        part_of = [part[k // n, k % n] for part, k in zip(np.split(v, first[1:]), near, strict=True)]
        loadings = worst(loading).max(axis=1, initial=0.0)
        scaled = self._scaled(found, rating)
        order = np.concatenate(list(scaled.values()), axis=1)
        names = [self._names(kind, values.shape[1]) for kind, values in scaled.items()]
        flat = [name for group in names for name in group]
        return Findings(
            **found,
            holds=np.asarray((order <= 1.0).all(axis=1)),
            worst_v_pu=np.array(part_of),
            worst_loading_percent=loadings,
            power_flows=len(at),
            worst=tuple(flat[int(k)] for k in order.argmax(axis=1)),
        )

    def _scaled(self, found: dict[str, Array], rating: Array) -> dict[str, Array]:
        """The findings in units of their tolerances."""
        low, high = self.model.limits.v_pu
        allowed = self.model.limits.loading_percent / 100
        unit = np.ones(self.flow.n)
        unit[self._rated] = 2 * allowed * rating**2 * LOADING_PERCENT / 100
        return {
            "v_high": found["v_high"] / (2 * high * V_PU),
            "v_low": found["v_low"] / (2 * low * V_PU),
            "ell": found["ell"] / unit,
            "reserve": found["reserve"] / RESERVE_MW,
            "imported": found["imported"] / RESERVE_MW,
        }

    def _names(self, kind: str, count: int) -> list[str]:
        network = self.flow.network
        match kind:
            case "v_high":
                return [f"upper voltage at bus {bus}" for bus in network.buses]
            case "v_low":
                return [f"lower voltage at bus {bus}" for bus in network.buses]
            case "ell":
                return [f"loading of {branch}" for branch in network.branches]
            case "reserve":
                return ["reserve up", "reserve down"]
            case _:
                return ["slack limit"] * count

    def _at_slack(self, case: Case, answer: Corrected, at: Ints, p: Array) -> Array:
        """What is injected at the slack bus itself [MW]."""
        model = self.model
        batteries = (answer.p_b @ model.batteries_at_slack.toarray().T)[:, 0]
        own = (p @ model.microgrids_at_slack.toarray().T)[:, 0]
        return np.asarray((case.slack_mw + batteries)[at] + own)

    def _reserve(self, answer: Corrected) -> Array:
        """(H, 2) what is there for the microgrids' adjustments, up and down."""
        if self.model.options.reserve_mw is None:
            return np.full_like(answer.reserve_mw, np.inf)
        return np.asarray(answer.reserve_mw - np.array(self.model.options.required_mw))


def _corners(N: int, isolation: bool, rng: np.random.Generator) -> Array:
    """(corners, N) 0 for the lower end, 1 for the upper one, `AWAY`; all downwards and all upwards first.

    Where they are too many, each microgrid against all the others, the worst for its own branches, and
    random ones.
    """
    ends = (0.0, 1.0, AWAY) if isolation else (0.0, 1.0)
    both = np.array([np.zeros(N), np.ones(N)])
    if len(ends) ** N <= CORNERS:
        return np.concatenate([both, np.array(list(product(ends, repeat=N)))])
    pairs = [(one, rest) for one, rest in product(ends, repeat=2) if one != rest]
    alone = [np.where(np.eye(N, dtype=np.bool_), one, rest) for one, rest in pairs]
    return np.concatenate([both, *alone, rng.choice(ends, (CORNERS, N))])
