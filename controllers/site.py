"""Site: everything a controller is given once, when it is constructed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from controllers.devices import Device
from controllers.microgrid import Microgrid
from controllers.network import Limits, Network, PowerFlow
from controllers.regulators import Regulator


@dataclass(frozen=True, slots=True)
class Load:
    """A load or fixed generator that nobody controls; injection positive, so a load is negative."""

    name: str
    bus: str
    p_mw: float
    """injection at nominal conditions"""
    q_mvar: float

    def reactive(self, p_mw: float) -> float:
        """Injected reactive power [Mvar] at `p_mw`: constant power factor, or constant if the
        nominal active power is zero."""
        return self.q_mvar * p_mw / self.p_mw if self.p_mw else self.q_mvar


@dataclass(frozen=True, eq=False)
class Site:
    """A network, what is connected to it, and the limits that the operator set."""

    name: str
    network: Network
    limits: Limits
    every: timedelta
    """the co-simulation's step; a decision acts one step after its observation"""
    devices: Mapping[str, Device]
    """controllable devices by name, in the scenario's order"""
    loads: Mapping[str, Load] = field(default_factory=dict)
    """what nobody controls, by name"""
    power_flow: PowerFlow | None = None
    """AC power flow of the same grid, for controllers that check themselves"""
    regulators: Mapping[str, Regulator] = field(default_factory=dict)
    """what the network operator moves in steps, by name"""
    microgrids: Mapping[str, Microgrid] = field(default_factory=dict)
    """devices that are operated together behind one point of connection, by name"""
