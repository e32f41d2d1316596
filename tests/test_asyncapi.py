"""docs/asyncapi.yaml is what the code says, and what a real run and real devices say is what it allows."""

from __future__ import annotations

import asyncio
import json
import re
import runpy
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from bridges.bus import Message
from bridges.device import DeviceSide, Held
from bridges.memory import MemoryBus, MemoryHub
from bridges.mqtt import MqttBus
from bridges.parcel import Parcels, unpack
from bridges.publisher import Publisher, last_will
from controllers.register import Order, Register
from scenarios.run import Exit
from tests import hostile
from tests.json_schema import problems, resolved
from tests.running import do

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "asyncapi.yaml").read_text("utf-8")
DOCUMENT: dict[str, Any] = yaml.safe_load(PAGE)
CHANNELS: dict[str, Any] = DOCUMENT["channels"]
LEVEL = {"{area}": "(?!ctl/|area/)[^/]+"}
"""What may stand for a parameter: some words are reserved."""
ADDRESSES = {
    name: re.compile(re.sub(r"\{\w+\}", lambda found: LEVEL.get(found[0], "[^/]+"), channel["address"]))
    for name, channel in CHANNELS.items()
}


def test_the_document_is_made_from_the_code() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "make_asyncapi.py"))["page"]
    assert made() == PAGE, "run: python docs/make_asyncapi.py"


def references(x: Any) -> Iterator[str]:
    if isinstance(x, dict):
        yield from (value for key, value in x.items() if key == "$ref")
        for value in x.values():
            yield from references(value)
    elif isinstance(x, list):
        for value in x:
            yield from references(value)


def test_its_parts_belong_together() -> None:
    assert DOCUMENT["asyncapi"] == "3.0.0"
    named = set(references(DOCUMENT))
    for reference in named:
        assert resolved(reference, DOCUMENT) is not None
    operations = DOCUMENT["operations"].values()
    assert {operation["channel"]["$ref"] for operation in operations} == {
        f"#/channels/{name}" for name in CHANNELS
    }
    for operation in operations:
        assert operation["action"] in ("send", "receive")
        assert operation["bindings"]["mqtt"].keys() == {"qos", "retain", "bindingVersion"}
        assert operation["bindings"]["mqtt"]["bindingVersion"] == "0.2.0"
    for name in DOCUMENT["components"]["messages"]:
        assert f"#/components/messages/{name}" in named
    for channel in CHANNELS.values():
        assert set(re.findall(r"\{(\w+)\}", channel["address"])) == channel["parameters"].keys()


def test_it_has_the_topics_of_the_page_on_the_wire() -> None:
    rows = re.findall(
        r"(?m)^\| `(gridpace/v1/[^`]+)` \|[^|]*\| (yes|no) \|", (ROOT / "docs" / "wire.md").read_text()
    )
    retained = {
        CHANNELS[operation["channel"]["$ref"].rpartition("/")[2]]["address"]: operation["bindings"]["mqtt"][
            "retain"
        ]
        for operation in DOCUMENT["operations"].values()
    }
    assert retained == {address: word == "yes" for address, word in rows}


# Messages against the document


def wrong(message: Message, parcels: Parcels) -> list[str]:
    """What a message on a topic has that the document forbids."""
    (name,) = [name for name, pattern in ADDRESSES.items() if pattern.fullmatch(message.topic)]
    if name in ("ask", "answer"):
        header, piece = unpack(message.payload)
        found = list(against("Header", json.loads(message.payload.partition(b"\n")[0])))
        whole = parcels.add(header, piece)
        return found + ([] if whole is None else list(against(name.capitalize(), json.loads(whole))))
    schemas = [
        resolved(reference["$ref"], DOCUMENT)["payload"] for reference in CHANNELS[name]["messages"].values()
    ]
    value = json.loads(message.payload)
    tried = [list(problems(value, schema, DOCUMENT)) for schema in schemas]
    return [] if [] in tried else [f"{name}: {why}" for each in tried for why in each]


def against(schema: str, value: Any) -> Iterator[str]:
    yield from problems(value, {"$ref": f"#/components/schemas/{schema}"}, DOCUMENT)


def kinds(messages: list[Message]) -> set[str]:
    return {name for m in messages for name, pattern in ADDRESSES.items() if pattern.fullmatch(m.topic)}


async def test_what_a_run_says_is_what_it_allows(mqtt_url: str, tmp_path: Path) -> None:
    bus = ("bus.kind=mqtt", f"bus.url={mqtt_url}")
    async with MqttBus(mqtt_url, client_id="recorder", latch_size=100_000) as recorder:
        recorder.subscribe("gridpace/v1/#")
        recorder.publish("gridpace/v1/ready", b"")
        assert await recorder.arrived(10)
        quick = await do(
            "ieee33-quick", tmp_path, "steps=2", "controllers.dso.process=own", "expect=[]", bus=bus
        )
        grids = await do("ieee33-interchange", tmp_path, "steps=2", "expect=[]", bus=bus)
        assert (quick.exit, grids.exit) == (Exit.HELD, Exit.HELD)
        runs = (quick.directory.name, grids.directory.name)
        said: list[Message] = []
        while not any(m.topic.split("/")[2] == runs[1] and b'"offline"' in m.payload for m in said):
            assert await recorder.arrived(10)
            said += recorder.received()
    said = [m for m in said if m.payload and m.topic.split("/")[2] in runs]
    assert kinds(said) >= {"setpoint", "control", "pic", "aic", "ask", "answer", "presence"}
    parcels = Parcels()
    assert [why for message in said for why in wrong(message, parcels)] == []


class Plant:
    """A device that does what it is told to, as far as it has a target."""

    def hold(self, order: Order, mono: float, every_s: float) -> Held:
        return Held(0.1, 0.0, v_pu=1.01, e_mwh=0.4)


async def test_what_devices_say_is_what_it_allows() -> None:
    hub, now = MemoryHub(), [hostile.NOON]
    run, field, gateway, recorder = (MemoryBus(hub) for _ in range(4))
    recorder.subscribe("gridpace/v1/#")
    said: list[Message] = []
    async with recorder, run, field, gateway:
        publisher = Publisher(run, run="r", area="feeder", epoch=1)
        sides = []
        for bus, name in ((field, None), (gateway, "gw1")):
            side = DeviceSide(
                {"pv24": (Register(), Plant())},
                run="r",
                area="feeder",
                gateway=name,
                wall=lambda: now[0],
                monotonic=lambda: (now[0] - hostile.NOON).total_seconds(),
            )
            side.begin(bus)
            sides.append(side)
        publisher.send(hostile.instruction(), 900.0)
        publisher.send_batch("gw1", [(hostile.instruction(), 900.0)])
        publisher.heartbeat(1, 300.0, hostile.NOON)
        for minutes in (0, 1, 20, 21):  # applied, held, expired and in fallback
            now[0] = hostile.NOON + timedelta(minutes=minutes)
            for bus, side in zip((field, gateway), sides, strict=True):
                bus.publish("gridpace/v1/r/feeder/pv24/setpoint", b'{"epoch":1,"seq":99}')
                side.hear()
                side.tick()
                await side.drain()
            await asyncio.sleep(0)
            said += recorder.received()
        publisher.close()
        for side in sides:
            side.leave()
        said += recorder.received()
    said = [m for m in said if b'"seq":99}' not in m.payload]  # ours, which is none
    assert kinds(said) >= {"ack", "meas", "state", "batch", "batchAck", "batchMeas", "setpoint", "control"}
    words = b" ".join(m.payload for m in said).decode()
    assert all(
        f'"{word}"' in words for word in ("applied", "refused", "malformed", "expired", "fallback", "offline")
    )
    assert [why for message in said for why in wrong(message, Parcels())] == []


@pytest.mark.parametrize(
    ("kind", "topic"),
    [
        ("setpoint", "gridpace/v1/r/feeder/pv24/setpoint"),
        ("batch", "gridpace/v1/r/feeder/gw1/batch/0"),
        ("ack", "gridpace/v1/r/feeder/pv24/ack"),
        ("meas", "gridpace/v1/r/feeder/pv24/meas"),
    ],
)
def test_it_forbids_what_is_not_valid(kind: str, topic: str) -> None:
    for genuine in hostile.genuine()[kind]:
        assert wrong(Message(topic, genuine), Parcels()) == []
        for key in json.loads(genuine) if isinstance(json.loads(genuine), dict) else ():
            spoiled = json.loads(genuine) | {key: {"no": "such"}}
            assert wrong(Message(topic, json.dumps(spoiled).encode()), Parcels()), key
        assert wrong(Message(topic, b'"text"'), Parcels())
    assert wrong(last_will("r", 1), Parcels()) == []
