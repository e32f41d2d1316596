"""Fairness: how evenly a result shares what the network allows, now and over a day.

| symbol  | here            | meaning                                                            | unit    |
|---------|-----------------|--------------------------------------------------------------------|---------|
| P_i     |                 | greatest export, or import, of a device at Q = 0; not negative     | MW      |
| gamma_i | `gamma`         | weight: what a device is entitled to, compared with the others     | 1 or MW |
| x_i     |                 | P_i / gamma_i, a device's range for each unit of its weight        | MW      |
| J       | `jain`          | (sum x)^2 / (N sum x^2): 1 if all are equal, 1/N if one has it all | 1       |
| U, W    | `U`, `W`        | what ranges take of each limit, and its room: U P <= W             |         |
| S, S*   | `greatest(...)` | sum of all exports and imports; the greatest such sum              | MW      |
| price   | `price`         | 1 - S / S*: what evenness costs                                    | 1       |

Weights only matter by their ratios: doubling all of them changes neither J nor the price.

Source: Jain, Chiu and Hawe 1984 (index); Bertsimas, Farias and Trichakis 2011 (price of fairness).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from controllers import solve

Array = npt.NDArray[np.float64]

NEGLIGIBLE = 1e-12
"""A coefficient, compared with the greatest in its row, or a sum of ranges [MW], that counts as none."""

SLACK = 1e-9
"""How far a row of `greatest` may be exceeded, in parts of what one could have alone at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fairness:
    """How a set of envelopes shares the network. Export is upwards, import downwards, both positive here.

    With P_i the greatest export (import) of device i at Q = 0 and x_i = P_i / gamma_i:

        export_mw    = sum_i P_i
        jain_export  = (sum_i x_i)^2 / (N sum_i x_i^2)
        least_export = min_i x_i
        price        = 1 - (export_mw + import_mw) / S*,   S* = max { sum_i P_i : the network's rows }

    The price counts the devices that the network limits and whose envelopes could still be changed. It is
    0 for the utilitarian method and below 1 for any that gives somebody something; when the network leaves
    nothing to share it is 0.
    """

    export_mw: float
    """sum of the greatest exports at Q = 0, all devices"""
    import_mw: float
    """sum of the greatest imports at Q = 0"""
    area_mva2: float
    """sum of the regions' areas in the P-Q plane"""
    jain_export: float
    """Jain's index of export / weight; 1 when nobody has anything"""
    jain_import: float
    least_export: float
    """least export / weight [MW per unit of weight]"""
    least_import: float
    price: float | None = None
    """price of fairness: what is lost of the greatest possible sum of ranges, 0..1; `None`: not computed"""
    ledger_jain: float | None = None
    """Jain's index of what everybody had on this UTC day so far; `None`: there is no ledger, or it is new"""


def jain(x: Array) -> float:
    """Jain's index of values that are not negative; 1 when all are zero."""
    # Scaled by the greatest first, so that squares of very small values do not vanish.
    greatest = float(x.max(initial=0.0))
    if greatest <= 0:
        return 1.0
    y = x / greatest
    return float(y.sum()) ** 2 / float(len(y) * (y * y).sum())


def price(ranges_mw: Array, U: Array, W: Array) -> float:
    """The price of fairness of a result, 0..1: what it gives less than the greatest sum of `U x <= W`.

    Ranges that no row limits are left out of both sums.

    Args:
        ranges_mw: (n,) exports and imports of a result at Q = 0, not negative.
        U: (rows, n) the most that they take of each row. W: (rows,) its room. Neither is negative.

    Raises:
        SolverFailed: the linear program had no answer.
    """
    best = greatest(U, W)
    limited = np.isfinite(best)
    most = float(best[limited].sum())
    if most <= NEGLIGIBLE:
        return 0.0
    # A result may exceed the room of the linear model where an AC check gave it more: then nothing is lost.
    return min(max(1.0 - float(ranges_mw[limited].sum()) / most, 0.0), 1.0)


def greatest(U: Array, W: Array) -> Array:
    """The utilitarian sharing: x >= 0 (n,) of the greatest sum with `U x <= W`.

    Few rows matter, so rows are added as they are exceeded; the answer is that of all rows.

    Args:
        U: (rows, n), not negative. W: (rows,), not negative.

    Returns:
        x; infinite where no row bounds it.

    Raises:
        SolverFailed: the linear program had no answer.
    """
    size = U.max(axis=1, initial=0.0)
    used = np.flatnonzero(size > NEGLIGIBLE)
    U, W = U[used] / size[used, None], W[used] / size[used]
    # What each could have alone bounds it from the start.
    alone = np.divide(W[:, None], U, out=np.full(U.shape, np.inf), where=U > NEGLIGIBLE)
    x: Array = alone.min(axis=0, initial=np.inf)
    bounded = np.flatnonzero(np.isfinite(x))
    unit = float(x[bounded].max(initial=0.0))
    if unit <= 0:
        return x
    # In parts of the greatest of them the tolerances mean the same on every network.
    U, W, most, y = U[:, bounded], W / unit, x[bounded] / unit, x[bounded] / unit
    rows = np.zeros(0, dtype=np.int64)
    while True:
        excess = U @ y - W
        excess[rows] = -np.inf  # the solver has them, to its own tolerance
        worst = np.argsort(-excess, kind="stable")[: len(bounded) + 1]
        worst = worst[excess[worst] > SLACK]
        if not len(worst):
            x[bounded] = y * unit
            return x
        rows = np.concatenate([rows, worst])
        y = solve.linear(np.ones(len(bounded)), U[rows], W[rows], 0.0, most)


@dataclass
class Ledger:
    """What every device was offered and lost over a day, so that who came off badly can be repaid.

    An envelope-hour is an envelope's width times the hours it held: the energy that a device could have
    exported, and imported. Curtailed energy is what it would have exported and was not allowed to; an
    hour of which no curtailment is known adds none, and a device of which nothing is known has no entry.

    Args:
        names: devices in the order of the weights.
    """

    names: tuple[str, ...]
    hours: Array = field(init=False)
    """(devices,) counted"""
    export_mwh: Array = field(init=False)
    """(devices,) envelope-hours upwards"""
    import_mwh: Array = field(init=False)
    """(devices,) envelope-hours downwards, positive"""
    _curtailed: dict[str, float] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"ledger: names {self.names} must differ")
        self.hours, self.export_mwh, self.import_mwh = (np.zeros(len(self.names)) for _ in range(3))
        self._place = {name: i for i, name in enumerate(self.names)}

    @property
    def curtailed_mwh(self) -> dict[str, float]:
        """Energy lost, by device, of those of which it is known."""
        return dict(self._curtailed)

    def add(
        self,
        names: Sequence[str],
        export_mw: Array,
        import_mw: Array,
        curtailed_mw: Array | None,
        hours: float,
    ) -> None:
        """Count envelopes that held for `hours`.

        Args:
            names: any of the ledger's devices; the others' accounts stay as they are.
            export_mw, import_mw: (len(names),) limits, both positive.
            curtailed_mw: (len(names),) mean power that was not allowed; `None`: not known.

        Raises:
            KeyError: a device that the ledger does not have.
            ValueError: values that are negative or not finite, or not one a name.
        """
        for name in names:
            if name not in self._place:
                raise KeyError(f"ledger: no device {name!r}; it has {', '.join(self.names)}")
        for what, values in (
            ("export_mw", export_mw),
            ("import_mw", import_mw),
            ("curtailed_mw", curtailed_mw),
        ):
            if values is None:
                continue
            if np.shape(values) != (len(names),):
                raise ValueError(f"ledger: {what} has shape {np.shape(values)}, needed is ({len(names)},)")
            if not (np.isfinite(values).all() and (np.asarray(values) >= 0).all()):
                raise ValueError(f"ledger: {what} {np.asarray(values).tolist()} must not be negative")
        if not 0 < hours < np.inf:
            raise ValueError(f"ledger: hours {hours:g} must be above 0")
        places = np.array([self._place[name] for name in names], dtype=np.int64)
        np.add.at(self.hours, places, hours)
        np.add.at(self.export_mwh, places, np.asarray(export_mw) * hours)
        np.add.at(self.import_mwh, places, np.asarray(import_mw) * hours)
        if curtailed_mw is not None:
            for name, value in zip(names, np.asarray(curtailed_mw).tolist(), strict=True):
                self._curtailed[name] = self._curtailed.get(name, 0.0) + value * hours

    def received(self, gamma: Array) -> Array:
        """(devices,) what each had per counted hour and unit of weight [MW], for weights (devices,).

        Exported and imported envelope-hours less the energy curtailed, not below zero; zero for a device
        that was not counted yet.
        """
        lost = np.array([self._curtailed.get(name, 0.0) for name in self.names])
        had = np.maximum(self.export_mwh + self.import_mwh - lost, 0.0)
        per_hour = np.divide(had, self.hours, out=np.zeros_like(had), where=self.hours > 0)
        return np.asarray(per_hour / gamma)

    def jain(self, gamma: Array) -> float:
        """Jain's index of `received`, over the devices counted; 1 when none was."""
        return jain(self.received(gamma)[self.hours > 0])

    def weights(self, gamma: Array, repay: float = 1.0, most: float = 2.0) -> Array:
        """(devices,) weights that favour those behind.

        A device that received x_i, where all received x on average, has its weight multiplied by
        `min(most, max(1, (x / x_i) ** repay))`: nobody's falls, none rises by more than `most`, and as only
        ratios of weights count, those ahead wait. Neither the unit of power nor that of weight matters. A
        device that was not counted yet keeps its weight.

        Args:
            gamma: (devices,) weights by entitlement, positive, in the order of `names`.
            repay: 0 repays nothing; 1 raises a weight in the proportion in which its device is behind.
            most: greatest factor.

        Raises:
            ValueError: not one weight a device, `repay` negative, or `most` below 1.
        """
        if np.shape(gamma) != (len(self.names),):
            raise ValueError(f"ledger: {np.shape(gamma)} weights for {len(self.names)} devices")
        if not (repay >= 0 and most >= 1):
            raise ValueError(f"ledger: repay {repay:g} must not be negative, most {most:g} not below 1")
        counted = self.hours > 0
        had = self.received(gamma)
        mean = float(had[counted].mean()) if counted.any() else 0.0
        if mean <= 0:
            return gamma.copy()
        with np.errstate(divide="ignore", over="ignore"):  # who had nothing is infinitely far behind
            behind = np.where(counted, (mean / had) ** repay, 1.0)
        return np.asarray(gamma * np.clip(behind, 1.0, most))
