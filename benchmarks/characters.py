"""A character model of source text, learned while it is read, against the same loop in PyTorch.

The text is the standard library's own source: the .py files of the running Python, one after the
other by path, as bytes. Every byte is predicted before it is learned; the figure is the mean of the
bits that each prediction lacked. Both sides begin with the same weights and have the same windows,
clip and optimizer, so they should come to the same figure.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.core import ONE_THREAD, rivals_python
from bptt_core import Learner, ModelSpec

Array = NDArray[Any]

CHARACTERS = 2_000_000
WINDOW = 64
HIDDEN_SIZE = 256
LEARNING_RATE = 1e-3
CLIP = 1.0
PIECE = 64 * WINDOW  # characters in one call of `feed`
LAST = 100_000  # characters of the second figure
CELLS = ("rnn_tanh", "lstm")


def text(characters: int) -> Array:
    """The first bytes of the standard library's source, as token ids."""
    folder = Path(sysconfig.get_path("stdlib"))
    found = bytearray()
    paths = (path for path in folder.rglob("*.py") if "site-packages" not in path.parts)
    for path in sorted(paths):
        found += path.read_bytes()
        if len(found) >= characters:
            return np.frombuffer(bytes(found[:characters]), np.uint8).astype(np.int64)
    raise SystemExit(f"{folder} holds {len(found)} characters of source, fewer than {characters}")


def learner_of(cell: Any, hidden_size: int = HIDDEN_SIZE) -> Learner:
    """A model that has read nothing yet."""
    spec = ModelSpec(
        task="next_token",
        input_size=1,
        vocabulary_size=256,
        cell=cell,
        hidden_size=hidden_size,
        k1=WINDOW,
        k2=WINDOW,
        optimizer="adam",
        learning_rate=LEARNING_RATE,
        clip="norm",
        clip_threshold=CLIP,
    )
    return Learner(spec)


def bits(learner: Learner, tokens: Array) -> Array:
    """Mean bits that the predictions of each window lacked, made before they were learned."""
    losses = []
    for start in range(0, len(tokens), PIECE):
        # With k1 = k2 a window's loss is that of the predictions made as its steps came.
        updates = learner.feed(tokens[start : start + PIECE, None], predictions=False).updates
        losses += [update.loss for update in updates]
    return np.asarray(np.asarray(losses) / np.log(2))


def by_torch(learner: Learner, tokens: Array) -> Array:
    """The same by a PyTorch loop that begins with the learner's weights."""
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder) / "given.npz", Path(folder) / "made.npy"
        data: dict[str, Any] = {
            "tokens": tokens,
            "cell": learner.spec.cell,
            "window": WINDOW,
            "learning_rate": LEARNING_RATE,
            "clip": CLIP,
        }
        np.savez(given, **(data | learner.parameters()))
        command = [rivals_python(), "-m", "benchmarks.characters_torch", str(given), str(made)]
        subprocess.run(command, check=True, env=os.environ | ONE_THREAD)
        losses: Array = np.load(made)
    return np.asarray(losses / np.log(2))


def run(characters: int = CHARACTERS) -> None:
    """Print a line for each cell."""
    tokens = text(characters)
    print(
        f"next byte of {characters:,} bytes of the standard library's source, "
        f"H = {HIDDEN_SIZE}, k1 = k2 = {WINDOW},\n"
        f"Adam {LEARNING_RATE:g}, clip {CLIP:g}, one stream; bits a character, of all and of the "
        f"last {LAST:,}"
    )
    print(
        f"{'cell':<9}{'core':>8}{'PyTorch':>9}{'ratio':>8}{'core':>9}{'PyTorch':>9}{'ratio':>8}",
        end="",
    )
    print(f"{'core':>9}{'PyTorch':>10}")
    for cell in CELLS:
        learner = learner_of(cell)
        learner.warm_up()
        first = learner_of(cell)
        start = time.perf_counter()
        mine = bits(learner, tokens)
        middle = time.perf_counter()
        theirs = by_torch(first, tokens)
        end = time.perf_counter()
        row = f"{cell:<9}"
        tail = LAST // WINDOW
        for of_mine, of_theirs in ((mine, theirs), (mine[-tail:], theirs[-tail:])):
            a, b = of_mine.mean(), of_theirs.mean()
            row += f"{a:>8.3f}{b:>9.3f}{a / b:>8.4f} "
        print(f"{row}{middle - start:>7.0f} s{end - middle:>8.0f} s", flush=True)
    sys.stdout.flush()
