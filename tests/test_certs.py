"""`gridpace certs`: certificates that hold, keys that nobody else reads, nothing overwritten."""

from __future__ import annotations

import ssl
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from typer.testing import CliRunner

from scenarios.certs import NoCertificates, make
from scenarios.cli import app

NOW = datetime(2026, 6, 21, 12, tzinfo=UTC)


def read(folder: Path, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / f"{name}.crt").read_bytes())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def extension(certificate: x509.Certificate, kind: type[x509.ExtensionType]) -> object:
    return certificate.extensions.get_extension_for_class(kind).value


def test_it_makes_an_authority_and_what_it_signs(tmp_path: Path) -> None:
    folder = tmp_path / "certs"
    made = make(folder, clients={"pv6": "device"}, hosts=["broker.lab", "10.0.0.5"], days=30, now=NOW)
    assert [one.name for one in made] == ["ca", "server", "controller", "observer", "operator", "pv6"]
    assert all(one.made for one in made)
    authority = read(folder, "ca")
    authority.verify_directly_issued_by(authority)
    for name in ("server", "controller", "observer", "operator", "pv6"):
        certificate = read(folder, name)
        certificate.verify_directly_issued_by(authority)
        key = certificate.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        assert isinstance(key.curve, ec.SECP256R1)
        assert certificate.not_valid_after_utc == NOW + timedelta(days=30)
        assert NOW - timedelta(hours=1) < certificate.not_valid_before_utc < NOW
        assert extension(certificate, x509.BasicConstraints) == x509.BasicConstraints(False, None)
        purpose = ExtendedKeyUsageOID.SERVER_AUTH if name == "server" else ExtendedKeyUsageOID.CLIENT_AUTH
        assert extension(certificate, x509.ExtendedKeyUsage) == x509.ExtendedKeyUsage([purpose])
        if name != "server":
            (common,) = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
            assert common.value == name
    names = extension(read(folder, "server"), x509.SubjectAlternativeName)
    assert isinstance(names, x509.SubjectAlternativeName)
    assert names.get_values_for_type(x509.DNSName) == ["broker.lab", "localhost"]
    assert [str(x) for x in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.5", "127.0.0.1", "::1"]


def test_only_the_owner_reads_keys(tmp_path: Path) -> None:
    folder = tmp_path / "certs"
    make(folder, clients={"pv6": "device"})
    keys = list(folder.glob("*.key"))
    assert len(keys) == 6
    assert {key.stat().st_mode & 0o777 for key in keys} == {0o600}
    assert folder.stat().st_mode & 0o077 == 0


def test_each_key_is_its_own(tmp_path: Path) -> None:
    make(tmp_path, clients={"pv6": "device"})
    files = contents(tmp_path)
    assert len(set(files.values())) == len(files)
    serials = {
        read(tmp_path, name).serial_number for name in ("ca", "server", "controller", "observer", "pv6")
    }
    assert len(serials) == 5


def test_more_are_signed_by_the_authority_that_is_there(tmp_path: Path) -> None:
    make(tmp_path, clients={"pv6": "device"}, days=30, now=NOW)
    before = contents(tmp_path)
    made = make(tmp_path, clients={"pv6": "device", "pv24": "device"}, days=3000, now=NOW, anew=["pv24"])
    assert [one.name for one in made if one.made] == ["pv24"]
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before
    read(tmp_path, "pv24").verify_directly_issued_by(read(tmp_path, "ca"))
    assert read(tmp_path, "pv24").not_valid_after_utc == NOW + timedelta(days=30)  # not beyond its authority


def test_a_certificate_is_renewed_where_it_was_moved_away(tmp_path: Path) -> None:
    make(tmp_path, clients={"pv6": "device"}, days=300, now=NOW)
    old = read(tmp_path, "pv6")
    for ending in ("crt", "key"):
        (tmp_path / f"pv6.{ending}").unlink()
    make(tmp_path, clients={"pv6": "device"}, days=100, now=NOW + timedelta(days=90), anew=["pv6"])
    new = read(tmp_path, "pv6")
    new.verify_directly_issued_by(read(tmp_path, "ca"))
    assert new.subject == old.subject
    assert new.not_valid_after_utc == NOW + timedelta(days=190)


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(name: str, text: bytes) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).write_bytes(text)

    return spoil


def swap_keys(folder: Path) -> None:
    (folder / "ca.key").write_bytes((folder / "server.key").read_bytes())


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (remove("ca.key"), r"ca\.crt is there without ca\.key"),
        (remove("pv6.crt"), r"pv6\.key is there without pv6\.crt"),
        (write("ca.crt", b"x"), r"ca\.crt is no certificate"),
        (write("ca.key", b"x"), r"ca\.key is no key"),
        (swap_keys, r"ca\.key is not the key of ca\.crt"),
    ],
)
def test_a_folder_in_disorder_is_left_as_it_is(
    tmp_path: Path, spoil: Callable[[Path], None], said: str
) -> None:
    make(tmp_path, clients={"pv6": "device"})
    spoil(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(NoCertificates, match=said):
        make(tmp_path, clients={"pv6": "device", "pv24": "device"})
    assert contents(tmp_path) == before


def test_an_authority_that_has_run_out_signs_nothing(tmp_path: Path) -> None:
    make(tmp_path, clients={}, days=1, now=NOW)
    with pytest.raises(NoCertificates, match="ran out on 2026-06-22"):
        make(tmp_path, clients={"pv6": "device"}, now=NOW + timedelta(days=2))
    assert not (tmp_path / "pv6.crt").exists()


@pytest.mark.parametrize("name", ["controller", "observer", "operator", "server", "ca", "CA"])
def test_no_device_has_the_name_of_somebody_else(tmp_path: Path, name: str) -> None:
    with pytest.raises(NoCertificates, match="those of other certificates"):
        make(tmp_path / "new", clients={name: "device"})
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "host", ["", "*", "*.lab", "a b", "-x", "a/b", "x" * 64, "a..b", "é", "10.0.0.5:8883"]
)
def test_a_host_that_is_none_is_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(NoCertificates, match="no name of a host"):
        make(tmp_path / "new", clients={}, hosts=[host])
    assert not (tmp_path / "new").exists()


# The command


def command(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["certs", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_the_command_says_what_it_made_and_how_to_use_it(tmp_path: Path) -> None:
    status, said, _ = command(str(tmp_path / "c"), "--scenario", "ieee33-quick", "--device", "gateway-1")
    assert status == 0
    assert "test authority" in said
    assert "broker at localhost, 127.0.0.1, ::1" in said
    for name in ("pv24", "gateway-1", "--set bus.url=mqtts://localhost:8883", "mosquitto_sub", "ca.key"):
        assert name in said
    assert (tmp_path / "c" / "pv24.key").is_file()
    assert "BEGIN" not in said


def test_the_command_overwrites_nothing_that_was_asked_for(tmp_path: Path) -> None:
    assert command(str(tmp_path), "--device", "pv6")[0] == 0
    before = contents(tmp_path)
    for again in (("--device", "pv6"), ("--device", "pv7", "--device", "pv6"), ("--host", "broker.lab")):
        status, said, why = command(str(tmp_path), *again)
        assert (status, said) == (2, "")
        assert "already, and nothing is overwritten; to renew" in why
    assert contents(tmp_path) == before


def test_the_command_makes_certificates_for_processes_of_controllers(tmp_path: Path) -> None:
    scenario = tmp_path / "s.yaml"
    scenario.write_text("extends: ieee33-quick\nname: s\ncontrollers:\n  - {name: dso, process: own}\n")
    assert command(str(tmp_path / "c"), "--scenario", str(scenario))[0] == 0
    assert (tmp_path / "c" / "dso.crt").is_file()
    scenario.write_text("extends: ieee33-quick\nname: s\ncontrollers:\n  - {name: dso, process: pv24}\n")
    status, _, why = command(str(tmp_path / "d"), "--scenario", str(scenario))
    assert status == 2
    assert "pv24 is a device and a process of a controller" in why


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("{file}",), "File exists"),
        (("{file}/x",), "Not a directory"),
        (("{new}", "--scenario", "nothing"), "no such file"),
        (("{new}", "--device", "a/b"), "a name is 1 to 64"),
        (("{new}", "--days", "0"), "days"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    (tmp_path / "file").touch()
    places = {"file": str(tmp_path / "file"), "new": str(tmp_path / "new")}
    status, _, why = command(*(argument.format(**places) for argument in arguments))
    assert status == 2
    assert said in why
    assert "Traceback" not in why
    assert not (tmp_path / "new").exists()


def test_without_the_package_it_says_what_to_install(tmp_path: Path) -> None:
    program = "import sys; sys.modules['cryptography'] = None; from scenarios.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "certs", str(tmp_path / "c")], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == "certs needs the package cryptography: pip install 'gridpace[certs]'\n"
    assert not (tmp_path / "c").exists()


def test_openssl_takes_them(tmp_path: Path) -> None:
    """Both sides of a handshake, in memory."""
    make(tmp_path, clients={"pv6": "device"})

    def context(purpose: ssl.Purpose, name: str) -> ssl.SSLContext:
        found = ssl.create_default_context(purpose, cafile=str(tmp_path / "ca.crt"))
        found.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT
        found.verify_mode = ssl.CERT_REQUIRED
        found.load_cert_chain(tmp_path / f"{name}.crt", tmp_path / f"{name}.key")
        return found

    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    device = context(ssl.Purpose.SERVER_AUTH, "pv6").wrap_bio(down, up, server_hostname="localhost")
    broker = context(ssl.Purpose.CLIENT_AUTH, "server").wrap_bio(up, down, server_side=True)
    for _ in range(4):
        for side in (device, broker):
            with suppress(ssl.SSLWantReadError):
                side.do_handshake()
    shown = broker.getpeercert()
    assert shown is not None
    assert shown["subject"] == ((("commonName", "pv6"),),)
