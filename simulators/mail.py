"""Mail: the way of instructions to twins and of their answers back, with what faults do to it.

A twin is in the run's own process, and hears without a message; so that a fault of the bus does to it what
it would do to a device outside, its instructions go this way. Decided in one step they act in the next, and
what is delayed by less than a step comes in time all the same.

| on the way | what comes through |
|---|---|
| nothing wrong | everything, in order |
| loss, delay, duplication, reordering, slow link | what `Faults.fate` says, in the order of arrival |
| black hole, broker down or frozen | nothing; when it is over, answers and the newest valid instruction |
| device silent | nothing; when it is over, the newest valid instruction |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

from controllers.contract import Instruction
from simulators.devices import Receipt
from simulators.faults import Faults, Way

NOMINAL_BYTES = 1000
"""Of an instruction or an answer, on a slow link."""
T = TypeVar("T")


class Mail:
    """Both ways between a run and its twins."""

    def __init__(self, faults: Faults, began: datetime) -> None:
        self._faults, self._began = faults, began
        self._down: list[tuple[datetime, int, Instruction]] = []
        self._up: list[tuple[datetime, int, Receipt]] = []
        self._held: dict[str, Instruction] = {}
        self._answers: list[Receipt] = []
        self._sent = 0
        self.counts: Counter[str] = Counter()

    def down(self, now: datetime, instructions: Mapping[str, Instruction]) -> list[Instruction]:
        """What arrives at the twins at `now`, in the order of arrival.

        Args:
            instructions: decided in the step before, by device.
        """
        for name, told in instructions.items():
            if self._faults.cut(name):
                self.counts["mail-held"] += 1
                self._held[name] = told
            else:
                self._held.pop(name, None)
                for due in self._dues("down", "setpoint", name, told.issued_at):
                    self._down.append((max(due, told.issued_at), self._next(), told))
        arrived = []
        for name in [name for name in self._held if not self._faults.cut(name)]:
            told = self._held.pop(name)
            if told.valid_until > now:
                arrived.append(told)
        came, self._down = _due(self._down, now)
        for told in came:
            if self._faults.cut(told.device):
                self._held.setdefault(told.device, told)
            else:
                arrived.append(told)
        return arrived

    def up(self, now: datetime, receipts: Sequence[Receipt]) -> list[Receipt]:
        """Which answers of the twins arrive at `now`."""
        waiting, self._answers = [*self._answers, *receipts], []
        for receipt in waiting:
            if self._faults.silent(receipt.device):
                self.counts["mail-lost"] += 1
            elif self._faults.cut(receipt.device):
                self._answers.append(receipt)
            else:
                for due in self._dues("up", "ack", receipt.device, now):
                    self._up.append((due, self._next(), receipt))
        arrived, self._up = _due(self._up, now)
        return arrived

    def memory(self) -> object:
        """What the next step needs, for `recall`."""
        return tuple(self._down), tuple(self._up), dict(self._held), tuple(self._answers), self._sent

    def recall(self, memory: Any) -> None:
        """Go on from what `memory` has returned."""
        down, up, self._held, answers, self._sent = memory
        self._down, self._up, self._answers = list(down), list(up), list(answers)

    def _dues(self, way: Way, topic: str, device: str, now: datetime) -> list[datetime]:
        now_s = (now - self._began).total_seconds()
        delays = self._faults.fate("mail", way, topic, device, NOMINAL_BYTES, now_s)
        if not delays:
            self.counts["mail-lost"] += 1
        return [now + timedelta(seconds=delay) for delay in delays]

    def _next(self) -> int:
        self._sent += 1
        return self._sent


def _due(
    waiting: list[tuple[datetime, int, T]], now: datetime
) -> tuple[list[T], list[tuple[datetime, int, T]]]:
    waiting.sort(key=lambda one: one[:2])
    return [one for due, _, one in waiting if due <= now], [w for w in waiting if w[0] > now]
