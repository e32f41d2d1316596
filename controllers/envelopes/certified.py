"""Certified: envelopes that the AC power flow has been tried on before they are released.

The method shares less room than the linear model has, until the envelopes' own worst corners keep the limits
in AC (`controllers.envelopes.matching`). The remaining step, where that does not end, is to scale all
envelopes down.

| symbol | here             | meaning                                                        | unit        |
|--------|------------------|----------------------------------------------------------------|-------------|
| W_k    | `room.W`, `W`    | room of row k in the linear model, and what the method shares  | pu^2 or MVA |
| g_k    | `search.value`   | greatest AC value found of row k, its limit taken off          | pu^2 or MVA |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from controllers.contract import Certificate, Decision, Infeasible, Observation, Origin
from controllers.envelopes import matching
from controllers.envelopes.ac_check import AcCheck, RoomCheck
from controllers.envelopes.allowable import AllowableRegion
from controllers.envelopes.ascent import Search
from controllers.envelopes.beside import SLIGHT_PERCENT, SLIGHT_V_PU
from controllers.envelopes.matching import Alone
from controllers.envelopes.method import ANNOUNCE_LESS, RELIEVE, EnvelopeMethod, Envelopes, Room
from controllers.envelopes.shapes import Shapes
from controllers.site import Site

Array = npt.NDArray[np.float64]

DAMPED_AFTER = 5
"""Rounds after which a two-sided correction moves half of its way only."""
GROWTH = 2e-3
"""Relative change of size below which a two-sided correction has arrived."""
REACHED = 10.0
"""Tolerances within which a limit counts as reached."""
RETURNS = 2
"""Steps back from envelopes that hold with room to spare towards the last that did not."""
RETREAT = 0.8
"""Factor on the room of every row when a case has no AC solution, from which no error can be read."""
HALVINGS = 10
"""Steps of the bisection that scales what still fails."""
SCALINGS = 4
"""Bisections, each with the cases that defeated the one before."""


@dataclass
class Certified:
    """Envelopes of another method, corrected and checked by the AC power flow; itself a controller.

    What is certified: every device may be anywhere in its own envelope, whatever the others do, at the
    background that the forecast's mean gives (of each interval that the envelope holds for), with what the
    method reserves for forecast errors still free, and regulators at their positions. The AC voltages and
    loadings that were found then exceed no limit by more than the tolerances.

    It is a search, not a proof: the worst joint choice of corners is looked for (see
    `controllers.envelopes.ascent`), there are too many to try them all, and that the worst point is a corner
    holds nearly but not exactly. On a site of more than 100 devices the search has no AC sensitivities.

    Args:
        inner: the method.
        two_sided: whether rows on which the linear model is too careful give room as well. Larger envelopes
            for several times the power flows; without it the correction only ever tightens.
        rounds: how often the method is asked again before its envelopes are scaled down.
        tolerance_v_pu, tolerance_loading_percent: what counts as kept.
        critical: how many limits of each kind (upper voltage, lower voltage, loading) are attacked.

    Raises:
        ValueError: a site without AC power flow, or an option out of range.
        Infeasible: (step) the background alone is beyond a limit, in AC or in the linear model (whose rated
            polygon lies inside the circle), or no part of the envelopes is safe.
        ControlError: (step) what the method raises.
    """

    inner: EnvelopeMethod
    two_sided: bool = False
    rounds: int = 8
    tolerance_v_pu: float = 1e-5
    tolerance_loading_percent: float = 0.01
    critical: int = 4
    sources: tuple[str, ...] = field(init=False)
    """of the method"""
    _check: AcCheck = field(init=False, repr=False)
    _tolerance: Array = field(init=False, repr=False)
    _slight: Array = field(init=False, repr=False)
    """of what others decide"""

    def __post_init__(self) -> None:
        if not isinstance(self.inner, EnvelopeMethod):
            raise ValueError(f"certified: {type(self.inner).__name__} is no method of operating envelopes")
        if self.site.power_flow is None:
            raise ValueError(f"certified: site {self.site.name!r} has no AC power flow to check with")
        for name in ("rounds", "critical", "tolerance_v_pu", "tolerance_loading_percent"):
            if not 0 < getattr(self, name) < np.inf:
                raise ValueError(f"certified: {name} {getattr(self, name)!r} must be above 0 and finite")
        self.sources = tuple(getattr(self.inner, "sources", ()))
        self._check = check = AcCheck(self.rows, self.site.power_flow)
        low, high = self.site.limits.v_pu
        self._tolerance = np.concatenate([
            np.full(check.n, 2 * high * self.tolerance_v_pu),
            np.full(check.n, 2 * low * self.tolerance_v_pu),
            check.rating * self.tolerance_loading_percent / 100,
        ])  # fmt: skip
        self._slight = np.concatenate([
            np.full(check.n, 2 * high * SLIGHT_V_PU),
            np.full(check.n, 2 * low * SLIGHT_V_PU),
            check.rating * SLIGHT_PERCENT / 100,
        ])  # fmt: skip

    @property
    def site(self) -> Site:
        return self.inner.site

    @property
    def rows(self) -> AllowableRegion:
        return self.inner.rows

    @property
    def intervals(self) -> int:
        """How many of the coming intervals an envelope holds for."""
        return self.inner.intervals

    def step(self, observation: Observation) -> Decision:
        room = self.room(observation)
        return self.decide(observation, room, self.envelopes(room))

    def room(
        self,
        observation: Observation,
        *,
        intervals: Sequence[int] | None = None,
        gamma: Array | None = None,
        fixed: Mapping[str, Array] | None = None,
    ) -> Room:
        """See `EnvelopeMethod.room`."""
        return self.inner.room(observation, intervals=intervals, gamma=gamma, fixed=fixed)

    def shapes(self, room: Room, W: Array) -> Shapes:
        """The method's own shapes, without correction; see `EnvelopeMethod.shapes`."""
        return self.inner.shapes(room, W)

    def decide(self, observation: Observation, room: Room, found: Envelopes) -> Decision:
        """See `EnvelopeMethod.decide`."""
        return self.inner.decide(observation, room, found)

    def envelopes(self, room: Room) -> Envelopes:
        """The method's result for a room, corrected and checked.

        Raises:
            Infeasible: the background alone is beyond a limit in AC, or no part of the envelopes is safe.
        """
        check = self._check.at(room)
        alone = self._alone(check)
        search, W = self._tightened(check, alone)
        scale = 1.0
        if not self._holds(search):
            search, scale = self._scaled(check, search)
        elif self.two_sided:
            search = self._widened(check, alone, search, W)
        return self._result(room, check, search, scale)

    def _alone(self, check: RoomCheck) -> Alone:
        """AC values of the background alone, with what others decide, and with what is fixed.

        Limits that what others decide exceeds by no more than their own tolerance count as just reached, and
        under `do_no_harm` all that are exceeded do.

        Raises:
            Infeasible: the background is beyond a limit, or what is fixed takes it there.
        """
        room = check.room
        search = Search(check, self._still(room), self.critical)
        search.supports()
        if not self._holds(search):
            if room.given and (search.beyond <= self._slight).all():
                pass
            elif self.inner.when_broken != "do_no_harm" or not np.isfinite(search.beyond).all():
                raise self._refused(search, "before any device injects")
            over = search.beyond > self._tolerance
            check.relax(np.where(over, search.beyond, 0.0), search.value)
        if room.fixed.keys() - room.given.keys():
            shapes = self._shrunk(room, self.inner.shapes(room, room.W), 0.0)
            search = Search(check, shapes, self.critical)
            search.supports()
            if not self._holds(search):
                raise self._refused(search, "by envelopes that cannot be changed now", ANNOUNCE_LESS)
        return Alone(np.minimum(search.value, 0.0), np.nan_to_num(search.support))

    def _still(self, room: Room) -> Shapes:
        """Nobody injects but those whose injections others decide about."""
        corners = np.zeros((len(self.site.devices), max(map(len, room.given.values()), default=1), 2))
        for i, name in enumerate(self.site.devices):
            if name in room.given:
                given = room.given[name]
                corners[i, : len(given)], corners[i, len(given) :] = given, given[-1]
        return Shapes(corners, (None,) * len(corners))

    def _refused(self, search: Search, when: str, advice: str = RELIEVE) -> Infeasible:
        """The error that names the limit exceeded most."""
        worst = int(np.argmax(search.beyond / self._tolerance))
        return Infeasible(
            f"{self._check.name(worst)}: {self._found(search, worst)} in the AC power flow {when}; {advice}"
        )

    def _found(self, search: Search, limit: int) -> str:
        """What was found at a limit, in words."""
        beyond, n = float(search.beyond[limit]), self._check.n
        if not np.isfinite(beyond):
            return "no solution"
        if limit >= 2 * n:
            return f"{100 * beyond / self._check.rating[limit - 2 * n]:.4g} % of its rating too much"
        v_pu = self.site.limits.v_pu[1 if limit < n else 0]
        return f"{abs((v_pu**2 + (beyond if limit < n else -beyond)) ** 0.5 - v_pu):.4g} pu beyond"

    def _attacked(self, check: RoomCheck, shapes: Shapes) -> Search:
        """Look for a violation, the dearer ways only while there is none."""
        search = Search(check, shapes, self.critical)
        for attack in (search.supports, search.ascend, search.sweep):
            attack()
            if not self._holds(search):
                break
        return search

    def _holds(self, search: Search) -> bool:
        return bool((search.beyond <= self._tolerance).all())

    def _tightened(self, check: RoomCheck, alone: Alone) -> tuple[Search, Array]:
        """Ask the method for less room until its envelopes hold in AC, or the rounds are over.

        Args:
            alone: the background alone.

        Returns:
            what was tried last, and the room that it was asked with.
        """
        room = check.room
        W, error = room.W, np.zeros(len(room.W))
        search = self._attacked(check, self.inner.shapes(room, W))
        for k in range(self.rounds):
            if self._holds(search):
                break
            failed = W
            if not np.isfinite(search.beyond).all():
                W = W * RETREAT
            else:
                error = np.maximum(error, matching.error(search, alone, W, emphasis=2.0 ** max(k - 1, 0)))
                W = np.minimum(W, room.W - error) if k else np.minimum(W, matching.chord(search, alone, W))
                W = np.maximum(W, 0.0)
            if np.allclose(W, failed, rtol=1e-9, atol=1e-12):
                break  # no row's room makes a difference
            search = self._attacked(check, self.inner.shapes(room, W))
        else:
            return search, W
        if W is not room.W and self._holds(search):
            return self._eased(check, search, W, failed)
        return search, W

    def _eased(self, check: RoomCheck, held: Search, W: Array, failed: Array) -> tuple[Search, Array]:
        """Envelopes between those that hold and those that failed last, unless a limit is reached already."""
        for _ in range(RETURNS):
            if (held.beyond > -REACHED * self._tolerance).any():
                break
            middle = (W + failed) / 2
            search = self._attacked(check, self.inner.shapes(check.room, middle))
            if self._holds(search):
                held, W = search, middle
            else:
                failed = middle
        return held, W

    def _widened(self, check: RoomCheck, alone: Alone, held: Search, W: Array) -> Search:
        """The largest envelopes found by giving every row what its AC value leaves, starting from some that
        hold."""
        search, growing = held, [held]
        for k in range(self.rounds):
            W = W + (0.5 if k >= DAMPED_AFTER else 1.0) * (matching.chord(search, alone, W) - W)
            search = self._attacked(check, self.inner.shapes(check.room, W))
            if self._holds(search):
                before, now = matching.size(growing[-1]), matching.size(search)
                if now > before:
                    growing.append(search)
                if now < before * (1 + GROWTH):
                    break
        # Nothing of the linear model's own caution is left in these: they are attacked once more, harder.
        for found in reversed(growing[1:]):
            found.enumerate()
            found.sweep()
            if self._holds(found):
                return found
        return held

    def _scaled(self, check: RoomCheck, failed: Search) -> tuple[Search, float]:
        """The envelopes that failed, scaled down until they hold.

        Raises:
            Infeasible: they never do.
        """
        shapes, high = failed.shapes, 1.0
        cases = [failed.violating]
        for _ in range(SCALINGS):
            low = 0.0
            for _ in range(HALVINGS):
                middle = (low + high) / 2
                search = Search(check, self._shrunk(check.room, shapes, middle), self.critical)
                for choices, backgrounds in cases:
                    search.run(choices, backgrounds)
                if self._holds(search):
                    low = middle
                else:
                    high, failed = middle, search
            search = self._attacked(check, self._shrunk(check.room, shapes, low))
            if low > 0 and self._holds(search):
                return search, low
            if low == 0:
                break
            cases.append(search.violating)
            high, failed = low, search
        raise self._refused(failed, "however small the envelopes")

    def _shrunk(self, room: Room, shapes: Shapes, factor: float) -> Shapes:
        """Shapes scaled towards the origin, but for those that are fixed."""
        if not room.fixed:
            return shapes.shrunk(factor)
        each = np.array([1.0 if name in room.fixed else factor for name in self.site.devices])
        return replace(shapes, corners=shapes.corners * each[:, None, None], given=None)

    def _result(self, room: Room, check: RoomCheck, search: Search, scale: float) -> Envelopes:
        shapes = search.shapes
        low, high = self.site.limits.v_pu
        least, greatest = search.v_pu
        certificate = Certificate(
            worst_v_pu=least if least - low < high - greatest else greatest,
            worst_loading_percent=search.loading_percent if len(self._check.allowed) else None,
            power_flows=check.power_flows,
        )
        scaled = "" if scale == 1 else f", scaled by {scale:.3f} to hold in AC"
        certificates = tuple(
            replace(certificate, binding=text if text is None else text + scaled) for text in shapes.binding
        )
        degraded = room.broken is not None or check.relaxed(self._slight)
        origin = Origin.DEGRADED if degraded else Origin.CERTIFIED
        return Envelopes(shapes, certificates, self.inner.fairness(shapes, room), origin)
