"""What hostile payloads, connections and names do: nothing. Short versions of `scripts/soak R9 R10`."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from bridges import wire
from bridges.area import area_topic
from bridges.asking import process_pattern, process_topic
from bridges.batch import batch_pattern, batch_topic
from bridges.broker import NoBroker
from bridges.device import DeviceSide
from bridges.instruction import to_instruction
from bridges.memory import MemoryBus
from bridges.mqtt import MqttBus
from bridges.parcel import MAX_BYTES, Parcels, pack, unpack
from bridges.parts import Parts
from bridges.publisher import Publisher, last_will
from controllers import Kind
from scenarios.certs import NoCertificates, make
from scenarios.cli import app
from scenarios.load import load
from scenarios.schema import Scenario
from tests import checker, hostile
from tests.soak import connections, packets, payloads, strangers
from tests.soak.__main__ import CLAIMS, main, soak_of, table
from tests.soak.broker import PlainBroker
from tests.soak.figure import Figure, below, counted, missed
from tests.soak.live import LISTENERS, sent_live

# R9: payloads


@pytest.mark.parametrize("kind", payloads.READERS)
def test_the_checker_and_the_reader_take_what_is_genuine(kind: str) -> None:
    for payload in hostile.genuine()[kind]:
        payloads.READERS[kind](payload)
        assert payloads.is_valid(kind, payload)


def test_50_000_payloads_crash_nothing_and_none_is_taken_that_is_not_valid() -> None:
    found = payloads.decoded(payloads.SHORT)
    print(f"{found.read:,} payloads: {found.refused:,} refused, {found.accepted:,} accepted")
    assert found.read >= 50_000
    assert found.crashed == []
    assert found.wrong == []
    assert found.refused > found.accepted > 1000  # else nothing was tried


async def test_a_live_bus_counts_each_of_them() -> None:
    try:
        exact = await sent_live(5000)
    except NoBroker as error:
        pytest.skip(str(error))
    print(f"{exact.sent:,} payloads live, {exact.counted} malformed, {exact.busy_ms:.1f} ms of a step")
    assert exact.sent > 10_000
    assert exact.counted == exact.expected
    assert all(exact.expected[who] > 500 for who in LISTENERS)
    assert exact.lost == 0
    assert exact.busy_ms < 50


def spoiled(**changes: Any) -> bytes:
    whole = json.loads(hostile.genuine()["setpoint"][0])
    return json.dumps(whole | changes).encode()


def box(*rows: list[float]) -> dict[str, Any]:
    return {"axes": ["p_mw", "q_mvar"], "A": rows, "b": [1.0] * len(rows)}


@pytest.mark.parametrize("row", [[1e200, 0.0], [0.0, 1e13], [1e-200, 0.0], [5e-324, 5e-324]])
def test_a_limit_cannot_vanish_in_its_own_length(row: list[float]) -> None:
    """Scaled to unit length, such a row would be zero, and no limit any more."""
    payload = spoiled(region=box(row))
    with pytest.raises(wire.BadMessage, match="to be scaled"):
        to_instruction(wire.decode(payload, wire.SetpointMessage))


@pytest.mark.parametrize(("row", "limit"), [([1.0, 0.0], 1e13), ([0.6, 0.8], -1e200), ([1e-9, 0.0], 1e6)])
@pytest.mark.parametrize("where", ["region", "fallback"])
def test_a_region_that_begins_beyond_all_devices_is_refused(
    where: str, row: list[float], limit: float
) -> None:
    """What is found to be the nearest point of it would be off by more than a device is large."""
    with pytest.raises(wire.BadMessage, match="beyond 1e"):
        wire.decode(spoiled(**{where: box(row) | {"b": [limit]}}), wire.SetpointMessage)


@pytest.mark.parametrize("value", [1e13, -1e300])
def test_a_measurement_that_nothing_can_be_is_refused(value: float) -> None:
    payload = json.dumps({"time": "2026-06-21T12:00:00Z", "p_mw": value, "q_mvar": 0.0}).encode()
    with pytest.raises(wire.BadMessage, match="p_mw is"):
        wire.decode(payload, wire.Meas)


def test_what_is_skipped_is_text_too() -> None:
    payload = b'{"epoch":1,"seq":1,"state":"applied","time":"2026-06-21T12:00:00Z","\xff":1}'
    with pytest.raises(wire.BadMessage, match="utf-8"):
        wire.decode(payload, wire.Ack)


async def test_what_is_too_large_is_kept_from_us_by_the_broker() -> None:
    """Even by one that takes it: we tell it when we connect, so that nothing of it has to be read."""

    class Generous(PlainBroker):
        def settings(self, directory: Path) -> str:
            return super().settings(directory).replace("max_packet_size 65536\n", "")

    try:
        async with Generous() as broker, MqttBus(broker.url, client_id="c") as bus:
            bus.subscribe("a/#")
            bus.publish("a/ready", b"")
            assert await bus.arrived(10)
            bus.received()
            said = packets.connect("attacker") + packets.publish("a/large", bytes(10**6))
            said += (
                packets.publish("a/largest", bytes(65_000))
                + packets.publish("a/small", b"x")
                + packets.PINGREQ
            )
            assert packets.PINGRESP in await strangers.tell(broker.port, None, said, packets.PINGRESP)
            sizes: dict[str, int] = {}
            while "a/small" not in sizes and await bus.arrived(10):
                sizes |= {message.topic: len(message.payload) for message in bus.received()}
            assert sizes == {"a/largest": 65_000, "a/small": 1}
            assert bus.counts["disconnects"] == 0
    except NoBroker as error:
        pytest.skip(str(error))


def test_parts_of_endless_messages_fill_no_memory() -> None:
    """Whoever knows the token may begin as many messages as he likes: a few are kept, the oldest goes."""
    parcels = Parcels()
    first = [unpack(part) for part in pack(b"x" * 200_000, token="t", number=0, within_ms=1)]
    for number in range(1, 1000):
        (header, piece), *_ = [
            unpack(p) for p in pack(bytes(MAX_BYTES // 8), token="t", number=number, within_ms=1)
        ]
        assert parcels.add(header, piece) is None
    assert len(parcels._open) <= 5
    assert [parcels.add(*part) for part in first][-1] is not None  # and the next genuine one comes through


def test_the_checker_is_no_yes_man() -> None:
    """It refuses at least what the page says in so many words."""
    for change in (
        {"schema": "gridpace.setpoint.v2"},
        {"sign": "load_positive"},
        {"der": "a/b"},
        {"area": "ctl"},
        {"unknown": 1},
        {"ttl_ms": 0},
        {"valid_from": "2026-06-21T12:00:00"},
        {"valid_from": "2026-06-21T14:00:00+02:00"},
        {"epoch": -1},
        {"seq": 2**53 + 1},
        {"fallback": None},
        {"later": json.loads(spoiled())["later"][:1]},
    ):
        assert checker.valid("setpoint", spoiled())
        assert not checker.valid("setpoint", spoiled(**change)), change


# R10: connections


@pytest.mark.parametrize("attack", [connections.guarded, connections.plain])
async def test_1_000_hostile_connections_disturb_nobody(attack: Callable[..., Any]) -> None:
    number = connections.SHORT // 2
    try:
        toll = await attack(number)
    except NoBroker as error:
        pytest.skip(str(error))
    found = connections.figures(attack.__name__, toll, number)
    print(table(found))
    assert missed(found) == []
    assert len(toll.connections) == len(connections.openings(random.Random(1))) == 25


# Names that would be more than one level of a topic, or a pattern

NAMES = [
    *(
        "",
        "+",
        "#",
        "/",
        "a/b",
        "a+",
        "#a",
        "a#b",
        "+/+",
        "../a",
        "a\0",
        "\0",
        "a b",
        " a",
        "a\n",
        "\n",
        "a\t",
    ),
    *(
        "é",
        "ａ",
        "a\u202e",
        "\ufeffa",
        "a\u0301",
        "$SYS/a",
        "%u",
        "a'b",
        'a"b',
        "a;b",
        "a\\b",
        "*",
        "x" * 65,
        "x" * 10_000,
    ),
]


def side(run: str = "r", area: str = "a", gateway: str | None = None, der: str = "d") -> DeviceSide:
    nobody: Any = None
    return DeviceSide(
        {der: (nobody, nobody)}, run=run, area=area, gateway=gateway, wall=nobody, monotonic=lambda: 0.0
    )


def publisher(run: str, area: str) -> Publisher:
    return Publisher(MemoryBus(), run=run, area=area, epoch=1)


WIRE: dict[str, Callable[[str], object]] = {
    "check_name": lambda name: wire.check_name("x", name),
    "device_topic run": lambda name: wire.device_topic(name, "a", "d", "ack"),
    "device_topic area": lambda name: wire.device_topic("r", name, "d", "ack"),
    "device_topic der": lambda name: wire.device_topic("r", "a", name, "ack"),
    "device_pattern": lambda name: wire.device_pattern(name, "ack"),
    "control_topic": wire.control_topic,
    "last_will": lambda name: last_will(name, 1),
    "batch_topic": lambda name: batch_topic("r", "a", name, 0),
    "batch_pattern": lambda name: batch_pattern("r", "a", name),
    "process_topic": lambda name: process_topic("r", name, "state"),
    "process_pattern": lambda name: process_pattern(name, "state"),
    "area_topic": lambda name: area_topic("r", name, Kind.AIC),
    "parse_topic": lambda name: wire.parse_topic(f"gridpace/v1/r/a/{name}/ack"),
    "publisher run": lambda name: publisher(name, "a"),
    "publisher area": lambda name: publisher("r", name),
    "gateway": lambda name: Parts(run="r", area="a", gateway=name, epoch=1),
    "side run": lambda name: side(run=name),
    "side area": lambda name: side(area=name),
    "side gateway": lambda name: side(gateway=name) if name else side(run=""),
    "side device": lambda name: side(der=name),
    "setpoint": lambda name: wire.decode(spoiled(der=name), wire.SetpointMessage),
}
"""Where a name enters the wire."""


def _given(path: str, name: str) -> object:
    raw: Any = copy.deepcopy(load("ieee33-quick").raw)
    raw["microgrids"] = [{"name": "mg1", "bus": 5, "devices": []}]
    *way, last = path.split(".")
    place = raw
    for key in way:
        place = place[int(key) if key.isdecimal() else key]
    place[last] = name
    try:
        return Scenario.model_validate(raw)
    except ValidationError as error:
        if any(".".join(map(str, e["loc"])).replace("pv-inverter.", "") == path for e in error.errors()):
            raise wire.BadMessage(path) from None
        return None  # something else is wrong with it, not this name


FILE = ["name", "devices.0.name", "controllers.0.name", "controllers.0.process", "microgrids.0.name"]
"""Where a name enters by the scenario."""


def takes(use: Callable[[str], object], name: str) -> bool:
    try:
        use(name)
    except wire.BadMessage:
        return False
    return True


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:20])
def test_no_name_gets_into_a_topic_that_is_none(name: str, tmp_path: Any) -> None:
    assert [where for where, use in WIRE.items() if takes(use, name)] == []
    assert [path for path in FILE if takes(lambda given: _given(path, given), name)] == []  # noqa: B023
    with pytest.raises(NoCertificates):
        make(tmp_path / "certs", clients={name: "device"})
    assert not (tmp_path / "certs").exists()


def test_a_name_that_is_one_is_taken_everywhere(tmp_path: Any) -> None:
    for use in WIRE.values():
        use("pv-24_b.1")
    make(tmp_path, clients={"pv-24_b.1": "device"})


@pytest.mark.parametrize("option", ["--run", "--gateway", "NAME"])
def test_the_command_takes_none_of_them(option: str) -> None:
    name = "a/+"
    given = {"--run": "r", "--gateway": "g"} | ({option: name} if option != "NAME" else {})
    which = name if option == "NAME" else "pv24"
    arguments = [word for pair in given.items() for word in pair]
    done = CliRunner().invoke(
        app, ["device", "ieee33-quick", which, "--url", "mqtt://127.0.0.1:1", *arguments]
    )
    assert done.exit_code == 2, done.output
    assert name in done.stderr


# The soak itself


def test_each_claim_has_something_that_measures_it() -> None:
    for claim in CLAIMS:
        assert callable(soak_of(claim))


def test_a_claim_that_is_not_known_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["R0"]) == 2
    assert "R0: no such claim; there are R" in capsys.readouterr().err


def test_the_table_says_what_was_not_held() -> None:
    lines = table(
        [counted("R1", "lost", 0, 3), below("R2", "trip", 10.0, 29.0), below("R2", "trip", 10.0, 31.0)]
    ).splitlines()
    assert [line.split()[-1] for line in lines] == ["held", "NO", "yes", "NO"]
    assert len({len(line.rstrip()) for line in lines[1:]}) <= 2


def test_one_figure_that_is_not_held_fails_the_soak(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def measured(claim: str, short: bool) -> list[Figure]:
        return [counted(claim, "short", 1, int(short))]

    monkeypatch.setattr("tests.soak.__main__._measured", measured)
    assert main(["R9", "--short"]) == 0
    assert main(["R9"]) == 1
    assert "NO" in capsys.readouterr().out
