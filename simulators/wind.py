"""Wind: turbine power from a random wind speed.

| symbol | here      | meaning                                                    | unit |
|--------|-----------|------------------------------------------------------------|------|
| w      | `speed`   | wind speed at hub height                                   | m/s  |
| k      | `shape`   | shape of the Weibull law of w                              |      |
| lambda | `scale`   | its scale, mean / Gamma(1 + 1/k)                           | m/s  |

    w     = (1 + swing cos(2 pi (UTC hours - windiest_h) / 24)) * lambda (-ln(1 - Phi(z)))^(1/k)
    value = (w^3 - cut_in^3) / (rated^3 - cut_in^3)  between cut-in and rated speed, 1 up to cut-out, else 0
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import gamma

import numpy as np
from scipy.special import log_ndtr

from simulators.deviations import Quantiles, StochasticProcess
from simulators.processes import Array, Instants, hour_of_day, within


@dataclass(frozen=True, slots=True, kw_only=True)
class WindProfile:
    """Power of a wind turbine in per unit of its rated power, in [0, 1].

    Raises:
        ValueError: a parameter out of its range, speeds of the power curve out of order.
    """

    mean_speed: float = 7.5
    """m/s at hub height"""
    shape: float = 2.0
    """of the Weibull law; 2 is a Rayleigh law"""
    swing: float = 0.1
    """how much the mean speed rises above and falls below its daily mean, as a share of it"""
    windiest_h: float = 15.0
    """hour of the day (UTC) with the highest mean speed"""
    cut_in: float = 3.0
    """m/s below which the turbine stands"""
    rated: float = 12.0
    """m/s from which it gives its rated power"""
    cut_out: float = 25.0
    """m/s above which it is switched off"""
    correlation_h: float = 6.0
    """hours in which the deviation's autocorrelation falls to 1/e"""
    rho: float = 0.7
    """correlation of the deviations of two sites"""

    def __post_init__(self) -> None:
        within(
            self,
            mean_speed="(0, 50]",
            shape="[1, 10]",
            swing="[0, 1)",
            windiest_h="[0, 24)",
            cut_in="[0, inf)",
            rated="(0, inf)",
            cut_out="(0, inf)",
            correlation_h="(0, inf)",
            rho="[0, 1]",
        )
        if not self.cut_in < self.rated < self.cut_out:
            raise ValueError(
                f"WindProfile: cut_in = {self.cut_in}, rated = {self.rated}, cut_out = {self.cut_out} "
                "must rise in this order"
            )

    def power(self, speed: Array) -> Array:
        """Power [pu] at wind speeds [m/s]: the power curve."""
        # Products, for numpy's power is eight times slower.
        rise = (speed * speed * speed - self.cut_in**3) / (self.rated**3 - self.cut_in**3)
        return np.where(speed <= self.cut_out, np.clip(rise, 0.0, 1.0), 0.0)

    def build(self, names: Sequence[str], start: datetime, every: timedelta, seed: int) -> StochasticProcess:
        """The process of the sites `names`; raises ValueError as `Profile.build`."""
        scale = self.mean_speed / gamma(1 + 1 / self.shape)
        # -ln(1 - Phi(z)) = -ln Phi(-z), exact in the upper tail too.
        speed = Quantiles(lambda z: np.asarray(scale * (-log_ndtr(-z)) ** (1 / self.shape)))

        def value(at: Instants, z: Array) -> Array:
            angle = 2 * np.pi * (hour_of_day(at) - self.windiest_h) / 24
            return self.power((1 + self.swing * np.cos(angle))[:, None, None] * speed(z))

        return StochasticProcess(
            "wind",
            names,
            value,
            start=start,
            every=every,
            seed=seed,
            correlation_h=self.correlation_h,
            rho=self.rho,
        )
