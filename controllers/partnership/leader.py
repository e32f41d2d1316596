"""Leader: the operator of the network in the partnership, who agrees with each microgrid on its exchange.

It knows the network, its loads, prices and own devices; of microgrids their measured exchange and what they
answer (`messages`). In each step it has one conversation with them, whose course is in `agreement`:

    questions -> answers -> ... -> settlement of all -> AC power flow of the whole -> decision

| what happens                        | what it does                                                         |
|-------------------------------------|----------------------------------------------------------------------|
| all have settled                    | sets its own devices; the agreed exchange is its plan                |
| the AC power flow breaks a limit    | the same, `DEGRADED`: nothing that it could do is known to be better |
| the cones of the relaxation are     | the same: what it says of losses and cost is not what happens        |
| not tight                           |                                                                      |
| a microgrid stays away              | goes on with what it has settled on in this step, else with its      |
|                                     | measured exchange, `DEGRADED`, and names it                          |
| turns or time are over, or a solver | what was settled last stands, else it has no decision (`Late`,       |
| fails                               | `SolverFailed`)                                                      |
| no decision                         | its devices keep their setpoints, then their defaults; each follower |
|                                     | keeps to the exchange agreed on last                                 |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from math import isfinite
from typing import Any, ClassVar, cast, get_args

import numpy as np
import numpy.typing as npt

from controllers.contract import (
    ControlError,
    Decision,
    Iteration,
    Observation,
    Origin,
)
from controllers.forecast import Forecast
from controllers.interchange.reading import measured
from controllers.partnership.agreement import Agreeing, agree
from controllers.partnership.distribution import Conditions, Distribution
from controllers.partnership.master import Master
from controllers.partnership.messages import MET, Answer
from controllers.partnership.options import Mode, Options
from controllers.partnership.outcome import Agreement, Exchange, Reason
from controllers.partnership.release import certificate, inexact, origin_of
from controllers.partnership.surroundings import Surroundings
from controllers.partnership.talk import Questions
from controllers.partnership.warm import Warm
from controllers.partnership.words import from_word, to_word
from controllers.roles import Sight, answers
from controllers.site import Site

Array = npt.NDArray[np.float64]


@dataclass(eq=False)
class _Step:
    """The conversation of one step."""

    conditions: Conditions
    talk: Agreeing


@dataclass
class PartnershipLeader:
    """The distribution operator of the partnership, leader of a `PartnershipFollower` for each microgrid.

    Its origin is `CERTIFIED` where all have settled and the AC power flow keeps the limits in every interval,
    `OPTIMAL` where the site has no AC power flow, `DEGRADED` where a limit is broken, the relaxation is not
    exact, a microgrid has stayed away or misses what it was asked to settle on. The certificate of the site's
    name has the reason and the worst voltage, `iterations` the bounds.

    Args:
        site: with microgrids; it may have an AC power flow.
        followers: controller of each microgrid, by microgrid; named like the microgrids if not given.
        mode: `lift`, exact; `paper` and `augmented`, research modes for small cases, see `Options`.
        epsilon: relative gap of the bounds at which the search ends.
        horizon: intervals T of the site's step.
        price: name of the price of energy [$/MWh] in forecasts; the microgrids' if not given.
        line_limits: whether ratings of branches are kept, beside voltages.
        most_iterations, patience, weight, offers: see `Options`.
        warm: whether a step begins with the slopes of the last one's cuts, see `warm`.

    Raises:
        ValueError: a site without microgrids, followers that do not fit these, an option out of its range, a
            network whose relaxation cannot be exact.
        Infeasible: (step) a load or price is not known; no operation keeps the network's limits.
        SolverFailed: (step) a solver had no answer before anything was settled.
        Late: (step) turns or time were over before anything was settled.
        ControlError: (step) it is asked in the middle of a conversation that it has not begun.
    """

    sources: ClassVar[tuple[str, ...]] = (
        "Partnership of a distribution operator and microgrids by modified Benders decomposition: seed 000",
        "Exactness: Gan, Li, Topcu and Low, Exact Convex Relaxation of Optimal Power Flow in Radial Networks",
    )

    site: Site
    followers: Mapping[str, str] = field(default_factory=dict)
    mode: Mode = "lift"
    epsilon: float = 1e-3
    horizon: int = 6
    price: str | None = None
    line_limits: bool = False
    most_iterations: int = 60
    patience: int = 3
    weight: float | None = None
    offers: bool = True
    warm: bool = True
    _step: _Step | None = field(default=None, init=False, repr=False)
    _number: int = field(default=0, init=False, repr=False)
    """greatest number of a question so far"""
    _kept: tuple[datetime, Warm] | None = field(default=None, init=False, repr=False)
    """what the last agreement has left, and when that was"""

    def __post_init__(self) -> None:
        known = self.site.microgrids
        if not known:
            raise ValueError(f"site {self.site.name!r} has no microgrids: there is nobody to lead")
        if self.horizon < 1:
            raise ValueError(f"partnership: a horizon of {self.horizon} intervals; give at least 1")
        self.followers = dict(self.followers) or {name: name for name in known}
        if self.followers.keys() != known.keys() or len(set(self.followers.values())) < len(known):
            raise ValueError(
                f"partnership: followers {self.followers}; name one controller for each of {list(known)}"
            )
        self._names = tuple(known)
        self._microgrid = {follower: name for name, follower in self.followers.items()}
        self._options(1)
        self._surroundings = Surroundings(self.site, self._names, self.horizon, self.price, self.line_limits)
        self._master = Master(Distribution(self._surroundings.feeder))

    @property
    def intervals(self) -> int:
        """How far a forecast has to reach."""
        return self.horizon

    @property
    def sight(self) -> Sight:
        """The network, its loads and own devices; of microgrids their exchange and price."""
        return Sight.operator(self.site, (self._surroundings.price,))

    def step(self, observation: Observation) -> Decision:
        """Ask, ask again, and at last decide; see the class."""
        try:
            if observation.turn == 0:
                self._step = None
                questions = next(self._begun(observation).talk)
            elif self._step is None:
                raise ControlError(f"turn {observation.turn} of a conversation that it has not begun")
            elif observation.turns_left == 0:
                questions = self._step.talk.send(None)
            else:
                questions = self._step.talk.send(list(self._heard(observation)))
        except StopIteration as end:
            now = cast(_Step, self._step)
            self._step = None
            return self._decided(observation, now.conditions, end.value)
        except ControlError:
            self._step = None
            raise
        except ValueError as error:
            self._step = None
            raise ControlError(f"partnership: an answer does not fit: {error}") from error
        return self._asked(observation, questions)

    def memory(self) -> object:
        """The greatest number of a question so far, so that no answer of another step is taken for one of
        this, and what the last agreement has left."""
        return self._number, self._kept

    def recall(self, memory: Any) -> None:
        """Go on from what `memory` has returned."""
        self._number, self._kept = memory

    def _options(self, most_turns: int) -> Options:
        return Options(
            mode=self.mode,
            epsilon=self.epsilon,
            most_iterations=self.most_iterations,
            most_turns=most_turns,
            patience=self.patience,
            weight=self.weight,
            offers=self.offers,
        )

    def _begun(self, observation: Observation) -> _Step:
        conditions = self._surroundings.conditions(observation)
        options = self._options(max(observation.turns_left, 1))
        alone = dict(self._alone(observation))
        warm, elapsed = self._warm(observation.time)
        talk = agree(
            self._master,
            conditions,
            self._names,
            options,
            alone=alone,
            number=self._number,
            warm=warm,
            elapsed=elapsed,
        )
        self._step = _Step(conditions, talk)
        return self._step

    def _warm(self, now: datetime) -> tuple[Warm | None, int]:
        """What an earlier agreement has left whose intervals reach into this one's, and how many have
        passed."""
        if not self.warm or self._kept is None:
            return None, 1
        elapsed = round((now - self._kept[0]) / self.site.every)
        return (self._kept[1], elapsed) if 0 < elapsed < self.horizon else (None, 1)

    def _alone(self, observation: Observation) -> Iterator[tuple[str, Exchange]]:
        """What each microgrid is taken to exchange if it stays away: what it does now, for its devices keep
        their setpoints at first."""
        for name in self._names:
            p_mw, q_mvar = (measured(of, name) for of in (observation.p_mw, observation.q_mvar))
            if p_mw is not None and q_mvar is not None:
                yield name, Exchange(np.full(self.horizon, p_mw), np.full(self.horizon, q_mvar))

    def _asked(self, observation: Observation, questions: Questions) -> Decision:
        self._number = max(self._number, *(question.iteration for question in questions.values()))
        words = {self.followers[name]: to_word(question) for name, question in questions.items()}
        return Decision(time=observation.time, origin=Origin.OPTIMAL, words=words)

    def _heard(self, observation: Observation) -> Iterator[tuple[str, Answer]]:
        """Answers by microgrid; what is none is as good as nothing, and its sender is asked again."""
        for follower, word in answers(observation).items():
            if follower in self._microgrid:
                try:
                    said = from_word(word)
                except ValueError:
                    continue
                if isinstance(said, get_args(Answer)):
                    yield self._microgrid[follower], cast(Answer, said)

    def _decided(self, observation: Observation, conditions: Conditions, found: Agreement) -> Decision:
        operation = found.operation
        self._kept = observation.time, found.warm
        checked = self._surroundings.checked(observation, conditions, operation)
        wrong = [f"{', '.join(found.alone)} stayed away"] if found.alone else []
        wrong += [
            f"{name} misses what it has settled on by {said.off_by:.6f} MW and Mvar"
            for name, said in found.settled.items()
            if said.off_by > MET
        ]
        wrong += inexact(operation)
        least = min(found.lower, found.upper)  # solvers' tolerances can cross the bounds
        bounds = f"{least:.4f} <= cost <= {found.upper:.4f} $, gap {found.gap:.1e}"
        ended = f"{found.reason} ({bounds})"
        if found.reason not in (Reason.GAP, Reason.ABSENT):
            ended = f"{found.reason}: {found.reason.advice} ({bounds})"
        why = "; ".join([*wrong, ended, *([checked.why] if checked else [])])
        p_mw = np.array(operation.p_mw)
        return Decision(
            time=observation.time,
            origin=origin_of(wrong, checked),
            setpoints=self._surroundings.setpoints(conditions, operation),
            certificates={self.site.name: certificate(why, checked)},
            plan=Forecast(observation.time, self.site.every, self._names, p_mw, np.zeros_like(p_mw)),
            iterations=tuple(_iterations(found)),
        )


def _iterations(found: Agreement) -> Iterator[Iteration]:
    """The trace, and what was confirmed in the end."""
    for each in found.rounds:
        yield Iteration(
            number=each.number,
            phase=each.stage,
            lower=_finite(each.lower),
            upper=_finite(each.upper),
            cuts=each.cuts,
        )
    yield Iteration(
        number=len(found.rounds) + 1,
        phase="settlement",
        lower=_finite(found.lower),
        upper=_finite(found.upper),
        cuts=found.rounds[-1].cuts if found.rounds else 0,
        ended=f"{found.reason} after {found.turns} turns",
    )


def _finite(bound: float) -> float | None:
    return float(bound) if isfinite(bound) else None
