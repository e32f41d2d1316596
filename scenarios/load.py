"""Load: from a scenario file (and `extends`, and `--set`) to one mapping, and where each key stands."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from scenarios.secrecy import without_secrets

Keys = tuple[str | int, ...]


class ScenarioUnreadable(ValueError):
    """There is no such scenario, or its file is no YAML mapping."""


class _Loader(yaml.SafeLoader):
    """YAML without its surprises: times stay text (`10:00` is not 600), a key counts once."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":int", ":float"))
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# Numbers as in YAML 1.2 and JSON: no 1:30 for 90, and 1e3 is a number.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"),
    list("-+.0123456789"),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9]\d*)$"), list("-+0123456789")
)


@dataclass(frozen=True)
class Draft:
    """A scenario as written, before it is checked."""

    raw: dict[str, Any]
    folder: Path
    """where relative files are looked for"""
    origin: str
    """what the user named"""
    lines: Mapping[Keys, int] = field(default_factory=dict)
    """line in the file by path, for the file itself; if it extends another, items of lists by name, since
    their positions are not those of the merged lists"""
    repeated: tuple[tuple[Keys, int], ...] = ()
    """keys written twice, with the line of the second"""


def packaged() -> dict[str, Path]:
    """The scenarios that come with gridpace, by name."""
    folder = Path(str(resources.files("scenarios")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load(which: str, changes: Sequence[str] = (), folder: Path | None = None) -> Draft:
    """Read a scenario by file or by the name of a packaged one.

    Args:
        which: a path, or a name that `packaged` knows.
        changes: `a.b.c=value`, applied last; lists are entered by position or by `name`.
        folder: where `which` is looked for, if relative; the current one if not given.

    Raises:
        ScenarioUnreadable: no such file, no YAML, `extends` in a circle, a change that fits nowhere.
    """
    draft = _read(which, folder or Path(), ())
    for change in changes:
        apply(draft.raw, change)
    _name_twins(draft.raw)
    if draft.raw.get("fleets"):
        _muster(draft.raw, draft.folder)
    grid = draft.raw.get("grid")
    if isinstance(grid, dict) and grid.get("curtailable") is not None:
        from scenarios.curtailable import release  # which needs pandapower

        release(draft, grid)
    return draft


def _find(which: str, folder: Path) -> Path:
    path = folder / which
    if path.is_file():
        return path
    known = packaged()
    if which in known:
        return known[which]
    raise ScenarioUnreadable(
        f"scenario {which!r}: no such file, and no scenario of that name; there are {', '.join(known)}"
    )


def _read(which: str, folder: Path, seen: tuple[Path, ...]) -> Draft:
    path = _find(which, folder).resolve()
    if path in seen:
        chain = " -> ".join(p.name for p in (*seen, path))
        raise ScenarioUnreadable(f"scenario {which!r}: 'extends' goes in a circle: {chain}")
    try:
        text = path.read_text(encoding="utf-8")
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, Loader=_Loader)):
            raise ScenarioUnreadable(f"scenario {path.name}: has YAML aliases (*name); use 'extends' instead")
        node = yaml.compose(text, Loader=_Loader)
        raw = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        if isinstance(error, ScenarioUnreadable):
            raise
        raise ScenarioUnreadable(f"scenario {path.name}: is no YAML: {error}") from None
    except OSError as error:
        raise ScenarioUnreadable(f"scenario {path.name}: cannot be read: {error.strerror}") from None
    if not isinstance(raw, dict) or node is None:
        raise ScenarioUnreadable(f"scenario {path.name}: must be a mapping, such as 'name: ...'")
    lines: dict[Keys, int] = {}
    repeated: list[tuple[Keys, int]] = []
    for keys, line, again in _walk(node, (), by_name="extends" in raw):
        lines[keys] = line
        if again:
            repeated.append((keys, line))
    parent = raw.pop("extends", None)
    if parent is not None:
        below = _read(str(parent), path.parent, (*seen, path))
        if below.folder != path.parent:
            _anchor(below.raw, below.folder)
        raw = _merge(below.raw, raw)
    return Draft(raw, path.parent, which, lines, tuple(repeated))


def _name_twins(raw: dict[str, Any]) -> None:
    """A device of the kind external is one of its twin's kind. Without a way or a twin it is left as it is,
    for the check to name it."""
    devices = raw.get("devices")
    if not isinstance(devices, list):
        return
    for i, item in enumerate(devices):
        if isinstance(item, dict) and item.get("kind") == "external" and {"twin", "via"} <= item.keys():
            devices[i] = {key: value for key, value in item.items() if key != "twin"} | {"kind": item["twin"]}


def _muster(raw: dict[str, Any], folder: Path) -> None:
    """Put the devices of `fleets` among the others. A mistake is left as it is, for the check to name it."""
    from pydantic import TypeAdapter, ValidationError

    from scenarios.grids import GridError, bus_of, load_grid, supplied
    from scenarios.schema import EveryBus, FleetPart

    grid, devices = raw.get("grid"), raw.setdefault("devices", [])
    try:
        fleets = TypeAdapter(list[FleetPart]).validate_python(raw["fleets"])
        net = load_grid(str(grid.get("network")) if isinstance(grid, dict) else "", folder)
    except (ValidationError, GridError):
        return
    if not isinstance(devices, list):
        return
    raw["devices"] = devices = [*devices]  # not that of the scenario which this one extends
    for fleet in fleets:
        match fleet.buses:
            case "all":
                buses: Sequence[int | str] = supplied(net)
            case EveryBus(every=every):
                buses = supplied(net)[::every]
            case _:
                buses = fleet.buses
        known, profile = raw.get("profiles"), fleet.device.get("profile")
        if profile is not None and profile not in (known if isinstance(known, dict) else {}):
            buses = buses[:1]  # enough for the check to say it; not a thousand times
        for bus in buses:
            name = bus
            with suppress(GridError):
                name = bus_of(net, bus)
            devices.append({"name": f"{fleet.name}-{name}", "bus": bus, **fleet.device})
    del raw["fleets"]


def _anchor(raw: dict[str, Any], folder: Path) -> None:
    """Make the files that a scenario names findable from another folder."""
    places: list[tuple[Any, str]] = [(raw.get("grid"), "network")]
    profiles, controllers = raw.get("profiles"), raw.get("controllers")
    places += [(profile, "file") for profile in profiles.values()] if isinstance(profiles, dict) else []
    places += [(item, "uses") for item in controllers] if isinstance(controllers, list) else []
    for place, key in places:
        text = place.get(key) if isinstance(place, dict) else None
        if isinstance(text, str):
            file = text.rpartition(":")[0] if key == "uses" else text
            if file and (folder / file).is_file():
                place[key] = str(folder / text)


def _walk(node: yaml.Node, keys: Keys, by_name: bool) -> Iterator[tuple[Keys, int, bool]]:
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            path = (*keys, key.value)
            yield path, key.start_mark.line + 1, key.value in seen
            seen.add(key.value)
            yield from _walk(value, path, by_name)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            name = _name_of(value) if by_name else None
            path = (*keys, i if name is None else name)
            yield path, value.start_mark.line + 1, False
            yield from _walk(value, path, by_name)


def _name_of(node: yaml.Node) -> str | None:
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return next((str(value.value) for key, value in pairs if key.value == "name"), None)


def _merge(below: Any, above: Any) -> Any:
    """Maps merge, lists whose items have names merge by name, all else is replaced; so is a map of another
    kind, whose keys are others."""
    if isinstance(below, dict) and isinstance(above, dict):
        if "kind" in above and above["kind"] != below.get("kind"):
            return above
        return {
            **below,
            **{key: _merge(below[key], value) if key in below else value for key, value in above.items()},
        }
    if isinstance(below, list) and isinstance(above, list) and _named(below) and _named(above):
        merged = {item["name"]: item for item in below}
        for item in above:
            name = item["name"]
            merged[name] = _merge(merged[name], item) if name in merged else item
        return list(merged.values())
    return above


def _named(items: list[Any]) -> bool:
    return all(isinstance(item, dict) and isinstance(item.get("name"), str) for item in items)


def apply(raw: dict[str, Any], change: str) -> None:
    """Make a change `a.b.c=value` to a scenario as written; see `load`.

    Raises:
        ScenarioUnreadable: a change that fits nowhere.
    """
    path, equals, text = change.partition("=")
    keys = path.split(".")
    said = f"--set {without_secrets(change)}"
    if not equals or not all(keys):
        raise ScenarioUnreadable(f"{said}: must read a.b.c=value")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        raise ScenarioUnreadable(f"{said}: the value is no YAML; quote it") from None
    place: Any = raw
    for i, key in enumerate(keys):
        last = i == len(keys) - 1
        if isinstance(place, list):
            index = _position(place, key)
            if index is None:
                names = [item.get("name") for item in place if isinstance(item, dict)]
                raise ScenarioUnreadable(f"{said}: {key!r} is neither a position nor one of {names}")
            if last:
                place[index] = value
            else:
                place = place[index]
        elif isinstance(place, dict):
            if last:
                # Another kind of bus has other keys: what belonged to the old kind goes.
                if key == "kind" and place.get("kind") != value and keys[:-1] == ["bus"]:
                    place.clear()
                place[key] = value
            else:
                place = place.setdefault(key, {})
        else:
            raise ScenarioUnreadable(f"{said}: {'.'.join(keys[:i])} is a value and has no {key!r}")


def _position(items: list[Any], key: str) -> int | None:
    for i, item in enumerate(items):
        if isinstance(item, dict) and item.get("name") == key:
            return i
    return int(key) if key.isascii() and key.isdecimal() and int(key) < len(items) else None
