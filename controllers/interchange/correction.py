"""InterchangeCorrection: DPICC, what the network leaves of the microgrids' predicted interchange.

Every step it hears the predictions (PIC), solves `CorrectionProgram`, asks the AC power flow whether the
answer holds for every exchange in it, repairs it until it does, and publishes the available interchange
capabilities (AIC), the corrected schedule and setpoints for the network operator's own batteries.

Source: seed 003; the program in `correction_rows`, the check in `checks`. What repairs an answer, in order:

| found                                          | then                                                   |
|------------------------------------------------|--------------------------------------------------------|
| no schedule keeps the limits of some intervals | theirs are moved by as little as it takes              |
| currents above what flows need (cone gap)      | losses weigh ten times as much                         |
| a battery charges and discharges at once       | it may only do what it does more of                    |
| the AC power flow is beyond a limit            | that limit is tightened by the excess                  |
| it still is                                    | the interval shrinks towards the schedule by bisection |
| so is the schedule itself                      | [P, P], and what is broken is named                    |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from controllers.contract import (
    Certificate,
    Decision,
    Interval,
    Kind,
    Observation,
    Setpoint,
)
from controllers.devices import Battery
from controllers.forecast import Forecast
from controllers.interchange.binding import Binding
from controllers.interchange.branch_flow import BranchFlow
from controllers.interchange.checks import BoxCheck
from controllers.interchange.correction_program import CorrectionProgram
from controllers.interchange.heard import Ear, Spoken
from controllers.interchange.question import Case, Corrected, Options
from controllers.interchange.repair import Repair, Verdict
from controllers.region import Region
from controllers.site import Site

Array = npt.NDArray[np.float64]


@dataclass
class InterchangeCorrection:
    """DPICC: available interchange capabilities of all microgrids of a network.

    The decision's regions are `p_mw` in [AIC_dn, AIC_up] and `q_mvar` at the one value that the network
    counts on, by microgrid; `later` holds those of the following intervals as far as each of them predicted;
    `plan` is the corrected schedule. Its origin is `CERTIFIED` when the relaxation was exact and the first
    interval held in AC at once, `REPAIRED` when it had to be changed, `DEGRADED` when not even the schedule
    is secure: then the capability is the schedule alone.

    The first interval is the one that acts: all corners of the microgrids' intervals and `points` random
    points are checked. Beyond 1,024 corners, of more than ten microgrids, or six that may leave, 1,024 of
    them at random and each microgrid against all others. Of the later intervals all corners while there are
    at most 1,024 of them in all, else the two copies; they are heard again before they act.

    Args:
        site: with microgrids and an AC power flow. Batteries outside microgrids are the network operator's.
        horizon: intervals that are looked ahead, H.
        slack_mw: least and greatest import at the slack bus [MW]; no limit if not given.
        reserve_mw: up and down spinning reserve of the slack bus [MW]; as much as it takes if not given.
        required_mw: up and down reserve to keep beside the microgrids' adjustments [MW].
        mu_loss: what losses add to a change of exchange when reserves are counted.
        reserve_margin: `factor` counts losses by `mu_loss` and corrects it by the AC power flow; `rigorous`
            bounds them by the copies.
        share: `total` maximises the sum of the capabilities' widths, `fair` keeps the squared losses against
            the predictions least.
        weights: worth of each microgrid's width, by name, for `total`; 1 where none is given.
        schedule_weight: M, what a MW of corrected schedule costs in MW of width.
        loss_weight: kappa, the same of losses.
        isolation_secure: whether any microgrids may leave suddenly, with P and Q, without breaking a limit.
        energy_worth: what a MWh costs that batteries end the horizon below where they began it, or below half
            of their range if that is less, in MWh of width; at 0 they are emptied for the losses of today.
        reserve_h: for how long batteries must be able to give reserve; one step if not given.
        polish: whether the second stage is solved.
        points: random points of the first interval's check.
        outside_part: of the rating of each device outside microgrids, what is left to it beside any exchange
            in the capabilities, as what its default and an envelope in force allow it is; `None`: such
            devices stay where they are forecast or measured, which is not so beside envelopes (`outside`).
        batteries: names of the network operator's own; all outside microgrids if not given.

    Raises:
        ValueError: a site without microgrids or AC power flow, a network that the relaxation is not valid
            for, an option that does not exist.
        Infeasible: (step) a load or battery is unknown, or a prediction makes no sense.
    """

    sources: ClassVar[tuple[str, ...]] = (
        "DPICC, correction of interchange capability: dynamic interchange capability of multi-microgrids and "
        "a distribution network, reconstructed from its abstract, introduction and nomenclature",
        "Exactness: Gan, Li, Topcu and Low, Exact Convex Relaxation of Optimal Power Flow in Radial Networks",
    )

    site: Site
    horizon: int = 4
    slack_mw: tuple[float, float] | None = None
    reserve_mw: tuple[float, float] | None = None
    required_mw: tuple[float, float] = (0.0, 0.0)
    mu_loss: float = 0.10
    reserve_margin: Literal["factor", "rigorous"] = "factor"
    share: Literal["total", "fair"] = "total"
    weights: Mapping[str, float] | None = None
    schedule_weight: float = 50.0
    loss_weight: float = 1e-3
    isolation_secure: bool = False
    energy_worth: float = 0.1
    reserve_h: float | None = None
    polish: bool = True
    points: int = 200
    outside_part: float | None = None
    batteries: Sequence[str] | None = None
    program: CorrectionProgram = field(init=False, repr=False)
    _ear: Ear = field(init=False, repr=False)
    _repair: Repair = field(init=False, repr=False)
    _binding: Binding = field(init=False, repr=False)
    _batteries: dict[str, Battery] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        site = self.site
        if not site.microgrids:
            raise ValueError(
                f"interchange correction: site {site.name!r} has no microgrids; name them in the scenario"
            )
        if site.power_flow is None:
            raise ValueError(
                f"interchange correction: site {site.name!r} has no AC power flow, and without its check no "
                "capability is released"
            )
        self._refuse_options()
        behind = {name for microgrid in site.microgrids.values() for name in microgrid.devices}
        self._batteries = {
            name: device
            for name, device in site.devices.items()
            if isinstance(device, Battery) and name not in behind
        }
        if self.batteries is not None:
            if strangers := [name for name in self.batteries if name not in self._batteries]:
                known = ", ".join(self._batteries) or "none"
                raise ValueError(
                    f"interchange correction: batteries {strangers} are not there outside the microgrids; "
                    f"known: {known}"
                )
            self._batteries = {name: self._batteries[name] for name in self.batteries}
        buses = tuple(microgrid.bus for microgrid in site.microgrids.values())
        worth = {**dict.fromkeys(site.microgrids, 1.0), **(self.weights or {})}
        self.program = CorrectionProgram(
            BranchFlow(site.network),
            site.limits,
            buses,
            np.array([worth[name] for name in site.microgrids]),
            tuple(self._batteries.values()),
            site.every.total_seconds() / 3600,
            self.horizon,
            Options(
                import_mw=_pair(self.slack_mw),
                reserve_mw=_pair(self.reserve_mw),
                required_mw=_pair(self.required_mw) or (0.0, 0.0),
                mu_loss=self.mu_loss,
                reserve_margin=self.reserve_margin,
                share=self.share,
                schedule_weight=self.schedule_weight,
                loss_weight=self.loss_weight,
                isolation_secure=self.isolation_secure,
                energy_worth=self.energy_worth,
                reserve_h=self.reserve_h,
            ),
        )
        self._ear = Ear(site, self._batteries, self.horizon, self.outside_part)
        self._binding = Binding(self.program.model, buses)
        check = BoxCheck(self.program.model, site.power_flow, self.points)
        self._repair = Repair(self.program, check, polish=self.polish)

    @property
    def customers(self) -> tuple[str, ...]:
        """Devices outside microgrids that are not the network operator's."""
        behind = {name for microgrid in self.site.microgrids.values() for name in microgrid.devices}
        return tuple(name for name in self.site.devices if name not in behind and name not in self._batteries)

    def _refuse_options(self) -> None:
        what = "interchange correction"
        if self.horizon < 1:
            raise ValueError(f"{what}: horizon {self.horizon} must be at least 1")
        for name, allowed in (("reserve_margin", ("factor", "rigorous")), ("share", ("total", "fair"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{what}: {name} {getattr(self, name)!r} is none of {', '.join(allowed)}")
        for name in ("mu_loss", "schedule_weight", "loss_weight", "energy_worth", "points"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{what}: {name} {getattr(self, name)} is negative")
        if self.outside_part is not None and not 0 <= self.outside_part <= 1:
            raise ValueError(f"{what}: outside_part {self.outside_part} is no part of a rating; give 0 to 1")
        if self.reserve_h is not None and not self.reserve_h > 0:
            raise ValueError(f"{what}: reserve_h {self.reserve_h} must be above 0")
        if self.slack_mw is not None and not self.slack_mw[0] <= self.slack_mw[1]:
            raise ValueError(f"{what}: slack_mw {self.slack_mw} has its lower limit above its upper")
        for name in ("reserve_mw", "required_mw"):
            if any(not x >= 0 for x in getattr(self, name) or ()):
                raise ValueError(
                    f"{what}: {name} {getattr(self, name)} is negative; reserve is positive both ways"
                )
        if self.weights and self.share == "fair":
            raise ValueError(
                f"{what}: weights {dict(self.weights)} have no part in share 'fair'; leave one of them out"
            )
        for name, weight in (self.weights or {}).items():
            if name not in self.site.microgrids:
                raise ValueError(f"{what}: weights names {name!r}, which is no microgrid of the site")
            if not weight > 0:
                raise ValueError(f"{what}: the weight {weight} of {name!r} must be above 0")

    def step(self, observation: Observation) -> Decision:
        spoken = self._ear.listen(observation)
        case = self._ear.case(observation, spoken)
        assert self.site.power_flow is not None  # the constructor saw it
        engine = self.site.power_flow
        if self.site.regulators:
            engine = engine.at(observation.positions)
        verdict = self._repair.best(engine, case)
        return self._decision(observation, spoken, case, verdict)

    def _decision(
        self,
        observation: Observation,
        spoken: Mapping[str, Spoken],
        case: Case,
        verdict: Verdict,
    ) -> Decision:
        answer, every, names = verdict.answer, self.site.every, tuple(self.site.microgrids)
        regions, certificates = self._published(spoken, case, verdict, answer, 0)
        later = []
        for t in range(1, self.horizon):
            its_regions, its_certificates = self._published(spoken, case, verdict, answer, t)
            if not its_regions:
                break
            start = observation.time + (t + 1) * every
            later.append(
                Interval(start=start, end=start + every, regions=its_regions, certificates=its_certificates)
            )
        setpoints = {
            name: Setpoint(p_mw=float(answer.p_b[0, k]), q_mvar=float(answer.q_b[0, k]))
            for k, name in enumerate(self._batteries)
        }
        return Decision(
            time=observation.time,
            origin=verdict.origin,
            kind=Kind.AIC,
            setpoints=setpoints,
            regions=regions,
            certificates=certificates,
            later=tuple(later),
            plan=Forecast(observation.time, every, names, answer.base, np.zeros_like(answer.base)),
        )

    def _published(
        self, spoken: Mapping[str, Spoken], case: Case, verdict: Verdict, answer: Corrected, t: int
    ) -> tuple[dict[str, Region], dict[str, Certificate]]:
        """Regions and certificates of one interval, of microgrids that spoke of it."""
        regions, certificates = {}, {}
        for i, (name, said) in enumerate(spoken.items()):
            # Of a microgrid that nobody knows anything of no schedule can be held, so none is told.
            if t >= said.known or (said.unknown and verdict.insecure[t] is not None):
                continue
            p = float(answer.dn[t, i]), float(answer.up[t, i])
            regions[name] = Region.box(p_mw=p, q_mvar=(float(answer.q_mvar[t, i]),) * 2)
            certificates[name] = Certificate(
                binding=self._why(said, case, verdict, answer, t, i),
                worst_v_pu=_finite(verdict.findings.worst_v_pu[t]),
                worst_loading_percent=_finite(verdict.findings.worst_loading_percent[t])
                if len(self.program.model.rated)
                else None,
                power_flows=verdict.power_flows,
            )
        return regions, certificates

    def _why(self, said: Spoken, case: Case, verdict: Verdict, answer: Corrected, t: int, i: int) -> str:
        if (reason := verdict.insecure[t]) is not None:
            words = f"no safe capability: {reason}"
        elif said.why is not None:
            words = said.why
        elif verdict.slacks is None:
            words = f"the AC power flow; the program has no answer ({verdict.why})"
        else:
            words = self._binding.of(verdict.slacks, case, answer, t, i)
        if verdict.insecure[t] is not None and said.why is not None:
            words += f"; {said.why}"
        factor = float(verdict.factor[t])
        return words if factor in (0.0, 1.0) else f"{words}; scaled by {factor:.3f} to hold in AC"


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _pair(values: Any) -> tuple[float, float] | None:
    return None if values is None else (float(values[0]), float(values[1]))
