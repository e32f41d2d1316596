"""Fallback: the second controller speaks only when the first has no decision, and says so."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest

from controllers import (
    ControlError,
    Decision,
    Fallback,
    Forecast,
    Infeasible,
    Observation,
    Origin,
    Region,
    Setpoint,
    SolverFailed,
)

NOON = datetime(2026, 6, 21, 12, tzinfo=UTC)
SEEN = Observation(time=NOON, forecast=Forecast.empty(NOON, timedelta(minutes=5)))


@dataclass
class Says:
    """A controller that gives one decision, or raises one error."""

    answer: Decision | Exception
    asked: list[Observation] = field(default_factory=list)

    def step(self, observation: Observation) -> Decision:
        self.asked.append(observation)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def decision(p_mw: float, origin: Origin = Origin.OPTIMAL) -> Decision:
    return Decision(
        time=NOON,
        origin=origin,
        setpoints={"a": Setpoint(p_mw=p_mw)},
        regions={"a": Region.box(p_mw=(-p_mw, p_mw), q_mvar=(0.0, 0.0))},
    )


def test_the_first_speaks_while_it_can() -> None:
    first, second = Says(decision(1.0, Origin.CERTIFIED)), Says(decision(2.0))
    assert Fallback(first, second).step(SEEN) is first.answer
    assert not second.asked


@pytest.mark.parametrize("error", [ControlError("x"), Infeasible("x"), SolverFailed("x")])
def test_the_second_speaks_when_the_first_has_nothing(error: ControlError) -> None:
    second = Says(decision(2.0))
    got = Fallback(Says(error), second).step(SEEN)
    assert got.origin is Origin.FALLBACK
    assert (got.time, got.setpoints, got.regions) == (NOON, second.answer.setpoints, second.answer.regions)  # type: ignore[union-attr]
    assert second.asked == [SEEN]


def test_when_both_have_nothing_both_reasons_are_kept() -> None:
    why, also = Infeasible("bus 17 is too low"), SolverFailed("time limit")
    with pytest.raises(SolverFailed) as caught:
        Fallback(Says(why), Says(also)).step(SEEN)
    assert caught.value is also
    assert caught.value.__cause__ is why


def test_a_mistake_is_not_covered_up() -> None:
    second = Says(decision(2.0))
    with pytest.raises(ZeroDivisionError):
        Fallback(Says(ZeroDivisionError()), second).step(SEEN)
    assert not second.asked


def test_fallbacks_nest() -> None:
    third = Says(decision(3.0))
    inner = Fallback(Says(Infeasible("b")), third)
    got = Fallback(Says(Infeasible("a")), inner).step(SEEN)
    assert got.setpoints == {"a": Setpoint(p_mw=3.0)}
    assert got.origin is Origin.FALLBACK
