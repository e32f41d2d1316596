"""Devices: twins of what is connected to the grid, each obeying its region, setpoint or default."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from controllers.contract import Infeasible, Instruction
from controllers.devices import Device, DeviceState
from controllers.rating import FINE_MW
from controllers.region import Region
from controllers.register import Answer, Life, Order, Refusal, Regime, Register
from simulators.agreed import Agreed
from simulators.clock import Tick
from simulators.faults import What
from simulators.stage import Stage
from simulators.tables import Outcome

if TYPE_CHECKING:
    from simulators.faults import Faults
    from simulators.field import Field
    from simulators.mail import Mail
    from simulators.microgrids import MicrogridTwin
    from simulators.seats import Turn

Array = npt.NDArray[np.float64]


class Obedience(StrEnum):
    """What a device goes by, in the words of EEBUS."""

    INIT = "init"
    """no instruction yet: its default"""
    CONTROLLED = "controlled"
    """a valid instruction, which leaves it where it wants to be"""
    LIMITED = "limited"
    """a valid instruction whose region moves it"""
    FAILSAFE = "failsafe"
    """the last instruction has expired: its default"""
    UNABLE = "unable"
    """it cannot reach its region (ramp, firm load, empty store) and comes as close as it can to the point
    of it that it wants"""
    STALE = "stale"
    """a real device that was not heard for long: nobody knows"""
    BALANCING = "balancing"
    """moved from what it goes by, to keep the exchange of its microgrid where it has to be"""
    DISOBEYING = "disobeying"
    """a fault of the scenario: it does what it likes, whatever it was told and has answered"""
    UNSUPPLIED = "unsupplied"
    """the grid at its bus has no supply: it has tripped, and injects nothing"""
    UNCONTROLLED = "uncontrolled"
    """a load or fixed generator, which nobody instructs"""


@dataclass(frozen=True, slots=True)
class Receipt:
    """A device's answer to one instruction."""

    device: str
    epoch: int
    seq: int
    at: datetime
    outcome: Outcome
    reason: str | None = None
    """why it was refused, its code first"""

    @classmethod
    def of(cls, device: str, answer: Answer, at: datetime | None = None) -> Receipt:
        """What a device has said, at its own time if no other is given."""
        # One that came too late has expired, whoever noticed it.
        outcome = Outcome.EXPIRED if answer.code is Refusal.STALE else Outcome(answer.state)
        said = [text for text in (answer.code, answer.reason) if text]
        return cls(device, answer.epoch, answer.seq, at or answer.time, outcome, ": ".join(said) or None)


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of a device outside the co-simulation."""

    measured_at: datetime | None
    """when it was measured last; `None`: never"""
    silent_since: datetime | None
    """no data since then, so that its power is only assumed; `None`: it is measured"""
    held: bool
    """whether an operator has taken it: it is told nothing"""
    twin: DeviceReport | None = None
    """what its twin did when it was measured; `None`: there is none, or nothing to compare"""


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """What a device did over one step; injection positive."""

    device: str
    p_mw: float
    q_mvar: float
    e_mwh: float | None
    available_mw: float | None
    """what it could have injected; `None` for a device whose power is not given by nature"""
    curtailed_mw: float | None
    """how much of it was lost"""
    obedience: Obedience
    outside: Seen | None = None
    """of a real device; `None`: it is simulated"""

    @property
    def silent_since(self) -> datetime | None:
        """No data since then: its power is what the power flow counts on, and not measured."""
        return None if self.outside is None else self.outside.silent_since


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a device would hold for the coming step, by its instruction or default."""

    p_mw: float
    q_mvar: float
    wish: float
    """active power if nobody limited it"""
    modes: tuple[Region, ...]
    """what it could hold instead"""
    able: Region
    """the one of these that it would be in: whether an engine is on is settled when it proposes"""
    allowed: Region
    """the part of this that it is left by what it goes by; all of it where there is no such part"""
    obedience: Obedience


class DeviceTwin:
    """One simulated device: keeps its state, and a register of what it is told."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.state: DeviceState = device.initial()
        self._register = Register()
        self._answers: list[Answer] = []

    def receive(self, instruction: Instruction, now: datetime) -> Receipt:
        """Take an instruction unless it is old or expired."""
        answers = self._register.take(instruction, now)
        own = (instruction.epoch, instruction.seq)
        refused = None
        for answer in answers:
            if answer.code is not None:
                refused = answer
            elif (answer.epoch, answer.seq) != own:
                self._answers.append(answer)
        if refused is not None:
            return Receipt.of(instruction.device, refused)
        return Receipt(instruction.device, *own, now, Outcome.APPLIED)

    def answers(self) -> list[Receipt]:
        """Take what became of earlier instructions since the last call."""
        if not self._answers:
            return []
        said, self._answers = self._answers, []
        return [Receipt.of(self.device.name, answer) for answer in said]

    def memory(self) -> object:
        """Its state and what it was told, for `recall`."""
        return self.state, self._register.memory(), tuple(self._answers)

    def recall(self, memory: Any) -> None:
        """Go on from what `memory` of a twin of the same device has returned."""
        self.state, told, answers = memory
        self._register.recall(told)
        self._answers = list(answers)

    def step(self, now: datetime, drive: float | None, every_s: float) -> DeviceReport:
        """Hold the proposed operating point for `every_s` seconds from `now`."""
        return self.hold(self.propose(now, drive, every_s), every_s)

    def propose(self, now: datetime, drive: float | None, every_s: float) -> Proposal:
        """The operating point for `every_s` seconds from `now`; nothing changes yet."""
        if answers := self._register.tick(now):
            # It is said to have been applied when it was taken, by `receive`.
            self._answers += [answer for answer in answers if answer.state is not Life.APPLIED]
        return self.obey(self._register.order(now), self.device.default, drive, every_s)

    def obey(self, order: Order, otherwise: Region, drive: float | None, every_s: float) -> Proposal:
        """The operating point for `every_s` seconds by an order.

        Args:
            otherwise: where it must stay while it has no valid instruction.
        """
        device = self.device
        wish = device.wish(drive)
        wanted = np.array([wish, device.reactive(wish)])
        stage, region = Obedience(order.regime), order.region
        if order.regime is not Regime.CONTROLLED:
            region = otherwise
        elif (target := order.setpoint) is not None:
            p_mw = wish if target.p_mw is None else target.p_mw
            wanted = np.array([p_mw, device.reactive(p_mw) if target.q_mvar is None else target.q_mvar])

        modes = device.modes(self.state, drive, every_s)
        try:
            point, able, allowed = _within(modes, region, wanted)
            if (
                stage is Obedience.CONTROLLED
                and _apart(point, wanted)
                and _apart(point, _within(modes, None, wanted)[0])
            ):
                stage = Obedience.LIMITED
        except Infeasible:
            point, able, allowed = self._closest(modes, region, wanted)
            stage = Obedience.UNABLE
        return Proposal(float(point[0]), float(point[1]), wish, modes, able, allowed, stage)

    def disobey(self, proposal: Proposal) -> Proposal:
        """What it would hold if nobody had told it anything, as far as it is able to."""
        wanted = np.array([proposal.wish, self.device.reactive(proposal.wish)])
        (p_mw, q_mvar), *_ = _within(proposal.modes, None, wanted)
        return replace(proposal, p_mw=float(p_mw), q_mvar=float(q_mvar), obedience=Obedience.DISOBEYING)

    def hold(self, proposal: Proposal, every_s: float) -> DeviceReport:
        """Inject what was proposed for `every_s` seconds."""
        device, p_mw, wish = self.device, proposal.p_mw, proposal.wish
        self.state = device.advance(self.state, p_mw, proposal.q_mvar, every_s)
        natural = device.curtailable
        return DeviceReport(
            device.name,
            p_mw,
            proposal.q_mvar,
            self.state.e_mwh,
            wish if natural else None,
            max(wish - p_mw, 0.0) if natural else None,
            proposal.obedience,
        )

    def _closest(self, modes: Sequence[Region], region: Region | None, wanted: Array) -> Held:
        """Within what it is able to, the point closest to the one it wants of the region; of its default
        where the region has no point, or one so far off that nothing is close to it; at last to its wish."""
        for goal in (region, self.device.default):
            with suppress(Infeasible):
                near = wanted if goal is None else goal.over(modes[0].axes).nearest(wanted)
                return _within(modes, None, near)
        try:
            return _within(modes, None, wanted)
        except Infeasible as error:
            raise Infeasible(
                f"device {self.device.name!r}: its own limits contradict each other in state {self.state}; "
                "look at its ratings"
            ) from error


Held = tuple[Array, Region, Region]
"""A point, the mode that it is of, and the part of this in which it may be."""


def _within(modes: Sequence[Region], region: Region | None, wanted: Array) -> Held:
    """The point of some modes, and of a region, that is closest to another one.

    Of several modes the one that comes closer in active power: an engine that is told 0 MW stops, whatever
    reactive power it is told. The one it is in counts first.

    Raises:
        Infeasible: there is none, or none that is found.
    """
    if len(modes) == 1:
        (able,) = modes
        allowed = able if region is None else able & region
        return _nearest(allowed, wanted), able, allowed
    found: list[Held] = []
    for able in modes:
        allowed = able if region is None else able & region
        with suppress(Infeasible):
            found.append((_nearest(allowed, wanted), able, allowed))
    if not found:
        raise Infeasible(f"none of {len(modes)} modes has a point of the region")
    return min(found, key=lambda held: abs(float(held[0][0] - wanted[0])))


def _nearest(region: Region, wanted: Array) -> Array:
    """The point of a region closest to another one, which may be so far off that reckoning fails.

    Raises:
        Infeasible: there is none, or none that is found.
    """
    point = region.nearest(wanted)
    if not region.excess(point) <= FINE_MW:
        raise Infeasible(f"region over {region.axes}: no point of it is found near {wanted}")
    return point


def _apart(one: Array, other: Array) -> bool:
    return bool(np.abs(one - other).max() > 1e-9)


class Trouble(Protocol):
    """What goes wrong, as far as it is about devices; see `scenarios.trouble`."""

    faults: Faults
    mail: Mail

    def begin(self, tick: Tick) -> None:
        """Begin and end what is due in a step."""
        ...

    @property
    def dark(self) -> frozenset[str]:
        """Buses of the grid without supply."""
        ...


class DevicesSimulator(Stage):
    """mosaik simulator: an entity `fleet` takes what all devices share, its children are the devices.

    Inputs of the fleet: `tick`, `drive` (values of profiles by name), `instructions` (by device) and `turns`
    (of the controllers), both from the step before. Outputs: `receipts` and `exchanges` (by microgrid) of the
    fleet, `report` of each device.

    Args:
        controllers: their names in the scenario's order, whose last word on a microgrid's plan counts.
        field: the real devices among these, which have a twin only where it runs beside them.
        trouble: what goes wrong; begun by the fleet, which is the first to need it.
    """

    def __init__(
        self,
        devices: Mapping[str, Device],
        every_s: float,
        microgrids: Sequence[MicrogridTwin] = (),
        controllers: Sequence[str] = (),
        field: Field | None = None,
        trouble: Trouble | None = None,
    ) -> None:
        super().__init__(
            "fleet",
            takes=["tick", "drive", "instructions", "turns"],
            gives=["receipts", "exchanges"],
            children=tuple(devices),
            child_gives=["report"],
        )
        self._every_s, self._microgrids, self.agreed = every_s, tuple(microgrids), Agreed(controllers)
        self._names, self._field = tuple(devices), field
        self._trouble = trouble
        placed = {} if field is None else field.placed
        self.twins = {
            name: DeviceTwin(device)
            for name, device in devices.items()
            if name not in placed or placed[name].shadow
        }

    def work(self, time: int, given: dict[str, list[Any]]) -> None:
        (tick,), (drive,), (instructions,) = given["tick"], given["drive"], given["instructions"]
        (turns,) = given["turns"]
        self.run(tick, drive, instructions, turns)

    def run(
        self,
        tick: Tick,
        drive: Mapping[str, float],
        instructions: Mapping[str, Instruction],
        turns: Sequence[Turn] = (),
    ) -> list[DeviceReport]:
        """Deliver new instructions, then let every twin hold its point for one step."""
        field, every_s, trouble = self._field, self._every_s, self._trouble
        if trouble is not None:
            trouble.begin(tick)
        if field is not None:
            field.begin(tick, instructions, drive)
        held, outside = (field.held, field.placed) if field is not None else (frozenset(), {})
        receipts: list[Receipt] = []
        arriving = list(instructions.values())
        if trouble is not None:
            told = {name: i for name, i in instructions.items() if name in self.twins}
            arriving = trouble.mail.down(tick.time, told)
        for instruction in arriving:
            name = instruction.device
            if name in self.twins and name not in held:
                receipt = self.twins[name].receive(instruction, tick.time)
                if name not in outside:  # a real device answers for itself
                    receipts.append(receipt)
        proposals = {n: twin.propose(tick.time, drive.get(n), every_s) for n, twin in self.twins.items()}
        for name, twin in self.twins.items():
            answers = twin.answers()
            receipts += answers if name not in outside else []
        self.agreed.take(turns)
        for microgrid in self._microgrids:
            proposals |= microgrid.settle(tick, proposals, self.agreed)
        if trouble is not None:
            proposals |= self._in_spite(trouble, proposals)
        reports = {name: twin.hold(proposals[name], every_s) for name, twin in self.twins.items()}
        if field is not None and outside:
            of_twins = reports
            reports = {
                name: field.report(name, tick, of_twins.get(name)) if name in outside else of_twins[name]
                for name in self._names
            }
        exchanges = {m.microgrid.name: m.exchange(proposals, reports, drive) for m in self._microgrids}
        self.out = {name: {"report": report} for name, report in reports.items()}
        if trouble is not None:
            receipts = trouble.mail.up(tick.time, receipts)
        self.out["fleet"] = {"receipts": tuple(receipts), "exchanges": exchanges}
        return list(reports.values())

    def _in_spite(self, trouble: Trouble, proposals: Mapping[str, Proposal]) -> dict[str, Proposal]:
        """What devices hold that do not obey, or have no grid to inject into."""
        found = {}
        for fault in trouble.faults.active(What.DEVICE_DISOBEYS):
            if fault.device is not None and fault.device in self.twins:
                found[fault.device] = self.twins[fault.device].disobey(proposals[fault.device])
        if dark := trouble.dark:
            for name, twin in self.twins.items():
                if twin.device.bus in dark:
                    off = {"p_mw": 0.0, "q_mvar": 0.0, "obedience": Obedience.UNSUPPLIED}
                    found[name] = replace(proposals[name], **off)  # type: ignore[arg-type]
        return found

    def memory(self) -> object:
        """What the next step needs, for `recall`."""
        return {
            "twins": {name: twin.memory() for name, twin in self.twins.items()},
            "agreed": self.agreed.memory(),
            "microgrids": {one.microgrid.name: one.memory() for one in self._microgrids},
            "field": None if self._field is None else self._field.memory(),
        }

    def recall(self, memory: Any) -> None:
        """Go on from what `memory` of an equal fleet has returned."""
        for name, own in memory["twins"].items():
            self.twins[name].recall(own)
        self.agreed.recall(memory["agreed"])
        for one in self._microgrids:
            one.recall(memory["microgrids"][one.microgrid.name])
        if self._field is not None and memory["field"] is not None:
            self._field.recall(memory["field"])

    @property
    def counts(self) -> Counter[str]:
        """What happened to microgrids and real devices, by name."""
        own = Counter() if self._field is None else self._field.counts
        return sum((microgrid.counts for microgrid in self._microgrids), own + Counter[str]())
