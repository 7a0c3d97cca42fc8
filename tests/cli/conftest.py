"""Fixtures that run the command line in processes against a real server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.server import Served, serving

BPTT = [sys.executable, "-m", "bptt.cli"]
RUN_SECONDS = 100


@dataclass(frozen=True)
class Ran:
    """Exit status and output of a command."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Standard output, which must be exactly one JSON document."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Standard output, which must consist of JSON lines only."""
        return [json.loads(line) for line in self.out.splitlines()]


def run(*arguments: str, stdin: str | None = None) -> Ran:
    done = subprocess.run(
        [*BPTT, *arguments],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert "\x1b" not in done.stdout + done.stderr, "no colours without a terminal"
    return Ran(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True)
class Bptt:
    """Runs commands with the address of a server appended."""

    server: Served

    def __call__(self, *arguments: str, stdin: str | None = None) -> Ran:
        return run(*arguments, "--address", self.server.address, stdin=stdin)


@pytest.fixture(scope="session")
def bptt() -> Iterator[Bptt]:
    with serving() as server:
        yield Bptt(server)


@pytest.fixture(scope="session")
def demo_shown() -> Ran:
    """One run of `bptt demo`; it takes 10 s, and several tests look at what it printed."""
    return run("demo")


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A model name that no other test uses."""
    text = "".join(c if c.isalnum() else "-" for c in request.node.name.lower())
    return text.removeprefix("test-")[:60].rstrip("-")
