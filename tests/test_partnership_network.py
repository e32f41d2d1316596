"""The operator's problem: the 123-bus feeder's figures, the AC power flow, what its relaxation promises."""

from __future__ import annotations

from dataclasses import replace

import networkx as nx
import numpy as np
import numpy.typing as npt
import pandapower as pp
import pytest
from pandapower.auxiliary import pandapowerNet
from pandapower.topology import create_nxgraph

from controllers import Infeasible, Limits, Network
from controllers.partnership.distribution import (
    LOSS_PRICE,
    BusLoad,
    Conditions,
    Distribution,
    Feeder,
    Operation,
)
from controllers.partnership.mixed_conic import MixedConic
from controllers.partnership.relaxation import relaxed
from scenarios.ieee123 import net as ieee123
from simulators.network import network_of
from tests.partnership_feeders import small_case
from tests.test_branch_flow import village

Array = npt.NDArray[np.float64]


def solved(distribution: Distribution, conditions: Conditions) -> Operation:
    """The operator's optimum without any microgrid."""
    rows = distribution.rows
    program = MixedConic(distribution.cost(conditions), rows.A, distribution.right(conditions), rows.cones)
    return distribution.operation(conditions, relaxed(program).x)


def alone(
    network: Network,
    loads: dict[str, tuple[float, float]],
    *,
    price: float = 100.0,
    hours: float = 1.0,
    cost: float | None = None,
    v_pu: tuple[float, float] = (0.8, 1.2),
    line_limits: bool = False,
) -> Operation:
    """One interval of injections [MW, Mvar] by bus; `cost` of curtailing them."""
    feeder = Feeder(
        network=network,
        limits=Limits(v_pu=v_pu, loading_percent=100.0),
        microgrids=(),
        intervals=1,
        hours=hours,
        loads=tuple(BusLoad(bus, q / p if p else 0.0, cost) for bus, (p, q) in loads.items()),
        line_limits=line_limits,
    )
    p, q = np.array([*loads.values()]).T
    return solved(Distribution(feeder), Conditions(np.array([price]), p[None], q[None]))


def of(net: pandapowerNet) -> dict[str, tuple[float, float]]:
    """Injections of a net's loads."""
    return {str(row.bus): (-row.p_mw, -row.q_mvar) for row in net.load.itertuples()}


def test_B1_the_123_bus_feeder_has_its_totals_is_a_tree_and_has_its_base_power_flow() -> None:
    net = ieee123()
    assert nx.is_tree(nx.Graph(create_nxgraph(net)))
    assert (len(net.bus), len(net.line) + len(net.trafo)) == (123, 122)
    network, loads = network_of(net), of(net)
    assert np.array([*loads.values()]).sum(axis=0) == pytest.approx([-3.490, -1.920])
    found = alone(network, loads)
    assert found.import_mw[0] == pytest.approx(3.579970, abs=2e-6)
    assert found.import_mvar[0] == pytest.approx(2.099368, abs=2e-6)
    assert found.v_pu.min() == pytest.approx(0.943907, abs=1e-6)
    assert network.buses[int(found.v_pu.argmin())] == "85"
    assert found.gap < 1e-5
    assert found.cost == pytest.approx(100 * found.import_mw[0])


@pytest.mark.parametrize("load_mw", [0.0, 0.05])
def test_taps_charging_and_shunts_are_those_of_the_AC_power_flow(load_mw: float) -> None:
    net = village()
    for bus in (0, 2, 3):
        pp.create_load(net, bus, load_mw, 0.02)
    pp.runpp(net, tolerance_mva=1e-11, numba=False)
    network = network_of(net)
    found = alone(network, of(net))
    where = [int(bus) for bus in network.buses]
    assert found.v_pu[0] == pytest.approx(net.res_bus.vm_pu.loc[where].to_numpy(), abs=1e-6)
    assert found.import_mw[0] == pytest.approx(net.res_ext_grid.p_mw.sum(), abs=1e-5)
    assert found.import_mvar[0] == pytest.approx(net.res_ext_grid.q_mvar.sum(), abs=1e-5)


def test_what_is_cheaper_not_to_serve_is_curtailed_at_constant_power_factor() -> None:
    case = small_case(1, 2)
    loads = {bus: (-p, -q) for bus, (p, q) in case.rest.items()}
    served = alone(case.network, loads, price=300.0, cost=500.0)
    assert served.curtailed_mw == pytest.approx(np.zeros((1, len(loads))), abs=1e-6)
    none = alone(case.network, loads, price=501.0, cost=500.0)
    assert none.curtailed_mw[0] == pytest.approx([-p for p, _ in loads.values()], abs=1e-5)
    assert none.import_mvar[0] == pytest.approx(0.0, abs=1e-5)  # its reactive power goes with it
    kept = alone(case.network, loads, price=501.0, cost=None)
    assert not kept.curtailed_mw.any()
    assert kept.import_mw[0] > sum(-p for p, _ in loads.values())


def test_curtailment_keeps_the_voltage_where_nothing_else_does() -> None:
    case = small_case(1, 2)
    loads = {bus: (-1.3 * p, -1.3 * q) for bus, (p, q) in case.rest.items()}
    free = alone(case.network, loads)
    assert free.v_pu.min() < 0.9
    with pytest.raises(Infeasible):
        alone(case.network, loads, v_pu=(0.9, 1.1))
    found = alone(case.network, loads, v_pu=(0.9, 1.1), cost=500.0)
    assert found.v_pu.min() == pytest.approx(0.9, abs=1e-6)
    assert found.curtailed_mw.sum() > 0.02
    assert found.cost == pytest.approx(100 * found.import_mw[0] + 500 * found.curtailed_mw.sum())
    assert found.gap < 1e-5


def test_an_hour_costs_twice_as_much_as_half_of_one() -> None:
    case = small_case(1, 2)
    loads = {bus: (-p, -q) for bus, (p, q) in case.rest.items()}
    assert alone(case.network, loads, hours=0.5).cost == pytest.approx(alone(case.network, loads).cost / 2)


def test_a_load_at_the_slack_bus_is_imported_and_loads_no_line() -> None:
    case = small_case(1, 2)
    loads = {bus: (-p, -q) for bus, (p, q) in case.rest.items()}
    without, with_it = (
        alone(case.network, loads | extra) for extra in ({}, {case.network.slack: (-0.5, -0.2)})
    )
    assert with_it.import_mw - without.import_mw == pytest.approx([0.5], abs=1e-6)
    assert with_it.import_mvar - without.import_mvar == pytest.approx([0.2], abs=1e-6)
    assert with_it.cost - without.cost == pytest.approx(50.0, abs=1e-3)
    assert np.abs(with_it.P - without.P).max() < 1e-6


@pytest.mark.parametrize("price", [0.5 * LOSS_PRICE, 0.0, -100.0])
def test_energy_that_costs_nothing_or_less_is_not_burnt(price: float) -> None:
    """By its price alone the relaxation would let currents grow until a voltage stops them."""
    case = small_case(1, 2)
    loads = {bus: (-p, -q) for bus, (p, q) in case.rest.items()}
    found, usual = alone(case.network, loads, price=price), alone(case.network, loads)
    assert found.gap < 1e-4
    assert found.import_mw == pytest.approx(usual.import_mw, abs=1e-4)


def test_a_line_limit_is_kept() -> None:
    case = small_case(1, 2)
    loads = {bus: (-p, -q) for bus, (p, q) in case.rest.items()}
    free = alone(case.network, loads, cost=500.0)
    head = int(np.argmax(free.ell[0]))
    rating = np.full(len(case.network.buses), np.inf)
    rating[head] = 0.8 * np.sqrt(free.ell[0, head])
    rated = replace(case.network, rating_mva=rating)
    assert alone(rated, loads, cost=500.0).ell[0, head] == pytest.approx(free.ell[0, head], rel=1e-5)
    kept = alone(rated, loads, cost=500.0, line_limits=True)
    assert kept.ell[0, head] == pytest.approx(rating[head] ** 2, rel=1e-6)
    assert kept.curtailed_mw.sum() > 0.1
    assert kept.gap < 1e-5


def test_a_relaxation_that_cheats_is_told() -> None:
    """An injection that must not be curtailed raises the voltage above its limit: currents burn it."""
    case = small_case(1, 2)
    loads = {bus: (-p, -q) for bus, (p, q) in case.rest.items()} | {"17": (6.0, 0.0)}
    assert alone(case.network, loads).v_pu.max() > 1.1
    cheating = alone(case.network, loads, v_pu=(0.8, 1.05))
    assert cheating.v_pu.max() <= 1.05 + 1e-6
    assert cheating.gap > 0.1


def test_every_bus_and_number_is_checked() -> None:
    case = small_case(2, 2)
    feeder, conditions = case.feeder, case.conditions()
    with pytest.raises(KeyError, match="no bus 'nowhere'"):
        Distribution(replace(feeder, microgrids=("nowhere",)))
    with pytest.raises(ValueError, match="0 intervals"):
        replace(feeder, intervals=0)
    with pytest.raises(ValueError, match="curtailment at bus 3 costs -1"):
        replace(feeder, loads=(BusLoad("3", 0.0, -1.0),))
    for wrong, message in (
        (replace(conditions, price=np.ones(3)), r"price has shape \(3,\), needed is \(2,\)"),
        (replace(conditions, p_mw=conditions.p_mw * np.nan), "p_mw has a value that is not finite"),
        (replace(conditions, q_mvar=conditions.q_mvar[:, 1:]), "q_mvar has shape"),
    ):
        with pytest.raises(ValueError, match=message):
            solved(case.distribution, wrong)
