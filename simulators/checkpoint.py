"""Checkpoint: what the next step of a run needs and no table holds, so that a killed run can go on.

It is written before the step's rows are, into one of two files in turn. Whenever the process is killed, the
one that belongs to the journal's last step is whole:

    checkpoint-0.json    after steps 0, 2, 4, ...
    checkpoint-1.json    after steps 1, 3, 5, ...

It is JSON: values of the vocabulary with the names of their classes, numbers and arrays to the last bit.
Only dataclasses, named tuples and enumerations of `controllers` and `simulators` are read back, by their
fields and not by their constructors; nothing else can be in it. What never changes is packed once.
"""

from __future__ import annotations

import base64
import dataclasses
import importlib
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np

SCHEMA = "gridpace.checkpoint.v1"
_MICROSECOND = timedelta(microseconds=1)
_PACKAGES = ("controllers.", "simulators.")
_PLAIN = frozenset({bool, int, str, type(None)})
_NAMES: dict[type, str] = {}
_WORDS: dict[Enum, dict[str, list[Any]]] = {}
_FIELDS: dict[type, tuple[str, tuple[str, ...], bool, bool]] = {}
"""By dataclass: its name, its fields, whether it is frozen, whether what was packed is remembered."""


class BadCheckpoint(Exception):
    """A checkpoint that is missing or damaged."""


class Checkpoints:
    """The two files of a run's folder."""

    def __init__(self, path: Path) -> None:
        self._path, self._packer = path, Packer()
        self._files: dict[int, int] = {}

    def write(self, step: int, state: Any) -> None:
        """Keep what is needed after a step.

        Raises:
            TypeError: a value that no checkpoint holds; the message says where.
            OSError: the disk is full.
        """
        body = self._packer.pack(state)
        known = {"schema": SCHEMA, "step": step, "bytes": len(body), "crc32": zlib.crc32(body)}
        text = memoryview(msgspec.json.encode(known) + b"\n" + body)
        # In place: a file system that is asked to replace a file by renaming first writes the new one to the
        # disk, which takes longer than all the rest. The other file is whole meanwhile.
        file = self._open(step)
        written = 0
        while written < len(text):
            written += os.pwrite(file, text[written:], written)

    def read(self, step: int) -> Any:
        """What was kept after a step.

        Raises:
            BadCheckpoint: there is none, or it is damaged.
        """
        file = self._file(step)
        try:
            header, _, body = file.read_bytes().partition(b"\n")
            known = msgspec.json.decode(header)
            if (known["schema"], known["step"]) != (SCHEMA, step):
                raise BadCheckpoint(
                    f"{file} is of step {known['step']} ({known['schema']}), needed is {step}"
                )
            body = body[: known["bytes"]]
            if known["crc32"] != zlib.crc32(body):
                raise BadCheckpoint(f"{file} is damaged: it is not what was written")
            return unpack(body)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
            raise BadCheckpoint(f"{file} cannot be read: {error}") from None

    def remove(self) -> None:
        """The run has ended: nothing will go on from here."""
        for slot, file in self._files.items():
            os.close(file)
            self._file(slot).unlink(missing_ok=True)
        self._files.clear()
        for slot in (0, 1):
            self._file(slot).unlink(missing_ok=True)

    def _open(self, step: int) -> int:
        slot = step % 2
        if slot not in self._files:
            self._files[slot] = os.open(self._file(slot), os.O_WRONLY | os.O_CREAT, 0o644)
        return self._files[slot]

    def _file(self, step: int) -> Path:
        return self._path / f"checkpoint-{step % 2}.json"


@dataclass(frozen=True, slots=True)
class _Known:
    kept: Any
    """so that no other object gets its identity"""
    text: msgspec.Raw


class Packer:
    """Turns values into JSON; what never changes it packs once, and remembers until the call after next."""

    SMALL: ClassVar[frozenset[str]] = frozenset({"Setpoint", "Certificate", "DeviceState", "Answer"})
    """Frozen dataclasses that are packed faster than they are looked up."""

    def __init__(self) -> None:
        self._before: dict[int, _Known] = {}
        self._now: dict[int, _Known] = {}

    def pack(self, value: Any) -> bytes:
        """A value as JSON.

        Raises:
            TypeError: something that `unpack` could not bring back; the message says where.
        """
        self._before, self._now = self._now, {}
        return msgspec.json.encode(self._packed(value, ()))

    def _packed(self, value: Any, path: tuple[Any, ...]) -> Any:
        kind = type(value)
        if kind in _PLAIN:
            return value
        if kind is float:
            return value if isfinite(value) else {"f": repr(value)}
        if kind is dict:
            return self._mapping(value, path)
        if kind is tuple:
            return {"u": [self._packed(inner, (*path, i)) for i, inner in enumerate(value)]}
        if kind is datetime:
            if value.tzinfo is None:
                raise TypeError(f"checkpoint: {_spell(path)} is {value}, which has no time zone")
            return {"t": value.isoformat()}
        if kind in _FIELDS:
            return self._object(value, path)
        if (word := _WORDS.get(value) if isinstance(value, Enum) else None) is not None:
            return word
        return self._rarer(value, kind, path)

    def _rarer(self, value: Any, kind: type, path: tuple[Any, ...]) -> Any:
        if isinstance(value, np.ndarray):
            return _array(value)
        if isinstance(value, Enum):
            return _WORDS.setdefault(value, {"e": [_name(kind, path), value.value]})
        if dataclasses.is_dataclass(value):
            return self._object(value, path)
        if isinstance(value, Mapping):
            return self._mapping(value, path)
        if isinstance(value, list):
            return [self._packed(inner, (*path, i)) for i, inner in enumerate(value)]
        if isinstance(value, tuple):  # with names
            return {"n": [_name(kind, path), [self._packed(v, (*path, i)) for i, v in enumerate(value)]]}
        if isinstance(value, timedelta):
            return {"d": value // _MICROSECOND}
        if isinstance(value, np.floating):
            return self._packed(float(value), path)
        if isinstance(value, set | frozenset):
            return {"s": [kind is frozenset, [self._packed(inner, path) for inner in sorted(value)]]}
        if isinstance(value, np.integer | np.bool_):
            return value.item()
        raise TypeError(f"checkpoint: {_spell(path)} is a {kind.__qualname__}, which cannot be kept")

    def _mapping(self, value: Mapping[Any, Any], path: tuple[Any, ...]) -> Any:
        if all(type(key) is str for key in value):
            return {"o": {key: self._packed(inner, (*path, key)) for key, inner in value.items()}}
        pairs = value.items()
        return {"m": [[self._packed(k, path), self._packed(inner, (*path, k))] for k, inner in pairs]}

    def _object(self, value: Any, path: tuple[Any, ...]) -> Any:
        kind = type(value)
        if (known_of := _FIELDS.get(kind)) is None:
            frozen = kind.__dataclass_params__.frozen
            names = tuple(field.name for field in dataclasses.fields(value))
            # What a mutable one has beside its fields it has computed from them, and may not again.
            known_of = _name(kind, path), names, frozen, frozen and kind.__name__ not in self.SMALL
            _FIELDS[kind] = known_of
        name, names, frozen, remembered = known_of
        if remembered:
            known = self._now.get(id(value)) or self._before.get(id(value))
            if known is not None:
                self._now[id(value)] = known
                return known.text
        if not frozen and hasattr(value, "__dict__"):
            names = tuple(vars(value))
        packed = {"c": [name, {n: self._packed(getattr(value, n), (*path, n)) for n in names}]}
        if not remembered:
            return packed
        text = msgspec.Raw(msgspec.json.encode(packed))
        self._now[id(value)] = _Known(value, text)
        return text


def unpack(text: bytes) -> Any:
    """The value that was packed.

    Raises:
        ValueError: no such value; a class that is none of the vocabulary's.
    """
    return _unpacked(msgspec.json.decode(text))


def _unpacked(given: Any) -> Any:
    if isinstance(given, list):
        return [_unpacked(inner) for inner in given]
    if not isinstance(given, dict):
        return given
    ((tag, held),) = given.items()
    match tag:
        case "o":
            return {key: _unpacked(inner) for key, inner in held.items()}
        case "m":
            return {_unpacked(key): _unpacked(inner) for key, inner in held}
        case "u":
            return tuple(_unpacked(inner) for inner in held)
        case "n":
            return _class(held[0], tuple)(*map(_unpacked, held[1]))
        case "s":
            return (frozenset if held[0] else set)(_unpacked(inner) for inner in held[1])
        case "f":
            return float(held)
        case "t":
            return datetime.fromisoformat(held)
        case "d":
            return held * _MICROSECOND
        case "a":
            return _to_array(*held)
        case "e":
            return _class(held[0], Enum)(held[1])
        case "c":
            return _to_object(*held)
    raise ValueError(f"{tag!r} is no kind of value")


def _to_object(name: str, inside: dict[str, Any]) -> Any:
    kind = _class(name, object)
    if not dataclasses.is_dataclass(kind):
        raise ValueError(f"{name} is no class whose values are kept")
    made: Any = object.__new__(kind)  # type: ignore[arg-type]
    for key, inner in inside.items():  # not by the constructor, which may compute anew, with other last bits
        object.__setattr__(made, key, _unpacked(inner))
    return made


def _array(value: Any) -> Any:
    if value.dtype.kind not in "fiub":
        raise TypeError(f"checkpoint: an array of {value.dtype} cannot be kept")
    order = "F" if value.flags.f_contiguous and not value.flags.c_contiguous else "C"
    text = base64.b64encode(value.tobytes(order)).decode()
    return {"a": [value.dtype.str, value.shape, order, bool(value.flags.writeable), text]}


def _to_array(dtype: str, shape: list[int], order: str, writeable: bool, text: str) -> Any:
    kind = np.dtype(dtype)
    if kind.kind not in "fiub":
        raise ValueError(f"an array of {dtype} is none that is kept")
    flat = np.frombuffer(base64.b64decode(text), kind)
    array = flat.reshape(shape, order="F" if order == "F" else "C").copy(order="K")
    array.setflags(write=writeable)
    return array


def _name(kind: type, path: tuple[Any, ...]) -> str:
    if (known := _NAMES.get(kind)) is not None:
        return known
    if not kind.__module__.startswith(_PACKAGES):
        raise TypeError(
            f"checkpoint: {_spell(path)} is a {kind.__module__}.{kind.__qualname__}; only plain values and "
            "those of the vocabulary can be kept"
        )
    return _NAMES.setdefault(kind, f"{kind.__module__}:{kind.__qualname__}")


def _class(name: str, of: type) -> Any:
    module, _, qualname = name.partition(":")
    if not module.startswith(_PACKAGES):
        raise ValueError(f"{name} is none of the vocabulary")
    try:
        kind = getattr(importlib.import_module(module), qualname)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name} is not there: {error}") from None
    if not (isinstance(kind, type) and issubclass(kind, of)):
        raise ValueError(f"{name} is no {of.__name__}")
    return kind


def _spell(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path)) or "the value"
