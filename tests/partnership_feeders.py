"""The seed's problem on its own feeder of 123 buses, and its first microgrids on one of 33."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandapower.networks as pn
from pandapower.auxiliary import pandapowerNet

from controllers import Limits, Network
from controllers.devices import StaticVarCompensator, still
from controllers.partnership.block import Block
from controllers.partnership.central import Central
from controllers.partnership.distribution import BusLoad, Conditions, Distribution, Feeder
from scenarios.ieee123 import net as ieee123
from simulators.network import network_of
from tests import partnership_oracle as oracle

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Case:
    """A feeder with microgrids, in the vocabulary."""

    net: pandapowerNet
    network: Network
    figures: Sequence[oracle.Figures]
    rest: dict[str, tuple[float, float]]
    """nominal loads [MW, Mvar] but for those at the microgrids' buses"""
    svc_mvar: dict[str, float]
    intervals: int

    @cached_property
    def feeder(self) -> Feeder:
        return Feeder(
            network=self.network,
            limits=Limits(v_pu=oracle.V_PU, loading_percent=100.0),
            microgrids=tuple(one.bus for one in self.figures),
            intervals=self.intervals,
            loads=tuple(BusLoad(bus, q / p, oracle.CURTAILMENT_PER_MWH) for bus, (p, q) in self.rest.items()),
            compensators=tuple(
                StaticVarCompensator(name=bus, bus=bus, weight=1.0, default=still(), q_mvar=(-most, most))
                for bus, most in self.svc_mvar.items()
            ),
        )

    @cached_property
    def distribution(self) -> Distribution:
        return Distribution(self.feeder)

    def conditions(self, price_per_mwh: float = oracle.PRICE_PER_MWH) -> Conditions:
        loads, scale = np.array([*self.rest.values()]), oracle.LOAD[: self.intervals, None]
        price = price_per_mwh * oracle.PRICE[: self.intervals]
        return Conditions(price, -scale * loads[:, 0], -scale * loads[:, 1])

    @cached_property
    def _made(self) -> list[tuple[Block, dict[str, slice]]]:
        return [oracle.Microgrid(one, self.intervals).block() for one in self.figures]

    @property
    def blocks(self) -> list[Block]:
        return [block for block, _ in self._made]

    @property
    def places(self) -> list[dict[str, slice]]:
        """Where the variables of each microgrid are in its y."""
        return [place for _, place in self._made]

    @cached_property
    def central(self) -> Central:
        return Central(self.distribution, self.blocks)

    def whole(self, price_per_mwh: float, *, bits: bool) -> oracle.Whole:
        """The same, stated once more; `bits`: with whole ones."""
        grids = [oracle.Microgrid(one, self.intervals, whole=bits) for one in self.figures]
        return oracle.Whole(self.network, grids, self.rest, self.svc_mvar, price_per_mwh)


def _loads(net: pandapowerNet) -> dict[str, tuple[float, float]]:
    return {str(row.bus): (row.p_mw, row.q_mvar) for row in net.load.itertuples()}


def seed_case(svc_mvar: dict[str, float] = oracle.SVC_MVAR) -> Case:
    """The seed's own: 123 buses, six microgrids, six hours."""
    net = ieee123()
    loads = _loads(net)
    figures = oracle.seed({bus: (1000 * p, 1000 * q) for bus, (p, q) in loads.items()})
    buses = {one.bus for one in figures}
    rest = {bus: load for bus, load in loads.items() if bus not in buses}
    return Case(net, network_of(net), figures, rest, svc_mvar, 6)


def small_case(intervals: int, microgrids: int) -> Case:
    """33 buses: the seed's microgrids of buses 7, 50 and 58 at buses 7, 18 and 25, counted from 1."""
    net = pn.case33bw()
    loads = _loads(net)
    at = [("7", "6"), ("50", "17"), ("58", "24")][:microgrids]
    figures = [oracle.figures(of, bus, 1000 * loads[bus][0], 1000 * loads[bus][1]) for of, bus in at]
    rest = {bus: load for bus, load in loads.items() if bus not in dict(at).values()}
    return Case(net, network_of(net), figures, rest, {}, intervals)
