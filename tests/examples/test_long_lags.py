"""The long-lag problems in a smaller form: gated cells learn them, a vanilla network does not.

examples/README.md shows the scripts with their full sizes.
"""

from __future__ import annotations

from typing import Any

import adding_problem
import copy_memory
import numpy as np
import pytest
import reber_grammar


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_gated_cell_learns_the_adding_problem(cell: str) -> None:
    outcome = adding_problem.learn(cell, length=100, hidden_size=32, at_most=74_000, seed=0)
    assert outcome.learned_after is not None
    assert outcome.wrong <= 26  # one in a hundred; Hochreiter and Schmidhuber: 1 to 5 of 2,560
    assert outcome.error < adding_problem.ALWAYS_HALF / 50
    assert outcome.after.ratios[-1] > 0.01, "the gradient reaches the first number"


def test_a_vanilla_network_does_not_learn_the_adding_problem_and_its_gradient_shows_why() -> None:
    outcome = adding_problem.learn("rnn_tanh", length=100, hidden_size=16, at_most=10_000, seed=0)
    assert outcome.learned_after is None
    assert outcome.error > adding_problem.ALWAYS_HALF / 2
    assert outcome.before.ratios[-1] < 1e-12
    assert outcome.after.memory_horizon < 50, "shorter than the distance to the first number"


def test_a_gated_cell_beats_the_memoryless_baseline_at_copying() -> None:
    task: dict[str, Any] = {"symbols": 5, "length": 30, "hidden_size": 64, "seed": 1}
    learned = copy_memory.learn("gru", at_most=80_000, **task)
    assert learned.learned_after is not None
    assert learned.share < 0.1
    vanilla = copy_memory.learn("rnn_tanh", at_most=6_000, **task)
    assert vanilla.learned_after is None
    assert vanilla.share > 0.95
    assert vanilla.flow.ratios[-1] < 1e-6 < learned.flow.ratios[-1]


def test_only_a_gated_cell_remembers_a_letter_over_a_string_of_the_grammar() -> None:
    learned = reber_grammar.learn("gru", hidden_size=32, at_most=40_000, seed=0)
    vanilla = reber_grammar.learn("rnn_tanh", hidden_size=32, at_most=8_000, seed=0)
    assert learned.learned_after is not None
    assert learned.last_letters == 1.0
    assert vanilla.learned_after is None
    assert vanilla.last_letters < 0.8
    assert learned.flow.ratios[24] > 100 * vanilla.flow.ratios[24]


def test_generated_strings_follow_the_grammar() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        letters, legal = reber_grammar.string(random)
        assert len(letters) == len(legal)
        assert all(letter in choices for letter, choices in zip(letters, legal, strict=True))
        assert letters[0] == letters[-2]
        assert letters[-1] == reber_grammar.END
        assert letters.count(reber_grammar.END) == 1


def test_copy_sequences_have_symbols_blanks_and_a_signal() -> None:
    heard, wanted = copy_memory.sequences(np.random.default_rng(0), 5, 7, 5)
    assert heard.shape == (17, 5, 10)
    assert (heard.argmax(axis=-1)[:5] == wanted[-5:]).all()
    assert (wanted[:-5] == copy_memory.BLANK).all()
    assert (heard.argmax(axis=-1)[11] == copy_memory.CALL).all()


def test_the_marked_pairs_determine_the_answer() -> None:
    pairs, answer = adding_problem.sequences(np.random.default_rng(0), 40, 44, 50)
    marked = np.where(pairs[:, :, 1] == 1, pairs[:, :, 0], 0).sum(axis=0)
    lost = pairs[0, :, 1] == -1  # the first pair has the mark of the beginning
    assert lost.all()
    assert np.allclose(0.5 + marked / 4, answer)
