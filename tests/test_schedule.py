"""Schedules on their way: from several controllers' words to a device that hears nothing more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import aiomqtt
import numpy as np
import pytest

from bridges import wire
from bridges.broker import EmbeddedBroker
from bridges.bus import MAX_PAYLOAD_BYTES
from bridges.instruction import to_instruction
from bridges.memory import MemoryBus, MemoryHub
from bridges.mqtt import MqttBus
from bridges.publisher import Publisher
from controllers import (
    Certificate,
    Decision,
    Instruction,
    Interval,
    Observation,
    PvInverter,
    Region,
    Setpoint,
    SolverFailed,
    Span,
)
from controllers.devices import still
from scenarios.build import build
from scenarios.check import ScenarioInvalid, validate
from scenarios.load import load
from scenarios.run import Exit, Result
from scenarios.verdicts import evaluate
from simulators.devices import DeviceTwin, Obedience
from simulators.journal import read
from simulators.tables import Outcome
from tests.running import do
from tests.test_instructions import START, STEP, Answers, Loop, always, raises, says, upto
from tests.test_verdicts import PARSE, at, devices, envelope, record, stack

WAIT = 10.0


def clock(k: int) -> datetime:
    return START + k * STEP


def plan(*tops: float | None, device: str = "a", **first: Any) -> Answers:
    """A controller that says in each step what holds in the coming intervals: a region up to each of `tops`,
    or nothing for the device where one is `None`."""

    def answer(observation: Observation) -> Decision:
        begins = observation.time + STEP
        regions = [{} if top is None else {device: upto(top)} for top in tops]
        later = tuple(
            Interval(start=begins + k * STEP, end=begins + (k + 1) * STEP, regions=said)
            for k, said in enumerate(regions)
            if k
        )
        return says(observation.time, regions=regions[0], later=later, **first)

    return Answers(answer)


def schedule(instruction: Instruction) -> list[tuple[int, int, float | None]]:
    """Start and end in steps, and the greatest power, of each span."""
    return [
        (
            (s.start - START) // STEP,
            (s.end - START) // STEP,
            None if s.region is None else round(top(s.region), 6),
        )
        for s in instruction.spans
    ]


def top(region: Region) -> float:
    return region.limits("p_mw")[1]


# From decisions to instructions


def test_a_schedule_reaches_its_device_whole() -> None:
    told = Loop(("dso", plan(0.3, 0.2, 0.4), 1, 2)).step(0)["a"]
    assert schedule(told) == [(1, 2, 0.3), (2, 3, 0.2), (3, 4, 0.4)]
    assert (told.valid_from, told.valid_until) == (clock(1), clock(4))
    assert [span.end for span in told.spans[:-1]] == [span.start for span in told.spans[1:]]
    assert told.at(clock(0)) is told.at(clock(4)) is None
    assert told.at(clock(2)) is told.later[0]
    assert told.at(clock(3) - timedelta(microseconds=1)) is told.later[0]


def test_a_decision_without_sequel_is_an_instruction_of_one_span() -> None:
    told = Loop(("dso", always(regions={"a": upto(0.3)}), 1, 2)).step(0)["a"]
    assert told.later == ()
    assert schedule(told) == [(1, 3, 0.3)]


def test_schedules_meet_span_by_span() -> None:
    told = Loop(("dso", plan(0.3, 0.6, 0.6), 1, 2), ("ems", plan(0.5, 0.2, 0.7, 0.1), 1, 2)).step(0)["a"]
    assert schedule(told) == [(1, 2, 0.3), (2, 3, 0.2), (3, 4, 0.6)]  # as long as both say something


def test_a_word_without_sequel_counts_until_its_own_end() -> None:
    told = Loop(
        ("dso", plan(0.6, 0.6, 0.6, 0.6), 1, 2), ("ems", always(regions={"a": upto(0.4)}), 1, 2)
    ).step(0)
    assert schedule(told["a"]) == [(1, 2, 0.4), (2, 3, 0.4), (3, 4, 0.6), (4, 5, 0.6)]


def test_a_setpoint_counts_as_long_as_its_controllers_first_span() -> None:
    target = Setpoint(p_mw=0.1)
    own = Loop(("dso", plan(0.6, 0.6, setpoints={"a": target}), 1, 2)).step(0)["a"]
    assert [span.setpoint for span in own.spans] == [target, None]
    ems = always(setpoints={"a": target})
    other = Loop(("dso", plan(0.6, 0.6, 0.6), 1, 2), ("ems", ems, 1, 2)).step(0)["a"]
    assert [span.setpoint for span in other.spans] == [target, target, None]


def test_a_slow_controllers_schedule_is_told_anew_from_where_it_stands() -> None:
    slow = plan(0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    loop = Loop(("dso", slow, 4, 2), ("ems", always(regions={"a": upto(0.45)}), 1, 1))
    told = [loop.step(k)["a"] for k in range(3)]
    assert schedule(told[0])[:2] == [(1, 2, 0.1), (2, 3, 0.2)]
    assert schedule(told[2]) == [(3, 4, 0.3), (4, 5, 0.4), (5, 6, 0.5), (6, 7, 0.6)]
    assert len(slow.seen) == 1


def test_others_are_shown_what_holds_when_they_act() -> None:
    listener = always()
    loop = Loop(("dso", plan(0.1, 0.2, 0.3), 8, 2), ("ems", listener, 1, 2))
    for k in range(4):
        loop.step(k)
    seen = [{name: round(top(r), 6) for name, r in o.regions.items()} for o in listener.seen]
    assert seen == [{"a": 0.1}, {"a": 0.2}, {"a": 0.3}, {}]


def test_a_conflict_later_on_ends_the_schedule_before_it() -> None:
    def turn(observation: Observation) -> Decision:
        begins = observation.time + STEP
        high = Region.box(p_mw=(0.8, 1), q_mvar=(0, 0))
        later = Interval(start=begins + STEP, end=begins + 2 * STEP, regions={"a": high, "b": upto(0.5)})
        return says(observation.time, regions={"a": upto(0.5), "b": upto(0.5)}, later=(later,))

    loop = Loop(("dso", plan(0.4, 0.4), 1, 2), ("ems", Answers(turn), 1, 2))
    told = loop.step(0)
    assert schedule(told["a"]) == [(1, 2, 0.4)]
    assert schedule(told["b"]) == [(1, 2, 0.5), (2, 3, 0.5)]
    (event,) = loop.events
    assert (event["what"], event["device"]) == ("conflict", "a")
    assert "dso and ems have no point in common from 2026-06-21 12:10:00 UTC on" in event["why"]


def test_a_conflict_at_once_tells_nothing_new() -> None:
    high = Region.box(p_mw=(0.8, 1), q_mvar=(0, 0))
    loop = Loop(("dso", plan(0.4, 0.4), 1, 2), ("ems", always(regions={"a": high}), 1, 2))
    assert loop.step(0) == {}
    assert loop.simulator.counts["conflict"] == 1


def test_a_device_that_is_left_out_later_on_has_a_shorter_schedule() -> None:
    loop = Loop(("dso", plan(0.4, 0.3, None, 0.2), 1, 2))
    assert schedule(loop.step(0)["a"]) == [(1, 2, 0.4), (2, 3, 0.3)]


def test_a_schedule_may_begin_later() -> None:
    assert schedule(Loop(("dso", plan(None, 0.3, 0.2), 1, 2)).step(0)["a"]) == [(2, 3, 0.3), (3, 4, 0.2)]


def test_a_controller_may_say_how_long_its_only_word_holds() -> None:
    brief = Answers(lambda o: says(o.time, regions={"a": upto(0.3)}, until=o.time + 2 * STEP))
    assert schedule(Loop(("dso", brief, 1, 6)).step(0)["a"]) == [(1, 2, 0.3)]
    loop = Loop(("dso", brief, 9, 6), ("ems", always(regions={"a": upto(0.6)}), 9, 3))
    told = [loop.step(k) for k in range(3)]
    assert [(schedule(t["a"]) if t else None) for t in told] == [[(1, 2, 0.3)], [(2, 4, 0.6)], None]


def because(tops: Sequence[float], *reasons: str | None) -> Answers:
    """As `plan`, with a certificate for each region that has a reason; power flows tell them apart."""
    bare = plan(*tops)

    def answer(observation: Observation) -> Decision:
        said = bare.answer(observation)
        found = [
            {} if text is None else {"a": Certificate(binding=text, worst_v_pu=1.0, power_flows=10 + k)}
            for k, text in enumerate(reasons)
        ]
        later = tuple(replace(i, certificates=c) for i, c in zip(said.later, found[1:], strict=True))
        return replace(said, certificates=found[0], later=later)

    return Answers(answer)


def told_reasons(instruction: Instruction) -> list[str | None]:
    return [span.certificate and span.certificate.binding for span in instruction.spans]


def test_what_limits_each_span_is_told() -> None:
    told = Loop(("dso", because([0.4, 0.3, 0.2], "bus 17", None, "line:3"), 1, 2)).step(0)["a"]
    assert told_reasons(told) == ["bus 17", None, "line:3"]
    assert told.certificate is told.spans[0].certificate
    assert told.spans[2].certificate == Certificate(binding="line:3", worst_v_pu=1.0, power_flows=12)


def test_regions_that_meet_say_what_limits_either_of_them_in_each_span() -> None:
    ems = because([0.5, 0.1, 0.1], "fuse", "fuse", "fuse")
    told = Loop(("dso", because([0.4, 0.3], "bus 17", None), 1, 2), ("ems", ems, 1, 2)).step(0)["a"]
    assert told_reasons(told) == ["bus 17; fuse", "fuse"]


def test_a_slow_controllers_reasons_are_those_of_the_spans_that_are_left() -> None:
    slow = because([0.1, 0.2, 0.3], "first", "second", "third")
    loop = Loop(("dso", slow, 9, 9), ("ems", always(regions={"a": upto(0.9)}), 1, 2))
    assert told_reasons(loop.step(0)["a"]) == ["first", "second", "third"]
    assert told_reasons(loop.step(1)["a"]) == ["second", "third"]


def gap(observation: Observation, *starts: float, lengths: float = 1.0) -> Decision:
    later = tuple(
        Interval(
            start=observation.time + k * STEP,
            end=observation.time + (k + lengths) * STEP,
            regions={"a": upto(0.1)},
        )
        for k in starts
    )
    return says(observation.time, regions={"a": upto(0.1)}, later=later)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda o: gap(o, 1), "what it says from"),  # no first span is left
        (lambda o: gap(o, 2, 4), "should begin"),
        (lambda o: gap(o, 2, 2.5), "should begin"),
        (lambda o: gap(o, 2, lengths=0), "and last"),
        (lambda o: replace(gap(o, 2), later=("soon",)), "str, not an Interval"),
        (lambda o: replace(gap(o, 2), until=o.time + 3 * STEP), "should begin"),
        (lambda o: replace(gap(o), until=o.time + STEP), "what it says from"),
        (lambda o: replace(gap(o, 2), later=(gap(o, 2).later[0], "soon")), "str, not an Interval"),
        (lambda o: says(o.time, later=(Interval(start=o.time + 2 * STEP, end=o.time + 3 * STEP,
                                                regions={"z": upto(1)}),)), "'z', which is no device"),
        (lambda o: says(o.time, later=(Interval(start=o.time + 2 * STEP, end=o.time + 3 * STEP,
                                                regions={"a": 5}),)), "int, not a Region"),
    ],
)  # fmt: skip
def test_a_schedule_with_gaps_or_rubbish_is_an_event_and_nobody_acts_on_it(answer: Any, why: str) -> None:
    loop = Loop(("third-party", Answers(answer), 1, 2))
    assert loop.step(0) == {}
    (event,) = loop.events
    assert event["what"] == "controller-raised"
    assert why in event["why"]


# What a device does


def solar() -> DeviceTwin:
    limits = Region.box(p_mw=(0, 0.05), q_mvar=(0, 0))
    return DeviceTwin(PvInverter(name="a", bus="1", s_mva=1.0, p_mw=1.0, weight=1.0, default=limits))


def test_T16_a_device_that_hears_nothing_more_keeps_its_schedule_and_then_its_default() -> None:
    """CSIP-AUS test ALL-23: the controls that it already holds, then the default one."""
    loop = Loop(("dso", raises(SolverFailed("the server is gone"), set(range(2, 9))), 1, 2))
    loop = Loop(("dso", plan(0.5, 0.4, 0.3, 0.2), 1, 2))
    twin, held = solar(), []
    for k in range(8):
        told = loop.step(k) if k < 2 else {}
        report = twin.step(clock(k), 0.9, 300.0)
        held.append((round(report.p_mw, 6), report.obedience))
        if told:  # it acts from the next step on
            assert twin.receive(told["a"], clock(k)).outcome is Outcome.APPLIED
    limited, failsafe = Obedience.LIMITED, Obedience.FAILSAFE
    assert held == [
        (0.05, Obedience.INIT), (0.5, limited), (0.5, limited), (0.4, limited), (0.3, limited),
        (0.2, limited), (0.05, failsafe), (0.05, failsafe),
    ]  # fmt: skip


def told(seq: int, *spans: tuple[int, int, float]) -> Instruction:
    first, *later = (Span(clock(a), clock(b), upto(p)) for a, b, p in spans)
    return Instruction(
        device="a", epoch=1, seq=seq, issued_at=clock(0), valid_from=first.start,
        valid_until=later[-1].end if later else first.end, region=first.region, setpoint=None,
        fallback=still(), later=tuple(later),
    )  # fmt: skip


def test_a_new_schedule_replaces_the_whole_old_one() -> None:
    twin = solar()
    twin.receive(told(1, (0, 1, 0.5), (1, 2, 0.4), (2, 3, 0.3), (3, 9, 0.2)), clock(0))
    twin.receive(told(2, (2, 3, 0.7), (3, 4, 0.6)), clock(0))  # begins later, ends sooner
    found = [round(twin.step(clock(k), 0.9, 300.0).p_mw, 6) for k in range(6)]
    assert found == [0.5, 0.4, 0.7, 0.6, 0.05, 0.05]  # nothing of the old one comes back
    assert twin.receive(told(1, (4, 9, 0.9)), clock(5)).outcome is Outcome.REFUSED


def test_a_schedule_that_comes_late_begins_where_it_stands() -> None:
    twin = solar()
    assert twin.receive(told(1, (0, 1, 0.5), (1, 2, 0.4), (2, 3, 0.3)), clock(2)).outcome is Outcome.APPLIED
    assert twin.step(clock(2), 0.9, 300.0).p_mw == pytest.approx(0.3)
    assert solar().receive(told(1, (0, 1, 0.5), (1, 2, 0.4)), clock(2)).outcome is Outcome.EXPIRED


def test_a_spans_setpoint_counts_in_its_span() -> None:
    twin = solar()
    one = told(1, (0, 1, 0.5), (1, 2, 0.4))
    twin.receive(replace(one, setpoint=Setpoint(p_mw=0.2)), clock(0))
    assert [twin.step(clock(k), 0.9, 300.0).p_mw for k in range(2)] == pytest.approx([0.2, 0.4])
    later = replace(one, seq=2, later=(replace(one.later[0], setpoint=Setpoint(p_mw=0.1)),))
    twin = solar()
    twin.receive(later, clock(0))
    assert [twin.step(clock(k), 0.9, 300.0).p_mw for k in range(2)] == pytest.approx([0.5, 0.1])


# On the bus


def polygon(corners: int, size: float) -> Region:
    angle = 2 * np.pi * np.arange(corners) / corners
    return Region(("p_mw", "q_mvar"), np.column_stack([np.cos(angle), np.sin(angle)]), np.full(corners, size))


def long_schedule(spans: int, corners: int) -> Instruction:
    regions = [polygon(corners, 0.1 + 0.001 * k) for k in range(spans + 1)]
    later = tuple(Span(clock(k + 1), clock(k + 2), regions[k + 1]) for k in range(spans))
    return Instruction(
        device="a", epoch=1, seq=1, issued_at=clock(-1), valid_from=clock(0), valid_until=clock(spans + 1),
        region=regions[0], setpoint=None, fallback=still(), later=later,
    )  # fmt: skip


@pytest.mark.parametrize(("spans", "corners"), [(287, 16), (287, 4), (400, 4), (100, 100), (3, 4)])
async def test_of_a_schedule_too_long_for_a_message_the_first_spans_are_sent(
    spans: int, corners: int
) -> None:
    hub = MemoryHub()
    instruction = long_schedule(spans, corners)
    async with MemoryBus(hub) as bus, MemoryBus(hub) as device:
        device.subscribe(wire.device_topic("r", "f", "a", "setpoint"))
        Publisher(bus, run="r", area="f", epoch=1).send(instruction, 300.0 * (spans + 2))
        (message,) = device.received()
        assert len(message.payload) <= MAX_PAYLOAD_BYTES
        sent = wire.decode(message.payload, wire.SetpointMessage)
        assert bus.counts["shortened"] == (len(sent.later) < spans)
    got = to_instruction(sent)
    whole = instruction.spans
    assert [(s.start, s.end) for s in got.spans] == [(s.start, s.end) for s in whole[: len(got.spans)]]
    assert (len(got.spans) == len(whole)) is (spans == 3)
    assert got.valid_until == got.spans[-1].end
    assert sent.ttl_ms == pytest.approx((got.valid_until - got.issued_at) / timedelta(milliseconds=1), abs=1)
    next_one = wire.encode(wire.SetpointMessage(**{f: getattr(sent, f) for f in sent.__struct_fields__}))
    assert len(got.spans) == len(whole) or len(next_one) > 0.8 * MAX_PAYLOAD_BYTES or len(sent.later) == 288


@pytest.mark.parametrize(
    ("spans", "kept", "whole"), [(20, True, True), (190, False, True), (280, False, False)]
)
async def test_certificates_of_later_spans_give_way_to_spans(spans: int, kept: bool, whole: bool) -> None:
    """190 spans of this size fit into a message, but not with their certificates."""
    hub, found = MemoryHub(), Certificate(binding="export by " + "x" * 200, worst_v_pu=1.05, power_flows=131)
    bare = long_schedule(spans, 4)
    instruction = replace(
        bare, certificate=found, later=tuple(replace(span, certificate=found) for span in bare.later)
    )
    async with MemoryBus(hub) as bus, MemoryBus(hub) as device:
        device.subscribe(wire.device_topic("r", "f", "a", "setpoint"))
        Publisher(bus, run="r", area="f", epoch=1).send(instruction, 300.0 * (spans + 2))
        (message,) = device.received()
        got = to_instruction(wire.decode(message.payload, wire.SetpointMessage))
    assert got.certificate == found
    assert {span.certificate for span in got.later} == {found if kept else None}
    assert (len(got.later) == spans) is whole
    assert (bus.counts["terse"], bus.counts["shortened"]) == (not kept, not whole)


async def expiry(url: str, topic: str) -> tuple[int, bytes]:
    """Seconds after which the broker forgets what it retains on a topic, and what that is."""
    host, port = url.removeprefix("mqtt://").split(":")
    async with (
        aiomqtt.Client(host, int(port), protocol=aiomqtt.ProtocolVersion.V5) as other,
        asyncio.timeout(WAIT),
    ):
        await other.subscribe(topic)
        async for message in other.messages:
            assert message.retain
            assert message.properties is not None
            assert isinstance(message.payload, bytes)
            return message.properties.MessageExpiryInterval, message.payload  # type: ignore[attr-defined]
    raise AssertionError


async def test_T16_a_retained_schedule_expires_with_its_last_span(broker: EmbeddedBroker) -> None:
    loop = Loop(("dso", because([0.5, 0.4, 0.3, 0.2], "bus 17", "bus 16", None, "line:3"), 1, 2))
    instruction = loop.step(0)["a"]
    ttl_s = (instruction.valid_until - instruction.issued_at).total_seconds()
    topic = wire.device_topic("r", "f", "a", "setpoint")
    async with MqttBus(broker.url, client_id="c") as bus:
        Publisher(bus, run="r", area="f", epoch=3).send(instruction, ttl_s)
        assert await bus.flush(WAIT)
        left, payload = await expiry(broker.url, topic)
        assert ttl_s - 10 < left <= ttl_s == 5 * 300
        got = to_instruction(wire.decode(payload, wire.SetpointMessage))
        assert got.spans[-1].end == clock(5)
        assert [s.certificate for s in got.spans] == [s.certificate for s in instruction.spans]
        assert told_reasons(got) == ["bus 17", "bus 16", None, "line:3"]
        # One that lasts a second is gone when the next client asks; the bus hears nothing meanwhile.
        Publisher(bus, run="s", area="f", epoch=3).send(instruction, 1.0)
        assert await bus.flush(WAIT)
        bus.received()
        assert not await bus.arrived(2.5)
        async with MqttBus(broker.url, client_id="late") as late:
            late.subscribe("gridpace/v1/#")
            assert await late.arrived(WAIT)
            assert [m.topic for m in late.received()] == [topic]


async def test_T16_a_client_that_was_cut_off_comes_back_and_finds_the_newest_schedule(
    broker: EmbeddedBroker,
) -> None:
    loop = Loop(("dso", plan(0.5, 0.4, 0.3), 1, 2))
    topic = wire.device_topic("r", "f", "a", "setpoint")
    async with MqttBus(broker.url, client_id="c") as bus, MqttBus(broker.url, client_id="d") as device:
        device.subscribe(topic)
        publisher = Publisher(bus, run="r", area="f", epoch=3)
        publisher.send(loop.step(0)["a"], 1200)
        assert await bus.flush(WAIT)
        assert await device.arrived(WAIT)
        device.received()
        await broker.stop(kill=True)
        publisher.send(loop.step(1)["a"], 1200)
        publisher.send(loop.step(2)["a"], 1200)
        await broker.start()
        assert await bus.flush(WAIT)
        assert await device.arrived(WAIT)
        got = wire.decode(device.received()[-1].payload, wire.SetpointMessage)
        assert (got.seq, len(got.later)) == (3, 2)
        assert device.counts["reconnects"] == bus.counts["reconnects"] == 1


# Through the co-simulation

GONE = '''
from controllers import Infeasible, SolverFailed
from controllers.envelopes.equal_ranges import EqualRanges
from dataclasses import dataclass

@dataclass
class Gone(EqualRanges):
    """Has no answer from a step on."""
    after: str = "11:20"
    word: str = "solver"

    def room(self, observation, **more):
        if f"{observation.time:%H:%M}" >= self.after:
            raise SolverFailed("gone") if self.word == "solver" else Infeasible("gone")
        return super().room(observation, **more)
'''

ROLLED = """
extends: ieee33-quick
name: rolled
forecast: {intervals: 6}
grid: {limits: {v_pu: [0.93, 1.07]}}
controllers:
  - name: dso
    uses: gone.py:Gone
    options: {margin: {kind: gaussian, epsilon: 0.01, correlation: 0.3}, after: "24:00"}
    rolling: {intervals: 4}
"""


@pytest.fixture
def rolled(tmp_path: Path) -> Path:
    (tmp_path / "gone.py").write_text(GONE)
    (tmp_path / "rolled.yaml").write_text(ROLLED)
    return tmp_path / "rolled.yaml"


def counts(run: Result) -> Any:
    return json.loads((run.directory / "manifest.json").read_text())["counts"]


def table(run: Result, name: str) -> Any:
    return read(run.directory, name).to_pandas()


async def test_T16_a_run_publishes_schedules_and_its_envelopes_are_respected(
    rolled: Path, tmp_path: Path
) -> None:
    run = await do(rolled, tmp_path / "runs")
    assert run.exit is Exit.HELD
    regions = table(run, "regions")
    for (_, _), rows in regions.groupby(["issued_at", "target"]):
        assert len(rows) == 4
        assert rows.valid_from.tolist() == [rows.issued_at.iloc[0] + (1 + k) * STEP for k in range(4)]
        assert (rows.valid_until == rows.valid_from + STEP).all()
    setpoints = table(run, "setpoints")
    assert (setpoints.valid_until == setpoints.issued_at + 5 * STEP).all()
    assert set(table(run, "devices").state) <= {"init", "controlled", "limited", "uncontrolled"}
    assert table(run, "fairness").ledger_jain.iloc[-1] == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("word", ["solver", "infeasible"])
async def test_T16_when_the_controller_is_gone_schedules_end_in_defaults(
    rolled: Path, tmp_path: Path, word: str
) -> None:
    options = [f"controllers.dso.options.{x}" for x in ("after='11:20'", f"word={word}")]
    run = await do(rolled, tmp_path / "runs", *options)
    devices = table(run, "devices")
    own = devices[devices.state != "uncontrolled"]
    failsafe = sorted({f"{t:%H:%M}" for t in own[own.state == "failsafe"].time})
    # The decision of 11:15 holds from 11:20 until 11:40. Where the network has no room any more, its last
    # interval within the notice is announced once more, and no longer schedule.
    begins = "11:40" if word == "solver" else "11:30"
    assert failsafe == [f"11:{m}" for m in range(int(begins[3:]), 60, 5)]
    assert (own[own.state == "failsafe"].p_mw == 0).all()
    origins = table(run, "steps").origin.tolist()
    if word == "solver":
        assert origins == ["optimal"] * 4 + ["held"] * 3 + ["default"] * 5
    else:
        assert origins == ["optimal"] * 4 + ["degraded"] + ["default"] * 7
    assert counts(run)[{"solver": "solver-failed", "infeasible": "infeasible"}[word]] >= 7
    judged = evaluate(run.directory, PARSE.validate_python({"what": "envelope_respected"}))
    assert judged.held  # what was superseded or has ended binds nobody


async def test_every_region_of_a_run_has_its_certificate_on_the_bus(
    rolled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table `regions` and the messages say the same of each region, that of later spans too."""
    sent: dict[tuple[datetime, str], list[Any]] = {}
    publish = MemoryBus.publish

    def listen(self: MemoryBus, topic: str, payload: bytes, **more: Any) -> None:
        if topic.endswith("/setpoint"):
            told = to_instruction(wire.decode(payload, wire.SetpointMessage))
            sent[told.issued_at, told.device] = [(span.start, span.certificate) for span in told.spans]
        publish(self, topic, payload, **more)

    monkeypatch.setattr(MemoryBus, "publish", listen)
    run = await do(rolled, tmp_path / "runs", "controllers.dso.certified=true", "steps=3")
    regions = table(run, "regions")
    assert (regions.power_flows > 0).all()
    recorded: dict[tuple[datetime, str], list[Any]] = {}
    for row in regions.sort_values("valid_from").itertuples():
        found = Certificate(
            binding=row.binding,
            worst_v_pu=row.worst_v_pu,
            worst_loading_percent=row.worst_loading_percent,
            power_flows=row.power_flows,
        )
        key = row.issued_at.to_pydatetime(), row.target
        recorded.setdefault(key, []).append((row.valid_from.to_pydatetime(), found))
    assert sent == recorded
    assert {len(spans) for spans in sent.values()} == {4}
    assert len({found.worst_v_pu for spans in sent.values() for _, found in spans}) > 3


async def test_T12_without_room_there_is_an_error_a_fallback_and_no_number_that_is_none(
    rolled: Path, tmp_path: Path
) -> None:
    """Half of what a wire carries is looked at: every message of a run in which no envelope exists."""
    (tmp_path / "static.py").write_text(
        "from controllers.envelopes.static_limits import StaticLimits\n"
        "class Tenth(StaticLimits):\n"
        "    def __init__(self, site): super().__init__(site, part=0.1)\n"
    )
    heard: list[bytes] = []
    publish = MemoryBus.publish

    def listen(self: MemoryBus, topic: str, payload: bytes, **more: Any) -> None:
        if topic.endswith("/setpoint"):
            heard.append(payload)
        publish(self, topic, payload, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemoryBus, "publish", listen)
        run = await do(
            rolled,
            tmp_path / "runs",
            "grid.limits.v_pu=[1.01,1.02]",
            "controllers.dso.fallback=static.py:Tenth",
        )
    assert counts(run)["origin-fallback"] == 12
    assert counts(run).get("controller-raised", 0) == 0
    assert len(heard) == 12 * 6
    for payload in heard:
        message = wire.decode(payload, wire.SetpointMessage)
        assert message.origin == "fallback"
        assert b"NaN" not in payload
        assert b"nfinity" not in payload
        assert np.isfinite(json.loads(payload)["region"]["b"]).all()
    without = await do(rolled, tmp_path / "runs", "grid.limits.v_pu=[1.01,1.02]")
    assert counts(without)["infeasible"] == 12
    own = table(without, "devices")
    assert set(own[own.state != "uncontrolled"].state) == {"init"}


# The scenario's key


def built(path: Path, *changes: str) -> Any:
    draft = load(str(path), changes)
    return build(draft, validate(draft)).seats[0].controller


def test_a_scenario_switches_rolling_on_and_off(rolled: Path) -> None:
    assert built(rolled).intervals == 4
    assert type(built(rolled, "controllers.dso.rolling=false")).__name__ == "Gone"
    fully = built(rolled, "controllers.dso.rolling=true", "forecast.intervals=12")
    assert (fully.intervals, fully.locked, fully.notice, fully.recertify) == (12, 2, 1, None)
    more = "{intervals: 6, locked: 3, notice: 2, silent_after: 15min, repay: 0.5, recertify: 4}"
    other = built(rolled, f"controllers.dso.rolling={more}")
    assert (other.intervals, other.locked, other.notice, other.repay, other.recertify) == (6, 3, 2, 0.5, 4)
    assert other.silent_after == timedelta(minutes=15)


@pytest.mark.parametrize(
    "fallback", [(), ("controllers.dso.fallback=controllers.envelopes.static_limits:Unlimited",)]
)
def test_the_forecast_has_to_cover_the_horizon(rolled: Path, fallback: tuple[str, ...]) -> None:
    with pytest.raises(ScenarioInvalid, match="looks 12 steps ahead, but a forecast covers 6; raise it"):
        built(rolled, "controllers.dso.rolling=true", *fallback)


@pytest.mark.parametrize(
    ("value", "path", "why"),
    [
        ("{intervals: 0}", "controllers.dso.rolling.intervals", "greater than or equal to 1"),
        ("{intervals: 289}", "controllers.dso.rolling.intervals", "less than or equal to 288"),
        ("{lock: 3}", "controllers.dso.rolling.lock", "did you mean 'locked'"),
        ("{silent_after: soon}", "controllers.dso.rolling.silent_after", "length of time"),
        ("{notice: 12}", "controllers.dso.rolling", "notice 12 must be from 0 to"),
    ],
)
def test_mistakes_are_named_where_they_are(rolled: Path, value: str, path: str, why: str) -> None:
    with pytest.raises(ScenarioInvalid) as caught:
        built(rolled, f"controllers.dso.rolling={value}")
    (problem,) = caught.value.problems
    assert problem.path == path
    assert why in problem.advice


def test_what_is_no_method_of_envelopes_cannot_roll(rolled: Path) -> None:
    (rolled.parent / "other.py").write_text(
        "class Other:\n    def __init__(self, site): pass\n    def step(self, observation): pass\n"
    )
    with pytest.raises(ScenarioInvalid, match="Other is no method of envelopes"):
        built(rolled, "controllers.dso.uses=other.py:Other", "controllers.dso.options={}")


# What is judged


def test_a_superseded_schedule_is_not_judged(tmp_path: Path) -> None:
    """The schedule of step 0 goes on for long; the one of step 1, from step 2 on, ends with step 2."""
    long = [envelope(0, "pv", 0.0, 0.2, seq=1, valid_from=at(k), valid_until=at(k + 1)) for k in range(1, 6)]
    short = envelope(1, "pv", 0.0, 0.5, seq=2, valid_from=at(2), valid_until=at(3))
    run = record(
        tmp_path,
        {"regions": stack(*long)},
        {"regions": short, **devices(1, {"pv": 0.2})},
        devices(2, {"pv": 0.5}),
        devices(3, {"pv": 0.9}),
        devices(4, {"pv": 0.9}),
    )
    found = evaluate(run, PARSE.validate_python({"what": "envelope_respected"}))
    assert (found.held, found.checked, found.uncounted) == (True, 2, {"without_region": 2})


def test_each_instant_is_judged_by_its_own_span(tmp_path: Path) -> None:
    spans = [
        envelope(0, "pv", 0.0, limit, seq=1, valid_from=at(k), valid_until=at(k + 1))
        for k, limit in ((1, 0.2), (2, 0.4), (3, 0.1))
    ]
    run = record(
        tmp_path,
        {"regions": stack(*spans)},
        devices(1, {"pv": 0.2}),
        devices(2, {"pv": 0.4}),
        devices(3, {"pv": 0.4}),
    )
    found = evaluate(run, PARSE.validate_python({"what": "envelope_respected"}))
    assert found.checked == 3
    assert found.share == pytest.approx(2 / 3)
    assert found.worst is not None
    assert found.worst.time == at(3)
    assert found.worst.by == pytest.approx(0.3)
