"""Certs: a test authority, and certificates for a broker, a controller, those who watch, and devices.

    DIR/ca.crt, ca.key          the authority; who has its key can make certificates for everybody
    DIR/server.crt, server.key  the broker's
    DIR/NAME.crt, NAME.key      a client's, whose common name is NAME; docker/mosquitto/acl says what it may

Keys are of the elliptic curve P-256 and can be read by their owner alone. For laboratories: nothing is
revoked, and the authority's key lies beside what it has signed. The package is cryptography (extra `certs`).
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from bridges.wire import BadMessage, check_name

Identity = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]
AUTHORITY, SERVER = "ca", "server"
CONTROLLER, OBSERVER, OPERATOR = "controller", "observer", "operator"
RESERVED = (AUTHORITY, SERVER, CONTROLLER, OBSERVER, OPERATOR)
"""Names that no device may have: they are other certificates', or rights of others."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Always among the names of the broker's certificate."""
SKEW = timedelta(minutes=5)
"""A certificate holds a little before it is made, for clocks that are late."""
_HOST = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})*\.?")


class NoCertificates(Exception):
    """Certificates cannot be made as asked; nothing was written, or the message names the file."""


@dataclass(frozen=True, slots=True)
class Certified:
    """A certificate and its key."""

    name: str
    """file name without its ending, and the common name of a client's"""
    role: str
    """what it is for, in words"""
    certificate: Path
    key: Path
    until: datetime
    """end of its validity"""
    made: bool
    """False: it was there already and was kept"""


def make(
    directory: Path,
    *,
    clients: Mapping[str, str],
    hosts: Iterable[str] = (),
    days: int = 365,
    anew: Iterable[str] = (),
    now: datetime | None = None,
) -> list[Certified]:
    """Make what is missing of an authority, the broker's certificate and those of clients.

    Args:
        directory: made if it is not there; an authority that it holds signs what is missing.
        clients: role in words by name, beside the controller, the observer and the operator.
        hosts: names and addresses under which the broker is reached, beside those of the loopback.
        days: how long they are valid; no certificate outlives its authority.
        anew: names whose certificates must not be there yet.
        now: by default the wall clock.

    Returns:
        All, the authority and the broker's first.

    Raises:
        NoCertificates: a name that no certificate can have, a file that would be overwritten or cannot be
            read or written, one of a pair missing, an authority that has run out.
    """
    names, hosts = _names(clients), tuple(dict.fromkeys([*map(_host, hosts), *LOOPBACK]))
    if not 1 <= days <= 36_500:
        raise NoCertificates(f"days {days}: certificates are valid for 1 to 36500 days")
    there = {name: _is_there(directory, name) for name in (AUTHORITY, SERVER, *names)}
    broker = "broker" if there[SERVER] else f"broker at {', '.join(hosts)}"
    roles = {AUTHORITY: "test authority", SERVER: broker, **names}
    if taken := [name for name in anew if there[name]]:
        raise NoCertificates(_overwritten(directory, taken))
    moment = now or datetime.now(UTC)
    end = moment + timedelta(days=days)
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if there[AUTHORITY]:
            authority = _read(directory, AUTHORITY)
        else:
            authority = _sign(None, AUTHORITY, moment, end, ())
            _write(directory, AUTHORITY, authority)
        ends = authority[0].not_valid_after_utc
        if ends <= moment:
            raise NoCertificates(
                f"{directory / 'ca.crt'}: the authority ran out on {ends:%Y-%m-%d}; make a new one in "
                "another folder"
            )
        for name in roles.keys() - {AUTHORITY}:
            if not there[name]:
                of = hosts if name == SERVER else ()
                _write(directory, name, _sign(authority, name, moment, min(end, ends), of))
        return [
            Certified(
                name,
                role,
                directory / f"{name}.crt",
                directory / f"{name}.key",
                _certificate(directory, name).not_valid_after_utc,
                not there[name],
            )
            for name, role in roles.items()
        ]
    except OSError as error:
        raise NoCertificates(f"{error.filename or directory}: {error.strerror or error}") from None


def _names(clients: Mapping[str, str]) -> dict[str, str]:
    roles = {CONTROLLER: "the run", OBSERVER: "who only listens", OPERATOR: "who takes devices from it"}
    for name, role in clients.items():
        try:
            check_name(role, name)
        except BadMessage as error:
            raise NoCertificates(str(error)) from None
        if name.lower() in RESERVED:
            raise NoCertificates(
                f"{role} {name!r}: the names {', '.join(RESERVED)} are those of other certificates; rename it"
            )
        roles[name] = role
    return roles


def _host(name: str) -> str:
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        if _HOST.fullmatch(name) and len(name) <= 253:
            return name
    raise NoCertificates(
        f"--host {name!r}: is no name of a host and no address; write broker.lab or 10.0.0.5"
    )


def _is_there(directory: Path, name: str) -> bool:
    files = [directory / f"{name}.crt", directory / f"{name}.key"]
    found = [file for file in files if file.exists()]
    if len(found) == 1:
        (missing,) = set(files) - set(found)
        raise NoCertificates(
            f"{found[0]} is there without {missing.name}; remove it, or bring back the other"
        )
    return bool(found)


def _overwritten(directory: Path, names: list[str]) -> str:
    files = ", ".join(f"{name}.crt" for name in names)
    return (
        f"{directory} has {files} already, and nothing is overwritten; to renew a certificate, move it and "
        "its key away first"
    )


def _sign(
    authority: Identity | None, name: str, now: datetime, end: datetime, hosts: tuple[str, ...]
) -> Identity:
    """A certificate and its key; without an authority one that signs itself and others."""
    key = ec.generate_private_key(ec.SECP256R1())
    signer = authority[1] if authority else key
    common = name if authority else f"gridpace test authority {os.urandom(4).hex()}"
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64] if hosts else common)])
    usage = x509.KeyUsage(
        digital_signature=authority is not None,
        key_cert_sign=authority is None,
        crl_sign=authority is None,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(authority[0].subject if authority else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(authority is None, None if authority else 0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    if authority:
        # A client's certificate is no server's: no device can pretend to be the broker.
        purpose = ExtendedKeyUsageOID.SERVER_AUTH if hosts else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=True)
    if hosts:
        alternatives = [_general_name(host) for host in hosts]
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return builder.sign(signer, hashes.SHA256()), key


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _write(directory: Path, name: str, identity: Identity) -> None:
    certificate, key = identity
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for ending, content, mode in (
        ("key", secret, 0o600),
        ("crt", certificate.public_bytes(Encoding.PEM), 0o644),
    ):
        opened = os.open(directory / f"{name}.{ending}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(opened, "wb") as file:
            file.write(content)


def _certificate(directory: Path, name: str) -> x509.Certificate:
    path = directory / f"{name}.crt"
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError:
        raise NoCertificates(f"{path} is no certificate; remove it and its key") from None


def _read(directory: Path, name: str) -> Identity:
    certificate = _certificate(directory, name)
    path = directory / f"{name}.key"
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError):
        raise NoCertificates(f"{path} is no key without a password; use another folder") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise NoCertificates(f"{path} is not the key of {name}.crt; use another folder")
    return certificate, key


def how_to_use(directory: Path, made: Iterable[Certified]) -> list[str]:
    """What was made and what to do with it, for people, a line each."""
    groups: dict[tuple[str, str, datetime], list[str]] = {}
    for one in made:
        groups.setdefault(("made" if one.made else "kept", one.role, one.until), []).append(one.name)
    client = f"--cafile {directory / 'ca.crt'} --cert {directory}/observer.crt --key {directory}/observer.key"
    files = {"ca_file": AUTHORITY, "cert_file": CONTROLLER, "key_file": CONTROLLER}
    options = [
        f"--set bus.{option}={directory.absolute()}/{name}.{'key' if option == 'key_file' else 'crt'}"
        for option, name in files.items()
    ]
    return [
        f"a test authority, for laboratories: who can read {directory / 'ca.key'} can make any certificate",
        *(f"{did} {role}: {_few(names)}, until {end:%Y-%m-%d}" for (did, role, end), names in groups.items()),
        "the broker takes ca.crt, server.crt and server.key: docker/mosquitto/mosquitto.conf; then",
        "gridpace run SCENARIO --set bus.kind=mqtt --set bus.url=mqtts://localhost:8883 " + " ".join(options),
        f"mosquitto_sub -h localhost -p 8883 {client} -t 'gridpace/v1/#' -v",
    ]


def _few(names: list[str]) -> str:
    shown = ", ".join(names[:8])
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"
