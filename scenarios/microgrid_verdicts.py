"""Microgrid verdicts: what became of expectations about exchanges and loads of microgrids."""

from __future__ import annotations

import math
from collections import Counter
from datetime import UTC, timedelta
from pathlib import Path

from scenarios.expectations import InterchangeRespected, UnservedBelow
from scenarios.figures import rows, step_times
from scenarios.findings import (
    ROUNDING,
    Verdict,
    Worst,
    distance,
    labelled,
    lacking,
    leading,
    shared,
    stamp,
    unfounded,
)


def interchange_respected(run_dir: Path, expected: InterchangeRespected) -> Verdict:
    """Whether each exchange was inside the capability that was in force.

    A connected microgrid has one from the second step on, the first in which a decision can act; a later step
    without one is not respected.
    """
    checked = held = missing = without = 0
    gap = worst = spoken = lacked = None
    times = step_times(run_dir)[0]
    seen: Counter[str] = Counter()
    uncounted: Counter[str] = Counter()
    columns = ["time", "microgrid", "connected", "p_mw", "aic_low_mw", "aic_high_mw"]
    for row in rows(run_dir, "exchanges", columns):
        name, time, p_mw = row["microgrid"], row["time"].astimezone(UTC), row["p_mw"]
        low, high = row["aic_low_mw"], row["aic_high_mw"]
        seen[name] += 1
        if not row["connected"]:
            uncounted["isolated"] += 1
            continue
        if low is None or high is None:
            if time == times[0]:
                uncounted["before_the_first_decision"] += 1
                continue
            checked, without = checked + 1, without + 1
            lacked = lacked or f"{labelled('microgrid', name)}, {stamp(time)}"
            continue
        checked += 1
        if p_mw is None:
            missing += 1
            gap = gap or f"{labelled('microgrid', name)}, {stamp(time)}"
            continue
        by = max(low - p_mw, p_mw - high)
        held += by <= expected.tolerance_mw
        if worst is None or worst.by is None or by > worst.by:
            worst = Worst(name=name, time=time, value=p_mw, by=by)
            spoken = (
                f"{leading(by - expected.tolerance_mw)}{labelled('microgrid', name)} at {p_mw:.6g} MW, "
                f"{stamp(time)}, {distance(by, 'MW')} of [{low:.6g}, {high:.6g}]"
            )
    if without:
        spoken = "; ".join(filter(None, [f"{without} without capability, first of {lacked}", spoken]))
    steps = len(times)
    gone = {name: steps - n for name, n in sorted(seen.items()) if n < steps}
    return shared(
        expected,
        "exchanges of microgrids in their capability",
        held,
        checked=checked + sum(gone.values()),
        missing=missing + sum(gone.values()),
        gap=gap or next((labelled("microgrid", name) for name in gone), None),
        uncounted=dict(sorted(uncounted.items())),
        worst=worst,
        spoken=spoken,
    )


def unserved(run_dir: Path, expected: UnservedBelow) -> Verdict:
    """How much the loads of all microgrids lacked."""
    times, every = step_times(run_dir)
    if every is None:
        return unfounded(expected, "unserved_mwh: a run of less than two steps has no known length of step")
    hours = every / timedelta(hours=1)
    known: Counter[str] = Counter()
    lacked: dict[str, float] = {}
    for row in rows(run_dir, "exchanges", ["microgrid", "unserved_mw"]):
        name, p_mw = row["microgrid"], row["unserved_mw"]
        known[name] += p_mw is not None
        lacked[name] = lacked.get(name, 0.0) + (p_mw or 0.0) * hours
    if not lacked:
        return unfounded(expected, "unserved_mwh: there is no microgrid")
    gaps = {name: len(times) - n for name, n in known.items() if n < len(times)}
    missing, total = sum(gaps.values()), math.fsum(lacked.values())
    name, most = max(lacked.items(), key=lambda item: item[1])
    sentence = (
        f"{'at least ' if missing else ''}{total:.4g} MWh not served, limit {expected.below:g} MWh; most: "
        f"{labelled('microgrid', name)} with {most:.4g} MWh"
    )
    return Verdict(
        what=expected.what,
        required=str(expected),
        held=not missing and total <= expected.below + ROUNDING,
        sentence=sentence + lacking(missing, next((labelled("microgrid", n) for n in gaps), None)),
        checked=len(times) * len(lacked),
        missing=missing,
        observed=total,
        worst=Worst(name=name, time=None, value=most, by=total - expected.below),
    )
