"""R2: thousands of devices behind gateways are told something new in each step, and all answer at once."""

from __future__ import annotations

from benchmarks import batch
from tests.soak.figure import Figure, below, counted


async def soak(short: bool) -> list[Figure]:
    """R2: 1,000 devices, 4 gateways, 10 steps of 1 s in the short version; 10,000, 20, 120 steps in full."""
    gateways, each, steps = (4, 250, 10) if short else (20, 500, 120)
    found = await batch.measure(gateways, each, steps, every_s=1.0)
    cpu = ", ".join(f"{who} {ms:.0f} ms" for who, ms in found.cpu_ms.items())
    print(f"R2: all {found.devices} answered: p50 {found.percentile(50):.0f} ms; processor a step: {cpu}")
    return [
        counted("R2", f"answers of {found.devices * steps:,} that never came", 0, found.silent),
        below("R2", f"all {found.devices} devices have answered, p99", batch.AIM_MS, found.percentile(99)),
    ]
