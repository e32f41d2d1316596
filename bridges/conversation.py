"""Conversation: what a controller in a process of its own is asked, and what it answers, as JSON.

An `Ask` carries the whole observation, an `Answer` the decision or why there is none. Both come back as they
were, to the last bit: numbers are written as the shortest text that reads back as the same one, rows of
regions are not scaled again, instants keep the offset of their zone, names keep their order. A field that
is not known is refused, and so is a number that is not finite; what is missing stays missing. How long a
message may be is checked before it is read; see `bridges.parcel`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import cache
from math import isfinite
from typing import Annotated, Any, Literal, NoReturn, TypeVar

import msgspec
import numpy as np

from bridges.instruction import to_half_spaces, to_region
from bridges.wire import BadMessage, HalfSpaces, Target
from controllers.contract import (
    Certificate,
    ControlError,
    Decision,
    Infeasible,
    Interval,
    Iteration,
    Kind,
    Late,
    Observation,
    Origin,
    Setpoint,
    SolverFailed,
    Word,
)
from controllers.fairness import Fairness
from controllers.forecast import Forecast
from controllers.region import Region

S = TypeVar("S", bound=msgspec.Struct)
_MICROSECOND = timedelta(microseconds=1)


class SentForecast(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A forecast or a plan."""

    issued_at: datetime
    every_us: int
    """length of an interval in microseconds"""
    names: tuple[str, ...]
    mean: tuple[tuple[float, ...], ...]
    """(intervals, names)"""
    std: tuple[tuple[float, ...], ...]


class SentCertificate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """See `controllers.contract.Certificate`."""

    binding: str | None
    worst_v_pu: float | None
    worst_loading_percent: float | None
    power_flows: int


class SentInterval(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """See `controllers.contract.Interval`."""

    start: datetime
    end: datetime
    regions: dict[str, HalfSpaces]
    certificates: dict[str, SentCertificate]


class SentFairness(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """See `controllers.fairness.Fairness`."""

    export_mw: float
    import_mw: float
    area_mva2: float
    jain_export: float
    jain_import: float
    least_export: float
    least_import: float
    price: float | None
    ledger_jain: float | None


MAX_WORDS = 1024
"""Most whom one decision addresses."""
MAX_NAMED = 1024
"""Most values, and most regions, of a word that have names."""
MAX_VALUES = 100_000
"""Most values of one name in a word."""
Text = Annotated[str, msgspec.Meta(max_length=64)]
_LARGEST_NUMBER = 2**53  # any JSON reader keeps integers up to this one


class SentWord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """See `controllers.contract.Word`."""

    number: Annotated[int, msgspec.Meta(ge=0, le=_LARGEST_NUMBER)]
    what: Text
    values: Annotated[
        dict[Text, Annotated[tuple[float, ...], msgspec.Meta(max_length=MAX_VALUES)]],
        msgspec.Meta(max_length=MAX_NAMED),
    ]
    regions: Annotated[dict[Text, HalfSpaces], msgspec.Meta(max_length=MAX_NAMED)]


class SentIteration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """See `controllers.contract.Iteration`."""

    number: Annotated[int, msgspec.Meta(ge=0, le=_LARGEST_NUMBER)]
    phase: Text
    lower: float | None
    upper: float | None
    cuts: Annotated[int, msgspec.Meta(ge=0, le=_LARGEST_NUMBER)]
    ended: Annotated[str, msgspec.Meta(max_length=1000)] | None


MAX_ITERATIONS = 10_000
"""Most iterations of one decision."""


class SentDecision(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """See `controllers.contract.Decision`."""

    time: datetime
    origin: Origin
    setpoints: dict[str, Target]
    regions: dict[str, HalfSpaces]
    kind: Kind
    certificates: dict[str, SentCertificate]
    until: datetime | None
    later: tuple[SentInterval, ...]
    positions: dict[str, int]
    plan: SentForecast | None
    fairness: SentFairness | None
    mistake: str | None = None
    words: Annotated[dict[str, SentWord], msgspec.Meta(max_length=MAX_WORDS)] = {}
    iterations: Annotated[tuple[SentIteration, ...], msgspec.Meta(max_length=MAX_ITERATIONS)] = ()


class SentObservation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """See `controllers.contract.Observation`."""

    time: datetime
    forecast: SentForecast
    v_pu: dict[str, float]
    p_mw: dict[str, float]
    q_mvar: dict[str, float]
    e_mwh: dict[str, float]
    regions: dict[str, HalfSpaces]
    positions: dict[str, int]
    said: dict[str, SentDecision]
    connected: dict[str, bool]
    silent_since: dict[str, datetime]
    turn: int = 0
    turns_left: int = 0


class Ask(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a controller is asked."""

    schema: Literal["gridpace.ask.v1"] = "gridpace.ask.v1"
    controller: str
    observation: SentObservation


class Complaint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a controller raised instead of deciding."""

    what: str
    """name of the exception's class"""
    outcome: str | None
    """name under which the run counts a `ControlError`; null: it was none, so a mistake"""
    words: str


class Answer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What it says: a decision, or what it raised."""

    schema: Literal["gridpace.answer.v1"] = "gridpace.answer.v1"
    controller: str
    decision: SentDecision | None = None
    complaint: Complaint | None = None

    def __post_init__(self) -> None:
        if (self.decision is None) == (self.complaint is None):
            raise BadMessage(f"the answer of {self.controller!r} needs a decision or a complaint")


# Asks and answers


def ask(controller: str, observation: Observation) -> bytes:
    """What is sent to the process of a controller.

    Raises:
        BadMessage: a number that is not finite, a time without its zone.
    """
    return _encode(Ask(controller=controller, observation=_observation(observation)))


def asked(payload: bytes) -> tuple[str, Observation]:
    """Who is asked, and what it may know.

    Raises:
        BadMessage: no such message.
    """
    message = _decode(payload, Ask)
    return message.controller, _built(_to_observation, message.observation)


def answer(controller: str, said: Decision | BaseException) -> bytes:
    """What is sent back: a decision, or what was raised instead.

    Raises:
        BadMessage: a decision with a number that is not finite, or a time without its zone.
    """
    if isinstance(said, BaseException):
        outcome = said.outcome if isinstance(said, ControlError) else None
        complaint = Complaint(type(said).__name__, outcome, _words(str(said)))
        return _encode(Answer(controller=controller, complaint=complaint))
    return _encode(Answer(controller=controller, decision=_decision(said)))


def answered(payload: bytes, controller: str) -> Decision:
    """The decision in an answer.

    Raises:
        BadMessage: no such message, or of another controller.
        ControlError, Exception: what the controller has raised, under the same name and in the same words.
    """
    message = _decode(payload, Answer)
    if message.complaint is not None:
        _raise(message.complaint)
    if message.controller != controller:
        raise BadMessage(f"an answer of {message.controller!r}, asked was {controller!r}")
    assert message.decision is not None  # one of the two is there
    decision: Decision = _built(_to_decision, message.decision)
    return decision


_KNOWN: Mapping[str, type[ControlError]] = {
    c.outcome: c for c in (ControlError, Infeasible, SolverFailed, Late)
}


def _raise(complaint: Complaint) -> NoReturn:
    if complaint.outcome is None:
        raise type(complaint.what, (Exception,), {})(complaint.words)
    known = _KNOWN.get(complaint.outcome)
    raise (known or type(complaint.what, (ControlError,), {"outcome": complaint.outcome}))(complaint.words)


# What is sent


def _observation(given: Observation) -> SentObservation:
    return SentObservation(
        time=_instant("time", given.time),
        forecast=_forecast(given.forecast),
        v_pu=_numbers("v_pu", given.v_pu),
        p_mw=_numbers("p_mw", given.p_mw),
        q_mvar=_numbers("q_mvar", given.q_mvar),
        e_mwh=_numbers("e_mwh", given.e_mwh),
        regions=_regions(given.regions),
        positions=_positions(given.positions),
        said={name: _decision(said) for name, said in given.said.items()},
        connected={name: bool(is_so) for name, is_so in given.connected.items()},
        silent_since={name: _instant("silent_since", at) for name, at in given.silent_since.items()},
        turn=int(given.turn),
        turns_left=int(given.turns_left),
    )


def _decision(given: Decision) -> SentDecision:
    return SentDecision(
        time=_instant("time", given.time),
        origin=given.origin,
        setpoints={
            name: Target(_number("p_mw", s.p_mw), _number("q_mvar", s.q_mvar))
            for name, s in given.setpoints.items()
        },
        regions=_regions(given.regions),
        kind=given.kind,
        certificates=_certificates(given.certificates),
        until=None if given.until is None else _instant("until", given.until),
        later=tuple(
            SentInterval(
                _instant("start", interval.start),
                _instant("end", interval.end),
                _regions(interval.regions),
                _certificates(interval.certificates),
            )
            for interval in given.later
        ),
        positions=_positions(given.positions),
        plan=None if given.plan is None else _forecast(given.plan),
        fairness=None if given.fairness is None else _fairness(given.fairness),
        mistake=None if given.mistake is None else _words(given.mistake),
        words={name: _word(word) for name, word in given.words.items()},
        iterations=tuple(map(_iteration, given.iterations)),
    )


def _iteration(given: Iteration) -> SentIteration:
    return SentIteration(
        int(given.number),
        given.phase,
        _number("lower", given.lower),
        _number("upper", given.upper),
        int(given.cuts),
        given.ended,
    )


def _word(given: Word) -> SentWord:
    """As it is sent; what the other end would refuse is refused here, where it can still be told why."""
    sent = SentWord(
        int(given.number),
        given.what,
        {name: tuple(_number(name, x) for x in values) for name, values in given.values.items()},
        _regions(given.regions),
    )
    try:
        return msgspec.convert(msgspec.to_builtins(sent), SentWord)
    except msgspec.ValidationError as error:
        raise BadMessage(f"word {given.what[:64]!r} cannot be sent: {error}") from None


def _forecast(given: Forecast) -> SentForecast:
    return SentForecast(
        _instant("issued_at", given.issued_at),
        given.every // _MICROSECOND,
        tuple(given.names),
        tuple(map(tuple, given.mean.tolist())),
        tuple(map(tuple, given.std.tolist())),
    )


def _regions(given: Mapping[str, Region]) -> dict[str, HalfSpaces]:
    return {name: to_half_spaces(region) for name, region in given.items()}


def _certificates(given: Mapping[str, Certificate]) -> dict[str, SentCertificate]:
    return {
        name: SentCertificate(
            certificate.binding,
            _number("worst_v_pu", certificate.worst_v_pu),
            _number("worst_loading_percent", certificate.worst_loading_percent),
            int(certificate.power_flows),
        )
        for name, certificate in given.items()
    }


def _fairness(given: Fairness) -> SentFairness:
    return SentFairness(*(_number(name, getattr(given, name)) for name in SentFairness.__struct_fields__))


def _positions(given: Mapping[str, int]) -> dict[str, int]:
    return {name: int(position) for name, position in given.items()}


def _numbers(what: str, given: Mapping[str, float]) -> dict[str, float]:
    return {name: _number(f"{what} of {name!r}", value) for name, value in given.items()}


def _number(what: str, value: Any) -> Any:
    """A plain float; numpy's are no JSON."""
    if value is None:
        return None
    if not isfinite(value):
        raise BadMessage(f"{what} is {value}; leave out what is not known")
    return float(value)


def _words(text: str) -> str:
    """As much of somebody's text as is sent."""
    return text[:2000].encode(errors="replace").decode()


def _instant(what: str, time: datetime) -> datetime:
    if time.utcoffset() is None:
        raise BadMessage(f"{what} {time} has no time zone; make it UTC")
    return time


def _encode(message: msgspec.Struct) -> bytes:
    try:
        return msgspec.json.encode(message)
    except (msgspec.MsgspecError, TypeError, UnicodeEncodeError, OverflowError) as error:
        raise BadMessage(f"{type(message).__name__} cannot be sent: {error}") from None


# What arrives


def _to_observation(sent: SentObservation) -> Observation:
    return Observation(
        time=_instant("time", sent.time),
        forecast=_to_forecast(sent.forecast),
        v_pu=sent.v_pu,
        p_mw=sent.p_mw,
        q_mvar=sent.q_mvar,
        e_mwh=sent.e_mwh,
        regions=_to_regions(sent.regions),
        positions=sent.positions,
        said={name: _to_decision(said) for name, said in sent.said.items()},
        connected=sent.connected,
        silent_since={name: _instant("silent_since", at) for name, at in sent.silent_since.items()},
        turn=sent.turn,
        turns_left=sent.turns_left,
    )


def _to_decision(sent: SentDecision) -> Decision:
    return Decision(
        time=_instant("time", sent.time),
        origin=sent.origin,
        setpoints={n: Setpoint(p_mw=s.p_mw, q_mvar=s.q_mvar) for n, s in sent.setpoints.items()},
        regions=_to_regions(sent.regions),
        kind=sent.kind,
        certificates=_to_certificates(sent.certificates),
        until=None if sent.until is None else _instant("until", sent.until),
        later=tuple(
            Interval(
                start=_instant("start", interval.start),
                end=_instant("end", interval.end),
                regions=_to_regions(interval.regions),
                certificates=_to_certificates(interval.certificates),
            )
            for interval in sent.later
        ),
        positions=sent.positions,
        plan=None if sent.plan is None else _to_forecast(sent.plan),
        fairness=None if sent.fairness is None else Fairness(**msgspec.structs.asdict(sent.fairness)),
        mistake=sent.mistake,
        words={
            name: Word(number=w.number, what=w.what, values=w.values, regions=_to_regions(w.regions))
            for name, w in sent.words.items()
        },
        iterations=tuple(Iteration(**msgspec.structs.asdict(one)) for one in sent.iterations),
    )


def _to_forecast(sent: SentForecast) -> Forecast:
    return Forecast(
        sent.issued_at,
        sent.every_us * _MICROSECOND,
        sent.names,
        np.array(sent.mean, dtype=float).reshape(len(sent.mean), len(sent.names)),
        np.array(sent.std, dtype=float).reshape(len(sent.std), len(sent.names)),
    )


def _to_regions(sent: Mapping[str, HalfSpaces]) -> dict[str, Region]:
    return {name: to_region(half_spaces) for name, half_spaces in sent.items()}


def _to_certificates(sent: Mapping[str, SentCertificate]) -> dict[str, Certificate]:
    return {name: Certificate(**msgspec.structs.asdict(one)) for name, one in sent.items()}


def _built(build: Any, sent: msgspec.Struct) -> Any:
    """What the vocabulary makes of a message; what it refuses is no message."""
    try:
        return build(sent)
    except BadMessage:
        raise
    except (ValueError, OverflowError, ControlError) as error:
        raise BadMessage(str(error)) from None


def _decode(payload: bytes, kind: type[S]) -> S:
    decoder: msgspec.json.Decoder[S] = _decoder(kind)
    try:
        return decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadMessage(f"not an {kind.__name__}: {error}") from None


@cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)
