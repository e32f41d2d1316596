"""Draws docs/images/ieee33-methods.png and writes the figures beside it into docs/envelopes.md.

python docs/make_envelopes.py           # from the checkout's root; needs the extra `plot`

Both come from the command that a reader can type, `gridpace envelopes` with `--json` and `--picture`.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from scenarios.cli import app  # noqa: E402

ASKED = ("envelopes", "ieee33-envelopes", "--at", "2026-06-21T05:00:00Z")
PICTURE = HERE / "images" / "ieee33-methods.png"
PAGE = HERE / "envelopes.md"
BETWEEN = re.compile(r"(?s)(<!-- figures -->\n).*?(<!-- end of figures -->)")


def asked(*more: str) -> dict[str, dict[str, Any]]:
    """The command's answers by method."""
    ended = CliRunner().invoke(app, [*ASKED, "--json", *more])
    if ended.exit_code:
        raise SystemExit(ended.output)
    return {answer["method"]: answer for answer in json.loads(ended.stdout)["methods"]}


def figures(linear: dict[str, dict[str, Any]], certified: dict[str, dict[str, Any]]) -> str:
    """One row a method: as the linear model says, and certified."""
    lines = [
        "| method | area, linear MVA² | area MVA² | export MW | import MW | Jain exp / imp | price |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, answer in certified.items():
        fair, before = answer["fairness"], linear[name]["fairness"]
        lines.append(
            f"| {name} | {before['area_mva2']:.2f} | {fair['area_mva2']:.2f} | {fair['export_mw']:.2f} "
            f"| {fair['import_mw']:.2f} | {fair['jain_export']:.2f} / {fair['jain_import']:.2f} "
            f"| {fair['price']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    certified = asked("--picture", str(PICTURE))
    table = figures(asked("--uncertified"), certified)
    page = PAGE.read_text("utf-8")
    PAGE.write_text(BETWEEN.sub(lambda found: found[1] + table + found[2], page), "utf-8")


if __name__ == "__main__":
    main()
