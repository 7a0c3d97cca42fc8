"""The same steps as chunks to one model and as batches to another, at random, compared to the bit.

Each round sends every stream at most one chunk: next steps, repeated steps, gaps, values that are
not finite, late labels, labels alone, ends of sequences. The trainers are held while a round
arrives, so the chunks of a round are one tick, as the batch is. In between, streams are reset and
deleted. Answers must be equal lane by lane, and the models must be equal bit for bit.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    initialize,
    invariant,
    rule,
    RuleBasedStateMachine,
    run_state_machine_as_test,
)

from bptt import v1 as pb
from bptt.engine import worker
from bptt.engine.flow import FlowWatch
from tests.rpc.harness import Call, Harness, harness, small, until
from tests.support.metrics import families

STREAMS = ("a", "b", "c", "d")
DELAY = 3
SPECS: dict[str, dict[str, Any]] = {
    "forecast": {"missing_inputs": True},
    "labels": {"task": pb.TASK_REGRESSION, "output_size": 1, "label_delay": DELAY},
    "classes": {"task": pb.TASK_CLASSIFICATION, "output_size": 3},
}

T = TypeVar("T")


@dataclass(frozen=True)
class Sent:
    """What one stream gets in a round. Places are relative to what the stream has."""

    stream: int
    length: int
    back: int
    """Steps before the stream's next one; below 0: a gap."""
    told: bool
    ends: bool
    bad: bool
    labels: int
    label_back: int
    label_told: bool


rounds = st.lists(
    st.builds(
        Sent,
        st.integers(0, len(STREAMS) - 1),
        st.integers(0, 5),
        st.sampled_from([0, 0, 0, 1, 2, 7, -1, -3]),
        st.booleans(),
        st.sampled_from([False, False, False, True]),
        st.sampled_from([False, False, False, False, True]),
        st.integers(0, 4),
        st.integers(-1, DELAY + 1),
        st.booleans(),
    ),
    min_size=1,
    max_size=len(STREAMS),
    unique_by=lambda each: each.stream,
)


class Both(RuleBasedStateMachine):
    """Two models of one spec; subclasses name it."""

    name: str
    spec: dict[str, Any]

    @initialize()
    def begin(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.stack = contextlib.AsyncExitStack()
        self.do(self.start())

    async def start(self) -> None:
        self.server: Harness = await self.stack.enter_async_context(harness())
        for model_id in ("chunks", "batches"):
            request = pb.CreateModelRequest(model_id=model_id, spec=small(**self.spec))
            await self.server.models.CreateModel(request)
        self.chunks: Call = await self.server.learn("chunks")
        self.batches: Call = await self.server.learn("batches")
        await self.batches.raw.write(pb.LearnRequest(lanes=pb.Lanes(stream_ids=STREAMS)))
        assert (await self.batches.read()).WhichOneof("message") == "introduced"
        self.marks = 0

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(work, 60))

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.do(self.stack.aclose())
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()

    # ------------------------------------------------------------------ rounds

    @rule(sent=rounds)
    def send(self, sent: list[Sent]) -> None:
        self.do(self.send_both(sent))

    async def send_both(self, sent: list[Sent]) -> None:
        told = sent[0].told  # a column has no gaps
        made = [self.chunk(each, told=told) for each in sent]
        await self.hold()
        before = self.received()
        for chunk in made:
            await self.chunks.raw.write(pb.LearnRequest(chunk=chunk))
        lanes = [each.stream for each in sent]
        await self.batches.raw.write(pb.LearnRequest(batch=self.batch(lanes, made)))
        # Once a message is read, the one before it is in the queue, or refused.
        self.marks += 1
        mark = pb.Lanes(first_lane=len(STREAMS) + self.marks, stream_ids=[f"mark {self.marks}"])
        for call in (self.chunks, self.batches):
            await call.raw.write(pb.LearnRequest(lanes=mark))
        await until(lambda: self.received() == before + len(made) + 3)
        self.server.gate.open()
        for call in (self.chunks, self.batches):
            await call.learned()  # of the plugs
        answers = [await self.chunks.read() for _ in made]
        together = (await self.batches.read()).batch
        for call in (self.chunks, self.batches):
            assert (await call.read()).WhichOneof("message") == "introduced"
        self.compare(made, answers, together)

    async def hold(self) -> None:
        """Close the gate with one run of each model behind it, so that later chunks wait."""
        self.server.gate.close()
        before = self.server.gate.held
        for call in (self.chunks, self.batches):
            chunk = pb.Chunk(stream_id="plug", inputs=[0.0, 1.0], **self.label_fields(1, None))
            await call.raw.write(pb.LearnRequest(chunk=chunk))
        await until(lambda: self.server.gate.held == before + 2)

    def received(self) -> float:
        """Messages that the server has read in Learn calls."""
        found = families(self.server.metrics)["grpc_server_msg_received"]
        values = [each.value for each in found.samples if each.labels.get("grpc_method") == "Learn"]
        return float(values[0])

    # ------------------------------------------------------------------ messages

    def chunk(self, sent: Sent, *, told: bool) -> pb.Chunk:
        stream_id = STREAMS[sent.stream]
        expected = self.server.registry.get("chunks").expected_step(stream_id)
        first = max(0, expected - sent.back) if told else expected
        length = sent.length
        if "label_delay" not in self.spec:
            length = max(1, length)
        steps = np.arange(first, first + length)[:, None]
        values = np.sin(steps / [3.0, 7.0] + sent.stream).astype(np.float32)
        if sent.bad and length:
            values[length // 2, 0] = np.inf
        fields: dict[str, Any] = {"first_step": first} if told else {}
        if "label_delay" in self.spec:
            if sent.labels:
                place = max(0, first - sent.label_back) if sent.label_told else None
                fields |= self.label_fields(sent.labels, place)
        else:
            fields |= self.label_fields(length, None)
        return pb.Chunk(
            stream_id=stream_id,
            inputs=values.ravel().tolist(),
            end_of_sequence=sent.ends,
            **fields,
        )

    def label_fields(self, count: int, first: int | None) -> dict[str, Any]:
        place = {} if first is None else {"first_target_step": first}
        if self.spec.get("task") == pb.TASK_REGRESSION:
            return {"targets": np.arange(count, dtype=float).tolist()} | place
        if self.spec.get("task") == pb.TASK_CLASSIFICATION:
            return {"target_classes": [each % 3 for each in range(count)]} | place
        return {}

    def batch(self, lanes: list[int], made: list[pb.Chunk]) -> pb.ChunkBatch:
        """The chunks as columns."""
        batch = pb.ChunkBatch(lanes=lanes, tell_members=True)
        for chunk in made:
            expected = self.server.registry.get("batches").expected_step(chunk.stream_id)
            first = chunk.first_step if chunk.HasField("first_step") else expected
            if chunk.HasField("first_step"):
                batch.first_steps.append(first)
            batch.steps.append(len(chunk.inputs) // 2)
            batch.inputs.extend(chunk.inputs)
            batch.targets.extend(chunk.targets)
            batch.target_classes.extend(chunk.target_classes)
            batch.ends_of_sequence.append(chunk.end_of_sequence)
            if "label_delay" in self.spec:
                batch.target_steps.append(len(chunk.targets))
                told = chunk.HasField("first_target_step")
                batch.first_target_steps.append(chunk.first_target_step if told else first)
        return batch

    # ------------------------------------------------------------------ answers

    def compare(
        self, made: list[pb.Chunk], answers: list[pb.LearnResponse], together: pb.BatchLearned
    ) -> None:
        refusals = {each.place: each for each in together.refusals}
        width = {"classes": 3, "labels": 1}.get(self.name, 2)
        at = scored = 0
        members = list(zip(together.member_updates, together.member_places, strict=True))
        for place, (chunk, answer) in enumerate(zip(made, answers, strict=True)):
            kind = answer.WhichOneof("message")
            assert (kind == "refused") == (place in refusals), (chunk, answer, together)
            if kind == "refused":
                refused, twin = answer.refused, refusals[place]
                for field in ("stream_id", "code", "message", "field", "value", "bound", "reason"):
                    assert getattr(refused, field) == getattr(twin, field), field
                assert refused.expected_step == twin.expected_step
                continue
            learned = answer.learned
            assert learned.first_step == together.first_steps[place]
            assert learned.next_step == together.next_steps[place]
            assert learned.incarnation == together.incarnations[place]
            rows = learned.next_step - learned.first_step
            predictions = together.predictions[at : at + rows * width]
            np.testing.assert_array_equal(learned.predictions, predictions)
            at += rows * width
            scores = together.anomaly_scores[scored : scored + len(learned.anomaly_scores)]
            np.testing.assert_array_equal(learned.anomaly_scores, scores)
            scored += len(learned.anomaly_scores)
            mine = [together.updates[update] for update, lane in members if lane == place]
            assert [str(each) for each in learned.updates] == [str(each) for each in mine]
        assert at == len(together.predictions)
        assert scored == len(together.anomaly_scores)

    @rule(stream=st.sampled_from(STREAMS), delete=st.booleans())
    def reset_or_delete(self, stream: str, delete: bool) -> None:
        self.do(self.change(stream, delete=delete))

    async def change(self, stream: str, *, delete: bool) -> None:
        if stream not in self.server.registry.get("chunks").views:
            return
        for model_id in ("chunks", "batches"):
            if delete:
                gone = pb.DeleteStreamRequest(model_id=model_id, stream_id=stream)
                await self.server.streams.DeleteStream(gone)
            else:
                anew = pb.ResetStreamRequest(model_id=model_id, stream_id=stream)
                await self.server.streams.ResetStream(anew)

    @invariant()
    def models_are_equal(self) -> None:
        if not hasattr(self, "server"):
            return
        one, other = (self.server.registry.get(each) for each in ("chunks", "batches"))
        assert sorted(one.views) == sorted(other.views)
        for name in one.views:
            mine, twin = one.views[name], other.views[name]
            assert (mine.next_step, mine.sequence_step) == (twin.next_step, twin.sequence_step)
            assert mine.incarnation == twin.incarnation
            np.testing.assert_array_equal(mine.state, twin.state)
        for left, right in zip(one.snapshot.model, other.snapshot.model, strict=True):
            np.testing.assert_array_equal(left, right)
        assert one.status.figures.steps == other.status.figures.steps
        assert one.status.figures.updates == other.status.figures.updates


@pytest.mark.parametrize("name", SPECS)
def test_batches_mean_what_their_chunks_mean(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "INLINE_SECONDS", -1.0)  # every run passes the gate,
    monkeypatch.setattr(FlowWatch, "is_due", lambda self, outcome: False)  # and nothing else does
    machine = type("Machine", (Both,), {"spec": SPECS[name], "name": name})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=25,
            stateful_step_count=20,
            deadline=None,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        ),
    )
