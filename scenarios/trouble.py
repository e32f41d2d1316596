"""Trouble: the faults of one run, brought to all that they act on."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from bridges.bus import Bus
from bridges.faulty import FaultyBus
from bridges.tapped import Way
from scenarios.build import Built
from scenarios.link import Link
from simulators.clock import Clock, Tick
from simulators.faults import CUTS, Faults
from simulators.mail import Mail
from simulators.meters import Meters
from simulators.outage import Outages


class Trouble:
    """What goes wrong in a run; itself the weather of its bus.

    Args:
        link: to the broker, if there is one.
        event: takes what begins and ends.
    """

    def __init__(self, built: Built, clock: Clock, link: Link, event: Callable[..., None]) -> None:
        scenario = built.scenario
        self._clock, self._link, self._start = clock, link, scenario.start
        self._now_s = 0.0
        self.faults = Faults(built.faults, scenario.seed, event, link.act)
        self.mail = Mail(self.faults, scenario.start)
        self.meters = Meters(self.faults)
        self.outages = Outages(self.faults, built.engine, built.outages)
        self._bus: FaultyBus | None = None

    def around(self, bus: Bus) -> Bus:
        """A bus with this weather."""
        self._bus = FaultyBus(bus, self, self.seconds, wakes=self._clock.paced)
        return self._bus

    def seconds(self) -> float:
        """The bus's clock: the wall's, or the simulated time of the step that goes on."""
        return time.monotonic() if self._clock.paced else self._now_s

    def begin(self, tick: Tick) -> None:
        """Begin and end what is due in a step."""
        self._now_s = (tick.time - self._start).total_seconds()
        self.faults.begin(tick)

    @property
    def dark(self) -> frozenset[str]:
        """Buses of the grid without supply."""
        return self.outages.now()[1]

    # bridges.faulty.Weather

    @property
    def cut(self) -> bool:
        """See `bridges.faulty.Weather`. Where there is a broker, that is cut, and not the messages."""
        return not self._link.real and any(True for _ in self.faults.active(*CUTS))

    def held(self, way: Way, topic: str) -> bool:
        """See `bridges.faulty.Weather`."""
        if self.cut:
            return True
        return way == "out" and self.faults.silent(_place(topic)[0])

    def fate(self, way: Way, topic: str, size: int) -> tuple[float, ...]:
        """See `bridges.faulty.Weather`."""
        device, word = _place(topic)
        if way == "in" and self.faults.silent(device):
            return ()
        factor = self._clock.factor if self._clock.paced else 1.0
        copies = self.faults.fate(
            "message",
            "down" if way == "out" else "up",
            word,
            device,
            size,
            self.seconds() * factor,
            slowed=not self._link.real,
        )
        return tuple(delay / factor for delay in copies)

    # What is kept

    @property
    def counts(self) -> Counter[str]:
        """What happened, by name."""
        own = self.faults.counts + self.mail.counts
        if self._bus is not None:
            own.update({f"faulty-{name}": n for name, n in self._bus.happened.items() if n})
        return own

    def memory(self) -> object:
        """What the next step needs, for `recall`."""
        return {
            "faults": self.faults.memory(),
            "mail": self.mail.memory(),
            "meters": self.meters.memory(),
        }

    def recall(self, memory: Any) -> None:
        """Go on from what `memory` has returned."""
        self.faults.recall(memory["faults"])
        self.mail.recall(memory["mail"])
        self.meters.recall(memory["meters"])


def _place(topic: str) -> tuple[str, str]:
    """Device or gateway, and the word of what it is about."""
    levels = topic.split("/")
    if len(levels) > 6 and levels[5] == "batch":
        return levels[4], "batch"
    return (levels[4], levels[5]) if len(levels) > 5 else ("", levels[-1])
