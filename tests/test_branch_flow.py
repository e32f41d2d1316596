"""The branch flow equations against the AC power flow, Jabr's form, and what their lossless twin promises."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pandapower as pp
import pandapower.networks as pn
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pandapower.auxiliary import pandapowerNet

from controllers import Network, Site
from controllers.interchange.branch_flow import BranchFlow
from simulators.network import network_of
from simulators.power_flow import PandapowerEngine
from tests.envelope_cases import trees
from tests.interchange_cases import reference_site
from tests.jabr import jabr

Array = npt.NDArray[np.float64]


def loads(site: Site, scale: float = 1.0) -> tuple[Array, Array]:
    """(n,) injections of a site's loads."""
    each, network = site.loads.values(), site.network
    buses = [load.bus for load in each]
    p, q = [load.p_mw for load in each], [load.q_mvar for load in each]
    return scale * network.total(buses, p), scale * network.total(buses, q)


def village() -> pandapowerNet:
    """A transformer off its nominal ratio, cables with charging, one of them backwards, and a shunt."""
    net = pp.create_empty_network(sn_mva=10.0)
    for kv in (20.0, 20.0, 0.4, 0.4):
        pp.create_bus(net, kv)
    pp.create_ext_grid(net, 0, vm_pu=1.01)
    pp.create_line_from_parameters(net, 0, 1, 6.0, 0.2, 0.12, 250.0, 0.3)
    pp.create_transformer(net, 1, 2, "0.63 MVA 20/0.4 kV")
    net.trafo["tap_pos"] = 2
    pp.create_line_from_parameters(net, 3, 2, 0.2, 0.2, 0.08, 260.0, 0.4)
    pp.create_shunt(net, 3, q_mvar=-0.05, p_mw=0.002)
    return net


def case33() -> pandapowerNet:
    return pn.case33bw()


@pytest.mark.parametrize("make", [case33, village], ids=["case33bw", "village"])
def test_its_state_is_that_of_the_AC_power_flow(make: object) -> None:
    net = make()  # type: ignore[operator]
    network, engine = network_of(net), PandapowerEngine(net)
    rng = np.random.default_rng(0)
    top = 0.3 if len(network.buses) > 10 else 0.1
    p, q = rng.uniform(-top, top, (2, 20, len(network.buses)))
    where = [engine.buses.index(bus) for bus in network.buses]
    both = np.zeros((2, 20, len(engine.buses)))
    both[0][:, where], both[1][:, where] = p, q
    truth = engine.solve(both[0], both[1])
    found = BranchFlow(network).solve(p, q)
    assert truth.converged.all()
    assert np.abs(np.sqrt(found.v) - truth.v_pu[:, where]).max() < 1e-8
    # line 0 is the only branch at the slack bus and begins there
    assert np.abs(found.import_mw - truth.p_mw[:, engine.branches.index("line:0")]).max() < 1e-6


def test_A8_branch_flow_and_jabr_agree_and_are_the_AC_power_flow() -> None:
    site = reference_site()
    p, q = loads(site)
    one, other = BranchFlow(site.network).solve(p[None], q[None]), jabr(site.network, p, q)
    assert other.gap < 1e-6
    assert one.import_mw[0] == pytest.approx(3.91767713, abs=1e-7)
    assert other.import_mw == pytest.approx(one.import_mw[0], abs=1e-6)
    assert np.abs(other.v_pu - np.sqrt(one.v[0])).max() < 1e-6
    engine = PandapowerEngine(pn.case33bw())
    both = np.zeros((2, 1, 33))
    where = [engine.buses.index(bus) for bus in site.network.buses]
    both[0][0, where], both[1][0, where] = p, q
    assert np.abs(other.v_pu - engine.solve(both[0], both[1]).v_pu[0, where]).max() < 1e-6


def test_the_lossless_twin_is_the_linear_model() -> None:
    network = network_of(village())
    p, q = np.random.default_rng(1).uniform(-0.1, 0.1, (2, 3))
    twin = BranchFlow(network).lossless(p[None], q[None])
    v2, flow_p, _ = network.state(p, q)
    assert twin.v[0] == pytest.approx(v2, abs=1e-12)
    assert twin.import_mw[0] == pytest.approx(flow_p[network.feeder < 0].sum(), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(trees(buses=(3, 40)), st.integers(0, 2**31), st.floats(0.1, 1.5))
def test_the_twin_bounds_the_truth(site: Site, seed: int, size: float) -> None:
    flow = BranchFlow(site.network)
    load_p, load_q = loads(site, size)
    rng = np.random.default_rng(seed)
    p = load_p + np.abs(load_p).sum() / flow.n * rng.uniform(-1, 3, (5, flow.n))
    q = load_q + np.abs(load_q).sum() / flow.n * rng.uniform(-1, 1, (5, flow.n))
    truth, twin = flow.solve(p, q), flow.lossless(p, q)
    solved = np.isfinite(truth.import_mw)
    assert (twin.v[solved] >= truth.v[solved] - 1e-12).all()
    assert (twin.import_mw[solved] <= truth.import_mw[solved] + 1e-9).all()


def test_the_twin_bounds_the_truth_with_admittances_and_a_transformer() -> None:
    flow = BranchFlow(network_of(village()))
    p, q = np.random.default_rng(2).uniform(-0.2, 0.2, (2, 50, 3))
    truth, twin = flow.solve(p, q), flow.lossless(p, q)
    assert np.isfinite(truth.import_mw).all()
    assert (twin.v >= truth.v).all()
    assert (twin.import_mw <= truth.import_mw).all()


def test_a_case_without_a_solution_is_missing() -> None:
    flow = BranchFlow(reference_site().network)
    p = np.zeros((2, flow.n))
    p[1, 16] = -50.0
    state = flow.solve(p, np.zeros_like(p))
    assert np.isfinite(state.import_mw).tolist() == [True, False]


def test_a_raised_source_is_a_raised_slack_voltage() -> None:
    site = reference_site()
    p, q = (x[None] for x in loads(site))
    ratio = BranchFlow(site.network).solve(p, q, 1.02**2)
    moved = BranchFlow(replace(site.network, v2_slack=1.02**2)).solve(p, q)
    assert np.array_equal(ratio.v, moved.v)
    assert np.array_equal(ratio.import_mw, moved.import_mw)


def test_the_responses_are_differences_of_the_twin() -> None:
    flow = BranchFlow(network_of(village()))
    none = np.zeros((1, flow.n))
    found = flow.responses(["3", "0"])
    one = flow.at(["3"]).toarray().T
    start = flow.lossless(none, none)
    for k, state in enumerate((flow.lossless(one, none), flow.lossless(none, one))):
        assert found.v[k][:, 0] == pytest.approx(state.v[0] - start.v[0], abs=1e-12)
        assert found.P[k][:, 0] == pytest.approx(state.P[0] - start.P[0], abs=1e-12)
        assert found.Q[k][:, 0] == pytest.approx(state.Q[0] - start.Q[0], abs=1e-12)
        assert found.import_mw[k][0, 0] == pytest.approx((state.import_mw - start.import_mw)[0], abs=1e-12)
        assert not found.v[k][:, 1].any()  # the slack bus's own injection moves nothing behind it


def chain(**changes: object) -> Network:
    """Three buses in a row."""
    given = {
        "slack": "s", "buses": ("a", "b"), "branches": ("line:0", "line:1"), "feeder": np.array([-1, 0]),
        "r_pu": np.array([0.01, 0.01]), "x_pu": np.array([0.01, 0.02]), "rating_mva": np.full(2, np.inf),
    }  # fmt: skip
    return Network(**(given | changes))  # type: ignore[arg-type]


def test_networks_for_which_the_bounds_do_not_hold_are_refused() -> None:
    with pytest.raises(ValueError, match=r"reactance of line:1 is -0\.02 per MVA.*series capacitors"):
        BranchFlow(chain(x_pu=np.array([0.01, -0.02])))
    with pytest.raises(ValueError, match="resistance of line:0"):
        BranchFlow(chain(r_pu=np.array([-0.01, 0.01])))
    # A capacitor near resonance with the line: more injection lowers the voltage.
    with pytest.raises(ValueError, match="moves voltages the wrong way"):
        BranchFlow(chain(b_pu=np.array([0.0, 60.0])))


def test_it_does_not_depend_on_the_networks_base() -> None:
    p, q = np.array([[0.3, -0.8]]), np.array([[0.1, -0.2]])
    one = BranchFlow(chain()).solve(p, q)
    other = BranchFlow(chain(s_base_mva=100.0, r_pu=np.array([1.0, 1.0]), x_pu=np.array([1.0, 2.0]))).solve(
        p, q
    )
    assert other.v == pytest.approx(one.v, rel=1e-12)
    assert other.import_mw == pytest.approx(one.import_mw, rel=1e-12)
