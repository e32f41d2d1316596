"""Writes docs/asyncapi.yaml, the AsyncAPI 3 document of the bus, from the structs that read it.

python docs/make_asyncapi.py            # from the checkout's root; a test holds the file to it
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
import yaml

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from bridges import answers, area, asking, batch, conversation, operator, parcel, wire  # noqa: E402

ROOT = wire.ROOT
DESCRIPTION = (
    "What a run of gridpace says and hears over MQTT, seen from the run: it sends instructions to devices "
    "and hears their answers. A device does the opposite. docs/wire.md has the rules of acceptance, which no "
    "schema can say. Powers are injections, positive into the grid, in MW and Mvar."
)

PARAMETERS = {
    "run": "name of the run",
    "area": "name of the scenario",
    "der": "name of the device",
    "gateway": "name of something through which many devices are reached",
    "microgrid": "name of the microgrid",
    "process": "name of a process of controllers",
    "part": "number of the part, from 0",
}


@dataclass(frozen=True)
class Channel:
    """A kind of topic."""

    name: str
    address: str
    """below `gridpace/v1`"""
    says: tuple[Any, ...]
    """what a payload may be"""
    retain: bool
    sends: bool
    """whether the run is who speaks; else it listens"""
    summary: str


@dataclass(frozen=True)
class Part:
    """A part of a long message: a line with a header, then a piece of what it says."""

    says: type[msgspec.Struct]


CHANNELS = (
    Channel(
        "setpoint",
        "{run}/{area}/{der}/setpoint",
        (wire.SetpointMessage,),
        True,
        True,
        "What one device is told. The broker lets it expire with its time to live.",
    ),
    Channel("ack", "{run}/{area}/{der}/ack", (wire.Ack, list[wire.Ack]), False, False, "A device's answers."),
    Channel("meas", "{run}/{area}/{der}/meas", (wire.Meas,), False, False, "What a device measures."),
    Channel(
        "state", "{run}/{area}/{der}/state", (wire.State,), True, False, "How a device is; its last will too."
    ),
    Channel(
        "batch",
        "{run}/{area}/{gateway}/batch/{part}",
        (batch.Batch,),
        True,
        True,
        "What the devices behind a gateway are told.",
    ),
    Channel(
        "batchAck",
        "{run}/{area}/{gateway}/batch-ack",
        (answers.BatchAck,),
        False,
        False,
        "The answers of a gateway's devices.",
    ),
    Channel(
        "batchMeas",
        "{run}/{area}/{gateway}/batch-meas",
        (batch.BatchMeas,),
        False,
        False,
        "What a gateway's devices measure.",
    ),
    Channel(
        "control",
        "{run}/ctl/state",
        (wire.Heartbeat, wire.Offline),
        True,
        True,
        "The run's heartbeat, and its last will.",
    ),
    Channel(
        "operator",
        "{run}/ctl/operator",
        (operator.OperatorMessage,),
        False,
        False,
        "Which devices an operator takes from the run, or gives back.",
    ),
    *(
        Channel(
            str(kind),
            f"{{run}}/area/{{microgrid}}/{kind}",
            (area.AreaMessage,),
            True,
            True,
            f"What is said about a microgrid ({kind.upper()}). Without a byte it is withdrawn.",
        )
        for kind in area.AREA_KINDS
    ),
    Channel(
        "ask",
        "{run}/ctl/{process}/ask/{part}",
        (Part(conversation.Ask),),
        False,
        True,
        "What a controller in a process of its own is asked.",
    ),
    Channel(
        "answer",
        "{run}/ctl/{process}/answer/{part}",
        (Part(conversation.Answer),),
        False,
        False,
        "What it answers.",
    ),
    Channel(
        "presence",
        "{run}/ctl/{process}/state",
        (asking.Presence,),
        True,
        False,
        "Whether a process answers; its last will too.",
    ),
)


def document() -> dict[str, Any]:
    """The whole document."""
    schemas, messages = _schemas()
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "gridpace",
            "version": "1",
            "description": DESCRIPTION,
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "broker": {
                "host": "broker.lab:8883",
                "protocol": "secure-mqtt",
                "protocolVersion": "5.0",
                "description": "TLS 1.2 or newer; a client certificate's common name says what it may do",
                "security": [{"type": "X509"}],
                "bindings": {
                    "mqtt": {
                        "cleanSession": True,
                        "lastWill": {"topic": f"{ROOT}/{{run}}/ctl/state", "qos": 1, "retain": True},
                        "maximumPacketSize": 65_536,
                        "bindingVersion": "0.2.0",
                    }
                },
            }
        },
        "channels": {channel.name: _channel(channel, messages) for channel in CHANNELS},
        "operations": {
            f"{'send' if channel.sends else 'receive'}{channel.name[0].upper()}{channel.name[1:]}": {
                "action": "send" if channel.sends else "receive",
                "channel": {"$ref": f"#/channels/{channel.name}"},
                "summary": channel.summary,
                "bindings": {"mqtt": {"qos": 1, "retain": channel.retain, "bindingVersion": "0.2.0"}},
            }
            for channel in CHANNELS
        },
        "components": {
            "messages": messages,
            "schemas": schemas,
        },
    }


def _channel(channel: Channel, messages: Mapping[str, Any]) -> dict[str, Any]:
    names = [_name(said) for said in channel.says]
    assert set(names) <= messages.keys()
    return {
        "address": f"{ROOT}/{channel.address}",
        "summary": channel.summary,
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in names},
        "parameters": {
            name: {"description": words}
            for name, words in PARAMETERS.items()
            if f"{{{name}}}" in channel.address
        },
    }


def _name(said: Any) -> str:
    if isinstance(said, Part):
        return f"{said.says.__name__}Part"
    return f"{said.__args__[0].__name__}List" if hasattr(said, "__args__") else str(said.__name__)


def _schemas() -> tuple[dict[str, Any], dict[str, Any]]:
    """Schemas by name, and messages by name."""
    says = list(dict.fromkeys(said for channel in CHANNELS for said in channel.says))
    types = [said.says if isinstance(said, Part) else said for said in says]
    found, schemas = msgspec.json.schema_components(
        [*types, parcel.Header], ref_template="#/components/schemas/{name}"
    )
    classes = _structs(bridges=(wire, batch, answers, area, asking, operator, parcel, conversation))
    for name, schema in schemas.items():
        if name in classes:
            _describe(schema, classes[name])
    messages = {}
    for said, schema in zip(says, found, strict=False):
        message: dict[str, Any] = {"payload": schema}
        if isinstance(said, Part):
            inner = said.says.__name__
            message = {
                "contentType": "application/octet-stream",
                "description": f"A line of JSON, a `Header` of at most {parcel.HEADER_BYTES} bytes, then at "
                f"most {parcel.PART_BYTES} bytes: a piece of an `{inner}` as JSON.",
                "payload": {"type": "string", "format": "binary"},
            }
        messages[_name(said)] = {"name": _name(said), **message}
    return dict(sorted(schemas.items())), messages


def _structs(bridges: tuple[Any, ...]) -> dict[str, type[msgspec.Struct]]:
    return {
        name: value
        for module in bridges
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, msgspec.Struct)
    }


def _describe(schema: dict[str, Any], struct: type[msgspec.Struct]) -> None:
    """Add what the code says of each field."""
    said, hints = _field_words(struct), get_type_hints(struct)
    fields = struct.__struct_fields__
    properties = schema.get("properties", {})
    places = schema.get("prefixItems", [])
    if places:
        properties = dict(zip(fields, places, strict=True))
    for name, place in properties.items():
        words = {"title": name} if places else {}
        if name in said:
            words["description"] = said[name]
        if datetime in (hints.get(name), *get_args(hints.get(name))):
            for text in (place, *place.get("anyOf", ())):
                if text.get("type") == "string":
                    text["format"] = "date-time"
        if "$ref" not in place:  # beside a reference nothing else counts
            place.update(words)


def _field_words(struct: type[msgspec.Struct]) -> dict[str, str]:
    """The texts below the fields of a class."""
    body = ast.parse(textwrap.dedent(inspect.getsource(struct))).body[0]
    assert isinstance(body, ast.ClassDef)
    words = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
        ):
            words[field.target.id] = " ".join(str(below.value.value).split())
    return words


class _Dumper(yaml.SafeDumper):
    """YAML without anchors, which some readers do not know."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def page() -> str:
    """The document as YAML."""
    text: str = yaml.dump(document(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return text


if __name__ == "__main__":
    (HERE / "asyncapi.yaml").write_text(page(), "utf-8")
