"""CorrectionProgram: the rows of `correction_rows`, filled for a step and solved in two stages.

    1. max  sum of omega (P-hat up - P-hat dn) - M |P^c - P_PCC| - kappa sum of r l - w (energy short)
    2. min  sum of r l + w (energy short), with the schedule and the capabilities of 1

The first stage cares so little for losses that currents are left a little above what the flows need; the
second cares for little else. With `share="fair"` the first maximises -sum of (PIC - AIC)^2 / 2 instead of the
total width.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from controllers.contract import Infeasible, SolverFailed
from controllers.devices import Battery
from controllers.interchange.branch_flow import BranchFlow, States
from controllers.interchange.conic_rows import CompiledRows
from controllers.interchange.correction_rows import COPIES, SHORT, CorrectionRows
from controllers.interchange.question import Case, Corrected, Options, Tighter
from controllers.network import Limits

Array = npt.NDArray[np.float64]

BEYOND_MWH = 1e-9
"""How far outside its bounds a measured energy may be and still count as on them."""
INSIDE = 1e-7
"""Width [MW, Mvar] that the solver gets where an interval has none; taken off again from the answer."""

KEPT = 1e-6
"""How closely [MW] the second stage keeps the capabilities of the first."""

POLISH = 1e3
"""Weight of the losses in the second stage."""

THROUGHPUT = 1e-4
"""Cost [MW of width a MW] of charging and of discharging, so that no battery does both without a reason."""

OUTWARD = 1e-4
"""Weight that keeps the exchange after an isolation at the greater of its two values."""

SHORT_COST: dict[str, Array | float] = {"short_v": 1e3, "short_l": 10.0, "short_g": 10.0, "short_r": 1.0}
"""What exceeding each kind of limit costs, by unit."""

SHORT_LEAST = 1e-6
"""Of what exceeds a limit, how much is rounding [pu^2, MVA^2, MW]."""

SHORT_ROOM = 1e-3
"""How much further, relative, a limit is moved than it has to be, so that something lies inside."""


class CorrectionProgram:
    """The program of a network, compiled once; arguments as `CorrectionRows`, and

    Args:
        weights: (N,) worth of each microgrid's capability, omega.
    """

    def __init__(
        self,
        flow: BranchFlow,
        limits: Limits,
        buses: tuple[str, ...],
        weights: Array,
        batteries: tuple[Battery, ...],
        hours: float,
        intervals: int,
        options: Options,
    ) -> None:
        given = (flow, limits, buses, batteries, hours, intervals, options)
        self.model = CorrectionRows(*given)
        self.weights, self.options = weights, options
        self.compiled: CompiledRows = self.model.rows.compile()
        # Seldom needed, but in a step that has its hands full.
        self._elastic: CompiledRows = CorrectionRows(*given, elastic=True).rows.compile()

    def solve(self, case: Case, tighter: Tighter, *, polish: bool = True) -> Corrected:
        """Both stages, or the first alone.

        Raises:
            Infeasible: no schedule within the predictions keeps the limits.
            SolverFailed: the solver ended without a usable answer.
        """
        right = self.right(case, tighter)
        at = self.compiled.minimize(self._first_costs(tighter.loss_weight), self.compiled.right(right))
        if polish:
            c, a, e = at["c"], at["a"], at["e"]
            kept = {
                "high": c + a + KEPT,
                "least": -(c - e - KEPT),
                "adjust up": -(a - KEPT),
                "adjust dn": -(e - KEPT),
            }
            second = self.compiled.costs(self._spent(POLISH, len(COPIES) * POLISH))
            with suppress(Infeasible, SolverFailed):  # the first stage stands; it is checked like any other
                found = self.compiled.minimize(second, self.compiled.right(right | kept))
                at = found | {"c": c, "a": a, "e": e}
        return self._answer(case, at)

    def relaxed(self, case: Case, tighter: Tighter) -> Tighter:
        """`tighter`, with the limits of some intervals moved so far that a schedule exists: those that no
        schedule within the predictions keeps, each by as little as it takes.

        Raises:
            Infeasible: not even so; a rated battery or branch is at fault.
            SolverFailed: the solver ended without a usable answer.
        """
        program = self._elastic
        costs = program.costs(
            SHORT_COST | dict.fromkeys(("a", "e"), 1.0) | dict.fromkeys(("plus", "minus"), 1e-3)
        )
        at = program.minimize(costs, program.right(self.right(case, tighter)))
        v, ell, imported, reserve = (
            np.where(at[name] > SHORT_LEAST, at[name] * (1 + SHORT_ROOM) + SHORT_LEAST, 0.0) for name in SHORT
        )
        return replace(
            tighter,
            v_high=tighter.v_high - v,
            v_low=tighter.v_low - v,
            ell=tighter.ell - ell,
            imported=tighter.imported - imported,
            reserve=tighter.reserve - reserve,
        )

    def slacks(self, case: Case, tighter: Tighter, answer: Corrected) -> dict[str, Array]:
        """(H, rows) by name, how far the answer is from each row."""
        return self.compiled.slacks(self.compiled.right(self.right(case, tighter)), answer.at)

    def right(self, case: Case, tighter: Tighter) -> dict[str, Array]:
        """(H, rows) right-hand sides by name of the rows."""
        model, options, flow = self.model, self.options, self.model.flow
        low, high = model.limits.v_pu
        v2 = flow.v2_slack * case.ratio2
        first = np.where(flow.fed_by_slack, flow.t * v2, 0.0)
        there = {copy: case.background(copy) for copy in COPIES}
        cone = np.zeros((len(model.coned), 4))
        cone[:, 0], cone[:, 3] = first[model.coned], -first[model.coned]
        twins = {copy: flow.lossless(p, q, case.ratio2) for copy, (p, q, _) in there.items()}
        right: dict[str, Array] = {}
        for copy in COPIES:
            right[f"p {copy}"], right[f"q {copy}"] = -there[copy][0], -there[copy][1]
            right[f"v {copy}"], right[f"cone {copy}"] = flow.s * first, cone.ravel()
            right[f"low {copy}"] = -(low**2) - tighter.v_low
        right |= self._loadings(tighter, twins, first)
        right["twin voltage"] = high**2 - tighter.v_high - twins["up"].v
        lossless = {copy: (twins[copy].import_mw - there[copy][2])[:, None] for copy in COPIES}
        constant = {copy: (flow.import_offset_mw * case.ratio2 - there[copy][2])[:, None] for copy in COPIES}
        if options.import_mw is not None:
            least, most = options.import_mw
            for copy, other in (("base", "base"), ("up", "dn")):
                right[f"twin import {copy}"] = lossless[copy] - least - tighter.imported[:, :1]
                right[f"import {other}"] = most - constant[other] - tighter.imported[:, 1:]
        if options.reserve_mw is not None:
            up, down = (-options.required_mw[k] - tighter.reserve[:, k : k + 1] for k in (0, 1))
            if options.reserve_margin == "rigorous":
                # What devices outside microgrids do beside the schedule is in the copies, not in the reserve.
                less, more = (0.0, 0.0) if case.moves is None else case.moves.total
                up, down = (
                    up - (constant["dn"] - lossless["base"]) - less,
                    down + more - (constant["base"] - lossless["up"]),
                )
            right["reserve up"], right["reserve down"] = up, down
        right |= {
            "high": case.high + INSIDE,
            "least": -case.low + INSIDE,
            "adjust up": -case.least[:, 1],
            "adjust dn": -case.least[:, 0],
            "moved": case.plan,
            "q high": case.q_high + INSIDE,
            "q low": -case.q_low + INSIDE,
        }
        if options.share == "fair":
            right["lost up"], right["lost dn"] = case.high, -case.low
        return right | self._stored(case, tighter)

    def _loadings(self, tighter: Tighter, twins: Mapping[str, States], first: Array) -> dict[str, Array]:
        """Of (l_max + v, 2 P, 2 Q, l_max - v) and of the lossless Q, what no variable gives."""
        at, H = self.model.rated, self.model.H
        if not len(at):
            return {}
        cone = np.zeros((H, len(at), 4))
        most = self.model.ell_max - tighter.ell[:, at]
        cone[..., 0], cone[..., 3] = most + first[at], most - first[at]
        found = {"loading dn": cone.reshape(H, -1).copy()}
        cone[..., 1] = 2 * twins["up"].P[:, at]
        found["loading up"] = cone.reshape(H, -1)
        return found | {f"q most twin {copy}": twins[copy].Q[:, at] for copy in ("up", "dn")}

    def _stored(self, case: Case, tighter: Tighter) -> dict[str, Array]:
        batteries, H = self.model.batteries, self.model.H
        if not batteries:
            return {}
        p_max, e_max, e_min = (
            np.array([getattr(b, name) for b in batteries]) for name in ("p_mw", "e_mwh", "e_min_mwh")
        )
        # Energy outside its bounds, by measurement, need not come back but goes no farther out.
        below, above = case.e_mwh < e_min - BEYOND_MWH, case.e_mwh > e_max + BEYOND_MWH
        e_min, e_max = np.minimum(e_min, case.e_mwh), np.maximum(e_max, case.e_mwh)
        energy, last = np.zeros((H, len(batteries))), np.tile(-e_min, (H, 1))
        energy[0] = case.e_mwh
        last[-1] = -np.minimum(case.e_mwh, (e_min + e_max) / 2)
        return {
            "energy": energy,
            "E least": -e_min,
            "E most": e_max,
            "E last": last,
            "b_up there": np.where(below, INSIDE, 2 * p_max),
            "b_dn there": np.where(above, INSIDE, 2 * p_max),
            "dis most": np.where(tighter.one_way < 0, INSIDE, p_max),
            "cha most": np.where(tighter.one_way > 0, INSIDE, p_max),
        }

    def _first_costs(self, loss_weight: float) -> Array:
        costs: dict[str, Array | float] = dict.fromkeys(("plus", "minus"), self.options.schedule_weight)
        if self.options.share == "total":
            costs |= {"a": -self.weights, "e": -self.weights}
        if self.options.isolation_secure:
            costs |= {"p_out": OUTWARD, "q_out": OUTWARD, "p_in": -OUTWARD, "q_in": -OUTWARD}
        return self.compiled.costs(costs | self._spent(loss_weight, 1.0))

    def _spent(self, losses: float, energy: float) -> dict[str, Array | float]:
        """Costs of the losses, and of the energy that batteries end the horizon short of."""
        costs: dict[str, Array | float] = {f"l_{copy}": losses * self.model.losses for copy in COPIES}
        if self.model.batteries:
            costs |= dict.fromkeys(("dis", "cha"), energy * THROUGHPUT)
            costs["E_short"] = energy * self.options.energy_worth / self.model.hours
        return costs

    def _answer(self, case: Case, at: Mapping[str, Array]) -> Corrected:
        model, flow = self.model, self.model.flow
        c = np.where(np.abs(at["c"] - case.plan) <= KEPT, case.plan, at["c"])
        base = np.clip(c, case.low, case.high)
        gap = 0.0
        lossy = model.coned[flow.z2[model.coned] > 0]
        chosen = np.isin(model.coned, lossy)
        for copy in COPIES:
            before = flow.sending(at[f"v_{copy}"], case.ratio2)[:, lossy]
            needed = at[f"P_{copy}"][:, lossy] ** 2 + at[f"Q_{copy}"][:, lossy] ** 2
            over = (at[f"l_{copy}"][:, chosen] * before - needed) / (1 + needed)
            gap = max(gap, float(over.max(initial=0.0)))
        reserve = np.concatenate(
            [at[f"g_{way}"] + at[f"b_{way}"].sum(axis=1, keepdims=True) for way in ("up", "dn")], axis=1
        )
        return Corrected(
            base=base,
            dn=np.clip(_snapped(at["c"] - at["e"], case.low), case.low, base),
            up=np.clip(_snapped(at["c"] + at["a"], case.high), base, case.high),
            q_mvar=np.clip(at["q"], case.q_low, case.q_high),
            p_b=at["dis"] - at["cha"],
            q_b=at["q_b"],
            e_mwh=at["E"],
            burnt=np.maximum(at["dis"], 0.0) * np.maximum(at["cha"], 0.0),
            reserve_mw=reserve,
            gap=gap,
            at=at,
        )


def _snapped(values: Array, limit: Array) -> Array:
    """The limit where a value is it but for the solver's rounding."""
    return np.where(np.abs(values - limit) <= KEPT, limit, values)


def relieved(case: Case, answer: Corrected, factor: Array) -> Corrected:
    """Capabilities shrunk towards the schedule by `factor` (H,), but for those that are not known."""
    scale = factor[:, None]
    down = np.minimum(scale * (answer.dn - answer.base), -case.least[:, 0])
    up = np.maximum(scale * (answer.up - answer.base), case.least[:, 1])
    # Rounding must not lead outside: a sum and difference need not give back what they began with.
    return replace(
        answer, dn=np.maximum(answer.base + down, answer.dn), up=np.minimum(answer.base + up, answer.up)
    )
