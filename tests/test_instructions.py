"""From decisions to instructions: merging, multi-rate, expiry, conflicts, and controllers that fail."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from controllers import (
    Certificate,
    ControlError,
    Controller,
    Decision,
    Forecast,
    Infeasible,
    Instruction,
    Kind,
    Limits,
    Network,
    Observation,
    Origin,
    PvInverter,
    Region,
    Setpoint,
    Site,
    SolverFailed,
)
from controllers.devices import still
from simulators.clock import Duty, Tick
from simulators.controller import ControllersSimulator, Dispatch, Seat, Turn
from simulators.devices import DeviceReport, Obedience
from simulators.grid import Measured

START = datetime(2026, 6, 21, 12, tzinfo=UTC)
STEP = timedelta(minutes=5)
Answer = Callable[[Observation], Any]


def site() -> Site:
    network = Network("0", ("1",), ("line:0",), np.array([-1]), np.ones(1), np.ones(1), np.ones(1))
    devices = {
        name: PvInverter(name=name, bus="1", s_mva=1.0, p_mw=1.0, weight=1.0, default=still())
        for name in "ab"
    }
    return Site("two devices", network, Limits((0.9, 1.1), 100.0), STEP, devices)


def upto(p_mw: float, q_mvar: float = 0.0) -> Region:
    return Region.box(p_mw=(0, p_mw), q_mvar=(-q_mvar, q_mvar))


def says(
    at: datetime = START,
    *,
    regions: Any = None,
    setpoints: Any = None,
    **more: Any,
) -> Decision:
    given: dict[str, Any] = {
        "time": at,
        "origin": Origin.OPTIMAL,
        "regions": regions or {},
        "setpoints": setpoints or {},
    }
    return Decision(**(given | more))


class Answers:
    """A controller that does what a function says, and keeps what it was shown."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.seen: list[Observation] = []
        self.threads: list[int] = []

    def step(self, observation: Observation) -> Decision:
        self.seen.append(observation)
        self.threads.append(threading.get_ident())
        answer: Decision = self.answer(observation)
        return answer


class Loop:
    """A ControllersSimulator, stepped by hand."""

    def __init__(self, *seats: tuple[str, Controller, int, int]) -> None:
        """Each seat: name, controller, steps between questions, steps that an answer is valid for."""
        self.events: list[dict[str, Any]] = []
        self.simulator = ControllersSimulator(
            site(),
            [Seat(name, controller, every, steps * STEP) for name, controller, every, steps in seats],
            epoch=3,
            in_thread=False,
            event=lambda at, what, **more: self.events.append({"at": at, "what": what, **more}),
        )

    def step(self, k: int, duty: Duty = Duty.FULL) -> dict[str, Instruction]:
        at = START + k * STEP
        reports = [DeviceReport("a", 0.4, 0.1, 0.7, None, None, Obedience.CONTROLLED)]
        measured = Measured(v_pu={"0": 1.0, "1": 1.02}, load_p_mw={"l": -0.5}, load_q_mvar={"l": -0.2})
        return dict(self.simulator.run(Tick(k, at, duty, at), measured, Forecast.empty(at, STEP), reports))

    @property
    def turns(self) -> list[Turn]:
        return list(self.simulator.out["controllers"]["turns"])

    @property
    def origins(self) -> list[Origin]:
        return [turn.origin for turn in self.turns]


def always(**what: Any) -> Answers:
    return Answers(lambda observation: says(observation.time, **what))


def raises(error: Exception, steps: set[int], **else_says: Any) -> Answers:
    """Raises in some steps and decides in the others."""

    def answer(observation: Observation) -> Decision:
        if (observation.time - START) // STEP in steps:
            raise error
        return says(observation.time, **else_says)

    return Answers(answer)


# One decision


def test_an_instruction_is_numbered_and_dated() -> None:
    loop = Loop(("dso", always(regions={"a": upto(0.3)}), 1, 2))
    (instruction,) = loop.step(4).values()
    assert instruction.region is not None
    assert instruction.region.limits("p_mw") == pytest.approx((0, 0.3))
    expected = {
        "device": "a", "epoch": 3, "seq": 5, "issued_at": START + 4 * STEP, "valid_from": START + 5 * STEP,
        "valid_until": START + 7 * STEP, "setpoint": None,
    }  # fmt: skip
    assert {name: getattr(instruction, name) for name in expected} == expected
    assert instruction.fallback.limits("p_mw") == pytest.approx((0, 0))
    assert loop.step(5)["a"].seq == 6
    (turn,) = loop.turns
    assert (turn.controller, turn.origin) == ("dso", Origin.OPTIMAL)
    assert (turn.valid_from, turn.valid_until) == (START + 6 * STEP, START + 8 * STEP)


def test_a_controller_sees_what_is_measured_and_what_others_said() -> None:
    upstream = always(regions={"a": upto(0.3), "feeder": upto(2.0)}, kind=Kind.FLEXIBILITY)
    first, second, silent = upstream, always(regions={"a": upto(0.2)}), always()
    loop = Loop(("pcc", first, 1, 2), ("dso", second, 1, 2), ("ems", silent, 1, 2))
    loop.step(0)
    loop.step(1)
    seen = second.seen[0]
    assert seen.time == seen.forecast.issued_at == START
    assert seen.p_mw == {"l": -0.5, "a": 0.4}
    assert seen.q_mvar == {"l": -0.2, "a": 0.1}
    assert seen.e_mwh == {"a": 0.7}
    assert seen.v_pu == {"0": 1.0, "1": 1.02}
    assert {name: r.limits("p_mw")[1] for name, r in seen.regions.items()} == pytest.approx(
        {"a": 0.3, "feeder": 2}
    )
    assert first.seen[0].regions == first.seen[0].said == {}  # in the first step nobody spoke before it
    assert {n: d.time for n, d in first.seen[1].said.items()} == {"dso": START, "ems": START}
    assert {n: d.time for n, d in second.seen[1].said.items()} == {"pcc": START + STEP, "ems": START}
    assert silent.seen[0].said["pcc"].kind is Kind.FLEXIBILITY
    assert first.seen[1].regions["a"].limits("p_mw")[1] == pytest.approx(0.2)  # in the next, others had
    assert silent.seen[0].regions["a"].limits("p_mw")[1] == pytest.approx(0.2)  # 0.3 and 0.2 together


def test_what_a_controller_sees_it_cannot_change() -> None:
    def meddle(observation: Observation) -> Decision:
        observation.v_pu["1"] = 1.0  # type: ignore[index]
        return says(observation.time)

    loop = Loop(("dso", Answers(meddle), 1, 2))
    loop.step(0)
    assert loop.events[0]["what"] == "controller-raised"


def test_expired_words_are_not_passed_on() -> None:
    listener = always()
    loop = Loop(
        ("pcc", raises(Infeasible("x"), set(range(1, 9)), regions={"a": upto(0.3)}), 1, 2),
        ("ems", listener, 1, 1),
    )
    for k in range(4):
        loop.step(k)
    assert [set(observation.regions) for observation in listener.seen] == [{"a"}, {"a"}, set(), set()]
    assert [set(observation.said) for observation in listener.seen] == [{"pcc"}, {"pcc"}, set(), set()]


# Several decisions


def test_regions_meet_the_later_setpoint_wins_and_the_shorter_validity_counts() -> None:
    loop = Loop(
        ("dso", always(regions={"a": upto(0.3, 0.5)}, setpoints={"a": Setpoint(p_mw=0.1)}), 1, 3),
        ("ems", always(regions={"a": upto(0.6, 0.2)}, setpoints={"a": Setpoint(p_mw=0.2)}), 1, 5),
        ("oth", always(regions={"b": upto(0.7)}), 1, 1),
    )
    told = loop.step(0)
    assert told["a"].region is not None
    assert told["a"].region.limits("p_mw") == pytest.approx((0, 0.3))
    assert told["a"].region.limits("q_mvar") == pytest.approx((-0.2, 0.2))
    assert told["a"].setpoint == Setpoint(p_mw=0.2)
    assert told["a"].valid_until == START + 4 * STEP
    assert told["b"].valid_until == START + 2 * STEP
    assert told["b"].setpoint is None


def test_the_order_of_setpoints_is_the_scenarios_not_that_of_speaking() -> None:
    first = raises(Infeasible("not yet"), {0}, setpoints={"a": Setpoint(p_mw=0.1)})
    loop = Loop(("dso", first, 1, 2), ("ems", always(setpoints={"a": Setpoint(p_mw=0.2)}), 1, 2))
    assert loop.step(0)["a"].setpoint == Setpoint(p_mw=0.2)
    assert loop.step(1)["a"].setpoint == Setpoint(p_mw=0.2)


def test_a_setpoint_alone_is_an_instruction() -> None:
    told = Loop(("ems", always(setpoints={"b": Setpoint(q_mvar=0.1)}), 1, 2)).step(0)
    assert set(told) == {"b"}
    assert told["b"].region is None


def test_a_slow_controllers_decision_stays_in_force() -> None:
    slow = Answers(lambda o: says(o.time, regions={"a": upto(0.3)}, setpoints={"b": Setpoint(p_mw=0.4)}))
    fast = Answers(lambda o: says(o.time, regions={"a": upto(0.1 * ((o.time - START) // STEP + 1))}))
    loop = Loop(("dso", slow, 4, 6), ("ems", fast, 1, 1))
    most = []
    for k in range(5):
        told = loop.step(k)
        assert told["a"].region is not None
        most.append(told["a"].region.limits("p_mw")[1])
        assert told["a"].valid_until == START + (k + 2) * STEP  # the shorter one
        assert ("b" in told) == (k % 4 == 0)  # nobody has news for b in between
    assert most == pytest.approx([0.1, 0.2, 0.3, 0.3, 0.3])
    assert len(slow.seen) == 2
    assert len(fast.seen) == 5


def test_an_expired_decision_is_out_of_force() -> None:
    gone = raises(Infeasible("x"), set(range(1, 9)), regions={"a": upto(0.3)})
    loop = Loop(("dso", gone, 1, 2), ("ems", always(regions={"a": upto(0.6)}), 1, 1))
    most = []
    for k in range(4):
        told = loop.step(k)
        assert told["a"].region is not None
        most.append(told["a"].region.limits("p_mw")[1])
    assert most == pytest.approx([0.3, 0.3, 0.6, 0.6])  # it acts in steps 1 and 2


def test_when_one_of_two_expires_the_other_is_told_anew() -> None:
    """Without news of its controller the device would fall to its default though one word still holds."""
    slow, gone = (
        always(regions={"a": upto(0.6)}),
        raises(Infeasible("x"), {1, 2, 3}, regions={"a": upto(0.3)}),
    )
    loop = Loop(("dso", slow, 8, 6), ("ems", gone, 1, 2))
    told = [loop.step(k) for k in range(8)]
    assert [set(t) for t in told[:4]] == [{"a"}, set(), {"a"}, set()]
    assert told[0]["a"].valid_until == START + 3 * STEP == told[2]["a"].valid_from
    again = told[2]["a"]
    assert again.region is not None
    assert again.region.limits("p_mw") == pytest.approx((0, 0.6))
    assert (again.seq, again.valid_until) == (3, START + 7 * STEP)
    # step 4: ems speaks again


def test_regions_that_do_not_meet_are_a_conflict_of_that_device_alone() -> None:
    high = Region.box(p_mw=(0.5, 1), q_mvar=(0, 0))

    def turn_about(observation: Observation) -> Decision:
        late = observation.time > START
        return says(observation.time, regions={"a": high if late else upto(0.5), "b": upto(0.5)})

    loop = Loop(("dso", always(regions={"a": upto(0.4)}), 1, 2), ("ems", Answers(turn_about), 1, 2))
    assert set(loop.step(0)) == {"a", "b"}
    assert not loop.events
    assert set(loop.step(1)) == {"b"}  # a keeps what it was told until that expires, then its default
    (event,) = loop.events
    assert (event["what"], event["device"], event["at"]) == ("conflict", "a", START + STEP)
    assert "dso and ems" in event["why"]
    assert loop.simulator.counts["conflict"] == 1
    assert loop.origins == [Origin.OPTIMAL, Origin.OPTIMAL]


def test_a_region_without_a_point_is_a_conflict_with_oneself() -> None:
    nothing = upto(0.4) & Region.box(p_mw=(0.5, 1), q_mvar=(0, 0))
    loop = Loop(("dso", always(regions={"a": nothing, "b": upto(0.1)}), 1, 2))
    assert set(loop.step(0)) == {"b"}
    assert loop.simulator.counts["conflict"] == 1


def test_dispatch_tells_nobody_without_a_word() -> None:
    dispatch = Dispatch(site(), ["dso"], 1)
    assert dispatch.instructions(1, START, START + STEP, {"a", "b"}) == ({}, {})
    assert not dispatch.holds("dso", START)
    assert dispatch.regions(besides="", at=START) == {}


# Failure


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (Infeasible("bus 17 is too low"), "infeasible"),
        (SolverFailed("bus 17 took too long"), "solver-failed"),
        (ControlError("bus 17"), "control-error"),
        (ZeroDivisionError("bus 17"), "controller-raised"),
        (KeyError("bus 17"), "controller-raised"),
    ],
)
def test_what_a_controller_raises_is_an_event_and_its_last_word_holds(error: Exception, what: str) -> None:
    loop = Loop(("dso", raises(error, {1, 2, 3}, regions={"a": upto(0.3)}), 1, 2))
    origins, told = [], []
    for k in range(5):
        told.append(loop.step(k))
        origins += loop.origins
    # decided in step 0, it acts in steps 1 and 2: a question of step 1 and its silence concern step 2
    held, default, optimal = Origin.HELD, Origin.DEFAULT, Origin.OPTIMAL
    assert origins == [optimal, held, default, default, optimal]
    assert [set(t) for t in told] == [{"a"}, set(), set(), set(), {"a"}]
    assert [(e["what"], e["step"], e["controller"]) for e in loop.events] == [
        (what, k, "dso") for k in (1, 2, 3)
    ]
    assert "bus 17" in loop.events[0]["why"]
    counted = {what: 3, "origin-optimal": 2, "origin-held": 1, "origin-default": 2}
    assert loop.simulator.counts == counted


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda o: None, "not a Decision"),
        (lambda o: {"a": 1.0}, "not a Decision"),
        (lambda o: says(o.time - STEP), "asked was"),
        (lambda o: says(o.time, origin="best"), "not an Origin"),
        (lambda o: says(o.time, kind="cut"), "not a Kind"),
        (lambda o: says(o.time, certificates={"a": "fine"}), "certificate for 'a' is a str"),
        (lambda o: says(o.time, certificates={"a": Certificate(worst_v_pu="n/a")}), "no number"),
        (lambda o: says(o.time, certificates={"a": Certificate(worst_v_pu=np.nan)}), "no number"),
        (lambda o: says(o.time, setpoints={"z": Setpoint(p_mw=1)}), "'z', which is no device"),
        (lambda o: says(o.time, setpoints={"a": 0.5}), "float, not a Setpoint"),
        (lambda o: says(o.time, setpoints={"a": Setpoint(p_mw=float("nan"))}), "no target"),
        (lambda o: says(o.time, setpoints=[1]), "AttributeError"),
        (lambda o: says(o.time, regions={"z": upto(1)}), "'z', which is no device"),
        (lambda o: says(o.time, regions={"a": (0, 1)}), "tuple, not a Region"),
        (lambda o: says(o.time, regions={"a": Region.box(p_mw=(0, 1))}), "needed is ('p_mw', 'q_mvar')"),
        (lambda o: says(o.time, regions={"a": Region.box(p_mw=(0, np.nan), q_mvar=(0, 0))}), "ValueError"),
    ],
)
def test_rubbish_is_an_event_and_nobody_acts_on_it(answer: Answer, why: str) -> None:
    loop = Loop(("third-party", Answers(answer), 1, 2), ("dso", always(regions={"a": upto(0.3)}), 1, 2))
    told = loop.step(0)
    assert set(told) == {"a"}  # the others' work goes on
    (event,) = loop.events
    assert (event["what"], event["controller"]) == ("controller-raised", "third-party")
    assert why in event["why"]
    assert loop.origins == [Origin.DEFAULT, Origin.OPTIMAL]
    assert loop.simulator.counts["controller-raised"] == 1


def test_areas_may_be_named_but_all_must_mean_the_same_axes() -> None:
    area = always(regions={"feeder": upto(1)}, kind=Kind.FLEXIBILITY)
    other = always(regions={"feeder": Region.box(v_pu=(0.9, 1.1))}, kind=Kind.CUT)
    loop = Loop(("tso", area, 1, 2), ("dso", other, 1, 2))
    assert loop.step(0) == {}
    (event,) = loop.events
    assert event["controller"] == "dso"
    assert "('v_pu',)" in event["why"]


# Duty


@pytest.mark.parametrize(
    ("duty", "origins"),
    [
        (Duty.HOLD, [Origin.OPTIMAL, Origin.HELD, Origin.DEFAULT, Origin.OPTIMAL]),
        (Duty.SKIP, [Origin.OPTIMAL, Origin.SKIPPED, Origin.SKIPPED, Origin.OPTIMAL]),
    ],
)
def test_a_late_step_asks_nobody(duty: Duty, origins: list[Origin]) -> None:
    controller = always(regions={"a": upto(0.3)})
    loop = Loop(("dso", controller, 1, 2))
    got, told = [], []
    for k, what in enumerate([Duty.FULL, duty, duty, Duty.FULL]):
        told.append(set(loop.step(k, what)))
        got += loop.origins
    assert got == origins
    assert told == [{"a"}, set(), set(), {"a"}]
    assert [o.time for o in controller.seen] == [START, START + 3 * STEP]
    assert not loop.events


def test_nobody_is_told_anything_in_a_skipped_step() -> None:
    """The word that holds is told anew only in a step that takes place."""
    slow, gone = always(regions={"a": upto(0.6)}), raises(Infeasible("x"), {1}, regions={"a": upto(0.3)})
    loop = Loop(("dso", slow, 8, 6), ("ems", gone, 1, 2))
    told = [loop.step(k, duty) for k, duty in enumerate([Duty.FULL, Duty.FULL, Duty.SKIP, Duty.HOLD])]
    assert [set(t) for t in told] == [{"a"}, set(), set(), {"a"}]


async def test_a_paced_solve_does_not_block_the_loop() -> None:
    controller = always(regions={"a": upto(0.3)})
    simulator = ControllersSimulator(
        site(), [Seat("dso", controller, 1, STEP)], 1, True, lambda *a, **k: None
    )
    given: dict[str, list[Any]] = {"tick": [Tick(0, START, Duty.FULL, START)], "measured": [Measured()]}
    waiting = simulator.work(0, given | {"forecast": [Forecast.empty(START, STEP)], "report": []})
    assert waiting is not None
    await waiting
    assert controller.threads != [threading.get_ident()]
    assert set(simulator.out["controllers"]["instructions"]) == {"a"}


def test_a_region_with_its_axes_in_another_order_means_the_same() -> None:
    swapped = Region.box(q_mvar=(-0.1, 0.2), p_mw=(0.3, 0.5))
    told = Loop(("dso", always(regions={"a": swapped}), 1, 2)).step(0)
    region = told["a"].region
    assert region is not None
    assert region.axes == ("p_mw", "q_mvar")
    assert region.limits("p_mw") == pytest.approx((0.3, 0.5))
    assert region.limits("q_mvar") == pytest.approx((-0.1, 0.2))


def test_a_step_in_which_nobody_is_asked_has_no_solve_time() -> None:
    loop = Loop(("dso", always(regions={"a": upto(0.3)}), 1, 2))
    loop.step(0)
    (asked,) = loop.turns
    loop.step(1, Duty.HOLD)
    (held,) = loop.turns
    assert asked.solve_ms is not None
    assert held.solve_ms is None
