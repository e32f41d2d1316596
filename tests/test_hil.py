"""Hardware in the loop, and what is promised about devices: real processes, a real broker; in short."""

from __future__ import annotations

import pytest

from bridges.broker import NoBroker
from tests.soak.__main__ import soak_of, table
from tests.soak.figure import missed


@pytest.mark.slow
@pytest.mark.parametrize("claim", ["HIL", "R1", "R2", "R3", "R6", "R15"])
async def test_what_is_promised_is_held(claim: str) -> None:
    try:
        figures = await soak_of(claim)(True)
    except NoBroker as error:
        pytest.skip(str(error))
    print(table(figures))
    assert missed(figures) == []
