"""R14: equal scenarios and seeds leave equal bytes, on the bus in memory and on a broker."""

from __future__ import annotations

import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow.parquet as pq

from scenarios.check import validate
from scenarios.load import load, packaged
from scenarios.run import Exit
from simulators.clock import Mode
from simulators.tables import MEASURED, SCHEMAS
from tests.running import do
from tests.soak.broker import PlainBroker
from tests.soak.figure import Figure, at_least, counted

QUICK = ("ieee33-quick",)
MOST_STEPS = 24
"""Of each scenario without faults, which have their times: reproducing is no matter of length."""


def prints(directory: Path) -> dict[str, str]:
    """sha256 of each table as it lies on disk; of `steps`, which measures the wall clock, of the rest."""
    found = {}
    for table in SCHEMAS:
        file = directory / f"{table}.parquet"
        if table == "steps":
            rows = pq.read_table(file).drop_columns(list(MEASURED))
            found[table] = hashlib.sha256(str(rows.to_pylist()).encode()).hexdigest()
        else:
            found[table] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


async def prints_of(name: str, folder: Path, *bus: str) -> dict[str, str]:
    """Those of a new run of a scenario, or of its first steps.

    Raises:
        AssertionError: the run broke.
    """
    scenario = validate(load(name))
    steps = scenario.steps if scenario.faults else min(scenario.steps, MOST_STEPS)
    result = await do(name, folder, f"steps={steps}", bus=bus or ("bus.kind=memory",))
    assert result.exit in (Exit.HELD, Exit.FAILED), f"{name}: {result.why}"  # a part of a day may not suffice
    return prints(result.directory)


async def soak(short: bool) -> list[Figure]:
    """R14: the quick scenario in the short version, all packaged ones in simulated time in the full one."""
    names = QUICK
    if not short:
        names = tuple(name for name in packaged() if validate(load(name)).clock.mode is Mode.FAST)
    compared = unlike = 0
    with TemporaryDirectory(prefix="gridpace-equal-") as folder:
        async with PlainBroker() as broker:
            over = ("bus.kind=mqtt", f"bus.url={broker.url}")
            for name in names:
                first = await prints_of(name, Path(folder))
                for bus in ((), over):
                    again = await prints_of(name, Path(folder), *bus)
                    different = [table for table in SCHEMAS if first[table] != again[table]]
                    compared, unlike = compared + len(SCHEMAS), unlike + len(different)
                    if different:
                        print(f"R14: {name}{' over MQTT' if bus else ''}: {', '.join(different)}")
    return [
        at_least("R14", "tables compared", 20, compared),
        counted("R14", "tables with other bytes", 0, unlike),
    ]
