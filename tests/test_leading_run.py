"""Runs with a leader and its followers: the split they find, what the record shows, kills and replays."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from controllers.contract import Decision, Infeasible, Observation, Word
from scenarios.build import build
from scenarios.check import ScenarioInvalid, validate
from scenarios.load import load
from scenarios.replay import replay
from scenarios.resume import resume
from scenarios.run import Exit, Result
from scenarios.traffic import lines
from simulators.journal import Journal, read
from simulators.tables import MEASURED, SCHEMAS
from tests.leading_pair import DEVICES, UNITS, Giver, Seeker, scenario, split, total_mw
from tests.running import FakeTime, Silent, do

BASE_MW = 0.2


def events(result: Result) -> list[dict[str, Any]]:
    found = (json.loads(line) for line in (result.directory / "events.jsonl").read_text().splitlines())
    return [event for event in found if event.get("controller") != "dso"]


def counts(result: Result) -> dict[str, int]:
    found: dict[str, int] = json.loads((result.directory / "manifest.json").read_text())["counts"]
    return found


def powers(result: Result) -> dict[tuple[int, str], float]:
    """What each microgrid's device injects [MW], by step."""
    own = {device: name for name, (device, _) in DEVICES.items()}
    rows = read(result.directory, "devices").to_pylist()
    found = [(row["time"].minute // 5, row["device"], row["p_mw"]) for row in rows]
    return {(step, own[device]): p_mw for step, device, p_mw in found if device in own}


def require_split(result: Result, steps: range, present: tuple[str, ...] = tuple(UNITS)) -> None:
    """In the steps after those in which it was decided."""
    found, units = powers(result), {name: UNITS[name] for name in present}
    for step in steps:
        for name, p_mw in split(total_mw(5 * step, BASE_MW), units).items():
            assert found[step + 1, name] == pytest.approx(p_mw, abs=1e-10), (step, name)


def rows(result: Result, controller: str) -> list[dict[str, Any]]:
    return [row for row in read(result.directory, "steps").to_pylist() if row["controller"] == controller]


async def test_they_find_the_split_of_the_closed_form(tmp_path: Path) -> None:
    result = await do(scenario(tmp_path), tmp_path / "runs", "record.bus=true")
    assert result.exit is Exit.HELD, result.why
    require_split(result, range(3))
    happened = events(result)
    assert [(e["what"], e["step"], e["controller"], e["ended"], e["missing"]) for e in happened] == [
        ("conversation", step, "lead", "decided", {}) for step in range(4)
    ]
    turns = [event["turns"] for event in happened]
    assert happened[0]["why"] == f"lead: the leader has decided after {turns[0]} turns"
    found = counts(result)
    assert (found["conversations"], found["conversation-turns"]) == (4, sum(turns))
    assert not {"conversation-missing", "conversation-stale"} & found.keys()
    for name in ("lead", "f1", "f2", "f3"):
        assert [row["origin"] for row in rows(result, name)] == ["optimal"] * 4  # one row each a step
    asked = Counter(line["controller"] for line in lines(result.directory) if line["way"] == "asked")
    assert asked["f1"] == asked["f2"] == asked["f3"] == sum(turns)
    assert asked["lead"] == sum(turns) + 4


async def test_fast_and_live_and_with_deadlines_they_decide_the_same(tmp_path: Path) -> None:
    fast = await do(scenario(tmp_path), tmp_path / "fast")
    timed = [f"controllers.{name}.deadline=60s" for name in ("lead", "f1", "f2", "f3")]
    live = await do(scenario(tmp_path), tmp_path / "live", "clock.mode=live", *timed, time=FakeTime())
    assert live.exit is fast.exit is Exit.HELD, live.why
    assert powers(live) == powers(fast)
    assert not {"late", "abandoned"} & counts(live).keys()


# Who is missing, and what else goes wrong


def patched(monkeypatch: pytest.MonkeyPatch, trouble: Callable[[Giver, Word], int]) -> None:
    """Every follower in trouble."""
    made = Giver.__post_init__

    def made_with_trouble(self: Giver) -> None:
        made(self)
        self.trouble = lambda asked, word: trouble(self, word)

    monkeypatch.setattr(Giver, "__post_init__", made_with_trouble)


async def test_what_is_missing_or_stale_costs_turns_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = await do(scenario(tmp_path), tmp_path / "whole")

    def trouble(giver: Giver, word: Word) -> int:
        if giver.microgrid == "mg1" and giver.asked % 7 == 3:
            raise Infeasible("not now")
        if giver.microgrid == "mg2" and giver.asked % 11 == 5:
            raise KeyError("bat21")
        return -1 if giver.microgrid == "mg3" and giver.asked % 13 == 6 else 0

    patched(monkeypatch, trouble)
    result = await do(scenario(tmp_path), tmp_path / "runs")
    assert result.exit is Exit.HELD, result.why
    require_split(result, range(3))
    assert powers(result) == powers(whole)
    missing: Counter[tuple[str, str]] = Counter()
    for event in events(result):
        if event["what"] == "conversation":
            for name, why in event["missing"].items():
                missing.update({(name, what): times for what, times in why.items()})
    assert missing.keys() == {("f1", "infeasible"), ("f2", "controller-raised"), ("f3", "stale")}
    found = counts(result)
    assert found["conversation-missing"] == missing.total()
    assert found["conversation-stale"] == missing["f3", "stale"] > 0
    assert found["infeasible"] - counts(whole).get("infeasible", 0) == missing["f1", "infeasible"] > 0
    assert found["controller-raised"] == missing["f2", "controller-raised"] > 0
    told = [(e["step"], e["controller"]) for e in events(result) if e["what"] == "infeasible"]
    assert told == sorted(set(told))  # once in a step
    times = [e.get("times", 1) for e in events(result) if e["what"] == "infeasible"]
    assert sum(times) == missing["f1", "infeasible"]


async def test_of_one_that_stays_away_the_others_take_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trouble(giver: Giver, word: Word) -> int:
        if giver.microgrid == "mg2":
            raise Infeasible("never")
        return 0

    patched(monkeypatch, trouble)
    result = await do(scenario(tmp_path), tmp_path / "runs")
    assert result.exit is Exit.HELD, result.why
    require_split(result, range(3), ("mg1", "mg3"))
    assert [row["origin"] for row in rows(result, "f2")] == ["default"] * 4
    assert {event["missing"]["f2"]["infeasible"] for event in events(result) if "missing" in event} == {3}


@pytest.mark.parametrize("what", ["solver-infeasible", "solver-raises", "solver-late", "solver-nan"])
async def test_a_leaders_fault_leaves_its_followers_to_themselves(tmp_path: Path, what: str) -> None:
    more = "faults:\n  - {at: '00:05', for: 5min, what: FAULT, controller: lead}\n".replace("FAULT", what)
    if what == "solver-late":
        more = more.replace("controller: lead", "controller: lead, by: 10min")
    result = await do(scenario(tmp_path, more), tmp_path / "runs")
    assert result.exit is Exit.HELD, result.why
    ended = {e["step"]: e["ended"] for e in events(result) if e["what"] == "conversation"}
    assert ended == {0: "decided", 1: "raised", 2: "decided", 3: "decided"}
    found = powers(result)
    assert [found[2, name] for name in UNITS] == [0.0] * 3  # what each does alone
    require_split(result, range(0, 1))
    require_split(result, range(2, 3))
    assert [row["origin"] for row in rows(result, "lead")] == ["optimal", "held", "optimal", "optimal"]
    assert [row["origin"] for row in rows(result, "f1")] == ["optimal"] * 4


async def test_a_followers_fault_is_that_of_one_that_stays_away(tmp_path: Path) -> None:
    more = "faults:\n  - {at: '00:05', for: 5min, what: solver-infeasible, controller: f3}\n"
    result = await do(scenario(tmp_path, more), tmp_path / "runs")
    assert result.exit is Exit.HELD, result.why
    require_split(result, range(0, 1))
    require_split(result, range(1, 2), ("mg1", "mg2"))
    require_split(result, range(2, 3))
    assert [row["origin"] for row in rows(result, "f3")] == ["optimal", "held", "optimal", "optimal"]


async def test_with_fallbacks_the_second_one_decides(tmp_path: Path) -> None:
    limits = "controllers.envelopes.static_limits:StaticLimits"
    more = "faults:\n  - {at: '00:05', for: 5min, what: solver-infeasible, controller: lead}\n"
    result = await do(scenario(tmp_path, more), tmp_path / "runs", f"controllers.lead.fallback={limits}")
    assert result.exit is Exit.HELD, result.why
    ended = {e["step"]: e["ended"] for e in events(result) if e["what"] == "conversation"}
    assert ended == {0: "decided", 1: "fell-back", 2: "decided", 3: "decided"}
    assert [row["origin"] for row in rows(result, "lead")] == ["optimal", "fallback", "optimal", "optimal"]
    require_split(result, range(0, 1))


async def test_after_the_last_turn_they_take_what_was_agreed_or_nothing(tmp_path: Path) -> None:
    few = await do(scenario(tmp_path), tmp_path / "few", "controllers.lead.conversation={most_turns: 20}")
    assert {e["turns"] for e in events(few)} == {19}
    assert {e["ended"] for e in events(few)} == {"decided"}
    found = powers(few)
    total = sum(found[1, name] for name in UNITS)
    assert total == pytest.approx(BASE_MW, abs=1e-3)
    assert total != pytest.approx(BASE_MW, abs=1e-9)
    on = await do(
        scenario(tmp_path),
        tmp_path / "on",
        "controllers.lead.options.asks_on=true",
        "controllers.lead.conversation={most_turns: 3}",
    )
    happened = [(e["what"], e.get("ended")) for e in events(on)]
    assert happened == [("late", None), ("conversation", "undecided")] * 4
    assert counts(on)["late"] == 4
    assert {row["origin"] for row in rows(on, "lead")} == {"default"}


async def test_when_the_time_is_over_the_leader_decides(tmp_path: Path) -> None:
    result = await do(
        scenario(tmp_path), tmp_path / "runs", "controllers.lead.conversation={within: 1ms}", "steps=1"
    )
    ((late, said),) = [events(result)]
    assert (late["what"], late["why"]) == ("late", "nothing is agreed")
    assert said["ended"] == "raised"
    assert said["turns"] < 30


# What each sees, in the record


def asked(result: Result) -> Iterator[tuple[str, dict[str, Any]]]:
    for line in lines(result.directory):
        if line["way"] == "asked":
            yield line["controller"], line["ask"]["observation"]


def secrets_of(microgrid: str) -> list[str]:
    """What nobody else is to hear: the device behind it, and its parameters."""
    return [DEVICES[microgrid][0], *(str(x) for x in UNITS[microgrid])]


def require_secrecy(controller: str, text: str) -> None:
    """Nothing of other microgrids than its own is in what a controller was asked."""
    own = {"f1": "mg1", "f2": "mg2", "f3": "mg3"}.get(controller)
    for microgrid in UNITS:
        if microgrid != own:
            for secret in secrets_of(microgrid):
                assert secret not in text, (controller, secret)
            if own is not None:
                assert f'"{microgrid}"' not in text, (controller, microgrid)
    others = {"f1", "f2", "f3"} - {controller}
    if own is not None:
        assert not any(f'"{other}"' in text for other in others), controller


async def test_the_record_shows_nobody_what_is_not_its_own(tmp_path: Path) -> None:
    result = await do(scenario(tmp_path), tmp_path / "runs", "record.bus=true")
    seen: Counter[str] = Counter()
    for controller, observation in asked(result):
        if controller != "dso":
            require_secrecy(controller, json.dumps(observation))
        seen[controller] += 1
        if controller == "lead":
            assert set(UNITS) <= observation["p_mw"].keys()  # the exchange is measured on both sides
            assert {"pv6", "load:0"} <= observation["p_mw"].keys()
        if controller == "f1":
            assert observation["p_mw"].keys() == {"mg1", "bat13"}
            assert observation["v_pu"].keys() == {"13"}
            assert observation["said"].keys() <= {"lead"}
    assert set(seen) == {"dso", "lead", "f1", "f2", "f3"}


# Kills and replays


async def test_a_replay_asks_each_turn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trouble(giver: Giver, word: Word) -> int:
        if giver.microgrid == "mg1" and giver.asked % 7 == 3:
            raise Infeasible("not now")
        return 0

    patched(monkeypatch, trouble)
    result = await do(scenario(tmp_path), tmp_path / "runs", "record.bus=true")
    found = replay(result.directory)
    ours = sum(line["way"] == "asked" for line in lines(result.directory))
    assert (found.asked, found.different, dict(found.unasked), found.unrecorded) == (ours, 0, {}, 0)
    step = Giver.step

    def other(self: Giver, observation: Observation) -> Decision:
        said = step(self, observation)
        if self.asked == 50 and self.microgrid == "mg2":
            words = {n: replace(w, values={"p_mw": (0.5,)}) for n, w in said.words.items()}
            said = replace(said, words=words)
        return said

    monkeypatch.setattr(Giver, "step", other)
    found = replay(result.directory)
    assert found.different == 1
    assert found.first is not None
    assert found.first.controller == "f2"
    assert found.first.what.startswith("words.lead.values.p_mw.0 was ")


class Copies:
    """A run's folder as it was at some moments: what a kill would have left."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def take(self, name: str) -> None:
        (running,) = (self.root / "runs").iterdir()
        shutil.copytree(running, self.root / name / running.name)

    def at(self, name: str) -> Path:
        (left,) = (self.root / name).iterdir()
        return left


async def test_a_run_killed_between_steps_or_in_a_conversation_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies, step, append = Copies(tmp_path), Seeker.step, Journal.append

    def seen(self: Seeker, observation: Observation) -> Decision:
        if (observation.time.minute, observation.turn) == (10, 11) and not (tmp_path / "amid").exists():
            copies.take("amid")
        return step(self, observation)

    def on_step(number: int) -> None:
        if number == 1:
            copies.take("between")

    def before_append(self: Journal, number: int, tables: Any) -> None:
        if number == 2 and not (tmp_path / "unwritten").exists():
            copies.take("unwritten")  # what was asked in the step is on record, and is asked again
        append(self, number, tables)

    monkeypatch.setattr(Seeker, "step", seen)
    monkeypatch.setattr(Journal, "append", before_append)
    whole = await do(scenario(tmp_path), tmp_path / "runs", "record.bus=true", on_step=on_step)
    assert whole.exit is Exit.HELD, whole.why
    first = {line["step"]: line["ask"] for line in reversed(list(lines(whole.directory))) if lead_asks(line)}
    for moment in ("between", "amid", "unwritten"):
        again = await resume(copies.at(moment), observer=Silent())
        assert again.exit is Exit.HELD, again.why
        for table in SCHEMAS:
            if table not in ("steps", "setpoints"):
                one, other = ((r.directory / f"{table}.parquet").read_bytes() for r in (whole, again))
                assert one == other, (moment, table)
        ours, theirs = (
            pq.read_table(r.directory / "steps.parquet").drop_columns(list(MEASURED)) for r in (whole, again)
        )
        assert ours.equals(theirs)
        assert counts(again)["conversation-turns"] == counts(whole)["conversation-turns"]
        said = [line for line in lines(again.directory) if line["way"] == "resumed" or lead_asks(line)]
        (at,) = [i for i, line in enumerate(said) if line["way"] == "resumed"]
        assert said[at]["after_step"] == 1
        assert said[at + 1]["ask"] == first[2]  # from the conversation's beginning
        found = replay(again.directory)
        assert (found.different, found.unrecorded) == (0, 0)


def lead_asks(line: dict[str, Any]) -> bool:
    return line["way"] == "asked" and line["controller"] == "lead"


# Check


def told(folder: Path, *changes: str) -> dict[str, str]:
    draft = load(str(scenario(folder)), list(changes))
    try:
        validate(draft)
    except ScenarioInvalid as error:
        return {problem.path: problem.advice for problem in error.problems}
    return {}


LED = "controllers.lead.options.followers"
F2 = "controllers.f2"
ONCE = "is named twice; a follower has one leader, name it once"


@pytest.mark.parametrize(
    ("change", "path", "advice"),
    [
        (f"{LED}.mg2=f22", f"{LED}.mg2", "is no controller of this scenario; did you mean 'f2'?"),
        (f"{LED}.mg2=zzz", f"{LED}.mg2", "is no controller of this scenario; there are f1, f2, f3"),
        (f"{LED}.mg2=f1", f"{LED}.mg2", ONCE),
        (f"{LED}.mg2=f1", f"{F2}.name", "none names it; add it to the option `followers` of 'lead'"),
        (f"{LED}.mg2=lead", f"{LED}.mg2", "is the leader itself; name controllers that follow"),
        (f"{LED}.mg2=dso", f"{LED}.mg2", "its class does not have `follows = True`; leave it out"),
        (f"{LED}={{mg1: f1, mg3: f3}}", LED, "names no follower of mg2; name one of each microgrid"),
        (
            f"{LED}={{mg1: f1, mgg2: f2, mg3: f3}}",
            f"{LED}.mgg2",
            "'mgg2' is no microgrid of this scenario; did you mean 'mg2'?",
        ),
        (f"{LED}=[f1, f2, f2, f3]", f"{LED}.2", ONCE),
        (f"{F2}.every=10min", f"{F2}.every", "is asked by its leader 'lead', every 5min; write that"),
        (
            f"{F2}.conversation={{most_turns: 3}}",
            f"{F2}.conversation",
            "is of a leader, and this controller names no `followers` in its options; leave it out",
        ),
        (
            "controllers.lead.conversation={most_turns: 0}",
            "controllers.lead.conversation.most_turns",
            "must be greater than or equal to 1",
        ),
    ],
)
def test_what_is_wrong_with_who_leads_whom_is_told(
    tmp_path: Path, change: str, path: str, advice: str
) -> None:
    assert told(tmp_path) == {}
    assert told(tmp_path, change)[path].endswith(advice)


def test_two_leaders_do_not_share_a_follower(tmp_path: Path) -> None:
    second = "  - {name: second, uses: 'tests.leading_pair:Seeker', options: {followers: [f3, lead]}}\n"
    file = scenario(tmp_path, controllers=second)
    with pytest.raises(ScenarioInvalid) as refused:
        validate(load(str(file)))
    found = {p.path: p.advice for p in refused.value.problems}
    at = "controllers.second.options.followers"
    assert found[f"{at}.0"] == "is named by 'lead' too; a follower has one leader, name it once"
    assert found[f"{at}.1"] == "leads others itself, and no leader has a leader; leave it out"


def test_without_a_leader_a_follower_is_not_run(tmp_path: Path) -> None:
    file = tmp_path / "alone.yaml"
    file.write_text(
        "extends: ieee33-quick\nname: alone\ncontrollers:\n"
        "  - {name: f1, uses: 'tests.leading_pair:Giver', options: {microgrid: mg1, a: 1, b: 1}}\n"
    )
    with pytest.raises(ScenarioInvalid) as refused:
        validate(load(str(file)))
    (problem,) = refused.value.problems
    assert problem.path == "controllers.f1.name"
    assert problem.advice.endswith("to the option `followers` of the controller that leads it")


KNOWS = """
from tests.leading_pair import Giver, Seeker

class Knows(Seeker):
    def __init__(self, site):
        super().__init__(site, followers={"mg1": "f1", "mg2": "f2", "mg3": "f4"})
"""


def test_a_leader_that_knows_its_followers_by_itself_is_held_to_them_too(tmp_path: Path) -> None:
    (tmp_path / "knows.py").write_text(KNOWS)
    file = scenario(tmp_path)
    text = file.read_text().replace("uses: 'tests.leading_pair:Seeker'", "uses: 'knows.py:Knows'")
    file.write_text(
        text.replace("     options: {followers: {mg1: f1, mg2: f2, mg3: f3}}}", "     options: {}}")
    )
    draft = load(str(file))
    with pytest.raises(ScenarioInvalid, match=r"f4.*is no controller of this scenario; there are f1, f2, f3"):
        build(draft, validate(draft))


def test_build_says_who_leads_whom_and_what_each_sees(tmp_path: Path) -> None:
    draft = load(str(scenario(tmp_path)), ["controllers.lead.conversation={most_turns: 7, within: 3s}"])
    seats = {seat.name: seat for seat in build(draft, validate(draft)).seats}
    assert seats["lead"].followers == ("f1", "f2", "f3")
    assert {name: seat.leader for name, seat in seats.items()} == {
        "dso": None, "lead": None, "f1": "lead", "f2": "lead", "f3": "lead",
    }  # fmt: skip
    assert (seats["lead"].terms.most_turns, seats["lead"].terms.within_s) == (7, 3.0)
    sight = seats["f2"].sight
    assert sight is not None
    assert (sight.names, sight.buses) == ({"mg2", "bat21"}, {"21"})
    assert seats["dso"].sight is None


@pytest.mark.parametrize(
    ("changes", "within_s"),
    [([], 600.0), (["clock.mode=live"], 150.0), (["clock.mode=scaled", "clock.factor=100"], 1.5)],
)
def test_a_conversation_takes_half_a_step_if_not_given(
    tmp_path: Path, changes: list[str], within_s: float
) -> None:
    draft = load(str(scenario(tmp_path)), changes)
    seats = {seat.name: seat for seat in build(draft, validate(draft)).seats}
    assert seats["lead"].terms.within_s == within_s
