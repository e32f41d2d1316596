"""Radial medium-voltage feeders of any size, drawn by a seed; for scale, not of any real place.

One substation's busbar at 20 kV (bus 0, the slack bus) feeds several trunks. A trunk is a cable; a quarter of
its buses lie along it. From it spread laterals of overhead line, and from those thinner ones. Each other bus
is a distribution substation with a load of power factor 0.95. Loads of a trunk are drawn and then scaled
together, until its far end or its most loaded line is where a planner would stop.

| conductor   | where                  | type in pandapower's list      | rated  |
|-------------|------------------------|--------------------------------|--------|
| trunk       | along the trunk        | NA2XS2Y 1x240 RM/25 12/20 kV   | 421 A  |
| lateral     | from the trunk         | 94-AL1/15-ST1A 20.0            | 350 A  |
| branch line | from a lateral         | 48-AL1/8-ST1A 20.0             | 210 A  |

`network: scenarios.feeders:feeder_1000` in a scenario takes one of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import ceil

import numpy as np
import numpy.typing as npt
import pandapower as pp
from pandapower.auxiliary import pandapowerNet

from simulators.network import network_of

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

V_KV = 20.0
REACTIVE = 0.3287
"""Reactive over active power of a load, at power factor 0.95."""

BUSES_OF_TRUNK = 500
"""at most, if the number of trunks is not given"""
ON_TRUNK = 0.25
"""Share of a trunk's buses that lie along it."""
LATERAL = 6
"""Buses of a lateral in the mean."""


@dataclass(frozen=True, slots=True)
class Conductor:
    """A type of line."""

    std_type: str
    r_ohm_per_km: float
    x_ohm_per_km: float
    c_nf_per_km: float
    max_i_ka: float
    length_km: tuple[float, float]
    """shortest and longest section"""


CONDUCTORS = (
    Conductor("NA2XS2Y 1x240 RM/25 12/20 kV", 0.122, 0.112, 304.0, 0.421, (0.1, 0.3)),
    Conductor("94-AL1/15-ST1A 20.0", 0.306, 0.35, 10.0, 0.35, (0.1, 0.5)),
    Conductor("48-AL1/8-ST1A 20.0", 0.5939, 0.372, 9.5, 0.21, (0.1, 0.5)),
)
"""By the order of a bus: on a trunk, on a lateral, beyond."""


def feeder(
    buses: int,
    seed: int = 1,
    *,
    trunks: int | None = None,
    lowest_v_pu: float = 0.965,
    loading_percent: float = 70.0,
    source_v_pu: float = 1.02,
) -> pandapowerNet:
    """A feeder with its loads; the same arguments give the same net.

    Args:
        buses: all of them, the busbar included; line i feeds bus i + 1.
        seed: of the tree, the lengths and the loads.
        trunks: cables that leave the busbar; one for each 500 buses if not given.
        lowest_v_pu: at full load, by the linear model; losses take some thousandths more.
        loading_percent: greatest loading of a line at full load, by the linear model.
        source_v_pu: voltage of the busbar.

    Raises:
        ValueError: fewer buses than the busbar and one for each trunk, or a lowest voltage that is not below
            the source's.
    """
    if trunks is None:
        trunks = ceil((buses - 1) / BUSES_OF_TRUNK)
    if buses < 2 or not 1 <= trunks < buses:
        raise ValueError(
            f"feeder: {buses} buses on {trunks} trunks; each trunk needs a bus beside the busbar"
        )
    if not 0 < lowest_v_pu < source_v_pu:
        raise ValueError(f"feeder: lowest_v_pu {lowest_v_pu} must be below the source's {source_v_pu}")
    draw = np.random.default_rng(seed)
    parent, order, trunk = _tree(buses, trunks, draw)
    net = pp.create_empty_network(name=f"feeder of {buses} buses, seed {seed}", sn_mva=1.0)
    pp.create_buses(net, buses, vn_kv=V_KV)
    pp.create_ext_grid(net, 0, vm_pu=source_v_pu)
    kinds = [CONDUCTORS[k] for k in order]
    low, high = np.array([kind.length_km for kind in kinds]).T
    pp.create_lines_from_parameters(
        net,
        parent,
        np.arange(1, buses),
        length_km=draw.uniform(low, high),
        r_ohm_per_km=[kind.r_ohm_per_km for kind in kinds],
        x_ohm_per_km=[kind.x_ohm_per_km for kind in kinds],
        c_nf_per_km=[kind.c_nf_per_km for kind in kinds],
        max_i_ka=[kind.max_i_ka for kind in kinds],
        std_type=[kind.std_type for kind in kinds],
    )
    p_mw = _loads(net, draw.uniform(0.2, 1.0, buses - 1), trunk, lowest_v_pu, loading_percent)
    pp.create_loads(net, np.arange(1, buses), p_mw=p_mw, q_mvar=REACTIVE * p_mw)
    return net


def feeder_1000() -> pandapowerNet:
    """1,000 buses on 2 trunks."""
    return feeder(1000)


def feeder_10000() -> pandapowerNet:
    """10,000 buses on 20 trunks."""
    return feeder(10000)


def _tree(buses: int, trunks: int, draw: np.random.Generator) -> tuple[Ints, Ints, Ints]:
    """(buses - 1,) each, of the buses from 1 on: the one that feeds it, its order and its trunk."""
    parent, order, trunk = (np.zeros(buses, dtype=np.int64) for _ in range(3))
    bounds = np.linspace(1, buses, trunks + 1).astype(int).tolist()
    for t, (first, end) in enumerate(pairwise(bounds)):
        trunk[first:end] = t
        along = max(1, round(ON_TRUNK * (end - first)))
        parent[first] = 0
        parent[first + 1 : first + along] = np.arange(first, first + along - 1)
        bus = first + along
        while bus < end:
            # two thirds of the laterals leave the trunk, the others leave any bus
            root = int(draw.integers(first, first + along if draw.random() < 2 / 3 else bus))
            last = min(end, bus + int(draw.geometric(1 / LATERAL)))
            parent[bus] = root
            parent[bus + 1 : last] = np.arange(bus, last - 1)
            order[bus:last] = min(order[root] + 1, len(CONDUCTORS) - 1)
            bus = last
    return parent[1:], order[1:], trunk[1:]


def _loads(
    net: pandapowerNet, share: Array, trunk: Ints, lowest_v_pu: float, loading_percent: float
) -> Array:
    """(buses - 1,) active powers [MW] in proportion to `share`, as much on each trunk as it can feed."""
    network = network_of(net)
    at = np.array([int(bus) - 1 for bus in network.buses])
    place = np.empty_like(at)
    place[at] = np.arange(len(at))
    v2_0, p_0, q_0 = network.state(np.zeros(len(at)), np.zeros(len(at)))
    v2_1, p_1, q_1 = network.state(-share[at], -REACTIVE * share[at])
    of = trunk[at]
    allowed = loading_percent / 100 * network.rating_mva
    p_mw = np.zeros(len(share))
    for t in range(int(trunk.max()) + 1):
        here = of == t
        # |F(0) + s (F(1) - F(0))| = allowed: the greater root s
        change = (p_1 - p_0)[here], (q_1 - q_0)[here]
        square = change[0] ** 2 + change[1] ** 2
        half = p_0[here] * change[0] + q_0[here] * change[1]
        left = allowed[here] ** 2 - p_0[here] ** 2 - q_0[here] ** 2
        by_flow = ((np.sqrt(half**2 + square * left) - half) / square).min()
        by_voltage = ((v2_0 - lowest_v_pu**2) / (v2_0 - v2_1))[here].min()
        p_mw[trunk == t] = min(by_flow, by_voltage) * share[trunk == t]
    return p_mw
