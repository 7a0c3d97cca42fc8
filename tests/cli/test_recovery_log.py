"""What a server logs while it recovers models tells how long that will take."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from bptt.domain import ModelDefinition
from bptt.durability import Record, SqliteStore, Tick
from bptt.engine.records import make_checkpoint
from bptt_core import Chunk, Learner, ModelSpec
from tests.cli.conftest import BPTT

FREE = ["--address", "127.0.0.1:0", "--metrics-address", "none"]
LONG, SHORT = 1200, 5
"""Records of the journals. One of the long journal's takes some 5 ms to replay."""
STEPS = 64
TOTAL = LONG + SHORT


def journal(store: SqliteStore, model_id: str, records: int, **spec: Any) -> None:
    """A model with only its first checkpoint, and a journal after it that was never learned."""
    definition = ModelDefinition(model_id, ModelSpec(input_size=2, **spec))
    store.save(make_checkpoint(definition, Learner(definition.spec), 0))
    values = np.sin(np.arange(2 * STEPS * records, dtype=np.float32)).reshape(-1, STEPS, 2)
    store.append(
        model_id,
        [
            Record(lsn, Tick.of([Chunk("s", STEPS * (lsn - 1), chunk)]))
            for lsn, chunk in enumerate(values, start=1)
        ],
    )


def at(line: str) -> float:
    """The time of a line of the log, in seconds."""
    return datetime.fromisoformat(line.split()[0]).timestamp()


def test_the_log_tells_how_much_there_is_how_fast_it_goes_and_how_long_it_takes(
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"
    store = SqliteStore(data)
    store.open()
    journal(store, "long", LONG, hidden_size=128, k1=1, k2=32)
    journal(store, "short", SHORT, hidden_size=4)
    store.close()

    lines: list[str] = []
    command = [*BPTT, "serve", *FREE, "--data", str(data)]
    environment = os.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify")}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(environment["NOTIFY_SOCKET"])
        with subprocess.Popen(
            command, env=environment, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stderr is not None
            try:
                for line in process.stderr:
                    lines.append(line.rstrip())
                    if "listening on" in line:
                        break
            finally:
                process.kill()
        systemd.setblocking(False)
        told = systemd.recv(4096).decode()

    text = "\n".join(lines)
    assert "models to recover: 2;" in text
    assert f"recovering: {TOTAL} records to replay, in 2 of 2 models" in text
    pattern = (
        rf"recovering: (\d) of 2 models, (\d+) of {TOTAL} records replayed, "
        r"(\d+) records/s, about (\d+) s left"
    )
    progress = [(line, match) for line in lines if (match := re.search(pattern, line))]
    assert progress, text
    assert progress[-1][1][1] == "1", "the short journal is replayed"
    done = [int(match[2]) for _, match in progress]
    assert done == sorted(done)
    assert any(
        re.search(
            rf"model long: recovering, \d+ of {LONG} records and \d+ steps replayed, "
            r"\d+ records/s, about \d+ s left",
            line,
        )
        for line in lines
    )
    (end,) = [at(line) for line in lines if "recovery ended after" in line]
    assert f"s: {TOTAL} records replayed" in text
    # The estimate of the last line was right, but for a busy machine's moods.
    line, match = progress[-1]
    assert abs(at(line) + int(match[4]) - end) <= 2 + 0.5 * int(match[4])
    assert told.startswith("STATUS=models to recover: 2")
