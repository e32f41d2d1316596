"""Compare: the same day once under each method, and what it led to, for `gridpace compare`.

Every run has the scenario's seed and so the same weather and loads; only the controller of the envelopes is
another, or that which corrects interchange capabilities (`scenarios.corrections`). The plant is the AC power
flow, so a method that is wrong about the network shows it.
"""

from __future__ import annotations

import copy
import multiprocessing
import os
import time as wall_time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from controllers.envelopes.method import EnvelopeMethod
from controllers.envelopes.static_limits import FixedLimits
from scenarios.check import ScenarioInvalid, validate
from scenarios.corrections import ALTERNATIVES, Alternative, alternatives, wanted
from scenarios.envelope_report import number
from scenarios.envelopes import Method, chosen, shared_options
from scenarios.figures import UNDECIDED, energies, rows, step_times, total
from scenarios.interchange_report import Interchange, interchange, table
from scenarios.load import Draft
from scenarios.plugins import NoSuchController, controller_class
from scenarios.run import CannotWrite, run_blocking
from scenarios.schema import Scenario
from scenarios.watch import watch
from simulators.journal import batches

METHODS = ("none", "static", "P-E", "PQ-E", "P-WE", "P-SE", "PQ-KL", "EPQ")
"""What is compared if nothing is asked: no control, the usual practice, and the paper's methods."""
BEYOND_V_PU, BEYOND_PERCENT = 1e-4, 0.1
"""What counts as beyond a limit: more than rounding and the certificate's own tolerance."""
PARALLEL = 2
"""Runs at a time."""
DAY = timedelta(days=1)
NAME = "dso"
"""Of the controller, where the scenario has none whose name it could take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A method that could not run."""

    method: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one run led to. Energies are of the devices; what is not known is `None`."""

    method: str
    certified: bool
    directory: str
    exit: str
    """how the run ended"""
    injected_mwh: float | None
    drawn_mwh: float | None
    """taken from the grid, positive"""
    missing: int
    """values of a device in a step that nobody knows, and that these energies leave out"""
    curtailed_mwh: float | None
    """of what sun and wind offered; `None`: nothing of it can be curtailed"""
    bus_minutes: float
    """sum over buses of the time that their voltage was beyond a limit"""
    branch_minutes: float
    unsolved_minutes: float
    """time without a solution of the power flow, in which nothing else was counted"""
    worst_v_pu: float | None
    worst_loading_percent: float | None
    area_mva2: float | None
    """mean over the decisions of the sum of the devices' areas"""
    export_mw: float | None
    """mean over the decisions of the sum of the greatest exports at Q = 0"""
    import_mw: float | None
    jain_export: float | None
    """mean over the decisions"""
    jain_import: float | None
    price: float | None
    """mean price of fairness"""
    decided: float | None
    """share of the due decisions that were made; `None`: none was due"""
    solve_ms: float | None
    """median"""
    wall_s: float
    interchange: Interchange | None = None
    """of a scenario with microgrids whose capabilities are corrected"""


def drafts(
    draft: Draft, scenario: Scenario, names: Sequence[str], *, certified: bool, steps: int | None
) -> Iterator[tuple[Method | Alternative, Draft]]:
    """The scenario once for each method: fast, on the memory bus, a day at most.

    Controllers of the scenario that are no methods of envelopes stay; the first that is one gives its name,
    its rhythm and its shared options to the method's, and the others go. Where one corrects interchange
    capabilities, its alternatives are meant unless methods of envelopes are named.

    Raises:
        NoSuchMethod: see `scenarios.envelopes.chosen`.
    """
    if steps is None:
        steps = min(scenario.steps, DAY // scenario.every)
    corrections = wanted(draft, scenario, names)
    if corrections is not None:
        for one, raw in alternatives(draft, scenario, corrections):
            raw["controllers"] = [_here(part) for part in raw["controllers"]]
            yield one, replace(draft, raw=_hurried(raw, steps))
        return
    for method in chosen(names or METHODS):
        raw = _hurried(copy.deepcopy(draft.raw), steps)
        wrapped = certified and not issubclass(method, FixedLimits)
        options = shared_options(draft, scenario, method)
        raw["controllers"] = list(_replaced(draft, raw.get("controllers") or [], method, options, wrapped))
        yield method, replace(draft, raw=raw)


def _hurried(raw: dict[str, Any], steps: int) -> dict[str, Any]:
    raw["steps"], raw["clock"], raw["bus"] = steps, {"mode": "fast"}, {"kind": "memory"}
    raw["record"] = {**(raw.get("record") or {}), "forecasts": False}
    raw["expect"] = []
    return raw


def _here(part: Mapping[str, Any]) -> dict[str, Any]:
    """A controller in the run's own process: the memory bus reaches no other."""
    return {key: value for key, value in part.items() if key not in ("process", "deadline")}


def _replaced(
    draft: Draft, parts: Sequence[dict[str, Any]], method: Method, options: Mapping[str, Any], certified: bool
) -> Iterator[dict[str, Any]]:
    ours = {"name": NAME, "uses": f"{method.__module__}:{method.__name__}", "options": dict(options)}
    placed = False
    for part in parts:
        if not _shares(part, draft.folder):
            yield _here(part)
        elif not placed:
            placed = True
            keys = ["name", "every", "valid_for"]
            if not issubclass(method, FixedLimits):
                keys.append("rolling")
            kept = {key: part[key] for key in keys if key in part}
            own = part.get("certified") or True
            yield {**ours, **kept, **({"certified": own} if certified else {})}
    if not placed:
        yield {**ours, **({"certified": True} if certified else {})}


def _shares(part: Mapping[str, Any], folder: Path) -> bool:
    """Whether a controller is a method of envelopes."""
    try:
        return issubclass(controller_class(str(part.get("uses")), folder), EnvelopeMethod)
    except NoSuchController:
        return False


def compare(
    runs: Sequence[tuple[Method | Alternative, Draft]],
    root: Path,
    *,
    certified: bool,
    say: Callable[[str], None] = lambda line: None,
) -> list[Outcome | Refused]:
    """Run them all, two at a time, each into a folder of its own below `root`; answers in their order."""
    folders = [root / method.acronym.replace(" ", "-") for method, _ in runs]
    flags = [certified and is_checked(method) for method, _ in runs]
    jobs = [
        (method.acronym, draft, folder, flag, method.agreement if isinstance(method, Alternative) else None)
        for (method, draft), folder, flag in zip(runs, folders, flags, strict=True)
    ]
    if len(jobs) == 1:
        return [one(*jobs[0])]
    done: dict[int, Outcome | Refused] = {}
    workers = min(PARALLEL, os.cpu_count() or 1, len(jobs))
    # A fresh interpreter each: what one run leaves in memory must not make another one slower.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(one, *job): i for i, job in enumerate(jobs)}
        for future in as_completed(waiting):
            i = waiting[future]
            done[i] = found = future.result()
            say(f"{found.method}: " + (found.why if isinstance(found, Refused) else found.exit))
    return [done[i] for i in range(len(jobs))]


def is_checked(method: Method | Alternative) -> bool:
    """Whether the AC power flow can correct what it publishes."""
    return not isinstance(method, Alternative) and not issubclass(method, FixedLimits)


def one(
    method: str, draft: Draft, root: Path, certified: bool, agreement: Mapping[str, Any] | None = None
) -> Outcome | Refused:
    """One run and its figures, in a process of its own; `agreement` as in `interchange`."""
    started = wall_time.perf_counter()
    try:
        scenario = validate(draft)
        with watch(scenario, quiet=True, log_every_s=0) as observer:
            result = run_blocking(draft, scenario, root=root, observer=observer)
    except (ScenarioInvalid, CannotWrite) as error:
        return Refused(method=method, why=str(error))
    took_s = wall_time.perf_counter() - started
    found = outcome(result.directory, scenario, method, certified, result.why, took_s)
    return replace(found, interchange=interchange(result.directory, draft, scenario, agreement))


def outcome(
    run_dir: Path, scenario: Scenario, method: str, certified: bool, ended: str, wall_s: float
) -> Outcome:
    """The figures of one run's folder."""
    times, _ = step_times(run_dir)
    minutes = scenario.every / timedelta(minutes=1)
    energy = [e for e in energies(run_dir, scenario.every).values() if e.controlled]
    curtailed = [e.curtailed for e in energy if e.curtailed is not None]
    low, high = scenario.grid.limits.v_pu
    buses, v_low, v_high, solved = 0, np.inf, -np.inf, set()
    for batch in batches(run_dir, "buses"):
        v_pu = batch["v_pu"].to_numpy(zero_copy_only=False)
        buses += int(((v_pu < low - BEYOND_V_PU) | (v_pu > high + BEYOND_V_PU)).sum())
        v_low, v_high = min(v_low, np.nanmin(v_pu)), max(v_high, np.nanmax(v_pu))
        solved |= set(batch["time"].unique().to_pylist())
    branches, loading = 0, -np.inf
    for batch in batches(run_dir, "branches"):
        percent = batch["loading_percent"].to_numpy(zero_copy_only=False)
        branches += int((percent > scenario.grid.limits.loading_percent + BEYOND_PERCENT).sum())
        loading = max(loading, np.nanmax(percent, initial=-np.inf))
    worst = v_low if low - v_low > v_high - high else v_high
    fair = list(rows(run_dir, "fairness", _FAIR))
    turns = [row for row in rows(run_dir, "steps", ["controller", "origin", "solve_ms"]) if row["controller"]]
    solves = [row["solve_ms"] for row in turns if row["solve_ms"] is not None]
    means: dict[str, Any] = {name: _mean([row[name] for row in fair]) for name in _FAIR}
    return Outcome(
        method=method,
        certified=certified,
        directory=str(run_dir),
        exit=ended,
        injected_mwh=total(e.generated for e in energy),
        drawn_mwh=total(e.consumed for e in energy),
        missing=sum(len(times) - e.known_steps for e in energy),
        curtailed_mwh=sum(curtailed) if curtailed else None,
        bus_minutes=buses * minutes,
        branch_minutes=branches * minutes,
        unsolved_minutes=(len(times) - len(solved)) * minutes,
        worst_v_pu=float(worst) if solved else None,
        worst_loading_percent=float(loading) if np.isfinite(loading) else None,
        **means,
        decided=sum(row["origin"] not in UNDECIDED for row in turns) / len(turns) if turns else None,
        solve_ms=float(np.median(solves)) if solves else None,
        wall_s=wall_s,
    )


_FAIR = ("area_mva2", "export_mw", "import_mw", "jain_export", "jain_import", "price")


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def as_json(outcomes: Sequence[Outcome | Refused]) -> list[dict[str, Any]]:
    """The same as plain JSON."""
    return [asdict(outcome) for outcome in outcomes]


def titled(runs: Sequence[tuple[Method | Alternative, Draft]], uncertified: bool) -> str:
    """What differs between the runs, in words."""
    if all(isinstance(method, Alternative) for method, _ in runs):
        return "correction of interchange capability"
    return "method, " + ("as the linear model says" if uncertified else "certified, but for none and static")


def show(outcomes: Sequence[Outcome | Refused], title: str, console: Console) -> None:
    """Print one line a method; readable in 100 columns."""
    console.print(Text(title, style="bold"))
    console.print(_envelopes(outcomes))
    if any(isinstance(o, Outcome) and o.interchange is not None for o in outcomes):
        known = {o.method: None if isinstance(o, Refused) else o.interchange for o in outcomes}
        console.print(table(known))
    for o in outcomes:
        if isinstance(o, Refused):
            console.print(Text(f"{o.method}: {o.why}", style="red"))
            continue
        if o.unsolved_minutes:
            why = f"{o.method}: no solution of the power flow for {o.unsolved_minutes:.0f} min"
            console.print(Text(why, style="red"))
        missing = o.missing + (o.interchange.missing if o.interchange is not None else 0)
        if missing:
            why = f"{o.method}: {missing} values of devices and microgrids are missing; energies are without"
            console.print(Text(why, style="red"))


def _envelopes(outcomes: Sequence[Outcome | Refused]) -> Table:
    """Energies of the devices, what was beyond limits, and how envelopes were shared."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    shown.add_column("method", no_wrap=True)
    energy = ("inject\nMWh", "draw\nMWh", "curtail\nMWh")
    beyond = ("bus\nmin", "branch\nmin", "worst\npu", "worst\n%")
    shared = ("area\nMVA^2", "Jain\nexp/imp", "price") if _share(outcomes) else ()
    headings = (*energy, *beyond, *shared, "decided\n%", "wall\ns")
    for heading in headings:
        shown.add_column(heading, justify="right", no_wrap=True)
    for o in outcomes:
        if isinstance(o, Refused):
            shown.add_row(Text(o.method), *["-"] * len(headings))
            continue
        jain = "-" if o.jain_export is None else f"{o.jain_export:.2f}/{number(o.jain_import, 2)}"
        fairness = (number(o.area_mva2, 2), jain, number(o.price, 2)) if shared else ()
        shown.add_row(
            Text(o.method),
            number(o.injected_mwh, 2),
            number(o.drawn_mwh, 2),
            number(o.curtailed_mwh, 2),
            Text(f"{o.bus_minutes:.0f}", style="red" if o.bus_minutes else ""),
            Text(f"{o.branch_minutes:.0f}", style="red" if o.branch_minutes else ""),
            Text(number(o.worst_v_pu, 4), style="red" if o.bus_minutes else ""),
            number(o.worst_loading_percent, 1),
            *fairness,
            "-" if o.decided is None else f"{100 * o.decided:.0f}",
            number(o.wall_s, 1),
        )
    return shown


def _share(outcomes: Sequence[Outcome | Refused]) -> bool:
    """Whether they are methods of sharing the network among devices."""
    return not all(o.method in ALTERNATIVES for o in outcomes)
