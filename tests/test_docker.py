"""The container files: what they name exists, and nothing is offered beyond this computer."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import sys
import tomllib
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from bridges.broker import EmbeddedBroker, NoBroker
from scenarios.build import build
from scenarios.check import validate
from scenarios.cli import app
from scenarios.load import load
from scenarios.outlet import exposed
from scenarios.run_directory import RunDirectory
from simulators.journal import read
from tests.soak.broker import GuardedBroker, PlainBroker

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "docker"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text("utf-8"))
CONF = (DOCKER / "mosquitto" / "mosquitto.conf").read_text("utf-8")
OURS = [name for name, service in COMPOSE["services"].items() if service["image"] == "gridpace"]
RUN = "lab-1"
"""What `${GRIDPACE_RUN:-lab-1}` is if nobody says it."""


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's lines as (instruction, rest)."""
    lines = (DOCKER / "Dockerfile").read_text("utf-8").splitlines()
    return [(a, b) for a, _, b in (x.partition(" ") for x in lines) if a and not a.startswith("#")]


def parse(arguments: list[str]) -> None:
    """Fails if the command line does not know these arguments; runs nothing."""
    command: Any = get_command(app)
    name, *rest = arguments
    assert name in command.commands
    command.commands[name].make_context(name, list(rest))


def command(service: str) -> list[str]:
    """The command line of a service, as it is without anything in the environment."""
    given: list[str] = COMPOSE["services"][service]["command"]
    return [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", word) for word in given]


def test_what_the_image_copies_exists() -> None:
    copied = [rest.split()[:-1] for name, rest in instructions() if name == "COPY"]
    assert copied
    for source in (s for sources in copied for s in sources):
        assert (ROOT / source).exists(), source


def test_the_image_has_every_package_of_the_wheel() -> None:
    toml = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    packages = toml["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    copied = {s for name, rest in instructions() if name == "COPY" for s in rest.split()[:-1]}
    assert set(packages) <= copied
    assert {PROJECT["readme"], *PROJECT["license-files"], "pyproject.toml"} <= copied


def test_the_image_runs_our_command_without_root_rights() -> None:
    found = dict(instructions())  # of a repeated instruction the last one counts, as for docker
    assert found["USER"] not in ("root", "0")
    assert json.loads(found["ENTRYPOINT"])[0] in PROJECT["scripts"]
    parse(json.loads(found["CMD"]))
    least = re.search(r">=(\d+)\.(\d+)", PROJECT["requires-python"])
    base = re.match(r"python:(\d+)\.(\d+)-slim", found["FROM"])
    assert least
    assert base
    assert tuple(map(int, base.groups())) >= tuple(map(int, least.groups()))


def test_the_extras_that_the_image_installs_exist() -> None:
    text = " ".join(rest for name, rest in instructions() if name == "RUN")
    extras = re.search(r"'\.\[([\w,]+)\]'", text)
    assert extras
    assert set(extras[1].split(",")) <= PROJECT["optional-dependencies"].keys()


def test_no_port_is_published_beyond_loopback() -> None:
    published = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]
    assert len(published) == 3
    for port in published:
        assert isinstance(port, str)
        assert port.startswith("127.0.0.1:"), port


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_no_container_can_do_more_than_it_must(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert re.fullmatch(r"\$\{GRIDPACE_UID:-[1-9]\d*\}", service["user"])
    assert service.get("network_mode") != "host"
    assert not service.get("privileged")
    assert "docker.sock" not in str(service)
    assert all(
        ":ro" in mount or mount.split(":")[0] in COMPOSE["volumes"] for mount in service.get("volumes", [])
    )


def test_who_is_not_in_the_field_does_not_reach_its_broker() -> None:
    for name, service in COMPOSE["services"].items():
        assert ("field" in service["networks"]) is (name in OURS or name == "broker"), name
        assert set(service["networks"]) <= COMPOSE["networks"].keys()


@pytest.mark.parametrize("name", OURS)
def test_the_commands_of_the_composition_are_ones_that_gridpace_takes(name: str) -> None:
    arguments = command(name)
    parse(arguments)
    secrets = {f"/certs/{source}" for source in _secrets(name)}
    assert secrets == set(re.findall(r"/certs/[\w.]+", " ".join(arguments)))
    assert RUN in arguments
    changes = [value for flag, value in pairwise(arguments) if flag == "--set"]
    changes += [f"clock.mode={value}" for flag, value in pairwise(arguments) if flag == "--clock"]
    draft = load(arguments[1], changes)
    scenario = validate(draft)
    build(draft, scenario)
    if name == "gridpace":
        assert scenario.bus.kind == "mqtt"
        url = scenario.bus.url
    else:
        url = arguments[arguments.index("--url") + 1]
        assert arguments[2] in {device.name for device in scenario.devices}
    assert exposed(url) is None
    host, _, port = url.removeprefix("mqtts://").partition(":")
    assert host == "broker"
    assert f"listener {port}" in CONF.splitlines()
    assert f"127.0.0.1:{port}:{port}" in COMPOSE["services"][host]["ports"]


def _secrets(service: str) -> set[str]:
    given = COMPOSE["services"][service].get("secrets", [])
    for secret in given:
        assert secret["target"].rpartition("/")[2] == secret["source"]
    return {secret["source"] for secret in given}


def test_each_container_has_its_own_key_and_no_other() -> None:
    assert _secrets("broker") == {"ca.crt", "server.crt", "server.key"}
    assert _secrets("gridpace") == {"ca.crt", "controller.crt", "controller.key"}
    for device in ("pv24", "bat13"):
        assert _secrets(device) == {"ca.crt", f"{device}.crt", f"{device}.key"}
    assert "ca.key" not in str(COMPOSE)
    used = {source for name in COMPOSE["services"] for source in _secrets(name)}
    assert COMPOSE["secrets"] == {source: {"file": f"certs/{source}"} for source in used}
    assert {f"/mosquitto/certs/{x}" for x in _secrets("broker")} == set(
        re.findall(r"/mosquitto/certs/\S+", CONF)
    )


def test_what_the_composition_mounts_exists() -> None:
    for service in COMPOSE["services"].values():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            assert source in COMPOSE["volumes"] or (DOCKER / source).exists(), mount
    build = COMPOSE["services"]["gridpace"]["build"]
    assert (DOCKER / build["context"] / build["dockerfile"]).is_file()


def test_no_secret_is_written_down() -> None:
    for name, value in COMPOSE["services"]["gridpace"]["environment"].items():
        assert value is None, name  # passed on from the caller's environment
    for file in (path for path in DOCKER.rglob("*") if path.is_file() and "certs" not in path.parts):
        assert "PRIVATE KEY" not in file.read_text("utf-8"), file
    ignored = (ROOT / ".gitignore").read_text("utf-8").splitlines()
    assert "/docker/certs/" in ignored
    assert "docker/certs" in (ROOT / ".dockerignore").read_text("utf-8").splitlines()


# The same without Docker


def certificates(folder: Path) -> Path:
    """Those that the composition's first lines tell to make."""
    head = (DOCKER / "compose.yaml").read_text("utf-8")
    (line,) = re.findall(r"(?m)^#\s+gridpace (certs .+)$", head)
    arguments = [str(folder / "certs") if word == "docker/certs" else word for word in shlex.split(line)]
    done: Any = get_command(app).main(arguments, standalone_mode=False)
    assert not done
    return folder / "certs"


def test_the_certificates_that_are_mounted_are_those_that_are_made(tmp_path: Path) -> None:
    made = {path.name for path in certificates(tmp_path).iterdir()}
    assert {Path(secret["file"]).name for secret in COMPOSE["secrets"].values()} <= made


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[GuardedBroker]:
    """mosquitto with the shipped configuration, ACL and certificates."""
    own = GuardedBroker(certificates(tmp_path))
    try:
        await own.start()
    except NoBroker as error:
        if "no mosquitto" in str(error):
            pytest.skip(str(error))
        raise
    try:
        yield own
    finally:
        await own.stop()


@pytest.mark.parametrize("make", [GuardedBroker, PlainBroker])
async def test_mosquitto_takes_its_configuration(make: Any, tmp_path: Path) -> None:
    class Reads(make):  # type: ignore[misc]
        """Reads the configuration and its own output while they are there."""

        async def _wait(self, process: Any, directory: Path) -> None:
            await super()._wait(process, directory)
            self.output = (directory / "output.txt").read_text()

    broker: EmbeddedBroker = Reads(*([certificates(tmp_path)] if make is GuardedBroker else []))
    try:
        await broker.start()
    except NoBroker as error:
        if "no mosquitto" in str(error):
            pytest.skip(str(error))
        raise
    await broker.stop()
    output: str = broker.output  # type: ignore[attr-defined]
    # That a file may be read by all is our copy's, not the container's; the heartbeat is for everybody; and
    # whoever waits for the broker knocks at its door without a handshake.
    known = (
        "world readable",
        "'gridpace/v1/+/ctl/state' does not contain '%c' or '%u'",
        "unexpected eof while reading",
    )
    lines = [line for line in output.splitlines() if not any(words in line for words in known)]
    assert not [line for line in lines if "Error" in line or "Warning" in line]


async def test_the_composition_works_without_docker(broker: GuardedBroker, tmp_path: Path) -> None:
    """The run and both devices, each with its own certificate, as the composition starts them."""
    places = {
        "/certs": str(broker.certificates),
        "/runs": str(tmp_path / "runs"),
        "mqtts://broker:8883": broker.url,
        "steps=300": "steps=6",
        "0.0.0.0:9464": "127.0.0.1:0",
    }

    async def start(service: str) -> asyncio.subprocess.Process:
        words = command(service)
        for there, here in places.items():
            words = [word.replace(there, here) for word in words]
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "from scenarios.cli import main; main()", *words),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
        )

    names = ("pv24", "bat13")
    async with broker.client(
        "observer", *(f"gridpace/v1/{RUN}/ieee33-quick/{name}/state" for name in names)
    ) as watch:
        devices = [await start(name) for name in names]
        try:
            online: set[str] = set()
            async with asyncio.timeout(90):
                while len(online) < len(names):
                    await watch.arrived(1.0)
                    online |= {m.topic for m in watch.received() if b'"online"' in m.payload}
            ran = await start("gridpace")
            printed, _ = await asyncio.wait_for(ran.communicate(), 120)
            assert ran.returncode in (0, 1), printed.decode()  # 1: a slow machine fails its expectations
        finally:
            for device in devices:
                device.terminate()
            ended = [(await device.communicate())[0].decode() for device in devices]
    assert [device.returncode for device in devices] == [0, 0], ended
    rows = read(tmp_path / "runs" / RUN, "setpoints").to_pylist()
    answered = {row["device"] for row in rows if row["acked_at"] is not None}
    assert set(names) <= answered


# Metrics

METRICS = {
    *("gridpace_step_seconds", "gridpace_step_lateness_seconds", "gridpace_deadline_miss_total"),
    *("gridpace_setpoint_ack_seconds", "gridpace_setpoints_sent_total", "gridpace_setpoints_conflated_total"),
    *("gridpace_setpoints_expired_total", "gridpace_setpoints_rejected_total", "gridpace_devices"),
    *("gridpace_mqtt_connected", "gridpace_reconnects_total", "gridpace_solver_status_total"),
    *("gridpace_voltage_violation_total", "gridpace_interchange_correction_kw"),
}


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    (file,) = (DOCKER / "grafana" / "dashboards").iterdir()
    dashboard = json.loads(file.read_text("utf-8"))
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    said = " ".join(target["expr"] for panel in panels for target in panel["targets"])
    assert {re.sub(r"_(bucket|sum|count)$", "", x) for x in re.findall(r"gridpace_\w+", said)} == METRICS
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    for panel in panels:
        assert panel["targets"]
        assert all(target["expr"].count("(") == target["expr"].count(")") for target in panel["targets"])


def test_grafana_finds_prometheus_and_prometheus_the_run() -> None:
    grafana, services = DOCKER / "grafana", COMPOSE["services"]
    (file,) = (grafana / "provisioning" / "datasources").iterdir()
    (source,) = yaml.safe_load(file.read_text("utf-8"))["datasources"]
    (board,) = (grafana / "dashboards").iterdir()
    used = {
        panel["datasource"]["uid"]
        for panel in json.loads(board.read_text("utf-8"))["panels"]
        if "targets" in panel
    }
    assert used == {source["uid"]}
    host = re.fullmatch(r"http://(\w+):9090", source["url"])
    assert host
    assert "metrics" in services[host[1]]["networks"]
    (provider,) = (grafana / "provisioning" / "dashboards").iterdir()
    folder = yaml.safe_load(provider.read_text("utf-8"))["providers"][0]["options"]["path"]
    assert f"./grafana/dashboards:{folder}:ro" in services["grafana"]["volumes"]
    asked = yaml.safe_load((DOCKER / "prometheus.yml").read_text("utf-8"))["scrape_configs"][0]
    (target,) = asked["static_configs"][0]["targets"]
    assert "metrics" in services[target.partition(":")[0]]["networks"]
    for name in ("prometheus", "grafana"):
        assert services[name]["profiles"] == ["metrics"]


# A run whose name was chosen, so that devices know their topics beforehand


def test_a_runs_name_is_used_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", "ieee33-quick", "--out", str(tmp_path), "--set", "bus.kind=memory"]
    arguments += ["--set", "steps=1", "--set", "expect=[]", "--name"]
    group: Any = get_command(app)

    def status(name: str) -> int:
        with pytest.raises(SystemExit) as ended:
            group.main([*arguments, name], prog_name="gridpace")
        return int(ended.value.code or 0)

    assert status("lab-1") == 0
    assert (tmp_path / "lab-1" / "manifest.json").is_file()
    before = (tmp_path / "lab-1" / "manifest.json").read_bytes()
    capsys.readouterr()
    assert status("lab-1") == 2
    assert "there is a lab-1" in capsys.readouterr().err
    assert (tmp_path / "lab-1" / "manifest.json").read_bytes() == before
    assert status("a/b") == 2
    assert "a run's name is 1 to 64" in capsys.readouterr().err
    for name in ("a/b", "..", "+", "#", "x" * 65, ""):
        with pytest.raises(ValueError, match="a run's name is 1 to 64"):
            RunDirectory.named(tmp_path, name)
    assert [path.name for path in tmp_path.iterdir()] == ["lab-1"]
