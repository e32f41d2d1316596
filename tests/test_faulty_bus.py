"""The bus in bad weather: what is lost, late, twice or held, both ways; on a clock that a test moves."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bridges.bus import Message
from bridges.faulty import FaultyBus
from bridges.memory import MemoryBus, MemoryHub
from bridges.tapped import Way


class Weather:
    """What a test says."""

    def __init__(self) -> None:
        self.cut = False
        self.calm: Callable[[Way, str], tuple[float, ...]] = lambda way, topic: (0.0,)
        self.holding: Callable[[Way, str], bool] = lambda way, topic: self.cut

    def held(self, way: Way, topic: str) -> bool:
        return self.holding(way, topic)

    def fate(self, way: Way, topic: str, size: int) -> tuple[float, ...]:
        return self.calm(way, topic)


class Line:
    """A faulty bus and somebody at the other end."""

    def __init__(self) -> None:
        self.now = 0.0
        hub = MemoryHub(lambda: self.now)
        self.weather, self.far = Weather(), MemoryBus(hub)
        self.near = FaultyBus(MemoryBus(hub), self.weather, lambda: self.now)

    async def __aenter__(self) -> Line:
        await self.near.__aenter__()
        await self.far.__aenter__()
        self.far.subscribe("down/#")
        self.near.subscribe("up/#")
        return self

    async def __aexit__(self, *args: object) -> None:
        await self.far.__aexit__(None, None, None)
        await self.near.__aexit__(None, None, None)

    def sent(self, *payloads: bytes, topic: str = "down/a") -> list[bytes]:
        """What arrives of what is sent."""
        for payload in payloads:
            self.near.publish(topic, payload, retain=True, ttl_s=10.0)
        return [message.payload for message in self.far.received()]

    def came(self, *payloads: bytes) -> list[bytes]:
        """The same in the other direction."""
        for payload in payloads:
            self.far.publish("up/a", payload)
        return [message.payload for message in self.near.received()]

    def later(self, seconds: float) -> list[bytes]:
        self.now += seconds
        self.near.release()
        return [message.payload for message in self.far.received()]


async def test_in_good_weather_it_is_the_bus_itself() -> None:
    async with Line() as line:
        assert line.sent(b"1", b"2") == [b"1", b"2"]
        assert line.came(b"3", b"4") == [b"3", b"4"]
        assert line.near.connected
        assert await line.near.flush(0.0)
        assert line.near.counts["published"] == 2
        assert not +line.near.happened


async def test_what_is_lost_is_gone() -> None:
    async with Line() as line:
        line.weather.calm = lambda way, topic: ()
        assert line.sent(b"1") == line.came(b"2") == []
        line.weather.calm = lambda way, topic: (0.0,)
        assert line.later(9.0) == []
        assert line.near.happened["lost"] == 2


async def test_what_is_late_comes_when_it_is_due_and_lives_no_longer_for_that() -> None:
    async with Line() as line:
        line.weather.calm = lambda way, topic: (4.0,)
        assert line.sent(b"1") == line.came(b"2") == []
        assert line.later(3.9) == line.came() == []
        line.weather.calm = lambda way, topic: (0.0,)
        assert line.later(0.2) == [b"1"]
        assert line.came() == [b"2"]
        line.weather.calm = lambda way, topic: (11.0,)
        assert line.sent(b"over before it is sent") == []
        assert line.later(20.0) == []


async def test_what_comes_later_has_been_overtaken() -> None:
    async with Line() as line:
        late = iter(((2.0,), (0.0,), (0.0,), (2.0,), (0.0,)))
        line.weather.calm = lambda way, topic: next(late)
        assert line.sent(b"1", b"2", b"3") == [b"2", b"3"]
        assert line.later(2.0) == [b"1"]
        assert line.came(b"4", b"5") == [b"5"]


async def test_copies() -> None:
    async with Line() as line:
        line.weather.calm = lambda way, topic: (0.0, 0.0, 5.0)
        assert line.sent(b"1") == [b"1", b"1"]
        assert line.later(5.0) == [b"1"]
        assert line.came(b"2") == [b"2", b"2"]
        assert line.near.happened["twice"] == 4


async def test_while_it_is_cut_the_newest_of_each_topic_waits() -> None:
    async with Line() as line:
        line.weather.cut = True
        assert line.sent(b"1", b"2") == line.sent(b"b", topic="down/b") == []
        assert line.came(b"3", b"4") == []
        assert not line.near.connected
        assert not await line.near.flush(0.0)
        line.weather.cut = False
        assert line.later(0.0) == [b"2", b"b"]
        assert line.came(b"5") == [b"3", b"4", b"5"]
        assert await line.near.flush(0.0)


async def test_what_is_over_when_the_cut_ends_is_not_sent() -> None:
    async with Line() as line:
        line.weather.cut = True
        line.sent(b"1")
        line.now += 10.0
        line.weather.cut = False
        assert line.later(0.0) == []


async def test_what_is_newer_goes_first_and_what_was_held_not_at_all() -> None:
    async with Line() as line:
        line.weather.holding = lambda way, topic: topic.endswith("a")
        line.sent(b"1")
        assert line.sent(b"b", topic="down/b") == [b"b"]  # only one device is silent
        assert await line.near.flush(0.0)
        line.weather.holding = lambda way, topic: False
        assert line.sent(b"2")[-1] == b"2"
        assert line.later(1.0) == []


async def test_it_wakes_whoever_waits_for_what_is_late() -> None:
    import asyncio

    loop = asyncio.get_running_loop()
    hub, weather = MemoryHub(loop.time), Weather()
    far = MemoryBus(hub)
    async with FaultyBus(MemoryBus(hub), weather, loop.time, wakes=True) as near, far:
        near.subscribe("up/#")
        far.subscribe("down/#")
        weather.calm = lambda way, topic: (0.05,)
        near.publish("down/a", b"1")
        assert await far.arrived(5.0)
        assert far.received() == [Message("down/a", b"1")]
        far.publish("up/a", b"2")
        assert await near.arrived(5.0)
        assert near.received() == []
        assert await near.arrived(5.0)
        assert near.received() == [Message("up/a", b"2")]
        assert not await near.arrived(0.05)


async def test_what_no_bus_takes_is_refused_at_once() -> None:
    async with Line() as line:
        line.weather.calm = lambda way, topic: ()
        with pytest.raises(ValueError, match="is not a topic"):
            line.near.publish("a/#", b"1")
