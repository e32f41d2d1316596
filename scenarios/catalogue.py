"""Catalogue: the scenarios and controllers that come with gridpace."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Any

import controllers as package
from scenarios.load import load, packaged


def scenarios() -> list[dict[str, Any]]:
    """Packaged scenarios: name, description and the controllers they use."""
    found = []
    for name in packaged():
        raw = load(name).raw
        uses = dict.fromkeys(f"uses {c['uses']}" for c in raw.get("controllers", []))
        found.append({"name": name, "description": raw.get("description", ""), "sources": list(uses)})
    return found


def controllers() -> list[dict[str, Any]]:
    """Controllers that a scenario can name: how to name them, what they do, their sources."""
    found = []
    for info in pkgutil.walk_packages(package.__path__, "controllers."):
        module = importlib.import_module(info.name)
        for name, cls in inspect.getmembers(module, inspect.isclass):
            # Of a wrapper they are those of the method inside, which only an object has.
            sources = getattr(cls, "sources", None)
            if cls.__module__ == info.name and hasattr(cls, "step") and isinstance(sources, tuple):
                found.append(
                    {
                        "name": f"{info.name}:{name}",
                        "description": (inspect.getdoc(cls) or "").splitlines()[0],
                        "sources": list(sources),
                    }
                )
    return found
