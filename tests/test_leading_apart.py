"""A leader and followers in processes of their own, over a real broker: killed, silent, and on a bad bus."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bridges.bus import Bus, Message
from bridges.faulty import FaultyBus
from bridges.mqtt import MqttBus
from bridges.parcel import Parcels, unpack
from bridges.tapped import Way
from scenarios import supervisor
from scenarios.outlet import connect
from scenarios.run import Exit, Result
from simulators.journal import read
from tests.leading_pair import DEVICES, UNITS, scenario
from tests.running import FakeTime, do
from tests.test_leading_run import counts, events, powers, require_secrecy, require_split, rows

TABLES = ("setpoints", "exchanges", "devices", "buses", "branches", "forecasts")


def over(url: str) -> tuple[str, str]:
    return "bus.kind=mqtt", f"bus.url={url}"


def same(one: Result, other: Result) -> None:
    """Every table to the last bit, but for what the wall clock says."""
    for table in TABLES:
        ours, theirs = (read(result.directory, table) for result in (one, other))
        assert ours.num_rows > 0, table
        clocks = ["sent_at"] if table == "setpoints" else []
        assert ours.drop_columns(clocks).equals(theirs.drop_columns(clocks)), table


def conversations(result: Result) -> list[dict[str, Any]]:
    return [event for event in events(result) if event["what"] == "conversation"]


async def test_apart_they_decide_what_they_decide_together(mqtt_url: str, tmp_path: Path) -> None:
    """Each in a process of its own, but for two that share one."""
    here = await do(scenario(tmp_path), tmp_path / "here", "steps=2")
    changes = ["steps=2", "controllers.lead.process=own", "controllers.f3.process=f1"]
    apart = await do(scenario(tmp_path, process="{}"), tmp_path / "apart", *changes, bus=over(mqtt_url))
    assert apart.exit is here.exit is Exit.HELD, (apart.why, here.why)
    same(apart, here)
    assert events(apart) == events(here)
    turns = sum(event["turns"] for event in conversations(apart))
    assert counts(apart)["asks"] == 4 * turns + 2
    assert not [name for name in counts(apart) if name.startswith("answers-") or name in ("late", "lost")]


async def test_the_wire_carries_no_parameters_and_nothing_of_others(mqtt_url: str, tmp_path: Path) -> None:
    """Every message of the run is heard by somebody who may hear everything."""
    file = scenario(tmp_path, process="{}")
    async with MqttBus(mqtt_url, client_id=f"listener-{os.getpid()}", latch_size=100_000) as listener:
        listener.subscribe("gridpace/v1/+/ctl/#")
        listener.publish("gridpace/v1/ready/ctl/x", b"")
        assert await listener.arrived(10)
        changes = ["steps=2", "controllers.lead.process=own"]
        result = await do(file, tmp_path / "runs", *changes, bus=over(mqtt_url))
        assert result.exit is Exit.HELD, result.why
        run, said = result.directory.name, list[Message]()
        while not any(m.topic.split("/")[2] == run and b"offline" in m.payload for m in said):
            assert await listener.arrived(10)
            said += listener.received()
    parcels = {what: Parcels() for what in ("ask", "answer")}
    seen: Counter[tuple[str, str]] = Counter()
    for message in said:
        levels = message.topic.split("/")
        if levels[2] != run:
            continue
        text = message.payload.decode()
        for a, b in UNITS.values():
            assert str(a) not in text
            assert str(b) not in text
        if len(levels) == 7 and (whole := parcels[levels[5]].add(*unpack(message.payload))) is not None:
            seen[levels[5], levels[4]] += 1
            if levels[5] == "ask":
                require_secrecy(levels[4], json.dumps(json.loads(whole)["observation"]))
            elif levels[4] != "lead":
                words = json.loads(whole)["decision"]["words"]["lead"]
                assert words.keys() == {"number", "what", "values", "regions"}
                assert words["values"].keys() == {"p_mw"}
    asked = {name for what, name in seen if what == "ask"}
    assert asked == {"lead", "f1", "f2", "f3"}
    assert seen["answer", "f1"] == seen["ask", "f1"] > 10


def but(apart: str) -> list[str]:
    """Changes after which only one follower is in a process of its own."""
    return [f"controllers.{name}.process=here" for name in ("f1", "f2", "f3") if name != apart]


def process_of(folder: Path, microgrid: str) -> int:
    """The follower's, not the run's own, which has constructed one too."""
    (pid,) = {int(path.stem.partition("-")[2]) for path in folder.glob(f"{microgrid}-*.pid")} - {os.getpid()}
    return pid


async def amid(folder: Path, microgrid: str) -> int:
    """Opened, when the follower has come to wait in the middle of a conversation; the pipe's other end."""
    return await asyncio.to_thread(os.open, folder / f"{microgrid}.pipe", os.O_WRONLY)


async def killed_amid(folder: Path, microgrid: str) -> None:
    """Kill the follower when it waits in the middle of a conversation; the next one does not wait."""
    end = await amid(folder, microgrid)
    (folder / f"{microgrid}.pipe").unlink()
    os.kill(process_of(folder, microgrid), signal.SIGKILL)
    os.close(end)


async def test_a_follower_killed_in_the_middle_comes_back_into_the_conversation(
    mqtt_url: str, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "mg2.pipe")

    killing = asyncio.create_task(killed_amid(tmp_path, "mg2"))
    file = scenario(tmp_path, process="{}")
    result = await do(file, tmp_path / "runs", *but("f2"), bus=over(mqtt_url))
    await killing
    assert result.exit is Exit.HELD, result.why
    require_split(result, range(3))
    here = await do(scenario(tmp_path), tmp_path / "here")
    assert powers(result) == powers(here)
    assert [event["missing"] for event in conversations(result)] == [{}, {}, {"f2": {"lost": 1}}, {}]
    turns = [[event["turns"] for event in conversations(run)] for run in (result, here)]
    assert [a - b for a, b in zip(*turns, strict=True)] == [0, 0, 1, 0]  # it cost one turn
    found = counts(result)
    assert (found["process-lost"], found["process-restarted"], found["lost"]) == (1, 1, 1)
    assert {row["origin"] for row in rows(result, "f2")} == {"optimal"}


async def test_of_one_that_stays_away_the_leader_hears_in_time(mqtt_url: str, tmp_path: Path) -> None:
    """It hangs in the third step. The others share what is to be split."""
    os.mkfifo(tmp_path / "mg2.pipe")

    async def wait() -> None:
        end = await amid(tmp_path, "mg2")
        (tmp_path / "mg2.pipe").unlink()
        ends.append(end)

    ends: list[int] = []
    waiting = asyncio.create_task(wait())
    file = scenario(tmp_path, process="{}")
    changes = ["controllers.f2.deadline=500ms", "steps=4", *but("f2")]
    result = await do(file, tmp_path / "runs", *changes, bus=over(mqtt_url))
    await waiting
    os.close(*ends)
    assert result.exit is Exit.HELD, result.why
    require_split(result, range(2))
    require_split(result, range(2, 3), ("mg1", "mg3"))
    missing = [event["missing"] for event in conversations(result)]
    assert missing[:3] == [{}, {}, {"f2": {"late": 3}}]  # in the fourth one it may still be starting
    assert {event["ended"] for event in conversations(result)} == {"decided"}
    late = next(event for event in events(result) if event["what"] == "late")
    assert (late["step"], late["controller"], late["times"]) == (2, "f2", 3)
    assert late["why"] == "process f2 has not answered within 0.5 s"
    assert [row["origin"] for row in rows(result, "f2")][:3] == ["optimal", "optimal", "held"]
    assert counts(result)["process-killed"] == 1  # three questions without an answer


async def test_by_the_wall_clock_one_that_hangs_costs_one_answers_time(mqtt_url: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "mg3.pipe")

    ends: list[int] = []

    async def wait() -> None:
        ends.append(await amid(tmp_path, "mg3"))

    waiting = asyncio.create_task(wait())
    file = scenario(tmp_path, process="{}")
    changes = ["clock.mode=live", "steps=3", "controllers.f3.deadline=500ms", *but("f3")]
    result = await do(file, tmp_path / "runs", *changes, bus=over(mqtt_url), time=FakeTime())
    await waiting
    os.close(*ends)
    assert result.exit is Exit.HELD, result.why
    require_split(result, range(2))
    said = conversations(result)
    assert [event["missing"] for event in said] == [{}, {}, {"f3": {"late": 3}}]
    assert {event["ended"] for event in said} == {"decided"}
    waited_ms = [row["solve_ms"] for row in rows(result, "f3")]
    assert 500 <= waited_ms[2] < 1500  # it is waited for once, and only asked afterwards


class Weather:
    """Loses, doubles and delays asks and answers, in turn."""

    cut = False

    def __init__(self) -> None:
        self.met: Counter[str] = Counter()

    def held(self, way: Way, topic: str) -> bool:
        return False

    def fate(self, way: Way, topic: str, size: int) -> tuple[float, ...]:
        if topic.split("/")[5] not in ("ask", "answer"):
            return (0.0,)
        self.met[way] += 1
        match self.met[way] % 29:
            case 7:
                return ()
            case 13:
                return (0.0, 0.0)
            case 19:
                return (0.02, 0.03)
            case 23:
                return (1.0,)
        return (0.0,)


async def test_a_bad_bus_costs_turns_and_nothing_else(
    mqtt_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weather: list[Weather] = []

    def connected(*of: Any, **more: Any) -> Bus:
        weather.append(Weather())
        clock = asyncio.get_running_loop().time
        return FaultyBus(connect(*of, **more), weather[-1], clock, wakes=True)

    monkeypatch.setattr(supervisor, "connect", connected)
    deadlines = [f"controllers.f{i}.deadline=300ms" for i in (1, 2, 3)]
    changes = ["steps=3", "controllers.lead.options.patience=1000", *deadlines]
    result = await do(scenario(tmp_path, process="{}"), tmp_path / "runs", *changes, bus=over(mqtt_url))
    assert result.exit is Exit.HELD, result.why
    assert len(weather) == 1
    assert min(weather[0].met.values()) > 200
    require_split(result, range(2))
    found = counts(result)
    assert found["late"] == found["conversation-missing"] >= 20
    assert found["answers-doubled"] >= 5
    assert found["answers-late"] >= 2
    assert {event["ended"] for event in conversations(result)} == {"decided"}
    assert found["conversations"] == 3
    (device, _), *_ = DEVICES.values()
    assert device in {row["device"] for row in read(result.directory, "setpoints").to_pylist()}
