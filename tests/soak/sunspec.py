"""R15: SunSpec servers are written and read back in each step, and revert by themselves if nobody writes."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from benchmarks import sunspec
from tests.soak.figure import Figure, below, counted


async def soak(short: bool) -> list[Figure]:
    """R15: 20 servers, 4 steps of 1 s in the short version; 100, 60 in full. Then the bridge is killed."""
    servers, steps = (20, 4) if short else (100, 60)
    with tempfile.TemporaryDirectory() as folder:
        found = await asyncio.to_thread(sunspec.measure, servers, steps, Path(folder))
    print("\n".join(f"R15: {line}" for line in found.lines()))
    late = sum(late_s > sunspec.LATE_S for late_s in found.late_s)
    return [
        counted("R15", f"instructions of {servers * steps:,} that failed", 0, len(found.failed)),
        counted("R15", "servers that reverted when the bridge was killed", servers, found.reverted),
        counted("R15", f"later than RvrtTms by more than {sunspec.LATE_S:g} s", 0, late),
        counted("R15", f"points of {found.held:,} outside the limits in force", 0, found.beyond),
        below("R15", "write and read-back, p99", sunspec.P99_MS, found.p99_ms),
    ]
