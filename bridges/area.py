"""Area: what controllers say about an area, e.g. a microgrid, for everybody who wants to follow.

| topic                   | payload       | retained | from       | to        |
|-------------------------|---------------|----------|------------|-----------|
| `{run}/area/{area}/pic` | `AreaMessage` | yes      | controller | everybody |
| `{run}/area/{area}/aic` | `AreaMessage` | yes      | controller | everybody |

PIC is the interchange capability that an area predicts, AIC what the network's operator leaves of it. A
payload without a byte says that what was said last is withdrawn.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Literal

import msgspec

from bridges import wire
from bridges.instruction import to_message
from bridges.wire import BadMessage, Checked, HalfSpaces, LaterSpan
from controllers.contract import Instruction, Kind
from controllers.forecast import Forecast

AREA_SCHEMA: Literal["gridpace.area.v1"] = "gridpace.area.v1"
AREA_KINDS = (Kind.PIC, Kind.AIC)
"""Kinds of regions that are said about areas."""


class Planned(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an area means to exchange with the network at one instant; injected into it is positive."""

    time: datetime
    p_mw: float
    std_mw: float
    """its spread"""


class AreaMessage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What one controller says about one area. It replaces all that it said before, `later` too."""

    schema: Literal["gridpace.area.v1"]
    run: str
    area: str
    kind: Literal["pic", "aic"]
    controller: str
    sign: Literal["injection_positive"]
    epoch: int
    seq: int
    """grows with every message of an epoch about the area; the number of the step from which it holds"""
    issued: datetime
    valid_from: datetime
    valid_until: datetime
    ttl_ms: int
    region: HalfSpaces
    """of the exchange with the network, until `later` begins"""
    origin: str | None = None
    """which rule spoke"""
    why: str | None = None
    """what limits the region, for people"""
    checked: Checked | None = None
    """how the AC power flow was asked before the region was released; null: it was not"""
    later: tuple[LaterSpan, ...] = ()
    """what holds afterwards, without gaps, until `valid_until`"""
    plan: tuple[Planned, ...] = ()
    """what the exchange is meant to be, where that is said"""

    def __post_init__(self) -> None:
        wire.check_name("run", self.run)
        wire.check_name("area", self.area)
        wire.check_name("controller", self.controller)
        if not self.valid_from < self.valid_until or not self.ttl_ms > 0:
            raise BadMessage(f"valid from {self.valid_from} until {self.valid_until}, ttl_ms {self.ttl_ms}")


def area_topic(run: str, area: str, kind: Kind) -> str:
    """The topic of what is said about an area.

    Raises:
        BadMessage: a name that cannot be in a topic, or a kind that is not said about areas.
    """
    if kind not in AREA_KINDS:
        raise BadMessage(f"kind {kind!r} is not said about areas, only {', '.join(AREA_KINDS)}")
    return f"{wire.ROOT}/{wire.check_name('run', run)}/area/{wire.check_name('area', area)}/{kind}"


def to_area_message(
    said: Instruction,
    *,
    kind: Kind,
    controller: str,
    plan: Forecast | None,
    run: str,
    ttl_s: float,
    wall: Callable[[datetime], datetime] | None = None,
) -> AreaMessage:
    """What is sent about an area.

    Args:
        said: like an instruction whose device is the area; its fallback is not sent.
        plan: over the area's name among others, or `None`; as far as the schedule reaches.
        ttl_s, wall: see `bridges.instruction.to_message`.

    Raises:
        BadMessage: as `to_message`, or no region.
    """
    like = to_message(said, run=run, area="any", ttl_s=ttl_s, wall=wall)
    if like.region is None or any(span.region is None for span in like.later):
        raise BadMessage(f"area {said.device}: nothing is said about it")
    return AreaMessage(
        schema=AREA_SCHEMA,
        run=run,
        area=said.device,
        kind=kind.value,  # type: ignore[arg-type]
        controller=controller,
        sign=like.sign,
        epoch=like.epoch,
        seq=like.seq,
        issued=like.issued,
        valid_from=like.valid_from,
        valid_until=like.valid_until,
        ttl_ms=like.ttl_ms,
        region=like.region,
        origin=like.origin,
        why=like.why,
        checked=like.checked,
        later=like.later,
        plan=_planned(plan, said, wall or (lambda time: time)),
    )


def _planned(
    plan: Forecast | None, said: Instruction, wall: Callable[[datetime], datetime]
) -> tuple[Planned, ...]:
    if plan is None or said.device not in plan.names:
        return ()
    column = plan.names.index(said.device)
    return tuple(
        Planned(wall(time), p_mw, std_mw)
        for time, p_mw, std_mw in zip(
            plan.times, plan.mean[:, column].tolist(), plan.std[:, column].tolist(), strict=True
        )
        if time < said.valid_until
    )
