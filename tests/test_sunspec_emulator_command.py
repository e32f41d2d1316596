"""`gridpace sunspec-emulator`: a process of its own, real sockets, its log, and what kills whom."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from benchmarks import sunspec
from bridges.sunspec.client import SunSpecDevice
from bridges.sunspec.unit import Limits
from controllers.contract import Instruction, Setpoint
from controllers.devices import Battery, FlexibleLoad, Generator, WindTurbine, still
from controllers.region import Region
from scenarios.cli import app
from scenarios.sunspec_emulator import Emulated, NoEmulator, TwinPlant, by_kind, capability_of

ROOT = Path(__file__).parent.parent
COMMAND = (sys.executable, "-c", "from scenarios.cli import main; main()", "sunspec-emulator")
PATIENCE_S = 120.0


@contextmanager
def running(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, tuple[int, int]]]]:
    """The command, and (port, unit) of each device once it is ready."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=environment,
    ) as process:
        try:
            yield process, _places(process)
        finally:
            process.kill()


def _places(process: subprocess.Popen[str]) -> dict[str, tuple[int, int]]:
    assert process.stdout is not None
    places = {}
    for line in process.stdout:
        if line.strip() == "ready":
            return places
        if found := re.fullmatch(r"(\S+): unit (\d+) at 127\.0\.0\.1:(\d+)\n", line):
            places[found[1]] = (int(found[3]), int(found[2]))
    raise AssertionError(f"it ended with {process.wait()}, after {places}")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def told(p: tuple[float, float], seconds: float, setpoint: Setpoint | None = None) -> Instruction:
    now = datetime.now(UTC)
    return Instruction(
        device="der",
        epoch=1,
        seq=1,
        issued_at=now,
        valid_from=now,
        valid_until=now + timedelta(seconds=seconds),
        region=Region.box(p_mw=p, q_mvar=(0.0, 0.0)),
        setpoint=setpoint,
        fallback=still(),
    )


async def test_devices_by_kind_obey_revert_and_are_logged(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    options = ("--kind", "pv", "--kind", "battery", "--units", "2", "--p-mw", "0.2", "--drive", "0.9")
    with running(*options, "--port", "0", "--every", "0.05", "--log", str(log)) as (process, places):
        assert places.keys() == {"pv1", "battery2"}
        assert places["pv1"][0] == places["battery2"][0]
        pv, battery = (SunSpecDevice("127.0.0.1", *places[name]) for name in ("pv1", "battery2"))
        assert (await pv.read_measurements()).p_mw == 0.18
        capability = await battery.read_capability()
        assert (capability.p_min_mw, capability.e_mwh, capability.storage) == (-0.2, 0.4, True)
        await battery.write_setpoint(told((-0.2, 0.2), 60, Setpoint(p_mw=-0.1)), datetime.now(UTC))
        began = time.monotonic()
        instruction = told((0.0, 0.05), 2.5)
        done = await pv.write_setpoint(instruction, datetime.now(UTC))
        assert done.setting.reverts_at is not None
        assert (await pv.read_measurements()).p_mw == pytest.approx(0.05)
        while (await pv.read_measurements()).p_mw != 0.0:
            assert time.monotonic() - began < PATIENCE_S
        assert (await battery.read_measurements()).p_mw == pytest.approx(-0.1)
        while '"held"' not in log.read_text("utf-8").rpartition('"reverted", ')[2]:
            assert time.monotonic() - began < PATIENCE_S
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
        await pv.close()
        await battery.close()

    of_pv = [line for line in lines(log) if line["device"] == "pv1"]
    (reverted,) = [line for line in of_pv if line["what"] == "reverted" and "WMaxLimPct" in line["points"]]
    at = datetime.fromisoformat(reverted["time"])
    assert (
        instruction.valid_until - timedelta(seconds=1) <= at <= instruction.valid_until + timedelta(seconds=1)
    )
    held = [line for line in of_pv if line["what"] == "held"]
    assert {line["reverted"] for line in held} == {True, False}
    for line in held:
        when = datetime.fromisoformat(line["time"])
        if line["limit_mw"] is not None:
            assert line["p_mw"] <= line["limit_mw"] + 1e-9
        if when > at and line["reverted"]:
            assert line["p_mw"] == 0.0
    charged = [
        line["e_mwh"] for line in lines(log) if line["device"] == "battery2" and line["what"] == "held"
    ]
    assert charged[-1] > charged[0]  # it charges at 0.1 MW
    assert sorted(charged) == charged


async def test_a_bridge_that_is_killed_leaves_devices_that_revert(tmp_path: Path) -> None:
    """SIGKILL of the process that writes, in the middle of its work; what its device holds is in the log."""
    log = tmp_path / "log.jsonl"
    options = ("--kind", "pv", "--p-mw", "1", "--port", "0", "--every", "0.05", "--log", str(log))
    with running(*options) as (_, places):
        port, unit = places["pv1"]
        write_and_die(port, unit)
        killed = datetime.now(UTC)
        device = SunSpecDevice("127.0.0.1", port, unit)
        while (await device.read_measurements()).p_mw != 0.0:
            assert datetime.now(UTC) - killed < timedelta(seconds=PATIENCE_S)
        await device.close()
    reverted = [line for line in lines(log) if line["what"] == "reverted"]
    late = datetime.fromisoformat(reverted[-1]["time"]) - killed
    print(f"reverted {late.total_seconds():.2f} s after the kill, RvrtTms was 2 s")
    assert late <= timedelta(seconds=2 + 1)
    assert lines(log)[-1]["p_mw"] == 0.0


def write_and_die(port: int, unit: int) -> None:
    """Another process writes three times and more, and is killed."""
    command = [sys.executable, "-c", _WRITER, str(port), str(unit)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as writer:
        try:
            assert writer.stdout is not None
            assert [writer.stdout.readline() for _ in range(3)] == ["written\n"] * 3
        finally:
            writer.kill()


_WRITER = """
import asyncio, sys
from datetime import UTC, datetime
from bridges.sunspec.client import SunSpecDevice
from tests.test_sunspec_emulator_command import told

async def main():
    device = SunSpecDevice("127.0.0.1", int(sys.argv[1]), int(sys.argv[2]))
    while True:
        await device.write_setpoint(told((0.0, 0.7), 2.9), datetime.now(UTC))
        print("written", flush=True)

asyncio.run(main())
"""


async def test_devices_of_a_scenario_have_its_ratings_each_at_its_port(tmp_path: Path) -> None:
    with running("ieee33-quick", "bat13", "pv6", "--port", "0", "--own-ports") as (_, places):
        assert list(places) == ["bat13", "pv6"]
        assert {unit for _, unit in places.values()} == {1}
        assert places["bat13"][0] != places["pv6"][0]
        battery, pv = (SunSpecDevice("127.0.0.1", *places[name]) for name in ("bat13", "pv6"))
        assert (await battery.read_capability()).storage
        assert not (await pv.read_capability()).storage
        assert (await pv.read_measurements()).p_mw is not None
        await battery.close()
        await pv.close()


def test_ten_devices_are_written_and_read_back_and_revert_when_the_bridge_is_killed(tmp_path: Path) -> None:
    """The short form of `benchmarks.sunspec`: counts hold; times are those of a busy machine."""
    figures = sunspec.measure(10, 4, tmp_path, every_s=0.5)
    print("\n".join(figures.lines()))
    assert figures.counts_held
    assert len(figures.took_ms) == 40
    assert figures.reverted == 10
    assert len(figures.late_s) == 20  # P and Q of each
    assert figures.held > 10 * 2 * 5
    assert figures.p99_ms <= 3 * sunspec.P99_MS


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--kind", "wind"), "--kind wind: there are battery and pv; others come with a scenario"),
        (("--p-mw", "-1"), "--p-mw -1 must be positive"),
        (("ieee33-quick", "pv7"), "'pv7' is no device of ieee33-quick; it has pv6, bat13"),
        (("no-such-scenario",), "no-such-scenario"),
        (("--log", "/no/such/folder/log"), "cannot be written"),
    ],
)
def test_mistakes_are_said_without_a_traceback(
    arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    group: Any = get_command(app)
    with pytest.raises(SystemExit) as ended:
        group.main(["sunspec-emulator", *arguments, "--port", "0"], prog_name="gridpace")
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said


def test_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "bridges.sunspec.emulator", None)
    group: Any = get_command(app)
    with pytest.raises(SystemExit) as ended:
        group.main(["sunspec-emulator"], prog_name="gridpace")
    assert ended.value.code == 2
    assert "pip install 'gridpace[sunspec]'" in capsys.readouterr().err


COMMON: dict[str, Any] = {"name": "x", "bus": "0", "p_mw": 0.4, "weight": 1.0, "default": still()}


def test_a_load_has_no_controls_and_others_have_their_ratings() -> None:
    load = FlexibleLoad(**COMMON, firm_mw=0.1, power_factor=0.95)
    with pytest.raises(NoEmulator, match="'x' is a FlexibleLoad"):
        capability_of(load)
    wind = capability_of(WindTurbine(**COMMON, power_factor=0.8))
    assert (wind.p_max_mw, wind.s_mva, wind.q_max_mvar) == pytest.approx((0.4, 0.5, 0.3))
    engine = capability_of(Generator(**COMMON, p_min_mw=0.1, s_mva=0.5, ramp_mw_per_min=0.6))
    assert (engine.p_max_mw, engine.p_min_mw, engine.s_mva) == (0.4, 0.0, 0.5)


def test_a_twin_keeps_its_energy_its_ramp_and_q_before_p() -> None:
    (emulated,) = by_kind(["battery"], 1, p_mw=0.4, s_mva=0.4, e_mwh=0.8, drive=1.0)
    assert isinstance(emulated.device, Battery)
    plant = TwinPlant(emulated, lambda: 0.0)
    assert plant.step(Limits(p_mw=0.4), 0.0).p_mw == pytest.approx(0.4)
    for _ in range(3600):
        measured = plant.step(Limits(p_mw=0.4), 1.0)
    assert measured.e_mwh == pytest.approx(0.0, abs=1e-6)  # 0.4 MWh at 0.95: after 57 minutes
    assert measured.p_mw == pytest.approx(0.0, abs=1e-6)
    assert plant.step(Limits(p_mw=-0.4), 1.0).p_mw == pytest.approx(-0.4)
    measured = plant.step(Limits(p_mw=-0.4, q_mvar=0.24), 1.0)
    assert measured.q_mvar == pytest.approx(0.24)
    assert -0.32 <= measured.p_mw < -0.31  # what the circle leaves
    assert plant.step(Limits(p_mw=-0.4, connected=False), 1.0).p_mw == 0.0

    engine = Generator(**COMMON, p_min_mw=0.1, s_mva=0.5, ramp_mw_per_min=0.6)
    plant = TwinPlant(Emulated(engine, lambda at: 1.0), lambda: 0.0)
    for _ in range(100):  # asked often, it is no faster: 0.01 MW a second
        measured = plant.step(Limits(p_mw=0.4), 0.1)
    assert measured.p_mw == pytest.approx(0.2, abs=0.003)
