"""Series: a user's table of values over time, read from CSV or Parquet and checked.

Rows are counted from 1, the first below the header.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from simulators.processes import Array, Instants


@dataclass(frozen=True, eq=False)
class Series:
    """Values at rising instants, without a gap."""

    file: Path
    columns: tuple[str, ...]
    """names of the columns with values"""
    times: Instants
    """(rows,) UTC, strictly rising"""
    values: Array
    """(rows, columns)"""
    hold: np.timedelta64
    """how long a value holds"""

    @property
    def end(self) -> np.datetime64:
        """The first instant that has no value any more."""
        return np.datetime64(self.times[-1] + self.hold)


def stamp(at: np.datetime64) -> str:
    """An instant as in `2026-06-21T00:00:00Z`."""
    return str(np.datetime_as_string(at, unit="s")) + "Z"


def load(file: Path) -> pa.Table:
    """The table in a `.csv` or `.parquet` file.

    Raises:
        ValueError: a file that is missing, of another sort, or cannot be read.
    """
    readers = {".csv": pyarrow.csv.read_csv, ".parquet": pyarrow.parquet.read_table}
    reader = readers.get(file.suffix.lower())
    if reader is None:
        raise ValueError(
            f"{file}: cannot read a {file.suffix or 'nameless'} file; give a .csv or .parquet file"
        )
    try:
        table = reader(file)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{file}: {error}") from error
    if not table.num_rows:
        raise ValueError(f"{file}: has no row")
    return table


def read(
    file: Path,
    names: tuple[str, ...],
    *,
    time: str,
    column: str | None,
    naive_is_utc: bool,
    hold: np.timedelta64 | None,
) -> Series:
    """The series of some sites: of one column for all of them, or of one column each.

    Args:
        names: the sites.
        time: name of the column with the instants.
        column: the column that all sites follow; None: the only one beside `time`, or those named like
            the sites when there are more.
        naive_is_utc: times without a zone are UTC; otherwise they are refused.
        hold: how long a value holds; None: the usual (median) distance of two rows.

    Raises:
        ValueError: naming file, column, row and value: a file or column that is missing, a time or value
            that is missing or none, times that do not rise, a gap.
    """
    table = load(file)
    found = table.column_names
    others = tuple(name for name in found if name != time)
    wanted = (column,) if column is not None else others if len(others) == 1 else names
    for name in (time, *wanted):
        if found.count(name) != 1:
            often = "is missing" if name not in found else "is there more than once"
            raise ValueError(f"{file}: column {name!r} {often}; the file has {', '.join(map(repr, found))}")
    times = _times(file, time, table.column(time), naive_is_utc)
    values = np.column_stack([_numbers(file, name, table.column(name)) for name in wanted])
    return Series(file, wanted, times, values, _hold(file, time, times, hold))


def _times(file: Path, name: str, column: Any, naive_is_utc: bool) -> Instants:
    _no_null(file, name, column)
    zoned = (
        f"{file}: column {name!r}, row {{}}: {{!r}} has no time zone; write e.g. 2026-06-21T00:00:00Z, "
        + ("or set naive_is_utc: true if the times are UTC")
    )
    if pa.types.is_timestamp(column.type):
        times = np.asarray(column.to_numpy(zero_copy_only=False)).astype("datetime64[us]")
        if column.type.tz is None and not naive_is_utc:
            raise ValueError(zoned.format(1, str(np.datetime_as_string(times[0], unit="s"))))
    else:
        # Text: times that Arrow does not know, or some with and some without a zone.
        instants = []
        for row, text in enumerate(column.to_pylist(), 1):
            try:
                instant = datetime.fromisoformat(text)
            except (TypeError, ValueError):
                raise ValueError(
                    f"{file}: column {name!r}, row {row}: {text!r} is no time; "
                    "write e.g. 2026-06-21T00:00:00Z"
                ) from None
            if instant.tzinfo is None:
                if not naive_is_utc:
                    raise ValueError(zoned.format(row, text))
                instant = instant.replace(tzinfo=UTC)
            instants.append(instant.astimezone(UTC).replace(tzinfo=None))
        times = np.array(instants, dtype="datetime64[us]")
    falls = np.flatnonzero(np.diff(times) <= np.timedelta64(0))
    if len(falls):
        i = int(falls[0])
        raise ValueError(
            f"{file}: column {name!r}, row {i + 2}: {stamp(times[i + 1])} does not come after "
            f"{stamp(times[i])} of the row above; sort the rows by time and keep each time once"
        )
    return times


def _numbers(file: Path, name: str, column: Any) -> npt.NDArray[np.float64]:
    _no_null(file, name, column)
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        values = np.asarray(column.to_numpy(zero_copy_only=False)).astype(float)
    else:
        values = np.empty(len(column))
        for i, text in enumerate(column.to_pylist()):
            try:
                values[i] = float(text) if isinstance(text, str) else float("nan")
            except ValueError:
                values[i] = float("nan")
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        i = int(bad[0])
        raise ValueError(
            f"{file}: column {name!r}, row {i + 1}: {column[i].as_py()!r} is no finite number"
            + (f", nor are {len(bad) - 1} more of this column" if len(bad) > 1 else "")
        )
    return values


def _no_null(file: Path, name: str, column: Any) -> None:
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0]) + 1
        raise ValueError(
            f"{file}: column {name!r}, row {row}: the value is missing (empty or NaN), "
            f"as in {column.null_count} of {len(column)} rows; give every row a value"
        )


def _hold(file: Path, name: str, times: Instants, hold: np.timedelta64 | None) -> np.timedelta64:
    distances = np.diff(times)
    if hold is None:
        if not len(distances):
            raise ValueError(f"{file}: has a single row; say with `hold` how long its value holds")
        hold = np.timedelta64(np.sort(distances)[len(distances) // 2])
    gaps = np.flatnonzero(distances > hold)
    if len(gaps):
        i = int(gaps[0])
        raise ValueError(
            f"{file}: column {name!r}, row {i + 2}: no value between {stamp(times[i])} and "
            f"{stamp(times[i + 1])}, a gap of {distances[i].item()}, but a value holds for "
            f"{hold.item()}; add the rows or set `hold`"
        )
    return hold
