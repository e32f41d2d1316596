"""CSIP-AUS: limits in XML that never allow more than the envelope they come from."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from math import inf, nan
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from envoy_schema.server.schema.sep2.der import DefaultDERControl, DERControlListResponse
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from bridges.csip import (
    NAMESPACES,
    Profile,
    active_power,
    active_range,
    controls,
    default_control,
)
from controllers import Region, Span
from controllers.devices import circle, still
from scenarios.cli import app
from scenarios.controls import defaults_of, held
from scenarios.figures import envelopes
from tests.running import do

QUICK = "ieee33-quick"
NOON = datetime(2026, 6, 21, 12, tzinfo=UTC)
FIVE = timedelta(minutes=5)
LIMIT = Region.box(p_mw=(-0.152, 0.98396), q_mvar=(-0.1, 0.2))


def spans(*regions: Region) -> list[Span]:
    return [Span(NOON + i * FIVE, NOON + (i + 1) * FIVE, region) for i, region in enumerate(regions)]


@given(st.floats(0, 1e100))
def test_T14_a_limit_never_grows_and_loses_little(limit_mw: float) -> None:
    value, multiplier = active_power(limit_mw)
    sent, meant = Decimal(value).scaleb(multiplier), Decimal(repr(limit_mw)).scaleb(6)
    assert 0 <= value <= 32767
    assert -128 <= multiplier <= 127
    assert sent <= meant < sent + Decimal(1).scaleb(multiplier)
    # The finest step that an int16 allows: with a tenth of it the value would not fit.
    assert multiplier == 0 or meant > 32767 * Decimal(1).scaleb(multiplier - 1)


@pytest.mark.parametrize(
    ("limit_mw", "sent"),
    [
        (0.0, (0, 0)),
        (0.9e-6, (0, 0)),
        (0.0029, (2900, 0)),
        (0.032767, (32767, 0)),
        (0.032768, (3276, 1)),
        (0.983, (9830, 2)),
        (0.98396, (9839, 2)),
        (32767.999, (32767, 6)),
    ],
)
def test_T14_limits_by_hand(limit_mw: float, sent: tuple[int, int]) -> None:
    assert active_power(limit_mw) == sent


@pytest.mark.parametrize("limit_mw", [-1e-9, nan, inf, 1e126, 1e300])
def test_what_does_not_fit_is_refused(limit_mw: float) -> None:
    with pytest.raises(ValueError, match="limit"):
        active_power(limit_mw)


def test_T14_xml_round_trip() -> None:
    text = controls("pv6", spans(LIMIT, still()), issued_at=NOON - FIVE, now=NOON)
    read = DERControlListResponse.from_xml(text)
    assert (read.all_, read.results) == (2, 2)
    assert read.DERControl is not None
    first, second = read.DERControl
    assert (first.interval.start, first.interval.duration) == (int(NOON.timestamp()), 300)
    assert first.interval.start + first.interval.duration == second.interval.start
    assert [c.EventStatus_.currentStatus for c in (first, second)] == [1, 0]
    assert first.creationTime == int((NOON - FIVE).timestamp())
    assert len({first.mRID, second.mRID}) == 2
    assert all(re.fullmatch("[0-9a-f]{32}", c.mRID) for c in (first, second))
    sent = first.DERControlBase_
    assert sent.opModGenLimW is not None
    assert sent.opModLoadLimW is not None
    assert (sent.opModGenLimW.value, sent.opModGenLimW.multiplier) == (9839, 2)
    assert (sent.opModLoadLimW.value, sent.opModLoadLimW.multiplier) == (15200, 1)
    assert sent.opModExpLimW is None
    assert sent.opModImpLimW is None
    stopped = second.DERControlBase_
    assert stopped.opModGenLimW is not None
    assert stopped.opModGenLimW.value == 0  # zero is a limit, not a missing one
    assert text == controls("pv6", spans(LIMIT, still()), issued_at=NOON - FIVE, now=NOON)


@pytest.mark.parametrize(
    ("at", "elements"),
    [("device", {"opModGenLimW", "opModLoadLimW"}), ("connection", {"opModExpLimW", "opModImpLimW"})],
)
@pytest.mark.parametrize("version", NAMESPACES)
def test_the_elements_and_their_namespace_are_as_the_profile_says(
    at: str, elements: set[str], version: str
) -> None:
    profile = Profile(at=at, version=version)  # type: ignore[arg-type]
    for text in (
        controls("a", spans(LIMIT), issued_at=NOON, now=NOON, profile=profile),
        default_control("a", LIMIT, profile=profile),
    ):
        named = {e.tag for e in ElementTree.fromstring(text).iter() if "LimW" in e.tag}
        assert named == {f"{{{NAMESPACES[version]}}}{element}" for element in elements}


def test_a_default_control_has_its_limits_and_ramp() -> None:
    read = DefaultDERControl.from_xml(default_control("a", LIMIT))
    assert read.setGradW == 27
    assert read.DERControlBase_.opModGenLimW is not None
    assert read.DERControlBase_.opModGenLimW.value == 9839
    without = DefaultDERControl.from_xml(default_control("a", still(), profile=Profile(grad_w=None)))
    assert without.setGradW is None


@given(
    st.lists(st.floats(0.01, 6.28), min_size=3, max_size=12),
    st.lists(st.floats(0, 100), min_size=12, max_size=12),
)
def test_the_range_is_what_the_region_allows_at_zero_reactive_power(
    angles: list[float], limits: list[float]
) -> None:
    rows = np.column_stack([np.cos(angles), np.sin(angles)])
    region = Region(("p_mw", "q_mvar"), rows, np.array(limits[: len(angles)])) & circle(1000)
    low, high = active_range(region)
    line = region & Region(("q_mvar", "p_mw"), np.array([[1.0, 0], [-1, 0]]), np.zeros(2))
    # The oracle: a linear program over the same region with Q held at 0.
    assert (low, high) == pytest.approx(line.limits("p_mw"), abs=1e-6)
    assert active_range(region.over(("q_mvar", "p_mw"))) == (low, high)


@pytest.mark.parametrize(
    "region",
    [
        Region.box(p_mw=(0.1, 0.2), q_mvar=(-1, 1)),  # must export
        Region.box(p_mw=(-0.2, -0.1), q_mvar=(-1, 1)),  # must import
        Region.box(p_mw=(-1, 1), q_mvar=(0.1, 0.2)),  # Q = 0 is not allowed
    ],
)
def test_a_region_that_limits_cannot_express_is_refused(region: Region) -> None:
    with pytest.raises(ValueError, match="Q = 0"):
        controls("a", spans(region), issued_at=NOON, now=NOON)


def test_no_limit_is_no_element() -> None:
    region = Region(("p_mw", "q_mvar"), np.array([[1.0, 0.0]]), np.array([0.5]))
    text = controls("a", spans(region), issued_at=NOON, now=NOON)
    assert b"opModGenLimW" in text
    assert b"opModLoadLimW" not in text


def test_intervals_with_a_gap_or_an_overlap_are_refused() -> None:
    for shift in (timedelta(seconds=4), timedelta(seconds=-4)):
        wrong = [Span(NOON, NOON + FIVE, LIMIT), Span(NOON + FIVE + shift, NOON + 2 * FIVE, LIMIT)]
        with pytest.raises(ValueError, match="contiguous"):
            controls("a", wrong, issued_at=NOON, now=NOON)
    half = [Span(NOON, NOON + timedelta(seconds=0.5), LIMIT)]
    with pytest.raises(ValueError, match="whole seconds"):
        controls("a", half, issued_at=NOON, now=NOON)
    with pytest.raises(ValueError, match="nothing limits it"):
        controls("a", [Span(NOON, NOON + FIVE, None)], issued_at=NOON, now=NOON)


@pytest.mark.parametrize(("setting", "value"), [("at", "meter"), ("version", "2.0")])
def test_a_setting_that_does_not_exist_is_refused(setting: str, value: str) -> None:
    with pytest.raises(ValueError, match=value):
        Profile(**{setting: value})  # type: ignore[arg-type]


async def test_the_controls_of_a_run_are_its_envelopes(tmp_path: Path) -> None:
    result = await do("ieee33-quick", tmp_path / "runs", "steps=4")
    out = tmp_path / "xml"
    said = CliRunner().invoke(app, ["csip", str(result.directory), "--out", str(out)])
    assert said.exit_code == 0, said.output
    now, several = held(result.directory)
    assert [one.device for one in several] == sorted(defaults_of(result.directory))
    published = {e.target: e for e in envelopes(result.directory) if e.valid_from == now}
    assert len(published) == 6
    for one in several:
        read = DERControlListResponse.from_xml((out / f"{one.device}.DERControlList.xml").read_bytes())
        assert read.DERControl is not None
        (control,) = read.DERControl
        envelope = published[one.device]
        assert control.interval.start == int(envelope.valid_from.timestamp())
        assert control.interval.duration == (envelope.valid_until - envelope.valid_from).total_seconds()
        sent = control.DERControlBase_
        assert sent.opModGenLimW is not None
        assert sent.opModLoadLimW is not None
        export_w = sent.opModGenLimW.value * 10**sent.opModGenLimW.multiplier
        import_w = sent.opModLoadLimW.value * 10**sent.opModLoadLimW.multiplier
        assert envelope.excess({"p_mw": export_w / 1e6, "q_mvar": 0.0}) <= 1e-12
        assert envelope.excess({"p_mw": -import_w / 1e6, "q_mvar": 0.0}) <= 1e-12
        # One more unit of the last digit would be outside.
        more = (sent.opModGenLimW.value + 1) * 10**sent.opModGenLimW.multiplier
        assert envelope.excess({"p_mw": more / 1e6, "q_mvar": 0.0}) > 0
        DefaultDERControl.from_xml((out / f"{one.device}.DefaultDERControl.xml").read_bytes())


async def test_an_instant_without_envelopes_is_said(tmp_path: Path) -> None:
    result = await do("ieee33-quick", tmp_path, "steps=2")
    for at, words in (("2026-06-20T12:00:00Z", "no envelope is in force"), ("yesterday", "no date")):
        said = CliRunner().invoke(app, ["csip", str(result.directory), "--at", at])
        assert said.exit_code == 2
        assert words in said.output


@pytest.fixture
async def short_run(tmp_path: Path) -> Path:
    """A run's folder."""
    return (await do("ieee33-quick", tmp_path, "steps=2")).directory


def test_a_reader_who_leaves_hears_no_complaint(short_run: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended = subprocess.run(
            [sys.executable, "-c", "from scenarios.cli import main; main()", "csip", str(short_run)],
            stdout=writing,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
            timeout=120,
        )
    finally:
        os.close(writing)
    assert ended.stderr == b""
    assert ended.returncode == 1


async def test_a_schedule_becomes_contiguous_controls(tmp_path: Path) -> None:
    result = await do(QUICK, tmp_path, "steps=3", "controllers.dso.rolling={intervals: 4}")
    said = CliRunner().invoke(app, ["csip", str(result.directory), "--out", str(tmp_path / "xml")])
    assert said.exit_code == 0, said.output
    for file in (tmp_path / "xml").glob("*.DERControlList.xml"):
        listed = DERControlListResponse.from_xml(file.read_bytes()).DERControl
        assert listed is not None
        assert len(listed) == 4
        for one, after in pairwise(listed):
            assert one.interval.start + one.interval.duration == after.interval.start
        assert [c.EventStatus_.currentStatus for c in listed] == [1, 0, 0, 0]


async def test_controls_of_an_earlier_instant_and_of_two_controllers(tmp_path: Path) -> None:
    """Where two controllers have an envelope, the control is what both allow."""
    ours = "controllers.envelopes.equal_ranges:EqualRanges"
    static = "controllers.envelopes.static_limits:StaticLimits"
    both = f"controllers=[{{name: a, uses: '{ours}'}}, {{name: b, uses: '{static}', every: 10min}}]"
    result = await do(QUICK, tmp_path, "steps=6", both)
    at = datetime(2026, 6, 21, 11, 12, tzinfo=UTC)
    now, several = held(result.directory, at)
    assert now == at
    published = list(envelopes(result.directory))
    for one in several:
        span = one.spans[0]
        assert span.start <= at < span.end
        assert span.region is not None
        _, high = active_range(span.region)
        limits = [
            active_range(Region(e.axes, e.A, e.b))[1]
            for e in published
            if e.target == one.device
            and e.valid_from <= at < e.valid_until
            # the newest of each that acts by then: issued at 11:05 and at 11:00
            and e.issued_at == datetime(2026, 6, 21, 11, 5 if e.controller == "a" else 0, tzinfo=UTC)
        ]
        assert len(limits) == 2
        assert high == pytest.approx(min(limits))
