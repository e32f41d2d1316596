"""`gridpace compare` of microgrids: the same day with and without the correction, and its figures."""

from __future__ import annotations

import json
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

import pandapower as pp
import pandapower.networks as pn
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from controllers.interchange.correction import InterchangeCorrection
from controllers.interchange.uncorrected import Uncorrected
from scenarios.check import validate
from scenarios.cli import app
from scenarios.compare import compare, drafts, is_checked, titled
from scenarios.corrections import ALTERNATIVES, USUAL, Alternative, corrector, wanted
from scenarios.envelopes import NoSuchMethod
from scenarios.figures import rows
from scenarios.interchange_report import imports, interchange
from scenarios.load import load
from scenarios.run import Exit
from simulators.tables import SCHEMAS
from tests.running import do

DAY = "ieee33-interchange"
BOTH = "ieee33-interchange-envelopes"
AFTERNOON = "start=2026-06-21T15:00:00Z"


def uses(cls: type[Any]) -> str:
    return f"{cls.__module__}:{cls.__name__}"


class TestDrafts:
    def test_without_names_the_correction_is_compared_with_none(self) -> None:
        draft = load(DAY)
        found = list(drafts(draft, validate(draft), (), certified=True, steps=None))
        assert [one.acronym for one, _ in found] == list(USUAL) == ["uncorrected", "corrected"]
        parts = [{p["name"]: p for p in one.raw["controllers"]} for _, one in found]
        own = {part["name"]: part for part in draft.raw["controllers"]}
        assert parts[1] == own
        assert parts[0].pop("correction") == {"name": "correction", "uses": uses(Uncorrected), "options": {}}
        own.pop("correction")
        assert parts[0] == own  # nobody else changes
        for _, one in found:
            scenario = validate(one)
            assert (scenario.steps, scenario.bus.kind, scenario.expect) == (24, "memory", [])
        assert not any(is_checked(one) for one, _ in found)
        assert titled(found, False) == "correction of interchange capability"

    def test_alternatives_change_the_options_that_make_them(self) -> None:
        draft = load(BOTH, ["controllers.correction.options.horizon=2"])
        found = {
            one.acronym: raw.raw["controllers"]
            for one, raw in drafts(
                draft, validate(draft), ["Fair", "secure", "uncorrected"], certified=True, steps=5
            )
        }
        options = {
            name: next(p for p in parts if p["name"] == "correction")["options"]
            for name, parts in found.items()
        }
        own = next(p for p in draft.raw["controllers"] if p["name"] == "correction")["options"]
        assert options == {
            "fair": {**own, "share": "fair"},
            "secure": {**own, "isolation_secure": True},
            "uncorrected": {"horizon": 2},
        }
        agreement = {key: own[key] for key in ("slack_mw", "reserve_mw", "batteries")}
        chosen = drafts(draft, validate(draft), ["Fair", "uncorrected"], certified=True, steps=5)
        assert [getattr(one, "agreement", None) for one, _ in chosen] == [agreement] * 2
        for parts in found.values():  # envelopes stay as they are
            assert parts[-1] == draft.raw["controllers"][-1]

    def test_what_is_uncorrected_can_be_corrected(self) -> None:
        draft = load(
            DAY, [f"controllers.correction.uses={uses(Uncorrected)}", "controllers.correction.options={}"]
        )
        ((_, one),) = drafts(draft, validate(draft), ["corrected"], certified=True, steps=2)
        part = next(p for p in one.raw["controllers"] if p["name"] == "correction")
        assert part["uses"] == uses(InterchangeCorrection)

    def test_methods_of_envelopes_are_still_compared_by_name(self) -> None:
        draft = load(BOTH)
        scenario = validate(draft)
        ((method, one),) = drafts(draft, scenario, ["P-E"], certified=True, steps=2)
        assert method.acronym == "P-E"
        assert [p["name"] for p in one.raw["controllers"]][-2:] == ["mg3-dispatch", "envelopes"]
        with pytest.raises(NoSuchMethod, match="corrected"):
            list(drafts(draft, scenario, ["corrected", "P-E"], certified=True, steps=2))

    def test_a_scenario_without_a_correction_compares_methods(self) -> None:
        draft = load("ieee33-quick")
        scenario = validate(draft)
        assert corrector(draft, scenario) is None
        assert wanted(draft, scenario, ()) is None
        assert wanted(load(DAY), validate(load(DAY)), ["P-E"]) is None
        assert {one.acronym for one in ALTERNATIVES.values()} == ALTERNATIVES.keys()

    def test_controllers_of_other_processes_come_home(self) -> None:
        """The memory bus of a comparison reaches no other process."""
        draft = load(
            DAY, ["controllers.mg1-prediction.process=own", "controllers.mg1-prediction.deadline=5s"]
        )
        for _, one in drafts(draft, validate(draft), (), certified=True, steps=2):
            assert not any({"process", "deadline"} & part.keys() for part in one.raw["controllers"])


async def test_the_figures_are_those_of_the_tables(tmp_path: Path) -> None:
    """Sums over rows, and the import as pandapower has it for what everybody injected."""
    changes = (AFTERNOON, "steps=4")
    result = await do(DAY, tmp_path, *changes, "expect=[]")
    assert result.exit is Exit.HELD
    draft = load(DAY, changes)
    scenario = validate(draft)
    found = interchange(result.directory, draft, scenario)
    assert found is not None
    exchanges = list(
        rows(
            result.directory,
            "exchanges",
            ["p_mw", "pic_low_mw", "pic_high_mw", "aic_low_mw", "aic_high_mw", "unserved_mw", "cost"],
        )
    )
    spoken = [row for row in exchanges if row["pic_low_mw"] is not None]
    assert 0 < len(spoken) < len(exchanges)  # nothing is in force in the first step
    assert found.offered_mwh == pytest.approx(sum(r["pic_high_mw"] - r["pic_low_mw"] for r in spoken))
    assert found.accepted_mwh == pytest.approx(sum(r["aic_high_mw"] - r["aic_low_mw"] for r in spoken))
    assert found.accepted_mwh < found.offered_mwh - 0.1
    assert found.sold_mwh is not None
    assert found.bought_mwh is not None
    assert found.sold_mwh - found.bought_mwh == pytest.approx(sum(r["p_mw"] for r in exchanges))
    assert found.unserved_mwh == pytest.approx(sum(r["unserved_mw"] for r in exchanges))
    assert found.cost == pytest.approx(sum(r["cost"] for r in exchanges))

    imported = imports(result.directory, draft, scenario)
    net, buses = pn.case33bw(), {part.name: int(part.bus) for part in scenario.devices}
    moments: dict[Any, list[dict[str, Any]]] = {}
    for row in rows(result.directory, "devices", ["time", "device", "p_mw", "q_mvar", "e_mwh"]):
        moments.setdefault(row["time"], []).append(row)
    assert imported.keys() == moments.keys()
    ups, downs = [], []
    for time, devices in moments.items():
        net.load = net.load.iloc[0:0]
        net.sgen = net.sgen.iloc[0:0]
        original = pn.case33bw().load.bus
        for row in devices:
            bus = buses.get(row["device"]) if row["device"] in buses else original[int(row["device"][5:])]
            pp.create_sgen(net, int(bus), p_mw=row["p_mw"], q_mvar=row["q_mvar"])
        pp.runpp(net, numba=False)
        p_mw = float(net.res_ext_grid.p_mw.iloc[0])
        assert imported[time] == pytest.approx(p_mw, abs=1e-6)
        (bess,) = [row for row in devices if row["device"] == "bess"]
        free = min(0.3, (0.4**2 - bess["q_mvar"] ** 2) ** 0.5)
        ups.append(min(0.8, 5 - p_mw) + min(free - bess["p_mw"], (bess["e_mwh"] - 0.12) * 0.95))
        downs.append(min(0.8, p_mw + 1) + min(free + bess["p_mw"], (1.08 - bess["e_mwh"]) / 0.95))
    assert found.reserve_up_mw == pytest.approx(sum(ups) / len(ups), abs=1e-6)
    assert found.reserve_down_mw == pytest.approx(sum(downs) / len(downs), abs=1e-6)

    # A battery of which nothing is known has no reserve of zero: its step does not count.
    first = next(iter(moments))
    table = pq.read_table(result.directory / "devices.parquet").to_pylist()
    for row in table:
        if (row["device"], row["time"]) == ("bess", first):
            row |= {"p_mw": None, "q_mvar": None, "e_mwh": None}
    pq.write_table(pa.Table.from_pylist(table, SCHEMAS["devices"]), result.directory / "devices.parquet")
    found = interchange(result.directory, draft, scenario)
    assert found is not None
    assert found.reserve_up_mw == pytest.approx(sum(ups[1:]) / len(ups[1:]), abs=1e-6)
    assert found.reserve_down_mw == pytest.approx(sum(downs[1:]) / len(downs[1:]), abs=1e-6)


async def test_what_nobody_agreed_to_is_not_known(tmp_path: Path) -> None:
    changes = ("controllers.correction.options.reserve_mw=null", "steps=2")
    result = await do(DAY, tmp_path, *changes, "expect=[]")
    draft = load(DAY, changes)
    found = interchange(result.directory, draft, validate(draft))
    assert found is not None
    assert (found.reserve_up_mw, found.reserve_down_mw) == (None, None)
    quick = load("ieee33-quick")
    assert interchange(result.directory, quick, validate(quick)) is None


def test_the_reader_sees_violations_without_the_correction_none_with_it_and_what_it_costs(
    tmp_path: Path,
) -> None:
    words = ["compare", DAY, "--set", "start=2026-06-21T05:00:00Z", "--steps", "6", "--out", str(tmp_path)]
    ended = CliRunner().invoke(app, [*words, "--json"])
    assert ended.exit_code == 0, ended.output
    found = {one["method"]: one for one in json.loads(ended.stdout)["methods"]}
    without, held = found["uncorrected"], found["corrected"]
    assert without["bus_minutes"] > 0
    assert held["bus_minutes"] == 0
    assert without["worst_v_pu"] < 0.949
    assert held["worst_v_pu"] > 0.9499
    assert without["interchange"]["accepted_mwh"] == without["interchange"]["offered_mwh"]
    assert held["interchange"]["accepted_mwh"] < held["interchange"]["offered_mwh"]
    assert all(isfinite(one["interchange"]["cost"]) for one in found.values())
    # Both by the scenario's agreement: who sells more leaves less to give back.
    for way in ("up", "down"):
        reserve = [one["interchange"][f"reserve_{way}_mw"] for one in (without, held)]
        assert min(reserve) > 0
        assert reserve[0] != reserve[1]


def test_the_tables_fit_and_what_is_missing_is_a_dash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    words = ["compare", DAY, "--steps", "2", "--method", "uncorrected", "--out", str(tmp_path)]
    ended = CliRunner().invoke(app, words)
    assert ended.exit_code == 0, ended.output
    lines = ended.stdout.splitlines()
    assert lines[0].strip() == "ieee33-interchange: 2 steps under each correction of interchange capability"
    assert max(map(len, lines)) <= 100
    power, shares = (line.split() for line in lines if line.startswith("uncorrected"))
    assert len(power) == 10
    assert all(float(reserve) > 0 for reserve in shares[-2:])
    assert float(shares[1]) > 0
    assert "Jain" not in ended.stdout


def test_a_refused_alternative_leaves_a_row(tmp_path: Path) -> None:
    draft = load(DAY, ["controllers.correction.options.horizon=2"])
    ((one, run),) = drafts(draft, validate(draft), ["corrected"], certified=True, steps=1)
    broken = {
        **run.raw,
        "controllers": [
            {**p, "options": {**p.get("options", {}), "horizon": 0}} for p in run.raw["controllers"]
        ],
    }
    (found,) = compare([(one, replace(run, raw=broken))], tmp_path, certified=True)
    assert isinstance(one, Alternative)
    assert found.method == "corrected"
    assert "horizon" in getattr(found, "why", "")
