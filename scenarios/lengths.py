"""Lengths of time, as a scenario's file says them: `5min`, `1h30min`, `100ms`."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

_UNIT_S = {"ms": 0.001, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|sec|s|min|m|h|d)")


def duration(value: Any) -> timedelta:
    """A length of time such as `5min`, `1h30min`, `100ms`.

    Raises:
        ValueError: anything else, or zero.
    """
    if isinstance(value, timedelta):
        return value
    text = str(value).strip()
    parts = _DURATION.findall(text)
    if isinstance(value, bool | int | float) or not parts or _DURATION.sub("", text).strip():
        raise ValueError("is no length of time; write a number and a unit, such as 5min, 30s, 1h or 100ms")
    try:
        length = timedelta(seconds=sum(float(number) * _UNIT_S[unit] for number, unit in parts))
    except OverflowError:
        raise ValueError("is longer than any run") from None
    if not length:
        raise ValueError("must be longer than zero")
    return length


def spell(value: timedelta) -> str:
    """The shortest text that `duration` reads back."""
    seconds = value.total_seconds()
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if seconds % size == 0:
            return f"{int(seconds // size)}{unit}"
    return f"{value / timedelta(milliseconds=1):.3f}".rstrip("0").rstrip(".") + "ms"


Duration = Annotated[
    timedelta,
    BeforeValidator(duration),
    PlainSerializer(spell),
    WithJsonSchema({"type": "string", "pattern": _DURATION.pattern, "examples": ["5min", "1s", "100ms"]}),
]
