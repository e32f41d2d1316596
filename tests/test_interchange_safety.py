"""What was published in a rolled day of every scenario of interchange is safe, by an attack from outside."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from copy import deepcopy
from datetime import UTC, datetime
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pandapower as pp
import pandapower.networks as pn
import pytest

from scenarios.load import load, packaged
from scenarios.run import Exit
from simulators.journal import read
from tests.interchange_adversary import Allowed, Claim, Feeder, Worst, attack, attacks, violations
from tests.running import do

CORRECTION = "controllers.interchange.correction:InterchangeCorrection"


def corrected() -> list[str]:
    """The packaged scenarios whose microgrids are corrected."""
    return [
        name for name in packaged() if any(c["uses"] == CORRECTION for c in load(name).raw["controllers"])
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The folder of a run of each scenario, made when it is asked for."""

    class Runs(dict[str, Path]):
        def __missing__(self, name: str) -> Path:
            result = asyncio.run(do(name, tmp_path_factory.mktemp(name)))
            assert result.exit is Exit.HELD, result.why
            self[name] = result.directory
            return result.directory

    return Runs()


@cache
def found(run_dir: Path, kind: str) -> list[Worst]:
    return list(attacks(run_dir, kind=kind))


@pytest.mark.slow
@pytest.mark.parametrize("name", corrected())
def test_no_exchange_within_any_published_capability_breaks_a_limit(
    name: str, runs: Mapping[str, Path]
) -> None:
    each = found(runs[name], "aic")
    assert len(each) == 24
    assert {one.origin for one in each} <= {"certified", "repaired"}
    assert [one for one in each if one.violated] == []
    assert all(one.cases >= 2**3 + 200 for one in each)
    assert sum(one.width_mw for one in each) > 10.0  # and it is not safe for being empty


@pytest.mark.slow
@pytest.mark.parametrize("name", corrected())
def test_what_was_predicted_would_have_broken_limits_on_the_same_day(
    name: str, runs: Mapping[str, Path]
) -> None:
    """The same reactive power and batteries, every prediction available as it was."""
    predicted, available = found(runs[name], "pic"), found(runs[name], "aic")
    assert violations(predicted) >= 5
    assert max(one.under_v_pu for one in predicted) > 0.004
    # only where something was taken off
    assert all(p.width_mw > a.width_mw for p, a in zip(predicted, available, strict=True) if p.violated)


@pytest.mark.slow
def test_an_island_has_no_capability_while_the_others_have_theirs(runs: Mapping[str, Path]) -> None:
    rows = read(runs["ieee33-interchange-isolation"], "exchanges").to_pylist()
    away = [row for row in rows if not row["connected"]]
    assert [(row["microgrid"], row["time"].hour) for row in away] == [("mg2", h) for h in (14, 15, 16, 17)]
    assert {row["p_mw"] for row in away} == {0.0}
    assert sum(row["unserved_mw"] for row in rows) == 0.0
    width = {
        (r["microgrid"], r["time"].hour): r["aic_high_mw"] - r["aic_low_mw"] for r in rows if r["time"].hour
    }
    assert width["mg2", 14] > 0.1  # nobody knew
    # of the step after its return as well: it was away when that was decided
    assert [width["mg2", hour] for hour in (15, 16, 17, 18)] == [0.0] * 4
    assert width["mg2", 19] > 0.1
    assert all(width[name, hour] > 0.05 for name in ("mg1", "mg3") for hour in range(14, 20))


def test_an_attack_says_what_pandapower_says_of_each_case() -> None:
    net = pn.case33bw()
    net.line["max_i_ka"] = 0.3
    base = [(str(r.bus), -r.p_mw, -r.q_mvar) for r in net.load.itertuples()]
    boxes = {17: (-0.3, 0.9, 0.1), 24: (-0.2, 1.5, -0.1)}
    found = []
    for case in product(*([(low, q), (high, q), (0.0, 0.0)] for low, high, q in boxes.values())):
        work = deepcopy(net)
        for bus, (p_mw, q_mvar) in zip(boxes, case, strict=True):
            pp.create_sgen(work, bus, p_mw, q_mvar)
        pp.runpp(work, numba=False, tolerance_mva=1e-10)
        v = work.res_bus.vm_pu.drop(0)
        found.append((v.min(), v.max(), work.res_line.loading_percent.max(), work.res_ext_grid.p_mw[0]))
    least, most = np.min(found, axis=0), np.max(found, axis=0)

    free = [(str(bus), np.array([(low, q), (high, q)])) for bus, (low, high, q) in boxes.items()]
    claim = Claim(datetime(2026, 6, 21, tzinfo=UTC), "certified", base, free, 2, 2.9)
    worst = attack(Feeder(net), claim, Allowed((0.95, 1.0), 50.0, (2.0, 4.0)), points=20)
    assert worst.cases == 9 + 20
    assert worst.violated
    assert worst.under_v_pu == pytest.approx(0.95 - least[0], abs=1e-8)
    assert worst.over_v_pu == pytest.approx(most[1] - 1.0, abs=1e-8)
    assert worst.over_loading_percent == pytest.approx(most[2] - 50.0, abs=1e-4)
    assert worst.under_import_mw == pytest.approx(2.0 - least[3], abs=1e-6)
    assert worst.over_import_mw == pytest.approx(most[3] - 4.0, abs=1e-6)
