"""Serving: a device's side of the wire in real time, whatever becomes of its connection."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress

from bridges.bus import Bus, BusUnreachable
from bridges.device import SHORTEST_S, DeviceSide

POLL_S = 0.25
"""How often it is asked whether the connection should be opened anew, while nothing arrives."""
LEAVE_S = 2.0
BACKOFF_S = (0.1, 1.0)
"""First and longest pause before a broker that was not there is tried again; each is cut by up to a half at
random, so that many devices do not come back at once."""


def settle() -> None:
    """Keep what has been built out of the garbage collector, and have that look seldom: what thousands of
    devices take in a step goes by itself. For a process that serves devices and nothing else."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20)


async def serve(
    side: DeviceSide,
    connect: Callable[[], AbstractAsyncContextManager[Bus]],
    stop: asyncio.Event,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Run devices in real time until `stop` is set, whatever becomes of the connection.

    Args:
        connect: makes a new bus, not yet entered, with `side.will` and the same client's name each time.
        say: takes lines for the user.
    """
    heard = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        holding = group.create_task(_hold(side, heard))
        await _stay_connected(side, connect, heard, stop, say)
        holding.cancel()


async def _hold(side: DeviceSide, heard: asyncio.Event) -> None:
    """Do what time brings. It must not wait for a connection: the fallback is due when there is none.

    Args:
        heard: set when something has arrived, so that the next thing may be due sooner.
    """
    while True:
        heard.clear()
        if side.hear():
            await side.drain()  # whoever waits for an answer goes before what is measured
        wait_s = side.tick()
        await side.drain()
        with suppress(TimeoutError):
            async with asyncio.timeout(max(wait_s, SHORTEST_S)):
                await heard.wait()


async def _stay_connected(
    side: DeviceSide,
    connect: Callable[[], AbstractAsyncContextManager[Bus]],
    heard: asyncio.Event,
    stop: asyncio.Event,
    say: Callable[[str], None],
) -> None:
    pause_s, told = BACKOFF_S[0], ""
    while not stop.is_set():
        try:
            async with connect() as bus:
                pause_s, told = BACKOFF_S[0], ""
                side.begin(bus)
                try:
                    while not stop.is_set() and not side.reopen():
                        await bus.arrived(POLL_S)
                        if side.hear():
                            await side.drain()  # the answer first, then the plan for what is to come
                            heard.set()
                    if stop.is_set():
                        side.leave()
                        await bus.flush(LEAVE_S)
                finally:
                    side.end()
        except BusUnreachable as error:
            if str(error) != told:  # once, until it is there again
                told = str(error)
                say(f"{told} Trying again.")
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s * random.uniform(0.5, 1.0)):
                    await stop.wait()
            pause_s = min(2 * pause_s, BACKOFF_S[1])
