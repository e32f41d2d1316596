"""What a controller is: an observation in, a decision out, an exception when there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from math import isfinite
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

if TYPE_CHECKING:
    from controllers.fairness import Fairness
    from controllers.forecast import Forecast
    from controllers.region import Region


class ControlError(Exception):
    """A controller has no decision for this step. The runner records it and goes on."""

    outcome: ClassVar[str] = "control-error"
    """The name under which the run counts it."""


class Infeasible(ControlError):
    """No decision satisfies the constraints: the problem, not the solver, is at fault."""

    outcome: ClassVar[str] = "infeasible"


class SolverFailed(ControlError):
    """The solver stopped without a usable answer: time limit, numerical trouble, an error."""

    outcome: ClassVar[str] = "solver-failed"


class Late(ControlError):
    """The decision did not come within its deadline."""

    outcome: ClassVar[str] = "late"


class Origin(StrEnum):
    """Which rule spoke."""

    OPTIMAL = "optimal"
    """the controller's own method"""
    CERTIFIED = "certified"
    """the method, checked by the AC power flow before release"""
    REPAIRED = "repaired"
    """the method, after a check had failed: scaled, or solved again, until it held"""
    DEGRADED = "degraded"
    """there is no safe answer: the background alone takes the network beyond a limit, and nothing makes it
    worse; or what was announced has to stand until the notice of something tighter has passed"""
    FALLBACK = "fallback"
    """the second controller of a `Fallback`, because the first had no decision"""
    HELD = "held"
    """no new decision; the last one is still valid"""
    DEFAULT = "default"
    """no valid decision; each device obeys its own default"""
    SKIPPED = "skipped"
    """the clock left this step out because it was late"""


class Kind(StrEnum):
    """What a published region means."""

    ENVELOPE = "envelope"
    PIC = "pic"
    AIC = "aic"
    CUT = "cut"
    FLEXIBILITY = "flexibility"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setpoint:
    """A device's target injection; an axis that is `None` is left to the device.

    Raises:
        ValueError: a target that is not finite, or no target at all.
    """

    p_mw: float | None = None
    q_mvar: float | None = None

    def __post_init__(self) -> None:
        given = [x for x in (self.p_mw, self.q_mvar) if x is not None]
        if not given or not all(isfinite(x) for x in given):
            raise ValueError(f"setpoint: p_mw={self.p_mw}, q_mvar={self.q_mvar} is no target")


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """Why a region is as it is, and what was checked before it was released."""

    binding: str | None = None
    """the row that limits it, e.g. "upper voltage at bus 17"; `None`: the device's own capability"""
    worst_v_pu: float | None = None
    """voltage closest to its limit in the AC check; `None`: not checked"""
    worst_loading_percent: float | None = None
    power_flows: int = 0
    """number of AC power flows behind the check"""

    def __post_init__(self) -> None:
        if not (self.binding is None or isinstance(self.binding, str)):
            raise ValueError(f"certificate: binding {self.binding!r} is no text")
        for name in ("worst_v_pu", "worst_loading_percent"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, (int, float)) and isfinite(value)):
                raise ValueError(f"certificate: {name} {value!r} is no number")
        if not isinstance(self.power_flows, int) or self.power_flows < 0:
            raise ValueError(f"certificate: power_flows {self.power_flows!r} is no count")


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What a controller may know at `time`, and nothing later. Missing is missing, never zero."""

    time: datetime
    """aware UTC"""
    forecast: Forecast
    """issued at or before `time`; empty, never `None`"""
    v_pu: Mapping[str, float] = field(default_factory=dict)
    """voltage magnitude by bus"""
    p_mw: Mapping[str, float] = field(default_factory=dict)
    """injected active power by device, load and microgrid (its exchange with the network)"""
    q_mvar: Mapping[str, float] = field(default_factory=dict)
    """injected reactive power by device, load and microgrid"""
    e_mwh: Mapping[str, float] = field(default_factory=dict)
    """stored energy by device"""
    regions: Mapping[str, Region] = field(default_factory=dict)
    """what other controllers said last, by target, as far as it still holds"""
    positions: Mapping[str, int] = field(default_factory=dict)
    """where each regulator (tap changer, capacitor bank) will stand when a decision of now acts"""
    said: Mapping[str, Decision] = field(default_factory=dict)
    """what each other controller decided last, as far as it is still valid, by controller; of this step where
    it was asked before"""
    connected: Mapping[str, bool] = field(default_factory=dict)
    """whether each microgrid is connected to the network, as measured"""
    silent_since: Mapping[str, datetime] = field(default_factory=dict)
    """no data since then, by device: it is in none of `p_mw`, `q_mvar`, `e_mwh`"""
    turn: int = 0
    """of a leader: how often it has asked its followers in this step"""
    turns_left: int = 0
    """of a leader: how often it may ask them yet; 0: it has to decide now"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """What is meant to hold from `start` until `end`, the end left out."""

    start: datetime
    end: datetime
    regions: Mapping[str, Region]
    """by device"""
    certificates: Mapping[str, Certificate] = field(default_factory=dict)
    """by device, for some or all of `regions`"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """One turn of a conversation inside a step: what a leader asks a follower, or the follower's answer.

    Raises:
        ValueError: a number that is no count, or a value that is not finite.
    """

    number: int
    """of the turn, given by the leader; an answer carries the number of its question"""
    what: str
    """which question, or which answer; a word of the method"""
    values: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    regions: Mapping[str, Region] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.what, str):
            raise ValueError(f"word {self.what!r}: what is asked or answered is no text")
        if not isinstance(self.number, int) or self.number < 0:
            raise ValueError(f"word {self.what!r}: number {self.number!r} is no count")
        for name, values in self.values.items():
            if not all(map(isfinite, values)):
                raise ValueError(f"word {self.what!r}: {name} is {values}; leave out what is not known")


@dataclass(frozen=True, slots=True, kw_only=True)
class Iteration:
    """What a method that closes in on its optimum has proven after one iteration.

    Raises:
        ValueError: a number that is no count, a bound that is not finite.
    """

    number: int
    """from 1 on within a decision"""
    phase: str
    """of the method, in its own words"""
    lower: float | None = None
    """nothing costs less [$]; `None`: not known yet"""
    upper: float | None = None
    """what the best that is known costs [$]"""
    cuts: int = 0
    """how many the method has collected"""
    ended: str | None = None
    """of the last one: why there is no other"""

    def __post_init__(self) -> None:
        for name in ("number", "cuts"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise ValueError(f"iteration: {name} {value!r} is no count")
        for name in ("lower", "upper"):
            value = getattr(self, name)
            if value is not None and not isfinite(value):
                raise ValueError(f"iteration {self.number}: {name} is {value}; leave out what is not known")

    @property
    def gap(self) -> float | None:
        """By how much the bounds differ, relative to the upper one, not below zero: tolerances of solvers can
        cross them; `None` while one is not known."""
        if self.lower is None or self.upper is None:
            return None
        return max(self.upper - self.lower, 0.0) / max(abs(self.upper), 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a controller wants from the next step on."""

    time: datetime
    """the observation's time"""
    origin: Origin
    setpoints: Mapping[str, Setpoint] = field(default_factory=dict)
    """by device"""
    regions: Mapping[str, Region] = field(default_factory=dict)
    """by target: a device, or an area for an interchange capability"""
    kind: Kind = Kind.ENVELOPE
    """what `regions` mean"""
    certificates: Mapping[str, Certificate] = field(default_factory=dict)
    """by target, for some or all of `regions`, or for a microgrid whose setpoints fall short of what is asked
    for, or for the site as a whole, by its name"""
    until: datetime | None = None
    """when `regions` and `setpoints` end; `None`: when `later` begins or, without it, as the scenario says"""
    later: tuple[Interval, ...] = ()
    """what the controller means to hold afterwards, without gaps: each until the next one's start, which is
    its end"""
    positions: Mapping[str, int] = field(default_factory=dict)
    """by regulator of the network operator: where it shall stand"""
    plan: Forecast | None = None
    """what `regions`' targets, or some of them, mean to inject over the coming intervals, and its spread"""
    fairness: Fairness | None = None
    """how the regions share what the network allows, where that is the method's subject"""
    mistake: str | None = None
    """of a `Fallback`'s second controller: what the first one raised that is no `ControlError`, or how its
    decision broke the contract; `None`: it had no decision, and said so properly"""
    words: Mapping[str, Word] = field(default_factory=dict)
    """by addressee, a controller: what a leader asks its followers in this step before it decides, or what a
    follower answers its leader; a leader's is empty when the conversation is over"""
    iterations: tuple[Iteration, ...] = ()
    """how an iterative method came to it"""

    @property
    def has_sequel(self) -> bool:
        """Whether the controller says itself how long its word holds, and what comes after."""
        return self.until is not None or bool(self.later)

    def intervals(self, start: datetime, end: datetime) -> tuple[Interval, ...]:
        """All that it says, in order and without gaps.

        Args:
            start: when it begins to act.
            end: when it ends if it does not say so itself.
        """
        first_until = self.until or (self.later[0].start if self.later else end)
        first = Interval(start=start, end=first_until, regions=self.regions, certificates=self.certificates)
        return (first, *self.later)


class Controller(Protocol):
    """Anything that decides. Constructed once as `cls(site, **options)`, which compiles its
    problem; then stepped: the same observation gives the same decision."""

    def step(self, observation: Observation) -> Decision:
        """Decide.

        Raises:
            ControlError: there is no decision (`Infeasible`, `SolverFailed`).
        """
        ...


@runtime_checkable
class Remembering(Protocol):
    """A controller that remembers: its decisions follow from what it was asked before as well.

    Few should. What it remembers is kept with each step of a run, so that a run that was killed goes on as if
    nothing had happened.
    """

    def memory(self) -> object:
        """What it remembers: plain values, arrays and the vocabulary's dataclasses."""
        ...

    def recall(self, memory: Any) -> None:
        """Remember what `memory` of an equal controller has returned."""
        ...


def memory_of(controller: object) -> object:
    """What a controller remembers; `None` of one that does not."""
    return controller.memory() if isinstance(controller, Remembering) else None


def recall_of(controller: object, memory: object) -> None:
    """Have a controller remember what `memory_of` an equal one has returned."""
    if memory is not None and isinstance(controller, Remembering):
        controller.recall(memory)


@dataclass(frozen=True, slots=True)
class Span:
    """What a device is told for one span of time, the end left out."""

    start: datetime
    end: datetime
    region: Region | None
    setpoint: Setpoint | None = None
    certificate: Certificate | None = None
    """what limits the region, and how it was checked"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """What one device is told: the controllers' decisions for it, merged, numbered and dated.

    A device accepts an instruction if `(epoch, seq)` is greater than that of its last one and
    `valid_until` has not passed. After `valid_until` it obeys `fallback`.
    """

    device: str
    epoch: int
    """how often the run's controller was started; grows with every restart"""
    seq: int
    """grows with every instruction of an epoch"""
    issued_at: datetime
    valid_from: datetime
    valid_until: datetime
    region: Region | None
    """until `later` begins, if it does"""
    setpoint: Setpoint | None
    """as long as `region`"""
    fallback: Region
    """what the device obeys without a valid instruction"""
    origin: Origin | None = None
    """which rule spoke; of several controllers the last one's"""
    certificate: Certificate | None = None
    """what limits `region`, and how it was checked"""
    later: tuple[Span, ...] = ()
    """what follows `region`, without gaps; the last one ends at `valid_until`"""

    @property
    def spans(self) -> tuple[Span, ...]:
        """The whole schedule, in order and without gaps, from `valid_from` until `valid_until`."""
        first_until = self.later[0].start if self.later else self.valid_until
        first = Span(self.valid_from, first_until, self.region, self.setpoint, self.certificate)
        return (first, *self.later)

    def at(self, time: datetime) -> Span | None:
        """What holds at `time`; `None` before and after the schedule."""
        return next((span for span in self.spans if span.start <= time < span.end), None)
