"""Draws docs/images/interchange.png and writes the figures beside it into docs/interchange.md.

python docs/make_interchange.py [RUN]   # from the checkout's root; needs the extra `plot`

RUN is the folder of a run with microgrids; without one, the packaged scenario is run first.
"""

from __future__ import annotations

import re
import sys
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from typer.testing import CliRunner

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from scenarios.cli import app  # noqa: E402
from scenarios.figures import rows, step_times  # noqa: E402
from scenarios.report import summary  # noqa: E402

SCENARIO = "ieee33-interchange"
PICTURE = HERE / "images" / "interchange.png"
PAGE = HERE / "interchange.md"
BETWEEN = re.compile(r"(?s)(<!-- figures -->\n).*?(<!-- end of figures -->)")

# Okabe and Ito's colours, which people with any kind of colour vision tell apart; in grey by hatch and line.
SKY, VERMILION, BLUE, BLACK = "#56B4E9", "#D55E00", "#0072B2", "#000000"
CUT_MW = 1e-3
"""By how much the available end has to be inside the predicted one to count as cut."""

COLUMNS = ("pic_low_mw", "pic_high_mw", "aic_low_mw", "aic_high_mw", "planned_mw", "p_mw")


def ran(folder: Path) -> Path:
    """The folder of a new run of the scenario."""
    ended = CliRunner().invoke(app, ["run", SCENARIO, "--out", str(folder)])
    if ended.exit_code:
        raise SystemExit(ended.output)
    (made,) = folder.iterdir()
    return made


def exchanges(run: Path) -> dict[str, dict[str, Any]]:
    """By microgrid, columns of the table; NaN where something is missing."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows(run, "exchanges", ["microgrid", *COLUMNS]):
        one = found.setdefault(row["microgrid"], {name: [] for name in COLUMNS})
        for name in COLUMNS:
            one[name].append(np.nan if row[name] is None else row[name])
    return {who: {name: np.array(values) for name, values in one.items()} for who, one in found.items()}


def draw(run: Path, file: Path) -> None:
    """One panel a microgrid: what it predicted, what was left of it, what it was to be, and what it was."""
    from matplotlib.dates import DateFormatter, HourLocator
    from matplotlib.figure import Figure

    times, every = step_times(run)
    assert every is not None
    ends = np.array([*times, times[-1] + every])
    of = exchanges(run)
    figure = Figure(figsize=(11, 1.5 + 2.6 * len(of)), dpi=110, layout="constrained")
    figure.suptitle(f"{SCENARIO}: interchange capability over a day", fontsize=15, fontweight="bold")
    panels = figure.subplots(len(of), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for panel, (name, one) in zip(panels, of.items(), strict=True):

        def step(column: str, one: dict[str, Any] = one) -> Any:
            return np.append(one[column], one[column][-1])

        def band(low: str, high: str, of: Any = panel, step: Any = step, **style: Any) -> None:
            of.fill_between(ends, step(low), step(high), step="post", **style)

        band("aic_low_mw", "aic_high_mw", facecolor=SKY, alpha=0.45, lw=0, label="available (AIC)")
        cut = {"facecolor": "none", "edgecolor": VERMILION, "hatch": "////", "lw": 0}
        band("pic_low_mw", "aic_low_mw", **cut, label="predicted, but not available")
        band("aic_high_mw", "pic_high_mw", **cut)
        for column in ("pic_low_mw", "pic_high_mw"):
            label = "predicted (PIC)" if column == "pic_low_mw" else None
            panel.step(ends, step(column), where="post", color=BLUE, lw=1.4, label=label)
        panel.step(ends, step("planned_mw"), where="post", color=BLACK, lw=1.1, ls=":", label="planned")
        panel.step(ends, step("p_mw"), where="post", color=BLACK, lw=2.0, label="used")
        panel.axhline(0, color="#999999", lw=0.8, zorder=0)
        panel.set_title(name, loc="left", fontsize=12, fontweight="bold")
        panel.set_ylabel("exchange [MW]\nsells above 0", fontsize=10)
        panel.grid(True, color="#e4e4e4", lw=0.6)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    last = panels[-1]
    last.set_xlim(ends[0], ends[-1])
    last.xaxis.set_major_locator(HourLocator(byhour=range(0, 24, 3)))
    last.xaxis.set_major_formatter(DateFormatter("%H:%M"))
    last.set_xlabel("time, UTC", fontsize=10)
    handles, labels = last.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=10)
    file.parent.mkdir(exist_ok=True)
    figure.savefig(file)


def figures(run: Path) -> str:
    """One row a microgrid: the day in numbers, and in how many hours either side was cut."""
    _, every = step_times(run)
    assert every is not None
    hours, of = every / timedelta(hours=1), exchanges(run)
    lines = [
        "| microgrid | predicted MWh | available MWh | import cut h | export cut h | sold MWh | bought MWh "
        "| cost $ |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in summary(run).microgrids:
        assert one.offered_mwh is not None
        assert one.accepted_mwh is not None
        assert one.sold_mwh is not None
        assert one.bought_mwh is not None
        assert one.cost is not None
        mine = of[one.name]
        low, high = (
            float((abs(mine[f"aic_{end}_mw"] - mine[f"pic_{end}_mw"]) > CUT_MW).sum() * hours)
            for end in ("low", "high")
        )
        lines.append(
            f"| {one.name} | {one.offered_mwh:.2f} | {one.accepted_mwh:.2f} | {low:g} | {high:g} "
            f"| {one.sold_mwh:.2f} | {one.bought_mwh:.2f} | {one.cost:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    with TemporaryDirectory() as folder:
        run = Path(sys.argv[1]) if len(sys.argv) > 1 else ran(Path(folder))
        draw(run, PICTURE)
        page = PAGE.read_text("utf-8")
        PAGE.write_text(BETWEEN.sub(lambda found: found[1] + figures(run) + found[2], page), "utf-8")


if __name__ == "__main__":
    main()
