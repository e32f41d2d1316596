"""Deadline: a controller that answers in time, or says that it is late.

Controllers know no clock and start no threads, so this one is here. A controller in a process of its own has
its deadline in `scenarios.supervisor`, and can be killed; a thread cannot. So a computation that does not
come back is left alone, and as long as it goes on nobody else may ask: two at a time would spoil it.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field

from controllers.contract import Controller, Decision, Late, Observation, memory_of
from controllers.wrapper import Wrapper


@dataclass(eq=False)
class _Asked:
    """One question, answered by a thread."""

    observation: Observation
    before: object
    """what the controller remembered before it was asked"""
    over: threading.Event = field(default_factory=threading.Event)
    decision: Decision | None = None
    error: BaseException | None = None

    def answer(self, controller: Controller) -> None:
        try:
            self.decision = controller.step(self.observation)
        except BaseException as error:  # whoever waits gets it
            self.error = error
        finally:
            self.over.set()


@dataclass(eq=False)
class Deadline(Wrapper):
    """The decision of `inner` if it comes within `within_s` seconds of the wall clock.

    Each question has a thread of its own. One that is late is abandoned: what it still says is not heard, and
    until it has said it every further question is answered `Late` at once. An inner controller that holds
    Python's global lock while it computes delays the rest of the process all the same; give it a process.

    Raises:
        ValueError: a deadline that is not positive.
        Late: (step) there is no decision in time.
        Exception: (step) whatever `inner` raises in time.
    """

    inner: Controller
    within_s: float
    counts: Counter[str] = field(default_factory=Counter, repr=False)
    """abandoned: questions left alone | late-at-once: not asked, because one of them goes on | came-back: of
    those left alone, ended since"""
    _stuck: _Asked | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.within_s > 0:
            raise ValueError(f"deadline: within_s {self.within_s:g} must be above 0")

    def step(self, observation: Observation) -> Decision:
        return self.step_within(observation, self.within_s)

    def step_within(self, observation: Observation, within_s: float) -> Decision:
        """The decision if it comes within `within_s`, or within its own deadline if that is shorter."""
        within_s = min(within_s, self.within_s)
        if (stuck := self._stuck) is not None:
            if not stuck.over.is_set():
                self.counts["late-at-once"] += 1
                raise Late(
                    f"still computing what it was asked at {stuck.observation.time:%Y-%m-%d %H:%M:%S} UTC; "
                    "not asked again before that ends"
                )
            self.counts["came-back"] += 1
            self._stuck = None
            self.recall(stuck.before)  # what it said too late was never said
        asked = _Asked(observation, memory_of(self.inner))
        threading.Thread(target=asked.answer, args=(self.inner,), daemon=True).start()
        if not asked.over.wait(within_s):
            self._stuck = asked
            self.counts["abandoned"] += 1
            raise Late(f"no decision within {within_s:g} s; the computation is abandoned")
        if asked.error is not None:
            raise asked.error
        return asked.decision  # type: ignore[return-value]  # what it returned is checked by who asked

    def memory(self) -> object:
        """Of `inner`, without what was said too late."""
        return super().memory() if self._stuck is None else self._stuck.before
