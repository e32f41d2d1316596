"""Holds agreements to the central optimum in every way there is; for tests."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandapower as pp
import pandapower.networks as pn
import pytest

from controllers.partnership.coupling import Cut, Point, Tent
from controllers.partnership.messages import (
    Answer,
    AskCuts,
    AskSettlement,
    Cuts,
    Lifted,
    Offer,
    Pattern,
    Priced,
    Question,
    Restoration,
)
from controllers.partnership.options import Options
from controllers.partnership.outcome import Agreement, Reason
from controllers.partnership.respondent import Respondent
from tests.partnership_agreements import (
    Problem,
    held,
)

EXACT = Options(epsilon=1e-6, most_iterations=1000, most_turns=5000)
CUTS = replace(EXACT, offers=False)
"""Benders' decomposition without the short cut of prices."""


@dataclass
class Witness:
    """Holds every cut to the central optimum, which no cut may exclude (B3)."""

    respondents: Mapping[str, Respondent]
    points: Mapping[str, Point]
    seen: dict[str, int] = field(default_factory=dict)

    def __call__(self, name: str, question: Question, answer: Answer) -> None:
        point, own = self.points[name], self.respondents[name]
        match answer:
            case Cuts() if isinstance(answer.bits, Pattern | Priced) and isinstance(question, AskCuts):
                pattern = own._bits(answer.bits, question.points[0])
                if point.bits is not None and np.abs(pattern - point.bits).max(initial=0.0) < 0.5:
                    self._hold("pattern", answer.cuts, point)
            case Cuts():
                self._hold(type(answer.bits).__name__, answer.cuts, point)
            case Offer():
                self._hold("offer", (answer.cut,), point)
                assert own.answer(AskSettlement(0, Point(answer.p, answer.q, 0.0))).off_by < 1e-6  # type: ignore[union-attr]
            case Restoration() if isinstance(answer.cut, Tent):
                tent, d = answer.cut, np.concatenate([point.p, point.q]) - answer.cut.centre
                relief = tent.slope @ d - tent.weight @ np.abs(d)
                assert point.cost >= tent.value + relief - 1e-6
                self.seen["tent"] = self.seen.get("tent", 0) + 1

    def _hold(self, kind: str, cuts: tuple[Cut | None, ...], point: Point) -> None:
        for cut in cuts:
            if cut is not None:
                x = point.vector[: len(cut.region.axes)]
                broken = float(cut.region.A[0] @ x - cut.region.b[0]) * cut.scale
                assert broken <= 1e-6, f"{kind} cut excludes the optimum by {broken} $"
                self.seen[kind] = self.seen.get(kind, 0) + 1


def witness_of(problem: Problem) -> Witness:
    """Of the central optimum, with what the microgrids can really do there: the cone solver leaves rows by
    more than what cuts are held to."""
    best, points = problem.central.whole(problem.conditions), {}
    for name, point in zip(problem.names, best.points, strict=True):
        bits = None if point.bits is None else np.round(point.bits)
        done = problem.respondents[name].operation(AskSettlement(0, replace(point, bits=bits), Lifted()))
        assert done.off_by < 1e-5
        assert done.cost == pytest.approx(point.cost, abs=1e-3)
        points[name] = Point(done.p, done.q, done.cost, bits)
    return Witness(problem.respondents, points)


def checked(problem: Problem, options: Options = EXACT) -> Agreement:
    """An agreement that is held to the central optimum in every way there is."""
    best = problem.central.whole(problem.conditions)
    witness = witness_of(problem)
    found = held(problem.agreeing(options), problem.respondents, hear=witness)
    slack, tolerance = 1e-7 * max(1.0, abs(best.value)), options.epsilon * max(1.0, abs(best.value))
    assert found.reason is Reason.GAP
    assert found.gap <= options.epsilon
    assert found.lower <= best.value + slack
    assert best.value - slack <= found.upper <= best.value + tolerance + slack
    assert found.upper == pytest.approx(
        found.operation.cost + sum(one.cost for one in found.settled.values()), rel=1e-12
    )
    for k, (name, said) in enumerate(found.settled.items()):
        assert found.operation.p_mw[:, k] == pytest.approx(said.p, abs=1e-6)
        assert found.operation.q_mvar[:, k] == pytest.approx(said.q, abs=1e-6)
        again = problem.respondents[name].operation(found.settlements[name])
        assert (again.p, again.q) == (pytest.approx(said.p, abs=1e-7), pytest.approx(said.q, abs=1e-7))
    held_to_trace(found, options)
    assert sum(witness.seen.values()) > 0
    return found


def held_to_trace(found: Agreement, options: Options) -> None:
    """B12: the lower bound never falls, the upper one never rises, and the numbers count."""
    rounds = found.rounds
    assert [one.number for one in rounds] == list(range(1, len(rounds) + 1))
    assert len(rounds) <= options.most_iterations
    for now, after in itertools.pairwise(rounds):
        assert after.lower >= now.lower
        assert after.upper <= now.upper
        assert after.turns >= now.turns
    assert found.lower == rounds[-1].lower
    assert found.reason.advice


def held_to_ac(problem: Problem, found: Agreement) -> None:
    """B9, on 33 buses: cones are tight, and the AC power flow has the same voltages and import."""
    feeder, given, operation = problem.feeder, problem.conditions, found.operation
    assert operation.gap < 1e-5
    net = pn.case33bw()
    net.load.drop(net.load.index, inplace=True)
    loads = [pp.create_load(net, int(load.bus), 0.0) for load in feeder.loads]
    grids = [pp.create_sgen(net, int(bus), 0.0) for bus in feeder.microgrids]
    ratio = np.array([load.q_per_p for load in feeder.loads])
    where = [int(bus) for bus in feeder.network.buses]
    for t in range(feeder.intervals):
        curtailed = operation.curtailed_mw[t]
        net.load.loc[loads, "p_mw"] = -(given.p_mw[t] + curtailed)
        net.load.loc[loads, "q_mvar"] = -(given.q_mvar[t] + curtailed * ratio)
        net.sgen.loc[grids, "p_mw"], net.sgen.loc[grids, "q_mvar"] = operation.p_mw[t], operation.q_mvar[t]
        pp.runpp(net, tolerance_mva=1e-11, numba=False)
        assert operation.v_pu[t] == pytest.approx(net.res_bus.vm_pu.loc[where].to_numpy(), abs=1e-6)
        assert operation.import_mw[t] == pytest.approx(net.res_ext_grid.p_mw.sum(), abs=1e-5)
        assert operation.import_mvar[t] == pytest.approx(net.res_ext_grid.q_mvar.sum(), abs=1e-5)
