"""Fallback: ask a second controller when the first has no decision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from controllers.contract import (
    ControlError,
    Controller,
    Decision,
    Observation,
    Origin,
    memory_of,
    recall_of,
)
from controllers.roles import Sight, followers_of, sight_of


def _any(decision: Decision, observation: Observation) -> None:
    """Holds a decision to nothing."""


@dataclass
class Fallback:
    """The first controller's decision, else the second's, marked `Origin.FALLBACK`.

    The second one is asked whatever the first one raises, its mistakes and its `sys.exit` too, and when its
    decision breaks the contract; a mistake is told in `Decision.mistake`. Itself a controller, so fallbacks
    nest.

    Args:
        check: raises if a decision breaks the contract.

    Raises:
        ControlError: (step) of the second, with that of the first as its cause.
        Exception: (step) the first one's mistake, if the second one has no decision either; or the second's.
    """

    first: Controller
    second: Controller
    check: Callable[[Decision, Observation], None] = _any

    def step(self, observation: Observation) -> Decision:
        mistake: BaseException | None = None
        try:
            decision = self.first.step(observation)
            self.check(decision, observation)
            return decision
        except ControlError as error:
            why: BaseException = error
        except (Exception, SystemExit) as error:
            why = mistake = error
        try:
            decision = self.second.step(observation)
        except ControlError as also:
            if mistake is not None:  # which nobody else would hear of
                raise mistake from also
            raise also from why
        said = None if mistake is None else f"{type(mistake).__name__}: {mistake}"
        return replace(decision, origin=Origin.FALLBACK, mistake=said)

    @property
    def followers(self) -> tuple[str, ...]:
        """Whom the first one leads; what the second one decides, it decides alone."""
        return followers_of(self.first)

    @property
    def follows(self) -> bool:
        """Whether it is to be led."""
        return getattr(self.first, "follows", False) is True

    @property
    def sight(self) -> Sight | None:
        """What both are shown: as much as the first one."""
        return sight_of(self.first)

    def memory(self) -> object:
        """Of both; `None` if neither remembers anything."""
        both = memory_of(self.first), memory_of(self.second)
        return None if both == (None, None) else both

    def recall(self, memory: Any) -> None:
        for controller, own in zip((self.first, self.second), memory or (), strict=False):
            recall_of(controller, own)
