"""An independent judge of devices' histories: were they inside a valid region, or in their fallback, always?

Written from the rules of docs/wire.md and the tables of docs/sunspec.md, with Python's json alone. It shares
no code with devices, registers or bridges. Its witnesses are the devices' own logs, and for what they were
told the messages that the run recorded (`traffic/`), or the regions in its tables.

A point that a device holds counts from its line in the log until the next one. Whatever begins or ends in
between must have been acted on within `GRACE_S`.
"""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from math import hypot
from pathlib import Path
from typing import Any

GRACE_S = 0.2
"""How late a device may be."""
AHEAD_S = 5.0
"""How far in the future an instruction may have been issued."""
NEAR = 1e-6
"""MW or Mvar outside that the arithmetic is guilty of."""
Line = Mapping[str, Any]
Region = Mapping[str, Any]
"""axes, A, b"""
Number = tuple[int, int]
"""epoch, seq"""


@dataclass(frozen=True)
class Word:
    """What a device was told for a span of time."""

    start: datetime
    end: datetime
    region: Region | None


@dataclass(frozen=True)
class Told:
    """One instruction."""

    number: Number
    issued: datetime
    words: tuple[Word, ...]
    fallback: Region

    @property
    def begins(self) -> datetime:
        return self.words[0].start

    @property
    def ends(self) -> datetime:
        return self.words[-1].end


@dataclass
class History:
    """What was found."""

    points: int = 0
    """that were held, by all devices"""
    wrong: list[str] = field(default_factory=list)
    """in words"""
    fallbacks: int = 0
    """times that a device fell back"""
    late_s: list[float] = field(default_factory=list)
    """of each: after the end of its validity"""
    applied: int = 0
    refused: int = 0

    def __iadd__(self, other: History) -> History:
        self.points += other.points
        self.wrong += other.wrong
        self.fallbacks += other.fallbacks
        self.late_s += other.late_s
        self.applied += other.applied
        self.refused += other.refused
        return self


# Witnesses


def parsed(text: str) -> Line:
    """A line of a log."""
    found: Line = json.loads(text)
    return found


def lines(log: Path) -> dict[str, list[Line]]:
    """A log by device; a line that a kill has torn is left out."""
    found: dict[str, list[Line]] = defaultdict(list)
    for text in log.read_text("utf-8").splitlines():
        try:
            line = parsed(text)
        except ValueError:
            continue
        found[line["device"]].append(line)
    return found


def told_on_bus(run: Path) -> dict[str, dict[Number, Told]]:
    """What a run has said to devices, from its recorded traffic."""
    found: dict[str, dict[Number, Told]] = defaultdict(dict)
    for file in sorted((run / "traffic").glob("*.jsonl.gz")):
        with gzip.open(file, "rt", encoding="utf-8") as packed:
            for text in packed:
                line = json.loads(text)
                if line["way"] == "out" and line["topic"].endswith("/setpoint") and line.get("payload"):
                    said = json.loads(line["payload"])
                    one = _told(said)
                    found[said["der"]][one.number] = one
    return found


def _told(said: Mapping[str, Any]) -> Told:
    later = [Word(at(x["start"]), at(x["end"]), x["region"]) for x in said.get("later", ())]
    first_ends = later[0].start if later else at(said["valid_until"])
    words = (Word(at(said["valid_from"]), first_ends, said["region"]), *later)
    return Told((said["epoch"], said["seq"]), at(said["issued"]), words, said["fallback"])


def told_in_tables(
    regions: Iterable[Mapping[str, Any]], steps: Iterable[Mapping[str, Any]]
) -> dict[str, list[Word]]:
    """What a run has decided for devices, in the time of the wall clock.

    Args:
        regions, steps: rows of these tables of the run.
    """
    behind = {row["time"]: row["planned_at"] - row["time"] for row in steps if row["planned_at"] is not None}
    found: dict[str, list[Word]] = defaultdict(list)
    for row in regions:
        shift = behind[row["issued_at"]]
        region = {"axes": row["axes"], "A": row["A"], "b": row["b"]}
        found[row["target"]].append(Word(row["valid_from"] + shift, row["valid_until"] + shift, region))
    return found


def at(text: str) -> datetime:
    """An instant as it is written."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def outside(region: Region | None, p_mw: float, q_mvar: float) -> float:
    """How far a point is outside; negative inside."""
    if region is None:
        return -1.0
    x = {"p_mw": p_mw, "q_mvar": q_mvar}
    return max(
        (sum(a * x[axis] for a, axis in zip(row, region["axes"], strict=True)) - b) / hypot(*row)
        for row, b in zip(region["A"], region["b"], strict=True)
    )


# A device on the bus


def on_bus(
    device: str,
    log: Sequence[Line],
    told: Mapping[Number, Told],
    *,
    absent: Sequence[tuple[datetime, datetime]] = (),
    until: datetime | None = None,
    default: Region | None = None,
) -> History:
    """Judge a device that was told over the bus.

    Args:
        told: all that the run has said to it.
        absent: when its process was stopped; nothing is known of it then.
        until: when its last point ends; with its line if not given.
        default: where it has to be until it has accepted something; it does what it likes if not given.
    """
    judge = _Judge(device, told, absent, default)
    for line in log:
        judge.hear(line)
    if until is not None:
        judge.end(until)
    return judge.found


class _Judge:
    def __init__(
        self,
        device: str,
        told: Mapping[Number, Told],
        absent: Sequence[tuple[datetime, datetime]],
        default: Region | None,
    ) -> None:
        self.device, self.told, self.absent, self.default = device, told, absent, default
        self.found = History()
        self.accepted: list[Told] = []
        """in the order of their numbers, each from when it was accepted"""
        self.accepted_at: dict[Number, datetime] = {}
        self.applied: Number = (-1, -1)
        self.held: Line | None = None
        self.fallen: set[Number] = set()

    def hear(self, line: Line) -> None:
        now = at(line["time"])
        if line["what"] == "held":
            self.close(now)
            self.held = line
            self.found.points += 1
            if line["regime"] == "failsafe":
                self._fell(line, now)
        elif line["what"] == "answer":
            self._answer(line, now)

    def end(self, until: datetime) -> None:
        if self.held is None and self.told:
            self._wrong(until, "nothing is known of it, and it was told something")
        self.close(until)

    def _wrong(self, now: datetime, what: str) -> None:
        self.found.wrong.append(f"{self.device} at {now:%H:%M:%S.%f}: {what}")

    def _answer(self, line: Line, now: datetime) -> None:
        number = line["epoch"], line["seq"]
        state = line["state"]
        if state == "refused":
            self.found.refused += 1
            return
        one = self.told.get(number)
        if one is None:
            self._wrong(now, f"{state} {number}, which nobody has said")
            return
        if state == "received":
            if self.accepted and number <= self.accepted[-1].number:
                self._wrong(now, f"accepted {number} after {self.accepted[-1].number}")
            if now >= one.ends:
                self._wrong(now, f"accepted {number}, which was over")
            if one.issued > now + timedelta(seconds=AHEAD_S):
                self._wrong(now, f"accepted {number} of the future")
            self.accepted.append(one)
            self.accepted_at[number] = now
        elif state == "applied":
            self.found.applied += 1
            if number <= self.applied:
                self._wrong(now, f"applied {number} after {self.applied}")
            if number not in self.accepted_at:
                self._wrong(now, f"applied {number}, which it has not accepted")
            if not one.begins <= now < one.ends:
                self._wrong(now, f"applied {number} outside its time")
            self.applied = number

    def _fell(self, line: Line, now: datetime) -> None:
        number = line["epoch"], line["seq"]
        if number in self.fallen or number not in self.told:
            return
        self.fallen.add(number)
        self.found.fallbacks += 1
        end = self.told[number].ends
        if not any(start <= now <= back + timedelta(seconds=GRACE_S) for start, back in self.absent):
            self.found.late_s.append((now - end).total_seconds())

    def close(self, now: datetime) -> None:
        """The point that was held is over now: was it right as long as it was held?"""
        line = self.held
        if line is None:
            return
        begun, grace = at(line["time"]), timedelta(seconds=GRACE_S)
        moments = {begun, begun + grace}
        for one in self.accepted:
            changes = [self.accepted_at[one.number], one.ends, *(word.start for word in one.words)]
            moments |= {moment + grace for moment in changes if begun < moment < now}
        for moment in sorted(moments):
            absent = any(start <= moment <= back + grace for start, back in self.absent)
            if moment < now and not absent:
                self._check(line, moment, begun)

    def _check(self, line: Line, now: datetime, begun: datetime) -> None:
        """A point at an instant. What is in force is the newest that has begun; within the grace after a
        change the one before may be."""
        p_mw, q_mvar = line["p_mw"], line["q_mvar"]
        allowed = [self._in_force(now), self._in_force(now - timedelta(seconds=GRACE_S))]
        if any(region is _ANYTHING for region in allowed):
            return
        by = min(outside(region, p_mw, q_mvar) for region in allowed)  # type: ignore[arg-type]
        if by > NEAR:
            self._wrong(now, f"{p_mw:.6f} MW, {q_mvar:.6f} Mvar since {begun:%H:%M:%S.%f}, {by:.2g} outside")

    def _in_force(self, now: datetime) -> object:
        begun = [
            one
            for one in self.accepted
            if one.begins <= now and self.accepted_at[one.number] <= now + timedelta(seconds=GRACE_S)
        ]
        if not begun:
            return _ANYTHING if self.default is None else self.default
        newest = begun[-1]
        if now >= newest.ends:
            return newest.fallback
        return next(word.region for word in newest.words if word.start <= now < word.end)


_ANYTHING = object()


# A device that is visited


def visited(
    device: str,
    log: Sequence[Line],
    words: Sequence[Word],
    *,
    until: datetime | None = None,
    late_s: float = 1.0,
    near: float = NEAR,
) -> History:
    """Judge a device whose registers were written: at each instant inside what was written to it last, or
    reverted and standing still; before its first control it does what it likes.

    Args:
        words: all that was decided for it, in the time of the wall clock. What is written is the newest that
            has begun then.
        until: when its last point ends; with its line if not given.
        late_s: how much later than a validity it may revert.
        near: MW or Mvar outside that the steps of its registers are guilty of.
    """
    judge = _Visits(device, sorted(words, key=lambda word: word.start), timedelta(seconds=late_s), near)
    for line in log:
        judge.hear(line)
    if until is not None:
        judge.end(until)
    return judge.found


class _Visits:
    def __init__(self, device: str, words: Sequence[Word], late: timedelta, near: float) -> None:
        self.device, self.words, self.late, self.near = device, words, late, near
        self.found = History()
        self.written: list[tuple[datetime, Word, bool]] = []
        """each write: when, what had begun last, and whether it switches that on"""
        self.held: Line | None = None
        self.led = self.reverted = False

    def hear(self, line: Line) -> None:
        now = at(line["time"])
        self.close(now)
        if line["what"] == "written":
            self._write(line, now)
        self.led = self.led or line["p_set_mw"] is not None or line["limit_mw"] is not None
        self.held = line if self.led else None
        if self.led:
            self.found.points += 1
            self._revert(line, now)

    def end(self, until: datetime) -> None:
        if self.held is None and self.words:
            self._wrong(until, "nothing is known of it, and it was told something")
        self.close(until)

    def _wrong(self, now: datetime, what: str) -> None:
        self.found.wrong.append(f"{self.device} at {now:%H:%M:%S.%f}: {what}")

    def _write(self, line: Line, now: datetime) -> None:
        begun = [word for word in self.words if word.start <= now]
        if begun:
            on = any(name.endswith("Ena") for name in line.get("points", ()))
            self.written.append((now, begun[-1], on))
        else:
            self._wrong(now, "written, and nothing had been decided")

    def _revert(self, line: Line, now: datetime) -> None:
        if line["reverted"] and not self.reverted:
            self.found.fallbacks += 1
            ends = self.written[-1][1].end if self.written else now
            self.found.late_s.append((now - ends).total_seconds())
        self.reverted = line["reverted"]
        if self.reverted and max(abs(line["p_mw"]), abs(line["q_mvar"])) > self.near:
            self._wrong(now, f"reverted, and at {line['p_mw']} MW, {line['q_mvar']} Mvar")

    def close(self, now: datetime) -> None:
        """The point that was held is over now: was it right as long as it was held?"""
        line = self.held
        if line is None or line["reverted"]:
            return
        begun = at(line["time"])
        moments = {begun + timedelta(seconds=GRACE_S)}
        if line["what"] != "written":  # between the writes of one instruction old and new may be mixed
            moments.add(begun)
        moments |= {end for _, word, _ in self.written if begun < (end := word.end + self.late)}
        for moment in sorted(moments):
            if moment < now or moment == begun:
                self._check(line, moment, begun)

    def _check(self, line: Line, now: datetime, begun: datetime) -> None:
        p_mw, q_mvar = line["p_mw"], line["q_mvar"]
        valid = [word for word in self._obeyed(now) if now < word.end + self.late]
        by = min((outside(word.region, p_mw, q_mvar) for word in valid), default=None)
        if by is None:
            self._wrong(now, f"{p_mw} MW since {begun:%H:%M:%S.%f}, and nothing was valid")
        elif by > self.near:
            self._wrong(now, f"{p_mw} MW, {q_mvar} Mvar since {begun:%H:%M:%S.%f}, {by:.2g} outside")

    def _obeyed(self, now: datetime) -> list[Word]:
        """What it may go by: what was switched on last, and whatever has been written since. What another
        one replaces may be obeyed for the grace."""
        before = now - timedelta(seconds=GRACE_S)
        on = [i for i, (when, _, on) in enumerate(self.written) if on and when <= before]
        return [word for when, word, _ in self.written[on[-1] if on else 0 :] if when <= now]


def summary(found: Mapping[str, History]) -> Iterator[str]:
    """Lines for people."""
    for name, one in found.items():
        late = f", at most {max(one.late_s):.3f} s late" if one.late_s else ""
        yield f"{name}: {one.points} points, {one.fallbacks} fallbacks{late}, {len(one.wrong)} wrong"
