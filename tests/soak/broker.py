"""The broker that is shipped, on a free port of the loopback address, with certificates made for it."""

from __future__ import annotations

import secrets
import shutil
import ssl
from pathlib import Path

from bridges.broker import EmbeddedBroker
from bridges.mqtt import MqttBus

SHIPPED = Path(__file__).parents[2] / "docker" / "mosquitto"


class GuardedBroker(EmbeddedBroker):
    """mosquitto with `docker/mosquitto/mosquitto.conf` and its ACL; only paths and port are others.

    Args:
        certificates: folder that `scenarios.certs.make` has filled.
    """

    def __init__(self, certificates: Path) -> None:
        super().__init__(prefer="mosquitto")
        self.certificates = certificates

    @property
    def url(self) -> str:
        return f"mqtts://{self.host}:{self.port}"

    def settings(self, directory: Path) -> str:
        for source in (
            *(self.certificates / name for name in ("ca.crt", "server.crt", "server.key")),
            SHIPPED / "acl",
        ):
            shutil.copyfile(source, directory / source.name)
            # Of root or whoever runs the tests, while the broker may be another user; the folder is closed.
            (directory / source.name).chmod(0o644)
        text = (SHIPPED / "mosquitto.conf").read_text("utf-8")
        for shipped, here in (
            ("\nlistener 8883\n", f"\nlistener {self.port} {self.host}\n"),
            ("/mosquitto/certs/", f"{directory}/"),
            ("/mosquitto/config/", f"{directory}/"),
        ):
            assert shipped in text, f"mosquitto.conf has no {shipped.strip()!r}"
            text = text.replace(shipped, here)
        return text

    def context(self, name: str | None, folder: Path | None = None) -> ssl.SSLContext:
        """TLS of a client that trusts the broker and shows a certificate, by default of its authority."""
        tls = ssl.create_default_context(cafile=str(self.certificates / "ca.crt"))
        if name is not None:
            own = folder or self.certificates
            tls.load_cert_chain(own / f"{name}.crt", own / f"{name}.key")
        return tls

    def client(self, name: str, *patterns: str) -> MqttBus:
        """A client by its certificate, with subscriptions that are made as it connects."""
        bus = MqttBus(self.url, client_id=f"test-{secrets.token_hex(6)}", tls_context=self.context(name))
        for pattern in patterns:
            bus.subscribe(pattern)
        return bus


class PlainBroker(EmbeddedBroker):
    """mosquitto with `docker/mosquitto/loopback.conf`."""

    def __init__(self) -> None:
        super().__init__(prefer="mosquitto")

    def settings(self, directory: Path) -> str:
        text = (SHIPPED / "loopback.conf").read_text("utf-8")
        assert "\nlistener 1883 127.0.0.1\n" in text
        return text.replace("\nlistener 1883 127.0.0.1\n", f"\nlistener {self.port} {self.host}\n")
