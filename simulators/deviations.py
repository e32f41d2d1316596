"""Deviations: what is random in a profile, an autocorrelated Gaussian per site, and its forecasts.

| symbol  | here          | meaning                                                       |
|---------|---------------|---------------------------------------------------------------|
| z_k     | `z`           | deviation of a site at step k, standard normal                |
| phi     | `phi`         | correlation from step to step, exp(-every / correlation time) |
| rho     | `rho`         | correlation between two sites at one step                     |
| eps_k   | `Innovations` | standard normal, independent from step to step                |

    z_0 = eps_0,    z_k = phi z_{k-1} + sqrt(1 - phi^2) eps_k
    eps = sqrt(rho) eps_common + sqrt(1 - rho) eps_own
    z_{k+h} | z_k  ~  N(phi^h z_k, 1 - phi^(2h))

The last line is exact, so a forecast needs z_k and nothing later, and its error grows with lead time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from hashlib import blake2b

import numpy as np
from numpy.random import Philox, SeedSequence
from scipy.special import ndtri

from simulators.processes import Array, Calendar, Instants, distinct, passed, started

BLOCK = 64
"""Steps drawn at once: what is kept of the random numbers, however long the run."""
NODES = np.linspace(-5.0, 5.0, 41)
WEIGHTS = np.exp(-(NODES**2) / 2) / np.exp(-(NODES**2) / 2).sum()
"""Trapezoidal rule for a standard normal: as good as Gauss-Hermite's for smooth functions (4e-7), and ten
times better for the kinks of a power curve, whose place between the nodes is arbitrary (1.5e-3 pu)."""

REACH = 8.0
PER_UNIT = 200
GRID = np.linspace(-REACH, REACH, int(2 * REACH) * PER_UNIT + 1)


class Innovations:
    """eps_k of each site, keyed by (seed, kind, name of the site, step).

    A site's numbers depend on no other site of the list, and the common ones on none at all: profiles of
    one kind with one seed share their weather. The bits come from Philox, whose stream is fixed across
    platforms and versions.
    """

    def __init__(self, kind: str, names: Sequence[str], rho: float, seed: int) -> None:
        if seed < 0:
            raise ValueError(f"profile: seed {seed} must not be negative")
        labels = [kind, *(f"{kind}\0{name}" for name in names)]
        digests = [blake2b(label.encode(), digest_size=16).digest() for label in labels]
        self._keys = [[seed, int.from_bytes(digest, "little")] for digest in digests]
        self._common, self._own = np.sqrt(rho), np.sqrt(1.0 - rho)
        self._block = -1
        self._eps = np.zeros((0, BLOCK))

    def at(self, step: int) -> Array:
        """(names,) eps of one step."""
        block, i = divmod(step, BLOCK)
        if block != self._block:
            self._block = block
            bits = np.array([Philox(SeedSequence([*key, block])).random_raw(BLOCK) for key in self._keys])
            # The 53 high bits, in the middle of their cell: never 0, never 1.
            self._eps = ndtri(((bits >> np.uint64(11)) + 0.5) * 2.0**-53)
        return np.asarray(self._common * self._eps[0, i] + self._own * self._eps[1:, i], dtype=float)


class Quantiles:
    """An increasing function of z, from a table on [-8, 8] with 200 points a unit, linear in between."""

    def __init__(self, function: Callable[[Array], Array]) -> None:
        self._y = np.asarray(function(GRID), dtype=float)
        self._dy = np.append(np.diff(self._y), 0.0)

    def __call__(self, z: Array) -> Array:
        # In place: a forecast's arrays are large enough for each new one to cost more than its arithmetic.
        x = z + REACH
        x *= PER_UNIT
        np.clip(x, 0.0, len(GRID) - 1.0, out=x)
        i = x.astype(np.intp)
        x -= i
        x *= self._dy.take(i)
        x += self._y.take(i)
        return x


Transform = Callable[[Instants, Array], Array]
"""New values [pu] from instants (times,) and deviations (times, names, any), in the deviations' shape."""


class StochasticProcess:
    """A process whose values are a function of the instant and of an AR(1) deviation.

    Raises:
        ValueError: see `Profile.build`.
    """

    def __init__(
        self,
        kind: str,
        names: Sequence[str],
        transform: Transform,
        *,
        start: datetime,
        every: timedelta,
        seed: int,
        correlation_h: float,
        rho: float,
    ) -> None:
        self.names = distinct(names)
        self._calendar = Calendar(start, every)
        self._phi = float(np.exp(-(every / timedelta(hours=1)) / correlation_h))
        self._innovations = Innovations(kind, names, rho, seed)
        self._transform = transform
        self._step = -1
        self._z = np.zeros(len(names))
        self._intervals = 0
        self._seen: tuple[Array, Array, Array] | None = None

    def advance(self, step: int) -> None:
        """Move on to `step`; raises ValueError for a step of the past."""
        for k in passed(self._step, step):
            eps = self._innovations.at(k)
            # The first deviation has the stationary law, so that no run-in is seen.
            self._z = eps if k == 0 else self._phi * self._z + np.sqrt(1.0 - self._phi**2) * eps
            self._step = k
            self._seen = None

    def now(self) -> Array:
        """(names,) values at the current step [pu]."""
        return self._look(self._intervals)[0]

    def forecast(self, intervals: int) -> tuple[Array, Array]:
        """Mean and standard deviation (intervals, names) [pu] by quadrature over z."""
        if intervals != self._intervals:
            self._intervals, self._seen = intervals, None
        return self._look(intervals)[1:]

    def _look(self, intervals: int) -> tuple[Array, Array, Array]:
        """Values now, and mean and spread of those to come: one transformation for all of them, since
        calling it costs more than its arithmetic. Row 0 is now, known exactly."""
        step = started(self._step)
        if self._seen is None:
            lead = np.arange(intervals + 1)
            kept = self._phi**lead
            spread = np.sqrt(1.0 - kept**2)
            z = (kept[:, None] * self._z)[:, :, None] + (spread[:, None] * NODES)[:, None, :]
            values = self._transform(self._calendar.at(step + lead), z)
            now, coming = values[0, :, 0].copy(), values[1:]
            mean = coming @ WEIGHTS
            coming -= mean[:, :, None]
            coming *= coming
            self._seen = now, mean, np.sqrt(coming @ WEIGHTS)
        return self._seen

    def must_cover(self, until: datetime) -> None:
        """Holds for every instant: the process has no end."""
