"""Turns the errors of calls into gRPC statuses, and counts calls.

- A `ServiceError` ends the call with its status. The trailing metadata carries a
  `google.rpc.Status` with details: `google.rpc.ErrorInfo` with the error's reason, the domain
  "bptt" and the wrong fields; `google.rpc.BadRequest` with the same fields as text;
  `google.rpc.RetryInfo` where it is known when to try again.
- Any other exception is a defect: it is logged once with its traceback and answered as INTERNAL
  without its text.
- A client that hung up is neither an error nor a defect.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

import grpc.aio
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status  # type: ignore[import-untyped]

from bptt.domain import CallSink, MethodSink
from bptt.errors import ERROR_DOMAIN, ServiceError, violations_to_metadata

log = logging.getLogger(__name__)

_KINDS = {
    (False, False): "unary",
    (False, True): "server_stream",
    (True, False): "client_stream",
    (True, True): "bidi_stream",
}


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Counts calls and turns errors into statuses."""

    def __init__(self, sink: CallSink) -> None:
        self._sink = sink
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
        _, service, method = name.rsplit("/", 2)
        sink = self._sink.method(kind, service, method)
        coders = (handler.request_deserializer, handler.response_serializer)
        if kind == "unary":
            inner = _unary(handler.unary_unary, sink, name)
            return grpc.unary_unary_rpc_method_handler(inner, *coders)
        if kind == "server_stream":
            inner = _streaming(handler.unary_stream, sink, name)
            return grpc.unary_stream_rpc_method_handler(inner, *coders)
        if kind == "bidi_stream":
            inner = _streaming(handler.stream_stream, sink, name)
            return grpc.stream_stream_rpc_method_handler(inner, *coders)
        inner = _unary(handler.stream_unary, sink, name)
        return grpc.stream_unary_rpc_method_handler(inner, *coders)


def _unary(behavior: Any, sink: MethodSink, name: str) -> Any:
    """Wrap a method with one answer; its requests may be a stream."""

    async def call(request: Any, context: Any) -> Any:
        start = time.perf_counter()
        sink.started()
        if hasattr(request, "__aiter__"):
            request = _counted(request, sink)
        else:
            sink.received()
        code = "OK"
        try:
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


def _streaming(behavior: Any, sink: MethodSink, name: str) -> Any:
    """Wrap a streaming method that yields its answers or writes them to the context."""

    async def call(request: Any, context: Any) -> None:
        start = time.perf_counter()
        sink.started()
        counting = _CountingContext(context, sink)
        if hasattr(request, "__aiter__"):
            request = _counted(request, sink)
        else:
            sink.received()
        code = "OK"
        try:
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


async def _counted(messages: AsyncIterator[Any], sink: MethodSink) -> AsyncIterator[Any]:
    async for message in messages:
        sink.received()
        yield message


class _CountingContext:
    """Counts the messages of a call; passes everything else on to the call's context."""

    def __init__(self, context: Any, sink: MethodSink) -> None:
        self._context = context
        self._sink = sink
        self._read = context.read
        self._write = context.write

    async def read(self) -> Any:
        message = await self._read()
        if message is not grpc.aio.EOF:
            self._sink.received()
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
