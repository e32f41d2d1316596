"""Operator: a person takes a device from the run, or gives it back, on `{run}/ctl/operator`.

A device that is held is told nothing new; what it has runs out, then its fallback holds. The run's
heartbeat names who is held, so that who asked for it sees that it was heard. By docker/mosquitto/acl only the
common name `operator` may write here.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from bridges import wire
from bridges.wire import ROOT, Reason

OPERATOR: Literal["gridpace.operator.v1"] = "gridpace.operator.v1"


class OperatorMessage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an operator wants of one device."""

    schema: Literal["gridpace.operator.v1"]
    word: Literal["hold", "release"]
    """hold: tell it nothing any more; release: go on"""
    device: str
    time: datetime
    why: Reason | None = None
    """for people, who read it in the run's events"""

    def __post_init__(self) -> None:
        wire.check_name("device", self.device)
        wire.check_times(time=self.time)


def operator_topic(run: str) -> str:
    """The topic on which a run hears its operator.

    Raises:
        BadMessage: a name that cannot be in a topic.
    """
    return f"{ROOT}/{wire.check_name('run', run)}/ctl/operator"
