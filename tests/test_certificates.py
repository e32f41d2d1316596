"""What a report says of certificates: which limits were near, and what limited how many regions."""

from __future__ import annotations

import io
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from scenarios.certificates import SHOWN, Checked, of_run, reasons, sentence
from scenarios.report import show, summary
from scenarios.run_directory import RunDirectory
from simulators.journal import Journal

START = datetime(2026, 6, 21, tzinfo=UTC)
EVERY = timedelta(minutes=5)
LIMITS = (0.95, 1.05)
Row = tuple[str | None, float | None, float | None, int | None]


def recorded(root: Path, *steps: Sequence[Row], origin: str = "certified") -> RunDirectory:
    """A run in which each step decides a region for each (binding, worst pu, worst %, power flows)."""
    directory = RunDirectory.create(root, "run", START)
    limits = {"grid": {"limits": {"v_pu": list(LIMITS)}}}
    scenario = {"name": "run", "seed": 1, "steps": len(steps), "clock": {"mode": "fast"}, **limits}
    directory.begin(scenario=scenario, now=START)
    with Journal(directory.path) as journal:
        for step, found in enumerate(steps):
            time = START + step * EVERY
            row: dict[str, Any] = {"step": step, "time": time, "controller": "dso", "origin": origin}
            names = ("binding", "worst_v_pu", "worst_loading_percent", "power_flows")
            regions = [
                {
                    **{"issued_at": time, "valid_from": time + EVERY, "valid_until": time + 2 * EVERY},
                    **{"controller": "dso", "target": f"der{i}", "kind": "envelope", "seq": step + 1},
                    **{"axes": ("p_mw",), "A": np.ones((1, 1)), "b": np.ones(1)},
                    **dict(zip(names, one, strict=True)),
                }
                for i, one in enumerate(found)
            ]
            journal.append(step, {"steps": row, "regions": regions})
    return directory


def printed(directory: RunDirectory) -> str:
    stream = io.StringIO()
    show(summary(directory.path), Console(file=stream, width=100, no_color=True))
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    return " ".join(stream.getvalue().split())


def test_voltages_are_told_apart_by_the_limit_that_they_came_close_to(tmp_path: Path) -> None:
    volts = (0.9512, 1.0481, 0.9503, 1.0490, 0.9600)
    run = recorded(tmp_path, *([("row", v, 80.0 + i, 10)] * 2 for i, v in enumerate(volts)))
    found, binding = of_run(run.path, LIMITS)
    assert found == Checked(5, 50, 0.9503, 1.0490, 84.0)
    assert binding == {"row": 10}
    text = printed(run)
    assert (
        "5 results by 50 power flows; voltage closest to its limit: lowest 0.9503 pu, highest 1.0490" in text
    )
    assert "loading up to 84.0 %" in text


@pytest.mark.parametrize(
    ("v_pu", "said", "other"), [(0.9502, "lowest", "highest"), (1.0499, "highest", "lowest")]
)
def test_a_side_that_nothing_came_close_to_is_left_out(
    tmp_path: Path, v_pu: float, said: str, other: str
) -> None:
    text = printed(recorded(tmp_path, [("row", v_pu, None, 7)], [("row", v_pu, None, 7)]))
    assert f"2 results by 14 power flows; voltage closest to its limit: {said} {v_pu:.4f} pu" in text
    assert other not in text
    assert "loading" not in text


def test_without_limits_no_voltage_is_named(tmp_path: Path) -> None:
    found, _ = of_run(recorded(tmp_path, [("row", 0.96, 99.0, 7)]).path, None)
    assert found is not None
    assert sentence(found) == "1 result by 7 power flows; loading up to 99.0 %"


def test_what_limits_is_counted_where_nothing_was_checked(tmp_path: Path) -> None:
    often: Row = ("import by lower voltage at bus 17", None, None, None)
    run = recorded(tmp_path, *[[often, often, (None, None, None, None)]] * 4, origin="degraded")
    found = summary(run.path)
    assert found.checked is None
    assert found.binding == {"import by lower voltage at bus 17": 8}
    assert found.as_dict()["binding"] == found.binding
    text = printed(run)
    assert "decisions 4 degraded" in text
    assert "limits 8 regions: import by lower voltage at bus 17" in text
    assert "AC certificate" not in text


def test_envelopes_of_any_scale_are_counted_together(tmp_path: Path) -> None:
    scaled = [(f"row, scaled by {x} to hold in AC", 1.0, None, 3) for x in ("0.984", "0.5", "1.000")]
    _, binding = of_run(recorded(tmp_path, scaled).path, LIMITS)
    assert binding == {"row, scaled to hold in AC": 3}


def test_the_most_frequent_reasons_are_printed_and_the_others_counted() -> None:
    binding = {f"bus {k}": 20 - k for k in range(SHOWN + 2)}
    *first, last = reasons(binding)
    assert first == ["20 regions: bus 0", "19 regions: bus 1", "18 regions: bus 2"]
    assert last == "33 regions: 2 other reasons; --json has all"
    assert list(reasons({"bus 1": 1})) == ["1 region: bus 1"]
    assert list(reasons({})) == []
