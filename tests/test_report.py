"""A run's folder, its manifest and events, and the printed report."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter
from rich.console import Console

from scenarios.events import Events, read_events
from scenarios.plain import canonical
from scenarios.report import NotARun, show, summary
from scenarios.run_directory import RunDirectory
from scenarios.verdicts import AnyExpectation, Expectation, judge
from simulators.devices import Obedience
from simulators.journal import Journal

NOW = datetime(2026, 6, 21, 10, 15, 2, 345678, tzinfo=UTC)
START = datetime(2026, 6, 21, tzinfo=UTC)
EVERY = timedelta(minutes=30)

SCENARIO: dict[str, Any] = {
    "name": "two-devices",
    "seed": 7,
    "steps": 4,
    "clock": {"mode": "live"},
    "devices": [{"name": "pv1", "kind": "pv-inverter"}, {"name": "bat1", "kind": "battery"}],
    "bus": {"kind": "mqtt", "url": "mqtts://operator:s3cr3t@broker.example:8883"},
}
SOURCES = ("A. Author [and others], Equal ranges, 2021",)


def begun(root: Path) -> RunDirectory:
    directory = RunDirectory.create(root, "two-devices", NOW)
    directory.begin(scenario=SCENARIO, sources=SOURCES, now=NOW)
    return directory


def append(journal: Journal, step: int) -> None:
    """pv1 injects 2 MW and loses 0.5 MW, bat1 takes 1 MW."""
    time = START + step * EVERY
    journal.append(
        step,
        {
            "steps": {
                "step": step,
                "time": time,
                "planned_at": NOW,
                "lateness_ms": float(step),
                "solve_ms": 10.0 * (step + 1),
                "power_flow_ms": None,
                "controller": "dso",
                "origin": "held" if step == 2 else "optimal",
            },
            "buses": {"time": time, "bus": ["1", "2"], "v_pu": [1.0 - 0.01 * step, 1.0 + 0.02 * step]},
            "branches": {
                "time": time,
                "branch": ["line:0"],
                "p_mw": [1.0],
                "loading_percent": [np.nan if step == 3 else 40.0 + step],
            },
            "devices": {
                "time": time,
                "device": ["pv1", "bat1"],
                "p_mw": [2.0, -1.0],
                "curtailed_mw": [0.5, None],
            },
            "setpoints": {
                "seq": step,
                "epoch": 1,
                "device": "pv1",
                "issued_at": time,
                "valid_until": time + EVERY,
                "sent_at": time,
                "acked_at": time + timedelta(milliseconds=20),
                "outcome": "applied",
            },
        },
    )


def finished(root: Path) -> RunDirectory:
    directory = begun(root)
    with Journal(directory.path, seal_every=3) as journal, Events(directory.path / "events.jsonl") as events:
        for step in range(4):
            append(journal, step)
        events.record(START, "broker-down", step=0)
        events.record(START + EVERY, "broker-down", step=1)
        events.record(START + EVERY, "solver-failed", step=1)
    parse: TypeAdapter[list[AnyExpectation]] = TypeAdapter(list[Expectation])
    expectations = parse.validate_python(
        [{"what": "v_pu", "between": [0.9, 1.1]}, {"what": "v_pu", "between": [0.99, 1.01]}]
    )
    judge(directory.path, expectations)
    directory.end(
        status=1,
        meaning="all 4 steps done; an expectation did not hold",
        steps=4,
        counts={"bus-published": 4},
        now=NOW + timedelta(seconds=3),
    )
    return directory


def printed(directory: RunDirectory, width: int = 100, **options: Any) -> str:
    stream = io.StringIO()
    show(summary(directory.path), Console(file=stream, width=width, no_color=True, **options))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


# The folder


def test_a_folder_is_named_for_its_run_and_its_time(tmp_path: Path) -> None:
    zone = datetime.fromisoformat("2026-06-21T12:15:02+02:00")
    names = [
        RunDirectory.create(tmp_path / "runs", "ieee33-quick", now).path.name for now in (NOW, zone, NOW)
    ]
    assert names == [
        "ieee33-quick-20260621T101502Z",
        "ieee33-quick-20260621T101502Z-2",
        "ieee33-quick-20260621T101502Z-3",
    ]


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden"])
def test_a_name_that_is_no_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="run name"):
        RunDirectory.create(tmp_path, name, NOW)


def test_a_time_needs_its_zone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no time zone"):
        RunDirectory.create(tmp_path, "run", NOW.replace(tzinfo=None))


def test_the_manifest_says_what_runs_before_it_ends(tmp_path: Path) -> None:
    directory = begun(tmp_path)
    written = json.loads((directory.path / "manifest.json").read_text())
    assert written["exit"] is None
    assert written["finished_at"] is None
    assert written["started_at"] == "2026-06-21T10:15:02.345678Z"
    assert written["seeds"] == {"scenario": 7}
    assert written["clock"] == "live"
    assert written["sources"] == list(SOURCES)
    assert written["versions"]["numpy"] == np.__version__
    assert {"gridpace", "python", "mosaik", "pandapower", "cvxpy", "clarabel", "aiomqtt", "pyarrow"} <= set(
        written["versions"]
    )
    assert written["host"]["cores"] >= 1
    # Anybody can check the hash from the file alone.
    text = json.dumps(written["scenario"], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert written["scenario_sha256"] == hashlib.sha256(text.encode()).hexdigest()


def test_no_password_is_written(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path, "run", NOW)
    hidden = {
        "url": "mqtt://user:p@ss/s3cr3t@host:1883",
        "user": "mqtt://s3cr3t@host:1883",  # where a token is the name
        "list": ["mqtts://:s3cr3t@host", {"password": "s3cr3t", "api_token": "s3cr3t"}],
        "query": "http://host/x?token=s3cr3t&y=1",
    }
    shown = {"password_env": "MQTT_PASSWORD", "plain": "mqtt://host:1883", "mail": "a@b.example"}
    directory.begin(scenario={**SCENARIO, "hidden": hidden, "shown": shown}, now=NOW)
    with Events(directory.path / "events.jsonl") as events:
        events.record(NOW, "bus-unreachable", why="cannot reach mqtt://user:s3cr3t@host:1883")
    for file in directory.path.iterdir():
        assert "s3cr3t" not in file.read_text(), file.name
    scenario = directory.manifest().scenario
    assert scenario["shown"] == shown
    assert scenario["bus"]["url"] == "mqtts://***@broker.example:8883"
    assert scenario["hidden"]["query"] == "http://host/x?token=***&y=1"


def test_the_end_keeps_the_beginning(tmp_path: Path) -> None:
    directory = begun(tmp_path)
    before = directory.manifest()
    directory.end(status=3, meaning="broke after 2 of 4 steps", steps=2, counts={"a": 1}, now=NOW)
    after = directory.manifest()
    assert after.exit is not None
    assert (after.exit.status, after.exit.meaning) == (3, "broke after 2 of 4 steps")
    assert (after.steps_done, after.counts, after.finished_at) == (2, {"a": 1}, NOW)
    assert (after.scenario_sha256, after.started_at) == (before.scenario_sha256, before.started_at)
    assert [p.name for p in directory.path.iterdir()] == ["manifest.json"]


def test_the_commit_is_that_of_the_checkout(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    tracked = subprocess.run(
        ["git", "-C", root, "ls-files", "--error-unmatch", "scenarios/run_directory.py"],
        capture_output=True,
        check=False,
    )
    head = subprocess.run(
        ["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    expected = head.stdout.strip() if tracked.returncode == 0 else None
    commit = begun(tmp_path).manifest().commit
    assert (commit.removesuffix("-dirty") if commit else None) == expected


def test_equal_scenarios_have_one_text() -> None:
    assert canonical({"b": 1, "a": [1.5, np.float64("nan")]}) == canonical(
        {"a": [1.5, None], "b": np.int64(1)}
    )


# Events


def test_events_are_on_disk_at_once_and_counted(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    events = Events(file)
    events.record(START, "fault", step=3, device="der3", excess_mw=np.float64(0.25), bad=float("nan"))
    assert list(read_events(file)) == [
        {
            "time": "2026-06-21T00:00:00Z",
            "step": 3,
            "what": "fault",
            "device": "der3",
            "excess_mw": 0.25,
            "bad": None,
        }
    ]
    events.record(START, "fault", text="two\nlines é")
    events.record(START, "healed")
    events.close()
    assert events.counts == {"fault": 2, "healed": 1}
    assert [event["what"] for event in read_events(file)] == ["fault", "fault", "healed"]


def test_a_torn_event_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    with Events(file) as events:
        events.record(START, "first")
        events.record(START, "second", name="é")
    whole = file.read_bytes()
    start = whole.index(b"\n") + 1
    for end in range(start, len(whole)):
        file.write_bytes(whole[:end])
        assert [event["what"] for event in read_events(file)] == ["first"], f"cut at byte {end}"
    assert list(read_events(tmp_path / "none.jsonl")) == []


# The report


def test_the_figures_of_a_run(tmp_path: Path) -> None:
    found = summary(finished(tmp_path).path)
    assert (found.steps_done, found.steps_planned, found.every_s) == (4, 4, 1800.0)
    assert (found.first, found.last) == (START, START + 3 * EVERY)
    assert (found.exit_status, found.clock) == (1, "live")
    pv, battery = found.energy
    assert (pv.name, pv.kind, battery.kind) == ("pv1", "pv-inverter", "battery")
    assert (pv.generated_mwh, pv.consumed_mwh, pv.curtailed_mwh) == (4.0, 0.0, 1.0)
    assert (battery.generated_mwh, battery.consumed_mwh, battery.curtailed_mwh) == (0.0, 2.0, None)
    assert found.least_v_pu is not None
    assert (found.least_v_pu.value, found.least_v_pu.name, found.least_v_pu.time) == (
        0.97,
        "1",
        START + 3 * EVERY,
    )
    assert found.greatest_v_pu is not None
    assert (found.greatest_v_pu.value, found.greatest_v_pu.name) == (1.06, "2")
    assert found.greatest_loading_percent is not None
    assert (found.greatest_loading_percent.value, found.greatest_loading_percent.name) == (42.0, "line:0")
    assert found.decisions == {"optimal": 3, "held": 1}
    assert found.setpoints == {"applied": 4}
    assert found.events == {"broker-down": 2, "solver-failed": 1}
    assert found.counts == {"bus-published": 4}
    spreads = {spread.what: spread for spread in found.durations}
    assert (spreads["lateness_ms"].median_ms, spreads["lateness_ms"].p95_ms) == (1.0, 3.0)
    assert (spreads["ack_ms"].count, spreads["ack_ms"].median_ms) == (4, 20.0)
    assert "power_flow_ms" not in spreads  # missing is missing, never zero
    assert [verdict.held for verdict in found.verdicts] == [True, False]


def test_the_summary_is_plain_json(tmp_path: Path) -> None:
    found = summary(finished(tmp_path).path)
    again = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert again["first"] == "2026-06-21T00:00:00Z"
    assert again["greatest_v_pu"] == {"name": "2", "time": "2026-06-21T01:30:00Z", "value": 1.06}
    assert again["energy"][1]["curtailed_mwh"] is None
    assert again["verdicts"][1]["held"] is False


def test_the_report_fits_and_says_it_all(tmp_path: Path) -> None:
    text = printed(finished(tmp_path))
    assert max(len(line) for line in text.splitlines()) <= 100
    assert "\x1b" not in text
    for said in (
        "two-devices",
        "2026-06-21 00:00:00 UTC to 2026-06-21 01:30:00 UTC, every 1800 s",
        "4 of 4, clock live",
        "an expectation did not hold (exit status 1)",
        "3 optimal, 1 held",
        "2 broker-down, 1 solver-failed",
        "✓ held",
        "✗ FAILED",
        "v_pu between 0.99 and 1.01 for 100 %",
        "worst: bus 2 with 1.06 pu",
        "A. Author [and others], Equal ranges, 2021",  # brackets are text, not markup
    ):
        assert said in " ".join(text.split()), said
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert lines["pv1"] == ["pv1", "pv-inverter", "4.000", "0.000", "1.000"]
    assert lines["bat1"] == ["bat1", "battery", "0.000", "2.000", "-"]
    assert lines["all"] == ["all", "2", "4.000", "2.000", "1.000"]


def test_a_terminal_without_symbols_gets_words(tmp_path: Path) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    show(summary(finished(tmp_path).path), Console(file=stream, width=100, no_color=True))
    stream.flush()
    text = stream.buffer.getvalue().decode("ascii")  # type: ignore[attr-defined]
    assert "FAILED" in text
    assert "?" not in text


def silent_now_and_then(root: Path, silent: dict[str, set[int]]) -> RunDirectory:
    """Four steps of half an hour with pv1 at 2 MW and bat1 at -1 MW, where they are heard."""
    directory = begun(root)
    with Journal(directory.path) as journal:
        for step in range(4):
            time = START + step * EVERY
            powers = {"pv1": 2.0, "bat1": -1.0}
            p_mw = [None if step in silent.get(name, ()) else power for name, power in powers.items()]
            devices = {"time": time, "device": list(powers), "p_mw": p_mw}
            journal.append(step, {"steps": {"step": step, "time": time}, "devices": devices})
    return directory


def energy_lines(directory: RunDirectory) -> dict[str, list[str]]:
    return {line.split()[0]: line.split() for line in printed(directory).splitlines() if line.strip()}


def test_a_device_that_was_never_heard_has_no_energy(tmp_path: Path) -> None:
    directory = silent_now_and_then(tmp_path, {"bat1": {0, 1, 2, 3}})
    pv, battery = summary(directory.path).energy
    assert (battery.generated_mwh, battery.consumed_mwh, battery.known_steps) == (None, None, 0)
    assert (pv.generated_mwh, pv.known_steps, pv.steps) == (4.0, 4, 4)
    lines = energy_lines(directory)
    assert lines["bat1"] == ["bat1", "battery", "-", "-", "-", "0", "of", "4"]
    assert lines["pv1"][2:] == ["4.000", "0.000", "-", "all"]
    assert lines["all"] == ["all", "2", "4.000", "0.000", "-", "4", "of", "8"]


def test_energy_of_a_device_that_was_silent_for_a_time_says_so(tmp_path: Path) -> None:
    lines = energy_lines(silent_now_and_then(tmp_path / "gap", {"bat1": {1}}))
    assert lines["bat1"] == ["bat1", "battery", "0.000", "1.500", "-", "3", "of", "4"]
    whole = energy_lines(silent_now_and_then(tmp_path / "whole", {}))
    assert whole["bat1"] == ["bat1", "battery", "0.000", "2.000", "-"]
    assert whole["all"] == ["all", "2", "4.000", "2.000", "-"]


@pytest.mark.parametrize("width", [80, 100, 120])
def test_nothing_is_cut_where_there_is_little_room(tmp_path: Path, width: int) -> None:
    directory = silent_now_and_then(tmp_path, {"bat1": {1}})
    with Events(directory.path / "events.jsonl") as events:
        for number, what in enumerate(("solver-infeasible", "loss")):
            named = {"number": number, "fault": what, "controller": "a-controller"}
            events.record(START + (3 - number) * EVERY, "fault-began", step=3 - number, **named)
    text = printed(directory, width)
    assert "…" not in text
    assert max(len(line) for line in text.splitlines()) <= width
    (bar,) = (line for line in text.splitlines() if line.startswith("solver-infeasible a-controller"))
    assert bar.endswith("·█")  # it was on in the last step
    assert "3 of 4" in text


def test_little_energy_has_more_digits(tmp_path: Path) -> None:
    directory = begun(tmp_path)
    with Journal(directory.path) as journal:
        for step in range(2):
            time = START + step * timedelta(seconds=1)
            devices = {"time": time, "device": ["pv1", "bat1"], "p_mw": [36.0, -0.9]}
            journal.append(step, {"steps": {"step": step, "time": time}, "devices": devices})
    lines = energy_lines(directory)
    assert lines["pv1"][2] == "0.0200"
    assert lines["bat1"][3] == "0.0005"


def test_many_devices_are_shown_by_kind(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path, "many", NOW)
    names = [f"der{i:02d}" for i in range(20)]
    devices = [{"name": name, "kind": "battery" if i % 2 else "pv-inverter"} for i, name in enumerate(names)]
    directory.begin(scenario={**SCENARIO, "devices": devices}, now=NOW)
    with Journal(directory.path) as journal:
        for step in range(2):
            time = START + step * EVERY
            steps = {"step": step, "time": time}
            journal.append(
                step, {"steps": steps, "devices": {"time": time, "device": names, "p_mw": [1.0] * 20}}
            )
    text = printed(directory)
    assert "der00" not in text
    lines = [line.split() for line in text.splitlines()]
    assert ["10", "together", "pv-inverter", "10.000", "0.000", "-"] in lines
    assert ["all", "20", "20.000", "0.000", "-"] in lines


def test_loads_are_shown_together(tmp_path: Path) -> None:
    directory = begun(tmp_path)
    loads = [f"load{i}" for i in range(30)]
    with Journal(directory.path) as journal:
        for step in range(2):
            time = START + step * EVERY
            devices = {
                "time": time,
                "device": ["pv1", *loads],
                "p_mw": [1.0, *[-0.1] * 30],
                "state": ["limited", *[Obedience.UNCONTROLLED] * 30],
            }
            journal.append(step, {"steps": {"step": step, "time": time}, "devices": devices})
    lines = [line.split() for line in printed(directory).splitlines()]
    assert ["pv1", "pv-inverter", "1.000", "0.000", "-"] in lines
    assert ["30", "together", "load", "0.000", "3.000", "-"] in lines


def test_a_killed_run_is_reported_and_says_so(tmp_path: Path) -> None:
    directory = begun(tmp_path)
    journal = Journal(directory.path, seal_every=2)
    for step in range(3):
        append(journal, step)
    found = summary(directory.path)
    assert (found.steps_done, found.exit_status) == (3, None)
    assert found.energy[0].generated_mwh == 3.0
    text = printed(directory)
    assert "3 of 4, clock live" in text
    assert "killed" in text
    journal.close()


def test_a_run_without_a_step_is_reported(tmp_path: Path) -> None:
    directory = begun(tmp_path)
    assert "0 of 4" in printed(directory)
    Journal(directory.path).close()
    found = summary(directory.path)
    assert (found.steps_done, found.least_v_pu, found.durations) == (0, None, ())
    assert "0 of 4" in printed(directory)


def test_a_folder_that_is_no_run_says_what_to_do(tmp_path: Path) -> None:
    directory = begun(tmp_path)
    with pytest.raises(NotARun, match=f"is no run.*give .*{directory.path.name}"):
        summary(tmp_path)
    with pytest.raises(NotARun, match="does not exist; give the folder"):
        summary(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotARun, match="is a file"):
        summary(tmp_path / "file")
    (directory.path / "manifest.json").write_text('{"name": "x"}')
    with pytest.raises(NotARun, match="no manifest of a run"):
        summary(directory.path)


def test_an_unpaced_run_has_no_measured_answers(tmp_path: Path) -> None:
    run = finished(tmp_path).path
    assert "ack_ms" in {spread.what for spread in summary(run).durations}
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["clock"] = "fast"
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert "ack_ms" not in {spread.what for spread in summary(run).durations}
