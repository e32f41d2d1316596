"""Journal: every finished step of a run on disk at once, and the run's tables in Parquet at the end.

A run's folder holds, while the run goes on,

    journal.arrows              an Arrow IPC stream: a record batch of one row a step, a column a table
    parts/<table>-00000.parquet  what was sealed before, `seal_every` steps each

and when it is finished `<table>.parquet` alone. The journal's schema says which part it will become;
it is replaced by an empty one in the same rename that makes the part count. So a process that is
killed at any instant leaves every appended step readable, once. (A power cut is another matter:
nothing is forced through the operating system's cache.)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path
from types import TracebackType
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from simulators.tables import SCHEMAS, Rows, struct

JOURNAL = "journal.arrows"
PARTS = "parts"

_LISTS = {table: pa.list_(pa.struct(list(schema))) for table, schema in SCHEMAS.items()}
_STREAM = pa.schema([pa.field("step", pa.int64()), *(pa.field(t, kind) for t, kind in _LISTS.items())])
_Read: TypeAlias = tuple[int, list[pa.RecordBatch], int]
"""The part that a journal will become, its whole batches, and how many bytes these are."""
_KEY = ["epoch", "seq", "device"]
# Rows a step of these may differ between equal runs; they must not decide where a part ends.
_TIMED_BY_THE_WORLD = frozenset({"steps", "setpoints"})


class NoTables(FileNotFoundError):
    """The folder holds neither a run's journal nor its tables."""


class Journal:
    """Appends steps to a run's folder and seals them.

    Memory and journal stay bounded: after `seal_every` steps, or `seal_rows` rows, the journal becomes
    a Parquet part. Equal input gives byte-identical Parquet files.

    Args:
        path: the run's folder, which exists.

    Raises:
        FileExistsError: the folder holds a journal or a table already.
    """

    torn_bytes = 0
    """of an unfinished last batch, dropped when it was resumed"""

    def __init__(self, path: Path, *, seal_every: int = 1000, seal_rows: int = 1_000_000) -> None:
        taken = [p.name for p in (path / JOURNAL, *(path / f"{t}.parquet" for t in SCHEMAS)) if p.exists()]
        if taken:
            raise FileExistsError(f"{path} holds {taken[0]} already; a run needs a new folder")
        self.path = path
        self._seal_every, self._seal_rows = seal_every, seal_rows
        self._step: int | None = None
        self._part = -1
        self._file = -1
        self._closed = False
        (path / PARTS).mkdir(exist_ok=True)
        self._begin()

    @classmethod
    def resume(cls, path: Path, *, seal_every: int = 1000, seal_rows: int = 1_000_000) -> Journal:
        """Go on with the journal of a run that was killed; an end that the kill has torn is dropped.

        Raises:
            NoTables: there is no journal here; the run was not begun, or it has ended.
        """
        if not (path / JOURNAL).exists():
            raise NoTables(f"{path} has no {JOURNAL}: nothing was recorded here, or the run has ended")
        found = object.__new__(cls)
        found.path, found._seal_every, found._seal_rows, found._closed = path, seal_every, seal_rows, False
        found._part, batches, found._size = _journal(path)
        found.torn_bytes = (path / JOURNAL).stat().st_size - found._size
        os.truncate(path / JOURNAL, found._size)
        (path / PARTS).mkdir(exist_ok=True)
        found._file = os.open(path / JOURNAL, os.O_WRONLY | os.O_APPEND)
        steps = [batch.column("step")[0].as_py() for batch in batches]
        found._steps, found._rows = len(set(steps)), sum(map(_counted, batches))
        found._step = steps[-1] if steps else _last_sealed(path, found._part)
        return found

    @property
    def step(self) -> int | None:
        """The last step of which something is on disk; `None` before the first."""
        return self._step

    def append(self, step: int, tables: Mapping[str, Rows]) -> None:
        """Write one step's rows; when this returns, a kill of the process does not lose them.

        A table that is left out has no row. The same step may be appended again with more rows, e.g.
        acknowledgements of its setpoints that came late.

        Raises:
            ValueError: a step before the last one; whatever `tables.struct` refuses.
            OSError: the disk is full; the journal keeps its steps and can be appended to again.
        """
        if self._closed:
            raise ValueError(f"journal of {self.path}: closed, cannot append step {step}")
        if self._step is not None and step < self._step:
            raise ValueError(f"journal of {self.path}: step {step} after step {self._step}")
        if unknown := tables.keys() - SCHEMAS.keys():
            raise ValueError(f"no table {sorted(unknown)}; there are {', '.join(SCHEMAS)}")
        if step != self._step:
            self.rest()
        columns = [pa.array([step], pa.int64())]
        rows = 0
        for table, kind in _LISTS.items():
            values = struct(table, tables[table]) if table in tables else _empty(table)
            columns.append(pa.ListArray.from_arrays(_offsets(len(values)), values, type=kind))
            rows += 0 if table in _TIMED_BY_THE_WORLD else len(values)
        # One write of the whole message, so that only the last one can ever be torn.
        self._write(pa.record_batch(columns, schema=_STREAM).serialize())
        self._steps += step != self._step
        self._rows += rows
        self._step = step

    def rest(self) -> None:
        """Seal if it is time to, and be done with it before the next step; not in the middle of one."""
        if self._steps >= self._seal_every or self._rows >= self._seal_rows:
            self.seal()

    def seal(self) -> None:
        """Turn the journal into a Parquet part and begin an empty one."""
        batches = _journal(self.path)[1]
        for table in SCHEMAS:
            with replacing(_part(self.path, table, self._part)) as file, _parquet(file, table) as writer:
                rows = _rows(batches, table)
                if len(rows):
                    writer.write_table(rows, row_group_size=len(rows))
        self._begin()

    def close(self) -> None:
        """Finish: stream parts and journal into `<table>.parquet`, then remove them."""
        if not self._closed:
            self._closed = True
            os.close(self._file)
            finish(self.path)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self) -> None:
        header = _STREAM.with_metadata({"part": str(self._part + 1)}).serialize()
        with replacing(self.path / JOURNAL) as file:
            file.write_bytes(header)
        if self._file >= 0:
            os.close(self._file)
        self._file = os.open(self.path / JOURNAL, os.O_WRONLY | os.O_APPEND)
        self._part += 1
        self._size, self._steps, self._rows = header.size, 0, 0

    def _write(self, message: pa.Buffer) -> None:
        view = memoryview(message)
        written = 0
        try:
            while written < len(view):
                written += os.write(self._file, view[written:])
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._size += written


def finish(run_dir: Path) -> None:
    """Stream a run's parts and journal into one Parquet file a table, and remove them.

    Also for a run that was killed, never for one that still goes on. While the journal is there, parts
    and journal are the truth; from the instant it is removed, the tables are.

    Raises:
        NoTables: nothing was recorded here.
    """
    if (run_dir / JOURNAL).exists():
        journal = _journal(run_dir)
        for table in SCHEMAS:
            with replacing(run_dir / f"{table}.parquet") as file, _parquet(file, table) as writer:
                for rows in filter(len, _chunks(run_dir, table, journal)):
                    writer.write_table(rows, row_group_size=len(rows))
        (run_dir / JOURNAL).unlink()
    _require_tables(run_dir)
    for part in (run_dir / PARTS).glob("*"):
        part.unlink()
    if (run_dir / PARTS).exists():
        (run_dir / PARTS).rmdir()


def batches(run_dir: Path, table: str, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """A table's rows in the order of the run, in pieces: of a finished run or of one that was killed.

    Raises:
        ValueError: no such table.
        NoTables: nothing was recorded here.
    """
    if table not in SCHEMAS:
        raise ValueError(f"no table {table!r}; there are {', '.join(SCHEMAS)}")
    if (run_dir / JOURNAL).exists():
        for rows in _chunks(run_dir, table, _journal(run_dir)):
            yield from rows.select(columns or rows.schema.names).to_batches()
        return
    _require_tables(run_dir)
    with pq.ParquetFile(run_dir / f"{table}.parquet") as file:
        yield from file.iter_batches(columns=columns)


def read(run_dir: Path, table: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The whole of `batches` as one table, with the columns' types of `SCHEMAS`."""
    pieces = batches(run_dir, table, columns)
    first = next(pieces, None)
    schema = SCHEMAS.get(table)
    if schema is not None and columns:
        schema = pa.schema([schema.field(name) for name in columns])
    return pa.Table.from_batches([] if first is None else [first, *pieces], schema)


def tail(run_dir: Path, table: str) -> pa.Table:
    """A table's rows that were written last, in the order of writing: those of the last step at least."""
    part, batches, _ = _journal(run_dir)
    if batches or not part:
        return _rows(batches, table)
    return pq.read_table(_part(run_dir, table, part - 1), schema=SCHEMAS[table])


def log(run_dir: Path, table: str) -> Iterator[pa.RecordBatch]:
    """All rows of a table of an unfinished run, as they were written."""
    for rows in _logged(run_dir, table, _journal(run_dir)):
        yield from rows.to_batches()


def finished_steps(run_dir: Path) -> int:
    """How many steps a run has on disk.

    Raises:
        NoTables: nothing was recorded here.
    """
    count, last = 0, None
    for batch in batches(run_dir, "steps", ["step"]):
        steps = batch.column(0).to_numpy()
        if len(steps):
            count += int(np.count_nonzero(np.diff(steps))) + (steps[0] != last)
            last = steps[-1]
    return count


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write that takes the place of `path` in one piece, or not at all."""
    file = path.with_name(path.name + ".tmp")
    try:
        yield file
        file.replace(path)
    finally:
        file.unlink(missing_ok=True)


def settled(log: Callable[[], Iterator[pa.Table]]) -> Iterator[pa.Table]:
    """Setpoints, each once, with what is known of it last, in the order of issue.

    Only instructions that are still valid are held back, so memory does not grow with the run. What
    becomes known after an instruction's validity and in a later part is found by a first pass.

    Args:
        log: begins to read the rows as they were appended, some parts at a time.
    """
    held_back = _Outstanding()
    for chunk in log():
        held_back.push(chunk)
    late = held_back.late
    held_back = _Outstanding()
    for chunk in log():
        rows = held_back.push(chunk)
        both, _ = _latest(pa.concat_tables([rows, late]))
        rows, late = both.slice(0, len(rows)), both.slice(len(rows))
        yield rows
    both, _ = _latest(pa.concat_tables([held_back.held, late]))
    yield both


class _Outstanding:
    """Instructions whose validity has not passed by the time of the newest."""

    def __init__(self) -> None:
        self.held = SCHEMAS["setpoints"].empty_table()
        self.late = SCHEMAS["setpoints"].empty_table()
        self._released: pa.Scalar | None = None

    def push(self, chunk: pa.Table) -> pa.Table:
        rows, first = _latest(pa.concat_tables([self.held, chunk]))
        if self._released is not None:
            known = pa.array(first < len(self.held))
            fresh = pc.or_(known, pc.greater(rows["issued_at"], self._released))
            self.late = pa.concat_tables([self.late, rows.filter(pc.invert(fresh))])
            rows = rows.filter(fresh)
        if not len(rows):
            self.held = rows
            return rows
        over = pc.less(rows["valid_until"], pc.max(rows["issued_at"]))
        end = pc.index(over, False).as_py()
        released = rows if end < 0 else rows.slice(0, end)
        self.held = rows.slice(len(released))
        if len(released):
            self._released = pc.max(released["issued_at"])
        return released


def _latest(rows: pa.Table) -> tuple[pa.Table, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """The last row of each instruction, in the order of first rows; and where those first rows are."""
    numbered = rows.select(_KEY).append_column("row", pa.array(np.arange(len(rows))))
    groups = numbered.group_by(_KEY, use_threads=False).aggregate([("row", "min"), ("row", "max")])
    groups = groups.sort_by("row_min")
    return rows.take(groups["row_max"]).combine_chunks(), groups["row_min"].to_numpy()


def _chunks(run_dir: Path, table: str, journal: _Read) -> Iterator[pa.Table]:
    """A table of an unfinished run: its parts, then what its journal holds."""
    if table == "setpoints":
        return settled(lambda: _logged(run_dir, table, journal))
    return _logged(run_dir, table, journal)


def _logged(run_dir: Path, table: str, journal: _Read) -> Iterator[pa.Table]:
    part, batches, _ = journal
    for i in range(part):
        with pq.ParquetFile(_part(run_dir, table, i)) as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group)
    yield _rows(batches, table)


def _journal(run_dir: Path) -> _Read:
    batches: list[pa.RecordBatch] = []
    with pa.memory_map(str(run_dir / JOURNAL)) as file:
        stream = pa.ipc.open_stream(file)
        part = int(stream.schema.metadata[b"part"])
        end = file.tell()
        while True:
            try:
                batches.append(stream.read_next_batch())
                end = file.tell()
            except (StopIteration, pa.ArrowInvalid, OSError):
                return part, batches, end  # the end, or a batch that a kill has torn


def _counted(batch: pa.RecordBatch) -> int:
    """Rows that decide where a part ends."""
    lists = {table: batch.column(table) for table in SCHEMAS if table not in _TIMED_BY_THE_WORLD}
    return sum(len(rows.flatten()) for rows in lists.values())


def _last_sealed(run_dir: Path, part: int) -> int | None:
    if not part:
        return None
    with pq.ParquetFile(_part(run_dir, "steps", part - 1)) as file:
        steps = file.read(["step"])["step"]
    return int(steps[-1].as_py()) if len(steps) else None


def _rows(journal: Sequence[pa.RecordBatch], table: str) -> pa.Table:
    column = pa.chunked_array([batch.column(table) for batch in journal], _LISTS[table]).combine_chunks()
    return pa.Table.from_struct_array(column.flatten()).cast(SCHEMAS[table])


def _parquet(file: Path, table: str) -> pq.ParquetWriter:
    # Measured numbers hardly repeat: a dictionary of them costs ten times the writing and saves nothing.
    repeated = [f.name for f in SCHEMAS[table] if pa.types.is_string(f.type) or pa.types.is_timestamp(f.type)]
    return pq.ParquetWriter(file, SCHEMAS[table], compression="zstd", use_dictionary=repeated)


def _part(run_dir: Path, table: str, number: int) -> Path:
    return run_dir / PARTS / f"{table}-{number:05d}.parquet"


def _require_tables(run_dir: Path) -> None:
    missing = [f"{table}.parquet" for table in SCHEMAS if not (run_dir / f"{table}.parquet").exists()]
    if missing:
        raise NoTables(f"{run_dir} has neither {JOURNAL} nor {missing[0]}: nothing was recorded here")


@cache
def _empty(table: str) -> pa.StructArray:
    return struct(table, {})


@lru_cache(1024)
def _offsets(size: int) -> pa.Array:
    return pa.array([0, size], pa.int32())
