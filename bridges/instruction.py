"""Instructions and regions as messages, and back. The limits survive to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from math import ceil, copysign, inf

import numpy as np

from bridges.wire import SCHEMA, BadMessage, Checked, HalfSpaces, LaterSpan, SetpointMessage, Target, utc
from controllers.contract import Certificate, ControlError, Instruction, Origin, Setpoint, Span
from controllers.devices import AXES
from controllers.region import Region


def to_message(
    instruction: Instruction,
    *,
    run: str,
    area: str,
    ttl_s: float,
    wall: Callable[[datetime], datetime] | None = None,
) -> SetpointMessage:
    """What is sent to the device of an instruction.

    Args:
        ttl_s: seconds from now, for devices whose clocks are not synchronised.
        wall: turns the time of the simulation into that of the devices; by default they are the same.

    Raises:
        BadMessage: a name that cannot be in a topic, a validity that ends before it begins, a schedule
            with gaps or of too many spans.
    """

    def stamp(time: datetime) -> datetime:
        return utc(f"instruction for {instruction.device}:", time if wall is None else wall(time))

    if not 0 < ttl_s < inf:
        raise BadMessage(f"instruction for {instruction.device}: ttl_s {ttl_s} must be positive and finite")
    return SetpointMessage(
        schema=SCHEMA,
        run=run,
        area=area,
        der=instruction.device,
        sign="injection_positive",
        epoch=instruction.epoch,
        seq=instruction.seq,
        issued=stamp(instruction.issued_at),
        valid_from=stamp(instruction.valid_from),
        valid_until=stamp(instruction.valid_until),
        ttl_ms=ceil(ttl_s * 1000),
        region=None if instruction.region is None else to_half_spaces(instruction.region),
        setpoint=_target(instruction.setpoint),
        fallback=to_half_spaces(instruction.fallback),
        origin=None if instruction.origin is None else str(instruction.origin),
        why=_why(instruction.certificate),
        checked=_checked(instruction.certificate),
        later=tuple(
            LaterSpan(
                stamp(span.start),
                stamp(span.end),
                None if span.region is None else to_half_spaces(span.region),
                _target(span.setpoint),
                _why(span.certificate),
                _checked(span.certificate),
            )
            for span in instruction.later
        ),
    )


def to_instruction(message: SetpointMessage) -> Instruction:
    """What a device was told.

    Raises:
        BadMessage: a region that no point can satisfy.
    """
    return Instruction(
        device=message.der,
        epoch=message.epoch,
        seq=message.seq,
        issued_at=message.issued,
        valid_from=message.valid_from,
        valid_until=message.valid_until,
        region=None if message.region is None else to_region(message.region),
        setpoint=_setpoint(message.setpoint),
        fallback=to_region(message.fallback),
        origin=Origin(message.origin) if message.origin in set(Origin) else None,
        certificate=_certificate(message.why, message.checked),
        later=tuple(
            Span(
                span.start,
                span.end,
                None if span.region is None else to_region(span.region),
                _setpoint(span.setpoint),
                _certificate(span.why, span.checked),
            )
            for span in message.later
        ),
    )


def shortened(instruction: Instruction, later: int) -> Instruction:
    """The same instruction with no more than its first `later` later spans, and valid as long as these."""
    if len(instruction.later) <= later:
        return instruction
    return replace(instruction, later=instruction.later[:later], valid_until=instruction.spans[later].end)


def terse(instruction: Instruction) -> Instruction:
    """The same instruction without the certificates of its later spans, which bind nobody."""
    if all(span.certificate is None for span in instruction.later):
        return instruction
    return replace(instruction, later=tuple(replace(span, certificate=None) for span in instruction.later))


def _target(setpoint: Setpoint | None) -> Target | None:
    return None if setpoint is None else Target(setpoint.p_mw, setpoint.q_mvar)


def _setpoint(target: Target | None) -> Setpoint | None:
    return None if target is None else Setpoint(p_mw=target.p_mw, q_mvar=target.q_mvar)


def _why(certificate: Certificate | None) -> str | None:
    return None if certificate is None else certificate.binding


def _checked(certificate: Certificate | None) -> Checked | None:
    if certificate is None or not certificate.power_flows:
        return None
    return Checked(certificate.power_flows, certificate.worst_v_pu, certificate.worst_loading_percent)


def _certificate(why: str | None, checked: Checked | None) -> Certificate | None:
    if checked is None:
        return None if why is None else Certificate(binding=why)
    return Certificate(
        binding=why,
        worst_v_pu=checked.worst_v_pu,
        worst_loading_percent=checked.worst_loading_percent,
        power_flows=checked.power_flows,
    )


@lru_cache(maxsize=512)  # a device's fallback, and the most of its schedule, is sent again in each step
def to_half_spaces(region: Region) -> HalfSpaces:
    """A region as it is sent."""
    return HalfSpaces(region.axes, tuple(map(tuple, region.A.tolist())), tuple(region.b.tolist()))


_BOX = ((1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0))


def to_region(sent: HalfSpaces) -> Region:
    """A region as it was meant.

    Raises:
        BadMessage: a row that is no half space.
    """
    if sent.axes == AXES and sent.A == _BOX and not any(b == 0 and copysign(1, b) < 0 for b in sent.b):
        high_p, less_p, high_q, less_q = sent.b
        if -less_p <= high_p and -less_q <= high_q:  # the usual one, which needs no more checks
            return Region.box(p_mw=(0.0 - less_p, high_p), q_mvar=(0.0 - less_q, high_q))
    rows = np.array(sent.A, dtype=float).reshape(-1, len(sent.axes))
    limits = np.array(sent.b, dtype=float)
    try:
        return Region(sent.axes, rows, limits)
    except (ValueError, ControlError) as error:
        raise BadMessage(str(error)) from None
