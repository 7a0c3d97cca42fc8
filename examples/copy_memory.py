"""Copy memory: say again what was said before a long silence.

A sequence is five symbols out of eight, `length` blanks, the last of them a call to answer, and
five places in which the symbols are to be said again, in their order. Everywhere else a blank is
right. Who forgets the symbols can do no better than say blank, and then guess: a mean cross-entropy
of 5 ln 8 / (length + 10), the memoryless baseline.

A cell has learned it once it has said 500 sequences in a row wholly right, each of them new.

Source: Hochreiter and Schmidhuber (1997), and in this form Arjovsky, Shah and Bengio (2016),
    "Unitary evolution recurrent neural networks", section 5.1, whose tanh network and LSTM stay at
    the baseline while their unitary network leaves it behind, with ten symbols and 100 blanks or
    more. That an LSTM learns it with gates that begin open: Tallec and Ollivier (2018).

Run as `python examples/copy_memory.py`; half a minute more when kernels are to be compiled.
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

SYMBOLS = 8  # a sequence's five come from these
SAID = 5
BLANK, CALL = SYMBOLS, SYMBOLS + 1
RIGHT_IN_A_ROW = 500
BATCH = 16
OPEN_FACTOR = 1.5  # gates begin open for up to so many times the silence


@dataclass(frozen=True)
class Outcome:
    """What became of one cell."""

    cell: str
    learned_after: int | None
    """Sequences until 500 in a row were right; None: they never were."""
    share: float
    """Of the last cross-entropies, over the memoryless baseline."""
    recalled: float
    """Share of the symbols that were right, of the last sequences."""
    flow: GradientFlow
    """Of the network as it began: with what it had to learn."""
    seconds: float


def sequences(random: np.random.Generator, length: int, count: int) -> tuple[Array, Array]:
    """One-hot inputs (length + 10, count, 10) and the classes to say, (length + 10, count)."""
    said = random.integers(0, SYMBOLS, (SAID, count))
    heard = np.full((length + 2 * SAID, count), BLANK)
    heard[:SAID] = said
    heard[SAID + length - 1] = CALL
    wanted = np.full_like(heard, BLANK)
    wanted[-SAID:] = said
    return np.eye(SYMBOLS + 2, dtype=np.float32)[heard], wanted


def new_learner(cell: Any, length: int, hidden_size: int, seed: int, updates: int) -> Learner:
    """A learner that sees whole sequences, so its BPTT is not truncated."""
    steps = length + 2 * SAID
    spec = ModelSpec(
        task="classification",
        input_size=SYMBOLS + 2,
        output_size=SYMBOLS + 1,
        cell=cell,
        hidden_size=hidden_size,
        k1=steps,
        k2=steps,
        optimizer="rmsprop",
        learning_rate=0.003,
        decay_updates=updates,
        scaling=False,
        max_batch_streams=BATCH,
        seed=seed,
    )
    learner = Learner(spec)
    if cell != "rnn_tanh":
        open_gates(learner, OPEN_FACTOR * length, np.random.default_rng(seed))
    return learner


def learn(cell: str, *, length: int, hidden_size: int, at_most: int, seed: int) -> Outcome:
    """Learn sequences until the problem is learned, or `at_most` of them."""
    updates = at_most // BATCH
    learner = new_learner(cell, length, hidden_size, seed, updates)
    learner.warm_up()
    random = np.random.default_rng(seed)
    probe = np.ascontiguousarray(sequences(random, length, 1)[0][:, 0])
    flow = gradient_flow(learner.spec, learner.parameters(), probe)
    baseline = SAID * np.log(SYMBOLS) / (length + 2 * SAID)
    start, right, learned_after = time.perf_counter(), 0, None
    losses: list[float] = []
    recalled: list[float] = []
    for update in range(1, updates + 1):
        heard, wanted = sequences(random, length, BATCH)
        result = learner.feed(heard, wanted, end_of_sequence=True)
        assert result.predictions is not None
        hits = result.predictions[-SAID:].argmax(axis=-1) == wanted[-SAID:]
        losses.append(result.updates[0].loss)
        recalled.append(float(hits.mean()))
        missed = np.flatnonzero(~hits.all(axis=0))
        right = BATCH - 1 - int(missed[-1]) if missed.size else right + BATCH
        if right >= RIGHT_IN_A_ROW:
            learned_after = update * BATCH
            break
    last = slice(-RIGHT_IN_A_ROW // BATCH, None)
    share = float(np.mean(losses[last]) / baseline)
    seconds = time.perf_counter() - start
    return Outcome(cell, learned_after, share, float(np.mean(recalled[last])), flow, seconds)


def main() -> None:
    """Learn with each cell, and show what came of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=CELLS)
    parser.add_argument("--length", type=int, default=30, help="blanks, 2 or more; default 30")
    parser.add_argument("--hidden-size", type=int, default=64, help="default 64")
    parser.add_argument("--at-most", type=int, default=250_000, help="sequences; default 250000")
    parser.add_argument("--seed", type=int, default=1, help="default 1")
    options = parser.parse_args()
    if options.length < 2:
        parser.error(f"--length is {options.length}; it must be 2 or more")
    baseline = SAID * np.log(SYMBOLS) / (options.length + 2 * SAID)
    print(
        f"Five of eight symbols, to be said again after {options.length} blanks.\n"
        f"Without a memory: cross-entropy {baseline:.4f}, one symbol of eight recalled.\n"
    )
    print(f"{'cell':<9} {'learned after':>14} {'of the baseline':>16} {'recalled':>9} {'s':>5}")
    outcomes = []
    for cell in options.cells:
        each = learn(
            cell,
            length=options.length,
            hidden_size=options.hidden_size,
            at_most=options.at_most,
            seed=options.seed,
        )
        after = f"{each.learned_after:,}" if each.learned_after else "never"
        row = f"{each.cell:<9} {after:>14} {each.share:>15.1%} {each.recalled:>9.1%}"
        print(f"{row} {each.seconds:>5.0f}", flush=True)
        outcomes.append(each)
    show_curves([(f"{each.cell:<9} before", each.flow) for each in outcomes])


if __name__ == "__main__":
    main()
