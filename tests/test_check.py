"""Bad scenarios: every mistake is found at once, with its path, its value and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from scenarios.build import build
from scenarios.check import Problem, ScenarioInvalid, notices, validate
from scenarios.cli import app
from scenarios.load import ScenarioUnreadable, load, packaged

TEN_MISTAKES = """\
name: broken
start: tomorrow at noon
every: 5 minutos
steps: 12
seed: "seven"
grid:
  network: pandapower.networks:case33bw
  limits: {v_pu: [1.05, 0.95], loading_percent: 100}
  enigne: pandapower
profiles:
  sun: {kind: pv}
devices:
  - {name: der1, kind: pv-inverter, bus: 6, s_mva: -1.2, profile: sun}
  - {name: der2, kind: pv-inverter, bus: 99, s_mva: 1.0, profile: sun}
  - {name: der2, kind: battery, bus: 7, p_mw: 0.4, e_mwh: 0.8}
  - {name: der3, kind: wind-turbine, bus: 8, p_mw: 0.4, profile: brezze}
controllers:
  - {name: dso, uses: "controllers.envelopes.equal_ranges:EqualRange"}
bus: {kind: memory}
"""

EXPECTED = {
    "start": ("'tomorrow at noon'", "2026-06-21T00:00:00Z"),
    "every": ("'5 minutos'", "5min"),
    "seed": ("'seven'", "whole number"),
    "grid.limits": ("1.05", "swap"),
    "grid.enigne": ("'pandapower'", "did you mean 'engine'"),
    "devices.der1.s_mva": ("-1.2", "greater than 0"),
    "devices.der2.bus": ("99", "0 to 32"),
    "devices.2.name": ("'der2'", "used before"),
    "devices.der3.profile": ("'brezze'", "sun"),
    "controllers.dso.uses": ("EqualRange", "did you mean 'EqualRanges'"),
}


def problems_of(text: str, folder: Path, *changes: str) -> dict[str, Problem]:
    file = folder / "scenario.yaml"
    file.write_text(text)
    with pytest.raises(ScenarioInvalid) as caught:
        validate(load(str(file), changes))
    return {problem.path: problem for problem in caught.value.problems}


def test_ten_mistakes_are_listed_at_once(tmp_path: Path) -> None:
    found = problems_of(TEN_MISTAKES, tmp_path)
    assert set(found) == set(EXPECTED)
    lines = TEN_MISTAKES.splitlines()
    for path, (value, advice) in EXPECTED.items():
        assert value in found[path].value, path
        assert advice in found[path].advice, path
        line = found[path].line
        assert line is not None
        word = path.rpartition(".")[2]
        assert word.isdigit() or word in lines[line - 1], path


def test_the_command_lists_them_and_ends_with_2(tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(TEN_MISTAKES)
    for command in ("check", "run"):
        result = CliRunner().invoke(app, [command, str(file)])
        assert result.exit_code == 2
        assert "Traceback" not in result.output
        for path in EXPECTED:
            assert f"{path} = " in result.output, (command, path)
    report = CliRunner().invoke(app, ["check", str(file), "--json"])
    assert {p["path"] for p in json.loads(report.stdout)["problems"]} == set(EXPECTED)


GOOD = """\
extends: ieee33-quick
name: mine
"""


@pytest.mark.parametrize(
    ("extra", "path", "advice"),
    [
        ("devices: [{name: x, kind: pv-inverter, bus: 3, profile: sun}]", "devices.x.s_mva", "required"),
        ("devices: [{name: x, kind: pv-invertor, bus: 3}]", "devices.x.kind", "'pv-inverter'"),
        ("devices: [{name: 'a/b', kind: battery, bus: 3, p_mw: 1, e_mwh: 1}]", "devices.a/b.name", "1 to 64"),
        ("bus: {kind: mqtt, url: 'mqtt://me:secret@host:1883'}", "bus.url", "environment"),
        ("bus: {kind: pigeon}", "bus.kind", "choose"),
        ("steps: 0", "steps", "greater than or equal to 1"),
        ("steps: 1.5", "steps", "whole number"),
        ("start: 2026-06-21T00:00:00", "start", "time zone"),
        ("every: 300", "every", "5min"),
        ("every: 0s", "every", "longer than zero"),
        ("controllers: [{name: dso, uses: 'nowhere.at.all:X'}]", "controllers.dso.uses", "no module"),
        ("controllers: [{name: dso, uses: 'mine.py:X'}]", "controllers.dso.uses", "no file 'mine.py'"),
        ("controllers: [{name: dso, uses: 'pathlib:Path'}]", "controllers.dso.uses", "no method step"),
        ("controllers: [{name: dso, every: 7min}]", "controllers.dso.every", "multiple"),
        ("grid: {network: 'lost.json'}", "grid.network", "lost.json"),
        ("grid: {limits: {v_pu: [-0.1, 1]}}", "grid.limits", "above 0"),
        ("grid: {profiles: {load: nobody}}", "grid.profiles.load", "household"),
        ("profiles: {sun: {kind: pv, latitude: 123}}", "profiles.sun", "latitude"),
        ("expect: [{what: v_pu, between: [1.05, 0.95]}]", "expect.0.between", "swap"),
        ("expect: [{what: volts}]", "expect.0.what", "choose"),
        ("expect: [{what: v_pu, between: [0.9, 1.1], sharee: 1}]", "expect.0.sharee", "'share'"),
        ("devices: [{name: bat13, efficiency: [0.9, 1.2]}]", "devices.bat13.efficiency.1", "less than"),
        ("devices: [{name: bat13, e_start_mwh: 99}]", "devices.bat13", "e_start_mwh"),
        ("controllers: [{name: dso, every: 10min, valid_for: 5min}]", "controllers.dso.valid_for", "lapses"),
        ("bus: {kind: mqtt, url: 'mqtt://a:99999'}", "bus.url", "65535"),
        ("grid: {network: 'sys:exit'}", "grid.network", "SystemExit"),
        ("steps: 99999999999", "(the whole file)", "9999"),
        ("name: a name", "name", "characters"),
        ("name: ctl", "name", "topics"),
    ],
)
def test_each_mistake_speaks(tmp_path: Path, extra: str, path: str, advice: str) -> None:
    text = GOOD if not extra.startswith("name") else "extends: ieee33-quick\n"
    found = problems_of(f"{text}{extra}\n", tmp_path)
    assert list(found) == [path]
    assert advice in found[path].advice


@pytest.mark.parametrize(
    ("changes", "paths"),
    [
        (["clock={mode: live, factor: 60}"], ["clock.factor"]),
        (["clock={mode: scaled, factor: 60}"], []),
        (["clock={mode: live}", "controllers.dso.deadline=10min"], ["controllers.dso.deadline"]),
        (["clock={mode: live}", "controllers.dso.deadline=4min"], []),
        (["clock={mode: scaled, factor: 60}", "controllers.dso.deadline=5s"], ["controllers.dso.deadline"]),
        (["clock={mode: scaled, factor: 60}", "controllers.dso.deadline=4s"], []),
        (["clock={mode: fast}", "controllers.dso.deadline=10min"], []),
    ],
)
def test_what_the_clock_does_not_heed_is_noticed(changes: list[str], paths: list[str]) -> None:
    draft = load("ieee33-quick", ["bus.kind=memory", *changes])
    assert [notice.path for notice in notices(draft, validate(draft))] == paths


def test_a_key_given_twice_is_a_mistake(tmp_path: Path) -> None:
    found = problems_of(f"{GOOD}steps: 3\nsteps: 4\n", tmp_path)
    assert "given twice" in found["steps"].advice


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1, 2", "no YAML"),
        ("- 1", "mapping"),
        ("extends: nobody\n", "ieee33-quick"),
        ("extends: me.yaml", "circle"),
    ],
)
def test_unreadable_files_say_why(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "me.yaml"
    file.write_text(text)
    with pytest.raises(ScenarioUnreadable, match=words):
        load(str(file))


def test_extending_merges_maps_and_named_lists(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "extends: ieee33-quick\nname: mine\nsteps: 3\ngrid: {engine: power-grid-model}\n"
        "devices: [{name: pv6, s_mva: 2}, {name: extra, kind: battery, bus: 3, p_mw: 1, e_mwh: 1}]\n"
    )
    base, mine = validate(load("ieee33-quick")), validate(load("mine.yaml", folder=tmp_path))
    assert mine.steps == 3
    assert mine.grid.network == base.grid.network
    assert mine.grid.engine == "power-grid-model"
    assert [d.name for d in mine.devices] == [*(d.name for d in base.devices), "extra"]
    assert mine.devices[0].model_dump() == {**base.devices[0].model_dump(), "s_mva": 2.0}


def test_extending_with_another_kind_replaces_the_whole_map(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "extends: ieee33-quick\nname: mine\nprofiles: {sun: {kind: daily, values: {'00:00': 0.5}}}\n"
    )
    mine = validate(load("mine.yaml", folder=tmp_path))
    assert mine.profiles["sun"].model_dump()["values"] == {"00:00": 0.5}


@pytest.mark.parametrize(
    ("edit", "path", "advice"),
    [
        ("{table: line, column: max_i_ka, value: text}", "grid.edits.0.value", "float64"),
        ("{table: line, column: in_service, value: 3}", "grid.edits.0.value", "bool"),
        ("{table: line, column: nothing, value: 3}", "grid.edits.0.column", "no column of line"),
        ("{table: wire, column: x, value: 3}", "grid.edits.0.table", "no table"),
        ("{table: line, index: [99], column: max_i_ka, value: 3}", "grid.edits.0.index", "not in the net"),
    ],
)
def test_each_wrong_edit_of_the_net_speaks(edit: str, path: str, advice: str) -> None:
    draft = load("ieee33-quick", [f"grid.edits=[{edit}]"])
    with pytest.raises(ScenarioInvalid) as caught:
        build(draft, validate(draft))
    (problem,) = caught.value.problems
    assert problem.path == path
    assert advice in problem.advice


def test_lines_are_those_of_the_users_own_file_when_it_extends_another(tmp_path: Path) -> None:
    text = (
        "extends: ieee33-quick\nname: mine\ndevices:\n"
        "  - {name: late, kind: battery, bus: 99, p_mw: 1, e_mwh: 1}\n"
    )
    found = problems_of(text, tmp_path)
    assert found["devices.late.bus"].line == 4
    found = problems_of(text.replace("bus: 99", "bus: 9"), tmp_path, "devices.pv6.bus=98")
    assert found["devices.pv6.bus"].line is None  # that device is not in this file


def test_an_extended_scenario_finds_its_files_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: village\nname: mine\n")
    mine = validate(load(str(tmp_path / "mine.yaml")))
    assert Path(mine.grid.network).is_file()
    assert [d.bus for d in mine.devices] == [d.bus for d in validate(load("village")).devices]


def test_changes_enter_maps_and_lists() -> None:
    draft = load(
        "ieee33-quick",
        [
            "devices.pv6.s_mva=2.5",
            "devices.1.weight=3",
            "bus.kind=mqtt",
            "bus.url=mqtt://127.0.0.1:1",
            "steps=4",
        ],
    )
    scenario = validate(draft)
    assert scenario.devices[0].model_dump()["s_mva"] == 2.5
    assert scenario.devices[1].weight == 3
    assert scenario.bus.model_dump()["url"] == "mqtt://127.0.0.1:1"
    assert scenario.steps == 4
    for wrong in ("steps", "devices.nobody.s_mva=1", "steps.more=1", "a=[", "=3"):
        with pytest.raises(ScenarioUnreadable, match="--set"):
            load("ieee33-quick", [wrong])


@pytest.mark.parametrize("name", list(packaged()))
def test_packaged_scenarios_are_valid_and_survive_a_round_trip(name: str, tmp_path: Path) -> None:
    draft = load(name)
    scenario = validate(draft)
    written = yaml.safe_dump(scenario.model_dump(mode="json"))
    file = tmp_path / "again.yaml"
    file.write_text(written.replace("data/", f"{draft.folder}/data/"))
    again = validate(load(str(file)))
    assert again.model_dump(exclude={"grid", "profiles"}) == scenario.model_dump(exclude={"grid", "profiles"})


def test_the_schema_describes_every_key() -> None:
    printed = json.loads(CliRunner().invoke(app, ["schema"]).stdout)
    required = ["name", "start", "every", "steps", "seed", "grid", "devices"]
    fleet = ["fleets" if key == "devices" else key for key in required]
    assert printed["anyOf"] == [{"required": keys} for keys in (["extends"], required, fleet)]
    assert printed["additionalProperties"] is False
    (profiles,) = printed["properties"]["profiles"]["patternProperties"].values()
    assert {"pv", "wind", "load", "table", "daily"} == set(profiles["discriminator"]["mapping"])


def test_the_list_names_scenarios_and_controllers_with_their_sources() -> None:
    printed = json.loads(CliRunner().invoke(app, ["list", "--json"]).stdout)
    assert {entry["name"] for entry in printed["scenarios"]} == set(packaged())
    (p_e,) = [e for e in printed["controllers"] if e["name"].endswith(":EqualRanges")]
    assert "(A7) and (A8)" in p_e["sources"][0]
    assert "P-E" in CliRunner().invoke(app, ["list"]).stdout


def test_a_default_that_the_device_could_never_obey_is_named() -> None:
    own = "devices.pv6.default={p_mw: [9, 10], q_mvar: [0, 0]}"
    draft = load("ieee33-quick", [own])
    with pytest.raises(ScenarioInvalid) as refused:
        build(draft, validate(draft))
    (problem,) = refused.value.problems
    assert problem.path == "devices.pv6.default"
    assert "could never obey" in problem.advice
