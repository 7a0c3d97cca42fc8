"""A recorded sequence, fed twice, gives the same bytes: in one process and in another."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bptt_core import Chunk, Learner, ModelSpec
from tests.support.jit import PLAIN_PYTHON

pytestmark = pytest.mark.same_bits

RIDE = Path(__file__).parent / "recorded" / "ride.csv"
SPECS = {
    "forecast": ModelSpec(input_size=4, hidden_size=8, horizon=2),
    "forecast of two columns": ModelSpec(
        input_size=4, hidden_size=8, cell="gru", target_columns=(3, 1), max_batch_streams=2
    ),
    "regression": ModelSpec(
        task="regression", input_size=3, output_size=1, hidden_size=8, cell="lstm", layers=2,
        missing_targets=True, dtype="float64",
    ),
    "classification": ModelSpec(
        task="classification", input_size=3, output_size=3, hidden_size=8, cell="rnn_relu",
        clip="layer_norm", clip_threshold=0.5,
    ),
    "tokens": ModelSpec(
        task="next_token", vocabulary_size=16, hidden_size=8, cell="lstm", optimizer="momentum",
        learning_rate=0.01,
    ),
    "missing inputs": ModelSpec(input_size=4, hidden_size=8, horizon=2, missing_inputs=True),
    "late classes, missing inputs": ModelSpec(
        task="classification", input_size=3, output_size=3, hidden_size=8, cell="gru",
        missing_inputs=True, label_delay=7, k1=3, k2=9,
    ),
    "late targets": ModelSpec(
        task="regression", input_size=3, output_size=1, hidden_size=8, label_delay=3,
        max_batch_streams=2,
    ),
}  # fmt: skip
# As plain Python, kernels are no other code in another process.
BACKENDS = ["reference"] if PLAIN_PYTHON else ["reference", "compiled"]


def ticks(spec: ModelSpec) -> list[list[Chunk]]:
    """The ride as four streams of a hundred steps, in ragged chunks; one ends its sequence."""
    ride = np.loadtxt(RIDE, delimiter=",", skiprows=1)
    assert ride.shape == (400, 4)
    speed, cadence = ride[:, 3].copy(), ride[:, 2].copy()
    if spec.missing_inputs:
        ride[::5, 1] = ride[3:50:2] = np.nan
    x: Any = ride
    y: Any = None
    if spec.task == "next_token":
        x = np.minimum(speed.astype(np.int64), spec.vocabulary_size - 1)
    elif spec.task == "classification":
        x, y = np.ascontiguousarray(ride[:, [0, 1, 3]]), np.digitize(cadence, [1, 80])
    elif spec.task == "regression":
        x, y = np.ascontiguousarray(ride[:, :3]), speed[:, np.newaxis].copy()
        y[::7] = np.nan
    late = min(2, spec.label_delay)  # targets come so many steps late
    result = []
    for start, stop in [(0, 3), (3, 40), (40, 41), (41, 90), (90, 100)]:
        tick = []
        for part in range(4):
            if part == 1 and stop > 90:  # the second stays behind
                continue
            first = max(41 if part == 2 and start >= 41 else 0, start - late)
            end = stop if part == 2 and stop == 41 else stop - late
            at = 100 * part
            targets = None if y is None else y[at + first : at + end]
            chunk = Chunk(f"part {part}", start, x[at + start : at + stop], targets,
                          part == 2 and stop == 41, first if late else None)  # fmt: skip
            tick.append(chunk)
        result.append(tick)
    return result


def digests(name: str, backend: Any) -> dict[str, str]:
    """Digests of every array of the state, of all predictions and of all reports."""
    learner, predictions, reports = Learner(SPECS[name], backend=backend), b"", ""
    for tick in ticks(learner.spec):
        result = learner.apply(tick)
        for chunk in result.chunks:
            assert chunk.predictions is not None
            predictions += chunk.predictions.tobytes()
        reports += repr(result.updates)
    arrays, metadata = learner.state()
    assert arrays["model.counters"][0] > 20
    parts = {key: array.tobytes() for key, array in arrays.items()}
    parts |= {"predictions": predictions, "reports": reports.encode()}
    parts["metadata"] = json.dumps(metadata, sort_keys=True).encode()
    return {key: hashlib.sha256(part).hexdigest() for key, part in parts.items()}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SPECS)
def test_fed_twice(name: str, backend: Any) -> None:
    assert digests(name, backend) == digests(name, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_fed_in_another_process(backend: Any) -> None:
    """A second process, with another hash seed, loads its kernels from the disk."""
    program = (
        "import json; from tests.core.test_recorded import digests, SPECS;"
        f"print(json.dumps({{name: digests(name, {backend!r}) for name in SPECS}}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONHASHSEED": "7"},
        cwd=RIDE.parents[3],
    )
    assert json.loads(done.stdout) == {name: digests(name, backend) for name in SPECS}


@pytest.mark.skipif(PLAIN_PYTHON, reason="nothing is compiled in this run")
def test_compiled_now_or_loaded_from_the_disk(tmp_path: Path) -> None:
    """A process with an empty kernel cache and one with a full cache give the same bytes.

    Numba links what a function calls into it and optimises the copy once more, so that two copies
    of a kernel may add in different orders; a process must always run the same one.
    """
    program = (
        "import json; from tests.core.test_recorded import digests;"
        "from bptt_core.kernels import transition;"
        "found = digests('classification', 'compiled');"
        "stats = transition.run.stats;"
        "misses = sum(stats.cache_misses.values());"
        "print(json.dumps([misses, found]))"
    )
    misses, found = [], []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", program],
            check=True,
            capture_output=True,
            text=True,
            env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)},
            cwd=RIDE.parents[3],
        )
        missed, parts = json.loads(done.stdout)
        misses.append(missed)
        found.append(parts)
    assert misses == [1, 0]
    assert found[0] == found[1]


def test_another_sequence_has_other_digests() -> None:
    one = digests("forecast", "reference")
    before = ticks(SPECS["forecast"])
    learner = Learner(SPECS["forecast"], backend="reference")
    before[0][0].inputs[1, 1] += 1e-3
    for tick in before:
        learner.apply(tick)
    changed = learner.state()[0]["model.parameters"].tobytes()
    assert hashlib.sha256(changed).hexdigest() != one["model.parameters"]
