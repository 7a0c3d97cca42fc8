"""The core's side of the character model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.characters_process import answer, Array, Settings, VOCABULARY, weights
from bptt_core import Learner, ModelSpec

CALL_CHARACTERS = 4096  # in one call of `feed`; their probabilities take 8 MB


def new_learner(settings: Settings) -> Learner:
    """Create a learner of one stream of bytes, with PyTorch's uniform initial weights, seed 0."""
    return Learner(
        ModelSpec(
            task="next_token",
            vocabulary_size=VOCABULARY,
            cell=settings.cell,
            hidden_size=settings.hidden_size,
            k1=settings.k,
            k2=settings.k,
            optimizer="adam",
            learning_rate=settings.learning_rate,
            clip="norm",
            clip_threshold=settings.clip_threshold,
            max_batch_streams=1,
        )
    )


def read(learner: Learner, stretch: Array) -> float:
    """Learn the first n of n + 1 characters; return the bits of the n next-character predictions.

    The predictions are the learner's own answers, made before it read the predicted character.
    """
    bits = 0.0
    for first in range(0, len(stretch) - 1, CALL_CHARACTERS):
        ids = stretch[first : first + CALL_CHARACTERS + 1]
        made = learner.feed(ids[:-1, np.newaxis]).predictions
        assert made is not None
        bits -= float(np.log2(made[np.arange(len(ids) - 1), 0, ids[1:]]).sum())
    return bits


def build(settings: Settings, folder: Path) -> Callable[[Array], float]:
    """Create a learner with the given weights."""
    learner = new_learner(settings)
    learner.load_parameters(weights(folder))
    learner.warm_up()

    def learn(stretch: Array) -> float:
        return read(learner, stretch)

    return learn


if __name__ == "__main__":
    answer(build)
