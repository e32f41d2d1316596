"""A seeded radial feeder of any size, with loads and devices that its limits allow."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pandapower as pp

from controllers.devices import PvInverter, still
from controllers.network import Limits
from controllers.site import Load, Site
from simulators.network import network_of

LOWEST_V_PU = 0.97
"""Voltage at the far end with all loads at their nominal power."""
RESERVE = 2.0
"""Rating of each line, in its own flow at nominal loads."""


def radial_site(buses: int, devices: int, seed: int = 1) -> Site:
    """A 20 kV feeder of overhead lines: a random tree in which far buses are rare.

    Loads are scaled so that the lowest voltage is `LOWEST_V_PU`; every line is rated, so all limits hold
    when no device injects. `devices` PV inverters of 0.5 MVA stand at random buses.
    """
    draw = np.random.default_rng(seed)
    net = pp.create_empty_network(sn_mva=1.0)
    pp.create_buses(net, buses, vn_kv=20.0)
    pp.create_ext_grid(net, 0, vm_pu=1.02)
    at = np.arange(1, buses)
    parent = np.maximum(at - 1 - draw.geometric(0.3, len(at)) + 1, 0)
    pp.create_lines_from_parameters(
        net,
        parent,
        at,
        length_km=draw.uniform(0.05, 0.3, len(at)),
        r_ohm_per_km=0.3,
        x_ohm_per_km=0.35,
        c_nf_per_km=0.0,
        max_i_ka=1.0,
    )
    network = network_of(net)
    order = np.array([int(bus) for bus in network.buses])
    share = draw.uniform(0.2, 1.0, len(order))
    room = network.v2_base - LOWEST_V_PU**2
    drop = network.v2_per_mw @ share + 0.3 * network.v2_per_mvar @ share
    p_mw = share * float((room / drop).min())
    loads = {
        f"load:{i}": Load(f"load:{i}", str(bus), -float(p), -0.3 * float(p))
        for i, (bus, p) in enumerate(zip(order, p_mw, strict=True))
    }
    flow = np.hypot(*network.flow(-p_mw, -0.3 * p_mw))
    row_of_line = {name: i for i, name in enumerate(network.branches)}
    kv = 20.0 * np.sqrt(3)
    net.line["max_i_ka"] = [
        RESERVE * max(float(flow[row_of_line[f"line:{i}"]]), 0.1) / kv for i in net.line.index
    ]
    stands = draw.choice(order, devices, replace=False)
    return Site(
        name=f"feeder-{buses}",
        network=network_of(net),
        limits=Limits((0.95, 1.05), 100.0),
        every=timedelta(minutes=5),
        devices={
            f"pv{bus}": PvInverter(
                name=f"pv{bus}", bus=str(bus), s_mva=0.5, p_mw=0.5, weight=float(weight), default=still()
            )
            for bus, weight in zip(stands, draw.uniform(0.5, 2.0, devices), strict=True)
        },
        loads=loads,
    )
