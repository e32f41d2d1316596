"""Options: what a scenario passes to a controller's class, held against what the class takes.

Names are those of the class's signature. The kinds of values are those of a dataclass's annotations, as far
as they are simple: numbers, words, text, lists and mappings of these. Whether a value is in its range, the
class says when it is constructed.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from difflib import get_close_matches
from math import isfinite
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from controllers.envelopes.certified import Certified
from controllers.envelopes.rolling import Rolling
from controllers.fallback import Fallback
from scenarios.schema import duration

_AROUND: dict[type[Any], str] = {
    Certified: "`certified: true` beside a method",
    Rolling: "`rolling: true` beside a method",
    Fallback: "`fallback: module:Class` beside the first controller",
}
"""Classes that take a controller instead of a site, and how a scenario asks for them."""

_PLAIN = {
    Any: "anything",
    bool: "true or false",
    float: "a number",
    int: "a whole number",
    str: "text",
    NoneType: "null",
}


def misplaced(cls: type[Any]) -> str | None:
    """What to write instead of a class that goes around another controller; `None` for any other class."""
    instead = _AROUND.get(cls)
    return None if instead is None else f"goes around another controller; write {instead}"


def mistakes(cls: type[Any], options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and advice of each option that a controller class does not take, needs, or takes otherwise.

    A class whose signature cannot be read is left to itself, and so is an annotation that cannot.
    """
    try:
        parameters = list(inspect.signature(cls).parameters.values())
    except (TypeError, ValueError):
        return
    if parameters and parameters[0].kind in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    ):
        del parameters[0]  # the site
    known = [
        p
        for p in parameters
        if p.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    ]
    names = [p.name for p in known]
    anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    typed = {field.name: field for field in fields(cls) if field.init} if is_dataclass(cls) else {}
    for name, value in options.items():
        if name in names:
            advice = _unfit(cls, typed[name], value) if name in typed else None
            if advice is not None:
                yield name, advice
        elif not anything:
            near = get_close_matches(str(name), names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            yield name, f"is no option of {cls.__name__}, which has {', '.join(names) or 'none'}{hint}"
    for p in known:
        if p.default is inspect.Parameter.empty and p.name not in options:
            yield p.name, f"is required by {cls.__name__}; add it"


def blamed(message: str, given: Mapping[str, Any]) -> str | None:
    """Which of the options given a class's refusal names first, as it is or, of a plural, one of them.

    `None` where it names none: it is about all of them, or about the site.
    """
    for plural in ("", "s"):
        found = {name: re.search(rf"\b{re.escape(name.removesuffix(plural))}\b", message) for name in given}
        if at := {name: match.start() for name, match in found.items() if match}:
            return min(at, key=at.__getitem__)
    return None


def _unfit(cls: type[Any], field: Field[Any], value: Any) -> str | None:
    """What a value should have been; `None` where it is, or where the annotation does not tell."""
    hint = _hint(cls, field)
    expected = _words(hint)
    if expected is None:
        return None
    # A field without a limit by default may be given without one.
    default = field.default
    endless = default is not MISSING and isinstance(default, float) and not isfinite(default)
    config = ConfigDict(strict=True, allow_inf_nan=endless)
    try:
        # As JSON, whose lists are tuples as well.
        TypeAdapter(hint, config=config).validate_json(json.dumps(value))
    except ValidationError as error:
        if any(detail["type"] == "finite_number" for detail in error.errors(include_url=False)):
            return f"must be {expected}, and finite"
        return f"must be {expected}{_length(field.name, value) or _meant(hint, value)}"
    except (TypeError, ValueError):
        return None  # no value of a scenario file, which its schema says
    return None


_UNITS = {"ms": ("milliseconds", 1e3), "s": ("seconds", 1.0), "h": ("hours", 1 / 3600)}
"""Ends of names of options that are lengths of time: their unit, and how many of it are a second."""


def _length(name: str, value: Any) -> str:
    """What a length of time with a unit is in that of the option; nothing for any other value."""
    unit, scale = _UNITS.get(name.rpartition("_")[2], ("", 0.0))
    if not unit or not isinstance(value, str):
        return ""
    try:
        return f", in {unit}; write {duration(value).total_seconds() * scale:g}"
    except ValueError:
        return f", in {unit}"


def _meant(hint: Any, value: Any) -> str:
    """A guess, to end the advice with."""
    kinds = (hint, *get_args(hint)) if get_origin(hint) in (Union, UnionType) else (hint,)
    if int in kinds and isinstance(value, float) and value.is_integer():
        return f"; write {int(value)}"
    if isinstance(value, str):
        words = [str(word) for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
        near = get_close_matches(value, words, n=1)
        if near:
            return f"; did you mean {near[0]!r}?"
        if {int, float} & set(kinds) and value.strip().lstrip("+-").replace(".", "", 1).isdecimal():
            return ", without quotes"
    return ""


def _hint(cls: type[Any], field: Field[Any]) -> Any:
    """A field's annotation, evaluated where it was written; an ellipsis if it cannot be."""
    has = [c for c in cls.__mro__ if c.__dict__.get("__dataclass_fields__", {}).get(field.name) is field]
    # One by one: a name that is only imported for type checkers must not hide the other fields.
    alone = type("Alone", (), {"__module__": has[-1].__module__, "__annotations__": {field.name: field.type}})
    try:
        return get_type_hints(alone)[field.name]
    except Exception:  # whatever a third party's annotation raises
        return ...


def _words(hint: Any) -> str | None:
    """A simple annotation in words; `None` if it is not simple."""
    origin, inner = get_origin(hint) or hint, get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin in (Union, UnionType):
        each = [_words(kind) for kind in inner]
        return None if None in each else " or ".join(filter(None, each))
    if origin in (list, tuple, Sequence, dict, Mapping):
        each = [_words(kind) for kind in inner if kind is not Ellipsis]
        if None in each:
            return None
        if origin in (dict, Mapping):
            return "a mapping" if not inner or inner[1] is Any else f"a mapping to {each[1]}"
        if origin is tuple and inner and Ellipsis not in inner:
            return f"a list of {len(inner)}: {', '.join(filter(None, each))}"
        return "a list" if not inner or inner[0] is Any else f"a list, each {each[0]}"
    return next((words for kind, words in _PLAIN.items() if origin is kind), None)
