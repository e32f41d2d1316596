"""Certificates: what limited the regions of a run and what their AC checks found, counted for a report."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scenarios.figures import rows

SHOWN = 3
"""Reasons that are printed; the others are in the JSON."""

_SCALE = re.compile(r"(?<=, scaled) by [\d.]+(?= to hold in AC)")


@dataclass(frozen=True, slots=True)
class Checked:
    """What AC checks of regions found, before any was released."""

    decisions: int
    """how many results were checked; of a schedule, each span's is one"""
    power_flows: int
    near_low_v_pu: float | None
    """lowest voltage of the checks in which a voltage came closest to the lower limit; `None`: of none"""
    near_high_v_pu: float | None
    """the same of the upper limit, the highest"""
    greatest_loading_percent: float | None


def of_run(run_dir: Path, v_pu: tuple[float, float] | None) -> tuple[Checked | None, dict[str, int]]:
    """The certificates of `regions`; all regions of one decision and span share theirs.

    Args:
        v_pu: limits of the voltage. Each check gives one voltage, the one closest to its limit; the limits
            tell to which. `None`: not known, and no voltage is reported.

    Returns:
        what the checks found, `None` if no region was checked; and by reason how many regions it limited.
    """
    columns = ["controller", "issued_at", "valid_from", "binding", "power_flows"]
    columns += ["worst_v_pu", "worst_loading_percent"]
    binding: Counter[str] = Counter()
    flows: dict[tuple[Any, ...], int] = {}
    volts: list[float] = []
    loadings: list[float] = []
    for row in rows(run_dir, "regions", columns):
        if row["binding"] is not None:
            # Each has its own factor, so that no two of them would ever be counted together.
            binding[_SCALE.sub("", row["binding"])] += 1
        if not row["power_flows"]:
            continue
        flows[row["controller"], row["issued_at"], row["valid_from"]] = row["power_flows"]
        volts += [] if row["worst_v_pu"] is None else [row["worst_v_pu"]]
        loadings += [] if row["worst_loading_percent"] is None else [row["worst_loading_percent"]]
    by_number = dict(sorted(binding.items(), key=lambda item: (-item[1], item[0])))
    if not flows:
        return None, by_number
    middle = None if v_pu is None else sum(v_pu) / 2
    checked = Checked(
        decisions=len(flows),
        power_flows=sum(flows.values()),
        near_low_v_pu=None if middle is None else min((v for v in volts if v < middle), default=None),
        near_high_v_pu=None if middle is None else max((v for v in volts if v >= middle), default=None),
        greatest_loading_percent=max(loadings, default=None),
    )
    return checked, by_number


def sentence(found: Checked) -> str:
    """What the checks found, in a line."""
    results = "result" if found.decisions == 1 else "results"
    parts = [f"{found.decisions} {results} by {found.power_flows} power flows"]
    near = [
        f"{name} {v:.4f} pu"
        for name, v in (("lowest", found.near_low_v_pu), ("highest", found.near_high_v_pu))
        if v is not None
    ]
    if near:
        parts.append(f"voltage closest to its limit: {', '.join(near)}")
    if found.greatest_loading_percent is not None:
        parts.append(f"loading up to {found.greatest_loading_percent:.1f} %")
    return "; ".join(parts)


def reasons(binding: Mapping[str, int]) -> Iterator[str]:
    """A line for each of the most frequent reasons, and one for all others."""
    listed = list(binding.items())
    for text, n in listed[:SHOWN]:
        yield f"{n} {_regions(n)}: {text}"
    if others := listed[SHOWN:]:
        n = sum(n for _, n in others)
        what = "another reason" if len(others) == 1 else f"{len(others)} other reasons"
        yield f"{n} {_regions(n)}: {what}; --json has all"


def _regions(n: int) -> str:
    return "region" if n == 1 else "regions"
