"""Write `household.csv`: a made-up day of a household feeder's load, in per unit of its nominal load.

    python scenarios/data/make_household.py

The day's shape has a morning and an evening peak; the deviations are autocorrelated. No measurement.
"""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from math import exp
from pathlib import Path

START = datetime(2026, 6, 21, tzinfo=UTC)
EVERY = timedelta(minutes=5)
SEED = 20260621


def shape(hour: float) -> float:
    """Expected load [pu] at an hour of the day."""
    return 0.32 + 0.28 * exp(-(((hour - 8.0) / 2.2) ** 2)) + 0.5 * exp(-(((hour - 19.0) / 2.8) ** 2))


def rows() -> list[str]:
    """The lines of the file, the header first."""
    draw = random.Random(SEED)
    lines, deviation = ["time,load_pu"], 0.0
    for k in range(timedelta(days=1) // EVERY):
        at = START + k * EVERY
        deviation = 0.9 * deviation + draw.gauss(0.0, 0.03)
        load = shape(at.hour + at.minute / 60) * exp(deviation)
        lines.append(f"{at:%Y-%m-%dT%H:%M:%SZ},{load:.4f}")
    return lines


if __name__ == "__main__":
    Path(__file__).with_name("household.csv").write_text("\n".join(rows()) + "\n", encoding="utf-8")
