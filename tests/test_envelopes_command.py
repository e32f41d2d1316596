"""`gridpace envelopes`: every method at one instant of a run, as the run itself would see it."""

from __future__ import annotations

import io
import json
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from controllers import Origin
from controllers.envelopes import EqualRanges
from controllers.envelopes.method import EnvelopeMethod
from controllers.fairness import Fairness
from scenarios.build import Built, build
from scenarios.check import validate
from scenarios.cli import app
from scenarios.envelope_report import show
from scenarios.envelopes import (
    Answer,
    NoSuchMethod,
    NotInTheRun,
    ask,
    chosen,
    methods,
    observe,
    shared_options,
    step_at,
)
from scenarios.figures import envelopes, rows
from scenarios.load import load
from tests.running import do

QUICK = "ieee33-quick"
PAPER = ("P-E", "PQ-E", "PQ-KL", "P-WE", "P-SE", "EPQ", "max-min")
LATER = "2026-06-21T11:30:00Z"


def built(*changes: str) -> Built:
    draft = load(QUICK, changes)
    return build(draft, validate(draft))


def envelope_command(*words: str) -> Any:
    return CliRunner().invoke(app, ["envelopes", QUICK, *words])


def said(*words: str) -> dict[str, Any]:
    """The command's JSON, methods by acronym."""
    ended = envelope_command("--json", *words)
    assert ended.exit_code == 0, ended.output
    found: dict[str, Any] = json.loads(ended.stdout)
    return {**found, "methods": {m["method"]: m for m in found["methods"]}}


def test_every_method_is_found_by_its_acronym() -> None:
    known = methods()
    assert set(PAPER) <= known.keys()
    assert list(known)[-2:] == ["none", "static"]  # what looks at nothing comes last
    assert all(issubclass(cls, EnvelopeMethod) for cls in known.values())
    assert [cls.acronym for cls in chosen([])] == list(known)[:-2]


def test_methods_are_named_by_acronym_or_class_in_any_case() -> None:
    assert chosen(["p-e", "EqualRanges", "STATIC"]) == [EqualRanges, methods()["static"]]


@pytest.mark.parametrize(
    ("word", "hint"), [("PQE", "PQ-E"), ("EqualRange", "EqualRanges"), ("xyz", "there are")]
)
def test_an_unknown_method_is_refused_with_near_ones(word: str, hint: str) -> None:
    with pytest.raises(NoSuchMethod, match=f"{word}.*{hint}"):
        chosen([word])
    ended = envelope_command("--method", word)
    assert ended.exit_code == 2
    assert hint in ended.output


@pytest.mark.parametrize("at", ["2026-06-21T10:55:00Z", "2026-06-21T12:00:00Z", "2026-06-21T11:02:00Z"])
def test_an_instant_without_a_step_is_refused(at: str) -> None:
    scenario = validate(load(QUICK))
    with pytest.raises(NotInTheRun, match=r"11:00:00Z to 2026-06-21T11:55:00Z"):
        step_at(scenario, datetime.fromisoformat(at))
    ended = envelope_command("--at", at)
    assert ended.exit_code == 2
    assert at in ended.output


def test_instants_are_steps() -> None:
    scenario = validate(load(QUICK))
    assert step_at(scenario, None) == 0
    assert step_at(scenario, datetime(2026, 6, 21, 11, 55)) == 11  # without a zone it is UTC
    zone = datetime.fromisoformat("2026-06-21T13:30:00+02:00")
    assert step_at(scenario, zone) == 6


async def test_an_instant_is_seen_as_a_run_sees_it(tmp_path: Path) -> None:
    """The oracle is the run: its forecasts, its loads, and the regions that its controller decided."""
    step = 5
    result = await do(QUICK, tmp_path)
    site = built()
    seen = observe(site, step)
    at = seen.time
    assert at == datetime(2026, 6, 21, 11, 25, tzinfo=UTC)

    recorded = {
        (row["name"], (row["time"] - at) // timedelta(minutes=5) - 1): row["mean_mw"]
        for row in rows(result.directory, "forecasts", ["issued_at", "time", "name", "mean_mw"])
        if row["issued_at"] == at
    }
    mean = seen.forecast.mean
    assert len(recorded) == mean.size
    for column, name in enumerate(seen.forecast.names):
        for interval in range(len(mean)):
            assert recorded[name, interval] == mean[interval, column]

    loads = {
        row["device"]: row["p_mw"]
        for row in rows(result.directory, "devices", ["time", "device", "p_mw", "state"])
        if row["time"] == at and row["state"] == "uncontrolled"
    }
    assert loads
    assert {name: seen.p_mw[name] for name in loads} == loads

    answer = ask(site, EqualRanges, {}, seen, check=None)
    decided = {e.target: e for e in envelopes(result.directory) if e.issued_at == at}
    assert len(answer.devices) == len(decided) == 6
    for device in answer.devices:
        assert device.export_mw is not None
        assert device.import_mw is not None
        for p_mw in (device.export_mw, -device.import_mw):
            assert decided[device.device].excess({"p_mw": p_mw, "q_mvar": 0.0}) == pytest.approx(0, abs=1e-12)


async def test_voltages_before_the_first_instruction_are_those_of_the_run(tmp_path: Path) -> None:
    result = await do(QUICK, tmp_path, "steps=1")
    volts = {row["bus"]: row["v_pu"] for row in rows(result.directory, "buses", ["bus", "v_pu"])}
    assert dict(observe(built(), 0).v_pu) == volts


def test_every_method_answers_with_its_certificate_and_fairness() -> None:
    found = said("--at", LATER)
    assert found["certified"] is True
    assert set(PAPER) <= found["methods"].keys()
    for name, answer in found["methods"].items():
        assert answer["origin"] == "certified", answer["why"]
        assert answer["why"] is None
        assert answer["power_flows"] > 0
        assert 0.95 - 1e-5 <= answer["worst_v_pu"] <= 1.05 + 1e-5
        assert answer["worst_loading_percent"] <= 100.01
        fair, devices = answer["fairness"], answer["devices"]
        assert len(devices) == 6
        assert sum(d["export_mw"] for d in devices) == pytest.approx(fair["export_mw"], abs=1e-6), name
        assert sum(d["import_mw"] for d in devices) == pytest.approx(fair["import_mw"], abs=1e-6), name
        assert sum(d["area_mva2"] for d in devices) == pytest.approx(fair["area_mva2"], abs=1e-6), name
        for device in devices:
            corners = np.array(device["corners"])
            assert corners[:, 1].max() == device["q_high_mvar"]
            assert corners[:, 1].min() == device["q_low_mvar"]
            assert device["binding"]


def test_without_the_check_nothing_is_certified() -> None:
    answers = said("--uncertified", "--method", "P-E", "--method", "EPQ")["methods"]
    assert list(answers) == ["P-E", "EPQ"]
    for answer in answers.values():
        assert answer["origin"] == "optimal"
        assert answer["worst_v_pu"] is None
        assert answer["power_flows"] == 0


def test_fixed_limits_are_never_certified() -> None:
    answers = said("--method", "static", "--method", "none")["methods"]
    assert {a["origin"] for a in answers.values()} == {"optimal"}
    static = {d["device"]: d["export_mw"] for d in answers["static"]["devices"]}
    assert static["pv24"] == pytest.approx(0.3 * 2.4)


def test_a_method_without_a_decision_prints_its_reason() -> None:
    narrow = ["--set", "grid.limits.v_pu=[1.029, 1.031]", "--no-picture"]
    ended = envelope_command(*narrow, "--method", "P-E", "--method", "static")
    assert ended.exit_code == 0
    assert re.search(r"P-E \(EqualRanges\): no decision\s+Infeasible: lower voltage at bus \d+", ended.output)
    assert "static (StaticLimits): optimal" in ended.output
    answer = said(*narrow, "--method", "P-E")["methods"]["P-E"]
    assert answer["origin"] is None
    assert answer["why"].startswith("Infeasible: ")
    assert answer["devices"] == []


def test_the_tables_hold_every_device_and_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ended = envelope_command("--no-picture", "--method", "P-E", "--method", "PQ-E")
    assert ended.exit_code == 0
    assert max(map(len, ended.output.splitlines())) <= 100
    for word in ("pv6", "bat13", "wind31", "P-E (EqualRanges)", "PQ-E (EqualBoxes)", "export by", "price"):
        assert word in ended.output
    assert not list(tmp_path.iterdir())


def test_a_name_stays_on_its_line_beside_the_widest_figures() -> None:
    """A certified feeder of a thousand buses, and then some."""
    fair = Fairness(
        export_mw=453.5304, import_mw=114.5521, area_mva2=5042.8, jain_export=1.0, jain_import=0.02,
        least_export=12.87, least_import=10.29, price=0.19,
    )  # fmt: skip
    answers = [
        Answer(
            method=name, name="Any", origin=Origin.CERTIFIED, fairness=fair, worst_v_pu=1.0499,
            worst_loading_percent=100.0, power_flows=123456, solve_ms=ms,
        )
        for name, ms in (("alpha-0", 192845.3), ("max-min", 999.94), ("P-E", 17.25))
    ]  # fmt: skip
    stream = io.StringIO()
    show(answers, "feeder", datetime(2026, 6, 21, tzinfo=UTC), Console(file=stream, width=100, no_color=True))
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    last = [line.split() for line in lines[-3:]]
    figures = ["453.530", "114.552", "5042.800", "1.00/0.02", "12.87/10.29", "0.19", "1.0499", "100.0"]
    figures.append("123456")
    assert last == [
        ["alpha-0", *figures, "192845"], ["max-min", *figures, "999.9"], ["P-E", *figures, "17.2"],
    ]  # fmt: skip


@pytest.mark.parametrize(("suffix", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_a_picture_is_written(tmp_path: Path, suffix: str, begins: bytes) -> None:
    file = tmp_path / f"all.{suffix}"
    ended = envelope_command("--picture", str(file), "--method", "P-E", "--method", "EPQ")
    assert ended.exit_code == 0, ended.output
    assert file.read_bytes().startswith(begins)
    if suffix == "svg":
        drawn = file.read_text("utf-8")
        for word in ("pv6", "wind31", "EPQ", "P [MW], injection positive", "Q [Mvar]"):
            assert f"<!-- {word} -->" in drawn


def test_a_picture_is_drawn_by_itself_where_it_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = envelope_command("--method", "P-E")
    assert "picture: envelopes.png" in ended.output
    assert (tmp_path / "envelopes.png").stat().st_size > 10_000


def test_a_picture_that_cannot_be_drawn_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in ("all.docx", "no/folder/all.png"):
        ended = envelope_command("--picture", str(tmp_path / file), "--method", "P-E")
        assert ended.exit_code == 2
        assert "cannot write" in ended.output
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    ended = envelope_command("--picture", str(tmp_path / "all.png"), "--method", "P-E")
    assert ended.exit_code == 2
    assert "gridpace[plot]" in ended.output


def test_a_scenarios_shared_options_reach_every_method() -> None:
    draft = load(QUICK, ["controllers.dso.options={weights: equal, form: lp}"])
    scenario = validate(draft)
    assert shared_options(draft, scenario, EqualRanges) == {"weights": "equal", "form": "lp"}
    assert shared_options(draft, scenario, methods()["EPQ"]) == {"weights": "equal"}
    answers = said("--uncertified", "--set", "controllers.dso.options={weights: equal}", "--method", "EPQ")
    exports = [d["export_mw"] for d in answers["methods"]["EPQ"]["devices"]]
    assert exports == pytest.approx([exports[0]] * 6)


def test_the_scenarios_options_of_the_check_are_used() -> None:
    narrow = said("--method", "PQ-E")["methods"]["PQ-E"]
    wide = said("--method", "PQ-E", "--set", "controllers.dso.certified={two_sided: true}")["methods"]["PQ-E"]
    assert wide["fairness"]["area_mva2"] > narrow["fairness"]["area_mva2"]
    assert wide["power_flows"] > narrow["power_flows"]
