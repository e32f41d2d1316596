"""Curtailable: the net's loads as flexible loads of the operator, `grid.curtailable` of a scenario."""

from __future__ import annotations

from math import hypot
from typing import Any

from pydantic import ValidationError

from scenarios.build import net_of
from scenarios.check import ScenarioInvalid
from scenarios.load import Draft
from scenarios.schema import GridPart


def release(draft: Draft, grid: dict[str, Any]) -> None:
    """Put the net's loads among the devices, where the operator may curtail them. A mistake is left as it is,
    for the check to name it."""
    devices, edits = draft.raw.setdefault("devices", []), grid.get("edits", [])
    try:
        part = GridPart.model_validate(grid)
        loads = net_of(draft, part).load
    except (ValidationError, ScenarioInvalid):
        return
    if part.curtailable is None or not isinstance(devices, list):
        return
    found, index = [], []
    for row in loads[loads.in_service.astype(bool)].itertuples():
        p_mw, q_mvar = float(row.p_mw * row.scaling), float(row.q_mvar * row.scaling)
        if not (p_mw > 0 and q_mvar >= 0):
            continue
        device = {
            "name": f"load-{row.Index}",
            "kind": "flexible-load",
            "bus": int(row.bus),
            "p_mw": p_mw,
            "power_factor": p_mw / hypot(p_mw, q_mvar),
            "cost_per_mwh": part.curtailable.cost_per_mwh,
            "default": {"p_mw": [-p_mw, 0.0], "q_mvar": [-q_mvar, 0.0]},
        }
        if (profile := part.profiles.get("load")) is not None:
            device["profile"] = profile
        found.append(device)
        index.append(int(row.Index))
    off = {"table": "load", "index": index, "column": "in_service", "value": False}
    # Not those of the scenario which this one extends.
    kept = {key: value for key, value in grid.items() if key != "curtailable"}
    draft.raw["grid"] = kept | {"edits": [*edits, off] if index else edits}
    draft.raw["devices"] = [*devices, *found]
