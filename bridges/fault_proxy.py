"""FaultProxy: a TCP proxy on the loopback address, on which a link can be made as bad as links are.

| trouble | what happens |
|---|---|
| `latency_s`, `jitter_s` | each piece of data arrives later, in order |
| `bytes_per_s` | few bytes pass, in each direction |
| `slice_bytes` | data arrives in pieces of so many bytes |
| `corrupt_share` | of the bytes, one bit is wrong |
| `freeze` / `thaw` | nothing passes; nothing is lost |
| `black_hole` / `heal` | nothing passes and all is lost; at its end such connections are reset |
| `refuse` / `admit` | connections are reset, new ones too |
| `reset` | connections are reset, new ones are welcome |
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections import Counter
from contextlib import suppress
from types import TracebackType
from typing import Self

CHUNK = 65_536
MOST_WAITING = 1_000_000
"""Bytes on their way in one direction of a connection; beyond that the sender has to wait."""
LOOPBACK = ("127.0.0.1", "::1")


class FaultProxy:
    """Passes connections on to a server, and spoils them on request.

    Args:
        host, port: of the server.
        seed: of jitter and corruption.

    Raises:
        OSError: no port is free.
    """

    def __init__(self, host: str, port: int, *, seed: int = 0) -> None:
        self.there = host, port
        self.host, self.port = LOOPBACK[0], 0
        self.latency_s = self.jitter_s = 0.0
        self.bytes_per_s: float | None = None
        self.slice_bytes: int | None = None
        self.corrupt_share = 0.0
        self.counts: Counter[str] = Counter()
        """accepted | refused | reset | unreachable: connections; passed | lost | corrupted: bytes"""
        self._rng = random.Random(seed)
        self._open = asyncio.Event()
        self._open.set()
        self._hole = self._refusing = False
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def connections(self) -> int:
        """How many there are now."""
        return len(self._links)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, self.host, self.port, backlog=2048)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.reset()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # Trouble

    def freeze(self) -> None:
        """Let nothing pass, and lose nothing."""
        self._open.clear()

    def thaw(self) -> None:
        """End `freeze`."""
        self._open.set()

    def black_hole(self) -> None:
        """Take everything and pass nothing on, as a network does that has lost its route."""
        self._hole = True

    def refuse(self) -> None:
        """Reset all connections, and every new one."""
        self._refusing = True
        self.reset()

    def admit(self) -> None:
        """End `refuse`."""
        self._refusing = False

    def reset(self) -> None:
        """Reset all connections, on both sides."""
        for link in tuple(self._links):
            self.counts["reset"] += 1
            link.reset()

    def heal(self) -> None:
        """End all trouble. Connections that have lost something are reset: a stream with a hole is none."""
        was_hole, self._hole = self._hole, False
        self.latency_s = self.jitter_s = self.corrupt_share = 0.0
        self.bytes_per_s = self.slice_bytes = None
        self._refusing = False
        self._open.set()
        if was_hole:
            for link in tuple(self._links):
                if link.torn:
                    self.counts["reset"] += 1
                    link.reset()

    # Passing on

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            self.counts["refused"] += 1
            _abort(writer)
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(*self.there)
        except OSError:
            self.counts["unreachable"] += 1
            _abort(writer)
            return
        self.counts["accepted"] += 1
        link = _Link(writer, far_writer)
        for one in (writer, far_writer):
            with suppress(OSError):
                one.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._links.add(link)
        try:
            await link.pump(self, (reader, far_writer), (far_reader, writer))
        finally:
            self._links.discard(link)
            link.close()

    def spoiled(self, data: bytes) -> bytes:
        """Data with as many wrong bits as there shall be."""
        if not self.corrupt_share:
            return data
        found = bytearray(data)
        for i in range(len(found)):
            if self._rng.random() < self.corrupt_share:
                found[i] ^= 1 << self._rng.randrange(8)
                self.counts["corrupted"] += 1
        return bytes(found)

    def delay_s(self) -> float:
        """How much later the next piece arrives."""
        return max(self.latency_s + self._rng.uniform(-1, 1) * self.jitter_s, 0.0)

    async def passing(self) -> None:
        """Wait until something may pass."""
        await self._open.wait()

    @property
    def hole(self) -> bool:
        """Whether what is written is lost."""
        return self._hole


class _Link:
    """Both directions of one connection."""

    def __init__(self, *writers: asyncio.StreamWriter) -> None:
        self._writers = writers
        self.torn = False
        """whether something of it was lost"""

    def reset(self) -> None:
        """End both sides by RST."""
        for writer in self._writers:
            _abort(writer)

    def close(self) -> None:
        """End both sides in good order."""
        for writer in self._writers:
            writer.close()

    async def pump(self, proxy: FaultProxy, *ways: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
        """Pass on until either side ends."""
        tasks = [asyncio.ensure_future(self._way(proxy, *way)) for way in ways]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _way(
        self, proxy: FaultProxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Read as fast as there is room, write as late as there is trouble; `None` is the end."""
        loop = asyncio.get_running_loop()
        waiting: asyncio.Queue[tuple[float, bytes | None]] = asyncio.Queue()
        size, room, last = 0, asyncio.Event(), 0.0

        async def read() -> None:
            nonlocal size, last
            while data := await reader.read(CHUNK):
                last = max(last, loop.time() + proxy.delay_s())
                waiting.put_nowait((last, data))
                size += len(data)
                while size > MOST_WAITING:
                    room.clear()
                    await room.wait()

        async def all_of_it() -> None:
            with suppress(OSError):  # a reset is an end too
                await read()
            waiting.put_nowait((last, None))

        reading = asyncio.ensure_future(all_of_it())
        try:
            while True:
                at, data = await waiting.get()
                if (wait_s := at - loop.time()) > 0:
                    await asyncio.sleep(wait_s)
                if data is None:
                    return
                await self._write(proxy, writer, data)
                size -= len(data)
                room.set()
        except OSError:
            return  # the other side is gone
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _write(self, proxy: FaultProxy, writer: asyncio.StreamWriter, data: bytes) -> None:
        data = proxy.spoiled(data)
        while data:
            await proxy.passing()
            size = proxy.slice_bytes or len(data)
            if proxy.bytes_per_s:
                size = min(size, max(int(proxy.bytes_per_s / 20), 1))
            piece, data = data[:size], data[size:]
            if proxy.hole or self.torn:
                self.torn = True
                proxy.counts["lost"] += len(piece)
                continue
            if proxy.bytes_per_s:
                await asyncio.sleep(len(piece) / proxy.bytes_per_s)
            writer.write(piece)
            await writer.drain()
            proxy.counts["passed"] += len(piece)


def _abort(writer: asyncio.StreamWriter) -> None:
    """End a connection by RST."""
    with suppress(OSError, AttributeError):
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()
