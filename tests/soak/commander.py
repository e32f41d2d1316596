"""Commander: tells many devices something new in each step, as a run does, and counts their answers.

python -m tests.soak.commander --url mqtt://... --run R --area A --every 1.0 --valid 4.0 --epoch 1 NAME...
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count

from bridges.bus import Bus
from bridges.mqtt import MqttBus
from bridges.publisher import Publisher
from controllers.contract import Instruction
from controllers.devices import still
from controllers.region import Region
from controllers.register import Life

STILL = still()


@dataclass
class Commander:
    """Speaks to devices on a bus that is entered.

    Args:
        valid_s: from now on, of each instruction.
    """

    bus: Bus
    names: Sequence[str]
    run: str
    area: str
    valid_s: float
    epoch: int = 1
    applied: dict[str, int] = field(default_factory=dict)
    """by device, the number that it has said last to obey"""

    def __post_init__(self) -> None:
        self.publisher = Publisher(self.bus, run=self.run, area=self.area, epoch=self.epoch)

    def say(self, seq: int, every_s: float) -> None:
        """Tell all devices something, and the heartbeat."""
        now = datetime.now(UTC)
        until = now + timedelta(seconds=self.valid_s)
        region = Region.box(p_mw=(-1.0, (seq % 10) / 10), q_mvar=(-1.0, 1.0))
        for name in self.names:
            told = Instruction(
                device=name,
                epoch=self.epoch,
                seq=seq,
                issued_at=now,
                valid_from=now,
                valid_until=until,
                region=region,
                setpoint=None,
                fallback=STILL,
            )
            self.publisher.send(told, self.valid_s)
        self.publisher.heartbeat(seq, every_s, now + timedelta(seconds=every_s))

    def hear(self) -> None:
        """Take the answers that have arrived."""
        for der, ack in self.publisher.acks():
            if ack.epoch == self.epoch and ack.state is Life.APPLIED:
                self.applied[der] = max(ack.seq, self.applied.get(der, 0))

    async def answered(self, seq: int, within_s: float) -> float | None:
        """Seconds until all devices say that they obey it or something newer; `None`: not in time."""
        begun = time.monotonic()
        waiting = set(self.names)
        while True:
            self.hear()
            waiting = {name for name in waiting if self.applied.get(name, 0) < seq}
            passed = time.monotonic() - begun
            if not waiting:
                return passed
            if passed >= within_s:
                return None
            await self.bus.arrived(within_s - passed)


async def go_on(given: argparse.Namespace) -> None:
    """Speak in a rhythm until killed."""
    bus = MqttBus(given.url, client_id=f"commander-{secrets.token_hex(4)}", latch_size=100_000)
    async with bus:
        commander = Commander(bus, given.names, given.run, given.area, given.valid, given.epoch)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        for seq in count(1):
            commander.say(seq, given.every)
            commander.hear()
            await asyncio.sleep(max(0.0, begun + seq * given.every - loop.time()))


def main() -> None:
    parser = argparse.ArgumentParser(description="Tells many devices something.")
    parser.add_argument("names", nargs="+")
    for option in ("--url", "--run", "--area"):
        parser.add_argument(option, required=True)
    for option in ("--every", "--valid"):
        parser.add_argument(option, type=float, required=True)
    parser.add_argument("--epoch", type=int, default=1)
    asyncio.run(go_on(parser.parse_args()))


if __name__ == "__main__":
    main()
