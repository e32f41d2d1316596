"""Stage: what all simulators of the co-simulation share: one mosaik entity, stepped once a tick."""

from __future__ import annotations

from collections.abc import Awaitable, Generator, Sequence
from typing import Any

import mosaik_api_v3


class Stage(mosaik_api_v3.Simulator):  # type: ignore[misc, unused-ignore]
    """A mosaik simulator with one entity, which may have children that only give.

    A subclass names its attributes and implements `work`, which reads `given` (attribute ->
    values of all that are connected) and fills `self.out[entity][attribute]`. Values pass by
    reference: nobody changes what it was given.
    """

    def __init__(
        self,
        entity: str,
        *,
        takes: Sequence[str],
        gives: Sequence[str],
        children: Sequence[str] = (),
        child_gives: Sequence[str] = (),
    ) -> None:
        models: dict[str, Any] = {"Stage": {"public": True, "params": [], "attrs": [*takes, *gives]}}
        if children:
            models["Child"] = {"public": False, "params": [], "attrs": list(child_gives)}
        super().__init__({"type": "time-based", "models": models})  # type: ignore[no-untyped-call]
        self.entity, self.children = entity, tuple(children)
        self.out: dict[str, dict[str, Any]] = {eid: {} for eid in (entity, *children)}

    def work(self, time: int, given: dict[str, list[Any]]) -> Awaitable[Any] | None:
        """One step; an awaitable is awaited before the step counts as done."""
        raise NotImplementedError

    def create(self, num: int, model: str, **params: Any) -> list[Any]:
        """mosaik API: the one entity."""
        children = [{"eid": name, "type": "Child"} for name in self.children]
        return [{"eid": self.entity, "type": model, "children": children}]

    def step(  # type: ignore[override]
        self, time: int, inputs: dict[str, Any], max_advance: int
    ) -> Generator[Awaitable[Any], Any, int]:
        """mosaik API: a generator, so that `work` may wait without blocking the event loop."""
        received = inputs.get(self.entity, {})
        waiting = self.work(time, {name: list(values.values()) for name, values in received.items()})
        if waiting is not None:
            # mosaik throws nothing into a generator: an exception must come back as a value.
            error = yield _outcome(waiting)
            if error is not None:
                raise error
        return time + 1

    def get_data(self, outputs: Any) -> Any:
        """mosaik API."""
        return self.out


async def _outcome(waiting: Awaitable[Any]) -> Exception | None:
    try:
        await waiting
    except Exception as error:
        return error
    return None
