"""Callers by JSON Web Tokens of one issuer, checked with PyJWT (extra `security`).

A token must be signed with a key of the issuer's JWKS and an asymmetric algorithm, name the issuer
and the audience, and have `exp` and `sub`. Two claims say what the caller may do: `bptt_role`
(reader, writer or admin) and `bptt_models` (one pattern of model names, or a list of them).
"""

from __future__ import annotations

import json
import logging
import time
import urllib.request
from pathlib import Path
from typing import Any

from bptt.config import Jwt
from bptt.errors import InvalidRequest, ServiceError
from bptt.security.roles import Caller, check_patterns, Role

log = logging.getLogger(__name__)

ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"]
"""Only asymmetric ones: with a shared key, whoever checks a token could also make one."""
KEYS_BYTES_MAX = 1 << 20
FETCH_SECONDS = 10.0
REFRESH_SECONDS = 300.0  # how long a key that the issuer withdrew may still be taken
CLOCK_SECONDS = 5.0  # by which the issuer's clock may differ


class JwtCallers:
    """The callers that an issuer vouches for.

    Raises:
        InvalidRequest: PyJWT is not installed, or the keys cannot be read.
    """

    def __init__(self, settings: Jwt) -> None:
        try:
            import jwt
        except ImportError:
            bound = "left out where PyJWT is not installed; type: pip install 'bptt[security]'"
            raise InvalidRequest.of("jwt.issuer", str(settings.issuer), bound) from None
        assert settings.keys is not None
        self._jwt = jwt
        self._settings = settings
        self._keys: dict[str | None, Any] = {}
        self._stamp: object = None
        self._read_at = 0.0
        self.refresh()

    def due(self) -> bool:
        """Return whether the keys have to be read again."""
        if self._from_url:
            return time.monotonic() - self._read_at >= REFRESH_SECONDS
        return self._now() != self._stamp

    def refresh(self) -> None:
        """Read the keys; blocks for at most FETCH_SECONDS.

        Raises:
            InvalidRequest: they cannot be read.
        """
        self._read_at, stamp = time.monotonic(), self._now()
        source = str(self._settings.keys)
        try:
            document = json.loads(self._fetched(source))
            keys = self._jwt.PyJWKSet.from_dict(document).keys
        except Exception as error:
            bound = "a file or an https URL of a JSON Web Key Set"
            raise InvalidRequest.of("jwt.keys", f"{source} ({error})", bound) from error
        self._stamp = stamp
        self._keys = {each.key_id: each for each in keys}

    @property
    def _from_url(self) -> bool:
        return str(self._settings.keys).startswith("https://")

    def _now(self) -> object:
        if self._from_url:
            return None
        try:
            found = Path(str(self._settings.keys)).stat()
        except OSError as error:
            return error.errno
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _fetched(self, source: str) -> bytes:
        if not self._from_url:
            with Path(source).open("rb") as file:
                return file.read(KEYS_BYTES_MAX)
        with urllib.request.urlopen(source, timeout=FETCH_SECONDS) as answer:
            return bytes(answer.read(KEYS_BYTES_MAX))

    def by_token(self, token: str) -> Caller | None:
        """The caller that a token names; None: the token is not valid."""
        try:
            key = self._keys.get(self._jwt.get_unverified_header(token).get("kid"))
            if key is None:
                return None
            claims = self._jwt.decode(
                token,
                key,
                algorithms=ALGORITHMS,
                audience=self._settings.audience,
                issuer=self._settings.issuer,
                leeway=CLOCK_SECONDS,
                options={"require": ["exp", "sub", "iss", "aud"]},
            )
            models = claims["bptt_models"]
            return Caller(
                str(claims["sub"]),
                Role.named(str(claims["bptt_role"])),
                check_patterns((models,) if isinstance(models, str) else tuple(models)),
                float(claims["exp"]),
                f"jwt:{key.key_id}",
            )
        except (self._jwt.PyJWTError, KeyError, TypeError, ValueError, ServiceError) as error:
            log.debug("a JSON Web Token was refused: %s", type(error).__name__)
            return None

    def has(self, caller: Caller) -> bool:
        """Return whether the key that vouched for a caller is still one of the issuer's."""
        return any(caller.key == f"jwt:{each}" for each in self._keys)
