"""Forecasts: what is known, when it was known, and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from controllers import Forecast

NOON = datetime(2026, 6, 21, 12, tzinfo=UTC)
STEP = timedelta(minutes=5)


def test_each_interval_has_its_instant_and_its_values() -> None:
    forecast = Forecast(NOON, STEP, ("sun", "home"), np.array([[1.0, -0.5], [2.0, -0.25]]), np.zeros((2, 2)))
    assert forecast.times == (NOON + STEP, NOON + 2 * STEP)
    assert forecast.at(0) == {"sun": 1.0, "home": -0.5}
    assert forecast.at(1) == {"sun": 2.0, "home": -0.25}


def test_nothing_is_known_outside_the_intervals() -> None:
    forecast = Forecast(NOON, STEP, ("sun",), np.array([[1.0]]), np.array([[0.1]]))
    assert forecast.at(1) == {}
    assert forecast.at(-1) == {}


def test_an_empty_forecast_is_a_forecast() -> None:
    forecast = Forecast.empty(NOON, STEP)
    assert forecast.names == ()
    assert forecast.times == ()
    assert forecast.at(0) == {}
    assert forecast.issued_at == NOON


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"issued_at": NOON.replace(tzinfo=None)}, "no time zone"),
        ({"mean": [[1.0, np.nan]]}, "mean is not finite"),
        ({"std": [[0.0, np.inf]]}, "std is not finite"),
        ({"std": [[0.0, -0.1]]}, "negative"),
        ({"std": np.zeros((2, 2))}, r"mean is \(1, 2\), std is \(2, 2\)"),
        ({"mean": [1.0, 2.0]}, "mean has shape"),
        # names by intervals, the other way round: must not be folded into something that fits
        ({"names": ("a", "b", "c"), "mean": np.ones((3, 4)), "std": np.zeros((3, 4))}, "mean has shape"),
    ],
)
def test_what_is_no_forecast_is_refused(changes: dict[str, object], says: str) -> None:
    good = {"issued_at": NOON, "every": STEP, "names": ("a", "b"), "mean": [[1.0, 2.0]], "std": [[0.0, 0.1]]}
    Forecast(**good)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=says):
        Forecast(**(good | changes))  # type: ignore[arg-type]


def test_nobody_can_change_what_was_forecast() -> None:
    mean = np.ones((1, 1))
    forecast = Forecast(NOON, STEP, ("sun",), mean, np.zeros((1, 1)))
    mean[0, 0] = 7.0
    assert forecast.at(0) == {"sun": 1.0}
    for values in (forecast.mean, forecast.std):
        with pytest.raises(ValueError, match="read-only"):
            values[0, 0] = 7.0
