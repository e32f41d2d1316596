"""The whole problem against the seed's published results, a second formulation, and the AC power flow."""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np
import numpy.typing as npt
import pandapower as pp
import pytest

from controllers.partnership.central import Central, CentralOptimum
from tests import partnership_oracle as oracle
from tests.partnership_feeders import Case, seed_case, small_case

Array = npt.NDArray[np.float64]
SCIP = importlib.util.find_spec("pyscipopt")
TABLE = Path(__file__).parent / "data" / "table_a6.csv"


@pytest.fixture(scope="module")
def seed() -> Case:
    return seed_case()


@pytest.fixture(scope="module")
def best(seed: Case) -> CentralOptimum:
    return seed.central.whole(seed.conditions())


ANCHORS = [
    (1, 2, 150.0, 363.532611, 364.312292),
    (1, 2, 250.0, 599.570790, 605.418842),
    (3, 3, 79.88126366606, 773.152476, 773.587101),
]


@pytest.mark.parametrize(("intervals", "microgrids", "price", "without", "with_bits"), ANCHORS)
def test_B6_anchors_on_33_buses(
    intervals: int, microgrids: int, price: float, without: float, with_bits: float
) -> None:
    case = small_case(intervals, microgrids)
    conditions = case.conditions(price)
    loose, whole = case.central.relaxed(conditions), case.central.whole(conditions)
    assert loose.value == pytest.approx(without, rel=5e-8)
    assert whole.value == pytest.approx(with_bits, rel=5e-8)
    for found in (loose, whole):
        assert found.bound <= found.value <= found.bound + 1e-6 * found.value
        parts = found.operation.cost + sum(point.cost for point in found.points)
        assert found.value == pytest.approx(parts, rel=1e-9)


@pytest.mark.parametrize(("intervals", "microgrids", "price", "without", "with_bits"), ANCHORS)
def test_the_relaxation_equals_a_second_formulation(
    intervals: int, microgrids: int, price: float, without: float, with_bits: float
) -> None:
    case = small_case(intervals, microgrids)
    problem = case.whole(price, bits=False).problem
    problem.solve(solver=cp.CLARABEL)
    assert case.central.relaxed(case.conditions(price)).value == pytest.approx(problem.value, rel=1e-7)


def test_whole_bits_are_the_best_of_all_patterns() -> None:
    case = small_case(2, 2)
    conditions = case.conditions(200.0)
    values = []
    for pattern in np.ndindex(*[2] * 4):
        bits = np.array(pattern, dtype=float)
        values.append(case.central.held(conditions, [bits[:2], bits[2:]]).value)
    best = case.central.whole(conditions)
    assert best.value == pytest.approx(min(values), rel=1e-8)
    held = case.central.held(conditions, [point.bits for point in best.points if point.bits is not None])
    assert held.value == pytest.approx(best.value, rel=1e-8)
    assert max(values) > min(values) * 1.001


def outer(case: Case, price: float) -> float:
    return case.central.whole(case.conditions(price)).value


@pytest.mark.skipif(SCIP is None, reason="pyscipopt, a second mixed-integer solver, is not installed")
class TestB7AgainstScip:
    """The other solver has the second formulation."""

    def second(self, case: Case, price: float) -> float:
        whole = case.whole(price, bits=True)
        value: Any = whole.problem.solve(solver=cp.SCIP, scip_params={"limits/gap": 1e-7})
        assert whole.problem.status == cp.OPTIMAL
        return float(value)

    @pytest.mark.parametrize(("intervals", "microgrids", "price", "without", "with_bits"), ANCHORS)
    def test_B7_on_33_buses(
        self, intervals: int, microgrids: int, price: float, without: float, with_bits: float
    ) -> None:
        case = small_case(intervals, microgrids)
        assert outer(case, price) == pytest.approx(self.second(case, price), rel=1e-5)

    @pytest.mark.slow
    @pytest.mark.parametrize("price", [80.0, 103.0])
    def test_B7_on_123_buses(self, seed: Case, price: float) -> None:
        assert outer(seed, price) == pytest.approx(self.second(seed, price), rel=1e-5)


def test_B9_the_cones_are_tight_and_the_AC_power_flow_is_the_same(seed: Case, best: CentralOptimum) -> None:
    operation, scale = best.operation, oracle.LOAD
    assert operation.gap < 1e-5
    assert not (operation.curtailed_mw > 1e-6).any()
    net, own = seed_case().net, {one.bus for one in seed.figures}
    nominal = net.load[["p_mw", "q_mvar"]].to_numpy().copy()
    kept = ~net.load.bus.astype(str).isin(own).to_numpy()
    grids = [pp.create_sgen(net, int(one.bus), 0.0) for one in seed.figures]
    svcs = [pp.create_sgen(net, int(bus), 0.0) for bus in seed.svc_mvar]
    where = [int(bus) for bus in seed.network.buses]
    for t in range(6):
        net.load[["p_mw", "q_mvar"]] = nominal * scale[t] * kept[:, None]
        net.sgen.loc[grids, "p_mw"], net.sgen.loc[grids, "q_mvar"] = operation.p_mw[t], operation.q_mvar[t]
        net.sgen.loc[svcs, "q_mvar"] = operation.svc_mvar[t]
        pp.runpp(net, tolerance_mva=1e-11, numba=False)
        assert operation.v_pu[t] == pytest.approx(net.res_bus.vm_pu.loc[where].to_numpy(), abs=1e-7)
        assert operation.import_mw[t] == pytest.approx(net.res_ext_grid.p_mw.sum(), abs=2e-6)
        assert operation.import_mvar[t] == pytest.approx(net.res_ext_grid.q_mvar.sum(), abs=2e-6)


QUANTITIES = {
    "dg_p_kw": ("P_DG", 0.6),
    "dg_q_kvar": ("Q_DG", 0.6),
    "re_p_kw": ("P_RE", 0.11),
    "re_q_kvar": ("Q_RE", 0.11),
    "ess_p_kw": ("", 0.11),
}
"""Variable and tolerance of each quantity of the table [kW]."""


def cells(case: Case, found: CentralOptimum) -> Iterator[tuple[str, str, int, float, float, float]]:
    """Bus, quantity, interval, published and found value, tolerance."""
    number = {one.bus: i for i, one in enumerate(case.figures)}
    with TABLE.open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            i = number[row["bus"]]
            y, place = found.y[i], case.places[i]
            name, tolerance = QUANTITIES[row["quantity"]]
            kw = 1000 * (y[place[name]] if name else y[place["dis"]] - y[place["cha"]])
            for t in range(6):
                yield row["bus"], row["quantity"], t + 1, float(row[f"t{t + 1}"]), float(kw[t]), tolerance


def missed(case: Case, found: CentralOptimum) -> tuple[int, list[tuple[str, str, int]]]:
    """Number of cells, and which ones are not as published."""
    every = list(cells(case, found))
    return len(every), [(bus, what, t) for bus, what, t, want, is_, most in every if abs(want - is_) > most]


PRINTED_IN_ERROR = [("7", "dg_p_kw", 6)]
"""50 kW, which costs more than 100 kW and which nothing in the seed asks for."""


def test_B10_table_a6(seed: Case, best: CentralOptimum) -> None:
    number, wrong = missed(seed, best)
    print(f"table A.VI: {number - len(wrong)} of {number} cells as published, not {wrong}")
    assert number == 180
    assert wrong == PRINTED_IN_ERROR
    assert best.value == pytest.approx(1613.388, abs=5e-4)
    assert best.operation.import_mw == pytest.approx([2.618, 2.403, 2.143, 2.710, 1.980, 2.012], abs=6e-4)
    assert best.operation.v_pu.min() == pytest.approx(0.9719, abs=5e-5)
    assert best.operation.curtailed_mw.max() < 1e-6


@pytest.mark.parametrize("price", [102.2, 104.0])
def test_B10_the_table_holds_for_a_range_of_prices(seed: Case, price: float) -> None:
    """The utility's nominal price is not published: it follows from the table."""
    assert missed(seed, seed.central.whole(seed.conditions(price)))[1] == PRINTED_IN_ERROR


@pytest.mark.parametrize("price", [102.0, 104.2])
def test_B10_and_for_no_other(seed: Case, price: float) -> None:
    assert len(missed(seed, seed.central.whole(seed.conditions(price)))[1]) > 1


def test_B10_compensators_by_the_text_cost_less_but_are_not_those_of_the_table() -> None:
    case = seed_case(oracle.SVC_TEXT_MVAR)
    found = case.central.whole(case.conditions())
    assert found.value == pytest.approx(1612.943, abs=5e-4)
    wrong = missed(case, found)[1]
    assert ("96", "dg_q_kvar", 5) in wrong or ("96", "re_q_kvar", 5) in wrong


def test_B10_the_published_exception_would_cost_more(seed: Case, best: CentralOptimum) -> None:
    """Bus 7 at 50 kW in the last hour."""
    case = seed_case()
    at = case.places[0]["P_DG"].stop - 1
    case.blocks[0].y_high[at] = 0.05
    held = case.central.whole(case.conditions())
    assert held.value / best.value - 1 == pytest.approx(0.00092, abs=2e-5)


def test_blocks_have_to_fit() -> None:
    case = small_case(2, 2)
    with pytest.raises(ValueError, match="1 blocks for the microgrids"):
        Central(case.distribution, case.blocks[:1])
    with pytest.raises(ValueError, match="has 1 intervals, the feeder 2"):
        Central(case.distribution, [case.blocks[0], small_case(1, 2).blocks[1]])
