"""Distributions of this tree, and empty virtual environments into which they are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMAND_SECONDS = 240.0  # installing SciPy or compiling kernels on a busy machine
NOT_SOURCE = (".*_cache", ".git", ".hypothesis", ".venv", "*.egg-info", "__pycache__", "build")
"""What building and testing leave in a tree."""


@dataclass(frozen=True, slots=True)
class Built:
    """The two distributions of one tree."""

    wheel: Path
    sdist: Path


def build(folder: Path) -> Built:
    """Build the wheel and the sdist from a clean copy of this tree, into `folder`."""
    source = folder / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*NOT_SOURCE))
    script = (
        "import sys; from setuptools import build_meta; folder = sys.argv[1]; "
        "build_meta.build_sdist(folder); build_meta.build_wheel(folder)"
    )
    result = run([sys.executable, "-c", script, str(folder)], source)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = folder.glob("*.whl")
    (sdist,) = folder.glob("*.tar.gz")
    return Built(wheel, sdist)


def run(
    command: list[str], folder: Path, seconds: float = COMMAND_SECONDS
) -> subprocess.CompletedProcess[str]:
    """Run a command in `folder`, without the variables that would show it this tree."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds,
    )


def pip(*arguments: str, python: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run pip for an environment, with the versions that `constraints.txt` names."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    if python is not None:
        command += ["--python", str(python)]
    return run([*command, *arguments], ROOT)


def require_index(folder: Path) -> None:
    """Skip the test where pip reaches no package index; fail it if BPTT_REQUIRE_TOOLS=1."""
    probe = ["download", "--quiet", "--no-deps", "--retries", "1", "--dest", str(folder)]
    asked = pip(*probe, "protos==0.1.0")
    if asked.returncode == 0:
        return
    if os.environ.get("BPTT_REQUIRE_TOOLS") == "1":
        pytest.fail(f"BPTT_REQUIRE_TOOLS=1, but pip reaches no package index:\n{asked.stderr}")
    pytest.skip("pip reaches no package index")


class Environment:
    """A virtual environment, used from a project folder with packages of a user's own.

    The project has a `service/` and a `protos/`, and the distributions of these names are installed
    beside ours: neither may hide a module of ours, or ours one of theirs.
    """

    def __init__(self, folder: Path) -> None:
        self.project = folder / "project"
        for package in ("service", "protos"):
            (self.project / package).mkdir(parents=True)
            (self.project / package / "__init__.py").write_text(f'OWNER = "user: {package}"\n')
        self._bin = folder / "environment" / "bin"
        made = run([sys.executable, "-m", "venv", "--without-pip", str(self._bin.parent)], folder)
        assert made.returncode == 0, made.stderr

    @property
    def python_path(self) -> Path:
        """The environment's interpreter."""
        return self._bin / "python"

    def install(self, *requirements: str) -> None:
        """Install with the ordinary pip; modules are compiled when they are imported."""
        options = ["--quiet", "--no-compile", "--constraint", str(ROOT / "constraints.txt")]
        done = pip("install", *options, *requirements, python=self.python_path)
        assert done.returncode == 0, done.stdout + done.stderr

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the interpreter in the project folder."""
        return run([str(self.python_path), *arguments], self.project)

    def bptt(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the installed command `bptt` in the project folder."""
        return run([str(self._bin / "bptt"), *arguments], self.project)

    def write(self, name: str, text: str) -> Path:
        """Write a file into the project folder."""
        path = self.project / name
        path.write_text(text)
        return path
