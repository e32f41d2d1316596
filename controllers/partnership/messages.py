"""Messages: all that the operator and a microgrid say to each other about a horizon of T intervals.

| question         | answer        | what it reveals of the microgrid                                      |
|------------------|---------------|-----------------------------------------------------------------------|
| `AskTerms`       | `Terms`       | range of p and of q in each interval by itself, rounded outwards to   |
|                  |               | about a sixteenth; a bound on its costs; how many bits it has         |
| `AskPrices`      | `Cuts`        | the least relaxed cost at prices: one number each                     |
| `AskOffer`       | `Offer`       | what it would exchange at prices, and what that costs it              |
| `AskCuts`        | `Cuts`        | F at points, and its slope: what one MW more costs in each interval,  |
|                  |               | and each bit where they are lifted                                    |
| `AskRestoration` | `Restoration` | the least cost near a point with whole bits, and how near             |
| `AskPatterns`    | `Patterns`    | which of its candidate patterns of bits differ, not the patterns      |
| `AskSettlement`  | `Settlement`  | what it will exchange, and what that costs                            |

No answer has a device, a parameter, a forecast, a measurement or a schedule of the microgrid. What they
reveal is the set {(p, q, theta) : theta >= v(p, q)} near the points that were asked for, which is what a
partnership is about: who asks for many points learns that set. Three things that can be read off it are a
parameter: what one MW more costs, the slope of a cut, is the cost of fuel, or of a load that is curtailed;
what is exchanged is the rating of a device where that runs alone, which a meter shows as well; an end of a
range is `tie_mw` where the tie is what bounds it, which is the operator's. Lifted bits have no names, but
stand unit by unit in the order of intervals. Of the operator a microgrid learns its own tentative exchange,
the costs that are counted for it, and prices for it: these tell what losses and limits there are on the way
to its bus.

Each question says all that is needed to answer it: what a microgrid remembers is of no account. So a pattern
of bits is named by what it is derived from, not by a number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from controllers.partnership.coupling import Cut, Point, Tent
from controllers.partnership.restoration import PatternKind

Array = npt.NDArray[np.float64]
Form = Literal["one-sided", "augmented"]

MET = 1e-4
"""`off_by` [MW, Mvar] up to which a microgrid still counts as keeping to what was agreed on."""


@dataclass(frozen=True, slots=True)
class Relaxed:
    """Bits between 0 and 1."""

    slack: Literal["coupling", "all"] = "coupling"
    """in which rows; `all`: as the seed prints it, with weight 1"""


@dataclass(frozen=True, slots=True)
class Lifted:
    """The bits that each point has."""


@dataclass(frozen=True, slots=True, eq=False)
class Pattern:
    """One of the microgrid's own patterns of bits, named by what it is derived from."""

    kind: PatternKind
    p: Array
    q: Array
    """(T,) [MW, Mvar] reference"""
    weight: float
    """[$/MW]"""


@dataclass(frozen=True, slots=True, eq=False)
class Priced:
    """The microgrid's best pattern of bits at prices."""

    p_price: Array
    q_price: Array
    """(T,) [$/MW, $/Mvar, for a whole interval]"""


Bits: TypeAlias = Relaxed | Lifted | Pattern | Priced
"""Which bits are meant."""


@dataclass(frozen=True, slots=True)
class AskTerms:
    """Between which values can you operate?"""

    iteration: int


@dataclass(frozen=True, slots=True, eq=False)
class AskPrices:
    """What is your least cost less what these prices pay?"""

    iteration: int
    p_price: Array
    q_price: Array
    """(N, T) [$/MW, $/Mvar, for a whole interval]"""


@dataclass(frozen=True, slots=True, eq=False)
class AskOffer:
    """What will you do at these prices, with bits that are 0 or 1?"""

    iteration: int
    p_price: Array
    q_price: Array
    """(T,) [$/MW, $/Mvar, for a whole interval]"""


@dataclass(frozen=True, slots=True, eq=False)
class AskCuts:
    """Can you keep these points? If not, say by a cut what you can."""

    iteration: int
    points: tuple[Point, ...]
    weight: float
    """of what is missed [$/MW]: a little above the greatest price of an interval"""
    bits: Bits = Relaxed()


@dataclass(frozen=True, slots=True, eq=False)
class AskRestoration:
    """What is the nearest that you can really do?"""

    iteration: int
    point: Point
    weight: float
    form: Form = "one-sided"


@dataclass(frozen=True, slots=True, eq=False)
class AskPatterns:
    """Which kinds of patterns are worth trying?"""

    iteration: int
    point: Point
    weight: float


@dataclass(frozen=True, slots=True, eq=False)
class AskSettlement:
    """This is what we agreed on. What will you do, and what does it cost?"""

    iteration: int
    point: Point
    bits: Lifted | Pattern | Priced | None = None
    """`None`: whichever are best"""


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """Every exchange of the microgrid lies within these; not all that lies within is one."""

    iteration: int
    p: Array
    q: Array
    """(T, 2) least and greatest [MW, Mvar]"""
    least_cost: float
    """theta is never below [$]"""
    bits: int
    """how many there are to lift"""


@dataclass(frozen=True, slots=True, eq=False)
class Cuts:
    """A cut for each price or point, in their order."""

    iteration: int
    cuts: tuple[Cut | None, ...]
    """`None`: the point can be kept, and there is nothing to say"""
    bits: Bits
    """for which they are valid: with `Relaxed` for all, with a `Pattern` for that one alone"""


@dataclass(frozen=True, slots=True, eq=False)
class Offer:
    """The best at prices."""

    iteration: int
    cut: Cut
    """theta >= F + lambda.(p, q), for every pattern of bits: F is the least cost less what the prices pay"""
    cost: float
    """[$]"""
    p: Array
    q: Array
    """(T,) [MW, Mvar]"""


@dataclass(frozen=True, slots=True, eq=False)
class Restoration:
    """The nearest, as a cut that is not convex."""

    iteration: int
    gap: float
    """by how much [$] the cut is broken at the point; not above zero: with whole bits it costs no more than
    what is counted, at `off_by` from the point"""
    off_by: float
    """sum of what p and q miss of the point, over the intervals [MW, Mvar]"""
    cut: Tent


@dataclass(frozen=True, slots=True)
class Patterns:
    """Kinds of patterns that differ at the point; those left out are equal to one before them."""

    iteration: int
    kinds: tuple[PatternKind, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Settlement:
    """What the microgrid will do."""

    iteration: int
    cost: float
    """[$]"""
    p: Array
    q: Array
    """(T,) [MW, Mvar]"""
    off_by: float
    """sum of what they miss of the point [MW, Mvar]"""


Question: TypeAlias = AskTerms | AskPrices | AskOffer | AskCuts | AskRestoration | AskPatterns | AskSettlement
Answer: TypeAlias = Terms | Cuts | Offer | Restoration | Patterns | Settlement
