"""Corrections: the same day with and without corrected interchange capabilities, for `gridpace compare`."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from controllers.contract import Controller
from controllers.fallback import Fallback
from controllers.interchange.correction import InterchangeCorrection
from controllers.interchange.uncorrected import Uncorrected
from scenarios.load import Draft
from scenarios.plugins import NoSuchController, controller_class
from scenarios.schema import ControllerPart, Scenario


@dataclass(frozen=True, slots=True)
class Alternative:
    """A way to answer predictions of interchange capability."""

    acronym: str
    """how it is asked for"""
    options: Mapping[str, Any] | None
    """of `InterchangeCorrection`, in place of the scenario's of these names; `None`: nothing is corrected"""
    agreement: Mapping[str, Any] = field(default_factory=dict)
    """of the scenario's own correction, see `AGREEMENT`"""


ALTERNATIVES: Mapping[str, Alternative] = MappingProxyType({
    "uncorrected": Alternative("uncorrected", None),
    "corrected": Alternative("corrected", {}),
    "fair": Alternative("fair", {"share": "fair"}),
    "secure": Alternative("secure", {"isolation_secure": True}),
})  # fmt: skip
"""By the word for `--method`: nothing is corrected; as the scenario says; with the losses against the
predictions shared evenly; such that any microgrid may leave."""

USUAL = ("uncorrected", "corrected")
"""What is compared if nothing is asked."""


AGREEMENT = ("reserve_mw", "slack_mw", "batteries", "reserve_h")
"""Options of the correction that say what reserve the operator has, whoever corrects."""


def agreed(draft: Draft, scenario: Scenario) -> dict[str, Any]:
    """What the scenario's correction has to keep in reserve, and of what."""
    own = corrector(draft, scenario)
    return {key: own.options[key] for key in AGREEMENT if own is not None and key in own.options}


def corrector(draft: Draft, scenario: Scenario) -> ControllerPart | None:
    """The scenario's controller that corrects interchange capabilities, or leaves them as they are."""
    for part in scenario.controllers:
        try:
            cls = controller_class(part.uses, draft.folder)
        except NoSuchController:
            continue
        if issubclass(cls, InterchangeCorrection | Uncorrected):
            return part
    return None


def without_room(controllers: Sequence[Controller]) -> tuple[int, list[str]] | None:
    """Which controller corrects capabilities as if devices that envelopes move stood still, and these."""
    looking = [one.first if isinstance(one, Fallback) else one for one in controllers]
    if not any(hasattr(one, "envelopes") for one in looking):
        return None
    for i, one in enumerate(looking):
        if isinstance(one, InterchangeCorrection) and one.outside_part is None and (moved := one.customers):
            return i, list(moved)
    return None


def wanted(draft: Draft, scenario: Scenario, names: Sequence[str]) -> list[Alternative] | None:
    """The alternatives that are asked for; `None` where methods of envelopes are, or nothing is corrected."""
    if corrector(draft, scenario) is None or not {name.lower() for name in names} <= ALTERNATIVES.keys():
        return None
    return [ALTERNATIVES[name] for name in dict.fromkeys(name.lower() for name in names or USUAL)]


def alternatives(
    draft: Draft, scenario: Scenario, chosen: Sequence[Alternative]
) -> Iterator[tuple[Alternative, dict[str, Any]]]:
    """The scenario's raw mapping under each alternative; everything else is as it was."""
    own, agreement = corrector(draft, scenario), agreed(draft, scenario)
    assert own is not None  # `wanted` saw it
    for one in chosen:
        raw = copy.deepcopy(draft.raw)
        raw["controllers"] = [
            _replaced(part, one) if part.get("name") == own.name else part for part in raw["controllers"]
        ]
        yield replace(one, agreement=agreement), raw


def _replaced(part: dict[str, Any], one: Alternative) -> dict[str, Any]:
    options = dict(part.get("options") or {})
    if one.options is None:
        cls: type[Any] = Uncorrected
        options = {key: value for key, value in options.items() if key == "horizon"}
    else:
        cls = InterchangeCorrection
        options |= one.options
        if part["uses"] != f"{Uncorrected.__module__}:{Uncorrected.__name__}":
            return {**part, "options": options}
    return {**part, "uses": f"{cls.__module__}:{cls.__name__}", "options": options}
