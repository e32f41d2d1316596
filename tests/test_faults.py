"""Faults of a scenario: each does what it says, to whom it says, when it says, and is seen afterwards."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from bridges.tapped import Way
from controllers.contract import Decision, Late, Observation, Origin
from controllers.forecast import Forecast
from scenarios.build import build
from scenarios.check import ScenarioInvalid, validate
from scenarios.events import read_events
from scenarios.faults import misplaced
from scenarios.link import Link
from scenarios.load import Draft, load
from scenarios.run import Exit, Result, make_clock
from scenarios.schema import Scenario
from scenarios.trouble import Trouble
from simulators.clock import Duty, Tick
from simulators.deadline import Deadline
from simulators.faults import Fault, Faults, What, chance
from simulators.faulty import FaultyController
from simulators.journal import read
from simulators.outage import together
from tests.running import do

START = datetime(2026, 6, 21, 11, tzinfo=UTC)
EVERY = timedelta(minutes=5)
FAST = ("grid.engine=power-grid-model", "record.forecasts=false", "expect=[]")


async def trial(folder: Path, *faults: str, steps: int = 8, changes: Sequence[str] = ()) -> Result:
    """A short run with some faults."""
    result = await do(
        "ieee33-quick", folder, *FAST, f"steps={steps}", f"faults=[{', '.join(faults)}]", *changes
    )
    assert result.exit is Exit.HELD, result.why
    return result


def rows(result: Result, table: str, **where: Any) -> list[Mapping[str, Any]]:
    """Rows of a table, each with its `step`."""
    found = []
    for row in read(result.directory, table).to_pylist():
        row["step"] = round(((row.get("time") or row.get("issued_at")) - START) / EVERY)
        if all(row[key] == value for key, value in where.items()):
            found.append(row)
    return found


def states(result: Result, device: str) -> list[str]:
    return [row["state"] for row in rows(result, "devices", device=device)]


def origins(result: Result) -> list[str]:
    return [row["origin"] for row in rows(result, "steps")]


def events(result: Result, what: str) -> list[dict[str, Any]]:
    return [e for e in read_events(result.directory / "events.jsonl") if e["what"] == what]


def told(result: Result, device: str) -> dict[int, str]:
    """What became of each instruction, the last word, by the step in which it was decided."""
    return {row["seq"] - 1: row["outcome"] for row in read(result.directory, "setpoints").to_pylist()
            if row["device"] == device}  # fmt: skip


# What the file says


def problems(*faults: str) -> dict[str, str]:
    """Advice by path."""
    try:
        draft = load("ieee33-quick", [f"faults=[{', '.join(faults)}]", "bus.kind=memory"])
        build(draft, validate(draft))
    except ScenarioInvalid as error:
        return {problem.path: problem.advice for problem in error.problems}
    return {}


@pytest.mark.parametrize(
    ("fault", "path", "words"),
    [
        ("{what: los, at: 0s, for: 5min}", "faults.0.what", "did you mean 'loss'?"),
        ("{what: loss, at: soon, for: 5min}", "faults.0.at", "is no time"),
        ("{what: loss, at: '2026-06-21T11:00:00', for: 5min}", "faults.0.at", "has no time zone"),
        ("{what: loss, at: 5min}", "faults.0.for", "is required"),
        ("{what: loss, at: 5min, for: 0s}", "faults.0.for", "longer than zero"),
        ("{what: loss, at: 5min, for: 5min, share: 0}", "faults.0.share", "greater than 0"),
        ("{what: loss, at: 5min, for: 5min, share: 2}", "faults.0.share", "less than or equal to 1"),
        (
            "{what: loss, at: 5min, for: 5min, direction: left}",
            "faults.0.direction",
            "'down', 'up' or 'both'",
        ),
        ("{what: loss, at: 5min, for: 5min, devise: pv6}", "faults.0.devise", "did you mean 'device'?"),
        ("{what: loss, at: 1h, for: 5min}", "faults.0.at", "when the run is over"),
        ("{what: loss, at: 2026-06-21T10:00:00Z, for: 5min}", "faults.0.at", "before the run begins"),
        ("{what: loss, at: 5min, for: 5min, device: pv7}", "faults.0.device", "did you mean 'pv"),
        ("{what: delay, at: 5min, for: 5min}", "faults.0", "by is required"),
        ("{what: slow-link, at: 5min, for: 5min}", "faults.0.bytes_per_s", "is required"),
        ("{what: device-silent, at: 5min, for: 5min}", "faults.0.device", "is required"),
        ("{what: meter-stuck, at: 5min, for: 5min}", "faults.0", "exactly one of device"),
        ("{what: meter-stuck, at: 5min, for: 5min, bus: 99}", "faults.0.bus", "is not in the grid"),
        ("{what: meter-stuck, at: 5min, for: 5min, device: 'load:99'}", "faults.0.device", "is no load"),
        ("{what: meter-biased, at: 5min, for: 5min, bus: 5}", "faults.0", "needs v_pu"),
        ("{what: meter-biased, at: 5min, for: 5min, bus: 5, p_mw: 1}", "faults.0", "give v_pu"),
        ("{what: solver-raises, at: 5min, for: 5min, controller: dno}", "faults.0.controller", "'dso'"),
        ("{what: line-out, at: 5min, for: 5min, line: 77}", "faults.0.line", "is no line of the net"),
        ("{what: line-out, at: 5min, for: 5min, line: 34}", "faults.0.line", "is open already"),
        ("{at: 5min, for: 5min}", "faults.0.what", "is required; choose 'loss', 'duplication', 'delay'"),
        (
            "{what: loss, at: 6min, for: 4min}",
            "faults.0.for",
            "begin at 10min after the start, or last longer",
        ),
        ("{what: loss, at: 56min, for: 2h}", "faults.0.at", "after its last step has begun, at 55min"),
        ("{what: loss, at: 5min, for: 5min, device: 'load:3'}", "faults.0.device", "is no device"),
        ("{what: device-silent, at: 5min, for: 5min, device: 'load:3'}", "faults.0.device", "is no device"),
        ("{what: device-disobeys, at: 5min, for: 5min, device: 'load:3'}", "faults.0.device", "is no device"),
        ("{what: delay, at: 0s, for: 5min, by: 1s, topic: ack, direction: down}", "faults.0", "only goes up"),
        ("{what: loss, at: 0s, for: 5min, topic: setpoint, direction: up}", "faults.0", "only goes down"),
    ],
)
def test_a_mistake_is_named_with_its_place(fault: str, path: str, words: str) -> None:
    found = problems(fault)
    assert words in found.get(path, ""), found


def test_a_window_in_which_one_step_begins_is_enough() -> None:
    faults = "faults=[{what: loss, at: 6min, for: 5min}, {what: loss, at: 55min, for: 1s}]"
    assert not list(misplaced(load("ieee33-quick", [faults]).raw))


def test_gateways_and_real_devices_are_hit_where_a_fault_reaches_them() -> None:
    def advice(fault: str) -> str:
        change = [f"faults=[{fault}]", "devices.pv6.via={mqtt: {gateway: gw1}}"]
        return "".join(advice for _, _, advice in misplaced(load("ieee33-hil", change).raw))

    window = "at: 5s, for: 5s"
    assert advice(f"{{what: device-silent, {window}, device: gw1}}") == ""
    assert advice(f"{{what: loss, {window}, device: gw1}}") == ""
    assert advice(f"{{what: meter-stuck, {window}, device: wind31}}") == ""
    assert "is no device" in advice(f"{{what: meter-stuck, {window}, device: gw1}}")
    assert "is no device" in advice(f"{{what: device-disobeys, {window}, device: gw1}}")
    assert "is a real device" in advice(f"{{what: device-disobeys, {window}, device: wind31}}")


@pytest.mark.parametrize(
    ("fault", "path"),
    [
        ("{what: line-out, at: 5min, for: 5min, line: true}", "faults.0.line"),
        ("{what: line-out, at: 5min, for: 5min, line: 1.5}", "faults.0.line"),
        ("{what: meter-stuck, at: 5min, for: 5min, bus: [3]}", "faults.0.bus"),
    ],
)
def test_one_mistake_is_one_problem(fault: str, path: str) -> None:
    assert problems(fault) == {path: "must be an index of the net, such as 3, or a name"}


def test_all_mistakes_are_named_at_once() -> None:
    found = problems("{what: loss, at: soon, for: 5min}", "{what: line-out, at: 5min, for: 5min, line: 77}")
    assert set(found) == {"faults.0.at", "faults.1.line"}


@pytest.mark.parametrize(
    "at", ["00:10", "10min", "600s", "2026-06-21T11:10:00Z", "2026-06-21T13:10:00+02:00"]
)
def test_times_are_offsets_or_instants(at: str) -> None:
    draft = load("ieee33-quick", [f"faults=[{{what: loss, at: '{at}', for: 5min}}]", "bus.kind=memory"])
    scenario = validate(draft)
    (fault,) = build(draft, scenario).faults
    assert (fault.start, fault.end) == (START + timedelta(minutes=10), START + timedelta(minutes=15))
    again = Scenario.model_validate(json.loads(scenario.model_dump_json()))
    assert again.faults == scenario.faults


def test_lines_go_by_their_name_too() -> None:
    draft = load("ieee33-quick", ["faults=[{what: line-out, at: 0s, for: 5min, line: 16}]"])
    draft = Draft({**draft.raw}, draft.folder, draft.origin)
    (fault,) = build(draft, validate(draft)).faults
    assert fault.branch == "line:16"


def test_what_takes_a_microgrids_supply_is_refused() -> None:
    draft = load("ieee33-interchange", ["faults=[{what: line-out, at: 0s, for: 1h, line: 0}]"])
    scenario = validate(draft)
    with pytest.raises(ScenarioInvalid, match=r"takes the supply of microgrid .*isolated"):
        build(draft, scenario)


# When


def fault(number: int, what: What, start: int, end: int, **more: Any) -> Fault:
    return Fault(number=number, what=what, start=START + start * EVERY, end=START + end * EVERY, **more)


def test_lines_that_are_open_at_the_same_time() -> None:
    faults = [
        fault(0, What.LINE_OUT, 0, 4, branch="a"),
        fault(1, What.LINE_OUT, 2, 6, branch="b"),
        fault(2, What.LINE_OUT, 8, 9, branch="c"),
    ]
    assert together(faults) == {frozenset("a"), frozenset("ab"), frozenset("b"), frozenset("c")}


async def test_each_fault_is_an_event_at_its_beginning_and_its_end(tmp_path: Path) -> None:
    result = await trial(
        tmp_path,
        "{what: loss, at: 7min, for: 6min, share: 0.1}",
        "{what: device-silent, at: 5min, for: 10min, device: pv6}",
        "{what: broker-down, at: 30min, for: 2h}",
    )
    began = [(e["step"], e["fault"], e["why"]) for e in events(result, "fault-began")]
    ended = [(e["step"], e["fault"]) for e in events(result, "fault-ended")]
    assert began == [
        (1, "device-silent", "device-silent of pv6 began"),
        (2, "loss", "loss began"),
        (6, "broker-down", "broker-down began"),
    ]
    assert ended == [(3, "loss"), (3, "device-silent")]
    assert events(result, "fault-began")[1]["share"] == 0.1


def test_a_chance_follows_from_its_key_alone() -> None:
    drawn = [chance(7, "down", "pv6", n) for n in range(4000)]
    assert drawn == [chance(7, "down", "pv6", n) for n in range(4000)]
    assert 0.47 < sum(drawn) / len(drawn) < 0.53
    assert all(0 <= one < 1 for one in drawn)
    assert drawn != [chance(8, "down", "pv6", n) for n in range(4000)]


def test_faults_that_come_between_do_not_change_what_is_drawn_for_another() -> None:
    def fates(*more: Fault) -> list[bool]:
        loss = fault(0, What.LOSS, 0, 9, share=0.5, device="a")
        faults = Faults([loss, *more], 7, lambda *args, **details: None)
        faults.now = faults.all
        return [bool(faults.fate("mail", "down", "setpoint", "a", 10, 0.0)) for _ in range(50)]

    assert fates() == fates(fault(1, What.DELAY, 0, 9, share=0.7, by_s=1.0))
    assert 10 < sum(fates()) < 40


async def test_same_seed_same_tables(tmp_path: Path) -> None:
    several = (
        "{what: loss, at: 5min, for: 15min, share: 0.4}",
        "{what: reordering, at: 10min, for: 10min, share: 0.5}",
        "{what: solver-infeasible, at: 15min, for: 20min, controller: dso, share: 0.5}",
    )
    found = []
    for folder, seed in (("a", 7), ("b", 7), ("c", 8)):
        result = await trial(tmp_path / folder, *several, changes=[f"seed={seed}"])
        found.append(
            [read(result.directory, table) for table in ("devices", "setpoints", "buses", "regions")]
        )
    assert all(one.equals(two) for one, two in zip(found[0], found[1], strict=True))
    assert not found[0][1].equals(found[2][1])


# Messages and the link


async def test_lost_instructions_are_not_heard_of_again(tmp_path: Path) -> None:
    result = await trial(tmp_path, "{what: loss, at: 10min, for: 15min, device: pv6}")
    outcomes = told(result, "pv6")
    assert [outcomes[step] for step in (1, 2, 3)] == ["expired"] * 3
    assert states(result, "pv6")[4] == "failsafe"  # what it was told last is over
    assert "failsafe" not in states(result, "pv24")
    assert all(outcome != "expired" for outcome in told(result, "pv24").values())


async def test_a_late_instruction_still_counts_or_is_over(tmp_path: Path) -> None:
    late = await trial(tmp_path / "late", "{what: delay, at: 0s, for: 40min, by: 8min, topic: setpoint}")
    over = await trial(tmp_path / "over", "{what: delay, at: 0s, for: 40min, by: 16min, topic: setpoint}")
    soon = await trial(tmp_path / "soon", "{what: delay, at: 0s, for: 40min, by: 4min, topic: setpoint}")
    assert states(late, "pv6")[:2] == ["init", "init"]
    assert set(states(late, "pv6")[2:]) <= {"controlled", "limited"}
    assert set(states(over, "pv6")) == {"init"}
    assert set(list(told(over, "pv6").values())[:5]) == {"expired"}
    assert states(soon, "pv6") == states(await trial(tmp_path / "without"), "pv6")


async def test_what_comes_twice_is_refused_and_harms_nobody(tmp_path: Path) -> None:
    with_it = await trial(tmp_path / "a", "{what: duplication, at: 0s, for: 40min, topic: setpoint}")
    without = await trial(tmp_path / "b")
    for name in ("devices", "buses"):
        assert read(with_it.directory, name).equals(read(without.directory, name))
    manifest = json.loads((with_it.directory / "manifest.json").read_text())
    assert manifest["counts"]["mail-duplication"] > 40
    happened = {name: n for name, n in manifest["counts"].items() if name.startswith("faulty-")}
    assert happened.keys() == {"faulty-twice"}
    assert happened["faulty-twice"] > 40


async def test_what_was_overtaken_is_refused_as_old(tmp_path: Path) -> None:
    result = await trial(
        tmp_path, "{what: reordering, at: 5min, for: 6min, topic: setpoint, device: pv6, by: 11min}", steps=10
    )
    reasons = [r["reason"] for r in read(result.directory, "setpoints").to_pylist() if r["device"] == "pv6"]
    assert any(reason and reason.startswith(("old", "stale")) for reason in reasons)


async def test_an_answer_that_is_lost_leaves_the_instruction_unanswered(tmp_path: Path) -> None:
    result = await trial(tmp_path, "{what: loss, at: 0s, for: 40min, direction: up, device: pv6}")
    assert set(states(result, "pv6")[1:]) <= {"controlled", "limited"}  # it has heard, and obeys
    assert set(told(result, "pv6").values()) <= {"expired", "sent"}
    assert "applied" in told(result, "pv24").values()


@pytest.mark.parametrize("what", ["broker-down", "broker-frozen", "black-hole"])
async def test_a_cut_link_takes_devices_to_their_fallback_and_back(what: str, tmp_path: Path) -> None:
    result = await trial(tmp_path, f"{{what: {what}, at: 10min, for: 20min}}", steps=9)
    for device in ("pv6", "bat21", "wind31"):
        found = states(result, device)
        assert found[3:6] == ["failsafe"] * 3, found
        assert set(found[1:3]) | set(found[6:]) <= {"controlled", "limited", "unable"}
    assert [e["step"] for e in events(result, "bus-unreachable")] == [2]
    assert [e["step"] for e in events(result, "bus-reachable")] == [6]


async def test_a_slow_link_delays_the_last_ones_most(tmp_path: Path) -> None:
    result = await trial(tmp_path, "{what: slow-link, at: 0s, for: 40min, bytes_per_s: 10}")
    manifest = json.loads((result.directory / "manifest.json").read_text())
    assert manifest["counts"]["mail-slow-link"] > 0
    assert states(result, "pv6")[1] in ("controlled", "limited")  # 1,000 bytes take 100 s
    assert states(result, "wind31")[1] == "init"  # the sixth comes after 600 s


async def test_a_cut_of_one_step_supersedes_what_ends_with_it(tmp_path: Path) -> None:
    result = await trial(tmp_path, "{what: broker-down, at: 10min, for: 5min}")
    assert "failsafe" not in states(result, "pv6")
    assert "fallback" not in told(result, "pv6").values()


# Devices


async def test_a_silent_device_neither_hears_nor_is_heard(tmp_path: Path) -> None:
    module = tmp_path / "looks.py"
    module.write_text(LOOKS)
    result = await trial(
        tmp_path / "out",
        "{what: device-silent, at: 10min, for: 15min, device: bat21}",
        changes=[f"controllers.dso.uses={module}:Looks"],
    )
    assert states(result, "bat21")[4] == "failsafe"
    assert states(result, "bat13")[4] in ("controlled", "limited")
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert [bool(step["p_mw"].get("bat21") is None) for step in seen] == [s in (2, 3, 4) for s in range(8)]
    assert {step["silent"].get("bat21") for step in seen[2:5]} == {"2026-06-21T11:10:00+00:00"}
    assert "bat21" not in seen[3]["e_mwh"]


async def test_a_device_that_disobeys_says_that_it_obeys(tmp_path: Path) -> None:
    calm = await trial(tmp_path / "a")
    wild = await trial(tmp_path / "b", "{what: device-disobeys, at: 10min, for: 10min, device: pv6}")
    own = rows(wild, "devices", device="pv6")
    assert [row["state"] for row in own][2:4] == ["disobeying"] * 2
    for row, before in zip(own[2:4], rows(calm, "devices", device="pv6")[2:4], strict=True):
        assert row["p_mw"] == pytest.approx(row["available_mw"])
        assert row["p_mw"] > before["p_mw"]
    assert told(wild, "pv6")[2] == "applied" == told(calm, "pv6")[2]
    assert states(wild, "pv6")[4:] == states(calm, "pv6")[4:]


# Meters

LOOKS = """
import json
from dataclasses import dataclass, field
from pathlib import Path
from controllers.contract import Decision, Origin
from controllers.region import Region

@dataclass
class Looks:
    site: object
    seen: list = field(default_factory=list)
    def step(self, o):
        plain = {k: dict(getattr(o, k)) for k in ("v_pu", "p_mw", "q_mvar", "e_mwh")}
        self.seen.append({**plain, "silent": {k: v.isoformat() for k, v in o.silent_since.items()}})
        Path(__file__).with_name("seen.json").write_text(json.dumps(self.seen))
        box = {"p_mw": (-0.4, 0.4), "q_mvar": (0.0, 0.0)}
        regions = {n: Region.box(**box) for n in self.site.devices}
        return Decision(time=o.time, origin=Origin.OPTIMAL, regions=regions)
"""


def looking(folder: Path) -> Path:
    """A controller that writes down what it is shown."""
    folder.mkdir()
    module = folder / "looks.py"
    module.write_text(LOOKS)
    return module


async def shown(folder: Path, *faults: str) -> tuple[list[dict[str, Any]], Result]:
    """What a controller was shown in each step."""
    module = looking(folder)
    result = await trial(folder / "out", *faults, changes=[f"controllers.dso.uses={module}:Looks"])
    return json.loads((folder / "seen.json").read_text()), result


async def test_wrong_meters_are_seen_by_controllers_and_not_recorded(tmp_path: Path) -> None:
    right, calm = await shown(tmp_path / "a")
    wrong, result = await shown(
        tmp_path / "b",
        "{what: meter-stuck, at: 10min, for: 15min, bus: 17}",
        "{what: meter-biased, at: 10min, for: 15min, bus: 24, v_pu: 0.02}",
        "{what: meter-biased, at: 10min, for: 15min, device: pv24, p_mw: -0.3, q_mvar: 0.1}",
        "{what: meter-stuck, at: 10min, for: 15min, device: 'load:3'}",
        "{what: measurement-missing, at: 10min, for: 15min, bus: 5}",
        "{what: measurement-missing, at: 10min, for: 15min, device: 'load:7'}",
        "{what: measurement-missing, at: 10min, for: 15min, device: wind31}",
        "{what: meter-stuck, at: 10min, for: 15min, device: bat13}",
    )
    assert len({step["e_mwh"]["bat13"] for step in right}) == 8
    for step in range(8):
        on, a, b = step in (2, 3, 4), right[step], wrong[step]
        assert b["v_pu"]["17"] == (right[2] if on else a)["v_pu"]["17"]
        assert b["v_pu"]["24"] == pytest.approx(a["v_pu"]["24"] + 0.02 * on)
        assert b["p_mw"]["pv24"] == pytest.approx(a["p_mw"]["pv24"] - 0.3 * on)
        assert b["q_mvar"]["pv24"] == pytest.approx(a["q_mvar"]["pv24"] + 0.1 * on)
        for key in ("p_mw", "q_mvar", "e_mwh"):
            assert b[key]["bat13"] == (right[2] if on else a)[key]["bat13"]
        assert b["p_mw"]["load:3"] == (right[2] if on else a)["p_mw"]["load:3"]
        assert ("5" in b["v_pu"], "load:7" in b["p_mw"], "wind31" in b["p_mw"]) == (not on,) * 3
        assert ("wind31" in b["silent"]) == on
    for name in ("devices", "buses", "branches"):
        assert read(calm.directory, name).equals(read(result.directory, name)), name


# Solvers


async def test_what_a_solver_does_takes_the_run_down_the_ladder_and_not_out(tmp_path: Path) -> None:
    kinds = ("infeasible", "raises", "nan", "late")
    faults = [
        f"{{what: solver-{kind}, at: {5 + 15 * i}min, for: 5min, controller: dso"
        + (", by: 5min}" if kind == "late" else "}")
        for i, kind in enumerate(kinds)
    ]
    result = await trial(tmp_path, *faults, steps=12)
    assert origins(result) == ["optimal", *["held", "optimal", "optimal"] * 3, "held", "optimal"]
    words = {"infeasible": 1, "controller-raised": 2, "late": 1}
    assert {what: len(events(result, what)) for what in words} == words


async def test_a_solver_that_is_late_within_its_deadline_is_not(tmp_path: Path) -> None:
    result = await trial(
        tmp_path, "{what: solver-late, at: 5min, for: 5min, controller: dso, by: 20s}",
        changes=["controllers.dso.deadline=30s"],
    )  # fmt: skip
    assert set(origins(result)) == {"optimal"}


@pytest.mark.parametrize(
    ("clock", "deadline", "slept"),
    [
        ("mode: live", "1h", [120.0]),
        ("mode: scaled, factor: 60", "1h", [2.0]),
        ("mode: fast", "3min", []),
        ("mode: fast", "2min", None),
    ],
)
def test_a_solver_is_late_by_simulated_time(clock: str, deadline: str, slept: list[float] | None) -> None:
    late = "faults=[{what: solver-late, at: 5min, for: 5min, controller: dso, by: 2min}]"
    changes = [late, f"clock={{{clock}}}", f"controllers.dso.deadline={deadline}", "bus.kind=memory"]
    draft = load("ieee33-quick", changes)
    (seat,) = build(draft, validate(draft)).seats
    assert isinstance(seat.controller, Deadline)
    faulty = seat.controller.inner
    assert isinstance(faulty, FaultyController)
    taken: list[float] = []
    empty = Forecast.empty(START + EVERY, EVERY)
    faulty = replace(faulty, inner=Nothing(), sleep=taken.append)
    if slept is None:
        with pytest.raises(Late, match="120 s longer"):
            faulty.step(Observation(time=START + EVERY, forecast=empty))
    else:
        faulty.step(Observation(time=START + EVERY, forecast=empty))
        assert taken == slept


class Nothing:
    def step(self, observation: Observation) -> Decision:
        return Decision(time=observation.time, origin=Origin.OPTIMAL)


STATIC = "controllers.dso.fallback=controllers.envelopes.static_limits:StaticLimits"


async def test_with_a_fallback_it_is_asked_whatever_is_wrong(tmp_path: Path) -> None:
    kinds = ("infeasible", "raises", "nan", "late")
    faults = [
        f"{{what: solver-{kind}, at: {5 + 10 * i}min, for: 5min, controller: dso"
        + (", by: 5min}" if kind == "late" else "}")
        for i, kind in enumerate(kinds)
    ]
    result = await trial(tmp_path, *faults, steps=9, changes=[STATIC])
    assert origins(result) == ["optimal", *["fallback", "optimal"] * 4]
    raised = [(e["step"], e["why"].partition(":")[0]) for e in events(result, "controller-raised")]
    assert raised == [(3, "ArithmeticError"), (5, "ValueError")]


async def test_a_fallback_is_asked_when_the_first_breaks_the_contract(tmp_path: Path) -> None:
    (tmp_path / "ours.py").write_text(
        "from controllers.envelopes.equal_ranges import EqualRanges\n"
        "class Ours(EqualRanges):\n"
        "    def step(self, observation):\n"
        "        return None if observation.time.minute == 10 else super().step(observation)\n"
    )
    result = await trial(
        tmp_path / "out", steps=4, changes=[STATIC, f"controllers.dso.uses={tmp_path}/ours.py:Ours"]
    )
    assert origins(result) == ["optimal", "optimal", "fallback", "optimal"]
    (event,) = events(result, "controller-raised")
    assert "step() returned NoneType" in event["why"]


async def test_two_failures_in_a_row_end_in_the_defaults(tmp_path: Path) -> None:
    result = await trial(tmp_path, "{what: solver-infeasible, at: 5min, for: 15min, controller: dso}")
    assert origins(result)[:5] == ["optimal", "held", "default", "default", "optimal"]
    assert states(result, "pv6")[3:5] == ["failsafe"] * 2


# Lines


async def test_behind_an_open_line_there_is_nothing(tmp_path: Path) -> None:
    result = await trial(tmp_path, "{what: line-out, at: 10min, for: 10min, line: 15}")
    dark = {"16", "17"}
    for row in rows(result, "buses"):
        assert (row["v_pu"] is None) == (row["bus"] in dark and row["step"] in (2, 3)), row
    for row in rows(result, "branches"):
        assert (row["p_mw"] is None) == (row["branch"] in ("line:15", "line:16") and row["step"] in (2, 3))
    own = rows(result, "devices", device="pv17")
    assert [row["state"] for row in own][2:4] == ["unsupplied"] * 2
    assert [row["p_mw"] for row in own][2:4] == [0.0, 0.0]
    assert {row["step"] for row in rows(result, "devices", device="load:16")} == set(range(8)) - {2, 3}
    opened, closed = events(result, "topology-changed")
    assert (opened["step"], closed["step"]) == (2, 4)
    assert (opened["opened"], opened["unsupplied"]) == (["line:15"], ["16", "17"])
    assert (opened["loads"], opened["devices"]) == (["load:15", "load:16"], ["pv17"])
    assert origins(result)[2:4] == ["held", "default"]
    assert "line:15" in events(result, "solver-failed")[0]["why"]


@pytest.mark.parametrize("engine", ["pandapower", "power-grid-model"])
async def test_the_rest_of_the_grid_is_that_without_the_line(engine: str, tmp_path: Path) -> None:
    change = [f"grid.engine={engine}"]
    out = await trial(
        tmp_path / "a", "{what: line-out, at: 0s, for: 5min, line: 24}", steps=1, changes=change
    )
    draft = load("ieee33-quick", [*FAST, *change, "bus.kind=memory", "steps=1"])
    built = build(draft, validate(draft))
    whole, rest = built.engine, rows(out, "buses")
    import numpy as np

    p, q = np.zeros((1, len(whole.buses))), np.zeros((1, len(whole.buses)))
    where = {**built.site.loads, **built.site.devices}
    for row in rows(out, "devices"):
        p[0, whole.buses.index(where[row["device"]].bus)] += row["p_mw"]
        q[0, whole.buses.index(where[row["device"]].bus)] += row["q_mvar"]
    kept = [row for row in rest if row["v_pu"] is not None]
    dark = {row["bus"] for row in rest} - {row["bus"] for row in kept}
    assert dark == {str(bus) for bus in range(25, 33)}
    # Nothing flows in the whole grid to where nothing is injected, so its voltages are those of the rest.
    flows = whole.solve(p, q)
    for row in kept:
        assert row["v_pu"] == pytest.approx(flows.v_pu[0, whole.buses.index(row["bus"])], abs=1e-9)


async def test_controllers_go_on_where_they_are_told_to(tmp_path: Path) -> None:
    result = await trial(tmp_path, "{what: line-out, at: 10min, for: 10min, line: 15, controllers: go-on}")
    assert set(origins(result)) <= {"optimal", "held"}


# What the bus is told of it


def weather(*faults: str) -> tuple[Trouble, list[str]]:
    """The trouble of a scenario in its second step, and its events."""
    draft = load("ieee33-quick", [f"faults=[{', '.join(faults)}]", "bus.kind=memory"])
    scenario = validate(draft)
    said: list[str] = []
    trouble = Trouble(
        build(draft, scenario), make_clock(scenario), Link(), lambda time, what, **details: said.append(what)
    )
    trouble.begin(Tick(1, START + EVERY, Duty.FULL, START))
    return trouble, said


def topic(device: str, word: str) -> str:
    return f"gridpace/v1/run/area/{device}/{word}"


def test_a_silent_device_is_cut_off_from_the_bus_and_the_others_are_not() -> None:
    trouble, said = weather("{what: device-silent, at: 5min, for: 5min, device: pv6}")
    assert said == ["fault-began"]
    assert trouble.held("out", topic("pv6", "setpoint"))
    assert trouble.fate("in", topic("pv6", "meas"), 100) == ()
    assert not trouble.held("out", topic("pv24", "setpoint"))
    assert trouble.fate("in", topic("pv24", "meas"), 100) == (0.0,)
    assert not trouble.cut
    trouble.begin(Tick(2, START + 2 * EVERY, Duty.FULL, START))
    assert not trouble.held("out", topic("pv6", "setpoint"))
    assert trouble.fate("in", topic("pv6", "meas"), 100) == (0.0,)


@pytest.mark.parametrize(
    ("chosen", "hit"),
    [
        ("topic: setpoint", {("out", "pv6", "setpoint"), ("out", "pv24", "setpoint")}),
        ("device: pv6", {("out", "pv6", "setpoint"), ("in", "pv6", "ack"), ("in", "pv6", "meas")}),
        ("direction: up", {("in", "pv6", "ack"), ("in", "pv6", "meas")}),
        ("direction: up, topic: ack", {("in", "pv6", "ack")}),
        ("topic: batch", {("out", "gw1", "batch/3")}),
    ],
)
def test_which_messages_are_hit(chosen: str, hit: set[tuple[Way, str, str]]) -> None:
    trouble, _ = weather(f"{{what: loss, at: 5min, for: 5min, {chosen}}}")
    several: list[tuple[Way, str, str]] = [
        *(("out", "pv6", "setpoint"), ("out", "pv24", "setpoint"), ("out", "gw1", "batch/3")),
        *(("in", "pv6", "ack"), ("in", "pv6", "meas")),
    ]
    lost = {one for one in several if trouble.fate(one[0], topic(*one[1:]), 10) == ()}
    assert lost == hit


def test_in_memory_a_cut_holds_every_message_and_a_slow_link_makes_a_queue() -> None:
    trouble, _ = weather("{what: black-hole, at: 5min, for: 5min}")
    assert trouble.cut
    assert trouble.held("in", topic("pv24", "ack"))
    slow, _ = weather("{what: slow-link, at: 5min, for: 5min, bytes_per_s: 100}")
    assert [slow.fate("out", topic("pv6", "setpoint"), 200) for _ in range(3)] == [(2.0,), (4.0,), (6.0,)]
    assert slow.fate("in", topic("pv6", "ack"), 100) == (1.0,)
