"""Plain: values as JSON knows them, and files of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Any

from simulators.journal import replacing


def canonical(value: Any) -> str:
    """`value` as the one JSON text that equal values share."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file for people to read, whole or not at all."""
    with replacing(path) as file:
        file.write_text(json.dumps(plain(value), indent=2, ensure_ascii=False) + "\n", "utf-8")


def plain(value: Any) -> Any:
    """`value` as JSON knows it: times as text in UTC, numpy's numbers as Python's, NaN as null."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, float):
        return float(value) if isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(inner) for inner in value]
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if hasattr(value, "tolist"):  # numpy's numbers and arrays
        return plain(value.tolist())
    return str(value)


def difference(
    ours: Any, theirs: Any, path: str = "", names: tuple[str, str] = ("the run", "the file")
) -> str | None:
    """Where two plain values differ first, in words; `None`: nowhere.

    Args:
        names: what the two are called where only one of them has something.
    """
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        for key in dict.fromkeys([*ours, *theirs]):
            there = f"{path}.{key}" if path else str(key)
            if (key in ours) != (key in theirs):
                return f"{there} is only in {names[0] if key in ours else names[1]}"
            if (why := difference(ours[key], theirs[key], there, names)) is not None:
                return why
        return None
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            if (why := difference(one, other, f"{path}.{i}", names)) is not None:
                return why
        return None
    return None if ours == theirs else f"{path} was {_short(ours)}, is {_short(theirs)}"


def _short(value: Any) -> str:
    text = canonical(value)
    return text if len(text) <= 60 else text[:57] + "..."
