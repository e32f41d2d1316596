"""Drives: what drives the devices of a scenario that are in processes of their own."""

from __future__ import annotations

from scenarios.build import Built


class Drives:
    """The values of a scenario's profiles from its start on, asked in the order of time."""

    def __init__(self, built: Built) -> None:
        self._processes = [driven.process for driven in built.driven]
        self._every_s, self._last = built.scenario.every.total_seconds(), built.scenario.steps - 1
        self._step = -1

    def at(self, name: str, seconds: float) -> float | None:
        """The value of one device [per unit of its rating]; that of the last step when the scenario is over.

        Returns:
            `None` for a device without a profile.
        """
        step = min(int(seconds / self._every_s), self._last)
        if step > self._step:
            self._step = step
            for process in self._processes:
                process.advance(step)
        for process in self._processes:
            if name in process.names:
                return float(process.now()[process.names.index(name)])
        return None
