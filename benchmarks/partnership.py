"""What an agreement between operator and microgrids costs, against the central problem; see README.md.

python -m benchmarks.partnership [--prices 60 80 103 104] [--repeat 5] [--hours 12]
"""

from __future__ import annotations

import argparse
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from statistics import median
from time import perf_counter

from rich.console import Console
from rich.table import Table

from benchmarks.stopwatch import Stopwatch
from controllers.partnership.ledger import Ledger
from controllers.partnership.options import Options
from controllers.partnership.outcome import Agreement
from controllers.partnership.respondent import Respondent
from controllers.partnership.warm import Warm
from tests.partnership_agreements import Hours, Problem, of_seed
from tests.partnership_feeders import Case, seed_case

PRICES = (60.0, 80.0, 103.0, 104.0)
"""Nominal ones of energy [$/MWh]: of the table of the source, and three with an integrality gap."""
LOOSE, EXACT = 1e-3, 1e-6
MOST_RATIO = 3.0
"""Aim of an agreement to `LOOSE`, against the central problem."""
MOST_ITERATIONS = 60
"""Aim of the same."""
PARTS = {
    "master": (Ledger, "propose"),
    "upper bound": (Ledger, "consider"),
    "terms": (Respondent, "_terms"),
    "cuts": (Respondent, "_cuts"),
    "restoration": (Respondent, "_restoration"),
    "patterns": (Respondent, "_different"),
    "settlement": (Respondent, "operation"),
    "offers and prices": (Respondent, "answer"),
}
"""Methods whose own time is counted; what is left of `answer` is offers and prices."""


@dataclass(frozen=True)
class Measured:
    """One agreement."""

    seconds: float
    parts: dict[str, float]
    agreement: Agreement

    @property
    def rest(self) -> float:
        """Seconds of the conversation itself."""
        return self.seconds - sum(self.parts.values())


WAYS = {True: "offers first", False: "cuts alone"}
"""By the option `offers`."""


def measured(problem: Problem, epsilon: float, offers: bool, warm: Warm | None = None) -> Measured:
    """One agreement, with fresh respondents: nothing is remembered of another; of turns enough."""
    options = Options(epsilon=epsilon, offers=offers, most_iterations=1000, most_turns=5000)
    watch = Stopwatch()
    for name, made in zip(problem.names, problem.made, strict=True):
        problem.respondents[name] = Respondent(made)
    with ExitStack() as parts:
        for label, (owner, method) in PARTS.items():
            parts.enter_context(watch.part(owner, method, label))
        begun = perf_counter()
        found = problem.agreed(options, warm=warm)
        seconds = perf_counter() - begun
    return Measured(seconds, dict(watch.seconds), found)


def central(problem: Problem) -> tuple[float, float]:
    """Seconds and optimum of the whole."""
    begun = perf_counter()
    value = problem.central.whole(problem.conditions).value
    return perf_counter() - begun, value


def against_central(case: Case, prices: list[float], repeat: int, console: Console) -> bool:
    """One table; whether the aims are met."""
    table = Table(title=f"{len(case.network.buses) + 1} buses, {len(case.figures)} microgrids, one horizon")
    for column in (
        "$/MWh",
        "gap asked for",
        "way",
        "central ms",
        "agreement ms",
        "ratio",
        "gap",
        "of the optimum",
    ):
        table.add_column(column, justify="right")
    for column in ("iterations", "turns", "cuts", *PARTS, "rest"):
        table.add_column(column, justify="right")
    met = True
    for price in prices:
        problem = of_seed(case, price)
        central(problem)
        for epsilon, offers in product((LOOSE, EXACT), WAYS):
            runs = [(central(problem), measured(problem, epsilon, offers)) for _ in range(repeat)]
            ratios = sorted(one.seconds / alone for (alone, _), one in runs)
            (_, value), last = runs[-1]
            found = last.agreement
            stages = Counter(one.stage for one in found.rounds)
            whole = median(one.seconds for _, one in runs)
            table.add_row(
                f"{price:g}",
                f"{epsilon:.0e}",
                WAYS[offers],
                f"{1e3 * median(alone for (alone, _), _ in runs):.0f}",
                f"{1e3 * whole:.0f}",
                f"{median(ratios):.1f} [{ratios[0]:.1f}-{ratios[-1]:.1f}]",
                f"{found.gap:.1e}",
                f"{found.upper / value - 1:.0e}",
                f"{len(found.rounds)} ({', '.join(f'{n} {stage}' for stage, n in stages.items())})",
                str(found.turns),
                str(found.rounds[-1].cuts),
                *(f"{1e3 * last.parts.get(label, 0.0):.0f}" for label in PARTS),
                f"{1e3 * last.rest:.0f}",
            )
            if epsilon == LOOSE:
                met &= len(found.rounds) <= MOST_ITERATIONS
                met &= median(ratios) <= MOST_RATIO or not offers
            met &= abs(found.upper - value) <= 1.1 * epsilon * value
    console.print(table)
    return met


def rolling(case: Case, price: float, hours: int, console: Console) -> None:
    """A day, each hour's agreement with and without what the one before has learnt."""
    table = Table(title=f"{hours} hours, one after the other, from the second one on")
    for column in ("gap asked for", "way", "begins", "iterations", "turns", "seconds", "of the cold turns"):
        table.add_column(column, justify="right")
    for epsilon, offers in product((LOOSE, EXACT), WAYS):
        day, warm = Hours(case, price), None
        sums: dict[str, list[float]] = {"cold": [0, 0, 0], "warm": [0, 0, 0]}
        for hour in range(hours):
            problem = day.problem()
            both = {
                "cold": measured(problem, epsilon, offers),
                "warm": measured(problem, epsilon, offers, warm),
            }
            for name, one in both.items() if hour else ():
                counts = (len(one.agreement.rounds), one.agreement.turns, one.seconds)
                sums[name] = [a + b for a, b in zip(sums[name], counts, strict=True)]
            warm = both["warm"].agreement.warm
            day.go_on(problem, both["warm"].agreement)
        for name, (iterations, turns, seconds) in sums.items():
            share = turns / max(sums["cold"][1], 1)
            counted = f"{iterations:.0f}", f"{turns:.0f}", f"{seconds:.1f}", f"{share:.0%}"
            table.add_row(f"{epsilon:.0e}", WAYS[offers], name, *counted)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--prices", type=float, nargs="+", default=list(PRICES), metavar="$/MWh")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--hours", type=int, default=12, help="of the rolling day; 0: none")
    given = parser.parse_args()
    console, case = Console(width=240), seed_case()
    met = against_central(case, given.prices, given.repeat, console)
    if given.hours > 1:
        rolling(case, PRICES[2], given.hours, console)
    console.print(
        f"aim: to a gap of {LOOSE:g} {MOST_ITERATIONS} iterations at most either way, and with offers "
        f"{MOST_RATIO:g} times as long as the central problem at most; the same optimum: "
        f"{'met' if met else '[bold]missed[/bold]'}"
    )
    raise SystemExit(not met)


if __name__ == "__main__":
    main()
