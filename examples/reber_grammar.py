"""The embedded Reber grammar in three letters: remember one letter while others follow.

Reber's graph generates strings of letters; each node has two letters, chosen with equal
probability. Here its letters are mapped to three, a, b and c, so that a letter alone never
identifies the node. Two such strings are embedded between two copies of one letter, a or b. The
resulting strings follow one another, separated by `|`. The network reads letter by letter and
predicts the next one. To predict the last letter it must remember the first one over everything in
between, 6 to 40 letters and more.

A step counts as right if the likeliest letters are the legal ones: with two legal letters, the two
with the largest probabilities. A cell has learned the grammar after 500 completely right strings in
a row and 50 right last letters of long strings. No test set is needed, since every letter is
predicted before it is learned.

Source: Reber (1967); embedded: Cleeremans, Servan-Schreiber and McClelland (1989), whose simple
    network fails if nothing within the string depends on the first letter; Hochreiter and
    Schmidhuber (1997), experiment 1: with seven letters, an LSTM learns it after 8,440 strings on
    average; real-time recurrent learning, when it succeeds, after 173,000.

Run `python examples/reber_grammar.py`. Compiling the kernels takes another half a minute.
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
    # For each node: letters with the node each leads to. Reber's T, P, S, X, V are a, b, c, b, c.
    ((A, 1), (B, 2)),
    ((C, 1), (B, 3)),
    ((A, 2), (C, 4)),
    ((B, 2), (C, OUT)),
    ((B, 3), (C, OUT)),
)
STREAMS = 8
WINDOW = 64
INNER = 2  # Reber strings between the first and the last letter
RIGHT_IN_A_ROW = 500
LONG_IN_A_ROW = 50
STRING_LETTERS = 16  # mean length; the learning rate has decayed when `at_most` strings are read
PIECE = 256  # steps in one call of `feed`
LONG = 24  # letters; a vanilla network's gradient vanishes over this distance


@dataclass(frozen=True)
class Outcome:
    """The result of one cell."""

    cell: str
    learned_after: int | None
    """Strings until 500 in a row, and the last 50 long ones, were right; None: never."""
    strings: float
    """Share of the last 2,000 strings that were completely right."""
    last_letters: float
    """Share of the last 50 strings of at least LONG letters whose last letter was predicted."""
    flow: GradientFlow
    """Gradient flow of the network after learning."""
    seconds: float


def string(random: np.random.Generator) -> tuple[list[int], list[set[int]]]:
    """Generate a string up to its `|`, and the legal letters at each position."""
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
    """An endless sequence of strings."""

    def __init__(self, random: np.random.Generator) -> None:
        self._random = random
        self._letters: list[int] = [END]
        self._legal: list[set[int]] = [{END}]

    def take(self, count: int) -> tuple[list[int], list[set[int]]]:
        """Return the next letters, and the legal letters after each of them."""
        while len(self._letters) <= count:
            letters, legal = string(self._random)
            self._letters += letters
            self._legal += legal
        taken, legal = self._letters[:count], self._legal[1 : count + 1]
        del self._letters[:count], self._legal[:count]
        return taken, legal


def new_learner(cell: Any, hidden_size: int, seed: int, updates: int) -> Learner:
    """Create a learner of STREAMS endless streams, with BPTT truncated at WINDOW letters."""
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


class Results:
    """Records which strings and which last letters were right, over all streams in order."""

    def __init__(self, streams: int) -> None:
        self.strings: list[bool] = []
        self.last_letters: list[bool] = []
        self._right = [True] * streams
        self._letters = [0] * streams

    def add(self, stream: int, probabilities: Array, legal: set[int], letter: int) -> None:
        """Add the prediction of one step.

        Args:
            stream: index of the stream.
            probabilities: (4,) predicted probabilities of the next letter.
            legal: letters that may follow.
            letter: the letter that was read last; `|` ends a string.
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
    """Learn strings until the grammar is learned, at most `at_most`."""
    updates = at_most * STRING_LETTERS // (WINDOW // 4 * STREAMS)
    learner = new_learner(cell, hidden_size, seed, updates)
    learner.warm_up()
    texts = [Text(np.random.default_rng((seed, stream))) for stream in range(STREAMS)]
    results = Results(STREAMS)
    start, learned_after = time.perf_counter(), None
    letters = np.empty((PIECE, STREAMS), np.int64)
    while len(results.strings) < at_most and learned_after is None:
        taken = [text.take(PIECE) for text in texts]
        for stream, (piece, _) in enumerate(taken):
            letters[:, stream] = piece
        made = learner.feed(letters).predictions
        assert made is not None
        for t in range(PIECE):
            for stream, (piece, legal) in enumerate(taken):
                results.add(stream, made[t, stream], legal[t], piece[t])
        strings, last_letters = results.strings, results.last_letters
        enough = len(strings) > RIGHT_IN_A_ROW and len(last_letters) > LONG_IN_A_ROW
        if enough and all(strings[-RIGHT_IN_A_ROW:] + last_letters[-LONG_IN_A_ROW:]):
            learned_after = len(results.strings)
    seconds = time.perf_counter() - start
    window = letters[-WINDOW:, :1].astype(float)
    flow = gradient_flow(learner.spec, learner.parameters(), window)
    return Outcome(
        cell,
        learned_after,
        float(np.mean(results.strings[-2000:])),
        float(np.mean(results.last_letters[-LONG_IN_A_ROW:])),
        flow,
        seconds,
    )


def main() -> None:
    """Learn with each cell and print the results."""
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
        "simple networks never. Long strings: last letters of strings of at least "
        f"{LONG} letters.\n"
    )
    print(f"{'cell':<9} {'learned after':>14} {'strings right':>14} {'long strings':>13} {'s':>5}")
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
