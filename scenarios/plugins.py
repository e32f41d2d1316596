"""Plugins: the class that a scenario names, from gridpace, an installed module or a file."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Any


class NoSuchController(ValueError):
    """The scenario names no class that can be a controller."""


def controller_class(uses: str, folder: Path) -> type[Any]:
    """The class that `module:Class` or `file.py:Class` names; a relative file is looked for in `folder`.

    Naming a file or module in a scenario runs its code: treat scenarios of others as programs.

    Raises:
        NoSuchController: no module, no class, or one without `step`.
    """
    source, _, name = uses.rpartition(":")
    try:
        module = _from_file(folder / source) if source.endswith(".py") else importlib.import_module(source)
    except FileNotFoundError:
        raise NoSuchController(f"there is no file {source!r} beside the scenario") from None
    except ModuleNotFoundError as error:
        raise NoSuchController(f"there is no module {error.name!r}; is its package installed?") from None
    except (Exception, SystemExit) as error:
        raise NoSuchController(f"{source} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if not inspect.isclass(found):
        classes = [
            n for n, c in inspect.getmembers(module, inspect.isclass) if callable(getattr(c, "step", None))
        ]
        near = get_close_matches(name, classes, n=1) or classes
        raise NoSuchController(
            f"{source} has no class {name!r}; "
            + (f"did you mean {near[0]!r}?" if near else "it has none with step()")
        )
    if not callable(getattr(found, "step", None)):
        raise NoSuchController(f"class {name!r} has no method step(observation)")
    return found


def _from_file(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(path)
    name = f"gridpace_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path.name} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
