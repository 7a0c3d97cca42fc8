"""Clients at random against a real server, compared with steps learned once each, in order.

Several clients send to streams that some of them share: the next steps, steps sent before, gaps,
ends of sequences. In between they reset and delete streams, cancel calls, lose their connection and
reconnect. The expected result is a list of learned steps in order, each once. At the end a learner
without a server is fed that list and must equal the server's model bit for bit.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

import grpc.aio
import hypothesis.strategies as st
import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    initialize,
    invariant,
    rule,
    RuleBasedStateMachine,
    run_state_machine_as_test,
)

from bptt import v1 as pb
from bptt_core import Chunk, Learner, ModelSpec
from tests.rpc.harness import Call, Harness, harness, until
from tests.support.proxy import Proxy, proxy

CLIENTS = 3
STREAMS = ("a", "b", "c")
SPEC: dict[str, Any] = {"input_size": 2, "hidden_size": 4, "k1": 2, "k2": 4}

clients = st.integers(0, CLIENTS - 1)
streams = st.sampled_from(STREAMS)
lengths = st.integers(1, 9)

T = TypeVar("T")


def step(stream_id: str, life: int, number: int) -> list[float]:
    """The inputs of one step, the same from every sender and at every repetition."""
    seed = STREAMS.index(stream_id) * 1000 + life * 100
    return [float(np.sin(seed + number / 3)), float(np.cos(seed + number / 7))]


class Clients(RuleBasedStateMachine):
    """The clients' actions and the expected result.

    The number of accepted chunks of a lost client varies, so no rule has a precondition.
    """

    @initialize()
    def begin(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.stack = contextlib.AsyncExitStack()
        self.server: Harness = self.do(self.stack.enter_async_context(harness()))
        self.do(self.server.create())
        self.lines: list[Proxy] = [
            self.do(self.stack.enter_async_context(proxy(self.server.rpc.address)))
            for _ in range(CLIENTS)
        ]
        self.channels: list[Any] = [None] * CLIENTS
        self.calls: list[Call | None] = [None] * CLIENTS
        self.owned: list[set[str]] = [set() for _ in range(CLIENTS)]
        self.next_steps = dict.fromkeys(STREAMS, 0)
        self.lives = dict.fromkeys(STREAMS, 0)
        self.known: set[str] = set()
        self.journal: list[Chunk | tuple[str, str]] = []

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run the event loop until the coroutine is done."""
        return self.loop.run_until_complete(asyncio.wait_for(work, 30))

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        try:
            self.do(self.check_all())
        finally:
            self.do(self.close_all())
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()

    async def close_all(self) -> None:
        for client in range(CLIENTS):
            await self.hang_up_at(client)
        await self.stack.aclose()

    # ------------------------------------------------------------------ calls

    async def call(self, client: int) -> Call:
        """The client's open call; a new one if it has none."""
        found = self.calls[client]
        if found is None:
            options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
            channel = grpc.aio.insecure_channel(self.lines[client].address, options)
            self.channels[client] = channel
            raw = channel.stream_stream(
                "/bptt.v1.LearnerService/Learn",
                request_serializer=pb.LearnRequest.SerializeToString,
                response_deserializer=pb.LearnResponse.FromString,
            )()
            found = self.calls[client] = Call(raw)
            await raw.write(pb.LearnRequest(open=pb.OpenLearn(model_id="m")))
            assert (await found.read()).WhichOneof("message") == "opened"
        return found

    async def hang_up_at(self, client: int) -> None:
        """End the client's call, and wait until the server has freed its streams."""
        call, channel = self.calls[client], self.channels[client]
        if call is None:
            return
        before = self.server.learner.open_calls
        call.raw.cancel()
        await channel.close()
        self.calls[client] = self.channels[client] = None
        self.owned[client].clear()
        await until(lambda: self.server.learner.open_calls < before)

    async def answer(self, call: Call) -> Any:
        """The next answer to a chunk."""
        while True:
            message = await call.read()
            kind = message.WhichOneof("message")
            if kind != "acknowledged":
                return kind, getattr(message, kind)

    # ------------------------------------------------------------------ what clients do

    @rule(client=clients, stream_id=streams, length=lengths, back=st.integers(0, 12),
          ends=st.booleans(), told=st.booleans())  # fmt: skip
    def send(
        self, client: int, stream_id: str, length: int, back: int, ends: bool, told: bool
    ) -> None:
        """Send new steps, repeated ones, or both."""
        first = max(0, self.next_steps[stream_id] - back) if told else self.next_steps[stream_id]
        self.do(self.send_at(client, stream_id, first, length, ends=ends, told=told))

    @rule(client=clients, stream_id=streams, length=lengths, ahead=st.integers(1, 5))
    def leave_a_gap(self, client: int, stream_id: str, length: int, ahead: int) -> None:
        first = self.next_steps[stream_id] + ahead
        self.do(self.send_at(client, stream_id, first, length, ends=False, told=True))

    async def send_at(
        self, client: int, stream_id: str, first: int, length: int, *, ends: bool, told: bool
    ) -> None:
        call, life = await self.call(client), self.lives[stream_id]
        values = [step(stream_id, life, number) for number in range(first, first + length)]
        fields = {"first_step": first} if told else {}
        await call.send(stream_id, values, end_of_sequence=ends, **fields)
        kind, answer = await self.answer(call)
        others = (each for each in range(CLIENTS) if each != client)
        expected = self.next_steps[stream_id]
        if any(stream_id in self.owned[other] for other in others):
            assert kind == "refused"
            assert answer.code == grpc.StatusCode.ABORTED.value[0]
            return
        if first > expected:
            assert kind == "refused"
            assert answer.code == grpc.StatusCode.OUT_OF_RANGE.value[0]
            assert answer.expected_step == expected
            return
        assert kind == "learned", answer
        self.owned[client].add(stream_id)
        new = values[expected - first :]
        assert answer.first_step == expected
        assert answer.next_step == expected + len(new)
        assert len(answer.predictions) == 2 * len(new)
        if new:
            inputs = np.array(new, np.float32)
            self.journal.append(Chunk(stream_id, expected, inputs, None, ends))
            self.next_steps[stream_id] = expected + len(new)
        self.known.add(stream_id)

    @rule(client=clients, stream_id=streams, lengths=st.lists(lengths, min_size=2, max_size=6))
    def send_and_hang_up(self, client: int, stream_id: str, lengths: list[int]) -> None:
        """A client disconnects before its answers: accepted chunks are learned completely."""
        self.do(self.send_and_drop(client, stream_id, lengths))

    async def send_and_drop(self, client: int, stream_id: str, lengths: list[int]) -> None:
        others = (each for each in range(CLIENTS) if each != client)
        if any(stream_id in self.owned[other] for other in others):
            return
        call, life = await self.call(client), self.lives[stream_id]
        before, first = self.server.learner.open_calls, self.next_steps[stream_id]
        chunks = []
        for length in lengths:
            numbers = range(first, first + length)
            values = np.array([step(stream_id, life, number) for number in numbers], np.float32)
            await call.send(stream_id, values, first_step=first)
            chunks.append(Chunk(stream_id, first, values, None, False))
            first += length
        self.lines[client].drop()
        await until(lambda: self.server.learner.open_calls < before)
        await self.channels[client].close()
        self.calls[client] = self.channels[client] = None
        self.owned[client].clear()
        trainer = self.server.registry.get("m")
        accepted = trainer.expected_step(stream_id)
        assert accepted in {
            self.next_steps[stream_id],
            *(c.first_step + len(c.inputs) for c in chunks),
        }
        for chunk in chunks:
            if chunk.first_step < accepted:
                self.journal.append(chunk)
                self.known.add(stream_id)
        self.next_steps[stream_id] = accepted
        if stream_id in self.known:
            await until(lambda: self.at(stream_id) == accepted)

    def at(self, stream_id: str) -> int:
        """The position of a stream in the snapshot; -1 if it does not exist."""
        view = self.server.registry.get("m").views.get(stream_id)
        return -1 if view is None else view.next_step

    @rule(client=clients)
    def hang_up(self, client: int) -> None:
        self.do(self.hang_up_at(client))

    @rule(client=clients)
    def close(self, client: int) -> None:
        """End a call properly."""
        call = self.calls[client]
        if call is not None:
            self.do(call.close())
            self.do(self.channels[client].close())
            self.calls[client] = self.channels[client] = None
            self.owned[client].clear()

    @rule(stream_id=streams)
    def reset(self, stream_id: str) -> None:
        if stream_id in self.known:
            request = pb.ResetStreamRequest(model_id="m", stream_id=stream_id)
            answer: pb.ResetStreamResponse = self.do(
                self.ask(self.server.streams.ResetStream, request)
            )
            assert answer.stream.next_step == self.next_steps[stream_id]
            self.journal.append(("reset", stream_id))

    @rule(stream_id=streams)
    def delete(self, stream_id: str) -> None:
        if stream_id in self.known:
            request = pb.DeleteStreamRequest(model_id="m", stream_id=stream_id)
            self.do(self.ask(self.server.streams.DeleteStream, request))
            self.journal.append(("delete", stream_id))
            self.known.remove(stream_id)
            self.next_steps[stream_id] = 0
            self.lives[stream_id] += 1

    async def ask(self, method: Any, request: Any) -> Any:
        return await method(request)

    # ------------------------------------------------------------------ what must hold

    @invariant()
    def streams_stand_where_they_should(self) -> None:
        if hasattr(self, "server"):
            for stream_id in STREAMS:
                expected = self.next_steps[stream_id] if stream_id in self.known else -1
                assert self.at(stream_id) == expected

    async def check_all(self) -> None:
        """Assert that the server's model equals that of the list."""
        learner = Learner(ModelSpec(**SPEC))
        for each in self.journal:
            if isinstance(each, Chunk):
                learner.apply([each])
            elif each[0] == "reset":
                learner.reset_stream(each[1])
            else:
                learner.delete_stream(each[1])
        trainer = self.server.registry.get("m")
        assert trainer.figures.steps == learner.figures.steps
        assert trainer.figures.updates == learner.figures.updates
        mine, its = learner.snapshot().model, trainer.snapshot.model
        for name, array in its._asdict().items():
            np.testing.assert_array_equal(array, getattr(mine, name), err_msg=name)
        for stream_id in self.known:
            np.testing.assert_array_equal(
                trainer.views[stream_id].state, learner.stream_view(stream_id).state
            )


def test_clients_at_random_are_learned_once_each_and_in_order() -> None:
    run_state_machine_as_test(
        Clients,
        settings=settings(
            max_examples=40,
            stateful_step_count=25,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
