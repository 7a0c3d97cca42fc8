"""Bits per character on the standard library's source text, compared with a PyTorch loop.

Both sides read the same bytes once, as one stream, start with the same weights, and predict each
byte before they learn it. Each runs in its own process with one thread. They take turns, so that a
change of the machine's load affects both.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.characters_core import new_learner
from benchmarks.characters_process import Settings, TEXT, WEIGHTS
from benchmarks.core import ONE_THREAD, rivals_python

CHARACTERS = 2_000_000
TURN = 200_000  # characters in one turn; a multiple of k
CELLS = ("rnn_tanh", "lstm")


def source_text(size: int) -> bytes:
    """Return the first bytes of the standard library's modules, concatenated by path."""
    folder = Path(sysconfig.get_path("stdlib"))
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.py"))
    text = bytearray()
    for name in names:
        if not {"site-packages", "dist-packages"} & set(Path(name).parts):
            text += (folder / name).read_bytes()
        if len(text) >= size:
            return bytes(text[:size])
    raise ValueError(f"size is {size:,}, but the standard library has only {len(text):,} bytes")


class Side:
    """One process that learns the text."""

    def __init__(self, name: str, python: str, module: str, folder: str, options: Settings) -> None:
        self.name = name
        self.bits = self.seconds = 0.0
        self._process = subprocess.Popen(
            [python, "-m", module, folder, json.dumps(dataclasses.asdict(options))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | ONE_THREAD,
        )
        self._line()

    def learn(self, characters: int) -> None:
        """Learn more characters; add their bits and seconds to the totals."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{characters}\n")
        self._process.stdin.flush()
        took = json.loads(self._line())
        self.bits += took["bits"]
        self.seconds += took["seconds"]

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended")
        return line

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def compare(settings: Settings, text: bytes) -> None:
    """Print bits per character after each turn, and their ratio."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / TEXT).write_bytes(text)
        np.savez(Path(folder) / WEIGHTS, **new_learner(settings).parameters())  # type: ignore[arg-type]
        sides = [
            Side("core", sys.executable, "benchmarks.characters_core", folder, settings),
            Side("PyTorch", rivals_python(), "benchmarks.characters_torch", folder, settings),
        ]
        try:
            for first in range(0, len(text) - 1, TURN):
                characters = min(TURN, len(text) - 1 - first)
                for side in sides:
                    side.learn(characters)
                done = first + characters
                core, torch = (side.bits / done for side in sides)
                row = f"{settings.cell:<9}{done:>10,}{core:>9.4f}{torch:>9.4f}"
                times = "".join(f"{1e6 * side.seconds / done:>9.1f}" for side in sides)
                print(f"{row}{100 * (core / torch - 1):>+8.2f} %{times}", flush=True)
        finally:
            for side in sides:
                side.close()


def run(cells: Sequence[str] = CELLS, characters: int = CHARACTERS) -> None:
    """Compare the core with PyTorch for each cell."""
    settings = Settings(CELLS[0])
    text = source_text(characters + 1)
    print(
        "character model: the standard library's source, one stream, "
        f"H={settings.hidden_size}, k1=k2={settings.k}, Adam {settings.learning_rate},"
    )
    print(
        f"clip {settings.clip_threshold}, one thread; all characters so far, each predicted before "
        f"it was learned; text {hashlib.sha256(text).hexdigest()[:12]}"
    )
    print(f"{'':<19}{'bits a character':>18}{'':>10}{'µs a character':>18}")
    print(f"{'cell':<9}{'so far':>10}{'core':>9}{'PyTorch':>9}{'':>10}{'core':>9}{'PyTorch':>9}")
    for cell in cells:
        compare(Settings(cell), text)
