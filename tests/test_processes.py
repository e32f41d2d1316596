"""The stochastic profiles against theory, brute force, and themselves: no forecast knows the future."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from math import exp, log, sqrt

import numpy as np
import pytest
from scipy import integrate, special

from simulators.daily import DailyProfile
from simulators.demand import LoadProfile
from simulators.deviations import Innovations, Quantiles, StochasticProcess
from simulators.processes import Array, Calendar, Profile
from simulators.sun import PvProfile, clear_sky, sin_elevation
from simulators.wind import WindProfile

START = datetime(2026, 6, 22, tzinfo=UTC)  # a Monday
EVERY = timedelta(minutes=5)
SITES = tuple(f"site{i}" for i in range(20))
STOCHASTIC = [PvProfile(), WindProfile(), LoadProfile()]


def named(profile: object) -> str:
    return type(profile).__name__


def run(
    profile: Profile, names: Sequence[str], steps: int, *, seed: int = 7, every: timedelta = EVERY
) -> Array:
    """(steps, names) values."""
    process = profile.build(names, START, every, seed)
    rows = []
    for k in range(steps):
        process.advance(k)
        rows.append(process.now())
    return np.array(rows)


def at_step(profile: Profile, names: Sequence[str], step: int, start: datetime = START) -> StochasticProcess:
    process = profile.build(names, start, EVERY, 7)
    process.advance(step)
    assert isinstance(process, StochasticProcess)
    return process


def deviations(names: Sequence[str], steps: int, correlation_h: float, rho: float) -> Array:
    """(steps, names) z itself: the identity as transform."""
    process = StochasticProcess(
        "test", names, lambda at, z: z, start=START, every=EVERY, seed=3, correlation_h=correlation_h, rho=rho
    )
    rows = []
    for k in range(steps):
        process.advance(k)
        rows.append(process.now())
    return np.array(rows)


# The deviations


def test_deviations_are_standard_normal_with_the_autocorrelation_of_theory() -> None:
    z = deviations(SITES, 8000, correlation_h=0.5, rho=0.0)
    assert abs(z.mean()) < 0.02
    assert abs(z.std() - 1) < 0.02
    assert abs((z**3).mean()) < 0.05
    assert abs((z**4).mean() - 3) < 0.15
    for lag in (1, 3, 6, 12):
        theory = exp(-lag * (5 / 60) / 0.5)
        assert abs((z[lag:] * z[:-lag]).mean() - theory) < 0.02, lag


@pytest.mark.parametrize("rho", [0.0, 0.4, 1.0])
def test_sites_are_correlated_by_rho(rho: float) -> None:
    z = deviations(SITES[:6], 8000, correlation_h=0.2, rho=rho)
    matrix = np.asarray(np.corrcoef(z.T))
    assert np.abs(matrix[~np.eye(6, dtype=bool)] - rho).max() < 0.06
    # Across sites too the correlation decays with the lag.
    theory = rho * exp(-2 * (5 / 60) / 0.2)
    assert abs((z[2:, 0] * z[:-2, 1]).mean() - theory) < 0.06


def test_the_first_step_has_the_stationary_law() -> None:
    z = np.array([Innovations("test", ("a",), 0.5, seed).at(0)[0] for seed in range(3000)])
    assert abs(z.mean()) < 0.06
    assert abs(z.std() - 1) < 0.05


def test_innovations_are_the_same_in_any_order_and_on_any_platform() -> None:
    forward, backward = Innovations("pv", ("a", "b"), 0.3, 7), Innovations("pv", ("a", "b"), 0.3, 7)
    rising = [forward.at(k).tolist() for k in range(200)]
    falling = [backward.at(k).tolist() for k in range(199, -1, -1)]
    assert rising == falling[::-1]
    np.testing.assert_allclose(forward.at(0), [0.4094115332736848, 0.6835898517921641], rtol=1e-12)
    np.testing.assert_allclose(forward.at(1000), [-0.07563304843364216, -1.3129161115459436], rtol=1e-12)


# The same numbers again, and only then


@pytest.mark.parametrize("profile", STOCHASTIC, ids=named)
def test_same_seed_same_bytes_other_seed_other_values(profile: Profile) -> None:
    first, again, other = (run(profile, SITES[:3], 300, seed=seed) for seed in (7, 7, 8))
    assert first.tobytes() == again.tobytes()
    assert np.abs(first - other).max() > 0.05


@pytest.mark.parametrize("profile", STOCHASTIC, ids=named)
def test_a_site_does_not_depend_on_the_other_sites(profile: Profile) -> None:
    alone = run(profile, ("b",), 200)
    among = run(profile, ("a", "b", "c"), 200)
    assert alone[:, 0].tobytes() == np.ascontiguousarray(among[:, 1]).tobytes()
    assert np.abs(among[:, 0] - among[:, 1]).max() > 0.01


def test_steps_left_out_are_passed_through_and_the_past_is_refused() -> None:
    jumping = at_step(LoadProfile(), SITES, 130)
    assert jumping.now().tobytes() == run(LoadProfile(), SITES, 131)[-1].tobytes()
    before = jumping.now()
    jumping.advance(130)
    assert jumping.now().tobytes() == before.tobytes()
    with pytest.raises(ValueError, match="step 129 is asked for at step 130"):
        jumping.advance(129)


def test_a_process_that_was_not_started_has_no_value() -> None:
    process = LoadProfile().build(("a",), START, EVERY, 7)
    with pytest.raises(ValueError, match="advance"):
        process.now()
    with pytest.raises(ValueError, match="advance"):
        process.forecast(2)


def test_a_week_takes_no_more_memory_than_a_day() -> None:
    process = at_step(LoadProfile(), SITES, 287)
    process.forecast(12)
    tracemalloc.start(25)
    try:
        after_two_days, after_a_week = (_grown(process, days) for days in ((1, 2), (3, 4, 5, 6)))
    finally:
        tracemalloc.stop()
    # One day more of these sites' values alone would be 46 kB.
    assert after_two_days > 0
    assert after_a_week - after_two_days < 10_000


def _grown(process: StochasticProcess, days: Sequence[int]) -> int:
    """Bytes that it holds after these days; what other threads allocate meanwhile is not its own."""
    for k in range(288 * days[0], 288 * (days[-1] + 1)):
        process.advance(k)
        process.forecast(12)
    own = tracemalloc.Filter(True, __file__, all_frames=True)
    return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces([own]).traces)


# Forecasts


@pytest.mark.parametrize("profile", STOCHASTIC, ids=named)
def test_forecasts_do_not_depend_on_what_comes_later(
    profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    issue = 100  # 08:20, in the sun, and inside a block of draws
    true = Innovations.at
    ours, theirs = at_step(profile, SITES, issue), at_step(profile, SITES, issue)

    def other_future(self: Innovations, step: int) -> Array:
        return true(self, step) + (0.5 if step > issue else 0.0)

    issued = ours.forecast(24)
    monkeypatch.setattr(Innovations, "at", other_future)
    for mine, other in zip(issued, theirs.forecast(24), strict=True):
        assert mine.tobytes() == other.tobytes()
    theirs.advance(issue + 1)
    monkeypatch.setattr(Innovations, "at", true)
    ours.advance(issue + 1)
    assert np.abs(ours.now() - theirs.now()).max() > 1e-3
    assert np.abs(ours.forecast(1)[0] - theirs.forecast(1)[0]).max() > 1e-3


@pytest.mark.parametrize("profile", STOCHASTIC, ids=named)
def test_a_longer_forecast_begins_like_a_shorter_one_and_asking_changes_nothing(profile: Profile) -> None:
    process = at_step(profile, SITES, 140)
    now = process.now()
    short, long = process.forecast(3), process.forecast(12)
    np.testing.assert_allclose(short[0], long[0][:3], rtol=1e-12)
    np.testing.assert_allclose(short[1], long[1][:3], rtol=1e-9, atol=1e-12)
    assert process.now().tobytes() == now.tobytes()
    assert long[0].shape == long[1].shape == (12, len(SITES))
    assert process.forecast(0)[0].shape == (0, len(SITES))


@pytest.mark.parametrize(
    "profile",
    [
        PvProfile(correlation_h=0.5, rho=0.0, clearness=0.6, spread=0.15),
        WindProfile(correlation_h=1.0, rho=0.0),
        LoadProfile(correlation_h=0.5, rho=0.0, spread=0.3),
    ],
    ids=named,
)
def test_forecasts_are_calibrated_and_their_error_grows_with_lead(profile: Profile) -> None:
    steps, leads = 1152, 12
    values = run(profile, SITES, steps)
    process = profile.build(SITES, START, EVERY, 7)
    error, standard = [], []
    for k in range(steps - leads):
        process.advance(k)
        mean, std = process.forecast(leads)
        miss = values[k + 1 : k + 1 + leads] - mean
        if std.min() > 0.005:  # by day
            error.append(miss)
            standard.append(miss / std)
    assert len(error) > 200
    for lead in (1, 3, 6, 12):
        s = np.array(standard)[:, lead - 1]
        assert abs(s.mean()) < 0.08, lead
        assert abs(s.std() - 1) < 0.06, lead
    squared = (np.array(error) ** 2).mean(axis=(0, 2))
    assert squared[11] > squared[5] > squared[2] > squared[0] > 0


@pytest.mark.parametrize("profile", STOCHASTIC, ids=named)
def test_quadrature_agrees_with_brute_force(profile: Profile) -> None:
    process = at_step(profile, SITES[:3], 130)
    mean, std = process.forecast(24)
    draws = np.random.default_rng(1).standard_normal(200_000)
    at = Calendar(START, EVERY).at(130 + np.arange(1, 25))
    for lead in (1, 6, 24):
        kept = process._phi**lead
        z = kept * process._z[:, None] + sqrt(1 - kept**2) * draws
        values = process._transform(at[lead - 1 : lead], z[None])[0]
        # Four standard errors of the sampling, and what the kinks of the power curve cost.
        slack = 4 * values.std(axis=1) / sqrt(len(draws)) + 0.0015
        assert (np.abs(mean[lead - 1] - values.mean(axis=1)) < slack).all(), lead
        assert (np.abs(std[lead - 1] - values.std(axis=1)) < slack).all(), lead


@pytest.mark.parametrize(
    ("profile", "slack"), list(zip(STOCHASTIC, [1e-6, 2e-3, 1e-6], strict=True)), ids=named
)
def test_quadrature_agrees_with_a_fine_integration(profile: Profile, slack: float) -> None:
    nodes = np.linspace(-8, 8, 20_001)
    weights = np.exp(-(nodes**2) / 2) / np.exp(-(nodes**2) / 2).sum()
    for issue in range(80, 240, 20):
        process = at_step(profile, SITES[:3], issue)
        mean, std = process.forecast(24)
        for lead in (1, 5, 24):
            kept = process._phi**lead
            z = kept * process._z[:, None] + sqrt(1 - kept**2) * nodes
            values = process._transform(Calendar(START, EVERY).at(np.array([issue + lead])), z[None])[0]
            expected = values @ weights
            np.testing.assert_allclose(mean[lead - 1], expected, rtol=0, atol=slack)
            spread = np.sqrt((values - expected[:, None]) ** 2 @ weights)
            np.testing.assert_allclose(std[lead - 1], spread, rtol=0, atol=slack)


def test_load_forecast_has_the_closed_form_of_the_lognormal_law() -> None:
    profile = LoadProfile(spread=0.4)
    process = at_step(profile, SITES, 100)
    mean, std = process.forecast(12)
    variance = log(1 + 0.4**2)
    kept = exp(-(5 / 60) / profile.correlation_h) ** np.arange(1, 13)[:, None]
    left = variance * (1 - kept**2)
    shape = profile.shape(Calendar(START, EVERY).at(np.arange(101, 113)))[:, None]
    expected = shape * np.exp(kept * sqrt(variance) * process._z - variance / 2 + left / 2)
    np.testing.assert_allclose(mean, expected, rtol=2e-5)
    np.testing.assert_allclose(std, expected * np.sqrt(np.exp(left) - 1), rtol=2e-4)


def test_far_ahead_nothing_of_the_present_is_left() -> None:
    mean, std = at_step(LoadProfile(correlation_h=0.1, spread=0.2), SITES, 0).forecast(288)
    shape = LoadProfile().shape(Calendar(START, EVERY).at(np.array([288])))[0]
    np.testing.assert_allclose(mean[-1], shape, rtol=1e-4)
    np.testing.assert_allclose(std[-1], 0.2 * shape, rtol=1e-3)


# Sun


def test_pv_is_zero_at_night_and_its_forecast_knows() -> None:
    values = run(PvProfile(latitude=50, longitude=0), SITES, 288)
    assert (values[: 3 * 12] == 0).all()
    assert (values[22 * 12 :] == 0).all()
    assert (values[6 * 12 : 18 * 12] > 0).all()
    assert values.max() < 1
    mean, std = at_step(PvProfile(latitude=50, longitude=0), SITES, 12).forecast(12)
    assert (mean == 0).all()
    assert (std == 0).all()


@pytest.mark.parametrize(("longitude", "noon"), [(0, 12.0), (90, 6.0), (-75, 17.0)])
def test_the_clear_sky_peaks_near_solar_noon(longitude: float, noon: float) -> None:
    at = Calendar(START, timedelta(minutes=1)).at(np.arange(1440))
    peak = at[np.argmax(clear_sky(at, 48.0, longitude))]
    hour = (peak - np.datetime64("2026-06-22")) / np.timedelta64(1, "h")
    assert abs(hour - noon) < 0.3  # the equation of time is at most 17 minutes


@pytest.mark.parametrize(
    ("day", "latitude", "noon_elevation"),
    [
        ("2026-06-21", 50.0, 90 - 50 + 23.44),
        ("2026-12-21", 50.0, 90 - 50 - 23.44),
        ("2026-03-20", 0.0, 90.0),
        ("2026-06-21", -35.0, 90 - 35 - 23.44),
    ],
)
def test_the_sun_stands_at_noon_where_almanacs_have_it(
    day: str, latitude: float, noon_elevation: float
) -> None:
    at = np.datetime64(day, "us") + np.arange(1440) * np.timedelta64(1, "m")
    highest = np.rad2deg(np.arcsin(np.max(sin_elevation(at, latitude, 0.0))))
    assert abs(highest - noon_elevation) < 1.0


def test_beyond_the_polar_circle_the_sun_may_not_rise() -> None:
    at = np.datetime64("2026-12-21", "us") + np.arange(1440) * np.timedelta64(1, "m")
    assert (clear_sky(at, 75.0, 20.0) == 0).all()


def test_clearness_has_the_mean_and_spread_asked_for() -> None:
    profile = PvProfile(latitude=0.0, longitude=0.0, clearness=0.65, spread=0.2, correlation_h=0.05, rho=0.0)
    values = run(profile, SITES, 4000)
    clear = clear_sky(Calendar(START, EVERY).at(np.arange(4000)), 0.0, 0.0)
    ratio = (values / np.where(clear > 0.05, clear, np.nan)[:, None])[clear > 0.05]
    assert abs(ratio.mean() - 0.65) < 0.01
    assert abs(ratio.std() - 0.2) < 0.01
    assert 0 < ratio.min() < ratio.max() < 1


# Wind


def test_power_curve() -> None:
    speed = np.array([0, 2.9, 3, 7.5, 12, 20, 25, 25.1, 60])
    middle = (7.5**3 - 3**3) / (12**3 - 3**3)
    np.testing.assert_allclose(WindProfile().power(speed), [0, 0, 0, middle, 1, 1, 1, 0, 0])


def test_mean_wind_power_is_the_integral_of_the_curve_over_the_weibull_law() -> None:
    profile = WindProfile(mean_speed=7.0, shape=1.9, swing=0.0, correlation_h=0.05, rho=0.0)
    values = run(profile, SITES, 4000)
    scale = 7.0 / special.gamma(1 + 1 / 1.9)

    def weighted(w: float) -> float:
        density = 1.9 / scale * (w / scale) ** 0.9 * exp(-((w / scale) ** 1.9))
        return float(profile.power(np.array(w))) * density

    expected = integrate.quad(weighted, 3, 12)[0] + integrate.quad(weighted, 12, 25)[0]
    assert abs(values.mean() - expected) < 0.01
    assert (values.min(), values.max()) == (0.0, 1.0)
    # The share of calm hours has a closed form.
    assert abs((values == 0).mean() - (1 - exp(-((3 / scale) ** 1.9)) + exp(-((25 / scale) ** 1.9)))) < 0.01


def test_wind_is_strongest_at_its_hour() -> None:
    profile = WindProfile(swing=0.3, windiest_h=15.0, correlation_h=0.05, rho=0.0)
    by_hour = run(profile, SITES, 288 * 8).reshape(8, 24, 12, len(SITES)).mean(axis=(0, 2, 3))
    assert 13 <= np.argmax(by_hour) <= 17
    assert by_hour.max() > 1.5 * by_hour.min()


# Load


def test_load_has_mean_one_times_its_shape_and_the_spread_asked_for() -> None:
    profile = LoadProfile(spread=0.25, correlation_h=0.05, rho=0.0)
    values = run(profile, SITES, 4000)
    ratio = values / profile.shape(Calendar(START, EVERY).at(np.arange(4000)))[:, None]
    assert abs(ratio.mean() - 1) < 0.005
    assert abs(ratio.std() - 0.25) < 0.01


def test_load_shape_has_two_peaks_on_weekdays_and_another_form_at_weekends() -> None:
    hours = Calendar(START, timedelta(hours=1)).at(np.arange(7 * 24 + 1))
    week = LoadProfile().shape(hours)
    monday, saturday = week[:24], week[5 * 24 : 6 * 24]
    peaks = [h for h in range(1, 23) if monday[h - 1] < monday[h] > monday[h + 1]]
    assert 8 in peaks
    assert 19 in peaks
    assert tuple(monday) == LoadProfile().weekday
    assert tuple(saturday) == LoadProfile().weekend
    np.testing.assert_allclose(week[3 * 24 : 4 * 24], monday)
    minutes = LoadProfile().shape(Calendar(START, timedelta(minutes=1)).at(np.arange(8 * 1440)))
    assert np.abs(np.diff(minutes)).max() < 0.01  # no jump, at midnight between Friday and Saturday neither


def test_load_follows_local_time() -> None:
    at = Calendar(START, timedelta(minutes=30)).at(np.arange(48))
    np.testing.assert_allclose(
        LoadProfile(utc_offset_h=5.5).shape(at), LoadProfile().shape(at + np.timedelta64(330, "m"))
    )


# Schedules


def test_a_schedule_holds_or_interpolates_and_knows_its_future() -> None:
    values = {"07:30": -0.5, "00:00": 0.25, "20:00": 0.75}
    quarter = timedelta(minutes=15)
    stepwise = run(DailyProfile(values=values), ("a", "b"), 100, every=quarter)
    assert stepwise[[0, 29, 30, 79, 80, 95, 96], 1].tolist() == [0.25, 0.25, -0.5, -0.5, 0.75, 0.75, 0.25]
    linear = run(DailyProfile(values=values, between="linear"), ("a",), 100, every=quarter)[:, 0]
    np.testing.assert_allclose(linear[[0, 15, 30, 80, 88, 96]], [0.25, -0.125, -0.5, 0.75, 0.5, 0.25])
    process = DailyProfile(values=values, between="linear").build(("a",), START, quarter, 0)
    process.advance(20)
    mean, std = process.forecast(60)
    np.testing.assert_allclose(mean[:, 0], linear[21:81])
    assert (std == 0).all()


def test_a_schedule_that_begins_late_holds_the_last_value_of_the_day_before() -> None:
    values = run(DailyProfile(values={"06:00": 1.0, "18:00": 2.0}), ("a",), 24, every=timedelta(hours=1))[
        :, 0
    ]
    assert values.tolist() == [2.0] * 6 + [1.0] * 12 + [2.0] * 6


def test_a_schedule_with_a_spread_is_the_schedule_times_a_factor_of_mean_one() -> None:
    profile = DailyProfile(values={"00:00": -2.0, "06:00": 0.5, "12:00": 0.0}, spread=0.3, correlation_h=3.0)
    names = tuple(f"s{i}" for i in range(4000))
    hour = timedelta(hours=1)
    given = profile.at(Calendar(START, hour).at(np.arange(24)))
    values = run(profile, names, 24, every=hour)
    assert (values[12:] == 0.0).all()
    factor = values[:12] / given[:12, None]
    assert factor.min() > 0
    np.testing.assert_allclose(factor.mean(axis=1), 1.0, atol=5 * 0.3 / 4000**0.5)
    np.testing.assert_allclose(factor.std(axis=1), 0.3, atol=0.03)
    logs = np.log(factor)
    assert np.corrcoef(logs[3], logs[4])[0, 1] == pytest.approx(np.exp(-1 / 3), abs=0.05)
    # What is known a day ahead is the spread itself; an hour ahead, what the deviation's own law says.
    process = profile.build(names[:50], START, hour, 1)
    process.advance(2)
    mean, std = process.forecast(27)
    np.testing.assert_allclose(mean[25], given[4], rtol=1e-3)
    np.testing.assert_allclose(std[25], 0.3 * 2.0, rtol=1e-3)
    sigma = np.sqrt(np.log(1.09))
    z = (np.log(process.now() / given[2]) + sigma**2 / 2) / sigma
    ahead, left = np.exp(-1 / 3) * z, 1 - np.exp(-2 / 3)
    np.testing.assert_allclose(
        mean[0], given[3] * np.exp(sigma * ahead - sigma**2 * (1 - left) / 2), rtol=1e-4
    )


# What is refused


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            lambda: PvProfile(clearness=1.4, latitude=100),
            r"latitude = 100 .*clearness = 1.4 must lie in \(0, 1\)",
        ),
        (lambda: PvProfile(clearness=0.9, spread=0.4), "spread = 0.4 must be less than 0.3"),
        (lambda: PvProfile(rho=float("nan")), "rho = nan"),
        (lambda: WindProfile(cut_in=13.0), "cut_in = 13.0.*rise"),
        (lambda: WindProfile(correlation_h=0.0), "correlation_h = 0.0"),
        (lambda: LoadProfile(weekday=(1.0,)), "weekday has 1 values; give 24"),
        (lambda: LoadProfile(weekend=(*[1.0] * 23, -0.1)), "-0.1 at hour 23"),
        (lambda: LoadProfile(weekend=(*[1.0] * 23, float("nan"))), "weekend: value 23 is nan"),
        (lambda: DailyProfile(values={}), "empty"),
        (lambda: DailyProfile(values={"24:00": 1.0}), "'24:00'"),
        (lambda: DailyProfile(values={750: 1.0}), "750 must be a quoted"),  # type: ignore[dict-item]
        (lambda: DailyProfile(values={"00:00": float("inf")}), "inf"),
        (lambda: DailyProfile(values={"00:00": 1.0}, spread=-0.1), r"spread = -0.1 must lie in \[0, 3\]"),
        (lambda: DailyProfile(values={"00:00": 1.0}, rho=1.5), "rho = 1.5"),
        (lambda: LoadProfile().build(("a", "a"), START, EVERY, 0), "'a' is empty or named twice"),
        (lambda: LoadProfile().build(("a",), datetime(2026, 1, 1), EVERY, 0), "no time zone"),
        (lambda: LoadProfile().build(("a",), START, timedelta(0), 0), "must be positive"),
        (lambda: LoadProfile().build(("a",), START, EVERY, -1), "seed -1"),
    ],
)
def test_wrong_parameters_are_refused_with_name_and_value(wrong: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wrong()


def test_a_profile_that_no_site_follows_is_no_special_case() -> None:
    process = at_step(LoadProfile(), (), 3)
    assert process.now().shape == (0,)
    assert process.forecast(4)[0].shape == (4, 0)


def test_start_in_another_zone_is_the_same_instant() -> None:
    there = START.astimezone(datetime.fromisoformat("2026-01-01T00:00:00+05:00").tzinfo)
    ours = at_step(PvProfile(), ("a",), 130)
    theirs = at_step(PvProfile(), ("a",), 130, start=there)
    assert ours.now().tobytes() == theirs.now().tobytes()


def test_quantiles_interpolate_and_hold_beyond_their_table() -> None:
    table = Quantiles(np.exp)
    z = np.array([-3.333, 0.0, 0.00123, 2.5])
    np.testing.assert_allclose(table(z), np.exp(z), rtol=1e-5)
    np.testing.assert_allclose(table(np.array([-50.0, 50.0])), np.exp([-8.0, 8.0]))
