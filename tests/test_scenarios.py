"""Every packaged scenario runs, holds, and gives the figures that are stored beside this file.

After a change that is meant to move them: `python -m tests.test_scenarios` writes them anew.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from scenarios.load import packaged
from scenarios.report import Summary, summary
from scenarios.run import Exit, Result
from tests.running import do

STORED = Path(__file__).parent / "summaries"


def energy(found: Summary) -> dict[str, Any]:
    """By name; of a grid with hundreds of them, the sums by kind."""
    if len(found.energy) <= 200:
        counted = ("steps", "known_steps")
        return {e.name: {k: v for k, v in asdict(e).items() if k not in counted} for e in found.energy}
    sums: dict[str, Any] = {}
    for e in found.energy:
        kind = sums.setdefault(e.kind, {"number": 0, "generated": 0.0, "consumed": 0.0, "curtailed": 0.0})
        kind["number"] += 1
        kind["generated"] += e.generated_mwh or 0.0
        kind["consumed"] += e.consumed_mwh or 0.0
        kind["curtailed"] += e.curtailed_mwh or 0.0
    return sums


NOTHING = 1e-9
"""An extreme of less is rounding, and so is where it is: the loading of a grid without ratings."""


def figures(result: Result) -> dict[str, Any]:
    """What a run's report says that does not depend on the machine."""
    found = summary(result.directory)
    extremes = {
        "least_v_pu": found.least_v_pu,
        "greatest_v_pu": found.greatest_v_pu,
        "greatest_loading_percent": found.greatest_loading_percent,
    }
    return {
        "steps": found.steps_done,
        "decisions": found.decisions,
        "setpoints": found.setpoints,
        "energy": energy(found),
        **{
            k: {"name": e.name, "time": f"{e.time}", "value": e.value}
            for k, e in extremes.items()
            if e and abs(e.value) > NOTHING
        },
        "verdicts": {v.required: v.held for v in found.verdicts},
    }


LOOSE = {"ieee123-interchange": 5e-2} | dict.fromkeys(
    ("ieee33-interchange", "ieee33-interchange-isolation", "ieee33-interchange-envelopes"), 1e-3
)
"""How far numbers may be off where an interior point of a cone program is what is done: directions that cost
nothing, of a network battery above all, end where rounding takes them, on another processor elsewhere."""


def close(a: Any, b: Any, off: float) -> bool:
    """Equal, with numbers to `off`: other versions of the numerical libraries move the last digits."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(close(a[key], b[key], off) for key in a)
    if isinstance(a, float) and isinstance(b, float):
        return a == pytest.approx(b, abs=off, rel=off)
    return bool(a == b)


ELSEWHERE = {"ieee33-hil"}
"""Scenarios that need devices in processes of their own, and have tests of their own: `tests/test_hil.py`."""


@pytest.mark.parametrize("name", [name for name in packaged() if name not in ELSEWHERE])
async def test_a_scenario_holds_with_its_stored_figures(name: str, tmp_path: Path) -> None:
    result = await do(name, tmp_path)
    assert result.exit is Exit.HELD, result.why
    stored = json.loads((STORED / f"{name}.json").read_text())
    found = json.loads(json.dumps(figures(result)))
    assert found.keys() == stored.keys()
    for key, value in stored.items():
        assert close(found[key], value, LOOSE.get(name, 1e-6)), key


def main() -> None:
    STORED.mkdir(exist_ok=True)
    for name in packaged().keys() - ELSEWHERE:
        with tempfile.TemporaryDirectory() as folder:
            found = figures(asyncio.run(do(name, Path(folder))))
        (STORED / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
