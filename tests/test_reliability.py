"""Promises of reliability, as short as continuous integration can bear; `scripts/soak` holds them in full."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from bridges.broker import NoBroker
from controllers.contract import Decision, Observation, Origin
from simulators.journal import read
from simulators.tables import SCHEMAS
from tests.running import FakeTime, do
from tests.soak import crash, reproducible
from tests.soak.broker import PlainBroker

SLOW_S = 3.5


class Slow:
    """In its fourth step it takes three and a half seconds of a clock that a test moves."""

    time: FakeTime

    def __init__(self, site: Any) -> None:
        self.asked = 0

    def step(self, observation: Observation) -> Decision:
        self.asked += 1
        if self.asked == 4:
            self.time.pass_by(SLOW_S)
        return Decision(time=observation.time, origin=Origin.OPTIMAL)


@pytest.mark.parametrize(
    ("policy", "late_ms", "origins"),
    [
        ("hold", {4: 2500, 5: 1500, 6: 500}, ["held", "default", "default"]),
        ("skip", {4: 2500, 5: 1500, 6: 500}, ["skipped"] * 3),
        ("stretch", {4: 2500}, ["optimal"] * 3),
    ],
)
async def test_a_solve_of_three_and_a_half_seconds_is_counted_and_the_policy_applied(
    tmp_path: Path, policy: str, late_ms: dict[int, float], origins: list[str]
) -> None:
    Slow.time = FakeTime()
    result = await do(
        *("ieee33-quick", tmp_path, "every=1s", "controllers.dso.every=1s", "steps=10", "expect=[]"),
        *("clock.mode=live", f"clock.overrun={policy}", f"controllers.dso.uses={__name__}:Slow"),
        time=Slow.time,
    )
    steps = read(result.directory, "steps").to_pylist()
    measured = {row["step"]: row["lateness_ms"] for row in steps if row["lateness_ms"] > 1e-6}
    assert measured == pytest.approx(late_ms)
    assert [row["origin"] for row in steps][4:7] == origins
    assert {row["origin"] for row in steps[:4] + steps[7:]} == {"optimal"}
    counts = json.loads((result.directory / "manifest.json").read_text())["counts"]
    assert counts[f"overrun-{policy}"] == len(late_ms)
    begun = [row["planned_at"].timestamp() for row in steps]
    pauses = [round(b - a, 6) for a, b in pairwise(begun)]
    assert pauses == [1.0] * 9 if policy != "stretch" else pauses.count(1.0) == 8


async def test_equal_runs_leave_equal_bytes_on_a_broker_too(tmp_path: Path) -> None:
    try:
        async with PlainBroker() as broker:
            over = ("bus.kind=mqtt", f"bus.url={broker.url}")
            found = [
                await reproducible.prints_of("ieee33-quick", tmp_path, *bus) for bus in ((), (), over, over)
            ]
    except NoBroker as error:
        pytest.skip(f"needs mosquitto: {error}")
    assert found[0].keys() == SCHEMAS.keys()
    assert all(prints == found[0] for prints in found)


def test_a_run_that_is_killed_at_random_goes_on_each_time(tmp_path: Path) -> None:
    """Real processes, a real broker, SIGKILL."""
    try:
        found = asyncio.run(crash.crashes(6, tmp_path))
    except NoBroker as error:
        pytest.skip(f"needs mosquitto: {error}")
    print(found)
    assert (found.kills, found.unrecorded, found.back) == (6, 0, 0), found
    assert (found.missing_steps, found.other_columns) == (0, 0), found
    assert found.heard > 60
