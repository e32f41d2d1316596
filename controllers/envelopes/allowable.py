"""Allowable powers: what the network permits its controllable devices together, A P + B Q <= W.

Source: seed 004, constraint (10)/(A1); LinDistFlow rows as in Baran and Wu.

| symbol | here     | meaning                                           | unit         |
|--------|----------|---------------------------------------------------|--------------|
| P, Q   |          | injections of the controllable devices            | MW, Mvar     |
| A, B   | `A`, `B` | row coefficients                                  | pu^2/MW or 1 |
| W      | `W(...)` | what is left of each limit at zero injection      | pu^2 or MVA  |

A and B depend on the network alone and are built once; W follows the background injections.
A flow limit is a circle; its rows are the edges of the inscribed polygon, which lies inside. It bounds
the apparent power at rated voltage and without losses, not the current that a loading is made of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from controllers.contract import Infeasible
from controllers.regulators import TapChanger
from controllers.site import Site

Array = npt.NDArray[np.float64]

EDGES = 16
"""Edges of the polygon inscribed in a branch's flow limit (1.9 % inside at most)."""

ROUNDING = 1e-9
"""How far below zero the room in a row may be and still count as none."""


@dataclass(eq=False)
class AllowableRegion:
    """Rows of A P + B Q <= W for a site's devices; (rows, devices) in the order of `site.devices`.

    Raises:
        KeyError: a device or load at a bus that the network does not have.
    """

    site: Site
    A: Array = field(init=False)
    B: Array = field(init=False)
    names: tuple[str, ...] = field(init=False)
    """what each row guards, e.g. "upper voltage at bus 17" """

    def __post_init__(self) -> None:
        network, limits = self.site.network, self.site.limits
        n = len(network.buses)
        at = np.zeros((n, len(self.site.devices)))  # which bus each device injects at
        for column, device in enumerate(self.site.devices.values()):
            row = network.index(device.bus)
            if row is not None:
                at[row, column] = 1.0
        self._loads = tuple(self.site.loads.values())
        self._load_row = [network.index(load.bus) for load in self._loads]

        rated = np.flatnonzero(np.isfinite(network.rating_mva))
        angle = 2 * np.pi * (np.arange(EDGES) + 0.5) / EDGES
        self._cos, self._sin, self._rated = np.cos(angle)[:, None], np.sin(angle)[:, None], rated
        self._allowed_mva = network.rating_mva[rated] * limits.loading_percent / 100 * np.cos(np.pi / EDGES)

        def edges(per_p: Array, per_q: Array) -> Array:
            """(EDGES * rated, devices) coefficients of every edge of every rated branch."""
            p, q = (per_p @ at)[rated], (per_q @ at)[rated]
            return np.asarray(-(self._cos[..., None] * p + self._sin[..., None] * q).reshape(-1, at.shape[1]))

        v_p, v_q = network.v2_per_mw @ at, network.v2_per_mvar @ at
        self.A = np.vstack([v_p, -v_p, edges(network.p_per_mw, network.q_per_mw)])
        self.B = np.vstack([v_q, -v_q, edges(network.p_per_mvar, network.q_per_mvar)])
        # rows that no device can influence
        self._dead = (np.abs(self.A) + np.abs(self.B)).max(axis=1, initial=0.0) < 1e-12
        self.names = (
            *(f"upper voltage at bus {bus}" for bus in network.buses),
            *(f"lower voltage at bus {bus}" for bus in network.buses),
            *(f"loading of {network.branches[i]}" for _ in angle for i in rated),
        )

    def background(self, p_mw: dict[str, float]) -> tuple[Array, Array]:
        """(buses,) injections of the loads at the active powers forecast; a load that `p_mw` does
        not name is taken at its nominal power."""
        n = len(self.site.network.buses)
        p, q = np.zeros(n), np.zeros(n)
        for load, row in zip(self._loads, self._load_row, strict=True):
            if row is not None:
                value = p_mw.get(load.name, load.p_mw)
                p[row] += value
                q[row] += load.reactive(value)
        return p, q

    def W(self, p_mw: Array, q_mvar: Array, positions: Mapping[str, int] | None = None) -> Array:
        """(rows,) room left at zero device injection, for background injections (buses,).

        A negative value means that the background alone breaks the limit.

        Args:
            p_mw, q_mvar: loads and fixed generators, capacitor banks left out.
            positions: of the site's regulators; one that is not named stands at its start. They enter W
                only: a bank injects its reactive power at rated voltage, a tap scales the source.

        Raises:
            Infeasible: the background breaks a limit that no device can influence.
        """
        network, limits = self.site.network, self.site.limits
        ratio = 1.0
        for name, regulator in self.site.regulators.items():
            position = (positions or {}).get(name, regulator.start)
            if isinstance(regulator, TapChanger):
                ratio *= regulator.ratio(position)
            elif position and (row := network.index(regulator.bus)) is not None:
                q_mvar = q_mvar.copy()
                q_mvar[row] += position * regulator.q_mvar
        v2 = network.v2(p_mw, q_mvar, ratio)
        flow_p, flow_q = (flow[self._rated] for flow in network.flow(p_mw, q_mvar, ratio))
        room = self._allowed_mva - self._cos * flow_p - self._sin * flow_q
        low, high = limits.v_pu
        W = np.concatenate([high**2 - v2, v2 - low**2, room.ravel()])
        broken = np.flatnonzero(self._dead & (W < -ROUNDING))
        if len(broken):
            row = int(broken[np.argmin(W[broken])])
            raise Infeasible(
                f"{self.names[row]}: the background load alone exceeds it by {-W[row]:.4g} and no "
                "device can influence it"
            )
        return W
