"""What a client shows to a server, and how it checks the server: certificates and a token."""

from __future__ import annotations

import functools
import ipaddress
import os
import re
import socket
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from bptt.errors import InvalidRequest

PROBE_SECONDS = 3.0
TOKEN_BYTES_MAX = 8192
_TOKEN = re.compile(r"[\x21-\x7e]+")  # what the header may hold
SYSTEM = "system"


@dataclass(frozen=True, slots=True)
class Access:
    """Certificates and token of a client. Its text never shows the token.

    Args:
        tls_ca: file of certificates in PEM, one of which has signed the server's; `system`: those
            that gRPC brings along. None: no TLS.
        token: sent with each call as `authorization: Bearer TOKEN`.
        token_file: file that holds the token, read for each call, so that a new token is taken
            without a new connection.
        client_cert: file of the client's own certificate, for servers that ask for one.
        client_key: file of that certificate's private key.
        insecure: True: the token may be sent to another machine without TLS.
    """

    tls_ca: Path | str | None = None
    token: str | None = field(default=None, repr=False)
    token_file: Path | str | None = None
    client_cert: Path | str | None = None
    client_key: Path | str | None = None
    insecure: bool = False

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Access:
        """Return the access of these variables; an empty one counts as not set.

        BPTT_TLS_CA, BPTT_TOKEN, BPTT_TOKEN_FILE, BPTT_TLS_CLIENT_CERT and BPTT_TLS_CLIENT_KEY.
        """
        return cls(
            environment.get("BPTT_TLS_CA") or None,
            environment.get("BPTT_TOKEN") or None,
            environment.get("BPTT_TOKEN_FILE") or None,
            environment.get("BPTT_TLS_CLIENT_CERT") or None,
            environment.get("BPTT_TLS_CLIENT_KEY") or None,
        )

    def channel(self, address: str, options: Sequence[tuple[str, Any]]) -> grpc.aio.Channel:
        """Return a channel to a server.

        Raises:
            InvalidRequest: a file cannot be read, or the token would leave this machine without
                TLS.
        """
        self._metadata()  # an unreadable token is told before the connection
        if self.tls_ca is None:
            has_token = self.token is not None or self.token_file is not None
            if has_token and not self.insecure and not is_loopback(address):
                bound = "given where a token is sent to another machine; type --tls-ca FILE"
                raise InvalidRequest.of("tls_ca", "missing", bound)
            if self.client_cert is not None:
                raise InvalidRequest.of("tls_ca", "missing", "given with a client certificate")
            return grpc.aio.insecure_channel(address, options=options)
        return grpc.aio.secure_channel(address, self._credentials(), options=options)

    def _credentials(self) -> grpc.ChannelCredentials:
        if (self.client_cert is None) != (self.client_key is None):
            raise InvalidRequest.of("client_key", "missing", "given with client_cert, and it alone")
        key = None if self.client_key is None else _read("client_key", self.client_key)
        cert = None if self.client_cert is None else _read("client_cert", self.client_cert)
        if self.tls_ca == SYSTEM:
            return grpc.ssl_channel_credentials(None, key, cert)
        assert self.tls_ca is not None
        return grpc.ssl_channel_credentials(_read("tls_ca", self.tls_ca), key, cert)

    def stub(self, stub: Any) -> Any:
        """Return a stub whose calls carry the token."""
        if self.token is None and self.token_file is None:
            return stub
        return _WithToken(stub, self)

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        token, source = self.token, "token"
        if token is None and self.token_file is not None:
            source = "token_file"
            data = _read(source, self.token_file)
            token = data.decode("ascii", errors="replace").strip()
        if token is None:
            return ()
        if len(token) > TOKEN_BYTES_MAX or not _TOKEN.fullmatch(token):
            # The value is not shown: it may be a token with one character too many.
            raise InvalidRequest.of(
                source, "something else", "a token, as `bptt token create` prints it"
            )
        return (("authorization", f"Bearer {token}"),)

    def why_not(self, address: str) -> str:
        """Return what a connection by hand shows of the cause, as a clause; empty: nothing."""
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        try:
            with socket.create_connection((host, int(port)), PROBE_SECONDS) as plain:
                return self._why_no_tls(plain, host)
        except ssl.SSLCertVerificationError as error:
            return f"; its certificate is refused: {error.verify_message}"
        except ssl.SSLError as error:
            return f"; TLS failed: {error.reason}"
        except (OSError, ValueError):
            return ""

    def _why_no_tls(self, plain: socket.socket, host: str) -> str:
        if self.tls_ca is None:
            return "; a program listens there, and if it is a server with TLS, type --tls-ca FILE"
        file = None if self.tls_ca == SYSTEM else str(self.tls_ca)
        context = ssl.create_default_context(cafile=file)
        context.set_alpn_protocols(["h2"])
        if self.client_cert is not None:
            context.load_cert_chain(str(self.client_cert), str(self.client_key))
        with context.wrap_socket(plain, server_hostname=host) as secure:
            secure.settimeout(PROBE_SECONDS)
            secure.recv(1)  # with TLS 1.3 a refused client certificate shows here
        return ""


class _WithToken:
    """A stub whose methods send the token of an access, read anew for each call."""

    def __init__(self, stub: Any, access: Access) -> None:
        self._stub = stub
        self._access = access

    def __getattr__(self, name: str) -> Any:
        method, access = getattr(self._stub, name), self._access

        @functools.wraps(method.__call__)
        def call(*arguments: Any, **named: Any) -> Any:
            return method(*arguments, metadata=access._metadata(), **named)

        return call


def _read(field_name: str, path: Path | str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        value = f"{path} ({error.strerror})"
        raise InvalidRequest.of(field_name, value, "a file that can be read") from error


def is_loopback(address: str) -> bool:
    """Return whether only this machine has an address, host:port."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False
