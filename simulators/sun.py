"""Sun: photovoltaic power from the sun's elevation and a random clearness of the sky.

| symbol | here             | meaning                                  | unit     |
|--------|------------------|------------------------------------------|----------|
| n      | `day`            | day of the year, with fraction           | day      |
| delta  | `declination`    | of the sun                               | rad      |
| E      | `equation_min`   | solar time minus mean solar time         | min      |
| omega  | `hour_angle`     | of the sun, zero at solar noon           | rad      |
| s      | `sin_elevation`  | sine of the sun's elevation              |          |
| c      | `clearness`      | share of the clear-sky power that passes | (0, 1)   |

    delta = 23.45 deg * sin(2 pi (284 + n) / 365)                                   (Cooper 1969)
    E     = 9.87 sin 2B - 7.53 cos B - 1.5 sin B,   B = 2 pi (n - 81) / 365         (Duffie and Beckman)
    omega = 15 deg * (UTC hours + longitude / 15 + E / 60 - 12)
    s     = sin(latitude) sin(delta) + cos(latitude) cos(delta) cos(omega)
    clear = s exp(-0.057 (1 / s - 1)) where s > 0, else 0       (Haurwitz 1945, 1 with the sun overhead)
    value = peak * clear * c,   c = Beta quantile of Phi(z),  z the deviation of `deviations.py`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
from scipy.special import betaincinv, ndtr

from simulators.deviations import Quantiles, StochasticProcess
from simulators.processes import Array, Instants, day_of_year, hour_of_day, within


def sin_elevation(at: Instants, latitude: float, longitude: float) -> Array:
    """Sine of the sun's elevation at UTC instants, for a place in degrees north and east."""
    day = day_of_year(at)
    declination = np.deg2rad(23.45) * np.sin(2 * np.pi * (284 + day) / 365)
    B = 2 * np.pi * (day - 81) / 365  # noqa: N806
    equation_min = 9.87 * np.sin(2 * B) - 7.53 * np.cos(B) - 1.5 * np.sin(B)
    hour_angle = np.deg2rad(15.0) * (hour_of_day(at) + longitude / 15 + equation_min / 60 - 12)
    phi = np.deg2rad(latitude)
    return np.asarray(
        np.sin(phi) * np.sin(declination) + np.cos(phi) * np.cos(declination) * np.cos(hour_angle)
    )


def clear_sky(at: Instants, latitude: float, longitude: float) -> Array:
    """Power of a horizontal panel under a clear sky, as a share of that with the sun overhead."""
    s = np.maximum(sin_elevation(at, latitude, longitude), 0.0)
    # Below a thousandth the exponential is zero to 25 digits; the floor only avoids dividing by zero.
    return np.asarray(s * np.exp(-0.057 * (1 / np.maximum(s, 1e-3) - 1)))


@dataclass(frozen=True, slots=True, kw_only=True)
class PvProfile:
    """Photovoltaic power in per unit of the rated power, in [0, peak]; zero at night.

    Raises:
        ValueError: a parameter out of its range, a spread that no Beta law with this mean has.
    """

    latitude: float = 50.0
    """degrees north"""
    longitude: float = 10.0
    """degrees east"""
    peak: float = 1.0
    """power under a clear sky with the sun overhead"""
    clearness: float = 0.7
    """mean of the share of the clear-sky power that passes the clouds"""
    spread: float = 0.2
    """standard deviation of that share"""
    correlation_h: float = 1.0
    """hours in which the deviation's autocorrelation falls to 1/e"""
    rho: float = 0.6
    """correlation of the deviations of two sites"""

    def __post_init__(self) -> None:
        within(
            self,
            latitude="[-90, 90]",
            longitude="[-180, 180]",
            peak="(0, 1]",
            clearness="(0, 1)",
            spread="(0, 0.5)",
            correlation_h="(0, inf)",
            rho="[0, 1]",
        )
        if self.spread**2 >= self.clearness * (1 - self.clearness):
            limit = (self.clearness * (1 - self.clearness)) ** 0.5
            raise ValueError(
                f"PvProfile: spread = {self.spread} must be less than {limit:.4g}, "
                f"the most that values in (0, 1) with mean {self.clearness} can have"
            )

    def build(self, names: Sequence[str], start: datetime, every: timedelta, seed: int) -> StochasticProcess:
        """The process of the sites `names`; raises ValueError as `Profile.build`."""
        precision = self.clearness * (1 - self.clearness) / self.spread**2 - 1
        a, b = self.clearness * precision, (1 - self.clearness) * precision
        clearness = Quantiles(lambda z: np.asarray(betaincinv(a, b, ndtr(z))))

        def value(at: Instants, z: Array) -> Array:
            clear = self.peak * clear_sky(at, self.latitude, self.longitude)
            return np.asarray(clear[:, None, None] * clearness(z))

        return StochasticProcess(
            "pv",
            names,
            value,
            start=start,
            every=every,
            seed=seed,
            correlation_h=self.correlation_h,
            rho=self.rho,
        )
