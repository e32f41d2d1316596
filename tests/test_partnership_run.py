"""Runs of the partnership: the source's schedule, the bounds on record, the day against its plan."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controllers.partnership.commitment import Injection
from controllers.partnership.messages import AskSettlement
from controllers.partnership.respondent import Respondent
from controllers.partnership.restoration import Operation
from scenarios.run import Exit, Result
from simulators.journal import read
from tests.running import do

TABLE = Path(__file__).parent / "data" / "table_a6.csv"
TOLERANCE = {"dg_p_kw": 0.6, "dg_q_kvar": 0.6, "re_p_kw": 0.11, "re_q_kvar": 0.11, "ess_p_kw": 0.11}
OPTIMUM = 1613.388
"""of the whole, by the central problem [$]"""


def counts(result: Result) -> dict[str, int]:
    found: dict[str, int] = json.loads((result.directory / "manifest.json").read_text())["counts"]
    return found


def iterations(result: Result, step: int) -> list[dict[str, Any]]:
    rows = read(result.directory, "iterations").to_pylist()
    times = sorted({row["time"] for row in rows})
    return [row for row in rows if row["time"] == times[step]]


class Kept:
    """What each microgrid means to do by the last settlement of the first step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.plans: dict[str, tuple[Respondent, Operation]] = {}
        operation = Respondent.operation

        def kept(respondent: Respondent, question: AskSettlement) -> Operation:
            done = operation(respondent, question)
            name = respondent.program.made.fleet.units[0].name.partition("_")[0]
            if name not in self.plans or self.plans[name][0] is respondent:
                self.plans[name] = respondent, done
            return done

        monkeypatch.setattr(Respondent, "operation", kept)

    def injection(self, unit: str) -> Injection:
        """(T,), (T,) what a unit is planned to inject."""
        respondent, done = self.plans[unit.partition("_")[0]]
        return respondent.program.made.injection(unit, done.y, done.bits)


async def test_b10_the_scenario_plans_the_table_of_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Kept(monkeypatch)
    result = await do("ieee123-partnership", tmp_path)
    assert result.exit is Exit.HELD, result.why
    assert kept.plans.keys() == {f"mg{i}" for i in range(1, 7)}
    wrong, cells = [], 0
    with TABLE.open() as file:
        for row in csv.DictReader(file):
            kind, axis, _ = row["quantity"].split("_")
            injection = kept.injection(f"mg{row['microgrid']}_{kind}")
            found = 1e3 * (injection.p_mw if axis == "p" else injection.q_mvar)
            told = np.array([float(row[f"t{t}"]) for t in range(1, 7)])
            cells += 6
            wrong += [
                (row["bus"], row["quantity"], int(t) + 1, float(found[t]))
                for t in np.flatnonzero(np.abs(found - told) > TOLERANCE[row["quantity"]])
            ]
    print(f"{cells - len(wrong)} of {cells} cells of Table A.VI; not: {wrong}")
    assert cells == 180
    ((bus, quantity, t, p_kw),) = wrong
    assert (bus, quantity, t, p_kw) == ("7", "dg_p_kw", 6, pytest.approx(100, abs=0.1))


async def test_the_record_has_the_bounds_of_every_iteration(tmp_path: Path) -> None:
    result = await do("ieee123-partnership", tmp_path, "steps=2")
    assert result.exit is Exit.HELD, result.why
    found = iterations(result, 0)
    assert [row["number"] for row in found] == list(range(1, len(found) + 1))
    lower = [row["lower"] for row in found if row["lower"] is not None]
    assert lower == sorted(lower)  # it never falls
    last = found[-1]
    assert last["phase"] == "settlement"
    assert last["lower"] - 1e-4 <= OPTIMUM + 1e-3
    assert last["upper"] >= OPTIMUM - 1e-3
    assert last["gap"] <= 1e-6
    assert [row["ended"] is None for row in found] == [True] * (len(found) - 1) + [False]
    assert counts(result)["conversations"] == 2


@pytest.mark.parametrize("offers", ["true", "false"])
async def test_what_an_hour_ago_has_learnt_saves_turns_and_changes_no_optimum(
    tmp_path: Path, offers: str
) -> None:
    options = "controllers.operator.options"
    warm, cold = [
        await do(
            "ieee123-partnership", tmp_path / said, "steps=3", f"{options}.warm={said}",
            f"{options}.offers={offers}",
        )
        for said in ("true", "false")
    ]  # fmt: skip
    assert warm.exit is cold.exit is Exit.HELD
    assert iterations(warm, 0) == iterations(cold, 0)
    for step in (1, 2):
        one, other = iterations(warm, step), iterations(cold, step)
        assert len(one) <= len(other)
        if offers == "false":
            assert len(one) < len(other)
        assert one[-1]["upper"] == pytest.approx(other[-1]["upper"], rel=2e-6)
    turns = [counts(run)["conversation-turns"] for run in (warm, cold)]
    assert turns[0] < turns[1]


async def test_hour_after_hour_they_exchange_what_the_centralised_optimum_does(tmp_path: Path) -> None:
    whole = "controllers=[{name: all, uses: 'controllers.partnership.centralised:PartnershipCentralised'}]"
    agreed = await do("ieee123-partnership", tmp_path / "agreed")
    central = await do("ieee123-partnership", tmp_path / "central", whole)
    assert agreed.exit is central.exit is Exit.HELD, central.why
    ours, theirs = (
        {(row["time"], row["microgrid"]): row["p_mw"] for row in read(run.directory, "exchanges").to_pylist()}
        for run in (agreed, central)
    )
    assert ours.keys() == theirs.keys()
    assert len(ours) == 42
    assert all(p_mw == pytest.approx(theirs[key], abs=1e-6) for key, p_mw in ours.items())


@pytest.mark.slow
async def test_the_day_stays_within_limits_and_near_its_plan(tmp_path: Path) -> None:
    result = await do("ieee123-partnership-day", tmp_path)
    assert result.exit is Exit.HELD, result.why
    found = counts(result)
    assert found["origin-certified"] == 24
    assert found["conversations"] == 24
    v_pu = [row["v_pu"] for row in read(result.directory, "buses").to_pylist()]
    assert min(v_pu) >= 0.9
    assert max(v_pu) <= 1.1
    rows = [r for r in read(result.directory, "exchanges").to_pylist() if r["planned_mw"] is not None]
    assert len(rows) == 6 * 23
    off = np.array([row["p_mw"] - row["planned_mw"] for row in rows])
    assert 0 < np.abs(off).max() < 0.06  # sun and demand turn out otherwise than forecast
    assert sum(row["unserved_mw"] for row in rows) == pytest.approx(0, abs=1e-6)
