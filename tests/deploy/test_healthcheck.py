"""The script that the image runs as its health check."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.server import Served
from tests.support.tools import free_port

SCRIPT = Path(__file__).parents[2] / "deploy/healthcheck.py"


def ask(address: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, address], capture_output=True, text=True, check=False
    )


def test_a_server_is_healthy(served: Served) -> None:
    asked = ask(served.address)
    assert asked.returncode == 0, asked.stderr
    assert "SERVING" in asked.stderr


def test_no_server_is_not() -> None:
    asked = ask(f"127.0.0.1:{free_port()}")
    assert asked.returncode == 1
    assert "UNAVAILABLE" in asked.stderr
