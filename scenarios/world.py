"""World: the mosaik co-simulation of the stages, who is connected to whom."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mosaik.async_scenario import AsyncWorld
from mosaik.starters import PythonStarter

from simulators.stage import Stage

CONNECTIONS: Sequence[tuple[str, str, Sequence[str]]] = (
    # from, to, attributes; all within one step, in the order of the steps' work
    ("clock", "profiles", ["tick"]),
    ("clock", "fleet", ["tick"]),
    ("clock", "grid", ["tick"]),
    ("clock", "controllers", ["tick"]),
    ("clock", "recorder", ["tick"]),
    ("clock", "outbox", ["tick"]),
    ("profiles", "fleet", ["drive"]),
    ("profiles", "grid", ["drive"]),
    ("profiles", "controllers", ["forecast"]),
    ("profiles", "recorder", ["forecast"]),
    ("fleet", "grid", ["exchanges"]),
    ("fleet", "recorder", ["receipts", "exchanges"]),
    ("grid", "controllers", ["measured"]),
    ("grid", "recorder", ["measured"]),
    ("controllers", "recorder", ["instructions", "turns"]),
    ("controllers", "outbox", ["instructions", "turns"]),
    ("recorder", "outbox", ["kept"]),
)
CHILDREN: Sequence[tuple[str, str, str]] = (
    # each device's report
    ("fleet", "grid", "report"),
    ("fleet", "controllers", "report"),
    ("fleet", "recorder", "report"),
)
SHIFTED: Sequence[tuple[str, str, str, Any]] = (
    # acts one step later: a decision reaches the devices, and a tick begins when the last step is over
    ("controllers", "fleet", "instructions", {}),
    ("controllers", "fleet", "turns", ()),
    ("controllers", "grid", "positions", {}),
    ("outbox", "clock", "done", -1),
)


class WorldBroke(Exception):
    """The co-simulation ended early and no simulator said why."""


@dataclass
class World:
    """Runs stages, by name, in one mosaik world."""

    stages: Mapping[str, Stage]
    before: Mapping[str, Any] = field(default_factory=dict)
    """what acts in the first step, by attribute, where something was before it"""

    async def run(self, steps: int) -> None:
        """Run all stages for `steps` steps.

        Raises:
            WorldBroke: mosaik returned before every stage had done its last step.
            Exception: whatever a stage raised; the others are stopped.
        """
        async with AsyncWorld(skip_greetings=True) as world:
            parents, children = {}, {}
            for name, stage in self.stages.items():
                starter = PythonStarter(lambda stage=stage: stage)  # type: ignore[arg-type]
                factory = await world.start(starter, sim_id=name)
                (parents[name],) = await factory.Stage.create(1)
                children[name] = parents[name].children
            for source, target, attributes in CONNECTIONS:
                world.connect(parents[source], parents[target], *attributes)
            for source, target, attribute in CHILDREN:
                for child in children[source]:
                    world.connect(child, parents[target], attribute)
            for source, target, attribute, first in SHIFTED:
                world.connect(
                    parents[source],
                    parents[target],
                    attribute,
                    time_shifted=True,
                    initial_data={attribute: self.before.get(attribute, first)},
                )
            try:
                with warnings.catch_warnings():
                    # mosaik only warns where a value is missing; here that is a mistake of the wiring.
                    warnings.filterwarnings("error", category=UserWarning, module=r"mosaik\.")
                    # Nobody runs ahead: each tick waits for the outbox, and the outbox for all. So
                    # mosaik need not let everybody wait for his successors, which costs a quarter more.
                    await world.run(until=steps, lazy_stepping=False)
            finally:
                await _cancel_runners()
            last = {name: runner.last_step.time for name, runner in world.compile(use_cache=True).items()}
            late = sorted(name for name, step in last.items() if step != steps - 1)
            if late:
                raise WorldBroke(
                    f"{', '.join(late)} stopped at step {min(last.values())} of {steps} without an error"
                )


async def _cancel_runners() -> None:
    """After a failure mosaik leaves the other simulators' tasks waiting for ever."""
    left = [t for t in asyncio.all_tasks() if t.get_name().startswith("Runner for ") and not t.done()]
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
