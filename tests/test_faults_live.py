"""Faults on the real path: a live run, a real broker that is killed and stopped, a proxy that loses bytes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bridges.broker import EmbeddedBroker
from scenarios.build import build
from scenarios.check import validate
from scenarios.events import read_events
from scenarios.load import load
from scenarios.replay import replay
from scenarios.resume import resume
from scenarios.run import Exit, Result
from simulators.journal import read
from tests.running import Silent, do
from tests.soak.broker import GuardedBroker, PlainBroker
from tests.test_docker import certificates

LIVE = (
    *("every=500ms", "controllers.dso.every=500ms", "controllers.dso.valid_for=1500ms", "clock.mode=live"),
    *("grid.engine=power-grid-model", "record.forecasts=false", "expect=[]"),
)
EMBEDDED = ("bus.kind=embedded", "bus.broker=mosquitto")


@pytest.fixture(autouse=True)
def _mosquitto() -> None:
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin"))
    if shutil.which("mosquitto", path=path) is None:
        pytest.skip("mosquitto is not installed")


def counts(result: Result) -> Mapping[str, int]:
    found: Mapping[str, int] = json.loads((result.directory / "manifest.json").read_text())["counts"]
    return found


def happened(result: Result) -> list[tuple[str, str | None]]:
    """Faults, and whether the broker was reached, in their order."""
    words = ("fault-began", "fault-ended", "bus-reachable", "bus-unreachable")
    events = read_events(result.directory / "events.jsonl")
    return [(e["what"], e.get("fault")) for e in events if e["what"] in words]


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What becomes of the process of a run's own broker."""
    seen: list[str] = []
    start, stop = EmbeddedBroker.start, EmbeddedBroker.stop

    async def started(self: EmbeddedBroker) -> None:
        await start(self)
        seen.append(f"start {self.port}")

    async def stopped(self: EmbeddedBroker, *, kill: bool = False) -> None:
        seen.append("kill" if kill else "stop")
        await stop(self, kill=kill)

    monkeypatch.setattr(EmbeddedBroker, "start", started)
    monkeypatch.setattr(EmbeddedBroker, "stop", stopped)
    yield seen


async def test_the_runs_own_broker_is_killed_and_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with watched(monkeypatch) as seen:
        result = await do(
            *("ieee33-quick", tmp_path, *LIVE, "steps=14"),
            "faults=[{what: broker-down, at: 1s, for: 2s}]",
            bus=EMBEDDED,
        )
    assert result.exit is Exit.HELD, result.why
    assert seen[1:3] == ["kill", seen[0]]  # on the same port
    assert seen[3:] == ["stop"]
    assert (counts(result)["bus-disconnects"], counts(result)["bus-reconnects"]) == (1, 1)
    assert sorted(happened(result)[:2]) == [("bus-unreachable", None), ("fault-began", "broker-down")]
    assert happened(result)[2:] == [("fault-ended", "broker-down"), ("bus-reachable", None)]
    states = [r["state"] for r in read(result.directory, "devices").to_pylist() if r["device"] == "pv6"]
    assert "failsafe" in states[5:8]
    assert states[-1] in ("controlled", "limited")


@pytest.mark.parametrize("what", ["broker-down", "broker-frozen"])
async def test_nobody_waits_for_a_process_behind_a_broker_that_is_away(what: str, tmp_path: Path) -> None:
    result = await do(
        *("ieee33-quick", tmp_path, "expect=[]", "record.forecasts=false", "controllers.dso.process=own"),
        f"faults=[{{what: {what}, at: 10min, for: 25min}}]",
        bus=EMBEDDED,
    )
    assert result.exit is Exit.HELD, result.why
    origins = [row["origin"] for row in read(result.directory, "steps").to_pylist()]
    assert origins == ["optimal"] * 2 + ["held"] + ["default"] * 4 + ["optimal"] * 5
    assert counts(result)["late"] == 5
    assert not {"process-killed", "process-lost"} & counts(result).keys()
    solve_ms = [row["solve_ms"] for row in read(result.directory, "steps").to_pylist()]
    assert max(solve_ms[2:7]) < 1000


async def test_a_frozen_broker_is_stopped_and_goes_on(tmp_path: Path) -> None:
    phases: dict[int, str] = {}
    others = brokers().keys()  # of other tests

    def look(step: int) -> None:
        (phases[step],) = (state for pid, state in brokers().items() if pid not in others)

    result = await do(
        *("ieee33-quick", tmp_path, *LIVE, "steps=9"),
        "faults=[{what: broker-frozen, at: 1s, for: 1500ms}]",
        bus=EMBEDDED,
        on_step=look,
    )
    assert result.exit is Exit.HELD, result.why
    assert [phases[step][0] == "T" for step in range(9)] == [2 <= step < 5 for step in range(9)]
    assert ("bus-unreachable", None) in happened(result)
    assert happened(result)[-1] == ("bus-reachable", None)


def brokers() -> dict[str, str]:
    """State of the brokers that this process has started and that have not ended, by process."""
    words = ["ps", "-o", "pid=,stat=,comm=", "--ppid", str(os.getpid())]
    listed = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    found = (line.split(None, 2) for line in listed if "mosquitto" in line)
    return {pid: state for pid, state, _ in found if state[0] != "Z"}


@pytest.mark.parametrize("what", ["broker-down", "broker-frozen", "black-hole"])
async def test_the_way_to_a_broker_elsewhere_is_cut(what: str, tmp_path: Path) -> None:
    async with PlainBroker() as broker:
        result = await do(
            *("ieee33-quick", tmp_path, *LIVE, "steps=12"),
            f"faults=[{{what: {what}, at: 1s, for: 2s}}]",
            bus=("bus.kind=mqtt", f"bus.url={broker.url}"),
        )
    assert result.exit is Exit.HELD, result.why
    assert ("bus-unreachable", None) in happened(result)
    assert happened(result)[-1] == ("bus-reachable", None)
    lost = counts(result).get("bus-disconnects", 0)
    assert lost == (0 if what == "broker-frozen" else 1)


async def test_a_proxy_on_the_way_does_not_weaken_tls(tmp_path: Path) -> None:
    broker = GuardedBroker(certificates(tmp_path))
    async with broker:
        names = ("ca.crt", "{client}.crt", "{client}.key")
        files = zip(("ca_file", "cert_file", "key_file"), names, strict=True)
        changes = [f"bus.{key}={broker.certificates / name}" for key, name in files]
        result = await do(
            *("ieee33-quick", tmp_path / "out", *LIVE, "steps=6", *changes),
            "faults=[{what: slow-link, at: 1s, for: 1s, bytes_per_s: 100000}]",
            bus=("bus.kind=mqtt", f"bus.url={broker.url}"),
        )
    assert result.exit is Exit.HELD, result.why
    assert counts(result)["bus-acknowledged"] > 0


# Going on after a kill, and replaying

SEVERAL = (
    "faults=[{what: delay, at: 0s, for: 1h, by: 8min, share: 0.6, topic: setpoint}, "
    "{what: broker-down, at: 20min, for: 10min}, {what: meter-stuck, at: 15min, for: 20min, bus: 17}, "
    "{what: device-silent, at: 20min, for: 15min, device: bat21}, "
    "{what: line-out, at: 20min, for: 15min, line: 16}]"
)


@pytest.mark.parametrize("killed_after", [3, 4, 5])
async def test_a_killed_run_goes_on_with_its_faults(killed_after: int, tmp_path: Path) -> None:
    def copy(step: int) -> None:
        if step == killed_after:
            (running,) = (tmp_path / "runs").iterdir()
            shutil.copytree(running, tmp_path / "left" / running.name)

    fast = ("grid.engine=power-grid-model", "record.forecasts=false", "expect=[]", "steps=10")
    whole = await do("ieee33-quick", tmp_path / "runs", *fast, SEVERAL, on_step=copy)
    (left,) = (tmp_path / "left").iterdir()
    again = await resume(left, observer=Silent())
    assert again.exit is Exit.HELD, again.why
    for table in ("devices", "buses", "branches", "regions"):
        assert read(again.directory, table).equals(read(whole.directory, table)), table

    def told(result: Result) -> list[tuple[Any, ...]]:
        events = read_events(result.directory / "events.jsonl")
        own = ("resumed", "bus-reachable", "bus-unreachable")  # the connection is a new one
        return [(e["what"], e["step"], e.get("fault")) for e in events if e["what"] not in own]

    assert told(again) == told(whole)


async def test_a_run_with_faults_is_replayed_as_it_was(tmp_path: Path) -> None:
    result = await do(
        *("ieee33-quick", tmp_path, "steps=8", "expect=[]", "record.bus=true", "record.forecasts=false"),
        "faults=[{what: solver-infeasible, at: 5min, for: 10min, controller: dso}, "
        "{what: meter-biased, at: 10min, for: 10min, device: pv24, p_mw: 0.4}, "
        "{what: loss, at: 10min, for: 10min, share: 0.5}]",
    )
    assert result.exit is Exit.HELD, result.why
    found = replay(result.directory)
    assert found.first is None, found


def test_the_faults_of_the_packaged_scenario_are_of_many_kinds() -> None:
    draft = load("ieee33-faults", ["bus.kind=memory"])
    assert len({fault.what for fault in build(draft, validate(draft)).faults}) == 9
