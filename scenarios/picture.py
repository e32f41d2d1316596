"""Picture: one run on one page: voltages, devices against their envelopes, and the sums of both."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from scenarios.events import EVENTS, read_events
from scenarios.fault_report import FaultSpan, spans
from scenarios.figures import Envelope, InForce, device_steps, rows, step_times
from scenarios.run_directory import Manifest, RunDirectory
from scenarios.verdicts import VERDICTS
from simulators.journal import NoTables

Array = npt.NDArray[np.float64]

MOST_DEVICES = 3
"""Devices that get a panel: the ones that were limited most often, of different kinds if there are."""

# Okabe and Ito's colours, which people with any kind of colour vision tell apart.
BLUE, SKY, GREEN, VERMILION, GREY = "#0072B2", "#56B4E9", "#009E73", "#D55E00", "#555555"


class NoPicture(Exception):
    """The run cannot be drawn; the message says what to do."""


class Traces:
    """What one device did, a value a step; NaN where it is missing."""

    def __init__(self, steps: int) -> None:
        self.p_mw, self.available_mw, self.low_mw, self.high_mw = np.full((4, steps), np.nan)
        # low and high: what its valid envelopes allow at the reactive power that it injected
        self.limited = 0
        """steps in which an instruction moved it"""


def draw(run_dir: Path, file: Path) -> None:
    """Draw a run, finished or not, into a file of 1200 x 800 points; its suffix says the format.

    Raises:
        NoPicture: matplotlib is not installed, there is no voltage or device to draw, or the file cannot
            be written.
        scenarios.run_directory.NotARun: the folder is none.
    """
    manifest = RunDirectory.open(run_dir).manifest()
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise NoPicture(f"a picture needs matplotlib ({error}); pip install 'gridpace[plot]'") from None
    try:
        times, _ = step_times(run_dir)
        low, high = _voltages(run_dir, times)
        traces, loads = _traces(run_dir, len(times))
    except NoTables as error:
        raise NoPicture(f"nothing to draw: {error}") from None
    if not np.isfinite(low).any():
        raise NoPicture(
            f"{run_dir}: the table 'buses' has no voltage, so no power flow was solved; draw another run"
        )

    kinds = _kinds(manifest)
    chosen = _chosen(traces, kinds)
    figure = Figure(figsize=(12, 8), dpi=100, layout="constrained")
    figure.suptitle(_title(manifest, run_dir), fontsize=15, fontweight="bold", x=0.01, ha="left")
    grid = figure.add_gridspec(
        3 if chosen else 1, max(len(chosen), 1), height_ratios=[9, 10, 9][: 3 if chosen else 1]
    )
    axis = figure.add_subplot(grid[0, :])
    limits = manifest.scenario["grid"]["limits"]["v_pu"]
    _draw_voltages(axis, times, low, high, (float(limits[0]), float(limits[1])))
    _draw_faults(axis, times, spans(read_events(run_dir / EVENTS)))
    _finish(axis, "voltages of all buses", "voltage [pu]")
    if chosen:
        first: Any = None
        for i, name in enumerate(chosen):
            panel = figure.add_subplot(grid[1, i], sharey=first)
            _draw_device(panel, times, traces[name])
            _finish(
                panel, f"{name} ({kinds.get(name, 'device')})", "" if first else "injection [MW]", narrow=True
            )
            panel.tick_params(labelleft=first is None)
            first = first or panel
        least, most = first.get_ylim()
        first.set_ylim(least, most + 0.2 * (most - least))  # room for the legends
        axis = figure.add_subplot(grid[2, :])
        _draw_sums(axis, times, list(traces.values()), loads)
        _finish(axis, f"sum over all {len(traces)} devices", "injection [MW]")
    axis.set_xlabel(f"time (UTC), from {times[0]:%Y-%m-%d %H:%M}")
    try:
        figure.savefig(file)
    except (OSError, ValueError) as error:
        raise NoPicture(
            f"cannot write {file}: {error}; give a .png, .svg or .pdf in a folder that exists"
        ) from None


def _voltages(run_dir: Path, times: Sequence[datetime]) -> tuple[Array, Array]:
    """(steps,) least and greatest voltage of all buses."""
    place = {time: i for i, time in enumerate(times)}
    low, high = np.full(len(times), np.nan), np.full(len(times), np.nan)
    for row in rows(run_dir, "buses", ["time", "v_pu"]):
        i = place.get(row["time"])
        if i is not None and row["v_pu"] is not None:
            low[i], high[i] = np.fmin(low[i], row["v_pu"]), np.fmax(high[i], row["v_pu"])
    return low, high


def _traces(run_dir: Path, steps: int) -> tuple[dict[str, Traces], Array]:
    """What every device did and within which limits; and (steps,) the sum of what nobody controls."""
    found: dict[str, Traces] = {}
    loads = np.full(steps, np.nan)
    envelopes = InForce(run_dir)
    for step, (time, devices) in enumerate(device_steps(run_dir)):
        in_force = envelopes.at(time)
        for name, row in devices.items():
            p_mw = np.nan if row["p_mw"] is None else row["p_mw"]
            if row["state"] == "uncontrolled":
                loads[step] = np.nansum([loads[step], p_mw])
                continue
            trace = found.setdefault(name, Traces(steps))
            trace.p_mw[step] = p_mw
            trace.available_mw[step] = np.nan if row["available_mw"] is None else row["available_mw"]
            trace.low_mw[step], trace.high_mw[step] = _p_limits(tuple(in_force.get(name, {}).values()), row)
            trace.limited += row["state"] == "limited"
    return found, loads


def _p_limits(valid: Sequence[Envelope], row: Mapping[str, Any]) -> tuple[float, float]:
    """Least and greatest active power within all envelopes at the other coordinates as they are."""
    low, high = -np.inf, np.inf
    for envelope in valid:
        if "p_mw" not in envelope.axes:
            continue
        p = envelope.axes.index("p_mw")
        others = [i for i in range(len(envelope.axes)) if i != p]
        fixed = np.array([row[envelope.axes[i]] or 0.0 for i in others])
        room, slope = envelope.b - envelope.A[:, others] @ fixed, envelope.A[:, p]
        up, down = slope > 1e-9, slope < -1e-9
        high = min(high, (room[up] / slope[up]).min(initial=np.inf))
        low = max(low, (room[down] / slope[down]).max(initial=-np.inf))
    return (low if np.isfinite(low) else np.nan), (high if np.isfinite(high) else np.nan)


def _kinds(manifest: Manifest) -> dict[str, str]:
    return {device["name"]: device["kind"] for device in manifest.scenario.get("devices", ())}


def _chosen(traces: Mapping[str, Traces], kinds: Mapping[str, str]) -> list[str]:
    """Names of the devices to show: by steps in which they were limited, a new kind first."""
    left = sorted(traces, key=lambda name: -traces[name].limited)
    chosen: list[str] = []
    while left and len(chosen) < MOST_DEVICES:
        shown = {kinds.get(name) for name in chosen}
        new = [name for name in left if kinds.get(name) not in shown]
        chosen.append((new or left)[0])
        left.remove(chosen[-1])
    return chosen


def _title(manifest: Manifest, run_dir: Path) -> str:
    judged = run_dir / VERDICTS
    if not judged.exists():
        return manifest.name
    verdicts = json.loads(judged.read_text("utf-8"))["verdicts"]
    held = sum(bool(verdict["held"]) for verdict in verdicts)
    return f"{manifest.name}: {held} of {len(verdicts)} expectations held" if verdicts else manifest.name


def _draw_voltages(axis: Any, times: Any, low: Array, high: Array, limits: tuple[float, float]) -> None:
    axis.fill_between(times, low, high, color=SKY, alpha=0.5, lw=0, label="least to greatest")
    axis.plot(times, low, color=BLUE, lw=1)
    axis.plot(times, high, color=BLUE, lw=1)
    for i, limit in enumerate(limits):
        axis.axhline(limit, color=VERMILION, ls="--", lw=1.5, label=None if i else "limits")


def _draw_faults(axis: Any, times: Any, faults: Sequence[FaultSpan]) -> None:
    """A grey span where each was on, with its name where it begins."""
    names: dict[datetime, list[str]] = {}
    for i, one in enumerate(faults):
        end = times[-1] if one.end is None else one.end
        axis.axvspan(one.start, end, color=GREY, alpha=0.18, lw=0, label="fault" if i == 0 else None)
        names.setdefault(one.start, []).append(one.name)
    for start, several in names.items():
        where = {"transform": axis.get_xaxis_transform(), "va": "top", "ha": "left", "clip_on": True}
        axis.text(start, 0.98, "\n".join(several), fontsize=7, rotation=90, color=GREY, **where)


def _draw_device(axis: Any, times: Any, trace: Traces) -> None:
    # A device holds its point for a whole step: steps, not slopes.
    style: dict[str, Any] = {"step": "post", "lw": 0}
    axis.fill_between(times, trace.low_mw, trace.high_mw, color=GREEN, alpha=0.22, label="envelope", **style)
    if np.isfinite(trace.available_mw).any():
        axis.step(times, trace.available_mw, where="post", color=GREY, lw=1, ls=":", label="available")
    axis.step(times, trace.p_mw, where="post", color=BLUE, lw=1.5, label="injected")
    axis.axhline(0, color=GREY, lw=0.6)


def _draw_sums(axis: Any, times: Any, traces: Sequence[Traces], loads: Array) -> None:
    low, high, p_mw = (
        np.sum([getattr(t, name) for t in traces], axis=0) for name in ("low_mw", "high_mw", "p_mw")
    )
    lost = np.nansum([np.fmax(np.subtract(t.available_mw, t.p_mw), 0.0) for t in traces], axis=0)
    axis.fill_between(times, low, high, step="post", color=GREEN, alpha=0.22, lw=0, label="sum of envelopes")
    axis.step(times, p_mw, where="post", color=BLUE, lw=1.5, label="sum of injections")
    if (lost > 1e-9).any():
        axis.fill_between(
            times, p_mw, p_mw + lost, step="post", color=VERMILION, alpha=0.6, lw=0, label="curtailed"
        )
    if np.isfinite(loads).any():
        axis.step(times, loads, where="post", color=GREY, lw=1, ls=":", label="loads")
    axis.axhline(0, color=GREY, lw=0.6)


def _finish(axis: Any, title: str, label: str, *, narrow: bool = False) -> None:
    from matplotlib import dates

    locator: Any = dates.AutoDateLocator(minticks=3, maxticks=5 if narrow else 10)  # type: ignore[no-untyped-call]
    axis.xaxis.set_major_locator(locator)
    axis.xaxis.set_major_formatter(
        dates.ConciseDateFormatter(locator, show_offset=False)  # type: ignore[no-untyped-call]
    )
    axis.margins(x=0)
    axis.grid(True, color="#dddddd", lw=0.6)
    axis.set_axisbelow(True)
    axis.set_title(title, fontsize=12, loc="left")
    axis.set_ylabel(label, fontsize=11)
    axis.spines[["top", "right"]].set_visible(False)
    # Wide panels have room beside the title, narrow ones inside.
    where = {"loc": "upper left"} if narrow else {"loc": "lower right", "bbox_to_anchor": (1, 1)}
    legend = axis.legend(fontsize=10, ncols=4, frameon=False, columnspacing=1, handlelength=1.3, **where)
    legend.set_in_layout(False)
