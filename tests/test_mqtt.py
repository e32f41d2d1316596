"""MqttBus against a real broker: nothing lost, nothing old, everything counted."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import shutil
import signal
import socket
import ssl
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import aiomqtt
import pytest

from bridges import mqtt
from bridges.broker import EmbeddedBroker
from bridges.bus import BusUnreachable, Message
from bridges.mqtt import MqttBus

WAIT = 10.0  # for what happens in milliseconds


@pytest.fixture
def root(request: pytest.FixtureRequest) -> str:
    """Topics of this test alone, because the broker keeps what is retained."""
    return f"test/{os.getpid()}/{request.node.name.replace('[', '.').rstrip(']')}"


async def collect(bus: MqttBus, number: int) -> dict[str, bytes]:
    """The last payload of each of `number` topics, or what came until the time ran out."""
    seen: dict[str, bytes] = {}
    while len(seen) < number and await bus.arrived(WAIT):
        seen |= {m.topic: m.payload for m in bus.received()}
    return seen


async def test_the_newest_payload_arrives(mqtt_url: str, root: str) -> None:
    async with MqttBus(mqtt_url, client_id="c") as bus, MqttBus(mqtt_url, client_id="d") as device:
        device.subscribe(f"{root}/#")
        device.publish(f"{root}/ready", b"")  # goes out after the subscription
        assert await device.arrived(WAIT)
        device.received()
        for i in range(5):
            bus.publish(f"{root}/a", b"%d" % i)
        bus.publish(f"{root}/b", b"x")
        assert await bus.flush(WAIT)
        assert await collect(device, 2) == {f"{root}/a": b"4", f"{root}/b": b"x"}
        assert bus.counts == {"published": 6, "conflated": 4, "acknowledged": 2}
        assert device.counts["received"] == 3


async def test_a_late_subscriber_gets_what_is_retained_and_how_long_it_lasts(
    mqtt_url: str, root: str
) -> None:
    async with MqttBus(mqtt_url, client_id="c") as bus:
        bus.publish(f"{root}/a", b"1", retain=True, ttl_s=299.5)
        bus.publish(f"{root}/b", b"2", retain=True)
        assert await bus.flush(WAIT)
    host, port, _ = mqtt._address(mqtt_url)
    seen: dict[str, Any] = {}
    async with (
        aiomqtt.Client(host, port, protocol=aiomqtt.ProtocolVersion.V5) as other,
        asyncio.timeout(WAIT),
    ):
        await other.subscribe(f"{root}/#")
        async for message in other.messages:
            assert message.retain
            seen[str(message.topic)[-1]] = getattr(message.properties, "MessageExpiryInterval", None)
            if len(seen) == 2:
                break
    assert 290 < seen["a"] <= 300
    assert seen["b"] is None
    async with MqttBus(mqtt_url, client_id="d") as bus:
        bus.subscribe(f"{root}/#")
        bus.publish(f"{root}/c", b"3")
        found: dict[str, tuple[bool, float | None]] = {}
        async with asyncio.timeout(WAIT):
            while len(found) < 3:
                await bus.arrived(WAIT)
                found |= {m.topic[-1]: (m.retained, m.expires_s) for m in bus.received()}
    assert found["a"][0]
    assert 290 < (found["a"][1] or 0) <= 300
    assert (found["b"], found["c"]) == ((True, None), (False, None))


async def test_what_has_expired_before_the_connection_is_never_sent(mqtt_url: str, root: str) -> None:
    now = [0.0]
    bus = MqttBus(mqtt_url, client_id="c", clock=lambda: now[0])
    bus.subscribe(f"{root}/#")
    bus.publish(f"{root}/old", b"1", ttl_s=5)
    bus.publish(f"{root}/new", b"2", ttl_s=6)
    now[0] = 5.0
    async with bus:
        assert await bus.flush(WAIT)
        assert await bus.arrived(WAIT)
        assert bus.received() == [Message(f"{root}/new", b"2")]
    assert bus.counts["expired"] == 1


async def test_many_topics_pass_through_the_window(mqtt_url: str, root: str) -> None:
    async with MqttBus(mqtt_url, client_id="c") as bus:
        bus.subscribe(f"{root}/#")
        wanted = {f"{root}/{i}": b"%d" % i for i in range(10 * mqtt.WINDOW)}
        for topic, payload in wanted.items():
            bus.publish(topic, payload)
        assert len(bus._sent) == 0
        assert await bus.flush(WAIT)
        assert await collect(bus, len(wanted)) == wanted
        assert bus.counts["acknowledged"] == len(wanted)


async def test_what_is_published_after_a_subscription_is_heard(mqtt_url: str, root: str) -> None:
    async with MqttBus(mqtt_url, client_id="c") as bus:
        wanted = {f"{root}/{i}": b"%d" % i for i in range(5)}
        for topic in wanted:
            bus.subscribe(topic)
        for topic, payload in wanted.items():
            bus.publish(topic, payload)
        assert await collect(bus, len(wanted)) == wanted


# The overridden callbacks of aiomqtt


@pytest.mark.parametrize("name", ["_on_connect", "_on_publish", "_on_message", "_on_socket_register_write"])
def test_what_we_override_is_still_there(name: str) -> None:
    ours, theirs = getattr(mqtt.Connection, name), getattr(aiomqtt.Client, name)
    assert ours is not theirs
    assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters)


async def test_a_message_that_nobody_hears_is_noticed(mqtt_url: str, root: str) -> None:
    async with MqttBus(mqtt_url, client_id="c") as bus:
        bus.publish(f"{root}/void", b"1")
        assert await bus.flush(WAIT)
        assert (bus.counts["acknowledged"], bus.counts["unheard"]) == (1, 1)


async def test_what_the_acl_forbids_is_counted_as_refused(caplog: pytest.LogCaptureFixture) -> None:
    class Guarded(EmbeddedBroker):
        def settings(self, directory: Path) -> str:
            acl = directory / "acl"
            acl.write_text("topic readwrite allowed/#\n")
            acl.chmod(0o644)
            return super().settings(directory) + f"acl_file {acl}\n"

    async with Guarded(prefer="mosquitto") as broker, MqttBus(broker.url, client_id="c") as bus:
        bus.subscribe("#")
        bus.publish("forbidden/a", b"1")
        bus.publish("forbidden/a", b"2")
        assert await bus.flush(WAIT)
        bus.publish("forbidden/a", b"3")
        bus.publish("allowed/a", b"4")
        assert await bus.flush(WAIT)
        assert await bus.arrived(WAIT)
        assert bus.received() == [Message("allowed/a", b"4")]
        assert (bus.counts["refused"], bus.counts["acknowledged"]) == (2, 1)
        assert bus.connected
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR] == [
        f"{broker.url}: the broker refuses forbidden/a: Not authorized"
    ]


async def test_a_packet_larger_than_the_broker_takes_does_not_end_the_connection() -> None:
    class Small(EmbeddedBroker):
        def settings(self, directory: Path) -> str:
            return super().settings(directory).replace("max_packet_size 65536", "max_packet_size 1000")

    async with Small(prefer="mosquitto") as broker, MqttBus(broker.url, client_id="c") as bus:
        bus.publish("a", bytes(1000))
        bus.publish("b", bytes(900))
        assert await bus.flush(WAIT)
        assert (bus.counts["refused"], bus.counts["acknowledged"]) == (1, 1)
        assert bus.counts["disconnects"] == 0


# Losses


async def test_after_a_crash_the_broker_gets_everything_again(broker: EmbeddedBroker) -> None:
    async with MqttBus(broker.url, client_id="c") as bus:
        for i in range(100):
            bus.publish(f"set/{i}", b"old", retain=True, ttl_s=600)
        bus.publish("event", b"once")
        bus.publish("short", b"x", retain=True, ttl_s=600)
        bus.publish("short", b"", retain=True)
        assert await bus.flush(WAIT)
        await broker.stop(kill=True)
        for i in range(50):
            bus.publish(f"set/{i}", b"new", retain=True, ttl_s=600)
        assert not await bus.flush(0.05)  # nobody there, and it says so in time
        await broker.start()
        assert await bus.flush(WAIT)  # nothing was lost
        async with MqttBus(broker.url, client_id="d") as device:
            device.subscribe("#")
            seen = await collect(device, 100)
        assert seen == {f"set/{i}": b"new" if i < 50 else b"old" for i in range(100)}
        assert bus.counts["disconnects"] == bus.counts["reconnects"] == 1
        assert bus.counts["resent"] == 50
        assert bus.counts["acknowledged"] + bus.counts["conflated"] == bus.counts["published"] + 50


async def test_subscriptions_are_renewed(broker: EmbeddedBroker) -> None:
    async with MqttBus(broker.url, client_id="d") as device:
        device.subscribe("early/#")
        await broker.stop(kill=True)
        device.subscribe("meanwhile/#")
        device.publish("early/1", b"")
        await broker.start()
        assert await device.flush(WAIT)
        device.subscribe("late/#")
        device.publish("meanwhile/1", b"")
        async with MqttBus(broker.url, client_id="c") as bus:
            bus.publish("late/1", b"1", retain=True)  # whichever comes first, this or the subscription
            assert await bus.flush(WAIT)
            assert set(await collect(device, 3)) == {"early/1", "meanwhile/1", "late/1"}


async def test_a_frozen_broker_delays_and_loses_nothing(broker: EmbeddedBroker) -> None:
    async with MqttBus(broker.url, client_id="c") as bus:
        assert broker.pid is not None
        os.kill(broker.pid, signal.SIGSTOP)
        try:
            for i in range(200):
                bus.publish(f"set/{i}", b"1", retain=True)
            assert not await bus.flush(0.05)
        finally:
            os.kill(broker.pid, signal.SIGCONT)
        assert await bus.flush(WAIT)
        assert bus.counts["acknowledged"] == 200


async def test_a_broken_link_leaves_the_last_will_and_heals(mqtt_url: str, root: str) -> None:
    will = Message(f"{root}/state", b"offline")
    async with MqttBus(mqtt_url, client_id="watch") as watch:
        watch.subscribe(f"{root}/state")
        async with MqttBus(mqtt_url, client_id="c", will=will) as bus:
            bus.publish(f"{root}/state", b"online", retain=True)
            assert await bus.flush(WAIT)
            assert await watch.arrived(WAIT)
            assert [m.payload for m in watch.received()] == [b"online"]
            assert bus._client is not None
            link = bus._client._client.socket()
            assert isinstance(link, socket.socket)
            link.shutdown(socket.SHUT_RDWR)
            assert await watch.arrived(WAIT)
            states = [m.payload for m in watch.received()]
            while states[-1] != b"online" and await watch.arrived(WAIT):
                states += [m.payload for m in watch.received()]
            assert states == [b"offline", b"online"]  # the retained state was sent again
        assert not await watch.arrived(0.05)  # who leaves properly leaves no will


async def test_noise_is_counted_and_the_rest_passed_on(mqtt_url: str) -> None:
    loop = asyncio.get_running_loop()
    others: list[str] = []
    loop.set_exception_handler(lambda _, context: others.append(context["message"]))
    before = loop.get_exception_handler()
    try:
        async with MqttBus(mqtt_url, client_id="c") as bus:
            late = "Exception in callback BaseSelectorEventLoop.add_writer(-1, ...)"
            loop.call_exception_handler({"message": late, "exception": ValueError("fd -1")})
            unread = "Future exception was never retrieved"
            loop.call_exception_handler({"message": unread, "exception": aiomqtt.MqttError("lost")})
            loop.call_exception_handler({"message": unread, "exception": ValueError("a bug")})
            loop.call_exception_handler({"message": "mine"})
            assert bus.counts["noise"] == 2
        assert others == [unread, "mine"]
        assert loop.get_exception_handler() is before
    finally:
        loop.set_exception_handler(None)


# The first connection


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_nobody_there_is_said_at_once() -> None:
    url = f"mqtt://127.0.0.1:{free_port()}"
    start = time.monotonic()
    with pytest.raises(BusUnreachable, match=r"cannot connect to mqtt://.*refused.*Start a broker") as caught:
        async with MqttBus(url, client_id="c"):
            pytest.fail("connected")
    assert time.monotonic() - start < 1.0
    assert caught.value.url == url


async def test_somebody_who_does_not_answer_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"mqtt://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(BusUnreachable, match=r"nobody answers in MQTT.*protocol=311"):
            async with MqttBus(url, client_id="c", timeout_s=0.1):
                pytest.fail("connected")


async def test_a_password_is_sent_and_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    class Closed(EmbeddedBroker):
        def settings(self, directory: Path) -> str:
            return super().settings(directory).replace("allow_anonymous true", "allow_anonymous false")

    caplog.set_level(logging.DEBUG)
    async with Closed(prefer="mosquitto") as broker:
        bus = MqttBus(broker.url, client_id="c", username="alice", password="s3cret-word")
        with pytest.raises(BusUnreachable, match=r"Not authorized.*password in the environment") as caught:
            async with bus:
                pytest.fail("connected")
    shown = f"{bus!r} {vars(bus)} {caught.value!r} {caught.value} {caplog.text}"
    assert "s3cret-word" not in shown
    with pytest.raises(ValueError, match="credentials") as told:
        MqttBus("mqtt://alice:s3cret-word@host", client_id="c")
    assert "s3cret-word" not in str(told.value)


@pytest.mark.parametrize("url", ["http://x", "mqtt://", "mqtt://h/path", "localhost:1883", "mqtt://h:x"])
def test_a_wrong_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"mqtt|[Pp]ort"):
        MqttBus(url, client_id="c")


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match="protocol 4"):
        MqttBus("mqtt://h", client_id="c", protocol=4)
    with pytest.raises(ValueError, match="mqtts"):
        MqttBus("mqtt://h", client_id="c", tls_context=ssl.create_default_context())
    with pytest.raises(ValueError, match="size"):
        MqttBus("mqtt://h", client_id="c", latch_size=0)


# Speed


async def test_a_round_trip_is_not_held_up_by_nagle(broker: EmbeddedBroker) -> None:
    """Without TCP_NODELAY on both ends the median is some 45 or 90 ms."""
    async with MqttBus(broker.url, client_id="c") as bus, MqttBus(broker.url, client_id="d") as device:
        device.subscribe("ping")
        bus.subscribe("pong")
        bus.publish("ping", b"0", retain=True)
        assert await device.arrived(WAIT)
        device.publish("pong", b"0", retain=True)
        assert await bus.arrived(WAIT)
        trips = []
        for _ in range(50):
            bus.received()
            device.received()
            start = time.perf_counter()
            bus.publish("ping", b"1")
            assert await device.arrived(WAIT)
            device.publish("pong", b"1")
            assert await bus.arrived(WAIT)
            trips.append(time.perf_counter() - start)
        assert statistics.median(trips) < 0.010


# Encryption


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command to make certificates")
async def test_encrypted_for_whom_trusts_the_authority(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    await asyncio.to_thread(
        subprocess.run,
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )

    class Encrypted(EmbeddedBroker):
        def settings(self, directory: Path) -> str:
            for source in (key, certificate):
                Path(shutil.copy(source, directory)).chmod(0o644)
            names = f"keyfile {directory / key.name}\ncertfile {directory / certificate.name}\n"
            return super().settings(directory) + names

    async with Encrypted(prefer="mosquitto") as broker:
        url = broker.url.replace("mqtt://", "mqtts://")
        trusting = ssl.create_default_context(cafile=str(certificate))
        async with MqttBus(url, client_id="c", tls_context=trusting) as bus:
            bus.publish("a", b"1")
            assert await bus.flush(WAIT)
        with pytest.raises(BusUnreachable, match=r"certificate.*authority"):
            async with MqttBus(url, client_id="c"):
                pytest.fail("connected")
