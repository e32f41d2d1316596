"""DPICP: how far a microgrid can move its exchange with the network, as its operator predicts it.

Source: seed 003, as reconstructed; see `controllers.interchange.microgrid_model` for the constraints and
`controllers.interchange.tradeoff` for the objectives. Uncertainty by Hong's point estimate,
`controllers.point_estimate`.

| symbol     | here             | meaning                                                        | unit   |
|------------|------------------|----------------------------------------------------------------|--------|
| P_PCC      | `p_mw`           | exchange with the network                                      | MW     |
| P_up, P_dn | `up_mw`, `dn_mw` | predicted interchange capability (PIC)                         | MW     |
| E, sigma   | `mean`, `std`    | over the cases of the forecast                                 |        |
| beta       | `beta`           | how many standard deviations the PIC is narrower at either end | 1      |

Modes:

- `independent`: every case is solved for itself. Published are P = E[P_PCC] and the PIC from
  min(E[P_dn] + beta sigma, P) to max(E[P_up] - beta sigma, P), all within the tie's rating.
- `committed`: exchange and PIC are the same in every case, the rest follows the case; the PIC holds in each
  of them. The cases' weights are probabilities here, so the scheme is 2m, or 2m+1 where that allows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from controllers.contract import Decision, Infeasible, Interval, Kind, Observation, Origin
from controllers.forecast import Forecast
from controllers.interchange.microgrid_model import PCC, MicrogridModel
from controllers.interchange.microgrid_options import Capability, Link, ModelOptions, Source, links
from controllers.interchange.reading import Reading, members, read
from controllers.interchange.recourse import compiled, stacked
from controllers.interchange.tradeoff import Found, Rule, Scalarisation, Tradeoff
from controllers.interchange.uncertainty import Uncertainty
from controllers.microgrid import Microgrid
from controllers.point_estimate import Points, Scheme
from controllers.region import Region
from controllers.site import Site

Array = npt.NDArray[np.float64]
Mode = Literal["independent", "committed"]

A_YEAR_S = 366 * 86400
"""Longer than any adjustment takes."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """What is expected of a group of microgrids over the horizon of H intervals."""

    p_mw: Array
    """(H, microgrids) exchange"""
    std_mw: Array
    """(H, microgrids) its standard deviation over the cases; zero where it is committed"""
    dn_mw: Array
    """(H, microgrids) least exchange of the interchange capability, `up_mw` the greatest"""
    up_mw: Array
    cost: tuple[float, float]
    """mean and standard deviation of the cost over the horizon [$]; NaN where nothing was solved for"""
    cases: tuple[Found, ...]
    """what was solved: one solution a case, or one of all"""
    weights: Array
    """(K,) of the cases"""
    clipped: int
    """values of cases that were beyond what is possible"""


@dataclass
class InterchangePrediction:
    """DPICP: predicts the interchange capability of a microgrid, or of several that help each other.

    It publishes, of kind `PIC`, the interchange capability of each microgrid in the coming step and in the
    intervals after it, with the reactive power that the microgrid offers; `plan` is the exchange that it
    would choose. A microgrid that is not connected exchanges nothing.

    By default, as the source has it, the capability is what one adjustment reaches from the plan
    (`capability="scheduled"`): where engines ramp slowly that is more than the coming step alone allows,
    which first has to bring them to the plan. `reachable` counts from what is measured.

    Args:
        site: with its microgrids.
        microgrid: whose, one name or several; the site's only one if not given.
        horizon: intervals H looked ahead.
        mode: see this module.
        scheme: of the point estimate; 2m+1 if not given, 2m for `committed`.
        beta: standard deviations by which the capability is narrowed at either end (`independent`).
        scalarisation, mu, weight, epsilon_mwh: see `Scalarisation`.
        pic_sources, capability, keep_energy: see `ModelOptions`.
        adjust_s: adjustment time of the capability [s]; one interval if not given.
        links: between the microgrids; `Link` or its fields by name.
        moments, correlation: see `Uncertainty`; by kind, `sun`, `wind`, `loads` or `heat`.

    Raises:
        ValueError: no such microgrid, or an option that does not exist or fit.
        Infeasible: (step) something is not measured or not forecast, or no plan fulfils all that is asked.
        NegativeWeight: (step) `committed` with weights below zero.
        SolverFailed: (step) the solver had no answer.
    """

    sources: ClassVar[tuple[str, ...]] = (
        "DPICP, predicted interchange capability of microgrids: seed 003, its model reconstructed from the "
        "nomenclature; H. P. Hong's point estimate method, schemes 2m and 2m+1",
    )

    site: Site
    microgrid: str | Sequence[str] | None = None
    horizon: int = 12
    mode: Mode = "independent"
    scheme: Scheme | None = None
    beta: float = 1.0
    scalarisation: Rule = "price"
    mu: float = 25.0
    weight: float = 0.5
    epsilon_mwh: float | None = None
    pic_sources: Sequence[Source] = ("generators",)
    capability: Capability = "scheduled"
    adjust_s: float | None = None
    keep_energy: bool = True
    links: Sequence[Link | Mapping[str, Any]] = ()
    moments: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    correlation: Sequence[Sequence[float]] | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("independent", "committed"):
            raise ValueError(f"prediction: mode {self.mode!r} is neither 'independent' nor 'committed'")
        if self.scheme not in (None, "2m", "2m+1"):
            raise ValueError(f"prediction: scheme {self.scheme!r} is neither '2m' nor '2m+1'")
        if not 0 <= self.beta < np.inf:
            raise ValueError(f"prediction: beta {self.beta} is below zero, or no number")
        if self.adjust_s is not None and not 0 < self.adjust_s <= A_YEAR_S:
            raise ValueError(f"prediction: adjust_s {self.adjust_s} is no time to adjust in; give seconds")
        grids = members(self.site, self.microgrid)
        options = ModelOptions(
            pic_sources=tuple(self.pic_sources),
            capability=self.capability,
            adjust=None if self.adjust_s is None else timedelta(seconds=self.adjust_s),
            keep_energy=self.keep_energy,
        )
        self._how = Scalarisation(
            rule=self.scalarisation, mu=self.mu, weight=self.weight, epsilon_mwh=self.epsilon_mwh
        )
        self._model = MicrogridModel(self.site, grids, self.horizon, links(self.links), options)
        self._uncertainty = Uncertainty(self.site, grids, self.moments, self.correlation)
        self._programs: dict[int, Tradeoff] = {1: compiled(self._model)}

    @property
    def intervals(self) -> int:
        """How far a forecast has to reach."""
        return self.horizon

    @property
    def grids(self) -> tuple[Microgrid, ...]:
        """The group."""
        return self._model.grids

    def step(self, observation: Observation) -> Decision:
        """Publish the interchange capability; see the class."""
        found = self.predict(observation)
        every = self.site.every
        starts = [observation.time + (i + 1) * every for i in range(self.horizon + 1)]
        regions = [
            {
                grid.name: Region.box(
                    p_mw=(float(found.dn_mw[i, j]), float(found.up_mw[i, j])),
                    q_mvar=grid.q_mvar if observation.connected.get(grid.name, True) else (0.0, 0.0),
                )
                for j, grid in enumerate(self.grids)
            }
            for i in range(self.horizon)
        ]
        names = tuple(grid.name for grid in self.grids)
        return Decision(
            time=observation.time,
            origin=Origin.OPTIMAL,
            kind=Kind.PIC,
            regions=regions[0],
            until=starts[1] if self.horizon > 1 else None,
            later=tuple(
                Interval(start=starts[i], end=starts[i + 1], regions=regions[i])
                for i in range(1, self.horizon)
            ),
            plan=Forecast(observation.time, every, names, found.p_mw, found.std_mw),
        )

    def predict(self, observation: Observation) -> Prediction:
        """The numbers behind `step`.

        Raises:
            ControlError: as `step`.
        """
        shape = (self.horizon, len(self.grids))
        if not any(observation.connected.get(grid.name, True) for grid in self.grids):
            zero = np.zeros(shape)
            return Prediction(zero, zero, zero, zero, (np.nan, np.nan), (), np.ones(1), 0)
        reading = read(observation, self.site, self.grids, self.horizon)
        scheme: Scheme = self.scheme or ("2m" if self.mode == "committed" else "2m+1")
        points = self._uncertainty.points(reading, scheme)
        for program in self._programs.values():
            program.clear()
        solve = self._committed if self.mode == "committed" else self._independent
        try:
            return solve(reading, points)
        except Infeasible as error:
            names = ", ".join(repr(grid.name) for grid in self.grids)
            if alone := [grid.name for grid in self.grids if not reading.connected[grid.name]]:
                names += f" ({', '.join(alone)} not connected)"
            also = " and a band as wide as epsilon_mwh asks for" if self._how.rule == "epsilon" else ""
            raise Infeasible(
                f"microgrid {names}: no plan keeps balance, tie rating, ramps and firm loads{also}: {error}"
            ) from error

    def _independent(self, reading: Reading, points: Points) -> Prediction:
        model, program = self._model, self._programs[1]
        costs, payoff = model.costs(reading), None
        if self._how.rule == "weighted":
            payoff = program.payoff(costs, model.bounds(reading))
        solved = [program.best(self._how, costs, model.bounds(reading, case), payoff) for _, case in points]
        p, up, dn = (np.array([self._of(symbol, one.x) for one in solved]) for symbol in PCC)
        (p_mw, std_mw), (up_mean, up_std), (dn_mean, dn_std) = (points.moments(x) for x in (p, up, dn))
        tie = np.array([grid.tie_mw for grid in self.grids])
        p_mw = np.clip(p_mw, -tie, tie)  # weights below zero may leave what each case keeps
        cost = [
            one.f1 + model.hours * model.offset(reading, case)
            for one, (_, case) in zip(solved, points, strict=True)
        ]
        mean, std = points.moments(np.array(cost))
        return Prediction(
            p_mw=p_mw,
            std_mw=std_mw,
            dn_mw=np.maximum(np.minimum(dn_mean + self.beta * dn_std, p_mw), -tie),
            up_mw=np.minimum(np.maximum(up_mean - self.beta * up_std, p_mw), tie),
            cost=(float(mean), float(std)),
            cases=tuple(solved),
            weights=points.weights,
            clipped=points.clipped,
        )

    def _committed(self, reading: Reading, points: Points) -> Prediction:
        points.require_probabilities()
        model, K = self._model, len(points.weights)
        if K not in self._programs:  # how many factors have a spread changes with the sun
            self._programs[K] = compiled(self._model, K)
        one, own = model.costs(reading), model.shared
        costs = np.concatenate([one[:own], *(w * one[own:] for w, _ in points)])
        sides = [model.bounds(reading, case) for _, case in points]
        found = self._programs[K].best(self._how, costs, stacked(sides, own))
        p_mw, up_mw, dn_mw = (self._of(symbol, found.x) for symbol in PCC)
        cost = [
            model.hours * (one[:own] @ found.x[:own] + one[own:] @ rest + model.offset(reading, case))
            for rest, (_, case) in zip(found.x[own:].reshape(K, -1), points, strict=True)
        ]
        mean, std = points.moments(np.array(cost))
        return Prediction(
            p_mw=p_mw,
            std_mw=np.zeros_like(p_mw),
            dn_mw=np.minimum(dn_mw, p_mw),
            up_mw=np.maximum(up_mw, p_mw),
            cost=(float(mean), float(std)),
            cases=(found,),
            weights=points.weights,
            clipped=points.clipped,
        )

    def _of(self, symbol: str, x: Array) -> Array:
        """(H, microgrids) of a block that each has."""
        return np.column_stack([x[self._model.lp.at((grid.name, symbol))] for grid in self.grids])
