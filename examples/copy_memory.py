"""Copy memory: repeat symbols after a long delay.

A sequence consists of n symbols out of eight, then `length` blanks, the last of which is a signal
to answer, then n positions at which the symbols must be repeated in order. Everywhere else a blank
is right. Without memory of the symbols, the best strategy is to answer blank and then to guess: a
mean cross-entropy of n ln 8 / (length + 2 n), the memoryless baseline.

A cell has learned the task after 500 completely right sequences in a row, all of them new.

Source: Hochreiter and Schmidhuber (1997), and in this form Arjovsky, Shah and Bengio (2016),
    "Unitary evolution recurrent neural networks", section 5.1: with ten symbols and 100 blanks or
    more, the tanh network stays at the baseline; the LSTM gets below it only with 100 blanks.
    Tallec and Ollivier (2018): the LSTM does better with gates that start open.

Run `python examples/copy_memory.py`. Compiling the kernels takes another half a minute. The paper's
size takes some minutes: `--symbols 10 --length 100 --at-most 240000`.
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

SYMBOLS = 8  # number of different symbols
BLANK, CALL = SYMBOLS, SYMBOLS + 1
RIGHT_IN_A_ROW = 500
BATCH = 8  # many small updates need fewer sequences than few large ones
OPEN_FACTOR = 1.5  # gates start open for up to this many times the delay


@dataclass(frozen=True)
class Outcome:
    """The result of one cell."""

    cell: str
    learned_after: int | None
    """Sequences until 500 in a row were right; None: never."""
    share: float
    """Cross-entropy of the last sequences, relative to the memoryless baseline."""
    recalled: float
    """Share of right symbols in the last sequences."""
    flow: GradientFlow
    """Gradient flow of the network before learning."""
    seconds: float


def baseline(symbols: int, length: int) -> float:
    """Mean cross-entropy, in nats, of a model that knows when to answer but not what."""
    return float(symbols * np.log(SYMBOLS) / (length + 2 * symbols))


def sequences(
    random: np.random.Generator, symbols: int, length: int, count: int
) -> tuple[Array, Array]:
    """Generate one-hot inputs (T, count, 10) and classes (T, count); T = length + 2 symbols."""
    symbols_read = random.integers(0, SYMBOLS, (symbols, count))
    inputs = np.full((length + 2 * symbols, count), BLANK)
    inputs[:symbols] = symbols_read
    inputs[symbols + length - 1] = CALL
    targets = np.full_like(inputs, BLANK)
    targets[-symbols:] = symbols_read
    return np.eye(SYMBOLS + 2, dtype=np.float32)[inputs], targets


def new_learner(cell: Any, steps: int, hidden_size: int, seed: int, updates: int) -> Learner:
    """Create a learner whose window holds a whole sequence, so that BPTT is not truncated."""
    spec = ModelSpec(
        task="classification",
        input_size=SYMBOLS + 2,
        output_size=SYMBOLS + 1,
        cell=cell,
        hidden_size=hidden_size,
        k1=steps,
        k2=steps,
        learning_rate=0.01,
        decay_updates=updates,
        scaling=False,
        max_batch_streams=BATCH,
        seed=seed,
    )
    return Learner(spec)


def learn(
    cell: str, *, symbols: int, length: int, hidden_size: int, at_most: int, seed: int
) -> Outcome:
    """Learn sequences until the problem is learned, at most `at_most`."""
    updates = at_most // BATCH
    learner = new_learner(cell, length + 2 * symbols, hidden_size, seed, updates)
    if cell != "rnn_tanh":
        open_gates(learner, OPEN_FACTOR * length, np.random.default_rng(seed))
    learner.warm_up()
    random = np.random.default_rng(seed)
    probe = np.ascontiguousarray(sequences(random, symbols, length, 1)[0][:, 0])
    flow = gradient_flow(learner.spec, learner.parameters(), probe)
    start, right, learned_after = time.perf_counter(), 0, None
    losses: list[float] = []
    recalled: list[float] = []
    for update in range(1, updates + 1):
        inputs, targets = sequences(random, symbols, length, BATCH)
        result = learner.feed(inputs, targets, end_of_sequence=True)
        assert result.predictions is not None
        hits = result.predictions[-symbols:].argmax(axis=-1) == targets[-symbols:]
        losses.append(result.updates[0].loss)
        recalled.append(float(hits.mean()))
        missed = np.flatnonzero(~hits.all(axis=0))
        right = BATCH - 1 - int(missed[-1]) if missed.size else right + BATCH
        if right >= RIGHT_IN_A_ROW:
            learned_after = update * BATCH
            break
    last = slice(-RIGHT_IN_A_ROW // BATCH, None)
    share = float(np.mean(losses[last]) / baseline(symbols, length))
    seconds = time.perf_counter() - start
    return Outcome(cell, learned_after, share, float(np.mean(recalled[last])), flow, seconds)


def main() -> None:
    """Learn with each cell and print the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=CELLS)
    parser.add_argument("--symbols", type=int, default=5, help="n, 1 or more; default 5")
    parser.add_argument("--length", type=int, default=30, help="blanks, 2 or more; default 30")
    parser.add_argument("--hidden-size", type=int, default=64, help="default 64")
    parser.add_argument("--at-most", type=int, default=120_000, help="sequences; default 120000")
    parser.add_argument("--seed", type=int, default=1, help="default 1")
    options = parser.parse_args()
    if options.length < 2:
        parser.error(f"--length is {options.length}, but must be 2 or more")
    if options.symbols < 1:
        parser.error(f"--symbols is {options.symbols}, but must be 1 or more")
    memoryless = baseline(options.symbols, options.length)
    print(
        f"Repeat {options.symbols} of eight symbols after {options.length} blanks.\n"
        f"Without memory: cross-entropy {memoryless:.4f}, one symbol of eight recalled.\n"
    )
    print(f"{'cell':<9} {'learned after':>14} {'of the baseline':>16} {'recalled':>9} {'s':>5}")
    outcomes = []
    for cell in options.cells:
        each = learn(
            cell,
            symbols=options.symbols,
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
