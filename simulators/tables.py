"""The tables of a run: their columns, and the fast way from a step's values to Arrow.

Units are in the names; an injection is positive. Times are UTC to the microsecond. A value that is
missing is null: NaN becomes null on the way in and is never stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from itertools import accumulate
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from controllers.fairness import Fairness

Column: TypeAlias = Sequence[Any] | npt.NDArray[Any] | pa.Array | str | float | datetime | None
"""A table's column for one step; a single value stands for every row."""
Rows: TypeAlias = Mapping[str, Column] | Sequence[Mapping[str, Any]] | pa.RecordBatch
"""One table's rows of one step, by column or, which is faster for up to some ten rows, row by row; what is
left out is null."""

_TIME = pa.timestamp("us", "UTC")
_NAME = pa.string()
_REAL = pa.float64()
_COUNT = pa.int64()
_VECTOR = pa.list_(_REAL)
_MATRIX = pa.list_(_VECTOR)


class Outcome(StrEnum):
    """What became of an instruction to a device."""

    ISSUED = "issued"
    """decided, but not handed to the bus"""
    SENT = "sent"
    """handed to the bus; nothing heard yet"""
    RECEIVED = "received"
    """the device has accepted it; its time has not come"""
    APPLIED = "applied"
    """the device obeys it, or did so until a newer one took its place"""
    REFUSED = "refused"
    """the device said no"""
    SUPERSEDED = "superseded"
    """a newer one took its place before it was applied"""
    EXPIRED = "expired"
    """it ended before it was applied, or without a word of the device"""
    FALLBACK = "fallback"
    """it was applied until it ended, and no newer one was there: the device obeys its fallback"""


STAMPS = ("received_at", "applied_at", "refused_at", "superseded_at", "expired_at", "fallback_at")
"""When a device said each word of an instruction's life."""


def _schema(key: Mapping[str, pa.DataType], values: Mapping[str, pa.DataType], *order: str) -> pa.Schema:
    fields = {name: pa.field(name, kind, nullable=False) for name, kind in key.items()}
    fields |= {name: pa.field(name, kind) for name, kind in values.items()}
    return pa.schema([fields[name] for name in order or fields])


def _reals(*names: str) -> dict[str, pa.DataType]:
    return dict.fromkeys(names, _REAL)


def _times(*names: str) -> dict[str, pa.DataType]:
    return dict.fromkeys(names, _TIME)


SCHEMAS: Mapping[str, pa.Schema] = MappingProxyType(
    {
        "steps": _schema(
            {"step": _COUNT, "time": _TIME},
            _times("planned_at", "started_at")
            | _reals("lateness_ms", "solve_ms", "power_flow_ms", "publish_ms")
            | {"controller": _NAME, "origin": _NAME},
        ),
        "buses": _schema({"time": _TIME, "bus": _NAME}, _reals("v_pu")),
        "branches": _schema({"time": _TIME, "branch": _NAME}, _reals("p_mw", "q_mvar", "loading_percent")),
        "devices": _schema(
            {"time": _TIME, "device": _NAME},
            _reals("p_mw", "q_mvar", "e_mwh", "available_mw", "curtailed_mw") | {"state": _NAME},
        ),
        "field": _schema(
            {"time": _TIME, "device": _NAME, "held": pa.bool_()},
            _times("measured_at", "silent_since")
            | _reals("assumed_mw", "assumed_mvar", "twin_p_mw", "twin_q_mvar", "twin_e_mwh")
            | _reals("divergence_mw", "divergence_mvar", "divergence_mwh"),
        ),
        "regulators": _schema({"time": _TIME, "regulator": _NAME, "position": _COUNT}, {}),
        "exchanges": _schema(
            {"time": _TIME, "microgrid": _NAME, "connected": pa.bool_()},
            _reals(
                *("p_mw", "q_mvar", "planned_mw", "pic_low_mw", "pic_high_mw", "aic_low_mw", "aic_high_mw"),
                *("unserved_mw", "unbalanced_mw", "heat_mw", "boiler_mw", "price_per_mwh", "cost"),
            ),
        ),
        "regions": _schema(
            _times("issued_at", "valid_from", "valid_until")
            | dict.fromkeys(("controller", "target", "kind"), _NAME)
            | {"seq": _COUNT, "axes": pa.list_(_NAME), "A": _MATRIX, "b": _VECTOR},
            {"binding": _NAME} | _reals("worst_v_pu", "worst_loading_percent") | {"power_flows": _COUNT},
        ),
        "setpoints": _schema(
            {"seq": _COUNT, "epoch": _COUNT, "device": _NAME, "outcome": _NAME}
            | _times("issued_at", "valid_until"),
            _reals("p_mw", "q_mvar") | _times("sent_at", "acked_at", *STAMPS) | {"reason": _NAME},
            *("seq", "epoch", "device", "issued_at", "valid_until", "p_mw", "q_mvar"),
            *("sent_at", "acked_at", *STAMPS, "reason", "outcome"),
        ),
        "forecasts": _schema({"issued_at": _TIME, "time": _TIME, "name": _NAME}, _reals("mean_mw", "std_mw")),
        "fairness": _schema(
            _times("issued_at", "valid_from")
            | {"controller": _NAME}
            | _reals(*(f.name for f in fields(Fairness) if f.default is MISSING)),
            _reals(*(f.name for f in fields(Fairness) if f.default is not MISSING)),
        ),
        "iterations": _schema(
            {"time": _TIME, "controller": _NAME, "number": _COUNT, "phase": _NAME, "cuts": _COUNT},
            _reals("lower", "upper", "gap") | {"ended": _NAME},
        ),
    }
)
"""The Arrow schema of each table. A column without null is one that every row must have.

`steps` has one row for each controller that was due in a step, or one row with controller and
origin null where none was. `setpoints` is a log of life cycles: a later row of the same
`(epoch, seq, device)` replaces the earlier one.
"""

MEASURED = ("planned_at", "started_at", "lateness_ms", "solve_ms", "power_flow_ms", "publish_ms")
"""Columns of `steps` that two equal runs do not share, because they are measured."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_OUTCOMES = frozenset(Outcome)
_SINGLE = (str, float, int, datetime, np.generic)


def struct(table: str, rows: Rows) -> pa.StructArray:
    """One table's rows as an Arrow struct array with the columns of `SCHEMAS[table]`.

    By column, a column may be an Arrow array (names are worth building once and reusing), a numpy array,
    a sequence, or one value for every row. `A` takes matrices, `b` vectors. NaN becomes null.

    Raises:
        ValueError: a table or column that does not exist, lengths that differ, a null where every row
            must have a value, a time without its zone, an unknown outcome.
    """
    plan = _PLANS.get(table)
    if plan is None:
        raise ValueError(f"no table {table!r}; there are {', '.join(SCHEMAS)}")
    if isinstance(rows, Sequence):
        return _by_row(table, plan, rows)
    given = rows if isinstance(rows, Mapping) else dict(zip(rows.schema.names, rows.columns, strict=True))
    if unknown := given.keys() - plan.names:
        raise ValueError(f"{table}: no column {sorted(unknown)}; there are {', '.join(SCHEMAS[table].names)}")
    columns: dict[str, pa.Array] = {}
    size = -1
    for name, value in given.items():
        if value is None or isinstance(value, _SINGLE):
            continue
        columns[name] = array = _array(table, name, plan.kinds[name], value)
        if size not in (-1, len(array)):
            raise ValueError(f"{table}.{name} has {len(array)} rows, the columns before it {size}")
        size = len(array)
    if size == -1:
        size = 1 if given else 0
    arrays = []
    for name, kind in plan.kinds.items():
        array = columns.get(name)
        if array is None:
            array = _repeated(table, name, kind, given.get(name), size)
        if array.null_count and name in plan.required:
            raise ValueError(
                f"{table}.{name} is null in {array.null_count} of {size} rows; each row must have it"
            )
        arrays.append(array)
    if table == "setpoints" and not (outcomes := set(arrays[-1].to_pylist())) <= _OUTCOMES:
        raise ValueError(f"setpoints.outcome: {sorted(outcomes - _OUTCOMES)} is none of {', '.join(Outcome)}")
    return pa.StructArray.from_arrays(arrays, fields=plan.fields)


def _by_row(table: str, plan: _Plan, rows: Sequence[Mapping[str, Any]]) -> pa.StructArray:
    plain = []
    for row in rows:
        if unknown := row.keys() - plan.names:
            raise ValueError(f"{table}: no column {sorted(unknown)}; there are {', '.join(plan.kinds)}")
        if lacking := [name for name in plan.required if row.get(name) is None]:
            raise ValueError(f"{table}.{lacking[0]} is null; each row must have it")
        values = {}
        for name, value in row.items():
            if isinstance(value, np.ndarray):
                value = value.tolist()
            elif isinstance(value, float) and value != value:
                value = None
            elif isinstance(value, datetime):
                _require_zone(table, name, (value,))
            values[name] = value
        if table == "setpoints" and values["outcome"] not in _OUTCOMES:
            raise ValueError(f"setpoints.outcome: {values['outcome']!r} is none of {', '.join(Outcome)}")
        plain.append(values)
    return pa.array(plain, plan.struct)


@dataclass(frozen=True, slots=True)
class _Plan:
    """A schema in plain Python: reading it from Arrow for every step costs more than the data."""

    fields: list[pa.Field]
    kinds: dict[str, pa.DataType]
    names: frozenset[str]
    required: frozenset[str]
    struct: pa.StructType


def _same(kind: pa.DataType) -> pa.DataType:
    """The one object of an equal type, so that a step compares types by identity."""
    return next((k for k in (_TIME, _NAME, _REAL, _COUNT, _VECTOR, _MATRIX) if k == kind), kind)


_PLANS = {
    table: _Plan(
        list(schema),
        {field.name: _same(field.type) for field in schema},
        frozenset(schema.names),
        frozenset(field.name for field in schema if not field.nullable),
        pa.struct(list(schema)),
    )
    for table, schema in SCHEMAS.items()
}


@lru_cache(1024)
def _nulls(kind: pa.DataType, size: int) -> pa.Array:
    return pa.nulls(size, kind)


@lru_cache(1024)
def _repeated_name(value: str, size: int) -> pa.Array:
    return pa.repeat(pa.scalar(value, _NAME), size)


def _repeated(table: str, name: str, kind: pa.DataType, value: Any, size: int) -> pa.Array:
    if value is None or value != value:
        return _nulls(kind, size)
    if kind is _NAME:
        return _repeated_name(str(value), size)
    if kind is _REAL:
        return _plain(np.full(size, value, np.float64), kind)
    if kind is _TIME and isinstance(value, datetime):
        _require_zone(table, name, (value,))
        return _plain(np.full(size, (value - _EPOCH) // _MICROSECOND, np.int64), kind)
    return pa.array([value] * size, kind)


def _plain(values: npt.NDArray[Any], kind: pa.DataType) -> pa.Array:
    """Contiguous numbers without nulls as they lie in memory; `pa.array` costs several times as much."""
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


def _array(table: str, name: str, kind: pa.DataType, value: Any) -> pa.Array:
    if isinstance(value, pa.Array):
        array = value if value.type == kind else value.cast(kind)
        if kind is _REAL and pc.any(pc.is_nan(array)).as_py():
            array = pc.if_else(pc.is_nan(array), None, array)
        return array
    if kind is _MATRIX:
        return _matrices(value)
    if kind is _VECTOR:
        return _vectors(value)
    if kind is _TIME:
        if isinstance(value, np.ndarray) and value.dtype.kind == "M":
            return pa.array(value.astype("datetime64[us]", copy=False), kind)
        _require_zone(table, name, value)
    if isinstance(value, np.ndarray):
        if kind is _REAL and value.dtype == np.float64 and not np.isnan(value).any():
            return _plain(np.ascontiguousarray(value), kind)
        if value.dtype.kind not in "fiu":
            value = value.tolist()
    return pa.array(value, kind, from_pandas=True)


def _require_zone(table: str, name: str, values: Sequence[datetime | None]) -> None:
    for value in values:
        if value is not None and value.tzinfo is None:
            raise ValueError(f"{table}.{name}: {value} has no time zone; make it UTC")


def _vectors(values: Sequence[Sequence[float] | npt.NDArray[np.float64]]) -> pa.Array:
    vectors = [np.asarray(v, dtype=float) for v in values]
    offsets = _ends([len(v) for v in vectors])
    flat = np.concatenate(vectors) if vectors else np.zeros(0)
    return pa.ListArray.from_arrays(offsets, _plain(flat, _REAL))


def _matrices(values: Sequence[npt.NDArray[np.float64]]) -> pa.Array:
    matrices = [np.asarray(m, dtype=float) for m in values]
    for m in matrices:
        if m.ndim != 2:
            raise ValueError(f"regions.A: a matrix was expected, not an array of shape {m.shape}")
    rows = [len(m) for m in matrices]
    widths = [m.shape[1] for m in matrices for _ in range(len(m))]
    flat = np.concatenate([m.ravel() for m in matrices]) if matrices else np.zeros(0)
    lists = pa.ListArray.from_arrays(_ends(widths), _plain(flat, _REAL))
    return pa.ListArray.from_arrays(_ends(rows), lists)


def _ends(sizes: Sequence[int]) -> pa.Array:
    return pa.array(list(accumulate(sizes, initial=0)), pa.int32())
