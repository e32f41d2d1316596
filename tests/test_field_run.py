"""Real devices in a run: the sides of devices on a bus in memory, and a time that only sleeping moves."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from bridges import wire
from bridges.device import DeviceSide
from bridges.memory import MemoryBus, MemoryHub
from bridges.operator import OperatorMessage, operator_topic
from controllers.contract import Decision, Observation
from controllers.forecast import Forecast
from controllers.rating import Rating, rating_of
from controllers.region import Region
from controllers.register import Register
from scenarios.build import Built, build
from scenarios.check import validate
from scenarios.device import TwinPlant
from scenarios.expectations import DivergenceBelow, EnvelopeRespected
from scenarios.load import load
from scenarios.report import show, summary
from scenarios.run import make_clock
from scenarios.run_directory import RunDirectory
from scenarios.session import Session
from scenarios.verdicts import evaluate
from simulators.journal import read
from tests.running import FakeTime, Silent

PER_UNIT = {"pv6": 0.6, "bat13": 0.3, "wind31": 0.5}
"""What drives the devices: the scenario's profiles, which do not change."""
ALONE = ("devices.pv24.via=null", "devices.pv24.shadow=false", "devices.bat21.via=null")
"""Without those that are not on the bus."""


class Hall(FakeTime):
    """A time in which devices go on while somebody sleeps."""

    def __init__(self) -> None:
        super().__init__()
        self.sides: dict[str, DeviceSide] = {}
        self.frozen: set[str] = set()

    async def sleep(self, seconds: float) -> None:
        end = self.seconds + seconds
        while True:
            for name, side in self.sides.items():
                if name not in self.frozen:
                    side.hear()
                    side.tick()
                    await side.drain()
            if self.seconds >= end:
                break
            self.seconds = min(self.seconds + 0.25, end)
        await asyncio.sleep(0)


@dataclass
class Trial:
    """One run, and what was found of it."""

    path: Path
    hall: Hall
    hub: MemoryHub
    session: Session
    seen: list[Observation] = field(default_factory=list)
    heard: list[wire.Heartbeat] = field(default_factory=list)

    def rows(self, table: str, **where: Any) -> list[dict[str, Any]]:
        return [
            row for row in read(self.path, table).to_pylist() if all(row[k] == v for k, v in where.items())
        ]

    def states(self, device: str) -> list[str]:
        return [row["state"] for row in self.rows("devices", device=device)]

    def events(self, *what: str) -> list[tuple[str, int, str]]:
        lines = (self.path / "events.jsonl").read_text().splitlines()
        return [(e["what"], e["step"], e["device"]) for e in map(json.loads, lines) if e["what"] in what]


async def trial(
    tmp_path: Path, *changes: str, on_step: Callable[[Trial, int], None] = lambda trial, step: None
) -> Trial:
    """Run the scenario with its three devices on the bus."""
    draft = load("ieee33-hil", [*ALONE, *changes])
    scenario = validate(draft)
    built = build(draft, scenario)
    hall = Hall()
    clock = make_clock(scenario, monotonic=hall.monotonic, wall=hall.wall, sleep=hall.sleep)
    directory = RunDirectory.named(tmp_path, "hil")
    directory.begin(scenario=scenario.model_dump(mode="json"))
    hub = MemoryHub(hall.monotonic)
    gateways = {n: p.via.mqtt.gateway for n, p in _outside(built).items() if p.via.mqtt.gateway}
    buses = []
    async with MemoryBus(hub) as ours, MemoryBus(hub) as ear:
        for who in dict.fromkeys(gateways.get(name, name) for name in PER_UNIT):
            names = [name for name in PER_UNIT if gateways.get(name, name) == who]
            side = hall.sides[who] = _side(built, names, who if who not in names else None, hall)
            buses.append(await MemoryBus(hub).__aenter__())
            side.begin(buses[-1])
        ear.subscribe(wire.control_topic("hil"))

        def over(step: int) -> None:
            found.heard += [wire.decode_control(m.payload) for m in ear.received()]  # type: ignore[misc]
            on_step(found, step)

        session = Session(built, directory, ours, clock, asyncio.Event(), Silent(over), 1, None, None)
        found = Trial(directory.path, hall, hub, session)
        asked = session.controllers._heard

        def heard(controller: str, observation: Observation, said: Decision | BaseException) -> None:
            found.seen.append(observation)
            asked(controller, observation, said)

        session.controllers._heard = heard
        status, why = await session.go()
        assert status == 0, why
        for bus in buses:
            await bus.__aexit__(None, None, None)
    return found


def _outside(built: Built) -> dict[str, Any]:
    return {part.name: part for part in built.scenario.devices if part.via is not None}


def _side(built: Built, names: list[str], gateway: str | None, hall: Hall) -> DeviceSide:
    devices = built.site.devices
    return DeviceSide(
        {
            name: (
                Register(rating=Rating(rating_of(devices[name]))),
                TwinPlant(devices[name], _constant(PER_UNIT[name]), 0.0),
            )
            for name in names
        },
        run="hil",
        area="ieee33-hil",
        gateway=gateway,
        every_s=1.0,
        wall=hall.wall,
        monotonic=hall.monotonic,
    )


def _constant(value: float) -> Callable[[float], float]:
    return lambda seconds: value


async def test_real_devices_are_measured_and_keep_their_envelopes(tmp_path: Path) -> None:
    found = await trial(tmp_path, "steps=12")
    for name in PER_UNIT:
        assert set(found.states(name)[2:]) <= {"controlled", "limited"}
        applied = [row for row in found.rows("setpoints", device=name) if row["applied_at"] is not None]
        assert len(applied) >= 10
        assert all(row["acked_at"] is not None for row in applied)
    rows = found.rows("field", device="pv6")
    assert [row["silent_since"] for row in rows] == [None] * 12
    assert all(row["measured_at"] <= row["time"] for row in rows)
    assert max(abs(row["divergence_mw"]) for row in rows[3:]) < 1e-6
    assert {row["device"] for row in found.rows("field")} == set(PER_UNIT)
    assert all(row["divergence_mw"] is None for row in found.rows("field", device="wind31"))
    assert evaluate(found.path, EnvelopeRespected(what="envelope_respected", share=1.0)).held
    assert evaluate(found.path, DivergenceBelow(what="divergence_mw", below=1e-6)).held
    assert set(found.seen[5].p_mw) >= {"pv6", "bat13", "wind31", "pv24"}
    assert not any(one.silent_since for one in found.seen)


async def test_a_device_that_stops_is_missing_and_assumed_until_it_is_back(tmp_path: Path) -> None:
    def freeze(trial: Trial, step: int) -> None:
        if step == 4:
            trial.hall.frozen.add("pv6")
        if step == 14:
            trial.hall.frozen.clear()

    found = await trial(tmp_path, "steps=20", "controllers.dso.valid_for=7s", on_step=freeze)
    states = found.states("pv6")
    first, last = states.index("stale"), len(states) - 1 - states[::-1].index("stale")
    assert (first, last) == (8, 14)  # heard at 5 the last time, with a patience of three steps
    assert set(states[first : last + 1]) == {"stale"}
    for row in found.rows("devices", device="pv6")[first : last + 1]:
        assert row["p_mw"] is row["q_mvar"] is row["e_mwh"] is None
    assumed = [row["assumed_mw"] for row in found.rows("field", device="pv6")]
    assert [at for at, value in enumerate(assumed) if value is not None] == list(range(first, last + 1))
    assert assumed[first] > 0.1  # its last instruction still holds
    assert assumed[last] == 0.0  # and is over: its fallback is to stand still
    for step, one in enumerate(found.seen):
        silent = first <= step <= last
        assert ("pv6" in one.silent_since) is silent
        assert ("pv6" in one.p_mw) is not silent
    assert len(found.rows("buses", bus="17")) == 20
    assert found.events("device-silent", "device-heard") == [
        ("device-silent", first, "pv6"),
        ("device-heard", last + 1, "pv6"),
    ]
    assert found.states("bat13").count("stale") == 0
    counts = found.session.counts()
    assert counts["assumed-controlled"] + counts["assumed-fallback"] == counts["silent"] == last - first + 1


async def test_without_a_broker_devices_fall_back_and_come_back(tmp_path: Path) -> None:
    def cut(trial: Trial, step: int) -> None:
        if step == 4:
            trial.hub.down()
        if step == 12:
            trial.hub.restore()

    found = await trial(tmp_path, "steps=20", on_step=cut)
    assert found.states("pv6")[5:8] != ["stale"] * 3
    assert set(found.states("pv6")[9:12]) == {"stale"}
    assert found.states("pv6")[-1] in ("controlled", "limited")
    fallen = [row["device"] for row in found.rows("setpoints", outcome="fallback")]
    assert set(fallen) == set(PER_UNIT)
    verdict = evaluate(found.path, EnvelopeRespected(what="envelope_respected", share=0.6))
    assert verdict.held, verdict.sentence
    assert verdict.missing > 0


async def test_who_an_operator_holds_falls_back_and_returns(tmp_path: Path) -> None:
    def act(trial: Trial, step: int) -> None:
        word = {3: "hold", 12: "release"}.get(step)
        if word is not None:
            said = OperatorMessage(
                schema="gridpace.operator.v1",
                word=word,  # type: ignore[arg-type]
                device="bat13",
                time=trial.hall.wall(),
                why="a visit",
            )
            trial.session._bus.hub.accept(  # type: ignore[attr-defined]
                wire_message(said), False, 60.0
            )

    found = await trial(tmp_path, "steps=18", "record.bus=false", on_step=act)
    states = found.states("bat13")
    assert "failsafe" in states
    assert states[-1] in ("controlled", "limited")
    assert states.index("failsafe") >= 8  # what it had was valid for four seconds
    held = [row["time"] for row in found.rows("field", device="bat13", held=True)]
    start = found.rows("field", device="bat13")[0]["time"]
    assert [(at - start) / timedelta(seconds=1) for at in held] == list(range(4, 13))
    assert {beat.step for beat in found.heard if beat.held == ("bat13",)} == set(range(4, 13))
    assert found.events("operator-hold", "operator-release") == [
        ("operator-hold", 4, "bat13"),
        ("operator-release", 13, "bat13"),
    ]
    assert found.session.counts()["held-back"] == 9
    kept = [row["seq"] for row in found.rows("setpoints", device="bat13", outcome="issued")]
    assert kept == list(range(5, 14))


def wire_message(said: OperatorMessage) -> Any:
    from bridges.bus import Message

    return Message(operator_topic("hil"), wire.encode(said))


async def test_a_dry_run_computes_everything_and_tells_the_device_nothing(tmp_path: Path) -> None:
    found = await trial(tmp_path, "steps=8", "devices.bat13.dry_run=true")
    assert set(found.states("bat13")) == {"init"}
    assert found.session.counts()["dry-run"] == 8
    assert {row["outcome"] for row in found.rows("setpoints", device="bat13")} == {"issued"}
    assert not found.hub.retained("gridpace/v1/hil/ieee33-hil/bat13/setpoint")
    assert len(found.rows("regions", target="bat13")) == 8
    twin = [row["twin_p_mw"] for row in found.rows("field", device="bat13")]
    assert twin[-1] == pytest.approx(0.18)  # beside it, its twin does what the device would do
    apart = evaluate(found.path, DivergenceBelow(what="divergence_mw", below=0.05))
    assert not apart.held
    assert apart.worst is not None
    assert (apart.worst.name, apart.worst.value) == ("bat13", pytest.approx(-0.18))
    assert ("twin-apart", "bat13") in [(what, device) for what, _, device in found.events("twin-apart")]


async def test_devices_behind_a_gateway_are_told_together(tmp_path: Path) -> None:
    found = await trial(
        tmp_path,
        "steps=8",
        "devices.pv6.via={mqtt: {gateway: gw1}}",
        "devices.wind31.via={mqtt: {gateway: gw1}}",
    )
    assert not found.hub.retained("gridpace/v1/hil/ieee33-hil/pv6/setpoint")
    assert len(found.hub.retained("gridpace/v1/hil/ieee33-hil/gw1/batch/+")) == 1
    for name in PER_UNIT:
        assert set(found.states(name)[2:]) <= {"controlled", "limited"}
        assert len([r for r in found.rows("setpoints", device=name) if r["applied_at"]]) >= 6


async def test_the_report_says_what_was_not_told(tmp_path: Path) -> None:
    found = await trial(tmp_path, "steps=3", "devices.bat13.dry_run=true")
    RunDirectory.open(found.path).end(status=0, meaning="done", steps=3, counts=found.session.counts())
    text = io.StringIO()
    show(summary(found.path), Console(file=text, width=200))
    assert "real devices" in text.getvalue()
    assert "3 instructions of a dry run not told" in text.getvalue()


def test_an_envelope_is_not_cut_with_the_state_of_a_device_that_is_silent() -> None:
    draft = load("ieee33-quick", ["bus.kind=memory", "controllers.dso.options={capability: state}"])
    built = build(draft, validate(draft))
    method: Any = built.seats[0].controller
    now = built.scenario.start
    empty = Forecast(now, built.scenario.every, (), np.zeros((0, 0)), np.zeros((0, 0)))
    region = Region.box(p_mw=(-9.0, 9.0), q_mvar=(-9.0, 9.0))
    heard = Observation(time=now, forecast=empty, p_mw={"bat13": 0.0}, e_mwh={"bat13": 1.2})
    silent = Observation(time=now, forecast=empty, silent_since={"bat13": now})
    assert method.within("bat13", region, heard).support([1.0, 0.0]) == pytest.approx(0.6)
    assert method.within("bat13", region, silent) is region


def test_time_in_the_hall_moves_only_by_sleeping() -> None:
    hall = Hall()
    asyncio.run(hall.sleep(1.5))
    assert hall.seconds == 1.5
    assert isinstance(hall.wall(), datetime)
