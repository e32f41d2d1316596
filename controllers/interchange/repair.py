"""Repair: solve the correction, check it, and change what does not hold until it does.

The order of measures stands in `correction`. A limit that the AC power flow finds exceeded is tightened by
the excess and the program solved again, for a few rounds: where capabilities compete for the limit, that
costs less than shrinking all of them. So is the reserve: an excess of x MW is x MW more to keep,

    (1 + mu) W + x <= r  with  x = (ratio - 1 - mu) W0  gives  ratio W <= r  for W <= W0,

so it does what `mu_loss = ratio - 1` would, and the compiled program stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from controllers.contract import Infeasible, Origin, SolverFailed
from controllers.interchange.checks import BoxCheck, Findings
from controllers.interchange.correction_program import CorrectionProgram, relieved
from controllers.interchange.question import Case, Corrected, Tighter
from controllers.network import PowerFlow

Array = npt.NDArray[np.float64]

GAP = 1e-5
"""Relative cone gap up to which the relaxation counts as exact. The solver leaves up to 5e-6; a relaxation
that burns power shows 1 and more."""

BURNT = 1e-6
"""Product of charging and discharging [MW^2] up to which a battery counts as doing one of them."""

ROUNDS = 6
HEAVIER = 2
"""How often the program is solved in all, and how often with heavier losses."""

HALVINGS = 12

OVERDONE = 1.05
"""How much more than the excess a limit is tightened, so that the rounds end."""


@dataclass(frozen=True, eq=False)
class Verdict:
    """What is released, and how it came about."""

    answer: Corrected
    findings: Findings
    origin: Origin
    insecure: tuple[str | None, ...]
    """(H,) what is broken even without any adjustment; `None`: nothing"""
    factor: Array
    """(H,) by what the capabilities were shrunk"""
    slacks: Mapping[str, Array] | None
    """(H, rows) room in the program's rows, by name; `None` without its answer"""
    power_flows: int
    why: str = ""
    """why the program has no answer, if it has none"""


class Repair:
    """Holds a program to its check."""

    def __init__(self, program: CorrectionProgram, check: BoxCheck, *, polish: bool) -> None:
        self.program, self.check, self.polish = program, check, polish

    def best(self, engine: PowerFlow, case: Case) -> Verdict:
        """The answer that is released for a case."""
        model = self.program.model
        start = Tighter.nothing(model.H, model.flow.n, len(model.batteries), self.program.options.loss_weight)
        tighter, moved, why = start, np.zeros(model.H, dtype=np.bool_), ""
        answer: Corrected | None = None
        findings: Findings | None = None
        asked = start
        touched, flows, heavier = False, 0, 0
        for _ in range(ROUNDS):
            try:
                new = self.program.solve(case, tighter, polish=self.polish)
            except Infeasible as error:
                why = str(error)
                if moved.any() or answer is not None:
                    break
                try:
                    tighter = self.program.relaxed(case, tighter)
                except (Infeasible, SolverFailed) as also:
                    why = str(also)
                    break
                moved = _moved(tighter)
                if not moved.any():
                    break
                touched |= bool(moved[0])
                continue
            except SolverFailed as error:
                why = str(error)
                break
            answer, asked = new, tighter
            findings = self.check.examine(engine, case, answer)
            flows += findings.power_flows
            if answer.gap > GAP and heavier < HEAVIER:
                heavier, touched = heavier + 1, True
                tighter = replace(tighter, loss_weight=10 * tighter.loss_weight)
                continue
            if (both := answer.burnt > BURNT).any():
                touched = True
                tighter = replace(tighter, one_way=np.where(both, np.sign(answer.p_b), tighter.one_way))
                continue
            wrong = ~findings.holds & ~moved
            if not wrong.any():
                break
            touched |= bool(wrong[0])
            tighter = _tightened(tighter, findings, wrong)
        plain = answer is None
        if answer is None or findings is None:
            answer = self._unsolved(case)
            findings = self.check.examine(engine, case, answer)
            flows += findings.power_flows
            touched = True
        touched |= answer.gap > GAP
        slacks = None if plain else self.program.slacks(case, asked, answer)
        answer, findings, factor, more = self._shrunk(engine, case, answer, findings)
        insecure = tuple(
            None if holds else f"{worst} is broken by the schedule itself"
            for holds, worst in zip(findings.holds, findings.worst, strict=True)
        )
        if insecure[0] is not None:
            origin = Origin.DEGRADED
        elif touched or factor[0] < 1:
            origin = Origin.REPAIRED
        else:
            origin = Origin.CERTIFIED
        return Verdict(answer, findings, origin, insecure, factor, slacks, flows + more, why)

    def _shrunk(
        self, engine: PowerFlow, case: Case, answer: Corrected, findings: Findings
    ) -> tuple[Corrected, Findings, Array, int]:
        """Capabilities of intervals that do not hold, shrunk towards the schedule until they do."""
        bad = ~findings.holds
        high = np.ones(len(bad))
        low = np.where(bad, 0.0, 1.0)
        if not bad.any():
            return answer, findings, low, 0
        alone = self.check.examine(engine, case, relieved(case, answer, low))
        flows = alone.power_flows
        bad &= alone.holds
        for _ in range(HALVINGS if bad.any() else 0):
            middle = np.where(bad, (low + high) / 2, 1.0)
            found = self.check.examine(engine, case, relieved(case, answer, middle))
            flows += found.power_flows
            low, high = np.where(found.holds, middle, low), np.where(found.holds, high, middle)
        answer = relieved(case, answer, low)
        found = self.check.examine(engine, case, answer)
        return answer, found, low, flows + found.power_flows

    def _unsolved(self, case: Case) -> Corrected:
        """The predictions themselves around the schedule, batteries at rest: where the program has no
        answer, the check alone says how much of them is left."""
        model, options = self.program.model, self.program.options
        H, B = model.H, len(model.batteries)
        state = model.flow.solve(
            case.p_mw + case.plan @ model.at_microgrids.toarray().T, case.q_mvar, case.ratio2
        )
        imported = state.import_mw - case.slack_mw - (case.plan @ model.microgrids_at_slack.toarray().T)[:, 0]
        reserve = np.tile(options.reserve_mw or (0.0, 0.0), (H, 1))
        if options.import_mw is not None:
            least, most = options.import_mw
            reserve = np.minimum(reserve, np.column_stack([most - imported, imported - least]))
        none = np.zeros((H, B))
        return Corrected(
            base=case.plan,
            dn=case.low,
            up=case.high,
            q_mvar=np.clip(np.zeros_like(case.plan), case.q_low, case.q_high),
            p_b=none,
            q_b=none,
            e_mwh=np.tile(case.e_mwh, (H, 1)),
            burnt=none,
            reserve_mw=np.nan_to_num(np.maximum(reserve, 0.0)),
            gap=0.0,
        )


def _moved(tighter: Tighter) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """(H,) intervals whose limits were moved outwards."""
    each = (tighter.v_high, tighter.v_low, tighter.ell, tighter.imported, tighter.reserve)
    return np.asarray(np.any([(values < 0).any(axis=1) for values in each], axis=0))


def _tightened(tighter: Tighter, findings: Findings, wrong: npt.NDArray[np.bool_]) -> Tighter:
    """The limits that are exceeded in `wrong` intervals, tightened by the excess."""

    def more(present: Array, excess: Array) -> Array:
        usable = np.isfinite(excess) & (excess > 0) & wrong[:, None]
        return present + np.where(usable, OVERDONE * np.where(usable, excess, 0.0), 0.0)

    return replace(
        tighter,
        v_high=more(tighter.v_high, findings.v_high),
        v_low=more(tighter.v_low, findings.v_low),
        ell=more(tighter.ell, findings.ell),
        reserve=more(tighter.reserve, findings.reserve),
        imported=more(tighter.imported, findings.imported),
    )
