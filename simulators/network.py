"""network_of: the linear model that controllers see, from any radial pandapower net.

LinDistFlow (Baran and Wu 1989, branch flow equations without the loss terms), generalised to off-nominal
transformer ratios and to admittances (shunts, line charging, magnetising), whose power is linear in v:

| symbol | meaning                                                                    | unit |
|--------|----------------------------------------------------------------------------|------|
| v      | squared voltage magnitude                                                  | pu   |
| P, Q   | power through the series impedance of the branch that feeds a bus          | pu   |
| r, x   | series impedance, at the branch's second side                              | pu   |
| tau    | off-nominal ratio: v_first / tau^2 lies behind the ideal transformer       | 1    |
| a, c   | forward branch: a = 1/tau^2, c = 2; fed from its second side: a = tau^2, c = 2 tau^2 | 1 |
| g, b   | admittance at a bus, those at the ends of its branches included            | pu   |
| h, y   | admittance g, b at the feeding end of a branch                             | pu   |
| D      | D_ij = 1 if bus j is bus i or beyond it                                    | 1    |
| U      | U_ij = 1 if bus j feeds bus i                                              | 1    |

    v_i = a_i v_u(i) - c_i (r_i P_i + x_i Q_i)
    P   = D (g v - p)                    Q   = D (-b v - q)
    F_p = P + h v_u                      F_q = Q - y v_u

Solving the first line for v once gives v, F_p and F_q as affine functions of the injections p, q.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pandapower.auxiliary import pandapowerNet

from controllers.network import Network
from simulators.per_unit import NOWHERE, Array, NetworkRefused, PerUnit, per_unit, placed

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
    order = _tree(model)
    return _solve(model, order)


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


def _solve(model: PerUnit, order: list[tuple[int, int, _Edge]]) -> Network:
    n = len(order)
    row = {bus: i for i, (bus, _, _) in enumerate(order)}
    v_slack = model.slack_v_pu**2

    # Admittances by bus: a node's shunt at the first of its buses, branch ends and open-ended branches where
    # they are connected. Index n is the slack bus.
    g, b = np.zeros(n + 1), np.zeros(n + 1)

    def slot(bus: int) -> int:
        return row.get(bus, n)

    for node in range(len(model.shunt_g)):
        here = np.flatnonzero(model.node == node)
        if len(here):
            g[slot(int(here[0]))] += model.shunt_g[node]
            b[slot(int(here[0]))] += model.shunt_b[node]
    ff, ft, tf, tt = model.admittances()
    for i, (first, second) in enumerate(zip(model.from_bus, model.to_bus, strict=True)):
        if first != NOWHERE and second != NOWHERE:
            continue
        y = ff[i] - ft[i] * tf[i] / tt[i] if second == NOWHERE else tt[i] - ft[i] * tf[i] / ff[i]
        at = slot(int(second if first == NOWHERE else first))
        g[at] += y.real
        b[at] += y.imag

    a, c = np.ones(n), np.zeros(n)
    r, x, h, y_feed = np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n)
    U, D = np.zeros((n, n)), np.eye(n)
    from_slack = np.zeros(n)
    rating = np.full(n, np.inf)
    for i, (_, feeder, edge) in enumerate(order):
        up = slot(feeder)
        if up == n:
            from_slack[i] = 1.0
        else:
            U[i, up] = 1.0
        if edge.branch is None:
            continue
        k = edge.branch
        forward = edge.first == feeder
        tau2 = model.tap[k] ** 2
        a[i], c[i] = (1 / tau2, 2.0) if forward else (tau2, 2 * tau2)
        r[i], x[i], rating[i] = model.r[k], model.x[k], model.rating_mva[k]
        first, second = (model.g_from[k] / tau2, model.b_from[k] / tau2), (model.g_to[k], model.b_to[k])
        (h[i], y_feed[i]), (g_end, b_end) = (first, second) if forward else (second, first)
        for at, g_at, b_at in ((up, h[i], y_feed[i]), (i, g_end, b_end)):
            g[at] += g_at
            b[at] += b_at
    for i in range(n - 1, -1, -1):
        up = slot(order[i][1])
        if up != n:
            D[up] += D[i]
    g, b = g[:n], b[:n]

    K = np.eye(n) - a[:, None] * U
    K += (c * r)[:, None] * D * g - (c * x)[:, None] * D * b
    columns = np.column_stack([a * from_slack * v_slack, (c * r)[:, None] * D, (c * x)[:, None] * D])
    v: Array = np.asarray(np.linalg.solve(K, columns) if n else columns, dtype=float)
    v_base, v_p, v_q = v[:, 0], v[:, 1 : n + 1], v[:, n + 1 :]

    # D g v counts, at each feeding bus, the ends of the branches beyond it.
    feed_g, feed_b = D * g + h[:, None] * U, D * b + y_feed[:, None] * U
    s = model.s_base_mva
    rank = np.argsort([bus for bus, _, _ in order]).astype(np.int64)  # back to the net's order of buses
    square = np.ix_(rank, rank)
    return Network(
        slack=model.slack,
        buses=tuple(model.buses[order[i][0]] for i in rank),
        branches=tuple(order[i][2].name for i in rank),
        rating_mva=rating[rank],
        v2_base=v_base[rank],
        v2_per_mw=v_p[square] / s,
        v2_per_mvar=v_q[square] / s,
        p_base=s * (feed_g @ v_base + h * from_slack * v_slack)[rank],
        q_base=-s * (feed_b @ v_base + y_feed * from_slack * v_slack)[rank],
        p_per_mw=(D - feed_g @ v_p)[square],
        p_per_mvar=(-feed_g @ v_q)[square],
        q_per_mw=(feed_b @ v_p)[square],
        q_per_mvar=(D + feed_b @ v_q)[square],
    )
