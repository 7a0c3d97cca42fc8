"""Late labels over the wire: with steps, alone, sent again, too late, and too early."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from bptt import v1 as pb
from bptt.durability import SqliteStore
from bptt_core import Chunk, Learner, ModelSpec
from tests.rpc.harness import Call, Harness, harness, until, wave
from tests.support.metrics import above_zero
from tests.support.stores import FailingStore

DELAY = 3
X = wave(40)
Y = X[:, :1] * 2
CLASSES = np.arange(40) % 3
NETWORK: dict[str, Any] = {"input_size": 2, "hidden_size": 4, "k1": 2, "k2": 4}


async def regression(server: Harness) -> Learner:
    spec: dict[str, Any] = {"output_size": 1, "label_delay": DELAY}
    await server.create(task=pb.TASK_REGRESSION, **spec)
    return Learner(ModelSpec(task="regression", **NETWORK, **spec))


async def send(
    call: Call,
    inputs: tuple[int, int],
    labels: tuple[int, int] | None = None,
    **fields: Any,
) -> None:
    """Send steps and labels, each from one step up to another; labels name their first step."""
    if labels is not None:
        fields["targets"] = Y[slice(*labels)].ravel().tolist()
        fields.setdefault("first_target_step", labels[0])
    await call.send("s", X[slice(*inputs)], **fields)


def same(server: Harness, learner: Learner) -> bool:
    """True if both models have the same parameters bit for bit."""
    mine = server.registry.get("m").snapshot.model.parameters
    return bool(np.array_equal(mine, learner.snapshot().model.parameters))


async def test_labels_come_with_later_steps_and_by_themselves(server: Harness) -> None:
    learner = await regression(server)
    call = await server.learn()
    await send(call, (0, 5))
    await send(call, (5, 10), (2, 7))
    await send(call, (10, 10), (7, 10))
    await send(call, (10, 12), (10, 12), first_target_step=None)
    answers = [await call.learned() for _ in range(4)]
    assert [(each.first_step, each.next_step) for each in answers] == [
        (0, 5), (5, 10), (10, 10), (10, 12),
    ]  # fmt: skip
    assert not answers[2].predictions
    expected = [
        learner.apply([chunk]).chunks[0]
        for chunk in (
            Chunk("s", 0, X[:5]),
            Chunk("s", 5, X[5:10], Y[2:7], False, 2),
            Chunk("s", 10, X[:0], Y[7:10], False, 7),
            Chunk("s", 10, X[10:12], Y[10:12]),
        )
    ]
    for mine, theirs in zip(answers, expected, strict=True):
        assert [each.loss for each in mine.updates] == [each.loss for each in theirs.updates]
    assert learner.figures.updates > 0
    assert same(server, learner)
    await call.close()


async def test_classes_come_late_too_and_minus_one_erases_none(server: Harness) -> None:
    spec: dict[str, Any] = {"output_size": 3, "label_delay": DELAY}
    await server.create(task=pb.TASK_CLASSIFICATION, **spec)
    learner = Learner(ModelSpec(task="classification", **NETWORK, **spec))
    call = await server.learn()
    partly = [0, -1, 2, -1]
    await call.send("s", X[:4], target_classes=partly)
    await call.send("s", X[4:8], target_classes=[-1, 1, -1, -1], first_target_step=2)
    for _ in range(2):
        await call.learned()
    learner.apply([Chunk("s", 0, X[:4], np.array(partly))])
    learner.apply([Chunk("s", 4, X[4:8], np.array([-1, 1, -1, -1]), False, 2)])
    assert same(server, learner)
    await call.close()


REFUSED: list[tuple[str, tuple[int, int], tuple[int, int], dict[str, Any], str, str]] = [
    ("too late", (10, 12), (6, 8), {}, "6", "at least 7"),
    ("too late by itself", (10, 10), (6, 8), {}, "6", "at least 7"),
    ("too late in its own place", (10, 12), (6, 8), {"first_step": 10}, "6", "at least 7"),
    ("of a step that has not come", (10, 12), (11, 13), {}, "11", "at most 10"),
    ("the same by itself", (10, 10), (8, 11), {}, "8", "at most 7"),
    ("the same in its place", (10, 12), (11, 13), {"first_step": 10}, "11", "at most 10"),
    ("of a step far ahead", (10, 10), (30, 31), {}, "30", "at most 9"),
]


@pytest.mark.parametrize(
    ("inputs", "labels", "fields", "value", "bound"),
    [each[1:] for each in REFUSED],
    ids=[each[0] for each in REFUSED],
)
async def test_labels_out_of_their_time_are_refused_by_name(
    server: Harness,
    inputs: tuple[int, int],
    labels: tuple[int, int],
    fields: dict[str, Any],
    value: str,
    bound: str,
) -> None:
    learner = await regression(server)
    call = await server.learn()
    await send(call, (0, 10))
    await call.learned()
    await send(call, inputs, labels, **fields)
    refused = await call.refused()
    assert refused.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert (refused.field, refused.value) == ("first_target_step", value)
    assert refused.bound.startswith(bound)
    assert refused.expected_step == 10
    # Nothing was changed, and the call goes on with what is right.
    await send(call, (10, 12), (7, 12))
    assert (await call.learned()).next_step == 12
    learner.apply([Chunk("s", 0, X[:10])])
    learner.apply([Chunk("s", 10, X[10:12], Y[7:12], False, 7)])
    assert same(server, learner)
    assert above_zero(server.metrics, "bptt_rejected_chunks", "reason") == {"targets": 1}
    await call.close()


@pytest.mark.parametrize("first_step", [None, 4])
async def test_labels_of_a_sequence_that_has_ended_come_too_late(
    server: Harness, first_step: int | None
) -> None:
    await regression(server)
    call = await server.learn()
    await send(call, (0, 4), (0, 4), end_of_sequence=True)
    await call.learned()
    await send(call, (4, 4), (3, 4), first_step=first_step)
    refused = await call.refused()
    assert (refused.field, refused.value) == ("first_target_step", "3")
    assert refused.bound == "at least 4: older labels come too late"
    await call.close()


async def test_a_sequence_ends_with_its_last_labels_or_without_any(server: Harness) -> None:
    learner = await regression(server)
    call = await server.learn()
    await send(call, (0, 5), (0, 3))
    await send(call, (5, 5), (3, 5), end_of_sequence=True)
    await send(call, (5, 9), (5, 9))
    await send(call, (9, 9), end_of_sequence=True)
    assert [(await call.learned()).next_step for _ in range(4)] == [5, 5, 9, 9]
    for chunk in (
        Chunk("s", 0, X[:5], Y[:3], False, 0),
        Chunk("s", 5, X[:0], Y[3:5], True, 3),
        Chunk("s", 5, X[5:9], Y[5:9]),
        Chunk("s", 9, X[:0], None, True),
    ):
        learner.apply([chunk])
    assert same(server, learner)
    await call.close()


async def test_chunks_with_labels_are_learned_once_however_often_they_are_sent(
    server: Harness,
) -> None:
    learner = await regression(server)
    call = await server.learn()
    chunks: list[tuple[tuple[int, int], tuple[int, int]]] = [
        ((0, 6), (0, 4)), ((6, 12), (4, 10)), ((12, 12), (10, 12)), ((12, 18), (12, 18)),
    ]  # fmt: skip
    for place, (inputs, labels) in enumerate(chunks):
        first_step = inputs[0]
        for _ in range(3):
            await send(call, inputs, labels, first_step=first_step)
            answer = await call.learned()
            assert answer.next_step == inputs[1]
        if place:  # and the one before it once more
            inputs, labels = chunks[place - 1]
            await send(call, inputs, labels, first_step=inputs[0])
            answer = await call.read()
            # Labels alone do not show that they are repeated; they are too late by now.
            alone = inputs[0] == inputs[1]
            assert answer.WhichOneof("message") == ("refused" if alone else "learned")
    for inputs, labels in chunks:
        learner.apply(
            [Chunk("s", inputs[0], X[slice(*inputs)], Y[slice(*labels)], False, labels[0])]
        )
    assert same(server, learner)
    assert (await server.model()).steps == 18
    await call.close()


async def test_known_steps_that_come_again_with_an_end_of_sequence_end_nothing(
    server: Harness,
) -> None:
    """Repeated steps do not change whether their sequence has ended."""
    await server.create()
    learner = Learner(ModelSpec(**NETWORK))
    call = await server.learn()
    await call.send("s", X[:6], first_step=0)
    await call.send("s", X[:6], first_step=0, end_of_sequence=True)
    await call.send("s", X[6:13], first_step=6, end_of_sequence=True)
    await call.send("s", X[6:13], first_step=6, end_of_sequence=True)
    await call.send("s", X[10:18], first_step=10, end_of_sequence=True)  # new in part: it ends
    await call.send("s", X[18:30], first_step=18)
    ends = [(await call.learned()).next_step for _ in range(6)]
    assert ends == [6, 6, 13, 13, 18, 30]
    learner.apply([Chunk("s", 0, X[:6])])
    learner.apply([Chunk("s", 6, X[6:13], None, True)])
    learner.apply([Chunk("s", 13, X[13:18], None, True)])
    learner.apply([Chunk("s", 18, X[18:30])])
    assert same(server, learner)
    await call.close()


@pytest.mark.parametrize(
    ("fields", "field", "value", "bound"),
    [
        ({}, "inputs", "empty", "a multiple of input_size, 2, and at least one step"),
        ({"targets": [math.inf]}, "targets", "inf in step 0, column 0", "NaN for what is missing"),
        ({"first_target_step": 3}, "inputs", "empty", "at least one step"),
    ],
)
async def test_chunks_without_steps_are_checked_too(
    server: Harness, fields: dict[str, Any], field: str, value: str, bound: str
) -> None:
    await regression(server)
    call = await server.learn()
    await call.send("s", X[:4])
    await call.learned()
    await call.send("s", X[:0], **fields)
    refused = await call.refused()
    assert (refused.field, refused.value) == (field, value)
    assert bound in refused.bound
    await call.close()


async def test_labels_alone_are_for_models_with_a_label_delay(server: Harness) -> None:
    await server.create(task=pb.TASK_REGRESSION, output_size=1)
    call = await server.learn()
    await call.send("s", X[:0], targets=[1.0])
    assert (await call.refused()).field == "inputs"
    await call.send("s", X[:2], targets=[1.0, 2.0], first_target_step=0, first_step=0)
    assert (await call.learned()).next_step == 2
    await call.close()


async def test_labels_by_themselves_are_answered_once_they_are_durable(tmp_path: Path) -> None:
    """No step shows their durability, and a session drops labels that are answered."""
    store = FailingStore(SqliteStore(tmp_path), at="append", times=None)
    store.failing = False
    store.open()
    async with harness(store=store) as server:
        learner = await regression(server)
        call = await server.learn()
        await send(call, (0, 5))
        await call.learned()
        trainer = server.registry.get("m")
        await trainer.durable()
        store.failing = True
        tried = store.calls["append"]
        await send(call, (5, 5), (3, 5))
        answer = asyncio.create_task(call.learned())
        await until(lambda: store.calls["append"] >= tried + 2)
        assert trainer.lsn == 2, "they are applied"
        assert not answer.done()
        store.failing = False
        assert (await answer).durable_step == 5
        learner.apply([Chunk("s", 0, X[:5])])
        learner.apply([Chunk("s", 5, X[:0], Y[3:5], False, 3)])
        assert same(server, learner)
        await call.close()
    store.close()
