"""Source positions: kept with a stream's steps, in answers, checkpoints and replay."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
import pytest

from bptt import v1 as pb
from bptt.engine.joining import groups, join
from bptt.engine.messages import QueuedBatch, Round
from bptt_core import Batch, Chunk, Learner, ModelSpec
from bptt_core.errors import InvalidArgument
from tests.rpc.harness import Harness, wave

SPEC = ModelSpec(input_size=1, hidden_size=2, k1=2, k2=2)
STEPS = np.zeros((3, 1), np.float32)


def source(learner: Learner, stream_id: str) -> tuple[bytes, int]:
    view = learner.stream_view(stream_id)
    return view.source_position, view.source_step


def test_a_stream_keeps_the_last_position_and_its_step() -> None:
    learner = Learner(SPEC, backend="reference")
    learner.apply([Chunk("a", 0, STEPS, source_position=b"one"), Chunk("b", 0, STEPS)])
    learner.apply([Chunk("a", 3, STEPS)])
    assert source(learner, "a") == (b"one", 3)
    assert source(learner, "b") == (b"", 0)
    again = Learner.from_state(*learner.state(), backend="reference")
    assert source(again, "a") == (b"one", 3)
    again.delete_stream("a")
    again.apply([Chunk("a", 0, STEPS)])
    assert source(again, "a") == (b"", 0)


def test_a_position_changes_nothing_that_is_learned() -> None:
    with_it, without = (Learner(SPEC, backend="reference") for _ in range(2))
    with_it.apply([Chunk("a", 0, STEPS + 1, source_position=b"x")])
    without.apply([Chunk("a", 0, STEPS + 1)])
    for name, array in without.state()[0].items():
        np.testing.assert_array_equal(with_it.state()[0][name], array)


@pytest.mark.parametrize("wrong", [{"a": ["zz", 1]}, {"a": 3}, [1], {"a": ["00", None]}])
def test_saved_positions_of_another_form_are_refused(wrong: Any) -> None:
    arrays, metadata = Learner(SPEC, backend="reference").state()
    with pytest.raises(InvalidArgument, match="sources"):
        Learner.from_state(arrays, metadata | {"sources": wrong}, backend="reference")


@pytest.mark.parametrize(
    ("positions", "joined"), [((b"1", b"2"), b"2"), ((b"", b"2"), b"2"), ((b"", b""), b"")]
)
def test_joined_chunks_have_the_position_of_their_end(
    positions: tuple[bytes, bytes], joined: bytes
) -> None:
    (group,) = groups(SPEC, batches(*positions))
    batch = join([each.chunks[0] for each in group])
    assert (batch.source_positions or (b"",)) == (joined,)
    assert len(batch.inputs) == 6


def test_a_chunk_without_a_position_is_not_joined_to_one_that_has_it() -> None:
    assert len(list(groups(SPEC, batches(b"1", b"")))) == 2


def batches(first: bytes, second: bytes) -> list[Round]:
    chunks = [
        Chunk("a", 0, STEPS, source_position=first),
        Chunk("a", 3, STEPS, source_position=second),
    ]
    nobody: Any = None  # no answer is made
    zero = np.zeros(1, np.int64)
    return [
        Round(number, [QueuedBatch(Batch.of([chunk]), zero, zero, nobody, 3, 0)])
        for number, chunk in enumerate(chunks)
    ]


async def told(server: Harness) -> tuple[bytes, int, int]:
    found = await server.streams.GetStream(pb.GetStreamRequest(model_id="m", stream_id="s"))
    return found.stream.source_position, found.stream.source_step, found.stream.next_step


async def test_positions_are_told_and_repeated_steps_do_not_move_them(server: Harness) -> None:
    await server.create()
    call = await server.learn()
    await call.send("s", wave(4), source_position=b"four")
    await call.learned()
    assert await told(server) == (b"four", 4, 4)
    await call.send("s", wave(2), first_step=0, source_position=b"two")
    await call.learned()
    assert await told(server) == (b"four", 4, 4)
    await call.send("s", wave(4, 2), first_step=2, source_position=b"six")
    await call.learned()
    assert await told(server) == (b"six", 6, 6)
    await call.send("s", wave(1))
    await call.learned()
    assert await told(server) == (b"six", 6, 7)
    raw = server.streams.Learn()
    await raw.write(pb.LearnRequest(open=pb.OpenLearn(model_id="m", stream_ids=["s"])))
    (opened,) = (await raw.read()).opened.streams
    assert (opened.source_position, opened.source_step) == (b"six", 6)
    raw.cancel()
    await call.close()
    reset = await server.streams.ResetStream(pb.ResetStreamRequest(model_id="m", stream_id="s"))
    assert reset.stream.source_position == b"six"


async def test_a_position_that_is_too_long_is_refused_by_name(server: Harness) -> None:
    await server.create()
    call = await server.learn()
    await call.send("s", wave(1), source_position=b"x" * 257)
    refused = await call.refused()
    assert (refused.field, refused.value) == ("source_position", "257 bytes")
    assert refused.bound == "at most 256 bytes long"
    assert refused.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    await call.close()


def test_chosen_lanes_of_a_batch_keep_their_positions() -> None:
    chunks = [Chunk("a", 0, STEPS), Chunk("b", 0, STEPS, source_position=b"x")]
    batch = Batch.of(chunks)
    assert batch.source_positions == (b"", b"x")
    assert batch.select(np.array([1])).source_positions == (b"x",)
    assert Batch.of(chunks[:1]).source_positions is None
