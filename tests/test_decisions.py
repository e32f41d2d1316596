"""What controllers say of microgrids is held to the contract, and what they hear of them is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from controllers import (
    Certificate,
    Decision,
    Forecast,
    Infeasible,
    Interval,
    Kind,
    Microgrid,
    Observation,
    Origin,
    Region,
    Setpoint,
    Site,
)
from simulators.clock import Duty, Tick
from simulators.controller import ControllersSimulator, Seat
from simulators.decisions import check
from simulators.grid import Measured
from tests.test_instructions import STEP, always, says, site, upto

START = datetime(2026, 6, 21, 12, tzinfo=UTC)
LATER = START + 2 * STEP


def coupled() -> Site:
    grid = Microgrid(name="mg", bus="1", devices=("a",), tie_mw=1.0)
    return replace(site(), microgrids={"mg": grid})


def plan(
    names: tuple[str, ...] = ("mg",), intervals: int = 2, at: datetime = START, every: timedelta = STEP
) -> Forecast:
    shape = (intervals, len(names))
    return Forecast(at, every, names, np.full(shape, 0.25), np.zeros(shape))


SEEN = Observation(time=START, forecast=Forecast.empty(START, STEP))


def test_a_capability_with_its_plan_is_accepted() -> None:
    sequel = (Interval(start=LATER, end=LATER + STEP, regions={"mg": upto(0.5, 0.1)}),)
    for kind in (Kind.PIC, Kind.AIC):
        check(says(regions={"mg": upto(1, 0.2)}, kind=kind, later=sequel, plan=plan()), SEEN, coupled())


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (
            lambda: says(regions={"mgg": upto(1)}, kind=Kind.PIC),
            "pic for 'mgg' is for no microgrid.*are mg",
        ),
        (lambda: says(regions={"a": upto(1)}, kind=Kind.AIC), "aic for 'a' is for no microgrid"),
        (
            lambda: says(regions={"mg": Region.box(p_mw=(0, 1))}, kind=Kind.AIC),
            r"needed is \('p_mw', 'q_m",
        ),
        (lambda: says(regions={"mg": upto(1)}), "an envelope for 'mg', which is no device"),
        (
            lambda: says(setpoints={"mg": Setpoint(p_mw=0.1)}),
            "no device of the site; a microgrid's are those",
        ),
        (
            lambda: says(
                regions={"mg": upto(1)},
                kind=Kind.PIC,
                later=(Interval(start=LATER, end=LATER + STEP, regions={"b": upto(1)}),),
            ),
            "pic for 'b' is for no microgrid",
        ),
        (lambda: says(plan={"mg": [0.1]}), "the plan is a dict"),
        (lambda: says(plan=plan(at=START - STEP)), "the plan is issued 2026-06-21 11:55"),
        (lambda: says(plan=plan(every=2 * STEP)), "for every 0:10:00, needed"),
        (lambda: says(plan=plan(intervals=0)), "the plan has no interval"),
        (lambda: says(plan=plan(("mg", "a"))), r"a plan of \['a'\], which are no microgrids.*are mg"),
        (lambda: says(plan=plan(("mg", "mg"))), "name each once"),
    ],
)
def test_nonsense_about_microgrids_is_refused_in_clear_words(said: Callable[[], Decision], why: str) -> None:
    with pytest.raises((TypeError, ValueError), match=why):
        check(said(), SEEN, coupled())


def test_controllers_hear_what_is_measured_at_the_point_of_coupling() -> None:
    listener = always()
    simulator = ControllersSimulator(
        coupled(), [Seat("mgcc", listener, 1, STEP)], epoch=1, in_thread=False, event=lambda *_, **__: None
    )
    measured = Measured(
        load_p_mw={"l": -0.5},
        load_q_mvar={"l": -0.1},
        exchange_p_mw={"mg": 0.25},
        exchange_q_mvar={"mg": -0.05},
        connected={"mg": False},
    )
    tick = Tick(0, START, Duty.FULL, START)
    simulator.run(tick, measured, Forecast.empty(START, STEP), [])
    (seen,) = listener.seen
    assert seen.p_mw == {"l": -0.5, "mg": 0.25}
    assert seen.q_mvar == {"l": -0.1, "mg": -0.05}
    assert seen.connected == {"mg": False}
    with pytest.raises(TypeError):
        seen.connected["mg"] = True  # type: ignore[index]


def test_controllers_are_asked_in_their_order_and_hear_those_before_them() -> None:
    heard: dict[str, list[tuple[str, datetime, Origin]]] = {}

    class Talks:
        def __init__(self, name: str, **what: Any) -> None:
            self.name, self.what = name, what

        def step(self, observation: Observation) -> Decision:
            words = [(name, said.time, said.origin) for name, said in observation.said.items()]
            heard[f"{self.name} {(observation.time - START) // STEP}"] = words
            return says(observation.time, **self.what)

    talkers = (
        Talks("pic", kind=Kind.PIC),
        Talks("aic", kind=Kind.AIC, origin=Origin.CERTIFIED),
        Talks("mgcc"),
    )
    seats = [Seat(one.name, one, 1, 2 * STEP) for one in talkers]
    simulator = ControllersSimulator(coupled(), seats, epoch=1, in_thread=False, event=lambda *_, **__: None)
    for k in range(2):
        at = START + k * STEP
        simulator.run(Tick(k, at, Duty.FULL, at), Measured(), Forecast.empty(at, STEP), [])
    then = START + STEP
    assert heard["pic 0"] == []
    assert heard["mgcc 0"] == [("pic", START, Origin.OPTIMAL), ("aic", START, Origin.CERTIFIED)]
    assert heard["pic 1"] == [("aic", START, Origin.CERTIFIED), ("mgcc", START, Origin.OPTIMAL)]
    assert heard["aic 1"] == [("pic", then, Origin.OPTIMAL), ("mgcc", START, Origin.OPTIMAL)]


def test_a_degraded_decision_is_told_with_its_reason_until_all_is_well_again() -> None:
    certificates = {"mg": Certificate(binding="no safe capability: lower voltage at bus 2")}
    well, ill = {"kind": Kind.AIC, "origin": Origin.CERTIFIED}, {"kind": Kind.AIC, "origin": Origin.DEGRADED}
    script = [ill | {"certificates": certificates}, ill, well, None, ill, None, ill]

    class Scripted:
        def step(self, observation: Observation) -> Decision:
            what = script[(observation.time - START) // STEP]
            if what is None:
                raise Infeasible("nothing is known")
            return says(observation.time, **what)

    events: list[tuple[datetime, str, str]] = []
    simulator = ControllersSimulator(
        coupled(),
        [Seat("dso", Scripted(), 1, 2 * STEP)],
        epoch=1,
        in_thread=False,
        event=lambda at, what, **more: events.append((at, what, more["why"])),
    )
    for k in range(len(script)):
        at = START + k * STEP
        simulator.run(Tick(k, at, Duty.FULL, at), Measured(), Forecast.empty(at, STEP), [])
    assert [event for event in events if event[1] == "degraded"] == [
        (START, "degraded", "dso: mg: no safe capability: lower voltage at bus 2"),
        (START + 4 * STEP, "degraded", "dso: its decision gives no reason"),
    ]
