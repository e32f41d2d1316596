"""Controllers: asks each controller when it is due and turns decisions into numbered instructions."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from datetime import datetime
from types import MappingProxyType
from typing import Any

from controllers.contract import (
    ControlError,
    Decision,
    Instruction,
    Observation,
    Origin,
    memory_of,
    recall_of,
)
from controllers.forecast import Forecast
from controllers.site import Site
from simulators.clock import Duty, Tick
from simulators.decisions import Reply, ask
from simulators.devices import DeviceReport
from simulators.dispatch import Dispatch as Dispatch
from simulators.grid import Measured
from simulators.leading import Conversation
from simulators.seats import Seat as Seat
from simulators.seats import Turn as Turn
from simulators.stage import Stage

Event = Callable[..., None]
Heard = Callable[[str, Observation, Decision | BaseException], None]
"""Told what a controller was asked, and what it decided or raised."""

Read = Callable[[Tick, Measured, Sequence[DeviceReport]], tuple[Measured, Sequence[DeviceReport]]]
"""What meters show of a step."""


def _as_it_is(
    tick: Tick, measured: Measured, reports: Sequence[DeviceReport]
) -> tuple[Measured, Sequence[DeviceReport]]:
    return measured, reports


class ControllersSimulator(Stage):
    """mosaik simulator of one entity `controllers`.

    Inputs: `tick`, `measured` (grid), `forecast` (profiles), `report` (each device).
    Outputs: `turns` (one for each controller that was due, or whose word is withdrawn), `instructions` (by
    device), `positions` (by regulator: where each shall stand from the next step on). A regulator stays
    where the last word put it; of several controllers in one step the one named last counts, and each is
    told what those before it said. A leader and its followers talk until the leader has decided
    (`simulators.leading`); then each has one turn.

    A controller that raises has no decision: what it said last stays in force until it expires or a
    regulator moves, then the devices obey their defaults. Nothing a controller raises or returns ends the
    run.

    Args:
        in_thread: whether controllers are asked outside the event loop's thread.
        heard: told of what each one was asked and has said.
        read: what the meters make of what is measured.
        begins: called in each step before the first one is asked.
    """

    def __init__(
        self,
        site: Site,
        seats: Sequence[Seat],
        epoch: int,
        in_thread: bool,
        event: Event,
        heard: Heard = lambda controller, observation, said: None,
        read: Read = _as_it_is,
        begins: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(
            "controllers",
            takes=["tick", "measured", "forecast", "report"],
            gives=["turns", "instructions", "positions"],
        )
        self._site, self._seats, self._event, self._heard = site, tuple(seats), event, heard
        self._in_thread, self._begins, self._read = in_thread, begins, read
        self._by_name = {seat.name: seat for seat in self._seats}
        self._dispatch = Dispatch(site, [seat.name for seat in self._seats], epoch)
        self._degraded: set[str] = set()
        self._begun = 0.0
        """when the step's controllers began to be asked, by the monotonic clock"""
        self.counts: Counter[str] = Counter()

    @property
    def told(self) -> Mapping[str, Instruction]:
        """What each device was told last."""
        return self._dispatch.told

    def memory(self) -> object:
        """What the next step needs, for `recall`: what was decided, and what controllers remember."""
        return {
            "dispatch": self._dispatch.memory(),
            "degraded": sorted(self._degraded),
            "controllers": {seat.name: memory_of(seat.controller) for seat in self._seats},
            "out": self.out["controllers"],
        }

    def recall(self, memory: Any) -> None:
        """Go on from what `memory` has returned."""
        self._dispatch.recall(memory["dispatch"])
        self._degraded = set(memory["degraded"])
        for seat in self._seats:
            recall_of(seat.controller, memory["controllers"].get(seat.name))
        self.out["controllers"] = memory["out"]

    def work(self, time: int, given: dict[str, list[Any]]) -> Awaitable[Any] | None:
        (tick,), (measured,), (forecast,) = given["tick"], given["measured"], given["forecast"]
        reports = given.get("report", [])
        if self._in_thread:
            # A solve must not block the event loop, which keeps the MQTT connection alive.
            return asyncio.to_thread(self.run, tick, measured, forecast, reports)
        self.run(tick, measured, forecast, reports)
        return None

    def run(
        self, tick: Tick, measured: Measured, forecast: Forecast, reports: Sequence[DeviceReport]
    ) -> Mapping[str, Instruction]:
        """One step: ask whoever is due, merge, number."""
        self._begun = time.monotonic()
        if self._begins is not None:
            self._begins()
        measured, reports = self._read(tick, measured, reports)
        due = [s for s in self._seats if s.leader is None and tick.step % s.every_steps == 0]
        acts_at = tick.time + self._site.every
        turns: list[Turn] = []
        touched: set[str] = set()

        def see(seat: Seat) -> Observation:
            return self._seen(seat, tick, acts_at, measured, forecast, reports)

        for seat in due:
            for turn in self._asked(seat, tick, acts_at, see):
                self._dispatch.take(turn)
                self._tell_degraded(tick, turn)
                turns.append(turn)
                if turn.decision is not None:
                    touched |= turn.decision.regions.keys() | turn.decision.setpoints.keys()
                    touched |= {name for interval in turn.decision.later for name in interval.regions}
        turns = self._without_outdated(turns, tick, acts_at)
        self.counts.update(f"origin-{turn.origin}" for turn in turns)
        instructions = {} if tick.duty is Duty.SKIP else self._merged(tick, acts_at, touched)
        self.out["controllers"] = {
            "turns": tuple(turns),
            "instructions": instructions,
            "positions": self._dispatch.positions,
        }
        return instructions

    def _tell_degraded(self, tick: Tick, turn: Turn) -> None:
        """An event when a controller's decisions begin to be degraded, with its reason if it gives one."""
        if turn.decision is None:
            return
        if turn.origin is not Origin.DEGRADED:
            self._degraded.discard(turn.controller)
        elif turn.controller not in self._degraded:
            self._degraded.add(turn.controller)
            reasons: dict[str, list[str]] = {}
            for target, certificate in turn.decision.certificates.items():
                if certificate.binding is not None:
                    reasons.setdefault(certificate.binding, []).append(target)
            said = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
            why = f"{turn.controller}: {said or 'its decision gives no reason'}"
            self._event(tick.time, "degraded", step=tick.step, controller=turn.controller, why=why)

    def _without_outdated(self, turns: Sequence[Turn], tick: Tick, acts_at: datetime) -> list[Turn]:
        """The turns, without what is for other positions now, whether said in this step or before."""
        by_name = {turn.controller: turn for turn in turns}
        for name, said in self._dispatch.withdraw(acts_at).items():
            now = self._dispatch.positions
            moved = [f"{r} from {was} to {now[r]}" for r, was in said.positions.items() if was != now[r]]
            why = f"what it said is for other positions of the regulators, which move: {', '.join(moved)}"
            self._event(tick.time, "withdrawn", step=tick.step, controller=name, why=why)
            turn = by_name.get(name) or Turn(name, Origin.DEFAULT, None, None, acts_at, acts_at)
            by_name[name] = replace(turn, origin=Origin.DEFAULT, decision=None, withdrawn=said.decision)
        return list(by_name.values())

    def _merged(self, tick: Tick, acts_at: datetime, touched: Set[str]) -> dict[str, Instruction]:
        told, conflicts = self._dispatch.instructions(tick.step + 1, tick.time, acts_at, touched)
        for device, why in conflicts.items():
            self.counts["conflict"] += 1
            self._event(tick.time, "conflict", step=tick.step, device=device, why=why)
        return told

    def _asked(
        self, seat: Seat, tick: Tick, acts_at: datetime, see: Callable[[Seat], Observation]
    ) -> Iterator[Turn]:
        """What a controller did in this step, and those that it leads."""
        followers = [self._by_name[name] for name in seat.followers]
        if tick.duty is not Duty.FULL:
            skipped = Origin.SKIPPED if tick.duty is Duty.SKIP else None
            yield from (self._turn(one, None, None, acts_at, skipped) for one in (seat, *followers))
        elif followers:
            yield from self._talk(seat, followers, tick, acts_at, see)
        else:
            observation = see(seat)
            reply = ask(seat, observation, self._site)
            self._heard(seat.name, observation, reply.said)
            decision = None
            if isinstance(reply.said, BaseException):
                self._tell(tick, seat.name, reply.said)
            else:
                decision = reply.said
                if decision.mistake is not None:
                    self._tell(tick, seat.name, decision.mistake)
            yield self._turn(seat, decision, reply.took_ms, acts_at)

    def _talk(
        self,
        leader: Seat,
        followers: Sequence[Seat],
        tick: Tick,
        acts_at: datetime,
        see: Callable[[Seat], Observation],
    ) -> Iterator[Turn]:
        """A leader's conversation with its followers: each has one turn in the step, and one event for each
        kind of thing that it raised."""

        def put(seat: Seat, observation: Observation, within_s: float | None) -> Reply:
            return ask(seat, observation, self._site, within_s)

        found = Conversation(leader, followers, see, put, self._heard, begun=self._begun).hold()
        for (name, _), (what, times) in found.raised.items():
            self._tell(tick, name, what, times)
        self.counts["conversations"] += 1
        self.counts["conversation-turns"] += found.turns
        for counts in found.missing.values():
            self.counts["conversation-missing"] += counts.total()
            self.counts["conversation-stale"] += counts["stale"]
        missing = {name: dict(sorted(counts.items())) for name, counts in found.missing.items()}
        said = {"turns": found.turns, "ended": found.ended, "missing": missing}
        why = f"{leader.name}: {found.why}"
        self._event(tick.time, "conversation", step=tick.step, controller=leader.name, why=why, **said)
        for seat in (leader, *followers):
            yield self._turn(seat, found.said.get(seat.name), found.took_ms.get(seat.name), acts_at)

    def _turn(
        self,
        seat: Seat,
        decision: Decision | None,
        took_ms: float | None,
        acts_at: datetime,
        rule: Origin | None = None,
    ) -> Turn:
        """One controller's turn in the step.

        Args:
            rule: which one spoke, where it is neither the controller nor what it said last.
        """
        until = acts_at + seat.valid_for
        if decision is not None:
            until = decision.intervals(acts_at, until)[-1].end
            return Turn(seat.name, decision.origin, took_ms, decision, acts_at, until)
        quiet = Origin.HELD if self._dispatch.holds(seat.name, acts_at) else Origin.DEFAULT
        return Turn(seat.name, rule or quiet, took_ms, None, acts_at, until)

    def _seen(
        self,
        seat: Seat,
        tick: Tick,
        acts_at: datetime,
        measured: Measured,
        forecast: Forecast,
        reports: Sequence[DeviceReport],
    ) -> Observation:
        """What a controller observes, as far as it may."""
        heard = [r for r in reports if r.silent_since is None]
        seen = Observation(
            time=tick.time,
            forecast=forecast,
            v_pu=MappingProxyType(measured.v_pu),  # the recorder reads the same one
            p_mw={**measured.load_p_mw, **measured.exchange_p_mw, **{r.device: r.p_mw for r in heard}},
            q_mvar={
                **measured.load_q_mvar,
                **measured.exchange_q_mvar,
                **{r.device: r.q_mvar for r in heard},
            },
            e_mwh={r.device: r.e_mwh for r in heard if r.e_mwh is not None},
            silent_since={r.device: r.silent_since for r in reports if r.silent_since is not None},
            regions=self._dispatch.regions(besides=seat.name, at=acts_at),
            positions=MappingProxyType(dict(self._dispatch.positions)),
            said=MappingProxyType(self._dispatch.said(besides=seat.name, at=acts_at)),
            connected=MappingProxyType(measured.connected),
        )
        return seen if seat.sight is None else seat.sight.observation(seen)

    def _tell(self, tick: Tick, name: str, what: BaseException | str, times: int = 1) -> None:
        """Count, and an event, of what a controller raised, or of the mistake that its fallback covered."""
        more = {} if times == 1 else {"times": times}
        if isinstance(what, ControlError):
            self.counts[what.outcome] += times
            self._event(tick.time, what.outcome, step=tick.step, controller=name, why=str(what), **more)
        else:
            why = what if isinstance(what, str) else f"{type(what).__name__}: {what}"
            self.counts["controller-raised"] += times
            self._event(tick.time, "controller-raised", step=tick.step, controller=name, why=why, **more)
