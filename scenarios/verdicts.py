"""Verdicts: what became of a scenario's expectations, from nothing but the tables of its run.

A value that is missing counts as not held: one that is null, and one of a bus, branch or device that
other steps have and this step has not. An expectation that found nothing to check did not hold.
"""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC
from pathlib import Path
from typing import assert_never

from scenarios.expectations import (
    AnyExpectation,
    CurtailedBelow,
    Decided,
    DivergenceBelow,
    DurationBelow,
    EnvelopeRespected,
    Expectation,
    GapBelow,
    InterchangeRespected,
    LoadingBelow,
    OriginShare,
    UnservedBelow,
    VoltageWithin,
    percent,
)
from scenarios.field_verdicts import MeasuredField, divergence
from scenarios.figures import (
    UNCONTROLLED,
    UNDECIDED,
    Duration,
    InForce,
    Readings,
    device_steps,
    durations,
    energies,
    quantile,
    rows,
    step_times,
)
from scenarios.findings import (
    ROUNDING,
    Verdict,
    Worst,
    distance,
    labelled,
    lacking,
    leading,
    shared,
    stamp,
    unfounded,
)
from scenarios.iterations import gap
from scenarios.microgrid_verdicts import interchange_respected, unserved
from scenarios.plain import write_json
from simulators.journal import replacing

__all__ = ["JUNIT", "VERDICTS", "AnyExpectation", "Expectation", "Verdict", "Worst", "evaluate", "judge"]

VERDICTS = "verdicts.json"
JUNIT = "junit.xml"


def judge(run_dir: Path, expectations: Sequence[AnyExpectation]) -> tuple[Verdict, ...]:
    """Judge a run and write `verdicts.json` and `junit.xml` into its folder.

    Raises:
        simulators.journal.NoTables: the folder holds no tables.
    """
    verdicts = tuple(evaluate(run_dir, expectation) for expectation in expectations)
    write_json(
        run_dir / VERDICTS,
        {"held": all(v.held for v in verdicts), "verdicts": [asdict(v) for v in verdicts]},
    )
    with replacing(run_dir / JUNIT) as file:
        ET.ElementTree(_junit(run_dir.name, verdicts)).write(file, encoding="utf-8", xml_declaration=True)
    return verdicts


def evaluate(run_dir: Path, expectation: AnyExpectation) -> Verdict:
    """Judge one expectation; reads the tables piece by piece and writes nothing."""
    match expectation:
        case VoltageWithin() | LoadingBelow():
            return _within(run_dir, expectation)
        case EnvelopeRespected():
            return _envelope_respected(run_dir, expectation)
        case Decided():
            return _decided(run_dir, expectation)
        case OriginShare():
            return _origin_share(run_dir, expectation)
        case DurationBelow():
            return _duration(run_dir, expectation)
        case CurtailedBelow():
            return _curtailed(run_dir, expectation)
        case InterchangeRespected():
            return interchange_respected(run_dir, expectation)
        case UnservedBelow():
            return unserved(run_dir, expectation)
        case GapBelow():
            return gap(run_dir, expectation)
        case DivergenceBelow():
            return divergence(run_dir, expectation)
        case _:
            assert_never(expectation)


def _within(run_dir: Path, expected: VoltageWithin | LoadingBelow) -> Verdict:
    if isinstance(expected, VoltageWithin):
        (low, high), kind, unit = expected.between, "bus", "pu"
        what = f"voltages between {low:g} and {high:g} pu"
    else:
        low, high, kind, unit = -math.inf, expected.below, "branch", "%"
        what = f"loadings below {high:g} %"
    found = Readings.of(run_dir, expected.what, low, high, ROUNDING)
    steps = len(step_times(run_dir)[0])
    gaps = {name: steps - n - found.unrated[name] for name, n in sorted(found.present.items())}
    gaps = {name: gap for name, gap in gaps.items() if gap > 0}
    missing = sum(gaps.values())
    worst = spoken = None
    if (reading := found.worst) is not None:
        by = found.excess(reading)
        worst = Worst(name=reading.name, time=reading.time, value=reading.value, by=by)
        spoken = (
            f"{leading(by)}{labelled(kind, reading.name)} with {reading.value:.5g} {unit}, "
            f"{stamp(reading.time)}, {distance(by, unit)}"
        )
    return shared(
        expected,
        what,
        found.inside,
        checked=found.present.total() + missing,
        missing=missing,
        gap=next((labelled(kind, name) for name in gaps), None),
        uncounted={"without_rating": found.unrated.total()} if found.unrated else {},
        worst=worst,
        spoken=spoken,
    )


def _envelope_respected(run_dir: Path, expected: EnvelopeRespected) -> Verdict:
    envelopes, field = InForce(run_dir), MeasuredField(run_dir)
    checked = held = missing = without = home = untold = 0
    gap = worst = spoken = None
    for time, devices in device_steps(run_dir):
        in_force, real = envelopes.at(time), field.at(time)
        for name in sorted(devices.keys() | in_force.keys()):
            newest = in_force.get(name)
            if not newest or field.early(name, real.get(name)):
                without += name in devices and devices[name]["state"] != UNCONTROLLED
                continue
            away = field.away(name, devices[name]) if name in real else None
            if name in field.listened_to:
                untold += 1
                continue
            if away is not None and away <= expected.tolerance_mw:
                home += 1
                continue
            checked += 1
            excesses: dict[str, float | None] = dict.fromkeys(newest)
            if name in devices:
                excesses = {c: e.excess(devices[name]) for c, e in newest.items()}
                if (measured_at := real.get(name)) is not None:
                    excesses |= field.excesses(name, devices[name], measured_at)
            known = {c: x for c, x in excesses.items() if x is not None}
            if len(known) < len(excesses):
                missing += 1
                gap = gap or f"{labelled('device', name)}, {stamp(time)}"
                continue
            controller, by = max(known.items(), key=lambda item: item[1])
            held += by <= expected.tolerance_mw
            if worst is None or worst.by is None or by > worst.by:
                p_mw = devices[name]["p_mw"]
                worst = Worst(name=name, time=time, value=p_mw, by=by)
                at = "" if p_mw is None else f" at {p_mw:.6g} MW"
                spoken = (
                    f"{leading(by - expected.tolerance_mw)}{labelled('device', name)}{at}, {stamp(time)}, "
                    f"{distance(by, 'MW')}, envelope of {labelled('controller', controller)}"
                )
                if away is not None:
                    said = devices[name]["state"]
                    spoken += f"; it says {said}, {away:.3g} MW outside its fallback"
    return shared(
        expected,
        "points of devices in every valid envelope",
        held,
        checked=checked,
        missing=missing,
        gap=gap,
        uncounted={
            **({"without_region": without} if without else {}),
            **({"in_fallback": home} if home else {}),
            **({"in_a_dry_run": untold} if untold else {}),
        },
        worst=worst,
        spoken=spoken,
    )


def _decided(run_dir: Path, expected: Decided) -> Verdict:
    origins: Counter[str] = Counter()
    worst = spoken = None
    for row in rows(run_dir, "steps", ["time", "controller", "origin"]):
        if row["controller"] is None:
            continue
        origin = row["origin"] or "missing"
        origins[origin] += 1
        if worst is None and (origin in UNDECIDED or origin == "missing"):
            worst = Worst(name=row["controller"], time=row["time"].astimezone(UTC), value=None, by=None)
            spoken = f"first without: {labelled('controller', worst.name)}, {stamp(worst.time)}"
    instead = {o: n for o, n in sorted(origins.items()) if o in UNDECIDED or o == "missing"}
    if instead:
        spoken = f"{', '.join(f'{n} {origin}' for origin, n in instead.items())}; {spoken}"
    return shared(
        expected,
        "due decisions made",
        origins.total() - sum(instead.values()),
        checked=origins.total(),
        missing=origins["missing"],
        gap=None,
        uncounted={},
        worst=worst,
        spoken=spoken,
    )


def _origin_share(run_dir: Path, expected: OriginShare) -> Verdict:
    origins: Counter[str] = Counter()
    first: dict[str, Worst] = {}
    for row in rows(run_dir, "steps", ["time", "controller", "origin"]):
        if row["controller"] is not None:
            origin = row["origin"] or "missing"
            origins[origin] += 1
            at = Worst(name=row["controller"], time=row["time"].astimezone(UTC), value=None, by=None)
            first.setdefault(origin, at)
    total = origins.total()
    if not total:
        return unfounded(expected, "origin_share: no controller was due")
    counted = {origin: origins[origin] for origin in expected.origins if origins[origin]}
    share = sum(counted.values()) / total
    each = ", ".join(f"{n} {origin}" for origin, n in counted.items()) or "none"
    worst = next((first[origin] for origin in expected.origins if origin in first), None)
    since = f"; first: {labelled('controller', worst.name)}, {stamp(worst.time)}" if worst else ""
    held = share <= expected.at_most + 1e-12 if expected.at_most is not None else True
    if expected.at_least is not None:
        held = share >= expected.at_least - 1e-12
    return Verdict(
        what=expected.what,
        required=str(expected),
        held=held,
        sentence=f"{each} of {total} due decisions ({percent(share)}){since}"
        + lacking(origins["missing"], None),
        checked=total,
        missing=origins["missing"],
        share=share,
        observed=share,
        worst=worst,
    )


def _duration(run_dir: Path, expected: DurationBelow) -> Verdict:
    found = list(durations(run_dir, expected.what))
    if not found:
        why = "; the clock was not paced, use live or scaled" if expected.what == "lateness_ms" else ""
        return unfounded(expected, f"{expected.what}: nothing was measured{why}")
    # What is missing may have taken any time.
    observed = quantile(sorted(math.inf if d.ms is None else d.ms for d in found), expected.rank)
    missing = sum(d.ms is None for d in found)
    known = not math.isinf(observed)
    figure = f"is {observed:.4g} ms" if known else "is not known"
    sentence = f"{expected.statistic} of {len(found)} values {figure}, limit {expected.limit_ms:g} ms"
    longest = max(found, key=_ms)
    worst = None
    if longest.ms is not None:
        by = longest.ms - expected.limit_ms
        worst = Worst(name=longest.name, time=longest.time, value=longest.ms, by=by)
        sentence += f"; greatest: {longest.ms:.4g} ms, {longest.name}, {stamp(longest.time)}"
    return Verdict(
        what=expected.what,
        required=str(expected),
        held=observed <= expected.limit_ms + ROUNDING,
        sentence=sentence + lacking(missing, next((d.name for d in found if d.ms is None), None)),
        checked=len(found),
        missing=missing,
        observed=observed if known else None,
        worst=worst,
    )


def _ms(duration: Duration) -> float:
    return -math.inf if duration.ms is None else duration.ms


def _curtailed(run_dir: Path, expected: CurtailedBelow) -> Verdict:
    times, every = step_times(run_dir)
    if every is None:
        return unfounded(expected, "curtailed_mwh: a run of less than two steps has no known length of step")
    found = {
        name: (energy.curtailed, energy.curtailed_steps)
        for name, energy in energies(run_dir, every).items()
        if energy.curtailed is not None
    }
    if not found:
        return unfounded(expected, "curtailed_mwh: no device could be curtailed")
    gaps = {name: len(times) - n for name, (_, n) in found.items() if n < len(times)}
    missing = sum(gaps.values())
    total = math.fsum(mwh for mwh, _ in found.values())
    name, (most, _) = max(found.items(), key=lambda item: item[1][0])
    sentence = (
        f"{'at least ' if missing else ''}{total:.4g} MWh curtailed, limit {expected.below:g} MWh; "
        f"most: {labelled('device', name)} with {most:.4g} MWh"
    )
    return Verdict(
        what=expected.what,
        required=str(expected),
        held=not missing and total <= expected.below + ROUNDING,
        sentence=sentence + lacking(missing, next((labelled("device", name) for name in gaps), None)),
        checked=len(times) * len(found),
        missing=missing,
        observed=total,
        worst=Worst(name=name, time=None, value=most, by=total - expected.below),
    )


def _junit(run: str, verdicts: Sequence[Verdict]) -> ET.Element:
    failures = sum(not verdict.held for verdict in verdicts)
    suite = ET.Element("testsuite", name=run, tests=str(len(verdicts)), failures=str(failures), errors="0")
    for verdict in verdicts:
        case = ET.SubElement(suite, "testcase", classname=run, name=_xml(verdict.required))
        if verdict.held:
            ET.SubElement(case, "system-out").text = _xml(verdict.sentence)
        else:
            ET.SubElement(case, "failure", type=verdict.what, message=_xml(verdict.sentence))
    return suite


def _xml(text: str) -> str:
    """`text` without the characters that XML cannot hold."""
    return re.sub(r"[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", text)
