"""Fallback: ask a second controller when the first has no decision."""

from __future__ import annotations

from dataclasses import dataclass, replace

from controllers.contract import ControlError, Controller, Decision, Observation, Origin


@dataclass
class Fallback:
    """The first controller's decision, else the second's, marked `Origin.FALLBACK`.

    Itself a controller, so fallbacks nest. The second one's `ControlError` passes through with the
    first one's as its cause.
    """

    first: Controller
    second: Controller

    def step(self, observation: Observation) -> Decision:
        try:
            return self.first.step(observation)
        except ControlError as why:
            try:
                decision = self.second.step(observation)
            except ControlError as also:
                raise also from why
        return replace(decision, origin=Origin.FALLBACK)
