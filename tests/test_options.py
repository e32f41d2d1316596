"""Options of controllers that a scenario gives wrongly: each is named, before anything is built."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from math import inf, nan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import pytest

from controllers.envelopes.certified import Certified
from controllers.regulation import VoltageRegulation
from scenarios.build import build
from scenarios.check import ScenarioInvalid, validate
from scenarios.envelopes import methods
from scenarios.load import load
from scenarios.options import blamed, misplaced, mistakes

if TYPE_CHECKING:
    from fractions import Fraction

QUICK = "ieee33-quick"
OPTIONS = "controllers.dso.options"
METHODS = "controllers.envelopes"


def problems(which: str | Path, *changes: str) -> dict[str, str]:
    """What `gridpace check` says, by path."""
    draft = load(str(which), changes)
    with pytest.raises(ScenarioInvalid) as caught:
        build(draft, validate(draft))
    return {p.path: f"{p.value}: {p.advice}" for p in caught.value.problems}


@pytest.mark.parametrize(
    ("uses", "option", "value", "said"),
    [
        ("equal_ranges:EqualRanges", "intervals", "1.5", "1.5: must be a whole number"),
        ("equal_ranges:EqualRanges", "intervals", "two", "'two': must be a whole number"),
        ("equal_ranges:EqualRanges", "price", "maybe", "'maybe': must be true or false"),
        ("equal_ranges:EqualRanges", "margin", "0.05", "0.05: must be a mapping or null"),
        ("equal_ranges:EqualRanges", "weights", "contarct", "did you mean 'contract'?"),
        ("equal_ranges:EqualRanges", "weights", "[a]", "['a']: must be one of contract, rating, equal"),
        (
            "equal_ranges:EqualRanges",
            "site",
            "5",
            "is no option of EqualRanges, which has intervals",
        ),
        ("max_min_ranges:MaxMinRanges", "caps", "-1", "-1: must be true or false"),
        ("max_min_ranges:MaxMinRanges", "caps", "1", "1: must be true or false"),
        ("equal_polygons:EqualPolygons", "corners", "many", "'many': must be a whole number"),
        ("equal_polygons:EqualPolygons", "corners", "12.0", "12.0: must be a whole number; write 12"),
        ("equal_polygons:EqualPolygons", "corners", "'12'", "'12': must be a whole number, without quotes"),
        ("equal_boxes:EqualBoxes", "aspect", "wide", "'wide': must be a number"),
        ("equal_boxes:EqualBoxes", "aspect", "true", "True: must be a number"),
        ("soft_ranges:SoftlyEqualRanges", "sigma_per_mw", "a", "'a': must be a number"),
        ("soft_ranges:SoftlyEqualRanges", "sigma_per_mw", ".nan", "nan: must be a number, and finite"),
    ],
)
def test_an_option_that_is_no_such_thing_is_named(uses: str, option: str, value: str, said: str) -> None:
    changes = f"controllers.dso.uses={METHODS}.{uses}", f"{OPTIONS}.{option}={value}"
    found = problems(QUICK, *changes)
    assert list(found) == [f"{OPTIONS}.{option}"]
    assert said in found[f"{OPTIONS}.{option}"]


def test_all_mistakes_are_listed_at_once_with_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    lines = [f"extends: {QUICK}", "controllers:", "  - name: dso", "    options:"]
    lines += ["      weigths: contract", "      intervals: two", "    certified: {rounds: many}"]
    file.write_text("\n".join(lines))
    with pytest.raises(ScenarioInvalid) as caught:
        validate(load(str(file), ["seed=-1"]))
    where = {p.path: p.line for p in caught.value.problems}
    assert where == {
        f"{OPTIONS}.weigths": 5,
        f"{OPTIONS}.intervals": 6,
        "controllers.dso.certified.rounds": 7,
        "seed": None,
    }
    said = next(p.advice for p in caught.value.problems if p.path.endswith("weigths"))
    assert said.endswith("; did you mean 'weights'?")
    assert "which has intervals, weights, when_broken, capability, price, margin, form;" in said


@pytest.mark.parametrize(
    ("cost", "said"), [("cheap", "must be a number"), (".inf", "and finite"), ("-1", "-1 is negative")]
)
def test_what_a_move_is_worth_is_a_number(cost: str, said: str) -> None:
    change = f"controllers.regulation.options.switching_cost_mw={cost}"
    (advice,) = problems("ieee33-regulated", change).values()
    assert said in advice


def test_a_class_guards_its_ranges_without_a_scenario() -> None:
    draft = load("ieee33-regulated")
    built = build(draft, validate(draft))
    with pytest.raises(ValueError, match="switching_cost_mw inf is negative or not finite"):
        VoltageRegulation(built.site, switching_cost_mw=inf)
    inner = built.seats[1].controller
    with pytest.raises(ValueError, match="tolerance_v_pu inf must be above 0 and finite"):
        Certified(inner, tolerance_v_pu=inf)  # type: ignore[arg-type]


def test_a_kind_of_margin_that_is_a_list_is_none() -> None:
    (advice,) = problems(QUICK, f"{OPTIONS}.margin={{kind: [a]}}").values()
    assert "margin: kind ['a'] is none of gaussian, cantelli, interval" in advice


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ("certified={rounds: many}", "must be a whole number"),
        ("certified={roundz: 3}", "did you mean 'rounds'?"),
        ("certified={two_sided: 1}", "must be true or false"),
        ("certified={two_sided: maybe}", "must be true or false"),
        ("certified={tolerance_v_pu: '1e-5'}", "must be a number, without quotes"),
        ("certified=often", "must be true, false or a mapping"),
        ("rolling={repay: true}", "must be a number"),
        ("rolling={notices: 1}", "did you mean 'notice'?"),
        ("rolling=5", "must be true, false or a mapping"),
        ("options=5", "must be a mapping"),
    ],
)
def test_what_goes_around_a_method_has_options_too(changes: str, said: str) -> None:
    (advice,) = problems(QUICK, f"controllers.dso.{changes}").values()
    assert said in advice


@pytest.mark.parametrize(
    ("cls", "write"),
    [
        ("controllers.envelopes.certified:Certified", "`certified: true` beside a method"),
        ("controllers.envelopes.rolling:Rolling", "`rolling: true` beside a method"),
        ("controllers.fallback:Fallback", "`fallback: module:Class` beside"),
    ],
)
@pytest.mark.parametrize("key", ["uses", "fallback"])
def test_what_goes_around_a_controller_is_none_by_itself(key: str, cls: str, write: str) -> None:
    found = problems(QUICK, f"controllers.dso.{key}={cls}")
    assert list(found) == [f"controllers.dso.{key}"]
    assert write in found[f"controllers.dso.{key}"]


def test_a_length_of_time_is_shown_as_it_is_written() -> None:
    found = problems("ieee33-regulated", "controllers.dso.every=20min")
    assert found["controllers.dso.every"].startswith("20min: must divide")
    found = problems(QUICK, "controllers.dso.rolling={intervals: 2, notice: 2, silent_after: 15min}")
    assert "timedelta" not in found["controllers.dso.rolling"]


def test_every_method_takes_its_own_defaults() -> None:
    for cls in (*methods().values(), VoltageRegulation):
        options = {p.name: p.default for p in inspect.signature(cls).parameters.values() if p.name != "site"}
        assert len(options) >= 5, cls
        assert not list(mistakes(cls, options)), cls
        assert misplaced(cls) is None


# Classes of third parties


@dataclass
class Theirs:
    site: Any
    share: float
    count: int | None = None
    limit_mw: float = inf
    corner: tuple[float, float] = (0.0, 0.0)
    names: Sequence[str] = ()
    prices: Mapping[str, float] = field(default_factory=dict)
    mode: Literal["fast"] | int = "fast"
    noted: Annotated[int, "steps"] = 1
    after: timedelta | str = "2 steps"
    ratio: Fraction | int = 1
    any_: Any = None
    made: int = field(init=False, default=0)
    shared: ClassVar[int] = 0


def said(cls: type[Any], **options: Any) -> dict[str, str]:
    return dict(mistakes(cls, options))


@pytest.mark.parametrize(
    ("option", "good", "bad", "expected"),
    [
        ("share", [1, 0.5, -2.0], ["1", None, True, [1], inf, nan], "must be a number"),
        ("count", [3, None], [3.5, "x", False], "must be a whole number or null"),
        ("limit_mw", [inf, 3], ["much"], "must be a number"),
        (
            "corner",
            [[1, 2.5]],
            [[1], [1, 2, 3], [1, "a"], 1, "ab"],
            "must be a list of 2: a number",
        ),
        ("names", [[], ["a"]], ["a", [1], {"a": 1}], "must be a list, each text"),
        ("prices", [{}, {"a": 1}], [{"a": "b"}, [1], 5], "must be a mapping to a number"),
        ("mode", ["fast", 5], ["slow", 1.5], "must be one of fast or a whole number"),
        ("noted", [2], ["two"], "must be a whole number"),
        ("after", ["soon", 5, []], [], ""),  # no simple kind, so the class itself says what it takes
        ("ratio", ["1/2", 5, []], [], ""),  # imported for type checkers only
        ("any_", [5, "x", None, [{}]], [], ""),
    ],
)
def test_values_are_held_against_annotations(
    option: str, good: list[Any], bad: list[Any], expected: str
) -> None:
    others = {} if option == "share" else {"share": 1}
    for value in good:
        assert not said(Theirs, **others, **{option: value}), value
    for value in bad:
        found = said(Theirs, **others, **{option: value})
        assert list(found) == [option], value
        assert found[option].startswith(expected), value


@pytest.mark.parametrize(
    ("change", "option", "said"),
    [
        ("mg1-prediction.options.adjust_s=15min", "adjust_s", "a number or null, in seconds; write 900"),
        ("correction.options.reserve_h=30min", "reserve_h", "a number or null, in hours; write 0.5"),
        ("correction.options.reserve_h=soon", "reserve_h", "a number or null, in hours"),
        ("correction.options.weights={mg9: 1}", "weights", "'mg9', which is no microgrid"),
        ("correction.options.weights={mg1: 0}", "weights", "the weight 0 of 'mg1'"),
        ("correction.options.batteries=[x]", "batteries", "known: bess"),
        ("mg1-prediction.options.beta=-1", "beta", "below zero"),
        ("mg1-prediction.options.links=[mg1]", "links", "'mg1' is no link; write {source: mg1"),
        ("mg1-prediction.options.links=[{source: mg1, target: mg2, p_mw: x}]", "links", "must be a number"),
    ],
)
def test_a_refusal_stands_at_the_option_that_it_is_about(change: str, option: str, said: str) -> None:
    (found,) = problems("ieee33-interchange", f"controllers.{change}").items()
    assert found[0] == f"controllers.{change.partition('.')[0]}.options.{option}"
    assert said in found[1]


def test_a_refusal_that_names_no_option_is_about_all() -> None:
    assert blamed("weight 3 is more than point 2", {"points": 1, "weight": 3}) == "weight"
    assert blamed("no point left", {"points": 1, "weight": 3}) == "points"
    assert blamed("the site has no loads", {"points": 1}) is None


def test_names_are_held_against_the_signature() -> None:
    assert said(Theirs) == {"share": "is required by Theirs; add it"}
    assert list(said(Theirs, share=1, made=1, shared=1)) == ["made", "shared"]

    class Plain:
        def __init__(self, site: Any, share: float = 1.0, *, mode: str = "fast") -> None: ...

    class Open:
        def __init__(self, site: Any, **options: Any) -> None: ...

    class Nothing:
        def __init__(self, site: Any) -> None: ...

    assert not said(Plain, share="any", mode=5)
    assert said(Plain, sharee=1) == {
        "sharee": "is no option of Plain, which has share, mode; did you mean 'share'?"
    }
    assert not said(Open, whatever=1)
    assert said(Nothing, share=1) == {"share": "is no option of Nothing, which has none"}


THEIRS = """
from dataclasses import dataclass
from controllers import Decision, Observation, Site

@dataclass
class Needs:
    site: Site
    share: float

    def step(self, observation: Observation) -> Decision: ...
"""


def test_what_a_class_needs_is_said_where_it_belongs(tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text(THEIRS)
    file = tmp_path / "theirs.yaml"
    file.write_text(f"extends: {QUICK}\n")
    found = problems(file, "controllers.dso.uses=theirs.py:Needs", f"{OPTIONS}={{shar: 1}}")
    assert found == {
        f"{OPTIONS}.shar": "1: is no option of Needs, which has share; did you mean 'share'?",
        f"{OPTIONS}.share": "(missing): is required by Needs; add it",
    }
    found = problems(file, "controllers.dso.fallback=theirs.py:Needs")
    assert found == {
        "controllers.dso.fallback": "'theirs.py:Needs': needs 'share'; a fallback has no options"
    }
