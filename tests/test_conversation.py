"""What controllers in other processes are asked and answer: the same on both sides, to the last bit, and
nothing else is believed."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridges import asking, conversation, parcel
from bridges.asking import Answering, Asking, Late, Lost, process_topic
from bridges.bus import MAX_PAYLOAD_BYTES, Message
from bridges.memory import MemoryBus, MemoryHub
from bridges.parcel import MAX_BYTES, PART_BYTES, Parcels, pack, unpack
from bridges.wire import BadMessage
from controllers.contract import (
    Certificate,
    ControlError,
    Decision,
    Infeasible,
    Interval,
    Iteration,
    Kind,
    Observation,
    Origin,
    Setpoint,
    SolverFailed,
    Word,
)
from controllers.fairness import Fairness
from controllers.forecast import Forecast
from controllers.region import Region

START = datetime(2026, 6, 21, tzinfo=UTC)

few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
numbers = st.floats(allow_nan=False, allow_infinity=False)
sizes = st.floats(-1e6, 1e6, allow_subnormal=True)
names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)
instants = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)).flatmap(
    lambda at: st.integers(-14 * 60, 14 * 60).map(
        lambda minutes: at.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    )
)
counts = st.integers(0, 2**53)


def by_name(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(names, values, max_size=3)


@st.composite
def forecasts(draw: st.DrawFn) -> Forecast:
    intervals, columns = draw(st.integers(0, 3)), draw(st.lists(names, max_size=3, unique=True))
    shape, size = (intervals, len(columns)), intervals * len(columns)
    mean = draw(st.lists(numbers, min_size=size, max_size=size))
    std = draw(st.lists(st.floats(0, allow_infinity=False), min_size=size, max_size=size))
    every = draw(st.timedeltas(timedelta(microseconds=1), timedelta(days=40)))
    return Forecast(
        draw(instants), every, tuple(columns), np.array(mean).reshape(shape), np.array(std).reshape(shape)
    )


@st.composite
def regions(draw: st.DrawFn) -> Region:
    axes = draw(st.sampled_from([("p_mw",), ("p_mw", "q_mvar"), ("q_mvar", "p_mw"), ("a", "b", "c")]))
    rows = draw(st.lists(st.tuples(*[sizes] * len(axes)), max_size=4))
    kept = [row for row in rows if math.hypot(*row) > 1e-6]
    limits = draw(st.lists(sizes, min_size=len(kept), max_size=len(kept)))
    region = Region(axes, np.array(kept).reshape(-1, len(axes)), np.array(limits))
    return region & region.over(axes) if draw(st.booleans()) else region


certificates = st.builds(
    Certificate,
    binding=st.none() | names,
    worst_v_pu=st.none() | numbers,
    worst_loading_percent=st.none() | numbers,
    power_flows=counts,
)
setpoints = st.builds(Setpoint, p_mw=numbers, q_mvar=st.none() | numbers)
intervals = st.builds(
    Interval, start=instants, end=instants, regions=by_name(regions()), certificates=by_name(certificates)
)
shares = st.builds(
    Fairness,
    **{f.name: numbers for f in dataclasses.fields(Fairness) if f.default is dataclasses.MISSING},
    price=st.none() | numbers,
    ledger_jain=st.none() | numbers,
)
words = st.builds(
    Word,
    number=counts,
    what=names,
    values=by_name(st.lists(numbers, max_size=4).map(tuple)),
    regions=by_name(regions()),
)
iterations = st.builds(
    Iteration,
    number=counts,
    phase=names,
    lower=st.none() | numbers,
    upper=st.none() | numbers,
    cuts=counts,
    ended=st.none() | names,
)
decisions = st.builds(
    Decision,
    time=instants,
    origin=st.sampled_from(Origin),
    setpoints=by_name(setpoints),
    regions=by_name(regions()),
    kind=st.sampled_from(Kind),
    certificates=by_name(certificates),
    until=st.none() | instants,
    later=st.lists(intervals, max_size=2).map(tuple),
    positions=by_name(st.integers(-(2**53), 2**53)),
    plan=st.none() | forecasts(),
    fairness=st.none() | shares,
    mistake=st.none() | st.text(max_size=20),
    words=by_name(words),
    iterations=st.lists(iterations, max_size=3).map(tuple),
)
observations = st.builds(
    Observation,
    time=instants,
    forecast=forecasts(),
    v_pu=by_name(numbers),
    p_mw=by_name(numbers),
    q_mvar=by_name(numbers),
    e_mwh=by_name(numbers),
    regions=by_name(regions()),
    positions=by_name(st.integers(-(2**53), 2**53)),
    said=by_name(decisions),
    connected=by_name(st.booleans()),
    turn=counts,
    turns_left=counts,
)


def bare(value: Any) -> Any:
    """A value as what can be compared to the last bit: floats in hex, arrays with shapes, orders kept."""
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, np.ndarray):
        return value.shape, bare(value.ravel().tolist())
    if isinstance(value, datetime):
        return value.replace(tzinfo=None), value.utcoffset()
    if isinstance(value, dict):
        return [(name, bare(inner)) for name, inner in value.items()]
    if isinstance(value, list | tuple):
        return [bare(inner) for inner in value]
    if dataclasses.is_dataclass(value):
        return type(value), [(f.name, bare(getattr(value, f.name))) for f in dataclasses.fields(value)]
    return value


@few
@given(observations)
def test_an_observation_arrives_as_it_was(observation: Observation) -> None:
    message = conversation.ask("mg1", observation)
    name, heard = conversation.asked(message)
    assert name == "mg1"
    assert bare(heard) == bare(observation)
    assert conversation.ask("mg1", heard) == message


@few
@given(decisions)
def test_a_decision_arrives_as_it_was(decision: Decision) -> None:
    message = conversation.answer("mg1", decision)
    heard = conversation.answered(message, "mg1")
    assert bare(heard) == bare(decision)
    assert conversation.answer("mg1", heard) == message


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        (conversation.SentObservation, Observation),
        (conversation.SentDecision, Decision),
        (conversation.SentInterval, Interval),
        (conversation.SentCertificate, Certificate),
        (conversation.SentFairness, Fairness),
        (conversation.SentIteration, Iteration),
        (conversation.SentWord, Word),
    ],
)
def test_no_field_of_the_vocabulary_is_left_out(sent: type[msgspec.Struct], meant: type[Any]) -> None:
    assert list(sent.__struct_fields__) == [field.name for field in dataclasses.fields(meant)]


def empty(**known: Any) -> Observation:
    return Observation(time=START, forecast=Forecast.empty(START, timedelta(minutes=5)), **known)


def test_numbers_of_numpy_are_sent_as_numbers() -> None:
    seen = empty(v_pu={"1": np.float64(1.01)}, positions={"tap": np.int64(-2)}, connected={"m": np.True_})
    _, heard = conversation.asked(conversation.ask("c", seen))
    assert (heard.v_pu, heard.positions, heard.connected) == ({"1": 1.01}, {"tap": -2}, {"m": True})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_not_sent(value: float) -> None:
    with pytest.raises(BadMessage, match=r"v_pu of '17' is -?(nan|inf); leave out what is not known"):
        conversation.ask("c", empty(v_pu={"17": value}))
    said = Decision(time=START, origin=Origin.OPTIMAL, fairness=Fairness(**dict.fromkeys(SHARE, value)))
    with pytest.raises(BadMessage, match="export_mw is"):
        conversation.answer("c", said)


SHARE = [f.name for f in dataclasses.fields(Fairness) if f.default is dataclasses.MISSING]


def test_a_time_without_its_zone_is_not_sent() -> None:
    with pytest.raises(BadMessage, match="has no time zone"):
        conversation.answer("c", Decision(time=START.replace(tzinfo=None), origin=Origin.OPTIMAL))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(more=1), "unknown field `more`"),
        (lambda m: m["observation"].update(more=1), "unknown field `more`"),
        (lambda m: m.update(schema="gridpace.ask.v2"), "Invalid enum value"),
        (lambda m: m["observation"]["v_pu"].update(a="1"), "Expected `float`"),
        (lambda m: m["observation"].pop("e_mwh"), "missing required field `e_mwh`"),
        (lambda m: m["observation"].update(time="2026-06-21T00:00:00"), "has no time zone"),
        (lambda m: m["observation"]["forecast"].update(mean=[[1.0]], std=[[1.0]]), "cannot reshape"),
        (lambda m: m["observation"]["forecast"].update(every_us=10**30), "every_us|Expected|too large"),
        (lambda m: m["observation"]["regions"].update(x={"axes": ["p"], "A": [[0.0]], "b": [1]}), "zero"),
    ],
)
def test_an_ask_that_is_not_as_it_should_be_is_refused(change: Callable[[Any], Any], words: str) -> None:
    message = json.loads(conversation.ask("c", empty()))
    change(message)
    with pytest.raises(BadMessage, match=words):
        conversation.asked(json.dumps(message).encode())


def led(**known: Any) -> bytes:
    """An ask with a leader's word."""
    word = Word(number=7, what="price", values={"p": (0.1,)}, regions={"cut": Region.box(p_mw=(0, 1))})
    said = Decision(time=START, origin=Origin.OPTIMAL, words={"f1": word})
    message = json.loads(conversation.ask("f1", empty(said={"lead": said}, turns_left=3)))
    message["observation"]["said"]["lead"]["words"]["f1"].update(known)
    return json.dumps(message).encode()


@pytest.mark.parametrize(
    ("known", "why"),
    [
        ({"more": 1}, "unknown field `more`"),
        ({"number": -1}, "Expected `int` >= 0"),
        ({"number": 2**53 + 1}, "Expected `int` <= 9007199254740992"),
        ({"number": 1.5}, "Expected `int`"),
        ({"what": "x" * 65}, "length <= 64"),
        ({"values": {"p": [math.nan]}}, "malformed|invalid"),
        ({"values": {"p": [math.inf]}}, "malformed|invalid"),
        ({"values": {"p": [None]}}, "Expected `float`"),
        ({"values": {"x" * 65: [1.0]}}, "length <= 64"),
        ({"values": {str(i): [] for i in range(1025)}}, "length <= 1024"),
        ({"values": {"p": [0.0] * 100_001}}, "length <= 100000"),
        ({"regions": {"c": {"axes": ["p"], "A": [[0.0]], "b": [1.0]}}}, "zero"),
        ({"regions": {str(i): {"axes": ["p"], "A": [], "b": []} for i in range(1025)}}, "length <= 1024"),
    ],
)
def test_a_word_that_is_not_as_it_should_be_is_refused(known: dict[str, Any], why: str) -> None:
    assert conversation.asked(led())[1].said["lead"].words["f1"].number == 7
    with pytest.raises(BadMessage, match=why):
        conversation.asked(led(**known))


@pytest.mark.parametrize(
    ("known", "why"),
    [
        ({"what": "x" * 65}, "cannot be sent: Expected `str` of length <= 64"),
        ({"number": 2**53 + 1}, "cannot be sent: Expected `int` <= 9007199254740992"),
        ({"values": {"p": (0.0,) * 100_001}}, "cannot be sent: Expected `array` of length <= 100000"),
        ({"regions": {str(i): Region.box(p=(0, 1)) for i in range(1025)}}, "length <= 1024"),
    ],
)
def test_a_word_that_the_other_end_would_refuse_is_not_sent(known: dict[str, Any], why: str) -> None:
    word = Word(**({"number": 7, "what": "price"} | known))
    with pytest.raises(BadMessage, match=why):
        conversation.answer("f1", Decision(time=START, origin=Origin.OPTIMAL, words={"lead": word}))


def test_who_is_in_no_conversation_is_asked_as_before() -> None:
    """Messages of controllers that nobody leads have not changed."""
    said = Decision(time=START, origin=Origin.OPTIMAL)
    assert not {"turn", "turns_left"} & json.loads(conversation.ask("c", empty()))["observation"].keys()
    assert "words" not in json.loads(conversation.answer("c", said))["decision"]


def test_an_answer_is_a_decision_or_a_complaint() -> None:
    for message in (
        b'{"controller":"c"}',
        b'{"schema":"gridpace.answer.v1","controller":"c"}',
        b"[",
        b"\xff",
    ):
        with pytest.raises(BadMessage):
            conversation.answered(message, "c")
    said = conversation.answer("other", Decision(time=START, origin=Origin.OPTIMAL))
    with pytest.raises(BadMessage, match="an answer of 'other', asked was 'c'"):
        conversation.answered(said, "c")


class Moody(ControlError):
    outcome = "moody"


@pytest.mark.parametrize("error", [ControlError("a"), Infeasible("b"), SolverFailed("c"), Moody("not today")])
def test_what_a_controller_raises_is_raised_here_too(error: ControlError) -> None:
    with pytest.raises(ControlError) as caught:
        conversation.answered(conversation.answer("c", error), "c")
    assert type(caught.value).__name__ == type(error).__name__
    assert (caught.value.outcome, str(caught.value)) == (error.outcome, str(error))


@pytest.mark.parametrize(
    ("error", "words"), [(KeyError("x"), "^'x'$"), (SystemExit(3), "^3$"), (ValueError("a\ud800"), r"^a\?$")]
)
def test_a_mistake_of_a_controller_keeps_its_name_and_words(error: BaseException, words: str) -> None:
    with pytest.raises(Exception, match=words) as caught:
        conversation.answered(conversation.answer("c", error), "c")
    assert not isinstance(caught.value, ControlError)
    assert type(caught.value).__name__ == type(error).__name__


# Parcels


@few
@given(st.integers(1, 3 * PART_BYTES + 7), st.randoms())
def test_a_message_in_parts_comes_together_in_any_order(size: int, random: Any) -> None:
    message = random.randbytes(size)
    payloads = pack(message, token="t", number=5, within_ms=100)
    assert all(len(payload) <= MAX_PAYLOAD_BYTES for payload in payloads)
    assert len(payloads) == math.ceil(size / PART_BYTES)
    random.shuffle(payloads)
    parcels = Parcels()
    again = [payloads[0], *payloads] if len(payloads) > 1 else payloads  # QoS 1: at least once
    found = [whole for payload in again if (whole := parcels.add(*unpack(payload))) is not None]
    assert found == [message]


def test_a_message_is_not_too_long_and_not_empty() -> None:
    assert len(pack(bytes(MAX_BYTES), token="t", number=1, within_ms=1)) == parcel.MAX_PARTS
    for message in (bytes(MAX_BYTES + 1), b""):
        with pytest.raises(BadMessage, match="at most 128 parts"):
            pack(message, token="t", number=1, within_ms=1)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{}\n",
        b"x" * 400 + b"\n",
        b'{"token":"t","number":1,"within_ms":1,"part":0,"parts":1,"size":2}\nx',
        b'{"token":"t","number":1,"within_ms":1,"part":0,"parts":2,"size":1}\nx',
        b'{"token":"t","number":1,"within_ms":1,"part":1,"parts":1,"size":1}\nx',
        b'{"token":"t","number":1,"within_ms":0,"part":0,"parts":1,"size":1}\nx',
        b'{"token":"t","number":-1,"within_ms":1,"part":0,"parts":1,"size":1}\nx',
        b'{"token":"t","number":1,"within_ms":1,"part":0,"parts":1,"size":1,"more":1}\nx',
        b'{"token":"t","number":1,"within_ms":1,"part":0,"parts":999999,"size":64699999999}\nx',
    ],
)
def test_a_part_that_is_none_is_refused(payload: bytes) -> None:
    with pytest.raises(BadMessage):
        unpack(payload)


def test_of_incomplete_messages_only_the_last_few_are_kept() -> None:
    parcels, size = Parcels(), 2 * PART_BYTES
    halves = [[*map(unpack, pack(bytes(size), token="t", number=n, within_ms=1))] for n in range(9)]
    for half, _ in halves:
        assert parcels.add(*half) is None
    whole = [parcels.add(*other) is not None for _, other in reversed(halves)]
    assert whole == [True] * parcel.OPEN + [False] * (9 - parcel.OPEN)


# Asking and answering, on a bus in memory


class Pair:
    """Both ends of a conversation with one process, `p`."""

    def __init__(self, hub: MemoryHub, life: int = 1, *, patient: bool = True) -> None:
        self.ours, self.theirs, self.time = MemoryBus(hub), MemoryBus(hub), 0.0
        self.asking = Asking(self.ours, run="r", token="t", processes=["p"], patient=patient)
        self.asking.starting("p", 1)
        self.answering = Answering(
            self.theirs, run="r", process="p", token="t", life=life, clock=lambda: self.time
        )

    async def __aenter__(self) -> Pair:
        await self.ours.__aenter__()
        await self.theirs.__aenter__()
        self._listeners = [asyncio.create_task(end.listen()) for end in (self.asking, self.answering)]
        self.answering.online()
        return self

    async def __aexit__(self, *of: object) -> None:
        for listener in self._listeners:
            listener.cancel()
        await asyncio.gather(*self._listeners, return_exceptions=True)
        await self.theirs.__aexit__(None, None, None)
        await self.ours.__aexit__(None, None, None)

    def ask(self, message: bytes, within_s: float = 5.0) -> asyncio.Task[bytes]:
        return asyncio.create_task(self.asking.ask("p", message, within_s))


async def settled(until: Callable[[], object]) -> None:
    """Let the event loop turn until something is so."""
    for _ in range(10_000):
        if until():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never was")


@pytest.mark.parametrize("size", [1, 3 * PART_BYTES])
async def test_an_ask_of_any_length_gets_its_answer(size: int) -> None:
    async with Pair(MemoryHub()) as pair:
        for n in range(2):
            answer = pair.ask(b"q" * size)
            request = await pair.answering.next()
            assert request.message == b"q" * size
            pair.answering.answer(request, b"%d" % n * size)
            assert await answer == b"%d" % n * size
        assert pair.asking.counts == {"asks": 2}
        assert not pair.answering.counts


async def test_an_answer_that_comes_late_twice_or_from_elsewhere_is_ignored_and_counted() -> None:
    async with Pair(MemoryHub()) as pair:
        with pytest.raises(Late, match=r"process p has not answered within 0\.001 s"):
            await pair.ask(b"first", within_s=0.001)
        late = await pair.answering.next()
        answer = pair.ask(b"second")
        request = await pair.answering.next()
        pair.answering.answer(late, b"for the first")
        topic = process_topic("r", "p", "answer/0")
        (stranger,) = pack(b"x", token="u", number=request.header.number, within_ms=1)
        (unasked,) = pack(b"x", token="t", number=77, within_ms=1)
        for payload in (stranger, unasked, b"nonsense"):
            pair.theirs.publish(topic, payload)
        pair.theirs.publish(
            process_topic("r", "q", "answer/0"), pack(b"x", token="t", number=2, within_ms=1)[0]
        )
        pair.answering.answer(request, b"for the second")
        assert await answer == b"for the second"
        pair.answering.answer(request, b"for the second")
        await settled(lambda: pair.asking.counts["answers-doubled"])
        assert pair.asking.counts == {
            "asks": 2,
            "answers-late": 1,
            "answers-foreign": 3,
            "answers-malformed": 1,
            "answers-doubled": 1,
        }


async def test_a_process_leaves_out_what_nobody_waits_for_and_what_is_not_for_it() -> None:
    async with Pair(MemoryHub()) as pair:
        with pytest.raises(Late):
            await pair.ask(b"first", within_s=0.001)
        pair.time = 1.0
        answer = pair.ask(b"second")
        topic = process_topic("r", "p", "ask/0")
        for number, token in ((1, "t"), (9, "u")):
            pair.ours.publish(topic, pack(b"x", token=token, number=number, within_ms=9)[0])
        pair.ours.publish(topic, b"nonsense")
        request = await pair.answering.next()
        assert request.message == b"second"
        pair.answering.answer(request, b"yes")
        assert await answer == b"yes"
        await settled(lambda: pair.answering.counts["asks-malformed"])
        assert pair.answering.counts == {
            "asks-stale": 1,
            "asks-doubled": 1,
            "asks-foreign": 1,
            "asks-malformed": 1,
        }


async def test_a_process_that_is_lost_is_not_waited_for_until_it_is_back() -> None:
    async with Pair(MemoryHub()) as pair:
        answer = pair.ask(b"q")
        await pair.answering.next()
        pair.asking.lost("p", "it has ended", for_good=False)
        with pytest.raises(Lost, match="it has ended"):
            await answer
        pair.asking.starting("p", 2)
        with pytest.raises(Late, match="it is being started"):
            await pair.ask(b"q", within_s=0.001)
        pair.answering.online()  # of the first life
        again = Answering(pair.theirs, run="r", process="p", token="t", life=2)
        waiting = pair.ask(b"q")
        await settled(lambda: pair.asking.counts["asks"] == 3)
        assert not pair.answering._asked.qsize()
        again.online()
        pair.answering.answer(await pair.answering.next(), b"here")
        assert await waiting == b"here"
        pair.asking.lost("p", "it is not started again", for_good=True)
        with pytest.raises(Lost, match="not started again"):
            await pair.ask(b"q")


LONG_S = 1e6
"""Whoever waits as long does not end."""


async def test_the_impatient_do_not_wait_for_a_process_that_is_being_started() -> None:
    async with Pair(MemoryHub(), patient=False) as pair:
        await pair.asking.online("p")
        answer = pair.ask(b"q", LONG_S)
        await pair.answering.next()
        pair.asking.lost("p", "it has ended", for_good=False)
        with pytest.raises(Lost, match="it has ended"):
            await answer
        for starting in (False, True):
            if starting:
                pair.asking.starting("p", 2)
            for _ in range(2):
                with pytest.raises(Late, match="process p is being started"):
                    await pair.ask(b"q", LONG_S)
        assert pair.asking.counts == {"asks": 1}
        again = Answering(pair.theirs, run="r", process="p", token="t", life=2)
        again.online()
        await pair.asking.online("p")
        answer = pair.ask(b"q", LONG_S)
        pair.answering.answer(await pair.answering.next(), b"here")
        assert await answer == b"here"


async def test_the_impatient_do_not_wait_again_for_a_process_that_is_silent() -> None:
    async with Pair(MemoryHub(), patient=False) as pair:
        await pair.asking.online("p")
        with pytest.raises(Late, match=r"has not answered within 0\.001 s"):
            await pair.ask(b"first", within_s=0.001)
        for _ in range(2):
            with pytest.raises(Late, match="not waited for: it was late before"):
                await pair.ask(b"next", LONG_S)
        # It is asked all the same. What it answers comes late, but shows that it is back.
        requests = [await pair.answering.next() for _ in range(3)]
        assert [request.message for request in requests] == [b"first", b"next", b"next"]
        pair.answering.answer(requests[2], b"late")
        await settled(lambda: pair.asking.counts["answers-late"])
        answer = pair.ask(b"last", LONG_S)
        pair.answering.answer(await pair.answering.next(), b"in time")
        assert await answer == b"in time"
        assert pair.asking.counts == {"asks": 4, "answers-late": 1}


async def test_a_silent_process_that_is_started_again_is_waited_for() -> None:
    async with Pair(MemoryHub(), patient=False) as pair:
        await pair.asking.online("p")
        with pytest.raises(Late):
            await pair.ask(b"q", within_s=0.001)
        pair.asking.lost("p", "it has ended", for_good=False)
        pair.asking.starting("p", 2)
        Answering(pair.theirs, run="r", process="p", token="t", life=2).online()
        await pair.asking.online("p")
        answer = pair.ask(b"q", LONG_S)
        await pair.answering.next()
        pair.answering.answer(await pair.answering.next(), b"here")
        assert await answer == b"here"


@pytest.mark.parametrize("patient", [False, True])
async def test_without_time_nobody_is_asked(patient: bool) -> None:
    async with Pair(MemoryHub(), patient=patient) as pair:
        await pair.asking.online("p")
        with pytest.raises(Late, match="those before it took the time that this step has"):
            await pair.ask(b"q", within_s=-0.1)
        assert not pair.asking.counts


async def test_without_a_connection_the_answer_is_late_and_says_why() -> None:
    hub = MemoryHub()
    async with Pair(hub) as pair:
        await pair.asking.online("p")
        hub.down()
        with pytest.raises(Late, match="there is no connection to the broker"):
            await pair.ask(b"q", within_s=0.001)


async def test_a_process_that_connects_again_later_hears_what_it_was_asked_meanwhile() -> None:
    message = b"q" * (2 * PART_BYTES)
    async with Pair(MemoryHub()) as pair:
        await settled(lambda: pair.asking.there("p"))
        await pair.theirs.__aexit__(None, None, None)
        answer = pair.ask(message)
        await settled(lambda: pair.asking.counts["asks"])
        await pair.theirs.__aenter__()
        pair.answering.online()
        request = await pair.answering.next()
        assert request.message == message
        pair.answering.online()  # it says so again: what it has heard is left out
        await settled(lambda: pair.answering.counts["asks-doubled"] == 2)
        pair.answering.answer(request, b"a")
        assert await answer == b"a"


async def test_a_message_that_is_too_long_is_not_sent() -> None:
    async with Pair(MemoryHub()) as pair:
        with pytest.raises(BadMessage, match="at most 128 parts"):
            await pair.ask(bytes(MAX_BYTES + 1))


async def test_only_so_many_asks_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "REMEMBERED", 1)
    async with Pair(MemoryHub()) as pair:
        for _ in range(2):
            with pytest.raises(Late):
                await pair.ask(b"q", within_s=0.001)
        for number in (1, 2):
            (answer,) = pack(b"x", token="t", number=number, within_ms=1)
            pair.asking.take(Message(process_topic("r", "p", "answer/0"), answer))
        assert pair.asking.counts == {"asks": 2, "answers-foreign": 1, "answers-late": 1}
