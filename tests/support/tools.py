"""Programs from outside that some tests start."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from pathlib import Path

import pytest


def program(name: str) -> str:
    """Path of a program; the environment's own comes first.

    Where it is not installed the test is skipped, or fails if BPTT_REQUIRE_TOOLS=1.
    """
    beside_python = str(Path(sys.executable).parent)
    found = shutil.which(name, path=beside_python) or shutil.which(name)
    if found is not None:
        return found
    if os.environ.get("BPTT_REQUIRE_TOOLS") == "1":
        pytest.fail(f"{name} is not installed, and BPTT_REQUIRE_TOOLS=1 asks for it")
    packages = "prometheus systemd chromium chromium-driver openssl"
    pytest.skip(f"{name} is not installed (Debian: apt-get install {packages})")


def free_port() -> int:
    """A free port of loopback, for programs that cannot choose one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
