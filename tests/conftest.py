"""Fixtures for all tests: a real broker, once a session, or of one test alone."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from bridges.broker import EmbeddedBroker
from tests.brokers import started


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def mqtt_url() -> AsyncIterator[str]:
    """A broker with MQTT 5: `$GRIDPACE_MQTT_URL`, else a mosquitto on a free port of its own."""
    if url := os.environ.get("GRIDPACE_MQTT_URL"):
        yield url
        return
    async with started(EmbeddedBroker(prefer="mosquitto"), "; or set GRIDPACE_MQTT_URL") as broker:
        yield broker.url


@pytest.fixture
async def broker() -> AsyncIterator[EmbeddedBroker]:
    """A mosquitto of one test alone, to be maltreated."""
    async with started(EmbeddedBroker(prefer="mosquitto")) as own:
        yield own
