"""The file of callers: tokens, of which it holds hashes only, and names of client certificates.

A token is `bptt_ID_SECRET`. The secret has 256 random bits, so its plain SHA-256 cannot be searched
for, and a slow hash would only slow down the server. The server looks the entry up by ID and
compares hashes in constant time.

The file is JSON: {"version": 1, "callers": [...]}. `bptt token` writes it; a running server reads
it again when it has changed.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import re
import secrets
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bptt.errors import InvalidRequest, NotFound
from bptt.security import private_files
from bptt.security.roles import Caller, check_patterns, Role

log = logging.getLogger(__name__)

VERSION = 1
FILE_BYTES_MAX = 16 << 20  # 60,000 callers
NAME_CHARACTERS_MAX = 128
TOKEN = re.compile(r"bptt_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")


@dataclass(frozen=True, slots=True)
class Entry:
    """One caller in the file."""

    id: str
    """Of a token: its public part. Of a certificate: random."""
    name: str
    role: Role
    models: tuple[str, ...]
    created: float
    """Unix time."""
    expires: float | None = None
    """Unix time; None: never."""
    sha256: str = ""
    """Hash of the token's secret, in hexadecimal; empty for a certificate."""
    certificate: str = ""
    """Common name or DNS, URI or mail name of a client's certificate; empty for a token."""

    def caller(self) -> Caller:
        """The caller that this entry stands for."""
        return Caller(self.name, self.role, self.models, self.expires, self.id)

    def document(self) -> dict[str, Any]:
        """The entry as it stands in the file."""
        found: dict[str, Any] = {
            "id": self.id,
            "name": self.name,
            "role": self.role.name.lower(),
            "models": list(self.models),
            "created": self.created,
        }
        if self.expires is not None:
            found["expires"] = self.expires
        return found | (
            {"certificate": self.certificate} if self.certificate else {"sha256": self.sha256}
        )


def _entry(found: dict[str, Any]) -> Entry:
    known = {"id", "name", "role", "models", "created", "expires", "sha256", "certificate"}
    if extra := found.keys() - known:
        raise ValueError(f"unknown key {min(extra)!r}")
    entry = Entry(
        str(found["id"]),
        check_name(str(found["name"])),
        Role.named(str(found["role"])),
        check_patterns(tuple(str(each) for each in found["models"])),
        float(found["created"]),
        None if found.get("expires") is None else float(found["expires"]),
        str(found.get("sha256", "")),
        str(found.get("certificate", "")),
    )
    if bool(entry.certificate) == bool(entry.sha256):
        raise ValueError(f"caller {entry.id!r} needs either sha256 or certificate")
    return entry


def check_name(name: str) -> str:
    """Return a caller's name.

    Raises:
        InvalidRequest: it is empty, too long, or has a character that does not print.
    """
    if not 0 < len(name) <= NAME_CHARACTERS_MAX or not name.isprintable():
        bound = f"1 to {NAME_CHARACTERS_MAX} characters that print"
        raise InvalidRequest.of("name", repr(name), bound)
    return name


def read(path: Path) -> list[Entry]:
    """Read a file of callers; a file that does not exist has none.

    Raises:
        InvalidRequest: it cannot be read or is not such a file.
    """
    bound = "a file of callers, as `bptt token create` writes it"
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
        if len(data) > FILE_BYTES_MAX:
            raise ValueError(f"more than {FILE_BYTES_MAX} bytes")
        document = json.loads(data)
        if document["version"] != VERSION:
            raise ValueError(f"version {document['version']!r}, not {VERSION}")
        return [_entry(each) for each in document["callers"]]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InvalidRequest.of("callers", f"{path} ({error.strerror})", bound) from error
    except (ValueError, TypeError, KeyError, AttributeError, InvalidRequest) as error:
        raise InvalidRequest.of("callers", f"{path} ({error})", bound) from error


def _write(path: Path, entries: list[Entry]) -> None:
    rows = ",\n".join("  " + json.dumps(each.document()) for each in entries)
    text = f'{{"version": {VERSION}, "callers": [\n{rows}\n]}}\n'
    private_files.write(path, text.encode())


def create_token(
    path: Path, role: Role, models: tuple[str, ...], *, name: str, expires: float | None = None
) -> str:
    """Add a caller with a new token to the file, and return the token, which is kept nowhere.

    Args:
        path: the file, made if it does not exist.
        role: the caller's role.
        models: patterns of model names.
        name: the caller's name.
        expires: Unix time of the end; None: never.
    """
    identity, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    entry = Entry(identity, check_name(name), role, check_patterns(models), time.time(), expires)
    _add(path, replace(entry, sha256=_hash(secret)))
    return f"bptt_{identity}_{secret}"


def add_certificate(
    path: Path,
    certificate: str,
    role: Role,
    models: tuple[str, ...],
    *,
    name: str,
    expires: float | None = None,
) -> Entry:
    """Add the callers that show a client certificate of this name; arguments as `create_token`."""
    entry = Entry(
        secrets.token_hex(6),
        check_name(name),
        role,
        check_patterns(models),
        time.time(),
        expires,
        certificate=check_name(certificate),
    )
    _add(path, entry)
    return entry


def _add(path: Path, entry: Entry) -> None:
    with private_files.locked(path):
        _write(path, [*read(path), entry])


def revoke(path: Path, named: str) -> list[Entry]:
    """Remove the callers whose id or name is `named`, and return them.

    Raises:
        NotFound: there is none.
    """
    with private_files.locked(path):
        entries = read(path)
        gone = [each for each in entries if named in (each.id, each.name)]
        if not gone:
            raise NotFound(f"no caller has the id or name {named!r}; `bptt token list` shows all")
        _write(path, [each for each in entries if each not in gone])
    return gone


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


_NO_HASH = "0" * 64


class CallersFile:
    """The callers of a file, read again when it changes.

    A file that cannot be read any more leaves the callers that were read last in place, and is
    reported in the log; a file that is gone has no callers.

    Raises:
        InvalidRequest: the file is not valid at the start.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: object = None
        self._tokens: dict[str, Entry] = {}
        self._certificates: dict[str, Entry] = {}
        self._entries: dict[str, Entry] = {}
        self._stamp = self._now()
        self._take(read(path))

    def _now(self) -> object:
        try:
            found = self._path.stat()
        except OSError as error:
            return error.errno
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _take(self, entries: list[Entry]) -> None:
        self._entries = {each.id: each for each in entries}
        self._tokens = {each.id: each for each in entries if each.sha256}
        self._certificates = {each.certificate: each for each in entries if each.certificate}

    def refresh(self) -> bool:
        """Read the file if it has changed; return whether it had."""
        stamp = self._now()
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        try:
            entries = read(self._path)
        except InvalidRequest as error:
            log.error("%s; the callers read before stay in force", error.message)
            return False
        self._take(entries)
        log.info("callers read again: %d in %s", len(entries), self._path)
        return True

    def by_token(self, token: str) -> Caller | None:
        """The caller with this token; None: there is none. Takes the same time for any secret."""
        found = TOKEN.fullmatch(token)
        if found is None:
            return None
        if found[1] not in self._tokens:
            self.refresh()
        entry = self._tokens.get(found[1])
        known = entry.sha256 if entry is not None else _NO_HASH
        same = hmac.compare_digest(_hash(found[2]), known)
        return entry.caller() if same and entry is not None else None

    def by_certificate(self, names: list[str]) -> Caller | None:
        """The caller whose entry has one of the names of a client's certificate."""
        for name in names:
            if name in self._certificates:
                return self._certificates[name].caller()
        return None

    def has(self, caller: Caller) -> bool:
        """Return whether a caller's entry is unchanged in the file as it was read last."""
        entry = self._entries.get(caller.key)
        return entry is not None and entry.caller() == caller
