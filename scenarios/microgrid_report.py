"""Microgrid report: what each microgrid offered, was allowed, and made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from scenarios.envelope_report import number
from scenarios.figures import rows


@dataclass(frozen=True, slots=True)
class MicrogridFigures:
    """One microgrid over a run. What is not known is `None`, never zero."""

    name: str
    islanded_steps: int
    offered_mwh: float | None
    """width of what it predicted (PIC), added up; `None`: it predicted nothing"""
    accepted_mwh: float | None
    """width of what the network's operator allowed (AIC)"""
    sold_mwh: float | None
    bought_mwh: float | None
    """positive"""
    outside_mwh: float | None
    """what it exchanged beyond what was allowed, while something was"""
    unserved_mwh: float | None
    """what its loads wanted and did not get"""
    cost: float | None
    """in the currency of the prices; `None`: not known in some step"""
    steps: int
    known_steps: int
    """of them with an exchange, which the other figures are about"""


def microgrids(run_dir: Path, every: timedelta) -> tuple[MicrogridFigures, ...]:
    """The figures of each microgrid of a run, in the order of the scenario."""
    hours = every / timedelta(hours=1)
    by_name: dict[str, _Sum] = {}
    for row in rows(run_dir, "exchanges", list(_COLUMNS)):
        one = by_name.setdefault(row["microgrid"], _Sum())
        p_mw = row["p_mw"]
        one.steps += 1
        one.islanded += not row["connected"]
        if p_mw is not None:
            one.known += 1
            one.sold = (one.sold or 0.0) + max(p_mw, 0.0) * hours
            one.bought = (one.bought or 0.0) + max(-p_mw, 0.0) * hours
        if row["unserved_mw"] is not None:
            one.unserved = (one.unserved or 0.0) + row["unserved_mw"] * hours
        one.cost = None if one.cost is None or row["cost"] is None else one.cost + row["cost"]
        if row["pic_low_mw"] is not None and row["pic_high_mw"] is not None:
            one.offered = (one.offered or 0.0) + (row["pic_high_mw"] - row["pic_low_mw"]) * hours
        low, high = row["aic_low_mw"], row["aic_high_mw"]
        if low is not None and high is not None:
            one.accepted = (one.accepted or 0.0) + (high - low) * hours
            if p_mw is not None:
                beyond = max(low - p_mw, p_mw - high, 0.0) if row["connected"] else 0.0
                one.outside = (one.outside or 0.0) + beyond * hours
    return tuple(
        MicrogridFigures(
            name,
            one.islanded,
            one.offered,
            one.accepted,
            one.sold,
            one.bought,
            one.outside,
            one.unserved,
            one.cost,
            one.steps,
            one.known,
        )
        for name, one in by_name.items()
    )


def table(figures: Sequence[MicrogridFigures]) -> Table:
    """For people; fits into 100 columns."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    shown.add_column("microgrid", overflow="fold")
    for heading in ("offered", "accepted", "sold", "bought", "outside", "unserved"):
        shown.add_column(f"{heading}\nMWh", justify="right", no_wrap=True)
    shown.add_column("cost", justify="right", no_wrap=True)
    shown.add_column("islanded\nsteps", justify="right", no_wrap=True)
    if gaps := any(one.known_steps < one.steps for one in figures):
        shown.add_column("known\nsteps", justify="right", no_wrap=True)
    for one in figures:
        energies = (one.offered_mwh, one.accepted_mwh, one.sold_mwh, one.bought_mwh)
        cells = [number(x, 3) for x in (*energies, one.outside_mwh, one.unserved_mwh)]
        cells += [number(one.cost, 2), str(one.islanded_steps or "-")]
        shown.add_row(Text(one.name), *cells, *([f"{one.known_steps} of {one.steps}"] if gaps else []))
    return shown


_COLUMNS = (
    *("microgrid", "connected", "p_mw", "pic_low_mw", "pic_high_mw", "aic_low_mw", "aic_high_mw"),
    *("unserved_mw", "cost"),
)


@dataclass
class _Sum:
    islanded: int = 0
    offered: float | None = None
    accepted: float | None = None
    sold: float | None = None
    bought: float | None = None
    outside: float | None = None
    unserved: float | None = None
    cost: float | None = 0.0
    steps: int = 0
    known: int = 0
