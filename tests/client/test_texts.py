"""The client behaves the same when every English text on the wire is replaced by "x"."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import numpy as np

from bptt.client import Client, Learned, Refused
from bptt.errors import ServiceError
from tests.rpc.harness import harness

SPEC: Any = {"input_size": 2, "hidden_size": 4, "k1": 2, "k2": 4}
STEPS = np.zeros((5, 2), np.float32)


class Wordless(grpc.aio.ServerInterceptor):
    """Replaces the texts of errors and refusals, and leaves the data in them."""

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = await continuation(details)
        if handler is None:
            return None
        coders = (handler.request_deserializer, handler.response_serializer)
        if handler.stream_stream is not None:
            return grpc.stream_stream_rpc_method_handler(_call(handler.stream_stream), *coders)
        return grpc.unary_unary_rpc_method_handler(_call(handler.unary_unary), *coders)


def _call(behavior: Any) -> Any:
    assert not inspect.isasyncgenfunction(behavior)

    async def call(request: Any, context: Any) -> Any:
        try:
            return await behavior(request, _Context(context))
        except ServiceError as error:
            error.message = "x"
            error.violations = tuple(
                dataclasses.replace(each, bound="x") for each in error.violations
            )
            raise

    return call


class _Context:
    def __init__(self, context: Any) -> None:
        self._context = context

    async def write(self, message: Any) -> None:
        if message.WhichOneof("message") == "refused":
            message.refused.message = message.refused.bound = "x"
        await self._context.write(message)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


def shown(error: ServiceError) -> Any:
    """All of an error except its texts."""
    fields = [(each.field, each.value) for each in error.violations]
    return type(error).__name__, error.code, error.reason, error.retry_seconds, fields


async def failing(found: list[Any], action: Callable[[], Awaitable[Any]]) -> None:
    try:
        await action()
    except ServiceError as error:
        found.append((shown(error), error.message == "x"))
    else:
        raise AssertionError("no error")


async def behaviour(client: Client) -> list[Any]:
    """The client's reaction to every kind of error that it can cause."""
    found: list[Any] = []

    async def learn(model_id: str) -> None:
        async with client.learn(model_id) as session:
            await session.send("s", STEPS)

    await client.create_model("m", SPEC)
    await failing(found, lambda: client.create_model("m", SPEC))
    await failing(found, lambda: client.create_model("n", {"input_size": 2, "k1": 9, "k2": 4}))
    await failing(found, lambda: client.get_model("n"))
    await failing(found, lambda: client.get_model("N"))
    await failing(found, lambda: client.predict("m", "t"))
    await failing(found, lambda: client.get_stream("m", "t"))
    await failing(found, lambda: client.update_model("m", learning_rate=-1.0))
    await failing(found, lambda: client.save_checkpoint("m"))
    await failing(found, lambda: learn("n"))
    async with client.learn("m") as session, client.learn("m") as other:
        await session.send("s", STEPS)
        await session.send("s", STEPS, first_step=9)
        await session.send("s", STEPS * np.nan)
        await session.acknowledged("s")
        await other.send("s", STEPS, first_step=0)
        await client.delete_stream("m", "s")
        await session.send("s", STEPS)
        for each in (session, other):
            await each.close()
            found += [outcome(answer) async for answer in each]
    return found


def outcome(answer: Any) -> Any:
    if isinstance(answer, Learned):
        return answer.stream_id, answer.first_step, answer.next_step
    assert isinstance(answer, Refused)
    return answer.chunk_index, answer.first_step, answer.expected_step, shown(answer.error)


async def test_no_behaviour_depends_on_a_text() -> None:
    results = []
    for interceptors in ((), (Wordless(),)):
        async with (
            harness(interceptors=interceptors) as server,
            Client.connect(server.rpc.address) as client,
        ):
            results.append(await behaviour(client))
    with_texts, without = results
    errors = [each for each in with_texts if each[1] is False]
    assert len(errors) == 9
    assert [(each[0], True) for each in errors] == without[: len(errors)]
    assert with_texts[len(errors) :] == without[len(errors) :]
