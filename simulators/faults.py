"""Faults: what goes wrong in a run, when, and what becomes of a message meanwhile. Seeded and repeatable.

A fault is on in every step that begins within its window. What is drawn for a message follows from the seed,
the fault and the message's place in the row of its topic, and from nothing else: neither the machine's speed
nor other faults change it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from hashlib import blake2b
from typing import Any, Literal

from simulators.clock import Tick

Way = Literal["down", "up"]
"""From the run to the devices, or back."""
Line = Literal["mail", "message"]
"""The way of a twin, which is in the run's own process, or the bus."""


class What(StrEnum):
    """Kinds of fault."""

    LOSS = "loss"
    DELAY = "delay"
    DUPLICATION = "duplication"
    REORDERING = "reordering"
    BLACK_HOLE = "black-hole"
    BROKER_DOWN = "broker-down"
    BROKER_FROZEN = "broker-frozen"
    SLOW_LINK = "slow-link"
    DEVICE_SILENT = "device-silent"
    DEVICE_DISOBEYS = "device-disobeys"
    METER_STUCK = "meter-stuck"
    METER_BIASED = "meter-biased"
    MEASUREMENT_MISSING = "measurement-missing"
    SOLVER_INFEASIBLE = "solver-infeasible"
    SOLVER_LATE = "solver-late"
    SOLVER_RAISES = "solver-raises"
    SOLVER_NAN = "solver-nan"
    LINE_OUT = "line-out"


OF_MESSAGES = frozenset({What.LOSS, What.DELAY, What.DUPLICATION, What.REORDERING})
OF_THE_LINK = frozenset({What.BLACK_HOLE, What.BROKER_DOWN, What.BROKER_FROZEN, What.SLOW_LINK})
CUTS = OF_THE_LINK - {What.SLOW_LINK}
"""Nothing passes; when it is over, the newest of each topic does, if it is still valid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault; what does not belong to its kind is `None`."""

    number: int
    """its place in the scenario"""
    what: What
    start: datetime
    end: datetime
    """the end left out"""
    share: float | None = None
    """of the messages, or of the steps, that are hit"""
    direction: Way | None = None
    """`None`: both"""
    topic: str | None = None
    """last word of the topics that are hit, e.g. `setpoint`; `None`: all"""
    device: str | None = None
    """device or load"""
    bus: str | None = None
    controller: str | None = None
    branch: str | None = None
    by_s: float | None = None
    """delay [s]"""
    bytes_per_s: float | None = None
    v_pu: float | None = None
    """bias"""
    p_mw: float | None = None
    q_mvar: float | None = None

    def on(self, now: datetime) -> bool:
        """Whether a step that begins at `now` has it."""
        return self.start <= now < self.end

    def details(self) -> dict[str, Any]:
        """All that is known of it, for an event."""
        said = asdict(self)
        del said["what"], said["number"]
        return {"fault": self.what, "number": self.number, **{k: v for k, v in said.items() if v is not None}}

    def __str__(self) -> str:
        of = [x for x in (self.device, self.bus and f"bus {self.bus}", self.controller, self.branch) if x]
        return f"{self.what}{' of ' if of else ''}{', '.join(of)}"

    def hits(self, way: Way, topic: str, device: str) -> bool:
        """Whether it is about a message."""
        return (
            self.direction in (None, way)
            and self.topic in (None, topic)
            and (self.device is None or self.device == device)
        )


def chance(seed: int, *key: object) -> float:
    """A number in [0, 1) that follows from a seed and a key."""
    text = "\x1f".join(map(str, (seed, *key))).encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big") / 2**64


class Faults:
    """The faults of a run, and which of them are on in the step that goes on.

    Args:
        event: takes what begins and ends.
        act: told each fault that begins (True) or ends, to do what is to be done outside the simulation.
    """

    def __init__(
        self,
        faults: Sequence[Fault],
        seed: int,
        event: Callable[..., None],
        act: Callable[[Fault, bool], None] = lambda fault, began: None,
    ) -> None:
        self.all, self.seed = tuple(faults), seed
        self._event, self._act = event, act
        self._said: set[int] = set()
        self._acting: set[int] = set()
        self._drawn: Counter[tuple[str, str, str, str]] = Counter()
        self._busy: dict[tuple[str, str], float] = {}
        self.now: tuple[Fault, ...] = ()
        """those that are on"""
        self.counts: Counter[str] = Counter()

    def begin(self, tick: Tick) -> None:
        """Begin and end what is due in a step; each change is an event."""
        self.now = tuple(fault for fault in self.all if fault.on(tick.time))
        on = {fault.number for fault in self.now}
        for fault in self.all:
            number = fault.number
            if (number in on) != (number in self._acting):
                self._act(fault, number in on)
            if (number in on) != (number in self._said):
                what = "fault-began" if number in on else "fault-ended"
                self.counts[what] += 1
                why = f"{fault} {what.removeprefix('fault-')}"
                self._event(tick.time, what, step=tick.step, why=why, **fault.details())
        self._acting, self._said = set(on), set(on)

    def active(self, *kinds: What) -> Iterator[Fault]:
        """Those of some kinds that are on."""
        return (fault for fault in self.now if fault.what in kinds)

    def cut(self, device: str) -> bool:
        """Whether nothing passes between the run and a device."""
        return any(True for _ in self.active(*CUTS)) or self.silent(device)

    def silent(self, device: str) -> bool:
        """Whether a device is not heard and hears nothing."""
        return any(fault.device == device for fault in self.active(What.DEVICE_SILENT))

    def fate(
        self, line: Line, way: Way, topic: str, device: str, size: int, now_s: float, *, slowed: bool = True
    ) -> tuple[float, ...]:
        """What becomes of a message on a way that is not cut: the delays of its copies [s]; none: it is lost.

        Args:
            line: where it goes; the same is drawn for a twin and for what the bus is told of it.
            topic: its last word, e.g. `setpoint`.
            size: of the message, in bytes.
            now_s: on the clock in whose seconds the delays are.
            slowed: whether a slow link is to be counted in, and not there in fact.
        """
        self._drawn[line, way, topic, device] += 1
        number = self._drawn[line, way, topic, device]
        copies = [0.0]
        for fault in self.now:
            if fault.what not in OF_MESSAGES or not fault.hits(way, topic, device):
                continue
            if chance(self.seed, fault.number, way, topic, device, number) >= (fault.share or 0.0):
                continue
            self.counts[f"{line}-{fault.what}"] += 1
            match fault.what:
                case What.LOSS:
                    return ()
                case What.DUPLICATION:
                    copies = copies * 2
                case _:
                    copies = [delay + (fault.by_s or 0.0) for delay in copies]
        if slowed and any(self.active(What.SLOW_LINK)):
            return self._slowed(line, way, copies, size, now_s)
        return tuple(copies)

    def _slowed(
        self, line: Line, way: Way, copies: Sequence[float], size: int, now_s: float
    ) -> tuple[float, ...]:
        """Each copy waits for those before it on the same way."""
        rate = min(fault.bytes_per_s or 1.0 for fault in self.active(What.SLOW_LINK))
        found = []
        for delay in copies:
            self._busy[line, way] = max(self._busy.get((line, way), 0.0), now_s) + size / rate
            found.append(delay + self._busy[line, way] - now_s)
            self.counts[f"{line}-slow-link"] += 1
        return tuple(found)

    def memory(self) -> object:
        """What the next step needs, for `recall`."""
        return tuple(self._said), dict(self._drawn), dict(self._busy)

    def recall(self, memory: Any) -> None:
        """Go on from what `memory` has returned; what is on begins to act anew."""
        said, drawn, self._busy = memory
        self._said, self._drawn = set(said), Counter(drawn)
