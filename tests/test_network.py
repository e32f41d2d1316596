"""The linear model of a radial net, against closed forms and against the AC power flow."""

import copy

import numpy as np
import pandapower as pp
import pandapower.networks as pn
import pytest
from pandapower.toolbox import nets_equal

from controllers.network import DENSE, SLACK, Network
from scenarios.feeders import feeder
from simulators.network import NetworkRefused, network_of
from simulators.per_unit import per_unit
from simulators.power_flow import PowerGridModelEngine


def two_buses(v_pu=1.02, **line):
    """20 kV, one line of 2 + 1j ohm, no capacitance unless given."""
    net = pp.create_empty_network(sn_mva=1.0)
    a, b = pp.create_bus(net, 20.0), pp.create_bus(net, 20.0)
    pp.create_ext_grid(net, a, vm_pu=v_pu)
    values = {"r_ohm_per_km": 2.0, "x_ohm_per_km": 1.0, "c_nf_per_km": 0.0, "max_i_ka": 0.2} | line
    pp.create_line_from_parameters(net, a, b, length_km=1.0, **values)
    return net


def transformer(tap_pos=-2, feed="hv"):
    """20/0.4 kV, 0.4 MVA, ukr 1 %, uk 5 %, 2.5 % a tap on the high side, no iron losses."""
    net = pp.create_empty_network(sn_mva=1.0)
    hv, lv = pp.create_bus(net, 20.0), pp.create_bus(net, 0.4)
    pp.create_ext_grid(net, hv if feed == "hv" else lv, vm_pu=1.01)
    pp.create_transformer_from_parameters(
        net, hv, lv, sn_mva=0.4, vn_hv_kv=20.0, vn_lv_kv=0.4, vkr_percent=1.0, vk_percent=5.0,
        pfe_kw=0.0, i0_percent=0.0, shift_degree=150.0, tap_side="hv", tap_neutral=0, tap_step_percent=2.5,
        tap_pos=tap_pos, tap_min=-4, tap_max=4, tap_changer_type="Ratio",
    )  # fmt: skip
    return net


def at(network: Network, bus: str) -> int:
    i = network.index(bus)
    assert i is not None
    return i


def ac(net, network, p, q):
    """AC voltages at the network's buses, for cases of injections at them."""
    engine = PowerGridModelEngine(net)
    full = np.zeros((2, len(p), len(engine.buses)))
    columns = [engine.buses.index(bus) for bus in network.buses]
    full[0][:, columns], full[1][:, columns] = p, q
    flows = engine.solve(full[0], full[1])
    assert flows.converged.all()
    return engine, flows, flows.v_pu[:, columns]


def test_case33bw_is_the_path_matrices():
    net = pn.case33bw()
    network = network_of(net)
    paths = np.zeros((33, 33))
    for line in net.line[net.line.in_service].itertuples():  # listed from the substation outwards
        paths[line.to_bus] = paths[line.from_bus]
        paths[line.to_bus, line.Index] = 1
    ohm = net.line.r_ohm_per_km.reindex(range(33), fill_value=0.0).to_numpy()
    ohm_x = net.line.x_ohm_per_km.reindex(range(33), fill_value=0.0).to_numpy()
    assert network.slack == "0"
    assert network.buses == tuple(str(i) for i in range(1, 33))
    assert network.branches == tuple(f"line:{i}" for i in range(32))
    assert np.isinf(network.rating_mva).all()
    for given, z in ((network.v2_per_mw, ohm), (network.v2_per_mvar, ohm_x)):
        common = (paths * z) @ paths.T / 12.66**2  # ohm to pu at 1 MVA
        np.testing.assert_allclose(given, 2 * common[1:, 1:], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(network.v2_base, 1.0, rtol=1e-14)
    downstream = paths[1:, :32].T
    np.testing.assert_allclose(network.p_per_mw, downstream, atol=1e-14)
    np.testing.assert_allclose(network.q_per_mvar, downstream, atol=1e-14)
    assert not network.p_per_mvar.any()
    assert not network.p_base.any()


def test_T6_linear_voltage_is_never_below_ac():
    net = pn.case33bw()
    network = network_of(net)
    rng = np.random.default_rng(1)
    p, q = rng.uniform(-0.25, 0.25, (2, 1000, 32))
    _, _, v = ac(net, network, p, q)
    linear = np.sqrt(np.array([network.v2(*pq) for pq in zip(p, q, strict=True)]))
    gap = linear - v
    assert gap.min() >= -1e-9
    assert 1e-4 < gap.max() < 0.02  # the model does neglect something


def village():
    """A grid with everything: a transformer fed from its low side, taps, charging, a shunt, a switch."""
    net = transformer(tap_pos=1, feed="lv")
    net.trafo["pfe_kw"], net.trafo["i0_percent"] = 2.0, 1.5
    buses = [0, *(int(pp.create_bus(net, 20.0)) for _ in range(4))]
    for a, b, km in ((0, 1, 3.0), (1, 2, 1.0), (1, 3, 2.0)):
        pp.create_line_from_parameters(net, buses[a], buses[b], km, 0.4, 0.3, 250.0, 0.2)
    pp.create_switch(net, buses[3], buses[4], et="b")
    pp.create_shunt(net, buses[2], q_mvar=-0.2, p_mw=0.01)
    far = pp.create_bus(net, 0.4)
    pp.create_transformer_from_parameters(
        net, buses[4], far, sn_mva=0.25, vn_hv_kv=20.0, vn_lv_kv=0.4, vkr_percent=1.2, vk_percent=4.0,
        pfe_kw=0.6, i0_percent=0.4, tap_side="hv", tap_neutral=0, tap_step_percent=2.5, tap_pos=-1,
        tap_min=-2, tap_max=2, tap_changer_type="Ratio",
    )  # fmt: skip
    net.sn_mva = 2.5
    return net


def dense(network):
    """v, F_p and F_q by dense matrices: P = D (g v - p) with D_ij = 1 if bus j is bus i or beyond it.

    Returns:
        (3, n, 1 + 2n): what a source, each active and each reactive injection give, in pu.
    """
    n = len(network.buses)
    D, U, first = np.eye(n), np.zeros((n, n)), network.feeder == SLACK
    for i in range(n):
        at = i
        while network.feeder[at] != SLACK:
            at = network.feeder[at]
            D[at, i] = 1
    U[~first, network.feeder[~first]] = 1
    a = network.gain_before * network.gain_behind
    c = 2 * network.gain_behind
    c_r, c_x = (c * network.r_pu)[:, None] * D, (c * network.x_pu)[:, None] * D
    K = np.eye(n) - a[:, None] * U + c_r * network.g_pu - c_x * network.b_pu
    source = network.v2_slack * first
    v = np.linalg.solve(K, np.column_stack([a * source, c_r, c_x]))
    feeding = U @ v
    feeding[:, 0] += source
    f_p = D @ (network.g_pu[:, None] * v) + network.g_feeding_pu[:, None] * feeding
    f_q = -D @ (network.b_pu[:, None] * v) - network.b_feeding_pu[:, None] * feeding
    f_p[:, 1 : n + 1] -= D
    f_q[:, n + 1 :] -= D
    return np.array([v, f_p, f_q])


NETS = {"case33bw": pn.case33bw, "village": village, "feeder": lambda: feeder(60, seed=3)}


@pytest.mark.parametrize("name", NETS)
def test_the_sparse_system_is_the_dense_one(name):
    network = network_of(NETS[name]())
    n, s = len(network.buses), network.s_base_mva
    v, f_p, f_q = dense(network)
    close = {"rtol": 1e-10, "atol": 1e-12}
    for ratio in (1.0, 0.97):
        base = network.state(np.zeros(n), np.zeros(n), ratio)
        for given, expected in zip(base, (v, s * f_p, s * f_q), strict=True):
            np.testing.assert_allclose(given, ratio**2 * expected[:, 0], **close)
    np.testing.assert_allclose(network.v2_base, v[:, 0], **close)
    np.testing.assert_allclose(network.p_base, s * f_p[:, 0], **close)
    np.testing.assert_allclose(network.q_base, s * f_q[:, 0], **close)
    mw, mvar = slice(1, n + 1), slice(n + 1, None)
    expected = (v[:, mw] / s, v[:, mvar] / s, -f_p[:, mw], -f_p[:, mvar], -f_q[:, mw], -f_q[:, mvar])
    for given, right in zip(network.sensitivities(network.buses), expected, strict=True):
        np.testing.assert_allclose(given, right, **close)
    everything = np.arange(n)
    rows = (*network.v2_gradient(everything), *network.flow_gradient(everything))
    for given, right in zip(rows, expected, strict=True):
        np.testing.assert_allclose(given, right, **close)
    dense_names = ("v2_per_mw", "v2_per_mvar", "p_per_mw", "p_per_mvar", "q_per_mw", "q_per_mvar")
    for attribute, right in zip(dense_names, expected, strict=True):
        np.testing.assert_allclose(getattr(network, attribute), right, **close)


def test_the_village_has_everything():
    """So that the comparison above looks at every term."""
    network = network_of(village())
    assert network.admits
    for varied in ("gain_before", "gain_behind", "g_feeding_pu", "b_feeding_pu", "g_pu", "b_pu", "r_pu"):
        assert len(set(getattr(network, varied))) > 1, varied
    assert (network.x_pu == 0).any()  # the switch
    assert network.s_base_mva == 2.5


def test_some_sensitivities_are_columns_of_all():
    network = network_of(village())
    some = [network.buses[3], network.slack, network.buses[0], network.buses[3]]
    for part, whole in zip(network.sensitivities(some), network.sensitivities(network.buses), strict=True):
        expected = whole[:, [3, 3, 0, 3]]
        expected[:, 1] = 0.0  # the slack bus takes what is injected there
        np.testing.assert_array_equal(part, expected)
    gradient = network.flow_gradient(np.array([4, 1]))
    np.testing.assert_allclose(gradient[0], network.p_per_mw[[4, 1]], rtol=1e-10, atol=1e-13)
    with pytest.raises(KeyError, match="no bus 'nowhere'"):
        network.sensitivities(["nowhere"])


def test_a_transformer_at_the_slack_bus_scales_like_the_source():
    """All but what it draws at the slack bus itself."""
    net = transformer(tap_pos=0)
    net.trafo["pfe_kw"], net.trafo["i0_percent"] = 2.0, 1.0
    plain = network_of(net)
    net.trafo["tap_pos"] = -2
    tapped = network_of(net)
    p, q = np.array([-0.1]), np.array([-0.05])
    ratio = 1 / 0.95
    assert tapped.v2(p, q)[0] == pytest.approx(plain.v2(p, q, ratio)[0], rel=1e-12)
    g_end = tapped.g_pu[0]  # of the end at the low-voltage bus
    assert tapped.flow(p, q)[0][0] - g_end * tapped.v2(p, q)[0] == pytest.approx(
        0.1 + tapped.g_feeding_pu[0] * 1.01**2, rel=1e-9
    )
    assert tapped.g_feeding_pu[0] == pytest.approx(plain.g_feeding_pu[0] / 0.95**2)


def test_what_is_no_tree_is_refused():
    one = {"slack": "0", "buses": ("1", "2"), "branches": ("a", "b"), "r_pu": [0.1], "x_pu": [0.1]}
    network = Network(**one, feeder=[SLACK, 0], rating_mva=[np.inf])
    assert network.r_pu.shape == network.rating_mva.shape == (2,)
    with pytest.raises(ValueError, match="bus 1 is not fed by the slack bus"):
        Network(**one, feeder=[1, 0], rating_mva=[np.inf])
    with pytest.raises(ValueError, match=r"a feeder is not in -1\.\.1"):
        Network(**one, feeder=[SLACK, 2], rating_mva=[np.inf])
    with pytest.raises(ValueError, match=r"rating_mva has shape \(3,\) for 2 buses"):
        Network(**one, feeder=[SLACK, 0], rating_mva=np.ones(3))


def test_a_network_without_buses_has_no_state():
    network = Network("0", (), (), [], [], [], [])
    none = np.zeros(0)
    assert [len(x) for x in network.state(none, none)] == [0, 0, 0]
    assert network.sensitivities(["0"]).v2_per_mw.shape == (0, 1)


def test_a_long_chain_is_solved_and_not_made_dense():
    """Depth of the tree is no trouble: 6,000 buses in a row, against sums along the line."""
    n = 6000
    network = Network(
        "0", tuple(map(str, range(1, n + 1))), tuple(f"line:{i}" for i in range(n)), np.arange(-1, n - 1),
        np.full(n, 1e-6), np.full(n, 2e-6), np.full(n, np.inf),
    )  # fmt: skip
    p = np.full(n, -1e-3)
    v2, f_p, f_q = network.state(p, 0.5 * p)
    through = -np.cumsum(p[::-1])[::-1]
    np.testing.assert_allclose(f_p, through, rtol=1e-10)
    np.testing.assert_allclose(f_q, 0.5 * through, rtol=1e-10)
    np.testing.assert_allclose(v2, 1 - 2 * np.cumsum(2e-6 * through), rtol=1e-10)
    assert n * n > DENSE
    with pytest.raises(ValueError, match=r"6000 buses make 6000 x 6000 .* ask `sensitivities`"):
        _ = network.v2_per_mw


def test_linear_equals_ac_without_losses():
    net = pn.case33bw()
    net.line[["r_ohm_per_km", "x_ohm_per_km"]] *= 1e-4
    network = network_of(net)
    rng = np.random.default_rng(2)
    p, q = rng.uniform(-0.25, 0.25, (2, 20, 32))
    engine, flows, v = ac(net, network, p, q)
    columns = [engine.branches.index(name) for name in network.branches]
    for case in range(20):
        drop = 1 - v[case] ** 2
        np.testing.assert_allclose(1 - network.v2(p[case], q[case]), drop, atol=1e-3 * abs(drop).max())
        f_p, f_q = network.flow(p[case], q[case])
        np.testing.assert_allclose(f_p, flows.p_mw[case, columns], atol=1e-4)
        np.testing.assert_allclose(f_q, flows.q_mvar[case, columns], atol=1e-4)


@pytest.mark.parametrize("feed", ["hv", "lv"])
def test_transformer_tap_by_hand(feed):
    network = network_of(transformer(tap_pos=-2, feed=feed))
    tau2 = 0.95**2
    r, x = 0.01 / 0.4, np.sqrt(0.05**2 - 0.01**2) / 0.4  # at 1 MVA
    p, q = -0.12, 0.03
    if feed == "hv":
        expected = 1.01**2 / tau2 + 2 * (r * p + x * q)
    else:
        expected = tau2 * (1.01**2 + 2 * (r * p + x * q))
    assert network.branches == ("trafo:0",)
    assert network.v2(np.array([p]), np.array([q]))[0] == pytest.approx(expected, rel=1e-12)
    assert network.rating_mva[0] == pytest.approx(0.4)


def test_shunt_by_hand():
    net = two_buses()
    pp.create_shunt(net, 1, q_mvar=-1.5, p_mw=0.2)
    network = network_of(net)
    r, x, g, b = 2 / 400, 1 / 400, 0.2, 1.5
    p, q = np.array([-0.7]), np.array([-0.3])
    v = (1.02**2 + 2 * (r * p[0] + x * q[0])) / (1 + 2 * (r * g - x * b))
    assert network.v2(p, q)[0] == pytest.approx(v, rel=1e-12)
    f_p, f_q = network.flow(p, q)
    assert f_p[0] == pytest.approx(0.7 + g * v, rel=1e-12)
    assert f_q[0] == pytest.approx(0.3 - b * v, rel=1e-12)


def test_charging_by_hand():
    net = two_buses(c_nf_per_km=4000.0)
    network = network_of(net)
    x, half = 1 / 400, 2 * np.pi * 50 * 4000e-9 * 400 / 2
    v = 1.02**2 / (1 - 2 * x * half)
    assert network.v2_base[0] == pytest.approx(v, rel=1e-12)
    # what enters the line feeds the charging at both of its ends
    assert network.q_base[0] == pytest.approx(-half * (v + 1.02**2), rel=1e-12)


def test_parallel_and_derated_line():
    one, two = two_buses(), two_buses(parallel=2, df=0.9)
    a, b = network_of(one), network_of(two)
    assert a.rating_mva[0] == pytest.approx(np.sqrt(3) * 20 * 0.2)
    assert b.rating_mva[0] == pytest.approx(np.sqrt(3) * 20 * 0.2 * 2 * 0.9)
    assert b.v2_per_mw[0, 0] == pytest.approx(a.v2_per_mw[0, 0] / 2)


def test_placeholder_rating_is_no_rating():
    for placeholder in (99999.0, np.nan):
        assert np.isinf(network_of(two_buses(max_i_ka=placeholder)).rating_mva[0])


def test_sensitivities_equal_finite_differences_of_ac():
    """Several voltage levels, taps, magnetising and charging: at no load only second-order terms are lost."""
    net = pn.create_cigre_network_mv()
    net.switch.loc[net.switch.et == "l", "closed"] = False
    network = network_of(net)
    n, h = len(network.buses), 1e-3
    zero = np.zeros((1, n))
    _, _, v_0 = ac(net, network, zero, zero)
    _, _, v_p = ac(net, network, h * np.eye(n), np.zeros((n, n)))
    _, _, v_q = ac(net, network, np.zeros((n, n)), h * np.eye(n))
    np.testing.assert_allclose(np.sqrt(network.v2_base), v_0[0], atol=3e-4)
    for given, v in ((network.v2_per_mw, v_p), (network.v2_per_mvar, v_q)):
        numeric = (v**2 - v_0**2).T / h
        np.testing.assert_allclose(given, numeric, rtol=0.05, atol=0.02 * abs(numeric).max())


def test_meshed_is_refused_and_names_the_loop():
    net = pn.case33bw()
    net.line.loc[33, "in_service"] = True  # joins buses 8 and 14
    with pytest.raises(NetworkRefused, match="not radial") as refused:
        network_of(net)
    text = str(refused.value)
    named = set(text.split("radial: ")[1].split(" form")[0].split(", "))
    assert named == {f"line:{i}" for i in (8, 9, 10, 11, 12, 13, 33)}
    advice = text.split("e.g. ")[1].removesuffix(" = False")
    name, index = advice.removeprefix("net.").split(".in_service.at")
    net[name].loc[int(index.strip("[]")), "in_service"] = False
    assert len(network_of(net).buses) == 32


def test_fused_buses_are_all_there():
    net = pn.case33bw()
    beyond, twin, busbar = (pp.create_bus(net, 12.66) for _ in range(3))
    pp.create_switch(net, 17, beyond, et="b")
    pp.create_switch(net, beyond, twin, et="b")
    pp.create_switch(net, twin, 17, et="b")  # a ring of switches is one bus, not a loop
    pp.create_switch(net, busbar, 0, et="b")
    network, plain = network_of(net), network_of(pn.case33bw())
    assert set(network.buses) == {str(i) for i in range(1, 36)}
    assert network.branches[at(network, str(busbar))] == "switch:3"
    p, q = np.zeros(35), np.zeros(35)
    i17, i_beyond = at(network, "17"), at(network, str(beyond))
    p[i17], p[i_beyond], q[i_beyond] = -0.1, 0.3, 0.1
    p[at(network, str(busbar))] = -5.0
    v = network.v2(p, q)
    assert v[i17] == v[i_beyond] == pytest.approx(v[at(network, str(twin))])
    assert v[at(network, str(busbar))] == pytest.approx(1.0)
    reference = plain.v2(0.2 * np.eye(32)[16], 0.1 * np.eye(32)[16])
    np.testing.assert_allclose(v[:32], reference, rtol=1e-12)
    f_p, f_q = network.flow(p, q)
    assert f_p[i17] == pytest.approx(-0.2)
    assert f_q[i17] == pytest.approx(-0.1)
    # what the switches carry is what is injected beyond them
    beyond_flow = [i for i in (i_beyond, at(network, str(twin))) if network.branches[i].startswith("switch")]
    assert sum(f_p[i] for i in beyond_flow if network.branches[i] != "switch:3") == pytest.approx(-0.3)


def test_line_beyond_a_fused_bus_loads_the_switch():
    net = two_buses()
    near, far = pp.create_bus(net, 20.0), pp.create_bus(net, 20.0)
    pp.create_switch(net, 1, near, et="b")
    pp.create_line_from_parameters(net, near, far, 1.0, 2.0, 1.0, 0.0, 0.2)
    network = network_of(net)
    f_p, _ = network.flow(-np.array([0.1, 0.2, 0.4]), np.zeros(3))
    assert dict(zip(network.branches, f_p, strict=True)) == pytest.approx(
        {"line:0": 0.7, "switch:0": 0.6, "line:1": 0.4}
    )


def test_switch_with_an_impedance_is_a_branch():
    net = two_buses()
    far = pp.create_bus(net, 20.0)
    pp.create_switch(net, 1, far, et="b", z_ohm=0.5)
    network = network_of(net)
    assert network.branches == ("line:0", "switch:0")
    drop = network.v2_per_mw[1, 1] - network.v2_per_mw[0, 0]
    assert drop == pytest.approx(2 * 0.5 * 2 / np.sqrt(5) / 400)  # z = r + jx with r = 2 x


def test_open_ended_line_keeps_its_charging():
    net = two_buses()
    far = pp.create_bus(net, 20.0)
    pp.create_line_from_parameters(net, 1, far, 10.0, 0.2, 0.1, 300.0, 0.2)
    closed = network_of(net)
    pp.create_switch(net, far, 1, et="l", closed=False)
    network = network_of(net)
    assert network.buses == ("1",)
    assert network.branches == ("line:0",)
    assert per_unit(net).isolated == (str(far),)
    # the cable's charging still flows through the line before it
    assert network.q_base[0] == pytest.approx(closed.q_base[0], rel=1e-3)
    assert network.q_base[0] < -0.3
    _, _, v = ac(net, network, np.zeros((1, 1)), np.zeros((1, 1)))
    assert v[0, 0] > 1.0209
    assert np.sqrt(network.v2_base[0]) == pytest.approx(v[0, 0], abs=5e-6)


def test_transformer_without_load_keeps_its_iron_losses():
    net = transformer(tap_pos=-2)
    net.trafo["pfe_kw"], net.trafo["i0_percent"] = 2.0, 1.0
    feed = pp.create_bus(net, 20.0)
    net.ext_grid["bus"] = feed
    pp.create_line_from_parameters(net, feed, 0, 1.0, 2.0, 1.0, 0.0, 0.2)
    pp.create_switch(net, 1, 0, et="t", closed=False)
    network = network_of(net)
    assert network.branches == ("line:0",)
    # pandapower's magnetising admittance lies behind the tap: 0.95 of the rated ratio
    v = network.v2_base[0] / 0.95**2
    assert network.p_base[0] == pytest.approx(0.002 * v, rel=1e-3)
    assert network.q_base[0] == pytest.approx(np.sqrt(0.004**2 - 0.002**2) * v, rel=1e-3)


def test_isolated_bus_with_a_load_is_refused():
    net = pn.case33bw()
    net.line.loc[16, "in_service"] = False  # feeds bus 17
    with pytest.raises(NetworkRefused, match=r"bus 17 has load:16 but no path to the slack bus 0"):
        network_of(net)
    net.load.loc[16, "in_service"] = False
    network = network_of(net)
    assert len(network.buses) == 31
    assert "17" not in network.buses


REFUSALS = {
    "gen 0 is a generator": lambda net: pp.create_gen(net, 1, p_mw=0.1),
    "impedance 0 is an impedance": lambda net: pp.create_impedance(net, 0, 1, 0.1, 0.1, 1.0),
    "xward 0 is an extended ward": lambda net: pp.create_xward(net, 1, 0, 0, 0, 0, 0.1, 0.1, 1.0),
    "dcline 0 is a DC line": lambda net: pp.create_dcline(net, 0, 1, 0.1, 0.0, 0.0, 1.0, 1.0),
    "2 external grids are in service .at buses .0, 1.": lambda net: pp.create_ext_grid(net, 1),
    "0 external grids": lambda net: net.ext_grid.drop(0, inplace=True),
    "external grid is at bus 0, which is not in service": lambda net: net.bus.__setitem__(
        "in_service", False
    ),
}


@pytest.mark.parametrize("message", REFUSALS)
def test_refused_by_name(message):
    net = two_buses()
    REFUSALS[message](net)
    with pytest.raises(NetworkRefused, match=message):
        network_of(net)


def test_three_windings_are_refused_only_in_service():
    net = pn.example_multivoltage()
    with pytest.raises(NetworkRefused, match=r"gen 0 is a generator"):
        network_of(net)
    net.gen.loc[:, "in_service"] = False
    net.impedance.loc[:, "in_service"] = False
    net.xward.loc[:, "in_service"] = False
    with pytest.raises(NetworkRefused, match=r"trafo3w 0 is a three-winding transformer"):
        network_of(net)


def test_the_net_is_left_as_it_is():
    net = pn.case33bw()
    before = copy.deepcopy(net)
    network_of(net)
    assert nets_equal(net, before)
    assert set(net.keys()) == set(before.keys())
