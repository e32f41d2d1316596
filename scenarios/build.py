"""Build: from a checked scenario to the objects that run: net, network, site, profiles, controllers."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from pandapower.auxiliary import pandapowerNet
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from controllers.contract import Controller
from controllers.devices import (
    Device,
    FlexibleLoad,
)
from controllers.envelopes.certified import Certified
from controllers.envelopes.rolling import Rolling
from controllers.fallback import Fallback
from controllers.network import Limits, PowerFlow
from controllers.rating import Rating, rating_of
from controllers.regulators import Regulator
from controllers.roles import followers_of, sight_of
from controllers.site import Load, Site
from scenarios.check import ScenarioInvalid, problem_at
from scenarios.corrections import without_room
from scenarios.coverage import covering, looks_ahead, period, uncovered
from scenarios.equipment import device_of, regulator_of
from scenarios.faults import faults_of, line_of
from scenarios.grids import GridError, bus_of, load_grid
from scenarios.leading import following_problems, member
from scenarios.load import Draft, Keys
from scenarios.microgrids import breaker_of, followers, microgrid_of
from scenarios.options import blamed
from scenarios.plugins import controller_class
from scenarios.schema import (
    HERE,
    CapacitorBankPart,
    ControllerPart,
    ConversationPart,
    GridPart,
    MemoryBusPart,
    Scenario,
)
from simulators.clock import Mode
from simulators.deadline import Deadline
from simulators.decisions import check
from simulators.faults import Fault
from simulators.faulty import FaultyController
from simulators.microgrids import Breaker, MicrogridTwin
from simulators.network import network_of
from simulators.outage import Outage, together
from simulators.per_unit import PLACED, NetworkRefused, per_unit
from simulators.power_flow import PandapowerEngine, PowerGridModelEngine
from simulators.profiles import Driven
from simulators.regulated import at_rest, require_place
from simulators.seats import Seat, Terms

CONVERSATION_SHARE = 0.5
"""Part of a step of the wall clock for which a leader may talk with its followers, if not given."""
FAST_CONVERSATION_S = 600.0
"""The same where the clock sets no limit."""
_STATIC = {"load": -1.0, "sgen": 1.0, "storage": -1.0}
"""pandapower tables that become loads of the site, with the sign that makes injection positive."""


@dataclass(frozen=True, eq=False)
class Built:
    """Everything of a scenario that is constructed once."""

    scenario: Scenario
    site: Site
    engine: PowerFlow
    """the plant's power flow, with which the run is simulated"""
    driven: tuple[Driven, ...]
    breakers: Mapping[str, Breaker]
    """by microgrid"""
    seats: tuple[Seat, ...]
    sources: tuple[str, ...]
    """of the methods that the controllers use"""
    faults: tuple[Fault, ...] = ()
    outages: Mapping[frozenset[str], Outage] = field(default_factory=dict)
    """what is left of the grid, by the branches that faults open together"""

    @property
    def deadlines(self) -> list[Deadline]:
        """Those of controllers in this process."""
        both = (seat.controller for seat in self.seats)
        firsts = (c.first if isinstance(c, Fallback) else c for c in both)
        return [controller for controller in firsts if isinstance(controller, Deadline)]

    def microgrid_twins(self, event: Callable[..., None]) -> list[MicrogridTwin]:
        """The microgrids of the plant, as they begin; `event` takes what happens to them."""
        every_s = self.scenario.every.total_seconds()
        grids, devices = self.site.microgrids, self.site.devices
        return [
            MicrogridTwin(
                grids[p.name], devices, self.breakers[p.name], every_s, event, regulates=p.regulates
            )
            for p in self.scenario.microgrids
        ]


def build(draft: Draft, scenario: Scenario, *, only: Set[str] | None = None) -> Built:
    """Construct a scenario's parts.

    Args:
        only: names of the controllers to construct, for a process that answers for no others; all if not
            given.

    Raises:
        ScenarioInvalid: a grid or controller that refuses what it is given.
    """
    net = net_of(draft, scenario.grid)
    devices = {part.name: device_of(part, bus_of(net, part.bus)) for part in scenario.devices}
    _require_defaults(draft, scenario, devices)
    regulators = {part.name: regulator_of(part, net) for part in scenario.regulators}
    loads = _loads(draft, net)
    engine: PandapowerEngine | PowerGridModelEngine
    try:
        net = at_rest(net, regulators)
        _require_places(draft, scenario, net, regulators)
        network = network_of(net)
        fast = PowerGridModelEngine(net, regulators)
        engine = PandapowerEngine(net, regulators) if scenario.grid.engine == "pandapower" else fast
    except ScenarioInvalid:
        raise
    except NetworkRefused as error:
        raise _refused(draft, ("grid", "network"), scenario.grid.network, str(error)) from None
    except Exception as error:  # pandapower checks little of a net before it computes
        advice = f"pandapower cannot compute this net ({type(error).__name__}: {error}); check its values"
        raise _refused(draft, ("grid", "network"), scenario.grid.network, advice) from error
    faults = _faults(scenario, net)
    outages = _outages(draft, scenario, net, regulators, engine, faults)
    in_service = set(engine.buses)
    for i, part in enumerate(scenario.devices):
        if devices[part.name].bus not in in_service:
            raise _refused(
                draft,
                ("devices", i, "bus"),
                part.bus,
                "is not connected to the grid's source; close a switch",
            )
    site = Site(
        name=scenario.name,
        network=network,
        limits=Limits(scenario.grid.limits.v_pu, scenario.grid.limits.loading_percent),
        every=scenario.every,
        devices=devices,
        loads=loads,
        power_flow=fast,
        regulators=regulators,
        microgrids={p.name: microgrid_of(p, bus_of(net, p.bus)) for p in scenario.microgrids},
    )
    wanted = [i for i, part in enumerate(scenario.controllers) if only is None or part.name in only]
    in_order = [_seat(draft, scenario, site, i, faults) for i in wanted]
    if only is None:
        in_order = _led(draft, scenario, in_order)
        _require_periods(draft, scenario, in_order)
        _require_room(draft, scenario, in_order)
    seats = tuple(sorted(in_order, key=lambda seat: not _goes_first(seat.controller)))
    sources = dict.fromkeys(source for seat in seats for source in _sources(seat.controller))
    driven = _driven(draft, scenario, devices, loads)
    breakers = {part.name: breaker_of(part, scenario.every) for part in scenario.microgrids}
    return Built(scenario, site, engine, driven, breakers, seats, tuple(sources), faults, outages)


def _faults(scenario: Scenario, net: pandapowerNet) -> tuple[Fault, ...]:
    """What goes wrong, with the net's own names."""

    return faults_of(
        tuple(scenario.faults),
        scenario.start,
        scenario.every,
        bus=lambda named: bus_of(net, named),
        line=lambda named: line_of(net, named),
    )


def _outages(
    draft: Draft,
    scenario: Scenario,
    net: pandapowerNet,
    regulators: Mapping[str, Regulator],
    whole: PowerFlow,
    faults: Sequence[Fault],
) -> dict[frozenset[str], Outage]:
    """What is left of the grid for each set of branches that are open at the same time."""
    found = {}
    for fault in faults:
        if fault.branch is not None and fault.branch not in whole.branches:
            line = scenario.faults[fault.number].line  # type: ignore[union-attr]
            advice = "is open already, or without supply; name a line that carries something"
            raise _refused(draft, ("faults", fault.number, "line"), line, advice)
    for opened in together(faults):
        left = copy.deepcopy(net)
        left.line.loc[[int(branch.partition(":")[2]) for branch in opened], "in_service"] = False
        engine: PowerFlow
        if scenario.grid.engine == "pandapower":
            engine = PandapowerEngine(left, regulators)
        else:
            engine = PowerGridModelEngine(left, regulators)
        found[opened] = outage = Outage(engine, whole.buses, whole.branches)
        for part in scenario.microgrids:
            if bus_of(net, part.bus) in outage.unsupplied:
                number = next(f.number for f in faults if f.branch in opened)
                advice = f"takes the supply of microgrid {part.name!r}; make it an island (isolated)"
                line = scenario.faults[number].line  # type: ignore[union-attr]
                raise _refused(draft, ("faults", number, "line"), line, advice)
    return found


def _require_defaults(draft: Draft, scenario: Scenario, devices: Mapping[str, Device]) -> None:
    """A device refuses what has a fallback that it could not obey; its default is the fallback of all."""
    for i, part in enumerate(scenario.devices):
        if part.default is None:
            continue
        device = devices[part.name]
        if (why := Rating(rating_of(device)).unable(device.default)) is not None:
            advice = f"is a default that the device could never obey: {why}"
            raise _refused(draft, ("devices", i, "default"), part.default.model_dump(), advice)


def _refused(draft: Draft, keys: Keys, value: Any, advice: str) -> ScenarioInvalid:
    return ScenarioInvalid(draft.origin, [problem_at(draft, keys, value, advice)])


def net_of(draft: Draft, grid: GridPart) -> pandapowerNet:
    """The grid with its edits.

    Raises:
        ScenarioInvalid: no such grid, or an edit that does not fit it.
    """
    try:
        net = load_grid(grid.network, draft.folder)
    except GridError as error:
        raise _refused(draft, ("grid", "network"), grid.network, str(error)) from None
    for i, edit in enumerate(grid.edits):
        path: Keys = ("grid", "edits", i)
        table = net.get(edit.table)
        if table is None or not hasattr(table, "columns"):
            raise _refused(draft, (*path, "table"), edit.table, "is no table of the net")
        if edit.column not in table.columns:
            known = ", ".join(map(str, table.columns))
            raise _refused(draft, (*path, "column"), edit.column, f"is no column of {edit.table}: {known}")
        index = list(table.index) if edit.index == "all" else edit.index
        missing = sorted(set(index) - set(table.index))
        if missing:
            raise _refused(draft, (*path, "index"), missing, f"not in the net's {edit.table} table")
        if not _fits(table[edit.column].dtype, edit.value):
            advice = f"does not fit {edit.table}.{edit.column}, which holds {table[edit.column].dtype}"
            raise _refused(draft, (*path, "value"), edit.value, advice)
        table.loc[index, edit.column] = edit.value
    return net


def _fits(dtype: Any, value: float | bool | str) -> bool:
    """Whether a table's column can hold a value as what it is."""
    if is_bool_dtype(dtype):
        return isinstance(value, bool)
    if is_numeric_dtype(dtype):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return True


def _loads(draft: Draft, net: pandapowerNet) -> dict[str, Load]:
    """What is connected to the net and nobody controls, injection positive."""
    loads = {}
    for table in PLACED:
        if table not in net or not len(net[table]):
            continue
        rows = net[table][net[table].in_service.astype(bool)]
        if len(rows) and table not in _STATIC:
            raise _refused(
                draft, ("grid", "network"), table, f"the net has {table} elements; replace them by loads"
            )
        depends = [c for c in rows.columns if c.startswith("const_") and (rows[c] != 0).any()]
        if depends:
            raise _refused(
                draft,
                ("grid", "network"),
                depends,
                f"the net's {table}s depend on voltage; set these columns to 0",
            )
        for row in rows.itertuples():
            factor = _STATIC[table] * row.scaling
            if not net.bus.in_service.get(row.bus, False):
                continue  # as in pandapower, nothing is connected there
            name = f"{table}:{row.Index}"
            loads[name] = Load(name, str(row.bus), factor * row.p_mw, factor * row.q_mvar)
    return loads


def _require_places(
    draft: Draft, scenario: Scenario, net: pandapowerNet, regulators: Mapping[str, Regulator]
) -> None:
    """Refuse regulators that the controllers' linear model cannot follow."""
    if not regulators:
        return
    model = per_unit(net)
    for i, part in enumerate(scenario.regulators):
        try:
            require_place(model, regulators[part.name])
        except NetworkRefused as error:
            key, value = ("bus", part.bus) if isinstance(part, CapacitorBankPart) else ("at", part.at)
            raise _refused(draft, ("regulators", i, key), value, str(error)) from None


def _seat(draft: Draft, scenario: Scenario, site: Site, i: int, faults: Sequence[Fault]) -> Seat:
    part = scenario.controllers[i]
    if part.process != HERE and isinstance(scenario.bus, MemoryBusPart):
        advice = "talks over the bus, and kind memory does not leave the run's; take embedded or mqtt"
        raise _refused(draft, ("controllers", i, "process"), part.process, advice)
    steps = period(scenario, part)
    cls = controller_class(part.uses, draft.folder)
    if (wrong := uncovered(scenario, part, cls)) is not None:
        keys, value, advice = wrong
        raise _refused(draft, ("controllers", i, *keys), value, advice)
    key = "options"
    try:
        controller = cls(site, **(part.options if part.rolling else covering(cls, part.options, steps)))
        if part.certified is not None:
            key = "certified"
            controller = Certified(controller, **dict(part.certified))
        if part.rolling is not None:
            key = "rolling"
            controller = Rolling(controller, **dict(part.rolling))
        controller = _spoiled(controller, scenario, part, faults)
        if part.deadline is not None and part.process == HERE:
            controller = Deadline(controller, part.deadline.total_seconds())
        looking = [controller]
        if part.fallback is not None:
            second = controller_class(part.fallback, draft.folder)
            looking.append(second(site, **covering(second, {}, steps)))
            controller = Fallback(controller, looking[1], check=partial(check, site=site))
    except (Exception, SystemExit) as error:  # whatever a third party's constructor raises
        given = dict(getattr(part, key))
        name = blamed(str(error), given) if key == "options" else None
        where, value = ((key,), given) if name is None else ((key, name), given[name])
        raise _refused(draft, ("controllers", i, *where), value, f"{part.uses} refuses: {error}") from error
    covered = scenario.forecast.intervals
    for asked in (getattr(one, looks_ahead(type(one)), 1) for one in looking):
        if isinstance(asked, int) and asked > covered:
            advice = f"{part.uses} looks {asked} steps ahead, but a forecast covers {covered}; raise it"
            advice += f", or ask it more often than each {steps} steps" if asked == steps > 1 else ""
            raise _refused(draft, ("forecast", "intervals"), covered, advice)
    return Seat(
        part.name,
        controller,
        steps,
        part.valid_for or 2 * steps * scenario.every,
        followers=followers_of(controller),
        sight=sight_of(controller),
        terms=_terms(scenario, part.conversation or ConversationPart()),
    )


def _terms(scenario: Scenario, part: ConversationPart) -> Terms:
    """How long a conversation may take by the wall clock: a paced step has to leave its leader time to
    decide, and its run time for the rest."""
    speed = {Mode.FAST: None, Mode.LIVE: 1.0, Mode.SCALED: scenario.clock.factor}[scenario.clock.mode]
    step_s = scenario.every.total_seconds()
    within_s = FAST_CONVERSATION_S if speed is None else CONVERSATION_SHARE * step_s / speed
    if part.within is not None:
        within_s = part.within.total_seconds()
    return Terms(part.most_turns, within_s)


def _led(draft: Draft, scenario: Scenario, seats: Sequence[Seat]) -> list[Seat]:
    """The seats, with the leaders of those that are led.

    Raises:
        ScenarioInvalid: whoever is led is not there, or not to be led.
    """
    members = [
        member(("controllers", i), part.name, seat.controller, part.options, part.every or scenario.every)
        for i, (seat, part) in enumerate(zip(seats, scenario.controllers, strict=True))
    ]
    for keys, value, advice in following_problems(members):
        raise _refused(draft, keys, value, advice)
    leaders = {name: seat.name for seat in seats for name in seat.followers}
    return [replace(seat, leader=leaders.get(seat.name)) for seat in seats]


def _spoiled(
    controller: Controller, scenario: Scenario, part: ControllerPart, faults: Sequence[Fault]
) -> Controller:
    """A controller with the faults that it has; itself if it has none."""
    own = [fault for fault in faults if fault.controller == part.name]
    silent = {n for n, f in enumerate(scenario.faults) if f.what == "line-out" and f.controllers == "silent"}
    own += [fault for fault in faults if fault.number in silent]
    if not own:
        return controller
    within = part.deadline or scenario.every
    speeds = {Mode.FAST: None, Mode.LIVE: 1.0, Mode.SCALED: scenario.clock.factor}
    speed = speeds[scenario.clock.mode]
    return FaultyController(controller, own, scenario.seed, within.total_seconds(), speed)


def _require_periods(draft: Draft, scenario: Scenario, seats: Sequence[Seat]) -> None:
    """Envelopes are safe for the positions that they were made for: with each move they are made anew.

    Raises:
        ScenarioInvalid: a controller that is not due in each step of one that moves regulators, or that
            announces envelopes for later.
    """
    for first in (seat for seat in seats if _goes_first(seat.controller)):
        for i, seat in enumerate(seats):
            part = scenario.controllers[i]
            if seat is first or _goes_first(seat.controller):
                continue
            if part.rolling is not None:
                advice = f"announces envelopes for later, but {first.name!r} moves regulators; leave one out"
                raise _refused(draft, ("controllers", i, "rolling"), dict(part.rolling), advice)
            if first.every_steps % seat.every_steps:
                advice = f"must divide that of {first.name!r}, which moves regulators and is asked before it"
                raise _refused(draft, ("controllers", i, "every"), part.every, advice)


def _require_room(draft: Draft, scenario: Scenario, seats: Sequence[Seat]) -> None:
    """Capabilities of microgrids leave room for the devices that envelopes move.

    Raises:
        ScenarioInvalid: a correction of capabilities for which these stand still.
    """
    found = without_room([seat.controller for seat in seats])
    if found is not None:
        i, moved = found
        advice = f"leaves no room for {', '.join(moved)} under envelopes; give it outside_part, e.g. 0.3"
        raise _refused(draft, ("controllers", i, "options"), scenario.controllers[i].options, advice)


def _goes_first(controller: Controller) -> bool:
    """Whether it sets what the others of a step have to know, wherever the scenario names it."""
    first = controller.first if isinstance(controller, Fallback) else controller
    return bool(getattr(first, "goes_first", False))


def _sources(controller: Controller) -> tuple[str, ...]:
    if isinstance(controller, Fallback):
        return _sources(controller.first) + _sources(controller.second)
    return tuple(getattr(controller, "sources", ()))


def _driven(
    draft: Draft, scenario: Scenario, devices: Mapping[str, Device], loads: Mapping[str, Load]
) -> tuple[Driven, ...]:
    """A process for each profile that is used, for all of its sites."""
    sites: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for part in scenario.devices:
        if part.profile is not None:
            device = devices[part.name]
            sign = -1.0 if isinstance(device, FlexibleLoad) else 1.0
            sites[part.profile].append((device.name, sign * device.rating_mw))
    for profile, name, rating in followers(scenario.microgrids):
        sites[profile].append((name, rating))
    for table, profile in scenario.grid.profiles.items():
        sites[profile] += [
            (load.name, load.p_mw) for load in loads.values() if load.name.startswith(f"{table}:")
        ]
    driven = []
    end = scenario.start + scenario.steps * scenario.every
    for profile, follow in sites.items():
        try:
            parameters = scenario.profiles[profile].parameters(draft.folder)
            names = [name for name, _ in follow]
            process = parameters.build(names, scenario.start, scenario.every, scenario.seed)
            process.must_cover(end)
        except ValueError as error:
            raise _refused(draft, ("profiles", profile), profile, str(error)) from None
        driven.append(Driven(process, np.array([rating for _, rating in follow])))
    return tuple(driven)
