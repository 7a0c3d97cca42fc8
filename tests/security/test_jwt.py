"""Callers by JSON Web Tokens, made as an issuer makes them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bptt import Access, Client, InvalidRequest, Unauthenticated
from bptt.config import Jwt
from bptt.rpc.auth.guard import Guard
from bptt.security.jwt import JwtCallers
from bptt.security.roles import Role
from tests.rpc.harness import harness


class Issuer:
    """Signs tokens, and publishes its keys in a file."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "jwks.json"
        self.keys: dict[str, Any] = {
            "rsa": rsa.generate_private_key(65537, 2048),
            "ec": ec.generate_private_key(ec.SECP256R1()),
        }
        self.publish()

    def publish(self) -> None:
        kinds: dict[str, Any] = {
            "rsa": jwt.algorithms.RSAAlgorithm,
            "ec": jwt.algorithms.ECAlgorithm,
        }
        found = []
        for name, key in self.keys.items():
            document = json.loads(kinds[name].to_jwk(key.public_key()))
            found.append(document | {"kid": name, "use": "sig"})
        self.file.write_text(json.dumps({"keys": found}))

    @property
    def settings(self) -> Jwt:
        return Jwt(issuer="https://issuer.example.org", audience="bptt", keys=str(self.file))

    def token(self, kid: str = "ec", **changes: Any) -> str:
        claims: dict[str, Any] = {
            "iss": "https://issuer.example.org",
            "aud": "bptt",
            "sub": "plant",
            "exp": time.time() + 60,
            "bptt_role": "reader",
            "bptt_models": ["plant-*"],
        }
        claims = {key: value for key, value in (claims | changes).items() if value is not None}
        algorithm = "RS256" if kid == "rsa" else "ES256"
        return jwt.encode(claims, self.keys[kid], algorithm, headers={"kid": kid})


@pytest.fixture
def issuer(tmp_path: Path) -> Issuer:
    return Issuer(tmp_path)


@pytest.mark.parametrize("kid", ["rsa", "ec"])
async def test_a_token_of_the_issuer_names_a_caller(issuer: Issuer, kid: str) -> None:
    async with (
        harness(guard=Guard(None, JwtCallers(issuer.settings))) as server,
        Client.connect(server.rpc.address) as nobody,
        Client.connect(server.rpc.address, access=Access(token=issuer.token(kid))) as plant,
    ):
        assert await plant.list_models() == []
        with pytest.raises(Unauthenticated):
            await nobody.list_models()
    caller = JwtCallers(issuer.settings).by_token(issuer.token(kid))
    assert caller is not None
    assert (caller.name, caller.role, caller.models) == ("plant", Role.READER, ("plant-*",))


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://other.example.org"},
        {"aud": "another"},
        {"exp": time.time() - 60},
        {"exp": None},
        {"sub": None},
        {"iss": None},
        {"aud": None},
        {"nbf": time.time() + 86_400},
        {"bptt_role": None},
        {"bptt_role": "root"},
        {"bptt_models": None},
        {"bptt_models": []},
        {"bptt_models": 3},
    ],
    ids=str,
)
def test_a_token_with_another_claim_is_refused(issuer: Issuer, changes: dict[str, Any]) -> None:
    known = JwtCallers(issuer.settings)
    assert known.by_token(issuer.token()) is not None
    assert known.by_token(issuer.token(**changes)) is None


def test_tokens_that_are_not_signed_by_a_key_of_the_issuer_are_refused(issuer: Issuer) -> None:
    known = JwtCallers(issuer.settings)
    good = issuer.token("rsa")
    head, body, signature = good.split(".")
    public = issuer.keys["rsa"].public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def headed(**header: str) -> str:
        return base64.urlsafe_b64encode(json.dumps(header).encode()).rstrip(b"=").decode()

    symmetric = f"{headed(alg='HS256', kid='rsa')}.{body}"
    mac = hmac.new(pem, symmetric.encode(), hashlib.sha256).digest()
    forged = f"{symmetric}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"
    claims = jwt.decode(good, options={"verify_signature": False})
    stranger = rsa.generate_private_key(65537, 2048)
    refused = [
        f"{headed(alg='none', kid='rsa')}.{body}.",
        forged,
        jwt.encode(claims, stranger, "RS256", headers={"kid": "rsa"}),
        jwt.encode(claims, stranger, "RS256", headers={"kid": "unknown"}),
        jwt.encode(claims, stranger, "RS256"),
        f"{head}.{body}.{signature[:-4]}AAAA",
        "a.b.c",
        "x",
    ]
    assert known.by_token(good) is not None
    assert [known.by_token(each) for each in refused] == [None] * len(refused)


def test_keys_are_read_again_when_their_file_changes(issuer: Issuer) -> None:
    known = JwtCallers(issuer.settings)
    token = issuer.token("ec")
    caller = known.by_token(token)
    assert caller is not None
    assert not known.due()
    del issuer.keys["ec"]
    issuer.publish()
    assert known.due()
    known.refresh()
    assert known.by_token(token) is None
    assert not known.has(caller)


@pytest.mark.parametrize("text", ["", "{}", '{"keys": []}', '{"keys": [{"kty": "x"}]}'])
def test_a_file_that_holds_no_keys_is_refused(issuer: Issuer, text: str) -> None:
    issuer.file.write_text(text)
    with pytest.raises(InvalidRequest, match=r"jwt\.keys"):
        JwtCallers(issuer.settings)
