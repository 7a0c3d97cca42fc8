"""The embedded Reber grammar in three letters: remember one letter while others go by.

Reber's graph makes strings of letters; at each node one of two letters is taken, by the toss of a
coin. Here its letters are folded to three, a, b and c, so that a letter alone never tells the node,
and two strings are embedded: a first letter, a or b, stands before them and again behind them. What
is made so follows each other without a pause, with a `|` between. The network reads letter by
letter and says which come next. To get the last letter right it must remember the first one over
all that is between, 6 to 40 letters and more.

A step counts as right where the likeliest letters are the legal ones: with two legal ones, the two
with the largest probabilities. A cell has learned the grammar once 500 strings in a row were wholly
right, and the last letters of 50 long ones, each of them new; no test set is needed where all is
predicted before it is learned.

Source: Reber (1967); embedded: Cleeremans, Servan-Schreiber and McClelland (1989), whose simple
    network fails where nothing within the string tells the first letter; Hochreiter and Schmidhuber
    (1997), experiment 1: an LSTM learns it, in seven letters, after 8,440 strings on average, and
    real-time recurrent learning after 173,000, where it does.

Run as `python examples/reber_grammar.py`; half a minute more when kernels are to be compiled.
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

LETTERS = "abc|"
A, B, C, END = range(4)
OUT = -1
GRAPH: tuple[tuple[tuple[int, int], ...], ...] = (
    # Of each node: a letter, and the node behind it. Reber's T, P, S, X, V are a, b, c, b, c.
    ((A, 1), (B, 2)),
    ((C, 1), (B, 3)),
    ((A, 2), (C, 4)),
    ((B, 2), (C, OUT)),
    ((B, 3), (C, OUT)),
)
STREAMS = 8
WINDOW = 64
INNER = 2  # of Reber's strings between a first and a last letter
RIGHT_IN_A_ROW = 500
LONG_IN_A_ROW = 50
STRING_LETTERS = 16  # in the mean, so that the learning rate has fallen when `at_most` are read
PIECE = 256  # steps in one call of `feed`
LONG = 24  # letters, over which a vanilla network's gradient does not reach


@dataclass(frozen=True)
class Outcome:
    """What became of one cell."""

    cell: str
    learned_after: int | None
    """Strings until 500 in a row were right, and the last 50 long ones; None: they never were."""
    strings: float
    """Share of the last 2,000 strings that were wholly right."""
    last_letters: float
    """Share of the last 50 strings of LONG letters or more whose last letter, the remembered one,
    was said."""
    flow: GradientFlow
    """Of the network as it is in the end."""
    seconds: float


def string(random: np.random.Generator) -> tuple[list[int], list[set[int]]]:
    """A string from its first letter to its `|`, and the letters that were legal at each place."""
    first = int(random.integers(0, 2))
    letters, legal = [first], [{A, B}]
    for _ in range(INNER):
        node = 0
        while node != OUT:
            choices = GRAPH[node]
            legal.append({letter for letter, _ in choices})
            letter, node = choices[int(random.integers(0, 2))]
            letters.append(letter)
    return [*letters, first, END], [*legal, {first}, {END}]


class Text:
    """Strings without end, one after the other."""

    def __init__(self, random: np.random.Generator) -> None:
        self._random = random
        self._letters: list[int] = [END]
        self._legal: list[set[int]] = [{END}]

    def take(self, count: int) -> tuple[list[int], list[set[int]]]:
        """The next letters, and what is legal after each of them."""
        while len(self._letters) <= count:
            letters, legal = string(self._random)
            self._letters += letters
            self._legal += legal
        taken, legal = self._letters[:count], self._legal[1 : count + 1]
        del self._letters[:count], self._legal[:count]
        return taken, legal


def new_learner(cell: Any, hidden_size: int, seed: int, updates: int) -> Learner:
    """A learner of a few endless streams, with BPTT truncated at 64 letters."""
    spec = ModelSpec(
        task="next_token",
        input_size=1,
        vocabulary_size=len(LETTERS),
        cell=cell,
        hidden_size=hidden_size,
        k1=WINDOW // 4,
        k2=WINDOW,
        learning_rate=0.005,
        decay_updates=updates,
        max_batch_streams=STREAMS,
        seed=seed,
    )
    learner = Learner(spec)
    if cell != "rnn_tanh":
        open_gates(learner, WINDOW / 2, np.random.default_rng(seed))
    return learner


class Marks:
    """Which strings were right, and which last letters, over all streams as they came."""

    def __init__(self, streams: int) -> None:
        self.strings: list[bool] = []
        self.last_letters: list[bool] = []
        self._right = [True] * streams
        self._letters = [0] * streams

    def mark(self, stream: int, probabilities: Array, legal: set[int], letter: int) -> None:
        """One step: what was said of the next letter, and what it may be.

        Args:
            stream: in which it was read.
            probabilities: (4,) of the next letter.
            legal: what it may be.
            letter: the one that was read last; a `|` has ended a string.
        """
        self._letters[stream] += 1
        if letter == END:
            self.strings.append(self._right[stream])
            self._right[stream], self._letters[stream] = True, 0
        right = set(np.argsort(probabilities)[-len(legal) :].tolist()) == legal
        if len(legal) == 1 and END not in legal and self._letters[stream] >= LONG:
            self.last_letters.append(right)
        self._right[stream] = self._right[stream] and right


def learn(cell: str, *, hidden_size: int, at_most: int, seed: int) -> Outcome:
    """Learn strings until the grammar is learned, or `at_most` of them."""
    updates = at_most * STRING_LETTERS // (WINDOW // 4 * STREAMS)
    learner = new_learner(cell, hidden_size, seed, updates)
    learner.warm_up()
    texts = [Text(np.random.default_rng((seed, stream))) for stream in range(STREAMS)]
    marks = Marks(STREAMS)
    start, learned_after = time.perf_counter(), None
    letters = np.empty((PIECE, STREAMS), np.int64)
    while len(marks.strings) < at_most and learned_after is None:
        taken = [text.take(PIECE) for text in texts]
        for stream, (piece, _) in enumerate(taken):
            letters[:, stream] = piece
        made = learner.feed(letters).predictions
        assert made is not None
        for t in range(PIECE):
            for stream, (piece, legal) in enumerate(taken):
                marks.mark(stream, made[t, stream], legal[t], piece[t])
        enough = len(marks.strings) > RIGHT_IN_A_ROW and len(marks.last_letters) > LONG_IN_A_ROW
        if enough and all(marks.strings[-RIGHT_IN_A_ROW:] + marks.last_letters[-LONG_IN_A_ROW:]):
            learned_after = len(marks.strings)
    seconds = time.perf_counter() - start
    window = letters[-WINDOW:, :1].astype(float)
    flow = gradient_flow(learner.spec, learner.parameters(), window)
    return Outcome(
        cell,
        learned_after,
        float(np.mean(marks.strings[-2000:])),
        float(np.mean(marks.last_letters[-LONG_IN_A_ROW:])),
        flow,
        seconds,
    )


def main() -> None:
    """Learn with each cell, and show what came of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=CELLS)
    parser.add_argument("--hidden-size", type=int, default=16, help="default 16")
    parser.add_argument("--at-most", type=int, default=100_000, help="strings; default 100000")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    options = parser.parse_args()
    letters, _ = Text(np.random.default_rng(options.seed)).take(60)
    print("Strings such as " + "".join(LETTERS[each] for each in letters[1:]))
    print(
        "Hochreiter and Schmidhuber (1997), LSTM, seven letters: learned after 8,440 strings;\n"
        "simple networks never. Of long ones: last letters of strings of "
        f"{LONG} letters or more.\n"
    )
    print(f"{'cell':<9} {'learned after':>14} {'strings right':>14} {'of long ones':>13} {'s':>5}")
    outcomes = []
    for cell in options.cells:
        each = learn(
            cell, hidden_size=options.hidden_size, at_most=options.at_most, seed=options.seed
        )
        after = f"{each.learned_after:,}" if each.learned_after else "never"
        row = f"{each.cell:<9} {after:>14} {each.strings:>14.1%} {each.last_letters:>13.1%}"
        print(f"{row} {each.seconds:>5.0f}", flush=True)
        outcomes.append(each)
    show_curves([(f"{each.cell:<9} after", each.flow) for each in outcomes])


if __name__ == "__main__":
    main()
