"""A user's table: what it says, what it is refused for, and that forecasts read none of its future."""

from __future__ import annotations

import runpy
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from simulators.measured import TableProcess, TableProfile
from simulators.processes import Array

START = datetime(2026, 6, 21, tzinfo=UTC)
EVERY = timedelta(minutes=15)
DATA = Path(__file__).parents[1] / "scenarios" / "data"


def write(file: Path, values: dict[str, Any], start: datetime = START, every: timedelta = EVERY) -> Path:
    """Write columns of equal length, a row every interval from `start` on."""
    rows = len(next(iter(values.values())))
    times = [f"{start + k * every:%Y-%m-%dT%H:%M:%SZ}" for k in range(rows)]
    lines = [",".join(["time", *values])]
    lines += [",".join([t, *(str(column[k]) for column in values.values())]) for k, t in enumerate(times)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def days(count: int, seed: int = 0) -> Array:
    """(quarters of an hour,) a daily hump, different in height from day to day, with noise."""
    draw = np.random.default_rng(seed)
    hour = np.arange(96) / 4
    hump = np.maximum(np.cos((hour - 12) * np.pi / 12), 0)
    rows = [
        hump * (0.7 + 0.1 * draw.standard_normal()) + 0.02 * draw.standard_normal(96) for _ in range(count)
    ]
    return np.concatenate(rows).round(6)


def process(file: Path, *names: str, step: int = 0, start: datetime = START, **options: Any) -> TableProcess:
    built = TableProfile(file=file, **options).build(names or ("a",), start, EVERY, 0)
    built.advance(step)
    return built


# Values


def test_a_value_holds_until_the_next_row(tmp_path: Path) -> None:
    file = write(tmp_path / "t.csv", {"a": [0.1, 0.2, 0.3]}, every=timedelta(hours=1))
    seen = []
    table = process(file)
    for k in range(12):
        table.advance(k)
        seen.append(table.now()[0])
    assert seen == [0.1] * 4 + [0.2] * 4 + [0.3] * 4
    with pytest.raises(ValueError, match=r"t.csv: row 3, 2026-06-21T02:00:00Z, is the last .*03:00:00Z"):
        table.advance(12)


def test_rows_closer_than_the_steps_give_the_last_one_before(tmp_path: Path) -> None:
    file = write(
        tmp_path / "t.csv", {"a": range(40)}, start=START - timedelta(minutes=1), every=timedelta(minutes=2)
    )
    assert process(file, step=1).now().tolist() == [8.0]  # at minute 15, where row 8 is exactly that


def test_columns_go_by_name_or_one_serves_all(tmp_path: Path) -> None:
    many = write(tmp_path / "many.csv", {"a": [1, 1], "b": [2, 2], "note": ["x", "y"]})
    one = write(tmp_path / "one.csv", {"load": [3, 3]})
    assert process(many, "b", "a").now().tolist() == [2.0, 1.0]
    assert process(many, "x", "y", column="b", scale=0.5).now().tolist() == [1.0, 1.0]
    assert process(one, "x", "y").now().tolist() == [3.0, 3.0]
    assert process(one, "x", "y").forecast(1)[0].shape == (1, 2)
    with pytest.raises(ValueError, match=r"column 'c' is missing; the file has 'time', 'a', 'b', 'note'"):
        process(many, "a", "c")


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", None])
def test_parquet_says_the_same_as_csv(tmp_path: Path, zone: str | None) -> None:
    values = days(2)
    csv = process(write(tmp_path / "t.csv", {"a": values}), step=120)
    times = [START + k * EVERY for k in range(192)]
    if zone is None:
        times = [t.replace(tzinfo=None) for t in times]
    table = pa.table({"time": pa.array(times, pa.timestamp("ms", tz=zone)), "a": values})
    pq.write_table(table, tmp_path / "t.parquet")
    parquet = process(tmp_path / "t.parquet", step=120, naive_is_utc=zone is None)
    assert parquet.now().tobytes() == csv.now().tobytes()
    for ours, theirs in zip(parquet.forecast(8), csv.forecast(8), strict=True):
        assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("form", ["%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S.%f"])
def test_naive_times_must_be_declared(tmp_path: Path, form: str) -> None:
    file = tmp_path / "t.csv"
    file.write_text("time,a\n" + "".join(f"{START + k * EVERY:{form}},{k}\n" for k in range(3)))
    assert process(file, step=2, naive_is_utc=True).now().tolist() == [2.0]
    with pytest.raises(
        ValueError, match=r"t.csv: column 'time', row 1: '2026-06-21.*no time zone.*naive_is_utc"
    ):
        process(file)


def test_times_of_another_zone_are_the_same_instants(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text(
        "time,a\n2026-06-21T02:00:00+02:00,1\n2026-06-21T00:15:00Z,2\n2026-06-21T02:30:00+02:00,3\n"
    )
    assert process(file, step=1).now().tolist() == [2.0]


# What is refused


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("time,a\n2026-06-21T00:00:00Z,1\n2026-06-21T00:15:00Z,\n", r"'a', row 2: the value is missing"),
        ("time,a\n2026-06-21T00:00:00Z,1\n2026-06-21T00:15:00Z,NaN\n", r"'a', row 2: the value is missing"),
        ("time,a\n2026-06-21T00:00:00Z,1\n2026-06-21T00:15:00Z,inf\n", r"'a', row 2: inf is no finite"),
        ("time,a\n2026-06-21T00:00:00Z,1\n2026-06-21T00:15:00Z,1;5\n", r"'a', row 2: '1;5' is no finite"),
        (
            "time,a\n2026-06-21T00:00:00Z,true\n2026-06-21T00:15:00Z,false\n",
            r"'a', row 1: True .*nor are 1 more",
        ),
        ("time,a\n2026-06-21T00:00:00Z,1\n,2\n", r"'time', row 2: the value is missing"),
        ("time,a\n2026-06-21T00:00:00Z,1\nnoon,2\n", r"'time', row 2: 'noon' is no time"),
        ("time,a\n0,1\n900,2\n", r"'time', row 1: 0 is no time"),
        (
            "time,a\n2026-06-21T00:00:00Z,1\n2026-06-21T00:15:00,2\n",
            r"row 2: '2026-06-21T00:15:00' has no time zone",
        ),
        (
            "time,a\n2026-06-21T00:15:00Z,1\n2026-06-21T00:00:00Z,2\n",
            r"row 2: 2026-06-21T00:00:00Z does not come",
        ),
        (
            "time,a\n2026-06-21T00:15:00Z,1\n2026-06-21T00:15:00Z,2\n",
            r"row 2: 2026-06-21T00:15:00Z does not come",
        ),
        ("a,b\n1,2\n", r"column 'time' is missing; the file has 'a', 'b'"),
        ("time,a,a\n2026-06-21T00:00:00Z,1,2\n", r"column 'a' is there more than once"),
        ("time,a\n2026-06-21T00:00:00Z,1\n", r"single row; say with `hold`"),
        ("time,a\n2026-06-21T00:00:00Z,1,5\n", r"t.csv: .*Expected 2 columns, got 3"),
        ("time,a\n", "has no row"),
        ("", "t.csv: .*[Ee]mpty"),
    ],
)
def test_faults_of_a_file_are_named_with_column_row_and_value(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        process(tmp_path / "t.csv")
    assert str(caught.value).startswith(str(tmp_path / "t.csv"))


def test_a_gap_is_refused_unless_values_hold_that_long(tmp_path: Path) -> None:
    lines = write(tmp_path / "t.csv", {"a": range(10)}).read_text().splitlines()
    (tmp_path / "t.csv").write_text("\n".join(lines[:5] + lines[7:]))
    expected = (
        r"'time', row 5: no value between 2026-06-21T00:45:00Z and 2026-06-21T01:30:00Z, a gap of 0:45:00"
    )
    with pytest.raises(ValueError, match=expected):
        process(tmp_path / "t.csv")
    assert process(tmp_path / "t.csv", step=5, hold=timedelta(minutes=45)).now().tolist() == [3.0]


def test_a_file_that_does_not_cover_the_run_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "t.csv", {"a": range(96)})
    with pytest.raises(
        ValueError, match=r"t.csv: begins at 2026-06-21T00:00:00Z, after the start 2026-06-20T23:45"
    ):
        process(file, start=START - EVERY)
    table = process(file)
    table.must_cover(START + timedelta(days=1))
    with pytest.raises(
        ValueError, match=r"row 96, 2026-06-21T23:45:00Z, is the last .*needed until 2026-06-22T00:15"
    ):
        table.must_cover(START + timedelta(days=1, minutes=15))


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none.csv"):
        process(tmp_path / "none.csv")
    with pytest.raises(ValueError, match=r"cannot read a .xlsx file; give a .csv or .parquet"):
        process(tmp_path / "t.xlsx")
    (tmp_path / "t.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match=r"t.parquet: "):
        process(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    "options", [{"scale": float("nan")}, {"spread": -0.1}, {"correlation_h": 0.0}, {"hold": timedelta(0)}]
)
def test_wrong_parameters_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        TableProfile(file=Path("t.csv"), **options)


# Forecasts


@pytest.mark.parametrize("step", [0, 5, 95, 96, 130, 250])
@pytest.mark.parametrize("history", [timedelta(0), timedelta(days=2)])
def test_no_forecast_reads_a_row_after_it(tmp_path: Path, step: int, history: timedelta) -> None:
    true = days(8)
    first = START - history
    now = step + history // EVERY
    changed = np.where(np.arange(len(true)) <= now, true, 5.0 - 3 * true)
    ours, theirs = (
        process(write(tmp_path / f"{name}.csv", {"a": values}, start=first))
        for name, values in (("true", true), ("changed", changed))
    )
    for k in range(step + 1):
        for table in (ours, theirs):
            table.advance(k)
        for mine, other in zip(ours.forecast(120), theirs.forecast(120), strict=True):
            assert mine.tobytes() == other.tobytes(), k
    ours.advance(step + 1)
    theirs.advance(step + 1)
    assert abs(ours.forecast(1)[0] - theirs.forecast(1)[0]).max() > 0.1


def test_without_a_day_of_history_the_present_value_persists(tmp_path: Path) -> None:
    file = write(tmp_path / "t.csv", {"a": days(2)})
    mean, std = process(file, step=40, spread=0.2, correlation_h=2.0).forecast(16)
    assert mean[:, 0].tolist() == [days(2)[40]] * 16
    # No forecast before the first row could be checked but those of these 40 steps.
    y = days(2)[:41]
    h = np.arange(1, 17)
    squares = np.array([((y[lead:] - y[:-lead]) ** 2).sum() for lead in h])
    prior = 12 * 0.2**2 * (1 - np.exp(-2 * h * 0.25 / 2.0))
    expected = np.maximum.accumulate(np.sqrt((prior + squares) / (12 + 41 - h)))
    np.testing.assert_allclose(std[:, 0], expected, rtol=1e-9)


def test_at_the_first_row_the_spread_is_the_configured_one(tmp_path: Path) -> None:
    file = write(tmp_path / "t.csv", {"a": days(1)})
    _, std = process(file, spread=0.2, correlation_h=2.0).forecast(80)
    assert std[0, 0] == pytest.approx(0.2 * np.sqrt(1 - np.exp(-2 * 0.25 / 2.0)))
    assert std[-1, 0] == pytest.approx(0.2, rel=1e-6)


def test_the_errors_of_persistence_are_forgotten_once_yesterday_is_known(tmp_path: Path) -> None:
    same = np.tile(days(1), 4)  # every day alike: yesterday is right, persistence was not
    table = process(write(tmp_path / "t.csv", {"a": same}), spread=0.01)
    for k in range(96 * 2):
        table.advance(k)
        mean, std = table.forecast(16)
        if k == 95:
            assert std[-1, 0] > 0.1
        if k >= 96:
            np.testing.assert_allclose(mean[:, 0], same[k + 1 : k + 17], atol=1e-12)
            assert std.max() <= 0.01


def test_with_history_it_is_yesterday_with_a_fading_correction(tmp_path: Path) -> None:
    values = days(4)
    file = write(tmp_path / "t.csv", {"a": values}, start=START - timedelta(days=2))
    mean, _ = process(file, step=48, correlation_h=1.5).forecast(120)
    now = 192 + 48
    h = np.arange(1, 121)
    like = np.where(h <= 96, now + h - 96, now + h - 192)
    expected = values[like] + np.exp(-h * 0.25 / 1.5) * (values[now] - values[now - 96])
    np.testing.assert_allclose(
        mean[:, 0], np.clip(expected, values[: now + 1].min(), values[: now + 1].max())
    )


def test_forecasts_stay_within_what_was_seen(tmp_path: Path) -> None:
    values = days(3)
    values[:96] *= 3  # a bright day, then dull ones: yesterday less the deviation would be negative
    mean, _ = process(write(tmp_path / "t.csv", {"a": values}), step=160).forecast(90)
    assert mean.min() >= values[:161].min()
    assert mean.max() <= values[:161].max()


def test_forecast_errors_are_as_wide_as_said(tmp_path: Path) -> None:
    values = days(40, seed=4)
    table = process(
        write(tmp_path / "t.csv", {"a": values}, start=START - timedelta(days=7)), correlation_h=4.0
    )
    standard: list[Array] = []
    spreads = []
    for k in range(30 * 96):
        table.advance(k)
        mean, std = table.forecast(16)
        truth = values[7 * 96 + k + 1 :][:16]
        standard.append((truth - mean[:, 0]) / std[:, 0])
        spreads.append(std[:, 0])
    for lead in (0, 3, 15):
        s = np.array(standard)[:, lead]
        assert abs(s.mean()) < 0.15
        assert 0.8 < s.std() < 1.2
    assert (np.diff(np.array(spreads), axis=1) >= 0).all()
    assert np.array(spreads)[:, 15].mean() > 1.2 * np.array(spreads)[:, 0].mean()


def test_asking_early_or_late_gives_the_same_spread(tmp_path: Path) -> None:
    file = write(tmp_path / "t.csv", {"a": days(9), "b": days(9, seed=1)}, start=START - timedelta(days=3))
    often = process(file, "a", "b")
    for k in range(200):
        often.advance(k)
        often.forecast(4 + k // 20)
    once = process(file, "a", "b", step=199)
    np.testing.assert_allclose(often.forecast(16)[1], once.forecast(16)[1], rtol=1e-9)


# The table that comes along


def test_household_is_what_its_script_writes_and_covers_its_day() -> None:
    script = runpy.run_path(str(DATA / "make_household.py"), run_name="imported")
    assert (DATA / "household.csv").read_text(encoding="utf-8").splitlines() == script["rows"]()
    table = TableProfile(file=DATA / "household.csv").build(("l1", "l2"), START, timedelta(minutes=5), 0)
    table.must_cover(START + timedelta(days=1))
    seen = []
    for k in range(288):
        table.advance(k)
        seen.append(table.now())
    assert 0.2 < np.min(seen) < np.max(seen) < 1.2
    assert np.ptp(seen, axis=1).max() == 0
