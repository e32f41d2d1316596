"""The partnership over a real broker, each role in its own process: the same optimum, come what may."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bridges.bus import Bus, Message
from bridges.faulty import FaultyBus
from bridges.mqtt import MqttBus
from bridges.parcel import Parcels, unpack
from scenarios import supervisor
from scenarios.load import load
from scenarios.outlet import connect
from scenarios.run import Exit, Result
from simulators.journal import read
from tests.running import do
from tests.test_leading_apart import Weather, amid, killed_amid, over, same

NAMES = tuple(f"mg{i}" for i in range(1, 7))
CASE = "ieee123-partnership"
STEPS = "steps=2"
WAITING = "tests.partnership_waiting:WaitingFollower"


def apart(*names: str) -> list[str]:
    return [f"controllers.{name}.process=own" for name in names]


def waiting(name: str, folder: Path, at: int = 4) -> list[str]:
    """Changes that put a follower which may be told to wait in a process of its own."""
    options = f"controllers.{name}.options"
    return [
        f"controllers.{name}.uses={WAITING}",
        f"{options}.pid_in={folder}",
        f"{options}.at={at}",
        *apart(name),
    ]


def last(result: Result) -> list[dict[str, Any]]:
    """What each step's iterations ended with."""
    return [row for row in read(result.directory, "iterations").to_pylist() if row["ended"] is not None]


def same_optimum(one: Result, other: Result) -> None:
    for ours, theirs in zip(last(one), last(other), strict=True):
        for bound in ("lower", "upper"):
            assert ours[bound] == pytest.approx(theirs[bound], rel=1e-6), (ours, theirs)


def events(result: Result, what: str) -> list[dict[str, Any]]:
    found = map(json.loads, (result.directory / "events.jsonl").read_text().splitlines())
    return [event for event in found if event["what"] == what]


def counts(result: Result) -> dict[str, int]:
    found: dict[str, int] = json.loads((result.directory / "manifest.json").read_text())["counts"]
    return found


@pytest.mark.slow
async def test_seven_processes_find_the_same_optimum(mqtt_url: str, tmp_path: Path) -> None:
    here = await do(CASE, tmp_path / "here", STEPS)
    result = await do(CASE, tmp_path / "apart", STEPS, *apart("operator", *NAMES), bus=over(mqtt_url))
    assert result.exit is here.exit is Exit.HELD, (result.why, here.why)
    same_optimum(result, here)
    same(result, here)  # and every table, to the last bit
    assert all(row["gap"] <= 1e-6 for row in last(result))
    assert not {"late", "lost", "process-lost"} & counts(result).keys()


@pytest.mark.slow
async def test_a_follower_killed_in_the_middle_comes_back_to_the_same_optimum(
    mqtt_url: str, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "mg3.pipe")

    killing = asyncio.create_task(killed_amid(tmp_path, "mg3"))
    result = await do(CASE, tmp_path / "runs", STEPS, *waiting("mg3", tmp_path), bus=over(mqtt_url))
    await killing
    assert result.exit is Exit.HELD, result.why
    here = await do(CASE, tmp_path / "here", STEPS)
    same_optimum(result, here)
    assert events(result, "conversation")[0]["missing"] == {"mg3": {"lost": 1}}
    found = counts(result)
    assert (found["process-lost"], found["process-restarted"], found["lost"]) == (1, 1, 1)
    assert found["origin-certified"] == 2
    assert found["origin-optimal"] == 12


@pytest.mark.slow
@pytest.mark.parametrize(("at", "origin"), [(2, "default"), (4, "optimal")])
async def test_of_one_that_stays_away_the_leader_says_so_and_the_others_agree(
    mqtt_url: str, tmp_path: Path, at: int, origin: str
) -> None:
    """Before it has settled on anything, and after."""
    os.mkfifo(tmp_path / "mg3.pipe")
    ends: list[int] = []

    async def wait() -> None:
        ends.append(await amid(tmp_path, "mg3"))
        (tmp_path / "mg3.pipe").unlink()

    hanging = asyncio.create_task(wait())
    enough = ["controllers.operator.options.epsilon=0.001", "expect.1.share=0.5", "expect.2.below=0.001"]
    changes = [*waiting("mg3", tmp_path, at), "controllers.mg3.deadline=1s", *enough]
    result = await do(CASE, tmp_path / "runs", STEPS, *changes, bus=over(mqtt_url))
    await hanging
    os.close(*ends)
    assert result.exit is Exit.HELD, result.why
    first = events(result, "conversation")[0]
    assert (first["ended"], first["missing"]) == ("decided", {"mg3": {"late": 3}})
    (told,) = [event for event in events(result, "degraded") if event["controller"] == "operator"]
    assert "mg3 stayed away" in told["why"]
    rows = [row for row in read(result.directory, "steps").to_pylist() if row["step"] == 0]
    origins = {row["controller"]: row["origin"] for row in rows}
    assert origins == dict.fromkeys(NAMES, "optimal") | {"operator": "degraded", "mg3": origin}
    assert last(result)[0]["ended"].startswith("absent after")
    rows = [row for row in read(result.directory, "exchanges").to_pylist() if row["microgrid"] == "mg3"]
    before, acted, *_ = sorted(rows, key=lambda row: row["time"])
    # What it had settled on, or else was doing, it does; and the operator has counted on just that.
    assert acted["p_mw"] == pytest.approx(acted["planned_mw"], abs=1e-6)
    assert (acted["p_mw"] == pytest.approx(before["p_mw"], abs=1e-3)) == (at == 2)
    v_pu = [row["v_pu"] for row in read(result.directory, "buses").to_pylist()]
    assert min(v_pu) >= 0.9


@pytest.mark.slow
async def test_lost_doubled_and_late_words_change_no_optimum(
    mqtt_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weather: list[Weather] = []

    def connected(*of: Any, **more: Any) -> Bus:
        weather.append(Weather())
        clock = asyncio.get_running_loop().time
        return FaultyBus(connect(*of, **more), weather[-1], clock, wakes=True)

    here = await do(CASE, tmp_path / "here", STEPS)
    monkeypatch.setattr(supervisor, "connect", connected)
    deadlines = [f"controllers.{name}.deadline=2s" for name in NAMES]
    changes = [*apart(*NAMES), *deadlines, "controllers.operator.options.patience=30"]
    result = await do(CASE, tmp_path / "runs", STEPS, *changes, bus=over(mqtt_url))
    assert result.exit is Exit.HELD, result.why
    same_optimum(result, here)
    found = counts(result)
    assert found["late"] == found["conversation-missing"] > 0
    assert found["answers-doubled"] > 0


# What is on the wire

PARAMETERS = {
    "dg": ("p_mw", "p_min_mw", "q_mvar", "ramp_mw_per_min", "cost_per_mwh", "start_up_cost"),
    "re": ("p_mw", "s_mva", "power_factor"),
    "ess": ("p_mw", "e_mwh", "e_min_mwh", "e_start_mwh", "efficiency"),
    "load": ("p_mw", "power_factor", "cost_per_mwh"),
}
"""Of each microgrid's devices: all that the scenario gives them."""
MARGINAL = "cost_per_mwh"
"""What one MW more costs, fuel or a load's curtailment, is the slope of a cut: see docs/partnership.md."""
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


@dataclass
class Signed:
    """Changes that give every parameter digits of its own, and the values by microgrid."""

    changes: list[str] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)
    marginal: set[float] = field(default_factory=set)

    def __post_init__(self) -> None:
        devices = {device["name"]: device for device in load(CASE).raw["devices"]}
        for name in NAMES:
            for kind, parameters in PARAMETERS.items():
                device = f"{name}_{kind}"
                for parameter in parameters if device in devices else ():  # the sixth has no load
                    given = devices[device][parameter]
                    ends = given if isinstance(given, list) else [given]
                    several = [self._sign(name, one, parameter == "e_start_mwh") for one in ends]
                    written = several if isinstance(given, list) else several[0]
                    self.changes.append(f"devices.{device}.{parameter}={written!r}")
                    self.marginal |= set(several) if parameter == MARGINAL else set()

    def _sign(self, name: str, value: float, more: bool) -> float:
        """A little less, for powers stay below ratings so; or a little more."""
        count = sum(map(len, self.values.values()))
        found = float(f"{value * (1 + (1 if more else -1) * 1e-4 * (0.1371 + 0.0137 * count)):.9g}")
        self.values.setdefault(name, []).append(abs(found))
        return found


def told(text: str, values: Iterable[float]) -> set[float]:
    """Which of the values stand in a text, as a number of whatever sign and form, also for an hour."""
    numbers = sorted({abs(float(number)) for number in NUMBER.findall(text)})
    return {value for value in values for factor in (1.0, 60.0) if _stands(value * factor, numbers)}


def slopes(message: Any) -> Iterator[float]:
    """What the cuts of a message say that one more unit of each kind costs, however they are scaled."""
    if isinstance(message, dict):
        if {"axes", "A"} <= message.keys() and "cost" in message["axes"]:
            for row in message["A"]:
                theta = row[message["axes"].index("cost")]
                yield from (a / theta for a in row if theta)
        for inside in message.values():
            yield from slopes(inside)
    elif isinstance(message, list):
        for inside in message:
            yield from slopes(inside)


def _stands(value: float, numbers: list[float]) -> bool:
    return any(abs(number - value) <= 1e-10 * value for number in numbers)


async def _all(mqtt_url: str, folder: Path, changes: list[str]) -> tuple[Result, list[Message]]:
    """A run, and every message between its processes."""
    client = f"listener-{os.getpid()}"
    async with MqttBus(mqtt_url, client_id=client, latch_size=100_000) as listener:
        listener.subscribe("gridpace/v1/+/ctl/#")
        listener.publish("gridpace/v1/ready/ctl/x", b"")
        assert await listener.arrived(10)
        result = await do(CASE, folder, STEPS, *changes, bus=over(mqtt_url))
        run, said = result.directory.name, list[Message]()
        while not any(m.topic.split("/")[2] == run and b"offline" in m.payload for m in said):
            assert await listener.arrived(10)
            said += listener.received()
    return result, [message for message in said if message.topic.split("/")[2] == run]


def _wholes(said: Iterable[Message]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(ask or answer, controller, message)"""
    parcels = {what: Parcels() for what in ("ask", "answer")}
    for message in said:
        levels = message.topic.split("/")
        if len(levels) == 7 and (whole := parcels[levels[5]].add(*unpack(message.payload))) is not None:
            yield levels[5], levels[4], json.loads(whole)


@pytest.mark.slow
@pytest.mark.parametrize("offers", [True, False])
async def test_no_message_has_a_parameter_of_a_microgrid(mqtt_url: str, tmp_path: Path, offers: bool) -> None:
    """To and from the operator there is none at all; a microgrid is never told another's. What a follower
    answers beside its words are its devices' setpoints, which go to these devices and to nobody else."""
    signed = Signed()
    values = signed.values
    everything = [value for own in values.values() for value in own]
    assert len(everything) == len(set(everything)) == 6 * 19 - 3
    option = f"controllers.operator.options.offers={str(offers).lower()}"
    changes = [*signed.changes, option, *apart("operator", *NAMES)]
    result, said = await _all(mqtt_url, tmp_path, changes)
    assert result.exit is Exit.HELD, result.why
    found, leaning = set[float](), 0
    seen: Counter[tuple[str, str]] = Counter()
    for what, name, message in _wholes(said):
        seen[what, name] += 1
        if name == "operator" or what == "answer":
            lean = sorted(map(abs, slopes(message)))
            leaning += len(lean)
            found |= {v for v in everything for factor in (1.0, 60.0) if _stands(v * factor, lean)}
        if name == "operator":
            assert not told(json.dumps(message), everything), (what, name)
        elif what == "ask":
            others = [value for other, own in values.items() if other != name for value in own]
            assert not told(json.dumps(message), others), (what, name)
        else:
            assert not told(json.dumps(message["decision"]["words"]), everything), (what, name)
    assert {name for _, name in seen} == {"operator", *NAMES}
    assert seen["answer", "mg1"] == seen["ask", "mg1"] > 10
    assert leaning > 100
    assert found <= signed.marginal
    assert bool(found) == (not offers), "cuts at points say it, offers do not"
    # The same search finds each of them where they are: in the scenario that the run has kept.
    assert told((result.directory / "manifest.json").read_text(), everything) == set(everything)
