"""A server with TLS and callers in the test's event loop, with certificates of `trustme`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme

from bptt import Access, Client
from bptt.config import Tls
from bptt.rpc.auth.credentials import server_credentials
from bptt.rpc.auth.guard import Guard
from bptt.security import callers
from bptt.security.callers import CallersFile
from bptt.security.roles import Role
from bptt.security.tls import TlsFiles
from tests.rpc.harness import Harness, harness


@dataclass
class Secured:
    """A folder with certificates and callers, and servers that use them."""

    folder: Path
    ca: trustme.CA

    @property
    def file(self) -> Path:
        return self.folder / "callers.json"

    @property
    def ca_file(self) -> Path:
        return self.folder / "ca.pem"

    def certify(self, ca: trustme.CA | None = None) -> None:
        """Write a new certificate of the server."""
        made = (ca or self.ca).issue_cert("localhost", "127.0.0.1")
        made.private_key_pem.write_to_path(self.folder / "key.pem")
        chain = b"".join(each.bytes() for each in made.cert_chain_pems)
        (self.folder / "cert.pem").write_bytes(chain)

    def client_files(self, name: str, ca: trustme.CA | None = None) -> tuple[Path, Path]:
        """Certificate and key of a client of this name."""
        made = (ca or self.ca).issue_cert(f"{name}@example.org", common_name=name)
        cert, key = self.folder / f"{name}.pem", self.folder / f"{name}-key.pem"
        made.cert_chain_pems[0].write_to_path(cert)
        made.private_key_pem.write_to_path(key)
        return cert, key

    def token(self, role: str, *models: str, expires: float | None = None, name: str = "") -> str:
        return callers.create_token(
            self.file, Role.named(role), models or ("*",), name=name or role, expires=expires
        )

    def tls(self, *, client_ca: bool = False) -> Tls:
        return Tls(
            cert=self.folder / "cert.pem",
            key=self.folder / "key.pem",
            client_ca=self.ca_file if client_ca else None,
        )

    def access(self, token: str | None, **more: Any) -> Access:
        return Access(tls_ca=self.ca_file, token=token, **more)

    @contextlib.asynccontextmanager
    async def client(self, server: Harness, token: str | None) -> AsyncIterator[Client]:
        async with Client.connect(server.rpc.address, access=self.access(token)) as client:
            yield client

    @contextlib.asynccontextmanager
    async def serving(self, *, client_ca: bool = False) -> AsyncIterator[Harness]:
        credentials = server_credentials(TlsFiles(self.tls(client_ca=client_ca)))
        guard = Guard(CallersFile(self.file))
        async with harness(guard=guard, credentials=credentials) as server:
            yield server


@pytest.fixture(scope="session")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def secured(tmp_path: Path, ca: trustme.CA) -> Secured:
    found = Secured(tmp_path, ca)
    ca.cert_pem.write_to_path(found.ca_file)
    found.certify()
    return found
