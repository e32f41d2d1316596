"""Recourse: the program of one case of the forecast, or of several that share the exchange alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from controllers.interchange.linear_rows import Bounds
from controllers.interchange.microgrid_model import MicrogridModel
from controllers.interchange.tradeoff import Tradeoff


def compiled(model: MicrogridModel, cases: int = 1) -> Tradeoff:
    """The program of so many cases: the model's shared variables first, then the rest, case by case."""
    own = model.shared
    A, width = model.matrix, model.lp.width - own
    common, rest = A[:, :own], A[:, own:]
    rows = sparse.hstack([sparse.vstack([common] * cases), sparse.block_diag([rest] * cases)], format="csr")
    starts = width * np.arange(cases)[:, None]
    found = []
    for symbol in ("P_ch", "P_dch", "u"):
        blocks = [model.lp.at((store.name, symbol)) for store in model.stores]
        at = [(starts + np.arange(block.start, block.stop)).ravel() for block in blocks]
        found.append(np.concatenate([np.zeros(0, dtype=np.int64), *at]))
    charging, discharging, binary = found
    band = np.concatenate([model.band()[:own], np.zeros(cases * width)])
    return Tradeoff(
        sparse.csr_array(rows),
        stacked([model.lp.bounds()] * cases, own),
        band,
        model.hours,
        charging,
        discharging,
        binary,
    )


def stacked(sides: Sequence[Bounds], own: int) -> Bounds:
    """Bounds of all cases; the first `own` variables are shared, and bounded alike in each."""
    return Bounds(
        np.concatenate([side.row_low for side in sides]),
        np.concatenate([side.row_high for side in sides]),
        np.concatenate([sides[0].low[:own], *(side.low[own:] for side in sides)]),
        np.concatenate([sides[0].high[:own], *(side.high[own:] for side in sides)]),
    )
