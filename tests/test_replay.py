"""Record and replay: what was said and asked is on disk, and asking again gives the same answers."""

from __future__ import annotations

import asyncio
import errno
import gzip
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bridges import wire
from bridges.bus import Message
from bridges.memory import MemoryBus, MemoryHub
from bridges.tapped import TappedBus
from scenarios.cli import app
from scenarios.replay import Difference, NothingToReplay, replay
from scenarios.resume import CannotResume, resume
from scenarios.run import Exit, Result
from scenarios.traffic import TRAFFIC, Traffic, lines
from simulators.faulty import FaultyController
from simulators.journal import Journal
from tests.running import FakeTime, Silent, do

ROLLING = (
    *("ieee33-rolling", "steps=6", "controllers.0.rolling.intervals=4", "controllers.0.rolling.repay=0.5"),
    "record.bus=true",
)


async def recorded(root: Path, which: str, *changes: str, **more: Any) -> Result:
    result = await do(which, root, "record.bus=true", *changes, **more)
    assert result.exit is Exit.HELD, result.why
    return result


async def test_a_tapped_bus_tells_what_goes_and_comes() -> None:
    hub, told = MemoryHub(), []
    async with MemoryBus(hub) as other:
        inner = MemoryBus(hub)
        tapped = TappedBus(inner, lambda way, message, retain: told.append((way, message, retain)))
        tapped.subscribe("in/+")
        async with tapped:
            tapped.publish("out/1", b"a", retain=True, ttl_s=5.0)
            other.publish("in/1", b"b")
            assert await tapped.arrived(1.0)
            assert tapped.received() == [Message("in/1", b"b")]
            assert await tapped.flush(1.0)
            assert tapped.connected
        assert tapped.counts is inner.counts
        assert not tapped.connected
    assert told == [("out", Message("out/1", b"a"), True), ("in", Message("in/1", b"b"), False)]


async def test_the_traffic_of_a_run_is_what_its_devices_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = MemoryHub()
    monkeypatch.setattr("scenarios.outlet.MemoryBus", lambda: MemoryBus(hub))
    async with MemoryBus(hub) as device:
        device.subscribe(f"{wire.ROOT}/#")
        run: dict[str, str] = {}

        def answer(step: int) -> None:
            if step == 3:
                (name,) = os.listdir(tmp_path)
                run["name"] = name
                when = datetime(2026, 6, 21, 11, 20, tzinfo=UTC)
                ack = wire.Ack(epoch=1, seq=4, state="applied", time=when)
                topic = wire.device_topic(name, "ieee33-quick", "pv6", "ack")
                device.publish(topic, wire.encode(ack))
                device.publish(topic, b"\xff\xfe no text")

        result = await recorded(tmp_path, "ieee33-quick", on_step=answer)
        heard = device.received()
    said = list(lines(result.directory))
    out = [(line["topic"], line["payload"]) for line in said if line["way"] == "out"]
    ours = [(m.topic, m.payload) for m in heard if not m.topic.endswith("/ack")]
    assert out == ours
    assert all(line["retain"] for line in said if line["way"] == "out")
    came = [line["payload"] for line in said if line["way"] == "in"]
    assert [b"applied" in payload for payload in came] == [True, False]
    assert came[1] == b"\xff\xfe no text"
    assert {line["step"] for line in said if line["way"] == "in"} == {4}
    assert Counter(line["way"] for line in said)["asked"] == 12
    assert [line["step"] for line in said] == sorted(line["step"] for line in said)
    text = gzip.open(result.directory / TRAFFIC / "00000.jsonl.gz").read()  # noqa: SIM115
    assert text.count(b"\n") == len(said)


@pytest.mark.parametrize(
    "which",
    [
        ROLLING,
        ("ieee33-quick", "controllers.0.deadline=30s"),
        ("ieee33-regulated", "steps=6"),
        ("ieee33-interchange", "steps=4"),
    ],
    ids=lambda value: value[0],
)
async def test_the_same_controllers_answer_the_same(tmp_path: Path, which: tuple[str, ...]) -> None:
    name, *changes = which
    result = await recorded(tmp_path, name, *changes)
    found = replay(result.directory)
    asked = sum(line["way"] == "asked" for line in lines(result.directory))
    assert (found.asked, found.different, found.first, dict(found.unasked)) == (asked, 0, None, {})
    assert asked >= 4


FIXED = "from controllers.envelopes.equal_ranges import EqualRanges\nclass Ours(EqualRanges):\n    pass\n"
WORSE = """
from dataclasses import replace
from controllers.contract import SolverFailed
from controllers.envelopes.equal_ranges import EqualRanges
from controllers.region import Region


class Ours(EqualRanges):
    def step(self, observation):
        decision = super().step(observation)
        if observation.time.minute == 25:
            half = Region(("p_mw", "q_mvar"), decision.regions["bat13"].A, decision.regions["bat13"].b / 2)
            return replace(decision, regions={**decision.regions, "bat13": half})
        if observation.time.minute == 45:
            raise SolverFailed("stopped")
        return decision
"""


async def test_another_code_is_found_out_at_the_first_difference(tmp_path: Path) -> None:
    ours = tmp_path / "ours.py"
    ours.write_text(FIXED)
    result = await recorded(tmp_path / "runs", "ieee33-quick", f"controllers.dso.uses={ours}:Ours")
    assert replay(result.directory).different == 0
    ours.write_text(WORSE)
    several: list[Difference] = []
    found = replay(result.directory, differs=several.append)
    assert (found.asked, found.different) == (12, 2)
    assert [(d.step, d.controller) for d in several] == [(5, "dso"), (9, "dso")]
    assert found.first == several[0]
    assert several[0].what.startswith("regions.bat13.b.0 was 0.")
    assert several[1].what == "decided (optimal), now complained (solver-failed)"
    assert replay(result.directory, stop_at_first=True).asked == 6

    shown = CliRunner().invoke(app, ["replay", str(result.directory)])
    assert shown.exit_code == 1
    first, where = shown.output.splitlines()
    assert first == "2 of 12 answers are others than they were; the first:"
    assert where.startswith("step 5, dso: regions.")
    every = CliRunner().invoke(app, ["replay", str(result.directory), "--all"])
    assert every.output.startswith("step 5, dso: ")
    assert "\nstep 9, dso: " in every.output
    ours.write_text(FIXED)
    same = CliRunner().invoke(app, ["replay", str(result.directory), "--json"])
    assert (same.exit_code, json.loads(same.output)["asked"]) == (0, 12)


async def test_other_controllers_are_asked_what_these_were(tmp_path: Path) -> None:
    result = await recorded(tmp_path, "ieee33-quick", "steps=3")
    odd = ("--set", "controllers.dso.options={x: 1}")
    refused = CliRunner().invoke(app, ["replay", str(result.directory), *odd])
    assert (refused.exit_code, "controllers.dso.options.x" in refused.output) == (2, True)
    other = CliRunner().invoke(app, ["replay", str(result.directory), "--with", "ieee33-rolling"])
    assert other.exit_code == 1
    assert other.output.startswith("3 of 3 answers are others than they were; the first:\nstep 0, dso: ")
    renamed = CliRunner().invoke(
        app, ["replay", str(result.directory), "--set", "controllers.0.name=other", "--set", "steps=3"]
    )
    why = "3 answers are of 'dso', which the other scenario does not have; not compared"
    assert renamed.output.startswith(why)


async def test_a_resumed_run_is_replayed_through_its_kill(tmp_path: Path) -> None:
    copies = tmp_path / "copies"

    def on_step(step: int) -> None:
        if step == 3:
            (running,) = (tmp_path / "runs").iterdir()
            shutil.copytree(running, copies / running.name)

    name, *changes = ROLLING
    await do(name, tmp_path / "runs", *changes, on_step=on_step)
    (left,) = copies.iterdir()
    # What it was asked in a step that was not finished is asked again: as if the kill had come a step later.
    (whole,) = (tmp_path / "runs").iterdir()
    for file in (left / TRAFFIC, whole / TRAFFIC):
        assert [path.name for path in file.iterdir()] == ["00000.jsonl.gz"]
    torn = (whole / TRAFFIC / "00000.jsonl.gz").read_bytes()
    before = len((left / TRAFFIC / "00000.jsonl.gz").read_bytes())
    (left / TRAFFIC / "00000.jsonl.gz").write_bytes(torn[: before + (len(torn) - before) * 2 // 3])
    resumed = await resume(left, observer=Silent())
    assert resumed.exit is Exit.HELD
    ways = [line["way"] for line in lines(left) if line["way"] in ("asked", "resumed")]
    assert ways.index("resumed") > 4
    assert ways.count("asked") > 6
    found = replay(left)
    assert (found.asked, found.first) == (ways.count("asked"), None)


@pytest.mark.parametrize("append", [6, 7], ids=["what was decided", "what the bus made of it"])
async def test_a_step_on_disk_is_on_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, append: int
) -> None:
    """A kill just after a step's rows were written: the step counts as done, and so do its questions."""
    appended, write = [0], Journal.append

    def killed_after(self: Journal, step: int, tables: Any) -> None:
        write(self, step, tables)
        if appended[0] == append:
            shutil.copytree(self.path, tmp_path / "killed" / self.path.name)
        appended[0] += 1

    monkeypatch.setattr(Journal, "append", killed_after)
    name, *changes = ROLLING
    await do(name, tmp_path / "runs", *changes)
    (left,) = (tmp_path / "killed").iterdir()
    await resume(left, observer=Silent())
    asked = [line["step"] for line in lines(left) if line["way"] == "asked"]
    assert asked == list(range(6))
    found = replay(left)
    assert (found.asked, found.first, found.unrecorded) == (6, None, 0)


async def test_what_hung_on_the_clock_is_not_compared(tmp_path: Path) -> None:
    (tmp_path / "ours.py").write_text(
        "from controllers.contract import Late\n"
        "from controllers.envelopes.equal_ranges import EqualRanges\n"
        "class Ours(EqualRanges):\n"
        "    asked = 0\n"
        "    def step(self, observation):\n"
        "        self.asked += 1\n"
        "        if self.asked == 2:\n"
        "            raise Late('not in time')\n"
        "        return super().step(observation)\n"
    )
    uses = f"controllers.dso.uses={tmp_path}/ours.py:Ours"
    result = await recorded(tmp_path / "runs", "ieee33-quick", uses, "steps=4", "expect=[]")
    found = replay(result.directory)
    assert (found.asked, list(found.unasked.values())) == (3, [1])


async def test_nobody_waits_for_a_fault_that_takes_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("scenarios.build.FaultyController", partial(FaultyController, sleep=slept.append))
    fault = "{what: solver-late, at: 5min, for: 10min, controller: dso, by: 20min}"
    changes = ("steps=4", "expect=[]", "clock.mode=live", f"faults=[{fault}]")
    for more in ((), ("controllers.0.deadline=30s",)):
        result = await recorded(tmp_path, "ieee33-quick", *changes, *more, time=FakeTime())
        assert len(slept) == 2
        slept.clear()
        found = replay(result.directory)
        assert (found.asked, found.different, slept) == (4, 0, [])


# What was recorded is not there, or is damaged


@pytest.fixture(scope="module")
def on_record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose traffic fills three files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scenarios.session.Traffic", partial(Traffic, file_bytes=30_000))
        running = recorded(tmp_path_factory.mktemp("on-record"), "ieee33-quick")
        folder = asyncio.run(running).directory
    assert len(list((folder / TRAFFIC).iterdir())) == 3
    return folder


def turned(text: bytes) -> bytes:
    middle = len(text) // 2
    return text[:middle] + bytes([text[middle] ^ 1]) + text[middle + 1 :]


@pytest.mark.parametrize(
    "spoil",
    [
        turned,
        lambda text: b"{}" + text,
        lambda text: text + text,
        lambda text: gzip.compress(b"{\n"),
        lambda text: gzip.compress(b"[]\n"),
        lambda text: gzip.compress(b'{"way": "asked", "step": 1, "controller": "dso"}\n'),
        lambda text: gzip.compress(gzip.decompress(text).replace(b'"decision"', b'"decisiom"')),
        lambda text: gzip.compress(gzip.decompress(text).replace(b'"v_pu"', b'"v_qu"')),
    ],
)
def test_damaged_traffic_is_no_replay(
    on_record: Path, tmp_path: Path, spoil: Callable[[bytes], bytes]
) -> None:
    left = tmp_path / "left"
    shutil.copytree(on_record, left)
    file = left / TRAFFIC / "00001.jsonl.gz"
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(NothingToReplay, match="damaged"):
        replay(left)
    shown = CliRunner().invoke(app, ["replay", str(left)])
    assert (shown.exit_code, "damaged" in shown.output) == (2, True)


def test_damaged_tables_are_no_replay(on_record: Path, tmp_path: Path) -> None:
    left = tmp_path / "left"
    shutil.copytree(on_record, left)
    (left / "steps.parquet").write_bytes(b"PAR1 no table PAR1")
    with pytest.raises(NothingToReplay, match="the table 'steps' is damaged"):
        replay(left)


def test_steps_that_no_file_holds_are_counted(on_record: Path, tmp_path: Path) -> None:
    left = tmp_path / "left"
    shutil.copytree(on_record, left)
    assert replay(left).unrecorded == 0
    (left / TRAFFIC / "00001.jsonl.gz").unlink()
    found = replay(left)
    assert found.first is None
    assert 0 < found.asked < 12
    assert found.asked + found.unrecorded == 12
    shown = CliRunner().invoke(app, ["replay", str(left)])
    assert shown.exit_code == 0
    assert shown.output.splitlines() == [
        f"{found.unrecorded} steps have no record of what was asked; nothing is compared there",
        f"{found.asked} answers, all as they were",
    ]
    for file in (left / TRAFFIC).iterdir():
        os.truncate(file, 5)
    assert replay(left).unrecorded == 12
    for more in ((), ("--json",)):
        nothing = CliRunner().invoke(app, ["replay", str(left), *more])
        assert (nothing.exit_code, "all as they were" in nothing.output) == (2, False)


def test_a_full_disk_leaves_what_was_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traffic, write = Traffic(tmp_path), os.write

    def half(file: int, text: bytes) -> int:
        if len(text) < 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, text[: len(text) // 2])

    for step in range(2):
        traffic.message("in", Message(f"t/{step}", os.urandom(300)), False)
        traffic.flush(step + 1)
    traffic.message("in", Message("t/2", os.urandom(300)), False)
    monkeypatch.setattr("scenarios.traffic.os.write", half)
    with pytest.raises(OSError, match="No space left"):
        traffic.write()
    monkeypatch.undo()
    traffic.message("in", Message("t/3", b"x"), False)
    traffic.close()
    assert [line["step"] for line in lines(tmp_path)] == [0, 1]


async def test_paced_runs_record_and_fast_ones_only_if_told(tmp_path: Path) -> None:
    fast = await do("ieee33-quick", tmp_path, "steps=2", "expect=[]")
    live = await do("ieee33-quick", tmp_path, "steps=2", "expect=[]", "clock.mode=live", time=FakeTime())
    off = await do(
        *("ieee33-quick", tmp_path, "steps=2", "expect=[]", "clock.mode=live", "record.bus=false"),
        time=FakeTime(),
    )
    assert [(r.directory / TRAFFIC).exists() for r in (fast, live, off)] == [False, True, False]
    assert replay(live.directory).asked == 2
    with pytest.raises(NothingToReplay, match=r"--set record\.bus=true"):
        replay(fast.directory)
    with pytest.raises(CannotResume, match="does not exist"):
        replay(tmp_path / "nowhere")
    assert CliRunner().invoke(app, ["replay", str(fast.directory)]).exit_code == 2


def test_the_oldest_file_goes_when_there_is_too_much(tmp_path: Path) -> None:
    dropped: list[str] = []
    noon = datetime(2026, 6, 21, 12, tzinfo=UTC)
    bounds = {"most_bytes": 20_000, "file_bytes": 5_000}
    traffic = Traffic(tmp_path, **bounds, dropped=dropped.append, wall=lambda: noon)
    for step in range(300):
        traffic.message("out", Message(f"t/{step}", os.urandom(200)), True)
        traffic.flush(step + 1)
    traffic.close()
    files = sorted((tmp_path / TRAFFIC).iterdir())
    assert dropped == [f"{i:05d}.jsonl.gz" for i in range(len(dropped))]
    assert len(dropped) > 5
    assert sum(file.stat().st_size for file in files) < 20_000 + 2 * 5_500
    steps = [line["step"] for line in lines(tmp_path)]
    assert steps == list(range(steps[0], 300))


def test_a_torn_end_costs_only_itself(tmp_path: Path) -> None:
    traffic = Traffic(tmp_path)
    sizes = []
    for step in range(6):
        traffic.message("in", Message(f"t/{step}", b"x" * 50), False)
        traffic.flush(step + 1)
        sizes.append((tmp_path / TRAFFIC / "00000.jsonl.gz").stat().st_size)
    file = tmp_path / TRAFFIC / "00000.jsonl.gz"
    for end in range(sizes[-1] - 1, sizes[3], -1):
        os.truncate(file, end)
        assert [line["step"] for line in lines(tmp_path)][:4] == [0, 1, 2, 3]
