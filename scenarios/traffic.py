"""Traffic: what a run said and heard, what its controllers were asked and answered; for `gridpace replay`.

    traffic/00000.jsonl.gz, 00001.jsonl.gz, ...      one JSON object a line; `zcat` reads them

| `way`     | what                                              | beside `at`, `step`                   |
|-----------|---------------------------------------------------|---------------------------------------|
| `out`     | a message handed to the bus                       | `topic`, `payload`, `retain`          |
| `in`      | a message taken from the bus                      | `topic`, `payload`                    |
| `asked`   | what a controller observed, exactly, and answered | `controller`, `ask`, `answer`, `late` |
| `resumed` | the run goes on after a kill                      | `after_step`                          |

A payload that is no text is in `base64` instead. A file is finished when it has `FILE_BYTES`; when all
together have more than the scenario allows, the oldest goes. What controllers were asked in a step is on disk
before the step's rows are, and what was said in it when the step is over; so a step that counts as done is on
record, and one that a kill has cut short may be so twice, with `resumed` in between.
"""

from __future__ import annotations

import base64
import json
import os
import threading
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from bridges import conversation
from bridges.bus import Message
from bridges.tapped import Way
from bridges.wire import BadMessage
from controllers.contract import Decision, Observation

TRAFFIC = "traffic"
FILE_BYTES = 32_000_000
"""Of one file, compressed."""
_BESIDE = {"asked": {"controller", "ask", "answer", "late"}, "resumed": {"after_step"}}


class BadTraffic(Exception):
    """A file of the traffic is not what was written."""


class Traffic:
    """Writes a run's traffic; from any thread.

    Args:
        path: the run's folder.
        most_bytes: of all files together, compressed.
        dropped: told the name of each file that is removed to stay below that.
        wall: the wall clock.
    """

    def __init__(
        self,
        path: Path,
        *,
        most_bytes: int = 1_000_000_000,
        file_bytes: int = FILE_BYTES,
        dropped: Callable[[str], None] = lambda name: None,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._folder, self._most, self._each, self._dropped = path / TRAFFIC, most_bytes, file_bytes, dropped
        self._wall, self._lock = wall, threading.Lock()
        self._folder.mkdir(exist_ok=True)
        self.step = 0
        """the one in progress"""
        self._waiting: list[bytes] = []
        self._file, self._size = -1, 0
        self._begin()

    def message(self, way: Way, message: Message, retain: bool) -> None:
        """Note a message; see `bridges.tapped`."""
        said: dict[str, Any] = {"topic": message.topic}
        try:
            said["payload"] = message.payload.decode()
        except UnicodeDecodeError:
            said["base64"] = base64.b64encode(message.payload).decode()
        if way == "out":
            said["retain"] = retain
        self._note(way, said)

    def asked(
        self, controller: str, observation: Observation, said: Decision | BaseException, late: bool
    ) -> None:
        """Note what a controller was asked and answered.

        Args:
            late: whether the answer hung on the clock, because a deadline had passed.
        """
        try:
            answer = conversation.answer(controller, said)
            ask = conversation.ask(controller, observation)
        except BadMessage as error:  # nobody could be asked that again
            self._note("unwritten", {"controller": controller, "why": str(error)})
            return
        raw = {"ask": msgspec.Raw(ask), "answer": msgspec.Raw(answer)}
        self._note("asked", {"controller": controller, **raw, "late": late})

    def resumed(self, after_step: int) -> None:
        """Note that the run goes on after a kill."""
        self._note("resumed", {"after_step": after_step})

    def write(self) -> None:
        """Write what was noted so far; when this returns, a kill of the process does not lose it.

        Raises:
            OSError: the disk is full; the file ends with what it had before.
        """
        with self._lock:
            self._write()

    def flush(self, following: int) -> None:
        """The step is over, the next one is `following`: write what was noted."""
        with self._lock:
            self._write()
            self.step = following
            if self._size >= self._each:
                self._end()
                self._bound()
                self._begin()

    def close(self) -> None:
        """Write what is left."""
        with self._lock:
            if self._file >= 0:
                self._write()
                self._end()

    def _note(self, way: str, said: dict[str, Any]) -> None:
        line = msgspec.json.encode({"at": self._wall(), "step": self.step, "way": way, **said}) + b"\n"
        with self._lock:
            self._waiting.append(line)

    def _write(self) -> None:
        if self._waiting:
            text = self._packer.compress(b"".join(self._waiting)) + self._packer.flush(zlib.Z_SYNC_FLUSH)
            self._waiting = []
            self._put(text)

    def _put(self, text: bytes) -> None:
        written = 0
        try:
            while written < len(text):
                written += os.write(self._file, text[written:])
        except OSError:
            # What came next would refer to what is missing: the file ends here, as after a kill.
            os.ftruncate(self._file, self._size)
            os.close(self._file)
            self._file = -1
            raise
        self._size += len(text)

    def _bound(self) -> None:
        files = _files(self._folder)
        total = sum(file.stat().st_size for file in files)
        while files and total > self._most:
            oldest = files.pop(0)
            total -= oldest.stat().st_size
            oldest.unlink()
            self._dropped(oldest.name)

    def _begin(self) -> None:
        files = _files(self._folder)
        number = int(files[-1].name.partition(".")[0]) + 1 if files else 0
        file = self._folder / f"{number:05d}.jsonl.gz"
        self._file = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        # The fastest level: most of what it saves is names that repeat.
        self._packer, self._size = zlib.compressobj(1, zlib.DEFLATED, 31), 0

    def _end(self) -> None:
        self._put(self._packer.flush())
        os.close(self._file)
        self._file = -1


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """A run's traffic in order; what a kill has torn at the end of a file is left out. A payload is bytes.

    Raises:
        BadTraffic: a file is damaged.
    """
    for file in _files(path / TRAFFIC):
        try:
            for line in _whole(file):
                yield _said(line)
        except (zlib.error, ValueError, TypeError, AttributeError) as error:
            raise BadTraffic(f"{file} is damaged: {error}") from None


def _said(line: bytes) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(line)
    if lacking := {"way", "step", *_BESIDE.get(said.get("way", ""), ())} - said.keys():
        raise ValueError(f"a line lacks {', '.join(sorted(lacking))}")
    if "base64" in said:
        said["payload"] = base64.b64decode(said.pop("base64"))
    elif "payload" in said:
        said["payload"] = said["payload"].encode()
    return said


def _whole(file: Path) -> Iterator[bytes]:
    unpacker, rest = zlib.decompressobj(31), b""
    with file.open("rb") as packed:
        while block := packed.read(1 << 20):
            *found, rest = (rest + unpacker.decompress(block)).split(b"\n")
            yield from found
            if unpacker.unused_data:
                raise ValueError("there is something behind its end")


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*.jsonl.gz"))
