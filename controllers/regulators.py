"""Regulators: what the network operator moves in steps, on-load tap changers and capacitor banks.

| symbol | here       | meaning                                                     | unit |
|--------|------------|-------------------------------------------------------------|------|
| n      | position   | tap on the primary side; steps of a bank that are switched in| 1    |
| V_0    |            | secondary voltage, V_hv / (1 + step n)                       | pu   |

Source: seed 004, tables A.I and A.II. With the tap on the primary side a negative position raises the
voltage: -3 steps of 1.25 % give 1.03896 times the primary's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import index
from typing import TypeAlias


@dataclass(frozen=True, slots=True, kw_only=True)
class TapChanger:
    """On-load tap changer of the source, or of a transformer at the slack bus.

    Raises:
        ValueError: positions out of order, or a step that makes the ratio zero or negative.
    """

    name: str
    branch: str | None = None
    """the transformer, e.g. `trafo:0`; `None`: the substation's, which sets the source's voltage"""
    step: float
    """change of the ratio a position, e.g. 0.0125"""
    lowest: int
    highest: int
    start: int = 0
    """position at the start"""

    def __post_init__(self) -> None:
        if not self.lowest <= self.start <= self.highest:
            raise ValueError(
                f"tap changer {self.name!r}: position {self.start} is not in {self.lowest}..{self.highest}"
            )
        if not min(1 + self.step * self.lowest, 1 + self.step * self.highest) > 0:
            raise ValueError(f"tap changer {self.name!r}: step {self.step:g} turns the ratio negative")

    @property
    def positions(self) -> range:
        return range(self.lowest, self.highest + 1)

    def ratio(self, position: int) -> float:
        """Secondary voltage over primary voltage, without load."""
        return 1 / (1 + self.step * position)


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacitorBank:
    """Capacitors at a bus, switched in equal steps.

    Raises:
        ValueError: a start that is no position, or a step without reactive power.
    """

    name: str
    bus: str
    q_mvar: float
    """injected by each step at rated voltage"""
    steps: int
    start: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.steps:
            raise ValueError(f"capacitor bank {self.name!r}: position {self.start} is not in 0..{self.steps}")
        if not self.q_mvar:
            raise ValueError(f"capacitor bank {self.name!r}: a step has no reactive power")

    @property
    def positions(self) -> range:
        return range(self.steps + 1)


Regulator: TypeAlias = TapChanger | CapacitorBank


def standing(regulators: Mapping[str, Regulator], positions: Mapping[str, int]) -> dict[str, int]:
    """Where every regulator stands, in their order; one that `positions` does not name is at its start.

    Raises:
        KeyError: no such regulator.
        ValueError: a position that it does not have.
    """
    if unknown := sorted(positions.keys() - regulators.keys()):
        known = ", ".join(regulators) or "none"
        raise KeyError(f"no regulator {', '.join(map(repr, unknown))}; there are {known}")
    stands = {}
    for name, regulator in regulators.items():
        position = positions.get(name, regulator.start)
        try:
            stands[name] = index(position)
        except TypeError:
            raise ValueError(f"regulator {name!r}: position {position!r} is no whole number") from None
        if stands[name] not in regulator.positions:
            low, high = regulator.positions[0], regulator.positions[-1]
            raise ValueError(f"regulator {name!r}: position {position!r} is not in {low}..{high}")
    return stands


def moves(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    """How many positions each regulator has moved, where it has; a tap changer runs through all between."""
    return {name: abs(at - before[name]) for name, at in after.items() if at != before[name]}
