"""Secrecy: secrets come from the environment or from files, never from a scenario, and nothing shows them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

HIDDEN = "***"
_NAME = re.compile(
    r"(password|passwd|passphrase|pwd|secret|token|api_?key|private_?key|credentials?)$", re.IGNORECASE
)
_USER_IN_URL = re.compile(r"(?P<before>[a-z][a-z0-9+.-]*://)(?:[^/?#\s:]*:\S+|[^/?#\s]+)(?=@)", re.IGNORECASE)
_SECRET_IN_QUERY = re.compile(r"(?P<before>[?&](?:password|passwd|token|secret|key)=)[^&#\s]+", re.IGNORECASE)
_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)

BY_ENVIRONMENT = (
    "is a secret, and a scenario is copied into every run's folder; leave it out. The broker's user name and "
    "password are taken from the environment, GRIDPACE_MQTT_USERNAME and GRIDPACE_MQTT_PASSWORD"
)
BY_FILE = "is a private key itself; write it into a file that only you can read, and give the file's name"


def without_secrets(value: Any) -> Any:
    """`value` with every secret hidden: in URLs, private keys, and under names like `password` or `token`."""
    if isinstance(value, Mapping):
        return {
            name: HIDDEN if _NAME.search(str(name)) and _given(inner) else without_secrets(inner)
            for name, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [without_secrets(inner) for inner in value]
    if isinstance(value, str):
        hidden = _USER_IN_URL.sub(rf"\g<before>{HIDDEN}", value)
        return _KEY.sub(HIDDEN, _SECRET_IN_QUERY.sub(rf"\g<before>{HIDDEN}", hidden))
    return value


def secrets_in(raw: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Where a scenario has a secret, and what to do instead."""
    if isinstance(raw, Mapping):
        for name, inner in raw.items():
            if _NAME.search(str(name)) and _given(inner):
                yield (*path, name), BY_ENVIRONMENT
            else:
                yield from secrets_in(inner, (*path, name))
    elif isinstance(raw, list):
        for i, inner in enumerate(raw):
            yield from secrets_in(inner, (*path, i))
    elif isinstance(raw, str) and _KEY.search(raw):
        yield path, BY_FILE


def _given(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool) and value != ""
