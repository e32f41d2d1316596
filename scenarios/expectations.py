"""Expectations: what a scenario promises of its run, as the scenario file says it.

Every limit may be touched: "below 100" holds for 100. How each is judged, and what counts as
missing, is in `scenarios.verdicts`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from controllers.contract import Origin

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
NotNegative = Annotated[Number, Field(ge=0)]
Share = Annotated[Number, Field(gt=0, le=1)]

_STATISTICS = {"p50_below": 50.0, "p95_below": 95.0, "p99_below": 99.0, "max_below": 100.0}


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class VoltageWithin(_Part):
    """Bus voltages lie between two limits."""

    what: Literal["v_pu"]
    between: tuple[NotNegative, NotNegative]
    """least and greatest voltage magnitude [pu]"""
    share: Share = 1.0
    """least share of all values, a bus and step each"""

    @field_validator("between")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError(f"has its lower limit {value[0]:g} above its upper {value[1]:g}; swap them")
        return value

    def __str__(self) -> str:
        return f"v_pu between {self.between[0]:g} and {self.between[1]:g} for {percent(self.share)}"


class LoadingBelow(_Part):
    """Lines and transformers are loaded up to a limit."""

    what: Literal["loading_percent"]
    below: NotNegative
    """greatest loading, in percent of the rating"""
    share: Share = 1.0
    """least share of all values, a branch and step each"""

    def __str__(self) -> str:
        return f"loading_percent below {self.below:g} for {percent(self.share)}"


class EnvelopeRespected(_Part):
    """Devices stay in every envelope that is valid for them."""

    what: Literal["envelope_respected"]
    share: Share = 1.0
    """least share of the steps of devices with a valid envelope"""
    tolerance_mw: NotNegative = 1e-6
    """how far outside still counts as inside, in MW or Mvar"""

    def __str__(self) -> str:
        return f"envelope_respected to {self.tolerance_mw:g} MW for {percent(self.share)}"


class Decided(_Part):
    """Controllers that were due came to a decision of their own."""

    what: Literal["decided"]
    share: Share = 1.0
    """least share of the due decisions whose origin is not held, default or skipped"""

    def __str__(self) -> str:
        return f"decided for {percent(self.share)}"


class OriginShare(_Part):
    """How often some rungs of the ladder answered; exactly one limit."""

    what: Literal["origin_share"]
    origins: Annotated[tuple[Origin, ...], Field(min_length=1)]
    """which rules count: optimal, certified, repaired, degraded, fallback, held, default, skipped"""
    at_least: Share | None = None
    """least share of the due decisions"""
    at_most: Annotated[Number, Field(ge=0, lt=1)] | None = None
    """greatest share of the due decisions"""

    @model_validator(mode="after")
    def _one(self) -> OriginShare:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("needs exactly one of at_least and at_most")
        return self

    def __str__(self) -> str:
        limit, share = ("at least", self.at_least) if self.at_most is None else ("at most", self.at_most)
        return f"origin_share of {', '.join(self.origins)} {limit} {percent(share or 0.0)}"


class DurationBelow(_Part):
    """A lateness, duration or time of acknowledgement is short; exactly one limit."""

    what: Literal["lateness_ms", "solve_ms", "power_flow_ms", "publish_ms", "ack_ms"]
    p50_below: NotNegative | None = None
    """limit of the median [ms]"""
    p95_below: NotNegative | None = None
    """limit that 95 % of the values keep [ms]"""
    p99_below: NotNegative | None = None
    """limit that 99 % of the values keep [ms]"""
    max_below: NotNegative | None = None
    """limit that every value keeps [ms]"""

    @model_validator(mode="after")
    def _one(self) -> DurationBelow:
        given = [name for name in _STATISTICS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"has {' and '.join(given) or 'no limit'}; give exactly one of {', '.join(_STATISTICS)}, "
                "and write one expectation for each"
            )
        return self

    @property
    def statistic(self) -> str:
        """p50, p95, p99 or max."""
        return next(name for name in _STATISTICS if getattr(self, name) is not None).removesuffix("_below")

    @property
    def rank(self) -> float:
        """Percent of the values that must keep the limit."""
        return _STATISTICS[f"{self.statistic}_below"]

    @property
    def limit_ms(self) -> float:
        """The limit that was given."""
        return float(getattr(self, f"{self.statistic}_below"))

    def __str__(self) -> str:
        return f"{self.what} {self.statistic} below {self.limit_ms:g} ms"


class CurtailedBelow(_Part):
    """Little of the available energy is curtailed over the run."""

    what: Literal["curtailed_mwh"]
    below: NotNegative
    """greatest sum over all devices [MWh]"""

    def __str__(self) -> str:
        return f"curtailed_mwh below {self.below:g}"


class InterchangeRespected(_Part):
    """Microgrids exchange what the network's operator lets them."""

    what: Literal["interchange_respected"]
    share: Share = 1.0
    """least share of the steps of connected microgrids, the run's first left out if nothing is in force yet;
    without a capability (AIC) later on a step is not respected"""
    tolerance_mw: NotNegative = 1e-6
    """how far outside still counts as inside"""

    def __str__(self) -> str:
        return f"interchange_respected to {self.tolerance_mw:g} MW for {percent(self.share)}"


class UnservedBelow(_Part):
    """The loads of microgrids get nearly all that they want."""

    what: Literal["unserved_mwh"]
    below: NotNegative
    """greatest sum over all microgrids [MWh]"""

    def __str__(self) -> str:
        return f"unserved_mwh below {self.below:g}"


class GapBelow(_Part):
    """Iterative methods prove how good their decisions are."""

    what: Literal["gap"]
    below: NotNegative
    """greatest relative distance of the last bounds of a decision"""
    share: Share = 1.0
    """least share of the decisions with iterations"""

    def __str__(self) -> str:
        return f"gap below {self.below:g} for {percent(self.share)}"


class DivergenceBelow(_Part):
    """Real devices are close to the twins beside them."""

    what: Literal["divergence_mw"]
    below: NotNegative
    """greatest distance of active power [MW]"""
    share: Share = 1.0
    """least share of the measurements that are compared"""

    def __str__(self) -> str:
        return f"divergence_mw below {self.below:g} for {percent(self.share)}"


AnyExpectation = (
    VoltageWithin
    | LoadingBelow
    | EnvelopeRespected
    | InterchangeRespected
    | Decided
    | OriginShare
    | DurationBelow
    | CurtailedBelow
    | UnservedBelow
    | GapBelow
    | DivergenceBelow
)
Expectation = Annotated[AnyExpectation, Field(discriminator="what")]
"""One entry of a scenario's `expect`."""


def percent(share: float) -> str:
    """A share as text that never rounds up to 100 %."""
    return f"{int(share * 1e4 + 1e-6) / 100:g} %"
