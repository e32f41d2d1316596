"""The picture of the architecture, read from the imports: who may know whom."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("controllers", "simulators", "bridges", "scenarios")
FILES = {
    str(path.relative_to(ROOT)): path for package in PACKAGES for path in ROOT.glob(f"{package}/**/*.py")
}

KNOWS = {
    "controllers": {"controllers"},
    "simulators": {"simulators", "controllers"},
    "bridges": {"bridges", "controllers"},
    "scenarios": set(PACKAGES),
}
"""Package -> packages of ours that it may import."""

ONLY_IN = {
    "mosaik": {"simulators/stage.py", "scenarios/world.py"},
    "mosaik_api_v3": {"simulators/stage.py", "scenarios/world.py"},
    "pandapower": {
        "simulators/network.py",
        "simulators/per_unit.py",
        "simulators/power_flow.py",
        "scenarios/build.py",
        "scenarios/grids.py",
        "scenarios/matpower.py",
        "scenarios/feeders.py",
        "scenarios/ieee123.py",
        "scenarios/data/make_village.py",
    },
    "power_grid_model": {"simulators/power_flow.py"},
    "aiomqtt": {"bridges/mqtt.py", "bridges/mqtt_connection.py"},
    "paho": {"bridges/mqtt.py", "bridges/mqtt_connection.py"},
    "highspy": {"controllers/solve.py"},
    "clarabel": {"controllers/solve.py"},
    "pymodbus": {"bridges/sunspec/connection.py", "bridges/sunspec/emulator.py"},
    "sunspec2": {"bridges/sunspec/registers.py"},
    "cryptography": {"scenarios/certs.py"},
    "prometheus_client": {"scenarios/metrics.py"},
}
"""Third-party package -> the only files that may import it."""

PURE = {"numpy", "scipy", "cvxpy", "clarabel", "highspy"}
"""What `controllers` may import beside itself and the part of the standard library that only computes."""
IMPURE = {
    "asyncio",
    "io",
    "os",
    "pathlib",
    "random",
    "socket",
    "subprocess",
    "sys",
    "tempfile",
    "threading",
    "time",
}

SHAPELESS = {"core", "common", "util", "utils", "base", "manager", "managers", "helper", "helpers"}
"""Names that say nothing."""


def imported(tree: ast.AST) -> set[str]:
    """Every module that is imported anywhere in a file, in functions and `if TYPE_CHECKING` too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + (node.module or ""))
    return found


def solver_named(tree: ast.AST) -> list[str]:
    """Where a file names a solver or solves a cvxpy problem by itself; a power flow's `solve` is another."""
    found = []
    modules = imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            name = node.attr if isinstance(node, ast.Attribute) else node.id
            if name in {"CLARABEL", "HIGHS", "SCS", "OSQP", "ECOS", "SCIPY", "linprog", "milp"}:
                found.append(f"{node.lineno}: {name}")
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if "cvxpy" in modules and called.endswith(".solve") and not called.endswith("linalg.solve"):
                found.append(f"{node.lineno}: {called}(...)")
            found += [f"{node.lineno}: solver=" for keyword in node.keywords if keyword.arg == "solver"]
    return found + [
        m for m in modules if m.partition(".")[0] in {"clarabel", "highspy"} or m == "scipy.optimize"
    ]


def words(tree: ast.AST, path: str) -> set[str]:
    """The words of a file's path and of its classes."""
    classes = [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    parts = [word for name in classes for word in re.findall(r"[A-Z][a-z0-9]*", name)]
    return {word.lower() for word in [*parts, *re.split(r"[/_.]", path)]}


@pytest.mark.parametrize("path", FILES)
def test_a_file_knows_only_what_the_picture_lets_it(path: str) -> None:
    tree = ast.parse(FILES[path].read_text(encoding="utf-8"))
    package = path.partition("/")[0]
    for module in imported(tree):
        top = module.partition(".")[0]
        assert top, f"{path} imports relatively ({module}); write the package's name"
        assert top not in {*PACKAGES, "tests"} - KNOWS[package], f"{path} must not know {module}"
        assert path in ONLY_IN.get(top, {path}), f"{path} imports {module}; only {ONLY_IN[top]} may"
        if package == "controllers":
            pure = top in {*PURE, *KNOWS[package]} or (top in sys.stdlib_module_names - IMPURE)
            assert pure, f"{path} imports {module}, but controllers only compute"
    if package == "controllers" and path != "controllers/solve.py":
        assert not solver_named(tree), f"{path} solves by itself; call controllers.solve"
    assert not words(tree, path) & SHAPELESS, f"{path}: {words(tree, path) & SHAPELESS} says nothing"


def test_the_picture_is_of_files_that_exist() -> None:
    assert {path.partition("/")[0] for path in FILES} == set(PACKAGES)
    for allowed in ONLY_IN.values():
        assert allowed <= FILES.keys()


def test_the_readers_see_what_they_look_for() -> None:
    source = "def f():\n    from pandapower.auxiliary import x\nimport os.path as p\nfrom . import y"
    assert imported(ast.parse(source)) == {"pandapower.auxiliary", "os.path", "."}
    solving = "problem.solve(solver=cp.CLARABEL)\nnp.linalg.solve(A, b)\nsolve(problem)"
    assert sorted(solver_named(ast.parse(solving))) == ["1: CLARABEL", "1: solver="]
    named = ["1: CLARABEL", "1: problem.solve(...)", "1: solver="]
    assert sorted(solver_named(ast.parse(f"{solving}\nimport cvxpy as cp"))) == named
    assert solver_named(ast.parse("power_flow.solve(p, q)\nimport numpy")) == []
    assert solver_named(ast.parse("from scipy.optimize import minimize")) == ["scipy.optimize"]
    assert words(ast.parse("class DpiccManager: ..."), "a/core.py") & SHAPELESS == {"manager", "core"}
