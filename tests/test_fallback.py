"""Fallback: the second controller speaks only when the first has no decision, and says so."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
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

    answer: Decision | BaseException
    asked: list[Observation] = field(default_factory=list)

    def step(self, observation: Observation) -> Decision:
        self.asked.append(observation)
        if isinstance(self.answer, BaseException):
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


@pytest.mark.parametrize("error", [ZeroDivisionError("by zero"), SystemExit("by zero")])
def test_the_second_speaks_after_a_mistake_too_and_says_which(error: BaseException) -> None:
    got = Fallback(Says(error), Says(decision(2.0))).step(SEEN)
    assert (got.origin, got.setpoints) == (Origin.FALLBACK, {"a": Setpoint(p_mw=2.0)})
    assert got.mistake == f"{type(error).__name__}: by zero"
    assert Fallback(Says(Infeasible("x")), Says(decision(2.0))).step(SEEN).mistake is None


def test_who_presses_ctrl_c_is_heard() -> None:
    second = Says(decision(2.0))
    with pytest.raises(KeyboardInterrupt):
        Fallback(Says(KeyboardInterrupt()), second).step(SEEN)
    assert not second.asked


def test_a_mistake_is_not_covered_up_by_a_second_one_without_a_decision() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        Fallback(Says(ZeroDivisionError()), Says(Infeasible("bus 17"))).step(SEEN)
    assert isinstance(caught.value.__cause__, Infeasible)


def test_the_second_speaks_when_the_first_breaks_the_contract() -> None:
    def check(decision: Decision, observation: Observation) -> None:
        if decision.time != observation.time:
            raise ValueError(f"dated {decision.time:%H:%M}")

    late = replace(decision(1.0), time=NOON + timedelta(minutes=5))
    got = Fallback(Says(late), Says(decision(2.0)), check=check).step(SEEN)
    assert (got.origin, got.mistake) == (Origin.FALLBACK, "ValueError: dated 12:05")


def test_fallbacks_nest() -> None:
    third = Says(decision(3.0))
    inner = Fallback(Says(Infeasible("b")), third)
    got = Fallback(Says(Infeasible("a")), inner).step(SEEN)
    assert got.setpoints == {"a": Setpoint(p_mw=3.0)}
    assert got.origin is Origin.FALLBACK
