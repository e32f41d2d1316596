"""Resume: a run whose process was killed goes on at the step after the last one on disk.

What no table holds was written with each step (`simulators.checkpoint`), so nothing is simulated again.
Profiles follow from the seed. The rest is refused: a folder that is no run's, a run that has ended, one that
goes on, files that are not what was written, and a scenario whose files have changed since.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from scenarios.build import build
from scenarios.check import ScenarioInvalid, validate
from scenarios.events import EVENTS, BadEvents, read_events, trim_events
from scenarios.inputs import inputs_of
from scenarios.load import Draft
from scenarios.plain import canonical, difference
from scenarios.run import CannotWrite, Exit, Result, carry_out, judged, make_clock
from scenarios.run_directory import Manifest, NotARun, RunDirectory, StillRunning
from scenarios.schema import Scenario
from scenarios.secrecy import HIDDEN
from scenarios.session import CannotRecall, Observer, Past
from simulators.checkpoint import BadCheckpoint, Checkpoints
from simulators.clock import Clock, Mode
from simulators.journal import JOURNAL, Journal, NoTables, finish, finished_steps, tail
from simulators.tables import SCHEMAS


class CannotResume(Exception):
    """The folder does not hold a run that could go on; the message says why and what to do."""


@dataclass(frozen=True)
class Killed:
    """A run that was killed, and what it was to do."""

    directory: RunDirectory
    manifest: Manifest
    draft: Draft
    scenario: Scenario
    changed: tuple[str, ...] = field(default=())
    """versions of packages, and the code's, that are others now"""


def recorded(path: Path) -> tuple[RunDirectory, Manifest, Draft, Scenario]:
    """A run's folder and the scenario that it was run with.

    Raises:
        CannotResume: no run's folder, or a manifest that is not what was written.
    """
    try:
        directory = RunDirectory.open(path)
        manifest = directory.manifest()
    except NotARun as error:
        raise CannotResume(str(error)) from None
    digest = hashlib.sha256(canonical(manifest.scenario).encode()).hexdigest()
    if digest != manifest.scenario_sha256:
        raise CannotResume(
            f"{path}: the scenario in its manifest is not the one that was run (its sha256 differs); run the "
            "scenario anew"
        )
    if HIDDEN in canonical(manifest.scenario):
        raise CannotResume(f"{path}: its scenario had secrets, which were not kept; run the scenario anew")
    if manifest.folder is None:
        raise CannotResume(f"{path}: its manifest does not say where the scenario's files are; run it anew")
    draft = Draft(dict(manifest.scenario), Path(manifest.folder), str(path))
    try:
        scenario = validate(draft)
    except ScenarioInvalid as error:
        raise CannotResume(f"{path}: what was run is no valid scenario any more: {error}") from None
    return directory, manifest, draft, scenario


def killed(path: Path, given: Scenario | None = None) -> Killed:
    """A run that can go on; reads, and changes nothing.

    Args:
        path: its folder.
        given: the scenario that it should be a run of, if the user has named one.

    Raises:
        CannotResume: there is none, it has ended, or it is a run of something else.
    """
    directory, manifest, draft, scenario = recorded(path)
    _require_unended(manifest, path)
    if given is not None and (why := difference(manifest.scenario, given.model_dump(mode="json"))):
        raise CannotResume(f"{path} is a run of another scenario: {why}; leave the file and --set out")
    for name, digest in inputs_of(draft).items():
        if manifest.inputs.get(name, digest) != digest:
            raise CannotResume(
                f"{path}: {name} has changed since the run began, so that it would go on as another one; put "
                "the file back, or run the scenario anew"
            )
    now = RunDirectory.here()
    changed = [n for n, version in now.versions.items() if manifest.versions.get(n, version) != version]
    changed += ["commit"] if manifest.commit != now.commit else []
    return Killed(directory, manifest, draft, scenario, tuple(changed))


def _require_unended(manifest: Manifest, path: Path) -> None:
    if manifest.exit is not None:
        raise CannotResume(
            f"{path} has ended: {manifest.exit.meaning}; only a run that was killed can go on. See it with "
            f"gridpace report {path}"
        )


async def resume(
    path: Path,
    *,
    observer: Observer,
    given: Scenario | None = None,
    clock: Clock | None = None,
    stop: asyncio.Event | None = None,
) -> Result:
    """Go on with a run that was killed, and judge it; one that was killed while it ended is only judged.

    Args:
        path: its folder.
        given: see `killed`.
        clock, stop: see `scenarios.run.run`.

    Returns:
        See `scenarios.run.run`; of the whole run.

    Raises:
        CannotResume: see `killed`; also files that are damaged, and a run that is still going on.
        CannotWrite: the disk is full or the folder not writable; what is there stays, to be gone on with.
        BusUnreachable, NoBroker, NoProcess, ScenarioInvalid: see `scenarios.run.run`.
    """
    found = killed(path, given)
    try:
        with found.directory.held():
            _require_unended(found.directory.manifest(), path)  # it may have ended while we looked
            if _all_recorded(path):
                return _ended(found)
            clock = clock or make_clock(found.scenario)
            built = build(found.draft, found.scenario)
            past = _past(found, clock)
            return await carry_out(
                found.directory, found.draft, built, observer=observer, clock=clock, stop=stop, past=past
            )
    except (StillRunning, NotARun) as error:
        raise CannotResume(str(error)) from None
    except CannotRecall as error:
        raise CannotResume(f"{path}: {error}; go on with the version that began the run") from None


def resume_blocking(path: Path, *, observer: Observer, given: Scenario | None = None) -> Result:
    """`resume` for callers without an event loop.

    Raises:
        CannotResume, CannotWrite, BusUnreachable, NoBroker, NoProcess, ScenarioInvalid: see `resume`.
    """
    return asyncio.run(resume(path, observer=observer, given=given))


def _all_recorded(path: Path) -> bool:
    """Whether nothing is missing but the end: there are all tables, and no journal of which they are made."""
    return not (path / JOURNAL).exists() and all((path / f"{table}.parquet").exists() for table in SCHEMAS)


def _ended(found: Killed) -> Result:
    """Judge a run that was killed between its last step and its verdict."""
    path, planned = found.directory.path, found.scenario.steps
    with _refused(path):
        finish(path)  # of its parts there may be some left
        Checkpoints(path).remove()
        trim_events(path / EVENTS, None)
        steps = finished_steps(path)
        broke = [event["why"] for event in read_events(path / EVENTS) if event["what"] == "broke"]
    if steps >= planned:
        status, why = Exit.HELD, f"all {planned} steps done"
    elif broke:
        status, why = Exit.BROKE, f"broke after {steps} of {planned} steps: {broke[-1]}"
    else:
        status, why = Exit.STOPPED, f"{steps} of {planned} steps done"
    why += "; killed while it ended and judged later, so that it is not known what it had counted"
    return judged(found.scenario, found.directory, status, why, steps=steps, counts=found.manifest.counts)


@contextmanager
def _refused(path: Path) -> Iterator[None]:
    """Whatever is wrong with a run's files, in words."""
    try:
        yield
    except (NoTables, BadCheckpoint, BadEvents, ValueError) as error:
        raise CannotResume(f"{path}: is damaged, so the run cannot go on: {error}") from None
    except OSError as error:
        # Where a file is not what it should be the library gives no number; what is missing was there once.
        if error.errno is None or isinstance(error, FileNotFoundError):
            raise CannotResume(f"{path}: is damaged, so the run cannot go on: {error}") from None
        raise CannotWrite(
            f"{path}: cannot be written: {error.strerror or error}; resume it when it can be"
        ) from None


def _past(found: Killed, clock: Clock) -> Past:
    """What a run has behind it; its journal is open from here on."""
    path, scenario = found.directory.path, found.scenario
    seal_every = scenario.record.seal_every
    with _refused(path):
        if not (path / JOURNAL).exists() and not any(path.glob("*.parquet")):
            journal = Journal(path, seal_every=seal_every)  # killed before there was one
        else:
            journal = Journal.resume(path, seal_every=seal_every)
        step = -1 if journal.step is None else journal.step
        if step < 0:
            state, whole = None, True
        else:
            state = Checkpoints(path).read(step)
            whole = step in tail(path, "steps")["step"].to_pylist()
    following = step + 1
    if state is not None and clock.mode is Mode.LIVE and (wall0 := state["wall0"]) is not None:
        following = max(following, min(clock.resume(wall0), scenario.steps))
    again = following == step + 1
    with _refused(path):
        trim_events(path / EVENTS, step if again else None)
        found.directory.again(after_step=step, step=following)
    return Past(
        epoch=found.manifest.epoch + 1,
        step=step,
        following=following,
        recorded=step + 1 - sum(one.step - one.after_step - 1 for one in found.manifest.resumed),
        state=state,
        journal=journal,
        whole=whole,
        changed=found.changed,
    )
