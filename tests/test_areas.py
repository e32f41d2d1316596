"""What controllers say about areas leaves once, retained, so that anybody can follow."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridges import wire
from bridges.area import AreaMessage, Planned, area_topic
from bridges.instruction import to_region
from bridges.memory import MemoryBus, MemoryHub
from bridges.publisher import Publisher
from controllers.contract import Certificate, Decision, Interval, Kind, Origin
from controllers.forecast import Forecast
from controllers.region import Region
from scenarios.outlet import BusOutlet
from simulators.clock import Clock, Duty, Mode, Tick
from simulators.controller import Turn
from simulators.outbox import OutboxSimulator

START = datetime(2026, 6, 21, tzinfo=UTC)
EVERY = timedelta(minutes=5)
CHECKED = Certificate(
    binding="upper voltage at bus 17", worst_v_pu=1.0499, worst_loading_percent=70.5, power_flows=9
)


def capability(k: int) -> Region:
    return Region.box(p_mw=(-0.1 * k, 1 / (k + 3)), q_mvar=(0.0, 0.0))


def decision(step: int = 0, later: int = 2, **more: Any) -> Decision:
    at = START + step * EVERY
    plan = Forecast(at, EVERY, ("mg2", "mg1"), [[9.0, 0.1 + k] for k in range(5)], np.full((5, 2), 0.01))
    rest = tuple(
        Interval(
            start=at + (k + 1) * EVERY,
            end=at + (k + 2) * EVERY,
            regions={"mg1": capability(k)},
            certificates={"mg1": CHECKED},
        )
        for k in range(1, later + 1)
    )
    whole = {
        "kind": Kind.AIC,
        "regions": {"mg1": capability(0)},
        "certificates": {"mg1": CHECKED},
        "later": rest,
        "plan": plan,
        **more,
    }
    return Decision(time=at, origin=Origin.CERTIFIED, **whole)


def turn(said: Decision | None, step: int = 0, by: str = "dso") -> Turn:
    begins = START + (step + 1) * EVERY
    until = begins + 2 * EVERY if said is None else said.intervals(begins, begins + 2 * EVERY)[-1].end
    origin = Origin.HELD if said is None else said.origin
    return Turn(by, origin, None if said is None else 1.0, said, begins, until)


def tick(step: int, duty: Duty = Duty.FULL) -> Tick:
    return Tick(step, START + step * EVERY, duty, START)


class Ends:
    """An outbox on a bus in memory, and somebody who follows."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        hub = MemoryHub()  # whose clock stands still: nothing expires on the bus
        self.ours, self.follower, self.hub = MemoryBus(hub), MemoryBus(hub), hub
        clock = Clock(START, EVERY)
        publisher = Publisher(self.ours, run="r", area="a", epoch=3)
        self.outbox = OutboxSimulator(BusOutlet(publisher, clock), clock, self.note)

    def note(self, at: datetime, what: str, **details: Any) -> None:
        self.events.append((what, details))

    async def __aenter__(self) -> Ends:
        await self.ours.__aenter__()
        await self.follower.__aenter__()
        self.follower.subscribe("gridpace/v1/r/area/+/+")
        return self

    async def __aexit__(self, *of: object) -> None:
        await self.follower.__aexit__(None, None, None)
        await self.ours.__aexit__(None, None, None)


async def test_what_is_said_arrives_to_the_last_bit() -> None:
    async with Ends() as ends:
        await ends.outbox.run(tick(0), (), [turn(decision())])
        (message,) = ends.follower.received()
        assert message.topic == area_topic("r", "mg1", Kind.AIC) == "gridpace/v1/r/area/mg1/aic"
        said = wire.decode(message.payload, AreaMessage)
        assert (said.run, said.area, said.kind, said.controller) == ("r", "mg1", "aic", "dso")
        assert (said.epoch, said.seq, said.origin) == (3, 1, "certified")
        assert (said.issued, said.valid_from, said.valid_until) == (START, START + EVERY, START + 4 * EVERY)
        assert said.ttl_ms == 4 * 300_000
        regions = [said.region, *(span.region for span in said.later if span.region)]
        for k, sent in enumerate(regions):
            region, meant = to_region(sent), capability(k)
            assert (region.A.tolist(), region.b.tolist()) == (meant.A.tolist(), meant.b.tolist())
        assert len(regions) == 3
        assert said.why == CHECKED.binding
        assert said.checked == wire.Checked(9, 1.0499, 70.5) == said.later[1].checked
        assert said.plan == tuple(Planned(START + (k + 1) * EVERY, 0.1 + k, 0.01) for k in range(3))


async def test_it_is_said_once_and_kept_for_who_comes_later() -> None:
    async with Ends() as ends:
        await ends.outbox.run(tick(0), (), [turn(decision())])
        await ends.outbox.run(tick(1), (), [turn(None, 1)])
        await ends.outbox.run(tick(2, Duty.SKIP), (), [turn(None, 2)])
        assert len(ends.follower.received()) == 1
        await ends.outbox.run(tick(3), (), [turn(decision(3), 3)])
        assert ends.outbox.counts["areas-sent"] == 2
        async with MemoryBus(ends.hub) as late:
            late.subscribe(area_topic("r", "mg1", Kind.AIC))
            (kept,) = late.received()
            assert wire.decode(kept.payload, AreaMessage).seq == 4


async def test_what_is_withdrawn_is_no_longer_there() -> None:
    async with Ends() as ends:
        first = turn(decision())
        await ends.outbox.run(tick(0), (), [first])
        await ends.outbox.run(
            tick(1), (), [replace(first, decision=None, origin=Origin.DEFAULT, withdrawn=first.decision)]
        )
        assert [bool(message.payload) for message in ends.follower.received()] == [True, False]
        async with MemoryBus(ends.hub) as late:
            late.subscribe(area_topic("r", "mg1", Kind.AIC))
            assert not late.received()


def kept(ends: Ends) -> dict[str, int]:
    """What the bus keeps about areas: the number of the message, by the end of the topic."""
    messages = ends.hub.retained("gridpace/v1/r/area/+/+")
    return {
        m.topic.removeprefix("gridpace/v1/r/area/"): wire.decode(m.payload, AreaMessage).seq for m in messages
    }


async def test_what_a_new_decision_does_not_mention_is_no_longer_there() -> None:
    both = {"mg1": capability(0), "mg2": capability(1)}
    async with Ends() as ends:
        await ends.outbox.run(tick(0), (), [turn(decision(regions=both))])
        await ends.outbox.run(tick(1), (), [turn(None, 1)])  # nothing new: it goes on
        assert kept(ends) == {"mg1/aic": 1, "mg2/aic": 1}
        await ends.outbox.run(tick(2), (), [turn(decision(2, regions={"mg2": capability(0)}), 2)])
        assert kept(ends) == {"mg2/aic": 3}
        await ends.outbox.run(tick(3), (), [turn(decision(3, regions={}), 3)])
        assert kept(ends) == {}
        assert ends.outbox.counts == {"areas-sent": 3, "areas-retracted": 2, "instructions-sent": 0}
        heard = [(m.topic.split("/")[-2], bool(m.payload)) for m in ends.follower.received()]
        assert heard == [("mg1", True), ("mg2", True), ("mg2", True), ("mg1", False), ("mg2", False)]


@pytest.mark.parametrize("kind", [Kind.PIC, Kind.ENVELOPE])
async def test_a_decision_of_another_kind_replaces_what_was_said_too(kind: Kind) -> None:
    async with Ends() as ends:
        await ends.outbox.run(tick(0), (), [turn(decision())])
        await ends.outbox.run(tick(1), (), [turn(decision(1, kind=kind), 1)])
        assert kept(ends) == ({"mg1/pic": 2} if kind is Kind.PIC else {})


async def test_what_others_say_stays() -> None:
    async with Ends() as ends:
        pic = decision(kind=Kind.PIC)
        await ends.outbox.run(tick(0), (), [turn(pic, by="mg1"), turn(decision())])
        silent = decision(1, regions={})
        await ends.outbox.run(tick(1), (), [turn(silent, 1)])
        assert kept(ends) == {"mg1/pic": 1}
        # The topic has what another controller said of the same area since.
        await ends.outbox.run(tick(2), (), [turn(decision(2), 2), turn(decision(2), 2, by="other")])
        await ends.outbox.run(tick(3), (), [turn(decision(3, regions={}), 3)])
        assert kept(ends) == {"mg1/pic": 1, "mg1/aic": 3}


async def test_what_is_over_is_no_longer_there_though_the_broker_lets_nothing_expire() -> None:
    async with Ends() as ends:
        await ends.outbox.run(tick(0), (), [turn(decision(later=2))])  # until step 4 begins
        await ends.outbox.run(tick(3), (), [turn(None, 3)])
        assert kept(ends) == {"mg1/aic": 1}
        await ends.outbox.run(tick(4), (), [turn(None, 4)])
        assert kept(ends) == {}
        await ends.outbox.run(tick(5), (), [turn(decision(5), 5)])
        await ends.outbox.run(tick(9), (), [turn(decision(9), 9)])  # said anew as it ends
        assert kept(ends) == {"mg1/aic": 10}
        assert ends.outbox.counts["areas-retracted"] == 1


async def test_what_cannot_be_sent_leaves_nothing_older_behind() -> None:
    async with Ends() as ends:
        await ends.outbox.run(tick(0), (), [turn(decision())])
        angle = np.linspace(0, 2 * np.pi, 2000)
        huge = Region(("p_mw", "q_mvar"), np.column_stack([np.cos(angle), np.sin(angle)]), np.ones(2000))
        await ends.outbox.run(tick(1), (), [turn(decision(1, regions={"mg1": huge}), 1)])
        assert [what for what, _ in ends.events] == ["unsendable"]
        assert kept(ends) == {}


async def test_envelopes_of_devices_are_no_matter_of_areas() -> None:
    async with Ends() as ends:
        await ends.outbox.run(tick(0), (), [turn(decision(kind=Kind.ENVELOPE))])
        assert not ends.follower.received()
        assert "areas-sent" not in ends.outbox.counts


async def test_what_cannot_be_sent_is_named_and_the_rest_leaves() -> None:
    async with Ends() as ends:
        regions = {"a/b": capability(0), "mg1": capability(0)}
        await ends.outbox.run(tick(0), (), [turn(decision(regions=regions, later=0))])
        assert ends.outbox.counts["unsendable"] == 1
        ((what, details),) = ends.events
        assert (what, details["area"]) == ("unsendable", "a/b")
        assert "a name is 1 to 64 of the characters" in details["why"]
        (message,) = ends.follower.received()
        assert wire.decode(message.payload, AreaMessage).area == "mg1"


async def test_a_schedule_ends_where_nothing_is_said_about_the_area() -> None:
    said = decision(later=3)
    hole = replace(said.later[1], regions={"mg2": capability(1)})
    async with Ends() as ends:
        await ends.outbox.run(tick(0), (), [turn(replace(said, later=(said.later[0], hole, said.later[2])))])
        message = wire.decode(ends.follower.received()[0].payload, AreaMessage)
        assert len(message.later) == 1
        assert message.valid_until == START + 3 * EVERY
        assert message.ttl_ms == 3 * 300_000


async def test_a_schedule_that_no_message_holds_is_shortened_and_counted() -> None:
    async with Ends() as ends:
        await ends.outbox.run(tick(0), (), [turn(decision(later=400))])
        message = wire.decode(ends.follower.received()[0].payload, AreaMessage)
        assert 100 < len(message.later) <= wire.MAX_LATER
        assert message.later[-1].end == message.valid_until
        assert message.ttl_ms == (message.valid_until - START) / timedelta(milliseconds=1)
        assert ends.ours.counts["shortened"] == 1


async def test_on_a_paced_clock_times_are_those_of_the_wall() -> None:
    clock = Clock(START, EVERY, Mode.SCALED, 60.0, wall=lambda: datetime(2030, 1, 1, tzinfo=UTC))
    await clock.tick(0)
    async with MemoryBus() as bus:
        bus.subscribe("gridpace/v1/r/area/#")
        outbox = OutboxSimulator(BusOutlet(Publisher(bus, run="r", area="a", epoch=1), clock), clock, print)
        await outbox.run(tick(0), (), [turn(decision())])
        message = wire.decode(bus.received()[0].payload, AreaMessage)
    assert message.ttl_ms == 20_000
    assert message.valid_until - message.issued == timedelta(seconds=20)
    assert [planned.time - message.issued for planned in message.plan] == [
        timedelta(seconds=5 * k) for k in (1, 2, 3)
    ]


def test_a_kind_that_is_for_devices_has_no_topic() -> None:
    with pytest.raises(wire.BadMessage, match="not said about areas, only pic, aic"):
        area_topic("r", "mg1", Kind.ENVELOPE)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(kind="envelope"),
        lambda m: m.update(more=1),
        lambda m: m.update(area="a b"),
        lambda m: m.update(valid_until=m["valid_from"]),
        lambda m: m.update(ttl_ms=0),
        lambda m: m.pop("region"),
    ],
)
async def test_a_message_that_is_not_as_it_should_be_is_refused(change: Callable[[Any], Any]) -> None:
    async with Ends() as ends:
        await ends.outbox.run(tick(0), (), [turn(decision())])
        message = json.loads(ends.follower.received()[0].payload)
    wire.decode(json.dumps(message).encode(), AreaMessage)
    change(message)
    with pytest.raises(wire.BadMessage):
        wire.decode(json.dumps(message).encode(), AreaMessage)


def test_what_the_page_says_about_a_microgrid_is_a_message() -> None:
    page = (Path(__file__).parent.parent / "docs" / "wire.md").read_text("utf-8")
    (message,) = re.findall(r'(?ms)^```jsonc\n(\{"schema": "gridpace.area.*?)^```', page)
    told = wire.decode(message.encode(), AreaMessage)
    assert told.kind == "aic"
    assert [planned.p_mw for planned in told.plan] == [0.12, 0.1]
