"""The example script of a crash, at a small size."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "survives_kill.py"


@pytest.mark.same_bits
def test_a_model_after_a_kill_has_the_digest_of_an_undisturbed_one() -> None:
    command = [sys.executable, str(SCRIPT), "--kills", "2", "--chunks", "900"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("kill -9:") == 2
    calm, killed = re.findall(r"digest ([0-9a-f]{64})", done.stdout)
    assert calm == killed
    assert done.stdout.count("7,200 steps learned") == 2
