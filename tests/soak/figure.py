"""Figure: what a soak promises, what was measured, and whether it was held."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    claim: str
    """e.g. `R10`"""
    what: str
    wanted: str
    measured: str
    held: bool
    hard: bool = True
    """False: a duration, which a busy machine spoils; a soak fails beyond three times what is wanted, a test
    says it and goes on"""


Soak = Callable[[bool], Awaitable[list[Figure]]]
"""Measures a claim; with True the short version."""


def missed(figures: Sequence[Figure]) -> list[Figure]:
    """Those that were not held and that no busy machine excuses."""
    return [figure for figure in figures if figure.hard and not figure.held]


def counted(claim: str, what: str, wanted: int, measured: int, *, hard: bool = True) -> Figure:
    """A count that must be exact."""
    return Figure(claim, what, f"{wanted:,}", f"{measured:,}", wanted == measured, hard)


def at_least(claim: str, what: str, wanted: int, measured: int) -> Figure:
    """A count that may be exceeded."""
    return Figure(claim, what, f">= {wanted:,}", f"{measured:,}", measured >= wanted)


def below(claim: str, what: str, wanted_ms: float, measured_ms: float) -> Figure:
    """A latency in milliseconds."""
    held = measured_ms < 3 * wanted_ms
    return Figure(claim, what, f"< {wanted_ms:g} ms", f"{measured_ms:.1f} ms", held, hard=False)
