"""Copy memory: say again what was said before a long silence.

A sequence is n symbols out of eight, `length` blanks, the last of them a call to answer, and n
places in which the symbols are to be said again, in their order. Everywhere else a blank is right.
Who forgets the symbols can do no better than say blank, and then guess: a mean cross-entropy of
n ln 8 / (length + 2 n), the memoryless baseline.

A cell has learned it once it has said 500 sequences in a row wholly right, each of them new.

Source: Hochreiter and Schmidhuber (1997), and in this form Arjovsky, Shah and Bengio (2016),
    "Unitary evolution recurrent neural networks", section 5.1: with ten symbols and 100 blanks or
    more the tanh network stays at the baseline, and the LSTM gets below it with 100 only. That it
    does better with gates that begin open: Tallec and Ollivier (2018).

Run as `python examples/copy_memory.py`; half a minute more when kernels are to be compiled. The
paper's size, some minutes: `--symbols 10 --length 100 --at-most 240000`.
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

SYMBOLS = 8  # what is to be said comes from these
BLANK, CALL = SYMBOLS, SYMBOLS + 1
RIGHT_IN_A_ROW = 500
BATCH = 8  # many small updates learn this from fewer sequences than few large ones
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


def baseline(symbols: int, length: int) -> float:
    """Mean cross-entropy, in nats, of who knows when to speak and has forgotten what."""
    return float(symbols * np.log(SYMBOLS) / (length + 2 * symbols))


def sequences(
    random: np.random.Generator, symbols: int, length: int, count: int
) -> tuple[Array, Array]:
    """One-hot inputs (T, count, 10) and the classes to say, (T, count); T = length + 2 symbols."""
    said = random.integers(0, SYMBOLS, (symbols, count))
    heard = np.full((length + 2 * symbols, count), BLANK)
    heard[:symbols] = said
    heard[symbols + length - 1] = CALL
    wanted = np.full_like(heard, BLANK)
    wanted[-symbols:] = said
    return np.eye(SYMBOLS + 2, dtype=np.float32)[heard], wanted


def new_learner(cell: Any, steps: int, hidden_size: int, seed: int, updates: int) -> Learner:
    """A learner that sees whole sequences of so many steps, so its BPTT is not truncated."""
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
    """Learn sequences until the problem is learned, or `at_most` of them."""
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
        heard, wanted = sequences(random, symbols, length, BATCH)
        result = learner.feed(heard, wanted, end_of_sequence=True)
        assert result.predictions is not None
        hits = result.predictions[-symbols:].argmax(axis=-1) == wanted[-symbols:]
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
    """Learn with each cell, and show what came of it."""
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
        parser.error(f"--length is {options.length}; it must be 2 or more")
    if options.symbols < 1:
        parser.error(f"--symbols is {options.symbols}; it must be 1 or more")
    forgetful = baseline(options.symbols, options.length)
    print(
        f"{options.symbols} of eight symbols, to be said again after {options.length} blanks.\n"
        f"Without a memory: cross-entropy {forgetful:.4f}, one symbol of eight recalled.\n"
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
