"""Coverage: how far ahead a controller looks, held against how long what it says stays in force.

What a controller says acts until it is asked again, `every / step` steps later. An envelope that is safe for
the first of them only is not safe in the others, whose loads are different ones.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from controllers.envelopes.static_limits import FixedLimits
from scenarios.conversations import is_part
from scenarios.load import Keys
from scenarios.schema import ControllerPart, Scenario, spell


def looks_ahead(cls: type[Any]) -> str:
    """The option by which a class is told how many coming steps its answer is for, where it has it."""
    return "horizon" if is_part(cls) else "intervals"


def period(scenario: Scenario, part: ControllerPart) -> int:
    """After how many steps a controller is asked again."""
    return (part.every or scenario.every) // scenario.every


def covering(cls: type[Any], options: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """A class's options, to look ahead as many steps as there are until it is asked again.

    Left as they are where they say how many, for a class that has no such option or whose own value is more,
    and for limits that look at no forecast.
    """
    ahead = looks_ahead(cls)
    try:
        parameter = inspect.signature(cls).parameters.get(ahead)
    except ValueError:  # a class that does not tell
        parameter = None
    if parameter is None or ahead in options or issubclass(cls, FixedLimits):
        return dict(options)
    own = parameter.default
    return {**options, ahead: steps} if isinstance(own, int) and own < steps else dict(options)


def uncovered(scenario: Scenario, part: ControllerPart, cls: type[Any]) -> tuple[Keys, Any, str] | None:
    """Where a controller's part of the scenario leaves steps uncovered or says two things, the value there,
    and what to do."""
    ahead = looks_ahead(cls)
    steps, given = period(scenario, part), part.options.get(ahead)
    every, count = spell(steps * scenario.every), "1 step" if steps == 1 else f"{steps} steps"
    if part.rolling is None:
        if isinstance(given, int) and given < steps:
            advice = (
                f"is less than the {count} until it is asked again (every {every}), in which what it "
                f"says stays in force; give {steps} or more, or leave it out"
            )
            return ("options", ahead), given, advice
        return None
    if part.valid_for is not None:
        advice = "means nothing beside `rolling`, whose schedule says how long it holds; leave it out"
        return ("valid_for",), part.valid_for, advice
    if ahead in part.options:
        advice = "means nothing beside `rolling`; say how many by `rolling: {intervals: N}`"
        return ("options", ahead), given, advice
    if part.rolling.intervals < steps:
        ends = spell(part.rolling.intervals * scenario.every)
        advice = (
            f"its schedule ends after {part.rolling.intervals} intervals ({ends}), before there is a new one "
            f"(every {every}); give it {steps} or more, or ask it more often"
        )
        return ("rolling",), dict(part.rolling), advice
    return None
