"""Who should not be let in: connections by hand, and certificates that nobody should have."""

from __future__ import annotations

import asyncio
import ssl
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path

from scenarios import certs


async def tell(port: int, tls: ssl.SSLContext | None, said: bytes, until: bytes = b"") -> bytes:
    """Connect, say something, and give what is answered until the other side closes.

    Args:
        tls: `None`: no encryption.
        until: if given, leave (without a word) as soon as the answer has it.
    """
    told = b""
    try:
        async with asyncio.timeout(5.0):
            host = "127.0.0.1" if tls else None
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls, server_hostname=host)
            try:
                writer.write(said)
                while not (until and until in told) and (more := await reader.read(65_536)):
                    told += more
            finally:
                writer.transport.abort()
    except (OSError, ssl.SSLError, asyncio.IncompleteReadError, TimeoutError):
        pass  # refused, which is what most are to be
    return told


def old_tls(context: ssl.SSLContext) -> ssl.SSLContext:
    """The same with TLS 1.1 only."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")  # else our own library does not even try
    return context


def odd_name(certificates: Path, folder: Path, name: str) -> ssl.SSLContext:
    """A certificate by the broker's authority with a common name that `gridpace certs` refuses to sign."""
    now = datetime.now(UTC)
    authority = certs._read(certificates, certs.AUTHORITY)
    identity = certs._sign(authority, name, now, now + timedelta(days=1), ())
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    certs._write(folder, "odd", identity)
    return showing(certificates, folder, "odd")


def made_elsewhere(certificates: Path, folder: Path) -> ssl.SSLContext:
    """A controller's certificate by another authority."""
    certs.make(folder, clients={})
    return showing(certificates, folder, certs.CONTROLLER)


def out_of_time(certificates: Path, folder: Path, *, days: int) -> ssl.SSLContext:
    """A controller's certificate by the broker's authority that ended, or begins, so many days ago."""
    authority = certs._read(certificates, certs.AUTHORITY)
    now = datetime.now(UTC) - timedelta(days=days)
    folder.mkdir()
    certs._write(folder, "late", certs._sign(authority, certs.CONTROLLER, now, now + timedelta(days=1), ()))
    return showing(certificates, folder, "late")


def signed_by_itself(certificates: Path, folder: Path) -> ssl.SSLContext:
    """A certificate of the controller's name that nobody has signed."""
    now = datetime.now(UTC)
    folder.mkdir()
    authority = certs._sign(None, certs.CONTROLLER, now, now + timedelta(days=1), ())
    certs._write(folder, "own", authority)
    return showing(certificates, folder, "own")


def showing(certificates: Path, folder: Path, name: str) -> ssl.SSLContext:
    """TLS of a client that trusts the broker and shows this certificate."""
    tls = ssl.create_default_context(cafile=str(certificates / "ca.crt"))
    tls.load_cert_chain(folder / f"{name}.crt", folder / f"{name}.key")
    return tls
