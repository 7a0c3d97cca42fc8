"""Certificate, key and client CA of the server, read again when their files change."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bptt.config import Tls
from bptt.errors import InvalidRequest

log = logging.getLogger(__name__)

PEM_BYTES_MAX = 1 << 20  # a chain has a few thousand


@dataclass(frozen=True, slots=True)
class Pems:
    """What the files hold, as PEM."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None


class TlsFiles:
    """The files that a server's TLS settings name.

    Raises:
        InvalidRequest: a file cannot be read, or key and certificate do not fit together.
    """

    def __init__(self, settings: Tls) -> None:
        assert settings.cert is not None
        assert settings.key is not None
        self._settings = settings
        self._paths = [each for each in (settings.cert, settings.key, settings.client_ca) if each]
        self._stamp = self._now()
        self.pems = self._read()
        """What was read last and is valid."""

    @property
    def asks_for_certificates(self) -> bool:
        """True: clients must show a certificate of the client CA."""
        return self._settings.client_ca is not None

    def _now(self) -> list[object]:
        found: list[object] = []
        for path in self._paths:
            try:
                stat = path.stat()
                found.append((stat.st_mtime_ns, stat.st_size, stat.st_ino))
            except OSError as error:
                found.append(error.errno)
        return found

    def changed(self) -> Pems | None:
        """What the files hold now, if they have changed and are valid; None: nothing new.

        Files that do not fit together, as while they are replaced one after another, leave the
        former certificate in use; the log says why.
        """
        stamp = self._now()
        if stamp == self._stamp:
            return None
        self._stamp = stamp
        try:
            self.pems = self._read()
        except InvalidRequest as error:
            log.error("%s; the certificate read before stays in use", error.message)
            return None
        log.info("certificate read again from %s", self._settings.cert)
        return self.pems

    def _read(self) -> Pems:
        cert, key = self._settings.cert, self._settings.key
        assert cert is not None
        assert key is not None
        pems = Pems(
            _pem("tls.cert", cert),
            _pem("tls.key", key),
            None
            if self._settings.client_ca is None
            else _pem("tls.client_ca", self._settings.client_ca),
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        bound = f"a certificate in PEM, and tls.key, {key}, its private key without a password"
        _checked(
            "tls.cert",
            str(cert),
            bound,
            lambda: context.load_cert_chain(cert, key, _no_password),
        )
        if pems.client_ca is not None:
            text = pems.client_ca.decode(errors="replace")
            bound = "certificates in PEM"
            _checked(
                "tls.client_ca",
                str(self._settings.client_ca),
                bound,
                lambda: context.load_verify_locations(cadata=text),
            )
        return pems


def _no_password() -> str:
    """Answer OpenSSL's question for a key's password, which it would else ask on the terminal."""
    return ""


def _pem(field: str, path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(PEM_BYTES_MAX + 1)
    except OSError as error:
        raise InvalidRequest.of(
            field, f"{path} ({error.strerror})", "a file that can be read"
        ) from error
    if len(data) > PEM_BYTES_MAX:
        raise InvalidRequest.of(field, str(path), f"a file of at most {PEM_BYTES_MAX} bytes")
    return data


def _checked(field: str, value: str, bound: str, load: Callable[[], None]) -> None:
    try:
        load()
    except (ssl.SSLError, ValueError, OSError) as error:
        why = getattr(error, "reason", None) or str(error)
        raise InvalidRequest.of(field, f"{value} ({why})", bound) from error
