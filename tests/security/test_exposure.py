"""A server on a network without TLS or callers does not start, and says what to type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bptt.config import config_from
from bptt.errors import InvalidRequest
from bptt.security import exposure

SECURED: dict[str, Any] = {
    "tls.cert": Path("c"),
    "tls.key": Path("k"),
    "callers": Path("callers.json"),
}
JWT = {"jwt.issuer": "i", "jwt.audience": "a", "jwt.keys": "k"}


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.9.9.9", "[::1]", "localhost", "[0:0:0:0:0:0:0:1]"]
)
def test_loopback_needs_nothing(host: str) -> None:
    exposure.check(config_from({"address": f"{host}:1"}))


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "[::]", "10.0.0.1", "learner.example.org", "127.evil.example.org"]
)
def test_any_other_address_needs_tls_and_callers(host: str) -> None:
    address = {"address": f"{host}:1"}
    without = [
        {},
        {key: SECURED[key] for key in ("tls.cert", "tls.key")},
        {"callers": Path("c")},
        JWT,
    ]
    for given in without:
        with pytest.raises(InvalidRequest) as raised:
            exposure.check(config_from(address | given))
        for typed in ("--tls-cert", "--tls-key", "--callers", "--insecure", "bptt token create"):
            assert typed in raised.value.message
    exposure.check(config_from(address | SECURED))
    exposure.check(config_from(address | JWT | {"tls.cert": Path("c"), "tls.key": Path("k")}))
    exposure.check(config_from(address | {"insecure": True}))


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({"tls.cert": Path("c")}, "--tls-key"),
        ({"tls.key": Path("k")}, "--tls-cert"),
        ({"tls.client_ca": Path("a")}, "--tls-cert"),
        ({"jwt.issuer": "i"}, "--jwt-audience"),
        ({"jwt.issuer": "i", "jwt.audience": "a"}, "--jwt-keys"),
        ({"jwt.keys": "k"}, "--jwt-issuer"),
    ],
)
def test_settings_that_go_together_are_asked_for(given: dict[str, Any], missing: str) -> None:
    with pytest.raises(InvalidRequest, match=missing):
        exposure.check(config_from(given))
