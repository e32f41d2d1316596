"""Microgrids for tests of the partnership: the seed's six (tables A.II-A.V), and random ones."""

from __future__ import annotations

from dataclasses import dataclass
from math import acos, tan

import numpy as np

from controllers.devices import AXES, circle, cone
from controllers.partnership.commitment import Commitment, commitment
from controllers.partnership.outlook import Outlook
from controllers.partnership.units import Compensator, Demand, Engine, Fleet, Renewable, Store
from controllers.region import Region

Array = np.ndarray

PRICE = np.array([0.77, 1, 1.16, 0.9, 1.30, 0.77])
LOAD = np.array([0.85, 0.95, 0.9, 1, 0.95, 0.85])
SUN = np.array([1, 1.2, 0.6, 1, 1.4, 1])
BASE_PRICE = 103.0
"""[$/MWh]"""


@dataclass(frozen=True)
class Figures:
    """One microgrid of the seed; kW, kvar, kWh, $."""

    cost: float
    start: float
    p: tuple[float, float]
    q: tuple[float, float]
    ramp: float
    sun: float
    power_factor: float
    store: float
    energy: tuple[float, float, float]
    efficiency: float
    load: tuple[float, float]


SEED = {
    7: Figures(0.05, 10, (20, 100), (-50, 50), 50, 30, 0.90, 40, (20, 80, 60), 0.9, (20, 10)),
    50: Figures(0.08, 5, (30, 150), (-75, 75), 45, 50, 0.95, 40, (20, 100, 40), 0.85, (40, 20)),
    58: Figures(0.04, 10, (50, 150), (-50, 100), 80, 80, 0.85, 35, (30, 90, 30), 0.9, (20, 10)),
    96: Figures(0.055, 10, (20, 120), (-10, 50), 50, 80, 0.90, 60, (40, 160, 80), 0.95, (20, 10)),
    104: Figures(0.085, 10, (10, 80), (-20, 50), 40, 40, 0.85, 40, (20, 80, 40), 0.9, (40, 20)),
    121: Figures(0.045, 10, (20, 120), (-25, 75), 50, 60, 0.90, 30, (40, 120, 60), 0.9, (0, 0)),
}


def seed(bus: int, intervals: int = 6, **options: bool) -> Commitment:
    """A microgrid of the seed; beyond the sixth interval its scalars begin again."""
    one, T = SEED[bus], intervals
    units = Fleet(
        hours=1.0,
        engines=(
            Engine(
                name="engine",
                capability=Region.box(
                    p_mw=(one.p[0] / 1e3, one.p[1] / 1e3), q_mvar=(one.q[0] / 1e3, one.q[1] / 1e3)
                ),
                ramp_mw=one.ramp / 1e3,
                can_stop=True,
                cost_per_mwh=one.cost * 1e3,
                start_up_cost=one.start,
            ),
        ),
        renewables=(Renewable(name="sun", capability=cone(one.power_factor)),),
        stores=(
            Store(
                name="store",
                p_mw=one.store / 1e3,
                e_mwh=(one.energy[0] / 1e3, one.energy[1] / 1e3),
                efficiency=(one.efficiency,) * 2,
            ),
        ),
        demands=(Demand(name="load", q_per_p=one.load[1] / one.load[0] if one.load[0] else 0.0),),
    )
    at = np.arange(T) % 6
    outlook = Outlook(
        p_mw={"engine": 0.0},
        e_mwh={"store": one.energy[2] / 1e3},
        available_mw={"sun": one.sun / 1e3 * SUN[at]},
        demand_mw={"load": one.load[0] / 1e3 * LOAD[at]},
        intervals=T,
    )
    return commitment(units, outlook, **options)


def random_microgrid(rng: np.random.Generator, intervals: int, **options: bool) -> Commitment:
    """One to two engines of every kind, on or off at first, with sun, a store and loads of random size."""
    engines, p_mw = [], {}
    for k in range(int(rng.integers(1, 3))):
        most = rng.uniform(0.05, 0.4)
        least = most * rng.uniform(0.15, 0.5)
        s = most * rng.uniform(1.0, 1.3)
        own = circle(s) & Region(AXES, np.array([[1.0, 0.0], [-1.0, 0.0]]), np.array([most, -least]))
        if rng.random() < 0.5:
            own = Region.box(
                p_mw=(least, most), q_mvar=(-most * rng.uniform(0, 0.6), most * rng.uniform(0.1, 0.8))
            )
        name, can_stop = f"engine{k}", k == 0 or rng.random() < 0.5
        engines.append(
            Engine(
                name=name,
                capability=own,
                ramp_mw=most * rng.uniform(0.1, 1.0),
                can_stop=can_stop,
                cost_per_mwh=rng.uniform(30, 150),
                start_up_cost=rng.uniform(0, 30),
            )
        )
        p_mw[name] = rng.uniform(least, most) if rng.random() < 0.5 or not can_stop else 0.0
    low = rng.uniform(0.0, 0.1)
    high = low + rng.uniform(0.05, 0.4)
    units = Fleet(
        hours=float(rng.choice([0.25, 0.5, 1.0])),
        engines=tuple(engines),
        renewables=(
            Renewable(name="wind", capability=cone(rng.uniform(0.8, 1.0))),
            Renewable(name="sun", capability=circle(rng.uniform(0.05, 0.2))),
        ),
        stores=(
            Store(
                name="store",
                p_mw=rng.uniform(0.02, 0.2),
                e_mwh=(low, high),
                efficiency=(rng.uniform(0.8, 1.0), rng.uniform(0.8, 1.0)),
                cost_per_mwh=float(rng.choice([0.0, 5.0])),
            ),
        ),
        compensators=(Compensator(name="svc", q_mvar=(-0.03, 0.02)),),
        demands=(
            Demand(name="load", q_per_p=rng.uniform(0, 0.7)),
            Demand(name="plant", q_per_p=tan(acos(0.9)), firm_mw=0.02, curtailment_cost_per_mwh=300.0),
        ),
    )
    outlook = Outlook(
        p_mw=p_mw,
        e_mwh={"store": rng.uniform(low, high)},
        available_mw={name: rng.uniform(0, 0.15, intervals) for name in ("wind", "sun")},
        demand_mw={name: rng.uniform(0, 0.3, intervals) for name in ("load", "plant")},
        intervals=intervals,
    )
    return commitment(units, outlook, **options)
