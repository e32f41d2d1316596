"""FaultyController: a controller whose solver fails when a scenario says so.

It looks at nothing but the time that it is asked for, so it does the same in a process of its own, and when a
run is replayed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from controllers.contract import (
    Controller,
    Decision,
    Infeasible,
    Late,
    Observation,
    SolverFailed,
)
from controllers.devices import AXES
from controllers.region import Region
from controllers.wrapper import Wrapper
from simulators.faults import Fault, What, chance


@dataclass
class FaultyController(Wrapper):
    """The decision of `inner`, but where one of its faults is on.

    | fault | what happens |
    |---|---|
    | solver-infeasible | `Infeasible` |
    | solver-raises | an exception that is no controller's |
    | solver-nan | a decision with a region that is not a number |
    | solver-late | with a paced clock it comes so much later; else none (`Late`) if not before `within_s` |
    | line-out | `SolverFailed`: it was made for the grid as it was |

    Args:
        faults: those of this controller.
        within_s: its deadline, or the length of a step [s].
        speed: simulated seconds, in which `by_s` is, a second of the wall clock; `None`: nobody waits for it.
        sleep: takes seconds of the wall clock.
    """

    inner: Controller
    faults: Sequence[Fault]
    seed: int
    within_s: float
    speed: float | None
    sleep: Callable[[float], None] = time.sleep

    def step(self, observation: Observation) -> Decision:
        for fault in self.faults:
            if not fault.on(observation.time):
                continue
            drawn = chance(self.seed, fault.number, "step", observation.time.isoformat())
            if fault.share is not None and drawn >= fault.share:
                continue
            match fault.what:
                case What.SOLVER_INFEASIBLE:
                    raise Infeasible("fault of the scenario: no decision satisfies the constraints")
                case What.SOLVER_RAISES:
                    raise ArithmeticError("fault of the scenario: the solver raised")
                case What.SOLVER_NAN:
                    return _not_a_number(self.inner.step(observation))
                case What.LINE_OUT:
                    raise SolverFailed(
                        f"made for a grid with {fault.branch} closed, which is open; what it said last holds "
                        "until it ends"
                    )
                case What.SOLVER_LATE if self.speed is not None:
                    self.sleep((fault.by_s or 0.0) / self.speed)
                case What.SOLVER_LATE if (fault.by_s or 0.0) >= self.within_s:
                    raise Late(f"fault of the scenario: the solver takes {fault.by_s:g} s longer")
        return self.inner.step(observation)


def _not_a_number(decision: Decision) -> Decision:
    """As a solver that has failed without saying so would decide."""
    rows = np.array([[1.0, 0.0], [0.0, 1.0]])
    region = Region(AXES, rows, np.full(2, np.nan))
    return replace(decision, regions=dict.fromkeys(decision.regions or {"nobody": region}, region))
