"""What a hundred SunSpec devices cost: `python -m benchmarks.sunspec`.

Three processes, as in a laboratory: the emulated devices (`gridpace sunspec-emulator`, a server and port for
each), the bridge, which writes to all of them at once in each step and reads back, and this one, which looks
on. Then the bridge is killed (SIGKILL), and the devices' own log says when each of them reverted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any

import numpy as np
import psutil

from bridges.device_bridge import BridgeLost, BridgeRefused
from bridges.sunspec.client import SunSpecDevice
from controllers.contract import Instruction
from controllers.devices import still
from controllers.region import Region

ROOT = Path(__file__).parent.parent
P99_MS, LATE_S = 250.0, 1.0
"""What is held: write and read-back; reversion after `RvrtTms`."""
VALID_S = 5.0
WINDOW = 10
"""Devices that the bridge talks to at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What was measured."""

    servers: int
    took_ms: tuple[float, ...]
    """of each instruction, from before its first request until read back"""
    steps_ms: tuple[float, ...]
    """of each step, until the last device is read back"""
    bridge_ms: float
    """processor time of the bridge for an instruction"""
    devices_ms: float
    """processor time of all devices for an instruction, their idling included"""
    failed: tuple[str, ...]
    """of the bridge, in words"""
    reverted: int
    """devices in their fallback in the end"""
    late_s: tuple[float, ...]
    """of each function of a device, from the end of its last `RvrtTms` until it reverted"""
    beyond: int
    """points held outside the limits in force"""
    held: int
    """points held"""

    @property
    def p99_ms(self) -> float:
        return float(np.percentile(self.took_ms, 99))

    @property
    def counts_held(self) -> bool:
        """Whether nothing failed, every device reverted in time and none left its limits."""
        in_time = all(late <= LATE_S for late in self.late_s)
        return not self.failed and self.reverted == self.servers and in_time and self.beyond == 0

    def lines(self) -> Iterator[str]:
        took, n = np.array(self.took_ms), self.servers
        yield f"{n} servers, {len(took)} instructions written and read back, {len(self.failed)} failed"
        p50, p99, most = np.percentile(took, 50), self.p99_ms, took.max()
        held = f"(held: {P99_MS:.0f})"
        yield f"write and read-back: p50 {p50:.1f} ms, p99 {p99:.1f} ms {held}, most {most:.1f} ms"
        steps = np.array(self.steps_ms)
        typical = np.median(steps)
        yield f"all of a step: median {typical:.0f} ms, most {steps.max():.0f} ms, {WINDOW} at a time"
        yield f"processor, an instruction: bridge {self.bridge_ms:.2f} ms, devices {self.devices_ms:.2f} ms"
        late = max(self.late_s, default=float("nan"))
        yield f"bridge killed: {self.reverted} of {n} reverted, the last {late:.3f} s after its RvrtTms"
        yield f"points outside the limits in force: {self.beyond} of {self.held}"
        yield from (f"failed: {words}" for words in self.failed[:5])


def measure(servers: int, steps: int, folder: Path, *, every_s: float = 1.0) -> Figures:
    """Run it.

    Args:
        every_s: pause from the beginning of one step to that of the next.
    """
    log = folder / "devices.jsonl"
    options = ("--kind", "pv", "--kind", "battery", "--units", str(servers), "--p-mw", "0.5", "--own-ports")
    emulator = ("-c", "from scenarios.cli import main; main()", "sunspec-emulator")
    with _process(*emulator, *options, "--port", "0", "--every", "1", "--log", str(log)) as devices:
        ports = []
        for line in _output(devices):
            if line == "ready":
                break
            ports.append(line.rpartition(":")[2])
        with _process("-m", "benchmarks.sunspec", "--bridge", *ports, "--every", str(every_s)) as bridge:
            took: list[float] = []
            failed: list[str] = []
            steps_ms: list[float] = []
            cpu_ms: list[float] = []
            watched = psutil.Process(devices.pid)
            before = _cpu_s(watched)
            for line in _output(bridge):
                said = json.loads(line)
                took += said["took_ms"]
                failed += said["failed"]
                steps_ms.append(said["step_ms"])
                cpu_ms.append(said["cpu_ms"])
                if len(took) + len(failed) >= servers * steps:
                    break
            devices_ms = 1000 * (_cpu_s(watched) - before) / (servers * len(steps_ms))
            time.sleep(every_s / 3)  # into its next step, somewhere between two writes
            bridge.send_signal(signal.SIGKILL)
            bridge.wait()
        time.sleep(VALID_S + LATE_S + 1.0)
        devices.send_signal(signal.SIGTERM)
        devices.wait()
    reverted, late, beyond, held = _judge(log)
    return Figures(
        servers=servers,
        took_ms=tuple(took),
        steps_ms=tuple(steps_ms),
        bridge_ms=sum(cpu_ms) / (servers * len(cpu_ms)),
        devices_ms=devices_ms,
        failed=tuple(failed),
        reverted=reverted,
        late_s=late,
        beyond=beyond,
        held=held,
    )


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _judge(log: Path) -> tuple[int, tuple[float, ...], int, int]:
    """(reverted, late [s], points beyond, points), from the devices' own log, which the bridge never sees."""
    seconds: dict[tuple[str, str], float] = {}  # by device and function
    ends: dict[tuple[str, str], float] = {}
    late: dict[tuple[str, str], float] = {}
    last: dict[str, dict[str, Any]] = {}
    held = beyond = 0
    with log.open(encoding="utf-8") as lines:
        for text in lines:
            line = json.loads(text)
            name, at = line["device"], datetime.fromisoformat(line["time"]).timestamp()
            last[name] = line
            points = line.get("points", {})
            for function in ("WMaxLimPct", "WSet", "VarSet"):
                if not any(point.startswith(function) for point in points):
                    continue
                key = (name, function)
                if line["what"] == "written":
                    seconds[key] = points.get(f"{function}RvrtTms", seconds.get(key, 0.0))
                    ends[key] = at + seconds[key]
                else:
                    late[key] = at - ends[key]
            held += 1
            limit, aim = line["limit_mw"], line["p_set_mw"]
            over = limit is not None and line["p_mw"] > limit + 1e-9
            off = aim is not None and not min(aim, 0.0) - 1e-9 <= line["p_mw"] <= max(aim, 0.0) + 1e-9
            beyond += over or off
    back = [
        line for line in last.values() if line["reverted"] and line["p_mw"] == 0.0 and line["q_mvar"] == 0.0
    ]
    return len(back), tuple(late.values()), beyond, held


@contextmanager
def _process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def _output(process: subprocess.Popen[str]) -> Iterator[str]:
    stream: IO[str] | None = process.stdout
    assert stream is not None
    for line in stream:
        yield line.strip()
    raise RuntimeError(f"{process.args} ended with {process.wait()}")


async def bridge(ports: Sequence[int], every_s: float) -> None:
    """Write to all devices in each step, and print how long each took; until it is killed."""
    devices = [SunSpecDevice("127.0.0.1", port, timeout_s=5.0) for port in ports]
    for device in devices:
        await device.connect()
    step, next_at = 0, time.monotonic()
    window = asyncio.Semaphore(WINDOW)

    async def one(device: SunSpecDevice, number: int) -> float | str:
        async with window:
            return await _one(device, number)

    while True:
        began, cpu = time.perf_counter(), time.process_time()
        results = await asyncio.gather(*[one(device, step + i) for i, device in enumerate(devices)])
        step_ms = 1000 * (time.perf_counter() - began)
        cpu_ms = 1000 * (time.process_time() - cpu)
        took = [result for result in results if isinstance(result, float)]
        failed = [result for result in results if isinstance(result, str)]
        said = {"took_ms": took, "failed": failed, "step_ms": step_ms, "cpu_ms": cpu_ms}
        print(json.dumps(said), flush=True)
        step += 1
        next_at = max(next_at + every_s, time.monotonic())
        await asyncio.sleep(next_at - time.monotonic())


async def _one(device: SunSpecDevice, number: int) -> float | str:
    now = datetime.now(UTC)
    most = 0.1 + 0.37 * (number % 10) / 10
    instruction = Instruction(
        device=device.name,
        epoch=1,
        seq=number,
        issued_at=now,
        valid_from=now,
        valid_until=now + timedelta(seconds=VALID_S),
        region=Region.box(p_mw=(-most, most), q_mvar=(-0.1, 0.1)),
        setpoint=None,
        fallback=still(),
    )
    began = time.perf_counter()
    try:
        await device.write_setpoint(instruction, now, wish_mw=most)
    except (BridgeLost, BridgeRefused) as error:
        return str(error)
    return 1000 * (time.perf_counter() - began)


def main() -> None:
    """Measure and print; status 1 if a count does not hold or a time is beyond three times its figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--servers", type=int, default=100)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--every", type=float, default=1.0, help="seconds from one step to the next")
    parser.add_argument("--bridge", type=int, nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.bridge:
        asyncio.run(bridge(given.bridge, given.every))
        return
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(given.servers, given.steps, Path(folder), every_s=given.every)
    for line in figures.lines():
        print(line)
    sys.exit(0 if figures.counts_held and figures.p99_ms <= 3 * P99_MS else 1)


if __name__ == "__main__":
    main()
