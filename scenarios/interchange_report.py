"""Interchange report: what a run's microgrids were offered, left and cost, for `gridpace compare`.

| figure    | what it is                                                                               |
|-----------|------------------------------------------------------------------------------------------|
| offered   | width of what the microgrids predicted (PIC), added up over microgrids and time          |
| accepted  | width of what the network's operator allowed (AIC), the same way                         |
| unserved  | what loads of microgrids wanted and did not get                                          |
| cost      | of the microgrids: engines, wear, loads not served and boilers, less what exchange earned |
| reserve   | what is there for more import, and for less: mean over the steps                         |

The reserve is that of the correction's program at what the plant did: of the slack bus, what the operator's
agreement gives (`reserve_mw`) and the limits of its import leave, and of the operator's batteries what power
and energy leave for a step. The agreement is the scenario's, also for a day on which nobody corrects. It is
known where there is one and the slack bus feeds lines or transformers from their first side, whose flows a
run records.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import isnan, nan, sqrt
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from scenarios.corrections import agreed, corrector
from scenarios.envelope_report import number
from scenarios.figures import rows
from scenarios.grids import at_slack, bus_of, load_grid, slack_buses
from scenarios.load import Draft
from scenarios.microgrid_report import microgrids
from scenarios.schema import BatteryPart, Scenario


@dataclass(frozen=True, slots=True, kw_only=True)
class Interchange:
    """All microgrids of a run together. What is not known is `None`, never zero."""

    offered_mwh: float | None
    accepted_mwh: float | None
    sold_mwh: float | None
    bought_mwh: float | None
    unserved_mwh: float | None
    cost: float | None
    """in the currency of the prices"""
    missing: int
    """exchanges of a microgrid in a step that nobody knows, and that the energies leave out"""
    reserve_up_mw: float | None
    """for more import"""
    reserve_down_mw: float | None
    """for less import"""


def interchange(
    run_dir: Path, draft: Draft, scenario: Scenario, agreement: Mapping[str, Any] | None = None
) -> Interchange | None:
    """The figures of a run's folder; `None` where nobody corrects capabilities of microgrids.

    Args:
        agreement: what the reserve is counted by, as in `agreed`; that of the scenario if not given.
    """
    if corrector(draft, scenario) is None:
        return None
    found = microgrids(run_dir, scenario.every)
    agreement = agreed(draft, scenario) if agreement is None else agreement
    up, down = reserve(run_dir, draft, scenario, agreement)
    return Interchange(
        offered_mwh=_sum([one.offered_mwh for one in found]),
        accepted_mwh=_sum([one.accepted_mwh for one in found]),
        sold_mwh=_sum([one.sold_mwh for one in found]),
        bought_mwh=_sum([one.bought_mwh for one in found]),
        unserved_mwh=_sum([one.unserved_mwh for one in found]),
        cost=_sum([one.cost for one in found]),
        missing=sum(one.steps - one.known_steps for one in found),
        reserve_up_mw=up,
        reserve_down_mw=down,
    )


def table(found: Mapping[str, Interchange | None]) -> Table:
    """One line a method, by name; fits into 100 columns."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, title_justify="left")
    shown.add_column("microgrids", no_wrap=True)
    energies = [f"{word}\nMWh" for word in ("offered", "accepted", "sold", "bought", "unserved")]
    for heading in (*energies, "cost", "reserve\nup MW", "reserve\ndown MW"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for method, one in found.items():
        if one is None:
            shown.add_row(Text(method), *["-"] * 8)
            continue
        energy = (one.offered_mwh, one.accepted_mwh, one.sold_mwh, one.bought_mwh, one.unserved_mwh)
        cells = [*(number(x, 3) for x in energy), number(one.cost, 2)]
        shown.add_row(Text(method), *cells, number(one.reserve_up_mw, 3), number(one.reserve_down_mw, 3))
    return shown


def reserve(
    run_dir: Path, draft: Draft, scenario: Scenario, agreement: Mapping[str, Any]
) -> tuple[float | None, float | None]:
    """Mean reserve for more and for less import [MW], over the steps in which it is known."""
    if agreement.get("reserve_mw") is None:
        return None, None
    imported = imports(run_dir, draft, scenario)
    if not imported:
        return None, None
    agreed_up, agreed_down = agreement["reserve_mw"]
    least, most = agreement.get("slack_mw") or (-float("inf"), float("inf"))
    batteries = _batteries(run_dir, scenario, agreement)
    ups, downs = [], []
    for time, p_mw in imported.items():
        if (own := batteries.get(time, (0.0, 0.0))) is None:
            continue
        up, down = own
        ups.append(max(min(agreed_up, most - p_mw), 0.0) + up)
        downs.append(max(min(agreed_down, p_mw - least), 0.0) + down)
    return (sum(ups) / len(ups), sum(downs) / len(downs)) if ups else (None, None)


def imports(run_dir: Path, draft: Draft, scenario: Scenario) -> dict[datetime, float]:
    """Import at the slack bus [MW] by time; nothing where the run does not record it."""
    net = load_grid(scenario.grid.network, draft.folder)
    branches, there = at_slack(net)
    if not branches:
        return {}
    found: defaultdict[datetime, float] = defaultdict(float)
    seen: defaultdict[datetime, int] = defaultdict(int)
    for row in rows(run_dir, "branches", ["time", "branch", "p_mw"]):
        if row["branch"] in branches and row["p_mw"] is not None:
            found[row["time"]] += row["p_mw"]
            seen[row["time"]] += 1
    there |= {part.name for part in scenario.devices if bus_of(net, part.bus) in slack_buses(net)}
    for row in rows(run_dir, "devices", ["time", "device", "p_mw"]):
        if row["device"] in there:
            found[row["time"]] -= nan if row["p_mw"] is None else row["p_mw"]
    whole = {time for time, number in seen.items() if number == len(branches)}
    return {time: p_mw for time, p_mw in found.items() if time in whole and not isnan(p_mw)}


def _batteries(
    run_dir: Path, scenario: Scenario, agreement: Mapping[str, Any]
) -> dict[datetime, tuple[float, float] | None]:
    """What the operator's batteries could give and take beside what they did, by time [MW]; `None` where
    one of them is not known."""
    behind = {name for part in scenario.microgrids for name in part.devices}
    named = agreement.get("batteries")
    own = {
        part.name: part
        for part in scenario.devices
        if isinstance(part, BatteryPart) and part.name not in behind and (named is None or part.name in named)
    }
    lasting = float(agreement.get("reserve_h") or scenario.every / timedelta(hours=1))
    found: dict[datetime, tuple[float, float] | None] = {}
    for row in rows(run_dir, "devices", ["time", "device", "p_mw", "q_mvar", "e_mwh"]):
        part = own.get(row["device"])
        if part is None:
            continue
        before = found.get(row["time"], (0.0, 0.0))
        if before is None or None in (row["p_mw"], row["q_mvar"], row["e_mwh"]):
            found[row["time"]] = None
            continue
        p_mw, into, out = row["p_mw"], *part.efficiency
        free = sqrt(max((part.s_mva or part.p_mw) ** 2 - row["q_mvar"] ** 2, 0.0))
        most = min(part.p_mw, free)
        up = min(most - p_mw, (row["e_mwh"] - part.e_min_mwh) * out / lasting)
        down = min(most + p_mw, (part.e_mwh - row["e_mwh"]) / (into * lasting))
        found[row["time"]] = before[0] + max(up, 0.0), before[1] + max(down, 0.0)
    return found


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
