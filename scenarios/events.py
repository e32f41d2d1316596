"""Events: faults, alarms and changes of state of a run, one JSON object a line, on disk at once."""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from scenarios.plain import plain
from scenarios.secrecy import without_secrets
from simulators.journal import replacing

EVENTS = "events.jsonl"


class BadEvents(Exception):
    """The file does not hold a run's events."""


class Events:
    """Faults, alarms and changes of state, each a line that is on disk when `record` returns."""

    def __init__(self, path: Path) -> None:
        self.counts: Counter[str] = Counter()
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def record(self, time: datetime, what: str, *, step: int | None = None, **details: Any) -> None:
        """Append `{"time", "step", "what", ...details}` and count it under `what`.

        A detail that is no number (NaN, infinite) becomes null; what JSON does not know becomes text.

        Raises:
            OSError: the disk is full; the file ends with the last whole line.
        """
        event = {"time": time, "step": step, "what": what, **without_secrets(details)}
        line = json.dumps(plain(event), ensure_ascii=False).encode() + b"\n"
        if (written := os.write(self._file, line)) < len(line):  # half a line would spoil the next one too
            os.ftruncate(self._file, os.fstat(self._file).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), EVENTS)
        self.counts[what] += 1

    def close(self) -> None:
        """Close the file; what was recorded is on disk already."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Events:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def trim_events(path: Path, beyond: int | None) -> None:
    """Take off the events of a run that was killed a last line that the kill has torn.

    Args:
        beyond: steps after this one are done again, and what happened in them happens again: these events go
            too; `None`: all stay.

    Raises:
        BadEvents: the file is damaged.
        OSError: it cannot be written.
    """
    if not path.exists():
        return
    with replacing(path) as file:
        kept = [e for e in read_events(path) if beyond is None or e["step"] is None or e["step"] <= beyond]
        file.write_text("".join(json.dumps(event, ensure_ascii=False) + "\n" for event in kept), "utf-8")


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a file; none if there is no file. A last line that a kill has torn is left out.

    Raises:
        BadEvents: a line that is no event.
    """
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if line.endswith("\n"):
                yield _event(line, f"{path}, line {number}")


def _event(line: str, where: str) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except ValueError as error:
        raise BadEvents(f"{where} is damaged: {error}") from None
    if not isinstance(event, dict) or not {"time", "what"} <= event.keys():
        raise BadEvents(f"{where} is damaged: it is no event")
    if not isinstance(event.setdefault("step", None), int | None):
        raise BadEvents(f"{where} is damaged: its step is {event['step']!r}")
    return event
