"""Fairness: how evenly a result shares what the network allows.

| symbol | here     | meaning                                                                | unit |
|--------|----------|------------------------------------------------------------------------|------|
| x_i    |          | P_i / gamma_i, a device's range for each unit of its weight             | MW   |
| J      | `jain`   | (sum x)^2 / (N sum x^2): 1 when all are equal, 1/N when one has it all  | 1    |

Source: Jain, Chiu and Hawe 1984 (index); Bertsimas, Farias and Trichakis 2011 (price of fairness).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fairness:
    """How a set of envelopes shares the network. Export is upwards, import downwards, both positive here."""

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


def jain(x: Array) -> float:
    """Jain's index of values that are not negative; 1 when all are zero."""
    squares = float(len(x) * (x * x).sum())
    return float(x.sum()) ** 2 / squares if squares > 0 else 1.0
