"""Rounds: what a device that is visited is told, when, and what is said to have become of it."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from itertools import pairwise

import pytest

from bridges.device_bridge import BridgeLost, BridgeRefused, Capability, InForce, Reading, Written
from bridges.rounds import SHORTEST_S, SILENT, TRIES_S, Rounds
from controllers.contract import Instruction, Span
from controllers.devices import still
from controllers.region import Region
from controllers.register import Life, Refusal
from tests.running import FakeTime

PV = Capability(p_max_mw=1.0, s_mva=1.0, q_max_mvar=0.6, q_min_mvar=-0.6)


class Device:
    """A bridge to nothing, which can be lost, refuse, and keep what it has too long."""

    def __init__(self, time: FakeTime) -> None:
        self.time = time
        self.written: list[tuple[int, float | None]] = []
        self.lost = self.refuses = self.slow = False
        self.obeys = False
        """whether it goes on as it was told though that is over"""
        self.ends_in_s: float | None = None
        """what its timer says then"""
        self.closed = 0
        self.reads = asyncio.Semaphore(0)

    async def connect(self) -> None:
        if self.slow:
            await asyncio.Event().wait()
        if self.lost:
            raise BridgeLost("gone")

    async def read_capability(self) -> Capability:
        return PV

    async def write_setpoint(
        self, instruction: Instruction, now: datetime, *, wish_mw: float | None = None
    ) -> Written:
        if self.refuses:
            raise BridgeRefused(Refusal.CAPABILITY, "WSet: it does not have it")
        self.written.append((instruction.seq, wish_mw))
        back = InForce(time=now, limit_mw=0.0)
        return Written(time=now, setting=InForce(time=now, limit_mw=0.4), reverts_to=back)

    async def read_back(self) -> InForce:
        now = self.time.wall()
        if not self.obeys:
            return InForce(time=now, limit_mw=0.0)
        left = None if self.ends_in_s is None else now + timedelta(seconds=self.ends_in_s)
        return InForce(time=now, limit_mw=0.4, reverts_at=left)

    async def read_measurements(self) -> Reading:
        self.reads.release()
        return Reading(time=self.time.wall(), p_mw=0.4, q_mvar=0.0)

    async def close(self) -> None:
        self.closed += 1


class Bench:
    def __init__(self) -> None:
        self.time = FakeTime()
        self.set_by = timedelta(0)
        """by how much somebody has set the wall clock"""
        self.device = Device(self.time)
        self.rounds = Rounds(
            {"pv": self.device}, every_s=0.5, deadline_s=5.0, utc=self.wall, monotonic=self.time.monotonic
        )

    def wall(self) -> datetime:
        return self.time.wall() + self.set_by

    def told(self, seq: int, begins: float = 0.0, lasts: float = 4.0, *later: float) -> Instruction:
        """Times from now on; `later` are the ends of further spans."""
        now = self.wall()
        ends = [now + timedelta(seconds=s) for s in (lasts, *later)]
        region = Region.box(p_mw=(0, seq / 10), q_mvar=(0, 0))
        return Instruction(
            device="pv",
            epoch=1,
            seq=seq,
            issued_at=now,
            valid_from=now + timedelta(seconds=begins),
            valid_until=ends[-1],
            region=region,
            setpoint=None,
            fallback=still(),
            later=tuple(Span(a, b, region) for a, b in pairwise(ends)),
        )

    async def visit(self, after_s: float = 0.0) -> float:
        self.time.pass_by(after_s)
        return await self.rounds.visit("pv")

    def said(self) -> list[tuple[int, Life]]:
        return [(answer.seq, answer.state) for _, answer in self.rounds.answers()]


async def test_an_instruction_is_written_when_it_begins_and_what_takes_its_place_is_said() -> None:
    bench = Bench()
    bench.rounds.tell(bench.told(1, begins=0.3))
    assert await bench.visit() == pytest.approx(0.3)
    assert bench.device.written == []
    bench.rounds.wish("pv", 0.2)
    assert await bench.visit(0.3) == 0.5
    assert bench.device.written == [(1, 0.2)]
    assert bench.said() == [(1, Life.RECEIVED), (1, Life.APPLIED)]
    await bench.visit(0.5)
    assert bench.device.written == [(1, 0.2)]
    bench.rounds.tell(bench.told(2))
    await bench.visit(0.5)
    assert bench.said() == [(2, Life.RECEIVED), (1, Life.SUPERSEDED), (2, Life.APPLIED)]
    assert bench.rounds.readings()["pv"].p_mw == 0.4
    assert bench.rounds.readings() == {}


async def test_each_span_of_a_schedule_is_written_when_it_begins() -> None:
    bench = Bench()
    bench.rounds.tell(bench.told(1, 0.0, 1.0, 2.0, 3.0))
    waits = [await bench.visit()] + [await bench.visit(0.5) for _ in range(5)]
    assert waits == [0.5] * 6
    assert len(bench.device.written) == 3
    assert bench.said() == [(1, Life.RECEIVED), (1, Life.APPLIED)]
    assert bench.rounds.counts["written"] == 3


async def test_what_was_lost_on_the_way_is_written_again_soon() -> None:
    bench = Bench()
    bench.device.lost = True
    bench.rounds.tell(bench.told(1))
    assert await bench.visit() == TRIES_S
    assert bench.said() == []
    bench.device.lost = False
    await bench.visit(TRIES_S)
    assert bench.said() == [(1, Life.RECEIVED), (1, Life.APPLIED)]
    assert bench.rounds.counts == {"lost": 1, "written": 1}


async def test_what_it_refuses_is_not_written_again_and_the_last_one_stays() -> None:
    bench = Bench()
    bench.rounds.tell(bench.told(1))
    await bench.visit()
    bench.device.refuses = True
    bench.rounds.tell(bench.told(2))
    assert await bench.visit(0.5) == 0.5
    await bench.visit(0.5)
    answers = bench.rounds.answers()
    assert [(a.seq, a.state, a.code) for _, a in answers] == [
        (1, Life.RECEIVED, None),
        (1, Life.APPLIED, None),
        (2, Life.REFUSED, Refusal.CAPABILITY),
    ]
    assert answers[-1][1].reason == "WSet: it does not have it"


@pytest.mark.parametrize("ends_in_s", [9.0, None])
async def test_that_it_fell_back_is_said_when_it_does_what_it_should_then(ends_in_s: float | None) -> None:
    """Not when its timer is over: there are devices that go on all the same."""
    bench = Bench()
    bench.rounds.tell(bench.told(1, lasts=2.0))
    await bench.visit()
    bench.said()
    bench.device.obeys, bench.device.ends_in_s = True, ends_in_s
    for _ in range(2):
        await bench.visit(1.5)
    await bench.visit()
    assert bench.said() == []
    assert bench.rounds.unreverted == {"pv": "limit_mw is 0.4, not 0.0"}
    bench.device.obeys = False
    await bench.visit(0.5)
    assert bench.said() == [(1, Life.EXPIRED), (1, Life.FALLBACK)]
    assert bench.rounds.unreverted == {}
    assert bench.rounds.counts["unreverted"] == 1
    assert len(bench.device.written) == 1


async def test_a_timer_that_is_about_to_end_is_waited_for() -> None:
    bench = Bench()
    bench.rounds.tell(bench.told(1, lasts=2.0))
    await bench.visit()
    bench.said()
    bench.device.obeys, bench.device.ends_in_s = True, 1.0
    await bench.visit(2.0)
    assert (bench.said(), bench.rounds.unreverted) == ([], {})
    bench.device.ends_in_s = None
    await bench.visit(0.5)
    assert list(bench.rounds.unreverted) == ["pv"]


async def test_one_that_never_fell_back_has_expired_when_it_is_told_anew() -> None:
    bench = Bench()
    bench.rounds.tell(bench.told(1, lasts=2.0))
    await bench.visit()
    bench.device.obeys = True
    await bench.visit(2.5)
    bench.said()
    bench.rounds.tell(bench.told(2))
    await bench.visit(0.5)
    assert bench.said() == [(2, Life.RECEIVED), (1, Life.EXPIRED), (2, Life.APPLIED)]
    assert bench.rounds.unreverted == {}


async def test_a_wall_clock_that_is_set_back_prolongs_nothing() -> None:
    bench = Bench()
    bench.rounds.tell(bench.told(1, 0.0, 2.0, 4.0))
    await bench.visit()
    bench.said()
    bench.set_by = timedelta(hours=-1)
    await bench.visit(2.5)
    assert len(bench.device.written) == 2  # its next span has begun
    assert bench.said() == []
    await bench.visit(2.0)
    assert bench.said() == [(1, Life.EXPIRED), (1, Life.FALLBACK)]
    bench.device.lost = True
    bench.rounds.tell(bench.told(2))
    bench.set_by = timedelta(hours=-2)
    await bench.visit(4.5)
    bench.device.lost = False
    await bench.visit(0.5)
    assert len(bench.device.written) == 2  # it was over before it could be told


async def test_what_is_withdrawn_is_not_written() -> None:
    bench = Bench()
    bench.rounds.tell(bench.told(1, begins=1.0))
    await bench.visit()
    bench.rounds.withdraw("pv")
    assert await bench.visit(1.0) == 0.5
    assert bench.device.written == []


async def test_one_that_does_not_answer_holds_up_nobody() -> None:
    time = FakeTime()
    dead, alive = [Device(time) for _ in range(9)], Device(time)
    for device in dead:
        device.slow = True
    bridges = {f"dead{i}": device for i, device in enumerate(dead)} | {"alive": alive}
    rounds = Rounds(bridges, every_s=SHORTEST_S, deadline_s=60.0, at_once=10, utc=time.wall)
    going = asyncio.create_task(rounds.run())
    async with asyncio.timeout(20):
        for _ in range(3):
            await alive.reads.acquire()
    going.cancel()
    with pytest.raises(asyncio.CancelledError):
        await going
    assert [device.closed for device in (*dead, alive)] == [1] * 10


async def test_those_that_fell_silent_wait_for_each_other_only() -> None:
    class Silent(Device):
        tried = 0

        async def connect(self) -> None:
            self.tried += 1
            if self.tried > 1:
                await asyncio.Event().wait()
            raise BridgeLost("no answer")

    time = FakeTime()
    silent, alive = [Silent(time) for _ in range(9)], Device(time)
    bridges = {"alive": alive} | {f"silent{i}": device for i, device in enumerate(silent)}
    rounds = Rounds(bridges, every_s=SHORTEST_S, deadline_s=60.0, at_once=1, utc=time.wall)
    going = asyncio.create_task(rounds.run())
    async with asyncio.timeout(20):
        while sum(device.tried > 1 for device in silent) < SILENT:
            await alive.reads.acquire()
        for _ in range(3):
            await alive.reads.acquire()
    assert sum(device.tried > 1 for device in silent) == SILENT
    going.cancel()
    with pytest.raises(asyncio.CancelledError):
        await going


async def test_it_ends_though_a_bridge_swallows_that_it_should() -> None:
    class Stubborn(Device):
        async def connect(self) -> None:
            self.reads.release()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise BridgeLost("as wait_for does when the answer comes at the same moment") from None

    time = FakeTime()
    device = Stubborn(time)
    rounds = Rounds({"pv": device}, every_s=0.5, deadline_s=60.0, utc=time.wall)
    going = asyncio.create_task(rounds.run())
    await device.reads.acquire()
    going.cancel()
    done, _ = await asyncio.wait([going], timeout=20)
    assert done == {going}
    assert device.closed == 1


async def test_a_visit_has_a_deadline() -> None:
    time = FakeTime()
    device = Device(time)
    device.slow = True
    rounds = Rounds({"pv": device}, every_s=0.5, deadline_s=0.01, utc=time.wall)
    assert await rounds.visit("pv") == 0.5
    assert rounds.counts == {"lost": 1}


@pytest.mark.parametrize("wrong", [{"every_s": 0.0}, {"deadline_s": 0.0}, {"at_once": 0}])
def test_rounds_that_never_come_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="rounds"):
        Rounds({}, **({"every_s": 1.0, "deadline_s": 1.0} | wrong))  # type: ignore[arg-type]
