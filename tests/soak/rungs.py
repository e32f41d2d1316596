"""R13: a controller fails in a fifth of its steps; what is valid is held until it ends, then the defaults."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from scenarios.run import Exit
from simulators.journal import read
from tests.running import do
from tests.soak.figure import Figure, at_least, counted
from tests.trouble import Troubled, expected, obeyed, trouble_at

SHARE = 0.2
VALID_STEPS = 2


@dataclass(frozen=True)
class Found:
    """What a run with a troubled controller came to."""

    exit: Exit
    steps: int
    troubles: int
    unhandled: int
    """troubles that no event names, and events beside them"""
    wrong_origins: int
    wrong_states: int
    """steps of devices that went by another rule than they should"""
    states: Counter[str]


async def troubled(steps: int, folder: Path, seed: int, share: float = SHARE) -> Found:
    """Run a day or part of it and compare each step with what should have been."""
    result = await do(
        "ieee33-envelopes",
        folder,
        f"steps={steps}",
        "grid.engine=power-grid-model",
        "record.forecasts=false",
        f"controllers.dso.uses={Troubled.__module__}:{Troubled.__name__}",
        f"controllers.dso.options={{share: {share}, seed: {seed}}}",
        f"controllers.dso.valid_for={5 * VALID_STEPS}min",
        "expect=[]",
    )
    origins = expected(steps, share, seed, VALID_STEPS)
    rows = read(result.directory, "steps", ["step", "origin"])
    said = dict(zip(rows["step"].to_pylist(), rows["origin"].to_pylist(), strict=True))
    rules = obeyed(origins, VALID_STEPS)
    first = read(result.directory, "steps")["time"][0].as_py()
    wrong, states = 0, Counter[str]()
    for row in read(result.directory, "devices").to_pylist():
        if row["state"] == "uncontrolled":
            continue
        rule = rules[int((row["time"] - first).total_seconds() // 300)]
        state = row["state"] if row["state"] in ("init", "failsafe") else "told"
        states[state] += 1
        wrong += state != rule
    events = (result.directory / "events.jsonl").read_text().splitlines()
    named = Counter(json.loads(line)["step"] for line in events if json.loads(line).get("controller"))
    happened = Counter(step for step in range(steps) if trouble_at(step, share, seed) is not None)
    return Found(
        exit=result.exit,
        steps=len(said),
        troubles=happened.total(),
        unhandled=((named - happened) + (happened - named)).total(),
        wrong_origins=sum(said.get(step) != origin for step, origin in origins.items()),
        wrong_states=wrong,
        states=states,
    )


async def soak(short: bool) -> list[Figure]:
    """R13: an hour of it in the short version, five days in the full one."""
    steps, days = (60, 1) if short else (288, 5)
    several = []
    with TemporaryDirectory(prefix="gridpace-trouble-") as folder:
        for seed in range(days):
            several.append(await troubled(steps, Path(folder), seed))
            await asyncio.sleep(0)
    return [
        counted("R13", "runs that ended by themselves", days, sum(f.exit is Exit.HELD for f in several)),
        at_least("R13", "troubles", steps * days // 10, sum(f.troubles for f in several)),
        counted("R13", "troubles unhandled", 0, sum(f.unhandled for f in several)),
        counted("R13", "steps on another rung than they should", 0, sum(f.wrong_origins for f in several)),
        counted("R13", "devices by another rule than they should", 0, sum(f.wrong_states for f in several)),
        at_least("R13", "steps of devices in fallback", 1, sum(f.states["failsafe"] for f in several)),
    ]
