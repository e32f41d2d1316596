"""The container files: what they name exists, and nothing is offered beyond this computer."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from bridges.broker import _free_port
from scenarios.check import validate
from scenarios.cli import app
from scenarios.load import load

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "docker"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text("utf-8"))
CONF = (DOCKER / "mosquitto" / "mosquitto.conf").read_text("utf-8")
MOSQUITTO = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")


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
    assert published
    for port in published:
        assert isinstance(port, str)
        assert port.startswith("127.0.0.1:"), port
    for name, service in COMPOSE["services"].items():
        assert service.get("network_mode") != "host", name
        assert not service.get("privileged"), name
        assert "docker.sock" not in str(service), name


def test_the_command_of_the_composition_is_one_that_gridpace_takes() -> None:
    arguments = COMPOSE["services"]["gridpace"]["command"]
    parse(arguments)
    changes = [value for flag, value in pairwise(arguments) if flag == "--set"]
    bus = validate(load(arguments[1], changes)).bus
    assert bus.kind == "mqtt"
    host, _, port = bus.url.removeprefix("mqtt://").partition(":")
    assert host in COMPOSE["services"]
    assert f"listener {port}" in CONF.splitlines()
    assert any(p.endswith(f":{port}") for p in COMPOSE["services"][host]["ports"])


def test_what_the_composition_mounts_exists() -> None:
    for service in COMPOSE["services"].values():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            assert source in COMPOSE["volumes"] or (DOCKER / source).is_file(), mount
    build = COMPOSE["services"]["gridpace"]["build"]
    assert (DOCKER / build["context"] / build["dockerfile"]).is_file()


def test_no_secret_is_written_down() -> None:
    for name, value in COMPOSE["services"]["gridpace"]["environment"].items():
        assert value is None, name  # passed on from the caller's environment


@pytest.fixture
def broker_output(tmp_path: Path) -> Iterator[list[str]]:
    """What mosquitto prints with our configuration, on a free port of the loopback address."""
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed")
    (tmp_path / "m.conf").write_text(
        re.sub(r"(?m)^listener 1883$", f"listener {_free_port('127.0.0.1')} 127.0.0.1", CONF)
    )
    process = subprocess.Popen(
        [MOSQUITTO, "-v", "-c", str(tmp_path / "m.conf")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    guard = threading.Timer(10.0, process.kill)
    guard.start()
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.rstrip().endswith("running"):
            break
    yield lines
    guard.cancel()
    process.kill()
    process.communicate()


def test_mosquitto_takes_its_configuration(broker_output: list[str]) -> None:
    assert broker_output[-1].rstrip().endswith("running"), "".join(broker_output)
    assert not [line for line in broker_output if "Error" in line or "Warning" in line]
