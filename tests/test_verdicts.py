"""Verdicts from hand-made tables: each kind held and not held, with gaps, and what is said of it."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from scenarios.verdicts import AnyExpectation, Expectation, Verdict, evaluate, judge
from simulators.devices import Obedience
from simulators.journal import Journal, NoTables

START = datetime(2026, 6, 21, 10, 0, tzinfo=UTC)
EVERY = timedelta(minutes=15)
PARSE: TypeAdapter[AnyExpectation] = TypeAdapter(Expectation)


def at(step: float) -> datetime:
    return START + step * EVERY


def turn(step: int, **columns: Any) -> dict[str, Any]:
    """A step's row with one controller that decided."""
    return {"step": step, "time": at(step), "controller": "dso", "origin": "optimal", **columns}


def envelope(step: int, device: str, low: float, high: float, **columns: Any) -> dict[str, Any]:
    """Limits on a device's active power, issued at `step`, valid from the next one for two steps."""
    return {
        "issued_at": [at(step)],
        "valid_from": at(step + 1),
        "valid_until": at(step + 3),
        "controller": "dso",
        "target": device,
        "kind": "envelope",
        "seq": step,
        "axes": [("p_mw",)],
        "A": [np.array([[1.0], [-1.0]])],
        "b": [np.array([high, -low])],
        **columns,
    }


def stack(*rows: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Rows of single values, or of lists of one, as columns."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    values = [{k: v[0] if isinstance(v, list) else v for k, v in row.items()} for row in rows]
    return {name: [row.get(name) for row in values] for name in names}


def record(run: Path, *steps: Mapping[str, Any], seal_every: int = 1000) -> Path:
    """A finished run; a step without its own row of `steps` gets one."""
    run.mkdir(exist_ok=True)
    with Journal(run, seal_every=seal_every) as journal:
        for number, tables in enumerate(steps):
            journal.append(number, {"steps": turn(number), **tables})
    return run


def verdict(run: Path, **expectation: Any) -> Verdict:
    return evaluate(run, PARSE.validate_python(expectation))


def volts(step: int, **v_pu: float | None) -> dict[str, Any]:
    return {"buses": {"time": at(step), "bus": list(v_pu), "v_pu": list(v_pu.values())}}


def devices(step: int, p_mw: Mapping[str, float | None], **columns: Any) -> dict[str, Any]:
    return {"devices": {"time": at(step), "device": list(p_mw), "p_mw": list(p_mw.values()), **columns}}


# Voltages and loadings


@pytest.mark.parametrize("seal_every", [1, 1000])
def test_voltages_held(tmp_path: Path, seal_every: int) -> None:
    run = record(tmp_path, volts(0, a=1.0, b=0.96), volts(1, a=1.02, b=0.97), seal_every=seal_every)
    found = verdict(run, what="v_pu", between=[0.95, 1.05])
    assert (found.held, found.share, found.checked, found.missing) == (True, 1.0, 4, 0)
    assert found.worst is not None
    assert (found.worst.name, found.worst.time, found.worst.value) == ("b", at(0), 0.96)
    assert found.worst.by == pytest.approx(-0.01)
    assert "4 of 4 voltages between 0.95 and 1.05 pu" in found.sentence
    assert (
        "closest to the limit: bus b with 0.96 pu, 2026-06-21 10:00:00 UTC, 0.01 pu inside" in found.sentence
    )


@pytest.mark.parametrize(("extreme", "by"), [(1.10, 0.05), (0.90, 0.05), (1.0500001, 1e-7)])
def test_a_voltage_outside_is_named(tmp_path: Path, extreme: float, by: float) -> None:
    run = record(tmp_path, volts(0, a=1.0, b=1.0), volts(1, a=extreme, b=1.0))
    found = verdict(run, what="v_pu", between=[0.95, 1.05])
    assert not found.held
    assert found.share == 0.75
    assert found.worst is not None
    assert (found.worst.name, found.worst.time, found.worst.value) == ("a", at(1), extreme)
    assert found.worst.by == pytest.approx(by, rel=1e-6)
    assert "worst: bus a" in found.sentence
    assert "10:15:00 UTC" in found.sentence
    assert "outside" in found.sentence


@pytest.mark.parametrize(("share", "held"), [(0.75, True), (0.76, False)])
def test_a_share_is_enough(tmp_path: Path, share: float, held: bool) -> None:
    run = record(tmp_path, volts(0, a=1.0, b=1.0), volts(1, a=1.1, b=1.0))
    assert verdict(run, what="v_pu", between=[0.95, 1.05], share=share).held is held


def test_a_limit_may_be_touched(tmp_path: Path) -> None:
    run = record(tmp_path, volts(0, a=0.95, b=1.05))
    found = verdict(run, what="v_pu", between=[0.95, 1.05])
    assert found.held
    assert "on the limit" in found.sentence


@pytest.mark.parametrize(
    ("steps", "missing", "first"),
    [
        ([volts(0, a=1.0, b=1.0), volts(1, a=1.0, b=None)], 1, "b"),
        ([volts(0, a=1.0, b=1.0), volts(1, b=1.0)], 1, "a"),
        ([volts(0, a=1.0, b=1.0), {}], 2, "a"),
        ([volts(0, a=1.0, b=None), volts(1, a=1.0, b=None)], 2, "b"),
    ],
)
def test_missing_voltages_do_not_hold(
    tmp_path: Path, steps: list[dict[str, Any]], missing: int, first: str
) -> None:
    found = verdict(record(tmp_path, *steps), what="v_pu", between=[0.9, 1.1])
    assert not found.held
    assert (found.checked, found.missing) == (4, missing)
    assert found.share == (4 - missing) / 4
    assert f"{missing} missing, first of bus {first}" in found.sentence


def test_without_a_voltage_nothing_holds(tmp_path: Path) -> None:
    found = verdict(record(tmp_path, {}, {}), what="v_pu", between=[0.0, 2.0])
    assert (found.held, found.checked, found.share) == (False, 0, None)
    assert "nothing to check" in found.sentence


def branches(step: int, loading: Mapping[str, float | None], p_mw: float | None = 1.0) -> dict[str, Any]:
    return {
        "branches": {
            "time": at(step),
            "branch": list(loading),
            "p_mw": [p_mw] * len(loading),
            "loading_percent": list(loading.values()),
        }
    }


def test_loadings(tmp_path: Path) -> None:
    run = record(
        tmp_path,
        branches(0, {"line:0": 80.0, "trafo:0": 100.0}),
        branches(1, {"line:0": 90.0, "trafo:0": 130.0}),
    )
    assert verdict(run, what="loading_percent", below=130).held
    found = verdict(run, what="loading_percent", below=100)
    assert (found.held, found.share) == (False, 0.75)
    assert found.worst is not None
    assert (found.worst.name, found.worst.by) == ("trafo:0", 30.0)
    assert "worst: trafo:0 with 130 %" in found.sentence


def test_a_branch_without_a_rating_is_not_missing_but_a_flow_is(tmp_path: Path) -> None:
    loading = {"line:0": 80.0, "line:1": None}
    found = verdict(record(tmp_path / "flows", branches(0, loading)), what="loading_percent", below=100)
    assert (found.held, found.checked, found.missing) == (True, 1, 0)
    assert found.uncounted == {"without_rating": 1}
    assert "1 without rating do not count" in found.sentence
    found = verdict(record(tmp_path / "none", branches(0, loading, None)), what="loading_percent", below=100)
    assert (found.held, found.checked, found.missing) == (False, 2, 1)


# Envelopes


def test_envelopes_respected(tmp_path: Path) -> None:
    run = record(
        tmp_path,
        {"regions": envelope(0, "pv", 0.0, 1.0), **devices(0, {"pv": 5.0})},
        devices(1, {"pv": 1.0 + 5e-7}),
        devices(2, {"pv": 0.25}),
        devices(3, {"pv": 5.0}),
    )
    found = verdict(run, what="envelope_respected")
    assert found.held
    assert found.checked == 2
    assert found.uncounted == {"without_region": 2}  # before the first is valid, and after its end
    assert found.worst is not None
    assert found.worst.by == pytest.approx(5e-7)
    assert "2 without region do not count" in found.sentence
    assert not verdict(run, what="envelope_respected", tolerance_mw=1e-7).held


def test_an_envelope_that_is_left_is_named(tmp_path: Path) -> None:
    run = record(
        tmp_path,
        {"regions": stack(envelope(0, "pv", 0.0, 1.0), envelope(0, "bat", -1.0, 1.0))},
        devices(1, {"pv": 0.5, "bat": -1.2}),
        devices(2, {"pv": 1.5, "bat": 0.0}),
    )
    found = verdict(run, what="envelope_respected")
    assert (found.held, found.share, found.checked) == (False, 0.5, 4)
    assert found.worst is not None
    assert (found.worst.name, found.worst.time, found.worst.value) == ("pv", at(2), 1.5)
    assert found.worst.by == pytest.approx(0.5)
    assert "worst: device pv at 1.5 MW, 2026-06-21 10:30:00 UTC, 0.5 MW outside" in found.sentence


def test_a_newer_envelope_counts_from_its_own_validity(tmp_path: Path) -> None:
    """The newer one, issued at 1, is in force from 2; until then the older is."""
    run = record(
        tmp_path,
        {"regions": envelope(0, "pv", 0.0, 1.0)},
        {"regions": envelope(1, "pv", 0.0, 0.2), **devices(1, {"pv": 0.9})},
        devices(2, {"pv": 0.1}),
    )
    assert verdict(run, what="envelope_respected").held
    run = record(
        tmp_path / "late",
        {"regions": envelope(0, "pv", 0.0, 1.0)},
        {"regions": envelope(1, "pv", 0.0, 0.2), **devices(1, {"pv": 0.9})},
        devices(2, {"pv": 0.9}),
    )
    assert verdict(run, what="envelope_respected").share == 0.5


def test_a_newer_envelope_may_be_wider(tmp_path: Path) -> None:
    run = record(
        tmp_path,
        {"regions": envelope(0, "pv", 0.0, 0.2)},
        {"regions": envelope(1, "pv", 0.0, 1.0), **devices(1, {"pv": 0.1})},
        devices(2, {"pv": 0.9}),
    )
    assert verdict(run, what="envelope_respected").held


@pytest.mark.parametrize(("p_mw", "held"), [(0.4, True), (0.6, False), (-0.1, False)])
def test_every_controllers_envelope_counts(tmp_path: Path, p_mw: float, held: bool) -> None:
    dso = envelope(0, "pv", 0.0, 1.0, seq=9)
    other = envelope(0, "pv", -1.0, 0.5, controller="microgrid", seq=1)
    run = record(tmp_path, {"regions": stack(dso, other)}, devices(1, {"pv": p_mw}))
    found = verdict(run, what="envelope_respected")
    assert found.held is held
    if not held:
        assert ("microgrid" if p_mw > 0 else "controller dso") in found.sentence


def test_other_kinds_and_other_targets_do_not_bind(tmp_path: Path) -> None:
    run = record(
        tmp_path,
        {"regions": stack(envelope(0, "pv", 0.0, 1.0), envelope(0, "pv", 5.0, 6.0, kind="pic", seq=7))},
        devices(1, {"pv": 0.5, "bat": 9.0}),
    )
    found = verdict(run, what="envelope_respected")
    assert (found.held, found.checked, found.uncounted) == (True, 1, {"without_region": 1})


def test_loads_are_not_counted_as_devices_without_an_envelope(tmp_path: Path) -> None:
    step = devices(
        1, {"pv": 0.5, "bat": 0.1, "load1": -1.0}, state=["limited", "init", Obedience.UNCONTROLLED]
    )
    run = record(tmp_path, {"regions": envelope(0, "pv", 0.0, 1.0)}, step)
    assert verdict(run, what="envelope_respected").uncounted == {"without_region": 1}


def test_an_excess_is_a_distance_in_p_and_q(tmp_path: Path) -> None:
    """Row 30 p + 40 q <= 25, stored as it came: the point (0.5, 0.5) is 0.2 outside."""
    plane = envelope(
        0, "pv", 0, 0, axes=[("q_mvar", "p_mw")], A=[np.array([[40.0, 30.0]])], b=[np.array([25.0])]
    )
    run = record(tmp_path, {"regions": plane}, devices(1, {"pv": 0.5}, q_mvar=0.5))
    found = verdict(run, what="envelope_respected")
    assert found.worst is not None
    assert found.worst.by == pytest.approx(0.2)


@pytest.mark.parametrize("gap", [devices(1, {"pv": None}), devices(1, {"bat": 0.0}), {}])
def test_a_device_with_an_envelope_and_no_value_is_missing(tmp_path: Path, gap: dict[str, Any]) -> None:
    run = record(tmp_path, {"regions": envelope(0, "pv", -1.0, 1.0)}, gap, devices(2, {"pv": 0.0}))
    found = verdict(run, what="envelope_respected")
    assert (found.held, found.checked, found.missing) == (False, 2, 1)
    assert "1 missing, first of device pv, 2026-06-21 10:15:00 UTC" in found.sentence


def test_without_an_envelope_nothing_holds(tmp_path: Path) -> None:
    found = verdict(record(tmp_path, devices(0, {"pv": 0.0})), what="envelope_respected")
    assert (found.held, found.checked, found.uncounted) == (False, 0, {"without_region": 1})


# Decisions and durations


def test_decided(tmp_path: Path) -> None:
    rows = [
        turn(0, origin="optimal"),
        turn(1, origin="fallback"),
        turn(2, controller=None, origin=None),  # nobody was due
        turn(3, origin="held"),
        turn(4, origin="certified"),
    ]
    run = record(tmp_path, *({"steps": row} for row in rows))
    found = verdict(run, what="decided")
    assert (found.held, found.share, found.checked) == (False, 0.75, 4)
    assert "1 held; first without: controller dso, 2026-06-21 10:45:00 UTC" in found.sentence
    assert verdict(run, what="decided", share=0.75).held


@pytest.mark.parametrize("origin", ["held", "default", "skipped", None])
def test_what_is_no_decision(tmp_path: Path, origin: str | None) -> None:
    found = verdict(record(tmp_path, {"steps": turn(0, origin=origin)}), what="decided")
    assert (found.held, found.share, found.missing) == (False, 0.0, origin is None)


def test_every_due_controller_counts(tmp_path: Path) -> None:
    both = stack(turn(0), turn(0, controller="microgrid", origin="default"))
    found = verdict(record(tmp_path, {"steps": both}), what="decided")
    assert (found.checked, found.share) == (2, 0.5)
    assert found.worst is not None
    assert found.worst.name == "microgrid"


@pytest.mark.parametrize(
    ("statistic", "limit", "held", "observed"),
    [
        ("p50_below", 10, True, 10.0),
        ("p50_below", 9, False, 10.0),
        ("p95_below", 19, True, 19.0),
        ("p95_below", 18.9, False, 19.0),
        ("p99_below", 19.5, False, 20.0),
        ("max_below", 20, True, 20.0),
    ],
)
def test_percentiles_by_nearest_rank(
    tmp_path: Path, statistic: str, limit: float, held: bool, observed: float
) -> None:
    run = record(tmp_path, *({"steps": turn(k, solve_ms=20.0 - k)} for k in range(20)))  # 1..20
    found = verdict(run, what="solve_ms", **{statistic: limit})
    assert (found.held, found.observed, found.checked) == (held, observed, 20)
    assert found.worst is not None
    assert (found.worst.name, found.worst.time, found.worst.value) == ("controller dso", at(0), 20.0)
    assert "greatest: 20 ms, controller dso, 2026-06-21 10:00:00 UTC" in found.sentence


def test_a_missing_duration_may_have_been_any(tmp_path: Path) -> None:
    run = record(tmp_path, {"steps": turn(0, solve_ms=1.0)}, {"steps": turn(1, solve_ms=None)})
    found = verdict(run, what="solve_ms", max_below=1000)
    assert (found.held, found.observed, found.checked, found.missing) == (False, None, 2, 1)
    assert "is not known" in found.sentence
    assert verdict(run, what="solve_ms", p50_below=1).held


def test_what_nobody_had_to_solve_is_not_missing(tmp_path: Path) -> None:
    rows = [turn(0, solve_ms=1.0), turn(1, origin="skipped"), turn(2, controller=None, origin=None)]
    run = record(tmp_path / "all", *({"steps": row} for row in rows))
    found = verdict(run, what="solve_ms", max_below=2)
    assert (found.held, found.checked, found.missing) == (True, 1, 0)
    # A controller that tried and failed took its time all the same.
    failed = record(tmp_path / "failed", {"steps": turn(0, origin="held", solve_ms=9.0)})
    assert verdict(failed, what="solve_ms", max_below=2).observed == 9.0


@pytest.mark.parametrize("what", ["lateness_ms", "power_flow_ms", "publish_ms"])
def test_a_step_counts_once_however_many_controllers(tmp_path: Path, what: str) -> None:
    both = stack(
        turn(0, planned_at=at(0), **{what: 3.0}), turn(0, controller="b", planned_at=at(0), **{what: 5.0})
    )
    found = verdict(record(tmp_path, {"steps": both}), what=what, p95_below=5)
    assert (found.held, found.checked, found.observed) == (True, 1, 5.0)


def test_lateness_needs_a_paced_clock(tmp_path: Path) -> None:
    found = verdict(record(tmp_path, {}, {}), what="lateness_ms", p95_below=1)
    assert (found.held, found.checked) == (False, 0)
    assert "not paced" in found.sentence
    paced = record(tmp_path / "paced", {"steps": turn(0, planned_at=at(0))})
    found = verdict(paced, what="lateness_ms", p95_below=1)
    assert (found.held, found.checked, found.missing) == (False, 1, 1)


def sent(seq: int, after_ms: float | None, **columns: Any) -> dict[str, Any]:
    acked = None if after_ms is None else at(0) + timedelta(milliseconds=after_ms)
    return {
        "seq": seq,
        "epoch": 1,
        "device": f"der{seq}",
        "issued_at": at(0),
        "valid_until": at(2),
        "sent_at": at(0),
        "acked_at": acked,
        "outcome": "applied",
        **columns,
    }


def test_acknowledgements(tmp_path: Path) -> None:
    unsent = sent(3, None, sent_at=None, outcome="superseded")
    run = record(tmp_path, {"setpoints": stack(sent(1, 120.0), sent(2, 480.0), unsent)})
    found = verdict(run, what="ack_ms", p95_below=500)
    assert (found.held, found.observed, found.checked) == (True, 480.0, 2)
    assert found.worst is not None
    assert found.worst.name == "der2"
    assert not verdict(run, what="ack_ms", p95_below=479).held


def test_an_instruction_without_an_answer_is_missing(tmp_path: Path) -> None:
    run = record(tmp_path, {"setpoints": stack(sent(1, 1.0), sent(2, None, outcome="expired"))})
    found = verdict(run, what="ack_ms", max_below=500)
    assert (found.held, found.missing) == (False, 1)
    assert "1 missing, first of der2" in found.sentence


# Curtailment


def test_curtailed_energy_is_power_times_the_step(tmp_path: Path) -> None:
    run = record(
        tmp_path,
        devices(0, {"pv": 1.0, "bat": 1.0}, curtailed_mw=[0.4, None]),
        devices(1, {"pv": 1.0, "bat": 1.0}, curtailed_mw=[0.8, None]),
    )
    found = verdict(run, what="curtailed_mwh", below=0.3)  # (0.4 + 0.8) MW for a quarter of an hour
    assert found.held
    assert found.observed == pytest.approx(0.3)
    found = verdict(run, what="curtailed_mwh", below=0.2)
    assert not found.held
    assert found.worst is not None
    assert found.worst.by == pytest.approx(0.1)
    assert "0.3 MWh curtailed, limit 0.2 MWh; most: device pv with 0.3 MWh" in found.sentence


def test_curtailment_with_a_gap_is_not_known(tmp_path: Path) -> None:
    run = record(tmp_path, devices(0, {"pv": 1.0}, curtailed_mw=[0.0]), devices(1, {"pv": 1.0}))
    found = verdict(run, what="curtailed_mwh", below=1)
    assert (found.held, found.checked, found.missing) == (False, 2, 1)
    assert "at least 0 MWh" in found.sentence


@pytest.mark.parametrize("steps", [1, 2])
def test_curtailment_that_cannot_be_told(tmp_path: Path, steps: int) -> None:
    curtailed = [0.0] if steps == 1 else [None]
    run = record(tmp_path, *(devices(k, {"pv": 1.0}, curtailed_mw=curtailed) for k in range(steps)))
    found = verdict(run, what="curtailed_mwh", below=1)
    assert (found.held, found.checked) == (False, 0)


# The files


def test_verdicts_are_written_for_machines_and_people(tmp_path: Path) -> None:
    run = record(tmp_path / "a-run", volts(0, a=1.0, **{"b<&\x01": 1.2}))
    expectations = [
        PARSE.validate_python({"what": "v_pu", "between": [0.9, 1.3]}),
        PARSE.validate_python({"what": "v_pu", "between": [0.99, 1.01]}),
    ]
    found = judge(run, expectations)
    assert [v.held for v in found] == [True, False]

    written = json.loads((run / "verdicts.json").read_text())
    assert written["held"] is False
    assert written["verdicts"][1]["worst"] == {
        "name": "b<&\x01",
        "time": "2026-06-21T10:00:00Z",
        "value": 1.2,
        "by": pytest.approx(0.19),
    }
    suite = ET.parse(run / "junit.xml").getroot()
    assert (suite.get("name"), suite.get("tests"), suite.get("failures")) == ("a-run", "2", "1")
    passed, failed = suite.findall("testcase")
    assert passed.find("failure") is None
    assert failed.get("name") == "v_pu between 0.99 and 1.01 for 100 %"
    failure = failed.find("failure")
    assert failure is not None
    assert failure.get("message") == found[1].sentence.replace("\x01", "?")


def test_no_expectation_holds(tmp_path: Path) -> None:
    run = record(tmp_path, {})
    assert judge(run, []) == ()
    assert json.loads((run / "verdicts.json").read_text()) == {"held": True, "verdicts": []}
    assert ET.parse(run / "junit.xml").getroot().get("tests") == "0"


def test_a_killed_run_is_judged_like_a_finished_one(tmp_path: Path) -> None:
    expected = PARSE.validate_python({"what": "v_pu", "between": [0.95, 1.05]})
    journal = Journal(tmp_path, seal_every=2)
    for step in range(5):
        journal.append(step, {"steps": turn(step), **volts(step, a=1.0, b=0.93 + 0.02 * step)})
    killed = evaluate(tmp_path, expected)
    journal.close()
    assert killed == evaluate(tmp_path, expected)
    assert killed.share == 0.9


def test_without_tables_there_is_no_verdict(tmp_path: Path) -> None:
    with pytest.raises(NoTables, match="nothing was recorded"):
        verdict(tmp_path, what="decided")


# What a scenario may write


@pytest.mark.parametrize(
    ("expectation", "message"),
    [
        ({"what": "v_pu", "between": [1.05, 0.95]}, "lower limit 1.05 above its upper 0.95; swap them"),
        ({"what": "v_pu", "between": [0.95, 1.05], "shore": 1.0}, "Extra inputs"),
        ({"what": "v_pu", "between": [0.95, 1.05], "share": 1.5}, "less than or equal to 1"),
        ({"what": "v_pu", "between": [0.95, 1.05], "share": 0}, "greater than 0"),
        ({"what": "v_pu", "between": [0.95, float("nan")]}, "finite"),
        ({"what": "v_pu", "between": ["0.95", 1.05]}, "valid number"),
        ({"what": "voltage", "between": [0.95, 1.05]}, "does not match any of the expected tags"),
        ({"what": "solve_ms"}, "has no limit; give exactly one of p50_below"),
        ({"what": "ack_ms", "p50_below": 1, "p95_below": 2}, "has p50_below and p95_below; give exactly one"),
        ({"what": "loading_percent", "below": -1}, "greater than or equal to 0"),
        ({"what": "envelope_respected", "tolerance_mw": -1e-6}, "greater than or equal to 0"),
        ({"what": "curtailed_mwh"}, "Field required"),
    ],
)
def test_mistakes_are_refused(expectation: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PARSE.validate_python(expectation)
