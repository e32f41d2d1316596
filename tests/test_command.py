"""The command in a process of its own: brokers, clients from outside, signals, exit statuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from queue import Empty, Queue

import numpy as np
import paho.mqtt.client as paho
import pytest
from typer.testing import CliRunner

from bridges.broker import EmbeddedBroker, NoBroker
from scenarios.cli import app
from simulators.journal import finished_steps, read

COMMAND = [sys.executable, "-c", "from scenarios.cli import main; main()"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONUNBUFFERED": "1"}
PATIENCE_S = 120

Start = Callable[..., tuple[subprocess.Popen[str], Queue[str]]]


def gridpace(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    environment = {**ENVIRONMENT, **options.pop("environment", {})}  # type: ignore[dict-item]
    return subprocess.run(
        [*COMMAND, *words], capture_output=True, text=True, timeout=PATIENCE_S, env=environment, **options
    )  # type: ignore[call-overload, no-any-return]


def run_in(folder: Path) -> Path:
    """The one run in a folder."""
    (directory,) = folder.iterdir()
    return directory


def test_a_run_prints_its_verdicts_and_ends_with_0(tmp_path: Path) -> None:
    done = gridpace("run", "ieee33-quick", "--out", str(tmp_path), "--set", "bus.kind=memory")
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    for words in ("all 12 steps done", "v_pu between 0.95 and 1.05", "P-E, equal active-power ranges"):
        assert words in done.stdout
    again = gridpace("report", str(run_in(tmp_path)), "--json")
    assert again.returncode == 0
    assert json.loads(again.stdout)


def test_the_list_names_what_a_scenario_uses_once_each() -> None:
    result = CliRunner().invoke(app, ["list", "--json"])
    assert result.exit_code == 0
    found = {entry["name"]: entry["sources"] for entry in json.loads(result.stdout)["scenarios"]}
    assert all(len(set(uses)) == len(uses) for uses in found.values())
    assert [line.rsplit(":")[-1] for line in found["ieee33-interchange"]] == [
        "InterchangePrediction",
        "InterchangeCorrection",
        "MicrogridDispatch",
    ]


def test_a_reader_who_leaves_does_not_end_the_run(tmp_path: Path) -> None:
    words = ["run", "ieee33-quick", "--out", str(tmp_path), "--log-every", "0", "--set", "bus.kind=memory"]
    process = subprocess.Popen(
        [*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait(PATIENCE_S) == 0, said
    assert not said
    assert json.loads((run_in(tmp_path) / "manifest.json").read_text())["exit"]["status"] == 0


def test_exit_status_1_when_an_expectation_fails(tmp_path: Path) -> None:
    impossible = "expect=[{what: v_pu, between: [0.99, 1.01]}]"
    done = gridpace(
        "run",
        "ieee33-quick",
        "--out",
        str(tmp_path),
        "--set",
        "bus.kind=memory",
        "--set",
        impossible,
        "--json",
    )
    assert done.returncode == 1
    verdicts = json.loads((run_in(tmp_path) / "verdicts.json").read_text())
    assert verdicts["held"] is False
    assert json.loads(done.stdout)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "nowhere"], "no such file"),
        (
            ["run", "ieee33-quick", "--set", "bus.kind=mqtt", "--set", "bus.url=mqtt://127.0.0.1:1"],
            "127.0.0.1:1",
        ),
        (["run", "ieee33-quick", "--clock", "sideways"], "clock.mode"),
        (["run", "ieee33-quick", "--set", "name=ctl"], "word of the topics"),
        (["run", "ieee33-quick", "--set", "bus.kind=mqtt", "--set", "bus.url=mqtt://a:99999"], "port"),
        (["run", "ieee33-quick", "--set", "controllers.dso.valid_for=3000000d"], "9999"),
        (["run", "ieee33-quick", "--set", "controllers.dso.options.intervals=7"], "covers 6"),
        (["report", "nowhere"], "does not exist"),
    ],
)
def test_bad_input_ends_with_2_and_a_sentence(tmp_path: Path, words: list[str], said: str) -> None:
    done = gridpace(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.parametrize("broker", ["mosquitto", "amqtt"])
def test_the_embedded_broker_needs_nothing_from_the_user(tmp_path: Path, broker: str) -> None:
    changes = ["--set", f"bus.broker={broker}", "--set", "steps=3"]
    done = gridpace("run", "ieee33-quick", "--out", str(tmp_path), *changes)
    if "no broker" in done.stderr.lower() or "not found" in done.stderr.lower():
        pytest.skip(f"{broker} is not installed")
    assert done.returncode == 0, done.stderr
    assert "127.0.0.1" in done.stdout
    counts = json.loads((run_in(tmp_path) / "manifest.json").read_text())["counts"]
    assert counts["bus-acknowledged"] == counts["bus-published"] == 3 * 7 + 1
    assert "bus-unreachable" not in counts


@pytest.fixture
async def broker() -> object:
    try:
        async with EmbeddedBroker(prefer="mosquitto") as running:
            yield running
    except NoBroker as error:
        pytest.skip(f"needs mosquitto: {error}")


@pytest.fixture
def heard(broker: EmbeddedBroker) -> Iterator[Queue[paho.MQTTMessage]]:
    """What an independent client hears on every topic of gridpace."""
    messages: Queue[paho.MQTTMessage] = Queue()
    ready = threading.Event()
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    client.on_message = lambda _client, _data, message: messages.put(message)
    client.on_subscribe = lambda *_: ready.set()
    host, port = broker.url.removeprefix("mqtt://").split(":")
    client.connect(host, int(port))
    client.loop_start()
    client.subscribe("gridpace/v1/#", qos=1, options=None)
    assert ready.wait(10)
    yield messages
    client.loop_stop()
    client.disconnect()


def test_a_client_of_ones_own_hears_each_envelope_as_it_is_recorded(
    tmp_path: Path, broker: EmbeddedBroker, heard: Queue[paho.MQTTMessage]
) -> None:
    changes = ["--set", "bus.kind=mqtt", "--set", f"bus.url={broker.url}"]
    done = gridpace("run", "ieee33-quick", "--out", str(tmp_path), *changes)
    assert done.returncode == 0, done.stderr
    directory = run_in(tmp_path)
    regions = read(directory, "regions").to_pandas()

    messages = []
    while True:
        message = heard.get(timeout=10)  # the run says last that it leaves
        if message.topic == f"gridpace/v1/{directory.name}/ctl/state" and b"offline" in message.payload:
            break
        messages.append(message)
    setpoints = [m for m in messages if m.topic.endswith("/setpoint")]
    assert len(setpoints) == len(regions) == 12 * 6
    keyed = {(row.target, row.seq): row for row in regions.itertuples()}
    for message in setpoints:
        body = json.loads(message.payload)
        row = keyed.pop((body["der"], body["seq"]))
        assert message.topic == f"gridpace/v1/{directory.name}/ieee33-quick/{body['der']}/setpoint"
        assert body["region"]["axes"] == list(row.axes)
        assert np.array_equal(np.array(body["region"]["A"]), np.vstack(row.A))
        assert np.array_equal(np.array(body["region"]["b"]), row.b)
        for key in ("valid_from", "valid_until"):
            assert datetime.fromisoformat(body[key]) == getattr(row, key).to_pydatetime()
        assert body["origin"] == "optimal"
        assert body["why"] == row.binding
        assert message.properties.MessageExpiryInterval > 0
    assert not keyed

    # A client that comes later finds the last envelope of each device, retained.
    late: Queue[paho.MQTTMessage] = Queue()
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    client.on_message = lambda _client, _data, message: late.put(message)
    host, port = broker.url.removeprefix("mqtt://").split(":")
    client.connect(host, int(port))
    client.subscribe(f"gridpace/v1/{directory.name}/+/+/setpoint", qos=1)
    client.loop_start()
    retained = [late.get(timeout=10) for _ in range(6)]
    client.loop_stop()
    client.disconnect()
    assert all(message.retain for message in retained)
    assert {json.loads(m.payload)["seq"] for m in retained} == {12}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a run in the background; gives the process and the lines that it prints."""
    started: list[tuple[subprocess.Popen[str], threading.Thread]] = []

    def begin(*words: str) -> tuple[subprocess.Popen[str], Queue[str]]:
        process = _begin(tmp_path, words)
        lines: Queue[str] = Queue()
        stream = process.stdout
        assert stream is not None
        reader = threading.Thread(target=lambda: [lines.put(line) for line in stream])
        reader.start()
        started.append((process, reader))
        return process, lines

    yield begin
    for process, reader in started:
        process.kill()
        process.wait(PATIENCE_S)
        reader.join(PATIENCE_S)
        assert process.stdout is not None
        process.stdout.close()


def _begin(tmp_path: Path, words: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, "run", *words, "--out", str(tmp_path), "--log-every", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=ENVIRONMENT,
    )


def wait_for(lines: Queue[str], words: str) -> list[str]:
    seen = []
    while True:
        try:
            seen.append(lines.get(timeout=PATIENCE_S))
        except Empty:
            raise AssertionError(f"{words!r} was not printed: {seen}") from None
        if words in seen[-1]:
            return seen


def test_a_kill_loses_no_finished_step(tmp_path: Path, start: Start) -> None:
    process, lines = start("ieee33-envelopes", "--set", "bus.kind=memory", "--set", "record.seal_every=10")
    wait_for(lines, "step 33/288")
    process.kill()
    assert process.wait(PATIENCE_S) == -signal.SIGKILL
    directory = run_in(tmp_path)
    done = finished_steps(directory)
    assert done >= 33
    steps = read(directory, "steps").to_pandas()
    assert list(steps.step) == list(range(done))
    assert len(read(directory, "buses")) == 33 * done
    assert len(read(directory, "regions")) == 6 * done
    told = gridpace("report", str(directory))
    assert told.returncode == 0
    assert f"{done} of 288" in told.stdout


def test_ctrl_c_ends_cleanly_with_everything_kept(tmp_path: Path, start: Start) -> None:
    process, lines = start("ieee33-envelopes", "--clock", "scaled", "--set", "clock.factor=3000")
    wait_for(lines, "step 3/288")
    process.send_signal(signal.SIGINT)
    printed = wait_for(lines, "stopped on request")
    status = process.wait(PATIENCE_S)
    assert status == 130, printed
    assert not any("Traceback" in line for line in printed)
    directory = run_in(tmp_path)
    manifest = json.loads((directory / "manifest.json").read_text())
    assert manifest["steps_done"] == len(read(directory, "steps")) >= 3
    assert (directory / "verdicts.json").exists()
    assert not (directory / "journal.arrows").exists()


def test_a_second_ctrl_c_ends_even_a_controller_that_does_not_return(tmp_path: Path, start: Start) -> None:
    (tmp_path / "stuck.py").write_text(
        "import time\nfrom controllers.envelopes import EqualRanges\n"
        "class Stuck(EqualRanges):\n"
        "    def step(self, observation):\n"
        "        if observation.time.minute == 15:\n"
        "            print('step stuck', flush=True)\n"
        "            while True:\n"
        "                time.sleep(0.01)\n"
        "        return super().step(observation)\n"
    )
    (tmp_path / "stuck.yaml").write_text(
        "extends: ieee33-quick\nname: stuck\nbus: {kind: memory}\n"
        "controllers: [{name: dso, uses: 'stuck.py:Stuck'}]\n"
    )
    process, lines = start(str(tmp_path / "stuck.yaml"))
    wait_for(lines, "step stuck")
    process.send_signal(signal.SIGINT)
    wait_for(lines, "ends after the step in progress; asked once more, it ends at once")
    status = None
    for _ in range(100):  # two at the same moment count as one
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            status = process.wait(0.3)
            break
    assert status == 130
    wait_for(lines, "ended at once")
    (directory,) = tmp_path.glob("stuck-*")
    assert finished_steps(directory) == 3


def test_a_full_disk_breaks_the_run_and_keeps_its_steps(tmp_path: Path) -> None:
    # A limit on the size of a file stands in for the disk's.
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000));"
        "from scenarios.cli import main; main()"
    )
    words = ["run", "ieee33-quick", "--out", str(tmp_path), "--set", "bus.kind=memory", "--set", "steps=100"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env=ENVIRONMENT,
    )
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    assert "broke after" in done.stdout
    directory = run_in(tmp_path)
    assert 0 < finished_steps(directory) < 100


THEIRS = {  # what a third party's controller may do wrong, and what is said of it
    "raises": ("raise RuntimeError('sensor gone')", "RuntimeError: sensor gone"),
    "leaves": ("import sys; sys.exit(7)", "SystemExit: 7"),
    "is_none": ("return None", "not a Decision"),
}


@pytest.mark.parametrize("what", THEIRS)
def test_a_third_partys_mistake_does_not_end_the_run(tmp_path: Path, what: str) -> None:
    body, said = THEIRS[what]
    (tmp_path / "bad.py").write_text(
        f"class Bad:\n    def __init__(self, site): pass\n    def step(self, observation): {body}\n"
    )
    (tmp_path / "bad.yaml").write_text(
        "extends: ieee33-quick\nname: bad\nbus: {kind: memory}\nsteps: 3\n"
        "controllers: [{name: dso, uses: 'bad.py:Bad'}]\nexpect: []\n"
    )
    done = gridpace("run", str(tmp_path / "bad.yaml"), "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert "3 controller-raised" in done.stdout
    assert said in done.stdout


@pytest.mark.parametrize("body", ["import sys; sys.exit(0)", "raise OSError('no licence')", "1 / 0"])
@pytest.mark.parametrize("place", ["import", "constructor"])
def test_a_third_partys_mistake_before_the_start_is_bad_input(tmp_path: Path, body: str, place: str) -> None:
    (tmp_path / "bad.py").write_text(
        f"{body if place == 'import' else ''}\n"
        f"class Bad:\n    def __init__(self, site): {body if place == 'constructor' else 'pass'}\n"
        "    def step(self, observation): pass\n"
    )
    (tmp_path / "bad.yaml").write_text(
        "extends: ieee33-quick\nname: bad\ncontrollers: [{name: dso, uses: 'bad.py:Bad'}]\n"
    )
    result = CliRunner().invoke(app, ["check", str(tmp_path / "bad.yaml")])
    assert result.exit_code == 2
    assert "controllers.dso." in result.output


PROPORTIONAL = '''\
"""A controller of somebody else: every device may use the same share of its rating."""

from dataclasses import dataclass

from controllers import Decision, Observation, Origin, Region, Site


@dataclass
class FixedShare:
    site: Site
    share: float = 0.5

    def step(self, observation: Observation) -> Decision:
        boxes = {
            name: Region.box(p_mw=(-self.share * d.rating_mw, self.share * d.rating_mw), q_mvar=(0, 0))
            for name, d in self.site.devices.items()
        }
        return Decision(time=observation.time, origin=Origin.OPTIMAL, regions=boxes)
'''


def test_a_controller_of_a_third_party_runs_by_being_named(tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text(PROPORTIONAL)
    (tmp_path / "theirs.yaml").write_text(
        "extends: ieee33-quick\nname: theirs\nbus: {kind: memory}\n"
        "controllers: [{name: dso, uses: 'theirs.py:FixedShare', options: {share: 0.25}}]\n"
    )
    out = tmp_path / "out"
    done = gridpace("run", str(tmp_path / "theirs.yaml"), "--out", str(out), cwd="/")
    assert done.returncode == 0, done.stderr
    regions = read(run_in(out), "regions").to_pandas()
    pv6 = regions[regions.target == "pv6"]
    assert len(pv6) == 12
    assert {b[0] for b in pv6.b} == {0.25 * 1.8}
    wrong = gridpace("check", str(tmp_path / "theirs.yaml"), "--set", "controllers.dso.options.sharee=1")
    assert wrong.returncode == 2
    assert "sharee" in wrong.stderr
