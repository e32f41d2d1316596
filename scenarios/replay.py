"""Replay: ask the controllers of a run again, offline, what they were asked then, and compare their answers.

What each was asked is in the run's traffic, to the last bit (`scenarios.traffic`); so no grid, device or bus
is needed. Asked in the same order, the same controllers give the same answers. Those of another scenario are
asked what the run's controllers of the same names were; nothing that they say changes what is observed next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from bridges import conversation
from bridges.wire import BadMessage
from controllers.contract import Controller, memory_of, recall_of
from controllers.fallback import Fallback
from controllers.site import Site
from scenarios.build import build
from scenarios.check import validate
from scenarios.load import Draft
from scenarios.plain import difference
from scenarios.resume import recorded
from scenarios.schema import HERE
from scenarios.traffic import TRAFFIC, BadTraffic, lines
from simulators.deadline import Deadline
from simulators.decisions import decide
from simulators.faulty import FaultyController
from simulators.journal import NoTables, batches
from simulators.seats import Seat

KEPT = 3
"""Steps after which it is known what a controller remembered: a run that is killed forgets its last one."""


class NothingToReplay(Exception):
    """The run recorded no traffic, or it is not what was written."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Where an answer is another one than it was."""

    step: int
    controller: str
    what: str
    """e.g. `regions.pv6.b.0 was 0.7, is 0.6`"""


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay has found."""

    asked: int
    """answers that were compared"""
    different: int
    first: Difference | None
    unasked: Mapping[str, int]
    """why others were not compared -> how many"""
    unrecorded: int
    """steps in which controllers were asked and of which no file says what"""


def replay(
    path: Path,
    draft: Draft | None = None,
    *,
    differs: Callable[[Difference], None] = lambda one: None,
    stop_at_first: bool = False,
) -> Replayed:
    """Ask again what a run asked.

    Args:
        path: the run's folder.
        draft: of a scenario with other controllers; the run's own if not given.
        differs: told of each difference.
        stop_at_first: whether to end with the first difference.

    Raises:
        CannotResume: no run's folder, or a manifest that is not what was written.
        NothingToReplay: it has no traffic, or one that is damaged.
        ScenarioInvalid: of the other scenario.
    """
    _, _, own, _ = recorded(path)
    draft = draft or own
    if not (path / TRAFFIC).is_dir():
        raise NothingToReplay(
            f"{path} has no recorded traffic; it is recorded with the clocks live and scaled, or with "
            "--set record.bus=true"
        )
    scenario = validate(draft)
    built = build(draft, scenario)
    apart = {part.name for part in scenario.controllers if part.process != HERE}
    seats = {seat.name: replace(seat, controller=_untimed(seat.controller)) for seat in built.seats}
    try:
        return _Replay(seats, apart, built.site, differs).through(lines(path), _asked_in(path), stop_at_first)
    except BadTraffic as error:
        raise NothingToReplay(f"{error}; what it held cannot be asked again") from None


def _asked_in(path: Path) -> set[int]:
    """Steps of a run in which controllers were asked."""
    try:
        tables = [batch.to_pydict() for batch in batches(path, "steps", ["step", "solve_ms"])]
    except NoTables:  # killed before the first one
        return set()
    except (pa.ArrowException, OSError) as error:
        raise NothingToReplay(f"{path}: the table 'steps' is damaged: {error}") from None
    rows = [row for table in tables for row in zip(table["step"], table["solve_ms"], strict=True)]
    return {step for step, solve_ms in rows if solve_ms is not None}


class _Replay:
    def __init__(
        self, seats: Mapping[str, Seat], apart: Set[str], site: Site, differs: Callable[[Difference], None]
    ) -> None:
        self._seats, self._apart, self._site, self._differs = seats, apart, site, differs
        self._memories = {name: deque[tuple[int, object]](maxlen=KEPT) for name in seats}
        self._fresh = {name: memory_of(seat.controller) for name, seat in seats.items()}

    def through(self, said: Iterator[dict[str, Any]], asked_in: Set[int], stop_at_first: bool) -> Replayed:
        asked = different = 0
        on_record: set[int] = set()
        first: Difference | None = None
        unasked: dict[str, int] = {}
        for line in said:
            if line["way"] == "resumed":
                self._back_to(line["after_step"])
                continue
            if line["way"] not in ("asked", "unwritten"):
                continue
            on_record.add(line["step"])
            if (why := self._unasked(line)) is not None:
                unasked[why] = unasked.get(why, 0) + 1
                continue
            found = self._ask(line)
            asked += 1
            if found is not None:
                different += 1
                first = first or found
                self._differs(found)
                if stop_at_first:
                    break
        left_out = stop_at_first and first is not None
        missing = {step for step in asked_in - on_record if not left_out or step < max(on_record)}
        return Replayed(asked, different, first, unasked, len(missing))

    def _unasked(self, line: dict[str, Any]) -> str | None:
        """Why an answer is not to be compared."""
        if line["way"] == "unwritten":
            return "could not be written down"
        if line["late"]:
            return "hung on the clock: a deadline had passed"
        if line["controller"] not in self._seats:
            return f"are of {line['controller']!r}, which the other scenario does not have"
        return None

    def _ask(self, line: dict[str, Any]) -> Difference | None:
        name, step = line["controller"], line["step"]
        controller = self._seats[name].controller
        try:
            _, observation = conversation.asked(msgspec.json.encode(line["ask"]))
            was = _plain(line["answer"])
        except (BadMessage, LookupError, TypeError, AttributeError) as error:
            raise BadTraffic(f"what {name} was asked in step {step} is damaged: {error}") from None
        try:
            seat = self._seats[name]
            said = decide(controller, observation, self._site, to=seat.listeners)
            answer = conversation.answer(name, said)
        except BaseException as error:  # as in the run: whatever it raises is its answer
            answer = conversation.answer(name, error)
        remembered = self._memories[name]
        # Who leads or is led is asked several times in a step.
        if remembered and remembered[-1][0] == step:
            remembered.pop()
        remembered.append((step, memory_of(controller)))
        now = _plain(msgspec.json.decode(answer))
        if ("complaint" in was) != ("complaint" in now):
            what: str | None = f"{_did(was)}, now {_did(now)}"
        else:
            what = difference(was, now, names=("the run", "the new answer"))
        return None if what is None else Difference(step, name, what)

    def _back_to(self, step: int) -> None:
        """Controllers remember what they did after a step, as in a run that went on from there; those in
        other processes nothing."""
        for name, seat in self._seats.items():
            known = [] if name in self._apart else [one for one in self._memories[name] if one[0] <= step]
            self._memories[name] = deque(known, maxlen=KEPT)
            recall_of(seat.controller, known[-1][1] if known else self._fresh[name])


def _plain(answer: dict[str, Any]) -> dict[str, Any]:
    """What counts of an answer: the decision, or which kind of complaint, whose words may be others."""
    if (complaint := answer.get("complaint")) is not None:
        return {"complaint": complaint["outcome"] or complaint["what"]}
    found: dict[str, Any] = answer["decision"]
    return found


def _did(answer: dict[str, Any]) -> str:
    return f"complained ({answer['complaint']})" if "complaint" in answer else f"decided ({answer['origin']})"


def _untimed(controller: Controller) -> Controller:
    """Without its deadline, and without a fault that takes its time: nobody waits."""
    if isinstance(controller, Fallback):
        return replace(controller, first=_untimed(controller.first), second=_untimed(controller.second))
    if isinstance(controller, Deadline):
        return _untimed(controller.inner)
    if isinstance(controller, FaultyController):
        return replace(controller, sleep=lambda seconds: None)
    return controller
