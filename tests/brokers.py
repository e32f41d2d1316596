"""Brokers for tests, which are skipped where there is none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

import pytest

from bridges.broker import EmbeddedBroker, NoBroker

B = TypeVar("B", bound=EmbeddedBroker)


@asynccontextmanager
async def started(broker: B, advice: str = "") -> AsyncIterator[B]:
    """A broker that runs, and ends whatever a test has done to it."""
    try:
        await broker.start()
    except NoBroker as error:
        pytest.skip(f"no MQTT 5 broker: {error}{advice}")
    try:
        yield broker
    finally:
        await broker.stop()
