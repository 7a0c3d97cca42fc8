"""The fingerprint names what the bits depend on, and how two fingerprints differ."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib import metadata

from bptt.durability import differences, fingerprint


def test_the_fingerprint_names_processor_and_libraries() -> None:
    found = fingerprint()
    assert found["python"] == platform.python_version()
    assert found["numba"] == metadata.version("numba")
    assert found["numpy"] == metadata.version("numpy")
    assert found["processor"]
    assert len(found["processor_flags"]) == 16
    found["numpy"] = "another"
    assert fingerprint()["numpy"] != "another", "each caller has a copy"


def test_differences_are_named() -> None:
    same = fingerprint()
    assert differences(same) == []
    other = {**same, "numba": "0.1", "abacus": "7"}
    del other["python"]
    assert differences(other) == [
        "abacus was 7 and is not known",
        f"numba was 0.1 and is {same['numba']}",
        f"python was not known and is {same['python']}",
    ]


def test_code_for_another_processor_is_a_difference() -> None:
    """Two processes on one machine, one of them told to compute as an older processor does."""
    program = (
        "import json; from bptt.durability import fingerprint; print(json.dumps(fingerprint()))"
    )
    told = {"NUMBA_CPU_NAME": "nehalem", "OPENBLAS_CORETYPE": "Nehalem"}
    kept = {name: value for name, value in os.environ.items() if name not in told}
    native, other = (
        json.loads(subprocess.check_output([sys.executable, "-c", program], env=kept | settings))
        for settings in ({}, told)
    )
    assert native.keys() & told.keys() == set()
    assert other == native | told


def test_a_setting_that_this_process_lacks_is_named() -> None:
    before = {**fingerprint(), "NPY_ENABLE_CPU_FEATURES": "AVX2"}
    assert differences(before) == ["NPY_ENABLE_CPU_FEATURES was AVX2 and is not set"]
