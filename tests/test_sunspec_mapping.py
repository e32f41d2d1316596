"""What the registers say never lets a device leave its region; and the way back says the same."""

from __future__ import annotations

from datetime import UTC, datetime
from math import hypot

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from bridges.device_bridge import BridgeRefused, Capability
from bridges.sunspec.mapping import Setting, Steps, choose
from bridges.sunspec.nameplate import fill
from bridges.sunspec.plan import Plan, phases, requests
from bridges.sunspec.reading import capability_of, in_force, rated_mw, reading_of, steps_of
from bridges.sunspec.registers import Image
from controllers.contract import Infeasible, Setpoint
from controllers.devices import AXES, still
from controllers.region import Region
from controllers.register import Refusal

NOW = datetime(2030, 1, 1, tzinfo=UTC)
PV = Capability(p_max_mw=1.2, s_mva=1.25, q_max_mvar=0.6, q_min_mvar=-0.6)
BATTERY = Capability(
    p_max_mw=0.4, p_min_mw=-0.3, s_mva=0.5, q_max_mvar=0.2, q_min_mvar=-0.25, e_mwh=0.8, storage=True
)
FINE = Steps(limit_mw=1e-4, p_mw=1e-6, q_mvar=1e-6)
MODELS = (1, 701, 702, 703, 704, 713)


def image_of(capability: Capability, percent_power: int = -2) -> Image:
    image = Image(MODELS if capability.storage else MODELS[:-1])
    fill(image, capability, percent_power, "test")
    return image


def box(p: tuple[float, float], q: tuple[float, float]) -> Region:
    return Region.box(p_mw=p, q_mvar=q)


def followed(setting: Setting, capability: Capability, share: float, q_share: float) -> tuple[float, float]:
    """A point that a device which obeys `setting` may hold: anything that it leaves open is drawn.

    Written without `Setting.within`. The device keeps Q and gives up active power for it, and does not
    exceed its true circle of apparent power.
    """
    q_low = -capability.s_mva if capability.q_min_mvar is None else capability.q_min_mvar
    q_high = capability.s_mva if capability.q_max_mvar is None else capability.q_max_mvar
    q = q_low + q_share * (q_high - q_low) if setting.q_mvar is None else setting.q_mvar
    low, high = capability.p_min_mw, capability.p_max_mw
    if setting.limit_mw is not None:
        high = min(high, setting.limit_mw)
    p = low + share * (high - low) if setting.p_mw is None else min(setting.p_mw, high)
    room = max(capability.s_mva**2 - q * q, 0.0) ** 0.5
    return min(max(p, -room), room), q


number = st.floats(-1.5, 1.5).map(lambda x: round(x, 5))


@st.composite
def regions(draw: st.DrawFn) -> Region:
    """Boxes, and half spaces at random around a point that a device can hold."""
    if draw(st.booleans()):
        p, q = sorted((draw(number), draw(number))), sorted((draw(number), draw(number)))
        return box((p[0], p[1]), (q[0], q[1]))
    rows = draw(st.integers(1, 6))
    angles = [round(draw(st.floats(0, 2 * np.pi)), 6) for _ in range(rows)]
    A = np.array([[np.cos(a), np.sin(a)] for a in angles])
    centre = np.array([draw(st.floats(-0.3, 1.2)), draw(st.floats(-0.3, 0.3))])
    return Region(AXES, A, A @ centre + np.array([draw(st.floats(0.001, 0.5)) for _ in range(rows)]))


@given(
    regions(),
    st.sampled_from([PV, BATTERY]),
    st.sampled_from([-2, -1, 0]),
    st.booleans(),
    st.one_of(st.none(), number),
    st.one_of(st.none(), number),
    st.floats(0, 1),
    st.floats(0, 1),
)
@example(box((0.0, 0.30001), (-0.1, 0.1)), PV, 0, True, None, None, 1.0, 0.5)
def test_nothing_that_the_registers_allow_is_outside_the_region(
    region: Region,
    capability: Capability,
    percent_power: int,
    with_fallback: bool,
    p: float | None,
    q: float | None,
    share: float,
    q_share: float,
) -> None:
    image = image_of(capability, percent_power)
    steps = steps_of(image.blocks)
    setpoint = None if p is None and q is None else Setpoint(p_mw=p, q_mvar=q)
    fallback = choose(still(), None, capability, steps)
    try:
        setting = choose(
            region,
            setpoint,
            capability,
            steps,
            with_functions_of=fallback if with_fallback else None,
        )
    except BridgeRefused:
        assume(False)
        return
    if setting.p_mw is not None:
        share = 1.0
    point = followed(setting, capability, share, q_share)
    if setting.q_mvar is None and setting.p_mw is None and hypot(*point) > capability.s_mva:
        return
    lacks = setting.p_mw is not None and abs(point[0] - setting.p_mw) > 1e-12  # its circle keeps it from it
    assert lacks or region.excess(point) <= 2e-9
    assert setting.within(region, capability)
    if with_fallback:
        on = {name for name in ("limit_mw", "p_mw", "q_mvar") if getattr(fallback, name) is not None}
        assert all(getattr(setting, name) is not None for name in on)

    # The registers say just that, to the last unit, and what is read back is what was chosen.
    m704 = image[704]
    wanted = Plan(setting=setting, fallback=fallback, seconds=60, until=NOW)
    for phase in phases(wanted, m704, rated_mw(image.blocks), None):
        for write in requests(phase, m704):
            m704.words[write.offset : write.offset + len(write.words)] = write.words
    back = in_force(image.blocks, NOW)
    assert back.limit_mw == pytest.approx(setting.limit_mw, abs=1e-12)
    assert back.p_mw == pytest.approx(setting.p_mw, abs=1e-12)
    assert back.q_mvar == pytest.approx(setting.q_mvar, abs=1e-12)


@given(regions(), st.sampled_from([PV, BATTERY]))
def test_a_region_that_is_wide_enough_is_never_refused(region: Region, capability: Capability) -> None:
    both = region & capability.region()
    inner = Region(AXES, both.A, both.b - 2e-6)  # a margin of two steps on each side
    try:
        inner.nearest((0.0, 0.0))
    except Infeasible:
        assume(False)
    choose(region, None, capability, FINE)


@given(regions(), st.sampled_from([PV, BATTERY]), number, number)
def test_a_target_is_no_farther_from_the_wish_than_the_steps_make_it(
    region: Region, capability: Capability, p: float, q: float
) -> None:
    steps = Steps(limit_mw=None, p_mw=1e-6, q_mvar=1e-6)
    try:
        ideal = (region & capability.region()).nearest((p, q))
        setting = choose(region, Setpoint(p_mw=p, q_mvar=q), capability, steps)
    except (BridgeRefused, Infeasible):
        assume(False)
        return
    found = np.array([setting.p_mw, setting.q_mvar])
    if region.excess((0.0, float(found[1]))) > 0 or region.excess((0.0, float(ideal[1]))) > 0:
        return  # Q was chosen such that a device which cannot follow stays inside, where that is possible
    assert np.hypot(*(found - (p, q))) <= np.hypot(*(ideal - (p, q))) + 1e-5 or not wide(region, capability)


def wide(region: Region, capability: Capability) -> bool:
    both = region & capability.region()
    try:
        Region(AXES, both.A, both.b - 1e-4).nearest((0.0, 0.0))
    except Infeasible:
        return False
    return True


@pytest.mark.parametrize(
    ("region", "setpoint", "expected"),
    [
        (None, None, Setting()),
        (still(), None, Setting(limit_mw=0.0, q_mvar=0.0)),
        (box((-0.1, 0.77777), (0.0, 0.0)), None, Setting(limit_mw=0.7777, q_mvar=0.0)),
        (box((-0.1, 0.77777), (-2.0, 2.0)), None, Setting(limit_mw=0.7777)),
        (box((-0.1, 2.0), (-0.1, 0.1)), None, Setting(q_mvar=0.0)),
        (box((-0.1, 2.0), (0.05, 0.1)), None, Setting(q_mvar=0.05)),
        (box((0.2, 0.7), (-0.1, 0.1)), None, Setting(p_mw=0.7, q_mvar=0.0)),
        (box((0.0, 0.7), (-0.1, 0.1)), Setpoint(p_mw=0.4), Setting(p_mw=0.4, q_mvar=0.0)),
        (box((0.0, 0.7), (-0.1, 0.1)), Setpoint(q_mvar=0.3), Setting(limit_mw=0.7, q_mvar=0.1)),
        (Region.box(p_mw=(-1.0, 0.5)), None, Setting(limit_mw=0.5)),
    ],
)
def test_a_generator_is_limited_where_that_is_enough(
    region: Region | None, setpoint: Setpoint | None, expected: Setting
) -> None:
    found = choose(region, setpoint, PV, FINE)
    for name in ("limit_mw", "p_mw", "q_mvar"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=1e-12), name


@pytest.mark.parametrize(
    ("region", "wish_mw", "expected"),
    [
        (box((-0.3, 0.2), (-0.1, 0.1)), None, Setting(limit_mw=0.2, q_mvar=0.0)),
        (box((-0.2, 0.2), (-0.1, 0.1)), None, Setting(p_mw=0.0, q_mvar=0.0)),
        (box((-0.2, 0.2), (-0.1, 0.1)), -0.3, Setting(p_mw=-0.2, q_mvar=0.0)),
        (box((-0.2, -0.1), (-0.1, 0.1)), None, Setting(p_mw=-0.1, q_mvar=0.0)),
        (still(), None, Setting(p_mw=0.0, q_mvar=0.0)),
    ],
)
def test_a_store_gets_a_target_where_its_charging_is_limited(
    region: Region, wish_mw: float | None, expected: Setting
) -> None:
    found = choose(region, None, BATTERY, FINE, wish_mw=wish_mw)
    for name in ("limit_mw", "p_mw", "q_mvar"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=1e-12), name


def test_where_q_depends_on_p_the_limit_holds_from_zero_on() -> None:
    # Exporting is allowed only while Q is absorbed: Q <= -P / 2. At night P is 0 and Q stays: Q <= 0.
    slanted = Region(AXES, np.array([[0.5, 1.0]]), np.array([0.0]))
    found = choose(slanted, None, PV, FINE)
    assert found.p_mw is None
    assert found.limit_mw is not None
    assert found.q_mvar is not None
    assert found.limit_mw == pytest.approx(-2 * found.q_mvar, abs=1e-4)
    for p in np.linspace(0.0, found.limit_mw, 7):
        assert (p, found.q_mvar) in slanted


@pytest.mark.parametrize(
    ("region", "steps", "words"),
    [
        (box((1.3, 1.4), (0.0, 0.0)), FINE, "no point in common with what the device can do (0 to 1.2 MW"),
        (box((-0.4, -0.1), (0.0, 0.0)), FINE, "no point in common"),
        (
            box((0.3, 0.4), (1e-7, 2e-7)),
            FINE,
            "no multiple of 1 W and 1 var lies in its region (0.3 to 0.4 MW",
        ),
        (
            box((0.3, 0.4), (0.0, 0.0)),
            Steps(limit_mw=1e-4, p_mw=None, q_mvar=1e-6),
            "WSet is not implemented",
        ),
        (box((0.0, 0.4), (0.0, 0.0)), Steps(limit_mw=1e-4, p_mw=1e-6, q_mvar=None), "VarSet is not implem"),
        (Region.box(p_mw=(0.0, 0.4), e_mwh=(0.0, 1.0)), FINE, "only p_mw and q_mvar can be told"),
    ],
)
def test_what_cannot_be_told_is_refused_in_words(region: Region, steps: Steps, words: str) -> None:
    with pytest.raises(BridgeRefused) as refused:
        choose(region, None, PV, steps)
    assert refused.value.code is Refusal.CAPABILITY
    assert words in refused.value.reason


def test_a_tolerance_lets_a_coarse_device_follow_a_thin_region() -> None:
    coarse = Steps(limit_mw=1e-3, p_mw=1e-3, q_mvar=1e-3)
    thin = box((0.0, 0.5), (0.0124, 0.0124))
    with pytest.raises(BridgeRefused, match="allow a tolerance"):
        choose(thin, None, PV, coarse)
    found = choose(thin, None, PV, coarse, tolerance_mw=5e-4)
    assert found.q_mvar == pytest.approx(0.012)


@given(
    st.floats(-0.3, 0.4),
    st.floats(-0.25, 0.2),
    st.floats(0.8, 1.2),
    st.floats(0, 0.8),
)
def test_a_reading_is_what_was_put_into_the_registers(p: float, q: float, v: float, e: float) -> None:
    image = image_of(BATTERY)
    m701, m713 = image[701], image[713]
    m701.put("W", p * 1e6)
    m701.put("Var", q * 1e6)
    m701.put("LLV", v * 400)
    m701.put("InvSt", "THROTTLED")
    m713.put("WHAvail", e * 1e6)
    reading = reading_of(image.blocks, NOW)
    half = 0.5e-6 * 10.0 ** (m701.raw("W_SF") or 0)  # type: ignore[operator]
    assert reading.p_mw == pytest.approx(p, abs=half + 1e-12)
    assert reading.q_mvar == pytest.approx(q, abs=half + 1e-12)
    assert reading.v_pu == pytest.approx(v, abs=0.05 / 400 + 1e-9)
    assert reading.e_mwh == pytest.approx(e, abs=0.5e-4 + 1e-12)  # 100 Wh a unit
    assert reading.state == "throttled"


def test_voltage_and_energy_are_found_by_another_way_if_need_be() -> None:
    image = image_of(BATTERY)
    m701, m713 = image[701], image[713]
    m701.put("LNV", 400 / 3**0.5)
    m713.put("SoC", 25)
    reading = reading_of(image.blocks, NOW)
    assert reading.v_pu == pytest.approx(1.0, abs=2e-4)
    assert reading.e_mwh == pytest.approx(0.2)
    m701.put("ACType", "SINGLE_PHASE")
    assert reading_of(image.blocks, NOW).v_pu == pytest.approx(1 / 3**0.5, abs=2e-4)
    m701.put("ConnSt", "DISCONNECTED")
    assert reading_of(image.blocks, NOW).state == "disconnected"
    m713.put("WHRtg", None)
    assert reading_of(image.blocks, NOW).e_mwh is None


@pytest.mark.parametrize("capability", [PV, BATTERY])
def test_the_nameplate_is_the_capability(capability: Capability) -> None:
    assert capability_of(image_of(capability).blocks) == capability


def test_settings_come_before_ratings() -> None:
    image = image_of(BATTERY)
    for point, value in (("WMax", 300_000), ("WDisChaRteMax", None), ("VAMax", None)):
        image[702].put(point, value)
    found = capability_of(image.blocks)
    assert (found.p_max_mw, found.s_mva) == (0.3, 0.5)  # WMax is less than WDisChaRteMaxRtg; VAMaxRtg
    with pytest.raises(ValueError, match="must include standing still"):
        Capability(p_max_mw=-1.0, s_mva=1.0)
