"""What the bits depend on is told, and so is how it differs."""

from __future__ import annotations

import platform
from importlib import metadata

from bptt.durability import differences, fingerprint


def test_it_names_processor_and_libraries() -> None:
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
