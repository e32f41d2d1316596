"""R6: when the controller or the broker is gone, every device is in its fallback as soon as its validity is
over, and out of it as soon as they are back. Judged by the devices' own logs.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from tests import history
from tests.soak.broker import PlainBroker
from tests.soak.figure import Figure, at_least, below, counted
from tests.soak.many import ROOT, devices

RUN, AREA = "failsafe", "soak"
EVERY_S, VALID_S = 1.0, 3.0
LATE_S = 0.2
STEPS_BACK = 2
"""Within so many steps all are back."""
WAIT_S = 120.0


@dataclass
class Found:
    """What was found in one trial."""

    devices: int
    fallen: int = 0
    """devices that were in fallback"""
    late_s: list[float] = field(default_factory=list)
    """of each, after its validity"""
    back: int = 0
    back_s: list[float] = field(default_factory=list)
    """of each, after the controller or the broker was back"""


@contextmanager
def commander(names: Sequence[str], url: str, epoch: int) -> Iterator[subprocess.Popen[bytes]]:
    """A controller in a process of its own, killed at the end at the latest."""
    command = [sys.executable, "-m", "tests.soak.commander", *names, "--url", url, "--run", RUN]
    command += ["--area", AREA, "--every", str(EVERY_S), "--valid", str(VALID_S), "--epoch", str(epoch)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


class Logs:
    """What the devices have written, read on."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = dict.fromkeys(files, 0)
        self.regime: dict[str, str] = {}
        """of each device, now"""
        self.applied: dict[str, list[datetime]] = defaultdict(list)
        self.fallen: dict[str, list[tuple[datetime, float]]] = defaultdict(list)
        """when each device fell back, and how much after its validity"""

    def read(self) -> None:
        """Take what is new."""
        for file, seen in self._files.items():
            if not file.exists():
                continue
            with file.open("rb") as opened:
                opened.seek(seen)
                text = opened.read()
            whole = text[: text.rfind(b"\n") + 1]
            self._files[file] = seen + len(whole)
            for line in whole.decode().splitlines():
                self._take(history.parsed(line))

    def _take(self, line: history.Line) -> None:
        name, now = line["device"], history.at(line["time"])
        if line["what"] == "held":
            before, self.regime[name] = self.regime.get(name), line["regime"]
            if line["regime"] == "failsafe" != before:
                end = history.at(line["valid_until"])
                self.fallen[name].append((now, (now - end).total_seconds()))
        elif line["state"] == "applied":
            self.applied[name].append(now)

    async def until(self, names: Sequence[str], *regimes: str) -> None:
        """Wait until all devices are in one of these states."""
        async with asyncio.timeout(WAIT_S):
            while not all(self.regime.get(name) in regimes for name in names):
                await asyncio.sleep(0.1)
                self.read()


async def controller_killed(names: Sequence[str], folder: Path) -> Found:
    """SIGKILL to the controller; then another one begins."""
    logs = Logs(files := [folder / f"controller-{i}.jsonl" for i in range(2)])
    async with PlainBroker() as broker:
        with devices(names, broker.url, run=RUN, area=AREA, every_s=EVERY_S, logs=files):
            await logs.until(names, "init")
            with commander(names, broker.url, 1):
                await logs.until(names, "controlled")
                await asyncio.sleep(2.5 * EVERY_S)
            gone = datetime.now(UTC)
            await logs.until(names, "failsafe")
            with commander(names, broker.url, 2):
                await logs.until(names, "controlled")
                await asyncio.sleep(EVERY_S)
                logs.read()
    first = min(min(t for t in logs.applied[name] if t > gone) for name in names)
    return _found(names, logs, gone, first)


async def broker_killed(names: Sequence[str], folder: Path, down_s: float = VALID_S + 2.0) -> Found:
    """SIGKILL to the broker, for longer than the validity."""
    logs = Logs(files := [folder / f"broker-{i}.jsonl" for i in range(2)])
    async with PlainBroker() as broker:
        with (
            devices(names, broker.url, run=RUN, area=AREA, every_s=EVERY_S, logs=files),
            commander(names, broker.url, 1),
        ):
            await logs.until(names, "controlled")
            await asyncio.sleep(2.5 * EVERY_S)
            gone = datetime.now(UTC)
            await broker.stop(kill=True)
            await asyncio.sleep(down_s)
            logs.read()
            await broker.start()
            back = datetime.now(UTC)
            await logs.until(names, "controlled")
            await asyncio.sleep(EVERY_S)
            logs.read()
    return _found(names, logs, gone, back)


def _found(names: Sequence[str], logs: Logs, gone: datetime, back: datetime) -> Found:
    found = Found(len(names))
    for name in names:
        falls = [late for at, late in logs.fallen[name] if at > gone]
        returns = [at for at in logs.applied[name] if at >= back]
        found.fallen += bool(falls)
        found.late_s += falls[:1]
        found.back += bool(returns)
        found.back_s += [(returns[0] - back).total_seconds()] if returns else []
    return found


async def soak(short: bool) -> list[Figure]:
    """R6: 40 devices in the short version, 400 in the full one, five times."""
    names = [f"der-{i:03d}" for i in range(40 if short else 400)]
    figures: list[Figure] = []
    with TemporaryDirectory(prefix="gridpace-failsafe-") as folder:
        for what, trial in (("the controller", controller_killed), ("the broker", broker_killed)):
            tries = []
            for i in range(1 if short else 5):
                place = Path(folder) / f"{i}"
                place.mkdir(exist_ok=True)
                tries.append(await trial(names, place))
            figures += _figures(what, tries)
    return figures


def _figures(what: str, tries: Sequence[Found]) -> list[Figure]:
    late_s = [late for one in tries for late in one.late_s]
    back_s = [back for one in tries for back in one.back_s]
    every = sum(one.devices for one in tries)
    within = STEPS_BACK * EVERY_S
    return [
        counted("R6", f"{what} killed: in fallback", every, sum(one.fallen for one in tries)),
        counted("R6", f"{what} killed: before the validity was over", 0, sum(late < 0 for late in late_s)),
        counted(
            "R6", f"{what} killed: more than 0.2 s late", 0, sum(late > LATE_S for late in late_s), hard=False
        ),
        below("R6", f"{what} killed: the latest", LATE_S * 1e3, 1e3 * max(late_s, default=float("inf"))),
        at_least("R6", f"{what} back: devices back", every, sum(one.back for one in tries)),
        counted(
            "R6",
            f"{what} back: after more than 2 steps",
            0,
            sum(back > within for back in back_s),
            hard=False,
        ),
        below("R6", f"{what} back: the last one", within * 1e3, 1e3 * max(back_s, default=float("inf"))),
    ]
