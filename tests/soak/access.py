"""R11, access: who is not let in, and what those who are cannot say or hear. Judged by what arrives.

Three watch all the time: the controller and the observer, who may hear everything, and the device pv24,
the victim. After each attack the controller says something that all three hear (a fence): whatever the broker
took before it has arrived by then.
"""

from __future__ import annotations

import secrets
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from bridges.mqtt import MqttBus
from scenarios.certs import make
from tests.soak import packets, strangers
from tests.soak.broker import GuardedBroker
from tests.soak.figure import Figure, at_least, counted

ROOT = "gridpace/v1/r"
VICTIM = f"{ROOT}/feeder/pv24"
WAIT_S = 10.0
FORGED, SECRET, FENCE = b"forged", b"secret", b"fence"
CLIENTS = {"pv6": "device", "pv24": "device", "mg1": "process", "mg2": "process"}

SECRETS_OF_THE_RUN = (
    f"{VICTIM}/setpoint",
    f"{VICTIM}/batch/0",
    f"{ROOT}/ctl/mg2/ask/0",
    f"{ROOT}/area/mg2/aic",
)
SECRETS_OF_THE_VICTIM = tuple(
    f"{VICTIM}/{what}" for what in ("ack", "batch-ack", "meas", "batch-meas", "state")
)


@dataclass
class Stage:
    """The broker, its watchers, and what they have heard."""

    broker: GuardedBroker
    folder: Path
    """in which attackers may keep what they make"""
    controller: MqttBus
    victim: MqttBus
    observer: MqttBus
    heard: list[bytes] = field(default_factory=list)
    """payloads, all watchers', since the last fence"""
    fences: int = 0

    async def fence(self) -> list[bytes]:
        """What the watchers have heard since the last fence, without fences."""
        self.fences += 1
        mark = FENCE + b"%d" % self.fences
        self.controller.publish(f"{VICTIM}/setpoint", mark)
        for watcher in (self.controller, self.victim, self.observer):
            heard: list[bytes] = []
            while mark not in heard:
                if not await watcher.arrived(WAIT_S):
                    raise TimeoutError(f"{watcher.client_id} has not heard {mark!r}")
                heard += [message.payload for message in watcher.received()]
            self.heard += heard
        found = [payload for payload in self.heard if not payload.startswith(FENCE)]
        self.heard.clear()
        return found


@dataclass(frozen=True)
class Case:
    """One attack: gives what leaked, in words."""

    name: str
    attack: Callable[[Stage], Awaitable[list[str]]]


@asynccontextmanager
async def stage(folder: Path) -> AsyncIterator[Stage]:
    """The shipped broker, with watchers.

    Raises:
        NoBroker: mosquitto is not installed.
    """
    certificates = folder / "certificates"
    make(certificates, clients=CLIENTS)
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(GuardedBroker(certificates))
        victim = broker.client("pv24", *(f"{VICTIM}/{what}" for what in ("setpoint", "batch/+")))
        clients = [broker.client("controller", "#"), victim, broker.client("observer", "#")]
        controller, victim, observer = [await stack.enter_async_context(client) for client in clients]
        yield Stage(broker, folder, controller, victim, observer)


# What somebody says


def says(who: str, topic: str, *, retain: bool = False, payload: bytes = FORGED) -> Case:
    """Somebody with a certificate publishes what is not his to say."""

    async def attack(on: Stage) -> list[str]:
        async with on.broker.client(who) as bus:
            bus.publish(topic, payload, retain=retain)
            await bus.flush(WAIT_S)
        heard = [f"{topic} was heard" for heard in await on.fence() if heard == payload]
        if retain:
            async with on.broker.client("observer", "#", f"{ROOT}/ctl/state") as late:
                on.controller.publish(f"{ROOT}/ctl/state", FENCE)
                kept = await _until(late, FENCE)
            heard += [f"{topic} was kept" for found in kept if found == payload]
            await on.fence()
        return heard

    return Case(f"{who} says {topic.removeprefix(ROOT + '/')}{' (retained)' if retain else ''}", attack)


async def _erases(on: Stage) -> list[str]:
    """A device removes the retained setpoint of another one."""
    on.controller.publish(f"{VICTIM}/setpoint", SECRET, retain=True)
    await on.controller.flush(WAIT_S)
    async with on.broker.client("pv6") as bus:
        bus.publish(f"{VICTIM}/setpoint", b"", retain=True)
        await bus.flush(WAIT_S)
    async with on.broker.client("pv24", f"{VICTIM}/setpoint", f"{ROOT}/ctl/state") as late:
        on.controller.publish(f"{ROOT}/ctl/state", FENCE)
        kept = await _until(late, FENCE)
    await on.fence()
    return [] if SECRET in kept else ["the retained setpoint is gone"]


async def _wills(on: Stage) -> list[str]:
    """A device leaves a will for another one's topics; its own proves that wills were carried out."""
    heard: list[bytes] = []
    for topic, payload in ((f"{VICTIM}/state", FORGED), (f"{ROOT}/feeder/pv6/state", b"own will")):
        hello = packets.connect(secrets.token_hex(4), will=(topic, payload))
        told = await strangers.tell(on.broker.port, on.broker.context("pv6"), hello, packets.CONNACK_ACCEPTED)
        assert told.startswith(packets.CONNACK_ACCEPTED), "pv6 is not let in"
    while b"own will" not in heard:
        heard += await on.fence()
    return ["the will was carried out"] if FORGED in heard else []


# What somebody hears


def hears(who: str, pattern: str) -> Case:
    """Somebody with a certificate subscribes what is not meant for him: retained, then live."""

    async def attack(on: Stage) -> list[str]:
        await _publish_secrets(on, b" retained")
        async with on.broker.client(who, pattern, f"{ROOT}/ctl/state") as bus:
            await _publish_secrets(on, b" live")
            on.controller.publish(f"{ROOT}/ctl/state", FENCE)
            heard = await _until(bus, FENCE)
        await on.fence()
        return [f"heard {payload!r}" for payload in heard if payload.startswith(SECRET)]

    return Case(f"{who} listens to {pattern}", attack)


async def _publish_secrets(on: Stage, which: bytes) -> None:
    for bus, topics in ((on.controller, SECRETS_OF_THE_RUN), (on.victim, SECRETS_OF_THE_VICTIM)):
        for topic in topics:
            bus.publish(topic, SECRET + which + b" " + topic.encode(), retain=True)
        if not await bus.flush(WAIT_S):
            raise TimeoutError(f"{bus.client_id} cannot publish")


async def _until(bus: MqttBus, last: bytes) -> list[bytes]:
    heard: list[bytes] = []
    while last not in heard:
        if not await bus.arrived(WAIT_S):
            raise TimeoutError(f"{bus.client_id} has not heard {last!r}")
        heard += [message.payload for message in bus.received()]
    return heard


# Who is not let in


def knocks(
    name: str, tls: Callable[[Stage], ssl.SSLContext | None], username: str = "", password: str = ""
) -> Case:
    """Somebody without a certificate that counts connects, listens to everything and says something."""

    async def attack(on: Stage) -> list[str]:
        said = packets.connect(secrets.token_hex(4), username=username, password=password)
        said += packets.subscribe("#") + packets.publish(f"{VICTIM}/setpoint", FORGED, retain=True)
        told = await strangers.tell(on.broker.port, tls(on), said)
        leaks = ["was let in"] if packets.CONNACK_ACCEPTED in told else []
        return leaks + [f"{heard!r} was heard" for heard in await on.fence() if heard == FORGED]

    return Case(f"{name} knocks", attack)


def pretends(name: str) -> Case:
    """Somebody of a name that would fill in more than one level of a topic, or none."""

    async def attack(on: Stage) -> list[str]:
        await _publish_secrets(on, b" retained")
        said = packets.connect(secrets.token_hex(4)) + packets.subscribe("#")
        said += packets.publish(f"{VICTIM}/ack", FORGED) + packets.PINGREQ
        tls = strangers.odd_name(on.broker.certificates, on.folder / "odd", name)
        told = await strangers.tell(on.broker.port, tls, said, until=packets.PINGRESP)
        leaks = ["was told a secret"] if SECRET in told else []
        return leaks + [f"{heard!r} was heard" for heard in await on.fence() if heard == FORGED]

    return Case(f"a certificate named {name!r}", attack)


def _with_username(name: str) -> Case:
    """A device with its certificate says that it is somebody else."""

    async def attack(on: Stage) -> list[str]:
        said = packets.connect(secrets.token_hex(4), username=name, password="x")
        said += packets.publish(f"{VICTIM}/setpoint", FORGED) + packets.PINGREQ
        told = await strangers.tell(on.broker.port, on.broker.context("pv6"), said, until=packets.PINGRESP)
        assert told.startswith(packets.CONNACK_ACCEPTED), "pv6 is not let in"
        return [f"{heard!r} was heard" for heard in await on.fence() if heard == FORGED]

    return Case(f"pv6 with the user name {name}", attack)


STRANGERS = (
    knocks("somebody without TLS", lambda on: None),
    knocks("somebody without TLS, with a password,", lambda on: None, "controller", "guess"),
    knocks("somebody without a certificate", lambda on: on.broker.context(None)),
    knocks("somebody with a password instead", lambda on: on.broker.context(None), "controller", "guess"),
    knocks("the controller with TLS 1.1", lambda on: strangers.old_tls(on.broker.context("controller"))),
    knocks(
        "another authority's controller",
        lambda on: strangers.made_elsewhere(on.broker.certificates, on.folder / "elsewhere"),
    ),
    knocks(
        "a controller signed by itself",
        lambda on: strangers.signed_by_itself(on.broker.certificates, on.folder / "itself"),
    ),
    knocks(
        "a controller of yesterday",
        lambda on: strangers.out_of_time(on.broker.certificates, on.folder / "yesterday", days=2),
    ),
    knocks(
        "a controller of tomorrow",
        lambda on: strangers.out_of_time(on.broker.certificates, on.folder / "tomorrow", days=-1),
    ),
    knocks("somebody with the broker's own certificate", lambda on: on.broker.context("server")),
    knocks("somebody with the authority's certificate", lambda on: on.broker.context("ca")),
)

CASES = (
    *STRANGERS,
    *(_with_username(name) for name in ("controller", "pv24")),
    *(pretends(name) for name in ("+", "#", "pv6/ack", "feeder/pv24", " ", "pv24 ", "%u")),
    *(
        says("pv6", f"{VICTIM}/{what}")
        for what in ("ack", "batch-ack", "meas", "batch-meas", "setpoint", "batch/0")
    ),
    *(says("pv6", f"{VICTIM}/{what}", retain=True) for what in ("state", "setpoint")),
    *(
        says("pv6", f"{ROOT}/{topic}")
        for topic in (
            "feeder/pv6/setpoint",
            "feeder/pv6/batch/0",
            "feeder/pv24/ack/",
            "feeder/pv6/x/pv24/ack",
            "area/mg1/aic",
            "ctl/mg1/ask/0",
            "ctl/mg1/answer/0",
            "ctl/mg1/state",
        )
    ),
    says("pv6", f"{ROOT}/ctl/state", retain=True, payload=b'{"state":"offline","epoch":1}'),
    says("pv6", "gridpace/v1/elsewhere", retain=True),
    *(says("observer", f"{VICTIM}/{what}", retain=True) for what in ("setpoint", "ack", "state")),
    *(
        says("observer", f"{ROOT}/{topic}")
        for topic in ("feeder/observer/ack", "feeder/observer/state", "ctl/state", "ctl/observer/answer/0")
    ),
    *(says(who, f"{ROOT}/ctl/operator") for who in ("pv6", "mg1", "observer", "controller")),
    *(
        says("operator", f"{ROOT}/{topic}")
        for topic in (
            "feeder/pv24/setpoint",
            "feeder/operator/ack",
            "feeder/operator/meas",
            "ctl/state",
            "ctl/operator/answer/0",
            "ctl/operator/state",
        )
    ),
    *(
        says("mg1", f"{ROOT}/{topic}")
        for topic in (
            "ctl/mg2/answer/0",
            "ctl/mg2/state",
            "ctl/mg1/ask/0",
            "ctl/state",
            "feeder/pv24/setpoint",
        )
    ),
    *(says("controller", f"{VICTIM}/{what}") for what in ("ack", "meas", "state", "batch-ack")),
    Case("pv6 erases a retained setpoint", _erases),
    Case("pv6 leaves a will for another's topic", _wills),
    *(
        hears("pv6", pattern)
        for pattern in (
            f"{VICTIM}/setpoint",
            f"{VICTIM}/#",
            "#",
            "+/#",
            f"{ROOT}/+/+/setpoint",
            f"{ROOT}/+/+/batch/+",
            f"{ROOT}/+/+/ack",
            f"{ROOT}/area/#",
            f"{ROOT}/ctl/#",
            f"$share/all/{VICTIM}/setpoint",
            "$share/all/#",
        )
    ),
    *(hears("operator", pattern) for pattern in (f"{VICTIM}/setpoint", f"{ROOT}/ctl/mg2/ask/+", "#")),
    *(hears("mg1", pattern) for pattern in (f"{ROOT}/ctl/mg2/ask/+", f"{ROOT}/+/+/ask/+", "#")),
)
"""All that is tried."""

SAID = (
    *(("controller", f"{ROOT}/{topic}") for topic in ("feeder/pv6/setpoint", "feeder/pv6/batch/0")),
    *(("controller", f"{ROOT}/{topic}") for topic in ("ctl/state", "area/mg1/aic", "ctl/mg1/ask/0")),
    *(("pv6", f"{ROOT}/feeder/pv6/{what}") for what in ("ack", "batch-ack", "meas", "batch-meas", "state")),
    *(("mg1", f"{ROOT}/ctl/mg1/{what}") for what in ("answer/0", "state")),
    ("operator", f"{ROOT}/ctl/operator"),
)
"""Who may say what, without which nothing that is refused proves anything."""

HEARD = (
    ("pv6", f"{ROOT}/feeder/pv6/setpoint"),
    ("pv6", f"{ROOT}/feeder/pv6/batch/0"),
    ("mg1", f"{ROOT}/ctl/mg1/ask/0"),
    *((who, f"{ROOT}/ctl/state") for who in ("pv6", "mg1", "observer", "operator", "controller")),
    *(("observer", topic) for topic in SECRETS_OF_THE_RUN),
)
"""Who must hear what of the controller."""


async def may_say(on: Stage, who: str, topic: str) -> bool:
    """Whether it arrives at the controller."""
    async with on.broker.client(who) as bus:
        bus.publish(topic, b"mine")
        await bus.flush(WAIT_S)
    return b"mine" in await on.fence()


async def must_hear(on: Stage, who: str, topic: str) -> bool:
    """Whether what the controller says, retained and then live, arrives there."""
    on.controller.publish(topic, b"kept", retain=True)
    await on.controller.flush(WAIT_S)
    async with on.broker.client(who, topic) as bus:
        await _until(bus, b"kept")
        on.controller.publish(topic, b"live", retain=True)
        await _until(bus, b"live")
    await on.fence()
    return True


async def soak(short: bool) -> list[Figure]:
    """R11: the whole matrix, in the short version too."""
    leaks, allowed = 0, 0
    with TemporaryDirectory(prefix="gridpace-access-") as folder:
        async with stage(Path(folder)) as on:
            for who, topic in SAID:
                allowed += await may_say(on, who, topic)
            for who, topic in HEARD:
                allowed += await must_hear(on, who, topic)
            for case in CASES:
                for leak in await case.attack(on):
                    leaks += 1
                    print(f"R11: {case.name}: {leak}")
    return [
        at_least("R11", "cases of the access matrix", 25, len(CASES)),
        counted("R11", "leaks", 0, leaks),
        counted("R11", "what is allowed arrives", len(SAID) + len(HEARD), allowed),
    ]
