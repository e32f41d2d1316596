"""Conversations about interchange: a missing part, one given twice or too early is told before a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scenarios.check import ScenarioInvalid, validate
from scenarios.load import load

DAY = "ieee33-interchange"
UNCORRECTED = "controllers.interchange.uncorrected:Uncorrected"
Parts = dict[str, dict[str, Any]]


def told(
    arranged: Callable[[Parts], list[dict[str, Any]]], folder: Path | None = None, **more: Any
) -> dict[str, str]:
    """What is wrong with the scenario's controllers, arranged anew; by path."""
    draft = load(DAY)
    parts = {part["name"]: part for part in draft.raw["controllers"]}
    raw = {**draft.raw, "controllers": arranged(parts), **more}
    if folder is not None:
        draft = load(str(folder / "own.yaml"))
    try:
        validate(type(draft)(raw, draft.folder, draft.origin))
    except ScenarioInvalid as error:
        return {problem.path: problem.advice for problem in error.problems}
    return {}


def but(*names: str, **changes: dict[str, Any]) -> Callable[[Parts], list[dict[str, Any]]]:
    """All but some, others with changes."""
    return lambda parts: [
        part | changes.get(name.replace("-", "_"), {}) for name, part in parts.items() if name not in names
    ]


def test_all_parts_in_order_are_a_conversation() -> None:
    assert told(but()) == {}
    assert told(lambda parts: [*list(parts.values())[2::-1], *list(parts.values())[3:]]) == {}
    assert told(but(correction={"uses": UNCORRECTED, "options": {}})) == {}
    assert told(but(correction={"fallback": UNCORRECTED})) == {}
    assert told(lambda parts: [], expect=[]) == {}  # only the plant


@pytest.mark.parametrize(
    ("gone", "whose", "lacks"),
    [
        ("mg2-prediction", ["mg2"], "lacks a prediction (controllers.interchange.prediction:Interchange"),
        ("mg2-dispatch", ["mg2"], "lacks a dispatch (controllers.interchange.dispatch:MicrogridDispatch)"),
        ("correction", ["mg1", "mg2", "mg3"], "lacks a correction (controllers.interchange.correction:"),
    ],
)
def test_a_part_that_is_missing_is_named(gone: str, whose: list[str], lacks: str) -> None:
    found = told(but(gone))
    assert list(found) == [f"microgrids.{name}.name" for name in whose]
    assert all(lacks in advice for advice in found.values())
    there = {"mg2-prediction", "correction", "mg2-dispatch"} - {gone}
    assert all(repr(name) in found["microgrids.mg2.name"] for name in there)


def test_a_microgrid_that_nobody_speaks_for_is_named() -> None:
    found = told(but("mg2-prediction", "mg2-dispatch"))
    assert list(found) == ["microgrids.mg2.name"]
    assert "has a correction ('correction') but lacks a prediction" in found["microgrids.mg2.name"]
    assert "and a dispatch" in found["microgrids.mg2.name"]


def test_a_part_given_twice_is_told_at_the_second() -> None:
    def doubled(name: str, **changes: Any) -> Callable[[Parts], list[dict[str, Any]]]:
        return lambda parts: [*parts.values(), {**parts[name], "name": "again", **changes}]

    for name, whose in (("mg1-dispatch", " of 'mg1'"), ("correction", "")):
        part = "dispatch" if whose else "correction"
        found = told(doubled(name))
        assert found == {"controllers.again.name": f"is a {part}{whose}, as {name!r} is; keep one"}
    found = told(doubled("correction", uses=UNCORRECTED, options={}))
    assert found == {"controllers.again.name": "is a correction, as 'correction' is; keep one"}


def test_who_is_asked_too_early_is_told_below_whom_to_be() -> None:
    found = told(lambda parts: [parts["correction"], *(p for n, p in parts.items() if n != "correction")])
    assert list(found) == ["controllers.correction.name"]
    found = told(lambda parts: [parts["mg3-dispatch"], *(p for n, p in parts.items() if n != "mg3-dispatch")])
    assert found == {
        "controllers.mg3-dispatch.name": "is the dispatch of 'mg3', asked before the correction that it has "
        "to hear; move it below 'correction'"
    }


def test_envelopes_are_made_of_what_capabilities_leave() -> None:
    equal = {"name": "dso", "uses": "controllers.envelopes.equal_ranges:EqualRanges"}
    assert told(lambda parts: [*parts.values(), equal]) == {}
    assert told(lambda parts: [equal, *parts.values()]) == {
        "controllers.dso.name": "shares what capabilities leave, asked before the correction that it has to "
        "hear; move it below 'correction'"
    }
    fixed = equal | {"uses": "controllers.envelopes.static_limits:StaticLimits"}
    assert told(lambda parts: [fixed, *parts.values()]) == {}


def test_whom_it_speaks_for_has_to_be_there() -> None:
    found = told(but(mg1_dispatch={"options": {"microgrid": "mg4"}}))
    (path, advice), *_ = found.items()
    assert path == "controllers.mg1-dispatch.options.microgrid"
    assert "is no microgrid of this scenario; did you mean" in advice
    assert len(found) == 1  # what it should have been is not guessed
    found = told(but(mg1_prediction={"options": {}}))
    assert found == {
        "controllers.mg1-prediction.options.microgrid": "says not which microgrid is meant; there are mg1, "
        "mg2, mg3"
    }


def test_a_group_speaks_for_each_of_its_microgrids() -> None:
    pair = {"options": {"microgrid": ["mg1", "mg2"]}}
    assert told(but("mg2-prediction", mg1_prediction=pair)) == {}
    found = told(but(mg1_prediction=pair))
    assert found == {
        "controllers.mg2-prediction.name": "is a prediction of 'mg2', as 'mg1-prediction' is; keep one"
    }


def test_predictions_are_heard_in_their_own_step() -> None:
    found = told(but(mg1_prediction={"every": "2h"}, correction={"every": "3h"}))
    assert found == {
        "controllers.correction.every": "hears only predictions of its own step; make it a multiple of "
        "`every` of 'mg1-prediction'"
    }
    assert told(but(mg1_prediction={"every": "2h"}, correction={"every": "4h"})) == {}


def test_what_others_have_written_is_not_judged(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "class Own:\n    def __init__(self, site): ...\n    def step(self, seen): ...\n"
    )
    (tmp_path / "own.yaml").write_text(f"extends: {DAY}\nname: own\n")
    assert told(but("mg1-prediction", correction={"uses": "own.py:Own", "options": {}}), tmp_path) == {}
    found = told(but(mg1_prediction={"uses": "own.py:Missing", "options": {}}), tmp_path)
    assert list(found) == ["controllers.mg1-prediction.uses"]  # it may have been the one
