"""A server that compiles kernels says so, and so does the command that waits for it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cli.conftest import run
from tests.support.server import serving


def test_compiling_is_told_while_a_model_waits_for_it_and_only_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    table = tmp_path / "table.csv"
    table.write_text("a\n1\n2\n4\n")
    with (tmp_path / "log").open("w+") as log, serving(log=log) as server:
        first = run("learn", str(table), "--model", "m", "--address", server.address)
        again = run("learn", str(table), "--model", "n", "--address", server.address)
        log.seek(0)
        logged = log.read()
    assert first.status == again.status == 0
    said = first.out + first.err
    assert "the server is compiling kernels for rnn_tanh; this happens once\n" in said
    assert re.search(r"^kernels for rnn_tanh compiled in \d+\.\d s$", said, re.MULTILINE)
    assert "kernels" not in again.out + again.err
    begun = re.findall(r"compiling kernel ([\w.]+), 1 of \d+; this happens once", logged)
    assert len(begun) == 1
    assert re.search(rf"compiled kernel {re.escape(begun[0])}, 1 of \d+, in \d+\.\d s", logged)
