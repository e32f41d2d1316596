"""Profiles: what nature and customers do, and what can be known of it beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from controllers.forecast import Forecast
from simulators.clock import Tick
from simulators.stage import Stage

Array = npt.NDArray[np.float64]


class Process(Protocol):
    """Per-unit values of some sites, step by step; see `simulators.processes`."""

    names: tuple[str, ...]

    def advance(self, step: int) -> None: ...
    def now(self) -> Array: ...
    def forecast(self, intervals: int) -> tuple[Array, Array]: ...


@dataclass(frozen=True)
class Driven:
    """A process and the rating [MW] of each of its sites; negative for a load."""

    process: Process
    rating_mw: Array


class ProfilesSimulator(Stage):
    """mosaik simulator of one entity `profiles`: outputs `drive` (per unit by name) and `forecast`.

    The forecast of step k holds what the processes know at step k and nothing later.
    """

    def __init__(self, driven: Sequence[Driven], every: timedelta, intervals: int) -> None:
        super().__init__("profiles", takes=["tick"], gives=["drive", "forecast"])
        self._driven, self._every, self._intervals = tuple(driven), every, intervals
        self._names = tuple(name for d in self._driven for name in d.process.names)
        self._rating = np.concatenate([d.rating_mw for d in self._driven]) if driven else np.zeros(0)

    def work(self, time: int, given: dict[str, list[Any]]) -> None:
        (tick,) = given["tick"]
        self.run(tick)

    def run(self, tick: Tick) -> Forecast:
        """Move every process to the tick's step and issue the forecast of that moment."""
        for d in self._driven:
            d.process.advance(tick.step)
        if not self._driven:
            forecast = Forecast.empty(tick.time, self._every)
            self.out["profiles"] = {"drive": {}, "forecast": forecast}
            return forecast
        values = np.concatenate([d.process.now() for d in self._driven])
        drive = dict(zip(self._names, values.tolist(), strict=True))
        known = [d.process.forecast(self._intervals) for d in self._driven]
        forecast = Forecast(
            tick.time,
            self._every,
            self._names,
            np.hstack([mean for mean, _ in known]) * self._rating,
            np.hstack([std for _, std in known]) * np.abs(self._rating),
        )
        self.out["profiles"] = {"drive": drive, "forecast": forecast}
        return forecast
