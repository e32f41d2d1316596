"""A validator of as much of JSON Schema as our documents use; a keyword that it does not know is an error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "null": type(None),
    "boolean": bool,
    "integer": int,
    "number": (int, float),
}
WORDS = {"title", "description", "default", "discriminator"}
"""Keywords that allow and forbid nothing."""


def problems(
    value: Any, schema: Mapping[str, Any], whole: Mapping[str, Any], path: str = "$"
) -> Iterator[str]:
    """What a value has that its schema forbids.

    Args:
        whole: the document in which references are looked up.

    Raises:
        KeyError: a reference to nothing, a keyword that is not known.
    """
    for keyword, said in schema.items():
        if keyword not in WORDS:
            yield from _CHECKS[keyword](value, said, schema, whole, path)


def resolved(reference: str, whole: Mapping[str, Any]) -> Any:
    """What a reference within a document names."""
    place: Any = whole
    for key in reference.removeprefix("#/").split("/"):
        place = place[key]
    return place


def _ref(value: Any, said: Any, schema: Any, whole: Any, path: str) -> Iterator[str]:
    yield from problems(value, resolved(said, whole), whole, path)


def _type(value: Any, said: Any, schema: Any, whole: Any, path: str) -> Iterator[str]:
    if not isinstance(value, TYPES[said]) or (said != "boolean" and isinstance(value, bool)):
        yield f"{path}: {value!r} is no {said}"


def _any_of(value: Any, said: Any, schema: Any, whole: Any, path: str) -> Iterator[str]:
    if not any(not list(problems(value, one, whole, path)) for one in said):
        yield f"{path}: {value!r} is none of {said}"


def _enum(value: Any, said: Any, schema: Any, whole: Any, path: str) -> Iterator[str]:
    if value not in said:
        yield f"{path}: {value!r} is not in {said}"


def _properties(value: Any, said: Any, schema: Any, whole: Any, path: str) -> Iterator[str]:
    for name in value.keys() & said.keys() if isinstance(value, dict) else ():
        yield from problems(value[name], said[name], whole, f"{path}.{name}")


def _additional(value: Any, said: Any, schema: Any, whole: Any, path: str) -> Iterator[str]:
    for name in value.keys() - schema.get("properties", {}).keys() if isinstance(value, dict) else ():
        if said is False:
            yield f"{path}: {name} is not known"
        elif said is not True:
            yield from problems(value[name], said, whole, f"{path}.{name}")


def _required(value: Any, said: Any, schema: Any, whole: Any, path: str) -> Iterator[str]:
    for name in set(said) - value.keys() if isinstance(value, dict) else ():
        yield f"{path}: {name} is missing"


def _items(value: Any, said: Any, schema: Any, whole: Any, path: str) -> Iterator[str]:
    for i, one in enumerate(value if isinstance(value, list) else ()):
        if i >= len(schema.get("prefixItems", ())):
            if said is False:
                yield f"{path}[{i}] is one too many"
            elif said is not True:
                yield from problems(one, said, whole, f"{path}[{i}]")


def _prefix(value: Any, said: Any, schema: Any, whole: Any, path: str) -> Iterator[str]:
    for i, (one, inner) in enumerate(zip(value, said, strict=False) if isinstance(value, list) else ()):
        yield from problems(one, inner, whole, f"{path}[{i}]")


def _least(value: Any, said: Any, schema: Any, whole: Any, path: str) -> Iterator[str]:
    if isinstance(value, list | str) and len(value) < said:
        yield f"{path}: {len(value)} are fewer than {said}"


def _most(value: Any, said: Any, schema: Any, whole: Any, path: str) -> Iterator[str]:
    if isinstance(value, list | str) and len(value) > said:
        yield f"{path}: {len(value)} are more than {said}"


def _format(value: Any, said: Any, schema: Any, whole: Any, path: str) -> Iterator[str]:
    if said != "date-time":
        raise KeyError(said)
    if isinstance(value, str):
        try:
            datetime.fromisoformat(value)
        except ValueError:
            yield f"{path}: {value!r} is no {said}"


_CHECKS = {
    "$ref": _ref,
    "type": _type,
    "anyOf": _any_of,
    "enum": _enum,
    "properties": _properties,
    "additionalProperties": _additional,
    "required": _required,
    "items": _items,
    "prefixItems": _prefix,
    "minItems": _least,
    "maxItems": _most,
    "minLength": _least,
    "maxLength": _most,
    "format": _format,
}
