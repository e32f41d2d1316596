"""Make `village.json`: a small village on a 20 kV stub, one transformer with taps, three low-voltage feeders.

Our own numbers, no real place. Run it again after a change: `python scenarios/data/make_village.py`.
"""

from __future__ import annotations

from pathlib import Path

import pandapower as pp
from pandapower.auxiliary import pandapowerNet

FEEDERS = {
    "north": ("NAYY 4x150 SE", [0.08, 0.07, 0.09], [12.0, 9.0, 14.0]),
    "east": ("NAYY 4x150 SE", [0.10, 0.06, 0.08], [8.0, 15.0, 10.0]),
    "south": ("NAYY 4x50 SE", [0.05, 0.07], [6.0, 7.0]),
}
"""Feeder: type of cable, length of each section [km], load at its end [kW]."""

POWER_FACTOR_Q = 0.25
"""Reactive for active power of every load."""


def village() -> pandapowerNet:
    """The net: 12 buses, 10 lines, one transformer, a closed and an open switch."""
    net = pp.create_empty_network(name="village", f_hz=50.0, sn_mva=1.0)
    supply = pp.create_bus(net, 20.0, name="supply")
    station = pp.create_bus(net, 20.0, name="station mv")
    busbar = pp.create_bus(net, 0.4, name="station lv")
    pp.create_ext_grid(net, supply, vm_pu=1.02, name="medium voltage grid")
    pp.create_line(net, supply, station, 2.4, "NA2XS2Y 1x150 RM/25 12/20 kV", name="stub")
    pp.create_transformer(net, station, busbar, "0.25 MVA 20/0.4 kV", tap_pos=1, name="station")
    for feeder, (cable, lengths, loads_kw) in FEEDERS.items():
        last = busbar
        for i, (length_km, p_kw) in enumerate(zip(lengths, loads_kw, strict=True), start=1):
            bus = pp.create_bus(net, 0.4, name=f"{feeder} {i}")
            pp.create_line(net, last, bus, length_km, cable, name=f"{feeder} {i}")
            pp.create_load(net, bus, p_kw / 1e3, POWER_FACTOR_Q * p_kw / 1e3, name=f"homes {feeder} {i}")
            last = bus
    # The farm is behind its own closed switch; the tie between two feeders stays open.
    farm = pp.create_bus(net, 0.4, name="farm")
    last_south = int(net.bus.index[net.bus.name == "south 2"][0])
    pp.create_switch(net, last_south, farm, et="b", closed=True, name="farm")
    pp.create_load(net, farm, 0.005, 0.001, name="farm")
    north, east = (int(net.bus.index[net.bus.name == f"{f} 3"][0]) for f in ("north", "east"))
    tie = pp.create_line(net, north, east, 0.06, "NAYY 4x150 SE", name="tie")
    pp.create_switch(net, east, tie, et="l", closed=False, name="tie")
    # pandapower's whole catalogue would be nine tenths of the file
    for table, types in net.std_types.items():
        used = set(net[table].std_type) if table in net and "std_type" in net[table] else set()
        net.std_types[table] = {name: data for name, data in types.items() if name in used}
    return net


if __name__ == "__main__":
    pp.to_json(village(), str(Path(__file__).with_name("village.json")))
