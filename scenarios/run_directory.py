"""The folder of one run: its manifest, its events, and where its tables and verdicts lie.

runs/<name>-<UTC>/
    manifest.json    what was run, with what, where, and how it ended
    events.jsonl     faults, alarms, changes of state: one JSON object a line
    journal.arrows, parts/, <table>.parquet      see `simulators.journal`
    verdicts.json, junit.xml                     see `scenarios.verdicts`
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from types import TracebackType
from typing import Any

from simulators.journal import replacing

MANIFEST = "manifest.json"
EVENTS = "events.jsonl"

PACKAGES = (
    *("gridpace", "mosaik", "pandapower", "power-grid-model", "numpy", "scipy", "cvxpy", "clarabel"),
    *("highspy", "aiomqtt", "paho-mqtt", "amqtt", "msgspec", "pydantic", "pyarrow"),
)
"""Packages whose versions a manifest gives."""

_PASSWORD_IN_URL = re.compile(r"(?P<before>[a-z][a-z0-9+.-]*://[^/?#\s:]*:)\S+(?=@)", re.I)
_SECRET_IN_QUERY = re.compile(r"(?P<before>[?&](?:password|passwd|token|secret|key)=)[^&#\s]+", re.I)
_SECRET_NAME = re.compile(r"(password|passwd|secret|token)$", re.I)
_HIDDEN = "***"


class NotARun(Exception):
    """The folder is not that of a run."""


@dataclass(frozen=True, slots=True)
class Exit:
    """How a run ended."""

    status: int
    """exit status of the command line"""
    meaning: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What was run, with what, where, and how it ended."""

    name: str
    scenario: Mapping[str, Any]
    """the resolved scenario as plain JSON, without secrets"""
    scenario_sha256: str
    """of `scenario` as canonical JSON: keys sorted, no spaces"""
    seeds: Mapping[str, int]
    clock: str
    """fast, scaled or live"""
    steps: int
    """how many were planned"""
    started_at: datetime
    versions: Mapping[str, str | None]
    """by package, and python; `None`: not installed as a package"""
    commit: str | None
    """git commit of the code, `-dirty` if it was changed; `None` outside a checkout"""
    host: Mapping[str, Any]
    sources: Sequence[str] = ()
    """the methods that were used, as citations"""
    finished_at: datetime | None = None
    steps_done: int | None = None
    counts: Mapping[str, float] = field(default_factory=dict)
    exit: Exit | None = None
    """`None` as long as the run goes on, and for ever if it was killed"""


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """A run's folder."""

    path: Path

    @classmethod
    def create(cls, root: Path, name: str, now: datetime) -> RunDirectory:
        """Make the folder of a new run, `root/<name>-<UTC>`, with `-2`, `-3`, ... after it when that is
        taken: a run never overwrites another.

        Raises:
            ValueError: a name that is no file name, a time without its zone.
        """
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(f"run name {name!r}: use letters, digits, '-', '_' and '.' only")
        if now.tzinfo is None:
            raise ValueError(f"run {name}: the time {now} has no time zone; make it UTC")
        root.mkdir(parents=True, exist_ok=True)
        stem = f"{name}-{now.astimezone(UTC):%Y%m%dT%H%M%SZ}"
        number = 1
        while True:
            path = root / (stem if number == 1 else f"{stem}-{number}")
            try:
                path.mkdir()
            except FileExistsError:
                number += 1
            else:
                return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """The folder of a run that exists.

        Raises:
            NotARun: it is none; the message says what to do.
        """
        if (path / MANIFEST).is_file():
            return cls(path)
        if not path.exists():
            raise NotARun(f"{path} does not exist; give the folder of a run, e.g. runs/NAME-TIME")
        if not path.is_dir():
            raise NotARun(f"{path} is a file; give the run's folder that holds {MANIFEST}")
        inside = sorted(p.parent.name for p in path.glob(f"*/{MANIFEST}"))
        advice = (
            f"it holds the run {inside[-1]}: give {path / inside[-1]}" if inside else "give a run's folder"
        )
        raise NotARun(f"{path} has no {MANIFEST}, so it is no run; {advice}")

    def begin(
        self, *, scenario: Mapping[str, Any], sources: Sequence[str] = (), now: datetime | None = None
    ) -> None:
        """Write the manifest of a run that begins (`now`, by default the wall clock's).

        Args:
            scenario: resolved, as plain JSON, with `name`, `seed`, `steps` and `clock.mode`; its secrets
                are hidden before it is hashed and written.
            sources: citations of the methods that the run uses.
        """
        shown = without_secrets(scenario)
        self._write(
            Manifest(
                name=shown["name"],
                scenario=shown,
                scenario_sha256=hashlib.sha256(canonical(shown).encode()).hexdigest(),
                seeds={"scenario": shown["seed"]},
                clock=shown["clock"]["mode"],
                steps=shown["steps"],
                started_at=now or datetime.now(UTC),
                sources=tuple(sources),
                versions={"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
                commit=_commit(),
                host={
                    "platform": platform.platform(),
                    "machine": platform.machine(),
                    "cores": os.cpu_count(),
                },
            )
        )

    def end(
        self,
        *,
        status: int,
        meaning: str,
        steps: int,
        counts: Mapping[str, float],
        now: datetime | None = None,
    ) -> None:
        """Add to the manifest how the run ended: exit status, what it means, steps done, what was counted.

        Raises:
            NotARun: the run was never begun.
        """
        self._write(
            replace(
                self.manifest(),
                finished_at=now or datetime.now(UTC),
                steps_done=steps,
                counts=dict(counts),
                exit=Exit(status, meaning),
            )
        )

    def manifest(self) -> Manifest:
        """The manifest as it was written last.

        Raises:
            NotARun: it cannot be read.
        """
        file = self.path / MANIFEST
        try:
            data = json.loads(file.read_text("utf-8"))
            ended = data.pop("exit")
            times: dict[str, Any] = {name: _time(data.pop(name)) for name in ("started_at", "finished_at")}
            return Manifest(**data, **times, exit=Exit(**ended) if ended else None)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise NotARun(f"{file} is no manifest of a run ({error}); give another folder") from error

    def _write(self, manifest: Manifest) -> None:
        write_json(self.path / MANIFEST, asdict(manifest))


class Events:
    """Faults, alarms and changes of state, each a line that is on disk when `record` returns."""

    def __init__(self, path: Path) -> None:
        self.counts: Counter[str] = Counter()
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def record(self, time: datetime, what: str, *, step: int | None = None, **details: Any) -> None:
        """Append `{"time", "step", "what", ...details}` and count it under `what`.

        A detail that is no number (NaN, infinite) becomes null; what JSON does not know becomes text.
        """
        event = {"time": time, "step": step, "what": what, **without_secrets(details)}
        line = json.dumps(plain(event), ensure_ascii=False)
        os.write(self._file, line.encode() + b"\n")
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


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a file; none if there is no file. A last line that a kill has torn is left out."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.endswith("\n"):
                yield json.loads(line)


def without_secrets(value: Any) -> Any:
    """`value` with every password hidden: in URLs, and under names like `password` or `token`."""
    if isinstance(value, Mapping):
        return {
            name: _HIDDEN
            if isinstance(inner, str) and inner and _SECRET_NAME.search(str(name))
            else without_secrets(inner)
            for name, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [without_secrets(inner) for inner in value]
    if isinstance(value, str):
        shown = _PASSWORD_IN_URL.sub(rf"\g<before>{_HIDDEN}", value)
        return _SECRET_IN_QUERY.sub(rf"\g<before>{_HIDDEN}", shown)
    return value


def canonical(value: Any) -> str:
    """`value` as the one JSON text that equal values share."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file for people to read, whole or not at all."""
    with replacing(path) as file:
        file.write_text(json.dumps(plain(value), indent=2, ensure_ascii=False) + "\n", "utf-8")


def plain(value: Any) -> Any:
    """`value` as JSON knows it: times as text in UTC, numpy's numbers as Python's, NaN as null."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, float):
        return float(value) if isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(inner) for inner in value]
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if hasattr(value, "tolist"):  # numpy's numbers and arrays
        return plain(value.tolist())
    return str(value)


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    here = Path(__file__)
    git = ("git", "-C", str(here.parent))
    try:
        # Only a checkout that tracks this file is ours; the package may be installed inside another's.
        subprocess.run(
            [*git, "ls-files", "--error-unmatch", here.name], check=True, capture_output=True, timeout=10
        )
        described = subprocess.run(
            [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            check=True,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None
