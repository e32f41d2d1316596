"""With another device's certificate nobody gives a device orders, nor the run measurements: real broker, TLS,
mosquitto_pub, and devices in processes of their own. The same messages with the right certificates do.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bridges.broker import NoBroker
from scenarios.certs import make
from simulators.journal import read
from tests import history
from tests.soak.broker import GuardedBroker
from tests.soak.processes import children

RUN, SCENARIO = "lab", "ieee33-quick"
VICTIM, THIEF = "pv24", "bat13"
FORGED_P_MW, FORGED_EPOCH = 0.123456, 77


def forged(now: datetime) -> dict[str, dict[str, object]]:
    """By last word of the topic: what the thief says in the victim's name."""
    then, time = (now + timedelta(minutes=5)).isoformat(), now.isoformat()
    box = {"axes": ["p_mw", "q_mvar"], "A": [[1, 0], [-1, 0], [0, 1], [0, -1]], "b": [FORGED_P_MW, 0, 0, 0]}
    setpoint = {
        **{"schema": "gridpace.setpoint.v1", "run": RUN, "area": SCENARIO, "der": VICTIM},
        **{"sign": "injection_positive", "epoch": FORGED_EPOCH, "seq": 1, "issued": time, "valid_from": time},
        **{"valid_until": then, "ttl_ms": 300_000, "region": box, "setpoint": None, "fallback": box},
    }
    measured = {"time": time, "p_mw": FORGED_P_MW, "q_mvar": 0.0, "state": "controlled"}
    answer = {"epoch": 1, "seq": 3, "state": "refused", "code": "held", "time": time, "reason": "forged"}
    return {"setpoint": setpoint, "meas": measured, "ack": answer}


def say(broker: GuardedBroker, who: str, what: str) -> None:
    """As anybody would, with the client that comes with mosquitto."""
    folder = broker.certificates
    subprocess.run(
        [
            *("mosquitto_pub", "-h", broker.host, "-p", str(broker.port), "-V", "5", "-q", "1"),
            *("--cafile", str(folder / "ca.crt"), "--cert", str(folder / f"{who}.crt")),
            *("--key", str(folder / f"{who}.key")),
            *("-t", f"gridpace/v1/{RUN}/{SCENARIO}/{VICTIM}/{what}"),
            *("-m", json.dumps(forged(datetime.now(UTC))[what])),
        ],
        check=False,  # what arrives is asked, not what the broker says
        capture_output=True,
        timeout=60,
    )


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("mosquitto_pub") is None:
        pytest.skip("mosquitto_pub is not installed")
    folder = tmp_path_factory.mktemp("certificates")
    make(folder, clients={VICTIM: "device", THIEF: "device"})
    return folder


def options(certificates: Path, name: str) -> Sequence[str]:
    return (
        *("--ca", str(certificates / "ca.crt"), "--cert", str(certificates / f"{name}.crt")),
        *("--key", str(certificates / f"{name}.key")),
    )


async def lab(certificates: Path, folder: Path, *sayings: tuple[str, str]) -> tuple[set[int], set[float]]:
    """A run of ten seconds with both devices, in which somebody says something.

    Returns:
        epochs of the instructions that the victim has answered, and what the run took for its active power.
    """
    log = folder / "victim.jsonl"
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(GuardedBroker(certificates))
        device = ("device", SCENARIO, VICTIM, "--url", broker.url, "--run", RUN, "--every", "2s")
        device = (*device, "--log", str(log), *options(certificates, VICTIM))
        (victim,) = await stack.enter_async_context(children(device))
        await victim.prints(f"run {RUN}")
        words = ["run", SCENARIO, "--name", RUN, "--out", str(folder), "--clock", "live", "--log-every", "0"]
        bus = {"kind": "mqtt", "url": broker.url, "ca_file": certificates / "ca.crt"}
        bus |= {"cert_file": certificates / "controller.crt", "key_file": certificates / "controller.key"}
        sets = [f"bus.{key}={value}" for key, value in bus.items()]
        sets += [
            "every=1s",
            "controllers.dso.every=1s",
            "steps=10",
            "expect=[]",
            f"devices.{VICTIM}.via=mqtt",
        ]
        (run,) = await stack.enter_async_context(children([*words, *(x for s in sets for x in ("--set", s))]))
        await run.prints("step 4/")
        for who, what in sayings:
            await asyncio.to_thread(say, broker, who, what)
            await asyncio.sleep(0.2)
        assert await run.ends() == 0, "".join(run.printed)
    answers = [line for line in history.lines(log)[VICTIM] if line["what"] == "answer"]
    assert answers
    rows = [row for row in read(folder / RUN, "devices").to_pylist() if row["device"] == VICTIM]
    assert any(row["p_mw"] is not None for row in rows)
    told = [row["reason"] or "" for row in read(folder / RUN, "setpoints").to_pylist()]
    assert not any("forged" in reason for reason in told)
    return {line["epoch"] for line in answers}, {row["p_mw"] for row in rows}


@pytest.mark.slow
async def test_what_is_forged_by_another_device_changes_nothing(certificates: Path, tmp_path: Path) -> None:
    try:
        several = [(who, what) for who in (THIEF, "observer") for what in ("setpoint", "meas", "ack")]
        epochs, taken = await lab(certificates, tmp_path, *several)
    except NoBroker as error:
        pytest.skip(str(error))
    assert epochs == {1}
    assert FORGED_P_MW not in taken


@pytest.mark.slow
async def test_the_same_by_those_whose_it_is_to_say_does(certificates: Path, tmp_path: Path) -> None:
    try:
        often = [(VICTIM, "meas")] * 8  # the device itself goes on measuring
        epochs, taken = await lab(certificates, tmp_path, ("controller", "setpoint"), *often)
    except NoBroker as error:
        pytest.skip(str(error))
    assert FORGED_EPOCH in epochs
    assert FORGED_P_MW in taken
