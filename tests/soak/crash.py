"""R7: a run is killed at random instants and goes on each time; nobody is ever told anything older."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from bridges import wire
from bridges.mqtt import MqttBus
from simulators.journal import read
from tests.soak.broker import PlainBroker
from tests.soak.figure import Figure, at_least, counted

RUN = "crash"
ROOT = Path(__file__).parents[2]
WAIT_S = 300.0
SCENARIO = ("ieee33-quick", "--set", "record.seal_every=40", "--set", "expect=[]")
STARTING_S = 4.0
"""About how long a run takes to begin: kills are spread over it as well."""


@dataclass
class Heard:
    """What a listener was told by all lives of the run together."""

    bus: MqttBus
    numbers: set[tuple[str, int, int]] = field(default_factory=set)
    """(device, epoch, seq)"""
    newest: dict[str, tuple[int, int]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    """messages | back: those with a smaller number than the one before | per epoch"""

    def take(self) -> None:
        for message in self.bus.received():
            device = wire.parse_topic(message.topic).der
            told = wire.decode(message.payload, wire.SetpointMessage)
            number = told.epoch, told.seq
            self.counts["messages"] += 1
            self.counts[f"epoch-{told.epoch}"] += 1
            self.counts["back"] += number < self.newest.get(device, (0, 0))
            self.newest[device] = number
            self.numbers.add((device, *number))

    async def more(self, epoch: int, child: subprocess.Popen[bytes]) -> int:
        """Wait until something of a later epoch is heard; which one it is."""
        end = time.monotonic() + WAIT_S
        while (newest := max((e for e, _ in self.newest.values()), default=0)) <= epoch:
            self.take()
            if child.poll() is not None:
                _, printed = child.communicate()
                raise AssertionError(f"the run ended ({child.returncode}): {printed.decode()[-2000:]}")
            if time.monotonic() > end:
                raise AssertionError(f"nothing was heard after epoch {epoch} for {WAIT_S:g} s")
            await asyncio.sleep(0.005)
        return newest


@dataclass(frozen=True)
class Crashes:
    """What was found after the last kill."""

    kills: int
    heard: int
    """setpoint messages"""
    unrecorded: int
    """published instructions that the journal does not know"""
    back: int
    """messages with a smaller (epoch, seq) than the device had been told"""
    steps: int
    """that were recorded"""
    missing_steps: int
    other_columns: int
    """of the tables, where they are not those of a run that nobody killed"""


def command(*words: str) -> subprocess.Popen[bytes]:
    """`gridpace` with some words, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", "from scenarios.cli import main; main()", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def ended(child: subprocess.Popen[bytes], *statuses: int) -> None:
    """Wait for a process; it has to end with one of these statuses."""
    _, printed = child.communicate(timeout=10 * WAIT_S)
    if child.returncode not in statuses:
        raise AssertionError(f"status {child.returncode}: {printed.decode()[-2000:]}")


async def crashes(kills: int, folder: Path, seed: int = 7) -> Crashes:
    """Kill a run again and again.

    Raises:
        NoBroker: mosquitto is not installed.
        AssertionError: a run that does not go on.
    """
    rng = random.Random(seed)
    async with PlainBroker() as broker:
        bus = MqttBus(broker.url, client_id=f"listener-{secrets.token_hex(4)}", latch_size=1_000_000)
        bus.subscribe(wire.device_pattern(RUN, "setpoint"))
        async with bus:
            heard, run = Heard(bus), folder / RUN
            over = ("--set", "bus.kind=mqtt", "--set", f"bus.url={broker.url}")
            child = command(
                "run", *SCENARIO, *over, "--set", "steps=100000", "--name", RUN, "--out", str(folder)
            )
            try:
                epoch = await heard.more(0, child)
                for kill in range(kills):
                    if kill % 3 == 2:  # perhaps while it still begins
                        await asyncio.sleep(rng.uniform(0.0, STARTING_S))
                    else:
                        epoch = await heard.more(epoch - (kill == 0), child)
                        await asyncio.sleep(rng.uniform(0.0, 0.6))
                    child.send_signal(signal.SIGKILL)
                    child.communicate()
                    heard.take()
                    epoch = max(e for e, _ in heard.newest.values())
                    child = command("run", "--resume", str(run))
                await heard.more(epoch, child)
                child.send_signal(signal.SIGTERM)
                ended(child, 130)
                await asyncio.sleep(0.2)
                heard.take()
            finally:
                child.kill()
    steps = read(run, "steps")["step"].to_pylist()
    table = read(run, "setpoints", ["device", "epoch", "seq"])
    known = set(zip(*(table[name].to_pylist() for name in ("device", "epoch", "seq")), strict=True))
    whole = command(
        *("run", *SCENARIO, "--set", "bus.kind=memory", "--set", f"steps={len(steps)}"),
        *("--name", "whole", "--out", str(folder)),
    )
    ended(whole, 0)
    other = 0
    for name in ("buses", "branches", "devices", "regions"):
        one, two = read(run, name), read(folder / "whole", name)
        other += abs(len(one) - len(two))
        for column in one.column_names if len(one) == len(two) else ():
            other += not one[column].equals(two[column])
    return Crashes(
        kills=kills,
        heard=heard.counts["messages"],
        unrecorded=len(heard.numbers - known),
        back=heard.counts["back"],
        steps=len(steps),
        missing_steps=len(set(range(len(steps))) ^ set(steps)),
        other_columns=other,
    )


async def soak(short: bool) -> list[Figure]:
    """R7: six kills in the short version, two hundred in the full one."""
    kills = 6 if short else 200
    with TemporaryDirectory(prefix="gridpace-crash-") as folder:
        found = await crashes(kills, Path(folder))
    return [
        counted("R7", "kills after which the run went on", kills, found.kills),
        at_least("R7", "setpoint messages heard", 10 * kills, found.heard),
        counted("R7", "published instructions that no table has", 0, found.unrecorded),
        counted("R7", "messages with a smaller epoch or number", 0, found.back),
        counted("R7", f"steps missing of {found.steps:,}", 0, found.missing_steps),
        counted("R7", "columns unlike those of a run that was not killed", 0, found.other_columns),
    ]
