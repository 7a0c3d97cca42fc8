"""The fleet of examples/fleet.py in a smaller form."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.support.server import Served

ROOT = Path(__file__).parents[2]


def test_the_fleet_is_followed_second_by_second(served: Served) -> None:
    done = subprocess.run(
        [sys.executable, "examples/fleet.py", served.address, "300", "4"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "300 sensors, 4 seconds, 1,200 readings" in done.stdout
    [own, server] = re.findall(r": ([\d.]+)% of a core", done.stdout)
    assert 0 < float(own) <= 100
    assert 0 < float(server) <= 200
    assert re.search(r"forecasts after \d+\.\d+ s, at most", done.stdout)


def test_without_a_server_it_prints_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "examples/fleet.py", "127.0.0.1:1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "bptt serve" in done.stderr
    assert len(done.stderr.splitlines()) == 1
