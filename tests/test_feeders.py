"""Feeders drawn by a seed: trees with real conductors, within their limits, the same each time."""

import networkx as nx
import numpy as np
import pandapower as pp
import pytest
from pandapower.topology import create_nxgraph

from scenarios.feeders import CONDUCTORS, REACTIVE, feeder, feeder_1000
from scenarios.grids import load_grid
from simulators.network import network_of
from simulators.power_flow import PandapowerEngine, PowerGridModelEngine

CASES = [(2, 1), (33, 1), (136, 2), (700, 3)]


@pytest.mark.parametrize(("buses", "seed"), CASES)
def test_a_feeder_is_a_tree_within_its_limits(buses, seed):
    net = feeder(buses, seed)
    assert (len(net.bus), len(net.line), len(net.load)) == (buses, buses - 1, buses - 1)
    assert nx.is_tree(nx.Graph(create_nxgraph(net)))
    assert (net.line.to_bus.to_numpy() == np.arange(1, buses)).all()
    pp.runpp(net, numba=False)
    assert net.res_bus.vm_pu.min() > 0.955
    assert net.res_line.loading_percent.max() < 75
    # and one of the two is near: loads are as great as a planner allows
    assert net.res_bus.vm_pu.min() < 0.97 or net.res_line.loading_percent.max() > 65
    assert net.load.p_mw.min() > 0
    np.testing.assert_allclose(np.cos(np.arctan(net.load.q_mvar / net.load.p_mw)), 0.95, atol=1e-4)
    assert np.tan(np.arccos(0.95)) == pytest.approx(REACTIVE, abs=1e-4)


def test_conductors_are_those_of_pandapowers_list():
    net = pp.create_empty_network()
    for conductor in CONDUCTORS:
        listed = pp.load_std_type(net, conductor.std_type)
        for name in ("r_ohm_per_km", "x_ohm_per_km", "c_nf_per_km", "max_i_ka"):
            assert getattr(conductor, name) == pytest.approx(listed[name]), (conductor.std_type, name)


def test_trunks_are_cables_and_laterals_are_lines():
    net = feeder(600, 1, trunks=3)
    assert (net.line.from_bus == 0).sum() >= 3
    from_bus = dict(zip(net.line.to_bus, net.line.from_bus, strict=True))
    order = {0: 0} | {
        int(row.to_bus): [c.std_type for c in CONDUCTORS].index(row.std_type) for row in net.line.itertuples()
    }
    counts = np.bincount(list(order.values()))
    assert len(counts) == 3
    assert 0.2 < counts[0] / 600 < 0.3
    for bus, above in from_bus.items():
        assert order[bus] in {order[above], min(order[above] + 1, 2)}, "a line never grows outwards"


def test_the_same_seed_draws_the_same_feeder():
    one, same, other = feeder(80, 5), feeder(80, 5), feeder(80, 6)
    assert one.line.equals(same.line)
    assert one.load.equals(same.load)
    assert not one.line.from_bus.equals(other.line.from_bus)


def test_the_voltage_binds_on_a_long_feeder():
    net = feeder(500, 1, lowest_v_pu=0.99, loading_percent=500)
    network = network_of(net)
    at = [int(bus) - 1 for bus in network.buses]
    v2 = network.v2(-net.load.p_mw.to_numpy()[at], -net.load.q_mvar.to_numpy()[at])
    assert np.sqrt(v2.min()) == pytest.approx(0.99, rel=1e-9)


def test_the_loading_is_the_one_asked_for():
    net = feeder(300, 4, lowest_v_pu=0.8, loading_percent=55)
    network = network_of(net)
    at = [int(bus) - 1 for bus in network.buses]
    flows = network.flow(-net.load.p_mw.to_numpy()[at], -net.load.q_mvar.to_numpy()[at])
    assert (np.hypot(*flows) / network.rating_mva).max() == pytest.approx(0.55, rel=1e-9)


def test_both_engines_agree_on_a_thousand_buses(tmp_path):
    net = load_grid("scenarios.feeders:feeder_1000", tmp_path)
    assert len(net.bus) == len(feeder_1000().bus) == 1000
    one, other = PandapowerEngine(net), PowerGridModelEngine(net)
    p, q = np.zeros((2, 1, 1000))
    p[0, 1:], q[0, 1:] = -net.load.p_mw, -net.load.q_mvar
    a, b = one.solve(p, q), other.solve(p, q)
    assert a.converged.all()
    assert b.converged.all()
    np.testing.assert_allclose(a.v_pu, b.v_pu, atol=1e-9)
    network = network_of(net)
    columns = [one.buses.index(bus) for bus in network.buses]
    linear = np.sqrt(network.v2(p[0, columns], q[0, columns]))
    gap = linear - a.v_pu[0, columns]
    assert 0 < gap.max() < 3e-3  # losses are small, but there
    assert gap.min() > -1e-6


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"buses": 1}, "1 buses on 0 trunks"),
        ({"buses": 5, "trunks": 5}, "5 buses on 5 trunks"),
        ({"buses": 5, "lowest_v_pu": 1.02}, "lowest_v_pu 1.02 must be below"),
    ],
)
def test_what_is_no_feeder_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        feeder(**given)
