"""Establishes the caller of each call, checks it against the table, and ends calls of revoked ones.

- A call with `authorization: Bearer TOKEN` is of the caller with that token, of the file or of the
  issuer of JSON Web Tokens; without it, of the caller whose client certificate is in the file.
- A refusal never says whether a model exists: the patterns of the caller alone decide.
- The file is looked at four times a second. A caller that has expired, or whose entry was removed
  or changed, loses its open calls as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from bptt.config import Reflection, ServerConfig
from bptt.errors import PermissionDenied, ServiceError, Unauthenticated
from bptt.rpc.auth.table import METHODS, REFLECTION, Rule
from bptt.security.callers import CallersFile
from bptt.security.jwt import JwtCallers
from bptt.security.roles import CALLER, Caller, Role

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.25  # so that a revocation takes effect well within a second
TOKEN_BYTES_MAX = 8192  # gRPC's own bound of all headers together
CREDENTIALS = "authorization: Bearer TOKEN"
_UNKNOWN_METHOD = Rule(Role.ADMIN)
_CERTIFICATE_NAMES = ("x509_common_name", "x509_subject_alternative_name")


@dataclass(slots=True, eq=False)
class _OpenCall:
    caller: Caller
    task: asyncio.Task[Any]
    ended_by: ServiceError | None = None


class Guard:
    """Knows the callers of one server.

    Args:
        callers: the file; None: there is none.
        jwt: the callers of an issuer; None: there is none.
        reflection: who may use reflection.
    """

    def __init__(
        self,
        callers: CallersFile | None,
        jwt: JwtCallers | None = None,
        reflection: Reflection = "callers",
    ) -> None:
        self._file = callers
        self._jwt = jwt
        self._reflection = reflection
        self._open: set[_OpenCall] = set()
        self._watching: asyncio.Task[None] | None = None

    @classmethod
    def of(cls, config: ServerConfig) -> Guard | None:
        """The guard of a server; None: the server does not ask who calls.

        Raises:
            InvalidRequest: a file that a setting names is not valid.
        """
        if config.callers is None and config.jwt.issuer is None:
            return None
        callers = None if config.callers is None else CallersFile(config.callers)
        jwt = None if config.jwt.issuer is None else JwtCallers(config.jwt)
        return cls(callers, jwt, config.reflection)

    def rule(self, method: str) -> Rule:
        """The rule of a method, by its full name; an unknown method is for nobody."""
        rule = METHODS.get(method, _UNKNOWN_METHOD)
        if method in REFLECTION and self._reflection == "everybody":
            return Rule(rule.role, open=True)
        return rule

    @contextlib.contextmanager
    def call(self, rule: Rule, context: Any, *, streaming: bool) -> Iterator[Callable[[Any], None]]:
        """Serve a call within this block as its caller; gives the check of its first message.

        Args:
            rule: of the call's method.
            context: the call's, from gRPC.
            streaming: True: the call may last, and ends when its caller is revoked.

        Raises:
            Unauthenticated: no known caller, or one that was revoked while the call was open.
            PermissionDenied: the caller's role is too low.
        """
        if rule.open:
            yield lambda message: self._check_open(rule, context, message)
            return
        if rule is _UNKNOWN_METHOD:
            raise PermissionDenied("no caller may use this method")
        caller = self._caller(context)
        _check_role(rule, caller)
        token = CALLER.set(caller)
        try:
            with self._kept(caller) if streaming else contextlib.nullcontext():
                yield lambda message: _check_model(rule, caller, message)
        finally:
            CALLER.reset(token)

    def _check_open(self, rule: Rule, context: Any, message: Any) -> None:
        if rule.model is not None and rule.model(message) is not None:
            caller = self._caller(context)
            _check_role(rule, caller)
            _check_model(rule, caller, message)

    def _caller(self, context: Any) -> Caller:
        """Return the caller of a call. The texts never hold a token, nor any part of one."""
        header = next(
            (value for key, value in context.invocation_metadata() if key == "authorization"), None
        )
        caller: Caller | None = None
        if header is not None:
            scheme, _, token = str(header).partition(" ")
            if scheme.lower() != "bearer" or not token or len(token) > TOKEN_BYTES_MAX:
                raise Unauthenticated(f"the header authorization must be {CREDENTIALS}")
            caller = self._by_token(token.strip())
            if caller is None:
                raise Unauthenticated("the token is unknown, revoked or not valid here")
        elif self._file is not None:
            caller = self._file.by_certificate(_certificate_names(context))
        if caller is None:
            raise Unauthenticated(
                f"the call needs a token ({CREDENTIALS}) or a client certificate of a known caller"
            )
        _check_time(caller)
        return caller

    def _by_token(self, token: str) -> Caller | None:
        caller = None if self._file is None else self._file.by_token(token)
        if caller is None and self._jwt is not None:
            caller = self._jwt.by_token(token)
        return caller

    # ------------------------------------------------------------------ open calls

    @contextlib.contextmanager
    def _kept(self, caller: Caller) -> Iterator[None]:
        """Serve a call that may last; it is cancelled and ends with an error on revocation."""
        task = asyncio.current_task()
        assert task is not None
        call = _OpenCall(caller, task)
        self._open.add(call)
        try:
            yield
        except asyncio.CancelledError:
            if call.ended_by is None:
                raise
            task.uncancel()
            raise call.ended_by from None
        finally:
            self._open.discard(call)

    def start(self) -> None:
        """Begin to look for changes; on the event loop."""
        self._watching = asyncio.create_task(self._watch(), name="callers")

    async def stop(self) -> None:
        """Look for changes no more."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                if self._file is not None:
                    await asyncio.to_thread(self._file.refresh)
                if self._jwt is not None and self._jwt.due():
                    await asyncio.to_thread(self._jwt.refresh)
            except ServiceError as error:
                log.warning("%s; what was read before stays in force", error.message)
            except Exception:
                log.exception("the callers could not be read again")
            self._end_calls()

    def _end_calls(self) -> None:
        for call in self._open:
            if call.ended_by is not None:
                continue
            try:
                _check_time(call.caller)
            except Unauthenticated as error:
                call.ended_by = error
            known = [each for each in (self._file, self._jwt) if each is not None]
            if not any(each.has(call.caller) for each in known):
                call.ended_by = Unauthenticated("the caller was revoked or changed")
            if call.ended_by is not None:
                call.task.cancel()


def _check_time(caller: Caller) -> None:
    if caller.expires is not None and caller.expires <= time.time():
        raise Unauthenticated(f"the credentials of {caller.name!r} have expired")


def _check_role(rule: Rule, caller: Caller) -> None:
    if caller.role < rule.role:
        role, needed = caller.role.name.lower(), rule.role.name.lower()
        raise PermissionDenied(
            f"caller {caller.name!r} has the role {role}; this needs the role {needed}"
        )


def _check_model(rule: Rule, caller: Caller, message: Any) -> None:
    model_id = None if rule.model is None else rule.model(message)
    if model_id is not None and not caller.allows(model_id):
        patterns = ", ".join(caller.models)
        raise PermissionDenied(f"caller {caller.name!r} may use models named {patterns} only")


def _certificate_names(context: Any) -> list[str]:
    """Return the names of the certificate that the client showed and TLS has checked."""
    found = context.auth_context()
    return [
        value.decode(errors="replace") for key in _CERTIFICATE_NAMES for value in found.get(key, ())
    ]
