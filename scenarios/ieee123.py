"""The IEEE 123-bus test feeder as a balanced equivalent, `network: scenarios.ieee123:net` in a scenario.

Figures: IEEE PES test feeders, 4.16 kV (W. H. Kersting, Radial distribution test feeders, 1991 and 2001).
What is made of them here:

- One phase stands for three. A branch has the positive-sequence impedance of its configuration, the mean of
  the diagonal less the mean of the other entries; of a line with one phase that is the diagonal. Loads are
  summed over their phases and take constant power. So laterals of one phase are stressed a third of what they
  are.
- Regulators, capacitors and the charging of lines (below 6e-5 pu) are left out; the source holds 1.0 pu.
- Closed switches have 1e-4 + j 1e-4 pu, open ones and what is behind them are left out. Buses 149 and 150 at
  the source are one with bus 1.

Buses are numbered 1 to 123; 1 to 114 as in the source, the others stand for those that `net.bus.name` gives:
135, 151, 152, 160, 197, 250, 300, 450 and 610. Lines have no ratings in the source and none here.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from importlib.resources import files

import pandapower as pp
from pandapower.auxiliary import pandapowerNet

V_KV, V_LOW_KV = 4.16, 0.48
KM_PER_FT = 0.3048e-3

_MAIN = 0.057967, 0.118756
_TWO_PHASES = 0.057964, 0.130047
_ONE_PHASE = 0.251742, 0.255208

OHM_PER_KFT = {
    **dict.fromkeys(("1", "2", "3", "4", "5", "6"), _MAIN),
    **dict.fromkeys(("7", "8"), _TWO_PHASES),
    **dict.fromkeys(("9", "10", "11"), _ONE_PHASE),
    "12": (0.192090, 0.091521),
}
"""Resistance and reactance by configuration [Ohm per 1000 ft]"""

SWITCH_PU = 1e-4
"""Resistance and reactance of a closed switch, on 1 MVA."""

TRANSFORMER_MVA, TRANSFORMER_PERCENT = 0.15, (1.27, 2.72)
"""Rating of the one to bus 610, and its resistance and reactance."""

UNLIMITED_KA = 99999.0
"""How pandapower says that a line has no rating."""


def net() -> pandapowerNet:
    """The feeder with its spot loads: 123 buses, 121 lines and switches, one transformer, 3,490 kW."""
    made = pp.create_empty_network(name="IEEE 123-bus feeder, balanced", sn_mva=1.0)
    branches, buses = list(_rows("ieee123_branches.csv")), list(_rows("ieee123_buses.csv"))
    behind = {row["to_bus"] for row in branches if row["configuration"] == "transformer"}
    for row in buses:
        kv = V_LOW_KV if row["bus"] in behind else V_KV
        pp.create_bus(made, kv, name=row["label"], index=int(row["bus"]))
    pp.create_ext_grid(made, 1, vm_pu=1.0)
    for row in branches:
        ends, kind = (int(row["from_bus"]), int(row["to_bus"])), row["configuration"]
        if kind == "transformer":
            _transformer(made, *ends)
        elif kind == "switch":
            ohm = SWITCH_PU * V_KV**2
            _line(made, ends, 1e-3, (ohm / 1e-3, ohm / 1e-3))
        else:
            per_km = tuple(x / (1000 * KM_PER_FT) for x in OHM_PER_KFT[kind])
            _line(made, ends, float(row["length_ft"]) * KM_PER_FT, (per_km[0], per_km[1]))
    for row in buses:
        p_mw, q_mvar = float(row["load_kw"]) / 1000, float(row["load_kvar"]) / 1000
        if p_mw or q_mvar:
            pp.create_load(made, int(row["bus"]), p_mw, q_mvar, name=f"load {row['label']}")
    return made


def _line(made: pandapowerNet, ends: tuple[int, int], km: float, ohm_per_km: tuple[float, float]) -> None:
    pp.create_line_from_parameters(
        made, *ends, length_km=km, r_ohm_per_km=ohm_per_km[0], x_ohm_per_km=ohm_per_km[1], c_nf_per_km=0.0,
        max_i_ka=UNLIMITED_KA,
    )  # fmt: skip


def _transformer(made: pandapowerNet, high: int, low: int) -> None:
    r, x = TRANSFORMER_PERCENT
    pp.create_transformer_from_parameters(
        made, high, low, sn_mva=TRANSFORMER_MVA, vn_hv_kv=V_KV, vn_lv_kv=V_LOW_KV, vkr_percent=r,
        vk_percent=(r**2 + x**2) ** 0.5, pfe_kw=0.0, i0_percent=0.0,
    )  # fmt: skip


def _rows(name: str) -> Iterator[dict[str, str]]:
    """The rows of a table beside the scenarios."""
    with files("scenarios").joinpath("data", name).open(encoding="utf-8") as lines:
        yield from csv.DictReader(lines)
