"""Envelope report: the envelopes of one instant as tables for people."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from scenarios.envelopes import Answer, DeviceLimits

SHOWN = 24
"""Devices of a method that are printed; the others are in the JSON."""


def show(answers: Sequence[Answer], scenario: str, at: datetime, console: Console) -> None:
    """Print a table a method, then one with a line a method; readable in 100 columns without colour."""
    console.print(Text(f"{scenario} at {at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC", style="bold"))
    console.print("export and import in MW at Q = 0, var limits in Mvar at any P, area in MVA^2")
    for answer in answers:
        console.print()
        heading = f"{answer.method} ({answer.name}): {answer.origin or 'no decision'}"
        console.print(Text(heading, style="bold"))
        if answer.why is not None:
            console.print(Text(answer.why, style="red"))
            continue
        reasons = list(dict.fromkeys(device.binding or "its own rating" for device in answer.devices))
        console.print(_devices(answer.devices, reasons))
        # In an equitable method all have the same reason: each is said once.
        for i, reason in enumerate(reasons[:SHOWN], 1):
            console.print(Text(f"[{i}] {reason}"))
        hidden = len(answer.devices) - SHOWN
        if hidden > 0:
            console.print(f"... and {hidden} more devices; --json has them all")
    console.print()
    console.print(_methods(answers))


def _devices(devices: Sequence[DeviceLimits], reasons: Sequence[str]) -> Table:
    table = _table("device")
    for heading in ("export", "import", "var high", "var low", "area"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("limited by")
    for device in devices[:SHOWN]:
        figures = (device.export_mw, device.import_mw, device.q_high_mvar, device.q_low_mvar)
        cells = [*(number(x, 4) for x in figures), number(device.area_mva2, 4)]
        reason = reasons.index(device.binding or "its own rating") + 1
        table.add_row(Text(device.device), *cells, Text(f"[{reason}]"))
    return table


def _methods(answers: Sequence[Answer]) -> Table:
    # A name on one line: of figures this wide, two spaces apart, all columns fit.
    longest = max((len(answer.method) for answer in answers), default=0)
    table = _table("method", min_width=longest, gap=1)
    two = ("export\nMW", "import\nMW", "area\nMVA^2", "Jain\nexp/imp", "least\nexp/imp", "price")
    for heading in (*two, "worst\npu", "worst\n%", "power\nflows", "ms"):
        table.add_column(heading, justify="right", no_wrap=True)
    for answer in answers:
        fair = answer.fairness
        if fair is None:
            table.add_row(Text(answer.method), *["-"] * 10)
            continue
        table.add_row(
            Text(answer.method),
            number(fair.export_mw, 3),
            number(fair.import_mw, 3),
            number(fair.area_mva2, 3),
            f"{fair.jain_export:.2f}/{fair.jain_import:.2f}",
            f"{fair.least_export:.2f}/{fair.least_import:.2f}",
            number(fair.price, 2),
            number(answer.worst_v_pu, 4),
            number(answer.worst_loading_percent, 1),
            str(answer.power_flows) if answer.power_flows else "-",
            number(answer.solve_ms, 1 if (answer.solve_ms or 0.0) < 1000 else 0),
        )
    return table


def number(value: float | None, digits: int) -> str:
    """What is not known is a dash, never zero; and no minus before a zero."""
    return "-" if value is None else f"{round(value, digits) + 0.0:.{digits}f}"


def _table(first: str, *, min_width: int | None = None, gap: int = 2) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, gap - 1))
    table.add_column(first, overflow="fold", min_width=min_width)
    return table
