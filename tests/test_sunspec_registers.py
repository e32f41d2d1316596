"""Registers by name, against pysunspec2's own client, which shares no code with them but the definitions."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sunspec2.modbus import client

from bridges.device_bridge import Capability
from bridges.sunspec.emulator import Emulator
from bridges.sunspec.reading import capability_of, reading_of, steps_of
from bridges.sunspec.registers import PERCENT, Block, Image, PointError, layout, span
from bridges.sunspec.unit import Following, Unit
from tests.running import FakeTime

MODELS = (1, 701, 702, 703, 704, 713)
BATTERY = Capability(
    p_max_mw=0.4, p_min_mw=-0.3, s_mva=0.5, q_max_mvar=0.2, q_min_mvar=-0.25, e_mwh=0.8, storage=True
)
PV = Capability(p_max_mw=1.2, s_mva=1.25, q_max_mvar=0.6, q_min_mvar=-0.6)


def scanned(port: int, unit: int) -> dict[int, dict[str, Any]]:
    """What pysunspec2 reads, scaled: model -> point -> value."""
    device = client.SunSpecModbusClientDeviceTCP(slave_id=unit, ipaddr="127.0.0.1", ipport=port)
    try:
        device.scan()
        found = {}
        for model in device.model_list:
            model.read()
            found[model.model_id] = model.get_dict(computed=True)
        return found
    finally:
        device.close()


async def test_pysunspec2_scans_the_emulator_and_reads_what_we_read() -> None:
    time = FakeTime()
    units = [
        Unit(1, BATTERY, Following(-0.1234, e_mwh=0.45), monotonic=time.monotonic, name="bat13"),
        Unit(7, PV, Following(0.9), monotonic=time.monotonic, percent_power=-1),
    ]
    async with Emulator(units) as emulator:
        for unit in units:
            seen = await asyncio.to_thread(scanned, emulator.port, unit.number)
            assert list(seen) == list(unit.image.blocks)
            compared = 0
            for model, block in unit.image.blocks.items():
                for name in block.layout.points:
                    theirs = seen[model]
                    for part in name.split("."):
                        theirs = theirs[part]
                    ours = block.value(name)
                    if isinstance(ours, float):
                        assert theirs == pytest.approx(ours, rel=1e-12), name
                    elif block.layout.point(name).type != "pad":
                        assert theirs == ours, name
                    compared += 1
            assert compared == sum(len(layout(model).points) for model in unit.image.blocks)


async def test_exact_points() -> None:
    time = FakeTime()
    unit = Unit(1, BATTERY, Following(-0.1234, e_mwh=0.45), monotonic=time.monotonic, name="bat13")
    async with Emulator([unit]) as emulator:
        seen = await asyncio.to_thread(scanned, emulator.port, 1)
    assert seen[1]["Mn"] == "gridpace"
    assert seen[1]["SN"] == "bat13"
    assert (seen[701]["W"], seen[701]["Var"]) == (-123_400, 0)
    assert seen[701]["InvSt"] == 3  # RUNNING
    assert seen[701]["LLV"] is None  # the plant has no voltage: not implemented, not 0
    assert seen[702]["WMax"] == 400_000
    assert seen[702]["WChaRteMax"] == 300_000
    assert (seen[702]["VarMaxInj"], seen[702]["VarMaxAbs"]) == (200_000, 250_000)
    assert seen[703]["ES"] == 1
    assert (seen[704]["WMaxLimPct"], seen[704]["WMaxLimPctEna"]) == (100, 0)
    assert (seen[713]["WHRtg"], seen[713]["WHAvail"], seen[713]["SoC"]) == (800_000, 450_000, 56.25)


async def test_pysunspec2_writes_what_we_then_read() -> None:
    time = FakeTime()
    unit = Unit(1, BATTERY, Following(0.3, e_mwh=0.4), monotonic=time.monotonic)

    def write(port: int) -> None:
        device = client.SunSpecModbusClientDeviceTCP(slave_id=1, ipaddr="127.0.0.1", ipport=port)
        try:
            device.scan()
            control = device.models[704][0]
            control.WMaxLimPct.cvalue = 62.5
            control.WMaxLimPctEna.value = 1
            control.write()
        finally:
            device.close()

    async with Emulator([unit]) as emulator:
        await asyncio.to_thread(write, emulator.port)
    assert unit.image[704].value("WMaxLimPct") == 62.5
    assert unit.limits.limit_mw == pytest.approx(0.25)
    assert unit.measured.p_mw == pytest.approx(0.25)


@pytest.mark.parametrize("model", MODELS)
def test_layouts_follow_each_other_without_gaps(model: int) -> None:
    points = list(layout(model).points.values())
    assert [p.name for p in points[:2]] == ["ID", "L"]
    for one, other in pairwise(points):
        assert other.offset == one.offset + one.size
    block = Block(layout(model), 0)
    assert (block.raw("ID"), block.raw("L")) == (model, layout(model).size - 2)
    blank = [p.name for p in points[2:] if block.value(p.name) is not None]
    assert blank in ([], ["Pad"])  # everything else is not implemented until it is set


@given(st.sampled_from(MODELS), st.data())
def test_what_is_put_is_read_back(model: int, data: st.DataObject) -> None:
    block = Block(layout(model), 0)
    point = data.draw(st.sampled_from(list(block.layout.points.values())[2:]))
    if point.type in ("pad", "string"):
        return
    power = 0
    if isinstance(point.scale, str):
        power = data.draw(st.integers(-10, 10))
        block.put(point.scale, power)
    low, high = (-10, 10) if point.type == "sunssf" else span(point)
    number = data.draw(st.integers(max(low, -(2**52)), min(high, 2**52)))  # what a float holds exactly
    if point.type.startswith("enum"):
        number = data.draw(st.sampled_from(list(point.symbols.values())))
    value = number * 10.0**power if power >= 0 else number / 10.0**-power
    if model == 704 and point.name in PERCENT and not PERCENT[point.name][0] <= value <= 100:
        with pytest.raises(PointError, match="Pct is not between"):
            block.put(point.name, value)
        return
    block.put(point.name, value)
    assert block.raw(point.name) == number
    assert block.value(point.name) == value
    block.put(point.name, None)
    assert block.value(point.name) is None


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("WMaxLimPct", 150, "model 704, point WMaxLimPct: 150 Pct is not between 0 and 100"),
        ("WMaxLimPct", -0.1, "-0.1 Pct is not between 0 and 100"),
        ("WMaxLimPct", float("nan"), "nan is not a number"),
        ("WSet", 3e9, "3e+09 W is not between -2.14748e+09 and 2.14748e+09"),
        ("WSetEna", "ON", "'ON' is none of DISABLED, ENABLED"),
        ("WSetEna", 2, "2 is none of"),
        ("WSetRvrtTms", -1, "-1 Secs is not between 0 and"),
        ("PFWInj.PF", 0.9, "its scale factor PF_SF is not implemented"),
        ("WLimit", 1, "model 704 has no point 'WLimit'"),
    ],
)
def test_values_that_a_point_does_not_take_are_refused_in_words(name: str, value: Any, words: str) -> None:
    block = Block(layout(704), 0)
    for scale, power in (("WMaxLimPct_SF", -1), ("WSet_SF", 0)):
        block.put(scale, power)
    before = list(block.words)
    with pytest.raises(PointError) as refused:
        block.put(name, value)
    assert words in str(refused.value)
    assert block.words == before


def test_a_model_that_is_shorter_than_its_definition_lacks_its_last_points() -> None:
    whole = Block(layout(704), 0)
    whole.put("AntiIslEna", "ENABLED")
    short = Block(layout(704), 0, whole.words[:53])
    assert short.symbol("AntiIslEna") == "ENABLED"
    assert short.value("PFWInj.PF") is None
    assert short.value("WMaxLimPct") is None  # its scale factor lies beyond the end


def test_what_is_not_implemented_is_missing_and_never_zero() -> None:
    image = Image(MODELS)
    reading = reading_of(image.blocks, datetime(2030, 1, 1, tzinfo=UTC))
    assert (reading.p_mw, reading.q_mvar, reading.v_pu, reading.e_mwh, reading.state) == (None,) * 5
    with pytest.raises(PointError, match="neither WMax nor WMaxRtg is implemented"):
        capability_of(image.blocks)
    image[702].put("W_SF", 0)
    image[702].put("WMaxRtg", 1000)
    with pytest.raises(PointError, match="neither s_mva nor both limits of q"):
        capability_of(image.blocks)
    steps = steps_of(image.blocks)
    assert (steps.limit_mw, steps.p_mw, steps.q_mvar) == (None, None, None)


def test_an_image_says_which_models_it_has() -> None:
    with pytest.raises(PointError, match=r"no model 713, only \[1, 701\]"):
        Image((1, 701))[713]
    with pytest.raises(PointError, match="repeats"):
        layout(705)
    with pytest.raises(PointError, match="not defined"):
        layout(12345)
