"""R8: steps begin when they are planned, and each that does not is counted and treated as the policy says."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from scenarios.run import Result
from simulators.journal import read
from tests.running import do
from tests.soak.figure import Figure, below, counted

LIVE = (
    *("every=1s", "controllers.dso.every=1s", "clock.mode=live", "expect=[]"),
    "grid.engine=power-grid-model",
)
SLOW_S, SLOW_STEP = 3.5, 2
LATE = {"hold": 3, "skip": 3, "stretch": 1}
"""By policy, how many steps of a second are late after one that took three and a half: all that began in it,
or, where the later deadlines shift, the next one alone."""

STALLS = f'''
import time

from controllers.contract import Decision, Origin


class Stalls:
    """Once, it takes long."""

    def __init__(self, site):
        self.asked = 0

    def step(self, observation):
        self.asked += 1
        if self.asked == {SLOW_STEP + 1}:
            time.sleep({SLOW_S})
        return Decision(time=observation.time, origin=Origin.OPTIMAL)
'''


def lateness_ms(result: Result) -> list[float]:
    """Of each step but the first, which sets the clock."""
    return sorted(read(result.directory, "steps")["lateness_ms"].to_pylist()[1:])


async def soak(short: bool) -> list[Figure]:
    """R8: ten seconds in the short version, five minutes in the full one; and a solve of 3.5 s."""
    steps = 10 if short else 300
    figures = []
    with TemporaryDirectory(prefix="gridpace-pacing-") as folder:
        late = lateness_ms(await do("ieee33-quick", Path(folder), f"steps={steps}", *LIVE))
        figures.append(
            below("R8", f"99 of 100 of {steps} steps late by", 20, late[int(len(late) * 0.99) - 1])
        )
        figures.append(below("R8", "latest step late by", 100, late[-1]))
        (Path(folder) / "stalls.py").write_text(STALLS)
        for policy, expected in LATE.items():
            uses = f"controllers.dso.uses={folder}/stalls.py:Stalls"
            changes = ("steps=8", f"clock.overrun={policy}", uses, *LIVE)
            result = await do("ieee33-quick", Path(folder), *changes)
            counts = json.loads((result.directory / "manifest.json").read_text())["counts"]
            found = counts.get(f"overrun-{policy}", 0)
            figures.append(counted("R8", f"late steps after {SLOW_S} s, {policy}", expected, found))
            events = (result.directory / "events.jsonl").read_text().splitlines()
            named = sum(json.loads(line)["what"] == "overrun" for line in events)
            figures.append(counted("R8", f"of these named in events, {policy}", found, named))
    return figures
