"""Chunks with steps and labels in any shape, compared with the core alone.

What the core refuses is refused, with the same field; all else is learned, once, however often it
is sent. In the end both models are the same, bit for bit.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import numpy as np
from hypothesis import given, HealthCheck, settings

from bptt import v1 as pb
from bptt_core import Chunk, Learner, ModelSpec
from bptt_core.errors import InvalidArgument
from tests.rpc.harness import Call, Harness, harness

DELAY = 4
NETWORK: dict[str, Any] = {"input_size": 1, "hidden_size": 3, "k1": 2, "k2": 4}
SPEC: dict[str, Any] = {**NETWORK, "output_size": 1, "label_delay": DELAY}


@dataclass(frozen=True)
class Sent:
    """One chunk whose labels begin a number of steps before or after its first step."""

    stream: str
    steps: int
    labels: int
    offset: int
    missing: int
    ends: bool
    again: int
    """How often it is sent once more."""


chunks = st.builds(
    Sent,
    stream=st.sampled_from("ab"),
    steps=st.integers(0, 6),
    labels=st.integers(0, 6),
    offset=st.integers(-DELAY - 2, 3),
    missing=st.integers(0, 63),
    ends=st.sampled_from([False, False, False, True]),
    again=st.sampled_from([0, 0, 1, 2]),
)


def values(stream: str, first: int, count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    t = np.arange(first, first + count, dtype=np.float32)[:, np.newaxis]
    return np.asarray(np.sin(t / (3 if stream == "a" else 5)), np.float32)


class Pair:
    """The server's model, and a learner that receives the same chunks."""

    def __init__(self, server: Harness, call: Call) -> None:
        self.server = server
        self.call = call
        self.learner = Learner(ModelSpec(task="regression", **SPEC))
        self.next_step = {"a": 0, "b": 0}

    async def send(self, sent: Sent) -> None:
        first = self.next_step[sent.stream]
        labelled = first + sent.offset
        inputs = values(sent.stream, first, sent.steps)
        targets = values(sent.stream, labelled, sent.labels) * 2 if sent.labels else None
        if targets is not None:
            targets[[bool(sent.missing >> i & 1) for i in range(sent.labels)]] = np.nan
        place = labelled if targets is not None else None
        told = Chunk(sent.stream, first, inputs, targets, sent.ends, place)
        if labelled < 0 and targets is not None:  # the wire format cannot express this
            return
        refused = self._refused(told)
        await self._write(told)
        answer = await self.call.read()
        if refused is not None:
            assert answer.WhichOneof("message") == "refused", (told, refused)
            assert answer.refused.field == refused
            assert answer.refused.expected_step == first
            return
        assert answer.WhichOneof("message") == "learned", (told, answer)
        self.next_step[sent.stream] = first + sent.steps
        # Of labels by themselves only those of a sequence that has ended meanwhile are refused.
        over = sent.ends and not sent.steps and sent.labels > 0
        for _ in range(sent.again):
            await self._write(told)
            if over:
                assert (await self.call.refused()).field == "first_target_step"
                continue
            repeated = await self.call.learned()
            assert (repeated.first_step, repeated.next_step) == (first + sent.steps,) * 2

    def _refused(self, chunk: Chunk) -> str | None:
        """The field that the core refuses; None if it has learned the chunk."""
        try:
            self.learner.apply([chunk])
        except InvalidArgument as error:
            return error.field
        return None

    async def _write(self, chunk: Chunk) -> None:
        message = pb.Chunk(
            stream_id=chunk.stream_id,
            first_step=chunk.first_step,
            inputs=chunk.inputs.ravel().tolist(),
            targets=[] if chunk.targets is None else chunk.targets.ravel().tolist(),
            end_of_sequence=chunk.end_of_sequence,
            first_target_step=chunk.first_target_step,
        )
        await self.call.raw.write(pb.LearnRequest(chunk=message))

    def check(self) -> None:
        mine = self.server.registry.get("m").snapshot.model.parameters
        np.testing.assert_array_equal(mine, self.learner.snapshot().model.parameters)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(chunks, min_size=5, max_size=40))
def test_labels_in_any_shape_are_learned_as_the_core_learns_them(plan: list[Sent]) -> None:
    async def play() -> int:
        async with harness() as server:
            await server.create(task=pb.TASK_REGRESSION, **SPEC)
            pair = Pair(server, await server.learn())
            for sent in plan:
                await pair.send(sent)
            pair.check()
            steps = (await server.model()).steps
            await pair.call.close()
            return steps - sum(pair.next_step.values())

    assert asyncio.run(play()) == 0
