"""What `pip install` would bring: the packages, and the files in them that are not Python."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("bptt_core", "bptt")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.Path:
    """A wheel of this tree, built beside it, so that nothing is left in it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, source / package, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    built = subprocess.run(
        [*command, "--wheel-dir", str(folder), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = folder.glob("*.whl")
    return zipfile.Path(path)


@pytest.mark.parametrize("package", PACKAGES)
def test_wheel_has_every_file_of_the_package(wheel: zipfile.Path, package: str) -> None:
    files = [
        str(path.relative_to(ROOT))
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    assert files
    assert [name for name in files if not (wheel / name).exists()] == []


def test_wheel_has_nothing_else(wheel: zipfile.Path) -> None:
    (information,) = (item.name for item in wheel.iterdir() if item.name.endswith(".dist-info"))
    assert {item.name for item in wheel.iterdir()} == {*PACKAGES, information}
    assert (wheel / information / "licenses" / "LICENSE").is_file()
    entry_points = (wheel / information / "entry_points.txt").read_text()
    assert "bptt = bptt.cli:main" in entry_points
