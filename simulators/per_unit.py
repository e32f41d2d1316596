"""PerUnit: a pandapower net as per-unit equations, read from pandapower's own conversion.

Nothing is derived twice: impedances, tap ratios, phase shifts, charging, shunts, parallel elements, fused
buses and open switches are those of `pandapower.converter.to_ppc`. The branch equations are MATPOWER's
(ideal transformer `tap e^(j shift)` at the first side, then a pi circuit; MATPOWER User's Manual, 3.2):

    I_from = y_ff V_from + y_ft V_to        I_to = y_tf V_from + y_tt V_to
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pandapower.auxiliary import pandapowerNet
from pandapower.converter.pypower import to_ppc
from pandapower.pypower import idx_brch, idx_bus, idx_gen

Array = npt.NDArray[np.float64]
Complex = npt.NDArray[np.complex128]
Ints = npt.NDArray[np.int64]

NO_RATING_KA = 9999.0
"""A line's `max_i_ka` from here on is a placeholder for "no rating" (MATPOWER cases come with 99999)."""

NOWHERE = -1
"""A branch's bus where its side hangs open behind an open switch."""

SUPPORTED = "ext_grid, bus, line, trafo (two windings), switch, shunt, ward, load, sgen, storage, motor"
REFUSED = {
    "gen": "a generator that controls voltage",
    "xward": "an extended ward",
    "impedance": "an impedance element",
    "dcline": "a DC line",
    "trafo3w": "a three-winding transformer",
    "tcsc": "a series compensator",
    "svc": "a static var compensator",
    "ssc": "a shunt converter",
    "vsc": "a voltage source converter",
    "vsc_stacked": "a voltage source converter",
    "vsc_bipolar": "a voltage source converter",
    "line_dc": "a DC line",
    "source_dc": "a DC source",
}
"""pandapower tables that the two models here have no equation for, in words."""

PLACED = ("load", "sgen", "storage", "motor", "ward", "asymmetric_load", "asymmetric_sgen")
"""pandapower tables whose elements inject power at one bus."""


class NetworkRefused(ValueError):
    """The net has something that gridpace has no model for; the message names it and says what to do."""


@dataclass(frozen=True, eq=False)
class PerUnit:
    """The supplied part of a net in per unit: n nodes, m branches, k buses (several may share a node)."""

    s_base_mva: float
    buses: tuple[str, ...]
    """(k,) pandapower bus indices as decimal strings, in the net's order, slack bus among them"""
    node: Ints
    """(k,) node of each bus; buses joined by a closed bus-bus switch without impedance share one"""
    slack: str
    slack_v_pu: float
    slack_degree: float
    branches: tuple[str, ...]
    """(m,) `line:3`, `trafo:0`, or `switch:5` for a closed bus-bus switch with an impedance"""
    from_bus: Ints
    """(m,) position in `buses`; `NOWHERE` behind an open switch"""
    to_bus: Ints
    from_node: Ints
    """(m,) node, an unnamed one behind an open switch"""
    to_node: Ints
    r: Array
    """(m,) series resistance [pu]"""
    x: Array
    g_from: Array
    """(m,) shunt admittance at each side, behind the ideal transformer [pu]"""
    b_from: Array
    g_to: Array
    b_to: Array
    tap: Array
    """(m,) off-nominal ratio, v_from / v_to without load"""
    shift_degree: Array
    rating_mva: Array
    """(m,) apparent power at rated voltage and 100 % loading; infinite without a rating"""
    from_ka: Array
    """(m,) current at 100 % loading of each side; infinite without a rating"""
    to_ka: Array
    v_base_kv: Array
    """(n,) base voltage"""
    shunt_g: Array
    """(n,) shunt admittance at each node; positive g consumes, positive b injects reactive power [pu]"""
    shunt_b: Array
    fused: tuple[tuple[str, int, int], ...]
    """closed bus-bus switches without impedance: name and the two positions in `buses`"""
    isolated: tuple[str, ...]
    """buses in service that no path connects to the slack bus; they are in no other field"""

    @property
    def slack_node(self) -> int:
        """Node of the slack bus."""
        return int(self.node[self.buses.index(self.slack)])

    def admittances(self) -> tuple[Complex, Complex, Complex, Complex]:
        """(m,) each: y_ff, y_ft, y_tf, y_tt [pu]."""
        series = 1 / _complex(self.r, self.x)
        ratio = self.tap * np.exp(_complex(0 * self.tap, np.deg2rad(self.shift_degree)))
        return (
            (series + _complex(self.g_from, self.b_from)) / self.tap**2,
            -series / ratio.conj(),
            -series / ratio,
            series + _complex(self.g_to, self.b_to),
        )

    def flows(self, v: Complex) -> tuple[Complex, Array]:
        """What branches carry at complex node voltages.

        Args:
            v: (cases, n) [pu].

        Returns:
            (cases, m) complex power entering each branch at its first side [MVA], and its loading [%]: the
            greater of the two sides' currents, each to its rating; NaN without a rating.
        """
        ff, ft, tf, tt = self.admittances()
        v_from, v_to = v[:, self.from_node], v[:, self.to_node]
        i_from, i_to = ff * v_from + ft * v_to, tf * v_from + tt * v_to
        i_base_ka = self.s_base_mva / (np.sqrt(3) * self.v_base_kv)
        loading = np.maximum(
            abs(i_from) * (i_base_ka[self.from_node] / self.from_ka),
            abs(i_to) * (i_base_ka[self.to_node] / self.to_ka),
        )
        loading[:, np.isinf(self.rating_mva)] = np.nan
        return self.s_base_mva * v_from * i_from.conj(), 100 * loading


def per_unit(net: pandapowerNet) -> PerUnit:
    """The per-unit equations of `net`, which is left as it is.

    Out-of-service elements and parts without a path to the slack bus are left out. What loads and static
    generators consume or inject is left out as well: injections are arguments of whoever uses the equations.

    Raises:
        NetworkRefused: no or several external grids, or an element in service of a kind in `REFUSED`.
    """
    slack_bus = _slack_bus(net)
    for table, words in REFUSED.items():
        if table in net and len(net[table]) and net[table].in_service.any():
            index = net[table].index[net[table].in_service.astype(bool)][0]
            raise NetworkRefused(
                f"grid: {table} {index} is {words}, which has no model here; set its in_service to False, or "
                f"replace it (an sgen injects given power). Supported: {SUPPORTED}"
            )
    work = copy.deepcopy(net)
    ppc: dict[str, Any] = to_ppc(work, init="flat", mode="pf")
    bus, rows = ppc["bus"], ppc["branch"].real
    lookup: Ints = work._pd2ppc_lookups["bus"]

    # The converted net holds what is supplied; every other bus has a number beyond its last.
    nodes = len(bus)
    in_service = [int(i) for i in net.bus.index[net.bus.in_service.astype(bool)]]
    kept = [i for i in in_service if lookup[i] < nodes]
    position = {i: k for k, i in enumerate(kept)}
    isolated = tuple(str(i) for i in in_service if i not in position)

    names, ends, rating, from_ka, to_ka = _branches(work)
    keep = np.flatnonzero(ppc["internal"]["branch_is"])

    def column(name: str) -> Array:
        # pandapower adds these only where one of them is not zero
        return np.asarray(ppc.get(name, np.zeros(len(keep))).real, dtype=float)

    from_node = rows[:, idx_brch.F_BUS].astype(np.int64)
    to_node = rows[:, idx_brch.T_BUS].astype(np.int64)
    side = np.array([[position.get(a, NOWHERE), position.get(b, NOWHERE)] for a, b in ends], dtype=np.int64)
    side = side.reshape(-1, 2)[keep]
    node = lookup[kept].astype(np.int64)
    for end, at in ((0, from_node), (1, to_node)):
        # Behind an open switch pandapower ends the branch at an auxiliary node of its own.
        side[:, end] = np.where(node[side[:, end]] == at, side[:, end], NOWHERE)
    short = np.flatnonzero((rows[:, idx_brch.BR_R] == 0) & (rows[:, idx_brch.BR_X] == 0))
    if len(short):
        raise NetworkRefused(
            f"grid: {', '.join(names[keep[i]] for i in short)} has no impedance; replace it by a closed "
            "bus-bus switch"
        )
    g, b = column("branch_g") / 2, rows[:, idx_brch.BR_B] / 2
    tap = rows[:, idx_brch.TAP]
    source = ppc["gen"][ppc["gen"][:, idx_gen.GEN_STATUS] > 0][0]
    return PerUnit(
        s_base_mva=float(ppc["baseMVA"]),
        buses=tuple(str(i) for i in kept),
        node=node,
        slack=str(slack_bus),
        slack_v_pu=float(source[idx_gen.VG]),
        slack_degree=float(bus[lookup[slack_bus], idx_bus.VA]),
        branches=tuple(names[i] for i in keep),
        from_bus=side[:, 0],
        to_bus=side[:, 1],
        from_node=from_node,
        to_node=to_node,
        r=rows[:, idx_brch.BR_R],
        x=rows[:, idx_brch.BR_X],
        g_from=g,
        b_from=b,
        g_to=g + column("branch_g_asym") / 2,
        b_to=b + column("branch_b_asym") / 2,
        tap=np.where(tap == 0, 1.0, tap),
        shift_degree=rows[:, idx_brch.SHIFT],
        rating_mva=rating[keep],
        from_ka=from_ka[keep],
        to_ka=to_ka[keep],
        v_base_kv=bus[:, idx_bus.BASE_KV],
        shunt_g=bus[:, idx_bus.GS] / ppc["baseMVA"],
        shunt_b=bus[:, idx_bus.BS] / ppc["baseMVA"],
        fused=_fused(net, lookup, position),
        isolated=isolated,
    )


def _complex(real: Array, imaginary: Array) -> Complex:
    return np.asarray(real + 1j * imaginary, dtype=np.complex128)


def placed(net: pandapowerNet, bus: str) -> list[str]:
    """Names (`load:3`, ..) of the elements in service that inject power at `bus`."""
    found = []
    for table in PLACED:
        if table in net and len(net[table]):
            rows = net[table]
            here = (rows.bus == int(bus)) & rows.in_service.astype(bool)
            found += [f"{table}:{i}" for i in rows.index[here]]
    return found


def _slack_bus(net: pandapowerNet) -> int:
    grids = net.ext_grid[net.ext_grid.in_service.astype(bool)]
    if len(grids) != 1:
        raise NetworkRefused(
            f"grid: {len(grids)} external grids are in service (at buses {grids.bus.tolist()}), but the "
            "slack bus must be exactly one; set in_service of the others to False, or split the net"
        )
    bus = int(grids.bus.iloc[0])
    if bus not in net.bus.index or not net.bus.in_service.at[bus]:
        raise NetworkRefused(f"grid: the external grid is at bus {bus}, which is not in service")
    return bus


def _branches(net: pandapowerNet) -> tuple[list[str], list[tuple[int, int]], Array, Array, Array]:
    """Name, the two buses, rating [MVA] and the two sides' ratings [kA], in the converted net's order."""
    line, trafo, switch = net.line, net.trafo, net.switch
    names = [f"line:{i}" for i in line.index] + [f"trafo:{i}" for i in trafo.index]
    ends = list(zip(line.from_bus, line.to_bus, strict=True)) + list(
        zip(trafo.hv_bus, trafo.lv_bus, strict=True)
    )
    bare = line.max_i_ka.to_numpy(dtype=float, na_value=np.nan)
    bare = np.where(np.isnan(bare) | (bare >= NO_RATING_KA), np.inf, bare)
    line_ka = bare * line.df.to_numpy(float) * line.parallel.to_numpy(float)
    line_kv = net.bus.vn_kv.loc[line.from_bus].to_numpy(float)
    trafo_mva = trafo.sn_mva.to_numpy(float) * trafo.df.to_numpy(float) * trafo.parallel.to_numpy(float)
    rating = [np.sqrt(3) * line_kv * line_ka, trafo_mva]
    from_ka = [line_ka, trafo_mva / (np.sqrt(3) * trafo.vn_hv_kv.to_numpy(float))]
    to_ka = [line_ka, trafo_mva / (np.sqrt(3) * trafo.vn_lv_kv.to_numpy(float))]
    if "switch" in net._pd2ppc_lookups["branch"]:
        impedance = switch[np.asarray(net._impedance_bb_switches, dtype=bool)]
        names += [f"switch:{i}" for i in impedance.index]
        ends += list(zip(impedance.bus, impedance.element, strict=True))
        for parts in (rating, from_ka, to_ka):
            parts.append(np.full(len(impedance), np.inf))
    return names, ends, np.concatenate(rating), np.concatenate(from_ka), np.concatenate(to_ka)


def _fused(net: pandapowerNet, lookup: Ints, position: dict[int, int]) -> tuple[tuple[str, int, int], ...]:
    """Closed bus-bus switches whose buses the conversion has made one."""
    switch = net.switch[net.switch.closed.astype(bool) & (net.switch.et == "b")]
    return tuple(
        (f"switch:{i}", position[a], position[b])
        for i, a, b in zip(switch.index, switch.bus, switch.element, strict=True)
        if a in position and b in position and lookup[a] == lookup[b]
    )
