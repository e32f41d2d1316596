"""Fault report: when which fault of the scenario was on, on the time axis of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

WIDTH, LEAST = 48, 24
"""Columns of the time axis, and how many it keeps where there is little room."""
BESIDE = 28
"""Columns of the times and of what is between."""
_OF = ("device", "bus", "controller", "branch")


@dataclass(frozen=True, slots=True)
class FaultSpan:
    """One fault, as the run's events tell of it."""

    name: str
    start: datetime
    end: datetime | None
    """`None`: it was on when the run ended"""


def spans(events: Iterable[Mapping[str, Any]]) -> tuple[FaultSpan, ...]:
    """The faults of a run, in the order in which they began."""
    found: dict[tuple[int, int], FaultSpan] = {}
    open_now: dict[int, tuple[int, int]] = {}
    for event in events:
        if event["what"] == "fault-began":
            number = event["number"]
            key = open_now[number] = number, len(found)
            found[key] = FaultSpan(_name(event), datetime.fromisoformat(event["time"]), None)
        elif event["what"] == "fault-ended" and (begun := open_now.pop(event["number"], None)) is not None:
            one = found[begun]
            found[begun] = FaultSpan(one.name, one.start, datetime.fromisoformat(event["time"]))
    return tuple(sorted(found.values(), key=lambda one: one.start))


def _name(event: Mapping[str, Any]) -> str:
    of = next((str(event[key]) for key in _OF if event.get(key) is not None), None)
    if of is not None and event.get("bus") is not None and event.get("device") is None:
        of = f"bus {of}"
    return f"{event['fault']} {of}" if of else str(event["fault"])


def table(
    faults: Sequence[FaultSpan], first: datetime, last: datetime, *, ascii_only: bool, columns: int = 100
) -> Table:
    """A row for each fault, with a bar where it was on between the first and the last step.

    Args:
        columns: of the terminal.
    """
    room = columns - BESIDE - max((len(one.name) for one in faults), default=0)
    width = min(max(room, LEAST), WIDTH)
    axis = f"{first:%m-%d %H:%M}".ljust(width - 11) + f"{last:%m-%d %H:%M}"
    marks = ("#", ".") if ascii_only else ("█", "·")
    shown = Table("fault", "from", "until", axis, box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for one in faults:
        until = "the end" if one.end is None else f"{one.end:%H:%M:%S}"
        bar = Text(bar_of(one, first, last, *marks, width=width))
        shown.add_row(Text(one.name), f"{one.start:%H:%M:%S}", until, bar)
    return shown


def bar_of(
    one: FaultSpan, first: datetime, last: datetime, on: str = "#", off: str = ".", *, width: int = WIDTH
) -> str:
    """`width` characters, those in which the fault was on differ; at least one does."""
    length = (last - first).total_seconds() or 1.0

    def column(at: datetime) -> int:
        return min(max(round(width * (at - first).total_seconds() / length), 0), width)

    begin = min(column(one.start), width - 1)
    end = max(width if one.end is None else column(one.end), begin + 1)
    return off * begin + on * (end - begin) + off * (width - end)
