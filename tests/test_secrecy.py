"""A run's own bus over TLS, and secrets, which come from the environment or files and show nowhere."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from cryptography.hazmat.primitives import serialization
from typer.testing import CliRunner

from bridges.bus import BusUnreachable, shown
from bridges.mqtt import MqttBus
from scenarios.certs import make
from scenarios.check import ScenarioInvalid, validate
from scenarios.cli import app
from scenarios.load import ScenarioUnreadable, load
from scenarios.outlet import connect, exposed
from scenarios.run import Exit
from scenarios.schema import MqttBusPart
from scenarios.secrecy import without_secrets
from simulators.journal import read
from tests.brokers import started
from tests.running import do
from tests.soak.broker import GuardedBroker

SECRET = "Xk7-not-to-be-seen"
QUICK = ("steps=3", "expect=[]")


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[GuardedBroker]:
    """The shipped broker, which asks for certificates."""
    make(tmp_path / "certs", clients={"pv24": "device", "bat13": "device", "dso": "process"})
    async with started(GuardedBroker(tmp_path / "certs")) as own:
        yield own


def bus(broker: GuardedBroker, client: str = "controller", **others: Path) -> tuple[str, ...]:
    """The changes of a scenario that is to use this broker."""
    folder = broker.certificates
    files = {"ca_file": "ca.crt", "cert_file": f"{client}.crt", "key_file": f"{client}.key"}
    paths = {option: folder / name for option, name in files.items()} | others
    given = [f"bus.{option}={path}" for option, path in paths.items()]
    return ("bus.kind=mqtt", f"bus.url={broker.url}", *given)


# The run over TLS


async def test_a_run_reaches_its_devices_over_tls(broker: GuardedBroker, tmp_path: Path) -> None:
    async with broker.client("observer", "gridpace/v1/#") as listener, broker.client("pv24", "#") as device:
        result = await do("ieee33-quick", tmp_path / "runs", *QUICK, bus=bus(broker))
        assert result.exit is Exit.HELD, result.why
        told = {m.topic.removeprefix(f"gridpace/v1/{result.directory.name}/") for m in listener.received()}
        assert {"ctl/state", "ieee33-quick/pv24/setpoint", "ieee33-quick/bat13/setpoint"} <= told
        own = {m.topic.removeprefix(f"gridpace/v1/{result.directory.name}/") for m in device.received()}
        assert own == {"ctl/state", "ieee33-quick/pv24/setpoint"}


async def test_a_process_shows_a_certificate_of_its_own(broker: GuardedBroker, tmp_path: Path) -> None:
    result = await do(
        "ieee33-quick", tmp_path / "runs", *QUICK, "controllers.dso.process=own", bus=bus(broker, "{client}")
    )
    assert result.exit is Exit.HELD, result.why
    assert {row["origin"] for row in read(result.directory, "steps").to_pylist()} == {"optimal"}


FORGED_SETPOINT = (
    '{"schema":"gridpace.setpoint.v1","run":"%s","area":"ieee33-quick","der":"bat13","sign":"injection_positive",'
    '"epoch":9,"seq":9,"issued":"2026-06-21T11:00:00Z","valid_from":"2026-06-21T11:00:00Z",'
    '"valid_until":"2027-06-21T11:00:00Z","ttl_ms":900000,"region":null,"setpoint":{"p_mw":9.0,"q_mvar":null},'
    '"fallback":{"axes":["p_mw"],"A":[[1.0]],"b":[9.0]}}'
)
FORGED = {
    "ack": '{"epoch":1,"seq":1,"state":"refused","time":"2026-06-21T11:00:00Z","reason":"forged"}',
    "meas": '{"time":"2026-06-21T11:00:00Z","p_mw":9.0,"q_mvar":0.0}',
    "state": '{"state":"fallback","time":"2026-06-21T11:00:00Z"}',
}


def publish(broker: GuardedBroker, client: str, topic: str, payload: str) -> None:
    """As anybody would, with Debian's client and a certificate."""
    folder = broker.certificates
    subprocess.run(
        [
            *("mosquitto_pub", "-h", "127.0.0.1", "-p", str(broker.port), "-V", "5", "-q", "1", "-r"),
            *("--cafile", str(folder / "ca.crt"), "--cert", str(folder / f"{client}.crt")),
            *("--key", str(folder / f"{client}.key"), "-t", topic, "-m", payload),
        ],
        check=False,  # what the broker answers is not asked here, but what arrives
        capture_output=True,
        timeout=30,
    )


async def attacked(
    broker: GuardedBroker, runs: Path, client: str | None
) -> tuple[list[tuple[str, int, str]], set[bytes]]:
    """What a run records of bat13's answers, and what bat13 was told, while somebody speaks in its name."""

    def forge(step: int) -> None:
        (run,) = os.listdir(runs)
        topic = f"gridpace/v1/{run}/ieee33-quick/bat13"
        if client is not None and step == 0:
            for what, payload in FORGED.items():
                publish(broker, client, f"{topic}/{what}", payload)
            publish(broker, client, f"{topic}/setpoint", FORGED_SETPOINT % run)

    async with broker.client("bat13", "gridpace/v1/+/+/bat13/setpoint") as device:
        result = await do("ieee33-quick", runs, *QUICK, bus=bus(broker), on_step=forge)
        assert result.exit is Exit.HELD, result.why
        told = {message.payload for message in device.received()}
    rows = read(result.directory, "setpoints").to_pylist()
    return [(row["device"], row["seq"], row["outcome"]) for row in rows], told


async def test_a_forged_setpoint_or_answer_changes_nothing(broker: GuardedBroker, tmp_path: Path) -> None:
    quiet, _ = await attacked(broker, tmp_path / "quiet", None)
    rows, told = await attacked(broker, tmp_path / "attacked", "pv24")
    assert rows == quiet
    assert told
    assert not [payload for payload in told if b'"epoch":9' in payload]
    own, _ = await attacked(broker, tmp_path / "itself", "bat13")
    assert ("bat13", 1, "refused") in own  # it is the certificate that makes the difference


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ({"ca_file": "other/ca.crt"}, "certificate verify failed.*Give the certificate authority"),
        (
            {"cert_file": "other/controller.crt", "key_file": "other/controller.key"},
            "the broker refuses our certificate: unknown ca.*Give a certificate",
        ),
        ({"key_file": "certs/gone.key"}, r"key_file .*gone\.key cannot be read: No such file"),
        ({"key_file": "certs/pv24.key"}, "key_file .*pv24.key.*mismatch.*belong together"),
        ({"cert_file": "certs/ca.key"}, "cert_file .*ca.key with key_file"),
    ],
)
async def test_wrong_certificates_are_named(
    broker: GuardedBroker, tmp_path: Path, others: dict[str, str], said: str
) -> None:
    make(tmp_path / "other", clients={})
    changes = bus(broker, **{option: tmp_path / name for option, name in others.items()})
    with pytest.raises(BusUnreachable, match=f"(?s){said}"):
        await do("ieee33-quick", tmp_path / "runs", *QUICK, bus=changes)
    assert list((tmp_path / "runs").iterdir()) == []


async def test_no_certificate_is_no_way_in(broker: GuardedBroker, tmp_path: Path) -> None:
    only = ("bus.kind=mqtt", f"bus.url={broker.url}", f"bus.ca_file={broker.certificates / 'ca.crt'}")
    with pytest.raises(BusUnreachable, match="refuses our certificate: certificate required"):
        await do("ieee33-quick", tmp_path / "runs", *QUICK, bus=only)


# Secrets


def gridpace(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, with the secret in its environment."""
    return subprocess.run(
        [sys.executable, "-c", "from scenarios.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "GRIDPACE_MQTT_USERNAME": "somebody",
            "GRIDPACE_MQTT_PASSWORD": SECRET,
            **environment,
        },
    )


def everything(folder: Path) -> str:
    """All that a folder holds, tables decoded."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found.append(path.name)
            if path.suffix == ".parquet":
                found.append(str(pq.read_table(path).to_pylist()))
            else:
                found.append(path.read_bytes().decode(errors="replace"))
    return "\n".join(found)


async def test_a_password_of_the_environment_is_shown_nowhere(broker: GuardedBroker, tmp_path: Path) -> None:
    sets = [
        x
        for change in (*bus(broker, "{client}"), *QUICK, "controllers.dso.process=own")
        for x in ("--set", change)
    ]
    done = await asyncio.to_thread(gridpace, "run", "ieee33-quick", "--out", str(tmp_path / "runs"), *sets)
    assert done.returncode == 0, done.stderr
    assert SECRET not in done.stdout + done.stderr
    written = everything(tmp_path / "runs")
    assert "manifest.json" in written
    assert "setpoints.parquet" in written
    assert SECRET not in written
    assert "somebody" not in written
    (run,) = (tmp_path / "runs").iterdir()
    shown = await asyncio.to_thread(gridpace, "report", str(run), "--json")
    assert SECRET not in shown.stdout + shown.stderr


@pytest.mark.parametrize(
    "changes",
    [("bus.url=mqtt://127.0.0.1:1",), ("bus.url=x",)],
)
def test_a_password_of_the_environment_is_in_no_error(tmp_path: Path, changes: tuple[str, ...]) -> None:
    sets = [x for change in ("bus.kind=mqtt", *changes) for x in ("--set", change)]
    done = gridpace("run", "ieee33-quick", "--out", str(tmp_path), *sets, PYTHONASYNCIODEBUG="1")
    assert done.returncode == 2, done.stderr
    assert done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("changes", "path", "advice"),
    [
        (["bus.password=#"], "bus.password", "GRIDPACE_MQTT_PASSWORD"),
        (["bus.passwd=#"], "bus.passwd", "environment"),
        (["bus.Password=#"], "bus.Password", "environment"),
        (["bus.api_token=#"], "bus.api_token", "environment"),
        (["bus.password=12345678"], "bus.password", "environment"),
        (["bus.url=mqtts://somebody:#@host"], "bus.url", "environment"),
        (["bus.url=mqtts://somebody:a/#/b@host"], "bus.url", "environment"),
        (["bus.key_file='-----BEGIN PRIVATE KEY----- #'"], "bus.key_file", "give the file's name"),
        (["controllers.dso.options.secret=#"], "controllers.dso.options.secret", "environment"),
        (["bus.kind=mqtts", "bus.password=#"], "bus.password", "environment"),
    ],
)
def test_a_scenario_has_no_secrets(changes: list[str], path: str, advice: str) -> None:
    given = [change.replace("#", SECRET) for change in changes]
    with pytest.raises(ScenarioInvalid) as error:
        validate(load("ieee33-quick", ["bus.kind=mqtt", "bus.url=mqtts://host", *given]))
    (problem,) = [problem for problem in error.value.problems if problem.path == path]
    assert advice in problem.advice
    assert SECRET not in str(error.value)
    assert "12345678" not in str(error.value)


URLS = [
    f"mqtt://somebody:{SECRET}@broker.lab:1883",
    f"mqtt://{SECRET}@broker.lab",
    f"mqtts://a@b:{SECRET}?x@broker.lab:8883",
    f"mqtt://broker.lab:1883?password={SECRET}",
    f"mqtt://broker.lab:1883/#{SECRET}",
    f"somebody:{SECRET}@broker.lab",
]


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize(
    "command",
    [
        ("device", "ieee33-hil", "pv6", "--run", "r", "--url", "{}"),
        ("operate", "r", "--hold", "pv6", "--url", "{}"),
        ("check", "ieee33-hil", "--set", "bus.url={}"),
    ],
)
def test_a_url_with_a_secret_is_refused_and_not_shown(command: tuple[str, ...], url: str) -> None:
    done = CliRunner().invoke(app, [word.format(url) for word in command])
    assert done.exit_code == 2, done.output
    assert "url" in done.output
    assert SECRET not in done.output
    assert "somebody" not in done.output


def test_a_url_is_shown_as_it_is_where_it_holds_no_secret() -> None:
    assert shown("mqtts://broker.lab:8883") == "mqtts://broker.lab:8883"
    assert [shown(url).partition("broker.lab")[::2] for url in URLS] == [
        ("mqtt://***@", ":1883"), ("mqtt://***@", ""), ("mqtts://***@", ":8883"), ("mqtt://", ":1883?***"),
        ("mqtt://", ":1883/#***"), ("***@", ""),
    ]  # fmt: skip


def test_a_bus_or_a_change_that_fails_shows_no_url_with_a_secret() -> None:
    with pytest.raises(ValueError, match=r"mqtt://broker\.lab:1883\?\*\*\*' is no address"):
        MqttBus(URLS[3], client_id="x")
    assert SECRET not in str(BusUnreachable(URLS[0], "refused", "Start it."))
    with pytest.raises(ScenarioUnreadable, match="has no 'b'") as error:
        load("ieee33-quick", [f"name.b={URLS[0]}"])
    assert SECRET not in str(error.value)


def test_what_only_sounds_like_a_secret_is_left_alone() -> None:
    plain = {
        "key_file": "a.key",
        "password_env": "X",
        "secretary": "y",
        "tokens": 3,
        "password": "",
        "token": None,
    }
    assert without_secrets(plain) == plain
    draft = load(
        "ieee33-quick", ["bus.kind=mqtt", "bus.url=mqtts://host", "description=the password is secret"]
    )
    assert validate(draft).description == "the password is secret"


def test_an_encrypted_key_asks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, clients={})
    key = serialization.load_pem_private_key((tmp_path / "controller.key").read_bytes(), None)
    (tmp_path / "controller.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(SECRET.encode()),
        )
    )
    part = MqttBusPart(
        kind="mqtt",
        url="mqtts://localhost",
        ca_file=Path("ca.crt"),
        cert_file=Path("controller.crt"),
        key_file=Path("{client}.key"),
    )

    def made() -> MqttBus:
        return connect(part, folder=tmp_path, client_id="x", patient=False)

    with pytest.raises(BusUnreachable, match="GRIDPACE_MQTT_KEY_PASSWORD"):
        made()
    monkeypatch.setenv("GRIDPACE_MQTT_KEY_PASSWORD", SECRET)
    assert SECRET not in f"{made()!r} {vars(made())}"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["bus.url=mqtt://h", "bus.ca_file=x"], "ca_file, but its url is not encrypted"),
        (["bus.url=mqtts://h", "bus.cert_file=x"], "cert_file and key_file together"),
        (["bus.url=mqtts://h", "bus.key_file=x"], "cert_file and key_file together"),
    ],
)
def test_half_a_certificate_is_refused(changes: list[str], said: str) -> None:
    with pytest.raises(ScenarioInvalid, match=said):
        validate(load("ieee33-quick", ["bus.kind=mqtt", *changes]))


@pytest.mark.parametrize(
    ("url", "warned"),
    [
        ("mqtt://127.0.0.1:1883", False),
        ("mqtt://localhost", False),
        ("mqtt://[::1]:1883", False),
        ("mqtts://broker.lab", False),
        ("mqtt://broker.lab", True),
        ("mqtt://10.0.0.5:1883", True),
        ("mqtt://localhost.example.com", True),
    ],
)
def test_a_broker_beyond_loopback_without_encryption_is_warned_of(url: str, warned: bool) -> None:
    assert (exposed(url) is not None) is warned
