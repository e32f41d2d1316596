"""Rolling: announced ahead, tightened with notice, safe whichever schedule each device holds."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controllers import (
    Decision,
    Forecast,
    Infeasible,
    Interval,
    Observation,
    Origin,
    PvInverter,
    Region,
    Site,
    SolverFailed,
)
from controllers.devices import still
from controllers.envelopes.allowable import AllowableRegion
from controllers.envelopes.announced import Announced, Memory, Together
from controllers.envelopes.certified import Certified
from controllers.envelopes.equal_boxes import EqualBoxes
from controllers.envelopes.equal_polygons import EqualPolygons
from controllers.envelopes.equal_ranges import EqualRanges
from controllers.envelopes.method import EnvelopeMethod, Envelopes, Room, WhenBroken
from controllers.envelopes.polygons import common, convex, within
from controllers.envelopes.rolling import Rolling
from controllers.envelopes.shapes import hull
from controllers.fairness import Ledger, jain
from tests.envelope_cases import NOON, STEP, s3

Array = npt.NDArray[np.float64]
SITE = s3()
NAMES = tuple(SITE.devices)


def seen(
    step: int, scales: Sequence[float] | float = 0.5, *, present: Sequence[str] = NAMES, intervals: int = 6
) -> Observation:
    """At `step`, with each coming interval's load at one of `scales` times its nominal power."""
    given_ = [scales] * intervals if isinstance(scales, float) else list(scales)
    mean = np.array([[scale * load.p_mw for load in SITE.loads.values()] for scale in given_])
    at = NOON + step * STEP
    return Observation(
        time=at,
        forecast=Forecast(at, STEP, tuple(SITE.loads), mean, np.zeros_like(mean)),
        p_mw=MappingProxyType(dict.fromkeys((*present, *SITE.loads), 0.0)),
    )


def spans(decision: Decision) -> list[Interval]:
    """The whole schedule of a decision."""
    first = decision.time + STEP
    until = decision.later[0].start if decision.later else first + STEP
    return [
        Interval(start=first, end=until, regions=decision.regions, certificates=decision.certificates),
        *decision.later,
    ]


def export(region: Region) -> float:
    return region.limits("p_mw")[1]


def bits(region: Region) -> bytes:
    return region.A.tobytes() + region.b.tobytes()


def widths(decision: Decision, name: str = "der1") -> list[float]:
    return [export(span.regions[name]) for span in spans(decision)]


@dataclass
class Moody:
    """A method that shares by other weights each time it is asked, and counts how often."""

    inner: EnvelopeMethod | Certified
    seed: int = 0
    asked: list[tuple[datetime, tuple[int, ...]]] = field(default_factory=list)

    @property
    def site(self) -> Site:
        return self.inner.site

    def weights(self, observation: Observation, intervals: Sequence[int] | None) -> Array:
        step = (observation.time - NOON) // STEP
        rng = np.random.default_rng([self.seed, step, *(intervals or ())])
        return np.exp(rng.normal(0, 1, len(self.site.devices)))

    def room(
        self,
        observation: Observation,
        *,
        intervals: Sequence[int] | None = None,
        gamma: Array | None = None,
        fixed: Mapping[str, Array] | None = None,
    ) -> Room:
        self.asked.append((observation.time, tuple(intervals or ())))
        weights = self.weights(observation, intervals)
        return self.inner.room(observation, intervals=intervals, gamma=weights, fixed=fixed)

    def envelopes(self, room: Room) -> Envelopes:
        return self.inner.envelopes(room)

    def decide(self, observation: Observation, room: Room, found: Envelopes) -> Decision:
        return self.inner.decide(observation, room, found)


@dataclass
class Forgetful:
    """Publishes the method's answer for each interval and remembers nothing."""

    inner: Moody
    intervals: int

    def step(self, observation: Observation) -> Decision:
        said = []
        for k in range(self.intervals):
            room = self.inner.room(observation, intervals=[k])
            decision = self.inner.decide(observation, room, self.inner.envelopes(room))
            start = observation.time + (k + 1) * STEP
            said.append(Interval(start=start, end=start + STEP, regions=decision.regions))
        return replace(decision, regions=said[0].regions, later=tuple(said[1:]), certificates={})


# The schedule


def test_T16_intervals_follow_each_other_exactly() -> None:
    rolling = Rolling(EqualRanges(SITE), intervals=6)
    for step in range(3):
        decision = rolling.step(seen(step))
        schedule = spans(decision)
        assert [s.start for s in schedule] == [NOON + (step + 1 + k) * STEP for k in range(6)]
        assert [s.end for s in schedule[:-1]] == [s.start for s in schedule[1:]]
        assert all(s.regions.keys() == SITE.devices.keys() == s.certificates.keys() for s in schedule)


def test_each_interval_has_the_methods_own_envelope_for_its_forecast() -> None:
    scales = [0.3, 0.4, 0.5, 0.6, 0.5, 0.4]
    decision = Rolling(EqualRanges(SITE), intervals=6).step(seen(0, scales))
    for scale, span in zip(scales, spans(decision), strict=True):
        alone = EqualRanges(SITE).step(seen(0, scale, intervals=1))
        for name, region in alone.regions.items():
            assert span.regions[name].limits("p_mw") == pytest.approx(region.limits("p_mw"), abs=1e-12)


def test_what_was_announced_comes_to_the_bit() -> None:
    rolling = Rolling(EqualBoxes(SITE), intervals=4)
    scales = [0.5, 0.45, 0.4, 0.5, 0.55, 0.5, 0.45]
    before = spans(rolling.step(seen(0, scales[:4])))
    after = spans(rolling.step(seen(1, scales[1:5])))
    for old, new in zip(before[1:], after[:-1], strict=True):
        assert {n: bits(r) for n, r in old.regions.items()} == {n: bits(r) for n, r in new.regions.items()}


def test_the_forecast_bounds_the_horizon() -> None:
    rolling = Rolling(EqualRanges(SITE), intervals=12)
    assert len(rolling.step(seen(0, intervals=3)).later) == 2
    blind = Observation(time=NOON, forecast=Forecast.empty(NOON, STEP))
    assert Rolling(EqualRanges(s3()), intervals=12).step(blind).later == ()


def test_asked_again_it_says_the_same_and_an_earlier_time_begins_anew() -> None:
    rolling = Rolling(Moody(EqualRanges(SITE)), intervals=4)
    rolling.step(seen(0))
    one, two = rolling.step(seen(1)), rolling.step(seen(1))
    assert [bits(s.regions["der1"]) for s in spans(one)] == [bits(s.regions["der1"]) for s in spans(two)]
    rolling.step(seen(2))
    fresh = Rolling(Moody(EqualRanges(SITE)), intervals=4).step(seen(1))
    again = rolling.step(seen(1))
    assert [bits(s.regions["der1"]) for s in spans(fresh)] == [bits(s.regions["der1"]) for s in spans(again)]


# Tighten with notice, relax at once


@pytest.mark.parametrize("notice", [1, 2, 3])
def test_a_tighter_envelope_is_announced_and_a_wider_one_counts_at_once(notice: int) -> None:
    rolling = Rolling(EqualRanges(SITE), intervals=6, locked=0, notice=notice)
    usual = widths(rolling.step(seen(0, 0.5)))
    tighter = rolling.step(seen(1, 0.4))  # less load: less export
    low = export(EqualRanges(SITE).step(seen(0, 0.4, intervals=1)).regions["der1"])
    assert low < usual[0] - 0.01
    assert widths(tighter) == pytest.approx([usual[0]] * notice + [low] * (6 - notice))
    assert tighter.origin is Origin.DEGRADED  # the network has no room for what it announced
    first, last = spans(tighter)[0].certificates["der1"], spans(tighter)[-1].certificates["der1"]
    assert "announced too late to be tightened: upper voltage at bus" in (first.binding or "")
    assert "announced" not in (last.binding or "")


def test_within_the_lock_nobody_gets_less_for_another() -> None:
    rolling = Rolling(Moody(EqualRanges(SITE)), intervals=6, locked=3, notice=1)
    before = spans(rolling.step(seen(0)))
    lessened = 0
    for step in range(1, 5):
        after = spans(rolling.step(seen(step)))
        for k, (old, new) in enumerate(zip(before[1:], after[:-1], strict=True)):
            for name in NAMES:
                less = not within(old.regions[name].vertices(), new.regions[name])
                assert not (less and k < 3)
                lessened += less
        before = after
    assert lessened  # beyond the lock the method shares anew


def test_the_lock_gives_way_to_the_network_after_the_notice() -> None:
    rolling = Rolling(EqualRanges(SITE), intervals=6, locked=4, notice=1)
    usual = widths(rolling.step(seen(0, 0.5)))
    found = widths(rolling.step(seen(1, 0.4)))
    assert found[0] == pytest.approx(usual[0])
    assert (np.array(found[1:]) < usual[0] - 0.01).all()


# Safe whichever schedule each device holds


@dataclass
class Field:
    """Devices behind links that fail: each follows the newest schedule that reached it."""

    received: dict[str, list[list[Interval]]] = field(default_factory=lambda: {name: [] for name in NAMES})
    retained: dict[str, list[Interval]] = field(default_factory=dict)

    def reach(self, name: str) -> None:
        """The link is up: the broker hands over what it retains."""
        if name in self.retained and self.retained[name] not in self.received[name]:
            self.received[name].append(self.retained[name])

    def region(self, name: str, at: datetime) -> Region:
        begun = [schedule for schedule in self.received[name] if schedule[0].start <= at]
        for span in begun[-1] if begun else []:
            if span.start <= at < span.end:
                return span.regions[name]
        return SITE.devices[name].default


def worst_row(field_: Field, at: datetime, scale: float) -> float:
    """By how much the regions that devices really go by could exceed a row together; by vertices."""
    rows = AllowableRegion(SITE)
    W = rows.W(*rows.background({load.name: scale * load.p_mw for load in SITE.loads.values()}))
    for i, name in enumerate(NAMES):
        corners = field_.region(name, at).vertices()
        W = W - (rows.A[:, i, None] * corners[:, 0] + rows.B[:, i, None] * corners[:, 1]).max(axis=1)
    return float(-W.min())


Excess = Callable[[Field, datetime, float], float]


def ac_excess(field_: Field, at: datetime, scale: float) -> float:
    """The same in the AC power flow [pu, or a tenth of the rating]: all devices at their vertices of one
    direction, and at random ones."""
    rng, power_flow = np.random.default_rng(0), SITE.power_flow
    assert power_flow is not None
    bus = {name: i for i, name in enumerate(power_flow.buses)}
    angle = np.linspace(0, 2 * np.pi, 64)
    directions = np.column_stack([np.cos(angle), np.sin(angle)])
    p, q = np.zeros((400, len(bus))), np.zeros((400, len(bus)))
    for load in SITE.loads.values():
        p[:, bus[load.bus]] += scale * load.p_mw
        q[:, bus[load.bus]] += load.reactive(scale * load.p_mw)
    for name, device in SITE.devices.items():
        corners = field_.region(name, at).vertices()
        together_ = (directions @ corners.T).argmax(axis=1)
        chosen = corners[np.concatenate([together_, rng.integers(len(corners), size=400 - 64)])]
        p[:, bus[device.bus]] += chosen[:, 0]
        q[:, bus[device.bus]] += chosen[:, 1]
    flows, (low, high) = power_flow.solve(p, q), SITE.limits.v_pu
    loading = float(np.nanmax(flows.loading_percent)) - SITE.limits.loading_percent
    return max(float(flows.v_pu.max()) - high, low - float(flows.v_pu.min()), loading / 1000)


def day_with_losses(
    controller: Any,
    links: Sequence[Sequence[bool]],
    arrives: Array,
    scales: Array,
    excess: Excess = worst_row,
) -> float:
    """The greatest excess of a row in any interval.

    Args:
        links: by step and device, whether the device is heard and gets what is retained for it.
        arrives: (steps, devices) below 0.5 where a decision reaches it at once, if the link is up.
        scales: (steps + horizon,) load in each interval, as all forecasts of it say.
    """
    devices = Field()
    worst = -np.inf
    for step, up in enumerate(links):
        present = [name for name, there in zip(NAMES, up, strict=True) if there]
        for name in present:
            devices.reach(name)
        worst = max(worst, excess(devices, NOON + step * STEP, scales[step]))
        decision = controller.step(seen(step, list(scales[step + 1 : step + 7]), present=present))
        assert decision.origin in {Origin.OPTIMAL, Origin.CERTIFIED}
        schedule = spans(decision)
        for i, name in enumerate(NAMES):
            told = [span for span in schedule if name in span.regions]
            if told:
                devices.retained[name] = told
                if up[i] and arrives[step, i] < 0.5:
                    devices.reach(name)
    return worst


def losses(seed: int, steps: int = 16) -> tuple[list[list[bool]], Array, Array]:
    """Links that fail for some steps each; everybody is heard in the first step."""
    rng = np.random.default_rng(seed)
    up = np.ones((steps, len(NAMES)), dtype=bool)
    for i in range(len(NAMES)):
        for _ in range(2):
            begin = int(rng.integers(1, steps))
            up[begin : begin + int(rng.integers(1, 9)), i] = False
    return up.tolist(), rng.random(up.shape), rng.uniform(0.3, 0.6, steps + 7)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("locked", "notice"), [(2, 1), (0, 0), (4, 3)])
def test_whichever_schedules_devices_hold_they_are_safe_together(seed: int, locked: int, notice: int) -> None:
    rolling = Rolling(Moody(EqualRanges(SITE), seed), intervals=6, locked=locked, notice=notice)
    assert day_with_losses(rolling, *losses(seed)) <= 1e-5


@pytest.mark.parametrize(
    "method", [EqualBoxes(SITE), EqualPolygons(SITE, corners=8)], ids=lambda m: m.acronym
)
def test_so_are_shapes_that_are_no_ranges(method: EnvelopeMethod) -> None:
    for seed in range(2):
        assert day_with_losses(Rolling(Moody(method, seed), intervals=6), *losses(seed, 9)) <= 1e-5


def test_so_are_certified_ones_in_the_ac_power_flow() -> None:
    inner = Moody(Certified(EqualBoxes(SITE, price=False)))
    rolling = Rolling(inner, intervals=6, recertify=3)
    assert day_with_losses(rolling, *losses(0, 8), excess=ac_excess) <= 2e-5
    linear = Rolling(Moody(EqualBoxes(SITE, price=False)), intervals=6)
    assert day_with_losses(linear, *losses(0, 8), excess=ac_excess) > 1e-4  # so this can fail


def test_without_memory_the_same_losses_break_limits() -> None:
    """So the check above can fail."""
    excess = [day_with_losses(Forgetful(Moody(EqualRanges(SITE), s), 6), *losses(s)) for s in range(4)]
    assert max(excess) > 1e-3


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 10_000), st.sampled_from(["0 steps", "1 step", "4 steps"]), st.sampled_from([None, 2, 3])
)
def test_no_patience_and_no_thrift_changes_that(seed: int, patience: str, recertify: int | None) -> None:
    moody = Moody(EqualRanges(SITE), seed)
    rolling = Rolling(moody, intervals=6, silent_after=patience, recertify=recertify)
    assert day_with_losses(rolling, *losses(seed, 10)) <= 1e-5


# Silent devices


def silence(rolling: Rolling, steps: int, name: str = "der3") -> list[Decision]:
    """Decisions of steps 0, 1, ...; the device is heard in step 0 alone."""
    others = [other for other in NAMES if other != name]
    return [rolling.step(seen(k, 0.5, present=NAMES if k == 0 else others)) for k in range(steps)]


def test_a_silent_device_is_told_nothing_and_keeps_its_part_until_its_default() -> None:
    rolling = Rolling(EqualRanges(SITE), intervals=4)
    decisions = silence(rolling, 8)
    told = [["der3" in span.regions for span in spans(decision)] for decision in decisions]
    assert told == [[True] * 4] * 3 + [[False] * 4] * 5  # silent for longer than 2 steps from step 3 on
    # its last instruction, of step 2, ends with interval 2 + 4: then its part is free, at once
    usual, alone = widths(decisions[0])[0], widths(decisions[7])[0]
    weight = np.array([SITE.devices[name].weight for name in NAMES])
    use = np.maximum(AllowableRegion(SITE).A, 0)
    assert alone > usual + 0.01
    assert [w > usual + 0.01 for w in widths(decisions[3])] == [False, False, False, True]
    assert [w > usual + 0.01 for w in widths(decisions[4])] == [False, False, True, True]
    assert widths(decisions[6])[0] == pytest.approx(alone)
    # by hand: the row that limits the others, with and without its default of zero
    rows = AllowableRegion(SITE)
    W = rows.W(*rows.background({load.name: 0.5 * load.p_mw for load in SITE.loads.values()}))
    for gamma, width in ((weight, usual), (np.where(np.array(NAMES) == "der3", 0, weight), alone)):
        taken = use @ gamma
        room = (W[taken > 1e-9] / taken[taken > 1e-9]).min()
        assert width == pytest.approx(room * SITE.devices["der1"].weight, rel=1e-9)


def test_what_a_silent_device_may_hold_is_named_in_the_certificates() -> None:
    last = silence(Rolling(EqualRanges(SITE), intervals=4), 4)[-1]
    for span in spans(last):
        for certificate in span.certificates.values():
            assert "not heard since 12:00:00 UTC and counted as told: der3" in (certificate.binding or "")


def test_a_device_that_comes_back_is_served_again() -> None:
    rolling = Rolling(EqualRanges(SITE), intervals=4)
    silence(rolling, 7)
    back = rolling.step(seen(7))
    assert all("der3" in span.regions for span in spans(back))
    assert "not heard" not in (back.certificates["der1"].binding or "")
    # the others were told more meanwhile: what is theirs within the lock stays theirs for that time
    usual = widths(Rolling(EqualRanges(SITE), intervals=4).step(seen(0)))[0]
    assert widths(back)[0] > usual + 0.01
    later = rolling.step(seen(8))
    assert widths(later)[-1] == pytest.approx(usual)


def test_who_was_never_heard_is_served() -> None:
    rolling = Rolling(EqualRanges(SITE), intervals=3)
    for step in range(5):
        assert rolling.step(seen(step, present=NAMES[:2])).regions.keys() == SITE.devices.keys()


def test_everybody_may_fall_silent() -> None:
    rolling = Rolling(EqualRanges(SITE), intervals=3)
    rolling.step(seen(0))
    for step in range(1, 9):
        decision = rolling.step(seen(step, present=()))
    assert (decision.regions, decision.certificates) == ({}, {})


def together(start: datetime, box: tuple[float, float]) -> Together:
    region = Region.box(p_mw=box, q_mvar=(-0.1, 0.1))
    return Together(
        start=start,
        end=start + STEP,
        corners={"a": region.vertices()},
        regions={"a": region},
        certificates={},
        ranges_mw={},
        available_mw={},
        origin=Origin.OPTIMAL,
        fairness=None,
        silent=frozenset(),
    )


def test_what_a_device_may_hold_is_everything_that_may_have_reached_it() -> None:
    def at(k: int) -> datetime:
        return NOON + k * STEP

    announced = tuple(
        Announced(at(k), (together(at(k + 1), (0, top)), together(at(k + 2), (-low, 0)))) for k, top, low in
        ((0, 1, 2), (1, 3, 4), (2, 5, 6))
    )  # fmt: skip
    memory = Memory(Ledger(("a",)), {"a": at(1)}, announced)
    default = np.array([[7.0, 0.0]])

    def reach(k: int) -> tuple[float, float]:
        corners = memory.holds("a", at(k), at(k + 1), STEP, default)
        return corners[:, 0].min(), corners[:, 0].max()

    # heard in step 1, it had that of step 0 for certain; those of steps 1 and 2 may have reached it
    assert reach(2) == pytest.approx((-2, 7))  # -2 of step 0, 3 of step 1, or the default before 2 begins
    assert reach(3) == pytest.approx((-4, 7))
    assert reach(9) == pytest.approx((7, 7))
    heard = replace(memory, heard={"a": at(3)})
    assert heard.holds("a", at(3), at(4), STEP, default)[:, 0].tolist() == pytest.approx([0, 5, 5, 0])
    kept = heard.with_announced(Announced(at(3), (together(at(4), (0, 8)),)), ("a",), STEP)
    assert [a.issued_at for a in kept.announced] == [at(2), at(3)]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=12))
def test_the_convex_polygon_around_points(points: list[tuple[int, int]]) -> None:
    given_ = np.array(points, dtype=float)
    corners = convex(given_)
    assert {tuple(c) for c in corners.tolist()} <= set(points)
    angles = np.linspace(0, 2 * np.pi, 33)
    directions = np.column_stack([np.cos(angles), np.sin(angles)])
    assert (directions @ corners.T).max(axis=1) == pytest.approx((directions @ given_.T).max(axis=1))
    assert within(given_, hull(corners))
    if len(corners) > 2:
        x, y = corners.T
        assert (x * np.roll(y, -1) - y * np.roll(x, -1)).sum() > 0  # counter-clockwise


def test_what_polygons_have_in_common() -> None:
    def square(x: float) -> tuple[Array, Region]:
        region = Region.box(p_mw=(x, x + 2), q_mvar=(0, 1))
        return region.vertices(), region

    assert common(square(0), square(1))[1].limits("p_mw") == pytest.approx((1, 2))
    assert common(square(0), square(5))[1].limits("p_mw") == pytest.approx((0, 2))


# No answer


def test_T12_an_interval_without_room_ends_the_schedule_and_says_why() -> None:
    rolling = Rolling(EqualRanges(SITE), intervals=6)
    decision = rolling.step(seen(0, [0.5, 0.5, 0.5, 60.0, 0.5, 0.5]))
    assert len(spans(decision)) == 3
    assert decision.origin is Origin.OPTIMAL
    binding = spans(decision)[-1].certificates["der1"].binding or ""
    assert "no envelope from 12:20:00 UTC on: loading of line" in binding
    assert "no envelope" not in (decision.certificates["der1"].binding or "")


def test_T12_without_room_what_was_announced_stands_for_the_notice_and_then_there_is_an_error() -> None:
    rolling = Rolling(EqualRanges(SITE), intervals=6, notice=2)
    rolling.step(seen(0))
    held = rolling.step(seen(1, 60.0))
    assert held.origin is Origin.DEGRADED
    assert len(spans(held)) == 2
    assert widths(held) == pytest.approx(widths(rolling.step(seen(1, 60.0))))
    assert len(spans(rolling.step(seen(2, 60.0)))) == 1
    with pytest.raises(Infeasible, match="broken by"):
        rolling.step(seen(3, 60.0))
    assert rolling.step(seen(4)).origin is Origin.OPTIMAL  # it recovers by itself


def test_T12_at_once_without_room_there_is_an_error_and_no_memory_of_it() -> None:
    rolling = Rolling(EqualRanges(SITE), intervals=6)
    with pytest.raises(Infeasible):
        rolling.step(seen(0, 60.0))
    fresh = Rolling(EqualRanges(SITE), intervals=6).step(seen(1))
    assert widths(rolling.step(seen(1))) == widths(fresh)


BEFORE = r"broken by [\d.]+ with the envelopes that were announced before; keep back more for forecast errors"


def test_without_room_it_says_whether_the_background_or_what_was_announced_is_to_blame() -> None:
    wide = {"der1": np.array([[-50.0, 0.0], [50.0, 0.0]])}
    strict, kind = EqualRanges(SITE), EqualRanges(SITE, when_broken="do_no_harm")
    with pytest.raises(Infeasible, match=BEFORE):
        strict.room(seen(0), fixed=wide)
    for fixed in (None, wide):
        with pytest.raises(Infeasible, match=r"before any device injects; relieve the network or widen"):
            strict.room(seen(0, 60.0), fixed=fixed)
    assert kind.room(seen(0, 60.0)).broken is not None
    with pytest.raises(Infeasible, match=BEFORE):  # what the background does is forgiven
        kind.room(seen(0, 60.0), fixed=wide)


def test_degraded_decisions_say_that_too_much_was_announced() -> None:
    rolling = Rolling(EqualRanges(SITE), intervals=6)
    rolling.step(seen(0))
    worse = rolling.step(seen(1, 0.8))
    assert worse.origin is Origin.DEGRADED
    binding = worse.certificates["der1"].binding or ""
    assert re.search(f"announced too late to be tightened: .*{BEFORE}", binding), binding
    assert "before any device injects" not in binding


class Tired(Moody):
    """Its solver fails for the intervals named, from the second step on."""

    def __init__(self, *intervals: int) -> None:
        super().__init__(EqualRanges(SITE))
        self.fails = intervals

    def room(self, observation: Observation, *, intervals: Sequence[int] | None = None, **more: Any) -> Room:
        if observation.time > NOON and set(self.fails) & set(intervals or ()):
            raise SolverFailed("too slow today")
        return super().room(observation, intervals=intervals, **more)


def test_where_the_solver_fails_what_was_announced_stands() -> None:
    rolling = Rolling(Tired(3), intervals=6, locked=0)
    before = spans(rolling.step(seen(0)))
    after = spans(rolling.step(seen(1)))
    assert after[3].regions == before[4].regions
    assert "not looked at again: too slow today" in (after[3].certificates["der1"].binding or "")
    assert len(after) == 6
    rolling = Rolling(Tired(5), intervals=6)
    rolling.step(seen(0))
    assert len(spans(rolling.step(seen(1)))) == 5  # nothing was announced for the last one
    rolling = Rolling(Tired(0), intervals=6)
    rolling.step(seen(0))
    with pytest.raises(SolverFailed):  # the devices go on with their schedules; nobody tells them anew
        rolling.step(seen(1))


# Thrift


def test_only_the_next_few_are_computed_anew() -> None:
    moody = Moody(EqualRanges(SITE))
    rolling = Rolling(moody, intervals=6, locked=0, notice=0, recertify=2)
    before = spans(rolling.step(seen(0)))
    moody.asked.clear()
    after = spans(rolling.step(seen(1)))
    assert {asked for _, asked in moody.asked} == {(0,), (1,), (5,)}
    for k in (2, 3, 4):
        assert after[k].regions == before[k + 1].regions


def test_who_falls_silent_is_looked_at_in_every_interval() -> None:
    moody = Moody(EqualRanges(SITE))
    rolling = Rolling(moody, intervals=5, recertify=2, silent_after="0 steps")
    rolling.step(seen(0))
    moody.asked.clear()
    rolling.step(seen(1, present=NAMES[1:]))
    assert {asked for _, asked in moody.asked} == {(k,) for k in range(5)}


# Certified


def test_a_certified_method_stays_certified() -> None:
    rolling = Rolling(Certified(EqualBoxes(SITE)), intervals=3)
    first, second = rolling.step(seen(0)), rolling.step(seen(1))
    assert first.origin is second.origin is Origin.CERTIFIED
    for span in spans(second):
        for certificate in span.certificates.values():
            assert certificate.power_flows > 0
            assert certificate.worst_v_pu is not None
    alone = Certified(EqualBoxes(SITE)).step(seen(0))
    assert first.regions["der1"].limits("p_mw") == pytest.approx(alone.regions["der1"].limits("p_mw"))


def test_what_is_kept_beside_a_certificate_is_inside_it() -> None:
    """A device falls silent: the others' boxes are certified beside what it may hold."""
    rolling = Rolling(Certified(EqualBoxes(SITE)), intervals=2, silent_after="0 steps")
    rolling.step(seen(0))
    decision = rolling.step(seen(1, present=NAMES[1:]))
    assert decision.origin is Origin.CERTIFIED
    assert decision.regions.keys() == set(NAMES[1:])


# The day's account


def suns() -> Site:
    """The feeder with two photovoltaic plants of equal weight in place of its devices."""
    plants = {
        name: PvInverter(name=name, bus=bus, s_mva=2.0, p_mw=2.0, weight=1.0, default=still())
        for name, bus in (("near", "5"), ("far", "16"))
    }
    return replace(SITE, devices=plants)


def sunny(site: Site, at: datetime, **available: float) -> Observation:
    names = (*site.loads, *available)
    mean = np.tile([*(0.5 * load.p_mw for load in site.loads.values()), *available.values()], (3, 1))
    return Observation(
        time=at,
        forecast=Forecast(at, STEP, names, mean, np.zeros_like(mean)),
        p_mw=MappingProxyType(dict.fromkeys(site.devices, 0.0)),
    )


def test_the_account_of_a_day_adds_up() -> None:
    site = suns()
    rolling = Rolling(EqualRanges(site), intervals=3)
    found = [rolling.step(sunny(site, NOON + k * STEP, near=0.0, far=2.0)).fairness for k in range(4)]
    assert found[0] is not None
    assert found[3] is not None
    assert found[0].ledger_jain is None  # nothing has begun yet
    alone = EqualRanges(site).step(sunny(site, NOON, near=0.0, far=2.0))
    low, high = alone.regions["far"].limits("p_mw")
    had = {"near": high - low, "far": high - low - (2.0 - high)}  # what it could and might not, taken off
    expected = jain(np.maximum(np.array(list(had.values())), 0.0))
    assert expected < 0.999
    assert found[3].ledger_jain == pytest.approx(expected)


def test_who_is_behind_is_repaid() -> None:
    site = suns()
    rolling = Rolling(EqualRanges(site), intervals=3, locked=0, repay=1.0)
    first = rolling.step(sunny(site, NOON, near=0.0, far=2.0))
    for k in range(1, 5):
        last = rolling.step(sunny(site, NOON + k * STEP, near=0.0, far=2.0))
    assert export(first.regions["near"]) == pytest.approx(export(first.regions["far"]))
    assert export(last.regions["far"]) > 1.05 * export(last.regions["near"])


def test_the_account_begins_anew_with_each_day() -> None:
    site = suns()
    midnight = datetime(2026, 6, 22, tzinfo=NOON.tzinfo)
    rolling = Rolling(EqualRanges(site), intervals=3, locked=0, repay=1.0)
    found = [rolling.step(sunny(site, midnight + k * STEP, near=0.0, far=2.0)) for k in range(-4, 2)]
    accounts = [d.fairness.ledger_jain for d in found if d.fairness is not None]
    assert [account is None for account in accounts] == [True, False, False, False, False, False]
    # the interval that begins at midnight is the new day's first, had with the repaid weights of the old one
    (old, new) = accounts[3], accounts[4]
    assert old is not None
    assert new is not None
    far, near = (found[3].regions[name].limits("p_mw") for name in ("far", "near"))
    had = np.array([near[1] - near[0], max(far[1] - far[0] - (2.0 - far[1]), 0.0)])
    assert new == pytest.approx(jain(had))


# Options


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"notice": 12}, "notice 12"),
        ({"notice": -1}, "notice -1"),
        ({"locked": 13}, "locked 13"),
        ({"recertify": 1}, "nothing could ever be tightened"),
        ({"repay": -1.0}, "repay -1.0"),
        ({"silent_after": "soon"}, "'soon'"),
        ({"silent_after": timedelta(-1)}, "must not be negative"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Rolling(EqualRanges(SITE), **options)


def test_a_default_without_end_is_refused() -> None:
    open_ended = Region(("p_mw", "q_mvar"), np.array([[1.0, 0.0]]), np.array([1.0]))
    devices = {**SITE.devices, "der1": replace(SITE.devices["der1"], default=open_ended)}  # type: ignore[type-var]
    with pytest.raises(ValueError, match="default of device 'der1' has no end"):
        Rolling(EqualRanges(replace(SITE, devices=devices)))


def test_patience_may_be_a_length_of_time() -> None:
    rolling = Rolling(EqualRanges(SITE), intervals=2, silent_after=2 * STEP)
    assert all("der3" in d.regions for d in silence(rolling, 3))
    assert rolling.sources == EqualRanges.sources


@pytest.mark.parametrize("policy", ["devices", "do_no_harm"])
def test_a_policy_that_moves_limits_is_refused(policy: WhenBroken) -> None:
    """What was announced for limits and positions of one moment would be unsafe for those of another."""
    inner = EqualRanges(s3(), when_broken=policy)
    for wrapped in (inner, Certified(inner)):
        with pytest.raises(ValueError, match=f"when_broken '{policy}' cannot be kept over a horizon"):
            Rolling(wrapped)
