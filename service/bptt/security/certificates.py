"""Makes a certificate authority and certificates signed by it, with `cryptography`."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bptt.errors import AlreadyExists, InvalidRequest, Unavailable
from bptt.security import private_files

PUBLIC_MODE = 0o644
START = datetime.timedelta(hours=1)  # before now, for clients whose clock is behind


@dataclass(frozen=True, slots=True)
class Made:
    """The files of one certificate and its authority."""

    ca: Path
    cert: Path
    key: Path


def make(folder: Path, names: tuple[str, ...], days: int, *, client: str | None = None) -> Made:
    """Make a certificate, signed by the authority in a folder, which is made if there is none.

    Args:
        folder: gets `ca.pem`, `ca-key.pem`, and NAME.pem and NAME-key.pem, where NAME is `server`
            or the client's name. Keys have the mode 0600.
        names: host names and IP addresses of a server.
        days: how long the certificate is valid; a new authority is for ten years.
        client: makes a client's certificate with this common name instead.

    Raises:
        AlreadyExists: the folder has a certificate of that name.
        Unavailable: `cryptography` is not installed, or the folder cannot be written.
        InvalidRequest: a name is not valid.
    """
    try:
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError:
        raise Unavailable(
            "cryptography is not installed; type: pip install 'bptt[security]'"
        ) from None
    stem = "server" if client is None else client
    if not stem or not all(each.isascii() and (each.isalnum() or each in "._-") for each in stem):
        raise InvalidRequest.of("client", repr(stem), "letters, digits and ._-")
    made = Made(folder / "ca.pem", folder / f"{stem}.pem", folder / f"{stem}-key.pem")
    if stem == "ca" or made.cert.exists():
        raise AlreadyExists(f"{made.cert} exists; remove it, or name another folder")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        ca_key, ca_cert = _authority(folder)
        key = ec.generate_private_key(ec.SECP256R1())
        cert = _signed(key, ca_key, ca_cert, stem, names if client is None else (), days)
        private_files.write(made.key, _private_pem(key))
        private_files.write(made.cert, cert, PUBLIC_MODE)
    except OSError as error:
        raise Unavailable(f"{folder} cannot be written: {error.strerror}") from error
    return made


def _authority(folder: Path) -> tuple[Any, Any]:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

    cert_path, key_path = folder / "ca.pem", folder / "ca-key.pem"
    if cert_path.exists():
        try:
            found = load_pem_private_key(key_path.read_bytes(), None)
            return found, x509.load_pem_x509_certificate(cert_path.read_bytes())
        except ValueError as error:
            raise InvalidRequest.of("folder", str(folder), "one with ca.pem, ca-key.pem") from error
    key: Any = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bptt authority")])
    cert = (
        _dated(x509.CertificateBuilder(), 3650)
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(x509, signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, _sha256())
    )
    private_files.write(key_path, _private_pem(key))
    private_files.write(cert_path, cert.public_bytes(Encoding.PEM), PUBLIC_MODE)
    return key, cert


def _signed(
    key: Any, ca_key: Any, ca_cert: Any, name: str, hosts: tuple[str, ...], days: int
) -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509.oid import ExtendedKeyUsageOID as usages

    builder = (
        _dated(x509.CertificateBuilder(), days)
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
        .issuer_name(ca_cert.subject)
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(x509, signs=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([usages.SERVER_AUTH if hosts else usages.CLIENT_AUTH]),
            critical=False,
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
    )
    if hosts:
        found = [_host(x509, each) for each in hosts]
        builder = builder.add_extension(x509.SubjectAlternativeName(found), critical=False)
    return bytes(builder.sign(ca_key, _sha256()).public_bytes(Encoding.PEM))


def _host(x509: Any, text: str) -> Any:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        pass
    try:
        return x509.DNSName(text)
    except ValueError as error:
        raise InvalidRequest.of("host", repr(text), "an ASCII name or IP address") from error


def _dated(builder: Any, days: int) -> Any:
    from cryptography import x509

    now = datetime.datetime.now(datetime.UTC)
    return (
        builder.serial_number(x509.random_serial_number())
        .not_valid_before(now - START)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _usage(x509: Any, *, signs: bool) -> Any:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _sha256() -> Any:
    from cryptography.hazmat.primitives.hashes import SHA256

    return SHA256()


def _private_pem(key: Any) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
