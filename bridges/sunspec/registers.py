"""Registers of SunSpec models, by the names of their points.

The layout, types and scale factors come from the definitions that pysunspec2 ships. A point that is "not
implemented" reads as `None`. A point of a subgroup is named with it: `PFWInj.PF`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from math import isfinite
from typing import Any, TypeAlias

from sunspec2 import device as definitions
from sunspec2 import mb, mdef

Value: TypeAlias = float | int | str

MARKER = (0x5375, 0x6E53)
"""`SunS`, the two registers before the first model."""
END = (0xFFFF, 0)
"""Where a model's ID and length would stand, after the last one."""
HEADER = 2
"""Registers of ID and length, which the length does not count."""

PERCENT = {
    "WMaxLimPct": (0, 100),
    "WMaxLimPctRvrt": (0, 100),
    "WSetPct": (-100, 100),
    "WSetPctRvrt": (-100, 100),
    "VarSetPct": (-100, 100),
    "VarSetPctRvrt": (-100, 100),
}
"""Point of model 704 -> what makes sense, though its type would hold more."""


class PointError(ValueError):
    """A value that a point does not take, or a point that is not there."""


@dataclass(frozen=True, slots=True)
class Point:
    """One named value of a model."""

    name: str
    type: str
    offset: int
    """registers from the model's ID on"""
    size: int
    """registers"""
    scale: str | int | None
    """the point that holds the power of ten, or that power itself"""
    units: str
    writable: bool
    symbols: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_text(self) -> bool:
        return self.type == "string"

    @property
    def signed(self) -> bool:
        return self.type.startswith("int") or self.type == "sunssf"


@dataclass(frozen=True)
class Layout:
    """The points of a model, in the order of their registers."""

    model: int
    points: Mapping[str, Point]
    size: int
    """registers, ID and length included"""
    blanks: Mapping[str, tuple[int, ...]]
    """the registers of each point while it is not implemented"""

    def point(self, name: str) -> Point:
        """Raises: PointError: no such point."""
        try:
            return self.points[name]
        except KeyError:
            raise PointError(f"model {self.model} has no point {name!r}") from None

    def covering(self, offset: int, count: int) -> list[Point]:
        """The points that lie within these registers, wholly or in part."""
        return [p for p in self.points.values() if p.offset < offset + count and offset < p.offset + p.size]


@cache
def layout(model: int) -> Layout:
    """The layout of a model without repeating groups, as pysunspec2 defines it.

    Raises:
        PointError: no such model, or one with repeating groups.
    """
    try:
        definition = definitions.get_model_def(model)
    except mdef.ModelDefinitionError as error:
        raise PointError(f"model {model} is not defined: {error}") from error
    points: dict[str, Point] = {}
    offset = 0
    for prefix, row in _rows(definition["group"], model):
        symbols = {symbol["name"]: int(symbol["value"]) for symbol in row.get("symbols", [])}
        name, size = prefix + row["name"], int(row["size"])
        scale, units = row.get("sf"), row.get("units") or ""
        points[name] = Point(
            name, row["type"], offset, size, scale, units, row.get("access") == "RW", symbols
        )
        offset += size
    blanks = {name: tuple(_blank(point)) for name, point in points.items()}
    return Layout(model, points, offset, blanks)


def _blank(point: Point) -> list[int]:
    return _to_words(mb.create_unimpl_value(point.type, 2 * point.size))


def _rows(group: Mapping[str, Any], model: int, prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    for row in group["points"]:
        yield prefix, row
    for inner in group.get("groups", []):
        if inner.get("count", 1) != 1:
            raise PointError(f"model {model}: its group {inner['name']!r} repeats, which is not supported")
        yield from _rows(inner, model, f"{prefix}{inner['name']}.")


def _to_words(data: bytes) -> list[int]:
    return [int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2)]


class Block:
    """The registers of one model at an address.

    Args:
        words: as many as the model has there; fewer than its definition has: the rest is not implemented.
    """

    def __init__(self, layout: Layout, address: int, words: Sequence[int] | None = None) -> None:
        self.layout = layout
        self.address = address
        self.words = list(words) if words is not None else self._blank()

    def _blank(self) -> list[int]:
        words: list[int] = []
        for point in self.layout.points.values():
            if point.name in ("ID", "L"):
                words.append(self.layout.model if point.name == "ID" else self.layout.size - HEADER)
            else:
                words += self.layout.blanks[point.name]
        return words

    def raw(self, name: str) -> int | str | None:
        """The number or text in the registers, without its scale; `None`: not implemented."""
        point = self.layout.point(name)
        words = self.words[point.offset : point.offset + point.size]
        if len(words) < point.size or (point.type != "pad" and tuple(words) == self.layout.blanks[name]):
            return None
        return decode(point, words)

    def step(self, name: str) -> float | None:
        """What one unit of the point's number is worth; `None` without a usable scale factor."""
        power = self._power(self.layout.point(name))
        return None if power is None else 10.0**power

    def value(self, name: str) -> Value | None:
        """The point's value in its units; `None`: not implemented, or its scale factor is not."""
        raw, point = self.raw(name), self.layout.point(name)
        if raw is None or isinstance(raw, str) or point.scale is None:
            return raw
        power = self._power(point)
        if power is None:
            return None
        return raw * 10.0**power if power >= 0 else raw / 10.0**-power

    def number(self, name: str) -> float | None:
        """`value` of a point that is no text."""
        value = self.value(name)
        return None if value is None or isinstance(value, str) else float(value)

    def symbol(self, name: str) -> str | None:
        """The name of an enumeration's value; the number in words if it has none."""
        raw = self.raw(name)
        if raw is None or isinstance(raw, str):
            return raw
        names = {number: word for word, number in self.layout.point(name).symbols.items()}
        return names.get(raw, str(raw))

    def encode(self, name: str, value: Value) -> list[int]:
        """The registers of a value in the point's units, or of a symbol; rounded to its scale.

        Raises:
            PointError: out of the point's range, not a number, no such symbol, no scale factor.
        """
        point = self.layout.point(name)
        where = f"model {self.layout.model}, point {name}"
        if point.is_text:
            data = str(value).encode()
            if len(data) > 2 * point.size:
                raise PointError(f"{where}: {value!r} has more than {2 * point.size} bytes")
            return _to_words(data.ljust(2 * point.size, b"\0"))
        if isinstance(value, str):
            if value not in point.symbols:
                raise PointError(f"{where}: {value!r} is none of {', '.join(point.symbols) or 'no symbols'}")
            value = point.symbols[value]
        if not isfinite(value):
            raise PointError(f"{where}: {value} is not a number")
        low, high = PERCENT.get(name, (None, None)) if self.layout.model == 704 else (None, None)
        if low is not None and high is not None and not low <= value <= high:
            raise PointError(f"{where}: {value:g} {point.units} is not between {low} and {high}")
        if point.symbols and point.type.startswith("enum") and value not in point.symbols.values():
            raise PointError(f"{where}: {value} is none of {dict(point.symbols)}")
        power = self._power(point)
        if power is None:
            raise PointError(f"{where}: its scale factor {point.scale} is not implemented")
        number = round(value / 10.0**power if power >= 0 else value * 10.0**-power)
        least, greatest = span(point)
        if not least <= number <= greatest:
            unit = 10.0**power
            raise PointError(
                f"{where}: {value:g} {point.units} is not between {least * unit:g} and {greatest * unit:g}"
            )
        return _to_words(number.to_bytes(2 * point.size, "big", signed=least < 0))

    def put(self, name: str, value: Value | None) -> None:
        """Set a point; `None`: not implemented.

        Raises:
            PointError: see `encode`.
        """
        point = self.layout.point(name)
        words = self.layout.blanks[name] if value is None else self.encode(name, value)
        self.words[point.offset : point.offset + point.size] = words

    def _power(self, point: Point) -> int | None:
        if point.scale is None:
            return 0
        power = self.raw(point.scale) if isinstance(point.scale, str) else point.scale
        return power if isinstance(power, int) and -10 <= power <= 10 else None


def decode(point: Point, words: Sequence[int]) -> int | str:
    """What a point's registers say, without its scale, be it implemented or not."""
    if point.is_text:
        data = b"".join(word.to_bytes(2, "big") for word in words)
        return data.rstrip(b"\0").decode("utf-8", "replace")
    number = 0
    for word in words:
        number = number << 16 | word
    bits = 16 * len(words)
    return number - (1 << bits) if point.signed and number >> (bits - 1) else number


def span(point: Point) -> tuple[int, int]:
    """Least and greatest number that a point holds; the one that says "not implemented" left out."""
    bits = 16 * point.size
    return (1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1) if point.signed else (0, 2**bits - 2)


class Image:
    """All registers of a unit: the marker, its models one after the other, the end.

    Args:
        models: their numbers, in order.
        base: address of the marker.
    """

    def __init__(self, models: Sequence[int], base: int = 40_000) -> None:
        self.base = base
        self.blocks: dict[int, Block] = {}
        address = base + len(MARKER)
        for model in models:
            self.blocks[model] = Block(layout(model), address)
            address += layout(model).size
        self.end = address + len(END)

    def __getitem__(self, model: int) -> Block:
        try:
            return self.blocks[model]
        except KeyError:
            raise PointError(f"this device has no model {model}, only {sorted(self.blocks)}") from None

    def words(self) -> list[int]:
        """All of them, from `base` on."""
        return [*MARKER, *chain.from_iterable(block.words for block in self.blocks.values()), *END]
