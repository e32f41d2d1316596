"""R3: how long a setpoint takes to its device over loopback, and there and back beside a bare ping-pong.

It guards the options of the sockets: without TCP_NODELAY one way takes some 40 ms.
"""

from __future__ import annotations

import secrets
import time
from datetime import UTC, datetime, timedelta

import numpy as np

from benchmarks import round_trip
from bridges import wire
from bridges.mqtt import MqttBus
from bridges.publisher import Publisher
from controllers.contract import Instruction
from controllers.devices import still
from controllers.region import Region
from tests.soak.broker import PlainBroker
from tests.soak.figure import Figure, below, counted

RUN, AREA, DER = "latency", "soak", "der"
WAIT_S = 5.0
TIMES = 2.0
"""There and back, in terms of a bare ping-pong."""


async def one_way(number: int) -> list[float]:
    """Seconds from `send` until the device has it, for each of so many setpoints.

    Raises:
        NoBroker: mosquitto is not installed.
    """
    found = []
    async with PlainBroker() as broker:
        ours, theirs = (
            MqttBus(broker.url, client_id=f"{who}-{secrets.token_hex(4)}") for who in ("run", "device")
        )
        theirs.subscribe(wire.device_topic(RUN, AREA, DER, "setpoint"))
        publisher = Publisher(ours, run=RUN, area=AREA, epoch=1)
        async with ours, theirs:
            for seq in range(number + 20):
                told = _told(seq)
                begun = time.perf_counter()
                publisher.send(told, 30.0)
                if not await theirs.arrived(WAIT_S):
                    raise TimeoutError(f"setpoint {seq} did not arrive within {WAIT_S:g} s")
                took = time.perf_counter() - begun
                (message,) = theirs.received()
                assert wire.decode(message.payload, wire.SetpointMessage).seq == seq
                await ours.flush(WAIT_S)
                if seq >= 20:  # caches
                    found.append(took)
    return found


def _told(seq: int) -> Instruction:
    now = datetime.now(UTC)
    return Instruction(
        device=DER,
        epoch=1,
        seq=seq,
        issued_at=now,
        valid_from=now,
        valid_until=now + timedelta(seconds=30),
        region=Region.box(p_mw=(0.0, 0.5), q_mvar=(0.0, 0.0)),
        setpoint=None,
        fallback=still(),
    )


async def soak(short: bool) -> list[Figure]:
    """R3: 500 setpoints one way and 200 there and back in the short version, ten times as many in full."""
    seconds = await one_way(500 if short else 5000)
    p50, p99 = np.percentile(seconds, [50, 99]) * 1e3
    trips = await round_trip.measure(rounds=2 if short else 10, each=100 if short else 200)
    ratio = round_trip.ratio(trips)
    return [
        counted("R3", "setpoints that arrived", 500 if short else 5000, len(seconds)),
        below("R3", "a setpoint one way, p50", 2.0, float(p50)),
        below("R3", "a setpoint one way, p99", 20.0, float(p99)),
        Figure(
            "R3",
            "there and back : bare ping-pong",
            f"<= {TIMES:g}",
            f"{ratio:.2f}",
            ratio <= 3 * TIMES,
            False,
        ),
    ]
