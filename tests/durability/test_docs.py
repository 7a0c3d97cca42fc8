"""docs/journal.md describes the format exactly: its reader reads a journal of the store."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from bptt.config import Kept
from bptt.durability import Record, Tick
from bptt_core import Chunk
from tests.durability.support import checkpoint, command, opened

PAGE = (Path(__file__).parents[2] / "docs" / "journal.md").read_text()


def test_the_reader_of_the_page_reads_a_journal(tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    with opened(tmp_path) as store:
        store.save(checkpoint(0))
        inputs = np.array([[0.5, -2.0]], np.float32)
        targets = np.array([-1], np.int64)
        tokens = np.array([3, 70_000], np.uint32)
        lanes = (("é", 7), ("b", 0))
        last = Chunk("b", 1, tokens, end_of_sequence=True, source_position=b"9")
        store.append(
            "m",
            [
                Record(1, Tick.of([Chunk(name, at, inputs, targets) for name, at in lanes])),
                command(2, "reset", stream_id="b"),
                Record(3, Tick.of([last])),
            ],
        )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "models" / "m" / "journal.sqlite3")],
        capture_output=True,
        text=True,
        check=True,
    )
    rows = "((2, 2), (0.5, -2.0, 0.5, -2.0))"
    assert done.stdout.splitlines() == [
        f"1 ['é', 'b'] [7, 0] [1, 1] None None None {{}} {rows} ((2,), (-1, -1))",
        '2 {"name":"reset","arguments":{"stream_id":"b"}}',
        "3 ['b'] [1] [2] None None [1] {0: b'9'} ((2,), (3, 70000))",
    ]


def test_the_page_states_the_default_retention() -> None:
    kept = Kept()
    assert f"the newest {kept.checkpoints} checkpoints" in PAGE
    assert f"up to {kept.history_bytes >> 20} MB of journal" in PAGE
    assert f"grows beyond {kept.model_bytes >> 30} GB" in PAGE
