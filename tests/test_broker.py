"""The embedded broker: on the loopback address only, and never longer than its parent."""

from __future__ import annotations

import importlib.util
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from bridges import broker as module
from bridges.broker import EmbeddedBroker, Kind, NoBroker
from bridges.mqtt import MqttBus

KINDS: tuple[Kind, ...] = ("mosquitto", "amqtt")


def started(kind: Kind) -> EmbeddedBroker:
    try:
        module._find(kind)
    except NoBroker as error:
        pytest.skip(str(error))
    return EmbeddedBroker(prefer=kind)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "localhost", "192.168.1.5", ""])
def test_an_address_that_others_can_reach_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match="reached by others"):
        EmbeddedBroker(host=host)


@pytest.mark.parametrize("kind", KINDS)
async def test_it_carries_messages_and_says_how_to_watch(kind: Kind) -> None:
    async with started(kind) as broker:
        assert broker.kind == kind
        assert broker.url == f"mqtt://127.0.0.1:{broker.port}"
        assert broker.hint == f"mosquitto_sub -h 127.0.0.1 -p {broker.port} -t 'gridpace/v1/#' -v"
        async with MqttBus(broker.url, client_id="one", protocol=broker.protocol) as bus:
            bus.subscribe("a/#")
            bus.publish("a/b", b"1", retain=True, ttl_s=60)
            assert await bus.flush(5)
            assert await bus.arrived(5)
            assert bus.received()[0].payload == b"1"
            assert bus.counts["acknowledged"] == 1
        pid = broker.pid
        assert pid is not None
        assert os.getsid(pid) == pid  # the terminal's Ctrl-C does not reach it
    assert broker.pid is None


async def test_it_leaves_no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        monkeypatch.setattr(tempfile, "tempdir", name)
        async with started("mosquitto"):
            assert os.listdir(name) == []  # not even if it is killed


def listening(pid: int, port: int) -> set[str]:
    """Local addresses on which a port is open, as the kernel writes them."""
    lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    opened = {line.split()[1] for line in lines if line.split()[3] == "0A"}
    return {address for address in opened if address.endswith(f":{port:04X}")}


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
@pytest.mark.parametrize("kind", KINDS)
async def test_it_listens_on_one_address_only(kind: Kind) -> None:
    async with started(kind) as broker:
        assert broker.pid is not None
        assert listening(broker.pid, broker.port) == {f"0100007F:{broker.port:04X}"}


async def test_it_comes_back_on_its_port() -> None:
    async with started("mosquitto") as broker:
        port, pid = broker.port, broker.pid
        await broker.stop(kill=True)
        assert broker.pid is None
        await broker.start()
        assert broker.port == port
        assert broker.pid not in (None, pid)


async def test_a_port_that_another_took_first_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    async with started("mosquitto") as first:
        ports = iter([first.port])
        free = module._free_port
        monkeypatch.setattr(module, "_free_port", lambda host: next(ports, 0) or free(host))
        async with started("mosquitto") as second:
            assert second.port != first.port
            assert second.pid not in (None, first.pid)


async def test_one_that_does_not_start_is_quoted() -> None:
    class Misconfigured(EmbeddedBroker):
        def settings(self, directory: Path) -> str:
            return "listener nonsense\n"

    started("mosquitto")
    with pytest.raises(NoBroker, match=r"(?s)ended with status .*It printed: .*broker.conf:1"):
        async with Misconfigured(prefer="mosquitto"):
            pytest.fail("it has started")


async def test_without_a_broker_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *args, **kwargs: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NoBroker, match=r"apt install mosquitto.*pip install 'gridpace\[broker\]'"):
        async with EmbeddedBroker():
            pytest.fail("it has started")


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux")
@pytest.mark.parametrize("kind", KINDS)
def test_it_ends_when_its_parent_is_killed(kind: Kind) -> None:
    started(kind)
    program = (
        "import asyncio, sys\n"
        "from bridges.broker import EmbeddedBroker\n"
        "async def main():\n"
        f"    async with EmbeddedBroker(prefer={kind!r}) as broker:\n"
        "        print(broker.pid, flush=True)\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    root = Path(module.__file__).parents[1]
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=root, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = os.pidfd_open(int(parent.stdout.readline()))
        try:
            poll = select.poll()
            poll.register(child, select.POLLIN)
            assert poll.poll(0) == []  # it runs
            parent.send_signal(signal.SIGKILL)
            assert poll.poll(5000) != []  # it has ended
        finally:
            os.close(child)
