"""Follower: one microgrid in the partnership, which answers its operator's questions about the coming
intervals and sets its devices by what was agreed on.

All that it is asked and answers is in `messages`. An answer follows from the question, the measured state and
the forecast alone; what it remembers from step to step is the exchange that was agreed on last.

| what it hears       | what it does                                                                     |
|---------------------|----------------------------------------------------------------------------------|
| a question          | answers it; its devices are told nothing                                         |
| `AskSettlement`     | answers it, and sets its devices and a plan by it                                |
| nothing             | keeps the exchange agreed on last as nearly as it can, while that has intervals  |
| nothing, from first | has no decision: its devices keep their last setpoints, then their defaults      |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, get_args

import numpy as np
import numpy.typing as npt

from controllers.contract import (
    Certificate,
    ControlError,
    Decision,
    Infeasible,
    Observation,
    Origin,
)
from controllers.forecast import Forecast
from controllers.interchange.reading import Reading, members, read
from controllers.partnership.commitment import Commitment, commitment
from controllers.partnership.coupling import Point
from controllers.partnership.messages import MET, AskSettlement, Question, Settlement
from controllers.partnership.outlook import outlook_of
from controllers.partnership.respondent import Respondent
from controllers.partnership.restoration import Operation
from controllers.partnership.setpoints import impossible, setpoint
from controllers.partnership.units import fleet
from controllers.partnership.words import from_word, to_word
from controllers.roles import Sight, question
from controllers.site import Site

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Agreed:
    """The exchange that it has settled on last."""

    time: datetime
    """of the observation: the first interval is one step later"""
    p_mw: Array
    q_mvar: Array
    """(T,)"""


@dataclass
class PartnershipFollower:
    """A microgrid with units that may be off, as a `PartnershipLeader`'s follower.

    A settlement's plan is the exchange over the horizon, of the microgrid's name; its setpoints are those of
    the first interval, which is the one that acts: see `setpoints`. Sun and wind beyond the plan are not
    used.

    Its origin is `OPTIMAL`; `DEGRADED`, with a certificate of the microgrid that says why, where the devices
    miss what was agreed on, a store would charge and discharge at once, or nobody has asked for a settlement
    and an older one is kept.

    Args:
        site: with its microgrids.
        microgrid: whose; the site's only one if not given.
        horizon: intervals T of the site's step, as its leader's.
        curtailment_cost_per_mwh: of all its loads [$/MWh]; each one's own if not given, see `fleet`.
        exclusive_stores: whether a bit keeps each store from charging and discharging at once; needed where
            prices can be negative.

    Raises:
        ValueError: no such microgrid, one with a heat demand, of which nothing is planned, a device that no
            plan can have, a horizon below 1.
        ControlError: (step) a word that is no question of the partnership, or does not fit.
        Infeasible: (step) something is not measured or not forecast; nothing is asked and nothing was agreed
            on; no operation at all.
        SolverFailed: (step) the solver had no answer.
    """

    sources: ClassVar[tuple[str, ...]] = (
        "Partnership of a distribution operator and microgrids by modified Benders decomposition: seed 000",
    )
    follows: ClassVar[bool] = True

    site: Site
    microgrid: str | None = None
    horizon: int = 6
    curtailment_cost_per_mwh: float | None = None
    exclusive_stores: bool = False
    _agreed: Agreed | None = field(default=None, init=False, repr=False)
    _before: Agreed | None = field(default=None, init=False, repr=False)
    """of the step before that of `_agreed`"""
    _made: tuple[bytes, Respondent] | None = field(default=None, init=False, repr=False)
    """the answers' compiled program, of the state and forecast that it was made for"""

    def __post_init__(self) -> None:
        (self._grid,) = members(self.site, self.microgrid)
        if self._grid.heat is not None:
            raise ValueError(
                f"microgrid {self._grid.name!r} has a heat demand, of which the partnership plans nothing; "
                "leave it out or use controllers.interchange"
            )
        if self.horizon < 1:
            raise ValueError(f"partnership: a horizon of {self.horizon} intervals; give at least 1")
        self._fleet = fleet(self.site, self._grid, curtailment_cost_per_mwh=self.curtailment_cost_per_mwh)

    @property
    def intervals(self) -> int:
        """How far a forecast has to reach."""
        return self.horizon

    @property
    def sight(self) -> Sight:
        """Its own devices, exchange and price, and what its leader says to it."""
        return Sight.microgrid(self.site, self._grid.name)

    def step(self, observation: Observation) -> Decision:
        """Answer, and settle where that is asked for; see the class."""
        heard = question(observation)
        if heard is None:
            return self._alone(observation)
        leader, word = heard
        try:
            asked = from_word(word)
            if not isinstance(asked, get_args(Question)):
                raise ValueError(f"word {word.number} {word.what!r} is an answer; a follower is asked")
            respondent = self._respondent(observation)
            if isinstance(asked, AskSettlement):
                done = respondent.operation(asked)
                answer = Settlement(asked.iteration, done.cost, done.p, done.q, done.off_by)
                self._note(Agreed(observation.time, done.p, done.q))
                return self._settled(observation, respondent, done, {leader: to_word(answer)})
            said = to_word(respondent.answer(asked))
        except ValueError as error:
            raise ControlError(f"{self._grid.name}: {error}") from error
        return Decision(time=observation.time, origin=Origin.OPTIMAL, words={leader: said})

    def memory(self) -> object:
        """The exchange that was agreed on last, and the one before."""
        return self._agreed, self._before

    def recall(self, memory: Any) -> None:
        """Go on from what `memory` has returned."""
        self._agreed, self._before = memory

    def _note(self, agreed: Agreed) -> None:
        if self._agreed is not None and self._agreed.time != agreed.time:
            self._before = self._agreed
        self._agreed = agreed

    def _alone(self, observation: Observation) -> Decision:
        """Keep to what was agreed on last."""
        name = self._grid.name
        if self._agreed is not None and self._agreed.time == observation.time:
            self._agreed = self._before  # what it has settled on in this step, others have not
        agreed = self._agreed
        passed = 0 if agreed is None else round((observation.time - agreed.time) / self.site.every)
        if agreed is None or not 0 <= passed < len(agreed.p_mw):
            last = "nothing was agreed on before" if agreed is None else f"what was at {agreed.time} is over"
            raise Infeasible(f"{name}: nothing is agreed on, and {last}; its devices obey their defaults")
        point = Point(agreed.p_mw[passed:], agreed.q_mvar[passed:], 0.0)
        made = self._commitment(read(observation, self.site, (self._grid,), len(point.p)))
        respondent = Respondent(made)
        done = respondent.operation(AskSettlement(0, point))
        why = f"nothing is agreed on: it keeps to the exchange of {agreed.time:%Y-%m-%dT%H:%M}Z"
        return self._settled(observation, respondent, done, {}, why)

    def _settled(
        self,
        observation: Observation,
        respondent: Respondent,
        done: Operation,
        words: Mapping[str, Any],
        why: str | None = None,
    ) -> Decision:
        name, made = self._grid.name, respondent.program.made
        wrong = [] if why is None else [why]
        if done.off_by > MET:
            wrong.append(f"its devices miss the exchange agreed on by {done.off_by:.6f} MW and Mvar")
        wrong += impossible(made, done.y)
        p_mw = done.p[:, None]
        return Decision(
            time=observation.time,
            origin=Origin.DEGRADED if wrong else Origin.OPTIMAL,
            setpoints={
                device: setpoint(self.site.devices[device], made, done.y, done.bits)
                for device in self._grid.devices
            },
            certificates={name: Certificate(binding="; ".join(wrong))} if wrong else {},
            plan=Forecast(observation.time, self.site.every, (name,), p_mw, np.zeros_like(p_mw)),
            words=words,
        )

    def _respondent(self, observation: Observation) -> Respondent:
        reading = read(observation, self.site, (self._grid,), self.horizon)
        if not reading.connected[self._grid.name]:
            raise Infeasible(f"{self._grid.name}: it is not connected, and exchanges nothing with anybody")
        key = _key(reading)
        if self._made is None or self._made[0] != key:
            made = self._commitment(reading)
            self._made = key, Respondent(made)
        return self._made[1]

    def _commitment(self, reading: Reading) -> Commitment:
        found = outlook_of(self.site, self._fleet, reading)
        return commitment(
            self._fleet, found, exclusive_stores=self.exclusive_stores, tie_mw=self._grid.tie_mw
        )


def _key(reading: Reading) -> bytes:
    """All that answers follow from."""
    measured = repr((reading.forecast.issued_at, sorted(reading.p_mw.items()), sorted(reading.e_mwh.items())))
    return measured.encode() + reading.forecast.mean.tobytes()
