"""Real devices as a run knows them: measured, silent, held; and what the bus brings of them."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from bridges import batch, wire
from bridges.memory import MemoryBus, MemoryHub
from bridges.operator import OperatorMessage, operator_topic
from bridges.publisher import Publisher
from controllers.contract import Instruction
from controllers.devices import Battery, FlexibleLoad, PvInverter, still
from controllers.region import Region
from controllers.register import Regime
from scenarios.inlet import BusInlet, Ways, believable
from simulators.checkpoint import Packer, unpack
from simulators.clock import Clock, Duty, Mode, Tick
from simulators.devices import DeviceReport, DevicesSimulator, Obedience, Receipt
from simulators.field import Field, Image, Measurement, Placed, Word
from simulators.tables import Outcome
from tests.test_rounds import Bench as VisitBench

START = datetime(2026, 6, 21, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
PATIENCE = Placed(3 * SECOND)
HOME = Region.box(p_mw=(0.0, 0.1), q_mvar=(0.0, 0.0))
DEVICES: dict[str, Any] = {
    "pv": PvInverter(name="pv", bus="1", s_mva=1.0, p_mw=1.0, weight=1.0, default=HOME),
    "bat": Battery(
        name="bat", bus="1", p_mw=1.0, s_mva=1.0, e_mwh=1.0, e_min_mwh=0.0, e_start_mwh=0.5,
        efficiency=(1.0, 1.0), weight=1.0, default=still(),
    ),
}  # fmt: skip


class Ears:
    """An inlet that gives what a test has put there."""

    def __init__(self) -> None:
        self.next = Image()
        self.withdrawn: list[str] = []
        self.wished: dict[str, float] = {}

    def sample(self, now: datetime) -> Image:
        image, self.next = self.next, Image()
        return image

    def wishes(self, p_mw: Any) -> None:
        self.wished = dict(p_mw)

    def withdraw(self, device: str) -> None:
        self.withdrawn.append(device)


class Bench:
    """A field of one device outside, step by step."""

    def __init__(self, placed: Placed = PATIENCE, apart_mw: float | None = None) -> None:
        self.ears, self.events = Ears(), list[tuple[str, dict[str, Any]]]()
        self.placed = placed

        def event(at: datetime, what: str, **details: Any) -> None:
            self.events.append((what, details))

        self.field = Field(DEVICES, {"pv": placed}, self.ears, event, apart_mw)
        self.fleet = DevicesSimulator(DEVICES, 1.0, field=self.field)

    def step(
        self, k: int, *told: Instruction, drive: float = 0.8, **arrived: Any
    ) -> tuple[DeviceReport, DeviceReport]:
        self.ears.next = Image(**arrived)
        instructions = {one.device: one for one in told}
        pv, bat = self.fleet.run(tick(k), {"pv": drive, "bat": 0.3}, instructions)
        return pv, bat


def tick(k: int) -> Tick:
    return Tick(k, START + k * SECOND, Duty.FULL, START)


def told(seq: int, most_mw: float, *, until: int, device: str = "pv") -> Instruction:
    return Instruction(
        device=device,
        epoch=1,
        seq=seq,
        issued_at=START + (seq - 1) * SECOND,
        valid_from=START + seq * SECOND,
        valid_until=START + until * SECOND,
        region=Region.box(p_mw=(0.0, most_mw), q_mvar=(0.0, 0.0)),
        setpoint=None,
        fallback=HOME,
    )


def measured(at_s: float, p_mw: float, **more: Any) -> dict[str, Any]:
    return {"measurements": (Measurement("pv", START + at_s * SECOND, p_mw, 0.0, **more),)}


def acked(seq: int, at_s: float, outcome: Outcome = Outcome.APPLIED) -> tuple[Receipt, ...]:
    return (Receipt("pv", 1, seq, START + at_s * SECOND, outcome),)


# The rule


def test_what_a_device_measures_counts_as_long_as_it_is_fresh() -> None:
    bench = Bench()
    pv, _ = bench.step(0, **measured(-0.2, 0.7, e_mwh=None, regime=Regime.LIMITED))
    assert (pv.p_mw, pv.obedience, pv.silent_since) == (0.7, Obedience.LIMITED, None)
    for k in (1, 2):
        assert bench.step(k)[0].p_mw == 0.7
    pv, _ = bench.step(3)
    assert pv.silent_since == START - 0.2 * SECOND
    assert pv.obedience is Obedience.STALE
    assert [what for what, _ in bench.events] == ["device-silent"]
    pv, _ = bench.step(4, **measured(3.9, 0.6))
    assert (pv.p_mw, pv.silent_since, pv.obedience) == (0.6, None, Obedience.INIT)
    assert [what for what, _ in bench.events] == ["device-silent", "device-heard"]
    assert (bench.field.counts["device-silent"], bench.field.counts["silent"]) == (1, 1)


def test_a_silent_device_is_taken_to_obey_what_it_has_acknowledged_and_then_its_fallback() -> None:
    bench = Bench()
    bench.step(0, **measured(0.0, 0.7))
    bench.step(1, told(1, 0.5, until=7), receipts=acked(1, 1.0))
    bench.step(2, told(2, 0.3, until=9))  # on its way, and never answered: nobody knows
    assert [bench.step(k)[0].p_mw for k in range(3, 9)] == pytest.approx([0.7, 0.5, 0.5, 0.5, 0.1, 0.1])
    assert bench.field.counts["assumed-controlled"] == 3
    assert bench.field.counts["assumed-fallback"] == 2


def test_what_it_refused_it_does_not_obey() -> None:
    bench = Bench()
    bench.step(0, **measured(0.0, 0.7))
    bench.step(1, told(1, 0.5, until=20), receipts=acked(1, 1.0, Outcome.REFUSED))
    assert bench.step(9)[0].p_mw == pytest.approx(0.1)


def test_a_device_that_was_never_heard_is_missing_and_taken_to_stand_at_its_default() -> None:
    bench = Bench()
    pv, bat = bench.step(0)
    assert (pv.p_mw, pv.silent_since) == (0.0, START)
    assert bat.outside is None
    assert bat.p_mw == 0.0
    assert bench.ears.wished == {"pv": 0.8}


def test_nobody_is_said_to_be_silent_before_he_could_have_been_heard() -> None:
    heard = Bench()
    pv, _ = heard.step(0)
    assert (pv.obedience, pv.silent_since) == (Obedience.STALE, START)
    heard.step(1, **measured(0.9, 0.1))
    assert not heard.events
    never = Bench()
    for k in range(6):
        assert never.step(k)[0].obedience is Obedience.STALE
        assert [what for what, _ in never.events] == ["device-silent"] * (k > 3)
    assert never.events[0][1]["since"] == START
    never.step(6, **measured(5.9, 0.1))
    assert [what for what, _ in never.events] == ["device-silent", "device-heard"]


def test_older_news_do_not_replace_newer_ones_and_strangers_are_left_alone() -> None:
    bench = Bench()
    bench.step(0, **measured(0.0, 0.7))
    pv, _ = bench.step(1, **measured(-5.0, 0.1))
    assert pv.p_mw == 0.7
    bench.step(2, measurements=(Measurement("nobody", START, 9.0, 9.0),), receipts=acked(9, 0.0))


def test_who_comes_and_goes_is_said_once() -> None:
    bench = Bench()
    for k, presence in enumerate(("online", "online", "fallback", "offline", "offline", "online")):
        bench.step(k, presence={"pv": presence}, **measured(k, 0.1))
    assert [what for what, _ in bench.events] == ["device-offline", "device-online"]


# The twin beside it


def test_a_twin_beside_it_obeys_the_same_and_tells_how_far_they_are_apart() -> None:
    bench = Bench(replace(PATIENCE, shadow=True), apart_mw=0.05)
    bench.step(0, **measured(-0.1, 0.0))
    pv, _ = bench.step(1, told(1, 0.5, until=20), **measured(0.9, 0.1))
    assert pv.outside is not None
    assert pv.outside.twin is not None
    assert pv.outside.twin.p_mw == pytest.approx(0.1)  # before its instruction, at its default
    pv, _ = bench.step(2, **measured(1.9, 0.5))
    assert pv.outside is not None
    assert pv.outside.twin is not None
    assert pv.outside.twin.p_mw == pytest.approx(0.5)
    assert not [what for what, _ in bench.events if what.startswith("twin")]
    bench.step(3, **measured(2.9, 0.3))
    bench.step(4, **measured(3.9, 0.52))
    assert [(what, details["device"]) for what, details in bench.events] == [
        ("twin-apart", "pv"),
        ("twin-close", "pv"),
    ]
    assert bench.field.counts["apart"] == 1


def test_without_one_there_is_nothing_to_compare() -> None:
    bench = Bench()
    assert bench.fleet.twins.keys() == {"bat"}
    pv, _ = bench.step(0, **measured(0.0, 0.2))
    assert pv.outside is not None
    assert pv.outside.twin is None


# The operator


def test_who_is_held_is_told_nothing_new_until_he_is_released() -> None:
    bench = Bench()
    bench.step(0, words=(Word("bat", True, "a visit"), Word("nobody", True), Word("bat", True)))
    assert bench.field.held == {"bat"}
    assert bench.ears.withdrawn == ["bat"]
    _, bat = bench.step(1, told(1, 0.5, until=20, device="bat"))
    assert bat.obedience is Obedience.INIT
    _, bat = bench.step(2, told(2, 0.5, until=20, device="bat"), words=(Word("bat", False),))
    assert (bat.p_mw, bat.obedience) == (pytest.approx(0.3), Obedience.CONTROLLED)
    assert bench.field.held == frozenset()
    assert [what for what, _ in bench.events if what.startswith("operator")] == [
        "operator-hold",
        "operator-unknown",
        "operator-release",
    ]


def test_a_checkpoint_keeps_all_that_is_known() -> None:
    one, other = Bench(replace(PATIENCE, shadow=True)), Bench(replace(PATIENCE, shadow=True))
    one.step(0, told(1, 0.5, until=9), words=(Word("bat", True),), **measured(0.0, 0.7))
    one.step(1, receipts=acked(1, 1.0))
    other.fleet.recall(unpack(Packer().pack(one.fleet.memory())))
    assert other.field.held == {"bat"}
    for k in range(2, 12):
        assert other.step(k) == one.step(k)


# What the bus brings


class Wired:
    """An inlet on a bus in memory, and somebody who says things."""

    def __init__(self) -> None:
        hub = MemoryHub()
        self.ours, self.theirs = MemoryBus(hub), MemoryBus(hub)
        self.publisher = Publisher(self.ours, run="r", area="a", epoch=1)
        self.clock = Clock(START, SECOND, Mode.LIVE, monotonic=lambda: 0.0, wall=lambda: START)
        ways = Ways(
            gateways={"bat": "gw1", "wind": "gw1"},
            direct=frozenset({"pv"}),
            most={name: believable(device) for name, device in DEVICES.items()},
        )
        self.inlet = BusInlet(self.ours, self.publisher, self.clock, ways)

    async def __aenter__(self) -> Wired:
        await self.ours.__aenter__()
        await self.theirs.__aenter__()
        await self.clock.tick(0)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.ours.__aexit__(None, None, None)
        await self.theirs.__aexit__(None, None, None)

    def say(self, der: str, what: Any, message: msgspec.Struct | bytes) -> None:
        payload = message if isinstance(message, bytes) else wire.encode(message)
        self.theirs.publish(wire.device_topic("r", "a", der, what), payload)


def meas(at_s: float = -0.5, p_mw: float = 0.4) -> wire.Meas:
    return wire.Meas(time=START + at_s * SECOND, p_mw=p_mw, q_mvar=0.0, state=Regime.CONTROLLED)


async def test_all_that_came_since_the_last_tick_is_one_image() -> None:
    async with Wired() as wired:
        wired.say("pv", "meas", meas())
        wired.say("gw1", "batch-meas", batch.encode_measured(START, [batch.Reading("bat", 0.1, 0.0)])[0])
        wired.say("gw1", "state", wire.State(state="fallback", time=START))
        wired.say("pv", "ack", wire.Ack(epoch=1, seq=3, state="applied", time=START))  # type: ignore[arg-type]
        said = OperatorMessage(schema="gridpace.operator.v1", word="hold", device="pv", time=START)
        wired.theirs.publish(operator_topic("r"), wire.encode(said))
        image = wired.inlet.sample(START)
        assert [(m.device, m.p_mw, m.regime) for m in image.measurements] == [
            ("pv", 0.4, Regime.CONTROLLED),
            ("bat", 0.1, None),
        ]
        assert image.measurements[0].time == START - 0.5 * SECOND
        assert image.presence == {"bat": "fallback", "wind": "fallback"}
        assert image.words == (Word("pv", True, None),)
        expected = [Receipt("pv", 1, 3, START, Outcome.APPLIED)]
        assert list(image.receipts) == expected
        assert wired.inlet.receipts(START) == expected  # the recorder reads them as well
        assert wired.inlet.receipts(START) == []
        assert wired.inlet.sample(START) == Image()


async def test_what_came_while_the_recorder_looked_is_not_lost_to_the_next_tick() -> None:
    async with Wired() as wired:
        wired.say("pv", "meas", meas())
        assert wired.inlet.receipts(START) == []
        assert len(wired.inlet.sample(START + SECOND).measurements) == 1


async def test_nobody_measures_for_another() -> None:
    async with Wired() as wired:
        wired.say("bat", "meas", meas())  # it is behind a gateway
        wired.say("pv24", "meas", meas())  # simulated
        for who, der in (("gw2", "bat"), ("gw1", "pv")):
            wired.say(who, "batch-meas", batch.encode_measured(START, [batch.Reading(der, 0.1, 0.0)])[0])
        assert wired.inlet.sample(START).measurements == ()
        assert wired.inlet.counts == {"measured-foreign": 4}


async def test_a_clock_that_is_wrong_and_what_is_no_message_is_counted() -> None:
    async with Wired() as wired:
        wired.say("pv", "meas", meas(at_s=6.0))
        wired.say("pv", "meas", meas(at_s=4.0))
        for payload in (b"", b"{}", b"\xff", b'{"p_mw": NaN}', b"[" * 60_000):
            wired.say("pv", "meas", payload)
            wired.theirs.publish(operator_topic("r"), payload)
        image = wired.inlet.sample(START)
        assert [m.time for m in image.measurements] == [START]  # a little ahead is now
        assert image.words == ()
        assert wired.inlet.counts == {
            "measured-early": 1,
            "measured-malformed": 5,
            "operator-malformed": 5,
        }


@pytest.mark.parametrize("year", [1, 1971, 2199, 9999])
async def test_the_year_of_a_measurement_or_an_answer_ends_no_run(year: int) -> None:
    async with Wired() as wired:
        wired.clock.mode, wired.clock.factor = Mode.SCALED, 3600.0
        time = datetime(year, 6, 1)
        wired.say(
            "pv",
            "meas",
            json.dumps(
                {"time": f"{time:%Y}-06-01T00:00:00Z".rjust(20, "0"), "p_mw": 0, "q_mvar": 0}
            ).encode(),
        )
        acked = {
            "epoch": 1,
            "seq": 3,
            "state": "applied",
            "time": f"{time:%Y}-06-01T00:00:00Z".rjust(20, "0"),
        }
        wired.say("pv", "ack", json.dumps(acked).encode())
        image = wired.inlet.sample(START)
        counted = {**wired.inlet.counts, **wired.ours.counts}
        if year in (1, 9999):
            assert (image.measurements, image.receipts) == ((), ())
            assert (counted["measured-malformed"], counted["malformed"]) == (1, 1)
        else:
            assert len(image.receipts) == 1
            assert image.receipts[0].at <= START
            assert len(image.measurements) == (year == 1971)


async def test_what_a_device_cannot_be_is_not_measured() -> None:
    async with Wired() as wired:
        for p_mw, q_mvar in ((1e12, 0.0), (0.0, -10.1), (9.0, 9.0)):
            wired.say("pv", "meas", wire.Meas(time=START, p_mw=p_mw, q_mvar=q_mvar))
        for e_mwh in (1e12, 0.9):
            reading = batch.Reading("bat", 0.1, 0.0, None, e_mwh)
            wired.say("gw1", "batch-meas", batch.encode_measured(START, [reading])[0])
        wired.say("pv", "meas", meas(p_mw=9.9))  # far too much, but somebody may have rated it wrongly
        found = [(m.device, m.p_mw) for m in wired.inlet.sample(START).measurements]
        assert found == [("bat", 0.1), ("pv", 9.9)]
        assert wired.inlet.counts == {"measured-impossible": 4}


async def test_what_is_believed_of_each_kind() -> None:
    assert believable(DEVICES["pv"]) == (10.0, None)
    assert believable(DEVICES["bat"]) == (10.0, 10.0)
    load = FlexibleLoad(name="l", bus="1", p_mw=0.2, firm_mw=0.0, power_factor=0.5, weight=1.0, default=HOME)
    assert believable(load) == (4.0, None)


async def test_an_operators_word_counts_while_it_is_new_and_his_last() -> None:
    async with Wired() as wired:

        def say(at_s: float, word: str, device: str = "pv") -> tuple[Word, ...]:
            said = OperatorMessage(
                schema="gridpace.operator.v1",
                word=word,
                device=device,
                time=START + at_s * SECOND,  # type: ignore[arg-type]
            )
            wired.theirs.publish(operator_topic("r"), wire.encode(said))
            return wired.inlet.sample(START).words

        assert say(-61, "release") == ()
        assert say(6, "release") == ()
        assert say(-10, "hold") == (Word("pv", True),)
        assert say(-11, "release") == ()  # said before, overtaken on the way
        assert say(-11, "hold", "bat") == (Word("bat", True),)
        assert say(-10, "hold") == (Word("pv", True),)
        assert say(4, "release") == (Word("pv", False),)
        assert wired.inlet.counts == {"operator-stale": 3}


async def test_nobody_answers_for_another() -> None:
    async with Wired() as wired:
        ack = wire.Ack(epoch=1, seq=3, state="applied", time=START)  # type: ignore[arg-type]
        wired.say("bat", "ack", ack)  # its gateway speaks for it
        wired.theirs.publish(wire.device_topic("r", "other", "pv", "ack"), wire.encode(ack))
        assert wired.inlet.sample(START).receipts == ()
        assert wired.inlet.counts == {"answers-foreign": 1}
        for der in ("pv", "twin"):  # a device of one's own may answer for a twin
            wired.say(der, "ack", ack)
        assert [receipt.device for receipt in wired.inlet.sample(START).receipts] == ["pv", "twin"]


async def test_a_device_that_is_held_is_forgotten_by_the_broker() -> None:
    async with Wired() as wired:
        wired.publisher.send(told(1, 0.5, until=60), 60.0)
        several = [(told(1, 0.5, until=60, device=name), 60.0) for name in ("bat", "wind")]
        wired.publisher.send_batch("gw1", several)
        kept = wired.ours.hub.retained
        assert kept("gridpace/v1/r/a/pv/setpoint")
        for device in ("pv", "bat"):
            wired.inlet.withdraw(device)
        assert not kept("gridpace/v1/r/a/pv/setpoint")
        (part,) = kept("gridpace/v1/r/a/gw1/batch/+")
        (group,) = wire.decode(part.payload, batch.Batch).groups
        assert [one.der for one in group.told] == ["wind"]
        wired.inlet.withdraw("wind")
        assert not kept("gridpace/v1/r/a/gw1/batch/+")


def test_a_device_that_obeys_what_is_over_is_an_event_as_long_as_it_lasts() -> None:
    bench = Bench()
    why = {"pv": "limit_mw is 0.4, not 0.0"}
    for k, found in enumerate([{}, why, why, {}]):
        bench.step(k, unreverted=found)
    assert bench.events == [
        ("device-unreverted", {"step": 1, "device": "pv", "why": "limit_mw is 0.4, not 0.0"}),
        ("device-reverted", {"step": 3, "device": "pv", "why": None}),
    ]
    assert bench.field.counts["device-unreverted"] == 1


async def test_what_is_found_at_a_visit_of_a_device_comes_with_the_image() -> None:
    visits = VisitBench()
    visits.rounds.tell(visits.told(1, lasts=2.0))
    await visits.visit()
    visits.device.obeys = True
    await visits.visit(2.5)
    bus = MemoryBus(MemoryHub())
    publisher = Publisher(bus, run="r", area="a", epoch=1)
    async with bus:
        clock = Clock(START, SECOND, Mode.LIVE, monotonic=lambda: 0.0, wall=lambda: START)
        await clock.tick(0)
        inlet = BusInlet(bus, publisher, clock, Ways(rounds=visits.rounds))
        assert inlet.sample(START).unreverted == {"pv": "limit_mw is 0.4, not 0.0"}
