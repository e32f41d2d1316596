"""Envelope picture: what every method allows every device, in the P-Q plane, on one page.

Each device has a panel in two parts. Above, the areas of the methods that leave reactive power free; below,
the range of active power at Q = 0 that every method gives, one bar a method, on the same P axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scenarios.envelopes import Answer, DeviceLimits
from scenarios.picture import NoPicture

MOST_PANELS = 9
"""Devices that get a panel: those with the greatest areas, in the scenario's order."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#7F7F00", "#000000")
"""Okabe and Ito's, which people with any kind of colour vision tell apart, and two more."""
ROOM_FOR_RATING = 1.5
"""A rating of up to so many times the greatest corner is drawn whole."""
FLAT_MVAR = 1e-6
"""A reactive extent below this is none: the method holds Q = 0."""


def draw(
    answers: Sequence[Answer], file: Path, *, scenario: str, at: datetime, capability: Mapping[str, float]
) -> None:
    """Draw the answers into a PNG, SVG or PDF file; its suffix says which.

    Args:
        capability: apparent power [MVA] that each device can reach, drawn for scale.

    Raises:
        NoPicture: matplotlib is not installed, no method has an answer, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise NoPicture(f"a picture needs matplotlib ({error}); pip install 'gridpace[plot]'") from None
    given = [answer for answer in answers if answer.devices]
    if not given:
        raise NoPicture("nothing to draw: no method has envelopes at this instant")
    colour = {answer.method: COLOURS[i % len(COLOURS)] for i, answer in enumerate(given)}
    names = _panels(given)
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(12, 1.2 + 4.0 * lines), dpi=100, layout="constrained")
    hidden = len({d.device for answer in given for d in answer.devices}) - len(names)
    some = f", {len(names)} of {len(names) + hidden} devices" if hidden else ""
    title = f"{scenario}: operating envelopes at {at.astimezone(UTC):%Y-%m-%d %H:%M} UTC{some}"
    figure.suptitle(title, fontsize=15)
    panels = figure.subfigures(lines, columns, squeeze=False)
    for i, name in enumerate(names):
        of = {answer.method: d for answer in given for d in answer.devices if d.device == name}
        _panel(panels[i // columns][i % columns], name, of, colour, capability.get(name))
    handles, labels = _legend(given, colour)
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 9), frameon=False)
    try:
        figure.savefig(file)
    except (OSError, ValueError) as error:
        raise NoPicture(
            f"cannot write {file}: {error}; give a .png, .svg or .pdf in a folder that exists"
        ) from None


def _panels(given: Sequence[Answer]) -> list[str]:
    """The devices to draw, in the scenario's order."""
    area: dict[str, float] = {}
    for answer in given:
        for device in answer.devices:
            area[device.device] = max(area.get(device.device, 0.0), device.area_mva2)
    greatest = sorted(area, key=lambda name: -area[name])[:MOST_PANELS]
    return [name for name in area if name in greatest]


def _panel(
    panel: Any, name: str, of: Mapping[str, DeviceLimits], colour: Mapping[str, str], s_mva: float | None
) -> None:
    from matplotlib.patches import Circle, Polygon

    plane, bars = panel.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [3, 1.3], "hspace": 0.04})
    for method, device in of.items():
        if device.q_high_mvar - device.q_low_mvar > FLAT_MVAR:
            edge = {"edgecolor": colour[method], "linewidth": 1.8, "facecolor": "none"}
            plane.add_patch(Polygon(device.corners, closed=True, **edge))
            plane.add_patch(Polygon(device.corners, closed=True, facecolor=colour[method], alpha=0.08, lw=0))
    p_low, p_high, q_low, q_high = _frame(list(of.values()), s_mva)
    plane.set_xlim(p_low, p_high)
    plane.set_ylim(q_low, q_high)
    if s_mva is not None:
        plane.add_patch(Circle((0, 0), s_mva, fill=False, ls=":", lw=1.2, ec="#555555"))
    plane.set_title(name, fontsize=12, loc="left", fontweight="bold")
    plane.set_ylabel("Q [Mvar]", fontsize=10)
    for i, (method, device) in enumerate(of.items()):
        if device.export_mw is None or device.import_mw is None:
            continue
        width = device.export_mw + device.import_mw
        bars.barh(-i, width, left=-device.import_mw, height=0.72, color=colour[method], lw=0)
    bars.set_yticks([])
    bars.set_xlabel("P [MW], injection positive", fontsize=10)
    bars.set_ylabel("P at\nQ = 0", fontsize=9, rotation=0, ha="right", va="center")
    for axis in (plane, bars):
        axis.axvline(0, color="#999999", lw=0.8, zorder=0)
        axis.grid(True, color="#e4e4e4", lw=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    plane.axhline(0, color="#999999", lw=0.8, zorder=0)


def _frame(devices: Sequence[DeviceLimits], s_mva: float | None) -> tuple[float, float, float, float]:
    """Least and greatest P and Q of all corners, with a margin, never without extent; and of the rating,
    where that does not make the envelopes small."""
    p = [x for d in devices for x, _ in d.corners] + [0.0]
    q = [y for d in devices for _, y in d.corners] + [0.0]
    if s_mva is not None and s_mva <= ROOM_FOR_RATING * max(map(abs, [*p, *q])):
        p, q = [*p, -s_mva, s_mva], [*q, -s_mva, s_mva]
    ends = []
    for values in (p, q):
        low, high = min(values), max(values)
        margin = 0.06 * (high - low) or 1.0
        ends += [low - margin, high + margin]
    return ends[0], ends[1], ends[2], ends[3]


def _legend(given: Sequence[Answer], colour: Mapping[str, str]) -> tuple[list[Any], list[str]]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [Patch(color=colour[answer.method]) for answer in given]
    handles.append(Line2D([], [], color="#555555", ls=":", lw=1.2))
    return handles, [*(answer.method for answer in given), "device's rating"]
