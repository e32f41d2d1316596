"""R12: a run does not grow, and what waits for a broker that is away is bounded by the number of devices."""

from __future__ import annotations

import asyncio
import secrets
import statistics
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from bridges.bus import Bus
from bridges.mqtt import MqttBus
from tests.soak.broker import PlainBroker
from tests.soak.figure import Figure, counted
from tests.soak.processes import WAIT_S, Child

MOST_GROWTH = 0.05
WARM = 0.4
"""Share of the steps after which nothing is new any more: the broker was away, parts have been sealed."""
DEVICES = 1000


@dataclass(frozen=True)
class Grown:
    """What a process took while a run went on."""

    steps: int
    status: int
    before_mb: float
    """median of the first tenth after the warm-up"""
    after_mb: float
    """median of the last tenth"""

    @property
    def share(self) -> float:
        """By how much it has grown."""
        return self.after_mb / self.before_mb - 1


def faults(steps: int) -> str:
    """The broker goes away for a tenth of the time, three times."""
    length = max(steps // 10, 1)
    several = [f"{{what: broker-down, at: {steps * i // 4}s, for: {length}s}}" for i in (1, 2, 3)]
    return f"[{', '.join(several)}]"


async def grown(steps: int, folder: Path) -> Grown:
    """Let a live run of 1 s steps go on, and look at its resident memory each second.

    Raises:
        AssertionError: it does not begin.
    """
    seal = max(steps // 10, 4)
    changes = (
        *("every=1s", f"steps={steps}", "clock.mode=live", "controllers.dso.every=1s", "expect=[]"),
        *("controllers.dso.valid_for=3s", f"record.seal_every={seal}", f"faults={faults(steps)}"),
    )
    sets = [word for change in changes for word in ("--set", change)]
    child = Child("run", "ieee33-quick", *sets, "--out", str(folder), "--log-every", "0")
    await child.prints("step 1/")
    watched, sizes = psutil.Process(child.process.pid), list[float]()
    last = asyncio.create_task(_until(child, f"step {steps}/"))  # the verdict afterwards is no step
    async with asyncio.timeout(WAIT_S + 3 * steps):
        while not last.done():
            sizes.append(watched.memory_info().rss / 1e6)
            await asyncio.wait((last,), timeout=1.0 if steps > 60 else 0.25)
        last.result()
        status = await child.ends()
    warm = sizes[int(len(sizes) * WARM) :]
    tenth = max(len(warm) // 10, 3)
    return Grown(steps, status, statistics.median(warm[:tenth]), statistics.median(warm[-tenth:]))


async def _until(child: Child, text: str) -> None:
    while text not in await child.prints("step "):
        pass


async def waiting(rounds: int) -> tuple[int, int]:
    """Publish for many devices, again and again, while the broker is away.

    Returns:
        the most that ever waited, and how many devices still had something waiting when it was back.
    """
    async with PlainBroker() as broker:
        bus = MqttBus(broker.url, client_id=f"outbox-{secrets.token_hex(4)}")
        async with bus:
            await broker.stop(kill=True)
            most = 0
            for number in range(rounds):
                for device in range(DEVICES):
                    bus.publish(f"r/d{device}/setpoint", b"%d" % number * 100, retain=True, ttl_s=600.0)
                most = max(most, left(bus))
                await asyncio.sleep(0)
            await broker.start()
            await bus.flush(30.0)
            return most, left(bus)


def left(bus: Bus) -> int:
    """How much waits, by the counts that every bus keeps."""
    c = bus.counts
    return c["published"] + c["resent"] - c["acknowledged"] - c["refused"] - c["conflated"] - c["expired"]


async def soak(short: bool) -> list[Figure]:
    """R12: 20 s in the short version, ten minutes in the full one."""
    with TemporaryDirectory(prefix="gridpace-memory-") as folder:
        found = await grown(30 if short else 600, Path(folder))
    most, after = await waiting(20 if short else 200)
    measured = f"{100 * found.share:+.2f} % ({found.before_mb:.0f} to {found.after_mb:.0f} MB)"
    held = found.share < MOST_GROWTH
    return [
        Figure(
            "R12", f"growth of a run, {found.steps} steps of 1 s", "< 5 %", measured, held, hard=not short
        ),
        counted("R12", "exit status of that run", 0, found.status),
        Figure("R12", "most messages waiting", f"<= {DEVICES:,}", f"{most:,}", 0 < most <= DEVICES),
        counted("R12", "messages waiting once the broker is back", 0, after),
    ]
