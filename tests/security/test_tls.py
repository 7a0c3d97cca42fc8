"""TLS of gRPC with real clients: versions, client certificates, and certificates that change."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import pytest
import trustme

from bptt import Access, Client, InvalidRequest, ServerUnreachable, Unauthenticated
from bptt.config import Tls
from bptt.security import callers
from bptt.security.roles import Role
from bptt.security.tls import TlsFiles
from tests.rpc.harness import wave
from tests.security.conftest import Secured
from tests.security.test_callers import SPEC
from tests.support.tools import program


async def handshake(address: str, *options: str) -> str:
    process = await asyncio.create_subprocess_exec(
        program("openssl"),
        *("s_client", "-connect", address, "-alpn", "h2", "-cipher", "ALL:@SECLEVEL=0", *options),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    return out.decode(errors="replace")


@pytest.mark.tools
async def test_versions_before_tls_1_2_and_plain_text_are_refused(secured: Secured) -> None:
    token = secured.token("reader")
    async with secured.serving() as server:
        for version in ("1", "1_1"):
            said = await handshake(server.rpc.address, f"-tls{version}")
            assert "Cipher is (NONE)" in said
        for version in ("1_2", "1_3"):
            said = await handshake(server.rpc.address, f"-tls{version}")
            assert f"TLSv{version.replace('_', '.')}, Cipher is" in said
            assert "ALPN protocol: h2" in said
        with pytest.raises(ServerUnreachable, match="type --tls-ca FILE"):
            async with Client.connect(server.rpc.address, access=Access(token=token)):
                pass


async def test_a_server_of_another_authority_is_refused_and_the_reason_told(
    secured: Secured, tmp_path: Path
) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(other)
    async with secured.serving() as server:
        with pytest.raises(ServerUnreachable, match="certificate is refused"):
            async with Client.connect(server.rpc.address, access=Access(tls_ca=other)):
                pass


async def test_a_certificate_rotates_under_load_without_a_dropped_call(secured: Secured) -> None:
    token = secured.token("admin")
    old = secured.access(token)
    new_ca, new_file = trustme.CA(), secured.folder / "new-ca.pem"
    new_ca.cert_pem.write_to_path(new_file)
    new = Access(tls_ca=new_file, token=token)
    async with (
        secured.serving() as server,
        Client.connect(server.rpc.address, access=old) as client,
    ):
        await client.create_model("m", SPEC)
        async with client.learn("m", resume=False) as session:
            await session.send("s", wave(8))
            secured.certify(new_ca)
            # A new connection gets the new certificate; the open call goes on as it was.
            async with Client.connect(server.rpc.address, access=new) as other:
                assert len(await other.list_models()) == 1
            for first in range(8, 80, 8):
                await session.send("s", wave(8, first))
        elsewhere = server.rpc.address.replace("127.0.0.1", "localhost")
        with pytest.raises(ServerUnreachable, match="certificate is refused"):
            async with Client.connect(elsewhere, access=old):
                pass
        assert (await client.get_stream("m", "s")).next_step == 80


async def test_half_a_rotation_leaves_the_former_certificate(
    secured: Secured, caplog: pytest.LogCaptureFixture
) -> None:
    files = TlsFiles(secured.tls())
    before = files.pems
    trustme.CA().issue_cert("localhost").private_key_pem.write_to_path(secured.folder / "key.pem")
    assert files.changed() is None
    assert files.pems is before
    assert "stays in use" in caplog.text
    secured.certify()
    found = files.changed()
    assert found is not None
    assert found.certificate != before.certificate
    assert files.changed() is None


async def test_a_client_certificate_is_asked_for_and_names_the_caller(secured: Secured) -> None:
    secured.token("admin")
    for name in ("plant", "stranger"):
        secured.client_files(name)
    callers.add_certificate(secured.file, "plant", Role.READER, ("plant-*",), name="plant")
    async with secured.serving(client_ca=True) as server:

        def access(name: str, token: str | None = None) -> Access:
            cert, key = secured.folder / f"{name}.pem", secured.folder / f"{name}-key.pem"
            return secured.access(token, client_cert=cert, client_key=key)

        async with Client.connect(server.rpc.address, access=access("plant")) as client:
            assert await client.list_models() == []
        async with Client.connect(server.rpc.address, access=access("stranger")) as client:
            with pytest.raises(Unauthenticated, match="client certificate of a known caller"):
                await client.list_models()
        # A header decides alone: a bad token is not made good by a certificate.
        async with Client.connect(server.rpc.address, access=access("plant", "bad")) as client:
            with pytest.raises(Unauthenticated, match="unknown, revoked"):
                await client.list_models()
        with pytest.raises(ServerUnreachable):
            async with Client.connect(server.rpc.address, access=secured.access(None)):
                pass
        cert, key = secured.client_files("plant", trustme.CA())
        wrong = secured.access(None, client_cert=cert, client_key=key)
        with pytest.raises(ServerUnreachable):
            async with Client.connect(server.rpc.address, access=wrong):
                pass


@pytest.mark.parametrize("field", ["cert", "key", "client_ca"])
@pytest.mark.parametrize("content", [None, b"", b"no certificate", b"x" * (2 << 20)])
def test_a_file_that_cannot_be_used_is_named(
    secured: Secured, field: str, content: bytes | None
) -> None:
    files = {"cert": "cert.pem", "key": "key.pem", "client_ca": "ca.pem"}
    path = secured.folder / files[field]
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidRequest, match=path.name) as raised:
        TlsFiles(secured.tls(client_ca=True))
    assert raised.value.violations[0].field in ("tls.cert", f"tls.{field}")


def test_a_key_with_a_password_does_not_ask_for_it(secured: Secured) -> None:
    path = secured.folder / "locked.pem"
    done = subprocess.run(
        ["openssl", "ec", "-in", secured.folder / "key.pem", "-aes256", "-passout", "pass:x"],
        capture_output=True,
        check=True,
    )
    path.write_bytes(done.stdout)
    with pytest.raises(InvalidRequest, match="without a password"):
        TlsFiles(Tls(cert=secured.folder / "cert.pem", key=path))


async def test_a_token_is_not_sent_to_another_machine_without_tls() -> None:
    for address in ("learner.example.org:1", "127.evil.example.org:1", "10.0.0.1:1"):
        with pytest.raises(InvalidRequest, match="--tls-ca") as raised:
            async with Client.connect(address, access=Access(token="secret-token")):
                pass
        assert "secret-token" not in str(raised.value)
    assert "secret-token" not in repr(Access(token="secret-token"))


@pytest.mark.parametrize("token", ["", "two words", "line\n", "é", "x" * 9000])
async def test_a_token_that_no_header_can_hold_is_refused_without_being_shown(token: str) -> None:
    with pytest.raises(InvalidRequest, match="bptt token create") as raised:
        async with Client.connect("127.0.0.1:1", access=Access(token=token)):
            pass
    assert not token.strip() or token not in str(raised.value)


async def test_a_token_file_is_read_for_each_call(secured: Secured) -> None:
    path = secured.folder / "token"
    path.write_text(secured.token("reader", name="one") + "\n")
    access = Access(tls_ca=secured.ca_file, token_file=path)
    async with (
        secured.serving() as server,
        Client.connect(server.rpc.address, access=access) as client,
    ):
        await client.list_models()
        callers.revoke(secured.file, "one")
        await asyncio.sleep(0)
        path.write_text(secured.token("reader", name="two"))
        await client.list_models()


def test_the_variables_of_the_environment_are_taken_and_empty_ones_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert Access.from_environment({}) == Access()
    assert Access.from_environment({"BPTT_TOKEN": "", "BPTT_TLS_CA": "ca"}) == Access(tls_ca="ca")
    monkeypatch.setenv("BPTT_TOKEN", "t")
    assert Access.from_environment(os.environ).token == "t"
