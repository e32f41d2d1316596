"""Matching: how much room each row may have, from what the AC power flow says at the envelopes' corners.

| symbol | here             | meaning                                                          | unit        |
|--------|------------------|------------------------------------------------------------------|-------------|
| h_k    | `search.support` | greatest linear value A_k P + B_k Q, of the part that may change | pu^2 or MVA |
| g_k    | `search.value`   | greatest AC value found of row k, its limit taken off            | pu^2 or MVA |
| g0_k   | `alone.value`    | the same of the background alone, with what is fixed; at most 0  | pu^2 or MVA |
| W_k    | `W`              | room that the envelopes were asked with                          | pu^2 or MVA |
| e_k    | `error`          | error of the linear model in row k, g_k - (h_k - W_k)            | pu^2 or MVA |

Two estimates of the room with which the AC value of row k would just reach its limit:

    value matching   W_k - e_k,  the error taken as constant
    chord            h_k g0_k / (g0_k - g_k),  the AC value taken as growing in proportion with the envelopes

Losses, the error's greatest part, grow faster than in proportion. So on the way down the chord is safe for
envelopes that keep their form, and takes less than value matching; where the form changes it may not do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from controllers.envelopes.ascent import Search

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Alone:
    """Of the background alone, with devices whose envelopes are fixed."""

    value: Array
    """(rows,) AC values, limits taken off; at most 0"""
    taken: Array
    """(rows,) greatest linear value of what is fixed"""


def chord(search: Search, alone: Alone, W: Array) -> Array:
    """(rows,) room by the chord. A row of which nothing is known keeps its room."""
    with np.errstate(divide="ignore", invalid="ignore"):
        reached = _support(search, alone, W) * alone.value / (alone.value - search.value)
    return np.where(_known(search, alone), np.maximum(reached, 0.0), W)


def error(search: Search, alone: Alone, W: Array, emphasis: float) -> Array:
    """(rows,) e, zero at least; what is still beyond a limit counts `emphasis` times."""
    g = search.value
    found = g + search.check.room.W - _support(search, alone, W) + (emphasis - 1) * np.maximum(g, 0.0)
    return np.where(_known(search, alone), np.maximum(found, 0.0), 0.0)


def size(search: Search) -> float:
    """Area of all envelopes [MVA^2], or their width [MW] where they have none; not of what others decide."""
    room, devices = search.check.room, search.check.check.rows.site.devices
    ours = [name not in room.given for name in devices]
    area = float(search.shapes.areas[ours].sum())
    low, high = search.shapes.ranges_at_zero
    return area if area > 0 else float((high - low)[ours].sum())


def _known(search: Search, alone: Alone) -> npt.NDArray[np.bool_]:
    """(rows,) whether the AC value tells anything of a row: at its own support, or beyond its limit."""
    return np.asarray((search.own | (search.value > 0)) & (search.value > alone.value))


def _support(search: Search, alone: Alone, W: Array) -> Array:
    """(rows,) h; of rows for which it was not computed, the room."""
    return np.maximum(np.where(np.isnan(search.support), W, search.support - alone.taken), 0.0)
