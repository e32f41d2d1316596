"""Visits: the run's rounds of the real devices that are not on its bus."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from bridges.rounds import Rounds
from scenarios.external import over_sunspec
from scenarios.schema import Scenario
from simulators.clock import Clock

PATIENCE_S = (0.2, 1.0)
"""Shortest and longest wait for a device's answer to one request."""
REQUESTS = 4
"""Of these waits at most one visit lasts."""


@asynccontextmanager
async def visiting(scenario: Scenario, clock: Clock) -> AsyncIterator[Rounds | None]:
    """Rounds that go on as long as the context; `None` where there is nobody to be visited."""
    ways = over_sunspec(scenario)
    if not ways:
        yield None
        return
    from bridges.sunspec.client import SunSpecDevice  # an extra, which the check of the scenario has found

    period_s = clock.period_s
    timeout_s = min(max(period_s / 2, PATIENCE_S[0]), PATIENCE_S[1])
    bridges = {
        name: SunSpecDevice(
            way.host,
            way.port,
            way.unit,
            timeout_s=timeout_s,
            tolerance_mw=way.tolerance_mw,
            needs_timer=way.needs_timer,
            utc=clock.wall,
            monotonic=clock.monotonic,
        )
        for name, way in ways.items()
    }
    rounds = Rounds(
        bridges,
        every_s=period_s / 2,
        deadline_s=REQUESTS * timeout_s,
        utc=clock.wall,
        monotonic=clock.monotonic,
    )
    going = asyncio.create_task(rounds.run(), name="visits of devices")
    try:
        yield rounds
    finally:
        going.cancel()
        with suppress(asyncio.CancelledError):
            await going  # if it broke, it says so
