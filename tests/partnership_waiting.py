"""A follower of the partnership for tests: it leaves its process's number, and waits where it is told to."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from controllers.contract import Decision, Observation
from controllers.partnership.follower import PartnershipFollower


@dataclass
class WaitingFollower(PartnershipFollower):
    """Waits once for somebody to write into the file `NAME.pipe` of a folder, at a question of its own."""

    pid_in: str = "."
    at: int = 4
    """the question, counted from 1; terms and the first offer come before the first settlement, the third"""
    asked: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        Path(self.pid_in, f"{self.microgrid}-{os.getpid()}.pid").touch()

    def step(self, observation: Observation) -> Decision:
        """As the real one."""
        self.asked += 1
        pipe = Path(self.pid_in, f"{self.microgrid}.pipe")
        if self.asked == self.at and pipe.exists():
            pipe.read_bytes()
        return super().step(observation)
