"""Sites for tests of envelopes: three states of the 33-bus feeder, the 136-bus feeder, random trees.

Ratings, devices and weights are assumptions of ours; the source gives none. Each site's nominal loads are the
case itself, so `seen(site)` is all that a controller needs. Every site carries its AC power flow.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandapower as pp
import pandapower.networks as pn
from hypothesis import strategies as st
from pandapower.auxiliary import pandapowerNet

from controllers import Device, Forecast, Limits, Load, Observation, Site
from controllers.devices import Battery, still
from scenarios.grids import load_grid
from simulators.network import network_of
from simulators.power_flow import PowerGridModelEngine

NOON = datetime(2026, 6, 21, 12, tzinfo=UTC)
STEP = timedelta(minutes=5)
TAP = 0.0125
"""Change of the source's ratio for each tap on the primary side."""

BUSES_33 = {"der1": 6, "der2": 13, "der3": 17, "der4": 21, "der5": 24, "der6": 31}
S_MVA_33 = (1.2, 0.6, 0.4, 1.0, 1.6, 0.8)
BANKS_33 = {16: 0, 23: 0, 29: 4, 31: 2}
"""Position by bus, counted from 0: paper buses 17, 24, 30, 32; 0.5 Mvar a step."""


def seen(site: Site, scale: float = 1.0, *, at: datetime = NOON, intervals: int = 1) -> Observation:
    """Every load forecast at `scale` times its nominal power in all intervals; nothing else is known."""
    mean = np.tile([load.p_mw * scale for load in site.loads.values()], (intervals, 1))
    return Observation(time=at, forecast=Forecast(at, STEP, tuple(site.loads), mean, np.zeros_like(mean)))


def battery(name: str, bus: str, s_mva: float, weight: float) -> Device:
    """A device that can use all four quadrants up to `s_mva`, full for two hours from half."""
    return Battery(
        name=name, bus=bus, p_mw=s_mva, s_mva=s_mva, e_mwh=4 * s_mva, e_min_mwh=0.0, e_start_mwh=2 * s_mva,
        efficiency=(0.95, 0.95), weight=weight, default=still(),
    )  # fmt: skip


def s1() -> Site:
    """33 buses, 0.90 to 1.10 pu, source at 1 pu, full load: wide limits."""
    return feeder33("S1", v_pu=(0.90, 1.10))


def s2() -> Site:
    """33 buses, 0.95 to 1.05 pu, tap at -3, banks at (0, 0, 4, 2), full load: tight limits."""
    return feeder33("S2", v_pu=(0.95, 1.05), tap=-3, banks=BANKS_33)


def s3() -> Site:
    """33 buses, 0.95 to 1.05 pu, source at 1 pu, 40 % load: the usual day."""
    return feeder33("S3", v_pu=(0.95, 1.05), load=0.4)


def feeder33(
    name: str,
    *,
    v_pu: tuple[float, float],
    load: float = 1.0,
    tap: int = 0,
    banks: dict[int, int] | None = None,
) -> Site:
    """case33bw with six devices; 400 A for lines 0 to 4, 150 A for the rest.

    The tap stands in the source's voltage; banks are loads of constant reactive power.
    """
    return site_of(
        name, net33(tap), battery_park(BUSES_33.values(), S_MVA_33), v_pu, load=load, banks=banks or {}
    )


def net33(tap: int = 0) -> pandapowerNet:
    """case33bw with ratings and the source at a tap."""
    net = pn.case33bw()
    net.line["max_i_ka"] = 0.15
    net.line.loc[:4, "max_i_ka"] = 0.4
    net.ext_grid["vm_pu"] = 1 / (1 + TAP * tap)
    return net


def feeder136(load: float = 0.6, *, tap: int = 0, devices: int = 18, seed: int = 0) -> Site:
    """MATPOWER case136ma with seeded devices; every branch rated 12 MVA; 0.95 to 1.05 pu."""
    net = net136(tap)
    rng = np.random.default_rng(seed)
    buses = sorted(rng.choice(net.bus.index.to_numpy()[1:], devices, replace=False).tolist())
    s_mva = rng.choice([0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.8], devices)
    return site_of(f"case136ma at {load:g}", net, battery_park(buses, s_mva), (0.95, 1.05), load=load)


def net136(tap: int = 0) -> pandapowerNet:
    net = load_grid("matpower:case136ma", Path())
    net.line["max_i_ka"] = 12.0 / (np.sqrt(3) * net.bus.vn_kv.iloc[0])
    net.ext_grid["vm_pu"] = 1 / (1 + TAP * tap)
    return net


def battery_park(buses: Any, s_mva: Sequence[float] | Any) -> dict[str, Device]:
    """Devices der1, der2, ... at buses; weights are the ratings over the greatest one."""
    greatest = max(s_mva)
    pairs = enumerate(zip(buses, s_mva, strict=True), start=1)
    return {f"der{i}": battery(f"der{i}", str(bus), float(s), float(s / greatest)) for i, (bus, s) in pairs}


def site_of(
    name: str,
    net: pandapowerNet,
    devices: dict[str, Device],
    v_pu: tuple[float, float],
    *,
    load: float = 1.0,
    banks: dict[int, int] | None = None,
) -> Site:
    """The site of a net whose loads stand at `load` times their power."""
    loads = {
        f"load:{row.Index}": Load(f"load:{row.Index}", str(row.bus), -load * row.p_mw, -load * row.q_mvar)
        for row in net.load[net.load.in_service].itertuples()
    }
    for bus, position in (banks or {}).items():
        loads[f"bank:{bus}"] = Load(f"bank:{bus}", str(bus), 0.0, 0.5 * position)
    return Site(
        name=name,
        network=network_of(net),
        limits=Limits(v_pu, 100.0),
        every=STEP,
        devices=devices,
        loads=loads,
        power_flow=PowerGridModelEngine(net),
    )


def random_tree(seed: int, buses: int, devices: int, stress: float = 0.6) -> Site:
    """A radial 11 kV feeder drawn from a seed.

    Args:
        buses: without the slack bus.
        devices: at random buses, several at one and some at the slack bus possible.
        stress: how much of the room for voltage the load takes, between 1 pu at the source and a limit at
            0.95 pu in the linear model; above 1 the load alone breaks the limit.
    """
    rng = np.random.default_rng(seed)
    net = pp.create_empty_network(sn_mva=1.0)
    pp.create_buses(net, buses + 1, vn_kv=11.0)
    pp.create_ext_grid(net, 0, vm_pu=1.0)
    # A parent among the last few buses gives long feeders, among all of them bushy ones.
    reach = int(rng.integers(1, buses + 1))
    parents = [int(rng.integers(max(0, bus - reach), bus)) for bus in range(1, buses + 1)]
    impedance = rng.uniform(0.1, 0.8, (2, buses))
    pp.create_lines_from_parameters(
        net, parents, np.arange(1, buses + 1), length_km=1.0, r_ohm_per_km=impedance[0],
        x_ohm_per_km=impedance[1], c_nf_per_km=0.0, max_i_ka=1.0,
    )  # fmt: skip
    p = rng.uniform(0.0, 1.0, buses) * (rng.random(buses) < 0.7)
    p[int(rng.integers(buses))] = 1.0  # at least one
    q = p * rng.uniform(0.1, 0.6, buses)
    network = network_of(net)
    drop = float(1.0 - network.v2(-p, -q).min())
    p, q = (x * stress * (1 - 0.95**2) / drop for x in (p, q))
    pp.create_loads(net, np.arange(1, buses + 1), p_mw=p, q_mvar=q)
    # Ratings of some branches, with room beyond the load's own flow.
    flow = np.hypot(*network.flow(-p, -q))
    i_ka = (flow * rng.uniform(1.2, 4.0, buses) + 0.2 * max(flow.max(), 1.0)) / (np.sqrt(3) * 11.0)
    branch = [int(name.removeprefix("line:")) for name in network.branches]
    net.line.loc[branch, "max_i_ka"] = np.where(rng.random(buses) < 0.6, i_ka, 99999.0)
    at = rng.integers(1, buses + 1, devices)
    if devices > 1 and rng.random() < 0.2:
        at[0] = 0
    park = battery_park(at.tolist(), rng.uniform(0.2, 2.0, devices))
    return site_of(f"tree {seed}", net, park, (0.95, 1.05))


@cache
def _tree(seed: int, buses: int, devices: int, stress: float) -> Site:
    return random_tree(seed, buses, devices, stress)


def trees(
    buses: tuple[int, int] = (5, 60),
    devices: tuple[int, int] = (1, 8),
    stress: tuple[float, float] = (0, 0.95),
) -> st.SearchStrategy[Site]:
    """Random radial sites for Hypothesis; with a stress above 1 some have no envelope at all."""
    return st.builds(
        _tree,
        seed=st.integers(0, 2**32 - 1),
        buses=st.integers(*buses),
        devices=st.integers(*devices),
        stress=st.floats(*stress).map(lambda x: round(x, 3)),
    )
