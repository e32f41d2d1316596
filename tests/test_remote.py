"""Controllers in processes of their own: the same run, whatever becomes of the processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import psutil
import pytest

from bridges import wire
from bridges.area import AreaMessage, area_topic
from bridges.asking import Late
from bridges.mqtt import MqttBus
from controllers.contract import Kind, Observation
from controllers.fallback import Fallback
from controllers.forecast import Forecast
from scenarios import supervisor
from scenarios.build import build
from scenarios.check import ScenarioInvalid, validate
from scenarios.load import load
from scenarios.remote import Task, reply
from scenarios.run import Exit, Result, make_clock
from scenarios.supervisor import NoProcess, StandIn, Supervisor, processes_of
from simulators.controller import Seat
from simulators.journal import read
from tests.running import FakeTime, do

PATIENCE_S = 120.0
ROOT = Path(__file__).parents[1]

CONTROLLERS = '''
import os
import signal
from dataclasses import dataclass
from pathlib import Path

from controllers.contract import Certificate, Decision, Infeasible, Interval, Kind, Origin
from controllers.forecast import Forecast
from controllers.region import Region
from controllers.site import Site


@dataclass
class Announcer:
    """Says what a microgrid can exchange, for two intervals, and in which process it is."""

    site: Site

    def step(self, seen):
        process, every = Certificate(binding=f"process {os.getpid()}"), self.site.every
        second = seen.time + 2 * every
        said = {"mg1": Region.box(p_mw=(-0.1, 0.30000000000000004), q_mvar=(0.0, 0.0))}
        return Decision(
            time=seen.time,
            origin=Origin.OPTIMAL,
            kind=Kind.PIC,
            regions=said,
            certificates={"mg1": process},
            later=(Interval(start=second, end=second + every, regions=said),),
            plan=Forecast(seen.time, every, ("mg1",), [[0.1], [1 / 3], [0.5]], [[0.0], [0.01], [0.02]]),
        )


@dataclass
class Moody:
    """Raises something else in each step."""

    site: Site
    steps: int = 0

    def step(self, seen):
        self.steps += 1
        match self.steps:
            case 1:
                raise Infeasible("nothing fits")
            case 2:
                raise KeyError("pv24")
            case 3:
                raise SystemExit("enough")
            case 4:
                return 5
        print("moody says", self.steps)
        return Decision(time=seen.time, origin=Origin.OPTIMAL)


@dataclass
class Watched:
    """Leaves its process's number in a file; in one step it waits for somebody to write to a pipe."""

    site: Site
    folder: str
    waits_in: int = -1
    steps: int = -1

    def __post_init__(self):
        Path(self.folder, "pid").write_text(str(os.getpid()))

    def step(self, seen):
        self.steps += 1
        if self.steps == self.waits_in:
            print("waiting")
            Path(self.folder, "pipe").read_bytes()
        return Decision(time=seen.time, origin=Origin.OPTIMAL)


@dataclass
class Doomed:
    """Ends its process in each step from the second on."""

    site: Site

    def step(self, seen):
        if seen.p_mw["pv24"] != 0:
            print("this is the end")
            os.kill(os.getpid(), signal.SIGKILL)
        return Decision(time=seen.time, origin=Origin.OPTIMAL)


@dataclass
class Gated:
    """Is there at once in the run and in its first process; in the next only after a word from a pipe."""

    site: Site
    folder: str

    def __post_init__(self):
        if len(list(Path(self.folder).glob("built-*"))) == 2:
            Path(self.folder, "pipe").read_bytes()
        Path(self.folder, f"built-{os.getpid()}").touch()

    def step(self, seen):
        return Decision(time=seen.time, origin=Origin.OPTIMAL)


@dataclass
class Twice:
    """Is constructed once only."""

    site: Site
    folder: str

    def __post_init__(self):
        seen = Path(self.folder, "seen")
        if seen.exists():
            print("not again")
            os._exit(7)
        seen.touch()

    def step(self, seen):
        return Decision(time=seen.time, origin=Origin.OPTIMAL)
'''


def scenario(folder: Path, controllers: str, more: str = "") -> Path:
    """A scenario file with these controllers beside ieee33-quick's."""
    (folder / "ours.py").write_text(CONTROLLERS)
    file = folder / "apart.yaml"
    file.write_text(f"extends: ieee33-quick\nname: apart\nexpect: []\ncontrollers:\n{controllers}\n{more}")
    return file


def over(url: str) -> tuple[str, str]:
    return "bus.kind=mqtt", f"bus.url={url}"


def events(result: Result) -> list[dict[str, Any]]:
    lines = (result.directory / "events.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def counts(result: Result) -> dict[str, int]:
    manifest = json.loads((result.directory / "manifest.json").read_text())
    found: dict[str, int] = manifest["counts"]
    return found


def origins(result: Result, controller: str) -> list[str]:
    rows = read(result.directory, "steps").to_pylist()
    return [row["origin"] for row in rows if row["controller"] == controller]


def gone(pid: int) -> bool:
    try:
        psutil.Process(pid).wait(timeout=PATIENCE_S)
    except psutil.NoSuchProcess:
        return True
    return not psutil.pid_exists(pid)


async def retained(url: str, topic: str) -> bytes:
    async with MqttBus(url, client_id=f"follower-{os.getpid()}") as bus:
        bus.subscribe(topic)
        assert await bus.arrived(10)
        (message,) = bus.received()
        return message.payload


async def test_a_run_with_controllers_apart_is_the_same_run(mqtt_url: str, tmp_path: Path) -> None:
    file = scenario(
        tmp_path,
        "  - {name: dso, process: own}\n"
        "  - {name: says, uses: 'ours.py:Announcer', process: pair}\n"
        "  - {name: moody, uses: 'ours.py:Moody', process: pair}\n",
        "steps: 7\nmicrogrids: [{name: mg1, bus: 21, devices: [bat21], tie_mw: 0.5}]\n",
    )
    here = [f"controllers.{name}.process=here" for name in ("dso", "says", "moody")]
    apart, together = (
        await do(file, tmp_path / "apart", bus=over(mqtt_url)),
        await do(file, tmp_path / "here", *here, bus=over(mqtt_url)),
    )
    assert apart.exit is Exit.HELD, apart.why
    for table in ("devices", "buses", "branches", "setpoints", "forecasts"):
        assert (
            read(apart.directory, table)
            .drop_columns(_clocks(table))
            .equals(read(together.directory, table).drop_columns(_clocks(table)))
        ), table
    ours, theirs = (read(r.directory, "regions") for r in (apart, together))
    assert ours.num_rows == 7 * (5 + 2)  # envelopes of the devices outside mg1, and its two intervals
    assert ours.drop_columns("binding").equals(theirs.drop_columns("binding"))
    bindings = {(row["controller"], row["binding"]) for row in ours.to_pylist()}
    processes = {text for name, text in bindings if name == "says" and text}
    assert bindings - {("says", text) for text in processes} - {("says", None)} == {
        (row["controller"], row["binding"]) for row in theirs.to_pylist() if row["controller"] == "dso"
    }
    assert len(processes) == 1
    assert processes != {f"process {os.getpid()}"}
    assert gone(int(processes.pop().split()[1]))
    for result in (apart, together):
        happened = [(e["what"], e["step"], e["why"]) for e in events(result)]
        assert happened == [
            ("infeasible", 0, "nothing fits"),
            ("controller-raised", 1, "KeyError: 'pv24'"),
            ("controller-raised", 2, "SystemExit: enough"),
            ("controller-raised", 3, "TypeError: step() returned int, not a Decision"),
        ]
        assert origins(result, "moody") == ["default"] * 4 + ["optimal"] * 3
    assert counts(apart)["asks"] == 7 * 3
    assert "asks" not in counts(together)

    said = wire.decode(
        await retained(mqtt_url, area_topic(apart.directory.name, "mg1", Kind.PIC)), AreaMessage
    )
    assert (said.controller, said.kind, said.epoch, said.seq, said.origin) == ("says", "pic", 1, 7, "optimal")
    assert said.region.b == (0.30000000000000004, 0.1, 0.0, 0.0)
    assert said.why is not None
    assert said.why.startswith("process ")
    assert [span.end for span in said.later] == [said.valid_until]
    assert [(p.p_mw, p.std_mw) for p in said.plan] == [(0.1, 0.0), (1 / 3, 0.01)]  # not beyond the schedule
    assert counts(apart)["areas-sent"] == 7


def _clocks(table: str) -> list[str]:
    """What the wall clock says, which is another one in each run."""
    return ["sent_at"] if table == "setpoints" else []


async def test_a_killed_process_comes_back_and_a_slow_one_is_not_waited_for(
    mqtt_url: str, tmp_path: Path
) -> None:
    for name in ("victim", "slow"):
        (tmp_path / name).mkdir()
    pipe = tmp_path / "slow" / "pipe"
    os.mkfifo(pipe)
    file = scenario(
        tmp_path,
        f"  - {{name: victim, uses: 'ours.py:Watched', process: own,\n"
        f"     options: {{folder: '{tmp_path}/victim'}}}}\n"
        f"  - {{name: slow, uses: 'ours.py:Watched', process: own, deadline: 1s,\n"
        f"     options: {{folder: '{tmp_path}/slow', waits_in: 3}}}}\n",
        "steps: 8\n",
    )
    pids = []

    def on_step(step: int) -> None:
        if step == 1:
            pids.append(int((tmp_path / "victim" / "pid").read_text()))
            os.kill(pids[0], signal.SIGKILL)
        if step == 4:
            os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))  # an error, if nobody waits there

    result = await do(file, tmp_path / "runs", bus=over(mqtt_url), on_step=on_step)
    assert result.exit is Exit.HELD, result.why
    lost, *others = events(result)
    late = [e for e in others if (e["what"], e["step"], e["controller"]) != ("lost", 2, "victim")]
    assert len(others) - len(late) <= 1  # it was asked before its end was noticed
    assert (lost["what"], lost["step"], lost["process"]) == ("process-lost", 2, "victim")
    assert lost["controllers"] == ["victim"]
    assert lost["why"].startswith(
        "process victim of victim was ended by SIGKILL; it is started again, 3 more"
    )
    assert [(e["what"], e["step"], e["controller"]) for e in late] == [
        ("late", 3, "slow"),
        ("late", 4, "slow"),
    ]
    assert late[0]["why"] == "process slow has not answered within 1 s"
    assert origins(result, "slow") == ["optimal"] * 3 + ["held", "default"] + ["optimal"] * 3
    assert set(origins(result, "dso")) == {"optimal"}
    assert origins(result, "victim")[3:] == ["optimal"] * 5
    found = counts(result)
    assert (found["process-lost"], found["process-restarted"], found["late"]) == (1, 1, 2)
    assert found["answers-late"] == 1  # of step 3; that of step 4 was left out, because nobody waited for it
    pids += [int((tmp_path / name / "pid").read_text()) for name in ("victim", "slow")]
    assert len(set(pids)) == 3
    assert all(map(gone, pids))


async def test_a_step_of_the_wall_clock_does_not_wait_for_a_process_that_is_being_started(
    mqtt_url: str, tmp_path: Path
) -> None:
    """The deadline is some four minutes, and the process does not come back before the run's last step."""
    os.mkfifo(tmp_path / "pipe")
    options = f"process: victim, options: {{folder: '{tmp_path}'}}"
    file = scenario(
        tmp_path,
        f"  - {{name: one, uses: 'ours.py:Gated', {options}}}\n"
        f"  - {{name: two, uses: 'ours.py:Watched', {options}}}\n",
        "steps: 7\nclock: {mode: live}\n",
    )

    def on_step(step: int) -> None:
        if step == 1:
            os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)

    result = await do(file, tmp_path / "runs", bus=over(mqtt_url), on_step=on_step, time=FakeTime())
    assert result.exit is Exit.HELD, result.why
    happened = events(result)
    (gone_at,) = [i for i, event in enumerate(happened) if event["what"] == "process-lost"]
    assert happened[gone_at]["step"] == 2
    rest = [*happened[:gone_at], *happened[gone_at + 1 :]]
    assert [(e["step"], e["controller"]) for e in rest] == [
        (step, name) for step in range(2, 7) for name in ("one", "two")
    ]
    # It may have been asked before its end was noticed.
    assert {e["what"] for e in rest[1:]} == {"late"}
    assert {e["why"] for e in rest[1:]} == {"process victim is being started"}
    assert origins(result, "one") == origins(result, "two") == ["optimal"] * 2 + ["held"] + ["default"] * 4
    assert set(origins(result, "dso")) == {"optimal"}
    rows = read(result.directory, "steps").to_pylist()
    waited_ms = [row["solve_ms"] for row in rows if row["controller"] in ("one", "two") and row["step"] > 2]
    assert max(waited_ms) < PATIENCE_S * 1e3


async def test_a_process_that_ends_again_and_again_is_given_up(
    mqtt_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "RESTARTS", 1)
    file = scenario(tmp_path, "  - {name: doomed, uses: 'ours.py:Doomed', process: own}\n", "steps: 6\n")
    result = await do(file, tmp_path / "runs", bus=over(mqtt_url))
    assert result.exit is Exit.HELD, result.why
    happened = events(result)
    assert [e["what"] for e in happened] == ["process-lost", "lost"] * 2 + ["lost"] * 3
    assert all(e["why"].endswith("it is not started again") for e in happened[2:])
    assert happened[0]["printed"] == "this is the end"
    assert origins(result, "doomed") == ["optimal", "held"] + ["default"] * 4
    assert set(origins(result, "dso")) == {"optimal"}
    assert counts(result)["lost"] == 5


async def test_a_process_that_does_not_start_refuses_the_run(mqtt_url: str, tmp_path: Path) -> None:
    file = scenario(
        tmp_path,
        f"  - {{name: twice, uses: 'ours.py:Twice', process: own, options: {{folder: '{tmp_path}'}}}}\n",
    )
    with pytest.raises(NoProcess, match=r"process twice of twice has ended with status 7 .*\n?not again"):
        await do(file, tmp_path / "runs", bus=over(mqtt_url))
    assert not list((tmp_path / "runs").iterdir())


def test_no_process_outlives_a_run_that_is_killed(mqtt_url: str, tmp_path: Path) -> None:
    file = scenario(
        tmp_path,
        f"  - {{name: slow, uses: 'ours.py:Watched', process: own,\n"
        f"     options: {{folder: '{tmp_path}', waits_in: 0}}}}\n",
    )
    os.mkfifo(tmp_path / "pipe")
    run = subprocess.Popen(
        [sys.executable, "-c", "from scenarios.cli import main; main()", "run", str(file), "--out", "runs"]
        + [word for change in over(mqtt_url) for word in ("--set", change)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert run.stdout is not None
        with run.stdout as lines:
            assert "slow: waiting\n" in lines  # what it prints is shown by the run
        pid = int((tmp_path / "pid").read_text())
        assert psutil.Process(pid).ppid() == run.pid
        assert os.getsid(pid) == pid  # the terminal's Ctrl-C does not reach it
    finally:
        run.kill()
        run.wait(PATIENCE_S)
    assert gone(pid)


# Without processes


def test_the_memory_bus_leads_nowhere(tmp_path: Path) -> None:
    draft = load("ieee33-quick", ["bus.kind=memory", "controllers.dso.process=own"])
    with pytest.raises(ScenarioInvalid) as refused:
        build(draft, validate(draft))
    (problem,) = refused.value.problems
    assert problem.path == "controllers.dso.process"
    assert "kind memory does not leave the run's" in problem.advice


def test_controllers_that_name_a_process_share_it(tmp_path: Path) -> None:
    file = scenario(
        tmp_path,
        "  - {name: dso, process: own}\n"
        "  - {name: a, uses: 'ours.py:Announcer', process: dso}\n"
        "  - {name: b, uses: 'ours.py:Announcer'}\n"
        "  - {name: c, uses: 'ours.py:Announcer', process: c2}\n",
    )
    assert processes_of(validate(load(str(file)))) == {"dso": ("dso", "a"), "c2": ("c",)}


@pytest.mark.parametrize(
    ("changes", "deadline_s"),
    [
        ([], 30.0),
        (["clock.mode=live"], 225.0),
        (["clock.mode=scaled", "clock.factor=100"], 2.25),
        (["clock.mode=live", "controllers.dso.deadline=800ms"], 0.8),
        (["controllers.dso.deadline=2s"], 2.0),
    ],
)
async def test_the_deadline_leaves_a_quarter_of_a_step_of_the_wall_clock_if_not_given(
    changes: list[str], deadline_s: float
) -> None:
    made = validate(load("ieee33-quick", ["controllers.dso.process=own", *changes]))
    clock, several = make_clock(made), Supervisor([], asking=None, say=print)  # type: ignore[arg-type]
    seats = [Seat(name, Fallback(None, None), 1, made.every) for name in ("here", "dso")]  # type: ignore[arg-type]
    here, dso = several.seated(seats, made, clock.period_s if clock.paced else None)
    assert here is seats[0]
    assert isinstance(dso.controller, StandIn)
    assert (dso.controller.process, dso.controller.deadline_s) == ("dso", deadline_s)
    assert (dso.every_steps, dso.valid_for) == (1, made.every)


class Noted:
    """Takes note of how long it may take, and has no answer."""

    def __init__(self) -> None:
        self.within_s: list[float] = []

    async def ask(self, process: str, message: bytes, within_s: float) -> bytes:
        self.within_s.append(round(within_s, 6))
        raise Late(process)


@pytest.mark.parametrize(
    ("mode", "left_s"),
    [("live", [0.75, 0.65, 0.4, -0.2, 0.75]), ("fast", [30.0, 30.0, 0.8, 30.0, 30.0])],
)
async def test_the_controllers_of_a_step_of_the_wall_clock_share_its_time(
    mode: str, left_s: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = scenario(
        tmp_path,
        "  - {name: dso, process: own}\n"
        "  - {name: second, uses: 'ours.py:Announcer', process: own}\n"
        "  - {name: third, uses: 'ours.py:Announcer', process: own, deadline: 800ms}\n"
        "  - {name: fourth, uses: 'ours.py:Announcer', process: own}\n",
    )
    made, noted, now = validate(load(str(file), ["every=1s", f"clock.mode={mode}"])), Noted(), [5.0]
    monkeypatch.setattr(supervisor, "time", SimpleNamespace(monotonic=lambda: now[0]))
    clock, several = make_clock(made), Supervisor([], asking=noted, say=print)  # type: ignore[arg-type]
    names = ("dso", "second", "third", "fourth")
    seats = [Seat(name, Fallback(None, None), 1, made.every) for name in names]  # type: ignore[arg-type]
    found = several.seated(seats, made, clock.period_s if clock.paced else None)
    seen = Observation(time=made.start, forecast=Forecast.empty(made.start, made.every))
    for passed, whose in ((0.0, 0), (0.1, 1), (0.3, 2), (0.55, 3), (0.0, 0)):
        if whose == 0:
            now[0] += 7
            several.step_begins()
        now[0] += passed
        with pytest.raises(Late):
            await asyncio.to_thread(found[whose].controller.step, seen)
    assert noted.within_s == left_s


def test_a_process_builds_only_what_it_answers_for(tmp_path: Path) -> None:
    file = scenario(
        tmp_path, f"  - {{name: twice, uses: 'ours.py:Twice', options: {{folder: '{tmp_path}'}}}}\n"
    )
    draft = load(str(file))
    built = build(draft, validate(draft), only={"dso"})
    assert [seat.name for seat in built.seats] == ["dso"]
    assert not (tmp_path / "seen").exists()


def test_a_task_is_read_as_it_was_written() -> None:
    raw = {"steps": 3, "a": [0.1, 1e300, float("inf"), None, True, "\n"]}
    task = Task(
        raw=raw,
        folder="/x y",
        origin="o",
        bus={},
        run="r",
        process="p",
        controllers=("a",),
        token="t",
        life=2,
    )
    line = task.line()
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert Task.read(line) == task


def test_what_is_no_ask_has_an_answer_too() -> None:
    for message in (b"", b"{}", b"\xff"):
        answer = msgspec.json.decode(reply({}, message))
        assert answer["complaint"]["what"] == "BadMessage"
