"""`gridpace device`: a process of its own over a real broker, judged by what it says and by its own log."""

from __future__ import annotations

import asyncio
import io
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from benchmarks import batch, round_trip
from bridges import wire
from bridges.batch import decode_measured
from bridges.broker import NoBroker
from bridges.mqtt import MqttBus
from bridges.publisher import Publisher
from controllers.contract import Instruction, Setpoint
from controllers.devices import Battery, PvInverter, still
from controllers.rating import Rating, rating_of
from controllers.region import Region
from controllers.register import Answer, Life, Order, Regime
from scenarios.certs import make
from scenarios.device import Book, Memory, NoDevice, TwinPlant
from tests.soak.broker import GuardedBroker

ROOT = Path(__file__).parents[1]
AREA = "ieee33-quick"
WAIT_S = 120.0  # for what takes seconds on a machine at rest
LATE_S = 0.2


@contextmanager
def running(*options: str, run: str, url: str) -> Iterator[subprocess.Popen[str]]:
    """A `gridpace device` of the packaged scenario, ended with the context whatever happens."""
    command = [sys.executable, "-c", "from scenarios.cli import main; main()", "device", AREA]
    process = subprocess.Popen(
        [*command, "--url", url, "--run", run, *options],
        cwd=ROOT,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def told(name: str, seq: int, lasts_s: float, *, begins_s: float = 0.0, **changes: Any) -> Instruction:
    now = datetime.now(UTC)
    return Instruction(
        **{
            "device": name,
            "epoch": 1,
            "seq": seq,
            "issued_at": now,
            "valid_from": now + timedelta(seconds=begins_s),
            "valid_until": now + timedelta(seconds=lasts_s),
            "region": Region.box(p_mw=(-0.1, 0.05), q_mvar=(0, 0)),
            "setpoint": None,
            "fallback": still(),
        }
        | changes
    )


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[GuardedBroker]:
    """The broker as it is shipped: TLS, client certificates, and to each client only its own topics."""
    make(tmp_path / "certs", clients=dict.fromkeys(("pv24", "bat13", "gw1"), "device"))
    try:
        async with GuardedBroker(tmp_path / "certs") as broker:
            yield broker
    except NoBroker as error:
        pytest.skip(str(error))


def encrypted(broker: GuardedBroker) -> tuple[str, ...]:
    """Options with the certificates of whoever connects."""
    own = [f"{broker.certificates}/{{client}}.{what}" for what in ("crt", "key")]
    return ("--ca", f"{broker.certificates}/ca.crt", "--cert", own[0], "--key", own[1])


class Ear:
    """A controller's bus that remembers what devices say."""

    def __init__(self, bus: MqttBus, run: str) -> None:
        self.bus = bus
        self.publisher = Publisher(bus, run=run, area=AREA, epoch=1)
        for what in ("state", "meas", "batch-meas"):
            bus.subscribe(wire.device_pattern(run, what))  # type: ignore[arg-type]
        self.answers: dict[str, list[tuple[int, str, str | None]]] = {}
        self.states: dict[str, list[str]] = {}
        self.measured: dict[str, list[wire.Meas]] = {}

    def take(self) -> None:
        messages = self.bus.received()
        for der, ack in self.publisher.acks(messages):
            self.answers.setdefault(der, []).append((ack.seq, ack.state, ack.code))
        for message in messages:
            address = wire.parse_topic(message.topic)
            if address.what == "state":
                state = wire.decode(message.payload, wire.State).state
                self.states.setdefault(address.der, []).append(state)
            elif address.what == "meas":
                self.measured.setdefault(address.der, []).append(wire.decode(message.payload, wire.Meas))
            elif address.what == "batch-meas":
                for der, meas in decode_measured(message.payload):
                    self.measured.setdefault(der, []).append(meas)

    async def until(self, happened: Callable[[], bool]) -> None:
        """Wait for what the devices do; fails after `WAIT_S`."""
        async with asyncio.timeout(WAIT_S):
            while not happened():
                await self.bus.arrived(1.0)
                self.take()


def log_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def check_history(lines: list[dict[str, Any]], sent: dict[tuple[str, int], Instruction]) -> int:
    """Hold a log to what was sent, without the device's own code; how many points were looked at."""
    points, last, applied = 0, dict[str, int](), dict[str, int]()
    for line in lines:
        device, at = line["device"], datetime.fromisoformat(line["time"])
        if line["what"] == "answer":
            instruction = sent[device, line["seq"]]
            if line["state"] == "received":
                assert line["seq"] > last.get(device, 0)
                assert at < instruction.valid_until
                last[device] = line["seq"]
            elif line["state"] == "applied":
                assert line["seq"] > applied.get(device, 0)
                assert instruction.valid_from <= at < instruction.valid_until
                applied[device] = line["seq"]
            elif line["state"] == "fallback":
                assert timedelta(0) <= at - instruction.valid_until
            continue
        points += 1
        p_mw, q_mvar = line["p_mw"], line["q_mvar"]
        if device not in applied:
            assert line["regime"] == "init"
            continue
        instruction = sent[device, applied[device]]
        assert line["seq"] == applied[device]
        inside = instruction.region.excess((p_mw, q_mvar)) <= 1e-6  # type: ignore[union-attr]
        home = instruction.fallback.excess((p_mw, q_mvar)) <= 1e-6
        if at >= instruction.valid_until:
            assert home
        else:
            assert inside
    return points


async def test_it_obeys_falls_back_and_leaves_cleanly(guarded: GuardedBroker, tmp_path: Path) -> None:
    run, log = "process", tmp_path / "log.jsonl"
    names = ("pv24", "bat13")
    sent: dict[tuple[str, int], Instruction] = {}
    options = ("--every", "200ms", "--drive", "0.6", "--log", str(log), *encrypted(guarded))
    with running(*names, *options, run=run, url=guarded.url) as process:
        async with guarded.client("controller") as bus:
            ear = Ear(bus, run)
            await ear.until(lambda: ear.states.keys() == set(names))

            def tell(seq: int, lasts_s: float, **changes: Any) -> None:
                for name in names:
                    sent[name, seq] = told(name, seq, lasts_s, **changes)
                    ear.publisher.send(sent[name, seq], lasts_s)

            tell(1, 60.0)
            await ear.until(lambda: all((1, "applied", None) in ear.answers.get(n, []) for n in names))
            tell(2, 60.0, begins_s=0.5, region=Region.box(p_mw=(-0.2, 0.02), q_mvar=(0, 0)))
            sent["bat13", 3] = told("bat13", 3, 60.0, setpoint=Setpoint(p_mw=-99.0))
            ear.publisher.send(sent["bat13", 3], 60.0)
            await ear.until(lambda: (2, "applied", None) in ear.answers["pv24"])
            await ear.until(lambda: (3, "refused", "capability") in ear.answers["bat13"])
            tell(4, 1.5, region=Region.box(p_mw=(-0.3, 0.01), q_mvar=(0, 0)))
            await ear.until(lambda: all((4, "fallback", None) in ear.answers[n] for n in names))
            tell(5, 60.0)
            await ear.until(lambda: all((5, "applied", None) in ear.answers[n] for n in names))
            seen = {n: len(ear.measured[n]) for n in names}
            await ear.until(lambda: all(len(ear.measured[n]) > seen[n] + 1 for n in names))
            process.send_signal(signal.SIGTERM)
            await ear.until(lambda: all(ear.states[n][-1] == "offline" for n in names))
            assert await asyncio.to_thread(process.wait, WAIT_S) == 0
    for name in names:
        assert ear.states[name][0] == "online"
        assert "fallback" in ear.states[name]
        assert ear.answers[name].count((4, "superseded", None)) == 0
        assert {(4, "expired", None), (1, "superseded", None)} <= set(ear.answers[name])
    assert ear.measured["pv24"][-1].state == "limited"
    assert ear.measured["pv24"][-1].p_mw == pytest.approx(0.05)
    assert ear.measured["pv24"][-1].e_mwh is None
    assert ear.measured["bat13"][-1].e_mwh is not None
    lines = log_of(log)
    late = [
        (datetime.fromisoformat(line["time"]) - sent[line["device"], 4].valid_until).total_seconds()
        for line in lines
        if line["what"] == "answer" and line["state"] == "fallback"
    ]
    print(f"fallback {max(late) * 1e3:.0f} ms after the end of the validity")
    assert len(late) == 2
    assert max(late) < 3 * LATE_S  # the figure is 0.2 s; a busy machine gets three times as much
    assert check_history(lines, sent) > 10


async def test_after_sigkill_it_takes_up_what_is_retained_and_nothing_older(
    mqtt_url: str, tmp_path: Path
) -> None:
    run, state, log = f"killed-{os.getpid()}", tmp_path / "state.json", tmp_path / "log.jsonl"
    options = ("pv24", "--state", str(state), "--log", str(log), "--every", "500ms")
    async with MqttBus(mqtt_url, client_id=f"ear-{run}") as bus:
        ear = Ear(bus, run)
        sent = {("pv24", seq): told("pv24", seq, 300.0) for seq in (6, 7)}
        with running(*options, run=run, url=mqtt_url) as process:
            ear.publisher.send(sent["pv24", 7], 300.0)
            await ear.until(lambda: (7, "applied", None) in ear.answers.get("pv24", []))
            process.kill()
            process.wait()
            await ear.until(lambda: ear.states["pv24"][-1] == "offline")  # its last will
        assert json.loads(state.read_text()) == {run: {"pv24": [1, 7]}}
        ear.publisher.send(sent["pv24", 6], 300.0)  # an older one is what the broker has now
        await bus.flush(10.0)
        ear.answers.clear()
        with running(*options, run=run, url=mqtt_url):
            await ear.until(lambda: (6, "refused", "old") in ear.answers.get("pv24", []))
            ear.publisher.send(sent["pv24", 7], 300.0)
            await ear.until(lambda: (7, "applied", None) in ear.answers["pv24"])
    assert [line["seq"] for line in log_of(log) if line.get("state") == "received"] == [7, 7]


async def test_a_gateway_speaks_for_its_devices(guarded: GuardedBroker) -> None:
    run, names = "gateway", ("pv24", "bat13")
    options = ("--gateway", "gw1", "--every", "200ms", *encrypted(guarded))
    with running(*names, *options, run=run, url=guarded.url):
        async with guarded.client("controller") as bus:
            ear = Ear(bus, run)
            await ear.until(lambda: ear.states.keys() == {"gw1"})
            ear.publisher.send_batch("gw1", [(told(name, 1, 60.0), 60.0) for name in names])
            await ear.until(lambda: all((1, "applied", None) in ear.answers.get(n, []) for n in names))
            await ear.until(lambda: all(ear.measured.get(n, [])[-1:] for n in names))


async def test_it_waits_for_a_broker(tmp_path: Path) -> None:
    with running("pv24", run="r", url="mqtt://127.0.0.1:1") as process:
        assert process.stdout is not None
        seen = [await asyncio.to_thread(process.stdout.readline) for _ in range(2)]
        assert "cannot connect to mqtt://127.0.0.1:1" in seen[1]
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, WAIT_S) == 0


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("nobody",), "'nobody' is no device of ieee33-quick; it has "),
        (("pv24", "--every", "5"), "is no length of time"),
        (("pv24", "--url", "http://there"), "--url"),
        (("pv24", "--run", "a/b"), "run 'a/b'"),
        (("pv24", "--gateway", "g+"), "'g+'"),
        (("pv24", "--url", "mqtts://127.0.0.1:1", "--ca", "nowhere.crt"), "nowhere.crt cannot be read"),
        (("pv24", "--state", "STATE"), "remove it to begin anew"),
        (("pv24", "--log", "nowhere/log.jsonl"), "cannot be written"),
    ],
)
def test_a_users_mistake_is_said_in_a_line(options: tuple[str, ...], why: str, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from scenarios.cli import app

    broken = tmp_path / "state.json"
    broken.write_text("[1, 2]", "utf-8")
    given = [str(broken) if option == "STATE" else option for option in options]
    if "--url" not in given:
        given += ["--url", "mqtt://127.0.0.1:1"]
    if "--run" not in given:
        given += ["--run", "r"]
    result = CliRunner().invoke(app, ["device", AREA, *given])
    assert result.exit_code == 2, result.output
    assert why in result.output
    assert "Traceback" not in result.output


# Its parts


def test_what_was_held_is_settled_for_as_long_as_it_was() -> None:
    device = Battery(
        name="b", bus="1", p_mw=1.0, s_mva=1.0, e_mwh=1.0, e_min_mwh=0.0, e_start_mwh=0.5, efficiency=(1, 1),
        weight=1.0, default=still(),
    )  # fmt: skip
    plant = TwinPlant(device, lambda seconds: -1.0 if seconds < 3600 else 0.5, 100.0)
    told_now = Order(Regime.CONTROLLED)
    first = plant.hold(told_now, 100.0, 1.0)
    assert (first.p_mw, first.e_mwh, first.regime) == (-1.0, 0.5, Regime.CONTROLLED)
    second = plant.hold(Order(Regime.CONTROLLED, None, Region.box(p_mw=(0, 0.2), q_mvar=(0, 0))), 460.0, 1.0)
    assert second.e_mwh == pytest.approx(0.6)  # 1 MW for 360 s
    assert (second.p_mw, second.regime) == (0.0, Regime.LIMITED)
    assert plant.hold(told_now, 820.0, 1.0).e_mwh == pytest.approx(0.6)


def test_in_fallback_it_obeys_what_it_was_told_to_and_before_anything_its_own_default() -> None:
    own, other = (Region.box(p_mw=(0, p_mw), q_mvar=(0, 0)) for p_mw in (0.3, 0.1))
    device = PvInverter(name="p", bus="1", s_mva=1.0, p_mw=1.0, weight=1.0, default=own)
    plant = TwinPlant(device, lambda seconds: 0.8, 0.0)
    init = plant.hold(Order(Regime.INIT), 0.0, 1.0)
    assert (round(init.p_mw, 9), init.regime) == (0.3, Regime.INIT)
    failsafe = plant.hold(Order(Regime.FAILSAFE, None, other), 1.0, 1.0)
    assert (round(failsafe.p_mw, 9), failsafe.regime) == (0.1, Regime.FAILSAFE)


def test_what_it_remembers_survives(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    now = datetime.now(UTC)
    book = Book(None, Memory(file, "r"))
    book.answered("a", Answer(2, 7, Life.RECEIVED, now), None)
    book.answered("a", Answer(2, 8, Life.REFUSED, now), None)
    book.answered("b", Answer(1, 1, Life.RECEIVED, now), None)
    again = Memory(file, "r")
    assert [again.newest(name) for name in "abc"] == [(2, 7), (1, 1), None]
    for wrong in ('{"a": [1]}', '{"r": {"a": [1]}}', '{"a": [1, 2]}'):
        file.write_text(wrong, "utf-8")
        with pytest.raises(NoDevice, match="remove it"):
            Memory(file, "r")


def test_another_run_counts_for_itself(tmp_path: Path) -> None:
    file, now = tmp_path / "state.json", datetime.now(UTC)
    Book(None, Memory(file, "monday")).answered("a", Answer(3, 700, Life.RECEIVED, now), None)
    tuesday = Memory(file, "tuesday")
    assert tuesday.newest("a") is None
    Book(None, tuesday).answered("a", Answer(1, 1, Life.RECEIVED, now), None)
    assert [Memory(file, run).newest("a") for run in ("monday", "tuesday")] == [(3, 700), (1, 1)]


def test_what_it_accepts_it_can_end_whatever_its_limits() -> None:
    """Of 500 instructions with limits of any size none ends the device: where it goes is within what it is
    able to, and within its fallback."""
    battery = Battery(
        name="b", bus="1", p_mw=0.1, s_mva=0.1, e_mwh=0.1, e_min_mwh=0.0, e_start_mwh=0.05,
        efficiency=(0.95, 0.95), weight=1.0, default=still(),
    )  # fmt: skip
    able, rating, taken, chance = rating_of(battery), Rating(rating_of(battery)), 0, random.Random(5)
    for _ in range(500):
        fallback = _any_region(chance)
        said = told("b", 1, 5.0, region=None, fallback=fallback)
        plant = TwinPlant(battery, lambda seconds: None, 0.0)
        if rating.beyond(said) is None:
            taken += 1
            held = plant.hold(Order(Regime.FAILSAFE, said, fallback), 0.0, 1.0)
            point = {"p_mw": held.p_mw, "q_mvar": held.q_mvar}
            assert able.excess(point) <= 1e-6
            assert fallback.excess(point) <= 1e-4
    assert taken > 50


def _any_region(chance: random.Random) -> Region:
    """Rows and limits of any size, axes in any order."""

    def row() -> list[float]:
        return [chance.choice([0.0, 1.0, -1.0, chance.uniform(-1, 1)]) for _ in range(2)]

    rows = [one for one in (row() for _ in range(chance.randint(0, 5))) if any(one)]
    limits = [
        chance.choice([chance.uniform(-0.15, 0.15), chance.choice([1, -1]) * 10 ** chance.uniform(-15, 12)])
        for _ in rows
    ]
    axes = chance.choice([("p_mw", "q_mvar"), ("q_mvar", "p_mw")])
    return Region(axes, np.array(rows).reshape(-1, 2), np.array(limits))


# What is measured of it


async def test_the_round_trip_is_measured_beside_a_bare_one() -> None:
    found = await round_trip.measure(rounds=1, each=20)
    assert {name: len(seconds) for name, seconds in found.items()} == dict.fromkeys(found, 20)
    assert 0 < round_trip.ratio(found) < float("inf")
    text = io.StringIO()
    round_trip.show(found, Console(file=text, width=120))
    assert "setpoint to ack : ping-pong = " in text.getvalue()


async def test_in_batches_every_device_of_every_gateway_answers() -> None:
    found = await batch.measure(gateways=4, each=100, steps=3, every_s=0.5)
    assert (found.devices, len(found.ms), found.silent) == (400, 3, 0)
    assert found.messages == 3 * 4
    assert set(found.cpu_ms) == {"controller", "broker", "gateways"}
    assert found.percentile(50) > 0
