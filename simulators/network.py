"""network_of: the linear model that controllers see, from any radial pandapower net.

LinDistFlow (Baran and Wu 1989, branch flow equations without the loss terms), generalised to off-nominal
transformer ratios and to admittances (shunts, line charging, magnetising), whose power is linear in v. The
equations and their symbols stand in `controllers/network.py`; this file finds the tree and refers each
branch to its direction:

| symbol | meaning                                                                                | unit |
|--------|----------------------------------------------------------------------------------------|------|
| tau    | off-nominal ratio at a branch's first side; its series impedance is at the second side  | 1    |
| t, s   | fed from its first side: t = 1/tau^2, s = 1; fed from its second side: t = 1, s = tau^2  | 1    |
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pandapower.auxiliary import pandapowerNet

from controllers.network import SLACK, Network
from simulators.per_unit import NOWHERE, NetworkRefused, PerUnit, per_unit, placed

__all__ = ["NetworkRefused", "network_of"]


@dataclass(frozen=True, slots=True)
class _Edge:
    """A branch, or a closed switch without impedance, between two positions in `buses`."""

    name: str
    first: int
    second: int
    branch: int | None
    """position in `branches`; `None` for such a switch"""


def network_of(net: pandapowerNet) -> Network:
    """The linear model of a radial net; injections at all buses are its arguments.

    Buses joined by a closed switch without impedance are all buses of the network: the switch (`switch:5`)
    is the branch that feeds the farther one. A line or transformer with one open end feeds no bus; its exact
    admittance stays at the closed end. Parts without a path to the slack bus are left out when nothing is
    connected there. Loads and static generators of `net` are not read.

    Raises:
        NetworkRefused: a meshed net, an isolated bus with a load or generator in service, or what `per_unit`
            refuses.
    """
    model = per_unit(net)
    for bus in model.isolated:
        if here := placed(net, bus):
            raise NetworkRefused(
                f"grid: bus {bus} has {', '.join(here)} but no path to the slack bus {model.slack}; close a "
                "switch, put a line in service, or set in_service of what is connected there to False"
            )
    return _network(model, _tree(model))


def _tree(model: PerUnit) -> list[tuple[int, int, _Edge]]:
    """(bus, feeding bus, edge) for each bus but the slack bus, feeding buses first.

    Raises:
        NetworkRefused: the branches close a loop.
    """
    at: list[list[_Edge]] = [[] for _ in model.buses]
    switches = [_Edge(name, a, b, None) for name, a, b in model.fused]
    branches = [
        _Edge(name, int(a), int(b), i)
        for i, (name, a, b) in enumerate(zip(model.branches, model.from_bus, model.to_bus, strict=True))
        if a != NOWHERE and b != NOWHERE
    ]
    # Switches between buses that are joined already carry no defined share: one path is enough.
    group = list(range(len(model.buses)))
    for edge in switches:
        a, b = _root(group, edge.first), _root(group, edge.second)
        if a != b:
            group[b] = a
            at[edge.first].append(edge)
            at[edge.second].append(edge)
    for edge in branches:
        at[edge.first].append(edge)
        at[edge.second].append(edge)

    slack = model.buses.index(model.slack)
    fed_by: dict[int, tuple[int, _Edge]] = {}
    order: list[tuple[int, int, _Edge]] = []
    reached, queue, used = {slack}, [slack], set[int]()
    for bus in queue:
        for edge in at[bus]:
            if id(edge) in used:
                continue
            used.add(id(edge))
            other = edge.second if edge.first == bus else edge.first
            if other in reached:
                raise NetworkRefused(_loop(model, fed_by, bus, other, edge))
            reached.add(other)
            queue.append(other)
            fed_by[other] = (bus, edge)
            order.append((other, bus, edge))
    return order


def _root(group: list[int], i: int) -> int:
    while group[i] != i:
        group[i] = group[group[i]]
        i = group[i]
    return i


def _loop(model: PerUnit, fed_by: dict[int, tuple[int, _Edge]], a: int, b: int, closing: _Edge) -> str:
    """The message that names the loop which `closing`, between buses a and b, makes."""

    def path(bus: int) -> list[tuple[int, str]]:
        steps = []
        while bus in fed_by:
            steps.append((bus, fed_by[bus][1].name))
            bus = fed_by[bus][0]
        return steps

    one, two = path(a), path(b)
    while one and two and one[-1] == two[-1]:
        one.pop()
        two.pop()
    names = [closing.name, *(name for _, name in two), *(name for _, name in reversed(one))]
    table, _, index = names[0].partition(":")
    column = "closed" if table == "switch" else "in_service"
    return (
        f"grid: not radial: {', '.join(names)} form a loop through bus {model.buses[a]}; open a switch in it "
        f"or take one of them out of service, e.g. net.{table}.{column}.at[{index}] = False"
    )


def _network(model: PerUnit, order: list[tuple[int, int, _Edge]]) -> Network:
    order = sorted(order, key=lambda step: step[0])  # the net's order of buses
    n = len(order)
    row = np.full(len(model.buses) + 1, n)  # by position in `model.buses`; n is the slack bus
    row[[bus for bus, _, _ in order]] = np.arange(n)

    # Admittances by bus: a node's shunt at the first of its buses, branch ends and open-ended branches where
    # they are connected.
    g, b = np.zeros(n + 1), np.zeros(n + 1)
    nodes, first_of = np.unique(model.node, return_index=True)
    np.add.at(g, row[first_of], model.shunt_g[nodes])
    np.add.at(b, row[first_of], model.shunt_b[nodes])
    ff, ft, tf, tt = model.admittances()
    for k in np.flatnonzero((model.from_bus == NOWHERE) ^ (model.to_bus == NOWHERE)).tolist():
        if model.to_bus[k] == NOWHERE:
            y, end = ff[k] - ft[k] * tf[k] / tt[k], model.from_bus[k]
        else:
            y, end = tt[k] - ft[k] * tf[k] / ff[k], model.to_bus[k]
        g[row[end]] += y.real
        b[row[end]] += y.imag

    r, x, h, y_feed = (np.zeros(n) for _ in range(4))
    before, behind, rating = np.ones(n), np.ones(n), np.full(n, np.inf)
    for i, (_, feeder, edge) in enumerate(order):
        if edge.branch is None:
            continue
        k = edge.branch
        tau2 = model.tap[k] ** 2
        one, two = (model.g_from[k] / tau2, model.b_from[k] / tau2), (model.g_to[k], model.b_to[k])
        if edge.first == feeder:
            before[i] = 1 / tau2
            (h[i], y_feed[i]), (g_end, b_end) = one, two
        else:
            behind[i] = tau2
            (h[i], y_feed[i]), (g_end, b_end) = two, one
        r[i], x[i], rating[i] = model.r[k], model.x[k], model.rating_mva[k]
        for at, g_at, b_at in ((int(row[feeder]), h[i], y_feed[i]), (i, g_end, b_end)):
            g[at] += g_at
            b[at] += b_at
    up = row[[feeder for _, feeder, _ in order]] if n else np.zeros(0, dtype=np.int64)
    return Network(
        slack=model.slack,
        buses=tuple(model.buses[bus] for bus, _, _ in order),
        branches=tuple(edge.name for _, _, edge in order),
        feeder=np.where(up == n, SLACK, up),
        r_pu=r,
        x_pu=x,
        rating_mva=rating,
        gain_before=before,
        gain_behind=behind,
        g_pu=g[:n],
        b_pu=b[:n],
        g_feeding_pu=h,
        b_feeding_pu=y_feed,
        v2_slack=model.slack_v_pu**2,
        s_base_mva=model.s_base_mva,
    )
