"""The folder of one run: its manifest, its events, and where its tables and verdicts lie.

runs/<name>-<UTC>/
    manifest.json    what was run, with what, where, and how it ended
    events.jsonl     see `scenarios.events`
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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scenarios.plain import canonical, write_json
from scenarios.secrecy import without_secrets

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]

MANIFEST = "manifest.json"

PACKAGES = (
    *("gridpace", "mosaik", "pandapower", "power-grid-model", "numpy", "scipy", "cvxpy", "clarabel"),
    *("highspy", "aiomqtt", "paho-mqtt", "amqtt", "msgspec", "pydantic", "pyarrow"),
)
"""Packages whose versions a manifest gives."""


class NotARun(Exception):
    """The folder is not that of a run."""


class StillRunning(Exception):
    """The run's process is alive."""


@dataclass(frozen=True, slots=True)
class Exit:
    """How a run ended."""

    status: int
    """exit status of the command line"""
    meaning: str


@dataclass(frozen=True, slots=True)
class Code:
    """Which code runs; see `Manifest`."""

    versions: Mapping[str, str | None]
    commit: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumption:
    """When a run that was killed went on."""

    at: datetime
    """wall clock"""
    after_step: int
    """last step that was recorded before; -1: none"""
    step: int
    """first one that was recorded after"""
    epoch: int
    """from now on"""


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
    folder: str | None = None
    """where the scenario's relative files are looked for; `None`: not known"""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """sha256 of the files that the scenario names, by name"""
    default: Mapping[str, Any] | None = None
    """what was found of the devices' defaults; see `scenarios.safe_default`"""
    epoch: int = 1
    """how often the run was begun, this time included"""
    resumed: Sequence[Resumption] = ()
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
    def named(cls, root: Path, name: str) -> RunDirectory:
        """Make the folder of a run whose name was chosen, so that devices know its topics beforehand.

        An empty folder is taken over: a kill before the first step leaves one, and nothing else.

        Raises:
            ValueError: a name that is none of a run's; the message says what is.
            FileExistsError: there was such a run; none is overwritten.
        """
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", name):
            raise ValueError(f"{name[:80]!r}: a run's name is 1 to 64 of the characters A-Z a-z 0-9 _ . -")
        path = root / name
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            if not path.is_dir() or any(path.iterdir()):
                raise
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
        self,
        *,
        scenario: Mapping[str, Any],
        sources: Sequence[str] = (),
        folder: Path | None = None,
        inputs: Mapping[str, str] | None = None,
        default: Mapping[str, Any] | None = None,
        now: datetime | None = None,
    ) -> None:
        """Write the manifest of a run that begins (`now`, by default the wall clock's).

        Args:
            scenario: resolved, as plain JSON, with `name`, `seed`, `steps` and `clock.mode`; its secrets
                are hidden before it is hashed and written.
            sources: citations of the methods that the run uses.
            folder, inputs, default: where the scenario's files are, what was in them, and what was found of
                the devices' defaults; see `Manifest`.
        """
        shown, here = without_secrets(scenario), self.here()
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
                folder=None if folder is None else str(folder.absolute()),
                inputs=dict(inputs or {}),
                default=default,
                versions=here.versions,
                commit=here.commit,
                host={
                    "platform": platform.platform(),
                    "machine": platform.machine(),
                    "cores": os.cpu_count(),
                },
            )
        )

    @staticmethod
    def here() -> Code:
        """What would run now."""
        versions = {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}
        return Code(versions, _commit())

    def again(self, *, after_step: int, step: int, now: datetime | None = None) -> None:
        """Note that the run goes on with the next epoch, after it was killed.

        Raises:
            NotARun: the run was never begun.
        """
        manifest = self.manifest()
        epoch = manifest.epoch + 1
        when = Resumption(at=now or datetime.now(UTC), after_step=after_step, step=step, epoch=epoch)
        self._write(replace(manifest, epoch=epoch, resumed=(*manifest.resumed, when)))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Have the folder to oneself, as long as the process lives; a kill gives it back.

        Raises:
            StillRunning: another process has it.
        """
        if fcntl is None:  # pragma: no cover - where there are no such locks
            yield
            return
        file = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise StillRunning(f"{self.path} is being run by another process; wait, or end it") from None
            yield
        finally:
            os.close(file)

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
            data["resumed"] = tuple(
                Resumption(**{**one, "at": datetime.fromisoformat(one["at"])})
                for one in data.get("resumed", ())
            )
            times: dict[str, Any] = {name: _time(data.pop(name)) for name in ("started_at", "finished_at")}
            return Manifest(**data, **times, exit=Exit(**ended) if ended else None)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise NotARun(f"{file} is no manifest of a run ({error}); give another folder") from error

    def _write(self, manifest: Manifest) -> None:
        write_json(self.path / MANIFEST, asdict(manifest))


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
