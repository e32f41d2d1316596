"""Conversations: who predicts, who corrects and who dispatches the interchange of each microgrid, in order.

Each part hears only what was said before it in the same step. One that is missing, given twice or asked too
early would not fail, but count as silent and leave its microgrid less than it could have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from difflib import get_close_matches
from itertools import pairwise
from types import MappingProxyType
from typing import Any

from controllers.envelopes.method import EnvelopeMethod
from controllers.envelopes.static_limits import FixedLimits
from controllers.interchange.correction import InterchangeCorrection
from controllers.interchange.dispatch import MicrogridDispatch
from controllers.interchange.prediction import InterchangePrediction
from controllers.interchange.uncorrected import Uncorrected
from scenarios.load import Keys

PARTS: Mapping[str, tuple[type[Any], ...]] = MappingProxyType({
    "prediction": (InterchangePrediction,),
    "correction": (InterchangeCorrection, Uncorrected),
    "dispatch": (MicrogridDispatch,),
})  # fmt: skip
"""The parts of a conversation in their order, and the classes that can have each."""

OURS = "controllers"
"""Package whose classes are known to be what they are; another one's may have any part."""

Wrong = tuple[Keys, Any, str]
"""Where a mistake is, the value there, and what to do."""


def is_part(cls: type[Any]) -> bool:
    """Whether a class has one of the parts."""
    return _part(cls) is not None


@dataclass(frozen=True, slots=True)
class Speaker:
    """A controller of a scenario, as far as it is known."""

    keys: Keys
    name: str
    classes: tuple[type[Any], ...]
    """its own, and that of its fallback"""
    microgrid: Any = None
    """its option of that name"""
    every: timedelta | None = None
    """how often it is asked; `None`: not known"""

    @property
    def part(self) -> str | None:
        """Its part, or that of its fallback; `None`: none that is known."""
        return next((part for cls in self.classes if (part := _part(cls))), None)

    @property
    def shares(self) -> bool:
        """Whether it shares among devices what the network has left, the capabilities taken off."""
        return any(
            issubclass(cls, EnvelopeMethod) and not issubclass(cls, FixedLimits) for cls in self.classes
        )

    @property
    def foreign(self) -> bool:
        """Whether it may have a part that nobody here can know."""
        return self.part is None and any(cls.__module__.partition(".")[0] != OURS for cls in self.classes)


def conversation_problems(
    speakers: Sequence[Speaker], microgrids: Mapping[str, Keys], *, complete: bool = True
) -> Iterator[Wrong]:
    """What keeps a scenario's controllers from talking about its microgrids.

    A scenario of which no controller has a part is left alone, and so is a controller whose part is not
    known: it may have the one that is missing.

    Args:
        speakers: in the order in which they are asked.
        microgrids: where each is, by name.
        complete: whether all controllers are among `speakers`, so that one can be missing.
    """
    parts = {part: [s for s in speakers if s.part == part] for part in PARTS}
    if not microgrids or not any(parts.values()):
        return
    unclear = any(s.foreign for s in speakers) or not complete
    who: dict[str, dict[str, list[Speaker]]] = {name: {part: [] for part in PARTS} for name in microgrids}
    for part, known in parts.items():
        for speaker in known:
            named, wrong = list(microgrids), None
            if part != "correction":
                named, wrong = _named(speaker, list(microgrids))
            if wrong is not None:
                yield wrong
                unclear = True
            for name in named:
                who[name][part].append(speaker)
    for correction in parts["correction"][:1]:
        for early in (s for s in speakers if s.shares and s.keys < correction.keys):
            advice = "shares what capabilities leave, asked before the correction that it has to hear"
            yield (*early.keys, "name"), early.name, f"{advice}; move it below {correction.name!r}"
    said: set[tuple[Keys, str]] = set()
    for name, keys in microgrids.items():
        for at, value, advice in _of_one(name, keys, who[name], unclear=unclear):
            # What the correction does wrong, it does to every microgrid.
            if (at, advice) not in said:
                said.add((at, advice))
                yield at, value, advice


def _of_one(
    name: str, keys: Keys, parts: Mapping[str, Sequence[Speaker]], *, unclear: bool
) -> Iterator[Wrong]:
    for part, speakers in parts.items():
        whose = "" if part == "correction" else f" of {name!r}"
        for again in speakers[1:]:
            advice = f"is a {part}{whose}, as {speakers[0].name!r} is; keep one"
            yield (*again.keys, "name"), again.name, advice
    first = {part: speakers[0] for part, speakers in parts.items() if speakers}
    missing = [part for part in PARTS if part not in first]
    if missing and not unclear:
        there = " and ".join(f"a {part} ({speaker.name!r})" for part, speaker in first.items())
        needed = " and ".join(f"a {part} ({_spelt(part)})" for part in missing)
        yield (
            (*keys, "name"),
            name,
            f"has {there} but lacks {needed}; add it, in the order {', '.join(PARTS)}",
        )
    hearing, heard = first.get("correction"), first.get("prediction")
    if hearing and heard and hearing.every and heard.every and hearing.every % heard.every:
        advice = f"hears only predictions of its own step; make it a multiple of `every` of {heard.name!r}"
        yield (*hearing.keys, "every"), hearing.every, advice
    for before, after in pairwise(first):
        early, late = first[after], first[before]
        if early.keys < late.keys:
            whose = "" if after == "correction" else f" of {name!r}"
            advice = f"is the {after}{whose}, asked before the {before} that it has to hear; move it below"
            yield (*early.keys, "name"), early.name, f"{advice} {late.name!r}"


def _named(speaker: Speaker, known: Sequence[str]) -> tuple[list[str], Wrong | None]:
    """The microgrids that a controller is told to answer for, and what is wrong with how it is told."""
    at, given = (*speaker.keys, "options", "microgrid"), speaker.microgrid
    if given is None:
        if len(known) == 1:
            return list(known), None
        return [], (at, None, f"says not which microgrid is meant; there are {', '.join(known)}")
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return [], None  # said where options are checked
    if strangers := [name for name in names if name not in known]:
        near = get_close_matches(strangers[0], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        return [], (at, given, f"is no microgrid of this scenario; {hint}")
    return list(dict.fromkeys(names)), None


def _part(cls: type[Any]) -> str | None:
    return next((part for part, classes in PARTS.items() if issubclass(cls, classes)), None)


def _spelt(part: str) -> str:
    cls = PARTS[part][0]
    return f"{cls.__module__}:{cls.__name__}"
