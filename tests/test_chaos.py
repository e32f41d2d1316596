"""Broker and network fail, messages go astray, a run goes on: short versions of `scripts/soak R4 R5 R12`."""

from __future__ import annotations

import pytest

from bridges.broker import NoBroker
from tests.soak.__main__ import soak_of, table
from tests.soak.figure import missed


@pytest.mark.slow
@pytest.mark.parametrize("claim", ["R4", "R5", "R12"])
async def test_it_is_held(claim: str) -> None:
    try:
        figures = await soak_of(claim)(True)
    except NoBroker as error:
        pytest.skip(str(error))
    print(table(figures))
    assert missed(figures) == []
