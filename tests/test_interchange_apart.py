"""Microgrids whose controllers are in processes of their own: the same decisions, whatever the clock."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from bridges import wire
from bridges.area import AreaMessage, area_topic
from bridges.mqtt import MqttBus
from controllers.contract import Kind
from scenarios.run import Exit, Result
from simulators.journal import read
from tests.running import do

ROOT = Path(__file__).parents[1]
LIVE = ROOT / "docs" / "examples" / "interchange-live.yaml"
MICROGRIDS = ("mg1", "mg2", "mg3")
TABLES = ("regions", "setpoints", "exchanges", "devices", "buses", "branches", "forecasts")
SENT = ["sent_at"]
"""What the wall clock says of setpoints."""


def of(process: str, *, deadline: str | None = None) -> list[str]:
    """Changes that put each microgrid's two controllers in a process, `{}` standing for its name."""
    found = []
    for name in MICROGRIDS:
        for part in ("prediction", "dispatch"):
            found.append(f"controllers.{name}-{part}.process={process.format(name)}")
            if deadline is not None:
                found.append(f"controllers.{name}-{part}.deadline={deadline}")
    return found


def counts(result: Result) -> dict[str, int]:
    found: dict[str, int] = json.loads((result.directory / "manifest.json").read_text())["counts"]
    return found


def same(one: Result, other: Result) -> None:
    """Every table to the last bit."""
    for table in TABLES:
        ours, theirs = (read(result.directory, table) for result in (one, other))
        assert ours.num_rows > 0, table
        assert ours.column_names == theirs.column_names
        drop = SENT if table == "setpoints" else []
        assert ours.drop_columns(drop).equals(theirs.drop_columns(drop)), table


@pytest.mark.slow
@pytest.mark.parametrize("broker", ["mosquitto", "embedded"])
async def test_a_day_with_microgrids_apart_is_the_same_day(
    broker: str, mqtt_url: str, tmp_path: Path
) -> None:
    bus = ["bus.kind=embedded"]
    if broker == "mosquitto":
        bus = ["bus.kind=mqtt", f"bus.url={mqtt_url}"]
    apart = await do("ieee33-interchange", tmp_path / "apart", *of("{}"), bus=bus)
    here = await do("ieee33-interchange", tmp_path / "here")
    assert apart.exit is here.exit is Exit.HELD, (apart.why, here.why)
    same(apart, here)
    found = counts(apart)
    assert found["asks"] == 24 * 6
    assert found["areas-sent"] == 24 * 6
    assert not {"late", "lost", "process-lost"} & found.keys()
    assert not [name for name in found if name.startswith("answers-")]
    if broker == "mosquitto":
        await _retained(mqtt_url, apart)


async def _retained(url: str, result: Result) -> None:
    """Whoever comes late is told what was said last, as the table has it."""
    rows = read(result.directory, "regions").to_pylist()
    async with MqttBus(url, client_id=f"late-{os.getpid()}") as bus:
        topics = {
            area_topic(result.directory.name, name, kind): (name, kind)
            for name in MICROGRIDS
            for kind in (Kind.PIC, Kind.AIC)
        }
        for topic in topics:
            bus.subscribe(topic)
        heard: dict[str, AreaMessage] = {}
        while len(heard) < len(topics):
            assert await bus.arrived(10), topics.keys() - heard.keys()
            heard |= {m.topic: wire.decode(m.payload, AreaMessage) for m in bus.received()}
    for topic, (name, kind) in topics.items():
        said = heard[topic]
        controller = f"{name}-prediction" if kind is Kind.PIC else "correction"
        assert (said.area, said.kind, said.controller, said.seq) == (name, kind, controller, 24)
        last = [
            row for row in rows if (row["target"], row["controller"], row["seq"]) == (name, controller, 24)
        ]
        assert [row["valid_from"] for row in last] == [said.valid_from, *(span.start for span in said.later)]
        boxes = [said.region, *(span.region for span in said.later)]
        assert [row["b"] for row in last] == [list(box.b) for box in boxes if box is not None]


@pytest.mark.slow
async def test_a_few_live_seconds_with_microgrids_apart(tmp_path: Path) -> None:
    """The same decisions as fast and in one process; a slow machine makes steps late, not different."""
    patient = ["steps=5", "start=2026-06-21T05:59:57Z", "clock.overrun=stretch"]
    live = await do(LIVE, tmp_path / "live", *patient, *of("{}", deadline="60s"), bus=["bus.kind=embedded"])
    here = await do(LIVE, tmp_path / "here", *patient, *of("here"), "clock.mode=fast")
    assert live.exit is here.exit is Exit.HELD, (live.why, here.why)
    same(live, here)
    assert counts(live)["asks"] == 5 * 6
    lateness = {row["step"]: row["lateness_ms"] for row in read(live.directory, "steps").to_pylist()}
    assert len(lateness) == 5
    assert all(ms is not None and ms >= 0 for ms in lateness.values())
    assert {row["lateness_ms"] for row in read(here.directory, "steps").to_pylist()} == {None}


@pytest.mark.slow
def test_ctrl_c_ends_a_live_run_and_its_processes(tmp_path: Path) -> None:
    program = "from scenarios.cli import main; main()"
    run = subprocess.Popen(
        [sys.executable, "-c", program, "run", str(LIVE), "--log-every", "0"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    children: list[psutil.Process] = []
    try:
        assert run.stdout is not None
        with run.stdout as lines:
            assert any(line.startswith("step 2/60") for line in lines)
            children = psutil.Process(run.pid).children(recursive=True)
            remote = sum("scenarios.remote" in child.cmdline() for child in children)
            run.send_signal(signal.SIGINT)
            assert "stopped on request" in lines.read()
        assert run.wait(60) == Exit.STOPPED
    finally:
        run.kill()
    assert remote == 3
    assert not psutil.wait_procs(children, timeout=60)[1]


async def test_a_step_of_a_second_moves_units_and_energy_by_a_second(tmp_path: Path) -> None:
    changes = ["clock.mode=fast", "steps=40", *of("here")]
    result = await do(LIVE, tmp_path, *changes)
    assert result.exit is Exit.HELD, result.why
    rows = read(result.directory, "devices").to_pylist()
    for unit, ramp in (("mg1_mt", 0.2), ("mg2_de", 0.2), ("mg3_mt", 0.25)):  # MW an hour
        output = [row["p_mw"] for row in rows if row["device"] == unit]
        steps = [abs(b - a) for a, b in pairwise(output)]
        assert max(steps) == pytest.approx(ramp / 3600, rel=1e-6), unit
    for store, capacity in (("mg1_esd", 0.15), ("mg3_esd", 0.2)):
        energy = [row["e_mwh"] for row in rows if row["device"] == store]
        power = [row["p_mw"] for row in rows if row["device"] == store]
        for p_mw, before, after in zip(power[1:], energy, energy[1:], strict=False):
            moved = -p_mw * (0.95 if p_mw < 0 else 1 / 0.95) / 3600
            assert after - before == pytest.approx(moved, abs=1e-12), store
        assert 0 < max(map(abs, power)) <= capacity
    width = {
        (row["controller"], row["valid_from"]): row["b"][0] + row["b"][1]
        for row in read(result.directory, "regions").to_pylist()
        if row["target"] == "mg1" and row["valid_from"] - row["issued_at"] == timedelta(seconds=1)
    }
    assert len(width) == 2 * 40
    for (controller, at), band in width.items():  # both units' ramps of 15 minutes, up and down
        assert 0.01 < band <= width["mg1-prediction", at] + 1e-9 <= 2 * 0.35 / 4 + 2e-9, controller
