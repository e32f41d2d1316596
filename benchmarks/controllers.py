"""What one decision of P-E costs: closed form, and its linear programs solved in three ways; see README.md.

python -m benchmarks.controllers [--repeat 20] [--buses 135 1000]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median
from time import perf_counter
from typing import Any

import clarabel
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from scipy import sparse

from benchmarks.feeder import radial_site
from benchmarks.plain import rebuilt_range
from benchmarks.step import scenario_of
from controllers.contract import Observation
from controllers.envelopes.allowable import AllowableRegion
from controllers.envelopes.equal_ranges import EqualRangeProgram, EqualRanges, ranges
from controllers.forecast import Forecast
from controllers.site import Site
from scenarios.build import build

Array = npt.NDArray[np.float64]
Ranges = Callable[[Array], tuple[float, float]]
"""From the room in each row to the common export and import range [MW per unit of weight]."""

START = datetime(2026, 6, 21, tzinfo=UTC)
STEP = "EqualRanges.step, closed form"
STEP_LP = "EqualRanges.step, compiled"


class RawRange:
    """(A7) with `sign` 1 or (A8) with -1, given to Clarabel as matrices that are built once."""

    def __init__(self, coefficients: Array, gamma: Array, *, sign: float) -> None:
        """As `rebuilt_range`."""
        n = len(gamma)
        worst = np.maximum(sign * coefficients, 0) * sign
        scale = np.abs(worst).max(axis=1)
        self._rows = scale > 1e-12
        self._scale = 1 / scale[self._rows]
        equal = (np.eye(n, k=0) - np.eye(n, k=1))[:-1] / gamma
        self._rows_a = sparse.csc_matrix(
            np.vstack([equal, worst[self._rows] * self._scale[:, None], -sign * np.eye(n)])
        )
        self._cones = [clarabel.ZeroConeT(n - 1), clarabel.NonnegativeConeT(int(self._rows.sum()) + n)]
        self._cost = -sign * np.ones(n)
        self._no_quadratic = sparse.csc_matrix((n, n))
        self._settings: Any = clarabel.DefaultSettings()
        self._settings.verbose = False
        self._gamma, self._sign = gamma, sign

    def solve(self, room: Array) -> float:
        """The common range per unit of weight [MW]."""
        n = len(self._gamma)
        limits = np.concatenate([np.zeros(n - 1), room[self._rows] * self._scale, np.zeros(n)])
        solver: Any = clarabel.DefaultSolver(
            self._no_quadratic, self._cost, self._rows_a, limits, self._cones, self._settings
        )
        return float(self._sign * solver.solve().x[0] / self._gamma[0])


@dataclass(frozen=True)
class Cost:
    """What one way costs."""

    compile_ms: float
    """once"""
    step_ms: tuple[float, ...]
    """each repetition"""
    answers: tuple[tuple[float, float], ...]
    """common export and import range of each repetition"""


def observations(site: Site, count: int, seed: int = 2) -> Iterator[Observation]:
    """Situations that differ in the loads, 60 to 100 % of nominal."""
    draw = np.random.default_rng(seed)
    names = tuple(site.loads)
    nominal = np.array([load.p_mw for load in site.loads.values()])
    for _ in range(count):
        mean = (nominal * draw.uniform(0.6, 1.0, len(names)))[None, :]
        yield Observation(time=START, forecast=Forecast(START, site.every, names, mean, np.zeros_like(mean)))


def both(build_one: Callable[[float], Callable[[Array], float]]) -> Ranges:
    """Export and import of a way that is built for one direction."""
    out, into = build_one(1.0), build_one(-1.0)
    return lambda room: (out(room), into(room))


def ways(site: Site) -> dict[str, Callable[[], Ranges]]:
    """What builds each way, by name."""
    rows = AllowableRegion(site)
    gamma = np.array([device.weight for device in site.devices.values()])

    def closed() -> Ranges:
        use = np.stack([np.maximum(rows.A, 0) @ gamma, np.maximum(-rows.A, 0) @ gamma])
        return lambda room: ranges(use, room)[:2]

    return {
        "closed form": closed,
        "Clarabel, matrices built once": lambda: both(lambda s: RawRange(rows.A, gamma, sign=s).solve),
        "cvxpy compiled once (DPP)": lambda: both(lambda s: EqualRangeProgram(rows.A, gamma, sign=s).widest),
        "cvxpy rebuilt each time": lambda: both(lambda s: lambda room: rebuilt_range(rows.A, gamma, room, s)),
    }


def costs(site: Site, repeat: int) -> dict[str, Cost]:
    """Time every way on the same situations, and the whole steps of the controller around them."""
    rows = AllowableRegion(site)
    seen = list(observations(site, repeat + 1))
    rooms = [rows.W(*rows.background(observation.forecast.at(0))) for observation in seen]
    result = {}
    for name, construct in ways(site).items():
        begun = perf_counter()
        way = construct()
        compiled_ms = (perf_counter() - begun) * 1e3
        way(rooms[0])  # cvxpy compiles when it solves for the first time
        first_ms = (perf_counter() - begun) * 1e3
        took, answers = [], []
        for room in rooms[1:]:
            begun = perf_counter()
            answers.append(way(room))
            took.append((perf_counter() - begun) * 1e3)
        compiled_ms = max(compiled_ms, first_ms - median(took))
        result[name] = Cost(compiled_ms, tuple(took), tuple(answers))
    result[STEP], result[STEP_LP] = _steps(site, seen, "closed"), _steps(site, seen, "lp")
    return result


def _steps(site: Site, seen: Sequence[Observation], form: Any) -> Cost:
    begun = perf_counter()
    controller = EqualRanges(site, form=form)
    controller.step(seen[0])
    compiled_ms = (perf_counter() - begun) * 1e3
    name, device = next(iter(site.devices.items()))
    took, answers = [], []
    for observation in seen[1:]:
        begun = perf_counter()
        decision = controller.step(observation)
        took.append((perf_counter() - begun) * 1e3)
        low, high = decision.regions[name].limits("p_mw")
        answers.append((high / device.weight, -low / device.weight))
    return Cost(max(compiled_ms - median(took), 0.0), tuple(took), tuple(answers))


def apart(results: dict[str, Cost]) -> float:
    """Greatest difference between the answers of two ways, relative to the answer."""
    all_answers = np.array([cost.answers for cost in results.values()])
    return float((np.ptp(all_answers, axis=0) / np.abs(all_answers).max(axis=0)).max())


def table(results: dict[str, dict[str, Cost]]) -> Table:
    """A row a way, a column a site: ms a decision, and once to compile."""
    repeat = len(next(iter(next(iter(results.values())).values())).step_ms)
    shown = Table(title=f"P-E, ms a decision (+ once to compile), medians of {repeat}")
    shown.add_column("way")
    for label in results:
        shown.add_column(label, justify="right")
    for name in next(iter(results.values())):
        shown.add_row(
            name, *(f"{median(r[name].step_ms):.3f} (+ {r[name].compile_ms:.1f})" for r in results.values())
        )
    shown.add_section()
    shown.add_row("greatest relative difference", *(f"{apart(r):.1e}" for r in results.values()))
    return shown


def sites(buses: Sequence[int]) -> Iterator[tuple[str, Site]]:
    """The packaged feeder and random ones."""
    draft, scenario = scenario_of("power-grid-model", 1)
    yield "33 buses, 6 devices", build(draft, scenario).site
    for n in buses:
        devices = max(6, n // 20)
        yield f"{n} buses, {devices} devices", radial_site(n, devices)


def main() -> None:
    parser = argparse.ArgumentParser(description="What one decision of P-E costs.")
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--buses", type=int, nargs="*", default=[135, 1000])
    given = parser.parse_args()
    results = {label: costs(site, given.repeat) for label, site in sites(given.buses)}
    Console(width=130).print(table(results))


if __name__ == "__main__":
    main()
