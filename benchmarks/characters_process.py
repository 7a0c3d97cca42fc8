"""Process protocol of the character model: part of a text in, its bits and seconds out.

A process is started with a folder and a `Settings` as JSON. The folder contains the text (`text`,
bytes) and the initial weights (`weights.npz`, with PyTorch's names). Each line on standard input is
a number of characters; the process learns that many more and answers with one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

VOCABULARY = 256  # bytes
TEXT, WEIGHTS = "text", "weights.npz"


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of both sides: Adam with PyTorch's defaults, clip by global norm, one stream."""

    cell: str
    """rnn_tanh or lstm"""
    hidden_size: int = 256
    k: int = 64
    """Characters in a window: k1 = k2."""
    learning_rate: float = 0.001
    clip_threshold: float = 1.0


def answer(build: Callable[[Settings, Path], Callable[[Array], float]]) -> None:
    """Learn parts of the text until standard input ends.

    Args:
        build: returns a function that takes (n + 1,) ids, learns the first n, and returns the bits
            of the n predictions, each made before its character was learned.
    """
    folder, settings = Path(sys.argv[1]), Settings(**json.loads(sys.argv[2]))
    learn = build(settings, folder)
    text = np.frombuffer((folder / TEXT).read_bytes(), np.uint8).astype(np.int64)
    at = 0
    print("ready", flush=True)
    for line in sys.stdin:
        stretch = text[at : at + int(line) + 1]
        start = time.perf_counter()
        bits = learn(stretch)
        seconds = time.perf_counter() - start
        at += len(stretch) - 1
        print(json.dumps({"bits": bits, "seconds": seconds}), flush=True)


def weights(folder: Path) -> dict[str, Array]:
    """Load the initial weights, with PyTorch's names."""
    with np.load(folder / WEIGHTS) as held:
        return dict(held)
