"""A leader and its followers for tests: a total is split among units by asking what each gives at a price.

    min sum_i a_i p_i + b_i p_i^2 / 2   s.t.  sum_i p_i = total        p_i(price) = (price - a_i) / b_i
    price* = (total + sum_i a_i / b_i) / sum_i 1 / b_i

The leader knows neither a_i nor b_i: it halves an interval of prices, one turn each, and remembers the last
price for the next step. It asks nothing more of who has been silent for `patience` turns, and splits among
the others.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

from controllers.contract import Decision, Late, Observation, Origin, Setpoint, Word
from controllers.forecast import Forecast
from controllers.roles import Sight, answers, question
from controllers.site import Site

LOW, HIGH = 0.0, 200.0
"""Prices between which the answer lies [$/MWh]."""
WAITS_AT = 10
"""Minute of the step in which a follower with a pipe in its folder waits, in its sixth turn."""


def total_mw(observation_minute: int, base_mw: float) -> float:
    """What is to be split in a step."""
    return base_mw * (1 + observation_minute / 120)


def split(total: float, units: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """The closed form [MW]."""
    price = (total + sum(a / b for a, b in units.values())) / sum(1 / b for _, b in units.values())
    return {name: (price - a) / b for name, (a, b) in units.items()}


@dataclass
class Seeker:
    """Leads."""

    site: Site
    followers: Mapping[str, str]
    base_mw: float = 0.2
    patience: int = 3
    warm: bool = True
    asks_on: bool = False
    """whether it never decides"""
    seen: list[Observation] = field(default_factory=list, init=False, repr=False)
    _price: float | None = field(default=None, init=False)
    _low: float = field(default=LOW, init=False)
    _high: float = field(default=HIGH, init=False)
    _silent: dict[str, int] = field(default_factory=dict, init=False)
    _agreed: bool = field(default=False, init=False)
    _number: int = field(default=0, init=False)
    sources: ClassVar[tuple[str, ...]] = ("ours",)

    @property
    def sight(self) -> Sight:
        return Sight.operator(self.site)

    def step(self, observation: Observation) -> Decision:
        self.seen.append(observation)
        if observation.turn == 0:
            self._low, self._high, self._silent, self._agreed = LOW, HIGH, {}, False
            if observation.turns_left == 0:
                raise Late("nothing is agreed")
            return self._ask(observation, self._price if self.warm and self._price is not None else 100.0)
        said = answers(observation)
        for name in self._present():
            self._silent[name] = 0 if name in said else self._silent.get(name, 0) + 1
        present = self._present()
        if self.asks_on:
            return self._ask(observation, self._price or 0.0)
        if not present or (observation.turns_left == 0 and not self._agreed):
            raise Late("nothing is agreed")
        complete = all(name in said for name in present)
        if observation.turns_left == 0 or (self._agreed and complete):
            return Decision(time=observation.time, origin=Origin.OPTIMAL)
        assert self._price is not None
        if not complete or self._agreed:
            return self._ask(observation, self._price)  # the same question, in a turn of its own
        given = sum(said[name].values["p_mw"][0] for name in present)
        if given < total_mw(observation.time.minute, self.base_mw):
            self._low = self._price
        else:
            self._high = self._price
        self._agreed = self._high - self._low < 1e-9 or observation.turns_left <= 2
        return self._ask(observation, (self._low + self._high) / 2)

    def _present(self) -> list[str]:
        return [name for name in self.followers.values() if self._silent.get(name, 0) < self.patience]

    def _ask(self, observation: Observation, price: float) -> Decision:
        self._price, self._number = price, self._number + 1
        what = "agreed" if self._agreed else "price"
        word = Word(number=self._number, what=what, values={"price": (price,)})
        words = dict.fromkeys(self._present(), word)
        return Decision(time=observation.time, origin=Origin.OPTIMAL, words=words)

    def memory(self) -> dict[str, Any]:
        return {"price": self._price, "number": self._number}

    def recall(self, memory: Mapping[str, Any]) -> None:
        self._price, self._number = memory["price"], memory["number"]


@dataclass
class Giver:
    """Follows: one microgrid's only device. `trouble`, called with how often it was asked and the word, may
    raise or wait, and returns by how much its answer's number is off."""

    site: Site
    microgrid: str
    a: float
    b: float
    folder: str | None = None
    """in which it leaves its process's number (`mg1-123.pid`) and looks for a pipe (`mg1.pipe`)"""
    asked: int = field(default=0, init=False)
    trouble: Callable[[int, Word], int] | None = field(default=None, init=False, repr=False)
    seen: list[Observation] = field(default_factory=list, init=False, repr=False)
    follows: ClassVar[bool] = True
    _step: datetime | None = field(default=None, init=False)
    _in_step: int = field(default=0, init=False)
    """how often it was asked in it"""

    def __post_init__(self) -> None:
        if self.folder is not None:
            Path(self.folder, f"{self.microgrid}-{os.getpid()}.pid").touch()

    @property
    def sight(self) -> Sight:
        return Sight.microgrid(self.site, self.microgrid)

    def step(self, observation: Observation) -> Decision:
        self.asked += 1
        self.seen.append(observation)
        heard = question(observation)
        if heard is None:
            return self._set(observation, 0.0)  # alone: it exchanges nothing
        leader, word = heard
        off = 0 if self.trouble is None else self.trouble(self.asked, word)
        self._in_step = self._in_step + 1 if observation.time == self._step else 1
        self._step = observation.time
        if self.folder is not None and observation.time.minute == WAITS_AT and self._in_step == 6:
            self._wait(Path(self.folder, f"{self.microgrid}.pipe"))
        p_mw = (word.values["price"][0] - self.a) / self.b
        answer = Word(number=word.number + off, what="gives", values={"p_mw": (p_mw,)})
        if word.what == "agreed":
            return self._set(observation, p_mw, {leader: answer})
        return Decision(time=observation.time, origin=Origin.OPTIMAL, words={leader: answer})

    def _wait(self, pipe: Path) -> None:
        """Wait until somebody writes into a pipe, where there is one."""
        if pipe.exists():
            pipe.read_bytes()

    def _set(
        self, observation: Observation, p_mw: float, words: Mapping[str, Word] | None = None
    ) -> Decision:
        (device,) = self.site.microgrids[self.microgrid].devices
        plan = Forecast(observation.time, self.site.every, (self.microgrid,), [[p_mw]], [[0.0]])  # type: ignore[arg-type]
        return Decision(
            time=observation.time,
            origin=Origin.OPTIMAL,
            setpoints={device: Setpoint(p_mw=p_mw, q_mvar=0.0)},
            plan=plan,
            words=words or {},
        )


UNITS = {"mg1": (71.2539, 130.6255), "mg2": (64.8173, 171.4427), "mg3": (80.3391, 98.7713)}
"""a, b: nobody else is to hear these digits."""
DEVICES = {"mg1": ("bat13", 13), "mg2": ("bat21", 21), "mg3": ("bat28", 28)}


def scenario(folder: Path, more: str = "", *, process: str = "here", controllers: str = "") -> Path:
    """A scenario file in which the three microgrids split a total in each of four steps.

    Args:
        more: further sections.
        process: where the followers compute; `{}` stands for each one's name. In one of their own they leave
            word in the folder: see `Giver`.
        controllers: further ones.
    """
    grids = [f"  - {{name: {n}, bus: {bus}, devices: [{d}], tie_mw: 0.4}}" for n, (d, bus) in DEVICES.items()]
    where = "" if process == "here" else f", folder: '{folder}'"
    followers = [
        f"  - {{name: f{i}, uses: 'tests.leading_pair:Giver', process: {process.format(f'f{i}')},"
        f" options: {{microgrid: {name}, a: {a}, b: {b}{where}}}}}"
        for i, (name, (a, b)) in enumerate(UNITS.items(), 1)
    ]
    lines = [
        *("extends: ieee33-quick", "name: pair", "expect: []", "steps: 4"),
        *("grid: {engine: power-grid-model}", "devices:"),
        "  - {name: bat28, kind: battery, bus: 28, p_mw: 0.6, e_mwh: 2.4, profile: trading}",
        *("microgrids:", *grids, "controllers:"),
        "  - {name: lead, uses: 'tests.leading_pair:Seeker',",
        "     options: {followers: {mg1: f1, mg2: f2, mg3: f3}}}",
        *followers,
    ]
    file = folder / "pair.yaml"
    file.write_text("\n".join(lines) + "\n" + controllers + more)
    return file
