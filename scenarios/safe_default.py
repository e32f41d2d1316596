"""Safe default: whether the network is within its limits while all devices obey their defaults.

The last rung of the ladder is what every device does without a valid instruction. It is checked once, when a
run begins, by the AC power flow: over the whole run as it is forecast at its start, with the devices at the
corners of their defaults, all together as far up or down as these let them. That is what can be known
beforehand, and no proof for every mixture of corners. What is found is said in the manifest and the report,
and in an event if the defaults would break a limit:

| word        | no limit breaks                                                       |
|-------------|-----------------------------------------------------------------------|
| `certified` | with the whole background two standard deviations to either side, in every step |
| `sampled`   | the same, but the grid and the run are too large to look at every step |
| `expected`  | with the background at its mean                                       |
| `unsafe`    | one breaks at the mean, which is not for the devices' defaults to heal |

Of a run that is too large, steps at equal distances are looked at, and those with the least and the greatest
background altogether. How many they are is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import product
from typing import Literal

import numpy as np
import numpy.typing as npt

from controllers.contract import ControlError
from controllers.devices import AXES
from controllers.network import Flows, PowerFlow
from scenarios.build import Built
from scenarios.findings import ROUNDING, labelled

Array = npt.NDArray[np.float64]
Steps = npt.NDArray[np.int_]
Forecasts = Mapping[str, tuple[Array, Array]]
"""by load: mean and standard deviation in each step, in parts of its nominal power"""

Word = Literal["certified", "sampled", "expected", "unsafe"]
SPREADS = (0.0, -2.0, 2.0)
"""Standard deviations that the background is off its mean."""
BUS_CASES = 500_000
"""About how many buses are solved altogether, in some two seconds; else not every step is looked at."""
FORECAST_CELLS = 500_000
"""Steps times sites that a profile is forecast for at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SafeDefault:
    """What the check found."""

    word: Word
    why: str
    """in a sentence: how much was checked, and which limit breaks, where and when"""
    power_flows: int
    worst_v_pu: float | None = None
    """closest to its limit, or farthest outside"""
    worst_loading_percent: float | None = None


def check_defaults(built: Built) -> SafeDefault:
    """Look at the defaults of a site's devices, before the run begins.

    Returns:
        what was found; unsafe where a default has no end or a power flow no solution.
    """
    site, scenario = built.site, built.scenario
    engine = site.power_flow or built.engine
    corners: dict[str, Array] = {}
    for name, device in site.devices.items():
        try:
            corners[name] = device.default.over(AXES).vertices()
        except (ControlError, ValueError):
            return SafeDefault(word="unsafe", why=f"the default of device {name!r} has no end", power_flows=0)
    index = {bus: i for i, bus in enumerate(engine.buses)}
    combinations: dict[bytes, tuple[Array, Array]] = {}
    for up, lead in product((1.0, -1.0), (1.0, -1.0)):
        p_mw, q_mvar = np.zeros(len(index)), np.zeros(len(index))
        for name, device in site.devices.items():
            point = corners[name][np.argmax(corners[name] @ np.array([up, lead]))]
            p_mw[index[device.bus]] += point[0]
            q_mvar[index[device.bus]] += point[1]
        combinations[p_mw.tobytes() + q_mvar.tobytes()] = p_mw, q_mvar
    each = len(combinations) * len(SPREADS) * len(index)
    sites = max(len(driven.rating_mw) for driven in built.driven) if built.driven else 1
    covered = min(scenario.steps, max(FORECAST_CELLS // sites, 1))
    known = _forecasts(built, covered)
    steps = _looked_at(built, known, covered, max(BUS_CASES // each, 4))
    backgrounds = _backgrounds(built, known, steps, index)
    everything = list(product(backgrounds, combinations.values()))
    times = [scenario.start + step * scenario.every for (step, *_), _ in everything]
    at_mean = np.array([off == 0 for (_, off, *_), _ in everything])
    flows = engine.solve(
        np.array([p + p_devices for (_, _, p, _), (p_devices, _) in everything]),
        np.array([q + q_devices for (*_, q), (_, q_devices) in everything]),
    )
    every = len(steps) == scenario.steps
    at = f"all {len(steps)} steps" if every else f"{len(steps)} of {scenario.steps} steps"
    figures = f"{len(times)} power flows at {at} as forecast at the start"
    mean, spread = _broken(built, engine, flows, times, at_mean), None
    if mean is None:
        spread = _broken(built, engine, flows, times, np.ones(len(times), dtype=bool))
    worst_v, worst_loading = _worst(built, flows, at_mean if spread or mean else None)
    voltage = "no voltage" if worst_v is None else f"voltage closest to its limit {worst_v:.4f} pu"
    loading = "" if worst_loading is None else f", loading up to {worst_loading:.1f} %"
    held = f"{voltage}{loading}; {figures}"
    word: Word
    if mean is not None:
        word, why = "unsafe", f"while all devices obey their defaults, {mean}; {figures}"
    elif spread is not None:
        word, why = (
            "expected",
            f"default held at the mean of the forecast, {held}; two deviations off, {spread}",
        )
    elif every:
        word, why = "certified", f"default certified, {held}"
    else:
        word, why = "sampled", f"default held at {at}, not certified, {held}"
    return SafeDefault(
        word=word,
        why=why,
        power_flows=len(times),
        worst_v_pu=worst_v,
        worst_loading_percent=worst_loading,
    )


def _forecasts(built: Built, covered: int) -> dict[str, tuple[Array, Array]]:
    """What loads follow in the first `covered` steps, as forecast at the start."""
    known: dict[str, tuple[Array, Array]] = {}
    for driven in built.driven:
        process = driven.process  # asked again for the same step it gives the same
        process.advance(0)
        now = process.now()
        none = np.zeros((0, len(now)))
        mean, std = process.forecast(covered - 1) if covered > 1 else (none, none)
        mean, std = np.vstack([now, mean]), np.vstack([np.zeros_like(now), std])
        for i, name in enumerate(process.names):
            known[name] = mean[:, i], std[:, i]
    return known


def _looked_at(built: Built, known: Forecasts, covered: int, most: int) -> Steps:
    """Which of the first `covered` steps are solved: about `most` of them at the most."""
    if covered <= most:
        return np.arange(covered)
    total = np.zeros(covered)
    spread = np.zeros(covered)
    for load in built.site.loads.values():
        if load.name in known:
            mean, std = known[load.name]
            total += load.p_mw * mean
            spread += abs(load.p_mw) * std
    low, high = total - 2.0 * spread, total + 2.0 * spread
    extremes = [total.argmin(), total.argmax(), low.argmin(), high.argmax()]
    regular = np.linspace(0, covered - 1, most).round().astype(int)
    return np.unique(np.concatenate([regular, extremes]))


def _backgrounds(
    built: Built, known: Forecasts, steps: Steps, index: Mapping[str, int]
) -> list[tuple[int, float, Array, Array]]:
    """Step, deviations off the mean, and injections of the loads by bus."""
    found = []
    for step, off in product(steps.tolist(), SPREADS):
        p_mw, q_mvar = np.zeros(len(index)), np.zeros(len(index))
        for load in built.site.loads.values():
            mean, std = known.get(load.name, (None, None))
            factor = 1.0 if mean is None or std is None else max(float(mean[step] + off * std[step]), 0.0)
            p = load.p_mw * factor
            p_mw[index[load.bus]] += p
            q_mvar[index[load.bus]] += load.reactive(p)
        found.append((step, off, p_mw, q_mvar))
    return found


def _broken(
    built: Built, engine: PowerFlow, flows: Flows, times: list[datetime], of: npt.NDArray[np.bool_]
) -> str | None:
    """Which limits break in some of the cases, in words; `None`: none."""
    limits, cases = built.site.limits, np.flatnonzero(of)
    if not flows.converged[cases].all():
        first = times[int(cases[np.argmin(flows.converged[cases])])]
        return f"the power flow has no solution at {first:%Y-%m-%d %H:%M} UTC"
    low, high = limits.v_pu
    v_pu = flows.v_pu[cases]
    loading = np.nan_to_num(flows.loading_percent[cases], nan=-np.inf)
    found = []
    for values, beyond, names, unit in (
        (v_pu, np.maximum(low - v_pu, v_pu - high), engine.buses, " pu"),
        (loading, loading - limits.loading_percent, engine.branches, " %"),
    ):
        if beyond.size and beyond.max() > ROUNDING:
            case, at = np.unravel_index(int(beyond.argmax()), beyond.shape)
            when = times[int(cases[case])]
            value = f"{values[case, at]:.4f}" if unit == " pu" else f"{values[case, at]:.1f}"
            name = labelled("bus", names[at])
            found.append(f"{name} is at {value}{unit}, {when:%Y-%m-%d %H:%M} UTC")
    return " and ".join(found) or None


def _worst(built: Built, flows: Flows, of: npt.NDArray[np.bool_] | None) -> tuple[float | None, float | None]:
    """Voltage closest to its limit or farthest outside, and greatest loading, of some or all cases."""
    cases = np.flatnonzero(flows.converged if of is None else flows.converged & of)
    if not len(cases):
        return None, None
    low, high = built.site.limits.v_pu
    v_pu, loading = flows.v_pu[cases].ravel(), flows.loading_percent[cases]
    worst_v = float(v_pu[np.maximum(low - v_pu, v_pu - high).argmax()])
    rated = loading[np.isfinite(loading)]
    return worst_v, float(rated.max()) if len(rated) else None
