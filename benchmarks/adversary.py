"""Attack the certified envelopes of every method through a rolled day: does any joint use break a limit?

    python -m benchmarks.adversary                        288 steps of every method on three grids (hours)
    python -m benchmarks.adversary --every 12             one step an hour
    python -m benchmarks.adversary --grid ieee33-envelopes --method PQ-E

Each step's envelopes follow from the forecast that the scenario's processes issue at that step. The attack
(`tests/adversary.py`) shares no code with the certificate: admittances and the last word are pandapower's.
The last rows are uncorrected envelopes under the same attack, which shows that it can win.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from time import perf_counter

import numpy as np

from tests.adversary import LOADING_PERCENT, V_PU, together
from tests.rolled_day import GRIDS, METHODS, STEPS, attacked, day

HEAD = (
    f"{'grid':20}{'method':9}{'':7}{'steps':>6}{'none':>6}{'cases':>10}{'violating':>11}"
    f"{'under [pu]':>12}{'over [pu]':>12}{'load [%]':>10}{'median':>9}{'most [ms]':>11}"
)


def row(grid: str, method: str, steps: Sequence[int], certified: bool, two_sided: bool) -> tuple[str, int]:
    """A line of the table, and how many steps had a violation."""
    options = {"two_sided": two_sided} if certified else {}
    found = list(attacked(day(grid), METHODS[method], steps, certified=certified, **options))
    kept = [x.findings for x in found if x.findings is not None]
    worst, times = together(kept), [x.took_ms for x in found]
    broken = sum(x.violated for x in kept)
    how = ("both" if two_sided else "") if certified else "raw"
    return (
        f"{grid.removesuffix('-envelopes'):20}{method:9}{how:7}{len(found):6}{len(found) - len(kept):6}"
        f"{worst.cases:10}{broken:11}{worst.under_v_pu:12.2e}{worst.over_v_pu:12.2e}"
        f"{worst.over_loading_percent:10.3f}{np.median(times):9.1f}{max(times):11.1f}"
    ), broken


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; the exit status is 1 when certified envelopes were broken."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--grid", action="append", choices=GRIDS)
    parser.add_argument("--method", action="append", choices=list(METHODS))
    parser.add_argument("--every", type=int, default=1, help="steps of 5 minutes from one attack to the next")
    parser.add_argument("--two-sided", action="store_true")
    given = parser.parse_args(arguments)
    warnings.simplefilter("ignore", FutureWarning)
    steps = range(0, STEPS, given.every)
    began, broken = perf_counter(), 0
    print(f"violating: steps beyond {V_PU:g} pu or {LOADING_PERCENT:g} % loading; none: without a decision")
    print(HEAD, flush=True)
    for certified in (True, False):
        for grid in given.grid or GRIDS:
            for method in given.method or METHODS:
                some = steps if certified else range(0, STEPS, max(given.every, 48))
                text, count = row(grid, method, some, certified, given.two_sided and certified)
                broken += count if certified else 0
                print(text, flush=True)
    print(f"{broken} certified steps were broken; {perf_counter() - began:.0f} s")
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
