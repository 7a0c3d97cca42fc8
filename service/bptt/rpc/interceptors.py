"""Turns the errors of calls into gRPC statuses, and counts calls.

- A `ServiceError` ends the call with its status. The trailing metadata carries a
  `google.rpc.Status` with details: `google.rpc.ErrorInfo` with the error's reason, the domain
  "bptt" and the wrong fields; `google.rpc.BadRequest` with the same fields as text;
  `google.rpc.RetryInfo` where it is known when to try again.
- Any other exception is a defect: it is logged once with its traceback and answered as INTERNAL
  without its text.
- A client that hung up is neither an error nor a defect.
- A message is decoded only after the caller may call the method. One that cannot be decoded is
  answered as INVALID_ARGUMENT.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, NoReturn

import grpc.aio
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status  # type: ignore[import-untyped]

from bptt.domain import CallSink, MethodSink
from bptt.errors import ERROR_DOMAIN, InvalidRequest, ServiceError, violations_to_metadata
from bptt.rpc.auth.guard import Guard
from bptt.rpc.auth.table import Rule
from bptt.security.rate import RateLimitedLog

log = logging.getLogger(__name__)

_KINDS = {
    (False, False): "unary",
    (False, True): "server_stream",
    (True, False): "client_stream",
    (True, True): "bidi_stream",
}


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Counts calls, checks callers, decodes messages, and turns errors into statuses.

    Args:
        sink: counts calls.
        guard: establishes the caller of each call, and checks what it may do. None: everybody may
            do everything.
    """

    def __init__(self, sink: CallSink, guard: Guard | None = None) -> None:
        self._sink = sink
        self._guard = guard
        # Method: the handler that came last, and the same handler wrapped.
        self._wrapped: dict[str, tuple[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Return the method's handler, wrapped.

        `continuation` runs once a call, because it runs the interceptors behind this one. The
        wrapping is made again only if it gives another handler than the last time.
        """
        handler = await continuation(handler_call_details)
        if handler is None:  # no such method: gRPC answers; nothing is kept, for names are endless
            return None
        name: Any = handler_call_details.method
        last = self._wrapped.get(name)
        if last is None or last[0] is not handler:
            last = self._wrapped[name] = handler, self._wrap(name, handler)
        return last[1]

    def _wrap(self, name: str, handler: Any) -> Any:
        kind = _KINDS[handler.request_streaming, handler.response_streaming]
        _, service, short = name.rsplit("/", 2)
        sink = self._sink.method(kind, service, short)
        rule = None if self._guard is None else self._guard.rule(name)
        method = _Method(name, sink, handler.request_deserializer, self._guard, rule)
        # Messages are decoded here, after the caller is known: gRPC would do so before.
        coders = (None, handler.response_serializer)
        if kind == "unary":
            inner = _unary(handler.unary_unary, method)
            return grpc.unary_unary_rpc_method_handler(inner, *coders)
        if kind == "server_stream":
            inner = _streaming(handler.unary_stream, method)
            return grpc.unary_stream_rpc_method_handler(inner, *coders)
        if kind == "bidi_stream":
            inner = _streaming(handler.stream_stream, method)
            return grpc.stream_stream_rpc_method_handler(inner, *coders)
        inner = _unary(handler.stream_unary, method)
        return grpc.stream_unary_rpc_method_handler(inner, *coders)


class _Method:
    """One method: its counters, and what is done with its calls and messages beforehand."""

    def __init__(
        self,
        name: str,
        sink: MethodSink,
        decode: Callable[[bytes], Any] | None,
        guard: Guard | None,
        rule: Rule | None,
    ) -> None:
        self.name = name
        self.sink = sink
        self._decode = decode
        self._guard = guard
        self._rule = rule

    @contextlib.contextmanager
    def call(self, context: Any, *, streaming: bool) -> Iterator[Callable[[Any], None]]:
        """Serve a call within this block, as its caller; gives the check of its first message.

        Raises:
            Unauthenticated: nobody that the server knows calls, or the caller was revoked.
            PermissionDenied: the caller may not call the method.
        """
        if self._guard is None or self._rule is None:
            yield _unchecked
            return
        with self._guard.call(self._rule, context, streaming=streaming) as check:
            yield check

    def message(self, data: Any) -> Any:
        """Decode a message.

        Raises:
            InvalidRequest: it cannot be decoded.
        """
        self.sink.received()
        if self._decode is None:
            return data
        try:
            return self._decode(data)
        except (DecodeError, ValueError) as error:
            _UNDECODABLE.info("%s: a message of %d bytes cannot be decoded", self.name, len(data))
            bound = "a message of the method's request type"
            raise InvalidRequest.of(
                "message", f"{len(data)} bytes that cannot be decoded", bound, reason="undecodable"
            ) from error


_UNDECODABLE = RateLimitedLog(log)


def _unchecked(message: Any) -> None:
    """The check of a message where everybody may do everything."""


def _unary(behavior: Any, method: _Method) -> Any:
    """Wrap a method with one answer; its requests may be a stream."""
    sink, name = method.sink, method.name

    async def call(request: Any, context: Any) -> Any:
        start = time.perf_counter()
        sink.started()
        code = "OK"
        try:
            streaming = hasattr(request, "__aiter__")
            with method.call(context, streaming=streaming) as check:
                if streaming:
                    request = _decoded(request, method, check)
                else:
                    request = method.message(request)
                    check(request)
                response = await behavior(request, context)
            sink.sent()
            return response
        except BaseException as error:
            code = _code(error, context)
            await _end(error, context, name)
            raise
        finally:
            sink.handled(code, time.perf_counter() - start)

    return call


def _streaming(behavior: Any, method: _Method) -> Any:
    """Wrap a streaming method that yields its answers or writes them to the context."""
    sink, name = method.sink, method.name

    async def call(request: Any, context: Any) -> None:
        start = time.perf_counter()
        sink.started()
        code = "OK"
        try:
            with method.call(context, streaming=True) as check:
                counting = _CountingContext(context, method, check)
                if hasattr(request, "__aiter__"):
                    request = _decoded(request, method, check)
                else:
                    request = method.message(request)
                    check(request)
                if inspect.isasyncgenfunction(behavior):
                    async for response in behavior(request, counting):
                        await counting.write(response)
                else:
                    await behavior(request, counting)
        except BaseException as error:
            code = _code(error, context)
            await _end(error, context, name)
            raise
        finally:
            sink.handled(code, time.perf_counter() - start)

    return call


async def _decoded(
    messages: AsyncIterator[Any], method: _Method, check: Callable[[Any], None]
) -> AsyncIterator[Any]:
    is_first = True
    async for data in messages:
        message = method.message(data)
        if is_first:
            check(message)
            is_first = False
        yield message


class _CountingContext:
    """Decodes and counts the messages of a call; passes everything else on to its context."""

    def __init__(self, context: Any, method: _Method, check: Callable[[Any], None]) -> None:
        self._context = context
        self._method = method
        self._sink = method.sink
        self._read = context.read
        self._write = context.write
        self._check: Callable[[Any], None] | None = check

    async def read(self) -> Any:
        data = await self._read()
        if data is grpc.aio.EOF:
            return data
        message = self._method.message(data)
        if self._check is not None:
            self._check(message)
            self._check = None
        return message

    async def write(self, message: Any) -> None:
        await self._write(message)
        self._sink.sent()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


def _code(error: BaseException, context: Any) -> str:
    if isinstance(error, ServiceError):
        return error.code
    if isinstance(error, grpc.aio.AbortError):
        return _status_name(context.code())
    if isinstance(error, asyncio.CancelledError) or _hung_up(error, context):
        return "CANCELLED"
    return "INTERNAL"


def _status_name(code: Any) -> str:
    if isinstance(code, grpc.StatusCode):
        return code.name
    return next((each.name for each in grpc.StatusCode if each.value[0] == code), "UNKNOWN")


def _hung_up(error: BaseException, context: Any) -> bool:
    """Return whether reading or writing failed because the client is gone."""
    return isinstance(error, grpc.aio.UsageError | grpc.aio.InternalError | grpc.aio.BaseError)


async def _end(error: BaseException, context: Any, name: str) -> None:
    """End the call with the status of an error, unless gRPC or the client has ended it."""
    if isinstance(error, ServiceError):
        await abort(context, error)
    if isinstance(error, Exception) and not isinstance(error, grpc.aio.AbortError):
        if _hung_up(error, context):
            raise asyncio.CancelledError from error
        log.error("%s failed", name, exc_info=error)
        await abort(context, ServiceError("internal error"))


async def abort(context: Any, error: ServiceError) -> NoReturn:
    """End a call with the status of an error and its details."""
    code = grpc.StatusCode[error.code]
    status = status_pb2.Status(code=code.value[0], message=error.message)
    info = error_details_pb2.ErrorInfo(
        reason=error.reason.upper(),
        domain=ERROR_DOMAIN,
        metadata=violations_to_metadata(error.violations),
    )
    _attach(status, info)
    if error.retry_seconds:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(int(error.retry_seconds * 1000))
        _attach(status, retry)
    if error.violations:
        bad_request = error_details_pb2.BadRequest(
            field_violations=[
                error_details_pb2.BadRequest.FieldViolation(
                    field=each.field, description=each.description
                )
                for each in error.violations
            ]
        )
        _attach(status, bad_request)
    metadata = rpc_status.to_status(status).trailing_metadata
    await context.abort(code, error.message, trailing_metadata=metadata)
    raise AssertionError("abort always raises")


def _attach(status: Any, detail: Message) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)
    status.details.append(packed)
