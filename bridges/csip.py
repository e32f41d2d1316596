"""CSIP-AUS: the active-power limits of envelopes as IEEE 2030.5 DERControls, in XML (extra `csip`).

CSIP-AUS (Common Smart Inverter Profile, Australia) carries limits of active power and nothing else: it has
no field for a range of reactive power, and so none for a P-Q region. What is sent is the range of P at
Q = 0, and it is valid only while the device keeps Q = 0 (or the law for Q that the method assumed); a
device with a volt-var curve that is told only this is not covered by the envelope's guarantee.

An ActivePower is `value * 10^multiplier` watts, an int16 and an int8. Both limits are rounded towards
zero, so that what is sent never allows more than the envelope: 983.96 kW becomes 9839 * 10^2 W.

| element         | applies to                                                    |
|-----------------|---------------------------------------------------------------|
| `opModExpLimW`  | export at the connection point: the site with its loads, net  |
| `opModImpLimW`  | import at the connection point                                |
| `opModGenLimW`  | discharge or generation of the device                         |
| `opModLoadLimW` | charge or consumption of the device                           |

Source: CSIP-AUS v1.0 annex B; element names and types as in the package envoy-schema.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import ROUND_FLOOR, Decimal
from itertools import pairwise
from math import inf, isfinite
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from controllers.contract import Span
from controllers.region import Region

if TYPE_CHECKING:
    from envoy_schema.server.schema.sep2.der import DefaultDERControl, DERControlBase, DERControlListResponse

At = Literal["connection", "device"]
Version = Literal["1.2", "1.3"]

NAMESPACES: Mapping[str, str] = {"1.2": "https://csipaus.org/ns", "1.3": "https://csipaus.org/ns/v1.3"}
"""XML namespace of the Australian elements by version of the profile; 1.2 and before share one."""
INT16 = 32767
INT8 = 127
SECOND = timedelta(seconds=1)


class NoCsip(Exception):
    """The package that knows the XML is not installed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """How limits are written.

    Raises:
        ValueError: a setting that does not exist.
    """

    at: At = "device"
    """what the limits apply to: the envelopes of gridpace are of devices; `connection` is right where the
    device is all there is behind the connection point"""
    version: Version = "1.3"
    grad_w: int | None = 27
    """default ramp, hundredths of a percent of the rating a second (`setGradW`); `None`: not written"""

    def __post_init__(self) -> None:
        if self.at not in ("connection", "device"):
            raise ValueError(f"csip: at {self.at!r} is neither 'connection' nor 'device'")
        if self.version not in NAMESPACES:
            raise ValueError(f"csip: version {self.version!r} is none of {', '.join(NAMESPACES)}")


def active_power(limit_mw: float) -> tuple[int, int]:
    """(value, multiplier) of a limit: the greatest `value * 10^multiplier` W that is not above it.

    Whole watts at best; a multiplier only where the value would not fit into an int16.

    Raises:
        ValueError: a limit that is negative, not finite, or above 32767 * 10^127 W.
    """
    if not (isfinite(limit_mw) and limit_mw >= 0):
        raise ValueError(f"csip: limit {limit_mw} MW must be finite and not negative")
    # The shortest decimal that means this number: 0.0029 MW is 2900 W, not 2899.
    watts = int((Decimal(repr(float(limit_mw))).scaleb(6)).to_integral_value(ROUND_FLOOR))
    multiplier = 0
    while watts > INT16:
        watts //= 10
        multiplier += 1
    if multiplier > INT8:
        raise ValueError(
            f"csip: limit {limit_mw:g} MW does not fit into an int16 and a power of ten up to 127"
        )
    return watts, multiplier


def active_range(region: Region) -> tuple[float, float]:
    """Least and greatest P [MW] of a P-Q region at Q = 0; infinite where nothing limits it.

    Raises:
        ValueError: the region has no point at Q = 0, or does not reach P = 0 there: limits of export and
            import, which are not negative, cannot say so.
    """
    slope, room = region.over(("p_mw", "q_mvar")).A[:, 0], region.b
    flat = np.abs(slope) < 1e-12
    with np.errstate(divide="ignore"):
        ends = room / np.where(flat, 1.0, slope)
    high = float(ends[slope >= 1e-12].min(initial=inf))
    low = float(ends[slope <= -1e-12].max(initial=-inf))
    # Envelopes touch zero where nothing is left; rounding must not make that a contradiction.
    if (room[flat] < -1e-9).any() or low > 1e-9 or high < -1e-9:
        raise ValueError(
            f"csip: at Q = 0 the region allows P from {low:g} to {high:g} MW; only a range that holds 0 can "
            "be sent as limits of export and import"
        )
    return min(low, 0.0), max(high, 0.0)


def controls(
    device: str, spans: Sequence[Span], *, issued_at: datetime, now: datetime, profile: Profile | None = None
) -> bytes:
    """The DERControlList of one device in XML: one DERControl for each span, in their order.

    Args:
        device: its name; with the times it makes the controls' identifiers, so that the same decision
            gives the same bytes.
        spans: contiguous, of whole seconds.
        issued_at: when they were decided.
        now: tells which control is active and which is scheduled.

    Raises:
        NoCsip: the extra is not installed.
        ValueError: a gap or an overlap between spans, a span without a region or of no whole seconds, a
            region that limits cannot express.
    """
    profile = profile or Profile()
    der, event, types = _schema()
    for one, after in pairwise(spans):
        if after.start != one.end:
            raise ValueError(
                f"csip: {device}: a control ends at {one.end} and the next starts at {after.start}; "
                "intervals must be contiguous, or devices fall to their default in between"
            )
    made = []
    for span in spans:
        start, duration = _seconds(device, span)
        if span.region is None:
            raise ValueError(f"csip: {device}: nothing limits it from {span.start}; leave the span out")
        status = event.EventStatusType.Active if span.start <= now else event.EventStatusType.Scheduled
        made.append(
            der.DERControlResponse(
                mRID=_identifier("control", device, issued_at, span.start),
                description=f"{device} {span.start.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"[:32],
                creationTime=_epoch(issued_at),
                EventStatus_=event.EventStatus(
                    currentStatus=int(status), dateTime=_epoch(issued_at), potentiallySuperseded=False
                ),
                interval=types.DateTimeIntervalType(duration=duration, start=start),
                DERControlBase_=_limits(span.region, profile),
            )
        )
    several: DERControlListResponse = der.DERControlListResponse(
        all_=len(made), results=len(made), DERControl=made
    )
    return _xml(several, profile)


def default_control(device: str, region: Region, *, profile: Profile | None = None) -> bytes:
    """The DefaultDERControl of one device in XML: what it obeys while no control is active.

    Raises:
        NoCsip: the extra is not installed.
        ValueError: a region that limits cannot express.
    """
    profile = profile or Profile()
    der, _, _ = _schema()
    made: DefaultDERControl = der.DefaultDERControl(
        mRID=_identifier("default", device),
        description=f"{device} default"[:32],
        DERControlBase_=_limits(region, profile),
        setGradW=profile.grad_w,
    )
    return _xml(made, profile)


def _limits(region: Region, profile: Profile) -> DERControlBase:
    from envoy_schema.server.schema.sep2.der_control_types import ActivePower

    low, high = active_range(region)
    up, down = {
        "connection": ("opModExpLimW", "opModImpLimW"),
        "device": ("opModGenLimW", "opModLoadLimW"),
    }[profile.at]
    limits = {}
    for element, limit_mw in ((up, high), (down, -low)):
        if isfinite(limit_mw):
            value, multiplier = active_power(limit_mw)
            limits[element] = ActivePower(value=value, multiplier=multiplier)
    der, _, _ = _schema()
    base: DERControlBase = der.DERControlBase(**limits)
    return base


def _xml(made: Any, profile: Profile) -> bytes:
    text: bytes = made.to_xml(skip_empty=True, exclude_none=True, xml_declaration=True, encoding="utf-8")
    if profile.version != "1.3":  # the package writes the newest
        text = text.replace(NAMESPACES["1.3"].encode() + b'"', NAMESPACES[profile.version].encode() + b'"')
    return text


def _schema() -> tuple[Any, Any, Any]:
    """The modules of envoy-schema, which are only loaded when XML is written."""
    try:
        from envoy_schema.server.schema.sep2 import der, event, types
    except ImportError as error:
        raise NoCsip(f"CSIP-AUS needs envoy-schema ({error}); pip install 'gridpace[csip]'") from None
    return der, event, types


def _seconds(device: str, span: Span) -> tuple[int, int]:
    """Start since 1970 and duration [s]."""
    duration = (span.end - span.start) / SECOND
    start = span.start.timestamp()
    if duration <= 0 or duration % 1 or start % 1:
        raise ValueError(
            f"csip: {device}: the control from {span.start} to {span.end} must begin and end at whole seconds"
        )
    return int(start), int(duration)


def _epoch(at: datetime) -> int:
    return int(at.timestamp())


def _identifier(*parts: object) -> str:
    """An mRID: 32 hexadecimal digits that follow from what is identified."""
    words = (part.astimezone(UTC).isoformat() if isinstance(part, datetime) else str(part) for part in parts)
    return uuid.uuid5(uuid.NAMESPACE_URL, "gridpace/" + "/".join(words)).hex
