"""Writes docs/scenario.md, the reference of the scenario file, from the schema that checks the files.

python docs/make_scenario.py            # from the checkout's root; a test holds the file to it
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from scenarios.schema import Scenario  # noqa: E402
from simulators.daily import DailyProfile  # noqa: E402
from simulators.demand import LoadProfile  # noqa: E402
from simulators.measured import TableProfile  # noqa: E402
from simulators.sun import PvProfile  # noqa: E402
from simulators.wind import WindProfile  # noqa: E402

Schema = Mapping[str, Any]

INTRODUCTION = """\
# The scenario file

One YAML file says everything about a run. This page is made by `docs/make_scenario.py` from the schema that
checks the files; `gridpace schema` prints the same as JSON Schema, from which editors complete.

- A key that is not known is refused. `gridpace check FILE` lists all mistakes at once, each with its line,
  its value and what to do, and ends with exit status 2.
- Powers are injections in MW: positive into the grid. A load's rating and a battery's rating are magnitudes.
- A length of time is a number and a unit: `100ms`, `30s`, `5min`, `1h30min`. An instant has a time zone:
  `2026-06-21T00:00:00Z`. Times of the day are quoted: `"07:30"`.
- Files (`grid.network`, a profile's `file`, a controller's `uses`) are looked for beside the scenario.
- `extends: OTHER` starts from another scenario, a file or the name of a packaged one. Maps are merged, lists
  whose items have names (devices, controllers) are merged by name, everything else is replaced.
- `--set a.b.c=value` changes one value for one run; items of lists go by name or position:
  `--set devices.pv6.s_mva=2 --set expect.0.share=0.9`.
- Naming a Python file or a module in a scenario runs its code: treat scenarios of others as programs.

A column "default" with `required` means that the key must be given; `-` means that leaving it out has the
meaning which is said beside it.
"""

PARTS = (
    ("ClockPart", "`clock`"),
    ("GridPart", "`grid`"),
    ("LimitsPart", "`grid.limits`"),
    ("Edit", "`grid.edits`, a list"),
    ("CurtailablePart", "`grid.curtailable`"),
    ("ForecastPart", "`forecast`"),
    ("PvProfile", "`profiles`, kind `pv`"),
    ("WindProfile", "`profiles`, kind `wind`"),
    ("LoadProfile", "`profiles`, kind `load`"),
    ("DailyProfile", "`profiles`, kind `daily`"),
    ("TableProfile", "`profiles`, kind `table`"),
    ("PvPart", "`devices`, kind `pv-inverter`"),
    ("WindPart", "`devices`, kind `wind-turbine`"),
    ("BatteryPart", "`devices`, kind `battery`"),
    ("LoadPart", "`devices`, kind `flexible-load`"),
    ("GeneratorPart", "`devices`, kinds `diesel` and `micro-turbine`"),
    ("SvcPart", "`devices`, kind `svc`"),
    ("Box", "`default` of a device"),
    ("ViaPart", "`via` of a device"),
    ("MqttWay", "`via.mqtt` of a device"),
    ("SunspecWay", "`via.sunspec` of a device"),
    ("TapChangerPart", "`regulators`, kind `tap-changer`"),
    ("CapacitorBankPart", "`regulators`, kind `capacitor-bank`"),
    ("MicrogridPart", "`microgrids`, a list"),
    ("HeatPart", "`heat` of a microgrid"),
    ("FleetPart", "`fleets`, a list"),
    ("EveryBus", "`fleets.buses`, every N-th"),
    ("ControllerPart", "`controllers`, a list"),
    ("CertifiedPart", "`certified` of a controller"),
    ("RollingPart", "`rolling` of a controller"),
    ("ConversationPart", "`conversation` of a controller"),
    ("MemoryBusPart", "`bus`, kind `memory`"),
    ("EmbeddedBusPart", "`bus`, kind `embedded`"),
    ("MqttBusPart", "`bus`, kind `mqtt`"),
    ("RecordPart", "`record`"),
    ("MessagesHit", "`faults`, `what: loss` and `duplication`"),
    ("MessagesLate", "`faults`, `what: delay` and `reordering`"),
    ("LinkCut", "`faults`, `what: black-hole`, `broker-down` and `broker-frozen`"),
    ("LinkSlow", "`faults`, `what: slow-link`"),
    ("DeviceFault", "`faults`, `what: device-silent` and `device-disobeys`"),
    ("MeterFault", "`faults`, `what: meter-stuck` and `measurement-missing`"),
    ("MeterBiased", "`faults`, `what: meter-biased`"),
    ("SolverFault", "`faults`, `what: solver-infeasible`, `solver-raises` and `solver-nan`"),
    ("SolverLate", "`faults`, `what: solver-late`"),
    ("LineOut", "`faults`, `what: line-out`"),
    ("VoltageWithin", "`expect`, `what: v_pu`"),
    ("LoadingBelow", "`expect`, `what: loading_percent`"),
    ("EnvelopeRespected", "`expect`, `what: envelope_respected`"),
    ("InterchangeRespected", "`expect`, `what: interchange_respected`"),
    ("Decided", "`expect`, `what: decided`"),
    ("OriginShare", "`expect`, `what: origin_share`"),
    ("DurationBelow", "`expect`, durations"),
    ("CurtailedBelow", "`expect`, `what: curtailed_mwh`"),
    ("UnservedBelow", "`expect`, `what: unserved_mwh`"),
    ("GapBelow", "`expect`, `what: gap`"),
    ("DivergenceBelow", "`expect`, `what: divergence_mw`"),
)
"""Parts in the order of the page; a part of the schema that is not named here is an error."""

NOT_SHOWN = {"Mode", "Overrun", "Divergence", "Origin", "JsonValue"}
"""Definitions that are values of a key rather than parts."""

MEANING = {
    ("", "description"): "for people; `gridpace list` shows it",
    ("", "steps"): "how many steps the run has",
    ("", "clock"): "how simulated time follows the wall clock",
    ("", "grid"): "the network, its limits and its power flow",
    ("", "forecast"): "what controllers are told of the future",
    ("", "profiles"): "what nature and customers do, by name",
    ("", "devices"): "controllable devices, a list",
    ("", "controllers"): "who decides; their valid regions for a device intersect",
    ("", "bus"): "where instructions go out",
    ("", "record"): "what the run's folder keeps",
    ("", "expect"): "what the run is judged by; exit status 1 if one does not hold",
    ("GridPart", "limits"): "what the operator allows",
    ("GridPart", "engine"): "solves the plant's AC power flow",
    ("Edit", "index"): "rows that are set",
    ("Edit", "column"): "column that is set",
    ("Edit", "value"): "its new value",
    ("*", "name"): "names it in tables and topics",
    ("*", "profile"): "profile that it follows, in per unit of its rated power",
    ("*", "p_min_mw"): "least power",
    ("*", "s_mva"): "apparent-power rating",
    ("*", "e_min_mwh"): "energy that stays stored",
    ("*", "ramp_mw_per_min"): "how fast its power may change",
    ("*", "power_factor"): "power factor",
    ("Box", "p_mw"): "least and greatest active injection",
    ("Box", "q_mvar"): "least and greatest reactive injection",
    ("MqttBusPart", "protocol"): "of MQTT",
    ("MqttBusPart", "cert_file"): "client certificate",
    ("ViaPart", "mqtt"): "over the run's own bus",
    ("ViaPart", "sunspec"): "over Modbus TCP",
    ("SunspecWay", "port"): "TCP port",
    ("*", "kind"): "which kind it is",
    ("*", "what"): "which one it is",
}
"""What keys without a docstring in the schema mean; `*` for any part."""


def page() -> str:
    """The whole of docs/scenario.md."""
    schema = Scenario.model_json_schema()
    parts: Schema = schema["$defs"]
    forgotten = parts.keys() - {name for name, _ in PARTS} - NOT_SHOWN
    if forgotten:
        raise ValueError(f"make_scenario: PARTS does not name {sorted(forgotten)}")
    profiles = {c.__name__: c for c in (PvProfile, WindProfile, LoadProfile, DailyProfile, TableProfile)}
    lines = [INTRODUCTION, "## The whole file", "", *_table("", schema, parts, {})]
    for name, title in PARTS:
        about = _first_sentences(parts[name].get("description", ""))
        read = _field_docstrings(profiles[name]) if name in profiles else {}
        lines += [
            "",
            f"## {title}",
            "",
            *([about, ""] if about else []),
            *_table(name, parts[name], parts, read),
        ]
    return "\n".join(lines) + "\n"


def _table(part: str, schema: Schema, parts: Schema, read: Mapping[str, str]) -> Iterator[str]:
    yield "| key | meaning | value | default |"
    yield "|---|---|---|---|"
    required = set(schema.get("required", ()))
    for key, field in schema["properties"].items():
        meaning = field.get("description") or read.get(key)
        meaning = meaning or MEANING.get((part, key)) or MEANING.get(("*", key))
        if meaning is None:
            raise ValueError(f"make_scenario: {part or 'Scenario'}.{key} has no docstring; give it one")
        default = "required" if key in required else _default(field)
        yield f"| `{key}` | {_cell(meaning)} | {_cell(_value(field, parts))} | {_cell(default)} |"


def _default(field: Schema) -> str:
    default = field.get("default")
    if default is None:
        return "-"
    if isinstance(default, dict):
        return "see below" if default else "none"
    return f"`{json.dumps(default)}`" if default not in ([], "") else "none"


def _value(field: Schema, parts: Schema) -> str:
    """What may stand at a key, in words."""
    if "$ref" in field:
        named = parts[field["$ref"].rpartition("/")[2]]
        if "enum" in named:
            return " or ".join(f"`{v}`" for v in named["enum"])
        return "a map, see below" if "properties" in named else "anything"
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return " or ".join(f"`{v}`" for v in field["enum"])
    if "discriminator" in field:
        choice = field["discriminator"]
        return f"a map; its `{choice['propertyName']}` is " + " or ".join(f"`{v}`" for v in choice["mapping"])
    if "anyOf" in field:
        return " or ".join(_value(one, parts) for one in field["anyOf"] if one.get("type") != "null")
    if "examples" in field:
        return str(field.get("x-value", "length of time"))
    match field.get("type"):
        case "array" if "prefixItems" in field:
            return f"list of {len(field['prefixItems'])}: " + _value(field["prefixItems"][0], parts)
        case "array":
            return "list of " + _value(field["items"], parts)
        case "object":
            named = [*field.get("patternProperties", {}).values(), field.get("additionalProperties")]
            inner: Schema = next((one for one in named if isinstance(one, dict)), {})
            return "map to " + _value(inner, parts)
        case "string" if field.get("format") == "date-time":
            return "date and time with zone"
        case "string":
            return "file" if field.get("format") == "path" else "text"
        case "integer" | "number" as kind:
            return " ".join([{"integer": "whole number", "number": "number"}[kind], *_bounds(field)])
        case "boolean":
            return "`true` or `false`"
    return "anything"


def _bounds(field: Schema) -> Iterator[str]:
    signs = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
    return (f"{sign} {field[name]:g}" for name, sign in signs.items() if name in field)


def _field_docstrings(cls: type) -> dict[str, str]:
    """The strings that stand below a dataclass's fields."""
    body = ast.parse(inspect.getsource(cls)).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        ):
            found[ast.unparse(field.target)] = inspect.cleandoc(str(text.value.value))
    return found


def _first_sentences(docstring: str) -> str:
    return " ".join(docstring.partition("\n\n")[0].split())


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    (HERE / "scenario.md").write_text(page(), "utf-8")
