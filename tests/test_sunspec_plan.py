"""When, in which order and in how many requests an instruction is written."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bridges.device_bridge import BridgeRefused, Capability
from bridges.sunspec.mapping import Setting
from bridges.sunspec.plan import Plan, phases, plan, requests
from bridges.sunspec.reading import rated_mw, steps_of
from bridges.sunspec.unit import Following, Unit
from controllers.contract import Instruction, Setpoint, Span
from controllers.devices import AXES, still
from controllers.region import Region
from controllers.register import Refusal
from tests.test_sunspec_mapping import BATTERY, NOW, PV, box, image_of


def told(region: Region | None, *, setpoint: Setpoint | None = None, **change: object) -> Instruction:
    base: dict[str, object] = {
        "device": "der1",
        "epoch": 1,
        "seq": 1,
        "issued_at": NOW,
        "valid_from": NOW,
        "valid_until": NOW + timedelta(seconds=90.5),
        "region": region,
        "setpoint": setpoint,
        "fallback": still(),
    }
    return Instruction(**(base | change))  # type: ignore[arg-type]


def test_validity_becomes_whole_seconds_rounded_down() -> None:
    image = image_of(PV)
    steps = steps_of(image.blocks)
    made = plan(told(box((0.0, 0.5), (0.0, 0.0))), NOW, PV, steps)
    assert (made.seconds, made.until) == (90, NOW + timedelta(seconds=90.5))
    assert made.fallback == Setting(limit_mw=0.0, q_mvar=0.0)
    for late, code, words in (
        (89.6, Refusal.STALE, "within a second: too short for a timer"),
        (90.5, Refusal.STALE, "its validity ended at 2030-01-01T00:01:30.5"),
        (-0.1, Refusal.EARLY, "it holds from 2030-01-01T00:00:00"),
    ):
        with pytest.raises(BridgeRefused) as refused:
            plan(told(box((0.0, 0.5), (0.0, 0.0))), NOW + timedelta(seconds=late), PV, steps)
        assert refused.value.code is code
        assert words in refused.value.reason


def test_a_schedule_holds_as_long_as_its_spans_allow_the_same() -> None:
    image = image_of(PV)
    steps = steps_of(image.blocks)
    at = [NOW + timedelta(minutes=5 * i) for i in range(5)]
    later = tuple(
        Span(at[i], at[i + 1], box((0.0, most), (-0.1, 0.1))) for i, most in ((1, 0.6), (2, 0.5), (3, 0.4))
    )
    instruction = told(box((0.0, 0.5), (0.0, 0.0)), later=later, valid_until=at[4])
    assert plan(instruction, NOW, PV, steps).until == at[3]  # 0.4 MW is less than 0.5
    assert plan(instruction, at[1], PV, steps).until == at[2]
    assert plan(instruction, at[3], PV, steps).seconds == 300


def test_a_control_that_runs_is_not_prolonged_before_the_new_one_is_there() -> None:
    image = image_of(BATTERY)
    m704, rated = image[704], rated_mw(image.blocks)
    m704.put("WSetEna", "ENABLED")
    m704.put("WSetMod", "WATTS")
    m704.put("VarSetEna", "ENABLED")
    setting, fallback = Setting(p_mw=0.1, q_mvar=0.05), Setting(p_mw=0.0, q_mvar=0.0)
    wanted = Plan(setting=setting, fallback=fallback, seconds=60, until=NOW)
    before, first, second, enable, disable = phases(wanted, m704, rated, 7.9)
    assert (before["WSetRvrtTms"], before["VarSetRvrtTms"]) == (7, 7)
    assert (enable["WSetRvrtTms"], enable["WSetEna"]) == (60, "ENABLED")
    assert "WSetMod" not in {*first, *second}
    assert disable == {}
    assert phases(wanted, m704, rated, 0.2)[0]["WSetRvrtTms"] == 1  # 0 would stop the timer
    assert phases(wanted, m704, rated, 600.0)[0]["WSetRvrtTms"] == 60
    alone = phases(wanted, m704, rated, None)
    assert alone[0]["WSetRvrtTms"] == 60
    assert "WSetRvrtTms" not in alone[3]


@pytest.mark.parametrize(("was", "becomes", "first"), [(50, 20, "WMaxLimPct"), (20, 50, "VarSet")])
def test_less_power_goes_before_q_and_more_after(was: float, becomes: float, first: str) -> None:
    image = image_of(PV)
    m704 = image[704]
    m704.put("WMaxLimPct", was)
    m704.put("WMaxLimPctEna", "ENABLED")
    m704.put("VarSetEna", "ENABLED")
    setting = Setting(limit_mw=becomes / 100 * 1.2, q_mvar=0.1)
    wanted = Plan(setting=setting, fallback=Setting(limit_mw=0.0, q_mvar=0.0), seconds=60, until=NOW)
    assert first in phases(wanted, m704, 1.2, None)[1]


def test_writes_are_few_and_pass_over_what_cannot_be_written() -> None:
    image = image_of(BATTERY)
    m704 = image[704]
    wanted = Plan(
        setting=Setting(p_mw=0.1, q_mvar=0.05),
        fallback=Setting(p_mw=0.0, q_mvar=0.0),
        seconds=60,
        until=NOW,
    )
    counted = [len(requests(phase, m704)) for phase in phases(wanted, m704, 0.4, None)]
    assert counted == [2, 1, 1, 2, 0]
    m704.put("WSetPct", None)  # a device without it: nothing may be written over it
    counted = [len(requests(phase, m704)) for phase in phases(wanted, m704, 0.4, None)]
    assert counted == [3, 1, 1, 2, 0]
    for phase in phases(wanted, m704, 0.4, None):
        for write in requests(phase, m704):
            for point in m704.layout.covering(write.offset, len(write.words)):
                assert point.writable
                assert point.name != "WSetPct"


FREE = box((-2.0, 2.0), (-2.0, 2.0))
NUMBERS = st.floats(0.0, 1.0).map(lambda x: round(x, 4))


@st.composite
def around_standing_still(draw: st.DrawFn) -> tuple[Region, Setpoint | None]:
    """A box, or one with a corner cut off, which has P = 0 at each of its Q; perhaps where to be in it."""
    q = sorted(round(draw(st.floats(-0.25, 0.2)), 4) for _ in range(2))
    region = box((-draw(NUMBERS), draw(NUMBERS)), (q[0], q[1]))
    if draw(st.booleans()):
        most = max(q) + draw(NUMBERS) / 2  # P + Q at most, though not less than at (0, greatest Q)
        region &= Region(AXES, np.array([[1.0, 1.0]]), np.array([most]))
    return region, draw(
        st.sampled_from([None, Setpoint(p_mw=0.2), Setpoint(p_mw=-0.2), Setpoint(q_mvar=0.1)])
    )


def obeyed(unit: Unit) -> Setting:
    """What its registers let it do: of a limit and an exact value, what is less."""
    limits = unit.limits
    if limits.p_mw is None or limits.limit_mw is None:
        return Setting(limit_mw=limits.limit_mw, p_mw=limits.p_mw, q_mvar=limits.q_mvar)
    return Setting(p_mw=min(limits.p_mw, limits.limit_mw), q_mvar=limits.q_mvar)


@settings(max_examples=200)
@given(
    st.lists(around_standing_still(), min_size=2, max_size=4),
    st.sampled_from([PV, BATTERY]),
    st.sampled_from([still(), FREE]),
)
@example(
    [(box((0.0, 0.5), (0.1, 0.1)), None), (box((0.0, 0.3), (0.0, 0.0)), Setpoint(p_mw=0.2))], PV, still()
)
@example(
    [
        (box((0.0, 0.3), (0.0, 0.0)), Setpoint(p_mw=0.2)),
        (box((-0.3, 0.0), (0.1, 0.1)), Setpoint(p_mw=-0.2)),
        (box((-0.3, 0.1), (0.0, 0.0)), None),
    ],
    BATTERY,
    FREE,
)
@example([(box((0.0, 0.2), (-1.0, 1.0)), None), (box((0.0, 0.5), (0.0, 0.1)), None)], PV, FREE)
def test_what_holds_between_two_instructions_is_in_the_old_region_or_the_new_one(
    following: list[tuple[Region, Setpoint | None]], capability: Capability, fallback: Region
) -> None:
    unit = Unit(1, capability, Following(0.0, 0.4), monotonic=lambda: 0.0)
    m704, blocks = unit.image[704], unit.image.blocks
    before: Region | None = None
    for region, setpoint in following:
        instruction = told(region, setpoint=setpoint, fallback=fallback)
        wanted = plan(instruction, NOW, capability, steps_of(blocks))
        for phase in phases(wanted, m704, rated_mw(blocks), 60.0):
            for write in requests(phase, m704):
                unit.write(m704.address + write.offset, write.words)
                meanwhile = obeyed(unit)
                assert (
                    before is None
                    or meanwhile.within(before, capability)
                    or meanwhile.within(region, capability)
                ), (write.points, meanwhile)
        assert obeyed(unit).within(region, capability)
        before = region


@pytest.mark.parametrize(
    ("rested", "rests", "expected"),
    [
        (True, True, [{"WSet": 0.0}, {"VarSet": 50_000.0}, {"WSet": -100_000.0}]),
        (True, False, [{"WSet": -100_000.0}, {"VarSet": 50_000.0}]),
        (False, True, [{"VarSet": 50_000.0}, {"WSet": -100_000.0}]),
    ],
)
def test_on_its_way_to_the_other_sign_it_stands_still_only_where_it_may(
    rested: bool, rests: bool, expected: list[dict[str, float]]
) -> None:
    """Else it goes through the one of the two regions that has both signs, if one has."""
    image = image_of(BATTERY)
    m704 = image[704]
    written = {"WSet": 200_000, "WSetMod": "WATTS", "VarSetMod": "VARS", "VarSetPri": "REACTIVE", "VarSet": 0}
    for point, value in (written | {"WSetEna": "ENABLED", "VarSetEna": "ENABLED"}).items():
        m704.put(point, value)
    home = Setting(p_mw=0.0, q_mvar=0.0)
    wanted = Plan(setting=Setting(p_mw=-0.1, q_mvar=0.05), fallback=home, seconds=60, until=NOW, rests=rests)
    assert phases(wanted, m704, rated_mw(image.blocks), None, rested=rested)[1:-2] == expected
