"""Many devices, each with a connection of its own, in a process of their own; without physics.

python -m tests.soak.many --url mqtt://... --run R --area A --every 1.0 [--log FILE] NAME...
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from bridges.bus import Bus
from bridges.device import DeviceSide, Held
from bridges.mqtt import MqttBus
from bridges.serving import serve
from controllers.rating import Rating
from controllers.region import Region
from controllers.register import Order, Register
from scenarios.device import Book, Memory
from simulators.clock import wall_clock

ROOT = Path(__file__).parents[2]
RATING = Rating(Region.box(p_mw=(-1.0, 1.0), q_mvar=(-1.0, 1.0)))


class Follower:
    """A plant that is where it may be at most."""

    def hold(self, order: Order, mono: float, every_s: float) -> Held:
        return Held(0.0 if order.region is None else float(order.region.b[0]), 0.0)


async def be(
    names: Sequence[str], url: str, *, run: str, area: str, every_s: float, log: IO[str] | None
) -> None:
    """Be these devices until killed."""
    book = Book(log, Memory(None, "r")) if log is not None else None
    async with asyncio.TaskGroup() as group:
        for i, name in enumerate(names):
            side = DeviceSide(
                {name: (Register(rating=RATING), Follower())},
                run=run,
                area=area,
                every_s=every_s,
                wall=wall_clock,
                monotonic=time.monotonic,
                witness=book,
            )
            group.create_task(serve(side, _opening(url, side, name), asyncio.Event()))
            if i % 20 == 19:
                await asyncio.sleep(0.05)  # a broker has a short queue for those who knock
        gc.collect()
        gc.freeze()  # a full collection takes longer than a step


def _opening(url: str, side: DeviceSide, name: str) -> Callable[[], Bus]:
    return lambda: MqttBus(url, client_id=name, will=side.will)


@contextmanager
def devices(
    names: Sequence[str],
    url: str,
    *,
    run: str,
    area: str,
    every_s: float,
    logs: Sequence[Path] = (),
    processes: int = 2,
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that share the devices, for as long as the context lasts."""
    shared = [names[i::processes] for i in range(processes)]
    several = []
    for i, some in enumerate(shared):
        command = [sys.executable, "-m", "tests.soak.many", *some, "--url", url, "--run", run]
        command += ["--area", area, "--every", str(every_s)]
        command += ["--log", str(logs[i])] if logs else []
        several.append(subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL))
    try:
        yield several
    finally:
        for process in several:
            process.kill()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description="Many devices.")
    parser.add_argument("names", nargs="+")
    for option in ("--url", "--run", "--area"):
        parser.add_argument(option, required=True)
    parser.add_argument("--every", type=float, required=True)
    parser.add_argument("--log", type=Path)
    given = parser.parse_args()
    log = given.log.open("w", encoding="utf-8") if given.log else None
    work = be(given.names, given.url, run=given.run, area=given.area, every_s=given.every, log=log)
    asyncio.run(work)


if __name__ == "__main__":
    main()
