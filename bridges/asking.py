"""Asking: questions to controllers in processes of their own, and their answers, over a bus.

| topic                            | payload                       | retained | from    | to        |
|----------------------------------|-------------------------------|----------|---------|-----------|
| `{run}/ctl/{process}/ask/{part}` | a part of an `Ask`            | no       | run     | process   |
| `{run}/ctl/{process}/answer/{part}` | a part of an `Answer`      | no       | process | run       |
| `{run}/ctl/{process}/state`      | `Presence`                    | yes      | process | everybody |

`Asking` is the run's end, `Answering` that of a process. What is asked is `bridges.conversation`'s affair.
Each part has a topic of its own, because a bus keeps only the newest payload of a topic.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import msgspec

from bridges import wire
from bridges.bus import Bus, Message
from bridges.parcel import Header, Parcels, pack, unpack
from bridges.wire import BadMessage
from controllers.contract import ControlError
from controllers.contract import Late as Late

REMEMBERED = 1000
"""Asks of which it is known what became of them, to tell a late answer from a doubled or a foreign one."""
LISTEN_S = 60.0
"""Longest that a listener waits before it looks again."""


class Lost(ControlError):
    """The process of a controller has ended."""

    outcome = "lost"


class Presence(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether a process answers. `offline` is its last will."""

    state: Literal["online", "offline"]
    token: str
    """of the run"""
    life: int
    """how often the process was started, this time included"""


def process_topic(run: str, process: str, what: str) -> str:
    """The topic below which one process is asked, answers, or says that it is there."""
    return f"{wire.ROOT}/{wire.check_name('run', run)}/ctl/{wire.check_name('process', process)}/{what}"


def process_pattern(run: str, what: str) -> str:
    """The subscription for what all processes of a run say."""
    return f"{wire.ROOT}/{wire.check_name('run', run)}/ctl/+/{what}"


def will_of(run: str, process: str, token: str, life: int) -> Message:
    """What the broker is to say, retained, if a process vanishes; for `MqttBus(will=...)`."""
    gone = Presence(state="offline", token=token, life=life)
    return Message(process_topic(run, process, "state"), wire.encode(gone))


class Asking:
    """The run's end: asks processes, and takes each answer once, while it is waited for.

    Everything but `number` runs in the event loop's thread.

    Args:
        bus: for nothing else, not yet entered.
        run: name of the run.
        token: what the run's own processes know and others do not, so that a process left behind by a run of
            the same name is not heard.
        processes: their names.
        patient: whether an ask waits for a process that is being started, or that still owes an answer from
            before. A step of the wall clock has no time for that: others would wait as well.
    """

    def __init__(
        self, bus: Bus, *, run: str, token: str, processes: Iterable[str], patient: bool = True
    ) -> None:
        self._bus, self._run, self._token, self._patient = bus, run, token, patient
        self._number = 0
        self._parcels = Parcels()
        self._waiting: dict[int, tuple[str, asyncio.Future[bytes]]] = {}
        self._sent: dict[int, tuple[list[bytes], float]] = {}
        """by ask that is waited for: its parts, and when nobody waits any more"""
        self._past: OrderedDict[int, bool] = OrderedDict()
        """asks that nobody waits for any more: whether they were answered"""
        self._life = dict.fromkeys(processes, 0)
        self._online = {process: asyncio.Event() for process in self._life}
        self._gone: dict[str, str] = {}
        """by process that is not started again: why"""
        self.heard: Counter[str] = Counter()
        """answers by process, late ones too"""
        self._silent: set[str] = set()
        """processes that were late and have not been heard since"""
        self.counts: Counter[str] = Counter()
        """asks | answers-late, -doubled, -foreign, -malformed: ignored"""
        for what in ("answer/+", "state"):
            bus.subscribe(process_pattern(run, what))

    @property
    def connected(self) -> bool:
        """Whether there is a connection over which somebody can be asked."""
        return self._bus.connected

    async def listen(self) -> None:
        """Take what arrives, for ever."""
        while True:
            await self._bus.arrived(LISTEN_S)
            for message in self._bus.received():
                self.take(message)

    def take(self, message: Message) -> None:
        """Take one message; what is none of ours is counted and ignored."""
        process, what = message.topic.split("/")[4:6]
        try:
            if what == "state":
                self._present(process, wire.decode(message.payload, Presence))
            else:
                self._answer(process, *unpack(message.payload))
        except BadMessage:
            self.counts["answers-malformed"] += 1

    def _present(self, process: str, presence: Presence) -> None:
        # That a process has ended is known from the process itself, and sooner.
        ours = presence.token == self._token and presence.life == self._life.get(process)
        if ours and presence.state == "online":
            self._online[process].set()
            self._silent.discard(process)
            # After a broker's failure it may be connected again later than we, and have missed what it was
            # asked meanwhile. What it has heard already it leaves out.
            for number, (asked, _) in self._waiting.items():
                if asked == process:
                    self._send(process, number)

    def _send(self, process: str, number: int) -> None:
        parts, end = self._sent[number]
        left_s = max(end - asyncio.get_running_loop().time(), 1e-3)
        for i, part in enumerate(parts):
            self._bus.publish(process_topic(self._run, process, f"ask/{i}"), part, ttl_s=left_s)

    def _answer(self, process: str, header: Header, piece: bytes) -> None:
        asked = self._waiting.get(header.number)
        answer: bytes | None = None
        self.heard[process] += header.token == self._token
        if header.token == self._token:
            self._silent.discard(process)
        if header.token != self._token or (asked is None and header.number not in self._past):
            self.counts["answers-foreign"] += 1
        elif asked is None:
            if header.part == 0:
                self.counts["answers-doubled" if self._past[header.number] else "answers-late"] += 1
        elif asked[0] != process:
            self.counts["answers-foreign"] += 1
        else:
            answer = self._parcels.add(header, piece)
        if asked is not None and answer is not None and not asked[1].done():
            asked[1].set_result(answer)
            self._forget(header.number, answered=True)

    def _forget(self, number: int, *, answered: bool) -> None:
        self._sent.pop(number, None)
        if self._waiting.pop(number, None) is not None:
            self._past[number] = answered
            while len(self._past) > REMEMBERED:
                self._past.popitem(last=False)

    async def ask(self, process: str, message: bytes, within_s: float) -> bytes:
        """A process's answer.

        Args:
            within_s: how long it is waited for, and by the patient for the process to be there before it is
                asked. The impatient ask one that was late before and has not been heard since too, which
                shows when it is back, but do not wait for it.

        Raises:
            Late: it does not come in time.
            Lost: the process has ended meanwhile, or is not started any more.
            BadMessage: the message is too long.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + within_s
        online = self._online[process]
        if not self._patient and not online.is_set():
            raise Late(f"process {process} is being started")
        if within_s <= 0:
            raise Late(f"process {process} is not asked: those before it took the time that this step has")
        self._number = number = self._number + 1
        self.counts["asks"] += 1
        try:
            async with asyncio.timeout_at(end):
                if process not in self._gone:
                    await online.wait()
                if process in self._gone:
                    raise Lost(self._gone[process])
                left_s = max(end - loop.time(), 1e-3)
                parts = pack(message, token=self._token, number=number, within_ms=round(left_s * 1000) or 1)
                answer: asyncio.Future[bytes] = loop.create_future()
                self._sent[number] = list(parts), end
                self._waiting[number] = process, answer
                self._send(process, number)
                if not self._patient and process in self._silent:
                    raise Late(f"process {process} is not waited for: it was late before and is silent since")
                return await answer
        except TimeoutError:
            self._silent.add(process)
            why = "" if self._bus.connected else "; there is no connection to the broker"
            why = why if online.is_set() else "; it is being started"
            raise Late(f"process {process} has not answered within {round(within_s, 3):g} s{why}") from None
        finally:
            self._forget(number, answered=False)

    def starting(self, process: str, life: int) -> None:
        """A process is being started, for the `life`th time."""
        self._life[process] = life
        self._online[process].clear()

    def there(self, process: str) -> bool:
        """Whether a process has said that it is there."""
        return process in self._online and self._online[process].is_set()

    async def online(self, process: str) -> None:
        """Wait until a process says that it is there."""
        await self._online[process].wait()

    def lost(self, process: str, why: str, *, for_good: bool) -> None:
        """A process has ended: nobody waits for it any more, nor later if it is `for_good`."""
        self._online[process].clear()
        if for_good:
            self._gone[process] = why
            self._online[process].set()  # whoever waits for it to come back is told
        for asked, answer in self._waiting.values():
            if asked == process and not answer.done():
                answer.set_exception(Lost(why))


@dataclass(frozen=True, slots=True)
class Request:
    """An ask as it arrived at a process."""

    header: Header
    message: bytes
    until: float
    """when nobody waits for the answer any more, on `Answering`'s clock"""


class Answering:
    """A process's end: takes asks in their order, and sends the answers.

    An ask whose time has run out before its turn came is left out: nobody waits for its answer.

    Args:
        bus: for nothing else, not yet entered.
        run, process: names.
        token: see `Asking`; asks of another one are ignored.
        life: how often the process was started.
        clock: seconds.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        run: str,
        process: str,
        token: str,
        life: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bus, self._run, self._process, self._token, self._life = bus, run, process, token, life
        self._clock = clock
        self._parcels = Parcels()
        self._asked: asyncio.Queue[Request] = asyncio.Queue()
        self._newest = 0
        self.counts: Counter[str] = Counter()
        """asks-stale, -doubled, -foreign, -malformed: ignored"""
        bus.subscribe(process_topic(run, process, "ask/+"))

    def online(self) -> None:
        """Say that the process answers from now on."""
        here = Presence(state="online", token=self._token, life=self._life)
        self._bus.publish(process_topic(self._run, self._process, "state"), wire.encode(here), retain=True)

    async def listen(self) -> None:
        """Take what arrives, for ever."""
        while True:
            await self._bus.arrived(LISTEN_S)
            for message in self._bus.received():
                self.take(message)

    def take(self, message: Message) -> None:
        """Take one message; what is no new ask of our run is counted and ignored."""
        try:
            header, piece = unpack(message.payload)
            if header.token != self._token:
                self.counts["asks-foreign"] += 1
                return
            if header.number <= self._newest:
                self.counts["asks-doubled"] += 1
                return
            if (whole := self._parcels.add(header, piece)) is not None:
                self._newest = header.number
                self._asked.put_nowait(Request(header, whole, self._clock() + header.within_ms / 1000))
        except BadMessage:
            self.counts["asks-malformed"] += 1

    async def next(self) -> Request:
        """The next ask that somebody waits for."""
        while (request := await self._asked.get()).until <= self._clock():
            self.counts["asks-stale"] += 1
        return request

    def answer(self, request: Request, message: bytes) -> None:
        """Answer an ask.

        Raises:
            BadMessage: the message is too long.
        """
        header = request.header
        parts = pack(message, token=self._token, number=header.number, within_ms=header.within_ms)
        for i, part in enumerate(parts):
            topic = process_topic(self._run, self._process, f"answer/{i}")
            self._bus.publish(topic, part, ttl_s=header.within_ms / 1000)
