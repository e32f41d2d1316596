"""Fixtures for all tests: a real broker, once a session."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from bridges.broker import EmbeddedBroker, NoBroker


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def mqtt_url() -> AsyncIterator[str]:
    """A broker with MQTT 5: `$GRIDPACE_MQTT_URL`, else a mosquitto on a free port of its own."""
    if url := os.environ.get("GRIDPACE_MQTT_URL"):
        yield url
        return
    broker = EmbeddedBroker(prefer="mosquitto")
    try:
        await broker.start()
    except NoBroker as error:
        pytest.skip(f"no MQTT 5 broker: {error}; or set GRIDPACE_MQTT_URL")
    try:
        yield broker.url
    finally:
        await broker.stop()
