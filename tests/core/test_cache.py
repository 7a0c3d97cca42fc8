"""Kernels are compiled once: a second process loads them."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.jit import PLAIN_PYTHON

pytestmark = pytest.mark.skipif(PLAIN_PYTHON, reason="nothing is compiled in this run")

# What `make test-other-processor` sets.
OLDER = {"NUMBA_CPU_NAME": "nehalem", "NUMBA_CPU_FEATURES": "", "OPENBLAS_CORETYPE": "Nehalem"}
NEWER = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "", "OPENBLAS_CORETYPE": "Haswell"}

# Numba compiles on a miss and loads on a hit. Inlined functions are part of their callers.
PROGRAM = """
import importlib, json, pkgutil, sys
import numpy as np
import bptt_core.kernels
from bptt_core import Chunk, Learner, ModelSpec

TASKS = {
    "forecast": {"input_size": 2},
    "regression": {"input_size": 2, "output_size": 1},
    "classification": {"input_size": 2, "output_size": 3},
    "next_token": {"vocabulary_size": 5},
}
for cell in sys.argv[1].split():
    for dtype in ("float32", "float64"):
        for task, sizes in TASKS.items():
            for own in ("float32", "float64"):  # the caller's arrays, whatever the model's
                spec = ModelSpec(task=task, cell=cell, dtype=dtype, hidden_size=4, k1=2, **sizes)
                learner = Learner(spec)
                x = np.ones((9, 2), own) if "input_size" in sizes else np.ones(9, np.int64)
                y = np.ones((9, 1), own) if task == "regression" else None
                if task == "classification":
                    y = np.ones(9, np.int64)
                learner.apply([Chunk("a", 0, x, y, end_of_sequence=True), Chunk("b", 0, x, y)])
                learner.apply([Chunk("b", 9, x, y)], predictions=False)
                learner.snapshot().predict(learner.stream_view("b"), x)
hits = misses = 0
for found in pkgutil.iter_modules(bptt_core.kernels.__path__, "bptt_core.kernels."):
    for function in vars(importlib.import_module(found.name)).values():
        if hasattr(function, "py_func") and not function.targetoptions.get("inline"):
            hits += sum(function.stats.cache_hits.values())
            misses += sum(function.stats.cache_misses.values())
print(json.dumps([hits, misses]))
"""


def run(
    program: str, *arguments: str, folder: Path | None = None, processor: Any = ()
) -> list[Any]:
    environment = os.environ | dict(processor)
    if folder is not None:
        environment["NUMBA_CACHE_DIR"] = str(folder)
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    )
    printed: list[Any] = json.loads(done.stdout)
    return printed


@pytest.mark.parametrize("cells", ["rnn_tanh rnn_relu", "lstm", "gru"])
def test_a_second_process_compiles_nothing(cells: str) -> None:
    """For any task and dtype. The first process may find kernels that other tests compiled."""
    run(PROGRAM, cells)
    hits, misses = run(PROGRAM, cells)
    assert hits >= 4  # kernels called from Python; each contains the kernels it calls
    assert misses == 0


ONE_KERNEL = """
import json
import numpy as np
from bptt_core.kernels.linear import add_column_sums
add_column_sums(np.ones((2, 3)), np.empty(3))
stats = add_column_sums.stats
print(json.dumps([sum(stats.cache_hits.values()), sum(stats.cache_misses.values())]))
"""


def test_the_kernel_cache_is_in_the_hosts_folder(tmp_path: Path) -> None:
    assert run(ONE_KERNEL, folder=tmp_path) == [0, 1]
    assert run(ONE_KERNEL, folder=tmp_path) == [1, 0]
    assert list(tmp_path.glob("kernels-*/**/*column_sums*.nbi"))


x86 = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="the processors named here are x86"
)


@x86
def test_each_processor_has_kernels_of_its_own_in_one_folder(tmp_path: Path) -> None:
    """A folder that two machines share, or one where NUMBA_CPU_NAME changed."""
    for processor in (OLDER, NEWER):
        assert run(ONE_KERNEL, folder=tmp_path, processor=processor) == [0, 1]
    for processor in (OLDER, NEWER):
        assert run(ONE_KERNEL, folder=tmp_path, processor=processor) == [1, 0]


INSTRUCTIONS = """
import json
import numba
import numpy as np
from threadpoolctl import threadpool_info
from bptt_core.kernels import blas
from bptt_core.kernels.jit import FAST_MATH

@numba.njit(fastmath=FAST_MATH)
def total(x):
    result = 0.0
    for each in x:
        result += each * each
    return result

total(np.ones(9))
(code,) = total.inspect_asm().values()
wide = sum(name in code for name in ("ymm", "zmm", "vfmadd"))
kinds = {each["architecture"] for each in threadpool_info() if "scipy" in each["filepath"]}
print(json.dumps([wide, sorted(kinds)]))
"""


@x86
def test_the_settings_for_an_older_processor_take_effect() -> None:
    """Neither AVX nor FMA is used; else `make test-other-processor` would show nothing new."""
    assert run(INSTRUCTIONS, processor=OLDER) == [0, ["Nehalem"]]
    wide, kinds = run(INSTRUCTIONS, processor=NEWER)
    assert wide == 2
    assert kinds == ["Haswell"]
