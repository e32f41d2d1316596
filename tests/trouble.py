"""Controllers that fail, as chosen beforehand, for tests and soaks; and what devices should hear of them."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

import numpy as np

from controllers.contract import Decision, Infeasible, Observation, Origin, SolverFailed
from controllers.devices import AXES
from controllers.forecast import Forecast
from controllers.region import Region
from controllers.site import Site

TROUBLES = ("infeasible", "time-out", "nan", "plan", "nonsense", "exception", "exit", "none")
"""What may go wrong."""


def trouble_at(step: int, share: float, seed: int) -> str | None:
    """Which trouble a step has, if any: the same for whoever asks."""
    rng = random.Random(seed * 1_000_003 + step)
    return rng.choice(TROUBLES) if rng.random() < share else None


@dataclass
class Troubled:
    """A box of half the rating for each device; in a share of the steps, trouble instead."""

    site: Site
    share: float = 0.2
    seed: int = 0
    first: datetime | None = field(default=None, init=False)

    def step(self, observation: Observation) -> Decision:
        self.first = self.first or observation.time
        step = (observation.time - self.first) // self.site.every
        regions = {
            name: Region.box(p_mw=(-d.rating_mw / 2, d.rating_mw / 2), q_mvar=(0.0, 0.0))
            for name, d in self.site.devices.items()
        }
        decision = Decision(time=observation.time, origin=Origin.OPTIMAL, regions=regions)
        return self._with(trouble_at(step, self.share, self.seed), decision)

    def _with(self, trouble: str | None, decision: Decision) -> Decision:
        name = next(iter(self.site.devices))
        match trouble:
            case "infeasible":
                raise Infeasible("no point satisfies the rows")
            case "time-out":
                raise SolverFailed("stopped after its time limit")
            case "nan":
                box = Region.box(p_mw=(-1.0, float("nan")), q_mvar=(0.0, 0.0))
                return replace(decision, regions={name: box})
            case "plan":
                nan = np.array([[np.nan]])
                return replace(decision, plan=Forecast(decision.time, self.site.every, (name,), nan, 0 * nan))
            case "nonsense":
                return replace(decision, regions={"nobody": Region.box(**dict.fromkeys(AXES, (0.0, 0.0)))})
            case "exception":
                raise ZeroDivisionError("division by zero")
            case "exit":
                raise SystemExit(3)
            case "none":
                return None  # type: ignore[return-value]
        return decision


def expected(steps: int, share: float, seed: int, valid_steps: int) -> Mapping[int, str]:
    """The origin of each step, from the list of troubles alone: what was decided in step k acts from k + 1
    on, for `valid_steps`."""
    found: dict[int, str] = {}
    last: int | None = None
    for step in range(steps):
        if trouble_at(step, share, seed) is None:
            found[step], last = "optimal", step
        else:
            held = last is not None and step + 1 < last + 1 + valid_steps
            found[step] = "held" if held else "default"
    return found


def obeyed(origins: Mapping[int, str], valid_steps: int) -> Mapping[int, str]:
    """By which kind of rule each device goes in each step: `init` before the first decision acts, `failsafe`
    when the last one is over, `told` in between."""
    found: dict[int, str] = {}
    last: int | None = None
    for step in origins:
        if step and origins[step - 1] == "optimal":
            last = step - 1
        if last is None:
            found[step] = "init"
        else:
            found[step] = "told" if step < last + 1 + valid_steps else "failsafe"
    return found
