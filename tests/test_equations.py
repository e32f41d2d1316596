"""Every equation that a docstring says is implemented has its line, with its number behind it."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(ROOT.glob("controllers/**/*.py"))
NUMBER = r"\(([A-Z]*\d*?)([a-z]|\d+)\)"


def expand(text: str) -> list[str]:
    """The equation numbers of "(A7a)-(A7d), (9) and (12)-(14)", ranges written out.

    Raises:
        ValueError: a range whose ends do not belong together.
    """
    found = []
    for match in re.finditer(rf"{NUMBER}(?:\s*-\s*{NUMBER})?", text):
        stem, first, last_stem, last = match.groups()
        if last is None:
            found.append(stem + first)
            continue
        letters = not first.isdigit()
        start, end = (ord(first), ord(last)) if letters else (int(first), int(last))
        if stem != last_stem or first.isdigit() != last.isdigit() or end <= start:
            raise ValueError(f"{match.group()} is no range")
        found += [f"{stem}{chr(i) if letters else i}" for i in range(start, end + 1)]
    return found


def promised(source: str) -> list[str]:
    """Numbers in the sentence "Implements ..." of every docstring of a file."""
    documented = ast.Module | ast.ClassDef | ast.FunctionDef
    docs = [ast.get_docstring(n) or "" for n in ast.walk(ast.parse(source)) if isinstance(n, documented)]
    return [n for doc in docs for said in re.findall(r"Implements\s[^.]*\.", doc) for n in expand(said)]


def kept(source: str) -> set[str]:
    """Numbers in the comments that follow code on their line."""
    found: set[str] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and token.line[: token.start[1]].strip():
            found |= {stem + last for stem, last in re.findall(NUMBER, token.string)}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_equation_has_its_line(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    missing = [number for number in promised(source) if number not in kept(source)]
    assert not missing, f"{path.name} says that it implements {missing}, but no line carries their numbers"


def test_there_are_equations_to_look_for() -> None:
    equal_ranges = (ROOT / "controllers/envelopes/equal_ranges.py").read_text(encoding="utf-8")
    assert promised(equal_ranges) == ["A7a", "A7b", "A7c", "A7d", "A8a", "A8b", "A8c", "A8d"]


def test_the_expander() -> None:
    assert expand("(A7a)-(A7c) and (A8b), (9) or\n(12) - (14), (A10)") == [
        *("A7a", "A7b", "A7c"),
        *("A8b", "9", "12", "13", "14", "A10"),
    ]
    for wrong in ("(A7c)-(A7a)", "(A7a)-(A8d)", "(A7a)-(7)"):
        with pytest.raises(ValueError, match="no range"):
            expand(wrong)


def test_a_missing_number_is_found() -> None:
    source = '''
"""M. Implements (A1a)-(A1d)
and (7), as printed. Unlike (A9z)."""
# (A1d) on a line of its own is no line of the model
x = 1  # (A1a) (A1b)
y = "(A1c)"
z = 2  # (7): scaled
'''
    assert promised(source) == ["A1a", "A1b", "A1c", "A1d", "7"]
    assert set(promised(source)) - kept(source) == {"A1c", "A1d"}
