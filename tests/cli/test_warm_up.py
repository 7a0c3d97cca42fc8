"""`bptt warm-up` names each cell and the seconds that it took."""

from __future__ import annotations

import json
import re

from tests.cli.conftest import run


def test_a_cell_is_compiled_or_loaded() -> None:
    done = run("warm-up")
    assert done.status == 0, done.err
    assert re.fullmatch(r"rnn_tanh \(1 of 1\): \d+\.\d s\n", done.out)
    done = run("warm-up", "--json")
    assert done.status == 0, done.err
    [(cell, seconds)] = json.loads(done.out).items()
    assert cell == "rnn_tanh"
    assert seconds >= 0


def test_an_unknown_cell_is_refused_with_those_there_are() -> None:
    done = run("warm-up", "--cell", "transformer")
    assert done.status == 2
    assert "'gru', 'lstm'" in done.err
