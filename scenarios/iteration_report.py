"""Iteration report: bounds, gap and cuts of iterative methods, as a table for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from scenarios.envelope_report import number
from scenarios.iterations import IterationFigures

MOST = 40
"""Lines of the table; what is between the first and the last ones is left out."""


def table(figures: Sequence[IterationFigures]) -> Table:
    """For people; every iteration of each controller's first decision, and the last one of the others; fits
    into 100 columns."""
    first = {one.controller: one.time for one in reversed(figures)}
    lines = [one for one in figures if one.ended is not None or one.time == first[one.controller]]
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    shown.add_column("time (UTC)", no_wrap=True)
    shown.add_column("controller", overflow="fold")
    shown.add_column("no.", justify="right", no_wrap=True)
    shown.add_column("phase", no_wrap=True)
    for heading in ("lower\n$", "upper\n$", "gap", "cuts"):
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_column("ended", overflow="fold")
    left_out = max(len(lines) - MOST, 0)
    for place, one in enumerate(lines):
        if left_out and place == MOST // 2:
            shown.add_row(Text(f"{left_out} left out"), *[""] * 8)
        if left_out and MOST // 2 <= place < MOST // 2 + left_out:
            continue
        gap = "-" if one.gap is None else f"{one.gap:.1e}"
        bounds = (number(one.lower, 3), number(one.upper, 3), gap, str(one.cuts))
        shown.add_row(
            f"{one.time:%m-%d %H:%M}",
            Text(one.controller),
            str(one.number),
            Text(one.phase),
            *bounds,
            Text(one.ended or ""),
        )
    return shown
