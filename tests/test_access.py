"""R11: nobody gets in who should not, and nobody says or hears what is not his. Real mosquitto, real TLS."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from bridges.broker import NoBroker
from tests.running import do
from tests.soak.access import CASES, HEARD, SAID, Case, Stage, knocks, may_say, must_hear, pretends, stage

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def on(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """The shipped broker with its watchers, for all tests of this file."""
    try:
        async with stage(tmp_path_factory.mktemp("access")) as found:
            yield found
    except NoBroker as error:
        pytest.skip(str(error))


async def test_the_matrix_is_as_large_as_it_is_said_to_be() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 60


@pytest.mark.parametrize(("who", "topic"), SAID)
async def test_who_may_say_something_is_heard(on: Stage, who: str, topic: str) -> None:
    assert await may_say(on, who, topic)


@pytest.mark.parametrize(("who", "topic"), HEARD)
async def test_who_must_hear_something_hears_it(on: Stage, who: str, topic: str) -> None:
    assert await must_hear(on, who, topic)


async def test_who_has_a_certificate_that_counts_is_let_in(on: Stage) -> None:
    """With it, the attacks that only its lack prevents do what they are meant to do."""
    inside = knocks("the controller", lambda on: on.broker.context("controller"))
    assert await inside.attack(on) == ["was let in", *["b'forged' was heard"] * 3]
    assert await pretends("pv24").attack(on) == ["was told a secret", *["b'forged' was heard"] * 2]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_nothing_leaks(on: Stage, case: Case) -> None:
    assert await case.attack(on) == []


async def test_a_run_that_the_broker_does_not_take_for_the_run_says_so(on: Stage, tmp_path: Path) -> None:
    own = on.broker.certificates
    files = {"ca_file": "ca.crt", "cert_file": "observer.crt", "key_file": "observer.key"}
    sets = [f"bus.{key}={own / name}" for key, name in files.items()]
    bus = ("bus.kind=mqtt", f"bus.url={on.broker.url}", *sets)
    result = await do("ieee33-quick", tmp_path, "steps=4", "clock.mode=scaled", "clock.factor=600", *bus)
    events = [json.loads(line) for line in (result.directory / "events.jsonl").read_text().splitlines()]
    (refuses,) = [event for event in events if event["what"] == "broker-refuses"]
    assert refuses["messages"] > 0
    assert "bus.cert_file" in refuses["why"]
