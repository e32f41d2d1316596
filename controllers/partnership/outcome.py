"""Outcome: what an agreement, or the search for one, ended with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import numpy as np
import numpy.typing as npt

from controllers.partnership.distribution import Operation
from controllers.partnership.messages import AskSettlement, Settlement
from controllers.partnership.warm import Warm

Array = npt.NDArray[np.float64]
Stage = Literal["offers", "relaxed", "pattern", "lifted", "whole", "held", "tents"]
"""Which problem of the operator's: the best answer to offers | the master problem with bits between 0 and 1 |
with patterns of the microgrids' own | bits of some as columns between 0 and 1 | these whole | these held at
values | with tents"""


class Reason(StrEnum):
    """Why the search ended."""

    GAP = "gap"
    """the bounds have met"""
    ABSENT = "absent"
    """they have, but a microgrid stayed away and was left out"""
    ITERATIONS = "iterations"
    """no master problem is left"""
    TURNS = "turns"
    """no turn of the conversation is left"""
    STALLED = "stalled"
    """nothing that is known to do closes the gap"""
    SOLVER = "solver-failed"
    """a solver ended without a usable answer; what was confirmed before stands"""

    @property
    def advice(self) -> str:
        """What to do about it."""
        return {
            Reason.GAP: "nothing",
            Reason.ABSENT: "look after the microgrids that stayed away",
            Reason.ITERATIONS: "allow more iterations, or a greater epsilon",
            Reason.TURNS: "allow more turns or more time, or a greater epsilon",
            Reason.STALLED: "allow a greater epsilon: the gap left is the solvers' tolerance, or the mode's",
            Reason.SOLVER: "keep the step's observation and report it: the problem should have an answer",
        }[self]


@dataclass(frozen=True, slots=True)
class Round:
    """One problem of the operator's, and what was known after the microgrids' answers to it."""

    number: int
    """from 1"""
    stage: Stage
    lower: float
    """greatest lower bound so far [$]; -inf: none"""
    upper: float
    """least upper bound so far [$]; inf: none"""
    violation: float
    """sum of F over the microgrids at the master's point [$]"""
    cuts: int
    """of all microgrids, at the time"""
    turns: int
    """of the conversation so far"""


@dataclass(frozen=True, eq=False)
class Exchange:
    """What one microgrid exchanges with the network."""

    p_mw: Array
    q_mvar: Array
    """(T,) above zero: it injects"""


@dataclass(frozen=True, eq=False)
class Agreement:
    """What every present microgrid has confirmed, and what is proven about it."""

    reason: Reason
    settled: Mapping[str, Settlement]
    """what each present microgrid will exchange, and what that costs it, in its own words"""
    settlements: Mapping[str, AskSettlement]
    """the last word to each of them, which it answered by `settled`"""
    patterns: Mapping[str, Array | None]
    """(K,) bits with which each has settled; `None`: the operator does not know them"""
    lifted: tuple[str, ...]
    """whose bits the master problem had on the way"""
    alone: Mapping[str, Exchange]
    """of each absent microgrid: what it is taken to exchange"""
    operation: Operation
    """the operator's own part, best for these exchanges; its p_mw and q_mvar are the exchanges of all"""
    lower: float
    """[$] no operation of the operator and the present microgrids together costs less"""
    upper: float
    """[$] what `operation` and `settled` cost together"""
    rounds: tuple[Round, ...]
    turns: int
    """of the conversation"""
    number: int
    """the greatest one that a question has had"""
    warm: Warm
    """for the agreement of the next interval"""

    @property
    def gap(self) -> float:
        """(upper - lower) / max(|upper|, 1), not below zero: solvers' tolerances can cross the bounds."""
        return relative_gap(self.lower, self.upper)


def relative_gap(lower: float, upper: float) -> float:
    """Distance of two bounds; infinite where one of them is missing."""
    if not (np.isfinite(lower) and np.isfinite(upper)):
        return float("inf")
    return max(upper - lower, 0.0) / max(abs(upper), 1.0)
