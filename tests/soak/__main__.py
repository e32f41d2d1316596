"""Soak: measure what gridpace promises of its reliability, and print wanted, measured and held.

    scripts/soak              all claims, in full
    scripts/soak R9 R11       these
    scripts/soak --short      as continuous integration does

Exit status: 0 all were held, 1 one was not, 2 a claim that is not known.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import logging
import sys
import time
from collections.abc import Iterable, Sequence

from bridges.broker import NoBroker
from tests.soak.figure import Figure, Soak

CLAIMS = {
    "R1": "tests.soak.load",
    "R2": "tests.soak.batch",
    "R3": "tests.soak.latency",
    "R4": "tests.soak.chaos",
    "R5": "tests.soak.wrong",
    "R6": "tests.soak.failsafe",
    "R7": "tests.soak.crash",
    "R8": "tests.soak.pacing",
    "R9": "tests.soak.payloads",
    "R10": "tests.soak.connections",
    "R11": "tests.soak.access",
    "R12": "tests.soak.memory",
    "R13": "tests.soak.rungs",
    "R14": "tests.soak.reproducible",
    "R15": "tests.soak.sunspec",
    "HIL": "tests.soak.hil",
}
"""Claim -> module whose `soak` measures it; a new one is a new line."""


def soak_of(claim: str) -> Soak:
    """What measures a claim."""
    found: Soak = importlib.import_module(CLAIMS[claim]).soak
    return found


def table(figures: Iterable[Figure]) -> str:
    """Figures as they are printed, a line each."""
    rows = [("", "figure", "wanted", "measured", "held")]
    rows += [(f.claim, f.what, f.wanted, f.measured, "yes" if f.held else "NO") for f in figures]
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    right = (False, False, True, True, False)
    return "\n".join(
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in rows
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the claims named by the arguments; the exit status."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "claims", nargs="*", metavar="CLAIM", help=f"{', '.join(CLAIMS)}; all if none is given"
    )
    parser.add_argument("--short", action="store_true", help="as continuous integration does")
    given = parser.parse_args(arguments)
    claims = given.claims or list(CLAIMS)
    if unknown := [claim for claim in claims if claim not in CLAIMS]:
        print(f"{', '.join(unknown)}: no such claim; there are {', '.join(CLAIMS)}", file=sys.stderr)
        return 2
    figures: list[Figure] = []
    for claim in claims:
        started = time.monotonic()
        try:
            figures += asyncio.run(_measured(claim, given.short))
        except NoBroker as error:
            print(f"{claim}: {error}", file=sys.stderr)
            return 1
        print(f"{claim}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    print(table(figures))
    return 0 if all(figure.held for figure in figures) else 1


async def _measured(claim: str, short: bool) -> list[Figure]:
    return await soak_of(claim)(short)


if __name__ == "__main__":
    logging.getLogger("gridpace").setLevel(logging.CRITICAL)  # what attackers are told is not for the screen
    sys.exit(main())
