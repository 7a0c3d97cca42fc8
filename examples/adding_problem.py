"""The adding problem: add two numbers that were read many steps ago.

A sequence consists of pairs: a number from -1 to 1, and a mark. Two pairs, both in the first half,
have the mark 1; all others have 0, and the first and last pair -1. After the last step the network
must answer 0.5 + (a + b) / 4, where a and b are the two marked numbers. No earlier step has a
target, so the gradient must flow back over at least half of the sequence.

Always answering 0.5 has a mean squared error of 1/24 = 0.0417. A sequence counts as right if the
error is below 0.04. The problem counts as learned after 2,000 right sequences in a row; each
sequence is new when it is answered, and is learned afterwards.

The gated cells start with gates that stay open for 1 to `length` steps (Tallec and Ollivier 2018).

Source: Hochreiter and Schmidhuber (1997), "Long short-term memory", experiment 4. Their LSTM, with
    a length of 100, learned it after 74,000 sequences; 1 of 2,560 new ones was wrong.

Run `python examples/adding_problem.py`. Compiling the kernels takes another half a minute.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from long_lags import CELLS, open_gates, show_curves
from numpy.typing import NDArray

from bptt_core import gradient_flow, GradientFlow, Learner, ModelSpec

Array = NDArray[Any]

ALWAYS_HALF = 1 / 24  # mean squared error of the answer 0.5: two variances of 1/3, over 4²
TOLERANCE = 0.04
RIGHT_IN_A_ROW = 2000
TEST_SEQUENCES = 2560
BATCH = 32


@dataclass(frozen=True)
class Outcome:
    """The result of one cell."""

    cell: str
    learned_after: int | None
    """Sequences until 2,000 in a row were right; None: never."""
    wrong: int
    """Wrong answers among TEST_SEQUENCES new sequences."""
    error: float
    """Mean squared error on the same sequences."""
    before: GradientFlow
    after: GradientFlow
    seconds: float
    """Time of learning, without compiling kernels."""


def sequences(random: np.random.Generator, length: int, steps: int, count: int) -> Any:
    """Generate pairs (steps, count, 2) and the right answers after the last pair, (count,).

    Args:
        random: source of numbers and positions.
        length: both marks lie in the first half of this many steps, one of them in the first ten.
        steps: length of every sequence, `length` or slightly more.
        count: number of sequences.
    """
    each = np.arange(count)
    pairs = np.zeros((steps, count, 2))
    pairs[:, :, 0] = random.uniform(-1, 1, (steps, count))
    first = random.integers(0, 10, count)
    second = random.integers(0, length // 2 - 1, count)
    second += second >= first  # chosen among the other positions
    pairs[0, :, 0][(first == 0) | (second == 0)] = 0  # its mark is -1, so it does not count
    total = pairs[first, each, 0] + pairs[second, each, 0]
    pairs[first, each, 1] = pairs[second, each, 1] = 1
    pairs[(0, -1), :, 1] = -1
    return pairs, 0.5 + total / 4


def new_learner(cell: Any, length: int, hidden_size: int, updates: int, seed: int) -> Learner:
    """Create a learner whose window holds a whole sequence, so that BPTT is not truncated."""
    longest = length + length // 10
    spec = ModelSpec(
        task="regression",
        input_size=2,
        output_size=1,
        missing_targets=True,
        cell=cell,
        hidden_size=hidden_size,
        k1=longest,
        k2=longest,
        learning_rate=0.01,
        decay_updates=updates,
        scaling=False,
        max_batch_streams=BATCH,
        seed=seed,
    )
    learner = Learner(spec)
    if cell != "rnn_tanh":
        open_gates(learner, length, np.random.default_rng(seed))
    return learner


def learn(cell: str, *, length: int, hidden_size: int, at_most: int, seed: int) -> Outcome:
    """Learn sequences until the problem is learned, at most `at_most`."""
    updates = at_most // BATCH
    learner = new_learner(cell, length, hidden_size, updates, seed)
    learner.warm_up()
    random = np.random.default_rng(seed)
    probe = np.ascontiguousarray(sequences(random, length, length, 1)[0][:, 0])
    before = gradient_flow(learner.spec, learner.parameters(), probe)
    start, right, learned_after = time.perf_counter(), 0, None
    for update in range(1, updates + 1):
        steps = int(random.integers(length, length + length // 10 + 1))
        pairs, answer = sequences(random, length, steps, BATCH)
        target = np.full((steps, BATCH, 1), np.nan)
        target[-1, :, 0] = answer
        made = learner.feed(pairs, target, end_of_sequence=True).predictions
        assert made is not None
        wrong = np.flatnonzero(np.abs(made[-1, :, 0] - answer) >= TOLERANCE)
        right = BATCH - 1 - int(wrong[-1]) if wrong.size else right + BATCH
        if right >= RIGHT_IN_A_ROW:
            learned_after = update * BATCH
            break
    seconds = time.perf_counter() - start
    wrong_ones, error = examine(learner, length, random)
    after = gradient_flow(learner.spec, learner.parameters(), probe)
    return Outcome(cell, learned_after, wrong_ones, error, before, after, seconds)


def examine(learner: Learner, length: int, random: np.random.Generator) -> tuple[int, float]:
    """Count wrong answers among TEST_SEQUENCES and compute the mean squared error; no learning."""
    pairs, answer = sequences(random, length, length, TEST_SEQUENCES)
    snapshot = learner.snapshot()
    by_sequence = np.ascontiguousarray(pairs.swapaxes(0, 1))
    made = [snapshot.predict(None, each)[-1, 0] for each in by_sequence]
    errors = np.array(made) - answer
    return int((np.abs(errors) >= TOLERANCE).sum()), float(np.square(errors).mean())


def show(outcomes: list[Outcome]) -> None:
    """Print the results and the gradient curves."""
    print(
        f"{'cell':<9} {'learned after':>14} {'wrong of 2,560':>15} {'squared error':>14} {'s':>5}"
    )
    for each in outcomes:
        after = f"{each.learned_after:,}" if each.learned_after else "never"
        row = f"{each.cell:<9} {after:>14} {each.wrong:>15,} {each.error:>14.5f}"
        print(f"{row} {each.seconds:>5.0f}")
    curves = [(f"{each.cell:<9} before", each.before) for each in outcomes]
    curves += [(f"{each.cell:<9} after", each.after) for each in outcomes]
    show_curves(curves)


def main() -> None:
    """Learn with each cell and print the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=CELLS)
    parser.add_argument("--length", type=int, default=100, help="steps, 40 or more; default 100")
    parser.add_argument("--hidden-size", type=int, default=32, help="default 32")
    parser.add_argument("--at-most", type=int, default=74_000, help="sequences; default 74000")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    options = parser.parse_args()
    if options.length < 40:
        parser.error(f"--length is {options.length}, but must be 40 or more")
    print(
        f"Two of {options.length} to {options.length + options.length // 10} numbers are marked, "
        "both in the first half: what is their sum?\n"
        f"Always answering the mean: squared error {ALWAYS_HALF:.4f}. Hochreiter and Schmidhuber "
        "(1997), LSTM,\nlength 100: 2,000 in a row right after 74,000 sequences, then 1 of 2,560 "
        "wrong.\n"
    )
    outcomes = [
        learn(
            cell,
            length=options.length,
            hidden_size=options.hidden_size,
            at_most=options.at_most,
            seed=options.seed,
        )
        for cell in options.cells
    ]
    show(outcomes)


if __name__ == "__main__":
    main()
