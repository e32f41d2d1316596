"""Metrics: a real run is asked over HTTP; what is counted, and who may ask."""

from __future__ import annotations

import re
import socket
import urllib.request
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from typer.main import get_command

from scenarios.check import validate
from scenarios.cli import app
from scenarios.load import load
from scenarios.metrics import Metrics, NoMetrics, address, served
from scenarios.run import Exit, run
from simulators.clock import Duty, Tick
from simulators.devices import DeviceReport, Obedience
from simulators.grid import Measured
from simulators.outbox import Published
from simulators.recorder import Progress
from simulators.tables import Outcome
from tests.running import Silent
from tests.test_docker import METRICS

NOON = datetime(2026, 6, 21, 12, tzinfo=UTC)


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Value by name and labels."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return found


def fetched(line: str) -> str:
    """What Prometheus would get from the place that a run has said."""
    with urllib.request.urlopen(line.removeprefix("metrics: "), timeout=5) as answer:
        text: str = answer.read().decode()
        return text


async def test_a_run_is_asked_while_it_goes_on(tmp_path: Path) -> None:
    seen: list[str] = []

    def ask(step: int) -> None:
        if step in (3, 11):
            (line,) = [line for line in watcher.said if line.startswith("metrics: ")]
            seen.append(fetched(line))

    watcher = Silent(ask)
    draft = load("ieee33-quick", ["bus.kind=memory", "expect=[]"])
    scenario = validate(draft)
    with served(("127.0.0.1", 0), watcher, scenario.grid.limits.v_pu, broker=False) as observer:
        result = await run(draft, scenario, root=tmp_path, observer=observer)
    assert result.exit is Exit.HELD
    said = {name for name in re.findall(r"(?m)^(gridpace_\w+)", seen[1]) if not name.endswith("_created")}
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in said} == METRICS - {
        "gridpace_setpoints_rejected_total",  # nobody has refused anything, for whatever reason
        "gridpace_mqtt_connected",  # there is no broker
        "gridpace_interchange_correction_kw",  # nor a microgrid
    }
    early, late = samples(seen[0]), samples(seen[1])
    assert early["gridpace_setpoints_sent_total", ()] < late["gridpace_setpoints_sent_total", ()]
    assert early["gridpace_solver_status_total", (("status", "optimal"),)] == 4
    assert late["gridpace_solver_status_total", (("status", "optimal"),)] == 12
    assert late["gridpace_step_seconds_count", (("phase", "solve"),)] == 12
    devices = {labels: value for (name, labels), value in late.items() if name == "gridpace_devices"}
    assert sum(devices.values()) == len(scenario.devices)
    every = " ".join(str(labels) for _, labels in late)
    assert not [part.name for part in scenario.devices if part.name in every]
    (line,) = [line for line in watcher.said if line.startswith("metrics: ")]
    with pytest.raises(OSError, match="refused"):  # the run is over
        fetched(line)


def test_what_a_step_counts() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry, (0.95, 1.05))
    tick = Tick(0, NOON, Duty.HOLD, NOON, NOON, 40.0, missed=True)
    rows = [
        {"outcome": Outcome.EXPIRED, "reason": None},
        {"outcome": Outcome.REFUSED, "reason": "capability: too much"},
        {"outcome": Outcome.APPLIED, "reason": None},
    ]
    progress = Progress(
        step=0,
        tick=tick,
        turns=(SimpleNamespace(origin="held", solve_ms=None, decision=None),),  # type: ignore[arg-type]
        measured=Measured(v_pu={"1": 0.94, "2": 1.0, "3": 1.051}, power_flow_ms=2.0),
        reports=(DeviceReport("a", 0.0, 0.0, None, None, None, Obedience.FAILSAFE),),
        published=Published(3.0),
        setpoints=rows,  # type: ignore[arg-type]
        acks_s=[0.03],
    )
    bus = Counter(disconnects=1, reconnects=0, conflated=4)
    metrics.take(progress, bus)
    found = samples(generate_latest(registry).decode())
    expected = {
        ("gridpace_deadline_miss_total", ()): 1,
        ("gridpace_step_lateness_seconds_sum", ()): 0.04,
        ("gridpace_setpoints_expired_total", ()): 1,
        ("gridpace_setpoints_rejected_total", (("reason", "capability"),)): 1,
        ("gridpace_setpoint_ack_seconds_sum", ()): 0.03,
        ("gridpace_voltage_violation_total", ()): 2,
        ("gridpace_devices", (("state", "failsafe"),)): 1,
        ("gridpace_mqtt_connected", ()): 0,
        ("gridpace_setpoints_conflated_total", ()): 4,
    }
    assert {key: found[key] for key in expected} == expected
    assert ("gridpace_step_seconds_count", (("phase", "solve"),)) not in found  # nobody was asked
    metrics.take(progress, bus + Counter(reconnects=1, conflated=1))
    found = samples(generate_latest(registry).decode())
    assert found["gridpace_setpoints_conflated_total", ()] == 5
    assert found["gridpace_mqtt_connected", ()] == 1
    assert found["gridpace_reconnects_total", ()] == 1


def test_the_correction_of_interchanges_is_what_was_offered_and_not_granted() -> None:
    from controllers.contract import Decision, Kind, Origin
    from controllers.region import Region
    from simulators.controller import Turn

    registry = CollectorRegistry()
    metrics = Metrics(registry, (0.95, 1.05))

    def turn(kind: Kind, low: float, high: float) -> Turn:
        region = Region.box(p_mw=(low, high), q_mvar=(0.0, 0.0))
        decision = Decision(time=NOON, origin=Origin.OPTIMAL, kind=kind, regions={"mg1": region})
        return Turn("c", Origin.OPTIMAL, 1.0, decision, NOON, NOON + timedelta(minutes=5))

    metrics.take(Progress(turns=(turn(Kind.PIC, -1.0, 1.0),)), Counter())
    found = samples(generate_latest(registry).decode())
    assert ("gridpace_interchange_correction_kw", ()) not in found
    progress = Progress(turns=(turn(Kind.PIC, -1.0, 1.0), turn(Kind.AIC, -1.0, 0.6)))
    for _ in range(2):
        metrics.take(progress, Counter())
        found = samples(generate_latest(registry).decode())
        assert found["gridpace_interchange_correction_kw", ()] == pytest.approx(400.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0.0.0.0:9464", "others could read it"),
        ("192.0.2.7:9464", "others could read it"),
        ("[::]:9464", "others could read it"),
        ("127.0.0.1", "is no address"),
        ("127.0.0.1:99999", "is no address"),
        ("example.org:9464", "is no IP address"),
    ],
)
def test_others_cannot_ask(text: str, words: str) -> None:
    with pytest.raises(NoMetrics, match=words):
        address(text)


def test_addresses() -> None:
    assert address("127.0.0.1:9464") == ("127.0.0.1", 9464)
    assert address("localhost:1") == ("127.0.0.1", 1)
    assert address("[::1]:9464") == ("::1", 9464)
    assert address("0.0.0.0:9464", anywhere=True) == ("0.0.0.0", 9464)


def test_an_ipv6_address_is_said_as_a_url() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("there is no IPv6 here")
    with served(("::1", 0), watcher := Silent(), (0.95, 1.05)):
        (line,) = watcher.said
        assert line.startswith("metrics: http://[::1]:")
        assert "gridpace_setpoints_sent_total" in fetched(line)


def test_the_command_says_why_it_does_not_serve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    group: Any = get_command(app)
    arguments = ["run", "ieee33-quick", "--out", str(tmp_path), "--metrics", "0.0.0.0:9464"]
    with pytest.raises(SystemExit) as ended:
        group.main(arguments, prog_name="gridpace")
    assert ended.value.code == 2
    assert "--metrics-anywhere" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_port_that_is_taken_is_named() -> None:
    with served(("127.0.0.1", 0), watcher := Silent(), (0.95, 1.05)):
        (line,) = watcher.said
        port = int(line.removesuffix("/metrics").rpartition(":")[2])
        second = served(("127.0.0.1", port), Silent(), (0.95, 1.05))
        with pytest.raises(NoMetrics, match=rf"127.0.0.1:{port}: .*take another port"), second:
            pass
