"""Regulated: tap changers and capacitor banks in the equations of the plant.

| regulator             | in the plant                                                             |
|-----------------------|--------------------------------------------------------------------------|
| tap of the source     | the slack bus has its given voltage times `ratio(position)`              |
| tap of a transformer  | the ideal transformer's ratio is divided by `ratio(position)`            |
| capacitor bank        | a shunt: `position * q_mvar` at rated voltage, and with its square beside |

The controllers' linear `Network` is the grid with every tap at ratio 1 and every bank switched off.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from controllers.regulators import CapacitorBank, Regulator, TapChanger
from simulators.per_unit import NetworkRefused, PerUnit

KEPT = 16
"""Positions of the regulators for which an engine is kept, those asked for last."""

Engine = TypeVar("Engine")


class Elsewhere(OrderedDict[tuple[int, ...], Engine]):
    """Engines of one grid, by where its regulators stand; bounded."""

    def at(self, positions: Mapping[str, int], make: Callable[[], Engine]) -> Engine:
        """The engine for `positions`, which names all regulators in their order; made if need be."""
        key = tuple(positions.values())
        found = self[key] if key in self else self.setdefault(key, make())
        self.move_to_end(key)
        if len(self) > KEPT:
            self.popitem(last=False)
        return found


def at_rest(net: Any, regulators: Mapping[str, Regulator]) -> Any:
    """A pandapower net without what its regulators do: the tap that a transformer's own columns give is at
    its neutral position. The net itself if there is nothing to change, else a copy."""
    tapped = [index for r in regulators.values() if (index := transformer(r)) is not None]
    if not tapped or "tap_pos" not in net.trafo or "tap_neutral" not in net.trafo:
        return net
    net = copy.deepcopy(net)
    for index in tapped:
        neutral = net.trafo["tap_neutral"].at[index]
        if neutral == neutral:
            net.trafo.loc[index, "tap_pos"] = neutral
    return net


def transformer(regulator: Regulator) -> int | None:
    """Row of pandapower's table `trafo` that a tap changer belongs to."""
    if isinstance(regulator, TapChanger) and regulator.branch is not None:
        return int(regulator.branch.partition(":")[2])
    return None


def require_place(model: PerUnit, regulator: Regulator) -> None:
    """Hold a regulator to what the controllers' linear model can say of it.

    Raises:
        NetworkRefused: no such transformer or bus in service, or a transformer whose tap does more than
            change the voltage behind the slack bus.
    """
    if isinstance(regulator, CapacitorBank):
        if regulator.bus not in model.buses:
            raise NetworkRefused(
                f"capacitor bank {regulator.name!r}: bus {regulator.bus} is not connected to the grid's "
                "source; close a switch"
            )
        return
    name = regulator.branch
    if name is None:
        return
    if name not in model.branches:
        raise NetworkRefused(f"tap changer {regulator.name!r}: {name} is not in service")
    branch, slack = model.branches.index(name), model.slack_node
    if model.from_node[branch] != slack:
        raise NetworkRefused(
            f"tap changer {regulator.name!r}: {name} has its primary side at another bus than the source's "
            f"({model.slack}); only there does a tap change nothing but the voltage behind it, which is all "
            "that the controllers' linear model can follow. Regulate the source (at: source), or leave the "
            "tap as it is"
        )
    ends = (model.from_node == slack) | (model.to_node == slack)
    others = [model.branches[i] for i in np.flatnonzero(ends) if i != branch]
    here = [bus for bus, at in zip(model.buses, model.node, strict=True) if at == slack]
    others += [f"bus {bus}" for bus in here if bus != model.slack]
    if others:
        raise NetworkRefused(
            f"tap changer {regulator.name!r}: beside {name} there is {', '.join(others)} at the source, "
            "which the tap does not regulate; regulate the source (at: source), or leave the tap as it is"
        )


def moved(model: PerUnit, regulators: Mapping[str, Regulator], positions: Mapping[str, int]) -> PerUnit:
    """The equations with regulators at `positions`, which names all of them; `model` has them at rest."""
    slack_v_pu, tap, shunt_b = model.slack_v_pu, model.tap.copy(), model.shunt_b.copy()
    for name, regulator in regulators.items():
        position = positions[name]
        if isinstance(regulator, CapacitorBank):
            node = model.node[model.buses.index(regulator.bus)]
            shunt_b[node] += position * regulator.q_mvar / model.s_base_mva
        elif regulator.branch is None:
            slack_v_pu *= regulator.ratio(position)
        else:
            tap[model.branches.index(regulator.branch)] /= regulator.ratio(position)
    return replace(model, slack_v_pu=slack_v_pu, tap=tap, shunt_b=shunt_b)
