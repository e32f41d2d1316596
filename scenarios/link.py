"""Link: the broker of a run and the way to it, which the scenario's faults cut, freeze and slow down.

| fault | a broker of the run's own (`bus: embedded`) | a broker elsewhere (`bus: mqtt`) |
|---|---|---|
| broker-down | it is killed, and started again | the run's connection is reset, and new ones are |
| broker-frozen | its process is stopped (SIGSTOP), and goes on | nothing passes between the run and it |
| black-hole | what passes between the run and it is lost | the same |
| slow-link | few bytes pass between the run and it | the same |

In memory there is neither; there the messages themselves are held, see `scenarios.trouble`.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from urllib.parse import urlsplit

from bridges.broker import EmbeddedBroker, NoBroker
from bridges.fault_proxy import FaultProxy
from scenarios.schema import MemoryBusPart, MqttBusPart
from simulators.faults import OF_THE_LINK, Fault, What

_PORTS = {"mqtt": 1883, "mqtts": 8883}


class Link:
    """Does to broker and connection what the faults say.

    Args:
        broker: of the run's own; `None`: it is elsewhere, or there is none.
        proxy: between the run and the broker; `None`: there is none.
    """

    def __init__(self, broker: EmbeddedBroker | None = None, proxy: FaultProxy | None = None) -> None:
        self._broker, self._proxy = broker, proxy
        self._on: dict[int, Fault] = {}
        self._frozen: int | None = None
        self._due: asyncio.Queue[bool] = asyncio.Queue()

    @property
    def through(self) -> tuple[str, int] | None:
        """Host and port to connect to instead of the broker's."""
        return None if self._proxy is None else (self._proxy.host, self._proxy.port)

    @property
    def real(self) -> bool:
        """Whether there is something to cut."""
        return self._broker is not None or self._proxy is not None

    @property
    def broker_away(self) -> bool:
        """Whether a fault has taken the broker itself away, and not only the run's way to it."""
        return self._broker is not None and self._has(What.BROKER_DOWN, What.BROKER_FROZEN)

    def act(self, fault: Fault, began: bool) -> None:
        """Begin or end a fault; never waits."""
        if fault.what not in OF_THE_LINK or not self.real:
            return
        if began:
            self._on[fault.number] = fault
        else:
            self._on.pop(fault.number, None)
        if self._broker is not None and fault.what is What.BROKER_DOWN:
            self._due.put_nowait(not self._has(What.BROKER_DOWN))
        self._set()

    async def tend(self) -> None:
        """Kill and start the broker as it is due, until cancelled."""
        assert self._broker is not None
        while True:
            up = await self._due.get()
            if not up:
                await self._broker.stop(kill=True)
            elif self._broker.pid is None:
                while True:
                    with suppress(NoBroker):  # somebody has its port for a moment
                        await self._broker.start()
                        break
                    await asyncio.sleep(0.2)

    def heal(self) -> None:
        """End all trouble but that of a broker that is down."""
        self._on.clear()
        self._set()

    def _has(self, *kinds: What) -> bool:
        return any(fault.what in kinds for fault in self._on.values())

    def _set(self) -> None:
        broker, proxy = self._broker, self._proxy
        frozen = self._has(What.BROKER_FROZEN)
        if broker is not None:
            self._freeze(broker.pid if frozen else None)
        if proxy is None:
            return
        slow = [f.bytes_per_s for f in self._on.values() if f.what is What.SLOW_LINK and f.bytes_per_s]
        proxy.heal() if not self._has(What.BLACK_HOLE) else proxy.black_hole()
        proxy.bytes_per_s = min(slow) if slow else None
        if broker is None:
            proxy.freeze() if frozen else proxy.thaw()
            proxy.refuse() if self._has(What.BROKER_DOWN) else proxy.admit()

    def _freeze(self, pid: int | None) -> None:
        before, self._frozen = self._frozen, pid
        if before != pid:
            for number, process in ((signal.SIGCONT, before), (signal.SIGSTOP, pid)):
                if process is not None:
                    with suppress(ProcessLookupError):  # it was killed meanwhile
                        os.kill(process, number)


@asynccontextmanager
async def open_link(
    faults: Sequence[Fault], there: MemoryBusPart | MqttBusPart, broker: EmbeddedBroker | None
) -> AsyncIterator[Link]:
    """The link of a run, with a proxy where a fault needs one.

    Args:
        there: where the run connects.
        broker: of the run's own.
    """
    kinds = {fault.what for fault in faults} & OF_THE_LINK
    if isinstance(there, MemoryBusPart) or not kinds:
        yield Link()
        return
    async with AsyncExitStack() as stack:
        proxy = None
        if broker is None or kinds & {What.BLACK_HOLE, What.SLOW_LINK}:
            url = urlsplit(there.url)
            proxy = FaultProxy(url.hostname or "", url.port or _PORTS[url.scheme])
            await stack.enter_async_context(proxy)
        link = Link(broker, proxy)
        tending = asyncio.create_task(link.tend()) if broker is not None else None
        try:
            yield link
        finally:
            link.heal()
            if tending is not None:
                tending.cancel()
                await asyncio.gather(tending, return_exceptions=True)
