"""Conversations for tests: an agreement's questions answered by respondents, with words lost on the way; and
random problems on 33 buses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandapower.networks as pn

from controllers import Limits
from controllers.partnership.agreement import Agreeing, agree
from controllers.partnership.central import Central
from controllers.partnership.commitment import Commitment, Outlook, commitment
from controllers.partnership.distribution import BusLoad, Conditions, Distribution, Feeder
from controllers.partnership.master import Master
from controllers.partnership.messages import Answer, AskTerms, Question, Terms
from controllers.partnership.options import Options
from controllers.partnership.outcome import Agreement, Exchange
from controllers.partnership.respondent import Respondent
from controllers.partnership.units import Demand, Engine, Fleet
from controllers.region import Region
from simulators.network import network_of
from tests import partnership_oracle as oracle
from tests.partnership_cases import random_microgrid, seed
from tests.partnership_feeders import Case

Array = npt.NDArray[np.float64]
Way = Callable[[list[tuple[str, Answer]]], Iterable[tuple[str, Answer]] | None]
"""What becomes of a turn's answers; `None`: no turn is left."""


NUMBERS = 7, 50, 58, 96, 104, 121
"""The seed's microgrids, by their buses."""


@dataclass
class Problem:
    """A feeder and what its microgrids can do."""

    feeder: Feeder
    conditions: Conditions
    made: Sequence[Commitment]

    @property
    def names(self) -> list[str]:
        return [f"mg{k}" for k in range(1, len(self.made) + 1)]

    @cached_property
    def distribution(self) -> Distribution:
        return Distribution(self.feeder)

    @cached_property
    def central(self) -> Central:
        return Central(self.distribution, [one.block for one in self.made])

    @cached_property
    def respondents(self) -> dict[str, Respondent]:
        return dict(zip(self.names, map(Respondent, self.made), strict=True))

    def agreeing(self, options: Options | None = None, **more: object) -> Agreeing:
        return agree(Master(self.distribution), self.conditions, self.names, options, **more)  # type: ignore[arg-type]

    def agreed(self, options: Options | None = None, way: Way = list, **more: object) -> Agreement:
        """What the conversation ends with."""
        return held(self.agreeing(options, **more), self.respondents, way)


def held(
    agreeing: Agreeing, respondents: Mapping[str, Respondent], way: Way = list,
    hear: Callable[[str, Question, Answer], None] = lambda name, question, answer: None,
) -> Agreement:  # fmt: skip
    """Run a conversation.

    Args:
        respondents: who is missing answers nothing.
        hear: told every question with its answer.
    """
    try:
        questions = next(agreeing)
        while True:
            answers = []
            for name, question in questions.items():
                if name in respondents:
                    answer = respondents[name].answer(question)
                    hear(name, question, answer)
                    answers.append((name, answer))
            questions = agreeing.send(way(answers))
    except StopIteration as done:
        agreement: Agreement = done.value
        return agreement


def of_seed(case: Case, price_per_mwh: float) -> Problem:
    """The seed's microgrids on its feeder of 123 buses, or the first ones on 33, with the loads at their
    buses."""
    T, made = case.intervals, []
    for number, one in zip(NUMBERS, case.figures, strict=False):
        like, ratio = seed(number, T), one.q_kvar / one.p_kw if one.p_kw else 0.0
        load = {"load": one.p_kw / 1e3 * oracle.LOAD[:T]}
        fleet = replace(like.fleet, demands=(Demand(name="load", q_per_p=ratio),))
        made.append(commitment(fleet, replace(like.outlook, demand_mw=load)))
    return Problem(case.feeder, case.conditions(price_per_mwh), made)


def random_problem(number: int, intervals: int | None = None) -> Problem:
    """Two to four random microgrids at random buses of 33, one to four intervals of random prices and
    loads."""
    rng = np.random.default_rng(number)
    T = int(rng.integers(1, 5)) if intervals is None else intervals
    net = pn.case33bw()
    count = int(rng.integers(2, 5))
    buses = [str(bus) for bus in rng.choice(np.arange(1, 33), size=count, replace=False)]
    loads = {str(row.bus): (row.p_mw, row.q_mvar) for row in net.load.itertuples()}
    rest = {bus: load for bus, load in loads.items() if bus not in buses}
    feeder = Feeder(
        network=network_of(net),
        limits=Limits(v_pu=oracle.V_PU, loading_percent=100.0),
        microgrids=tuple(buses),
        intervals=T,
        loads=tuple(BusLoad(bus, q / p, oracle.CURTAILMENT_PER_MWH) for bus, (p, q) in rest.items()),
    )
    scale, table = rng.uniform(0.7, 1.0, (T, 1)), np.array([*rest.values()])
    conditions = Conditions(rng.uniform(40, 160, T), -scale * table[:, 0], -scale * table[:, 1])
    return Problem(feeder, conditions, [random_microgrid(rng, T) for _ in buses])


def standing_still(problem: Problem) -> dict[str, Exchange]:
    """What each exchanges by itself, for tests: the middle of what it can."""
    found = {}
    for name, respondent in problem.respondents.items():
        terms = respondent.answer(AskTerms(0))
        assert isinstance(terms, Terms)
        found[name] = Exchange(terms.p.mean(axis=1), terms.q.mean(axis=1))
    return found


def one_dimension(price_per_mwh: float) -> Problem:
    """A toy: one interval, one microgrid with an engine that may be off, and no reactive power of its own."""
    net = pn.case33bw()
    fleet = Fleet(
        hours=1.0,
        engines=(
            Engine(
                name="engine",
                capability=Region.box(p_mw=(0.1, 0.5), q_mvar=(0.0, 0.0)),
                ramp_mw=1.0,
                can_stop=True,
                cost_per_mwh=60.0,
                start_up_cost=12.0,
            ),
        ),
    )
    outlook = Outlook(p_mw={"engine": 0.0}, e_mwh={}, available_mw={}, demand_mw={}, intervals=1)
    loads = np.array([(row.p_mw, row.q_mvar) for row in net.load.itertuples()])
    feeder = Feeder(
        network=network_of(net),
        limits=Limits(v_pu=oracle.V_PU, loading_percent=100.0),
        microgrids=("17",),
        intervals=1,
        loads=tuple(BusLoad(str(row.bus), row.q_mvar / row.p_mw) for row in net.load.itertuples()),
    )
    conditions = Conditions(np.array([price_per_mwh]), -loads[None, :, 0], -loads[None, :, 1])
    return Problem(feeder, conditions, [commitment(fleet, outlook)])


class Hours:
    """The seed's microgrids on a feeder, hour after hour: a step's state is what the last agreement's first
    interval has left, forecasts are the seed's scalars over and over, and drift."""

    def __init__(self, case: Case, price_per_mwh: float, number: int = 0) -> None:
        self.case, self.base, self.hour = case, price_per_mwh, 0
        self._fleets = [seed(bus, 1).fleet for bus in NUMBERS[: len(case.figures)]]
        self._first = [seed(bus, 1).outlook for bus in NUMBERS[: len(case.figures)]]
        self._p = [dict(one.p_mw) for one in self._first]
        self._e = [dict(one.e_mwh) for one in self._first]
        self._drift = 1 + 0.05 * np.random.default_rng(number).standard_normal((3, 24 + case.intervals))

    def problem(self) -> Problem:
        """This hour's."""
        T, h = self.case.intervals, self.hour
        at, (price, load, sun) = (h + np.arange(T)) % 6, self._drift[:, h : h + T]
        made = []
        for fleet, first, p_mw, e_mwh in zip(self._fleets, self._first, self._p, self._e, strict=True):
            outlook = Outlook(
                p_mw=p_mw,
                e_mwh=e_mwh,
                available_mw={n: v[0] * oracle.RENEWABLES[at] * sun for n, v in first.available_mw.items()},
                demand_mw={n: v[0] / 0.85 * oracle.LOAD[at] * load for n, v in first.demand_mw.items()},
                intervals=T,
            )
            made.append(commitment(fleet, outlook))
        loads, scale = np.array([*self.case.rest.values()]), (oracle.LOAD[at] * load)[:, None]
        conditions = Conditions(
            self.base * oracle.PRICE[at] * price, -scale * loads[:, 0], -scale * loads[:, 1]
        )
        found = Problem(self.case.feeder, conditions, made)
        found.distribution = self.case.distribution
        return found

    def go_on(self, problem: Problem, agreement: Agreement) -> None:
        """Let each microgrid do the first interval of what it has settled on."""
        for k, (name, respondent) in enumerate(problem.respondents.items()):
            done, made = respondent.operation(agreement.settlements[name]), problem.made[k]
            self._p[k] = {
                one.name: float(made.symbol(one.name, "P", done.y, done.bits)[0])
                for one in made.fleet.engines
            }
            self._e[k] = {
                one.name: float(made.symbol(one.name, "E", done.y, done.bits)[0]) for one in made.fleet.stores
            }
        self.hour += 1
