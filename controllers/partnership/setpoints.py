"""Setpoints: what a microgrid's devices are told for the first interval of a plan.

Loads that are served in full are told their whole rating: they follow their demand, whatever it turns out to
be. An engine that may be off runs at its least power at least, or stands.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from controllers.contract import Setpoint
from controllers.devices import Device, FlexibleLoad, Generator
from controllers.partnership.commitment import Commitment

Array = npt.NDArray[np.float64]

BOTH_WAYS_MW = 1e-6
"""How much a store may charge and discharge at once: the solvers' tolerance."""


def impossible(made: Commitment, y: Array) -> list[str]:
    """What no device can do of a plan, in words."""
    if (both_mw := made.both_ways_mw(y)) <= BOTH_WAYS_MW:
        return []
    return [
        f"a store is planned to charge and discharge {both_mw:.6f} MW at once, which pays at these prices "
        "and which no store does; give the option exclusive_stores"
    ]


def setpoint(device: Device, made: Commitment, y: Array, bits: Array) -> Setpoint:
    """What one device is told.

    Args:
        y, bits: the block's variables.

    Raises:
        KeyError: the device is no unit of the microgrid.
    """
    p, q = made.injection(device.name, y, bits)
    p_mw, q_mvar = float(p[0]) + 0.0, float(q[0]) + 0.0
    if isinstance(device, FlexibleLoad):
        return Setpoint(p_mw=device.told_mw(p_mw, float(made.outlook.demand_mw[device.name][0])))
    if isinstance(device, Generator) and device.can_stop:
        if not device.runs(p_mw):
            return Setpoint(p_mw=0.0, q_mvar=0.0)
        p_mw = max(p_mw, device.p_min_mw)
    return Setpoint(p_mw=p_mw, q_mvar=q_mvar)
