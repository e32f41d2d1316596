"""Words: messages as the `Word` that a conversation carries, and back.

Numbers go by name in `values`, arrays of several points or prices one after the other; cuts are `regions`, by
their place. What is chosen from a few stands in `what`, e.g. "ask cuts, pattern rounding".
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import assert_never, cast

import numpy as np
import numpy.typing as npt

from controllers.contract import Word
from controllers.partnership.coupling import Cut, Point, Tent, axes
from controllers.partnership.messages import (
    Answer,
    AskCuts,
    AskOffer,
    AskPatterns,
    AskPrices,
    AskRestoration,
    AskSettlement,
    AskTerms,
    Bits,
    Cuts,
    Form,
    Lifted,
    Offer,
    Pattern,
    Patterns,
    Priced,
    Question,
    Relaxed,
    Restoration,
    Settlement,
    Terms,
)
from controllers.partnership.restoration import POOL

Array = npt.NDArray[np.float64]
Numbers = tuple[float, ...]

FORMS: tuple[Form, ...] = ("one-sided", "augmented")


def to_word(message: Question | Answer) -> Word:
    """A message as it is carried; its iteration is the word's number."""
    number = message.iteration
    match message:
        case AskTerms():
            return Word(number=number, what="ask terms")
        case AskPrices():
            pair = {"p_price": _flat(message.p_price), "q_price": _flat(message.q_price)}
            count = (float(len(message.p_price)),)
            return Word(number=number, what="ask prices", values={"count": count, **pair})
        case AskOffer():
            pair = {"p_price": _flat(message.p_price), "q_price": _flat(message.q_price)}
            return Word(number=number, what="ask offer", values=pair)
        case AskCuts():
            values = {**_points(message.points), "weight": (message.weight,), **_reference(message.bits)}
            return Word(number=number, what=f"ask cuts, {_choice(message.bits)}", values=values)
        case AskRestoration():
            values = {**_points([message.point]), "weight": (message.weight,)}
            return Word(number=number, what=f"ask restoration, {message.form}", values=values)
        case AskPatterns():
            values = {**_points([message.point]), "weight": (message.weight,)}
            return Word(number=number, what="ask patterns", values=values)
        case AskSettlement():
            values = {**_points([message.point]), **_reference(message.bits)}
            return Word(number=number, what=f"ask settlement, {_choice(message.bits)}", values=values)
        case Terms():
            box = {"p_mw": _flat(message.p), "q_mvar": _flat(message.q)}
            rest = {"least_cost": (message.least_cost,), "bits": (float(message.bits),)}
            return Word(number=number, what="terms", values={**box, **rest})
        case Cuts():
            said = [(str(k), cut) for k, cut in enumerate(message.cuts) if cut is not None]
            values = {
                "count": (float(len(message.cuts)),),
                "value": tuple(cut.value for _, cut in said),
                "scale": tuple(cut.scale for _, cut in said),
                **_reference(message.bits),
            }
            regions = {name: cut.region for name, cut in said}
            what = f"cuts, {_choice(message.bits)}"
            return Word(number=number, what=what, values=values, regions=regions)
        case Offer():
            values = {
                "value": (message.cut.value,),
                "scale": (message.cut.scale,),
                "cost": (message.cost,),
                "p_mw": _flat(message.p),
                "q_mvar": _flat(message.q),
            }
            return Word(number=number, what="offer", values=values, regions={"0": message.cut.region})
        case Restoration():
            cut = message.cut
            values = {
                "gap": (message.gap,),
                "off_by": (message.off_by,),
                "centre": _flat(cut.centre),
                "value": (cut.value,),
                "weight": _flat(cut.weight),
                "slope": _flat(cut.slope),
            }
            return Word(number=number, what="restoration", values=values)
        case Patterns():
            kinds = tuple(float(POOL.index(kind)) for kind in message.kinds)
            return Word(number=number, what="patterns", values={"kinds": kinds})
        case Settlement():
            rest = {"cost": (message.cost,), "off_by": (message.off_by,)}
            exchange = {"p_mw": _flat(message.p), "q_mvar": _flat(message.q)}
            return Word(number=number, what="settlement", values={**exchange, **rest})
        case _:
            assert_never(message)


def from_word(word: Word) -> Question | Answer:
    """The message that a word carries.

    Raises:
        ValueError: a word that is none of these, or has too much, too little or the wrong number of values.
    """
    said = _Reader(word)
    found = said.message()
    said.end()
    return found


class _Reader:
    """Takes values out of a word, and notes which were taken."""

    def __init__(self, word: Word) -> None:
        self.word, self.number = word, word.number
        self.left = dict(word.values)
        self.regions = dict(word.regions)
        self.kind, _, self.choice = word.what.partition(", ")

    def message(self) -> Question | Answer:
        number = self.number
        match self.kind:
            case "ask terms":
                return AskTerms(number)
            case "ask prices":
                count = self.whole("count")
                return AskPrices(number, self.table("p_price", count), self.table("q_price", count))
            case "ask offer":
                p = self.array("p_price")
                return AskOffer(number, p, self.array("q_price", len(p)))
            case "ask cuts":
                return AskCuts(number, self.points(), self.one("weight"), self.bits())
            case "ask restoration":
                form = cast(Form, self.chosen(FORMS))
                return AskRestoration(number, self.point(), self.one("weight"), form)
            case "ask patterns":
                return AskPatterns(number, self.point(), self.one("weight"))
            case "ask settlement":
                bits = None if self.choice == "best" else self.bits()
                if isinstance(bits, Relaxed):
                    raise self.wrong("settles on relaxed bits; name a pattern, lifted bits, or best")
                return AskSettlement(number, self.point(), bits)
            case "terms":
                p, q = self.array("p_mw"), self.array("q_mvar")
                if len(p) != len(q) or len(p) % 2:
                    raise self.wrong(
                        f"has {len(p)} limits of p_mw and {len(q)} of q_mvar; give two an interval"
                    )
                pair = p.reshape(-1, 2), q.reshape(-1, 2)
                return Terms(number, *pair, self.one("least_cost"), self.whole("bits"))
            case "cuts":
                return self.cuts()
            case "offer":
                return self.offer()
            case "restoration":
                return self.restoration()
            case "patterns":
                places = self.take("kinds")
                if not all(place in range(len(POOL)) for place in places):
                    raise self.wrong(f"has kinds {places}; they are numbers from 0 to {len(POOL) - 1}")
                return Patterns(number, tuple(POOL[int(place)] for place in places))
            case "settlement":
                p, q = self.array("p_mw"), self.array("q_mvar", len(self.word.values.get("p_mw", ())))
                return Settlement(number, self.one("cost"), p, q, self.one("off_by"))
        raise self.wrong("is no message of the partnership")

    def points(self) -> tuple[Point, ...]:
        cost = self.take("cost")
        p, q = self.table("p_mw", len(cost)), self.table("q_mvar", len(cost))
        bits = self.table("bits", len(cost)) if "bits" in self.left else None
        return tuple(Point(p[k], q[k], cost[k], None if bits is None else bits[k]) for k in range(len(cost)))

    def point(self) -> Point:
        found = self.points()
        if len(found) != 1:
            raise self.wrong(f"has {len(found)} points; give one")
        return found[0]

    def bits(self) -> Bits:
        match self.choice:
            case "relaxed":
                return Relaxed()
            case "printed":
                return Relaxed("all")
            case "lifted":
                return Lifted()
            case "priced":
                p = self.array("reference_p_price")
                return Priced(p, self.array("reference_q_price", len(p)))
        kinds = {f"pattern {kind}": kind for kind in POOL}
        if self.choice not in kinds:
            raise self.wrong(
                f"is about no bits that there are; known are {['relaxed', 'lifted', 'priced', *kinds]}"
            )
        p = self.array("reference_p_mw")
        q = self.array("reference_q_mvar", len(p))
        return Pattern(kinds[self.choice], p, q, self.one("reference_weight"))

    def cuts(self) -> Cuts:
        value = self.array("value")
        scale, count = self.array("scale", len(value)), self.whole("count")
        places = [name for name in map(str, range(count)) if name in self.regions]
        if len(places) != len(self.regions) or len(places) != len(value):
            raise self.wrong(
                f"has {len(value)} values and regions {sorted(self.regions)}; give one of each for cuts 0 to "
                f"{count - 1}, in their order"
            )
        found: dict[str, Cut] = {}
        for k, name in enumerate(places):
            region = self.regions.pop(name)
            bits = sum(axis.startswith("bit_") for axis in region.axes)
            if len(region.b) != 1 or region.axes != axes((len(region.axes) - 1 - bits) // 2, bits):
                raise self.wrong(f"has a cut of {len(region.b)} rows over {region.axes}; a cut is one row")
            found[name] = Cut(region, float(value[k]), float(scale[k]))
        return Cuts(self.number, tuple(found.get(str(k)) for k in range(count)), self.bits())

    def offer(self) -> Offer:
        p = self.array("p_mw")
        q, region = self.array("q_mvar", len(p)), self.regions.pop("0", None)
        if region is None or len(region.b) != 1 or region.axes != axes(len(p)):
            raise self.wrong("has no cut '0' of one row over its exchange and cost")
        cut = Cut(region, self.one("value"), self.one("scale"))
        return Offer(self.number, cut, self.one("cost"), p, q)

    def restoration(self) -> Restoration:
        gap, off_by, value = self.one("gap"), self.one("off_by"), self.one("value")
        centre = self.array("centre")
        weight = self.array("weight", len(centre))
        tent = Tent(centre, value, self.array("slope", len(centre)), weight)
        return Restoration(self.number, gap, off_by, tent)

    def take(self, name: str) -> Numbers:
        if name not in self.left:
            raise self.wrong(f"has no {name!r}, only {sorted(self.word.values)}")
        return self.left.pop(name)

    def array(self, name: str, size: int | None = None) -> Array:
        values = np.array(self.take(name), dtype=float)
        if size is not None and len(values) != size:
            raise self.wrong(f"has {len(values)} of {name!r}; needed are {size}")
        return values

    def table(self, name: str, count: int) -> Array:
        """(count, ...) of numbers that came one after the other."""
        values = self.array(name)
        if count < 1 or len(values) % count:
            raise self.wrong(f"has {len(values)} of {name!r} for {count} points; give as many for each")
        return values.reshape(count, -1)

    def one(self, name: str) -> float:
        return float(self.array(name, 1)[0])

    def whole(self, name: str) -> int:
        value = self.one(name)
        if value < 0 or value != int(value):
            raise self.wrong(f"has {name} {value}; it is a count")
        return int(value)

    def chosen(self, known: Iterable[str]) -> str:
        if self.choice not in known:
            raise self.wrong(f"is none of {list(known)}")
        return self.choice

    def end(self) -> None:
        if too_much := [*self.left, *self.regions]:
            raise self.wrong(f"has {sorted(too_much)}, which does not belong to it")

    def wrong(self, why: str) -> ValueError:
        return ValueError(f"word {self.number} {self.word.what!r} {why}")


def _flat(values: Array) -> Numbers:
    return tuple(np.asarray(values, dtype=float).ravel().tolist())


def _points(points: Iterable[Point]) -> dict[str, Numbers]:
    points = list(points)
    found = {
        "cost": tuple(float(point.cost) for point in points),
        "p_mw": _flat(np.array([point.p for point in points])),
        "q_mvar": _flat(np.array([point.q for point in points])),
    }
    bits = [point.bits for point in points if point.bits is not None]
    if bits and len(bits) != len(points):
        raise ValueError(f"{len(bits)} of {len(points)} points have bits; give them to all or to none")
    return {**found, "bits": _flat(np.array(bits))} if bits else found


def _choice(bits: Bits | None) -> str:
    match bits:
        case None:
            return "best"
        case Relaxed():
            return "relaxed" if bits.slack == "coupling" else "printed"
        case Lifted():
            return "lifted"
        case Priced():
            return "priced"
        case Pattern():
            return f"pattern {bits.kind}"
        case _:
            assert_never(bits)


def _reference(bits: Bits | None) -> dict[str, Numbers]:
    if isinstance(bits, Priced):
        return {"reference_p_price": _flat(bits.p_price), "reference_q_price": _flat(bits.q_price)}
    if not isinstance(bits, Pattern):
        return {}
    pair = {"reference_p_mw": _flat(bits.p), "reference_q_mvar": _flat(bits.q)}
    return {**pair, "reference_weight": (bits.weight,)}
