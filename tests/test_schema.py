"""The schema under arbitrary input: a draft is valid, or its problems are listed; nothing else."""

from __future__ import annotations

import copy
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scenarios import check
from scenarios.check import Problem, ScenarioInvalid, validate
from scenarios.load import Draft, load
from scenarios.schema import Scenario, duration, spell

BASE = load("ieee33-quick").raw
NET = check.load_grid(BASE["grid"]["network"], Path())

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 400),
    st.floats(allow_nan=True),
    st.text(max_size=8),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything inside a nested value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [p for key, item in inner for p in [(*path, key), *places(item, (*path, key))]]


@pytest.fixture(autouse=True)
def _one_net(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load the net once; the grid's loader has its own tests."""
    monkeypatch.setattr(check, "load_grid", lambda spec, folder: NET)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(places(BASE)), JUNK, st.booleans())
def test_any_change_of_any_value_is_valid_or_listed(path: tuple[Any, ...], junk: Any, remove: bool) -> None:
    raw = copy.deepcopy(BASE)
    place = raw
    for key in path[:-1]:
        place = place[key]
    if remove:
        del place[path[-1]]
    else:
        place[path[-1]] = junk
    found = outcome(Draft(raw, Path(), "changed"))
    assert isinstance(found, Scenario) or (found and all(p.path and p.advice and p.value for p in found))


def outcome(draft: Draft) -> Scenario | list[Problem]:
    """A valid scenario, or what is wrong with it."""
    try:
        return validate(draft)
    except ScenarioInvalid as error:
        return error.problems


@given(st.dictionaries(st.text(max_size=10), JUNK, max_size=5))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_mapping_is_refused_with_problems(raw: dict[str, Any]) -> None:
    with pytest.raises(ScenarioInvalid) as caught:
        validate(Draft(raw, Path(), "junk"))
    assert {"name", "start", "grid"} <= {p.path for p in caught.value.problems}


@given(st.integers(1, 10**13))
def test_lengths_of_time_survive_a_round_trip(microseconds: int) -> None:
    length = timedelta(microseconds=microseconds)
    assert duration(spell(length)) == length


@pytest.mark.parametrize(
    "text", ["5", "min", "5 minutos", "-5min", "5min or so", "", "nan s", "1e3s", "5min;"]
)
def test_other_texts_are_no_length_of_time(text: str) -> None:
    with pytest.raises(ValueError, match="length of time"):
        duration(text)
