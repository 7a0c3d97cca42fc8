"""The character model in a smaller form; the comparison with PyTorch needs PyTorch."""

from __future__ import annotations

import numpy as np

from benchmarks import characters
from benchmarks.characters_core import new_learner, read
from benchmarks.characters_process import Settings

QUARTER = 5_000


def test_bits_a_character_decrease_over_source_text() -> None:
    text = np.frombuffer(characters.source_text(4 * QUARTER + 1), np.uint8).astype(np.int64)
    learner = new_learner(Settings("rnn_tanh", hidden_size=128, learning_rate=0.003))
    bits = [
        read(learner, text[first : first + QUARTER + 1]) / QUARTER
        for first in range(0, 4 * QUARTER, QUARTER)
    ]
    assert 4.5 < bits[0] < 8  # without any knowledge, each of 256 byte values costs 8 bits
    assert bits[-1] < 4.5
    assert bits[-1] < bits[0] - 0.5


def test_bits_equal_the_learners_losses() -> None:
    settings = Settings("rnn_tanh", hidden_size=32)
    windows = 40
    text = np.frombuffer(characters.source_text(windows * settings.k + 1), np.uint8)
    ids = text.astype(np.int64)
    by_prediction = read(new_learner(settings), ids)
    # If k1 = k2, a window's loss is the loss of the predictions made before learning it.
    updates = new_learner(settings).feed(ids[:, np.newaxis], predictions=False).updates
    by_loss = settings.k * sum(update.loss for update in updates) / np.log(2)
    assert len(updates) == windows
    np.testing.assert_allclose(by_prediction, by_loss, 1e-4)
