"""Late labels in the engine: of new steps, of earlier steps, and repeated."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from bptt.config import ServerConfig
from bptt.domain import LaneRefused, ModelDefinition
from bptt.engine.responses import ResponseQueue
from bptt.engine.trainer import Trainer
from bptt.errors import ServerStopping
from bptt.observability.metrics import Metrics
from bptt_core import Chunk, ChunkResult, Learner, ModelSpec
from tests.core.support import assert_same_memory
from tests.engine.support import message, of_one_lane

SPEC = ModelSpec(
    task="regression", input_size=1, output_size=1, hidden_size=4, k1=2, k2=4, label_delay=3
)
X = np.sin(np.arange(20.0, dtype=np.float32)).reshape(-1, 1)
NONE = X[:0]


async def sent(*chunks: tuple[int | None, Any, Any, int | None, bool]) -> tuple[Learner, list[Any]]:
    """A learner after chunks: first step, inputs, labels, their first step, end."""
    learner, responses = Learner(SPEC, backend="reference"), ResponseQueue(1000, 1 << 20)
    answers: list[Any] = []
    with ThreadPoolExecutor(1) as executor:
        trainer = Trainer(
            ModelDefinition("m", SPEC),
            learner,
            executor=executor,
            store=None,
            sink=Metrics(),
            config=ServerConfig(),
        )
        trainer.start()
        for first, inputs, labels, labelled, ends in chunks:
            incoming = message("s", first, inputs, labels, ends, labelled)
            trainer.accept(incoming, responses.pending(0))
            answers.append(of_one_lane(await responses.next()))
        await trainer.stop(refusal=ServerStopping(), save=False)
    return learner, answers


def expected(*chunks: Chunk) -> Learner:
    learner = Learner(SPEC, backend="reference")
    for chunk in chunks:
        learner.apply([chunk])
    return learner


async def test_labels_of_earlier_steps_arrive_with_and_without_steps() -> None:
    learner, answers = await sent(
        (None, X[:4], None, None, False),
        (None, X[4:8], X[2:6], 2, False),
        (None, NONE, X[6:8], 6, False),
        (None, X[8:9], X[8:9], None, False),
        (None, NONE, None, None, True),
    )
    assert all(isinstance(answer, ChunkResult) for answer in answers)
    ref = expected(
        Chunk("s", 0, X[:4]),
        Chunk("s", 4, X[4:8], X[2:6], False, 2),
        Chunk("s", 8, NONE, X[6:8], False, 6),
        Chunk("s", 8, X[8:9], X[8:9]),
        Chunk("s", 9, NONE, None, True),
    )
    assert ref.figures.updates == 4
    assert_same_memory(learner, ref, 0)


async def test_repeated_chunks_are_learned_once() -> None:
    """Labels before the delay window are dropped from a partly repeated chunk."""
    learner, answers = await sent(
        (0, X[:4], None, None, False),
        (4, X[4:8], X[2:6], 2, False),
        (4, X[4:8], X[2:6] + 9, 2, False),  # all repeated
        (4, X[4:12], X[2:12], 2, False),  # the last four are new
        (8, NONE, X[8:10], None, False),  # without steps: labels of 8, which is too late, and 9
        (8, NONE, X[9:11], 9, False),
        (8, X[8:12], None, None, True),  # all repeated: it does not end the sequence again
    )
    late = answers.pop(4)
    assert isinstance(late, LaneRefused)
    assert "first_target_step is 8, but must be at least 9" in late.error.message
    assert [type(answer) for answer in answers] == [ChunkResult] * 6
    assert [answer.next_step for answer in answers] == [4, 8, 8, 12, 12, 12]
    ref = expected(
        Chunk("s", 0, X[:4]),
        Chunk("s", 4, X[4:8], X[2:6], False, 2),
        Chunk("s", 8, X[8:12], X[5:12], False, 5),
        Chunk("s", 12, NONE, X[9:11], False, 9),
    )
    assert_same_memory(learner, ref, 0)


async def test_a_label_that_comes_too_late_or_too_early_is_refused_by_name() -> None:
    learner, answers = await sent(
        (0, X[:8], None, None, False),
        (8, NONE, X[4:6], 4, False),
        (8, X[8:9], X[8:10], 8, False),
        (8, NONE, X[5:6], 5, False),
    )
    late, early = answers[1:3]
    for refused, bound in [(late, "at least 5"), (early, "at most 7")]:
        assert isinstance(refused, LaneRefused)
        assert refused.error.reason == "targets"
        assert "first_target_step" in refused.error.message
        assert bound in refused.error.message
        assert refused.expected_step == 8
    ref = expected(Chunk("s", 0, X[:8]), Chunk("s", 8, NONE, X[5:6], False, 5))
    assert_same_memory(learner, ref, 0)
