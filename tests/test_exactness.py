"""When the relaxation is exact: condition C1, and the relaxation that burns power where it is not bound."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from controllers import Network, Site
from controllers.interchange.branch_flow import BranchFlow
from controllers.interchange.checks import BoxCheck
from controllers.interchange.correction import InterchangeCorrection
from controllers.interchange.exactness import check_c1
from controllers.interchange.question import Case, Corrected, Tighter
from controllers.interchange.repair import GAP, Repair
from simulators.power_flow import PandapowerEngine
from tests.interchange_cases import reference_site
from tests.jabr import Anew, correct
from tests.test_branch_flow import loads

Array = npt.NDArray[np.float64]
BUSES = ("17", "24", "32")


def three(r: Array, x: Array) -> Network:
    """Slack bus, a, b in a row."""
    return Network(
        slack="s", buses=("a", "b"), branches=("line:0", "line:1"), feeder=np.array([-1, 0]),
        r_pu=r, x_pu=x, rating_mva=np.full(2, np.inf),
    )  # fmt: skip


def test_A10_C1_of_three_buses_by_hand() -> None:
    # 2 MW and 1 Mvar from b: both branches carry (2, 1) backwards. u_1 = (.1, .05), u_2 = (.04, .08).
    # A_1 u_2 = u_2 - 2 / .81 * u_1 (2 * .04 + 1 * .08) = (.04, .08) - .395062 (.1, .05) = (.000494, .060247)
    network = three(np.array([0.1, 0.04]), np.array([0.05, 0.08]))
    p, q = np.array([0.0, 2.0]), np.array([0.0, 1.0])
    found = check_c1(network, p, q, 0.9)
    factor = 2 / 0.81 * 0.16
    assert found.margin == pytest.approx((0.04 - factor * 0.1) / 0.04, abs=1e-12)
    assert (found.from_branch, found.at_branch, found.holds) == ("line:1", "line:0", True)
    # one per cent more power, and the first component is negative
    worse = check_c1(network, 1.02 * p, 1.02 * q, 0.9)
    assert worse.margin == pytest.approx((0.04 - 1.02 * factor * 0.1) / 0.04, abs=1e-12)
    assert not worse.holds
    # only what flows towards the source counts: with a consumer of 3 MW at a, line:0 carries 1 Mvar backwards
    eased = check_c1(network, np.array([-3.0, 2.0]), q, 0.9)
    assert eased.margin == pytest.approx((0.04 - 2 / 0.81 * 0.08 * 0.1) / 0.04, abs=1e-12)


def test_C1_without_reverse_flow_always_holds() -> None:
    site = reference_site()
    p, q = loads(site)
    assert check_c1(site.network, p, q, 0.9).margin == 1.0
    assert check_c1(three(np.zeros(2), np.zeros(2)), np.ones(2), np.ones(2), 0.9).from_branch is None


@pytest.mark.parametrize(
    ("each_mw", "margin", "holds"), [(0.8, 0.824, True), (3.2, 0.365, True), (6.4, -0.106, False)]
)
def test_C1_of_the_reference_feeder(each_mw: float, margin: float, holds: bool) -> None:
    """Three microgrids on the feeder without its loads; the figures are those of an independent loop."""
    network = reference_site().network
    p = network.total(BUSES, [each_mw] * 3)
    found = check_c1(network, p, np.zeros_like(p), 0.95)
    assert found.margin == pytest.approx(margin, abs=5e-4)
    assert found.holds is holds
    assert found.margin == pytest.approx(slow_c1(network, p, 0.95), abs=1e-12)


def slow_c1(network: Network, p_mw: Array, v_min: float) -> float:
    """The same from products of matrices, path by path and branch by branch."""
    r, x = network.r_pu / network.s_base_mva, network.x_pu / network.s_base_mva
    downstream = np.eye(len(p_mw))
    for i in reversed(range(len(p_mw))):
        k = i
        while (k := int(network.feeder[k])) >= 0:
            downstream[k, i] = 1.0
    reverse = np.maximum(downstream @ p_mw, 0.0)
    margins = []
    for t in range(len(p_mw)):
        product, k = np.eye(2), t
        while True:
            margins.append(float((product @ [r[t], x[t]] / [r[t], x[t]]).min()))
            if (k := int(network.feeder[k])) < 0:
                break
            product = (np.eye(2) - 2 / v_min**2 * np.outer([r[k], x[k]], [reverse[k], 0.0])) @ product
    return min(margins)


def stressed() -> tuple[Site, Array, Array, Array, Array, Array]:
    """Source at 1.02 pu, 60 % load, and predictions of 3 times the microgrids' usual exports."""
    site = reference_site()
    site = replace(site, network=replace(site.network, v2_slack=1.02**2))
    p, q = loads(site, 0.6)
    return site, p, q, np.array([0.2, 0.1, 0.3]), np.full(3, -0.2), 3 * np.array([0.3743, 0.2553, 0.4742])


def as_answer(found: Anew) -> Corrected:
    """One interval of it, with the network's battery at rest."""
    none = np.zeros((1, 1))
    return Corrected(
        base=found.base[None], dn=found.dn[None], up=found.up[None], q_mvar=found.q_mvar[None], p_b=none,
        q_b=none, e_mwh=none, burnt=none, reserve_mw=np.full((1, 2), np.inf), gap=found.gap,
    )  # fmt: skip


def engine_at(v_pu: float) -> PandapowerEngine:
    import pandapower.networks as pn

    net = pn.case33bw()
    net.ext_grid["vm_pu"] = v_pu
    return PandapowerEngine(net)


@pytest.mark.parametrize("import_mw", [None, (-0.5, 5.0)], ids=["upper voltage", "limit of back-feed"])
def test_A9_the_naive_relaxation_burns_power_and_is_refused(import_mw: tuple[float, float] | None) -> None:
    site, p, q, plan, low, high = stressed()
    if import_mw is not None:
        high = 2.5 * high
    at = np.array([site.network.index(bus) for bus in BUSES])
    naive = correct(
        site.network, at, p, q, plan, low, high, v_pu=(0.95, 1.05), import_mw=import_mw, naive=True
    )
    assert naive.gap > 1
    assert naive.up == pytest.approx(high, abs=1e-3)  # it accepts everything
    engine = engine_at(1.02)
    controller = InterchangeCorrection(replace(site, power_flow=engine), horizon=1, slack_mw=import_mw)
    model = controller.program.model
    case = Case(
        p[None], q[None], np.zeros(1), plan[None], low[None], high[None], np.zeros((1, 2, 3)),
        np.full((1, 3), -0.3), np.full((1, 3), 0.3), np.array([0.6]),
    )  # fmt: skip
    refused = BoxCheck(model, engine, 20).examine(engine, case, as_answer(naive))
    assert not refused.holds[0]
    assert refused.v_high.max() > 0.02 if import_mw is None else refused.imported[0, 0] > 1.0
    # what the true program gives instead is tight, holds, and is as wide as the same model stated anew
    mine = controller.program.solve(case, Tighter.nothing(1, model.flow.n, 1, 1e-3))
    assert mine.gap < GAP
    assert BoxCheck(model, engine, 20).examine(engine, case, mine).holds[0]
    assert mine.up.sum() < naive.up.sum() - 0.1


def test_the_gap_of_a_relaxation_that_cheats_is_seen_by_the_repair() -> None:
    """A program whose twin is out of reach behaves as the naive one, and is not released as it is."""
    site, p, q, plan, low, high = stressed()
    engine = engine_at(1.02)
    controller = InterchangeCorrection(replace(site, power_flow=engine), horizon=1)
    program = controller.program
    case = Case(
        p[None], q[None], np.zeros(1), plan[None], low[None], high[None], np.zeros((1, 2, 3)),
        np.full((1, 3), -0.3), np.full((1, 3), 0.3), np.array([0.6]),
    )  # fmt: skip
    honest = program.right

    def without_twin(case: Case, tighter: Tighter) -> dict[str, Array]:
        right = honest(case, tighter)
        return right | {"twin voltage": right["twin voltage"] + 1.0 + tighter.v_high}

    program.right = without_twin  # type: ignore[method-assign]
    verdict = Repair(program, BoxCheck(program.model, engine, 20), polish=True).best(engine, case)
    assert verdict.origin == "repaired"
    assert verdict.answer is not None
    assert verdict.factor[0] < 1  # bisected, since tightening the missing rows changed nothing
    assert (
        BranchFlow(site.network)
        .solve(
            p[None] + site.network.total(BUSES, verdict.answer.up[0]),
            q[None] + site.network.total(BUSES, verdict.answer.q_mvar[0]),
        )
        .v.max()
        < 1.0501**2
    )
