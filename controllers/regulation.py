"""VoltageRegulation: the network operator's tap changers and capacitor banks, moved now and then.

Slower than the envelopes: it is asked every 15 to 30 minutes, in such a step before the envelope controllers,
which share what its positions allow. They have to be due in that step too, since envelopes that were decided
for other positions are no longer safe: so their period divides this one's. What is best follows from
`controllers.envelopes.positions`.

| symbol   | meaning                                                      | unit |
|----------|--------------------------------------------------------------|------|
| t^U, t^L | common export and import per unit of weight (P-E)            | MW   |
| gamma    | weight of each device                                        | MW   |
| c        | cost of moving one regulator by one position                 | MW   |

    max over positions:  sum(gamma) (t^U + t^L) - c moves,   t^U or t^L alone with `for_`
    subject to:          zero injection, joint greatest export and joint greatest import within the rows

Without the second and third of these points the best would be to switch everything on, which breaks the upper
limit as soon as the devices import nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, get_args

import numpy as np
import numpy.typing as npt

from controllers.contract import Decision, Infeasible, Observation, Origin
from controllers.envelopes.ac_check import AcCheck
from controllers.envelopes.allowable import AllowableRegion
from controllers.envelopes.margins import Margin, Reserve
from controllers.envelopes.method import Background, Room
from controllers.envelopes.position_search import For
from controllers.envelopes.positions import Chosen, Positions, Search
from controllers.regulators import standing
from controllers.site import Site

Array = npt.NDArray[np.float64]

ROUNDS = 20
"""How often the AC power flow may refuse positions before there are none."""

BEYOND = 1e-6
"""How far [pu^2, MVA] a limit may be exceeded in the AC power flow and still hold."""


@dataclass
class VoltageRegulation:
    """Moves tap changers and capacitor banks to where the devices' equal ranges (P-E) are greatest.

    The background is the forecast's mean; of several intervals, the one that leaves each row the least room
    counts. Where the site has an AC power flow, zero injection is checked by it at the positions found, for
    each interval: a limit that it finds broken is tightened by how far the linear model was off, and the
    search goes on. The joint greatest export and import are held in the linear model alone; whoever decides
    the envelopes checks those. Of equal positions the ones with the fewest moves count, then the lowest.

    Args:
        site: with regulators.
        for_: which range counts: `both`, `export` or `import`.
        switching_cost_mw: what one position of one regulator is worth; the more, the fewer moves.
        intervals: how many of the coming intervals the positions must suit; as many as pass until the
            controller is asked again.
        method: `enumerate` tries all positions, `integer` asks a mixed-integer linear program, `coordinate`
            moves one regulator or two at a time from several starts and may miss the best; `auto`
            enumerates up to 200,000 combinations, beyond them it takes the program.
        margin: what to keep free of each row's room for forecast errors, as in `EnvelopeMethod`; the further
            ahead the positions have to suit, the more they need it.

    Raises:
        ValueError: no regulators, no devices, or an option that does not exist.
        Infeasible: (step) no positions keep the background within the limits, or with what is kept free.
        SolverFailed: (step, `method="integer"`) the solver had no answer.
    """

    goes_first: ClassVar[bool] = True
    """asked before the other controllers of a step, whose envelopes have to suit the positions"""
    sources: ClassVar[tuple[str, ...]] = (
        "Tap changers and capacitor banks: Equitable Active-Reactive Power Envelopes for Distributed Energy "
        "Resources in Power Distribution Systems, appendix, tables A.I and A.II",
    )

    site: Site
    for_: For = "both"
    switching_cost_mw: float = 0.01
    intervals: int = 1
    method: Search = "auto"
    margin: Mapping[str, Any] | None = None
    rows: AllowableRegion = field(init=False, repr=False)
    _reserve: Reserve | None = field(init=False, repr=False, default=None)
    positions: Positions = field(init=False, repr=False)
    _gamma: Array = field(init=False, repr=False)
    _check: AcCheck | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        site = self.site
        for what, of in (("regulators to move", site.regulators), ("devices to give room", site.devices)):
            if not of:
                raise ValueError(f"voltage regulation: site {site.name!r} has no {what}")
        for option, allowed in (("for_", get_args(For)), ("method", get_args(Search))):
            if getattr(self, option) not in allowed:
                value = getattr(self, option)
                raise ValueError(f"voltage regulation: {option} {value!r} is none of {', '.join(allowed)}")
        if not 0 <= self.switching_cost_mw < np.inf:
            cost = self.switching_cost_mw
            raise ValueError(f"voltage regulation: switching_cost_mw {cost} is negative or not finite")
        if self.intervals < 1:
            raise ValueError(f"voltage regulation: intervals {self.intervals} must be at least 1")
        self._gamma = np.array([device.weight for device in site.devices.values()])
        if not (self._gamma > 0).all():
            raise ValueError("voltage regulation: a device's weight is not above 0; give it one")
        self.rows = AllowableRegion(site)
        self.positions = Positions(self.rows)
        if self.margin is not None:
            self._reserve = Reserve(self.rows, Margin.of(self.margin))
        self._check = AcCheck(self.rows, site.power_flow) if site.power_flow is not None else None

    def step(self, observation: Observation) -> Decision:
        present = standing(self.site.regulators, observation.positions)
        count = max(1, min(self.intervals, len(observation.forecast.mean)))
        forecast = observation.forecast
        backgrounds = tuple(Background(*self.rows.background(forecast.at(i))) for i in range(count))
        W = np.min([self.positions.W(b.p_mw, b.q_mvar, present) for b in backgrounds], axis=0)
        off = self._kept_back(observation, count)
        for _ in range(ROUNDS):
            chosen = self.positions.best(
                W - off,
                present,
                self._gamma,
                for_=self.for_,
                cost_mw=self.switching_cost_mw,
                search=self.method,
            )
            wrong = self._wrong(chosen, backgrounds)
            if not wrong.any():
                return Decision(
                    time=observation.time, origin=Origin.OPTIMAL, positions=dict(chosen.positions)
                )
            off += wrong
        raise Infeasible(
            f"the AC power flow refused {ROUNDS} times the positions that the linear model proposed; the "
            "background leaves too little room, widen the limits or relieve the network"
        )

    def _kept_back(self, observation: Observation, count: int) -> Array:
        """(rows,) the margin for forecast errors, of several intervals the greatest."""
        kept = np.zeros(len(self.rows))
        forecast = observation.forecast
        if self._reserve is not None:
            for std_mw in forecast.std[:count]:
                spread = dict(zip(forecast.names, std_mw.tolist(), strict=True))
                kept = np.maximum(kept, self._reserve(spread))
        return kept

    def _wrong(self, chosen: Chosen, backgrounds: tuple[Background, ...]) -> Array:
        """(rows,) by how much the linear model overrates its room, in the limits that are broken without
        any injection of the devices; zero elsewhere."""
        wrong = np.zeros_like(chosen.W)
        if self._check is None:
            return wrong
        room = Room(
            W=chosen.W,
            reserve=np.zeros_like(chosen.W),
            gamma=self._gamma,
            backgrounds=backgrounds,
            positions=chosen.positions,
        )
        check = self._check.at(room)
        still = np.zeros((len(backgrounds), len(self.site.devices)))
        answers = check.solve(still, still, np.arange(len(backgrounds)))
        if not answers.solved.all():
            wrong[:] = np.maximum(chosen.W, 0.0) + BEYOND
            return wrong
        broken = np.flatnonzero((check.beyond(answers) > BEYOND).any(axis=0))
        rows = self._check.rows_of(broken)
        wrong[rows] = np.maximum(check.value(answers) + chosen.W, 0.0)[rows]
        return wrong
