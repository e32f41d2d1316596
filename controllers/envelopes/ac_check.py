"""AcCheck: what the AC power flow makes of operating points, in the words of the rows A P + B Q <= W.

| symbol | here      | meaning                                                                      | unit |
|--------|-----------|------------------------------------------------------------------------------|------|
| v      | `v2`      | squared voltage at each bus                                                  | pu^2 |
| G      | `flow`    | flow away from the substation, as long as the branch's loading of its rating | MVA  |
| S      | `allowed` | greatest length of G that the operator allows                                | MVA  |
| theta  | `angle`   | direction of each edge of the polygon that a loading's rows are made of      | rad  |

A *limit* here is one bus's upper or lower voltage, or one branch's loading, 2 n + r of them; a loading has
as many rows as the polygon has edges. G has the direction of the AC power and the length of the current (at
the worse end), so that a loading, which is a current, is compared with rows that bound a power at rated
voltage.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from controllers.envelopes.allowable import AllowableRegion
from controllers.envelopes.method import Room
from controllers.network import SLACK, PowerFlow

Array = npt.NDArray[np.float64]
Complex = npt.NDArray[np.complex128]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Answers:
    """Of one batch of power flows."""

    solved: npt.NDArray[np.bool_]
    """(cases,)"""
    v2: Array
    """(cases, n)"""
    flow: Complex
    """(cases, r)"""


class AcCheck:
    """AC power flows of a site, for points that its devices may choose.

    Raises:
        ValueError: a bus or rated branch of the network that the power flow does not have.
    """

    def __init__(self, rows: AllowableRegion, power_flow: PowerFlow) -> None:
        site = rows.site
        network, limits = site.network, site.limits
        self.rows, self._power_flow = rows, power_flow
        self.n = len(network.buses)
        rated = rows.rated
        self.allowed = network.rating_mva[rated] * limits.loading_percent / 100
        self.rating = network.rating_mva[rated]
        self.angle = rows.angles
        self.low2, self.high2 = limits.v_pu[0] ** 2, limits.v_pu[1] ** 2
        bus = {name: i for i, name in enumerate(power_flow.buses)}
        branch = {name: i for i, name in enumerate(power_flow.branches)}
        missing = [name for name in (network.slack, *network.buses) if name not in bus]
        missing += [network.branches[i] for i in rated if network.branches[i] not in branch]
        if missing:
            raise ValueError(f"AC check: the power flow does not have {', '.join(missing)}; build both alike")
        self._bus = np.array([bus[name] for name in network.buses], dtype=np.int64)
        self._branch = np.array([branch[network.branches[i]] for i in rated], dtype=np.int64)
        self._device = np.array([bus[d.bus] for d in site.devices.values()], dtype=np.int64)
        self.own_slope = _own_slope(rows)
        # Where a branch's first side is the far one, its power counts the other way round. Under equal
        # consumption everywhere all power flows away from the substation.
        p = np.zeros((1, len(power_flow.buses)))
        p[0, self._bus] = -0.01 * float(self.rating.min(initial=1.0)) / max(self.n, 1)
        self._sign = np.where(power_flow.solve(p, np.zeros_like(p)).p_mw[0, self._branch] < 0, -1.0, 1.0)

    def name(self, limit: int) -> str:
        """What a limit guards, e.g. "lower voltage at bus 17"."""
        return self.rows.names[limit]

    def rows_of(self, limits: Ints) -> Ints:
        """The rows of some limits."""
        loading = limits[limits >= 2 * self.n]
        edges = (loading + len(self.allowed) * np.arange(len(self.angle))[:, None]).ravel()
        return np.concatenate([limits[limits < 2 * self.n], edges])

    def at(self, room: Room) -> RoomCheck:
        """The same with a room's backgrounds, regulators and reserves."""
        return RoomCheck(self, self._power_flow.at(room.positions), room)

    def injections(self, room: Room) -> tuple[Array, Array]:
        """(backgrounds, buses of the power flow) P and Q that are there without the devices."""
        both = np.zeros((2, len(room.backgrounds), len(self._power_flow.buses)))
        for i, background in enumerate(room.backgrounds):
            both[0, i, self._bus], both[1, i, self._bus] = background.p_mw, background.q_mvar
        return both[0], both[1]

    def solve(self, engine: PowerFlow, p_mw: Array, q_mvar: Array, P: Array, Q: Array) -> Answers:
        """Solve for injections without devices (cases, buses) and with those of devices (cases, devices)."""
        p_mw, q_mvar = p_mw.copy(), q_mvar.copy()
        for i, bus in enumerate(self._device):
            p_mw[:, bus] += P[:, i]
            q_mvar[:, bus] += Q[:, i]
        flows = engine.solve(p_mw, q_mvar)
        power = flows.p_mw[:, self._branch] + 1j * flows.q_mvar[:, self._branch]
        length = np.abs(power)
        loading = flows.loading_percent[:, self._branch] / 100 * self.rating
        with np.errstate(divide="ignore", invalid="ignore"):
            flow = np.where(length > 0, self._sign * power / length, 1.0) * loading
        return Answers(flows.converged, flows.v_pu[:, self._bus] ** 2, flow.astype(np.complex128))


class RoomCheck:
    """How far operating points are beyond the limits of one room; what is reserved there stays free."""

    def __init__(self, check: AcCheck, engine: PowerFlow, room: Room) -> None:
        self.check, self.room, self._engine = check, room, engine
        self._p_mw, self._q_mvar = check.injections(room)
        n, r = check.n, len(check.allowed)
        self._reserve_v = room.reserve[: 2 * n]
        self._reserve = room.reserve[2 * n :].reshape(len(check.angle), r)
        self.limits = 2 * n + r
        self._allowance, self._allowance_row = np.zeros(self.limits), np.zeros(len(room.W))
        self.power_flows = 0

    def relax(self, beyond: Array, value: Array) -> None:
        """Take limits that the background alone exceeds, by `beyond` (limits,) and `value` (rows,), as just
        reached."""
        self._allowance, self._allowance_row = np.maximum(beyond, 0.0), np.maximum(value, 0.0)

    def relaxed(self, by: Array) -> bool:
        """Whether `relax` moved a limit, by more than what is given (limits,)."""
        return bool((self._allowance > by).any())

    def solve(self, P: Array, Q: Array, background: Ints) -> Answers:
        """Answers for devices' injections (cases, devices), each with one of the backgrounds (cases,)."""
        self.power_flows += len(P)
        return self.check.solve(self._engine, self._p_mw[background], self._q_mvar[background], P, Q)

    def beyond(self, answers: Answers) -> Array:
        """(cases, limits) how far each limit is exceeded [pu^2, MVA]; infinite without a solution."""
        check = self.check
        loading = np.abs(answers.flow) - check.allowed
        if self._reserve.any():
            edges = len(check.angle)  # that of the direction's sector counts
            edge = (
                np.floor(np.nan_to_num(np.angle(answers.flow)) / (2 * np.pi / edges)).astype(np.int64) % edges
            )
            loading += np.take_along_axis(self._reserve, edge, axis=0)
        out = np.concatenate([answers.v2 - check.high2, check.low2 - answers.v2, loading], axis=1)
        out[:, : 2 * check.n] += self._reserve_v
        out -= self._allowance
        out[~answers.solved] = np.inf
        return out

    def value(self, answers: Answers) -> Array:
        """(rows,) greatest AC value of each row over the solved cases, the limit taken off."""
        check = self.check
        solved = answers.solved
        if not solved.any():
            return np.full(len(self.room.W), -np.inf)
        v2, flow = answers.v2[solved], answers.flow[solved]
        inside = check.allowed * np.cos(np.pi / len(check.angle))
        edges = [(flow * np.exp(-1j * a)).real.max(axis=0) - inside for a in check.angle]
        value = np.concatenate([v2.max(axis=0) - check.high2, check.low2 - v2.min(axis=0), *edges])
        return np.asarray(value + self.room.reserve - self._allowance_row)

    def extremes(self, answers: Answers) -> tuple[float, float, float]:
        """Least and greatest voltage [pu] and loading [%] of the solved cases; 0 without rating."""
        v2, flow = answers.v2[answers.solved], answers.flow[answers.solved]
        loading = 100 * np.abs(flow) / self.check.rating
        low, high = float(v2.min(initial=np.inf)), float(v2.max(initial=0.0))
        return low**0.5, high**0.5, float(loading.max(initial=0.0))


def _own_slope(rows: AllowableRegion) -> Array:
    """(devices, 2) how the squared voltage at each device's bus follows its own P and Q, the ratios of
    transformers left out: resistance and reactance of its path; zero at the slack bus."""
    network = rows.site.network
    slope = np.zeros((len(rows.site.devices), 2))
    for i, device in enumerate(rows.site.devices.values()):
        at = network.index(device.bus)
        while at is not None and at != SLACK:
            slope[i] += network.r_pu[at], network.x_pu[at]
            at = int(network.feeder[at])
    return slope
