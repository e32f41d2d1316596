"""`via` in a scenario: one line swaps a twin for a device; mistakes are said with value and advice."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from scenarios import external
from scenarios.check import ScenarioInvalid, validate
from scenarios.load import load
from scenarios.schema import Scenario

LIVE = ("clock.mode=live", "every=1s", "controllers.dso.every=1s", "controllers.dso.valid_for=4s")
SUNSPEC = "{sunspec: {host: 10.0.0.5, port: 5021, unit: 3}}"


def made(*changes: str) -> Scenario:
    return validate(load("ieee33-quick", [*LIVE, *changes]))


def problems(*changes: str) -> dict[str, tuple[str, str]]:
    with pytest.raises(ScenarioInvalid) as caught:
        made(*changes)
    return {p.path: (p.value, p.advice) for p in caught.value.problems}


def device(scenario: Scenario, name: str) -> Any:
    return next(part for part in scenario.devices if part.name == name)


def test_one_line_swaps_a_twin_for_a_device() -> None:
    scenario = made("devices.bat13.via=mqtt", f"devices.pv24.via={SUNSPEC}")
    assert external.outside(scenario).keys() == {"bat13", "pv24"}
    assert external.over_mqtt(scenario) == {"bat13"}
    way = external.over_sunspec(scenario)["pv24"]
    assert (way.host, way.port, way.unit) == ("10.0.0.5", 5021, 3)
    assert external.gateways(scenario) == {}
    assert device(scenario, "bat13").kind == "battery"
    assert external.placed(scenario)["bat13"].stale_after == timedelta(seconds=3)


def test_an_external_device_with_a_twin_is_the_same() -> None:
    one = made("devices.bat13.via=mqtt")
    other = made("devices.bat13.via=mqtt", "devices.bat13.kind=external", "devices.bat13.twin=battery")
    assert one == other


def test_details_stand_in_a_map() -> None:
    scenario = made(
        "devices.bat13.via={mqtt: {gateway: gw1}}",
        "devices.bat13.shadow=true",
        "devices.bat13.stale_after=5 steps",
        "devices.pv6.via={mqtt: }",
        "devices.pv6.dry_run=true",
        "devices.pv6.stale_after=90s",
    )
    assert external.gateways(scenario) == {"bat13": "gw1"}
    placed = external.placed(scenario)
    assert (placed["bat13"].shadow, placed["bat13"].dry_run) == (True, False)
    assert (placed["pv6"].shadow, placed["pv6"].dry_run) == (False, True)
    assert placed["bat13"].stale_after == timedelta(seconds=5)
    assert placed["pv6"].stale_after == timedelta(seconds=90)


def test_what_is_written_into_the_manifest_is_read_back() -> None:
    scenario = made("devices.bat13.via={mqtt: {gateway: gw1}}", f"devices.pv24.via={SUNSPEC}")
    assert Scenario.model_validate(scenario.model_dump(mode="json")) == scenario


@pytest.mark.parametrize(
    ("changes", "path", "value", "advice"),
    [
        (("devices.bat13.via=modbus",), "devices.bat13.via", "'modbus'", "write mqtt, or {sunspec:"),
        (("devices.bat13.via=sunspec",), "devices.bat13.via", "'sunspec'", "does not say where"),
        (("devices.bat13.via={}",), "devices.bat13.via", "{}", "has no way; give one of mqtt, sunspec"),
        (
            ("devices.bat13.via={mqtt: {}, sunspec: {host: a}}",),
            "devices.bat13.via", "{'mqtt': {}, 'sunspec': {'host': 'a'}}", "has mqtt and sunspec",
        ),
        (
            ("devices.bat13.via={mqtt: {gatway: g}}",),
            "devices.bat13.via.mqtt.gatway", "'g'", "did you mean 'gateway'?",
        ),
        (("devices.bat13.via={sunspec: {}}",), "devices.bat13.via.sunspec.host", "(missing)", "is required"),
        (
            ("devices.bat13.via={sunspec: {host: a, unit: 300}}",),
            "devices.bat13.via.sunspec.unit", "300", "less than or equal to 247",
        ),
        (("devices.bat13.kind=external",), "devices.bat13.kind", "'external'", "and twin"),
        (("devices.bat13.shadow=true",), "devices.bat13", "'bat13'", "shadow: is about a real device"),
        (
            ("devices.bat13.via=mqtt", "clock.mode=fast"),
            "clock.mode", "'fast'", "(bat13) live in the time of the wall clock; take live, or scaled",
        ),
        (
            ("devices.bat13.via=mqtt", "bus.kind=memory"),
            "devices.bat13.via", "'mqtt'", "take embedded or mqtt",
        ),
        (
            ("devices.bat13.via={mqtt: {gateway: pv6}}",),
            "devices.bat13.via.mqtt.gateway", "'pv6'", "is the name of a device",
        ),
        (
            (f"devices.bat13.via={SUNSPEC}", f"devices.pv6.via={SUNSPEC}"),
            "devices.bat13.via",
            "{'sunspec': {'host': '10.0.0.5', 'port': 5021, 'unit': 3}}", "is where 'pv6' is",
        ),
        (
            (f"devices.bat13.via={SUNSPEC}", "controllers.dso.valid_for=2s"),
            "controllers.dso.valid_for", "'2s'", "give at least 3s",
        ),
        (
            (f"devices.bat13.via={SUNSPEC}", "clock={mode: scaled, factor: 10}"),
            "controllers.dso.valid_for", "'4s'", "give at least 30s",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_said(changes: tuple[str, ...], path: str, value: str, advice: str) -> None:
    found = problems(*changes)
    assert path in found, found
    assert found[path][0] == value
    assert advice in found[path][1]


def test_without_the_extra_the_check_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external, "find_spec", lambda name: None)
    assert (
        "pip install 'gridpace[sunspec]'" in problems(f"devices.bat13.via={SUNSPEC}")["devices.bat13.via"][1]
    )


def test_a_real_device_is_in_no_simulated_microgrid() -> None:
    draft = load("ieee33-interchange", ["clock.mode=live", "bus.kind=embedded"])
    grid = draft.raw["microgrids"][0]
    name = grid["devices"][0]
    index = next(i for i, item in enumerate(draft.raw["devices"]) if item["name"] == name)
    draft.raw["devices"][index]["via"] = "mqtt"
    with pytest.raises(ScenarioInvalid) as caught:
        validate(draft)
    (problem,) = caught.value.problems
    assert problem.path == f"microgrids.{grid['name']}.devices.0"
    assert "leave via out" in problem.advice


def test_the_scenario_with_hardware_is_a_good_one() -> None:
    scenario = validate(load("ieee33-hil"))
    assert external.over_mqtt(scenario) == {"pv6", "bat13", "wind31"}
    assert external.over_sunspec(scenario).keys() == {"pv24", "bat21"}
