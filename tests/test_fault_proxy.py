"""The fault proxy: each trouble does to real TCP connections what it says, and no more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from bridges.fault_proxy import FaultProxy

SOON_S = 5.0
HELD_S = 0.15
"""How long nothing is seen to come."""


class Far:
    """A server that sends back all that it gets, and remembers it."""

    def __init__(self) -> None:
        self.got = bytearray()
        self.pieces: list[bytes] = []
        self._server: asyncio.Server | None = None
        self._news = asyncio.Condition()

    async def has(self, size: int) -> None:
        """Wait until so many bytes have come."""
        async with self._news:
            await self._news.wait_for(lambda: len(self.got) >= size)

    async def start(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                self.got += data
                self.pieces.append(data)
                async with self._news:
                    self._news.notify_all()
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def proxied(seed: int = 1) -> AsyncIterator[tuple[FaultProxy, Far]]:
    far = Far()
    port = await far.start()
    try:
        async with FaultProxy("127.0.0.1", port, seed=seed) as proxy:
            yield proxy, far
    finally:
        await far.stop()


class Near:
    """A client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def to(cls, proxy: FaultProxy) -> Near:
        return cls(*await asyncio.open_connection(proxy.host, proxy.port))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def gets(self, data: bytes) -> None:
        async with asyncio.timeout(SOON_S):
            assert await self.reader.readexactly(len(data)) == data

    async def echo(self, data: bytes) -> float:
        """Send, get back; how long it took."""
        begun = asyncio.get_running_loop().time()
        await self.send(data)
        await self.gets(data)
        return asyncio.get_running_loop().time() - begun

    async def gets_nothing(self) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(HELD_S):
                await self.reader.read(1)

    async def is_reset(self) -> None:
        async with asyncio.timeout(SOON_S):
            try:
                assert await self.reader.read(1) == b""
            except ConnectionResetError:
                return

    def close(self) -> None:
        self.writer.close()


async def test_without_trouble_all_passes_in_order() -> None:
    async with proxied() as (proxy, far):
        near = await Near.to(proxy)
        data = bytes(range(256)) * 4000
        sending = asyncio.create_task(near.send(data))
        await near.gets(data)
        await sending
        assert bytes(far.got) == data
        assert proxy.counts["passed"] == 2 * len(data)
        assert not proxy.counts["lost"]
        near.close()


async def test_an_end_passes_after_what_came_before_it() -> None:
    async with proxied() as (proxy, far):
        proxy.latency_s = 0.05
        near = await Near.to(proxy)
        await near.send(b"farewell")
        near.writer.write_eof()
        async with asyncio.timeout(SOON_S):
            await far.has(8)
        assert bytes(far.got) == b"farewell"
        near.close()


async def test_latency_is_added_in_each_direction_and_keeps_the_order() -> None:
    async with proxied() as (proxy, _):
        near = await Near.to(proxy)
        assert await near.echo(b"x") < 0.1
        proxy.latency_s, proxy.jitter_s = 0.1, 0.05
        assert await near.echo(b"x") >= 0.1
        numbers = b"".join(bytes([i]) for i in range(100))
        for i in range(100):
            await near.send(numbers[i : i + 1])
        await near.gets(numbers)
        near.close()


async def test_a_slow_link_lets_few_bytes_pass() -> None:
    async with proxied() as (proxy, _):
        near = await Near.to(proxy)
        proxy.bytes_per_s = 20_000
        took_s = await near.echo(bytes(4000))
        assert took_s >= 0.2  # there and back at 20 kB/s: each way takes 0.2 s, and they overlap
        near.close()


async def test_slices() -> None:
    async with proxied() as (proxy, far):
        near = await Near.to(proxy)
        proxy.slice_bytes = 7
        await near.echo(b"a packet that is cut into small pieces")
        assert max(len(piece) for piece in far.pieces) <= 38
        assert bytes(far.got) == b"a packet that is cut into small pieces"
        near.close()


async def test_frozen_nothing_passes_and_nothing_is_lost() -> None:
    async with proxied() as (proxy, far):
        near = await Near.to(proxy)
        proxy.freeze()
        await near.send(b"kept")
        await near.gets_nothing()
        assert not far.got
        proxy.thaw()
        await near.gets(b"kept")
        near.close()


async def test_in_a_black_hole_everything_is_lost_and_its_connections_end_with_it() -> None:
    async with proxied() as (proxy, far):
        near, idle = await Near.to(proxy), await Near.to(proxy)
        await idle.echo(b"before")
        proxy.black_hole()
        await near.send(b"lost")
        await near.gets_nothing()
        proxy.heal()
        await near.is_reset()
        assert b"lost" not in far.got
        assert proxy.counts["lost"] == 4
        await idle.echo(b"after")  # it has lost nothing
        idle.close()


async def test_refused_connections_are_reset_and_new_ones_too() -> None:
    async with proxied() as (proxy, _):
        near = await Near.to(proxy)
        await near.echo(b"x")
        proxy.refuse()
        await near.is_reset()
        again = await Near.to(proxy)
        await again.is_reset()
        proxy.admit()
        third = await Near.to(proxy)
        await third.echo(b"x")
        assert proxy.counts["refused"] == 1
        third.close()


async def test_reset_is_once() -> None:
    async with proxied() as (proxy, _):
        near = await Near.to(proxy)
        await near.echo(b"x")
        proxy.reset()
        await near.is_reset()
        again = await Near.to(proxy)
        await again.echo(b"x")
        assert proxy.counts["reset"] == 1
        again.close()


async def test_corruption_changes_a_share_of_the_bytes() -> None:
    async with proxied(seed=3) as (proxy, far):
        near = await Near.to(proxy)
        proxy.corrupt_share = 0.01
        data = bytes(20_000)
        await near.send(data)
        async with asyncio.timeout(SOON_S):
            await far.has(len(data))
        wrong = sum(byte != 0 for byte in far.got)
        assert 100 <= wrong <= 300
        near.close()


async def test_a_server_that_is_gone_resets_its_clients() -> None:
    async with proxied() as (proxy, far):
        await far.stop()
        near = await Near.to(proxy)
        await near.is_reset()
        assert proxy.counts["unreachable"] == 1
