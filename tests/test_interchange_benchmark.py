"""The benchmark of interchange capability, small: every way is timed, and what is compared is the same."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from benchmarks import interchange
from benchmarks.envelopes import Cost
from benchmarks.interchange import AGAINST, CHECK, CORRECTED, PREDICTED, PROGRAM, SOLVED
from controllers.contract import Infeasible
from controllers.interchange.correction import InterchangeCorrection

SECONDS = 60.0


def shown(results: dict[str, dict[int, dict[str, Cost]]]) -> str:
    text = io.StringIO()
    for table in interchange.tables(results):
        Console(file=text, width=200).print(table)
    return text.getvalue()


def took(*ms: float, answers: tuple[float, ...] = (1.0,)) -> Cost:
    return Cost(0.0, ms, answers)


def test_every_way_to_predict_is_timed_and_agrees() -> None:
    found = interchange.predictions(interchange.bench_of(33), 2, repeat=2, seconds=SECONDS)
    assert found.keys() == {SOLVED, PREDICTED, *AGAINST[SOLVED]}
    assert all(len(cost.ms) == 2 and min(cost.ms) >= 0 for cost in found.values())
    for other in AGAINST[SOLVED]:  # two microgrids, nine cases each
        assert found[other].answers == pytest.approx(found[SOLVED].answers, abs=1e-3)
    assert len(set(found[SOLVED].answers)) == 2
    assert interchange.apart(found) < 1e-5


def test_every_way_to_correct_is_timed_and_agrees() -> None:
    found = interchange.corrections(interchange.bench_of(17), 2, repeat=2, seconds=SECONDS)
    assert found.keys() == {PROGRAM, CHECK, CORRECTED, *AGAINST[PROGRAM], *AGAINST[CORRECTED]}
    assert all(len(cost.ms) == 2 and min(cost.ms) >= 0 for cost in found.values())
    assert all(math.isfinite(answer) for cost in found.values() for answer in cost.answers)
    assert interchange.apart(found) < 1e-4
    # The step's first program is the one that is timed alone.
    (alone,) = AGAINST[CORRECTED]
    assert found[alone].answers == pytest.approx(found[PROGRAM].answers, rel=1e-5)
    assert len(set(found[CORRECTED].answers)) == 2


def test_an_objective_that_differs_is_seen() -> None:
    with_solver, with_cvxpy = AGAINST[SOLVED]
    found = {SOLVED: took(1.0, answers=(100.0,)), with_solver: took(1.0, answers=(100.0,))}
    found[with_cvxpy] = took(1.0, answers=(103.0,))
    assert interchange.apart(found) == pytest.approx(0.03)


def test_the_table_says_which_aims_are_met() -> None:
    with_solver, with_cvxpy = AGAINST[PROGRAM]
    (whole,) = AGAINST[CORRECTED]
    found = {
        PROGRAM: took(20.0, 30.0, 40.0),
        with_solver: took(20.0),
        with_cvxpy: took(120.0),
        CHECK: took(5.0),
        CORRECTED: took(50.0),
        whole: took(20.0),
    }
    lines = shown({"one": {4: found, 12: {**found, with_solver: took(10.0)}}}).splitlines()
    ratios = [[cell.strip() for cell in line.split("│")[2:4]] for line in lines if " : " in line]
    assert ratios == [
        ["1.50 within 2", "3.00 BEYOND 2"],
        ["1/4.0 BEYOND 1/5", "1/4.0 BEYOND 1/5"],
        ["2.50", "2.50"],
    ]
    assert any("30 (20-40)" in line for line in lines)


@pytest.mark.parametrize(("ms", "says"), [(59.0, "within"), (61.0, "BEYOND")])
def test_a_prediction_has_60_ms(ms: float, says: str) -> None:
    found = {SOLVED: took(1.0), PREDICTED: took(ms), **{other: took(1.0) for other in AGAINST[SOLVED]}}
    (line,) = [line for line in shown({"one": {1: found}}).splitlines() if "at most 60 ms" in line]
    assert says in line


def test_what_the_benchmark_corrects_needs_a_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why its voltage limit is low: at 0.95 pu the program alone has no answer in the evening."""
    monkeypatch.setitem(interchange.LEAST_V_PU, 33, 0.95)
    monkeypatch.setattr(interchange, "HOURS", range(16, 17))
    bench = interchange.bench_of(33)
    with pytest.raises(Infeasible):
        interchange.corrections(bench, 1, repeat=1, seconds=SECONDS)
    # The step has: it moves the limit by what it takes.
    (observed,) = interchange.heard(bench, 1, 1)
    assert InterchangeCorrection(bench.site, **interchange.options(bench.site, 1)).step(observed).regions
