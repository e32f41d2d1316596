"""Point estimates: exact where the theory says so, close where it does not, and never a false probability."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from controllers import ControlError, Forecast
from controllers.point_estimate import Factor, NegativeWeight, Points, Scheme, points, shape
from controllers.solve import Linear

NOON = datetime(2026, 6, 21, 12, tzinfo=UTC)
SCHEMES: tuple[Scheme, ...] = ("2m", "2m+1")
MIX = (
    ("sun", stats.beta(2, 5)),
    ("wind", stats.weibull_min(2.0)),
    ("home", stats.norm()),
    ("heat", stats.gamma(9.0)),
)


def forecast(mean: Any, std: Any, names: tuple[str, ...] | None = None) -> Forecast:
    mean, std = np.atleast_2d(mean), np.atleast_2d(std)
    names = names or tuple(f"x{i}" for i in range(mean.shape[1]))
    return Forecast(NOON, timedelta(hours=1), names, mean, std)


def mixed(scheme: Scheme = "2m") -> tuple[Forecast, list[Factor], Points]:
    """Four columns of four shapes, with the mean and spread of their distributions."""
    known = forecast([d.mean() for _, d in MIX], [d.std() for _, d in MIX], tuple(name for name, _ in MIX))
    factors = [Factor.like((name,), d) for name, d in MIX]
    return known, factors, known.points(factors, scheme=scheme)


def expected(found: Points, f: Callable[[np.ndarray], Any]) -> Any:
    """The mean of a function of one case (intervals, names)."""
    return found.moments(np.array([f(case) for case in found.cases]))[0]


moments = st.tuples(st.floats(-3, 3), st.floats(0.01, 5)).map(lambda m: (m[0], 1 + m[0] ** 2 + m[1]))


@given(shapes=st.lists(moments, min_size=1, max_size=7), scheme=st.sampled_from(SCHEMES))
def test_A1_weights_add_up_and_each_factor_keeps_its_moments(
    shapes: list[tuple[float, float]], scheme: Scheme
) -> None:
    rng = np.random.default_rng(len(shapes))
    m = len(shapes)
    known = forecast(rng.normal(size=m), rng.uniform(0.1, 2.0, m))
    found = points(known, [Factor((f"x{i}",), *s) for i, s in enumerate(shapes)], scheme=scheme)
    assert len(found.weights) == (2 * m if scheme == "2m" else 2 * m + 1)
    assert found.weights.sum() == pytest.approx(1.0, abs=1e-9)
    mean, std = found.moments(found.cases)
    assert mean == pytest.approx(known.mean, abs=1e-9)
    assert std == pytest.approx(known.std, rel=1e-7)
    unit = (found.cases[:, 0] - known.mean[0]) / known.std[0]
    third, fourth = found.weights @ unit**3, found.weights @ unit**4
    assert third == pytest.approx([skewness for skewness, _ in shapes], rel=1e-6, abs=1e-7)
    if scheme == "2m+1":
        assert fourth == pytest.approx([kurtosis for _, kurtosis in shapes], rel=1e-6)
    else:
        assert (found.weights > 0).all()
        assert found.weights.reshape(m, 2).sum(axis=1) == pytest.approx(np.full(m, 1 / m))


@pytest.mark.parametrize(("scheme", "degree"), [("2m", 3), ("2m+1", 4)])
def test_A1_the_mean_of_a_sum_of_polynomials_is_exact(scheme: Scheme, degree: int) -> None:
    rng = np.random.default_rng(2)
    _, _, found = mixed(scheme)
    q = rng.normal(size=(degree + 2, len(MIX)))

    def exact(up_to: int) -> float:
        return float(sum(q[j, i] * d.moment(j) for j in range(up_to + 1) for i, (_, d) in enumerate(MIX)))

    def estimate(up_to: int) -> float:
        return float(expected(found, lambda case: sum(q[j] @ case[0] ** j for j in range(up_to + 1))))

    for j in range(degree + 1):
        assert estimate(j) == pytest.approx(exact(j), rel=1e-9)
    # and no further: the next degree is beyond what was asked of the cases
    assert abs(estimate(degree + 1) - exact(degree + 1)) > 1e-3


@pytest.mark.parametrize("scheme", SCHEMES)
def test_A1_the_second_moment_of_what_is_linear_is_exact(scheme: Scheme) -> None:
    known, _, found = mixed(scheme)
    a = np.array([2.0, -1.0, 0.5, 3.0])
    mean, std = found.moments(found.cases[:, 0] @ a + 1000.0)
    assert mean == pytest.approx(known.mean[0] @ a + 1000.0, rel=1e-12)
    assert std == pytest.approx(np.sqrt((a**2) @ known.std[0] ** 2), rel=1e-9)


def test_A1_a_central_weight_below_zero_is_no_probability() -> None:
    for m, rest in ((1, 2 / 3), (2, 1 / 3), (3, 0.0), (4, -1 / 3), (6, -1.0)):
        known = forecast(np.zeros(m), np.ones(m))
        found = known.points(scheme="2m+1")
        assert found.central == 0
        assert found.weights[0] == pytest.approx(rest, abs=1e-12)
        if m <= 3:
            assert found.require_probabilities() is found
            assert (found.weights >= 0).all()
        else:
            with pytest.raises(
                NegativeWeight, match=r"weight -\d.* of case 0 is no probability; use scheme '2m'"
            ):
                found.require_probabilities()
            assert (known.points(scheme="2m").require_probabilities().weights > 0).all()
        # of use for means all the same
        assert expected(found, lambda case: (case**4).sum()) == pytest.approx(3.0 * m)
    # nine times 1/9 is above 1 in floating point: at the edge rounding must not decide
    nine = forecast(np.zeros(9), np.ones(9))
    edge = nine.points([Factor((name,), 0.0, 9.0) for name in nine.names], scheme="2m+1")
    assert edge.require_probabilities().weights[0] == 0.0
    assert issubclass(NegativeWeight, ControlError)


def test_A1_the_points_of_a_normal_variable_are_known() -> None:
    one = forecast(5.0, 2.0)
    assert one.points(scheme="2m").cases[:, 0, 0] == pytest.approx([7.0, 3.0])
    assert one.points(scheme="2m").weights == pytest.approx([0.5, 0.5])
    three = one.points(scheme="2m+1")
    assert three.cases[:, 0, 0] == pytest.approx([5.0, 5 + 2 * 3**0.5, 5 - 2 * 3**0.5])
    assert three.weights == pytest.approx([2 / 3, 1 / 6, 1 / 6])
    sixteen = forecast(np.zeros(16), np.ones(16)).points()
    assert np.abs(sixteen.cases).max() == pytest.approx(4.0)  # the root of m: far out


DAY = 4
DEMAND = np.array([0.6, 0.9, 1.0, 0.7])


def dispatch() -> Linear:
    """Two generators, purchase and a storage over four hours, for the least cost: a program with kinks.

    Per hour: generators 1 and 2, purchase, charge, discharge, energy; rows: balance, then energy.
    """
    width = 6
    A = np.zeros((2 * DAY, width * DAY))
    for t in range(DAY):
        at = width * t
        A[t, at : at + 5] = (1.0, 1.0, 1.0, -1.0, 1.0)
        A[DAY + t, at + 3 : at + 6] = (-0.95, 1 / 0.95, 1.0)
        if t:
            A[DAY + t, at - 1] = -1.0
    cost = np.concatenate([[60.0, 95.0, price, 2.0, 2.0, 0.0] for price in (40.0, 80.0, 120.0, 70.0)])
    high = np.tile([0.3, 0.3, 5.0, 0.15, 0.15, 0.4], DAY)
    stored = np.r_[DEMAND, 0.2, np.zeros(DAY - 1)]
    return Linear(cost, A, stored, stored, 0.0, high)


def results(program: Linear, net: np.ndarray) -> np.ndarray:
    """Cost and purchase in each hour for net demands (cases, hours)."""
    found = []
    for demand in net:
        b = np.r_[demand, 0.2, np.zeros(DAY - 1)]
        best = program.minimize(row_low=b, row_high=b)
        found.append([best.value, *best.x[2::6]])
    return np.array(found)


def drawn(rng: np.random.Generator, distribution: Any, size: int) -> np.ndarray:
    """Of mean 0 and variance 1."""
    return (distribution.rvs(size=size, random_state=rng) - distribution.mean()) / distribution.std()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_A2_linear_outputs_agree_with_monte_carlo(scheme: Scheme) -> None:
    known, _, found = mixed(scheme)
    rng = np.random.default_rng(0)
    size = 200_000
    sample = known.mean[0] + known.std[0] * np.column_stack([drawn(rng, d, size) for _, d in MIX])
    a = np.array([[2.0, -1.0, 0.5, 3.0], [0.0, 1.0, 1.0, -1.0]])
    mean, std = found.moments(found.cases[:, 0] @ a.T)
    outputs = sample @ a.T
    error = outputs.std(axis=0) / np.sqrt(size)
    assert (np.abs(mean - outputs.mean(axis=0)) < 4 * error).all()
    assert std == pytest.approx(outputs.std(axis=0), rel=0.01)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_A2_outputs_of_a_linear_program_agree_with_monte_carlo(scheme: Scheme) -> None:
    names = ("sun", "wind", "home")
    mean = np.column_stack([[0.05, 0.2, 0.25, 0.1], [0.1, 0.1, 0.05, 0.1], -DEMAND])
    known = forecast(mean, np.abs(mean) * np.array([0.2, 0.3, 0.06]), names)
    shapes = stats.beta(2, 3), stats.weibull_min(2.0), stats.norm()
    factors = [Factor.like((name,), d) for name, d in zip(names, shapes, strict=True)]
    found = known.points(factors, scheme=scheme)
    program = dispatch()
    estimated, spread = found.moments(results(program, -found.cases.sum(axis=2)))

    rng, size = np.random.default_rng(1), 5000
    z = np.column_stack([drawn(rng, d, size) for d in shapes])
    sample = known.mean + z[:, None, :] * known.std
    outputs = results(program, -sample.sum(axis=2))
    mean_cost, cost_spread = outputs[:, 0].mean(), outputs[:, 0].std()
    assert np.abs(estimated[0] - mean_cost) < 4 * cost_spread / np.sqrt(size)
    assert spread[0] == pytest.approx(cost_spread, rel=0.03)
    assert np.abs(estimated[1:] - outputs[:, 1:].mean(axis=0)).max() < 0.004  # MW, of up to 0.8
    assert np.abs(spread[1:] - outputs[:, 1:].std(axis=0)).max() < 0.015
    # the mean forecast alone buys nothing in the third hour, where some of the cases must
    alone = results(program, -known.mean.sum(axis=1)[None])[0, 3]
    assert alone == pytest.approx(0.0, abs=1e-9)
    assert outputs[:, 3].mean() > 0.01
    assert estimated[3] == pytest.approx(outputs[:, 3].mean(), abs=0.003)


def test_a_factor_moves_its_columns_together_over_the_horizon() -> None:
    mean, std = np.array([[1.0, 2.0, -3.0], [4.0, 5.0, -6.0]]), np.array([[0.1, 0.2, 0.3], [0.4, 0.0, 0.6]])
    known = forecast(mean, std, ("a", "b", "home"))
    found = known.points([Factor(("a", "b"), 0.5, 4.0), Factor(("home",))], scheme="2m+1")
    assert found.cases.shape == (5, 2, 3)
    assert found.cases[0].tolist() == mean.tolist()
    xi = 0.25 + np.sqrt(4 - 0.75 * 0.25)
    assert found.cases[1] == pytest.approx(mean + xi * std * np.array([1.0, 1.0, 0.0]))
    assert found.cases[3] == pytest.approx(mean + np.sqrt(3) * std * np.array([0.0, 0.0, 1.0]))
    weighted = list(found)
    assert [weight for weight, _ in weighted] == found.weights.tolist()
    assert all((case == found.cases[k]).all() for k, (_, case) in enumerate(weighted))


def test_what_belongs_to_no_factor_or_has_no_spread_stays() -> None:
    known = forecast([[1.0, 2.0, 3.0]], [[0.5, 0.5, 0.0]], ("a", "b", "c"))
    found = known.points([Factor(("a",)), Factor(("c",))])
    assert len(found.weights) == 2  # as if there were one factor
    assert found.cases[:, 0, 0] == pytest.approx([1.5, 0.5])
    assert (found.cases[:, 0, 1:] == [2.0, 3.0]).all()
    # of three correlated factors one is certain: the two others as without it
    C = np.array([[1.0, 0.3, 0.6], [0.3, 1.0, 0.2], [0.6, 0.2, 1.0]])
    certain = forecast([[0.0, 0.0, 0.0]], [[1.0, 0.0, 1.0]], ("a", "b", "c"))
    all_three = certain.points([Factor((n,), 0.4, 3.5) for n in "abc"], correlation=C)
    two = certain.points([Factor((n,), 0.4, 3.5) for n in "ac"], correlation=C[np.ix_([0, 2], [0, 2])])
    assert all_three.cases.tolist() == two.cases.tolist()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_certain_forecast_is_its_only_case(scheme: Scheme) -> None:
    for known in (forecast([[1.0, 2.0]], [[0.0, 0.0]]), Forecast.empty(NOON, timedelta(hours=1))):
        found = known.points(scheme=scheme)
        assert found.weights.tolist() == [1.0]
        assert found.central == 0
        assert (found.cases == known.mean).all()
        mean, std = found.moments(np.array([7.0]))
        assert (mean, std) == (7.0, 0.0)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_correlated_factors_keep_spread_correlation_and_skewness(scheme: Scheme) -> None:
    C = np.array([[1.0, 0.6, -0.3], [0.6, 1.0, 0.1], [-0.3, 0.1, 1.0]])
    skewness = np.array([0.5, 0.4, -0.2])
    known = forecast([1.0, 2.0, 3.0], [0.1, 0.4, 0.2])
    factors = [Factor((f"x{i}",), s, 3.6) for i, s in enumerate(skewness)]
    found = known.points(factors, scheme=scheme, correlation=C)
    assert found.normal == 0
    unit = (found.cases[:, 0] - known.mean[0]) / known.std[0]
    assert found.weights @ unit == pytest.approx(np.zeros(3), abs=1e-12)
    assert np.einsum("k,ki,kj->ij", found.weights, unit, unit) == pytest.approx(C)
    assert found.weights @ unit**3 == pytest.approx(skewness)
    a = np.array([1.0, -2.0, 0.5])
    _, std = found.moments(found.cases[:, 0] @ a)
    assert std == pytest.approx(np.sqrt((a * known.std[0]) @ C @ (a * known.std[0])))


def test_correlated_normal_factors_have_normal_causes() -> None:
    C = np.array([[1.0, 0.8], [0.8, 1.0]])
    known = forecast([0.0, 0.0], [1.0, 1.0])
    found = known.points(scheme="2m+1", correlation=C)
    # z of kurtosis 3 lie at the root of 3 along the columns of the Cholesky factor, weight 1/6 each
    assert found.normal == 0
    assert found.cases[:, 0] == pytest.approx(
        np.sqrt(3) * np.array([[0, 0], [1, 0.8], [-1, -0.8], [0, 0.6], [0, -0.6]])
    )
    assert found.weights == pytest.approx([1 / 3, 1 / 6, 1 / 6, 1 / 6, 1 / 6])


def test_correlated_skewed_factors_agree_with_monte_carlo() -> None:
    rng, size = np.random.default_rng(4), 400_000
    L = np.array([[1.0, 0.0], [0.6, 0.8]])
    z = np.column_stack([drawn(rng, stats.gamma(4.0), size), drawn(rng, stats.expon(), size)])
    sample = z @ L.T
    factors = [
        Factor((f"x{i}",), float(stats.skew(column)), float(stats.kurtosis(column)) + 3.0)
        for i, column in enumerate(sample.T)
    ]
    # the causes, found again from the two marginal shapes: the skewness of gamma(4) is 1, of expon 2
    found = forecast([0.0, 0.0], [1.0, 1.0]).points(factors, scheme="2m+1", correlation=L @ L.T)
    causes = found.cases[:, 0] @ np.linalg.inv(L).T
    assert found.weights @ causes**3 == pytest.approx([1.0, 2.0], rel=0.05)
    assert found.weights @ causes**4 == pytest.approx([4.5, 9.0], rel=0.1)
    # powers of a sum, for which the causes are independent: exact up to sampling
    a = np.array([1.0, 1.0])
    for power in (2, 3):
        exact = ((sample @ a) ** power).mean()
        assert found.moments((found.cases[:, 0] @ a) ** power)[0] == pytest.approx(exact, rel=0.05)


def test_impossible_causes_are_normal_and_counted() -> None:
    # the second is 0.95 the first: the first's skewness of 0 leaves a cause of skewness 0.5 / 0.0304 to it
    C = np.array([[1.0, 0.95], [0.95, 1.0]])
    factors = [Factor(("x0",)), Factor(("x1",), 0.5, 3.0)]
    known = forecast([0.0, 0.0], [1.0, 1.0])
    for scheme in SCHEMES:
        found = known.points(factors, scheme=scheme, correlation=C)
        plain = known.points(scheme=scheme, correlation=C)
        assert found.normal == 1
        assert plain.normal == 0
        assert found.cases.tolist() == plain.cases.tolist()


def test_cases_are_clipped_to_what_is_possible_and_counted() -> None:
    known = forecast([[0.1, -0.5], [0.5, -0.5]], [[0.2, 0.1], [0.1, 0.1]], ("sun", "home"))
    factors = [Factor(("sun",)), Factor(("home",))]
    free = known.points(factors)
    assert free.clipped == 0
    assert free.cases[:, :, 0].min() < 0
    found = known.points(factors, bounds={"sun": (0.0, np.array([0.3, 0.6])), "home": (-np.inf, 0.0)})
    # of sun: 0.1 +- 0.2 root 2 in the first hour, both outside; 0.5 + 0.1 root 2 in the second
    assert found.clipped == 3
    assert found.cases[0] == pytest.approx(np.array([[0.3, -0.5], [0.6, -0.5]]))
    assert found.cases[1, 0] == pytest.approx([0.0, -0.5])
    assert found.cases[2:].tolist() == free.cases[2:].tolist()
    # a mean that is itself impossible is clipped in every case
    assert known.points(factors, scheme="2m+1", bounds={"home": (-0.4, 0.0)}).cases[0, 0, 1] == -0.4


def test_results_have_their_shape_and_no_negative_variance() -> None:
    found = forecast(np.zeros(4), np.ones(4)).points(scheme="2m+1")
    values = np.zeros((9, 3, 2))
    values[0] = 1.0  # only the central case, of weight -1/3: E[Z] = -1/3, E[Z^2] - E[Z]^2 = -4/9
    mean, std = found.moments(values)
    assert mean == pytest.approx(np.full((3, 2), -1 / 3))
    assert (std == 0.0).all()
    for wrong in (np.zeros(8), np.float64(1.0)):
        with pytest.raises(ValueError, match="for 9 cases"):
            found.moments(wrong)


def test_the_shape_of_a_distribution_is_that_of_its_samples() -> None:
    for _, distribution in MIX:
        sample = distribution.rvs(size=400_000, random_state=np.random.default_rng(8))
        skewness, kurtosis = shape(distribution)
        assert skewness == pytest.approx(stats.skew(sample), abs=0.03)
        assert kurtosis == pytest.approx(stats.kurtosis(sample) + 3, abs=0.1)
    assert shape(stats.norm(3, 2)) == (0.0, 3.0)
    with pytest.raises(ValueError, match="nan"):
        Factor.like(("wind",), stats.cauchy())


def test_nobody_can_change_the_points() -> None:
    found = forecast(0.0, 1.0).points()
    for values in (found.weights, found.cases):
        with pytest.raises(ValueError, match="read-only"):
            values[0] = 7.0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"scheme": "3m"}, "'3m' is neither '2m' nor"),
        ({"factors": [Factor(("moon",))]}, r"\['moon'\] is not forecast; forecast is \['a', 'b'\]"),
        ({"factors": [Factor(("a", "b")), Factor(("b",))]}, r"\['b'\] belongs to two factors"),
        ({"correlation": np.eye(3)}, r"shape \(3, 3\), needed is \(2, 2\)"),
        ({"correlation": np.array([[1.0, 0.2], [0.3, 1.0]])}, "symmetric"),
        ({"correlation": np.array([[1.0, np.nan], [np.nan, 1.0]])}, "finite"),
        ({"correlation": np.array([[2.0, 0.2], [0.2, 1.0]])}, "1 on its diagonal"),
        ({"correlation": np.ones((2, 2))}, "not positive definite; make one factor"),
        ({"bounds": {"moon": (0.0, 1.0)}}, "bounds of 'moon', which is not forecast"),
        ({"bounds": {"a": (1.0, 0.0)}}, r"bounds of 'a' are \(1.0, 0.0\)"),
        ({"bounds": {"a": (np.nan, 1.0)}}, "lower one comes first"),
        ({"bounds": {"a": (0.0, np.ones(3))}}, "fit no forecast of 1"),
    ],
)
def test_what_makes_no_points_is_refused(options: dict[str, Any], says: str) -> None:
    known = forecast([[1.0, 2.0]], [[0.1, 0.1]], ("a", "b"))
    with pytest.raises(ValueError, match=says):
        known.points(**options)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (((),), "each of one or more names"),
        ((("a", "a"),), "must be there once"),
        ((("a",), 1.0, 1.9), "skewness 1.0 and kurtosis 1.9, which is at least"),
        ((("a",), np.nan, 3.0), "no distribution"),
        ((("a",), 0.0, np.inf), "no distribution"),
    ],
)
def test_what_is_no_factor_is_refused(arguments: tuple[Any, ...], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Factor(*arguments)
    assert Factor(("coin",), 0.0, 1.0).kurtosis == 1.0  # two values, the least there is
