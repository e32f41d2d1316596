"""The bare loop: the world of `scenarios.world`, wired as in a run, with simulators that do nothing."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Sequence
from time import perf_counter
from typing import Any

from scenarios.world import CHILDREN, CONNECTIONS, SHIFTED, World
from simulators.stage import Stage

FLEET = "fleet"
"""The simulator that has an entity for each device."""


class Idle(Stage):
    """A stage that always gives `None`; counts its steps."""

    def __init__(
        self,
        name: str,
        takes: Iterable[str],
        gives: Iterable[str],
        children: Sequence[str],
        child_gives: Iterable[str],
    ) -> None:
        gives, child_gives = sorted(gives), sorted(child_gives)
        super().__init__(name, takes=sorted(takes), gives=gives, children=children, child_gives=child_gives)
        self.out = {name: dict.fromkeys(gives), **{child: dict.fromkeys(child_gives) for child in children}}
        self.steps = 0

    def work(self, time: int, given: dict[str, list[Any]]) -> None:
        self.steps += 1


def idle_stages(devices: Sequence[str]) -> dict[str, Idle]:
    """A stage that does nothing for each simulator of a run, with its entities and attributes."""
    takes: dict[str, set[str]] = defaultdict(set)
    gives: dict[str, set[str]] = defaultdict(set)
    child_gives: dict[str, set[str]] = defaultdict(set)
    names: dict[str, None] = {}
    for source, target, attributes in CONNECTIONS:
        names |= {source: None, target: None}
        gives[source].update(attributes)
        takes[target].update(attributes)
    for source, target, attribute, _ in SHIFTED:
        gives[source].add(attribute)
        takes[target].add(attribute)
    for source, target, attribute in CHILDREN:
        child_gives[source].add(attribute)
        takes[target].add(attribute)
    return {
        name: Idle(name, takes[name], gives[name], devices if name == FLEET else (), child_gives[name])
        for name in names
    }


def bare_loop_s(devices: Sequence[str], steps: int) -> float:
    """Seconds that mosaik alone takes for `steps` steps."""
    world = World(idle_stages(devices))
    begun = perf_counter()
    asyncio.run(world.run(steps))
    return perf_counter() - begun
