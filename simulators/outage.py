"""Outage: the grid with branches open, told in the buses and branches of the whole grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from controllers.network import Flows, PowerFlow
from simulators.faults import Fault, Faults, What

Array = npt.NDArray[np.float64]


@dataclass(eq=False)
class Outage:
    """A `PowerFlow` of what is still supplied; what is not has no voltage and no flow.

    Injections at buses without supply are not asked for: nothing that is there injects or consumes.
    """

    inner: PowerFlow
    """of the grid with the branches open; its buses and branches are some of the whole grid's"""
    buses: tuple[str, ...]
    """of the whole grid"""
    branches: tuple[str, ...]

    @property
    def unsupplied(self) -> frozenset[str]:
        """Buses that no path connects to the source."""
        return frozenset(self.buses) - frozenset(self.inner.buses)

    def at(self, positions: Mapping[str, int]) -> Outage:
        """See `controllers.network.PowerFlow`."""
        return Outage(self.inner.at(positions), self.buses, self.branches)

    def solve(self, p_mw: Array, q_mvar: Array) -> Flows:
        """See `controllers.network.PowerFlow`; NaN where there is no supply."""
        bus, branch = _places(self.buses, self.inner.buses), _places(self.branches, self.inner.branches)
        found = self.inner.solve(np.asarray(p_mw)[:, bus], np.asarray(q_mvar)[:, bus])
        cases = len(found.converged)

        def spread(values: Array, at: npt.NDArray[np.int64], size: int) -> Array:
            whole = np.full((cases, size), np.nan)
            whole[:, at] = values
            return whole

        return Flows(
            found.converged,
            spread(found.v_pu, bus, len(self.buses)),
            spread(found.p_mw, branch, len(self.branches)),
            spread(found.q_mvar, branch, len(self.branches)),
            spread(found.loading_percent, branch, len(self.branches)),
        )


class Outages:
    """The grid of a run, whose lines may be open.

    Args:
        whole: the grid as it was built.
        by_open: what is left of it, by the branches that are open together.
    """

    def __init__(self, faults: Faults, whole: PowerFlow, by_open: Mapping[frozenset[str], Outage]) -> None:
        self._faults, self._whole, self._by_open = faults, whole, by_open

    @property
    def opened(self) -> frozenset[str]:
        """Branches that are open now."""
        return frozenset(fault.branch for fault in self._faults.active(What.LINE_OUT) if fault.branch)

    def now(self) -> tuple[PowerFlow, frozenset[str]]:
        """The power flow of the step that goes on, and the buses that are without supply."""
        if not (opened := self.opened):
            return self._whole, frozenset()
        found = self._by_open[opened]
        return found, found.unsupplied


def together(faults: Sequence[Fault]) -> frozenset[frozenset[str]]:
    """Which branches are open at the same time, each set once."""
    out = [fault for fault in faults if fault.what is What.LINE_OUT]
    found = (frozenset(f.branch for f in out if f.branch and f.on(one.start)) for one in out)
    ends = (frozenset(f.branch for f in out if f.branch and f.on(one.end)) for one in out)
    return frozenset(opened for opened in (*found, *ends) if opened)


def _places(whole: Sequence[str], part: Sequence[str]) -> npt.NDArray[np.int64]:
    place = {name: i for i, name in enumerate(whole)}
    return np.array([place[name] for name in part], dtype=np.int64)
