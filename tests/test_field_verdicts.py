"""Real devices in verdicts: what a device says that it goes by is its own word, and excuses no point."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from scenarios.run_directory import RunDirectory
from scenarios.verdicts import AnyExpectation, Expectation, Verdict, evaluate
from simulators.journal import Journal

START = datetime(2026, 6, 21, 10, tzinfo=UTC)
SECOND = timedelta(seconds=1)
PARSE: TypeAdapter[AnyExpectation] = TypeAdapter(Expectation)
BATTERY = {"name": "bat", "kind": "battery", "bus": 1, "p_mw": 3.0, "e_mwh": 4.0, "via": "mqtt"}


def at(seconds: float) -> datetime:
    return START + seconds * SECOND


def envelope(step: int) -> dict[str, Any]:
    """At most 0.5 MW either way, from the next step on for three."""
    return {
        "issued_at": [at(step)], "valid_from": at(step + 1), "valid_until": at(step + 4), "controller": "dso",
        "target": "bat", "kind": "envelope", "seq": step, "axes": [("p_mw",)],
        "A": [np.array([[1.0], [-1.0]])], "b": [np.array([0.5, 0.5])],
    }  # fmt: skip


def judged(root: Path, p_mw: float, state: str, measured_at: float = 3.0, **device: Any) -> Verdict:
    """One point of a real battery, in a step in which an envelope is valid."""
    directory = RunDirectory.create(root, "run", START)
    scenario = {"name": "run", "seed": 1, "steps": 4, "clock": {"mode": "live"}}
    directory.begin(scenario={**scenario, "devices": [{**BATTERY, **device}]}, now=START)
    measured = {"device": ["bat"], "p_mw": [p_mw], "q_mvar": [0.0], "state": [state]}
    field = {"device": ["bat"], "held": [False], "measured_at": [at(measured_at)]}
    with Journal(directory.path) as journal:
        for step in range(4):
            tables: dict[str, Any] = {"steps": {"step": step, "time": at(step), "controller": None}}
            if step == 2:
                tables["regions"] = envelope(step)
            if step == 3:
                tables |= {"devices": {"time": at(step), **measured}, "field": {"time": at(step), **field}}
            journal.append(step, tables)
    return evaluate(directory.path, PARSE.validate_python({"what": "envelope_respected"}))


@pytest.mark.parametrize("state", ["init", "failsafe"])
def test_a_liar_that_says_that_it_is_at_home_is_found(tmp_path: Path, state: str) -> None:
    found = judged(tmp_path, 2.5, state)
    assert (found.held, found.checked, dict(found.uncounted)) == (False, 1, {})
    assert found.worst is not None
    assert (found.worst.name, found.worst.value) == ("bat", 2.5)
    assert f"it says {state}, 2.5 MW outside its fallback" in found.sentence


@pytest.mark.parametrize("state", ["init", "failsafe"])
def test_who_is_in_its_fallback_has_no_region(tmp_path: Path, state: str) -> None:
    found = judged(tmp_path / "still", 0.0, state)
    assert (found.checked, dict(found.uncounted)) == (0, {"in_fallback": 1})
    own = judged(tmp_path / "own", 0.8, state, default={"p_mw": [0.7, 0.9]})
    assert (own.checked, dict(own.uncounted)) == (0, {"in_fallback": 1})
    away = judged(tmp_path / "away", 0.6, state, default={"p_mw": [0.7, 0.9]})
    assert (away.held, away.checked) == (False, 1)
    assert "0.1 MW outside its fallback" in away.sentence


def test_who_says_that_it_is_at_home_may_be_where_its_region_is(tmp_path: Path) -> None:
    found = judged(tmp_path, 0.4, "init")
    assert (found.held, found.checked) == (True, 1)


def test_who_obeys_a_region_is_judged_by_that_alone(tmp_path: Path) -> None:
    found = judged(tmp_path, 2.5, "controlled")
    assert (found.held, found.checked) == (False, 1)
    assert "fallback" not in found.sentence


def test_what_was_measured_before_the_first_region_has_none(tmp_path: Path) -> None:
    found = judged(tmp_path, 2.5, "init", measured_at=2.9)
    assert (found.checked, dict(found.uncounted)) == (0, {"without_region": 1})


def test_who_is_only_listened_to_has_been_told_nothing(tmp_path: Path) -> None:
    found = judged(tmp_path, 2.5, "init", dry_run=True)
    assert (found.checked, dict(found.uncounted)) == (0, {"in_a_dry_run": 1})
