"""What a microgrid's model leaves to choose, and the links within a group of microgrids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any, Literal

import numpy as np

Source = Literal["generators", "storage", "interruptible loads"]
Capability = Literal["scheduled", "reachable"]

SOURCES: tuple[Source, ...] = ("generators", "storage", "interruptible loads")


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A way from one microgrid of a group to another; the way back is another link.

    Raises:
        ValueError: a capacity below zero, an efficiency outside (0, 1].
    """

    source: str
    target: str
    p_mw: float = 0.0
    """greatest power sent"""
    efficiency: float = 1.0
    """share of the power that arrives"""
    heat_mw: float = 0.0
    """greatest heat sent"""
    heat_efficiency: float = 1.0

    def __post_init__(self) -> None:
        for name in ("p_mw", "heat_mw"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ValueError(
                    f"link {self.source}-{self.target}: {name} {getattr(self, name)} is below zero"
                )
        for name in ("efficiency", "heat_efficiency"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(
                    f"link {self.source}-{self.target}: {name} {getattr(self, name)} not in (0, 1]"
                )


def links(given: Sequence[Link | Mapping[str, Any]]) -> list[Link]:
    """Links as they are, or made of their fields by name.

    Raises:
        ValueError: a field that does not exist or is missing, or a value that does not fit.
    """
    known = [field.name for field in fields(Link)]
    found = []
    for one in given:
        if isinstance(one, Link):
            found.append(one)
            continue
        if not isinstance(one, Mapping):
            raise ValueError(f"links: {one!r} is no link; write {{source: mg1, target: mg2, p_mw: 0.1}}")
        if unknown := [name for name in one if name not in known]:
            raise ValueError(f"link {dict(one)}: {unknown} do not exist; there are {known}")
        if missing := [name for name in known[:2] if name not in one]:
            raise ValueError(f"link {dict(one)}: {missing} is missing; it goes from a source to a target")
        for name, value in one.items():
            wanted, words = (str, "text") if name in known[:2] else ((int, float), "a number")
            if not isinstance(value, wanted) or isinstance(value, bool):
                raise ValueError(f"link {dict(one)}: {name} {value!r} must be {words}")
        found.append(Link(**one))
    return found


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What the model leaves to choose.

    Raises:
        ValueError: an option that does not exist.
    """

    pic_sources: tuple[Source, ...] = ("generators",)
    """what makes the interchange capability"""
    capability: Capability = "scheduled"
    """counted from the schedule, or what can be reached in the interval itself"""
    adjust: timedelta | None = None
    """adjustment time of the capability; `None`: one interval"""
    keep_energy: bool = True
    """whether a store must end no emptier than it is, or half full"""

    def __post_init__(self) -> None:
        if unknown := [source for source in self.pic_sources if source not in SOURCES]:
            raise ValueError(f"pic_sources {unknown} do not exist; there are {list(SOURCES)}")
        if self.capability not in ("scheduled", "reachable"):
            raise ValueError(f"capability {self.capability!r} is neither 'scheduled' nor 'reachable'")
        if self.adjust is not None and self.adjust <= timedelta(0):
            raise ValueError(f"adjust {self.adjust} is no time to adjust in")
