"""Resume: a run that was killed goes on as if nothing had happened, or says why it cannot."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from bridges import wire
from bridges.memory import MemoryBus, MemoryHub
from controllers.contract import Origin
from controllers.region import Region
from scenarios.cli import app
from scenarios.events import Events
from scenarios.resume import CannotResume, resume
from scenarios.run import Exit, Result, make_clock
from scenarios.run_directory import RunDirectory
from simulators import journal
from simulators.checkpoint import BadCheckpoint, Checkpoints, Packer, unpack
from simulators.journal import JOURNAL, Journal, NoTables, finish, read
from simulators.recorder import RecorderSimulator
from simulators.tables import MEASURED, SCHEMAS
from tests.running import FakeTime, Silent, do

ROLLING = (
    *("ieee33-rolling", "steps=9", "controllers.0.rolling.intervals=4", "controllers.0.rolling.repay=0.5"),
)


@dataclass
class Copies:
    """A run, and its folder as it was at some moments: what a kill would have left."""

    root: Path
    whole: Result | None = None

    def take(self, name: str) -> None:
        (running,) = (self.root / "runs").iterdir()
        shutil.copytree(running, self.root / name / running.name)

    def at(self, name: str) -> Path:
        """A copy of that copy, to be gone on with."""
        (left,) = (self.root / name).iterdir()
        fresh = self.root / "resumed" / name / left.name
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.copytree(left, fresh)
        return fresh


async def copied(root: Path, which: Sequence[str], steps: Sequence[int]) -> Copies:
    """Copies `after-3` and so on, when those steps were over."""
    copies = Copies(root)
    name, *changes = which
    wanted = set(steps)

    def on_step(step: int) -> None:
        if step in wanted:
            copies.take(f"after-{step}")

    copies.whole = await do(name, root / "runs", *changes, on_step=on_step)
    return copies


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Copies:
    """An hour, copied after some steps and in the middle of others."""
    root = tmp_path_factory.mktemp("quick")
    copies = Copies(root)
    sent, append = RecorderSimulator.sent, Journal.append

    def before_sent(self: RecorderSimulator, tick: Any, published: Any) -> None:
        if tick.step in (1, 7):  # seven ends a part
            copies.take(f"unsent-{tick.step}")
        sent(self, tick, published)

    def before_append(self: Journal, step: int, tables: Any) -> None:
        if step == 5 and "steps" not in tables:
            copies.take("unwritten-5")
        append(self, step, tables)

    def on_step(step: int) -> None:
        if step in (0, 3, 10):
            copies.take(f"after-{step}")

    def unlinked(directory: Path) -> None:
        if not (root / "untidied").exists():
            copies.take("untidied")
        require_tables(directory)

    def before_end(self: RunDirectory, **said: Any) -> None:
        copies.take("unjudged")
        end(self, **said)

    require_tables, end = journal._require_tables, RunDirectory.end
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "_require_tables", unlinked)
        patch.setattr(RunDirectory, "end", before_end)
        patch.setattr(RecorderSimulator, "sent", before_sent)
        patch.setattr(Journal, "append", before_append)
        running = do("ieee33-quick", root / "runs", "record.seal_every=4", on_step=on_step)
        copies.whole = asyncio.run(running)
    return copies


def whole(result: Result, table: str, *without: str) -> Any:
    rows = pq.read_table(result.directory / f"{table}.parquet")
    return rows.drop_columns([name for name in without if name in rows.column_names])


def counts(result: Result) -> dict[str, int]:
    """What was counted, beside the traffic: a resumed run repeats itself on the bus."""
    found = json.loads((result.directory / "manifest.json").read_text())["counts"]
    return {name: n for name, n in found.items() if not name.startswith("bus-") and "repeated" not in name}


def require_equal(one: Result | None, other: Result) -> None:
    """The same tables to the last byte, but for epochs and what is measured."""
    assert one is not None
    for table in SCHEMAS:
        if table not in ("steps", "setpoints"):
            names = (one.directory / f"{table}.parquet", other.directory / f"{table}.parquet")
            assert names[0].read_bytes() == names[1].read_bytes(), table
    assert whole(one, "steps", *MEASURED).equals(whole(other, "steps", *MEASURED))
    assert whole(one, "setpoints", "epoch").equals(whole(other, "setpoints", "epoch"))
    assert counts(one) == counts(other)
    left = {path.name for path in other.directory.iterdir()}
    assert left == {path.name for path in one.directory.iterdir()}


def events(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "events.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("moment", "last"),
    [("after-0", 0), ("after-3", 3), ("after-10", 10), ("unsent-1", 1), ("unsent-7", 7), ("unwritten-5", 4)],
)
async def test_a_killed_run_goes_on_as_if_nothing_had_happened(quick: Copies, moment: str, last: int) -> None:
    left = quick.at(moment)
    resumed = await resume(left, observer=Silent())
    assert resumed.exit is Exit.HELD, resumed.why
    require_equal(quick.whole, resumed)
    epochs = whole(resumed, "setpoints")["epoch"].to_pylist()
    assert epochs == sorted(epochs)
    assert set(epochs) == {1, 2}
    manifest = json.loads((left / "manifest.json").read_text())
    (when,) = manifest["resumed"]
    assert (when["after_step"], when["step"], when["epoch"], manifest["epoch"]) == (last, last + 1, 2, 2)
    (event,) = events(left)
    assert (event["what"], event["step"], event["epoch"], event["gap_steps"]) == ("resumed", last + 1, 2, 0)
    assert datetime.fromisoformat(event["time"]) == datetime(2026, 6, 21, 11, 5 * (last + 1), tzinfo=UTC)


@pytest.mark.parametrize(
    ("which", "step"),
    [(ROLLING, 5), (("ieee33-regulated", "steps=6"), 3), (("ieee33-interchange", "steps=5"), 2)],
    ids=lambda value: value[0] if isinstance(value, tuple) else str(value),
)
async def test_controllers_that_remember_regulators_and_microgrids_go_on_too(
    tmp_path: Path, which: tuple[str, ...], step: int
) -> None:
    copies = await copied(tmp_path, which, [step])
    require_equal(copies.whole, await resume(copies.at(f"after-{step}"), observer=Silent()))


async def test_what_the_kill_has_torn_is_dropped_and_said(quick: Copies) -> None:
    left = quick.at("after-10")
    size = (left / JOURNAL).stat().st_size
    os.truncate(left / JOURNAL, size - 7)
    with (left / "events.jsonl").open("a") as file:
        file.write('{"time": "2026-06-21T11:50:00Z", "step": 10, "what": "kept"}\n')
        file.write('{"time": "2026-06-21T11:55:00Z", "step": 11, "what": "done again"}\n{"time": "20')
    resumed = await resume(left, observer=Silent())
    require_equal(quick.whole, resumed)
    kept, event = events(left)
    assert kept["what"] == "kept"
    assert event["torn_bytes"] > 0
    assert event["after_step"] == 10  # its step was complete but for what the bus had done with it


async def test_a_run_may_be_killed_again_and_again(quick: Copies, monkeypatch: pytest.MonkeyPatch) -> None:
    left = quick.at("after-0")
    for step in (4, 8):
        (into := left.parent / f"again-{step}").mkdir()

        def on_step(now: int, step: int = step, into: Path = into) -> None:
            if now == step:
                shutil.copytree(left, into / left.name)

        await resume(left, observer=Silent(on_step))
        shutil.rmtree(left)
        (into / left.name).rename(left)
    resumed = await resume(left, observer=Silent())
    require_equal(quick.whole, resumed)
    assert sorted(set(whole(resumed, "setpoints")["epoch"].to_pylist())) == [1, 2, 3, 4]
    assert [e["epoch"] for e in events(left)] == [2, 3, 4]
    shown = CliRunner().invoke(app, ["report", str(left)]).output
    assert "epoch 3: step 5 after step 4" in shown


async def test_killed_before_the_first_step_it_begins(quick: Copies) -> None:
    left = quick.at("after-0")
    for name in ("checkpoint-0.json", "checkpoint-1.json"):
        (left / name).unlink(missing_ok=True)
    shutil.rmtree(left / "parts")
    (left / JOURNAL).unlink()
    resumed = await resume(left, observer=Silent())
    require_equal(quick.whole, resumed)
    assert set(whole(resumed, "setpoints")["epoch"].to_pylist()) == {2}


# Killed while it ended


@pytest.mark.parametrize("moment", ["untidied", "unjudged"])
def test_a_run_that_was_killed_while_it_ended_is_judged(quick: Copies, moment: str) -> None:
    left = quick.at(moment)
    (left / "verdicts.json").unlink(missing_ok=True)
    assert (left / "parts").exists() == (moment == "untidied")
    shown = CliRunner().invoke(app, ["run", "--resume", str(left)])
    assert shown.exit_code == 0, shown.output
    assert quick.whole is not None
    for name in ("verdicts.json", *(f"{table}.parquet" for table in SCHEMAS)):
        assert (left / name).read_bytes() == (quick.whole.directory / name).read_bytes(), name
    assert {path.name for path in left.iterdir()} == {path.name for path in quick.whole.directory.iterdir()}
    manifest = json.loads((left / "manifest.json").read_text())
    assert (manifest["exit"]["status"], manifest["steps_done"], manifest["resumed"]) == (0, 12, [])
    assert "killed while it ended" in manifest["exit"]["meaning"]
    again = CliRunner().invoke(app, ["run", "--resume", str(left)])
    assert (again.exit_code, "has ended: all 12 steps done" in again.output) == (2, True)


async def test_what_it_ended_with_is_judged_as_it_was(quick: Copies, tmp_path: Path) -> None:
    stopped = quick.at("after-3")
    finish(stopped)
    result = await resume(stopped, observer=Silent())
    assert (result.exit, result.steps) == (Exit.STOPPED, 4)
    broke = quick.at("after-3")
    finish(broke)
    (broke / "events.jsonl").write_text(
        '{"time": "2026-06-21T11:20:00Z", "step": null, "what": "broke", "why": "OSError: gone"}\n{"time'
    )
    result = await resume(broke, observer=Silent())
    assert result.exit is Exit.BROKE
    assert result.why.startswith("broke after 4 of 12 steps: OSError: gone; killed while it ended")
    assert [event["what"] for event in events(broke)] == ["broke"]
    copies = Copies(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDirectory, "end", lambda self, **said: copies.take("unjudged"))
        await do(
            *("ieee33-quick", tmp_path / "runs", "steps=1"),
            "expect=[{what: v_pu, between: [1.0, 1.001], share: 1.0}]",
        )
    result = await resume(copies.at("unjudged"), observer=Silent())
    assert (result.exit, [verdict.held for verdict in result.verdicts]) == (Exit.FAILED, [False])


async def test_it_may_have_ended_while_somebody_waited_to_resume_it(
    quick: Copies, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = quick.at("unjudged")
    held = RunDirectory.held

    def ends_first(self: RunDirectory) -> Any:
        self.end(status=0, meaning="all done", steps=12, counts={})
        return held(self)

    monkeypatch.setattr(RunDirectory, "held", ends_first)
    with pytest.raises(CannotResume, match="has ended: all done"):
        await resume(left, observer=Silent())


def test_a_name_whose_run_never_began_is_free(tmp_path: Path) -> None:
    words = ["run", "ieee33-quick", "--out", str(tmp_path), "--set", "bus.kind=memory", "--name", "lab"]
    words += ["--set", "steps=1", "--set", "expect=[]"]
    (tmp_path / "lab").mkdir()
    file = os.open(tmp_path / "lab", os.O_RDONLY)
    fcntl.flock(file, fcntl.LOCK_EX)
    taken = CliRunner().invoke(app, words)
    assert (taken.exit_code, "is being run by another process" in taken.output) == (2, True)
    os.close(file)
    assert CliRunner().invoke(app, words).exit_code == 0
    again = CliRunner().invoke(app, words)
    assert (again.exit_code, "there is a lab" in again.output) == (2, True)


async def test_devices_are_told_once_more_what_they_were_told_last(
    quick: Copies, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the number that it had: the kill may have come before it left."""
    hub = MemoryHub()
    monkeypatch.setattr("scenarios.outlet.MemoryBus", lambda: MemoryBus(hub))
    left = quick.at("unsent-7")
    async with MemoryBus(hub) as device:
        device.subscribe(wire.device_pattern(left.name, "setpoint"))
        await resume(left, observer=Silent())
        heard: dict[str, list[tuple[int, int]]] = {}
        for message in device.received():
            told = wire.decode(message.payload, wire.SetpointMessage)
            heard.setdefault(wire.parse_topic(message.topic).der, []).append((told.epoch, told.seq))
    assert len(heard) == 6
    for numbers in heard.values():
        assert numbers == [(1, 8), (2, 9), (2, 10), (2, 11), (2, 12)]


# Refusals


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda left: shutil.rmtree(left), "does not exist"),
        (lambda left: (left / "manifest.json").unlink(), "has no manifest.json, so it is no run"),
        (lambda left: (left / "manifest.json").write_text("{"), "is no manifest of a run"),
        (lambda left: _edit(left, steps=13), "is not the one that was run"),
        (
            lambda left: (left / "checkpoint-1.json").unlink(),
            "damaged, so the run cannot go on.*No such file",
        ),
        (lambda left: _flip(left / "checkpoint-1.json", 400), "damaged: it is not what was written"),
        (lambda left: _flip(left / "checkpoint-1.json", 40), "checkpoint-1.json"),
        (lambda left: (left / JOURNAL).write_bytes(b"no journal"), "is damaged, so the run cannot go on"),
        (lambda left: (left / JOURNAL).unlink() or (left / "steps.parquet").touch(), "has no journal.arrows"),
        (lambda left: (left / "events.jsonl").write_text("{oh\n"), "events.jsonl, line 1 is damaged"),
        (lambda left: (left / "events.jsonl").write_text("[1]\n"), "line 1 is damaged: it is no event"),
        (
            lambda left: (left / "events.jsonl").write_text('{"time": "", "what": "a", "step": "b"}\n'),
            "line 1 is damaged: its step is 'b'",
        ),
    ],
)
async def test_what_cannot_go_on_says_why(quick: Copies, spoil: Callable[[Path], Any], why: str) -> None:
    left = quick.at("after-3")
    spoil(left)
    with pytest.raises(CannotResume, match=why):
        await resume(left, observer=Silent())


@pytest.mark.parametrize(
    "place",
    ["scenarios.resume.trim_events", "scenarios.resume.Journal.resume", "scenarios.session.Events"],
)
def test_a_full_disk_is_said_and_room_lets_it_go_on(
    quick: Copies, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    left = quick.at("after-10")

    def full(*args: Any, **given: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(place, full)
    shown = CliRunner().invoke(app, ["run", "--resume", str(left)])
    assert (shown.exit_code, "cannot be written: No space left on device" in shown.output) == (3, True)
    monkeypatch.undo()
    require_equal(quick.whole, asyncio.run(resume(left, observer=Silent())))


def test_half_an_event_does_not_spoil_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noon, write = datetime(2026, 6, 21, 12, tzinfo=UTC), os.write
    with Events(tmp_path / "events.jsonl") as told:
        told.record(noon, "first")
        monkeypatch.setattr("scenarios.events.os.write", lambda file, text: write(file, text[:9]))
        with pytest.raises(OSError, match="No space left"):
            told.record(noon, "second")
        monkeypatch.undo()
        told.record(noon, "third")
    assert [event["what"] for event in events(tmp_path)] == ["first", "third"]


def _edit(left: Path, **changes: Any) -> None:
    manifest = json.loads((left / "manifest.json").read_text())
    manifest["scenario"] |= changes
    (left / "manifest.json").write_text(json.dumps(manifest))


def _flip(file: Path, at: int) -> None:
    text = bytearray(file.read_bytes())
    text[at] ^= 1
    file.write_bytes(text)


async def test_what_another_version_has_kept_is_refused_in_words(quick: Copies) -> None:
    left = quick.at("after-3")
    kept = Checkpoints(left)
    state = kept.read(3)
    kept.write(3, {**state, "fleet": {**state["fleet"], "twins": {"stranger": None}}})
    with pytest.raises(CannotResume, match=r"of another version: 'stranger'; go on with the version that"):
        await resume(left, observer=Silent())


async def test_a_run_that_has_ended_or_is_going_on_is_left_alone(quick: Copies, tmp_path: Path) -> None:
    assert quick.whole is not None
    with pytest.raises(CannotResume, match="has ended: all 12 steps done; only a run that was killed"):
        await resume(quick.whole.directory, observer=Silent())
    left = quick.at("after-3")
    holds = "import fcntl, os, sys; f = os.open(sys.argv[1], os.O_RDONLY); fcntl.flock(f, fcntl.LOCK_EX); "
    holds += "print(flush=True); sys.stdin.read()"
    with subprocess.Popen(  # noqa: ASYNC220 - it does nothing but hold the lock
        [sys.executable, "-c", holds, str(left)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        other.stdout.readline()
        with pytest.raises(CannotResume, match="is being run by another process"):
            await resume(left, observer=Silent())
        other.stdin.close()
    assert (await resume(left, observer=Silent())).exit is Exit.HELD


async def test_a_scenario_whose_files_have_changed_does_not_go_on(tmp_path: Path) -> None:
    (tmp_path / "ours.py").write_text("from controllers.envelopes.equal_ranges import EqualRanges\n")
    (tmp_path / "s.yaml").write_text(
        "extends: ieee33-quick\nname: ours\nsteps: 3\n"
        "controllers: [{name: dso, uses: 'ours.py:EqualRanges'}]\n"
    )
    copies = await copied(tmp_path, (str(tmp_path / "s.yaml"),), [1])
    left = copies.at("after-1")
    (tmp_path / "ours.py").write_text("from controllers.envelopes.equal_ranges import EqualRanges  # new\n")
    with pytest.raises(CannotResume, match=r"ours\.py has changed since the run began"):
        await resume(left, observer=Silent())


def test_the_command_goes_on_and_refuses_in_words(quick: Copies) -> None:
    left = quick.at("after-10")

    def gridpace(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["run", *words])
        return done.exit_code, done.output

    assert gridpace() == (2, "which SCENARIO? Give a file or a name (gridpace list), or --resume DIR\n")
    status, said = gridpace("--resume", str(left), "--set", "steps=5")
    assert (status, "leave --set and --clock out" in said) == (2, True)
    status, said = gridpace("--resume", str(left), "--name", "other")
    assert (status, "leave --name out" in said) == (2, True)
    status, said = gridpace("ieee33-quick", "--set", "bus.kind=memory", "--resume", str(left))
    assert (status, "record.seal_every was 4, is 1000" in said) == (2, True)
    quickly = ("--set", "bus.kind=memory", "--set", "record.seal_every=4")
    status, said = gridpace("ieee33-quick", *quickly, "--resume", str(left))
    assert status == 0, said
    assert "step 11 after step 10" in said
    assert gridpace("--resume", str(left))[0] == 2


# The wall clock


async def test_live_it_goes_on_in_the_present_and_names_the_gap(tmp_path: Path) -> None:
    time = FakeTime()
    changes = ("clock.mode=live", "expect=[]", "record.bus=false")
    copies = Copies(tmp_path)
    await do(
        *("ieee33-quick", tmp_path / "runs", *changes),
        time=time,
        on_step=lambda step: copies.take("killed") if step == 3 else None,
    )
    left = copies.at("killed")
    time.seconds = 3 * 300 + 1000.0  # a thousand seconds after the fourth step had begun
    scenario = json.loads((left / "manifest.json").read_text())["scenario"]
    assert scenario["clock"]["mode"] == "live"
    from scenarios.resume import killed

    clock = make_clock(
        killed(left).scenario, monotonic=lambda: time.seconds - 500.0, wall=time.wall, sleep=time.sleep
    )  # another boot's monotonic clock
    resumed = await resume(left, observer=Silent(), clock=clock)
    steps = read(left, "steps").to_pandas()
    assert steps.step.to_list() == [0, 1, 2, 3, 7, 8, 9, 10, 11]
    assert (steps.planned_at.diff().dropna() == (steps.time.diff().dropna())).all()
    assert steps.lateness_ms.max() == pytest.approx(0.0, abs=1e-6)
    assert resumed.exit is Exit.STOPPED
    assert resumed.why == "9 of 12 steps done; in the others nobody was there"
    (event,) = events(left)
    assert (event["gap_steps"], event["gap_from"], event["gap_until"]) == (
        *(3, "2026-06-21T11:20:00Z", "2026-06-21T11:35:00Z"),
    )
    # Nobody had told the devices anything for longer than their instructions hold.
    states = read(left, "devices").to_pandas().query("device == 'pv6'").state.to_list()
    assert states[4] == "failsafe"
    assert "failsafe" not in states[5:]


async def test_when_the_time_of_the_run_is_over_it_is_judged(tmp_path: Path) -> None:
    time, copies = FakeTime(), Copies(tmp_path)
    await do(
        *("ieee33-quick", tmp_path / "runs", "clock.mode=live", "expect=[]"),
        time=time,
        on_step=lambda step: copies.take("killed") if step == 3 else None,
    )
    left = copies.at("killed")
    time.seconds = 1e6
    from scenarios.resume import killed

    clock = make_clock(killed(left).scenario, monotonic=time.monotonic, wall=time.wall, sleep=time.sleep)
    resumed = await resume(left, observer=Silent(), clock=clock)
    assert (resumed.exit, resumed.steps) == (Exit.STOPPED, 4)
    assert json.loads((left / "manifest.json").read_text())["steps_done"] == 4


# What is kept


def test_values_come_back_to_the_last_bit() -> None:
    region = Region(("p_mw", "q_mvar"), np.array([[1.0, 0.3], [-0.1, 2.0]]), np.array([0.1 + 0.2, 1 / 3]))
    turned = np.asfortranarray(np.arange(6, dtype=float).reshape(2, 3))
    value = {
        "region": (region, region),
        "numbers": [float("inf"), float("-inf"), -0.0, 5e-324, 0.1 + 0.2, 2**70],
        "arrays": (turned, np.array([True, False]), np.zeros((0, 2))),
        "when": {datetime(2026, 6, 21, 1, tzinfo=UTC): timedelta(microseconds=1)},
        "words": (Origin.HELD, frozenset({"b", "a"}), None, True, ""),
    }
    packer = Packer()
    text = packer.pack(value)
    back = unpack(text)
    assert packer.pack(value) == text
    assert Packer().pack(back) == text
    one = back["region"][0]
    assert (one.A.tobytes(), one.b.tobytes()) == (region.A.tobytes(), region.b.tobytes())
    assert not one.A.flags.writeable
    assert back["arrays"][0].flags.f_contiguous
    assert (back["arrays"][0] == turned).all()
    assert str(back["numbers"]) == str(value["numbers"])
    assert back["when"] == value["when"]
    assert back["words"] == value["words"]
    assert np.isnan(unpack(packer.pack(float("nan"))))


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (datetime(2026, 6, 21), "which has no time zone"),
        ({"a": {"b": object()}}, r"a\.b is a object, which cannot be kept"),
        ((FakeTime,), "0 is a type"),
        (Silent(), "only plain values and those of the vocabulary"),
        (np.array(["text"]), "an array of"),
    ],
)
def test_what_would_not_come_back_is_refused(value: Any, why: str) -> None:
    with pytest.raises(TypeError, match=why):
        Packer().pack(value)


@pytest.mark.parametrize(
    "text",
    [
        b'{"c": ["subprocess:Popen", {"args": "true"}]}',
        b'{"c": ["os:system", {}]}',
        b'{"e": ["controllers.contract:Infeasible", "x"]}',
        b'{"c": ["controllers.contract:Infeasible", {}]}',
        b'{"n": ["controllers.contract:Origin", ["held"]]}',
        b'{"a": ["O", [1], "C", true, ""]}',
        b'{"x": 1}',
    ],
)
def test_nothing_but_the_vocabulary_is_read(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"none of the vocabulary|is no|none that is kept"):
        unpack(text)


def test_the_other_checkpoint_is_whole_while_one_is_written(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    for step in range(5):
        kept.write(step, {"step": step, "long": "x" * (100 - step)})
    assert [kept.read(step)["step"] for step in (3, 4)] == [3, 4]
    with pytest.raises(BadCheckpoint, match="is of step 4"):
        kept.read(2)
    for size in range(0, (tmp_path / "checkpoint-0.json").stat().st_size - 10, 7):
        os.truncate(tmp_path / "checkpoint-0.json", size)
        with pytest.raises(BadCheckpoint):
            kept.read(4)
        assert kept.read(3)["step"] == 3
        kept.write(4, {"step": 4, "long": "x" * 96})
    kept.remove()
    assert not list(tmp_path.iterdir())


async def test_a_controller_whose_memory_cannot_be_kept_is_named(tmp_path: Path) -> None:
    (tmp_path / "ours.py").write_text(
        "from controllers.envelopes.equal_ranges import EqualRanges\n"
        "class Odd(EqualRanges):\n"
        "    def memory(self):\n        return {'it': object()}\n"
        "    def recall(self, memory):\n        raise AssertionError(memory)\n"
    )
    uses = f"controllers.0.uses={tmp_path}/ours.py:Odd"
    copies = await copied(tmp_path, ("ieee33-quick", "steps=4", uses), [2])
    left = copies.at("after-2")
    (event,) = events(left)
    assert event["what"] == "memory-unkept"
    assert "controllers.controllers.dso.it is a object, which cannot be kept" in event["why"]
    require_equal(copies.whole, await resume(left, observer=Silent()))


def test_a_journal_that_is_none_is_not_gone_on_with(tmp_path: Path) -> None:
    with pytest.raises(NoTables, match="nothing was recorded here, or the run has ended"):
        Journal.resume(tmp_path)
