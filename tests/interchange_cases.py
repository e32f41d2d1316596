"""The reference case of interchange capability: three microgrids and a battery on MATPOWER's 33-bus feeder.

The source gives no figures; ratings, costs and profiles are assumptions of ours. Buses are named as in
pandapower, from 0: microgrid mg1 is at bus "17", the paper's bus 18. The ratings in MVA leave room for
0.3 Mvar at each point of common coupling, those of the sun for forecasts well above the mean. Interruptible
demand is contracted: it follows the day, but has no spread of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandapower.networks as pn

from controllers import (
    Battery,
    Decision,
    Device,
    FlexibleLoad,
    Forecast,
    Generator,
    Limits,
    Load,
    Microgrid,
    Observation,
    PvInverter,
    Region,
    Site,
    WindTurbine,
)
from controllers.devices import still
from simulators.network import network_of
from simulators.power_flow import PowerGridModelEngine

MIDNIGHT = datetime(2026, 6, 21, tzinfo=UTC)
HOUR = timedelta(hours=1)

HOURS = np.arange(24)
PV = np.array(
    [0, 0, 0, 0, 0, .05, .15, .35, .55, .75, .9, .97, 1, .95, .85, .68, .45, .22, .06, 0, 0, 0, 0, 0]
)  # fmt: skip
LOAD = np.array(
    [.6, .57, .55, .55, .57, .62, .7, .8, .88, .92, .95, .97,
     .95, .93, .92, .93, .97, 1, 1, .98, .93, .85, .75, .66]
)  # fmt: skip
WIND = 0.5 + 0.3 * np.cos(2 * np.pi * HOURS / 24)
HEAT = 0.6 + 0.4 * np.cos(2 * np.pi * (HOURS - 4) / 24)
PRICE = np.array([55.0] * 6 + [75.0] * 2 + [100.0] * 4 + [85.0] * 5 + [120.0] * 4 + [75.0] * 3)
"""[$/MWh]"""

SPREAD = {"pv": 0.15, "wt": 0.15, "ul": 0.05, "il": 0.0, "heat": 0.08}
"""Standard deviation of a forecast in its mean."""

P_MT_START, P_DE_START = 0.2, 0.05


class Unit(NamedTuple):
    """A generator's least and greatest power [MW], its ramp both ways [MW/h] and cost [$/MWh]."""

    p_min_mw: float
    p_mw: float
    ramp_mw_per_h: float
    cost_per_mwh: float


class Figures(NamedTuple):
    """A microgrid's figures [MW, MWh]."""

    bus: str
    mt: Unit
    de: Unit
    esd_mw: float
    e_mwh: tuple[float, float, float]
    """least, greatest, first"""
    pv: float
    wt: float
    ul: float
    il: float
    heat: float
    tie_mw: float


FIGURES = {
    "mg1": Figures(
        "17", Unit(0.06, 0.40, 0.20, 70), Unit(0, 0.25, 0.15, 110), 0.15, (0.06, 0.54, 0.30),
        0.35, 0.20, 0.45, 0.12, 0.35, 0.8,
    ),
    "mg2": Figures(
        "24", Unit(0.06, 0.30, 0.15, 75), Unit(0, 0.30, 0.20, 105), 0.10, (0.04, 0.36, 0.20),
        0.20, 0.30, 0.50, 0.10, 0.25, 0.8,
    ),
    "mg3": Figures(
        "32", Unit(0.08, 0.50, 0.25, 68), Unit(0, 0.20, 0.10, 115), 0.20, (0.08, 0.72, 0.40),
        0.45, 0.15, 0.40, 0.15, 0.40, 0.9,
    ),
}  # fmt: skip


def devices_of(name: str, figures: Figures) -> dict[str, Device]:
    """A microgrid's devices, `<name>_mt`, `_de`, `_esd`, `_pv`, `_wt`, `_ul` and `_il`."""
    common: dict[str, Any] = {"bus": figures.bus, "weight": 1.0, "default": still()}

    def generator(kind: str, unit: Unit, heat_ratio: float, start: float) -> Generator:
        return Generator(
            name=f"{name}_{kind}", p_mw=unit.p_mw, p_min_mw=unit.p_min_mw, s_mva=1.25 * unit.p_mw,
            ramp_mw_per_min=unit.ramp_mw_per_h / 60, cost_per_mwh=unit.cost_per_mwh, heat_ratio=heat_ratio,
            p_start_mw=start, **common,
        )  # fmt: skip

    def load(kind: str, p_mw: float, interruptible: bool, cost_per_mwh: float) -> FlexibleLoad:
        wanted = {**common, "default": Region.box(p_mw=(-p_mw, 0.0), q_mvar=(-p_mw, p_mw))}
        return FlexibleLoad(
            name=f"{name}_{kind}", p_mw=p_mw, firm_mw=0.0, power_factor=1.0, interruptible=interruptible,
            cost_per_mwh=cost_per_mwh, **wanted,
        )  # fmt: skip

    least, greatest, first = figures.e_mwh
    made: list[Device] = [
        generator("mt", figures.mt, 1.4, P_MT_START),
        generator("de", figures.de, 0.0, P_DE_START),
        Battery(
            name=f"{name}_esd", p_mw=figures.esd_mw, s_mva=1.25 * figures.esd_mw, e_mwh=greatest,
            e_min_mwh=least, e_start_mwh=first, efficiency=(0.95, 0.95), cost_per_mwh=5.0, **common,
        ),
        PvInverter(name=f"{name}_pv", p_mw=figures.pv, s_mva=1.4 * figures.pv, **common),
        WindTurbine(name=f"{name}_wt", p_mw=figures.wt, power_factor=1.0, **common),
        load("ul", figures.ul, False, 0.0),
        load("il", figures.il, True, 150.0),
    ]  # fmt: skip
    return {device.name: device for device in made}


def microgrid_of(name: str, figures: Figures) -> Microgrid:
    return Microgrid(
        name=name,
        bus=figures.bus,
        devices=tuple(devices_of(name, figures)),
        tie_mw=figures.tie_mw,
        q_mvar=(-0.3, 0.3),
        price="price",
        heat=f"{name}_heat",
    )


@cache
def reference_site(microgrids: tuple[str, ...] = tuple(FIGURES), every: timedelta = HOUR) -> Site:
    """The feeder with some of its microgrids and the network's own battery `bess`; 0.95 to 1.05 pu."""
    net = pn.case33bw()
    loads = {
        f"load:{row.Index}": Load(f"load:{row.Index}", str(row.bus), -row.p_mw, -row.q_mvar)
        for row in net.load[net.load.in_service].itertuples()
    }
    bess = Battery(
        name="bess", bus="5", p_mw=0.3, s_mva=0.4, e_mwh=1.08, e_min_mwh=0.12, e_start_mwh=0.6,
        efficiency=(0.95, 0.95), weight=1.0, default=still(),
    )  # fmt: skip
    devices: dict[str, Device] = {"bess": bess}
    for name in microgrids:
        devices |= devices_of(name, FIGURES[name])
    return Site(
        name="reference",
        network=network_of(net),
        limits=Limits((0.95, 1.05), 100.0),
        every=every,
        devices=devices,
        loads=loads,
        power_flow=PowerGridModelEngine(net),
        microgrids={name: microgrid_of(name, FIGURES[name]) for name in microgrids},
    )


def day(site: Site, start: datetime, intervals: int) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Names, mean and spread of everything that is forecast, from `start` on; the day repeats itself."""
    hours = [int((start + i * site.every - MIDNIGHT) // HOUR) % 24 for i in range(intervals)]
    columns: dict[str, tuple[Any, float]] = {"price": (PRICE[hours], 0.0)}
    for load in site.loads.values():
        columns[load.name] = load.p_mw * LOAD[hours], 0.05
    for name in site.microgrids:
        figures = FIGURES[name]
        columns |= {
            f"{name}_pv": (figures.pv * PV[hours], SPREAD["pv"]),
            f"{name}_wt": (figures.wt * WIND[hours], SPREAD["wt"]),
            f"{name}_ul": (-figures.ul * LOAD[hours], SPREAD["ul"]),
            f"{name}_il": (-figures.il * LOAD[hours], SPREAD["il"]),
            f"{name}_heat": (figures.heat * HEAT[hours], SPREAD["heat"]),
        }
    mean = np.column_stack([values for values, _ in columns.values()])
    std = np.column_stack([np.abs(values) * spread for values, spread in columns.values()])
    return tuple(columns), mean, std


def seen(
    k: int,
    horizon: int = 12,
    *,
    site: Site | None = None,
    p_mw: Mapping[str, float] | None = None,
    e_mwh: Mapping[str, float] | None = None,
    connected: Mapping[str, bool] | None = None,
    said: Mapping[str, Decision] | None = None,
    spread: float = 1.0,
) -> Observation:
    """What is known one step before hour `k` (0 to 23), so that interval 0 of the forecast is hour `k`.

    Args:
        horizon: intervals forecast.
        site: the reference site if not given.
        p_mw, e_mwh: measured in place of the first state: engines as they start, batteries as full as they
            start and at rest, everything else as forecast for the step before; a microgrid's exchange is the
            sum of what its devices inject unless given.
        spread: factor on the spread of everything.
    """
    site = reference_site() if site is None else site
    start = MIDNIGHT + (k % 24) * HOUR
    now = start - site.every
    names, mean, std = day(site, start, horizon)
    before = dict(zip(names, day(site, now, 1)[1][0].tolist(), strict=True))
    measured = {d.name: before.get(d.name, d.initial().p_mw) for d in site.devices.values()}
    measured |= {load: before[load] for load in site.loads} | dict(p_mw or {})
    for grid in site.microgrids.values():
        measured.setdefault(grid.name, sum(measured[name] for name in grid.devices))
    q_mvar = {load.name: load.reactive(measured[load.name]) for load in site.loads.values()}
    q_mvar |= dict.fromkeys((*site.devices, *site.microgrids), 0.0)
    stored = {d.name: s for d in site.devices.values() if (s := d.initial().e_mwh) is not None}
    return Observation(
        time=now,
        forecast=Forecast(now, site.every, names, mean, spread * std),
        v_pu=MappingProxyType(dict.fromkeys((site.network.slack, *site.network.buses), 1.0)),
        p_mw=MappingProxyType(measured),
        q_mvar=MappingProxyType(q_mvar),
        e_mwh=MappingProxyType(stored | dict(e_mwh or {})),
        connected=MappingProxyType(dict(connected or {})),
        said=MappingProxyType(dict(said or {})),
    )
