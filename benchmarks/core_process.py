"""The core's side of the comparison: reads cases, prints microseconds a step and stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.cases import answer, Case, CLIP, INPUT_SIZE, LEARNING_RATE, OUTPUT_SIZE
from bptt_core import Learner, ModelSpec

CALL_WINDOWS = 8  # windows in a call of `feed`; a client's chunk contains several too


def build(case: Case) -> Callable[[int], None]:
    """Create a learner and a function that feeds it windows."""
    task: dict[str, Any] = {
        "task": "regression",
        "input_size": INPUT_SIZE,
        "output_size": OUTPUT_SIZE,
    }
    if case.vocabulary:
        task = {"task": "next_token", "vocabulary_size": case.vocabulary}
    spec = ModelSpec(
        **task,
        cell=case.cell,
        hidden_size=case.hidden_size,
        k1=case.k,
        k2=case.k,
        optimizer="sgd",
        learning_rate=LEARNING_RATE,
        clip="norm",
        clip_threshold=CLIP,
        scaling=False,
        max_batch_streams=case.streams,
    )
    learner = Learner(spec, backend=case.backend)  # type: ignore[arg-type]
    random = np.random.default_rng(0)
    shape = (CALL_WINDOWS * case.k, case.streams)
    if case.vocabulary:
        tokens = random.integers(0, case.vocabulary, shape)

        def learn_tokens(windows: int) -> None:
            while windows > 0:
                learner.feed(tokens[: min(windows, CALL_WINDOWS) * case.k], predictions=False)
                windows -= CALL_WINDOWS

        return learn_tokens
    x = random.normal(size=(*shape, INPUT_SIZE)).astype(np.float32)
    y = random.normal(size=(*shape, OUTPUT_SIZE)).astype(np.float32)

    def learn(windows: int) -> None:
        while windows > 0:
            steps = min(windows, CALL_WINDOWS) * case.k
            learner.feed(x[:steps], y[:steps], predictions=False)
            windows -= CALL_WINDOWS

    return learn


if __name__ == "__main__":
    answer(build)
