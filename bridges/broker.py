"""EmbeddedBroker: an MQTT broker of one's own for a run on one computer.

`mosquitto` where it is installed, else amqtt, which pip can install: it speaks MQTT 3.1.1 only, takes
some 25 times the processor time, shows retained messages to whoever connects and loses what was not
acknowledged. Both listen on the loopback address alone, without passwords.
"""

from __future__ import annotations

import asyncio
import ctypes
import importlib.util
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

LOOPBACK = ("127.0.0.1", "::1")
OUTPUT = "output.txt"
START_S = 15.0
STOP_S = 3.0
TAKEN_S = 0.05
"""within which a broker ends that finds its port taken"""
PORTS = range(15_000, 32_000)
"""Below those that systems give to outgoing connections: who tries to reach a broker that is away could be
given its port there, be connected to himself, and keep it from coming back."""
Kind = Literal["mosquitto", "amqtt"]


class NoBroker(Exception):
    """There is no broker to start, or it did not start."""


class EmbeddedBroker:
    """Starts a broker on a free port of the loopback address, for as long as the context is entered.

    The broker ends with this process, even if that is killed (on Linux), and does not see the
    terminal's Ctrl-C.

    Args:
        host: `127.0.0.1` or `::1`.
        port: 0 for a free one.
        prefer: which broker; `None`: mosquitto if it is found, else amqtt.

    Raises:
        ValueError: an address that others could reach.
        NoBroker: on entering, when neither is installed or it does not start.
    """

    def __init__(self, *, host: str = "127.0.0.1", port: int = 0, prefer: Kind | None = None) -> None:
        if host not in LOOPBACK:
            raise ValueError(
                f"broker: {host!r} can be reached by others, but this broker asks for no password; "
                "use 127.0.0.1, or run a broker with TLS and give its URL"
            )
        self.host = host
        self.port = port
        self._fixed_port = port != 0
        self._prefer = prefer
        self._process: subprocess.Popen[bytes] | None = None
        self.kind: Kind = prefer or "mosquitto"

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"mqtt://[{self.host}]:{self.port}" if ":" in self.host else f"mqtt://{self.host}:{self.port}"

    @property
    def protocol(self) -> int:
        """For `MqttBus`: 5, or 311."""
        return 5 if self.kind == "mosquitto" else 311

    @property
    def hint(self) -> str:
        """How to watch with a client of one's own."""
        return f"mosquitto_sub -h {self.host} -p {self.port} -t 'gridpace/v1/#' -v"

    @property
    def pid(self) -> int | None:
        """The broker's process; `None` if it does not run."""
        running = self._process is not None and self._process.poll() is None
        return self._process.pid if running and self._process is not None else None

    async def start(self) -> None:
        """Start, and wait until the port answers. After `stop`: again, on the same port.

        Raises:
            NoBroker: it does not start; with what it printed.
        """
        self.kind, program = _find(self._prefer)
        for attempt in range(3):  # another process may take the free port before the broker does
            if not self._fixed_port:
                self.port = _free_port(self.host)
            try:
                await self._launch(program)
            except NoBroker:
                if self._fixed_port or attempt == 2:
                    raise
            else:
                self._fixed_port = True
                return

    async def stop(self, *, kill: bool = False) -> None:
        """End the broker; with `kill` as a crash would, without a word to its clients."""
        process, self._process = self._process, None
        if process is None:
            return
        if kill:
            process.kill()
        else:
            process.terminate()
        if not await _ended(process, STOP_S):
            process.kill()
            await _ended(process, STOP_S)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def settings(self, directory: Path) -> str:
        """The broker's configuration file, which is read once, in a directory that is then removed."""
        if self.kind == "mosquitto":
            lines = (
                f"listener {self.port} {self.host}",
                "allow_anonymous true",
                "set_tcp_nodelay true",
                "max_inflight_messages 200",
                "max_packet_size 65536",
                "persistence false",
                "log_dest stderr",
                "log_type error",
                "log_type warning",
            )
            return "\n".join(lines) + "\n"
        bind = f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
        return json.dumps(  # which is YAML too
            {
                "listeners": {"default": {"type": "tcp", "bind": bind}},
                "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
            }
        )

    async def _launch(self, program: list[str]) -> None:
        with tempfile.TemporaryDirectory(prefix="gridpace-broker-") as name:
            process = self._process = self._spawn(program, Path(name))
            try:
                await self._wait(process, Path(name))
            except BaseException:
                await self.stop(kill=True)
                raise

    async def _wait(self, process: subprocess.Popen[bytes], directory: Path) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + START_S
        while loop.time() < end and process.poll() is None:
            if await _answers(self.host, self.port):
                # Another process may have taken the port, and answers; ours ends as soon as it sees that.
                if await _ended(process, TAKEN_S):
                    break
                return
            await asyncio.sleep(0.02)
        status = process.poll()
        happened = f"did not answer for {START_S:g} s" if status is None else f"ended with status {status}"
        raise NoBroker(
            f"{self.kind} on {self.host}:{self.port} {happened}. It printed: {_printed(directory)}"
        )

    def _spawn(self, program: list[str], directory: Path) -> subprocess.Popen[bytes]:
        config = directory / "broker.conf"
        config.write_text(self.settings(directory))
        user = _lesser_user() if self.kind == "mosquitto" else None
        if user is not None:
            for path in (directory, config):
                os.chown(path, *user)
        with (directory / OUTPUT).open("wb") as sink:
            return subprocess.Popen(
                [*program, "-c", str(config)],
                user=None if user is None else user[0],
                group=None if user is None else user[1],
                extra_groups=None if user is None else [],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # the terminal's Ctrl-C is for us, who then stop the broker
                preexec_fn=_die_with(os.getpid()),
            )


def _find(prefer: Kind | None) -> tuple[Kind, list[str]]:
    """Which broker, and the command that starts it."""
    if prefer != "amqtt":
        path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))
        if (program := shutil.which("mosquitto", path=path)) is not None:
            return "mosquitto", [program]
    if prefer != "mosquitto" and importlib.util.find_spec("amqtt") is not None:
        return "amqtt", [sys.executable, "-m", "amqtt.scripts.broker_script"]
    raise NoBroker(
        f"there is no {prefer or 'MQTT broker'} to start: install mosquitto (apt install mosquitto) or "
        "amqtt (pip install 'gridpace[broker]'), or name a broker that runs elsewhere (bus.kind=mqtt)"
    )


def _lesser_user() -> tuple[int, int] | None:
    """User and group of mosquitto when we are root; `None`: it stays what we are.

    It would change its user by itself, but only after its start, and a change of the user makes Linux
    forget that the process is to die with its parent.
    """
    if os.name != "posix" or os.geteuid() != 0:
        return None
    import pwd

    for name in ("mosquitto", "nobody"):
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        return found.pw_uid, found.pw_gid
    return None


def _die_with(parent: int) -> Callable[[], None] | None:
    """What the child runs before the broker, so that it does not outlive this process."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # looked up here: the child of a fork should do very little

    def bind() -> None:
        prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it has died in between
            os._exit(1)

    return bind


def _printed(directory: Path) -> str:
    return (directory / OUTPUT).read_text(errors="replace").strip()[-2000:] or "nothing"


def _free_port(host: str) -> int:
    """A port at which nobody listens, of `PORTS` if there is one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in (*random.sample(PORTS, 100), 0):
        with suppress(OSError), socket.socket(family) as probe:
            probe.bind((host, port))
            found: int = probe.getsockname()[1]
            return found
    raise NoBroker(f"there is no free port on {host}")


async def _answers(host: str, port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    writer.close()
    return True


async def _ended(process: subprocess.Popen[bytes], within_s: float) -> bool:
    loop = asyncio.get_running_loop()
    end = loop.time() + within_s
    while process.poll() is None:
        if loop.time() >= end:
            return False
        await asyncio.sleep(0.01)
    return True
