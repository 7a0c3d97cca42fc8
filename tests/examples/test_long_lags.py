"""The long-lag problems in a smaller form: gated cells learn them, a vanilla network does not.

All figures are medians over three seeds. The comments give the range of single seeds, from 7 seeds
with the kernels and BLAS of each of two processors (Intel with AVX-512, Nehalem).
examples/README.md shows the scripts with their own sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import adding_problem
import copy_memory
import numpy as np
import pytest
import reber_grammar

from tests.support.seeds import medians

NEVER = float("inf")


@pytest.mark.learning
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_gated_cell_learns_the_adding_problem(cell: str) -> None:
    def measure(seed: int) -> Mapping[str, float]:
        task: dict[str, Any] = {"length": 50, "hidden_size": 32, "at_most": 60_000, "seed": seed}
        outcome = adding_problem.learn(cell, **task)
        return {
            "learned after": outcome.learned_after or NEVER,
            "wrong": outcome.wrong,
            "error": outcome.error / adding_problem.ALWAYS_HALF,
            "gradient": outcome.after.ratios[-1],
        }

    found = medians(measure, 3)
    assert found["learned after"] < NEVER  # 22,176 to 40,128 sequences
    assert found["wrong"] <= 26  # 0 to 13 of 2,560; Hochreiter and Schmidhuber: 1 to 5
    assert found["error"] < 1 / 50  # 0.0015 to 0.0065
    assert found["gradient"] > 0.01, "the gradient reaches the first number"  # 0.14 to 0.72


@pytest.mark.learning
def test_a_vanilla_network_does_not_learn_the_adding_problem_and_its_gradient_shows_why() -> None:
    def measure(seed: int) -> Mapping[str, float]:
        task: dict[str, Any] = {"length": 100, "hidden_size": 16, "at_most": 10_000, "seed": seed}
        outcome = adding_problem.learn("rnn_tanh", **task)
        return {
            "learned after": outcome.learned_after or NEVER,
            "error": outcome.error / adding_problem.ALWAYS_HALF,
            "gradient before": outcome.before.ratios[-1],
            "horizon": outcome.after.memory_horizon,
        }

    found = medians(measure, 3)
    assert found["learned after"] == NEVER
    assert found["error"] > 1 / 2  # 0.90 to 0.95
    assert found["gradient before"] < 1e-12  # 1e-31 to 2e-17
    # 6 to 14 steps
    assert found["horizon"] < 50, "shorter than the distance to the first number"


@pytest.mark.learning
def test_a_gated_cell_beats_the_memoryless_baseline_at_copying() -> None:
    task: dict[str, Any] = {"symbols": 3, "length": 20, "hidden_size": 32}

    def measure(cell: str, at_most: int, seed: int) -> Mapping[str, float]:
        outcome = copy_memory.learn(cell, at_most=at_most, seed=seed, **task)
        return {
            "learned after": outcome.learned_after or NEVER,
            "share": outcome.share,
            "gradient": outcome.flow.ratios[-1],
        }

    learned = medians(partial(measure, "gru", 60_000), 3)
    vanilla = medians(partial(measure, "rnn_tanh", 6_000), 3)
    assert learned["learned after"] < NEVER  # 14,536 to 32,176 sequences
    assert learned["share"] < 0.1  # 0.008 to 0.016
    assert learned["gradient"] > 0.01  # 0.18 to 0.31
    assert vanilla["learned after"] == NEVER
    assert vanilla["share"] > 0.9  # 1.002 to 1.006
    assert vanilla["gradient"] < 1e-3  # 2e-8 to 3e-6


@pytest.mark.learning
def test_only_a_gated_cell_remembers_a_letter_over_a_string_of_the_grammar() -> None:
    def measure(cell: str, at_most: int, seed: int) -> Mapping[str, float]:
        outcome = reber_grammar.learn(cell, hidden_size=32, at_most=at_most, seed=seed)
        return {
            "learned after": outcome.learned_after or NEVER,
            "last letters": outcome.last_letters,
            "gradient": outcome.flow.ratios[24],
        }

    learned = medians(partial(measure, "gru", 40_000), 3)
    vanilla = medians(partial(measure, "rnn_tanh", 8_000), 3)
    assert learned["learned after"] < NEVER  # 4,942 to 10,101 strings
    assert learned["last letters"] == 1.0  # 1.0: which "learned" requires
    assert vanilla["learned after"] == NEVER
    assert vanilla["last letters"] < 0.8  # 0.42 to 0.74
    # 0.20 to 0.51, and 0.0001 to 0.021
    assert learned["gradient"] > 20 * vanilla["gradient"]


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
