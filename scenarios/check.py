"""Check: every mistake of a scenario at once, each with its place, its value and what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from bridges.bus import shown
from scenarios.conversations import OURS, Speaker, conversation_problems
from scenarios.external import misplaced as misplaced_outside
from scenarios.faults import misplaced as misplaced_faults
from scenarios.faults import misplaced_in
from scenarios.grids import GridError, bus_of, load_grid
from scenarios.leading import Member, following_problems, follows, microgrid_problems, named
from scenarios.load import Draft, Keys
from scenarios.microgrids import misplaced_devices, named_twice, not_prices, out_of_sight
from scenarios.options import misplaced, mistakes
from scenarios.plugins import NoSuchController, controller_class
from scenarios.schema import Duration, GridPart, Scenario, spell
from scenarios.secrecy import HIDDEN, secrets_in, without_secrets
from simulators.clock import Mode

_SILENT = object()
"""Marks a value that is not there."""
_NAMED = ("devices", "fleets", "regulators", "microgrids", "controllers")
"""Sections whose items have names."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake."""

    path: str
    """e.g. `devices.der1.s_mva`"""
    value: str
    """what was found, shortened"""
    advice: str
    """what is wrong and what to do"""
    line: int | None = None
    """in the scenario's own file"""

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        return f"{where}{self.path} = {self.value}: {self.advice}"


class ScenarioInvalid(ValueError):
    """A scenario with mistakes; `problems` lists all that were found."""

    def __init__(self, origin: str, problems: list[Problem]) -> None:
        super().__init__("\n".join([f"scenario {origin}: {len(problems)} problem(s)", *map(str, problems)]))
        self.problems = problems


def validate(draft: Draft) -> Scenario:
    """The scenario of a draft.

    Raises:
        ScenarioInvalid: with all mistakes.
    """
    found: list[Problem] = []
    scenario = None
    try:
        scenario = Scenario.model_validate(draft.raw)
    except ValidationError as error:
        found += [_from_pydantic(draft, detail) for detail in error.errors(include_url=False)]
    found += [
        Problem(
            ".".join(map(str, _named(draft.raw, keys))),
            "(again)",
            f"is given twice; keep one (line {line})",
            line,
        )
        for keys, line in draft.repeated
    ]
    found += _references(draft)
    hidden = [problem_at(draft, keys, HIDDEN, advice) for keys, advice in secrets_in(draft.raw)]
    found = [*(p for p in found if p.path not in {h.path for h in hidden}), *hidden]
    if found or scenario is None:
        unique = list(dict.fromkeys(found))
        raise ScenarioInvalid(draft.origin, sorted(unique, key=lambda p: (p.line is None, p.line or 0)))
    return scenario


def notices(draft: Draft, scenario: Scenario) -> list[Problem]:
    """What is allowed in a scenario and may yet not be what was meant."""
    return [problem_at(draft, *found) for found in (*out_of_sight(scenario), *_out_of_time(scenario))]


def _out_of_time(scenario: Scenario) -> Iterator[tuple[Keys, Any, str]]:
    """What is said of the clock, and the clock does not heed."""
    clock = scenario.clock
    if clock.factor != 1.0 and clock.mode is not Mode.SCALED:
        yield ("clock", "factor"), clock.factor, f"counts with mode: scaled, and the mode is {clock.mode}"
    if clock.mode is Mode.FAST:
        return
    period = scenario.every / (clock.factor if clock.mode is Mode.SCALED else 1.0)
    for i, part in enumerate(scenario.controllers):
        if part.deadline is not None and part.deadline >= period:
            advice = f"leaves nothing of a step, which takes {spell(period)} of the wall clock: a decision "
            advice += "that is so late delays the steps after it; make it shorter"
            yield ("controllers", i, "deadline"), part.deadline, advice


def _named(raw: Any, keys: Keys) -> Keys:
    """A path as `--set` takes it, with items of lists by name."""
    words: list[str | int] = []
    place = raw
    for key in keys:
        if isinstance(place, list) and isinstance(key, int) and key < len(place):
            place = place[key]
            name = place.get("name") if isinstance(place, dict) else None
            words.append(name if isinstance(name, str) else key)
        else:
            words.append(key)
            place = place.get(key) if isinstance(place, dict) else None
    return tuple(words)


def _show(value: Any) -> str:
    if value is _SILENT:
        return "(missing)"
    if isinstance(value, timedelta):
        return spell(value)
    if isinstance(value, dict):
        value = {key: spell(v) if isinstance(v, timedelta) else v for key, v in value.items()}
    text = repr(without_secrets(value))
    return text if len(text) <= 60 else text[:57] + "..."


def problem_at(draft: Draft, keys: Keys, value: Any, advice: str) -> Problem:
    """A mistake at a path of a draft, with the line in the user's file of the key or of what holds it."""
    named = _named(draft.raw, keys)
    lines = (draft.lines.get(path[:n]) for n in (len(keys), len(keys) - 1) for path in (named, keys))
    line = next((line for line in lines if line is not None), None)
    if keys and keys[-1] == "url" and isinstance(value, str):
        value = shown(value)
    return Problem(".".join(map(str, named)) or "(the whole file)", _show(value), advice, line)


def _from_pydantic(draft: Draft, detail: ErrorDetails) -> Problem:
    keys, tags = _keys(draft.raw, detail["loc"])
    value, advice = detail["input"], detail["msg"]
    match detail["type"]:
        case "extra_forbidden":
            known = _fields(Scenario, (*tags[:-1],))
            near = get_close_matches(str(keys[-1]), known, n=1)
            meant = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(known))}"
            advice = f"is no key that is known here; {meant}"
        case "missing":
            value, advice = _SILENT, "is required; add it"
        case "union_tag_invalid" | "union_tag_not_found":
            context = detail.get("ctx", {})
            kind = str(context.get("discriminator", "'kind'")).strip("'")
            tagged = [tag for model in _at(Scenario, tags) for tag in _tags(model)]
            expected = str(context.get("expected_tags", "")) or ", ".join(map(repr, tagged))
            given = value.get(kind, _SILENT) if isinstance(value, dict) else value
            keys, value = (*keys, kind), given
            near = get_close_matches(str(given), [tag.strip(" '") for tag in expected.split(",")], n=1)
            if given == "external":
                advice = "needs via, the way to the real device, and twin, the kind that it is, e.g. battery"
                return problem_at(draft, keys, value, advice)
            advice = "is no kind that is known here" if given is not _SILENT else "is required"
            advice += f"; did you mean {near[0]!r}?" if near else (f"; choose {expected}" if expected else "")
        case "value_error":
            advice = str(detail.get("ctx", {}).get("error", advice))
            if isinstance(value, dict) and value.get("name"):
                value = value["name"]
        case "bool_type" | "bool_parsing":
            advice = "must be true or false"
        case "float_type" | "float_parsing":
            advice = "must be a number, without quotes"
        case "list_type" | "tuple_type":
            named = keys[-1] in _NAMED and isinstance(value, dict)
            first = next(iter(value), "...") if named else None
            advice = f"must be a list: `- name: {first}`" if named else "must be a list, such as [a, b]"
        case "too_short":
            advice = f"has too few; give at least {detail.get('ctx', {}).get('min_length', 1)}"
        case "dict_type" | "model_type":
            switch = "true, false or " if keys[-1] in ("certified", "rolling") else ""
            advice = f"must be {switch}a mapping, such as {{key: value}}"
        case "int_type" | "int_from_float" | "int_parsing":
            advice = "must be a whole number, without quotes"
        case "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal":
            advice = advice.replace("Input should be", "must be")
        case "timezone_aware":
            advice = "has no time zone; write it as UTC, e.g. 2026-06-21T00:00:00Z"
        case "datetime_from_date_parsing" | "datetime_parsing" | "datetime_type" | "datetime_object_invalid":
            advice = "is no date and time; write it as 2026-06-21T00:00:00Z"
        case "string_pattern_mismatch":
            pattern = detail.get("ctx", {}).get("pattern", "")
            advice = {
                "uses": "must read module:Class or file.py:Class",
                "fallback": "must read module:Class or file.py:Class",
                "process": "must be here, own or a name, of 1 to 64 of the characters A-Z a-z 0-9 _ . -",
                "name": "must have 1 to 64 of the characters A-Z a-z 0-9 _ . -",
                "url": "must read mqtt://host:port or mqtts://host:port (credentials: environment)",
            }.get(str(keys[-1]), f"must match {pattern}")
        case _:
            advice = advice.replace("Input should be", "must be")
    return problem_at(draft, keys, value, advice)


def _keys(raw: Any, loc: tuple[int | str, ...]) -> tuple[Keys, tuple[int | str, ...]]:
    """A pydantic location as the file's own keys (without the tags of unions), and as it came."""
    keys: list[int | str] = []
    place = raw
    for key in loc:
        if isinstance(place, dict) and key not in place and place.get("kind", place.get("what")) == key:
            continue
        keys.append(key)
        if isinstance(place, dict):
            place = place.get(key)
        elif isinstance(place, list) and isinstance(key, int) and key < len(place):
            place = place[key]
        else:
            place = None
    return tuple(keys), loc


def _fields(annotation: Any, loc: tuple[int | str, ...]) -> list[str]:
    """Names of the keys that may stand at a pydantic location."""
    found = (model.model_fields.items() for model in _at(annotation, loc))
    return [field.alias or name for fields in found for name, field in fields]


def _at(annotation: Any, loc: tuple[int | str, ...]) -> list[type[BaseModel]]:
    """The parts of a scenario that may stand at a pydantic location."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _at(get_args(annotation)[0], loc)
    if origin in (Union, UnionType):
        members = [m for m in get_args(annotation) if m is not type(None)]
        tagged = [m for m in members if loc and loc[0] in _tags(m)]
        if tagged:
            return _at(tagged[0], loc[1:])
        return [model for m in members for model in _at(m, loc)]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if not loc:
            return [annotation]
        field = annotation.model_fields.get(str(loc[0]))
        if field is None:
            return []
        whole: Any = (
            Annotated[field.annotation, field.discriminator] if field.discriminator else field.annotation
        )
        return _at(whole, loc[1:])
    if origin in (list, tuple, dict) and loc:
        return _at(get_args(annotation)[-1], loc[1:])
    return []


def _tags(model: Any) -> tuple[Any, ...]:
    """The kinds for which a part of a union stands."""
    for key in ("kind", "what"):
        field = getattr(model, "model_fields", {}).get(key)
        if field is not None and get_origin(field.annotation) is Literal:
            return get_args(field.annotation)
    return ()


def _items(raw: Any, section: str) -> list[tuple[Keys, dict[str, Any]]]:
    """The items of a list of the raw scenario that are mappings, with their paths."""
    items = raw.get(section)
    if not isinstance(items, list):
        return []
    return [((section, i), item) for i, item in enumerate(items) if isinstance(item, dict)]


def _references(draft: Draft) -> Iterator[Problem]:
    """What only the whole file shows; reads the raw mapping, so that other mistakes do not hide these."""
    raw = draft.raw
    for section in ("devices", "regulators", "microgrids", "controllers"):
        names = Counter(str(item.get("name")) for _, item in _items(raw, section) if "name" in item)
        seen: set[str] = set()
        for keys, item in _items(raw, section):
            name = str(item.get("name"))
            if names[name] > 1 and name in seen:
                # Named by position: both have the same name.
                p = problem_at(draft, (*keys, "name"), name, "is a name used before; give each its own")
                yield Problem(f"{section}.{keys[1]}.name", p.value, p.advice, p.line)
            seen.add(name)
    yield from (problem_at(draft, *wrong) for wrong in (*named_twice(raw), *not_prices(raw)))
    yield from (problem_at(draft, *wrong) for wrong in misplaced_outside(raw))
    yield from (problem_at(draft, *wrong) for wrong in misplaced_faults(raw))
    yield from _profile_references(draft)
    yield from _bus_references(draft)
    yield from _controllers(draft)
    yield from _conversations(draft)


def _profile_references(draft: Draft) -> Iterator[Problem]:
    raw = draft.raw
    profiles = raw.get("profiles")
    known = list(profiles) if isinstance(profiles, dict) else []
    grid = raw.get("grid")
    tables = grid.get("profiles") if isinstance(grid, dict) else None
    uses: list[tuple[Keys, Any]] = [
        ((*keys, "profile"), d.get("profile")) for keys, d in _items(raw, "devices")
    ]
    uses += [(("grid", "profiles", k), v) for k, v in tables.items()] if isinstance(tables, dict) else []
    for keys, grid in _items(raw, "microgrids"):
        heat = grid.get("heat")
        uses.append(((*keys, "price"), grid.get("price")))
        uses += [((*keys, "heat", "profile"), heat.get("profile"))] if isinstance(heat, dict) else []
    for path, name in uses:
        if name is None or name in known:
            continue
        near = get_close_matches(str(name), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known) or 'none'}"
        yield problem_at(draft, path, name, f"is no profile of this scenario; {hint}")


def _bus_references(draft: Draft) -> Iterator[Problem]:
    grid = draft.raw.get("grid")
    if not isinstance(grid, dict):
        return
    try:
        part = GridPart.model_validate({"network": grid.get("network")})
    except ValidationError:
        return  # said already
    try:
        net = load_grid(part.network, draft.folder)
    except GridError as error:
        yield problem_at(draft, ("grid", "network"), part.network, str(error))
        return
    sections = ("devices", "regulators", "microgrids")
    for keys, item in (found for section in sections for found in _items(draft.raw, section)):
        bus = item.get("bus", _SILENT)
        if isinstance(bus, int | str) and not isinstance(bus, bool):
            try:
                bus_of(net, bus)
            except GridError as error:
                yield problem_at(draft, (*keys, "bus"), bus, str(error))
    yield from (problem_at(draft, *wrong) for wrong in misplaced_devices(draft.raw, net))
    yield from (problem_at(draft, *wrong) for wrong in misplaced_in(draft.raw, net))
    yield from _taps(draft, list(net.trafo.index))


def _taps(draft: Draft, transformers: list[int]) -> Iterator[Problem]:
    """Tap changers of transformers that are not there, or of what another one regulates already."""
    used: dict[str, str] = {}
    for keys, item in _items(draft.raw, "regulators"):
        at = item.get("at", "source")
        if item.get("kind") != "tap-changer" or not isinstance(at, str):
            continue
        table, _, index = at.partition(":")
        if table == "trafo" and index.isdecimal() and int(index) not in transformers:
            known = ", ".join(f"trafo:{i}" for i in transformers)
            there = f"there are {known}" if known else "it has none; regulate the source (at: source)"
            yield problem_at(draft, (*keys, "at"), at, f"is no transformer of the grid; {there}")
        if at in used:
            yield problem_at(draft, (*keys, "at"), at, f"is regulated by {used[at]!r} already; keep one")
        used.setdefault(at, str(item.get("name")))


def _controllers(draft: Draft) -> Iterator[Problem]:
    length = TypeAdapter(Duration)
    for keys, item in _items(draft.raw, "controllers"):
        for key in ("uses", "fallback"):
            uses = item.get(key)
            if isinstance(uses, str) and uses.count(":") >= 1:
                try:
                    cls = controller_class(uses, draft.folder)
                except NoSuchController as error:
                    yield problem_at(draft, (*keys, key), uses, str(error))
                    continue
                yield from _options(draft, keys, key, item, cls)
        try:
            step = length.validate_python(draft.raw.get("every"))
            every = length.validate_python(item["every"]) if item.get("every") else step
        except ValidationError:
            continue  # said already
        try:
            valid_for = length.validate_python(item["valid_for"])
        except (ValidationError, KeyError):
            valid_for = every
        if valid_for < every:
            advice = "must be at least 'every', or each decision lapses before the next"
            yield problem_at(draft, (*keys, "valid_for"), item["valid_for"], advice)
        if every % step:
            yield problem_at(
                draft, (*keys, "every"), item["every"], "must be a multiple of the scenario's step"
            )


def _conversations(draft: Draft) -> Iterator[Problem]:
    """What keeps controllers from talking about the microgrids; where a class is not found, it may have any
    part."""
    speakers, complete = [], True
    members, sure = [], True
    for keys, item in _items(draft.raw, "controllers"):
        classes = []
        for uses in (item.get(key) for key in ("uses", "fallback") if item.get(key) is not None):
            try:
                classes.append(controller_class(str(uses), draft.folder))
            except NoSuchController:
                complete = False
        options = item.get("options")
        microgrid = options.get("microgrid") if isinstance(options, dict) else None
        try:
            every = TypeAdapter(Duration).validate_python(item.get("every") or draft.raw.get("every"))
        except ValidationError:
            every = None
        speakers.append(Speaker(keys, str(item.get("name")), tuple(classes), microgrid, every))
        known = follows(classes[0]) if len(classes) == 1 + (item.get("fallback") is not None) else None
        leads = named(keys, options)
        members.append(Member(keys, str(item.get("name")), leads, known, every))
        # Another package's class may know by itself whom it leads, which the build sees.
        ours = all(cls.__module__.partition(".")[0] == OURS for cls in classes)
        sure = sure and known is not None and (ours or known or bool(leads))
    grids = {str(item.get("name")): keys for keys, item in _items(draft.raw, "microgrids")}
    for where, value, advice in conversation_problems(speakers, grids, complete=complete):
        yield problem_at(draft, where, _SILENT if value is None else value, advice)
    wrong = [*following_problems(members, complete=sure)]
    for keys, item in _items(draft.raw, "controllers"):
        wrong += microgrid_problems(keys, item.get("options"), list(grids))
        if item.get("conversation") is not None and not named(keys, item.get("options")):
            advice = "is of a leader, and this controller names no `followers` in its options; leave it out"
            wrong.append(((*keys, "conversation"), item["conversation"], advice))
    for where, value, advice in wrong:
        yield problem_at(draft, where, value, advice)


def _options(draft: Draft, keys: Keys, key: str, item: dict[str, Any], cls: type[Any]) -> Iterator[Problem]:
    """Options that the class named at `key` does not take as they are. A fallback is given none."""
    wrong = misplaced(cls)
    options = item.get("options", {}) if key == "uses" else {}
    if wrong is not None:
        yield problem_at(draft, (*keys, key), item[key], wrong)
    elif key == "fallback":
        for name, _ in mistakes(cls, {}):
            yield problem_at(draft, (*keys, key), item[key], f"needs {name!r}; a fallback has no options")
    elif isinstance(options, dict):
        for name, advice in mistakes(cls, options):
            yield problem_at(draft, (*keys, "options", name), options.get(name, _SILENT), advice)
