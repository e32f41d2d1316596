"""Draws docs/images/partnership.png and partnership-day.png and writes the figures into docs/partnership.md.

python docs/make_partnership.py   # from the checkout's root; needs the extra `plot`; three runs
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from typer.testing import CliRunner

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from scenarios.cli import app  # noqa: E402
from scenarios.figures import rows, step_times  # noqa: E402
from scenarios.iterations import IterationFigures, iterations  # noqa: E402
from scenarios.report import summary  # noqa: E402

CASES = {"ieee123-partnership": "partnership.png", "ieee123-partnership-day": "partnership-day.png"}
PAGE = HERE / "partnership.md"
BETWEEN = re.compile(r"(?s)(<!-- figures -->\n).*?(<!-- end of figures -->)")

# Okabe and Ito's colours, which people with any kind of colour vision tell apart.
SKY, VERMILION, BLUE, BLACK = "#56B4E9", "#D55E00", "#0072B2", "#000000"

OFFERS, CUTS = "offers first", "cuts alone"
"""The option `offers` and its opposite, Benders' decomposition as it is."""
ALONE = "controllers.operator.options.offers=false"


def ran(scenario: str, folder: Path, *changes: str) -> Path:
    """The folder of a new run of the scenario."""
    settings = [part for change in changes for part in ("--set", change)]
    ended = CliRunner().invoke(app, ["run", scenario, *settings, "--out", str(folder / scenario)])
    if ended.exit_code:
        raise SystemExit(ended.output)
    (made,) = (folder / scenario).iterdir()
    return made


def decisions(run: Path) -> list[list[IterationFigures]]:
    """The iterations of each decision."""
    found: dict[Any, list[IterationFigures]] = {}
    for one in iterations(run):
        found.setdefault(one.time, []).append(one)
    return list(found.values())


def _draw_search(bounds: Any, gaps: Any, ways: dict[str, list[list[IterationFigures]]]) -> None:
    """The bounds of the first decision, and the gap of all; by way."""
    styles = {OFFERS: {"marker": "o", "ms": 6.0, "lw": 2.0}, CUTS: {"marker": ".", "ms": 5.0, "lw": 1.0}}
    for way, all_of in ways.items():
        number = [one.number for one in all_of[0]]
        for what, colour in (("upper", VERMILION), ("lower", BLUE)):
            values = [getattr(one, what) for one in all_of[0]]
            known = [np.nan if value is None else value for value in values]
            bounds.plot(number, known, color=colour, label=f"{what} bound, {way}", **styles[way])
        for one in all_of:
            known = [np.nan if each.gap is None else max(each.gap, 1e-10) for each in one]
            colour, label = (SKY, way) if way == OFFERS else (BLACK, way)
            label = label if one is all_of[0] else "_"
            gaps.semilogy(
                [each.number for each in one], known, color=colour, label=label, marker="o", ms=3, lw=1
            )
    first = next(iter(ways.values()))[0][0].time
    bounds.set_title(f"decision of {first:%H:%M}", loc="left", fontsize=11, fontweight="bold")
    bounds.set_ylabel("cost of all [$]", fontsize=9)
    gaps.set_title("gap, every decision", loc="left", fontsize=11, fontweight="bold")
    gaps.set_ylabel("(upper - lower) / upper", fontsize=9)
    for panel in (bounds, gaps):
        panel.set_xlabel("iteration", fontsize=9)
        panel.legend(frameon=False, fontsize=9)


def draw(run: Path, file: Path, alone: Path | None = None) -> None:
    """Above how the search went, or its last gaps; below what each microgrid exchanges.

    Args:
        alone: the same run by cuts alone, to compare the search with.
    """
    from matplotlib.dates import DateFormatter
    from matplotlib.figure import Figure

    times, every = step_times(run)
    assert every is not None
    ends = np.array([*times, times[-1] + every])
    figure = Figure(figsize=(11, 7.5), dpi=110, layout="constrained")
    figure.suptitle(f"{summary(run).name}: bounds, and power exchange", fontsize=15, fontweight="bold")
    grid = figure.add_gridspec(3, 6, height_ratios=[5, 4, 4])
    all_of = decisions(run)
    if alone is not None:
        ways = {OFFERS: all_of, CUTS: decisions(alone)}
        _draw_search(figure.add_subplot(grid[0, :3]), figure.add_subplot(grid[0, 3:]), ways)
    else:
        panel = figure.add_subplot(grid[0, :])
        last = [one[-1] for one in all_of]
        panel.semilogy([one.time for one in last], [one.gap for one in last], "o", color=BLUE)
        panel.set_title("gap of every decision", loc="left", fontsize=11, fontweight="bold")
        panel.set_ylabel("(upper - lower) / upper", fontsize=9)
        panel.xaxis.set_major_formatter(DateFormatter("%H"))
    exchange: dict[str, dict[str, list[float]]] = {}
    for row in rows(run, "exchanges", ["microgrid", "p_mw", "planned_mw"]):
        one = exchange.setdefault(row["microgrid"], {"p_mw": [], "planned_mw": []})
        for column in one:
            one[column].append(np.nan if row[column] is None else row[column])
    first: Any = None
    for place, (name, one) in enumerate(exchange.items()):
        at = grid[1 + place // 3, 2 * (place % 3) : 2 * (place % 3) + 2]
        panel = figure.add_subplot(at, sharex=first, sharey=first)
        first = first or panel
        for column, style in (
            ("p_mw", {"color": BLUE, "lw": 2.0, "label": "exchanged"}),
            ("planned_mw", {"color": BLACK, "lw": 1.1, "ls": ":", "label": "agreed on an hour before"}),
        ):
            panel.step(ends, np.append(one[column], one[column][-1]), where="post", **style)
        panel.axhline(0, color="#999999", lw=0.8, zorder=0)
        panel.set_title(name, loc="left", fontsize=11, fontweight="bold")
        panel.xaxis.set_major_formatter(DateFormatter("%H"))
        if place % 3 == 0:
            panel.set_ylabel("exchange [MW]\nsells above 0", fontsize=9)
        if place >= 3:
            panel.set_xlabel("hour, UTC", fontsize=9)
    for panel in figure.axes:
        panel.grid(True, color="#e4e4e4", lw=0.6)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    handles, labels = first.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=10)
    file.parent.mkdir(exist_ok=True)
    figure.savefig(file)


def figures(runs: dict[str, Path]) -> str:
    """One row a run, by its name."""
    lines = [
        "| scenario | decisions | turns each | iterations each | greatest gap | greatest miss of the plan kW "
        "| least, greatest voltage pu |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, run in runs.items():
        found, of = summary(run), decisions(run)
        turns = found.counts["conversation-turns"] / found.counts["conversations"]
        missed = [
            abs(row["p_mw"] - row["planned_mw"])
            for row in rows(run, "exchanges", ["p_mw", "planned_mw"])
            if row["p_mw"] is not None and row["planned_mw"] is not None
        ]
        assert found.least_v_pu is not None
        assert found.greatest_v_pu is not None
        lines.append(
            f"| {name} | {len(of)} | {turns:.1f} | {sum(map(len, of)) / len(of):.1f} "
            f"| {max(one[-1].gap or 0.0 for one in of):.1e} | {1e3 * max(missed):.1f} "
            f"| {found.least_v_pu.value:.4f}, {found.greatest_v_pu.value:.4f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    with TemporaryDirectory() as folder:
        runs = {name: ran(name, Path(folder)) for name in CASES}
        first = next(iter(CASES))
        alone = ran(first, Path(folder) / "alone", ALONE)
        for name, picture in CASES.items():
            draw(runs[name], HERE / "images" / picture, alone if name == first else None)
        runs = {f"`{name}`": run for name, run in runs.items()} | {f"`{first}`, {CUTS}": alone}
        page = PAGE.read_text("utf-8")
        PAGE.write_text(BETWEEN.sub(lambda found: found[1] + figures(runs) + found[2], page), "utf-8")


if __name__ == "__main__":
    main()
