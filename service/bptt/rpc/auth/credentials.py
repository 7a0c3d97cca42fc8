"""Certificates for gRPC that follow their files."""

from __future__ import annotations

from typing import Any

import grpc

from bptt.security.tls import Pems, TlsFiles


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Return credentials that use what the files hold when a client connects.

    gRPC asks before each handshake, on a thread of its own; open connections keep the certificate
    they began with. TLS 1.2 is the lowest version that gRPC accepts.
    """

    def fetched() -> grpc.ServerCertificateConfiguration | None:
        pems = files.changed()
        return None if pems is None else _configuration(pems)

    fetcher: Any = fetched  # the stubs do not know that None means: nothing new
    return grpc.dynamic_ssl_server_credentials(
        _configuration(files.pems),
        fetcher,
        require_client_authentication=files.asks_for_certificates,
    )


def _configuration(pems: Pems) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(pems.key, pems.certificate)], root_certificates=pems.client_ca
    )
