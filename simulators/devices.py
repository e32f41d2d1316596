"""Devices: twins of what is connected to the grid, each obeying its region, setpoint or default."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from controllers.contract import Infeasible, Instruction
from controllers.devices import Device, DeviceState
from controllers.region import Region
from simulators.agreed import Agreed
from simulators.clock import Tick
from simulators.stage import Stage
from simulators.tables import Outcome

if TYPE_CHECKING:
    from simulators.controller import Turn
    from simulators.microgrids import MicrogridTwin

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
    BALANCING = "balancing"
    """moved from what it goes by, to keep the exchange of its microgrid where it has to be"""
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


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a device would hold for the coming step, by its instruction or default."""

    p_mw: float
    q_mvar: float
    wish: float
    """active power if nobody limited it"""
    able: Region
    """what it could hold instead"""
    allowed: Region
    """the part of this that it is left by what it goes by; all of it where there is no such part"""
    obedience: Obedience


class DeviceTwin:
    """One simulated device: keeps its state, and its current instruction, whose schedule it follows."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.state: DeviceState = device.initial()
        self._current: Instruction | None = None
        self._coming: Instruction | None = None  # accepted, but not yet valid

    def receive(self, instruction: Instruction, now: datetime) -> Receipt:
        """Take an instruction unless it is old or expired."""
        begun = self._begun(now)
        last = self._coming or begun
        newer = last is None or (instruction.epoch, instruction.seq) > (last.epoch, last.seq)
        if now >= instruction.valid_until:
            outcome = Outcome.EXPIRED
        elif not newer:
            outcome = Outcome.REFUSED
        else:
            self._coming, outcome = instruction, Outcome.APPLIED
        return Receipt(instruction.device, instruction.epoch, instruction.seq, now, outcome)

    def step(self, now: datetime, drive: float | None, every_s: float) -> DeviceReport:
        """Hold the proposed operating point for `every_s` seconds from `now`."""
        return self.hold(self.propose(now, drive, every_s), every_s)

    def propose(self, now: datetime, drive: float | None, every_s: float) -> Proposal:
        """The operating point for `every_s` seconds from `now`; nothing changes yet."""
        device, instruction = self.device, self._begun(now)
        wish = device.wish(drive)
        wanted = np.array([wish, device.reactive(wish)])
        region: Region | None = device.default
        stage = Obedience.INIT
        if instruction is not None and now >= instruction.valid_until:
            stage = Obedience.FAILSAFE
        elif instruction is not None:
            stage = Obedience.CONTROLLED
            span = instruction.at(now)
            assert span is not None  # it has begun and not ended
            region = span.region
            if (target := span.setpoint) is not None:
                p_mw = wish if target.p_mw is None else target.p_mw
                wanted = np.array([p_mw, device.reactive(p_mw) if target.q_mvar is None else target.q_mvar])

        able = device.limits(self.state, drive, every_s)
        allowed = able if region is None else able & region
        try:
            point = allowed.nearest(wanted)
            if (
                stage is Obedience.CONTROLLED
                and _apart(point, wanted)
                and _apart(point, able.nearest(wanted))
            ):
                stage = Obedience.LIMITED
        except Infeasible:
            point, stage, allowed = self._closest(able, region, wanted), Obedience.UNABLE, able
        return Proposal(float(point[0]), float(point[1]), wish, able, allowed, stage)

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

    def _begun(self, now: datetime) -> Instruction | None:
        """The newest instruction whose time has come, in place of the whole schedule of the one before it,
        which holds until then."""
        if self._coming is not None and now >= self._coming.valid_from:
            self._current, self._coming = self._coming, None
        return self._current

    def _closest(self, able: Region, region: Region | None, wanted: Array) -> Array:
        """Within what it is able to, the point closest to the one it wants of the region."""
        try:
            aim = wanted if region is None else region.nearest(wanted)
        except Infeasible:  # a region without a point: closest to its default instead
            aim = self.device.default.nearest(wanted)
        try:
            return able.nearest(aim)
        except Infeasible as error:
            raise Infeasible(
                f"device {self.device.name!r}: its own limits contradict each other in state {self.state}; "
                "look at its ratings"
            ) from error


def _apart(one: Array, other: Array) -> bool:
    return bool(np.abs(one - other).max() > 1e-9)


class DevicesSimulator(Stage):
    """mosaik simulator: an entity `fleet` takes what all devices share, its children are the devices.

    Inputs of the fleet: `tick`, `drive` (values of profiles by name), `instructions` (by device) and `turns`
    (of the controllers), both from the step before. Outputs: `receipts` and `exchanges` (by microgrid) of the
    fleet, `report` of each device.

    Args:
        controllers: their names in the scenario's order, whose last word on a microgrid's plan counts.
    """

    def __init__(
        self,
        devices: Mapping[str, Device],
        every_s: float,
        microgrids: Sequence[MicrogridTwin] = (),
        controllers: Sequence[str] = (),
    ) -> None:
        super().__init__(
            "fleet",
            takes=["tick", "drive", "instructions", "turns"],
            gives=["receipts", "exchanges"],
            children=tuple(devices),
            child_gives=["report"],
        )
        self._every_s, self._microgrids, self._agreed = every_s, tuple(microgrids), Agreed(controllers)
        self.twins = {name: DeviceTwin(device) for name, device in devices.items()}

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
        receipts = tuple(
            self.twins[name].receive(instruction, tick.time)
            for name, instruction in instructions.items()
            if name in self.twins
        )
        every_s = self._every_s
        proposals = {n: twin.propose(tick.time, drive.get(n), every_s) for n, twin in self.twins.items()}
        self._agreed.take(turns)
        for microgrid in self._microgrids:
            proposals |= microgrid.settle(tick, proposals, self._agreed)
        reports = {name: twin.hold(proposals[name], every_s) for name, twin in self.twins.items()}
        exchanges = {m.microgrid.name: m.exchange(proposals, reports, drive) for m in self._microgrids}
        self.out = {name: {"report": report} for name, report in reports.items()}
        self.out["fleet"] = {"receipts": receipts, "exchanges": exchanges}
        return list(reports.values())

    @property
    def counts(self) -> Counter[str]:
        """What happened to microgrids, by name."""
        return sum((microgrid.counts for microgrid in self._microgrids), Counter())
