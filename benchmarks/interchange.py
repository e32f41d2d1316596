"""What a step of interchange capability costs, against cvxpy and against the solvers alone; see README.md.

python -m benchmarks.interchange [--buses 33 123] [--horizons 1 4 12 24] [--repeat 8] [--seconds 20]

Milliseconds are of the process, not of the clock on the wall: one core's, whatever else the machine does.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice, zip_longest
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import pandapower.networks as pn
from rich.console import Console
from rich.table import Table

from benchmarks.correction_anew import correct_anew
from benchmarks.envelopes import Cost, cost
from benchmarks.solver_alone import ClarabelAlone, HighsAlone, noted
from controllers.contract import Observation
from controllers.devices import WindTurbine
from controllers.forecast import Forecast
from controllers.interchange.checks import BoxCheck
from controllers.interchange.correction import InterchangeCorrection
from controllers.interchange.correction_program import THROUGHPUT, CorrectionProgram
from controllers.interchange.correction_rows import COPIES
from controllers.interchange.heard import Ear
from controllers.interchange.prediction import InterchangePrediction
from controllers.interchange.question import Case, Corrected, Tighter
from controllers.network import Limits
from controllers.site import Load, Site
from scenarios import feeders, ieee123
from simulators.network import network_of
from simulators.power_flow import PowerGridModelEngine
from tests.interchange_cases import FIGURES, HOUR, MIDNIGHT, day, devices_of, microgrid_of, reference_site
from tests.microgrid_oracle import best, cases

Array = npt.NDArray[np.float64]
Turn = tuple[str, int]
"""A microgrid and the hour of its first interval."""

AT = {33: (17, 24, 32), 123: (7, 50, 58, 96, 104, 121)}
"""Buses of the microgrids; of a drawn feeder every fourth of them."""
LEAST_V_PU = {33: 0.94, 123: 0.94}
"""Of a drawn feeder 0.95. So low that a schedule within the predictions keeps it in all intervals: 123 buses
have 0.944 pu without any microgrid, at the day's greatest load, and so have 33 in what is predicted for some
evenings. Otherwise the program alone has no answer to compare, and the step has one more program to solve."""
HOURS = range(8, 17)
"""Of the first interval: sun, wind, loads and heat all have a spread, so a prediction has nine cases."""
MU = 25.0
OWN = "bess"
"""The network operator's battery."""

SOLVED, PREDICTED, PROGRAM, CHECK, CORRECTED = (
    "prediction, nine programs",
    "prediction, whole step",
    "correction, both stages",
    "correction, AC check once",
    "correction, whole step",
)
AGAINST = {
    SOLVED: ("prediction, HiGHS alone", "prediction, cvxpy rebuilt"),
    PROGRAM: ("correction, Clarabel alone", "correction, cvxpy rebuilt"),
    CORRECTED: ("whole step, Clarabel alone",),
}
"""What each way is compared with: the same matrices by the solver alone, and the same program in cvxpy."""
AIMS = {SOLVED: (2.0, 1 / 5), PROGRAM: (2.0, 1 / 5)}
"""Greatest ratio to the solver alone and to cvxpy; a whole step has the AC check besides."""
MOST_MS = 60.0
"""Aim of a whole prediction."""


@dataclass(frozen=True)
class Bench:
    """A site, and who of the reference case each of its microgrids is."""

    site: Site
    like: dict[str, str]


def bench_of(buses: int) -> Bench:
    """The reference case; the 123-bus feeder with its microgrids twice; or a drawn feeder."""
    if buses == 33:
        net, at = pn.case33bw(), AT[33]
    elif buses == 123:
        net, at = ieee123.net(), AT[123]
    else:
        net, at = feeders.feeder(buses), tuple(range(1, buses, 4))[:10]
    like = {f"mg{i + 1}": name for i, name in enumerate(islice(cycle(FIGURES), len(at)))}
    reference = reference_site()
    devices = {OWN: reference.devices[OWN]}
    microgrids = {}
    for bus, (name, figures) in zip(at, like.items(), strict=True):
        moved = FIGURES[figures]._replace(bus=str(bus))
        for device in devices_of(name, moved).values():
            if isinstance(device, WindTurbine):  # so that no case has more wind than it can be
                device = replace(device, p_mw=1.5 * device.p_mw)
            devices[device.name] = device
        microgrids[name] = microgrid_of(name, moved)
    loads = {
        f"load:{row.Index}": Load(f"load:{row.Index}", str(row.bus), -row.p_mw, -row.q_mvar)
        for row in net.load[net.load.in_service].itertuples()
    }
    site = Site(
        name=f"{buses} buses",
        network=network_of(net),
        limits=Limits((LEAST_V_PU.get(buses, 0.95), 1.05), 100.0),
        every=HOUR,
        devices=devices,
        loads=loads,
        power_flow=PowerGridModelEngine(net),
        microgrids=microgrids,
    )
    return Bench(site, like)


def seen(bench: Bench, hour: int, horizon: int) -> Observation:
    """What is known one step before an hour of the reference day."""
    site = bench.site
    start = MIDNIGHT + hour * HOUR
    columns: dict[str, tuple[Array, Array]] = {}
    for own, figures in bench.like.items():
        names, mean, std = day(replace(site, microgrids={figures: site.microgrids[own]}), start, horizon)
        for name, *values in zip(names, mean.T, std.T, strict=True):
            columns[name.replace(f"{figures}_", f"{own}_")] = values[0], values[1]
    mean, std = (np.column_stack(each) for each in zip(*columns.values(), strict=True))
    stored = {d.name: s for d in site.devices.values() if (s := d.initial().e_mwh) is not None}
    return Observation(
        time=start - HOUR,
        forecast=Forecast(start - HOUR, HOUR, tuple(columns), mean, std),
        p_mw={d.name: d.initial().p_mw for d in site.devices.values()},
        e_mwh=stored,
    )


def predictions(bench: Bench, horizon: int, repeat: int, seconds: float) -> dict[str, Cost]:
    """Every way on the same hours of each microgrid in turn."""
    site = bench.site
    turns = list(islice(((name, hour) for hour in cycle(HOURS) for name in site.microgrids), repeat + 1))
    observed = {hour: seen(bench, hour, horizon) for hour in HOURS}
    alone: dict[str, HighsAlone] = {}
    noted_of: dict[Turn, tuple[list[dict[str, Any]], Array, float]] = {}
    for name in site.microgrids:
        with noted() as notes:
            controller = InterchangePrediction(site, name, horizon, mu=MU)
            alone[name] = HighsAlone(*notes.linear)
            for turn in (turn for turn in turns if turn[0] == name):
                notes.changes.clear()
                found = controller.predict(observed[turn[1]])
                constant = found.cost[0] - float(found.weights @ [one.f1 for one in found.cases])
                noted_of[turn] = list(notes.changes), found.weights, constant

    def each() -> dict[str, InterchangePrediction]:
        return {name: InterchangePrediction(site, name, horizon, mu=MU) for name in site.microgrids}

    def expected(made: dict[str, InterchangePrediction], turn: Turn) -> float:
        found = made[turn[0]].predict(observed[turn[1]])
        return found.cost[0] + MU * float(found.weights @ [one.f2 for one in found.cases])

    def step(made: dict[str, InterchangePrediction], turn: Turn) -> float:
        made[turn[0]].step(observed[turn[1]])
        return math.nan

    def raw(turn: Turn) -> float:
        changes, weights, constant = noted_of[turn]
        return constant + float(weights @ alone[turn[0]](changes))

    def rebuilt(turn: Turn) -> float:
        name, hour = bench.like[turn[0]], turn[1]
        written = cases("2m+1")
        return float(sum(w * best(name, hour, horizon, factors=each).objective for w, each in written))

    with_solver, with_cvxpy = AGAINST[SOLVED]
    return {
        SOLVED: cost(lambda: partial(expected, each()), turns, seconds),
        with_solver: cost(lambda: raw, turns, seconds),
        with_cvxpy: cost(lambda: rebuilt, turns, seconds),
        PREDICTED: cost(lambda: partial(step, each()), turns, seconds),
    }


def corrections(bench: Bench, horizon: int, repeat: int, seconds: float) -> dict[str, Cost]:
    """Every way on the same hours, with what the microgrids predict for them."""
    site, engine = bench.site, bench.site.power_flow
    assert engine is not None  # every bench has one
    observed = heard(bench, horizon, repeat + 1)
    with noted() as notes:
        controller = InterchangeCorrection(site, **options(site, horizon))
        program, alone = controller.program, ClarabelAlone(*notes.conic)
        (own,) = program.model.batteries
        ear = Ear(site, {own.name: own}, horizon)
        asked = [ear.case(one, ear.listen(one)) for one in observed]
        nothing = Tighter.nothing(horizon, len(site.network.buses), 1, program.options.loss_weight)
        answers, stages, steps = [], [], []
        for case, observation in zip(asked, observed, strict=True):
            answers.append(program.solve(case, nothing))
            stages.append(notes.taken())
            controller.step(observation)
            steps.append(notes.taken())
    buses = [grid.bus for grid in site.microgrids.values()]
    box = BoxCheck(program.model, engine, controller.points)

    def solved(made: CorrectionProgram, case: Case) -> float:
        return worth(made, case, made.solve(case, nothing))

    def rebuilt(case: Case) -> float:
        given = site.network, site.limits, buses, (own,), program.model.hours, program.options
        return correct_anew(*given, case).value

    def check(case: tuple[Case, Corrected]) -> float:
        return float(box.examine(engine, *case).worst_v_pu[0])

    def step(made: InterchangeCorrection, observation: Observation) -> float:
        return sum(float(np.ptp(region.limits("p_mw"))) for region in made.step(observation).regions.values())

    def construct() -> InterchangeCorrection:
        return InterchangeCorrection(site, **options(site, horizon))

    with_solver, with_cvxpy = AGAINST[PROGRAM]
    return {
        PROGRAM: cost(lambda: partial(solved, construct().program), asked, seconds),
        with_solver: cost(lambda: alone, stages, seconds),
        with_cvxpy: cost(lambda: rebuilt, asked, seconds),
        CHECK: cost(lambda: check, list(zip(asked, answers, strict=True)), seconds),
        CORRECTED: cost(lambda: partial(step, construct()), observed, seconds),
        AGAINST[CORRECTED][0]: cost(lambda: alone, steps, seconds),
    }


def worth(program: CorrectionProgram, case: Case, answer: Corrected) -> float:
    """The first stage's objective at an answer."""
    options, at = program.options, answer.at
    width = (at["a"] + at["e"]).sum()
    moved = np.abs(at["c"] - case.plan).sum()
    losses = sum(float((at[f"l_{copy}"] @ program.model.losses).sum()) for copy in COPIES)
    spent = THROUGHPUT * (at["dis"] + at["cha"]).sum()
    spent += options.energy_worth / program.model.hours * at["E_short"][-1].sum()
    return float(width - options.schedule_weight * moved - options.loss_weight * losses - spent)


def heard(bench: Bench, horizon: int, many: int) -> list[Observation]:
    """So many hours one after the other, with the microgrids' predictions."""
    ahead = max(horizon, 12)
    predictors = [InterchangePrediction(bench.site, name, ahead) for name in bench.site.microgrids]
    found = []
    for hour in islice(cycle(HOURS), many):
        observation = seen(bench, hour, ahead)
        said = {str(one.microgrid): one.step(observation) for one in predictors}
        found.append(replace(observation, said=said))
    return found


def options(site: Site, horizon: int) -> dict[str, Any]:
    """Of the correction: what it may import, and reserve for every microgrid."""
    consumed = -sum(load.p_mw for load in site.loads.values())
    reserve = 0.3 * len(site.microgrids)
    return {"horizon": horizon, "slack_mw": (-1.0, 1.5 * consumed), "reserve_mw": (reserve, reserve)}


def apart(results: dict[str, Cost]) -> float:
    """Greatest relative difference between a way's answers and those of the same program elsewhere."""
    worst = 0.0
    for way in (SOLVED, PROGRAM):
        for other in AGAINST[way] if way in results else ():
            pairs = zip(results[way].answers, results[other].answers, strict=False)
            worst = max([worst, *(abs(a - b) / max(abs(a), 1.0) for a, b in pairs)])
    return worst


def tables(results: dict[str, dict[int, dict[str, Cost]]]) -> list[Table]:
    """Milliseconds and ratios by what is timed, a column a horizon."""
    made = []
    for title, by_horizon in results.items():
        shown = Table(title=f"{title}, ms a step: median (least-greatest)")
        shown.add_column("way")
        for horizon in by_horizon:
            shown.add_column(f"H = {horizon}", justify="right")
        columns = list(by_horizon.values())
        for way in columns[0]:
            shown.add_row(way, *(_spread(found[way]) for found in columns))
        shown.add_section()
        for way in (way for way in AGAINST if way in columns[0]):
            for other, aim in zip_longest(AGAINST[way], AIMS.get(way, ())):
                ratios = [median(found[way].ms) / median(found[other].ms) for found in columns]
                shown.add_row(f"{way} : {other.split(', ')[1]}", *(_against(ratio, aim) for ratio in ratios))
        if PREDICTED in columns[0]:
            within = ["within" if median(found[PREDICTED].ms) <= MOST_MS else "BEYOND" for found in columns]
            shown.add_row(f"{PREDICTED}, at most {MOST_MS:g} ms", *within)
        shown.add_row("greatest relative difference", *(f"{apart(found):.0e}" for found in columns))
        shown.add_row("once, to construct", *(_ms(_constructed(found)) for found in columns))
        made.append(shown)
    return made


def _constructed(found: dict[str, Cost]) -> float:
    return found[SOLVED if SOLVED in found else CORRECTED].once_ms


def _against(ratio: float, aim: float | None) -> str:
    shown = f"{ratio:.2f}" if ratio > 0.5 else f"1/{1 / ratio:.1f}"
    if aim is None:
        return shown
    limit = f"{aim:g}" if aim > 1 else f"1/{1 / aim:g}"
    return f"{shown} {'within' if ratio <= aim else 'BEYOND'} {limit}"


def _spread(found: Cost) -> str:
    return f"{_ms(median(found.ms))} ({_ms(min(found.ms))}-{_ms(max(found.ms))})"


def _ms(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="What a step of interchange capability costs.")
    parser.add_argument("--buses", type=int, nargs="+", default=list(AT))
    parser.add_argument("--horizons", type=int, nargs="+", default=[1, 4, 12, 24])
    parser.add_argument("--repeat", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=20.0, help="after which no repetition is begun")
    given = parser.parse_args()
    results: dict[str, dict[int, dict[str, Cost]]] = {}
    bench = bench_of(33)
    results["Prediction of a microgrid"] = {
        H: predictions(bench, H, given.repeat, given.seconds) for H in given.horizons
    }
    for buses in given.buses:
        bench = bench_of(buses)
        title = f"Correction of {len(bench.like)} microgrids on {buses} buses"
        results[title] = {H: corrections(bench, H, given.repeat, given.seconds) for H in given.horizons}
    for table in tables(results):
        Console(width=150).print(table)


if __name__ == "__main__":
    main()
