"""Processes of a laboratory for a soak: `gridpace device`, `gridpace sunspec-emulator`, `gridpace run`."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
WAIT_S = 120.0
"""For what takes seconds on a machine at rest."""


class Child:
    """A command of gridpace in a process of its own, which prints lines."""

    def __init__(self, *words: str) -> None:
        self.words = words
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from scenarios.cli import main; main()", *words],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.printed: list[str] = []

    async def prints(self, text: str) -> str:
        """Wait for a line with a text in it; all that it has printed is kept."""
        assert self.process.stdout is not None
        async with asyncio.timeout(WAIT_S):
            while True:
                line = await asyncio.to_thread(self.process.stdout.readline)
                self.printed.append(line)
                if text in line:
                    return line
                if not line:
                    raise AssertionError(f"{self.words[0]} ended: {''.join(self.printed)[-2000:]}")

    async def ends(self) -> int:
        """Wait until it has ended; its exit status."""
        assert self.process.stdout is not None
        if not self.process.stdout.closed:
            rest, _ = await asyncio.to_thread(self.process.communicate)
            self.printed.append(rest)
        return self.process.returncode

    def tell(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    async def leave(self) -> None:
        """End it, in good order if it is able to."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                await asyncio.wait_for(asyncio.to_thread(self.process.wait), 20.0)
            except TimeoutError:
                self.process.kill()
        await self.ends()


@asynccontextmanager
async def children(*commands: Sequence[str]) -> AsyncIterator[list[Child]]:
    """Several commands for as long as the context lasts."""
    several = [Child(*words) for words in commands]
    try:
        yield several
    finally:
        await asyncio.gather(*(child.leave() for child in several))
