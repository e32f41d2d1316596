"""An independent checker of what docs/wire.md calls valid: written from the page, with Python's json alone.

It shares no code with `bridges`. What `bridges` accepts must be valid here; what it refuses may be.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime
from itertools import pairwise
from typing import Any, NoReturn

Rule = Callable[[Any], bool]

MOST_BYTES = 65_000
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]00(:?00)?)")
LIVES = {"received", "applied", "refused", "superseded", "expired", "fallback"}
CODES = {"old", "stale", "early", "capability", "malformed", "held"}
REGIMES = {"init", "controlled", "limited", "failsafe"}


def valid(kind: str, payload: bytes) -> bool:
    """Whether a payload is a message of a kind, one of `RULES`."""
    if len(payload) > MOST_BYTES:
        return False
    try:
        return RULES[kind](json.loads(payload.decode("utf-8"), parse_constant=_constant))
    except (ValueError, RecursionError):
        return False


def _constant(word: str) -> NoReturn:
    raise ValueError(word)


# Words


def name(x: Any) -> bool:
    return isinstance(x, str) and NAME.fullmatch(x) is not None


def area(x: Any) -> bool:
    return name(x) and x not in ("ctl", "area")


def text(x: Any) -> bool:
    return isinstance(x, str)


def reason(x: Any) -> bool:
    return isinstance(x, str) and len(x) <= 300


def number(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and -1.8e308 < x < 1.8e308


def measured(x: Any) -> bool:
    return number(x) and -1e12 <= x <= 1e12


def limited(row: list[float], x: float) -> bool:
    length = sum(c * c for c in row) ** 0.5
    return 1e-12 <= length <= 1e12 and abs(x) <= 1e12 and abs(x) / length <= 1.000001e12


def whole(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and abs(x) < 1e300 and x == int(x)


def count(x: Any) -> bool:
    return whole(x) and 0 <= x <= 2**53


def lives(x: Any) -> bool:
    return 0 < x <= 366 * 24 * 3600 * 1000


def time(x: Any) -> bool:
    return instant(x) is not None


def instant(x: Any) -> datetime | None:
    """The instant that a text names, in UTC; `None`: none."""
    if not isinstance(x, str) or not TIME.fullmatch(x):
        return None
    try:
        found = datetime.fromisoformat(x[:10] + "T" + x[11:19] + "+00:00")
    except ValueError:
        return None
    return found if 1970 <= found.year <= 2200 else None


def order(before: Any, after: Any) -> bool:
    """Whether one instant comes before another, to the microsecond; a text of digits orders as they do."""

    def key(x: str) -> tuple[datetime | None, str]:
        return instant(x), re.split(r"[Zz+-]", x[19:])[0].lstrip(".").ljust(6, "0")[:6]

    return key(before) < key(after)  # type: ignore[operator]


def same(a: Any, b: Any) -> bool:
    return not order(a, b) and not order(b, a)


def null_or(rule: Rule) -> Rule:
    return lambda x: x is None or rule(x)


def one_of(*words: str) -> Rule:
    return lambda x: isinstance(x, str) and x in words


def listed(rule: Rule, least: int = 0, most: int | None = None) -> Rule:
    return lambda x: (
        isinstance(x, list) and least <= len(x) and (most is None or len(x) <= most) and all(map(rule, x))
    )


def row(*rules: Rule, least: int | None = None, closed: bool = True) -> Rule:
    """A list with a meaning for each place; from `least` on places may be left out."""

    def check(x: Any) -> bool:
        if not isinstance(x, list) or len(x) < (len(rules) if least is None else least):
            return False
        return (not closed or len(x) <= len(rules)) and all(
            rule(y) for rule, y in zip(rules, x, strict=False)
        )

    return check


def keys(required: dict[str, Rule], optional: dict[str, Rule], *, closed: bool) -> Rule:
    """An object; `closed`: without other keys."""
    known = required | optional

    def check(x: Any) -> bool:
        if not isinstance(x, dict) or not required.keys() <= x.keys():
            return False
        return (not closed or x.keys() <= known.keys()) and all(
            known[k](v) for k, v in x.items() if k in known
        )

    return check


# Parts


def half_spaces(x: Any) -> bool:
    rule = keys(
        {"axes": listed(name, 1), "A": listed(listed(number)), "b": listed(measured)}, {}, closed=True
    )
    return (
        rule(x)
        and len(set(x["axes"])) == len(x["axes"])
        and len(x["A"]) == len(x["b"])
        and all(len(r) == len(x["axes"]) and limited(r, b) for r, b in zip(x["A"], x["b"], strict=True))
    )


def target(x: Any) -> bool:
    rule = keys({"p_mw": null_or(number), "q_mvar": null_or(number)}, {}, closed=True)
    return rule(x) and (x["p_mw"] is not None or x["q_mvar"] is not None)


checked = keys(
    {"power_flows": count, "worst_v_pu": null_or(number), "worst_loading_percent": null_or(number)},
    {},
    closed=True,
)
_later = keys(
    {"start": time, "end": time, "region": null_or(half_spaces)},
    {"setpoint": null_or(target), "why": null_or(text), "checked": null_or(checked)},
    closed=True,
)


def later(x: Any) -> bool:
    return _later(x) and order(x["start"], x["end"])


_setpoint = keys(
    {
        "schema": one_of("gridpace.setpoint.v1"),
        "run": name,
        "area": area,
        "der": name,
        "sign": one_of("injection_positive"),
        "epoch": count,
        "seq": count,
        "issued": time,
        "valid_from": time,
        "valid_until": time,
        "ttl_ms": count,
        "region": null_or(half_spaces),
        "setpoint": null_or(target),
        "fallback": half_spaces,
    },
    {
        "origin": null_or(text),
        "why": null_or(text),
        "checked": null_or(checked),
        "later": listed(later, 0, 288),
    },
    closed=True,
)


def setpoint(x: Any) -> bool:
    if not _setpoint(x) or not lives(x["ttl_ms"]) or not order(x["valid_from"], x["valid_until"]):
        return False
    spans = x.get("later", [])
    if not spans:
        return True
    return (
        order(x["valid_from"], spans[0]["start"])
        and all(same(a["end"], b["start"]) for a, b in pairwise(spans))
        and same(spans[-1]["end"], x["valid_until"])
    )


ack = keys(
    {"epoch": count, "seq": count, "state": one_of(*LIVES), "time": time},
    {"code": null_or(one_of(*CODES)), "reason": null_or(reason)},
    closed=False,
)


def acks(x: Any) -> bool:
    return ack(x) or listed(ack, 1, 64)(x)


batch_ack = keys(
    {
        "schema": one_of("gridpace.batch-ack.v1"),
        "answers": listed(lambda x: ack(x) and listed(name)(x.get("ders"))),
    },
    {},
    closed=False,
)
meas = keys(
    {"time": time, "p_mw": measured, "q_mvar": measured},
    {"v_pu": null_or(measured), "e_mwh": null_or(measured), "state": null_or(one_of(*REGIMES))},
    closed=False,
)
reading = row(
    *(name, measured, measured, null_or(measured), null_or(measured), null_or(one_of(*REGIMES))),
    least=3,
    closed=False,
)
batch_meas = keys({"time": time, "readings": listed(reading, 1)}, {}, closed=False)
state = keys({"state": one_of("online", "offline", "fallback")}, {"time": null_or(time)}, closed=False)


def control(x: Any) -> bool:
    online = keys(
        {
            "state": one_of("online"),
            "epoch": count,
            "step": count,
            "period_ms": number,
            "next_deadline": time,
        },
        {},
        closed=False,
    )
    return online(x) or keys({"state": one_of("offline"), "epoch": count}, {}, closed=False)(x)


def shape(x: Any) -> bool:
    if isinstance(x, dict):
        return half_spaces(x)
    if not row(*[null_or(measured)] * 4)(x):
        return False
    return all(low is None or high is None or low <= high for low, high in (x[:2], x[2:]))


def pair(x: Any) -> bool:
    return row(null_or(number), null_or(number))(x) and x != [None, None]


def piece(x: Any) -> bool:
    return row(whole, null_or(shape), null_or(pair), least=2)(x)


def told(x: Any) -> bool:
    if not row(name, listed(piece, 1, 289), shape)(x):
        return False
    starts = [one[0] for one in x[1]]
    return starts[0] == 0 and all(a < b for a, b in pairwise(starts))


_group = keys(
    {
        "seq": count,
        "issued": time,
        "valid_from": time,
        "valid_until": time,
        "ttl_ms": count,
        "told": listed(told),
    },
    {},
    closed=True,
)


def group(x: Any) -> bool:
    return _group(x) and lives(x["ttl_ms"]) and order(x["valid_from"], x["valid_until"])


batch = keys(
    {
        "schema": one_of("gridpace.batch.v1"),
        "run": name,
        "area": area,
        "gateway": name,
        "part": lambda x: count(x) and x < 1000,
        "sign": one_of("injection_positive"),
        "epoch": count,
        "groups": listed(group),
    },
    {},
    closed=True,
)
presence = keys(
    {"state": one_of("online", "offline"), "token": text, "life": whole},
    {},
    closed=True,
)
RULES: dict[str, Rule] = {
    "setpoint": setpoint,
    "batch": batch,
    "ack": acks,
    "batch-ack": batch_ack,
    "meas": meas,
    "batch-meas": batch_meas,
    "state": state,
    "control": control,
    "presence": presence,
}


# Parts of long messages: a line of JSON, then a piece

PIECE = 64_700


def valid_part(payload: bytes) -> bool:
    """Whether a payload is a part of an ask or an answer."""
    head, line, rest = payload.partition(b"\n")
    if len(payload) > MOST_BYTES or not line or len(head) >= 300:
        return False
    rule = keys(
        {
            "token": lambda x: isinstance(x, str) and len(x) <= 64,
            **dict.fromkeys(("number", "within_ms", "part", "parts", "size"), count),
        },
        {},
        closed=True,
    )
    try:
        x = json.loads(head.decode("utf-8"), parse_constant=_constant)
    except (ValueError, RecursionError):
        return False
    if not rule(x) or not x["within_ms"] or not 0 < x["size"] <= 128 * PIECE or not x["part"] < x["parts"]:
        return False
    whole, left = divmod(x["size"], PIECE)
    expected = left if x["part"] == x["parts"] - 1 and left else PIECE
    return x["parts"] == whole + bool(left) and len(rest) == expected
