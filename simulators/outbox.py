"""Outbox: hands each step's instructions to the outside and takes in what devices answered."""

from __future__ import annotations

import asyncio
import time as wall_time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from controllers.contract import Instruction, Kind
from simulators.clock import Clock, Duty, Tick
from simulators.devices import Receipt
from simulators.seats import Turn
from simulators.stage import Stage


class Withheld(Exception):
    """An instruction is not to leave; the reason is counted."""


class Outlet(Protocol):
    """Where instructions leave the co-simulation; see `bridges.publisher`.

    `send` raises `Withheld` for devices that are told nothing, and ValueError for what cannot be sent. What
    it keeps for gateways leaves with `send_kept`, which says what of that cannot be sent, and why.
    """

    def send(self, instruction: Instruction, ttl_s: float) -> None: ...
    def send_kept(self) -> list[tuple[Instruction, str]]: ...
    def announce(self, turn: Turn, area: str, seq: int, issued_at: datetime, ttl_s: float) -> datetime: ...
    def retract(self, area: str, kind: Kind) -> None: ...
    def heartbeat(self, step: int, period_s: float, next_deadline: datetime) -> None: ...
    async def flush(self, timeout_s: float) -> bool: ...
    def receipts(self, now: datetime) -> list[Receipt]: ...


@dataclass(frozen=True, slots=True)
class _Announced:
    """What the bus keeps about an area."""

    controller: str
    until: datetime
    """it holds no longer"""


@dataclass(frozen=True, slots=True)
class Published:
    """What left in one step, and what came in."""

    publish_ms: float | None
    """`None`: nothing was to be sent"""
    receipts: tuple[Receipt, ...] = ()
    """answers of devices outside the co-simulation"""
    instructions: tuple[Instruction, ...] = ()
    unsent: tuple[Instruction, ...] = ()
    """decided, but the bus does not take them"""


class OutboxSimulator(Stage):
    """mosaik simulator of one entity `outbox`, the last one in a step.

    Inputs: `tick`, `instructions`, `turns`, `kept` (the step is on disk). Output: `done`, the step is over.

    Of the turns, it announces what was said anew about areas, each once. What holds no more is retracted: it
    is withdrawn, its controller has decided anew and does not mention the area, or its time is over. What
    still holds when the run ends stays, as instructions do, until the broker lets it expire.

    A paced step waits for the broker's acknowledgement for half a period at most. An un-paced step
    waits for that of the step before, so that sending overlaps with computing and no message is
    overtaken by its successor.
    """

    PATIENCE_S = 5.0
    """longest wait for the broker in an un-paced step"""

    def __init__(
        self,
        outlet: Outlet,
        clock: Clock,
        event: Callable[..., None],
        sent: Callable[[Tick, Published], None] = lambda tick, published: None,
    ) -> None:
        takes = ["tick", "instructions", "turns", "kept"]
        super().__init__("outbox", takes=takes, gives=["done"])
        self._outlet, self._clock, self._event, self._sent = outlet, clock, event, sent
        self._reachable = True
        self._announced: dict[tuple[str, Kind], _Announced] = {}
        self.counts: Counter[str] = Counter()

    async def work(self, time: int, given: dict[str, list[Any]]) -> None:
        (tick,), (instructions,), (turns,) = given["tick"], given["instructions"], given["turns"]
        published = await self.run(tick, tuple(instructions.values()), turns)
        if self._clock.paced:
            # Sealing a long journal takes a fraction of a second, in which MQTT must go on.
            await asyncio.to_thread(self._sent, tick, published)
        else:
            self._sent(tick, published)
        self.out["outbox"] = {"done": tick.step}

    async def run(
        self, tick: Tick, instructions: tuple[Instruction, ...], turns: Sequence[Turn] = ()
    ) -> Published:
        """Send one step's instructions, and what was said about areas."""
        started = wall_time.perf_counter()
        receipts = tuple(self._outlet.receipts(tick.time))
        if tick.duty is Duty.SKIP:
            return Published(None, receipts)
        clock = self._clock
        if not clock.paced or not self._reachable:
            # A broker that was away is asked before there is something new that it cannot have yet.
            await self._flush(tick, self.PATIENCE_S)
        speed = clock.factor if clock.paced else 1.0
        sent, unsent = [], []
        for instruction in instructions:
            ttl = (instruction.valid_until - instruction.issued_at).total_seconds() / speed
            try:
                self._outlet.send(instruction, ttl)
            except Withheld as withheld:
                unsent.append(instruction)
                self.counts[str(withheld)] += 1
            except ValueError as error:  # e.g. a region of so many rows that no message holds it
                unsent.append(instruction)
                self._unsendable(tick, instruction, str(error))
            else:
                sent.append(instruction)
        for instruction, why in self._outlet.send_kept():
            sent.remove(instruction)
            unsent.append(instruction)
            self._unsendable(tick, instruction, why)
        self.counts["instructions-sent"] += len(sent)
        self.announce(tick, turns, speed)
        self._beat(tick)
        if clock.paced and self._reachable:
            await self._flush(tick, clock.period_s / 2)
        took_ms = (wall_time.perf_counter() - started) * 1e3
        return Published(took_ms, receipts, tuple(sent), tuple(unsent))

    def announce(self, tick: Tick, turns: Sequence[Turn], speed: float) -> None:
        """Say what was said of areas in the turns of a step, or withdraw it."""
        over = {key for key, kept in self._announced.items() if kept.until <= tick.time}
        for turn in turns:
            if turn.decision is None and turn.withdrawn is None:
                continue  # what it said before goes on
            over |= {key for key, kept in self._announced.items() if kept.controller == turn.controller}
            if (said := turn.decision) is None or said.kind not in (Kind.PIC, Kind.AIC):
                continue
            ttl_s = (turn.valid_until - tick.time).total_seconds() / speed
            for area in said.regions:
                try:
                    until = self._outlet.announce(turn, area, tick.step + 1, tick.time, ttl_s)
                except ValueError as error:
                    self.counts["unsendable"] += 1
                    self._event(tick.time, "unsendable", step=tick.step, area=area, why=str(error))
                else:
                    self.counts["areas-sent"] += 1
                    self._announced[area, said.kind] = _Announced(turn.controller, until)
                    over.discard((area, said.kind))
        for area, kind in sorted(over):
            self._outlet.retract(area, kind)
            del self._announced[area, kind]
            self.counts["areas-retracted"] += 1

    def _beat(self, tick: Tick) -> None:
        clock = self._clock
        try:
            self._outlet.heartbeat(tick.step, clock.period_s, clock.on_wall(tick.time + clock.every))
        except ValueError as error:  # one that is missing makes devices look for the run, and ends none
            self.counts["unsendable"] += 1
            self._event(tick.time, "unsendable", step=tick.step, why=f"heartbeat: {error}")

    def _unsendable(self, tick: Tick, instruction: Instruction, why: str) -> None:
        self.counts["unsendable"] += 1
        self._event(tick.time, "unsendable", step=tick.step, device=instruction.device, why=why)

    async def _flush(self, tick: Tick, patience_s: float) -> None:
        # While the broker is away one step's wait is enough: the newest values go out by themselves.
        reached = await self._outlet.flush(patience_s if self._reachable else 0.0)
        if not reached:
            self.counts["bus-unreachable"] += 1
        if reached != self._reachable:
            self._reachable = reached
            self._event(tick.time, "bus-reachable" if reached else "bus-unreachable", step=tick.step)
