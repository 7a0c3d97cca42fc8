"""Incarnation numbers of streams on the wire, in checkpoints and in replay."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from bptt import v1 as pb
from bptt.domain import ModelDefinition
from bptt.durability import Checkpoint, Command, Record, Tick
from bptt.engine.records import apply_record, make_checkpoint
from bptt_core import Chunk, Learner, ModelSpec
from bptt_core.errors import InvalidArgument
from tests.rpc.harness import failure, Harness, until, wave

SPEC = ModelSpec(input_size=1, hidden_size=2, k1=2, k2=2)
STEPS = np.zeros((3, 1), np.float32)

LIFE: list[Any] = [
    Tick.of([Chunk("a", 0, STEPS), Chunk("b", 0, STEPS)]),
    Command("delete", {"stream_id": "a"}),
    Tick.of([Chunk("b", 3, STEPS), Chunk("a", 0, STEPS)]),
    Command("restore", {"lsn": 1}),
    Tick.of([Chunk("c", 0, STEPS), Chunk("a", 3, STEPS)]),
]


def lived(learner: Learner) -> tuple[Learner, Checkpoint]:
    """The learner after LIFE, and the checkpoint after its first record."""
    definition = ModelDefinition("m", SPEC)
    checkpoint: Checkpoint | None = None

    def load(lsn: int) -> Checkpoint:
        assert lsn == 1
        assert checkpoint is not None
        return checkpoint

    for lsn, body in enumerate(LIFE, start=1):
        learner = apply_record(learner, Record(lsn, body), load).learner
        checkpoint = checkpoint or make_checkpoint(definition, learner, lsn)
    return learner, load(1)


def numbers(learner: Learner) -> dict[str, int]:
    return {each: learner.incarnation(each) for each in learner.stream_ids()}


def test_numbers_are_given_in_order_and_never_twice() -> None:
    learner, _ = lived(Learner(SPEC, backend="reference"))
    assert numbers(learner) == {"a": 1, "b": 2, "c": 4}, "3 was given before the restore"
    assert learner.last_incarnation == 4


def test_a_saved_state_has_the_numbers() -> None:
    learner, _ = lived(Learner(SPEC, backend="reference"))
    again = Learner.from_state(*learner.state(), backend="reference")
    assert numbers(again) == numbers(learner)
    assert again.last_incarnation == 4


def test_a_state_of_an_older_version_is_numbered_by_row() -> None:
    arrays, metadata = lived(Learner(SPEC, backend="reference"))[0].state()
    del arrays["streams.incarnation"], metadata["last_incarnation"]
    again = Learner.from_state(arrays, metadata, backend="reference")
    assert sorted(numbers(again).values()) == [1, 2, 3]
    assert again.last_incarnation == 3


@pytest.mark.parametrize("last", [2, "4", True, None])
def test_a_last_number_that_cannot_be_is_refused(last: Any) -> None:
    arrays, metadata = lived(Learner(SPEC, backend="reference"))[0].state()
    with pytest.raises(InvalidArgument, match="last_incarnation"):
        Learner.from_state(arrays, metadata | {"last_incarnation": last}, backend="reference")


async def test_a_chunk_of_a_deleted_incarnation_is_refused(server: Harness) -> None:
    await server.create()
    call = await server.learn()
    await call.send("s", wave(4))
    assert (await call.learned()).incarnation == 1
    await server.streams.DeleteStream(pb.DeleteStreamRequest(model_id="m", stream_id="s"))
    await call.send("s", wave(4), first_step=0, incarnation=1)
    refused = await call.refused()
    assert (refused.reason, refused.expected_step) == ("STREAM_DELETED", 0)
    await call.send("s", wave(4), first_step=0)
    assert (await call.learned()).incarnation == 2
    await call.send("s", wave(4, 4), first_step=4, incarnation=1)
    assert (await call.refused()).reason == "STREAM_DELETED"
    await call.send("s", wave(4, 4), first_step=4, incarnation=2)
    assert (await call.learned()).next_step == 8
    await call.close()
    assert (await server.model()).steps == 4 + 8


async def test_a_chunk_behind_a_waiting_deletion_is_refused(server: Harness) -> None:
    await server.create()
    call = await server.learn()
    await call.send("s", wave(4))
    await call.learned()
    server.gate.close()
    await call.send("t", wave(4))  # its run waits at the gate, and the deletion behind it
    request = pb.DeleteStreamRequest(model_id="m", stream_id="s")
    deleting = asyncio.ensure_future(server.streams.DeleteStream(request))
    trainer = await server.registry.find("m")
    await until(lambda: trainer.expected_step("s") == 0)
    await call.send("s", wave(4), first_step=0, incarnation=1)
    await call.send("s", wave(4), first_step=0)
    await until(lambda: trainer.expected_step("s") == 4)
    server.gate.open()
    await deleting
    assert (await call.learned()).stream_id == "t"
    assert (await call.refused()).reason == "STREAM_DELETED"
    again = await call.learned()
    assert (again.next_step, again.incarnation) == (4, 3)
    await call.close()


async def test_opening_a_call_returns_the_positions_of_the_named_streams(server: Harness) -> None:
    await server.create()
    call = await server.learn()
    for name in ("a", "b"):
        await call.send(name, wave(4))
        await call.learned()
    raw = server.streams.Learn()
    opening = pb.OpenLearn(model_id="m", stream_ids=["b", "nobody"])
    await raw.write(pb.LearnRequest(open=opening))
    opened = (await raw.read()).opened
    told = [
        (each.stream_id, each.next_step, each.durable_step, each.incarnation)
        for each in opened.streams
    ]
    assert told == [("b", 4, 4, 2)]
    assert opened.last_incarnation == 2
    assert opened.load_id
    raw.cancel()
    await call.close()


async def test_too_many_named_streams_are_refused(server: Harness) -> None:
    await server.create()
    raw = server.streams.Learn()
    opening = pb.OpenLearn(model_id="m", stream_ids=["s"] * 8193)
    await raw.write(pb.LearnRequest(open=opening))
    error = await failure(raw.read())
    assert "stream_ids is 8193 names, but must be at most 8192" in str(error.details())
