"""How far ahead controllers look: at least until they are asked again, or the scenario is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from controllers.fallback import Fallback
from scenarios.build import build
from scenarios.check import ScenarioInvalid, notices, validate
from scenarios.envelopes import methods, shared_options
from scenarios.load import load
from scenarios.run import Exit
from tests.running import do

SLOW = ("controllers.dso.every=20min",)
"""Four steps of `ieee33-envelopes`, whose forecasts cover six."""
TIDE = (
    "grid.engine=power-grid-model",
    "controllers.dso.certified=true",
    "devices.bat13.p_mw=2",
    "devices.bat13.e_mwh=40",
    "devices.bat21.p_mw=3",
    "devices.bat21.e_mwh=40",
    'profiles.trading.values={"00:00":-1}',
    "controllers.dso.every=4h",
)
"""Batteries charge as much as they may, also while the evening's load grows."""


def controller(*changes: str, scenario: str | Path = "ieee33-envelopes", name: str = "dso") -> Any:
    draft = load(str(scenario), changes)
    seats = build(draft, validate(draft)).seats
    return next(seat.controller for seat in seats if seat.name == name)


def refusal(*changes: str, scenario: str | Path = "ieee33-envelopes") -> tuple[str, str]:
    with pytest.raises(ScenarioInvalid) as caught:
        controller(*changes, scenario=scenario)
    (problem,) = caught.value.problems
    return problem.path, problem.advice


def test_envelopes_are_made_for_every_step_until_the_next() -> None:
    assert controller().intervals == 1
    assert controller(*SLOW).intervals == 4
    assert controller(*SLOW, "controllers.dso.certified=true").intervals == 4
    assert controller(*SLOW, "controllers.dso.valid_for=2h").intervals == 4  # what is held is not covered
    assert controller(*SLOW, "controllers.dso.options.intervals=6").intervals == 6


def test_a_fallback_covers_as_many() -> None:
    both = controller(*SLOW, "controllers.dso.fallback=controllers.envelopes.max_min_ranges:MaxMinRanges")
    assert isinstance(both, Fallback)
    assert both.first.intervals == both.second.intervals == 4  # type: ignore[attr-defined]


def test_a_forecast_that_does_not_reach_so_far_is_named() -> None:
    path, advice = refusal("controllers.dso.every=1h")
    assert path == "forecast.intervals"
    assert "EqualRanges looks 12 steps ahead, but a forecast covers 6; raise it, or ask it more" in advice
    assert controller("controllers.dso.every=1h", "forecast.intervals=12").intervals == 12
    second = "controllers.dso.fallback=controllers.envelopes.max_min_ranges:MaxMinRanges"
    unlimited = "controllers.dso.uses=controllers.envelopes.static_limits:Unlimited"
    path, advice = refusal("controllers.dso.every=1h", unlimited, second)
    assert path == "forecast.intervals"
    assert "looks 12 steps ahead" in advice


def test_limits_that_look_at_no_forecast_need_none() -> None:
    fixed = controller(
        "controllers.dso.every=1h", "controllers.dso.uses=controllers.envelopes.static_limits:StaticLimits"
    )
    assert fixed.intervals == 1


def test_fewer_than_until_the_next_are_refused() -> None:
    path, advice = refusal(*SLOW, "controllers.dso.options.intervals=3")
    assert path == "controllers.dso.options.intervals"
    assert "less than the 4 steps until it is asked again (every 20min)" in advice
    assert "give 4 or more, or leave it out" in advice


def test_regulation_looks_as_far_as_its_positions_stay() -> None:
    own = "controllers.regulation.options={for_: export}"
    given = controller(own, scenario="ieee33-regulated", name="regulation")
    assert given.intervals == 6
    path, advice = refusal("controllers.regulation.options.intervals=5", scenario="ieee33-regulated")
    assert path == "controllers.regulation.options.intervals"
    assert "less than the 6 steps" in advice


DAY = "ieee33-interchange"


@pytest.mark.parametrize("name", ["mg1-prediction", "correction", "mg1-dispatch"])
def test_parts_of_a_conversation_look_as_far_as_until_the_next(name: str) -> None:
    others = [f"controllers.mg1-prediction.every={6 if name == 'mg1-prediction' else 1}h"]
    every = [*others, "controllers.correction.every=6h", f"controllers.{name}.every=6h"]
    found = controller(*every, scenario=DAY, name=name)
    assert found.horizon == (6 if name == "correction" else 12)
    path, advice = refusal(*every, f"controllers.{name}.options.horizon=5", scenario=DAY)
    assert path == f"controllers.{name}.options.horizon"
    assert "less than the 6 steps until it is asked again (every 6h)" in advice
    day = [change.replace("6h", "24h") for change in every]
    path, advice = refusal(*day, scenario=DAY)
    assert path == "forecast.intervals"
    assert "looks 24 steps ahead, but a forecast covers 12" in advice


async def test_no_step_is_without_a_capability(tmp_path: Path) -> None:
    """Whether each of them is safe is another question, which `check` raises."""
    seldom = ("controllers.correction.every=6h", "steps=9", 'expect=[{"what": "interchange_respected"}]')
    run = await do(DAY, tmp_path, *seldom)
    assert run.exit is Exit.HELD, run.why
    assert run.verdicts[0].checked == 3 * 8
    draft = load(DAY, seldom)
    (notice,) = notices(draft, validate(draft))
    assert notice.path == "controllers.correction.every"
    assert "which is advice" in notice.advice


@pytest.mark.parametrize(
    ("head", "intervals"),
    [
        ("def __init__(self, site): self.intervals = None", None),
        ("def __init__(self, site, intervals=None): self.intervals = intervals", None),
        ("def __init__(self, site, intervals=5): self.intervals = intervals", 5),
        ("def __init__(self, site, intervals=2): self.intervals = intervals", 4),
    ],
)
def test_others_controllers_are_told_where_they_ask_for_a_number(
    tmp_path: Path, head: str, intervals: int | None
) -> None:
    (tmp_path / "own.py").write_text(f"class Own:\n    {head}\n    def step(self, seen): raise ValueError\n")
    (tmp_path / "own.yaml").write_text(
        "extends: ieee33-envelopes\nname: own\ncontrollers:\n"
        "  - {name: dso, uses: 'own.py:Own', every: 20min, options: {}}\n"
    )
    assert controller(scenario=tmp_path / "own.yaml").intervals == intervals


def test_what_one_instant_shows_is_for_as_many_steps() -> None:
    draft = load("ieee33-envelopes", SLOW)
    scenario = validate(draft)
    assert shared_options(draft, scenario, methods()["EPQ"]) == {"intervals": 4}
    assert shared_options(draft, scenario, methods()["static"]) == {}
    rolled = load("ieee33-envelopes", [*SLOW, "controllers.dso.rolling={intervals: 6}"])
    assert shared_options(rolled, validate(rolled), methods()["EPQ"]) == {}


@pytest.mark.parametrize(
    ("change", "path", "why"),
    [
        ("rolling={intervals: 3}", "controllers.dso.rolling", "ends after 3 intervals (15min), before there"),
        ("valid_for=1h", "controllers.dso.valid_for", "whose schedule says how long it holds"),
        ("options.intervals=6", "controllers.dso.options.intervals", "`rolling: {intervals: N}`"),
    ],
)
def test_a_schedule_reaches_to_the_next_and_speaks_for_itself(change: str, path: str, why: str) -> None:
    rolling = "controllers.dso.rolling={intervals: 4}"
    assert controller(*SLOW, rolling).intervals == 4
    found, advice = refusal(*SLOW, rolling, f"controllers.dso.{change}")
    assert found == path
    assert why in advice


async def test_hours_between_decisions_are_as_safe_as_minutes(tmp_path: Path) -> None:
    run = await do("ieee33-envelopes", tmp_path, *TIDE, "forecast.intervals=48")
    assert run.exit is Exit.HELD, run.why
