"""Inputs: the files that a scenario names, by which a run is recognised later."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from scenarios.load import Draft


def inputs_of(draft: Draft) -> dict[str, str]:
    """sha256 of the files that a scenario names, by name: grids, tables of profiles, controllers."""
    found = {}
    for name in _named(draft.raw):
        if name and (file := draft.folder / name).is_file():
            found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def _named(raw: Mapping[str, Any]) -> Iterator[str]:
    grid, profiles = raw.get("grid") or {}, raw.get("profiles") or {}
    yield str(grid.get("network") or "")
    for profile in profiles.values():
        yield str(profile.get("file") or "")
    for controller in raw.get("controllers") or ():
        for key in ("uses", "fallback"):
            yield str(controller.get(key) or "").rpartition(":")[0]
