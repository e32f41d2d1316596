"""`gridpace operate`: a run is told to leave devices alone, and is waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from typer.testing import CliRunner

from bridges import wire
from bridges.memory import MemoryBus, MemoryHub
from bridges.operator import OperatorMessage, operator_topic
from bridges.publisher import Publisher
from scenarios.cli import app
from scenarios.operate import NotHeard, operate

NOON = datetime(2026, 6, 21, 12, tzinfo=UTC)


class Run:
    """A run that holds whom it is told to hold, if it knows him."""

    def __init__(self, hub: MemoryHub, *known: str, deaf: int = 0) -> None:
        self.bus = MemoryBus(hub)
        self.publisher = Publisher(self.bus, run="r", area="a", epoch=1)
        self.bus.subscribe(operator_topic("r"))
        self.known, self.deaf = known, deaf
        self.held: set[str] = set()
        self.heard: list[tuple[str, str, str | None]] = []

    async def go_on(self) -> None:
        async with self.bus:
            step = 0
            while True:
                self.publisher.heartbeat(step, 1.0, NOON, self.held)
                await self.bus.arrived(10.0)
                for message in self.bus.received():
                    said = wire.decode(message.payload, OperatorMessage)
                    self.heard.append((said.word, said.device, said.why))
                    if len(self.heard) > self.deaf and said.device in self.known:
                        (self.held.add if said.word == "hold" else self.held.discard)(said.device)
                step += 1


async def against(run: Run, work: Callable[[MemoryBus], asyncio.Future[tuple[str, ...]] | object]) -> object:
    going = asyncio.create_task(run.go_on())
    try:
        async with asyncio.timeout(20):
            return await work(MemoryBus(run.bus.hub))  # type: ignore[misc]
    finally:
        going.cancel()
        await asyncio.gather(going, return_exceptions=True)


async def test_it_waits_until_the_run_says_whom_it_holds() -> None:
    run = Run(MemoryHub(), "bat", "pv")
    held = await against(run, lambda bus: operate(bus, "r", hold=["bat", "pv"], release=[], why="a visit"))
    assert held == ("bat", "pv")
    assert run.heard == [("hold", "bat", "a visit"), ("hold", "pv", "a visit")]
    held = await against(run, lambda bus: operate(bus, "r", hold=[], release=["bat"]))
    assert held == ("pv",)


async def test_what_was_not_heard_is_said_again() -> None:
    run = Run(MemoryHub(), "bat", deaf=1)
    assert await against(run, lambda bus: operate(bus, "r", hold=["bat"], release=[])) == ("bat",)
    assert len(run.heard) == 2


async def test_a_device_that_the_run_does_not_know_is_named() -> None:
    run = Run(MemoryHub(), "pv")
    with pytest.raises(NotHeard, match=r"what was said of bat within 0\.2 s"):
        await against(run, lambda bus: operate(bus, "r", hold=["bat", "pv"], release=[], within_s=0.2))
    assert run.held == {"pv"}


async def test_a_heartbeat_without_room_for_a_name_is_no_answer() -> None:
    many = [f"{k:04}-{'x' * 59}" for k in range(1200)]
    run = Run(MemoryHub(), "0", "zz", many[0])
    run.held = {*many, "zz"}
    assert (await against(run, lambda bus: operate(bus, "r", hold=["0"], release=[many[0]])))[0] == "0"  # type: ignore[index]
    with pytest.raises(NotHeard, match="holds 1200 devices, and its heartbeat has no room to say whether zz"):
        await against(run, lambda bus: operate(bus, "r", hold=[], release=["zz"], within_s=0.2))
    assert "zz" not in run.held  # it was said all the same


async def test_a_run_that_does_not_go_on_is_named() -> None:
    with pytest.raises(NotHeard, match="'nobody' is not heard on gridpace/v1/nobody/ctl/state"):
        await operate(MemoryBus(MemoryHub()), "nobody", hold=["bat"], release=[], within_s=0.05)


@pytest.mark.parametrize(
    ("options", "status", "why"),
    [
        (("r", "--url", "mqtt://127.0.0.1:1"), 2, "which device?"),
        (("r", "--hold", "a", "--release", "a", "--url", "mqtt://127.0.0.1:1"), 2, "give one of the two"),
        (("r", "--hold", "a", "--url", "http://there"), 2, "--url http://there"),
        (("r", "--hold", "a", "--url", "mqtt://127.0.0.1:1"), 2, "cannot connect to mqtt://127.0.0.1:1"),
        (("r", "--hold", "a b", "--url", "mqtt://127.0.0.1:1"), 2, "device 'a b'"),
        (("a/b", "--hold", "a", "--url", "mqtt://127.0.0.1:1"), 2, "run 'a/b'"),
        (("r", "--hold", "a", "--url", "mqtt://127.0.0.1:1", "--within", "5"), 2, "is no length of time"),
    ],
)
def test_a_users_mistake_is_said_in_a_line(options: tuple[str, ...], status: int, why: str) -> None:
    result = CliRunner().invoke(app, ["operate", *options])
    assert result.exit_code == status, result.output
    assert why in result.output
    assert "Traceback" not in result.output
